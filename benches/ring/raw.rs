//! The physical limit: cache lines that go from one core to another, with nothing around them.
//!
//! A message is a fixed number of lines, written in full and read in full, whose very last word is its number. There are no lengths, no flow
//! control per message, nobody to wake, and nobody to distrust.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};

use crate::harness::End;
use crate::message::PATTERN;

/// Bytes of a line.
pub const LINE: usize = 64;
const WORDS: usize = LINE / size_of::<u64>();
/// Of a stream: 4 MiB, as the ring has.
const STREAM_LINES: usize = 65536;
/// How far the reader of a stream lets the writer go ahead before it looks. A reader that looks for each line takes it away from a writer
/// that has the next one to write beside it; so each line would travel more than once.
const STEP: usize = STREAM_LINES / 8;
/// Of a direction of a ping-pong.
const LANE_LINES: usize = 32;
/// Most there can be. Each has lines of its own, as each goes on counting where it was.
const GAMES: usize = 8;

const READ_POSITION: usize = GAMES * STREAM_LINES;
const PING_PONGS: usize = READ_POSITION + GAMES;
const ALL_LINES: usize = PING_PONGS + GAMES * 2 * LANE_LINES;
/// Bytes of memory that both processes map.
pub const MEMORY: u64 = (ALL_LINES * LINE) as u64;

/// Set in the number of a slice's last message.
const LAST: u64 = 1 << 63;

/// What messages are copied from.
static SOURCE: [u64; STEP * WORDS] = [PATTERN; STEP * WORDS];

/// How the round trips of a slice are timed.
pub trait Stopwatch {
    /// What it finds.
    type Times: Default;

    /// Makes round trips and times them. The very last one is told so.
    fn time(self, round_trip: impl FnMut(bool) -> Result<(), String>) -> Result<Self::Times, String>;
}

/// The memory that both ends share, and how far each game has counted.
pub struct Raw {
    memory: MmapRaw,
    /// The same memory, through which what the other end writes is read.
    reading: MmapRaw,
    counts: [u64; 2 * GAMES],
}

/// A message there, then a message back, again and again; or a stream of messages one way.
#[derive(Debug, Clone, Copy)]
pub struct Game {
    /// Which one of its sort, below 8.
    pub index: usize,
    /// Lines of a message: 1, 2, 16, 17 or 256.
    pub lines: usize,
    /// A ping-pong whose two directions use the same lines.
    pub shared: bool,
}

impl Raw {
    /// Maps the memory. `read_only`: what the other end writes is mapped read-only here, as between processes that do not trust each other. That makes a difference
    /// where a processor hands a line that is read over together with the right to write it, if the page can be written.
    pub fn new(memory: &File, read_only: bool) -> io::Result<Self> {
        assert!(memory.metadata()?.len() >= MEMORY);
        let reading = if read_only { MmapOptions::new().map_raw_read_only(memory)? } else { MmapRaw::map_raw(memory)? };
        Ok(Self { memory: MmapRaw::map_raw(memory)?, reading, counts: [0; 2 * GAMES] })
    }

    fn words(&self, mapping: &MmapRaw, line: usize) -> *mut u64 {
        assert!(line < ALL_LINES);
        // SAFETY: mapped, and page-aligned.
        unsafe { mapping.as_mut_ptr().add(line * LINE).cast() }
    }

    /// The last word of a line.
    fn number<'a>(&self, mapping: &'a MmapRaw, line: usize) -> &'a AtomicU64 {
        // SAFETY: mapped as long as `self`, and aligned; used as an atomic only, by both processes, and only to load what is read only.
        unsafe { AtomicU64::from_ptr(self.words(mapping, line).add(WORDS - 1)) }
    }

    /// Writes a message.
    ///
    /// # Safety
    ///
    /// The other side has read what was there, or never will.
    #[inline(always)]
    unsafe fn send<const LINES: usize>(&self, line: usize, number: u64) {
        // SAFETY: lines that are ours at the moment, but for the last word.
        unsafe {
            let words = self.words(&self.memory, line);
            words.copy_from_nonoverlapping(SOURCE.as_ptr(), LINES * WORDS - 1);
            words.write(number);
        }
        // Pairs with the Acquire load in `receive`: who sees the number sees the message.
        self.number(&self.memory, line + LINES - 1).store(number, Ordering::Release);
    }

    /// Waits for a message and reads it; says whether it is the last.
    ///
    /// # Safety
    ///
    /// The other side does not write it again before it learns that we have read it.
    #[inline(always)]
    unsafe fn receive<const LINES: usize>(&self, line: usize, number: u64, wrong: &mut bool) -> bool {
        let found = self.wait(line + LINES - 1, number);
        // SAFETY: written before the number, and not again until we say so.
        let words = unsafe { std::slice::from_raw_parts(self.words(&self.reading, line), LINES * WORDS - 1) };
        let sum = words.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
        *wrong |= sum != found.wrapping_add(PATTERN.wrapping_mul((LINES * WORDS - 2) as u64));
        found & LAST != 0
    }

    #[inline(always)]
    fn wait(&self, line: usize, number: u64) -> u64 {
        loop {
            // Pairs with the Release store in `send`.
            let found = self.number(&self.reading, line).load(Ordering::Acquire);
            if found & !LAST == number {
                return found;
            }
            core::hint::spin_loop();
        }
    }

    /// Runs a slice of a ping-pong. The left end begins and measures. Returns how many round trips there were, and what the stopwatch has found.
    pub fn ping_pong<S: Stopwatch>(&mut self, game: Game, end: End, stopwatch: S) -> Result<(u64, S::Times), String> {
        match game.lines {
            1 => self.ping_pong_of::<1, S>(game, end, stopwatch),
            2 => self.ping_pong_of::<2, S>(game, end, stopwatch),
            17 => self.ping_pong_of::<17, S>(game, end, stopwatch),
            lines => Err(format!("there is no ping-pong of {lines} lines")),
        }
    }

    fn ping_pong_of<const LINES: usize, S: Stopwatch>(
        &mut self,
        game: Game,
        end: End,
        stopwatch: S,
    ) -> Result<(u64, S::Times), String> {
        let before = self.counts[game.index];
        let mut count = before;
        let there = PING_PONGS + game.index * 2 * LANE_LINES;
        let back = if game.shared { there } else { there + LANE_LINES };
        let mut wrong = false;
        // Odd numbers go there, even ones come back.
        let times = match end {
            End::Left => stopwatch.time(|last| {
                // SAFETY: the two sides write by turns, each after it has read what the other wrote.
                unsafe {
                    self.send::<LINES>(there, (2 * count + 1) | if last { LAST } else { 0 });
                    self.receive::<LINES>(back, 2 * count + 2, &mut wrong);
                }
                count += 1;
                Ok(())
            })?,
            End::Right => loop {
                // SAFETY: as above.
                let last = unsafe {
                    let last = self.receive::<LINES>(there, 2 * count + 1, &mut wrong);
                    self.send::<LINES>(back, 2 * count + 2);
                    last
                };
                count += 1;
                if last {
                    break S::Times::default();
                }
            },
        };
        self.counts[game.index] = count;
        finish(wrong, (count - before, times))
    }

    /// Runs a slice of a stream: as many messages as possible, from left to right. The right end measures. Returns how many messages there were, and the
    /// nanoseconds that one took (0 at the left end).
    pub fn stream(&mut self, game: Game, end: End, length: Duration) -> Result<(u64, f64), String> {
        match game.lines {
            1 => self.stream_of::<1>(game, end, length),
            16 => self.stream_of::<16>(game, end, length),
            256 => self.stream_of::<256>(game, end, length),
            lines => Err(format!("there is no stream of {lines} lines")),
        }
    }

    fn stream_of<const LINES: usize>(&mut self, game: Game, end: End, length: Duration) -> Result<(u64, f64), String> {
        let (messages, step) = ((STREAM_LINES / LINES) as u64, (STEP / LINES) as u64);
        let before = self.counts[GAMES + game.index];
        let mut count = before;
        let line = |count: u64| game.index * STREAM_LINES + (count % messages) as usize * LINES;
        let read_position = |mapping| self.number(mapping, READ_POSITION + game.index);
        let mut wrong = false;
        let mut last = false;
        let mut nanoseconds = 0.0;
        match end {
            End::Left => {
                let deadline = Instant::now() + length;
                // The reader may still be at the end of the slice before.
                let mut limit = before;
                while !last {
                    while count == limit {
                        // Pairs with the Release store below: what we overwrite has been read.
                        limit = read_position(&self.reading).load(Ordering::Acquire) + messages;
                        core::hint::spin_loop();
                    }
                    // Only at the end of a step: that is where the reader looks.
                    last = (count + 1).is_multiple_of(messages) && Instant::now() >= deadline;
                    // SAFETY: below the limit, so the reader is done with what was there.
                    unsafe { self.send::<LINES>(line(count), (count + 1) | if last { LAST } else { 0 }) };
                    count += 1;
                }
            }
            End::Right => {
                // Waking up is not part of it.
                self.wait(line(count) + LINES - 1, count + 1);
                let started = Instant::now();
                while !last {
                    self.wait(line(count + step - 1) + LINES - 1, count + step);
                    for _ in 0..step {
                        // SAFETY: the writer stays below the position that we tell.
                        last = unsafe { self.receive::<LINES>(line(count), count + 1, &mut wrong) };
                        count += 1;
                    }
                    // Pairs with the Acquire load above: our reads are done.
                    read_position(&self.memory).store(count, Ordering::Release);
                }
                nanoseconds = started.elapsed().as_nanos() as f64 / (count - before) as f64;
            }
        }
        self.counts[GAMES + game.index] = count;
        finish(wrong, (count - before, nanoseconds))
    }
}

fn finish<T>(wrong: bool, measured: T) -> Result<T, String> {
    if wrong { Err("a raw message is not what was sent".into()) } else { Ok(measured) }
}
