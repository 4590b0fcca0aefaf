//! Everything that is read from text: names and words of channels, sizes, addresses, the environment, the command lines of `ringbus` and `ringbusd`, and what
//! `ringbus pub` cuts into messages. Nothing may panic, and what is written reads as the same.
#![no_main]

use std::ffi::OsStr;
use std::fmt::{Debug, Display};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use arbitrary::Arbitrary;
use clap::Parser;
use libfuzzer_sys::fuzz_target;
use media_driver::daemon::{self, parse_bytes};
use media_driver::tool::format::{self, Format, Reader};
use media_driver::tool::{Arguments, Command};
use ringbus::channel::ChannelName;
use ringbus::{Access, Address, ChannelSpec, Grant, HugePages, Kind, Overflow, Properties};

#[derive(Debug, Parser)]
struct Daemon {
    #[command(flatten)]
    options: daemon::Options,
}

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Text(&'a str),
    Address(&'a [u8]),
    Environment { socket: Option<&'a [u8]>, directory: Option<&'a [u8]> },
    Arguments { tool: bool, command: u8, words: Vec<Argument<'a>> },
    Properties { bytes: &'a [u8] },
    Channel { kind: u8, lossy: bool, capacity: u64, shift: Option<u8>, huge: u8, uids: Vec<u32>, gids: Vec<u32>, owner: u32 },
    Messages { format: u8, size: u16, longest: u16, input: &'a [u8] },
}

/// A word of a command line: one that there is, or any.
#[derive(Debug, Arbitrary)]
enum Argument<'a> {
    Known(u8),
    Any(&'a [u8]),
    Number(u64),
}

const KNOWN: [&str; 36] = [
    "--socket",
    "--mode",
    "--memory-limit",
    "--kind",
    "--overflow",
    "--capacity",
    "--wait",
    "--count",
    "--timeout",
    "--format",
    "--subscribers",
    "--persist",
    "--follow",
    "--embedded",
    "spsc",
    "mpsc",
    "broadcast",
    "block",
    "lossy",
    "64K",
    "1MiB",
    "10s",
    "500ms",
    "lines",
    "frames",
    "raw=16",
    "adaptive",
    "back-off",
    "parking",
    "busy-spin",
    "@name",
    "sensors/left",
    "--",
    "-",
    "777",
    "--help",
];

fuzz_target!(|input: Input| match input {
    Input::Text(text) => read_text(text),
    Input::Address(bytes) => check_address(Address::from(path(bytes))),
    Input::Environment { socket, directory } => read_environment(socket, directory),
    Input::Arguments { tool, command, words } => read_arguments(tool, command, &words),
    Input::Properties { bytes } => {
        if let Ok(properties) = postcard::from_bytes::<Properties>(bytes) {
            check_properties(&properties, 1000);
        }
        if let Ok(spec) = postcard::from_bytes::<ChannelSpec>(bytes) {
            check_spec(&spec);
        }
    }
    Input::Channel { kind, lossy, capacity, shift, huge, uids, gids, owner } => {
        let grant = Grant { uids, gids };
        let properties = Properties {
            kind: Some([Kind::Spsc, Kind::Mpsc, Kind::Broadcast][usize::from(kind) % 3]),
            overflow: Some(if lossy { Overflow::Lossy } else { Overflow::Block }),
            capacity: Some(shift.map_or(capacity, |shift| 1 << (shift % 64))),
            access: Some(Access { publish: grant.clone(), subscribe: grant }),
            huge_pages: Some([HugePages::Never, HugePages::IfAvailable, HugePages::Always][usize::from(huge) % 3]),
            prefault: None,
            lock: None,
        };
        check_properties(&properties, owner);
    }
    Input::Messages { format, size, longest, input } => cut(format, size, longest, input),
});

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// What is parsed is written as something that is parsed as the same. What is not has a reason that can be told.
fn round_trip<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let again = value.to_string().parse::<T>();
            assert!(again.as_ref().is_ok_and(|again| *again == value), "{value} is not read as what it was");
            Some(value)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn read_text(text: &str) {
    if let Some(name) = round_trip::<ChannelName>(text) {
        assert_eq!(name.as_str(), text);
        assert!(text.len() <= 255 && text.split('/').all(|segment| !segment.is_empty()) && text.is_ascii());
    }
    round_trip::<Kind>(text);
    round_trip::<Overflow>(text);
    round_trip::<Format>(text);
    if let Ok(bytes) = parse_bytes(text) {
        assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
    }
}

fn check_address(address: Address) {
    let shown = address.to_string();
    if let Ok(target) = address.to_socket_address() {
        assert!(target.path_bytes().is_none_or(|path| path.len() <= 108));
    }
    // A path that is no text cannot be shown so that it is read as the same.
    if matches!(&address, Address::Path(path) if path.to_str().is_none()) {
        return;
    }
    assert_eq!(Address::from(PathBuf::from(shown)), address);
}

fn read_environment(socket: Option<&[u8]>, directory: Option<&[u8]>) {
    for (name, value) in [("RINGBUS_SOCKET", socket), ("XDG_RUNTIME_DIR", directory)] {
        // SAFETY: the fuzzer has one thread.
        match value.filter(|value| !value.contains(&0)) {
            Some(value) => unsafe { std::env::set_var(name, OsStr::from_bytes(value)) },
            None => unsafe { std::env::remove_var(name) },
        }
    }
    let address = Address::from_environment();
    match (std::env::var_os("RINGBUS_SOCKET").filter(|value| !value.is_empty()), &address) {
        (Some(value), _) => assert_eq!(address, Address::from(PathBuf::from(value))),
        (None, Address::Path(path)) => assert!(path.ends_with("ringbus/driver.sock")),
        (None, Address::Abstract(_)) => panic!("only $RINGBUS_SOCKET names an abstract address"),
    }
    check_address(address);
}

fn read_arguments(tool: bool, command: u8, words: &[Argument<'_>]) {
    let program = if tool {
        vec![path(b"ringbus"), path([&b"driver"[..], b"pub", b"sub", b"ls"][usize::from(command) % 4])]
    } else {
        vec![path(b"ringbusd")]
    };
    let words = words.iter().map(|word| match word {
        Argument::Known(index) => path(KNOWN[usize::from(*index) % KNOWN.len()].as_bytes()),
        Argument::Any(bytes) => path(bytes),
        Argument::Number(number) => PathBuf::from(number.to_string()),
    });
    let line: Vec<PathBuf> = program.into_iter().chain(words).collect();
    if tool {
        match Arguments::try_parse_from(&line) {
            Ok(Arguments { command: Command::Driver(options) }) => check_options(&options),
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    } else if let Ok(daemon) = Daemon::try_parse_from(&line) {
        check_options(&daemon.options);
    }
}

fn check_options(options: &daemon::Options) {
    let config = options.config();
    assert!(config.mode <= 0o777);
    check_address(config.address);
}

fn check_properties(properties: &Properties, owner: u32) {
    let bytes = postcard::to_stdvec(properties).expect("plain data");
    assert_eq!(postcard::from_bytes::<Properties>(&bytes).as_ref(), Ok(properties));
    match ChannelSpec::new("name".parse().expect("a good name"), owner, properties) {
        Ok(spec) => {
            assert_eq!(spec.mismatch(properties), None, "a channel is what was asked for");
            check_spec(&spec);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check_spec(spec: &ChannelSpec) {
    let bytes = postcard::to_stdvec(spec).expect("plain data");
    assert_eq!(postcard::from_bytes::<ChannelSpec>(&bytes).as_ref(), Ok(spec));
    if spec.check().is_ok() {
        assert!(spec.capacity.is_power_of_two() && (1..spec.capacity).contains(&spec.max_payload()));
        assert!(spec.may_publish(spec.owner, &[]) && spec.may_subscribe(spec.owner, &[]));
        let _ = spec.is_of_one_uid();
    }
}

fn cut(format: u8, size: u16, longest: u16, input: &[u8]) {
    // A channel takes at least a page less its headers; a smaller number finds more.
    let longest = usize::from(longest).max(1);
    let format = [Format::Lines, Format::Frames, Format::Raw(usize::from(size).max(1))][usize::from(format) % 3];
    let mut reader = Reader::new(input, format, longest);
    let mut output = Vec::new();
    let whole = loop {
        match reader.read_message() {
            Ok(Some((tag, message))) => {
                assert!(message.len() <= longest);
                format::write(&mut output, format, tag, message).expect("a vector takes all");
            }
            Ok(None) => break true,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                break false;
            }
        }
    };
    assert!(input.starts_with(&output) && (!whole || input == output), "what was cut is not put together again");
}
