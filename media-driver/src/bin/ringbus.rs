//! The command-line tool. What it does is in [`media_driver::tool`].

use std::process::ExitCode;

use clap::Parser;
use media_driver::tool::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringbus: {error}");
            ExitCode::FAILURE
        }
    }
}
