//! The soak: a mesh of publishers and subscribers, each a process, over all kinds of channel. They are killed, stopped, restarted and added at random, and so is the
//! media driver; every message is verified, and nothing may be left behind.
//!
//! `options` says what can be set. `controller` does things to the `mesh`; `party`, `publisher` and `subscriber` are the processes' own side, which leave what they did in
//! a `ledger` that survives them; `verify` has the rules for it, and `census` looks at processes from outside. Once in each *epoch* (a minute) all close, so that every
//! publication can be compared with every subscription, and what is held with what was held at first.

mod census;
mod controller;
mod figures;
mod ledger;
mod mesh;
mod options;
mod party;
mod publisher;
mod subscriber;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use testing::{Role, play_driver};

fn main() -> ExitCode {
    if let Some(role) = Role::assigned() {
        match role.name.as_str() {
            "driver" => play_driver(role),
            _ => party::play(role),
        }
        return ExitCode::SUCCESS;
    }
    controller::Controller::new(options::Options::parse()).run()
}
