//! A publisher: bursts of messages by all ways there are to send one, with random pauses between, and now and then in the middle of a claim.
//!
//! Before each offer it notes the message as *attempted*, after it as *committed*. Whatever moment it is killed at, it has published
//! `committed` messages, or one more.

use std::time::{Duration, Instant};

use ringbus::{Client, OfferError, Publication};
use rustix::event::epoll::EventFlags;
use testing::{EventLoop, Random, fill, now};

use crate::ledger::{ATTEMPTED, COMMITTED, FIRST_AT, Ledger, SUBSCRIBERS_AT_FIRST, WAITS};
use crate::party::{Incarnation, Work, patience};

/// Publishes until it is told to close.
pub fn run(client: &Client, work: &Work, own: &Incarnation, random: Random) {
    let open = || {
        let channel = client.channel(&work.channel).kind(work.kind).overflow(work.overflow).capacity(work.capacity);
        channel.idle(work.idle).publication()
    };
    let Some(publication) = own.open(Publication::id, open) else { return };
    let events = work.by_epoll.then(|| EventLoop::around(&publication, EventFlags::IN));
    let mut publisher =
        Publisher { publication, events, ledger: &own.ledger, number: own.number, sequence: 0, buffer: Vec::new(), random };
    while !own.is_stopping() {
        match publisher.burst(work) {
            Ok(()) => std::thread::sleep(publisher.pause(work.pause)),
            Err(OfferError::BackPressured | OfferError::TimedOut) => {}
            Err(OfferError::NotConnected) => {
                let soon = Instant::now() + Duration::from_millis(500);
                if let Err(error) = publisher.publication.wait_connected(Some(soon)) {
                    return own.ledger.set_fault(&format!("cannot be connected: {error}"));
                }
            }
            Err(error) => return own.ledger.set_fault(&format!("cannot publish: {error}")),
        }
    }
}

struct Publisher<'a> {
    publication: Publication,
    events: Option<EventLoop>,
    ledger: &'a Ledger,
    number: u32,
    sequence: u64,
    buffer: Vec<u8>,
    random: Random,
}

/// When it was sent, in the tag: milliseconds, which come round every 65 seconds.
fn tag() -> u16 {
    (now() / 1_000_000) as u16
}

impl Publisher<'_> {
    /// Mostly short, so that it does not sleep all the time; sometimes none at all.
    fn pause(&mut self, longest: Duration) -> Duration {
        match self.random.below(8) {
            0 => Duration::ZERO,
            1 => longest * 4,
            _ => Duration::from_micros(self.random.below(longest.as_micros() as u64)),
        }
    }

    fn burst(&mut self, work: &Work) -> Result<(), OfferError> {
        let count = 1 + self.random.below(work.burst);
        match self.random.below(8) {
            0 => self.batch(count, work.longest),
            1 => {
                // A claim that is given up is no message.
                drop(self.publication.try_claim(self.random.below(work.longest) as usize)?);
                Ok(())
            }
            2 | 3 => self.send(work.longest, Way::Claim),
            4 => self.send(work.longest, Way::Gather),
            _ => (0..count).try_for_each(|_| self.send(work.longest, Way::Offer)),
        }
    }

    /// What has to be noted before a message is offered.
    fn attempt(&mut self, longest: u64) {
        fill(&mut self.buffer, self.number, self.sequence, longest);
        if self.sequence == 0 {
            let subscribers = self.publication.subscribers();
            self.ledger.set(SUBSCRIBERS_AT_FIRST, subscribers as u64);
            self.ledger.set(FIRST_AT, now());
        }
        self.ledger.set(ATTEMPTED, self.sequence + 1);
    }

    fn settle(&mut self, result: Result<u64, OfferError>) -> Result<(), OfferError> {
        match result {
            Ok(_) => {
                self.sequence += 1;
                self.ledger.set(COMMITTED, self.sequence);
                self.ledger.progress();
                Ok(())
            }
            Err(error) => {
                self.ledger.set(ATTEMPTED, self.sequence);
                Err(error)
            }
        }
    }

    fn send(&mut self, longest: u64, way: Way) -> Result<(), OfferError> {
        self.attempt(longest);
        let mut result = match way {
            Way::Offer => self.publication.offer_tagged(tag(), &self.buffer),
            Way::Gather => {
                let (head, tail) = self.buffer.split_at(7);
                self.publication.offer_gather(tag(), &[head, &[], tail])
            }
            Way::Claim => self.publication.try_claim(self.buffer.len()).map(|mut claim| {
                let half = claim.len() / 2;
                claim[..half].copy_from_slice(&self.buffer[..half]);
                // Long enough to be killed or stopped here now and then.
                std::thread::sleep(Duration::from_micros(self.random.below(10_000)));
                claim[half..].copy_from_slice(&self.buffer[half..]);
                claim.set_tag(tag());
                claim.commit()
            }),
        };
        if result == Err(OfferError::BackPressured) {
            result = self.wait_and_offer();
        }
        self.settle(result)
    }

    /// Waits for room, on the fd or in the call.
    fn wait_and_offer(&mut self) -> Result<u64, OfferError> {
        self.ledger.add(WAITS, 1);
        let (began, patience) = (now(), patience(&mut self.random));
        let result = match &self.events {
            Some(events) => {
                let deadline = Instant::now() + patience;
                loop {
                    match self.publication.offer_tagged(tag(), &self.buffer) {
                        Err(OfferError::BackPressured) if Instant::now() < deadline => {
                            events.turn(deadline.saturating_duration_since(Instant::now()));
                        }
                        Err(OfferError::BackPressured) => break Err(OfferError::TimedOut),
                        result => break result,
                    }
                }
            }
            None => self.publication.offer_until(tag(), &self.buffer, Some(Instant::now() + patience)),
        };
        // No subscriber is that slow: it was not woken, unless somebody was stopped meanwhile, which the controller knows.
        if result == Err(OfferError::TimedOut) || now() - began >= patience.as_nanos() as u64 {
            self.ledger.note_late(began, now());
        }
        result
    }

    fn batch(&mut self, count: u64, longest: u64) -> Result<(), OfferError> {
        self.attempt(longest);
        let mut batch = self.publication.batch();
        for left in (0..count).rev() {
            let result = batch.offer_tagged(tag(), &self.buffer);
            if let Err(error) = result {
                self.ledger.set(ATTEMPTED, self.sequence);
                return Err(error);
            }
            self.sequence += 1;
            self.ledger.set(COMMITTED, self.sequence);
            self.ledger.progress();
            if left > 0 {
                fill(&mut self.buffer, self.number, self.sequence, longest);
                self.ledger.set(ATTEMPTED, self.sequence + 1);
            }
        }
        Ok(())
    }
}

enum Way {
    Offer,
    Gather,
    Claim,
}
