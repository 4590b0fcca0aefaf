//! How much memory a process holds.

use crate::Outcome;

/// Resident KiB of this process.
pub fn resident() -> Outcome<f64> {
    resident_of(std::process::id())
}

/// Resident KiB of a process, shared pages included.
pub fn resident_of(process: u32) -> Outcome<f64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.ok_or_else(|| format!("{path} does not say VmRSS"))?.parse()?)
}
