//! The asymmetric fence, on the machine itself: two processes each write a word and then read the other's (the *store buffering* litmus test), one behind the light fence, the other
//! behind the heavy one. At least one must see the other's write. Loom cannot show this, as it knows no `membarrier`; without it, an x86 fails here within a second.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapRaw;
use ringbus::Address;
use ringbus::wait::fences::{Fences, Light};
use testing::{PATIENCE, Party, Random, Role, scaled};

#[test]
fn child() {
    let Some(role) = Role::assigned() else { return };
    match role.name.as_str() {
        "committer" => committer(&role),
        other => panic!("no role {other}"),
    }
}

/// What the two processes share. Each word is written by one of them.
#[repr(C)]
#[derive(Debug)]
struct Shared {
    commit: Line,
    flag: Line,
    /// The round that may begin.
    round: Line,
    /// The round that the committer has finished, and what it saw of the flag then.
    finished: Line,
    saw: Line,
}

#[repr(C, align(64))]
#[derive(Debug)]
struct Line(AtomicU64);

/// Sent instead of a round: there are no more.
const OVER: u64 = u64::MAX;

fn map(path: &PathBuf) -> (MmapRaw, &'static Shared) {
    let file = File::options().read(true).write(true).open(path).expect("the file that is shared");
    let map = MmapRaw::map_raw(&file).expect("mapped");
    // SAFETY: as long as the file, and page-aligned; atomics have no invalid values. The caller keeps the mapping to the end of its process or test.
    let shared = unsafe { &*map.as_ptr().cast::<Shared>() };
    (map, shared)
}

/// Spins until the word is at least `value`. Gives the core away when that takes long: there may be one only.
fn await_value(word: &Line, value: u64) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    for spins in 0u32.. {
        let seen = word.0.load(Ordering::Acquire);
        if seen >= value {
            return seen;
        }
        if spins % 1024 == 1023 {
            std::thread::yield_now();
            assert!(Instant::now() < deadline, "the other process does nothing");
        }
    }
    unreachable!("spins are counted beyond any deadline")
}

/// Commits and then looks for the flag, with nothing between that costs anything.
fn committer(role: &Role) {
    let (_map, shared) = map(&role.argument(0));
    let light = Light::towards(Fences::detect(), true);
    role.say(format!("{light:?}"));
    let mut random = Random::new(1);
    for round in 1.. {
        if await_value(&shared.round, round) == OVER {
            return;
        }
        (0..random.below(64)).for_each(|_| std::hint::spin_loop());
        shared.commit.0.store(round, Ordering::Relaxed);
        light.pass();
        let saw = shared.flag.0.load(Ordering::Relaxed);
        shared.saw.0.store(saw, Ordering::Relaxed);
        shared.finished.0.store(round, Ordering::Release);
    }
}

#[test]
fn a_sleeper_and_a_committer_never_miss_each_other() {
    let fences = Fences::detect();
    if fences == Fences::Symmetric {
        eprintln!("skipped: no membarrier here");
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(size_of::<Shared>() as u64).expect("its length");
    let (_map, shared) = map(&file.path().to_path_buf());
    let unused = Address::Path(PathBuf::from("unused"));
    let party = Party::start("committer", &unused, &[&file.path().display()]);
    party.expect("Compiler");
    let mut random = Random::new(2);
    let mut both_saw_it = 0;
    let rounds = scaled("RINGBUS_TEST_FENCES", 100_000);
    let deadline = Instant::now() + Duration::from_secs(10);
    for round in 1..=rounds {
        shared.round.0.store(round, Ordering::Release);
        (0..random.below(64)).for_each(|_| std::hint::spin_loop());
        shared.flag.0.store(round, Ordering::Relaxed);
        fences.heavy();
        let committed = shared.commit.0.load(Ordering::Relaxed) == round;
        await_value(&shared.finished, round);
        let seen = shared.saw.0.load(Ordering::Relaxed) == round;
        assert!(committed || seen, "round {round}: neither saw the other, so a sleeper would not have been woken");
        both_saw_it += u64::from(committed && seen);
        if rounds <= 100_000 && Instant::now() > deadline {
            eprintln!("a busy machine: {round} rounds");
            break;
        }
    }
    shared.round.0.store(OVER, Ordering::Release);
    party.finish();
    println!("of {rounds} rounds, both saw the other in {both_saw_it}");
}
