//! The physical limit: cache lines that go from one core to another, as `benches/ring` has it too.
//!
//! It does not go through [`crate::workload`], as it has its own way to write, read and check: whole lines, nothing around them. Clock and slices are the same.

use std::fs::File;

use crate::Outcome;
use crate::harness::{End, Measured, Order};
use crate::raw::{Game, MEMORY, Raw};
use crate::workload::Each;

/// A message of so many lines there, then one back on other lines.
pub fn ping_pong(lines: usize, read_only: bool, order: &Order) -> Outcome<Measured> {
    let mut raw = map(order, read_only)?;
    let mut slice = |length| raw.ping_pong(game(lines), order.end, Each(length));
    slice(order.warm)?;
    let (messages, values) = slice(order.length)?;
    Ok(Measured { messages, values })
}

/// Messages of so many lines, one way.
pub fn stream(lines: usize, read_only: bool, order: &Order) -> Outcome<Measured> {
    let mut raw = map(order, read_only)?;
    let mut slice = |length| raw.stream(game(lines), order.end, length);
    slice(order.warm)?;
    let (messages, nanoseconds) = slice(order.length)?;
    Ok(Measured { messages, values: if order.end == End::Right { vec![nanoseconds] } else { Vec::new() } })
}

fn game(lines: usize) -> Game {
    Game { index: 0, lines, shared: false }
}

/// Both ends make the file if it is not there yet.
fn map(order: &Order, read_only: bool) -> Outcome<Raw> {
    let path = order.directory.join("lines");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    file.set_len(MEMORY)?;
    Ok(Raw::new(&file, read_only)?)
}
