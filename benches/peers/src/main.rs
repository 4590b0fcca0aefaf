//! ringbus beside Aeron, iceoryx2, shaq, ipc-channel, queues between threads, kernel mechanisms, and bare cache lines, all under the same work:
//!
//! ```text
//! cd benches/peers && cargo run --release
//! ```
//!
//! Two processes, pinned to a core each. Machines change their speed from second to second, so all candidates take turns in short slices, round after round; each
//! is compared with the limit and with Aeron as measured in the same round, and what counts is the median of these ratios over all rounds.

mod aeron;
mod catalogue;
mod claims;
mod futex;
mod harness;
mod iceoryx;
mod ipc;
mod kernel;
mod lines;
mod memory;
mod message;
mod plot;
#[path = "../../ring/raw.rs"]
mod raw;
mod regime;
mod report;
mod ring;
mod shaq_queue;
mod threads;
mod workload;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use catalogue::{Candidate, Group};
use harness::Order;
use regime::Regime;
use report::Results;

/// What all fallible functions return; errors say what was attempted.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// ringbus beside others, under the same work.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// How often each candidate has its turn
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Milliseconds of a turn, without the half of it that goes before to warm up
    #[arg(long, default_value_t = 200)]
    slice: u64,
    /// Only candidates whose group and name ("one way, 32 B: shaq") contain this; limits and Aeron are always there
    #[arg(long, default_value = "")]
    only: String,
    /// A short run that shows whether it works, and no more: figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Directory of plots and CSV files
    #[arg(long, default_value = "target/peers")]
    out: PathBuf,
}

/// What else this program is, in processes that it starts itself.
#[derive(Debug, Clone, Subcommand)]
#[command(hide = true)]
enum Role {
    /// One end of a slice
    #[command(hide = true)]
    End(Order),
    /// ringbus's driver
    #[command(hide = true)]
    RingDriver {
        #[arg(long)]
        directory: PathBuf,
    },
    /// Aeron's driver
    #[command(hide = true)]
    AeronDriver {
        #[arg(long)]
        directory: PathBuf,
    },
    /// Spins on a core
    #[command(hide = true)]
    Spin {
        #[arg(long)]
        core: usize,
        #[arg(long)]
        idle: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        None => measure(&arguments),
        Some(Role::End(order)) => play(order),
        Some(Role::RingDriver { directory }) => ring::drive(directory),
        Some(Role::AeronDriver { directory }) => aeron::drive(directory),
        Some(Role::Spin { core, idle }) => harness::spin(*core, *idle),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(order: &Order) -> Outcome<()> {
    harness::die_with_parent()?;
    let core = order.cores.get(order.end as usize).ok_or("there are two cores to be named")?;
    harness::pin(*core)?;
    let groups = catalogue::groups();
    let (group, candidate) = all(&groups).nth(order.candidate).ok_or("there is no such candidate")?;
    let measured = catalogue::play(group, candidate.peer, order).map_err(|error| format!("{:?} end: {error}", order.end))?;
    harness::answer(&measured);
    Ok(())
}

fn all(groups: &[Group]) -> impl Iterator<Item = (&Group, &Candidate)> {
    groups.iter().flat_map(|group| group.candidates.iter().map(move |candidate| (group, candidate)))
}

/// The process that was started by hand.
fn measure(arguments: &Arguments) -> Outcome<()> {
    let [left, right, ..] = harness::cores()?[..] else {
        return Err("there is one core only; two processes cannot be measured between two cores".into());
    };
    let (rounds, length) = match arguments.quick {
        true => (2, Duration::from_millis(20)),
        false => (arguments.rounds, Duration::from_millis(arguments.slice)),
    };
    if rounds == 0 || length.is_zero() {
        return Err("there must be rounds, and slices must take some time".into());
    }
    let groups = catalogue::groups();
    let wanted = wanted(&groups, &arguments.only);
    let count = wanted.iter().filter(|wanted| **wanted).count();
    if count == 0 {
        return Err(format!("no candidate's name contains `{}`", arguments.only).into());
    }
    println!("Two processes on cores {left} and {right}; {rounds} rounds, in which {count} candidates take turns of {length:?}.");
    println!("{}; a reading of the clock takes {:.0} ns.", machine(), clock());

    let regime = Regime::find([left, right])?;
    println!(
        "Two lines from one core to the other and back usually take {:.0} ns; what is measured counts while that is so.",
        regime.usual()
    );

    let mut results = Results::new(wanted.len());
    let mut unusual = 0;
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (index, (group, candidate)) in all(&groups).enumerate().filter(|(index, _)| wanted[*index]) {
            let length = length * group.patience;
            let (outcome, usual) =
                regime.measure(|| harness::run(&group.cast(candidate, index), [left, right], length / 2, length))?;
            unusual += usize::from(!usual);
            if let Err(error) = &outcome {
                // The others go on; it is said again at the end.
                eprintln!("{}: {}: {error}", group.title, candidate.name);
            }
            results.add(index, outcome.ok());
        }
    }

    report::print(&groups, &results);
    std::fs::create_dir_all(&arguments.out).map_err(|error| format!("cannot create {}: {error}", arguments.out.display()))?;
    report::write(&groups, &results, &arguments.out)?;
    plot::write(&groups, &results, &arguments.out)?;
    println!(
        "{unusual} of {} slices were measured while the exchange of two lines took another time than usual.",
        rounds * count
    );
    println!("Plots and all figures are in {}.", arguments.out.display());
    match results.failures() {
        0 => Ok(()),
        failures => Err(format!("{failures} slices have failed").into()),
    }
}

/// What it runs on, as far as the system tells.
fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    format!("{}, Linux {}", model.unwrap_or("unknown processor"), read("/proc/sys/kernel/osrelease").trim())
}

/// Nanoseconds that it takes to read the clock.
fn clock() -> f64 {
    const READINGS: u32 = 100_000;
    let started = Instant::now();
    for _ in 0..READINGS {
        std::hint::black_box(Instant::now());
    }
    started.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

/// Which candidates are to run. Of a group of which any does, limit and Aeron do too: the others are compared with them.
fn wanted(groups: &[Group], only: &str) -> Vec<bool> {
    let mut wanted = Vec::new();
    for group in groups {
        let named = |candidate: &Candidate| format!("{}: {}", group.title, candidate.name).contains(only);
        let any = group.candidates.iter().any(named);
        let is_reference =
            |(index, candidate): (usize, &Candidate)| candidate.peer.is_aeron() || (index == 0 && group.limit.is_some());
        let this = group.candidates.iter().enumerate();
        wanted.extend(this.map(|(index, candidate)| named(candidate) || (any && is_reference((index, candidate)))));
    }
    wanted
}
