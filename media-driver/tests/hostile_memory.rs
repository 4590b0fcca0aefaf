//! Peers that write whatever they like wherever they can write, from processes of their own: their victims go on, see whole messages or `Corrupt`, and wait for
//! nothing that has no end. What honest peers say beside them arrives as if they were not there, wherever the MMU keeps them apart.
//!
//! A hostile party is a client like any other that looks up its own mappings in `/proc/self/maps` and writes to them. `hostile_rings` does the same in one
//! process, faster and between guard pages.

mod crafted;

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crafted::{Crafted, Place, seed};
use ringbus::ring::layout::{MAX_LINKS, MpscControl, SingleControl, SleepPage, SubscriptionPage};
use ringbus::{Client, ImageEvent, Kind, OfferError, Overflow, PollError, RecvError, Subscription};
use rustix::time::ClockId::ThreadCPUTime;
use testing::{
    DriverProcess, Mapped, PATIENCE, Party, Random, Role, assert_works, check, connect, cpu_time, fill, in_time, mappings, pair,
    play_driver, scaled,
};

const CAPACITY: u64 = 4096;
/// No call may take longer. Others may have the CPU for seconds on a busy machine, so this is mostly about CPU time.
const BOUND: Duration = Duration::from_secs(10);
const CPU_BOUND: Duration = Duration::from_millis(200);
/// How long calls wait that wait.
const MOMENT: Duration = Duration::from_millis(1);

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => play_driver(role),
        "hostile publisher" => hostile_publisher(role),
        "hostile subscriber" => hostile_subscriber(role),
        "hostile ringer" => hostile_announcer(role),
        "reader" => reader(role),
        "writer" => writer(role),
        other => panic!("there is no role {other}"),
    }
}

// ---- What one can write ----

/// Where its objects are mapped. The second mapping of a ring's data begins elsewhere in the file.
fn objects() -> impl Iterator<Item = Mapped> {
    mappings().into_iter().filter(|mapped| mapped.offset == 0)
}

/// The rings that this process can write. To be looked up anew whenever publications or subscriptions have come or gone.
fn rings(control: usize) -> Vec<Place> {
    let place = |mapped: Mapped| {
        let control_at = mapped.address as *mut u8;
        assert_eq!(mapped.length, control.next_multiple_of(4096) + CAPACITY as usize);
        Place { control: control_at, data: control_at.wrapping_add(control.next_multiple_of(4096)), capacity: CAPACITY }
    };
    objects().filter(|mapped| mapped.is_ring() && mapped.is_writable()).map(place).collect()
}

/// Those that it shares with other subscribers.
fn sleep_pages() -> Vec<&'static SleepPage> {
    // SAFETY: as in `pages`.
    objects().filter(Mapped::is_sleep_page).map(|mapped| unsafe { &*(mapped.address as *const SleepPage) }).collect()
}

/// The pages, that of a hostile subscriber or those of a hostile publisher's victims.
fn pages(writable: bool) -> Vec<&'static SubscriptionPage> {
    let pages = objects().filter(|mapped| mapped.is_subscription_page() && mapped.is_writable() == writable);
    // SAFETY: mapped, all atomics; the caller gives it up before the mapping.
    pages.map(|mapped| unsafe { &*(mapped.address as *const SubscriptionPage) }).collect()
}

// ---- The hostile ----

/// Publishes, and then writes what it likes to its ring or, on an mpsc channel, to everybody's. Arguments: channel, kind, overflow, seed.
fn hostile_publisher(role: Role) {
    let (channel, kind, overflow, seed): (String, Kind, Overflow, u64) =
        (role.argument(0), role.argument(1), role.argument(2), role.argument(3));
    let client = role.client();
    let mut crafted = Crafted::new(seed, CAPACITY);
    role.say("ready");
    loop {
        let publication = client.channel(&channel).kind(kind).overflow(overflow).capacity(CAPACITY).publication();
        // The last one's place is given back when the victim has seen its end.
        let Ok(mut publication) = publication else { continue };
        if publication.wait_for_subscribers(1, Some(Instant::now() + Duration::from_millis(100))) != Ok(true) {
            continue;
        }
        let control = if kind == Kind::Mpsc { size_of::<MpscControl>() } else { size_of::<SingleControl>() };
        let (rings, pages) = (rings(control), pages(false));
        for place in rings.iter().filter(|_| kind != Kind::Mpsc) {
            for at in (0..CAPACITY).step_by(8) {
                let header = if crafted.once_in(500) { crafted.bad_header() } else { crafted.good_header() };
                place.word(at).store(header, Ordering::Relaxed);
            }
        }
        // Until the victim has had enough of this one, or for a while: the subscription is looked at before the next, as it may have taken its memory along.
        for _ in 0..crafted.random.below(200) {
            for _ in 0..100 {
                for &place in &rings {
                    if kind == Kind::Mpsc {
                        // SAFETY: mapped, all atomics.
                        let near = unsafe { &*place.control.cast::<MpscControl>() }.consumer.position.load(Ordering::Relaxed);
                        crafted.scribble_mpsc(place, near);
                    } else {
                        let line = pages.first().map(|page| &page.images[0].position);
                        crafted.scribble_single(place, line.map_or(0, |line| line.load(Ordering::Relaxed)));
                    }
                }
            }
            // Not on an mpsc channel: this drops the mappings that are being written.
            if kind != Kind::Mpsc && !publication.is_connected() {
                break;
            }
        }
    }
}

/// Subscribes, and then writes what it likes to its page, and to its ring if it has one. Arguments: channel, kind, seed.
fn hostile_subscriber(role: Role) {
    let (channel, kind, seed): (String, Kind, u64) = (role.argument(0), role.argument(1), role.argument(2));
    let client = role.client();
    let mut crafted = Crafted::new(seed, CAPACITY);
    role.say("ready");
    loop {
        let channel = client.channel(&channel).kind(kind).capacity(CAPACITY);
        let Ok(mut subscription) = channel.subscription() else { continue };
        let deadline = Instant::now() + Duration::from_millis(20);
        while subscription.images().is_empty() && Instant::now() < deadline {
            subscription.wait(Some(deadline));
            subscription.next_event();
        }
        // So that the line bears the link's id.
        let _ = subscription.poll(|_| (), 1);
        let (rings, pages, sleep_pages) = (rings(size_of::<MpscControl>()), pages(true), sleep_pages());
        while Instant::now() < deadline {
            for page in &sleep_pages {
                // Others may be kept asleep by it, as on a futex within one uid, and no more.
                let count = page.line.sleeps.load(Ordering::Relaxed);
                page.line.sleeps.store(crafted.number(count), Ordering::Relaxed);
            }
            for page in &pages {
                let party = &page.subscriber;
                let line = &page.images[crafted.random.below(4) as usize % MAX_LINKS];
                let number = crafted.number(line.position.load(Ordering::Relaxed));
                match crafted.random.below(16) {
                    0 => party.sleep_flag.store(number, Ordering::Relaxed),
                    1 => party.wake_sequence.store(number as u32, Ordering::Relaxed),
                    2 => party.asymmetric_fences.store(number as u32, Ordering::Relaxed),
                    3 if crafted.once_in(1000) => party.closed.store(1, Ordering::Relaxed),
                    4 => line.link.store(number, Ordering::Relaxed),
                    5..=9 => line.position.store(number, Ordering::Relaxed),
                    _ => drop(line.position.fetch_add(number & 0xF8, Ordering::Relaxed)),
                }
            }
            for &place in rings.iter().filter(|_| kind == Kind::Mpsc) {
                // SAFETY: mapped, all atomics.
                let tail = unsafe { &*place.control.cast::<MpscControl>() }.tail.tail.load(Ordering::Relaxed);
                crafted.scribble_mpsc(place, tail);
            }
        }
    }
}

/// Publishes on a lossy channel and does nothing but announce, as fast as it can, that nothing was overwritten. Arguments: channel.
fn hostile_announcer(role: Role) {
    let channel: String = role.argument(0);
    let client = role.client();
    let mut publication =
        client.channel(&channel).overflow(Overflow::Lossy).capacity(CAPACITY).publication().expect("a publication");
    connect(&mut publication, 1);
    let rings = rings(size_of::<SingleControl>());
    // SAFETY: mapped as long as the publication, all atomics.
    let control = unsafe { &*rings.first().expect("its ring").control.cast::<SingleControl>() };
    role.say("ready");
    for number in 1u64.. {
        control.announcement.number.store(number, Ordering::Release);
    }
}

// ---- Their victims ----

/// How long calls have taken, at most: in all, and of CPU time.
#[derive(Default)]
struct Longest(Duration, Duration);

impl Longest {
    #[track_caller]
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let (began, cpu) = (Instant::now(), cpu_time(ThreadCPUTime));
        let result = call();
        self.0 = self.0.max(began.elapsed());
        self.1 = self.1.max(cpu_time(ThreadCPUTime) - cpu);
        assert!(self.0 < BOUND && self.1 < CPU_BOUND, "a call took {:?}, {:?} of CPU time", self.0, self.1);
        result
    }
}

impl std::fmt::Display for Longest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({:?} of CPU time)", self.0, self.1)
    }
}

/// Where payloads may lie: in the rings this process has mapped.
struct Inside(Vec<std::ops::Range<usize>>);

impl Inside {
    #[track_caller]
    fn check(&mut self, payload: &[u8]) {
        let bytes = payload.as_ptr() as usize..payload.as_ptr() as usize + payload.len();
        let inside = |range: &std::ops::Range<usize>| range.start <= bytes.start && bytes.end <= range.end + CAPACITY as usize;
        if !self.0.iter().any(inside) {
            let rings = objects().filter(Mapped::is_ring);
            self.0 = rings.map(|mapped| mapped.address..mapped.address + mapped.length).collect();
            assert!(self.0.iter().any(inside), "{} bytes at {:#x} are in no ring: {:x?}", payload.len(), bytes.start, self.0);
        }
    }
}

/// Subscribes and reads, in all the ways there are. Messages of the honest process must come each once, in order, and whole. Says how much of the hostile
/// it has read, how many messages of the honest there were, how many images were corrupt, and how long the longest call took. It reads until there was a corrupt
/// one, if it is to read of the hostile at all. Arguments: channel, kind, overflow, reads, process id of the honest, how many it sends, seed.
fn reader(mut role: Role) {
    let (channel, kind, overflow): (String, Kind, Overflow) = (role.argument(0), role.argument(1), role.argument(2));
    let (wanted, honest, sent, seed): (u64, u32, u64, u64) =
        (role.argument(3), role.argument(4), role.argument(5), role.argument(6));
    let client = role.client();
    let subscribe = || -> Subscription {
        loop {
            // What an mpsc ring that was spoilt has left must be gone first.
            let channel = client.channel(&channel).kind(kind).overflow(overflow).capacity(CAPACITY);
            match channel.subscription() {
                Ok(subscription) => return subscription,
                Err(error) => assert!(matches!(error, ringbus::Error::Refused(_)), "{error}"),
            }
        }
    };
    let mut subscription = subscribe();
    role.say("ready");
    let (mut random, mut longest, mut inside) = (Random::new(seed), Longest::default(), Inside(Vec::new()));
    let (mut reads, mut heard, mut corrupt, mut image) = (0u64, 0u64, 0u64, 0u64);
    let deadline = Instant::now() + 20 * PATIENCE;
    while reads < wanted || heard < sent || (wanted > 0 && corrupt == 0) {
        assert!(Instant::now() < deadline, "{reads} reads, {heard} messages of the honest, {corrupt} corrupt");
        let mut buffer = [0; CAPACITY as usize];
        let mut take = |message: ringbus::Message<'_>| {
            if message.image() == image && kind != Kind::Mpsc {
                let (sender, sequence) = check(message.payload());
                assert_eq!((sender, sequence), (honest, heard), "the next of the honest");
                heard += 1;
                return;
            }
            reads += 1;
            if overflow == Overflow::Block {
                inside.check(message.payload());
            }
            assert!(message.payload().len() as u64 <= CAPACITY - 16);
            message.copy_to(&mut buffer);
            std::hint::black_box(&mut buffer);
        };
        let outcome = match random.below(16) {
            0 => longest.time(|| match subscription.recv_until(Some(Instant::now() + MOMENT)) {
                Ok(message) => {
                    take(message);
                    Ok(())
                }
                Err(RecvError::TimedOut) => Ok(()),
                Err(RecvError::Poll(error)) => Err(error),
                Err(error) => panic!("{error}"),
            }),
            1 => {
                longest.time(|| subscription.wait(Some(Instant::now() + MOMENT)));
                Ok(())
            }
            2..=5 => longest.time(|| {
                if let Some(message) = subscription.next()? {
                    take(message);
                }
                Ok(())
            }),
            _ => {
                let limit = 1 + random.below(50) as usize;
                longest.time(|| subscription.poll(&mut take, limit).map(drop))
            }
        };
        while let Some(event) = subscription.next_event() {
            match event {
                ImageEvent::Available(info) if info.publisher.pid == honest => image = info.id,
                _ => {}
            }
        }
        match outcome {
            Ok(()) => {}
            Err(PollError::Lost { image: lost, messages }) => {
                assert!(overflow == Overflow::Lossy && messages > 0);
                heard += if lost == image { messages } else { 0 };
            }
            Err(PollError::Corrupt { image: bad, .. }) => {
                assert!(bad != image || kind == Kind::Mpsc, "the honest are not to blame");
                (reads, corrupt) = (reads + 1, corrupt + 1);
            }
            Err(PollError::Closed) => {
                // First: there can be only one.
                drop(subscription);
                subscription = subscribe();
            }
            Err(error) => panic!("{error}"),
        }
    }
    [reads, heard, corrupt].iter().for_each(|number| role.say(number));
    role.say(longest);
    role.hold();
}

/// Publishes so many messages, each of which arrives: or, where the ring is shared with the hostile, so many attempts. Says how many were refused, how many
/// it sent, and how long the longest call took. Arguments: channel, kind, overflow, how many, subscribers to wait for.
fn writer(mut role: Role) {
    let (channel, kind, overflow): (String, Kind, Overflow) = (role.argument(0), role.argument(1), role.argument(2));
    let (count, subscribers): (u64, usize) = (role.argument(3), role.argument(4));
    let client = role.client();
    let publish =
        || client.channel(&channel).kind(kind).overflow(overflow).capacity(CAPACITY).publication().expect("a publication");
    let mut publication = publish();
    role.say("ready");
    if subscribers > 0 {
        assert_eq!(publication.wait_for_subscribers(subscribers, in_time()), Ok(true));
        role.say("connected");
        role.hear();
    }
    let (mut longest, mut buffer) = (Longest::default(), Vec::new());
    let (mut refused, mut sent) = (0u64, 0);
    let deadline = Instant::now() + 20 * PATIENCE;
    while sent < count && (kind != Kind::Mpsc || sent + refused < count) {
        assert!(Instant::now() < deadline, "{sent} messages, {refused} refused");
        fill(&mut buffer, std::process::id(), sent, 200);
        let result = longest.time(|| publication.offer_until(0, &buffer, Some(Instant::now() + MOMENT)));
        match result {
            Ok(_) => sent += 1,
            Err(OfferError::Closed) if kind == Kind::Mpsc => {
                refused += 1;
                publication = longest.time(publish);
            }
            Err(OfferError::NotConnected) => {
                refused += 1;
                let _ = publication.wait_connected(Some(Instant::now() + MOMENT));
            }
            Err(OfferError::TimedOut) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    [refused, sent].iter().for_each(|number| role.say(number));
    role.say(longest);
    role.hold();
}

/// What a writer says at its end: refused, sent, and its longest call.
fn hear_writer(writer: &Party) -> (u64, u64, String) {
    let number = || -> u64 { writer.hear_within(20 * PATIENCE).parse().expect("a number") };
    (number(), number(), writer.hear())
}

/// What a reader says at its end. It may take long.
fn hear_reader(reader: &Party) -> (u64, u64, u64, String) {
    let number = || -> u64 { reader.hear_within(20 * PATIENCE).parse().expect("a number") };
    (number(), number(), number(), reader.hear())
}

// ---- The attacks ----

/// The share of corrupted reads that each attack between processes makes.
fn reads() -> u64 {
    scaled("RINGBUS_TEST_CORRUPTIONS", 2_000_000) / 20
}

fn attack_reader(kind: Kind, overflow: Overflow) {
    let (driver, seed, reads) = (DriverProcess::launch(), seed(), reads());
    // A channel of many publications has honest ones, too.
    let messages = if kind == Kind::Broadcast { reads / 10 } else { 0 };
    let mut honest =
        (kind == Kind::Broadcast).then(|| Party::start("writer", &driver.address, &[&"c", &kind, &overflow, &messages, &1]));
    if let Some(honest) = &honest {
        honest.expect("ready");
    }
    let pid = honest.as_ref().map_or(0, Party::pid);
    let victim = Party::start("reader", &driver.address, &[&"c", &kind, &overflow, &reads, &pid, &messages, &seed]);
    victim.expect("ready");
    if let Some(honest) = &honest {
        honest.expect("connected");
    }
    let hostile = Party::start("hostile publisher", &driver.address, &[&"c", &kind, &overflow, &seed]);
    hostile.expect("ready");
    if let Some(honest) = &mut honest {
        honest.tell("go");
    }
    let (reads_made, heard, corrupt, longest) = hear_reader(&victim);
    println!(
        "seed {seed}: {reads_made} corrupted reads between processes, {kind} {overflow}: {corrupt} images corrupt, {heard} messages of the honest, longest call {longest}"
    );
    assert!(reads_made >= reads && corrupt > 0);
    // The last may have been lost.
    assert!(heard >= messages);
    victim.finish();
    drop(hostile);
    // All it did was in memory: the driver never knew.
    assert!(driver.connect().list().is_ok());
}

#[test]
fn a_subscriber_survives_a_hostile_publisher_spsc() {
    attack_reader(Kind::Spsc, Overflow::Block);
}

#[test]
fn a_subscriber_survives_a_hostile_publisher_and_hears_the_honest_one() {
    attack_reader(Kind::Broadcast, Overflow::Block);
}

#[test]
fn a_subscriber_of_a_lossy_channel_survives_a_hostile_publisher_and_hears_the_honest_one() {
    attack_reader(Kind::Broadcast, Overflow::Lossy);
}

#[test]
fn a_consumer_and_a_producer_survive_a_hostile_producer() {
    // A ring that was spoilt is closed, and each needs a subscription of its own: so fewer.
    let (driver, seed, reads) = (DriverProcess::launch(), seed(), (reads() / 500).max(1000));
    // The bystander's messages are among what it reads.
    let wanted = 2 * reads;
    let victim = Party::start("reader", &driver.address, &[&"c", &Kind::Mpsc, &Overflow::Block, &wanted, &0, &0, &seed]);
    victim.expect("ready");
    // It shares the ring, so it may be refused, or its messages lost; but it goes on. It is there first: the ring may be spoilt before it is linked to it.
    let mut bystander = Party::start("writer", &driver.address, &[&"c", &Kind::Mpsc, &Overflow::Block, &reads, &1]);
    bystander.expect("ready");
    bystander.expect("connected");
    let hostile = Party::start("hostile publisher", &driver.address, &[&"c", &Kind::Mpsc, &Overflow::Block, &seed]);
    hostile.expect("ready");
    bystander.tell("go");
    let (reads_made, _, corrupt, longest) = hear_reader(&victim);
    let (refused, sent, longest_offer) = hear_writer(&bystander);
    println!(
        "seed {seed}: {reads_made} corrupted reads between processes, mpsc: {corrupt} rings corrupt, longest call {longest}; {sent} offers, {refused} refused, longest {longest_offer}"
    );
    assert!(reads_made >= wanted && corrupt > 0);
    drop(hostile);
    bystander.finish();
    victim.finish();
    assert!(driver.connect().list().is_ok());
}

/// For tests that look up their own ring among those of this process: no other such test has one meanwhile, or drops it.
fn alone_with_its_ring() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever comes after a ring was spoilt is not linked to it: else his image would keep the subscription from saying that it is closed.
#[test]
fn a_spoilt_subscription_is_over_though_publications_keep_coming() {
    let _alone = alone_with_its_ring();
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let channel = || client.channel("spoilt").kind(Kind::Mpsc).capacity(CAPACITY);
    let (mut hostile, mut subscription) = pair(&client, "spoilt", Kind::Mpsc, Overflow::Block, CAPACITY);
    hostile.offer(b"spoil me").expect("it is sent");
    let rings = rings(size_of::<MpscControl>());
    rings.first().expect("its ring").word(16).store(u64::MAX, Ordering::Relaxed);
    assert_eq!(subscription.recv_until(in_time()).expect("the message").payload(), b"spoil me");
    assert!(matches!(subscription.recv_until(in_time()), Err(RecvError::Poll(PollError::Corrupt { .. }))));
    let mut late = channel().publication().expect("a publication");
    // A successor can come at once.
    let mut successor = channel().subscription().expect("a new subscription, with a ring of its own");
    connect(&mut late, 1);
    assert_works(&mut late, &mut successor);
    assert!(matches!(subscription.recv_until(in_time()), Err(RecvError::Poll(PollError::Closed))));
}

/// Frames that follow each other round and round, left by somebody who has closed: they end after one ring, also for a subscription that is never idle.
#[test]
fn a_circle_of_frames_ends_with_its_publisher() {
    let _alone = alone_with_its_ring();
    let driver = DriverProcess::launch();
    let client = driver.connect();
    for overflow in [Overflow::Block, Overflow::Lossy] {
        let name = overflow.to_string();
        let (mut hostile, mut subscription) = pair(&client, &name, Kind::Broadcast, overflow, CAPACITY);
        assert_works(&mut hostile, &mut subscription);
        let rings = rings(size_of::<SingleControl>());
        let ring = rings.first().expect("its ring");
        for position in (0..CAPACITY).step_by(8) {
            // A message without a byte.
            ring.word(position).store(1 << 56, Ordering::Relaxed);
        }
        let id = subscription.images()[0].id;
        drop(hostile);
        let mut honest = client.publication(&name).expect("a publication");
        connect(&mut honest, 1);
        let mut circle = 0;
        for _ in 0..CAPACITY {
            honest.offer(b"busy").expect("room");
            let count = |message: ringbus::Message<'_>| circle += u64::from(message.image() == id);
            assert!(subscription.poll(count, 1000).expect("no error") > 0);
        }
        let closed = subscription.images().iter().all(|image| image.id != id);
        assert!(closed && circle <= CAPACITY / 8, "{overflow}: closed: {closed}, {circle} messages");
    }
}

#[test]
fn producers_survive_a_hostile_consumer() {
    let (driver, seed, offers) = (DriverProcess::launch(), seed(), reads() / 10);
    let hostile = Party::start("hostile subscriber", &driver.address, &[&"c", &Kind::Mpsc, &seed]);
    hostile.expect("ready");
    let victims: Vec<Party> =
        (0..2).map(|_| Party::start("writer", &driver.address, &[&"c", &Kind::Mpsc, &Overflow::Block, &offers, &0])).collect();
    for victim in &victims {
        victim.expect("ready");
        let (refused, sent, longest) = hear_writer(victim);
        println!("seed {seed}: beside a hostile consumer {sent} offers, {refused} refused, longest {longest}");
        assert!(sent > 0 && refused > 0);
    }
    drop(hostile);
    victims.into_iter().for_each(Party::finish);
}

#[test]
fn a_publisher_survives_a_hostile_subscriber_and_the_honest_one_hears_all() {
    let (driver, seed, messages) = (DriverProcess::launch(), seed(), reads());
    let (kind, overflow) = (Kind::Broadcast, Overflow::Block);
    let mut publisher = Party::start("writer", &driver.address, &[&"c", &kind, &overflow, &messages, &1]);
    publisher.expect("ready");
    let honest = Party::start("reader", &driver.address, &[&"c", &kind, &overflow, &0, &publisher.pid(), &messages, &seed]);
    honest.expect("ready");
    publisher.expect("connected");
    let hostile = Party::start("hostile subscriber", &driver.address, &[&"c", &kind, &seed]);
    hostile.expect("ready");
    publisher.tell("go");
    let (refused, sent, longest) = hear_writer(&publisher);
    let (_, heard, corrupt, _) = hear_reader(&honest);
    println!(
        "seed {seed}: beside a hostile subscriber {sent} messages, {refused} times no room, longest offer {longest}; the honest one heard {heard}"
    );
    assert_eq!((sent, heard, corrupt), (messages, messages, 0));
    drop(hostile);
    publisher.finish();
    honest.finish();
}

/// Each announcement is news, but there is nothing to read: a deadline holds all the same.
#[test]
fn announcements_without_end_do_not_keep_a_reader_beyond_its_deadline() {
    let driver = DriverProcess::launch();
    let client: Client = driver.connect();
    let mut subscription =
        client.channel("c").overflow(Overflow::Lossy).capacity(CAPACITY).subscription().expect("a subscription");
    let hostile = Party::start("hostile ringer", &driver.address, &[&"c"]);
    hostile.expect("ready");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..1000 {
            let began = cpu_time(ThreadCPUTime);
            let outcome = subscription.recv_until(Some(Instant::now() + MOMENT)).map(|message| message.tag());
            let _ = sender.send((outcome, cpu_time(ThreadCPUTime) - began));
        }
    });
    let mut longest = Duration::ZERO;
    for _ in 0..1000 {
        let (outcome, took) = receiver.recv_timeout(PATIENCE).expect("a call has no end");
        assert_eq!(outcome, Err(RecvError::TimedOut));
        longest = longest.max(took);
    }
    println!("the longest of 1000 calls of 1 ms beside announcements without end took {longest:?} of CPU time");
    // Not less: what the kernel does meanwhile may count as the thread's time.
    assert!(longest < CPU_BOUND, "{longest:?}");
}

/// A position from which the ring's end wraps: the producer sees room when it looks, and none when it claims.
#[test]
fn a_consumer_at_the_end_of_numbers_does_not_keep_a_producer_beyond_its_deadline() {
    let _alone = alone_with_its_ring();
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let _subscription = client.channel("c").kind(Kind::Mpsc).capacity(CAPACITY).subscription().expect("a subscription");
    let mut publication = client.publication("c").expect("a publication");
    connect(&mut publication, 1);
    let rings = rings(size_of::<MpscControl>());
    // SAFETY: mapped as long as the subscription, all atomics.
    let control = unsafe { &*rings.first().expect("its ring").control.cast::<MpscControl>() };
    control.consumer.position.store(u64::MAX - 7, Ordering::Relaxed);
    let (sender, receiver) = std::sync::mpsc::channel();
    let offering = std::thread::spawn(move || {
        let fits = CAPACITY / 72;
        let offers = (0..fits + 10).map(|_| publication.offer_until(0, &[0; 64], Some(Instant::now() + MOMENT)));
        let _ = sender.send(offers.filter(|outcome| *outcome == Err(OfferError::TimedOut)).count());
    });
    assert!(receiver.recv_timeout(PATIENCE / 3).is_ok_and(|late| late > 0), "an offer has no end");
    // The ring is unmapped before another test looks at its own.
    offering.join().expect("no panic");
}
