//! Processes, as /proc shows them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{PATIENCE, until};

/// Its threads, as directories of /proc.
pub(crate) fn tasks(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// The state of a thread or process, by its directory in /proc, as one letter.
pub fn state(task: &Path) -> Option<char> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// How often it has gone to sleep.
pub(crate) fn switches(task: &Path) -> Option<u64> {
    number(task, "voluntary_ctxt_switches:")
}

fn number(task: &Path, name: &str) -> Option<u64> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A number of `/proc/PID/status`, by its name with the colon. Memory comes in KiB; `RssAnon:` is that which is the process's own.
#[track_caller]
pub fn status_number(pid: u32, name: &str) -> u64 {
    number(&PathBuf::from(format!("/proc/{pid}")), name).unwrap_or_else(|| panic!("process {pid} has no {name}"))
}

/// Tells, asked again and again, whether the thread sleeps and has stayed asleep for a moment.
pub(crate) fn sleeps(task: &Path) -> impl FnMut() -> bool {
    let mut last = None;
    let mut same = 0;
    move || {
        let seen = (state(task), switches(task));
        same = if last == Some(seen) && seen.0 == Some('S') { same + 1 } else { 0 };
        last = Some(seen);
        same >= 3
    }
}

/// Waits until the thread sleeps and stays asleep for a moment.
#[track_caller]
pub fn wait_asleep(task: &Path) {
    until("falling asleep", sleeps(task));
}

/// A process's open file descriptors, by what they are.
pub fn fds_of(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there");
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// What a process holds of ringbus and of the kernel. One that is gone holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open file descriptors.
    pub fds: usize,
    /// Mappings of memfds: rings and pages.
    pub mappings: usize,
    /// Threads.
    pub threads: usize,
}

impl Holdings {
    /// What that process holds.
    pub fn of(pid: u32) -> Self {
        let entries = |what| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let mappings = maps.lines().filter(|line| line.contains("/memfd:")).count();
        Self { fds: entries("fd"), mappings, threads: entries("task") }
    }

    /// What this process holds.
    pub fn own() -> Self {
        Self::of(std::process::id())
    }

    /// Waits until this process holds what it held then. A thread that was joined stays in /proc for a moment.
    #[track_caller]
    pub fn wait_for_return(self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::own();
            if now == self {
                return;
            }
            assert!(Instant::now() < deadline, "{now:?}, not {self:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What could outlive our processes: files in /dev/shm that bear our name, as others come and go there, and System V objects by table, key and id.
pub fn outliving() -> BTreeSet<String> {
    let files =
        fs::read_dir("/dev/shm").into_iter().flatten().flatten().map(|file| file.file_name().to_string_lossy().into_owned());
    let mut left: BTreeSet<String> = files.filter(|name| name.contains("ringbus")).collect();
    for table in ["shm", "sem", "msg"] {
        let text = fs::read_to_string(format!("/proc/sysvipc/{table}")).unwrap_or_default();
        let objects = text.lines().skip(1).map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
        left.extend(objects.map(|object| format!("{table} {object}")));
    }
    left
}
