//! What a channel is, and the small API that everything behind one offers, whatever carries the messages.
//!
//! [`Publish`] and [`Subscribe`] are what an application needs to be generic over the transport: today the shared-memory
//! [`Publication`](crate::Publication) and [`Subscription`](crate::Subscription). They are traits for static dispatch; the
//! rings pay nothing for them.

mod properties;

use std::time::Instant;

pub use properties::{Access, ChannelName, ChannelSpec, Grant, InvalidChannel, Kind, Overflow, Properties};

use crate::client::{Action, Message, OfferError, PollError, RecvError};

/// Something that sends messages.
pub trait Publish {
    /// Sends a message, or says at once why not.
    ///
    /// # Errors
    ///
    /// See [`OfferError`]; nothing was sent then.
    fn offer_tagged(&mut self, tag: u16, payload: &[u8]) -> Result<u64, OfferError>;

    /// Sends a message, waiting for room until `deadline` (for ever, if `None`).
    ///
    /// # Errors
    ///
    /// See [`OfferError`]; nothing was sent then.
    fn offer_until(&mut self, tag: u16, payload: &[u8], deadline: Option<Instant>) -> Result<u64, OfferError>;

    /// Waits until somebody subscribes, and says whether that happened before `deadline`.
    ///
    /// # Errors
    ///
    /// [`OfferError::Closed`] if that cannot happen any more.
    fn wait_connected(&mut self, deadline: Option<Instant>) -> Result<bool, OfferError>;

    /// Largest payload in bytes.
    fn max_payload(&self) -> usize;
}

/// Something that receives messages.
pub trait Subscribe {
    /// Hands up to `limit` messages to `handler`, which says after each how to go on. Returns how many it has taken.
    ///
    /// # Errors
    ///
    /// See [`PollError`].
    fn poll_controlled(&mut self, handler: impl FnMut(Message<'_>) -> Action, limit: usize) -> Result<usize, PollError>;

    /// Waits for the next message until `deadline` (for ever, if `None`).
    ///
    /// # Errors
    ///
    /// See [`RecvError`].
    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Message<'_>, RecvError>;
}
