//! A ring in shared memory as one writes it first: claim a slot with `fetch_add`, write, set the flag; the reader takes slot after slot. Right as long as nobody dies.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memmap2::MmapRaw;

pub(crate) const SLOTS: u64 = 8;
const HEAD: usize = 0;
const TAIL: usize = 8;
const DATA: usize = 16;

pub(crate) struct NaiveRing(MmapRaw);

impl NaiveRing {
    pub(crate) fn open(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("a file");
        file.set_len(4096).expect("room");
        Self(MmapRaw::map_raw(&file).expect("a mapping"))
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < 4096 / 8);
        // SAFETY: inside the mapping, aligned, and only used as an atomic.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().cast::<u64>().add(word)) }
    }

    fn slot(&self, index: u64) -> &AtomicU64 {
        self.word(DATA + (index % SLOTS) as usize)
    }

    /// The next slot, when there is one.
    pub(crate) fn claim(&self) -> u64 {
        let index = self.word(TAIL).fetch_add(1, Ordering::AcqRel);
        while index - self.word(HEAD).load(Ordering::Acquire) >= SLOTS {
            nap();
        }
        index
    }

    /// The slot is filled.
    pub(crate) fn commit(&self, index: u64, value: u64) {
        self.slot(index).store(value, Ordering::Release);
    }

    /// The next value, when it is there.
    pub(crate) fn take(&self) -> u64 {
        let index = self.word(HEAD).load(Ordering::Acquire);
        loop {
            let value = self.slot(index).swap(0, Ordering::AcqRel);
            if value != 0 {
                self.word(HEAD).store(index + 1, Ordering::Release);
                return value;
            }
            nap();
        }
    }

    /// How many slots are committed and not taken.
    pub(crate) fn committed(&self) -> usize {
        (0..SLOTS).filter(|&index| self.slot(index).load(Ordering::Acquire) != 0).count()
    }
}

fn nap() {
    std::thread::sleep(Duration::from_millis(1));
}
