//! A client whose driver says anything: answers that are right but for a number, a property or a file descriptor, links and ends of links that nobody asked for, bytes; and that
//! hangs up and comes back. The client may refuse, but not panic, and what it maps it reads without harm.
//!
//! The driver is a thread with a script: for each request, what to say before the answer, and how to answer. As a client's `list` comes back only when all that was said
//! before has been handled, nothing here waits for time to pass.
#![no_main]

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ringbus::channel::{ChannelName, ChannelSpec, InvalidChannel};
use ringbus::control::message::{Entry, Event, Greeting, Link, Refusal, Request};
use ringbus::control::process::Process;
use ringbus::control::socket;
use ringbus::memory::memfd::{self, HugePages, Sharing};
use ringbus::ring::frame;
use ringbus::ring::layout::{MpscControl, ObjectKind, SingleControl, SleepPage, SubscriptionPage};
use ringbus::{Access, Address, Client, Kind, Overflow, Properties, Publication, Subscription};
use ringbus_fuzz::packets::{Fd, socket_pair};
use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

#[derive(Debug, Arbitrary)]
struct Input {
    script: Vec<Reaction>,
    operations: Vec<Operation>,
}

/// What the driver does about a request.
#[derive(Debug, Default, Arbitrary)]
struct Reaction {
    first: Vec<Push>,
    answer: Answer,
}

#[derive(Debug, Default, Arbitrary)]
enum Answer {
    #[default]
    Right,
    /// The objects of that channel, said to be of these pages, with the fds changed.
    Bent {
        kind: Option<u8>,
        capacity: Option<Number>,
        page_size: Option<Number>,
        trick: Trick,
        other_side: bool,
        fits: bool,
    },
    Refused,
    /// An answer to another question.
    Odd,
    Bytes(Vec<u8>, Vec<Fd>),
    HangUp,
}

/// What is done to the fds of a packet.
#[derive(Debug, Clone, Default, Arbitrary)]
enum Trick {
    #[default]
    None,
    Missing,
    Swapped,
    Unsealed,
    Instead {
        at: u8,
        fd: Fd,
    },
    More(Fd),
    /// Of another size.
    Longer,
}

/// Something the driver says of its own accord.
#[derive(Debug, Arbitrary)]
enum Push {
    PublisherLink { object: u8, slot: u32, line: u32, page_size: Option<Number>, trick: Trick },
    SubscriberLink { object: u8, slot: u32, line: u32, page_size: Option<Number>, trick: Trick, headers: Vec<(u16, Word)> },
    LinkEnded { object: u8, link: u8 },
    LinkFailed { object: u8 },
    Unknown { object: u8 },
    Lost { object: u8 },
    Entry { request: u8 },
}

#[derive(Debug, Arbitrary)]
enum Word {
    Committed(u16),
    Any(u64),
}

/// A size as nobody should believe it.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Number {
    Zero,
    Shifted(u8),
    Any(u64),
    FromTheEnd(u16),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Shifted(shift) => 1 << (shift % 64),
            Self::Any(number) => number,
            Self::FromTheEnd(number) => u64::MAX - u64::from(number),
        }
    }
}

/// What the application does.
#[derive(Debug, Arbitrary)]
enum Operation {
    Publication { kind: u8, lossy: bool, capacity: u8 },
    Subscription { kind: u8, lossy: bool, capacity: u8 },
    List,
    Offer { which: u8, length: u16 },
    Claim { which: u8, length: u16, commit: bool },
    Poll { which: u8, limit: u8 },
    Event { which: u8 },
    Look { which: u8 },
    Wait { which: u8 },
    DropPublication,
    DropSubscription,
}

/// More would only be slow.
const MOST_OPERATIONS: usize = 32;
const MOST_ENDPOINTS: usize = 4;
const MOST_HANG_UPS: usize = 2;

static EXECUTIONS: AtomicU64 = AtomicU64::new(0);

fuzz_target!(|input: Input| {
    let number = EXECUTIONS.fetch_add(1, Ordering::Relaxed);
    let address = Address::Abstract(format!("ringbus-fuzz-client-{}-{number}", std::process::id()));
    let listener = socket::new_socket(SocketFlags::NONBLOCK).expect("a socket");
    rustix::net::bind(&listener, &address.to_socket_address().expect("an address")).expect("a free address");
    rustix::net::listen(&listener, 4).expect("a listener");
    let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    std::thread::scope(|scope| {
        let driver = Driver::new(listener, stop.as_fd(), input.script);
        let driver = scope.spawn(move || driver.run());
        let client = Client::builder().address(address).connect().expect("the greeting is right");
        run(&client, &input.operations);
        drop(client);
        rustix::io::write(&stop, &1u64.to_ne_bytes()).expect("room for one");
        driver.join().expect("the driver of the fuzzer");
    });
});

// ---- The application ----

fn run(client: &Client, operations: &[Operation]) {
    let mut publications: Vec<Publication> = Vec::new();
    let mut subscriptions: Vec<Subscription> = Vec::new();
    for operation in operations.iter().take(MOST_OPERATIONS) {
        match operation {
            Operation::Publication { kind, lossy, capacity } if publications.len() < MOST_ENDPOINTS => {
                match client.channel("a").properties(properties(*kind, *lossy, *capacity)).publication() {
                    Ok(publication) => publications.push(publication),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
            Operation::Subscription { kind, lossy, capacity } if subscriptions.len() < MOST_ENDPOINTS => {
                match client.channel("a").properties(properties(*kind, *lossy, *capacity)).subscription() {
                    Ok(subscription) => subscriptions.push(subscription),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
            Operation::Publication { .. } | Operation::Subscription { .. } | Operation::List => drop(client.list()),
            Operation::Offer { which, length } => {
                if let Some(publication) = pick(&mut publications, *which) {
                    let _ = publication.offer(&vec![7; usize::from(*length)]);
                }
            }
            Operation::Claim { which, length, commit } => {
                if let Some(publication) = pick(&mut publications, *which)
                    && let Ok(mut claim) = publication.try_claim(usize::from(*length))
                {
                    claim.fill(9);
                    if *commit {
                        claim.commit();
                    }
                }
            }
            Operation::Poll { which, limit } => {
                if let Some(subscription) = pick(&mut subscriptions, *which) {
                    let mut sum = 0u8;
                    let add = |message: ringbus::Message<'_>| sum = message.payload().iter().fold(sum, |sum, byte| sum ^ byte);
                    let _ = subscription.poll(add, usize::from(*limit));
                    std::hint::black_box(sum);
                }
            }
            Operation::Event { which } => {
                if let Some(subscription) = pick(&mut subscriptions, *which) {
                    let _ = subscription.next_event();
                }
            }
            Operation::Look { which } => {
                if let Some(subscription) = pick(&mut subscriptions, *which) {
                    for image in subscription.images() {
                        let _ = (subscription.lag(image.id), subscription.position(image.id));
                    }
                }
                if let Some(publication) = pick(&mut publications, *which) {
                    let _ = (publication.subscribers(), publication.position(), publication.max_payload());
                }
            }
            Operation::Wait { which } => {
                // At once: whatever there is to be noticed, it is noticed on the way to sleep.
                if let Some(subscription) = pick(&mut subscriptions, *which) {
                    let _ = subscription.wait(Some(std::time::Instant::now()));
                }
            }
            Operation::DropPublication => drop(publications.pop()),
            Operation::DropSubscription => drop(subscriptions.pop()),
        }
    }
}

fn pick<T>(all: &mut [T], which: u8) -> Option<&mut T> {
    let count = all.len().max(1);
    all.get_mut(usize::from(which) % count)
}

fn kind_of(kind: u8) -> Kind {
    [Kind::Spsc, Kind::Mpsc, Kind::Broadcast][usize::from(kind) % 3]
}

fn properties(kind: u8, lossy: bool, capacity: u8) -> Properties {
    let overflow = if lossy && kind_of(kind) != Kind::Mpsc { Overflow::Lossy } else { Overflow::Block };
    Properties {
        kind: Some(kind_of(kind)),
        overflow: Some(overflow),
        capacity: Some(4096 << (capacity % 3)),
        ..Properties::default()
    }
}

// ---- The driver ----

/// An object that the client has.
struct Object {
    id: u64,
    spec: ChannelSpec,
    fds: Vec<OwnedFd>,
    publishes: bool,
}

struct Driver<'a> {
    listener: OwnedFd,
    stop: std::os::fd::BorrowedFd<'a>,
    script: VecDeque<Reaction>,
    objects: Vec<Object>,
    links: Vec<u64>,
    next: u64,
    hang_ups: usize,
}

impl<'a> Driver<'a> {
    fn new(listener: OwnedFd, stop: std::os::fd::BorrowedFd<'a>, script: Vec<Reaction>) -> Self {
        Self { listener, stop, script: script.into(), objects: Vec::new(), links: Vec::new(), next: 1, hang_ups: 0 }
    }

    /// Serves connections until it is stopped.
    fn run(mut self) {
        while self.wait(&self.listener) {
            let Ok(connection) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) else { continue };
            let mut greeted = false;
            while self.wait(&connection) {
                let Ok(Some(packet)) = socket::receive(&connection, RecvFlags::DONTWAIT) else { break };
                let went_on = if greeted {
                    let request = packet.decode::<Request>().expect("a client sends requests");
                    assert_eq!(socket::encode(&request), packet.bytes);
                    self.react(&connection, request)
                } else {
                    greeted = true;
                    send(&connection, &Greeting::own().to_bytes(), &[])
                };
                if !went_on {
                    break;
                }
            }
        }
    }

    /// `false` if it is to stop.
    fn wait(&self, fd: &OwnedFd) -> bool {
        let mut fds = [PollFd::new(fd, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        // libFuzzer's own clock interrupts.
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).expect("poll");
        fds[1].revents().is_empty()
    }

    fn id(&mut self) -> u64 {
        self.next += 2;
        self.next
    }

    /// `false` to hang up.
    fn react(&mut self, connection: &OwnedFd, request: Request) -> bool {
        let Reaction { first, answer } = self.script.pop_front().unwrap_or_default();
        for push in first.iter().take(8) {
            let (event, fds) = self.push(push);
            if !send(connection, &socket::encode(&event), &fds) {
                return false;
            }
        }
        let answers = matches!(&request, Request::AddPublication { .. } | Request::AddSubscription { .. } | Request::List { .. });
        match (answer, request) {
            (Answer::HangUp, _) if self.hang_ups < MOST_HANG_UPS => {
                self.hang_ups += 1;
                false
            }
            (Answer::Bytes(bytes, fds), _) if self.hang_ups < MOST_HANG_UPS => {
                let fds: Vec<_> = fds.into_iter().map(Fd::make).collect();
                let sent = send(connection, &bytes[..bytes.len().min(20_000)], &fds);
                // Whoever waits for an answer may not have got one.
                self.hang_ups += usize::from(answers);
                sent && !answers
            }
            (Answer::Refused, Request::AddPublication { request, .. } | Request::AddSubscription { request, .. }) => {
                let refusal = Refusal::Invalid(InvalidChannel::LossyMpsc);
                send(connection, &socket::encode(&Event::Refused { request, refusal }), &[])
            }
            (Answer::Odd, Request::AddPublication { request, .. } | Request::AddSubscription { request, .. }) => {
                send(connection, &socket::encode(&Event::ListEnd { request }), &[])
            }
            (answer, Request::AddPublication { request, name, properties }) => {
                self.add(connection, request, name, &properties, true, &answer)
            }
            (answer, Request::AddSubscription { request, name, properties }) => {
                self.add(connection, request, name, &properties, false, &answer)
            }
            (_, Request::List { request }) => send(connection, &socket::encode(&Event::ListEnd { request }), &[]),
            (_, Request::Ready { object }) => {
                self.seal(object);
                true
            }
            (_, Request::Close { object }) => {
                self.objects.retain(|other| other.id != object);
                true
            }
            _ => true,
        }
    }

    fn add(
        &mut self,
        connection: &OwnedFd,
        request: u32,
        name: ChannelName,
        properties: &Properties,
        publishes: bool,
        answer: &Answer,
    ) -> bool {
        let mut spec = spec(name, properties);
        let id = self.id();
        let (mut said_page_size, mut trick, mut said_publishes) = (4096, Trick::None, publishes);
        let mut made = spec.clone();
        if let Answer::Bent { kind, capacity, page_size, trick: bent, other_side, fits } = answer {
            spec.kind = kind.map_or(spec.kind, kind_of);
            spec.capacity = capacity.map_or(spec.capacity, Number::value);
            // The object may be as it is said to be, if it can be.
            if *fits && spec.capacity <= 1 << 33 {
                made = spec.clone();
            }
            made.kind = spec.kind;
            said_page_size = page_size.map_or(said_page_size, Number::value);
            trick = bent.clone();
            said_publishes ^= other_side;
        }
        let fds = objects(&made, id, publishes);
        let fds = trick.apply(fds);
        let copies = fds.iter().filter_map(|fd| fd.try_clone().ok()).collect();
        self.objects.push(Object { id, spec: spec.clone(), fds: copies, publishes });
        let event = match said_publishes {
            true => Event::PublicationAdded { request, id, spec, page_size: said_page_size },
            false => Event::SubscriptionAdded { request, id, spec, page_size: said_page_size },
        };
        send(connection, &socket::encode(&event), &fds)
    }

    fn seal(&self, id: u64) {
        for object in self.objects.iter().filter(|object| object.id == id) {
            object.fds.iter().for_each(|fd| drop(memfd::seal(fd, sharing(fd))));
        }
    }

    fn object(&self, index: u8) -> Option<&Object> {
        self.objects.get(usize::from(index) % self.objects.len().max(1))
    }

    fn push(&mut self, push: &Push) -> (Event, Vec<OwnedFd>) {
        let id = |object: u8| self.object(object).map_or(u64::from(object), |object| object.id);
        let event = match push {
            Push::PublisherLink { object, slot, line, page_size, trick } => {
                return self.link(*object, true, (*slot, *line), *page_size, trick, &[]);
            }
            Push::SubscriberLink { object, slot, line, page_size, trick, headers } => {
                return self.link(*object, false, (*slot, *line), *page_size, trick, headers);
            }
            Push::LinkEnded { object, link } => {
                let known = self.links.get(usize::from(*link) % self.links.len().max(1));
                Event::LinkEnded { object: id(*object), link: known.copied().unwrap_or(1) }
            }
            Push::LinkFailed { object } => Event::LinkFailed { object: id(*object), reason: "a reason".to_owned() },
            Push::Unknown { object } => Event::Unknown { object: id(*object) },
            Push::Lost { object } => Event::Lost { object: id(*object), refusal: Refusal::Fraud("a reason".to_owned()) },
            Push::Entry { request } => {
                let spec = spec("a".parse().expect("a good name"), &Properties::default());
                let entry = Entry { spec, id: 1, publishes: true, pid: 1, uid: 1, links: 1 };
                Event::Entry { request: u32::from(*request), entry }
            }
        };
        (event, Vec::new())
    }

    /// A link of one of the client's objects to a peer that does not exist, but has all that a peer has.
    fn link(
        &mut self,
        object: u8,
        publishes: bool,
        (slot, line): (u32, u32),
        page_size: Option<Number>,
        trick: &Trick,
        headers: &[(u16, Word)],
    ) -> (Event, Vec<OwnedFd>) {
        let id = self.id();
        self.links.push(id);
        // Of the right side, if there is one.
        let right: Vec<&Object> = self.objects.iter().filter(|object| object.publishes == publishes).collect();
        let own = right.get(usize::from(object) % right.len().max(1)).copied();
        let own_id = own.map_or(u64::from(object), |own| own.id);
        let spec = own.map_or_else(|| spec("a".parse().expect("a good name"), &Properties::default()), |own| own.spec.clone());
        let mut fds = vec![socket_pair().0];
        if spec.capacity.is_power_of_two() && spec.capacity <= 1 << 20 {
            fds.extend(objects(&spec, id, !publishes));
        }
        if let ([_, .., ring], false, false) = (fds.as_slice(), publishes, spec.kind == Kind::Mpsc) {
            for (at, word) in headers {
                let word = match word {
                    Word::Committed(length) => frame::committed(u32::from(*length), 1, 0),
                    Word::Any(word) => *word,
                };
                let data = (size_of::<SingleControl>() as u64).next_multiple_of(4096);
                let _ = rustix::io::pwrite(ring, &word.to_ne_bytes(), data + u64::from(*at) * 8 % spec.capacity);
            }
            // The link has begun, so that the reader reads.
            let entry = 256 + u64::from(slot) % 4096 * 32;
            let _ = rustix::io::pwrite(ring, &id.to_ne_bytes(), entry);
        }
        if !matches!(trick, Trick::Unsealed) {
            fds.iter().skip(1).for_each(|fd| drop(memfd::seal(fd, sharing(fd))));
        }
        let (publication, subscription) = if publishes { (own_id, id) } else { (id, own_id) };
        let peer = Process { pid: std::process::id(), start_time: 1 };
        let link = Link { id, publication, subscription, slot, line, page_size: page_size.map_or(4096, Number::value), peer };
        let event = if publishes { Event::PublisherLink { link } } else { Event::SubscriberLink { link } };
        (event, trick.apply(fds))
    }
}

fn send(connection: &OwnedFd, bytes: &[u8], fds: &[OwnedFd]) -> bool {
    let fds: Vec<_> = fds.iter().take(4).map(AsFd::as_fd).collect();
    socket::send(connection, bytes, &fds, SendFlags::empty()).is_ok()
}

fn spec(name: ChannelName, properties: &Properties) -> ChannelSpec {
    ChannelSpec {
        name,
        kind: properties.kind.unwrap_or_default(),
        overflow: properties.overflow.unwrap_or_default(),
        capacity: properties.capacity.unwrap_or(4096),
        owner: rustix::process::geteuid().as_raw(),
        access: Access::default(),
        huge_pages: HugePages::Never,
        prefault: false,
        lock: false,
    }
}

/// How peers may use it, by what it says it is.
fn sharing(fd: &OwnedFd) -> Sharing {
    let mut kind = [0; 4];
    let _ = rustix::io::pread(fd, &mut kind, 12);
    let all_write = [ObjectKind::MpscRing as u32, ObjectKind::SleepPage as u32].contains(&u32::from_ne_bytes(kind));
    if all_write { Sharing::AllWrite } else { Sharing::OwnerWrites }
}

/// What a publication or a subscription of that channel owns, in the order in which it travels.
fn objects(spec: &ChannelSpec, id: u64, publishes: bool) -> Vec<OwnedFd> {
    let ring = |kind, control| memfd::create("ring", kind, id, control, spec.capacity, HugePages::Never);
    let ring = match (publishes, spec.kind) {
        (true, Kind::Spsc | Kind::Broadcast) => ring(ObjectKind::SingleRing, size_of::<SingleControl>() as u64).ok(),
        (false, Kind::Mpsc) => ring(ObjectKind::MpscRing, size_of::<MpscControl>() as u64).ok(),
        _ => None,
    };
    let page = |kind, size| memfd::create("page", kind, id, size, 0, HugePages::Never).ok();
    let page = match publishes {
        true if spec.has_sleep_page() => page(ObjectKind::SleepPage, size_of::<SleepPage>() as u64),
        true => None,
        false => page(ObjectKind::SubscriptionPage, size_of::<SubscriptionPage>() as u64),
    };
    page.into_iter().chain(ring).map(|created| created.fd).collect()
}

impl Trick {
    fn apply(&self, mut fds: Vec<OwnedFd>) -> Vec<OwnedFd> {
        match self {
            Self::None | Self::Unsealed => {}
            Self::Missing => drop(fds.pop()),
            Self::Swapped => fds.reverse(),
            Self::Instead { at, fd } => {
                let at = usize::from(*at) % fds.len().max(1);
                if let Some(place) = fds.get_mut(at) {
                    *place = fd.make();
                }
            }
            Self::More(fd) => fds.push(fd.make()),
            Self::Longer => {
                if let Some(last) = fds.last_mut() {
                    *last = Fd::Memfd { pages: 255, seals: 7 }.make();
                }
            }
        }
        fds
    }
}
