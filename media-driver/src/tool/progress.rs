//! Progress on stderr, if that is a terminal.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// How far we are. Costs nothing when nobody watches.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    messages: u64,
    bytes: u64,
}

impl Progress {
    /// `total` bytes, if that is known.
    pub(crate) fn new(total: Option<u64>) -> Self {
        let bar = stderr().is_terminal().then(|| match total {
            Some(total) => ProgressBar::new(total).with_style(style("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {msg}")),
            None => ProgressBar::new_spinner().with_style(style("{spinner} {bytes} {bytes_per_sec} {msg}")),
        });
        Self { bar, messages: 0, bytes: 0 }
    }

    /// One more message.
    pub(crate) fn add(&mut self, bytes: usize) {
        const EVERY: u64 = 1024;
        self.messages += 1;
        self.bytes += bytes as u64;
        if self.messages.is_multiple_of(EVERY) {
            self.show();
        }
    }

    /// Shows it now: before a pause, for example.
    pub(crate) fn show(&self) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
            bar.set_message(format!("{} messages", self.messages));
        }
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show();
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates above are fixed; should one be wrong, the default will do.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
