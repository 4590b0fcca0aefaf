//! The driver is killed, and comes back: data flows on without it, and with its successor everything is as before, the dead included.

use std::time::{Duration, Instant};

use ringbus::client::DriverState;
use ringbus::{Access, Client, Error, Grant, Idle, ImageEvent, Kind, OfferError, Overflow, Publication, Subscription};
use testing::{
    DriverProcess, KINDS, Ledger, PATIENCE, Party, Random, Role, SOON, assert_works, connect, event, in_time, now, pair,
    play_driver, skip_unless_root, until,
};

const SMALLEST: u64 = 4096;

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => play_driver(role),
        "publisher" => publisher(role),
        "subscriber" => subscriber(role),
        "nobody" => nobody(role),
        other => panic!("there is no role {other}"),
    }
}

/// Publishes as it is told: a number sends so many messages, "fill" as many as there is room for, "claim" claims and does no more. Arguments: channel, own
/// number, subscribers.
fn publisher(mut role: Role) {
    let (channel, number): (String, u32) = (role.argument(0), role.argument(1));
    let mut publication = role.client().channel(&channel).idle(Idle::Parking).publication().expect("a publication");
    connect(&mut publication, role.argument(2));
    role.say("connected");
    let (mut sequence, mut buffer) = (0, Vec::new());
    loop {
        let mut send = |wait: bool| {
            testing::fill(&mut buffer, number, sequence, 60);
            let result = if wait { publication.offer_until(0, &buffer, in_time()) } else { publication.offer(&buffer) };
            sequence += u64::from(result.is_ok());
            result
        };
        match role.hear().as_str() {
            "fill" => {
                while send(false).is_ok() {}
                role.say(testing::thread_id());
                let result = send(true);
                role.say(result.map_or_else(|error| error.to_string(), |_| "sent".to_owned()));
            }
            "claim" => {
                let _claim = publication.try_claim(100).expect("room");
                role.say("claimed");
                role.hold();
            }
            count => {
                for _ in 0..count.parse().expect("a number") {
                    send(true).expect("room in time");
                }
                role.say("sent");
            }
        }
    }
}

/// Subscribes, and takes a message for each line it hears; or none, when it hears nothing. Arguments: channel, kind.
fn subscriber(mut role: Role) {
    let (channel, kind): (String, Kind) = (role.argument(0), role.argument(1));
    let client = role.client();
    let mut subscription = client.channel(&channel).kind(kind).capacity(SMALLEST).subscription().expect("a subscription");
    role.say("ready");
    let mut ledger = Ledger::default();
    loop {
        let count: u64 = role.hear().parse().expect("a number");
        for _ in 0..count {
            ledger.enter(subscription.recv_until(in_time()).expect("a message").payload());
        }
        role.say("received");
    }
}

/// Waits until the client has lost the driver.
fn lose(driver: &mut DriverProcess, client: &Client) {
    driver.kill();
    until("the loss", || client.driver_state() == DriverState::Away);
}

/// Waits until the client has found the new driver and told it all.
fn find(driver: &mut DriverProcess, client: &Client) {
    driver.start_again();
    until("the reunion", || client.driver_state() == DriverState::Connected);
}

/// How many objects the driver knows, and how many ends of links they have.
fn census(client: &Client) -> (usize, u32) {
    let entries = client.list().expect("the driver is there");
    (entries.len(), entries.iter().map(|entry| entry.links).sum())
}

#[test]
fn data_flows_on_while_the_driver_is_away_and_new_connections_fail_with_a_clear_error() {
    let mut driver = DriverProcess::launch();
    let client = driver.connect();
    let mut pairs: Vec<(Publication, Subscription)> =
        KINDS.iter().map(|&kind| pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST)).collect();
    lose(&mut driver, &client);
    for _ in 0..100 {
        pairs.iter_mut().for_each(|(publication, subscription)| assert_works(publication, subscription));
    }
    let address = driver.address.to_string();
    for error in [client.publication("new").map(drop), client.subscription("new").map(drop), client.list().map(drop)] {
        let Err(error @ Error::DriverAway { .. }) = error else { panic!("{error:?}") };
        assert!(error.to_string().contains(&address), "{error}");
    }
    let error = Client::builder().address(driver.address.clone()).connect();
    let Err(error @ Error::NoDriver { .. }) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains(&address) && error.to_string().contains("ringbusd"), "{error}");

    find(&mut driver, &client);
    pairs.iter_mut().for_each(|(publication, subscription)| assert_works(publication, subscription));
    assert_eq!(census(&client), (6, 6));
}

#[test]
fn clients_tell_the_new_driver_what_they_hold_and_old_and_new_meet() {
    for kind in KINDS {
        let mut driver = DriverProcess::launch();
        let client = driver.connect();
        let (mut publication, mut subscription) = pair(&client, "old", kind, Overflow::Block, SMALLEST);
        lose(&mut driver, &client);
        find(&mut driver, &client);
        let newcomer = driver.connect();
        until("the census", || census(&newcomer) == (2, 2));
        let entries = newcomer.list().expect("the driver is there");
        assert!(entries.iter().any(|entry| entry.publishes && entry.id == publication.id()));
        assert!(entries.iter().any(|entry| !entry.publishes && entry.id == subscription.id()));
        assert!(entries.iter().all(|entry| entry.spec == *publication.channel() && entry.pid == std::process::id()));
        if kind != Kind::Spsc {
            // A new publication, the old subscription.
            let mut second = newcomer.publication("old").expect("a publication");
            connect(&mut second, 1);
            assert_works(&mut second, &mut subscription);
            assert_works(&mut publication, &mut subscription);
        }
        if kind == Kind::Broadcast {
            // The old publication, a new subscription beside the old one.
            let mut second = newcomer.subscription("old").expect("a subscription");
            connect(&mut publication, 2);
            publication.offer(b"both").expect("room");
            assert_eq!(second.recv_until(in_time()).expect("a message").payload(), b"both");
            assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"both");
        }
        // And one that takes the old one's place.
        drop(subscription);
        connect(&mut publication, 0);
        let mut subscription = newcomer.subscription("old").expect("a subscription");
        connect(&mut publication, 1);
        assert_works(&mut publication, &mut subscription);
    }
}

#[test]
fn the_new_driver_enforces_what_the_old_one_did() {
    let mut driver = DriverProcess::launch();
    let client = driver.connect();
    let _spsc = pair(&client, "spsc", Kind::Spsc, Overflow::Block, SMALLEST);
    lose(&mut driver, &client);
    find(&mut driver, &client);
    until("the census", || census(&client) == (2, 2));
    for refused in [client.publication("spsc").map(drop), client.subscription("spsc").map(drop)] {
        assert!(matches!(refused, Err(Error::Refused(ringbus::control::message::Refusal::Occupied { .. }))), "{refused:?}");
    }
    let refused = client.channel("spsc").kind(Kind::Mpsc).publication();
    assert!(matches!(refused, Err(Error::Refused(ringbus::control::message::Refusal::Mismatch { .. }))), "{refused:?}");
}

#[test]
fn who_closes_while_the_driver_is_away_is_missed_at_once_and_forgotten_later() {
    for kind in KINDS {
        let mut driver = DriverProcess::launch();
        let client = driver.connect();
        let (mut publication, mut subscription) = pair(&client, "closing", kind, Overflow::Block, SMALLEST);
        let (mut other, held_back) = pair(&client, "held-back", kind, Overflow::Block, SMALLEST);
        assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
        while other.offer(&[0; 100]).is_ok() {}
        lose(&mut driver, &client);
        publication.offer(b"goodbye").expect("room");
        drop(publication);
        assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"goodbye");
        assert!(matches!(event(&mut subscription), ImageEvent::Closed(_)));
        drop(held_back);
        assert_eq!(other.offer_until(0, &[0; 100], in_time()), Err(OfferError::NotConnected));
        find(&mut driver, &client);
        until("the census", || census(&client) == (2, 0));
        let mut publication = client.publication("closing").expect("a publication");
        connect(&mut publication, 1);
        assert_works(&mut publication, &mut subscription);
        let mut subscription = client.subscription("held-back").expect("a subscription");
        connect(&mut other, 1);
        assert_works(&mut other, &mut subscription);
    }
}

#[test]
fn a_publisher_that_dies_while_the_driver_is_away_is_missed_when_the_new_one_is_there() {
    for kind in KINDS {
        let mut driver = DriverProcess::launch();
        let client = driver.connect();
        let mut subscription = client.channel("orphan").kind(kind).capacity(SMALLEST).subscription().expect("a subscription");
        let mut publisher = Party::start("publisher", &driver.address, &[&"orphan", &1, &1]);
        publisher.expect("connected");
        assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
        lose(&mut driver, &client);
        publisher.tell(20);
        publisher.expect("sent");
        publisher.kill();
        let mut ledger = Ledger::default();
        for _ in 0..20 {
            ledger.enter(subscription.recv_until(in_time()).expect("a message").payload());
        }
        assert_eq!(subscription.next_event(), None, "nobody can know yet");
        find(&mut driver, &client);
        let found = now();
        assert!(matches!(event(&mut subscription), ImageEvent::Closed(_)));
        assert!(now() - found < SOON.as_nanos() as u64, "it took {} ns", now() - found);
        until("the census", || census(&client) == (1, 0));
        let mut publication = client.publication("orphan").expect("a publication");
        connect(&mut publication, 1);
        assert_works(&mut publication, &mut subscription);
    }
}

#[test]
fn a_subscriber_that_dies_while_the_driver_is_away_holds_nobody_back_when_the_new_one_is_there() {
    for kind in KINDS {
        let mut driver = DriverProcess::launch();
        let client = driver.connect();
        let mut subscriber = Party::start("subscriber", &driver.address, &[&"orphan", &kind]);
        subscriber.expect("ready");
        let mut publisher = Party::start("publisher", &driver.address, &[&"orphan", &1, &1]);
        publisher.expect("connected");
        lose(&mut driver, &client);
        publisher.tell("fill");
        let thread = publisher.hear();
        subscriber.kill();
        publisher.wait_asleep(&thread);
        assert!(publisher.is_silent(), "nobody can know yet");
        driver.start_again();
        publisher.expect("nobody subscribes");
    }
}

#[test]
fn a_claim_whose_owner_dies_while_the_driver_is_away_is_repaired_when_the_new_one_is_there() {
    let mut driver = DriverProcess::launch();
    let client = driver.connect();
    let (mut publication, mut subscription) = pair(&client, "claims", Kind::Mpsc, Overflow::Block, SMALLEST);
    let mut claimers: Vec<Party> =
        (1..=2).map(|number| Party::start("publisher", &driver.address, &[&"claims", &number, &1])).collect();
    for claimer in &mut claimers {
        claimer.expect("connected");
        claimer.tell("claim");
        claimer.expect("claimed");
        publication.offer(b"behind").expect("room");
    }
    lose(&mut driver, &client);
    claimers[0].kill();
    assert!(subscription.next().expect("no error").is_none(), "nobody can know yet");
    find(&mut driver, &client);
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"behind");
    assert!(subscription.next().expect("no error").is_none(), "the other one lives");
    claimers[1].kill();
    assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"behind");
    assert_works(&mut publication, &mut subscription);
    until("the census", || {
        // The subscription gives an image up when it is asked for what is new.
        while subscription.next_event().is_some() {}
        census(&client) == (2, 2)
    });
}

#[test]
fn who_was_stopped_for_long_while_drivers_changed_has_time_to_come_back() {
    for kind in KINDS {
        let mut driver = DriverProcess::launch();
        let client = driver.connect();
        let mut subscription = client.channel("sleeper").kind(kind).capacity(SMALLEST).subscription().expect("a subscription");
        let mut publisher = Party::start("publisher", &driver.address, &[&"sleeper", &1, &1]);
        publisher.expect("connected");
        publisher.tell(1);
        publisher.expect("sent");
        let mut ledger = Ledger::default();
        ledger.enter(subscription.recv_until(in_time()).expect("a message").payload());
        assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
        publisher.stop();
        lose(&mut driver, &client);
        find(&mut driver, &client);
        // Longer than the driver waits for one who runs.
        std::thread::sleep(Duration::from_secs(6));
        // The driver's next look falls between the continuation and the return.
        driver.party().stop();
        publisher.go_on();
        std::thread::sleep(Duration::from_millis(1200));
        driver.party().go_on();
        publisher.tell(5);
        publisher.expect("sent");
        for _ in 0..5 {
            ledger.enter(subscription.recv_until(in_time()).expect("a message").payload());
        }
        until("the census", || census(&client) == (2, 2));
        assert_eq!(subscription.next_event(), None, "it has not left");
    }
}

#[test]
fn both_ends_that_die_while_the_driver_is_away_leave_nothing_behind() {
    let mut driver = DriverProcess::launch();
    let client = driver.connect();
    let mut parties = Vec::new();
    for kind in KINDS {
        let subscriber = Party::start("subscriber", &driver.address, &[&kind, &kind]);
        subscriber.expect("ready");
        let publisher = Party::start("publisher", &driver.address, &[&kind, &1, &1]);
        publisher.expect("connected");
        parties.extend([subscriber, publisher]);
    }
    assert_eq!(census(&client), (6, 6));
    lose(&mut driver, &client);
    parties.iter_mut().for_each(Party::kill);
    find(&mut driver, &client);
    assert_eq!(census(&client), (0, 0));
}

#[test]
fn a_stream_does_not_notice_that_drivers_come_and_go() {
    const PORTION: u64 = 5000;
    for kind in KINDS {
        let mut driver = DriverProcess::launch();
        let mut subscriber = Party::start("subscriber", &driver.address, &[&"stream", &kind]);
        subscriber.expect("ready");
        let mut publisher = Party::start("publisher", &driver.address, &[&"stream", &1, &1]);
        publisher.expect("connected");
        let client = driver.connect();
        for _ in 0..5 {
            subscriber.tell(2 * PORTION);
            publisher.tell(PORTION);
            driver.kill();
            publisher.expect("sent");
            publisher.tell(PORTION);
            driver.start_again();
            publisher.expect("sent");
            subscriber.expect("received");
            // Each driver lives until they have found it.
            until("the census", || client.list().is_ok_and(|entries| entries.iter().map(|entry| entry.links).sum::<u32>() == 2));
        }
    }
}

#[test]
fn whatever_the_driver_was_doing_when_it_was_killed_everybody_meets_in_the_end() {
    const PARTIES: usize = 3;
    const ROUNDS: u32 = 20;
    let mut driver = DriverProcess::launch();
    let mut random = Random::new(4);
    for round in 0..ROUNDS {
        for kind in [Kind::Broadcast, Kind::Mpsc] {
            let channel = format!("{round}/{kind}");
            let subscribers = if kind == Kind::Mpsc { 1 } else { PARTIES };
            // Each with a client of its own, which find the drivers at different times.
            let publications = (0..PARTIES).map(|_| {
                let (address, channel) = (driver.address.clone(), channel.clone());
                std::thread::spawn(move || insist(&address, |client| client.channel(&channel).kind(kind).publication()))
            });
            let publications: Vec<_> = publications.collect();
            let subscriptions = (0..subscribers).map(|_| {
                let (address, channel) = (driver.address.clone(), channel.clone());
                std::thread::spawn(move || insist(&address, |client| client.channel(&channel).kind(kind).subscription()))
            });
            let subscriptions: Vec<_> = subscriptions.collect();
            for _ in 0..3 {
                std::thread::sleep(Duration::from_micros(random.below(1500)));
                driver.kill();
                driver.start_again();
            }
            let mut publications: Vec<Publication> =
                publications.into_iter().map(|thread| thread.join().expect("it is there")).collect();
            let mut subscriptions: Vec<Subscription> =
                subscriptions.into_iter().map(|thread| thread.join().expect("it is there")).collect();
            for (number, publication) in publications.iter_mut().enumerate() {
                connect(publication, subscribers);
                publication.offer(&[number as u8]).expect("room");
            }
            for subscription in &mut subscriptions {
                let mut received: Vec<u8> =
                    (0..PARTIES).map(|_| subscription.recv_until(in_time()).expect("a message").payload()[0]).collect();
                received.sort_unstable();
                assert_eq!(received, (0..PARTIES as u8).collect::<Vec<u8>>());
                assert!(subscription.next().expect("no error").is_none(), "no message comes twice");
                assert_eq!(subscription.images().len(), PARTIES);
            }
        }
    }
}

/// Tries until there is a driver that lives long enough.
fn insist<T>(address: &ringbus::Address, open: impl Fn(&Client) -> Result<T, Error>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let opened = Client::builder().address(address.clone()).connect().and_then(|client| open(&client));
        match opened {
            Ok(opened) => return opened,
            Err(Error::NoDriver { .. } | Error::DriverAway { .. } | Error::NotADriver { .. }) => {}
            // What was made for us before the driver died may not have been given up yet.
            Err(Error::Refused(ringbus::control::message::Refusal::Occupied { .. })) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "no driver lives long enough");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_waits_for_an_answer_when_the_driver_dies_is_told_so() {
    let mut driver = DriverProcess::launch();
    let client = driver.connect();
    driver.party().stop();
    let asking = {
        let client = client.clone();
        std::thread::spawn(move || client.publication("unanswered").map(drop))
    };
    // It cannot be seen from here that the question was sent; if it is sent only later, the error is the same.
    driver.kill();
    let started = Instant::now();
    let answer = asking.join().expect("no panic");
    assert!(matches!(answer, Err(Error::DriverAway { .. })), "{answer:?}");
    assert!(started.elapsed() < PATIENCE);
    find(&mut driver, &client);
    assert_eq!(census(&client), (0, 0));
}

/// Publishes as somebody else, on a channel of its own that root may subscribe to.
fn nobody(mut role: Role) {
    role.become_nobody(&[]);
    let access = Access { subscribe: Grant { uids: vec![0], gids: vec![] }, publish: Grant::default() };
    let mut publication = role.client().channel("theirs").access(access).publication().expect("a publication");
    role.say("ready");
    loop {
        let subscribers: usize = role.hear().parse().expect("a number");
        connect(&mut publication, subscribers);
        publication.offer(b"from nobody").expect("room");
        role.say("sent");
    }
}

#[test]
fn channels_of_other_users_survive_the_driver() {
    if skip_unless_root() {
        return;
    }
    let mut driver = DriverProcess::launch();
    driver.open_to_all();
    let mut publisher = Party::start("nobody", &driver.address, &[]);
    publisher.expect("ready");
    let client = driver.connect();
    let mut subscriptions = vec![client.subscription("theirs").expect("a subscription")];
    for count in 2..5 {
        lose(&mut driver, &client);
        find(&mut driver, &client);
        until("the census", || {
            // A link that only one side had heard of when the driver died is given up, for a new one, when the subscription is asked for what is new.
            subscriptions.iter_mut().for_each(|subscription| while subscription.next_event().is_some() {});
            census(&client) == (count, 2 * (count as u32 - 1))
        });
        subscriptions.push(client.subscription("theirs").expect("a subscription"));
        publisher.tell(count);
        publisher.expect("sent");
        for subscription in &mut subscriptions {
            assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"from nobody");
        }
    }
}

/// A subscription that closes says so in its own page, and wakes who waits for room: nobody needs the driver for that.
#[test]
fn who_waits_for_room_learns_of_a_close_without_a_driver() {
    for kind in KINDS {
        let mut driver = DriverProcess::launch();
        let client = driver.connect();
        let (mut publication, subscription) = pair(&client, "closing", kind, Overflow::Block, 4096);
        while publication.offer(&[1; 100]).is_ok() {}
        driver.kill();
        let (sender, thread) = std::sync::mpsc::channel();
        let publisher = std::thread::spawn(move || {
            sender.send(testing::thread_id()).expect("the test listens");
            publication.offer_until(0, &[2; 1000], in_time()).map(drop)
        });
        let thread = thread.recv().expect("its thread");
        testing::wait_asleep(std::path::Path::new(&format!("/proc/self/task/{thread}")));
        drop(subscription);
        let began = Instant::now();
        assert_eq!(publisher.join().expect("no panic"), Err(OfferError::NotConnected), "{kind}");
        assert!(began.elapsed() < PATIENCE / 2, "{kind}: it learnt of it when its own time was up");
    }
}
