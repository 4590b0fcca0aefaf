//! By how many take part: what publishing costs with one, two, eight and 64 subscriptions, and how many messages come together from as many publications.
//!
//! There are two cores for all of them, so the publications are in one process and the subscriptions in the other, by turns.

use std::time::Instant;

use ringbus::{Idle, Kind, Message, Publication, Subscription};

use crate::harness::{End, Measured, Values, median};
use crate::lanes::{LAST, Sort, Source, connect, offer, text, verify};
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
    ("broadcast, so many subscriptions: ns to publish", Work::Subscriptions),
    ("broadcast, so many publications: M/s", Work::Publications(Kind::Broadcast)),
    ("mpsc, so many publications: M/s", Work::Publications(Kind::Mpsc)),
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
            row.extend(values.iter().map(|values| match work {
                Work::Subscriptions => format!("{:.1}", values.median(0)),
                Work::Publications(_) => format!("{:.1}", 1e3 / values.median(1)),
            }));
            row
        });
        print_table(&header.iter().map(String::as_str).collect::<Vec<_>>(), 1, rows);
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
                offer(publication, index as u16, source.message(number))?;
            }
            number += 1;
        }
        let now = Instant::now();
        times.push((now - started).as_nanos() as f64 / BURST as f64);
        // Whoever has got this from each publication has got all.
        let last = now >= deadline;
        let end = if last { END } else { END_OF_BURST };
        publications.iter_mut().try_for_each(|publication| offer(publication, end, &[0; BYTES]))?;
        receipts.recv().map_err(text)?;
        if last {
            return Ok(Measured { messages: number * publications.len() as u64, values: vec![median(&mut times), 0.0] });
        }
    }
}

const END_OF_BURST: u16 = 1 << 15;
const END: u16 = END_OF_BURST | LAST;

fn subscribe(subscriptions: &mut [Subscription], publications: usize, receipts: &mut Publication) -> Result<Measured, String> {
    // By subscription and publication.
    let mut counts = vec![vec![0; publications]; subscriptions.len()];
    let (mut nanoseconds, mut last) = (Vec::new(), false);
    while !last {
        let before = counts[0].iter().sum::<u64>();
        let (mut ends, mut outcome) = (0, Ok(()));
        let mut started = None;
        while ends < publications * subscriptions.len() {
            for (subscription, counts) in subscriptions.iter_mut().zip(&mut counts) {
                let handler = |message: Message<'_>| {
                    if message.tag() & END_OF_BURST != 0 {
                        ends += 1;
                        last = message.tag() == END;
                        return;
                    }
                    let count = &mut counts[usize::from(message.tag())];
                    if let Err(error) = verify::<BYTES>(&message, *count) {
                        outcome = Err(error);
                    }
                    *count += 1;
                };
                if subscription.poll(handler, 256).map_err(text)? > 0 {
                    started.get_or_insert_with(Instant::now);
                }
            }
            std::mem::replace(&mut outcome, Ok(()))?;
        }
        let elapsed = started.map_or(0.0, |started: Instant| started.elapsed().as_nanos() as f64);
        nanoseconds.push(elapsed / (counts[0].iter().sum::<u64>() - before) as f64);
        receipts.offer_until(0, &[], None).map_err(text)?;
    }
    let received = counts[0].iter().sum();
    if counts.iter().any(|counts| counts.iter().sum::<u64>() != received) {
        return Err("not all subscriptions have got as much".into());
    }
    Ok(Measured { messages: received, values: vec![0.0, median(&mut nanoseconds)] })
}
