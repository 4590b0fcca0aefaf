//! The benchmark of the ring (being written).
fn main() {}
