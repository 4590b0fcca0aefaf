//! `SIGKILL` of a publisher, of a subscriber, and of a producer in the middle of a claim: nothing committed is lost, and nobody waits for the dead.

use std::time::{Duration, Instant};

use media_driver::EmbeddedDriver;
use ringbus::{Client, Idle, ImageEvent, Kind, Message, OfferError, Overflow, Publication, Ready, Subscription};
use rustix::event::epoll::EventFlags;
use testing::{
    EventLoop, KINDS, Ledger, PATIENCE, Party, Random, Role, SOON, assert_works, connect, event, in_time, now, pair, until,
};

const SMALLEST: u64 = 4096;

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "batcher" => batcher(role),
        "streamer" => streamer(role),
        "claimer" => claimer(role),
        "sleeper" => sleeper(role),
        "listener" => listener(role),
        "blocked" => blocked(role),
        "idler" => idler(role),
        "forker" => forker(role),
        other => panic!("there is no role {other}"),
    }
}

fn launch() -> (EmbeddedDriver, Client) {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    (driver, client)
}

fn publication(role: &Role) -> Publication {
    let channel: String = role.argument(0);
    let mut publication = role.client().publication(&channel).expect("a publication");
    connect(&mut publication, role.argument(1));
    publication
}

/// How long somebody had to wait for the death to be noticed, from when the kill was sent.
#[track_caller]
fn assert_soon(what: &str, killed: u64, noticed: u64) {
    let took = Duration::from_nanos(noticed.saturating_sub(killed));
    println!("{what}: noticed after {took:?}");
    assert!(took < SOON, "{what}: noticed only after {took:?}");
}

// ---- Publishers ----

/// Commits messages without waking anybody. Arguments: channel, subscribers.
fn batcher(mut role: Role) {
    let mut publication = publication(&role);
    role.say("ready");
    role.hear();
    let mut batch = publication.batch();
    batch.offer(b"last words").expect("room");
    role.say("committed");
    role.hold();
    drop(batch);
}

/// Waits for a message and says when it came. Arguments: channel, kind, whether in an event loop.
fn sleeper(mut role: Role) {
    let (channel, kind, by_epoll): (String, Kind, bool) = (role.argument(0), role.argument(1), role.argument(2));
    let client = role.client();
    let mut subscription = client.channel(&channel).kind(kind).idle(Idle::Parking).subscription().expect("a subscription");
    let events = by_epoll.then(|| EventLoop::around(&subscription, EventFlags::IN));
    role.say(testing::thread_id());
    let payload = match events {
        None => subscription.recv_until(in_time()).expect("a message").payload().to_vec(),
        Some(events) => loop {
            while subscription.next_event().is_some() {}
            if let Some(message) = subscription.next().expect("no error") {
                break message.payload().to_vec();
            }
            assert!(events.turn(PATIENCE), "nothing comes");
        },
    };
    role.say(now());
    role.say(String::from_utf8_lossy(&payload));
    role.hold();
}

#[test]
fn a_message_is_delivered_though_its_publisher_is_killed_before_it_wakes_anyone() {
    let (driver, _client) = launch();
    for kind in KINDS {
        for by_epoll in [false, true] {
            let channel = format!("{kind}/{by_epoll}");
            let subscriber = Party::start("sleeper", driver.address(), &[&channel, &kind, &by_epoll]);
            let thread = subscriber.hear();
            let mut publisher = Party::start("batcher", driver.address(), &[&channel, &1]);
            publisher.expect("ready");
            subscriber.wait_asleep(&thread);
            publisher.tell("go");
            publisher.expect("committed");
            // It sleeps on: so nobody has woken it for the message.
            subscriber.wait_asleep(&thread);
            assert!(subscriber.is_silent());
            let killed = now();
            publisher.kill();
            let noticed = subscriber.hear_number();
            subscriber.expect("last words");
            assert_soon(&format!("{kind}, epoll {by_epoll}"), killed, noticed);
        }
    }
}

/// Sends numbered messages as fast as it can, and says so after every so many. Arguments: channel, subscribers, own number.
fn streamer(role: Role) {
    let mut publication = publication(&role);
    let number = role.argument(2);
    let mut buffer = Vec::new();
    for sequence in 0.. {
        testing::fill(&mut buffer, number, sequence, 60);
        match publication.offer_until(0, &buffer, in_time()) {
            Ok(_) if sequence % 1000 == 999 => role.say(sequence + 1),
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads one image to its end. Arguments: channel, kind. Says how much there was, and when it was over.
fn listener(mut role: Role) {
    let (channel, kind): (String, Kind) = (role.argument(0), role.argument(1));
    let mut subscription = role.client().channel(&channel).kind(kind).capacity(1 << 14).subscription().expect("a subscription");
    role.say("ready");
    let mut ledger = Ledger::default();
    loop {
        match subscription.wait(in_time()) {
            Ready::Messages => drop(subscription.next().expect("no error").map(|message| ledger.enter(message.payload()))),
            Ready::Event => {
                if let Some(ImageEvent::Closed(_)) = subscription.next_event() {
                    break;
                }
            }
            Ready::TimedOut => panic!("nothing comes any more, after {ledger:?}"),
        }
    }
    role.say(now());
    role.say(ledger.count(1));
    role.hold();
}

#[test]
fn subscribers_get_everything_a_killed_publisher_committed_and_then_the_image_closes() {
    let (driver, _client) = launch();
    for kind in KINDS {
        for round in 0..5 {
            let channel = format!("{kind}/{round}");
            let count = if kind == Kind::Broadcast { 2 } else { 1 };
            let subscribers: Vec<Party> =
                (0..count).map(|_| Party::start("listener", driver.address(), &[&channel, &kind])).collect();
            subscribers.iter().for_each(|subscriber| subscriber.expect("ready"));
            let mut publisher = Party::start("streamer", driver.address(), &[&channel, &count, &1]);
            for _ in 0..=round {
                publisher.hear();
            }
            let killed = now();
            publisher.kill();
            let received = subscribers.iter().map(|subscriber| {
                assert_soon(&format!("{kind}"), killed, subscriber.hear_number());
                subscriber.hear_number::<u64>()
            });
            let received: Vec<u64> = received.collect();
            assert!(received.iter().all(|&count| count == received[0]), "all get the same: {received:?}");
            // What it had said last, all of which is heard once it is dead.
            let mut said = (round + 1) * 1000;
            while let Some(more) = publisher.heard_within(PATIENCE) {
                said = more.parse().expect("a number");
            }
            assert!(received[0] >= said, "it had said that it had sent {said}, not {}", received[0]);
        }
    }
}

#[test]
fn a_killed_publisher_leaves_a_claim_behind_that_nobody_sees() {
    for kind in KINDS {
        let (driver, client) = launch();
        let mut subscription = client.channel("claims").kind(kind).capacity(SMALLEST).subscription().expect("a subscription");
        // Several in a row: on an mpsc channel in the same ring.
        for round in 0..20 {
            let mut publisher = Party::start("claimer", driver.address(), &[&"claims", &1, &(round * 50)]);
            publisher.expect("claimed");
            assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
            publisher.kill();
            assert!(matches!(event(&mut subscription), ImageEvent::Closed(_)));
            if kind == Kind::Mpsc || round == 19 {
                until("the slot is free", || client.list().expect("the driver is there").len() == 1);
                let mut publication = client.publication("claims").expect("a publication");
                connect(&mut publication, 1);
                assert_works(&mut publication, &mut subscription);
                drop(publication);
                assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
                assert!(matches!(event(&mut subscription), ImageEvent::Closed(_)));
            }
        }
    }
}

// ---- Subscribers ----

/// Sends until there is no room, and then waits for it. Arguments: channel, subscribers, whether in an event loop. Says how many it has
/// sent, then when it could go on, and how.
fn blocked(mut role: Role) {
    let by_epoll: bool = role.argument(2);
    let channel: String = role.argument(0);
    let client = role.client();
    let mut publication = client.channel(&channel).idle(Idle::Parking).publication().expect("a publication");
    connect(&mut publication, role.argument(1));
    let events = by_epoll.then(|| EventLoop::around(&publication, EventFlags::IN));
    let mut sent = 0;
    while publication.offer(&[0; 100]).is_ok() {
        sent += 1;
    }
    role.say(sent);
    role.say(testing::thread_id());
    let result = match events {
        None => publication.offer_until(0, &[0; 100], in_time()),
        Some(events) => loop {
            match publication.offer(&[0; 100]) {
                Err(OfferError::BackPressured) => assert!(events.turn(PATIENCE), "it never becomes ready"),
                result => break result,
            }
        },
    };
    role.say(now());
    role.say(match result {
        Ok(_) => "sent".to_owned(),
        Err(error) => error.to_string(),
    });
    role.hold();
}

/// Subscribes and never reads. Arguments: channel, kind.
fn idler(mut role: Role) {
    let (channel, kind): (String, Kind) = (role.argument(0), role.argument(1));
    let _subscription = role.client().channel(&channel).kind(kind).capacity(SMALLEST).subscription().expect("a subscription");
    role.say("ready");
    role.hold();
}

#[test]
fn a_publisher_that_a_killed_subscriber_held_back_goes_on() {
    for kind in KINDS {
        for by_epoll in [false, true] {
            for others in if kind == Kind::Broadcast { 0..2 } else { 0..1 } {
                let (driver, client) = launch();
                let mut idler = Party::start("idler", driver.address(), &[&"ring", &kind]);
                idler.expect("ready");
                let mut reader = (others > 0).then(|| client.subscription("ring").expect("a subscription"));
                let publisher = Party::start("blocked", driver.address(), &[&"ring", &(1 + others), &by_epoll]);
                let (_, thread) = (publisher.hear(), publisher.hear());
                publisher.wait_asleep(&thread);
                if let Some(reader) = &mut reader {
                    while reader.next().expect("no error").is_some() {}
                }
                publisher.wait_asleep(&thread);
                assert!(publisher.is_silent(), "only the idler holds it back now");
                let killed = now();
                idler.kill();
                let noticed = publisher.hear_number();
                publisher.expect(if others > 0 { "sent" } else { "nobody subscribes" });
                assert_soon(&format!("{kind}, epoll {by_epoll}"), killed, noticed);
            }
        }
    }
}

#[test]
fn another_subscription_may_come_when_the_only_one_was_killed() {
    let (driver, client) = launch();
    for kind in KINDS {
        let name = kind.to_string();
        let mut publication = client.channel(&name).kind(kind).capacity(SMALLEST).publication().expect("a publication");
        for _ in 0..3 {
            let mut idler = Party::start("idler", driver.address(), &[&name, &kind]);
            idler.expect("ready");
            connect(&mut publication, 1);
            while publication.offer(&[0; 100]).is_ok() {}
            idler.kill();
            let mut subscription = None;
            // The driver may hear of us before it hears of the death.
            until("the place is free", || {
                subscription = client.subscription(&name).ok();
                subscription.is_some()
            });
            let mut subscription = subscription.expect("it is there");
            until("the old one is forgotten", || publication.subscribers() == 1 && publication.offer(b"first").is_ok());
            assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"first");
            assert_works(&mut publication, &mut subscription);
            drop(subscription);
            connect(&mut publication, 0);
        }
    }
}

// ---- Claims on mpsc channels ----

/// Claims and does no more. Arguments: channel, subscribers, length.
fn claimer(mut role: Role) {
    let mut publication = publication(&role);
    let mut claim = publication.try_claim(role.argument(2)).expect("room");
    let half = claim.len() / 2;
    claim[..half].fill(0xFF);
    role.say("claimed");
    role.hold();
}

fn next(subscription: &mut Subscription) -> Option<String> {
    let message = subscription.next().expect("no error")?;
    Some(String::from_utf8_lossy(message.payload()).into_owned())
}

#[test]
fn others_go_on_when_a_producer_is_killed_in_the_middle_of_a_claim() {
    let (driver, client) = launch();
    let (mut publication, mut subscription) = pair(&client, "claims", Kind::Mpsc, Overflow::Block, SMALLEST);
    let mut claim = |length: u32, behind: &str| {
        let party = Party::start("claimer", driver.address(), &[&"claims", &1, &length]);
        party.expect("claimed");
        publication.offer(behind.as_bytes()).expect("room");
        party
    };
    let mut claimers = [claim(100, "one"), claim(0, "two"), claim(1, "three"), claim(1000, "four")];
    assert_eq!(next(&mut subscription), None, "everything is behind the first claim");
    // Not in order: nothing can be passed before the first.
    claimers[1].kill();
    claimers[3].kill();
    until("two deaths are known", || {
        assert_eq!(next(&mut subscription), None, "the first claim lives");
        client.list().expect("the driver is there").len() == 4
    });
    let killed = now();
    claimers[0].kill();
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"one");
    assert_soon("the first", killed, now());
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"two");
    assert_eq!(next(&mut subscription), None, "the third claim lives");
    let killed = now();
    claimers[2].kill();
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"three");
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"four");
    assert_soon("the others", killed, now());
    assert_works(&mut publication, &mut subscription);
}

#[test]
fn producers_blocked_behind_a_dead_claim_go_on() {
    for by_epoll in [false, true] {
        let (driver, client) = launch();
        let (publication, mut subscription) = pair(&client, "claims", Kind::Mpsc, Overflow::Block, SMALLEST);
        drop(publication);
        let mut claimer = Party::start("claimer", driver.address(), &[&"claims", &1, &100]);
        claimer.expect("claimed");
        let publishers: Vec<Party> =
            (0..2).map(|_| Party::start("blocked", driver.address(), &[&"claims", &1, &by_epoll])).collect();
        let mut messages = 2;
        for publisher in &publishers {
            messages += publisher.hear_number::<u64>();
            publisher.wait_asleep(&publisher.hear());
        }
        assert_eq!(next(&mut subscription), None);
        let killed = now();
        claimer.kill();
        for _ in 0..messages {
            assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), [0; 100]);
        }
        for publisher in &publishers {
            assert_soon("blocked", killed, publisher.hear_number());
            publisher.expect("sent");
        }
    }
}

#[test]
fn however_producers_are_killed_each_has_sent_a_beginning_and_the_others_go_on() {
    const ROUNDS: u32 = 30;
    let (driver, client) = launch();
    let (mut survivor, mut subscription) = pair(&client, "chaos", Kind::Mpsc, Overflow::Block, SMALLEST);
    let address = driver.address().clone();
    // It kills them at times of its own, while the stream goes on here.
    let killer = std::thread::spawn(move || {
        let mut random = Random::new(3);
        let start = |number| Party::start("streamer", &address, &[&"chaos", &1, &number]);
        let mut producers: Vec<Party> = (1..=3).map(start).collect();
        for number in 4..4 + ROUNDS {
            let victim = &mut producers[random.below(3) as usize];
            // It is at work.
            victim.hear();
            std::thread::sleep(Duration::from_micros(random.below(3000)));
            victim.kill();
            *victim = start(number);
        }
        producers.iter().for_each(|producer| drop(producer.hear()));
    });
    let (mut ledger, mut sent, mut buffer) = (Ledger::default(), 0, Vec::new());
    let (mut available, mut closed) = (0, 0);
    let deadline = Instant::now() + 2 * PATIENCE;
    // Until all are dead.
    while !(killer.is_finished() && closed == ROUNDS + 3) {
        assert!(Instant::now() < deadline, "stuck: {available} came, {closed} went, {ledger:?}");
        testing::fill(&mut buffer, 0, sent, 60);
        if survivor.offer(&buffer).is_ok() {
            sent += 1;
        }
        subscription.wait(Some(Instant::now() + Duration::from_millis(100)));
        let enter = |message: Message<'_>| {
            ledger.enter(message.payload());
        };
        subscription.poll(enter, 64).expect("no error");
        while let Some(event) = subscription.next_event() {
            match event {
                ImageEvent::Available(_) => available += 1,
                ImageEvent::Closed(_) => closed += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    while let Some(message) = subscription.next().expect("no error") {
        ledger.enter(message.payload());
    }
    assert_eq!(ledger.count(0), sent, "the survivor's messages are all there");
    killer.join().expect("it has killed them all");
    assert!((1..ROUNDS + 4).all(|number| ledger.count(number) > 0));
}

// ---- Who is dead ----

/// Publishes, and leaves a forked process behind that has all its descriptors. Argument: channel.
fn forker(mut role: Role) {
    let channel: String = role.argument(0);
    let mut publication = role.client().publication(&channel).expect("a publication");
    connect(&mut publication, 1);
    publication.offer(b"forked").expect("room");
    // SAFETY: the new process calls nothing but async-signal-safe functions.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above. The alarm ends it if nobody else does.
        unsafe {
            libc::alarm(60);
            libc::pause();
            libc::_exit(0);
        }
    }
    role.say(child);
    role.hold();
}

#[test]
fn a_killed_publisher_is_dead_though_a_forked_process_still_has_its_socket() {
    let (driver, client) = launch();
    let mut subscription = client.subscription("forked").expect("a subscription");
    let mut publisher = Party::start("forker", driver.address(), &[&"forked"]);
    let orphan: i32 = publisher.hear_number();
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"forked");
    let killed = now();
    publisher.kill();
    assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
    let closed = event(&mut subscription);
    let noticed = now();
    // SAFETY: a plain system call. The process is a child of a child of ours, and has lived until here: it would have to be 60 s old to be gone.
    unsafe { libc::kill(orphan, libc::SIGKILL) };
    assert!(matches!(closed, ImageEvent::Closed(_)));
    assert_soon("the death", killed, noticed);
}
