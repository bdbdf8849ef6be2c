//! The fold over everything: all rooms, nodes and services, kept up to date by following the journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use roomlog_bus::{
    commit::{Commit, CommitId, Head, StreamId, StreamKind},
    ids::{RoomId, ServiceId, Version},
    journal::{Cursor, Followed, Journal, ReadError, follow_again},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use crate::{
    checkpoint,
    node::NodeState,
    room::{FoldError, Owner, RoomState},
    service::ServiceState,
    signal::Signal,
};

/// All rooms, nodes and services at one cursor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Directory {
    /// Rooms; deleted ones are not among them.
    pub rooms: BTreeMap<RoomId, RoomState>,
    /// EC, EA and NUVE nodes, by their stream.
    pub nodes: BTreeMap<StreamId, NodeState>,
    /// Services; deleted ones stay, so that their keys are known to be closed.
    pub services: BTreeMap<ServiceId, ServiceState>,
    /// Rooms by service and name.
    names: BTreeMap<(ServiceId, String), RoomId>,
    /// Rooms by service.
    by_service: BTreeMap<ServiceId, BTreeSet<RoomId>>,
    /// Deleted rooms whose streams are still there, with their last versions and when they ended.
    #[serde(default)]
    pub deleted: BTreeMap<RoomId, Head>,
    /// Up to where the journal is folded.
    pub(crate) cursor: Cursor,
    /// The last commit that was folded.
    pub(crate) last: Option<Last>,
}

/// Names a commit that is folded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Last {
    pub(crate) stream: StreamId,
    pub(crate) version: Version,
    pub(crate) id: CommitId,
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
                if let Err(error) = state.apply_commit(commit) {
                    // Nothing is known of a stream whose beginning is missing, and nothing is kept of it.
                    if state.head.is_none() {
                        self.rooms.remove(&room);
                    }
                    return Err(error);
                }
                if state.deleted {
                    self.drop_room(&room);
                    self.deleted.insert(room, commit.head());
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

    /// Forgets a room whose stream is purged.
    fn forget(&mut self, room: &RoomId) {
        self.deleted.remove(room);
        self.drop_room(room);
    }

    fn drop_room(&mut self, room: &RoomId) {
        let Some(info) = self.rooms.remove(room).and_then(|state| state.info) else { return };
        if let Some(rooms) = self.by_service.get_mut(&info.service) {
            rooms.remove(room);
        }
        let key = (info.service, info.name);
        if self.names.get(&key) == Some(room) {
            self.names.remove(&key);
        }
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
    changes: Arc<Signal>,
    /// Counts commits to node streams, which are rare and concern everybody.
    node_changes: Arc<Signal>,
    /// Tells of rooms that were given to an EC.
    placed: Arc<broadcast::Sender<Placed>>,
    /// Counts how often everything was folded anew, after a repair of the log.
    rebuilt: Arc<Signal>,
    /// Where a checkpoint is kept, if one is.
    checkpoint: Option<Arc<Path>>,
}

/// A checkpoint is written after this many commits: replaying them takes well under a second, and writing one for every few hundred
/// rooms' worth of events is no load.
const CHECKPOINT_EVERY: u64 = 20_000;

/// A room was given to an EC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Which.
    pub room: RoomId,
    /// To whom.
    pub owner: Owner,
}

/// Rooms given away that a listener may have unread: as many as one EC's loss moves at a time.
const PLACED_QUEUE: usize = 4_096;

impl LiveDirectory {
    /// Starts following `journal` from the beginning and returns once everything stored is folded. The task ends with the journal.
    pub async fn start(journal: Arc<dyn Journal>) -> Result<Self, ReadError> {
        Self::start_from(journal, Directory::default(), None).await
    }

    /// As [`Self::start`], but goes on from the checkpoint at `path` where there is a good one, and keeps one there.
    pub async fn start_with_checkpoint(journal: Arc<dyn Journal>, path: PathBuf) -> Result<Self, ReadError> {
        let kept = checkpoint::load(&path, journal.as_ref()).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the checkpoint is not used: the log is folded from its beginning");
            None
        });
        let kept = match kept {
            Some(kept) if journal.is_replaced(&kept.cursor).await => {
                tracing::warn!(
                    "the checkpoint is of before a repair of the log, which is folded from its beginning"
                );
                None
            }
            kept => kept,
        };
        Self::start_from(journal, kept.unwrap_or_default(), Some(path.into())).await
    }

    async fn start_from(
        journal: Arc<dyn Journal>,
        directory: Directory,
        checkpoint: Option<Arc<Path>>,
    ) -> Result<Self, ReadError> {
        let from = directory.cursor.clone();
        let begins = from == Cursor::default();
        let live = Self {
            inner: Arc::new(RwLock::new(directory)),
            changes: Arc::default(),
            node_changes: Arc::default(),
            placed: Arc::new(broadcast::channel(PLACED_QUEUE).0),
            rebuilt: Arc::default(),
            checkpoint,
        };
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let task = live.clone();
        let follow = journal.follow(from).await?;
        let followed = journal.clone();
        tokio::spawn(async move { task.run(followed, follow, ready).await });
        is_ready.await.map_err(|_| ReadError::Unavailable {
            reason: "the journal closed while it was first read".into(),
        })?;
        if !begins {
            tokio::spawn(live.clone().forget_purged(journal));
        }
        Ok(live)
    }

    /// Writes a checkpoint, if one is kept; called at a stop, and now and then in between.
    pub async fn checkpoint(&self) {
        let Some(path) = self.checkpoint.clone() else { return };
        let live = self.clone();
        let write = move || {
            let bytes = checkpoint::encode(&live.read());
            checkpoint::save(&path, &bytes).map(|()| (path, bytes.len()))
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok((path, bytes))) => tracing::debug!(path = %path.display(), bytes, "checkpoint written"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "no checkpoint written: the next start folds more of the log")
            }
            Err(error) => tracing::error!(%error, "writing a checkpoint broke off"),
        }
    }

    /// Looks at it. Hold the guard briefly and never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Directory> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets rooms whose streams are purged.
    pub fn forget(&self, rooms: &[RoomId]) {
        let mut directory = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for room in rooms {
            directory.forget(room);
        }
    }

    /// Forgets the rooms whose streams were purged while nobody here followed: a checkpoint has them still.
    async fn forget_purged(self, journal: Arc<dyn Journal>) {
        let kept: BTreeSet<StreamId> = match journal.streams(StreamKind::Room).await {
            Ok(streams) => streams.into_iter().map(|(stream, _)| stream).collect(),
            Err(error) => {
                tracing::warn!(%error, "whether all rooms of the checkpoint are still there is not known");
                return;
            }
        };
        let missing: Vec<RoomId> = {
            let directory = self.read();
            let known = directory.rooms.keys().chain(directory.deleted.keys());
            known.filter(|room| !kept.contains(&StreamId::from(*room))).cloned().collect()
        };
        for room in missing {
            // It may have been made since.
            if let Ok(None) = journal.head(&StreamId::from(&room)).await {
                self.forget(&[room]);
            }
        }
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

    /// Tells of every room that is given to an EC from now on. Who does not keep up is told so, and looks through all rooms.
    pub fn placed(&self) -> broadcast::Receiver<Placed> {
        self.placed.subscribe()
    }

    /// Tells of every change of a node from now on: registered, lost, worker died.
    pub fn node_changes(&self) -> watch::Receiver<u64> {
        self.node_changes.subscribe()
    }

    /// Tells when everything has been folded anew after a repair of the log: what was seen before may never have been.
    pub fn rebuilt(&self) -> watch::Receiver<u64> {
        self.rebuilt.subscribe()
    }

    async fn run(
        self,
        journal: Arc<dyn Journal>,
        mut follow: roomlog_bus::journal::Follow,
        ready: tokio::sync::oneshot::Sender<()>,
    ) {
        let mut ready = Some(ready);
        let mut since_checkpoint = 0;
        // After a repair: what is folded anew, until it has caught up and takes the other's place.
        let mut anew: Option<Directory> = None;
        loop {
            match follow.next().await {
                Some(Followed::Entry(entry)) => {
                    let mut placed = None;
                    let folded = {
                        let mut shown;
                        let directory = match &mut anew {
                            Some(anew) => anew,
                            None => {
                                shown = self.inner.write().unwrap_or_else(PoisonError::into_inner);
                                &mut *shown
                            }
                        };
                        let folded = directory.apply(&entry.commit);
                        directory.cursor = entry.cursor;
                        let (stream, version) = (entry.commit.stream.clone(), entry.commit.version);
                        if entry.commit.stream.kind() == StreamKind::Room
                            && entry.commit.events.iter().any(|event| event.kind.as_str() == "RoomPlaced")
                            && let Ok(room) = RoomId::new(entry.commit.stream.id())
                        {
                            let owner = directory.rooms.get(&room).and_then(|state| state.owner.clone());
                            placed = owner.map(|owner| Placed { room, owner });
                        }
                        directory.last = Some(Last { stream, version, id: entry.commit.id });
                        folded
                    };
                    if let Err(error) = folded {
                        tracing::error!(stream = %entry.commit.stream, commit = %entry.commit.id, %error, "commit not folded");
                    }
                    if let Some(placed) = placed {
                        let _ = self.placed.send(placed);
                    }
                    since_checkpoint += 1;
                    if since_checkpoint >= CHECKPOINT_EVERY {
                        since_checkpoint = 0;
                        self.checkpoint().await;
                    }
                    self.changes.tell();
                    if matches!(
                        entry.commit.stream.kind(),
                        StreamKind::Ea | StreamKind::Ec | StreamKind::Nuve
                    ) {
                        self.node_changes.tell();
                    }
                }
                Some(Followed::CaughtUp) => {
                    if let Some(anew) = anew.take() {
                        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = anew;
                        self.changes.tell();
                        self.node_changes.tell();
                        self.rebuilt.tell();
                    }
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(());
                    }
                }
                Some(Followed::Broken(error)) => {
                    let before = match &anew {
                        Some(anew) => anew.cursor.clone(),
                        None => self.read().cursor.clone(),
                    };
                    let mut cursor = before.clone();
                    follow = follow_again(journal.as_ref(), &mut cursor, error).await;
                    if cursor == Cursor::default() && before != cursor {
                        anew = Some(Directory::default());
                    } else if let Some(anew) = &mut anew {
                        anew.cursor = cursor;
                    } else {
                        self.inner.write().unwrap_or_else(PoisonError::into_inner).cursor = cursor;
                    }
                }
                None => return,
            }
        }
    }
}
