//! The journal in sled: the authority of one machine.
//!
//! ```text
//!  DIR/facts.json              what never changes: format, journal id, partitions
//!  DIR/purged                  where purged streams begin
//!  DIR/lock                    held by the one process that writes
//!  DIR/segments/000001.begin   where the segment begins
//!  DIR/segments/000001/        a closed segment, and
//!  DIR/segments/000001.manifest   … its description: heads, positions
//!  DIR/segments/000002/        the live segment: a sled directory
//!  DIR/set-aside/              damaged segments, untouched
//!
//!            ┌─ writer ── live segment (sled) ──full── closed segment (manifest)
//!  append ───┘    └── sync thread ── answer thread
//!  read, head ──── index in memory ──── recent commits ──── blocks on disk
//!  follow ── a task each: recent commits, else disk, else waits
//! ```
//! | to change | see |
//! | --- | --- |
//! | what a block looks like | [`block`] |
//! | how groups are made and written | [`writer`] |
//! | how they become durable, what a failed sync means | [`sync`] |
//! | how they become known and are answered | [`answer`] |
//! | how sled is used, and why keys are reserved | [`live`] |
//! | how closed segments are read | [`closed`] |
//! | how commits are forgotten, and segments cleaned | [`purge`] |
//! | what opening checks, what is set aside | [`open`] |
//! | how a folder is read that another process writes | [`read_only`] |
//!
//! **Order.** One sequence over all streams, 1, 2, 3 …; a [`Cursor`] has one element. Partitions matter to JetStream only; their number is
//! kept in the facts so that it stays the same.
//!
//! **Space.** sled gives nothing back after deletes, so nothing is deleted in it: what is purged is left out of what is read, and closed
//! segments of which little else is left are written anew without it.

mod answer;
mod begin;
mod block;
mod closed;
mod facts;
mod files;
mod follow;
mod index;
mod keep;
mod live;
mod mark;
mod open;
mod purge;
mod read_only;
mod report;
mod scan;
mod settings;
mod shared;
mod sync;
#[cfg(test)]
mod tests;
mod writer;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

pub use report::{Finding, OpenError, OpenReport};
pub use settings::JournalSettings;

use crate::{
    commit::{Commit, Head, MAX_COMMIT_BYTES, StreamId, StreamKind},
    ids::Version,
    journal::{AppendError, Cursor, Follow, Journal, PurgeError, ReadError},
};
use shared::Shared;
use sync::Append;
use writer::Request;

/// Folder of the segments.
const SEGMENTS: &str = "segments";

/// Folder of what was set aside.
const SET_ASIDE: &str = "set-aside";

/// The journal in sled. Clones share it.
///
/// [`close`](Self::close) it before its folder is opened again; dropping the last clone closes it too, but does not wait.
#[derive(Clone)]
pub struct SledJournal {
    shared: Arc<Shared>,
    /// None when it was opened read-only.
    requests: Option<mpsc::Sender<Request>>,
}

impl SledJournal {
    /// Opens the journal in `directory`, making it if there is none. Blocks: reads and checks the newest segment.
    pub fn open(
        directory: impl AsRef<Path>,
        settings: JournalSettings,
    ) -> Result<(Self, OpenReport), OpenError> {
        let queue = settings.queue.max(1);
        let (writer, report) = open::open(directory.as_ref(), settings)?;
        let shared = writer.shared.clone();
        let (sender, receiver) = mpsc::channel(queue);
        std::thread::Builder::new()
            .name("journal-writer".into())
            .spawn(move || writer.run(receiver))
            .map_err(|error| OpenError::io("start the writer of", directory.as_ref(), error))?;
        Ok((Self { shared, requests: Some(sender) }, report))
    }

    /// Opens the journal in `directory` for reading, also while another process writes it, and changes nothing there. Shows every commit
    /// acknowledged before the call, and none of later; appends are refused. Blocks.
    pub fn open_read_only(directory: impl AsRef<Path>) -> Result<(Self, OpenReport), OpenError> {
        let (shared, report) = read_only::open(directory.as_ref())?;
        Ok((Self { shared: Arc::new(shared), requests: None }, report))
    }

    /// Stores what waits, ends the followers and closes the files. Later appends are refused.
    pub async fn close(&self) {
        let Some(requests) = &self.requests else { return };
        let (answer, closed) = oneshot::channel();
        if requests.send(Request::Close(answer)).await.is_ok() {
            let _ = closed.await;
        }
        // Whoever closed first: the sender of the tail goes last but for the lock.
        let mut tail = self.shared.tail.clone();
        while tail.changed().await.is_ok() {}
    }

    /// The number of partitions streams are hashed onto.
    pub fn partitions(&self) -> u16 {
        self.shared.facts.partitions
    }

    /// First and last of each run of sequences that damage took, as found at the opening. A follow breaks there; whoever may go on without
    /// them follows again from the last one.
    pub fn holes(&self) -> Vec<(u64, u64)> {
        self.shared.index().holes.clone()
    }

    /// Why the journal takes no appends, if it does not.
    pub fn stopped(&self) -> Option<String> {
        self.shared.index().stopped.clone()
    }

    /// Appends a carrier of the local copy: a whole commit in a commit, so larger than others may be.
    pub(crate) async fn put_carrier(&self, commit: Commit) -> Result<(), AppendError> {
        let bytes = check_of(&commit, MAX_COMMIT_BYTES + CARRIER_BYTES)?;
        self.store(commit, bytes).await
    }

    async fn store(&self, commit: Commit, bytes: Vec<u8>) -> Result<(), AppendError> {
        let closed = || AppendError::Unavailable {
            reason: self.stopped().unwrap_or_else(|| "it is open read-only".into()),
        };
        let requests = self.requests.as_ref().ok_or_else(closed)?;
        let (answer, answered) = oneshot::channel();
        let (stream, version, id) = (commit.stream.clone(), commit.version, commit.id);
        let append = Append { commit: Arc::new(commit), bytes, answer };
        requests.send(Request::Append(append)).await.map_err(|_| closed())?;
        let conflict = match answered.await {
            Ok(Err(conflict @ AppendError::Conflict { .. })) => conflict,
            Ok(answer) => return answer,
            Err(_) => return Err(AppendError::Unknown { stream }),
        };
        // Perhaps it is there already: a retry of what was stored is a success.
        match self.read(&stream, version, 1).await {
            Ok(found) if found.first().is_some_and(|c| c.id == id && c.version == version) => Ok(()),
            Ok(_) => Err(conflict),
            Err(_) => Err(AppendError::Unknown { stream }),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Shared) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || f(&shared))
            .await
            .map_err(|error| ReadError::Unavailable { reason: format!("the reader failed: {error}") })?
    }
}

/// What a carrier of the local copy is larger than the commit it carries, at most; a block has room for it.
const CARRIER_BYTES: usize = 2 * 1024;

/// The rules a commit must obey by itself.
pub(crate) fn check(commit: &Commit) -> Result<Vec<u8>, AppendError> {
    check_of(commit, MAX_COMMIT_BYTES)
}

fn check_of(commit: &Commit, most: usize) -> Result<Vec<u8>, AppendError> {
    let invalid = |reason: String| Err(AppendError::Invalid { stream: commit.stream.clone(), reason });
    if commit.events.is_empty() {
        return invalid("it has no events".into());
    }
    if commit.version == Version(0) {
        return invalid("versions begin at 1".into());
    }
    if commit.version.0.checked_add(commit.events.len() as u64).is_none() {
        return invalid("its version leaves no room for its events".into());
    }
    if (commit.version == Version(1)) != commit.prev.is_none() {
        return invalid("the first commit of a stream, and only that, has no predecessor".into());
    }
    let bytes = commit.encode();
    if bytes.len() > most {
        return invalid(format!("it takes {} bytes, at most {most} are allowed", bytes.len()));
    }
    Ok(bytes)
}

#[async_trait]
impl Journal for SledJournal {
    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        let bytes = check(&commit)?;
        self.store(commit, bytes).await
    }

    async fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError> {
        match self.shared.read_recent(stream, from, limit) {
            Ok(commits) => Ok(commits),
            Err(Some(error)) => Err(error),
            Err(None) => {
                let stream = stream.clone();
                self.blocking(move |shared| shared.read(&stream, from, limit)).await
            }
        }
    }

    async fn head(&self, stream: &StreamId) -> Result<Option<Head>, ReadError> {
        let index = self.shared.index();
        Shared::certain(&index, stream)?;
        Ok(index.streams.get(stream).map(|state| state.head))
    }

    async fn streams(&self, kind: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError> {
        // Off the async threads: with a million streams this is work.
        self.blocking(move |shared| {
            let mut streams: Vec<(StreamId, Head)> = shared
                .index()
                .streams
                .iter()
                .filter(|(stream, _)| stream.kind() == kind)
                .map(|(stream, state)| (stream.clone(), state.head))
                .collect();
            streams.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            Ok(streams)
        })
        .await
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        let tail = *self.shared.tail.borrow();
        let seen = after(&from, tail)?;
        let (sender, receiver) = mpsc::channel(self.shared.settings.follow_queue.max(1));
        tokio::spawn(follow::run(self.shared.clone(), seen + 1, tail, sender));
        Ok(Follow { receiver })
    }

    async fn tail(&self) -> Result<Cursor, ReadError> {
        Ok(Cursor(vec![self.shared.index().tail]))
    }

    async fn purge(&self, streams: &[(StreamId, Version)]) -> Result<(), PurgeError> {
        if self.requests.is_none() {
            return Err(PurgeError { reason: "it is open read-only".into() });
        }
        let (shared, streams) = (self.shared.clone(), streams.to_vec());
        tokio::task::spawn_blocking(move || purge::purge(&shared, &streams))
            .await
            .map_err(|error| PurgeError { reason: format!("its thread failed: {error}") })?
    }

    async fn beyond_loss(&self, from: &Cursor) -> Option<Cursor> {
        let next = from.0.first().copied().unwrap_or(0) + 1;
        let index = self.shared.index();
        index
            .holes
            .iter()
            .find(|(first, last)| (*first..=*last).contains(&next))
            .map(|(_, last)| Cursor(vec![*last]))
    }
}

/// The one sequence in `cursor`; it must not lie beyond `tail`.
pub(crate) fn after(cursor: &Cursor, tail: u64) -> Result<u64, ReadError> {
    let seen = match cursor.0.as_slice() {
        [] => 0,
        [seen] => *seen,
        more => {
            return Err(ReadError::Unavailable {
                reason: format!("the cursor has {} partitions, this journal has one order", more.len()),
            });
        }
    };
    if seen > tail {
        return Err(ReadError::Damaged {
            place: format!("cursor {seen}"),
            reason: format!(
                "the journal ends at {tail}: it lost commits, or the cursor is of another journal"
            ),
        });
    }
    Ok(seen)
}
