//! Long streams between processes: several publishers and subscribers at once, every message checked.
//!
//! `RINGBUS_TEST_MESSAGES` is how many each publisher sends.

use std::fmt::Display;
use std::time::Duration;

use media_driver::EmbeddedDriver;
use ringbus::{Address, ChannelBuilder, Client, ImageEvent, Kind, Message, Overflow, PollError, Ready};
use testing::{KINDS, Ledger, PATIENCE, Party, Random, Role, connect, in_time, scaled};

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "publisher" => publisher(role),
        "subscriber" => subscriber(role),
        "sluggard" => sluggard(role),
        other => panic!("there is no role {other}"),
    }
}

fn messages() -> u64 {
    scaled("RINGBUS_TEST_MESSAGES", 100_000)
}

/// A stream at a rate that even a debug build on a crowded machine keeps up with.
fn patience() -> Duration {
    PATIENCE + Duration::from_micros(200) * u32::try_from(messages()).expect("not that many")
}

const LONGEST: u64 = 60;

/// The channel that the first three arguments of each role describe.
fn channel<'a>(client: &'a Client, role: &Role) -> ChannelBuilder<'a> {
    client.channel("stream").kind(role.argument(0)).overflow(role.argument(1)).capacity(role.argument(2))
}

/// Sends its messages to all who are to listen. Arguments: kind, overflow, capacity, own number, subscribers.
fn publisher(mut role: Role) {
    let (number, subscribers): (u32, usize) = (role.argument(3), role.argument(4));
    let count = messages();
    // Parties that differ in this have to understand each other, too.
    let client = ringbus::Client::builder().address(role.address.clone()).membarrier(number % 2 == 0);
    let client = client.connect().expect("a client");
    let mut publication = channel(&client, &role).publication().expect("a publication");
    role.say("ready");
    connect(&mut publication, subscribers);
    role.say("connected");
    let (mut buffer, mut random) = (Vec::new(), Random::new(u64::from(number)));
    let mut sequence = 0;
    while sequence < count {
        testing::fill(&mut buffer, number, sequence, LONGEST);
        // All ways to send, in turn.
        match random.below(8) {
            0 => drop(publication.try_claim(buffer.len())),
            1 => {
                let Ok(mut claim) = publication.try_claim(buffer.len()) else { continue };
                claim.copy_from_slice(&buffer);
                claim.commit();
                sequence += 1;
            }
            2 => {
                let mut batch = publication.batch();
                while sequence < count && batch.offer(&buffer).is_ok() {
                    sequence += 1;
                    testing::fill(&mut buffer, number, sequence, LONGEST);
                }
            }
            _ => {
                publication.offer_until(0, &buffer, in_time()).expect("room in time");
                sequence += 1;
            }
        }
    }
    drop(publication);
    role.say("done");
    role.hold();
}

/// Reads all images to their ends. Arguments: kind, overflow, capacity, publishers. Says how much it got of each.
fn subscriber(mut role: Role) {
    let publishers: u32 = role.argument(3);
    let client = role.client();
    let mut subscription = channel(&client, &role).subscription().expect("a subscription");
    role.say("ready");
    let (mut ledger, mut closed) = (Ledger::default(), 0);
    while closed < publishers {
        match subscription.wait(in_time()) {
            Ready::Messages => {
                let enter = |message: Message<'_>| {
                    ledger.enter(message.payload());
                };
                subscription.poll(enter, 256).expect("no error");
            }
            Ready::Event => {
                closed += u32::from(matches!(subscription.next_event(), Some(ImageEvent::Closed(_))));
            }
            Ready::TimedOut => panic!("nothing comes any more, after {ledger:?}"),
        }
    }
    for number in 0..publishers {
        role.say(ledger.count(number));
    }
    role.hold();
}

/// Subscribes to a lossy channel and sleeps after every so many messages, if at all. Arguments: kind, overflow, capacity, messages between naps. Says
/// how many messages it got, and how many it lost.
fn sluggard(mut role: Role) {
    let nap_after: u64 = role.argument(3);
    let client = role.client();
    let mut subscription = channel(&client, &role).subscription().expect("a subscription");
    role.say("ready");
    let (mut received, mut lost) = (0, 0);
    loop {
        match subscription.wait(in_time()) {
            Ready::Messages => {
                let next = received + lost;
                match subscription.next() {
                    Ok(Some(message)) => {
                        assert_eq!(
                            testing::check(message.payload()),
                            (0, next),
                            "in order, and exactly what was lost is missing"
                        );
                        received += 1;
                    }
                    Ok(None) => {}
                    Err(PollError::Lost { messages, .. }) => lost += messages,
                    Err(error) => panic!("{error}"),
                }
                if nap_after > 0 && received % nap_after == 0 {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
            Ready::Event => {
                if let Some(ImageEvent::Closed(_)) = subscription.next_event() {
                    break;
                }
            }
            Ready::TimedOut => panic!("nothing comes any more, after {received}"),
        }
    }
    role.say(received);
    role.say(lost);
    role.hold();
}

fn parties(role: &str, address: &Address, count: usize, arguments: impl Fn(usize) -> Vec<String>) -> Vec<Party> {
    let start = |number| {
        let arguments = arguments(number);
        let arguments: Vec<&dyn Display> = arguments.iter().map(|argument| argument as &dyn Display).collect();
        Party::start(role, address, &arguments)
    };
    let parties: Vec<Party> = (0..count).map(start).collect();
    parties.iter().for_each(|party| party.expect("ready"));
    parties
}

/// Streams from so many publishers to so many subscribers, and checks that everything arrives once, in order. `interfere` may
/// do something to publishers and subscribers meanwhile.
fn stream(kind: Kind, capacity: u64, publishers: usize, subscribers: usize, interfere: impl Fn(&[Party], &[Party])) {
    for publishers_first in [false, true] {
        let driver = EmbeddedDriver::launch().expect("a driver");
        let channel = [kind.to_string(), Overflow::Block.to_string(), capacity.to_string()];
        let arguments = |rest: &[usize]| channel.iter().cloned().chain(rest.iter().map(ToString::to_string)).collect();
        let senders = || parties("publisher", driver.address(), publishers, |number| arguments(&[number, subscribers]));
        let receivers = || parties("subscriber", driver.address(), subscribers, |_| arguments(&[publishers]));
        let (senders, receivers) = if publishers_first {
            let senders = senders();
            (senders, receivers())
        } else {
            let receivers = receivers();
            (senders(), receivers)
        };
        senders.iter().for_each(|sender| sender.expect("connected"));
        interfere(&senders, &receivers);
        for sender in &senders {
            assert_eq!(sender.hear_within(patience()), "done");
        }
        for receiver in &receivers {
            for _ in 0..publishers {
                assert_eq!(receiver.hear_within(patience()), messages().to_string());
            }
        }
        senders.into_iter().chain(receivers).for_each(Party::finish);
    }
}

#[test]
fn one_publisher_reaches_one_subscriber_through_the_smallest_ring() {
    for kind in KINDS {
        stream(kind, 4096, 1, 1, |_, _| ());
    }
}

#[test]
fn three_publishers_reach_the_subscriber_of_an_mpsc_channel() {
    stream(Kind::Mpsc, 1 << 16, 3, 1, |_, _| ());
}

#[test]
fn three_publishers_meet_in_the_smallest_mpsc_ring() {
    stream(Kind::Mpsc, 4096, 3, 1, |_, _| ());
}

#[test]
fn three_publishers_reach_three_subscribers_of_a_broadcast_channel() {
    stream(Kind::Broadcast, 1 << 16, 3, 3, |_, _| ());
}

#[test]
fn a_subscriber_that_is_stopped_and_continued_loses_nothing() {
    for kind in KINDS {
        stream(kind, 1 << 14, 1, 1, |publishers, subscribers| {
            for _ in 0..5 {
                subscribers[0].stop();
                // It has filled the ring, or is done.
                publishers[0].wait_all_asleep();
                subscribers[0].go_on();
            }
        });
    }
}

#[test]
fn subscribers_of_a_lossy_channel_account_for_every_message() {
    for kind in [Kind::Broadcast, Kind::Spsc] {
        let driver = EmbeddedDriver::launch().expect("a driver");
        let channel = [kind.to_string(), Overflow::Lossy.to_string(), (1 << 14).to_string()];
        let arguments = |rest: &[usize]| channel.iter().cloned().chain(rest.iter().map(ToString::to_string)).collect();
        // One as fast as it can, one slower, one much slower.
        let naps: &[usize] = if kind == Kind::Spsc { &[50] } else { &[0, 100, 7] };
        let receivers = parties("sluggard", driver.address(), naps.len(), |number| arguments(&[naps[number]]));
        let senders = parties("publisher", driver.address(), 1, |number| arguments(&[number, naps.len()]));
        senders[0].expect("connected");
        assert_eq!(senders[0].hear_within(patience()), "done");
        for (receiver, nap) in receivers.iter().zip(naps) {
            let number = || receiver.hear_within(patience()).parse::<u64>().expect("a number");
            let (received, lost) = (number(), number());
            assert_eq!(received + lost, messages());
            assert!(*nap != 7 || lost > 0, "it was far too slow not to be lapped");
        }
        senders.into_iter().chain(receivers).for_each(Party::finish);
    }
}
