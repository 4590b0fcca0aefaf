//! Two processes, pinned to a core each, that run the same slice of work at the same time.
//!
//! The process that was started by cargo starts itself twice more, tells both ends through their stdin which slice is next, and sleeps until both have
//! answered on their stdout. So exactly two processes are busy. The driver runs on a thread of the first one and has nothing to do.

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use media_driver::EmbeddedDriver;
use ringbus::Address;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::raw;
use crate::wakeups::Bare;

const END: &str = "RINGBUS_BENCH_END";
const CORE: &str = "RINGBUS_BENCH_CORE";
const DRIVER: &str = "RINGBUS_BENCH_DRIVER";
const MEMORY: &str = "RINGBUS_BENCH_MEMORY";
const BELLS: &str = "RINGBUS_BENCH_BELLS";
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

impl End {
    pub fn other(self) -> Self {
        if self == Self::Left { Self::Right } else { Self::Left }
    }
}

/// What an end has to say of a slice.
#[derive(Debug, Clone)]
pub struct Measured {
    /// How many messages, or round trips. Both ends must count the same.
    pub messages: u64,
    /// What depends on the candidate; nothing from an end that does not measure.
    pub values: Vec<f64>,
}

impl Measured {
    /// Of an end that does not measure.
    pub fn count(messages: u64) -> Self {
        Self { messages, values: Vec::new() }
    }
}

impl From<(u64, f64)> for Measured {
    /// 0 is from an end that does not measure.
    fn from((messages, nanoseconds): (u64, f64)) -> Self {
        Self { messages, values: vec![nanoseconds] }
    }
}

/// What a candidate's slices have measured, by round.
#[derive(Debug, Clone, Default)]
pub struct Values(pub Vec<Vec<f64>>);

impl Values {
    /// One of them, in all rounds.
    pub fn all(&self, value: usize) -> Vec<f64> {
        self.0.iter().map(|values| values.get(value).copied().unwrap_or(f64::NAN)).collect()
    }

    /// Its median.
    pub fn median(&self, value: usize) -> f64 {
        median(&mut self.all(value))
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

/// For times of single messages.
pub fn histogram() -> Histogram<u64> {
    const LONGEST: u64 = 60_000_000_000;
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are good ones")
}

/// Median, 99th and 99.9th percentile.
pub fn quantiles(times: &Histogram<u64>) -> Vec<f64> {
    [0.5, 0.99, 0.999].map(|quantile| times.value_at_quantile(quantile) as f64).to_vec()
}

/// Does something while a thread of idle priority keeps the core from halting, which would be most of a wake-up.
pub fn awake<T>(work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    /// Also if the work panics: the scope would wait for ever.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: a plain structure of numbers.
            let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
            // SAFETY: the pointer is good for the call. Everybody may have it.
            assert_eq!(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) }, 0, "no idle priority");
            // Relaxed: nothing else is told by it.
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let _stop = Stop(&done);
        work()
    })
}

/// The two processes. They do not outlive this.
pub struct Ends {
    ends: [Running; 2],
    /// What they share besides the driver, which they open or inherit.
    _memory: OwnedFd,
    _bells: [OwnedFd; 2],
    _driver: EmbeddedDriver,
}

struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Ends {
    /// Starts both.
    pub fn start(cores: [usize; 2]) -> Result<Self, Box<dyn Error>> {
        let driver = EmbeddedDriver::launch()?;
        let memory = rustix::fs::memfd_create("raw", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, raw::MEMORY + Bare::MEMORY)?;
        let bells = [rustix::event::eventfd(0, EventfdFlags::empty())?, rustix::event::eventfd(0, EventfdFlags::empty())?];
        let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let start = |end: &str, core: usize| -> Result<Running, Box<dyn Error>> {
            let mut command = Command::new(env::current_exe()?);
            command.env(END, end).env(CORE, core.to_string()).env(DRIVER, driver.address().to_string()).env(MEMORY, &path);
            command.env(BELLS, format!("{} {}", bells[0].as_raw_fd(), bells[1].as_raw_fd()));
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let (input, output) = (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
            Ok(Running { child, input, output: BufReader::new(output) })
        };
        let ends = [start("left", cores[0])?, start("right", cores[1])?];
        Ok(Self { ends, _memory: memory, _bells: bells, _driver: driver })
    }

    /// Runs a slice at both ends, which know what the numbers of the order mean. Returns the values of both, added up.
    pub fn run(&mut self, order: &[usize], length: Duration) -> Result<Vec<f64>, Box<dyn Error>> {
        let order: String = order.iter().map(|number| format!("{number} ")).collect();
        for end in &mut self.ends {
            writeln!(end.input, "{order}{}", length.as_micros())?;
        }
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut answers = [None, None];
        while answers.iter().any(Option::is_none) {
            let ready = {
                // An end that has answered says nothing more, but hangs up if it dies.
                let mut fds =
                    [0, 1].map(|index| PollFd::from_borrowed_fd(self.ends[index].output.get_ref().as_fd(), PollFlags::IN));
                if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? == 0 {
                    return Err("the two processes are stuck".into());
                }
                fds.map(|fd| !fd.revents().is_empty())
            };
            for index in (0..2).filter(|&index| ready[index]) {
                answers[index] = Some(self.ends[index].answer()?);
            }
        }
        let [Some(left), Some(right)] = answers else { return Err("unreachable: both have answered".into()) };
        if left.messages != right.messages {
            return Err(format!("{} messages were sent, {} received", left.messages, right.messages).into());
        }
        let mut sums = vec![0.0; left.values.len().max(right.values.len())];
        for values in [left.values, right.values] {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(sums)
    }
}

impl Running {
    fn answer(&mut self) -> Result<Measured, Box<dyn Error>> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let messages = words.next().and_then(|word| word.parse().ok());
        let values = words.map(str::parse).collect::<Result<_, _>>().ok();
        let parsed = messages.zip(values).map(|(messages, values)| Measured { messages, values });
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
    /// And eventfds, one for each to be woken by.
    pub bells: [File; 2],
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
    let bells = env::var(BELLS)?;
    let (left, right) = bells.split_once(' ').ok_or("no bells")?;
    // SAFETY: the parent has left them open for us, and this is the only place that takes them.
    let bells = unsafe { [File::from_raw_fd(left.parse()?), File::from_raw_fd(right.parse()?)] };
    Ok(Some(Place { end, driver, memory, bells }))
}

/// Runs slices, as the parent says, until it hangs up.
pub fn serve(mut run: impl FnMut(&[usize], Duration) -> Result<Measured, String>) -> Result<(), Box<dyn Error>> {
    for line in std::io::stdin().lines() {
        let line = line?;
        let (order, microseconds) = line.rsplit_once(' ').ok_or("no such order")?;
        let order = order.split(' ').map(str::parse).collect::<Result<Vec<_>, _>>()?;
        let measured = run(&order, Duration::from_micros(microseconds.parse()?))?;
        let values: String = measured.values.iter().map(|value| format!(" {value}")).collect();
        println!("{}{values}", measured.messages);
    }
    Ok(())
}
