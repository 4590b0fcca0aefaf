//! Wake-ups through counters and buffers that are full already.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ringbus::{ImageEvent, Kind};
use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketType};
use testing::{DriverProcess, EventLoop, PATIENCE, Party, Role, connect, thread_id, until};

use crate::{SMALLEST, STALL, assert_hangs, nowhere, observed};

/// One below the highest value of an eventfd: the next `write` of 1 is refused, or blocks.
const FULL: u64 = u64::MAX - 1;

/// A queue with an eventfd: whoever puts something in rings, whoever takes something out waits for the edge, and needs not read the counter then.
pub(crate) fn naive_waker(mut role: Role) {
    let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"));
    let queue = Arc::new(Mutex::new(VecDeque::new()));
    let (said, thread) = std::sync::mpsc::channel();
    std::thread::spawn({
        let (bell, queue) = (Arc::clone(&bell), Arc::clone(&queue));
        move || {
            said.send(thread_id()).expect("it listens");
            let events = EventLoop::around(&*bell, EventFlags::IN | EventFlags::ET);
            while events.turn(2 * PATIENCE) {
                while let Some(item) = queue.lock().expect("no panic").pop_front() {
                    println!("\u{1}taken {item}");
                }
            }
        }
    });
    let reader = PathBuf::from(format!("/proc/self/task/{}", thread.recv().expect("it starts")));
    let put = |item: u32| {
        queue.lock().expect("no panic").push_back(item);
        // It can only fail if it is rung already.
        let _ = rustix::io::write(&bell, &1u64.to_ne_bytes());
    };
    testing::wait_asleep(&reader);
    put(1);
    role.hear();
    // As it is after 2^64 rings, or one of a hostile peer.
    rustix::io::write(&bell, &(FULL - 1).to_ne_bytes()).expect("room");
    testing::wait_asleep(&reader);
    put(2);
    role.say("put 2");
    role.hear();
    let blocking = eventfd(0, EventfdFlags::empty()).expect("an eventfd");
    rustix::io::write(&blocking, &FULL.to_ne_bytes()).expect("room");
    role.say(thread_id());
    rustix::io::write(&blocking, &1u64.to_ne_bytes()).expect("room");
    role.say("rung");
    role.hold();
}

/// This process's fds of that sort.
fn own_fds(sort: &str) -> Vec<BorrowedFd<'static>> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("it is mounted").filter_map(Result::ok);
    let fds = entries.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with(sort)));
    let numbers = fds.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    // SAFETY: they belong to objects of ringbus that outlive the use here; nothing else is done with them but what any holder may do.
    numbers.map(|number| unsafe { BorrowedFd::borrow_raw(number) }).collect()
}

/// Sets all of this process's eventfds to the highest they can be. Returns how many there are.
fn fill_eventfds() -> usize {
    let eventfds = own_fds("anon_inode:[eventfd]");
    for bell in &eventfds {
        until("the counter is full", || {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", bell.as_raw_fd())).expect("it is there");
            let count = info.lines().find_map(|line| line.strip_prefix("eventfd-count:")).expect("an eventfd");
            let count = u64::from_str_radix(count.trim(), 16).expect("a number");
            rustix::io::write(bell, &(FULL - count).to_ne_bytes()).is_ok()
        });
    }
    eventfds.len()
}

/// Sleeps in an event loop; before each time it fills all counters. Arguments: channel, whether edge-triggered. Says what has woken it.
pub(crate) fn sleeper(role: Role) {
    let (channel, edges): (String, bool) = (role.argument(0), role.argument(1));
    let client = role.client();
    let channel = client.channel(&channel).kind(Kind::Broadcast).capacity(SMALLEST);
    let mut subscription = channel.subscription().expect("a subscription");
    let flags = if edges { EventFlags::IN | EventFlags::ET } else { EventFlags::IN };
    let events = EventLoop::around(&subscription, flags);
    assert!(fill_eventfds() >= 2, "the conductor's and the subscription's");
    role.say("sleeps");
    loop {
        let mut woken = Vec::new();
        while let Some(event) = subscription.next_event() {
            woken.push(if matches!(event, ImageEvent::Available(_)) { "available" } else { "closed" });
        }
        while subscription.next().expect("no error").is_some() {
            woken.push("message");
        }
        for what in &woken {
            fill_eventfds();
            role.say(what);
        }
        assert!(events.turn(PATIENCE), "nothing wakes it");
    }
}

/// Fills the doorbells of all its links, then sends; again and again as it is told. Argument: channel.
pub(crate) fn waker(mut role: Role) {
    let channel: String = role.argument(0);
    let mut publication = role.client().publication(&channel).expect("a publication");
    connect(&mut publication, 1);
    role.say("connected");
    loop {
        role.hear();
        let sockets = own_fds("socket:");
        let doorbells = sockets.iter().filter(|socket| rustix::net::sockopt::socket_type(socket) == Ok(SocketType::STREAM));
        let mut filled = 0;
        for doorbell in doorbells {
            let full = std::iter::repeat_with(|| rustix::net::send(doorbell, &[1], SendFlags::DONTWAIT)).find_map(Result::err);
            assert_eq!(full, Some(Errno::AGAIN));
            filled += 1;
        }
        publication.offer(b"hello").expect("room");
        role.say(filled);
    }
}

/// An eventfd's counter at its maximum: `EAGAIN`, which the ringer ignores, or a `write` that blocks.
#[test]
fn a_full_counter_swallows_wakeups() {
    let mut naive = Party::start("naive waker", &nowhere(), &[]);
    naive.expect("taken 1");
    naive.tell("fill");
    naive.expect("put 2");
    assert_eq!(naive.heard_within(STALL), None, "nobody takes it");
    naive.tell("block");
    assert_hangs(&naive, &naive.hear());

    const ROUNDS: usize = 50;
    const STOPS: usize = 5;
    for edges in [false, true] {
        let driver = DriverProcess::launch();
        let client = driver.connect();
        let sleeper = Party::start("sleeper with full counters", &driver.address, &[&"bells", &edges]);
        sleeper.expect("sleeps");
        // The conductor's news come through an eventfd.
        for _ in 0..ROUNDS {
            let mut publication = client.publication("bells").expect("a publication");
            sleeper.expect("available");
            connect(&mut publication, 1);
            publication.offer(b"hello").expect("room");
            sleeper.expect("message");
            drop(publication);
            sleeper.expect("closed");
        }
        // Messages through a doorbell.
        let mut waker = Party::start("waker with full doorbells", &driver.address, &[&"bells"]);
        waker.expect("connected");
        sleeper.expect("available");
        for _ in 0..ROUNDS {
            waker.tell("ring");
            waker.expect("1");
            sleeper.expect("message");
        }
        // Who rings is not held up by a sleeper that cannot empty its doorbell.
        for _ in 0..STOPS {
            sleeper.wait_all_asleep();
            sleeper.stop();
            waker.tell("ring");
            waker.expect("1");
            sleeper.go_on();
            sleeper.expect("message");
        }
    }
    observed(
        "EAGAIN ignored: the item stays in the queue, its reader asleep; in blocking mode the ringer sleeps in write()",
        format!(
            "{} events with all eventfds of the process at 2^64 - 2 before each, and {} messages through doorbells that were full, some to a sleeper that is stopped: all arrive, and nobody blocks (epoll, level- and edge-triggered)",
            6 * ROUNDS,
            2 * (ROUNDS + STOPS)
        ),
    );
}
