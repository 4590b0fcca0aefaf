//! What the driver makes, and the ends that clients map.

use core::ptr::NonNull;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use ringbus::ring::layout::{ImageLine, MAX_PRODUCERS, MpscControl, SingleControl, SleepPage, SubscriptionPage};
use ringbus::ring::region::Region;
use ringbus::ring::single::Overwrite;
use ringbus::ring::{mpsc, single};

/// One end of a ring, with the memory it is mapped to.
#[derive(Debug)]
pub struct Mapped<End, Memory> {
    end: End,
    memory: Arc<Memory>,
}

impl<End, Memory> Mapped<End, Memory> {
    /// The memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

impl<End, Memory> Deref for Mapped<End, Memory> {
    type Target = End;

    fn deref(&self) -> &End {
        &self.end
    }
}

impl<End, Memory> DerefMut for Mapped<End, Memory> {
    fn deref_mut(&mut self) -> &mut End {
        &mut self.end
    }
}

/// The ring of a publication, and a page for each of its subscriptions.
#[derive(Debug)]
pub struct SingleMemory {
    /// The ring's control area.
    pub control: SingleControl,
    /// The subscriptions' pages. Only the first image line of each is used.
    pub pages: Vec<SubscriptionPage>,
    /// What they share.
    pub sleep_page: SleepPage,
    region: Region,
    overwrite: Overwrite,
}

impl SingleMemory {
    /// A ring of `capacity` bytes and `subscriptions` pages, all zero.
    // An `Arc` like everywhere else in the models, though loom's threads are really one.
    #[allow(clippy::arc_with_non_send_sync)]
    pub fn new(capacity: u64, overwrite: Overwrite, subscriptions: usize) -> Arc<Self> {
        Arc::new(Self {
            control: SingleControl::default(),
            pages: (0..subscriptions).map(|_| SubscriptionPage::default()).collect(),
            sleep_page: SleepPage::default(),
            region: Region::new(capacity),
            overwrite,
        })
    }

    /// The one producer. It has no readers yet.
    pub fn producer(self: &Arc<Self>) -> Mapped<single::Producer, Self> {
        // SAFETY: the memory lives as long as `Mapped`, and each model makes one producer.
        let end = unsafe { single::Producer::new(NonNull::from(&self.control), self.region.clone(), self.overwrite) };
        Mapped { end, memory: self.clone() }
    }

    /// The reader of that subscription, at the end of `link`. It is to be [added](Self::add_reader) to the producer.
    pub fn consumer(self: &Arc<Self>, subscription: usize, link: u64) -> Mapped<single::Consumer, Self> {
        let control = NonNull::from(&self.control);
        let (region, line) = (self.region.clone(), self.line(subscription));
        // SAFETY: the memory lives as long as `Mapped`; each model makes one reader per link, and one after the other on the same line.
        let end = unsafe { single::Consumer::new(control, region, line, link, subscription, self.overwrite) };
        Mapped { end, memory: self.clone() }
    }

    fn line(&self, subscription: usize) -> NonNull<ImageLine> {
        NonNull::from(&self.pages[subscription].images[0])
    }
}

impl Mapped<single::Producer, SingleMemory> {
    /// Takes in the reader of that subscription, at the end of `link`.
    pub fn admit(&mut self, subscription: usize, link: u64) {
        let line = self.memory.line(subscription);
        // SAFETY: the memory lives as long as `self`; models use no more subscriptions than the join table has slots.
        unsafe { self.end.add_reader(link, subscription, line) }
    }
}

impl SingleMemory {
    /// A producer and the readers of all subscriptions, taken in: their links are 1, 2, ..
    pub fn linked(self: &Arc<Self>) -> (Mapped<single::Producer, Self>, Vec<Mapped<single::Consumer, Self>>) {
        let mut producer = self.producer();
        let mut link = 0;
        let consumers = (0..self.pages.len())
            .map(|subscription| {
                link += 1;
                producer.admit(subscription, link);
                self.consumer(subscription, link)
            })
            .collect();
        (producer, consumers)
    }
}

/// The ring of a subscription with many publications, and its page.
#[derive(Debug)]
pub struct MpscMemory {
    /// The ring's control area.
    pub control: MpscControl,
    /// The subscription's page.
    pub page: SubscriptionPage,
    region: Region,
}

impl MpscMemory {
    /// A ring of `capacity` bytes, all zero.
    // An `Arc` like everywhere else in the models, though loom's threads are really one.
    #[allow(clippy::arc_with_non_send_sync)]
    pub fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self { control: MpscControl::default(), page: SubscriptionPage::default(), region: Region::new(capacity) })
    }

    /// The producer in `slot`.
    pub fn producer(self: &Arc<Self>, slot: u8) -> Mapped<mpsc::Producer, Self> {
        // SAFETY: the memory lives as long as `Mapped`; models give a slot to one producer at a time.
        let end = unsafe { mpsc::Producer::new(NonNull::from(&self.control), self.region.clone(), slot) };
        Mapped { end, memory: self.clone() }
    }

    /// The one consumer. It expects a producer in every slot.
    pub fn consumer(self: &Arc<Self>) -> Mapped<mpsc::Consumer, Self> {
        self.consumer_of(0..MAX_PRODUCERS as u8)
    }

    /// The one consumer, which knows of producers in these slots.
    pub fn consumer_of(self: &Arc<Self>, slots: impl IntoIterator<Item = u8>) -> Mapped<mpsc::Consumer, Self> {
        // SAFETY: the memory lives as long as `Mapped`, and each model makes one consumer.
        let end = unsafe { mpsc::Consumer::new(NonNull::from(&self.control), self.region.clone()) };
        slots.into_iter().for_each(|slot| end.taken_slots().producer_comes(slot));
        Mapped { end, memory: self.clone() }
    }

    /// Whether all of the ring's data is zero, as it must be where nothing is claimed.
    pub fn is_zero(&self) -> bool {
        self.region.read(0, self.region.capacity() as usize).iter().all(|&byte| byte == 0)
    }
}
