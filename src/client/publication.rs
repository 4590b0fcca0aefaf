//! The publication: claims, offers and batches on the fast path; links that come and go, and waiting, beside it.

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conductor::Conductor;
use super::endpoint::{Endpoint, FORKED, NO_NEWS, News, Side};
use super::link::{MpscRing, Page, PeerEnd, SingleRing, Sleeps, wake_sleepers};
use super::sleeper::{Bell, Wait, sleep_for_news, sleep_on};
use crate::channel::{ChannelName, ChannelSpec, Kind, Properties, Publish};
use crate::control::message::Event;
use crate::error::Error;
use crate::ring::layout::PartyLine;
use crate::ring::{ClaimError, mpsc, single};
use crate::wait::doorbell::Doorbell;
use crate::wait::fences::{Fences, Light};
use crate::wait::idle::{Idle, Idler, Step};
use crate::wait::sleep::{How, Sleeper, Watch, value_of};

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// The slowest subscription is a whole ring behind. Try again later, wait with [`Publication::offer_until`], or drop the message.
    #[error("back pressure: the slowest subscription has not made room yet")]
    BackPressured,
    /// Nobody subscribes at the moment.
    #[error("nobody subscribes")]
    NotConnected,
    /// The publication cannot be used any more: the driver or a peer has spoilt it.
    #[error("the publication is closed")]
    Closed,
    /// The message is longer than the channel takes.
    #[error("a message of {len} bytes is too long, this channel takes at most {max}; a larger capacity takes more")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest the channel takes.
        max: usize,
    },
    /// The deadline passed, and there was still no room.
    #[error("timed out waiting for room")]
    TimedOut,
    /// This process was forked from the one that made the publication, which goes on using it.
    #[error("the publication belongs to the process this one was forked from; connect a client of its own here")]
    Forked,
}

/// Sends messages on a channel. Made by [`Client::publication`](crate::Client::publication).
///
/// It may move between threads, but not be used by two at once; on `mpsc` and `broadcast` channels each thread makes its own. Dropping it closes it: subscriptions
/// still get everything that was committed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let driver = media_driver::EmbeddedDriver::launch()?;
/// # let client = driver.connect()?;
/// let mut publication = client.publication("greetings")?;
/// let mut subscription = client.subscription("greetings")?;
/// publication.wait_connected(None)?;
///
/// publication.offer(b"hello")?;
/// let mut claim = publication.try_claim(5)?; // written in place, no copy
/// claim.copy_from_slice(b"world");
/// claim.commit();
///
/// assert_eq!(subscription.recv()?.payload(), b"hello");
/// assert_eq!(subscription.recv()?.payload(), b"world");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Publication {
    ring: Ring,
    /// All peers can be woken without a fence instruction on our side, or not.
    light: Light,
    /// What tells that somebody falls asleep.
    watch: Watch,
    links: Vec<LinkEnd>,
    /// The last news seen, see [`Endpoint::has_news`].
    seen: u32,
    endpoint: Arc<Endpoint>,
    sleeper: Sleeper,
    idler: Idler,
    bell: Bell,
    fences: Fences,
    closed: bool,
    /// See [`OfferError::Forked`].
    forked: bool,
    conductor: Arc<Conductor>,
}

#[derive(Debug)]
enum Ring {
    Single {
        producer: single::Producer,
        /// Keeps the memory of `producer`.
        mapping: SingleRing,
        /// Where subscriptions say that they fall asleep, if they share a word for that.
        sleeps: Option<Sleeps>,
    },
    /// `None` while nobody subscribes: the ring is the subscription's.
    Mpsc(Option<MpscProducer>),
}

#[derive(Debug)]
struct MpscProducer {
    producer: mpsc::Producer,
    slot: u8,
    /// Keeps the memory of `producer`.
    mapping: MpscRing,
}

#[derive(Debug)]
struct LinkEnd {
    id: u64,
    peer: PeerEnd,
    /// Keeps the memory of `peer`.
    _page: Page,
}

impl Ring {
    /// Our own line in the ring, where there is one.
    fn party(&self) -> Option<&PartyLine> {
        match self {
            // SAFETY: the mapping is kept in the same variant.
            Self::Single { mapping, .. } => Some(unsafe { mapping.party().as_ref() }),
            // SAFETY: the mapping is kept beside the producer.
            Self::Mpsc(ring) => ring.as_ref().map(|ring| unsafe { ring.mapping.party(ring.slot).as_ref() }),
        }
    }

    #[inline]
    fn claim(&mut self, length: usize) -> Result<(), ClaimError> {
        match self {
            Self::Single { producer, .. } => producer.claim(length),
            Self::Mpsc(Some(ring)) => ring.producer.claim(length),
            Self::Mpsc(None) => Err(ClaimError::NotConnected),
        }
    }

    #[inline]
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        match self {
            Self::Single { producer, .. } => producer.write(offset, bytes),
            Self::Mpsc(Some(ring)) => ring.producer.write(offset, bytes),
            Self::Mpsc(None) => {}
        }
    }

    #[inline]
    fn payload(&mut self) -> &mut [u8] {
        match self {
            Self::Single { producer, .. } => producer.payload(),
            Self::Mpsc(Some(ring)) => ring.producer.payload(),
            Self::Mpsc(None) => &mut [],
        }
    }

    #[inline]
    fn commit(&mut self, tag: u16) -> u64 {
        match self {
            Self::Single { producer, .. } => producer.commit(tag),
            Self::Mpsc(Some(ring)) => ring.producer.commit(tag),
            Self::Mpsc(None) => 0,
        }
    }

    #[inline]
    fn abort(&mut self) {
        match self {
            Self::Single { producer, .. } => producer.abort(),
            Self::Mpsc(Some(ring)) => ring.producer.abort(),
            Self::Mpsc(None) => {}
        }
    }

    fn has_room(&mut self, length: usize) -> Result<(), ClaimError> {
        match self {
            Self::Single { producer, .. } => producer.has_room(length),
            Self::Mpsc(Some(ring)) => ring.producer.has_room(length),
            Self::Mpsc(None) => Err(ClaimError::NotConnected),
        }
    }
}

impl Publication {
    pub(super) fn open(conductor: &Arc<Conductor>, name: ChannelName, properties: Properties, idle: Idle) -> Result<Self, Error> {
        let mut answer = conductor.add(Side::Publication, name, properties)?;
        let made = Self::make(conductor, &mut answer, idle);
        if made.is_err() {
            conductor.discard(&answer);
        }
        made
    }

    fn make(conductor: &Arc<Conductor>, answer: &mut super::conductor::Answer, idle: Idle) -> Result<Self, Error> {
        let Event::PublicationAdded { id, spec, page_size, .. } = &answer.event else {
            return Err(conductor.nonsense());
        };
        let objects = std::mem::take(&mut answer.fds);
        let fences = conductor.fences();
        let ring = match (spec.kind, objects.as_slice()) {
            (Kind::Mpsc, []) => Ring::Mpsc(None),
            (Kind::Spsc | Kind::Broadcast, [page @ .., ring]) if page.len() == usize::from(spec.has_sleep_page()) => {
                let mapping = SingleRing::own(ring, spec, *page_size)?;
                let sleeps = page.first().map(|page| Sleeps::map(page, false)).transpose()?;
                // SAFETY: the driver has just made the ring for us, `mapping` is kept beside.
                let producer = unsafe {
                    let overwrite = spec.overflow.overwrite();
                    single::Producer::new(mapping.control(), mapping.region(), overwrite)
                };
                Ring::Single { producer, mapping, sleeps }
            }
            _ => return Err(conductor.nonsense()),
        };
        if let Some(party) = ring.party() {
            party.begin(fences == Fences::AsymmetricCapable);
        }
        let endpoint = Arc::new(Endpoint::new(*id, Side::Publication, spec.clone(), None, objects)?);
        let bell = Bell::new(&endpoint)?;
        conductor.announce(Arc::clone(&endpoint));
        Ok(Self {
            ring,
            light: Light::Full,
            watch: Watch::default(),
            links: Vec::new(),
            seen: NO_NEWS,
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

    /// Position behind the last message, in bytes. It only grows; on an `mpsc` channel as long as the subscription is the same.
    pub fn position(&self) -> u64 {
        match &self.ring {
            Ring::Single { producer, .. } => producer.position(),
            Ring::Mpsc(ring) => ring.as_ref().map_or(0, |ring| ring.producer.position()),
        }
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.endpoint.spec.capacity
    }

    /// Longest message in bytes: capacity - 16, or capacity / 2 on lossy channels.
    pub fn max_payload(&self) -> usize {
        self.endpoint.spec.max_payload() as usize
    }

    /// How many subscriptions get what is published from now on.
    pub fn subscribers(&mut self) -> usize {
        self.catch_up();
        self.links.len()
    }

    /// Whether anybody gets what is published from now on.
    pub fn is_connected(&mut self) -> bool {
        self.subscribers() > 0
    }

    /// Waits until somebody subscribes, and says whether that happened before `deadline`.
    ///
    /// # Errors
    ///
    /// [`OfferError::Closed`] if that cannot happen any more.
    pub fn wait_connected(&mut self, deadline: Option<Instant>) -> Result<bool, OfferError> {
        self.wait_for_subscribers(1, deadline)
    }

    /// Waits until so many subscribe, and says whether that happened before `deadline`.
    ///
    /// # Errors
    ///
    /// [`OfferError::Closed`] if that cannot happen any more.
    pub fn wait_for_subscribers(&mut self, wanted: usize, deadline: Option<Instant>) -> Result<bool, OfferError> {
        loop {
            let seen = value_of(self.endpoint.attention());
            if self.subscribers() >= wanted {
                return Ok(true);
            }
            if self.closed {
                return Err(if self.forked { OfferError::Forked } else { OfferError::Closed });
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            sleep_for_news(&self.endpoint, seen, &self.bell, self.doorbells(), deadline);
        }
    }

    fn doorbells(&self) -> impl Iterator<Item = (u64, &Doorbell)> + Clone {
        self.links.iter().map(|link| (link.id, &link.peer.doorbell))
    }

    /// Sends a message, or says at once why not. Returns the position behind it.
    ///
    /// # Errors
    ///
    /// See [`OfferError`]; nothing was sent then.
    #[inline(always)]
    pub fn offer(&mut self, payload: &[u8]) -> Result<u64, OfferError> {
        self.offer_tagged(0, payload)
    }

    /// Sends a message with a tag: 16 bits for the application's own use, such as a message type.
    ///
    /// # Errors
    ///
    /// As for [`offer`](Self::offer).
    #[inline(always)]
    pub fn offer_tagged(&mut self, tag: u16, payload: &[u8]) -> Result<u64, OfferError> {
        let position = self.put(tag, payload)?;
        self.wake();
        Ok(position)
    }

    /// Sends one message gathered from several slices.
    ///
    /// # Errors
    ///
    /// As for [`offer`](Self::offer).
    pub fn offer_gather(&mut self, tag: u16, parts: &[&[u8]]) -> Result<u64, OfferError> {
        let length = parts.iter().fold(0usize, |length, part| length.saturating_add(part.len()));
        self.claim(length)?;
        let mut offset = 0;
        for part in parts {
            self.ring.write(offset, part);
            offset += part.len();
        }
        let position = self.ring.commit(tag);
        self.wake();
        Ok(position)
    }

    /// Sends a message, waiting for room until `deadline` (for ever, if `None`).
    ///
    /// # Errors
    ///
    /// As for [`offer`](Self::offer), but [`OfferError::TimedOut`] instead of [`OfferError::BackPressured`].
    pub fn offer_until(&mut self, tag: u16, payload: &[u8], deadline: Option<Instant>) -> Result<u64, OfferError> {
        loop {
            match self.offer_tagged(tag, payload) {
                Err(OfferError::BackPressured) => self.wait_for_room(payload.len(), deadline)?,
                result => return result,
            }
        }
    }

    /// Claims room for a message of `length` bytes, to be written in place.
    ///
    /// # Errors
    ///
    /// As for [`offer`](Self::offer).
    #[inline]
    pub fn try_claim(&mut self, length: usize) -> Result<Claim<'_>, OfferError> {
        self.claim(length)?;
        Ok(self.claimed())
    }

    /// Claims room for a message of `length` bytes, waiting for it until `deadline` (for ever, if `None`).
    ///
    /// # Errors
    ///
    /// As for [`offer_until`](Self::offer_until).
    pub fn claim_until(&mut self, length: usize, deadline: Option<Instant>) -> Result<Claim<'_>, OfferError> {
        loop {
            match self.claim(length) {
                Ok(()) => return Ok(self.claimed()),
                Err(OfferError::BackPressured) => self.wait_for_room(length, deadline)?,
                Err(error) => return Err(error),
            }
        }
    }

    #[inline]
    fn claimed(&mut self) -> Claim<'_> {
        if let Ring::Mpsc(Some(ring)) = &mut self.ring
            && ring.producer.take_withdrawn()
        {
            // Not left to the commit, as the claim may be held for long.
            self.wake();
        }
        Claim { publication: self, tag: 0, open: true }
    }

    /// Several messages, after which sleeping subscriptions are woken once. Each is visible as soon as it is offered.
    #[inline]
    pub fn batch(&mut self) -> Batch<'_> {
        Batch { publication: self }
    }

    #[inline(always)]
    fn put(&mut self, tag: u16, payload: &[u8]) -> Result<u64, OfferError> {
        self.catch_up();
        let first = match &mut self.ring {
            Ring::Single { producer, .. } => producer.offer(tag, payload),
            Ring::Mpsc(Some(ring)) => ring.producer.offer(tag, payload),
            Ring::Mpsc(None) => Err(ClaimError::NotConnected),
        };
        match first {
            Ok(position) => Ok(position),
            Err(error) => self.put_again(tag, payload, error),
        }
    }

    #[cold]
    fn put_again(&mut self, tag: u16, payload: &[u8], error: ClaimError) -> Result<u64, OfferError> {
        self.claim_failed(payload.len(), error)?;
        self.ring.write(0, payload);
        Ok(self.ring.commit(tag))
    }

    #[inline]
    fn claim(&mut self, length: usize) -> Result<(), OfferError> {
        self.catch_up();
        match self.ring.claim(length) {
            Ok(()) => Ok(()),
            Err(error) => self.claim_failed(length, error),
        }
    }

    /// Perhaps things have changed that the fast path does not look at; else says why there is no room.
    #[cold]
    fn claim_failed(&mut self, length: usize, first: ClaimError) -> Result<(), OfferError> {
        let mut error = first;
        if self.catch_up() || self.drop_departed() {
            match self.ring.claim(length) {
                Ok(()) => return Ok(()),
                Err(second) => error = second,
            }
        }
        // A claim record was withdrawn, perhaps: see `mpsc::Producer::take_withdrawn`.
        self.wake();
        let error = self.explain(length, error);
        if error != OfferError::BackPressured || !self.bell.is_used() || !self.arm(length) {
            return Err(error);
        }
        let third = self.ring.claim(length).map_err(|error| self.explain(length, error));
        if third.is_err() {
            // Another producer was quicker. We are not armed: the fd has to be readable instead. And again a record may have been withdrawn.
            self.bell.ring(&self.endpoint);
            self.wake();
        }
        third
    }

    fn explain(&mut self, length: usize, error: ClaimError) -> OfferError {
        match error {
            ClaimError::TooLong { max } => OfferError::TooLong { len: length, max: max as usize },
            _ if self.forked => OfferError::Forked,
            _ if self.closed => OfferError::Closed,
            ClaimError::BackPressured => OfferError::BackPressured,
            ClaimError::NotConnected if length > self.max_payload() => {
                OfferError::TooLong { len: length, max: self.max_payload() }
            }
            ClaimError::NotConnected => OfferError::NotConnected,
            ClaimError::Corrupt => {
                self.closed = true;
                OfferError::Closed
            }
        }
    }

    /// After a commit: wakes those who sleep. All that peers cost here who stay awake is the load of one word.
    #[inline(always)]
    fn wake(&mut self) {
        self.light.pass();
        if self.watch.needs_look() {
            self.wake_slowly();
        }
    }

    #[cold]
    fn wake_slowly(&mut self) {
        if let Some(party) = self.ring.party() {
            wake_sleepers(party, self.links.iter_mut().map(|link| &mut link.peer));
        }
    }

    /// Takes links over and gives them up, as the conductor says. `true` if there was any news.
    #[inline(always)]
    fn catch_up(&mut self) -> bool {
        self.endpoint.has_news(self.seen) && self.take_news()
    }

    #[cold]
    fn take_news(&mut self) -> bool {
        // Before the queue is emptied: what comes later changes the word again.
        self.seen = value_of(self.endpoint.attention());
        if self.seen == FORKED {
            self.forsake();
            return true;
        }
        while let Some(news) = self.endpoint.take_news() {
            match news {
                News::Subscriber(end) => self.add_link(*end),
                News::Ended(link) => self.remove_link(link),
                News::Lost => self.closed = true,
                News::Publisher(_) | News::Failed(_) => {}
            }
        }
        true
    }

    /// In a forked child: forgets all that is the parent's.
    fn forsake(&mut self) {
        self.forked = true;
        self.closed = true;
        self.ring = Ring::Mpsc(None);
        self.links.clear();
        self.links_changed();
        self.bell.forsake();
    }

    fn add_link(&mut self, end: super::link::PublisherEnd) {
        let link = end.link;
        let _old;
        match (&mut self.ring, end.ring) {
            (Ring::Single { producer, .. }, _) => {
                // SAFETY: the page is kept until the link is removed; a line is masked, and the slot is by the ring.
                unsafe { producer.add_reader(link.id, link.slot as usize, end.page.line(link.line)) }
            }
            (Ring::Mpsc(ring), Some(mapping)) => {
                // There is one subscription: what was linked before is over, also if its end has not been told yet.
                // Kept until another word is watched than that of the old one's page.
                _old = std::mem::take(&mut self.links);
                _old.iter().for_each(|old| self.bell.remove(&old.peer.doorbell));
                let slot = link.slot as u8;
                // SAFETY: the driver gives a slot to one producer at a time; `mapping` is kept beside.
                let producer = unsafe { mpsc::Producer::new(mapping.control(), mapping.region(), slot) };
                *ring = Some(MpscProducer { producer, slot, mapping });
                // Its line may have been somebody else's; the flag goes on from there, as it only grows.
                if let Some(party) = self.ring.party() {
                    self.sleeper = Sleeper::taking_over(party);
                    party.begin(self.fences == Fences::AsymmetricCapable);
                }
            }
            (Ring::Mpsc(_), None) => return,
        }
        self.bell.add(&end.peer.doorbell, link.id);
        self.links.push(LinkEnd { id: link.id, peer: end.peer, _page: end.page });
        self.links_changed();
    }

    fn remove_link(&mut self, id: u64) {
        let Some(index) = self.links.iter().position(|link| link.id == id) else { return };
        match &mut self.ring {
            Ring::Single { producer, .. } => drop(producer.remove_reader(id)),
            Ring::Mpsc(ring) => *ring = None,
        }
        // The reader is forgotten, so its line may be unmapped.
        let link = self.links.swap_remove(index);
        self.bell.remove(&link.peer.doorbell);
        self.links_changed();
    }

    fn links_changed(&mut self) {
        let all_capable = self.links.iter().all(|link| link.peer.peer.is_asymmetric_capable());
        self.light = Light::towards(self.fences, all_capable);
        let word = match (self.links.as_slice(), &self.ring) {
            ([link], _) => Some(NonNull::from(&link.peer.peer.line().sleep_flag)),
            (_, Ring::Single { sleeps, .. }) => sleeps.as_ref().map(Sleeps::count),
            _ => None,
        };
        // SAFETY: the page of a link is kept until the links have changed, the sleep page beside the ring.
        unsafe { self.watch.set(word) };
    }

    /// Gives up subscriptions that have closed, which says so earlier than the driver does, and such as tell impossible positions.
    fn drop_departed(&mut self) -> bool {
        let closed = self.links.iter().filter(|link| link.peer.peer.line().has_closed()).map(|link| link.id);
        let mut departed: Vec<u64> = closed.collect();
        if let Ring::Single { producer, .. } = &mut self.ring {
            departed.extend(std::iter::from_fn(|| producer.take_liar()));
        }
        for &link in &departed {
            self.remove_link(link);
            self.endpoint.remove_link(link);
        }
        !departed.is_empty()
    }

    /// Waits until a message of `length` bytes fits, or cannot be sent at all.
    fn wait_for_room(&mut self, length: usize, deadline: Option<Instant>) -> Result<(), OfferError> {
        // Of an mpsc ring a hostile peer can make it look as if there were room when there is none to be claimed, again and again.
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(OfferError::TimedOut);
        }
        let outcome = loop {
            if self.room_or_rid(length) {
                break Ok(());
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break Err(OfferError::TimedOut);
            }
            match self.idler.step() {
                Step::Again => {}
                Step::Sleep(Some(nap)) => std::thread::sleep(nap.min(left_until(deadline))),
                Step::Sleep(None) => self.sleep_for_room(length, deadline),
            }
        };
        self.idler.done();
        if self.bell.is_used() && !self.sleeper.is_asleep() {
            // Nobody knows that the fd is waited on, and there may be no room yet.
            self.bell.ring(&self.endpoint);
        }
        outcome
    }

    /// Whether waiting is over: there is room, or a reason other than back pressure why there is none.
    fn room_or_rid(&mut self, length: usize) -> bool {
        self.catch_up();
        if self.ring.has_room(length) != Err(ClaimError::BackPressured) {
            return true;
        }
        self.drop_departed() && self.ring.has_room(length) != Err(ClaimError::BackPressured)
    }

    /// The sleep protocol; see [`sleep`](crate::wait::sleep).
    fn sleep_for_room(&mut self, length: usize, deadline: Option<Instant>) {
        let how = self.how_to_sleep();
        let seen = value_of(self.endpoint.attention());
        let sequences: Vec<u32> = self.links.iter().map(|link| value_of(link.peer.wake_sequence())).collect();
        if self.fall_asleep(how)
            && !self.endpoint.has_news(self.seen)
            && !self.room_or_rid(length)
            && self.links.len() == sequences.len()
        {
            match how {
                How::Futex => {
                    let words = self.links.iter().map(|link| link.peer.wake_sequence());
                    let waits: Vec<Wait<'_>> = words.zip(sequences).map(|(word, expected)| Wait { word, expected }).collect();
                    sleep_on(&self.endpoint, seen, &waits, deadline);
                }
                How::Doorbell => self.bell.wait(&self.endpoint, self.doorbells(), deadline),
            }
        }
        self.awake();
    }

    fn how_to_sleep(&self) -> How {
        super::sleeper::how(&self.endpoint.spec, self.links.len())
    }

    /// `false` if there is nobody to be woken by.
    fn fall_asleep(&mut self, how: How) -> bool {
        let Some(party) = self.ring.party() else { return false };
        // Each subscription has this publication's flag to look at, and no other.
        self.sleeper.fall_asleep(party, [], how, self.fences);
        true
    }

    fn awake(&mut self) {
        if let Some(party) = self.ring.party() {
            self.sleeper.awake(party);
        }
    }

    /// For event loops: makes the fd readable as soon as there may be room. `true` if there is already.
    fn arm(&mut self, length: usize) -> bool {
        self.bell.hear(&self.endpoint, self.doorbells());
        if !self.fall_asleep(How::Doorbell) || self.endpoint.has_news(self.seen) {
            self.bell.ring(&self.endpoint);
            return false;
        }
        let ready = self.room_or_rid(length);
        if ready {
            self.awake();
        } else if Fences::lost() {
            // Nobody may have seen that we sleep: whoever waits on the fd has to look again.
            self.bell.ring(&self.endpoint);
        }
        ready
    }
}

fn left_until(deadline: Option<Instant>) -> Duration {
    deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
}

/// Readable when it may be worth to offer again after [`OfferError::BackPressured`] (and now and then without need).
impl AsFd for Publication {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd(&self.endpoint)
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        // Subscriptions that came and were not noticed yet: they end before they begin, and have to learn it.
        self.catch_up();
        self.ring.abort();
        if let Some(party) = self.ring.party() {
            party.close();
            self.light.pass();
            wake_sleepers(party, self.links.iter_mut().map(|link| &mut link.peer));
        }
        self.conductor.close(self.endpoint.id);
    }
}

impl Publish for Publication {
    fn offer_tagged(&mut self, tag: u16, payload: &[u8]) -> Result<u64, OfferError> {
        Self::offer_tagged(self, tag, payload)
    }

    fn offer_until(&mut self, tag: u16, payload: &[u8], deadline: Option<Instant>) -> Result<u64, OfferError> {
        Self::offer_until(self, tag, payload, deadline)
    }

    fn wait_connected(&mut self, deadline: Option<Instant>) -> Result<bool, OfferError> {
        Self::wait_connected(self, deadline)
    }

    fn max_payload(&self) -> usize {
        Self::max_payload(self)
    }
}

/// Room for a message, to be written in place: dereferences to its bytes, which hold anything at first. [`commit`](Self::commit) sends it; dropping it aborts.
///
/// On an `mpsc` channel the other publications of the channel can write to the same memory, and the bytes stay yours only as far as they keep to the
/// protocol; on other channels nobody else can write it.
#[derive(Debug)]
#[must_use = "a claim that is dropped is aborted"]
pub struct Claim<'a> {
    publication: &'a mut Publication,
    tag: u16,
    open: bool,
}

impl Claim<'_> {
    /// Sets the tag (default 0).
    #[inline]
    pub fn set_tag(&mut self, tag: u16) {
        self.tag = tag;
    }

    /// Sends the message. Returns the position behind it.
    #[inline]
    pub fn commit(mut self) -> u64 {
        self.open = false;
        let position = self.publication.ring.commit(self.tag);
        self.publication.wake();
        position
    }

    /// Gives the room back: nobody will see a message.
    #[inline]
    pub fn abort(self) {}
}

impl Deref for Claim<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.publication.ring {
            Ring::Single { producer, .. } => producer.claimed(),
            Ring::Mpsc(Some(ring)) => ring.producer.claimed(),
            Ring::Mpsc(None) => &[],
        }
    }
}

impl DerefMut for Claim<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.publication.ring.payload()
    }
}

impl Drop for Claim<'_> {
    #[inline]
    fn drop(&mut self) {
        // What a forked child has inherited it can neither write nor give up.
        if self.open && !self.publication.endpoint.is_forked() {
            self.publication.ring.abort();
            // On an mpsc channel others' messages may have been waiting behind the claim.
            self.publication.wake();
        }
    }
}

/// Several messages in a row. When it is dropped, sleeping subscriptions are woken.
#[derive(Debug)]
pub struct Batch<'a> {
    publication: &'a mut Publication,
}

impl Batch<'_> {
    /// Sends a message, or says at once why not. Returns the position behind it.
    ///
    /// # Errors
    ///
    /// As for [`Publication::offer`].
    #[inline]
    pub fn offer(&mut self, payload: &[u8]) -> Result<u64, OfferError> {
        self.publication.put(0, payload)
    }

    /// Sends a message with a tag.
    ///
    /// # Errors
    ///
    /// As for [`Publication::offer`].
    #[inline]
    pub fn offer_tagged(&mut self, tag: u16, payload: &[u8]) -> Result<u64, OfferError> {
        self.publication.put(tag, payload)
    }
}

impl Drop for Batch<'_> {
    #[inline]
    fn drop(&mut self) {
        // As for claims.
        if !self.publication.endpoint.is_forked() {
            self.publication.wake();
        }
    }
}
