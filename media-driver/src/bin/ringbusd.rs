//! The media driver of ringbus as a daemon.

use std::process::ExitCode;

use clap::Parser;
use media_driver::daemon;

/// The media driver of ringbus: creates shared-memory rings and hands them to publishers and subscribers.
///
/// It is not on the data path and sleeps when nobody asks. It may be stopped, killed and started again at any time: what is connected goes on.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    options: daemon::Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    daemon::log_to_stderr();
    match daemon::run(&arguments.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringbusd: {error}");
            ExitCode::FAILURE
        }
    }
}
