//! Who waits uses no processor: a subscriber without messages, a publisher without room, a driver without requests. And an fd that says when to look.
//!
//! `RINGBUS_TEST_WAIT` is for how many seconds they wait.

use std::time::{Duration, Instant};

use media_driver::EmbeddedDriver;
use ringbus::{Action, Idle, ImageEvent, Kind, OfferError, Overflow, RecvError, Subscription};
use rustix::event::epoll::EventFlags;
use rustix::time::ClockId::ProcessCPUTime;
use testing::{
    DriverProcess, EventLoop, KINDS, PATIENCE, Party, Role, assert_works, connect, cpu_time, event, in_time, pair, play_driver,
    readable, scaled,
};

const SMALLEST: u64 = 4096;

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => play_driver(role),
        "subscriber" => subscriber(role),
        "publisher" => publisher(role),
        other => panic!("there is no role {other}"),
    }
}

fn wait() -> Duration {
    Duration::from_secs(scaled("RINGBUS_TEST_WAIT", 2))
}

fn idle(name: &str) -> Idle {
    match name {
        "parking" => Idle::Parking,
        "adaptive" => Idle::Adaptive,
        other => panic!("there is no strategy {other}"),
    }
}

/// What somebody who waits may use of the processor.
const LITTLE: Duration = Duration::from_millis(5);

/// Processor time of one wait, of three at most. Who spins spins every time; but `membarrier` waits, in our time, until each core has answered an interrupt, and on a busy
/// virtual machine a core may be away for some milliseconds.
fn cost_of_waiting(mut wait: impl FnMut()) -> u128 {
    let mut least = Duration::MAX;
    for _ in 0..3 {
        let before = cpu_time(ProcessCPUTime);
        wait();
        least = least.min(cpu_time(ProcessCPUTime) - before);
        if least < LITTLE {
            break;
        }
    }
    least.as_nanos()
}

/// Waits for a message that does not come, and says how many nanoseconds of the processor that took. Arguments: kind, idle strategy or "epoll".
fn subscriber(mut role: Role) {
    let (kind, way): (Kind, String) = (role.argument(0), role.argument(1));
    let client = role.client();
    let channel = client.channel(way_name(&way, kind).leak()).kind(kind).capacity(SMALLEST);
    let mut subscription =
        if way == "epoll" { channel } else { channel.idle(idle(&way)) }.subscription().expect("a subscription");
    role.say("ready");
    // The publisher is there.
    assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
    role.say(testing::thread_id());
    let cost = cost_of_waiting(|| {
        let deadline = Instant::now() + wait();
        if way == "epoll" {
            let events = EventLoop::around(&subscription, EventFlags::IN);
            while Instant::now() < deadline {
                assert!(subscription.next().expect("no error").is_none());
                events.turn(deadline.saturating_duration_since(Instant::now()));
            }
        } else {
            assert_eq!(subscription.recv_until(Some(deadline)).map(drop), Err(RecvError::TimedOut));
        }
    });
    role.say(cost);
    role.hold();
}

/// Waits for room that does not come, and says what that took. Arguments as for the subscriber, and "idle" or "full".
fn publisher(mut role: Role) {
    let (kind, way): (Kind, String) = (role.argument(0), role.argument(1));
    let client = role.client();
    let channel = client.channel(way_name(&way, kind).leak()).kind(kind).capacity(SMALLEST);
    let mut publication = if way == "epoll" { channel } else { channel.idle(idle(&way)) }.publication().expect("a publication");
    connect(&mut publication, 1);
    if role.argument::<String>(2) == "idle" {
        role.say("ready");
        role.hold();
    }
    while publication.offer(&[0; 100]).is_ok() {}
    role.say(testing::thread_id());
    let cost = cost_of_waiting(|| {
        let deadline = Instant::now() + wait();
        if way == "epoll" {
            let events = EventLoop::around(&publication, EventFlags::IN);
            while Instant::now() < deadline {
                assert_eq!(publication.offer(&[0; 100]), Err(OfferError::BackPressured));
                events.turn(deadline.saturating_duration_since(Instant::now()));
            }
        } else {
            assert_eq!(publication.offer_until(0, &[0; 100], Some(deadline)), Err(OfferError::TimedOut));
        }
    });
    role.say(cost);
    role.hold();
}

fn way_name(way: &str, kind: Kind) -> String {
    format!("{way}/{kind}")
}

#[test]
fn nobody_who_waits_uses_the_processor() {
    let driver = DriverProcess::launch();
    let client = driver.connect();
    let mut helpers = Vec::new();
    let mut waiting = Vec::new();
    for kind in KINDS {
        for way in ["parking", "adaptive", "epoll"] {
            let subscriber = Party::start("subscriber", &driver.address, &[&kind, &way]);
            subscriber.expect("ready");
            let publisher = Party::start("publisher", &driver.address, &[&kind, &way, &"idle"]);
            publisher.expect("ready");
            waiting.push((format!("subscriber {kind} {way}"), subscriber));
            helpers.push(publisher);
        }
    }
    let blocked_driver = DriverProcess::launch();
    let blocked_client = blocked_driver.connect();
    let mut subscriptions = Vec::new();
    for kind in KINDS {
        for way in ["parking", "adaptive", "epoll"] {
            let channel = blocked_client.channel(way_name(way, kind).leak()).kind(kind).capacity(SMALLEST);
            subscriptions.push(channel.subscription().expect("a subscription"));
            let publisher = Party::start("publisher", &blocked_driver.address, &[&kind, &way, &"full"]);
            waiting.push((format!("publisher {kind} {way}"), publisher));
        }
    }
    let mut threads = Vec::new();
    for (_, party) in &waiting {
        threads.push(party.hear());
    }
    for ((_, party), thread) in waiting.iter().zip(&threads) {
        party.wait_asleep(thread);
    }
    let drivers = [driver.party(), blocked_driver.party()];
    drivers.iter().for_each(|driver| driver.wait_all_asleep());
    // From here on nobody does anything until the first one's time is over.
    let before: Vec<_> = drivers.iter().map(|driver| (driver.cpu_time(), driver.sleeps())).collect();
    for (what, party) in &waiting {
        let took = Duration::from_nanos(party.hear_within(PATIENCE + 3 * wait()).parse().expect("a number"));
        println!("{what}: {took:?} of the processor");
        assert!(took < LITTLE, "{what} used {took:?} of the processor");
    }
    let after: Vec<_> = drivers.iter().map(|driver| (driver.cpu_time(), driver.sleeps())).collect();
    assert_eq!(before, after, "the driver sleeps as long as nobody asks it anything, and makes no system call");
    drop((client, helpers, subscriptions));
}

#[test]
fn whatever_the_idle_strategy_the_message_is_noticed() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    let longest = Duration::from_micros(100);
    for strategy in [Idle::BusySpin, Idle::Yielding, Idle::BackOff { longest }, Idle::Parking, Idle::Adaptive] {
        for kind in KINDS {
            let channel = || client.channel("idle").kind(kind).capacity(SMALLEST).idle(strategy);
            let mut publication = channel().publication().expect("a publication");
            let mut subscription = channel().subscription().expect("a subscription");
            connect(&mut publication, 1);
            // Both wait: the ring holds four of them.
            let sender = std::thread::spawn(move || {
                for number in 0..200u8 {
                    publication.offer_until(0, &[number; 1000], in_time()).expect("room in time");
                }
            });
            for number in 0..200u8 {
                assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), [number; 1000]);
            }
            sender.join().expect("all were sent");
        }
    }
}

#[test]
fn a_client_without_membarrier_says_so() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.client().membarrier(false).connect().expect("a client");
    assert!(!client.has_asymmetric_fences());
    let (mut publication, mut subscription) = pair(&client, "fenced", Kind::Mpsc, Overflow::Block, SMALLEST);
    assert_works(&mut publication, &mut subscription);
}

// ---- The fd ----

fn is_readable(fd: impl std::os::fd::AsFd) -> bool {
    readable(fd, Duration::ZERO)
}

/// Looks at everything there is, as an event loop does.
fn look(subscription: &mut Subscription) -> usize {
    let mut messages = 0;
    while subscription.next_event().is_some() {}
    loop {
        let polled = subscription.poll(|_| (), 10).expect("no error");
        messages += polled;
        if polled == 0 {
            return messages;
        }
    }
}

#[test]
fn the_fd_of_a_subscription_is_readable_exactly_when_there_is_something_to_look_at() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    for kind in KINDS {
        let channel = || client.channel("fd").kind(kind).capacity(SMALLEST);
        let mut subscription = channel().subscription().expect("a subscription");
        assert!(is_readable(&subscription), "at first, so that whoever waits looks once");
        assert_eq!(look(&mut subscription), 0);
        assert!(!is_readable(&subscription));
        // An image comes.
        let mut publication = channel().publication().expect("a publication");
        assert!(readable(&subscription, PATIENCE));
        connect(&mut publication, 1);
        assert_eq!(look(&mut subscription), 0);
        assert!(!is_readable(&subscription));
        for round in 1..=5 {
            for _ in 0..round {
                publication.offer(b"something").expect("room");
            }
            assert!(is_readable(&subscription));
            assert_eq!(look(&mut subscription), round as usize);
            assert!(!is_readable(&subscription));
        }
        // What a poll leaves there is still to be looked at.
        for _ in 0..3 {
            publication.offer(b"something").expect("room");
        }
        assert_eq!(subscription.poll(|_| (), 1), Ok(1));
        assert!(is_readable(&subscription));
        assert_eq!(subscription.poll_controlled(|_| Action::Abort, 10), Ok(0));
        assert!(is_readable(&subscription));
        assert!(subscription.next().expect("no error").is_some());
        assert!(is_readable(&subscription));
        assert_eq!(look(&mut subscription), 1);
        assert!(!is_readable(&subscription));
        // A batch rings when it ends.
        let mut batch = publication.batch();
        batch.offer(b"something").expect("room");
        drop(batch);
        assert!(is_readable(&subscription));
        assert_eq!(look(&mut subscription), 1);
        // An image goes.
        drop(publication);
        assert!(readable(&subscription, PATIENCE));
        assert!(matches!(event(&mut subscription), ImageEvent::Closed(_)));
        assert_eq!(look(&mut subscription), 0);
        // Once the driver's word has come, too, all is quiet.
        testing::until("silence", || look(&mut subscription) == 0 && !is_readable(&subscription));
    }
}

#[test]
fn the_fd_of_a_publication_becomes_readable_when_there_is_room_again() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        assert!(is_readable(&publication), "at first, so that whoever waits looks once");
        // The conductor may still be about to ring for the new subscriber.
        testing::until("silence", || publication.offer(&[0; 100]).is_err() && !is_readable(&publication));
        for _ in 0..20 {
            while publication.offer(&[0; 100]).is_ok() {}
            assert!(!is_readable(&publication));
            while subscription.next().expect("no error").is_some() {}
            assert!(is_readable(&publication));
        }
        while publication.offer(&[0; 100]).is_ok() {}
        assert!(!is_readable(&publication));
        drop(subscription);
        assert!(readable(&publication, PATIENCE), "nobody is left to wait for");
        testing::until("the end", || publication.offer(&[0; 100]) == Err(OfferError::NotConnected));
    }
}
