//! Sleeping and waking, so that nobody has to spin and an awake peer pays nothing for those who might sleep.
//!
//! [`sleep`] is the protocol and the argument why no wake-up is lost (loom checks it); [`fences`] the asymmetric barrier that makes it free
//! for the committing side; `doorbell` and `futex` the two ways to sleep; [`idle`] what to do before.

#[cfg(not(loom))]
pub(crate) mod doorbell;
pub mod fences;
#[cfg(not(loom))]
pub(crate) mod futex;
#[cfg(not(loom))]
pub mod idle;
pub mod sleep;
