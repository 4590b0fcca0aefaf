//! Where the driver listens, and the lock file beside it that keeps a second driver out and makes it safe to remove what a dead one left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ringbus::Address;
use ringbus::control::socket;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::SocketFlags;

/// Why the driver cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another driver is there.
    #[error("a media driver is already running at {address} (process {pid}); stop it first, or use another socket (--socket)")]
    AlreadyRunning {
        /// Where.
        address: String,
        /// Its process id, as far as it is known.
        pid: String,
    },
    /// There is something that is no socket.
    #[error("{path} exists and is not a socket; remove it, or use another path (--socket)")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system will not.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A listening socket. Its files are removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// Only to be dropped with it.
    _files: Option<Files>,
}

#[derive(Debug)]
struct Files {
    socket: PathBuf,
    /// Dropped after the socket has been removed.
    _lock: Lock,
}

/// A lock file, removed when it is given up.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    /// Locked as long as it is open.
    file: File,
}

impl Listener {
    /// Listens at `address`; `mode` are the permissions of the socket file: who may connect.
    ///
    /// # Errors
    ///
    /// See [`ListenError`].
    pub fn bind(address: &Address, mode: u32) -> Result<Self, ListenError> {
        let system = |what| {
            let path = address.to_string();
            move |source: io::Error| ListenError::System { what, path, source }
        };
        let files = match address {
            Address::Path(path) => Some(Files::take(path, address)?),
            Address::Abstract(_) => None,
        };
        let socket = socket::new_socket(SocketFlags::NONBLOCK).map_err(system("make the socket"))?;
        let name = address.to_socket_address().map_err(system("use the socket name"))?;
        // A socket's file gets the mode of the socket, less the umask.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(mode))
            .map_err(|errno| system("set the mode of")(errno.into()))?;
        rustix::net::bind(&socket, &name).map_err(|errno| match errno {
            Errno::ADDRINUSE => already_running(address, None),
            _ => system("bind")(errno.into()),
        })?;
        if let Some(files) = &files {
            fs::set_permissions(&files.socket, Permissions::from_mode(mode)).map_err(system("set the mode of"))?;
        }
        rustix::net::listen(&socket, 1024).map_err(|errno| system("listen on")(errno.into()))?;
        Ok(Self { socket, _files: files })
    }

    /// The next client, if one waits.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn accept(&self) -> rustix::io::Result<OwnedFd> {
        rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn already_running(address: &Address, pid: Option<u32>) -> ListenError {
    // An abstract socket has no lock file, but whoever listens there can be asked who he is.
    let pid = pid.or_else(|| {
        let probe = socket::new_socket(SocketFlags::NONBLOCK).ok()?;
        rustix::net::connect(&probe, &address.to_socket_address().ok()?).ok()?;
        let credentials = rustix::net::sockopt::socket_peercred(&probe).ok()?;
        u32::try_from(credentials.pid.as_raw_pid()).ok()
    });
    let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    ListenError::AlreadyRunning { address: address.to_string(), pid }
}

impl Files {
    /// Takes the lock, then removes the socket of a driver that died.
    fn take(path: &Path, address: &Address) -> Result<Self, ListenError> {
        let system = |what, path: &Path| {
            let path = path.display().to_string();
            move |source: io::Error| ListenError::System { what, path, source }
        };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            let create = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
            create.map_err(system("create the directory", directory))?;
        }
        let lock_path = PathBuf::from(format!("{}.lock", path.display()));
        let file = loop {
            // 0600: whoever could open it could lock it, too.
            let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
            let mut lock = open.map_err(system("open the lock file", &lock_path))?;
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let mut pid = String::new();
                    let _ = lock.read_to_string(&mut pid);
                    return Err(already_running(address, pid.trim().parse().ok()));
                }
                Err(errno) => return Err(system("lock", &lock_path)(errno.into())),
            }
            // Its last owner may have removed the file between our open and our lock.
            let same = |there: fs::Metadata| lock.metadata().is_ok_and(|ours| ours.ino() == there.ino());
            if fs::metadata(&lock_path).is_ok_and(same) {
                break lock;
            }
        };
        let lock = Lock { path: lock_path, file };
        let note = |mut lock: &File| {
            lock.set_len(0)?;
            lock.rewind()?;
            lock.write_all(std::process::id().to_string().as_bytes())
        };
        note(&lock.file).map_err(system("write", &lock.path))?;
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => {
                fs::remove_file(path).map_err(system("remove the stale socket", path))?;
            }
            Ok(_) => return Err(ListenError::NotASocket { path: path.to_owned() }),
            Err(_) => {}
        }
        Ok(Self { socket: path.to_owned(), _lock: lock })
    }
}

// Both files are removed while the lock is held: nobody else can have put his own there.

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
