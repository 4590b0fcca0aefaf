//! `ringbus pub`: publishes what a file or standard input holds.

use std::fs::File;
use std::io::{BufReader, Read, stdin};
use std::path::PathBuf;

use clap::Args;
use ringbus::{OfferError, Publication};

use super::Failure;
use super::format::{Format, Reader};
use super::options::Channel;
use super::progress::Progress;

#[derive(Debug, Args)]
/// Options of the command.
pub struct Options {
    #[command(flatten)]
    channel: Channel,

    /// What to publish [default: standard input]
    file: Option<PathBuf>,

    /// What a message is: lines, frames (each after its length: 4 bytes, little-endian), or raw=SIZE
    #[arg(long, default_value_t = Format::Lines)]
    format: Format,

    /// Wait for so many subscribers before the first message; 0 publishes at once, and drops what nobody subscribes to
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    subscribers: usize,

    /// When all subscribers have left, wait for the next instead of giving up
    #[arg(long)]
    persist: bool,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    // The input first: if it cannot be read, nobody should see a publication come and go.
    let (input, size): (Box<dyn Read>, _) = match &options.file {
        Some(path) => {
            let open = || -> std::io::Result<_> {
                let file = File::open(path)?;
                let metadata = file.metadata()?;
                // A directory opens, and only fails when it is read.
                if metadata.is_dir() { Err(std::io::ErrorKind::IsADirectory.into()) } else { Ok((file, metadata)) }
            };
            let (file, metadata) = open().map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
        None => (Box::new(stdin()), None),
    };
    let connected = options.channel.connect()?;
    let mut publication = options.channel.builder(&connected.client).publication()?;
    wait_for_subscribers(options, &mut publication)?;

    let mut reader = Reader::new(BufReader::with_capacity(1 << 18, input), options.format, publication.max_payload());
    let mut progress = Progress::new(size);
    while options.channel.count.is_none_or(|count| progress.messages() < count) {
        let Some((tag, payload)) = reader.read_message()? else { break };
        send(options, &mut publication, tag, payload).map_err(|error| {
            let sent = progress.messages();
            format!("{error}; {sent} messages were published before")
        })?;
        progress.add(payload.len());
    }
    Ok(())
}

fn wait_for_subscribers(options: &Options, publication: &mut Publication) -> Result<(), Failure> {
    let deadline = options.channel.deadline();
    if !publication.wait_for_subscribers(options.subscribers, deadline)? {
        let there = publication.subscribers();
        return Err(format!("timed out waiting for subscribers: {there} of {} came", options.subscribers).into());
    }
    Ok(())
}

fn send(options: &Options, publication: &mut Publication, tag: u16, payload: &[u8]) -> Result<(), Failure> {
    loop {
        match publication.offer_until(tag, payload, options.channel.deadline()) {
            Ok(_) => return Ok(()),
            Err(OfferError::NotConnected) if options.subscribers == 0 => return Ok(()),
            Err(OfferError::NotConnected) if options.persist => wait_for_subscribers(options, publication)?,
            Err(OfferError::NotConnected) => return Err("all subscribers have left (--persist waits for the next)".into()),
            Err(error) => return Err(error.into()),
        }
    }
}
