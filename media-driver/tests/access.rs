//! What a peer gets hold of, and what it can do with it: nothing but what it is for. Here clients speak the driver's protocol by hand, and not as they should.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use media_driver::EmbeddedDriver;
use ringbus::channel::{Access, ChannelName, Grant, Properties};
use ringbus::control::message::{Event, Request};
use ringbus::control::socket;
use ringbus::{Client, Kind, Overflow, Publication, Subscription};
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::net::SendFlags;
use testing::{
    DriverProcess, KINDS, Mapped, Party, Random, Raw, Role, assert_works, connect, in_time, mappings, pair, play_driver, until,
};

const SMALLEST: u64 = 4096;

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => play_driver(role),
        "subscriber" => subscriber(role),
        "publisher" => publisher(role),
        "couple" => couple(role),
        "intruder" => intruder(role),
        other => panic!("there is no role {other}"),
    }
}

// ---- Mappings ----

/// Checks that all mappings of that kind of object are read-only and stay so, or are writable; and that its owner alone keeps an fd of it.
#[track_caller]
fn assert_mapped(object: &str, permissions: &str, fds: usize) {
    let mappings: Vec<Mapped> = mappings().into_iter().filter(|mapping| mapping.object.contains(object)).collect();
    assert!(!mappings.is_empty(), "there is a {object}");
    for mapping in mappings {
        assert_eq!(mapping.permissions, permissions, "{mapping:x?}");
        if permissions == "r--s" {
            let write = MprotectFlags::READ | MprotectFlags::WRITE;
            // SAFETY: the kernel is to refuse; should it not, the memory is merely writable, and nobody writes it.
            let result = unsafe { rustix::mm::mprotect(mapping.address as *mut _, mapping.length, write) };
            assert_eq!(result, Err(Errno::ACCESS), "{mapping:x?}");
        }
    }
    let open = testing::fds_of(std::process::id()).into_iter().filter(|fd| fd.contains(object));
    assert_eq!(open.count(), fds, "fds of a {object}");
}

/// Subscribes and looks at what it has got. Arguments: channel.
fn subscriber(mut role: Role) {
    let channel: String = role.argument(0);
    let mut subscription = role.client().subscription(&channel).expect("a subscription");
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"look");
    assert_mapped("ringbus-ring", "r--s", 0);
    assert_mapped("ringbus-page", "rw-s", 1);
    role.say("looked");
    role.hold();
}

/// Publishes on an mpsc channel and looks at what it has got. Arguments: channel.
fn publisher(mut role: Role) {
    let channel: String = role.argument(0);
    let mut publication = role.client().publication(&channel).expect("a publication");
    connect(&mut publication, 1);
    assert_mapped("ringbus-page", "r--s", 0);
    // It is the subscription's, and all publications write it.
    assert_mapped("ringbus-ring", "rw-s", 0);
    role.say("looked");
    role.hold();
}

#[test]
fn what_belongs_to_a_peer_is_mapped_read_only_for_good() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    for kind in [Kind::Spsc, Kind::Broadcast] {
        let name = kind.to_string();
        let mut publication = client.channel(&name).kind(kind).publication().expect("a publication");
        let party = Party::start("subscriber", driver.address(), &[&name]);
        connect(&mut publication, 1);
        publication.offer(b"look").expect("room");
        party.expect("looked");
        party.finish();
    }
    let _subscription = client.channel("shared").kind(Kind::Mpsc).subscription().expect("a subscription");
    let party = Party::start("publisher", driver.address(), &[&"shared"]);
    party.expect("looked");
    party.finish();
}

// ---- Clients by hand ----

/// All ways to write to an object, cut it, or seal it that the kernel knows, through that fd and whatever can be opened from it: none works.
#[track_caller]
fn assert_cannot_write(fd: &OwnedFd) {
    let path = |number: i32| format!("/proc/self/fd/{number}");
    let open = |path: &str, flags: OFlags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let before = rustix::fs::fstat(fd).expect("its size");
    let length = before.st_size as usize;
    assert_eq!(open(&path(fd.as_raw_fd()), OFlags::RDWR | OFlags::TRUNC).map(drop), Err(Errno::PERM), "O_TRUNC");
    // A reader's mapping, and what one can open from it.
    // SAFETY: a new mapping, which nothing here refers to.
    let map = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, fd, 0) };
    let map = map.expect("it may be read");
    let mapped = format!("/proc/self/map_files/{:x}-{:x}", map as usize, map as usize + length);
    let again =
        [open(&path(fd.as_raw_fd()), OFlags::RDWR), open(&path(fd.as_raw_fd()), OFlags::WRONLY), open(&mapped, OFlags::RDWR)];
    for fd in std::iter::once(fd).chain(again.iter().filter_map(|again| again.as_ref().ok())) {
        for writable in [ProtFlags::WRITE, ProtFlags::READ | ProtFlags::WRITE] {
            // SAFETY: a new mapping, which the kernel is to refuse.
            let map = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, writable, MapFlags::SHARED, fd, 0) };
            assert!(matches!(map, Err(Errno::PERM | Errno::ACCESS)), "{map:?}");
        }
        // SAFETY: a new mapping, which nothing here refers to.
        let reader = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, fd, 0) };
        if let Ok(reader) = reader {
            // SAFETY: the kernel is to refuse; it is nobody's but ours.
            unsafe {
                let write = MprotectFlags::READ | MprotectFlags::WRITE;
                assert_eq!(rustix::mm::mprotect(reader, length, write), Err(Errno::ACCESS));
                // Takes away pages, and so what is written there.
                assert!(libc::madvise(reader, length, libc::MADV_REMOVE) != 0);
                rustix::mm::munmap(reader, length).expect("it is ours");
            }
        }
        let refused = |result: rustix::io::Result<usize>| assert!(matches!(result, Err(Errno::PERM | Errno::BADF)), "{result:?}");
        refused(rustix::io::pwrite(fd, b"mine", 0));
        refused(rustix::io::write(fd, b"mine"));
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        rustix::io::write(&writer, b"mine").expect("it is empty");
        refused(rustix::pipe::splice(&reader, None, fd, Some(&mut 0), 4, rustix::pipe::SpliceFlags::NONBLOCK));
        let source = fs::File::open("/proc/self/exe").expect("it is there");
        refused(rustix::fs::sendfile(fd, &source, None, 4));
        let copied = rustix::fs::copy_file_range(&source, None, fd, None, 4);
        assert!(copied.is_err(), "{copied:?}");
        for size in [0, 1 << 30] {
            let cut = rustix::fs::ftruncate(fd, size);
            assert!(matches!(cut, Err(Errno::PERM | Errno::INVAL)), "{cut:?}");
        }
        let keep = FallocateFlags::KEEP_SIZE;
        for how in [FallocateFlags::PUNCH_HOLE | keep, FallocateFlags::ZERO_RANGE | keep, FallocateFlags::COLLAPSE_RANGE] {
            assert!(rustix::fs::fallocate(fd, how, 0, 4096).is_err(), "{how:?}");
        }
        for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE | SealFlags::WRITE] {
            assert!(rustix::fs::fcntl_add_seals(fd, seal).is_err());
        }
    }
    // SAFETY: mapped above.
    unsafe { rustix::mm::munmap(map, length).expect("it is ours") };
    assert_eq!(rustix::fs::fstat(fd).expect("its size").st_blocks, before.st_blocks);
}

/// A publication and a subscription, which work, and work again when told so.
fn couple(mut role: Role) {
    let client = role.client();
    let (mut publication, mut subscription) = pair(&client, "couple", Kind::Broadcast, Overflow::Block, SMALLEST);
    loop {
        assert_works(&mut publication, &mut subscription);
        role.say("works");
        role.hear();
    }
}

/// Looks through the descriptors and mappings of another process, opens what it may of ringbus there, and tries to write it. Says how many those were.
/// Arguments: process, 1 to be nobody while doing so.
fn intruder(mut role: Role) {
    let (pid, nobody): (u32, u32) = (role.argument(0), role.argument(1));
    if nobody == 1 {
        role.become_nobody(&[]);
    }
    let mut opened = 0;
    for directory in ["fd", "map_files"] {
        for entry in fs::read_dir(format!("/proc/{pid}/{directory}")).into_iter().flatten().flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            let link = link.to_string_lossy();
            // An mpsc ring is there to be written by all who may publish, and a sleep page by all who subscribe, where they are of one uid.
            if !link.contains("memfd:ringbus-") || (link.contains("memfd:ringbus-sleeps") && nobody == 0) {
                continue;
            }
            for flags in [OFlags::RDONLY, OFlags::RDWR] {
                if let Ok(fd) = rustix::fs::open(entry.path(), flags | OFlags::CLOEXEC, Mode::empty()) {
                    assert_cannot_write(&fd);
                    opened += 1;
                }
            }
        }
    }
    role.say(opened);
    role.hold();
}

/// Whoever has the same uid can open what its peers have. (Who may trace a process can write its memory, and root may: no seal is against that.)
#[test]
fn what_others_have_open_or_mapped_cannot_be_written_either() {
    let driver = DriverProcess::launch();
    let mut couple = Party::start("couple", &driver.address, &[]);
    couple.expect("works");
    for nobody in [0, 1] {
        if nobody == 1 && testing::skip_unless_root() {
            continue;
        }
        for pid in [couple.pid(), driver.party().pid()] {
            let party = Party::start("intruder", &driver.address, &[&pid, &nobody]);
            let opened: usize = party.hear_number();
            assert_eq!(opened > 0, nobody == 0, "{opened} objects of process {pid} were opened");
            party.finish();
        }
    }
    couple.tell("again");
    couple.expect("works");
    couple.finish();
}

fn name(name: &str) -> ChannelName {
    name.parse().expect("a name")
}

fn launch() -> (DriverProcess, Client, Publication, Subscription) {
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let (publication, subscription) = pair(&client, "victims", Kind::Broadcast, Overflow::Block, SMALLEST);
    driver.party().wait_all_asleep();
    (driver, client, publication, subscription)
}

#[test]
fn who_keeps_the_fd_of_what_is_a_peer_s_can_do_nothing_with_it_but_read() {
    let (driver, _client, mut publication, mut subscription) = launch();
    let raw = Raw::greeted(&driver.address);
    raw.ask(&Request::AddSubscription { request: 1, name: name("victims"), properties: Properties::default() });
    let (event, fds) = raw.event();
    let Event::SubscriptionAdded { id, .. } = event else { panic!("{event:?}") };
    assert_eq!(fds.len(), 1, "its page");
    raw.ask(&Request::Ready { object: id });
    let (event, fds) = raw.event();
    let Event::SubscriberLink { .. } = event else { panic!("{event:?}") };
    let [_bell, sleep_page, ring] = fds.as_slice() else { panic!("{} descriptors", fds.len()) };
    assert_cannot_write(ring);
    // This one it may write, as they are of one uid, but not cut.
    assert_eq!(rustix::fs::ftruncate(sleep_page, 0), Err(Errno::PERM));
    assert_works(&mut publication, &mut subscription);
    // The other way round: what a publisher gets of a subscription.
    raw.ask(&Request::AddPublication { request: 2, name: name("victims"), properties: Properties::default() });
    let (event, fds) = loop {
        let (event, fds) = raw.event();
        if let Event::PublicationAdded { id, .. } = event {
            raw.ask(&Request::Ready { object: id });
        } else if matches!(event, Event::PublisherLink { .. }) {
            break (event, fds);
        }
    };
    assert!(matches!(event, Event::PublisherLink { .. }), "{event:?}");
    assert_cannot_write(&fds[1]);
    assert_works(&mut publication, &mut subscription);
}

/// Where uids differ there is no page that subscriptions share, as one could keep the others asleep.
#[test]
fn where_uids_differ_subscriptions_share_nothing_that_they_can_write() {
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let subscribe = Grant { uids: vec![rustix::process::geteuid().as_raw() + 1], gids: vec![] };
    let access = Access { publish: Grant::default(), subscribe };
    let mut publication = client.channel("victims").access(access).publication().expect("a publication");
    let raw = Raw::greeted(&driver.address);
    raw.ask(&Request::AddSubscription { request: 1, name: name("victims"), properties: Properties::default() });
    let (Event::SubscriptionAdded { id, .. }, own) = raw.event() else { panic!("an answer") };
    raw.ask(&Request::Ready { object: id });
    let (Event::SubscriberLink { link }, fds) = raw.event() else { panic!("a link") };
    let [_bell, ring] = fds.as_slice() else { panic!("{} descriptors", fds.len()) };
    assert_cannot_write(ring);
    raw.ask(&Request::LinkReady { link: link.id });
    connect(&mut publication, 1);
    drop(own);
}

#[test]
fn nobody_can_close_resume_or_end_what_is_not_his() {
    let (driver, client, mut publication, mut subscription) = launch();
    let spec = publication.channel().clone();
    let image = subscription.images();
    let raw = Raw::greeted(&driver.address);
    let (objects, link) = ([publication.id(), subscription.id()], image.first().map_or(0, |image| image.id));
    let memfd = rustix::fs::memfd_create("ringbus-ring", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("a memfd");
    for object in objects {
        raw.ask(&Request::Close { object });
        raw.ask(&Request::Ready { object });
        raw.ask(&Request::ResumePublication { id: object, spec: spec.clone() });
        raw.send(&socket::encode(&Request::ResumePublication { id: object, spec: spec.clone() }), &[memfd.as_fd()]);
        raw.send(
            &socket::encode(&Request::ResumeSubscription { id: object, spec: spec.clone() }),
            &[memfd.as_fd(), memfd.as_fd()],
        );
        // Nor what nobody has: it was not made by this driver.
        raw.send(&socket::encode(&Request::ResumePublication { id: 77, spec: spec.clone() }), &[memfd.as_fd()]);
    }
    raw.ask(&Request::LinkReady { link });
    raw.ask(&Request::LinkDone { link });
    raw.ask(&Request::LinkFailed { link, reason: "because".to_owned() });
    // All of it has been looked at when this is answered.
    raw.ask(&Request::List { request: 9 });
    let mut lost = 0;
    loop {
        match raw.event().0 {
            Event::ListEnd { request: 9 } => break,
            Event::Lost { .. } => lost += 1,
            Event::Entry { .. } | Event::Unknown { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lost, 8, "every resumption was refused");
    assert_eq!(client.list().expect("it answers").len(), 2);
    assert_works(&mut publication, &mut subscription);
    raw.ask(&Request::Goodbye);
    drop(raw);
    assert_works(&mut publication, &mut subscription);
    assert_eq!(client.list().expect("it answers").iter().map(|entry| entry.links).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn who_talks_nonsense_is_let_go_and_the_driver_keeps_nothing_of_it() {
    let (driver, client, mut publication, mut subscription) = launch();
    let before = driver.party().fds().len();
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let mut random = Random::new(8);
    // Nothing at all.
    drop(Raw::silent(&driver.address));
    for _ in 0..50 {
        let noise: Vec<u8> = (0..random.below(300)).map(|_| random.draw() as u8).collect();
        // Instead of a greeting, and after it.
        let raw = Raw::silent(&driver.address);
        raw.send(&noise, &[reader.as_fd(), writer.as_fd()]);
        raw.assert_hung_up();
        let raw = Raw::greeted(&driver.address);
        raw.send(&[&[0xFF], noise.as_slice()].concat(), &[]);
        raw.assert_hung_up();
        // A good question with descriptors that nobody asked for.
        let raw = Raw::greeted(&driver.address);
        raw.send(&socket::encode(&Request::List { request: 1 }), &[reader.as_fd(), writer.as_fd()]);
        raw.assert_hung_up();
    }
    // Too long a message.
    let raw = Raw::greeted(&driver.address);
    raw.send(&[0; 20_000], &[]);
    raw.assert_hung_up();
    until("all is given back", || driver.party().fds().len() == before);
    assert_eq!(client.list().expect("it answers").len(), 2);
    assert_works(&mut publication, &mut subscription);
}

#[test]
fn who_never_reads_is_let_go_and_blocks_nobody() {
    let (driver, client, mut publication, mut subscription) = launch();
    let before = driver.party().fds().len();
    let raw = Raw::greeted(&driver.address);
    let question = socket::encode(&Request::List { request: 1 });
    // Each answer is several packets, and nobody takes them.
    let mut asked = 0;
    until("the end", || {
        while let Ok(()) = socket::send(&raw.0, &question, &[], SendFlags::DONTWAIT) {
            asked += 1;
        }
        let gone = socket::send(&raw.0, &question, &[], SendFlags::DONTWAIT);
        gone.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
    });
    assert!(asked > 10);
    until("all is given back", || driver.party().fds().len() == before);
    assert_eq!(client.list().expect("it answers").len(), 2);
    assert_works(&mut publication, &mut subscription);
}

#[test]
fn a_subscription_that_is_never_mapped_holds_nobody_back() {
    for kind in KINDS {
        let driver = DriverProcess::launch();
        let client = driver.connect();
        let mut publication = client.channel("half").kind(kind).capacity(SMALLEST).publication().expect("a publication");
        let raw = Raw::greeted(&driver.address);
        raw.ask(&Request::AddSubscription { request: 1, name: name("half"), properties: Properties::default() });
        let (event, _fds) = raw.event();
        let Event::SubscriptionAdded { id, .. } = event else { panic!("{event:?}") };
        assert!(!publication.is_connected(), "it is not ready");
        raw.ask(&Request::Ready { object: id });
        let (event, _fds) = raw.event();
        assert!(matches!(event, Event::SubscriberLink { .. }), "{event:?}");
        assert_eq!(publication.wait_connected(Some(std::time::Instant::now() + Duration::from_millis(20))), Ok(false));
        drop(raw);
        // It is dead for all anybody knows when its process is; but this one lives, and is given up after a while.
        until("the place is free", || client.list().expect("it answers").len() == 1);
        let mut subscription = client.subscription("half").expect("a subscription");
        connect(&mut publication, 1);
        assert_works(&mut publication, &mut subscription);
    }
}
