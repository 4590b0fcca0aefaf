//! The physical limit: cache lines that go from one core to another, with nothing around them.
//!
//! Each line carries its sequence number in band, behind 56 bytes of payload that the sender writes in full and the receiver reads in full. There is
//! no length, no flow control per message, nobody to wake, and nobody to distrust.

use std::cell::UnsafeCell;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapRaw;

use crate::PATTERN;
use crate::harness::{End, Measured, median_of_batches};

const WORDS: usize = 7;
/// Bytes of payload in a line.
pub const LINE_PAYLOAD: usize = WORDS * size_of::<u64>();
/// Bytes of a line.
pub const LINE_BYTES: usize = size_of::<Line>();
/// Of the stream: 256 KiB, so that reader and writer rarely meet, and all of it stays in the cache.
const STREAM_LINES: usize = 4096;
/// A direction of a ping-pong.
const LANE_LINES: usize = 32;
/// Ping-pongs of different sizes use different lines, as each goes on counting where it was.
const PING_PONGS: usize = 8;
const ALL_LINES: usize = STREAM_LINES + 1 + PING_PONGS * 2 * LANE_LINES;
/// Bytes of memory that both processes map.
pub const MEMORY: u64 = (ALL_LINES * LINE_BYTES) as u64;

/// Set in the sequence number of a slice's last line.
const LAST: u64 = 1 << 63;

#[repr(C, align(64))]
struct Line {
    /// Belongs to the writer until it stores the sequence number, then to the reader until that makes room or answers.
    payload: UnsafeCell<[u64; WORDS]>,
    sequence: AtomicU64,
}

impl Line {
    /// # Safety
    ///
    /// The line is this side's turn to write.
    #[inline(always)]
    unsafe fn write(&self, sequence: u64) {
        let mut payload = [PATTERN; WORDS];
        payload[0] = sequence;
        // SAFETY: ours, says the caller; shared memory is never moved or freed while this runs.
        unsafe { self.payload.get().write(payload) };
        // Pairs with the Acquire load in `read`: who sees the number sees the payload.
        self.sequence.store(sequence, Ordering::Release);
    }

    /// Waits for the line with this number, reads it, and says whether it is the last.
    ///
    /// # Safety
    ///
    /// The other side does not write the line again before it learns that we have read it.
    #[inline(always)]
    unsafe fn read(&self, sequence: u64, wrong: &mut bool) -> bool {
        let found = loop {
            // Pairs with the Release store in `write`.
            let found = self.sequence.load(Ordering::Acquire);
            if found & !LAST == sequence {
                break found;
            }
            for _ in 0..*PAUSES { core::hint::spin_loop(); }
        };
        // SAFETY: written before the number, and ours until we say so.
        let payload = unsafe { self.payload.get().read() };
        let sum = payload.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
        *wrong |= sum != found.wrapping_add(PATTERN.wrapping_mul(WORDS as u64 - 1));
        found & LAST != 0
    }
}

/// The memory that both ends share, and how far they have counted.
pub struct Raw {
    memory: MmapRaw,
    stream_position: u64,
    rounds: [u64; PING_PONGS],
}

/// A ping-pong: one message there and one back, again and again.
#[derive(Debug, Clone, Copy)]
pub struct PingPong {
    /// Which one, below 8.
    pub index: usize,
    /// Lines of a message.
    pub lines: usize,
    /// Both directions use the same lines, so that nothing but these moves.
    pub shared: bool,
}

impl Raw {
    /// Maps the memory.
    pub fn new(memory: &File) -> io::Result<Self> {
        assert_eq!(memory.metadata()?.len(), MEMORY);
        Ok(Self { memory: MmapRaw::map_raw(memory)?, stream_position: 0, rounds: [0; PING_PONGS] })
    }

    fn lines(&self) -> &[Line] {
        // SAFETY: as many lines are mapped, page-aligned, as long as `self` is; all zero is valid, and both fields are for shared writing.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), ALL_LINES) }
    }

    /// Runs a slice of a ping-pong. The left end begins and measures.
    pub fn ping_pong(&mut self, game: PingPong, end: End, length: Duration) -> Result<Measured, String> {
        let mut round = self.rounds[game.index];
        let first = STREAM_LINES + 1 + game.index * 2 * LANE_LINES;
        let lane = |start: usize| &self.lines()[start..start + game.lines];
        let (there, back) = (lane(first), lane(if game.shared { first } else { first + LANE_LINES }));
        let mut wrong = false;
        let send = |lane: &[Line], number| {
            // SAFETY: the two sides write by turns, and it is ours.
            lane.iter().for_each(|line| unsafe { line.write(number) });
        };
        // Odd numbers go there, even ones come back.
        let before = round;
        let measured = match end {
            End::Left => {
                let time = median_of_batches(length, |last| {
                    send(there, (2 * round + 1) | if last { LAST } else { 0 });
                    // SAFETY: the other side writes by turns, too.
                    back.iter().for_each(|line| _ = unsafe { line.read(2 * round + 2, &mut wrong) });
                    round += 1;
                    Ok(())
                })?;
                Measured { messages: round - before, nanoseconds: time }
            }
            End::Right => loop {
                let mut last = false;
                // SAFETY: as above.
                there.iter().for_each(|line| last |= unsafe { line.read(2 * round + 1, &mut wrong) });
                send(back, 2 * round + 2);
                round += 1;
                if last {
                    break Measured { messages: round - before, nanoseconds: 0.0 };
                }
            },
        };
        self.rounds[game.index] = round;
        if wrong { Err("a raw line of the ping-pong is not what was sent".into()) } else { Ok(measured) }
    }

    /// Runs a slice of the stream: as many lines as possible, from left to right. The right end measures.
    pub fn stream(&mut self, end: End, length: Duration) -> Result<Measured, String> {
        /// Positions are told rarely: each time costs both sides a line.
        const STEP: u64 = STREAM_LINES as u64 / 8;
        let before = self.stream_position;
        let mut position = before;
        let line = |position: u64| &self.lines()[position as usize % STREAM_LINES];
        let read_position = &self.lines()[STREAM_LINES].sequence;
        let mut wrong = false;
        let mut nanoseconds = 0.0;
        match end {
            End::Left => {
                let deadline = Instant::now() + length;
                let mut limit = before + STREAM_LINES as u64;
                loop {
                    while position == limit {
                        // Pairs with the Release stores below: what we overwrite has been read.
                        limit = read_position.load(Ordering::Acquire) + STREAM_LINES as u64;
                        core::hint::spin_loop();
                    }
                    let last = position.is_multiple_of(STREAM_LINES as u64) && Instant::now() >= deadline;
                    position += 1;
                    // SAFETY: below the limit, so the reader is done with what was there.
                    unsafe { line(position - 1).write(position | if last { LAST } else { 0 }) };
                    if last {
                        break;
                    }
                }
            }
            End::Right => {
                let mut started = None;
                loop {
                    // SAFETY: the writer stays below the position that we tell.
                    let last = unsafe { line(position).read(position + 1, &mut wrong) };
                    position += 1;
                    if last || position.is_multiple_of(STEP) {
                        // Pairs with the Acquire load above: our reads are done.
                        read_position.store(position, Ordering::Release);
                    }
                    // Waking up is not part of it.
                    let started = *started.get_or_insert_with(Instant::now);
                    if last {
                        nanoseconds = started.elapsed().as_nanos() as f64 / (position - before) as f64;
                        break;
                    }
                }
            }
        }
        self.stream_position = position;
        if wrong {
            Err("a raw line of the stream is not what was sent".into())
        } else {
            Ok(Measured { messages: position - before, nanoseconds })
        }
    }
}

static PAUSES: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| std::env::var("PAUSES").map_or(1, |p| p.parse().unwrap()));
