//! Loom models of the rings and of the sleep protocol, in `tests/`, over the very code in `ringbus::ring` and `ringbus::wait`. This library is
//! what they share. See `README.md` for what is proved, within which bounds, and how to run it.
//!
//! Without `--cfg loom` there is nothing here.
#![cfg(loom)]

mod futex;
mod memory;

pub use futex::{Futex, sleep_unless, wake, wake_watched};
pub use memory::{Mapped, MpscMemory, SingleMemory};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Runs the model in every way it can go with at most that many preemptions of a thread that could have gone on, and says how many ways that were.
///
/// Switches at which a thread yields, sleeps or ends do not count, and neither do the values a load may return: those are all tried.
pub fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicU64::new(0));
    let counter = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    // So that a run by hand can go further: `LOOM_MAX_PREEMPTIONS` wins.
    builder.preemption_bound.get_or_insert(preemptions);
    let bound = builder.preemption_bound.unwrap_or(preemptions);
    let started = Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let name = std::thread::current().name().unwrap_or("model").to_owned();
    let executions = executions.load(Ordering::Relaxed);
    println!("{name}: bound {bound}, {executions} executions, {:.1} s", started.elapsed().as_secs_f64());
}

/// A payload of `length` bytes that says which message it is in every byte, so that one put together from two shows.
pub fn payload(message: u8, length: usize) -> Vec<u8> {
    vec![message; length]
}

/// Which message a payload is.
///
/// # Panics
///
/// When it is empty or torn.
pub fn message_of(payload: &[u8]) -> u8 {
    assert!(payload.iter().all(|&byte| byte == payload[0]), "torn: {payload:?}");
    payload[0]
}
