//! What publishers and subscribers have in common: a process that listens to the controller on one thread and works on another, so that it can be told to close
//! while it waits for a message or for room.
//!
//! The controller says `open NUMBER LEDGER`, `close` or `quit`; what happens is in the ledger.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringbus::control::message::Refusal;
use ringbus::{Client, Error, Idle, Kind, Overflow};
use testing::{Random, Role, now};

use crate::ledger::{CLOSED, Ledger, OBJECT, OPEN, OPENED_AT, STATE};
use crate::{publisher, subscriber};

/// The channel a party is on, and how it behaves.
#[derive(Debug, Clone)]
pub struct Work {
    /// The channel's name.
    pub channel: String,
    /// Its kind.
    pub kind: Kind,
    /// What happens when a ring is full.
    pub overflow: Overflow,
    /// Bytes of a ring.
    pub capacity: u64,
    /// Longest message.
    pub longest: u64,
    /// Messages of a burst, at most.
    pub burst: u64,
    /// Longest pause between bursts.
    pub pause: Duration,
    /// Whether it waits on its fd, as an event loop does.
    pub by_epoll: bool,
    /// How it waits otherwise.
    pub idle: Idle,
}

/// One publication or subscription, at work.
#[derive(Debug)]
pub struct Incarnation {
    /// Its number, which its messages carry.
    pub number: u32,
    /// Where it says what it did.
    pub ledger: Ledger,
    /// Set when it is to close.
    pub stop: AtomicBool,
}

impl Incarnation {
    /// Whether it is to close.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tries until it works. What fails for a while: the driver is away, or has not noticed yet that the predecessor is dead.
    pub fn open<T>(&self, id: impl Fn(&T) -> u64, attempt: impl Fn() -> Result<T, Error>) -> Option<T> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.is_stopping() {
            match attempt() {
                Ok(made) => {
                    self.ledger.set(OBJECT, id(&made));
                    self.ledger.set(OPENED_AT, now());
                    self.ledger.set(STATE, OPEN);
                    return Some(made);
                }
                Err(error) if is_passing(&error) && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => {
                    self.ledger.set_fault(&format!("cannot open: {error}"));
                    return None;
                }
            }
        }
        None
    }
}

fn is_passing(error: &Error) -> bool {
    use Error::{DriverAway, NoDriver, NotADriver, Refused};
    matches!(error, DriverAway { .. } | NoDriver { .. } | NotADriver { .. } | Refused(Refusal::Occupied { .. }))
}

/// How long a wait lasts before it looks whether it has been told to close, or has slept too long: 2 or 3 seconds.
pub fn patience(random: &mut Random) -> Duration {
    Duration::from_millis(2000 + random.below(1000))
}

/// Plays a publisher or a subscriber.
pub fn play(mut role: Role) {
    let mut random = Random::new(role.argument(6));
    let work = Work {
        channel: role.argument(0),
        kind: role.argument(1),
        overflow: role.argument(2),
        capacity: role.argument(3),
        longest: role.argument(4),
        burst: role.argument(5),
        pause: Duration::from_millis(role.argument(7)),
        by_epoll: random.below(3) == 0,
        idle: match random.below(4) {
            0 | 1 => Idle::Parking,
            2 => Idle::Adaptive,
            _ => Idle::BackOff { longest: Duration::from_millis(1) },
        },
    };
    let client = connect(&role);
    role.say("connected");
    let mut running: Option<(Arc<Incarnation>, JoinHandle<()>)> = None;
    loop {
        let said = role.hear();
        let mut words = said.split(' ');
        if let Some((incarnation, thread)) = running.take() {
            incarnation.stop.store(true, Ordering::Relaxed);
            thread.join().expect("panics are caught");
            incarnation.ledger.set(STATE, CLOSED);
        }
        match words.next() {
            Some("open") => {
                let number = words.next().and_then(|word| word.parse().ok()).expect("a number");
                let ledger = Ledger::map(Path::new(words.next().expect("a path")));
                let incarnation = Arc::new(Incarnation { number, ledger, stop: AtomicBool::new(false) });
                let (client, work, random) = (client.clone(), work.clone(), Random::new(random.draw()));
                let is_publisher = role.name == "publisher";
                let its_own = Arc::clone(&incarnation);
                let thread = std::thread::spawn(move || {
                    let run = if is_publisher { publisher::run } else { subscriber::run };
                    if catch_unwind(AssertUnwindSafe(|| run(&client, &work, &its_own, random))).is_err() {
                        its_own.ledger.set_fault("it panicked, see stderr");
                    }
                });
                running = Some((incarnation, thread));
            }
            Some("quit") => return,
            _ => {}
        }
    }
}

fn connect(role: &Role) -> Client {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Client::builder().address(role.address.clone()).connect() {
            Ok(client) => return client,
            Err(error) if is_passing(&error) && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("no client: {error}"),
        }
    }
}
