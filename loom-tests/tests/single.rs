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
/// One frame fits: two would fill the ring to the last byte, and there would be no place for the zero behind them.
const HALF: usize = 24;

/// `false` if there is no room.
fn try_publish(producer: &mut Mapped<Producer, SingleMemory>, message: u8, length: usize) -> bool {
    match producer.claim(length) {
        Ok(()) => {
            producer.write(0, &payload(message, length));
            producer.commit(u16::from(message));
            true
        }
        Err(ClaimError::BackPressured) => false,
        Err(error) => panic!("{error:?}"),
    }
}

fn publish(producer: &mut Mapped<Producer, SingleMemory>, message: u8, length: usize) {
    while !try_publish(producer, message, length) {
        thread::yield_now();
    }
}

/// The next message if there is one. Nothing is given back yet.
fn try_receive(consumer: &mut Mapped<Consumer, SingleMemory>) -> Option<u8> {
    let frame = consumer.read().unwrap()?;
    let message = message_of(&consumer.payload(&frame));
    assert_eq!(frame.tag, u16::from(message));
    consumer.advance(&frame);
    Some(message)
}

fn receive(consumer: &mut Mapped<Consumer, SingleMemory>) -> u8 {
    loop {
        if let Some(message) = try_receive(consumer) {
            return message;
        }
        thread::yield_now();
    }
}

/// Whether there was a message. It is the expected one.
fn look(consumer: &mut Mapped<Consumer, SingleMemory>, expected: u8) -> bool {
    try_receive(consumer).is_some_and(|message| {
        assert_eq!(message, expected);
        true
    })
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
        publish(&mut producer, 1, LENGTH);
        // Nobody ever hears of it.
        while producer.claim(LENGTH).is_err() {
            thread::yield_now();
        }
        producer.write(0, &payload(99, LENGTH));
        producer.abort();
        for message in 2..=4 {
            publish(&mut producer, message, LENGTH);
        }
        subscriber.join().unwrap();
        assert_eq!(producer.position(), 4 * 24);
    });
}

/// One producer and one subscriber, three messages each of half the ring: the zero behind a frame overwrites nothing that was not read. Bound: 3 preemptions.
#[test]
fn the_zero_behind_a_frame_overwrites_nothing() {
    explore(3, || {
        let (mut producer, mut consumers) = SingleMemory::new(CAPACITY, Overwrite::Never, 1).linked();
        let mut consumer = consumers.remove(0);
        let subscriber = thread::spawn(move || {
            for expected in 1..=3 {
                assert_eq!(receive(&mut consumer), expected);
                consumer.release(true);
            }
            assert_eq!(consumer.read(), Ok(None));
        });
        for message in 1..=3 {
            publish(&mut producer, message, HALF);
        }
        subscriber.join().unwrap();
    });
}

/// Two subscribers, one of which gives back only when it has read two: nothing is overwritten before both have read it, and the slow one loses nothing. Three
/// messages through a ring of two, the first of which is there at the start. Bound: 3 preemptions; four looks a subscriber, three attempts of the publisher, what is left is done
/// after they have met (three threads that spin would never be done).
#[test]
fn nothing_is_overwritten_before_the_slowest_has_read_it() {
    explore(3, || {
        let (mut producer, consumers) = SingleMemory::new(CAPACITY, Overwrite::Never, 2).linked();
        publish(&mut producer, 1, LENGTH);
        let subscribers: Vec<_> = consumers
            .into_iter()
            .zip([1, 2])
            .map(|(mut consumer, gives_back_every)| {
                thread::spawn(move || {
                    let mut read = 0;
                    for _ in 0..4 {
                        if look(&mut consumer, read + 1) {
                            read += 1;
                            if read % gives_back_every == 0 {
                                consumer.release(true);
                            }
                        }
                    }
                    (consumer, read)
                })
            })
            .collect();
        let mut published = 1;
        for _ in 0..3 {
            published += u8::from(published < 3 && try_publish(&mut producer, published + 1, LENGTH));
        }
        let mut subscribers: Vec<_> = subscribers.into_iter().map(|subscriber| subscriber.join().unwrap()).collect();
        while published < 3 || subscribers.iter().any(|&(_, read)| read < 3) {
            for (consumer, read) in &mut subscribers {
                *read += u8::from(look(consumer, *read + 1));
                consumer.release(true);
            }
            published += u8::from(published < 3 && try_publish(&mut producer, published + 1, LENGTH));
        }
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
        publish(&mut producer, 1, LENGTH);
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
            publish(&mut producer, message, LENGTH);
            assert_eq!(receive(&mut resident), message);
            resident.release(true);
        }
        assert_eq!(subscriber.join().unwrap(), first_to_expect);
        assert_eq!(producer.take_liar(), None);
    });
}
