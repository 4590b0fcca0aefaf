//! Processes: made by `fork` alone, as `exec` and dynamic loading would cost milliseconds for each of a million kills; and looked at from outside.
//!
//! Whoever forks here has one thread and has never called ringbus, so that the child may do everything.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork};
use testing::Holdings;

/// How long anything may take before the harness gives up on it.
pub const PATIENCE: Duration = testing::PATIENCE;

/// Runs `play` in a child, which ends with it, and dies with us.
pub fn spawn(play: impl FnOnce()) -> Pid {
    let parent = nix::unistd::getpid();
    // SAFETY: this process has one thread.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // SAFETY: plain system calls.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if nix::unistd::getppid() != parent {
                std::process::exit(1);
            }
            let result = catch_unwind(AssertUnwindSafe(play));
            // SAFETY: ends the process without running what it shares with its parent, such as buffers of stdout.
            unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) }
        }
    }
}

/// Kills and reaps a child of ours.
pub fn end(pid: Pid) {
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    while nix::sys::wait::waitpid(pid, None) == Err(nix::errno::Errno::EINTR) {}
}

/// What a process holds.
pub fn holdings(pid: Pid) -> Holdings {
    Holdings::of(pid.as_raw() as u32)
}

/// All mappings of a process, heap and stacks among them.
pub fn mappings(pid: Pid) -> usize {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default().lines().count()
}

/// Resident memory of a process that is its own, in KiB.
pub fn resident(pid: Pid) -> u64 {
    testing::status_number(pid.as_raw() as u32, "RssAnon:")
}

/// All threads of a process.
pub fn threads(pid: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    entries.filter_map(|entry| Some(Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))).collect()
}

/// The state of a thread as one letter.
pub fn state(pid: Pid, thread: Pid) -> Option<char> {
    testing::state(format!("/proc/{pid}/task/{thread}").as_ref())
}

/// The system calls by which messages, room and events of a loop are waited for.
pub const DATA_WAITS: &[i64] = &[449 /* futex_waitv */, libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2];

/// Those and others in which a thread waits for others.
pub const WAITS: &[i64] = &[
    449,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
];

/// Whether a thread sleeps in one of these system calls.
pub fn is_asleep(pid: Pid, thread: Pid, calls: &[i64]) -> bool {
    if state(pid, thread) != Some('S') {
        return false;
    }
    let call = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall")).unwrap_or_default();
    call.split_whitespace().next().and_then(|number| number.parse().ok()).is_some_and(|number: i64| calls.contains(&number))
}

/// Waits for a state that sends no event.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        if Instant::now() >= deadline {
            return Err(format!("{what} did not happen within {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// Whether the process has a handler for that signal.
pub fn catches(pid: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
    caught.is_some_and(|caught| caught & 1 << (signal as i32 - 1) != 0)
}

/// Where the program itself is mapped, from its first byte to its last.
pub fn own_text() -> &'static std::ops::Range<u64> {
    static RANGE: std::sync::OnceLock<std::ops::Range<u64>> = std::sync::OnceLock::new();
    RANGE.get_or_init(|| {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("it is mounted");
        let program = std::fs::read_link("/proc/self/exe").expect("it is there");
        let ours = maps.lines().filter(|line| line.ends_with(&*program.to_string_lossy()));
        let number = |text: &str| u64::from_str_radix(text, 16).expect("a number");
        let ranges = ours.filter_map(|line| line.split_whitespace().next()?.split_once('-'));
        let (starts, ends): (Vec<u64>, Vec<u64>) = ranges.map(|(start, end)| (number(start), number(end))).unzip();
        starts.into_iter().min().unwrap_or(0)..ends.into_iter().max().unwrap_or(0)
    })
}
