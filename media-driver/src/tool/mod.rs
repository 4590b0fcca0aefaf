//! The command-line tool: a driver, publishers and subscribers for pipes and files, and a look at what is there.

mod format;
mod list;
mod options;
mod progress;
mod publish;
mod subscribe;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use media_driver::daemon;

/// Publish and subscribe between processes of this machine, through shared memory.
#[derive(Debug, Parser)]
#[command(name = "ringbus", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the media driver (the same as ringbusd)
    Driver(daemon::Options),
    /// Publish lines, frames or records of a file or of standard input
    Pub(publish::Options),
    /// Write what is published to standard output
    Sub(subscribe::Options),
    /// List publications and subscriptions
    Ls(list::Options),
}

/// Whatever goes wrong, it ends here and is told.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Driver(options) => {
            daemon::log_to_stderr();
            daemon::run(&options).map_err(Failure::from)
        }
        Command::Pub(options) => publish::run(&options),
        Command::Sub(options) => subscribe::run(&options),
        Command::Ls(options) => list::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringbus: {error}");
            ExitCode::FAILURE
        }
    }
}
