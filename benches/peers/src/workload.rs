//! What all transports do, written once. A transport says how to send and receive a message without waiting, and how to wait; everything is generic, so no
//! call through a pointer is on the path.

use std::convert::Infallible;
use std::ops::Range;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Outcome;
use crate::harness::{End, Measured, Order, PATIENCE};
use crate::memory;
use crate::message::{Check, Message, Source};
use crate::raw::Stopwatch;

/// Messages that are taken at once.
const POLL: usize = 256;
/// Messages that are sent before a sender may look at something else: one batch, where a transport has batches.
const BURST: u64 = 64;
/// Bytes between two readings of the clock by the sender of a stream.
const STRIDE: usize = 64 << 10;

/// The end of a lane that sends.
pub trait Sender<const BYTES: usize> {
    /// Sends a message if there is room.
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool>;

    /// Sends messages while there is room. Returns the number of the one behind the last that was sent.
    #[inline(always)]
    fn try_send_burst(&mut self, source: &mut Source<BYTES>, numbers: Range<u64>) -> Outcome<u64> {
        for number in numbers.clone() {
            if !self.try_send(source.message(number, false))? {
                return Ok(number);
            }
        }
        Ok(numbers.end)
    }

    /// What to do while there is no room.
    #[inline(always)]
    fn wait(&mut self) {
        core::hint::spin_loop();
    }

    /// Sends a message, waiting for room.
    #[inline(always)]
    fn send(&mut self, message: Message<'_, BYTES>) -> Outcome<()> {
        while !self.try_send(message)? {
            self.wait();
        }
        Ok(())
    }
}

/// The end of a lane that receives.
pub trait Receiver<const BYTES: usize> {
    /// Has `read` look at what is there, at most `limit` messages. Returns how many.
    fn try_receive(&mut self, limit: usize, read: impl FnMut(&[u8])) -> Outcome<usize>;

    /// What to do while nothing is there.
    #[inline(always)]
    fn wait(&mut self) {
        core::hint::spin_loop();
    }

    /// Waits for one message.
    #[inline(always)]
    fn receive(&mut self, mut read: impl FnMut(&[u8])) -> Outcome<()> {
        while self.try_receive(1, &mut read)? == 0 {
            self.wait();
        }
        Ok(())
    }
}

/// Something that joins two processes.
pub trait Transport {
    /// The sending end of the lane with this name. Waits for the other end, as does `receiver`.
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>>;

    /// The receiving end.
    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>>;
}

/// What is done, most of it with a pair of lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A message there, then one back. Values: median, 99th and 99.9th percentile, and mean of nanoseconds.
    RoundTrip,
    /// As many messages as possible, from left to right. Value: nanoseconds of a message.
    Stream,
    /// The same with a second producer, which shares core and thread with the consumer. Value: nanoseconds of a message of either.
    TwoProducers,
    /// Nothing but being there. Values: resident KiB of the driver, and of the two ends.
    Memory,
    /// To create publications, one after the other. Values as for round trips.
    Publications,
    /// To create subscriptions.
    Subscriptions,
}

/// One end of a slice, by way of a transport between processes.
pub fn run<const BYTES: usize, T: Transport>(transport: &T, work: Work, order: &Order) -> Outcome<Measured> {
    // Each end opens the lane there first, so that neither waits for ever.
    match order.end {
        End::Left => {
            let out = transport.sender::<BYTES>("there")?;
            left(out, transport.receiver::<BYTES>("back")?, work, order)
        }
        End::Right => {
            let there = transport.receiver::<BYTES>("there")?;
            let second = if work == Work::TwoProducers { Some(transport.sender::<BYTES>("there")?) } else { None };
            right(there, second, transport.sender::<BYTES>("back")?, work, order)
        }
    }
}

/// The left end, which begins.
pub fn left<const BYTES: usize>(
    mut out: impl Sender<BYTES>,
    mut back: impl Receiver<BYTES>,
    work: Work,
    order: &Order,
) -> Outcome<Measured> {
    match work {
        Work::RoundTrip => {
            ping(&mut out, &mut back, order.warm)?;
            ping(&mut out, &mut back, order.length)
        }
        Work::Stream | Work::TwoProducers => {
            publish(&mut out, &mut back, order.warm)?;
            publish(&mut out, &mut back, order.length)
        }
        Work::Memory => {
            ping(&mut out, &mut back, Duration::ZERO)?;
            let driver = order.driver.map_or(Ok(0.0), memory::resident_of)?;
            let values = vec![driver, memory::resident()?];
            // Until now the right end waits, so it was there, too.
            ping(&mut out, &mut back, Duration::ZERO)?;
            Ok(Measured { messages: 2, values })
        }
        Work::Publications | Work::Subscriptions => Err("that takes no lanes".into()),
    }
}

/// The right end, which answers. `second` is the second producer, where there are two.
pub fn right<const BYTES: usize>(
    mut there: impl Receiver<BYTES>,
    mut second: Option<impl Sender<BYTES>>,
    mut back: impl Sender<BYTES>,
    work: Work,
    order: &Order,
) -> Outcome<Measured> {
    match work {
        Work::RoundTrip => {
            pong(&mut there, &mut back)?;
            pong(&mut there, &mut back)
        }
        Work::Stream => {
            subscribe(&mut there, &mut back)?;
            subscribe(&mut there, &mut back)
        }
        Work::TwoProducers => {
            let second = second.as_mut().ok_or("there is no second producer")?;
            subscribe_and_publish(&mut there, second, &mut back, order.warm)?;
            subscribe_and_publish(&mut there, second, &mut back, order.length)
        }
        Work::Memory => {
            pong(&mut there, &mut back)?;
            let values = vec![0.0, memory::resident()?];
            pong(&mut there, &mut back)?;
            Ok(Measured { messages: 2, values })
        }
        Work::Publications | Work::Subscriptions => Err("that takes no lanes".into()),
    }
}

/// For those that have one producer only.
pub const NO_SECOND: Option<Nobody> = None;

/// Nobody sends.
pub struct Nobody(Infallible);

impl<const BYTES: usize> Sender<BYTES> for Nobody {
    fn try_send(&mut self, _: Message<'_, BYTES>) -> Outcome<bool> {
        match self.0 {}
    }
}

/// Times each round trip. One reading of the clock is part of it.
pub struct Each(pub Duration);

impl Each {
    fn record<T, E>(&self, mut work: impl FnMut(bool) -> Result<T, E>) -> Result<Vec<f64>, E> {
        const LONGEST: u64 = 60_000_000_000;
        let mut times = Histogram::<u64>::new_with_bounds(1, LONGEST, 3).expect("the bounds are good ones");
        let end = Instant::now() + self.0;
        loop {
            let before = Instant::now();
            let made = work(false)?;
            let now = Instant::now();
            drop(made);
            times.saturating_record((now - before).as_nanos() as u64);
            if now >= end {
                break;
            }
        }
        work(true)?;
        let mut values = [0.5, 0.99, 0.999].map(|quantile| times.value_at_quantile(quantile) as f64).to_vec();
        values.push(times.mean());
        Ok(values)
    }
}

impl Stopwatch for Each {
    type Times = Vec<f64>;

    fn time(self, round_trip: impl FnMut(bool) -> Result<(), String>) -> Result<Vec<f64>, String> {
        self.record(round_trip)
    }
}

fn ping<const BYTES: usize>(
    out: &mut impl Sender<BYTES>,
    back: &mut impl Receiver<BYTES>,
    length: Duration,
) -> Outcome<Measured> {
    let mut source = Source::<BYTES>::new();
    let mut check = Check::<BYTES>::default();
    let mut number = 0;
    let values = Each(length).record(|last| {
        out.send(source.message(number, last))?;
        back.receive(|payload| check.read(payload))?;
        number += 1;
        Outcome::Ok(())
    })?;
    check.verdict()?;
    Ok(Measured { messages: number, values })
}

fn pong<const BYTES: usize>(there: &mut impl Receiver<BYTES>, back: &mut impl Sender<BYTES>) -> Outcome<Measured> {
    let mut source = Source::<BYTES>::new();
    let mut check = Check::<BYTES>::default();
    let mut number = 0;
    while !check.last {
        there.receive(|payload| check.read(payload))?;
        back.send(source.message(number, check.last))?;
        number += 1;
    }
    check.verdict()?;
    Ok(Measured { messages: number, values: Vec::new() })
}

fn publish<const BYTES: usize>(
    out: &mut impl Sender<BYTES>,
    back: &mut impl Receiver<BYTES>,
    length: Duration,
) -> Outcome<Measured> {
    let mut source = Source::<BYTES>::new();
    let deadline = Instant::now() + length;
    let mut number = 0;
    while Instant::now() < deadline {
        let stride = number + (STRIDE / BYTES).max(1) as u64;
        while number < stride {
            let end = stride.min(number + BURST);
            number = out.try_send_burst(&mut source, number..end)?;
            if number < end {
                // There was no room.
                out.send(source.message(number, false))?;
                number += 1;
            }
        }
    }
    out.send(source.message(number, true))?;
    wait_for_receipt(back)?;
    Ok(Measured { messages: number + 1, values: Vec::new() })
}

fn subscribe<const BYTES: usize>(there: &mut impl Receiver<BYTES>, back: &mut impl Sender<BYTES>) -> Outcome<Measured> {
    let mut check = Check::<BYTES>::default();
    // The wait for the first message, and what came with it, is not part of it.
    let mut first = 0;
    while first == 0 {
        first = there.try_receive(POLL, |payload| check.read(payload))? as u64;
        if first == 0 {
            there.wait();
        }
    }
    let started = Instant::now();
    while !check.last {
        if there.try_receive(POLL, |payload| check.read(payload))? == 0 {
            there.wait();
        }
    }
    let values = vec![per_message(started, check.counts[0] - first)];
    check.verdict()?;
    back.send(Source::new().message(0, true))?;
    Ok(Measured { messages: check.counts[0], values })
}

/// Consumer and second producer by turns in one thread, as there are two cores for three parties: if the scheduler let them take turns, a turn would be some
/// milliseconds, and the two producers would hardly ever meet.
fn subscribe_and_publish<const BYTES: usize>(
    there: &mut impl Receiver<BYTES>,
    second: &mut impl Sender<BYTES>,
    back: &mut impl Sender<BYTES>,
    length: Duration,
) -> Outcome<Measured> {
    let mut source = Source::<BYTES>::second();
    let mut check = Check::<BYTES>::default();
    let mut number = 0;
    let started = Instant::now();
    // If the other producer never comes, its patience ends elsewhere; ours ends here.
    let hopeless = started + length + PATIENCE;
    while !check.last {
        number = second.try_send_burst(&mut source, number..number + BURST)?;
        if there.try_receive(POLL, |payload| check.read_of_either(payload))? == 0 && Instant::now() > hopeless {
            return Err("the first producer sends nothing".into());
        }
    }
    while check.counts[1] < number {
        there.try_receive(POLL, |payload| check.read_of_either(payload))?;
    }
    let values = vec![per_message(started, check.counts[0] + check.counts[1])];
    check.verdict()?;
    back.send(Source::new().message(0, true))?;
    Ok(Measured { messages: check.counts[0], values })
}

/// So that no sender is gone before all was received.
fn wait_for_receipt<const BYTES: usize>(back: &mut impl Receiver<BYTES>) -> Outcome<()> {
    let mut check = Check::<BYTES>::default();
    back.receive(|payload| check.read(payload))?;
    Ok(check.verdict()?)
}

fn per_message(started: Instant, messages: u64) -> f64 {
    // A slice of a few large messages may have come all at once.
    started.elapsed().as_nanos() as f64 / messages.max(1) as f64
}

/// Creates something again and again. To close it is not part of it, but for what the next creation has to wait for. Values: median, 99th and 99.9th
/// percentile of nanoseconds.
pub fn attach<T>(length: Duration, mut create: impl FnMut(u32) -> Outcome<T>) -> Outcome<Measured> {
    let mut number = 0;
    let values = Each(length).record(|_| {
        number += 1;
        create(number)
    })?;
    Ok(Measured { messages: u64::from(number), values })
}

/// Bytes that may be on the way, where that can be set: a few MiB, more than the caches that are a core's own, or a few large messages.
pub const fn ring_bytes(message: usize) -> usize {
    const USUAL: usize = 4 << 20;
    if message * 4 > USUAL { message * 4 } else { USUAL }
}

/// The same in messages of one size: a power of two.
pub const fn ring_slots(message: usize) -> usize {
    (ring_bytes(message) / message).next_power_of_two()
}
