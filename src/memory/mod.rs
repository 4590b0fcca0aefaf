//! Shared memory objects: sealed memfds and their mappings.
//!
//! The driver [creates](memfd::create) an object and gives its fd to the owner, who maps it writable; then the driver [seals](memfd::seal) it and gives it to the peers,
//! who [check](memfd::check) it before they map it. [`fork`] keeps a child from using what is its parent's. [`mapping`] is where the data of a ring gets mapped twice.

pub mod fork;
pub mod mapping;
pub mod memfd;

use std::io;

/// What went wrong with a memory object, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The kernel would not make the object.
    #[error("cannot create a shared memory object of {size} bytes: {source}{}", hint(.source))]
    Create {
        /// Its size in bytes.
        size: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// There are not enough free huge pages.
    #[error(
        "cannot reserve {size} bytes of huge pages: {source}; raise vm.nr_hugepages (now {configured}, each {page_size} bytes), \
         for example with `sysctl vm.nr_hugepages={needed}`, or ask for `HugePages::IfAvailable`"
    )]
    HugePages {
        /// Bytes wanted.
        size: u64,
        /// Size of one huge page.
        page_size: u64,
        /// `vm.nr_hugepages` now.
        configured: u64,
        /// What it would have to be for this object alone.
        needed: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel would not map the object.
    #[error("cannot map {size} bytes of shared memory: {source}{}", hint(.source))]
    Map {
        /// Bytes of address space wanted.
        size: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel would not lock the object into memory.
    #[error(
        "cannot lock {size} bytes into memory: {source}; RLIMIT_MEMLOCK is {limit} bytes, raise it with `ulimit -l` or LimitMEMLOCK="
    )]
    Lock {
        /// Bytes to be locked.
        size: u64,
        /// The soft limit.
        limit: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// An fd that was received is not what it was said to be.
    #[error("refused a shared memory object from a peer: {what}")]
    Refused {
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Names the limit behind an errno of creating or mapping.
fn hint(source: &io::Error) -> String {
    use rustix::process::{Resource, getrlimit};
    let limit = |resource| getrlimit(resource).current.map_or("unlimited".to_owned(), |limit| limit.to_string());
    match source.raw_os_error() {
        Some(libc::EMFILE) => {
            format!(
                "; the process is out of file descriptors, RLIMIT_NOFILE is {}, raise it with `ulimit -n`",
                limit(Resource::Nofile)
            )
        }
        Some(libc::ENFILE) => "; the system is out of file descriptors, raise fs.file-max".to_owned(),
        Some(libc::ENOMEM) => format!(
            "; out of address space or memory, RLIMIT_AS is {}; choose a smaller capacity or raise it with `ulimit -v`",
            limit(Resource::As)
        ),
        _ => String::new(),
    }
}
