//! Options that publishers and subscribers share: which driver, which channel, how to wait.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::daemon::parse_bytes;
use crate::{Config, EmbeddedDriver};
use clap::{Args, ValueEnum};
use ringbus::{Address, ChannelBuilder, Client, Idle, Kind, Overflow};

use super::Failure;

/// Which driver.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The driver's socket [default: $XDG_RUNTIME_DIR/ringbus/driver.sock, else /run/ringbus/driver.sock]
    #[arg(long, env = "RINGBUS_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Connection {
    pub(crate) fn address(&self) -> Address {
        self.socket.clone().map_or_else(Address::from_environment, Address::from)
    }

    pub(crate) fn connect(&self) -> Result<Client, ringbus::Error> {
        Client::builder().address(self.address()).connect()
    }
}

/// How to wait for a message or for room.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Wait {
    /// Never give the core away
    BusySpin,
    /// Give the core to others between looks
    Yielding,
    /// Nap, for up to a millisecond
    BackOff,
    /// Sleep at once, until woken
    Parking,
    /// Spin as long as it pays, then sleep until woken
    Adaptive,
}

impl From<Wait> for Idle {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::BusySpin => Self::BusySpin,
            Wait::Yielding => Self::Yielding,
            Wait::BackOff => Self::BackOff { longest: Duration::from_millis(1) },
            Wait::Parking => Self::Parking,
            Wait::Adaptive => Self::Adaptive,
        }
    }
}

/// Which channel, and what it has to be like.
#[derive(Debug, Args)]
pub(crate) struct Channel {
    /// Name of the channel, for example sensors/left
    #[arg(value_name = "CHANNEL")]
    pub(crate) name: String,

    #[command(flatten)]
    connection: Connection,

    /// Start a driver inside this process, at the same socket
    #[arg(long)]
    embedded: bool,

    /// spsc, mpsc or broadcast [default: as the channel is, or broadcast]
    #[arg(long)]
    kind: Option<Kind>,

    /// block or lossy [default: as the channel is, or block]
    #[arg(long)]
    overflow: Option<Overflow>,

    /// Bytes of a ring, a power of two such as 64K or 4M [default: as the channel is, or 1M]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    capacity: Option<u64>,

    /// How to wait
    #[arg(long, value_enum, default_value = "adaptive")]
    wait: Wait,

    /// Stop after so many messages
    #[arg(long, value_name = "MESSAGES")]
    pub(crate) count: Option<u64>,

    /// Give up when nothing happens for so long, for example 500ms or 10s [default: never]
    #[arg(long, value_name = "TIME")]
    timeout: Option<humantime::Duration>,
}

/// A client, and its driver if that is inside.
pub(crate) struct Connected {
    pub(crate) client: Client,
    /// Stops when it is dropped, after the client.
    _driver: Option<EmbeddedDriver>,
}

impl Channel {
    pub(crate) fn connect(&self) -> Result<Connected, Failure> {
        let driver =
            if self.embedded { Some(EmbeddedDriver::launch_with(&Config::new(self.connection.address()))?) } else { None };
        let client = self.connection.connect()?;
        Ok(Connected { client, _driver: driver })
    }

    pub(crate) fn builder<'a>(&self, client: &'a Client) -> ChannelBuilder<'a> {
        let mut builder = client.channel(&self.name).idle(self.wait.into());
        if let Some(kind) = self.kind {
            builder = builder.kind(kind);
        }
        if let Some(overflow) = self.overflow {
            builder = builder.overflow(overflow);
        }
        if let Some(capacity) = self.capacity {
            builder = builder.capacity(capacity);
        }
        builder
    }

    /// When waiting that begins now has to end.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timeout.map(|timeout| Instant::now() + *timeout)
    }
}
