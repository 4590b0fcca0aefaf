//! The data of a ring: `capacity` bytes, mapped twice back to back, so that any frame that starts inside is contiguous.
//!
//! All access to it goes through this one accessor, because loom knows no double mapping: there the region is an array of
//! words, and payload words are also loom cells, so that the models find data races on payloads.

use super::atomic::AtomicU64;
#[cfg(not(loom))]
use super::atomic::Ordering;

/// See the module's documentation.
#[cfg(not(loom))]
#[derive(Debug, Clone, Copy)]
pub struct Region {
    base: core::ptr::NonNull<u8>,
    mask: u64,
}

// SAFETY: a `Region` is an address. What may be done there by whom is the contract of `Region::new` and of its users.
#[cfg(not(loom))]
unsafe impl Send for Region {}

#[cfg(not(loom))]
impl Region {
    /// A region of `capacity` bytes at `base`.
    ///
    /// # Safety
    ///
    /// `capacity` is a power of two of at least 8. `base` is aligned to 8 and starts a mapping of `2 * capacity` bytes whose halves are the
    /// same memory, and which outlives every copy of the region.
    pub unsafe fn new(base: core::ptr::NonNull<u8>, capacity: u64) -> Self {
        debug_assert!(capacity.is_power_of_two() && capacity >= 8);
        Self { base, mask: capacity - 1 }
    }

    /// Bytes of data.
    #[inline]
    pub fn capacity(&self) -> u64 {
        self.mask + 1
    }

    /// Address of `position`. From there, `capacity` bytes are mapped.
    #[inline]
    pub fn at(&self, position: u64) -> *mut u8 {
        // SAFETY: the masked offset is below capacity, inside the mapping.
        unsafe { self.base.as_ptr().add((position & self.mask) as usize) }
    }

    /// The header word at `position`, a multiple of 8.
    #[inline]
    pub(super) fn header(&self, position: u64) -> &AtomicU64 {
        debug_assert!(position.is_multiple_of(8));
        // SAFETY: mapped (see `at`) for as long as the region, and aligned, as base and position are multiples of 8. Headers are
        // only accessed as atomics while others may.
        unsafe { AtomicU64::from_ptr(self.at(position).cast()) }
    }

    /// Copies payload in. Readers of a lossy ring may load the same words at the same time, as atomics, and throw away what they got: between processes, which is what rings
    /// are for, that is no data race of either program; and an atomic copy would not help, as claims are written by the application itself.
    ///
    /// # Safety
    ///
    /// The caller alone may write `position .. position + bytes.len()`, which is at most `capacity` long.
    #[inline]
    pub(super) unsafe fn write(&self, position: u64, bytes: &[u8]) {
        debug_assert!(bytes.len() as u64 <= self.capacity());
        // SAFETY: `capacity` bytes are mapped behind `at`, and the caller owns these.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(position), bytes.len()) }
    }

    /// Copies words out with atomic loads: sound even while somebody overwrites them.
    #[inline]
    pub(super) fn load_words(&self, position: u64, words: &mut [u64]) {
        debug_assert!(words.len() as u64 * 8 <= self.capacity());
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.header(position + 8 * index as u64).load(Ordering::Relaxed);
        }
    }

    /// Zeroes `length` bytes, both multiples of 8.
    ///
    /// # Safety
    ///
    /// The caller alone may write there, and `length` is at most `capacity`.
    #[inline]
    pub(super) unsafe fn zero(&self, position: u64, length: u64) {
        debug_assert!(length <= self.capacity() && position.is_multiple_of(8) && length.is_multiple_of(8));
        // SAFETY: `capacity` bytes are mapped behind `at`, and the caller owns these.
        unsafe { core::ptr::write_bytes(self.at(position), 0, length as usize) }
    }
}

/// See the module's documentation.
#[cfg(loom)]
#[derive(Debug, Clone)]
pub struct Region {
    words: std::sync::Arc<Vec<Word>>,
}

/// A word of loom's memory: what it holds, and a cell on which loom detects races between payload accesses.
#[cfg(loom)]
#[derive(Debug)]
struct Word {
    value: AtomicU64,
    payload: loom::cell::UnsafeCell<()>,
}

#[cfg(loom)]
impl Region {
    /// A zeroed region of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let word = |_| Word { value: AtomicU64::new(0), payload: loom::cell::UnsafeCell::new(()) };
        Self { words: std::sync::Arc::new((0..capacity / 8).map(word).collect()) }
    }

    /// Bytes of data.
    pub fn capacity(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    fn word(&self, position: u64) -> &Word {
        &self.words[(position / 8) as usize & (self.words.len() - 1)]
    }

    pub(super) fn header(&self, position: u64) -> &AtomicU64 {
        &self.word(position).value
    }

    pub(super) unsafe fn write(&self, position: u64, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut value = [0; 8];
            value[..chunk.len()].copy_from_slice(chunk);
            let word = self.word(position + 8 * index as u64);
            word.payload.with_mut(|_| word.value.store(u64::from_le_bytes(value), loom::sync::atomic::Ordering::Relaxed));
        }
    }

    pub(super) fn load_words(&self, position: u64, words: &mut [u64]) {
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.header(position + 8 * index as u64).load(loom::sync::atomic::Ordering::Relaxed);
        }
    }

    pub(super) unsafe fn zero(&self, position: u64, length: u64) {
        for offset in (0..length).step_by(8) {
            let word = self.word(position + offset);
            word.payload.with_mut(|_| word.value.store(0, loom::sync::atomic::Ordering::Relaxed));
        }
    }

    /// A read of payload that must not race with a write: loom reports it if it does.
    pub fn read(&self, position: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for index in 0..length.div_ceil(8) {
            let word = self.word(position + 8 * index as u64);
            let value = word.payload.with(|_| word.value.load(loom::sync::atomic::Ordering::Relaxed));
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
