//! Kills a party after each single instruction of each operation, on each kind of channel; or stops and continues it there.
//!
//! `process` makes and looks at processes, `tracer` leads a victim, `operation` says what it does, `survivor` is who lives on, `scene` brings them together and checks, `run` goes
//! through all points. See the issue "killed at every instruction" and `docs/checks.md`.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("it reads the registers of an x86-64 Linux process");

mod message;
mod operation;
mod process;
mod run;
mod scene;
mod survivor;
mod tracer;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::Parser;

use operation::{Kind, Operation};
use scene::Blow;
use tracer::Point;

/// Kills or stops a party of ringbus after each single instruction of its operations, and looks at what that does to others
#[derive(Debug, Parser)]
struct Options {
    /// Only these operations
    #[arg(long, value_delimiter = ',')]
    operations: Vec<Operation>,
    /// Only these kinds of channel
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// What happens to the victim
    #[arg(long, default_value = "kill")]
    signal: Blow,
    /// Only every so many instructions
    #[arg(long, value_name = "N", conflicts_with = "sample")]
    every: Option<usize>,
    /// Only so many instructions of each operation and kind, by chance
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// What decides the chance [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// One single case, as a failure prints it
    #[arg(long, value_name = "OPERATION:KIND:INSTRUCTION", value_parser = parse_only)]
    only: Option<(Operation, Kind, Point)>,
    /// How many work beside each other
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Only count instructions and say how long it would take
    #[arg(long)]
    estimate: bool,
}

impl Options {
    /// All points of whatever operations.
    fn is_whole(&self) -> bool {
        self.every.is_none() && self.sample.is_none() && self.only.is_none()
    }
}

fn parse_only(text: &str) -> Result<(Operation, Kind, Point), String> {
    use clap::ValueEnum;
    let parts: Vec<&str> = text.split(':').collect();
    let [operation, kind, point] = parts.as_slice() else { return Err("three parts are wanted".to_owned()) };
    let point = point.parse().map_err(|error| format!("{point}: {error}"))?;
    Ok((Operation::from_str(operation, false)?, Kind::from_str(kind, false)?, point))
}

/// Starts this program anew with addresses that are the same each time, so that what is printed can be repeated.
fn fix_addresses() {
    use nix::sys::personality::{self, Persona};
    let persona = personality::get().unwrap_or(Persona::empty());
    if !persona.contains(Persona::ADDR_NO_RANDOMIZE) && personality::set(persona | Persona::ADDR_NO_RANDOMIZE).is_ok() {
        let error = std::process::Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec();
        eprintln!("addresses are not fixed: {error}");
    }
}

fn main() -> ExitCode {
    fix_addresses();
    if run::run(&Options::parse()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
