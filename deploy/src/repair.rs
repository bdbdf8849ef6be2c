//! `roomlog repair`: brings back what NATS has lost, from what the nodes have kept. Says first what it would do.
//!
//! Exit status: 0 nothing is left to do, 1 something is, 2 it could not be done.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use roomlog_bus::{
    commit::{Commit, CommitId, Head},
    journal::Journal,
    local_copy::{Copied, put_aside},
    nats::{JetStreamJournal, NatsConnection},
    repair::{Compared, Verdict, apply, look},
};

use crate::settings::Settings;

/// The local copy in a data folder.
pub const COPY: &str = "copy";

/// How often what was appended makes more fit. Once is enough unless somebody else writes at the same time.
const ROUNDS: usize = 4;

/// Arguments of `roomlog repair`.
#[derive(Args)]
pub struct RepairArgs {
    /// Data folders of nodes of the cluster, running or not: as many as this machine has. What lies between two nodes' commits is found only
    /// where both are given. [default: that of --data]
    #[arg(value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Do it: append again what follows, set aside what does not, and tell the nodes, which then fold the log anew and take appends again.
    #[arg(long)]
    apply: bool,
    /// With --apply: also set aside what would follow if a link in between were not missing, when no other node's folder has it.
    #[arg(long, requires = "apply")]
    give_up: bool,
    /// Show the streams that are as they should be, too.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    settings: Box<Settings>,
}

/// A folder and what lies in it.
struct Folder {
    path: PathBuf,
    copied: Copied,
}

/// Looks, says what was found, and does it if that was asked.
pub fn run(args: RepairArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(repair(args))
}

async fn repair(args: RepairArgs) -> anyhow::Result<ExitCode> {
    let nats = args.settings.nats()?.context("which cluster? --nats nats://host:4222")?;
    let folders = match args.folders.as_slice() {
        [] => vec![args.settings.data()],
        folders => folders.to_vec(),
    };
    let folders = read(&folders).await?;
    let connection = NatsConnection::connect(nats).await.context("NATS is not reached")?;
    let journal = connection.jetstream(args.settings.jetstream()).await?;
    let copied: Vec<_> = folders.iter().flat_map(|folder| folder.copied.commits.iter().cloned()).collect();

    let mut compared = look(&journal, &copied).await?;
    say(&compared, args.all);
    if !args.apply {
        let left = compared.iter().any(|stream| stream.verdict > Verdict::Behind);
        if left {
            println!("nothing was changed: --apply does it");
        }
        return Ok(if left { ExitCode::from(1) } else { ExitCode::SUCCESS });
    }
    let mut appended = 0;
    for _ in 0..ROUNDS {
        let (some, late) = apply(&journal, &compared).await.context("the log took only a part")?;
        appended += some;
        if some == 0 && late.is_empty() {
            break;
        }
        compared = look(&journal, &copied).await?;
    }
    let (aside, left) = set_aside(&folders, &compared, args.give_up)?;
    tell(&journal).await?;
    println!("{appended} commits appended again, {aside} set aside; the nodes have been told");
    if left > 0 {
        println!(
            "{left} commits lack a link: give the other nodes' folders too, or --give-up sets them aside"
        );
        return Ok(ExitCode::from(1));
    }
    Ok(ExitCode::SUCCESS)
}

async fn tell(journal: &JetStreamJournal) -> anyhow::Result<()> {
    journal.tail().await.context("the log cannot be looked at")?;
    journal.repaired().await.context("the nodes cannot be told that the log was repaired: run this again")
}

async fn read(folders: &[PathBuf]) -> anyhow::Result<Vec<Folder>> {
    let mut read = Vec::new();
    for data in folders {
        let path = copy_in(data).with_context(|| {
            format!("{} has no local copy: it is not the data folder of a node on NATS", data.display())
        })?;
        let copied = Copied::read(&path).await.with_context(|| format!("cannot read {}", path.display()))?;
        for finding in &copied.findings {
            println!("{}: {finding}", path.display());
        }
        println!(
            "{}: {} commits, {} set aside before",
            path.display(),
            copied.commits.len(),
            copied.set_aside.len()
        );
        read.push(Folder { path, copied });
    }
    Ok(read)
}

/// The local copy in a data folder, if there is one.
pub fn copy_in(data: &Path) -> Option<PathBuf> {
    Some(data.join(COPY)).filter(|path| path.is_dir())
}

fn head(head: Option<Head>) -> String {
    head.map_or_else(|| "nothing".into(), |head| format!("version {} ({})", head.version, head.id))
}

fn say(compared: &[Compared], all: bool) {
    let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
    for stream in compared {
        *counts.entry(stream.verdict).or_default() += 1;
        if !all && stream.verdict <= Verdict::Behind {
            continue;
        }
        println!(
            "{}: {}: the cluster has {}, the copies {}; {} commits follow, {} do not",
            stream.stream,
            stream.verdict,
            head(stream.cluster),
            head(Some(stream.copied)),
            stream.suffix.len(),
            stream.branch.len()
        );
    }
    let counts: Vec<String> = counts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    println!("{} streams: {}", compared.len(), counts.join(", "));
}

/// Sets branches aside in the folders that have them; gives how many commits that were, and how many lack a link.
fn set_aside(folders: &[Folder], compared: &[Compared], give_up: bool) -> anyhow::Result<(usize, usize)> {
    let (mut aside, mut left) = (0, 0);
    for stream in compared.iter().filter(|stream| !stream.branch.is_empty()) {
        if stream.verdict != Verdict::Fork && !give_up {
            left += stream.branch.len();
            continue;
        }
        for commit in &stream.branch {
            aside += 1;
            for folder in folders.iter().filter(|folder| has(folder, commit.id)) {
                let path = put_aside(&folder.path, commit)?;
                println!("{} version {} set aside: {}", commit.stream, commit.version, path.display());
            }
        }
    }
    Ok((aside, left))
}

fn has(folder: &Folder, id: CommitId) -> bool {
    folder.copied.commits.iter().any(|commit| commit.id == id)
}

/// The branches set aside in a data folder, in words.
pub fn branches(copied: &Copied) -> Vec<String> {
    let what = |commit: &Commit| {
        commit.events.iter().map(|event| event.kind.to_string()).collect::<Vec<_>>().join(", ")
    };
    let line = |branch: &roomlog_bus::local_copy::SetAside| {
        let commit = &branch.commit;
        format!(
            "{} version {} ({}, by {} at {}) is not in the cluster's log: set aside in {}",
            commit.stream,
            commit.version,
            what(commit),
            commit.writer.node,
            commit.time,
            branch.path.display()
        )
    };
    copied.set_aside.iter().map(line).collect()
}
