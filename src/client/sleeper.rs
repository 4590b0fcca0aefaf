//! The ways to sleep that publications and subscriptions share: on futex words, or on an epoll fd that can also sit in somebody's event loop.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll;

use super::endpoint::Endpoint;
use crate::channel::ChannelSpec;
use crate::error::Error;
use crate::wait::doorbell::{Doorbell, Heard};
use crate::wait::fences::Fences;
use crate::wait::futex::{self, Word};
use crate::wait::sleep::How;

/// A peer's futex word and the value it had before the flag went up.
pub(super) struct Wait<'a> {
    pub(super) word: &'a AtomicU32,
    pub(super) expected: u32,
}

/// Futexes where they can be had and trusted, see [`ChannelSpec::is_of_one_uid`].
pub(super) fn how(spec: &ChannelSpec, links: usize) -> How {
    let fits = links < futex::MAX_WORDS;
    if fits && spec.is_of_one_uid() && futex::available() { How::Futex } else { How::Doorbell }
}

/// How long to sleep at most: for ever, unless the heavy fence has been lost on the way (see [`Fences::lost`]).
fn latest(deadline: Option<Instant>) -> Option<Instant> {
    const WITHOUT_BARRIER: Duration = Duration::from_millis(10);
    if !Fences::lost() {
        return deadline;
    }
    let soon = Instant::now() + WITHOUT_BARRIER;
    Some(deadline.map_or(soon, |deadline| deadline.min(soon)))
}

/// Sleeps until the conductor has news, a peer bumps its word, or the deadline.
pub(super) fn sleep_on(endpoint: &Endpoint, seen: u32, peers: &[Wait<'_>], deadline: Option<Instant>) {
    let own = Word { word: endpoint.attention(), expected: seen, private: true };
    let peers = peers.iter().map(|wait| Word { word: wait.word, expected: wait.expected, private: false });
    let words: Vec<Word<'_>> = std::iter::once(own).chain(peers).collect();
    futex::wait_any(&words, latest(deadline));
}

/// Sleeps until the conductor has news, or the deadline.
pub(super) fn sleep_for_news<'a>(
    endpoint: &Endpoint,
    seen: u32,
    bell: &Bell,
    doorbells: impl Iterator<Item = (u64, &'a Doorbell)> + Clone,
    deadline: Option<Instant>,
) {
    if futex::available() {
        sleep_on(endpoint, seen, &[], deadline);
    } else {
        bell.wait(endpoint, doorbells, deadline);
    }
}

/// The endpoint's fd for event loops: an epoll of the doorbells of all its links and of its own bell.
#[derive(Debug)]
pub(super) struct Bell {
    epoll: OwnedFd,
    /// Somebody has asked for the fd: from then on it is kept readable unless the endpoint is armed.
    used: Cell<bool>,
    /// The own bell was rung by us and not heard yet.
    rung: Cell<bool>,
    /// It is the parent's: this process was forked.
    forsaken: Cell<bool>,
}

/// The own bell among the links' ids, which are never 0.
const OWN: u64 = 0;

impl Bell {
    pub(super) fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        let failed = |errno: rustix::io::Errno| Error::system("make an epoll instance")(errno.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        epoll::add(&epoll, &endpoint.bell, epoll::EventData::new_u64(OWN), epoll::EventFlags::IN).map_err(failed)?;
        Ok(Self { epoll, used: Cell::new(false), rung: Cell::new(false), forsaken: Cell::new(false) })
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.get() && !self.forsaken.get()
    }

    /// From here on it neither rings nor hears.
    pub(super) fn forsake(&self) {
        self.forsaken.set(true);
    }

    /// The fd, readable at first, so that whoever waits on it looks once and is armed then.
    pub(super) fn as_fd<'a>(&'a self, endpoint: &Endpoint) -> BorrowedFd<'a> {
        if !self.used.replace(true) {
            self.ring(endpoint);
        }
        self.epoll.as_fd()
    }

    /// Makes the fd readable, with a syscall only if we have not done so already.
    pub(super) fn ring(&self, endpoint: &Endpoint) {
        if !self.forsaken.get() && !self.rung.replace(true) {
            endpoint.ring();
        }
    }

    pub(super) fn add(&self, doorbell: &Doorbell, link: u64) {
        // Fails only if the kernel is out of memory or watches (fs.epoll.max_user_watches); then this link wakes futex sleepers only.
        let _ = epoll::add(&self.epoll, doorbell, epoll::EventData::new_u64(link), epoll::EventFlags::IN);
    }

    pub(super) fn remove(&self, doorbell: &Doorbell) {
        let _ = epoll::delete(&self.epoll, doorbell);
    }

    /// Hears everything that was rung, so that the fd is no longer readable.
    pub(super) fn hear<'a>(&self, endpoint: &Endpoint, doorbells: impl Iterator<Item = (u64, &'a Doorbell)> + Clone) {
        self.hear_within(endpoint, doorbells, Some(Instant::now()));
    }

    /// Sleeps until something rings, and hears it.
    pub(super) fn wait<'a>(
        &self,
        endpoint: &Endpoint,
        doorbells: impl Iterator<Item = (u64, &'a Doorbell)> + Clone,
        deadline: Option<Instant>,
    ) {
        self.hear_within(endpoint, doorbells, latest(deadline));
    }

    fn hear_within<'a>(
        &self,
        endpoint: &Endpoint,
        doorbells: impl Iterator<Item = (u64, &'a Doorbell)> + Clone,
        deadline: Option<Instant>,
    ) {
        const AT_ONCE: usize = 64;
        let mut events = Vec::with_capacity(AT_ONCE);
        let mut deadline = deadline;
        // Each link once and our own bell. A peer that goes on ringing keeps the fd readable, and nobody in here.
        for _ in 0..=doorbells.clone().count() / AT_ONCE + 1 {
            events.clear();
            let timeout = deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
            });
            if epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()).is_err() {
                return;
            }
            for event in &events {
                match event.data.u64() {
                    OWN => {
                        self.rung.set(false);
                        let _ = rustix::io::read(&endpoint.bell, &mut [0; 8]);
                    }
                    link => {
                        let Some((_, doorbell)) = doorbells.clone().find(|(id, _)| *id == link) else { continue };
                        // A peer that is gone would keep the fd readable for ever.
                        if doorbell.hear() == Heard::Closed {
                            self.remove(doorbell);
                        }
                    }
                }
            }
            if events.len() < AT_ONCE {
                return;
            }
            deadline = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

    use super::super::endpoint::Side;
    use super::*;
    use crate::channel::Properties;

    /// Found by review: as long as enough peers ring as fast as we hear, hearing had no end.
    #[test]
    fn hearing_ends_though_peers_ring_without_end() {
        let spec = ChannelSpec::new("a".parse().unwrap(), 0, &Properties::default()).unwrap();
        let endpoint = Endpoint::new(1, Side::Publication, spec, None, Vec::new()).unwrap();
        let bell = Bell::new(&endpoint).unwrap();
        let pair = || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None).unwrap();
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..200).map(|_| pair()).unzip();
        let doorbells: Vec<(u64, Doorbell)> = (1..).zip(ours.into_iter().map(Doorbell::new)).collect();
        doorbells.iter().for_each(|(link, doorbell)| bell.add(doorbell, *link));
        // More than it may hear, and so as good as no end.
        theirs.iter().for_each(|peer| assert!(send(peer, &[1; 100_000], SendFlags::DONTWAIT).is_ok()));
        bell.hear(&endpoint, doorbells.iter().map(|(link, doorbell)| (*link, doorbell)));
        let (_, first) = &doorbells[0];
        let mut byte = [0; 1];
        assert!(rustix::net::recv(first, &mut byte, rustix::net::RecvFlags::DONTWAIT).is_ok(), "it has heard all of it");
    }
}
