//! How long a message takes: at a fixed rate (an open loop, in which a message that had to wait to be sent has waited, too: nothing is omitted), and after a pause, a burst of them.

use std::time::{Duration, Instant};

use ringbus::Idle;
use rustix::time::{ClockId, clock_gettime};

use crate::harness::{End, Measured, Values, awake, histogram, quantiles};
use crate::lanes::{Lanes, Sort, Way, receive, send};
use crate::message::{Check, Source};
use crate::{Group, IDLES, Slice, print_table};

const BYTES: usize = 32;
/// How long nothing is sent before a burst.
const PAUSE: Duration = Duration::from_millis(1);

/// The candidates.
pub struct Latency(Vec<(String, Work)>);

#[derive(Debug, Clone, Copy)]
enum Work {
    /// At so many hundredths of the rate that this very loop reaches.
    Steady(Idle, u64),
    /// So many messages after a pause, until the answer to the last.
    Burst(Idle, u64),
}

impl Latency {
    pub fn new() -> Self {
        let mut all = Vec::new();
        for (name, idle) in IDLES {
            all.extend(
                [10, 50, 90]
                    .map(|rate| (format!("one way, at {rate} % of the rate that it reaches, {name}"), Work::Steady(idle, rate))),
            );
        }
        for (name, idle) in IDLES {
            all.extend([1, 16, 256].map(|count| {
                (format!("burst of {count} after 1 ms of silence, until its answer, {name}"), Work::Burst(idle, count))
            }));
        }
        Self(all)
    }
}

impl Group for Latency {
    fn name(&self) -> &'static str {
        "latency"
    }

    fn candidates(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    fn run(&self, candidate: usize, slice: &mut Slice<'_>) -> Result<Measured, String> {
        let open = |idle| Lanes::open(slice.client, slice.end, slice.name, Sort { idle, ..Sort::default() });
        match self.0[candidate].1 {
            Work::Steady(idle, hundredths) => steady(&mut open(idle)?, hundredths, slice.end, slice.length),
            Work::Burst(idle, count) => {
                let mut lanes = open(idle)?;
                let mut burst = || burst(&mut lanes, count, slice.end, slice.length);
                // Who spins needs nobody who keeps his core awake, and would be held up by him now and then.
                if idle == Idle::BusySpin && slice.end == End::Right { burst() } else { awake(burst) }
            }
        }
    }

    fn print(&self, values: &[Values]) {
        let rows = self.0.iter().zip(values).map(|((name, work), values)| {
            let value = |value| format!("{:.0}", values.median(value));
            let [p99, p999, rate] = match work {
                Work::Steady(..) => [value(1), value(2), format!("{:.1}", values.median(4))],
                // There are too few of them in a slice.
                Work::Burst(..) => [const { String::new() }; 3],
            };
            vec![name.clone(), value(0), p99, p999, value(3), rate]
        });
        print_table(&["32 bytes", "p50 ns", "p99 ns", "p99.9 ns", "longest ns", "sent M/s"], 1, rows);
        println!(
            "At a fixed rate: from when a message was due, whether it could be sent then or not. A reader that keeps up with a fast stream stays away from it for some microseconds at a time where it is faster so (`client/pace.rs`).\n\
             Bursts: a thread of idle priority spins on each core that would halt otherwise."
        );
    }
}

/// Nanoseconds of a clock that both ends have.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// When a message is due. Sent ahead of the messages.
#[derive(Clone, Copy)]
struct Schedule {
    /// Of the first.
    start: u64,
    /// From one to the next, in picoseconds.
    interval: u64,
}

impl Schedule {
    fn due(self, number: u64) -> u64 {
        // What is divided are the picoseconds since the start: enough for months.
        self.start + number * self.interval / 1000
    }
}

/// First as fast as it goes, to find the rate, then at so many hundredths of it.
fn steady(lanes: &mut Lanes, hundredths: u64, end: End, length: Duration) -> Result<Measured, String> {
    match end {
        End::Left => {
            let (_, interval) = send_by_schedule(lanes, 0, length / 2)?;
            let (messages, _) = send_by_schedule(lanes, interval * 100 / hundredths, length)?;
            Ok(Measured::count(messages))
        }
        End::Right => {
            receive_by_schedule(lanes)?;
            receive_by_schedule(lanes)
        }
    }
}

/// Returns how many messages there were, and how many picoseconds each took until all had come.
fn send_by_schedule(lanes: &mut Lanes, interval: u64, length: Duration) -> Result<(u64, u64), String> {
    /// Between two looks at the clock, if all are due.
    const AT_ONCE: u64 = 64;
    /// Until the receiver is ready.
    const AHEAD: u64 = 1_000_000;
    let mut source = Source::<BYTES>::new();
    let schedule = Schedule { start: now() + AHEAD, interval };
    lanes.tell(&[schedule.start.to_ne_bytes(), schedule.interval.to_ne_bytes()].concat())?;
    let end = schedule.start + length.as_nanos() as u64;
    let mut number = 0;
    loop {
        let now = now();
        let before = number;
        while number < before + AT_ONCE && schedule.due(number) <= now {
            // All that is due before the end is sent, however late.
            let last = if interval == 0 { now >= end } else { schedule.due(number) >= end };
            send(&mut lanes.out, Way::Offer, source.message(number, last))?;
            number += 1;
            if last {
                let picoseconds = lanes.hear(|receipt| receipt.try_into().map(u64::from_ne_bytes))?;
                return Ok((number, picoseconds.map_err(|_| "that is no receipt")?));
            }
        }
    }
}

/// Values: median, 99th and 99.9th percentile and maximum of nanoseconds, and million messages a second.
fn receive_by_schedule(lanes: &mut Lanes) -> Result<Measured, String> {
    /// Few, as the clock is looked at behind them.
    const AT_ONCE: usize = 16;
    let (mut times, mut check) = (histogram(), Check::<BYTES>::default());
    let schedule = lanes.hear(|bytes| {
        let (words, _) = bytes.as_chunks::<8>();
        let &[start, interval] = words else { return Err("that is no schedule") };
        Ok(Schedule { start: u64::from_ne_bytes(start), interval: u64::from_ne_bytes(interval) })
    })??;
    let (mut number, mut end) = (0, schedule.start);
    while !check.last {
        if receive(&mut lanes.back, &mut check, AT_ONCE)? > 0 {
            end = now();
            while number < check.counts[0] {
                times.saturating_record(end.saturating_sub(schedule.due(number)).max(1));
                number += 1;
            }
        }
    }
    check.verdict()?;
    let nanoseconds = (end - schedule.start) as f64 / number as f64;
    lanes.tell(&((nanoseconds * 1e3) as u64).to_ne_bytes())?;
    let mut values = quantiles(&times);
    values.extend([times.max() as f64, 1e3 / nanoseconds]);
    Ok(Measured { messages: number, values })
}

/// Values: median, 99th and 99.9th percentile and maximum of nanoseconds.
fn burst(lanes: &mut Lanes, count: u64, end: End, length: Duration) -> Result<Measured, String> {
    let (mut source, mut check, mut times) = (Source::<BYTES>::new(), Check::<BYTES>::default(), histogram());
    let deadline = Instant::now() + length;
    let mut number = 0;
    match end {
        End::Left => {
            let mut last = false;
            while !last {
                // An application that has nothing to do.
                std::thread::sleep(PAUSE);
                let started = Instant::now();
                last = started >= deadline;
                for left in (0..count).rev() {
                    send(&mut lanes.out, Way::Offer, source.message(number, last && left == 0))?;
                    number += 1;
                }
                lanes.hear(|_| ())?;
                times.saturating_record(started.elapsed().as_nanos() as u64);
            }
            let mut values = quantiles(&times);
            values.push(times.max() as f64);
            Ok(Measured { messages: number, values })
        }
        End::Right => {
            while !check.last {
                for _ in 0..count {
                    lanes.hear(|payload| check.read(payload))?;
                }
                lanes.tell(&[])?;
            }
            check.verdict()?;
            Ok(Measured::count(check.counts[0]))
        }
    }
}
