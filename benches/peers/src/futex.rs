//! The least that can wake a sleeper: a payload in shared memory, a word that counts messages, and a system call at each end. Only for round trips: there is
//! room for one message, and it is the answer that says it has been read.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::MmapRaw;
use rustix::thread::futex;

use crate::Outcome;
use crate::message::Message;
use crate::workload::{Receiver, Sender, Transport};

/// Where the payload begins: the word has a line of its own.
const PAYLOAD: usize = 64;
const PAGE: usize = 4096;

/// Lanes in files of this directory.
pub struct Futex(pub PathBuf);

impl Transport for Futex {
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>> {
        self.lane(lane, BYTES)
    }

    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>> {
        self.lane(lane, BYTES)
    }
}

impl Futex {
    /// Both ends make the file if it is not there yet.
    fn lane(&self, lane: &str, bytes: usize) -> Outcome<Lane> {
        let path = self.0.join(lane);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        let length = PAYLOAD + bytes.next_multiple_of(PAGE);
        file.set_len(length as u64)?;
        Ok(Lane { memory: MmapRaw::map_raw(&file)?, count: 0 })
    }
}

struct Lane {
    memory: MmapRaw,
    count: u32,
}

impl Lane {
    fn word(&self) -> &AtomicU32 {
        // SAFETY: mapped as long as `self`, and aligned; used as an atomic only, by both processes.
        unsafe { AtomicU32::from_ptr(self.memory.as_mut_ptr().cast()) }
    }

    fn payload<const BYTES: usize>(&self) -> *mut [u8; BYTES] {
        // SAFETY: within the mapping, which has at least so many bytes.
        unsafe { self.memory.as_mut_ptr().add(PAYLOAD).cast() }
    }
}

impl<const BYTES: usize> Sender<BYTES> for Lane {
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        // SAFETY: the other end has answered the message before this one, so it has read it.
        unsafe { message.write_at(self.payload()) };
        self.count = self.count.wrapping_add(1);
        // Pairs with the Acquire load in `try_receive`: who sees the count sees the payload.
        self.word().store(self.count, Ordering::Release);
        futex::wake(self.word(), futex::Flags::empty(), 1)?;
        Ok(true)
    }
}

impl<const BYTES: usize> Receiver<BYTES> for Lane {
    fn try_receive(&mut self, _: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        // Pairs with the Release store in `try_send`.
        if self.word().load(Ordering::Acquire) == self.count {
            return Ok(0);
        }
        // SAFETY: written before the count, and not again before we answer.
        read(unsafe { &*self.payload::<BYTES>() });
        self.count = self.count.wrapping_add(1);
        Ok(1)
    }

    fn wait(&mut self) {
        // Whatever it says (woken, the word has changed already, a signal), the caller looks again.
        let _ = futex::wait(self.word(), futex::Flags::empty(), self.count, None);
    }
}
