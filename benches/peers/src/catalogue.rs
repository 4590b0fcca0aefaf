//! What is compared with what: groups of candidates that do the same work, each with the physical limit of it as the first one where there is one.

use ringbus::{Idle, Kind};

use crate::aeron::{self, Setup};
use crate::claims::Claims;
use crate::harness::{Cast, Company, Measured, Order};
use crate::iceoryx::Iceoryx;
use crate::ipc::IpcChannel;
use crate::kernel::{Kernel, Mechanism};
use crate::ring::{self, Ring};
use crate::shaq_queue::Shaq;
use crate::workload::{self, Transport, Work};
use crate::{Outcome, futex, lines, threads};

/// Candidates that do the same work.
pub struct Group {
    /// Of its table and its plot.
    pub title: String,
    /// What they do.
    pub work: Work,
    /// Of a message.
    pub bytes: usize,
    /// Bytes of a message of the limit, if the first candidate is the limit.
    pub limit: Option<usize>,
    /// Who else runs on the cores.
    company: Company,
    /// A turn is so many times as long as usual.
    pub patience: u32,
    /// How many candidates.
    pub candidates: Vec<Candidate>,
}

/// A row of a table.
pub struct Candidate {
    /// Name.
    pub name: &'static str,
    /// What it is.
    pub peer: Peer,
}

/// A transport and how it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Bare cache lines: so many a message. `true`: each end maps what the other writes read-only.
    Lines(usize, bool),
    /// Bare claims, for several producers.
    Claims,
    /// A payload and a futex.
    Futex,
    /// ringbus.
    Ring(Idle, ring::Way),
    /// Aeron.
    Aeron(Setup, aeron::Way),
    /// iceoryx2; `true`: sleeps on a listener.
    Iceoryx(bool),
    /// shaq.
    Shaq,
    /// ipc-channel.
    IpcChannel,
    /// rtrb, between threads.
    Rtrb,
    /// crossbeam's `ArrayQueue`, between threads.
    Crossbeam,
    /// disruptor, between threads.
    Disruptor,
    /// Something of the kernel's; `true`: sleeps in it.
    Kernel(Mechanism, bool),
}

impl Peer {
    /// What is to be known about how it is set up.
    pub fn configuration(self) -> &'static str {
        match self {
            Self::Lines(_, true) => "the same, but what the other end writes is mapped read-only, as ringbus has it",
            Self::Lines(_, false) => {
                "cache lines of a shared file, written in full, the number in the last word of a message; streams: a ring of 4 MiB"
            }
            Self::Claims => "lines of a shared file, one a message, claimed by fetch-and-add; a ring of 4 MiB",
            Self::Futex => "payload and a word in a shared file, a wake call after each message, a wait call before each",
            Self::Ring(Idle::BusySpin, _) => "ring of 4 MiB, both ends spin, driver as its own process",
            Self::Ring(Idle::Parking, _) => "ring of 4 MiB, both ends sleep at once, driver as its own process",
            Self::Ring(..) => "ring of 4 MiB, both ends wait as by default: spin, then sleep, driver as its own process",
            Self::Aeron(Setup::Large, _) => {
                "aeron:ipc, terms of 64 MiB (its default), MTU 65504, clients spin, driver SHARED with back-off as its own process"
            }
            Self::Aeron(Setup::Small, _) => {
                "aeron:ipc, terms of 1 MiB (8 messages if that is more), MTU 65504, clients yield, driver SHARED with back-off as its own process"
            }
            Self::Iceoryx(false) => {
                "fixed-size payload, loan and send, no safe overflow, publisher retries, buffer of 4 MiB, subscriber spins"
            }
            Self::Iceoryx(true) => {
                "fixed-size payload, loan and send, no safe overflow, a notifier and a listener beside it, subscriber in blocking_wait"
            }
            Self::Shaq => "spsc queue in a shared file, 4 MiB, in place, streams in batches of 64",
            Self::IpcChannel => "byte channel, receiver spins on try_recv",
            Self::Rtrb => "two threads of one process, 4 MiB, streams in chunks of 64",
            Self::Crossbeam => "two threads of one process, 4 MiB, one by one",
            Self::Disruptor => "two threads of one process, 4 MiB, event poller, streams in batches of 64",
            Self::Kernel(_, false) => "non-blocking, both ends spin on the calls; pipe of 1 MiB",
            Self::Kernel(_, true) => "blocking; pipe of 1 MiB",
        }
    }

    /// The crate it comes from, if it is no part of this package or of the system.
    pub fn package(self) -> Option<&'static str> {
        Some(match self {
            Self::Ring(..) => "ringbus",
            Self::Aeron(..) => "rusteron-client",
            Self::Iceoryx(_) => "iceoryx2",
            Self::Shaq => "shaq",
            Self::IpcChannel => "ipc-channel",
            Self::Rtrb => "rtrb",
            Self::Crossbeam => "crossbeam-queue",
            Self::Disruptor => "disruptor",
            Self::Lines(..) | Self::Claims | Self::Futex | Self::Kernel(..) => return None,
        })
    }

    /// Whether it is Aeron, with which the others are compared.
    pub fn is_aeron(self) -> bool {
        matches!(self, Self::Aeron(..))
    }
}

const OFFER: Peer = Peer::Ring(Idle::BusySpin, ring::Way::Offer);
const CLAIM: Peer = Peer::Ring(Idle::BusySpin, ring::Way::Claim);
const BATCH: Peer = Peer::Ring(Idle::BusySpin, ring::Way::Batch);
const DEFAULT: Peer = Peer::Ring(Idle::Adaptive, ring::Way::Offer);
const RINGS: [(&str, Peer); 3] =
    [("ringbus, offer", OFFER), ("ringbus, claim", CLAIM), ("ringbus, offer, default idle", DEFAULT)];
const AERON_OFFERS: [(&str, Peer); 2] = [
    ("Aeron 64 MiB, spinning, offer", Peer::Aeron(Setup::Large, aeron::Way::Offer)),
    ("Aeron 1 MiB, yielding, offer", Peer::Aeron(Setup::Small, aeron::Way::Offer)),
];
const AERON_CLAIMS: [(&str, Peer); 2] = [
    ("Aeron 64 MiB, spinning, claim", Peer::Aeron(Setup::Large, aeron::Way::Claim)),
    ("Aeron 1 MiB, yielding, claim", Peer::Aeron(Setup::Small, aeron::Way::Claim)),
];
const ICEORYX: (&str, Peer) = ("iceoryx2", Peer::Iceoryx(false));
const OTHERS: [(&str, Peer); 3] = [ICEORYX, ("shaq", Peer::Shaq), ("ipc-channel", Peer::IpcChannel)];
const THREADS: [(&str, Peer); 3] =
    [("rtrb (threads)", Peer::Rtrb), ("ArrayQueue (threads)", Peer::Crossbeam), ("disruptor (threads)", Peer::Disruptor)];
const KERNEL: [(&str, Peer); 4] = [
    ("pipe", Peer::Kernel(Mechanism::Pipe, false)),
    ("unix stream", Peer::Kernel(Mechanism::UnixStream, false)),
    ("unix seqpacket", Peer::Kernel(Mechanism::UnixSeqpacket, false)),
    ("POSIX mq", Peer::Kernel(Mechanism::MessageQueue, false)),
];
const SLEEPERS: [(&str, Peer); 5] = [
    ("futex", Peer::Futex),
    ("ringbus", Peer::Ring(Idle::Parking, ring::Way::Offer)),
    ("iceoryx2, listener", Peer::Iceoryx(true)),
    ("pipe", Peer::Kernel(Mechanism::Pipe, true)),
    ("unix seqpacket", Peer::Kernel(Mechanism::UnixSeqpacket, true)),
];

/// With somebody else who wants each core, a pipe is what one has to be as good as.
const CROWDED: [(&str, Peer); 6] = [
    ("pipe", Peer::Kernel(Mechanism::Pipe, true)),
    ("unix seqpacket", Peer::Kernel(Mechanism::UnixSeqpacket, true)),
    ("ringbus, default idle", DEFAULT),
    ("ringbus, spinning", OFFER),
    ("iceoryx2, listener", Peer::Iceoryx(true)),
    ("shaq", Peer::Shaq),
];

/// Bytes of a cache line.
const LINE: usize = crate::raw::LINE;
/// Aeron's claims are within a fragment.
const LARGEST_CLAIM: usize = 16 << 10;
/// Larger ones are not what queues of fixed-size items between threads are for.
const LARGEST_ITEM: usize = 1 << 10;

/// All groups, in the same order in each process.
pub fn groups() -> Vec<Group> {
    let mut all = Vec::new();
    for bytes in [32, 48, 64, 1024] {
        // The payload, and a word for the number.
        let lines = (bytes + 8_usize).div_ceil(LINE);
        let mut group = group(format!("round trip, {}", size(bytes)), Work::RoundTrip, bytes, Some(lines * LINE));
        group.add(&[("raw lines", Peer::Lines(lines, false)), ("raw lines, read-only", Peer::Lines(lines, true))]);
        for part in [&RINGS[..], &AERON_OFFERS, &AERON_CLAIMS, &OTHERS, &THREADS] {
            group.add(part);
        }
        if bytes == 32 {
            group.add(&KERNEL);
        }
        all.push(group);
    }
    for (bytes, lines) in [(32, 1), (64, 1), (1 << 10, 16), (16 << 10, 256), (64 << 10, 256), (1 << 20, 256)] {
        let mut group = group(format!("one way, {}", size(bytes)), Work::Stream, bytes, Some(lines * LINE));
        group.add(&[("raw lines", Peer::Lines(lines, false)), ("raw lines, read-only", Peer::Lines(lines, true))]);
        group.add(&RINGS);
        group.add(&[("ringbus, batch", BATCH)]);
        group.add(&AERON_OFFERS);
        if bytes <= LARGEST_CLAIM {
            group.add(&AERON_CLAIMS);
        }
        group.add(&OTHERS);
        if bytes <= LARGEST_ITEM {
            group.add(&THREADS);
        }
        all.push(group);
    }
    let mut producers = group("two producers, 32 B".into(), Work::TwoProducers, 32, Some(LINE));
    producers.add(&[("raw lines, one producer", Peer::Lines(1, false)), ("raw claims", Peer::Claims)]);
    producers.add(&[("ringbus mpsc, offer", OFFER), ("ringbus mpsc, claim", CLAIM)]);
    producers.add(&AERON_OFFERS);
    producers.add(&AERON_CLAIMS);
    all.push(producers);

    let mut wake_up = group("two wake-ups (round trip between sleepers), 32 B".into(), Work::RoundTrip, 32, Some(32));
    wake_up.company = Company::Spinners;
    wake_up.add(&SLEEPERS);
    all.push(wake_up);

    for (title, work) in [("crowded: round trip, 32 B", Work::RoundTrip), ("crowded: one way, 32 B", Work::Stream)] {
        let mut crowded = group(title.into(), work, 32, Some(32));
        crowded.company = Company::Hogs;
        // A core is given away every few milliseconds.
        crowded.patience = 5;
        crowded.add(&CROWDED);
        crowded.add(&AERON_OFFERS);
        all.push(crowded);
    }

    for (title, work) in [("to create a publication", Work::Publications), ("to create a subscription", Work::Subscriptions)] {
        let mut attach = group(title.into(), work, 32, None);
        attach.company = Company::Spinners;
        attach.add(&[("ringbus", DEFAULT)]);
        attach.add(&[("Aeron 64 MiB", AERON_OFFERS[0].1), ("Aeron 1 MiB", AERON_OFFERS[1].1), ICEORYX]);
        all.push(attach);
    }
    let mut memory = group("resident memory".into(), Work::Memory, 32, None);
    memory.add(&[("two bare processes", Peer::Futex), ("ringbus", DEFAULT)]);
    memory.add(&[("Aeron 64 MiB", AERON_OFFERS[0].1), ("Aeron 1 MiB", AERON_OFFERS[1].1), ICEORYX]);
    all.push(memory);
    all
}

fn group(title: String, work: Work, bytes: usize, limit: Option<usize>) -> Group {
    Group { title, work, bytes, limit, company: Company::Nobody, patience: 1, candidates: Vec::new() }
}

impl Group {
    fn add(&mut self, candidates: &[(&'static str, Peer)]) {
        self.candidates.extend(candidates.iter().map(|&(name, peer)| Candidate { name, peer }));
    }

    /// Who takes part in a slice of a candidate with this index among all.
    pub fn cast(&self, candidate: &Candidate, index: usize) -> Cast {
        let driver = match candidate.peer {
            Peer::Ring(..) => Some("ring-driver"),
            Peer::Aeron(..) => Some("aeron-driver"),
            _ => None,
        };
        let in_one_process = matches!(candidate.peer, Peer::Rtrb | Peer::Crossbeam | Peer::Disruptor);
        let alone = in_one_process || matches!(self.work, Work::Publications | Work::Subscriptions);
        Cast { candidate: index, driver, alone, company: self.company }
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        1_048_576.. => format!("{} MiB", bytes >> 20),
        1024.. => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

/// What an end does.
pub fn play(group: &Group, peer: Peer, order: &Order) -> Outcome<Measured> {
    match (peer, group.work) {
        (Peer::Lines(lines, read_only), Work::RoundTrip) => lines::ping_pong(lines, read_only, order),
        (Peer::Lines(lines, read_only), _) => lines::stream(lines, read_only, order),
        (Peer::Claims, _) => between_processes(&Claims(order.directory.clone()), group, order),
        (Peer::Futex, _) => between_processes(&futex::Futex(order.directory.clone()), group, order),
        (Peer::Ring(idle, way), work) => {
            let kind = if work == Work::TwoProducers { Kind::Mpsc } else { Kind::Broadcast };
            let ring = Ring::connect(&order.directory, idle, way, kind)?;
            match work {
                Work::Publications => workload::attach(order.length, |number| ring.publication(number)),
                Work::Subscriptions => workload::attach(order.length, |number| ring.subscription(number)),
                _ => between_processes(&ring, group, order),
            }
        }
        (Peer::Aeron(setup, way), work) => {
            let aeron = aeron::Client::connect(&order.directory, setup, way, work != Work::TwoProducers)?;
            match work {
                Work::Publications => workload::attach(order.length, |number| aeron.publication(number)),
                Work::Subscriptions => workload::attach(order.length, |number| aeron.subscription(number)),
                _ => between_processes(&aeron, group, order),
            }
        }
        (Peer::Iceoryx(sleeps), work) => {
            let iceoryx = Iceoryx::new(&order.directory, sleeps)?;
            match work {
                Work::Publications => workload::attach(order.length, |number| iceoryx.publisher(number)),
                Work::Subscriptions => workload::attach(order.length, |number| iceoryx.subscriber(number)),
                _ => between_processes(&iceoryx, group, order),
            }
        }
        (Peer::Shaq, _) => between_processes(&Shaq(order.directory.clone()), group, order),
        (Peer::IpcChannel, _) => between_processes(&IpcChannel(order.directory.clone()), group, order),
        (Peer::Kernel(mechanism, blocking), _) => {
            between_processes(&Kernel { mechanism, blocking, directory: order.directory.clone() }, group, order)
        }
        (Peer::Rtrb, _) => between_threads(&threads::Rtrb, group, order),
        (Peer::Crossbeam, _) => between_threads(&threads::Crossbeam, group, order),
        (Peer::Disruptor, _) => between_threads(&threads::Disruptor, group, order),
    }
}

/// Sizes are known when compiling, as those of most messages are.
fn between_processes<T: Transport>(transport: &T, group: &Group, order: &Order) -> Outcome<Measured> {
    let run = match group.bytes {
        32 => workload::run::<32, T>,
        48 => workload::run::<48, T>,
        64 => workload::run::<64, T>,
        1024 => workload::run::<1024, T>,
        16384 => workload::run::<16384, T>,
        65536 => workload::run::<65536, T>,
        1_048_576 => workload::run::<1_048_576, T>,
        bytes => return Err(format!("there are no messages of {bytes} bytes").into()),
    };
    run(transport, group.work, order)
}

fn between_threads<Q: threads::Queue>(queue: &Q, group: &Group, order: &Order) -> Outcome<Measured> {
    let run = match group.bytes {
        32 => threads::run::<32, Q>,
        48 => threads::run::<48, Q>,
        64 => threads::run::<64, Q>,
        1024 => threads::run::<1024, Q>,
        bytes => return Err(format!("there are no items of {bytes} bytes").into()),
    };
    run(queue, group.work, order)
}
