//! When a reader that has caught up with a fast stream looks again.
//!
//! A reader that has read all there is finds the next message in the very line that its publisher writes to. Where messages come one by one that is as fast as can be. In
//! a stream it makes both slow: each line travels several times, and the publisher waits for its own. So a reader that has caught up with a stream stays away from it for a
//! moment, and then reads what has gathered. It spins meanwhile: a poll must not say that there is nothing when there is.
//!
//! Whether it is a stream is found by trial, as a fast exchange of messages with a peer that waits for an answer to each looks just the same; but of a stream many
//! messages gather meanwhile. Where they do not it is not tried again for long.

use std::time::{Duration, Instant};

/// How long to stay away: some ten thousand bytes of a fast stream, and about what a message takes that wakes a sleeper.
const AWAY: Duration = Duration::from_micros(4);
/// Bytes after which the rate is looked at, and after the first trial that found no stream. Twice as many after each further one.
const FIRST_WINDOW: u64 = 64 << 10;
const LAST_WINDOW: u64 = 1 << 30;
/// Bytes a nanosecond (GB/s) below which it is not tried: some million small messages a second.
const SLOW: f64 = 0.25;
/// What must gather meanwhile: so many messages (of the size of the last), or several large ones of so many bytes together. Of slower streams, each message is read as it comes.
const MESSAGES: u64 = 16;
const BYTES: u64 = 8 << 10;

/// The pace of one image's reader.
#[derive(Debug)]
pub(super) struct Pace {
    /// Where the reader was when the rate was last looked at, and when that was.
    mark: u64,
    marked: Option<Instant>,
    window: u64,
    until: Option<Instant>,
    /// It was away, and has not caught up since.
    is_trial: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { mark: 0, marked: None, window: FIRST_WINDOW, until: None, is_trial: false }
    }

    /// Whether to stay away, still.
    pub(super) fn is_away(&mut self, now: Instant) -> bool {
        self.until = self.until.filter(|until| now < *until);
        self.until.is_some()
    }

    /// The reader has read all there was, up to this position. `last` is where the last message began. Whether to stay away now.
    #[inline]
    pub(super) fn caught_up(&mut self, position: u64, last: u64) -> bool {
        self.is_due(position) && self.consider(position, last, Instant::now())
    }

    #[inline]
    fn is_due(&self, position: u64) -> bool {
        self.is_trial || position - self.mark >= self.window
    }

    #[cold]
    fn consider(&mut self, position: u64, last: u64, now: Instant) -> bool {
        let elapsed = self.marked.replace(now).map_or(Duration::MAX, |marked| now - marked);
        let bytes = position - self.mark;
        // The first was not the last.
        let are_several = last > self.mark;
        self.mark = position;
        let stay_away = if self.is_away(now) {
            // It has come back too early to tell.
            false
        } else if self.is_trial {
            let is_stream = are_several && bytes >= BYTES.min(MESSAGES.saturating_mul(position - last));
            self.window = if is_stream { FIRST_WINDOW } else { (self.window * 2).min(LAST_WINDOW) };
            is_stream
        } else {
            bytes as f64 > SLOW * elapsed.as_nanos() as f64
        };
        self.until = stay_away.then(|| now + AWAY);
        self.is_trial = stay_away;
        stay_away
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader whose clock says what the test wants.
    struct Reader {
        pace: Pace,
        position: u64,
        now: Instant,
        /// It does not wait until its time away has passed.
        is_early: bool,
    }

    impl Reader {
        fn new() -> Self {
            let mut reader = Self { pace: Pace::new(), position: 0, now: Instant::now(), is_early: false };
            // At first it does not know any rate.
            assert!(!reader.catches_up(FIRST_WINDOW, 1, 64));
            reader
        }

        /// Catches up with `bytes` that took so many nanoseconds, the last message of so many bytes. Says whether it stays away then.
        fn catches_up(&mut self, bytes: u64, nanoseconds: u64, last: u64) -> bool {
            self.position += bytes;
            self.now += Duration::from_nanos(nanoseconds);
            if let Some(until) = self.pace.until.filter(|_| !self.is_early) {
                self.now = self.now.max(until);
            }
            self.pace.is_due(self.position) && self.pace.consider(self.position, self.position - last, self.now)
        }
    }

    #[test]
    fn a_stream_is_stayed_away_from_until_it_becomes_slow() {
        let mut reader = Reader::new();
        assert!(!reader.catches_up(FIRST_WINDOW - 64, FIRST_WINDOW, 64), "it is not looked at yet");
        assert!(reader.catches_up(64, 64, 64), "the trial");
        for _ in 0..10 {
            assert!(reader.catches_up(16 * 64, 5000, 64));
            assert!(reader.catches_up(10_000, 5000, 5000));
        }
        assert!(!reader.catches_up(15 * 64, 5000, 64));
        assert!(!reader.catches_up(64, 64, 64));
    }

    #[test]
    fn who_comes_back_too_early_has_learnt_nothing() {
        let mut reader = Reader::new();
        assert!(reader.catches_up(FIRST_WINDOW, FIRST_WINDOW, 64));
        reader.is_early = true;
        assert!(!reader.catches_up(64, 100, 64), "too early to tell");
        assert!(reader.catches_up(FIRST_WINDOW, FIRST_WINDOW, 64), "it is tried again as soon as the first time");
    }

    /// A hostile publisher of a lossy channel can make it jump anywhere.
    #[test]
    fn a_jump_is_no_overflow() {
        let mut reader = Reader::new();
        assert!(reader.catches_up(FIRST_WINDOW, FIRST_WINDOW, 64));
        reader.catches_up(1 << 62, 5000, 1 << 61);
    }

    #[test]
    fn messages_that_come_one_by_one_are_read_as_they_come() {
        let mut reader = Reader::new();
        let trials = (0..1_000_000).filter(|_| reader.catches_up(128, 500, 64)).count();
        assert!((5..20).contains(&trials), "{trials}");
    }

    #[test]
    fn an_exchange_of_messages_is_taken_for_a_stream_less_and_less_often() {
        let mut reader = Reader::new();
        let trials = (0..1_000_000).filter(|_| reader.catches_up(1024, 500, 1024)).count();
        assert!((5..20).contains(&trials), "{trials}");
    }

    #[test]
    fn a_slow_stream_is_followed() {
        let mut reader = Reader::new();
        assert!((0..1000).all(|_| !reader.catches_up(FIRST_WINDOW, 10 * FIRST_WINDOW, 64)));
    }

    #[test]
    fn when_a_stream_ends_so_does_the_staying_away() {
        let mut reader = Reader::new();
        assert!(reader.catches_up(FIRST_WINDOW, FIRST_WINDOW, 64));
        assert!(!reader.catches_up(0, 5000, 0), "nothing has come");
        assert!(!reader.catches_up(64, 64, 64));
    }
}
