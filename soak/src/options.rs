//! What can be set.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;

/// Runs a mesh of publishers and subscribers over all kinds of channel, kills, stops, restarts and adds them at random, the media driver included, and verifies every message.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Options {
    /// How long.
    #[arg(long, default_value = "10m")]
    pub duration: humantime::Duration,
    /// Repeats the same choices (not the same timing). Default: a new one, which is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Channels of each kind, lossy broadcast ones a kind of their own.
    #[arg(long, value_name = "SPSC,BLOCK,LOSSY,MPSC", default_value = "4,3,2,3", value_delimiter = ',', num_args = 4)]
    pub channels: Vec<usize>,
    /// Publishers of a broadcast or mpsc channel.
    #[arg(long, default_value_t = 3)]
    pub publishers: usize,
    /// Subscribers of a broadcast channel.
    #[arg(long, default_value_t = 3)]
    pub subscribers: usize,
    /// Kills a second, on average.
    #[arg(long, default_value_t = 4.5)]
    pub kills: f64,
    /// How often each action is taken in relation to the others: kill, driver (kill and restart it), stop (and continue), driver-stop, reopen (close and open in the same
    /// process), restart (of the process, in good order), remove (kill, and nobody in its place for some seconds).
    #[arg(long, default_value = "kill=73,driver=2,stop=20,driver-stop=1,reopen=10,restart=6,remove=5")]
    pub weights: Weights,
    /// Longest message in bytes.
    #[arg(long, default_value_t = 300)]
    pub longest: u64,
    /// Bytes of a ring; every other channel gets four times that.
    #[arg(long, default_value_t = 4096)]
    pub capacity: u64,
    /// Messages of a burst, at most.
    #[arg(long, default_value_t = 32)]
    pub burst: u64,
    /// Longest usual pause between bursts.
    #[arg(long, default_value = "40ms")]
    pub pause: humantime::Duration,
    /// How long a living party may make no progress.
    #[arg(long, default_value = "10s")]
    pub stall: humantime::Duration,
    /// How often all close, so that everything can be compared and nothing may be left.
    #[arg(long, default_value = "1m")]
    pub epoch: humantime::Duration,
    /// Nobody else on this machine uses shared memory: check `Shmem` of /proc/meminfo, too.
    #[arg(long)]
    pub alone: bool,
}

impl Options {
    /// Usual pause between bursts.
    pub fn pause(&self) -> Duration {
        self.pause.into()
    }
}

/// What can be done to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// `SIGKILL`.
    Kill,
    /// `SIGKILL` to the driver, and a new one.
    Driver,
    /// `SIGSTOP`, and `SIGCONT` later.
    Stop,
    /// The driver is stopped for a moment.
    DriverStop,
    /// Closes and opens again.
    Reopen,
    /// Ends in good order, and another process takes its place.
    Restart,
    /// `SIGKILL`, and nobody comes for a while.
    Remove,
}

impl FromStr for Action {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "kill" => Self::Kill,
            "driver" => Self::Driver,
            "stop" => Self::Stop,
            "driver-stop" => Self::DriverStop,
            "reopen" => Self::Reopen,
            "restart" => Self::Restart,
            "remove" => Self::Remove,
            _ => return Err(format!("there is no action {name}")),
        })
    }
}

/// How often each action is taken in relation to the others.
#[derive(Debug, Clone)]
pub struct Weights(BTreeMap<Action, u64>);

impl FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = BTreeMap::new();
        for pair in text.split(',') {
            let (name, weight) = pair.split_once('=').ok_or_else(|| format!("{pair}: not ACTION=WEIGHT"))?;
            weights.insert(name.parse()?, weight.parse().map_err(|error| format!("{pair}: {error}"))?);
        }
        let weights = Self(weights);
        if weights.kills() == 0 { Err("nobody would be killed".to_owned()) } else { Ok(weights) }
    }
}

impl Weights {
    fn total(&self) -> u64 {
        self.0.values().sum()
    }

    fn kills(&self) -> u64 {
        let kills = [Action::Kill, Action::Driver, Action::Remove];
        kills.iter().filter_map(|action| self.0.get(action)).sum()
    }

    /// Actions for each kill.
    pub fn actions_per_kill(&self) -> f64 {
        self.total() as f64 / self.kills() as f64
    }

    /// An action for a random number.
    pub fn choose(&self, random: &mut testing::Random) -> Action {
        let mut number = random.below(self.total());
        for (&action, &weight) in &self.0 {
            if number < weight {
                return action;
            }
            number -= weight;
        }
        unreachable!("the number is below the sum")
    }
}
