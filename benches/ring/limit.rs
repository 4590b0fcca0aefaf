//! The ring against the physical limit of the machine: round trips beside raw cache lines that carry the same payload there and back, a stream beside raw cache lines one way.
//! Each candidate is compared with the limit as measured in the same round.

use std::time::Duration;

use ringbus::Idle;

use crate::harness::{Measured, Values, median, median_of_batches};
use crate::lanes::{Lanes, Sort, Way};
use crate::raw::{Game, LINE, Stopwatch};
use crate::{Group, IDLES, Slice, print_table, size};

/// Payloads of round trips.
const ROUND_TRIPS: [usize; 3] = [32, 64, 1024];
/// Raw messages of so many lines, and the payloads that are compared with them.
const STREAMS: [(usize, &[usize]); 3] = [(1, &[32, 64]), (16, &[1024]), (256, &[16384])];
const WAYS: [(&str, Way); 2] = [("offer", Way::Offer), ("claim", Way::Claim)];

/// The candidates.
pub struct Limit(Vec<Candidate>);

struct Candidate {
    name: String,
    bytes: usize,
    work: Work,
    /// What it is compared with: an index among the candidates.
    limit: usize,
}

#[derive(Clone, Copy)]
enum Work {
    /// `true`: what the other end writes is mapped read-only, as ringbus has it.
    RawRoundTrip(Game, bool),
    RawStream(Game, bool),
    RoundTrip(Idle, Way),
    Stream(Idle, Way),
}

impl Work {
    fn is_stream(&self) -> bool {
        matches!(self, Self::RawStream(..) | Self::Stream(..))
    }
}

impl Limit {
    pub fn new() -> Self {
        let mut all = Vec::new();
        for (index, bytes) in ROUND_TRIPS.into_iter().enumerate() {
            let limit = all.len();
            // The payload, and a word for the number.
            let lines = (bytes + 8).div_ceil(LINE);
            let name = format!("raw lines, {lines} each way");
            all.push(Candidate { name, bytes, work: Work::RawRoundTrip(Game { index, lines, shared: false }, false), limit });
            let game = Game { index: index + ROUND_TRIPS.len(), lines, shared: false };
            all.push(Candidate { name: "the same, read-only".into(), bytes, work: Work::RawRoundTrip(game, true), limit });
            if lines == 1 {
                let game = Game { index: 2 * ROUND_TRIPS.len(), lines, shared: true };
                let name = "raw line, the same both ways".into();
                all.push(Candidate { name, bytes, work: Work::RawRoundTrip(game, false), limit });
            }
            rings(&mut all, bytes, limit, Work::RoundTrip);
        }
        for (index, (lines, sizes)) in STREAMS.into_iter().enumerate() {
            let limit = all.len();
            let name = format!("raw lines, {lines} a message");
            let raw = |name, index, read_only| {
                let work = Work::RawStream(Game { index, lines, shared: false }, read_only);
                Candidate { name, bytes: lines * LINE, work, limit }
            };
            all.push(raw(name, index, false));
            all.push(raw("the same, read-only".into(), index + STREAMS.len(), true));
            for &bytes in sizes {
                rings(&mut all, bytes, limit, Work::Stream);
            }
        }
        Self(all)
    }
}

fn rings(all: &mut Vec<Candidate>, bytes: usize, limit: usize, work: impl Fn(Idle, Way) -> Work) {
    for (way_name, way) in WAYS {
        for (idle_name, idle) in IDLES {
            all.push(Candidate { name: format!("ring, {way_name}, {idle_name}"), bytes, work: work(idle, way), limit });
        }
    }
}

impl Group for Limit {
    fn name(&self) -> &'static str {
        "limit"
    }

    fn candidates(&self) -> Vec<String> {
        self.0.iter().map(|candidate| format!("{}, {} bytes", candidate.name, candidate.bytes)).collect()
    }

    fn run(&self, candidate: usize, slice: &mut Slice<'_>) -> Result<Measured, String> {
        let Candidate { bytes, work, .. } = &self.0[candidate];
        let open = |idle| Lanes::open(slice.client, slice.end, slice.name, Sort { idle, ..Sort::default() });
        // Sizes are known when compiling, as those of most messages are.
        match *work {
            Work::RawRoundTrip(game, read_only) => {
                slice.raw[usize::from(read_only)].ping_pong(game, slice.end, Batches(slice.length)).map(Measured::from)
            }
            Work::RawStream(game, read_only) => {
                slice.raw[usize::from(read_only)].stream(game, slice.end, slice.length).map(Measured::from)
            }
            Work::RoundTrip(idle, way) => match bytes {
                32 => open(idle)?.round_trips::<32>(way, slice.end, slice.length),
                64 => open(idle)?.round_trips::<64>(way, slice.end, slice.length),
                _ => open(idle)?.round_trips::<1024>(way, slice.end, slice.length),
            },
            Work::Stream(idle, way) => match bytes {
                32 => open(idle)?.stream::<32>(way, slice.end, slice.length),
                64 => open(idle)?.stream::<64>(way, slice.end, slice.length),
                1024 => open(idle)?.stream::<1024>(way, slice.end, slice.length),
                _ => open(idle)?.stream::<16384>(way, slice.end, slice.length),
            },
        }
    }

    fn print(&self, values: &[Values]) {
        let (mut round_trips, mut streams) = (Vec::new(), Vec::new());
        for (candidate, own) in self.0.iter().zip(values) {
            let time = own.median(0);
            let mut row = vec![candidate.name.clone(), candidate.bytes.to_string()];
            if candidate.work.is_stream() {
                row.extend([format!("{:.2}", 1e3 / time), format!("{:.2}", candidate.bytes as f64 / time)]);
            } else {
                row.push(format!("{time:.0}"));
            }
            row.extend(self.of_limit(candidate, own, values));
            if candidate.work.is_stream() { streams.push(row) } else { round_trips.push(row) }
        }
        print_table(&["round trips", "bytes", "ns", "times the limit", "middle half"], 1, round_trips);
        print_table(&["one way", "bytes", "M/s", "GB/s", "of the limit", "middle half"], 1, streams);
        println!(
            "Limit of a round trip: raw lines that carry as much payload and a number. Limit one way: raw messages of whole lines, the number in the last \
             word;\nall their bytes count, of the ring's frames only the payload. Read-only: each end maps what the other writes read-only, as ringbus does. The ring: broadcast, one \
             subscription, {}.\nNext to each ratio: between what the middle half of the rounds lies.",
            size(Sort::default().capacity)
        );
    }
}

impl Limit {
    fn of_limit(&self, candidate: &Candidate, own: &Values, values: &[Values]) -> [String; 2] {
        let limit = &self.0[candidate.limit];
        let ratio = |(own, limit_time): (f64, f64)| match candidate.work.is_stream() {
            // Bytes per nanosecond.
            true => (candidate.bytes as f64 / own) / (limit.bytes as f64 / limit_time),
            false => own / limit_time,
        };
        let mut ratios: Vec<f64> = own.all(0).into_iter().zip(values[candidate.limit].all(0)).map(ratio).collect();
        // Sorts them.
        let middle = median(&mut ratios);
        let quarter = ratios.len() / 4;
        [format!("{middle:.2}"), format!("{:.2} .. {:.2}", ratios[quarter], ratios[ratios.len() - 1 - quarter])]
    }
}

/// Times raw round trips as those of the ring are timed.
struct Batches(Duration);

impl Stopwatch for Batches {
    type Times = f64;

    fn time(self, round_trip: impl FnMut(bool) -> Result<(), String>) -> Result<f64, String> {
        median_of_batches(self.0, round_trip)
    }
}
