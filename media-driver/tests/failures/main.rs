//! The table of failures: each of them done by a program as somebody would write it who does not know better, which fails as it must, and done to ringbus.
//!
//! A naive program is a few lines with the usual system calls; where it dies or hangs it does so in a process of its own. What was observed of both is printed
//! in two lines, from which, and from the first paragraph of each test's documentation, `scripts/failures` makes `docs/failures.md`. So these lines
//! have no figure that differs from one run to the next.

mod blocking;
mod by_hand;
mod deaths;
mod descriptors;
mod forks;
mod limits;
mod memory;
mod naive_ring;
mod objects;
mod server;
mod signals;
mod wakeups;

use std::fmt::Display;
use std::process::ExitStatus;
use std::time::Duration;

use ringbus::Address;
use std::os::unix::process::ExitStatusExt;
use testing::{Party, Role, play_driver};

const SMALLEST: u64 = 4096;

/// Who sleeps all that time has been forgotten. What is to happen instead takes microseconds.
const STALL: Duration = Duration::from_millis(300);

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "driver" => play_driver(role),
        "naive owner of named objects" => objects::naive_owner(role),
        "resident" => objects::resident(role),
        "snoop" => objects::snoop(role),
        "naive receiver" => descriptors::naive_receiver(role),
        "naive receiver without descriptors" => descriptors::naive_receiver_without_descriptors(role),
        "client of a fraud" => descriptors::client_of_a_fraud(role),
        "client without descriptors" => descriptors::client_without_descriptors(role),
        "naive logger" => blocking::naive_logger(role),
        "naive sender to a dead receiver" => blocking::naive_mq_sender(role),
        "idler" => blocking::idler(role),
        "naive waker" => wakeups::naive_waker(role),
        "sleeper with full counters" => wakeups::sleeper(role),
        "waker with full doorbells" => wakeups::waker(role),
        "naive reader of a mapping" => memory::naive_mapper(role),
        "naive reader of frames" => memory::naive_frame_reader(role),
        "scribbler" => memory::scribbler(role),
        "naive producer" => deaths::naive_producer(role),
        "naive consumer" => deaths::naive_consumer(role),
        "claimer" => deaths::claimer(role),
        "blocked" => deaths::blocked(role),
        "naive forker" => forks::naive_forker(role),
        "forker" => forks::forker(role),
        "naive server" => server::naive_server(role),
        "naive listener" => server::naive_listener(role),
        "naive stream reader" => signals::naive_stream_reader(role),
        "naive writer" => signals::naive_writer(role),
        "naive handler" => signals::naive_handler(role),
        "driver in a storm" => signals::driver_in_a_storm(role),
        "client in a storm" => signals::client_in_a_storm(role),
        "driver that pipes may kill" => signals::driver_that_pipes_may_kill(role),
        "client that pipes may kill" => signals::client_that_pipes_may_kill(role),
        "limited" => limits::limited(role),
        other => panic!("there is no role {other}"),
    }
}

/// For roles without a driver.
fn nowhere() -> Address {
    Address::Abstract("ringbus-test-nobody".to_owned())
}

/// What the two programs have done, for the page.
fn observed(naive: impl Display, ringbus: impl Display) {
    println!("naive: {naive}");
    println!("ringbus: {ringbus}");
}

/// The thread of that party sleeps and will not get up.
#[track_caller]
fn assert_hangs(party: &Party, thread: &str) {
    party.wait_asleep(thread);
    let heard = party.heard_within(STALL);
    assert_eq!(heard, None, "it does not hang");
    party.wait_asleep(thread);
}

/// It was killed by that signal.
#[track_caller]
fn assert_killed_by(signal: libc::c_int, ending: Option<ExitStatus>) {
    let ending = ending.expect("it has ended");
    assert_eq!(ending.signal(), Some(signal), "{ending}");
}
