//! What a publication or subscription shares with its client's conductor.
//!
//! The conductor leaves *news* here and rings: it bumps a word that the data path compares with the last value it saw (one
//! load per message, of a line nobody writes meanwhile), and that a sleeper waits on besides its peers' words.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use rustix::event::EventfdFlags;

use super::link::{MpscRing, PublisherEnd, SubscriberEnd};
use crate::channel::ChannelSpec;
use crate::control::message::Link;
use crate::error::Error;
use crate::memory::fork::ForkWord;
use crate::ring::mpsc::TakenSlots;
use crate::wait::futex;

/// Which side an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Publication,
    Subscription,
}

/// Something for the data path to know.
#[derive(Debug)]
pub(super) enum News {
    /// A publication has got a subscriber.
    Subscriber(Box<PublisherEnd>),
    /// A subscription has got a publisher.
    Publisher(Box<SubscriberEnd>),
    /// The other end of this link is gone.
    Ended(u64),
    /// A peer is there, but the link could not be made.
    Failed(String),
    /// The driver does not accept the object any more.
    Lost,
}

/// What [`Endpoint::attention`] is before there was any news.
pub(super) const NO_NEWS: u32 = 1;
/// What it is in a process that has inherited the endpoint and must not use it.
pub(super) const FORKED: u32 = 0;

/// A subscription's own ring.
#[derive(Debug)]
pub(super) struct OwnRing {
    pub(super) mapping: MpscRing,
    /// Which slots have a producer: its consumer has to know that before the producer does.
    pub(super) taken: Arc<TakenSlots>,
}

#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) id: u64,
    pub(super) side: Side,
    pub(super) spec: ChannelSpec,
    /// What the conductor has to know of a subscription's own ring, if the channel is mpsc.
    pub(super) own_ring: Option<OwnRing>,
    /// The objects it owns, to show to the next driver.
    pub(super) objects: Vec<OwnedFd>,
    /// Its links, to tell the next driver.
    pub(super) links: Mutex<Vec<Link>>,
    news: Mutex<VecDeque<News>>,
    attention: ForkWord,
    /// Readable when there is news, for those who sleep in an event loop.
    pub(super) bell: OwnedFd,
}

impl Endpoint {
    pub(super) fn new(
        id: u64,
        side: Side,
        spec: ChannelSpec,
        own_ring: Option<OwnRing>,
        objects: Vec<OwnedFd>,
    ) -> Result<Self, Error> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::system("make an eventfd")(errno.into()))?;
        Ok(Self {
            id,
            side,
            spec,
            own_ring,
            objects,
            links: Mutex::new(Vec::new()),
            news: Mutex::new(VecDeque::new()),
            attention: ForkWord::new().map_err(Error::system("map memory that a forked child does not get"))?,
            bell,
        })
    }

    /// Conductor's side: leaves news and wakes whoever waits.
    pub(super) fn tell(&self, news: News) {
        let mut queue = self.news.lock();
        // A publication that has not looked since its subscriber came need not know that it was there: else subscribers that come and go would pile up
        // at a publication that is idle.
        let unseen =
            |queued: &News| matches!((queued, &news), (News::Subscriber(end), News::Ended(link)) if end.link.id == *link);
        match queue.iter().position(unseen) {
            Some(index) => drop(queue.remove(index)),
            None => queue.push_back(news),
        }
        // Nor do failures, of which anybody can cause any number: the last ones tell enough.
        const MOST_FAILURES: usize = 64;
        let is_failure = |news: &News| matches!(news, News::Failed(_));
        if queue.iter().filter(|news| is_failure(news)).count() > MOST_FAILURES
            && let Some(oldest) = queue.iter().position(is_failure)
        {
            queue.remove(oldest);
        }
        drop(queue);
        // The mutex publishes the news; this only says that there is some.
        let word = self.attention();
        // By 2, so that it never is 0: that would mean something else. Release: pairs with the Acquire load of `value_of`.
        word.fetch_add(2, Ordering::Release);
        futex::wake(word, true);
        self.ring();
    }

    /// Makes [`bell`](Self::bell) readable. It is this process's own; `EAGAIN` means it is as full as can be, and so readable.
    pub(super) fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// The word that changes when there is news. It is [`FORKED`] in a process that was forked from ours: that is news, too.
    #[inline(always)]
    pub(super) fn attention(&self) -> &AtomicU32 {
        self.attention.get()
    }

    /// Whether this process has inherited the endpoint from the one it was forked from.
    pub(super) fn is_forked(&self) -> bool {
        self.attention().load(Ordering::Relaxed) == FORKED
    }

    /// Data path: whether there is news since `seen`.
    #[inline(always)]
    pub(super) fn has_news(&self, seen: u32) -> bool {
        self.attention().load(Ordering::Relaxed) != seen
    }

    /// Data path: the next piece of news.
    pub(super) fn take_news(&self) -> Option<News> {
        self.news.lock().pop_front()
    }

    pub(super) fn add_link(&self, link: Link) {
        self.links.lock().push(link);
    }

    pub(super) fn remove_link(&self, id: u64) {
        self.links.lock().retain(|link| link.id != id);
    }
}
