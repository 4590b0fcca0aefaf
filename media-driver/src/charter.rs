//! What a memory object says about itself, in a form that only its maker can have written: the name of the memfd, which is fixed when it is
//! created, and its owner in the file system, which is the driver's uid.
//!
//! A new driver knows nothing and has to believe its clients. An object that they show must have been made by a driver (same uid), for
//! that user, as that very object, on a channel with exactly those properties. So nobody can give a channel another owner or longer lists than it had. (Who
//! shares the driver's own uid could forge it, but may do with the driver what he likes anyway.)

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use ringbus::channel::ChannelSpec;
use sha2::{Digest, Sha256};

/// Which object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Ring,
    Page,
    SleepPage,
}

/// The name of the memfd for the object with that id and holder.
pub(crate) fn name(role: Role, id: u64, holder: u32, spec: &ChannelSpec) -> String {
    let role = match role {
        Role::Ring => "ring",
        Role::Page => "page",
        Role::SleepPage => "sleeps",
    };
    // Serialising plain data cannot fail.
    let digest = Sha256::digest(postcard::to_stdvec(spec).unwrap_or_default());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("ringbus-{role}:{id:016x}:{holder}:{digest}")
}

/// Whether a driver of our uid has made the object under that name.
pub(crate) fn is_genuine(fd: impl AsFd, name: &str) -> bool {
    let fd = fd.as_fd();
    let ours = rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    ours && link.is_ok_and(|link| link.as_os_str() == format!("/memfd:{name} (deleted)").as_str())
}
