//! The list of all EAs, as one EC knows it: who is registered, who is heard, and how many rooms each has, those in flight counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use roomlog_bus::{
    commit::StreamKind,
    ids::{EaId, Incarnation, RoomId},
    rpc::Heartbeat,
};
use roomlog_projections::{directory::LiveDirectory, node::NodePhase};

use crate::select::EaView;

/// An EA that has been silent this long is in disconnect tolerance and takes no new room: three missed heartbeats.
pub const SUSPECTED_AFTER: Duration = Duration::from_secs(3);

/// The list. Clones share it.
#[derive(Clone)]
pub struct Eas {
    directory: LiveDirectory,
    inner: Arc<Mutex<BTreeMap<EaId, Known>>>,
}

#[derive(Default)]
struct Known {
    heard: Option<Instant>,
    draining: bool,
    /// Rooms of this EC on it, from the moment it is picked.
    own: BTreeSet<RoomId>,
    /// What it last said it had, and how many of ours that could include.
    reported: u64,
    own_when_reported: u64,
}

impl Known {
    /// Rooms of ours, and of others as far as the EA's last report tells.
    fn rooms(&self) -> u64 {
        self.own.len() as u64 + self.reported.saturating_sub(self.own_when_reported)
    }

    fn report(&mut self, rooms: u64) {
        self.reported = rooms;
        self.own_when_reported = self.own.len() as u64;
    }
}

impl Eas {
    /// An empty list over `directory`.
    pub fn new(directory: LiveDirectory) -> Self {
        Self { directory, inner: Arc::default() }
    }

    /// A heartbeat came.
    pub fn heard(&self, heartbeat: &Heartbeat, now: Instant) {
        let Ok(ea) = EaId::new(heartbeat.node.id()) else { return };
        let mut inner = self.lock();
        let known = inner.entry(ea).or_default();
        known.heard = Some(now);
        known.draining = heartbeat.draining;
        known.report(heartbeat.rooms);
    }

    /// An EA answered with its current count of rooms.
    pub fn reported(&self, ea: &EaId, rooms: u64, now: Instant) {
        let mut inner = self.lock();
        let known = inner.entry(ea.clone()).or_default();
        known.heard = Some(now);
        known.report(rooms);
    }

    /// An EA does not answer: it takes no part until it is heard again.
    pub fn unanswering(&self, ea: &EaId) {
        self.lock().entry(ea.clone()).or_default().heard = None;
    }

    /// Everything known, sorted by id, and in the same breath `pick` chooses and the choice counts: two bursts never see the same gap.
    pub fn pick<T>(
        &self,
        room: &RoomId,
        now: Instant,
        pick: impl FnOnce(&[EaView]) -> (Option<EaId>, T),
    ) -> (Option<EaId>, T) {
        let registered = self.registered();
        let mut inner = self.lock();
        let views: Vec<EaView> = registered
            .into_iter()
            .map(|(ea, incarnation, phase, workers)| {
                let known = inner.entry(ea.clone()).or_default();
                let heard = known.heard.is_some_and(|at| now.duration_since(at) < SUSPECTED_AFTER);
                let excluded = match phase {
                    NodePhase::Draining => Some("draining"),
                    NodePhase::Lost | NodePhase::Left | NodePhase::Unknown => Some("gone"),
                    NodePhase::Registered if known.draining => Some("draining"),
                    NodePhase::Registered if workers == 0 => Some("no worker"),
                    NodePhase::Registered if !heard => Some("suspected"),
                    NodePhase::Registered => None,
                };
                EaView { rooms: known.rooms(), ea, incarnation, excluded }
            })
            .collect();
        let (chosen, rest) = pick(&views);
        if let Some(ea) = &chosen {
            inner.entry(ea.clone()).or_default().own.insert(room.clone());
        }
        (chosen, rest)
    }

    /// A room of this EC is on `ea`, as its log says.
    pub fn holds(&self, ea: &EaId, room: &RoomId) {
        self.lock().entry(ea.clone()).or_default().own.insert(room.clone());
    }

    /// A room of this EC is not on `ea` any more, or never came to be.
    pub fn released(&self, ea: &EaId, room: &RoomId) {
        if let Some(known) = self.lock().get_mut(ea) {
            known.own.remove(room);
        }
    }

    /// Whether any EA could take a room now.
    pub fn any(&self, now: Instant) -> bool {
        let inner = self.lock();
        self.registered().into_iter().any(|(ea, _, phase, workers)| {
            phase == NodePhase::Registered
                && workers > 0
                && inner
                    .get(&ea)
                    .and_then(|k| k.heard)
                    .is_some_and(|at| now.duration_since(at) < SUSPECTED_AFTER)
        })
    }

    fn registered(&self) -> Vec<(EaId, Incarnation, NodePhase, usize)> {
        self.directory
            .read()
            .nodes
            .iter()
            .filter(|(stream, _)| stream.kind() == StreamKind::Ea)
            .filter_map(|(stream, node)| {
                Some((EaId::new(stream.id()).ok()?, node.incarnation, node.phase, node.generations.len()))
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EaId, Known>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
