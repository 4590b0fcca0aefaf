//! The two ends of a link's doorbell: rung to wake a peer who sleeps in an event loop.
//!
//! It is a socket pair, not an eventfd. The two processes at an eventfd share one counter and one set of file flags, so a hostile peer
//! could clear `O_NONBLOCK`, fill the counter, and so block whoever rings it; or drain what was meant for another. Each end of a socket pair is its own, and
//! `MSG_DONTWAIT` does not depend on flags.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

#[derive(Debug)]
pub(crate) struct Doorbell(OwnedFd);

impl Doorbell {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Rings. A full socket means it was rung and not heard yet; a closed one that nobody listens. Both are fine.
    pub(crate) fn ring(&self) {
        let _ = rustix::net::send(&self.0, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Hears all that was rung. A peer who rings without end keeps his own link readable, no more.
    pub(crate) fn hear(&self) -> Heard {
        const ROUNDS: usize = 4;
        let mut bytes = [0; 64];
        for _ in 0..ROUNDS {
            match rustix::net::recv(&self.0, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Heard::Closed,
                Ok((_, length)) if length == bytes.len() => {}
                Err(errno) if errno != Errno::AGAIN && errno != Errno::INTR => return Heard::Closed,
                _ => return Heard::Everything,
            }
        }
        Heard::Everything
    }
}

/// What became of hearing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is silent now, or nearly.
    Everything,
    /// The peer's end is closed: nobody will ring any more.
    Closed,
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
