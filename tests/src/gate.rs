//! A journal with a gate: while it is shut, appends are refused as a full or absent disk would refuse them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use roomlog_bus::{
    commit::Commit,
    journal::{AppendError, Before, Journal},
};

/// The journal behind the gate, and whether it is shut.
pub struct Gate {
    /// What is kept.
    pub inner: Arc<dyn Journal>,
    /// Shut or not.
    pub shut: Arc<AtomicBool>,
}

#[async_trait]
impl Before for Gate {
    fn behind(&self) -> &dyn Journal {
        &*self.inner
    }

    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        if self.shut.load(Ordering::Relaxed) {
            return Err(AppendError::Unavailable { reason: "the gate is shut".into() });
        }
        self.inner.append(commit).await
    }
}
