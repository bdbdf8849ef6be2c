//! The journal in JetStream: its settings, its parts put together, and what watches over it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::try_join_all;
use tokio::sync::watch;

use super::{
    api::StreamInfo,
    connection::{NatsError, Shared},
    known::Known,
    streams,
    truncation::{Partition, Truncation, stamped, unstamped},
};
use crate::{
    commit::{Commit, Head, StreamId, StreamKind},
    ids::Version,
    journal::{AppendError, Cursor, Follow, Journal, PurgeError, ReadError},
};

/// How the journal is kept, and how long it is waited for.
#[derive(Debug, Clone)]
pub struct JetStreamSettings {
    /// Partitions, fixed when the cluster is made; another number than the cluster's is an error. Default 4: four cores can each follow one.
    pub partitions: u16,
    /// Servers that keep each commit. Default 1, what a single server can do; a cluster of three servers wants 3.
    pub replicas: u8,
    /// How long an append waits for its acknowledgement before it ends as unknown. Default 5 s, as RPCs: a stream elects a new leader in less.
    pub ack_timeout: Duration,
    /// How long the journal is waited for while it takes nothing (no connection, no leader) before an append is refused. Default 2 s: long
    /// enough to ride over a server's restart or an election, short enough that a client gets its clear, retryable error.
    pub patience: Duration,
    /// How long any other question to JetStream may take. Default 5 s.
    pub api_timeout: Duration,
    /// How long opening waits until JetStream answers at all. Default 30 s: a cluster that has just been started elects its leaders first.
    pub setup_timeout: Duration,
    /// How long JetStream remembers the ids of messages. Default 10 s: twice `ack_timeout`, so that a retry finds its first try.
    pub duplicate_window: Duration,
    /// Streams whose end is remembered, so that an append costs one round trip. Default 65 536, about 10 MiB: more than one EC's rooms.
    pub known_streams: usize,
    /// Commits waiting in one follower's channel. Default 256: flow control holds the rest back at the server.
    pub follow_queue: usize,
    /// How often the server tells a follower that nothing new is there. Default 1 s; after three without a word it is asked again.
    pub heartbeat: Duration,
    /// How long a lower last sequence, or none at all, must be seen before the stream counts as truncated. Default 12 s: a leader that lost its
    /// followers notices after at most 10 s and answers no longer; a server that is still reading its disk after a start is done.
    pub truncation_after: Duration,
    /// How often the streams are looked at for truncation, besides after each reconnect. Default 10 s: four questions to the cluster.
    pub watch_every: Duration,
}

impl Default for JetStreamSettings {
    fn default() -> Self {
        Self {
            partitions: 4,
            replicas: 1,
            ack_timeout: Duration::from_secs(5),
            patience: Duration::from_secs(2),
            api_timeout: Duration::from_secs(5),
            setup_timeout: Duration::from_secs(30),
            duplicate_window: Duration::from_secs(10),
            known_streams: 65_536,
            follow_queue: 256,
            heartbeat: Duration::from_secs(1),
            truncation_after: Duration::from_secs(12),
            watch_every: Duration::from_secs(10),
        }
    }
}

/// The journal in JetStream. Clones share it.
#[derive(Clone)]
pub struct JetStreamJournal {
    core: Arc<Core>,
}

/// What appends, reads and followers share.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: JetStreamSettings,
    pub(super) partitions: Vec<Partition>,
    known: Mutex<Known>,
    pub(super) alarm: watch::Sender<Vec<Truncation>>,
}

impl Core {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn partition(&self, stream: &StreamId) -> &Partition {
        &self.partitions[usize::from(stream.partition(self.settings.partitions))]
    }

    /// Whether a partition was repaired since `cursor` was given.
    pub(super) fn is_replaced(&self, cursor: &[u64]) -> bool {
        let of = |number: u64, partition: &Partition| match unstamped(number) {
            (0, 0) => true, // the beginning is the same for all
            (repair, _) => repair == partition.repair(),
        };
        !cursor.iter().zip(&self.partitions).all(|(number, partition)| of(*number, partition))
    }
}

impl JetStreamJournal {
    pub(super) async fn open(shared: Arc<Shared>, settings: JetStreamSettings) -> Result<Self, NatsError> {
        let infos = streams::ready(&shared, &settings).await?;
        Ok(Self::of(shared, settings, &infos))
    }

    /// The log that is there, to be read: with as many partitions as it has, and whatever its streams' settings are.
    pub(super) async fn open_existing(
        shared: Arc<Shared>,
        settings: JetStreamSettings,
    ) -> Result<Self, NatsError> {
        let infos = streams::found(&shared, &settings).await?;
        let settings = JetStreamSettings { partitions: infos.len() as u16, ..settings };
        Ok(Self::of(shared, settings, &infos))
    }

    fn of(shared: Arc<Shared>, settings: JetStreamSettings, infos: &[StreamInfo]) -> Self {
        let partitions = (0..)
            .zip(infos)
            .map(|(partition, info)| Partition::new(streams::name(partition), info))
            .collect();
        let known = Mutex::new(Known::new(settings.known_streams));
        let core =
            Arc::new(Core { shared, settings, partitions, known, alarm: watch::channel(Vec::new()).0 });
        tokio::spawn(watch_over(Arc::downgrade(&core)));
        Self { core }
    }

    /// Looks whether what this node had acknowledged before its start is there. Where it is not, the partition takes no appends.
    pub async fn expect(&self, acknowledged: &[Arc<Commit>]) -> Result<(), ReadError> {
        self.core.expect(acknowledged).await
    }

    /// Says to all nodes that the log was repaired: they take it as it is from here on.
    pub async fn repaired(&self) -> Result<(), NatsError> {
        self.core.repaired().await
    }

    /// The partitions that lost commits, as they are found: an alarm.
    pub fn truncations(&self) -> watch::Receiver<Vec<Truncation>> {
        self.core.alarm.subscribe()
    }
}

/// While a partition is suspected or truncated, this often: nobody should wait longer for certainty, or for the end of a repair, than it takes.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// Looks for truncation after each reconnect and every now and then, as long as the journal is used.
async fn watch_over(core: Weak<Core>) {
    let Some(mut state) = core.upgrade().map(|core| core.shared.state.clone()) else { return };
    loop {
        let pause = match core.upgrade() {
            None => return,
            Some(core) if core.partitions.iter().any(Partition::is_watched) => SUSPICIOUS,
            Some(core) => core.settings.watch_every,
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
        let connected = state.borrow_and_update().is_connected();
        let Some(core) = core.upgrade().filter(|_| connected) else { continue };
        for partition in &core.partitions {
            if let Err(error) = core.inspect(partition).await {
                tracing::debug!(%error, "looking at the log");
            }
        }
    }
}

#[async_trait]
impl Journal for JetStreamJournal {
    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        self.core.append(commit).await
    }

    async fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError> {
        self.core.read(stream, from, limit).await
    }

    async fn head(&self, stream: &StreamId) -> Result<Option<Head>, ReadError> {
        Ok(self.core.end(stream).await?.head)
    }

    async fn streams(&self, kind: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError> {
        self.core.streams(kind).await
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        super::follow::follow(self.core.clone(), from).await
    }

    async fn tail(&self) -> Result<Cursor, ReadError> {
        let asked: Vec<_> =
            self.core.partitions.iter().map(|partition| self.core.inspect(partition)).collect();
        let infos = try_join_all(asked).await?;
        let ends = self.core.partitions.iter().zip(infos);
        Ok(Cursor(ends.map(|(partition, info)| stamped(partition.repair(), info.state.last_seq)).collect()))
    }

    async fn purge(&self, streams: &[(StreamId, Version)]) -> Result<(), PurgeError> {
        for (stream, below) in streams {
            self.core.purge(stream, *below).await?;
        }
        Ok(())
    }

    async fn beyond_loss(&self, from: &Cursor) -> Option<Cursor> {
        self.core.beyond_loss(from).await
    }

    async fn is_replaced(&self, cursor: &Cursor) -> bool {
        self.core.is_replaced(&cursor.0)
    }
}
