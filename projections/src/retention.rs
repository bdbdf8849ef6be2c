//! Retention: what of the log is due to go, and its way out: archived, then purged.
//!
//! ```text
//!  closed room   ── owner appends RoomSnapshot ──→ below it: archived, purged
//!  deleted room  ────────────────────────────────→ all of it: archived, purged
//! ```
//! Nothing goes before [`RetentionSettings::history`] has passed since the last commit: until then the incident can be replayed from the log
//! alone. The owner compacts its closed rooms, one NUVE purges deleted ones.

use std::{sync::Arc, time::Duration};

use roomlog_bus::{
    commit::{Commit, StreamId},
    ids::{EcId, RoomId, Version},
    journal::{Journal, PurgeError, ReadError, read_all},
    time::Timestamp,
};

use crate::{
    archive::{Archive, ArchiveError},
    directory::Directory,
};

/// A snapshot is worth its bytes once it lets this many events go: a room's life without a client is two, a client's about ten.
const WORTH_COMPACTING: u64 = 16;
/// Deleted rooms read and purged at a time: some megabytes of memory, one file of the archive.
const AT_ONCE: usize = 100;

/// How long the log keeps what is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSettings {
    /// A room's commits stay at least this long after its last one. 30 days: incidents are looked into and invoices disputed in weeks. Must
    /// be longer than a token's life and the resume time together, or a token might admit to a room nobody remembers.
    pub history: Duration,
    /// How often what is due is looked for. 60 s: soon enough beside days, and a look goes over memory only.
    pub every: Duration,
    /// Rooms compacted in one look, so that a long stop's backlog is no burst of appends. 500: a few a second.
    pub compactions: usize,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self { history: Duration::from_secs(30 * 86_400), every: Duration::from_secs(60), compactions: 500 }
    }
}

impl RetentionSettings {
    /// The defaults for another `history`; where that is shorter than the usual pause between two looks, these come as often.
    pub fn of(history: Duration) -> Self {
        let default = Self::default();
        let every = default.every.min(history.max(Duration::from_secs(1)));
        Self { history, every, ..default }
    }

    /// What ended before this is due.
    fn due_before(&self, now: Timestamp, later: Duration) -> Timestamp {
        let micros = u64::try_from((self.history + later).as_micros()).unwrap_or(u64::MAX);
        Timestamp(now.0.saturating_sub(micros))
    }
}

/// The rooms that `ec` owns and should compact.
pub fn to_compact(
    directory: &Directory,
    ec: &EcId,
    now: Timestamp,
    settings: &RetentionSettings,
) -> Vec<RoomId> {
    let before = settings.due_before(now, Duration::ZERO);
    let due = directory.rooms.iter().filter(|(_, room)| {
        !room.open
            && room.clients.is_empty()
            && room.owner.as_ref().is_some_and(|owner| owner.ec == *ec)
            && room.version().0.saturating_sub(room.compacted.0) >= WORTH_COMPACTING
            && room.head.is_some_and(|head| head.id.time() <= before)
    });
    due.map(|(id, _)| id.clone()).take(settings.compactions).collect()
}

/// The deleted rooms whose streams are due; `later` puts the node off that only stands in for another.
pub fn to_purge(
    directory: &Directory,
    now: Timestamp,
    settings: &RetentionSettings,
    later: Duration,
) -> Vec<RoomId> {
    let before = settings.due_before(now, later);
    directory.deleted.iter().filter(|(_, head)| head.id.time() <= before).map(|(id, _)| id.clone()).collect()
}

/// Why something that was due is still there. It is tried again with the next look.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// What was to be archived cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be archived.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It cannot be purged.
    #[error(transparent)]
    Purge(#[from] PurgeError),
}

/// Archives and purges.
#[derive(Clone)]
pub struct Retention {
    journal: Arc<dyn Journal>,
    /// None where nothing is archived.
    archive: Option<Arc<Archive>>,
}

impl Retention {
    /// Purges from `journal` what is in `archive` by then, or without one, where the operator wants none.
    pub fn new(journal: Arc<dyn Journal>, archive: Option<Arc<Archive>>) -> Self {
        Self { journal, archive }
    }

    /// Purges what is below `below` in the stream of `room`.
    pub async fn compact(&self, room: &RoomId, below: Version, now: Timestamp) -> Result<(), RetentionError> {
        let stream = StreamId::from(room);
        if self.archive.is_some() {
            let mut commits = read_all(&*self.journal, &stream, Version(1)).await?;
            commits.retain(|commit| commit.last_version() < below);
            self.keep(now, commits).await?;
        }
        Ok(self.journal.purge(&[(stream, below)]).await?)
    }

    /// Purges all of `rooms`; gives those that are gone to `done`, some at a time.
    pub async fn purge(
        &self,
        rooms: &[RoomId],
        now: Timestamp,
        mut done: impl FnMut(&[RoomId]),
    ) -> Result<(), RetentionError> {
        for rooms in rooms.chunks(AT_ONCE) {
            let mut purged = Vec::with_capacity(rooms.len());
            let mut commits = Vec::new();
            for stream in rooms.iter().map(StreamId::from) {
                if self.archive.is_some() {
                    commits.extend(read_all(&*self.journal, &stream, Version(1)).await?);
                }
                purged.push((stream, Version(u64::MAX)));
            }
            self.keep(now, commits).await?;
            self.journal.purge(&purged).await?;
            done(rooms);
        }
        Ok(())
    }

    async fn keep(&self, now: Timestamp, commits: Vec<Arc<Commit>>) -> Result<(), RetentionError> {
        let Some(archive) = self.archive.clone() else { return Ok(()) };
        let kept = tokio::task::spawn_blocking(move || archive.keep(now, &commits)).await;
        kept.map_err(|error| ReadError::Unavailable { reason: format!("archiving broke off: {error}") })??;
        Ok(())
    }
}
