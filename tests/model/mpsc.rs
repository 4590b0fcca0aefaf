//! The ring of many producers beside a model that is a queue of claims. A producer may die with its claim: the consumer skips it, once it knows.

use std::collections::VecDeque;

use ringbus::ring::layout::MpscControl;
use ringbus::ring::mpsc::frame_length;
use ringbus::ring::mpsc::{Consumer, Producer, max_payload};
use ringbus::ring::{ClaimError, Frame};

use super::memory::GuardedRing;
use super::operation::{CAPACITY, Operation, PARTIES, payload};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Committed,
    Aborted,
}

/// A claim, not yet passed by the consumer.
#[derive(Debug, Clone, Copy)]
struct Claimed {
    /// Which of all claims it is.
    number: u64,
    party: usize,
    start: u64,
    length: usize,
    state: State,
}

/// Where a producer's slot is in its life.
enum Slot {
    Free,
    Alive(Producer),
    /// Dead, and the consumer does not know.
    Dead,
    /// The consumer knows, and is done with it as soon as it is there.
    Buried(u64),
}

/// The ring and its model.
pub struct Mpsc {
    // The ends first: they may not outlive the memory.
    consumer: Consumer,
    slots: [Slot; PARTIES],
    ring: GuardedRing,
    claims: VecDeque<Claimed>,
    claimed: u64,
    tail: u64,
    position: u64,
    published: u64,
}

impl Mpsc {
    /// A new ring without producers.
    pub fn new() -> Self {
        let ring = GuardedRing::new::<MpscControl>(CAPACITY);
        // SAFETY: the consumer goes before the memory, and is the only one.
        let consumer = unsafe { Consumer::new(ring.control(), ring.region()) };
        let slots = std::array::from_fn(|_| Slot::Free);
        Self { consumer, slots, ring, claims: VecDeque::new(), claimed: 0, tail: 0, position: 0, published: 0 }
    }

    /// Does it to the ring and to the model.
    pub fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Offer { party, length, times } => (0..times).for_each(|_| {
                self.claim(party, length);
                self.finish(party, State::Committed);
            }),
            Operation::Claim { party, length } => self.claim(party, length),
            Operation::Commit { party } => self.finish(party, State::Committed),
            Operation::Abort { party } => self.finish(party, State::Aborted),
            Operation::HasRoom { party, length } => {
                let expected = self.room(length);
                let Slot::Alive(producer) = &mut self.slots[party] else { return };
                assert_eq!(producer.has_room(length), expected);
            }
            Operation::Poll { limit, .. } => self.poll(limit),
            Operation::Peek { .. } => self.peek(),
            Operation::Release { all, .. } => self.release(all),
            Operation::Join { party } => {
                if let Slot::Free = self.slots[party] {
                    self.consumer.taken_slots().producer_comes(party as u8);
                    // SAFETY: the producer goes before the memory; one a slot.
                    let producer = unsafe { Producer::new(self.ring.control(), self.ring.region(), party as u8) };
                    self.slots[party] = Slot::Alive(producer);
                }
            }
            Operation::Leave { party } => {
                if let Slot::Alive(_) = self.slots[party] {
                    // A `Producer` does nothing when it is dropped.
                    self.slots[party] = Slot::Dead;
                }
            }
            Operation::Bury => self.bury(),
        }
        assert_eq!(self.consumer.position(), self.position);
        assert_eq!(self.consumer.lag(), self.tail - self.position);
    }

    /// What the model says of a claim.
    fn room(&self, length: usize) -> Result<(), ClaimError> {
        let max = max_payload(CAPACITY);
        if length as u64 > max {
            return Err(ClaimError::TooLong { max });
        }
        let fits = self.tail + frame_length(length as u64) <= self.published + CAPACITY;
        if fits { Ok(()) } else { Err(ClaimError::BackPressured) }
    }

    fn open(&mut self, party: usize) -> Option<&mut Claimed> {
        self.claims.iter_mut().find(|claim| claim.party == party && claim.state == State::Open)
    }

    fn claim(&mut self, party: usize, length: usize) {
        let expected = self.room(length);
        let Slot::Alive(producer) = &mut self.slots[party] else { return };
        assert_eq!(producer.claim(length), expected);
        let number = self.claimed;
        if expected.is_ok() {
            let bytes = payload(number, length);
            let (front, back) = bytes.split_at(length / 2);
            producer.payload()[..front.len()].copy_from_slice(front);
            producer.write(front.len(), back);
            assert_eq!(producer.claimed(), bytes);
        }
        assert!(!producer.take_withdrawn(), "nobody else claims at the same time");
        // Whoever claims anew has given up what he had, unless it could not have been claimed at all.
        if !matches!(expected, Err(ClaimError::TooLong { .. }))
            && let Some(forgotten) = self.open(party)
        {
            forgotten.state = State::Aborted;
        }
        if expected.is_ok() {
            self.claims.push_back(Claimed { number, party, start: self.tail, length, state: State::Open });
            self.claimed += 1;
            self.tail += frame_length(length as u64);
        }
    }

    fn finish(&mut self, party: usize, state: State) {
        let Slot::Alive(_) = self.slots[party] else { return };
        let open = self.open(party).map(|claim| {
            claim.state = state;
            *claim
        });
        let Slot::Alive(producer) = &mut self.slots[party] else { return };
        if state == State::Aborted {
            return producer.abort();
        }
        let before = producer.position();
        let end = open.map_or(before, |claim| claim.start + frame_length(claim.length as u64));
        assert_eq!(producer.commit(open.map_or(0, |claim| claim.number) as u16), end);
    }

    /// The claim at the consumer's position, if the consumer can do anything with it.
    fn head(&self) -> Option<Claimed> {
        let full = self.position - self.published >= CAPACITY;
        let head = *self.claims.front().filter(|_| !full)?;
        let is_owned_by_the_dead = matches!(self.slots[head.party], Slot::Buried(_));
        (head.state != State::Open || is_owned_by_the_dead).then_some(head)
    }

    fn pass(&mut self) {
        if let Some(claim) = self.claims.pop_front() {
            self.position = claim.start + frame_length(claim.length as u64);
        }
    }

    fn read(&mut self) -> Option<Frame> {
        let found = self.consumer.read().expect("everybody keeps to the protocol");
        while self.head().is_some_and(|claim| claim.state != State::Committed) {
            self.pass();
        }
        let head = self.head();
        let expected = head.map(|claim| Frame {
            position: claim.start,
            length: claim.length as u32,
            tag: claim.number as u16,
            slot: claim.party as u8,
            next: claim.start + frame_length(claim.length as u64),
        });
        assert_eq!(found, expected);
        if let (Some(frame), Some(claim)) = (found, head) {
            let bytes = self.ring.read(self.consumer.payload(&frame), frame.length);
            assert_eq!(bytes, payload(claim.number, claim.length));
        }
        found
    }

    fn poll(&mut self, limit: usize) {
        for _ in 0..limit {
            match self.read() {
                Some(frame) => {
                    self.consumer.advance(&frame);
                    self.pass();
                    self.release(false);
                }
                None => return self.release(true),
            }
        }
    }

    fn peek(&mut self) {
        assert_eq!(self.consumer.ready(), self.head().is_some());
        let next = self.read();
        assert_eq!(self.read(), next, "it stays the next");
    }

    fn release(&mut self, all: bool) {
        let moved = self.position - self.published;
        let tells = moved > 0 && (all || moved >= CAPACITY / 8);
        assert_eq!(self.consumer.release(all), Ok(tells));
        if tells {
            self.published = self.position;
        }
        assert!(self.ring.is_zero(self.tail, self.published + CAPACITY), "what nobody has claimed is not zero");
    }

    /// The consumer learns of all deaths, and says with whom it is done.
    fn bury(&mut self) {
        for (party, slot) in self.slots.iter_mut().enumerate() {
            if let Slot::Dead = slot {
                self.consumer.producer_gone(party as u8);
                *slot = Slot::Buried(self.tail);
            }
        }
        while let Some(party) = self.consumer.take_finished() {
            let slot = &mut self.slots[usize::from(party)];
            assert!(matches!(slot, Slot::Buried(end) if *end <= self.position), "slot {party} is not done with");
            *slot = Slot::Free;
        }
        let done = |slot: &Slot| matches!(slot, Slot::Buried(end) if *end <= self.position);
        assert!(!self.slots.iter().any(done), "a slot was not given back");
    }
}
