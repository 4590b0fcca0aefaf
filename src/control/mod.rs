//! The protocol between client and driver: [`message`]s, the [`socket`] that carries them together with fds, and the
//! [`process`] behind a socket. The driver uses the same code.

pub mod message;
pub mod process;
pub mod socket;
