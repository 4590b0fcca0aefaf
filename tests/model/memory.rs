//! The memory of a ring as the driver and the clients make it: the control area once, the data twice, back to back; but between two pages that nobody may touch,
//! so that whoever leaves the ring on either side dies of it. (AddressSanitizer does not watch what `mmap` gave.)

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use ringbus::memory::memfd::page_size;
use ringbus::ring::region::Region;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// A ring between guard pages, all zero at first. Unmapped when dropped.
#[derive(Debug)]
pub struct GuardedRing {
    start: NonNull<u8>,
    /// Of the whole range, guards included.
    length: usize,
    /// Offset of the control area.
    control: usize,
    /// Offset of the data.
    data: usize,
    capacity: u64,
}

impl GuardedRing {
    /// A ring with a control area of type `Control`, and `capacity` bytes, a power of two of whole pages.
    pub fn new<Control>(capacity: u64) -> Self {
        let page = page_size() as usize;
        let control = size_of::<Control>().next_multiple_of(page);
        let bytes = capacity as usize;
        let length = page + control + 2 * bytes + page;
        let memfd = rustix::fs::memfd_create("guarded", MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&memfd, (control + bytes) as u64).expect("its size");
        // SAFETY: a new range of our own; nothing in it can be accessed.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::empty(), MapFlags::PRIVATE) };
        let start = NonNull::new(start.expect("address space").cast::<u8>()).expect("mappings are never at null");
        let data = page + control;
        for (offset, length, file_offset) in [(page, control + bytes, 0), (data + bytes, bytes, control as u64)] {
            let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
            // SAFETY: maps over a part of the range just reserved, which is ours alone.
            let mapped =
                unsafe { rustix::mm::mmap(start.as_ptr().add(offset).cast(), length, protection, flags, &memfd, file_offset) };
            mapped.expect("it can be mapped");
        }
        Self { start, length, control: page, data, capacity }
    }

    /// The control area.
    ///
    /// # Safety
    ///
    /// `Control` is the type given to [`new`](Self::new), and the pointer is not used once this is dropped.
    pub unsafe fn control<Control>(&self) -> NonNull<Control> {
        // SAFETY: inside the mapping.
        unsafe { self.start.add(self.control).cast() }
    }

    /// The data.
    ///
    /// # Safety
    ///
    /// The region is not used once this is dropped.
    pub unsafe fn region(&self) -> Region {
        // SAFETY: mapped twice from here, `capacity` is a power of two.
        unsafe { Region::new(self.start.add(self.data), self.capacity) }
    }

    /// The word of data at `position`, rounded down to a multiple of 8.
    pub fn word(&self, position: u64) -> &AtomicU64 {
        let offset = (position & (self.capacity - 1)) as usize & !7;
        // SAFETY: mapped as long as `self`, and aligned; only used as an atomic here.
        unsafe { AtomicU64::from_ptr(self.start.add(self.data + offset).as_ptr().cast()) }
    }

    /// Whether the data from one position to another is zero, as it must be where nothing is claimed.
    pub fn is_zero(&self, from: u64, to: u64) -> bool {
        (from..to).step_by(8).all(|position| self.word(position).load(Ordering::Relaxed) == 0)
    }

    /// Reads every byte that a reader was handed out, and checks that it lies in one of the two mappings of the data.
    pub fn read(&self, payload: *const u8, length: u32) -> Vec<u8> {
        let (first, last) =
            (self.start.as_ptr() as usize + self.data, self.start.as_ptr() as usize + self.length - page_size() as usize);
        let at = payload as usize;
        assert!(at >= first && at + length as usize <= last, "a payload outside of the ring");
        // SAFETY: mapped (just checked); nobody writes at the same time.
        unsafe { std::slice::from_raw_parts(payload, length as usize) }.to_vec()
    }
}

impl Drop for GuardedRing {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and its users were told not to outlive it.
        unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) }.expect("it was mapped");
    }
}
