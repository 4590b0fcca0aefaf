//! The single-producer ring that overwrites: `ringbus::ring::single` with `Overwrite::Oldest`.
#![cfg(loom)]

use loom::thread;
use loom_tests::{SingleMemory, explore, message_of, payload};
use ringbus::ring::ReadError;
use ringbus::ring::single::Overwrite;

/// The producer never waits; the subscriber, for whom the first `prefill` messages are there at the start, is lapped in every way possible.
fn overrun(messages: u8, prefill: u8, length: usize) {
    let (mut producer, mut consumers) = SingleMemory::new(64, Overwrite::Oldest, 1).linked();
    let mut consumer = consumers.remove(0);
    let mut publish = move |message: u8| {
        producer.claim(length).unwrap();
        producer.write(0, &payload(message, length));
        producer.commit(u16::from(message));
    };
    (1..=prefill).for_each(&mut publish);
    let subscriber = thread::spawn(move || {
        let mut delivered_and_lost = 0;
        while delivered_and_lost < u64::from(messages) {
            match consumer.read() {
                Ok(Some(frame)) => {
                    let message = message_of(&consumer.payload(&frame));
                    delivered_and_lost += 1;
                    // In order, and exactly as many were lost as it said.
                    assert_eq!(u64::from(message), delivered_and_lost);
                    assert_eq!((frame.tag, frame.length as usize), (u16::from(message), length));
                    consumer.advance(&frame);
                }
                Ok(None) => thread::yield_now(),
                Err(ReadError::Lost { messages }) => {
                    assert!(messages > 0);
                    delivered_and_lost += messages;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(delivered_and_lost, u64::from(messages));
        assert_eq!(consumer.read(), Ok(None));
    });
    (prefill + 1..=messages).for_each(publish);
    subscriber.join().unwrap();
}

/// Five messages of one word through a ring of three: delivered + lost = published at every moment, in order, none put together from two laps.
/// Bound: 2 preemptions.
#[test]
fn the_loss_count_is_exact_for_short_messages() {
    explore(2, || overrun(5, 0, 8));
}

/// Four messages of two words through a ring of two, where headers come to lie on payload of the lap before: as above, and no payload is torn.
/// Bound: 2 preemptions.
#[test]
fn no_payload_is_torn_by_an_overrun() {
    explore(2, || overrun(4, 0, 16));
}

/// Three messages of the largest size (half of the ring), the first there at the start: every claim announces and overwrites all there was. Bound: 2 preemptions.
#[test]
fn the_largest_messages_are_whole_or_lost() {
    explore(2, || overrun(3, 1, 32));
}

/// Four of them, two there at the start: the announcement that is being read may be replaced by the next but one, in the same slot. Bound: 2 preemptions.
#[test]
fn an_announcement_is_not_read_half() {
    explore(2, || overrun(4, 2, 32));
}
