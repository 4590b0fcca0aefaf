//! No wake-up is lost: messages come at random times, each has to be noticed before the next one is sent, and nobody but it would wake the sleeper.
//!
//! `RINGBUS_TEST_WAKEUPS` is how many of them there are in each test; without it, fewer on a machine that is busy otherwise.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use media_driver::EmbeddedDriver;
use ringbus::channel::{Access, Grant};
use ringbus::{Client, Idle, Kind, OfferError, Publication, RecvError, Subscription};
use rustix::event::epoll::EventFlags;
use testing::{EventLoop, KINDS, PATIENCE, Party, Random, Role, connect, scaled};

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "pinger" => pinger(role),
        "echo" => echo(role),
        "filler" => filler(role),
        "drainer" => drainer(role),
        other => panic!("there is no role {other}"),
    }
}

const WAKEUPS: &str = "RINGBUS_TEST_WAKEUPS";

/// What the one who sends counts: numbers, up to as many as are wanted, or as there is time for.
fn numbers() -> impl Iterator<Item = u64> {
    const LONG_ENOUGH: Duration = Duration::from_secs(10);
    let (wanted, started) = (scaled(WAKEUPS, 20_000), Instant::now());
    let hurry = std::env::var_os(WAKEUPS).is_none();
    (0..wanted).take_while(move |_| !hurry || started.elapsed() < LONG_ENOUGH)
}

/// Tells the other side that there are no more.
const NO_MORE: u64 = u64::MAX;

/// Far longer than any wake-up takes: who still sleeps then would sleep for ever.
const LOST: Duration = Duration::from_secs(10);

/// How a party waits: by futex, or in an event loop, and whether it may use `membarrier`.
#[derive(Debug, Clone, Copy)]
struct Mode {
    epoll: Option<EventFlags>,
    membarrier: bool,
}

impl Mode {
    /// The arguments of a role from `first` on.
    fn of(role: &Role, first: usize) -> Self {
        let epoll = match role.argument::<String>(first).as_str() {
            "futex" => None,
            "level" => Some(EventFlags::IN),
            "edge" => Some(EventFlags::IN | EventFlags::ET),
            other => panic!("there is no way to wait called {other}"),
        };
        Self { epoll, membarrier: role.argument(first + 1) }
    }

    fn client(&self, role: &Role) -> Client {
        let client = Client::builder().address(role.address.clone()).membarrier(self.membarrier).connect().expect("a client");
        assert!(self.membarrier || !client.has_asymmetric_fences());
        client
    }
}

/// A subscription, and the event loop it sits in, if any.
struct Receiver {
    // In this order: the loop goes first.
    events: Option<EventLoop>,
    subscription: Subscription,
}

impl Receiver {
    fn new(mode: Mode, subscription: Subscription) -> Self {
        Self { events: mode.epoll.map(|flags| EventLoop::around(&subscription, flags)), subscription }
    }

    /// The number in the next message.
    fn number(&mut self) -> u64 {
        let number = |message: ringbus::Message<'_>| u64::from_le_bytes(message.payload()[..8].try_into().expect("a number"));
        let Some(events) = &self.events else {
            return match self.subscription.recv_until(Some(Instant::now() + LOST)) {
                Ok(message) => number(message),
                Err(RecvError::TimedOut) => panic!("a wake-up was lost"),
                Err(error) => panic!("{error}"),
            };
        };
        loop {
            while self.subscription.next_event().is_some() {}
            if let Some(message) = self.subscription.next().expect("no error") {
                return number(message);
            }
            assert!(events.turn(LOST), "a wake-up was lost");
        }
    }
}

/// Lets a random time pass, awake: going to sleep and being woken by a timer takes longer than most of them.
fn pause(random: &mut Random) {
    let until = Instant::now() + Duration::from_nanos(random.below(200_000));
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Sends numbers and waits for each to come back. Arguments: kind, way to wait, whether with membarrier.
fn pinger(mut role: Role) {
    let mode = Mode::of(&role, 1);
    let client = mode.client(&role);
    let mut ping = client.channel("ping").kind(role.argument(0)).publication().expect("a publication");
    let pong = client.channel("pong").kind(role.argument(0)).idle(Idle::Parking).subscription().expect("a subscription");
    let mut pong = Receiver::new(mode, pong);
    connect(&mut ping, 1);
    let mut random = Random::new(5);
    for number in numbers().chain([NO_MORE]) {
        pause(&mut random);
        ping.offer(&number.to_le_bytes()).expect("room");
        assert_eq!(pong.number(), number);
    }
    role.say("done");
    role.hold();
}

/// Sends back what comes. Arguments as for the pinger.
fn echo(role: Role) {
    let mode = Mode::of(&role, 1);
    let client = mode.client(&role);
    let mut pong = client.channel("pong").kind(role.argument(0)).publication().expect("a publication");
    let ping = client.channel("ping").kind(role.argument(0)).idle(Idle::Parking).subscription().expect("a subscription");
    let mut ping = Receiver::new(mode, ping);
    connect(&mut pong, 1);
    let mut number = 0;
    while number != NO_MORE {
        number = ping.number();
        pong.offer(&number.to_le_bytes()).expect("room");
    }
}

/// A message that leaves no room for another one, so that its sender has to wait for each to be read.
const LARGE: usize = 4000;

fn offer(events: Option<&EventLoop>, publication: &mut Publication, message: &[u8]) {
    let Some(events) = events else {
        let result = publication.offer_until(0, message, Some(Instant::now() + LOST));
        assert_ne!(result, Err(OfferError::TimedOut), "a wake-up was lost");
        result.expect("room");
        return;
    };
    loop {
        match publication.offer(message) {
            Ok(_) => return,
            Err(OfferError::BackPressured) => assert!(events.turn(LOST), "a wake-up was lost"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits for room for each message. Arguments as for the pinger.
fn filler(mut role: Role) {
    let mode = Mode::of(&role, 1);
    let client = mode.client(&role);
    let channel = client.channel("space").kind(role.argument(0)).capacity(4096).idle(Idle::Parking);
    let mut publication = channel.publication().expect("a publication");
    connect(&mut publication, 1);
    let events = mode.epoll.map(|flags| EventLoop::around(&publication, flags));
    let mut message = [0; LARGE];
    for number in numbers().chain([NO_MORE]) {
        message[..8].copy_from_slice(&number.to_le_bytes());
        offer(events.as_ref(), &mut publication, &message);
    }
    role.say("done");
    role.hold();
}

/// Makes room at random times. Arguments as for the pinger.
fn drainer(mut role: Role) {
    let mode = Mode::of(&role, 1);
    let client = mode.client(&role);
    let channel = client.channel("space").kind(role.argument(0)).capacity(4096).idle(Idle::Parking);
    let mut receiver = Receiver::new(mode, channel.subscription().expect("a subscription"));
    let mut random = Random::new(6);
    for expected in 0.. {
        let number = receiver.number();
        if number == NO_MORE {
            break;
        }
        assert_eq!(number, expected);
        pause(&mut random);
    }
    role.hold();
}

/// Runs both; the second argument of each is how it waits, the third whether it uses membarrier.
fn play(roles: [&str; 2], kind: Kind, way: &str, membarrier: [bool; 2]) {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let start = |index: usize| Party::start(roles[index], driver.address(), &[&kind, &way, &membarrier[index]]);
    let parties = [start(0), start(1)];
    // With more of them it may take longer.
    let patience = PATIENCE + Duration::from_millis(10) * u32::try_from(scaled(WAKEUPS, 0)).expect("not that many");
    assert_eq!(parties[0].hear_within(patience), "done");
    parties.into_iter().for_each(Party::finish);
}

const PING: [&str; 2] = ["pinger", "echo"];
const SPACE: [&str; 2] = ["filler", "drainer"];

#[test]
fn no_message_is_slept_through_on_a_futex() {
    play(PING, Kind::Broadcast, "futex", [true, true]);
}

#[test]
fn no_message_is_slept_through_on_a_futex_without_membarrier() {
    play(PING, Kind::Spsc, "futex", [false, false]);
}

#[test]
fn no_message_is_slept_through_when_only_one_side_has_membarrier() {
    play(PING, Kind::Mpsc, "futex", [true, false]);
}

#[test]
fn no_message_is_slept_through_in_an_event_loop() {
    play(PING, Kind::Broadcast, "level", [true, true]);
}

#[test]
fn no_message_is_slept_through_in_an_event_loop_without_membarrier() {
    play(PING, Kind::Mpsc, "level", [false, false]);
}

#[test]
fn no_message_is_slept_through_in_an_edge_triggered_event_loop() {
    play(PING, Kind::Spsc, "edge", [true, true]);
}

#[test]
fn no_room_is_slept_through_on_a_futex() {
    play(SPACE, Kind::Spsc, "futex", [true, true]);
}

#[test]
fn no_room_is_slept_through_on_a_futex_without_membarrier() {
    play(SPACE, Kind::Mpsc, "futex", [false, false]);
}

#[test]
fn no_room_is_slept_through_in_an_event_loop() {
    play(SPACE, Kind::Mpsc, "level", [true, true]);
}

#[test]
fn no_room_is_slept_through_in_an_event_loop_without_membarrier() {
    play(SPACE, Kind::Broadcast, "edge", [false, false]);
}

/// Several publications send by turns to several subscriptions, each of which has to hear it before the next is sent; now and then another subscription or publication comes and
/// goes. Where all are of one uid, a publication sees at one word that anybody has fallen asleep; if somebody of another one might take part, at each one's own.
fn no_message_is_slept_through_by_one_of_several(epoll: Option<EventFlags>, foreigners: bool) {
    const SEVERAL: usize = 3;
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    let uids = if foreigners { vec![rustix::process::geteuid().as_raw() + 1] } else { vec![] };
    let access = Access { publish: Grant::default(), subscribe: Grant { uids, gids: vec![] } };
    let channel = || client.channel("several").kind(Kind::Broadcast).access(access.clone()).idle(Idle::Parking);
    let mut publications = [0, 1].map(|_| channel().publication().expect("a publication"));
    let heard = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..SEVERAL {
            let subscription = channel().subscription().expect("a subscription");
            scope.spawn(|| {
                let mut receiver = Receiver::new(Mode { epoll, membarrier: true }, subscription);
                while receiver.number() != NO_MORE {
                    heard.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        publications.iter_mut().for_each(|publication| connect(publication, SEVERAL));
        let mut random = Random::new(7);
        for number in numbers() {
            pause(&mut random);
            match number % 100 {
                33 => {
                    let passing = channel().subscription().expect("a subscription");
                    publications.iter_mut().for_each(|publication| connect(publication, SEVERAL + 1));
                    drop(passing);
                    publications.iter_mut().for_each(|publication| connect(publication, SEVERAL));
                }
                // Nobody waits for this one.
                66 => drop(channel().publication().expect("a publication")),
                _ => {}
            }
            publications[number as usize % 2].offer(&number.to_le_bytes()).expect("room");
            let deadline = Instant::now() + LOST;
            while heard.load(Ordering::SeqCst) < SEVERAL * (number as usize + 1) {
                assert!(Instant::now() < deadline, "a wake-up was lost");
                std::thread::yield_now();
            }
        }
        publications[0].offer(&NO_MORE.to_le_bytes()).expect("room");
    });
}

#[test]
fn no_message_is_slept_through_by_one_of_several_on_a_futex() {
    no_message_is_slept_through_by_one_of_several(None, false);
}

#[test]
fn no_message_is_slept_through_by_one_of_several_in_an_event_loop() {
    no_message_is_slept_through_by_one_of_several(Some(EventFlags::IN), false);
}

#[test]
fn no_message_is_slept_through_by_one_of_several_who_may_be_of_several_uids() {
    no_message_is_slept_through_by_one_of_several(None, true);
}

/// Room for one message, for which several publications wait in event loops. Found by review: one that was woken, and found the room taken by another, was neither armed nor woken again.
#[test]
fn no_room_is_slept_through_that_another_takes() {
    const RIVALS: usize = 3;
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    let channel = || client.channel("rivals").kind(Kind::Mpsc).capacity(4096).idle(Idle::Parking);
    let mut subscription = channel().subscription().expect("a subscription");
    std::thread::scope(|scope| {
        for _ in 0..RIVALS {
            scope.spawn(|| {
                let mut publication = channel().publication().expect("a publication");
                connect(&mut publication, 1);
                let events = EventLoop::around(&publication, EventFlags::IN);
                let mut message = [0; LARGE];
                for number in numbers().chain([NO_MORE]) {
                    message[..8].copy_from_slice(&number.to_le_bytes());
                    offer(Some(&events), &mut publication, &message);
                }
            });
        }
        let mut done = 0;
        while done < RIVALS {
            let message = subscription.recv_until(Some(Instant::now() + LOST)).expect("a message");
            done += usize::from(message.payload()[..8] == NO_MORE.to_le_bytes());
        }
    });
}

/// Found by review: a wait that ended at its deadline left the fd neither armed nor readable, if it had slept.
#[test]
fn the_fd_tells_of_what_comes_after_a_wait_that_was_in_vain() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    let soon = || Some(Instant::now() + Duration::from_millis(5));
    for kind in KINDS {
        let name = kind.to_string();
        let channel = || client.channel(&name).kind(kind).capacity(4096).idle(Idle::Parking);
        let mut publication = channel().publication().expect("a publication");
        let mut subscription = channel().subscription().expect("a subscription");
        connect(&mut publication, 1);

        let events = EventLoop::around(&subscription, EventFlags::IN);
        while events.turn(Duration::ZERO) {
            subscription.poll(|_| panic!("nothing was sent"), 1).expect("no error");
        }
        assert_eq!(subscription.recv_until(soon()).map(drop), Err(RecvError::TimedOut));
        publication.offer(&[0; LARGE]).expect("room");
        assert!(events.turn(LOST), "{kind}: there is a message, and nothing says so");

        let events = EventLoop::around(&publication, EventFlags::IN);
        while events.turn(Duration::ZERO) {
            assert_eq!(publication.offer(&[0; LARGE]), Err(OfferError::BackPressured));
        }
        assert_eq!(publication.offer_until(0, &[0; LARGE], soon()), Err(OfferError::TimedOut));
        while subscription.next().expect("no error").is_some() {}
        assert!(events.turn(LOST), "{kind}: there is room, and nothing says so");
        publication.offer(&[0; LARGE]).expect("room");
    }
}

/// Who commits may do without a fence only if all who may sleep can call `membarrier`. Which it is nobody can see but in the debug output; that a sleeper would be missed otherwise, `fences` shows.
#[test]
fn one_peer_without_membarrier_makes_all_commits_pass_a_fence() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let (with, without) = (driver.connect().expect("a client"), driver.client().membarrier(false).connect().expect("a client"));
    if !with.has_asymmetric_fences() {
        eprintln!("skipped: no membarrier here");
        return;
    }
    let light = |publication: &Publication| {
        let shown = format!("{publication:?}");
        assert!(shown.contains("light: Full") != shown.contains("light: Compiler"), "{shown}");
        shown.contains("light: Full")
    };
    let mut publication = with.publication("mixed").expect("a publication");
    let first = with.subscription("mixed").expect("a subscription");
    connect(&mut publication, 1);
    assert!(!light(&publication), "both can");
    let second = without.subscription("mixed").expect("a subscription");
    connect(&mut publication, 2);
    assert!(light(&publication), "one cannot");
    drop(second);
    connect(&mut publication, 1);
    assert!(!light(&publication), "it is gone");
    drop(first);

    let mut publication = without.publication("other").expect("a publication");
    let _subscription = with.subscription("other").expect("a subscription");
    connect(&mut publication, 1);
    assert!(light(&publication), "this side is not reached by it");
}

/// In an event loop, a poll that stops at its limit leaves the fd readable while there is more. (Who watches for edges polls until there is nothing, as always.)
#[test]
fn the_fd_stays_readable_while_there_is_more() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    let mut publication = client.publication("more").expect("a publication");
    let mut subscription = client.subscription("more").expect("a subscription");
    connect(&mut publication, 1);
    let events = EventLoop::around(&subscription, EventFlags::IN);
    // Armed, and with nothing to be told.
    while subscription.next_event().is_some() || subscription.poll(|_| (), 10).expect("no error") > 0 {}
    while events.turn(Duration::ZERO) {
        subscription.poll(|_| (), 10).expect("no error");
    }
    // A batch wakes when it is dropped, so what makes the fd readable here is the subscription itself, which happened to look before.
    let mut batch = publication.batch();
    for number in 0..10u8 {
        batch.offer(&[number]).expect("it is sent");
    }
    let mut got = Vec::new();
    while got.len() < 10 {
        assert!(got.is_empty() || events.turn(PATIENCE), "more is there and nothing says so, after {got:?}");
        let taken = subscription.poll(|message| got.push(message.payload()[0]), 3).expect("no error");
        assert!(taken <= 3);
    }
    drop(batch);
    assert_eq!(got, (0..10).collect::<Vec<u8>>());
    subscription.poll(|_| panic!("no more"), 3).expect("no error");
}
