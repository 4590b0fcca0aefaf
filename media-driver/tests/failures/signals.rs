//! What signals do to a program: they interrupt its calls, kill it over a closed pipe, and run handlers in the middle of anything.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringbus::control::message::Request;
use ringbus::{Address, Client, Error, Idle, Kind, OfferError, Overflow};
use rustix::process::{Pid, Signal};
use testing::{
    KINDS, Ledger, PATIENCE, Party, Raw, Role, assert_works, connect, in_time, pair, play_driver, readable, thread_id, until,
};

use crate::{SMALLEST, assert_hangs, assert_killed_by, nowhere, observed};

// ---- Storms ----

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_signal: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// Installs a handler, without `SA_RESTART`.
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: zero is a valid `sigaction`, and the pointers are to it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// From now on that thread of this process gets a `SIGALRM` so often.
fn storm(thread: u32, every: Duration) {
    // SAFETY: zero is a valid value of these types, and the pointers are to live ones.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_notify_thread_id = thread as libc::c_int;
        let mut timer: libc::timer_t = std::mem::zeroed();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
        let interval = libc::timespec { tv_sec: 0, tv_nsec: every.as_nanos() as libc::c_long };
        let times = libc::itimerspec { it_interval: interval, it_value: interval };
        assert_eq!(libc::timer_settime(timer, 0, &times, std::ptr::null_mut()), 0);
    }
}

const EVERY: Duration = Duration::from_micros(100);
const ENOUGH: u64 = 1000;

/// A driver whose thread is interrupted all the time. Says so when it was often enough. Arguments as of a driver.
pub(crate) fn driver_in_a_storm(role: Role) {
    handle(libc::SIGALRM, count);
    storm(thread_id(), EVERY);
    std::thread::spawn(|| {
        until("the storm", || HANDLED.load(Ordering::Relaxed) >= ENOUGH);
        println!("\u{1}interrupted");
    });
    play_driver(role);
}

const REQUESTS: u64 = 300;
const MESSAGES: u64 = 5000;

/// Asks and sends while all its threads are interrupted all the time.
pub(crate) fn client_in_a_storm(mut role: Role) {
    handle(libc::SIGALRM, count);
    let client = role.client();
    for task in fs::read_dir("/proc/self/task").expect("it is mounted") {
        let task = task.expect("a thread").file_name();
        storm(task.to_string_lossy().parse().expect("a number"), EVERY);
    }
    for request in 0..REQUESTS / 3 {
        let name = format!("requests/{request}");
        let publication = client.publication(&name).expect("a publication");
        let subscription = client.subscription(&name).expect("a subscription");
        assert_eq!(client.list().expect("an answer").len(), 2);
        drop((publication, subscription));
        until("they are gone", || client.list().expect("an answer").is_empty());
    }
    for kind in KINDS {
        let name = kind.to_string();
        let channel = || client.channel(&name).kind(kind).capacity(SMALLEST).idle(Idle::Parking);
        let mut subscription = channel().subscription().expect("a subscription");
        let mut publication = channel().publication().expect("a publication");
        let sender = std::thread::spawn(move || {
            storm(thread_id(), EVERY);
            connect(&mut publication, 1);
            let mut buffer = Vec::new();
            for sequence in 0..MESSAGES {
                testing::fill(&mut buffer, 1, sequence, 200);
                publication.offer_until(0, &buffer, in_time()).expect("room in time");
            }
        });
        let mut ledger = Ledger::default();
        while ledger.count(1) < MESSAGES {
            ledger.enter(subscription.recv_until(in_time()).expect("a message").payload());
        }
        sender.join().expect("all were sent");
    }
    assert!(HANDLED.load(Ordering::Relaxed) >= ENOUGH, "{HANDLED:?}");
    role.say("all arrived");
    role.hold();
}

/// Reads frames from a stream: four bytes of length, big-endian, then as many bytes. Arguments: path, whether timers run in this program.
pub(crate) fn naive_stream_reader(mut role: Role) {
    let (path, timers): (String, bool) = (role.argument(0), role.argument(1));
    let mut stream = UnixStream::connect(path).expect("it listens");
    if timers {
        handle(libc::SIGALRM, count);
        storm(thread_id(), EVERY);
    }
    let mut frame = || -> std::io::Result<u32> {
        let mut length = [0; 4];
        let _ = stream.read(&mut length)?;
        let length = u32::from_be_bytes(length);
        let mut payload = vec![0; length as usize];
        if length > 0 {
            let _ = stream.read(&mut payload)?;
        }
        Ok(length)
    };
    for _ in 0..4 {
        match frame() {
            Ok(length) => role.say(length),
            Err(error) => role.say(error.kind()),
        }
    }
    role.hold();
}

/// A program that runs beside the test, and not longer.
struct Program(Child);

impl Program {
    fn ended_within(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let pid = Pid::from_raw(self.0.id() as i32).expect("a pid");
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("a pidfd");
        readable(&pidfd, patience).then(|| self.0.wait().expect("it is our child"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A driver in some role, in a directory of its own.
fn driver_in_role(role: &str) -> (tempfile::TempDir, Address, Party) {
    let directory = tempfile::tempdir().expect("a directory");
    let address = Address::Path(directory.path().join("driver.sock"));
    let party = Party::start(role, &address, &[&0, &0]);
    party.expect("ready");
    (directory, address, party)
}

/// A `read` returns less than was asked for, or `EINTR`.
#[test]
fn short_and_interrupted_reads() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("stream");
    let listener = UnixListener::bind(&path).expect("the path is free");
    let start = |timers: bool| {
        let naive = Party::start("naive stream reader", &nowhere(), &[&path.display(), &timers]);
        (naive, listener.accept().expect("a client").0)
    };
    let (naive, mut stream) = start(false);
    // The frame "hello", a byte at a time: three empty ones and one of 80 MiB come of it.
    for (byte, frame) in [(0u8, "0"), (0, "0"), (0, "0")] {
        stream.write_all(&[byte]).expect("room");
        naive.expect(frame);
    }
    stream.write_all(&[5]).expect("room");
    stream.write_all(b"hello").expect("room");
    let misframed: u32 = naive.hear_number();
    assert!(misframed >= 5 << 24, "{misframed}");
    let (naive, _stream) = start(true);
    naive.expect(&std::io::ErrorKind::Interrupted.to_string());

    let (directory, address, driver) = driver_in_role("driver in a storm");
    let party = Party::start("client in a storm", &address, &[]);
    party.expect("all arrived");
    driver.expect("interrupted");
    party.finish();
    // The one stream there is: what is piped into `ringbus pub`.
    let client = Client::builder().address(address.clone()).connect().expect("a client");
    let mut subscription = client.subscription("piped").expect("a subscription");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbus"));
    command.args(["pub", "piped", "--format", "frames"]).env("RINGBUS_SOCKET", address.to_string()).stdin(Stdio::piped());
    let mut program = Program(command.spawn().expect("a process"));
    let mut stdin = program.0.stdin.take().expect("its stdin");
    let messages = [&b""[..], b"hello", &[7; 20]];
    for message in messages {
        let frame = [&(message.len() as u32).to_le_bytes(), message].concat();
        for byte in frame {
            stdin.write_all(&[byte]).expect("it reads");
            until("it has read the byte", || rustix::io::ioctl_fionread(&stdin) == Ok(0));
        }
        assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), message);
    }
    drop(stdin);
    assert!(program.ended_within(PATIENCE).is_some_and(|status| status.success()));
    drop(directory);
    observed(
        "a frame of 5 bytes sent byte by byte is read as three empty ones and one of more than 80 MB; a timer in the program: the read fails, \"operation interrupted\"",
        format!(
            "SIGALRM every 100 us in all threads of the client and in the driver's: {REQUESTS} requests succeed, {MESSAGES} messages arrive on each kind of channel; `ringbus pub` fed byte by byte sends the right frames"
        ),
    );
}

// ---- SIGPIPE ----

/// As in a program that is not written in Rust, whose runtime ignores it.
fn let_pipes_kill() {
    // SAFETY: restores the default.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Writes to a socket whose other end was closed.
pub(crate) fn naive_writer(mut role: Role) {
    let_pipes_kill();
    let (socket, other) = UnixStream::pair().expect("sockets");
    drop(other);
    // Not by way of the standard library, which asks for no signal.
    role.say(rustix::io::write(&socket, b"hello").is_err());
    role.hold();
}

/// A driver that would die of `SIGPIPE`. Arguments as of a driver.
pub(crate) fn driver_that_pipes_may_kill(role: Role) {
    let_pipes_kill();
    play_driver(role);
}

/// Sends to a subscriber in an event loop; driver and subscriber are killed meanwhile.
pub(crate) fn client_that_pipes_may_kill(mut role: Role) {
    let_pipes_kill();
    let client = role.client();
    let channel: String = role.argument(0);
    let mut publication = client.publication(&channel).expect("a publication");
    connect(&mut publication, 1);
    publication.offer(b"hello").expect("room");
    role.say("sent");
    role.hear();
    // Both are dead now, and nobody has told us of the subscriber.
    publication.offer(b"hello").expect("room");
    until("the driver is missed", || matches!(client.list(), Err(Error::DriverAway { .. })));
    assert!(matches!(client.publication("new"), Err(Error::DriverAway { .. })));
    role.say("lives");
    role.hear();
    until("the driver is back", || client.list().is_ok());
    until("the death is known", || publication.offer(b"hello") == Err(OfferError::NotConnected));
    let (mut publication, mut subscription) = pair(&client, "new", Kind::Broadcast, Overflow::Block, SMALLEST);
    assert_works(&mut publication, &mut subscription);
    role.say("works");
    role.hold();
}

/// `SIGPIPE` kills a process that writes to a socket whose other end is closed.
#[test]
fn a_closed_socket_kills_the_writer() {
    let mut naive = Party::start("naive writer", &nowhere(), &[]);
    assert_killed_by(libc::SIGPIPE, naive.ended_within(PATIENCE));

    let (_directory, address, mut driver) = driver_in_role("driver that pipes may kill");
    let mut sleeper = Party::start("sleeper with full counters", &address, &[&"pipes", &false]);
    sleeper.expect("sleeps");
    let mut client = Party::start("client that pipes may kill", &address, &[&"pipes"]);
    client.expect("sent");
    // An event and a message: then it is back in its event loop.
    sleeper.expect("available");
    sleeper.expect("message");
    sleeper.wait_all_asleep();
    driver.kill();
    sleeper.kill();
    client.tell("go on");
    client.expect("lives");
    let driver = Party::start("driver that pipes may kill", &address, &[&0, &0]);
    driver.expect("ready");
    client.tell("go on");
    client.expect("works");
    client.finish();
    // Clients that go before they are answered.
    let observer = Client::builder().address(address.clone()).connect().expect("a client");
    let _rings = pair(&observer, "rings", Kind::Mpsc, Overflow::Block, SMALLEST);
    for _ in 0..50 {
        let raw = Raw::greeted(&address);
        driver.stop();
        for request in 0..20 {
            raw.ask(&Request::List { request });
        }
        drop(raw);
        driver.go_on();
        assert_eq!(observer.list().expect("it lives").len(), 2);
    }
    observed(
        "with SIGPIPE at its default: dies of it",
        "with SIGPIPE at its default: a client rings a dead subscriber's doorbell and asks a dead driver, a driver answers 50 clients that are gone; both live",
    );
}

// ---- Handlers ----

extern "C" fn allocate(_signal: libc::c_int) {
    // What a log line in a handler comes to.
    drop(std::hint::black_box(vec![1u8; 3000]));
}

/// Allocates, and so does its signal handler.
pub(crate) fn naive_handler(mut role: Role) {
    role.say(thread_id());
    handle(libc::SIGALRM, allocate);
    storm(thread_id(), Duration::from_micros(20));
    let deadline = Instant::now() + PATIENCE / 2;
    while Instant::now() < deadline {
        for size in 2000..4000 {
            drop(std::hint::black_box(vec![1u8; size]));
        }
    }
    role.say("survived");
    role.hold();
}

/// The masks in /proc/PID/status.
fn signals(pid: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let mask = status.lines().find_map(|text| text.strip_prefix(line)).expect("the line is there");
    u64::from_str_radix(mask.trim(), 16).expect("a mask")
}

/// A signal handler allocates, while the program itself allocates.
#[test]
fn a_handler_that_allocates_deadlocks() {
    let naive = Party::start("naive handler", &nowhere(), &[]);
    assert_hangs(&naive, &naive.hear());

    const ROUNDS: usize = 10;
    let ends = (1 << (libc::SIGINT - 1)) | (1 << (libc::SIGTERM - 1));
    for _ in 0..ROUNDS {
        let directory = tempfile::tempdir().expect("a directory");
        let address = Address::Path(directory.path().join("driver.sock"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringbusd"));
        command.args(["--socket", &address.to_string()]).env("RUST_LOG", "off");
        let mut daemon = Program(command.spawn().expect("a process"));
        let pid = daemon.0.id();
        let connect = || Client::builder().address(address.clone()).connect().ok();
        until("it is ready", || connect().is_some());
        assert_eq!(signals(pid, "SigCgt:") & ends, 0, "there is no handler");
        assert_eq!(signals(pid, "SigBlk:") & ends, ends);
        let client = connect().expect("it is ready");
        // It is busy: memory is made and freed all the time.
        let busy = std::thread::spawn(move || (0..).take_while(|_| client.publication("busy").is_ok()).count());
        std::thread::sleep(Duration::from_millis(5));
        for signal in [Signal::TERM, Signal::INT].into_iter().cycle().take(200) {
            rustix::process::kill_process(Pid::from_raw(pid as i32).expect("a pid"), signal).expect("it is not reaped yet");
        }
        let ending = daemon.ended_within(PATIENCE).expect("it ends");
        assert!(ending.success(), "{ending}");
        busy.join().expect("no panic");
        assert_eq!(fs::read_dir(directory.path()).expect("it is ours").count(), 0, "it has tidied up");
    }
    observed(
        "a handler that allocates, on a timer, in a program that allocates: the thread sleeps in malloc, and does not get up again",
        format!(
            "ringbusd has no handler for SIGTERM and SIGINT (signalfd); 200 of them while it is busy, {ROUNDS} times: it ends in good order and removes its files"
        ),
    );
}
