//! The client: connects to the driver, makes publications and subscriptions, and keeps them going when the driver goes and comes.
//!
//! `conductor` is the thread that talks to the driver; `endpoint` what it shares with the thread that publishes or polls.
//! Their data path is `publication` and `subscription`.

mod conductor;
mod endpoint;
mod link;
mod pace;
mod publication;
mod sleeper;
mod subscription;

use std::sync::Arc;

pub use conductor::DriverState;
pub use publication::{Batch, Claim, OfferError, Publication};
pub use subscription::{Action, ImageEvent, ImageInfo, Message, PollError, Ready, RecvError, Subscription};

use crate::channel::{Access, ChannelName, Kind, Overflow, Properties};
use crate::control::message::Entry;
use crate::control::socket::Address;
use crate::error::Error;
use crate::memory::memfd::HugePages;
use crate::wait::fences::Fences;
use crate::wait::idle::Idle;
use conductor::Conductor;

/// A connection to the media driver. Cheap to share between threads; when it and all that was made from it are dropped, everything it had is given back.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = ringbus::Client::connect()?;
/// let mut publication = client.publication("prices")?;
/// publication.wait_connected(None)?;
/// publication.offer(b"42.17")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    conductor: Arc<Conductor>,
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    address: Option<Address>,
    membarrier: bool,
}

impl ClientBuilder {
    /// Where the driver listens, instead of [the default](Address::from_environment).
    pub fn address(mut self, address: Address) -> Self {
        self.address = Some(address);
        self
    }

    /// `false`: do without `membarrier`, as on kernels that have none: every commit passes a full fence. For tests and comparisons.
    pub fn membarrier(mut self, wanted: bool) -> Self {
        self.membarrier = wanted;
        self
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::NoPermission`], [`Error::ProtocolVersion`], [`Error::NotADriver`] or what the system says.
    pub fn connect(self) -> Result<Client, Error> {
        let address = self.address.unwrap_or_else(Address::from_environment);
        let fences = if self.membarrier { Fences::detect() } else { Fences::Symmetric };
        Ok(Client { conductor: Conductor::start(address, fences)? })
    }
}

impl Client {
    /// How to connect, when not in the default way.
    pub fn builder() -> ClientBuilder {
        ClientBuilder { address: None, membarrier: true }
    }

    /// Connects to the driver at [the default address](Address::from_environment).
    ///
    /// # Errors
    ///
    /// See [`ClientBuilder::connect`].
    pub fn connect() -> Result<Self, Error> {
        Self::builder().connect()
    }

    /// A publication on a channel with whatever properties it has, or the defaults if it does not exist yet.
    ///
    /// # Errors
    ///
    /// See [`ChannelBuilder::publication`].
    pub fn publication(&self, channel: &str) -> Result<Publication, Error> {
        self.channel(channel).publication()
    }

    /// A subscription on a channel with whatever properties it has, or the defaults if it does not exist yet.
    ///
    /// # Errors
    ///
    /// See [`ChannelBuilder::subscription`].
    pub fn subscription(&self, channel: &str) -> Result<Subscription, Error> {
        self.channel(channel).subscription()
    }

    /// A channel whose properties matter. Nothing happens before [`publication`](ChannelBuilder::publication) or [`subscription`](ChannelBuilder::subscription).
    pub fn channel(&self, name: &str) -> ChannelBuilder<'_> {
        ChannelBuilder { client: self, name: name.to_owned(), properties: Properties::default(), idle: Idle::default() }
    }

    /// All publications and subscriptions that the driver knows.
    ///
    /// # Errors
    ///
    /// [`Error::DriverAway`].
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        self.conductor.list()
    }

    /// Whether the driver is there at the moment.
    pub fn driver_state(&self) -> DriverState {
        self.conductor.state()
    }

    /// Whether commits of this client need no fence instruction, because `membarrier` can be had.
    pub fn has_asymmetric_fences(&self) -> bool {
        self.conductor.fences() == Fences::AsymmetricCapable
    }
}

/// A channel to open, or to create if it does not exist. Properties that are not set are taken as they are; those that are set must agree with the channel's.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ringbus::{Client, Kind, Overflow};
/// let client = Client::connect()?;
/// let subscription = client.channel("telemetry").kind(Kind::Broadcast).overflow(Overflow::Lossy).capacity(1 << 22).subscription()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct ChannelBuilder<'a> {
    client: &'a Client,
    name: String,
    properties: Properties,
    idle: Idle,
}

impl ChannelBuilder<'_> {
    /// Who meets whom. Default: [`Kind::Broadcast`].
    pub fn kind(mut self, kind: Kind) -> Self {
        self.properties.kind = Some(kind);
        self
    }

    /// What happens when a ring is full. Default: [`Overflow::Block`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.properties.overflow = Some(overflow);
        self
    }

    /// Bytes of data in a ring: a power of two from a page to 4 GiB. Default: 4 MiB: more than the caches of a core, which is fastest in a stream.
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.properties.capacity = Some(bytes);
        self
    }

    /// Who may publish and subscribe besides the creator's uid. Default: nobody.
    pub fn access(mut self, access: Access) -> Self {
        self.properties.access = Some(access);
        self
    }

    /// Which pages hold the data. Default: [`HugePages::Never`].
    pub fn huge_pages(mut self, huge_pages: HugePages) -> Self {
        self.properties.huge_pages = Some(huge_pages);
        self
    }

    /// Touch all pages when attaching, so that no message meets a page fault. Default: no.
    pub fn prefault(mut self, prefault: bool) -> Self {
        self.properties.prefault = Some(prefault);
        self
    }

    /// Lock all pages into memory when attaching. Default: no.
    pub fn lock(mut self, lock: bool) -> Self {
        self.properties.lock = Some(lock);
        self
    }

    /// All properties at once.
    pub fn properties(mut self, properties: Properties) -> Self {
        self.properties = properties;
        self
    }

    /// How calls wait that wait. This is the caller's own affair, not a property of the channel. Default: [`Idle::Adaptive`].
    pub fn idle(mut self, idle: Idle) -> Self {
        self.idle = idle;
        self
    }

    /// Opens or creates the channel for publishing.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`]: there can be no such channel. [`Error::Refused`]: properties disagree, no permission, a second publication on an `spsc`
    /// channel, no memory. [`Error::DriverAway`]; or what the system says.
    pub fn publication(self) -> Result<Publication, Error> {
        let name: ChannelName = self.name.parse()?;
        Publication::open(&self.client.conductor, name, self.properties, self.idle)
    }

    /// Opens or creates the channel for subscribing.
    ///
    /// # Errors
    ///
    /// As for [`publication`](Self::publication); a second subscription is refused on `spsc` and `mpsc` channels.
    pub fn subscription(self) -> Result<Subscription, Error> {
        let name: ChannelName = self.name.parse()?;
        Subscription::open(&self.client.conductor, name, self.properties, self.idle)
    }
}
