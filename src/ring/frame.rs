//! The frame: an 8-byte header word and the payload, padded to 8 bytes.
//!
//! ```text
//! bits  0..32  payload length in bytes
//! bits 32..48  the user's tag
//! bits 48..56  producer slot (mpsc rings; 0 elsewhere)
//! bits 56..64  state: 0 empty, 1 committed, 3 aborted
//! ```
//!
//! The header word is the commit: it is zero until the payload is whole. Whoever reads one has read untrusted memory, so
//! [`decode`] is the only way to look at it.

/// Bytes of a frame before its payload.
pub const HEADER_LENGTH: u64 = 8;

const COMMITTED: u64 = 1;
const ABORTED: u64 = 3;

/// Length in bytes of the frame that carries `payload` bytes: header, payload, padding.
#[inline]
pub const fn frame_length(payload: u64) -> u64 {
    (HEADER_LENGTH + payload + 7) & !7
}

/// Bytes of a cache line. Loom's rings are smaller than that; where a frame lies does not matter to it.
pub(super) const LINE: u64 = if cfg!(loom) { 8 } else { 64 };

/// Where the next frame begins in a ring of one producer, behind one that begins at `start` with `payload` bytes: at the frame's end; but if a frame of at most a line is
/// followed by too little of its line for another of its size, at the next line. So messages that are sent one by one, and mostly are of the same size, cost the transfer
/// of one line each, not of two. Larger frames are packed: they lie in more than one line anyway.
#[inline]
pub const fn next_position(start: u64, payload: u64) -> u64 {
    let length = frame_length(payload);
    let end = start + length;
    if length <= LINE && end % LINE + length > LINE { end.next_multiple_of(LINE) } else { end }
}

/// The header word of a committed frame.
#[inline]
pub const fn committed(payload: u32, tag: u16, slot: u8) -> u64 {
    payload as u64 | (tag as u64) << 32 | (slot as u64) << 48 | COMMITTED << 56
}

/// The header word of an aborted frame, which consumers skip.
#[inline]
pub const fn aborted(payload: u32) -> u64 {
    payload as u64 | ABORTED << 56
}

/// What a header word says, once checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// Nothing committed here yet.
    Empty,
    /// A message.
    Message {
        /// Payload bytes, at most the ring's largest.
        length: u32,
        /// The user's tag.
        tag: u16,
        /// Slot of the producer that wrote it.
        slot: u8,
    },
    /// A frame that was given up; only its length counts.
    Aborted {
        /// Payload bytes, at most the ring's largest.
        length: u32,
    },
    /// No honest producer writes this.
    Invalid,
}

/// Checks a header word that came out of shared memory against the ring's largest payload.
#[inline]
pub const fn decode(word: u64, max_payload: u64) -> Decoded {
    let length = word as u32;
    match word >> 56 {
        COMMITTED if length as u64 <= max_payload => {
            Decoded::Message { length, tag: (word >> 32) as u16, slot: (word >> 48) as u8 }
        }
        ABORTED if length as u64 <= max_payload => Decoded::Aborted { length },
        0 if word == 0 => Decoded::Empty,
        _ => Decoded::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_message_is_not_an_empty_header() {
        assert_ne!(committed(0, 0, 0), 0);
        assert_eq!(decode(committed(0, 0, 0), 64), Decoded::Message { length: 0, tag: 0, slot: 0 });
    }

    #[test]
    fn every_field_survives() {
        let word = committed(0xFFFF_FFF0, 0xBEEF, 0xAA);
        assert_eq!(decode(word, 1 << 32), Decoded::Message { length: 0xFFFF_FFF0, tag: 0xBEEF, slot: 0xAA });
        assert_eq!(decode(aborted(24), 64), Decoded::Aborted { length: 24 });
    }

    #[test]
    fn frames_are_padded_to_eight() {
        assert_eq!([0, 1, 8, 9, 56].map(frame_length), [8, 16, 16, 24, 64]);
    }

    #[test]
    fn small_frames_of_a_size_do_not_straddle_lines() {
        for payload in 0..=LINE - HEADER_LENGTH {
            let mut position = 0;
            for _ in 0..100 {
                assert_eq!(position / LINE, (position + frame_length(payload) - 1) / LINE, "{payload} bytes at {position}");
                position = next_position(position, payload);
            }
        }
        // 4 frames of 16 bytes fill a line, 2 of 24 do not.
        assert_eq!(
            [(0, 8), (48, 8), (0, 16), (24, 16), (0, 56)].map(|(start, payload)| next_position(start, payload)),
            [16, 64, 24, 64, 64]
        );
        assert_eq!([57, 1024].map(|payload| next_position(8, payload)), [8 + 72, 8 + 1032]);
    }

    #[test]
    fn what_no_producer_writes_is_invalid() {
        for word in [committed(65, 0, 0), aborted(65), 1, 2 << 56, 0xFF << 56, u64::MAX] {
            assert_eq!(decode(word, 64), Decoded::Invalid, "{word:#x}");
        }
    }
}
