//! Nothing is left behind: not in the system, not in the driver, not in those who stay, however the others went.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ringbus::{Client, ImageEvent, Kind, Overflow};
use testing::{
    DriverProcess, Holdings, KINDS, Party, Role, assert_works, connect, event, in_time, outliving, pair, play_driver, until,
};

const SMALLEST: u64 = 4096;

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => play_driver(role),
        "visitor" => visitor(role),
        "host of publishers" => host_of_publishers(role),
        "host of subscribers" => host_of_subscribers(role),
        "commuter" => commuter(role),
        other => panic!("there is no role {other}"),
    }
}

// ---- The system ----

fn files(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path().display().to_string())).collect()
}

/// Publishes, subscribes, and goes as it is told: "close" or not at all. Arguments: kind.
fn visitor(mut role: Role) {
    let kind: Kind = role.argument(0);
    let client = role.client();
    let (mut publication, mut subscription) =
        pair(&client, &format!("visitor/{}", std::process::id()), kind, Overflow::Block, SMALLEST);
    assert_works(&mut publication, &mut subscription);
    let mut shared = client.channel("shared").kind(Kind::Broadcast).capacity(SMALLEST).publication().expect("a publication");
    connect(&mut shared, 1);
    shared.offer(b"hello").expect("room");
    let _claim = publication.try_claim(100).expect("room");
    role.say("there");
    role.hear();
    role.say("gone");
}

#[test]
fn when_all_are_gone_all_is_as_before() {
    let mut driver = DriverProcess::launch();
    let (system_before, fds_before) = (outliving(), driver.party().fds().len());
    let files_before = files(driver.directory());
    let client = driver.connect();
    let mut subscription = client.channel("shared").capacity(SMALLEST).subscription().expect("a subscription");
    let meet = |driver: &DriverProcess| -> Vec<Party> {
        let visitors: Vec<Party> = (0..6).map(|number| Party::start("visitor", &driver.address, &[&KINDS[number % 3]])).collect();
        visitors.iter().for_each(|visitor| visitor.expect("there"));
        for visitor in &visitors {
            let maps = fs::read_to_string(format!("/proc/{}/maps", visitor.pid())).expect("it is there");
            assert!(!maps.contains("/dev/shm") && !maps.contains("/SYSV"), "it uses nothing that could be left behind");
        }
        visitors
    };
    let mut rounds = |visitors: Vec<Party>| {
        for (number, mut visitor) in visitors.into_iter().enumerate() {
            if number < 3 {
                visitor.kill();
            } else {
                visitor.tell("close");
                visitor.expect("gone");
                visitor.finish();
            }
        }
        for _ in 0..6 {
            assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"hello");
        }
        let (mut available, mut closed) = (0, 0);
        while closed < 6 {
            match event(&mut subscription) {
                ImageEvent::Available(_) => available += 1,
                ImageEvent::Closed(_) => closed += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((available, subscription.images().len()), (6, 0));
    };
    for _ in 0..3 {
        rounds(meet(&driver));
    }
    let census = || client.list().is_ok_and(|entries| entries.len() == 1 && entries[0].links == 0);
    until("they are forgotten", census);
    // Also when the driver was not there to see them go.
    let visitors = meet(&driver);
    driver.kill();
    driver.start_again();
    rounds(visitors);
    until("they are forgotten", census);
    drop((subscription, client));
    until("the driver has as many descriptors as before", || driver.party().fds().len() == fds_before);
    assert_eq!(files(driver.directory()), files_before);
    until("the system is as before", || outliving().is_subset(&system_before));
}

// ---- Those who stay ----

const GUESTS: usize = 300;

/// Subscribes; publishers come and go, more than there are places for at once. Arguments: kind.
fn host_of_publishers(mut role: Role) {
    let (kind, client) = (role.argument(0), role.client());
    let mut subscription = client.channel("host").kind(kind).capacity(SMALLEST).subscription().expect("a subscription");
    let before = Holdings::own();
    role.say("ready");
    for _ in 0..GUESTS {
        assert!(matches!(event_after_messages(&mut subscription), ImageEvent::Available(_)));
        assert!(matches!(event_after_messages(&mut subscription), ImageEvent::Closed(_)));
        role.say("next");
    }
    before.wait_for_return();
    role.say("clean");
    role.hold();
}

/// The next event; messages before it are read.
fn event_after_messages(subscription: &mut ringbus::Subscription) -> ImageEvent {
    loop {
        if let Some(event) = subscription.next_event() {
            return event;
        }
        assert_ne!(subscription.wait(in_time()), ringbus::Ready::TimedOut);
        while subscription.next().expect("no error").is_some() {}
    }
}

#[test]
fn publishers_that_come_and_go_leave_nothing_in_their_subscriber() {
    for kind in KINDS {
        let driver = DriverProcess::launch();
        let client = driver.connect();
        let host = Party::start("host of publishers", &driver.address, &[&kind]);
        host.expect("ready");
        let fds = driver.party().fds().len();
        for _ in 0..GUESTS {
            let mut guest = client.publication("host").expect("a publication");
            connect(&mut guest, 1);
            guest.offer(b"hello").expect("room");
            drop(guest);
            host.expect("next");
        }
        host.expect("clean");
        until("the driver is as before", || driver.party().fds().len() == fds);
        host.finish();
    }
}

/// Publishes; subscribers come and go, and it may not even look. Arguments: kind, whether to look.
fn host_of_subscribers(mut role: Role) {
    let (kind, looks, client): (Kind, bool, Client) = (role.argument(0), role.argument(1), role.client());
    let mut publication = client.channel("host").kind(kind).capacity(SMALLEST).publication().expect("a publication");
    let before = Holdings::own();
    role.say("ready");
    for _ in 0..GUESTS {
        if looks {
            connect(&mut publication, 1);
            publication.offer(b"hello").expect("room");
            connect(&mut publication, 0);
            role.say("next");
        } else {
            role.hear();
        }
    }
    before.wait_for_return();
    role.say("clean");
    role.hold();
}

#[test]
fn subscribers_that_come_and_go_leave_nothing_in_their_publisher() {
    for kind in KINDS {
        for looks in [true, false] {
            let driver = DriverProcess::launch();
            let client = driver.connect();
            let mut host = Party::start("host of subscribers", &driver.address, &[&kind, &looks]);
            host.expect("ready");
            let fds = driver.party().fds().len();
            for _ in 0..GUESTS {
                let mut guest = client.subscription("host").expect("a subscription");
                if looks {
                    assert_eq!(guest.recv_until(in_time()).expect("a message").payload(), b"hello");
                }
                assert!(matches!(event(&mut guest), ImageEvent::Available(_)));
                drop(guest);
                if looks {
                    host.expect("next");
                } else {
                    host.tell("another one");
                }
            }
            host.expect("clean");
            until("the driver is as before", || driver.party().fds().len() == fds);
            host.finish();
        }
    }
}

/// Connects and leaves, again and again.
fn commuter(mut role: Role) {
    let before = Holdings::own();
    for _ in 0..50 {
        let client = role.client();
        let mut pairs = KINDS.map(|kind| pair(&client, &format!("{kind}"), kind, Overflow::Block, SMALLEST));
        // What was made from it keeps it alive.
        drop(client);
        pairs.iter_mut().for_each(|(publication, subscription)| assert_works(publication, subscription));
        drop(pairs);
        before.wait_for_return();
    }
    role.say("clean");
    role.hold();
}

#[test]
fn clients_that_come_and_go_leave_nothing_in_their_process() {
    let driver = DriverProcess::launch();
    let fds = driver.party().fds().len();
    let party = Party::start("commuter", &driver.address, &[]);
    party.expect("clean");
    until("the driver is as before", || driver.party().fds().len() == fds);
    party.finish();
}
