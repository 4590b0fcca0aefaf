//! The rings' own code over memory that somebody scribbles on, before each call and during it: nothing may panic, read outside, or go on for ever.
//!
//! In one process, to be fast: a hundred million reads take minutes. Both sides map the same memfd as processes would, the data twice, and around each part
//! lie pages without any access: a read outside ends this program with `SIGSEGV`. `hostile_memory` does the same between processes.

mod crafted;

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crafted::{Crafted, Place, seed};
use ringbus::ring::layout::{ImageLine, MAX_LINKS, MpscControl, SingleControl};
use ringbus::ring::region::Region;
use ringbus::ring::single::Overwrite;
use ringbus::ring::{ClaimError, ReadError, mpsc, single};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::time::ClockId::ThreadCPUTime;
use testing::{cpu_time, scaled};

const CAPACITY: u64 = 4096;
const PAGE: usize = 4096;
const LINK: u64 = 0x1234_5678_9ABC_DEF1;
/// Among those that are scribbled on.
const SLOT: usize = 3;

/// No batch of [`BATCH`] calls may take more CPU time, nor any one of them; these calls never sleep. What goes wrong has no end: so there is room for sanitizers.
const BOUND: Duration = Duration::from_secs(1);
const BATCH: u64 = 256;

/// A share of the corrupted reads that are wanted in all, in percent.
fn reads(percent: u64) -> u64 {
    scaled("RINGBUS_TEST_CORRUPTIONS", 2_000_000) * percent / 100
}

// ---- Memory ----

/// A ring, mapped as `memory::mapping` does, with a guard before, between and behind its parts.
struct Mapped {
    range: *mut u8,
    length: usize,
    control: *mut u8,
    data: *mut u8,
}

// SAFETY: an address range; all accesses to it are atomic, or of payload bytes that nobody relies on.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

fn memory(control: usize) -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostile", MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&fd, (control.next_multiple_of(PAGE) + CAPACITY as usize) as u64).expect("its size");
    fd
}

impl Mapped {
    fn new(fd: &OwnedFd, control: usize, protection: ProtFlags) -> Self {
        let (control, data) = (control.next_multiple_of(PAGE), CAPACITY as usize);
        let length = control + 2 * data + 3 * PAGE;
        // SAFETY: new mappings, the later ones over parts of the first.
        unsafe {
            let range = rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::empty(), MapFlags::PRIVATE);
            let range = range.expect("address space").cast::<u8>();
            let map = |at: usize, length: usize, offset: usize| {
                let flags = MapFlags::SHARED | MapFlags::FIXED;
                rustix::mm::mmap(range.add(at).cast(), length, protection, flags, fd, offset as u64).expect("a mapping");
                range.add(at)
            };
            let control_at = map(PAGE, control, 0);
            let data_at = map(2 * PAGE + control, data, control);
            map(2 * PAGE + control + data, data, control);
            Self { range, length, control: control_at, data: data_at }
        }
    }

    fn control<T>(&self) -> NonNull<T> {
        NonNull::new(self.control.cast()).expect("mappings are not at null")
    }

    fn region(&self) -> Region {
        // SAFETY: mapped twice from there; the mapping outlives its users in these tests.
        unsafe { Region::new(NonNull::new(self.data).expect("mappings are not at null"), CAPACITY) }
    }

    fn place(&self) -> Place {
        Place { control: self.control, data: self.data, capacity: CAPACITY }
    }

    /// Reads all of a payload, which has to lie inside.
    #[track_caller]
    fn read_all(&self, payload: *const u8, length: u32, buffer: &mut [u8]) {
        let start = (payload as usize).wrapping_sub(self.data as usize);
        assert!(start < CAPACITY as usize + 8 && start + length as usize <= 2 * CAPACITY as usize, "at {start}, {length} bytes");
        copy(payload, length, buffer);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the whole range is ours, and nobody uses it any more.
        let _ = unsafe { rustix::mm::munmap(self.range.cast(), self.length) };
    }
}

fn copy(payload: *const u8, length: u32, buffer: &mut [u8]) {
    let buffer = &mut buffer[..length as usize];
    // SAFETY: whether the source is mapped is what is being tested: a guard page says no with a signal.
    unsafe { std::ptr::copy_nonoverlapping(payload, buffer.as_mut_ptr(), buffer.len()) };
    std::hint::black_box(buffer);
}

/// Whether a byte can be read, without trying it the hard way.
fn is_readable(address: *const u8) -> bool {
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: address.cast_mut().cast(), iov_len: 1 };
    // SAFETY: the local vector is to one live byte; the kernel checks the remote one.
    unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) == 1 }
}

#[test]
fn the_guards_are_where_the_rings_end() {
    let control = size_of::<SingleControl>();
    let fd = memory(control);
    let mapped = Mapped::new(&fd, control, ProtFlags::READ);
    let (control, data, end) = (mapped.control, mapped.data, 2 * CAPACITY as usize);
    for (inside, at) in [(control, 0), (data, 0), (data, end - 1)] {
        assert!(is_readable(inside.wrapping_add(at)));
    }
    for outside in [control.wrapping_sub(1), data.wrapping_sub(1), data.wrapping_add(end)] {
        assert!(!is_readable(outside), "a read there is a SIGSEGV");
    }
}

// ---- The scribbler ----

/// Runs `victim` while another thread runs `scribble` over and over.
fn beside<R>(mut scribble: impl FnMut() + Send, victim: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    /// Also when the victim panics: else the scope would wait for ever.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                scribble();
                // Many reads are to come between two writes, or each image would end at once.
                (0..50).for_each(|_| std::hint::spin_loop());
            }
        });
        let _stop = Stop(&stop);
        victim()
    })
}

// ---- The victims ----

/// What came of the calls, and how long they took.
#[derive(Debug, Default)]
struct Tally {
    messages: u64,
    nothing: u64,
    lost: u64,
    corrupt: u64,
    longest_batch: Duration,
}

impl Tally {
    /// Makes that many calls in batches, timing each batch.
    fn run(mut self, calls: u64, mut call: impl FnMut(&mut Self)) -> Self {
        for _ in 0..calls.div_ceil(BATCH) {
            let began = cpu_time(ThreadCPUTime);
            (0..BATCH).for_each(|_| call(&mut self));
            self.longest_batch = self.longest_batch.max(cpu_time(ThreadCPUTime) - began);
            assert!(self.longest_batch < BOUND, "{self:?}");
        }
        self
    }

    fn total(&self) -> u64 {
        self.messages + self.nothing + self.lost + self.corrupt
    }
}

fn attack_single_reader(overwrite: Overwrite, calls: u64) {
    let seed = seed();
    let size = size_of::<SingleControl>();
    let fd = memory(size);
    let hostile = Mapped::new(&fd, size, ProtFlags::READ | ProtFlags::WRITE);
    let mapped = Mapped::new(&fd, size, ProtFlags::READ);
    let line = ImageLine::default();
    // SAFETY: all mapped, or owned here, beyond the last use; the slot is below the limit.
    let newcomer = || unsafe {
        single::Consumer::new(mapped.control(), mapped.region(), NonNull::from(&line), LINK, SLOT % MAX_LINKS, overwrite)
    };
    // SAFETY: mapped, all atomics.
    let control = unsafe { hostile.control::<SingleControl>().as_ref() };
    let near = AtomicU64::new(0);
    let mut other = Crafted::new(seed ^ 1, CAPACITY);
    let mut crafted = Crafted::new(seed, CAPACITY);
    let mut buffer = vec![0; CAPACITY as usize];
    let mut consumer = newcomer();
    let scribble = || other.scribble_single(hostile.place(), near.load(Ordering::Relaxed));
    let tally = beside(scribble, || {
        Tally::default().run(calls, |tally| {
            let position = consumer.position();
            if position == 0 || crafted.once_in(64) {
                control.joins[SLOT].position.store(crafted.number(CAPACITY) & !7, Ordering::Relaxed);
                control.joins[SLOT].link.store(LINK, Ordering::Relaxed);
            }
            let header = if crafted.once_in(50) { crafted.bad_header() } else { crafted.good_header() };
            hostile.place().word(position).store(header, Ordering::Relaxed);
            if crafted.once_in(8) {
                near.store(position, Ordering::Relaxed);
                crafted.scribble_single(hostile.place(), position);
            }
            match consumer.read() {
                Ok(Some(frame)) => {
                    tally.messages += 1;
                    assert!(u64::from(frame.length) <= single::max_payload(CAPACITY, overwrite));
                    match overwrite {
                        Overwrite::Never => mapped.read_all(consumer.payload(&frame), frame.length, &mut buffer),
                        // A private copy, of which nothing else is known here.
                        Overwrite::Oldest => copy(consumer.payload(&frame), frame.length, &mut buffer),
                    }
                    consumer.advance(&frame);
                    consumer.release(crafted.once_in(16));
                }
                Ok(None) => {
                    tally.nothing += 1;
                    std::hint::black_box((consumer.ready(), consumer.lag()));
                }
                Err(ReadError::Lost { messages }) => {
                    tally.lost += 1;
                    assert!(messages > 0);
                }
                Err(ReadError::Corrupt { .. }) => {
                    tally.corrupt += 1;
                    consumer = newcomer();
                }
            }
        })
    });
    println!("seed {seed}: {} corrupted reads, {overwrite:?}: {tally:?}", tally.total());
    assert!(tally.total() >= calls && tally.messages > calls / 4 && tally.corrupt > 0 && tally.nothing > 0, "{tally:?}");
    assert_eq!(tally.lost > 0, overwrite == Overwrite::Oldest, "{tally:?}");
}

#[test]
fn a_reader_of_a_blocking_ring_survives_its_publisher() {
    attack_single_reader(Overwrite::Never, reads(32));
}

#[test]
fn a_reader_of_a_lossy_ring_survives_its_publisher() {
    attack_single_reader(Overwrite::Oldest, reads(32));
}

#[test]
fn the_consumer_of_an_mpsc_ring_survives_its_producers() {
    let (seed, calls) = (seed(), reads(32));
    let size = size_of::<MpscControl>();
    let fd = memory(size);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let (hostile, mapped) = (Mapped::new(&fd, size, access), Mapped::new(&fd, size, access));
    let newcomer = || {
        // SAFETY: mapped beyond the last use. That it is not zero, and is read by others before it, is the attack.
        let consumer = unsafe { mpsc::Consumer::new(mapped.control(), mapped.region()) };
        (0..8).for_each(|slot| consumer.taken_slots().producer_comes(slot));
        consumer
    };
    // SAFETY: mapped, all atomics.
    let control = unsafe { hostile.control::<MpscControl>().as_ref() };
    let near = AtomicU64::new(0);
    let mut other = Crafted::new(seed ^ 1, CAPACITY);
    let mut crafted = Crafted::new(seed, CAPACITY);
    let mut buffer = vec![0; CAPACITY as usize];
    let mut consumer = newcomer();
    let mut gone = 0;
    let mut repaired = 0u64;
    let scribble = || other.scribble_mpsc(hostile.place(), near.load(Ordering::Relaxed));
    let tally = beside(scribble, || {
        Tally::default().run(calls, |tally| {
            let position = consumer.position();
            let header = match crafted.random.below(100) {
                0 => crafted.bad_header(),
                1..=9 => 0,
                _ => crafted.good_header(),
            };
            hostile.place().word(position).store(header, Ordering::Relaxed);
            if header == 0 && crafted.once_in(2) {
                // As a producer leaves it that died in mid-claim, but for its length.
                let claim = &control.producers[crafted.random.below(8) as usize].claim;
                claim.length.store(crafted.number(position) & 0x3F8, Ordering::Relaxed);
                claim.start.store(position | 0b10 | crafted.random.below(2), Ordering::Relaxed);
                control.tail.tail.store(position + 8 * crafted.random.below(64), Ordering::Relaxed);
            }
            if crafted.once_in(4) {
                near.store(position, Ordering::Relaxed);
                crafted.scribble_mpsc(hostile.place(), position);
            }
            if gone < 4 && crafted.once_in(64) {
                consumer.producer_gone(crafted.random.below(8) as u8);
                gone += 1;
            }
            let outcome = consumer.read();
            repaired += u64::from(header == 0 && consumer.position() != position);
            match outcome {
                Ok(Some(frame)) => {
                    tally.messages += 1;
                    assert!(u64::from(frame.length) <= mpsc::max_payload(CAPACITY));
                    mapped.read_all(consumer.payload(&frame), frame.length, &mut buffer);
                    consumer.advance(&frame);
                    match consumer.release(crafted.once_in(16)) {
                        Ok(_) => {}
                        Err(_) => (consumer, gone) = (newcomer(), 0),
                    }
                }
                Ok(None) => {
                    tally.nothing += 1;
                    std::hint::black_box((consumer.ready(), consumer.lag()));
                    if consumer.release(true).is_err() {
                        (consumer, gone) = (newcomer(), 0);
                    }
                }
                Err(_) => {
                    tally.corrupt += 1;
                    (consumer, gone) = (newcomer(), 0);
                }
            }
            if crafted.once_in(512) && consumer.take_finished().is_some() {
                gone -= 1;
            }
        })
    });
    println!("seed {seed}: {} corrupted reads, mpsc: {tally:?}, repaired claims: {repaired}", tally.total());
    assert!(tally.total() >= calls && tally.messages > calls / 4 && tally.corrupt > 0 && tally.nothing > 0, "{tally:?}");
    assert!(repaired > 0, "claims of the gone are skipped");
}

#[test]
fn producers_of_an_mpsc_ring_survive_its_consumer_and_each_other() {
    let (seed, calls) = (seed(), reads(10));
    let size = size_of::<MpscControl>();
    let fd = memory(size);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let (hostile, mapped) = (Mapped::new(&fd, size, access), Mapped::new(&fd, size, access));
    // SAFETY: mapped beyond the last use. That others use the slot, too, is the attack.
    let newcomer = || unsafe { mpsc::Producer::new(mapped.control(), mapped.region(), 5) };
    // SAFETY: mapped, all atomics.
    let control = unsafe { hostile.control::<MpscControl>().as_ref() };
    let near = AtomicU64::new(0);
    let mut other = Crafted::new(seed ^ 1, CAPACITY);
    let mut crafted = Crafted::new(seed, CAPACITY);
    let mut producer = newcomer();
    let scribble = || other.scribble_mpsc(hostile.place(), near.load(Ordering::Relaxed));
    let tally = beside(scribble, || {
        Tally::default().run(calls, |tally| {
            if crafted.once_in(4) {
                let tail = control.tail.tail.load(Ordering::Relaxed);
                near.store(tail, Ordering::Relaxed);
                // Mostly something that leaves room.
                control.consumer.position.store(tail, Ordering::Relaxed);
                crafted.scribble_mpsc(hostile.place(), tail);
            }
            let length = crafted.random.below(200) as usize;
            std::hint::black_box(producer.has_room(length).is_ok());
            match producer.claim(length) {
                Ok(()) => {
                    tally.messages += 1;
                    let payload = producer.payload();
                    assert_eq!(payload.len(), length);
                    payload.fill(0x5A);
                    if crafted.once_in(8) {
                        producer.abort();
                    } else {
                        producer.commit(1);
                    }
                }
                Err(ClaimError::BackPressured) => tally.nothing += 1,
                Err(ClaimError::Corrupt) => {
                    tally.corrupt += 1;
                    producer = newcomer();
                    control.tail.tail.store(crafted.random.below(1 << 40) & !7, Ordering::Relaxed);
                }
                Err(error) => panic!("{error:?}"),
            }
        })
    });
    println!("seed {seed}: {} corrupted claims, mpsc: {tally:?}", tally.total());
    assert!(tally.messages > calls / 20 && tally.corrupt > 0 && tally.nothing > 0, "{tally:?}");
}

#[test]
fn the_producer_of_a_blocking_ring_survives_its_readers_and_waits_for_the_honest_one() {
    let (seed, calls) = (seed(), reads(10));
    let size = size_of::<SingleControl>();
    let fd = memory(size);
    let mapped = Mapped::new(&fd, size, ProtFlags::READ | ProtFlags::WRITE);
    let (hostile, honest) = (ImageLine::default(), ImageLine::default());
    // SAFETY: mapped, or owned here, beyond the last use; the slots are below the limit.
    let (mut producer, mut consumer) = unsafe {
        let mut producer = single::Producer::new(mapped.control(), mapped.region(), Overwrite::Never);
        producer.add_reader(LINK, SLOT, NonNull::from(&honest));
        let line = NonNull::from(&honest);
        (producer, single::Consumer::new(mapped.control(), mapped.region(), line, LINK, SLOT, Overwrite::Never))
    };
    let near = AtomicU64::new(0);
    let mut other = Crafted::new(seed ^ 1, CAPACITY);
    let mut crafted = Crafted::new(seed, CAPACITY);
    let scribble = || {
        let number = other.number(near.load(Ordering::Relaxed));
        if other.once_in(4) { &hostile.link } else { &hostile.position }.store(number, Ordering::Relaxed);
    };
    let (mut next_link, mut liars, mut sent, mut received) = (LINK + 2, 0u64, 0u64, 0u64);
    let tally = beside(scribble, || {
        Tally::default().run(calls, |tally| {
            if crafted.once_in(16) {
                // SAFETY: owned here beyond the last use.
                unsafe { producer.add_reader(next_link, SLOT + 1, NonNull::from(&hostile)) };
                hostile.link.store(next_link, Ordering::Relaxed);
                next_link += 2;
            }
            near.store(producer.position(), Ordering::Relaxed);
            hostile.position.store(crafted.number(producer.position()), Ordering::Relaxed);
            match producer.offer(0, &sent.to_le_bytes()) {
                Ok(_) => (sent, tally.messages) = (sent + 1, tally.messages + 1),
                Err(ClaimError::BackPressured) => {
                    tally.nothing += 1;
                    while let Some(frame) = consumer.read().expect("its publisher is honest") {
                        let mut bytes = [0; 8];
                        assert_eq!(frame.length, 8);
                        mapped.read_all(consumer.payload(&frame), 8, &mut bytes);
                        assert_eq!(u64::from_le_bytes(bytes), received, "each once, in order");
                        received += 1;
                        consumer.advance(&frame);
                    }
                    consumer.release(true);
                    // One that merely does not read holds everybody back; that is what it subscribed for.
                    while producer.is_connected() && next_link > LINK + 2 && crafted.once_in(2) {
                        next_link -= 2;
                        producer.remove_reader(next_link);
                    }
                }
                Err(error) => panic!("{error:?}"),
            }
            liars += std::iter::from_fn(|| producer.take_liar()).count() as u64;
        })
    });
    println!(
        "seed {seed}: {} claims beside a reader that lies: {tally:?}, liars dropped: {liars}, received: {received}",
        tally.total()
    );
    assert!(tally.messages > calls / 20 && liars > 0 && received > 0, "{tally:?}");
}

// ---- What was wrong once ----

/// What a producer zeroes ahead ends at the limit, which comes from such positions: half a header was zeroed, and taken for zero.
#[test]
fn a_position_within_a_word_is_a_lie() {
    let size = size_of::<SingleControl>();
    let fd = memory(size);
    let mapped = Mapped::new(&fd, size, ProtFlags::READ | ProtFlags::WRITE);
    let line = ImageLine::default();
    // SAFETY: mapped, or owned here, beyond the last use; the slot is below the limit.
    let mut producer = unsafe {
        let mut producer = single::Producer::new(mapped.control(), mapped.region(), Overwrite::Never);
        producer.add_reader(LINK, SLOT, NonNull::from(&line));
        producer
    };
    while producer.offer(0, &[7; 8]).is_ok() {}
    line.position.store(65, Ordering::Relaxed);
    line.link.store(LINK, Ordering::Release);
    assert_eq!((producer.offer(0, &[7; 8]), producer.take_liar()), (Err(ClaimError::NotConnected), Some(LINK)));
}

/// Such an image had no end: it was read as if it had begun.
#[test]
fn an_impossible_start_is_corrupt_also_behind_the_end() {
    for overwrite in [Overwrite::Never, Overwrite::Oldest] {
        let size = size_of::<SingleControl>();
        let fd = memory(size);
        let mapped = Mapped::new(&fd, size, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: mapped beyond the last use.
        let entry = unsafe { &mapped.control::<SingleControl>().as_ref().joins[SLOT] };
        entry.position.store(4, Ordering::Relaxed);
        entry.link.store(LINK, Ordering::Release);
        let line = ImageLine::default();
        // SAFETY: mapped, or owned here, beyond the last use; the slot is below the limit.
        let mut consumer =
            unsafe { single::Consumer::new(mapped.control(), mapped.region(), NonNull::from(&line), LINK, SLOT, overwrite) };
        consumer.producer_gone();
        assert!(consumer.ready(), "there is an error to be had");
        assert!(matches!(consumer.read(), Err(ReadError::Corrupt { position: 4, .. })), "{overwrite:?}");
    }
}

/// A lossy ring whose publisher says that a number near the end of numbers was sent already.
#[test]
fn a_message_count_at_its_end_wraps() {
    let size = size_of::<SingleControl>();
    let fd = memory(size);
    let mapped = Mapped::new(&fd, size, ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: mapped, all atomics.
    let control = unsafe { mapped.control::<SingleControl>().as_ref() };
    control.joins[SLOT].message.store(u64::MAX, Ordering::Relaxed);
    control.joins[SLOT].link.store(LINK, Ordering::Relaxed);
    (0..CAPACITY)
        .step_by(8)
        .for_each(|at| mapped.place().word(at).store(ringbus::ring::frame::committed(0, 0, 0), Ordering::Relaxed));
    let line = ImageLine::default();
    // SAFETY: mapped, or owned here, beyond the last use.
    let mut consumer =
        unsafe { single::Consumer::new(mapped.control(), mapped.region(), NonNull::from(&line), LINK, SLOT, Overwrite::Oldest) };
    for _ in 0..3 {
        let frame = consumer.read().expect("all is well").expect("a message");
        consumer.advance(&frame);
    }
    control.announcement.slots[1].position.store(800, Ordering::Relaxed);
    control.announcement.slots[1].message.store(100, Ordering::Relaxed);
    control.announcement.number.store(1, Ordering::Relaxed);
    assert_eq!(consumer.read(), Err(ReadError::Lost { messages: 98 }));
}

/// A sleeper on a line whose former owner has left the flag at the end of numbers, as anybody can in an mpsc ring.
#[test]
fn a_sleep_flag_at_its_end_wraps() {
    use ringbus::ring::layout::PartyLine;
    use ringbus::wait::fences::Fences;
    use ringbus::wait::sleep::{How, Sleeper};
    for flag in [u64::MAX, u64::MAX - 1, u64::MAX - 2, u64::MAX - 3, i64::MAX as u64] {
        let line = PartyLine::default();
        line.sleep_flag.store(flag, Ordering::Relaxed);
        let mut sleeper = Sleeper::taking_over(&line);
        assert!(!sleeper.is_asleep());
        for how in [How::Futex, How::Doorbell, How::Futex] {
            let before = line.sleep_flag.load(Ordering::Relaxed);
            sleeper.fall_asleep(&line, [], how, Fences::Symmetric);
            assert!(sleeper.is_asleep() && line.sleep_flag.load(Ordering::Relaxed) & 1 == 1);
            sleeper.awake(&line);
            let after = line.sleep_flag.load(Ordering::Relaxed);
            assert!(after & 1 == 0 && after != before, "{before:#x} {after:#x}");
        }
    }
}

/// What the consumer says of a ring whose tail is at 64 when the producer in slot 0 goes, after somebody has spoilt it.
fn of_a_spoilt_ring(spoil: impl FnOnce(&MpscControl)) -> Result<Option<ringbus::ring::Frame>, ReadError> {
    let size = size_of::<MpscControl>();
    let fd = memory(size);
    let mapped = Mapped::new(&fd, size, ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: mapped until the end of the function, all atomics.
    let control = unsafe { mapped.control::<MpscControl>().as_ref() };
    // SAFETY: the mapping outlives it, and nobody else uses the ring.
    let mut consumer = unsafe { mpsc::Consumer::new(mapped.control(), mapped.region()) };
    consumer.taken_slots().producer_comes(0);
    consumer.taken_slots().producer_comes(1);
    // One that has left again.
    consumer.taken_slots().producer_comes(3);
    consumer.producer_gone(3);
    assert_eq!(consumer.take_finished(), Some(3));
    control.tail.tail.store(64, Ordering::Relaxed);
    consumer.producer_gone(0);
    spoil(control);
    let ready = consumer.ready();
    let outcome = consumer.read();
    assert_eq!(ready, !matches!(outcome, Ok(None)), "worth a look");
    outcome
}

/// A tail only grows. One that moves back before a claim of the dead would leave the consumer waiting for a frame that nobody claims any more.
#[test]
fn a_tail_that_moves_back_before_the_dead_is_corrupt() {
    let outcome = of_a_spoilt_ring(|control| control.tail.tail.store(0, Ordering::Relaxed));
    assert!(matches!(outcome, Err(ReadError::Corrupt { .. })), "{outcome:?}");
}

/// A claim record in a slot that nobody has is not that of somebody who lives: the consumer would wait for him for ever.
#[test]
fn a_claim_of_nobody_is_not_waited_for() {
    let claim_of = |slot: usize| {
        of_a_spoilt_ring(|control| {
            control.producers[slot].claim.length.store(64, Ordering::Relaxed);
            control.producers[slot].claim.start.store(0b11, Ordering::Relaxed);
        })
    };
    assert_eq!(claim_of(1), Ok(None), "he lives");
    assert!(matches!(claim_of(2), Err(ReadError::Corrupt { .. })), "nobody ever had the slot");
    assert!(matches!(claim_of(3), Err(ReadError::Corrupt { .. })), "nobody has it any more");
}

/// The length in a dead producer's record drives zeroing, so it is not believed beyond the tail.
#[test]
fn a_claim_of_the_dead_beyond_the_tail_is_corrupt() {
    for length in [72, 4096, u64::MAX - 7, 1 << 63] {
        let outcome = of_a_spoilt_ring(|control| {
            control.producers[0].claim.length.store(length, Ordering::Relaxed);
            control.producers[0].claim.start.store(0b11, Ordering::Relaxed);
        });
        assert!(matches!(outcome, Err(ReadError::Corrupt { .. })), "{length}: {outcome:?}");
    }
}
