//! Sleeping and waking: `ringbus::wait::sleep` around the rings, on the model of the futex in `loom_tests::Futex`.
//!
//! Nobody spins here: who finds nothing sleeps, and if it is not woken, loom reports a deadlock. The last tests show that it does when a step is left out or in the wrong place.
//!
//! What loom cannot show: it never lets a load return what is stored later, so it would not notice that step 1 must be `Acquire` (it is here: with `Relaxed`, the sequence could be read
//! after the flag was raised, on a machine that lets loads wait for later stores).
#![cfg(loom)]

use core::ptr::NonNull;
use std::sync::Arc;

use loom::sync::atomic::AtomicBool;
use loom::thread;
use loom_tests::{Futex, Mapped, MpscMemory, SingleMemory, explore, message_of, payload, sleep_unless, wake, wake_watched};
use ringbus::ring::atomic::{AtomicU32, Ordering};
use ringbus::ring::layout::PartyLine;
use ringbus::ring::single::{self, Overwrite};
use ringbus::ring::{ClaimError, mpsc};
use ringbus::wait::fences::{Fences, Light};
use ringbus::wait::sleep::{How, Peer, Sleeper, Watch};

/// The peer with that line, which outlives it: every thread here holds the memory.
fn peer(line: &PartyLine) -> Peer {
    // SAFETY: see above.
    unsafe { Peer::new(NonNull::from(line)) }
}

/// A publication of a single-producer ring, and whom it wakes.
struct Publication {
    producer: Mapped<single::Producer, SingleMemory>,
    peers: Vec<Peer>,
    watch: Watch,
    sleeper: Sleeper,
    futex: Arc<Futex>,
}

impl Publication {
    /// Publishes, and sleeps while there is no room.
    fn publish(&mut self, message: u8, length: usize) {
        let memory = self.producer.memory().clone();
        while let Err(error) = self.producer.claim(length) {
            assert_eq!(error, ClaimError::BackPressured);
            let sequences: Vec<_> = memory.pages.iter().map(|page| &page.subscriber.wake_sequence).collect();
            let room = || self.producer.has_room(length).is_ok();
            sleep_unless(&self.futex, &mut self.sleeper, &memory.control.publisher, None, &sequences, room);
        }
        self.producer.write(0, &payload(message, length));
        self.producer.commit(0);
        wake_watched(&self.futex, &mut self.watch, &mut self.peers, &memory.control.publisher.wake_sequence);
    }

    /// The first so many subscriptions are its peers: if it is one its flag is watched, else their sleep count.
    fn link(&mut self, subscriptions: usize) {
        let memory = self.producer.memory();
        self.peers = memory.pages[..subscriptions].iter().map(|page| peer(&page.subscriber)).collect();
        let word = if subscriptions == 1 { &memory.pages[0].subscriber.sleep_flag } else { &memory.sleep_page.line.sleeps };
        // SAFETY: the memory is kept in the producer.
        unsafe { self.watch.set(Some(NonNull::from(word))) };
    }

    /// `closed`, and the peers are woken.
    fn close(&mut self) {
        let line = &self.producer.memory().control.publisher;
        line.close();
        wake(&self.futex, &mut self.peers, &line.wake_sequence);
    }
}

/// A subscription to it.
struct Subscription {
    consumer: Mapped<single::Consumer, SingleMemory>,
    number: usize,
    publisher: Peer,
    sleeper: Sleeper,
    futex: Arc<Futex>,
}

impl Subscription {
    /// Whether there was a message, which is given back at once. It is the one expected.
    fn receive(&mut self, expected: u8) -> bool {
        let Some(frame) = self.consumer.read().unwrap() else { return false };
        assert_eq!(message_of(&self.consumer.payload(&frame)), expected);
        self.consumer.advance(&frame);
        if self.consumer.release(true) {
            let page = &self.consumer.memory().pages[self.number];
            wake(&self.futex, core::slice::from_mut(&mut self.publisher), &page.subscriber.wake_sequence);
        }
        true
    }

    /// Sleeps until there may be something, or the publication has left, or so it is said in the process.
    fn sleep(&mut self, own: Option<(&AtomicU32, &AtomicBool)>) {
        let memory = self.consumer.memory().clone();
        let publisher = &memory.control.publisher;
        let sequences: Vec<_> = [&publisher.wake_sequence].into_iter().chain(own.map(|(word, _)| word)).collect();
        let last_look =
            || self.consumer.ready() || publisher.has_closed() || own.is_some_and(|(_, dead)| dead.load(Ordering::Acquire));
        let (line, count) = (&memory.pages[self.number].subscriber, &memory.sleep_page.line.sleeps);
        sleep_unless(&self.futex, &mut self.sleeper, line, Some(count), &sequences, last_look);
    }

    fn receive_all(mut self, messages: u8) {
        for expected in 1..=messages {
            while !self.receive(expected) {
                self.sleep(None);
            }
        }
    }
}

fn linked(capacity: u64, subscriptions: usize) -> (Publication, Vec<Subscription>) {
    let memory = SingleMemory::new(capacity, Overwrite::Never, subscriptions);
    let futex = Arc::new(Futex::default());
    let (producer, consumers) = memory.linked();
    let subscription = |(number, consumer)| Subscription {
        consumer,
        number,
        publisher: peer(&memory.control.publisher),
        sleeper: Sleeper::default(),
        futex: futex.clone(),
    };
    let all = consumers.into_iter().enumerate().map(subscription).collect();
    let (peers, watch, sleeper) = (Vec::new(), Watch::default(), Sleeper::default());
    let mut publication = Publication { producer, peers, watch, sleeper, futex: futex.clone() };
    publication.link(subscriptions);
    (publication, all)
}

fn stream(capacity: u64, subscriptions: usize, messages: u8, length: usize) {
    let (mut publication, subscriptions) = linked(capacity, subscriptions);
    let threads: Vec<_> =
        subscriptions.into_iter().map(|subscription| thread::spawn(move || subscription.receive_all(messages))).collect();
    for message in 1..=messages {
        publication.publish(message, length);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A subscriber waits for data: three messages, room for all, so that it sleeps up to three times. Bound: 3 preemptions.
#[test]
fn a_subscriber_that_waits_for_data_is_woken() {
    explore(3, || stream(128, 1, 3, 8));
}

/// Two subscribers wait for data, both woken by one bump: two messages. Bound: 2 preemptions.
#[test]
fn two_subscribers_that_wait_for_data_are_woken() {
    explore(2, || stream(128, 2, 2, 8));
}

/// The second of two subscribers is linked late, and may have fallen asleep, and been counted, before: that count is not one that the publisher has seen through. The first
/// is always awake. Bound: 3 preemptions.
#[test]
fn who_fell_asleep_before_it_was_a_peer_is_woken() {
    explore(3, || {
        let memory = SingleMemory::new(128, Overwrite::Never, 2);
        let futex = Arc::new(Futex::default());
        let mut producer = memory.producer();
        producer.admit(0, 1);
        let (peers, watch) = (Vec::new(), Watch::default());
        let mut publication = Publication { producer, peers, watch, sleeper: Sleeper::default(), futex: futex.clone() };
        publication.link(1);
        publication.publish(1, 8);
        let late = Subscription {
            consumer: memory.consumer(1, 2),
            number: 1,
            publisher: peer(&memory.control.publisher),
            sleeper: Sleeper::default(),
            futex,
        };
        let late = thread::spawn(move || late.receive_all(1));
        publication.link(2);
        // Of the count that it has seen now it does not know whom it is of.
        publication.watch.needs_look();
        publication.producer.admit(1, 2);
        publication.link(2);
        publication.publish(1, 8);
        late.join().unwrap();
    });
}

/// A ring of one message: the publisher waits for space while the subscriber waits for data, three messages. Bound: 3 preemptions.
#[test]
fn both_sides_sleep_and_wake_each_other() {
    explore(3, || stream(64, 1, 3, 24));
}

/// A ring of one message, which is there at the start, and two subscribers: the publisher waits for space that both must give, on both their wake sequences at once. Bound: 3 preemptions.
#[test]
fn a_publisher_that_waits_for_two_subscribers_is_woken() {
    explore(3, || {
        let (mut publication, subscriptions) = linked(64, 2);
        publication.publish(1, 24);
        let give_back = |mut subscription: Subscription| thread::spawn(move || assert!(subscription.receive(1)));
        let threads: Vec<_> = subscriptions.into_iter().map(give_back).collect();
        publication.publish(2, 24);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// The publisher commits a message, closes, and wakes: a subscriber that sleeps gets the message and then the end. Bound: 3 preemptions.
#[test]
fn closing_wakes_who_sleeps_and_loses_nothing() {
    explore(3, || {
        let (mut publication, mut subscriptions) = linked(64, 1);
        let mut subscription = subscriptions.remove(0);
        let subscriber = thread::spawn(move || {
            let mut received = 0;
            loop {
                // Read before the last look at the ring, so that all that came before the end is seen.
                let closed = subscription.consumer.memory().control.publisher.has_closed();
                if subscription.receive(received + 1) {
                    received += 1;
                } else if closed {
                    break received;
                } else {
                    subscription.sleep(None);
                }
            }
        });
        publication.publish(1, 8);
        publication.close();
        assert_eq!(subscriber.join().unwrap(), 1);
    });
}

/// The publisher commits and closes with no fence between, as its fences may be for the compiler only: who sees the end sees the message. Bound: 3 preemptions.
#[test]
fn closing_hides_no_message() {
    explore(3, || {
        let (mut publication, mut subscriptions) = linked(64, 1);
        let mut subscription = subscriptions.remove(0);
        let publisher = thread::spawn(move || {
            publication.producer.offer(0, &payload(1, 8)).unwrap();
            publication.producer.memory().control.publisher.close();
        });
        let closed = subscription.consumer.memory().control.publisher.has_closed();
        let received = subscription.receive(1);
        assert!(received || !closed, "the message before the end is lost");
        publisher.join().unwrap();
    });
}

/// The publisher dies between its commit and the wake-up. The conductor of the subscriber's process, told by the driver, says so and wakes the subscriber by the process's own word: it
/// gets the message and then the end. Bound: 3 preemptions.
#[test]
fn a_death_before_the_wake_up_is_made_good_by_the_conductor() {
    explore(3, || {
        let (mut publication, mut subscriptions) = linked(64, 1);
        let mut subscription = subscriptions.remove(0);
        let own = Arc::new((AtomicU32::new(0), AtomicBool::new(false)));
        let subscriber = thread::spawn({
            let own = own.clone();
            move || {
                let mut received = 0;
                loop {
                    let dead = own.1.load(Ordering::Acquire);
                    if subscription.receive(received + 1) {
                        received += 1;
                    } else if dead {
                        break received;
                    } else {
                        subscription.sleep(Some((&own.0, &own.1)));
                    }
                }
            }
        });
        publication.producer.claim(8).unwrap();
        publication.producer.write(0, &payload(1, 8));
        publication.producer.commit(0);
        // Here it dies. What follows is the conductor's.
        own.1.store(true, Ordering::Release);
        publication.futex.bump_and_wake(&own.0);
        assert_eq!(subscriber.join().unwrap(), 1);
    });
}

/// A publisher that sleeps for space while its subscriber closes is woken, and looks no further. Bound: 3 preemptions.
#[test]
fn a_subscriber_that_closes_wakes_a_publisher_that_waits_for_space() {
    explore(3, || {
        let (mut publication, mut subscriptions) = linked(64, 1);
        publication.publish(1, 24);
        let mut subscription = subscriptions.remove(0);
        let subscriber = thread::spawn(move || {
            let line = &subscription.consumer.memory().pages[0].subscriber;
            line.close();
            wake(&subscription.futex, core::slice::from_mut(&mut subscription.publisher), &line.wake_sequence);
        });
        let memory = publication.producer.memory().clone();
        let line = &memory.pages[0].subscriber;
        while !line.has_closed() {
            assert_eq!(publication.producer.claim(24), Err(ClaimError::BackPressured));
            let left = || publication.producer.has_room(24).is_ok() || line.has_closed();
            let (futex, own) = (&publication.futex, &memory.control.publisher);
            sleep_unless(futex, &mut publication.sleeper, own, None, &[&line.wake_sequence], left);
        }
        assert!(publication.producer.remove_reader(1));
        assert_eq!(publication.producer.claim(24), Err(ClaimError::NotConnected));
        subscriber.join().unwrap();
    });
}

/// A publication of an mpsc ring.
struct Source {
    producer: Mapped<mpsc::Producer, MpscMemory>,
    slot: usize,
    subscriber: Peer,
    sleeper: Sleeper,
    futex: Arc<Futex>,
}

impl Source {
    fn new(memory: &Arc<MpscMemory>, slot: u8, futex: &Arc<Futex>) -> Self {
        Self {
            producer: memory.producer(slot),
            slot: usize::from(slot),
            subscriber: peer(&memory.page.subscriber),
            sleeper: Sleeper::default(),
            futex: futex.clone(),
        }
    }

    fn wake(&mut self) {
        let sequence = &self.producer.memory().control.producers[self.slot].party.wake_sequence;
        wake(&self.futex, core::slice::from_mut(&mut self.subscriber), sequence);
    }

    /// Publishes, and sleeps while there is no room. Wakes after a withdrawn intent, too.
    fn publish(&mut self, message: u8, length: usize) {
        let memory = self.producer.memory().clone();
        while let Err(error) = self.producer.claim(length) {
            assert_eq!(error, ClaimError::BackPressured);
            if self.producer.take_withdrawn() {
                self.wake();
            }
            let (line, sequence) = (&memory.control.producers[self.slot].party, &memory.page.subscriber.wake_sequence);
            let room = || self.producer.has_room(length).is_ok();
            sleep_unless(&self.futex, &mut self.sleeper, line, None, &[sequence], room);
        }
        self.producer.write(0, &payload(message, length));
        self.producer.commit(0);
        self.wake();
    }
}

/// The subscription of an mpsc ring.
struct Sink {
    consumer: Mapped<mpsc::Consumer, MpscMemory>,
    publishers: Vec<Peer>,
    sleeper: Sleeper,
    futex: Arc<Futex>,
}

impl Sink {
    fn new(memory: &Arc<MpscMemory>, slots: usize, futex: &Arc<Futex>) -> Self {
        let publishers = memory.control.producers[..slots].iter().map(|producer| peer(&producer.party)).collect();
        Self { consumer: memory.consumer(), publishers, sleeper: Sleeper::default(), futex: futex.clone() }
    }

    /// The next message and its slot. What was read is given back at once, aborted frames included.
    fn try_receive(&mut self) -> Option<(u8, u8)> {
        let frame = self.consumer.read().unwrap();
        let message = frame.map(|frame| {
            let message = message_of(&self.consumer.payload(&frame));
            self.consumer.advance(&frame);
            (frame.slot, message)
        });
        if self.consumer.release(true).unwrap() {
            let sequence = &self.consumer.memory().page.subscriber.wake_sequence;
            wake(&self.futex, &mut self.publishers, sequence);
        }
        message
    }

    fn sleep(&mut self) {
        let memory = self.consumer.memory().clone();
        let slots = &memory.control.producers[..self.publishers.len()];
        let sequences: Vec<_> = slots.iter().map(|producer| &producer.party.wake_sequence).collect();
        let last_look = || self.consumer.ready();
        sleep_unless(&self.futex, &mut self.sleeper, &memory.page.subscriber, None, &sequences, last_look);
    }

    fn receive(&mut self) -> (u8, u8) {
        loop {
            if let Some(message) = self.try_receive() {
                return message;
            }
            self.sleep();
        }
    }
}

/// Two publications of a message each, and their subscriber, which sleeps on both wake sequences. There is room for `capacity`.
fn mpsc_stream(capacity: u64, length: usize) {
    let (memory, futex) = (MpscMemory::new(capacity), Arc::new(Futex::default()));
    let mut sink = Sink::new(&memory, 2, &futex);
    let threads: Vec<_> = (0..2)
        .map(|slot| {
            let mut source = Source::new(&memory, slot, &futex);
            thread::spawn(move || source.publish(slot + 1, length))
        })
        .collect();
    let mut got = [sink.receive(), sink.receive()];
    got.sort_unstable();
    assert_eq!(got, [(0, 1), (1, 2)]);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A subscriber waits for data of two publications. Bound: 2 preemptions.
#[test]
fn a_subscriber_that_waits_for_two_publications_is_woken() {
    explore(2, || mpsc_stream(64, 8));
}

/// As above with room for one of the two messages only, so that the other publication may have to sleep for space. Bound: 2 preemptions.
#[test]
fn producers_that_wait_for_space_are_woken() {
    explore(2, || mpsc_stream(64, 32));
}

/// A dead producer owned a claim that fills the ring, and a living one had its intent at the same place, for which the consumer had to wait: when it gives up, it wakes the consumer, which repairs and
/// makes room. Bound: 2 preemptions.
#[test]
fn a_withdrawn_intent_wakes_the_consumer() {
    explore(2, || {
        let (memory, futex) = (MpscMemory::new(64), Arc::new(Futex::default()));
        let mut sink = Sink::new(&memory, 2, &futex);
        let mut source = Source::new(&memory, 1, &futex);
        let dead = Arc::new(AtomicBool::new(false));
        // The process's own word, by which the conductor wakes.
        let own = Arc::new(AtomicU32::new(0));
        let conductor = thread::spawn({
            let (mut mortal, dead, own, futex) = (memory.producer(0), dead.clone(), own.clone(), futex.clone());
            move || {
                // Unless the living one was first.
                let _ = mortal.claim(48);
                dead.store(true, Ordering::Release);
                futex.bump_and_wake(&own);
            }
        });
        let alive = thread::spawn(move || source.publish(2, 8));
        let mut told = false;
        let (mut got, mut finished) = (None, None);
        while got.is_none() || finished.is_none() {
            if !told && dead.load(Ordering::Acquire) {
                told = true;
                sink.consumer.producer_gone(0);
            }
            if let Some(message) = sink.try_receive() {
                got = Some(message);
            } else if finished.is_none() {
                finished = sink.consumer.take_finished();
                if finished.is_none() || got.is_none() {
                    let sequences = [&memory.control.producers[1].party.wake_sequence, &*own];
                    let look = || sink.consumer.ready() || (!told && dead.load(Ordering::Acquire));
                    sleep_unless(&futex, &mut sink.sleeper, &memory.page.subscriber, None, &sequences, look);
                }
            } else {
                sink.sleep();
            }
        }
        assert_eq!((got, finished), (Some((1, 2)), Some(0)));
        conductor.join().unwrap();
        alive.join().unwrap();
    });
}

/// An eventfd that is waited for, by level: it stays readable until it is read.
struct Doorbell {
    word: AtomicU32,
    futex: Futex,
}

impl Doorbell {
    fn ring(&self) {
        self.word.store(1, Ordering::Release);
        self.futex.wake(&self.word);
    }

    fn wait_and_drain(&self) {
        self.futex.wait(&[(&self.word, 0)]);
        self.word.swap(0, Ordering::Acquire);
    }
}

/// A subscriber sleeps on its doorbell instead, without reading any sequence, and drains it before it looks: two messages. Bound: 3 preemptions.
#[test]
fn a_doorbell_wakes_without_a_sequence() {
    explore(3, || {
        let (mut publication, mut subscriptions) = linked(128, 1);
        let mut subscription = subscriptions.remove(0);
        let bell = Arc::new(Doorbell { word: AtomicU32::new(0), futex: Futex::default() });
        let subscriber = thread::spawn({
            let bell = bell.clone();
            move || {
                let memory = subscription.consumer.memory().clone();
                let line = &memory.pages[0].subscriber;
                for expected in 1..=2 {
                    while !subscription.receive(expected) {
                        subscription.sleeper.fall_asleep(line, [], How::Doorbell, Fences::Symmetric);
                        if !subscription.consumer.ready() {
                            bell.wait_and_drain();
                        }
                        subscription.sleeper.awake(line);
                    }
                }
            }
        });
        let subscriber_line = &mut publication.peers[0];
        for message in 1..=2 {
            publication.producer.claim(8).unwrap();
            publication.producer.write(0, &payload(message, 8));
            publication.producer.commit(0);
            Light::Full.pass();
            // By doorbell, or it had got up when the flag was read again, and no wake-up is needed.
            if subscriber_line.needs_wake() && subscriber_line.remember() == How::Doorbell {
                bell.ring();
            }
        }
        subscriber.join().unwrap();
    });
}

/// A mistake in the protocol that [`lost`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    SequenceReadAfterTheFlagAndRelaxed,
    SequenceReadAfterTheLook,
    NoLastLook,
    LookBeforeTheFlag,
    FlagReadBeforeTheCommit,
    NoFenceOfTheSleeper,
    NoFenceOfTheWaker,
    WokenBeforeTheBump,
}

/// One message and a subscriber that sleeps until it comes, in the steps of `ringbus::wait::sleep` but for that mistake.
fn lost(mistake: Mistake) {
    let (mut publication, mut subscriptions) = linked(64, 1);
    let mut subscription = subscriptions.remove(0);
    let subscriber = thread::spawn(move || {
        let memory = subscription.consumer.memory().clone();
        let (line, word) = (&memory.pages[0].subscriber, &memory.control.publisher.wake_sequence);
        while !subscription.receive(1) {
            let mut ready = mistake == Mistake::LookBeforeTheFlag && subscription.consumer.ready();
            let mut sequence = word.load(Ordering::Acquire);
            if mistake == Mistake::NoFenceOfTheSleeper {
                // What `fall_asleep` stores the first time.
                line.sleep_flag.store(5, Ordering::Relaxed);
            } else {
                subscription.sleeper.fall_asleep(line, [], How::Futex, Fences::Symmetric);
            }
            if mistake == Mistake::SequenceReadAfterTheFlagAndRelaxed {
                sequence = word.load(Ordering::Relaxed);
            }
            if !matches!(mistake, Mistake::NoLastLook | Mistake::LookBeforeTheFlag) {
                ready = subscription.consumer.ready();
            }
            if mistake == Mistake::SequenceReadAfterTheLook {
                sequence = word.load(Ordering::Acquire);
            }
            if !ready {
                subscription.futex.wait(&[(word, sequence)]);
            }
            subscription.sleeper.awake(line);
        }
    });
    let memory = publication.producer.memory().clone();
    let word = &memory.control.publisher.wake_sequence;
    publication.producer.claim(8).unwrap();
    publication.producer.write(0, &payload(1, 8));
    let mut needs_wake = mistake == Mistake::FlagReadBeforeTheCommit && publication.peers[0].needs_wake();
    publication.producer.commit(0);
    if mistake != Mistake::NoFenceOfTheWaker {
        Light::Full.pass();
    }
    if mistake != Mistake::FlagReadBeforeTheCommit {
        needs_wake = publication.peers[0].needs_wake();
    }
    if needs_wake {
        publication.peers[0].remember();
        if mistake == Mistake::WokenBeforeTheBump {
            publication.futex.wake(word);
            word.fetch_add(1, Ordering::Release);
        } else {
            publication.futex.bump_and_wake(word);
        }
    }
    subscriber.join().unwrap();
}

/// The steps by hand are right without a mistake, so it is the mistakes that are caught below. Unbounded.
#[test]
fn without_a_mistake_no_wake_up_is_lost() {
    explore(usize::from(u8::MAX), || lost(Mistake::None));
}

/// The sequence is the one after the bump, and the look may still miss the commit before it. (With `Acquire` it could not: for one message only, the order of 1 and 2 would not matter. See
/// the next one for when it does.)
#[test]
#[should_panic(expected = "deadlock")]
fn a_relaxed_sequence_read_after_the_flag_is_caught() {
    explore(3, || lost(Mistake::SequenceReadAfterTheFlagAndRelaxed));
}

/// A publisher that needs all of the ring, which holds two messages: each is given back, and the publisher woken, on its own. The first wake-up is not for enough space, and
/// the second may find the flag remembered.
fn space_in_two_parts(sequence_read_after_the_flag: bool) {
    let (mut publication, mut subscriptions) = linked(64, 1);
    publication.publish(1, 16);
    publication.publish(2, 16);
    let mut subscription = subscriptions.remove(0);
    let subscriber = thread::spawn(move || {
        assert!(subscription.receive(1) && subscription.receive(2));
    });
    let memory = publication.producer.memory().clone();
    let (line, word) = (&memory.control.publisher, &memory.pages[0].subscriber.wake_sequence);
    while publication.producer.claim(48).is_err() {
        let mut sequence = word.load(Ordering::Acquire);
        publication.sleeper.fall_asleep(line, [], How::Futex, Fences::Symmetric);
        if sequence_read_after_the_flag {
            sequence = word.load(Ordering::Acquire);
        }
        if publication.producer.has_room(48).is_err() {
            publication.futex.wait(&[(word, sequence)]);
        }
        publication.sleeper.awake(line);
    }
    subscriber.join().unwrap();
}

/// A wake-up that brings too little does not swallow the next one. Unbounded.
#[test]
fn a_publisher_that_needs_two_messages_to_go_is_woken() {
    explore(usize::from(u8::MAX), || space_in_two_parts(false));
}

/// The sequence is read behind the bump for the first part, and the bump for the second is not made, as the flag is still the same: the order of 1 and 2 matters even with `Acquire`.
#[test]
#[should_panic(expected = "deadlock")]
fn a_sequence_read_after_the_flag_is_caught() {
    explore(3, || space_in_two_parts(true));
}

/// The sequence is the one after the bump, and there is no further look.
#[test]
#[should_panic(expected = "deadlock")]
fn a_sequence_read_after_the_look_is_caught() {
    explore(3, || lost(Mistake::SequenceReadAfterTheLook));
}

/// The commit came before the flag was up, and nobody looks.
#[test]
#[should_panic(expected = "deadlock")]
fn a_missing_last_look_is_caught() {
    explore(3, || lost(Mistake::NoLastLook));
}

/// The commit came between.
#[test]
#[should_panic(expected = "deadlock")]
fn a_look_before_the_flag_is_caught() {
    explore(3, || lost(Mistake::LookBeforeTheFlag));
}

/// The flag went up between.
#[test]
#[should_panic(expected = "deadlock")]
fn a_flag_read_before_the_commit_is_caught() {
    explore(3, || lost(Mistake::FlagReadBeforeTheCommit));
}

/// Both see the other's old value.
#[test]
#[should_panic(expected = "deadlock")]
fn a_missing_fence_of_the_sleeper_is_caught() {
    explore(3, || lost(Mistake::NoFenceOfTheSleeper));
}

/// As above.
#[test]
#[should_panic(expected = "deadlock")]
fn a_missing_fence_of_the_waker_is_caught() {
    explore(3, || lost(Mistake::NoFenceOfTheWaker));
}

/// Who queues between the two sleeps for ever.
#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_before_the_bump_is_caught() {
    explore(3, || lost(Mistake::WokenBeforeTheBump));
}
