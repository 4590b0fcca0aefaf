//! Two processes, pinned to a core each, that run the same slice of work at the same time.
//!
//! The process that was started by cargo starts itself twice more, tells both ends through their stdin which slice is next, and sleeps until both have
//! answered on their stdout. So exactly two processes are busy. The driver runs on a thread of the first one and has nothing to do.

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ringbus::Address;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const END: &str = "RINGBUS_BENCH_END";
const CORE: &str = "RINGBUS_BENCH_CORE";
const DRIVER: &str = "RINGBUS_BENCH_DRIVER";
const MEMORY: &str = "RINGBUS_BENCH_MEMORY";
/// More than any slice takes, unless something is wrong: much more, as others may use the same cores.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Publishes the stream; begins round trips.
    Left,
    /// Receives the stream; answers round trips.
    Right,
}

/// What an end has to say of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// How many messages, or round trips. Both ends must count the same.
    pub messages: u64,
    /// Of time per message or round trip; 0 from the end that does not measure.
    pub nanoseconds: f64,
}

impl From<(u64, f64)> for Measured {
    fn from((messages, nanoseconds): (u64, f64)) -> Self {
        Self { messages, nanoseconds }
    }
}

/// The cores this process may use.
pub fn cores() -> rustix::io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect())
}

/// Time of a round trip in nanoseconds: the median of batches, so that the clock is not part of it. It warms up for a tenth of `length` and measures for
/// `length`. The very last round trip is told so, and does not count.
pub fn median_of_batches(length: Duration, mut round_trip: impl FnMut(bool) -> Result<(), String>) -> Result<f64, String> {
    const BATCH: u32 = 32;
    // Where one takes as long as this the clock does not matter, and on a crowded machine a batch could take for ever.
    const SLOW: f64 = 10_000.0;
    let start = Instant::now();
    let (warm, end) = (start + length / 10, start + length / 10 + length);
    let mut times = Vec::new();
    let (mut before, mut batch) = (start, 1);
    while before < end || times.is_empty() {
        for _ in 0..batch {
            round_trip(false)?;
        }
        let now = Instant::now();
        let time = (now - before).as_nanos() as f64 / f64::from(batch);
        if before >= warm {
            times.push(time);
        }
        batch = if time < SLOW { BATCH } else { 1 };
        before = now;
    }
    round_trip(true)?;
    Ok(median(&mut times))
}

/// The median; `values` must not be empty.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The two processes. They do not outlive this.
pub struct Ends([Running; 2]);

struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Ends {
    /// Starts both. `memory` is what they share besides the driver.
    pub fn start(driver: &Address, memory: &impl AsRawFd, cores: [usize; 2]) -> Result<Self, Box<dyn Error>> {
        let memory = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let start = |end: &str, core: usize| -> Result<Running, Box<dyn Error>> {
            let mut command = Command::new(env::current_exe()?);
            command.env(END, end).env(CORE, core.to_string()).env(DRIVER, driver.to_string()).env(MEMORY, &memory);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let (input, output) = (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
            Ok(Running { child, input, output: BufReader::new(output) })
        };
        Ok(Self([start("left", cores[0])?, start("right", cores[1])?]))
    }

    /// Runs a slice at both ends. Returns how many nanoseconds a message took.
    pub fn run(&mut self, slice: usize, length: Duration) -> Result<f64, Box<dyn Error>> {
        for end in &mut self.0 {
            writeln!(end.input, "{slice} {}", length.as_micros())?;
        }
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut answers = [None; 2];
        while answers.iter().any(Option::is_none) {
            let ready = {
                // An end that has answered says nothing more, but hangs up if it dies.
                let mut fds = [0, 1].map(|index| PollFd::from_borrowed_fd(self.0[index].output.get_ref().as_fd(), PollFlags::IN));
                if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? == 0 {
                    return Err("the two processes are stuck".into());
                }
                fds.map(|fd| !fd.revents().is_empty())
            };
            for index in (0..2).filter(|&index| ready[index]) {
                answers[index] = Some(self.0[index].answer()?);
            }
        }
        let [Some(left), Some(right)] = answers else { return Err("unreachable: both have answered".into()) };
        if left.messages != right.messages {
            return Err(format!("{} messages were sent, {} received", left.messages, right.messages).into());
        }
        Ok(left.nanoseconds + right.nanoseconds)
    }
}

impl Running {
    fn answer(&mut self) -> Result<Measured, Box<dyn Error>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let parsed = line.trim_end().split_once(' ');
        let parsed = parsed
            .and_then(|(messages, time)| Some(Measured { messages: messages.parse().ok()?, nanoseconds: time.parse().ok()? }));
        // It has said itself why.
        parsed.ok_or_else(|| "one of the two processes has failed".into())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where an end finds itself.
pub struct Place {
    /// Which it is.
    pub end: End,
    /// Where the driver listens.
    pub driver: Address,
    /// What both ends share besides.
    pub memory: File,
}

/// Pins this process if it is one of the two; `None` if it is the one that was started by cargo.
pub fn place() -> Result<Option<Place>, Box<dyn Error>> {
    let end = match env::var(END).as_deref() {
        Ok("left") => End::Left,
        Ok("right") => End::Right,
        _ => return Ok(None),
    };
    // Nobody wants us if the parent dies, not even by `kill -9`.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut core = CpuSet::new();
    core.set(env::var(CORE)?.parse()?);
    sched_setaffinity(None, &core)?;
    let driver = Address::from(std::path::PathBuf::from(env::var(DRIVER)?));
    let memory = File::options().read(true).write(true).open(env::var(MEMORY)?)?;
    Ok(Some(Place { end, driver, memory }))
}

/// Runs slices, as the parent says, until it hangs up.
pub fn serve(mut run: impl FnMut(usize, Duration) -> Result<Measured, String>) -> Result<(), Box<dyn Error>> {
    for line in std::io::stdin().lines() {
        let line = line?;
        let (slice, microseconds) = line.split_once(' ').ok_or("no such order")?;
        let measured = run(slice.parse()?, Duration::from_micros(microseconds.parse()?))?;
        println!("{} {}", measured.messages, measured.nanoseconds);
    }
    Ok(())
}
