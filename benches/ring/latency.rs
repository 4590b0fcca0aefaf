//! How long a message takes: at a fixed rate (an open loop, in which a message that had to wait to be sent has waited, too: nothing is omitted), and after a pause, a burst of them.

use std::time::{Duration, Instant};

use ringbus::{Idle, Message};
use rustix::time::{ClockId, clock_gettime};

use crate::harness::{End, Measured, Values, awake, histogram, quantiles};
use crate::lanes::{LAST, Lanes, Sort, Source, Way, text, verify};
use crate::{Group, Slice, print_table};

const BYTES: usize = 32;
/// How long nothing is sent before a burst.
const PAUSE: Duration = Duration::from_millis(1);
const IDLES: [(&str, Idle); 2] = [("busy-spin", Idle::BusySpin), ("default idle", Idle::Adaptive)];

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
            all.extend([10, 50, 90].map(|rate| (format!("one way, at {rate} % of the most, {name}"), Work::Steady(idle, rate))));
        }
        for (name, idle) in IDLES {
            all.extend(
                [1, 16, 256].map(|count| (format!("after 1 ms, {count} and an answer, {name}"), Work::Burst(idle, count))),
            );
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
                awake(|| burst(&mut lanes, count, slice.end, slice.length))
            }
        }
    }

    fn print(&self, values: &[Values]) {
        let rows = self.0.iter().zip(values).map(|((name, work), values)| {
            let mut row = vec![name.clone()];
            row.extend([0, 1, 2].map(|value| format!("{:.0}", values.median(value))));
            row.push(if matches!(work, Work::Steady(..)) { format!("{:.1}", values.median(3)) } else { String::new() });
            row
        });
        print_table(&["32 bytes", "p50 ns", "p99 ns", "p99.9 ns", "M/s"], 1, rows);
        println!("Bursts: a thread of idle priority spins on each core, so that it does not halt.");
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
        self.start + (u128::from(number) * u128::from(self.interval) / 1000) as u64
    }
}

/// First as fast as it goes, to find the rate, then at so many hundredths of it.
fn steady(lanes: &mut Lanes, hundredths: u64, end: End, length: Duration) -> Result<Measured, String> {
    match end {
        End::Left => {
            let interval = send_by_schedule(lanes, 0, length / 2)?.1;
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
    let mut source = Source::<BYTES>::new();
    let schedule = Schedule { start: now(), interval };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&schedule.start.to_ne_bytes());
    bytes[8..].copy_from_slice(&schedule.interval.to_ne_bytes());
    lanes.out.publication.offer_until(0, &bytes, None).map_err(text)?;
    let end = schedule.start + length.as_nanos() as u64;
    let mut number = 0;
    loop {
        let now = now();
        let last = now >= end;
        let before = number;
        while number < before + AT_ONCE && (last || schedule.due(number) <= now) {
            lanes.out.send(Way::Offer, if last { LAST } else { 0 }, number, &mut source)?;
            number += 1;
            if last {
                let receipt = lanes.back.recv().map_err(text)?;
                let picoseconds = receipt.payload().try_into().map(u64::from_ne_bytes).map_err(text)?;
                return Ok((number, picoseconds));
            }
        }
    }
}

fn receive_by_schedule(lanes: &mut Lanes) -> Result<Measured, String> {
    /// Few, as the clock is looked at behind them.
    const AT_ONCE: usize = 16;
    let first = lanes.back.recv().map_err(text)?;
    let mut words = first.payload().chunks(8).map(|word| word.try_into().map(u64::from_ne_bytes).map_err(text));
    let (Some(start), Some(interval)) = (words.next(), words.next()) else { return Err("that is no schedule".into()) };
    let schedule = Schedule { start: start?, interval: interval? };
    let (mut times, mut number, mut last, mut outcome) = (histogram(), 0, false, Ok(()));
    let mut end = now();
    while !last {
        let before = number;
        let handler = |message: Message<'_>| {
            if let Err(error) = verify::<BYTES>(&message, number) {
                outcome = Err(error);
            }
            last = message.tag() == LAST;
            number += 1;
        };
        if lanes.back.poll(handler, AT_ONCE).map_err(text)? == 0 {
            lanes.back.wait(None);
            continue;
        }
        end = now();
        (before..number).for_each(|number| times.saturating_record(end.saturating_sub(schedule.due(number)).max(1)));
        std::mem::replace(&mut outcome, Ok(()))?;
    }
    let nanoseconds = (end - schedule.start) as f64 / number as f64;
    lanes.out.publication.offer_until(0, &((nanoseconds * 1e3) as u64).to_ne_bytes(), None).map_err(text)?;
    let mut values = quantiles(&times);
    values.push(1e3 / nanoseconds);
    Ok(Measured { messages: number, values })
}

fn burst(lanes: &mut Lanes, count: u64, end: End, length: Duration) -> Result<Measured, String> {
    let mut source = Source::<BYTES>::new();
    let (mut times, mut number) = (histogram(), 0);
    let deadline = Instant::now() + length;
    loop {
        match end {
            End::Left => {
                // An application that has nothing to do.
                std::thread::sleep(PAUSE);
                let started = Instant::now();
                let last = started >= deadline;
                for _ in 0..count {
                    lanes.out.send(Way::Offer, if last { LAST } else { 0 }, number, &mut source)?;
                    number += 1;
                }
                lanes.back.recv().map_err(text)?;
                times.saturating_record(started.elapsed().as_nanos() as u64);
                if last {
                    return Ok(Measured { messages: number, values: quantiles(&times) });
                }
            }
            End::Right => {
                let mut last = false;
                for _ in 0..count {
                    let message = lanes.back.recv().map_err(text)?;
                    verify::<BYTES>(&message, number)?;
                    last = message.tag() == LAST;
                    number += 1;
                }
                lanes.out.publication.offer_until(0, &[], None).map_err(text)?;
                if last {
                    return Ok(Measured::count(number));
                }
            }
        }
    }
}
