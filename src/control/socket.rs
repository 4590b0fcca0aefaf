//! The control socket: where it is, and how messages and fds travel over it.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Serialize, de::DeserializeOwned};

use super::message::MAX_MESSAGE;

/// Where a driver listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file. Its permissions say who may connect.
    Path(PathBuf),
    /// A name without a file, written `@name`: anyone on the host may connect, and nothing is left behind. What a client may do is decided per channel in either case.
    Abstract(String),
}

impl Address {
    /// The default: `$RINGBUS_SOCKET`, else `$XDG_RUNTIME_DIR/ringbus/driver.sock`, else `/run/ringbus/driver.sock`.
    pub fn from_environment() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self::preset(set("RINGBUS_SOCKET"), set("XDG_RUNTIME_DIR"))
    }

    fn preset(socket: Option<PathBuf>, runtime: Option<PathBuf>) -> Self {
        // One that is not absolute is to be ignored (XDG Base Directory Specification): driver and client may have different working directories.
        let runtime = runtime.filter(|directory| directory.is_absolute()).unwrap_or_else(|| PathBuf::from("/run"));
        socket.map_or_else(|| Self::Path(runtime.join("ringbus/driver.sock")), Self::from)
    }

    /// As the kernel wants it.
    ///
    /// # Errors
    ///
    /// It is too long (107 bytes) or holds a zero.
    pub fn to_socket_address(&self) -> io::Result<SocketAddrUnix> {
        Ok(match self {
            Self::Path(path) => SocketAddrUnix::new(path)?,
            Self::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        })
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        match path.to_str().and_then(|text| text.strip_prefix('@')) {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(path),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// A new, unbound control socket.
///
/// # Errors
///
/// The kernel's.
pub fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None)?)
}

/// What was received. The fds are owned from here on, whatever happens to the message.
#[derive(Debug)]
pub struct Packet {
    /// The message.
    pub bytes: Vec<u8>,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
    /// The kernel had to drop fds: this process has no room for them.
    pub fds_lost: bool,
}

impl Packet {
    /// The message, if it is one.
    pub fn decode<M: DeserializeOwned>(&self) -> Option<M> {
        postcard::from_bytes(&self.bytes).ok()
    }
}

/// A message as it travels.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    // Serialising plain data into a growing vector cannot fail.
    postcard::to_stdvec(message).unwrap_or_default()
}

/// Sends one packet. Never raises `SIGPIPE`; blocks only without [`SendFlags::DONTWAIT`].
///
/// # Errors
///
/// The kernel's.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    const MOST_FDS: usize = 4;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL)
    });
    sent?;
    Ok(())
}

/// Receives one packet; `None` at the end of the connection. One that is too long comes without its bytes, so that no message is found in it, but with
/// its fds: to close them may take long, and the caller knows where it may.
///
/// # Errors
///
/// The kernel's.
pub fn receive(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<Packet>> {
    // Room for as many as the kernel lets pass (SCM_MAX_FD): one left behind would be closed by the kernel, in our time.
    const MOST_FDS: usize = 253;
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let received =
            rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags | RecvFlags::CMSG_CLOEXEC);
        match received {
            Err(Errno::INTR) => continue,
            // The peer went with packets of ours unread; what it has sent before is still there to be read.
            Err(Errno::CONNRESET) => continue,
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    let too_long = received.flags.contains(ReturnFlags::TRUNC);
    bytes.truncate(if too_long { 0 } else { received.bytes });
    Ok(Some(Packet { bytes, fds, fds_lost: received.flags.contains(ReturnFlags::CTRUNC) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fuzzer: a relative `$XDG_RUNTIME_DIR` that begins with `@` was shown as an abstract address.
    #[test]
    fn a_relative_runtime_directory_is_ignored() {
        let preset = |runtime: &str| Address::preset(None, Some(PathBuf::from(runtime)));
        assert_eq!(preset("/run/user/1000"), Address::Path("/run/user/1000/ringbus/driver.sock".into()));
        for relative in ["@name", "here", "./there"] {
            assert_eq!(preset(relative), Address::Path("/run/ringbus/driver.sock".into()));
        }
        assert_eq!(Address::preset(Some("@name".into()), Some("/run".into())), Address::Abstract("name".to_owned()));
    }
}
