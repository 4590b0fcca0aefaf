//! Prints the greetings of `publisher.rs` until it is gone. Both need a running driver (`ringbusd`); who starts first does not matter.

use std::error::Error;
use std::process::ExitCode;

use ringbus::{Client, ImageEvent};

fn subscribe() -> Result<(), Box<dyn Error>> {
    let client = Client::connect()?;
    let mut subscription = client.subscription("greetings")?;
    loop {
        subscription.wait(None);
        subscription.poll(|message| println!("{}", String::from_utf8_lossy(message.payload())), 100)?;
        match subscription.next_event() {
            // Comes after the last message of the publication.
            Some(ImageEvent::Closed(_)) => return Ok(()),
            Some(ImageEvent::Failed(reason)) => return Err(reason.into()),
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    match subscribe() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("subscriber: {error}");
            ExitCode::FAILURE
        }
    }
}
