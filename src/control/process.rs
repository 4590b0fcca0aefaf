//! Which process is at the other end of a socket, and whether it still lives.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

/// A process. The start time tells it from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

impl Process {
    /// The process that has this id now.
    ///
    /// # Errors
    ///
    /// There is none, or `/proc` is not mounted.
    pub fn of(pid: u32) -> io::Result<Self> {
        let start_time = stat_field(pid, 22)?.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Self { pid, start_time })
    }

    /// An fd that becomes readable when the process dies; an error if it has already.
    ///
    /// # Errors
    ///
    /// It is gone, or the kernel has no pidfds (Linux 5.3).
    pub fn watch(&self) -> io::Result<OwnedFd> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        // Compared after opening: the fd holds whichever process that is.
        if Self::of(self.pid)? == *self { Ok(pidfd) } else { Err(gone()) }
    }

    /// Whether it is stopped (`SIGSTOP`, a debugger), so that it cannot answer.
    pub fn is_stopped(&self) -> bool {
        stat_field(self.pid, 3).is_ok_and(|state| state == "T" || state == "t")
    }
}

/// A field of `/proc/PID/stat`, numbered as in proc(5).
fn stat_field(pid: u32, number: usize) -> io::Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Field 2 is the program's name in parentheses, and may hold anything.
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    behind_name.split_whitespace().nth(number - 3).map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Who is at the other end of a socket, as the kernel knows it.
#[derive(Debug)]
pub struct Credentials {
    /// The process that connected.
    pub process: Process,
    /// Its effective user at that time.
    pub uid: u32,
    /// Its groups, primary and supplementary.
    pub groups: Vec<u32>,
    /// Readable when the process dies.
    pub pidfd: OwnedFd,
}

impl Credentials {
    /// Asks the kernel: `SO_PEERCRED`, `SO_PEERGROUPS`, `SO_PEERPIDFD`.
    ///
    /// # Errors
    ///
    /// The kernel's; [`io::ErrorKind::NotFound`] if the process is gone.
    pub fn of_peer(socket: impl AsFd) -> io::Result<Self> {
        let socket = socket.as_fd();
        let credentials = rustix::net::sockopt::socket_peercred(socket)?;
        let pid = u32::try_from(credentials.pid.as_raw_pid()).map_err(|_| io::ErrorKind::InvalidData)?;
        // The kernel's own fd cannot name a later process of the same id. Older kernels (before 6.5) have to look the id up.
        let pidfd = peer_pidfd(socket).or_else(|_| Process::of(pid)?.watch())?;
        let process = Process::of(pid)?;
        let mut groups = peer_groups(socket)?;
        groups.push(credentials.gid.as_raw());
        Ok(Self { process, uid: credentials.uid.as_raw(), groups, pidfd })
    }
}

fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointers are to live values of the size given.
    let result = unsafe {
        let value = (&raw mut fd).cast();
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, value, &mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 32];
    loop {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the pointer is to as many bytes as `length` says.
        let result = unsafe {
            let value = groups.as_mut_ptr().cast();
            libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, value, &mut length)
        };
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // Then the kernel has said how many there are.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}
