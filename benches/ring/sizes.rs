//! Each kind of channel, by size of message: round trips, and a stream one way.

use ringbus::Kind;

use crate::harness::{Measured, Values};
use crate::lanes::{Lanes, Sort, Way};
use crate::{Group, Slice, print_table, size};

const KINDS: [(&str, Kind); 3] = [("spsc", Kind::Spsc), ("broadcast", Kind::Broadcast), ("mpsc", Kind::Mpsc)];
const SIZES: [usize; 10] = [8, 32, 64, 128, 512, 1 << 10, 4 << 10, 16 << 10, 128 << 10, 1 << 20];

/// The candidates: what is done, which kind, how many bytes.
pub struct Sizes(Vec<(Work, &'static str, Kind, usize)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    RoundTrip,
    Stream,
}

impl Sizes {
    pub fn new() -> Self {
        let sizes = |work, name, kind| SIZES.into_iter().map(move |bytes| (work, name, kind, bytes));
        let kinds = |work| KINDS.into_iter().flat_map(move |(name, kind)| sizes(work, name, kind));
        Self([Work::RoundTrip, Work::Stream].into_iter().flat_map(kinds).collect())
    }
}

impl Group for Sizes {
    fn name(&self) -> &'static str {
        "sizes"
    }

    fn candidates(&self) -> Vec<String> {
        self.0.iter().map(|(work, name, _, bytes)| format!("{work:?}, {name}, {bytes} bytes")).collect()
    }

    fn run(&self, candidate: usize, slice: &mut Slice<'_>) -> Result<Measured, String> {
        let (work, _, kind, bytes) = self.0[candidate];
        // Room for a few of the largest.
        let capacity = Sort::default().capacity.max(4 * bytes.next_power_of_two() as u64);
        let mut lanes = Lanes::open(slice.client, slice.end, slice.name, Sort { kind, capacity, ..Sort::default() })?;
        match bytes {
            8 => run::<8>(&mut lanes, work, slice),
            32 => run::<32>(&mut lanes, work, slice),
            64 => run::<64>(&mut lanes, work, slice),
            128 => run::<128>(&mut lanes, work, slice),
            512 => run::<512>(&mut lanes, work, slice),
            1024 => run::<1024>(&mut lanes, work, slice),
            4096 => run::<4096>(&mut lanes, work, slice),
            16384 => run::<16384>(&mut lanes, work, slice),
            131_072 => run::<131_072>(&mut lanes, work, slice),
            _ => run::<1_048_576>(&mut lanes, work, slice),
        }
    }

    fn print(&self, values: &[Values]) {
        let time = |work, kind, bytes| {
            let index = self.0.iter().position(|&(w, _, k, b)| (w, k, b) == (work, kind, bytes));
            index.map_or(f64::NAN, |index| values[index].median(0))
        };
        let rows = SIZES.map(|bytes| {
            let mut row = vec![size(bytes as u64)];
            row.extend(KINDS.map(|(_, kind)| format!("{:.0}", time(Work::RoundTrip, kind, bytes))));
            row.extend(KINDS.map(|(_, kind)| format!("{:.3}", 1e3 / time(Work::Stream, kind, bytes))));
            row.extend(KINDS.map(|(_, kind)| format!("{:.2}", bytes as f64 / time(Work::Stream, kind, bytes))));
            row
        });
        let header = [
            "message",
            "round trip ns: spsc",
            "broadcast",
            "mpsc",
            "M/s: spsc",
            "broadcast",
            "mpsc",
            "GB/s: spsc",
            "broadcast",
            "mpsc",
        ];
        print_table(&header, 1, rows);
    }
}

fn run<const BYTES: usize>(lanes: &mut Lanes, work: Work, slice: &Slice<'_>) -> Result<Measured, String> {
    match work {
        Work::RoundTrip => lanes.round_trips::<BYTES>(Way::Offer, slice.end, slice.length),
        Work::Stream => lanes.stream::<BYTES>(Way::Offer, slice.end, slice.length),
    }
}
