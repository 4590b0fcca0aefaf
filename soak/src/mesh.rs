//! Who is in the mesh: channels, their places for publishers and subscribers, and everybody who was there since the last quiet moment.

use std::collections::VecDeque;
use std::path::PathBuf;

use ringbus::{Address, Kind, Overflow};
use testing::{Party, now};

use crate::census::waited_for_core;
use crate::ledger::{CLOSED, Ledger, STATE};
use crate::options::Options;

/// Which side a place is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It publishes.
    Publisher,
    /// It subscribes.
    Subscriber,
}

/// How a publication or subscription has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Not yet.
    None,
    /// It was told to close at this time (and has, when its ledger says so).
    Told(u64),
    /// It was killed at this time.
    Killed(u64),
}

/// Who was killed, as a surviving party sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// Nobody was.
    Nobody,
    /// Somebody it does not need.
    Other,
    /// Its only peer: it goes on when there is another one.
    Peer,
    /// The driver.
    Driver,
}

/// A publication or subscription, from its opening to its end.
#[derive(Debug)]
pub struct Incarnation {
    /// Its number.
    pub number: u32,
    /// Its side.
    pub side: Side,
    /// When it was told to open.
    pub told_at: u64,
    /// How it ended.
    pub end: End,
    /// What it did.
    pub ledger: Ledger,
    /// Its fault was reported.
    pub faulty: bool,
    /// Whose death its next progress is timed from.
    pub killed: Killed,
    /// Since when that is timed.
    pub marked_at: u64,
    /// What it had committed (publisher), and when that was looked at.
    pub before: (u64, u64),
}

impl Incarnation {
    /// When it was told to close or killed; far in the future before.
    pub fn ended_at(&self) -> u64 {
        match self.end {
            End::None => u64::MAX,
            End::Told(time) | End::Killed(time) => time,
        }
    }

    /// Whether it has closed in good order.
    pub fn is_closed(&self) -> bool {
        self.ledger.get(STATE) == CLOSED
    }

    /// Its name in reports.
    pub fn name(&self) -> String {
        let side = if self.side == Side::Publisher { 'P' } else { 'S' };
        format!("{side}{}", self.number)
    }
}

/// A place in a channel, and who has it.
#[derive(Debug)]
pub struct Place {
    /// Its side.
    pub side: Side,
    /// Whoever has it is never killed, so that leaks show.
    pub resident: bool,
    /// Who has it.
    pub party: Option<Party>,
    /// Its publication or subscription: index into the channel's.
    pub current: Option<usize>,
    /// When somebody comes, if nobody has it.
    pub refill_at: u64,
    /// When it is continued, if it is stopped.
    pub stopped_until: Option<u64>,
    /// What follows when it has closed.
    pub after_close: After,
    /// How long it has waited for a core so far.
    pub core: WaitForCore,
}

/// How long a process has waited for a core, when somebody looked last.
#[derive(Debug, Clone, Copy, Default)]
pub struct WaitForCore {
    pid: u32,
    waited: u64,
    looked_at: u64,
}

impl WaitForCore {
    /// Looks again. Says from when to when it was starved: a good part of that time it was ready to run and had no core, so that nobody can expect anything of it.
    pub fn look(&mut self, pid: u32) -> Option<(u64, u64)> {
        const STARVED: u64 = 200_000_000;
        let before = std::mem::replace(self, Self { pid, waited: waited_for_core(pid), looked_at: now() });
        let is_starved = before.pid == pid && self.waited.saturating_sub(before.waited) > STARVED;
        is_starved.then_some((before.looked_at, self.looked_at))
    }
}

/// What follows after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It stays closed.
    Nothing,
    /// It opens again.
    Reopen,
    /// The process ends.
    Quit,
}

/// A channel with all its parties.
#[derive(Debug)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// What happens when a ring is full.
    pub overflow: Overflow,
    /// Bytes of a ring.
    pub capacity: u64,
    /// Its places.
    pub places: Vec<Place>,
    /// All who were there in this epoch.
    pub incarnations: Vec<Incarnation>,
    /// What was done, and when.
    pub events: VecDeque<(u64, String)>,
    /// When somebody was stopped, from when to when.
    pub stops: Vec<(u64, u64)>,
    /// When somebody was starved. Not a stop: who is starved goes on slowly, and others have to, too.
    pub starved: Vec<(u64, u64)>,
}

impl Channel {
    /// One of each kind and number that is wanted.
    pub fn all(options: &Options) -> Vec<Self> {
        let kinds = [
            (Kind::Spsc, Overflow::Block, 1, 1),
            (Kind::Broadcast, Overflow::Block, options.publishers, options.subscribers),
            (Kind::Broadcast, Overflow::Lossy, options.publishers, options.subscribers),
            (Kind::Mpsc, Overflow::Block, options.publishers, 1),
        ];
        let mut channels = Vec::new();
        for ((kind, overflow, publishers, subscribers), &count) in kinds.into_iter().zip(&options.channels) {
            for number in 0..count {
                // One resident a channel: a publisher here, a subscriber there.
                let place = |side, resident| Place {
                    side,
                    resident,
                    party: None,
                    current: None,
                    refill_at: 0,
                    stopped_until: None,
                    after_close: After::Nothing,
                    core: WaitForCore::default(),
                };
                let publishers = (0..publishers).map(|index| place(Side::Publisher, index == 0 && number % 2 == 0));
                let subscribers = (0..subscribers).map(|index| place(Side::Subscriber, index == 0 && number % 2 == 1));
                channels.push(Self {
                    name: format!("soak/{kind}-{overflow}-{number}"),
                    kind,
                    overflow,
                    capacity: options.capacity << (number % 2 * 2),
                    places: publishers.chain(subscribers).collect(),
                    incarnations: Vec::new(),
                    events: VecDeque::new(),
                    stops: Vec::new(),
                    starved: Vec::new(),
                });
            }
        }
        channels
    }

    /// Whether it has one subscription at a time.
    pub fn has_one_subscriber(&self) -> bool {
        self.kind != Kind::Broadcast
    }

    /// When somebody was stopped or starved: nothing that takes its time can be expected then.
    pub fn slow_times(&self) -> impl Iterator<Item = &(u64, u64)> {
        self.stops.iter().chain(&self.starved)
    }

    /// Remembers what was done.
    pub fn note(&mut self, what: String) {
        if self.events.len() >= 60 {
            self.events.pop_front();
        }
        self.events.push_back((now(), what));
    }

    /// Those of one side.
    pub fn of(&self, side: Side) -> impl Iterator<Item = &Incarnation> {
        self.incarnations.iter().filter(move |incarnation| incarnation.side == side)
    }

    /// Whose place it is.
    pub fn current(&self, place: usize) -> Option<&Incarnation> {
        self.places[place].current.map(|index| &self.incarnations[index])
    }

    /// Starts a process in an empty place.
    pub fn start(&mut self, place: usize, address: &Address, options: &Options, seed: u64) {
        let role = if self.places[place].side == Side::Publisher { "publisher" } else { "subscriber" };
        let pause = options.pause().as_millis();
        let arguments: [&dyn std::fmt::Display; 8] =
            [&self.name, &self.kind, &self.overflow, &self.capacity, &options.longest, &options.burst, &seed, &pause];
        let party = Party::start(role, address, &arguments);
        self.note(format!("start of a {role} in place {place}: process {}", party.pid()));
        self.places[place].party = Some(party);
    }

    /// Tells the process in that place to open a publication or subscription.
    pub fn open(&mut self, place: usize, number: u32, path: PathBuf) {
        let ledger = Ledger::map(&path);
        let side = self.places[place].side;
        let incarnation = Incarnation {
            number,
            side,
            told_at: now(),
            end: End::None,
            ledger,
            faulty: false,
            killed: Killed::Other,
            marked_at: 0,
            before: (0, now()),
        };
        self.note(format!("open {} in place {place}", incarnation.name()));
        self.incarnations.push(incarnation);
        self.places[place].current = Some(self.incarnations.len() - 1);
        self.places[place].after_close = After::Nothing;
        if let Some(party) = &mut self.places[place].party {
            party.tell(format!("open {number} {}", path.display()));
        }
    }

    /// Tells it to close.
    pub fn close(&mut self, place: usize, after: After) {
        let Some(index) = self.places[place].current else { return };
        if self.incarnations[index].end == End::None {
            self.incarnations[index].end = End::Told(now());
            let name = self.incarnations[index].name();
            self.note(format!("close {name}, then {after:?}"));
            if let Some(party) = &mut self.places[place].party {
                party.tell("close");
            }
        }
        self.places[place].after_close = after;
    }

    /// Kills whoever is there; somebody else comes at that time.
    pub fn kill(&mut self, place: usize, refill_at: u64) {
        let Some(mut party) = self.places[place].party.take() else { return };
        let current = self.places[place].current.take();
        let (mut name, time) = ("nobody yet".to_owned(), now());
        party.kill();
        if let Some(index) = current {
            let incarnation = &mut self.incarnations[index];
            name = incarnation.name();
            // One that was told to close may have done so from then on, or not.
            incarnation.end = match incarnation.end {
                End::None => End::Killed(time),
                End::Told(time) if !incarnation.is_closed() => End::Killed(time),
                end => end,
            };
        }
        self.note(format!("kill {name} in place {place}, process {}", party.pid()));
        self.unstop(place);
        self.places[place].refill_at = refill_at;
    }

    /// Stops it for a while.
    pub fn stop(&mut self, place: usize, until: u64) {
        let name = self.current(place).map_or(String::new(), Incarnation::name);
        let Some(party) = &self.places[place].party else { return };
        let from = now();
        party.stop();
        self.stops.push((from, u64::MAX));
        self.places[place].stopped_until = Some(until);
        self.note(format!("stop {name} in place {place} for {} ms", (until - from) / 1_000_000));
    }

    /// Continues it.
    pub fn go_on(&mut self, place: usize) {
        if let Some(party) = self.places[place].party.as_ref().filter(|_| self.places[place].stopped_until.is_some()) {
            party.go_on();
        }
        let name = self.current(place).map_or(String::new(), Incarnation::name);
        self.note(format!("continue {name} in place {place}"));
        self.unstop(place);
    }

    fn unstop(&mut self, place: usize) {
        if self.places[place].stopped_until.take().is_none() {
            return;
        }
        let stopped = self.places.iter().any(|place| place.stopped_until.is_some());
        if !stopped {
            let time = now();
            self.stops.iter_mut().filter(|(_, to)| *to == u64::MAX).for_each(|(_, to)| *to = time);
        }
    }
}
