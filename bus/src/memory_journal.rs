//! The journal in memory: nothing is kept over a restart. For tests and the simulation.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use crate::{
    commit::{Commit, Head, StreamId, StreamKind},
    ids::Version,
    journal::{AppendError, Cursor, Entry, Follow, Followed, Journal, PurgeError, ReadError},
    sled_journal::{after, check},
};

/// Entries waiting in one follower's channel; what it has not taken stays in the log.
const FOLLOW_QUEUE: usize = 256;

/// The journal in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryJournal {
    log: Arc<Mutex<Log>>,
    tail: watch::Receiver<u64>,
}

struct Log {
    /// The commit with sequence `n` is at `n - 1`; none once it is purged.
    commits: Vec<Option<Arc<Commit>>>,
    /// For each stream the sequences of its commits; ordered, so that nothing depends on a hash seed.
    streams: BTreeMap<StreamId, Vec<u64>>,
    /// None once it is closed.
    tail: Option<watch::Sender<u64>>,
}

impl Log {
    /// A commit that is not purged.
    fn at(&self, sequence: u64) -> &Arc<Commit> {
        self.commits[sequence as usize - 1].as_ref().expect("what is purged is in no stream")
    }

    fn head(&self, stream: &StreamId) -> Option<Head> {
        self.streams.get(stream).and_then(|s| s.last()).map(|last| self.at(*last).head())
    }
}

impl Default for MemoryJournal {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryJournal {
    /// A new, empty journal.
    pub fn new() -> Self {
        let (sender, tail) = watch::channel(0);
        let log = Log { commits: Vec::new(), streams: BTreeMap::new(), tail: Some(sender) };
        Self { log: Arc::new(Mutex::new(log)), tail }
    }

    /// Ends the followers; later appends are refused. What is in it can still be read.
    pub fn close(&self) {
        self.log().tail = None;
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        check(&commit)?;
        let mut log = self.log();
        if log.tail.is_none() {
            return Err(AppendError::Unavailable { reason: "it is closed".into() });
        }
        let head = log.head(&commit.stream);
        if !commit.follows(head.as_ref()) {
            let mut own = log.streams.get(&commit.stream).into_iter().flatten();
            let stored = own.any(|at| (log.at(*at).id, log.at(*at).version) == (commit.id, commit.version));
            return if stored {
                Ok(())
            } else {
                Err(AppendError::Conflict { stream: commit.stream, version: commit.version, head })
            };
        }
        let sequence = log.commits.len() as u64 + 1;
        log.streams.entry(commit.stream.clone()).or_default().push(sequence);
        log.commits.push(Some(Arc::new(commit)));
        if let Some(tail) = &log.tail {
            tail.send_replace(sequence);
        }
        Ok(())
    }

    async fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError> {
        let log = self.log();
        let own = log.streams.get(stream).into_iter().flatten().map(|at| log.at(*at));
        Ok(own.filter(|commit| commit.last_version() >= from).take(limit).cloned().collect())
    }

    async fn head(&self, stream: &StreamId) -> Result<Option<Head>, ReadError> {
        Ok(self.log().head(stream))
    }

    async fn streams(&self, kind: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError> {
        let log = self.log();
        let of_kind = log.streams.keys().filter(|stream| stream.kind() == kind);
        Ok(of_kind.filter_map(|stream| Some((stream.clone(), log.head(stream)?))).collect())
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        let caught_up_after = self.log().commits.len() as u64;
        let mut next = after(&from, caught_up_after)? + 1;
        let (sender, receiver) = mpsc::channel(FOLLOW_QUEUE);
        let (log, mut tail) = (self.log.clone(), self.tail.clone());
        tokio::spawn(async move {
            let mut caught_up = false;
            loop {
                if !caught_up && next > caught_up_after {
                    caught_up = true;
                    if sender.send(Followed::CaughtUp).await.is_err() {
                        return;
                    }
                }
                let commit = log
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .commits
                    .get(next as usize - 1)
                    .cloned();
                match commit {
                    Some(None) => next += 1,
                    Some(Some(commit)) => {
                        let entry = Entry { cursor: Cursor(vec![next]), commit };
                        if sender.send(Followed::Entry(entry)).await.is_err() {
                            return;
                        }
                        next += 1;
                    }
                    None => tokio::select! {
                        // An error means closed: nothing comes any more, and all there was is given.
                        seen = tail.wait_for(|last| *last >= next) => if seen.is_err() { return },
                        () = sender.closed() => return,
                    },
                }
            }
        });
        Ok(Follow { receiver })
    }

    async fn purge(&self, streams: &[(StreamId, Version)]) -> Result<(), PurgeError> {
        let mut log = self.log();
        for (stream, below) in streams {
            let own = log.streams.remove(stream).unwrap_or_default();
            let (gone, left): (Vec<u64>, Vec<u64>) =
                own.into_iter().partition(|at| log.at(*at).last_version() < *below);
            for at in gone {
                log.commits[at as usize - 1] = None;
            }
            if !left.is_empty() {
                log.streams.insert(stream.clone(), left);
            }
        }
        Ok(())
    }

    async fn tail(&self) -> Result<Cursor, ReadError> {
        Ok(Cursor(vec![self.log().commits.len() as u64]))
    }
}
