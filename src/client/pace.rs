//! When a reader that has caught up with a fast stream looks again.
//!
//! A reader that reads on until there is nothing more finds the next message in the very line that its publisher writes to. Where messages come one by one that is as fast
//! as can be. In a stream it makes both slow: each line travels several times, and the publisher waits for its own. So of a stream a reader reads as much as there was when it came, not what
//! has come since; then it *stays away* for some microseconds, in which the next portion gathers, and so never gets near the publisher. It spins meanwhile: a poll must not say that
//! there is nothing when there is.
//!
//! Whether that is better, and how long to stay away, is found by trial: what counts is how fast the publisher's tail moves, which it does as fast without staying away if it is slow enough by itself, or
//! waits for answers. How far to trust the publisher in this does not matter, as nothing but time depends on it, and of that little.

use std::time::{Duration, Instant};

/// How long to stay away. Where a line goes from core to core in a hundred nanoseconds the first is enough; where it takes several, more is gained by the next.
const AWAY: [Duration; 3] = [Duration::ZERO, Duration::from_micros(4), Duration::from_micros(16)];
/// What must gather meanwhile: so many messages (of the size of the last), or two large ones of so many bytes together. Else it is no stream, as is known after the first time. One alone may
/// be the answer to what was sent meanwhile.
const MESSAGES: u64 = 16;
const BYTES: u64 = 8 << 10;
/// So often in a row a stream may have stopped before it is taken for none any more.
const STOPS: u32 = 3;
/// A trial is made of so many bytes at least, and so many looks.
const WINDOW: u64 = 128 << 10;
const LOOKS: u64 = 4;
/// A reader that is no further behind (or two messages) reads as it comes: what it reads of a backlog says nothing.
const NEAR: u64 = 8 << 10;
/// A measurement of a stream that has become slow ends after this time, whatever came.
const LONG: Duration = Duration::from_millis(1);
/// Bytes from one trial to the next: at first, after one that was a success, and at most. After each that was in vain there are twice as many. To try to stay away costs
/// the time away; to try to read as it comes costs much more.
const FIRST_HOLD: u64 = WINDOW;
const NEXT_HOLD: u64 = 2 << 20;
const LAST_HOLD: [u64; 3] = [16 << 20, 1 << 30, 1 << 30];
/// The rate is measured so many times from one trial to the next.
const WINDOWS: u64 = 16;
/// Bytes a nanosecond (GB/s) below which nothing is tried: some million small messages a second.
const SLOW: f64 = 0.25;
/// Bytes a nanosecond beyond which hardly anybody publishes. With that, what may not be lost decides how long to stay away at most: a rate that was measured near the publisher says nothing of it.
const FASTEST: u64 = 16;
/// By how much the rate must grow for it to be worth to stay away longer, and what it may lose by staying away for less: latency counts, too.
const GAIN: f64 = 1.1;
const LOSS: f64 = 0.95;
/// If it falls or rises so far by itself, it is time for another trial.
const CHANGE: f64 = 0.7;

/// The pace of one ring's reader.
#[derive(Debug)]
pub(super) struct Pace {
    /// How many of the times away may be tried.
    levels: usize,
    /// Index of what has proved best so far.
    best: usize,
    /// Index of how long it stays away now: another than the best while that is tried.
    level: usize,
    /// The next trial is of staying away for longer, not shorter.
    tries_longer: bool,
    /// Bytes from a trial to the next, and how many there were since the last.
    hold: u64,
    held: u64,
    /// Position of the reader at which it is to look again.
    look_at: u64,
    /// Where the publisher was when the present measurement began, and when that was.
    began: Option<(u64, Instant)>,
    /// How often it has looked since.
    looks: u64,
    /// Of the best, when another was tried last, or when it proved best.
    rate: f64,
    /// It is away, until then.
    away: Option<Instant>,
    /// Where the reader was when it came back last.
    back_at: u64,
    /// How often in a row nothing gathered.
    stops: u32,
    /// The stream has stopped: the next messages are read as they come.
    has_stopped: bool,
}

/// Where reader and publisher are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// The reader's position.
    pub(super) position: u64,
    /// Where the last message began that it read.
    pub(super) last: u64,
    /// Where the publisher says that it is.
    pub(super) tail: u64,
}

impl Pace {
    /// Of a ring in which so many bytes may gather without harm.
    pub(super) fn new(most: u64) -> Self {
        Self {
            levels: AWAY.iter().filter(|away| away.as_nanos() as u64 * FASTEST <= most).count(),
            best: 0,
            level: 0,
            tries_longer: true,
            hold: FIRST_HOLD,
            held: 0,
            look_at: 0,
            began: None,
            looks: 0,
            rate: 0.0,
            away: None,
            back_at: 0,
            stops: 0,
            has_stopped: false,
        }
    }

    /// Position of the reader at which it is to [look](Self::look).
    #[inline]
    pub(super) fn look_at(&self) -> u64 {
        self.look_at
    }

    /// Whether it is to look when it finds nothing, too.
    #[inline]
    pub(super) fn is_stream(&self) -> bool {
        self.level > 0 && !self.has_stopped
    }

    /// Whether it is away: the next that it has to do is to [come back](Self::come_back).
    pub(super) fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// The reader has read what there was when it came. Until when to stay away, if at all: not if it may not spin.
    pub(super) fn look(&mut self, progress: Progress, now: Instant, may_spin: bool) -> Option<Instant> {
        if !may_spin {
            self.away = None;
            self.follow(progress, now);
            return None;
        }
        if self.away.is_some() {
            return self.away;
        }
        let Progress { position, last, tail } = progress;
        let near = NEAR.max(position.saturating_sub(last).saturating_mul(2));
        let is_behind = self.level == 0 && tail.saturating_sub(position) > near;
        let is_later = |(from, _)| from <= tail;
        self.began = self.began.filter(|&began| !is_behind && !self.has_stopped && is_later(began));
        self.has_stopped = false;
        let (from, since) = self.began.unwrap_or((tail, now));
        let bytes = tail - from;
        let rate = bytes as f64 / (now - since).as_nanos() as f64;
        self.looks += 1;
        let is_over = match self.is_trial() {
            // As soon as it is clear: most of what trials cost is that of reading a stream as it comes.
            true if rate < self.rate / 2.0 => self.looks > 1,
            true => bytes >= WINDOW && self.looks >= LOOKS,
            false => bytes.saturating_add(near) >= self.window() || (self.looks >= LOOKS && now - since > LONG),
        };
        if is_over {
            self.judge(bytes, rate);
        }
        if is_over || self.began.is_none() {
            (self.began, self.looks) = (Some((tail, now)), 0);
        }
        if self.level == 0 {
            self.look_at = position.saturating_add(if self.is_trial() { WINDOW / LOOKS } else { self.window() });
            return None;
        }
        self.away = Some(now + AWAY[self.level]);
        self.away
    }

    fn is_trial(&self) -> bool {
        self.level != self.best
    }

    /// Bytes of a measurement of what is best.
    fn window(&self) -> u64 {
        WINDOW.max(self.hold / WINDOWS)
    }

    /// So many bytes came at this rate.
    fn judge(&mut self, bytes: u64, rate: f64) {
        if self.is_trial() {
            let is_better = rate > self.rate * if self.level > self.best { GAIN } else { LOSS };
            if is_better {
                (self.best, self.rate, self.hold) = (self.level, rate, NEXT_HOLD);
            } else {
                self.level = self.best;
                self.hold = (self.hold * 2).min(LAST_HOLD[self.best]);
                self.tries_longer = !self.tries_longer;
            }
            self.held = 0;
            return;
        }
        self.held = self.held.saturating_add(bytes);
        let has_changed = rate < self.rate * CHANGE || rate * CHANGE > self.rate;
        if self.held >= self.hold || has_changed {
            (self.rate, self.held) = (rate, 0);
            self.try_another();
        }
    }

    fn try_another(&mut self) {
        let longer = (self.best + 1 < self.levels && self.rate >= SLOW).then_some(self.best + 1);
        let shorter = self.best.checked_sub(1);
        let another = if self.tries_longer { longer.or(shorter) } else { shorter.or(longer) };
        self.level = another.unwrap_or(self.best);
        if self.best == 0 {
            // The first time decides.
            self.stops = STOPS - 1;
        }
    }

    /// The reader comes back, as the time is over, or early, as there is something else to do: then it stays what it is until something has gathered, or the time is over.
    pub(super) fn come_back(&mut self, progress: Progress, now: Instant) {
        let Progress { position, last, tail } = progress;
        let gathered = tail.saturating_sub(position);
        let is_early = self.away.is_some_and(|until| now < until);
        if is_early && gathered == 0 {
            return;
        }
        self.away = None;
        // What is said to have gathered and cannot be read has not: claims that are not committed, or a lie.
        let has_read = std::mem::replace(&mut self.back_at, position) != position;
        let message = position.saturating_sub(last);
        let is_stream = has_read && gathered >= BYTES.min(message.saturating_mul(MESSAGES)).max(message.saturating_mul(2));
        if is_stream {
            self.stops = 0;
        }
        if is_stream || is_early {
            self.look_at = position.saturating_add(gathered);
            return;
        }
        self.stops += 1;
        if self.stops < STOPS {
            // It goes on soon, perhaps.
            self.has_stopped = true;
            self.look_at = position.saturating_add(BYTES);
            return;
        }
        self.hold = if self.best == 0 { (self.hold * 2).min(LAST_HOLD[0]) } else { FIRST_HOLD };
        self.follow(progress, now);
    }

    /// Reads all as it comes.
    fn follow(&mut self, progress: Progress, now: Instant) {
        (self.best, self.level, self.tries_longer) = (0, 0, true);
        (self.held, self.looks) = (0, 0);
        self.has_stopped = false;
        self.began = Some((progress.tail, now));
        self.look_at = progress.position.saturating_add(self.window());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A publisher as fast as it can, in bytes a nanosecond.
    struct Publisher {
        /// While its reader reads as it comes.
        followed: f64,
        /// While it is stayed away from for a time of [`AWAY`], on average with the time in which the reader reads what has gathered.
        left_alone: [f64; 3],
    }

    /// A reader at work, by a clock of its own.
    struct Reader {
        pace: Pace,
        progress: Progress,
        now: Instant,
        /// How often it stayed away.
        times: u64,
        /// Bytes that it read in a stream.
        in_stream: u64,
    }

    const MESSAGE: u64 = 64;

    impl Reader {
        fn new() -> Self {
            Self::of_ring(u64::MAX)
        }

        fn of_ring(most: u64) -> Self {
            let progress = Progress { position: 0, last: 0, tail: 0 };
            Self { pace: Pace::new(most), progress, now: Instant::now(), times: 0, in_stream: 0 }
        }

        fn pass(&mut self, nanoseconds: f64) {
            self.now += Duration::from_nanos(nanoseconds as u64);
        }

        /// Reads up to a position.
        fn reads(&mut self, to: u64) {
            self.progress.position = to;
            self.progress.last = to - MESSAGE;
            self.progress.tail = self.progress.tail.max(to);
        }

        /// Reads at least so many bytes.
        fn streams(&mut self, publisher: &Publisher, bytes: u64) {
            let end = self.progress.position + bytes;
            while self.progress.position < end {
                let from = self.progress.position;
                let is_due = from >= self.pace.look_at() || self.pace.is_stream();
                match if is_due { self.pace.look(self.progress, self.now, true) } else { None } {
                    None => {
                        let to = self.pace.look_at().min(end).max(from + MESSAGE);
                        self.pass((to - from) as f64 / publisher.followed);
                        self.reads(to);
                    }
                    Some(until) => {
                        let rate = publisher.left_alone[self.pace.level];
                        let away = until - self.now;
                        self.progress.tail += (rate * away.as_nanos() as f64) as u64 / MESSAGE * MESSAGE;
                        self.now = until;
                        self.times += 1;
                        self.pace.come_back(self.progress, self.now);
                        if self.pace.is_stream() {
                            self.reads(self.pace.look_at().max(from + MESSAGE));
                            self.in_stream += self.progress.position - from;
                        }
                    }
                }
            }
        }

        /// Answers so many messages, each of which comes when the one before is answered.
        fn answers(&mut self, messages: u64) {
            for _ in 0..messages {
                self.pass(200.0);
                self.reads(self.progress.position + MESSAGE);
                let is_due = self.progress.position >= self.pace.look_at() || self.pace.is_stream();
                let until = if is_due { self.pace.look(self.progress, self.now, true) } else { None };
                if let Some(until) = until {
                    self.now = until;
                    self.times += 1;
                    self.pace.come_back(self.progress, self.now);
                }
            }
        }
    }

    const FAST: Publisher = Publisher { followed: 1.0, left_alone: [1.0, 7.0, 7.1] };

    #[test]
    fn a_stream_is_stayed_away_from() {
        let mut reader = Reader::new();
        reader.streams(&FAST, 1 << 30);
        assert_eq!(reader.pace.best, 1, "no longer than is worth it");
        assert!(reader.in_stream as f64 > 0.99 * (1u64 << 30) as f64, "{}", reader.in_stream);
    }

    #[test]
    fn it_is_stayed_away_from_for_longer_if_that_is_worth_it_and_for_less_if_it_is_not_any_more() {
        let mut reader = Reader::new();
        reader.streams(&Publisher { followed: 0.5, left_alone: [0.5, 1.0, 2.0] }, 16 << 20);
        assert_eq!(reader.pace.best, 2);
        reader.streams(&FAST, 1 << 30);
        assert_eq!(reader.pace.best, 1);
    }

    #[test]
    fn a_stream_that_is_no_faster_without_its_reader_is_read_as_it_comes() {
        let mut reader = Reader::new();
        reader.streams(&Publisher { followed: 0.6, left_alone: [0.6; 3] }, 1 << 30);
        assert_eq!(reader.pace.best, 0);
        assert!(reader.in_stream < 1 << 25, "{}", reader.in_stream);
    }

    #[test]
    fn a_slow_stream_is_never_stayed_away_from() {
        let mut reader = Reader::new();
        reader.streams(&Publisher { followed: 0.2, left_alone: [9.0; 3] }, 1 << 30);
        assert_eq!(reader.times, 0);
    }

    #[test]
    fn an_exchange_of_messages_is_taken_for_a_stream_very_seldom() {
        let mut reader = Reader::new();
        reader.answers(10_000_000);
        assert!((5..100).contains(&reader.times), "{}", reader.times);
    }

    #[test]
    fn when_a_stream_ends_so_does_the_staying_away() {
        let mut reader = Reader::new();
        reader.streams(&FAST, 8 << 20);
        assert!(reader.pace.is_stream());
        let times = reader.times;
        reader.answers(1000);
        assert_eq!(reader.times, times + u64::from(STOPS));
        reader.streams(&FAST, 8 << 20);
        assert!(reader.pace.is_stream(), "and begins again");
    }

    /// Each time it stops it costs one time away, and what is read of the next burst until that is tried again.
    #[test]
    fn a_stream_of_bursts_is_a_stream() {
        let mut reader = Reader::new();
        for _ in 0..1000 {
            reader.streams(&FAST, 200 << 10);
            if reader.pace.is_stream() {
                reader.now = reader.pace.look(reader.progress, reader.now, true).unwrap_or(reader.now);
                reader.pace.come_back(reader.progress, reader.now);
                assert!(!reader.pace.is_stream(), "it has stopped");
            }
            reader.pass(50_000.0);
        }
        assert!(reader.in_stream > 900 * (200 << 10), "{}", reader.in_stream);
    }

    #[test]
    fn who_comes_back_too_early_has_learnt_nothing() {
        let mut reader = Reader::new();
        reader.streams(&FAST, 8 << 20);
        let until = reader.pace.look(reader.progress, reader.now, true);
        reader.pace.come_back(reader.progress, reader.now);
        assert_eq!(reader.pace.look(reader.progress, reader.now, true), until, "it is still away");
        reader.progress.tail += MESSAGE;
        reader.pace.come_back(reader.progress, reader.now);
        assert!(reader.pace.is_stream() && !reader.pace.is_away());
        assert_eq!(reader.pace.look_at(), reader.progress.tail);
    }

    /// What a reader of a backlog has to wait for is not the publisher.
    #[test]
    fn what_is_read_of_a_backlog_proves_nothing() {
        let mut reader = Reader::new();
        reader.progress.tail = 1 << 30;
        for _ in 0..1000 {
            reader.pass(1000.0);
            reader.progress.tail += 7000;
            reader.progress.position += WINDOW;
            assert_eq!(reader.pace.look(reader.progress, reader.now, true), None);
        }
    }

    #[test]
    fn who_may_not_spin_does_not() {
        let mut reader = Reader::new();
        for _ in 0..1000 {
            reader.pass(1000.0);
            reader.reads(reader.progress.position + WINDOW);
            assert_eq!(reader.pace.look(reader.progress, reader.now, false), None);
        }
    }

    #[test]
    fn a_lossy_ring_does_not_go_round_meanwhile() {
        for (most, longest) in [(4 << 10, 0), (16 << 10, 0), (64 << 10, 1), (1 << 20, 2)] {
            let mut reader = Reader::of_ring(most);
            reader.streams(&Publisher { followed: 0.5, left_alone: [0.5, 8.0, 12.0] }, 1 << 30);
            assert_eq!(reader.pace.best, longest, "{most}");
            assert_eq!(reader.times > 0, longest > 0, "{most}");
        }
    }

    #[test]
    fn what_has_gathered_but_cannot_be_read_is_no_stream() {
        let mut reader = Reader::new();
        reader.streams(&FAST, 8 << 20);
        reader.progress.tail = reader.progress.position + (1 << 20);
        let mut times = 0;
        while reader.pace.is_stream() {
            reader.now = reader.pace.look(reader.progress, reader.now, true).unwrap();
            reader.pace.come_back(reader.progress, reader.now);
            times += 1;
            assert!(times < 10, "it stays away for ever");
        }
    }

    /// Found by measuring: two that exchanged messages of 16 KiB found one another's answers when they came back, took that for streams, and tried to stay away longer and shorter at the same times.
    #[test]
    fn one_large_message_is_no_stream() {
        const LARGE: u64 = 16 << 10;
        let mut reader = Reader::new();
        for _ in 0..100_000 {
            reader.pass(3000.0);
            reader.progress.last = reader.progress.position;
            reader.progress.position += LARGE;
            reader.progress.tail = reader.progress.position;
            let is_due = reader.progress.position >= reader.pace.look_at() || reader.pace.is_stream();
            let until = if is_due { reader.pace.look(reader.progress, reader.now, true) } else { None };
            if let Some(until) = until {
                reader.now = until;
                reader.times += 1;
                reader.progress.tail += LARGE;
                reader.pace.come_back(reader.progress, reader.now);
            }
        }
        assert!(reader.times < 100, "{}", reader.times);
    }

    /// Others have messages all the time.
    #[test]
    fn a_stream_that_has_stopped_is_known_to_have_though_it_is_come_back_to_early() {
        let mut reader = Reader::new();
        reader.streams(&FAST, 8 << 20);
        let mut times = 0;
        while reader.pace.is_stream() {
            assert!(reader.pace.look(reader.progress, reader.now, true).is_some());
            reader.pass(1000.0);
            reader.pace.come_back(reader.progress, reader.now);
            times += 1;
            assert!(times < 100, "nobody learns of it");
        }
    }

    /// A hostile publisher of a lossy channel can make it jump anywhere.
    #[test]
    fn a_jump_is_no_overflow() {
        let mut reader = Reader::new();
        reader.reads(MESSAGE);
        assert_eq!(reader.pace.look(reader.progress, reader.now, true), None);
        reader.pass(1000.0);
        reader.progress = Progress { position: u64::MAX / 2, last: 0, tail: u64::MAX / 2 };
        reader.pace.look(reader.progress, reader.now, true);
        reader.pace.come_back(reader.progress, reader.now);
    }

    /// A publisher can say anything.
    #[test]
    fn lies_do_no_harm() {
        let mut reader = Reader::new();
        for step in 0..10_000u64 {
            reader.pass(if step % 3 == 0 { 0.0 } else { 5000.0 });
            reader.progress.position += (step % 7) << (step % 40);
            reader.progress.last = reader.progress.position.wrapping_sub(step);
            reader.progress.tail = if step % 5 == 0 { 0 } else { u64::MAX >> (1 + step % 60) };
            if let Some(until) = reader.pace.look(reader.progress, reader.now, true) {
                assert!(until <= reader.now + AWAY[2]);
                reader.pace.come_back(reader.progress, until);
            }
        }
    }
}
