//! Shared memory that is not as it should be: torn, truncated, full of garbage, or another object altogether.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapRaw;
use ringbus::channel::Properties;
use ringbus::control::message::{Event, Request};
use ringbus::memory::MemoryError;
use ringbus::ring::layout::{LAYOUT_VERSION, ObjectKind};
use ringbus::{Client, Error, ImageEvent, Kind, Overflow, PollError, RecvError};
use rustix::io::Errno;
use testing::{DriverProcess, Party, Raw, Role, assert_works, connect, event, in_time, pair};

use crate::by_hand::fake_driver;
use crate::descriptors::{added, ring_object};
use crate::{SMALLEST, STALL, assert_killed_by, nowhere, observed};

// ---- Torn ----

/// Two threads and a u64 at this offset: how many of the values that were read had never been written. Each one is tried for at most that long.
#[cfg(target_arch = "x86_64")]
fn torn_reads(offset: usize, patience: Duration) -> u64 {
    use std::arch::asm;
    let memory = Arc::new(MmapRaw::from(memmap2::MmapMut::map_anon(4096).expect("memory")));
    // SAFETY: inside the mapping, which both threads hold.
    let address = unsafe { memory.as_mut_ptr().add(offset) } as usize;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (memory, stop) = (Arc::clone(&memory), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                for value in [u64::MAX, 0] {
                    // SAFETY: a plain store of 8 bytes inside the mapping, as a compiler makes it of a packed struct's field.
                    unsafe { asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) value, options(nostack)) };
                }
            }
            drop(memory);
        }
    });
    let (mut torn, deadline) = (0, Instant::now() + patience);
    while torn == 0 && Instant::now() < deadline {
        for _ in 0..10_000 {
            let value: u64;
            // SAFETY: a plain load of 8 bytes inside the mapping.
            unsafe { asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) address, options(nostack)) };
            torn += u64::from(value != 0 && value != u64::MAX);
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("no panic");
    torn
}

/// What a client says of an object that its driver gives it.
fn verdict(make: impl Fn() -> OwnedFd + Send + 'static) -> Result<(), Error> {
    let (address, thread) = fake_driver(move |request, spec| added(request, spec, vec![make()]));
    let client = Client::builder().address(address).connect().expect("it greets");
    let result = client.channel("shown").kind(Kind::Spsc).capacity(SMALLEST).publication().map(drop);
    drop(client);
    thread.join().expect("no panic");
    result
}

/// A u64 that straddles a cache line (at offset 1022) is read half old, half new.
#[test]
fn a_misaligned_counter_is_torn() {
    #[cfg(target_arch = "x86_64")]
    let naive = {
        assert_eq!(torn_reads(1024, STALL), 0, "aligned, it is not");
        if torn_reads(1022, Duration::from_secs(4)) > 0 {
            "of 0 and 2^64 - 1 written in turn, other values are read at offset 1022, none at 1024"
        } else {
            "not seen on this machine (one processor?)"
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let naive = "not tried on this processor";

    let good = || ring_object(ObjectKind::SingleRing, SMALLEST);
    let patched = |offset: u64, bytes: &'static [u8]| {
        move || {
            let object = ring_object(ObjectKind::SingleRing, SMALLEST);
            assert_eq!(rustix::io::pwrite(&object, bytes, offset), Ok(bytes.len()));
            object
        }
    };
    verdict(good).expect("the one that the driver makes is good");
    let next_version = (LAYOUT_VERSION + 1).to_ne_bytes();
    let refusals = [
        (verdict(patched(0, b"RINGBUS!")), "does not begin as a ringbus object"),
        (verdict(patched(8, Box::leak(Box::new(next_version)))), "layout is of another version"),
        (verdict(|| ring_object(ObjectKind::MpscRing, SMALLEST)), "another object than the driver said"),
        (verdict(patched(16, &[0xFF; 8])), "another object than the driver said"),
        (verdict(|| ring_object(ObjectKind::SingleRing, 2 * SMALLEST)), "its size is not"),
    ];
    for (refusal, says) in &refusals {
        let Err(error @ Error::Memory(MemoryError::Refused { .. })) = refusal else { panic!("{refusal:?}, not {says}") };
        assert!(error.to_string().contains(says), "{error}, not {says}");
    }
    observed(
        naive,
        format!(
            "a client refuses {} objects out of {}: other magic, layout version, kind, capacity, size",
            refusals.len(),
            refusals.len()
        ),
    );
}

// ---- Truncated ----

fn map(path: &Path) -> MmapRaw {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a file");
    MmapRaw::map_raw(&file).expect("a mapping")
}

/// Reads the last byte of a mapped file each time it is told. Argument: the file.
pub(crate) fn naive_mapper(mut role: Role) {
    let path: String = role.argument(0);
    let memory = map(Path::new(&path));
    role.say("mapped");
    loop {
        role.hear();
        // SAFETY: inside the mapping; that it is still there is what is naive.
        role.say(unsafe { memory.as_mut_ptr().add(memory.len() - 1).read_volatile() });
    }
}

/// A peer truncates the shared object.
#[test]
fn a_truncated_object_is_fatal() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("shared");
    let file = File::create_new(&path).expect("a file");
    file.set_len(8192).expect("room");
    let mut naive = Party::start("naive reader of a mapping", &nowhere(), &[&path.display()]);
    naive.expect("mapped");
    naive.tell("read");
    naive.expect("0");
    file.set_len(0).expect("it is ours");
    naive.tell("read");
    assert_killed_by(libc::SIGBUS, naive.ended_within(testing::PATIENCE));

    let driver = DriverProcess::launch();
    let client = driver.connect();
    let mut objects = 0;
    for kind in [Kind::Broadcast, Kind::Mpsc] {
        let name = format!("objects/{kind}");
        let (mut publication, mut subscription) = pair(&client, &name, kind, Overflow::Block, SMALLEST);
        let raw = Raw::greeted(&driver.address);
        let (name, properties) = (name.parse().expect("a name"), Properties::default());
        raw.ask(&match kind {
            Kind::Mpsc => Request::AddPublication { request: 1, name, properties },
            _ => Request::AddSubscription { request: 1, name, properties },
        });
        let (event, mut fds) = raw.event();
        let (Event::PublicationAdded { id, .. } | Event::SubscriptionAdded { id, .. }) = event else { panic!("{event:?}") };
        raw.ask(&Request::Ready { object: id });
        let (event, of_link) = raw.event();
        assert!(matches!(event, Event::PublisherLink { .. } | Event::SubscriberLink { .. }), "{event:?}");
        fds.extend(of_link);
        fds.retain(|fd| rustix::fs::fcntl_get_seals(fd).is_ok());
        assert_eq!(fds.len(), if kind == Kind::Mpsc { 2 } else { 3 }, "pages and a ring");
        for fd in &fds {
            for size in [0, 1, 1 << 30] {
                assert_eq!(rustix::fs::ftruncate(fd, size), Err(Errno::PERM));
            }
            objects += 1;
        }
        // The other subscription or publication is a peer like any, and not read or written: the ring is large enough.
        publication.offer(b"still there").expect("room");
        assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), b"still there");
    }
    observed(
        "the reader dies of SIGBUS",
        format!("ftruncate of each of the {objects} objects that a peer gets hold of: EPERM; data flows on"),
    );
}

// ---- Garbage ----

const FIRST: usize = 64;

/// Reads frames `{length, payload}` of a mapped file until it is at the tail, each time it is told. Argument: the file.
pub(crate) fn naive_frame_reader(mut role: Role) {
    let path: String = role.argument(0);
    let memory = map(Path::new(&path));
    let base = memory.as_mut_ptr();
    role.say("mapped");
    let mut position = FIRST;
    loop {
        role.hear();
        // SAFETY: the tail is in the mapping; that the lengths are right is what is naive.
        unsafe {
            let tail = base.cast::<u64>().read_volatile() as usize;
            while position != tail {
                let length = base.add(position).cast::<u32>().read_volatile() as usize;
                let sum: u64 = (4..length).map(|offset| u64::from(base.add(position + offset).read_volatile())).sum();
                role.say(sum);
                position += length;
            }
        }
    }
}

/// Writes a frame of that length at `position`, of which the last byte is 7, and moves the tail behind it.
fn write_frame(memory: &MmapRaw, position: usize, length: u32, tail: u64) {
    // SAFETY: inside the mapping, which nobody reads just now.
    unsafe {
        memory.as_mut_ptr().add(position).cast::<u32>().write_volatile(length);
        memory.as_mut_ptr().add(position + 15).write_volatile(7);
        memory.as_mut_ptr().cast::<u64>().write_volatile(tail);
    }
}

/// Publishes, and then overwrites the whole ring of its publication with that byte. Arguments: channel, byte.
pub(crate) fn scribbler(mut role: Role) {
    let (channel, byte): (String, u8) = (role.argument(0), role.argument(1));
    let mut publication = role.client().publication(&channel).expect("a publication");
    connect(&mut publication, 1);
    publication.offer(b"good").expect("room");
    let maps = fs::read_to_string("/proc/self/maps").expect("it is mounted");
    // The control area and the data, then the data again.
    let data = maps.lines().filter(|line| line.contains("/memfd:ringbus-ring") && line.contains("rw-s")).nth(1);
    let (start, end) = data.and_then(|line| line.split(' ').next()?.split_once('-')).expect("it is mapped twice");
    let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).expect("a number"));
    role.say("connected");
    role.hear();
    // SAFETY: mapped and writable; the publication is not used any more.
    unsafe { std::ptr::write_bytes(start as *mut u8, byte, end - start) };
    role.say("scribbled");
    role.hold();
}

/// A peer writes garbage into the shared memory.
#[test]
fn garbage_from_a_peer() {
    let directory = tempfile::tempdir().expect("a directory");
    let start = |name: &str| {
        let path = directory.path().join(name);
        File::create_new(&path).expect("a file").set_len(4096).expect("room");
        let mut naive = Party::start("naive reader of frames", &nowhere(), &[&path.display()]);
        naive.expect("mapped");
        let memory = map(&path);
        write_frame(&memory, FIRST, 16, FIRST as u64 + 16);
        naive.tell("read");
        naive.expect("7");
        (naive, memory)
    };
    let (mut naive, memory) = start("long");
    write_frame(&memory, FIRST + 16, u32::MAX, FIRST as u64 + 32);
    naive.tell("read");
    let ending = naive.ended_within(testing::PATIENCE);
    assert_killed_by(libc::SIGSEGV, ending);
    let (mut naive, memory) = start("empty");
    write_frame(&memory, FIRST + 16, 0, FIRST as u64 + 32);
    naive.tell("read");
    let mut repeated = 0;
    while repeated < 1000 {
        naive.expect("0");
        repeated += 1;
    }
    naive.kill();

    let driver = DriverProcess::launch();
    let client = driver.connect();
    let patterns = [0xFFu8, 0x01, 0x80, 0x7F];
    for byte in patterns {
        let name = format!("garbage/{byte}");
        let (mut publication, mut subscription) = pair(&client, &name, Kind::Broadcast, Overflow::Block, SMALLEST);
        assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
        let mut scribbler = Party::start("scribbler", &driver.address, &[&name, &byte]);
        scribbler.expect("connected");
        let ImageEvent::Available(bad) = event(&mut subscription) else { panic!("it is there") };
        let message = subscription.recv_until(in_time()).expect("a message");
        assert_eq!((message.payload(), message.image()), (&b"good"[..], bad.id));
        assert_works(&mut publication, &mut subscription);
        scribbler.tell("scribble");
        scribbler.expect("scribbled");
        // It wakes nobody: that is seen when one looks.
        let deadline = Instant::now() + testing::PATIENCE;
        let error = loop {
            assert!(Instant::now() < deadline, "0x{byte:02X}: nobody notices");
            match subscription.recv_until(Some(Instant::now() + STALL)) {
                Ok(message) => assert_eq!(message.image(), bad.id, "nobody else has sent anything"),
                Err(RecvError::TimedOut) => {}
                Err(RecvError::Poll(error)) => break error,
                Err(other) => panic!("{other}"),
            }
        };
        assert!(matches!(error, PollError::Corrupt { image, .. } if image == bad.id), "{error}");
        assert_eq!(event(&mut subscription), ImageEvent::Closed(bad));
        assert_works(&mut publication, &mut subscription);
        assert_eq!(subscription.images().len(), 1);
    }
    observed(
        "a length of 2^32 - 1: SIGSEGV; a length of 0: the same frame for ever",
        format!(
            "a ring full of 0xFF, 0x01, 0x80, 0x7F: {} times Corrupt, on that image alone; the other image of the subscription goes on",
            patterns.len()
        ),
    );
}
