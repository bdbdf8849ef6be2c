//! `roomlog`: one binary, a subcommand per role.

#![forbid(unsafe_code)]

mod admin;
mod drain;
mod health;
mod http;
mod identity;
mod node;
mod proxies;
mod repair;
mod replay;
mod settings;
mod tls;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use roomlog_bus::events::LOG_SCHEMA;
use tracing_subscriber::EnvFilter;

use crate::{node::Role, settings::Settings};

/// Version of the signalling protocol that clients speak: goes up when an old client would no longer work.
const PROTOCOL_VERSION: u32 = 1;

fn long_version() -> &'static str {
    let text = format!(
        "{}\nprotocol {PROTOCOL_VERSION} (protoo signalling)\nlog schema {LOG_SCHEMA} ({} event types)",
        env!("CARGO_PKG_VERSION"),
        roomlog_bus::events::Event::CATALOGUE.len(),
    );
    Box::leak(text.into_boxed_str())
}

/// A control plane and SFU for clusters of WebRTC media nodes, in which every step is in a log.
#[derive(Parser)]
#[command(version, long_version = long_version())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all roles in one process, with the log and the bus built in, or on NATS.
    Up(NodeArgs),
    /// Run the HTTP front alone, as one node of a cluster on NATS.
    Nuve(NodeArgs),
    /// Run a signalling gateway alone, as one node of a cluster on NATS.
    Ec(NodeArgs),
    /// Run a media host alone, as one node of a cluster on NATS.
    Ea(NodeArgs),
    /// Tell a node of a cluster to take nothing new, and to end when it is empty or at a deadline.
    Drain(drain::DrainArgs),
    /// Bring back what NATS has lost of the log, from what nodes have kept: a report first.
    Repair(repair::RepairArgs),
    /// Move packets. Started by an EA, which speaks with it over standard input and output.
    #[command(hide = true)]
    SfuWorker,
    /// Measure what this machine carries.
    #[command(subcommand)]
    Bench(Bench),
    /// Read a log: rooms, the timeline of one, its state at any point, and whether all is well.
    Replay(Box<replay::ReplayArgs>),
}

#[derive(Subcommand)]
enum Bench {
    /// The SFU worker: what a packet costs, and how many a core carries. docs/performance.md says how to read it.
    Media(roomlog_bench::media::MediaArgs),
    /// The log: durable appends beside the raw file, folding, opening. docs/performance.md says how to read it.
    Log(roomlog_bench::log::LogArgs),
    /// The token route: requests a second beside a bare route that signs the same token. docs/performance.md says how to read it.
    Token(roomlog_bench::token::TokenArgs),
    /// Joins: how many a second, and what each step of one costs. docs/performance.md says how to read it.
    Join(roomlog_bench::join::JoinArgs),
}

#[derive(Args)]
struct NodeArgs {
    /// A TOML file with settings: the names of the flags as keys. Environment and flags win over it.
    #[arg(long, env = "ROOMLOG_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Box<Settings>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Up(args) => run_node(Role::Up, args),
        Command::Nuve(args) => run_node(Role::Nuve, args),
        Command::Ec(args) => run_node(Role::Ec, args),
        Command::Ea(args) => run_node(Role::Ea, args),
        Command::Drain(args) => {
            log_to_stderr(Some("warn"));
            drain::run(args)
        }
        Command::Repair(args) => {
            log_to_stderr(Some("warn"));
            repair::run(args)
        }
        Command::SfuWorker => {
            log_to(std::env::var("ROOMLOG_LOG").ok().as_deref(), || Unheard);
            roomlog_sfu::run_worker().map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
        Command::Bench(Bench::Media(args)) => roomlog_bench::media::run(&args),
        Command::Bench(Bench::Log(args)) => {
            log_to_stderr(Some("error"));
            roomlog_bench::log::run(&args)
        }
        Command::Bench(Bench::Token(args)) => {
            log_to_stderr(Some("error"));
            roomlog_bench::token::run(&args)
        }
        Command::Bench(Bench::Join(args)) => {
            log_to_stderr(Some("error"));
            roomlog_bench::join::run(&args)
        }
        Command::Replay(args) => {
            log_to_stderr(Some("off")); // what is wrong with the log is in the answer
            replay::run(*args)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("roomlog: {error:#}");
        ExitCode::from(2)
    })
}

fn run_node(role: Role, args: NodeArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.over_file(args.config.as_deref())?;
    log_to_stderr(settings.log.as_deref());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(node::run(role, settings));
    // Blocking reads of the log that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

/// rtc_dtls warns of every extension of a ClientHello that it does not know, and browsers send several.
const DEFAULT_LOG: &str = "info,rtc_dtls=error";

fn log_to_stderr(filter: Option<&str>) {
    log_to(filter, std::io::stderr);
}

/// Standard error, for who outlives whoever reads it: words that nobody hears are lost, and are no reason to end.
struct Unheard;

impl std::io::Write for Unheard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log_to<W>(filter: Option<&str>, writer: W)
where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter.unwrap_or(DEFAULT_LOG)).unwrap_or_else(|error| {
        eprintln!("roomlog: the log filter does not read ({error}); using {DEFAULT_LOG}");
        EnvFilter::new(DEFAULT_LOG)
    });
    use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};
    // Whatever is asked for: below `info` the WebSocket crate writes whole frames, with tokens, resume keys and ICE passwords in them.
    let tells_frames =
        |target: &str| target.starts_with("tungstenite") || target.starts_with("tokio_tungstenite");
    let no_frames = tracing_subscriber::filter::filter_fn(move |metadata| {
        *metadata.level() <= tracing::Level::INFO || !tells_frames(metadata.target())
    });
    let out = tracing_subscriber::fmt::layer().with_writer(writer);
    tracing_subscriber::registry().with(filter).with(out.with_filter(no_frames)).init();
}
