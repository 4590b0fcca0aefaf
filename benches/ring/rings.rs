//! By size of the ring, and with huge pages beside usual ones, where the system has enough of them reserved.

use ringbus::HugePages;
use ringbus::memory::memfd;

use crate::harness::{Measured, Values};
use crate::lanes::{Lanes, Sort, Way};
use crate::{Group, Slice, print_table, size};

const CAPACITIES: [u64; 6] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
/// Those that are also tried on huge pages.
const HUGE: [u64; 2] = [4 << 20, 64 << 20];
const SIZES: [usize; 3] = [64, 1024, 16384];

/// The candidates: bytes of the ring, its pages, bytes of a message.
pub struct Rings(Vec<(u64, HugePages, usize)>);

impl Rings {
    pub fn new() -> Self {
        let usual = CAPACITIES.into_iter().map(|capacity| (capacity, HugePages::Never));
        let rings = usual.chain(HUGE.map(|capacity| (capacity, HugePages::Always)));
        Self(rings.flat_map(|(capacity, pages)| SIZES.map(|bytes| (capacity, pages, bytes))).collect())
    }
}

/// How many huge pages there must be for both directions with their control areas, those of the slice before included, as they are given back when the driver gets to it.
fn huge_pages_needed() -> u64 {
    let most = HUGE.into_iter().max().unwrap_or(0);
    4 * (most.div_ceil(memfd::huge_page_size()) + 1)
}

fn huge_pages_free() -> u64 {
    memfd::meminfo("HugePages_Free:").unwrap_or(0)
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

    fn is_possible(&self, candidate: usize) -> bool {
        self.0[candidate].1 == HugePages::Never || huge_pages_free() >= huge_pages_needed()
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
        let rows = self.0.chunks(SIZES.len()).zip(values.chunks(SIZES.len()));
        let rows = rows.filter(|(_, values)| values.iter().all(|values| !values.0.is_empty())).map(|(candidates, values)| {
            let (capacity, pages, _) = candidates[0];
            let pages = if pages == HugePages::Always { "huge" } else { "usual" };
            let mut row = vec![size(capacity), pages.to_owned()];
            row.extend(values.iter().zip(SIZES).map(|(values, bytes)| format!("{:.2}", bytes as f64 / values.median(0))));
            row
        });
        print_table(&["ring", "pages", "one way, GB/s: 64 B", "1 KiB", "16 KiB"], 2, rows);
        let (free, needed) = (huge_pages_free(), huge_pages_needed());
        if free < needed {
            println!(
                "Of huge pages {free} are free, and {needed} are needed: `sysctl vm.nr_hugepages={needed}` as root reserves them until the next boot."
            );
        }
    }
}
