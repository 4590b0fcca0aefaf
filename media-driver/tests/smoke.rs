//! smoke
use media_driver::EmbeddedDriver;
use ringbus::*;
#[test]
fn broadcast_and_mpsc() {
    let driver = EmbeddedDriver::launch().unwrap();
    let client = driver.connect().unwrap();
    for kind in [Kind::Spsc, Kind::Broadcast, Kind::Mpsc] {
        let name = format!("a/{kind}");
        let mut publication = client.channel(&name).kind(kind).publication().unwrap();
        let mut subscription = client.channel(&name).kind(kind).subscription().unwrap();
        publication.wait_connected(None).unwrap();
        let t = std::thread::spawn(move || {
            for i in 0u64..1_000_000 {
                publication.offer_until(0, &i.to_le_bytes(), None).unwrap();
            }
        });
        for i in 0u64..1_000_000 {
            let m = subscription.recv().unwrap();
            assert_eq!(m.payload(), i.to_le_bytes());
        }
        t.join().unwrap();
        assert!(matches!(subscription.next_event(), Some(ImageEvent::Available(_))));
        assert_eq!(subscription.wait(None), Ready::Event);
        assert!(matches!(subscription.next_event(), Some(ImageEvent::Closed(_))));
    }
}
