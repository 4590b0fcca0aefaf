//! What must be true of a channel when all its parties have ended: every publisher P of this epoch against every subscriber S.
//!
//! That the messages of an image come in order, without a gap or a repetition, and undamaged, S has checked itself. Here:
//!
//! 1. *Nothing is invented.* S has no message of P beyond those attempted, and none of somebody who never was on the channel.
//! 2. *Nothing committed is lost.* If S saw the end of the image, it had all up to P's last: exactly those committed if P closed; if P was killed, the one in doubt may be
//!    there or not. On a lossy channel messages count that were reported lost.
//! 3. *The beginning is there.* If P counted as many subscribers before its first message as there were subscriptions on the channel at that time (and shortly before), then all of them were linked,
//!    and who of them saw the end must have begun with message 0. (A later joiner may begin anywhere: only the publisher decides where, and does not say.)
//! 4. *Delivered once.* Where there is one subscription at a time, a later one begins behind what an earlier one got.
//! 5. *No link breaks.* An image with messages does not end before P closed or was killed, and S gets messages of P in one image only.

use ringbus::Overflow;

use crate::ledger::{ATTEMPTED, COMMITTED, FIRST_AT, IMAGES, Image, OBJECT, SUBSCRIBERS_AT_FIRST};
use crate::mesh::{Channel, End, Incarnation, Side};

/// What was found.
#[derive(Debug, Default, Clone, Copy)]
pub struct Found {
    /// Pairs that were compared to the end.
    pub pairs: u64,
    /// Of those, begun with message 0 because rule 3 says so.
    pub from_the_start: u64,
    /// Publishers killed with a message in doubt.
    pub in_doubt: u64,
}

/// An image in S's ledger, as read.
struct Seen {
    index: usize,
    publication: u64,
    sender: u64,
    first: u64,
    next: u64,
    delivered: u64,
    lost: u64,
    ended_at: u64,
}

fn images(subscriber: &Incarnation) -> Vec<Seen> {
    let ledger = &subscriber.ledger;
    let image = |index| {
        let get = |word| ledger.image(index, word);
        Seen {
            index,
            publication: get(Image::Publication),
            sender: get(Image::Sender),
            first: get(Image::First),
            next: get(Image::Next),
            delivered: get(Image::Delivered),
            lost: get(Image::Lost),
            ended_at: get(Image::EndedAt),
        }
    };
    (0..ledger.get(IMAGES) as usize).map(image).collect()
}

/// Images of a living subscriber that have not ended.
pub fn open_images(subscriber: &Incarnation) -> Vec<usize> {
    images(subscriber).into_iter().filter(|image| image.ended_at == 0).map(|image| image.index).collect()
}

/// What a subscriber is to get next of a publisher: 0 before the first message.
pub fn next_of(subscriber: &Incarnation, publisher: &Incarnation) -> Option<u64> {
    let of = |image: &Seen| image.sender == u64::from(publisher.number);
    images(subscriber).into_iter().filter(of).map(|image| image.next).max()
}

/// Applies all rules. Each violation is told with the name of the rule.
pub fn verify(channel: &Channel, mut violation: impl FnMut(String)) -> Found {
    let mut found = Found::default();
    let publishers: Vec<&Incarnation> = channel.of(Side::Publisher).collect();
    for publisher in &publishers {
        let in_doubt = publisher.ledger.get(ATTEMPTED) > publisher.ledger.get(COMMITTED);
        found.in_doubt += u64::from(in_doubt);
        if in_doubt && !matches!(publisher.end, End::Killed(_)) {
            violation(format!("{} has closed in the middle of an offer", publisher.name()));
        }
    }
    for subscriber in channel.of(Side::Subscriber) {
        for image in images(subscriber).iter().filter(|image| image.sender != 0) {
            let Some(publisher) = publishers.iter().find(|publisher| u64::from(publisher.number) == image.sender) else {
                violation(format!("1: {} has messages of {}, who never was here", subscriber.name(), image.sender));
                continue;
            };
            check_image(publisher, subscriber, image, &mut violation, &mut found);
        }
    }
    for publisher in &publishers {
        check_start(channel, publisher, &mut violation, &mut found);
        if channel.has_one_subscriber() {
            check_once(channel, publisher, &mut violation);
        }
    }
    found
}

fn check_image(
    publisher: &Incarnation,
    subscriber: &Incarnation,
    image: &Seen,
    violation: &mut impl FnMut(String),
    found: &mut Found,
) {
    let pair = format!("{} of {}", subscriber.name(), publisher.name());
    let (attempted, committed) = (publisher.ledger.get(ATTEMPTED), publisher.ledger.get(COMMITTED));
    let killed = matches!(subscriber.end, End::Killed(_));
    if image.publication != 0 && image.publication != publisher.ledger.get(OBJECT) {
        violation(format!("1: {pair}: the image says it is of another publication"));
    }
    if image.next > attempted {
        violation(format!("1: {pair}: {} messages, but only {attempted} were attempted", image.next));
    }
    // A kill falls between two stores.
    if !killed && image.first + image.delivered + image.lost != image.next {
        let Seen { first, delivered, lost, next, .. } = image;
        violation(format!("1: {pair}: from {first}, {delivered} delivered and {lost} lost are not {next}"));
    }
    if image.ended_at == 0 {
        return;
    }
    found.pairs += 1;
    if image.next < committed {
        violation(format!("2: {pair}: got {} of {committed} committed (from {})", image.next, image.first));
    }
    if image.ended_at < publisher.ended_at() {
        violation(format!("5: {pair}: the image ended before the publisher did"));
    }
}

fn check_start(channel: &Channel, publisher: &Incarnation, violation: &mut impl FnMut(String), found: &mut Found) {
    let first_at = publisher.ledger.get(FIRST_AT);
    let committed = publisher.ledger.get(COMMITTED);
    if committed == 0 {
        return;
    }
    // P may still have counted one that was dead already: the driver, or its successor, had not told it yet.
    const LINGERING: u64 = 10_000_000_000;
    let there = |subscriber: &&Incarnation| {
        subscriber.told_at <= first_at && subscriber.ended_at().saturating_add(LINGERING) >= publisher.told_at
    };
    let subscribers: Vec<&Incarnation> = channel.of(Side::Subscriber).filter(there).collect();
    if (publisher.ledger.get(SUBSCRIBERS_AT_FIRST) as usize) < subscribers.len() {
        return;
    }
    for subscriber in subscribers {
        let own = images(subscriber);
        let of_it: Vec<&Seen> = own.iter().filter(|image| image.sender == u64::from(publisher.number)).collect();
        let of_publication = own.iter().filter(|image| image.publication == publisher.ledger.get(OBJECT));
        let pair = format!("{} of {}", subscriber.name(), publisher.name());
        match of_it.as_slice() {
            [image] if image.first == 0 => found.from_the_start += 1,
            [image] => violation(format!("3: {pair}: begins with {}, not 0", image.first)),
            // It saw the end, and nothing before.
            [] if of_publication.clone().any(|image| image.ended_at != 0) => {
                let lost: u64 = of_publication.map(|image| image.lost).sum();
                // All of it may have been overwritten before the first was read.
                if channel.overflow == Overflow::Block || lost < committed {
                    violation(format!("3: {pair}: got none of {committed}"));
                }
            }
            [] => {}
            _ => violation(format!("5: {pair}: messages in {} images", of_it.len())),
        }
    }
}

fn check_once(channel: &Channel, publisher: &Incarnation, violation: &mut impl FnMut(String)) {
    let mut got: Vec<(u64, u64, String)> = Vec::new();
    for subscriber in channel.of(Side::Subscriber) {
        for image in images(subscriber).iter().filter(|image| image.sender == u64::from(publisher.number)) {
            got.push((image.first, image.next, subscriber.name()));
        }
    }
    got.sort();
    for pair in got.windows(2) {
        if pair[1].0 < pair[0].1 {
            violation(format!("4: {}: delivered twice: {pair:?}", publisher.name()));
        }
    }
}
