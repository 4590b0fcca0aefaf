//! The sleep protocol between two parties, and why no wake-up is lost.
//!
//! The kernel lets a process *wait* on a futex word it may only read, but not *wake* one. So each party owns both words that it writes: the
//! **sleep flag** says "I sleep", the **wake sequence** is what its peers sleep on.
//!
//! ```text
//! sleeper S                                  waker W
//! 1 read W's wake sequence: s                A commit (Release)
//! 2 flag := odd                              B light fence
//! 3 heavy fence                              C read S's flag: odd, and not woken for yet?
//! 4 look for work; found: go to 6            D wake sequence += 1
//! 5 wait while W's wake sequence = s         E futex_wake on it (or ring S's doorbell)
//! 6 flag := even
//! ```
//!
//! If C does not see 2, then by the fences 4 sees A, and S does not wait. If C does see it, D and E follow. Either 5 comes after
//! D, then the word is no longer s and the wait returns at once; or before, then S is queued when E comes. (1 before 2 matters: of a sequence read
//! after D only the work that came with D is known, by Acquire, and the wake-up for what comes next may be suppressed, as S was woken for that sleep
//! already. So 1 is an Acquire load, pairing with D's Release, and comes first.) "Not woken for yet" compares with the value remembered from the last wake, and each sleep has a
//! value of its own, so it suppresses only second wake-ups for the same sleep. A doorbell stays rung until it is heard, so for it D and 1 are not needed.
//!
//! A flag that stays odd because its owner died costs its peers one wake-up, once.
//!
//! **Many sleepers, one look.** A waker with many peers would load all their flags at C. Where they trust each other (see [`SleepPage`](crate::ring::layout::SleepPage)) each sleeper
//! adds one, between 2 and 3, to a *sleep count* that is common to the waker's peers, and C becomes: has the count changed since we last looked at the flags? The fences order that
//! as they order the flags; and who sees the count (Acquire) sees the flag that was raised before it (Release). A waker with one peer watches that one's flag in the same way.
//! Whoever becomes a peer may have been counted before, so the waker looks at all flags once whenever its peers change; and a sleeper that learns of a new waker in its last look is not
//! counted there, so it looks again instead.

use core::ptr::NonNull;

use super::fences::Fences;
use crate::ring::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::ring::layout::PartyLine;

/// How a party sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// On its peers' wake sequences.
    Futex,
    /// On its doorbells, in somebody's event loop.
    Doorbell,
}

const ASLEEP: u64 = 0b01;
const BY_DOORBELL: u64 = 0b10;

/// The sleeper's side: its own flag.
#[derive(Debug, Default)]
pub struct Sleeper {
    flag: u64,
}

impl Sleeper {
    /// A sleeper, awake, on a line that had another owner: its flag goes on from where it is.
    pub fn taking_over(line: &PartyLine) -> Self {
        let mut sleeper = Self { flag: line.sleep_flag.load(Ordering::Relaxed) };
        sleeper.awake(line);
        sleeper
    }

    /// Steps 2 and 3: from here on peers will wake us. What follows must be a last look. `counts`: the sleep counts of all peers that have one.
    pub fn fall_asleep<'a>(
        &mut self,
        line: &PartyLine,
        counts: impl IntoIterator<Item = &'a AtomicU64>,
        how: How,
        fences: Fences,
    ) {
        let mode = if how == How::Doorbell { ASLEEP | BY_DOORBELL } else { ASLEEP };
        self.flag = next_even(self.flag) | mode;
        // Relaxed: the fence below orders it before the look, and the counts are Release.
        line.sleep_flag.store(self.flag, Ordering::Relaxed);
        for count in counts {
            // Pairs with the Acquire in `Watch::needs_look`: who sees the count sees our flag.
            count.fetch_add(1, Ordering::Release);
        }
        fences.heavy();
    }

    /// Step 6. Does nothing when awake.
    pub fn awake(&mut self, line: &PartyLine) {
        if self.is_asleep() {
            self.flag = next_even(self.flag);
            // Relaxed: a waker who sees the old value merely wakes once too often.
            line.sleep_flag.store(self.flag, Ordering::Relaxed);
        }
    }

    /// Whether the flag is up.
    pub fn is_asleep(&self) -> bool {
        self.flag & ASLEEP != 0
    }
}

/// The next value that says "awake". Wraps only if somebody hostile had the line of an mpsc slot before us and left it at its end.
fn next_even(flag: u64) -> u64 {
    (flag | 0b11).wrapping_add(1)
}

/// Step 1: a peer's wake sequence, before the flag goes up.
pub fn value_of(wake_sequence: &AtomicU32) -> u32 {
    // Pairs with the Release in `bump`: who sees a bump sees what was committed before it.
    wake_sequence.load(Ordering::Acquire)
}

/// Step D: the word is no longer what any sleeper has read before. To be followed by E, the futex wake-up.
pub fn bump(word: &AtomicU32) {
    // Release: see `value_of`. The kernel orders this before its look at the queue: a sleeper is either queued by then or sees the new value.
    word.fetch_add(1, Ordering::Release);
}

/// Steps C to E for all peers, after the light fence: rings each doorbell that is slept on, and wakes all who sleep on the own wake sequence by
/// one call of `futex_wake`.
#[cold]
pub fn wake_sleepers<'a, D: 'a>(
    wake_sequence: &AtomicU32,
    peers: impl Iterator<Item = (&'a mut Peer, &'a D)>,
    ring: impl Fn(&D),
    futex_wake: impl FnOnce(&AtomicU32),
) {
    let mut by_futex = false;
    for (peer, doorbell) in peers {
        if peer.needs_wake() {
            match peer.remember() {
                How::Futex => by_futex = true,
                How::Doorbell => ring(doorbell),
            }
        }
    }
    if by_futex {
        bump(wake_sequence);
        futex_wake(wake_sequence);
    }
}

/// The waker's side: the one word that changes whenever any of its peers falls asleep, if there is one.
#[derive(Debug, Default)]
pub struct Watch {
    word: Option<NonNull<AtomicU64>>,
    /// What it was when we last looked at the flags.
    seen: u64,
}

// SAFETY: an atomic is loaded, from whatever thread.
unsafe impl Send for Watch {}

/// Neither an honest count nor an honest flag gets there; whose does it keeps itself asleep.
const NEVER_SEEN: u64 = u64::MAX;

impl Watch {
    /// Watches a word from here on: a sleep count, or the flag of the only peer. The flags have not been looked at.
    ///
    /// # Safety
    ///
    /// The word stays mapped until another is watched.
    pub unsafe fn set(&mut self, word: Option<NonNull<AtomicU64>>) {
        *self = Self { word, seen: NEVER_SEEN };
    }

    /// Step C, after [`Light::pass`](super::fences::Light::pass): whether the flags have to be looked at. It is not said again before somebody else falls asleep.
    #[inline(always)]
    pub fn needs_look(&mut self) -> bool {
        let Some(word) = self.word else { return true };
        // SAFETY: mapped (contract of `set`). Pairs with the Release in `fall_asleep`.
        let count = unsafe { word.as_ref() }.load(Ordering::Acquire);
        if count == self.seen {
            return false;
        }
        self.seen = count;
        true
    }
}

/// The waker's side: a peer that may sleep.
#[derive(Debug)]
pub struct Peer {
    line: NonNull<PartyLine>,
    woken_for: u64,
}

// SAFETY: only atomics of the line are used, from whatever thread.
unsafe impl Send for Peer {}

impl Peer {
    /// The peer with this line.
    ///
    /// # Safety
    ///
    /// `line` stays mapped as long as the peer lives.
    pub unsafe fn new(line: NonNull<PartyLine>) -> Self {
        Self { line, woken_for: 0 }
    }

    /// The peer's line.
    pub fn line(&self) -> &PartyLine {
        // SAFETY: mapped (contract of `new`), all atomics.
        unsafe { self.line.as_ref() }
    }

    /// Step C, after [`Light::pass`](super::fences::Light::pass): whether the peer's flag is up and nobody of us has woken it for that. Never true twice for the same sleep
    /// if the answer is followed by [`remember`](Self::remember).
    #[inline(always)]
    pub fn needs_wake(&self) -> bool {
        let flag = self.line().sleep_flag.load(Ordering::Relaxed);
        flag & ASLEEP != 0 && flag != self.woken_for
    }

    /// Remembers the flag and says how the peer sleeps. To be followed by D and E, or by its doorbell.
    pub fn remember(&mut self) -> How {
        self.woken_for = self.line().sleep_flag.load(Ordering::Relaxed);
        if self.woken_for & BY_DOORBELL != 0 { How::Doorbell } else { How::Futex }
    }

    /// Whether the peer said it can call `membarrier` and is reached by it.
    pub fn is_asymmetric_capable(&self) -> bool {
        self.line().asymmetric_fences.load(Ordering::Relaxed) == 1
    }
}
