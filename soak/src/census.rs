//! What processes hold, seen from outside.

use std::fs;

/// What a process holds of ringbus and of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open file descriptors.
    pub fds: usize,
    /// Mappings of rings and pages.
    pub mappings: usize,
    /// Threads.
    pub threads: usize,
}

/// What that process holds.
pub fn holdings(pid: u32) -> Holdings {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    Holdings { fds: testing::fds_of(pid).len(), mappings: maps.lines().filter(|line| line.contains("memfd:")).count(), threads }
}

/// Kilobytes of memory that are its own.
pub fn resident_kib(pid: u32) -> u64 {
    number_after(&format!("/proc/{pid}/status"), "RssAnon:")
}

/// Kilobytes of shared memory in the whole machine.
pub fn shmem_kib() -> u64 {
    number_after("/proc/meminfo", "Shmem:")
}

fn number_after(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Nanoseconds that its threads were ready to run and had no core, since they began.
pub fn waited_for_core(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').nth(1)?.parse::<u64>().ok();
    tasks.filter_map(of).sum()
}

/// Whether it has ended and waits to be reaped.
pub fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Children of this process.
pub fn children() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}
