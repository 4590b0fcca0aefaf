//! File descriptors that come over a socket: who owns them when the message is no good, and what there is when there is no room for them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use ringbus::channel::{ChannelSpec, Properties};
use ringbus::control::message::{Event, Refusal, Request};
use ringbus::control::socket::{self, new_socket};
use ringbus::memory::memfd::{self, HugePages};
use ringbus::ring::layout::{ObjectKind, SingleControl};
use ringbus::{Address, Error, Kind, Overflow};
use rustix::net::SocketFlags;
use testing::{DriverProcess, Party, Raw, Role, assert_works, fds_of, limit, pair, until};

use crate::by_hand::fake_driver;
use crate::{SMALLEST, observed};

const MOST: u64 = 64;

/// A message and the descriptor that came with it, as in the example of the manual page.
fn naive_receive(socket: &OwnedFd, bytes: &mut [u8]) -> (isize, Option<RawFd>) {
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: zero is a valid `msghdr`; its pointers are to live memory of the sizes given; the kernel has written what is read.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let length = libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
        let header = libc::CMSG_FIRSTHDR(&message);
        (length, (!header.is_null()).then(|| libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
    }
}

/// Listens and says so, then takes one client.
fn naive_accept(role: &Role) -> OwnedFd {
    let listener = new_socket(SocketFlags::empty()).expect("a socket");
    rustix::net::bind(&listener, &role.address.to_socket_address().expect("an address")).expect("it is free");
    rustix::net::listen(&listener, 1).expect("it listens");
    role.say("listens");
    rustix::net::accept(&listener).expect("a client")
}

fn naive_address(name: &str) -> Address {
    Address::Abstract(format!("naive-{name}-{}", std::process::id()))
}

/// Serves requests that bring a descriptor, and returns early from those that are no good. Says when it cannot open its log file.
pub(crate) fn naive_receiver(mut role: Role) {
    limit(libc::RLIMIT_NOFILE, MOST);
    let socket = naive_accept(&role);
    let serve = || -> std::io::Result<()> {
        let mut bytes = [0; 16];
        let (_length, _memory) = naive_receive(&socket, &mut bytes);
        let _log = File::open("/dev/null")?;
        if !bytes.starts_with(b"good") {
            return Ok(());
        }
        unreachable!("here it would use and close it");
    };
    let served = (0..).map(|_| serve()).take_while(Result::is_ok).count();
    role.say(served);
    role.say(serve().expect_err("it goes on like that").raw_os_error() == Some(libc::EMFILE));
    role.hold();
}

/// Takes the memory it is sent, and has no descriptor left for it.
pub(crate) fn naive_receiver_without_descriptors(mut role: Role) {
    limit(libc::RLIMIT_NOFILE, MOST);
    let socket = naive_accept(&role);
    let _files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let mut bytes = [0; 16];
    let (length, memory) = naive_receive(&socket, &mut bytes);
    role.say(length);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let mapped = unsafe {
        let memory = memory.unwrap_or(-1);
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, memory, 0)
    };
    assert_eq!(mapped, libc::MAP_FAILED);
    role.say(std::io::Error::last_os_error().raw_os_error() == Some(libc::EBADF));
    role.hold();
}

/// Sends a naive server requests that all bring a descriptor.
fn connect_to_naive(address: &Address) -> impl FnMut(&[u8]) {
    let socket = Raw::silent(address);
    let file = OwnedFd::from(File::open("/dev/null").expect("it is there"));
    move |bytes| socket.send(bytes, &[file.as_fd()])
}

const FAILING: usize = 1000;

/// A memory object for a publication's ring, as the driver makes it; of that kind and capacity.
pub(crate) fn ring_object(kind: ObjectKind, capacity: u64) -> OwnedFd {
    let control = size_of::<SingleControl>() as u64;
    memfd::create("ringbus-fake", kind, 1, control, capacity, HugePages::Never).expect("a memfd").fd
}

/// As the driver would answer, with these objects.
pub(crate) fn added(request: u32, spec: ChannelSpec, fds: Vec<OwnedFd>) -> (Event, Vec<OwnedFd>) {
    (Event::PublicationAdded { request, id: 1, spec, page_size: memfd::page_size() }, fds)
}

/// Asks a driver that gives it everything but what it asked for.
pub(crate) fn client_of_a_fraud(mut role: Role) {
    let client = role.client();
    let before = fds_of(std::process::id()).len();
    for _ in 0..FAILING {
        client.channel("wanted").kind(Kind::Spsc).capacity(SMALLEST).publication().expect_err("it is no ring");
    }
    until("all are closed", || fds_of(std::process::id()).len() == before);
    role.say("as before");
    role.hold();
}

/// A receiver that parses first, and forgets the descriptors when it returns early.
#[test]
fn descriptors_of_failed_requests_leak() {
    let address = naive_address("receiver");
    let naive = Party::start("naive receiver", &address, &[]);
    naive.expect("listens");
    let mut request = connect_to_naive(&address);
    for _ in 0..=MOST {
        request(b"bad");
    }
    let served: u64 = naive.hear_number();
    assert!(served < MOST, "{served}");
    naive.expect("true");

    let driver = DriverProcess::launch();
    let client = driver.connect();
    let (mut publication, mut subscription) = pair(&client, "neighbours", Kind::Broadcast, Overflow::Block, SMALLEST);
    let before = driver.party().fds().len();
    let raw = Raw::greeted(&driver.address);
    let spec = ChannelSpec::new("wanted".parse().expect("a name"), 0, &Properties::default()).expect("a channel");
    let forged = ring_object(ObjectKind::SingleRing, SMALLEST);
    for id in 0..FAILING as u64 {
        raw.send(&socket::encode(&Request::ResumePublication { id, spec: spec.clone() }), &[forged.as_fd(), forged.as_fd()]);
        let (event, _) = raw.event();
        assert!(matches!(event, Event::Lost { refusal: Refusal::Fraud(_), .. }), "{event:?}");
    }
    // Descriptors where none belong, in every state of a connection.
    for _ in 0..50 {
        for raw in [Raw::silent(&driver.address), Raw::greeted(&driver.address)] {
            raw.send(&socket::encode(&Request::List { request: 1 }), &[forged.as_fd(); 3]);
            raw.assert_hung_up();
        }
    }
    drop(raw);
    until("the driver is as before", || driver.party().fds().len() == before);
    assert_works(&mut publication, &mut subscription);

    let mut number = 0;
    let (address, thread) = fake_driver(move |request, spec| {
        number += 1;
        let good = || ring_object(ObjectKind::SingleRing, SMALLEST);
        let null = || OwnedFd::from(File::open("/dev/null").expect("it is there"));
        match number % 6 {
            0 => (Event::Refused { request, refusal: Refusal::Memory("none".to_owned()) }, vec![good(), good()]),
            1 => added(request, spec, vec![]),
            2 => added(request, spec, vec![null(), null(), good()]),
            3 => added(request, spec, vec![ring_object(ObjectKind::SingleRing, 2 * SMALLEST)]),
            4 => added(request, spec, vec![ring_object(ObjectKind::MpscRing, SMALLEST), good()]),
            _ => (Event::SubscriptionAdded { request, id: 1, spec, page_size: memfd::page_size() }, vec![good(), good()]),
        }
    });
    let party = Party::start("client of a fraud", &address, &[]);
    party.expect("as before");
    party.finish();
    thread.join().expect("no panic");
    observed(
        format!("EMFILE when fewer than {MOST} bad requests have each brought a descriptor (limit {MOST})"),
        format!(
            "{FAILING} refused requests with two descriptors each, 100 with three that do not belong there, and {FAILING} fraudulent answers: /proc/PID/fd of driver and client as before"
        ),
    );
}

/// Asks for a publication when there is no descriptor left for its memory. Says how that went, and whether the rest is unharmed.
pub(crate) fn client_without_descriptors(mut role: Role) {
    limit(libc::RLIMIT_NOFILE, MOST);
    let client = role.client();
    let (mut publication, mut subscription) = pair(&client, "there", Kind::Spsc, Overflow::Block, SMALLEST);
    let files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let error = client.publication("wanted").expect_err("there is no room");
    assert_works(&mut publication, &mut subscription);
    drop(files);
    assert!(matches!(error, Error::FileDescriptors { .. }), "{error:?}");
    role.say(error);
    drop(client.publication("wanted").expect("now there is"));
    role.say("unharmed");
    role.hold();
}

/// The receiver's descriptor table is full: the kernel drops the descriptor and says so only by `MSG_CTRUNC`.
#[test]
fn no_room_for_a_descriptor() {
    let address = naive_address("full");
    let naive = Party::start("naive receiver without descriptors", &address, &[]);
    naive.expect("listens");
    let socket = Raw::silent(&address);
    let memory = ring_object(ObjectKind::SingleRing, SMALLEST);
    socket.send(b"here is it", &[memory.as_fd()]);
    naive.expect("10");
    naive.expect("true");

    let driver = DriverProcess::launch();
    let client = driver.connect();
    let (mut publication, mut subscription) = pair(&client, "neighbours", Kind::Broadcast, Overflow::Block, SMALLEST);
    let party = Party::start("client without descriptors", &driver.address, &[]);
    let error = party.hear();
    assert!(error.contains("RLIMIT_NOFILE is 64"), "{error}");
    party.expect("unharmed");
    party.finish();
    until("nothing of it is left", || client.list().expect("it answers").len() == 2);
    assert_works(&mut publication, &mut subscription);
    observed(
        "recvmsg returns 10 bytes and no error; the memory is not there, which shows as EBADF of mmap",
        format!("\"{error}\"; what it has, and its neighbours, go on"),
    );
}
