//! The ring of one producer beside a model that has a list of messages, and for each reader two numbers. Whatever the ring answers, the model must have said.

use std::ptr::NonNull;

use ringbus::ring::frame::{HEADER_LENGTH, next_position};
use ringbus::ring::layout::{ImageLine, SingleControl};
use ringbus::ring::single::{Consumer, Overwrite, Producer, max_payload};
use ringbus::ring::{ClaimError, Frame, ReadError};

use super::memory::GuardedRing;
use super::operation::{CAPACITY, Operation, PARTIES, payload};

/// A message as it was committed.
struct Message {
    position: u64,
    length: usize,
}

/// A reader, and where the model thinks it is.
struct Reader {
    consumer: Consumer,
    link: u64,
    position: u64,
    /// What the producer knows of it.
    published: u64,
}

/// The ring and its model.
pub struct Single {
    // The ends first: they may not outlive the memory.
    producer: Producer,
    readers: [Option<Reader>; PARTIES],
    lines: Vec<ImageLine>,
    ring: GuardedRing,
    overwrite: Overwrite,
    links: u64,
    messages: Vec<Message>,
    tail: u64,
    claimed: Option<usize>,
    /// Lossy: the oldest position that is still good.
    oldest: u64,
}

impl Single {
    /// A new ring. Nobody reads.
    pub fn new(overwrite: Overwrite) -> Self {
        let ring = GuardedRing::new::<SingleControl>(CAPACITY);
        // SAFETY: the producer goes before the memory, and is the only one.
        let producer = unsafe { Producer::new(ring.control(), ring.region(), overwrite) };
        let lines = (0..PARTIES).map(|_| ImageLine::default()).collect();
        let readers = std::array::from_fn(|_| None);
        Self { producer, readers, lines, ring, overwrite, links: 0, messages: Vec::new(), tail: 0, claimed: None, oldest: 0 }
    }

    /// Does it to the ring and to the model.
    pub fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Offer { length, times, .. } => (0..times).for_each(|_| self.offer(length)),
            Operation::Claim { length, .. } => self.claim(length),
            Operation::Commit { .. } => self.commit(),
            Operation::Abort { .. } => {
                self.producer.abort();
                self.claimed = None;
            }
            Operation::HasRoom { length, .. } => assert_eq!(self.producer.has_room(length), self.room(length)),
            Operation::Poll { party, limit } => self.poll(party, limit),
            Operation::Peek { party } => self.peek(party),
            Operation::Release { party, all } => self.release(party, all),
            Operation::Join { party } => self.join(party),
            Operation::Leave { party } => self.leave(party),
            Operation::Bury => {}
        }
        assert_eq!(self.producer.position(), self.tail);
        assert_eq!(self.producer.is_connected(), self.readers.iter().flatten().next().is_some());
    }

    /// What the model says of a claim.
    fn room(&mut self, length: usize) -> Result<(), ClaimError> {
        let max = max_payload(CAPACITY, self.overwrite);
        if length as u64 > max {
            return Err(ClaimError::TooLong { max });
        }
        let slowest = self.readers.iter().flatten().map(|reader| reader.published).min();
        let Some(slowest) = slowest else { return Err(ClaimError::NotConnected) };
        // Behind a frame there is always a zero header.
        let end = next_position(self.tail, length as u64) + HEADER_LENGTH;
        match self.overwrite {
            Overwrite::Never if end > slowest + CAPACITY => return Err(ClaimError::BackPressured),
            Overwrite::Never => {}
            Overwrite::Oldest if end > self.oldest + CAPACITY => {
                let target = (end + CAPACITY / 8 - CAPACITY).min(self.tail);
                let first = self.messages.iter().map(|message| message.position).find(|&position| position >= target);
                self.oldest = first.unwrap_or(self.tail);
            }
            Overwrite::Oldest => {}
        }
        Ok(())
    }

    fn offer(&mut self, length: usize) {
        let bytes = payload(self.messages.len() as u64, length);
        let expected = self.room(length).map(|()| {
            self.committed(length);
            self.tail
        });
        assert_eq!(self.producer.offer(self.messages.len() as u16, &bytes), expected);
    }

    fn committed(&mut self, length: usize) {
        self.messages.push(Message { position: self.tail, length });
        self.tail = next_position(self.tail, length as u64);
        self.claimed = None;
    }

    fn claim(&mut self, length: usize) {
        let expected = self.room(length);
        assert_eq!(self.producer.claim(length), expected);
        if expected.is_ok() {
            self.claimed = Some(length);
            let bytes = payload(self.messages.len() as u64, length);
            let (front, back) = bytes.split_at(length / 2);
            self.producer.payload()[..front.len()].copy_from_slice(front);
            self.producer.write(front.len(), back);
            assert_eq!(self.producer.claimed(), bytes);
        }
    }

    fn commit(&mut self) {
        if let Some(length) = self.claimed {
            self.committed(length);
        }
        assert_eq!(self.producer.commit(self.messages.len() as u16), self.tail);
    }

    fn poll(&mut self, party: usize, limit: usize) {
        for _ in 0..limit {
            match self.read(party) {
                Ok(Some(frame)) => {
                    let Some(reader) = &mut self.readers[party] else { return };
                    reader.consumer.advance(&frame);
                    reader.position = frame.next;
                    self.release(party, false);
                }
                Ok(None) => return self.release(party, true),
                Err(_) => return,
            }
        }
    }

    fn peek(&mut self, party: usize) {
        let Some(reader) = &mut self.readers[party] else { return };
        let waiting = reader.position < self.tail;
        let ready = reader.consumer.ready();
        assert!(ready || !waiting);
        // A reader of a lossy ring looks at an announcement to see that it does not concern it.
        assert!(waiting || !ready || self.overwrite == Overwrite::Oldest);
        assert_eq!(reader.consumer.lag(), self.tail - reader.position);
        if let Ok(frame) = self.read(party) {
            assert_eq!(self.read(party), Ok(frame), "it stays the next");
        }
    }

    /// Reads, and compares with the model: what the message is, and how many were lost.
    fn read(&mut self, party: usize) -> Result<Option<Frame>, ReadError> {
        let Some(reader) = &mut self.readers[party] else { return Ok(None) };
        let found = reader.consumer.read();
        let number = |position| self.messages.partition_point(|message| message.position < position);
        let own = number(reader.position);
        let expected = if self.overwrite == Overwrite::Oldest && reader.position < self.oldest {
            reader.position = self.oldest;
            Err(ReadError::Lost { messages: (number(self.oldest) - own) as u64 })
        } else {
            let frame = |message: &Message| Frame {
                position: message.position,
                length: message.length as u32,
                tag: if self.messages.len() == own { 0 } else { (own + 1) as u16 },
                slot: 0,
                next: next_position(message.position, message.length as u64),
            };
            Ok(self.messages.get(own).map(frame))
        };
        assert_eq!(found, expected);
        assert_eq!(reader.consumer.position(), reader.position);
        if let Ok(Some(frame)) = found {
            let bytes = match self.overwrite {
                Overwrite::Never => self.ring.read(reader.consumer.payload(&frame), frame.length),
                // SAFETY: the reader's private copy, good until its next read.
                Overwrite::Oldest => unsafe {
                    std::slice::from_raw_parts(reader.consumer.payload(&frame), frame.length as usize).to_vec()
                },
            };
            assert_eq!(bytes, payload(own as u64, frame.length as usize));
        }
        found
    }

    fn release(&mut self, party: usize, all: bool) {
        let Some(reader) = &mut self.readers[party] else { return };
        let moved = reader.position - reader.published;
        let tells = moved > 0 && (all || moved >= CAPACITY / 8);
        assert_eq!(reader.consumer.release(all), tells);
        if tells {
            reader.published = reader.position;
        }
    }

    fn join(&mut self, party: usize) {
        if self.readers[party].is_some() {
            return;
        }
        self.links += 1;
        let link = self.links;
        let line = NonNull::from(&self.lines[party]);
        // SAFETY: the ends go before the memory (fields are dropped in order) and the lines, which do not move; one reader a line.
        let mut consumer = unsafe { Consumer::new(self.ring.control(), self.ring.region(), line, link, party, self.overwrite) };
        // Before the producer has taken it in there is nothing to be read, whatever a former reader has left behind.
        assert_eq!((consumer.ready(), consumer.read(), consumer.lag()), (false, Ok(None), 0));
        // SAFETY: as above.
        unsafe { self.producer.add_reader(link, party, line) };
        // Joined here, so that the model need not know of readers who have not looked yet.
        let nothing = consumer.read();
        assert!(matches!(nothing, Ok(None)), "{nothing:?}");
        self.readers[party] = Some(Reader { consumer, link, position: self.tail, published: self.tail });
    }

    fn leave(&mut self, party: usize) {
        if let Some(reader) = self.readers[party].take() {
            assert!(self.producer.remove_reader(reader.link));
        }
    }
}
