//! The media driver of [ringbus](https://docs.rs/ringbus): creates rings and subscription pages, hands them to clients, joins
//! publications to subscriptions, and cleans up behind whoever dies. It is never on the data path and sleeps when nobody asks.
//!
//! - [`Driver`] is the event loop: sockets, timers and signals, no policy.
//! - [`listener`] is the socket and the lock that keeps a second driver out.
//! - `registry` is what the driver knows: channels, publications, subscriptions, links. No sockets there.
//! - [`daemon`] and [`tool`] are what the programs `ringbusd` and `ringbus` do.
//! - `disposal` closes what strangers sent, without waiting for them.
//! - [`EmbeddedDriver`] runs a driver on a thread of another program.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let driver = media_driver::EmbeddedDriver::launch()?;
//! let client = driver.connect()?;
//! let mut subscription = client.subscription("news")?;
//! let mut publication = client.publication("news")?;
//! publication.wait_connected(None)?;
//! publication.offer(b"it works")?;
//! assert_eq!(subscription.recv()?.payload(), b"it works");
//! # Ok(()) }
//! ```

mod charter;
pub mod daemon;
mod disposal;
mod driver;
mod embedded;
pub mod listener;
mod registry;
mod session;
mod slots;
pub mod tool;

pub use driver::{Config, Driver, DriverError, Stopper};
pub use embedded::EmbeddedDriver;
