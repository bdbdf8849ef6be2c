//! The pen of a node: makes commits of events and appends them, settling unknown outcomes before anyone is answered.

use std::sync::Arc;

use crate::{
    commit::{Cause, Commit, CommitId, Head, Payload, StreamId, Writer},
    env::Env,
    events::Event,
    ids::{Epoch, Version},
    journal::{AppendError, Journal},
};

/// How often an unknown outcome is read back before it is given up as unknown; with [`SETTLE_PAUSE`] between, 1 s in all.
const SETTLE_TRIES: u32 = 10;
/// Between two looks at an unknown outcome: a stalled disk write is usually over in this time.
const SETTLE_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// What a commit is made of, besides who writes it and when.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// Ownership epoch, for room streams.
    pub epoch: Epoch,
    /// What led to it.
    pub cause: Cause,
    /// What was asked.
    pub command: Payload,
    /// What was read besides the state.
    pub facts: Payload,
}

/// Appends in the name of one node.
#[derive(Clone)]
pub struct Log {
    journal: Arc<dyn Journal>,
    env: Env,
    writer: Writer,
}

impl Log {
    /// A pen for `writer`.
    pub fn new(journal: Arc<dyn Journal>, env: Env, writer: Writer) -> Self {
        Self { journal, env, writer }
    }

    /// The journal behind it.
    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.journal
    }

    /// The node's clock and randomness.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Who writes.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Appends `events` after `head` of `stream` as one commit and gives it back once it is durable.
    pub async fn append(
        &self,
        stream: StreamId,
        head: Option<Head>,
        draft: Draft,
        events: &[Event],
    ) -> Result<Arc<Commit>, AppendError> {
        let now = self.env.now();
        let commit = Commit {
            id: self.env.draw(|rng| CommitId::new(now, rng)),
            prev: head.map(|h| h.id),
            version: head.map_or(Version(1), |h| h.version.next()),
            stream,
            time: now,
            writer: self.writer.clone(),
            epoch: draft.epoch,
            cause: draft.cause,
            command: draft.command,
            facts: draft.facts,
            events: events.iter().map(Event::encode).collect(),
        };
        match self.journal.append(commit.clone()).await {
            Ok(()) => Ok(Arc::new(commit)),
            Err(AppendError::Unknown { stream }) => self.settle(stream, commit).await,
            Err(error) => Err(error),
        }
    }

    /// Finds out whether `commit` is stored.
    async fn settle(&self, stream: StreamId, commit: Commit) -> Result<Arc<Commit>, AppendError> {
        for _ in 0..SETTLE_TRIES {
            tokio::time::sleep(SETTLE_PAUSE).await;
            if let Ok(found) = self.journal.read(&stream, commit.version, 1).await {
                match found.first() {
                    Some(stored) if stored.id == commit.id => return Ok(Arc::new(commit)),
                    Some(other) => {
                        return Err(AppendError::Conflict {
                            stream,
                            version: commit.version,
                            head: Some(other.head()),
                        });
                    }
                    // It may still land; appending the same commit again is idempotent and settles it either way.
                    None => match self.journal.append(commit.clone()).await {
                        Ok(()) => return Ok(Arc::new(commit)),
                        Err(AppendError::Unknown { .. }) => {}
                        Err(error) => return Err(error),
                    },
                }
            }
        }
        Err(AppendError::Unknown { stream })
    }
}
