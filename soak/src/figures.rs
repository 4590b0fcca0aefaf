//! What is counted and measured.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Counts of everything, and times from a kill to the next progress of others.
#[derive(Debug)]
pub struct Figures {
    /// Publishers killed.
    pub publishers_killed: u64,
    /// Subscribers killed.
    pub subscribers_killed: u64,
    /// Drivers killed.
    pub drivers_killed: u64,
    /// Parties stopped and continued.
    pub stops: u64,
    /// The driver, likewise.
    pub driver_stops: u64,
    /// Publications and subscriptions closed and opened again in the same process.
    pub reopened: u64,
    /// Processes that ended in good order in between.
    pub restarted: u64,
    /// Messages sent.
    pub sent: u64,
    /// Messages delivered, each in order and undamaged.
    pub delivered: u64,
    /// Messages reported lost on lossy channels.
    pub lost: u64,
    /// Times a publisher had to wait for room.
    pub waits: u64,
    /// Pairs verified to the end.
    pub pairs: u64,
    /// Of those, known to begin with message 0.
    pub from_the_start: u64,
    /// Publishers killed with a message in doubt.
    pub in_doubt: u64,
    /// Waits that ended by their deadline while somebody was stopped or starved, or the driver away.
    pub excused: u64,
    /// Seconds of a process in which it had no core for more than a fifth of the time.
    pub starved: u64,
    /// From any moment to the next progress: what the publishers' own pauses make of it.
    pub undisturbed: Histogram<u64>,
    /// From a kill to the next progress of those who do not need whoever was killed.
    pub others: Histogram<u64>,
    /// Of those who need a successor of the killed.
    pub reunions: Histogram<u64>,
    /// From the kill of a driver to the next progress of anybody.
    pub without_driver: Histogram<u64>,
}

impl Figures {
    /// All zero.
    pub fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(1, 600_000_000, 2).expect("sensible bounds");
        Self {
            publishers_killed: 0,
            subscribers_killed: 0,
            drivers_killed: 0,
            stops: 0,
            driver_stops: 0,
            reopened: 0,
            restarted: 0,
            sent: 0,
            delivered: 0,
            lost: 0,
            waits: 0,
            pairs: 0,
            from_the_start: 0,
            in_doubt: 0,
            excused: 0,
            starved: 0,
            undisturbed: histogram(),
            others: histogram(),
            reunions: histogram(),
            without_driver: histogram(),
        }
    }

    /// All kills.
    pub fn kills(&self) -> u64 {
        self.publishers_killed + self.subscribers_killed + self.drivers_killed
    }

    /// One line about what happened so far.
    pub fn line(&self) -> String {
        format!(
            "{} kills ({} publishers, {} subscribers, {} drivers), {} stops, {} reopened, {} restarted | {} sent, {} delivered, {} lost on lossy, \
             {} waits | {} pairs verified, {} from 0, {} in doubt | others go on after {}",
            self.kills(),
            self.publishers_killed,
            self.subscribers_killed,
            self.drivers_killed,
            self.stops + self.driver_stops,
            self.reopened,
            self.restarted,
            self.sent,
            self.delivered,
            self.lost,
            self.waits,
            self.pairs,
            self.from_the_start,
            self.in_doubt,
            times(&self.others),
        )
    }

    /// The final table.
    pub fn table(&self) -> String {
        let rows = [
            ("publishers killed", self.publishers_killed.to_string()),
            ("subscribers killed", self.subscribers_killed.to_string()),
            ("drivers killed", self.drivers_killed.to_string()),
            ("all killed", self.kills().to_string()),
            ("parties stopped and continued", self.stops.to_string()),
            ("drivers stopped and continued", self.driver_stops.to_string()),
            ("closed and opened again", self.reopened.to_string()),
            ("processes restarted in good order", self.restarted.to_string()),
            ("messages committed", self.sent.to_string()),
            ("messages delivered and verified", self.delivered.to_string()),
            ("reported lost (lossy channels)", self.lost.to_string()),
            ("waits for room", self.waits.to_string()),
            ("pairs verified to their end", self.pairs.to_string()),
            ("pairs known to begin with message 0", self.from_the_start.to_string()),
            ("publishers killed with a message in doubt", self.in_doubt.to_string()),
            ("seconds of a process that had no core for more than 200 ms of it", self.starved.to_string()),
            ("late wake-ups explained by that, by a stop or by the driver's absence", self.excused.to_string()),
            ("from no kill to the next progress, for comparison", times(&self.undisturbed)),
            ("from a kill to others' next progress", times(&self.others)),
            ("... of those who need the successor", times(&self.reunions)),
            ("from a driver's kill to anybody's progress", times(&self.without_driver)),
        ];
        rows.map(|(what, value)| format!("{what:58} {value}\n")).concat()
    }
}

/// Median and so on, of microseconds.
fn times(histogram: &Histogram<u64>) -> String {
    let at = |quantile| Duration::from_micros(histogram.value_at_quantile(quantile));
    format!("50 % {:?}, 99 % {:?}, 99.9 % {:?}, max {:?} (of {})", at(0.5), at(0.99), at(0.999), at(1.0), histogram.len())
}
