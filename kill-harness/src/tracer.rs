//! A victim: a process one of whose threads is led through its operation instruction by instruction.
//!
//! The victim marks where its operation begins and ends with an `int3`, a number in a register. Between the marks it is single-stepped. As that is slow (microseconds a step, a
//! hundred thousand steps in some operations), a victim that is to die at a late instruction first runs from system call to system call to the last one before it, then to
//! a hardware breakpoint at an instruction shortly before it that was not executed since, and is single-stepped only from there. Where it does not do quite what an earlier
//! victim did (a lock was taken, a table has another order), it dies at a neighbouring instruction, and the harness says that it got elsewhere.

use std::collections::HashMap;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::{self, PATIENCE, WAITS};

/// Which thread of the victim is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The one that calls the operation.
    Caller,
    /// The client's conductor, which is there already.
    Conductor,
    /// The client's conductor, which the operation starts.
    NewConductor,
}

/// A mark in the victim's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The others have to do something now; which step of the preparation it is.
    Prepare(u64),
    /// The operation begins; how many messages were committed before.
    Begin(u64),
    /// It is over.
    End,
}

/// Why the victim stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    Step,
    Call,
    Mark(Mark),
    Asleep,
    Ended(String),
}

/// Where a victim is killed or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// After so many instructions.
    After(usize),
    /// Asleep in the system call that follows so many instructions.
    Asleep(usize),
    /// Before the first execution of the instruction at that address, however it gets there.
    At(u64),
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::After(steps) => write!(f, "{steps}"),
            Self::Asleep(steps) => write!(f, "{steps}asleep"),
            Self::At(address) => write!(f, "@{address:x}"),
        }
    }
}

impl std::str::FromStr for Point {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(address) = text.strip_prefix('@') {
            return u64::from_str_radix(address, 16).map(Self::At);
        }
        match text.strip_suffix("asleep") {
            Some(steps) => steps.parse().map(Self::Asleep),
            None => text.parse().map(Self::After),
        }
    }
}

/// What an operation did, instruction by instruction.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Address of each instruction.
    pub addresses: Vec<u64>,
    /// Which of them are system calls.
    pub calls: Vec<usize>,
    /// In which of those it slept until others did something.
    pub sleeps: Vec<usize>,
}

impl Trace {
    /// All places where a victim can be killed. A string instruction (`rep stosb`, say) traps after each of its repetitions, and there may be 16,000 of them; of many only the
    /// first, the last and some between count.
    pub fn points(&self) -> Vec<Point> {
        const MANY: usize = 64;
        const ENDS: usize = 8;
        let mut points = Vec::new();
        let mut at = 0;
        for repeated in self.addresses.chunk_by(|one, next| one == next) {
            let length = repeated.len();
            let counts =
                |index: usize| length <= MANY || index < ENDS || index + ENDS >= length || index.is_multiple_of(length / ENDS);
            points.extend((0..length).filter(|&index| counts(index)).map(|index| Point::After(at + index)));
            at += length;
        }
        points.push(Point::After(at));
        points.extend(self.sleeps.iter().map(|&step| Point::Asleep(step)));
        points.sort_unstable_by_key(|point| match *point {
            Point::After(steps) => (steps, 0),
            Point::Asleep(steps) => (steps, 1),
            Point::At(_) => (usize::MAX, 2),
        });
        points
    }

    /// At which step each address was executed, if only once.
    pub fn places(&self) -> HashMap<u64, Option<usize>> {
        let mut places = HashMap::new();
        for (step, &address) in self.addresses.iter().enumerate() {
            places.entry(address).and_modify(|place| *place = None).or_insert(Some(step));
        }
        places
    }

    /// Where its system calls are made.
    pub fn call_addresses(&self) -> impl Iterator<Item = u64> {
        self.calls.iter().map(|&step| self.addresses[step])
    }

    /// The last instruction up to `steps` that was not executed since `from`, so that a breakpoint stops there first.
    fn landmark(&self, from: usize, steps: usize) -> Option<usize> {
        let last = steps.min(self.addresses.len().checked_sub(1)?);
        (from + 1..=last).rev().find(|&index| !self.addresses[from..index].contains(&self.addresses[index]))
    }
}

/// How far a victim got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// The point, by all appearances.
    Point,
    /// Some other place, as it did not do what was expected.
    Elsewhere,
    /// The end of the operation came first.
    End,
}

/// Called in the victim.
#[inline(never)]
pub fn mark(mark: Mark) {
    let (code, value) = match mark {
        Mark::Prepare(step) => (1u64, step),
        Mark::Begin(committed) => (2, committed),
        Mark::End => (3, 0),
    };
    // SAFETY: a trap to the tracer, or to the empty handler; no memory or register is changed.
    unsafe { core::arch::asm!("int3", in("rdi") code, in("rsi") value, options(nomem, nostack, preserves_flags)) };
}

extern "C" fn ignore(_: libc::c_int) {}

/// Handles a signal by doing nothing.
pub fn ignore_signal(signal: Signal) {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(signal, &action) }.expect("a handler");
}

/// Lets waits of this process return now and then, so that they can have a deadline.
pub fn start_ticking() {
    ignore_signal(Signal::SIGALRM);
    let tick = libc::timeval { tv_sec: 0, tv_usec: 4_000 };
    let timer = libc::itimerval { it_interval: tick, it_value: tick };
    // SAFETY: the pointer is to a live value; nobody wants the old timer.
    assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }, 0);
}

const OPTIONS: ptrace::Options = ptrace::Options::PTRACE_O_EXITKILL.union(ptrace::Options::PTRACE_O_TRACESYSGOOD);

/// See the module.
#[derive(Debug)]
pub struct Victim {
    /// The process, and its first thread, which calls the operation.
    pub process: Pid,
    /// The thread that is led.
    thread: Pid,
    is_gone: bool,
    /// Its next mark is its end: a step where all signals are blocked, as the C library does at the end of a thread, makes the kernel forget the handler.
    dies_at_mark: bool,
}

impl Victim {
    /// Starts one, which runs up to its first mark when told to.
    pub fn start(play: impl FnOnce()) -> Result<Self, String> {
        let process = process::spawn(|| {
            // Once it is no longer traced, marks mean nothing.
            ignore_signal(Signal::SIGTRAP);
            ptrace::traceme().expect("a tracer");
            nix::sys::signal::raise(Signal::SIGSTOP).expect("a stop");
            play();
        });
        let victim = Self { process, thread: process, is_gone: false, dies_at_mark: false };
        match victim.wait(process)? {
            WaitStatus::Stopped(_, Signal::SIGSTOP) => ptrace::setoptions(process, OPTIONS).map_err(|errno| errno.to_string())?,
            other => return Err(format!("the victim does not start: {other:?}")),
        }
        Ok(victim)
    }

    /// The next stop of one of its threads.
    fn wait(&self, thread: Pid) -> Result<WaitStatus, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match waitpid(thread, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) if Instant::now() < deadline => {}
                Err(Errno::EINTR) => return Err(format!("the victim hangs, {}", self.place())),
                result => return result.map_err(|errno| format!("cannot wait for the victim: {errno}")),
            }
        }
    }

    /// Runs to the next mark.
    pub fn run_to_mark(&mut self) -> Result<Mark, String> {
        ptrace::cont(self.process, None).map_err(|errno| errno.to_string())?;
        let status = self.wait(self.process)?;
        match self.stop(self.process, status)? {
            Stop::Mark(mark) => Ok(mark),
            other => Err(format!("the victim does not get to where its operation begins: {other:?}")),
        }
    }

    fn stop(&mut self, thread: Pid, status: WaitStatus) -> Result<Stop, String> {
        const TRAP_OF_INT3: i32 = 0x80;
        Ok(match status {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                let info = ptrace::getsiginfo(thread).map_err(|errno| errno.to_string())?;
                if info.si_code != TRAP_OF_INT3 {
                    return Ok(Stop::Step);
                }
                let registers = ptrace::getregs(thread).map_err(|errno| errno.to_string())?;
                Stop::Mark(match registers.rdi {
                    1 => Mark::Prepare(registers.rsi),
                    2 => Mark::Begin(registers.rsi),
                    _ => Mark::End,
                })
            }
            WaitStatus::PtraceSyscall(_) => Stop::Call,
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => {
                self.is_gone |= pid == self.process;
                Stop::Ended(format!("{status:?}"))
            }
            other => Stop::Ended(format!("{other:?}")),
        })
    }

    /// The operation begins: from here on that thread is led, and the others run freely.
    pub fn lead(&mut self, thread: Thread) -> Result<(), String> {
        let failed = |errno: Errno| format!("cannot trace the conductor: {errno}");
        match thread {
            Thread::Caller => return Ok(()),
            Thread::Conductor => {
                let conductor = process::threads(self.process).into_iter().find(|&thread| thread != self.process);
                let conductor = conductor.ok_or("there is no conductor")?;
                // Where every victim's conductor is: waiting.
                let process = self.process;
                process::until("the conductor's sleep", || process::is_asleep(process, conductor, WAITS))?;
                ptrace::seize(conductor, OPTIONS).map_err(failed)?;
                ptrace::interrupt(conductor).map_err(failed)?;
                self.wait(conductor)?;
                self.thread = conductor;
            }
            Thread::NewConductor => {
                ptrace::setoptions(self.process, OPTIONS | ptrace::Options::PTRACE_O_TRACECLONE).map_err(failed)?;
                ptrace::cont(self.process, None).map_err(failed)?;
                self.wait(self.process)?;
                let conductor = Pid::from_raw(ptrace::getevent(self.process).map_err(failed)? as i32);
                self.wait(conductor)?;
                self.thread = conductor;
            }
        }
        ptrace::cont(self.process, None).map_err(failed)
    }

    /// What comes next of the thread that is led. [`Stop::Asleep`] if it does not come soon.
    fn settle(&mut self) -> Result<Stop, String> {
        loop {
            match waitpid(self.thread, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) if process::is_asleep(self.process, self.thread, WAITS) => return Ok(Stop::Asleep),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(format!("cannot wait for the victim: {errno}")),
                Ok(status) => return self.stop(self.thread, status),
            }
        }
    }

    /// Whether the calling thread is at the end of the operation, while the conductor is led.
    fn caller_is_done(&mut self) -> bool {
        match waitpid(self.process, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => false,
            Ok(status) => matches!(self.stop(self.process, status), Ok(Stop::Mark(Mark::End))),
        }
    }

    /// What comes after a step: waits out what the victim waits for. `None` at the end of the operation.
    fn go_on(
        &mut self,
        mut stop: Stop,
        slept: &mut bool,
        on_sleep: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<Option<Stop>, String> {
        let deadline = Instant::now() + PATIENCE;
        let is_conductor = self.thread != self.process;
        while stop == Stop::Asleep {
            if is_conductor && self.caller_is_done() {
                return Ok(None);
            }
            if Instant::now() >= deadline {
                return Err(format!("the victim hangs, {}", self.place()));
            }
            if !std::mem::replace(slept, true) {
                on_sleep()?;
            }
            stop = self.settle()?;
        }
        match stop {
            Stop::Mark(_) => Ok(None),
            Stop::Ended(_) if is_conductor && !self.is_gone => Ok(None),
            Stop::Ended(how) => Err(format!("the victim did not survive its own operation: {how}")),
            stop => Ok(Some(stop)),
        }
    }

    /// Steps through all of the operation and writes down what it does. `on_sleep` is what wakes it.
    pub fn record(&mut self, waits_for_others: bool, on_sleep: &mut dyn FnMut() -> Result<(), String>) -> Result<Trace, String> {
        let mut trace = Trace::default();
        let mut slept = false;
        loop {
            let registers = ptrace::getregs(self.thread).map_err(|errno| errno.to_string())?;
            let word = ptrace::read(self.thread, registers.rip as ptrace::AddressType).map_err(|errno| errno.to_string())?;
            const SYSCALL: u64 = 0x050F;
            // A conductor that was there stands in its `poll`, which starts anew.
            let restarts = trace.addresses.is_empty() && registers.orig_rax != u64::MAX && (registers.rax as i64) < 0;
            let is_call = restarts || word as u64 & 0xFFFF == SYSCALL;
            let index = trace.addresses.len();
            ptrace::step(self.thread, None).map_err(|errno| errno.to_string())?;
            let stop = self.settle()?;
            let sleeps = waits_for_others && !slept && stop == Stop::Asleep;
            if self.go_on(stop, &mut slept, on_sleep)?.is_none() {
                return Ok(trace);
            }
            trace.addresses.push(registers.rip);
            if is_call {
                trace.calls.push(index);
            }
            if sleeps {
                trace.sleeps.push(index);
            }
        }
    }

    /// Steps to where it is about to change shared memory by a compare-and-swap.
    pub fn step_to_exchange(&mut self) -> Result<(), String> {
        // lock cmpxchg [..], r64, whichever registers.
        const EXCHANGES: [[u8; 4]; 4] =
            [[0xF0, 0x48, 0x0F, 0xB1], [0xF0, 0x49, 0x0F, 0xB1], [0xF0, 0x4C, 0x0F, 0xB1], [0xF0, 0x4D, 0x0F, 0xB1]];
        loop {
            let address = self.address().ok_or("it cannot be stepped")?;
            let word = ptrace::read(self.thread, address as ptrace::AddressType).map_err(|errno| errno.to_string())?;
            if EXCHANGES.iter().any(|exchange| word.to_le_bytes().starts_with(exchange)) {
                return Ok(());
            }
            ptrace::step(self.thread, None).map_err(|errno| errno.to_string())?;
            match self.settle()? {
                Stop::Step => {}
                other => return Err(format!("it makes no compare-and-swap: {other:?}")),
            }
        }
    }

    /// Runs to that point of the trace.
    pub fn run_to(
        &mut self,
        trace: &Trace,
        point: Point,
        on_sleep: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<Reached, String> {
        let failed = |errno: Errno| format!("cannot go on: {errno}");
        let mut slept = false;
        let steps = match point {
            Point::After(steps) | Point::Asleep(steps) => steps,
            Point::At(address) => return self.run_to_address(address, &mut slept, on_sleep),
        };
        let mut at = 0;
        for &index in trace.calls.iter().take_while(|&&index| index < steps) {
            for entering in [true, false] {
                ptrace::syscall(self.thread, None).map_err(failed)?;
                if !entering && trace.sleeps.contains(&index) && !slept && self.falls_asleep()? {
                    slept = true;
                    on_sleep()?;
                }
                let stop = self.settle()?;
                if self.go_on(stop, &mut slept, on_sleep)?.is_none() {
                    return Ok(Reached::End);
                }
            }
            at = index + 1;
        }
        if let Some(landmark) = trace.landmark(at, steps) {
            self.set_breakpoint(Some(trace.addresses[landmark])).map_err(failed)?;
            ptrace::syscall(self.thread, None).map_err(failed)?;
            let stop = self.settle()?;
            let stop = self.go_on(stop, &mut slept, on_sleep)?;
            match stop {
                None => return Ok(Reached::End),
                Some(Stop::Call) => return Ok(Reached::Elsewhere),
                Some(_) => self.set_breakpoint(None).map_err(failed)?,
            }
            at = landmark;
        }
        for _ in at..steps {
            ptrace::step(self.thread, None).map_err(failed)?;
            let stop = self.settle()?;
            if self.go_on(stop, &mut slept, on_sleep)?.is_none() {
                return Ok(Reached::End);
            }
        }
        let is_there = trace.addresses.get(steps).is_none_or(|&address| Some(address) == self.address());
        if !is_there {
            return Ok(Reached::Elsewhere);
        }
        if let Point::Asleep(_) = point {
            ptrace::step(self.thread, None).map_err(failed)?;
            return Ok(if self.falls_asleep()? { Reached::Point } else { Reached::Elsewhere });
        }
        Ok(Reached::Point)
    }

    fn run_to_address(
        &mut self,
        address: u64,
        slept: &mut bool,
        on_sleep: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<Reached, String> {
        let failed = |errno: Errno| format!("cannot go on: {errno}");
        self.set_breakpoint(Some(address)).map_err(failed)?;
        ptrace::cont(self.thread, None).map_err(failed)?;
        let stop = self.settle()?;
        let reached = self.go_on(stop, slept, on_sleep)?.is_some();
        Ok(if reached { Reached::Point } else { Reached::End })
    }

    /// The processor stops the thread before the instruction there.
    fn set_breakpoint(&self, address: Option<u64>) -> nix::Result<()> {
        const FIRST_ENABLED_FOR_EXECUTION: i64 = 1;
        let register = |index: usize| (std::mem::offset_of!(libc::user, u_debugreg) + index * 8) as ptrace::AddressType;
        ptrace::write_user(self.thread, register(7), 0)?;
        if let Some(address) = address {
            ptrace::write_user(self.thread, register(0), address as i64)?;
            ptrace::write_user(self.thread, register(7), FIRST_ENABLED_FOR_EXECUTION)?;
        }
        Ok(())
    }

    /// Whether the system call it is in sleeps; else it is over.
    fn falls_asleep(&self) -> Result<bool, String> {
        let mut sleeps = false;
        process::until("the victim's sleep", || {
            sleeps = process::is_asleep(self.process, self.thread, WAITS);
            sleeps || process::state(self.process, self.thread) == Some('t')
        })?;
        Ok(sleeps)
    }

    /// Where the thread that is led stands. Nobody knows when it sleeps.
    pub fn address(&self) -> Option<u64> {
        ptrace::getregs(self.thread).ok().map(|registers| registers.rip)
    }

    fn place(&self) -> String {
        let call = std::fs::read_to_string(format!("/proc/{}/task/{}/syscall", self.process, self.thread)).unwrap_or_default();
        format!("at {}, in {}", self.address().map_or_else(String::new, symbol), call.trim())
    }

    /// `SIGKILL`, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.is_gone {
            return;
        }
        self.is_gone = true;
        let _ = kill(self.process, Signal::SIGKILL);
        // A traced thread is there until its tracer has taken note, and the process as long as any thread is.
        for thread in [self.thread, self.process] {
            loop {
                match waitpid(thread, Some(WaitPidFlag::__WALL)) {
                    Err(Errno::EINTR) => {}
                    Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        }
    }

    /// `SIGSTOP`, a real one: it is no longer traced and its threads all stand.
    pub fn stop_for_real(&mut self) -> Result<(), String> {
        // It may have got elsewhere. Nothing to be removed from one who sleeps.
        let _ = self.set_breakpoint(None);
        let failed = |errno: Errno| format!("cannot stop the victim: {errno}");
        kill(self.process, Signal::SIGSTOP).map_err(failed)?;
        self.release(self.thread)?;
        if self.thread != self.process {
            self.release(self.process)?;
        }
        let pid = self.process;
        process::until("the stop", || {
            process::threads(pid).into_iter().all(|thread| process::state(pid, thread).is_some_and(|state| state == 'T'))
        })?;
        self.dies_at_mark = !process::catches(pid, Signal::SIGTRAP);
        Ok(())
    }

    /// Lets go of a thread, stopped; if it is running or asleep, the stop signal makes it stand where that is possible.
    fn release(&self, thread: Pid) -> Result<(), String> {
        loop {
            match ptrace::detach(thread, Signal::SIGSTOP) {
                Ok(()) => return Ok(()),
                Err(Errno::ESRCH) => drop(self.wait(thread)?),
                Err(errno) => return Err(format!("cannot let go of the victim: {errno}")),
            }
        }
    }

    /// `SIGCONT`; then it has to end by itself, and well.
    pub fn finish(mut self) -> Result<(), String> {
        kill(self.process, Signal::SIGCONT).map_err(|errno| errno.to_string())?;
        self.thread = self.process;
        match self.wait(self.process)? {
            WaitStatus::Exited(_, 0) => {
                self.is_gone = true;
                Ok(())
            }
            WaitStatus::Signaled(_, Signal::SIGTRAP, _) if self.dies_at_mark => {
                self.is_gone = true;
                Ok(())
            }
            other => {
                self.is_gone = matches!(other, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
                Err(format!("after it was continued, the victim ended as {other:?}"))
            }
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.end();
    }
}

/// The function at an address: a victim is a fork of ours, so its addresses are ours.
pub fn symbol(address: u64) -> String {
    let mut name = format!("{address:#x}");
    backtrace::resolve(address as *mut std::ffi::c_void, |symbol| {
        if let Some(function) = symbol.name() {
            name.push_str(&format!(" {function:#}"));
        }
        if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            name.push_str(&format!(" {file}:{line}"));
        }
    });
    name
}
