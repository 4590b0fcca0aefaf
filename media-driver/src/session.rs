//! A connected client: its socket, who it is, and what it has not taken yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringbus::control::message::{Entry, Event};
use ringbus::control::process::Credentials;
use ringbus::control::socket;
use rustix::net::SendFlags;

use crate::registry::Asker;

/// A client that lets this many messages pile up does not read them, and is disconnected: it may not fill the driver's memory, nor its fd table.
const LONGEST_QUEUE: usize = 4096;

/// The same of questions what there is, each of which has a long answer.
const MOST_LISTS: usize = 16;

#[derive(Debug)]
pub(crate) struct Session {
    socket: OwnedFd,
    pub(crate) asker: Asker,
    pub(crate) greeted: bool,
    /// Whether epoll is asked to say when there is room again.
    pub(crate) wants_room: bool,
    queue: VecDeque<(Vec<u8>, Vec<Arc<OwnedFd>>)>,
    /// Answers of which the rest is sent when the queue is empty.
    lists: VecDeque<(u32, std::vec::IntoIter<Entry>)>,
}

/// The client has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreachable;

impl Session {
    pub(crate) fn new(client: u64, socket: OwnedFd, credentials: &Credentials) -> Self {
        let asker =
            Asker { client, process: credentials.process, uid: credentials.uid, groups: credentials.groups.as_slice().into() };
        Self { socket, asker, greeted: false, wants_room: false, queue: VecDeque::new(), lists: VecDeque::new() }
    }

    /// Sends now, or later if the client does not keep up.
    pub(crate) fn send(&mut self, event: &Event, fds: Vec<Arc<OwnedFd>>) -> Result<(), Unreachable> {
        self.queue.push_back((socket::encode(event), fds));
        self.flush()?;
        if self.queue.len() > LONGEST_QUEUE { Err(Unreachable) } else { Ok(()) }
    }

    /// Answers a question what there is, now or as the client reads.
    pub(crate) fn list(&mut self, request: u32, entries: Vec<Entry>) -> Result<(), Unreachable> {
        self.lists.push_back((request, entries.into_iter()));
        self.flush()?;
        if self.lists.len() > MOST_LISTS { Err(Unreachable) } else { Ok(()) }
    }

    /// What comes next of the answers.
    fn next_of_lists(&mut self) -> Option<Event> {
        let (request, entries) = self.lists.front_mut()?;
        let request = *request;
        match entries.next() {
            Some(entry) => Some(Event::Entry { request, entry }),
            None => {
                self.lists.pop_front();
                Some(Event::ListEnd { request })
            }
        }
    }

    /// Sends what is queued, as far as there is room.
    pub(crate) fn flush(&mut self) -> Result<(), Unreachable> {
        loop {
            if self.queue.is_empty() {
                let Some(event) = self.next_of_lists() else { return Ok(()) };
                self.queue.push_back((socket::encode(&event), Vec::new()));
            }
            let Some((bytes, fds)) = self.queue.front() else { return Ok(()) };
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
    }

    pub(crate) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    pub(crate) fn has_queue(&self) -> bool {
        !self.queue.is_empty() || !self.lists.is_empty()
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
