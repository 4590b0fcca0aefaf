//! What a hostile peer writes where honest ones write headers, positions, counters and ids: values at the edges of what is checked, values
//! that pass every check, and noise.

use std::sync::atomic::{AtomicU64, Ordering};

use ringbus::ring::frame::{aborted, committed};
use ringbus::ring::layout::{MpscControl, SingleControl};
use testing::Random;

/// The seed of a run: from the environment, to repeat one, or else a new one. To be printed.
pub fn seed() -> u64 {
    testing::scaled("RINGBUS_TEST_SEED", testing::now())
}

/// A ring as somebody sees it who can write all of it: mapped for as long as this is used.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its control area.
    pub control: *mut u8,
    /// Its data.
    pub data: *mut u8,
    /// Bytes of data.
    pub capacity: u64,
}

// SAFETY: an address, of memory that is accessed with atomics alone.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// The word of the data at that position.
    pub fn word(&self, position: u64) -> &AtomicU64 {
        // SAFETY: inside the data, aligned.
        unsafe { AtomicU64::from_ptr(self.data.add((position & (self.capacity - 1) & !7) as usize).cast()) }
    }
}

/// A source of such values, for a ring of that capacity.
#[derive(Debug)]
pub struct Crafted {
    /// Also for the caller's own choices.
    pub random: Random,
    capacity: u64,
}

impl Crafted {
    /// The same values for the same seed.
    pub fn new(seed: u64, capacity: u64) -> Self {
        Self { random: Random::new(seed), capacity }
    }

    /// True one time in so many.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.random.below(times) == 0
    }

    /// A header that any reader takes, mostly of a short message. Lossy rings take half the length.
    pub fn good_header(&mut self) -> u64 {
        let draw = self.random.draw();
        let length = if draw & 15 == 0 { (draw >> 8) % (self.capacity / 2 + 1) } else { (draw >> 8) % 32 };
        committed(length as u32, (draw >> 40) as u16, (draw >> 56) as u8)
    }

    /// A header at the edges: lengths around the largest, reserved bits, states that there are not.
    pub fn bad_header(&mut self) -> u64 {
        let lengths = [0, 1, self.capacity / 2, self.capacity / 2 + 1, self.capacity - 16, self.capacity - 15, self.capacity];
        let length = lengths[self.random.below(7) as usize] as u32;
        match self.random.below(8) {
            0 => committed(length, 7, 200),
            1 => aborted(length),
            2 => aborted(length) | 0xFFFF << 40,
            3 => committed(length, 0, 0) & !(0xFF << 56) | 2 << 56,
            4 => committed(length, 0, 0) & !(0xFF << 56) | 4 << 56,
            5 => committed(length, 0, 0) | 0xFF << 56,
            6 => u64::from(length),
            _ => self.random.draw(),
        }
    }

    /// A position, counter or id: around that one, or at an edge of the numbers.
    pub fn number(&mut self, near: u64) -> u64 {
        let capacity = self.capacity;
        match self.random.below(20) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => i64::MAX as u64,
            4 => i64::MIN as u64,
            5 => u64::MAX - 7,
            6 => u64::MAX / 2 - 7,
            7 => 0u64.wrapping_sub(capacity),
            8 => capacity - 8,
            9 => capacity + 8,
            10 => near.wrapping_add(8),
            11 => near.wrapping_sub(8),
            12 => near.wrapping_add(capacity),
            13 => near.wrapping_sub(capacity),
            14 => near.wrapping_add(capacity + 8),
            15 => near | 0b10,
            16 => near | 0b11,
            17 => near,
            18 => self.random.below(2 * capacity) & !7,
            _ => self.random.draw(),
        }
    }

    /// One hostile write to a single-producer ring, at any place that its publisher can write. `near` is where the reader may be.
    pub fn scribble_single(&mut self, place: Place, near: u64) {
        // SAFETY: mapped, all atomics.
        let control = unsafe { &*place.control.cast::<SingleControl>() };
        let number = self.number(near);
        let announced = &control.announcement.slots[(number & 1) as usize];
        let join = &control.joins[self.random.below(4) as usize];
        match self.random.below(64) {
            0 => control.tail.tail.store(number, Ordering::Relaxed),
            1..=8 => control.announcement.number.store(number, Ordering::Relaxed),
            9..=12 => announced.position.store(near.wrapping_add(number & 0xFF8), Ordering::Relaxed),
            13 => announced.position.store(number, Ordering::Relaxed),
            14..=16 => announced.message.store(number >> 1, Ordering::Relaxed),
            17 => announced.message.store(number, Ordering::Relaxed),
            18 => join.position.store(number, Ordering::Relaxed),
            19 => join.message.store(number, Ordering::Relaxed),
            20 => join.link.store(number, Ordering::Relaxed),
            21 => control.publisher.sleep_flag.store(number, Ordering::Relaxed),
            22 => control.publisher.wake_sequence.store(number as u32, Ordering::Relaxed),
            23 => control.publisher.asymmetric_fences.store(number as u32, Ordering::Relaxed),
            24 => place.word(self.random.draw()).store(self.bad_header(), Ordering::Relaxed),
            _ => place.word(self.random.draw()).store(self.good_header(), Ordering::Relaxed),
        }
    }

    /// One hostile write to an mpsc ring, at any place: all who have it can write all of it.
    pub fn scribble_mpsc(&mut self, place: Place, near: u64) {
        // SAFETY: mapped, all atomics.
        let control = unsafe { &*place.control.cast::<MpscControl>() };
        let number = self.number(near);
        let slot = &control.producers[self.random.below(8) as usize];
        match self.random.below(64) {
            0..=3 => control.tail.tail.store(number, Ordering::Relaxed),
            4..=7 => control.tail.tail.store(near.wrapping_add(number & 0xFF8), Ordering::Relaxed),
            8 => control.consumer.position.store(number, Ordering::Relaxed),
            9..=10 => control.consumer.position.store(near.wrapping_add(number & 0xFF8), Ordering::Relaxed),
            11..=13 => slot.claim.start.store(number, Ordering::Relaxed),
            14..=19 => slot.claim.start.store(near | 0b10 | number & 1, Ordering::Relaxed),
            20..=22 => slot.claim.length.store(number & 0x1FF8, Ordering::Relaxed),
            23..=24 => slot.claim.length.store(number, Ordering::Relaxed),
            25 => slot.party.sleep_flag.store(number, Ordering::Relaxed),
            26 => slot.party.wake_sequence.store(number as u32, Ordering::Relaxed),
            27 => slot.party.asymmetric_fences.store(number as u32, Ordering::Relaxed),
            28 if self.once_in(8) => slot.party.closed.store(1, Ordering::Relaxed),
            29 => place.word(self.random.draw()).store(self.bad_header(), Ordering::Relaxed),
            30..=37 => place.word(self.random.draw()).store(0, Ordering::Relaxed),
            _ => place.word(self.random.draw()).store(self.good_header(), Ordering::Relaxed),
        }
    }
}
