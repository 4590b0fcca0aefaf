//! Queues between threads of one process, as a reference: they need no names, no driver, and no distrust.
//!
//! Each in the form its documentation recommends for throughput: rtrb by chunks, disruptor by batches through its event poller. `ArrayQueue` has one form only.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use disruptor::{BusySpin, EventPoller, Polling, Producer as _, SingleConsumerBarrier, SingleProducer, SingleProducerBarrier};

use crate::Outcome;
use crate::harness::{Measured, Order, pin};
use crate::message::{Message, Source};
use crate::workload::{self, NO_SECOND, Receiver, Sender, Work, ring_slots};

/// Something that joins two threads.
pub trait Queue {
    /// A lane.
    fn lane<const BYTES: usize>(&self) -> (impl Sender<BYTES> + Send + 'static, impl Receiver<BYTES> + Send + 'static);
}

/// Both ends of a slice, on a thread each.
pub fn run<const BYTES: usize, Q: Queue>(queue: &Q, work: Work, order: &Order) -> Outcome<Measured> {
    let (out, there) = queue.lane::<BYTES>();
    let (answer, back) = queue.lane::<BYTES>();
    let right = {
        let order = order.clone();
        std::thread::spawn(move || {
            pin(order.cores[1])?;
            workload::right(there, NO_SECOND, answer, work, &order)
        })
    };
    let left = workload::left(out, back, work, order)?;
    let right = right.join().map_err(|_| "the other thread has panicked")??;
    if left.messages != right.messages {
        return Err(format!("{} messages were sent, {} received", left.messages, right.messages).into());
    }
    // One of them has measured.
    Ok(if left.values.is_empty() { right } else { left })
}

/// rtrb.
pub struct Rtrb;

impl Queue for Rtrb {
    fn lane<const BYTES: usize>(&self) -> (impl Sender<BYTES> + Send + 'static, impl Receiver<BYTES> + Send + 'static) {
        let (producer, consumer) = rtrb::RingBuffer::<[u8; BYTES]>::new(ring_slots(BYTES));
        (RtrbSender(producer), RtrbReceiver(consumer))
    }
}

struct RtrbSender<const BYTES: usize>(rtrb::Producer<[u8; BYTES]>);

impl<const BYTES: usize> Sender<BYTES> for RtrbSender<BYTES> {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        Ok(self.0.push(*message.bytes).is_ok())
    }

    #[inline(always)]
    fn try_send_burst(&mut self, source: &mut Source<BYTES>, numbers: Range<u64>) -> Outcome<u64> {
        let room = self.0.slots().min((numbers.end - numbers.start) as usize);
        let chunk = self.0.write_chunk_uninit(room)?;
        let end = numbers.start + room as u64;
        chunk.fill_from_iter((numbers.start..end).map(|number| *source.message(number, false).bytes));
        Ok(end)
    }
}

struct RtrbReceiver<const BYTES: usize>(rtrb::Consumer<[u8; BYTES]>);

impl<const BYTES: usize> Receiver<BYTES> for RtrbReceiver<BYTES> {
    #[inline(always)]
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        let there = self.0.slots().min(limit);
        let chunk = self.0.read_chunk(there)?;
        let (first, second) = chunk.as_slices();
        first.iter().chain(second).for_each(|message| read(message));
        chunk.commit_all();
        Ok(there)
    }
}

/// crossbeam's `ArrayQueue`.
pub struct Crossbeam;

impl Queue for Crossbeam {
    fn lane<const BYTES: usize>(&self) -> (impl Sender<BYTES> + Send + 'static, impl Receiver<BYTES> + Send + 'static) {
        let queue = Arc::new(ArrayQueue::<[u8; BYTES]>::new(ring_slots(BYTES)));
        (ArrayEnd(Arc::clone(&queue)), ArrayEnd(queue))
    }
}

struct ArrayEnd<const BYTES: usize>(Arc<ArrayQueue<[u8; BYTES]>>);

impl<const BYTES: usize> Sender<BYTES> for ArrayEnd<BYTES> {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        Ok(self.0.push(*message.bytes).is_ok())
    }
}

impl<const BYTES: usize> Receiver<BYTES> for ArrayEnd<BYTES> {
    #[inline(always)]
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        for number in 0..limit {
            let Some(message) = self.0.pop() else { return Ok(number) };
            read(&message);
        }
        Ok(limit)
    }
}

/// The disruptor crate, with a single producer.
pub struct Disruptor;

impl Queue for Disruptor {
    fn lane<const BYTES: usize>(&self) -> (impl Sender<BYTES> + Send + 'static, impl Receiver<BYTES> + Send + 'static) {
        let builder = disruptor::build_single_producer(ring_slots(BYTES), || [0; BYTES], BusySpin);
        let (poller, builder) = builder.new_event_poller();
        (DisruptorSender(builder.build()), DisruptorReceiver(poller))
    }
}

struct DisruptorSender<const BYTES: usize>(SingleProducer<[u8; BYTES], SingleConsumerBarrier>);

impl<const BYTES: usize> Sender<BYTES> for DisruptorSender<BYTES> {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        Ok(self.0.try_publish(|place| message.write_in(place)).is_ok())
    }

    #[inline(always)]
    fn try_send_burst(&mut self, source: &mut Source<BYTES>, numbers: Range<u64>) -> Outcome<u64> {
        let outcome = self.0.try_batch_publish((numbers.end - numbers.start) as usize, |places| {
            for (place, number) in places.zip(numbers.clone()) {
                source.message(number, false).write_in(place);
            }
        });
        Ok(if outcome.is_ok() { numbers.end } else { numbers.start })
    }
}

struct DisruptorReceiver<const BYTES: usize>(EventPoller<[u8; BYTES], SingleProducerBarrier>);

impl<const BYTES: usize> Receiver<BYTES> for DisruptorReceiver<BYTES> {
    #[inline(always)]
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        match self.0.take(limit as u64) {
            Ok(mut events) => {
                let mut count = 0;
                for event in &mut events {
                    read(event);
                    count += 1;
                }
                Ok(count)
            }
            Err(Polling::NoEvents) => Ok(0),
            Err(Polling::Shutdown) => Err("the producer is gone".into()),
        }
    }
}
