//! The ring of many producers and one consumer, in one total order.
//!
//! Claims meet in one CAS on the tail; commits are in-band, as in the [`single`](super::single) ring. The consumer zeroes all it
//! consumed before it gives it back, so every byte between the tail and the limit is zero, and so is a claim its owner has not touched.
//!
//! # A producer that dies
//!
//! Each producer keeps a *claim record*: before the CAS, what it is about to claim (an intent); after it and before the first payload byte, that it
//! did (confirmed); after commit or abort, nothing. When the driver says that the producer in some slot is gone, and the consumer
//! stands before a frame that nobody commits, `Consumer::repair` finds out from the records whether the dead owned it and how
//! long it was. No timeout, no guess; why it is right is said there. The consumer does it because it alone reads, zeroes and moves on, so nothing races with it.

use core::ptr::NonNull;
use core::sync::atomic::compiler_fence;
use std::sync::Arc;

use super::atomic::{AtomicU64, Ordering};
use super::frame::{self, Decoded, HEADER_LENGTH, LINE};
use super::layout::{ClaimLine, MAX_PRODUCERS, MpscControl};
use super::region::Region;
use super::{ClaimError, Frame, POSITION_STEPS, ReadError};

/// A claim record that says nothing is claimed: what fresh memory says.
pub const NO_CLAIM: u64 = 0;
/// With the position: the producer is about to claim there.
const INTENT: u64 = 0b10;
/// With the position: the producer has claimed there.
const CONFIRMED: u64 = 0b11;

/// Length in bytes of the frame that carries `payload` bytes in such a ring. One of a line or less takes a power of two: so those that are of the same size do not straddle lines,
/// each of which would be written by two producers. Where a frame begins is known only once it is claimed, so unlike in the [`single`](super::single) ring it cannot depend on that.
#[inline]
pub const fn frame_length(payload: u64) -> u64 {
    let length = frame::frame_length(payload);
    if length <= LINE { length.next_power_of_two() } else { length }
}

/// Largest payload in bytes of a ring of `capacity` bytes.
pub const fn max_payload(capacity: u64) -> u64 {
    capacity - 2 * HEADER_LENGTH
}

/// A writing end.
#[derive(Debug)]
pub struct Producer {
    region: Region,
    control: NonNull<MpscControl>,
    slot: u8,
    /// Frames up to here fit without looking at the consumer's position.
    limit: u64,
    max_payload: u64,
    /// Start of the claim, if there is one.
    claim: Option<u64>,
    claim_length: u32,
    claim_end: u64,
    position: u64,
    /// An intent was given up since the last [`take_withdrawn`](Self::take_withdrawn).
    withdrawn: bool,
}

// SAFETY: the producer is the only one to use its private fields, and shared memory is accessed as the protocol says from whatever thread.
unsafe impl Send for Producer {}

impl Producer {
    /// The producer in `slot`.
    ///
    /// # Safety
    ///
    /// `control` and `region` stay mapped, writable, as long as the producer lives; nobody else uses the slot.
    pub unsafe fn new(control: NonNull<MpscControl>, region: Region, slot: u8) -> Self {
        let max_payload = max_payload(region.capacity());
        // The slot's record says nothing: the consumer has seen to that (`take_finished`).
        Self {
            region,
            control,
            slot,
            limit: 0,
            max_payload,
            claim: None,
            claim_length: 0,
            claim_end: 0,
            position: 0,
            withdrawn: false,
        }
    }

    fn control(&self) -> &MpscControl {
        // SAFETY: mapped as long as `self` (contract of `new`); all its fields are atomics.
        unsafe { self.control.as_ref() }
    }

    fn record(&self) -> &ClaimLine {
        &self.control().producers[usize::from(self.slot)].claim
    }

    /// Whether, since the last call, an intent of ours was given up (another producer won the CAS). A consumer that had to wait for us to decide, with
    /// a dead producer's claim in the same place, can go on now: if it sleeps, it has to be woken, as after a commit or an abort.
    #[inline]
    pub fn take_withdrawn(&mut self) -> bool {
        core::mem::take(&mut self.withdrawn)
    }

    /// Position behind the last frame this producer committed.
    #[inline]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Largest payload in bytes.
    #[inline]
    pub fn max_payload(&self) -> u64 {
        self.max_payload
    }

    /// Claims room for a payload of `length` bytes. A claim must be [committed](Self::commit) or [aborted](Self::abort): the consumer waits for it.
    /// One that was forgotten is aborted here.
    #[inline]
    pub fn claim(&mut self, length: usize) -> Result<(), ClaimError> {
        // Others move the tail whenever our CAS fails, so this ends; unless somebody hostile does nothing else.
        const TRIES: usize = 10_000;
        if length as u64 > self.max_payload {
            return Err(ClaimError::TooLong { max: self.max_payload });
        }
        self.abort();
        let frame = frame_length(length as u64);
        let (tail, record) = (&self.control().tail.tail, self.record());
        // The record says nothing now, so this is not seen with an older start; the Release stores of the start below publish it.
        record.length.store(frame, Ordering::Relaxed);
        let mut start = tail.load(Ordering::Relaxed);
        let mut limit = self.limit;
        let mut outcome = Err(ClaimError::BackPressured);
        let mut withdrawn = false;
        for _ in 0..TRIES {
            let end = start.wrapping_add(frame);
            if end > limit {
                // Pairs with the Release store in `Consumer::release`: the bytes are zero and nobody reads them any more.
                let position = self.control().consumer.position.load(Ordering::Acquire);
                limit = position.wrapping_add(self.region.capacity());
                if end > limit {
                    break;
                }
            }
            if !start.is_multiple_of(8) || start > u64::MAX / 2 {
                outcome = Err(ClaimError::Corrupt);
                break;
            }
            // Release: with the length. Seen by whoever sees the tail that the CAS below makes.
            record.start.store(start | INTENT, Ordering::Release);
            // Release: pairs with the consumer's Acquire load of the tail in `repair`. Nothing is acquired: what makes the bytes ours to write
            // is the consumer's position above.
            match tail.compare_exchange(start, end, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => {
                    // Release, as all stores of the start: whoever acquires it sees the headers of our earlier claims.
                    record.start.store(start | CONFIRMED, Ordering::Release);
                    // And before the first payload byte in the order of the program, which is all that a kill sees: the kernel's barriers come between it and
                    // whoever learns of it. So it is the compiler that must not move anything, as a Release store does not keep what follows behind it.
                    compiler_fence(Ordering::Release);
                    outcome = Ok(start);
                    break;
                }
                Err(now) => {
                    start = now;
                    withdrawn = true;
                }
            }
        }
        if outcome.is_err() {
            record.start.store(NO_CLAIM, Ordering::Release);
        }
        self.withdrawn |= withdrawn;
        self.limit = limit;
        let start = outcome?;
        self.claim = Some(start);
        self.claim_length = length as u32;
        self.claim_end = start + frame;
        Ok(())
    }

    /// Whether a payload of `length` bytes would fit now.
    pub fn has_room(&mut self, length: usize) -> Result<(), ClaimError> {
        let frame = frame_length(length as u64);
        if length as u64 > self.max_payload {
            return Err(ClaimError::TooLong { max: self.max_payload });
        }
        // Relaxed: the claim acquires.
        let position = self.control().consumer.position.load(Ordering::Relaxed);
        let tail = self.control().tail.tail.load(Ordering::Relaxed);
        // The tail may be older than the position; then there is room for sure.
        let fits = tail < position || tail.wrapping_add(frame).wrapping_sub(position) <= self.region.capacity();
        if fits { Ok(()) } else { Err(ClaimError::BackPressured) }
    }

    /// Claims, copies and commits.
    pub fn offer(&mut self, tag: u16, payload: &[u8]) -> Result<u64, ClaimError> {
        self.claim(payload.len())?;
        self.write(0, payload);
        Ok(self.commit(tag))
    }

    /// Copies into the claimed payload at `offset`.
    ///
    /// # Panics
    ///
    /// When it does not fit into what was claimed: a bug of the caller.
    #[inline]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let Some(start) = self.claim else { panic!("write without a claim") };
        assert!(offset + bytes.len() <= self.claim_length as usize);
        // SAFETY: inside the claim, which is this producer's alone.
        unsafe { self.region.write(start + HEADER_LENGTH + offset as u64, bytes) }
    }

    /// The claimed payload, to be read.
    #[cfg(not(loom))]
    #[inline]
    pub fn claimed(&self) -> &[u8] {
        let Some(start) = self.claim else { return &[] };
        // SAFETY: as in `payload`.
        unsafe { core::slice::from_raw_parts(self.region.at(start + HEADER_LENGTH), self.claim_length as usize) }
    }

    /// The claimed payload.
    #[cfg(not(loom))]
    #[inline]
    pub fn payload(&mut self) -> &mut [u8] {
        let Some(start) = self.claim else { return &mut [] };
        // SAFETY: mapped, initialised, inside the claim, which honest producers and consumers do not touch.
        unsafe { core::slice::from_raw_parts_mut(self.region.at(start + HEADER_LENGTH), self.claim_length as usize) }
    }

    /// Commits the claim, and returns the position behind it. Without a claim, nothing happens.
    #[inline]
    pub fn commit(&mut self, tag: u16) -> u64 {
        if let Some(start) = self.claim.take() {
            self.finish(start, frame::committed(self.claim_length, tag, self.slot));
            self.position = self.claim_end;
        }
        self.position
    }

    /// Gives the claim up: the consumer will skip it.
    #[inline]
    pub fn abort(&mut self) {
        if let Some(start) = self.claim.take() {
            self.finish(start, frame::aborted(self.claim_length));
        }
    }

    #[inline]
    fn finish(&mut self, start: u64, header: u64) {
        // Pairs with the Acquire load in `Consumer::read`: who sees the header sees the payload.
        self.region.header(start).store(header, Ordering::Release);
        // Pairs with the Acquire load in `Consumer::repair`: who misses the record sees the header.
        self.record().start.store(NO_CLAIM, Ordering::Release);
    }
}

/// Slots that have a producer. The others' records say nothing, whoever wrote them.
///
/// The consumer shares it with the thread that learns of new producers: a consumer in the middle of a look must know of a producer whose claim it finds.
#[derive(Debug)]
pub struct TakenSlots([AtomicU64; MAX_PRODUCERS.div_ceil(64)]);

impl TakenSlots {
    fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn word(&self, slot: u8) -> (&AtomicU64, u64) {
        (&self.0[usize::from(slot) / 64], 1 << (slot % 64))
    }

    /// The slot will have a producer: to be called before that one learns of it.
    ///
    /// Relaxed: what leads from here to the producer's first claim orders it before that claim's Release CAS on the tail, which the consumer
    /// acquires before it looks here.
    pub fn producer_comes(&self, slot: u8) {
        let (word, bit) = self.word(slot);
        word.fetch_or(bit, Ordering::Relaxed);
    }

    /// Relaxed: a next producer of the slot comes only after the driver was told that it is free.
    fn producer_has_left(&self, slot: u8) {
        let (word, bit) = self.word(slot);
        word.fetch_and(!bit, Ordering::Relaxed);
    }

    fn contains(&self, slot: u8) -> bool {
        let (word, bit) = self.word(slot);
        word.load(Ordering::Relaxed) & bit != 0
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer {
    region: Region,
    control: NonNull<MpscControl>,
    position: u64,
    /// Everything before it is zeroed and given back.
    published: u64,
    max_payload: u64,
    taken: Arc<TakenSlots>,
    /// Producers that have left or died, until all they claimed is behind us.
    gone: Vec<Gone>,
}

#[derive(Debug)]
struct Gone {
    slot: u8,
    /// The tail, as read after the producer's end was known: it claimed nothing behind that.
    end: u64,
}

// SAFETY: as for `Producer`.
unsafe impl Send for Consumer {}

impl Consumer {
    /// The consumer of a ring that nobody has read yet.
    ///
    /// # Safety
    ///
    /// `control` and `region` stay mapped, writable, as long as the consumer lives; both were zero (the identity aside); there is no other consumer.
    pub unsafe fn new(control: NonNull<MpscControl>, region: Region) -> Self {
        let max_payload = max_payload(region.capacity());
        Self { region, control, position: 0, published: 0, max_payload, taken: Arc::new(TakenSlots::new()), gone: Vec::new() }
    }

    fn control(&self) -> &MpscControl {
        // SAFETY: mapped as long as `self` (contract of `new`); all its fields are atomics.
        unsafe { self.control.as_ref() }
    }

    /// Where the next message will begin.
    #[inline]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes claimed by producers and not yet read here. What the producers say: not to be relied on.
    pub fn lag(&self) -> u64 {
        self.told_tail().saturating_sub(self.position)
    }

    /// Up to where the producers say that they have claimed. Not to be relied on.
    pub fn told_tail(&self) -> u64 {
        self.tail().min(u64::MAX / 2)
    }

    fn tail(&self) -> u64 {
        // Pairs with the Release CAS in `Producer::claim`: who sees the tail sees the intents that led to it.
        self.control().tail.tail.load(Ordering::Acquire)
    }

    /// Where to say which slots get a producer.
    pub fn taken_slots(&self) -> &Arc<TakenSlots> {
        &self.taken
    }

    /// Takes note that the producer in `slot` has closed or died: nothing of it follows, and what it left unfinished is repaired.
    pub fn producer_gone(&mut self, slot: u8) {
        // A tail beyond the ring's end is a lie; what an honest producer claimed lies before it.
        let end = self.tail().min(self.published + self.region.capacity());
        self.gone.push(Gone { slot, end });
    }

    /// A slot whose producer is gone and whose last claim has been passed, so that another producer may have it. Each is returned once.
    pub fn take_finished(&mut self) -> Option<u8> {
        let index = self.gone.iter().position(|gone| gone.end <= self.position)?;
        let slot = self.gone.swap_remove(index).slot;
        self.taken.producer_has_left(slot);
        // An intent the dead never carried out must not look like one of the slot's next producer.
        let producer = &self.control().producers[usize::from(slot)];
        // Relaxed: nobody but us reads it before the slot has its next producer, and the driver comes between.
        producer.claim.start.store(NO_CLAIM, Ordering::Relaxed);
        // Nor what it said of itself.
        producer.party.begin(false);
        Some(slot)
    }

    /// Whether [`read`](Self::read) would have something to say: the last look before sleeping. Of a whole ring that was read and not given back, it
    /// would not: [`release`](Self::release) first.
    pub fn ready(&mut self) -> bool {
        if self.has_read_it_all() {
            return false;
        }
        // Relaxed: it says "look", and `read` acquires.
        self.region.header(self.position).load(Ordering::Relaxed) != 0
            || (!self.gone.is_empty() && !matches!(self.repair(), Ok(None)))
    }

    /// The next message, if there is one. It stays the next until [`advance`](Self::advance). After many aborted frames in a row it says `None`
    /// though there may be more; [`ready`](Self::ready) knows better. It also does when a whole ring was read and not [given back](Self::release).
    #[inline]
    pub fn read(&mut self) -> Result<Option<Frame>, ReadError> {
        // So that nobody can keep a consumer in here for ever.
        const ABORTED_IN_A_ROW: usize = 1024;
        for _ in 0..ABORTED_IN_A_ROW {
            if self.has_read_it_all() {
                return Ok(None);
            }
            // Pairs with the Release store in `Producer::finish`.
            let word = self.region.header(self.position).load(Ordering::Acquire);
            match frame::decode(word, self.max_payload) {
                Decoded::Message { length, tag, slot } => {
                    let next = self.position + frame_length(u64::from(length));
                    return Ok(Some(Frame { position: self.position, length, tag, slot, next }));
                }
                Decoded::Empty if self.gone.is_empty() => return Ok(None),
                Decoded::Empty => match self.repair()? {
                    Some(length) => self.position += length,
                    None => return Ok(None),
                },
                Decoded::Aborted { length } => self.position += frame_length(u64::from(length)),
                Decoded::Invalid => return Err(self.corrupt("no producer writes this frame header")),
            }
            self.check_bounds()?;
        }
        Ok(None)
    }

    #[cold]
    fn corrupt(&self, what: &'static str) -> ReadError {
        ReadError::Corrupt { position: self.position, what }
    }

    /// A whole ring was read and not given back: what stands at our position are our own headers, not zeroed yet.
    #[inline]
    fn has_read_it_all(&self) -> bool {
        self.position - self.published >= self.region.capacity()
    }

    /// Between two releases the position moves by one capacity at most, or somebody wrote frames where he had no room.
    #[inline]
    fn check_bounds(&self) -> Result<(), ReadError> {
        if self.position - self.published > self.region.capacity() {
            return Err(self.corrupt("the producers have lapped the consumer"));
        }
        Ok(())
    }

    /// The length of the frame at our position if a producer that is gone owned it and never finished it; 0 if it turns out to be finished; `None` if we must wait.
    ///
    /// At most one claim starts at our position `p`; if `tail > p` exactly one does, and until its header is written its owner's record
    /// starts at p. So if nobody who lives has a record there, the owner is gone. If a record there is confirmed, that is the
    /// owner. Otherwise every record there is the intent of one who died between his intent and his next store; one of them won the CAS, and never wrote
    /// a byte of it, so that all of the claim is zero. Its end `q` is then the smallest end among those records that is a *boundary*: it is the tail, or its header
    /// is written, or a record starts there. The true q is one of these: if it is not the tail, somebody claimed there, and his record stays
    /// until the header is written, and records are read before headers. A smaller q is none of these: it lies inside the untouched claim,
    /// and records start at what was a tail once.
    #[cold]
    fn repair(&mut self) -> Result<Option<u64>, ReadError> {
        let position = self.position;
        let tail = self.tail();
        if tail <= position {
            // A tail only grows, and it was behind what the dead have claimed: nobody would ever fill that.
            let fallen = self.gone.iter().any(|gone| gone.end > position);
            return if fallen { Err(self.corrupt("the tail has moved back")) } else { Ok(None) };
        }
        if tail - self.published > self.region.capacity() {
            return Err(self.corrupt("the tail is beyond the ring's end"));
        }
        // Pairs with the Release stores in `Producer`: the length comes with the intent, and if the record has moved on, the header is there.
        let records: Vec<(u8, u64, u64)> = (0u8..=u8::MAX)
            .zip(&self.control().producers)
            .map(|(slot, producer)| {
                let start = producer.claim.start.load(Ordering::Acquire);
                (slot, start, producer.claim.length.load(Ordering::Relaxed))
            })
            .filter(|&(slot, start, _)| start != NO_CLAIM && self.taken.contains(slot))
            .collect();
        let is_gone = |slot: u8| self.gone.iter().any(|gone| gone.slot == slot);
        // Relaxed, here and below: the records are acquired before, and who finds a header here reads it again.
        if self.region.header(position).load(Ordering::Relaxed) != 0 {
            return Ok(Some(0));
        }
        let here = |start: u64| start == position | INTENT || start == position | CONFIRMED;
        if records.iter().any(|&(slot, start, _)| here(start) && !is_gone(slot)) {
            return Ok(None);
        }
        let mut lengths: Vec<u64> = records.iter().filter(|&&(_, start, _)| here(start)).map(|&(_, _, length)| length).collect();
        if let Some(&(_, _, length)) = records.iter().find(|&&(_, start, _)| start == position | CONFIRMED) {
            lengths = vec![length];
        } else {
            lengths.sort_unstable();
            lengths.retain(|&length| {
                let end = position.wrapping_add(length);
                end == tail
                    || records.iter().any(|&(_, start, _)| start & !CONFIRMED == end)
                    || (length.is_multiple_of(8) && self.region.header(end).load(Ordering::Relaxed) != 0)
            });
        }
        match lengths.first() {
            Some(&length) if length >= HEADER_LENGTH && length.is_multiple_of(8) && length <= tail - position => Ok(Some(length)),
            _ => Err(self.corrupt("a claim that no producer recorded")),
        }
    }

    /// Where the payload of the frame that [`read`](Self::read) has just returned lies.
    #[cfg(not(loom))]
    #[inline]
    pub fn payload(&self, frame: &Frame) -> *const u8 {
        self.region.at(frame.position + HEADER_LENGTH)
    }

    /// The payload of the frame that [`read`](Self::read) has just returned.
    #[cfg(loom)]
    pub fn payload(&self, frame: &Frame) -> Vec<u8> {
        self.region.read(frame.position + HEADER_LENGTH, frame.length as usize)
    }

    /// Goes on behind `frame`. Its bytes are not given back to the producers before the next [`release`](Self::release).
    #[inline]
    pub fn advance(&mut self, frame: &Frame) {
        self.position = frame.next;
    }

    /// Zeroes and gives back what was read if that is enough to bother the producers with (an eighth of the capacity), or in any case if
    /// `all`. `Ok(true)` if the producers were told, so that they may have to be woken.
    #[inline]
    pub fn release(&mut self, all: bool) -> Result<bool, ReadError> {
        let moved = self.position - self.published;
        if moved == 0 || (!all && moved < self.region.capacity() / POSITION_STEPS) {
            return Ok(false);
        }
        self.check_bounds()?;
        // SAFETY: from the position published to ours everything is consumed: no producer owns it before it is published below, and it is no longer than
        // the ring (checked).
        unsafe { self.region.zero(self.published, moved) };
        // Pairs with the Acquire load in `Producer::claim`.
        self.control().consumer.position.store(self.position, Ordering::Release);
        self.published = self.position;
        Ok(true)
    }
}
