//! The two ends of a link, mapped by the conductor and then owned by the data path; and waking the peer at the other end.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::control::message::Link;
use crate::memory::MemoryError;
use crate::memory::mapping::{Access, Mapping, Residency};
use crate::memory::memfd::{self, Sharing};
use crate::ring::layout::{
    ImageLine, MAX_LINKS, MAX_PRODUCERS, MpscControl, ObjectKind, PartyLine, SingleControl, SleepPage, SubscriptionPage,
};
use crate::ring::region::Region;
use crate::wait::doorbell::Doorbell;
use crate::wait::futex;
use crate::wait::sleep::{self, Peer};
use std::os::fd::OwnedFd;

use crate::channel::ChannelSpec;

/// A mapped single-producer ring.
#[derive(Debug, Clone)]
pub(super) struct SingleRing(Arc<Mapping>);

/// A mapped mpsc ring.
#[derive(Debug, Clone)]
pub(super) struct MpscRing(Arc<Mapping>);

/// A mapped subscription page.
#[derive(Debug, Clone)]
pub(super) struct Page(Arc<Mapping>);

/// A mapped sleep page.
#[derive(Debug)]
pub(super) struct Sleeps(Mapping);

const SINGLE_CONTROL: u64 = size_of::<SingleControl>() as u64;
const MPSC_CONTROL: u64 = size_of::<MpscControl>() as u64;
const PAGE: u64 = size_of::<SubscriptionPage>() as u64;

/// What the channel wants of mappings.
fn residency(spec: &ChannelSpec) -> Residency {
    Residency { prefault: spec.prefault, lock: spec.lock }
}

/// Bytes of the object of a ring, from what the driver says of it: nothing is computed from numbers that cannot be.
fn size(control: u64, spec: &ChannelSpec, page_size: u64) -> Result<u64, MemoryError> {
    const LARGEST_PAGE: u64 = 1 << 34;
    if spec.check().is_err() {
        return Err(MemoryError::Refused { what: "no channel can be as the driver said" });
    }
    if !page_size.is_power_of_two() || !(memfd::page_size()..=LARGEST_PAGE).contains(&page_size) {
        return Err(MemoryError::Refused { what: "no pages can be of the size that the driver said" });
    }
    Ok(control.next_multiple_of(page_size) + spec.capacity)
}

impl SingleRing {
    /// The owner's: not sealed yet.
    pub(super) fn own(fd: &OwnedFd, spec: &ChannelSpec, page_size: u64) -> Result<Self, MemoryError> {
        memfd::check_own(fd, size(SINGLE_CONTROL, spec, page_size)?)?;
        Self::map(fd, spec, page_size, Access::Write)
    }

    /// A peer's.
    pub(super) fn peer(fd: &OwnedFd, spec: &ChannelSpec, page_size: u64) -> Result<Self, MemoryError> {
        memfd::check(fd, Sharing::OwnerWrites, size(SINGLE_CONTROL, spec, page_size)?)?;
        Self::map(fd, spec, page_size, Access::Read)
    }

    fn map(fd: &OwnedFd, spec: &ChannelSpec, page_size: u64, access: Access) -> Result<Self, MemoryError> {
        let kind = ObjectKind::SingleRing;
        let mapping = Mapping::new(fd, kind, SINGLE_CONTROL, spec.capacity, page_size, access, residency(spec))?;
        Ok(Self(Arc::new(mapping)))
    }

    pub(super) fn control(&self) -> NonNull<SingleControl> {
        // SAFETY: the mapping is of such a ring; users keep `self` as long as the pointer.
        unsafe { self.0.control() }
    }

    pub(super) fn region(&self) -> Region {
        // SAFETY: the mapping is of a ring; users keep `self` as long as the region.
        unsafe { self.0.region() }
    }

    pub(super) fn party(&self) -> NonNull<PartyLine> {
        // SAFETY: a field of a mapped struct.
        unsafe { NonNull::new_unchecked(&raw mut (*self.control().as_ptr()).publisher) }
    }
}

impl MpscRing {
    /// For the consumer, before it is sealed, and for producers, after.
    pub(super) fn map(fd: &OwnedFd, spec: &ChannelSpec, page_size: u64, sealed: bool) -> Result<Self, MemoryError> {
        let size = size(MPSC_CONTROL, spec, page_size)?;
        if sealed {
            memfd::check(fd, Sharing::AllWrite, size)?;
        } else {
            memfd::check_own(fd, size)?;
        }
        let kind = ObjectKind::MpscRing;
        let mapping = Mapping::new(fd, kind, MPSC_CONTROL, spec.capacity, page_size, Access::Write, residency(spec))?;
        Ok(Self(Arc::new(mapping)))
    }

    pub(super) fn control(&self) -> NonNull<MpscControl> {
        // SAFETY: the mapping is of such a ring; users keep `self` as long as the pointer.
        unsafe { self.0.control() }
    }

    pub(super) fn region(&self) -> Region {
        // SAFETY: the mapping is of a ring; users keep `self` as long as the region.
        unsafe { self.0.region() }
    }

    pub(super) fn party(&self, slot: u8) -> NonNull<PartyLine> {
        // SAFETY: a field of a mapped struct; every `u8` is a slot.
        unsafe { NonNull::new_unchecked(&raw mut (*self.control().as_ptr()).producers[usize::from(slot)].party) }
    }
}

const _: () = assert!(MAX_PRODUCERS > u8::MAX as usize);

impl Page {
    /// The owner's: not sealed yet.
    pub(super) fn own(fd: &OwnedFd) -> Result<Self, MemoryError> {
        memfd::check_own(fd, PAGE.next_multiple_of(memfd::page_size()))?;
        Self::map(fd, Access::Write)
    }

    /// A peer's.
    pub(super) fn peer(fd: &OwnedFd) -> Result<Self, MemoryError> {
        memfd::check(fd, Sharing::OwnerWrites, PAGE.next_multiple_of(memfd::page_size()))?;
        Self::map(fd, Access::Read)
    }

    fn map(fd: &OwnedFd, access: Access) -> Result<Self, MemoryError> {
        let (kind, page_size) = (ObjectKind::SubscriptionPage, memfd::page_size());
        Ok(Self(Arc::new(Mapping::new(fd, kind, PAGE, 0, page_size, access, Residency::default())?)))
    }

    fn page(&self) -> NonNull<SubscriptionPage> {
        // SAFETY: the mapping is of such a page; users keep `self` as long as the pointer.
        unsafe { self.0.control() }
    }

    pub(super) fn party(&self) -> NonNull<PartyLine> {
        // SAFETY: a field of a mapped struct.
        unsafe { NonNull::new_unchecked(&raw mut (*self.page().as_ptr()).subscriber) }
    }

    pub(super) fn line(&self, line: u32) -> NonNull<ImageLine> {
        // SAFETY: a field of a mapped struct; the index is masked into the array.
        unsafe { NonNull::new_unchecked(&raw mut (*self.page().as_ptr()).images[line as usize % MAX_LINKS]) }
    }
}

impl Sleeps {
    /// For the publication, before it is sealed, and for subscriptions, after.
    pub(super) fn map(fd: &OwnedFd, sealed: bool) -> Result<Self, MemoryError> {
        const SIZE: u64 = size_of::<SleepPage>() as u64;
        let (kind, page_size) = (ObjectKind::SleepPage, memfd::page_size());
        if sealed {
            memfd::check(fd, Sharing::AllWrite, SIZE.next_multiple_of(page_size))?;
        } else {
            memfd::check_own(fd, SIZE.next_multiple_of(page_size))?;
        }
        Ok(Self(Mapping::new(fd, kind, SIZE, 0, page_size, Access::Write, Residency::default())?))
    }

    pub(super) fn count(&self) -> NonNull<AtomicU64> {
        // SAFETY: the mapping is of such a page; users keep `self` as long as the pointer.
        let page: NonNull<SleepPage> = unsafe { self.0.control() };
        // SAFETY: a field of a mapped struct.
        unsafe { NonNull::new_unchecked(&raw mut (*page.as_ptr()).line.sleeps) }
    }
}

/// The peer at the other end: its line, its doorbell, and what we last woke it for.
#[derive(Debug)]
pub(super) struct PeerEnd {
    pub(super) peer: Peer,
    pub(super) doorbell: Doorbell,
}

impl PeerEnd {
    /// `line` stays mapped as long as this: the caller keeps the mapping beside it.
    pub(super) fn new(line: NonNull<PartyLine>, doorbell: OwnedFd) -> Self {
        // SAFETY: as documented.
        Self { peer: unsafe { Peer::new(line) }, doorbell: Doorbell::new(doorbell) }
    }

    /// The futex word that wakes us when the peer bumps it.
    pub(super) fn wake_sequence(&self) -> &std::sync::atomic::AtomicU32 {
        &self.peer.line().wake_sequence
    }
}

/// Steps C to E of the sleep protocol for all of `peers`, after the light fence.
#[cold]
pub(super) fn wake_sleepers<'a>(own: &PartyLine, peers: impl Iterator<Item = &'a mut PeerEnd>) {
    let peers = peers.map(|end| (&mut end.peer, &end.doorbell));
    sleep::wake_sleepers(&own.wake_sequence, peers, Doorbell::ring, |word| futex::wake(word, false));
}

/// A publication's end of a link.
#[derive(Debug)]
pub(super) struct PublisherEnd {
    pub(super) link: Link,
    pub(super) page: Page,
    /// Mpsc: the ring of the subscription.
    pub(super) ring: Option<MpscRing>,
    pub(super) peer: PeerEnd,
}

/// A subscription's end of a link.
#[derive(Debug)]
pub(super) struct SubscriberEnd {
    pub(super) link: Link,
    /// Unless the channel is mpsc: the ring of the publication.
    pub(super) ring: Option<SingleRing>,
    /// Where the publication sees that somebody falls asleep, if not at each one's flag.
    pub(super) sleeps: Option<Sleeps>,
    pub(super) peer: PeerEnd,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Properties;

    /// One that could be cut would be fatal to all who have it mapped.
    #[test]
    fn a_sleep_page_that_is_not_sealed_as_it_must_be_is_refused() {
        let size = size_of::<SleepPage>() as u64;
        let page = |kind, size| memfd::create("test", kind, 7, size, 0, memfd::HugePages::Never).unwrap().fd;
        let unsealed = || rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(Sleeps::map(&page(ObjectKind::SleepPage, size), false).is_ok());
        for fd in [unsealed(), page(ObjectKind::SubscriptionPage, size), page(ObjectKind::SleepPage, 2 * memfd::page_size())] {
            assert!(Sleeps::map(&fd, false).is_err());
        }
        for (sharing, is_right) in [(Sharing::AllWrite, true), (Sharing::OwnerWrites, false)] {
            let fd = page(ObjectKind::SleepPage, size);
            assert!(Sleeps::map(&fd, true).is_err(), "it is not sealed yet");
            memfd::seal(&fd, sharing).unwrap();
            assert_eq!(Sleeps::map(&fd, true).is_ok(), is_right);
        }
    }

    /// Found by the fuzzer: sizes that no driver says made the arithmetic overflow or divide by zero, and a capacity of 0 made a region without an end.
    #[test]
    fn impossible_sizes_are_refused() {
        let page = memfd::page_size();
        let good = ChannelSpec::new("a".parse().unwrap(), 0, &Properties::default()).unwrap();
        for (capacity, page_size) in [
            (0, page),
            (3, page),
            (u64::MAX, page),
            (1 << 63, page),
            (page, 0),
            (page, 3),
            (page, 1),
            (page, 1 << 63),
            (page, u64::MAX),
        ] {
            let spec = ChannelSpec { capacity, ..good.clone() };
            for (kind, control) in [(ObjectKind::SingleRing, SINGLE_CONTROL), (ObjectKind::MpscRing, MPSC_CONTROL)] {
                // As long as it is said to be, where that can be.
                let made = if capacity < page { capacity } else { page };
                let fd = memfd::create("test", kind, 7, control, made, memfd::HugePages::Never).unwrap().fd;
                assert!(SingleRing::own(&fd, &spec, page_size).is_err(), "{capacity} {page_size}");
                assert!(SingleRing::peer(&fd, &spec, page_size).is_err(), "{capacity} {page_size}");
                assert!(MpscRing::map(&fd, &spec, page_size, false).is_err(), "{capacity} {page_size}");
                assert!(MpscRing::map(&fd, &spec, page_size, true).is_err(), "{capacity} {page_size}");
            }
        }
    }
}
