//! ringbus: a `broadcast` channel, which is what one gets unless one asks for something else, or an `mpsc` one for two producers. The driver is a process of
//! its own.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use media_driver::{Config, Driver};
use ringbus::{Address, Client, Idle, Kind, OfferError, PollError, Publication, Subscription};

use crate::Outcome;
use crate::harness::{PATIENCE, die_with_parent};
use crate::message::{Message, Source};
use crate::workload::{Receiver, Sender, Transport, ring_bytes};

/// How messages get into the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Copied from a buffer, one by one.
    Offer,
    /// Made in place.
    Claim,
    /// Copied, and sleepers are looked after once for many.
    Batch,
}

/// The client of an end.
pub struct Ring {
    client: Client,
    idle: Idle,
    way: Way,
    kind: Kind,
}

impl Ring {
    /// Connects to the driver of the slice.
    pub fn connect(directory: &Path, idle: Idle, way: Way, kind: Kind) -> Outcome<Self> {
        Ok(Self { client: Client::builder().address(address(directory)).connect()?, idle, way, kind })
    }

    /// A publication on a channel of its own.
    pub fn publication(&self, number: u32) -> Outcome<Publication> {
        Ok(self.client.publication(&format!("attach/{number}"))?)
    }

    /// A subscription on a channel of its own.
    pub fn subscription(&self, number: u32) -> Outcome<Subscription> {
        Ok(self.client.subscription(&format!("attach/{number}"))?)
    }
}

impl Transport for Ring {
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>> {
        let channel = self.client.channel(lane).kind(self.kind).capacity(ring_bytes(BYTES) as u64).idle(self.idle);
        let mut publication = channel.publication()?;
        if !publication.wait_connected(Some(Instant::now() + PATIENCE))? {
            return Err("the other end does not come".into());
        }
        Ok(RingSender { publication, way: self.way })
    }

    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>> {
        let channel = self.client.channel(lane).kind(self.kind).capacity(ring_bytes(BYTES) as u64).idle(self.idle);
        Ok(RingReceiver(channel.subscription()?))
    }
}

struct RingSender {
    publication: Publication,
    way: Way,
}

impl<const BYTES: usize> Sender<BYTES> for RingSender {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        match self.way {
            Way::Offer | Way::Batch => sent(self.publication.offer(message.bytes)),
            Way::Claim => match self.publication.try_claim(BYTES) {
                Ok(mut claim) => {
                    message.write_in(&mut claim);
                    claim.commit();
                    Ok(true)
                }
                Err(error) => sent(Err(error)),
            },
        }
    }

    #[inline(always)]
    fn try_send_burst(&mut self, source: &mut Source<BYTES>, numbers: Range<u64>) -> Outcome<u64> {
        if self.way == Way::Batch {
            let mut batch = self.publication.batch();
            for number in numbers.clone() {
                if !sent(batch.offer(source.message(number, false).bytes))? {
                    return Ok(number);
                }
            }
        } else {
            for number in numbers.clone() {
                if !self.try_send(source.message(number, false))? {
                    return Ok(number);
                }
            }
        }
        Ok(numbers.end)
    }

    #[inline(always)]
    fn send(&mut self, message: Message<'_, BYTES>) -> Outcome<()> {
        if !self.try_send(message)? {
            match self.way {
                Way::Offer | Way::Batch => self.publication.offer_until(0, message.bytes, None)?,
                Way::Claim => {
                    let mut claim = self.publication.claim_until(BYTES, None)?;
                    message.write_in(&mut claim);
                    claim.commit()
                }
            };
        }
        Ok(())
    }
}

#[inline(always)]
fn sent(outcome: Result<u64, OfferError>) -> Outcome<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(OfferError::BackPressured) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

struct RingReceiver(Subscription);

impl<const BYTES: usize> Receiver<BYTES> for RingReceiver {
    #[inline(always)]
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        Ok(self.0.poll(|message| read(message.payload()), limit)?)
    }

    #[inline(always)]
    fn wait(&mut self) {
        self.0.wait(None);
    }

    #[inline(always)]
    fn receive(&mut self, mut read: impl FnMut(&[u8])) -> Outcome<()> {
        let message = self.0.recv().map_err(|error: PollError| format!("cannot receive: {error}"))?;
        read(message.payload());
        Ok(())
    }
}

/// What the driver's process does.
pub fn drive(directory: &Path) -> Outcome<()> {
    die_with_parent()?;
    let mut driver = Driver::new(&Config::new(address(directory)))?;
    println!("ready");
    Ok(driver.run()?)
}

fn address(directory: &Path) -> Address {
    Address::from(directory.join("ringbus.sock"))
}
