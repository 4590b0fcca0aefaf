//! A driver with a client that sends it anything: greetings, requests that are right but for one thing, bytes; with file descriptors of every kind, its own objects
//! among them. The driver may hang up, but neither die nor forget its other clients, one of whom is well-behaved and looked after now and then; and what the hostile one had is
//! given back when it goes.
#![no_main]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use media_driver::{Config, EmbeddedDriver};
use parking_lot::Mutex;
use ringbus::channel::ChannelName;
use ringbus::control::message::{Event, Greeting, Link, MAX_MESSAGE, Request};
use ringbus::control::process::Process;
use ringbus::control::socket;
use ringbus::{Access, Address, ChannelSpec, Client, Grant, HugePages, Kind, Overflow, Properties, Publication, Subscription};
use ringbus_fuzz::packets::Fd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// Whether it greets as it should.
    greets: bool,
    packets: Vec<Packet<'a>>,
    /// Whether it says goodbye.
    leaves: bool,
}

#[derive(Debug, Arbitrary)]
struct Packet<'a> {
    content: Content<'a>,
    fds: Vec<Attached>,
}

#[derive(Debug, Arbitrary)]
enum Attached {
    /// What the driver has sent us.
    Own(u8),
    Other(Fd),
}

#[derive(Debug, Arbitrary)]
enum Content<'a> {
    Bytes(&'a [u8]),
    Greeting {
        version: u32,
    },
    /// A request with one of its bytes changed.
    Bent {
        request: Asked<'a>,
        at: u8,
        by: u8,
    },
    Request(Asked<'a>),
    /// All that was asked is done; events are read.
    Sync,
}

#[derive(Debug, Arbitrary)]
enum Asked<'a> {
    AddPublication {
        channel: Channel,
    },
    AddSubscription {
        channel: Channel,
    },
    /// An object of ours, or not, with the objects it should have.
    Resume {
        object: Id,
        publishes: bool,
        channel: Channel,
        owner: bool,
    },
    ResumeLink {
        object: Id,
        link: Id,
        other: Id,
        publishes: bool,
        slot: u32,
        line: u32,
        alive: bool,
    },
    Ready {
        object: Id,
    },
    LinkReady {
        link: Id,
    },
    LinkFailed {
        link: Id,
        reason: &'a str,
    },
    LinkDone {
        link: Id,
    },
    Close {
        object: Id,
    },
    List {
        request: u32,
    },
    Goodbye,
}

#[derive(Debug, Arbitrary)]
enum Id {
    Known(u8),
    Any(u64),
}

#[derive(Debug, Arbitrary)]
struct Channel {
    name: u8,
    kind: Option<u8>,
    lossy: Option<bool>,
    capacity: Option<u8>,
    huge: Option<bool>,
    uids: Option<Vec<u32>>,
}

/// The driver and its well-behaved client.
struct World {
    driver: EmbeddedDriver,
    client: Client,
    pair: (Publication, Subscription),
}

const PATIENCE: Duration = Duration::from_secs(20);
const LIMIT: u64 = 64 << 20;

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| {
    let address = Address::Abstract(format!("ringbus-fuzz-driver-{}", std::process::id()));
    let driver = EmbeddedDriver::launch_with(&Config { memory_limit: LIMIT, ..Config::new(address) }).expect("a driver");
    let client = driver.connect().expect("a client");
    // Others may subscribe: so it must not wait for them.
    let channel = || client.channel("good").kind(Kind::Broadcast).overflow(Overflow::Lossy).capacity(4096);
    let pair = (channel().publication().expect("a publication"), channel().subscription().expect("a subscription"));
    Mutex::new(World { driver, client, pair })
});

static EXECUTIONS: AtomicU64 = AtomicU64::new(0);

fuzz_target!(|input: Input| {
    let mut world = WORLD.lock();
    let world = &mut *world;
    let mut hostile = Hostile::connect(world.driver.address());
    let went_on = (!input.greets || hostile.greet()) && input.packets.iter().all(|packet| hostile.send(packet));
    if went_on && input.leaves && input.greets && hostile.request(&Request::Goodbye) {
        hostile.sync();
    }
    drop(hostile);
    const EVERY: u64 = 64;
    if EXECUTIONS.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY) {
        world.look_after();
    }
});

impl World {
    /// The well-behaved client is served as ever, and nothing is left of others.
    fn look_after(&mut self) {
        let (publication, subscription) = &mut self.pair;
        assert_eq!(publication.wait_connected(Some(Instant::now() + PATIENCE)), Ok(true));
        publication.offer(b"still here").expect("a lossy channel takes all");
        while subscription.recv_until(Some(Instant::now() + PATIENCE)).expect("it comes").payload() != b"still here" {}
        while subscription.next_event().is_some() {}
        let deadline = Instant::now() + PATIENCE;
        while self.client.list().expect("the driver answers").len() != 2 {
            assert!(Instant::now() < deadline, "objects of clients that are gone are left");
            std::thread::yield_now();
        }
        let channel = || self.client.channel("fresh").kind(Kind::Mpsc).capacity(LIMIT / 2);
        let mut subscription = channel().subscription().expect("all memory was given back");
        let mut publication = channel().publication().expect("a publication");
        assert_eq!(publication.wait_connected(Some(Instant::now() + PATIENCE)), Ok(true));
        publication.offer(b"fresh").expect("there is room");
        assert_eq!(subscription.recv_until(Some(Instant::now() + PATIENCE)).expect("it comes").payload(), b"fresh");
    }
}

/// The client that sends anything.
struct Hostile {
    socket: OwnedFd,
    /// What it has heard of.
    ids: Vec<u64>,
    specs: Vec<(u64, ChannelSpec)>,
    fds: Vec<OwnedFd>,
    requests: u32,
}

impl Hostile {
    fn connect(address: &Address) -> Self {
        let socket = socket::new_socket(SocketFlags::empty()).expect("a socket");
        let address = address.to_socket_address().expect("an address");
        retry_on_intr(|| rustix::net::connect(&socket, &address)).expect("the driver listens");
        Self { socket, ids: Vec::new(), specs: Vec::new(), fds: Vec::new(), requests: 0 }
    }

    fn greet(&mut self) -> bool {
        self.packet(&Greeting::own().to_bytes(), &[]) && self.receive().is_some()
    }

    /// `false` once the driver has hung up.
    fn packet(&self, bytes: &[u8], fds: &[OwnedFd]) -> bool {
        const MOST: usize = 4;
        let fds: Vec<_> = fds.iter().take(MOST).map(AsFd::as_fd).collect();
        socket::send(&self.socket, bytes, &fds, SendFlags::empty()).is_ok()
    }

    fn request(&self, request: &Request) -> bool {
        self.packet(&socket::encode(request), &[])
    }

    /// The next packet; `None` once the driver has hung up.
    fn receive(&self) -> Option<socket::Packet> {
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        // libFuzzer's own clock interrupts.
        let ready = retry_on_intr(|| poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))).expect("poll");
        assert!(ready > 0, "the driver does not answer");
        socket::receive(&self.socket, RecvFlags::DONTWAIT).ok().flatten()
    }

    /// Reads events until the driver has answered all that it was asked.
    fn sync(&mut self) -> bool {
        self.requests += 1;
        let own = u32::MAX - self.requests;
        if !self.request(&Request::List { request: own }) {
            return false;
        }
        while let Some(mut packet) = self.receive() {
            // To a greeting that came late, or came twice.
            if Greeting::from_bytes(&packet.bytes).is_some() {
                continue;
            }
            let event = packet.decode::<Event>().expect("the driver sends events only");
            assert_eq!(socket::encode(&event), packet.bytes);
            const MOST: usize = 64;
            if self.fds.len() < MOST {
                self.fds.append(&mut packet.fds);
            }
            match event {
                Event::PublicationAdded { id, spec, .. } | Event::SubscriptionAdded { id, spec, .. } => {
                    self.ids.push(id);
                    self.specs.push((id, spec));
                }
                Event::SubscriberLink { link } | Event::PublisherLink { link } => {
                    self.ids.extend([link.id, link.publication, link.subscription]);
                }
                Event::Entry { entry, .. } => self.ids.push(entry.id),
                Event::ListEnd { request } if request == own => return true,
                Event::Refused { refusal, .. } | Event::Lost { refusal, .. } => assert!(!refusal.to_string().is_empty()),
                _ => {}
            }
        }
        false
    }

    /// `false` once the driver has hung up.
    fn send(&mut self, packet: &Packet<'_>) -> bool {
        let fds: Vec<OwnedFd> = packet.fds.iter().filter_map(|fd| self.attach(fd)).collect();
        match &packet.content {
            // A packet without a byte cannot be told from the end.
            Content::Bytes(bytes) => self.packet(&bytes[..bytes.len().min(2 * MAX_MESSAGE)], &fds),
            Content::Greeting { version } => self.packet(&Greeting { version: *version, pid: 1 }.to_bytes(), &fds),
            Content::Bent { request, at, by } => {
                let mut bytes = socket::encode(&self.asked(request).0);
                let at = usize::from(*at) % bytes.len();
                bytes[at] ^= by;
                self.packet(&bytes, &fds)
            }
            Content::Request(request) => {
                let (request, mut own) = self.asked(request);
                own.extend(fds);
                self.packet(&socket::encode(&request), &own)
            }
            Content::Sync => self.sync(),
        }
    }

    fn attach(&self, fd: &Attached) -> Option<OwnedFd> {
        match fd {
            Attached::Own(index) if self.fds.is_empty() => Fd::Memfd { pages: *index, seals: *index }.make().into(),
            Attached::Own(index) => self.fds[usize::from(*index) % self.fds.len()].try_clone().ok(),
            Attached::Other(fd) => Some(fd.make()),
        }
    }

    fn id(&self, id: &Id) -> u64 {
        match id {
            Id::Known(index) if !self.ids.is_empty() => self.ids[usize::from(*index) % self.ids.len()],
            Id::Known(index) => u64::from(*index),
            Id::Any(id) => *id,
        }
    }

    /// The request, and the fds that belong to it.
    fn asked(&mut self, asked: &Asked<'_>) -> (Request, Vec<OwnedFd>) {
        self.requests += 1;
        let request = self.requests;
        let request = match asked {
            Asked::AddPublication { channel } => {
                Request::AddPublication { request, name: channel.name(), properties: channel.properties() }
            }
            Asked::AddSubscription { channel } => {
                Request::AddSubscription { request, name: channel.name(), properties: channel.properties() }
            }
            Asked::Resume { object, publishes, channel, owner } => {
                let id = self.id(object);
                let known = self.specs.iter().find(|(other, _)| *other == id);
                let own = if *owner { 0 } else { 1 };
                let spec = known.map_or_else(|| channel.spec(own), |(_, spec)| spec.clone());
                return match publishes {
                    true => (Request::ResumePublication { id, spec }, Vec::new()),
                    false => (Request::ResumeSubscription { id, spec }, Vec::new()),
                };
            }
            Asked::ResumeLink { object, link, other, publishes, slot, line, alive } => {
                let (object, other) = (self.id(object), self.id(other));
                let (publication, subscription) = if *publishes { (object, other) } else { (other, object) };
                let pid = if *alive { std::process::id() } else { u32::MAX };
                let peer = Process::of(pid).unwrap_or(Process { pid, start_time: 1 });
                let id = self.id(link);
                let link = Link { id, publication, subscription, slot: *slot, line: *line, page_size: 4096, peer };
                Request::ResumeLink { object, link }
            }
            Asked::Ready { object } => Request::Ready { object: self.id(object) },
            Asked::LinkReady { link } => Request::LinkReady { link: self.id(link) },
            Asked::LinkFailed { link, reason } => {
                let reason = reason.chars().take(1000).collect();
                Request::LinkFailed { link: self.id(link), reason }
            }
            Asked::LinkDone { link } => Request::LinkDone { link: self.id(link) },
            Asked::Close { object } => Request::Close { object: self.id(object) },
            Asked::List { request } => Request::List { request: *request & 0xFFFF },
            Asked::Goodbye => Request::Goodbye,
        };
        let bytes = socket::encode(&request);
        assert_eq!(postcard::from_bytes::<Request>(&bytes).as_ref(), Ok(&request));
        (request, Vec::new())
    }
}

impl Channel {
    fn name(&self) -> ChannelName {
        ["a", "b", "c/d", "good"][usize::from(self.name) % 4].parse().expect("a good name")
    }

    fn properties(&self) -> Properties {
        let grant = self.uids.as_ref().map(|uids| Grant { uids: uids.iter().copied().take(300).collect(), gids: Vec::new() });
        Properties {
            kind: self.kind.map(|kind| [Kind::Spsc, Kind::Mpsc, Kind::Broadcast][usize::from(kind) % 3]),
            overflow: self.lossy.map(|lossy| if lossy { Overflow::Lossy } else { Overflow::Block }),
            capacity: self.capacity.map(|shift| 1u64.wrapping_shl(u32::from(shift) % 64).wrapping_add(u64::from(shift >> 7))),
            access: grant.map(|grant| Access { publish: grant.clone(), subscribe: grant }),
            huge_pages: self.huge.map(|huge| if huge { HugePages::Always } else { HugePages::IfAvailable }),
            prefault: None,
            lock: None,
        }
    }

    /// Sent as it is, whether there can be such a channel or not.
    fn spec(&self, owner: u32) -> ChannelSpec {
        let Properties { kind, overflow, capacity, access, huge_pages, .. } = self.properties();
        ChannelSpec {
            name: self.name(),
            kind: kind.unwrap_or_default(),
            overflow: overflow.unwrap_or_default(),
            capacity: capacity.unwrap_or(4096),
            owner,
            access: access.unwrap_or_default(),
            huge_pages: huge_pages.unwrap_or_default(),
            prefault: false,
            lock: false,
        }
    }
}
