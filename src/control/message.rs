//! The messages between client and driver. One message is one packet; see [`socket`](super::socket) for how they travel.
//!
//! A connection begins with a [`Greeting`] each way, whose form never changes, so that different versions can tell each other
//! what they are. Then the client sends [`Request`]s and the driver [`Event`]s.
//!
//! ```text
//! client                                       driver
//! AddSubscription                     ->
//!                                     <-       SubscriptionAdded + page (+ mpsc ring), not yet sealed
//! Ready (it is mapped)                ->       seals it, looks for publications
//!                                     <-       SubscriberLink + doorbell (+ the publication's page, if it has one, and ring)
//! LinkReady (mapped)                  ->       only now the publication hears: PublisherLink + doorbell, page (+ mpsc ring)
//! ...
//!                                     <-       LinkEnded: the publication closed or died
//! LinkDone (all read)                 ->
//! ```
//!
//! After a new driver has come the client sends `Resume…` for each object, with its fds, `ResumeLink` for each of its links, and `Ready`.

use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::channel::{ChannelName, ChannelSpec, InvalidChannel, Properties};

/// Version of everything in this file but [`Greeting`].
pub const PROTOCOL_VERSION: u32 = 2;

/// Most bytes of a message.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// The first packet each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// Whose protocol: [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// Process id of the sender, as it sees itself; for error messages.
    pub pid: u32,
}

impl Greeting {
    const MAGIC: [u8; 8] = *b"ringbus\n";
    /// Bytes of a greeting.
    pub const LENGTH: usize = 16;
    /// The version that a driver names when it is out of file descriptors and has to turn a client away.
    pub const FULL: u32 = u32::MAX;

    /// This process, this version.
    pub fn own() -> Self {
        Self { version: PROTOCOL_VERSION, pid: std::process::id() }
    }

    /// As it travels.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&Self::MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..].copy_from_slice(&self.pid.to_le_bytes());
        bytes
    }

    /// `None` if that is no greeting.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        (bytes[..8] == Self::MAGIC).then(|| Self { version: word(8), pid: word(12) })
    }
}

/// A publication joined to a subscription. Ids are random, so that two drivers never give the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Id of the link.
    pub id: u64,
    /// Id of the publication.
    pub publication: u64,
    /// Id of the subscription.
    pub subscription: u64,
    /// Slot of the publication's join table, or the producer's slot in an mpsc ring.
    pub slot: u32,
    /// Line of the subscription's page.
    pub line: u32,
    /// Size of the ring's pages.
    pub page_size: u64,
    /// The process at the other end.
    pub peer: Process,
}

/// From client to driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A new publication.
    AddPublication {
        /// Comes back with the answer.
        request: u32,
        /// The channel.
        name: ChannelName,
        /// What it has to be like.
        properties: Properties,
    },
    /// A new subscription.
    AddSubscription {
        /// Comes back with the answer.
        request: u32,
        /// The channel.
        name: ChannelName,
        /// What it has to be like.
        properties: Properties,
    },
    /// A publication made by a former driver; with its ring, if it owns one.
    ResumePublication {
        /// Its id.
        id: u64,
        /// Its channel.
        spec: ChannelSpec,
    },
    /// A subscription made by a former driver; with its page and its ring, if it owns one.
    ResumeSubscription {
        /// Its id.
        id: u64,
        /// Its channel.
        spec: ChannelSpec,
    },
    /// A link of an object that is being resumed.
    ResumeLink {
        /// The object.
        object: u64,
        /// Its link.
        link: Link,
    },
    /// The object is mapped and may be shown to others; or all its links have been told.
    Ready {
        /// The object.
        object: u64,
    },
    /// The subscription has mapped what it needs for the link.
    LinkReady {
        /// The link.
        link: u64,
    },
    /// One end could not map what it needs.
    LinkFailed {
        /// The link.
        link: u64,
        /// Why.
        reason: String,
    },
    /// The subscription has read all there was.
    LinkDone {
        /// The link.
        link: u64,
    },
    /// The object is no longer used.
    Close {
        /// The object.
        object: u64,
    },
    /// What is there?
    List {
        /// Comes back with the answers.
        request: u32,
    },
    /// All objects of this client are no longer used.
    Goodbye,
}

/// From driver to client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// With the page that its subscriptions are to share, if they do, and the ring, unless the channel is mpsc.
    PublicationAdded {
        /// Of the request.
        request: u32,
        /// Id of the publication.
        id: u64,
        /// The channel as it is.
        spec: ChannelSpec,
        /// Size of the ring's pages.
        page_size: u64,
    },
    /// With the page, and the ring if the channel is mpsc.
    SubscriptionAdded {
        /// Of the request.
        request: u32,
        /// Id of the subscription.
        id: u64,
        /// The channel as it is.
        spec: ChannelSpec,
        /// Size of the ring's pages.
        page_size: u64,
    },
    /// It cannot be.
    Refused {
        /// Of the request.
        request: u32,
        /// Why.
        refusal: Refusal,
    },
    /// To a publication: somebody subscribes. With the doorbell, the subscription's page, and the ring if the channel is mpsc.
    PublisherLink {
        /// The link.
        link: Link,
    },
    /// To a subscription: somebody publishes. With the doorbell; the page that its subscriptions share, if they do; and the ring, unless the channel is mpsc.
    SubscriberLink {
        /// The link.
        link: Link,
    },
    /// To either end: the other is gone.
    LinkEnded {
        /// Whose link.
        object: u64,
        /// The link.
        link: u64,
    },
    /// To a subscription: a publication is there, but they could not be joined.
    LinkFailed {
        /// The subscription.
        object: u64,
        /// Why.
        reason: String,
    },
    /// No such object: it was made by a former driver and has to be resumed.
    Unknown {
        /// Its id.
        object: u64,
    },
    /// The object cannot be resumed.
    Lost {
        /// Its id.
        object: u64,
        /// Why.
        refusal: Refusal,
    },
    /// One of the answers to `List`.
    Entry {
        /// Of the request.
        request: u32,
        /// What is there.
        entry: Entry,
    },
    /// There are no more.
    ListEnd {
        /// Of the request.
        request: u32,
    },
}

/// A publication or subscription, for `ringbus ls`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its channel.
    pub spec: ChannelSpec,
    /// Its id.
    pub id: u64,
    /// Whether it publishes; else it subscribes.
    pub publishes: bool,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// How many it is joined to.
    pub links: u32,
}

/// Why the driver does not do what a client wants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// There can be no such channel.
    #[error(transparent)]
    Invalid(#[from] InvalidChannel),
    /// The channel is there, and is not like that.
    #[error(
        "channel {name} has {property} {existing}, not {wanted}; leave {property} open to take it as it is, or use another name"
    )]
    Mismatch {
        /// The channel.
        name: String,
        /// Which property.
        property: String,
        /// What it has.
        existing: String,
        /// What was asked for.
        wanted: String,
    },
    /// The kind of channel has only one of these, and it is there.
    #[error("channel {name} is of kind {kind} and has its only {what} already (process {pid})")]
    Occupied {
        /// The channel.
        name: String,
        /// Its kind.
        kind: String,
        /// "publication" or "subscription".
        what: String,
        /// Who has it.
        pid: u32,
    },
    /// Not for this user.
    #[error(
        "uid {uid} may not {action} on channel {name}; its owner, uid {owner}, has to list that uid or one of its groups in the channel's access"
    )]
    NotPermitted {
        /// The channel.
        name: String,
        /// "publish" or "subscribe".
        action: String,
        /// Who asked.
        uid: u32,
        /// Who has created the channel.
        owner: u32,
    },
    /// The driver could not make the memory object.
    #[error("the driver could not make the memory: {0}")]
    Memory(String),
    /// The driver's own limit.
    #[error(
        "the driver's memory limit of {limit} bytes leaves {left} bytes, not {wanted}; choose a smaller capacity, or raise the limit (`ringbusd --memory-limit`)"
    )]
    MemoryLimit {
        /// The limit.
        limit: u64,
        /// What is left of it.
        left: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// What was handed over is not what it is said to be.
    #[error("the driver refused what it was shown: {0}")]
    Fraud(String),
}
