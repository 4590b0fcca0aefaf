//! Mappings of shared objects: the control area once, the data of a ring twice, back to back.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

use super::MemoryError;
use super::fork::Birth;
use crate::ring::layout::{Identity, LAYOUT_VERSION, MAGIC, ObjectKind};
use crate::ring::region::Region;
use core::sync::atomic::Ordering;

/// Who may write through a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only; the MMU sees to it.
    Read,
    /// Reading and writing.
    Write,
}

/// What to do when mapping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    /// Touch every page now, so that no later access has a page fault.
    pub prefault: bool,
    /// Keep every page from being swapped out.
    pub lock: bool,
}

/// A mapped object. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    /// Owns the whole address range, whatever has been mapped over it.
    range: ManuallyDrop<MmapRaw>,
    birth: Birth,
    /// Offset of the control area.
    control: usize,
    /// Offset of the data.
    data: usize,
    capacity: u64,
}

impl Mapping {
    /// Maps an object of `control` bytes, rounded up to its pages, and `capacity` bytes of data (0 for a page of lines), after the caller has checked its seals and size.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Map`], [`MemoryError::Lock`], or [`MemoryError::Refused`] if it is another kind or version of object than `kind`.
    pub fn new(
        fd: impl AsFd,
        kind: ObjectKind,
        control: u64,
        capacity: u64,
        page_size: u64,
        access: Access,
        residency: Residency,
    ) -> Result<Self, MemoryError> {
        let control = control.next_multiple_of(page_size);
        let size = control + 2 * capacity;
        let map_error = |source: io::Error| MemoryError::Map { size, source };
        let length = usize::try_from(size).map_err(|_| map_error(io::ErrorKind::OutOfMemory.into()))?;
        // Address space for all three parts, aligned to the object's pages, to be mapped over. Dropping it unmaps whatever is there.
        let slack = if page_size > super::memfd::page_size() { page_size as usize } else { 0 };
        let range = MmapOptions::new().len(length + slack).map_anon().map_err(map_error)?;
        let range = MmapRaw::from(range);
        let start = (range.as_mut_ptr() as usize).next_multiple_of(page_size as usize) - range.as_mut_ptr() as usize;

        let (control, capacity_bytes) = (control as usize, capacity as usize);
        let mut flags = MapFlags::SHARED | MapFlags::FIXED;
        if residency.prefault {
            flags |= MapFlags::POPULATE;
        }
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let parts = [(start, control + capacity_bytes, 0), (start + control + capacity_bytes, capacity_bytes, control as u64)];
        for (offset, length, file_offset) in parts {
            if length == 0 {
                continue;
            }
            // SAFETY: maps over a part of the range reserved above, which is ours alone.
            let mapped = unsafe {
                let address = range.as_mut_ptr().add(offset).cast();
                rustix::mm::mmap(address, length, protection, flags, fd.as_fd(), file_offset)
            };
            mapped.map_err(|errno| map_error(errno.into()))?;
        }
        if residency.lock {
            // SAFETY: a range of our own.
            let locked = unsafe { rustix::mm::mlock(range.as_mut_ptr().add(start).cast(), control + capacity_bytes) };
            locked.map_err(|errno| {
                let limit = getrlimit(Resource::Memlock).current;
                let limit = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
                MemoryError::Lock { size: (control + capacity_bytes) as u64, limit, source: errno.into() }
            })?;
        }
        // Whoever is forked from us gets none of it: see `fork`.
        range.advise(Advice::DontFork).map_err(map_error)?;
        let birth = Birth::here().map_err(map_error)?;
        let mapping = Self { range: ManuallyDrop::new(range), birth, control: start, data: start + control, capacity };
        mapping.check_identity(kind, capacity)?;
        Ok(mapping)
    }

    fn check_identity(&self, kind: ObjectKind, capacity: u64) -> Result<(), MemoryError> {
        let refused = |what| Err(MemoryError::Refused { what });
        // SAFETY: the identity is the first line of every object; all its fields are atomics.
        let identity = unsafe { self.range.as_mut_ptr().add(self.control).cast::<Identity>().as_ref_unchecked() };
        if identity.magic.load(Ordering::Relaxed) != MAGIC {
            return refused("it does not begin as a ringbus object does");
        }
        if identity.version.load(Ordering::Relaxed) != LAYOUT_VERSION {
            return refused("its layout is of another version of ringbus");
        }
        if identity.kind.load(Ordering::Relaxed) != kind as u32 || identity.capacity.load(Ordering::Relaxed) != capacity {
            return refused("it is another object than the driver said");
        }
        Ok(())
    }

    /// The control area.
    ///
    /// # Safety
    ///
    /// `T` is the control struct of the object's kind, and the pointer is not used once the mapping is dropped.
    #[inline]
    pub unsafe fn control<T>(&self) -> NonNull<T> {
        // SAFETY: inside the range; mappings are never at null.
        unsafe { NonNull::new_unchecked(self.range.as_mut_ptr().add(self.control).cast()) }
    }

    /// The data.
    ///
    /// # Safety
    ///
    /// The object is a ring, and the region is not used once the mapping is dropped.
    pub unsafe fn region(&self) -> Region {
        // SAFETY: the data is mapped twice from here; mappings are never at null.
        unsafe { Region::new(NonNull::new_unchecked(self.range.as_mut_ptr().add(self.data)), self.capacity) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a forked child something else may be at these addresses by now.
        if self.birth.is_here() {
            // SAFETY: not used again.
            unsafe { ManuallyDrop::drop(&mut self.range) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memfd::{self, HugePages, Sharing};
    use super::*;
    use crate::ring::layout::SingleControl;

    const CONTROL: u64 = size_of::<SingleControl>() as u64;

    fn ring(capacity: u64) -> memfd::Created {
        memfd::create("test", ObjectKind::SingleRing, 7, CONTROL, capacity, HugePages::Never).unwrap()
    }

    fn map(created: &memfd::Created, capacity: u64, access: Access) -> Result<Mapping, MemoryError> {
        Mapping::new(&created.fd, ObjectKind::SingleRing, CONTROL, capacity, created.page_size, access, Residency::default())
    }

    #[test]
    fn the_data_is_mapped_twice() {
        let created = ring(4096);
        let mapping = map(&created, 4096, Access::Write).unwrap();
        // SAFETY: a ring, and the mapping outlives the region.
        let region = unsafe { mapping.region() };
        // SAFETY: inside the mapping, which is ours alone.
        unsafe {
            region.at(4095).write(1);
            region.at(4095).add(1).write(2);
            assert_eq!((region.at(0).read(), region.at(0).add(4096 + 4095).read()), (2, 1));
        }
    }

    #[test]
    fn a_sealed_ring_can_only_be_read_by_new_mappings() {
        let created = ring(4096);
        let owner = map(&created, 4096, Access::Write).unwrap();
        memfd::seal(&created.fd, Sharing::OwnerWrites).unwrap();
        memfd::seal(&created.fd, Sharing::OwnerWrites).unwrap();
        assert!(matches!(map(&created, 4096, Access::Write), Err(MemoryError::Map { .. })));
        let peer = map(&created, 4096, Access::Read).unwrap();
        // SAFETY: both are mapped, and the owner may write.
        unsafe {
            owner.region().at(8).write(42);
            assert_eq!(peer.region().at(8).read(), 42);
        }
        assert!(rustix::fs::ftruncate(&created.fd, 0).is_err());
        assert!(rustix::io::pwrite(&created.fd, &[1], 0).is_err());
    }

    #[test]
    fn what_is_not_the_object_is_refused() {
        let created = ring(4096);
        let size = CONTROL.next_multiple_of(4096) + 4096;
        assert!(memfd::check(&created.fd, Sharing::OwnerWrites, size).is_err(), "not sealed yet");
        memfd::seal(&created.fd, Sharing::OwnerWrites).unwrap();
        memfd::check(&created.fd, Sharing::OwnerWrites, size).unwrap();
        assert!(memfd::check(&created.fd, Sharing::OwnerWrites, size + 4096).is_err(), "another size");
        assert!(memfd::check(&created.fd, Sharing::AllWrite, size).is_err(), "sealed against writing");
        assert!(memfd::check(std::fs::File::open("/dev/null").unwrap(), Sharing::AllWrite, 0).is_err(), "no memfd");
        assert!(matches!(map(&created, 8192, Access::Read), Err(MemoryError::Refused { .. })));
    }

    #[test]
    fn prefaulting_and_locking_work_within_the_limits() {
        let created = ring(65536);
        let residency = Residency { prefault: true, lock: true };
        Mapping::new(&created.fd, ObjectKind::SingleRing, CONTROL, 65536, created.page_size, Access::Write, residency).unwrap();
    }

    #[test]
    fn missing_huge_pages_are_an_error_that_names_the_setting_or_a_fall_back() {
        let enough = 1 << 32;
        let error = memfd::create("test", ObjectKind::SingleRing, 7, CONTROL, enough, HugePages::Always).unwrap_err();
        assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
        let created = memfd::create("test", ObjectKind::SingleRing, 7, CONTROL, enough, HugePages::IfAvailable).unwrap();
        assert_eq!(created.page_size, memfd::page_size());
    }
}
