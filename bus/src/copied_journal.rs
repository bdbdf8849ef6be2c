//! A cluster's journal with a local copy beside it: what this process appends is on its own disk before anybody is answered.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;

use crate::{
    commit::{Commit, Head, StreamId, StreamKind},
    ids::Version,
    journal::{AppendError, Cursor, Follow, Journal, PurgeError, ReadError},
    local_copy::LocalCopy,
};

/// The journal of a process in a cluster.
pub struct CopiedJournal {
    cluster: Arc<dyn Journal>,
    copy: LocalCopy,
    /// The copy takes nothing: said once, not with each commit.
    failing: AtomicBool,
}

impl CopiedJournal {
    /// `cluster` with `copy` beside it.
    pub fn new(cluster: Arc<dyn Journal>, copy: LocalCopy) -> Self {
        Self { cluster, copy, failing: AtomicBool::new(false) }
    }

    /// Closes the copy.
    pub async fn close(&self) {
        self.copy.close().await;
    }
}

#[async_trait]
impl Journal for CopiedJournal {
    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        self.cluster.append(commit.clone()).await?;
        // It is in the cluster's log, and that is what was asked: a full disk here must not stop rooms that the cluster carries.
        match self.copy.put(&commit).await {
            Ok(()) if self.failing.swap(false, Ordering::Relaxed) => {
                tracing::warn!("the local copy of the log is written again; it lacks what came in between");
            }
            Ok(()) => {}
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                tracing::error!(%error, "ALARM: the local copy of the log takes nothing; what NATS loses from here on, `roomlog repair` cannot bring back");
            }
            Err(_) => {}
        }
        Ok(())
    }

    async fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError> {
        self.cluster.read(stream, from, limit).await
    }

    async fn head(&self, stream: &StreamId) -> Result<Option<Head>, ReadError> {
        self.cluster.head(stream).await
    }

    async fn streams(&self, kind: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError> {
        self.cluster.streams(kind).await
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        self.cluster.follow(from).await
    }

    async fn tail(&self) -> Result<Cursor, ReadError> {
        self.cluster.tail().await
    }

    async fn purge(&self, streams: &[(StreamId, Version)]) -> Result<(), PurgeError> {
        self.cluster.purge(streams).await
    }

    async fn beyond_loss(&self, from: &Cursor) -> Option<Cursor> {
        self.cluster.beyond_loss(from).await
    }

    async fn is_replaced(&self, cursor: &Cursor) -> bool {
        self.cluster.is_replaced(cursor).await
    }
}
