//! The processes of a slice: the two ends, each pinned to a core, the driver if the transport has one, and company on the cores if there is to be any.
//!
//! All are started for the slice and gone after it, so nobody else is there to disturb it; so is all they have in common, which is in a directory of the slice.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Outcome;

/// Within this time both ends find each other, and whatever else is asked for comes, unless something is wrong: much more than needed, as others may use the same
/// cores.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum End {
    /// Publishes the stream; begins round trips.
    Left,
    /// Receives the stream; answers round trips.
    Right,
}

/// What an end has to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Order {
    /// Index among all candidates
    #[arg(long)]
    pub candidate: usize,
    /// Which end this is
    #[arg(long)]
    pub end: End,
    /// The cores of both ends
    #[arg(long, num_args = 2)]
    pub cores: Vec<usize>,
    /// What the ends share
    #[arg(long)]
    pub directory: PathBuf,
    /// How long to run before measuring
    #[arg(long, value_parser = microseconds)]
    pub warm: Duration,
    /// How long to measure
    #[arg(long, value_parser = microseconds)]
    pub length: Duration,
    /// The driver's process id
    #[arg(long)]
    pub driver: Option<u32>,
}

fn microseconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_micros)
}

/// What an end has to say of a slice.
#[derive(Debug, Clone)]
pub struct Measured {
    /// How many messages, or round trips. Both ends must count the same.
    pub messages: u64,
    /// Depends on the work; nothing from an end that does not measure.
    pub values: Vec<f64>,
}

/// Who takes part in a slice.
pub struct Cast {
    /// Index among all candidates.
    pub candidate: usize,
    /// The arguments with which this program becomes the driver, if there is one.
    pub driver: Option<&'static str>,
    /// One process only: it plays both ends.
    pub alone: bool,
    /// Who else is there.
    pub company: Company,
}

/// Who runs on the same cores besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// Nobody.
    Nobody,
    /// A spinning process on each core that runs only when nobody else wants to, and keeps it from halting.
    Spinners,
    /// A process on each core that wants all of it.
    Hogs,
}

/// The cores this process may use.
pub fn cores() -> Outcome<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect())
}

/// Confines the calling thread.
pub fn pin(core: usize) -> Outcome<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores).map_err(|error| format!("cannot run on core {core}: {error}"))?)
}

/// Nobody wants this process if its parent dies, not even by `kill -9`.
pub fn die_with_parent() -> Outcome<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Runs a slice. Returns the values of both ends, added up.
pub fn run(cast: &Cast, cores: [usize; 2], warm: Duration, length: Duration) -> Outcome<Vec<f64>> {
    let directory = Directory::create(cast.candidate)?;
    let mut company = Vec::new();
    for core in cores.into_iter().filter(|_| cast.company != Company::Nobody) {
        let idle: &[&str] = if cast.company == Company::Spinners { &["--idle"] } else { &[] };
        company.push(Running::start("spin", &[&["--core", &core.to_string()], idle].concat())?);
    }
    let driver = cast.driver.map(|name| -> Outcome<_> {
        let mut driver = Running::start(name, &["--directory", directory.text()?])?;
        driver.wait_until_it_says_something().map_err(|error| format!("{name}: {error}"))?;
        Ok(driver)
    });
    let driver = driver.transpose()?;

    let mut ends = Vec::new();
    for end in if cast.alone { &["left"][..] } else { &["left", "right"] } {
        let [candidate, warm, length] =
            [cast.candidate.to_string(), warm.as_micros().to_string(), length.as_micros().to_string()];
        let [left, right] = cores.map(|core| core.to_string());
        let pid = driver.as_ref().map(|driver| driver.child.id().to_string());
        let mut arguments = vec!["--candidate", &candidate, "--end", end, "--cores", &left, &right];
        arguments.extend(["--directory", directory.text()?, "--warm", &warm, "--length", &length]);
        arguments.extend(pid.iter().flat_map(|pid| ["--driver", pid]));
        ends.push(Running::start("end", &arguments)?);
    }
    let measured = collect(&mut ends, Instant::now() + 2 * PATIENCE + warm + length)?;
    if measured.iter().any(|end| end.messages != measured[0].messages) {
        return Err(format!("the ends do not agree on how many messages there were: {measured:?}").into());
    }
    let mut sums: Vec<f64> = Vec::new();
    for values in measured.into_iter().map(|end| end.values) {
        sums.resize(sums.len().max(values.len()), 0.0);
        sums.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
    }
    Ok(sums)
}

/// Waits until all have said what they have measured, and have ended.
fn collect(ends: &mut [Running], deadline: Instant) -> Outcome<Vec<Measured>> {
    while ends.iter().any(|end| end.open) {
        let ready = {
            let open: Vec<usize> = (0..ends.len()).filter(|&index| ends[index].open).collect();
            let mut fds: Vec<_> =
                open.iter().map(|&index| PollFd::from_borrowed_fd(ends[index].output.as_fd(), PollFlags::IN)).collect();
            wait_for(&mut fds, deadline)?;
            open.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(index, _)| index).collect::<Vec<_>>()
        };
        for index in ready {
            ends[index].read()?;
        }
    }
    ends.iter().map(Running::measured).collect()
}

fn wait_for(fds: &mut [PollFd<'_>], deadline: Instant) -> Outcome<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    match rustix::io::retry_on_intr(|| poll(fds, Some(&timeout)))? {
        0 => Err("the processes are stuck".into()),
        _ => Ok(()),
    }
}

/// A process of ours. It does not outlive this.
struct Running {
    child: Child,
    output: ChildStdout,
    said: String,
    open: bool,
}

impl Running {
    /// Starts this program in another role.
    fn start(role: &str, arguments: &[&str]) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let command = command.arg(role).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("cannot start `{role}`: {error}"))?;
        let output = child.stdout.take().ok_or("no stdout")?;
        Ok(Self { child, output, said: String::new(), open: true })
    }

    fn wait_until_it_says_something(&mut self) -> Outcome<()> {
        wait_for(&mut [PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::IN)], Instant::now() + PATIENCE)?;
        self.read()
    }

    /// Reads what there is; at the end looks how it ended.
    fn read(&mut self) -> Outcome<()> {
        let mut bytes = [0; 4096];
        let length = self.output.read(&mut bytes)?;
        self.said.push_str(&String::from_utf8_lossy(&bytes[..length]));
        if length == 0 {
            self.open = false;
            let status = self.child.wait()?;
            if !status.success() {
                // It has said itself why.
                return Err(format!("a process has failed: {status}").into());
            }
        }
        Ok(())
    }

    fn measured(&self) -> Outcome<Measured> {
        let wrong = || format!("an end has said {:?}", self.said);
        let mut words = self.said.split_whitespace();
        let messages = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
        let values = words.map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
        Ok(Measured { messages, values })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the processes of a slice meet. It is gone with all that is in it when this is dropped; and so is what is beside it under a longer name, where iceoryx2
/// has its memory, some of which it leaves behind.
struct Directory(PathBuf);

/// Where the pages of a file are memory, and nothing else.
const MEMORY: &str = "/dev/shm";

impl Directory {
    fn create(slice: usize) -> Outcome<Self> {
        let path = Path::new(MEMORY).join(format!("ringbus-peers-{}-{slice}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        Ok(Self(path))
    }

    fn remove(&self) -> Outcome<()> {
        fs::remove_dir_all(&self.0)?;
        let beside = format!("{}_", self.text()?);
        for entry in fs::read_dir(MEMORY)? {
            let path = entry?.path();
            if path.to_str().is_some_and(|path| path.starts_with(&beside)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn text(&self) -> Outcome<&str> {
        Ok(self.0.to_str().ok_or("a path that is no text")?)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("cannot remove {} and what is beside it: {error}", self.0.display());
        }
    }
}

/// Says the outcome to the process that gave the order.
pub fn answer(measured: &Measured) {
    let values: String = measured.values.iter().map(|value| format!(" {value}")).collect();
    println!("{}{values}", measured.messages);
}

/// Waits for what the other end makes, as long as there is patience.
pub fn patiently<T>(what: &str, mut look: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().map_err(|error| format!("cannot {what}: {error}"))? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(format!("cannot {what}: the other end does not come").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Spins on a core; `idle`: whenever nobody else wants it.
pub fn spin(core: usize, idle: bool) -> Outcome<()> {
    die_with_parent()?;
    pin(core)?;
    // SAFETY: a plain structure of numbers.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is good for the call.
    if idle && unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) } != 0 {
        return Err(format!("cannot run at idle priority: {}", std::io::Error::last_os_error()).into());
    }
    loop {
        // A hog does not tell processor and hypervisor that it only waits.
        if idle { core::hint::spin_loop() } else { core::hint::black_box(()) }
    }
}
