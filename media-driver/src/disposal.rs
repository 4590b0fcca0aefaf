//! Closing what strangers sent. A lingering socket or a file of a stuck file system takes as long to close as its sender likes, and the kernel does it in the thread that drops
//! the last reference: be it a descriptor, be it a socket in whose queue it lies unread. So that is done on other threads, a few for each user.

use std::collections::{HashMap, VecDeque};
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, Shutdown, sockopt};

/// Threads of a user, at most. All that each can do is to keep its own user's rubbish waiting.
const MOST_THREADS: usize = 4;

/// How long all of them may be held up before nothing more is taken.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is to be closed, of each user that has anything of that sort.
#[derive(Debug, Default)]
pub(crate) struct Disposal(HashMap<u32, Arc<Mutex<Heap>>>);

#[derive(Debug)]
struct Heap {
    threads: usize,
    waiting: VecDeque<Vec<OwnedFd>>,
    /// When something was last taken from it.
    taken_at: Instant,
}

impl Disposal {
    /// Closes descriptors that a user has sent.
    pub(crate) fn close(&mut self, uid: u32, fds: Vec<OwnedFd>) {
        if fds.is_empty() {
            return;
        }
        self.0.retain(|_, heap| !is_idle(heap));
        let new = || Heap { threads: 0, waiting: VecDeque::new(), taken_at: Instant::now() };
        let heap = self.0.entry(uid).or_insert_with(|| Arc::new(Mutex::new(new())));
        let mut locked = heap.lock();
        locked.waiting.push_back(fds);
        if locked.threads < MOST_THREADS {
            let heap = Arc::clone(heap);
            // Where there can be no thread now, the next one does it.
            locked.threads +=
                usize::from(std::thread::Builder::new().name("ringbus-close".into()).spawn(move || work(&heap)).is_ok());
        }
    }

    /// Hangs up on a user.
    pub(crate) fn hang_up(&mut self, uid: u32, socket: OwnedFd) {
        // From here on nothing more gets into its queue, so that one look is enough.
        let _ = rustix::net::shutdown(&socket, Shutdown::Both);
        if has_unread_packets(&socket) {
            self.close(uid, vec![socket]);
        }
    }

    /// Whether all threads of the user are held up and more waits: nothing more should be taken from him.
    pub(crate) fn is_held_up(&self, uid: u32) -> bool {
        let Some(heap) = self.0.get(&uid) else { return false };
        let heap = heap.lock();
        !heap.waiting.is_empty() && heap.taken_at.elapsed() > PATIENCE
    }
}

fn is_idle(heap: &Mutex<Heap>) -> bool {
    let heap = heap.lock();
    heap.threads == 0 && heap.waiting.is_empty()
}

/// A thread's work: closes all that waits.
fn work(heap: &Mutex<Heap>) {
    loop {
        let mut locked = heap.lock();
        let Some(fds) = locked.waiting.pop_front() else {
            locked.threads -= 1;
            return;
        };
        locked.taken_at = Instant::now();
        drop(locked);
        drop(fds);
    }
}

/// Whether anything was sent and not received. A packet without a byte looks like the end of the connection, but it has a sender, and we take no room to be told who that is.
fn has_unread_packets(socket: &OwnedFd) -> bool {
    let _ = sockopt::set_socket_passcred(socket, true);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let peeked = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut RecvAncillaryBuffer::default(), flags);
    peeked.is_ok_and(|packet| packet.bytes > 0 || packet.flags.contains(ReturnFlags::CTRUNC))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn unread_packets_are_told_from_the_end() {
        for (packets, unread) in
            [(&[][..], false), (&[&b"a"[..]][..], true), (&[&b""[..]][..], true), (&[&b""[..], b"a"][..], true)]
        {
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None).unwrap();
            for packet in packets {
                rustix::net::send(&theirs, packet, SendFlags::empty()).unwrap();
            }
            drop(theirs);
            rustix::net::shutdown(&ours, Shutdown::Both).unwrap();
            assert_eq!(has_unread_packets(&ours), unread, "{packets:?}");
        }
    }
}
