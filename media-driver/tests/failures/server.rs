//! A server on a local socket: who may be there, who is there already, who asks, and who does not listen to the answer.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use ringbus::channel::Properties;
use ringbus::control::message::{Event, Greeting, Request};
use ringbus::control::socket;
use ringbus::{Kind, Overflow};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    UCred,
};
use rustix::process::{Gid, Pid, Uid};
use testing::{DriverProcess, PATIENCE, Party, Raw, Role, assert_works, pair, skip_unless_root, thread_id, until};

use crate::{SMALLEST, STALL, assert_hangs, nowhere, observed};

// ---- Forged identity ----

/// Sends a packet with these credentials, which the kernel lets root do.
fn send_as(socket: &OwnedFd, bytes: &[u8], credentials: UCred) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmCredentials(credentials)));
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("root may");
}

/// Who has sent the packet, says the packet.
fn naive_sender(socket: &OwnedFd) -> UCred {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut [0; 64])], &mut control, RecvFlags::empty()).expect("a packet");
    let credentials = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials),
        _ => None,
    });
    credentials.expect("the kernel adds them")
}

/// A peer forges its identity: root may put any pid and uid into `SCM_CREDENTIALS`.
#[test]
fn a_forged_identity_is_believed() {
    if skip_unless_root() {
        return;
    }
    let forged = UCred { pid: Pid::INIT, uid: Uid::from_raw(65534), gid: Gid::from_raw(65534) };
    let family = rustix::net::AddressFamily::UNIX;
    let (server, client) =
        rustix::net::socketpair(family, rustix::net::SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
    rustix::net::sockopt::set_socket_passcred(&server, true).expect("an option");
    send_as(&client, b"let me in", forged);
    let believed = naive_sender(&server);
    assert_eq!((believed.pid, believed.uid), (forged.pid, forged.uid));

    let driver = DriverProcess::launch();
    let observer = driver.connect();
    let raw = Raw::silent(&driver.address);
    send_as(&raw.0, &Greeting::own().to_bytes(), forged);
    let greeting = raw.receive().and_then(|packet| Greeting::from_bytes(&packet.bytes));
    assert_eq!(greeting.map(|greeting| greeting.version), Some(Greeting::own().version));
    let request =
        Request::AddPublication { request: 1, name: "forged".parse().expect("a name"), properties: Properties::default() };
    send_as(&raw.0, &socket::encode(&request), forged);
    let (event, _fds) = raw.event();
    let Event::PublicationAdded { spec, .. } = event else { panic!("{event:?}") };
    let entries = observer.list().expect("it answers");
    let own = rustix::process::geteuid().as_raw();
    assert_eq!((entries.len(), entries[0].pid, entries[0].uid, spec.owner), (1, std::process::id(), own, own));
    observed(
        "believes SCM_CREDENTIALS: the client is pid 1, uid 65534",
        "greeting and request with the same credentials: list() shows the true pid and uid, and the channel belongs to that uid",
    );
}

// ---- Who is there already ----

/// Listens, as examples do. Arguments: path, whether to remove what is there before. Says whether it could, and answers its clients with its number (the third argument).
pub(crate) fn naive_listener(mut role: Role) {
    let (path, removes, number): (String, bool, u32) = (role.argument(0), role.argument(1), role.argument(2));
    if removes {
        let _ = fs::remove_file(&path);
    }
    match UnixListener::bind(&path) {
        Err(error) => role.say(error.kind()),
        Ok(listener) => {
            role.say("listens");
            for client in listener.incoming() {
                write!(client.expect("a client"), "{number}").expect("it listens");
            }
        }
    }
    role.hold();
}

fn who_answers(path: &Path) -> String {
    let mut answer = String::new();
    UnixStream::connect(path).and_then(|mut socket| socket.read_to_string(&mut answer)).expect("an answer");
    answer
}

/// The socket file of a dead server is in the way; or a second server takes the place of a living one.
#[test]
fn a_stale_socket_or_two_servers() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let start = |removes: bool, number: u32| Party::start("naive listener", &nowhere(), &[&path.display(), &removes, &number]);
    let mut first = start(false, 1);
    first.expect("listens");
    first.kill();
    start(false, 2).expect(&io::ErrorKind::AddrInUse.to_string());
    let third = start(true, 3);
    third.expect("listens");
    let fourth = start(true, 4);
    fourth.expect("listens");
    assert_eq!(who_answers(&path), "4");
    assert!(third.heard_within(STALL).is_none() && fourth.heard_within(STALL).is_none(), "both believe to be the server");

    let mut driver = DriverProcess::launch();
    driver.kill();
    assert!(driver.directory().join("driver.sock").exists(), "it leaves its socket behind");
    driver.start_again();
    let client = driver.connect();
    let second = Party::start("driver", &driver.address, &[&0, &0]);
    let refusal = second.hear();
    let pid = driver.party().pid();
    assert!(refusal.contains("already running") && refusal.contains(&format!("(process {pid})")), "{refusal}");
    second.finish();
    let (mut publication, mut subscription) = pair(&client, "there", Kind::Broadcast, Overflow::Block, SMALLEST);
    assert_works(&mut publication, &mut subscription);
    drop(driver.connect());
    observed(
        "after kill -9 bind() says EADDRINUSE; with unlink() before it, two servers run, and one of them is never reached",
        "after kill -9 the next driver starts; beside a living one: \"a media driver is already running at PATH (process PID)\", with its pid",
    );
}

// ---- Who does not listen ----

const ANSWER: usize = 1000;

/// Serves all its clients on one thread: reads what they ask, a byte, and writes the answer. Argument: path.
pub(crate) fn naive_server(role: Role) {
    let path: String = role.argument(0);
    let listener = UnixListener::bind(path).expect("the path is free");
    role.say(thread_id());
    let mut clients = Vec::new();
    // Two clients are enough to see it.
    while clients.len() < 2 {
        clients.push(listener.accept().expect("a client").0);
    }
    loop {
        let mut ready: Vec<_> =
            clients.iter().map(|client| rustix::event::PollFd::new(client, rustix::event::PollFlags::IN)).collect();
        rustix::event::poll(&mut ready, None).expect("poll");
        let ready: Vec<bool> = ready.iter().map(|client| !client.revents().is_empty()).collect();
        for (client, _) in clients.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            client.read_exact(&mut [0]).expect("a question");
            client.write_all(&[b'a'; ANSWER]).expect("it listens");
        }
    }
}

/// A client asks and asks, and never reads the answers.
#[test]
fn a_silent_client_stalls_the_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let mut naive = Party::start("naive server", &nowhere(), &[&path.display()]);
    let thread = naive.hear();
    let mut silent = UnixStream::connect(&path).expect("it listens");
    let mut other = UnixStream::connect(&path).expect("it listens");
    let mut ask = |patience| {
        other.write_all(b"?").expect("room");
        other.set_read_timeout(Some(patience)).expect("a timeout");
        other.read_exact(&mut [0; ANSWER])
    };
    ask(PATIENCE).expect("it is served");
    silent.write_all(&[b'?'; 2000]).expect("room");
    assert_hangs(&naive, &thread);
    assert!(ask(STALL).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock), "it is not served any more");
    naive.kill();

    let driver = DriverProcess::launch();
    let client = driver.connect();
    let (mut publication, mut subscription) = pair(&client, "neighbours", Kind::Broadcast, Overflow::Block, SMALLEST);
    let before = driver.party().fds().len();
    let raw = Raw::greeted(&driver.address);
    let question = socket::encode(&Request::List { request: 1 });
    let mut refused = None;
    until("the silent client is let go", || {
        loop {
            match socket::send(&raw.0, &question, &[], SendFlags::DONTWAIT) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    refused = Some(error.kind());
                    break;
                }
            }
        }
        // All that time others are served.
        assert_eq!(client.list().expect("it answers").len(), 2);
        refused.is_some()
    });
    until("nothing of it is left", || driver.party().fds().len() == before);
    assert_works(&mut publication, &mut subscription);
    observed(
        "sleeps in write() to the client that does not read; the other one is not answered any more",
        "the other client is answered all the time; the silent one is disconnected when its queue is full",
    );
}
