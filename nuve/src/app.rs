//! What all handlers share, and reading rooms and services: from the directory first, from the journal where that has not heard yet.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
};

use roomlog_bus::{
    bus::Bus,
    commit::{Commit, StreamId},
    env::Env,
    events::Event,
    ids::{Incarnation, RoomId, ServiceId, Version},
    journal::{Journal, read_all},
    log::Log,
    token::TokenKeys,
};
pub use roomlog_projections::membership::stopped;
use roomlog_projections::{directory::LiveDirectory, room::RoomState, service::ServiceState};
use tokio::sync::{Mutex, Semaphore, watch};

use crate::{
    ecs::Ecs,
    limits::Limits,
    metrics::Metrics,
    problem::Problem,
    services::DemoKeys,
    settings::NuveSettings,
    signing::KeyRing,
    webhooks::{MasterKey, deliver::Deliver},
};

/// What all handlers share.
pub struct App {
    /// Settings.
    pub settings: NuveSettings,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// The journal.
    pub journal: Arc<dyn Journal>,
    /// The fold over everything.
    pub directory: LiveDirectory,
    /// Clock and randomness.
    pub env: Env,
    /// This node's pen.
    pub log: Log,
    /// This node.
    pub node: StreamId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// What this node signs tokens with.
    pub signing: RwLock<KeyRing>,
    /// Keys of the other NUVE nodes, by the start of the node that told them.
    pub peer_keys: Mutex<BTreeMap<(StreamId, Incarnation), TokenKeys>>,
    /// Which ECs live.
    pub ecs: Ecs,
    /// Rate limits.
    pub limits: Limits,
    /// Counters.
    pub metrics: Metrics,
    /// SHA-256 of the admin key, hex.
    pub admin_key_hash: Option<String>,
    /// What the secrets of webhooks are computed from.
    pub webhook_key: MasterKey,
    /// Calls the receivers of webhooks.
    pub deliver: Arc<dyn Deliver>,
    /// Keys of the demo service.
    pub demo: Option<DemoKeys>,
    /// One permit for each event stream that may be open.
    pub event_streams: Arc<Semaphore>,
    /// Becomes true when the node stops.
    pub stop: watch::Receiver<bool>,
}

/// What handlers are given.
pub type AppState = Arc<App>;

/// Whether `commit` ends its room.
fn deletes(commit: &Commit) -> bool {
    commit.events.iter().any(|event| event.kind.as_str() == "RoomDeleted")
}

impl App {
    /// A room's state as the journal has it now; deleted rooms are marked so. None when there never was such a room.
    pub async fn room_in_journal(&self, room: &RoomId) -> Result<Option<RoomState>, Problem> {
        let stream = StreamId::from(room);
        if self.journal.head(&stream).await?.is_none() {
            return Ok(None);
        }
        let mut state = RoomState::default();
        for commit in read_all(&*self.journal, &stream, Version(1)).await? {
            state.apply_commit(&commit)?;
        }
        Ok(Some(state))
    }

    /// Whether `room`'s stream is empty (none), or has ended (true), without reading all of it.
    pub async fn room_is_over(&self, room: &RoomId) -> Result<Option<bool>, Problem> {
        let stream = StreamId::from(room);
        let Some(head) = self.journal.head(&stream).await? else { return Ok(None) };
        let last = self.journal.read(&stream, head.version, 1).await?;
        Ok(Some(last.first().is_some_and(|commit| deletes(commit))))
    }

    /// Waits a little until this node's own view has `version` of `stream`, so that a list asked for next has what was just made.
    pub async fn settle(&self, stream: &StreamId, version: Version) {
        /// Own commits come back within a millisecond; when they do not, the answer is right all the same, and lists lag.
        const WAIT: std::time::Duration = std::time::Duration::from_millis(250);
        self.directory.wait_for(stream, version, WAIT).await;
    }

    /// A service, from the directory or, where that has not heard of it, from the journal.
    pub async fn service(&self, id: &ServiceId) -> Result<Option<ServiceState>, Problem> {
        if let Some(service) = self.directory.read().services.get(id) {
            return Ok(Some(service.clone()));
        }
        let mut state = ServiceState::default();
        for commit in read_all(&*self.journal, &id.into(), Version(1)).await? {
            state.apply_commit(&commit)?;
        }
        Ok(state.head.is_some().then_some(state))
    }

    /// Whose room a stream of commits was made for, from its first commits.
    pub fn service_of(commits: &[Arc<Commit>]) -> Option<ServiceId> {
        commits.iter().flat_map(|commit| &commit.events).find_map(|raw| match Event::decode(raw) {
            Ok(Event::RoomCreated(created)) => Some(created.service),
            Ok(Event::RoomSnapshot(snapshot)) => {
                snapshot.state.decode::<RoomState>().ok()?.info.map(|info| info.service)
            }
            _ => None,
        })
    }
}
