//! Rings that hold anything, against their readers, while somebody goes on writing anything into them; and against producers whose peers lie. Whatever a reader hands
//! out is read to its last byte, between guard pages. Nothing may panic, nor overflow, nor take for ever.
#![no_main]

use std::ptr::NonNull;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringbus::ring::atomic::Ordering;
use ringbus::ring::layout::{ImageLine, MpscControl, SingleControl};
use ringbus::ring::single::Overwrite;
use ringbus::ring::{ReadError, frame, mpsc, single};
use ringbus_fuzz::memory::GuardedRing;
use ringbus_fuzz::operation::CAPACITY;

#[derive(Debug, Arbitrary)]
enum Input {
    /// A single-producer ring, blocking or lossy: where its reader is to begin, and then.
    Single { lossy: bool, start: Word, message: u64, steps: Vec<SingleStep> },
    /// A ring of many producers.
    Mpsc { steps: Vec<MpscStep> },
    /// An honest producer of a single-producer ring, whose readers lie.
    Liars { lossy: bool, steps: Vec<LiarStep> },
}

/// A word as somebody might write it to do harm.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Word {
    Zero,
    Any(u64),
    Committed {
        length: u16,
        tag: u16,
        slot: u8,
    },
    Aborted {
        length: u16,
    },
    /// Near a ring's length, which is also near a position of its first laps.
    Near {
        laps: u8,
        eighths: i16,
    },
    /// A claim record: that position, and its lowest bits.
    Claim {
        eighths: u16,
        bits: u8,
    },
}

impl Word {
    fn value(self) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Any(word) => word,
            Self::Committed { length, tag, slot } => frame::committed(u32::from(length), tag, slot),
            Self::Aborted { length } => frame::aborted(u32::from(length)),
            Self::Near { laps, eighths } => (u64::from(laps) * CAPACITY).wrapping_add_signed(i64::from(eighths) * 8),
            Self::Claim { eighths, bits } => u64::from(eighths) * 8 | u64::from(bits & 3),
        }
    }
}

#[derive(Debug, Arbitrary)]
enum SingleStep {
    /// Writes a word of data.
    Data {
        at: u16,
        word: Word,
    },
    /// Writes the word where the reader stands.
    Here {
        word: Word,
    },
    Tail {
        word: Word,
    },
    /// Makes an announcement.
    Announce {
        number: Word,
        slot: bool,
        position: Word,
        message: Word,
    },
    /// Overwrites the join table's entry.
    Join {
        same: bool,
        position: Word,
        message: u64,
    },
    Read {
        advance: bool,
    },
    Ready,
    Release {
        all: bool,
    },
}

#[derive(Debug, Arbitrary)]
enum MpscStep {
    Data {
        at: u16,
        word: Word,
    },
    Here {
        word: Word,
    },
    Tail {
        word: Word,
    },
    /// Overwrites what the consumer says to producers.
    Position {
        word: Word,
    },
    Record {
        slot: u8,
        start: Word,
        length: Word,
    },
    Read {
        advance: bool,
    },
    Ready,
    Release {
        all: bool,
    },
    Gone {
        slot: u8,
    },
    Finished,
    /// A producer in the same ring, which must survive it, too.
    Offer {
        length: u16,
    },
    Claim {
        length: u16,
    },
    HasRoom {
        length: u16,
    },
    Abort,
}

#[derive(Debug, Arbitrary)]
enum LiarStep {
    Join {
        reader: u8,
    },
    Leave {
        reader: u8,
    },
    /// Writes the line of a reader.
    Line {
        reader: u8,
        own: bool,
        position: Word,
    },
    Offer {
        length: u16,
    },
    Claim {
        length: u16,
    },
    Commit,
    Abort,
}

const LINK: u64 = 77;

fuzz_target!(|input: Input| match input {
    Input::Single { lossy, start, message, steps } => read_single(overwrite(lossy), start.value(), message, &steps),
    Input::Mpsc { steps } => read_mpsc(&steps),
    Input::Liars { lossy, steps } => publish_to_liars(overwrite(lossy), &steps),
});

fn overwrite(lossy: bool) -> Overwrite {
    if lossy { Overwrite::Oldest } else { Overwrite::Never }
}

fn read_single(overwrite: Overwrite, start: u64, message: u64, steps: &[SingleStep]) {
    let ring = GuardedRing::new::<SingleControl>(CAPACITY);
    // SAFETY: mapped until the end of this function, all atomics.
    let control = unsafe { ring.control::<SingleControl>().as_ref() };
    let line = ImageLine::default();
    // SAFETY: memory and line outlive the consumer.
    let mut consumer = unsafe { single::Consumer::new(ring.control(), ring.region(), NonNull::from(&line), LINK, 3, overwrite) };
    let join = |link: u64, position: u64, message: u64| {
        control.joins[3].position.store(position, Ordering::Relaxed);
        control.joins[3].message.store(message, Ordering::Relaxed);
        control.joins[3].link.store(link, Ordering::Release);
    };
    join(LINK, start, message);
    for step in steps {
        match step {
            SingleStep::Data { at, word } => ring.word(u64::from(*at) * 8).store(word.value(), Ordering::Relaxed),
            SingleStep::Here { word } => ring.word(consumer.position()).store(word.value(), Ordering::Relaxed),
            SingleStep::Tail { word } => control.tail.tail.store(word.value(), Ordering::Relaxed),
            SingleStep::Announce { number, slot, position, message } => {
                let slot = &control.announcement.slots[usize::from(*slot)];
                slot.position.store(position.value(), Ordering::Relaxed);
                slot.message.store(message.value(), Ordering::Relaxed);
                control.announcement.number.store(number.value(), Ordering::Release);
            }
            SingleStep::Join { same, position, message } => join(if *same { LINK } else { 1 }, position.value(), *message),
            SingleStep::Read { advance } => match consumer.read() {
                Ok(Some(frame)) => {
                    assert!(u64::from(frame.length) <= single::max_payload(CAPACITY, overwrite));
                    let payload = consumer.payload(&frame);
                    match overwrite {
                        Overwrite::Never => drop(ring.read(payload, frame.length)),
                        // SAFETY: as long as the reader says, in its private copy, which AddressSanitizer does watch.
                        Overwrite::Oldest => {
                            drop(unsafe { std::slice::from_raw_parts(payload, frame.length as usize) }.to_vec());
                        }
                    }
                    if *advance {
                        consumer.advance(&frame);
                    }
                }
                Ok(None) => {}
                Err(ReadError::Lost { messages }) => assert!(messages > 0),
                // It must not be used any more.
                Err(ReadError::Corrupt { .. }) => return,
            },
            SingleStep::Ready => drop(consumer.ready()),
            SingleStep::Release { all } => {
                if consumer.release(*all) {
                    assert_eq!(line.position.load(Ordering::Relaxed), consumer.position());
                }
            }
        }
        let _ = consumer.lag();
    }
}

fn read_mpsc(steps: &[MpscStep]) {
    let ring = GuardedRing::new::<MpscControl>(CAPACITY);
    // SAFETY: mapped until the end of this function, all atomics.
    let control = unsafe { ring.control::<MpscControl>().as_ref() };
    // SAFETY: the memory outlives the consumer and the producer.
    let (mut consumer, mut producer) =
        unsafe { (mpsc::Consumer::new(ring.control(), ring.region()), mpsc::Producer::new(ring.control(), ring.region(), 1)) };
    (0..8).for_each(|slot| consumer.taken_slots().producer_comes(slot));
    let mut published = 0;
    for step in steps {
        match step {
            MpscStep::Data { at, word } => ring.word(u64::from(*at) * 8).store(word.value(), Ordering::Relaxed),
            MpscStep::Here { word } => ring.word(consumer.position()).store(word.value(), Ordering::Relaxed),
            MpscStep::Tail { word } => control.tail.tail.store(word.value(), Ordering::Relaxed),
            MpscStep::Position { word } => control.consumer.position.store(word.value(), Ordering::Relaxed),
            MpscStep::Record { slot, start, length } => {
                let record = &control.producers[usize::from(*slot)].claim;
                record.length.store(length.value(), Ordering::Relaxed);
                record.start.store(start.value(), Ordering::Release);
            }
            MpscStep::Read { advance } => match consumer.read() {
                Ok(Some(frame)) => {
                    assert!(u64::from(frame.length) <= mpsc::max_payload(CAPACITY));
                    drop(ring.read(consumer.payload(&frame), frame.length));
                    if *advance {
                        consumer.advance(&frame);
                    }
                }
                // A frame that ends where nobody had room is read, as it lies inside the mapping, but nothing behind it, and it is not given back.
                Ok(None) if consumer.position() - published > CAPACITY => return assert!(consumer.release(true).is_err()),
                Ok(None) => {}
                Err(_) => return,
            },
            MpscStep::Ready => drop(consumer.ready()),
            MpscStep::Release { all } => match consumer.release(*all) {
                Ok(true) => {
                    assert!(ring.is_zero(published, consumer.position()), "given back and not zeroed");
                    published = consumer.position();
                }
                Ok(false) => {}
                Err(_) => return,
            },
            MpscStep::Gone { slot } => consumer.producer_gone(*slot),
            MpscStep::Finished => drop(consumer.take_finished()),
            MpscStep::Offer { length } => {
                let bytes = [0xA5; CAPACITY as usize];
                let _ = producer.offer(1, &bytes[..usize::from(*length).min(bytes.len())]);
            }
            MpscStep::Claim { length } => {
                if producer.claim(usize::from(*length)).is_ok() {
                    producer.payload().fill(0x5A);
                }
            }
            MpscStep::HasRoom { length } => drop(producer.has_room(usize::from(*length))),
            MpscStep::Abort => producer.abort(),
        }
        let _ = consumer.lag();
    }
}

fn publish_to_liars(overwrite: Overwrite, steps: &[LiarStep]) {
    const READERS: usize = 3;
    let ring = GuardedRing::new::<SingleControl>(CAPACITY);
    let lines: [ImageLine; READERS] = std::array::from_fn(|_| ImageLine::default());
    // SAFETY: memory and lines outlive the producer.
    let mut producer = unsafe { single::Producer::new(ring.control(), ring.region(), overwrite) };
    let mut links = [0; READERS];
    let mut next = 1;
    for step in steps {
        match step {
            LiarStep::Join { reader } => {
                let reader = usize::from(*reader) % READERS;
                if links[reader] == 0 {
                    links[reader] = next;
                    next += 1;
                    // SAFETY: as above.
                    unsafe { producer.add_reader(links[reader], reader, NonNull::from(&lines[reader])) };
                }
            }
            LiarStep::Leave { reader } => {
                let reader = usize::from(*reader) % READERS;
                producer.remove_reader(std::mem::take(&mut links[reader]));
            }
            LiarStep::Line { reader, own, position } => {
                let reader = usize::from(*reader) % READERS;
                lines[reader].position.store(position.value(), Ordering::Relaxed);
                lines[reader].link.store(if *own { links[reader] } else { position.value() }, Ordering::Release);
            }
            LiarStep::Offer { length } => {
                let before = producer.position();
                let bytes = [0xA5; CAPACITY as usize];
                let length = usize::from(*length).min(bytes.len());
                if let Ok(end) = producer.offer(9, &bytes[..length]) {
                    assert_eq!(end, frame::next_position(before, length as u64));
                }
            }
            LiarStep::Claim { length } => {
                if producer.claim(usize::from(*length)).is_ok() {
                    producer.payload().fill(0x5A);
                }
            }
            LiarStep::Commit => drop(producer.commit(8)),
            LiarStep::Abort => producer.abort(),
        }
        // The invariant of the ring, whatever its readers say.
        assert!(ring.is_zero(producer.position(), producer.position() + 8), "the header at the tail is not zero");
        while let Some(liar) = producer.take_liar() {
            links.iter_mut().filter(|link| **link == liar).for_each(|link| *link = 0);
        }
    }
}
