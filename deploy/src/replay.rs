//! `roomlog replay`: the on-call engineer's view of the log. Reads only, also beside a running `up`; what it says is put together in
//! `roomlog-projections`, here it is opened, asked and printed.
//!
//! Exit status: 0 all is well, 1 `verify` found an error, 2 it could not be read.

mod open;

use std::{
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use roomlog_bus::{
    commit::{Commit, StreamKind},
    events::Event,
    ids::{ClientId, RoomId, Version},
    journal::{Cursor, ReadError},
    local_copy::Copied,
    time::Timestamp,
};
use roomlog_ec::decide;
use roomlog_projections::{
    replay::{self, RoomIndex, RoomRef, Until},
    replay_text,
    room::RoomState,
    timeline::{self, Filter},
    verify::{Severity, Verifier},
};
use serde_json::{Value, json};

use self::open::OpenLog;
use crate::{
    repair::{branches, copy_in},
    settings::{DEFAULT_DATA, Settings},
};

/// What `replay` is asked.
#[derive(Args)]
pub struct ReplayArgs {
    /// Folder of the log: the data folder of `roomlog up`, running or not, or a copy of it.
    #[arg(long, env = "ROOMLOG_DATA", value_name = "DIR", default_value = DEFAULT_DATA, global = true)]
    data: PathBuf,
    /// Read the log of a cluster from these NATS servers in place of a folder, several separated by commas.
    #[arg(long, value_name = "URL", value_delimiter = ',', global = true)]
    nats: Option<Vec<String>>,
    /// A NATS `.creds` file. User and password may stand in the URL instead.
    #[arg(long, env = "ROOMLOG_NATS_CREDS", value_name = "FILE", global = true)]
    nats_creds: Option<PathBuf>,
    /// PEM file of the authority that signed the NATS servers' certificates; asks for TLS.
    #[arg(long, env = "ROOMLOG_NATS_CA", value_name = "FILE", global = true)]
    nats_ca: Option<PathBuf>,
    /// PEM file of a certificate for NATS, with --nats-key.
    #[arg(long, env = "ROOMLOG_NATS_CERT", value_name = "FILE", global = true)]
    nats_cert: Option<PathBuf>,
    /// PEM file of the key to --nats-cert.
    #[arg(long, env = "ROOMLOG_NATS_KEY", value_name = "FILE", global = true)]
    nats_key: Option<PathBuf>,
    /// Folder of the archive: what the log has forgotten is shown too. It is `archive` in the data folder unless --archive said otherwise.
    #[arg(long, value_name = "FOLDER", global = true)]
    archive: Option<PathBuf>,
    /// Print one JSON document in place of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the rooms, deleted ones too.
    Rooms,
    /// The timeline of a room, in plain words.
    Show {
        /// Its id, the beginning of its id, or name:NAME.
        room: RoomRef,
        /// Only what concerns this client: its id or the beginning of it.
        #[arg(long, value_name = "ID")]
        client: Option<String>,
        #[command(flatten)]
        span: Span,
    },
    /// The state of a room at a version or time; at its end if neither is given.
    State {
        /// Its id, the beginning of its id, or name:NAME.
        room: RoomRef,
        /// After this event.
        #[arg(long, value_name = "N", conflicts_with = "at")]
        version: Option<u64>,
        /// At this time, such as 2026-11-22T15:04:05.678Z, or Unix milliseconds.
        #[arg(long, value_name = "TIME")]
        at: Option<Timestamp>,
    },
    /// Check the whole log: is it whole, does it keep the rules, can its decisions be made again.
    Verify,
    /// The timeline of the nodes: starts, ends, workers that died.
    Nodes {
        #[command(flatten)]
        span: Span,
    },
    /// Every event of everything, one JSON line each, with the cursor to go on from.
    Events {
        /// Begin after this cursor: a number, or one for each partition, separated by commas.
        #[arg(long, value_name = "CURSOR", value_delimiter = ',')]
        from: Vec<u64>,
        #[command(flatten)]
        span: Span,
    },
}

/// A stretch of time.
#[derive(Args, Clone, Copy)]
struct Span {
    /// Not before this, such as 2026-11-22T15:04:05Z, or Unix milliseconds.
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Not after this.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
}

impl ReplayArgs {
    /// What of a node's settings says where its log is.
    fn settings(&self) -> Settings {
        Settings {
            nats: self.nats.clone(),
            nats_creds: self.nats_creds.clone(),
            nats_ca: self.nats_ca.clone(),
            nats_cert: self.nats_cert.clone(),
            nats_key: self.nats_key.clone(),
            ..Settings::default()
        }
    }
}

/// Reads the log as asked and prints what was found.
pub fn run(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    // A node on NATS has no log of its own, only a copy of what it wrote.
    if let (Command::Verify, None, Some(copy)) = (&args.command, &args.nats, copy_in(&args.data)) {
        return verify_copy(&copy, args.json);
    }
    // The journal reads from a task of its own while this one works on what was read.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut log = match args.settings().nats()? {
        Some(nats) => runtime.block_on(OpenLog::connect(nats))?,
        None => OpenLog::open(&args.data)?,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if let Some(archive) = &args.archive {
        runtime.block_on(log.behind(archive))?;
    }
    let code = runtime.block_on(answer(&log, &args, &mut out)).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    runtime.shutdown_background();
    match code {
        // Whoever read has seen enough: `replay show … | head`.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

async fn answer(log: &OpenLog, args: &ReplayArgs, out: &mut impl io::Write) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Rooms => rooms(log, args.json, out).await?,
        Command::Show { room, client, span } => {
            show(log, args.json, room, client.as_deref(), *span, out).await?
        }
        Command::State { room, version, at } => {
            let until = match (version, at) {
                (Some(version), _) => Until::Version(Version(*version)),
                (None, Some(at)) => Until::Time(*at),
                (None, None) => Until::End,
            };
            state(log, args.json, room, until, out).await?;
        }
        Command::Verify => return verify(log, args.json, out).await,
        Command::Nodes { span } => nodes(log, args.json, *span, out).await?,
        Command::Events { from, span } => events(log, Cursor(from.clone()), *span, out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(out: &mut impl io::Write, document: &Value) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

fn say_damage(damaged: &[ReadError]) {
    for error in damaged {
        eprintln!("{error}");
    }
}

// ---- the questions -----------------------------------------------------------------------------------------------------------

async fn rooms(log: &OpenLog, json: bool, out: &mut impl io::Write) -> anyhow::Result<()> {
    let mut index = RoomIndex::default();
    let damaged = log.scan(Cursor::default(), |entry| index.apply(&entry.commit)).await?;
    if json {
        let rooms: Vec<_> = index.rooms().collect();
        return print_json(out, &json!({ "read": log.read(), "rooms": rooms }));
    }
    log.say_way();
    say_damage(&damaged);
    out.write_all(replay_text::rooms(index.rooms()).as_bytes())?;
    Ok(())
}

async fn show(
    log: &OpenLog,
    json: bool,
    room: &RoomRef,
    client: Option<&str>,
    span: Span,
    out: &mut impl io::Write,
) -> anyhow::Result<()> {
    let (id, commits) = log.room(room).await?;
    let client = client.map(|prefix| client_of(&id, &commits, prefix)).transpose()?;
    let filter = Filter { client, since: span.since, until: span.until };
    let moments = timeline::of_room(commits.iter().map(AsRef::as_ref), &filter);
    if json {
        return print_json(out, &json!({ "read": log.read(), "room": id, "events": moments }));
    }
    log.say_way();
    if moments.is_empty() {
        eprintln!("room {id} has {} commits, none of them in what was asked for", commits.len());
    } else {
        writeln!(out, "room {id}")?;
    }
    out.write_all(timeline::render(&moments, false).as_bytes())?;
    Ok(())
}

/// The client whose id begins so, of all that were ever in the room.
fn client_of(room: &RoomId, commits: &[Arc<Commit>], prefix: &str) -> anyhow::Result<ClientId> {
    let mut fitting: Vec<ClientId> = Vec::new();
    for raw in commits.iter().flat_map(|c| &c.events).filter(|e| e.kind.as_str() == "ClientAdmitted") {
        if let Ok(Event::ClientAdmitted(e)) = Event::decode(raw) {
            if e.client.as_str() == prefix {
                return Ok(e.client);
            }
            if e.client.as_str().starts_with(prefix) && !fitting.contains(&e.client) {
                fitting.push(e.client);
            }
        }
    }
    match fitting.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!(
            "no client of room {room} has an id that begins with {prefix}; `replay show {room}` lists them"
        ),
        several => bail!("{prefix} may be any of {several:?}; give more of the id"),
    }
}

async fn state(
    log: &OpenLog,
    json: bool,
    room: &RoomRef,
    until: Until,
    out: &mut impl io::Write,
) -> anyhow::Result<()> {
    let (id, commits) = log.room(room).await?;
    let at = replay::state_at(commits.iter().map(AsRef::as_ref), until)?;
    if json {
        return print_json(out, &at.state.to_json());
    }
    log.say_way();
    out.write_all(replay_text::state(id.as_str(), &at).as_bytes())?;
    Ok(())
}

async fn nodes(log: &OpenLog, json: bool, span: Span, out: &mut impl io::Write) -> anyhow::Result<()> {
    let filter = Filter { client: None, since: span.since, until: span.until };
    let mut moments = Vec::new();
    let damaged = log
        .scan(Cursor::default(), |entry| {
            if matches!(entry.commit.stream.kind(), StreamKind::Ea | StreamKind::Ec | StreamKind::Nuve) {
                timeline::of_node(&mut moments, &entry.commit, &filter);
            }
        })
        .await?;
    if json {
        return print_json(out, &json!({ "read": log.read(), "events": moments }));
    }
    log.say_way();
    say_damage(&damaged);
    out.write_all(timeline::render(&moments, true).as_bytes())?;
    Ok(())
}

async fn events(log: &OpenLog, from: Cursor, span: Span, out: &mut impl io::Write) -> anyhow::Result<()> {
    log.say_way();
    let filter = Filter { client: None, since: span.since, until: span.until };
    let mut written = Ok(());
    let damaged = log
        .scan(from, |entry| {
            let commit = &entry.commit;
            if written.is_err() || !filter.at(commit.time) {
                return;
            }
            let at = entry.cursor.0.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
            for (version, raw) in (commit.version.0..).zip(&commit.events) {
                let line = json!({
                    "cursor": at,
                    "stream": commit.stream,
                    "version": version,
                    "time": commit.time.to_string(),
                    "time_us": commit.time,
                    "commit": commit.id,
                    "writer": commit.writer,
                    "epoch": commit.epoch,
                    "cause": commit.cause,
                    "type": raw.kind,
                    "schema": raw.schema,
                    "data": raw.data.to_json(),
                });
                written = writeln!(out, "{line}");
                if written.is_err() {
                    return;
                }
            }
        })
        .await?;
    written?;
    say_damage(&damaged);
    Ok(())
}

// ---- verify ------------------------------------------------------------------------------------------------------------------

async fn verify(log: &OpenLog, json: bool, out: &mut impl io::Write) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let mut verifier = Verifier::new(Some(&decide_again));
    for finding in log.findings() {
        let severity = if finding.is_damage() { Severity::Error } else { Severity::Warning };
        verifier.journal(severity, finding.to_string());
    }
    let damaged = log.scan(Cursor::default(), |entry| verifier.commit(&entry.commit)).await?;
    for error in damaged {
        verifier.journal(Severity::Error, error.to_string());
    }
    let verdict = verifier.finish();
    let elapsed = began.elapsed();
    let code = if verdict.errors() > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS };
    if json {
        let document = json!({
            "read": log.read(),
            "clean": verdict.errors() == 0,
            "summary": verdict.summary,
            "elapsed_ms": elapsed.as_millis() as u64,
            "findings": verdict.findings,
        });
        print_json(out, &document)?;
        return Ok(code);
    }
    log.say_way();
    for finding in &verdict.findings {
        writeln!(out, "{finding}")?;
    }
    writeln!(out, "{}; {:.2} s", verdict.summary, elapsed.as_secs_f64())?;
    Ok(code)
}

/// What a node on NATS has kept: whether it is whole, and what of it the cluster's log did not take.
fn verify_copy(folder: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let copied = runtime
        .block_on(Copied::read(folder))
        .with_context(|| format!("the local copy in {} does not read", folder.display()))?;
    let damage: Vec<String> =
        copied.findings.iter().filter(|f| f.is_damage()).map(ToString::to_string).collect();
    let branches = branches(&copied);
    let clean = damage.is_empty() && branches.is_empty();
    let mut out = io::stdout().lock();
    if json {
        let document = json!({
            "folder": folder,
            "way": "copy",
            "commits": copied.commits.len(),
            "clean": clean,
            "damage": damage,
            "set_aside": branches,
        });
        print_json(&mut out, &document)?;
    } else {
        for line in damage.iter().chain(&branches) {
            writeln!(out, "{line}")?;
        }
        writeln!(
            out,
            "local copy of a node on NATS: {} commits, {} damaged places, {} commits set aside",
            copied.commits.len(),
            damage.len(),
            branches.len()
        )?;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Makes an EC's decision again from what its commit kept; none where it kept nothing: another role wrote it.
fn decide_again(state: &RoomState, commit: &Commit) -> Option<Result<Vec<Event>, String>> {
    if commit.writer.node.kind() != StreamKind::Ec || commit.command.0.is_empty() {
        return None;
    }
    let command: decide::Command = match commit.command.decode() {
        Ok(command) => command,
        Err(error) => return Some(Err(format!("the command does not read: {error}"))),
    };
    let facts: decide::Facts = match commit.facts.decode() {
        Ok(facts) => facts,
        Err(error) => return Some(Err(format!("the facts do not read: {error}"))),
    };
    Some(decide::decide(state, &command, &facts).map_err(|refusal| format!("it is refused now: {refusal}")))
}

#[cfg(test)]
mod tests;
