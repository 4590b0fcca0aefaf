//! A process that forks: the child has inherited its parent's handles, but must not publish, consume or close anything with them. The parent does not notice that there was a child.

use std::time::Instant;

use media_driver::EmbeddedDriver;
use ringbus::{Client, Error, Kind, OfferError, Overflow, PollError, Publication, Ready, RecvError, Subscription};
use testing::{DriverProcess, KINDS, Party, Role, assert_works, connect, in_a_child, in_time, pair};

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => testing::play_driver(role),
        "parent" => parent(role),
        "host" => host(role),
        "streaming" => streaming(role),
        other => panic!("no role {other}"),
    }
}

/// All that one can do with handles that are the parent's.
fn misuse(client: Client, mut publication: Publication, mut subscription: Subscription) {
    let name = subscription.channel().name.to_string();
    assert_eq!(publication.offer(b"from the child"), Err(OfferError::Forked));
    assert_eq!(publication.offer_until(0, b"from the child", in_time()), Err(OfferError::Forked));
    assert_eq!(publication.batch().offer(b"from the child"), Err(OfferError::Forked));
    assert_eq!(publication.try_claim(8).err(), Some(OfferError::Forked));
    assert_eq!(publication.wait_connected(in_time()), Err(OfferError::Forked));
    assert_eq!(publication.subscribers(), 0);
    assert_eq!(subscription.lag(1), None);
    assert_eq!(subscription.wait(in_time()), Ready::Messages, "there is something to be told");
    assert_eq!(subscription.poll(|_| panic!("a message"), 10), Err(PollError::Forked));
    assert_eq!(subscription.next().err(), Some(PollError::Forked));
    assert_eq!(subscription.recv_until(in_time()).err(), Some(RecvError::Poll(PollError::Forked)));
    assert!(matches!(client.list(), Err(Error::Forked)));
    assert!(matches!(client.publication(&name), Err(Error::Forked)));
    assert!(matches!(client.subscription("another"), Err(Error::Forked)));
    drop((publication, subscription, client));
}

/// Sends, forks with a message under way, and goes on. The child does what it should not, then what it should.
fn parent(role: Role) {
    let kind = KINDS[role.argument::<usize>(0)];
    let client = role.client();
    let (mut publication, mut subscription) = pair(&client, "forked", kind, Overflow::Block, 4096);
    assert_works(&mut publication, &mut subscription);
    publication.offer(b"under way").expect("it is sent");
    let address = role.address.clone();
    let handles = (client.clone(), publication, subscription);
    // The child gets copies of what the parent keeps: neither knows of the other.
    let (client, mut publication, mut subscription) = {
        let copies = std::mem::ManuallyDrop::new(handles);
        let well = in_a_child(|| {
            // SAFETY: a process of its own, whose copies these are; the originals are in the parent.
            let (client, publication, subscription) = unsafe { std::ptr::read(&*copies) };
            let publication_name = publication.channel().name.to_string();
            // With a client of its own the child is like any other process. Its thread may get the number that the parent's has.
            let own = Client::builder().address(address.clone()).connect().expect("a client of the child's own");
            misuse(client, publication, subscription);
            assert_eq!(own.list().expect("the driver's table").len(), 2, "the parent's {publication_name}");
            let (mut publication, mut subscription) = pair(&own, "of-the-child", kind, Overflow::Block, 4096);
            assert_works(&mut publication, &mut subscription);
        });
        assert!(well, "the child has failed");
        std::mem::ManuallyDrop::into_inner(copies)
    };
    assert_eq!(subscription.recv_until(in_time()).expect("the message under way").payload(), b"under way");
    assert_works(&mut publication, &mut subscription);
    // A process that forks without an `exec` and ends: nothing of the parent's goes with it.
    assert!(in_a_child(|| ()));
    assert_works(&mut publication, &mut subscription);
    let others = if kind == Kind::Broadcast { 1 } else { 0 };
    if others > 0 {
        let mut second = client.subscription("forked").expect("another subscription");
        connect(&mut publication, 2);
        publication.offer(b"to both").expect("it is sent");
        assert_eq!(second.recv_until(in_time()).expect("it arrives").payload(), b"to both");
        assert_eq!(subscription.recv_until(in_time()).expect("it arrives").payload(), b"to both");
    }
    assert_eq!(subscription.recv_until(Some(Instant::now())).err(), Some(RecvError::TimedOut), "nothing came from the child");
    role.say("done");
}

/// Forks with what has more to do when it is dropped: a batch, and a driver inside.
fn host(role: Role) {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, 4096);
        let mut batch = publication.batch();
        batch.offer(b"one").expect("room");
        assert!(in_a_child(|| {
            // SAFETY: a process of its own, whose copy this is.
            drop(unsafe { std::ptr::read(&raw const batch) });
        }));
        batch.offer(b"two").expect("room");
        drop(batch);
        for text in ["one", "two"] {
            assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), text.as_bytes());
        }
    }
    assert!(in_a_child(|| {
        // SAFETY: as above.
        drop(unsafe { std::ptr::read(&raw const driver) });
    }));
    let (mut publication, mut subscription) = pair(&client, "after", Kind::Broadcast, Overflow::Block, 4096);
    assert_works(&mut publication, &mut subscription);
    role.say("done");
}

/// Forks wherever a subscription may have begun to stay away from a stream.
fn streaming(role: Role) {
    let client = role.client();
    for kind in KINDS {
        // It looks at the rate for the first time after 128 KiB.
        for messages in 30..36 {
            let (mut publication, mut subscription) = pair(&client, "stream", kind, Overflow::Block, 1 << 20);
            for _ in 0..messages {
                publication.offer(&[1; 4096]).expect("room");
                assert_eq!(subscription.poll(|_| (), 1), Ok(1));
            }
            assert!(in_a_child(|| {
                // SAFETY: a process of its own, whose copy this is.
                let mut subscription = std::mem::ManuallyDrop::new(unsafe { std::ptr::read(&raw const subscription) });
                assert_eq!(subscription.poll(|_| (), 1), Err(PollError::Forked));
            }));
        }
    }
    role.say("done");
}

/// Found by review: a child that polled while its parent stayed away from a stream looked at memory that it does not have.
#[test]
fn a_child_does_not_look_at_the_stream_that_its_parent_stays_away_from() {
    let driver = DriverProcess::launch();
    let party = Party::start("streaming", &driver.address, &[]);
    party.expect("done");
    party.finish();
}

#[test]
fn a_child_drops_what_it_has_inherited_without_harm() {
    let driver = DriverProcess::launch();
    let party = Party::start("host", &driver.address, &[]);
    party.expect("done");
    party.finish();
}

#[test]
fn a_child_cannot_use_its_parents_handles_and_the_parent_does_not_notice() {
    for index in 0..KINDS.len() {
        let driver = DriverProcess::launch();
        let party = Party::start("parent", &driver.address, &[&index]);
        party.expect("done");
        party.finish();
    }
}
