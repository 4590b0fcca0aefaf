//! What is sent is what arrives: sizes, tags, claims, batches, polls, positions, and images that come and go.

use std::time::{Duration, Instant};

use media_driver::EmbeddedDriver;
use ringbus::channel::{Publish, Subscribe};
use ringbus::{Action, Client, HugePages, ImageEvent, Kind, OfferError, Overflow, PollError, Ready, RecvError, Subscription};
use testing::{KINDS, PATIENCE, Random, assert_works, connect, event, in_time, pair, until};

const SMALLEST: u64 = 4096;

fn launch() -> (EmbeddedDriver, Client) {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let client = driver.connect().expect("a client");
    (driver, client)
}

/// Every kind of channel there is, with how it overflows.
fn all_kinds() -> impl Iterator<Item = (Kind, Overflow)> {
    let lossy = [(Kind::Spsc, Overflow::Lossy), (Kind::Broadcast, Overflow::Lossy)];
    KINDS.map(|kind| (kind, Overflow::Block)).into_iter().chain(lossy)
}

/// All messages that are there now, as text.
fn texts(subscription: &mut Subscription) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(message) = subscription.next().expect("no error") {
        texts.push(String::from_utf8_lossy(message.payload()).into_owned());
    }
    texts
}

#[test]
fn every_size_from_nothing_to_the_largest_arrives_whole() {
    let (_driver, client) = launch();
    for (kind, overflow) in all_kinds() {
        let (mut publication, mut subscription) = pair(&client, &format!("{kind}/{overflow}"), kind, overflow, SMALLEST);
        let largest = publication.max_payload();
        assert_eq!(largest as u64, if overflow == Overflow::Lossy { SMALLEST / 2 } else { SMALLEST - 16 });
        let bytes: Vec<u8> = (0..largest).map(|at| (at * 7) as u8).collect();
        // Up and down, so that every size meets another place of the ring.
        for length in (0..=largest).chain((0..=largest).rev()) {
            publication.offer_tagged(length as u16, &bytes[..length]).unwrap_or_else(|error| panic!("{kind} {length}: {error}"));
            let message = subscription.next().expect("no error").expect("a message");
            assert!(message.payload() == &bytes[..length], "{kind} {overflow}: {length} bytes");
            assert_eq!(message.tag(), length as u16);
            let mut copy = vec![0; largest];
            assert_eq!(message.copy_to(&mut copy), length);
            assert!(copy[..length] == bytes[..length]);
            // Also gives its room back.
            assert!(subscription.next().expect("no error").is_none());
        }
    }
}

#[test]
fn one_byte_more_than_the_largest_is_too_long_and_harms_nothing() {
    let (_driver, client) = launch();
    for (kind, overflow) in all_kinds() {
        let (mut publication, mut subscription) = pair(&client, &format!("{kind}/{overflow}"), kind, overflow, SMALLEST);
        let max = publication.max_payload();
        let bytes = vec![0x5A; max + 1];
        let too_long = Err(OfferError::TooLong { len: max + 1, max });
        assert_eq!(publication.offer(&bytes), too_long);
        assert_eq!(publication.offer_until(0, &bytes, None), too_long);
        assert_eq!(publication.offer_gather(0, &[&bytes[..max], b"x"]), too_long);
        assert_eq!(publication.batch().offer(&bytes), too_long);
        assert_eq!(publication.try_claim(max + 1).map(drop), too_long.map(drop));
        assert_eq!(publication.try_claim(usize::MAX).map(drop), Err(OfferError::TooLong { len: usize::MAX, max }));
        let text = OfferError::TooLong { len: max + 1, max }.to_string();
        assert!(text.contains(&(max + 1).to_string()) && text.contains(&max.to_string()), "{text}");
        assert!(texts(&mut subscription).is_empty());
        assert_works(&mut publication, &mut subscription);
    }
    // Also before anybody listens: it will never fit.
    for (kind, overflow) in all_kinds() {
        let channel = client.channel("alone").kind(kind).overflow(overflow).capacity(SMALLEST);
        let mut publication = channel.publication().expect("a publication");
        let max = publication.max_payload();
        assert_eq!(publication.offer(&vec![0; max + 1]), Err(OfferError::TooLong { len: max + 1, max }));
        assert_eq!(publication.offer(&vec![0; max]), Err(OfferError::NotConnected));
    }
}

#[test]
fn every_tag_survives() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        for tag in 0..=u16::MAX {
            publication.offer_tagged(tag, b"tagged").expect("room");
            assert_eq!(subscription.next().expect("no error").expect("a message").tag(), tag);
        }
        publication.offer(b"untagged").expect("room");
        assert_eq!(subscription.recv().expect("a message").tag(), 0);
    }
}

#[test]
fn a_gathered_message_is_its_parts_in_a_row() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        publication.offer_gather(3, &[b"one ", b"", b"message ", b"of five ", b"parts"]).expect("room");
        publication.offer_gather(4, &[]).expect("room");
        let message = subscription.recv().expect("a message");
        assert_eq!((message.payload(), message.tag()), (&b"one message of five parts"[..], 3));
        let message = subscription.recv().expect("a message");
        assert_eq!((message.payload(), message.tag()), (&b""[..], 4));
    }
}

#[test]
fn a_claim_is_sent_when_committed_and_leaves_no_trace_when_aborted_or_dropped() {
    let (_driver, client) = launch();
    for (kind, overflow) in all_kinds() {
        let (mut publication, mut subscription) = pair(&client, &format!("{kind}/{overflow}"), kind, overflow, SMALLEST);
        for round in 0..1000 {
            let mut claim = publication.try_claim(12).expect("room");
            claim.copy_from_slice(b"never minded");
            claim.abort();
            drop(publication.try_claim(round % 700).expect("room"));
            let mut claim = publication.try_claim(9).expect("room");
            claim.set_tag(5);
            claim.copy_from_slice(b"committed");
            assert_eq!(&claim[4..], b"itted");
            assert!(subscription.next().expect("no error").is_none(), "it is not committed yet");
            let position = claim.commit();
            assert_eq!(position, publication.position());
            let message = subscription.next().expect("no error").expect("a message");
            assert_eq!((message.payload(), message.tag()), (&b"committed"[..], 5));
            assert!(subscription.next().expect("no error").is_none());
        }
    }
}

#[test]
fn messages_of_a_batch_are_visible_at_once() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        let mut batch = publication.batch();
        batch.offer(b"a").expect("room");
        assert_eq!(texts(&mut subscription), ["a"]);
        batch.offer_tagged(9, b"b").expect("room");
        batch.offer(b"c").expect("room");
        drop(batch);
        assert_eq!(texts(&mut subscription), ["b", "c"]);
    }
}

#[test]
fn the_handler_of_a_controlled_poll_decides_how_it_goes_on() {
    let (_driver, client) = launch();
    for (kind, overflow) in all_kinds() {
        let (mut publication, mut subscription) = pair(&client, &format!("{kind}/{overflow}"), kind, overflow, SMALLEST);
        for text in ["a", "b", "c", "d", "e"] {
            publication.offer(text.as_bytes()).expect("room");
        }
        let mut poll = |limit: usize, answers: &[Action]| {
            let (mut seen, mut answers) = (String::new(), answers.iter());
            let handler = |message: ringbus::Message<'_>| {
                seen.push_str(&String::from_utf8_lossy(message.payload()));
                *answers.next().expect("it is not asked more often")
            };
            let taken = subscription.poll_controlled(handler, limit).expect("no error");
            (taken, seen)
        };
        use Action::{Abort, Break, Commit, Continue};
        assert_eq!(poll(0, &[]), (0, String::new()));
        assert_eq!(poll(10, &[Continue, Abort]), (1, "ab".to_owned()));
        assert_eq!(poll(10, &[Abort]), (0, "b".to_owned()));
        assert_eq!(poll(10, &[Break]), (1, "b".to_owned()));
        assert_eq!(poll(1, &[Continue]), (1, "c".to_owned()));
        assert_eq!(poll(10, &[Commit, Continue]), (2, "de".to_owned()));
        assert_eq!(poll(10, &[]), (0, String::new()));
    }
}

#[test]
fn a_commit_in_a_controlled_poll_makes_room_at_once() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        while publication.offer(&[0; 56]).is_ok() {}
        let mut results = Vec::new();
        let handler = |_: ringbus::Message<'_>| {
            results.push(publication.offer(&[1; 56]).map(drop));
            if results.len() == 1 { Action::Continue } else { Action::Commit }
        };
        assert_eq!(subscription.poll_controlled(handler, 3), Ok(3));
        let full = Err(OfferError::BackPressured);
        assert_eq!(results, [full, full, Ok(())], "{kind}");
    }
}

#[test]
fn a_full_ring_is_back_pressure_until_the_subscription_reads() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        let (mut sent, mut received) = (0u64, 0u64);
        for _ in 0..100 {
            while publication.offer(&sent.to_le_bytes()).is_ok() {
                sent += 1;
            }
            assert_eq!(publication.offer(&[0; 8]), Err(OfferError::BackPressured));
            assert_eq!(publication.offer_until(0, &[0; 8], Some(Instant::now())), Err(OfferError::TimedOut));
            // A frame of 16 bytes each.
            assert!(sent - received >= SMALLEST / 16 - 1, "{kind}: full with {} messages", sent - received);
            while let Some(message) = subscription.next().expect("no error") {
                assert_eq!(message.payload(), received.to_le_bytes());
                received += 1;
            }
            assert_eq!(received, sent);
        }
    }
}

#[test]
fn nobody_listens_before_a_subscription_comes_and_after_it_has_gone() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let name = kind.to_string();
        let mut publication = client.channel(&name).kind(kind).publication().expect("a publication");
        assert_eq!(publication.offer(b"unheard"), Err(OfferError::NotConnected));
        assert_eq!(publication.offer_until(0, b"unheard", None), Err(OfferError::NotConnected));
        assert!(!publication.is_connected());
        assert_eq!(publication.wait_connected(Some(Instant::now())), Ok(false));
        for _ in 0..3 {
            let mut subscription = client.subscription(&name).expect("a subscription");
            assert_eq!(publication.wait_connected(in_time()), Ok(true));
            assert_works(&mut publication, &mut subscription);
            drop(subscription);
            until("the end", || publication.offer(b"unheard") == Err(OfferError::NotConnected));
        }
    }
}

#[test]
fn a_subscription_that_closes_frees_the_publication_it_held_back() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        while publication.offer(&[0; 100]).is_ok() {}
        let blocked = std::thread::spawn(move || publication.offer_until(0, &[0; 100], in_time()));
        drop(subscription);
        assert_eq!(blocked.join().expect("no panic"), Err(OfferError::NotConnected));
    }
    // With another one beside it, the publication goes on.
    let (mut publication, idle) = pair(&client, "two", Kind::Broadcast, Overflow::Block, SMALLEST);
    let mut reader = client.subscription("two").expect("a subscription");
    connect(&mut publication, 2);
    while publication.offer(&[0; 100]).is_ok() {}
    while reader.next().expect("no error").is_some() {}
    drop(idle);
    assert_works(&mut publication, &mut reader);
}

#[test]
fn waits_end_at_their_deadlines() {
    let (_driver, client) = launch();
    let (mut publication, mut subscription) = pair(&client, "idle", Kind::Broadcast, Overflow::Block, SMALLEST);
    assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
    let started = Instant::now();
    let soon = || Some(Instant::now() + Duration::from_millis(20));
    assert_eq!(subscription.recv_until(soon()).map(drop), Err(RecvError::TimedOut));
    assert_eq!(subscription.wait(soon()), ringbus::Ready::TimedOut);
    while publication.offer(&[0; 100]).is_ok() {}
    assert_eq!(publication.offer_until(0, &[0; 100], soon()), Err(OfferError::TimedOut));
    assert!(started.elapsed() >= Duration::from_millis(60) && started.elapsed() < PATIENCE);
}

/// Found by review: who never fetches events was told of the first one for ever, and so waited for nothing else.
#[test]
fn who_does_not_fetch_events_is_told_of_each_once() {
    let (_driver, client) = launch();
    let (mut first, mut subscription) = pair(&client, "told", Kind::Broadcast, Overflow::Block, SMALLEST);
    let soon = || Some(Instant::now() + Duration::from_millis(20));
    assert_eq!(subscription.wait(in_time()), Ready::Event, "the first is there");
    assert_eq!(subscription.wait(soon()), Ready::TimedOut, "that was told");
    let second = client.publication("told").expect("a publication");
    assert_eq!(subscription.wait(in_time()), Ready::Event, "the second is there");
    assert_eq!(subscription.wait(soon()), Ready::TimedOut, "that was told, too");
    first.offer(b"hello").expect("room");
    assert_eq!(subscription.wait(soon()), Ready::Messages);
    assert_eq!(subscription.poll(|_| (), 1), Ok(1));
    drop(second);
    assert_eq!(subscription.wait(in_time()), Ready::Event, "the second is gone");
    // Who fetches one is told of the rest.
    for left in [2, 1] {
        assert!(subscription.next_event().is_some());
        assert_eq!(subscription.wait(soon()), Ready::Event, "{left} more");
    }
    assert!(subscription.next_event().is_some());
    assert_eq!(subscription.wait(soon()), Ready::TimedOut);
}

#[test]
fn positions_and_lag_count_bytes() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        let ImageEvent::Available(image) = event(&mut subscription) else { panic!("the image is available") };
        assert_eq!((publication.capacity(), subscription.capacity()), (SMALLEST, SMALLEST));
        // A frame is a header of 8 bytes and the payload, padded to 8; of many producers, to a power of two.
        let (second, third) = if kind == Kind::Mpsc { (48, 56) } else { (40, 48) };
        assert_eq!(publication.offer(&[0; 8]), Ok(16));
        assert_eq!(publication.offer(&[0; 9]), Ok(second));
        assert_eq!(publication.offer(&[]), Ok(third));
        let mut seen = Vec::new();
        while let Some(message) = subscription.next().expect("no error") {
            assert_eq!(message.image(), image.id);
            let position = message.position();
            seen.push((position, subscription.position(image.id), subscription.lag(image.id)));
        }
        assert_eq!(seen, [(0, Some(16), Some(third - 16)), (16, Some(second), Some(8)), (second, Some(third), Some(0))]);
        if kind != Kind::Mpsc {
            assert_eq!((subscription.position(1), subscription.lag(1)), (None, None));
        }
    }
}

#[test]
fn an_image_is_available_from_its_first_message_and_closed_after_its_last() {
    let (_driver, client) = launch();
    for kind in KINDS {
        for subscription_first in [true, false] {
            let name = format!("{kind}/{subscription_first}");
            let channel = || client.channel(&name).kind(kind);
            let (mut publication, mut subscription);
            if subscription_first {
                subscription = channel().subscription().expect("a subscription");
                publication = channel().publication().expect("a publication");
            } else {
                publication = channel().publication().expect("a publication");
                subscription = channel().subscription().expect("a subscription");
            }
            connect(&mut publication, 1);
            let ImageEvent::Available(image) = event(&mut subscription) else { panic!("it comes first") };
            assert_eq!((image.publication, image.publisher.pid), (publication.id(), std::process::id()));
            assert_eq!(subscription.images(), [image]);
            for number in 0..100u8 {
                publication.offer(&[number]).expect("room");
            }
            drop(publication);
            for number in 0..100u8 {
                assert_eq!(subscription.next_event(), None, "there are messages left");
                assert_eq!(subscription.recv_until(in_time()).expect("a message").payload(), [number]);
            }
            assert_eq!(event(&mut subscription), ImageEvent::Closed(image));
            assert_eq!((subscription.images(), subscription.next_event()), (Vec::new(), None));
            // The channel is the subscription's now, and takes another publication.
            let mut publication = channel().publication().expect("a publication");
            connect(&mut publication, 1);
            assert_works(&mut publication, &mut subscription);
        }
    }
}

#[test]
fn what_a_publication_sent_before_it_closed_arrives_though_the_subscription_never_looked() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Block, SMALLEST);
        publication.offer(b"goodbye").expect("room");
        let id = publication.id();
        drop(publication);
        assert_eq!(subscription.recv_until(in_time()).expect("the message").payload(), b"goodbye");
        assert!(matches!(event(&mut subscription), ImageEvent::Available(image) if image.publication == id));
        assert!(matches!(event(&mut subscription), ImageEvent::Closed(image) if image.publication == id));
    }
}

#[test]
fn a_subscription_sees_everything_from_when_it_is_connected_and_nothing_before() {
    let (_driver, client) = launch();
    for overflow in [Overflow::Block, Overflow::Lossy] {
        let (mut publication, mut first) = pair(&client, &overflow.to_string(), Kind::Broadcast, overflow, SMALLEST);
        let mut subscriptions = Vec::new();
        for number in 0..20u8 {
            publication.offer(&[number]).expect("room");
            assert_eq!(first.recv().expect("a message").payload(), [number]);
            subscriptions.push(client.subscription(&overflow.to_string()).expect("a subscription"));
            connect(&mut publication, usize::from(number) + 2);
        }
        publication.offer(&[20]).expect("room");
        for (number, mut subscription) in (1..).zip(subscriptions) {
            let received: Vec<u8> =
                (number..=20).map(|_| subscription.recv_until(in_time()).expect("a message").payload()[0]).collect();
            assert_eq!(received, (number..=20).collect::<Vec<u8>>());
        }
    }
}

#[test]
fn no_image_starves_another() {
    let (_driver, client) = launch();
    let (mut one, mut subscription) = pair(&client, "fair", Kind::Broadcast, Overflow::Block, SMALLEST);
    let mut two = client.publication("fair").expect("a publication");
    connect(&mut two, 1);
    for _ in 0..20 {
        one.offer(b"one").expect("room");
        two.offer(b"two").expect("room");
    }
    let mut images = Vec::new();
    for _ in 0..10 {
        assert_eq!(subscription.poll(|message| images.push(message.image()), 1), Ok(1));
    }
    for _ in 0..10 {
        images.push(subscription.next().expect("no error").expect("a message").image());
    }
    let ones = images.iter().filter(|&&image| image == images[0]).count();
    assert_eq!(ones, 10, "{images:x?}");
}

#[test]
fn an_mpsc_channel_has_one_order() {
    let (_driver, client) = launch();
    let (first, mut subscription) = pair(&client, "order", Kind::Mpsc, Overflow::Block, SMALLEST);
    let mut publications = vec![first];
    for _ in 1..8 {
        publications.push(client.publication("order").expect("a publication"));
    }
    publications.iter_mut().for_each(|publication| connect(publication, 1));
    let mut random = Random::new(1);
    for round in 0u32..200 {
        let order: Vec<u32> = (0..50).map(|at| round * 50 + at).collect();
        for number in &order {
            let publication = &mut publications[random.below(8) as usize];
            publication.offer(&number.to_le_bytes()).expect("room");
        }
        let mut received = Vec::new();
        subscription
            .poll(|message| received.push(u32::from_le_bytes(message.payload().try_into().expect("four bytes"))), 100)
            .expect("no error");
        assert_eq!(received, order);
    }
}

#[test]
fn a_lapped_subscription_learns_exactly_how_many_messages_it_lost() {
    let (_driver, client) = launch();
    for kind in [Kind::Spsc, Kind::Broadcast] {
        let (mut publication, mut subscription) = pair(&client, &kind.to_string(), kind, Overflow::Lossy, SMALLEST);
        let ImageEvent::Available(image) = event(&mut subscription) else { panic!("the image is available") };
        let (mut random, mut buffer) = (Random::new(2), Vec::new());
        let (mut sent, mut next) = (0, 0);
        for round in 0..500 {
            // From a few messages, which all fit, to several laps.
            for _ in 0..random.below(1 + round) {
                testing::fill(&mut buffer, 1, sent, 20 + random.below(2000));
                publication.offer(&buffer).expect("it never waits");
                sent += 1;
            }
            let mut lost = 0;
            loop {
                match subscription.next() {
                    Ok(None) => break,
                    Ok(Some(message)) => {
                        assert_eq!(testing::check(message.payload()), (1, next));
                        next += 1;
                    }
                    Err(PollError::Lost { image: of, messages }) => {
                        assert_eq!((of, lost), (image.id, 0), "lost once, and by whom");
                        lost = messages;
                        next += messages;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(next, sent, "what was not lost was delivered");
        }
        assert!(sent > 10_000);
    }
}

#[test]
fn channels_and_clients_do_not_mix() {
    let driver = EmbeddedDriver::launch().expect("a driver");
    let clients = [driver.connect().expect("a client"), driver.connect().expect("a client")];
    // The longest name, and all that a name may hold.
    let names = ["a".to_owned(), "a/b".to_owned(), "A-Z.0_9".to_owned(), "x".repeat(255)];
    let mut pairs = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let mut publication = clients[index % 2].publication(name).expect("a publication");
        let subscription = clients[(index + index / 2) % 2].subscription(name).expect("a subscription");
        connect(&mut publication, 1);
        pairs.push((publication, subscription));
    }
    for (publication, _) in &mut pairs {
        let name = publication.channel().name.to_string();
        publication.offer(name.as_bytes()).expect("room");
    }
    for (_, subscription) in &mut pairs {
        let name = subscription.channel().name.to_string();
        assert_eq!(texts(subscription), [name]);
    }
}

#[test]
fn both_ends_move_between_threads() {
    let (_driver, client) = launch();
    let (mut publication, mut subscription) = pair(&client, "moved", Kind::Spsc, Overflow::Block, SMALLEST);
    for _ in 0..10 {
        let thread = std::thread::spawn(move || {
            assert_works(&mut publication, &mut subscription);
            (publication, subscription)
        });
        (publication, subscription) = thread.join().expect("it works there");
    }
}

#[test]
fn an_application_can_be_generic_over_what_carries_its_messages() {
    fn greet(mut to: impl Publish, mut from: impl Subscribe) -> Vec<u8> {
        assert!(to.wait_connected(in_time()).expect("no error") && to.max_payload() > 5);
        to.offer_tagged(1, b"hello").expect("room");
        to.offer_until(2, b"world", in_time()).expect("room");
        let mut got = from.recv_until(in_time()).expect("a message").payload().to_vec();
        let more = |message: ringbus::Message<'_>| {
            got.extend_from_slice(message.payload());
            Action::Continue
        };
        assert_eq!(from.poll_controlled(more, 10), Ok(1));
        got
    }
    let (_driver, client) = launch();
    let publication = client.publication("any").expect("a publication");
    let subscription = client.subscription("any").expect("a subscription");
    assert_eq!(greet(publication, subscription), b"helloworld");
}

#[test]
fn memory_may_be_prefaulted_locked_and_of_huge_pages_if_there_are_any() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let name = kind.to_string();
        let channel = || {
            let channel = client.channel(&name).kind(kind).capacity(1 << 16);
            channel.prefault(true).lock(true).huge_pages(HugePages::IfAvailable)
        };
        let mut publication = channel().publication().expect("a publication");
        let mut subscription = channel().subscription().expect("a subscription");
        connect(&mut publication, 1);
        assert_works(&mut publication, &mut subscription);
    }
}

/// A poll that takes just as many messages as there are does not see that there are no more. Who then waits must not keep the last bit of room to himself.
#[test]
fn who_waits_gives_all_the_room_back() {
    let (_driver, client) = launch();
    for kind in KINDS {
        let (mut publication, mut subscription) = pair(&client, kind.to_string().as_str(), kind, Overflow::Block, 4096);
        let mut sent = 0;
        while publication.offer(&[1; 100]).is_ok() {
            sent += 1;
        }
        assert!(matches!(subscription.next_event(), Some(ImageEvent::Available(_))));
        assert_eq!(subscription.poll(|_| (), sent), Ok(sent));
        let all = vec![2; publication.max_payload()];
        let publisher = std::thread::spawn(move || publication.offer_until(0, &all, in_time()).map(drop));
        assert_eq!(subscription.wait(in_time()), Ready::Messages);
        assert_eq!(publisher.join().expect("no panic"), Ok(()));
    }
}

/// One producer has left in the middle of what is read, so that the consumer goes by the claim records; another comes and claims behind it.
#[test]
fn a_publication_that_comes_in_the_middle_of_a_poll_is_known_before_its_first_claim() {
    let (_driver, client) = launch();
    let channel = || client.channel("newcomer").kind(Kind::Mpsc).capacity(SMALLEST);
    let mut subscription = channel().subscription().expect("a subscription");
    for how in ["holds a claim", "has committed"] {
        let mut first = channel().publication().expect("a publication");
        connect(&mut first, 1);
        assert!(matches!(event(&mut subscription), ImageEvent::Available(_)));
        first.offer(b"first").expect("room");
        first.offer(b"second").expect("room");
        let left = subscription.images();
        drop(first);
        let mut newcomer = None;
        let mut got = Vec::new();
        // Only with the end of the first one known is the ring read by the records.
        until("its end", || client.list().expect("an answer").len() == 1);
        let read = |message: ringbus::Message<'_>| {
            got.push(message.image());
            if newcomer.is_none() {
                let mut publication = channel().publication().expect("a publication");
                connect(&mut publication, 1);
                if how == "holds a claim" {
                    std::mem::forget(publication.try_claim(8).expect("room"));
                } else {
                    publication.offer(b"third").expect("room");
                }
                newcomer = Some(publication);
            }
        };
        assert_eq!(subscription.poll(read, 100), Ok(2), "{how}");
        assert_eq!(got, [left[0].id; 2], "{how}");
        let mut newcomer = newcomer.expect("it came");
        if how == "holds a claim" {
            newcomer.offer(b"third").expect("room");
        }
        let message = subscription.recv_until(in_time()).expect("a message");
        assert_eq!(message.payload(), b"third", "{how}");
        let image = message.image();
        let images = subscription.images();
        let of = images.iter().find(|known| known.id == image).map(|known| known.publication);
        assert_eq!(of, Some(newcomer.id()), "{how}");
        drop(newcomer);
        until("its end", || {
            while subscription.next_event().is_some() {}
            subscription.poll(|_| panic!("a message"), 1).expect("no error");
            subscription.images().is_empty()
        });
    }
}
