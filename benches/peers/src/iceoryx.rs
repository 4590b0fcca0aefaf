//! iceoryx2: publish and subscribe with payloads of a fixed size, loaned and made in place, which is what it recommends. As nothing may be lost, safe overflow is
//! off and the publisher retries until a sample is delivered; the buffers are as long as the rings of the others. Each slice has a root directory of its own.
//!
//! To be woken, a subscriber has a listener of the event service beside it, and its publisher notifies after each sample.

use std::mem::MaybeUninit;

use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe;

use crate::Outcome;
use crate::harness::patiently;
use crate::message::Message;
use crate::workload::{Receiver, Sender, Transport, ring_slots};

/// The node of an end.
pub struct Iceoryx {
    node: Node<ipc::Service>,
    sleeps: bool,
}

impl Iceoryx {
    /// Makes a node. `sleeps`: receivers sleep until they are woken.
    pub fn new(directory: &std::path::Path, sleeps: bool) -> Outcome<Self> {
        set_log_level(LogLevel::Error);
        let mut config = Config::default();
        let text = directory.to_str().ok_or("a path that is no text")?;
        config.global.set_root_path(&Path::new(format!("{text}/iceoryx2").as_bytes())?);
        let name = directory.file_name().and_then(|name| name.to_str()).ok_or("a directory without a name")?;
        config.global.prefix = FileName::new(format!("{name}_").as_bytes())?;
        Ok(Self { node: NodeBuilder::new().config(&config).create::<ipc::Service>()?, sleeps })
    }

    /// A publisher of a service of its own.
    pub fn publisher(&self, number: u32) -> Outcome<Publisher<ipc::Service, [u8; 32], ()>> {
        Ok(self.service::<32>(&format!("attach {number}"))?.publisher_builder().create()?)
    }

    /// A subscriber of a service of its own.
    pub fn subscriber(&self, number: u32) -> Outcome<Subscriber<ipc::Service, [u8; 32], ()>> {
        Ok(self.service::<32>(&format!("attach {number}"))?.subscriber_builder().create()?)
    }

    fn service<const BYTES: usize>(&self, name: &str) -> Outcome<publish_subscribe::PortFactory<ipc::Service, [u8; BYTES], ()>> {
        let service = self.node.service_builder(&name.try_into()?).publish_subscribe::<[u8; BYTES]>();
        let service = service.enable_safe_overflow(false).history_size(0).subscriber_max_buffer_size(ring_slots(BYTES));
        Ok(service.max_publishers(1).max_subscribers(1).open_or_create()?)
    }

    fn event(&self, lane: &str) -> Outcome<iceoryx2::service::port_factory::event::PortFactory<ipc::Service>> {
        Ok(self.node.service_builder(&lane.try_into()?).event().open_or_create()?)
    }
}

impl Transport for Iceoryx {
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>> {
        let service = self.service::<BYTES>(lane)?;
        let publisher = service.publisher_builder().backpressure_strategy(BackpressureStrategy::RetryUntilDelivered).create()?;
        patiently("find the subscriber", || Ok((service.dynamic_config().number_of_subscribers() > 0).then_some(())))?;
        let mut notifier = None;
        if self.sleeps {
            let event = self.event(lane)?;
            notifier = Some(event.notifier_builder().create()?);
            patiently("find the listener", || Ok((event.dynamic_config().number_of_listeners() > 0).then_some(())))?;
        }
        Ok(IceoryxSender { publisher, notifier })
    }

    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>> {
        let listener = if self.sleeps { Some(self.event(lane)?.listener_builder().create()?) } else { None };
        let service = self.service::<BYTES>(lane)?;
        let subscriber = service.subscriber_builder().create()?;
        patiently("find the publisher", || Ok((service.dynamic_config().number_of_publishers() > 0).then_some(())))?;
        // Looking connects: before that the publisher does not wait for room, and what does not fit the buffer is lost.
        subscriber.has_samples()?;
        Ok(IceoryxReceiver { subscriber, listener })
    }
}

struct IceoryxSender<const BYTES: usize> {
    publisher: Publisher<ipc::Service, [u8; BYTES], ()>,
    notifier: Option<Notifier<ipc::Service>>,
}

impl<const BYTES: usize> Sender<BYTES> for IceoryxSender<BYTES> {
    #[inline(always)]
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        let mut sample = self.publisher.loan_uninit()?;
        let place: &mut MaybeUninit<[u8; BYTES]> = sample.payload_mut();
        // SAFETY: the place is lent to us.
        unsafe { message.write_at(place.as_mut_ptr()) };
        // SAFETY: written just now.
        unsafe { sample.assume_init() }.send()?;
        if let Some(notifier) = &self.notifier {
            notifier.notify()?;
        }
        Ok(true)
    }
}

struct IceoryxReceiver<const BYTES: usize> {
    subscriber: Subscriber<ipc::Service, [u8; BYTES], ()>,
    listener: Option<Listener<ipc::Service>>,
}

impl<const BYTES: usize> Receiver<BYTES> for IceoryxReceiver<BYTES> {
    #[inline(always)]
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        for number in 0..limit {
            let Some(sample) = self.subscriber.receive()? else { return Ok(number) };
            read(sample.payload());
        }
        Ok(limit)
    }

    #[inline(always)]
    fn wait(&mut self) {
        match &self.listener {
            // If it fails the caller looks again, and will say what is wrong.
            Some(listener) => drop(listener.blocking_wait(|_| {})),
            None => core::hint::spin_loop(),
        }
    }
}
