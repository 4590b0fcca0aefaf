//! The subscription: reads the images of all publications of its channel.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::conductor::{Answer, Conductor};
use super::endpoint::{Endpoint, FORKED, NO_NEWS, News, OwnRing, Side};
use super::link::{MpscRing, Page, PeerEnd, SingleRing, Sleeps, SubscriberEnd, wake_sleepers};
use super::pace::{Pace, Progress};
use super::sleeper::{Bell, Wait, how, sleep_on};
use crate::channel::{ChannelName, ChannelSpec, Kind, Properties, Subscribe};
use crate::control::message::{Event, Link};
use crate::control::process::Process;
use crate::error::Error;
use crate::ring::layout::PartyLine;
use crate::ring::single::Overwrite;
use crate::ring::{Frame, ReadError, mpsc, single};
use crate::wait::fences::{Fences, Light};
use crate::wait::idle::{Idle, Idler, Step};
use crate::wait::sleep::{How, Sleeper, value_of};

/// What ended a [`poll`](Subscription::poll) or [`next`](Subscription::next).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PollError {
    /// On a lossy channel the publisher has lapped us. The next call goes on with the oldest whole message.
    #[error("{messages} messages of image {image:016x} were lost: this subscription is too slow for a lossy channel")]
    Lost {
        /// Which image.
        image: u64,
        /// Exactly how many.
        messages: u64,
    },
    /// The publisher has written what no publisher writes. That image is closed; others go on.
    #[error("image {image:016x} is corrupt at position {position}: {what}; it is closed")]
    Corrupt {
        /// Which image.
        image: u64,
        /// Where.
        position: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The subscription cannot be used any more: the driver does not accept it, or on an `mpsc` channel a publisher has spoilt the ring.
    #[error("the subscription is closed")]
    Closed,
    /// This process was forked from the one that made the subscription, which goes on using it.
    #[error("the subscription belongs to the process this one was forked from; connect a client of its own here")]
    Forked,
}

/// What ended a [`recv`](Subscription::recv).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// No message before the deadline.
    #[error("timed out waiting for a message")]
    TimedOut,
    /// As when polling.
    #[error(transparent)]
    Poll(#[from] PollError),
}

/// How a controlled poll goes on after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// With the next message.
    Continue,
    /// Not: the message is taken, the poll ends.
    Break,
    /// Not: the message is not taken, and comes again in the next poll.
    Abort,
    /// With the next message, but first the publisher may reuse the room of all up to this one.
    Commit,
}

/// A message, as long as it is borrowed from its subscription.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    payload: &'a [u8],
    tag: u16,
    position: u64,
    image: u64,
}

impl<'a> Message<'a> {
    /// The bytes, without a copy (on lossy channels: a private copy).
    ///
    /// They lie in memory that the publisher can write. That they do not change while you look relies on it keeping to the protocol;
    /// for a publisher you do not trust use [`copy_to`](Self::copy_to), and look at the copy.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Copies the bytes into `buffer`, whatever the publisher does meanwhile: each byte is read once. Returns how many were copied: as many as fit.
    pub fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let length = buffer.len().min(self.payload.len());
        // SAFETY: both are valid for `length` bytes. Read as raw memory: nothing is assumed about the source beyond its being mapped.
        unsafe { std::ptr::copy_nonoverlapping(self.payload.as_ptr(), buffer.as_mut_ptr(), length) };
        length
    }

    /// The tag it was sent with.
    #[inline]
    pub fn tag(&self) -> u16 {
        self.tag
    }

    /// Position of the message in its image.
    #[inline]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Id of the image it is from, see [`ImageInfo`].
    #[inline]
    pub fn image(&self) -> u64 {
        self.image
    }
}

/// One publication as this subscription sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Id of the image; no other image ever has it.
    pub id: u64,
    /// Id of the publication.
    pub publication: u64,
    /// The publisher's process.
    pub publisher: Process,
}

/// An image has come or gone.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageEvent {
    /// A publication was connected.
    Available(ImageInfo),
    /// A publication is gone, and its last message has been delivered.
    Closed(ImageInfo),
    /// A publication is there but could not be connected.
    Failed(String),
}

/// What [`wait`](Subscription::wait) has waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// There are messages, or an error to be had from [`poll`](Subscription::poll). Now and then it finds none after all: what came was a message that was aborted.
    Messages,
    /// There is an event to be had from [`next_event`](Subscription::next_event).
    Event,
    /// Neither before the deadline.
    TimedOut,
}

/// Receives the messages of a channel. Made by [`Client::subscription`](crate::Client::subscription).
///
/// It may move between threads, but not be used by two at once. It sees what is published after the publisher has noticed it
/// ([`Publication::is_connected`](crate::Publication::is_connected)).
///
/// In event loops: put its fd ([`AsFd`]) into epoll, mio or tokio, level-triggered or edge-triggered; when it is readable, poll until there is
/// nothing more.
#[derive(Debug)]
pub struct Subscription {
    source: Source,
    /// Where the next message is looked for first, so that no image starves the others.
    turn: usize,
    /// See [`Endpoint::has_news`].
    seen: u32,
    /// Polls in a row that found nothing.
    empty: u32,
    /// Images that have ended and are not read to their end.
    ending: usize,
    /// Until when images are stayed away from, if there are such.
    away: Option<Instant>,
    /// An error that comes after messages that were delivered.
    pending: Option<PollError>,
    events: VecDeque<ImageEvent>,
    /// Events that the fd has not told of yet.
    fresh_events: bool,
    /// `wait` has told of events, and they were not fetched: not again.
    told: bool,
    page: Page,
    endpoint: Arc<Endpoint>,
    sleeper: Sleeper,
    idler: Idler,
    bell: Bell,
    fences: Fences,
    closed: bool,
    /// See [`PollError::Forked`].
    forked: bool,
    conductor: Arc<Conductor>,
}

#[derive(Debug)]
enum Source {
    /// A ring per image.
    Images(Vec<Image>),
    /// One ring for all images.
    Mpsc(Box<MpscSource>),
}

#[derive(Debug)]
struct Image {
    consumer: single::Consumer,
    /// Position of the last message that was read.
    last: u64,
    pace: Pace,
    end: ImageEnd,
    /// Where its publisher sees that we fall asleep, if not at our flag.
    sleeps: Option<Sleeps>,
    /// Keeps the memory of `consumer` and `end`.
    _ring: SingleRing,
}

/// What images have in common.
#[derive(Debug)]
struct ImageEnd {
    link: Link,
    peer: PeerEnd,
    light: Light,
    fences: Fences,
    /// Nothing more will be committed.
    ended: bool,
}

#[derive(Debug)]
struct MpscSource {
    consumer: mpsc::Consumer,
    /// Position of the last message that was read.
    last: u64,
    pace: Pace,
    images: Vec<ImageEnd>,
    /// Ids of the images by producer slot.
    ids: [u64; 256],
    /// A producer has spoilt the ring: nothing is read any more.
    spoilt: bool,
    /// Keeps the memory of `consumer` and `images`.
    _ring: MpscRing,
}

impl ImageEnd {
    fn new(link: Link, peer: PeerEnd, fences: Fences) -> Self {
        let light = Light::towards(fences, peer.peer.is_asymmetric_capable());
        Self { link, peer, light, fences, ended: false }
    }

    fn info(&self) -> ImageInfo {
        ImageInfo { id: self.link.id, publication: self.link.publication, publisher: self.link.peer }
    }

    /// After the position was published: wakes the publisher if it waits for room.
    #[inline]
    fn wake(&mut self, own: &PartyLine) {
        self.light.pass();
        if self.light == Light::Full {
            // A producer of an mpsc ring says what it can only after we have got the link.
            self.light = Light::towards(self.fences, self.peer.peer.is_asymmetric_capable());
        }
        if self.peer.peer.needs_wake() {
            wake_sleepers(own, std::iter::once(&mut self.peer));
        }
    }
}

impl Image {
    #[inline]
    fn read(&mut self) -> Result<Option<Frame>, PollError> {
        self.consumer.read().map_err(|error| poll_error(self.end.link.id, error))
    }

    #[inline]
    fn found(&self, frame: &Frame) -> Found {
        Found::new(frame, self.consumer.payload(frame), self.end.link.id)
    }

    #[inline]
    fn advance(&mut self, frame: &Frame) {
        self.consumer.advance(frame);
        self.last = frame.position;
    }

    #[inline]
    fn release(&mut self, own: &PartyLine, all: bool) {
        if self.consumer.release(all) {
            self.end.wake(own);
        }
    }

    /// After a message. Until when to stay away, if at all.
    #[inline]
    fn taken(&mut self, may_spin: impl Fn() -> bool) -> Option<Instant> {
        if self.consumer.position() >= self.pace.look_at() { self.look(may_spin()) } else { None }
    }

    /// All there was has been read. Until when to stay away, if at all.
    #[inline]
    fn caught_up(&mut self, own: &PartyLine, may_spin: impl Fn() -> bool) -> Option<Instant> {
        self.release(own, true);
        if self.pace.is_stream() { self.look(may_spin()) } else { None }
    }

    #[cold]
    fn look(&mut self, may_spin: bool) -> Option<Instant> {
        self.pace.look(self.progress(), Instant::now(), may_spin)
    }

    fn progress(&self) -> Progress {
        let (consumer, last) = (&self.consumer, self.last);
        Progress { position: consumer.position(), last, tail: consumer.told_tail() }
    }
}

impl MpscSource {
    fn ready(&mut self) -> bool {
        !self.spoilt && self.consumer.ready()
    }

    #[inline]
    fn read(&mut self) -> Result<Option<Frame>, PollError> {
        if self.spoilt {
            return Ok(None);
        }
        self.consumer.read().map_err(|error| poll_error(0, error))
    }

    #[inline]
    fn found(&self, frame: &Frame) -> Found {
        Found::new(frame, self.consumer.payload(frame), self.ids[usize::from(frame.slot)])
    }

    #[inline]
    fn advance(&mut self, frame: &Frame) {
        self.consumer.advance(frame);
        self.last = frame.position;
    }

    /// After a message. Until when to stay away, if at all.
    #[inline]
    fn taken(&mut self, may_spin: impl Fn() -> bool) -> Option<Instant> {
        if self.consumer.position() >= self.pace.look_at() { self.look(may_spin()) } else { None }
    }

    /// All there was has been read. Until when to stay away, if at all.
    #[inline]
    fn caught_up(&mut self, own: &PartyLine, may_spin: impl Fn() -> bool) -> Result<Option<Instant>, PollError> {
        self.release(own, true)?;
        Ok(if self.pace.is_stream() && !self.spoilt { self.look(may_spin()) } else { None })
    }

    #[cold]
    fn look(&mut self, may_spin: bool) -> Option<Instant> {
        self.pace.look(self.progress(), Instant::now(), may_spin)
    }

    fn progress(&self) -> Progress {
        let (consumer, last) = (&self.consumer, self.last);
        Progress { position: consumer.position(), last, tail: consumer.told_tail() }
    }

    #[inline]
    fn release(&mut self, own: &PartyLine, all: bool) -> Result<(), PollError> {
        if !self.spoilt && self.consumer.release(all).map_err(|error| poll_error(0, error))? {
            for image in &mut self.images {
                image.wake(own);
            }
        }
        Ok(())
    }
}

#[cold]
fn poll_error(image: u64, error: ReadError) -> PollError {
    match error {
        ReadError::Lost { messages } => PollError::Lost { image, messages },
        ReadError::Corrupt { position, what } => PollError::Corrupt { image, position, what },
    }
}

/// A message that was found, as [`Message`] but without the borrow of its subscription. Not as a [`Frame`]: whose small fields the compiler packs into one word by stores of their sizes and one load of all,
/// which has to wait until the stores are done.
#[derive(Debug, Clone, Copy)]
struct Found {
    payload: *const u8,
    length: usize,
    tag: u16,
    position: u64,
    image: u64,
}

impl Found {
    #[inline]
    fn new(frame: &Frame, payload: *const u8, image: u64) -> Self {
        Self { payload, length: frame.length as usize, tag: frame.tag, position: frame.position, image }
    }

    /// # Safety
    ///
    /// The payload lives as long as the message: in a mapping or a private copy.
    #[inline]
    unsafe fn message<'a>(self) -> Message<'a> {
        // SAFETY: as promised; see `Message::payload` on what the bytes may do meanwhile.
        let payload = unsafe { std::slice::from_raw_parts(self.payload, self.length) };
        Message { payload, tag: self.tag, position: self.position, image: self.image }
    }
}

impl Subscription {
    pub(super) fn open(conductor: &Arc<Conductor>, name: ChannelName, properties: Properties, idle: Idle) -> Result<Self, Error> {
        let mut answer = conductor.add(Side::Subscription, name, properties)?;
        let made = Self::make(conductor, &mut answer, idle);
        if made.is_err() {
            conductor.discard(&answer);
        }
        made
    }

    fn make(conductor: &Arc<Conductor>, answer: &mut Answer, idle: Idle) -> Result<Self, Error> {
        let Event::SubscriptionAdded { id, spec, page_size, .. } = &answer.event else {
            return Err(conductor.nonsense());
        };
        let objects = std::mem::take(&mut answer.fds);
        let page = match objects.first() {
            Some(page) => Page::own(page)?,
            None => return Err(conductor.nonsense()),
        };
        let ring = match (spec.kind, objects.get(1)) {
            (Kind::Mpsc, Some(ring)) => Some(MpscRing::map(ring, spec, *page_size, false)?),
            (Kind::Mpsc, None) => return Err(conductor.nonsense()),
            _ => None,
        };
        let (source, own_ring) = match ring {
            None => (Source::Images(Vec::new()), None),
            Some(mapping) => {
                // SAFETY: the driver has just made the ring for us; the mapping is kept beside.
                let consumer = unsafe { mpsc::Consumer::new(mapping.control(), mapping.region()) };
                let taken = Arc::clone(consumer.taken_slots());
                let (last, pace, images, ids) = (0, Pace::new(u64::MAX), Vec::new(), [0; 256]);
                let source = MpscSource { consumer, last, pace, images, ids, spoilt: false, _ring: mapping.clone() };
                (Source::Mpsc(Box::new(source)), Some(OwnRing { mapping, taken }))
            }
        };
        let fences = conductor.fences();
        // SAFETY: the page is kept in `self`.
        unsafe { page.party().as_ref() }.begin(fences == Fences::AsymmetricCapable);
        let endpoint = Arc::new(Endpoint::new(*id, Side::Subscription, spec.clone(), own_ring, objects)?);
        let bell = Bell::new(&endpoint)?;
        conductor.announce(Arc::clone(&endpoint));
        Ok(Self {
            source,
            turn: 0,
            seen: NO_NEWS,
            empty: 0,
            ending: 0,
            away: None,
            pending: None,
            events: VecDeque::new(),
            fresh_events: false,
            told: false,
            page,
            endpoint,
            sleeper: Sleeper::default(),
            idler: Idler::new(idle),
            bell,
            fences,
            closed: false,
            forked: false,
            conductor: Arc::clone(conductor),
        })
    }

    /// The channel.
    pub fn channel(&self) -> &ChannelSpec {
        &self.endpoint.spec
    }

    /// Its id: unique, also beyond the life of a driver.
    pub fn id(&self) -> u64 {
        self.endpoint.id
    }

    /// Bytes of a ring.
    pub fn capacity(&self) -> u64 {
        self.endpoint.spec.capacity
    }

    /// The images there are, closed ones aside.
    pub fn images(&self) -> Vec<ImageInfo> {
        match &self.source {
            Source::Images(images) => images.iter().map(|image| image.end.info()).collect(),
            Source::Mpsc(source) => source.images.iter().map(ImageEnd::info).collect(),
        }
    }

    /// Position of the next message of an image, in bytes. On an `mpsc` channel all images share one.
    pub fn position(&self, image: u64) -> Option<u64> {
        match &self.source {
            Source::Images(images) => self.find(images, image).map(|image| image.consumer.position()),
            Source::Mpsc(source) => Some(source.consumer.position()),
        }
    }

    /// Bytes that were published and not read yet, as the publisher says. On an `mpsc` channel all images share them.
    pub fn lag(&self, image: u64) -> Option<u64> {
        if self.endpoint.is_forked() {
            return None;
        }
        match &self.source {
            Source::Images(images) => self.find(images, image).map(|image| image.consumer.lag()),
            Source::Mpsc(source) => Some(source.consumer.lag()),
        }
    }

    fn find<'a>(&self, images: &'a [Image], id: u64) -> Option<&'a Image> {
        images.iter().find(|image| image.end.link.id == id)
    }

    /// The next image that has come or gone. Events that nobody fetches are kept up to 4096, then the oldest are dropped.
    pub fn next_event(&mut self) -> Option<ImageEvent> {
        self.catch_up();
        self.retire();
        let event = self.events.pop_front();
        // Who fetches them need not be told of them.
        self.fresh_events &= !self.events.is_empty();
        self.told = false;
        event
    }

    /// Hands up to `limit` messages to `handler`. Returns how many there were: none means that there is nothing, fewer than `limit` does not. Never waits for messages; but if this
    /// subscription spins ([`Idle::BusySpin`], [`Idle::Adaptive`]) and has caught up with a stream of millions of messages a second that goes faster so, it takes what there is in portions,
    /// and leaves the publisher alone for some microseconds in between. (Unless its fd is used. A thread that looks after other things, too, had better use the fd, or another [`Idle`].)
    ///
    /// # Errors
    ///
    /// [`PollError`], once all messages before it were delivered.
    #[inline]
    pub fn poll(&mut self, mut handler: impl FnMut(Message<'_>), limit: usize) -> Result<usize, PollError> {
        self.poll_controlled(
            |message| {
                handler(message);
                Action::Continue
            },
            limit,
        )
    }

    /// Hands up to `limit` messages to `handler`, which says after each how to go on. Returns how many it has taken. Waits as little as [`poll`](Self::poll).
    ///
    /// # Errors
    ///
    /// [`PollError`], once all messages before it were delivered.
    #[inline]
    pub fn poll_controlled(&mut self, mut handler: impl FnMut(Message<'_>) -> Action, limit: usize) -> Result<usize, PollError> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let mut taken = 0;
        let mut stopped = false;
        if self.away.is_some() {
            self.come_back();
        }
        if self.endpoint.has_news(self.seen) {
            self.catch_up();
        }
        // SAFETY: the page is kept in `self`. Not through `own()`, which would borrow all of `self`.
        let own = unsafe { self.page.party().as_ref() };
        let may_spin = || may_spin(&self.idler, &self.bell);
        let mut outcome = Ok(());
        match &mut self.source {
            Source::Images(images) => {
                let count = images.len();
                self.turn = following(self.turn, count);
                let mut index = self.turn;
                for _ in 0..count {
                    let image = &mut images[index];
                    index = following(index, count);
                    while taken < limit {
                        let frame = match image.read() {
                            Ok(Some(frame)) => frame,
                            Ok(None) => {
                                stay_away(&mut self.away, image.caught_up(own, may_spin));
                                break;
                            }
                            Err(error) => {
                                outcome = Err(error);
                                break;
                            }
                        };
                        // SAFETY: the ring or copy stays as it is until the image advances.
                        let action = handler(unsafe { image.found(&frame).message() });
                        if action == Action::Abort {
                            stopped = true;
                            break;
                        }
                        image.advance(&frame);
                        taken += 1;
                        image.release(own, action == Action::Commit);
                        stopped = action == Action::Break;
                        let until = image.taken(may_spin);
                        stay_away(&mut self.away, until);
                        if stopped || until.is_some() {
                            break;
                        }
                    }
                    if stopped || taken >= limit || outcome.is_err() {
                        break;
                    }
                }
            }
            Source::Mpsc(source) => {
                while taken < limit && !stopped {
                    let frame = match source.read() {
                        Ok(Some(frame)) => frame,
                        Ok(None) => {
                            match source.caught_up(own, may_spin) {
                                Ok(until) => stay_away(&mut self.away, until),
                                Err(error) => outcome = Err(error),
                            }
                            break;
                        }
                        Err(error) => {
                            outcome = Err(error);
                            break;
                        }
                    };
                    let id = source.ids[usize::from(frame.slot)];
                    if id == 0 && self.endpoint.has_news(self.seen) {
                        // Of an image that the next poll will know.
                        break;
                    }
                    // SAFETY: the ring stays as it is until the consumer gives the frame back.
                    let action = handler(unsafe { source.found(&frame).message() });
                    if action == Action::Abort {
                        stopped = true;
                        break;
                    }
                    source.advance(&frame);
                    taken += 1;
                    outcome = source.release(own, action == Action::Commit);
                    stopped = action == Action::Break || outcome.is_err();
                    let until = source.taken(may_spin);
                    stay_away(&mut self.away, until);
                    if until.is_some() {
                        break;
                    }
                }
            }
        }
        if taken > 0 && self.ending > 0 {
            // Who is never idle closes images, too.
            self.retire();
        }
        self.polled(taken, stopped || taken >= limit, outcome)
    }

    /// What has to be done after each poll: `more` if it did not end because there was nothing more.
    #[inline]
    fn polled(&mut self, taken: usize, more: bool, outcome: Result<(), PollError>) -> Result<usize, PollError> {
        match outcome {
            Err(error) => return self.failed(taken, error),
            Ok(()) if taken == 0 => self.found_nothing()?,
            Ok(()) => self.empty = 0,
        }
        if self.bell.is_used() {
            self.rearm(more);
        }
        Ok(taken)
    }

    /// An error comes after the messages before it.
    #[cold]
    fn failed(&mut self, taken: usize, error: PollError) -> Result<usize, PollError> {
        if let PollError::Corrupt { image, .. } = error {
            match &mut self.source {
                Source::Images(_) => self.close_image(image),
                Source::Mpsc(source) => {
                    // One ring, nobody knows whose fault it is: it ends for all.
                    let images: Vec<u64> = source.images.iter().map(|image| image.link.id).collect();
                    source.spoilt = true;
                    self.closed = true;
                    images.into_iter().for_each(|image| self.close_image(image));
                    self.own().close();
                    // Nobody is to be linked to it any more, and a successor may come.
                    self.conductor.close(self.endpoint.id);
                }
            }
        }
        if self.bell.is_used() {
            self.rearm(true);
        }
        if taken == 0 {
            return Err(error);
        }
        self.pending = Some(error);
        Ok(taken)
    }

    /// Looks at the ends of images now and then: it costs a line that is not needed otherwise.
    #[inline]
    fn found_nothing(&mut self) -> Result<(), PollError> {
        const EVERY: u32 = 64;
        self.empty = self.empty.wrapping_add(1);
        if self.ending > 0 || self.empty.is_multiple_of(EVERY) {
            self.retire();
        }
        match self.closed && self.ends().next().is_none() {
            true if self.forked => Err(PollError::Forked),
            true => Err(PollError::Closed),
            false => Ok(()),
        }
    }

    /// The next message, if there is one. Waits as little as [`poll`](Self::poll).
    ///
    /// # Errors
    ///
    /// [`PollError`].
    #[expect(clippy::should_implement_trait, reason = "an iterator's items cannot borrow from it")]
    #[inline]
    pub fn next(&mut self) -> Result<Option<Message<'_>>, PollError> {
        let found = self.take_next()?;
        Ok(found.map(|found| self.message(found)))
    }

    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// [`PollError`].
    pub fn recv(&mut self) -> Result<Message<'_>, PollError> {
        match self.recv_found(None) {
            Ok(found) => Ok(self.message(found)),
            Err(RecvError::Poll(error)) => Err(error),
            Err(RecvError::TimedOut) => Err(PollError::Closed),
        }
    }

    /// Waits for the next message until `deadline` (for ever, if `None`).
    ///
    /// # Errors
    ///
    /// See [`RecvError`].
    pub fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Message<'_>, RecvError> {
        let found = self.recv_found(deadline)?;
        Ok(self.message(found))
    }

    fn recv_found(&mut self, deadline: Option<Instant>) -> Result<Found, RecvError> {
        let mut waited = false;
        loop {
            if let Some(found) = self.take_next()? {
                return Ok(found);
            }
            if let Some(found) = self.spin_for_next()? {
                return Ok(found);
            }
            // What looks like a message from afar may be none, and a hostile publisher can make it look so again and again.
            let late = waited && deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if late || self.wait_for(deadline, false) == Ready::TimedOut {
                return Err(RecvError::TimedOut);
            }
            waited = true;
        }
    }

    /// Waits until there are messages or events, or until `deadline` (for ever, if `None`). Messages are told of first: where they never end, fetch events
    /// without being told. Events that are not fetched are told of once, so that who has no use for them can wait for messages.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Ready {
        let ready = self.wait_for(deadline, true);
        self.told |= ready == Ready::Event;
        ready
    }

    /// Takes the next message: its bytes are given back by the call after this.
    #[inline]
    fn take_next(&mut self) -> Result<Option<Found>, PollError> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        if self.away.is_some() {
            self.come_back();
        }
        if self.endpoint.has_news(self.seen) {
            self.catch_up();
        }
        if self.ending > 0 {
            // Here, as what the last call has found may lie in the image that goes.
            self.retire();
        }
        // SAFETY: the page is kept in `self`. Not through `own()`, which would borrow all of `self`.
        let own = unsafe { self.page.party().as_ref() };
        let may_spin = || may_spin(&self.idler, &self.bell);
        let outcome = match &mut self.source {
            Source::Images(images) => {
                let count = images.len();
                let mut outcome = Ok(None);
                for _ in 0..count {
                    self.turn = following(self.turn, count);
                    let image = &mut images[self.turn];
                    image.release(own, false);
                    match image.read() {
                        Ok(None) => stay_away(&mut self.away, image.caught_up(own, may_spin)),
                        Ok(Some(frame)) => {
                            outcome = Ok(Some(image.found(&frame)));
                            image.advance(&frame);
                            stay_away(&mut self.away, image.taken(may_spin));
                            break;
                        }
                        Err(error) => {
                            outcome = Err(error);
                            break;
                        }
                    }
                }
                outcome
            }
            Source::Mpsc(source) => match source.release(own, false).and_then(|()| source.read()) {
                // Of an image that the next call will know.
                Ok(Some(frame)) if source.ids[usize::from(frame.slot)] == 0 && self.endpoint.has_news(self.seen) => Ok(None),
                Ok(Some(frame)) => {
                    let found = source.found(&frame);
                    source.advance(&frame);
                    stay_away(&mut self.away, source.taken(may_spin));
                    Ok(Some(found))
                }
                Ok(None) => source.caught_up(own, may_spin).map(|until| {
                    stay_away(&mut self.away, until);
                    None
                }),
                Err(error) => Err(error),
            },
        };
        match outcome {
            Ok(found) => {
                self.polled(usize::from(found.is_some()), found.is_some(), Ok(()))?;
                Ok(found)
            }
            Err(error) => self.polled(0, true, Err(error)).map(|_| None),
        }
    }

    /// Looks for the next message for a few microseconds, with as little as can be between its coming and the return.
    fn spin_for_next(&mut self) -> Result<Option<Found>, PollError> {
        const LOOKS: usize = 256;
        if !self.idler.expects_soon() || self.bell.is_used() || self.away.is_some() {
            return Ok(None);
        }
        let Source::Images(images) = &mut self.source else { return Ok(None) };
        for _ in 0..LOOKS / images.len().max(1) {
            std::hint::spin_loop();
            if self.endpoint.has_news(self.seen) {
                break;
            }
            for (index, image) in images.iter_mut().enumerate() {
                match image.read() {
                    Ok(None) => {}
                    Ok(Some(frame)) => {
                        let found = image.found(&frame);
                        image.advance(&frame);
                        self.turn = index;
                        self.empty = 0;
                        return Ok(Some(found));
                    }
                    Err(error) => return self.failed(0, error).map(|_| None),
                }
            }
        }
        Ok(None)
    }

    #[inline]
    fn message(&self, found: Found) -> Message<'_> {
        // SAFETY: ring and copy stay as they are while `self` is borrowed: it has just been found.
        unsafe { found.message() }
    }

    fn own(&self) -> &PartyLine {
        // SAFETY: the page is kept in `self`.
        unsafe { self.page.party().as_ref() }
    }

    fn ends(&self) -> impl Iterator<Item = &ImageEnd> + Clone {
        let (images, mpsc) = match &self.source {
            Source::Images(images) => (images.as_slice(), [].as_slice()),
            Source::Mpsc(source) => ([].as_slice(), source.images.as_slice()),
        };
        images.iter().map(|image| &image.end).chain(mpsc)
    }

    /// Takes images over and learns of their ends, as the conductor says.
    fn catch_up(&mut self) {
        if !self.endpoint.has_news(self.seen) {
            return;
        }
        // Before the queue is emptied: what comes later changes the word again.
        self.seen = value_of(self.endpoint.attention());
        if self.seen == FORKED {
            return self.forsake();
        }
        while let Some(news) = self.endpoint.take_news() {
            match news {
                News::Publisher(end) => self.add_image(*end),
                News::Ended(link) => self.end_image(link),
                News::Failed(reason) => self.report(ImageEvent::Failed(reason)),
                News::Lost => self.closed = true,
                News::Subscriber(_) => {}
            }
        }
    }

    /// In a forked child: forgets all that is the parent's.
    fn forsake(&mut self) {
        self.forked = true;
        self.closed = true;
        self.source = Source::Images(Vec::new());
        self.ending = 0;
        self.events.clear();
        self.bell.forsake();
    }

    fn report(&mut self, event: ImageEvent) {
        const MOST: usize = 4096;
        if self.events.len() >= MOST {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.fresh_events = true;
        self.told = false;
    }

    fn add_image(&mut self, new: SubscriberEnd) {
        if matches!(&self.source, Source::Mpsc(source) if source.spoilt) {
            // It was on its way when the ring was given up.
            return;
        }
        let link = new.link;
        let end = ImageEnd::new(link, new.peer, self.fences);
        self.bell.add(&end.peer.doorbell, link.id);
        self.report(ImageEvent::Available(end.info()));
        match (&mut self.source, new.ring) {
            (Source::Images(images), Some(ring)) => {
                let overwrite = self.endpoint.spec.overflow.overwrite();
                let line = self.page.line(link.line);
                // SAFETY: the ring is kept beside the consumer, the page in `self`; the driver gives a line to one image at a time.
                let consumer =
                    unsafe { single::Consumer::new(ring.control(), ring.region(), line, link.id, link.slot as usize, overwrite) };
                // A lossy publisher is not to get far round its ring while we stay away.
                let most = if overwrite == Overwrite::Oldest { self.endpoint.spec.capacity / 4 } else { u64::MAX };
                images.push(Image { consumer, last: 0, pace: Pace::new(most), end, sleeps: new.sleeps, _ring: ring });
            }
            (Source::Mpsc(source), _) => {
                source.ids[usize::from(link.slot as u8)] = link.id;
                source.images.push(end);
            }
            (Source::Images(_), None) => {}
        }
    }

    /// Nothing more will be committed to the image; what was is still to be read.
    fn end_image(&mut self, link: u64) {
        let ended = match &mut self.source {
            Source::Images(images) => {
                let image = images.iter_mut().find(|image| image.end.link.id == link && !image.end.ended);
                image.map(|image| {
                    image.consumer.producer_gone();
                    &mut image.end
                })
            }
            Source::Mpsc(source) => {
                let end = source.images.iter_mut().find(|end| end.link.id == link && !end.ended);
                if let Some(end) = &end {
                    source.consumer.producer_gone(end.link.slot as u8);
                }
                end
            }
        };
        if let Some(end) = ended {
            end.ended = true;
            self.ending += 1;
        }
    }

    /// Closes images that have ended and are read to their end.
    fn retire(&mut self) {
        let closed: Vec<u64> =
            self.ends().filter(|end| !end.ended && end.peer.peer.line().has_closed()).map(|end| end.link.id).collect();
        closed.into_iter().for_each(|link| self.end_image(link));
        if self.ending == 0 {
            return;
        }
        let finished: Vec<u64> = match &mut self.source {
            Source::Images(images) => images
                .iter_mut()
                .filter_map(|image| (image.end.ended && !image.consumer.ready()).then_some(image.end.link.id))
                .collect(),
            Source::Mpsc(source) => {
                let mut finished = Vec::new();
                while let Some(slot) = source.consumer.take_finished() {
                    let ended = |end: &&ImageEnd| end.ended && end.link.slot == u32::from(slot);
                    finished.extend(source.images.iter().find(ended).map(|end| end.link.id));
                }
                finished
            }
        };
        finished.into_iter().for_each(|link| self.close_image(link));
    }

    fn close_image(&mut self, link: u64) {
        let end = match &mut self.source {
            Source::Images(images) => {
                let index = images.iter().position(|image| image.end.link.id == link);
                index.map(|index| images.swap_remove(index).end)
            }
            Source::Mpsc(source) => {
                let index = source.images.iter().position(|end| end.link.id == link);
                index.map(|index| {
                    let end = source.images.swap_remove(index);
                    source.ids[usize::from(end.link.slot as u8)] = 0;
                    end
                })
            }
        };
        let Some(end) = end else { return };
        self.ending -= usize::from(end.ended);
        self.bell.remove(&end.peer.doorbell);
        self.report(ImageEvent::Closed(end.info()));
        self.conductor.link_done(&self.endpoint, link);
    }

    /// What there is, if anything, of what can come at any moment: a glance costs a load or two an image.
    #[inline]
    fn glance(&mut self) -> bool {
        self.endpoint.has_news(self.seen)
            || match &mut self.source {
                Source::Images(images) => images.iter_mut().any(|image| image.consumer.ready()),
                Source::Mpsc(source) => source.ready(),
            }
    }

    /// Spins until it is time to come back to a stream that is stayed away from, or something else is to be done; see [`pace`](super::pace).
    #[cold]
    fn come_back(&mut self) {
        // First, as in a forked child there is nothing to look at any more.
        self.catch_up();
        let Some(until) = self.away.take() else { return };
        let may_spin = may_spin(&self.idler, &self.bell);
        let now = loop {
            let now = Instant::now();
            let mut is_wanted = || match &mut self.source {
                Source::Images(images) => images.iter_mut().any(|image| !image.pace.is_away() && image.consumer.ready()),
                Source::Mpsc(_) => false,
            };
            if now >= until || !may_spin || self.endpoint.has_news(self.seen) || is_wanted() {
                break now;
            }
            std::hint::spin_loop();
        };
        match &mut self.source {
            Source::Images(images) => {
                images
                    .iter_mut()
                    .filter(|image| image.pace.is_away())
                    .for_each(|image| image.pace.come_back(image.progress(), now));
            }
            Source::Mpsc(source) => source.pace.come_back(source.progress(), now),
        }
    }

    /// What there is, if anything.
    fn look(&mut self, events_count: bool) -> Option<Ready> {
        self.catch_up();
        if self.pending.is_some() || self.any_ready() {
            return Some(Ready::Messages);
        }
        self.retire();
        if events_count && !self.told && !self.events.is_empty() {
            return Some(Ready::Event);
        }
        (self.closed && self.ends().next().is_none()).then_some(Ready::Messages)
    }

    fn any_ready(&mut self) -> bool {
        match &mut self.source {
            Source::Images(images) => images.iter_mut().any(|image| image.consumer.ready()),
            Source::Mpsc(source) => source.ready(),
        }
    }

    fn wait_for(&mut self, deadline: Option<Instant>, events_count: bool) -> Ready {
        self.catch_up();
        // What was taken is done with: nobody should wait for room that we do not need.
        if self.release_all().is_err() {
            // The next poll finds out the same and says so.
            return Ready::Messages;
        }
        if self.away.is_some() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            self.come_back();
        }
        const GLANCES: u32 = 32;
        let ready = loop {
            if let Some(ready) = self.look(events_count) {
                break ready;
            }
            if self.spin(GLANCES) {
                continue;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break Ready::TimedOut;
            }
            match self.idler.step() {
                Step::Again => {}
                Step::Sleep(Some(nap)) => {
                    let left = deadline.map_or(nap, |deadline| deadline.saturating_duration_since(Instant::now()));
                    std::thread::sleep(nap.min(left));
                }
                Step::Sleep(None) => self.sleep(deadline, events_count),
            }
        };
        self.idler.done();
        if self.bell.is_used() && !self.sleeper.is_asleep() {
            // Nobody knows that the fd is waited on, and what was waited for may not have come.
            self.bell.ring(&self.endpoint);
        }
        ready
    }

    /// Spins for a moment, without looking at the clock or for what is rare. `true` if something came.
    fn spin(&mut self, glances: u32) -> bool {
        if !self.idler.spins() {
            return false;
        }
        (0..glances).any(|_| {
            std::hint::spin_loop();
            self.glance()
        })
    }

    /// The sleep protocol; see [`sleep`](crate::wait::sleep).
    fn sleep(&mut self, deadline: Option<Instant>, events_count: bool) {
        let seen = value_of(self.endpoint.attention());
        let sequences: Vec<u32> = self.ends().map(|end| value_of(end.peer.wake_sequence())).collect();
        let how = how(&self.endpoint.spec, sequences.len());
        self.fall_asleep(how);
        // Images come with news only, and if one has gone there are fewer: else the images that there are behind the look are those whose sequences we have, and at which we were counted.
        let no_news = !self.endpoint.has_news(self.seen);
        if self.look(events_count).is_none() && no_news && self.seen == seen && self.ends().count() == sequences.len() {
            match how {
                How::Futex => {
                    let words = self.ends().map(|end| end.peer.wake_sequence());
                    let waits: Vec<Wait<'_>> = words.zip(sequences).map(|(word, expected)| Wait { word, expected }).collect();
                    sleep_on(&self.endpoint, seen, &waits, deadline);
                }
                How::Doorbell => self.bell.wait(&self.endpoint, self.doorbells(), deadline),
            }
        }
        self.awake();
    }

    fn doorbells(&self) -> impl Iterator<Item = (u64, &crate::wait::doorbell::Doorbell)> + Clone {
        self.ends().map(|end| (end.link.id, &end.peer.doorbell))
    }

    /// Publishes all positions: whoever waits for room should not wait for us to wake up.
    fn release_all(&mut self) -> Result<(), PollError> {
        if self.forked {
            return Ok(());
        }
        // SAFETY: the page is kept in `self`.
        let own = unsafe { self.page.party().as_ref() };
        match &mut self.source {
            Source::Images(images) => images.iter_mut().for_each(|image| image.release(own, true)),
            Source::Mpsc(source) => source.release(own, true)?,
        }
        Ok(())
    }

    fn fall_asleep(&mut self, how: How) {
        // SAFETY: the page is kept in `self`.
        let own = unsafe { self.page.party().as_ref() };
        let images = if let Source::Images(images) = &self.source { images.as_slice() } else { &[] };
        // SAFETY: the page is kept in the image.
        let counts = images.iter().filter_map(|image| Some(unsafe { image.sleeps.as_ref()?.count().as_ref() }));
        self.sleeper.fall_asleep(own, counts, how, self.fences);
    }

    fn awake(&mut self) {
        // SAFETY: the page is kept in `self`.
        let own = unsafe { self.page.party().as_ref() };
        self.sleeper.awake(own);
    }

    /// Keeps the promise of the fd: after each poll it is readable, or everything was looked at after the flag went up.
    #[cold]
    fn rearm(&mut self, more: bool) {
        if more {
            self.awake();
            self.bell.ring(&self.endpoint);
            return;
        }
        self.bell.hear(&self.endpoint, self.doorbells());
        self.fall_asleep(How::Doorbell);
        // News is looked at, too: its bell may just have been heard. Each event makes the fd readable once, whether it is fetched or not; so does a new image, at which we were not counted.
        // So does a fence that was lost: nobody may have seen that we sleep.
        let ready = self.look(false).is_some();
        if ready || std::mem::take(&mut self.fresh_events) || Fences::lost() {
            self.awake();
            self.bell.ring(&self.endpoint);
        }
    }
}

/// Until when to stay away, if one more of several images says so: the first to be read again decides.
#[inline]
fn stay_away(away: &mut Option<Instant>, until: Option<Instant>) {
    if let Some(until) = until {
        *away = Some(away.map_or(until, |away| away.min(until)));
    }
}

/// Whether time may be spun away: not by who would rather give the core away, or has other things to look after.
fn may_spin(idler: &Idler, bell: &Bell) -> bool {
    idler.is_spinning() && !bell.is_used()
}

/// The next index of `count` in a circle.
#[inline]
fn following(index: usize, count: usize) -> usize {
    if index + 1 < count { index + 1 } else { 0 }
}

/// Readable when there are messages or events. See [`Subscription`].
impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd(&self.endpoint)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.catch_up();
        if self.forked {
            return;
        }
        // SAFETY: the page is kept in `self`.
        let own = unsafe { self.page.party().as_ref() };
        own.close();
        // Whoever waits for room need not wait for the driver to tell him.
        Light::Full.pass();
        match &mut self.source {
            Source::Images(images) => wake_sleepers(own, images.iter_mut().map(|image| &mut image.end.peer)),
            Source::Mpsc(source) => wake_sleepers(own, source.images.iter_mut().map(|end| &mut end.peer)),
        }
        self.conductor.close(self.endpoint.id);
    }
}

impl Subscribe for Subscription {
    fn poll_controlled(&mut self, handler: impl FnMut(Message<'_>) -> Action, limit: usize) -> Result<usize, PollError> {
        Self::poll_controlled(self, handler, limit)
    }

    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Message<'_>, RecvError> {
        Self::recv_until(self, deadline)
    }
}
