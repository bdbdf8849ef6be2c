//! The journal: where commits are kept. Appends with an expected version, reads a stream, follows everything from a cursor.
//!
//! ```text
//!  stream room.a   1 ─ 2 ─ 3         versions, no gap
//!  stream room.b         1 ─ 2 ─ 3
//!  journal         ·─·─·─·─·─·─·→    one total order per partition; a Cursor is "all before here has been seen"
//! ```
//!
//! Engines: [`sled`](crate::sled_journal) is the authority of one machine; JetStream is the authority of a cluster. All pass
//! [`conformance`](crate::conformance).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    commit::{Commit, Head, StreamId, StreamKind},
    ids::Version,
};

/// A place in the journal's total order: for each partition, the sequence of the last commit seen; 0 is the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor(pub Vec<u64>);

/// How an append failed. Whatever is not `Unknown` certainly did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Somebody else appended first. Read, fold, decide again.
    #[error("{stream} does not end where commit {version} expects: its head is {head:?}")]
    Conflict {
        /// The stream.
        stream: StreamId,
        /// The version the commit wanted to have.
        version: Version,
        /// Where the stream really ends; absent when it is empty.
        head: Option<Head>,
    },
    /// It may or may not have been stored. Read the stream before anyone is answered.
    #[error("append to {stream} timed out: whether it is stored is unknown until the stream is read")]
    Unknown {
        /// The stream.
        stream: StreamId,
    },
    /// The commit breaks a rule of the log and can never be stored.
    #[error("commit to {stream} refused: {reason}")]
    Invalid {
        /// The stream.
        stream: StreamId,
        /// Which rule.
        reason: String,
    },
    /// The journal takes nothing now: disk full, closed, cut off. Nothing was stored; try later.
    #[error("the journal takes no appends now: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// How a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// What is there is not what was written.
    #[error(
        "damaged record in {place}: {reason}; it was not served. `roomlog replay verify` lists all damage"
    )]
    Damaged {
        /// Segment and record.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The journal cannot be read now.
    #[error("the journal cannot be read now: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// How a purge failed. What it did stands, and purging the same again does the rest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the journal could not purge: {reason}")]
pub struct PurgeError {
    /// Why.
    pub reason: String,
}

/// One commit with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The cursor after this commit: following from it gives the next one.
    pub cursor: Cursor,
    /// The commit.
    pub commit: Arc<Commit>,
}

/// What a follower is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// The next commit.
    Entry(Entry),
    /// All that was stored when the follow began has been given; from here on it is live. Sent exactly once.
    CaughtUp,
    /// The journal cannot be followed further; what came before stands. Follow again from the last cursor.
    Broken(ReadError),
}

/// A running follow. Dropping it ends it.
#[derive(Debug)]
pub struct Follow {
    /// Bounded by the engine: a slow reader is not dropped, it makes the engine read from disk later.
    pub receiver: mpsc::Receiver<Followed>,
}

impl Follow {
    /// The next thing, or none once the journal is closed.
    pub async fn next(&mut self) -> Option<Followed> {
        self.receiver.recv().await
    }
}

/// Where commits are kept.
#[async_trait]
pub trait Journal: Send + Sync + 'static {
    /// Appends a commit; its `version` and `prev` are the expectation. `Ok` means it is durable and every follower will see it.
    /// Appending a commit that is already stored (same id, same place) is `Ok` and stores nothing twice.
    async fn append(&self, commit: Commit) -> Result<(), AppendError>;

    /// The commits of `stream` whose last version is at least `from`, in order, at most `limit` of them. Sees every append that was
    /// answered before the call.
    async fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError>;

    /// Where `stream` ends; none when it has no commit. Sees every append that was answered before the call.
    async fn head(&self, stream: &StreamId) -> Result<Option<Head>, ReadError>;

    /// Every stream of `kind` with its head, sorted by id.
    async fn streams(&self, kind: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError>;

    /// Everything after `from`, in the journal's order, then live: no gap, no repeat.
    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError>;

    /// The cursor after the last stored commit.
    async fn tail(&self) -> Result<Cursor, ReadError>;

    /// Forgets of each stream the commits that end below the version given with it: nothing gives them any more, and their space comes
    /// back in time. A version beyond the head forgets the whole stream, whose name must not be used again. Once this is answered no power
    /// cut brings them back. What is to be kept elsewhere is the caller's affair, and must be there before.
    async fn purge(&self, _streams: &[(StreamId, Version)]) -> Result<(), PurgeError> {
        Err(PurgeError { reason: "this one keeps everything".into() })
    }

    /// Where following can go on if what comes next after `from` is lost for good; none if it is not.
    async fn beyond_loss(&self, _from: &Cursor) -> Option<Cursor> {
        None
    }

    /// Whether the log was repaired since `cursor` was given: its order is another, and what was folded up to there may not be in it any
    /// more. Following goes on from the beginning, into a new fold.
    async fn is_replaced(&self, _cursor: &Cursor) -> bool {
        false
    }
}

/// A journal that stands before another one: whatever it does not do itself, that one does. Whoever implements this is a [`Journal`].
#[async_trait]
pub trait Before: Send + Sync + 'static {
    /// The other one.
    fn behind(&self) -> &dyn Journal;

    /// See [`Journal::append`].
    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        self.behind().append(commit).await
    }

    /// See [`Journal::follow`].
    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        self.behind().follow(from).await
    }
}

#[async_trait]
impl<T: Before> Journal for T {
    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        Before::append(self, commit).await
    }

    async fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError> {
        self.behind().read(stream, from, limit).await
    }

    async fn head(&self, stream: &StreamId) -> Result<Option<Head>, ReadError> {
        self.behind().head(stream).await
    }

    async fn streams(&self, kind: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError> {
        self.behind().streams(kind).await
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        Before::follow(self, from).await
    }

    async fn tail(&self) -> Result<Cursor, ReadError> {
        self.behind().tail().await
    }

    async fn purge(&self, streams: &[(StreamId, Version)]) -> Result<(), PurgeError> {
        self.behind().purge(streams).await
    }

    async fn beyond_loss(&self, from: &Cursor) -> Option<Cursor> {
        self.behind().beyond_loss(from).await
    }

    async fn is_replaced(&self, cursor: &Cursor) -> bool {
        self.behind().is_replaced(cursor).await
    }
}

/// Between two tries to follow a journal that cannot be read: long enough not to be a load, short enough that nobody waits for it.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);

/// Follows again after [`Followed::Broken`]: from `cursor`, or, where what comes next is lost for good, from behind the loss, which is
/// said in an error. Whoever folds then meets commits that do not follow what it has, in the streams that lost some, and in no others.
///
/// After a repair of the log `cursor` is the beginning, and everything comes again: to be folded anew.
pub async fn follow_again(journal: &dyn Journal, cursor: &mut Cursor, mut broken: ReadError) -> Follow {
    loop {
        match journal.beyond_loss(cursor).await {
            _ if journal.is_replaced(cursor).await => {
                tracing::warn!("the log was repaired: it is followed from its beginning");
                *cursor = Cursor::default();
            }
            Some(beyond) => {
                tracing::error!(error = %broken, from = ?cursor, to = ?beyond, "commits of the log are lost: following goes on behind them");
                *cursor = beyond;
            }
            None => {
                tracing::warn!(error = %broken, from = ?cursor, "following the log broke: following again from the last commit");
                tokio::time::sleep(FOLLOW_AGAIN).await;
            }
        }
        match journal.follow(cursor.clone()).await {
            Ok(follow) => return follow,
            Err(error) => broken = error,
        }
    }
}

/// The whole of one stream, read page by page.
pub async fn read_all(
    journal: &dyn Journal,
    stream: &StreamId,
    from: Version,
) -> Result<Vec<Arc<Commit>>, ReadError> {
    /// Commits a page: a few hundred KiB at the sizes rooms have.
    const PAGE: usize = 1_000;
    let mut all = Vec::new();
    let mut next = from;
    loop {
        let page = journal.read(stream, next, PAGE).await?;
        let full = page.len() == PAGE;
        if let Some(last) = page.last() {
            next = last.last_version().next();
        }
        all.extend(page);
        if !full {
            return Ok(all);
        }
    }
}
