//! What a party has done, in a file that both it and the controller map: it is still there when the party is killed, up to the last store.
//!
//! One ledger for each *incarnation*: one publication or subscription, from its opening to its end. Words of 64 bits, each written by one side. A kill
//! falls between two stores of a thread, so the order of the stores in the program is what the controller can rely on.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

/// Id of the publication or subscription; 0 before it is open.
pub const OBJECT: usize = 0;
/// [`OPEN`] or [`CLOSED`].
pub const STATE: usize = 1;
/// When it was opened.
pub const OPENED_AT: usize = 2;
/// When it last sent or got something.
pub const PROGRESS_AT: usize = 3;
/// Written by the controller when somebody else is killed. The party clears it at its next progress ...
pub const MARK: usize = 4;
/// ... and says here how long that took, plus 1.
pub const ANSWER: usize = 5;
/// Something was wrong: see [`Ledger::fault`].
const FAULT: usize = 6;
/// How many waits timed out though there was something to wake up for: see [`Ledger::late`].
const LATE: usize = 7;

/// Publisher: messages offered, the one being offered included.
pub const ATTEMPTED: usize = 8;
/// Publisher: messages whose offer has returned `Ok`.
pub const COMMITTED: usize = 9;
/// Publisher: when the first message was offered.
pub const FIRST_AT: usize = 10;
/// Publisher: how many subscribed just before.
pub const SUBSCRIBERS_AT_FIRST: usize = 11;
/// Publisher: how often it had to wait for room.
pub const WAITS: usize = 12;

/// Subscriber: images used so far.
pub const IMAGES: usize = 8;
/// Subscriber: messages delivered and found right.
pub const DELIVERED: usize = 9;
/// Subscriber: messages reported lost (lossy channels).
pub const LOST: usize = 10;

/// The value of [`STATE`] between opening and closing.
pub const OPEN: u64 = 1;
/// The value of [`STATE`] after an end in good order.
pub const CLOSED: u64 = 2;

const TEXT: usize = 32;
const TEXT_WORDS: usize = 64;
const LATE_ENTRIES: usize = 128;
const MOST_LATE: usize = 32;
const FIRST_IMAGE: usize = 512;
const IMAGE_WORDS: usize = 8;
/// Images that a subscriber can note: far more than come in one epoch.
pub const MOST_IMAGES: usize = 448;
const WORDS: usize = FIRST_IMAGE + MOST_IMAGES * IMAGE_WORDS;

/// The words of an image in a subscriber's ledger.
#[derive(Debug, Clone, Copy)]
pub enum Image {
    /// Id of the publication, from the event that announced it.
    Publication,
    /// Number of the publisher's incarnation, from its messages; 0 before the first.
    Sender,
    /// The first sequence it accounts for.
    First,
    /// The next sequence to come.
    Next,
    /// Messages delivered.
    Delivered,
    /// Messages reported lost.
    Lost,
    /// When the end of the image was reported; 0 before.
    EndedAt,
}

/// A mapped ledger.
#[derive(Debug)]
pub struct Ledger(MmapRaw);

impl Ledger {
    /// Maps the ledger in that file, which is made if need be.
    pub fn map(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("a ledger");
        file.set_len(WORDS as u64 * 8).expect("room for a ledger");
        Self(MmapRaw::map_raw(&file).expect("a mapped ledger"))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        // SAFETY: inside the mapping, which lives as long as `self`, aligned, and only ever accessed as atomic words.
        unsafe { &*self.0.as_mut_ptr().cast::<AtomicU64>().add(index) }
    }

    /// A word.
    pub fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::SeqCst)
    }

    /// Writes a word.
    pub fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::SeqCst);
    }

    /// Adds to a word.
    pub fn add(&self, index: usize, value: u64) {
        self.set(index, self.get(index) + value);
    }

    /// A word of an image.
    pub fn image(&self, image: usize, word: Image) -> u64 {
        self.get(FIRST_IMAGE + image * IMAGE_WORDS + word as usize)
    }

    /// Writes a word of an image.
    pub fn set_image(&self, image: usize, word: Image, value: u64) {
        self.set(FIRST_IMAGE + image * IMAGE_WORDS + word as usize, value);
    }

    /// Notes progress, and answers the controller's mark.
    pub fn progress(&self) {
        let now = testing::now();
        self.set(PROGRESS_AT, now);
        let mark = self.get(MARK);
        if mark != 0 {
            self.set(MARK, 0);
            self.set(ANSWER, now.saturating_sub(mark) + 1);
        }
    }

    /// Notes that something is wrong. The first fault stays.
    pub fn set_fault(&self, what: &str) {
        if self.get(FAULT) != 0 {
            return;
        }
        let mut bytes = what.as_bytes().to_vec();
        bytes.resize(TEXT_WORDS * 8, 0);
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            self.set(TEXT + index, u64::from_le_bytes(word.try_into().expect("eight bytes")));
        }
        self.set(FAULT, 1);
    }

    /// What was wrong, if anything.
    pub fn fault(&self) -> Option<String> {
        let bytes: Vec<u8> = (0..TEXT_WORDS).flat_map(|index| self.get(TEXT + index).to_le_bytes()).collect();
        (self.get(FAULT) != 0).then(|| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    /// Notes that a wait ended by its deadline at `to` though there had been something to wake up for since `from`.
    pub fn note_late(&self, from: u64, to: u64) {
        let number = self.get(LATE) as usize % MOST_LATE;
        self.set(LATE_ENTRIES + 2 * number, from);
        self.set(LATE_ENTRIES + 2 * number + 1, to);
        self.add(LATE, 1);
    }

    /// Such waits, from when to when.
    pub fn late(&self) -> Vec<(u64, u64)> {
        let count = (self.get(LATE) as usize).min(MOST_LATE);
        (0..count).map(|number| (self.get(LATE_ENTRIES + 2 * number), self.get(LATE_ENTRIES + 2 * number + 1))).collect()
    }
}
