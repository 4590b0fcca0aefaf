//! What goes from end to end over ringbus: numbered messages, written in full by who sends them, and read in full and checked by who receives them.

use std::time::{Duration, Instant};

use ringbus::wait::idle::Idler;
use ringbus::{Client, HugePages, Idle, Kind, Message, OfferError, Publication, Subscription};

use crate::harness::{End, Measured, median_of_batches};

/// Payload beside the number.
const PATTERN_BYTE: u8 = 0x5a;
/// A word of it.
pub const PATTERN: u64 = u64::from_ne_bytes([PATTERN_BYTE; 8]);
/// Tag of the message behind the last of a slice.
pub const LAST: u16 = 1;
/// Within this time the other end comes, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a message gets into the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Copied from a buffer.
    Offer,
    /// Filled in place.
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
    /// What one gets unless one asks for something else.
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

    fn channel<'a>(&self, client: &'a Client, name: &str) -> ringbus::ChannelBuilder<'a> {
        // Page faults of the first lap are no part of what is measured.
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
    pub out: Sender,
    pub back: Subscription,
}

/// A publication that waits for room.
pub struct Sender {
    pub publication: Publication,
    /// Claims have no form that waits.
    idler: Idler,
}

impl Lanes {
    /// Both ends do this, with the same name.
    pub fn open(client: &Client, end: End, name: &str, sort: Sort) -> Result<Self, String> {
        let [mut out, mut back] = ["right", "left"].map(|direction| format!("{name}/{direction}"));
        if end == End::Right {
            std::mem::swap(&mut out, &mut back);
        }
        let mut publication = sort.publication(client, &out)?;
        let back = sort.subscription(client, &back)?;
        connect(&mut publication, 1)?;
        Ok(Self { out: Sender { publication, idler: Idler::new(sort.idle) }, back })
    }

    /// An end's part in round trips. Value: nanoseconds of one.
    pub fn round_trips<const BYTES: usize>(&mut self, way: Way, end: End, length: Duration) -> Result<Measured, String> {
        match end {
            End::Left => self.ping::<BYTES>(way, length),
            End::Right => self.pong::<BYTES>(way),
        }
    }

    /// An end's part in a stream from left to right. Value: nanoseconds of a message.
    pub fn stream<const BYTES: usize>(&mut self, way: Way, end: End, length: Duration) -> Result<Measured, String> {
        match end {
            End::Left => self.publish::<BYTES>(way, length),
            End::Right => self.subscribe::<BYTES>(),
        }
    }

    fn ping<const BYTES: usize>(&mut self, way: Way, length: Duration) -> Result<Measured, String> {
        let mut source = Source::<BYTES>::new();
        let mut number = 0;
        let nanoseconds = median_of_batches(length, |last| {
            self.out.send(way, if last { LAST } else { 0 }, number, &mut source)?;
            verify::<BYTES>(&self.back.recv().map_err(text)?, number)?;
            number += 1;
            Ok(())
        })?;
        Ok(Measured { messages: number, values: vec![nanoseconds] })
    }

    fn pong<const BYTES: usize>(&mut self, way: Way) -> Result<Measured, String> {
        let mut source = Source::<BYTES>::new();
        let mut number = 0;
        loop {
            let received = self.back.recv().map_err(text)?;
            verify::<BYTES>(&received, number)?;
            let tag = received.tag();
            self.out.send(way, tag, number, &mut source)?;
            number += 1;
            if tag == LAST {
                return Ok(Measured::count(number));
            }
        }
    }

    fn publish<const BYTES: usize>(&mut self, way: Way, length: Duration) -> Result<Measured, String> {
        let mut source = Source::<BYTES>::new();
        let mut number = 0;
        let deadline = Instant::now() + length;
        // The clock is read once a ring.
        let step = self.out.publication.capacity() / BYTES as u64;
        loop {
            let last = (number + 1u64).is_multiple_of(step) && Instant::now() >= deadline;
            self.out.send(way, if last { LAST } else { 0 }, number, &mut source)?;
            number += 1;
            if last {
                break;
            }
        }
        // Nobody leaves before all was received.
        self.back.recv().map_err(text)?;
        Ok(Measured::count(number))
    }

    fn subscribe<const BYTES: usize>(&mut self) -> Result<Measured, String> {
        // Waking up is not part of it.
        self.back.wait(None);
        let started = Instant::now();
        let number = receive::<BYTES>(&mut self.back)?;
        let nanoseconds = started.elapsed().as_nanos() as f64 / number as f64;
        self.out.publication.offer_until(LAST, &[], None).map_err(text)?;
        Ok(Measured { messages: number, values: vec![nanoseconds] })
    }
}

/// Receives all messages of the slice, from one publication. Returns how many.
fn receive<const BYTES: usize>(subscription: &mut Subscription) -> Result<u64, String> {
    const LIMIT: usize = 256;
    let (mut number, mut last, mut outcome) = (0, false, Ok(()));
    while !last {
        let handler = |message: Message<'_>| {
            if let Err(error) = verify::<BYTES>(&message, number) {
                outcome = Err(error);
            }
            last = message.tag() == LAST;
            number += 1;
        };
        if subscription.poll(handler, LIMIT).map_err(text)? == 0 {
            subscription.wait(None);
        }
        std::mem::replace(&mut outcome, Ok(()))?;
    }
    Ok(number)
}

impl Sender {
    /// Sends a message that begins with its number, waiting for room as long as it takes.
    #[inline(always)]
    pub fn send<const BYTES: usize>(
        &mut self,
        way: Way,
        tag: u16,
        number: u64,
        source: &mut Source<BYTES>,
    ) -> Result<(), String> {
        match way {
            Way::Offer => offer(&mut self.publication, tag, source.message(number)),
            Way::Claim => {
                let mut waited = false;
                loop {
                    match self.publication.try_claim(BYTES) {
                        Ok(mut claim) => {
                            claim.fill(PATTERN_BYTE);
                            claim[..8].copy_from_slice(&number.to_ne_bytes());
                            claim.set_tag(tag);
                            claim.commit();
                            if waited {
                                self.idler.idle(1);
                            }
                            return Ok(());
                        }
                        Err(OfferError::BackPressured) => {
                            self.idler.idle(0);
                            waited = true;
                        }
                        Err(error) => return Err(text(error)),
                    }
                }
            }
        }
    }
}

/// Sends a message, waiting for room as long as it takes.
#[inline(always)]
pub fn offer<const BYTES: usize>(publication: &mut Publication, tag: u16, message: &[u8; BYTES]) -> Result<(), String> {
    match publication.offer_tagged(tag, message) {
        Ok(_) => Ok(()),
        Err(OfferError::BackPressured) => publication.offer_until(tag, message, None).map(drop).map_err(text),
        Err(error) => Err(text(error)),
    }
}

/// Messages that an application has made some time ago, so that copying them is all that is left to do. Numbers are written well ahead: bytes that were
/// stored one by one just now cannot be copied at full speed.
pub struct Source<const BYTES: usize>(Vec<[u8; BYTES]>);

impl<const BYTES: usize> Source<BYTES> {
    const MESSAGES: usize = if BYTES < 4096 { 4096 / BYTES } else { 1 };

    pub fn new() -> Self {
        let mut source = Self(vec![[PATTERN_BYTE; BYTES]; Self::MESSAGES]);
        (0..Self::MESSAGES as u64).for_each(|number| source.write(number));
        source
    }

    /// The message with this number, which is one more than last time.
    #[inline(always)]
    pub fn message(&mut self, number: u64) -> &[u8; BYTES] {
        self.write(number + Self::MESSAGES as u64 - 1);
        &self.0[number as usize % Self::MESSAGES]
    }

    #[inline(always)]
    fn write(&mut self, number: u64) {
        self.0[number as usize % Self::MESSAGES][..8].copy_from_slice(&number.to_ne_bytes());
    }
}

/// One message, where it does not matter what it takes to make it.
pub fn message<const BYTES: usize>(number: u64) -> [u8; BYTES] {
    let mut message = [PATTERN_BYTE; BYTES];
    message[..8].copy_from_slice(&number.to_ne_bytes());
    message
}

/// Reads all of a message.
#[inline(always)]
pub fn verify<const BYTES: usize>(message: &Message<'_>, number: u64) -> Result<(), String> {
    let wrong = || Err(format!("message {number} is not what was sent"));
    let Ok(payload) = <&[u8; BYTES]>::try_from(message.payload()) else { return wrong() };
    let (words, _) = payload.as_chunks::<8>();
    let sum = words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
    if sum == number.wrapping_add(PATTERN.wrapping_mul(BYTES as u64 / 8 - 1)) { Ok(()) } else { wrong() }
}

/// For errors that only end the bench.
pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
