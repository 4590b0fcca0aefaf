//! The driver's event loop: one thread, one epoll, nothing that blocks. It makes no syscall while nothing happens.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringbus::Address;
use ringbus::control::message::{Greeting, PROTOCOL_VERSION, Request};
use ringbus::control::process::{Credentials, Process};
use ringbus::control::socket::{self, Packet};
use rustix::event::{EventfdFlags, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::disposal::Disposal;
use crate::listener::{ListenError, Listener};
use crate::registry::{Outbox, Registry, Side};
use crate::session::Session;

/// How a driver is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub address: Address,
    /// Permissions of the socket file. Who may publish and subscribe is decided per channel, so by default all may connect.
    pub mode: u32,
    /// Most bytes that all rings and pages together may have; more is refused when it is asked for, instead of killing somebody when it is touched.
    pub memory_limit: u64,
}

impl Config {
    /// The defaults, listening at `address`.
    pub fn new(address: Address) -> Self {
        let memory = ringbus::memory::memfd::meminfo("MemTotal:").map_or(u64::MAX, |kib| kib * 1024);
        Self { address, mode: 0o666, memory_limit: memory / 2 }
    }
}

/// Why a driver cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system will not.
    #[error("the driver cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> DriverError {
    move |errno| DriverError::System { what, source: errno.into() }
}

/// Stops a driver from another thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    /// Makes [`Driver::run`] return.
    pub fn stop(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// What an event of epoll is about.
const LISTENER: u64 = 0;
const STOP: u64 = 1;
const TIMER: u64 = 2;
/// From here on even numbers are sessions, odd ones processes.
const FIRST: u64 = 16;

/// Who sent what, where that cannot be told: no user has this uid.
const NOBODY: u32 = u32::MAX;

/// How often halves of links are looked at, while there are any.
const TICK: Duration = Duration::from_secs(1);

/// A media driver. [`run`](Self::run) it on a thread of its own.
#[derive(Debug)]
pub struct Driver {
    address: Address,
    epoll: OwnedFd,
    listener: Listener,
    stop: Stopper,
    timer: OwnedFd,
    timer_is_armed: bool,
    /// Given up for a moment to turn a client away when there are no fds left.
    spare: Option<OwnedFd>,
    /// Not even that one is to be had (other threads of this process took it, or whoever was turned away has it still): nobody is accepted before the next tick of the timer.
    paused: bool,
    sessions: HashMap<u64, Session>,
    /// Processes whose death we want to know of, and under which number epoll tells us.
    watches: HashMap<Process, (OwnedFd, u64)>,
    next: u64,
    registry: Registry,
    disposal: Disposal,
}

impl Driver {
    /// Sets up a driver, which then already accepts connections and will serve them once it is run.
    ///
    /// # Errors
    ///
    /// See [`DriverError`].
    pub fn new(config: &Config) -> Result<Self, DriverError> {
        let listener = Listener::bind(&config.address, config.mode)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("make an epoll instance"))?;
        let eventfd = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Stopper(Arc::new(eventfd().map_err(system("make an eventfd"))?));
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).map_err(system("make a timer"))?;
        let driver = Self {
            address: config.address.clone(),
            epoll,
            listener,
            stop,
            timer,
            timer_is_armed: false,
            spare: eventfd().ok(),
            paused: false,
            sessions: HashMap::new(),
            watches: HashMap::new(),
            next: FIRST,
            registry: Registry::new(config.memory_limit),
            disposal: Disposal::default(),
        };
        driver.watch(&driver.listener, LISTENER).map_err(system("watch the socket"))?;
        driver.watch(&*driver.stop.0, STOP).map_err(system("watch for the stop"))?;
        driver.watch(&driver.timer, TIMER).map_err(system("watch the timer"))?;
        Ok(driver)
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Stops it from another thread, or from a signal's fd.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Also stops when `fd` becomes readable, for example a signalfd.
    ///
    /// # Errors
    ///
    /// [`DriverError::System`].
    pub fn stop_when_readable(&self, fd: impl AsFd) -> Result<(), DriverError> {
        self.watch(fd, STOP).map_err(system("watch for the stop"))
    }

    fn watch(&self, fd: impl AsFd, number: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(number), epoll::EventFlags::IN)
    }

    /// Serves clients until it is stopped. What is connected then goes on without it.
    ///
    /// # Errors
    ///
    /// [`DriverError::System`] if the kernel refuses to wait.
    pub fn run(&mut self) -> Result<(), DriverError> {
        tracing::info!(address = %self.address, "media driver is ready");
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(system("wait for events")(errno)),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    STOP => {
                        tracing::info!(address = %self.address, "media driver stops");
                        return Ok(());
                    }
                    TIMER => self.tick(),
                    number if number % 2 == 0 => self.serve(number, event.flags),
                    number => self.process_died(number),
                }
            }
            self.settle();
        }
    }

    fn number(&mut self, is_process: bool) -> u64 {
        self.next += 2;
        self.next | u64::from(is_process)
    }

    /// Takes a few clients at a time, so that those who are there are served in between.
    fn accept(&mut self) {
        const AT_ONCE: usize = 16;
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok(socket) => self.welcome(socket),
                Err(Errno::MFILE | Errno::NFILE) => return self.turn_away(),
                Err(_) => return,
            }
        }
    }

    fn welcome(&mut self, socket: OwnedFd) {
        let credentials = match Credentials::of_peer(&socket) {
            Ok(credentials) => credentials,
            Err(error) => {
                let full = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                tracing::warn!(%error, "cannot tell who a client is");
                if full {
                    say_full(&socket);
                }
                return self.disposal.hang_up(NOBODY, socket);
            }
        };
        if self.disposal.is_held_up(credentials.uid) {
            tracing::warn!(uid = credentials.uid, "turned away: what this user has sent is not closed yet");
            say_full(&socket);
            return self.disposal.hang_up(credentials.uid, socket);
        }
        let client = self.number(false);
        let watched = self.watches.contains_key(&credentials.process);
        if self.watch(&socket, client).is_err() || !(watched || self.watch_process(&credentials)) {
            say_full(&socket);
            return self.disposal.hang_up(credentials.uid, socket);
        }
        tracing::debug!(client, pid = credentials.process.pid, uid = credentials.uid, "connected");
        self.sessions.insert(client, Session::new(client, socket, &credentials));
    }

    fn watch_process(&mut self, credentials: &Credentials) -> bool {
        let Ok(pidfd) = credentials.pidfd.try_clone() else { return false };
        self.add_watch(credentials.process, pidfd)
    }

    fn add_watch(&mut self, process: Process, pidfd: OwnedFd) -> bool {
        let number = self.number(true);
        let added = self.watch(&pidfd, number).is_ok();
        if added {
            self.watches.insert(process, (pidfd, number));
        }
        added
    }

    /// No fd is left for this client: with the spare one it at least learns why.
    fn turn_away(&mut self) {
        self.spare = None;
        if let Ok(socket) = self.listener.accept() {
            say_full(&socket);
            self.disposal.hang_up(NOBODY, socket);
        }
        if !self.has_spare() {
            self.paused = epoll::delete(&self.epoll, &self.listener).is_ok();
        }
        tracing::error!("out of file descriptors: a client was turned away; raise RLIMIT_NOFILE");
    }

    /// Takes the spare fd back. Whoever was turned away may have it still, but for a moment if he has sent nothing strange.
    fn has_spare(&mut self) -> bool {
        const MOMENT: Duration = Duration::from_millis(10);
        let deadline = Instant::now() + MOMENT;
        loop {
            self.spare = self.spare.take().or_else(|| rustix::event::eventfd(0, EventfdFlags::CLOEXEC).ok());
            if self.spare.is_some() || Instant::now() >= deadline {
                return self.spare.is_some();
            }
            std::thread::sleep(MOMENT / 100);
        }
    }

    /// Something happened at a client's socket.
    fn serve(&mut self, client: u64, flags: epoll::EventFlags) {
        const AT_ONCE: usize = 32;
        let mut alive = true;
        if flags.contains(epoll::EventFlags::OUT) {
            alive = self.sessions.get_mut(&client).is_some_and(|session| session.flush().is_ok());
        }
        for _ in 0..AT_ONCE {
            let Some(session) = self.sessions.get(&client).filter(|_| alive) else { break };
            match socket::receive(session, RecvFlags::DONTWAIT) {
                Ok(Some(packet)) => alive = self.handle(client, packet),
                Ok(None) => alive = false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => alive = false,
            }
        }
        match self.sessions.get(&client) {
            Some(_) if !alive => self.hung_up(client),
            Some(_) => self.adjust_interest(client),
            None => {}
        }
    }

    /// `false` if the client has to go.
    fn handle(&mut self, client: u64, packet: Packet) -> bool {
        let Some(session) = self.sessions.get_mut(&client) else { return false };
        if !session.greeted {
            // A client of another version is answered, too: it learns ours from that.
            let greeting = Greeting::from_bytes(&packet.bytes);
            session.greeted = greeting.is_some_and(|greeting| greeting.version == PROTOCOL_VERSION);
            let bytes = Greeting::own().to_bytes();
            let answered = greeting.is_some() && socket::send(&*session, &bytes, &[], SendFlags::DONTWAIT).is_ok();
            let welcome = answered && session.greeted && packet.fds.is_empty();
            let uid = session.asker.uid;
            self.disposal.close(uid, packet.fds);
            return welcome;
        }
        let asker = session.asker.clone();
        let Some(request) = packet.decode::<Request>() else {
            tracing::warn!(client, "malformed request");
            self.disposal.close(asker.uid, packet.fds);
            return false;
        };
        let mut outbox = Outbox::new();
        let (registry, outbox_ref) = (&mut self.registry, &mut outbox);
        let mut fds = packet.fds;
        // All else could take long to close.
        if fds.iter().any(|fd| rustix::fs::fcntl_get_seals(fd).is_err()) {
            self.disposal.close(asker.uid, fds);
            return false;
        }
        let mut keeps_up = true;
        match request {
            Request::AddPublication { request, name, properties } => {
                registry.add(&asker, Side::Publication, request, name, &properties, outbox_ref);
            }
            Request::AddSubscription { request, name, properties } => {
                registry.add(&asker, Side::Subscription, request, name, &properties, outbox_ref);
            }
            Request::ResumePublication { id, spec } => {
                registry.resume(&asker, Side::Publication, id, spec, std::mem::take(&mut fds), outbox_ref);
            }
            Request::ResumeSubscription { id, spec } => {
                registry.resume(&asker, Side::Subscription, id, spec, std::mem::take(&mut fds), outbox_ref);
            }
            Request::ResumeLink { object, link } => registry.resume_link(&asker, object, link, Instant::now(), outbox_ref),
            Request::Ready { object } => registry.ready(&asker, object, outbox_ref),
            Request::LinkReady { link } => registry.link_ready(&asker, link, outbox_ref),
            Request::LinkFailed { link, reason } => registry.link_failed(&asker, link, &reason, outbox_ref),
            Request::LinkDone { link } => registry.link_done(&asker, link, outbox_ref),
            Request::Close { object } => registry.close(&asker, object, outbox_ref),
            Request::List { request } => keeps_up = session.list(request, registry.list()).is_ok(),
            Request::Goodbye => registry.client_left(client, outbox_ref),
        }
        self.deliver(outbox);
        // Those that nobody asked for.
        let asked_for = fds.is_empty();
        self.disposal.close(asker.uid, fds);
        asked_for && keeps_up
    }

    /// Says what there is to say. Who cannot be reached any more is dropped, which may make more to say.
    fn deliver(&mut self, mut outbox: Outbox) {
        for (client, event, fds) in outbox.drain(..) {
            let Some(session) = self.sessions.get_mut(&client) else { continue };
            match session.send(&event, fds) {
                Ok(()) => self.adjust_interest(client),
                // The loop will find the socket hung up, and knows then what to do.
                Err(_) => drop(rustix::net::shutdown(&*session, rustix::net::Shutdown::Both)),
            }
        }
    }

    /// Lets epoll say when a client that did not keep up has room again.
    fn adjust_interest(&mut self, client: u64) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        if session.wants_room == session.has_queue() {
            return;
        }
        session.wants_room = session.has_queue();
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, session.wants_room);
        let _ = epoll::modify(&self.epoll, &*session, epoll::EventData::new_u64(client), flags);
    }

    /// The connection is over. If the client has said goodbye it has no objects any more; else its process is dead or will be back.
    fn hung_up(&mut self, client: u64) {
        let Some(session) = self.sessions.remove(&client) else { return };
        tracing::debug!(client, pid = session.asker.process.pid, "hung up");
        self.disposal.hang_up(session.asker.uid, session.into_socket());
        self.registry.client_away(client, Instant::now());
    }

    fn process_died(&mut self, number: u64) {
        let died = self.watches.iter().find(|(_, (_, other))| *other == number).map(|(&process, _)| process);
        if let Some(process) = died {
            self.bury(process);
        }
    }

    fn bury(&mut self, process: Process) {
        tracing::debug!(pid = process.pid, "died");
        self.watches.remove(&process);
        // Its forked children may still hold its sockets.
        for (_, session) in self.sessions.extract_if(|_, session| session.asker.process == process) {
            self.disposal.hang_up(session.asker.uid, session.into_socket());
        }
        let mut outbox = Outbox::new();
        self.registry.process_died(process, &mut outbox);
        self.deliver(outbox);
    }

    fn tick(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.timer_is_armed = false;
        if self.paused && self.has_spare() {
            self.paused = self.watch(&self.listener, LISTENER).is_err();
        }
        let mut outbox = Outbox::new();
        self.registry.give_up_halves(Instant::now(), &mut outbox);
        self.deliver(outbox);
    }

    /// After each round: watches those whom somebody waits for, no one else, and keeps the timer armed as long as that is so.
    fn settle(&mut self) {
        let awaited = self.registry.awaited();
        for &process in &awaited {
            if self.watches.contains_key(&process) {
                continue;
            }
            match process.watch() {
                Ok(pidfd) => drop(self.add_watch(process, pidfd)),
                Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                    self.bury(process);
                }
                // Without a pidfd the timer alone decides.
                Err(_) => {}
            }
        }
        let sessions = &self.sessions;
        let needed =
            |process: &Process| awaited.contains(process) || sessions.values().any(|session| session.asker.process == *process);
        self.watches.retain(|process, _| needed(process));
        if (self.paused || !awaited.is_empty()) && !self.timer_is_armed {
            let interval = Timespec { tv_sec: TICK.as_secs() as i64, tv_nsec: 0 };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: interval };
            self.timer_is_armed = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok();
        }
        let (objects, links) = self.registry.size();
        tracing::trace!(sessions = self.sessions.len(), objects, links, "settled");
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Nobody can connect from here on; who waits to be accepted may have sent something already.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        while let Ok(socket) = self.listener.accept() {
            self.disposal.hang_up(NOBODY, socket);
        }
        for (_, session) in self.sessions.drain() {
            self.disposal.hang_up(session.asker.uid, session.into_socket());
        }
    }
}

fn say_full(socket: &OwnedFd) {
    let greeting = Greeting { version: Greeting::FULL, ..Greeting::own() };
    let _ = socket::send(socket, &greeting.to_bytes(), &[], SendFlags::DONTWAIT);
}
