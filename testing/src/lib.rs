//! What the tests share: parties in processes of their own, deadlines, and a look at processes from outside.
//!
//! A party is this very test program, started again: the environment says which role it plays, and its `child` test plays it. It talks to the test line
//! by line over its stdin and stdout. Nothing here waits without a deadline, and a party dies with the test, whatever happens.

mod mapped;
mod processes;
mod raw;

use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Lines, StdinLock, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use media_driver::{Config, Driver};
use ringbus::{Address, Client, ImageEvent, Kind, Overflow, Publication, Ready, Subscription};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::ClockId;

pub use mapped::{Mapped, mappings};
pub use processes::{Holdings, fds_of, outliving, state, status_number, wait_asleep};
use processes::{sleeps, switches, tasks};
pub use raw::Raw;

/// How long anything may take that takes microseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a death may cost others at most, however busy the machine: far less than the driver's patience (5 s) and the client's (10 s), which end what is not
/// noticed otherwise. The project wants 50 ms, which the kill harness counts.
pub const SOON: Duration = Duration::from_secs(3);

/// All kinds of channel.
pub const KINDS: [Kind; 3] = [Kind::Spsc, Kind::Broadcast, Kind::Mpsc];

/// The deadline of something that is to happen: [`PATIENCE`] from now.
pub fn in_time() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

/// A number that the environment may set to something larger, for long runs.
pub fn scaled(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect(variable))
}

/// Waits for a state that sends no event.
#[track_caller]
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nanoseconds of the clock that all processes share.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The CPU time that this thread or process has had: others may have the CPU for long.
pub fn cpu_time(whose: ClockId) -> Duration {
    let time = rustix::time::clock_gettime(whose);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Some tests need another uid to exist beside their own.
pub fn skip_unless_root() -> bool {
    if !is_root() {
        eprintln!("skipped: only root can become somebody else");
    }
    !is_root()
}

/// A generator of numbers that are random enough and the same each time.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// xorshift64*.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number from 0 to `limit - 1`.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.draw() >> 11) % limit
    }
}

// ---- Parties: the test's side ----

const ROLE: &str = "RINGBUS_TEST_ROLE";
const ADDRESS: &str = "RINGBUS_TEST_ADDRESS";
const ARGUMENTS: &str = "RINGBUS_TEST_ARGUMENTS";
/// Marks the party's lines among what the test harness prints.
const MARK: char = '\u{1}';

/// A process that plays a role. It is killed when this is dropped.
#[derive(Debug)]
pub struct Party {
    role: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Party {
    /// Starts this program once more, to play that role.
    pub fn start(role: &str, address: &Address, arguments: &[&dyn Display]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "child", "--nocapture"]);
        command.env(ROLE, role).env(ADDRESS, address.to_string()).env(ARGUMENTS, arguments.join("\n"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: only an async-signal-safe system call is made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // Nothing survives a test program that is killed itself.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().expect("a process");
        let stdout = BufReader::new(child.stdout.take().expect("its stdout"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let said = stdout.lines().map_while(Result::ok);
            said.filter_map(|line| line.split_once(MARK).map(|(_, said)| said.to_owned()))
                .take_while(|said| sender.send(said.clone()).is_ok())
                .for_each(drop);
        });
        Self { role: role.to_owned(), stdin: child.stdin.take(), child, lines }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it says.
    #[track_caller]
    pub fn hear(&self) -> String {
        self.hear_within(PATIENCE)
    }

    #[track_caller]
    /// The next line it says, if it comes in that time.
    pub fn hear_within(&self, patience: Duration) -> String {
        self.lines.recv_timeout(patience).unwrap_or_else(|error| panic!("{} says nothing: {error}", self.role))
    }

    #[track_caller]
    /// The next line it says, which is a number.
    pub fn hear_number<T: FromStr>(&self) -> T {
        let said = self.hear();
        said.parse().unwrap_or_else(|_| panic!("{} says {said:?}, which is no number", self.role))
    }

    #[track_caller]
    /// The next line it says is this one.
    pub fn expect(&self, wanted: &str) {
        assert_eq!(self.hear(), wanted, "{}", self.role);
    }

    /// The next line it says, if it says one in that time.
    pub fn heard_within(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    /// How it has ended by itself, if it does in that time.
    pub fn ended_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a pid");
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
        readable(&pidfd, patience).then(|| self.child.wait().expect("it is our child"))
    }

    /// Whether it has said nothing (more) so far.
    pub fn is_silent(&self) -> bool {
        self.lines.try_recv().is_err()
    }

    /// Sends it a line.
    pub fn tell(&mut self, line: impl Display) {
        let stdin = self.stdin.as_mut().expect("its stdin is open");
        writeln!(stdin, "{line}").expect("it listens");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("it was not reaped yet");
    }

    /// `SIGKILL`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("it is our child");
    }

    /// Stops it, and waits until it has.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        until("the stop", || tasks(self.pid()).iter().all(|task| state(task).is_some_and(|state| state == 'T')));
    }

    /// Continues it after a stop.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until it has ended by itself, and well.
    #[track_caller]
    pub fn finish(mut self) {
        drop(self.stdin.take());
        let pid = Pid::from_raw(self.child.id() as i32).expect("a pid");
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
        assert!(readable(&pidfd, PATIENCE), "{} does not end", self.role);
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{} has failed: {status}", self.role);
    }

    /// All the CPU time it has had.
    pub fn cpu_time(&self) -> Duration {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: `clock` is a live value of the right type.
        let result = unsafe { libc::clock_getcpuclockid(self.child.id() as libc::pid_t, &mut clock) };
        assert_eq!(result, 0, "it has a CPU clock");
        // SAFETY: zero is a valid `timespec`, and the pointer is to it.
        unsafe {
            let mut time: libc::timespec = std::mem::zeroed();
            assert_eq!(libc::clock_gettime(clock, &mut time), 0);
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        }
    }

    /// How often its threads have gone to sleep: unchanged means that it made no system call that waits, nor came back from one.
    pub fn sleeps(&self) -> u64 {
        tasks(self.pid()).iter().map(|task| switches(task).unwrap_or(0)).sum()
    }

    /// Its open file descriptors, by what they are.
    pub fn fds(&self) -> Vec<String> {
        fds_of(self.pid())
    }

    /// Waits until all of it sleeps.
    pub fn wait_all_asleep(&self) {
        for task in tasks(self.pid()) {
            let mut sleeps = sleeps(&task);
            // One that has ended since we looked does nothing any more.
            until("falling asleep", || !task.exists() || sleeps());
        }
    }

    /// Waits until the thread sleeps and does not get up by itself.
    pub fn wait_asleep(&self, thread: &str) {
        wait_asleep(&PathBuf::from(format!("/proc/{}/task/{thread}", self.pid())));
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The calling thread, as [`Party::wait_asleep`] wants it.
pub fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// Whether the fd becomes readable in that time.
pub fn readable(fd: impl std::os::fd::AsFd, patience: Duration) -> bool {
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// A plain epoll loop around one fd, as somebody would write it who has never seen ours.
#[derive(Debug)]
pub struct EventLoop(rustix::fd::OwnedFd);

impl EventLoop {
    /// Watches this one fd.
    pub fn around(fd: impl std::os::fd::AsFd, flags: epoll::EventFlags) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll instance");
        epoll::add(&epoll, fd, epoll::EventData::new_u64(0), flags).expect("it can be watched");
        Self(epoll)
    }

    /// Whether something happened in that time.
    pub fn turn(&self, patience: Duration) -> bool {
        let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 4];
        match epoll::wait(&self.0, &mut events, Some(&timeout)) {
            Ok((events, _)) => !events.is_empty(),
            // A stop and its end interrupt the wait though no handler runs: as good as a wake-up for nothing.
            Err(rustix::io::Errno::INTR) => true,
            Err(errno) => panic!("epoll: {errno}"),
        }
    }
}

// ---- Parties: their own side ----

/// The role this process plays.
#[derive(Debug)]
pub struct Role {
    /// Which one it is.
    pub name: String,
    /// Where the driver listens.
    pub address: Address,
    arguments: Vec<String>,
    stdin: Lines<StdinLock<'static>>,
}

impl Role {
    /// The role that the environment assigns; none in a test run itself.
    pub fn assigned() -> Option<Self> {
        let name = std::env::var(ROLE).ok()?;
        let address = Address::from(PathBuf::from(std::env::var(ADDRESS).ok()?));
        let arguments = std::env::var(ARGUMENTS).ok()?.lines().map(str::to_owned).collect();
        Some(Self { name, address, arguments, stdin: std::io::stdin().lines() })
    }

    /// What the test wants of it.
    pub fn argument<T: FromStr>(&self, index: usize) -> T {
        let text = self.arguments.get(index).unwrap_or_else(|| panic!("{} needs argument {index}", self.name));
        text.parse().unwrap_or_else(|_| panic!("{}: {text:?} is not what argument {index} is", self.name))
    }

    /// Sends the test a line.
    pub fn say(&self, line: impl Display) {
        let mut stdout = std::io::stdout().lock();
        // In one piece, and on a line of its own whatever the harness has printed.
        stdout.write_all(format!("{MARK}{line}\n").as_bytes()).and_then(|()| stdout.flush()).expect("the test listens");
    }

    /// The next line from the test. Ends the process when there are no more.
    pub fn hear(&mut self) -> String {
        self.stdin.next().and_then(Result::ok).unwrap_or_else(|| std::process::exit(0))
    }

    /// Does nothing more, until it is killed or let go.
    pub fn hold(&mut self) {
        self.hear();
    }

    /// A client of the role's driver.
    pub fn client(&self) -> Client {
        Client::builder().address(self.address.clone()).connect().expect("a client")
    }

    /// Becomes somebody without any rights: uid and gid 65534, and these groups.
    pub fn become_nobody(&self, groups: &[u32]) {
        const NOBODY: u32 = 65534;
        // SAFETY: plain system calls; the pointer is to as many ids as said.
        unsafe {
            assert_eq!(libc::setgroups(groups.len(), groups.as_ptr()), 0);
            assert_eq!(libc::setresgid(NOBODY, NOBODY, NOBODY), 0);
            assert_eq!(libc::setresuid(NOBODY, NOBODY, NOBODY), 0);
        }
    }
}

/// A role any test may want: a media driver. Arguments: memory limit in bytes and RLIMIT_NOFILE, 0 for the usual ones.
pub fn play_driver(mut role: Role) {
    let mut config = Config::new(role.address.clone());
    let (memory, files): (u64, u64) = (role.argument(0), role.argument(1));
    if memory > 0 {
        config.memory_limit = memory;
    }
    if files > 0 {
        limit(libc::RLIMIT_NOFILE, files);
    }
    match Driver::new(&config) {
        Ok(mut driver) => {
            role.say("ready");
            driver.run().expect("the driver runs");
        }
        Err(error) => {
            role.say(error);
            role.hold();
        }
    }
}

/// Sets a soft limit of this process.
pub fn limit(resource: libc::__rlimit_resource_t, limit: u64) {
    // SAFETY: zero is a valid `rlimit`, and the pointers are to it.
    unsafe {
        let mut limits: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(resource, &mut limits), 0);
        limits.rlim_cur = limit.min(limits.rlim_max);
        assert_eq!(libc::setrlimit(resource, &limits), 0);
    }
}

/// A driver in a process of its own, on a socket in a directory of its own, that can be killed and started again.
#[derive(Debug)]
pub struct DriverProcess {
    // In this order: the process goes before its directory.
    party: Party,
    /// Where it listens.
    pub address: Address,
    directory: tempfile::TempDir,
}

impl DriverProcess {
    /// Starts one with the usual limits.
    pub fn launch() -> Self {
        Self::launch_with(0, 0)
    }

    /// Starts one. 0 is the usual limit.
    pub fn launch_with(memory_limit: u64, files: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let address = Address::Path(directory.path().join("driver.sock"));
        let party = Self::start(&address, memory_limit, files);
        Self { party, address, directory }
    }

    fn start(address: &Address, memory_limit: u64, files: u64) -> Party {
        let party = Party::start("driver", address, &[&memory_limit, &files]);
        party.expect("ready");
        party
    }

    /// `SIGKILL`; it leaves its socket and lock behind.
    pub fn kill(&mut self) {
        self.party.kill();
    }

    /// Starts its successor, at the same address.
    pub fn start_again(&mut self) {
        self.party = Self::start(&self.address, 0, 0);
    }

    /// Its process.
    pub fn party(&self) -> &Party {
        &self.party
    }

    /// Lets other users into the directory. The socket's own mode is the driver's affair.
    pub fn open_to_all(&self) {
        fs::set_permissions(self.directory(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    }

    /// The directory of its socket.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A client of it.
    pub fn connect(&self) -> Client {
        Client::builder().address(self.address.clone()).connect().expect("a client")
    }
}

/// Runs `work` in a forked child of this process, which has to have few threads, and says whether it went well.
pub fn in_a_child(work: impl FnOnce()) -> bool {
    // SAFETY: the child uses no lock that another thread may hold: those of the handles are what is tested, and glibc takes care of malloc's.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "a child");
    if pid == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the child at once, without the parent's atexit handlers.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    let mut status = 0;
    // SAFETY: our child, and a live integer.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

// ---- Messages ----

/// FNV-1a.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// A message that says who sent it and which of his it is, of a length that varies, with a checksum.
pub fn fill(buffer: &mut Vec<u8>, sender: u32, sequence: u64, most: u64) {
    let mut random = Random::new(sequence << 8 | u64::from(sender));
    buffer.clear();
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&sender.to_le_bytes());
    buffer.extend_from_slice(&sequence.to_le_bytes());
    let length = 20 + random.below(most - 20 + 1);
    while (buffer.len() as u64) < length {
        buffer.push(random.draw() as u8);
    }
    let sum = checksum(&buffer[8..]);
    buffer[..8].copy_from_slice(&sum.to_le_bytes());
}

/// Checks such a message and says its sender and number.
#[track_caller]
pub fn check(bytes: &[u8]) -> (u32, u64) {
    let word = |range: std::ops::Range<usize>| {
        let mut word = [0; 8];
        word[..range.len()].copy_from_slice(&bytes[range]);
        u64::from_le_bytes(word)
    };
    assert!(bytes.len() >= 20, "a message of {} bytes was never sent", bytes.len());
    assert_eq!(word(0..8), checksum(&bytes[8..]), "the payload is damaged");
    (word(8..12) as u32, word(12..20))
}

/// What a subscription got of each sender: the numbers must come in order, without a gap.
#[derive(Debug, Default)]
pub struct Ledger(std::collections::BTreeMap<u32, u64>);

impl Ledger {
    /// Takes the next message of its sender.
    #[track_caller]
    pub fn enter(&mut self, bytes: &[u8]) -> (u32, u64) {
        let (sender, sequence) = check(bytes);
        let next = self.0.entry(sender).or_default();
        assert_eq!(sequence, *next, "of sender {sender}, {next} was to come next");
        *next += 1;
        (sender, sequence)
    }

    /// How many came of that sender.
    pub fn count(&self, sender: u32) -> u64 {
        self.0.get(&sender).copied().unwrap_or(0)
    }
}

/// A publication and a subscription on a new channel, joined.
pub fn pair(client: &Client, name: &str, kind: Kind, overflow: Overflow, capacity: u64) -> (Publication, Subscription) {
    let channel = || client.channel(name).kind(kind).overflow(overflow).capacity(capacity);
    let mut publication = channel().publication().expect("a publication");
    let subscription = channel().subscription().expect("a subscription");
    connect(&mut publication, 1);
    (publication, subscription)
}

/// Waits until that many subscribe.
#[track_caller]
pub fn connect(publication: &mut Publication, subscribers: usize) {
    until("the connection", || publication.subscribers() == subscribers);
}

/// The next event, waiting for it; there must be no message that came before it.
#[track_caller]
pub fn event(subscription: &mut Subscription) -> ImageEvent {
    if let Some(event) = subscription.next_event() {
        return event;
    }
    loop {
        assert_ne!(subscription.wait(in_time()), Ready::TimedOut, "no event");
        if let Some(event) = subscription.next_event() {
            return event;
        }
        // A claim that was given up looks like a message from afar.
        assert!(subscription.next().expect("no error").is_none(), "a message");
    }
}

/// A pair works: what is sent arrives.
#[track_caller]
pub fn assert_works(publication: &mut Publication, subscription: &mut Subscription) {
    for number in 0u64..100 {
        publication.offer_until(7, &number.to_le_bytes(), in_time()).expect("it is sent");
        let message = subscription.recv_until(in_time()).expect("it arrives");
        assert_eq!((message.payload(), message.tag()), (&number.to_le_bytes()[..], 7));
    }
}
