//! The local copy: what this process has had acknowledged by the cluster's log, kept on its own disk, synced before anybody is answered.
//!
//! ```text
//!  DIR/000001/        a part: a sled journal, closed for good once it is full
//!  DIR/000002/        the part that is being written
//!  DIR/set-aside/room.<id>/<version>-<commit>     a branch that the cluster's log did not take, one commit a file
//! ```
//! It is no log: streams in it may begin in the middle, have holes, and go two ways. So each copied commit lies in a *carrier*, a commit of
//! the part's journal whose only event holds it as it was; the carriers of a stream are numbered from 1, whatever the versions they carry.
//! What the segments give (checksums, group commit, torn tails told from damage, reading beside the process that writes) it has from there.
//!
//! Parts are what makes it bounded: beyond the limit the oldest is dropped whole, and what it held is in the cluster's log alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use crate::{
    commit::{Cause, Commit, Payload, RawEvent, StreamId, StreamKind},
    ids::Version,
    journal::{AppendError, Cursor, Followed, Journal, ReadError, read_all},
    sled_journal::{Finding, JournalSettings, OpenError, SledJournal},
};

/// Type of a carrier's event.
const CARRIER: &str = "Copied";
/// Folder of the branches the cluster's log did not take.
const SET_ASIDE: &str = "set-aside";
/// Tries to put a carrier behind what others of this process put into the same stream meanwhile. A stream has one writer, seldom two.
const TRIES: usize = 64;

/// How a [`LocalCopy`] is kept.
#[derive(Debug, Clone)]
pub struct CopySettings {
    /// Bytes it may take, about; at least half of that is there. Default 1 GiB: some two million commits, days of a busy node, which is
    /// further back than a copy of a NATS folder should ever be put back to.
    pub bytes: u64,
}

impl Default for CopySettings {
    fn default() -> Self {
        Self { bytes: 1 << 30 }
    }
}

/// Why a local copy is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A part does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system refused.
    #[error("could not {what} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A part cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Something in it is not what was put there.
    #[error("{place}: {reason}; put the file elsewhere, or restore it from a copy")]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_owned();
    move |source| CopyError::Io { what, path, source }
}

/// The copy that this process writes.
pub struct LocalCopy {
    folder: PathBuf,
    settings: CopySettings,
    part: tokio::sync::RwLock<Part>,
}

/// The part that is being written.
struct Part {
    number: u32,
    journal: SledJournal,
    /// Bytes put since it was opened, and found there then.
    bytes: std::sync::atomic::AtomicU64,
}

impl Part {
    /// Opens part `number`. Blocks.
    fn open(folder: &Path, number: u32) -> Result<(Self, Vec<Finding>), CopyError> {
        let path = part_path(folder, number);
        let settings = JournalSettings {
            partitions: 1,
            // Read only at a start and by `roomlog repair`: nothing needs to stay in memory.
            recent_commits: 64,
            recent_bytes: 1 << 20,
            cache_bytes: 4 << 20,
            segment_bytes: 16 << 20,
            ..JournalSettings::default()
        };
        let (journal, report) = SledJournal::open(&path, settings)?;
        let bytes = size(&path).map_err(io_error("measure", &path))?;
        Ok((Self { number, journal, bytes: bytes.into() }, report.findings))
    }
}

impl LocalCopy {
    /// Opens the copy in `folder`, making it if there is none, and says what was not as it should be. Blocks.
    pub fn open(folder: &Path, settings: CopySettings) -> Result<(Self, Vec<Finding>), CopyError> {
        fs::create_dir_all(folder).map_err(io_error("make", folder))?;
        let number = parts(folder)?.last().copied().unwrap_or(1);
        let (part, findings) = Part::open(folder, number)?;
        Ok((Self { folder: folder.to_owned(), settings, part: part.into() }, findings))
    }

    /// Puts a commit that the cluster has acknowledged; it is on disk when this returns.
    pub async fn put(&self, commit: &Commit) -> Result<(), AppendError> {
        let bytes = commit.encode();
        if self.part.read().await.bytes.load(std::sync::atomic::Ordering::Relaxed) >= self.settings.bytes / 2
        {
            self.next_part().await;
        }
        let part = self.part.read().await;
        let size = bytes.len() as u64;
        let data = Payload(bytes.into());
        let mut head = part.journal.head(&commit.stream).await.map_err(|error| AppendError::Unavailable {
            reason: format!("the local copy does not read: {error}"),
        })?;
        for _ in 0..TRIES {
            let carrier = Commit {
                id: commit.id,
                prev: head.map(|head| head.id),
                stream: commit.stream.clone(),
                version: head.map_or(Version(1), |head| head.version.next()),
                time: commit.time,
                writer: commit.writer.clone(),
                epoch: commit.epoch,
                cause: Cause::default(),
                command: Payload::default(),
                facts: Payload::default(),
                events: vec![RawEvent::new(CARRIER, 1, data.clone())],
                more: Default::default(),
            };
            match part.journal.put_carrier(carrier).await {
                Err(AppendError::Conflict { head: now, .. }) => head = now,
                put => {
                    part.bytes.fetch_add(size, std::sync::atomic::Ordering::Relaxed);
                    return put;
                }
            }
        }
        Err(AppendError::Unavailable { reason: format!("{} is copied by too many at once", commit.stream) })
    }

    /// Goes on in a new part; of the others the newest stays. If none can be made, the old one grows on.
    async fn next_part(&self) {
        let mut part = self.part.write().await;
        let bytes = part.bytes.load(std::sync::atomic::Ordering::Relaxed);
        if bytes < self.settings.bytes / 2 {
            return; // somebody else did it
        }
        let (folder, number) = (self.folder.clone(), part.number + 1);
        let opened = tokio::task::spawn_blocking(move || {
            let (next, _) = Part::open(&folder, number)?;
            for old in parts(&folder)?.into_iter().filter(|old| old + 1 < number) {
                let path = part_path(&folder, old);
                fs::remove_dir_all(&path).map_err(io_error("drop", &path))?;
            }
            Ok::<_, CopyError>(next)
        });
        match opened.await {
            Ok(Ok(next)) => {
                let full = std::mem::replace(&mut *part, next);
                full.journal.close().await;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "no new part of the local copy could be made; the old one grows on");
                part.bytes.store(0, std::sync::atomic::Ordering::Relaxed);
            }
            Err(error) => tracing::error!(%error, "making a part of the local copy broke off"),
        }
    }

    /// The last `count` commits that were put and are not set aside: what a log that lost its end lost first.
    pub async fn last(&self, count: u64) -> Result<Vec<Arc<Commit>>, CopyError> {
        let journal = self.part.read().await.journal.clone();
        let tail = journal.tail().await?.0.first().copied().unwrap_or(0);
        let aside = set_aside(&self.folder)?;
        let mut commits = carried(&journal, tail.saturating_sub(count)).await?;
        commits.retain(|commit| !aside.iter().any(|branch| branch.commit.id == commit.id));
        Ok(commits)
    }

    /// Closes its files.
    pub async fn close(&self) {
        self.part.read().await.journal.close().await;
    }
}

/// All of a copy, read from its folder, also beside the process that writes it.
pub struct Copied {
    /// The commits in the order they were put, without those set aside.
    pub commits: Vec<Arc<Commit>>,
    /// What was not as it should be.
    pub findings: Vec<Finding>,
    /// The branches that the cluster's log did not take.
    pub set_aside: Vec<SetAside>,
}

/// A commit that the cluster's log did not take.
#[derive(Debug, Clone)]
pub struct SetAside {
    /// The file it lies in.
    pub path: PathBuf,
    /// The commit.
    pub commit: Arc<Commit>,
}

impl Copied {
    /// Reads the copy in `folder`.
    pub async fn read(folder: &Path) -> Result<Self, CopyError> {
        let mut all = Self { commits: Vec::new(), findings: Vec::new(), set_aside: set_aside(folder)? };
        for number in parts(folder)? {
            let path = part_path(folder, number);
            let opened = tokio::task::spawn_blocking(move || SledJournal::open_read_only(&path)).await;
            let (journal, report) =
                opened.map_err(|error| ReadError::Unavailable { reason: error.to_string() })??;
            all.findings.extend(report.findings);
            all.commits.extend(by_stream(&journal).await?);
        }
        all.commits.retain(|commit| !all.set_aside.iter().any(|branch| branch.commit.id == commit.id));
        Ok(all)
    }
}

/// Every stream of a part in turn: where a part is damaged, the streams that are whole are still given.
async fn by_stream(journal: &SledJournal) -> Result<Vec<Arc<Commit>>, CopyError> {
    let mut commits = Vec::new();
    for kind in StreamKind::ALL {
        for (stream, _) in journal.streams(kind).await? {
            match read_all(journal, &stream, Version(1)).await {
                Ok(carriers) => {
                    for carrier in carriers {
                        commits.push(Arc::new(uncarried(&carrier)?));
                    }
                }
                Err(error) => {
                    tracing::error!(%stream, %error, "a stream of the local copy does not read")
                }
            }
        }
    }
    Ok(commits)
}

/// What was put after `from`, in that order.
async fn carried(journal: &SledJournal, from: u64) -> Result<Vec<Arc<Commit>>, CopyError> {
    let mut follow = journal.follow(Cursor(vec![from])).await?;
    let mut commits = Vec::new();
    loop {
        match follow.next().await {
            Some(Followed::Entry(entry)) => commits.push(Arc::new(uncarried(&entry.commit)?)),
            Some(Followed::Broken(error)) => return Err(error.into()),
            Some(Followed::CaughtUp) | None => return Ok(commits),
        }
    }
}

fn uncarried(carrier: &Commit) -> Result<Commit, CopyError> {
    let damaged = |reason: String| CopyError::Damaged {
        place: format!("carrier {} of {} in the local copy", carrier.version, carrier.stream),
        reason,
    };
    let [event] = carrier.events.as_slice() else { return Err(damaged("it has not one event".into())) };
    let commit = Commit::decode(&event.data.0).map_err(|error| damaged(error.to_string()))?;
    match commit.stream == carrier.stream {
        true => Ok(commit),
        false => Err(damaged(format!("it carries a commit of {}", commit.stream))),
    }
}

// ---- branches ----------------------------------------------------------------------------------------------------------------

/// Puts a commit that the cluster's log did not take where it is kept and no longer compared. Blocks.
pub fn put_aside(folder: &Path, commit: &Commit) -> Result<PathBuf, CopyError> {
    let directory = folder.join(SET_ASIDE).join(commit.stream.to_string());
    fs::create_dir_all(&directory).map_err(io_error("make", &directory))?;
    let path = directory.join(format!("{}-{}", commit.version, commit.id));
    let write = || {
        let beside = path.with_extension("writing");
        fs::write(&beside, commit.encode())?;
        fs::File::open(&beside)?.sync_all()?;
        fs::rename(&beside, &path)?;
        fs::File::open(&directory)?.sync_all()
    };
    write().map_err(io_error("write", &path))?;
    Ok(path)
}

/// The commits set aside in the copy at `folder`, by stream and version. Blocks.
pub fn set_aside(folder: &Path) -> Result<Vec<SetAside>, CopyError> {
    let mut found = Vec::new();
    for directory in entries(&folder.join(SET_ASIDE))? {
        let named = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if StreamId::from_str(named).is_err() {
            continue;
        }
        for path in entries(&directory)?.into_iter().filter(|path| path.extension().is_none()) {
            let bytes = fs::read(&path).map_err(io_error("read", &path))?;
            let commit = Commit::decode(&bytes).map_err(|error| CopyError::Damaged {
                place: path.display().to_string(),
                reason: format!("it is no commit: {error}"),
            })?;
            found.push(SetAside { path, commit: Arc::new(commit) });
        }
    }
    found.sort_by_key(|branch| (branch.commit.stream.clone(), branch.commit.version, branch.commit.id));
    Ok(found)
}

// ---- files -------------------------------------------------------------------------------------------------------------------

fn part_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:06}"))
}

/// Numbers of the parts, ascending.
fn parts(folder: &Path) -> Result<Vec<u32>, CopyError> {
    let name = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
    let mut numbers: Vec<u32> = entries(folder)?.iter().filter_map(name).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What is in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, CopyError> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
    .map_err(io_error("list", folder))
}

fn size(path: &Path) -> io::Result<u64> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    fs::read_dir(path)?.try_fold(0, |sum, entry| Ok(sum + size(&entry?.path())?))
}
