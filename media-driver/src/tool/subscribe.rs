//! `ringbus sub`: writes what is published to standard output.

use std::io::{self, BufWriter, Write, stdout};

use clap::Args;
use ringbus::{ImageEvent, PollError, Ready, Subscription};

use super::Failure;
use super::format::{self, Format};
use super::options::Channel;
use super::progress::Progress;

#[derive(Debug, Args)]
/// Options of the command.
pub struct Options {
    #[command(flatten)]
    channel: Channel,

    /// How to write messages: lines, frames (each after its length: 4 bytes, little-endian), or raw=SIZE (as they are)
    #[arg(long, default_value_t = Format::Lines)]
    format: Format,

    /// Go on when all publishers have left
    #[arg(long)]
    follow: bool,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let connected = options.channel.connect()?;
    let mut subscription = options.channel.builder(&connected.client).subscription()?;
    let mut output = BufWriter::with_capacity(1 << 18, stdout().lock());
    match copy(options, &mut subscription, &mut output) {
        // Whoever read our output has had enough, as `head` does.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) => {
            // What is buffered can go nowhere.
            std::mem::forget(output);
            Ok(())
        }
        Err(error) => Err(error),
        Ok(()) => Ok(output.flush()?),
    }
}

fn copy(options: &Options, subscription: &mut Subscription, output: &mut impl Write) -> Result<(), Failure> {
    /// Messages between two looks at anything else.
    const BATCH: u64 = 256;
    let mut progress = Progress::new(None);
    let mut publishers = 0usize;
    loop {
        let wanted = options.channel.count.map_or(BATCH, |count| (count - progress.messages()).min(BATCH));
        if wanted == 0 {
            return Ok(());
        }
        let mut written = Ok(());
        let handler = |message: ringbus::Message<'_>| {
            if written.is_ok() {
                written = format::write(output, options.format, message.tag(), message.payload());
            }
            progress.add(message.payload().len());
        };
        match subscription.poll(handler, wanted as usize) {
            Ok(0) => {}
            Ok(_) => {
                written?;
                continue;
            }
            Err(error @ PollError::Lost { .. }) => {
                eprintln!("ringbus: {error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        while let Some(event) = subscription.next_event() {
            match event {
                ImageEvent::Available(_) => publishers += 1,
                ImageEvent::Closed(_) => {
                    publishers -= 1;
                    if publishers == 0 && !options.follow {
                        return Ok(());
                    }
                }
                ImageEvent::Failed(reason) => eprintln!("ringbus: a publisher could not be connected: {reason}"),
                _ => {}
            }
        }
        // Before a pause: what has come should not lie in the buffer.
        output.flush()?;
        progress.show();
        if subscription.wait(options.channel.deadline()) == Ready::TimedOut {
            return Err(format!("timed out; {} messages were received", progress.messages()).into());
        }
    }
}
