//! The pen of a node: makes commits of events and appends them, settling unknown outcomes before anyone is answered.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    commit::{Cause, Commit, CommitId, Head, Payload, StreamId, Writer},
    env::Env,
    events::Event,
    ids::{Epoch, Version},
    journal::{AppendError, Journal},
};

/// How long an unknown outcome is settled before it is given up as unknown. NATS servers begin an election 4 to 9 s after the stream's leader
/// was last heard and end it within one more; together with the 5 s that the append waited before, whoever asked is still waiting (20 s).
const SETTLE_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries to settle an unknown outcome: a stalled disk write is usually over in this time.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

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
            more: Default::default(),
        };
        match self.journal.append(commit.clone()).await {
            Ok(()) => Ok(Arc::new(commit)),
            Err(AppendError::Unknown { stream }) => self.settle(stream, commit).await,
            Err(error) => Err(error),
        }
    }

    /// Finds out whether `commit` is stored, by appending it again: where it is, that changes nothing and says so.
    async fn settle(&self, stream: StreamId, commit: Commit) -> Result<Arc<Commit>, AppendError> {
        let until = Instant::now() + SETTLE_WITHIN;
        while Instant::now() < until {
            tokio::time::sleep(SETTLE_PAUSE).await;
            match self.journal.append(commit.clone()).await {
                Ok(()) => return Ok(Arc::new(commit)),
                // This try was not stored; the one before may be, or may be on its way.
                Err(AppendError::Unknown { .. } | AppendError::Unavailable { .. }) => {}
                Err(error @ (AppendError::Conflict { .. } | AppendError::Invalid { .. })) => {
                    return Err(error);
                }
            }
        }
        Err(AppendError::Unknown { stream })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::{commit::RawEvent, ids::Incarnation, journal::Before, memory_journal::MemoryJournal};

    /// A log whose leader is gone: what is asked of it stays unanswered, or is refused, until another is elected.
    struct Leaderless {
        stored: MemoryJournal,
        elected: Instant,
        /// Whether the first append was stored before the leader went.
        lands: AtomicBool,
        tries: AtomicU32,
    }

    #[async_trait]
    impl Before for Leaderless {
        fn behind(&self) -> &dyn Journal {
            &self.stored
        }

        async fn append(&self, commit: Commit) -> Result<(), AppendError> {
            let stream = commit.stream.clone();
            if Instant::now() >= self.elected {
                return self.stored.append(commit).await;
            }
            if self.lands.swap(false, Ordering::Relaxed) {
                self.stored.append(commit).await?;
                return Err(AppendError::Unknown { stream });
            }
            match self.tries.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                true => Err(AppendError::Unknown { stream }),
                false => Err(AppendError::Unavailable { reason: "no leader".into() }),
            }
        }
    }

    async fn appended(election: Duration, lands: bool) -> (Result<Arc<Commit>, AppendError>, Option<Head>) {
        let elected = Instant::now() + election;
        let stored = MemoryJournal::new();
        let journal = Leaderless { stored: stored.clone(), elected, lands: lands.into(), tries: 0.into() };
        let node: StreamId = "ec.a".parse().expect("a stream");
        let writer = Writer { node: node.clone(), incarnation: Incarnation(1) };
        let log = Log::new(Arc::new(journal), Env::system(), writer);
        let event = Event::Unknown(RawEvent::new("X", 1, Payload::encode(&1)));
        let answer = log.append(node.clone(), None, Draft::default(), &[event]).await;
        (answer, stored.head(&node).await.expect("memory reads"))
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_is_settled_by_the_next_leader() {
        for lands in [true, false] {
            let (answer, head) = appended(Duration::from_millis(9_001), lands).await;
            assert_eq!(answer.expect("settled").head(), head.expect("stored"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_leader_it_stays_unknown_whatever_later_tries_say() {
        let (answer, head) = appended(Duration::from_secs(60), true).await;
        assert!(matches!(answer, Err(AppendError::Unknown { .. })), "{answer:?}");
        assert!(head.is_some());
    }
}
