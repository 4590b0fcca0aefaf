//! A subscriber: takes messages by all ways there are, and checks each as it comes: checksum, sender, and that it is the next of its image.
//!
//! The first message of an image may have any sequence (it joined then); from there on they come without a gap, where on a lossy channel the messages
//! reported lost count as come. What must be true of the first and the last, only the controller can know.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use ringbus::{Action, Client, ImageEvent, Kind, Message, PollError, Ready, Subscription};
use rustix::event::epoll::EventFlags;
use testing::{EventLoop, Random, now};

use crate::ledger::{DELIVERED, IMAGES, Image, LOST, Ledger, MOST_IMAGES};
use crate::party::{Incarnation, Work, patience};

/// Subscribes until it is told to close.
pub fn run(client: &Client, work: &Work, own: &Incarnation, mut random: Random) {
    let open = || {
        let channel = client.channel(&work.channel).kind(work.kind).overflow(work.overflow).capacity(work.capacity);
        channel.idle(work.idle).subscription()
    };
    let Some(mut subscription) = own.open(Subscription::id, open) else { return };
    let events = work.by_epoll.then(|| EventLoop::around(&subscription, EventFlags::IN));
    let mut book = Book { ledger: &own.ledger, images: HashMap::new(), kind: work.kind, position: None, overslept: false };
    while !own.is_stopping() {
        let outcome = take(&mut subscription, &mut book, &mut random);
        while let Some(event) = subscription.next_event() {
            book.note(event);
        }
        match outcome {
            // Slow now and then, so that rings fill up.
            Ok(taken) if taken > 0 && random.below(128) == 0 => std::thread::sleep(Duration::from_millis(random.below(100))),
            Ok(taken) if taken > 0 => {}
            Ok(_) => book.overslept = !wait(&mut subscription, events.as_ref(), patience(&mut random)),
            Err(PollError::Lost { image, messages }) => book.lose(image, messages),
            Err(error) => return own.ledger.set_fault(&format!("cannot poll: {error}")),
        }
    }
}

/// Some messages, in one way or another.
fn take(subscription: &mut Subscription, book: &mut Book<'_>, random: &mut Random) -> Result<usize, PollError> {
    if random.below(4) == 0 {
        return Ok(subscription.next()?.map_or(0, |message| {
            book.enter(&message);
            1
        }));
    }
    let limit = 1 + random.below(32) as usize;
    let handler = |message: Message<'_>| {
        // Not taken: it comes again.
        let action = random.below(64);
        if action == 0 {
            return Action::Abort;
        }
        book.enter(&message);
        match action {
            1 => Action::Break,
            2 => Action::Commit,
            _ => Action::Continue,
        }
    };
    let mut aborted = false;
    let mut handler = handler;
    let taken = subscription.poll_controlled(
        |message| {
            let action = handler(message);
            aborted |= action == Action::Abort;
            action
        },
        limit,
    )?;
    Ok(taken + usize::from(aborted))
}

/// `false` if the deadline ended the wait.
fn wait(subscription: &mut Subscription, events: Option<&EventLoop>, patience: Duration) -> bool {
    match events {
        Some(events) => events.turn(patience),
        None => subscription.wait(Some(Instant::now() + patience)) != Ready::TimedOut,
    }
}

/// The ledger, and what need not survive.
struct Book<'a> {
    ledger: &'a Ledger,
    images: HashMap<u64, usize>,
    kind: Kind,
    /// Of the last message, on an mpsc channel: its producers have one order.
    position: Option<u64>,
    /// The last wait ended by its deadline.
    overslept: bool,
}

impl Book<'_> {
    fn image(&mut self, id: u64) -> usize {
        let next = self.images.len();
        if next == MOST_IMAGES {
            self.ledger.set_fault("more images than a ledger has room for");
            return next - 1;
        }
        let ledger = self.ledger;
        *self.images.entry(id).or_insert_with(|| {
            ledger.set(IMAGES, next as u64 + 1);
            next
        })
    }

    fn note(&mut self, event: ImageEvent) {
        match event {
            ImageEvent::Available(info) => {
                let image = self.image(info.id);
                self.ledger.set_image(image, Image::Publication, info.publication);
            }
            ImageEvent::Closed(info) => {
                let image = self.image(info.id);
                self.ledger.set_image(image, Image::EndedAt, now());
            }
            ImageEvent::Failed(reason) => self.ledger.set_fault(&format!("a link has failed: {reason}")),
            other => self.ledger.set_fault(&format!("an event that was not there when this was written: {other:?}")),
        }
    }

    fn enter(&mut self, message: &Message<'_>) {
        let Ok((sender, sequence)) = catch_unwind(AssertUnwindSafe(|| testing::check(message.payload()))) else {
            return self.ledger.set_fault(&format!("damaged: {message:?}"));
        };
        let age = u64::from(((now() / 1_000_000) as u16).wrapping_sub(message.tag()));
        if std::mem::take(&mut self.overslept) && (1000..60_000).contains(&age) {
            self.ledger.note_late(now() - age * 1_000_000, now());
        }
        let image = self.image(message.image());
        let (get, set) = (|word| self.ledger.image(image, word), |word, value| self.ledger.set_image(image, word, value));
        let known = get(Image::Sender);
        if known == 0 {
            let lost = get(Image::Lost);
            if lost > sequence {
                return self.ledger.set_fault(&format!("{lost} lost before message {sequence} of {sender}"));
            }
            set(Image::First, sequence - lost);
            set(Image::Next, sequence);
            set(Image::Sender, u64::from(sender));
        } else if known != u64::from(sender) {
            return self.ledger.set_fault(&format!("a message of {sender} in the image of {known}"));
        }
        let next = get(Image::Next);
        if sequence != next {
            return self.ledger.set_fault(&format!("message {sequence} of {sender} where {next} was to come: {message:?}"));
        }
        if self.kind == Kind::Mpsc && self.position.replace(message.position()).is_some_and(|last| last >= message.position()) {
            return self.ledger.set_fault(&format!("message {sequence} of {sender} has a position that was passed"));
        }
        set(Image::Delivered, get(Image::Delivered) + 1);
        set(Image::Next, sequence + 1);
        self.ledger.add(DELIVERED, 1);
        self.ledger.progress();
    }

    fn lose(&mut self, image: u64, messages: u64) {
        let image = self.image(image);
        let add = |word, value| self.ledger.set_image(image, word, self.ledger.image(image, word) + value);
        add(Image::Lost, messages);
        if self.ledger.image(image, Image::Sender) != 0 {
            add(Image::Next, messages);
        }
        self.ledger.add(LOST, messages);
        self.ledger.progress();
    }
}
