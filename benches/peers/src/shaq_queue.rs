//! shaq: its single-producer, single-consumer queue in a shared file, with items of the message's size. Written and read in place; streams by batches, as its
//! documentation recommends for several items.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;

use shaq::spsc::{Consumer, Producer, minimum_file_size};

use crate::Outcome;
use crate::harness::patiently;
use crate::message::{Message, Source};
use crate::workload::{Receiver, Sender, Transport, ring_slots};

/// Queues in files of this directory.
pub struct Shaq(pub PathBuf);

impl Transport for Shaq {
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>> {
        let path = self.0.join(lane);
        let unfinished = path.with_extension("unfinished");
        let file = File::options().read(true).write(true).create_new(true).open(&unfinished)?;
        let size = minimum_file_size::<[u8; BYTES]>(ring_slots(BYTES)).next_multiple_of(4096);
        // SAFETY: the sender alone makes a queue, once; bytes are valid in every process.
        let producer = unsafe { Producer::<[u8; BYTES]>::create(&file, size) };
        let producer = producer.map_err(|error| format!("cannot create the queue {}: {error:?}", path.display()))?;
        // Whoever sees this name sees a finished queue.
        fs::rename(unfinished, path)?;
        Ok(ShaqSender(producer))
    }

    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>> {
        let path = self.0.join(lane);
        let file = patiently("open the queue", || Ok(File::options().read(true).write(true).open(&path).ok()))?;
        // SAFETY: the only consumer of this queue, which the sender has made with items of the same size.
        let consumer = unsafe { Consumer::<[u8; BYTES]>::join(&file) };
        Ok(ShaqReceiver(consumer.map_err(|error| format!("cannot join the queue {}: {error:?}", path.display()))?))
    }
}

struct ShaqSender<const BYTES: usize>(Producer<[u8; BYTES]>);

impl<const BYTES: usize> Sender<BYTES> for ShaqSender<BYTES> {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        let mut batch = self.0.write_batch();
        // SAFETY: written at once, before the batch is dropped.
        let place = unsafe { batch.try_as_mut() };
        // SAFETY: the place is lent to us.
        Ok(place.map(|place| unsafe { message.write_at(place.as_mut_ptr()) }).is_some())
    }

    #[inline(always)]
    fn try_send_burst(&mut self, source: &mut Source<BYTES>, numbers: Range<u64>) -> Outcome<u64> {
        let mut batch = self.0.write_batch();
        for number in numbers.clone() {
            // SAFETY: written at once, before the batch is dropped.
            let Some(place) = (unsafe { batch.try_as_mut() }) else { return Ok(number) };
            // SAFETY: the place is lent to us.
            unsafe { source.message(number, false).write_at(place.as_mut_ptr()) };
        }
        Ok(numbers.end)
    }
}

struct ShaqReceiver<const BYTES: usize>(Consumer<[u8; BYTES]>);

impl<const BYTES: usize> Receiver<BYTES> for ShaqReceiver<BYTES> {
    #[inline(always)]
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        let limit = NonZeroUsize::new(limit).ok_or("nothing is wanted")?;
        let Some(batch) = self.0.try_reserve_read_batch(limit) else { return Ok(0) };
        batch.iter().for_each(|message| read(message));
        Ok(batch.len())
    }
}
