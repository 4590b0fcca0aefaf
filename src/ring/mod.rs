//! The lock-free rings, over plain memory and without a single syscall: this is all of the data path except sleeping
//! ([`wait`](crate::wait)), and what the loom models check.
//!
//! - [`single`]: one producer, one or many readers (`spsc` and `broadcast` channels), blocking or lossy.
//! - [`mpsc`]: many producers, one consumer, one total order; survives the death of a producer in mid-claim.
//! - [`frame`] is what is in a ring, [`layout`] what lies around it, [`region`] the memory itself.
//!
//! Most people want [`Client`](crate::Client) instead: constructing a ring by hand is `unsafe`, because only the one who maps the
//! memory can promise that it is what the ring thinks it is.

pub mod atomic;
pub mod frame;
pub mod layout;
pub mod mpsc;
pub mod region;
pub mod single;

/// Why there is no claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimError {
    /// No room: the slowest subscriber has not got that far.
    BackPressured,
    /// Nobody subscribes.
    NotConnected,
    /// Longer than the ring's largest payload.
    TooLong {
        /// The largest payload in bytes.
        max: u64,
    },
    /// A peer has spoilt the ring.
    Corrupt,
}

/// Why there is no message, besides that there is none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// The reader was lapped. It goes on with the oldest whole message.
    Lost {
        /// Exactly how many messages it missed.
        messages: u64,
    },
    /// What the producer wrote cannot be. The reader must not be used any more.
    Corrupt {
        /// Where.
        position: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// A message in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Position of its header.
    pub position: u64,
    /// Payload bytes.
    pub length: u32,
    /// The user's tag.
    pub tag: u16,
    /// The producer's slot (mpsc; 0 elsewhere).
    pub slot: u8,
    /// Position of the next frame.
    pub next: u64,
}

/// Readers publish their position when they have moved this fraction of the capacity (or found nothing more): per message it would cost a cache line
/// transfer each, and only once a ring would stall the publisher.
const POSITION_STEPS: u64 = 8;
