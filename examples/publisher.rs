//! Sends ten greetings to whoever runs `subscriber.rs`. Both need a running driver (`ringbusd`); who starts first does not matter.

use std::error::Error;
use std::process::ExitCode;

use ringbus::Client;

fn publish() -> Result<(), Box<dyn Error>> {
    let client = Client::connect()?;
    let mut publication = client.publication("greetings")?;
    publication.wait_connected(None)?;
    for number in 1..=10 {
        publication.offer_until(0, format!("hello {number}").as_bytes(), None)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match publish() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("publisher: {error}");
            ExitCode::FAILURE
        }
    }
}
