//! The ring against the physical limit of the machine, between two processes pinned to a core each:
//!
//! ```text
//! cargo bench --bench ring
//! ```
//!
//! Round trips are compared with raw cache lines that carry the same payload there and back, the stream with raw cache lines one way. Machines
//! change their speed from second to second (clocks, neighbours, two virtual cores on one real core), so candidates take turns in short slices,
//! each is compared with the limit as measured in the same round, and what counts is the median of these ratios over all rounds.
//!
//! Payload is written in full by the sender and read in full by the receiver, which checks it. `--quick`, `--test` or `RINGBUS_BENCH_QUICK=1` make it a short
//! run that shows whether it works, and no more.

mod harness;
mod raw;

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, LineStyle, Table, presets};
use media_driver::EmbeddedDriver;
use ringbus::wait::idle::Idler;
use ringbus::{Client, Idle, Message, OfferError, Publication, Subscription};
use rustix::fs::MemfdFlags;

use harness::{End, Ends, Measured, Place, median, median_of_batches};
use raw::{Game, LINE, Raw, Stopwatch};

/// Payload beside the number.
const PATTERN_BYTE: u8 = 0x5a;
const PATTERN: u64 = u64::from_ne_bytes([PATTERN_BYTE; 8]);
const CAPACITY: u64 = 4 << 20;
/// Tag of the message behind the last of a slice.
const LAST: u16 = 1;

/// Payloads of round trips.
const ROUND_TRIPS: [usize; 3] = [32, 64, 1024];
/// Raw messages of so many lines, and the payloads that are compared with them.
const STREAMS: [(usize, &[usize]); 3] = [(1, &[32, 64]), (16, &[1024]), (256, &[16384])];
const IDLES: [(&str, Idle); 2] = [("busy-spin", Idle::BusySpin), ("default idle", Idle::Adaptive)];

/// How a message gets into the ring.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Copied from a buffer.
    Offer,
    /// Filled in place.
    Claim,
}

const WAYS: [(&str, Way); 2] = [("offer", Way::Offer), ("claim", Way::Claim)];

/// A row of the tables.
struct Candidate {
    name: String,
    bytes: usize,
    work: Work,
    /// What it is compared with: an index among the candidates.
    limit: usize,
}

enum Work {
    RawRoundTrip(Game),
    RawStream(Game),
    RoundTrip { idle: usize, way: Way },
    Stream { idle: usize, way: Way },
}

impl Work {
    fn is_stream(&self) -> bool {
        matches!(self, Self::RawStream(_) | Self::Stream { .. })
    }
}

/// All there are, in the same order in each process.
fn candidates() -> Vec<Candidate> {
    let mut all = Vec::new();
    for (index, bytes) in ROUND_TRIPS.into_iter().enumerate() {
        let limit = all.len();
        // The payload, and a word for the number.
        let lines = (bytes + 8).div_ceil(LINE);
        let name = format!("raw lines, {lines} each way");
        all.push(Candidate { name, bytes, work: Work::RawRoundTrip(Game { index, lines, shared: false }), limit });
        if lines == 1 {
            let game = Game { index: ROUND_TRIPS.len(), lines, shared: true };
            all.push(Candidate { name: "raw line, the same both ways".into(), bytes, work: Work::RawRoundTrip(game), limit });
        }
        ring_candidates(&mut all, bytes, limit, |idle, way| Work::RoundTrip { idle, way });
    }
    for (index, (lines, sizes)) in STREAMS.into_iter().enumerate() {
        let limit = all.len();
        let name = format!("raw lines, {lines} a message");
        all.push(Candidate { name, bytes: lines * LINE, work: Work::RawStream(Game { index, lines, shared: false }), limit });
        for &bytes in sizes {
            ring_candidates(&mut all, bytes, limit, |idle, way| Work::Stream { idle, way });
        }
    }
    all
}

fn ring_candidates(all: &mut Vec<Candidate>, bytes: usize, limit: usize, work: impl Fn(usize, Way) -> Work) {
    for (way_name, way) in WAYS {
        for (idle, (idle_name, _)) in IDLES.iter().enumerate() {
            all.push(Candidate { name: format!("ring, {way_name}, {idle_name}"), bytes, work: work(idle, way), limit });
        }
    }
}

fn main() -> ExitCode {
    let outcome = match harness::place() {
        Ok(Some(place)) => serve(&place),
        Ok(None) => measure(),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench ring: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Slices and rounds: a minute, or two seconds.
fn plan() -> (Duration, usize) {
    let asked = |flag: &str| std::env::args().any(|argument| argument == flag);
    // Cargo passes `--bench` when it benches, and not when it tests.
    if std::env::var_os("RINGBUS_BENCH_QUICK").is_some() || asked("--quick") || asked("--test") || !asked("--bench") {
        (Duration::from_millis(20), 2)
    } else {
        (Duration::from_millis(150), 11)
    }
}

/// The process that was started by cargo.
fn measure() -> Result<(), Box<dyn Error>> {
    let [left, right, ..] = harness::cores()?[..] else {
        println!("There is one core only; two processes cannot be measured between two cores.");
        return Ok(());
    };
    let (length, rounds) = plan();
    let candidates = candidates();
    println!(
        "Two processes on cores {left} and {right}; medians of {rounds} rounds, in which {} candidates take turns of {length:?}.",
        candidates.len()
    );

    let driver = EmbeddedDriver::launch()?;
    let memory = rustix::fs::memfd_create("raw", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, raw::MEMORY)?;
    let mut ends = Ends::start(driver.address(), &memory, [left, right])?;
    // Nanoseconds by candidate and round.
    let mut times = vec![Vec::new(); candidates.len()];
    for _ in 0..rounds {
        for (slice, times) in times.iter_mut().enumerate() {
            times.push(
                ends.run(slice, length)
                    .map_err(|error| format!("{}, {} bytes: {error}", candidates[slice].name, candidates[slice].bytes))?,
            );
        }
    }

    let of_limit = |candidate: &Candidate, own: &[f64]| {
        let limit = &candidates[candidate.limit];
        let ratio = |(own, limit_time): (&f64, &f64)| match candidate.work.is_stream() {
            // Bytes per nanosecond.
            true => (candidate.bytes as f64 / own) / (limit.bytes as f64 / limit_time),
            false => own / limit_time,
        };
        let mut ratios: Vec<f64> = own.iter().zip(&times[candidate.limit]).map(ratio).collect();
        // Sorts them.
        let middle = median(&mut ratios);
        let quarter = ratios.len() / 4;
        [format!("{middle:.2}"), format!("{:.2} .. {:.2}", ratios[quarter], ratios[ratios.len() - 1 - quarter])]
    };
    let mut round_trips = table(&["round trips", "bytes", "ns", "times the limit", "half of the rounds"]);
    let mut streams = table(&["one way", "bytes", "M/s", "GB/s", "of the limit", "half of the rounds"]);
    for (candidate, own) in candidates.iter().zip(&times) {
        let time = median(&mut own.clone());
        let mut row = vec![candidate.name.clone(), candidate.bytes.to_string()];
        if candidate.work.is_stream() {
            row.extend([format!("{:.2}", 1e3 / time), format!("{:.2}", candidate.bytes as f64 / time)]);
        } else {
            row.push(format!("{time:.0}"));
        }
        row.extend(of_limit(candidate, own));
        if candidate.work.is_stream() {
            streams.add_row(row)
        } else {
            round_trips.add_row(row)
        };
    }
    for table in [&mut round_trips, &mut streams] {
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    }
    println!("\n{round_trips}\n\n{streams}\n");
    println!(
        "Limit of a round trip: raw lines that carry as much payload and a number. Limit one way: raw messages of whole lines, the number in the last \
         word;\nall their bytes count, of the ring's frames only the payload. The ring: broadcast, one subscription, {} KiB.",
        CAPACITY >> 10
    );
    Ok(())
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(header.iter().copied());
    table
}

// The two ends.

fn serve(place: &Place) -> Result<(), Box<dyn Error>> {
    let client = Client::builder().address(place.driver.clone()).connect()?;
    let mut raw = Raw::new(&place.memory, false)?;
    let mut pairs = IDLES.iter().map(|(_, idle)| Pair::open(&client, place.end, *idle)).collect::<Result<Vec<_>, _>>()?;
    let candidates = candidates();
    harness::serve(|slice, length| {
        let Candidate { bytes, work, .. } = &candidates[slice];
        match *work {
            Work::RawRoundTrip(game) => raw.ping_pong(game, place.end, Batches(length)).map(Measured::from),
            Work::RawStream(game) => raw.stream(game, place.end, length).map(Measured::from),
            Work::RoundTrip { idle, .. } | Work::Stream { idle, .. } => {
                // Sizes are known when compiling, as those of most messages are.
                let run = match bytes {
                    32 => Pair::run::<32>,
                    64 => Pair::run::<64>,
                    1024 => Pair::run::<1024>,
                    16384 => Pair::run::<16384>,
                    _ => return Err(format!("there are no messages of {bytes} bytes")),
                };
                run(&mut pairs[idle], work, place.end, length)
            }
        }
    })
}

/// Times raw round trips as those of the ring are timed.
struct Batches(Duration);

impl Stopwatch for Batches {
    type Times = f64;

    fn time(self, round_trip: impl FnMut(bool) -> Result<(), String>) -> Result<f64, String> {
        median_of_batches(self.0, round_trip)
    }
}

/// A channel in each direction.
struct Pair {
    out: Sender,
    back: Subscription,
}

struct Sender {
    publication: Publication,
    /// Claims have no form that waits.
    idler: Idler,
}

impl Pair {
    fn open(client: &Client, end: End, idle: Idle) -> Result<Self, Box<dyn Error>> {
        let [mut out, mut back] = ["right", "left"].map(|direction| format!("bench/{idle:?}/{direction}"));
        if end == End::Right {
            std::mem::swap(&mut out, &mut back);
        }
        let mut publication = client.channel(&out).capacity(CAPACITY).idle(idle).publication()?;
        let back = client.channel(&back).capacity(CAPACITY).idle(idle).subscription()?;
        if !publication.wait_connected(Some(Instant::now() + Duration::from_secs(10)))? {
            return Err("the other end does not come".into());
        }
        Ok(Self { out: Sender { publication, idler: Idler::new(idle) }, back })
    }

    fn run<const BYTES: usize>(&mut self, work: &Work, end: End, length: Duration) -> Result<Measured, String> {
        match (work, end) {
            (Work::RoundTrip { way, .. }, End::Left) => self.ping::<BYTES>(*way, length),
            (Work::RoundTrip { way, .. }, End::Right) => self.pong::<BYTES>(*way),
            (Work::Stream { way, .. }, End::Left) => self.publish::<BYTES>(*way, length),
            (Work::Stream { .. }, End::Right) => self.subscribe::<BYTES>(),
            _ => Err("that is not for the ring".into()),
        }
    }

    fn ping<const BYTES: usize>(&mut self, way: Way, length: Duration) -> Result<Measured, String> {
        let mut source = Source::<BYTES>::new();
        let mut number = 0;
        let nanoseconds = median_of_batches(length, |last| {
            self.out.send(way, if last { LAST } else { 0 }, number, &mut source)?;
            verify::<BYTES>(&self.back.recv().map_err(text)?, number)?;
            number += 1;
            Ok(())
        })?;
        Ok(Measured { messages: number, nanoseconds })
    }

    fn pong<const BYTES: usize>(&mut self, way: Way) -> Result<Measured, String> {
        let mut source = Source::<BYTES>::new();
        let mut number = 0;
        loop {
            let received = self.back.recv().map_err(text)?;
            verify::<BYTES>(&received, number)?;
            let tag = received.tag();
            self.out.send(way, tag, number, &mut source)?;
            number += 1;
            if tag == LAST {
                return Ok(Measured { messages: number, nanoseconds: 0.0 });
            }
        }
    }

    fn publish<const BYTES: usize>(&mut self, way: Way, length: Duration) -> Result<Measured, String> {
        let mut source = Source::<BYTES>::new();
        let mut number = 0;
        let deadline = Instant::now() + length;
        // The clock is read once a ring.
        let step = CAPACITY / BYTES as u64;
        loop {
            let last = (number + 1u64).is_multiple_of(step) && Instant::now() >= deadline;
            self.out.send(way, if last { LAST } else { 0 }, number, &mut source)?;
            number += 1;
            if last {
                return Ok(Measured { messages: number, nanoseconds: 0.0 });
            }
        }
    }

    fn subscribe<const BYTES: usize>(&mut self) -> Result<Measured, String> {
        const LIMIT: usize = 256;
        let mut number = 0;
        let mut last = false;
        let mut outcome = Ok(());
        // Waking up is not part of it.
        self.back.wait(None);
        let started = Instant::now();
        while !last {
            let handler = |message: Message<'_>| {
                if let Err(error) = verify::<BYTES>(&message, number) {
                    outcome = Err(error);
                }
                last = message.tag() == LAST;
                number += 1;
            };
            if self.back.poll(handler, LIMIT).map_err(text)? == 0 {
                self.back.wait(None);
            }
            if let Err(error) = outcome {
                return Err(error);
            }
        }
        Ok(Measured { messages: number, nanoseconds: started.elapsed().as_nanos() as f64 / number as f64 })
    }
}

impl Sender {
    /// Sends a message that begins with its number, waiting for room as long as it takes.
    #[inline(always)]
    fn send<const BYTES: usize>(&mut self, way: Way, tag: u16, number: u64, source: &mut Source<BYTES>) -> Result<(), String> {
        match way {
            Way::Offer => {
                let message = source.message(number);
                match self.publication.offer_tagged(tag, message) {
                    Ok(_) => Ok(()),
                    Err(OfferError::BackPressured) => self.publication.offer_until(tag, message, None).map(drop).map_err(text),
                    Err(error) => Err(text(error)),
                }
            }
            Way::Claim => {
                let mut waited = false;
                loop {
                    match self.publication.try_claim(BYTES) {
                        Ok(mut claim) => {
                            claim.fill(PATTERN_BYTE);
                            claim[..8].copy_from_slice(&number.to_ne_bytes());
                            claim.set_tag(tag);
                            claim.commit();
                            if waited {
                                self.idler.idle(1);
                            }
                            return Ok(());
                        }
                        Err(OfferError::BackPressured) => {
                            self.idler.idle(0);
                            waited = true;
                        }
                        Err(error) => return Err(text(error)),
                    }
                }
            }
        }
    }
}

/// Messages that an application has made some time ago, so that copying them is all that is left to do. Numbers are written well ahead: bytes that were
/// stored one by one just now cannot be copied at full speed.
struct Source<const BYTES: usize>(Vec<[u8; BYTES]>);

impl<const BYTES: usize> Source<BYTES> {
    const MESSAGES: usize = if BYTES < 4096 { 4096 / BYTES } else { 1 };

    fn new() -> Self {
        let mut source = Self(vec![[PATTERN_BYTE; BYTES]; Self::MESSAGES]);
        (0..Self::MESSAGES as u64).for_each(|number| source.write(number));
        source
    }

    /// The message with this number, which is one more than last time.
    #[inline(always)]
    fn message(&mut self, number: u64) -> &[u8; BYTES] {
        self.write(number + Self::MESSAGES as u64 - 1);
        &self.0[number as usize % Self::MESSAGES]
    }

    #[inline(always)]
    fn write(&mut self, number: u64) {
        self.0[number as usize % Self::MESSAGES][..8].copy_from_slice(&number.to_ne_bytes());
    }
}

/// Reads all of a message.
#[inline(always)]
fn verify<const BYTES: usize>(message: &Message<'_>, number: u64) -> Result<(), String> {
    let wrong = || Err(format!("message {number} is not what was sent"));
    let Ok(payload) = <&[u8; BYTES]>::try_from(message.payload()) else { return wrong() };
    let (words, _) = payload.as_chunks::<8>();
    let sum = words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
    if sum == number.wrapping_add(PATTERN.wrapping_mul(BYTES as u64 / 8 - 1)) { Ok(()) } else { wrong() }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
