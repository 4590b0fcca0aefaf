//! The single-producer ring that blocks: `ringbus::ring::single` with `Overwrite::Never`.
//!
//! Payloads are read through loom's cells, so a producer that overwrites what somebody still reads, or a reader that reads what is still
//! being written, is reported even if the values happen to be right.
#![cfg(loom)]

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use loom_tests::{Mapped, SingleMemory, explore, message_of, payload};
use ringbus::ring::ClaimError;
use ringbus::ring::single::{Consumer, Overwrite, Producer};
use std::sync::Arc;

/// Two frames fit into the ring at once. As 64 is no multiple of a frame, headers of one lap come to lie on payload of the last.
const CAPACITY: u64 = 64;
const LENGTH: usize = 16;

fn publish(producer: &mut Mapped<Producer, SingleMemory>, message: u8) {
    loop {
        match producer.claim(LENGTH) {
            Ok(()) => break,
            Err(ClaimError::BackPressured) => thread::yield_now(),
            Err(error) => panic!("{error:?}"),
        }
    }
    producer.write(0, &payload(message, LENGTH));
    producer.commit(u16::from(message));
}

/// The next message, waited for. Nothing is given back yet.
fn receive(consumer: &mut Mapped<Consumer, SingleMemory>) -> u8 {
    loop {
        if let Some(frame) = consumer.read().unwrap() {
            let message = message_of(&consumer.payload(&frame));
            assert_eq!((frame.length as usize, frame.tag), (LENGTH, u16::from(message)));
            consumer.advance(&frame);
            return message;
        }
        thread::yield_now();
    }
}

/// One producer and one subscriber, four messages through a ring of two, one abort: each arrives once, in order and whole, and neither side touches
/// payload that is the other's. Bound: 3 preemptions.
#[test]
fn messages_arrive_in_order_and_whole_across_a_wrap() {
    explore(3, || {
        let (mut producer, mut consumers) = SingleMemory::new(CAPACITY, Overwrite::Never, 1).linked();
        let mut consumer = consumers.remove(0);
        let subscriber = thread::spawn(move || {
            for expected in 1..=4 {
                assert_eq!(receive(&mut consumer), expected);
                consumer.release(true);
            }
            assert_eq!(consumer.read(), Ok(None));
        });
        publish(&mut producer, 1);
        // Nobody ever hears of it.
        while producer.claim(LENGTH).is_err() {
            thread::yield_now();
        }
        producer.write(0, &payload(99, LENGTH));
        producer.abort();
        for message in 2..=4 {
            publish(&mut producer, message);
        }
        subscriber.join().unwrap();
        assert_eq!(producer.position(), 4 * 24);
    });
}

/// Two subscribers, one of which gives back only when it has read two: nothing is overwritten before both have read it, and the slow one loses nothing. Three
/// messages through a ring of two. Bound: 2 preemptions.
#[test]
fn nothing_is_overwritten_before_the_slowest_has_read_it() {
    explore(2, || {
        let (mut producer, mut consumers) = SingleMemory::new(CAPACITY, Overwrite::Never, 2).linked();
        let mut slow = consumers.remove(1);
        let mut quick = consumers.remove(0);
        let quick = thread::spawn(move || {
            for expected in 1..=3 {
                assert_eq!(receive(&mut quick), expected);
                quick.release(true);
            }
        });
        let slow = thread::spawn(move || {
            for expected in 1..=3 {
                assert_eq!(receive(&mut slow), expected);
                if expected == 2 {
                    slow.release(true);
                }
            }
        });
        for message in 1..=3 {
            publish(&mut producer, message);
        }
        quick.join().unwrap();
        slow.join().unwrap();
        assert_eq!(producer.take_liar(), None);
    });
}

/// A subscriber joins while three messages are published through a ring of two, in the line and in the slot of the join table that a former link of the same
/// subscription has used: whichever message it sees first, it sees all that follow, and its own start is not mistaken for the former link's position. Bound: 3 preemptions.
#[test]
fn a_subscriber_that_joins_sees_a_gapless_suffix() {
    const FORMER: u64 = 7;
    const JOINING: u64 = 8;
    explore(3, || {
        let memory = SingleMemory::new(CAPACITY, Overwrite::Never, 2);
        let mut producer = memory.producer();
        // Somebody is always there, so that there is something to join; the publisher's own thread reads for it.
        producer.admit(0, 1);
        let mut resident = memory.consumer(0, 1);
        // The former link has read a message and gone: its position is not the start of anything.
        producer.admit(1, FORMER);
        let mut former = memory.consumer(1, FORMER);
        publish(&mut producer, 1);
        for consumer in [&mut resident, &mut former] {
            assert_eq!(receive(consumer), 1);
            consumer.release(true);
        }
        assert!(producer.remove_reader(FORMER));
        drop(former);

        let wanted = Arc::new(AtomicBool::new(false));
        let subscriber = thread::spawn({
            let (mut consumer, wanted) = (memory.consumer(1, JOINING), wanted.clone());
            move || {
                wanted.store(true, Ordering::Release);
                let first = receive(&mut consumer);
                consumer.release(true);
                for expected in first + 1..=5 {
                    assert_eq!(receive(&mut consumer), expected);
                    consumer.release(true);
                }
                first
            }
        });
        let mut first_to_expect = 0;
        for message in 2..=5 {
            // The conductor's word, which the publisher looks at on its slow path; at the last it has come for sure.
            if first_to_expect == 0 && (message == 5 || wanted.load(Ordering::Acquire)) {
                producer.admit(1, JOINING);
                first_to_expect = message;
            }
            publish(&mut producer, message);
            assert_eq!(receive(&mut resident), message);
            resident.release(true);
        }
        assert_eq!(subscriber.join().unwrap(), first_to_expect);
        assert_eq!(producer.take_liar(), None);
    });
}
