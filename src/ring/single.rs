//! The single-producer ring, for one or many readers.
//!
//! Invariant: **the header word at the tail is zero.** A commit sees to it that the header behind the new frame is zero and then publishes
//! the frame's own header with `Release`, so stale bytes of the previous lap are never taken for a header, readers need no write access, and a
//! producer killed at any instruction leaves either the frame or nothing. Mostly that header is zero already: after each commit the producer zeroes some lines ahead, so
//! that they are its own by the time it writes to them and nobody waits for them.
//!
//! The publisher decides where a reader starts (see [`Producer::add_reader`]): it alone knows its tail while it runs.
//!
//! A lossy producer announces how far it will overwrite before it does; a reader copies first and looks at the announcement
//! after, as with a seqlock (Boehm, "Can seqlocks get along with programming language memory models?", 2012).

use core::ptr::NonNull;

use super::atomic::{Ordering, fence};
use super::frame::{self, Decoded, HEADER_LENGTH, LINE, next_position};
use super::layout::{ImageLine, MAX_LINKS, SingleControl};
use super::region::Region;
use super::{ClaimError, Frame, POSITION_STEPS, ReadError};

/// What a producer does when the ring is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Refuses the claim.
    Never,
    /// Overwrites the oldest messages.
    Oldest,
}

/// Largest payload in bytes of a ring of `capacity` bytes.
pub const fn max_payload(capacity: u64, overwrite: Overwrite) -> u64 {
    match overwrite {
        // The frame's own header, and the zero header behind it.
        Overwrite::Never => capacity - 2 * HEADER_LENGTH,
        Overwrite::Oldest => capacity / 2,
    }
}

/// Bytes of a small frame, and as many are kept zeroed behind the tail: more than the lines of a frame of some words and of the header behind it.
const SMALL: u64 = 2 * LINE;

/// Bytes of the largest frame that is zeroed as a whole before it is written.
const LARGEST_ZEROED: u64 = 4096;

/// No frame begins here.
const NO_CLAIM: u64 = u64::MAX;

/// The writing end.
#[derive(Debug)]
pub struct Producer {
    region: Region,
    control: NonNull<SingleControl>,
    /// Where the next frame begins. Its header is zero.
    tail: u64,
    /// All words from the tail to here are zero.
    zeroed: u64,
    /// Where the claimed frame begins. Not the tail: nothing is claimed.
    claim_start: u64,
    claim_end: u64,
    claim_length: u32,
    /// Frames up to here fit without looking at anybody's position. 0 when nobody reads.
    limit: u64,
    max_payload: u64,
    readers: Vec<Reader>,
    /// Readers dropped because their position cannot be true.
    liars: Vec<u64>,
    lossy: Option<Oldest>,
}

/// A lossy ring's oldest frame that is still safe.
#[derive(Debug, Clone, Copy)]
struct Oldest {
    position: u64,
    message: u64,
    announcements: u64,
    /// Messages committed.
    committed: u64,
}

/// A reader, as the producer sees it.
#[derive(Debug)]
struct Reader {
    link: u64,
    line: NonNull<ImageLine>,
    /// The last position seen: the start, until the reader has moved.
    position: u64,
}

// SAFETY: the producer is the only one to use its private fields, and shared memory is accessed as the protocol says from whatever thread.
unsafe impl Send for Producer {}

impl Producer {
    /// The producer of a ring that nobody has written yet.
    ///
    /// # Safety
    ///
    /// `control` and `region` stay mapped, writable, as long as the producer lives; both were zero (the identity aside); there is no
    /// other producer.
    pub unsafe fn new(control: NonNull<SingleControl>, region: Region, overwrite: Overwrite) -> Self {
        let max_payload = max_payload(region.capacity(), overwrite);
        let lossy =
            (overwrite == Overwrite::Oldest).then_some(Oldest { position: 0, message: 0, announcements: 0, committed: 0 });
        Self {
            region,
            control,
            tail: 0,
            zeroed: HEADER_LENGTH,
            claim_start: NO_CLAIM,
            claim_end: 0,
            claim_length: 0,
            limit: 0,
            max_payload,
            readers: Vec::new(),
            liars: Vec::new(),
            lossy,
        }
    }

    fn control(&self) -> &SingleControl {
        // SAFETY: mapped as long as `self` (contract of `new`); all its fields are atomics.
        unsafe { self.control.as_ref() }
    }

    /// Position behind the last committed frame.
    #[inline]
    pub fn position(&self) -> u64 {
        self.tail
    }

    /// Largest payload in bytes.
    #[inline]
    pub fn max_payload(&self) -> u64 {
        self.max_payload
    }

    /// Whether anybody reads.
    #[inline]
    pub fn is_connected(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Takes a reader in: it will see every message committed from now on. The join table says so to the reader.
    ///
    /// # Safety
    ///
    /// `line` stays mapped until the reader is removed, and `slot` is below [`MAX_LINKS`].
    pub unsafe fn add_reader(&mut self, link: u64, slot: usize, line: NonNull<ImageLine>) {
        self.readers.push(Reader { link, line, position: self.tail });
        if self.readers.len() == 1 {
            self.limit = self.initial_limit();
        }
        let entry = &self.control().joins[slot % MAX_LINKS];
        // The slot's former link is over: the driver gives a slot away when nobody reads by it any more. Ours is not taken for valid before its id shows.
        entry.position.store(self.tail, Ordering::Relaxed);
        entry.message.store(self.lossy.map_or(0, |oldest| oldest.committed), Ordering::Relaxed);
        // Pairs with the Acquire in `Consumer::join`.
        entry.link.store(link, Ordering::Release);
    }

    /// Where the frame ends that begins at `position`.
    fn next(&self, position: u64) -> u64 {
        // Own memory, nobody else writes it: the headers of whole frames are what `publish` stored.
        let word = self.region.header(position).load(Ordering::Relaxed);
        next_position(position, u64::from(word as u32))
    }

    /// What fits for sure when the only reader has just begun at the tail.
    fn initial_limit(&self) -> u64 {
        let free_from = self.lossy.as_ref().map_or(self.tail, |oldest| oldest.position);
        free_from + self.region.capacity() - HEADER_LENGTH
    }

    /// Forgets a reader: it no longer holds anything back. `false` if there is no such reader.
    pub fn remove_reader(&mut self, link: u64) -> bool {
        let before = self.readers.len();
        self.readers.retain(|reader| reader.link != link);
        if before != self.readers.len() && (self.readers.is_empty() || self.lossy.is_none()) {
            // Computed anew by the next claim.
            self.limit = 0;
        }
        before != self.readers.len()
    }

    /// A reader whose line said something impossible, and which is no longer waited for. Each is returned once.
    pub fn take_liar(&mut self) -> Option<u64> {
        self.liars.pop()
    }

    /// Claims room for a payload of `length` bytes, which [`write`](Self::write) and [`payload`](Self::payload) then reach. A claim that is not committed is
    /// forgotten by the next one, as if it had been [aborted](Self::abort).
    #[inline]
    pub fn claim(&mut self, length: usize) -> Result<(), ClaimError> {
        let end = self.end_of(length)?;
        self.abort();
        self.claim_start = self.tail;
        self.claim_end = end;
        self.claim_length = length as u32;
        Ok(())
    }

    /// Where a frame with a payload of `length` bytes would end, if there is room for it.
    #[inline(always)]
    fn end_of(&mut self, length: usize) -> Result<u64, ClaimError> {
        if length as u64 > self.max_payload {
            return Err(ClaimError::TooLong { max: self.max_payload });
        }
        let end = next_position(self.tail, length as u64);
        if end > self.limit {
            self.make_room(end)?;
        }
        Ok(end)
    }

    /// Whether a payload of `length` bytes would fit now.
    pub fn has_room(&mut self, length: usize) -> Result<(), ClaimError> {
        self.end_of(length).map(drop)
    }

    /// Moves the limit so that a frame may end at `end`.
    #[cold]
    fn make_room(&mut self, end: u64) -> Result<(), ClaimError> {
        if self.readers.is_empty() {
            self.limit = 0;
            return Err(ClaimError::NotConnected);
        }
        if self.lossy.is_some() {
            self.announce(end);
            return Ok(());
        }
        let tail = self.tail;
        let mut slowest = tail;
        let liars = &mut self.liars;
        self.readers.retain_mut(|reader| {
            // SAFETY: mapped until the reader is removed (contract of `add_reader`).
            let line = unsafe { reader.line.as_ref() };
            // Pairs with the Release stores in `Consumer::join` (the line is ours) and `Consumer::publish_position` (its reads are done).
            if line.link.load(Ordering::Acquire) == reader.link {
                let position = line.position.load(Ordering::Acquire);
                // What is zeroed ahead ends at the limit, which must not lie within a word.
                if position < reader.position || position > tail || !position.is_multiple_of(8) {
                    liars.push(reader.link);
                    return false;
                }
                reader.position = position;
            }
            slowest = slowest.min(reader.position);
            true
        });
        if self.readers.is_empty() {
            self.limit = 0;
            return Err(ClaimError::NotConnected);
        }
        self.limit = slowest + self.region.capacity() - HEADER_LENGTH;
        if end > self.limit { Err(ClaimError::BackPressured) } else { Ok(()) }
    }

    /// Announces that everything will be overwritten that a frame up to `end` needs, and some more, so that this is rare.
    fn announce(&mut self, end: u64) {
        let capacity = self.region.capacity();
        // SAFETY: mapped as long as `self` (contract of `new`). Not through `control()`, which would borrow all of `self`.
        let line = unsafe { &(*self.control.as_ptr()).announcement };
        let Some(Oldest { mut position, mut message, announcements, committed }) = self.lossy else { return };
        if end + HEADER_LENGTH > position + capacity {
            let target = (end + HEADER_LENGTH + capacity / POSITION_STEPS - capacity).min(self.tail);
            while position < target {
                position = self.next(position);
                message += 1;
            }
            let oldest = self.lossy.insert(Oldest { position, message, announcements: announcements + 1, committed });
            let slot = &line.slots[(oldest.announcements & 1) as usize];
            slot.position.store(oldest.position, Ordering::Relaxed);
            slot.message.store(oldest.message, Ordering::Relaxed);
            // Pairs with the Acquire load in `Consumer::check_announcement`: who sees the number sees the slot.
            line.number.store(oldest.announcements, Ordering::Release);
            // Pairs with the Acquire fences there: who sees data that is written from here on (or the next slot) sees the number.
            fence(Ordering::Release);
        }
        self.limit = position + capacity - HEADER_LENGTH;
    }

    /// Claims, copies and commits. Inlined into the caller, where the length often is a constant, and without the fields of a claim: what was just stored there would have
    /// to be loaded again, as a store to the ring might have changed it for all the compiler knows.
    #[inline(always)]
    pub fn offer(&mut self, tag: u16, payload: &[u8]) -> Result<u64, ClaimError> {
        let end = self.end_of(payload.len())?;
        self.abort();
        let start = self.tail;
        // SAFETY: from the tail to the end is the producer's alone, and as long as header and payload.
        unsafe { self.region.write(start + HEADER_LENGTH, payload) };
        self.publish(start, end, payload.len() as u32, tag);
        Ok(end)
    }

    /// Copies into the claimed payload at `offset`.
    ///
    /// # Panics
    ///
    /// When it does not fit into what was claimed: a bug of the caller.
    #[inline]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.claim_length as usize && self.claim_start == self.tail);
        // SAFETY: inside the claim, which is the producer's alone.
        unsafe { self.region.write(self.tail + HEADER_LENGTH + offset as u64, bytes) }
    }

    /// The claimed payload, to be read.
    #[cfg(not(loom))]
    #[inline]
    pub fn claimed(&self) -> &[u8] {
        if self.claim_start != self.tail {
            return &[];
        }
        // SAFETY: as in `payload`.
        unsafe { core::slice::from_raw_parts(self.region.at(self.tail + HEADER_LENGTH), self.claim_length as usize) }
    }

    /// The claimed payload.
    #[cfg(not(loom))]
    #[inline]
    pub fn payload(&mut self) -> &mut [u8] {
        if self.claim_start != self.tail {
            return &mut [];
        }
        // SAFETY: mapped, initialised, inside the claim. Others map it read-only, and honest ones do not read uncommitted bytes.
        unsafe { core::slice::from_raw_parts_mut(self.region.at(self.tail + HEADER_LENGTH), self.claim_length as usize) }
    }

    /// Commits the claim, and returns the position behind it. Without a claim, nothing happens.
    #[inline]
    pub fn commit(&mut self, tag: u16) -> u64 {
        if self.claim_start == self.tail {
            self.publish(self.claim_start, self.claim_end, self.claim_length, tag);
        }
        self.tail
    }

    /// Makes what lies between two positions, the tail and the next, a message.
    #[inline(always)]
    fn publish(&mut self, start: u64, end: u64, length: u32, tag: u16) {
        if end >= self.zeroed {
            // Published by the Release below.
            self.region.header(end).store(0, Ordering::Relaxed);
            self.zeroed = end + HEADER_LENGTH;
        }
        // Pairs with the Acquire load in `Consumer::read`: who sees the header sees the payload and the zero behind it.
        self.region.header(start).store(frame::committed(length, tag, 0), Ordering::Release);
        self.tail = end;
        if let Some(oldest) = &mut self.lossy {
            oldest.committed += 1;
        }
        let frame = end - start;
        if self.zeroed < end + frame.max(SMALL) {
            self.zero_ahead(frame);
        }
    }

    /// Zeroes what the next frame, of the same size perhaps, will lie in, as far as nobody reads there. Such lines are still in the readers' caches, and a commit that has to
    /// fetch them makes its reader wait for that; here nobody waits.
    #[inline(always)]
    fn zero_ahead(&mut self, frame: u64) {
        // For lag and pace only; orders nothing.
        self.control().tail.tail.store(self.tail, Ordering::Relaxed);
        if frame > SMALL {
            return self.zero_for_large(frame);
        }
        let limit = self.limit + HEADER_LENGTH;
        if self.zeroed.is_multiple_of(LINE) && self.zeroed + SMALL <= limit {
            // Between small frames it is nearly always this, of a length that is known when compiling.
            // SAFETY: between the tail, whose header `zeroed` is behind, and the limit is the producer's alone; and nothing is claimed.
            unsafe { self.region.zero(self.zeroed, SMALL) };
            self.zeroed += SMALL;
        } else {
            self.zero_up_to(self.tail + 2 * SMALL);
        }
    }

    /// To zero all of the next frame costs about as much as to write it. That pays if a reader waits for it, and does not in a stream.
    #[inline(never)]
    fn zero_for_large(&mut self, frame: u64) {
        // One that waits has told of all but the last, or will do so when it looks again.
        let waits_from = self.tail.saturating_sub(3 * frame);
        // Relaxed, and not asked whose position it is: it only decides how much is zeroed, never how far one may go.
        // SAFETY: mapped until the reader is removed (contract of `add_reader`).
        let position = |reader: &Reader| unsafe { reader.line.as_ref() }.position.load(Ordering::Relaxed);
        let is_awaited = frame <= LARGEST_ZEROED && self.readers.iter().any(|reader| position(reader) >= waits_from);
        self.zero_up_to(self.tail + 2 * SMALL + if is_awaited { frame } else { 0 });
    }

    /// Zeroes whole lines up to a position, or what there is room for.
    #[inline(never)]
    fn zero_up_to(&mut self, to: u64) {
        let to = (to & !(LINE - 1)).min(self.limit + HEADER_LENGTH);
        if let Some(length @ 1..) = to.checked_sub(self.zeroed) {
            // SAFETY: as in `zero_ahead`.
            unsafe { self.region.zero(self.zeroed, length) };
            self.zeroed = to;
        }
    }

    /// Gives the claim up. Readers never knew of it.
    #[inline]
    pub fn abort(&mut self) {
        if self.claim_start == self.tail {
            self.claim_start = NO_CLAIM;
            // What was written into it stays there.
            self.zeroed = self.tail + HEADER_LENGTH;
        }
    }
}

/// A reading end.
#[derive(Debug)]
pub struct Consumer {
    region: Region,
    control: NonNull<SingleControl>,
    line: NonNull<ImageLine>,
    link: u64,
    slot: usize,
    joined: bool,
    position: u64,
    /// The position the producer knows.
    published: u64,
    /// Nothing is read from here on: see [`producer_gone`](Self::producer_gone).
    end: u64,
    /// Up to here reading takes no more than the look at a header: the end, once it has joined, and unless it is lossy.
    plain_end: u64,
    /// From here on it is time to publish the position.
    release_at: u64,
    max_payload: u64,
    lossy: Option<Lossy>,
}

/// What a reader of a lossy ring needs besides.
#[derive(Debug, Default)]
struct Lossy {
    /// Messages before `position`.
    message: u64,
    /// The announcement known, and what it said.
    number: u64,
    oldest_position: u64,
    oldest_message: u64,
    /// The private copy of the message.
    copy: Vec<u64>,
}

// SAFETY: as for `Producer`.
unsafe impl Send for Consumer {}

impl Consumer {
    /// The reader at the end of `link`. It starts as soon as the producer has taken it in.
    ///
    /// # Safety
    ///
    /// `control` and `region` stay mapped as long as the consumer lives, and so does `line`, which nobody else writes. `slot` is below [`MAX_LINKS`].
    pub unsafe fn new(
        control: NonNull<SingleControl>,
        region: Region,
        line: NonNull<ImageLine>,
        link: u64,
        slot: usize,
        overwrite: Overwrite,
    ) -> Self {
        let max_payload = max_payload(region.capacity(), overwrite);
        let lossy = (overwrite == Overwrite::Oldest).then(Lossy::default);
        Self {
            region,
            control,
            line,
            link,
            slot,
            joined: false,
            position: 0,
            published: 0,
            end: u64::MAX,
            plain_end: 0,
            release_at: u64::MAX,
            max_payload,
            lossy,
        }
    }

    fn control(&self) -> &SingleControl {
        // SAFETY: mapped as long as `self` (contract of `new`); all its fields are atomics.
        unsafe { self.control.as_ref() }
    }

    fn line(&self) -> &ImageLine {
        // SAFETY: mapped as long as `self` (contract of `new`); all its fields are atomics.
        unsafe { self.line.as_ref() }
    }

    /// Where the next message will begin.
    #[inline]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes committed by the producer and not yet read here. What the producer says: not to be relied on.
    pub fn lag(&self) -> u64 {
        if !self.joined {
            return 0;
        }
        // As many frames may have followed as fit into what it keeps zeroed. Relaxed: nothing is read but headers, and one that is too old or too new makes the number wrong by no more
        // than that.
        const MOST: u64 = 2 * SMALL + LARGEST_ZEROED;
        let told = self.told_tail().max(self.position) & !(HEADER_LENGTH - 1);
        let mut tail = told;
        while tail - told < MOST {
            let word = self.region.header(tail).load(Ordering::Relaxed);
            let Decoded::Message { length, .. } = frame::decode(word, self.max_payload) else { break };
            tail = next_position(tail, u64::from(length));
        }
        tail - self.position
    }

    /// Where the producer's tail is, or was some frames ago: it tells that now and then. Not to be relied on.
    pub fn told_tail(&self) -> u64 {
        // Relaxed, as the store in `Producer::zero_ahead`: nothing is read on the strength of it.
        self.control().tail.tail.load(Ordering::Relaxed).min(u64::MAX / 2)
    }

    /// Starts where the producer says, once it has said so.
    #[cold]
    fn join(&mut self) -> Result<bool, ReadError> {
        let entry = &self.control().joins[self.slot % MAX_LINKS];
        // Pairs with the Release store in `Producer::add_reader`.
        if entry.link.load(Ordering::Acquire) != self.link {
            return Ok(false);
        }
        let (position, message) = (entry.position.load(Ordering::Relaxed), entry.message.load(Ordering::Relaxed));
        // The upper bound keeps position arithmetic from wrapping: nobody gets there in a million years.
        if !position.is_multiple_of(8) || position > u64::MAX / 2 {
            return Err(ReadError::Corrupt { position, what: "the publisher's start position is impossible" });
        }
        self.position = position;
        self.has_published(position);
        match &mut self.lossy {
            Some(lossy) => lossy.message = message,
            None => self.plain_end = self.end,
        }
        self.line().position.store(position, Ordering::Relaxed);
        // Pairs with the Acquire load in `Producer::make_room`: who sees the id sees our position, not that of the line's former link.
        self.line().link.store(self.link, Ordering::Release);
        self.joined = true;
        Ok(true)
    }

    /// Takes note that the producer has closed or died. What it has committed lies within a ring from here (or, if it was lossy, from what it last said it would keep);
    /// a hostile one may have left frames that follow each other in a circle, which would never end.
    pub fn producer_gone(&mut self) {
        if !self.joined && matches!(self.join(), Ok(false)) {
            // It has never taken us in.
            self.end = self.position;
            return;
        }
        let capacity = self.region.capacity();
        let from = if self.lossy.is_some() {
            let line = &self.control().announcement;
            // Relaxed: whoever told of the end has told of all before it. If the producer goes on nevertheless, the slot may be nonsense; then so is the end.
            let number = line.number.load(Ordering::Relaxed);
            let oldest = line.slots[(number & 1) as usize].position.load(Ordering::Relaxed);
            oldest.min(u64::MAX / 2).max(self.position)
        } else {
            if self.joined {
                self.plain_end = self.position + capacity;
            }
            self.position
        };
        self.end = from + capacity;
    }

    /// Whether [`read`](Self::read) would have something to say: the last look before sleeping. Relaxed: it says "look", and `read` acquires.
    pub fn ready(&mut self) -> bool {
        if self.position >= self.end {
            return false;
        }
        if !self.joined && !matches!(self.join(), Ok(true)) {
            // An error is worth waking for.
            return self.control().joins[self.slot % MAX_LINKS].link.load(Ordering::Relaxed) == self.link;
        }
        if self.region.header(self.position).load(Ordering::Relaxed) != 0 {
            return true;
        }
        // Lapped, and what lies at the position by chance is zero.
        self.lossy.as_ref().is_some_and(|lossy| self.control().announcement.number.load(Ordering::Relaxed) != lossy.number)
    }

    /// The next message, if there is one. It stays the next until [`advance`](Self::advance).
    #[inline]
    pub fn read(&mut self) -> Result<Option<Frame>, ReadError> {
        if self.position >= self.plain_end {
            return self.read_specially();
        }
        // Pairs with the Release store in `Producer::publish`.
        let word = self.region.header(self.position).load(Ordering::Acquire);
        self.decode(word)
    }

    /// At the end, before the producer has taken it in, or lossy.
    #[cold]
    fn read_specially(&mut self) -> Result<Option<Frame>, ReadError> {
        if self.position >= self.end || (!self.joined && !self.join()?) {
            return Ok(None);
        }
        if self.lossy.is_some() {
            return self.read_lossy();
        }
        self.read()
    }

    #[inline]
    fn decode(&self, word: u64) -> Result<Option<Frame>, ReadError> {
        match frame::decode(word, self.max_payload) {
            Decoded::Message { length, tag, slot } => {
                let next = next_position(self.position, u64::from(length));
                Ok(Some(Frame { position: self.position, length, tag, slot, next }))
            }
            Decoded::Empty => Ok(None),
            Decoded::Aborted { .. } | Decoded::Invalid => Err(self.corrupt("no publisher writes this frame header")),
        }
    }

    #[cold]
    fn corrupt(&self, what: &'static str) -> ReadError {
        ReadError::Corrupt { position: self.position, what }
    }

    /// Copies the next message, then checks that it was not overwritten meanwhile.
    fn read_lossy(&mut self) -> Result<Option<Frame>, ReadError> {
        // The header is believed only once the announcement was checked; until then its length merely bounds a copy.
        let word = self.region.header(self.position).load(Ordering::Acquire);
        if let (Decoded::Message { length, .. }, Some(lossy)) = (frame::decode(word, self.max_payload), &mut self.lossy) {
            lossy.copy.resize((length as usize).div_ceil(8), 0);
            self.region.load_words(self.position + HEADER_LENGTH, &mut lossy.copy);
        }
        // Pairs with the Release fence in `Producer::announce`: if any word above is from a later lap, the number below is the later one.
        fence(Ordering::Acquire);
        if !self.check_announcement()? {
            return Ok(None);
        }
        self.decode(word)
    }

    /// Whether the position was still good. An announcement that keeps changing while it is read is a "not now".
    fn check_announcement(&mut self) -> Result<bool, ReadError> {
        // Two in the models, so that they get to the end of the loop.
        const TRIES: usize = if cfg!(loom) { 2 } else { 8 };
        // SAFETY: mapped as long as `self` (contract of `new`). Not through `control()`, which would borrow all of `self`.
        let line = unsafe { &(*self.control.as_ptr()).announcement };
        let position = self.position;
        let Some(lossy) = &mut self.lossy else { return Ok(true) };
        for _ in 0..TRIES {
            // Pairs with the Release store in `Producer::announce`.
            let number = line.number.load(Ordering::Acquire);
            if number == lossy.number {
                break;
            }
            let slot = &line.slots[(number & 1) as usize];
            let (oldest_position, oldest_message) = (slot.position.load(Ordering::Relaxed), slot.message.load(Ordering::Relaxed));
            // Pairs with the Release fence there: values of the announcement after the next come with its predecessor's number.
            fence(Ordering::Acquire);
            if line.number.load(Ordering::Relaxed) != number {
                continue;
            }
            if oldest_position < lossy.oldest_position
                || oldest_position > u64::MAX / 2
                || !oldest_position.is_multiple_of(8)
                || oldest_message < lossy.oldest_message
            {
                return Err(ReadError::Corrupt { position, what: "the publisher's announcement is impossible" });
            }
            (lossy.number, lossy.oldest_position, lossy.oldest_message) = (number, oldest_position, oldest_message);
        }
        if line.number.load(Ordering::Relaxed) != lossy.number {
            return Ok(false);
        }
        if position >= lossy.oldest_position {
            return Ok(true);
        }
        let Some(messages) = lossy.oldest_message.checked_sub(lossy.message).filter(|&messages| messages > 0) else {
            return Err(ReadError::Corrupt { position, what: "the publisher's count of messages is impossible" });
        };
        lossy.message = lossy.oldest_message;
        self.position = lossy.oldest_position;
        Err(ReadError::Lost { messages })
    }

    /// Where the payload of the frame that [`read`](Self::read) has just returned lies: in the ring, or in the private copy of a lossy ring.
    #[cfg(not(loom))]
    #[inline]
    pub fn payload(&self, frame: &Frame) -> *const u8 {
        match &self.lossy {
            None => self.region.at(frame.position + HEADER_LENGTH),
            Some(lossy) => lossy.copy.as_ptr().cast(),
        }
    }

    /// The payload of the frame that [`read`](Self::read) has just returned.
    #[cfg(loom)]
    pub fn payload(&self, frame: &Frame) -> Vec<u8> {
        match &self.lossy {
            None => self.region.read(frame.position + HEADER_LENGTH, frame.length as usize),
            Some(lossy) => {
                let mut bytes: Vec<u8> = lossy.copy.iter().flat_map(|word| word.to_le_bytes()).collect();
                bytes.truncate(frame.length as usize);
                bytes
            }
        }
    }

    /// Goes on behind `frame`. Its bytes are not given back to the producer before the next [`release`](Self::release).
    #[inline]
    pub fn advance(&mut self, frame: &Frame) {
        self.position = frame.next;
        if let Some(lossy) = &mut self.lossy {
            // Wraps if a hostile publisher began with a number near the end.
            lossy.message = lossy.message.wrapping_add(1);
        }
    }

    /// Gives back what was read if that is enough to bother the producer with (an eighth of the capacity), or in any case if `all`. `true` if
    /// the producer was told, so that it may have to be woken.
    #[inline]
    pub fn release(&mut self, all: bool) -> bool {
        if self.position < self.release_at && (!all || self.position == self.published) {
            return false;
        }
        // Pairs with the Acquire load in `Producer::make_room`: our reads are done before it overwrites.
        self.line().position.store(self.position, Ordering::Release);
        self.has_published(self.position);
        true
    }

    fn has_published(&mut self, position: u64) {
        self.published = position;
        self.release_at = position + self.region.capacity() / POSITION_STEPS;
    }
}
