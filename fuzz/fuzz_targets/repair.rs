//! The repair of an mpsc ring whose producers died. Either the claim records, headers and tail are anything: then each look makes progress, or waits, or says that the ring is
//! corrupt. Or they are the work of producers that keep to the protocol and die at any step of it, in any order: then every committed message comes, once and in
//! the order of the claims, all else is skipped, nobody who lives is, and what is given back is zero.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringbus::ring::atomic::Ordering;
use ringbus::ring::frame::{aborted, committed};
use ringbus::ring::mpsc::frame_length;
use ringbus::ring::layout::{ClaimLine, MpscControl};
use ringbus::ring::mpsc::{Consumer, NO_CLAIM, Producer};
use ringbus_fuzz::memory::GuardedRing;
use ringbus_fuzz::operation::{CAPACITY, payload};

#[derive(Debug, Arbitrary)]
enum Input {
    /// Whatever.
    Anything { tail: u16, records: Vec<Record>, headers: Vec<(u16, u64)>, gone: Vec<u8>, looks: Vec<Look> },
    /// What producers do that keep to the protocol, and how they die.
    History { events: Vec<Happening> },
}

#[derive(Debug, Arbitrary)]
struct Record {
    slot: u8,
    eighths: u16,
    /// Intent, confirmed, or neither.
    bits: u8,
    length: u16,
    skewed: bool,
}

#[derive(Debug, Arbitrary)]
enum Look {
    Read,
    Ready,
    Release,
    Finished,
    Gone(u8),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Happening {
    /// A producer takes its next step towards a claim of that length, or away from it.
    Step {
        slot: u8,
        length: u8,
        abort: bool,
    },
    /// The same with a longer frame.
    Long {
        slot: u8,
        length: u16,
    },
    /// It does all of it, with the code that ships.
    Offer {
        slot: u8,
        length: u8,
    },
    Die {
        slot: u8,
    },
    /// The driver says so.
    Tell {
        slot: u8,
    },
    Read {
        times: u8,
    },
    Release,
    Finished,
}

fuzz_target!(|input: Input| match input {
    Input::Anything { tail, records, headers, gone, looks } => look_at_anything(tail, &records, &headers, &gone, &looks),
    Input::History { events } => {
        let mut history = History::new();
        events.into_iter().for_each(|event| history.apply(event));
        history.finish();
    }
});

fn look_at_anything(tail: u16, records: &[Record], headers: &[(u16, u64)], gone: &[u8], looks: &[Look]) {
    let ring = GuardedRing::new::<MpscControl>(CAPACITY);
    // SAFETY: mapped until the end of this function, all atomics.
    let control = unsafe { ring.control::<MpscControl>().as_ref() };
    // SAFETY: the memory outlives the consumer.
    let mut consumer = unsafe { Consumer::new(ring.control(), ring.region()) };
    // The others' records say nothing.
    (0..128).for_each(|slot| consumer.taken_slots().producer_comes(slot));
    control.tail.tail.store(u64::from(tail), Ordering::Relaxed);
    for record in records {
        let line = &control.producers[usize::from(record.slot)].claim;
        line.start.store(u64::from(record.eighths) * 8 | u64::from(record.bits & 3), Ordering::Relaxed);
        let length = u64::from(record.length);
        // Now and then such that it would wrap.
        line.length.store(if record.skewed { length.wrapping_neg() } else { length }, Ordering::Relaxed);
    }
    headers.iter().for_each(|&(at, word)| ring.word(u64::from(at) * 8).store(word, Ordering::Relaxed));
    gone.iter().for_each(|&slot| consumer.producer_gone(slot));
    let mut published = 0;
    for look in looks {
        let before = consumer.position();
        match look {
            Look::Read => match consumer.read() {
                Ok(Some(frame)) => {
                    drop(ring.read(consumer.payload(&frame), frame.length));
                    consumer.advance(&frame);
                }
                Ok(None) => assert!(consumer.position() - published <= CAPACITY),
                Err(_) => return,
            },
            Look::Ready => {
                let _ = consumer.ready();
                assert_eq!(consumer.position(), before, "only a look");
            }
            Look::Release => match consumer.release(true) {
                Ok(_) => {
                    assert!(ring.is_zero(published, consumer.position()));
                    published = consumer.position();
                }
                Err(_) => return,
            },
            Look::Finished => drop(consumer.take_finished()),
            Look::Gone(slot) => consumer.producer_gone(*slot),
        }
        assert!(consumer.position() >= before);
    }
}

/// As in `ringbus::ring::mpsc`, which keeps them to itself.
const INTENT: u64 = 0b10;
const CONFIRMED: u64 = 0b11;
const SLOTS: usize = 5;

/// How far a producer is. The steps are those of `Producer::claim` and `Producer::finish`, a store, load or CAS each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Idle,
    /// The length is in the record and the tail was read; the position that has room is known.
    Measured {
        start: u64,
    },
    /// The intent is in the record.
    Intended {
        start: u64,
    },
    /// The CAS succeeded.
    Claimed {
        claim: usize,
    },
    Confirmed {
        claim: usize,
    },
    /// Some of the payload is written.
    Written {
        claim: usize,
    },
    /// The header is; the record is not cleared yet.
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Dead,
    /// The consumer knows.
    Told,
}

struct Party {
    at: At,
    life: Life,
    length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Open,
    Committed,
    Aborted,
}

/// A claim, in the order of the CAS on the tail.
struct Claim {
    slot: usize,
    start: u64,
    length: usize,
    outcome: Outcome,
}

struct History {
    // Before the memory.
    consumer: Consumer,
    ring: GuardedRing,
    parties: [Party; SLOTS],
    claims: Vec<Claim>,
    /// Claims that the consumer has passed.
    passed: usize,
    published: u64,
}

impl History {
    fn new() -> Self {
        let ring = GuardedRing::new::<MpscControl>(CAPACITY);
        // SAFETY: the consumer goes before the memory.
        let consumer = unsafe { Consumer::new(ring.control(), ring.region()) };
        (0..SLOTS as u8).for_each(|slot| consumer.taken_slots().producer_comes(slot));
        let parties = std::array::from_fn(|_| Party { at: At::Idle, life: Life::Alive, length: 0 });
        Self { consumer, ring, parties, claims: Vec::new(), passed: 0, published: 0 }
    }

    fn control(&self) -> &MpscControl {
        // SAFETY: mapped as long as `self`, all atomics.
        unsafe { self.ring.control::<MpscControl>().as_ref() }
    }

    fn record(&self, slot: usize) -> &ClaimLine {
        &self.control().producers[slot].claim
    }

    fn tail(&self) -> u64 {
        self.control().tail.tail.load(Ordering::Relaxed)
    }

    fn apply(&mut self, event: Happening) {
        let slot = |slot: u8| usize::from(slot) % SLOTS;
        match event {
            Happening::Step { slot: party, length, abort } => self.step(slot(party), usize::from(length), abort),
            Happening::Long { slot: party, length } => {
                self.step(slot(party), usize::from(length) % (CAPACITY as usize - 15), false)
            }
            Happening::Offer { slot: party, length } => self.offer(slot(party), usize::from(length)),
            Happening::Die { slot: party } => {
                let party = &mut self.parties[slot(party)];
                if party.life == Life::Alive {
                    party.life = Life::Dead;
                }
            }
            Happening::Tell { slot: party } => self.tell(slot(party)),
            Happening::Read { times } => (0..times).for_each(|_| {
                let _ = self.read();
            }),
            Happening::Release => self.release(),
            Happening::Finished => self.take_finished(),
        }
    }

    /// Whether a frame of the party's length fits behind `start`; if not, it gives up.
    fn measured(&mut self, slot: usize, start: u64) -> At {
        let end = start + frame_length(self.parties[slot].length as u64);
        if end <= self.control().consumer.position.load(Ordering::Acquire) + CAPACITY {
            return At::Measured { start };
        }
        self.record(slot).start.store(NO_CLAIM, Ordering::Release);
        At::Idle
    }

    fn step(&mut self, slot: usize, length: usize, abort: bool) {
        if self.parties[slot].life != Life::Alive {
            return;
        }
        let frame = frame_length(self.parties[slot].length as u64);
        self.parties[slot].at = match self.parties[slot].at {
            At::Idle => {
                self.parties[slot].length = length;
                self.record(slot).length.store(frame_length(length as u64), Ordering::Relaxed);
                self.measured(slot, self.tail())
            }
            At::Measured { start } => {
                self.record(slot).start.store(start | INTENT, Ordering::Release);
                At::Intended { start }
            }
            At::Intended { start } => {
                let tail = &self.control().tail.tail;
                match tail.compare_exchange(start, start + frame, Ordering::Release, Ordering::Relaxed) {
                    Ok(_) => {
                        let length = self.parties[slot].length;
                        self.claims.push(Claim { slot, start, length, outcome: Outcome::Open });
                        At::Claimed { claim: self.claims.len() - 1 }
                    }
                    Err(now) => self.measured(slot, now),
                }
            }
            At::Claimed { claim } => {
                self.record(slot).start.store(self.claims[claim].start | CONFIRMED, Ordering::Release);
                At::Confirmed { claim }
            }
            At::Confirmed { claim } => {
                self.write(claim);
                At::Written { claim }
            }
            At::Written { claim } => {
                let Claim { start, length, .. } = self.claims[claim];
                let (outcome, header) = match abort {
                    true => (Outcome::Aborted, aborted(length as u32)),
                    false => (Outcome::Committed, committed(length as u32, claim as u16, slot as u8)),
                };
                self.claims[claim].outcome = outcome;
                self.ring.word(start).store(header, Ordering::Release);
                At::Finished
            }
            At::Finished => {
                self.record(slot).start.store(NO_CLAIM, Ordering::Release);
                At::Idle
            }
        };
    }

    /// Writes the payload, words of ones for what is behind it up to the frame's end.
    fn write(&self, claim: usize) {
        let Claim { start, length, .. } = self.claims[claim];
        let mut bytes = payload(claim as u64, length);
        bytes.resize(length.next_multiple_of(8), 0);
        for (position, word) in (start + 8..).step_by(8).zip(bytes.as_chunks::<8>().0) {
            self.ring.word(position).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
    }

    fn offer(&mut self, slot: usize, length: usize) {
        if self.parties[slot].life != Life::Alive || self.parties[slot].at != At::Idle {
            return;
        }
        // SAFETY: it does not outlive this call; the slot is idle.
        let mut producer = unsafe { Producer::new(self.ring.control(), self.ring.region(), slot as u8) };
        let (claim, start) = (self.claims.len(), self.tail());
        let fits = start + frame_length(length as u64) <= self.published + CAPACITY;
        let outcome = producer.offer(claim as u16, &payload(claim as u64, length));
        assert_eq!(outcome.is_ok(), fits);
        if fits {
            self.claims.push(Claim { slot, start, length, outcome: Outcome::Committed });
        }
    }

    fn tell(&mut self, slot: usize) {
        if self.parties[slot].life == Life::Dead {
            self.parties[slot].life = Life::Told;
            self.consumer.producer_gone(slot as u8);
        }
    }

    /// Reads once. `true` if a message came.
    fn read(&mut self) -> bool {
        let found = self.consumer.read().expect("everybody keeps to the protocol");
        // Whatever lies before the position it has come to must have been skipped for a reason.
        let position = self.consumer.position();
        while let Some(claim) = self.claims.get(self.passed).filter(|claim| claim.start < position) {
            let skipped = claim.outcome == Outcome::Aborted
                || (claim.outcome == Outcome::Open && self.parties[claim.slot].life == Life::Told);
            assert!(skipped, "claim {} was skipped", self.passed);
            self.passed += 1;
        }
        assert!(self.claims.get(self.passed).is_none_or(|claim| claim.start == position), "not at a claim's start");
        let full = position - self.published >= CAPACITY;
        let next = self.claims.get(self.passed).filter(|_| !full);
        let Some(frame) = found else {
            // It waits: for a producer who lives, or whose end it does not know.
            let waits = |claim: &Claim| claim.outcome == Outcome::Open && self.may_decide(claim);
            assert!(next.is_none_or(waits), "claim {} is held back", self.passed);
            return false;
        };
        let claim = next.expect("a message that was claimed");
        assert_eq!(claim.outcome, Outcome::Committed);
        assert_eq!((frame.length as usize, frame.tag, usize::from(frame.slot)), (claim.length, self.passed as u16, claim.slot));
        let bytes = self.ring.read(self.consumer.payload(&frame), frame.length);
        assert_eq!(bytes, payload(self.passed as u64, claim.length));
        self.consumer.advance(&frame);
        self.passed += 1;
        true
    }

    /// Whether somebody whose end the consumer does not know has a record where the claim starts: its owner, or one who has yet to notice that he is not.
    fn may_decide(&self, claim: &Claim) -> bool {
        (0..SLOTS).any(|slot| {
            let start = self.record(slot).start.load(Ordering::Relaxed);
            self.parties[slot].life != Life::Told && start != NO_CLAIM && start & !CONFIRMED == claim.start
        })
    }

    fn release(&mut self) {
        self.consumer.release(true).expect("everybody keeps to the protocol");
        self.published = self.consumer.position();
        assert!(self.ring.is_zero(self.tail(), self.published + CAPACITY), "what nobody has claimed is not zero");
    }

    /// Slots that the consumer is done with go to new producers.
    fn take_finished(&mut self) {
        while let Some(slot) = self.consumer.take_finished() {
            let slot = usize::from(slot);
            assert_eq!(self.parties[slot].life, Life::Told);
            let position = self.consumer.position();
            assert!(self.claims.iter().all(|claim| claim.slot != slot || claim.start < position), "slot {slot} has a claim left");
            assert_eq!(self.record(slot).start.load(Ordering::Relaxed), NO_CLAIM);
            self.parties[slot] = Party { at: At::Idle, life: Life::Alive, length: 0 };
            self.consumer.taken_slots().producer_comes(slot as u8);
        }
    }

    /// Those who live finish, the consumer learns of all deaths: then everything has come or is skipped.
    fn finish(mut self) {
        for slot in 0..SLOTS {
            self.tell(slot);
            while self.parties[slot].life == Life::Alive && self.parties[slot].at != At::Idle {
                self.step(slot, 0, false);
            }
        }
        while self.read() {}
        self.release();
        while self.read() {}
        self.release();
        assert_eq!(self.passed, self.claims.len(), "not all that was claimed has been passed");
        assert_eq!(self.consumer.position(), self.tail());
        assert!(self.ring.is_zero(0, CAPACITY));
        self.take_finished();
        assert!(self.parties.iter().all(|party| party.life == Life::Alive), "a slot was not given back");
    }
}
