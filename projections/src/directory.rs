//! The fold over everything: all rooms, nodes and services, kept up to date by following the journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use roomlog_bus::{
    commit::{Commit, StreamId, StreamKind},
    ids::{RoomId, ServiceId, Version},
    journal::{Cursor, Followed, Journal, ReadError, follow_again},
};
use tokio::sync::watch;

use crate::{
    node::NodeState,
    room::{FoldError, RoomState},
    service::ServiceState,
};

/// All rooms, nodes and services at one cursor.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    /// Rooms; deleted ones are dropped.
    pub rooms: BTreeMap<RoomId, RoomState>,
    /// EC, EA and NUVE nodes, by their stream.
    pub nodes: BTreeMap<StreamId, NodeState>,
    /// Services; deleted ones stay, so that their keys are known to be closed.
    pub services: BTreeMap<ServiceId, ServiceState>,
    /// Rooms by service and name.
    names: BTreeMap<(ServiceId, String), RoomId>,
    /// Rooms by service.
    by_service: BTreeMap<ServiceId, BTreeSet<RoomId>>,
}

impl Directory {
    /// Folds the next commit of the journal.
    pub fn apply(&mut self, commit: &Commit) -> Result<(), FoldError> {
        let id = commit.stream.id();
        match commit.stream.kind() {
            StreamKind::Room => {
                let room = RoomId::new(id).expect("a stream id is a token");
                let state = self.rooms.entry(room.clone()).or_default();
                let known = state.info.is_some();
                state.apply_commit(commit)?;
                if state.deleted {
                    let info = state.info.take();
                    self.rooms.remove(&room);
                    if let Some(info) = info {
                        if let Some(rooms) = self.by_service.get_mut(&info.service) {
                            rooms.remove(&room);
                        }
                        let key = (info.service, info.name);
                        if self.names.get(&key) == Some(&room) {
                            self.names.remove(&key);
                        }
                    }
                } else if let (false, Some(info)) = (known, &state.info) {
                    self.by_service.entry(info.service.clone()).or_default().insert(room.clone());
                    // Two rooms of one name made at once: the one that came first in the log keeps it.
                    self.names.entry((info.service.clone(), info.name.clone())).or_insert(room);
                }
            }
            StreamKind::Service => {
                let service = ServiceId::new(id).expect("a stream id is a token");
                self.services.entry(service).or_default().apply_commit(commit)?;
            }
            StreamKind::Ea | StreamKind::Ec | StreamKind::Nuve => {
                self.nodes.entry(commit.stream.clone()).or_default().apply_commit(commit)?;
            }
        }
        Ok(())
    }

    /// The room a service calls by this name.
    pub fn room_named(&self, service: &ServiceId, name: &str) -> Option<&RoomId> {
        self.names.get(&(service.clone(), name.to_owned()))
    }

    /// The rooms of a service, by id.
    pub fn rooms_of<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = (&'a RoomId, &'a RoomState)> {
        self.by_service.get(service).into_iter().flatten().filter_map(|id| self.rooms.get_key_value(id))
    }

    /// Version of a stream as folded; 0 for one that is unknown.
    pub fn version(&self, stream: &StreamId) -> Version {
        let head = match stream.kind() {
            StreamKind::Room => RoomId::new(stream.id()).ok().and_then(|id| self.rooms.get(&id)?.head),
            StreamKind::Service => {
                ServiceId::new(stream.id()).ok().and_then(|id| self.services.get(&id)?.head)
            }
            StreamKind::Ea | StreamKind::Ec | StreamKind::Nuve => self.nodes.get(stream).and_then(|n| n.head),
        };
        head.map_or(Version(0), |h| h.version)
    }
}

/// A [`Directory`] that a task keeps up to date.
#[derive(Clone)]
pub struct LiveDirectory {
    inner: Arc<RwLock<Directory>>,
    /// Counts commits folded; waiters look again at each change.
    changes: Arc<watch::Sender<u64>>,
    /// Counts commits to node streams, which are rare and concern everybody.
    node_changes: Arc<watch::Sender<u64>>,
}

impl LiveDirectory {
    /// Starts following `journal` from the beginning and returns once everything stored is folded. The task ends with the journal.
    pub async fn start(journal: Arc<dyn Journal>) -> Result<Self, ReadError> {
        let (changes, mut caught_up) = watch::channel(0);
        let live = Self {
            inner: Arc::default(),
            changes: Arc::new(changes),
            node_changes: Arc::new(watch::channel(0).0),
        };
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let task = live.clone();
        let follow = journal.follow(Cursor::default()).await?;
        tokio::spawn(async move { task.run(journal, follow, ready).await });
        is_ready.await.map_err(|_| ReadError::Unavailable {
            reason: "the journal closed while it was first read".into(),
        })?;
        caught_up.mark_unchanged();
        Ok(live)
    }

    /// Looks at it. Hold the guard briefly and never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Directory> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `stream` has been folded to `version`; says whether that came in time.
    pub async fn wait_for(&self, stream: &StreamId, version: Version, timeout: Duration) -> bool {
        let mut changes = self.changes.subscribe();
        let reached = async {
            while self.read().version(stream) < version {
                if changes.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(timeout, reached).await.unwrap_or(false)
    }

    /// Tells of every change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells of every change of a node from now on: registered, lost, worker died.
    pub fn node_changes(&self) -> watch::Receiver<u64> {
        self.node_changes.subscribe()
    }

    async fn run(
        self,
        journal: Arc<dyn Journal>,
        mut follow: roomlog_bus::journal::Follow,
        ready: tokio::sync::oneshot::Sender<()>,
    ) {
        let mut ready = Some(ready);
        let mut cursor = Cursor::default();
        loop {
            match follow.next().await {
                Some(Followed::Entry(entry)) => {
                    let folded =
                        self.inner.write().unwrap_or_else(PoisonError::into_inner).apply(&entry.commit);
                    if let Err(error) = folded {
                        tracing::error!(stream = %entry.commit.stream, commit = %entry.commit.id, %error, "commit not folded");
                    }
                    cursor = entry.cursor;
                    self.changes.send_modify(|n| *n += 1);
                    if matches!(
                        entry.commit.stream.kind(),
                        StreamKind::Ea | StreamKind::Ec | StreamKind::Nuve
                    ) {
                        self.node_changes.send_modify(|n| *n += 1);
                    }
                }
                Some(Followed::CaughtUp) => {
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(());
                    }
                }
                Some(Followed::Broken(error)) => {
                    follow = follow_again(journal.as_ref(), &mut cursor, error).await
                }
                None => return,
            }
        }
    }
}
