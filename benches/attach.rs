//! What it costs to attach to a channel and to leave it again: everything the driver has to do with. Afterwards it has nothing to do with the data.
//!
//! One process, so each figure holds the work of the client, of the driver and of the peer where there is one.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use media_driver::EmbeddedDriver;
use ringbus::ImageEvent;

fn attach(criterion: &mut Criterion) {
    let driver = EmbeddedDriver::launch().expect("no driver");
    let client = driver.connect().expect("no client");
    let mut group = criterion.benchmark_group("attach");
    // As in `ring`: a short run for CI, which shows that it works and little more.
    if std::env::var_os("RINGBUS_BENCH_QUICK").is_some() {
        group.sample_size(10).warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(200));
    }

    group.bench_function("connect", |bencher| bencher.iter(|| driver.connect().expect("no client")));
    group.bench_function("publication", |bencher| bencher.iter(|| client.publication("attach/alone").expect("no publication")));
    group
        .bench_function("subscription", |bencher| bencher.iter(|| client.subscription("attach/alone").expect("no subscription")));

    // From both sides until either is gone: a publication comes, sends one message, and goes.
    let mut subscription = client.subscription("attach/together").expect("no subscription");
    group.bench_function("publication, a message, until closed", |bencher| {
        bencher.iter(|| {
            let mut publication = client.publication("attach/together").expect("no publication");
            publication.wait_connected(None).expect("not connected");
            publication.offer(b"hello").expect("not sent");
            drop(publication);
            black_box(subscription.recv().expect("nothing received").payload());
            loop {
                subscription.wait(None);
                if let Some(ImageEvent::Closed(_)) = subscription.next_event() {
                    break;
                }
            }
        });
    });
    group.finish();
}

criterion_group!(benches, attach);
criterion_main!(benches);
