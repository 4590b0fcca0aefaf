//! Which physical cores the machine's two cores are at the moment.
//!
//! A virtual machine's cores wander: now they share a physical core, now a cache, now neither, and what goes from one to the other takes a fifth or five times of what it took a
//! moment ago. What was measured in different regimes cannot be compared. So the time of a bare exchange of two cache lines is taken before and after each slice,
//! and a slice counts if both are what they are most of the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::harness::pin;

const EXCHANGES: u64 = 5000;
/// Probes to find out what is usual, and the pauses between them: three seconds.
const PROBES: u32 = 150;
const PAUSE: Duration = Duration::from_millis(20);
/// For so long it is waited for, then one takes what there is.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is usual: nanoseconds of an exchange.
#[derive(Debug, Clone, Copy)]
pub struct Regime {
    cores: [usize; 2],
    usual: f64,
}

impl Regime {
    /// Finds out what is usual.
    pub fn find(cores: [usize; 2]) -> Outcome<Self> {
        let mut probes = Vec::new();
        for _ in 0..PROBES {
            probes.push(exchange(cores)?);
            // What is asked is how it is over a time; there is no event to wait for.
            std::thread::sleep(PAUSE);
        }
        let alike = |probe: &f64| probes.iter().filter(|other| is_alike(**other, *probe)).count();
        let usual = probes.iter().copied().max_by_key(alike).unwrap_or_default();
        Ok(Self { cores, usual })
    }

    /// Nanoseconds that the exchange of two lines usually takes.
    pub fn usual(&self) -> f64 {
        self.usual
    }

    fn holds(&self) -> Outcome<bool> {
        Ok(is_alike(exchange(self.cores)?, self.usual))
    }

    /// Has `measure` measure in the usual regime. `false` with what it says if that could not be had.
    pub fn measure<T>(&self, mut measure: impl FnMut() -> T) -> Outcome<(T, bool)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let began = self.holds()?;
            if !began && Instant::now() < deadline {
                // Nobody tells when the hypervisor moves a core.
                std::thread::sleep(PAUSE);
                continue;
            }
            let measured = measure();
            let usual = began && self.holds()?;
            if usual || Instant::now() >= deadline {
                return Ok((measured, usual));
            }
        }
    }
}

fn is_alike(one: f64, other: f64) -> bool {
    (one - other).abs() < other / 4.0
}

#[repr(align(128))]
struct Line(AtomicU64);

/// Nanoseconds of an exchange of two lines.
fn exchange(cores: [usize; 2]) -> Outcome<f64> {
    let (there, back) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    let answer = || -> Outcome<()> {
        pin(cores[1])?;
        for number in 1..=EXCHANGES {
            wait(&there, number);
            back.0.store(number, Ordering::Release);
        }
        Ok(())
    };
    let ask = || -> Outcome<f64> {
        pin(cores[0])?;
        let mut started = Instant::now();
        for number in 1..=EXCHANGES {
            there.0.store(number, Ordering::Release);
            wait(&back, number);
            if number == EXCHANGES / 10 {
                started = Instant::now();
            }
        }
        Ok(started.elapsed().as_nanos() as f64 / (EXCHANGES - EXCHANGES / 10) as f64)
    };
    std::thread::scope(|scope| {
        let answering = scope.spawn(answer);
        let asking = scope.spawn(ask);
        answering.join().map_err(|_| "a thread has panicked")??;
        asking.join().map_err(|_| "a thread has panicked")?
    })
}

fn wait(line: &Line, number: u64) {
    while line.0.load(Ordering::Acquire) != number {
        core::hint::spin_loop();
    }
}
