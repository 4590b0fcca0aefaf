//! Two processes talk through shared memory for some seconds, and a table says how it went:
//!
//! ```text
//! cargo run --release --example quickstart
//! ```
//!
//! This process embeds a media driver and starts itself twice more, as publisher and as subscriber. These two exchange round trips, then stream
//! in both directions at once. Every message carries its number and a checksum, and the receiver checks both, so nothing can be lost, repeated, reordered or
//! altered without this program failing.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, LineStyle, Table, presets};
use hdrhistogram::Histogram;
use media_driver::EmbeddedDriver;
use ringbus::wait::idle::Idler;
use ringbus::{Address, Client, Idle, OfferError, Publication, Subscription};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What is done, one after the other.
struct Phase {
    name: &'static str,
    idle: Idle,
    length: Duration,
    exchange: Exchange,
}

enum Exchange {
    /// One message there, one back, then a pause.
    RoundTrips { pause: Duration },
    /// As many as fit, in both directions at once.
    Stream,
}

const PHASES: [Phase; 4] = [
    Phase {
        name: "round trips",
        idle: Idle::Adaptive,
        length: Duration::from_secs(2),
        exchange: Exchange::RoundTrips { pause: Duration::ZERO },
    },
    Phase {
        name: "round trips, busy-spin",
        idle: Idle::BusySpin,
        length: Duration::from_secs(1),
        exchange: Exchange::RoundTrips { pause: Duration::ZERO },
    },
    Phase {
        name: "round trips, 10 ms apart",
        idle: Idle::Adaptive,
        length: Duration::from_secs(1),
        exchange: Exchange::RoundTrips { pause: Duration::from_millis(10) },
    },
    // A loop over two directions cannot sleep in either of them.
    Phase {
        name: "stream both ways, yielding",
        idle: Idle::Yielding,
        length: Duration::from_secs(2),
        exchange: Exchange::Stream,
    },
];

const ROUND_TRIP_BYTES: usize = 32;
const STREAM_BYTES: usize = 64;
/// Nothing here takes nearly as long, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tag of the message behind the last.
const END: u16 = 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run(),
        ["publisher", driver] => take_part(Role::Publisher, driver),
        ["subscriber", driver] => take_part(Role::Subscriber, driver),
        _ => Err("it takes no arguments".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart{}: {error}", arguments.first().map(|role| format!(" ({role})")).unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

// The parent: driver, children, table.

/// Starts everything, and collects what the children say, a line each time a phase begins or ends.
fn run() -> Outcome<()> {
    let driver = EmbeddedDriver::launch()?;
    let (sender, lines) = channel();
    let mut children = [
        Running::start(Role::Publisher, driver.address(), sender.clone())?,
        Running::start(Role::Subscriber, driver.address(), sender)?,
    ];
    let seconds = PHASES.iter().map(|phase| phase.length.as_secs()).sum::<u64>();
    println!("A driver, a publisher (process {}) and a subscriber (process {}).", children[0].0.id(), children[1].0.id());
    match sched_getaffinity(None)?.count() {
        0 | 1 => println!("There is one core only: publisher and subscriber take turns, which costs a lot."),
        _ => println!("Publisher and subscriber are pinned to a core each."),
    }
    println!("This takes {seconds} seconds ...\n");

    let mut reports: [Vec<Report>; 2] = Default::default();
    // What the driver used in each phase, as the publisher counts them.
    let mut driver_cpu = Vec::new();
    let mut driver_cpu_before = Duration::ZERO;
    let deadline = Instant::now() + Duration::from_secs(seconds) + 3 * PATIENCE;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((Role::Publisher, Line::Begin)) => driver_cpu_before = cpu_time(),
            Ok((_, Line::Begin)) => {}
            Ok((role, Line::End(report))) => {
                if role == Role::Publisher {
                    driver_cpu.push(cpu_time() - driver_cpu_before);
                }
                reports[role as usize].push(report);
            }
            Ok((role, Line::Last)) => children[role as usize].finish(role)?,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => return Err("publisher or subscriber are stuck".into()),
        }
    }
    let [published, subscribed] = reports;
    if published.len() != PHASES.len() || subscribed.len() != PHASES.len() {
        return Err("publisher or subscriber have left out a phase".into());
    }
    let table = table(&published, &subscribed, &driver_cpu);
    println!("{table}\n");
    println!(
        "Round trip: {ROUND_TRIP_BYTES} bytes there and back; a stream's messages are {STREAM_BYTES} bytes. Each message's number and checksum were \
         verified by its receiver.\nCPU: time on a core, all threads; the driver's is that of its whole process, this one. \
         Spinning for\nthe next message uses a core; where messages are rare the default strategy sleeps instead."
    );
    Ok(())
}

fn table(published: &[Report], subscribed: &[Report], driver_cpu: &[Duration]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
    let header = ["", "messages", "rate", "p50", "p99", "p99.9", "max", "CPU publisher", "subscriber", "driver"];
    table.set_header(header);
    for (((phase, publisher), subscriber), driver) in PHASES.iter().zip(published).zip(subscribed).zip(driver_cpu) {
        let messages = publisher.received + subscriber.received;
        let rate = messages as f64 / publisher.elapsed.as_secs_f64();
        let latencies = publisher.latency.map(|latency| if latency.is_zero() { String::new() } else { format!("{latency:.1?}") });
        let cpu = [publisher.cpu, subscriber.cpu, *driver].map(|cpu| format!("{:.1} ms", cpu.as_secs_f64() * 1e3));
        let mut row = vec![phase.name.to_owned(), messages.to_string(), rate_text(rate)];
        row.extend(latencies);
        row.extend(cpu);
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((1, 0));
        column.set_cell_alignment(if index == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    table
}

fn rate_text(rate: f64) -> String {
    match rate {
        1e6.. => format!("{:.1} M/s", rate / 1e6),
        1e3.. => format!("{:.1} k/s", rate / 1e3),
        _ => format!("{rate:.0} /s"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Publisher,
    Subscriber,
}

/// A child. It does not outlive this.
struct Running(Child);

impl Running {
    fn start(role: Role, driver: &Address, lines: Sender<(Role, Line)>) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(format!("{role:?}").to_lowercase()).arg(driver.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut running = Self(command.spawn()?);
        let output = running.0.stdout.take().ok_or("the child has no output")?;
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let line = if line == "begin" { Some(Line::Begin) } else { Report::from_line(&line).map(Line::End) };
                // What is no such line is missed in the end.
                let Some(line) = line else { break };
                let _ = lines.send((role, line));
            }
            let _ = lines.send((role, Line::Last));
        });
        Ok(running)
    }

    /// It has said all that it will say.
    fn finish(&mut self, role: Role) -> Outcome<()> {
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the {role:?} failed: {status}").to_lowercase().into()) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a child says.
enum Line {
    Begin,
    End(Report),
    Last,
}

/// How a phase went, as one side has seen it.
struct Report {
    /// Messages received and verified.
    received: u64,
    elapsed: Duration,
    cpu: Duration,
    /// Of round trips: p50, p99, p99.9, max.
    latency: [Duration; 4],
}

impl Report {
    fn to_line(&self) -> String {
        let nanoseconds = [self.elapsed, self.cpu].into_iter().chain(self.latency).map(|time| format!(" {}", time.as_nanos()));
        format!("{}{}", self.received, nanoseconds.collect::<String>())
    }

    fn from_line(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [received, times @ ..] = <[u64; 7]>::try_from(numbers).ok()?;
        let [elapsed, cpu, latency @ ..] = times.map(Duration::from_nanos);
        Some(Self { received, elapsed, cpu, latency })
    }
}

/// What all threads of this process have used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

// The children: publisher and subscriber differ only in who begins a round trip.

fn take_part(role: Role, driver: &str) -> Outcome<()> {
    // Nobody wants us if the parent dies, not even by `kill -9`.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    pin_to_core(role as usize)?;
    let client = Client::builder().address(Address::from(std::path::PathBuf::from(driver))).connect()?;
    for (index, phase) in PHASES.iter().enumerate() {
        let [mut out, mut back] = ["out", "back"].map(|direction| format!("quickstart/{index}/{direction}"));
        if role == Role::Subscriber {
            std::mem::swap(&mut out, &mut back);
        }
        let mut publication = client.channel(&out).idle(phase.idle).publication()?;
        let mut subscription = client.channel(&back).idle(phase.idle).subscription()?;
        if !publication.wait_connected(Some(Instant::now() + PATIENCE))? {
            return Err("the other one does not come".into());
        }
        println!("begin");
        let (started, cpu_before) = (Instant::now(), cpu_time());
        let mut latency = Histogram::<u64>::new(3)?;
        let received = match (&phase.exchange, role) {
            (Exchange::RoundTrips { pause }, Role::Publisher) => {
                ping(&mut publication, &mut subscription, phase.length, *pause, &mut latency)?
            }
            (Exchange::RoundTrips { .. }, Role::Subscriber) => pong(&mut publication, &mut subscription)?,
            (Exchange::Stream, _) => stream(&mut publication, &mut subscription, phase)?,
        };
        let quantile = |quantile| Duration::from_nanos(latency.value_at_quantile(quantile));
        let report = Report {
            received,
            elapsed: started.elapsed(),
            cpu: cpu_time() - cpu_before,
            latency: [quantile(0.5), quantile(0.99), quantile(0.999), Duration::from_nanos(latency.max())],
        };
        println!("{}", report.to_line());
    }
    Ok(())
}

/// A core of its own for each of the two, if there are as many.
fn pin_to_core(index: usize) -> Outcome<()> {
    let allowed = sched_getaffinity(None)?;
    if allowed.count() >= 2 {
        let mut own = CpuSet::new();
        (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).skip(index).take(1).for_each(|core| own.set(core));
        sched_setaffinity(None, &own)?;
    }
    Ok(())
}

fn ping(
    out: &mut Publication,
    back: &mut Subscription,
    length: Duration,
    pause: Duration,
    latency: &mut Histogram<u64>,
) -> Outcome<u64> {
    let end = Instant::now() + length;
    let mut buffer = [0; ROUND_TRIP_BYTES];
    let mut received = 0;
    loop {
        fill(&mut buffer, received);
        let sent = Instant::now();
        if sent >= end {
            break;
        }
        out.offer(&buffer)?;
        let reply = back.recv_until(Some(sent + PATIENCE))?;
        latency.record(sent.elapsed().as_nanos() as u64)?;
        verify(reply.payload(), received, ROUND_TRIP_BYTES)?;
        received += 1;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    out.offer_tagged(END, &[])?;
    Ok(received)
}

fn pong(out: &mut Publication, back: &mut Subscription) -> Outcome<u64> {
    let mut received = 0;
    loop {
        let message = back.recv_until(Some(Instant::now() + PATIENCE))?;
        if message.tag() == END {
            return Ok(received);
        }
        verify(message.payload(), received, ROUND_TRIP_BYTES)?;
        out.offer(message.payload())?;
        received += 1;
    }
}

/// Sends and receives by turns, a burst each, until both sides have sent all they want.
fn stream(out: &mut Publication, back: &mut Subscription, phase: &Phase) -> Outcome<u64> {
    const BURST: usize = 256;
    let end = Instant::now() + phase.length;
    let mut idler = Idler::new(phase.idle);
    let mut buffer = [0; STREAM_BYTES];
    let (mut sent, mut received) = (0, 0);
    let (mut all_sent, mut all_received) = (false, false);
    while !(all_sent && all_received) {
        let now = Instant::now();
        if now >= end + PATIENCE {
            return Err(format!("{sent} messages sent, {received} received, then nothing more").into());
        }
        let before = sent + received;
        if now < end {
            let mut batch = out.batch();
            for _ in 0..BURST {
                fill(&mut buffer, sent);
                match batch.offer(&buffer) {
                    Ok(_) => sent += 1,
                    Err(OfferError::BackPressured) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        } else if !all_sent {
            // How many there were: their numbers would not tell if the last ones were missing.
            match out.offer_tagged(END, &u64::to_le_bytes(sent)) {
                Ok(_) => all_sent = true,
                Err(OfferError::BackPressured) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for _ in 0..BURST {
            let Some(message) = back.next()? else { break };
            if message.tag() == END {
                all_received = true;
                if message.payload() != received.to_le_bytes() {
                    return Err(format!("{received} messages received, but more were sent").into());
                }
            } else {
                verify(message.payload(), received, STREAM_BYTES)?;
                received += 1;
            }
        }
        idler.idle((sent + received - before) as usize);
    }
    Ok(received)
}

/// A message: its number, a checksum, and data that is different each time.
fn fill(message: &mut [u8], number: u64) {
    let (words, _) = message.as_chunks_mut::<8>();
    let (head, data) = words.split_at_mut(2);
    for (word, index) in data.iter_mut().zip(1u64..) {
        *word = (number + index).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    }
    head[0] = number.to_le_bytes();
    head[1] = checksum(number, data).to_le_bytes();
}

fn verify(message: &[u8], number: u64, length: usize) -> Outcome<()> {
    let (words, _) = message.as_chunks::<8>();
    let intact =
        message.len() == length && words[0] == number.to_le_bytes() && words[1] == checksum(number, &words[2..]).to_le_bytes();
    if intact { Ok(()) } else { Err(format!("message {number} is not what was sent: {message:02x?}").into()) }
}

fn checksum(number: u64, data: &[[u8; 8]]) -> u64 {
    data.iter().fold(number, |sum, word| sum.rotate_left(5) ^ u64::from_le_bytes(*word))
}
