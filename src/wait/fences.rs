//! The asymmetric fence: heavy for the one who goes to sleep, free for the one who commits.
//!
//! Two parties each write one word and then read the other's (Dekker's pattern); at least one must see the other's write. Normally both
//! need a `SeqCst` fence between; but `membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED)` makes every running thread of every
//! registered process pass a full barrier, so that the other side only has to keep the compiler from reordering.
//!
//! This needs both: a committing process that has registered, and a sleeper that can make the call. [`Fences::AsymmetricCapable`] says that this
//! process is and can. Links between parties that both are use the light fence; all others `SeqCst` on both sides.

use crate::ring::atomic::{Ordering, fence};

/// What this party can do, told to its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fences {
    /// Registered for `membarrier` and able to call it.
    AsymmetricCapable,
    /// `membarrier` is missing, refused, or switched off.
    Symmetric,
}

impl Fences {
    /// Registers this process. Cheap when called again.
    #[cfg(not(loom))]
    pub fn detect() -> Self {
        use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};
        static DETECTED: std::sync::OnceLock<Fences> = std::sync::OnceLock::new();
        *DETECTED.get_or_init(|| {
            let supported =
                membarrier_query().contains(MembarrierQuery::GLOBAL_EXPEDITED | MembarrierQuery::REGISTER_GLOBAL_EXPEDITED);
            let usable = supported
                && membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
                && membarrier(MembarrierCommand::GlobalExpedited).is_ok();
            if usable { Self::AsymmetricCapable } else { Self::Symmetric }
        })
    }

    /// The sleeper's fence: between "my flag is up" and the last look.
    pub fn heavy(self) {
        // Pairs with `Light::pass` of a committing party that knows us to be symmetric, or is so itself.
        fence(Ordering::SeqCst);
        #[cfg(not(loom))]
        if self == Self::AsymmetricCapable {
            // It worked when it was detected, and the kernel has no later reason to fail; should it (a seccomp filter set since), sleepers could
            // miss a message, so do not go on.
            let barrier = rustix::thread::membarrier(rustix::thread::MembarrierCommand::GlobalExpedited);
            if barrier.is_err() {
                BARRIER_LOST.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether sleeping is safe: see [`heavy`](Self::heavy). When it is not, the sleeper must not sleep without a time limit.
    #[cfg(not(loom))]
    pub(crate) fn lost() -> bool {
        BARRIER_LOST.load(Ordering::Relaxed)
    }
}

#[cfg(not(loom))]
static BARRIER_LOST: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);

/// The committing side's fence: between the commit and the look at the sleepers' flags. Decided whenever links change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Light {
    /// All peers will call `membarrier` before they sleep, and it reaches us: nothing but the compiler has to be held back.
    Compiler,
    /// A full fence.
    Full,
}

impl Light {
    /// The fence to use by a party with `own` towards peers of whom `all_capable` says whether each is asymmetric-capable.
    pub fn towards(own: Fences, all_capable: bool) -> Self {
        if own == Fences::AsymmetricCapable && all_capable { Self::Compiler } else { Self::Full }
    }

    /// Passes the fence. Pairs with [`Fences::heavy`].
    #[inline(always)]
    pub fn pass(self) {
        match self {
            // Loom knows no membarrier: to it, both sides are full fences, which is what the pair amounts to.
            Self::Compiler if cfg!(not(loom)) => core::sync::atomic::compiler_fence(Ordering::SeqCst),
            _ => fence(Ordering::SeqCst),
        }
    }
}
