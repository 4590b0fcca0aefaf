//! The physical limit of several producers: each message is claimed by one fetch-and-add on a shared word and takes a line of its own, whose first word says that it is there.
//!
//! No lengths, nothing to wake, nobody to distrust; and a producer that died after its addition would stop the queue for ever.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

use crate::Outcome;
use crate::message::Message;
use crate::raw::LINE;
use crate::workload::{Receiver, Sender, Transport, ring_bytes};

const WORD: usize = size_of::<u64>();
/// Where things are in the file.
const TAIL: usize = 0;
const POSITION: usize = 2 * LINE;
const DATA: usize = 4096;
/// So many lines before the end a producer takes the ring for full: it adds before it knows where the others are.
const SLACK: u64 = 1024 * LINE as u64;

/// Queues in files of this directory.
pub struct Claims(pub PathBuf);

impl Claims {
    fn map<const BYTES: usize>(&self, lane: &str) -> Outcome<Memory> {
        if BYTES + WORD > LINE {
            return Err("a message is a line".into());
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).open(self.0.join(lane))?;
        let capacity = ring_bytes(BYTES);
        file.set_len((DATA + capacity) as u64)?;
        Ok(Memory { mapping: MmapRaw::map_raw(&file)?, capacity: capacity as u64 })
    }
}

impl Transport for Claims {
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>> {
        let memory = self.map::<BYTES>(lane)?;
        Ok(ClaimSender { limit: memory.capacity, memory, last: 0 })
    }

    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>> {
        Ok(ClaimReceiver { memory: self.map::<BYTES>(lane)?, position: 0, told: 0 })
    }
}

struct Memory {
    mapping: MmapRaw,
    capacity: u64,
}

impl Memory {
    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: mapped, aligned, and used as an atomic by all.
        unsafe { AtomicU64::from_ptr(self.mapping.as_mut_ptr().add(offset).cast()) }
    }

    #[inline(always)]
    fn line(&self, position: u64) -> usize {
        DATA + (position & (self.capacity - 1)) as usize
    }

    #[inline(always)]
    fn payload<const BYTES: usize>(&self, position: u64) -> *mut [u8; BYTES] {
        // SAFETY: behind the first word of a line, in the mapping.
        unsafe { self.mapping.as_mut_ptr().add(self.line(position) + WORD).cast() }
    }
}

struct ClaimSender {
    memory: Memory,
    /// Lines before it are free for sure.
    limit: u64,
    /// Behind its last message.
    last: u64,
}

impl<const BYTES: usize> Sender<BYTES> for ClaimSender {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        if self.last + SLACK > self.limit {
            // Pairs with the Release store of the receiver: it has read what was there.
            self.limit = self.memory.word(POSITION).load(Ordering::Acquire) + self.memory.capacity;
            if self.last + SLACK > self.limit {
                // Where the others have got, if there was no room for long.
                self.last = self.memory.word(TAIL).load(Ordering::Relaxed);
                return Ok(false);
            }
        }
        let start = self.memory.word(TAIL).fetch_add(LINE as u64, Ordering::Relaxed);
        self.last = start + LINE as u64;
        // SAFETY: the line is ours by the addition, and free by the limit.
        unsafe { self.memory.payload::<BYTES>(start).write(*message.bytes) };
        // Pairs with the Acquire load of the receiver.
        self.memory.word(self.memory.line(start)).store(start + 1, Ordering::Release);
        Ok(true)
    }
}

struct ClaimReceiver {
    memory: Memory,
    position: u64,
    /// What the senders know.
    told: u64,
}

impl<const BYTES: usize> Receiver<BYTES> for ClaimReceiver {
    #[inline(always)]
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        for count in 0..limit {
            let position = self.position;
            // Pairs with the Release store of the sender. Of the last lap it says something else.
            if self.memory.word(self.memory.line(position)).load(Ordering::Acquire) != position + 1 {
                return Ok(count);
            }
            // SAFETY: written before the word, and not again before we say that it was read.
            read(unsafe { &*self.memory.payload::<BYTES>(position) });
            self.position += LINE as u64;
            if self.position - self.told >= self.memory.capacity / 8 {
                self.told = self.position;
                self.memory.word(POSITION).store(self.told, Ordering::Release);
            }
        }
        Ok(limit)
    }
}
