//! What processes hold, seen from outside.

use std::fs;

/// Kilobytes of shared memory in the whole machine.
pub fn shmem_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Shmem:"));
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
    testing::state(format!("/proc/{pid}").as_ref()).is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// Children of this process.
pub fn children() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}
