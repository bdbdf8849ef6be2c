//! `roomlog bench media`: what a packet costs the SFU worker, and how many a core carries.
//!
//! ```text
//!  this process                                    the worker, a process on a core of its own
//!  generator thread ── frames of 4 packets ──────► UDP ─► decrypt, once
//!  receiver thread  ◄─ N sockets, one a consumer ─ UDP ◄─ write, encrypt, send, N times
//! ```
//!
//! Everything is as in a call (ICE, DTLS, SRTP with AES-GCM, one transport per consumer) but for what clients say back: no reports, no
//! feedback, no requests. The worker's CPU time is the kernel's count of its threads (`/proc/PID/task/*/schedstat`), so what the kernel does for
//! it in system calls is in it, on loopback with that also the way into the receiver's socket. What is not the worker's is to wake a receiver
//! that sleeps on the same machine, which the kernel would do in the worker's time as well: receivers here look by themselves, unless `--wake`.

mod floor;
mod load;
mod peer;
mod worker;

use std::{ffi::OsString, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;
use roomlog_bus::{
    ids::{ConsumerId, ProducerId},
    media::{MediaAnswer, MediaCommand},
    ortc::MediaKind,
};
use roomlog_sfu::ortc::router_rtp_capabilities;
use serde::Serialize;

use load::{Outcome, Receivers, Sender};
use peer::Identity;
use worker::WorkerProcess;

/// Packets of one frame, sent back to back: a VP8 frame of 4 kB, which is 1 Mbit/s at 30 frame/s.
const FRAME_PACKETS: u32 = 4;

/// The light case: consumers, and packets/s of the producer.
const LIGHT: (usize, u32) = (50, 120);

/// The full case: consumers.
const FULL: usize = 200;

/// Share of packets that must arrive for a rate to count as carried.
const CARRIED: f64 = 0.999;

/// And the delay that 99 % of them must keep for it: a rate that only fills a queue is not carried.
const CARRIED_MS: f64 = 5.0;

/// The first rate that is tried in the full case, packets/s of the producer: less than any machine carries.
const FIRST_RATE: u32 = 200;

/// Where the search ends: the step between a rate that is carried and one that is not, as a share of it.
const SEARCH_STEP: f64 = 0.05;

/// How long one rate is tried. Shorter, and a full socket buffer would pass for carried.
const TRY: Duration = Duration::from_secs(2);

/// A rate that is not carried is tried so often: a machine that does something else for a moment is no limit of the worker.
const TRIES: usize = 3;

/// How long the ceiling of the generator is measured, and each of the floors.
const CEILING: Duration = Duration::from_millis(500);

/// Arguments of `roomlog bench media`.
#[derive(Args, Debug)]
pub struct MediaArgs {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// How long each case is measured, in seconds.
    #[arg(long, value_name = "S", default_value_t = 5)]
    seconds: u64,
    /// Only this case.
    #[arg(long, value_enum)]
    case: Option<Case>,
    /// In the full case: this rate, packets/s of the producer, instead of the search for the highest that is carried.
    #[arg(long, value_name = "PACKETS")]
    pps: Option<u32>,
    /// Leave the worker and the load to the scheduler instead of giving each its own cores.
    #[arg(long)]
    no_pin: bool,
    /// Receivers sleep until packets come, and the worker pays for waking them.
    #[arg(long)]
    wake: bool,
    /// A worker program other than this one's.
    #[arg(long, hide = true, num_args = 1.., value_name = "PROGRAM")]
    worker: Option<Vec<OsString>>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// 50 consumers of 120 packets/s.
    Light,
    /// 200 consumers, as fast as 99.9 % arrive, and 99 % of them within 5 ms.
    Full,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    /// Packets/s that the generator can encrypt and send.
    generator_ceiling_pps: u64,
    floor: floor::Floor,
    cases: Vec<CaseReport>,
    /// Memory of the worker per consumer (with its transport), after the last case, in bytes.
    bytes_per_consumer: u64,
}

#[derive(Debug, Serialize)]
struct CaseReport {
    consumers: usize,
    /// Of the producer.
    pps: u32,
    /// CPU time of the worker, kernel included, per packet sent.
    us_per_packet: f64,
    /// Sent by the worker and received, all consumers.
    packets_per_s: f64,
    /// Share of what is to arrive.
    delivered: f64,
    delay_p50_ms: f64,
    delay_p99_ms: f64,
    /// Of one core.
    worker_busy: f64,
    /// Of one core: what the receivers of this bench needed.
    receivers_busy: f64,
    /// Of the generator: its latest frame.
    generator_late_ms: f64,
    /// Share of the packets that arrived whose authenticity was checked.
    authenticated: f64,
}

impl CaseReport {
    fn is_carried(&self) -> bool {
        self.delivered >= CARRIED && self.delay_p99_ms <= CARRIED_MS
    }
}

/// Runs the cases and prints what came out.
pub fn run(args: &MediaArgs) -> anyhow::Result<ExitCode> {
    let program = match &args.worker {
        Some(program) => program.clone(),
        None => vec![
            std::env::current_exe().context("finding this program, which is the worker too")?.into(),
            "sfu-worker".into(),
        ],
    };
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures say little; build with --release");
    }
    let identity = Identity::new()?;
    let ceiling = load::ceiling(CEILING)?;
    eprintln!("generator: {ceiling} packets/s at most, encrypted and sent");
    let floor = floor::measure(CEILING)?;
    eprintln!(
        "sending alone: {:.2} µs a packet by one call each, {:.2} by one call for {FRAME_PACKETS} (GSO)",
        floor.send_us, floor.gso_us
    );
    let mut report =
        Report { generator_ceiling_pps: ceiling, floor, cases: Vec::new(), bytes_per_consumer: 0 };
    for case in [Case::Light, Case::Full] {
        if args.case.is_some_and(|only| only != case) {
            continue;
        }
        let consumers = if case == Case::Light { LIGHT.0 } else { FULL };
        let mut room = Room::open(&program, consumers, &identity, args)?;
        let measured = Duration::from_secs(args.seconds);
        let result = match (case, args.pps) {
            (Case::Light, _) => room.measure(LIGHT.1, measured)?,
            (Case::Full, Some(pps)) => room.measure(pps, measured)?,
            (Case::Full, None) => room.search(measured)?,
        };
        report.bytes_per_consumer = room.bytes_per_consumer()?;
        report.cases.push(result);
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print_table(&report);
    }
    Ok(ExitCode::SUCCESS)
}

/// A room with one producer and its consumers.
struct Room {
    worker: WorkerProcess,
    sender: Sender,
    receivers: Receivers,
    consumers: usize,
    empty_bytes: u64,
}

impl Room {
    fn open(
        program: &[OsString],
        consumers: usize,
        identity: &Identity,
        args: &MediaArgs,
    ) -> anyhow::Result<Self> {
        eprintln!("{consumers} consumers: connecting");
        let mut worker = WorkerProcess::start(program)?;
        if !args.no_pin {
            worker.pin().context("giving the worker and the load their own cores; --no-pin goes without")?;
        }
        worker.ask(MediaCommand::CreateRouter)?;
        let sender = peer::connect(&mut worker, identity, "sender")?;
        let producer = ProducerId::new("producer").context("naming the producer")?;
        let (transport, params) = (sender.transport.clone(), load::rtp_parameters());
        worker.ask(MediaCommand::Produce {
            transport,
            producer: producer.clone(),
            kind: MediaKind::Video,
            rtp_parameters: params,
            paused: false,
        })?;
        let empty_bytes = worker.memory_bytes()?;
        let mut peers = Vec::new();
        for index in 0..consumers {
            let peer = peer::connect(&mut worker, identity, &format!("receiver{index}"))?;
            let consumer = ConsumerId::new(format!("consumer{index}")).context("naming a consumer")?;
            let answer = worker.ask(MediaCommand::Consume {
                transport: peer.transport.clone(),
                consumer: consumer.clone(),
                producer: producer.clone(),
                rtp_capabilities: router_rtp_capabilities(),
            })?;
            ensure!(
                matches!(answer, MediaAnswer::Consumer { .. }),
                "the worker answered {answer:?} to Consume"
            );
            worker.ask(MediaCommand::PauseConsumer { consumer, paused: false })?;
            peers.push(peer);
        }
        Ok(Self {
            sender: Sender::new(sender, worker.udp),
            receivers: Receivers::new(peers, args.wake)?,
            worker,
            consumers,
            empty_bytes,
        })
    }

    /// One rate for some time.
    fn measure(&mut self, pps: u32, time: Duration) -> anyhow::Result<CaseReport> {
        // Caches, buffers and the consumers' beginning with a key frame are not what is measured.
        load::run(&mut self.sender, &mut self.receivers, pps, Duration::from_millis(300))?;
        let (before, cpu_before) = (self.worker.load()?, self.worker.cpu()?);
        let outcome = load::run(&mut self.sender, &mut self.receivers, pps, time)?;
        let (after, cpu_after) = (self.worker.load()?, self.worker.cpu()?);
        let out = after.packets_out - before.packets_out;
        let cpu = cpu_after.saturating_sub(cpu_before);
        let Outcome { sent, received, authenticated, bad, took, delays, receivers_cpu, late } = outcome;
        ensure!(bad == 0, "{bad} packets of the worker were not authentic");
        ensure!(out > 0 && !delays.is_empty(), "nothing arrived: {sent} packets were sent to the worker");
        let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        Ok(CaseReport {
            consumers: self.consumers,
            pps,
            us_per_packet: round(cpu.as_secs_f64() * 1e6 / out as f64, 3),
            packets_per_s: round(received as f64 / took.as_secs_f64(), 0),
            delivered: round(received as f64 / (sent * self.consumers as u64) as f64, 5),
            delay_p50_ms: round(at(0.5), 3),
            delay_p99_ms: round(at(0.99), 3),
            worker_busy: round(cpu.as_secs_f64() / took.as_secs_f64(), 3),
            receivers_busy: round(receivers_cpu.as_secs_f64() / took.as_secs_f64(), 3),
            generator_late_ms: round(late.as_secs_f64() * 1e3, 3),
            authenticated: round(authenticated as f64 / received.max(1) as f64, 4),
        })
    }

    /// The highest rate that is carried.
    fn search(&mut self, measured: Duration) -> anyhow::Result<CaseReport> {
        let (mut low, mut high) = (FIRST_RATE, None::<u32>);
        let mut best = None;
        loop {
            let rate = match (best.is_some(), high) {
                (false, _) => low,
                (true, None) => low * 2,
                (true, Some(high)) if f64::from(high - low) <= f64::from(low) * SEARCH_STEP => break,
                (true, Some(high)) => low.midpoint(high),
            };
            let mut carried = None;
            for _ in 0..TRIES {
                let tried = self.measure(rate, TRY)?;
                eprintln!(
                    "  {rate} packets/s in: {:.0} out, {:.3} % arrive, worker {:.0} %, p99 {:.1} ms",
                    tried.packets_per_s,
                    100.0 * tried.delivered,
                    100.0 * tried.worker_busy,
                    tried.delay_p99_ms
                );
                if tried.is_carried() {
                    carried = Some(tried);
                    break;
                }
            }
            match carried {
                Some(tried) => (low, best) = (rate, Some(tried)),
                None => {
                    ensure!(rate > FIRST_RATE, "not even {FIRST_RATE} packets/s arrive: the machine is busy");
                    high = Some(rate);
                }
            }
        }
        // What was carried for a moment need not be carried for longer: then the next lower step is the result.
        loop {
            let result = self.measure(low, measured)?;
            if result.is_carried() || low <= FIRST_RATE {
                return Ok(result);
            }
            low = (f64::from(low) * (1.0 - SEARCH_STEP)) as u32;
        }
    }

    fn bytes_per_consumer(&self) -> anyhow::Result<u64> {
        Ok(self.worker.memory_bytes()?.saturating_sub(self.empty_bytes) / self.consumers as u64)
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

fn print_table(report: &Report) {
    println!(
        "{:>9} {:>9} {:>10} {:>11} {:>10} {:>8} {:>8} {:>7} {:>9}",
        "consumers", "packets/s", "µs/packet", "packets/s", "delivered", "p50", "p99", "worker", "receivers"
    );
    println!(
        "{:>9} {:>9} {:>10} {:>11} {:>10} {:>8} {:>8} {:>7} {:>9}",
        "", "in", "out", "out", "", "ms", "ms", "core", "core"
    );
    for case in &report.cases {
        println!(
            "{:>9} {:>9} {:>10.2} {:>11.0} {:>9.3}% {:>8.3} {:>8.3} {:>6.0}% {:>8.0}%",
            case.consumers,
            case.pps,
            case.us_per_packet,
            case.packets_per_s,
            100.0 * case.delivered,
            case.delay_p50_ms,
            case.delay_p99_ms,
            100.0 * case.worker_busy,
            100.0 * case.receivers_busy
        );
    }
    println!("{} bytes of the worker per consumer", report.bytes_per_consumer);
}
