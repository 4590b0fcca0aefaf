//! A driver on a thread of another program: for tests, examples, and programs that want no second process.

use std::thread::JoinHandle;

use ringbus::memory::fork::Birth;
use ringbus::{Address, Client, ClientBuilder, Error};

use crate::driver::{Config, Driver, DriverError, Stopper};

/// A running driver. It stops when this is dropped; what is connected then goes on without it.
#[derive(Debug)]
pub struct EmbeddedDriver {
    address: Address,
    /// In a forked child there is no such thread, and the driver is the parent's.
    birth: Birth,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedDriver {
    /// Starts a driver at an abstract address of its own: nothing is ever left in a file system, and any number of them can run beside each other.
    ///
    /// # Errors
    ///
    /// See [`DriverError`].
    pub fn launch() -> Result<Self, DriverError> {
        let mut id = [0; 8];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| DriverError::System { what: "get a random name", source: errno.into() })?;
        let name = format!("ringbus-{}-{:016x}", std::process::id(), u64::from_ne_bytes(id));
        Self::launch_with(&Config::new(Address::Abstract(name)))
    }

    /// Starts a driver as configured.
    ///
    /// # Errors
    ///
    /// See [`DriverError`].
    pub fn launch_with(config: &Config) -> Result<Self, DriverError> {
        let mut driver = Driver::new(config)?;
        let stopper = driver.stopper();
        let birth = Birth::here()
            .map_err(|source| DriverError::System { what: "map memory that a forked child does not get", source })?;
        let thread = std::thread::Builder::new().name("ringbus-driver".into()).spawn(move || {
            if let Err(error) = driver.run() {
                tracing::error!(%error, "the embedded media driver has stopped");
            }
        });
        let thread = thread.map_err(|source| DriverError::System { what: "start its thread", source })?;
        Ok(Self { address: config.address.clone(), birth, stopper, thread: Some(thread) })
    }

    /// Where it listens, also for other processes.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A client of this driver.
    ///
    /// # Errors
    ///
    /// See [`ClientBuilder::connect`].
    pub fn connect(&self) -> Result<Client, Error> {
        self.client().connect()
    }

    /// A client of this driver, to be configured.
    pub fn client(&self) -> ClientBuilder {
        Client::builder().address(self.address.clone())
    }
}

impl Drop for EmbeddedDriver {
    fn drop(&mut self) {
        if !self.birth.is_here() {
            // Not even detached: by its number the C library would find another thread of this process.
            std::mem::forget(self.thread.take());
            return;
        }
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            // It panics only if there is a bug, which then has been reported already.
            let _ = thread.join();
        }
    }
}
