//! A driver that answers whatever it likes: a client of it gets errors, or loses the connection, and neither panics, waits for ever, nor keeps anything.
//!
//! (That it gets memory which others can write is beyond a client's power to find out: whom it asks for memory it trusts so far.)

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringbus::channel::ChannelSpec;
use ringbus::control::message::{Entry, Event, Greeting, Link, MAX_MESSAGE, Refusal, Request};
use ringbus::control::process::Process;
use ringbus::control::socket::{self, new_socket};
use ringbus::memory::memfd::{self, HugePages, Sharing};
use ringbus::ring::layout::{MpscControl, ObjectKind, SingleControl, SleepPage, SubscriptionPage};
use ringbus::{Address, Client, Kind, Overflow};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use testing::{Holdings, KINDS, PATIENCE, Party, Random, Role, now, readable, scaled};

const CAPACITY: u64 = 4096;
/// Shorter than a client's patience with a driver that does not answer, which is 10 s: this one answers or hangs up.
const BOUND: Duration = Duration::from_secs(8);

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "guest" => guest(role),
        other => panic!("there is no role {other}"),
    }
}

// ---- The driver ----

static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// Listens until the test ends.
fn listen(address: &Address, seed: u64) {
    let listener = new_socket(SocketFlags::empty()).expect("a socket");
    rustix::net::bind(&listener, &address.to_socket_address().expect("an address")).expect("it is free");
    rustix::net::listen(&listener, 100).expect("it listens");
    std::thread::spawn(move || {
        for number in 0.. {
            let socket = rustix::net::accept(&listener).expect("a client");
            std::thread::spawn(move || Hostile { random: Random::new(seed ^ number), socket }.serve());
        }
    });
}

struct Hostile {
    random: Random,
    socket: OwnedFd,
}

type Fds = Vec<OwnedFd>;

impl Hostile {
    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.random.below(values.len() as u64) as usize]
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.random.below(times) == 0
    }

    /// A number where a size, slot or id belongs.
    fn number(&mut self) -> u64 {
        let noise = self.random.draw();
        self.pick(&[0, 1, 3, 8, 255, 256, 4095, 4096, 8192, 12288, 1 << 21, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 4095, noise])
    }

    fn send(&mut self, bytes: &[u8], fds: &Fds) {
        ANSWERS.fetch_add(1, Ordering::Relaxed);
        let fds: Vec<_> = fds.iter().take(4).map(AsFd::as_fd).collect();
        let _ = socket::send(&self.socket, bytes, &fds, SendFlags::DONTWAIT);
    }

    fn serve(mut self) {
        let greeting = Greeting::own().to_bytes();
        self.send(&greeting, &vec![]);
        // Between two requests it may take as long as the guest likes, but it never is a guest for long.
        while readable(&self.socket, PATIENCE) {
            let Ok(Some(packet)) = socket::receive(&self.socket, RecvFlags::DONTWAIT) else { return };
            let Some(request) = packet.decode::<Request>() else { continue };
            let goes_on = match request {
                Request::AddPublication { request, name, properties } => {
                    self.add(request, true, ChannelSpec::new(name, 0, &properties))
                }
                Request::AddSubscription { request, name, properties } => {
                    self.add(request, false, ChannelSpec::new(name, 0, &properties))
                }
                Request::List { request } => self.list(request),
                Request::Goodbye => return,
                Request::Ready { object } => {
                    (0..self.random.below(6)).for_each(|_| self.event(object));
                    !self.once_in(4)
                }
                Request::LinkReady { .. } | Request::LinkFailed { .. } | Request::LinkDone { .. } => !self.once_in(8),
                _ => true,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// What is sent in place of an object now and then.
    fn wrong_object(&mut self) -> OwnedFd {
        match self.random.below(6) {
            0 => File::open("/dev/null").expect("it is there").into(),
            1 => File::open("/").expect("it is there").into(),
            2 => rustix::pipe::pipe().expect("a pipe").0,
            3 => self.object(ObjectKind::SubscriptionPage, 4096, 0, false),
            4 => {
                // Of any size, and free to shrink.
                let file = tempfile::tempfile().expect("a file");
                file.set_len(self.pick(&[0, 4096, 139_264, 266_240])).expect("its size");
                file.into()
            }
            _ => {
                let fd = rustix::fs::memfd_create("unsealed", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("a memfd");
                rustix::fs::ftruncate(&fd, self.pick(&[0, 4096, 139_264, 266_240])).expect("its size");
                fd
            }
        }
    }

    fn object(&mut self, kind: ObjectKind, control: usize, capacity: u64, sealed: bool) -> OwnedFd {
        let fd = memfd::create("ringbus-test", kind, 1, control as u64, capacity, HugePages::Never).expect("an object").fd;
        if sealed {
            let all_write = matches!(kind, ObjectKind::MpscRing | ObjectKind::SleepPage);
            let sharing = if all_write { Sharing::AllWrite } else { Sharing::OwnerWrites };
            memfd::seal(&fd, sharing).expect("it can be sealed");
        }
        fd
    }

    fn page(&mut self, sealed: bool) -> OwnedFd {
        self.object(ObjectKind::SubscriptionPage, size_of::<SubscriptionPage>(), 0, sealed)
    }

    fn sleep_page(&mut self, sealed: bool) -> OwnedFd {
        self.object(ObjectKind::SleepPage, size_of::<SleepPage>(), 0, sealed)
    }

    fn ring(&mut self, kind: Kind, sealed: bool) -> OwnedFd {
        match kind {
            Kind::Mpsc => self.object(ObjectKind::MpscRing, size_of::<MpscControl>(), CAPACITY, sealed),
            _ => self.object(ObjectKind::SingleRing, size_of::<SingleControl>(), CAPACITY, sealed),
        }
    }

    fn spoil(&mut self, mut fds: Fds) -> Fds {
        match self.random.below(6) {
            0 => drop(fds.pop()),
            1 => fds.clear(),
            2 => fds.push(self.wrong_object()),
            3 if !fds.is_empty() => {
                let index = self.random.below(fds.len() as u64) as usize;
                fds[index] = self.wrong_object();
            }
            4 => fds.reverse(),
            _ => {}
        }
        fds
    }

    /// Something that is no answer at all.
    fn noise(&mut self) {
        match self.random.below(4) {
            0 => self.send(&[], &vec![]),
            1 => self.send(&vec![1; MAX_MESSAGE + 1], &vec![]),
            2 => {
                let noise: Vec<u8> = (0..self.random.below(200)).map(|_| self.random.draw() as u8).collect();
                let fds = self.spoil(vec![]);
                self.send(&noise, &fds);
            }
            _ => {}
        }
    }

    /// `false` if the guest may not have understood it as an answer: then it is not to wait for one.
    fn add(&mut self, request: u32, publishes: bool, spec: Result<ChannelSpec, ringbus::channel::InvalidChannel>) -> bool {
        let mut spec = spec.expect("guests ask for what there can be");
        if self.once_in(6) {
            self.noise();
            return false;
        }
        let kind = spec.kind;
        let mut fds = Vec::new();
        if !publishes {
            fds.push(self.page(false));
        } else if kind == Kind::Broadcast {
            fds.push(self.sleep_page(false));
        }
        if publishes != (kind == Kind::Mpsc) {
            fds.push(self.ring(kind, false));
        }
        let (id, mut page_size, mut fitting) = (self.random.draw(), 4096, true);
        let mut number = request;
        match self.random.below(8) {
            0 => spec.capacity = self.number(),
            1 => page_size = self.number(),
            2 => spec.kind = self.pick(&KINDS),
            3 => spec.overflow = Overflow::Lossy,
            4 => fds = self.spoil(fds),
            5 => (number, fitting) = (self.random.draw() as u32, false),
            _ => {}
        }
        let publishes = if self.once_in(10) { !publishes } else { publishes };
        let event = match (publishes, self.once_in(20)) {
            (_, true) => Event::Refused { request: number, refusal: Refusal::Fraud("x".repeat(1000)) },
            (true, _) => Event::PublicationAdded { request: number, id, spec, page_size },
            (false, _) => Event::SubscriptionAdded { request: number, id, spec, page_size },
        };
        let bytes = socket::encode(&event);
        (0..=self.random.below(2)).for_each(|_| self.send(&bytes, &fds));
        fitting
    }

    fn list(&mut self, request: u32) -> bool {
        let spec = ChannelSpec::new("x".parse().expect("a name"), 0, &Default::default()).expect("a channel");
        let entry = Entry { spec, id: 1, publishes: true, pid: 1, uid: 1, links: u32::MAX };
        for _ in 0..self.random.below(50) {
            self.send(&socket::encode(&Event::Entry { request, entry: entry.clone() }), &vec![]);
        }
        let ends = self.once_in(2);
        if ends {
            self.send(&socket::encode(&Event::ListEnd { request }), &vec![]);
        }
        ends
    }

    /// Something about an object of the guest's.
    fn event(&mut self, object: u64) {
        let (_, bell) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a pair");
        let peer = Process { pid: self.random.draw() as u32, start_time: self.random.draw() };
        let mut link =
            Link { id: self.random.below(3), publication: object, subscription: object, slot: 0, line: 0, page_size: 4096, peer };
        match self.random.below(5) {
            0 => link.slot = self.number() as u32,
            1 => link.line = self.number() as u32,
            2 => link.page_size = self.number(),
            _ => {}
        }
        let kind = self.pick(&KINDS);
        let (event, fds) = match self.random.below(12) {
            0..=3 => (Event::PublisherLink { link }, vec![bell, self.page(true), self.ring(kind, true)]),
            4..=7 if kind == Kind::Broadcast => {
                (Event::SubscriberLink { link }, vec![bell, self.sleep_page(true), self.ring(kind, true)])
            }
            4..=7 => (Event::SubscriberLink { link }, vec![bell, self.ring(kind, true)]),
            8 => (Event::LinkEnded { object, link: self.random.below(3) }, vec![]),
            9 => (Event::LinkFailed { object, reason: "y".repeat(5000) }, vec![]),
            10 => (Event::Unknown { object }, vec![]),
            _ => (Event::Lost { object, refusal: Refusal::Fraud("z".to_owned()) }, vec![]),
        };
        let fds = if self.once_in(3) { self.spoil(fds) } else { fds };
        self.send(&socket::encode(&event), &fds);
    }
}

// ---- The client ----

/// Asks such a driver for all there is, so often. Says how often it got something. Arguments: how often, seed.
fn guest(mut role: Role) {
    // Also those of the conductor's thread.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(101);
    }));
    let (rounds, seed): (u64, u64) = (role.argument(0), role.argument(1));
    let mut random = Random::new(seed);
    let (mut had, mut longest) = (0u64, Duration::ZERO);
    let before = Holdings::own();
    for _ in 0..rounds {
        let began = Instant::now();
        let Ok(client) = Client::builder().address(role.address.clone()).connect() else { continue };
        let kind = KINDS[random.below(3) as usize];
        let channel = || client.channel("c").kind(kind).capacity(CAPACITY);
        let moment = || Some(Instant::now() + Duration::from_millis(1));
        match random.below(3) {
            0 => {
                if let Ok(mut publication) = channel().publication() {
                    had += 1;
                    let _ = publication.wait_connected(moment());
                    for length in [0, 1, 100, publication.max_payload()] {
                        let _ = publication.offer_until(0, &vec![7; length.min(1 << 20)], moment());
                    }
                }
            }
            1 => {
                if let Ok(mut subscription) = channel().subscription() {
                    had += 1;
                    let _ = subscription.wait(moment());
                    for _ in 0..3 {
                        let _ = subscription.recv_until(moment()).map(|message| std::hint::black_box(message.payload().len()));
                        let _ = subscription.next_event();
                    }
                }
            }
            _ => drop(client.list()),
        }
        drop(client);
        longest = longest.max(began.elapsed());
        assert!(longest < BOUND, "a round took {longest:?}");
    }
    before.wait_for_return();
    assert!(had > 0, "it was never given anything");
    role.say(format!("{rounds} rounds, {had} times something was had, the longest took {longest:?}"));
    role.hold();
}

#[test]
fn a_client_survives_a_hostile_driver() {
    let (seed, rounds) = (scaled("RINGBUS_TEST_SEED", now()), scaled("RINGBUS_TEST_PACKETS", 40_000) / 100);
    let directory = tempfile::tempdir().expect("a directory");
    let address = Address::Path(directory.path().join("driver.sock"));
    listen(&address, seed);
    let guests = [Party::start("guest", &address, &[&rounds, &seed]), Party::start("guest", &address, &[&rounds, &(seed + 1)])];
    for guest in guests {
        println!("seed {seed}: {}", guest.hear_within(20 * PATIENCE));
        guest.finish();
    }
    let answers = ANSWERS.load(Ordering::Relaxed);
    println!("{answers} packets from a hostile driver");
    assert!(answers > 2 * rounds, "it said little more than its greetings: {answers} packets");
}

/// Nobody should wait for a driver that does not answer in order to be rid of it.
#[test]
fn a_client_whose_driver_says_nothing_any_more_can_be_dropped() {
    let address = Address::Abstract(format!("ringbus-silent-{}", std::process::id()));
    let listener = new_socket(SocketFlags::empty()).expect("a socket");
    rustix::net::bind(&listener, &address.to_socket_address().expect("an address")).expect("it is free");
    rustix::net::listen(&listener, 0).expect("it listens");
    let welcome = {
        let listener = listener.try_clone().expect("an fd");
        std::thread::spawn(move || {
            let socket = rustix::net::accept(&listener).expect("a client");
            socket::send(&socket, &Greeting::own().to_bytes(), &[], SendFlags::empty()).expect("it listens");
            socket
        })
    };
    let clients = [(); 1].map(|()| Client::builder().address(address.clone()).connect().expect("a client"));
    // It reconnects, and waits for a greeting.
    drop(welcome.join().expect("a socket"));
    assert!(readable(&listener, PATIENCE), "it is back");
    // And where not even a place in the queue is left.
    let began = Instant::now();
    drop(clients);
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    let crowd: Vec<_> = std::iter::repeat_with(|| {
        let socket = new_socket(SocketFlags::NONBLOCK).expect("a socket");
        let connected = rustix::net::connect(&socket, &address.to_socket_address().expect("an address"));
        connected.is_ok().then_some(socket)
    })
    .take_while(Option::is_some)
    .collect();
    let error = Client::builder().address(address.clone()).connect().expect_err("nobody accepts it").to_string();
    assert!(error.contains("is it stopped?"), "{error}");
    drop(crowd);
}
