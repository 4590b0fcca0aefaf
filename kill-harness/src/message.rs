//! Messages as [`testing::check`] wants them, but all of one length, so that sending one takes the same instructions each time.

const LENGTH: usize = 100;

/// Bytes of a message in a ring.
pub const FRAME: u64 = 112;

/// The message of that number.
pub fn make(sender: u32, sequence: u64) -> [u8; LENGTH] {
    fill([!sequence as u8; LENGTH], sender, sequence)
}

/// The same without anything that is not needed.
pub fn make_short(sender: u32, sequence: u64) -> [u8; 20] {
    fill([0; 20], sender, sequence)
}

fn fill<const LENGTH: usize>(mut bytes: [u8; LENGTH], sender: u32, sequence: u64) -> [u8; LENGTH] {
    bytes[8..12].copy_from_slice(&sender.to_le_bytes());
    bytes[12..20].copy_from_slice(&sequence.to_le_bytes());
    let sum = testing::checksum(&bytes[8..]);
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}
