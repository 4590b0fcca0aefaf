//! A lossy channel: the publisher never waits, and a subscriber that is too slow learns exactly how much it has lost.
//!
//! The driver is embedded and the publisher is a thread of this process, so that the example runs by itself.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use media_driver::EmbeddedDriver;
use ringbus::{Client, ImageEvent, OfferError, Overflow, PollError};

const MESSAGES: u64 = 2_000_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lossy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let driver = EmbeddedDriver::launch()?;
    let client = driver.connect()?;
    let mut subscription = client.channel("ticker").overflow(Overflow::Lossy).capacity(64 << 10).subscription()?;
    let publisher = std::thread::spawn(move || publish(&client));

    let (mut delivered, mut lost, mut gaps) = (0, 0, 0);
    loop {
        match subscription.next() {
            Ok(Some(message)) => {
                // Every message is either delivered or counted as lost, so its number is known beforehand.
                let expected = delivered + lost;
                if message.payload() != u64::to_le_bytes(expected) {
                    return Err(format!("instead of number {expected} came {message:?}").into());
                }
                delivered += 1;
                if delivered % 1000 == 0 {
                    // Something else to do.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(None) => {
                if let Some(ImageEvent::Closed(_)) = subscription.next_event() {
                    break;
                }
                subscription.wait(None);
            }
            Err(PollError::Lost { messages, .. }) => {
                gaps += 1;
                lost += messages;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let published = publisher.join().map_err(|_| "the publisher panicked")??;
    println!("{published} published = {delivered} delivered + {lost} lost in {gaps} gaps");
    if published == delivered + lost { Ok(()) } else { Err("they do not add up".into()) }
}

/// Returns how many were sent.
fn publish(client: &Client) -> Result<u64, String> {
    let failed = |error: OfferError| format!("the publisher failed: {error}");
    let mut publication = client.publication("ticker").map_err(|error| error.to_string())?;
    publication.wait_connected(None).map_err(failed)?;
    for number in 0..MESSAGES {
        // Never back pressure: what is oldest gives way.
        publication.offer(&number.to_le_bytes()).map_err(failed)?;
    }
    Ok(MESSAGES)
}
