//! What a forked child finds changed. A child inherits memory, fds and none of the threads of its parent; if it went on with the parent's publications and subscriptions, both would write the
//! same positions. So rings are not inherited at all (`MADV_DONTFORK`), and what notices that is memory that the kernel zeroes in a child (`MADV_WIPEONFORK`, Linux 4.14).

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{Advice, madvise};

/// A word that is never 0 in the process that made it, and 0 in its children. On a page of its own.
#[derive(Debug)]
pub struct ForkWord(MmapRaw);

impl ForkWord {
    /// A word that is 1.
    ///
    /// # Errors
    ///
    /// The kernel has no memory, or does not know `MADV_WIPEONFORK`.
    pub fn new() -> io::Result<Self> {
        let word = Self(MmapOptions::new().len(size_of::<AtomicU32>()).map_anon()?.into());
        // SAFETY: a mapping of our own.
        unsafe { madvise(word.0.as_mut_ptr().cast(), word.0.len(), Advice::LinuxWipeOnFork)? };
        word.get().store(1, Ordering::Relaxed);
        Ok(word)
    }

    /// The word. Whoever changes it does not make it 0.
    #[inline(always)]
    pub fn get(&self) -> &AtomicU32 {
        // SAFETY: mapped as long as `self`, aligned to a page, and only ever used as an atomic.
        unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().cast()) }
    }
}

/// Which process made a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth(u32);

impl Birth {
    /// This process.
    ///
    /// # Errors
    ///
    /// See [`ForkWord::new`].
    pub fn here() -> io::Result<Self> {
        // Copied by a fork, so that a child's number is another than its parent's.
        static LAST: AtomicU32 = AtomicU32::new(1);
        let word = match MARK.get() {
            Some(word) => word,
            None => {
                let word = ForkWord::new()?;
                MARK.get_or_init(|| word)
            }
        };
        let number = word.get().load(Ordering::Relaxed);
        if number != 0 {
            return Ok(Self(number));
        }
        let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let first = word.get().compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed);
        Ok(Self(first.map_or_else(|other| other, |_| next)))
    }

    /// Whether that is this process, not one it was forked from.
    pub fn is_here(self) -> bool {
        MARK.get().is_some_and(|word| word.get().load(Ordering::Relaxed) == self.0)
    }
}

/// The process's number, wiped in its children.
static MARK: OnceLock<ForkWord> = OnceLock::new();
