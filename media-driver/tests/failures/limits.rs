//! Limits of the kernel that are too small, and what one is told then.

use std::fs::File;
use std::io;

use media_driver::{Config, EmbeddedDriver};
use ringbus::memory::memfd::meminfo;
use ringbus::{Address, HugePages, Kind, Overflow};
use rustix::fs::MemfdFlags;
use testing::{Party, Role, assert_works, is_root, limit, pair};

use crate::{SMALLEST, nowhere, observed};

const FILES: u64 = 64;
const LOCKED: u64 = 64 << 10;
const ADDRESSES: u64 = 8 << 30;

/// Runs into one limit after the other, in a naive way and with ringbus. Says for each what the one and the other error is.
pub(crate) fn limited(mut role: Role) {
    if is_root() {
        // Root may lock as much as it likes.
        role.become_nobody(&[]);
    }
    let address = Address::Abstract(format!("ringbus-limited-{}", std::process::id()));
    let config = Config { memory_limit: u64::MAX / 2, ..Config::new(address) };
    let driver = EmbeddedDriver::launch_with(&config).expect("a driver");
    let client = driver.connect().expect("a client");
    let (mut publication, mut subscription) = pair(&client, "there", Kind::Mpsc, Overflow::Block, SMALLEST);
    let channel = || client.channel("wanted").kind(Kind::Broadcast);
    let mut tell = |naive: io::Error, ringbus: ringbus::Error| {
        role.say(naive);
        role.say(ringbus);
        assert_works(&mut publication, &mut subscription);
    };

    limit(libc::RLIMIT_MEMLOCK, LOCKED);
    let mut memory = memmap2::MmapMut::map_anon(1 << 20).expect("memory");
    let error = memory.lock().expect_err("it is too much");
    memory[0] = 1;
    tell(error, channel().capacity(1 << 20).lock(true).publication().expect_err("it is too much"));

    let huge = rustix::fs::memfd_create("naive", MemfdFlags::HUGETLB | MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&huge, 4 << 20).expect("room");
    // SAFETY: the kernel refuses; were it mapped, nobody would use it.
    let error = unsafe { memmap2::MmapOptions::new().len(4 << 20).map_mut(&File::from(huge)) }.expect_err("there are none");
    tell(error, channel().capacity(4 << 20).huge_pages(HugePages::Always).publication().expect_err("there are none"));

    limit(libc::RLIMIT_AS, ADDRESSES);
    let error = memmap2::MmapMut::map_anon(8 << 30).expect_err("it does not fit");
    tell(error, channel().capacity(4 << 30).publication().expect_err("it does not fit"));

    limit(libc::RLIMIT_NOFILE, FILES);
    let files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let error = rustix::fs::memfd_create("naive", MemfdFlags::CLOEXEC).expect_err("there is no room");
    tell(error.into(), channel().publication().expect_err("there is no room"));
    drop(files);
    role.say("unharmed");
    role.hold();
}

/// Limits of the kernel are too small, and the errno does not say which.
#[test]
fn a_limit_is_too_small() {
    if meminfo("HugePages_Total:").unwrap_or(0) > 0 {
        eprintln!("skipped: there are huge pages");
        return;
    }
    let party = Party::start("limited", &nowhere(), &[]);
    let (locked, addresses, files) = (LOCKED.to_string(), ADDRESSES.to_string(), FILES.to_string());
    let limits = [
        ["RLIMIT_MEMLOCK", &locked, "ulimit -l"],
        ["vm.nr_hugepages", "now 0", "sysctl vm.nr_hugepages=3"],
        ["RLIMIT_AS", &addresses, "ulimit -v"],
        ["RLIMIT_NOFILE", &files, "ulimit -n"],
    ];
    let mut naive = Vec::new();
    for limit in limits {
        let (bare, told) = (party.hear(), party.hear());
        assert!(!limit.iter().any(|word| bare.contains(word)), "{bare}");
        for word in limit {
            assert!(told.contains(word), "\"{told}\" does not say \"{word}\"");
        }
        naive.push(format!("{}: \"{bare}\"", limit[0]));
    }
    party.expect("unharmed");
    party.finish();
    observed(
        naive.join(", "),
        format!(
            "each error names the limit, its value and what raises it: {}; what was there goes on",
            limits.map(|limit| limit.join(", ")).join("; ")
        ),
    );
}
