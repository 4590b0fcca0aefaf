//! What it takes to wake up who sleeps: round trips between two of whom each sleeps until the other has sent, by way of ringbus, and of a bare futex and a bare eventfd. So each
//! holds two wake-ups.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use ringbus::Idle;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::futex;

use crate::harness::{End, Measured, Values, awake, histogram, quantiles};
use crate::lanes::{Lanes, Sort, Way, send, text};
use crate::message::{Check, Source};
use crate::{Group, Slice, print_table, raw};

const BYTES: usize = 32;
const BEDS: [(&str, Bed); 4] = [
    ("bare futex", Bed::BareFutex),
    ("bare eventfd, poll", Bed::BareEventfd),
    ("ringbus, recv", Bed::Recv),
    ("ringbus, poll on its fd", Bed::EventLoop),
];

/// What a sleeper sleeps on.
#[derive(Debug, Clone, Copy)]
enum Bed {
    BareFutex,
    BareEventfd,
    Recv,
    EventLoop,
}

/// The candidates.
pub struct Wakeups;

impl Group for Wakeups {
    fn name(&self) -> &'static str {
        "wakeups"
    }

    fn candidates(&self) -> Vec<String> {
        BEDS.map(|(name, _)| name.to_owned()).into()
    }

    fn run(&self, candidate: usize, slice: &mut Slice<'_>) -> Result<Measured, String> {
        let (end, length) = (slice.end, slice.length);
        let open = || Lanes::open(slice.client, end, slice.name, Sort { idle: Idle::Parking, ..Sort::default() });
        match BEDS[candidate].1 {
            Bed::BareFutex => awake(|| by_turns(&mut BareFutex(slice.bare, end), end, length)),
            Bed::BareEventfd => awake(|| by_turns(&mut BareEventfd(slice.bare, end), end, length)),
            Bed::Recv => {
                let mut recv = Recv(Talk::new(open()?));
                awake(|| by_turns(&mut recv, end, length))
            }
            Bed::EventLoop => {
                let mut looped = EventLoop(Talk::new(open()?));
                awake(|| by_turns(&mut looped, end, length))
            }
        }
    }

    fn print(&self, values: &[Values]) {
        let rows = BEDS.iter().zip(values).map(|((name, _), values)| {
            let mut row = vec![(*name).to_owned()];
            row.extend([0, 1, 2].map(|value| format!("{:.0}", values.median(value))));
            row
        });
        print_table(&["two wake-ups", "p50 ns", "p99 ns", "p99.9 ns"], 1, rows);
        println!(
            "ringbus with a message of 32 bytes, the bare ones without any. A thread of idle priority spins on each core, so that it does not halt."
        );
    }
}

/// Something to be woken by.
trait Waker {
    /// Sends a message, and wakes the other end.
    fn send(&mut self, last: bool) -> Result<(), String>;

    /// Sleeps until the message is there; says whether it is the last.
    fn receive(&mut self) -> Result<bool, String>;
}

/// Round trips, timed one by one.
fn by_turns(waker: &mut impl Waker, end: End, length: Duration) -> Result<Measured, String> {
    let mut times = histogram();
    let deadline = Instant::now() + length;
    let (mut number, mut last) = (0, false);
    while !last {
        if end == End::Left {
            let started = Instant::now();
            last = started >= deadline;
            waker.send(last)?;
            waker.receive()?;
            times.saturating_record(started.elapsed().as_nanos() as u64);
        } else {
            last = waker.receive()?;
            waker.send(last)?;
        }
        number += 1;
    }
    Ok(Measured { messages: number, values: if end == End::Left { quantiles(&times) } else { Vec::new() } })
}

/// What both ends of ringbus send and expect.
struct Talk {
    lanes: Lanes,
    source: Source<BYTES>,
    sent: u64,
    check: Check<BYTES>,
}

impl Talk {
    fn new(lanes: Lanes) -> Self {
        Self { lanes, source: Source::new(), sent: 0, check: Check::default() }
    }

    fn send(&mut self, last: bool) -> Result<(), String> {
        self.sent += 1;
        send(&mut self.lanes.out, Way::Offer, self.source.message(self.sent - 1, last))
    }

    fn is_last(&self) -> Result<bool, String> {
        self.check.verdict().map(|()| self.check.last)
    }
}

struct Recv(Talk);

impl Waker for Recv {
    fn send(&mut self, last: bool) -> Result<(), String> {
        self.0.send(last)
    }

    fn receive(&mut self) -> Result<bool, String> {
        let Talk { lanes, check, .. } = &mut self.0;
        lanes.hear(|payload| check.read(payload))?;
        self.0.is_last()
    }
}

/// The same in somebody's event loop: polls when the fd is readable, as it is at first.
struct EventLoop(Talk);

impl Waker for EventLoop {
    fn send(&mut self, last: bool) -> Result<(), String> {
        self.0.send(last)
    }

    fn receive(&mut self) -> Result<bool, String> {
        const AT_ONCE: usize = 256;
        let Talk { lanes, check, .. } = &mut self.0;
        loop {
            sleep_on(&lanes.back)?;
            if lanes.back.poll(|message| check.read(message.payload()), AT_ONCE).map_err(text)? > 0 {
                return self.0.is_last();
            }
        }
    }
}

fn sleep_on(fd: &impl AsFd) -> Result<(), String> {
    rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(fd, PollFlags::IN)], None)).map(drop).map_err(text)
}

/// What the bare ones need: a word for each direction, which counts messages, and an eventfd for each.
pub struct Bare {
    memory: MmapRaw,
    bells: [File; 2],
    counts: u32,
}

impl Bare {
    /// Bytes of it, behind those of the raw lines.
    pub const MEMORY: u64 = 4096;

    /// Maps the memory.
    pub fn new(memory: &File, bells: &[File; 2]) -> io::Result<Self> {
        let memory = MmapOptions::new().offset(raw::MEMORY).len(Self::MEMORY as usize).map_raw(memory)?;
        Ok(Self { memory, bells: [bells[0].try_clone()?, bells[1].try_clone()?], counts: 0 })
    }

    /// That of what this end sends, or of what it receives.
    fn word(&self, of: End) -> &AtomicU32 {
        const APART: usize = 2 * raw::LINE;
        // SAFETY: mapped as long as `self`, and aligned; used as an atomic only, by both processes.
        unsafe { AtomicU32::from_ptr(self.memory.as_mut_ptr().add(of as usize * APART).cast()) }
    }
}

const LAST_BIT: u32 = 1 << 31;

struct BareFutex<'a>(&'a mut Bare, End);

impl Waker for BareFutex<'_> {
    fn send(&mut self, last: bool) -> Result<(), String> {
        let Self(bare, end) = self;
        let word = bare.word(*end);
        // Only this end writes it. Pairs with the Acquire load below.
        let count = word.load(Ordering::Relaxed).wrapping_add(1) & !LAST_BIT;
        word.store(count | if last { LAST_BIT } else { 0 }, Ordering::Release);
        futex::wake(word, futex::Flags::empty(), 1).map(drop).map_err(text)
    }

    fn receive(&mut self) -> Result<bool, String> {
        let Self(bare, end) = self;
        let word = bare.word(end.other());
        loop {
            // Pairs with the Release store above.
            let found = word.load(Ordering::Acquire);
            if found & !LAST_BIT != bare.counts {
                bare.counts = found & !LAST_BIT;
                return Ok(found & LAST_BIT != 0);
            }
            // Whatever it says (woken, the word has changed already, a signal), we look again.
            let _ = futex::wait(word, futex::Flags::empty(), found, None);
        }
    }
}

struct BareEventfd<'a>(&'a mut Bare, End);

impl Waker for BareEventfd<'_> {
    fn send(&mut self, last: bool) -> Result<(), String> {
        let value = if last { 2u64 } else { 1 };
        (&self.0.bells[self.1.other() as usize]).write_all(&value.to_ne_bytes()).map_err(text)
    }

    fn receive(&mut self) -> Result<bool, String> {
        let mut bell = &self.0.bells[self.1 as usize];
        sleep_on(bell)?;
        let mut value = [0; 8];
        bell.read_exact(&mut value).map_err(text)?;
        Ok(u64::from_ne_bytes(value) == 2)
    }
}
