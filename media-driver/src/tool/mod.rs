//! The command-line tool `ringbus`: a driver, publishers and subscribers for pipes and files, and a look at what is there.

pub mod format;
mod list;
mod options;
mod progress;
mod publish;
mod subscribe;

use clap::{Parser, Subcommand};

use crate::daemon;

/// Publish and subscribe between processes of this machine, through shared memory.
#[derive(Debug, Parser)]
#[command(name = "ringbus", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command of the tool.
#[derive(Debug, Subcommand)]
pub enum Command {
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
pub type Failure = Box<dyn std::error::Error>;

impl Arguments {
    /// Does what was asked for, with standard input and output.
    ///
    /// # Errors
    ///
    /// Whatever went wrong, in words for whoever called the tool.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Driver(options) => {
                daemon::log_to_stderr();
                daemon::run(&options).map_err(Failure::from)
            }
            Command::Pub(options) => publish::run(&options),
            Command::Sub(options) => subscribe::run(&options),
            Command::Ls(options) => list::run(&options),
        }
    }
}
