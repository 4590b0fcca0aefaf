//! Objects with names: what leaks, and who can read them.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ringbus::{Kind, Overflow};
use testing::{DriverProcess, KINDS, Party, Role, assert_works, outliving, pair, skip_unless_root, until};

use crate::{SMALLEST, nowhere, observed};

// ---- What leaks ----

/// Makes one of each kind of named object, to remove them when it is done. Argument: a name.
pub(crate) fn naive_owner(mut role: Role) {
    let name: String = role.argument(0);
    let shared_memory =
        fs::OpenOptions::new().write(true).create_new(true).open(format!("/dev/shm/{name}")).expect("shared memory");
    shared_memory.set_len(4096).expect("room");
    let queue_name = CString::new(format!("/{name}")).expect("a name");
    // SAFETY: plain system calls; the name is a string that ends with a zero.
    let (segment, semaphores, queue) = unsafe {
        let segment = libc::shmget(libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o600);
        let semaphores = libc::semget(libc::IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600);
        let attributes = std::ptr::null_mut::<libc::mq_attr>();
        (segment, semaphores, libc::mq_open(queue_name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, attributes))
    };
    assert!(segment >= 0 && semaphores >= 0 && queue >= 0, "{}", io::Error::last_os_error());
    role.say(segment);
    role.say(semaphores);
    role.hear();
    let _ = remove(&name, segment, semaphores);
}

/// How many of the objects were there to be removed.
fn remove(name: &str, segment: i32, semaphores: i32) -> usize {
    let queue_name = CString::new(format!("/{name}")).expect("a name");
    // SAFETY: plain system calls; the name is a string that ends with a zero.
    let removed = unsafe {
        [
            libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut()) == 0,
            libc::semctl(semaphores, 0, libc::IPC_RMID) == 0,
            libc::mq_unlink(queue_name.as_ptr()) == 0,
        ]
    };
    removed.iter().filter(|&&removed| removed).count() + usize::from(fs::remove_file(format!("/dev/shm/{name}")).is_ok())
}

/// Publishes and subscribes, and is in the middle of a claim. Argument: kind.
pub(crate) fn resident(mut role: Role) {
    let client = role.client();
    let (mut publication, mut subscription) =
        pair(&client, &std::process::id().to_string(), role.argument(0), Overflow::Block, SMALLEST);
    assert_works(&mut publication, &mut subscription);
    let _claim = publication.try_claim(100).expect("room");
    role.say("there");
    role.hold();
}

/// What a process has open that has a name, and has mapped of such things; without its stdio, and what else a shell may have left it of /dev/null.
fn named(pid: u32) -> BTreeSet<PathBuf> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is there").filter_map(Result::ok);
    let own = fds.filter(|fd| fd.file_name().to_string_lossy().parse().is_ok_and(|number: u32| number > 2));
    let open = own.filter_map(|fd| fs::read_link(fd.path()).ok());
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it is there");
    let shared = maps.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|permissions| permissions.ends_with('s')));
    let mapped = shared.filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
    open.chain(mapped)
        .filter(|path| path.is_absolute() && path != Path::new("/dev/null") && !path.starts_with("/proc") && !is_memfd(path))
        .collect()
}

/// It has a label, but no name by which it could be opened.
fn is_memfd(path: &Path) -> bool {
    path.to_string_lossy().starts_with("/memfd:")
}

fn files(directory: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Named objects leak when the program is killed, or an error path skips the cleanup.
#[test]
fn named_objects_leak() {
    let before = outliving();
    let name = format!("naive-owner-{}", std::process::id());
    let mut naive = Party::start("naive owner of named objects", &nowhere(), &[&name]);
    let (segment, semaphores) = (naive.hear_number(), naive.hear_number());
    naive.kill();
    let leaked = remove(&name, segment, semaphores);
    assert_eq!(leaked, 4, "it leaks");

    let mut driver = DriverProcess::launch();
    let mut parties = KINDS.map(|kind| Party::start("resident", &driver.address, &[&kind]));
    for party in &parties {
        party.expect("there");
        assert_eq!(named(party.pid()), BTreeSet::new(), "nothing it uses has a name");
    }
    let socket = driver.directory().join("driver.sock");
    let lock = driver.directory().join("driver.sock.lock");
    assert_eq!(named(driver.party().pid()), BTreeSet::from([lock.clone()]));
    parties.iter_mut().for_each(Party::kill);
    driver.kill();
    assert_eq!(files(driver.directory()), BTreeSet::from([socket, lock]));
    until("the system is as before", || outliving().is_subset(&before));
    observed(
        format!("killed: {leaked} of 4 objects (shared memory, System V segment and semaphores, message queue) are still there"),
        "clients and driver killed: no party had anything that has a name; of the driver its socket and lock file are left, for its successor",
    );
}

// ---- Who can read it ----

/// Looks around as a user without any rights. Arguments: the naive program's file, the pid of a publisher, its channel. Says what it could read there.
pub(crate) fn snoop(mut role: Role) {
    let (file, publisher, channel): (String, u32, String) = (role.argument(0), role.argument(1), role.argument(2));
    role.become_nobody(&[]);
    role.say(fs::read_to_string(&file).unwrap_or_else(|error| error.kind().to_string()));
    let looks = [format!("/proc/{publisher}/fd"), format!("/proc/{publisher}/map_files")].map(fs::read_dir);
    role.say(looks.iter().all(|look| look.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)));
    // In case the numbers can be guessed.
    role.say((0..100).filter(|fd| fs::File::open(format!("/proc/{publisher}/fd/{fd}")).is_ok()).count());
    role.say(role.client().subscription(&channel).map_or_else(|error| error.to_string(), |_| "may subscribe".to_owned()));
    role.hold();
}

/// Shared memory that any local user can open by its name, and so read.
#[test]
fn world_readable_shared_memory() {
    if skip_unless_root() {
        return;
    }
    let name = format!("naive-secret-{}", std::process::id());
    let path = Path::new("/dev/shm").join(&name);
    // As `shm_open(name, O_CREAT | O_RDWR, 0666)` makes it under the usual umask.
    let naive = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).expect("shared memory");
    fs::write(&path, "secret").expect("room");

    let before = outliving();
    let driver = DriverProcess::launch();
    driver.open_to_all();
    let publisher = Party::start("resident", &driver.address, &[&Kind::Broadcast]);
    publisher.expect("there");
    let snoop = Party::start("snoop", &driver.address, &[&path.display(), &publisher.pid(), &publisher.pid()]);
    let read = snoop.hear();
    fs::remove_file(&path).expect("it is ours");
    drop(naive);
    assert_eq!(read, "secret", "another user reads it");
    snoop.expect("true");
    snoop.expect("0");
    until("nothing of it is in /dev/shm", || outliving().is_subset(&before));
    let refusal = snoop.hear();
    assert!(refusal.contains("uid 65534 may not subscribe"), "{refusal}");
    observed(
        "uid 65534 opens /dev/shm/NAME (mode 0644) and reads the data",
        "nothing in /dev/shm, /proc/PID/fd and map_files of the publisher refused, the driver answers \"uid 65534 may not subscribe\"",
    );
}
