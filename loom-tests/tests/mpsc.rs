//! The ring of many producers, all of them alive: `ringbus::ring::mpsc`.
//!
//! Three threads that spin would never be done (loom explores unfair schedules, too), so each makes a bounded number of attempts, and what is left is done
//! when they have met: every prefix of the protocol is explored, and nothing may be missing in the end.
#![cfg(loom)]

use loom::thread;
use loom_tests::{Mapped, MpscMemory, explore, message_of, payload};
use ringbus::ring::ClaimError;
use ringbus::ring::mpsc::{Consumer, Producer};

/// A producer and what it has yet to do. `None` is a claim to be aborted.
struct Work {
    producer: Mapped<Producer, MpscMemory>,
    left: Vec<(Option<u8>, usize)>,
}

impl Work {
    fn new(producer: Mapped<Producer, MpscMemory>, work: &[(Option<u8>, usize)]) -> Self {
        Self { producer, left: work.iter().copied().rev().collect() }
    }

    /// Makes one attempt at the next claim.
    fn step(&mut self) {
        let Some(&(message, length)) = self.left.last() else { return };
        match self.producer.claim(length) {
            Ok(()) => self.left.pop(),
            Err(ClaimError::BackPressured) => return,
            Err(error) => panic!("{error:?}"),
        };
        // An abort, too, has written something that the consumer must zero.
        self.producer.write(0, &payload(message.unwrap_or(0xFF), length));
        match message {
            Some(message) => drop(self.producer.commit(u16::from(message))),
            None => self.producer.abort(),
        }
    }
}

/// The consumer, and what it has got, by producer.
struct Sink {
    consumer: Mapped<Consumer, MpscMemory>,
    got: [Vec<u8>; 3],
}

impl Sink {
    /// Reads a message if there is one. After every other, and if there is none, all is given back.
    fn step(&mut self) {
        match self.consumer.read().unwrap() {
            Some(frame) => {
                let message = message_of(&self.consumer.payload(&frame));
                assert_eq!(frame.tag, u16::from(message));
                self.got[usize::from(frame.slot)].push(message);
                self.consumer.advance(&frame);
                if self.got.iter().map(Vec::len).sum::<usize>().is_multiple_of(2) {
                    self.consumer.release(true).unwrap();
                }
            }
            None => drop(self.consumer.release(true).unwrap()),
        }
    }
}

/// Starts the producers, looks so many times meanwhile, and finishes what is left. `prefill` messages of 8 bytes of the first producer are there at the start.
fn run(capacity: u64, work: &'static [&'static [(Option<u8>, usize)]], prefill: u8, looks: usize) {
    let memory = MpscMemory::new(capacity);
    let mut sink = Sink { consumer: memory.consumer(), got: Default::default() };
    let mut workers: Vec<_> = (0..).zip(work).map(|(slot, work)| Work::new(memory.producer(slot), work)).collect();
    for message in 1..=prefill {
        workers[0].left.push((Some(message), 8));
        workers[0].step();
    }
    let threads: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            thread::spawn(move || {
                for _ in 0..worker.left.len() {
                    worker.step();
                }
                worker
            })
        })
        .collect();
    for _ in 0..looks {
        sink.step();
    }
    let mut workers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    while workers.iter().any(|worker| !worker.left.is_empty()) || sink.consumer.lag() > 0 {
        workers.iter_mut().for_each(Work::step);
        sink.step();
    }
    sink.consumer.release(true).unwrap();
    assert!(memory.is_zero());
    for (slot, work) in work.iter().enumerate() {
        let prefilled = 1..=if slot == 0 { prefill } else { 0 };
        let expected: Vec<u8> = prefilled.chain(work.iter().filter_map(|&(message, _)| message)).collect();
        assert_eq!(sink.got[slot], expected);
    }
}

/// Two producers, two messages each, and the consumer: nothing is lost or doubled, each producer's messages come in its order and whole.
/// Bound: 3 preemptions, four looks.
#[test]
fn two_producers_keep_their_order() {
    explore(3, || run(64, &[&[(Some(11), 8), (Some(12), 8)], &[(Some(21), 8), (Some(22), 8)]], 0, 4));
}

/// As above, where one aborts between and the other first, with frames of different lengths. Bound: 2 preemptions, four looks.
#[test]
fn aborted_claims_are_skipped() {
    explore(2, || run(128, &[&[(Some(11), 8), (None, 16), (Some(12), 8)], &[(None, 24), (Some(21), 8)]], 0, 4));
}

/// The ring is full at the start (four frames), and the two producers need what the consumer gives back, in frames that straddle the old ones: what a producer writes to has been read
/// and zeroed. Bound: 2 preemptions, seven looks.
#[test]
fn producers_reuse_only_what_was_read_and_zeroed() {
    explore(2, || run(64, &[&[(Some(11), 16), (Some(12), 8)], &[(Some(21), 24), (None, 8)]], 4, 7));
}

/// Three producers with a message each, of different lengths, and the consumer. Bound: 2 preemptions, three looks.
#[test]
fn three_producers_claim_at_once() {
    explore(2, || run(64, &[&[(Some(11), 8)], &[(Some(21), 16)], &[(Some(31), 8)]], 0, 3));
}

/// A ring full of aborted frames, which one call skips: the consumer must not take its own headers, which it has not zeroed yet, for those of the next lap. Nothing is concurrent.
#[test]
fn a_ring_full_of_aborted_claims_is_no_corruption() {
    explore(0, || {
        let memory = MpscMemory::new(64);
        let (mut producer, mut consumer) = (memory.producer(0), memory.consumer());
        for _ in 0..4 {
            producer.claim(8).unwrap();
            producer.abort();
        }
        assert_eq!(consumer.read(), Ok(None));
        assert_eq!(consumer.position(), 64);
        consumer.release(true).unwrap();
        assert!(memory.is_zero());
    });
}

/// A full ring, read to its end before anything is given back: nothing is read twice, and [`Consumer::ready`] does not claim that there is more. Nothing is concurrent.
#[test]
fn a_full_ring_that_is_not_given_back_is_read_once() {
    explore(0, || {
        let memory = MpscMemory::new(64);
        let (mut producer, mut consumer) = (memory.producer(0), memory.consumer());
        for message in 1..=4 {
            producer.claim(8).unwrap();
            producer.write(0, &payload(message, 8));
            producer.commit(0);
        }
        for message in 1..=4 {
            let frame = consumer.read().unwrap().unwrap();
            assert_eq!(message_of(&consumer.payload(&frame)), message);
            consumer.advance(&frame);
        }
        assert!(!consumer.ready());
        assert_eq!(consumer.read(), Ok(None));
    });
}
