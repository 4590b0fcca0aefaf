//! What to do while there is nothing to do.
//!
//! Going to sleep and being woken costs some microseconds (some tens, where idle cores halt), spinning costs a core. The default, [`Idle::Adaptive`], spins for about as
//! long as a wake-up costs if spinning has paid of late, then sleeps.

use std::time::{Duration, Instant};

use crossbeam_utils::Backoff;

/// How a publication or subscription waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Idle {
    /// Never gives the core away. Lowest latency; burns a core.
    BusySpin,
    /// Spins a little, then lets other threads of the core run between looks. Never sleeps.
    Yielding,
    /// Spins, then yields, then naps for growing times up to the given one. Latency up to that; no wake-ups needed.
    BackOff {
        /// Longest nap.
        longest: Duration,
    },
    /// Sleeps at once, until woken.
    Parking,
    /// Spins as long as it pays, then sleeps until woken.
    #[default]
    Adaptive,
}

/// What to do next, according to a strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look again (the pause or yield has happened).
    Again,
    /// Sleep until woken, or for this long at most.
    Sleep(Option<Duration>),
}

/// A strategy at work: one for each place that waits.
///
/// For loops of one's own around [`poll`](crate::Subscription::poll):
///
/// ```
/// use ringbus::wait::idle::{Idle, Idler};
/// let mut idler = Idler::new(Idle::BackOff { longest: std::time::Duration::from_millis(1) });
/// for work in [3, 0, 0, 1] {
///     idler.idle(work); // resets when there was work, else pauses a little longer each time
/// }
/// ```
#[derive(Debug)]
pub struct Idler {
    strategy: Idle,
    /// Looks without result in this wait.
    looks: u32,
    nap: Duration,
    started: Option<Instant>,
    /// How long to spin before sleeping, learnt from how waits ended.
    spin: Duration,
    /// How long in this wait.
    budget: Duration,
    /// Waits that ended asleep since the last long try.
    sleeps: u32,
    involuntary_switches: u64,
    backoff: Backoff,
}

/// About what it costs to sleep and be woken on a machine whose cores do not halt, several times over.
const LONGEST_SPIN: Duration = Duration::from_micros(50);
/// Where spinning has not paid for long.
const SHORTEST_SPIN: Duration = Duration::from_micros(2);
/// Two parties that both sleep make each other slow, and so find that spinning does not pay. So now and then one tries for as long as it takes a sleeping peer to wake up
/// (longer where idle cores halt) and answer; if that succeeds it spins from then on, and so the peer will find that spinning pays.
const TRY_SPIN: Duration = Duration::from_micros(200);
const SLEEPS_PER_TRY: u32 = 64;
const FIRST_NAP: Duration = Duration::from_micros(1);
/// Reading the clock costs about as much as this many thorough looks.
const LOOKS_PER_CLOCK: u32 = 2;

impl Idler {
    /// The strategy, at its start.
    pub fn new(strategy: Idle) -> Self {
        let alone = online_cores() == 1;
        Self {
            strategy,
            looks: 0,
            nap: FIRST_NAP,
            started: None,
            // With one core, whoever spins keeps the peer from doing what is waited for.
            spin: if alone { Duration::ZERO } else { LONGEST_SPIN },
            budget: if alone { Duration::ZERO } else { LONGEST_SPIN },
            sleeps: 0,
            involuntary_switches: 0,
            backoff: Backoff::new(),
        }
    }

    /// The strategy.
    pub fn strategy(&self) -> Idle {
        self.strategy
    }

    /// To be called after each round of one's own loop, with what it got done. [`Idle::Parking`] and [`Idle::Adaptive`] nap here for up to a millisecond, as nobody
    /// can wake this loop; [`recv`](crate::Subscription::recv) does better.
    pub fn idle(&mut self, work: usize) {
        if work > 0 {
            return self.done();
        }
        if let Step::Sleep(longest) = self.step() {
            let nap = longest.unwrap_or(Duration::from_millis(1));
            std::thread::sleep(nap);
        }
    }

    /// Whether the strategy spins now: if so the caller does, for a few quick looks between two [steps](Self::step).
    pub(crate) fn spins(&mut self) -> bool {
        // Only steps are counted, as only they look at the clock; but the wait has begun.
        self.looks = self.looks.max(1);
        self.is_spinning()
    }

    /// Whether it pays to spin for some microseconds before anything else is looked after, the clock above all.
    pub(crate) fn expects_soon(&self) -> bool {
        self.is_spinning() && (self.strategy == Idle::BusySpin || self.budget > SHORTEST_SPIN)
    }

    /// The same as [`spins`](Self::spins), before the wait has begun.
    pub(crate) fn is_spinning(&self) -> bool {
        match self.strategy {
            Idle::BusySpin => true,
            Idle::Adaptive => !self.budget.is_zero(),
            Idle::Yielding | Idle::BackOff { .. } | Idle::Parking => false,
        }
    }

    /// One more look was in vain.
    pub(crate) fn step(&mut self) -> Step {
        self.looks = self.looks.saturating_add(1);
        match self.strategy {
            Idle::BusySpin => core::hint::spin_loop(),
            Idle::Yielding => self.backoff.snooze(),
            Idle::Parking => return Step::Sleep(None),
            Idle::BackOff { longest } => {
                if self.backoff.is_completed() {
                    let nap = self.nap.min(longest);
                    self.nap = (self.nap * 2).min(longest);
                    return Step::Sleep(Some(nap));
                }
                self.backoff.snooze();
            }
            Idle::Adaptive => {
                if self.budget.is_zero() || (self.looks.is_multiple_of(LOOKS_PER_CLOCK) && self.has_spun_enough()) {
                    return Step::Sleep(None);
                }
                core::hint::spin_loop();
            }
        }
        Step::Again
    }

    fn has_spun_enough(&mut self) -> bool {
        let Some(started) = self.started else {
            self.started = Some(Instant::now());
            return false;
        };
        if started.elapsed() < self.budget {
            return false;
        }
        // In vain. If the kernel took the core away since we last asked, there are more who want it than cores, and spinning starves the one we wait for. Asked
        // only here, before a sleep, because it is a system call.
        let switches = involuntary_switches();
        let crowded = switches != std::mem::replace(&mut self.involuntary_switches, switches);
        self.spin = if crowded { SHORTEST_SPIN } else { (self.spin / 2).max(SHORTEST_SPIN) };
        // What is left of this wait is slept.
        self.budget = Duration::ZERO;
        true
    }

    /// The wait is over.
    pub(crate) fn done(&mut self) {
        if self.looks == 0 {
            return;
        }
        if !self.spin.is_zero() {
            let spun = !self.budget.is_zero();
            self.sleeps = if spun { 0 } else { self.sleeps + 1 };
            if spun {
                self.spin = LONGEST_SPIN;
            }
            self.budget = if self.sleeps >= SLEEPS_PER_TRY { TRY_SPIN } else { self.spin };
            if self.sleeps >= SLEEPS_PER_TRY {
                self.sleeps = 0;
            }
        }
        self.started = None;
        self.looks = 0;
        self.nap = FIRST_NAP;
        self.backoff.reset();
    }
}

/// Cores of the machine: not those this thread may use, as a party that is pinned to one has its peer on another.
fn online_cores() -> i64 {
    static CORES: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    // SAFETY: a question without arguments in memory.
    *CORES.get_or_init(|| unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) })
}

/// How often the kernel has taken the core away from this thread.
fn involuntary_switches() -> u64 {
    // SAFETY: `rusage` is plain data that the call fills; RUSAGE_THREAD and the pointer are valid.
    unsafe {
        let mut usage: libc::rusage = core::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage.ru_nivcsw as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parking_sleeps_at_once_and_busy_spin_never() {
        assert_eq!(Idler::new(Idle::Parking).step(), Step::Sleep(None));
        let mut spinner = Idler::new(Idle::BusySpin);
        assert!((0..100_000).all(|_| spinner.step() == Step::Again));
    }

    #[test]
    fn back_off_naps_longer_and_longer_up_to_its_limit() {
        let longest = Duration::from_micros(8);
        let mut idler = Idler::new(Idle::BackOff { longest });
        let naps: Vec<_> =
            (0..1000).filter_map(|_| if let Step::Sleep(Some(nap)) = idler.step() { Some(nap) } else { None }).collect();
        assert_eq!(naps[..4], [1, 2, 4, 8].map(Duration::from_micros));
        assert!(naps[4..].iter().all(|&nap| nap == longest));
        idler.done();
        assert_eq!(idler.step(), Step::Again);
    }

    /// Steps until it sleeps, and says how often it looked.
    fn looks_before_sleep(idler: &mut Idler) -> u32 {
        while idler.step() == Step::Again {}
        idler.looks
    }

    #[test]
    fn adaptive_sleeps_in_the_end_and_spins_less_and_less_if_that_is_in_vain() {
        let mut idler = Idler::new(Idle::Adaptive);
        for _ in 0..10 {
            looks_before_sleep(&mut idler);
            // What is left of a wait is slept, however often it is woken for nothing.
            assert_eq!(idler.step(), Step::Sleep(None));
            idler.done();
        }
        assert_eq!(idler.spin, SHORTEST_SPIN);
    }

    /// Found by review: something that is no message came while it spun, and from then on it never looked at the clock again.
    #[test]
    fn adaptive_sleeps_in_the_end_also_if_spinning_was_interrupted() {
        for interruptions in 0..4 {
            let mut idler = Idler::new(Idle::Adaptive);
            for _ in 0..interruptions {
                assert!(idler.spins());
            }
            let deadline = Instant::now() + Duration::from_secs(30);
            while idler.spins() && idler.step() == Step::Again {
                assert!(Instant::now() < deadline, "it spins for ever");
            }
        }
    }

    #[test]
    fn adaptive_finds_out_when_spinning_pays_again() {
        let mut idler = Idler::new(Idle::Adaptive);
        let mut tries = 0;
        for _ in 0..10 + 2 * SLEEPS_PER_TRY {
            tries += u32::from(idler.budget == TRY_SPIN);
            looks_before_sleep(&mut idler);
            idler.done();
        }
        assert!(tries >= 2, "it tries now and then");
        assert_eq!(idler.step(), Step::Again);
        idler.done();
        assert_eq!((idler.spin, idler.budget), (LONGEST_SPIN, LONGEST_SPIN), "something came while it was spinning");
    }
}
