//! Goes through all operations, kinds and points, counts, and prints the table.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use comfy_table::Table;
use serde::{Deserialize, Serialize};
use testing::Random;

use crate::Options;
use crate::operation::{Kind, Operation};
use crate::process;
use crate::scene::{Blow, LATE, Outcome, Scene};
use crate::tracer::{Point, Reached, Trace, start_ticking};

/// What the project wants.
const SOON: Duration = Duration::from_millis(50);
/// Operations differ a little from time to time: so many are recorded, and the most usual counts. What only others did is seen to at the end.
const RECORDINGS: usize = 7;
const RECORDINGS_FOR_SAMPLE: usize = 2;
/// How often a victim that got elsewhere is followed by another one for the same point.
const TRIES: usize = 5;
/// The same for an instruction that is not executed each time.
const TRIES_FOR_RARE: usize = 8;
/// After so many the rest of a case is left out.
const MOST_FAILURES: u64 = 10;

/// A row of the table.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Row {
    operation: String,
    kind: String,
    instructions: usize,
    points: usize,
    calls: usize,
    addresses: usize,
    reached: usize,
    blows: u64,
    /// Points to which victims were sent.
    wanted: u64,
    /// Points that no victim got to in some tries.
    missed: u64,
    failures: u64,
    /// Nanoseconds until the survivors had gone on, of each victim.
    took: Vec<u64>,
    seconds: f64,
    /// What a whole run would take.
    estimate: f64,
}

/// Runs what is asked for; whether all was well.
pub fn run(options: &Options) -> bool {
    let seed = options.seed.unwrap_or_else(testing::now);
    if options.sample.is_some() {
        println!("seed {seed}");
    }
    let begun = Instant::now();
    let cases = cases(options);
    let workers = options.workers.clamp(1, cases.len().max(1));
    let mut pipes = Vec::new();
    for worker in 0..workers {
        let (pipe, own) = UnixStream::pair().expect("a pipe");
        let mine: Vec<_> = cases.iter().copied().skip(worker).step_by(workers).collect();
        let child = process::spawn(|| work(options, seed, &mine, own));
        pipes.push((child, BufReader::new(pipe)));
    }
    let mut rows = Vec::new();
    let mut all_well = true;
    for (child, pipe) in pipes {
        // Its own end of the pipe is the worker's alone only once our other children are gone; so each says how many rows come.
        for line in pipe.lines().map_while(Result::ok) {
            if line == "end" {
                break;
            }
            rows.push(decode(&line));
        }
        let status = nix::sys::wait::waitpid(child, None);
        all_well &= matches!(status, Ok(nix::sys::wait::WaitStatus::Exited(_, 0)));
    }
    print(&rows, options, begun.elapsed());
    let (missed, wanted) = (rows.iter().map(|row| row.missed).sum::<u64>(), rows.iter().map(|row| row.wanted).sum::<u64>());
    if missed * 2 > wanted {
        println!("FAILURE: {missed} of {wanted} points were missed: most victims were struck elsewhere");
        all_well = false;
    }
    all_well && rows.len() == cases.len() && rows.iter().all(|row| row.failures == 0 && (row.blows > 0 || options.estimate))
}

fn decode(line: &str) -> Row {
    let bytes: Vec<u8> = line.split(',').filter_map(|byte| byte.parse().ok()).collect();
    postcard::from_bytes(&bytes).expect("a worker says what it did")
}

fn cases(options: &Options) -> Vec<(Operation, Kind)> {
    if let Some((operation, kind, _)) = options.only {
        return vec![(operation, kind)];
    }
    let wanted = |operation: &&Operation| options.operations.is_empty() || options.operations.contains(operation);
    let all = Operation::value_variants().iter().filter(wanted);
    let all = all.flat_map(|&operation| operation.kinds().iter().map(move |&kind| (operation, kind)));
    all.filter(|(_, kind)| options.kinds.is_empty() || options.kinds.contains(kind)).collect()
}

fn work(options: &Options, seed: u64, cases: &[(Operation, Kind)], mut rows: UnixStream) {
    start_ticking();
    for &(operation, kind) in cases {
        let begun = Instant::now();
        let mut row = Row { operation: operation.to_string(), kind: kind.to_string(), ..Row::default() };
        if let Err(error) = case(options, seed, operation, kind, &mut row) {
            println!("FAILURE {operation}:{kind}: {error}");
            row.failures += 1;
        }
        row.seconds = begun.elapsed().as_secs_f64();
        println!(
            "{operation} {kind}: {} instructions, {} blows, {} failures, {:.1} s",
            row.instructions, row.blows, row.failures, row.seconds
        );
        let bytes = postcard::to_stdvec(&row).expect("a row");
        let line: Vec<String> = bytes.iter().map(ToString::to_string).collect();
        writeln!(rows, "{}", line.join(",")).expect("somebody listens");
    }
    writeln!(rows, "end").expect("somebody listens");
}

/// One operation on one kind of channel, at all points.
fn case(options: &Options, seed: u64, operation: Operation, kind: Kind, row: &mut Row) -> Result<(), String> {
    let mut scene = Scene::new(operation, kind)?;
    let count = if options.is_whole() { RECORDINGS } else { RECORDINGS_FOR_SAMPLE };
    let recordings: Vec<Trace> = (0..count).map(|_| scene.record()).collect::<Result<_, _>>()?;
    let addresses: HashSet<u64> = recordings.iter().flat_map(|trace| &trace.addresses).copied().collect();
    let trace = most_usual(&recordings);
    let points = trace.points();
    (row.instructions, row.points) = (trace.addresses.len(), points.len());
    (row.calls, row.addresses) = (trace.calls.len(), addresses.len());
    row.estimate = estimate(&mut scene, options.signal, trace, &points)?;
    if options.estimate {
        return Ok(());
    }
    let mut reached = HashSet::new();
    // What was delivered by where the victim was killed.
    let places = trace.places();
    let mut delivered: BTreeMap<usize, u64> = BTreeMap::new();
    let mut all: VecDeque<Point> = chosen(options, seed, points).into();
    // In a whole run also those instructions that were executed only now and then.
    let mut others: Vec<u64> = if options.is_whole() { addresses.iter().copied().collect() } else { Vec::new() };
    others.sort_unstable();
    while let Some(point) = all.pop_front().or_else(|| {
        others.retain(|address| !reached.contains(address));
        others.pop().map(Point::At)
    }) {
        row.wanted += 1;
        let mut result = strike(&mut scene, options, trace, point, row);
        if result.as_ref().is_ok_and(|outcome| outcome.took > SOON) {
            // Others use this machine, too; what is slow once and not again is their doing.
            let again = strike(&mut scene, options, trace, point, row);
            if again.as_ref().map_or(true, |again| again.took < result.as_ref().map_or(Duration::MAX, |first| first.took)) {
                result = again;
            }
        }
        let checked = result.and_then(|outcome| {
            row.took.push(outcome.took.as_nanos() as u64);
            reached.extend(outcome.address);
            row.missed += u64::from(outcome.reached != Reached::Point);
            if outcome.took > LATE {
                return Err(format!("the survivors went on only after {:?}", outcome.took));
            }
            // What was committed before some instruction is so before each that comes later. (One that is executed several times does not tell where it is.)
            if let Some(&Some(place)) = outcome.address.and_then(|address| places.get(&address)) {
                let wrong = delivered.iter().find(|&(&other, &count)| {
                    (other < place && count > outcome.delivered) || (other > place && count < outcome.delivered)
                });
                if let Some((other, count)) = wrong {
                    return Err(format!("{} messages were delivered, but {count} at instruction {other}", outcome.delivered));
                }
                delivered.insert(place, outcome.delivered);
            }
            if outcome.reached == Reached::End && outcome.delivered != operation.commits() {
                return Err(format!("the operation was over, but only {} messages were delivered", outcome.delivered));
            }
            Ok(())
        });
        if let Err(error) = checked {
            row.failures += 1;
            println!("FAILURE --signal {:?} --only {operation}:{kind}:{point}: {error}", options.signal);
            if row.failures >= MOST_FAILURES {
                return Err("too many failures; the rest is left out".to_owned());
            }
            // The survivors may be anywhere.
            scene = Scene::new(operation, kind)?;
        }
    }
    // The last one's place is free, too.
    scene.strike(Blow::Kill, trace, Point::After(0), true).map_err(|error| format!("after the last: {error}"))?;
    row.reached = reached.intersection(&addresses).count();
    if options.is_whole() {
        tell_never_hit(operation, kind, addresses.difference(&reached).copied().collect());
    }
    Ok(())
}

/// Says which instructions were executed in a recording and never again: those of the program by their offsets, for `addr2line`.
fn tell_never_hit(operation: Operation, kind: Kind, mut never: Vec<u64>) {
    never.sort_unstable();
    let (own, others): (Vec<u64>, Vec<u64>) = never.into_iter().partition(|address| process::own_text().contains(address));
    let own: Vec<String> = own.iter().map(|address| format!("{:#x}", address - process::own_text().start)).collect();
    if !own.is_empty() || !others.is_empty() {
        println!("{operation} {kind}: not hit: {} of libraries, {} of the program: {}", others.len(), own.len(), own.join(" "));
    }
}

/// The longest of those that make the same system calls in the same places as most do.
fn most_usual(recordings: &[Trace]) -> &Trace {
    let like = |trace: &Trace| recordings.iter().filter(|other| other.call_addresses().eq(trace.call_addresses())).count();
    recordings.iter().max_by_key(|trace| (like(trace), trace.addresses.len())).expect("some recordings")
}

/// Strikes victims until one is where it should be, or some have not been.
fn strike(scene: &mut Scene, options: &Options, trace: &Trace, point: Point, row: &mut Row) -> Result<Outcome, String> {
    let mut tries = 0;
    loop {
        let result = scene.strike(options.signal, trace, point, true);
        row.blows += 1;
        tries += 1;
        let most = if matches!(point, Point::At(_)) { TRIES_FOR_RARE } else { TRIES };
        if tries > most || result.as_ref().map_or(true, |outcome| outcome.reached == Reached::Point) {
            return result;
        }
    }
}

/// How long all points would take: a few of them are tried.
fn estimate(scene: &mut Scene, blow: Blow, trace: &Trace, points: &[Point]) -> Result<f64, String> {
    let begun = Instant::now();
    let tries = [points.len() / 4, points.len() / 2, points.len() * 3 / 4];
    for index in tries {
        scene.strike(blow, trace, points[index], false).map_err(|error| format!("at instruction {}: {error}", points[index]))?;
    }
    Ok(begun.elapsed().as_secs_f64() / tries.len() as f64 * points.len() as f64)
}

fn chosen(options: &Options, seed: u64, points: Vec<Point>) -> Vec<Point> {
    if let Some((_, _, point)) = options.only {
        return vec![point];
    }
    if let Some(every) = options.every {
        return points.into_iter().step_by(every.max(1)).collect();
    }
    let Some(sample) = options.sample.filter(|&sample| sample < points.len()) else { return points };
    let mut random = Random::new(seed);
    let mut chosen = points.clone();
    while chosen.len() > sample {
        chosen.remove(random.below(chosen.len() as u64) as usize);
    }
    chosen
}

fn print(rows: &[Row], options: &Options, took: Duration) {
    let mut table = Table::new();
    let blows = if options.signal == Blow::Kill { "kills" } else { "stops" };
    let header = [
        "operation",
        "kind",
        "instructions",
        "points",
        "calls",
        "addresses",
        "reached",
        blows,
        "missed",
        "failures",
        "p50",
        "p99",
        "max",
        "> 50 ms",
        "s",
        "all, s",
    ];
    table.set_header(header);
    for row in rows {
        let times = times(row.took.clone());
        let mut cells = vec![row.operation.clone(), row.kind.clone()];
        cells.extend([row.instructions, row.points, row.calls, row.addresses, row.reached].map(|count| count.to_string()));
        cells.extend([row.blows, row.missed, row.failures].map(|count| count.to_string()));
        cells.extend(times);
        cells.extend([row.seconds, row.estimate].map(|seconds| format!("{seconds:.1}")));
        table.add_row(cells);
    }
    println!("{table}");
    let sum = |count: fn(&Row) -> u64| rows.iter().map(count).sum::<u64>();
    let estimate: f64 = rows.iter().map(|row| row.estimate).sum();
    let [p50, p99, max, slow] = times(rows.iter().flat_map(|row| row.took.clone()).collect());
    println!(
        "{} instructions ({} points) of {} operations, {} {blows}, {} points missed, {} failures, in {:.0} s (all would take some {estimate:.0} s)",
        sum(|row| row.instructions as u64),
        sum(|row| row.points as u64),
        rows.len(),
        sum(|row| row.blows),
        sum(|row| row.missed),
        sum(|row| row.failures),
        took.as_secs_f64(),
    );
    println!("survivors went on after p50 {p50}, p99 {p99}, max {max}; above {SOON:?}: {slow}");
}

fn times(mut took: Vec<u64>) -> [String; 4] {
    took.sort_unstable();
    let at = |part: f64| {
        let index = ((took.len() as f64 * part) as usize).min(took.len().saturating_sub(1));
        took.get(index).map_or_else(|| "-".to_owned(), |&time| format!("{:.2?}", Duration::from_nanos(time)))
    };
    let slow = took.iter().filter(|&&time| time > SOON.as_nanos() as u64).count();
    [at(0.5), at(0.99), at(1.0), slow.to_string()]
}
