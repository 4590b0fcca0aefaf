//! File descriptors of every kind that may come with a packet.

use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

/// A file descriptor to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub enum Fd {
    /// A memfd of so many pages, with these seals.
    Memfd {
        /// Its size.
        pages: u8,
        /// Bits of `F_SEAL_*`.
        seals: u8,
    },
    /// A device.
    Null,
    /// An eventfd.
    Eventfd,
    /// The reading end of a pipe.
    Pipe,
    /// A socket.
    Socket,
}

impl Fd {
    /// Makes it.
    pub fn make(self) -> OwnedFd {
        match self {
            Self::Memfd { pages, seals } => {
                let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
                let fd = rustix::fs::memfd_create("anything", flags).expect("a memfd");
                rustix::fs::ftruncate(&fd, u64::from(pages) * 4096).expect("its size");
                rustix::fs::fcntl_add_seals(&fd, SealFlags::from_bits_truncate(u32::from(seals) & 0x1F)).expect("its seals");
                fd
            }
            Self::Null => rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("/dev/null"),
            Self::Eventfd => rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
            Self::Pipe => rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe").0,
            Self::Socket => socket_pair().0,
        }
    }
}

/// Two connected sockets, as doorbells are.
pub fn socket_pair() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket pair")
}
