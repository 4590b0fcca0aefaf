//! The conductor: the client's thread that talks to the driver, so that the data path never does.
//!
//! It sleeps in `poll` until the driver says something. When the driver goes away it tries to reconnect, with growing pauses, and
//! announces again whatever the client holds; publications and subscriptions do not notice.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};

use super::endpoint::{Endpoint, News, Side};
use super::link::{MpscRing, Page, PeerEnd, PublisherEnd, SingleRing, Sleeps, SubscriberEnd};
use crate::channel::{ChannelName, Kind, Properties};
use crate::control::message::{self, Entry, Event, Greeting, Link, PROTOCOL_VERSION, Request};
use crate::control::socket::{self, Address, Packet};
use crate::error::Error;
use crate::memory::fork::Birth;
use crate::wait::fences::Fences;

/// Whether the driver is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverState {
    /// New publications and subscriptions are possible.
    Connected,
    /// It is gone; what is connected goes on, and the client looks for its successor.
    Away,
}

/// The handle. Dropping it says goodbye to the driver and ends the thread.
#[derive(Debug)]
pub(super) struct Conductor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    address: Address,
    fences: Fences,
    /// In a forked child there is no conductor, and the socket is the parent's.
    birth: Birth,
    /// Wakes the thread when there is something to send or it should stop.
    kick: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    socket: Option<Arc<OwnedFd>>,
    /// The driver is back and is being told what we hold.
    resuming: bool,
    stopping: bool,
    next_request: u32,
    requests: HashMap<u32, Sender<Answer>>,
    endpoints: HashMap<u64, Arc<Endpoint>>,
    /// What could not be sent at once.
    outgoing: VecDeque<Vec<u8>>,
}

/// An answer of the driver with the fds that came along.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) event: Event,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) fds_lost: bool,
}

/// A driver that is alive answers in microseconds. Longer than this it is stopped or stuck.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

impl Conductor {
    pub(super) fn start(address: Address, fences: Fences) -> Result<Arc<Self>, Error> {
        let socket = connect(&address, None)?;
        let kick = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::system("make an eventfd")(errno.into()))?;
        let state = State {
            socket: Some(Arc::new(socket)),
            resuming: false,
            stopping: false,
            next_request: 0,
            requests: HashMap::new(),
            endpoints: HashMap::new(),
            outgoing: VecDeque::new(),
        };
        let birth = Birth::here().map_err(Error::system("map memory that a forked child does not get"))?;
        let shared = Arc::new(Shared { address, fences, birth, kick, state: Mutex::new(state) });
        let thread = std::thread::Builder::new().name("ringbus-client".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run()
        });
        let thread = thread.map_err(Error::system("start the client's thread"))?;
        Ok(Arc::new(Self { shared, thread: Some(thread) }))
    }

    pub(super) fn fences(&self) -> Fences {
        self.shared.fences
    }

    /// The driver's answer does not fit the question.
    pub(super) fn nonsense(&self) -> Error {
        let what = "its answer does not fit what was asked".to_owned();
        Error::NotADriver { address: self.shared.address.to_string(), what }
    }

    pub(super) fn state(&self) -> DriverState {
        if self.shared.birth.is_here() && self.shared.state.lock().socket.is_some() {
            DriverState::Connected
        } else {
            DriverState::Away
        }
    }

    /// Asks for a publication or subscription, and waits for the answer.
    pub(super) fn add(&self, side: Side, name: ChannelName, properties: Properties) -> Result<Answer, Error> {
        let answers = self.shared.request(|request| match side {
            Side::Publication => Request::AddPublication { request, name, properties },
            Side::Subscription => Request::AddSubscription { request, name, properties },
        })?;
        let answer = self.shared.await_answer(&answers)?;
        if let Event::Refused { refusal, .. } = answer.event {
            return Err(refusal.into());
        }
        // Sizes are computed from it, also where no ring comes along.
        if let Event::PublicationAdded { spec, .. } | Event::SubscriptionAdded { spec, .. } = &answer.event
            && spec.check().is_err()
        {
            self.discard(&answer);
            return Err(self.nonsense());
        }
        if answer.fds_lost {
            self.discard(&answer);
            return Err(Error::file_descriptors("take the memory from the driver"));
        }
        Ok(answer)
    }

    /// Tells the driver that what it made for us is not wanted.
    pub(super) fn discard(&self, answer: &Answer) {
        self.shared.discard(&answer.event);
    }

    /// The endpoint's objects are mapped: others may see them.
    pub(super) fn announce(&self, endpoint: Arc<Endpoint>) {
        let object = endpoint.id;
        self.shared.state.lock().endpoints.insert(object, endpoint);
        self.shared.notify(&Request::Ready { object });
    }

    /// The endpoint is no longer used.
    pub(super) fn close(&self, object: u64) {
        if !self.shared.birth.is_here() {
            return;
        }
        self.shared.state.lock().endpoints.remove(&object);
        self.shared.notify(&Request::Close { object });
    }

    /// Everything of a link's publication has been read.
    pub(super) fn link_done(&self, endpoint: &Endpoint, link: u64) {
        endpoint.remove_link(link);
        self.shared.notify(&Request::LinkDone { link });
    }

    pub(super) fn list(&self) -> Result<Vec<Entry>, Error> {
        /// More than any driver has: this one makes them up.
        const MOST: usize = 1 << 20;
        let answers = self.shared.request(|request| Request::List { request })?;
        let mut entries = Vec::new();
        while let Event::Entry { entry, .. } = self.shared.await_answer(&answers)?.event {
            entries.push(entry);
            if entries.len() > MOST {
                return Err(self.nonsense());
            }
        }
        Ok(entries)
    }
}

impl Drop for Conductor {
    fn drop(&mut self) {
        if !self.shared.birth.is_here() {
            // Not even detached: by its number the C library would find another thread of this process.
            std::mem::forget(self.thread.take());
            return;
        }
        self.shared.state.lock().stopping = true;
        self.shared.kick();
        if let Some(thread) = self.thread.take() {
            // It panics only if there is a bug, which then has been reported already.
            let _ = thread.join();
        }
    }
}

/// Connects and exchanges greetings, which takes [`PATIENCE`] at most if the driver is stopped, and ends at once when `interrupt` gets readable.
fn connect(address: &Address, interrupt: Option<&OwnedFd>) -> Result<OwnedFd, Error> {
    let shown = || address.to_string();
    let socket = socket::new_socket(SocketFlags::empty()).map_err(Error::system("make a socket"))?;
    let target = address.to_socket_address().map_err(|source| Error::NoDriver { address: shown(), source })?;
    let not_a_driver = |what: &str| Error::NotADriver { address: shown(), what: what.to_owned() };
    // Where so many wait that no more may queue, connecting takes as long as sending may. Who can be interrupted tries again.
    let patience = if interrupt.is_some() { LONGEST_PAUSE } else { PATIENCE };
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))
        .map_err(|errno| Error::system("limit the time of a socket")(errno.into()))?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &target)).map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => Error::NoPermission { address: shown(), source: errno.into() },
        Errno::AGAIN => not_a_driver("it does not accept us (is it stopped?)"),
        _ => Error::NoDriver { address: shown(), source: errno.into() },
    })?;
    // A driver that has to turn us away may have said why and hung up by now: that can still be read.
    let sent = socket::send(&socket, &Greeting::own().to_bytes(), &[], SendFlags::empty());
    if sent.is_ok() && !wait_unless(&socket, PollFlags::IN, interrupt, PATIENCE) {
        return Err(not_a_driver("it says nothing (is it stopped?)"));
    }
    let packet = socket::receive(&socket, RecvFlags::DONTWAIT).map_err(|error| not_a_driver(&error.to_string()))?;
    let packet = packet.ok_or_else(|| not_a_driver("it hung up"))?;
    let greeting = Greeting::from_bytes(&packet.bytes).ok_or_else(|| not_a_driver("its greeting is another one"))?;
    match greeting.version {
        PROTOCOL_VERSION => Ok(socket),
        Greeting::FULL => Err(Error::DriverFull { address: shown(), pid: greeting.pid }),
        driver => Err(Error::ProtocolVersion { address: shown(), pid: greeting.pid, driver }),
    }
}

/// Whether the fd gets ready in time.
fn wait_for(fd: impl AsFd, flags: PollFlags, timeout: Duration) -> bool {
    wait_unless(fd, flags, None, timeout)
}

/// Whether the fd gets ready in time, and before there is something to read from `interrupt`.
fn wait_unless(fd: impl AsFd, flags: PollFlags, interrupt: Option<&OwnedFd>, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let mut fds = vec![PollFd::new(&fd, flags)];
    fds.extend(interrupt.map(|interrupt| PollFd::new(interrupt, PollFlags::IN)));
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout))).is_ok() && !fds[0].revents().is_empty()
}

impl Shared {
    fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    fn away(&self) -> Error {
        Error::DriverAway { address: self.address.to_string() }
    }

    /// Sends a request whose answers come through the channel.
    fn request(&self, build: impl FnOnce(u32) -> Request) -> Result<Receiver<Answer>, Error> {
        if !self.birth.is_here() {
            return Err(Error::Forked);
        }
        let mut state = self.state.lock();
        let Some(socket) = state.socket.clone() else { return Err(self.away()) };
        state.next_request = state.next_request.wrapping_add(1);
        let request = state.next_request;
        let (sender, receiver) = channel();
        state.requests.insert(request, sender);
        let bytes = socket::encode(&build(request));
        if bytes.len() > message::MAX_MESSAGE || socket::send(&*socket, &bytes, &[], SendFlags::DONTWAIT).is_err() {
            state.requests.remove(&request);
            return Err(self.away());
        }
        Ok(receiver)
    }

    fn await_answer(&self, answers: &Receiver<Answer>) -> Result<Answer, Error> {
        answers.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Disconnected => self.away(),
            RecvTimeoutError::Timeout => {
                Error::NotADriver { address: self.address.to_string(), what: "it does not answer (is it stopped?)".to_owned() }
            }
        })
    }

    /// Tells the driver something, in order, without ever waiting for it: called from the data path. While it is away there is nothing to tell: its successor will
    /// be told everything.
    fn notify(&self, request: &Request) {
        let mut state = self.state.lock();
        let bytes = socket::encode(request);
        if let Some(socket) = &state.socket
            && state.outgoing.is_empty()
        {
            match socket::send(&**socket, &bytes, &[], SendFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        } else if state.socket.is_none() && !state.resuming {
            return;
        }
        state.outgoing.push_back(bytes);
        drop(state);
        self.kick();
    }

    fn discard(&self, event: &Event) {
        if let Event::PublicationAdded { id, .. } | Event::SubscriptionAdded { id, .. } = event {
            self.notify(&Request::Close { object: *id });
        }
    }

    /// The thread.
    fn run(&self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let (socket, sending) = {
                let state = self.state.lock();
                if state.stopping {
                    if let Some(socket) = &state.socket {
                        let _ = socket::send(&**socket, &socket::encode(&Request::Goodbye), &[], SendFlags::DONTWAIT);
                    }
                    return;
                }
                (state.socket.clone(), !state.outgoing.is_empty())
            };
            let Some(socket) = socket else {
                if wait_for(&self.kick, PollFlags::IN, pause) {
                    self.unkick();
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                if let Ok(socket) = connect(&self.address, Some(&self.kick)) {
                    self.resume_all(Arc::new(socket));
                    pause = SHORTEST_PAUSE;
                }
                continue;
            };
            let interest = if sending { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let mut fds = [PollFd::new(&*socket, interest), PollFd::new(&self.kick, PollFlags::IN)];
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let (socket_ready, kicked) = (fds[0].revents(), !fds[1].revents().is_empty());
            if kicked {
                self.unkick();
            }
            if socket_ready.contains(PollFlags::OUT) {
                self.flush(&socket);
            }
            if socket_ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !self.receive(&socket) {
                self.disconnected();
            }
        }
    }

    fn unkick(&self) {
        let _ = rustix::io::read(&self.kick, &mut [0; 8]);
    }

    fn flush(&self, socket: &OwnedFd) {
        let mut state = self.state.lock();
        while let Some(bytes) = state.outgoing.front() {
            if socket::send(socket, bytes, &[], SendFlags::DONTWAIT).is_err() {
                return;
            }
            state.outgoing.pop_front();
        }
    }

    /// Handles one packet; `false` if there will be no more.
    fn receive(&self, socket: &Arc<OwnedFd>) -> bool {
        match socket::receive(&**socket, RecvFlags::DONTWAIT) {
            Ok(Some(packet)) => self.handle(socket, packet),
            Ok(None) => false,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// `false` if the driver talks nonsense.
    fn handle(&self, socket: &Arc<OwnedFd>, packet: Packet) -> bool {
        let Some(event) = packet.decode::<Event>() else { return false };
        let Packet { mut fds, fds_lost, .. } = packet;
        match event {
            Event::PublicationAdded { request, .. }
            | Event::SubscriptionAdded { request, .. }
            | Event::Refused { request, .. }
            | Event::Entry { request, .. }
            | Event::ListEnd { request } => self.answer(request, Answer { event, fds, fds_lost }),
            Event::PublisherLink { link } | Event::SubscriberLink { link } if fds_lost => {
                let reason = Error::file_descriptors("take a link's memory from the driver").to_string();
                self.link_failed(&event, link, reason);
            }
            Event::PublisherLink { link } => {
                let Some(endpoint) = self.endpoint(link.publication) else { return true };
                match publisher_end(&endpoint, link, &mut fds) {
                    Ok(end) => {
                        endpoint.add_link(link);
                        endpoint.tell(News::Subscriber(Box::new(end)));
                    }
                    Err(reason) => self.link_failed(&event, link, reason),
                }
            }
            Event::SubscriberLink { link } => {
                let Some(endpoint) = self.endpoint(link.subscription) else { return true };
                match subscriber_end(&endpoint, link, &mut fds) {
                    Ok(end) => {
                        endpoint.add_link(link);
                        endpoint.tell(News::Publisher(Box::new(end)));
                        self.notify(&Request::LinkReady { link: link.id });
                    }
                    Err(reason) => self.link_failed(&event, link, reason),
                }
            }
            Event::LinkEnded { object, link } => {
                if let Some(endpoint) = self.endpoint(object) {
                    if endpoint.side == Side::Publication {
                        endpoint.remove_link(link);
                    }
                    endpoint.tell(News::Ended(link));
                }
            }
            Event::LinkFailed { object, reason } => {
                if let Some(endpoint) = self.endpoint(object) {
                    endpoint.tell(News::Failed(reason));
                }
            }
            Event::Unknown { object } => {
                if let Some(endpoint) = self.endpoint(object) {
                    return resume(socket, &endpoint).is_ok();
                }
            }
            Event::Lost { object, .. } => {
                if let Some(endpoint) = self.endpoint(object) {
                    endpoint.tell(News::Lost);
                }
            }
        }
        true
    }

    fn endpoint(&self, id: u64) -> Option<Arc<Endpoint>> {
        self.state.lock().endpoints.get(&id).cloned()
    }

    fn answer(&self, request: u32, answer: Answer) {
        let is_last = !matches!(answer.event, Event::Entry { .. });
        let mut state = self.state.lock();
        let sender = if is_last { state.requests.remove(&request) } else { state.requests.get(&request).cloned() };
        drop(state);
        // Whoever asked may have lost his patience.
        let unwanted = match sender {
            Some(sender) => sender.send(answer).err().map(|error| error.0),
            None => Some(answer),
        };
        if let Some(answer) = unwanted {
            self.discard(&answer.event);
        }
    }

    fn link_failed(&self, event: &Event, link: Link, reason: String) {
        if matches!(event, Event::SubscriberLink { .. })
            && let Some(endpoint) = self.endpoint(link.subscription)
        {
            endpoint.tell(News::Failed(reason.clone()));
        }
        self.notify(&Request::LinkFailed { link: link.id, reason });
    }

    fn disconnected(&self) {
        let mut state = self.state.lock();
        state.socket = None;
        // Their callers are told by the end of the channel.
        state.requests.clear();
        state.outgoing.clear();
    }

    /// Tells a new driver what we hold, before anything else is said to it.
    fn resume_all(&self, socket: Arc<OwnedFd>) {
        let endpoints: Vec<_> = {
            let mut state = self.state.lock();
            state.resuming = true;
            state.endpoints.values().cloned().collect()
        };
        let told = endpoints.iter().try_for_each(|endpoint| resume(&socket, endpoint));
        let mut state = self.state.lock();
        state.resuming = false;
        if told.is_err() {
            state.outgoing.clear();
            return;
        }
        state.socket = Some(socket);
        // What was closed or done meanwhile is in `outgoing`, and `run` sends it.
    }
}

/// Tells the driver about one object, waiting for room in the socket if need be.
fn resume(socket: &Arc<OwnedFd>, endpoint: &Endpoint) -> io::Result<()> {
    let send = |request: &Request, fds: &[OwnedFd]| -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let bytes = socket::encode(request);
        loop {
            match socket::send(&**socket, &bytes, &fds, SendFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && wait_for(&**socket, PollFlags::OUT, PATIENCE) => {}
                result => return result,
            }
        }
    };
    let (id, spec) = (endpoint.id, endpoint.spec.clone());
    let first = match endpoint.side {
        Side::Publication => Request::ResumePublication { id, spec },
        Side::Subscription => Request::ResumeSubscription { id, spec },
    };
    send(&first, &endpoint.objects)?;
    let links = endpoint.links.lock().clone();
    for link in links {
        send(&Request::ResumeLink { object: id, link }, &[])?;
    }
    send(&Request::Ready { object: id }, &[])
}

/// Takes the fds out by number; they are closed at the end of this, mapped or not, but for the doorbell.
fn publisher_end(endpoint: &Endpoint, link: Link, fds: &mut Vec<OwnedFd>) -> Result<PublisherEnd, String> {
    let mut fds = fds.drain(..);
    let (Some(doorbell), Some(page)) = (fds.next(), fds.next()) else { return Err("file descriptors are missing".into()) };
    let page = Page::peer(&page).map_err(|error| error.to_string())?;
    let ring = match (endpoint.spec.kind, fds.next()) {
        (Kind::Mpsc, Some(ring)) => {
            Some(MpscRing::map(&ring, &endpoint.spec, link.page_size, true).map_err(|error| error.to_string())?)
        }
        (Kind::Mpsc, None) => return Err("file descriptors are missing".into()),
        _ => None,
    };
    let peer = PeerEnd::new(page.party(), doorbell);
    Ok(PublisherEnd { link, page, ring, peer })
}

/// As [`publisher_end`].
fn subscriber_end(endpoint: &Endpoint, link: Link, fds: &mut Vec<OwnedFd>) -> Result<SubscriberEnd, String> {
    let mut fds = fds.drain(..);
    let mut next = || fds.next().ok_or_else(|| "file descriptors are missing".to_owned());
    let doorbell = next()?;
    let sleeps = match endpoint.spec.has_sleep_page() {
        true => Some(Sleeps::map(&next()?, true).map_err(|error| error.to_string())?),
        false => None,
    };
    let ring = match endpoint.spec.kind {
        Kind::Mpsc => None,
        _ => Some(SingleRing::peer(&next()?, &endpoint.spec, link.page_size).map_err(|error| error.to_string())?),
    };
    let party = match (&ring, &endpoint.own_ring, u8::try_from(link.slot)) {
        (Some(ring), _, _) => ring.party(),
        // The producer's line is in the subscription's own ring.
        (None, Some(own), Ok(slot)) => {
            own.taken.producer_comes(slot);
            own.mapping.party(slot)
        }
        _ => return Err("there is no such producer slot".into()),
    };
    Ok(SubscriberEnd { link, ring, sleeps, peer: PeerEnd::new(party, doorbell) })
}
