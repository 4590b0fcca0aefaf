//! A driver by hand, that says what it likes. (A client by hand is `testing::Raw`.)

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use ringbus::Address;
use ringbus::channel::ChannelSpec;
use ringbus::control::message::{Event, Greeting, Request};
use ringbus::control::socket::{self, new_socket};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

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
