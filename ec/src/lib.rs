//! EC: the signalling gateway that owns rooms.
//!
//! ```text
//! gateway ── frames ──> room task ── decide ──> log        (decide.rs, notify.rs, requests.rs: pure)
//!    ^                     │  └──── RPC ──────> EA         (select/: where an EA is chosen)
//!    └──── frames ─────────┘
//! ```

#![forbid(unsafe_code)]

mod credentials;
pub mod decide;
mod eas;
pub mod gateway;
pub mod metrics;
pub mod notify;
pub mod protoo;
pub mod requests;
pub mod room;
mod rooms;
pub mod select;
mod session;
mod settings;

use std::{num::NonZeroU32, sync::Arc, time::Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use roomlog_bus::{
    bus::{Bus, Disconnected, Headers, Message, respond},
    commit::{Cause, Payload, StreamId, Writer},
    env::Env,
    events::{Event, NodeLeft, NodeRegistered, Placement},
    ids::{Incarnation, RoomId},
    journal::{AppendError, Journal, ReadError, read_all},
    log::{Draft, Log},
    rpc::{EcAnswer, EcRequest, Heartbeat, RpcError},
    subject::{Pattern, Subject},
};
use roomlog_projections::{
    directory::LiveDirectory,
    node::{NodePhase, NodeState},
};
use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    credentials::Verifier, decide::Refusal, eas::Eas, metrics::Metrics, room::RoomMessage, rooms::Rooms,
};
pub use crate::{eas::SUSPECTED_AFTER, settings::EcSettings};

/// How often registration is tried when another start of the same node is registering at the same time.
const REGISTER_TRIES: usize = 8;

/// Why an EC did not start.
#[derive(Debug, thiserror::Error)]
pub enum EcError {
    /// The log could not be read.
    #[error("EC {id} cannot read its own stream: {source}")]
    Read {
        /// Which EC.
        id: String,
        /// Why.
        source: ReadError,
    },
    /// The log took no registration.
    #[error("EC {id} cannot register: {reason}")]
    Register {
        /// Which EC.
        id: String,
        /// Why.
        reason: String,
    },
    /// The bus is away.
    #[error(transparent)]
    Bus(#[from] Disconnected),
}

/// What all parts of one EC share.
pub(crate) struct Shared {
    pub(crate) settings: EcSettings,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) log: Log,
    pub(crate) directory: LiveDirectory,
    pub(crate) eas: Eas,
    pub(crate) rooms: Rooms,
    pub(crate) verifier: Verifier,
    pub(crate) connections: DefaultDirectRateLimiter,
    pub(crate) metrics: Metrics,
}

impl Shared {
    /// Why the worker at `placement` is not there any more, as far as the log says; none while it is.
    pub(crate) fn gone(&self, placement: &Placement) -> Option<&'static str> {
        let directory = self.directory.read();
        let node = directory.nodes.get(&StreamId::from(&placement.ea))?;
        if node.incarnation < placement.incarnation {
            return None; // this view is behind the log that placed the room
        }
        if node.incarnation > placement.incarnation {
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

/// A running EC.
pub struct Ec {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
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
        let node = StreamId::from(&settings.id);
        let log = register(&settings, &node, journal, env).await?;
        let per_second = NonZeroU32::new(settings.connections_per_second).unwrap_or(NonZeroU32::MIN);
        let shared = Arc::new(Shared {
            connections: RateLimiter::direct(Quota::per_second(per_second)),
            eas: Eas::new(directory.clone()),
            rooms: Rooms::default(),
            verifier: Verifier::default(),
            metrics: Metrics::default(),
            settings,
            bus,
            log,
            directory,
        });
        let mut tasks = JoinSet::new();

        let mut heartbeats = shared.bus.subscribe(Pattern::heartbeats(), None).await?;
        let listening = shared.clone();
        tasks.spawn(async move {
            while let Some(message) = heartbeats.next().await {
                match Payload(message.payload).decode::<Heartbeat>() {
                    Ok(heartbeat) => listening.eas.heard(&heartbeat, Instant::now()),
                    Err(error) => {
                        tracing::warn!(subject = %message.subject, %error, "heartbeat does not read")
                    }
                }
            }
        });

        let mut requests = shared.bus.subscribe(Subject::rpc(&node).into(), None).await?;
        let serving = shared.clone();
        tasks.spawn(async move {
            while let Some(message) = requests.next().await {
                serve(&serving, message);
            }
        });

        let beating = shared.clone();
        tasks.spawn(async move { beat(&beating, node).await });

        let mut changes = shared.directory.node_changes();
        let watching = shared.clone();
        tasks.spawn(async move {
            while changes.changed().await.is_ok() {
                watching.rooms.broadcast(|| RoomMessage::CheckPlacement);
            }
        });

        let left_behind: Vec<RoomId> = {
            let directory = shared.directory.read();
            let own = |owner: &roomlog_projections::room::Owner| owner.ec == shared.settings.id;
            directory
                .rooms
                .iter()
                .filter(|(_, r)| r.open && r.owner.as_ref().is_some_and(own))
                .map(|(id, _)| id.clone())
                .collect()
        };
        for room in left_behind {
            if let Err(refusal) = shared.rooms.send(&shared, &room, RoomMessage::CheckPlacement) {
                tracing::warn!(%room, %refusal, "room not taken up");
            }
        }
        Ok(Self { shared, tasks })
    }

    /// The WebSocket gateway's routes.
    pub fn router(&self) -> axum::Router {
        gateway::router(self.shared.clone())
    }

    /// What it counts, in Prometheus' text form.
    pub fn metrics(&self) -> String {
        self.shared.metrics.render(self.shared.rooms.len())
    }

    /// Rooms whose task runs.
    pub fn running_rooms(&self) -> usize {
        self.shared.rooms.len()
    }

    /// Whether an EA is there that could take a room: the EC can serve.
    pub fn ready(&self) -> bool {
        self.shared.eas.any(Instant::now())
    }

    /// Says goodbye in the log and ends every task. Clients may resume at the next start.
    pub async fn stop(mut self) {
        let node = StreamId::from(&self.shared.settings.id);
        let incarnation = self.shared.log.writer().incarnation;
        let head = self.shared.log.journal().head(&node).await.ok().flatten();
        let draft = Draft { cause: Cause::of("stop"), ..Draft::default() };
        if let Err(error) =
            self.shared.log.append(node, head, draft, &[Event::from(NodeLeft { incarnation })]).await
        {
            tracing::warn!(%error, "leaving without a word in the log");
        }
        self.tasks.shutdown().await;
        self.shared.rooms.clear();
    }
}

/// Appends `NodeRegistered` with the next incarnation.
async fn register(
    settings: &EcSettings,
    node: &StreamId,
    journal: Arc<dyn Journal>,
    env: Env,
) -> Result<Log, EcError> {
    let id = settings.id.to_string();
    for _ in 0..REGISTER_TRIES {
        let commits = read_all(journal.as_ref(), node, roomlog_bus::ids::Version(1))
            .await
            .map_err(|source| EcError::Read { id: id.clone(), source })?;
        let mut state = NodeState::default();
        for commit in &commits {
            state
                .apply_commit(commit)
                .map_err(|error| EcError::Register { id: id.clone(), reason: error.to_string() })?;
        }
        let incarnation: Incarnation = state.incarnation.next();
        let log = Log::new(journal.clone(), env.clone(), Writer { node: node.clone(), incarnation });
        let event = NodeRegistered {
            incarnation,
            address: settings.address.clone(),
            workers: 0,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let draft = Draft { cause: Cause::of("start"), ..Draft::default() };
        match log.append(node.clone(), state.head, draft, &[event.into()]).await {
            Ok(_) => return Ok(log),
            Err(AppendError::Conflict { .. }) => {}
            Err(error) => return Err(EcError::Register { id, reason: error.to_string() }),
        }
    }
    Err(EcError::Register {
        id,
        reason: "other starts of the same node keep registering: is the id used twice?".into(),
    })
}

async fn beat(shared: &Shared, node: StreamId) {
    let mut every = tokio::time::interval(shared.settings.heartbeat_every);
    loop {
        every.tick().await;
        let heartbeat = Heartbeat {
            node: node.clone(),
            incarnation: shared.log.writer().incarnation,
            rooms: shared.rooms.len() as u64,
            clients: shared.metrics.sockets(),
            draining: false,
        };
        let message = Message {
            subject: Subject::heartbeat(&node),
            reply: None,
            headers: Headers::new(),
            payload: Payload::encode(&heartbeat).0,
        };
        if let Err(error) = shared.bus.publish(message).await {
            tracing::warn!(%error, "no heartbeat sent");
        }
    }
}

/// Answers one RPC, in a task of its own where it has to wait for a room.
fn serve(shared: &Arc<Shared>, message: Message) {
    let request: EcRequest = match Payload(message.payload.clone()).decode() {
        Ok(request) => request,
        Err(error) => {
            let answer: Result<EcAnswer, RpcError> = Err(RpcError::Malformed { reason: error.to_string() });
            return reply(shared, message, async move { answer });
        }
    };
    match request {
        EcRequest::Notification { notification } => {
            // A room that does not run has nobody to tell; its inventory finds what is left.
            if shared.rooms.runs(&notification.room) {
                let told = RoomMessage::Notification {
                    media_epoch: notification.media_epoch,
                    notification: notification.notification,
                };
                if let Err(refusal) = shared.rooms.send(shared, &notification.room, told) {
                    tracing::debug!(room = %notification.room, %refusal, "notification dropped");
                }
            }
        }
        EcRequest::RemoveClient { room, client, reason } => {
            let (sender, done) = oneshot::channel();
            let sent =
                shared.rooms.send(shared, &room, RoomMessage::Remove { client, reason, reply: sender });
            reply(shared, message, version_of(room, sent.map(|_| done)));
        }
        EcRequest::DeleteRoom { room, reason } => {
            let (sender, done) = oneshot::channel();
            let sent = shared.rooms.send(shared, &room, RoomMessage::Delete { reason, reply: sender });
            reply(shared, message, version_of(room, sent.map(|_| done)));
        }
        EcRequest::RoomState { room } => {
            if !shared.rooms.runs(&room) {
                let version = roomlog_bus::ids::Version(0);
                return reply(shared, message, async move {
                    Ok(EcAnswer::State { version, state: serde_json::Value::Null })
                });
            }
            let (sender, done) = oneshot::channel();
            let sent = shared.rooms.send(shared, &room, RoomMessage::State { reply: sender });
            reply(shared, message, async move {
                sent.map_err(|refusal| rpc_error(&room, refusal))?;
                let (version, state) =
                    done.await.map_err(|_| RpcError::Retry { reason: "the room ended meanwhile".into() })?;
                Ok(EcAnswer::State { version, state })
            });
        }
    }
}

async fn version_of(
    room: RoomId,
    sent: Result<oneshot::Receiver<Result<roomlog_bus::ids::Version, Refusal>>, Refusal>,
) -> Result<EcAnswer, RpcError> {
    let done = sent.map_err(|refusal| rpc_error(&room, refusal))?;
    match done.await {
        Ok(Ok(version)) => Ok(EcAnswer::Version { version }),
        Ok(Err(refusal)) => Err(rpc_error(&room, refusal)),
        Err(_) => Err(RpcError::Retry { reason: "the room ended meanwhile".into() }),
    }
}

fn rpc_error(room: &RoomId, refusal: Refusal) -> RpcError {
    match refusal {
        Refusal::WrongHost => RpcError::NotOwner { room: room.clone() },
        Refusal::NoRoom => RpcError::NotFound { what: format!("room {room}") },
        Refusal::NoClient(client) => RpcError::NotFound { what: format!("client {client}") },
        refusal => RpcError::Retry { reason: refusal.to_string() },
    }
}

fn reply(
    shared: &Arc<Shared>,
    request: Message,
    answer: impl Future<Output = Result<EcAnswer, RpcError>> + Send + 'static,
) {
    let bus = shared.bus.clone();
    tokio::spawn(async move {
        let answer = answer.await;
        if let Err(error) = respond(bus.as_ref(), &request, Payload::encode(&answer).0).await {
            tracing::warn!(%error, "answer not sent");
        }
    });
}
