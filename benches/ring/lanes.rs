//! What goes from end to end over ringbus: numbered messages, written in full by who sends them, and read in full and checked by who receives them.

use std::time::{Duration, Instant};

use ringbus::{ChannelBuilder, Claim, Client, HugePages, Idle, Kind, OfferError, Publication, Ready, Subscription};

use crate::harness::{End, Measured, median_of_batches};
use crate::message::{Check, Message, Source};

/// Within this time the other end comes, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
/// Messages that are taken at once.
const POLL: usize = 256;

/// How a message gets into the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Copied from a buffer.
    Offer,
    /// Made in place.
    Claim,
}

/// What sort of channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    pub kind: Kind,
    pub capacity: u64,
    pub huge_pages: HugePages,
    pub idle: Idle,
}

impl Default for Sort {
    /// What one gets unless one asks for something else, but that the ring is touched beforehand: the page faults of its first lap are no part of what is measured.
    fn default() -> Self {
        Self { kind: Kind::Broadcast, capacity: 4 << 20, huge_pages: HugePages::Never, idle: Idle::default() }
    }
}

impl Sort {
    /// A publication; there may be others on the channel.
    pub fn publication(&self, client: &Client, name: &str) -> Result<Publication, String> {
        self.channel(client, name).publication().map_err(text)
    }

    /// A subscription.
    pub fn subscription(&self, client: &Client, name: &str) -> Result<Subscription, String> {
        self.channel(client, name).subscription().map_err(text)
    }

    fn channel<'a>(&self, client: &'a Client, name: &str) -> ChannelBuilder<'a> {
        client.channel(name).kind(self.kind).capacity(self.capacity).huge_pages(self.huge_pages).prefault(true).idle(self.idle)
    }
}

/// Waits until so many listen.
pub fn connect(publication: &mut Publication, subscribers: usize) -> Result<(), String> {
    match publication.wait_for_subscribers(subscribers, Some(Instant::now() + PATIENCE)) {
        Ok(true) => Ok(()),
        Ok(false) => Err("the other end does not come".into()),
        Err(error) => Err(text(error)),
    }
}

/// A channel in each direction.
pub struct Lanes {
    pub out: Publication,
    pub back: Subscription,
}

impl Lanes {
    /// Both ends do this, with the same name. When it returns, both have all they need.
    pub fn open(client: &Client, end: End, name: &str, sort: Sort) -> Result<Self, String> {
        let [mut out, mut back] = ["right", "left"].map(|direction| format!("{name}/{direction}"));
        if end == End::Right {
            std::mem::swap(&mut out, &mut back);
        }
        let mut lanes = Self { out: sort.publication(client, &out)?, back: sort.subscription(client, &back)? };
        connect(&mut lanes.out, 1)?;
        lanes.tell(&[])?;
        lanes.hear(|_| ())?;
        Ok(lanes)
    }

    /// Sends something that is no message to be counted.
    pub fn tell(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.out.offer_until(0, bytes, None).map(drop).map_err(text)
    }

    /// Waits for it.
    pub fn hear<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Result<T, String> {
        Ok(read(self.back.recv().map_err(text)?.payload()))
    }

    /// An end's part in round trips. Value: nanoseconds of one.
    pub fn round_trips<const BYTES: usize>(&mut self, way: Way, end: End, length: Duration) -> Result<Measured, String> {
        let (mut source, mut check, mut number) = (Source::<BYTES>::new(), Check::<BYTES>::default(), 0);
        let mut nanoseconds = 0.0;
        match end {
            End::Left => {
                nanoseconds = median_of_batches(length, |last| {
                    send(&mut self.out, way, source.message(number, last))?;
                    self.hear(|payload| check.read(payload))?;
                    number += 1;
                    Ok(())
                })?;
            }
            End::Right => {
                while !check.last {
                    self.hear(|payload| check.read(payload))?;
                    send(&mut self.out, way, source.message(number, check.last))?;
                    number += 1;
                }
            }
        }
        check.verdict()?;
        Ok(Measured::from((number, nanoseconds)))
    }

    /// An end's part in a stream from left to right. Value: nanoseconds of a message.
    pub fn stream<const BYTES: usize>(&mut self, way: Way, end: End, length: Duration) -> Result<Measured, String> {
        match end {
            End::Left => self.publish::<BYTES>(way, length),
            End::Right => self.subscribe::<BYTES>(),
        }
    }

    fn publish<const BYTES: usize>(&mut self, way: Way, length: Duration) -> Result<Measured, String> {
        let (mut source, mut number, mut last) = (Source::<BYTES>::new(), 0, false);
        let deadline = Instant::now() + length;
        // The clock is read once a ring.
        let step = self.out.capacity() / BYTES as u64;
        while !last {
            last = (number + 1u64).is_multiple_of(step) && Instant::now() >= deadline;
            send(&mut self.out, way, source.message(number, last))?;
            number += 1;
        }
        // Nobody leaves before all was received.
        self.hear(|_| ())?;
        Ok(Measured::count(number))
    }

    fn subscribe<const BYTES: usize>(&mut self) -> Result<Measured, String> {
        let mut check = Check::<BYTES>::default();
        // The wait for the first messages is not part of it, nor are they.
        while receive(&mut self.back, &mut check, POLL)? == 0 {}
        let (started, first) = (Instant::now(), check.counts[0]);
        while !check.last {
            receive(&mut self.back, &mut check, POLL)?;
        }
        // A few large messages may have come all at once.
        let nanoseconds = started.elapsed().as_nanos() as f64 / (check.counts[0] - first).max(1) as f64;
        check.verdict()?;
        self.tell(&[])?;
        Ok(Measured::from((check.counts[0], nanoseconds)))
    }
}

/// Sends a message, waiting for room as long as it takes.
#[inline(always)]
pub fn send<const BYTES: usize>(publication: &mut Publication, way: Way, message: Message<'_, BYTES>) -> Result<(), String> {
    let sent = match way {
        Way::Offer => match publication.offer(message.bytes) {
            Err(OfferError::BackPressured) => publication.offer_until(0, message.bytes, None),
            sent => sent,
        },
        Way::Claim => {
            let write = |mut claim: Claim<'_>| {
                message.write_in(&mut claim);
                claim.commit()
            };
            match publication.try_claim(BYTES).map(write) {
                Err(OfferError::BackPressured) => publication.claim_until(BYTES, None).map(write),
                sent => sent,
            }
        }
    };
    sent.map(drop).map_err(text)
}

/// Takes what is there, or waits if nothing is. Returns how many messages it has taken.
#[inline(always)]
pub fn receive<const BYTES: usize>(
    subscription: &mut Subscription,
    check: &mut Check<BYTES>,
    limit: usize,
) -> Result<usize, String> {
    let taken = subscription.poll(|message| check.read(message.payload()), limit).map_err(text)?;
    if taken == 0 && subscription.wait(None) == Ready::Event {
        while subscription.next_event().is_some() {}
    }
    Ok(taken)
}

/// For errors that only end the bench.
pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
