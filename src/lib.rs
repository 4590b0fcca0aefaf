#![doc = include_str!("../README.md")]

pub mod ring;
pub mod wait;

#[cfg(not(loom))]
pub mod channel;
#[cfg(not(loom))]
pub mod client;
#[cfg(not(loom))]
pub mod control;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
pub mod memory;

#[cfg(not(loom))]
pub use channel::{Access, ChannelSpec, Grant, Kind, Overflow, Properties};
#[cfg(not(loom))]
pub use client::{
    Action, Batch, ChannelBuilder, Claim, Client, ClientBuilder, ImageEvent, ImageInfo, Message, OfferError, PollError,
    Publication, Ready, RecvError, Subscription,
};
#[cfg(not(loom))]
pub use control::socket::Address;
#[cfg(not(loom))]
pub use error::Error;
#[cfg(not(loom))]
pub use memory::memfd::HugePages;
#[cfg(not(loom))]
pub use wait::idle::Idle;
