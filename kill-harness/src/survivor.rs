//! Those who live on: a publisher or a subscriber in a process of its own, which does what the harness tells it, and says what came of it.
//!
//! Messages are numbered per sender. A survivor refuses one that is damaged, out of order or there twice.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use ringbus::control::socket;
use ringbus::{Client, OfferError, PollError, Publication, Subscription};
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use testing::EventLoop;

use crate::message;
use crate::operation::Place;
use crate::process::{self, DATA_WAITS, PATIENCE};

/// What a survivor is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Say what the driver's table holds.
    Table,
    /// Publisher: wait for so many subscribers.
    Connect(usize),
    /// Publisher: send so many messages, waiting for room.
    Offer(u64),
    /// Publisher: send until there is no more room.
    Fill,
    /// Subscriber: read all there is.
    Drain,
    /// Read or send to the end, until nothing reminds of the victim. See [`Settle`].
    Settle(Settle),
}

/// What holds when a victim is forgotten.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settle {
    /// The number it sends under.
    pub victim: u32,
    /// How many messages of others have come altogether.
    pub others: Vec<(u32, u64)>,
    /// How many peers are left.
    pub peers: usize,
    /// How many publications and subscriptions the driver knows, and how many ends of links.
    pub table: (usize, u32),
    /// Publisher: send so many before.
    pub offer: u64,
    /// Subscriber: wait in an event loop, not in a call of ringbus.
    pub by_epoll: bool,
}

/// What a survivor says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Done {
    /// When, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// Subscriber: messages of the victim, the lost ones among them. Publisher: all messages it has sent.
    pub messages: u64,
    /// The driver's table, if asked for.
    pub table: (usize, u32),
}

/// The harness's side.
#[derive(Debug)]
pub struct Survivor {
    /// Its process.
    pub pid: Pid,
    /// The number it sends under.
    pub number: u32,
    /// How many messages it has sent.
    pub sent: u64,
    socket: OwnedFd,
    name: String,
}

/// Which end of a channel a survivor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Publisher,
    Subscriber,
}

impl Survivor {
    /// Starts one.
    pub fn start(place: &Place, side: Side, number: u32) -> Result<Self, String> {
        let (socket, own) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| format!("no socket pair: {errno}"))?;
        let place = place.clone();
        let pid = process::spawn(move || {
            let mut party = Party::new(&place, side, number);
            let mut alive = send(&own, &Ok::<_, String>(Done::default()));
            while alive && let Ok(Some(packet)) = socket::receive(&own, RecvFlags::empty()) {
                let Some(command) = packet.decode::<Command>() else { return };
                let result = catch_unwind(AssertUnwindSafe(|| party.obey(command)));
                alive = send(&own, &result.unwrap_or_else(|panic| Err(said(&*panic))));
            }
        });
        let mut survivor = Self { pid, number, sent: 0, socket, name: format!("{side:?} {number}") };
        survivor.hear()?;
        Ok(survivor)
    }

    /// Tells it something. What comes of it has to be heard.
    pub fn tell(&self, command: &Command) {
        // If it is gone, that is found out when it should say something.
        send(&self.socket, command);
    }

    /// What came of it.
    pub fn hear(&mut self) -> Result<Done, String> {
        // A little longer than it has itself, as it knows better what did not happen.
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(1);
        let name = &self.name;
        while !is_readable(&self.socket) {
            if Instant::now() >= deadline {
                return Err(format!("{name} says nothing"));
            }
        }
        let packet = socket::receive(&self.socket, RecvFlags::DONTWAIT).map_err(|error| format!("{name}: {error}"))?;
        let packet = packet.ok_or_else(|| format!("{name} is gone"))?;
        let result: Result<Done, String> = packet.decode().ok_or_else(|| format!("{name} talks nonsense"))?;
        result.map_err(|error| format!("{name}: {error}"))
    }

    /// Tells it something and waits for the result.
    pub fn ask(&mut self, command: &Command) -> Result<Done, String> {
        self.tell(command);
        let done = self.hear()?;
        if let Command::Offer(_) | Command::Fill = command {
            self.sent = done.messages;
        }
        Ok(done)
    }

    /// Waits until it sleeps for want of messages or room.
    pub fn wait_asleep(&self) -> Result<(), String> {
        // Told, it first runs; and a sleep on its command socket is no such sleep.
        process::until(&format!("the sleep of {}", self.name), || process::is_asleep(self.pid, self.pid, DATA_WAITS))
    }
}

impl Drop for Survivor {
    fn drop(&mut self) {
        process::end(self.pid);
    }
}

fn send(socket: &OwnedFd, message: &impl Serialize) -> bool {
    socket::send(socket, &socket::encode(message), &[], SendFlags::empty()).is_ok()
}

fn is_readable(socket: &OwnedFd) -> bool {
    let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
    poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// The survivor's own side.
struct Party {
    client: Client,
    number: u32,
    end: End,
}

/// What a subscriber still waits for.
enum Missing {
    Nothing,
    /// Its subscription will wake it.
    Told(String),
    /// The driver does not say it unasked.
    Untold(String),
}

enum End {
    Publisher { publication: Publication, sent: u64 },
    Subscriber { subscription: Subscription, next: BTreeMap<u32, u64>, lost: u64 },
}

impl Party {
    fn new(place: &Place, side: Side, number: u32) -> Self {
        let client = place.client();
        let end = match side {
            Side::Publisher => End::Publisher { publication: place.publication(&client), sent: 0 },
            Side::Subscriber => End::Subscriber { subscription: place.subscription(&client), next: BTreeMap::new(), lost: 0 },
        };
        Self { client, number, end }
    }

    fn obey(&mut self, command: Command) -> Result<Done, String> {
        let number = self.number;
        let mut table = (0, 0);
        match (command, &mut self.end) {
            (Command::Table, _) => table = self.table()?,
            (Command::Connect(wanted), End::Publisher { publication, .. }) => {
                publication.wait_for_subscribers(wanted, deadline()).map_err(|error| error.to_string())?;
            }
            (Command::Offer(count), End::Publisher { publication, sent }) => offer(publication, number, sent, count)?,
            (Command::Fill, End::Publisher { publication, sent }) => {
                while publication.offer(&message::make(number, *sent)).is_ok() {
                    *sent += 1;
                }
            }
            (Command::Drain, End::Subscriber { .. }) => self.drain()?,
            (Command::Settle(settle), End::Subscriber { .. }) => return self.settle_subscriber(&settle),
            (Command::Settle(settle), End::Publisher { .. }) => return self.settle_publisher(&settle),
            (command, _) => return Err(format!("cannot {command:?}")),
        }
        let messages = if let End::Publisher { sent, .. } = &self.end { *sent } else { 0 };
        Ok(Done { at: testing::now(), messages, table })
    }

    fn table(&self) -> Result<(usize, u32), String> {
        let entries = self.client.list().map_err(|error| error.to_string())?;
        Ok((entries.len(), entries.iter().map(|entry| entry.links).sum()))
    }

    /// Reads all there is, and sees to images that came and went.
    fn drain(&mut self) -> Result<(), String> {
        let End::Subscriber { subscription, next, lost } = &mut self.end else { return Ok(()) };
        loop {
            while subscription.next_event().is_some() {}
            let mut wrong = None;
            let polled = subscription.poll(
                |message| {
                    let (sender, sequence) = testing::check(message.payload());
                    let expected = next.entry(sender).or_default();
                    // A lossy channel has said how many are missing; they are the victim's, as nobody else sends there.
                    *expected += std::mem::take(lost);
                    if sequence != *expected {
                        wrong = Some(format!("message {sequence} of sender {sender} came where {expected} was to come"));
                    }
                    *expected = sequence + 1;
                },
                1000,
            );
            if let Some(wrong) = wrong {
                return Err(wrong);
            }
            match polled {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(PollError::Lost { messages, .. }) => *lost += messages,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn settle_subscriber(&mut self, settle: &Settle) -> Result<Done, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let missing = self.missing(settle)?;
            let End::Subscriber { subscription, next, lost } = &mut self.end else { return Err("no subscriber".into()) };
            let until = match missing {
                Missing::Nothing => {
                    let messages = next.remove(&settle.victim).unwrap_or(0) + std::mem::take(lost);
                    return Ok(Done { at: testing::now(), messages, table: settle.table });
                }
                Missing::Told(what) | Missing::Untold(what) if Instant::now() >= deadline => return Err(what),
                Missing::Told(_) => deadline,
                Missing::Untold(_) => Instant::now() + Duration::from_micros(200),
            };
            let left = until.saturating_duration_since(Instant::now());
            if settle.by_epoll {
                EventLoop::around(&*subscription, EventFlags::IN).turn(left);
            } else {
                subscription.wait(Some(until));
            }
        }
    }

    /// What there still is of the victim, or is not yet of others.
    fn missing(&mut self, settle: &Settle) -> Result<Missing, String> {
        let table = self.table()?;
        // Only now: of what the driver had to say before the table, the conductor knows.
        self.drain()?;
        let End::Subscriber { subscription, next, .. } = &mut self.end else { return Err("no subscriber".into()) };
        for (sender, wanted) in &settle.others {
            let got = next.get(sender).copied().unwrap_or(0);
            if got < *wanted {
                return Ok(Missing::Told(format!("of sender {sender} only {got} of {wanted} messages came")));
            }
        }
        let images = subscription.images().len();
        if images != settle.peers {
            return Ok(Missing::Told(format!("there are {images} images, not {}", settle.peers)));
        }
        if table != settle.table {
            let what = format!("the driver's table has {table:?} entries and links, not {:?}", settle.table);
            return Ok(Missing::Untold(what));
        }
        Ok(Missing::Nothing)
    }

    fn settle_publisher(&mut self, settle: &Settle) -> Result<Done, String> {
        let End::Publisher { publication, sent } = &mut self.end else { return Err("no publisher".into()) };
        offer(publication, self.number, sent, settle.offer)?;
        let messages = *sent;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let End::Publisher { publication, .. } = &mut self.end else { return Err("no publisher".into()) };
            let peers = publication.subscribers();
            let table = self.table()?;
            if peers == settle.peers && table == settle.table {
                return Ok(Done { at: testing::now(), messages, table });
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "{peers} subscribers instead of {}, table {table:?} instead of {:?}",
                    settle.peers, settle.table
                ));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn deadline() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

/// That nobody is there is as good as room.
fn offer(publication: &mut Publication, number: u32, sent: &mut u64, count: u64) -> Result<(), String> {
    for _ in 0..count {
        match publication.offer_until(0, &message::make(number, *sent), deadline()) {
            Ok(_) => *sent += 1,
            Err(OfferError::NotConnected) => {}
            Err(error) => return Err(format!("message {sent}: {error}")),
        }
    }
    Ok(())
}
