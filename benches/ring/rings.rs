//! By size of the ring, and with huge pages beside usual ones, where the system has any reserved (`sysctl vm.nr_hugepages=N`, 2 MiB each).

use ringbus::HugePages;

use crate::harness::{Measured, Values};
use crate::lanes::{Lanes, Sort, Way};
use crate::{Group, Slice, print_table, size};

const CAPACITIES: [u64; 6] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
/// Those that are also tried on huge pages, if there are enough for both directions.
const HUGE: [u64; 2] = [4 << 20, 64 << 20];
const SIZES: [usize; 3] = [64, 1024, 16384];

/// The candidates: bytes of the ring, its pages, bytes of a message.
pub struct Rings(Vec<(u64, HugePages, usize)>);

impl Rings {
    pub fn new() -> Self {
        let free = ringbus::memory::memfd::meminfo("HugePages_Free:").unwrap_or(0) * (2 << 20);
        // A control area each.
        let huge = HUGE.into_iter().filter(|capacity| 2 * (capacity + (2 << 20)) <= free);
        let usual = CAPACITIES.into_iter().map(|capacity| (capacity, HugePages::Never));
        let rings = usual.chain(huge.map(|capacity| (capacity, HugePages::Always)));
        Self(rings.flat_map(|(capacity, pages)| SIZES.map(|bytes| (capacity, pages, bytes))).collect())
    }
}

impl Group for Rings {
    fn name(&self) -> &'static str {
        "rings"
    }

    fn candidates(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(capacity, pages, bytes)| format!("{}, huge pages {pages:?}, {bytes} bytes", size(*capacity)))
            .collect()
    }

    fn run(&self, candidate: usize, slice: &mut Slice<'_>) -> Result<Measured, String> {
        let (capacity, huge_pages, bytes) = self.0[candidate];
        let mut lanes = Lanes::open(slice.client, slice.end, slice.name, Sort { capacity, huge_pages, ..Sort::default() })?;
        match bytes {
            64 => lanes.stream::<64>(Way::Offer, slice.end, slice.length),
            1024 => lanes.stream::<1024>(Way::Offer, slice.end, slice.length),
            _ => lanes.stream::<16384>(Way::Offer, slice.end, slice.length),
        }
    }

    fn print(&self, values: &[Values]) {
        let rows = self.0.chunks(SIZES.len()).zip(values.chunks(SIZES.len())).map(|(candidates, values)| {
            let (capacity, pages, _) = candidates[0];
            let pages = if pages == HugePages::Always { "huge" } else { "usual" };
            let mut row = vec![size(capacity), pages.to_owned()];
            row.extend(values.iter().zip(SIZES).map(|(values, bytes)| format!("{:.2}", bytes as f64 / values.median(0))));
            row
        });
        print_table(&["ring", "pages", "GB/s: 64 B", "1 KiB", "16 KiB"], 2, rows);
        if !self.0.iter().any(|(_, pages, _)| *pages == HugePages::Always) {
            println!("No huge pages are reserved: `sysctl vm.nr_hugepages=70` as root does it until the next boot.");
        }
    }
}
