//! What is sent: a number, then a pattern, so that the receiver can tell a lost, repeated, torn or foreign message from the right one.

/// Payload beside the number.
pub const PATTERN_BYTE: u8 = 0x5a;
/// A word of it.
pub const PATTERN: u64 = u64::from_ne_bytes([PATTERN_BYTE; 8]);
/// Set in the number of a slice's last message.
const LAST: u64 = 1 << 63;

/// A message that waits to be sent.
#[derive(Clone, Copy)]
pub struct Message<'a, const BYTES: usize> {
    /// For a transport that copies: made some time ago.
    pub bytes: &'a [u8; BYTES],
    /// Its first word.
    pub number: u64,
}

impl<const BYTES: usize> Message<'_, BYTES> {
    /// For a transport that lends the place where the message is to be, which is as long: makes it there.
    #[inline(always)]
    pub fn write_in(&self, place: &mut [u8]) {
        // So that the compiler knows the length, as it does everywhere else.
        let Ok(place) = <&mut [u8; BYTES]>::try_from(place) else { return };
        place.fill(PATTERN_BYTE);
        place[..8].copy_from_slice(&self.number.to_ne_bytes());
    }
}

/// Messages that an application has made some time ago, so that copying them is all that is left to do. Numbers are written well ahead: bytes that were
/// stored one by one just now cannot be copied at full speed.
pub struct Source<const BYTES: usize> {
    messages: Vec<[u8; BYTES]>,
    marks: u64,
}

impl<const BYTES: usize> Source<BYTES> {
    const MESSAGES: usize = if BYTES < 4096 { (4096 / BYTES).next_power_of_two() } else { 1 };

    /// Messages of the only producer, or of the first of two.
    pub fn new() -> Self {
        Self::marked(0)
    }

    /// Messages whose numbers bear these marks.
    pub fn marked(marks: u64) -> Self {
        let mut source = Self { messages: vec![[PATTERN_BYTE; BYTES]; Self::MESSAGES], marks };
        (0..Self::MESSAGES as u64).for_each(|number| source.write(number, 0));
        source
    }

    /// The message with this number, which is the same as last time or one more.
    #[inline(always)]
    pub fn message(&mut self, number: u64, last: bool) -> Message<'_, BYTES> {
        if last {
            self.write(number, LAST);
        } else {
            self.write(number + Self::MESSAGES as u64 - 1, 0);
        }
        let mark = if last { LAST } else { 0 };
        Message { bytes: &self.messages[number as usize % Self::MESSAGES], number: number | self.marks | mark }
    }

    #[inline(always)]
    fn write(&mut self, number: u64, mark: u64) {
        self.messages[number as usize % Self::MESSAGES][..8].copy_from_slice(&(number | self.marks | mark).to_ne_bytes());
    }
}

/// Reads messages in full and looks whether they are the right ones.
#[derive(Default)]
pub struct Check<const BYTES: usize> {
    /// How many messages there were from the first producer, and from the second.
    pub counts: [u64; 2],
    /// Whether the last one of the first producer was the last of the slice.
    pub last: bool,
    /// The first that was another than expected, or spoilt: which should have come, and what it says it is.
    wrong: Option<(u64, u64)>,
}

impl<const BYTES: usize> Check<BYTES> {
    /// Reads a message from the only producer.
    #[inline(always)]
    pub fn read(&mut self, payload: &[u8]) {
        self.read_of(0, 0, payload);
    }

    /// Reads a message from this producer, whose numbers bear these marks.
    #[inline(always)]
    pub fn read_of(&mut self, producer: usize, marks: u64, payload: &[u8]) {
        let Ok(payload) = <&[u8; BYTES]>::try_from(payload) else {
            self.wrong.get_or_insert((self.counts[producer], u64::MAX));
            return;
        };
        let (words, _) = payload.as_chunks::<8>();
        let number = u64::from_ne_bytes(words[0]);
        let sum = words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
        let expected = self.counts[producer] | marks;
        if number & !LAST != expected || sum != number.wrapping_add(PATTERN.wrapping_mul(BYTES as u64 / 8 - 1)) {
            self.wrong.get_or_insert((expected, number));
        }
        self.counts[producer] += 1;
        self.last |= number & LAST != 0;
    }

    /// Whether all were right so far.
    pub fn verdict(&self) -> Result<(), String> {
        match self.wrong {
            None => Ok(()),
            Some((number, found)) if number == found & !LAST => Err(format!("message {number} has been spoilt")),
            Some((number, found)) => Err(format!("message {number} did not come, but one that says it is {}", found & !LAST)),
        }
    }
}
