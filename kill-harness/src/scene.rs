//! A driver and survivors, among whom one victim after the other is killed or stopped; and what is looked at then.
//!
//! A victim takes the place of its predecessor on the same channel, and cannot begin its operation unless that works: so each is also the proof that the last one's place is free.

use std::time::Duration;

use clap::ValueEnum;
use media_driver::{Config, Driver};
use nix::unistd::Pid;
use ringbus::Address;
use testing::Holdings;

use crate::operation::{BEFORE, Kind, Operation, Place, Role, TWO_RINGS, play};
use crate::process;
use crate::survivor::{Command, Settle, Side, Survivor};
use crate::tracer::{Mark, Point, Reached, Trace, Victim};

/// What happens to a victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Blow {
    /// `SIGKILL`
    Kill,
    /// `SIGSTOP`, later `SIGCONT`
    Stop,
}

/// What came of one victim.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// From the kill until the last survivor had gone on and the driver had forgotten the victim.
    pub took: Duration,
    /// How many messages of the operation were delivered.
    pub delivered: u64,
    /// The instruction it was about to execute.
    pub address: Option<u64>,
    /// Whether it was the point that was wanted.
    pub reached: Reached,
}

/// See the module.
#[derive(Debug)]
pub struct Scene {
    operation: Operation,
    place: Place,
    // The survivors go before their driver.
    publishers: Vec<Survivor>,
    subscribers: Vec<Survivor>,
    driver: Child,
    table: (usize, u32),
    holdings: Vec<Holdings>,
    mappings: usize,
    resident: u64,
    /// The number under which the next victim sends.
    next: u32,
}

#[derive(Debug)]
struct Child(Pid);

impl Drop for Child {
    fn drop(&mut self) {
        process::end(self.0);
    }
}

/// Longer than this survivors must not take, even on a machine that others use. The 50 ms that the project wants are counted in `run`.
pub const LATE: Duration = testing::SOON;

/// What the rings and pages of a scene need many times over, and what a leak in each of some thousand victims exceeds.
const DRIVER_MEMORY: u64 = 16 << 20;
/// Victims before anybody's holdings count: heaps and tables have grown by then.
const WARM_UP: usize = 4;
/// KiB and mappings that the driver may grow by, however many victims there are.
const RESIDENT_GROWTH: u64 = 2048;
const MAPPINGS_GROWTH: usize = 8;

impl Scene {
    /// Sets it up.
    pub fn new(operation: Operation, kind: Kind) -> Result<Self, String> {
        static SCENES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let scene = SCENES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let address = Address::Abstract(format!("ringbus-kill-{}-{scene}", std::process::id()));
        let (publishers, subscribers) = match operation.role() {
            // On an mpsc channel another producer goes on; on a broadcast channel two get the same.
            Role::Publisher => (usize::from(kind == Kind::Mpsc), 1 + usize::from(kind.is_broadcast())),
            Role::Subscriber => (1 + usize::from(kind == Kind::Mpsc), usize::from(kind.is_broadcast())),
            Role::Bystander => (1, 1),
        };
        let place = Place { address: address.clone(), kind, publishers, subscribers };
        let (ready, own) = std::os::unix::net::UnixStream::pair().map_err(|error| error.to_string())?;
        let driver = Child(process::spawn(move || {
            let mut config = Config::new(address);
            config.memory_limit = DRIVER_MEMORY;
            let mut driver = Driver::new(&config).expect("a driver");
            drop((own, ready));
            driver.run().expect("the driver runs");
        }));
        let mut scene = Self {
            operation,
            place,
            publishers: Vec::new(),
            subscribers: Vec::new(),
            driver,
            table: (0, 0),
            holdings: Vec::new(),
            mappings: 0,
            resident: 0,
            next: 1000,
        };
        scene.populate(publishers, subscribers)?;
        Ok(scene)
    }

    fn populate(&mut self, publishers: usize, subscribers: usize) -> Result<(), String> {
        let address = &self.place.address;
        process::until("the driver's start", || {
            ringbus::control::socket::new_socket(rustix::net::SocketFlags::empty()).is_ok_and(|socket| {
                address.to_socket_address().is_ok_and(|address| rustix::net::connect(&socket, &address).is_ok())
            })
        })?;
        for number in 0..subscribers {
            self.subscribers.push(Survivor::start(&self.place, Side::Subscriber, 1 + number as u32)?);
        }
        for number in 0..publishers {
            self.publishers.push(Survivor::start(&self.place, Side::Publisher, 11 + number as u32)?);
        }
        for publisher in &mut self.publishers {
            publisher.ask(&Command::Connect(subscribers))?;
        }
        self.table = self.ask_table()?;
        let mut late = 0;
        for _ in 0..WARM_UP {
            let took = self.strike(Blow::Kill, &Trace::default(), Point::After(0), false)?.took;
            // What is slow once and not again is the doing of others, who use this machine, too.
            late += usize::from(took > LATE);
            if late > 1 {
                return Err(format!("the survivors went on only after {took:?}"));
            }
        }
        self.resident = process::resident(self.driver.0);
        self.mappings = process::mappings(self.driver.0);
        self.holdings = self.look();
        Ok(())
    }

    fn ask_table(&mut self) -> Result<(usize, u32), String> {
        let survivor = self.subscribers.first_mut().or(self.publishers.first_mut()).ok_or("nobody survives")?;
        Ok(survivor.ask(&Command::Table)?.table)
    }

    fn look(&self) -> Vec<Holdings> {
        let survivors = self.publishers.iter().chain(&self.subscribers).map(|survivor| survivor.pid);
        std::iter::once(self.driver.0).chain(survivors).map(process::holdings).collect()
    }

    /// Starts a victim and gets it, and the survivors, to where its operation begins.
    fn victim(&mut self) -> Result<(Victim, u32, u64), String> {
        let number = self.next;
        self.next += 1;
        let (operation, place) = (self.operation, self.place.clone());
        let mut victim = Victim::start(|| play(operation, &place, number))?;
        loop {
            match victim.run_to_mark()? {
                Mark::Prepare(step) => self.prepare(step, number)?,
                Mark::Begin(committed) => {
                    victim.lead(operation.thread())?;
                    return Ok((victim, number, committed));
                }
                Mark::End => return Err("the operation ends before it begins".to_owned()),
            }
        }
    }

    fn rival(&mut self) -> Result<Victim, String> {
        let (number, place) = (self.next, self.place.clone());
        self.next += 1;
        let mut rival = Victim::start(|| play(Operation::OfferShort, &place, number))?;
        rival.run_to_mark()?;
        rival.step_to_exchange()?;
        Ok(rival)
    }

    fn prepare(&mut self, step: u64, number: u32) -> Result<(), String> {
        if self.operation.role() == Role::Publisher {
            if self.operation.finds_sleepers() {
                let settle = self.settle(number, 0);
                self.subscribers.iter().for_each(|subscriber| subscriber.tell(&settle));
                return self.subscribers.iter().try_for_each(Survivor::wait_asleep);
            }
            return self.drain();
        }
        let all = self.place.subscribers + 1;
        for publisher in &mut self.publishers {
            match (step, self.operation) {
                (0, _) => {
                    publisher.ask(&Command::Connect(all))?;
                    publisher.ask(&Command::Offer(BEFORE))?;
                }
                (_, Operation::Poll) => _ = publisher.ask(&Command::Offer(BEFORE))?,
                (_, Operation::PollLost) => _ = publisher.ask(&Command::Offer(TWO_RINGS))?,
                (_, Operation::PollRoom) => _ = publisher.ask(&Command::Fill)?,
                _ => {}
            }
        }
        self.drain()?;
        if step == 1 && self.operation == Operation::PollRoom {
            // One of them sleeps until there is room. That it has sent is heard when all is over.
            let publisher = &self.publishers[0];
            publisher.tell(&Command::Offer(1));
            publisher.wait_asleep()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        self.subscribers.iter_mut().try_for_each(|subscriber| subscriber.ask(&Command::Drain).map(drop))
    }

    /// What ends the victim's sleep.
    fn wake(&mut self) -> Result<(), String> {
        match self.operation.role() {
            Role::Publisher if self.operation.sleeps() => self.drain(),
            Role::Subscriber if self.operation.sleeps() => self.publishers[0].ask(&Command::Offer(1)).map(drop),
            _ => Ok(()),
        }
    }

    /// What the survivors have to get to when the victim is gone.
    fn settle(&self, victim: u32, offer: u64) -> Command {
        let is_publisher = self.operation.role() == Role::Publisher;
        Command::Settle(Settle {
            victim,
            others: self.publishers.iter().map(|publisher| (publisher.number, publisher.sent + offer)).collect(),
            // A subscriber's. Those of a publisher are the subscribers.
            peers: self.place.publishers,
            table: self.table,
            offer,
            by_epoll: self.operation == Operation::WakeDoorbell && is_publisher,
        })
    }

    /// Leads a victim through its operation and writes down what it does.
    pub fn record(&mut self) -> Result<Trace, String> {
        let (mut victim, number, committed) = self.victim()?;
        let sleeps = self.operation.sleeps();
        let trace = victim.record(sleeps, &mut || self.wake())?;
        let killed = testing::now();
        victim.kill();
        let delivered = self.check(number, committed, killed)?.1;
        if delivered != self.operation.commits() {
            return Err(format!("it committed {} messages, and {delivered} were delivered", self.operation.commits()));
        }
        Ok(trace)
    }

    /// Kills or stops a victim at that point, and looks at all that is left.
    pub fn strike(&mut self, blow: Blow, trace: &Trace, point: Point, is_counted: bool) -> Result<Outcome, String> {
        let (mut victim, number, committed) = self.victim()?;
        // It stands between its intent and its claim; with an intent of its own at the same place, a claim has to be repaired that is not the first there.
        let rival = if self.operation == Operation::OfferRival { Some(self.rival()?) } else { None };
        let mut woken = false;
        let reached = victim.run_to(trace, point, &mut || {
            woken = true;
            self.wake()
        })?;
        let address = victim.address();
        let describe = |error: String| match address {
            Some(address) => format!("{error} [at {}]", crate::tracer::symbol(address)),
            None => error,
        };
        if self.operation.role() == Role::Publisher && !self.operation.finds_sleepers() && !self.operation.finds_full_ring() {
            // Behind what the victim has claimed, perhaps.
            self.publishers.iter_mut().try_for_each(|publisher| publisher.ask(&Command::Offer(1)).map(drop)).map_err(describe)?;
        }
        let struck = testing::now();
        drop(rival);
        match blow {
            Blow::Kill => victim.kill(),
            Blow::Stop => {
                victim.stop_for_real().map_err(describe)?;
                // The driver serves others while it stands, those aside who sleep themselves.
                if !self.operation.finds_sleepers() && self.operation != Operation::PollRoom {
                    self.ask_table().map_err(describe)?;
                }
                if !woken {
                    self.wake().map_err(describe)?;
                }
                victim.finish().map_err(describe)?;
            }
        }
        let (took, delivered) = self.check(number, committed, struck).map_err(describe)?;
        if blow == Blow::Stop && delivered != self.operation.commits() {
            let commits = self.operation.commits();
            return Err(describe(format!("it went on and committed {commits} messages, and {delivered} were delivered")));
        }
        if is_counted {
            self.check_holdings().map_err(describe)?;
        }
        Ok(Outcome { took, delivered, address, reached })
    }

    /// The survivors go on, get what was committed and no more, and forget the victim. How long that took, and how many messages of the operation came.
    fn check(&mut self, victim: u32, committed: u64, struck: u64) -> Result<(Duration, u64), String> {
        let role = self.operation.role();
        if self.operation == Operation::PollRoom {
            let done = self.publishers[0].hear()?;
            self.publishers[0].sent = done.messages;
        }
        let is_publisher = role == Role::Publisher;
        let finds_sleepers = self.operation.finds_sleepers();
        let offer = if is_publisher { 0 } else { TWO_RINGS };
        let settle = self.settle(victim, offer);
        if !finds_sleepers {
            self.subscribers.iter().for_each(|subscriber| subscriber.tell(&settle));
        }
        let mut last = 0;
        if let Command::Settle(settle) = settle
            && !is_publisher
        {
            let settle = Command::Settle(Settle { peers: self.place.subscribers, ..settle });
            self.publishers.iter().for_each(|publisher| publisher.tell(&settle));
            for publisher in &mut self.publishers {
                let done = publisher.hear()?;
                publisher.sent = done.messages;
                last = last.max(done.at);
            }
        }
        let mut counts = Vec::new();
        for subscriber in &mut self.subscribers {
            let done = subscriber.hear()?;
            last = last.max(done.at);
            counts.push(done.messages);
        }
        let took = Duration::from_nanos(last.saturating_sub(struck));
        if !is_publisher {
            return Ok((took, 0));
        }
        // The survivors that publish go on, too, and are heard.
        if self.place.publishers > 0 {
            for publisher in &mut self.publishers {
                publisher.ask(&Command::Offer(2))?;
            }
            let settle = self.settle(0, 0);
            for subscriber in &mut self.subscribers {
                last = last.max(subscriber.ask(&settle)?.at);
            }
        }
        let took = took.max(Duration::from_nanos(last.saturating_sub(struck)));
        if counts.iter().any(|&count| count != counts[0]) {
            return Err(format!("not all subscribers got the same: {counts:?}"));
        }
        let most = committed + self.operation.commits();
        if counts[0] < committed || counts[0] > most {
            return Err(format!("{} messages were delivered, of {committed} to {most} that were committed", counts[0]));
        }
        Ok((took, counts[0] - committed))
    }

    /// Nobody holds anything more than before.
    fn check_holdings(&self) -> Result<(), String> {
        let mut seen = Vec::new();
        let same = process::until("the return to what was held before", || {
            seen = self.look();
            seen == self.holdings
        });
        same.map_err(|error| format!("{error}: driver and survivors hold {seen:?} instead of {:?}", self.holdings))?;
        let mappings = process::mappings(self.driver.0);
        if mappings > self.mappings + MAPPINGS_GROWTH {
            return Err(format!("the driver has {mappings} mappings, after {} at first", self.mappings));
        }
        let resident = process::resident(self.driver.0);
        if resident > self.resident + RESIDENT_GROWTH {
            return Err(format!("the driver has grown from {} to {resident} KiB", self.resident));
        }
        Ok(())
    }
}
