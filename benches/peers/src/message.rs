//! What is sent, as in `benches/ring`; and what only this package needs of it: two producers, and places that nothing has been written to.

#[path = "../../ring/message.rs"]
mod base;

pub use base::*;

/// Set in the numbers of the second of two producers.
const SECOND: u64 = 1 << 62;

impl<const BYTES: usize> Message<'_, BYTES> {
    /// As [`write_in`](Self::write_in), where nothing has been written yet.
    ///
    /// # Safety
    ///
    /// `place` can be written.
    #[inline(always)]
    pub unsafe fn write_at(&self, place: *mut [u8; BYTES]) {
        // SAFETY: by contract; a message has at least 8 bytes.
        unsafe {
            place.cast::<u8>().write_bytes(PATTERN_BYTE, BYTES);
            place.cast::<u64>().write_unaligned(self.number);
        }
    }
}

impl<const BYTES: usize> Source<BYTES> {
    /// Messages of the second producer.
    pub fn second() -> Self {
        Self::marked(SECOND)
    }
}

impl<const BYTES: usize> Check<BYTES> {
    /// Reads a message from one of two producers.
    #[inline(always)]
    pub fn read_of_either(&mut self, payload: &[u8]) {
        let is_second = payload.first_chunk().is_some_and(|first| u64::from_ne_bytes(*first) & SECOND != 0);
        self.read_of(usize::from(is_second), if is_second { SECOND } else { 0 }, payload);
    }
}
