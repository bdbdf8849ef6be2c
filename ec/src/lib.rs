//! EC: the signalling gateway that owns rooms.
//!
//! ```text
//! gateway ── frames ──> room task ── decide ──> log        (decide.rs, notify.rs, requests.rs: pure)
//!    ^                     │  └──── RPC ──────> EA         (select/: where an EA is chosen)
//!    └──── frames ─────────┘
//! life: one incarnation of all this. An EC that finds itself called lost lets go of everything and begins another.
//! ```

#![forbid(unsafe_code)]

mod credentials;
pub mod decide;
mod eas;
pub mod gateway;
mod life;
pub mod metrics;
#[cfg(feature = "next-version")]
mod next_version;
pub mod notify;
mod per_address;
pub mod per_client;
pub mod protoo;
pub mod requests;
pub mod room;
mod rooms;
mod rpc;
pub mod select;
mod session;
pub mod settings;

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

use governor::DefaultDirectRateLimiter;
use roomlog_bus::{
    bus::{Bus, Disconnected},
    commit::StreamId,
    env::Env,
    events::Placement,
    ids::Incarnation,
    journal::Journal,
    log::Log,
};
use roomlog_projections::{
    directory::LiveDirectory,
    membership::{MediaProbe, RegisterError, leave, stopped},
    node::NodePhase,
    retention::Retention,
};
use tokio::{sync::watch, task::JoinHandle};

pub use crate::settings::EcSettings;
use crate::{
    credentials::Verifier,
    eas::Eas,
    life::{End, Life},
    metrics::Metrics,
    rooms::Rooms,
};

/// Why an EC did not start.
#[derive(Debug, thiserror::Error)]
pub enum EcError {
    /// The log took no registration.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The bus is away.
    #[error(transparent)]
    Bus(#[from] Disconnected),
}

/// How a running EC is, for whoever runs the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EcStatus {
    /// It serves.
    Serving,
    /// It was draining and is empty, or its deadline has passed: the process may end.
    Drained,
    /// Another process has registered under its id: this one must end.
    Superseded(Incarnation),
}

/// What all parts of one incarnation share.
pub(crate) struct Shared {
    pub(crate) settings: EcSettings,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) log: Log,
    pub(crate) directory: LiveDirectory,
    pub(crate) eas: Eas,
    pub(crate) rooms: Rooms,
    pub(crate) verifier: Verifier,
    pub(crate) connections: DefaultDirectRateLimiter,
    pub(crate) per_address: per_address::PerAddress,
    pub(crate) metrics: Arc<Metrics>,
    /// The log was not reached for too long: whether the rooms are still ours cannot be known.
    pub(crate) suspended: AtomicBool,
    /// The way out of the log.
    pub(crate) retention: Retention,
}

impl Shared {
    /// This node.
    pub(crate) fn node(&self) -> StreamId {
        StreamId::from(&self.settings.id)
    }

    /// Whether this node has been told to take nothing new.
    pub(crate) fn is_draining(&self) -> bool {
        let directory = self.directory.read();
        directory.nodes.get(&self.node()).is_some_and(|node| node.phase == NodePhase::Draining)
    }

    /// Whether the log has not been reached for so long that the rooms may be another's by now.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Relaxed)
    }

    /// Why the worker at `placement` is not there any more, as far as the log says; none while it is.
    pub(crate) fn gone(&self, placement: &Placement) -> Option<&'static str> {
        let directory = self.directory.read();
        let node = directory.nodes.get(&StreamId::from(&placement.ea))?;
        if node.incarnation < placement.incarnation {
            return None; // this view is behind the log that placed the room
        }
        if node.has_restarted_without(placement) {
            return Some("ea-restarted");
        }
        match node.phase {
            NodePhase::Lost => return Some("ea-lost"),
            NodePhase::Left => return Some("ea-left"),
            NodePhase::Unknown | NodePhase::Registered | NodePhase::Draining => {}
        }
        match node.generations.get(&placement.worker) {
            Some(generation) if *generation <= placement.generation => None,
            _ => Some("worker-died"),
        }
    }
}

/// What the current incarnation shares; connections that come in now belong to it.
#[derive(Clone)]
pub(crate) struct Current(Arc<RwLock<Arc<Shared>>>);

impl Current {
    pub(crate) fn get(&self) -> Arc<Shared> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, shared: Arc<Shared>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = shared;
    }
}

/// A running EC.
pub struct Ec {
    current: Current,
    stop: watch::Sender<bool>,
    status: watch::Receiver<EcStatus>,
    task: JoinHandle<()>,
}

impl Ec {
    /// Registers this start of the node and begins to serve: RPC, heartbeats, and the rooms that an earlier start left behind.
    pub async fn start(
        settings: EcSettings,
        bus: Arc<dyn Bus>,
        journal: Arc<dyn Journal>,
        directory: LiveDirectory,
        env: Env,
    ) -> Result<Self, EcError> {
        let probe = life::media_probe(env.clone());
        Self::start_with(settings, bus, journal, directory, env, probe).await
    }

    /// As [`Self::start`], with another way to ask the workers of a silent EA whether they still serve.
    pub async fn start_with(
        settings: EcSettings,
        bus: Arc<dyn Bus>,
        journal: Arc<dyn Journal>,
        directory: LiveDirectory,
        env: Env,
        probe: MediaProbe,
    ) -> Result<Self, EcError> {
        let metrics = Arc::new(Metrics::default());
        let begin = move || {
            Life::begin(
                settings.clone(),
                bus.clone(),
                journal.clone(),
                directory.clone(),
                env.clone(),
                metrics.clone(),
                probe.clone(),
            )
        };
        let mut life = begin().await?;
        let current = Current(Arc::new(RwLock::new(life.shared())));
        let (stop, mut stopping) = watch::channel(false);
        let (tell, status) = watch::channel(EcStatus::Serving);
        let serving = current.clone();
        let task = tokio::spawn(async move {
            loop {
                match life.lived(&mut stopping).await {
                    End::Stopped => return life.end(true).await,
                    End::Drained => {
                        let _ = tell.send(EcStatus::Drained);
                        // Whoever runs the process ends it; until then its last clients are served.
                        stopped(&mut stopping).await;
                        return life.end(true).await;
                    }
                    End::Superseded(theirs) => {
                        tracing::error!(%theirs, "another process has registered under this EC's id: this one ends");
                        let _ = tell.send(EcStatus::Superseded(theirs));
                        return life.end(false).await;
                    }
                    end @ (End::Lost | End::Repaired) => {
                        let why = match end {
                            End::Repaired => "the log was repaired",
                            _ => "this EC was called lost",
                        };
                        tracing::error!("{why}: it lets go of its rooms and registers again");
                        life.end(false).await;
                        life = loop {
                            match begin().await {
                                Ok(life) => break life,
                                Err(error) => {
                                    tracing::error!(%error, "registering again failed; trying on");
                                    tokio::time::sleep(life::REGISTER_AGAIN).await;
                                }
                            }
                        };
                        serving.set(life.shared());
                    }
                }
            }
        });
        Ok(Self { current, stop, status, task })
    }

    /// The WebSocket gateway's routes.
    pub fn router(&self) -> axum::Router {
        gateway::router(self.current.clone())
    }

    /// What it counts, in Prometheus' text form.
    pub fn metrics(&self) -> String {
        let shared = self.current.get();
        shared.metrics.render(shared.rooms.len())
    }

    /// Rooms whose task runs.
    pub fn running_rooms(&self) -> usize {
        self.current.get().rooms.len()
    }

    /// Whether an EA is there that could take a room: the EC can serve.
    pub fn ready(&self) -> bool {
        self.current.get().eas.any()
    }

    /// How it is; changes when the process should end.
    pub fn status(&self) -> watch::Receiver<EcStatus> {
        self.status.clone()
    }

    /// Says goodbye in the log and ends every task. Clients may resume at the next start.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}
