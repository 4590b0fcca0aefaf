//! Calls that block when they should not, or for ever: writing to a full pipe, sending to a full message queue.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use ringbus::{Kind, OfferError, Overflow, PollError};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use testing::{DriverProcess, KINDS, Party, Role, SOON, connect, pair, thread_id};

use crate::{SMALLEST, assert_hangs, nowhere, observed};

// ---- A pipe ----

const RECORDS: u64 = 2000;
const RECORD: usize = 4000;

/// Writes its records to a pipe, as all loggers do. Argument: the pipe.
pub(crate) fn naive_logger(mut role: Role) {
    let path: String = role.argument(0);
    let mut pipe = OpenOptions::new().write(true).open(path).expect("somebody reads it");
    role.say(thread_id());
    for _ in 0..RECORDS {
        pipe.write_all(&[b'x'; RECORD]).expect("somebody reads it");
    }
    role.say("all written");
    role.hold();
}

/// A pipe takes 64 KiB; when its reader stalls, the writer blocks, and ingestion stands still.
#[test]
fn the_writer_of_a_full_pipe_blocks() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pipe");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    let pipe = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).expect("a pipe");
    let naive = Party::start("naive logger", &nowhere(), &[&path.display()]);
    assert_hangs(&naive, &naive.hear());
    let size = rustix::pipe::fcntl_getpipe_size(&pipe).expect("a pipe") as u64;
    let inside = rustix::io::ioctl_fionread(&pipe).expect("a pipe");
    assert!(inside > size / 2 && inside <= size, "{inside} of {size}");

    let driver = DriverProcess::launch();
    let client = driver.connect();
    let mut record = [b'x'; RECORD];
    // With back pressure: the publisher decides, and counts.
    let (mut publication, mut subscription) = pair(&client, "block", Kind::Broadcast, Overflow::Block, 1 << 16);
    let (mut sent, mut dropped) = (0, 0);
    for _ in 0..RECORDS {
        match publication.offer(&record) {
            Ok(_) => sent += 1,
            Err(OfferError::BackPressured) => dropped += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(sent, (1 << 16) / (RECORD as u64 + 8), "the depth is the capacity");
    let received = std::iter::from_fn(|| subscription.next().expect("no error").map(drop)).count() as u64;
    assert_eq!((received, sent + dropped), (sent, RECORDS));
    // Lossy: nothing holds it up, and the subscriber is told how many it lost.
    let (mut publication, mut subscription) = pair(&client, "lossy", Kind::Broadcast, Overflow::Lossy, 1 << 16);
    for number in 0..RECORDS {
        record[..8].copy_from_slice(&number.to_le_bytes());
        publication.offer(&record).expect("never held up");
    }
    let Err(PollError::Lost { messages: lost, .. }) = subscription.next().map(drop) else { panic!("it is too late for some") };
    for number in lost..RECORDS {
        let message = subscription.next().expect("no more lost").expect("it is there");
        assert_eq!(message.payload()[..8], number.to_le_bytes());
    }
    assert!(subscription.next().expect("no error").is_none());
    observed(
        format!(
            "the reader stalls: the logger sleeps in write() once {} KiB are in the pipe, and takes no record any more",
            size >> 10
        ),
        format!(
            "64 KiB ring, {RECORDS} records, reader stalls: `block` takes {sent}, says BackPressured {dropped} times at once; `lossy` takes all, the reader gets the last ones and an exact count of those lost"
        ),
    );
}

// ---- A message queue ----

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// Sends to a message queue, or receives one message from it. Arguments: its name, "send" or "receive".
pub(crate) fn naive_mq_sender(mut role: Role) {
    let (name, what): (String, String) = (role.argument(0), role.argument(1));
    let name = CString::new(name).expect("a name");
    // SAFETY: the name is a string that ends with a zero; zero is a valid `mq_attr`.
    let queue = unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (4, 8);
        libc::mq_open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, &attributes)
    };
    assert!(queue >= 0, "{}", last_error());
    role.say("open");
    if what == "receive" {
        let mut message = [0u8; 8];
        // SAFETY: the pointer is to as many bytes as said.
        let length = unsafe { libc::mq_receive(queue, message.as_mut_ptr().cast(), message.len(), std::ptr::null_mut()) };
        role.say(length);
        return role.hold();
    }
    let send = || {
        // SAFETY: the pointer is to as many bytes as said.
        let result = unsafe { libc::mq_send(queue, [7u8; 8].as_ptr().cast(), 8, 0) };
        assert_eq!(result, 0, "{}", last_error());
    };
    send();
    role.hear();
    role.say(thread_id());
    (0..5).for_each(|_| send());
    role.say("all sent");
    role.hold();
}

/// Subscribes and never reads. Arguments: channel, kind.
pub(crate) fn idler(mut role: Role) {
    let (channel, kind): (String, Kind) = (role.argument(0), role.argument(1));
    let _subscription = role.client().channel(&channel).kind(kind).capacity(SMALLEST).subscription().expect("a subscription");
    role.say("ready");
    role.hold();
}

/// `mq_send` to a full queue whose receiver has crashed.
#[test]
fn a_sender_waits_for_a_dead_receiver() {
    let name = format!("/naive-queue-{}", std::process::id());
    let mut receiver = Party::start("naive sender to a dead receiver", &nowhere(), &[&name, &"receive"]);
    receiver.expect("open");
    let mut sender = Party::start("naive sender to a dead receiver", &nowhere(), &[&name, &"send"]);
    sender.expect("open");
    let unlinked = CString::new(name).expect("a name");
    // SAFETY: the name is a string that ends with a zero.
    assert_eq!(unsafe { libc::mq_unlink(unlinked.as_ptr()) }, 0, "from here on nothing is left behind");
    receiver.expect("8");
    receiver.kill();
    sender.tell("go on");
    assert_hangs(&sender, &sender.hear());

    let driver = DriverProcess::launch();
    let client = driver.connect();
    const DEADLINE: Duration = Duration::from_millis(100);
    for kind in KINDS {
        let name = kind.to_string();
        let mut idler = Party::start("idler", &driver.address, &[&name, &kind]);
        idler.expect("ready");
        let mut publication = client.publication(&name).expect("a publication");
        connect(&mut publication, 1);
        while publication.offer(&[0; 100]).is_ok() {}
        let before = Instant::now();
        assert_eq!(publication.offer_until(0, &[0; 100], Some(before + DEADLINE)), Err(OfferError::TimedOut));
        assert!(before.elapsed() >= DEADLINE && before.elapsed() < DEADLINE + SOON, "{:?}", before.elapsed());
        idler.kill();
        let killed = Instant::now();
        assert_eq!(publication.offer_until(0, &[0; 100], testing::in_time()), Err(OfferError::NotConnected));
        assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    }
    observed(
        "the receiver is killed, four messages later mq_send sleeps, and does not get up again",
        "the receiver lives and does not read: TimedOut at the deadline; it is killed: \"nobody subscribes\" at once (all kinds)",
    );
}
