//! By how many take part: what publishing costs with one, two, eight and 64 subscriptions, and how many messages come together from as many publications.
//!
//! There are two cores for all of them, so the publications are in one process and the subscriptions in the other, by turns.

use std::time::Instant;

use ringbus::{Idle, Kind, Message, Publication, Subscription};

use crate::harness::{End, Measured, Values, median};
use crate::lanes::{Sort, connect, text};
use crate::message::{Check, Source};
use crate::{Group, Slice, print_table};

const BYTES: usize = 32;
const COUNTS: [usize; 4] = [1, 2, 8, 64];
/// Messages after which the publisher waits until all have come, so that it never waits for room.
const BURST: u64 = 4096;

/// The candidates.
pub struct Parties(Vec<(Work, usize)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// One publication, so many subscriptions.
    Subscriptions,
    /// So many publications, one subscription.
    Publications(Kind),
}

const WORKS: [(&str, Work); 3] = [
    ("broadcast, one publication, so many subscriptions: ns to publish a message", Work::Subscriptions),
    ("broadcast, so many publications, one subscription: ns from message to message", Work::Publications(Kind::Broadcast)),
    ("mpsc, so many publications, one subscription: ns from message to message", Work::Publications(Kind::Mpsc)),
];

impl Parties {
    pub fn new() -> Self {
        Self(WORKS.iter().flat_map(|&(_, work)| COUNTS.map(|count| (work, count))).collect())
    }
}

impl Group for Parties {
    fn name(&self) -> &'static str {
        "parties"
    }

    fn candidates(&self) -> Vec<String> {
        self.0.iter().map(|(work, count)| format!("{work:?}, {count}")).collect()
    }

    fn run(&self, candidate: usize, slice: &mut Slice<'_>) -> Result<Measured, String> {
        let (work, count) = self.0[candidate];
        let kind = if let Work::Publications(kind) = work { kind } else { Kind::Broadcast };
        let sort = Sort { kind, idle: Idle::BusySpin, ..Sort::default() };
        let (publications, subscriptions) = if work == Work::Subscriptions { (1, count) } else { (count, 1) };
        let (there, back) = (format!("{}/there", slice.name), format!("{}/back", slice.name));
        match slice.end {
            End::Left => {
                let mut receipts = sort.subscription(slice.client, &back)?;
                let mut publications =
                    (0..publications).map(|_| sort.publication(slice.client, &there)).collect::<Result<Vec<_>, _>>()?;
                publications.iter_mut().try_for_each(|publication| connect(publication, subscriptions))?;
                publish(&mut publications, &mut receipts, slice)
            }
            End::Right => {
                let mut subscriptions =
                    (0..subscriptions).map(|_| sort.subscription(slice.client, &there)).collect::<Result<Vec<_>, _>>()?;
                let mut receipts = sort.publication(slice.client, &back)?;
                connect(&mut receipts, 1)?;
                subscribe(&mut subscriptions, publications, &mut receipts)
            }
        }
    }

    fn print(&self, values: &[Values]) {
        let mut header = vec!["32 bytes".to_owned()];
        header.extend(COUNTS.map(|count| count.to_string()));
        let rows = WORKS.iter().zip(values.chunks(COUNTS.len())).map(|((title, work), values)| {
            let mut row = vec![(*title).to_owned()];
            let value = if *work == Work::Subscriptions { 0 } else { 1 };
            row.extend(values.iter().map(|values| format!("{:.1}", values.median(value))));
            row
        });
        print_table(&header.iter().map(String::as_str).collect::<Vec<_>>(), 1, rows);
        println!(
            "There are two cores: all publications are in one process and take turns, and so do all subscriptions in the other. They spin."
        );
    }
}

/// In bursts, from each publication in turn. Values: nanoseconds to publish a message, and (from the other end) nanoseconds from message to message.
fn publish(publications: &mut [Publication], receipts: &mut Subscription, slice: &Slice<'_>) -> Result<Measured, String> {
    let mut sources: Vec<_> = publications.iter().map(|_| Source::<BYTES>::new()).collect();
    let deadline = Instant::now() + slice.length;
    let (mut times, mut number) = (Vec::new(), 0);
    let each = BURST / publications.len() as u64;
    loop {
        let started = Instant::now();
        for _ in 0..each {
            for (index, (publication, source)) in publications.iter_mut().zip(&mut sources).enumerate() {
                publication.offer_tagged(index as u16, source.message(number, false).bytes).map_err(text)?;
            }
            number += 1;
        }
        let now = Instant::now();
        times.push((now - started).as_nanos() as f64 / BURST as f64);
        // Whoever has got this from each publication has got all.
        let last = now >= deadline;
        let end = if last { END } else { END_OF_BURST };
        publications.iter_mut().try_for_each(|publication| publication.offer_tagged(end, &[]).map(drop).map_err(text))?;
        receipts.recv().map_err(text)?;
        if last {
            return Ok(Measured { messages: number * publications.len() as u64, values: vec![median(&mut times), 0.0] });
        }
    }
}

/// Tags of what is no message to be counted.
const END_OF_BURST: u16 = 1 << 15;
const END: u16 = END_OF_BURST | 1;

fn subscribe(subscriptions: &mut [Subscription], publications: usize, receipts: &mut Publication) -> Result<Measured, String> {
    const AT_ONCE: usize = 256;
    let checks = || (0..publications).map(|_| Check::<BYTES>::default()).collect::<Vec<_>>();
    let mut checks: Vec<_> = subscriptions.iter().map(|_| checks()).collect();
    let count = |checks: &[Check<BYTES>]| checks.iter().map(|check| check.counts[0]).sum::<u64>();
    let (mut nanoseconds, mut last) = (Vec::new(), false);
    while !last {
        // When the first of a burst had come, and how many had then.
        let (mut started, begin, mut ends) = (None, count(&checks[0]), 0);
        while ends < publications * subscriptions.len() {
            for (subscription, checks) in subscriptions.iter_mut().zip(&mut checks) {
                let handler = |message: Message<'_>| {
                    if message.tag() & END_OF_BURST == 0 {
                        checks[usize::from(message.tag())].read(message.payload());
                    } else {
                        ends += 1;
                        last = message.tag() == END;
                    }
                };
                subscription.poll(handler, AT_ONCE).map_err(text)?;
            }
            if started.is_none() {
                started = Some((Instant::now(), count(&checks[0]))).filter(|(_, so_far)| *so_far > begin);
            }
        }
        if let Some((started, before)) = started.filter(|(_, before)| count(&checks[0]) > *before) {
            nanoseconds.push(started.elapsed().as_nanos() as f64 / (count(&checks[0]) - before) as f64);
        }
        receipts.offer_until(0, &[], None).map_err(text)?;
    }
    let received = count(&checks[0]);
    if checks.iter().any(|checks| count(checks) != received) {
        return Err("not all subscriptions have got as much".into());
    }
    checks.iter().flatten().try_for_each(Check::verdict)?;
    if nanoseconds.is_empty() {
        nanoseconds.push(0.0);
    }
    Ok(Measured { messages: received, values: vec![0.0, median(&mut nanoseconds)] })
}
