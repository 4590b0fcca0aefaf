//! Aeron: its C media driver in a process of its own, its C client in the ends, both as the rusteron crates bundle them, over `aeron:ipc`.
//!
//! The driver has one thread for all it does (`SHARED`, with its default back-off), as there is no core left for it. It is on the path: it moves the limit up to
//! which a publication may go. With terms of 64 MiB, the default, it rarely has to, but the ring does not fit any cache; with terms of 1 MiB the ring does, but
//! the driver has to be let on a core soon, so the clients yield. MTU: the largest, so that messages are cut into as few fragments as possible.

use std::ffi::CString;
use std::path::Path;

use rusteron_client::{
    Aeron, AeronClaim, AeronContext, AeronExclusivePublication, AeronFragmentClosureAssembler, AeronHeader, AeronOfferError,
    AeronPublication, AeronSubscription, Handlers,
};
use rusteron_media_driver::bindings::aeron_threading_mode_t;
use rusteron_media_driver::{AeronDriver, AeronDriverContext};

use crate::Outcome;
use crate::harness::{PATIENCE, die_with_parent, patiently};
use crate::message::Message;
use crate::workload::{Receiver, Sender, Transport};

/// The largest that is allowed.
const MTU: usize = 65504;
/// Bytes of a frame's header.
const HEADER: usize = 32;

/// How Aeron is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Its defaults: terms of 64 MiB, clients that spin.
    Large,
    /// Terms of 1 MiB (or what one message needs, if that is more), clients that yield.
    Small,
}

/// How messages get into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Copied from a buffer.
    Offer,
    /// Made in place.
    Claim,
}

/// The client of an end.
pub struct Client {
    aeron: Aeron,
    setup: Setup,
    way: Way,
    /// One publisher only, who then needs no atomic addition.
    exclusive: bool,
}

impl Client {
    /// Connects to the driver of the slice.
    pub fn connect(directory: &Path, setup: Setup, way: Way, exclusive: bool) -> Outcome<Self> {
        let context = AeronContext::new()?;
        context.set_dir(&driver_directory(directory)?)?;
        context.set_error_handler(Some(|code: i32, message: &str| eprintln!("Aeron's error {code}: {message}")))?;
        let aeron = Aeron::new(&context).map_err(|error| format!("cannot connect to the driver: {error}"))?;
        aeron.start()?;
        Ok(Self { aeron, setup, way, exclusive })
    }

    /// A publication on a stream of its own.
    pub fn publication(&self, stream: u32) -> Outcome<AeronExclusivePublication> {
        let stream = stream.cast_signed();
        Ok(self.aeron.async_add_exclusive_publication(&self.channel(32)?, stream)?.poll_blocking(PATIENCE)?)
    }

    /// A subscription on a stream of its own.
    pub fn subscription(&self, stream: u32) -> Outcome<AeronSubscription> {
        let stream = stream.cast_signed();
        let adding = self.aeron.async_add_subscription(&self.channel(32)?, stream, Handlers::NONE, Handlers::NONE)?;
        Ok(adding.poll_blocking(PATIENCE)?)
    }

    fn channel(&self, bytes: usize) -> Outcome<CString> {
        let term = match self.setup {
            Setup::Large => 64 << 20,
            // A message may be as long as an eighth of a term.
            Setup::Small => (8 * bytes).max(1 << 20),
        };
        Ok(CString::new(format!("aeron:ipc?term-length={term}|mtu={MTU}"))?)
    }

    fn sender_of<P: Publication>(&self, publication: P) -> Outcome<AeronSender<P>> {
        patiently("find the subscription", || Ok(publication.connected().then_some(())))?;
        Ok(AeronSender { publication, way: self.way, setup: self.setup })
    }
}

impl Transport for Client {
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>> {
        let (channel, stream) = (self.channel(BYTES)?, stream(lane));
        Ok(if self.exclusive {
            let publication = self.aeron.async_add_exclusive_publication(&channel, stream)?.poll_blocking(PATIENCE)?;
            Either::Exclusive(self.sender_of(publication)?)
        } else {
            let publication = self.aeron.async_add_publication(&channel, stream)?.poll_blocking(PATIENCE)?;
            Either::Concurrent(self.sender_of(publication)?)
        })
    }

    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>> {
        let adding = self.aeron.async_add_subscription(&self.channel(BYTES)?, stream(lane), Handlers::NONE, Handlers::NONE)?;
        let assembler = if BYTES > MTU - HEADER { Some(AeronFragmentClosureAssembler::new()?) } else { None };
        Ok(AeronReceiver { subscription: adding.poll_blocking(PATIENCE)?, assembler, setup: self.setup })
    }
}

/// The driver is a new one in each slice, and so no stream has been used before.
fn stream(lane: &str) -> i32 {
    if lane == "there" { 1001 } else { 1002 }
}

/// What both sorts of publication can do.
trait Publication {
    fn connected(&self) -> bool;
    fn offered(&self, bytes: &[u8]) -> Result<i64, AeronOfferError>;
    fn claimed(&self, length: usize) -> Result<AeronClaim, AeronOfferError>;
}

impl Publication for AeronExclusivePublication {
    fn connected(&self) -> bool {
        self.is_connected()
    }
    #[inline(always)]
    fn offered(&self, bytes: &[u8]) -> Result<i64, AeronOfferError> {
        self.offer(bytes)
    }
    #[inline(always)]
    fn claimed(&self, length: usize) -> Result<AeronClaim, AeronOfferError> {
        self.try_claim_owned(length)
    }
}

impl Publication for AeronPublication {
    fn connected(&self) -> bool {
        self.is_connected()
    }
    #[inline(always)]
    fn offered(&self, bytes: &[u8]) -> Result<i64, AeronOfferError> {
        self.offer(bytes)
    }
    #[inline(always)]
    fn claimed(&self, length: usize) -> Result<AeronClaim, AeronOfferError> {
        self.try_claim_owned(length)
    }
}

struct AeronSender<P> {
    publication: P,
    way: Way,
    setup: Setup,
}

impl<const BYTES: usize, P: Publication> Sender<BYTES> for AeronSender<P> {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        let refused = match self.way {
            Way::Offer => match self.publication.offered(message.bytes) {
                Ok(_) => return Ok(true),
                Err(error) => error,
            },
            Way::Claim => match self.publication.claimed(BYTES) {
                Ok(mut claim) => {
                    message.write_in(claim.data());
                    claim.commit()?;
                    return Ok(true);
                }
                Err(error) => error,
            },
        };
        match refused {
            AeronOfferError::BackPressured | AeronOfferError::AdminAction => Ok(false),
            error => Err(format!("cannot publish: {error:?}").into()),
        }
    }

    #[inline(always)]
    fn wait(&mut self) {
        self.setup.idle();
    }
}

impl Setup {
    #[inline(always)]
    fn idle(self) {
        match self {
            Self::Large => core::hint::spin_loop(),
            Self::Small => std::thread::yield_now(),
        }
    }
}

enum Either {
    Exclusive(AeronSender<AeronExclusivePublication>),
    Concurrent(AeronSender<AeronPublication>),
}

impl<const BYTES: usize> Sender<BYTES> for Either {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        match self {
            Self::Exclusive(sender) => sender.try_send(message),
            Self::Concurrent(sender) => sender.try_send(message),
        }
    }

    #[inline(always)]
    fn wait(&mut self) {
        match self {
            Self::Exclusive(AeronSender { setup, .. }) | Self::Concurrent(AeronSender { setup, .. }) => setup.idle(),
        }
    }
}

struct AeronReceiver {
    subscription: AeronSubscription,
    /// Puts messages together that are longer than a fragment.
    assembler: Option<AeronFragmentClosureAssembler>,
    setup: Setup,
}

impl<const BYTES: usize> Receiver<BYTES> for AeronReceiver {
    #[inline(always)]
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        match &mut self.assembler {
            None => Ok(self.subscription.poll_fn(|message, _| read(message), limit)?.cast_unsigned() as usize),
            Some(assembler) => {
                let mut counted = (read, 0);
                assembler.poll(&self.subscription, &mut counted, count, limit)?;
                Ok(counted.1)
            }
        }
    }

    #[inline(always)]
    fn wait(&mut self) {
        self.setup.idle();
    }
}

fn count<R: FnMut(&[u8])>((read, number): &mut (R, usize), message: &[u8], _: AeronHeader) {
    read(message);
    *number += 1;
}

/// What the driver's process does.
pub fn drive(directory: &Path) -> Outcome<()> {
    die_with_parent()?;
    let driver = start(directory).map_err(|error| format!("cannot start Aeron's driver: {error}"))?;
    println!("ready");
    loop {
        driver.main_idle_strategy(driver.main_do_work()?);
    }
}

fn start(directory: &Path) -> Outcome<AeronDriver> {
    let context = AeronDriverContext::new()?;
    context.set_dir(&driver_directory(directory)?)?;
    context.set_threading_mode(aeron_threading_mode_t::AERON_THREADING_MODE_SHARED)?;
    let driver = AeronDriver::new(&context)?;
    driver.start(true)?;
    Ok(driver)
}

fn driver_directory(directory: &Path) -> Outcome<CString> {
    let directory = directory.join("aeron");
    Ok(CString::new(directory.to_str().ok_or("a path that is no text")?)?)
}
