//! From what the slices have measured to tables and CSV files.

use std::fmt;
use std::io::Write;
use std::path::Path;

use comfy_table::{CellAlignment, LineStyle, Table, presets};

use crate::Outcome;
use crate::catalogue::{Candidate, Group, Peer};
use crate::workload::Work;

/// By candidate and round: what the slice has measured, unless it failed.
pub struct Results(Vec<Vec<Option<Vec<f64>>>>);

impl Results {
    /// Of so many candidates.
    pub fn new(candidates: usize) -> Self {
        Self(vec![Vec::new(); candidates])
    }

    /// Of the next round of a candidate.
    pub fn add(&mut self, candidate: usize, values: Option<Vec<f64>>) {
        self.0[candidate].push(values);
    }

    /// How many slices have failed.
    pub fn failures(&self) -> usize {
        self.0.iter().flatten().filter(|values| values.is_none()).count()
    }

    /// A value over the rounds.
    pub fn spread(&self, candidate: usize, value: usize) -> Option<Spread> {
        Spread::of(self.0[candidate].iter().flatten().filter_map(|values| values.get(value).copied()).collect())
    }

    /// The ratios, round by round, of a value of two candidates.
    fn ratio(&self, candidate: usize, other: usize, value: usize) -> Option<Spread> {
        let rounds = self.0[candidate].iter().zip(&self.0[other]);
        Spread::of(rounds.filter_map(|(own, other)| Some(own.as_ref()?.get(value)? / other.as_ref()?.get(value)?)).collect())
    }
}

/// A median, and between which values eight of ten lie.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// In the middle.
    pub median: f64,
    /// A tenth is below.
    pub low: f64,
    /// A tenth is above.
    pub high: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |quantile: f64| values.get((quantile * values.len().saturating_sub(1) as f64).round() as usize).copied();
        Some(Self { median: at(0.5)?, low: at(0.1)?, high: at(0.9)? })
    }

    /// Of so many times the values.
    pub fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, low: self.low * factor, high: self.high * factor }
    }

    /// Of so much divided by the values: times become rates.
    pub fn dividing(self, dividend: f64) -> Self {
        Self { median: dividend / self.median, low: dividend / self.high, high: dividend / self.low }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.2} ({:.2} .. {:.2})", self.median, self.low, self.high)
    }
}

/// A candidate beside the references of its group.
struct Row<'a> {
    group: &'a Group,
    candidate: &'a Candidate,
    /// Indexes among all candidates.
    index: usize,
    limit: Option<usize>,
    aeron: Option<usize>,
}

fn rows<'a>(groups: &'a [Group], results: &Results) -> Vec<Vec<Row<'a>>> {
    let mut first = 0;
    let mut all = Vec::new();
    for group in groups {
        let indexes = first..first + group.candidates.len();
        let middle = |index: usize| results.spread(index, 0).map(|spread| spread.median);
        let aerons = indexes.clone().filter(|index| group.candidates[index - first].peer.is_aeron());
        // Whichever of its settings does best here.
        let aerons = aerons.filter_map(|index| Some((index, middle(index)?)));
        let aeron = aerons.min_by(|one, other| one.1.total_cmp(&other.1)).map(|(index, _)| index);
        let limit = group.limit.map(|_| first);
        let rows = group.candidates.iter().zip(indexes.clone());
        let rows = rows.filter(|(_, index)| middle(*index).is_some());
        all.push(rows.map(|(candidate, index)| Row { group, candidate, index, limit, aeron }).collect());
        first = indexes.end;
    }
    all
}

/// What the values of a slice are.
pub fn values(work: Work) -> &'static [&'static str] {
    match work {
        Work::RoundTrip | Work::Publications | Work::Subscriptions => &["p50 ns", "p99 ns", "p99.9 ns", "mean ns"],
        Work::Stream | Work::TwoProducers => &["ns per message"],
        Work::Memory => &["driver KiB", "both ends KiB"],
    }
}

impl Row<'_> {
    /// Where more is better: the rate as a part of the other's. Else the time as a multiple of the other's.
    fn ratio(&self, results: &Results, other: usize, value: usize) -> Option<Spread> {
        let of_times = results.ratio(self.index, other, value)?;
        Some(match (self.group.work, self.group.limit) {
            // In bytes: a message of the limit is not as long as one of the candidate.
            (Work::Stream | Work::TwoProducers, Some(bytes)) if Some(other) == self.limit => {
                of_times.dividing(self.bytes() as f64 / bytes as f64)
            }
            (Work::Stream | Work::TwoProducers, _) => of_times.dividing(1.0),
            _ => of_times,
        })
    }

    /// Bytes of a message. Bare lines count as a whole.
    fn bytes(&self) -> usize {
        if matches!(self.candidate.peer, Peer::Lines(..)) { self.group.limit } else { None }.unwrap_or(self.group.bytes)
    }

    fn cells(&self, results: &Results) -> Vec<String> {
        let mut cells = vec![self.candidate.name.to_owned()];
        let middle = |value| results.spread(self.index, value).map_or(f64::NAN, |spread: Spread| spread.median);
        let ratio = |other, value| self.ratio(results, other, value).map_or_else(String::new, |spread| spread.to_string());
        match self.group.work {
            Work::RoundTrip | Work::Publications | Work::Subscriptions => {
                cells.extend([0, 1, 2, 3].map(|value| time(middle(value))));
                for other in [self.limit, self.aeron].into_iter().flatten() {
                    cells.extend([0, 1, 2, 3].map(|value| ratio(other, value)));
                }
            }
            Work::Stream | Work::TwoProducers => {
                cells.extend([format!("{:.3}", 1e3 / middle(0)), format!("{:.2}", self.bytes() as f64 / middle(0))]);
                cells.extend([self.limit, self.aeron].into_iter().flatten().map(|other| ratio(other, 0)));
            }
            Work::Memory => cells.extend([0, 1].map(|value| format!("{:.1}", middle(value) / 1024.0))),
        }
        cells
    }
}

fn header(row: &Row<'_>) -> Vec<String> {
    let (own, ratios): (&[&str], &[&str]) = match row.group.work {
        Work::RoundTrip | Work::Publications | Work::Subscriptions => {
            (&["p50", "p99", "p99.9", "mean"], &["p50", "p99", "p99.9", "mean"])
        }
        Work::Stream | Work::TwoProducers => (&["M/s", "GB/s"], &["rate"]),
        Work::Memory => (&["driver MiB", "both ends MiB"], &[]),
    };
    let mut header = vec![row.group.title.clone()];
    header.extend(own.iter().copied().map(str::to_owned));
    for (reference, other) in [(row.group.candidates[0].name, row.limit), ("Aeron", row.aeron)] {
        header.extend(ratios.iter().filter(|_| other.is_some()).map(|ratio| format!("{ratio} / {reference}")));
    }
    header
}

fn time(nanoseconds: f64) -> String {
    if nanoseconds < 10_000.0 { format!("{nanoseconds:.0} ns") } else { format!("{:.1} us", nanoseconds / 1e3) }
}

/// Prints a table for each group, and how everybody was set up.
pub fn print(groups: &[Group], results: &Results) {
    let mut configurations: Vec<[String; 3]> = Vec::new();
    for rows in rows(groups, results).iter().filter(|rows| !rows.is_empty()) {
        let mut table = table();
        table.set_header(header(&rows[0]));
        for row in rows {
            table.add_row(row.cells(results));
            let Candidate { name, peer } = row.candidate;
            let version = peer.package().map_or_else(String::new, |package| format!("{package} {}", version(package)));
            let configuration = [(*name).to_owned(), version, peer.configuration().to_owned()];
            if !configurations.contains(&configuration) {
                configurations.push(configuration);
            }
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        println!("\n{table}");
    }
    println!(
        "\nFigures are medians of rounds. Ratios: the median of the rounds' own ratios, and between which values eight of ten lie. Beside the first row of the \
         table, which is the limit where there is one;\n`Aeron`: whichever row of it does best there. Times: less is better; rates: more (beside the limit: in bytes). One reading of the clock is part of each round trip. All bytes of the \
         limit's\nlines count, of the others' messages only the payload. Two producers: one has a core for itself, the other shares core and thread with the consumer, \
         by turns.\nWake-ups and creations: a process of idle priority spins on each core, so that it does not halt. Crowded: a process on each core wants all of it; it is the mean that counts, as between two\nmilliseconds of nothing there are many quick round trips.\n"
    );
    let mut table = table();
    table.set_header(["candidate", "crate", "configuration"]);
    for configuration in configurations {
        table.add_row(configuration);
    }
    println!("{table}\n");
}

/// Of a crate that this program was built from.
fn version(package: &str) -> &'static str {
    let (_, entry) = include_str!("../Cargo.lock").split_once(&format!("name = \"{package}\"\nversion = \"")).unwrap_or_default();
    entry.split('"').next().unwrap_or_default()
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
    table
}

/// Writes `slices.csv`, all that was measured, and `ratios.csv`, what the tables say of ratios.
pub fn write(groups: &[Group], results: &Results, directory: &Path) -> Outcome<()> {
    let create = |name: &str| {
        let path = directory.join(name);
        std::fs::File::create(&path).map_err(|error| format!("cannot create {}: {error}", path.display()))
    };
    let mut slices = create("slices.csv")?;
    writeln!(slices, "group,candidate,configuration,bytes,round,what,value")?;
    let mut ratios = create("ratios.csv")?;
    writeln!(ratios, "group,candidate,what,reference,median,tenth,nine tenths")?;
    for row in rows(groups, results).iter().flatten() {
        let names = format!("\"{}\",\"{}\"", row.group.title, row.candidate.name);
        let (bytes, configuration) = (row.group.bytes, row.candidate.peer.configuration());
        for (round, values_of_round) in results.0[row.index].iter().enumerate() {
            for (what, value) in values(row.group.work).iter().zip(values_of_round.iter().flatten()) {
                writeln!(slices, "{names},\"{configuration}\",{bytes},{round},{what},{value}")?;
            }
        }
        for (reference, other) in [("limit", row.limit), ("Aeron", row.aeron)] {
            for (value, what) in values(row.group.work).iter().enumerate() {
                let Some(Spread { median, low, high }) = other.and_then(|other| row.ratio(results, other, value)) else {
                    continue;
                };
                // Times and sizes are compared as they are, rates are not times.
                let what = if *what == "ns per message" { "rate" } else { what };
                writeln!(ratios, "{names},{what},{reference},{median},{low},{high}")?;
            }
        }
    }
    Ok(())
}
