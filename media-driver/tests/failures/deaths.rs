//! A peer dies in the middle of something, and the others wait for it.

use std::path::Path;

use ringbus::{ImageEvent, Kind, OfferError, Overflow};
use testing::{DriverProcess, KINDS, Party, Role, SOON, assert_works, connect, event, in_time, now, pair, thread_id};

use crate::naive_ring::{NaiveRing, SLOTS};
use crate::{SMALLEST, STALL, nowhere, observed};

/// Puts so many values into a naive ring, and then claims another slot and no more, if it is to. Arguments: file, values, whether to claim.
pub(crate) fn naive_producer(mut role: Role) {
    let (path, values, claims): (String, u64, bool) = (role.argument(0), role.argument(1), role.argument(2));
    let ring = NaiveRing::open(Path::new(&path));
    for value in 1..=values {
        ring.commit(ring.claim(), value);
        role.say(value);
    }
    if claims {
        ring.claim();
        role.say("claimed");
    }
    role.hold();
}

/// Takes so many values out of a naive ring. Arguments: file, values.
pub(crate) fn naive_consumer(mut role: Role) {
    let (path, values): (String, u64) = (role.argument(0), role.argument(1));
    let ring = NaiveRing::open(Path::new(&path));
    role.say("ready");
    for _ in 0..values {
        role.say(ring.take());
    }
    role.hold();
}

/// Claims, writes half of it, and does no more. Argument: channel.
pub(crate) fn claimer(mut role: Role) {
    let channel: String = role.argument(0);
    let mut publication = role.client().publication(&channel).expect("a publication");
    connect(&mut publication, 1);
    let mut claim = publication.try_claim(100).expect("room");
    claim[..50].fill(0xFF);
    role.say("claimed");
    role.hold();
}

/// A producer dies between its claim and its commit: whatever is behind it stays there.
#[test]
fn a_producer_dies_in_mid_write() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ring");
    let ring = NaiveRing::open(&path);
    let mut dying = Party::start("naive producer", &nowhere(), &[&path.display(), &0, &true]);
    dying.expect("claimed");
    dying.kill();
    let living = Party::start("naive producer", &nowhere(), &[&path.display(), &3, &false]);
    (1..=3).for_each(|value| living.expect(&value.to_string()));
    let consumer = Party::start("naive consumer", &nowhere(), &[&path.display(), &1]);
    consumer.expect("ready");
    assert_eq!(consumer.heard_within(STALL), None, "it waits for the dead");
    assert_eq!(ring.committed(), 3);

    let driver = DriverProcess::launch();
    let client = driver.connect();
    let (mut publication, mut subscription) = pair(&client, "claims", Kind::Mpsc, Overflow::Block, SMALLEST);
    for _ in 0..5 {
        let mut dying = Party::start("claimer", &driver.address, &[&"claims"]);
        dying.expect("claimed");
        for text in [b"one", b"two", b"six"] {
            publication.offer(text).expect("room");
        }
        assert!(subscription.next().expect("no error").is_none(), "they are behind the claim");
        let killed = now();
        dying.kill();
        for text in [b"one", b"two", b"six"] {
            assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), text);
        }
        let took = now() - killed;
        assert!(u128::from(took) < SOON.as_nanos(), "{took} ns");
        assert_works(&mut publication, &mut subscription);
    }
    observed(
        "claim by fetch_add, then killed: the consumer waits for that slot, three committed messages behind it",
        format!("killed in mid-claim, five times: the three messages behind it arrive within {SOON:?}, none is lost"),
    );
}

/// Sends until there is no room, and waits for it then. Arguments: channel, subscribers. Says how that ended.
pub(crate) fn blocked(mut role: Role) {
    let channel: String = role.argument(0);
    let mut publication = role.client().publication(&channel).expect("a publication");
    connect(&mut publication, role.argument(1));
    while publication.offer(&[0; 100]).is_ok() {}
    role.say(thread_id());
    let result = publication.offer_until(0, &[0; 100], in_time());
    role.say(now());
    assert!(matches!(result, Ok(_) | Err(OfferError::NotConnected)), "{result:?}");
    role.say(if result.is_ok() { "sent" } else { "nobody subscribes" });
    role.hold();
}

/// The reader dies while the queue is full.
#[test]
fn a_reader_dies() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ring");
    let mut reader = Party::start("naive consumer", &nowhere(), &[&path.display(), &3]);
    reader.expect("ready");
    let writer = Party::start("naive producer", &nowhere(), &[&path.display(), &100, &false]);
    (1..=3).for_each(|value| reader.expect(&value.to_string()));
    reader.kill();
    (1..=3 + SLOTS).for_each(|value| writer.expect(&value.to_string()));
    assert_eq!(writer.heard_within(STALL), None, "it waits for the dead");

    for kind in KINDS {
        let driver = DriverProcess::launch();
        let client = driver.connect();
        let mut idler = Party::start("idler", &driver.address, &[&"ring", &kind]);
        idler.expect("ready");
        // Another one, which has read everything.
        let mut reader = (kind == Kind::Broadcast).then(|| client.subscription("ring").expect("a subscription"));
        let publisher = Party::start("blocked", &driver.address, &[&"ring", &(1 + usize::from(reader.is_some()))]);
        let thread = publisher.hear();
        if let Some(reader) = &mut reader {
            assert!(matches!(event(reader), ImageEvent::Available(_)) || reader.images().len() == 1);
            while reader.next().expect("no error").is_some() {}
        }
        publisher.wait_asleep(&thread);
        let killed = now();
        idler.kill();
        let noticed: u64 = publisher.hear_number();
        publisher.expect(if reader.is_some() { "sent" } else { "nobody subscribes" });
        assert!(u128::from(noticed.saturating_sub(killed)) < SOON.as_nanos(), "{kind}: {noticed} after {killed}");
    }
    observed(
        format!("a full ring of {SLOTS} slots, its reader killed: the writer waits for room for ever"),
        format!(
            "the reader killed: a writer that slept on a full ring goes on within {SOON:?}: with the other reader (broadcast), or with \"nobody subscribes\""
        ),
    );
}
