//! A connected client: its socket, who it is, and what it has not taken yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringbus::control::message::Event;
use ringbus::control::process::Credentials;
use ringbus::control::socket;
use rustix::net::SendFlags;

use crate::registry::Asker;

/// A client that lets this many messages pile up does not read them, and is disconnected: it may not fill the driver's memory, nor its fd table.
const LONGEST_QUEUE: usize = 4096;

#[derive(Debug)]
pub(crate) struct Session {
    socket: OwnedFd,
    pub(crate) asker: Asker,
    pub(crate) greeted: bool,
    /// Whether epoll is asked to say when there is room again.
    pub(crate) wants_room: bool,
    queue: VecDeque<(Vec<u8>, Vec<Arc<OwnedFd>>)>,
}

/// The client has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreachable;

impl Session {
    pub(crate) fn new(client: u64, socket: OwnedFd, credentials: &Credentials) -> Self {
        let asker =
            Asker { client, process: credentials.process, uid: credentials.uid, groups: credentials.groups.as_slice().into() };
        Self { socket, asker, greeted: false, wants_room: false, queue: VecDeque::new() }
    }

    /// Sends now, or later if the client does not keep up.
    pub(crate) fn send(&mut self, event: &Event, fds: Vec<Arc<OwnedFd>>) -> Result<(), Unreachable> {
        self.queue.push_back((socket::encode(event), fds));
        self.flush()?;
        if self.queue.len() > LONGEST_QUEUE { Err(Unreachable) } else { Ok(()) }
    }

    /// Sends what is queued, as far as there is room.
    pub(crate) fn flush(&mut self) -> Result<(), Unreachable> {
        while let Some((bytes, fds)) = self.queue.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
            match socket::send(&self.socket, bytes, &fds, SendFlags::DONTWAIT) {
                Ok(()) => drop(self.queue.pop_front()),
                // Too many fds in flight counts as full, too: they are, until somebody reads.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    return Ok(());
                }
                Err(_) => return Err(Unreachable),
            }
        }
        Ok(())
    }

    pub(crate) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    pub(crate) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
