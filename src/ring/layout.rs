//! What lies where in shared memory. Each struct is one or more whole cache lines and each line has one writer, named in
//! its documentation (but for an mpsc ring's tail, and the count of a sleep page, which several add to); the offsets are asserted below, so no counter can straddle a line or move unnoticed.
//!
//! Nothing read from here is trusted. Sizes in particular come from the driver's messages; [`Identity`] only serves to
//! refuse a region that is not what it was said to be.

use super::atomic::{AtomicU32, AtomicU64, Ordering};

/// First word of every shared object.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ringbus\0");

/// Version of everything in this file. Regions of another version are refused.
pub const LAYOUT_VERSION: u32 = 3;

/// Most links of one publication (slots of its join table) and of one subscription (lines of its page).
#[cfg(not(loom))]
pub const MAX_LINKS: usize = 4096;
/// Loom keeps track of every atomic, so its regions are tiny.
#[cfg(loom)]
pub const MAX_LINKS: usize = 2;

/// Most producers of one mpsc ring: the slot is a byte of the frame header.
#[cfg(not(loom))]
pub const MAX_PRODUCERS: usize = 256;
/// Loom keeps track of every atomic, so its regions are tiny.
#[cfg(loom)]
pub const MAX_PRODUCERS: usize = 3;

/// Which object a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ObjectKind {
    /// [`SingleControl`] and its data.
    SingleRing = 1,
    /// [`MpscControl`] and its data.
    MpscRing = 2,
    /// [`SubscriptionPage`].
    SubscriptionPage = 3,
    /// [`SleepPage`].
    SleepPage = 4,
}

/// First line of every object. Written by the driver before anyone else has it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Identity {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`LAYOUT_VERSION`].
    pub version: AtomicU32,
    /// An [`ObjectKind`].
    pub kind: AtomicU32,
    /// Bytes of data; 0 for a page.
    pub capacity: AtomicU64,
    /// Id of the publication or subscription that owns the object.
    pub owner: AtomicU64,
}

/// What a party (one publication or one subscription) tells its peers about its sleeping. Written by that party.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct PartyLine {
    /// Even: awake. Odd: asleep or about to be; bit 1 says by futex (0) or on its doorbells (1). Only grows.
    pub sleep_flag: AtomicU64,
    /// The futex word on which peers of this party sleep.
    pub wake_sequence: AtomicU32,
    /// 1: this party can call and is reached by `membarrier`, so peers may use light fences towards it.
    pub asymmetric_fences: AtomicU32,
    /// 1: this party has left in good order.
    pub closed: AtomicU32,
}

impl PartyLine {
    /// Says that nothing follows.
    pub fn close(&self) {
        // Pairs with the Acquire in `has_closed`: all that was committed, or read, comes first.
        self.closed.store(1, Ordering::Release);
    }

    /// Whether the party has left in good order. What it has committed is visible then.
    pub fn has_closed(&self) -> bool {
        // Pairs with the Release in `close`.
        self.closed.load(Ordering::Acquire) == 1
    }

    /// A new party takes the line over, which may have been another's.
    pub fn begin(&self, asymmetric_fences: bool) {
        // Relaxed: peers look only when they are linked, which the driver told them; a system call comes between.
        self.closed.store(0, Ordering::Relaxed);
        self.asymmetric_fences.store(u32::from(asymmetric_fences), Ordering::Relaxed);
    }
}

/// A ring's tail. Single producer: written by it now and then, and no more than a hint. Mpsc: the word all producers meet at.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct TailLine {
    /// Position behind the last frame.
    pub tail: AtomicU64,
}

/// One of the two places an announcement can be.
#[derive(Debug, Default)]
#[repr(C)]
pub struct AnnouncementSlot {
    /// Position of the oldest frame that will not be overwritten.
    pub position: AtomicU64,
    /// How many messages lie before it, since the ring began.
    pub message: AtomicU64,
}

/// How far a lossy publisher will overwrite. Written by it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct AnnouncementLine {
    /// Announcements made; `slots[number & 1]` is the valid one.
    pub number: AtomicU64,
    /// The last announcement and the one before, or the next in the making.
    pub slots: [AnnouncementSlot; 2],
}

/// Where one link starts. Written by the publisher, once a link.
#[derive(Debug, Default)]
#[repr(C, align(32))]
pub struct JoinEntry {
    /// Id of the link this entry is for; the other fields are valid once it shows.
    pub link: AtomicU64,
    /// First position of the link.
    pub position: AtomicU64,
    /// Messages published before it.
    pub message: AtomicU64,
}

/// Control area of a single-producer ring. Written by its publisher.
#[derive(Debug)]
#[repr(C)]
pub struct SingleControl {
    /// What this is.
    pub identity: Identity,
    /// The publisher's sleep flag, and the wake sequence for data.
    pub publisher: PartyLine,
    /// Tail, for lag and pace.
    pub tail: TailLine,
    /// Lossy rings: how far the publisher will overwrite.
    pub announcement: AnnouncementLine,
    /// Where each link starts.
    pub joins: [JoinEntry; MAX_LINKS],
}

/// A producer's claim record: what the consumer needs to know if it dies. Written by that producer.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct ClaimLine {
    /// [`NO_CLAIM`](super::mpsc::NO_CLAIM); or the position to be claimed; or, with bit 0, the position claimed.
    pub start: AtomicU64,
    /// Length in bytes of the frame.
    pub length: AtomicU64,
}

/// A producer of an mpsc ring.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ProducerSlot {
    /// Its claim record.
    pub claim: ClaimLine,
    /// Its sleep flag, and its wake sequence for data.
    pub party: PartyLine,
}

/// How far the consumer of an mpsc ring has consumed and zeroed. Written by it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct ConsumerLine {
    /// Everything before this position is free.
    pub position: AtomicU64,
}

/// Control area of an mpsc ring.
#[derive(Debug)]
#[repr(C)]
pub struct MpscControl {
    /// What this is.
    pub identity: Identity,
    /// Where the next claim starts. Written by all producers.
    pub tail: TailLine,
    /// The consumer's position.
    pub consumer: ConsumerLine,
    /// The producers, by slot.
    pub producers: [ProducerSlot; MAX_PRODUCERS],
}

/// A subscriber's position in one image. Written by the subscriber.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct ImageLine {
    /// Id of the link this line is for; the position is valid once it shows.
    pub link: AtomicU64,
    /// Everything before this position may be overwritten.
    pub position: AtomicU64,
}

/// A subscription's page. Written by the subscriber.
#[derive(Debug)]
#[repr(C)]
pub struct SubscriptionPage {
    /// What this is.
    pub identity: Identity,
    /// The subscriber's sleep flag, and the wake sequence for space.
    pub subscriber: PartyLine,
    /// A line per image.
    pub images: [ImageLine; MAX_LINKS],
}

/// How often any subscriber of a publication has gone to sleep. Written by all of them.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct SleepsLine {
    /// Only grows.
    pub sleeps: AtomicU64,
}

/// What the subscribers of a `broadcast` publication share, where all are of one uid. So the publication looks at one word after each message, whatever their number.
#[derive(Debug)]
#[cfg_attr(loom, derive(Default))]
#[repr(C)]
pub struct SleepPage {
    /// What this is.
    pub identity: Identity,
    /// How often they have gone to sleep.
    pub line: SleepsLine,
}

#[cfg(loom)]
mod loom_defaults {
    use super::*;

    // What a fresh memfd is: all zero. Loom's atomics have no all-zero bit pattern, so they are built.
    impl Default for SingleControl {
        fn default() -> Self {
            Self {
                identity: Identity::default(),
                publisher: PartyLine::default(),
                tail: TailLine::default(),
                announcement: AnnouncementLine::default(),
                joins: std::array::from_fn(|_| JoinEntry::default()),
            }
        }
    }

    impl Default for MpscControl {
        fn default() -> Self {
            Self {
                identity: Identity::default(),
                tail: TailLine::default(),
                consumer: ConsumerLine::default(),
                producers: std::array::from_fn(|_| ProducerSlot::default()),
            }
        }
    }

    impl Default for SubscriptionPage {
        fn default() -> Self {
            Self {
                identity: Identity::default(),
                subscriber: PartyLine::default(),
                images: std::array::from_fn(|_| ImageLine::default()),
            }
        }
    }
}

#[cfg(not(loom))]
mod assertions {
    use super::*;
    use memoffset::offset_of;

    const LINE: usize = 64;

    /// The type is that long, aligned to a line unless said otherwise, and its fields lie there: so each ends where the next begins.
    macro_rules! assert_layout {
        ($type:ty, $size:expr, align $align:expr; $($field:ident at $offset:expr),*) => {
            const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() == $align);
            $(const _: () = assert!(offset_of!($type, $field) == $offset);)*
        };
    }

    assert_layout!(Identity, LINE, align LINE; magic at 0, version at 8, kind at 12, capacity at 16, owner at 24);
    assert_layout!(PartyLine, LINE, align LINE; sleep_flag at 0, wake_sequence at 8, asymmetric_fences at 12, closed at 16);
    assert_layout!(TailLine, LINE, align LINE; tail at 0);
    assert_layout!(AnnouncementSlot, 16, align 8; position at 0, message at 8);
    assert_layout!(AnnouncementLine, LINE, align LINE; number at 0, slots at 8);
    assert_layout!(JoinEntry, 32, align 32; link at 0, position at 8, message at 16);
    assert_layout!(ClaimLine, LINE, align LINE; start at 0, length at 8);
    assert_layout!(ProducerSlot, 2 * LINE, align LINE; claim at 0, party at LINE);
    assert_layout!(ConsumerLine, LINE, align LINE; position at 0);
    assert_layout!(ImageLine, LINE, align LINE; link at 0, position at 8);
    assert_layout!(SingleControl, 4 * LINE + MAX_LINKS * 32, align LINE;
        identity at 0, publisher at LINE, tail at 2 * LINE, announcement at 3 * LINE, joins at 4 * LINE);
    assert_layout!(MpscControl, (3 + 2 * MAX_PRODUCERS) * LINE, align LINE;
        identity at 0, tail at LINE, consumer at 2 * LINE, producers at 3 * LINE);
    assert_layout!(SleepsLine, LINE, align LINE; sleeps at 0);
    assert_layout!(SleepPage, 2 * LINE, align LINE; identity at 0, line at LINE);
    assert_layout!(SubscriptionPage, (2 + MAX_LINKS) * LINE, align LINE; identity at 0, subscriber at LINE, images at 2 * LINE);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use memoffset::span_of;

    /// Every line has one writer; these are the fields that different parties write, and no two share a line.
    #[test]
    fn no_two_writers_share_a_line() {
        let single = [
            span_of!(SingleControl, identity),
            span_of!(SingleControl, publisher),
            span_of!(SingleControl, tail),
            span_of!(SingleControl, announcement),
        ];
        let mpsc = [
            span_of!(MpscControl, identity),
            span_of!(MpscControl, tail),
            span_of!(MpscControl, consumer),
            span_of!(MpscControl, producers),
        ];
        let page =
            [span_of!(SubscriptionPage, identity), span_of!(SubscriptionPage, subscriber), span_of!(SubscriptionPage, images)];
        let sleep_page = [span_of!(SleepPage, identity), span_of!(SleepPage, line)];
        for spans in [&single[..], &mpsc[..], &page[..], &sleep_page[..]] {
            for span in spans {
                assert!(span.start.is_multiple_of(64) && span.end.is_multiple_of(64), "{span:?}");
            }
            for pair in spans.windows(2) {
                assert!(pair[0].end <= pair[1].start, "{pair:?}");
            }
        }
    }
}
