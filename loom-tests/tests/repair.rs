//! Producers that die: `Consumer::repair` of `ringbus::ring::mpsc`.
//!
//! Loom cannot kill. A death is a producer that takes its steps no further: after the claim is confirmed, the real `Producer`, dropped (it does nothing when dropped);
//! before, [`Dying`], which takes the steps of `Producer::claim` by hand. The driver's word that it is dead is a flag, stored with `Release`
//! by the thread of the dead and loaded with `Acquire` by the consumer. All attempts are bounded, as in `mpsc.rs`.
#![cfg(loom)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, fence};
use loom::thread;
use loom_tests::{Mapped, MpscMemory, explore, message_of, payload};
use ringbus::ring::atomic::Ordering;
use ringbus::ring::layout::ClaimLine;
use ringbus::ring::mpsc::frame_length;
use ringbus::ring::mpsc::{Consumer, NO_CLAIM};

/// As in `ringbus::ring::mpsc`, which keeps them to itself.
const INTENT: u64 = 0b10;
const CONFIRMED: u64 = 0b11;

/// A producer in the middle of `Producer::claim`, by hand.
struct Dying {
    memory: Arc<MpscMemory>,
    slot: u8,
    frame: u64,
    start: u64,
}

impl Dying {
    fn new(memory: &Arc<MpscMemory>, slot: u8, length: u64) -> Self {
        let dying = Self { memory: memory.clone(), slot, frame: frame_length(length), start: 0 };
        dying.record().start.store(NO_CLAIM, Ordering::Release);
        dying
    }

    fn record(&self) -> &ClaimLine {
        &self.memory.control.producers[usize::from(self.slot)].claim
    }

    fn measure(&mut self) {
        self.record().length.store(self.frame, Ordering::Relaxed);
        self.start = self.memory.control.tail.tail.load(Ordering::Relaxed);
    }

    fn intend(&self) {
        self.record().start.store(self.start | INTENT, Ordering::Release);
    }

    /// Whether the CAS succeeded; else the next intent is for where the tail is now.
    fn exchange(&mut self) -> bool {
        let (start, end) = (self.start, self.start + self.frame);
        let outcome = self.memory.control.tail.tail.compare_exchange(start, end, Ordering::Release, Ordering::Relaxed);
        self.start = outcome.unwrap_or_else(|now| now);
        outcome.is_ok()
    }

    fn confirm(&self) {
        self.record().start.store(self.start | CONFIRMED, Ordering::Release);
        fence(Ordering::Release);
    }
}

/// How far the dead got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// The length is in the record, and nothing else.
    Measured,
    /// The intent, and nothing else.
    Intended,
    /// One CAS, which may have failed, and nothing after it.
    Exchanged,
    /// A CAS that succeeded, after others that may have failed.
    Claimed,
    /// The claim is confirmed.
    Confirmed,
    /// A word of the payload is written.
    Written,
    /// The header says so, but the record still names the claim.
    Committed,
    /// It was given up, and all is in order.
    Aborted,
}

/// Goes as far as that, with a payload of `length` bytes.
fn die(memory: &Arc<MpscMemory>, slot: u8, length: u64, death: Death) {
    let mut dying = Dying::new(memory, slot, length);
    match death {
        Death::Measured => dying.measure(),
        Death::Intended => {
            dying.measure();
            dying.intend();
        }
        Death::Exchanged => {
            dying.measure();
            dying.intend();
            dying.exchange();
        }
        Death::Claimed | Death::Confirmed => {
            dying.measure();
            dying.intend();
            while !dying.exchange() {
                dying.intend();
            }
            if death == Death::Confirmed {
                dying.confirm();
            }
        }
        Death::Written | Death::Committed | Death::Aborted => {
            let mut producer = memory.producer(slot);
            producer.claim(length as usize).unwrap();
            producer.write(0, &payload(0xDD, 8));
            if death == Death::Committed {
                producer.write(0, &payload(DEAD_MESSAGE, length as usize));
                dying.start = producer.commit(0) - dying.frame;
                // The record is cleared last; here it is put back instead, while nobody knows of the death yet.
                dying.confirm();
            } else if death == Death::Aborted {
                producer.abort();
            }
        }
    }
}

const DEAD_MESSAGE: u8 = 0xD0;

/// The consumer, what it learns of deaths, and what it got.
struct Sink {
    consumer: Mapped<Consumer, MpscMemory>,
    /// What the driver says of each slot.
    dead: [Arc<AtomicBool>; 3],
    told: [bool; 3],
    finished: Vec<u8>,
    got: [Vec<u8>; 3],
}

impl Sink {
    fn new(memory: &Arc<MpscMemory>) -> Self {
        let dead = std::array::from_fn(|_| Arc::new(AtomicBool::new(false)));
        Self { consumer: memory.consumer(), dead, told: [false; 3], finished: Vec::new(), got: Default::default() }
    }

    /// The driver's word on that slot.
    fn flag(&self, slot: usize) -> Arc<AtomicBool> {
        self.dead[slot].clone()
    }

    fn step(&mut self, mortal: &[u8]) {
        for &slot in mortal {
            if !self.told[usize::from(slot)] && self.dead[usize::from(slot)].load(Ordering::Acquire) {
                self.told[usize::from(slot)] = true;
                self.consumer.producer_gone(slot);
            }
        }
        match self.consumer.read().unwrap() {
            Some(frame) => {
                self.got[usize::from(frame.slot)].push(message_of(&self.consumer.payload(&frame)));
                self.consumer.advance(&frame);
            }
            None => drop(self.consumer.release(true).unwrap()),
        }
        self.finished.extend(self.consumer.take_finished());
    }

    /// Steps until all is read and all the dead are buried: which takes no more than a few.
    fn finish(&mut self, mortal: &[u8]) {
        for _ in 0..12 {
            self.step(mortal);
        }
        assert_eq!((self.consumer.lag(), self.consumer.read()), (0, Ok(None)));
        self.consumer.release(true).unwrap();
        self.finished.sort_unstable();
        assert_eq!(self.finished, mortal);
        assert!(self.consumer.memory().is_zero());
    }
}

/// One dies in slot 0, in its own thread; one lives in slot 1 and publishes two messages; the consumer looks meanwhile.
fn one_dies(death: Death) {
    let memory = MpscMemory::new(128);
    let mut sink = Sink::new(&memory);
    let mortal = thread::spawn({
        let (memory, dead) = (memory.clone(), sink.flag(0));
        move || {
            die(&memory, 0, 24, death);
            dead.store(true, Ordering::Release);
        }
    });
    let alive = thread::spawn({
        let mut producer = memory.producer(1);
        move || publish(&mut producer, &[11, 12])
    });
    for _ in 0..3 {
        sink.step(&[0]);
    }
    mortal.join().unwrap();
    alive.join().unwrap();
    sink.finish(&[0]);
    assert_eq!(sink.got[0], if death == Death::Committed { vec![DEAD_MESSAGE] } else { vec![] });
    assert_eq!(sink.got[1], [11, 12]);
    // The slot's next owner is none the worse for it.
    let mut heir = memory.producer(0);
    publish(&mut heir, &[1]);
    sink.step(&[]);
    assert_eq!(sink.got[0].last(), Some(&1));
}

fn publish(producer: &mut Mapped<ringbus::ring::mpsc::Producer, MpscMemory>, messages: &[u8]) {
    for &message in messages {
        producer.claim(8).unwrap();
        producer.write(0, &payload(message, 8));
        producer.commit(0);
    }
}

/// A death before the record names a claim: nothing to repair. Here and below: one dies, another publishes two messages, the consumer looks three times meanwhile; what was claimed
/// and not committed is skipped, nothing else is; the slot is free in the end and the ring zero; the slot's next owner publishes. Bound: 2 preemptions.
#[test]
fn a_death_before_the_intent_leaves_nothing() {
    explore(2, || one_dies(Death::Measured));
}

/// A death between intent and CAS: the record names a claim that is somebody else's, or nobody's. Bound: 2 preemptions.
#[test]
fn a_death_after_the_intent_claims_nothing() {
    explore(2, || one_dies(Death::Intended));
}

/// A death right after the first CAS, whether it succeeded or not: the record does not tell. Bound: 2 preemptions.
#[test]
fn a_death_after_a_cas_is_told_from_one_before() {
    explore(2, || one_dies(Death::Exchanged));
}

/// A death between the CAS that succeeded and its confirmation. Bound: 2 preemptions.
#[test]
fn a_death_before_the_confirmation_is_skipped() {
    explore(2, || one_dies(Death::Claimed));
}

/// A death after the confirmation and before the first payload byte. Bound: 2 preemptions.
#[test]
fn a_death_after_the_confirmation_is_skipped() {
    explore(2, || one_dies(Death::Confirmed));
}

/// A death in the middle of the payload. Bound: 2 preemptions.
#[test]
fn a_death_in_the_payload_is_skipped_and_zeroed() {
    explore(2, || one_dies(Death::Written));
}

/// A death after the commit, before the record is cleared: the message counts. Bound: 2 preemptions.
#[test]
fn a_death_after_the_commit_loses_nothing() {
    explore(2, || one_dies(Death::Committed));
}

/// A death after an abort. Bound: 2 preemptions.
#[test]
fn a_death_after_an_abort_is_skipped_once() {
    explore(2, || one_dies(Death::Aborted));
}

/// Two intend the same start and different lengths, in the given order of lengths; the one in `winner` does its CAS, then perhaps the other; both die then. All by one thread, so that both
/// records name the same start for sure; a third lives and publishes at any time, perhaps at that very start (then both CAS fail); the consumer looks meanwhile, and learns of the deaths
/// one by one.
fn two_die_at_the_same_start(lengths: [u64; 2], winner: usize, loser_tries: bool) {
    let memory = MpscMemory::new(128);
    let mut sink = Sink::new(&memory);
    let mortals = thread::spawn({
        let (memory, dead) = (memory.clone(), [sink.flag(0), sink.flag(1)]);
        move || {
            let mut mortals = [Dying::new(&memory, 0, lengths[0]), Dying::new(&memory, 1, lengths[1])];
            for mortal in &mut mortals {
                mortal.measure();
            }
            // The second has read the same tail.
            mortals[1].start = mortals[0].start;
            for mortal in &mortals {
                mortal.intend();
            }
            mortals[winner].exchange();
            if loser_tries {
                mortals[1 - winner].exchange();
            }
            dead[1 - winner].store(true, Ordering::Release);
            dead[winner].store(true, Ordering::Release);
        }
    });
    let alive = thread::spawn({
        let mut producer = memory.producer(2);
        move || publish(&mut producer, &[21])
    });
    for _ in 0..2 {
        sink.step(&[0, 1]);
    }
    mortals.join().unwrap();
    alive.join().unwrap();
    sink.finish(&[0, 1]);
    assert_eq!(sink.got, [vec![], vec![], vec![21]]);
}

/// The shorter one of two dead owned the claim. A third publishes one message and the consumer looks twice. Bound: 2 preemptions.
#[test]
fn of_two_dead_at_one_start_the_shorter_owned_it() {
    explore(2, || two_die_at_the_same_start([8, 24], 0, false));
}

/// The longer one did: the shorter one's end is inside the claim, and not a boundary. As above. Bound: 2 preemptions.
#[test]
fn of_two_dead_at_one_start_the_longer_owned_it() {
    explore(2, || two_die_at_the_same_start([8, 24], 1, true));
}

/// The dead that owned the claim had confirmed it and written payload, which at the end of the other dead's shorter intent looks like a header: what is confirmed goes first. A third publishes
/// one message and the consumer looks twice. Bound: 2 preemptions.
#[test]
fn of_two_dead_at_one_start_the_confirmed_owned_it() {
    explore(2, || {
        let memory = MpscMemory::new(128);
        let mut sink = Sink::new(&memory);
        let mortals = thread::spawn({
            let (memory, dead) = (memory.clone(), [sink.flag(0), sink.flag(1)]);
            move || {
                let mut shorter = Dying::new(&memory, 0, 8);
                shorter.measure();
                shorter.intend();
                let mut longer = memory.producer(1);
                longer.claim(24).unwrap();
                longer.write(0, &payload(0xDD, 24));
                dead[0].store(true, Ordering::Release);
                dead[1].store(true, Ordering::Release);
            }
        });
        let alive = thread::spawn({
            let mut producer = memory.producer(2);
            move || publish(&mut producer, &[21])
        });
        for _ in 0..2 {
            sink.step(&[0, 1]);
        }
        mortals.join().unwrap();
        alive.join().unwrap();
        sink.finish(&[0, 1]);
        assert_eq!(sink.got, [vec![], vec![], vec![21]]);
    });
}

/// Two in threads of their own die right after their first CAS, the one of 8 bytes and the other of 24, while a third publishes one message and the consumer looks once. Bound: 2 preemptions.
#[test]
fn two_die_each_in_its_own_time() {
    explore(2, || {
        let memory = MpscMemory::new(128);
        let mut sink = Sink::new(&memory);
        let mortal = |slot: u8, length| {
            let (memory, dead) = (memory.clone(), sink.flag(usize::from(slot)));
            thread::spawn(move || {
                die(&memory, slot, length, Death::Exchanged);
                dead.store(true, Ordering::Release);
            })
        };
        let mut threads = vec![mortal(0, 8), mortal(1, 24)];
        let mut producer = memory.producer(2);
        threads.push(thread::spawn(move || publish(&mut producer, &[21])));
        sink.step(&[0, 1]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        sink.finish(&[0, 1]);
        assert_eq!(sink.got, [vec![], vec![], vec![21]]);
    });
}

/// A claim that fails clears its record once more. Who sees that must see the header of the claim before it: somebody is gone, so the consumer goes by the records. Bound: 3 preemptions.
#[test]
fn a_claim_that_fails_hides_no_header() {
    explore(3, || {
        let memory = MpscMemory::new(64);
        let mut consumer = memory.consumer();
        consumer.producer_gone(0);
        let alive = thread::spawn({
            let mut producer = memory.producer(1);
            move || {
                assert!(producer.offer(0, &payload(1, 8)).is_ok());
                assert!(producer.claim(48).is_err());
            }
        });
        let mut got = None;
        for _ in 0..2 {
            got = got.or(consumer.read().unwrap());
        }
        alive.join().unwrap();
        got = got.or(consumer.read().unwrap());
        assert_eq!(got.map(|frame| message_of(&consumer.payload(&frame))), Some(1));
    });
}

/// A producer that comes while the consumer goes by the records: what leads from the word of its coming to its first claim is here the order of its own thread. Bound: 3 preemptions.
#[test]
fn a_newcomer_is_known_before_its_first_claim() {
    explore(3, || {
        let memory = MpscMemory::new(64);
        // None has a producer at first, but for the slot of one that is gone and has left nothing.
        let mut consumer = memory.consumer_of([0]);
        consumer.producer_gone(0);
        let taken = consumer.taken_slots().clone();
        let newcomer = thread::spawn({
            let mut producer = memory.producer(1);
            move || {
                taken.producer_comes(1);
                assert!(producer.offer(0, &payload(1, 8)).is_ok());
            }
        });
        let mut got = None;
        for _ in 0..2 {
            got = got.or(consumer.read().unwrap());
        }
        newcomer.join().unwrap();
        got = got.or(consumer.read().unwrap());
        assert_eq!(got.map(|frame| message_of(&consumer.payload(&frame))), Some(1));
    });
}

/// A slot's next producer inherits no intent: while it has not claimed anything yet, somebody else's death in the same place is not waited for. One thread, so one execution.
#[test]
fn an_intent_of_the_dead_is_not_that_of_the_next_in_its_slot() {
    explore(0, || {
        let memory = MpscMemory::new(64);
        let mut consumer = memory.consumer();
        let mut dying = Dying::new(&memory, 0, 8);
        dying.measure();
        dying.intend();
        consumer.producer_gone(0);
        assert_eq!(consumer.take_finished(), Some(0));
        consumer.taken_slots().producer_comes(0);
        assert!(memory.producer(1).claim(8).is_ok());
        consumer.producer_gone(1);
        assert_eq!((consumer.read(), consumer.take_finished()), (Ok(None), Some(1)));
    });
}
