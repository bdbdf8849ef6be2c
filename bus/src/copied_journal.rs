//! A cluster's journal with a local copy beside it: what this process appends is on its own disk before anybody is answered.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;

use crate::{
    commit::Commit,
    journal::{AppendError, Before, Journal},
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
impl Before for CopiedJournal {
    fn behind(&self) -> &dyn Journal {
        &*self.cluster
    }

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
}
