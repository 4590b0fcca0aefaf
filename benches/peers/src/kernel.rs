//! What the kernel has: a pipe, sockets, a POSIX message queue; either spinning on non-blocking calls, or asleep in blocking ones.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::Outcome;
use crate::harness::patiently;
use crate::message::Message;
use crate::workload::{Receiver, Sender, Transport};

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// A named pipe, which works as a pipe does.
    Pipe,
    /// `SOCK_STREAM`.
    UnixStream,
    /// `SOCK_SEQPACKET`.
    UnixSeqpacket,
    /// `mq_send` and `mq_receive`.
    MessageQueue,
}

/// A mechanism, and where its names are.
pub struct Kernel {
    /// Which.
    pub mechanism: Mechanism,
    /// Sleeps in the kernel rather than to spin.
    pub blocking: bool,
    /// Of the slice.
    pub directory: PathBuf,
}

impl Transport for Kernel {
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>> {
        let path = self.directory.join(lane);
        let fd = match self.mechanism {
            Mechanism::Pipe => pipe(&path)?,
            Mechanism::UnixStream => connect(&path, SocketType::STREAM)?,
            Mechanism::UnixSeqpacket => connect(&path, SocketType::SEQPACKET)?,
            Mechanism::MessageQueue => return Ok(self.end(KernelFile::Queue(Queue::open(&path, BYTES, self.blocking)?))),
        };
        self.file(fd)
    }

    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>> {
        let path = self.directory.join(lane);
        let fd = match self.mechanism {
            Mechanism::Pipe => pipe(&path)?,
            Mechanism::UnixStream => accept(&path, SocketType::STREAM)?,
            Mechanism::UnixSeqpacket => accept(&path, SocketType::SEQPACKET)?,
            Mechanism::MessageQueue => return Ok(self.end(KernelFile::Queue(Queue::open(&path, BYTES, self.blocking)?))),
        };
        self.file(fd)
    }
}

impl Kernel {
    fn file(&self, fd: OwnedFd) -> Outcome<KernelEnd> {
        if !self.blocking {
            rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        }
        Ok(self.end(KernelFile::Fd(fd)))
    }

    fn end(&self, file: KernelFile) -> KernelEnd {
        let is_stream = matches!(self.mechanism, Mechanism::Pipe | Mechanism::UnixStream);
        KernelEnd { file, is_stream, blocking: self.blocking, buffer: Vec::new() }
    }
}

struct KernelEnd {
    file: KernelFile,
    /// It does not know where a message ends.
    is_stream: bool,
    blocking: bool,
    buffer: Vec<u8>,
}

enum KernelFile {
    Fd(OwnedFd),
    Queue(Queue),
}

impl<const BYTES: usize> Sender<BYTES> for KernelEnd {
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        let written = match &self.file {
            KernelFile::Fd(fd) => rustix::io::write(fd, message.bytes),
            KernelFile::Queue(queue) => queue.send(message.bytes),
        };
        match written {
            Ok(written) if written == BYTES => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            // Messages are small enough to be taken in full or not at all.
            Ok(written) => Err(format!("only {written} bytes of {BYTES} were written").into()),
            Err(error) => Err(format!("cannot write: {error}").into()),
        }
    }
}

impl<const BYTES: usize> Receiver<BYTES> for KernelEnd {
    /// Of a stream, as many as there are at once; of the others, one after the other, and if they block only one.
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        let buffer = &mut self.buffer;
        buffer.resize(BYTES * if self.is_stream { limit } else { 1 }, 0);
        let limit = if self.is_stream || self.blocking { 1 } else { limit };
        let mut count = 0;
        for _ in 0..limit {
            let length = match &self.file {
                KernelFile::Fd(fd) => rustix::io::read(fd, &mut buffer[..]),
                KernelFile::Queue(queue) => queue.receive(buffer),
            };
            match length {
                Ok(0) => return Err("the other end is gone".into()),
                // Each is written at once, and all are of one size, so none is read in parts.
                Ok(length) => buffer[..length].chunks(BYTES).for_each(|message| {
                    read(message);
                    count += 1;
                }),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(format!("cannot read: {error}").into()),
            }
        }
        Ok(count)
    }
}

/// Both ends make it if it is not there yet, and open it for both directions: so neither waits for the other.
fn pipe(path: &Path) -> Outcome<OwnedFd> {
    match rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(format!("cannot make the pipe {}: {error}", path.display()).into()),
    }
    let pipe = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // As much as everybody may have.
    rustix::pipe::fcntl_setpipe_size(&pipe, 1 << 20)?;
    Ok(pipe)
}

fn connect(path: &Path, kind: SocketType) -> Outcome<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::UNIX, kind, None)?;
    let address = SocketAddrUnix::new(path)?;
    patiently("connect", || match rustix::net::connect(socket.as_fd(), &address) {
        Ok(()) => Ok(Some(())),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    Ok(socket)
}

fn accept(path: &Path, kind: SocketType) -> Outcome<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::UNIX, kind, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(rustix::net::accept(&socket)?)
}

/// A POSIX message queue. On Linux its descriptor is an fd.
struct Queue {
    fd: OwnedFd,
    name: CString,
}

impl Queue {
    /// Both ends make it if it is not there yet.
    fn open(path: &Path, bytes: usize, blocking: bool) -> Outcome<Self> {
        // Such names are flat, and not below a directory.
        let name = CString::new(format!("/{}", path.to_string_lossy().trim_start_matches('/').replace('/', "-")))?;
        // SAFETY: a plain structure of numbers.
        let mut attributes: libc::mq_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        // As many as are allowed by default.
        attributes.mq_maxmsg = 10;
        attributes.mq_msgsize = bytes as _;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC | if blocking { 0 } else { libc::O_NONBLOCK };
        // SAFETY: name and attributes are good for the call.
        let queue = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, &raw const attributes) };
        if queue < 0 {
            return Err(format!("cannot open the message queue {name:?}: {}", std::io::Error::last_os_error()).into());
        }
        // SAFETY: just opened, and nobody else's.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(queue) }, name })
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        // SAFETY: the bytes are good for the call.
        let outcome = unsafe { libc::mq_send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if outcome == 0 { Ok(bytes.len()) } else { Err(last_error()) }
    }

    fn receive(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: the bytes can be written during the call.
        let length =
            unsafe { libc::mq_receive(self.fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), std::ptr::null_mut()) };
        usize::try_from(length).map_err(|_| last_error())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The second end to do so finds no name any more. SAFETY: the name is good for the call.
        unsafe { libc::mq_unlink(self.name.as_ptr()) };
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
