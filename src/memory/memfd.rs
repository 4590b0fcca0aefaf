//! Sealed memfds. They have no name in any file system, so nothing can be left behind; the last close frees them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use super::MemoryError;
use crate::ring::layout::{LAYOUT_VERSION, MAGIC, ObjectKind};

/// Which pages hold the data of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum HugePages {
    /// Pages of the usual size.
    #[default]
    Never,
    /// Huge pages if enough are free, else pages of the usual size.
    IfAvailable,
    /// Huge pages, or an error.
    Always,
}

/// How a peer may use an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Its owner alone writes it, through the mapping he has made before it was sealed.
    OwnerWrites,
    /// All who get the fd may map it writable.
    AllWrite,
}

/// What seals an object has when peers get to see it.
fn seals(sharing: Sharing) -> SealFlags {
    let always = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    match sharing {
        Sharing::OwnerWrites => always | SealFlags::FUTURE_WRITE,
        Sharing::AllWrite => always,
    }
}

/// A new object.
#[derive(Debug)]
pub struct Created {
    /// Its only fd.
    pub fd: OwnedFd,
    /// Size of its pages in bytes.
    pub page_size: u64,
}

/// Creates an object of `control` bytes followed by `capacity` bytes of data, zero but for its identity. It can neither shrink nor grow.
///
/// # Errors
///
/// [`MemoryError::Create`] or [`MemoryError::HugePages`].
pub fn create(
    name: &str,
    kind: ObjectKind,
    owner: u64,
    control: u64,
    capacity: u64,
    huge_pages: HugePages,
) -> Result<Created, MemoryError> {
    let huge = huge_page_size();
    match huge_pages {
        HugePages::Always => create_with(name, kind, owner, control, capacity, huge, true),
        HugePages::IfAvailable if capacity >= huge => create_with(name, kind, owner, control, capacity, huge, true)
            .or_else(|_| create_with(name, kind, owner, control, capacity, page_size(), false)),
        _ => create_with(name, kind, owner, control, capacity, page_size(), false),
    }
}

fn create_with(
    name: &str,
    kind: ObjectKind,
    owner: u64,
    control: u64,
    capacity: u64,
    page_size: u64,
    huge: bool,
) -> Result<Created, MemoryError> {
    let size = control.next_multiple_of(page_size) + capacity;
    let create_error = |errno: rustix::io::Errno| MemoryError::Create { size, source: errno.into() };
    let huge_error = |errno: rustix::io::Errno| MemoryError::HugePages {
        size,
        page_size,
        configured: configured_huge_pages(),
        needed: size.div_ceil(page_size),
        source: errno.into(),
    };
    if huge && !capacity.is_multiple_of(page_size) {
        return Err(huge_error(rustix::io::Errno::INVAL));
    }
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if huge {
        flags |= MemfdFlags::HUGETLB;
    }
    let fd = rustix::fs::memfd_create(name, flags).map_err(create_error)?;
    rustix::fs::ftruncate(&fd, size).map_err(|errno| if huge { huge_error(errno) } else { create_error(errno) })?;
    if huge {
        // Takes the pages now: a page missing at the first touch would be a SIGBUS.
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size).map_err(huge_error)?;
    }
    write_identity(&fd, kind, owner, capacity).map_err(|source| MemoryError::Create { size, source })?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(create_error)?;
    Ok(Created { fd, page_size })
}

/// Writes the first line, through a mapping: hugetlbfs has no `write`.
fn write_identity(fd: &OwnedFd, kind: ObjectKind, owner: u64, capacity: u64) -> io::Result<()> {
    let mut identity = [0u8; 32];
    identity[0..8].copy_from_slice(&MAGIC.to_ne_bytes());
    identity[8..12].copy_from_slice(&LAYOUT_VERSION.to_ne_bytes());
    identity[12..16].copy_from_slice(&(kind as u32).to_ne_bytes());
    identity[16..24].copy_from_slice(&capacity.to_ne_bytes());
    identity[24..32].copy_from_slice(&owner.to_ne_bytes());
    let length = rustix::fs::fstat(fd)?.st_blksize as usize;
    // SAFETY: nobody else has the object yet, and it cannot shrink below the first page while we hold its only fd.
    let mut map = unsafe { memmap2::MmapOptions::new().len(length).map_mut(fd)? };
    map[..32].copy_from_slice(&identity);
    Ok(())
}

/// Adds all seals. From here on only mappings that exist already can write an [`Sharing::OwnerWrites`] object. May be repeated.
///
/// # Errors
///
/// [`MemoryError::Refused`] if it is no memfd, or was sealed otherwise.
pub fn seal(fd: impl AsFd, sharing: Sharing) -> Result<(), MemoryError> {
    let fd = fd.as_fd();
    let wanted = seals(sharing);
    let present = rustix::fs::fcntl_get_seals(fd).map_err(|_| MemoryError::Refused { what: "it is not a memfd" })?;
    if present.contains(wanted) {
        return Ok(());
    }
    rustix::fs::fcntl_add_seals(fd, wanted).map_err(|_| MemoryError::Refused { what: "it cannot be sealed" })
}

/// Checks an object received from somebody: a memfd with the right seals, and of this size exactly.
///
/// # Errors
///
/// [`MemoryError::Refused`].
pub fn check(fd: impl AsFd, sharing: Sharing, size: u64) -> Result<(), MemoryError> {
    let fd = fd.as_fd();
    let present = rustix::fs::fcntl_get_seals(fd).map_err(|_| MemoryError::Refused { what: "it is not a memfd" })?;
    // An object that all may write must not be sealed against it by whoever had it first.
    let unwanted = SealFlags::WRITE | if sharing == Sharing::AllWrite { SealFlags::FUTURE_WRITE } else { SealFlags::empty() };
    if !present.contains(seals(sharing)) || present.intersects(unwanted) {
        return Err(MemoryError::Refused { what: "it is not sealed as it must be" });
    }
    check_size(fd, size)
}

/// Checks an object that is not sealed against writing yet, only against losing pages that are mapped: one the driver has just made for us.
///
/// # Errors
///
/// [`MemoryError::Refused`].
pub fn check_own(fd: impl AsFd, size: u64) -> Result<(), MemoryError> {
    let fd = fd.as_fd();
    let present = rustix::fs::fcntl_get_seals(fd).map_err(|_| MemoryError::Refused { what: "it is not a memfd" })?;
    if !present.contains(SealFlags::SHRINK | SealFlags::GROW) {
        return Err(MemoryError::Refused { what: "it is not sealed as it must be" });
    }
    check_size(fd, size)
}

fn check_size(fd: impl AsFd, size: u64) -> Result<(), MemoryError> {
    let stat = rustix::fs::fstat(fd).map_err(|_| MemoryError::Refused { what: "its size cannot be read" })?;
    if u64::try_from(stat.st_size) != Ok(size) {
        return Err(MemoryError::Refused { what: "its size is not what the driver said" });
    }
    Ok(())
}

/// Size in bytes of an ordinary page.
pub fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Size in bytes of the system's default huge page: 2 MiB if it does not say.
pub fn huge_page_size() -> u64 {
    meminfo("Hugepagesize:").map_or(2 << 20, |kib| kib * 1024)
}

fn configured_huge_pages() -> u64 {
    meminfo("HugePages_Total:").unwrap_or(0)
}

/// A figure of `/proc/meminfo`, in its unit there.
pub fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
