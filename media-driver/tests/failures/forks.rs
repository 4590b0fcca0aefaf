//! A process forks, and its child goes on with what it has inherited.

use ringbus::{Kind, OfferError, Overflow, PollError};
use testing::{DriverProcess, KINDS, Party, Role, in_a_child, in_time, pair};

use crate::naive_ring::NaiveRing;
use crate::{SMALLEST, nowhere, observed};

/// Has two values in its ring when it forks. The child takes one. Argument: file.
pub(crate) fn naive_forker(mut role: Role) {
    let path: String = role.argument(0);
    let ring = NaiveRing::open(path.as_ref());
    for value in 1..=2 {
        ring.commit(ring.claim(), value);
    }
    assert!(in_a_child(|| assert_eq!(ring.take(), 1)));
    role.say(ring.take());
    role.hold();
}

/// Has two messages in its ring when it forks. The child tries to take one, and to send one. Argument: the kind of channel, by its place in [`KINDS`].
pub(crate) fn forker(role: Role) {
    let kind: Kind = KINDS[role.argument::<usize>(0)];
    let client = role.client();
    let (mut publication, mut subscription) = pair(&client, "forked", kind, Overflow::Block, SMALLEST);
    for message in [b"1", b"2"] {
        publication.offer(message).expect("it is sent");
    }
    let well = in_a_child(|| {
        assert_eq!(subscription.next().err(), Some(PollError::Forked));
        assert_eq!(publication.offer(b"of the child"), Err(OfferError::Forked));
    });
    assert!(well);
    publication.offer(b"3").expect("it is sent");
    for message in [b"1", b"2", b"3"] {
        assert_eq!(subscription.recv_until(in_time()).expect("it arrives").payload(), message);
    }
    assert!(subscription.next().expect("no error").is_none());
    role.say("all");
}

/// A forked child goes on with its parent's memory and descriptors: two consumers where there was one.
#[test]
fn a_forked_child_consumes_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let naive = Party::start("naive forker", &nowhere(), &[&directory.path().join("ring").display()]);
    naive.expect("2");

    let driver = DriverProcess::launch();
    for kind in 0..KINDS.len() {
        let party = Party::start("forker", &driver.address, &[&kind]);
        party.expect("all");
        party.finish();
    }
    observed(
        "the child takes the first of two messages, and the parent gets the second only",
        "the child's next() and offer() say Forked (all kinds); the parent gets all messages, and none of the child's",
    );
}
