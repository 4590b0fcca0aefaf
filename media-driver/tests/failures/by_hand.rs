//! The two ends of the control socket by hand: a client, and a driver, that say what they like.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use ringbus::Address;
use ringbus::channel::ChannelSpec;
use ringbus::control::message::{Event, Greeting, Request};
use ringbus::control::socket::{self, new_socket};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use testing::{PATIENCE, readable};

/// A connected client.
pub(crate) struct Raw(pub(crate) OwnedFd);

impl Raw {
    /// Has exchanged greetings.
    pub(crate) fn greeted(address: &Address) -> Self {
        let raw = Self::silent(address);
        raw.send(&Greeting::own().to_bytes(), &[]);
        assert_eq!(raw.receive(), Greeting::own().version);
        raw
    }

    /// Has said nothing.
    pub(crate) fn silent(address: &Address) -> Self {
        let socket = new_socket(SocketFlags::empty()).expect("a socket");
        rustix::net::connect(&socket, &address.to_socket_address().expect("an address")).expect("it listens");
        Self(socket)
    }

    /// The greeting's version.
    pub(crate) fn receive(&self) -> u32 {
        assert!(readable(&self.0, PATIENCE), "the driver says nothing");
        let packet = socket::receive(&self.0, RecvFlags::empty()).expect("no error").expect("an answer");
        Greeting::from_bytes(&packet.bytes).expect("a greeting").version
    }

    pub(crate) fn send(&self, bytes: &[u8], fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        // The driver may have hung up on us already.
        let _ = socket::send(&self.0, bytes, &fds, SendFlags::empty());
    }

    pub(crate) fn ask(&self, request: &Request, fds: &[&OwnedFd]) {
        self.send(&socket::encode(request), fds);
    }

    /// The next thing the driver says; nothing if it has hung up.
    pub(crate) fn hear(&self) -> Option<(Event, Vec<OwnedFd>)> {
        assert!(readable(&self.0, PATIENCE), "the driver says nothing");
        let packet = socket::receive(&self.0, RecvFlags::empty()).ok()??;
        Some((packet.decode().expect("an event"), packet.fds))
    }
}

/// A driver that answers its only client's requests for publications in its own way.
pub(crate) fn fake_driver(
    mut answer: impl FnMut(u32, ChannelSpec) -> (Event, Vec<OwnedFd>) + Send + 'static,
) -> (Address, JoinHandle<()>) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let address = Address::Abstract(format!("ringbus-fake-{}-{number}", std::process::id()));
    let listener = new_socket(SocketFlags::empty()).expect("a socket");
    rustix::net::bind(&listener, &address.to_socket_address().expect("an address")).expect("it is free");
    rustix::net::listen(&listener, 1).expect("it listens");
    let thread = std::thread::spawn(move || {
        let socket = rustix::net::accept(&listener).expect("a client");
        let receive = || socket::receive(&socket, RecvFlags::empty()).ok().flatten();
        let send = |bytes: &[u8], fds: &[OwnedFd]| {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            socket::send(&socket, bytes, &fds, SendFlags::empty()).expect("it listens");
        };
        receive().expect("a greeting");
        send(&Greeting::own().to_bytes(), &[]);
        while let Some(packet) = receive() {
            if let Some(Request::AddPublication { request, name, properties }) = packet.decode() {
                let (event, fds) = answer(request, ChannelSpec::new(name, 0, &properties).expect("a channel"));
                send(&socket::encode(&event), &fds);
            }
        }
    });
    (address, thread)
}
