//! Long streams between processes: several publishers and subscribers at once, every message checked.
//!
//! `RINGBUS_TEST_MESSAGES` is how many each publisher sends.

mod support;

use std::time::Duration;

use media_driver::EmbeddedDriver;
use ringbus::{Address, Idle, ImageEvent, Kind, Overflow, PollError, Ready, Subscription};
use support::{KINDS, Ledger, PATIENCE, Party, Random, Role, connect, in_time, scaled};

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

/// Sends its messages to all who are to listen. Arguments: channel, own number, messages, subscribers.
fn publisher(mut role: Role) {
    let (channel, number): (String, u32) = (role.argument(0), role.argument(1));
    let (count, subscribers): (u64, usize) = (role.argument(2), role.argument(3));
    // Parties that differ in this have to understand each other, too.
    let client = ringbus::Client::builder().address(role.address.clone()).membarrier(number % 2 == 0);
    let mut publication = client.connect().expect("a client").publication(&channel).expect("a publication");
    role.say("ready");
    connect(&mut publication, subscribers);
    let (mut buffer, mut random) = (Vec::new(), Random::new(u64::from(number)));
    let mut sequence = 0;
    while sequence < count {
        support::fill(&mut buffer, number, sequence, LONGEST);
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
                    support::fill(&mut buffer, number, sequence, LONGEST);
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

/// Reads all images to their ends. Arguments: channel, kind, capacity, publishers. Says how much it got of each.
fn subscriber(mut role: Role) {
    let (channel, kind, capacity): (String, Kind, u64) = (role.argument(0), role.argument(1), role.argument(2));
    let publishers: u32 = role.argument(3);
    let client = role.client();
    let mut subscription = client.channel(&channel).kind(kind).capacity(capacity).subscription().expect("a subscription");
    role.say("ready");
    let (mut ledger, mut closed) = (Ledger::default(), 0);
    while closed < publishers {
        match subscription.wait(in_time()) {
            Ready::Messages => {
                subscription.poll(|message| drop(ledger.enter(message.payload())), 256).expect("no error");
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

/// Streams between that many publishers and subscribers; `publishers_first` is the order of arrival.
fn stream(kind: Kind, capacity: u64, publishers: u32, subscribers: usize, publishers_first: bool) {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let (address, count) = (driver.address(), messages());
    let start_subscribers = || -> Vec<Party> {
        (0..subscribers).map(|_| Party::start("subscriber", address, &[&"stream", &kind, &capacity, &publishers])).collect()
    };
    let start_publishers = || -> Vec<Party> {
        (0..publishers).map(|number| Party::start("publisher", address, &[&"stream", &number, &count, &subscribers])).collect()
    };
    let ready = |parties: Vec<Party>| {
        parties.iter().for_each(|party| party.expect("ready"));
        parties
    };
    // Whoever is first creates the channel.
    let client = driver.connect().expect("a client");
    let (senders, receivers);
    if publishers_first {
        let founder = client.channel("stream").kind(kind).capacity(capacity);
        let founder = (publishers == 1).then_some(None).unwrap_or_else(|| Some(founder.publication().expect("a publication")));
        match founder {
            // With one of each, the subscriber has to be the founder: it knows the properties.
            None => {
                receivers = ready(start_subscribers());
                senders = ready(start_publishers());
            }
            Some(founder) => {
                senders = ready(start_publishers());
                drop(founder);
                receivers = ready(start_subscribers());
            }
        }
    } else {
        receivers = ready(start_subscribers());
        senders = ready(start_publishers());
    }
    for sender in &senders {
        assert_eq!(sender.hear_within(patience()), "done");
    }
    for receiver in receivers {
        for _ in 0..publishers {
            assert_eq!(receiver.hear_within(patience()), count.to_string());
        }
        receiver.finish();
    }
    senders.into_iter().for_each(Party::finish);
}

#[test]
fn one_publisher_reaches_one_subscriber_through_the_smallest_ring() {
    for kind in KINDS {
        stream(kind, 4096, 1, 1, false);
    }
}
