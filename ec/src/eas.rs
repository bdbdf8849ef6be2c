//! The list of all EAs, as one EC knows it: who is registered, who is heard, and how many rooms each has, those in flight counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use roomlog_bus::{
    commit::StreamKind,
    ids::{EaId, Incarnation, RoomId},
    rpc::Heartbeat,
};
use roomlog_projections::{
    directory::LiveDirectory,
    membership::{Health, Observer},
    node::NodePhase,
};

use crate::select::EaView;

/// The list. Clones share it.
#[derive(Clone)]
pub struct Eas {
    directory: LiveDirectory,
    observer: Arc<Observer>,
    inner: Arc<Mutex<BTreeMap<EaId, Known>>>,
}

#[derive(Default)]
struct Known {
    /// A request to it found no answer: until it is heard again it takes no part.
    unanswering: bool,
    /// Rooms of this EC on it, from the moment it is picked.
    own: BTreeSet<RoomId>,
    /// What it last said it had, and how many of ours that could include.
    reported: u64,
    own_when_reported: u64,
}

/// An EA, as the log and its heartbeats have it.
struct Registered {
    ea: EaId,
    incarnation: Incarnation,
    phase: NodePhase,
    workers: usize,
    health: Health,
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
    /// An empty list over `directory`, of EAs that `observer` hears.
    pub fn new(directory: LiveDirectory, observer: Arc<Observer>) -> Self {
        Self { directory, observer, inner: Arc::default() }
    }

    /// A heartbeat came.
    pub fn heard(&self, heartbeat: &Heartbeat) {
        let Ok(ea) = EaId::new(heartbeat.node.id()) else { return };
        let mut inner = self.lock();
        let known = inner.entry(ea).or_default();
        known.unanswering = false;
        known.report(heartbeat.rooms);
    }

    /// An EA answered with its current count of rooms.
    pub fn reported(&self, ea: &EaId, rooms: u64) {
        self.lock().entry(ea.clone()).or_default().report(rooms);
    }

    /// An EA does not answer: it takes no part until it is heard again.
    pub fn unanswering(&self, ea: &EaId) {
        self.lock().entry(ea.clone()).or_default().unanswering = true;
    }

    /// Everything known, sorted by id, and in the same breath `pick` chooses and the choice counts: two bursts never see the same gap.
    pub fn pick<T>(
        &self,
        room: &RoomId,
        pick: impl FnOnce(&[EaView]) -> (Option<EaId>, T),
    ) -> (Option<EaId>, T) {
        let registered = self.registered();
        let mut inner = self.lock();
        let views: Vec<EaView> = registered
            .into_iter()
            .map(|Registered { ea, incarnation, phase, workers, health }| {
                let known = inner.entry(ea.clone()).or_default();
                let excluded = match (phase, health) {
                    (NodePhase::Lost | NodePhase::Left | NodePhase::Unknown, _) => Some("gone"),
                    (_, Health::Draining) => Some("draining"),
                    _ if workers == 0 => Some("no worker"),
                    (_, Health::Live) if !known.unanswering => None,
                    _ => Some("suspected"),
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
    pub fn any(&self) -> bool {
        let inner = self.lock();
        self.registered().into_iter().any(|Registered { ea, workers, health, .. }| {
            health == Health::Live && workers > 0 && !inner.get(&ea).is_some_and(|known| known.unanswering)
        })
    }

    fn registered(&self) -> Vec<Registered> {
        let directory = self.directory.read();
        let eas = directory.nodes.iter().filter(|(stream, _)| stream.kind() == StreamKind::Ea);
        eas.filter_map(|(stream, node)| {
            Some(Registered {
                ea: EaId::new(stream.id()).ok()?,
                incarnation: node.incarnation,
                phase: node.phase,
                workers: node.generations.len(),
                health: self.observer.health(stream, node),
            })
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EaId, Known>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
