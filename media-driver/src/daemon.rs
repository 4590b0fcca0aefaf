//! The driver as a program of its own: what `ringbusd` and `ringbus driver` are.

use std::io::{self, IsTerminal};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;

use clap::Args;
use ringbus::Address;

use crate::driver::{Config, Driver, DriverError};

/// Options of the daemon.
#[derive(Debug, Args)]
pub struct Options {
    /// Where to listen: a path, or @NAME for an abstract socket [default: $XDG_RUNTIME_DIR/ringbus/driver.sock, else /run/ringbus/driver.sock]
    #[arg(long, env = "RINGBUS_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Permissions of the socket file, octal: who may connect. Who may publish and subscribe is decided per channel
    #[arg(long, value_name = "MODE", default_value = "666", value_parser = parse_mode)]
    pub mode: u32,

    /// Most memory that all rings together may take, for example 2GiB [default: half of the machine's]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory_limit: Option<u64>,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|error| error.to_string())?;
    if mode <= 0o777 { Ok(mode) } else { Err("it must be at most 777".to_owned()) }
}

/// A size as people write it: `65536`, `64K`, `1MiB`. All units are powers of 1024.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size::Config::new().with_binary().parse_size(text).map_err(|error| error.to_string())
}

impl Options {
    /// What they say about the driver.
    pub fn config(&self) -> Config {
        let address = self.socket.clone().map_or_else(Address::from_environment, Address::from);
        let mut config = Config { mode: self.mode, ..Config::new(address) };
        if let Some(limit) = self.memory_limit {
            config.memory_limit = limit;
        }
        config
    }
}

/// Logs to stderr, as `RUST_LOG` says; by default what an operator wants to know.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
}

/// Runs a driver until `SIGINT` or `SIGTERM`. To be called before the program starts any thread.
///
/// # Errors
///
/// See [`DriverError`].
pub fn run(options: &Options) -> Result<(), DriverError> {
    let signals = signal_fd().map_err(|source| DriverError::System { what: "take signals", source })?;
    raise_fd_limit();
    let mut driver = Driver::new(&options.config())?;
    driver.stop_when_readable(&signals)?;
    driver.run()
}

/// `SIGINT` and `SIGTERM` as a readable fd, instead of interrupting anything.
fn signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: `signals` is plain data, initialised by sigemptyset; the pointers are to live values; the fd is new and ours.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigaddset(&mut signals, libc::SIGINT);
        libc::sigaddset(&mut signals, libc::SIGTERM);
        if libc::sigprocmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// The soft limit is low for the sake of programs that use `select`. A driver holds two or three fds a client and one or two an object.
fn raise_fd_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
