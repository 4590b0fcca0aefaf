//! A client by hand: it says to the driver whatever the test wants it to.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use ringbus::Address;
use ringbus::control::message::{Event, Greeting, Request};
use ringbus::control::socket::{self, Packet, new_socket};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags};

use crate::{PATIENCE, readable};

/// A connection on which anything can be said.
#[derive(Debug)]
pub struct Raw(pub OwnedFd);

impl Raw {
    /// Connects and says nothing.
    pub fn silent(address: &Address) -> Self {
        let socket = new_socket(SocketFlags::empty()).expect("a socket");
        rustix::net::connect(&socket, &address.to_socket_address().expect("an address")).expect("it listens");
        Self(socket)
    }

    /// Connects and exchanges greetings, as one should.
    pub fn greeted(address: &Address) -> Self {
        let raw = Self::silent(address);
        raw.send(&Greeting::own().to_bytes(), &[]);
        let answer = raw.receive().expect("an answer");
        assert_eq!(Greeting::from_bytes(&answer.bytes).map(|greeting| greeting.version), Some(Greeting::own().version));
        raw
    }

    /// Sends a packet with up to 253 descriptors. The driver may have hung up already.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let _ = rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    /// Sends a request.
    pub fn ask(&self, request: &Request) {
        self.send(&socket::encode(request), &[]);
    }

    /// The next packet; nothing if the driver has hung up.
    #[track_caller]
    pub fn receive(&self) -> Option<Packet> {
        assert!(readable(&self.0, PATIENCE), "the driver says nothing");
        socket::receive(&self.0, RecvFlags::empty()).ok().flatten()
    }

    /// The next event, and what came with it.
    #[track_caller]
    pub fn event(&self) -> (Event, Vec<OwnedFd>) {
        let packet = self.receive().expect("the driver is there");
        (packet.decode().expect("an event"), packet.fds)
    }

    /// Waits until all that was sent was read: the driver has answered the last question, or has hung up. Says whether it is still there.
    #[track_caller]
    pub fn settle(&self) -> bool {
        self.ask(&Request::List { request: u32::MAX });
        while let Some(packet) = self.receive() {
            if packet.decode() == Some(Event::ListEnd { request: u32::MAX }) {
                return true;
            }
        }
        false
    }

    /// Waits until the driver has hung up.
    #[track_caller]
    pub fn assert_hung_up(&self) {
        while self.receive().is_some() {}
    }
}
