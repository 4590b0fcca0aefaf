//! `ringbus ls`: what is there.

use std::io::{Write, stdout};

use clap::Args;

use super::Failure;
use super::options::Connection;

#[derive(Debug, Args)]
/// Options of the command.
pub struct Options {
    #[command(flatten)]
    connection: Connection,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let entries = options.connection.connect()?.list()?;
    let head = ["CHANNEL", "KIND", "OVERFLOW", "CAPACITY", "PARTY", "PID", "UID", "LINKS"].map(str::to_owned);
    let rows = entries.iter().map(|entry| {
        [
            entry.spec.name.to_string(),
            entry.spec.kind.to_string(),
            entry.spec.overflow.to_string(),
            entry.spec.capacity.to_string(),
            if entry.publishes { "publication" } else { "subscription" }.to_owned(),
            entry.pid.to_string(),
            entry.uid.to_string(),
            entry.links.to_string(),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let widths: Vec<usize> =
        (0..rows[0].len()).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut output = stdout().lock();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        writeln!(output, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}
