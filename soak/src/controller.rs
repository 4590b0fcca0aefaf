//! Does things to the mesh at random, watches that all go on, and once an epoch closes everything, verifies, and counts what is left.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ringbus::{Client, Overflow};
use testing::{DriverProcess, Holdings, PATIENCE, Party, Random, now, status_number};

use crate::census::{children, has_ended, shmem_kib};
use crate::figures::Figures;
use crate::ledger::{ANSWER, ATTEMPTED, COMMITTED, DELIVERED, LOST, MARK, OPEN, OPENED_AT, STATE, WAITS};
use crate::mesh::{After, Channel, End, Incarnation, Killed, Side, WaitForCore};
use crate::options::{Action, Options};
use crate::verify;

const MILLISECOND: u64 = 1_000_000;
/// How often the mesh is looked after.
const TICK: Duration = Duration::from_millis(10);
/// Memory that a resident or the driver may have more than in the first quiet moment: what allocators keep.
const RESIDENT_SLACK_KIB: u64 = 4096;
/// Shared memory that may come and go for other reasons.
const SHMEM_SLACK_KIB: u64 = 1024;

/// What is held when all is closed: the driver, this process, the residents.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    driver: Holdings,
    own: Holdings,
    residents: Vec<Holdings>,
}

/// The whole soak.
pub struct Controller {
    options: Options,
    seed: u64,
    random: Random,
    // Before the driver: parties go first.
    channels: Vec<Channel>,
    client: Client,
    driver: DriverProcess,
    driver_up_at: u64,
    driver_returns_at: Option<u64>,
    driver_continues_at: Option<u64>,
    /// From when to when it was dead, stopped or starved, in this epoch.
    driver_away: Vec<(u64, u64)>,
    driver_core: WaitForCore,
    directory: tempfile::TempDir,
    next_number: u32,
    figures: Figures,
    violations: u64,
    began: Instant,
    memory: Vec<Vec<u64>>,
}

impl Controller {
    /// Starts the driver.
    pub fn new(options: Options) -> Self {
        let seed = options.seed.unwrap_or_else(|| now() % 1_000_000_007);
        let driver = DriverProcess::launch();
        Self {
            seed,
            random: Random::new(seed),
            channels: Channel::all(&options),
            client: driver.connect(),
            driver,
            driver_up_at: now(),
            driver_returns_at: None,
            driver_continues_at: None,
            driver_away: Vec::new(),
            driver_core: WaitForCore::default(),
            directory: tempfile::Builder::new().prefix("ringbus-soak-").tempdir().expect("a directory"),
            next_number: 1,
            figures: Figures::new(),
            violations: 0,
            began: Instant::now(),
            memory: Vec::new(),
            options,
        }
    }

    /// Runs it all, and says whether all was well.
    pub fn run(mut self) -> ExitCode {
        println!("seed {} (repeat with --seed {}), ledgers in {}", self.seed, self.seed, self.directory.path().display());
        let places: usize = self.channels.iter().map(|channel| channel.places.len()).sum();
        println!("{} channels, {places} parties, {}", self.channels.len(), self.options.duration);
        self.start_residents();
        let shmem = shmem_kib();
        let baseline = self.held();
        println!("held when all is closed: {baseline:?}, Shmem {shmem} kB");
        let end = self.began + Duration::from(self.options.duration);
        while Instant::now() < end {
            let epoch_end = end.min(Instant::now() + Duration::from(self.options.epoch));
            self.open_all();
            self.disturb(epoch_end);
            self.quiet();
            self.verify();
            self.count_what_is_held(&baseline, shmem);
            let elapsed = humantime::format_duration(Duration::from_secs(self.began.elapsed().as_secs()));
            println!("{elapsed}: {}", self.figures.line());
        }
        self.finish(shmem)
    }

    fn violation(&mut self, channel: Option<usize>, what: &str) {
        self.violations += 1;
        let elapsed = self.began.elapsed().as_secs_f64();
        println!("VIOLATION at {elapsed:.3} s: {}: {what}", channel.map_or("", |index| &self.channels[index].name));
        let time = now();
        let ago = |then: u64| time.saturating_sub(then) as f64 / 1e9;
        // The first ones tell the most.
        if self.violations > 20 {
            return;
        }
        for (from, to) in &self.driver_away {
            println!("    driver away from {:.3} s ago to {:.3} s ago", ago(*from), ago(*to));
        }
        let Some(channel) = channel.map(|index| &self.channels[index]) else { return };
        for (then, event) in &channel.events {
            println!("    {:.3} s ago: {event}", ago(*then));
        }
        for incarnation in channel.incarnations.iter().rev().take(20) {
            let ledger = &incarnation.ledger;
            println!(
                "    {}: state {}, attempted {} / images, committed {} / delivered, {:?}",
                incarnation.name(),
                ledger.get(STATE),
                ledger.get(ATTEMPTED),
                ledger.get(COMMITTED),
                incarnation.end
            );
        }
    }

    // ---- Beginning and end of an epoch ----

    fn all_places(&self) -> Vec<(usize, usize)> {
        let of =
            |(index, channel): (usize, &Channel)| (0..channel.places.len()).map(move |place| (index, place)).collect::<Vec<_>>();
        self.channels.iter().enumerate().flat_map(of).collect()
    }

    fn start(&mut self, (channel, place): (usize, usize)) {
        let seed = self.random.draw();
        self.channels[channel].start(place, &self.driver.address, &self.options, seed);
    }

    fn open(&mut self, (channel, place): (usize, usize)) {
        let number = self.next_number;
        self.next_number += 1;
        let path: PathBuf = self.directory.path().join(number.to_string());
        self.channels[channel].open(place, number, path);
    }

    fn start_residents(&mut self) {
        for (channel, place) in self.all_places() {
            if self.channels[channel].places[place].resident {
                self.start((channel, place));
                self.channels[channel].places[place].party.as_ref().expect("just started").expect("connected");
            }
        }
    }

    fn open_all(&mut self) {
        for (channel, place) in self.all_places() {
            if self.channels[channel].places[place].party.is_none() {
                self.start((channel, place));
            }
            self.open((channel, place));
        }
    }

    /// Waits for a state of all channels, without disturbing them.
    fn settled(&mut self, what: &str, reached: impl Fn(&Channel) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let missing: Vec<usize> = (0..self.channels.len()).filter(|&index| !reached(&self.channels[index])).collect();
            if missing.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                return missing
                    .into_iter()
                    .for_each(|index| self.violation(Some(index), &format!("{what}: not in {PATIENCE:?}")));
            }
            std::thread::sleep(TICK);
        }
    }

    /// Closes everything: publishers first, so that subscribers get all there is.
    fn quiet(&mut self) {
        self.driver_continues_at = self.driver_continues_at.map(|_| 0);
        self.driver_returns_at = self.driver_returns_at.map(|_| 0);
        self.look_after_driver();
        for (channel, place) in self.all_places() {
            if self.channels[channel].places[place].stopped_until.is_some() {
                self.channels[channel].go_on(place);
            }
        }
        self.close_all(Side::Publisher);
        let ended = |channel: &Channel| {
            let mut open = channel.of(Side::Subscriber).filter(|subscriber| subscriber.end == End::None);
            open.all(|subscriber| verify::open_images(subscriber).is_empty())
        };
        self.settled("all images end", ended);
        self.close_all(Side::Subscriber);
        for (channel, place) in self.all_places() {
            let place = &mut self.channels[channel].places[place];
            place.current = None;
            if !place.resident
                && let Some(mut party) = place.party.take()
            {
                party.tell("quit");
                party.finish();
            }
        }
    }

    fn close_all(&mut self, side: Side) {
        for (channel, place) in self.all_places() {
            if self.channels[channel].places[place].side == side {
                self.channels[channel].close(place, After::Nothing);
            }
        }
        let closed = |channel: &Channel| {
            channel.of(side).all(|incarnation| !matches!(incarnation.end, End::Told(_)) || incarnation.is_closed())
        };
        self.settled(&format!("every {side:?} closes"), closed);
    }

    fn verify(&mut self) {
        self.look_for_starved();
        self.collect();
        for index in 0..self.channels.len() {
            let mut violations = Vec::new();
            let found = verify::verify(&self.channels[index], |what| violations.push(what));
            self.figures.pairs += found.pairs;
            self.figures.from_the_start += found.from_the_start;
            self.figures.in_doubt += found.in_doubt;
            for what in violations {
                self.violation(Some(index), &what);
            }
            self.check_late(index);
            let channel = &mut self.channels[index];
            for incarnation in &channel.incarnations {
                let ledger = &incarnation.ledger;
                if incarnation.side == Side::Publisher {
                    self.figures.sent += ledger.get(COMMITTED);
                    self.figures.waits += ledger.get(WAITS);
                } else {
                    self.figures.delivered += ledger.get(DELIVERED);
                    self.figures.lost += ledger.get(LOST);
                }
            }
            if self.violations == 0 {
                for incarnation in &channel.incarnations {
                    let _ = std::fs::remove_file(self.directory.path().join(incarnation.number.to_string()));
                }
            }
            channel.incarnations.clear();
            channel.stops.clear();
            channel.starved.clear();
            channel.events.clear();
        }
        self.driver_away.clear();
    }

    /// Notes who had no core for a good part of the time since the last look.
    fn look_for_starved(&mut self) {
        if let Some(time) = self.driver_core.look(self.driver.party().pid()) {
            self.figures.starved += 1;
            // Before the time that may still be open.
            self.driver_away.insert(0, time);
        }
        for (channel, index) in self.all_places() {
            let channel = &mut self.channels[channel];
            let place = &mut channel.places[index];
            let Some(pid) = place.party.as_ref().map(Party::pid) else { continue };
            if let Some(time) = place.core.look(pid) {
                self.figures.starved += 1;
                channel.starved.push(time);
                channel.note(format!("process {pid} in place {index} was starved"));
            }
        }
    }

    /// Waits that ended by their deadline though there was something to wake up for. A stop of anybody on the channel explains that, or that somebody there had no core, and so does
    /// a driver who was not there to tell of a death.
    fn check_late(&mut self, index: usize) {
        const SLACK: u64 = 500 * MILLISECOND;
        let mut unexplained = Vec::new();
        for incarnation in &self.channels[index].incarnations {
            for (from, to) in incarnation.ledger.late() {
                let mut reasons = self.channels[index].slow_times().chain(&self.driver_away);
                let excused = reasons.any(|&(began, ended)| began < to && ended.saturating_add(SLACK) > from);
                self.figures.excused += u64::from(excused);
                if !excused {
                    unexplained.push(format!(
                        "{}: a wake-up was lost: overslept by {} ms",
                        incarnation.name(),
                        (to - from) / MILLISECOND
                    ));
                }
            }
        }
        unexplained.into_iter().for_each(|what| self.violation(Some(index), &what));
    }

    fn resident_pids(&self) -> Vec<u32> {
        let places = self.channels.iter().flat_map(|channel| &channel.places);
        places.filter(|place| place.resident).filter_map(|place| Some(place.party.as_ref()?.pid())).collect()
    }

    fn held(&self) -> Held {
        Held {
            driver: Holdings::of(self.driver.party().pid()),
            own: Holdings::own(),
            residents: self.resident_pids().into_iter().map(Holdings::of).collect(),
        }
    }

    fn count_what_is_held(&mut self, baseline: &Held, shmem: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (held, listed) = (self.held(), self.client.list().map(|entries| entries.len()));
            let more = shmem_kib().saturating_sub(shmem);
            let shared_is_well = !self.options.alone || more <= SHMEM_SLACK_KIB;
            if held == *baseline && matches!(listed, Ok(0)) && shared_is_well {
                break;
            }
            if Instant::now() > deadline {
                let what = format!(
                    "left behind: {held:?}\n    not {baseline:?}, {listed:?} objects in the driver, {more} kB more of Shmem"
                );
                self.violation(None, &what);
                break;
            }
            std::thread::sleep(TICK);
        }
        let mut files: Vec<_> = std::fs::read_dir(self.driver.directory()).expect("it is there").flatten().collect();
        files.retain(|file| !file.file_name().to_string_lossy().starts_with("driver.sock"));
        if !files.is_empty() {
            self.violation(None, &format!("files in the driver's directory: {files:?}"));
        }
        // The driver, this process, the residents. Each driver is a new one, so only its size counts.
        let pids = [self.driver.party().pid(), std::process::id()].into_iter().chain(self.resident_pids());
        let memory: Vec<u64> = pids.map(|pid| status_number(pid, "RssAnon:")).collect();
        self.memory.push(memory.clone());
        for (now, first) in memory.iter().zip(self.memory[0].clone()) {
            if *now > first + RESIDENT_SLACK_KIB {
                self.violation(None, &format!("memory has grown from {first} to {now} kB: {memory:?}"));
            }
        }
    }

    fn finish(mut self, shmem: u64) -> ExitCode {
        println!("{}", self.figures.table());
        println!("memory of the driver, the controller and the residents in kB, first: {:?}", self.memory.first());
        println!("                                                           and last: {:?}", self.memory.last());
        for (channel, place) in self.all_places() {
            if let Some(mut party) = self.channels[channel].places[place].party.take() {
                party.tell("quit");
                party.finish();
            }
        }
        let Self { client, driver, directory, mut violations, .. } = self;
        drop((client, driver));
        let left = children();
        if !left.is_empty() {
            violations += 1;
            println!("VIOLATION: processes are left: {left:?}");
        }
        println!("Shmem at first {shmem} kB, at last {} kB (of the whole machine)", shmem_kib());
        println!("seed {}: {violations} violations", self.seed);
        if violations > 0 {
            println!("ledgers are kept in {}", directory.keep().display());
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }

    // ---- In between ----

    fn disturb(&mut self, end: Instant) {
        let rate = self.options.kills * self.options.weights.actions_per_kill();
        // Uniform from 0 to twice the mean.
        let longest = (2e9 / rate) as u64;
        // All get going first.
        let mut next_action = now() + 500 * MILLISECOND;
        let mut next_watch = now() + 1000 * MILLISECOND;
        while Instant::now() < end {
            std::thread::sleep(TICK);
            self.look_after_driver();
            self.look_after_places();
            while now() >= next_action {
                next_action += self.random.below(longest);
                self.act();
            }
            if now() >= next_watch {
                next_watch = now() + 1000 * MILLISECOND;
                self.watch();
                // For comparison: how long it takes when nobody is killed.
                let channel = self.random.below(self.channels.len() as u64) as usize;
                self.mark_peers(Some(channel), None, now());
            }
        }
    }

    fn look_after_driver(&mut self) {
        let time = now();
        if self.driver_returns_at.is_some_and(|at| time >= at) {
            self.driver_returns_at = None;
            self.driver.start_again();
            self.driver_is_back();
        }
        if self.driver_continues_at.is_some_and(|at| time >= at) {
            self.driver_continues_at = None;
            self.driver.party().go_on();
            self.driver_is_back();
        }
    }

    fn driver_is_back(&mut self) {
        self.driver_up_at = now();
        if let Some(away) = self.driver_away.last_mut() {
            away.1 = self.driver_up_at;
        }
    }

    fn look_after_places(&mut self) {
        for (channel, index) in self.all_places() {
            let time = now();
            let place = &self.channels[channel].places[index];
            if place.stopped_until.is_some_and(|until| time >= until) {
                self.channels[channel].go_on(index);
            }
            let place = &self.channels[channel].places[index];
            if place.party.is_none() {
                if time >= place.refill_at {
                    self.start((channel, index));
                    self.open((channel, index));
                }
                continue;
            }
            let after = place.after_close;
            let closed = self.channels[channel].current(index).is_some_and(|current| current.is_closed());
            match after {
                After::Reopen if closed => self.open((channel, index)),
                After::Quit if closed => {
                    let place = &mut self.channels[channel].places[index];
                    place.current = None;
                    place.refill_at = time;
                    place.after_close = After::Nothing;
                    if let Some(mut party) = place.party.take() {
                        party.tell("quit");
                        party.finish();
                    }
                }
                _ => {}
            }
        }
    }

    fn act(&mut self) {
        let action = self.options.weights.choose(&mut self.random);
        let time = now();
        let driver_is_well = self.driver_returns_at.is_none() && self.driver_continues_at.is_none();
        match action {
            Action::Driver if driver_is_well => {
                self.mark_peers(None, None, now());
                self.driver.kill();
                self.figures.drivers_killed += 1;
                self.driver_away.push((time, u64::MAX));
                self.driver_returns_at = Some(now() + self.random.below(300) * MILLISECOND);
            }
            Action::DriverStop if driver_is_well => {
                self.driver.party().stop();
                self.figures.driver_stops += 1;
                self.driver_away.push((time, u64::MAX));
                self.driver_continues_at = Some(now() + self.random.below(700) * MILLISECOND);
            }
            Action::Driver | Action::DriverStop => {}
            Action::Kill => self.kill(200),
            Action::Remove => self.kill(3000),
            Action::Stop => {
                let Some((channel, place)) = self.choose(true) else { return };
                let milliseconds = match self.random.below(100) {
                    0..2 => 5500 + self.random.below(1500),
                    2..10 => 1000 + self.random.below(1000),
                    _ => self.random.below(200),
                };
                self.figures.stops += 1;
                self.channels[channel].stop(place, time + (1 + milliseconds) * MILLISECOND);
            }
            Action::Reopen => {
                let Some((channel, place)) = self.choose(true) else { return };
                self.figures.reopened += 1;
                self.channels[channel].close(place, After::Reopen);
            }
            Action::Restart => {
                let Some((channel, place)) = self.choose(false) else { return };
                self.figures.restarted += 1;
                self.channels[channel].close(place, After::Quit);
            }
        }
    }

    /// Somebody who is there and not in the middle of something else.
    fn choose(&mut self, residents_too: bool) -> Option<(usize, usize)> {
        let is_free = |&(channel, place): &(usize, usize)| {
            let place = &self.channels[channel].places[place];
            let busy = place.party.is_none() || place.stopped_until.is_some() || place.after_close != After::Nothing;
            !busy && (residents_too || !place.resident)
        };
        let free: Vec<_> = self.all_places().into_iter().filter(is_free).collect();
        (!free.is_empty()).then(|| free[self.random.below(free.len() as u64) as usize])
    }

    /// Whoever is there, stopped, opening, closing or at work.
    fn kill(&mut self, longest_absence: u64) {
        let can_be_killed = |&(channel, place): &(usize, usize)| {
            let place = &self.channels[channel].places[place];
            place.party.is_some() && !place.resident
        };
        let victims: Vec<_> = self.all_places().into_iter().filter(can_be_killed).collect();
        if victims.is_empty() {
            return;
        }
        let (channel, place) = victims[self.random.below(victims.len() as u64) as usize];
        let time = now();
        let side = self.channels[channel].places[place].side;
        let absence = self.random.below(longest_absence) * MILLISECOND;
        // Before the kill, which waits until the process is gone: on a busy machine that takes longer than what is timed.
        let victim = self.channels[channel].places[place].current.take();
        self.mark_peers(Some(channel), Some(side), now());
        self.channels[channel].places[place].current = victim;
        self.channels[channel].kill(place, time + absence);
        match side {
            Side::Publisher => self.figures.publishers_killed += 1,
            Side::Subscriber => self.figures.subscribers_killed += 1,
        }
    }

    /// Those at work whose next progress is to be timed: the killed one's channel, or all.
    fn mark_peers(&mut self, whose: Option<usize>, killed: Option<Side>, time: u64) {
        self.collect();
        // Without a driver nobody tells of deaths: that is not what is timed here, but in the driver's own case.
        if whose.is_some() && (self.driver_returns_at.is_some() || self.driver_continues_at.is_some()) {
            return;
        }
        for (index, channel) in self.channels.iter_mut().enumerate() {
            let is_stopped = channel.places.iter().any(|place| place.stopped_until.is_some());
            if is_stopped || whose.is_some_and(|channel| channel != index) {
                continue;
            }
            let currents: Vec<usize> = channel.places.iter().filter_map(|place| place.current).collect();
            let is_at_work = |current: &Incarnation| current.end == End::None && current.ledger.get(STATE) == OPEN;
            let (at_work, others): (Vec<usize>, Vec<usize>) =
                currents.into_iter().partition(|&current| is_at_work(&channel.incarnations[current]));
            // Who closes or opens just now may hold others up.
            if !others.is_empty() {
                continue;
            }
            let count = |side| at_work.iter().filter(|&&current| channel.incarnations[current].side == side).count();
            let (publishers, subscribers) = (count(Side::Publisher), count(Side::Subscriber));
            for current in at_work {
                let current = &mut channel.incarnations[current];
                // It has not gone on since somebody else was killed: that goes on counting.
                if current.ledger.get(MARK) != 0 {
                    continue;
                }
                let peers = if current.side == Side::Publisher { subscribers } else { publishers };
                current.killed = match (whose, killed) {
                    (None, _) => Killed::Driver,
                    (Some(_), None) => Killed::Nobody,
                    _ if peers == 0 => Killed::Peer,
                    _ => Killed::Other,
                };
                current.marked_at = time;
                current.ledger.set(MARK, time);
            }
        }
    }

    /// Takes the answers to earlier marks.
    fn collect(&mut self) {
        let all = self.channels.iter().flat_map(|channel| channel.incarnations.iter().map(move |each| (channel, each)));
        for (channel, incarnation) in all {
            let answer = incarnation.ledger.get(ANSWER);
            if answer == 0 {
                continue;
            }
            incarnation.ledger.set(ANSWER, 0);
            // Somebody on the channel was stopped or starved meanwhile, or there was no driver to tell of a death: that would be timed instead.
            let (from, to) = (incarnation.marked_at, incarnation.marked_at + answer);
            let within = |&&(began, ended): &&(u64, u64)| began < to && ended > from;
            let without_driver = incarnation.killed != Killed::Driver && self.driver_away.iter().any(|away| within(&away));
            if without_driver || channel.slow_times().any(|time| within(&time)) {
                continue;
            }
            let histogram = match incarnation.killed {
                Killed::Nobody => &mut self.figures.undisturbed,
                Killed::Other => &mut self.figures.others,
                Killed::Peer => &mut self.figures.reunions,
                Killed::Driver => &mut self.figures.without_driver,
            };
            histogram.saturating_record(answer / 1000);
        }
    }

    // ---- Does everybody go on? ----

    fn watch(&mut self) {
        self.look_for_starved();
        self.collect();
        for (channel, place) in self.all_places() {
            let ended = self.channels[channel].places[place].party.as_ref().is_some_and(|party| has_ended(party.pid()));
            if ended {
                self.violation(Some(channel), &format!("the process in place {place} has ended by itself"));
                self.channels[channel].kill(place, now());
            }
        }
        for index in 0..self.channels.len() {
            let mut faults = Vec::new();
            for incarnation in self.channels[index].incarnations.iter_mut().filter(|incarnation| !incarnation.faulty) {
                if let Some(fault) = incarnation.ledger.fault() {
                    incarnation.faulty = true;
                    faults.push(format!("{}: {fault}", incarnation.name()));
                }
            }
            for fault in faults {
                self.violation(Some(index), &fault);
            }
            for stalled in self.stalled(index) {
                self.violation(Some(index), &stalled);
            }
        }
    }

    /// Pairs where both are there, open, not stopped, nobody else on the channel is, and the driver is there, all that for long enough: the publisher must have committed, and the
    /// subscriber got all that was committed at the beginning of that time.
    fn stalled(&mut self, index: usize) -> Vec<String> {
        let (time, limit) = (now(), Duration::from(self.options.stall).as_nanos() as u64);
        let driver_up_at = self.driver_up_at;
        let driver_is_well = self.driver_returns_at.is_none() && self.driver_continues_at.is_none();
        let channel = &mut self.channels[index];
        let last_stop = channel.stops.iter().map(|&(_, to)| to.min(time)).max().unwrap_or(0);
        let quiet_since = if driver_is_well { last_stop.max(driver_up_at) } else { time };
        let old_enough = |since: u64| time.saturating_sub(since) > limit;
        let mut stalled = Vec::new();
        let open: Vec<usize> = (0..channel.places.len()).filter_map(|place| channel.places[place].current).collect();
        let mut late = Vec::new();
        for &own in &open {
            let incarnation = &channel.incarnations[own];
            if incarnation.end != End::None || incarnation.faulty {
                continue;
            }
            if incarnation.ledger.get(STATE) != OPEN {
                if old_enough(incarnation.told_at.max(quiet_since)) {
                    stalled.push((own, format!("{} does not get open", incarnation.name())));
                }
                continue;
            }
            if incarnation.side != Side::Publisher {
                continue;
            }
            let committed = incarnation.ledger.get(COMMITTED);
            let (before, looked_at) = incarnation.before;
            for &other in &open {
                let subscriber = &channel.incarnations[other];
                if subscriber.side != Side::Subscriber || subscriber.end != End::None || subscriber.ledger.get(STATE) != OPEN {
                    continue;
                }
                let together_since = incarnation.ledger.get(OPENED_AT).max(subscriber.ledger.get(OPENED_AT)).max(quiet_since);
                if !old_enough(together_since.max(looked_at)) {
                    continue;
                }
                let pair = format!("{} and {}", incarnation.name(), subscriber.name());
                let next = verify::next_of(subscriber, incarnation);
                if committed == before {
                    stalled.push((own, format!("{pair}: nothing was committed in {:?}, {committed} before", self.options.stall)));
                } else if next.is_none_or(|next| next < before) {
                    let got = next.map_or("nothing".to_owned(), |next| format!("{next}"));
                    stalled.push((other, format!("{pair}: {before} were committed {:?} ago, {got} came", self.options.stall)));
                }
            }
            if old_enough(looked_at) {
                late.push((own, (committed, time)));
            }
        }
        for (own, before) in late {
            channel.incarnations[own].before = before;
        }
        for (own, _) in &stalled {
            channel.incarnations[*own].faulty = true;
        }
        let lossy = if channel.overflow == Overflow::Lossy { " (lossy)" } else { "" };
        stalled.into_iter().map(|(_, what)| format!("stalled: {what}{lossy}")).collect()
    }
}
