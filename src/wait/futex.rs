//! Sleeping on futex words: several at once, some of them in memory that this process may only read.

use core::sync::atomic::AtomicU32;
use std::sync::OnceLock;
use std::time::Instant;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Wait, WaitFlags, WaitPtr, WaitvFlags};
use rustix::time::{ClockId, Timespec};

/// Most words that one call can wait on.
pub(crate) const MAX_WORDS: usize = 128;

/// A word, the value it must still have, and whether only this process uses it.
pub(crate) struct Word<'a> {
    pub(crate) word: &'a AtomicU32,
    pub(crate) expected: u32,
    pub(crate) private: bool,
}

/// Waits until somebody wakes one of the words, one has changed already, the deadline has passed, or a signal came. Callers look for themselves which.
///
/// At most [`MAX_WORDS`] words.
pub(crate) fn wait_any(words: &[Word<'_>], deadline: Option<Instant>) {
    let entry = |word: &Word<'_>| {
        let mut entry = Wait::new();
        entry.val = u64::from(word.expected);
        entry.uaddr = WaitPtr::new(word.word.as_ptr().cast());
        entry.flags = WaitFlags::SIZE_U32 | if word.private { WaitFlags::PRIVATE } else { WaitFlags::empty() };
        entry
    };
    let entries: Vec<Wait> = words.iter().map(entry).collect();
    let timeout = deadline.map(monotonic);
    // Whatever it says (woken, changed, timed out, interrupted), the caller looks again.
    let _ = futex::waitv(&entries, WaitvFlags::empty(), timeout.as_ref(), ClockId::Monotonic);
}

/// The monotonic clock's reading at `deadline`.
fn monotonic(deadline: Instant) -> Timespec {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    let left = deadline.saturating_duration_since(Instant::now());
    let nanoseconds = now.tv_nsec + i64::from(left.subsec_nanos());
    let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
    Timespec { tv_sec: now.tv_sec + seconds + nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 }
}

/// Whether the kernel has `futex_waitv` (Linux 5.16).
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| futex::waitv(&[], WaitvFlags::empty(), None, ClockId::Monotonic) != Err(Errno::NOSYS))
}

/// Step E of the sleep protocol: wakes all who sleep on the word, after it was bumped.
pub(crate) fn wake(word: &AtomicU32, private: bool) {
    let flags = if private { Flags::PRIVATE } else { Flags::empty() };
    // Fails only for a bad address.
    let _ = futex::wake(word, flags, i32::MAX as u32);
}
