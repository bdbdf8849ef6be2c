//! The log that is looked at: where it lies, opened for reading.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use roomlog_bus::{
    commit::{Commit, StreamId},
    ids::{RoomId, Version},
    journal::{Cursor, Entry, Journal, ReadError, read_all},
    memory_journal::MemoryJournal,
    nats::{ConnectionState, JetStreamSettings, NatsConnection, NatsSettings},
    sled_journal::{Finding, OpenReport, SledJournal},
};
use roomlog_projections::{
    archive,
    replay::{self, RoomRef},
};
use serde_json::{Value, json};

use crate::repair::copy_in;

/// A log opened for reading.
pub struct OpenLog {
    /// What is asked.
    pub journal: Arc<dyn Journal>,
    /// Where it lies.
    pub place: Place,
}

/// Where a log lies.
pub enum Place {
    /// In a folder of this machine.
    Folder {
        /// The folder of the log itself.
        folder: PathBuf,
        /// What was found when it was opened.
        report: OpenReport,
        /// Process that writes it now.
        writer: Writing,
    },
    /// In JetStream.
    Nats {
        /// The name of the server that was asked.
        server: String,
        /// Where it ended when it was opened.
        tail: Cursor,
    },
}

/// Who writes the folder now.
pub enum Writing {
    /// Nobody.
    Nobody,
    /// The process of this id.
    Process(u32),
    /// The system does not say.
    Unknown,
}

impl OpenLog {
    /// Opens the log in a data folder, or the folder of the log itself.
    pub fn open(data: &Path) -> anyhow::Result<Self> {
        let folder = log_folder(data)?;
        let (journal, report) = SledJournal::open_read_only(&folder)
            .with_context(|| format!("the log in {} does not open", folder.display()))?;
        let writer = writing(&folder);
        Ok(Self { journal: Arc::new(journal), place: Place::Folder { folder, report, writer } })
    }

    /// Opens the log of the cluster on these NATS servers.
    pub async fn connect(nats: NatsSettings) -> anyhow::Result<Self> {
        let connection = NatsConnection::connect(nats).await?;
        let journal = connection.existing_jetstream(JetStreamSettings::default()).await?;
        let tail = journal.tail().await.context("the end of the log does not read")?;
        let server = match &*connection.state().borrow() {
            ConnectionState::Connected { server, .. } => server.clone(),
            ConnectionState::Disconnected { .. } => bail!("the connection to NATS broke: try again"),
        };
        Ok(Self { journal: Arc::new(journal), place: Place::Nats { server, tail } })
    }

    /// What the journal found wrong when it was opened.
    pub fn findings(&self) -> &[Finding] {
        match &self.place {
            Place::Folder { report, .. } => &report.findings,
            Place::Nats { .. } => &[],
        }
    }

    /// Stretches that are known to be missing, so that reading steps over them at once.
    fn holes(&self) -> Vec<(u64, u64)> {
        let hole = |finding: &Finding| match finding {
            Finding::Hole { first, last, .. } => Some((*first, *last)),
            _ => None,
        };
        self.findings().iter().filter_map(hole).collect()
    }

    /// Puts what is in `archive` before what is in the log. All of it is in memory then.
    pub async fn behind(&mut self, archive: &Path) -> anyhow::Result<()> {
        let whole = MemoryJournal::new();
        let archived = archive::read(archive)?;
        let count = archived.len();
        let mut lacking = None;
        for commit in archived {
            if let Err(error) = whole.append(commit).await {
                lacking.get_or_insert(error);
            }
        }
        let mut kept = Vec::new();
        self.scan(Cursor::default(), |entry| kept.push(entry.commit.clone())).await?;
        for commit in kept {
            if let Err(error) = whole.append(Commit::clone(&commit)).await {
                lacking.get_or_insert(error);
            }
        }
        if let Some(error) = lacking {
            anyhow::bail!(
                "the archive in {} does not join up with the log: {error}; without --archive the log is shown as it is",
                archive.display()
            );
        }
        eprintln!("with {count} commits of the archive in {}", archive.display());
        self.journal = Arc::new(whole);
        Ok(())
    }

    /// How it was read, for people.
    pub fn way(&self) -> String {
        match &self.place {
            Place::Folder { folder, report, writer } => {
                let beside = match writer {
                    Writing::Nobody => "no process writes it now".to_owned(),
                    Writing::Process(pid) => {
                        format!("beside process {pid}, which writes it; as it was a moment ago")
                    }
                    Writing::Unknown => "whether a process writes it now is not known".to_owned(),
                };
                let (commits, segments) = (report.last_sequence, report.segments);
                format!(
                    "read directly from {} ({beside}): {commits} commits in {segments} segments",
                    folder.display()
                )
            }
            Place::Nats { server, tail } => format!(
                "read from the cluster's log at NATS server {server}: {} partitions; between two of them the order is that of the nodes' clocks",
                tail.0.len()
            ),
        }
    }

    /// The same, for programs; part of every JSON document but that of `state`.
    pub fn read(&self) -> Value {
        match &self.place {
            Place::Folder { folder, report, writer } => json!({
                "folder": folder,
                "way": "direct",
                "writer_pid": match writer { Writing::Process(pid) => Some(pid), _ => None },
                "cursor": report.last_sequence,
                "segments": report.segments,
                "streams": report.streams,
                "damage": report.findings.iter().filter(|f| f.is_damage()).map(ToString::to_string).collect::<Vec<_>>(),
            }),
            Place::Nats { server, tail } => json!({ "way": "nats", "server": server, "cursor": tail }),
        }
    }

    /// Says how it was read, on standard error.
    pub fn say_way(&self) {
        eprintln!("{}", self.way());
        if self.findings().iter().any(Finding::is_damage) {
            eprintln!("the log is damaged: `replay verify` says where; what follows may lack something");
        }
    }

    /// All that was stored after `from`; gives what could not be read.
    pub async fn scan(&self, from: Cursor, each: impl FnMut(&Entry)) -> anyhow::Result<Vec<ReadError>> {
        if let Place::Nats { .. } = self.place {
            replay::merged(&*self.journal, from).await?.iter().for_each(each);
            return Ok(Vec::new());
        }
        Ok(replay::scan(&*self.journal, from, &self.holes(), each).await?)
    }

    /// The commits of the room that is meant.
    pub async fn room(&self, wanted: &RoomRef) -> anyhow::Result<(RoomId, Vec<Arc<Commit>>)> {
        let id = replay::find_room(&*self.journal, &self.holes(), wanted).await??;
        let stream = StreamId::from(&id);
        let commits = match read_all(&*self.journal, &stream, Version(1)).await {
            Ok(commits) => commits,
            // The journal does not serve a stream that it cannot vouch for; what there is of it is what an engineer wants to see.
            Err(error @ ReadError::Damaged { .. }) => {
                eprintln!("{error}");
                let mut commits = Vec::new();
                self.scan(Cursor::default(), |entry| {
                    if entry.commit.stream == stream {
                        commits.push(entry.commit.clone());
                    }
                })
                .await?;
                commits
            }
            Err(error) => return Err(error.into()),
        };
        Ok((id, commits))
    }
}

/// The folder of the log in a data folder, which may also be given itself.
fn log_folder(data: &Path) -> anyhow::Result<PathBuf> {
    if !data.is_dir() {
        bail!("there is no folder {}; --data names the data folder of `roomlog up`", data.display());
    }
    let inside = data.join("log");
    match [data, &inside].into_iter().find(|folder| folder.join("facts.json").is_file()) {
        Some(folder) => Ok(folder.to_owned()),
        None if copy_in(data).is_some() => bail!(
            "{} is the data folder of a node on NATS, where the log is: read it with --nats nats://host:4222",
            data.display()
        ),
        None => bail!(
            "{} is not the data folder of a Roomlog: neither it nor its log/ has a facts.json",
            data.display()
        ),
    }
}

/// Which process holds the lock of the log, from the kernel's list of locks; trying the lock itself could make an `up` fail that starts
/// at this moment.
fn writing(folder: &Path) -> Writing {
    let Ok(lock) = fs::metadata(folder.join("lock")) else { return Writing::Nobody };
    let Ok(locks) = fs::read_to_string("/proc/locks") else { return Writing::Unknown };
    for line in locks.lines() {
        // 1: FLOCK  ADVISORY  WRITE 4211 fd:01:1843205 0 EOF
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, place, ..] = fields.as_slice() else { continue };
        if place.rsplit(':').next().and_then(|inode| inode.parse::<u64>().ok()) == Some(lock.ino()) {
            return pid.parse().map_or(Writing::Unknown, Writing::Process);
        }
    }
    Writing::Nobody
}
