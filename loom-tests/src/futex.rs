//! The kernel's part in sleeping, and the six steps of `ringbus::wait::sleep` around it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Mutex;

use loom::thread::Thread;
use ringbus::ring::atomic::{AtomicU32, AtomicU64, Ordering};
use ringbus::ring::layout::PartyLine;
use ringbus::wait::fences::{Fences, Light};
use ringbus::wait::sleep::{self, How, Peer, Sleeper, Watch};

/// The kernel's queue of sleepers.
///
/// What the kernel promises: the comparison of a word with the value expected and the queueing are one step with respect to a wake-up on that word, and whoever wakes
/// after a store finds every sleeper queued that did not see the store. Loom switches threads only before its own operations, so here a wait compares (by a read-modify-write:
/// the newest value) and queues in one step. A sleeper nobody wakes any more blocks for ever, which loom reports as a deadlock. The queue itself is of `std`:
/// it takes no part in the model, and orders nothing.
#[derive(Default)]
pub struct Futex {
    queue: Mutex<Vec<Waiter>>,
}

struct Waiter {
    word: *const AtomicU32,
    thread: Thread,
    woken: Rc<Cell<bool>>,
}

// SAFETY: all threads of a loom model run by turns on one thread of the system, so nothing in here is ever used by two.
unsafe impl Send for Futex {}
// SAFETY: as above.
unsafe impl Sync for Futex {}

impl Futex {
    /// `futex_waitv`: queues on one word after the other, unless one is no longer what it was, and sleeps until one of them is woken.
    pub fn wait(&self, words: &[(&AtomicU32, u32)]) {
        let woken = Rc::new(Cell::new(false));
        let mut changed = false;
        for &(word, expected) in words {
            if word.fetch_add(0, Ordering::Relaxed) != expected {
                changed = true;
                break;
            }
            let waiter = Waiter { word, thread: loom::thread::current(), woken: woken.clone() };
            self.queue.lock().unwrap().push(waiter);
        }
        while !changed && !woken.get() {
            loom::thread::park();
        }
        self.queue.lock().unwrap().retain(|waiter| !Rc::ptr_eq(&waiter.woken, &woken));
    }

    /// `futex_wake` for all who sleep on the word.
    pub fn wake(&self, word: &AtomicU32) {
        for waiter in self.queue.lock().unwrap().iter().filter(|waiter| std::ptr::eq(waiter.word, word)) {
            waiter.woken.set(true);
            waiter.thread.unpark();
        }
    }

    /// Steps D and E, without C: somebody who always wakes.
    pub fn bump_and_wake(&self, word: &AtomicU32) {
        sleep::bump(word);
        self.wake(word);
    }
}

/// Steps 1 to 6: sleeps on the peers' wake sequences unless the last look finds something. `count`: the peer's sleep count.
pub fn sleep_unless(
    futex: &Futex,
    sleeper: &mut Sleeper,
    line: &PartyLine,
    count: Option<&AtomicU64>,
    sequences: &[&AtomicU32],
    last_look: impl FnOnce() -> bool,
) {
    let seen: Vec<_> = sequences.iter().map(|&word| (word, sleep::value_of(word))).collect();
    sleeper.fall_asleep(line, count, How::Futex, Fences::Symmetric);
    if !last_look() {
        futex.wait(&seen);
    }
    sleeper.awake(line);
}

/// Steps B to E, after the commit: wakes those peers that sleep and have not been woken for it, all by one bump.
pub fn wake(futex: &Futex, peers: &mut [Peer], sequence: &AtomicU32) {
    Light::Full.pass();
    wake_behind_the_fence(futex, peers, sequence);
}

/// The same for who watches one word for all of its peers.
pub fn wake_watched(futex: &Futex, watch: &mut Watch, peers: &mut [Peer], sequence: &AtomicU32) {
    Light::Full.pass();
    if watch.needs_look() {
        wake_behind_the_fence(futex, peers, sequence);
    }
}

fn wake_behind_the_fence(futex: &Futex, peers: &mut [Peer], sequence: &AtomicU32) {
    sleep::wake_sleepers(sequence, peers.iter_mut().map(|peer| (peer, &())), |()| {}, |word| futex.wake(word));
}
