//! The operations: what the victim does in each, and what the survivors have to do so that it gets there.

use std::fmt;
use std::os::fd::AsFd;
use std::time::Instant;

use clap::ValueEnum;
use ringbus::{
    Address, ChannelBuilder, Client, Idle, ImageEvent, OfferError, Overflow, PollError, Publication, Ready, Subscription,
};
use rustix::event::epoll::EventFlags;
use testing::EventLoop;

use crate::message;
use crate::process::PATIENCE;
use crate::tracer::{Mark, Thread, mark};

/// Kinds of channel, a lossy one among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Spsc,
    Broadcast,
    Lossy,
    Mpsc,
}

/// What the victim does between its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Offers a message; nobody sleeps
    Offer,
    /// Offers a short message
    OfferShort,
    /// Offers a message in a place where another producer is about to claim, and that one dies as well
    OfferRival,
    /// Offers a message gathered from three slices
    Gather,
    /// Claims, writes and commits
    ClaimCommit,
    /// Claims, writes and drops the claim
    ClaimAbort,
    /// Offers two messages in a batch
    Batch,
    /// Offers a message that crosses the end of the ring
    OfferWrap,
    /// Offers a message for which there is no room
    OfferFull,
    /// Offers a message for which old ones have to be overwritten
    OfferAnnounce,
    /// Offers a message to subscribers asleep on futexes
    WakeFutex,
    /// Offers a message to subscribers asleep in event loops
    WakeDoorbell,
    /// Waits for room on futexes, is woken, and sends
    RoomFutex,
    /// Waits for room in an event loop, is woken, and sends
    RoomDoorbell,
    /// Polls several messages
    Poll,
    /// Polls messages of which some were overwritten
    PollLost,
    /// Polls and makes room for a publisher who sleeps
    PollRoom,
    /// Waits for a message on futexes, is woken, and takes it
    SleepFutex,
    /// Waits for a message in an event loop, is woken, and takes it
    SleepDoorbell,
    /// Makes a publication and waits for its subscribers
    Publish,
    /// The same in the conductor
    PublishConductor,
    /// Makes a subscription and takes its images over
    Subscribe,
    /// The same in the conductor
    SubscribeConductor,
    /// Drops a publication
    ClosePublication,
    /// Drops a subscription
    CloseSubscription,
    /// Connects to the driver
    Connect,
    /// The same in the conductor, from its first instruction
    ConnectConductor,
    /// Drops a client
    CloseClient,
    /// The same in the conductor, to its last instruction
    CloseClientConductor,
}

/// What the victim is to the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Publisher,
    Subscriber,
    /// It only has a client.
    Bystander,
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&name(self))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&name(self))
    }
}

impl Kind {
    fn of_channel(self) -> ringbus::Kind {
        match self {
            Self::Spsc => ringbus::Kind::Spsc,
            Self::Broadcast | Self::Lossy => ringbus::Kind::Broadcast,
            Self::Mpsc => ringbus::Kind::Mpsc,
        }
    }

    /// Whether there can be several subscribers.
    pub fn is_broadcast(self) -> bool {
        matches!(self, Self::Broadcast | Self::Lossy)
    }
}

impl Operation {
    /// The kinds of channel where it is something of its own.
    pub fn kinds(self) -> &'static [Kind] {
        use Kind::{Broadcast, Lossy, Mpsc, Spsc};
        match self {
            Self::Offer | Self::Gather | Self::ClaimCommit | Self::ClaimAbort | Self::Batch | Self::Poll => {
                &[Spsc, Broadcast, Lossy, Mpsc]
            }
            Self::OfferAnnounce | Self::PollLost => &[Lossy],
            Self::OfferShort | Self::OfferRival => &[Mpsc],
            Self::Connect | Self::ConnectConductor | Self::CloseClient | Self::CloseClientConductor => &[Broadcast],
            _ => &[Spsc, Broadcast, Mpsc],
        }
    }

    /// What the victim is to the channel.
    pub fn role(self) -> Role {
        match self {
            Self::Poll
            | Self::PollLost
            | Self::PollRoom
            | Self::SleepFutex
            | Self::SleepDoorbell
            | Self::Subscribe
            | Self::SubscribeConductor
            | Self::CloseSubscription => Role::Subscriber,
            Self::Connect | Self::ConnectConductor | Self::CloseClient | Self::CloseClientConductor => Role::Bystander,
            _ => Role::Publisher,
        }
    }

    /// Which thread of the victim is led.
    pub fn thread(self) -> Thread {
        match self {
            Self::PublishConductor | Self::SubscribeConductor | Self::CloseClientConductor => Thread::Conductor,
            Self::ConnectConductor => Thread::NewConductor,
            _ => Thread::Caller,
        }
    }

    /// How many messages it commits when it gets to its end.
    pub fn commits(self) -> u64 {
        match self {
            Self::Batch => 2,
            Self::Offer
            | Self::OfferShort
            | Self::OfferRival
            | Self::Gather
            | Self::ClaimCommit
            | Self::OfferWrap
            | Self::OfferAnnounce
            | Self::WakeFutex
            | Self::WakeDoorbell
            | Self::RoomFutex
            | Self::RoomDoorbell => 1,
            _ => 0,
        }
    }

    /// Whether it sleeps until survivors do something.
    pub fn sleeps(self) -> bool {
        matches!(self, Self::RoomFutex | Self::RoomDoorbell | Self::SleepFutex | Self::SleepDoorbell)
    }

    /// Whether the survivors sleep when it begins.
    pub fn finds_sleepers(self) -> bool {
        matches!(self, Self::WakeFutex | Self::WakeDoorbell)
    }

    /// Whether the ring is full when it begins.
    pub fn finds_full_ring(self) -> bool {
        matches!(self, Self::OfferFull | Self::RoomFutex | Self::RoomDoorbell)
    }
}

/// Where it happens: which driver, which channel.
#[derive(Debug, Clone)]
pub struct Place {
    pub address: Address,
    pub kind: Kind,
    /// Publishers and subscribers that are there besides the victim.
    pub publishers: usize,
    pub subscribers: usize,
}

const CAPACITY: u64 = 4096;

/// As many messages as two rings hold.
pub const TWO_RINGS: u64 = 2 * CAPACITY / message::FRAME;

fn deadline() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

impl Place {
    /// A client of the driver.
    pub fn client(&self) -> Client {
        Client::builder().address(self.address.clone()).connect().expect("a client")
    }

    fn channel<'a>(&self, client: &'a Client) -> ChannelBuilder<'a> {
        let overflow = if self.kind == Kind::Lossy { Overflow::Lossy } else { Overflow::Block };
        // Parking: who waits sleeps at once.
        client.channel("channel").kind(self.kind.of_channel()).overflow(overflow).capacity(CAPACITY).idle(Idle::Parking)
    }

    /// A publication on the channel.
    pub fn publication(&self, client: &Client) -> Publication {
        self.channel(client).publication().expect("a publication")
    }

    /// A subscription on the channel.
    pub fn subscription(&self, client: &Client) -> Subscription {
        self.channel(client).subscription().expect("a subscription")
    }
}

/// How many messages a victim has sent or got before its operation.
pub const BEFORE: u64 = 3;

/// The victim's code. It sends under `number`.
pub fn play(operation: Operation, place: &Place, number: u32) {
    match operation {
        Operation::Connect | Operation::ConnectConductor => {
            mark(Mark::Begin(0));
            let client = place.client();
            mark(Mark::End);
            drop(client);
        }
        Operation::CloseClient | Operation::CloseClientConductor => {
            let client = place.client();
            mark(Mark::Begin(0));
            drop(client);
            mark(Mark::End);
        }
        Operation::Publish | Operation::PublishConductor => {
            let client = place.client();
            mark(Mark::Begin(0));
            let mut publication = place.publication(&client);
            let connected = publication.wait_for_subscribers(place.subscribers, deadline());
            mark(Mark::End);
            assert_eq!(connected, Ok(true), "the new publication meets its subscribers");
        }
        Operation::Subscribe | Operation::SubscribeConductor => {
            let client = place.client();
            mark(Mark::Begin(0));
            let mut subscription = place.subscription(&client);
            let met = meet(&mut subscription, place.publishers);
            mark(Mark::End);
            assert!(met, "the new subscription meets its publishers");
        }
        _ if operation.role() == Role::Publisher => publish(operation, place, number),
        _ => subscribe(operation, place),
    }
}

/// Waits for so many images, and looks for messages in them.
fn meet(subscription: &mut Subscription, images: usize) -> bool {
    let mut met = 0;
    while met < images {
        if let Some(ImageEvent::Available(_)) = subscription.next_event() {
            met += 1;
        } else if subscription.wait(deadline()) == Ready::TimedOut {
            return false;
        }
    }
    subscription.poll(|_| {}, 1) == Ok(0)
}

fn publish(operation: Operation, place: &Place, number: u32) {
    let client = place.client();
    let mut publication = place.publication(&client);
    let connected = publication.wait_for_subscribers(place.subscribers, deadline());
    assert_eq!(connected, Ok(true), "the publication meets its subscribers");
    let mut sent = 0;
    let mut send = |publication: &mut Publication| {
        publication.offer(&message::make(number, sent)).map(|_| {
            sent += 1;
            sent
        })
    };
    for _ in 0..BEFORE {
        send(&mut publication).expect("room");
    }
    let mut committed = BEFORE;
    match operation {
        Operation::OfferWrap => {
            while publication.position() % CAPACITY + message::FRAME <= CAPACITY {
                committed = send(&mut publication).expect("room");
                mark(Mark::Prepare(0));
            }
        }
        Operation::OfferAnnounce => {
            while publication.position() + message::FRAME + 8 <= CAPACITY {
                committed = send(&mut publication).expect("room");
            }
        }
        _ if operation.finds_full_ring() => {
            while let Ok(sent) = send(&mut publication) {
                committed = sent;
            }
        }
        _ if operation.finds_sleepers() => mark(Mark::Prepare(0)),
        _ => {}
    }
    let events = (operation == Operation::RoomDoorbell).then(|| EventLoop::around(&publication, EventFlags::IN));
    let (first, second) = (message::make(number, committed), message::make(number, committed + 1));
    let deadline = deadline();
    mark(Mark::Begin(committed));
    let good = match operation {
        Operation::Gather => publication.offer_gather(7, &[&first[..10], &first[10..50], &first[50..]]).is_ok(),
        Operation::ClaimCommit | Operation::ClaimAbort => match publication.try_claim(first.len()) {
            Ok(mut claim) => {
                claim.copy_from_slice(&first);
                if operation == Operation::ClaimCommit {
                    claim.commit();
                } else {
                    claim.abort();
                }
                true
            }
            Err(_) => false,
        },
        Operation::Batch => {
            let mut batch = publication.batch();
            batch.offer(&first).is_ok() && batch.offer(&second).is_ok()
        }
        Operation::OfferShort => publication.offer(&message::make_short(number, committed)).is_ok(),
        Operation::OfferFull => publication.offer(&first) == Err(OfferError::BackPressured),
        Operation::RoomFutex => publication.offer_until(0, &first, deadline).is_ok(),
        Operation::RoomDoorbell => loop {
            match publication.offer(&first) {
                Err(OfferError::BackPressured) => {
                    if !events.as_ref().is_some_and(|events| events.turn(PATIENCE)) {
                        break false;
                    }
                }
                result => break result.is_ok(),
            }
        },
        Operation::ClosePublication => {
            drop(publication);
            mark(Mark::End);
            return;
        }
        _ => publication.offer(&first).is_ok(),
    };
    mark(Mark::End);
    assert!(good, "{operation} does what it should");
}

/// What the victim gets: the messages of each publisher in order, from wherever it came in.
#[derive(Default)]
struct Received {
    next: std::collections::BTreeMap<u32, u64>,
    count: u64,
}

impl Received {
    fn enter(&mut self, bytes: &[u8], lost: u64) {
        let (sender, sequence) = testing::check(bytes);
        let next = self.next.entry(sender).or_insert(sequence);
        assert_eq!(sequence, *next + lost, "of sender {sender}");
        *next = sequence + 1;
        self.count += 1;
    }
}

fn subscribe(operation: Operation, place: &Place) {
    let client = place.client();
    let mut subscription = place.subscription(&client);
    assert!(meet(&mut subscription, place.publishers), "the subscription meets its publishers");
    mark(Mark::Prepare(0));
    let mut received = Received::default();
    for _ in 0..BEFORE * place.publishers as u64 {
        received.enter(subscription.recv_until(deadline()).expect("a message").payload(), 0);
    }
    let events = (operation == Operation::SleepDoorbell).then(|| {
        let events = EventLoop::around(&subscription, EventFlags::IN);
        assert_eq!(subscription.poll(|_| {}, 10), Ok(0));
        events
    });
    mark(Mark::Prepare(1));
    let mut payloads = Vec::with_capacity(100);
    let mut keep = |message: ringbus::Message<'_>| payloads.push(<[u8; 100]>::try_from(message.payload()));
    let deadline = deadline();
    mark(Mark::Begin(0));
    let mut lost = 0;
    let good = match operation {
        Operation::Poll => subscription.poll(keep, 100).is_ok(),
        Operation::PollRoom => subscription.poll(keep, 20).is_ok(),
        Operation::PollLost => match subscription.poll(&mut keep, 100) {
            Err(PollError::Lost { messages, .. }) => {
                lost = messages;
                // A few: each word is copied by a loop, which takes many instructions.
                subscription.poll(keep, 5).is_ok()
            }
            _ => false,
        },
        Operation::SleepFutex => subscription.recv_until(deadline).map(keep).is_ok(),
        Operation::SleepDoorbell => loop {
            match (subscription.next(), &events) {
                (Ok(Some(message)), _) => {
                    keep(message);
                    break true;
                }
                (Ok(None), Some(events)) if events.turn(PATIENCE) => {}
                _ => break false,
            }
        },
        _ => {
            drop(subscription);
            mark(Mark::End);
            return;
        }
    };
    mark(Mark::End);
    assert!(good, "{operation} does what it should");
    for payload in &payloads {
        received.enter(payload.as_ref().expect("a message of that length"), std::mem::take(&mut lost));
    }
    let wanted = match operation {
        Operation::PollRoom => 20,
        Operation::PollLost => 5,
        Operation::Poll => BEFORE * place.publishers as u64,
        _ => 1,
    };
    assert!(payloads.len() >= wanted as usize, "only {} messages came", payloads.len());
    let _ = subscription.as_fd();
}
