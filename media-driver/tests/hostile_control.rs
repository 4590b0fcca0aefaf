//! Clients that say whatever they like, and vanish whenever they like: the driver keeps nothing of it, and a well-behaved client beside them notices nothing.
//!
//! They speak over raw sockets: requests that are cut, stretched, changed, repeated, out of order, about what is not theirs, with descriptors that nobody asked for.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ringbus::channel::{ChannelName, ChannelSpec, Properties};
use ringbus::control::message::{Entry, Event, Greeting, Link, MAX_MESSAGE, Request};
use ringbus::control::process::Process;
use ringbus::control::socket;
use ringbus::{Address, Client, Error, Kind, Overflow};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{SendFlags, SocketFlags};
use testing::{
    DriverProcess, Holdings, KINDS, PATIENCE, Party, Random, Raw, Role, assert_works, connect, in_time, limit, now, pair,
    play_driver, readable, scaled, status_number, until,
};

const SMALLEST: u64 = 4096;
/// The channel that the well-behaved neighbour opens and closes all the time.
const PASSING: &str = "neighbour";
/// Nothing that a well-behaved client asks for takes longer, however busy the machine: less than the 15 s for which a close can be made to linger.
const BOUND: Duration = Duration::from_secs(10);
/// Enough descriptors for ten thousand clients.
const MANY_FILES: u64 = 20_000;

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => play_driver(role),
        "neighbour" => neighbour(role),
        "echo" => echo(role),
        "hostile" => hostile(role),
        "refused" => refused(role),
        "crowd" => crowd(role),
        "vanishing" => vanishing(role),
        other => panic!("there is no role {other}"),
    }
}

// ---- The well-behaved ----

/// Sends back what it gets.
fn echo(mut role: Role) {
    let client = role.client();
    let mut there = client.channel("there").kind(Kind::Spsc).capacity(SMALLEST).subscription().expect("a subscription");
    let mut back = client.channel("back").kind(Kind::Spsc).capacity(SMALLEST).publication().expect("a publication");
    role.say("ready");
    while !readable(std::io::stdin(), Duration::ZERO) {
        if let Ok(message) = there.recv_until(Some(Instant::now() + Duration::from_millis(100))) {
            let number = message.payload().to_owned();
            // Who asks subscribes to the answers, but we may not have been told yet.
            connect(&mut back, 1);
            back.offer_until(0, &number, in_time()).expect("room");
        }
    }
    role.hear();
}

/// Sends numbers to and fro, and opens and closes publications and looks around in between, from when it is told to until told to stop. Says how many rounds
/// it made, and how many microseconds the longest round and the longest talk with the driver took.
fn neighbour(mut role: Role) {
    let client = role.client();
    let mut there = client.channel("there").kind(Kind::Spsc).capacity(SMALLEST).publication().expect("a publication");
    let mut back = client.channel("back").kind(Kind::Spsc).capacity(SMALLEST).subscription().expect("a subscription");
    connect(&mut there, 1);
    let mut round = |number: u64| {
        there.offer_until(0, &number.to_le_bytes(), in_time()).expect("room");
        assert_eq!(back.recv_until(in_time()).expect("the answer").payload(), number.to_le_bytes());
    };
    // From then on the driver has nothing more to do for the two, before one of them asks for something.
    round(0);
    role.say("ready");
    role.hear();
    let (mut rounds, mut longest, mut longest_talk) = (0u64, Duration::ZERO, Duration::ZERO);
    while !readable(std::io::stdin(), Duration::from_millis(1)) {
        let began = Instant::now();
        round(rounds);
        longest = longest.max(began.elapsed());
        rounds += 1;
        if rounds.is_multiple_of(20) {
            let began = Instant::now();
            let (mut publication, mut subscription) =
                pair(&client, PASSING, KINDS[(rounds / 20 % 3) as usize], Overflow::Block, SMALLEST);
            publication.offer(b"hello").expect("room");
            assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"hello");
            let ours = client.list().expect("an answer").iter().filter(|entry| entry.pid == std::process::id()).count();
            assert_eq!(ours, 4);
            longest_talk = longest_talk.max(began.elapsed());
        }
        assert!(longest < BOUND && longest_talk < BOUND, "{longest:?} {longest_talk:?}");
    }
    role.say(format!(
        "{rounds} rounds, longest {} µs, longest talk with the driver {} µs",
        longest.as_micros(),
        longest_talk.as_micros()
    ));
    role.hear();
}

/// A driver with two well-behaved clients, and what it has before anybody hostile comes.
struct Scene {
    driver: DriverProcess,
    parties: Vec<Party>,
    client: Client,
    before: Census,
}

#[derive(Debug, PartialEq, Eq)]
struct Census {
    fds: usize,
    threads: usize,
    entries: usize,
}

impl Scene {
    fn set() -> Self {
        // Some tests have hundreds of publications in this process.
        limit(libc::RLIMIT_NOFILE, MANY_FILES);
        let driver = DriverProcess::launch_with(0, MANY_FILES);
        let parties: Vec<Party> = ["echo", "neighbour"].map(|role| Party::start(role, &driver.address, &[])).into();
        let mut scene = Self { client: driver.connect(), driver, parties, before: Census { fds: 0, threads: 0, entries: 4 } };
        scene.parties.iter().for_each(|party| party.expect("ready"));
        scene.before = scene.census();
        scene.parties[1].tell("go");
        scene
    }

    /// Those of the neighbour that come and go left out.
    fn census(&self) -> Census {
        let fds = self.driver.party().fds().into_iter().filter(|fd| !fd.contains("ringbus-")).count();
        let threads = Holdings::of(self.driver.party().pid()).threads;
        let entries = self.client.list().expect("it answers");
        Census { fds, threads, entries: entries.iter().filter(|entry| entry.spec.name.as_str() != PASSING).count() }
    }

    /// Resident memory that is the driver's own, in KiB.
    fn resident(&self) -> u64 {
        status_number(self.driver.party().pid(), "RssAnon:")
    }

    /// All is as before, and the neighbours have noticed nothing.
    fn end(mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A doorbell of the neighbour's may be there at the moment.
            let now = self.census();
            if now == self.before {
                break;
            }
            assert!(Instant::now() < deadline, "{now:?}, not {:?}", self.before);
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut neighbour = self.parties.pop().expect("it is there");
        neighbour.tell("stop");
        println!("neighbours: {}; driver: {:?}, {} KiB resident", neighbour.hear(), self.before, self.resident());
        neighbour.finish();
        // Before, a new object of the neighbour's may be mapped for a moment, to write its header.
        assert_eq!(Holdings::of(self.driver.party().pid()).mappings, 0, "a driver keeps nothing mapped");
    }
}

// ---- The hostile ----

fn name(name: &str) -> ChannelName {
    name.parse().expect("a name")
}

fn properties(kind: Kind) -> Properties {
    Properties { kind: Some(kind), capacity: Some(SMALLEST), ..Properties::default() }
}

/// One of each kind of descriptor that can be had, the first ones memfds.
fn all_kinds_of_descriptors(address: &Address) -> Vec<OwnedFd> {
    let memfd = |size: u64, seals: SealFlags| {
        let fd = rustix::fs::memfd_create("ringbus-ring", MemfdFlags::ALLOW_SEALING).expect("a memfd");
        rustix::fs::ftruncate(&fd, size).expect("its size");
        rustix::fs::fcntl_add_seals(&fd, seals).expect("its seals");
        fd
    };
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let (one, other) =
        rustix::net::socketpair(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, SocketFlags::empty(), None)
            .expect("a socket pair");
    let open = |path: &str| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("it is there");
    vec![
        memfd(0, SealFlags::empty()),
        memfd(SMALLEST * 40, SealFlags::SHRINK | SealFlags::GROW),
        memfd(SMALLEST, SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL),
        memfd(SMALLEST, SealFlags::WRITE),
        reader,
        writer,
        one,
        other,
        open("/"),
        open("/dev/null"),
        open("/proc/self/stat"),
        rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("an epoll instance"),
        rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).expect("an eventfd"),
        // The driver's own socket, from the other side.
        Raw::silent(address).0,
    ]
}

/// Says bad things.
struct Badmouth {
    random: Random,
    fds: Vec<OwnedFd>,
    /// Ids that others have, and that nobody has.
    ids: Vec<u64>,
    victims: Vec<ChannelSpec>,
}

impl Badmouth {
    fn id(&mut self) -> u64 {
        let index = self.random.below(self.ids.len() as u64 + 1) as usize;
        self.ids.get(index).copied().unwrap_or_else(|| self.random.draw())
    }

    fn some_fds(&mut self, kinds: u64, most: u64) -> Vec<usize> {
        (0..=self.random.below(most)).map(|_| self.random.below(kinds) as usize).collect()
    }

    /// A request as it should be formed, that makes no sense.
    fn request(&mut self, own: u64) -> Request {
        let spec = self.victims[self.random.below(self.victims.len() as u64) as usize].clone();
        let (id, object, request) =
            (self.id(), if self.random.below(2) == 0 { own } else { self.id() }, self.random.draw() as u32);
        // Others have made it otherwise, or, on a new channel, mpsc cannot be lossy.
        let (name, kind) = match self.random.below(2) {
            0 => (spec.name.clone(), KINDS[self.random.below(3) as usize]),
            _ => (name("hostile/impossible"), Kind::Mpsc),
        };
        let bad = Properties {
            kind: Some(kind),
            overflow: Some(Overflow::Lossy),
            capacity: Some([0, 1, 5000, u64::MAX, SMALLEST * 2, 1 << 33][self.random.below(6) as usize]),
            lock: Some(true),
            ..Properties::default()
        };
        match self.random.below(12) {
            0 => Request::AddPublication { request, name, properties: bad },
            1 => Request::AddSubscription { request, name, properties: bad },
            2 => Request::ResumePublication { id, spec },
            3 => Request::ResumeSubscription { id, spec },
            4 | 5 => {
                let number = |random: &mut Random| [0, 1, 255, 4095, 4096, u32::MAX][random.below(6) as usize];
                let (slot, line) = (number(&mut self.random), number(&mut self.random));
                let peer = Process { pid: self.random.below(70_000) as u32, start_time: self.random.draw() };
                let (publication, subscription) = if self.random.below(2) == 0 { (object, id) } else { (id, object) };
                let link = Link { id: self.id(), publication, subscription, slot, line, page_size: self.id(), peer };
                Request::ResumeLink { object, link }
            }
            6 => Request::Ready { object },
            7 => Request::LinkReady { link: id },
            8 => Request::LinkFailed { link: id, reason: "x".repeat(self.random.below(1000) as usize) },
            9 => Request::LinkDone { link: id },
            10 => Request::Close { object: id },
            _ => Request::Goodbye,
        }
    }

    /// Something that is no request, or comes with what does not belong to it: its bytes and its descriptors, by number.
    fn malformed(&mut self, own: u64) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = socket::encode(&self.request(own));
        let length = bytes.len() as u64;
        let all = self.fds.len() as u64;
        match self.random.below(8) {
            0 => ((0..self.random.below(2000)).map(|_| self.random.draw() as u8).collect(), vec![]),
            1 => (bytes[..self.random.below(length) as usize].to_owned(), vec![]),
            2 => {
                for _ in 0..=self.random.below(4) {
                    bytes[self.random.below(length) as usize] = self.random.draw() as u8;
                }
                (bytes, vec![])
            }
            3 => {
                bytes.extend((0..self.random.below(300)).map(|_| 0xA5));
                (bytes, self.some_fds(all, 3))
            }
            4 => (vec![bytes[0]; MAX_MESSAGE + 1 + self.random.below(100_000) as usize], self.some_fds(all, 10)),
            5 => (bytes, self.some_fds(all, 253)),
            6 => (socket::encode(&Request::List { request: 1 }), self.some_fds(4, 253)),
            _ => (Vec::new(), self.some_fds(all, 253)),
        }
    }

    fn greeting(&mut self) -> Vec<u8> {
        let good = Greeting::own().to_bytes();
        match self.random.below(5) {
            0 => good[..self.random.below(16) as usize].to_owned(),
            1 => [&good[..], &[0; 3]].concat(),
            2 => Greeting { version: self.random.draw() as u32, pid: 1 }.to_bytes().to_vec(),
            3 => (0..self.random.below(40)).map(|_| self.random.draw() as u8).collect(),
            _ => vec![b'r'; MAX_MESSAGE + 1],
        }
    }

    fn send(&self, raw: &Raw, bytes: &[u8], fds: &[usize]) {
        let fds: Vec<_> = fds.iter().map(|&index| self.fds[index].as_fd()).collect();
        raw.send(bytes, &fds);
    }
}

/// Sends so many bad packets, all of which the driver reads, over as many connections as it takes. Says how many those were. Arguments: how many, seed.
fn hostile(mut role: Role) {
    let (wanted, seed): (u64, u64) = (role.argument(0), role.argument(1));
    let entries: Vec<Entry> = role.client().list().expect("an answer");
    let mut bad = Badmouth {
        random: Random::new(seed),
        fds: all_kinds_of_descriptors(&role.address),
        ids: entries.iter().map(|entry| entry.id).chain([0, 1, u64::MAX]).collect(),
        // A name that its owner may have given up is anybody's, and no attack.
        victims: entries
            .into_iter()
            .map(|entry| entry.spec)
            .filter(|spec| ["there", "back"].contains(&spec.name.as_str()))
            .collect(),
    };
    let (mut sent, mut connections, mut hung_up) = (0u64, 0u64, 0u64);
    while sent < wanted {
        connections += 1;
        if bad.random.below(8) == 0 {
            let raw = Raw::silent(&role.address);
            let greeting = bad.greeting();
            let fds = if bad.random.below(2) == 0 { bad.some_fds(bad.fds.len() as u64, 253) } else { vec![] };
            bad.send(&raw, &greeting, &fds);
            sent += 1;
            while raw.receive().is_some() {}
            hung_up += 1;
            continue;
        }
        let raw = Raw::greeted(&role.address);
        // Something of its own, to make links with, or not quite ready, or twice.
        let mut own = 0;
        if bad.random.below(2) == 0 {
            let (kind, name) = (KINDS[bad.random.below(3) as usize], name(&format!("hostile/{}", bad.random.below(2))));
            let (request, properties) = (7, Properties { kind: Some(kind), ..properties(kind) });
            raw.ask(&match bad.random.below(2) {
                0 => Request::AddPublication { request, name, properties },
                _ => Request::AddSubscription { request, name, properties },
            });
            if let (Event::PublicationAdded { id, .. } | Event::SubscriptionAdded { id, .. }, _) = raw.event() {
                own = id;
            }
        }
        for _ in 0..bad.random.below(40) {
            let request = socket::encode(&bad.request(own));
            for _ in 0..=bad.random.below(2) {
                raw.send(&request, &[]);
                sent += 1;
            }
        }
        // All of these are understood, and refused.
        raw.ask(&Request::List { request: u32::MAX });
        loop {
            let (event, _) = raw.event();
            match event {
                Event::ListEnd { request: u32::MAX } => break,
                Event::PublicationAdded { .. } | Event::SubscriptionAdded { .. } => panic!("nonsense was granted: {event:?}"),
                _ => {}
            }
        }
        let (bytes, fds) = bad.malformed(own);
        bad.send(&raw, &bytes, &fds);
        sent += 1;
        hung_up += u64::from(!raw.settle());
    }
    role.say(sent);
    role.say(format!("{connections} connections, {hung_up} hung up by the driver"));
    role.hold();
}

#[test]
fn bad_packets_leave_nothing_behind() {
    let (scene, seed, packets) = (Scene::set(), scaled("RINGBUS_TEST_SEED", now()), scaled("RINGBUS_TEST_PACKETS", 40_000));
    println!("seed {seed}");
    let attack = |packets: u64, seed: u64| {
        let party = |seed: u64| Party::start("hostile", &scene.driver.address, &[&(packets / 2), &seed]);
        let parties = [party(seed), party(seed + 1)];
        let mut sent = 0;
        for party in parties {
            sent += party.hear_within(60 * PATIENCE).parse::<u64>().expect("a number");
            println!("hostile: {}", party.hear());
            party.finish();
        }
        sent
    };
    // What the allocator keeps for itself is there after the first of them.
    let mut sent = attack(packets / 10, seed + 2);
    let resident = scene.resident();
    sent += attack(packets, seed);
    let grown = scene.resident().saturating_sub(resident);
    println!("{sent} bad packets; the driver has grown by {grown} KiB since the first {}", packets / 10);
    assert!(sent >= packets && grown < 4096);
    scene.end();
}

/// Means well, and asks for what it cannot have, over the API. Arguments: how often.
fn refused(mut role: Role) {
    let (requests, client): (u64, Client) = (role.argument(0), role.client());
    let _taken = client.channel("taken").kind(Kind::Spsc).publication().expect("a publication");
    let before = Holdings::own();
    for number in 0..requests {
        let error = match number % 4 {
            0 => client.publication("taken").map(drop),
            1 => client.channel("taken").kind(Kind::Mpsc).subscription().map(drop),
            2 => client.channel("new").capacity(5000).publication().map(drop),
            _ => client.channel("new").kind(Kind::Mpsc).overflow(Overflow::Lossy).subscription().map(drop),
        };
        assert!(matches!(error, Err(Error::Refused(_))), "{error:?}");
    }
    before.wait_for_return();
    role.say("refused");
    role.hold();
}

#[test]
fn requests_that_fail_leave_nothing_in_driver_or_client() {
    let scene = Scene::set();
    let requests = scaled("RINGBUS_TEST_PACKETS", 40_000) / 10;
    let party = Party::start("refused", &scene.driver.address, &[&requests]);
    assert_eq!(party.hear_within(20 * PATIENCE), "refused");
    println!("{requests} failing requests");
    let own = || scene.client.list().map(|entries| entries.iter().filter(|entry| entry.pid == party.pid()).count());
    assert!(own().is_ok_and(|count| count == 1), "the driver has kept something");
    party.finish();
    scene.end();
}

// ---- Crowds ----

/// Connects so often, in turn and then at once, and keeps silent. Arguments: how often.
fn crowd(mut role: Role) {
    limit(libc::RLIMIT_NOFILE, MANY_FILES);
    let count: u64 = role.argument(0);
    for number in 0..count {
        if number % 2 == 0 { drop(Raw::silent(&role.address)) } else { drop(Raw::greeted(&role.address)) }
    }
    role.say("in turn");
    let crowd: Vec<Raw> = (0..count).map(|_| Raw::silent(&role.address)).collect();
    role.say("at once");
    role.hear();
    drop(crowd);
    role.hold();
}

#[test]
fn ten_thousand_connections_in_turn_and_at_once() {
    let scene = Scene::set();
    let count = scaled("RINGBUS_TEST_CONNECTIONS", 2000);
    // A connection may cost other descriptors, too.
    let sockets = || scene.driver.party().fds().iter().filter(|fd| fd.starts_with("socket:")).count() as u64;
    let before = sockets();
    let mut crowd = Party::start("crowd", &scene.driver.address, &[&count]);
    assert_eq!(crowd.hear_within(4 * PATIENCE), "in turn");
    assert_eq!(crowd.hear_within(4 * PATIENCE), "at once");
    until("they are all there", || sockets() >= before + count);
    println!("{count} connections in turn, {count} at once");
    crowd.tell("go");
    crowd.finish();
    scene.end();
}

/// Asks and asks and never reads an answer; and lets somebody else make the driver say things that it never reads.
#[test]
fn who_never_reads_is_let_go() {
    let scene = Scene::set();
    for _ in 0..3 {
        let raw = Raw::greeted(&scene.driver.address);
        let question = socket::encode(&Request::List { request: 1 });
        until("the end", || {
            while let Ok(()) = socket::send(&raw.0, &question, &[], SendFlags::DONTWAIT) {}
            let again = socket::send(&raw.0, &question, &[], SendFlags::DONTWAIT);
            again.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
        });
    }
    let raw = Raw::greeted(&scene.driver.address);
    raw.ask(&Request::AddSubscription { request: 1, name: name("deaf"), properties: properties(Kind::Broadcast) });
    let (Event::SubscriptionAdded { id, .. }, _fds) = raw.event() else { panic!("an answer") };
    raw.ask(&Request::Ready { object: id });
    // Each publication is an event for it, with two descriptors.
    let client = scene.driver.connect();
    until("the end", || {
        drop((0..100).map(|_| client.channel("deaf").publication().expect("a publication")).collect::<Vec<_>>());
        client.list().expect("an answer").iter().all(|entry| entry.id != id)
    });
    drop((raw, client));
    scene.end();
}

// ---- Those who vanish ----

const STEPS: u64 = 9;

/// Goes through the handshakes up to a step, says so, and goes no further. Arguments: step, kind.
fn vanishing(mut role: Role) {
    let (step, kind): (u64, Kind) = (role.argument(0), role.argument(1));
    let raw = Raw::silent(&role.address);
    let mut kept = Vec::new();
    let mut object = 0;
    for step in 0..=step {
        match step {
            0 => {}
            1 => raw.send(&Greeting::own().to_bytes(), &[]),
            2 => drop(raw.receive().expect("a greeting")),
            3 => raw.ask(&Request::AddSubscription { request: 1, name: name("vanishing"), properties: properties(kind) }),
            4 => {
                let (Event::SubscriptionAdded { id, .. }, fds) = raw.event() else { panic!("an answer") };
                object = id;
                kept.push(fds);
            }
            5 => raw.ask(&Request::Ready { object }),
            6 => {
                let (Event::SubscriberLink { link }, fds) = raw.event() else { panic!("a link") };
                kept.push(fds);
                object = link.id;
            }
            7 => raw.ask(&Request::LinkReady { link: object }),
            8 => raw.ask(&Request::LinkDone { link: object }),
            _ => raw.ask(&Request::Goodbye),
        }
    }
    role.say("there");
    role.hold();
}

#[test]
fn who_vanishes_in_the_middle_of_a_handshake_leaves_nothing() {
    let scene = Scene::set();
    for kind in KINDS {
        let mut publication =
            scene.client.channel("vanishing").kind(kind).capacity(SMALLEST).publication().expect("a publication");
        for step in 0..=STEPS {
            let mut party = Party::start("vanishing", &scene.driver.address, &[&step, &kind]);
            party.expect("there");
            party.kill();
            until("it is gone", || scene.client.list().is_ok_and(|list| list.iter().all(|entry| entry.pid != party.pid())));
            let mut subscription = scene.client.subscription("vanishing").expect("its place is free");
            connect(&mut publication, 1);
            assert_works(&mut publication, &mut subscription);
            drop(subscription);
            connect(&mut publication, 0);
        }
        drop(publication);
        until("the channel is gone", || {
            scene.client.list().is_ok_and(|list| list.iter().all(|entry| entry.spec.name.as_str() != "vanishing"))
        });
    }
    scene.end();
}

// ---- What was wrong once ----

/// A socket whose last close waits for a peer that does not read, and that peer.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let stream = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (peer, _) = listener.accept().expect("a connection");
    stream.set_nonblocking(true).expect("a flag");
    while std::io::Write::write(&mut &stream, &[0; 65536]).is_ok() {}
    stream.set_nonblocking(false).expect("a flag");
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::from_secs(15))).expect("an option");
    (stream.into(), peer)
}

#[test]
fn descriptors_that_are_slow_to_close_do_not_hold_the_driver_up() {
    let scene = Scene::set();
    let question = socket::encode(&Request::List { request: 1 });
    let too_long = vec![0; MAX_MESSAGE + 1];
    let greeting = Greeting::own().to_bytes();
    // Greeted or not; what comes first, if anything; what the descriptor comes with.
    type Case<'a> = (bool, Option<&'a [u8]>, &'a [u8]);
    let cases: [Case<'_>; 9] = [
        (false, None, b"nonsense"),
        (false, None, &too_long),
        (false, None, &greeting),
        (true, None, b"\xFFnonsense"),
        (true, None, &question),
        (true, None, &too_long),
        // The driver hangs up before it has read the second.
        (false, Some(b"nonsense"), b"more"),
        (true, Some(b"\xFFnonsense"), &question),
        (true, Some(b""), &question),
    ];
    for (greeted, first, bytes) in cases {
        let raw = if greeted { Raw::greeted(&scene.driver.address) } else { Raw::silent(&scene.driver.address) };
        let (socket, peer) = lingering();
        // So that its close is the last one.
        scene.driver.party().stop();
        first.iter().for_each(|bytes| raw.send(bytes, &[]));
        raw.send(bytes, &[socket.as_fd()]);
        drop(socket);
        let began = Instant::now();
        scene.driver.party().go_on();
        while raw.receive().is_some() {}
        scene.client.list().expect("an answer");
        assert!(began.elapsed() < BOUND, "{greeted} {first:?} {:?}: {:?}", &bytes[..4], began.elapsed());
        drop(peer);
    }
    scene.end();
}

/// What the driver gives to a client that adds something.
fn added(raw: &Raw, request: &Request) -> (u64, ChannelSpec, Vec<OwnedFd>) {
    raw.ask(request);
    match raw.event() {
        (Event::PublicationAdded { id, spec, .. } | Event::SubscriptionAdded { id, spec, .. }, fds) => (id, spec, fds),
        other => panic!("{other:?}"),
    }
}

/// The link that the driver offers to the subscription, which accepts it.
fn accept(raw: &Raw) -> Link {
    let (Event::SubscriberLink { link }, _) = raw.event() else { panic!("a link") };
    raw.ask(&Request::LinkReady { link: link.id });
    link
}

fn send_with(raw: &Raw, request: &Request, fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    raw.send(&socket::encode(request), &fds);
}

/// A publication that comes back before its subscription does, and says of their link that it has the number of another one.
#[test]
fn who_lies_about_a_link_to_a_new_driver_gets_no_number_of_others() {
    let mut driver = DriverProcess::launch();
    let add = |request| Request::AddPublication { request, name: name("liars"), properties: properties(Kind::Broadcast) };
    let subscriber = Raw::greeted(&driver.address);
    let add_subscription = Request::AddSubscription { request: 1, name: name("liars"), properties: properties(Kind::Broadcast) };
    let (subscription, spec, page) = added(&subscriber, &add_subscription);
    subscriber.ask(&Request::Ready { object: subscription });
    let liar = Raw::greeted(&driver.address);
    let (lying, _, ring) = added(&liar, &add(1));
    liar.ask(&Request::Ready { object: lying });
    let link = accept(&subscriber);
    let honest = Raw::greeted(&driver.address);
    let (other, ..) = added(&honest, &add(1));
    honest.ask(&Request::Ready { object: other });
    let others = accept(&subscriber);
    assert_ne!(link.line, others.line);
    driver.kill();
    driver.start_again();
    let liar = Raw::greeted(&driver.address);
    send_with(&liar, &Request::ResumePublication { id: lying, spec: spec.clone() }, &ring);
    liar.ask(&Request::ResumeLink { object: lying, link: Link { line: others.line, ..link } });
    liar.ask(&Request::Ready { object: lying });
    assert!(liar.settle());
    let subscriber = Raw::greeted(&driver.address);
    send_with(&subscriber, &Request::ResumeSubscription { id: subscription, spec }, &page);
    for link in [link, others] {
        subscriber.ask(&Request::ResumeLink { object: subscription, link });
    }
    subscriber.ask(&Request::Ready { object: subscription });
    assert!(subscriber.settle());
    // The end of the lie gives back the number that the link had.
    liar.ask(&Request::Close { object: lying });
    assert!(liar.settle());
    subscriber.ask(&Request::LinkDone { link: link.id });
    assert!(subscriber.settle());
    let newcomer = Raw::greeted(&driver.address);
    let (new, ..) = added(&newcomer, &add(1));
    newcomer.ask(&Request::Ready { object: new });
    let given = accept(&subscriber);
    assert_ne!(given.line, others.line, "the other link has it");
}

/// More than may pile up of other messages.
#[test]
fn a_long_list_is_told_in_full() {
    const OBJECTS: usize = 6000;
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let raw = Raw::greeted(&driver.address);
    for request in 0..OBJECTS as u32 {
        added(&raw, &Request::AddPublication { request, name: name("many"), properties: properties(Kind::Mpsc) });
    }
    for _ in 0..3 {
        assert_eq!(client.list().expect("an answer").len(), OBJECTS);
    }
    raw.ask(&Request::Goodbye);
    assert!(raw.settle());
    assert_eq!(client.list().expect("an answer").len(), 0);
}

/// Halves of links to a subscription that is not ready, again and again.
#[test]
fn links_that_only_a_publication_has_told_of_end_with_it() {
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let subscriber = Raw::greeted(&driver.address);
    let add = Request::AddSubscription { request: 1, name: name("halves"), properties: properties(Kind::Broadcast) };
    let (subscription, ..) = added(&subscriber, &add);
    let hostile = Raw::greeted(&driver.address);
    let add = Request::AddPublication { request: 1, name: name("halves"), properties: properties(Kind::Broadcast) };
    let (publication, spec, ring) = added(&hostile, &add);
    let peer = Process::of(std::process::id()).expect("this one");
    for round in 0..10 {
        hostile.ask(&Request::Close { object: publication });
        send_with(&hostile, &Request::ResumePublication { id: publication, spec: spec.clone() }, &ring);
        for slot in 0..100 {
            let id = 1 + round * 100 + u64::from(slot);
            let link = Link { id, publication, subscription, slot, line: slot, page_size: SMALLEST, peer };
            hostile.ask(&Request::ResumeLink { object: publication, link });
        }
        assert!(hostile.settle());
    }
    hostile.ask(&Request::Close { object: publication });
    assert!(hostile.settle());
    let links: Vec<u32> = client.list().expect("it answers").iter().map(|entry| entry.links).collect();
    assert_eq!(links, [0]);
}

/// A link that somebody makes up, between something of his own and something of others, must not free what those hold.
#[test]
fn links_that_are_made_up_take_nothing_from_others() {
    let scene = Scene::set();
    let client = scene.driver.connect();
    let mut subscription = client.channel("victim").kind(Kind::Mpsc).capacity(SMALLEST).subscription().expect("a subscription");
    let mut first = client.publication("victim").expect("a publication");
    connect(&mut first, 1);
    let ring = client.channel("ring").capacity(SMALLEST).publication().expect("a publication");
    let raw = Raw::greeted(&scene.driver.address);
    raw.ask(&Request::AddPublication { request: 1, name: name("hostile"), properties: properties(Kind::Mpsc) });
    let (Event::PublicationAdded { id: publication, .. }, _) = raw.event() else { panic!("an answer") };
    raw.ask(&Request::AddSubscription { request: 1, name: name("hostile/2"), properties: properties(Kind::Broadcast) });
    let (Event::SubscriptionAdded { id: own, .. }, _fds) = raw.event() else { panic!("an answer") };
    let peer = Process::of(std::process::id()).expect("this one");
    let made_up = |id, publication, subscription, number| Link {
        id,
        publication,
        subscription,
        slot: number,
        line: number,
        page_size: 4096,
        peer,
    };
    for round in 0..3u64 {
        for number in 0..256 {
            let link = made_up(1000 + round * 1000 + u64::from(number), publication, subscription.id(), number);
            raw.ask(&Request::ResumeLink { object: publication, link });
            raw.ask(&Request::LinkFailed { link: link.id, reason: "because".to_owned() });
            let link = made_up(1_000_000 + round * 1000 + u64::from(number), ring.id(), own, number);
            raw.ask(&Request::ResumeLink { object: own, link });
            raw.ask(&Request::LinkDone { link: link.id });
        }
        assert!(raw.settle());
    }
    let links: u32 = client.list().expect("an answer").iter().map(|entry| entry.links).sum();
    // The neighbours' two, seen from both sides, what they are just doing, and ours.
    assert!(links <= 2 * 2 + 2 + 2, "{links} links");
    // Those that are not ended by anybody expire; what they name must not be free then.
    for number in 0..256 {
        let link = made_up(5_000_000 + u64::from(number), publication, subscription.id(), number);
        raw.ask(&Request::ResumeLink { object: publication, link });
    }
    assert!(raw.settle());
    let all = || client.list().expect("an answer");
    until("they have expired", || all().iter().find(|entry| entry.id == publication).is_some_and(|entry| entry.links == 0));
    // All other places are taken: nobody may be given the first one's.
    let mut others: Vec<_> = (0..255).map(|_| client.publication("victim").expect("a publication")).collect();
    others.iter_mut().for_each(|other| connect(other, 1));
    let mut late = client.publication("victim").expect("a publication");
    assert_eq!(late.wait_connected(Some(Instant::now() + Duration::from_millis(100))), Ok(false), "no place is free");
    for (sender, publication) in others.iter_mut().chain([&mut first]).enumerate() {
        publication.offer_until(sender as u16, b"mine", in_time()).expect("room");
        let message = subscription.recv_until(in_time()).expect("a message");
        assert_eq!(message.tag(), sender as u16);
    }
    let images: BTreeSet<u64> = subscription.images().iter().map(|image| image.id).collect();
    assert_eq!(images.len(), 256);
    drop((raw, first, others, late, subscription, ring, client));
    scene.end();
}

/// Links that are told of without end must end somewhere.
#[test]
fn the_links_that_one_can_make_up_are_limited() {
    let scene = Scene::set();
    let raw = Raw::greeted(&scene.driver.address);
    raw.ask(&Request::AddPublication { request: 1, name: name("hostile"), properties: properties(Kind::Mpsc) });
    let (Event::PublicationAdded { id: publication, .. }, _) = raw.event() else { panic!("an answer") };
    let peer = Process::of(std::process::id()).expect("this one");
    for round in 0..20u64 {
        for number in 0..500 {
            let id = round * 1000 + number + 1;
            let link = Link { id, publication, subscription: 1, slot: 0, line: 0, page_size: 4096, peer };
            raw.ask(&Request::ResumeLink { object: publication, link });
        }
        assert!(raw.settle());
    }
    let most = scene.client.list().expect("an answer").iter().map(|entry| entry.links).max();
    assert!(most.is_some_and(|most| most <= 4096), "{most:?} links");
    drop(raw);
    scene.end();
}
