//! What the driver knows: channels, publications, subscriptions, and the links between them. No sockets here: what is to be said goes
//! into an [`Outbox`], and time is passed in.
//!
//! All of it can be told anew by the clients, so a driver that was killed loses nothing. A link of which only one end has been told is a
//! *half*: its other end has yet to come back, or its process is found dead.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringbus::channel::{ChannelName, ChannelSpec, Kind, Properties};
use ringbus::control::message::{Entry, Event, Link, Refusal};
use ringbus::control::process::Process;
use ringbus::memory::MemoryError;
use ringbus::memory::memfd::{self, Sharing};
use ringbus::ring::layout::{MAX_LINKS, MAX_PRODUCERS, MpscControl, ObjectKind, SingleControl, SleepPage, SubscriptionPage};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::charter::{self, Role};
use crate::slots::Slots;

/// What is to be said, to whom, with which fds.
pub(crate) type Outbox = Vec<(u64, Event, Vec<Arc<OwnedFd>>)>;

/// Who asks: a session and the kernel's word for who is behind it.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) client: u64,
    pub(crate) process: Process,
    pub(crate) uid: u32,
    pub(crate) groups: Arc<[u32]>,
}

/// Which end of a link, and which kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Publication,
    Subscription,
}

/// A publication or subscription.
#[derive(Debug)]
struct Object {
    side: Side,
    channel: ChannelName,
    owner: Asker,
    /// Mapped by its owner and sealed, and all its links are known.
    ready: bool,
    /// Its page: of a subscription always; of a publication, where its subscriptions share one.
    page: Option<Arc<OwnedFd>>,
    /// Its ring, if it has one.
    ring: Option<Arc<OwnedFd>>,
    page_size: u64,
    bytes: u64,
    slots: Slots,
}

#[derive(Debug)]
struct Channel {
    spec: ChannelSpec,
    publications: Vec<u64>,
    subscriptions: Vec<u64>,
}

impl Channel {
    fn objects(&mut self, side: Side) -> &mut Vec<u64> {
        match side {
            Side::Publication => &mut self.publications,
            Side::Subscription => &mut self.subscriptions,
        }
    }
}

#[derive(Debug)]
struct LinkRecord {
    link: Link,
    state: State,
}

impl LinkRecord {
    /// Whether it is the half that the other side has told of.
    fn is_other_half(&self, side: Side, link: &Link) -> bool {
        matches!(self.state, State::Half { side: other, .. } if other != side)
            && (self.link.publication, self.link.subscription) == (link.publication, link.subscription)
    }
}

#[derive(Debug)]
enum State {
    /// The subscription has it; the publication gets this doorbell when the subscription has mapped everything.
    Offered(Arc<OwnedFd>),
    /// Both have it.
    Established,
    /// Only this side has told of it. The other belongs to that process, and is expected since then.
    Half { side: Side, peer: Process, since: Instant },
    /// The publication is gone; the subscription reads what there is.
    Ending { publication_holds: bool },
}

/// How long a process that lives and is not stopped may take to come back with its half of a link: clients try ten times a second.
const HALF_PATIENCE: Duration = Duration::from_secs(5);

/// Links that an `mpsc` publication may tell of. More are made up.
const MOST_MPSC_LINKS: usize = 64;

#[derive(Debug)]
pub(crate) struct Registry {
    channels: BTreeMap<ChannelName, Channel>,
    objects: HashMap<u64, Object>,
    links: HashMap<u64, LinkRecord>,
    memory_limit: u64,
    memory_used: u64,
}

impl Registry {
    pub(crate) fn new(memory_limit: u64) -> Self {
        Self { channels: BTreeMap::new(), objects: HashMap::new(), links: HashMap::new(), memory_limit, memory_used: 0 }
    }

    /// A new publication or subscription; creates its channel if there is none.
    pub(crate) fn add(
        &mut self,
        asker: &Asker,
        side: Side,
        request: u32,
        name: ChannelName,
        properties: &Properties,
        outbox: &mut Outbox,
    ) {
        match self.try_add(asker, side, request, name, properties) {
            Ok((event, fds)) => outbox.push((asker.client, event, fds)),
            Err(refusal) => outbox.push((asker.client, Event::Refused { request, refusal }, Vec::new())),
        }
    }

    fn try_add(
        &mut self,
        asker: &Asker,
        side: Side,
        request: u32,
        name: ChannelName,
        properties: &Properties,
    ) -> Result<(Event, Vec<Arc<OwnedFd>>), Refusal> {
        let spec = match self.channels.get(&name) {
            Some(channel) => {
                if let Some((property, existing, wanted)) = channel.spec.mismatch(properties) {
                    let (name, property) = (name.to_string(), property.to_owned());
                    return Err(Refusal::Mismatch { name, property, existing, wanted });
                }
                channel.spec.clone()
            }
            None => ChannelSpec::new(name, asker.uid, properties)?,
        };
        self.check_permitted(asker, side, &spec)?;
        self.check_vacant(side, &spec)?;
        let id = new_id().map_err(|error| Refusal::Memory(error.to_string()))?;
        let object = self.make(asker, side, id, &spec)?;
        let fds: Vec<_> = object.page.iter().chain(&object.ring).cloned().collect();
        let page_size = object.page_size;
        self.insert(id, object, spec.clone());
        let event = match side {
            Side::Publication => Event::PublicationAdded { request, id, spec, page_size },
            Side::Subscription => Event::SubscriptionAdded { request, id, spec, page_size },
        };
        Ok((event, fds))
    }

    fn check_permitted(&self, asker: &Asker, side: Side, spec: &ChannelSpec) -> Result<(), Refusal> {
        let (permitted, action) = match side {
            Side::Publication => (spec.may_publish(asker.uid, &asker.groups), "publish"),
            Side::Subscription => (spec.may_subscribe(asker.uid, &asker.groups), "subscribe"),
        };
        if permitted {
            return Ok(());
        }
        let (name, action) = (spec.name.to_string(), action.to_owned());
        Err(Refusal::NotPermitted { name, action, uid: asker.uid, owner: spec.owner })
    }

    /// `spsc` has one of each, `mpsc` one subscription.
    fn check_vacant(&self, side: Side, spec: &ChannelSpec) -> Result<(), Refusal> {
        let Some(channel) = self.channels.get(&spec.name) else { return Ok(()) };
        let (there, what) = match (side, spec.kind) {
            (Side::Publication, Kind::Spsc) => (&channel.publications, "publication"),
            (Side::Subscription, Kind::Spsc | Kind::Mpsc) => (&channel.subscriptions, "subscription"),
            _ => return Ok(()),
        };
        let Some(object) = there.first().and_then(|id| self.objects.get(id)) else { return Ok(()) };
        Err(Refusal::Occupied {
            name: spec.name.to_string(),
            kind: spec.kind.to_string(),
            what: what.to_owned(),
            pid: object.owner.process.pid,
        })
    }

    /// Makes the memory of a publication or subscription.
    fn make(&self, asker: &Asker, side: Side, id: u64, spec: &ChannelSpec) -> Result<Object, Refusal> {
        let bytes = memory_of(side, spec);
        let left = self.memory_limit.saturating_sub(self.memory_used);
        if bytes > left {
            return Err(Refusal::MemoryLimit { limit: self.memory_limit, left, wanted: bytes });
        }
        let refused = |error: MemoryError| Refusal::Memory(error.to_string());
        let ring_name = charter::name(Role::Ring, id, asker.uid, spec);
        let ring = ring_of(side, spec)
            .map(|(kind, control)| memfd::create(&ring_name, kind, id, control, spec.capacity, spec.huge_pages).map_err(refused));
        let ring = ring.transpose()?;
        let page_size = ring.as_ref().map_or(memfd::page_size(), |ring| ring.page_size);
        let page = page_of(side, spec).map(|(role, kind, bytes)| {
            let name = charter::name(role, id, asker.uid, spec);
            memfd::create(&name, kind, id, bytes, 0, memfd::HugePages::Never).map_err(refused)
        });
        let page = page.transpose()?;
        Ok(Object {
            side,
            channel: spec.name.clone(),
            owner: asker.clone(),
            ready: false,
            page: page.map(|page| Arc::new(page.fd)),
            ring: ring.map(|ring| Arc::new(ring.fd)),
            page_size,
            bytes,
            slots: slots_of(side, spec.kind),
        })
    }

    fn insert(&mut self, id: u64, object: Object, spec: ChannelSpec) {
        self.memory_used += object.bytes;
        let channel = self.channels.entry(spec.name.clone()).or_insert_with(|| Channel {
            spec,
            publications: Vec::new(),
            subscriptions: Vec::new(),
        });
        channel.objects(object.side).push(id);
        self.objects.insert(id, object);
    }

    /// An object that a former driver has made.
    pub(crate) fn resume(
        &mut self,
        asker: &Asker,
        side: Side,
        id: u64,
        spec: ChannelSpec,
        fds: Vec<OwnedFd>,
        outbox: &mut Outbox,
    ) {
        if let Err(refusal) = self.try_resume(asker, side, id, spec, fds) {
            outbox.push((asker.client, Event::Lost { object: id, refusal }, Vec::new()));
        }
    }

    fn try_resume(&mut self, asker: &Asker, side: Side, id: u64, spec: ChannelSpec, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let fraud = |what: &str| Refusal::Fraud(what.to_owned());
        spec.check()?;
        if let Some(existing) = self.objects.get(&id) {
            let own = existing.owner.client == asker.client;
            return if own { Ok(()) } else { Err(fraud("the object is held by another client")) };
        }
        if let Some(channel) = self.channels.get(&spec.name)
            && channel.spec != spec
        {
            return Err(fraud("the channel exists with other properties meanwhile"));
        }
        self.check_permitted(asker, side, &spec)?;
        self.check_vacant(side, &spec)?;
        let mut fds = fds.into_iter();
        let mut take = |role: Role| -> Result<Arc<OwnedFd>, Refusal> {
            let fd = fds.next().ok_or_else(|| fraud("an object is missing"))?;
            let genuine = charter::is_genuine(&fd, &charter::name(role, id, asker.uid, &spec));
            if genuine { Ok(Arc::new(fd)) } else { Err(fraud("the object was not made by a driver for this client")) }
        };
        let page = page_of(side, &spec).map(|(role, ..)| take(role)).transpose()?;
        let ring = ring_of(side, &spec).map(|_| take(Role::Ring)).transpose()?;
        let page_size = match &ring {
            Some(ring) => rustix::fs::fstat(ring).map_or(memfd::page_size(), |stat| stat.st_blksize as u64),
            None => memfd::page_size(),
        };
        let bytes = memory_of(side, &spec);
        let object = Object {
            side,
            channel: spec.name.clone(),
            owner: asker.clone(),
            ready: false,
            page,
            ring,
            page_size,
            bytes,
            slots: slots_of(side, spec.kind),
        };
        self.insert(id, object, spec);
        Ok(())
    }

    /// A link of an object that is being resumed.
    pub(crate) fn resume_link(&mut self, asker: &Asker, object_id: u64, link: Link, now: Instant, outbox: &mut Outbox) {
        let Some(object) = self.objects.get_mut(&object_id) else { return };
        let side = object.side;
        let (own, number) = match side {
            Side::Publication => (link.publication, link.slot),
            Side::Subscription => (link.subscription, link.line),
        };
        if object.owner.client != asker.client || object.ready || own != object_id {
            return;
        }
        // Such a publication has no numbers to give: its link's is the subscription's. It has one link, and a few that it does not know to be over.
        let is_mpsc_publication = side == Side::Publication && object.ring.is_none();
        let is_mpsc_subscription = side == Side::Subscription && object.ring.is_some();
        let has_number = match is_mpsc_publication {
            true => self.links_of(object_id).len() < MOST_MPSC_LINKS,
            false => object.slots.take_this(number),
        };
        let ended = Event::LinkEnded { object: object_id, link: link.id };
        if !has_number {
            return outbox.push((asker.client, ended, Vec::new()));
        }
        match self.links.get_mut(&link.id) {
            None => {
                let state = State::Half { side, peer: link.peer, since: now };
                self.links.insert(link.id, LinkRecord { link, state });
            }
            Some(record) if record.is_other_half(side, &link) => {
                record.state = State::Established;
                // Of its numbers each end says its own; what the other has said of them may be a lie.
                match side {
                    Side::Publication if !is_mpsc_publication => record.link.slot = link.slot,
                    Side::Publication => {}
                    Side::Subscription if is_mpsc_subscription => (record.link.line, record.link.slot) = (link.line, link.line),
                    Side::Subscription => record.link.line = link.line,
                }
            }
            Some(_) => {
                if !is_mpsc_publication {
                    self.give_slot_back(object_id, number);
                }
                outbox.push((asker.client, ended, Vec::new()));
            }
        }
    }

    /// The object is mapped, or all its links have been told: seals it and joins it to all there are.
    pub(crate) fn ready(&mut self, asker: &Asker, id: u64, outbox: &mut Outbox) {
        let Some(object) = self.objects.get_mut(&id).filter(|object| object.owner.client == asker.client) else {
            outbox.push((asker.client, Event::Unknown { object: id }, Vec::new()));
            return;
        };
        if object.ready {
            return;
        }
        let (side, name) = (object.side, object.channel.clone());
        if let Err(error) = seal(object) {
            let refusal = Refusal::Fraud(error.to_string());
            outbox.push((asker.client, Event::Lost { object: id, refusal }, Vec::new()));
            self.remove(id, outbox);
            return;
        }
        object.ready = true;
        let Some(channel) = self.channels.get(&name) else { return };
        let others = match side {
            Side::Publication => channel.subscriptions.clone(),
            Side::Subscription => channel.publications.clone(),
        };
        for other in others {
            if !self.objects.get(&other).is_some_and(|object| object.ready) {
                continue;
            }
            let (publication, subscription) = match side {
                Side::Publication => (id, other),
                Side::Subscription => (other, id),
            };
            self.join(publication, subscription, outbox);
        }
    }

    /// Joins a publication to a subscription, unless they are. Both have told all they know, so what only one of them knows is over.
    fn join(&mut self, publication: u64, subscription: u64, outbox: &mut Outbox) {
        let between = |record: &&LinkRecord| record.link.publication == publication && record.link.subscription == subscription;
        let known: Vec<_> = self.links.values().filter(between).map(|record| record.link.id).collect();
        let mut joined = false;
        for link in known {
            match self.links[&link].state {
                State::Half { .. } => self.end_half(link, outbox),
                State::Offered(_) | State::Established => joined = true,
                State::Ending { .. } => {}
            }
        }
        if !joined && let Err(reason) = self.offer(publication, subscription, outbox) {
            tracing::warn!(publication, subscription, reason, "cannot link");
            let client = self.objects[&subscription].owner.client;
            outbox.push((client, Event::LinkFailed { object: subscription, reason }, Vec::new()));
        }
    }

    /// Shows the publication to the subscription. The other way round happens when that one has mapped it: a producer must never claim in a ring whose consumer does not know of it.
    fn offer(&mut self, publication: u64, subscription: u64, outbox: &mut Outbox) -> Result<(), String> {
        let id = new_id().map_err(|error| error.to_string())?;
        let flags = SocketFlags::CLOEXEC;
        let (publisher_bell, subscriber_bell) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| format!("the driver cannot make a doorbell: {errno}"))?;
        let line = self.take_slot(subscription).ok_or("the subscription has as many images as there can be")?;
        let publisher = &self.objects[&publication];
        let (process, page_size) = (publisher.owner.process, publisher.page_size);
        let slot = match &publisher.ring {
            None => Some(line),
            Some(_) => self.take_slot(publication),
        };
        let Some(slot) = slot else {
            self.give_slot_back(subscription, line);
            return Err("the publication has as many subscriptions as there can be".to_owned());
        };
        let mut fds = vec![Arc::new(subscriber_bell)];
        let publisher = &self.objects[&publication];
        fds.extend(publisher.page.iter().chain(&publisher.ring).cloned());
        let link = Link { id, publication, subscription, slot, line, page_size, peer: process };
        let client = self.objects[&subscription].owner.client;
        outbox.push((client, Event::SubscriberLink { link }, fds));
        self.links.insert(id, LinkRecord { link, state: State::Offered(Arc::new(publisher_bell)) });
        Ok(())
    }

    fn take_slot(&mut self, object: u64) -> Option<u32> {
        self.objects.get_mut(&object)?.slots.take()
    }

    fn give_slot_back(&mut self, object: u64, number: u32) {
        if let Some(object) = self.objects.get_mut(&object) {
            object.slots.give_back(number);
        }
    }

    /// The subscription has mapped what it needs: now the publication may know.
    pub(crate) fn link_ready(&mut self, asker: &Asker, link: u64, outbox: &mut Outbox) {
        let Some(record) = self.links.get_mut(&link) else { return };
        let (Some(publication), Some(subscription)) =
            (self.objects.get(&record.link.publication), self.objects.get(&record.link.subscription))
        else {
            return;
        };
        if subscription.owner.client != asker.client {
            return;
        }
        let State::Offered(bell) = &record.state else { return };
        let mut fds = vec![Arc::clone(bell)];
        fds.extend(subscription.page.clone());
        fds.extend(subscription.ring.clone());
        let page_size = if subscription.ring.is_some() { subscription.page_size } else { record.link.page_size };
        let link = Link { peer: subscription.owner.process, page_size, ..record.link };
        outbox.push((publication.owner.client, Event::PublisherLink { link }, fds));
        record.state = State::Established;
    }

    /// One end could not be mapped.
    pub(crate) fn link_failed(&mut self, asker: &Asker, link: u64, reason: &str, outbox: &mut Outbox) {
        let Some(record) = self.links.get(&link) else { return };
        tracing::warn!(link, pid = asker.process.pid, reason, "a client could not use a link");
        let held_by = |object: u64| self.objects.get(&object).is_some_and(|object| object.owner.client == asker.client);
        if held_by(record.link.subscription) {
            self.link_done(asker, link, outbox);
        } else if held_by(record.link.publication) {
            self.publication_left(link, outbox);
        }
    }

    /// The subscription has no more use for the link.
    pub(crate) fn link_done(&mut self, asker: &Asker, link: u64, outbox: &mut Outbox) {
        let Some(record) = self.links.get(&link) else { return };
        if self.objects.get(&record.link.subscription).is_none_or(|object| object.owner.client != asker.client) {
            return;
        }
        self.subscription_left(link, outbox);
    }

    /// The subscription's end of a link is gone: the publication need not wait for it.
    fn subscription_left(&mut self, link: u64, outbox: &mut Outbox) {
        let Some(record) = self.links.remove(&link) else { return };
        let Link { publication, subscription, slot, line, .. } = record.link;
        let known = matches!(record.state, State::Established | State::Half { side: Side::Publication, .. });
        if let (true, Some(publisher)) = (known, self.objects.get(&publication)) {
            outbox.push((publisher.owner.client, Event::LinkEnded { object: publication, link }, Vec::new()));
        }
        // A half may be made up: it holds the number of its own end, and what it says of the other may be somebody else's.
        let (publication_holds, subscription_holds) = match record.state {
            State::Offered(_) | State::Established => (true, true),
            State::Half { side, .. } => (side == Side::Publication, side == Side::Subscription),
            State::Ending { publication_holds } => (publication_holds, true),
        };
        if subscription_holds {
            self.give_slot_back(subscription, line);
        }
        if publication_holds {
            self.give_slot_back(publication, slot);
        }
    }

    /// The publication's end of a link is gone: the subscription reads what there is, and says when it is done.
    fn publication_left(&mut self, link: u64, outbox: &mut Outbox) {
        let Some(record) = self.links.get_mut(&link) else { return };
        let Link { publication, subscription: object, slot, .. } = record.link;
        let own_half = matches!(record.state, State::Half { side: Side::Publication, .. });
        let publication_holds = !matches!(record.state, State::Half { side: Side::Subscription, .. });
        let subscriber = self.objects.get(&object);
        // One that has not told of all its links yet may know this one, too: then it says so itself.
        if let Some(subscriber) = subscriber.filter(|subscriber| !(own_half && subscriber.ready)) {
            outbox.push((subscriber.owner.client, Event::LinkEnded { object, link }, Vec::new()));
        }
        match subscriber {
            // What nobody but the publication has told of is over with it, or made up.
            Some(_) if !own_half => record.state = State::Ending { publication_holds },
            _ => {
                self.links.remove(&link);
                if publication_holds {
                    self.give_slot_back(publication, slot);
                }
            }
        }
    }

    /// The end of a half that was expected will not come.
    fn end_half(&mut self, link: u64, outbox: &mut Outbox) {
        let Some(State::Half { side, .. }) = self.links.get(&link).map(|record| &record.state) else { return };
        match side {
            Side::Subscription => self.publication_left(link, outbox),
            Side::Publication => self.subscription_left(link, outbox),
        }
    }

    /// Its owner does not use the object any more.
    pub(crate) fn close(&mut self, asker: &Asker, id: u64, outbox: &mut Outbox) {
        if self.objects.get(&id).is_some_and(|object| object.owner.client == asker.client) {
            self.remove(id, outbox);
        }
    }

    fn remove(&mut self, id: u64, outbox: &mut Outbox) {
        let Some(object) = self.take_object(id) else { return };
        for link in self.links_of(id) {
            match object.side {
                Side::Publication => self.publication_left(link, outbox),
                Side::Subscription => self.subscription_left(link, outbox),
            }
        }
    }

    fn take_object(&mut self, id: u64) -> Option<Object> {
        let object = self.objects.remove(&id)?;
        self.memory_used -= object.bytes;
        if let Some(channel) = self.channels.get_mut(&object.channel) {
            channel.objects(object.side).retain(|&other| other != id);
            if channel.publications.is_empty() && channel.subscriptions.is_empty() {
                self.channels.remove(&object.channel);
            }
        }
        Some(object)
    }

    fn links_of(&self, object: u64) -> Vec<u64> {
        let of = |record: &&LinkRecord| record.link.publication == object || record.link.subscription == object;
        self.links.values().filter(of).map(|record| record.link.id).collect()
    }

    fn objects_of(&self, of: impl Fn(&Asker) -> bool) -> Vec<u64> {
        self.objects.iter().filter(|(_, object)| of(&object.owner)).map(|(&id, _)| id).collect()
    }

    /// The client has said goodbye.
    pub(crate) fn client_left(&mut self, client: u64, outbox: &mut Outbox) {
        for object in self.objects_of(|owner| owner.client == client) {
            self.remove(object, outbox);
        }
    }

    /// The client's connection has ended without a goodbye. Its process may be dead, or may come back; until that is known its peers are left alone.
    pub(crate) fn client_away(&mut self, client: u64, now: Instant) {
        for id in self.objects_of(|owner| owner.client == client) {
            let Some(object) = self.take_object(id) else { continue };
            let peer = object.owner.process;
            for link in self.links_of(id) {
                let Some(record) = self.links.get_mut(&link) else { continue };
                record.state = match (object.side, &record.state) {
                    // The other end is there, and this one was still to be told.
                    (own, State::Half { side, .. }) if own != *side => continue,
                    (Side::Publication, State::Offered(_) | State::Established) => {
                        State::Half { side: Side::Subscription, peer, since: now }
                    }
                    (Side::Subscription, State::Established) => State::Half { side: Side::Publication, peer, since: now },
                    // It has no numbers any more, and gets none back if it returns.
                    (Side::Publication, State::Ending { .. }) => State::Ending { publication_holds: false },
                    // Nobody holds the other end, but its number may be held for it.
                    (_, state) => {
                        let held = matches!(state, State::Offered(_) | State::Ending { publication_holds: true });
                        let Link { publication, slot, .. } = record.link;
                        self.links.remove(&link);
                        if held {
                            self.give_slot_back(publication, slot);
                        }
                        continue;
                    }
                };
            }
        }
    }

    /// A process is dead for sure.
    pub(crate) fn process_died(&mut self, process: Process, outbox: &mut Outbox) {
        for object in self.objects_of(|owner| owner.process == process) {
            self.remove(object, outbox);
        }
        for (link, peer) in self.halves() {
            if peer == process {
                self.end_half(link, outbox);
            }
        }
    }

    fn halves(&self) -> Vec<(u64, Process)> {
        let half = |record: &LinkRecord| match record.state {
            State::Half { peer, .. } => Some((record.link.id, peer)),
            _ => None,
        };
        self.links.values().filter_map(half).collect()
    }

    /// Processes whose return or death is awaited.
    pub(crate) fn awaited(&self) -> Vec<Process> {
        self.halves().into_iter().map(|(_, peer)| peer).collect()
    }

    /// Gives up halves whose process lives and runs and did not come back: it has dropped them, or become another program.
    pub(crate) fn give_up_halves(&mut self, now: Instant, outbox: &mut Outbox) {
        let mut links = Vec::new();
        for record in self.links.values_mut() {
            let State::Half { peer, since, .. } = &mut record.state else { continue };
            if peer.is_stopped() {
                // Its time begins when it is continued: it must not be found overdue before it could say a word.
                *since = now;
            } else if now.duration_since(*since) >= HALF_PATIENCE {
                links.push(record.link.id);
            }
        }
        for link in links {
            self.end_half(link, outbox);
        }
    }

    /// Everything there is, for whoever asks.
    pub(crate) fn list(&self) -> Vec<Entry> {
        let mut links: HashMap<u64, u32> = HashMap::new();
        for LinkRecord { link, .. } in self.links.values() {
            *links.entry(link.publication).or_default() += 1;
            *links.entry(link.subscription).or_default() += 1;
        }
        let mut entries = Vec::with_capacity(self.objects.len());
        for channel in self.channels.values() {
            for &id in channel.publications.iter().chain(&channel.subscriptions) {
                let Some(object) = self.objects.get(&id) else { continue };
                entries.push(Entry {
                    spec: channel.spec.clone(),
                    id,
                    publishes: object.side == Side::Publication,
                    pid: object.owner.process.pid,
                    uid: object.owner.uid,
                    links: links.get(&id).copied().unwrap_or(0),
                });
            }
        }
        entries
    }

    /// How many objects and links there are, for tests and logs.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.objects.len(), self.links.len())
    }
}

/// The ring that belongs to such an object, if one does: its kind and the size of its control area.
fn ring_of(side: Side, spec: &ChannelSpec) -> Option<(ObjectKind, u64)> {
    match (side, spec.kind) {
        (Side::Publication, Kind::Spsc | Kind::Broadcast) => Some((ObjectKind::SingleRing, size_of::<SingleControl>() as u64)),
        (Side::Subscription, Kind::Mpsc) => Some((ObjectKind::MpscRing, size_of::<MpscControl>() as u64)),
        _ => None,
    }
}

/// The page that belongs to such an object, if one does, and its bytes.
fn page_of(side: Side, spec: &ChannelSpec) -> Option<(Role, ObjectKind, u64)> {
    match side {
        Side::Subscription => Some((Role::Page, ObjectKind::SubscriptionPage, size_of::<SubscriptionPage>() as u64)),
        Side::Publication => {
            spec.has_sleep_page().then_some((Role::SleepPage, ObjectKind::SleepPage, size_of::<SleepPage>() as u64))
        }
    }
}

fn slots_of(side: Side, kind: Kind) -> Slots {
    match (side, kind) {
        (Side::Subscription, Kind::Mpsc) => Slots::new(MAX_PRODUCERS),
        _ => Slots::new(MAX_LINKS),
    }
}

/// What such an object can take at most, in bytes.
fn memory_of(side: Side, spec: &ChannelSpec) -> u64 {
    let ring = ring_of(side, spec).map_or(0, |(_, control)| control + spec.capacity);
    ring + page_of(side, spec).map_or(0, |(.., bytes)| bytes)
}

/// From here on nobody else can map the object in a way he should not.
fn seal(object: &Object) -> Result<(), MemoryError> {
    // A subscription's page it alone writes, and a publication's ring; its peers write the others, too.
    let (page, ring) = match object.side {
        Side::Subscription => (Sharing::OwnerWrites, Sharing::AllWrite),
        Side::Publication => (Sharing::AllWrite, Sharing::OwnerWrites),
    };
    object.page.iter().try_for_each(|fd| memfd::seal(fd.as_fd(), page))?;
    object.ring.iter().try_for_each(|fd| memfd::seal(fd.as_fd(), ring))
}

/// A random id. Never 0.
fn new_id() -> rustix::io::Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes) | 1)
}
