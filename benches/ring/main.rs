//! ringbus between two processes that are pinned to a core each, and nothing else:
//!
//! ```text
//! cargo bench --bench ring [-- GROUP ...]
//! ```
//!
//! Groups: `limit` (beside bare cache lines), `sizes` (each kind of channel, by message size), `rings` (by size of the ring and of its pages), `parties` (by how many there are),
//! `latency` (at a fixed rate, after a pause), `wakeups` (of who sleeps, beside a bare futex and eventfd). Without any, all of them.
//!
//! Machines change their speed from second to second (clocks, neighbours, two virtual cores on one real core), so the candidates of a group take turns in short slices, and what
//! counts is the median over all rounds. Payload is written in full by the sender and read in full by the receiver, which checks it.
//!
//! `--quick`, `--test` or `RINGBUS_BENCH_QUICK=1` make it a short run that shows whether it works, and no more.

mod harness;
mod lanes;
mod latency;
mod limit;
mod message;
mod parties;
mod raw;
mod rings;
mod sizes;
mod wakeups;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, LineStyle, Table, presets};
use ringbus::{Client, Idle};

use harness::{End, Ends, Measured, Place, Values};
use raw::Raw;
use wakeups::Bare;

/// Candidates that are shown together.
trait Group {
    /// By which it is asked for.
    fn name(&self) -> &'static str;

    /// What the candidates are: a name each, to be said when one fails.
    fn candidates(&self) -> Vec<String>;

    /// Whether it can be measured here.
    fn is_possible(&self, _candidate: usize) -> bool {
        true
    }

    /// One end's part of a candidate's slice.
    fn run(&self, candidate: usize, slice: &mut Slice<'_>) -> Result<Measured, String>;

    /// Shows what was measured, by candidate.
    fn print(&self, values: &[Values]);
}

/// What an end has for a slice.
struct Slice<'a> {
    end: End,
    client: &'a Client,
    /// In a writable mapping, and in a read-only one.
    raw: &'a mut [Raw; 2],
    bare: &'a mut Bare,
    /// Nobody else's.
    name: &'a str,
    length: Duration,
}

const IDLES: [(&str, Idle); 2] = [("busy-spin", Idle::BusySpin), ("default idle", Idle::Adaptive)];

/// The same in each process.
fn groups() -> Vec<Box<dyn Group>> {
    vec![
        Box::new(limit::Limit::new()),
        Box::new(sizes::Sizes::new()),
        Box::new(rings::Rings::new()),
        Box::new(parties::Parties::new()),
        Box::new(latency::Latency::new()),
        Box::new(wakeups::Wakeups),
    ]
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

/// The process that was started by cargo.
fn measure() -> Result<(), Box<dyn Error>> {
    let groups = groups();
    let (flags, wanted): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    let is_strange = |flag: &&String| !["--bench", "--test", "--quick"].contains(&flag.as_str());
    let is_unknown = |wanted: &&String| groups.iter().all(|group| group.name() != *wanted);
    if let Some(strange) = flags.iter().find(is_strange).or(wanted.iter().find(is_unknown)) {
        let names: Vec<_> = groups.iter().map(|group| group.name()).collect();
        return Err(format!("what is `{strange}`? Usage: cargo bench --bench ring [-- [--quick] {}]", names.join(" ")).into());
    }
    let asked = |flag: &str| flags.iter().any(|asked| asked == flag);
    // Cargo passes `--bench` when it benches, and not when it tests.
    let quick = std::env::var_os("RINGBUS_BENCH_QUICK").is_some() || asked("--quick") || asked("--test") || !asked("--bench");
    let (length, rounds) = if quick { (Duration::from_millis(20), 2) } else { (Duration::from_millis(150), 7) };
    let [left, right, ..] = harness::cores()?[..] else {
        println!("There is one core only; two processes cannot be measured between two cores.");
        return Ok(());
    };
    println!(
        "Two processes on cores {left} and {right}; medians of {rounds} rounds, in which the candidates of a group take turns of {length:?}."
    );
    if quick {
        println!("This only shows that it works: the figures mean nothing.");
    }
    let mut ends = Ends::start([left, right])?;
    for (index, group) in groups.iter().enumerate() {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == group.name()) {
            let candidates = group.candidates();
            let mut values = vec![Values::default(); candidates.len()];
            for round in 0..rounds {
                eprintln!("{}: round {} of {rounds}", group.name(), round + 1);
                for (candidate, values) in values.iter_mut().enumerate().filter(|(candidate, _)| group.is_possible(*candidate)) {
                    let measured = ends.run(&[index, candidate, round], length);
                    values.0.push(measured.map_err(|error| format!("{}, {}: {error}", group.name(), candidates[candidate]))?);
                }
            }
            println!("\n{}", group.name().to_uppercase());
            group.print(&values);
        }
    }
    Ok(())
}

/// One of the two ends.
fn serve(place: &Place) -> Result<(), Box<dyn Error>> {
    let client = Client::builder().address(place.driver.clone()).connect()?;
    let mut raw = [Raw::new(&place.memory, false)?, Raw::new(&place.memory, true)?];
    let mut bare = Bare::new(&place.memory, &place.bells)?;
    let groups = groups();
    harness::serve(|order, length| {
        let &[group, candidate, round] = order else { return Err("that is no order".into()) };
        let name = format!("{}/{candidate}/{round}", groups[group].name());
        let mut slice = Slice { end: place.end, client: &client, raw: &mut raw, bare: &mut bare, name: &name, length };
        groups[group].run(candidate, &mut slice)
    })
}

/// A table whose columns are numbers, but for the first so many.
fn print_table(header: &[&str], texts: usize, rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    table.column_iter_mut().skip(texts).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("\n{table}\n");
}

/// Bytes, as one says them.
fn size(bytes: u64) -> String {
    match bytes {
        1_048_576.. => format!("{} MiB", bytes >> 20),
        1024.. => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}
