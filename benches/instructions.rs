//! What is executed per message, one function an operation, for `scripts/instructions` to count under callgrind: a count does not depend on what else the machine does. Run by
//! itself it only shows that it works.
//!
//! Publications and subscriptions are in one process and take turns, so nobody waits.

use std::error::Error;
use std::hint::black_box;

use media_driver::EmbeddedDriver;
use ringbus::{Idle, Kind, Publication, Subscription};

/// Messages of a turn. All fit into the ring.
const MESSAGES: usize = 1000;
const CAPACITY: u64 = 1 << 20;

/// A message whose length is known when compiling, as most are.
#[inline(always)]
fn offer<const BYTES: usize>(publication: &mut Publication) {
    let message = [7; BYTES];
    for _ in 0..MESSAGES {
        let _ = black_box(publication.offer(&black_box(message)[..]).is_ok());
    }
}

#[inline(never)]
fn offer_32(publication: &mut Publication) {
    offer::<32>(publication);
}

#[inline(never)]
fn offer_64(publication: &mut Publication) {
    offer::<64>(publication);
}

#[inline(never)]
fn offer_any_length(publication: &mut Publication, message: &[u8]) {
    for _ in 0..MESSAGES {
        let _ = black_box(publication.offer(black_box(message)).is_ok());
    }
}

#[inline(never)]
fn claim_and_commit(publication: &mut Publication) {
    for _ in 0..MESSAGES {
        if let Ok(mut claim) = publication.try_claim(32) {
            claim.fill(7);
            claim.commit();
        }
    }
}

#[inline(never)]
fn offer_in_batch(publication: &mut Publication) {
    let message = [7; 32];
    let mut batch = publication.batch();
    for _ in 0..MESSAGES {
        let _ = black_box(batch.offer(&black_box(message)[..]).is_ok());
    }
}

#[inline(never)]
fn poll(subscription: &mut Subscription) -> Result<usize, Box<dyn Error>> {
    let (mut got, mut bytes) = (0, 0);
    while got < MESSAGES {
        got += subscription.poll(|message| bytes += message.payload().len(), 256)?;
    }
    Ok(bytes)
}

#[inline(never)]
fn next(subscription: &mut Subscription) -> Result<usize, Box<dyn Error>> {
    let mut bytes = 0;
    for _ in 0..MESSAGES {
        bytes += subscription.next()?.ok_or("a message is missing")?.payload().len();
    }
    Ok(bytes)
}

/// Arguments: a kind of channel and how many subscribe; what cargo adds besides does not count.
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let kind: Kind = arguments.next().map_or(Ok(Kind::Broadcast), |kind| kind.parse())?;
    let subscribers: usize = arguments.next().map_or(Ok(1), |number| number.parse())?;
    let driver = EmbeddedDriver::launch()?;
    let client = driver.connect()?;
    let channel = || client.channel("instructions").kind(kind).capacity(CAPACITY).idle(Idle::BusySpin);
    let mut subscriptions = (0..subscribers).map(|_| channel().subscription()).collect::<Result<Vec<_>, _>>()?;
    let mut publication = channel().publication()?;
    publication.wait_for_subscribers(subscribers, None)?;
    let ways: [fn(&mut Publication); 5] =
        [offer_32, offer_64, |publication| offer_any_length(publication, &[7; 32]), claim_and_commit, offer_in_batch];
    for (index, way) in ways.into_iter().enumerate() {
        way(&mut publication);
        for subscription in &mut subscriptions {
            black_box(if index % 2 == 0 { poll(subscription) } else { next(subscription) }?);
        }
    }
    println!("{kind}, {subscribers} subscribers: {} messages each", MESSAGES * ways.len());
    Ok(())
}
