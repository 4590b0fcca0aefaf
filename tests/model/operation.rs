//! What can be done to a ring, in four bytes: so the fuzzer's input and what proptest draws (and shrinks) are the same.

/// Bytes of data in the rings of the models: the smallest there is, so that it is often full.
pub const CAPACITY: u64 = 4096;

/// How many producers or readers there can be at a time.
pub const PARTIES: usize = 4;

/// One step. Which party takes it is a number below [`PARTIES`].
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    /// Claim, write and commit, that many times.
    Offer { party: usize, length: usize, times: usize },
    /// Claim, and write.
    Claim { party: usize, length: usize },
    /// Commit what is claimed, if anything.
    Commit { party: usize },
    /// Abort what is claimed, if anything.
    Abort { party: usize },
    /// Ask for room.
    HasRoom { party: usize, length: usize },
    /// Read and take that many messages, giving back what a subscription's poll gives back.
    Poll { party: usize, limit: usize },
    /// Look at the next message without taking it.
    Peek { party: usize },
    /// Give back what was read.
    Release { party: usize, all: bool },
    /// Come.
    Join { party: usize },
    /// Go; a producer of an mpsc ring dies with its claim.
    Leave { party: usize },
    /// The consumer of an mpsc ring learns who has gone, and whom it is done with.
    Bury,
}

impl From<[u8; 4]> for Operation {
    fn from([what, party, high, low]: [u8; 4]) -> Self {
        let party = usize::from(party) % PARTIES;
        let length = length(high, low);
        match what % 16 {
            0..=2 => Self::Offer { party, length, times: 1 },
            3 => Self::Offer { party, length: usize::from(low), times: usize::from(high) },
            4 | 5 => Self::Claim { party, length },
            6 => Self::Commit { party },
            7 => Self::Abort { party },
            8 => Self::HasRoom { party, length },
            9 => Self::Poll { party, limit: usize::from(low) % 8 },
            10 => Self::Poll { party, limit: usize::from(low) * 4 },
            11 => Self::Peek { party },
            12 => Self::Release { party, all: low & 1 == 1 },
            13 => Self::Join { party },
            14 => Self::Leave { party },
            _ => Self::Bury,
        }
    }
}

/// A payload's length: mostly short, sometimes anything, sometimes about the longest there can be.
fn length(high: u8, low: u8) -> usize {
    let low = usize::from(low);
    match high >> 6 {
        0 | 1 => low,
        2 => usize::from(high & 0x1F) << 8 | low,
        _ => (if high & 1 == 0 { CAPACITY as usize - 16 } else { CAPACITY as usize / 2 }) + low % 17 - 8,
    }
}

/// The operations that an input of the fuzzer is.
pub fn decode(input: &[u8]) -> impl Iterator<Item = Operation> {
    input.as_chunks::<4>().0.iter().map(|&bytes| Operation::from(bytes))
}

/// The payload of a message, different for each.
pub fn payload(message: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|index| (message.wrapping_mul(151) ^ index.wrapping_mul(7)) as u8 | 1).collect()
}
