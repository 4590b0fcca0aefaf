//! A subscription in an ordinary event loop: its fd in one epoll set with a timer.
//!
//! The driver is embedded and the publisher is a thread of this process, so that the example runs by itself. It ends after the last message.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use media_driver::EmbeddedDriver;
use ringbus::{Client, OfferError};
use rustix::event::epoll;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

const MESSAGES: u64 = 1000;
/// Twenty times as long as it takes.
const MOST_TICKS: u64 = 200;

const SUBSCRIPTION: u64 = 1;
const TIMER: u64 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("epoll: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let driver = EmbeddedDriver::launch()?;
    let client = driver.connect()?;
    let mut subscription = client.subscription("numbers")?;
    let publisher = std::thread::spawn(move || publish(&client));

    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let tick = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: tick, it_value: tick })?;

    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &subscription, epoll::EventData::new_u64(SUBSCRIPTION), epoll::EventFlags::IN)?;
    epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;

    let (mut received, mut ticks, mut wakeups) = (0, 0, 0);
    let mut events = Vec::with_capacity(8);
    while received < MESSAGES {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            match event.data.u64() {
                SUBSCRIPTION => {
                    wakeups += 1;
                    // Until there is nothing more, neither messages nor events: then the fd is no longer readable.
                    while let Some(event) = subscription.next_event() {
                        println!("{event:?}");
                    }
                    while let Some(message) = subscription.next()? {
                        if message.payload() != u64::to_le_bytes(received) {
                            return Err(format!("instead of number {received} came {message:?}").into());
                        }
                        received += 1;
                    }
                }
                _ => {
                    let mut expirations = [0; 8];
                    rustix::io::read(&timer, &mut expirations)?;
                    ticks += u64::from_ne_bytes(expirations);
                    println!("tick {ticks}: {received} messages in {wakeups} wake-ups");
                    if ticks > MOST_TICKS {
                        return Err(format!("{} messages did not come", MESSAGES - received).into());
                    }
                }
            }
        }
    }
    println!("all {received} messages in {wakeups} wake-ups");
    publisher.join().map_err(|_| "the publisher panicked")?.map_err(Into::into)
}

fn publish(client: &Client) -> Result<(), String> {
    let failed = |error: OfferError| format!("the publisher failed: {error}");
    let mut publication = client.publication("numbers").map_err(|error| error.to_string())?;
    publication.wait_connected(None).map_err(failed)?;
    for number in 0..MESSAGES {
        publication.offer_until(0, &number.to_le_bytes(), None).map_err(failed)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
