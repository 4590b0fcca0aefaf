//! What can go wrong between a client and the driver. Errors of the data path are in [`client`](crate::client).

use std::io;

use crate::channel::InvalidChannel;
use crate::control::message::{PROTOCOL_VERSION, Refusal};
use crate::memory::MemoryError;

/// Why a client could not connect, publish, subscribe or list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens there.
    #[error(
        "no media driver at {address} ({source}); start one with `ringbusd` or `ringbus driver`, \
         or name its socket with --socket or $RINGBUS_SOCKET"
    )]
    NoDriver {
        /// Where the client looked.
        address: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The permissions of the socket, or of a directory above it, do not let this user in.
    #[error(
        "no permission to connect to the media driver at {address} ({source}); its socket's mode and group say who may (see `ringbusd --mode`)"
    )]
    NoPermission {
        /// Where the client looked.
        address: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The driver is of another version.
    #[error(
        "the media driver at {address} (process {pid}) speaks protocol version {driver}, this program {}; restart the older one with the newer version",
        PROTOCOL_VERSION
    )]
    ProtocolVersion {
        /// Where it is.
        address: String,
        /// Its process id.
        pid: u32,
        /// Its version.
        driver: u32,
    },
    /// Whoever listens there is not a ringbus driver, or has hung up.
    #[error("what listens at {address} does not answer as a media driver does: {what}")]
    NotADriver {
        /// Where it is.
        address: String,
        /// What it did.
        what: String,
    },
    /// The driver cannot take another client.
    #[error(
        "the media driver at {address} (process {pid}) is out of file descriptors; raise its RLIMIT_NOFILE (`ulimit -n`, LimitNOFILE=)"
    )]
    DriverFull {
        /// Where it is.
        address: String,
        /// Its process id.
        pid: u32,
    },
    /// The driver died or was stopped while it was asked. Existing publications and subscriptions go on.
    #[error("the media driver at {address} is away; what is connected goes on, new connections are possible once it is back")]
    DriverAway {
        /// Where it was.
        address: String,
    },
    /// There can be no such channel.
    #[error(transparent)]
    Invalid(#[from] InvalidChannel),
    /// The driver will not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A memory object could not be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// This process was forked from the one that made the client, which goes on using it.
    #[error("the client belongs to the process this one was forked from; connect a client of its own here")]
    Forked,
    /// This process has no file descriptors left.
    #[error("this process is out of file descriptors ({what}); RLIMIT_NOFILE is {limit}, raise it with `ulimit -n`")]
    FileDescriptors {
        /// What could not be had.
        what: &'static str,
        /// The soft limit.
        limit: String,
    },
    /// The system would not give what is needed besides.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EMFILE) => Self::file_descriptors(what),
            _ => Self::System { what, source },
        }
    }

    pub(crate) fn file_descriptors(what: &'static str) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self::FileDescriptors { what, limit: limit.map_or("unlimited".to_owned(), |limit| limit.to_string()) }
    }
}
