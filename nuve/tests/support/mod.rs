//! A cell in memory for tests: bus, journal, NUVE nodes, and ECs that register, beat and answer but serve nobody.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::ConnectInfo,
    http::{HeaderMap, Request, StatusCode},
};
use roomlog_bus::{
    bus::{Bus, Headers, Message, respond},
    commit::{Commit, Payload, StreamId, Writer},
    env::Env,
    events::{
        ClientAdmitted, ClientJoined, ClientLeft, ClientRightsChanged, Event, NodeRegistered, ProducerMuted,
        ProducerUnmuted, RoomChanged, RoomDeleted, RoomOpened,
    },
    ids::{ClientId, EcId, Epoch, Incarnation, NuveId, RoomId, Version},
    journal::{Before, Cursor, Follow, Followed, Journal, ReadError, read_all},
    log::{Draft, Log},
    memory_bus::MemoryBus,
    memory_journal::MemoryJournal,
    rpc::{EcAnswer, EcRequest, Heartbeat, RpcError},
    subject::Subject,
    time::SystemClock,
};
use roomlog_nuve::{Nuve, NuveSettings, start_with, webhooks::deliver::Deliver};
use roomlog_projections::{directory::LiveDirectory, node::NodeState, room::RoomState};
use serde_json::Value;
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

pub const ADMIN: &str = "ak_test";

/// Bus and journal that nodes share.
pub struct Cell {
    pub bus: Arc<dyn Bus>,
    pub journal: Arc<dyn Journal>,
    seed: std::sync::atomic::AtomicU8,
}

impl Cell {
    pub fn new() -> Self {
        Self {
            bus: Arc::new(MemoryBus::new()),
            journal: Arc::new(MemoryJournal::new()),
            seed: std::sync::atomic::AtomicU8::new(1),
        }
    }

    /// With a journal that stands before the usual one.
    pub fn over(journal: impl FnOnce(Arc<dyn Journal>) -> Arc<dyn Journal>) -> Self {
        let cell = Self::new();
        Self { journal: journal(cell.journal.clone()), ..cell }
    }

    pub fn env(&self) -> Env {
        let seed = self.seed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Env::new(Arc::new(SystemClock), [seed; 32])
    }

    /// Limits out of the way, admin key known.
    pub fn settings(id: &str) -> NuveSettings {
        NuveSettings {
            id: NuveId::new(id).unwrap(),
            admin_key: Some(ADMIN.into()),
            ip_per_s: 100_000,
            ip_burst: 100_000,
            service_per_s: 100_000,
            cluster_per_s: 100_000,
            locate_per_s: 100_000,
            ..NuveSettings::default()
        }
    }

    pub async fn nuve(&self, settings: NuveSettings) -> Front {
        let directory = LiveDirectory::start(self.journal.clone()).await.unwrap();
        let (bus, journal) = (self.bus.clone(), self.journal.clone());
        let nuve = roomlog_nuve::start(settings, bus, journal, directory.clone(), self.env()).await.unwrap();
        Front { router: nuve.router(), nuve, directory }
    }

    /// A node that calls the receivers of webhooks by `deliver`, and whose own view is `lag` behind the journal.
    pub async fn nuve_with(&self, settings: NuveSettings, deliver: Arc<dyn Deliver>, lag: Duration) -> Front {
        let late: Arc<dyn Journal> = Arc::new(LateJournal { journal: self.journal.clone(), lag });
        let directory =
            LiveDirectory::start(if lag.is_zero() { self.journal.clone() } else { late }).await.unwrap();
        let (bus, journal) = (self.bus.clone(), self.journal.clone());
        let started = start_with(settings, bus, journal, directory.clone(), self.env(), deliver).await;
        let nuve = started.unwrap();
        Front { router: nuve.router(), nuve, directory }
    }

    /// A node whose own view is `lag` behind the journal.
    pub async fn lagging_nuve(&self, settings: NuveSettings, lag: Duration) -> Front {
        let late: Arc<dyn Journal> = Arc::new(LateJournal { journal: self.journal.clone(), lag });
        let directory = LiveDirectory::start(late).await.unwrap();
        let (bus, journal) = (self.bus.clone(), self.journal.clone());
        let nuve = roomlog_nuve::start(settings, bus, journal, directory.clone(), self.env()).await.unwrap();
        Front { router: nuve.router(), nuve, directory }
    }

    pub async fn commits(&self, room: &str) -> Vec<Arc<Commit>> {
        let room = RoomId::new(room).unwrap();
        read_all(&*self.journal, &StreamId::from(&room), Version(1)).await.unwrap()
    }

    pub async fn events(&self, room: &str) -> Vec<Event> {
        let commits = self.commits(room).await;
        commits.iter().flat_map(|commit| &commit.events).map(|raw| Event::decode(raw).unwrap()).collect()
    }

    pub async fn fold(&self, room: &str) -> RoomState {
        let mut state = RoomState::default();
        for commit in self.commits(room).await {
            state.apply_commit(&commit).unwrap();
        }
        state
    }
}

/// A journal whose followers hear of each commit late, as behind a slow network.
struct LateJournal {
    journal: Arc<dyn Journal>,
    lag: Duration,
}

#[async_trait::async_trait]
impl Before for LateJournal {
    fn behind(&self) -> &dyn Journal {
        &*self.journal
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        let mut follow = self.journal.follow(from).await?;
        let (late, receiver) = tokio::sync::mpsc::channel(100_000);
        let (stamped, mut arrived) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(followed) = follow.next().await {
                let _ = stamped.send((tokio::time::Instant::now(), followed));
            }
        });
        let lag = self.lag;
        tokio::spawn(async move {
            let mut live = false;
            while let Some((at, followed)) = arrived.recv().await {
                live |= followed == Followed::CaughtUp;
                if live && followed != Followed::CaughtUp {
                    tokio::time::sleep_until(at + lag).await;
                }
                let _ = late.send(followed).await;
            }
        });
        Ok(Follow { receiver })
    }
}

/// A NUVE node and its HTTP interface.
pub struct Front {
    pub nuve: Nuve,
    pub router: Router,
    pub directory: LiveDirectory,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    pub fn at(&self, field: &str) -> String {
        self.json()[field].as_str().unwrap_or_else(|| panic!("{field} in {}", self.text)).to_owned()
    }

    /// Asserts the status and gives the answer back.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{} {:?}", self.text, self.headers);
        self
    }

    /// Asserts that it is this problem.
    #[track_caller]
    pub fn problem(self, slug: &str) -> Self {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.text);
        assert_eq!(self.at("type"), format!("/problems/{slug}"), "{}", self.text);
        assert_eq!(self.json()["status"], self.status.as_u16());
        self
    }

    pub fn version(&self) -> u64 {
        self.headers["roomlog-version"].to_str().unwrap().parse().unwrap()
    }
}

/// A request being written.
pub struct Ask {
    router: Router,
    request: axum::http::request::Builder,
    body: Option<String>,
    peer: SocketAddr,
}

impl Front {
    pub fn ask(&self, method: &str, path: &str) -> Ask {
        let request = Request::builder().method(method).uri(path).header("host", "rooms.test:8080");
        Ask { router: self.router.clone(), request, body: None, peer: "192.0.2.1:4000".parse().unwrap() }
    }

    pub fn get(&self, path: &str) -> Ask {
        self.ask("GET", path)
    }

    pub fn post(&self, path: &str, body: Value) -> Ask {
        self.ask("POST", path).body(body.to_string())
    }

    pub fn patch(&self, path: &str, body: Value) -> Ask {
        self.ask("PATCH", path).body(body.to_string())
    }

    pub fn delete(&self, path: &str) -> Ask {
        self.ask("DELETE", path)
    }

    /// Makes a service whose publishable key may make rooms; gives its id, secret key and publishable key.
    pub async fn service(&self) -> Keys {
        let body = serde_json::json!({"name": "test", "publishableCreatesRooms": true});
        let made = self.post("/v1/services", body).key(ADMIN).send().await.is(201);
        Keys { id: made.at("id"), secret: made.at("secretKey"), publishable: made.at("publishableKey") }
    }

    /// Asks for a token by room name, making the room.
    pub async fn token(&self, key: &str, room: &str, user: &str) -> Answer {
        let body = serde_json::json!({"user": user, "create": true});
        self.post(&format!("/v1/rooms/name:{room}/tokens"), body).key(key).send().await
    }
}

#[derive(Debug, Clone)]
pub struct Keys {
    pub id: String,
    pub secret: String,
    pub publishable: String,
}

impl Ask {
    pub fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub fn from(mut self, ip: &str) -> Self {
        self.peer = SocketAddr::new(ip.parse().unwrap(), 4000);
        self
    }

    pub fn body(mut self, body: String) -> Self {
        self.request = self.request.header("content-type", "application/json");
        self.body = Some(body);
        self
    }

    /// The response as it comes, for streams.
    pub async fn open(self) -> axum::response::Response {
        let mut request = self.request.body(self.body.map_or_else(Body::empty, Body::from)).unwrap();
        request.extensions_mut().insert(ConnectInfo(self.peer));
        self.router.oneshot(request).await.unwrap()
    }

    pub async fn send(self) -> Answer {
        let response = self.open().await;
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 10_000_000).await.unwrap();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}

/// An EC that registers, beats, and does what NUVE asks of it, without any media.
pub struct FakeEc {
    pub id: EcId,
    pub log: Log,
    /// Happens before the next change of a room, after whoever asks for that has looked.
    pub first: Arc<std::sync::Mutex<Option<Event>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl FakeEc {
    /// Registers and starts to beat and to answer.
    pub async fn start(cell: &Cell, id: &str) -> Self {
        let ec = EcId::new(id).unwrap();
        let node = StreamId::from(&ec);
        let mut state = NodeState::default();
        for commit in read_all(&*cell.journal, &node, Version(1)).await.unwrap() {
            state.apply_commit(&commit).unwrap();
        }
        let incarnation = state.incarnation.next();
        let log = Log::new(cell.journal.clone(), cell.env(), Writer { node: node.clone(), incarnation });
        let event = NodeRegistered {
            incarnation,
            address: format!("ws://{id}.test/signal"),
            workers: 0,
            version: "test".into(),
            probe: None,
            adopted: Vec::new(),
        };
        log.append(node.clone(), state.head, Draft::default(), &[event.into()]).await.unwrap();
        let mut requests = cell.bus.subscribe(Subject::rpc(&node).into(), None).await.unwrap();
        let beat = tokio::spawn(beats(cell.bus.clone(), node, incarnation, false));
        let first: Arc<std::sync::Mutex<Option<Event>>> = Arc::default();
        let answers = {
            let (bus, log, ec, first) = (cell.bus.clone(), log.clone(), ec.clone(), first.clone());
            tokio::spawn(async move {
                while let Some(message) = requests.next().await {
                    // As a real one: what does not read, such as the empty question whether it is there, is answered so.
                    let answer = match Payload(message.payload.clone()).decode::<EcRequest>() {
                        Ok(request) => {
                            let event = match &request {
                                EcRequest::ChangeRoom { .. } => first.lock().unwrap().take(),
                                _ => None,
                            };
                            if let (EcRequest::ChangeRoom { room, .. }, Some(event)) = (&request, event) {
                                append(&log, room, &[event]).await;
                            }
                            serve(&log, &ec, request).await
                        }
                        Err(error) => Err(RpcError::Malformed { reason: error.to_string() }),
                    };
                    respond(&*bus, &message, Payload::encode(&answer).0).await.unwrap();
                }
            })
        };
        // The first heartbeat has been taken by whoever listens.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Self { id: ec, log, first, tasks: vec![beat, answers] }
    }

    pub fn incarnation(&self) -> Incarnation {
        self.log.writer().incarnation
    }

    /// Appends to a room as its owner.
    pub async fn append(&self, room: &str, events: Vec<Event>) -> Version {
        append(&self.log, &RoomId::new(room).unwrap(), &events).await
    }

    /// Puts a client in, as an EC does: opened, admitted, joined.
    pub async fn join(&self, room: &str, client: &str) -> Version {
        let id = ClientId::new(client).unwrap();
        let admitted = ClientAdmitted {
            client: id.clone(),
            user: format!("user {client}"),
            role: "presenter".into(),
            addr: "192.0.2.9".into(),
            token: format!("jti-{client}"),
            token_expires: self.log.env().now().plus_millis(60_000),
            resume_key_hash: "00".into(),
        };
        let joined = ClientJoined {
            client: id,
            display_name: format!("Name {client}"),
            device: Value::Null,
            rtp_capabilities: None,
        };
        self.append(room, vec![RoomOpened {}.into(), admitted.into(), joined.into()]).await
    }

    /// Is gone at once: no heartbeat, nobody listens.
    pub fn die(self) {
        for task in self.tasks {
            task.abort();
        }
    }
}

async fn append(log: &Log, room: &RoomId, events: &[Event]) -> Version {
    let stream = StreamId::from(room);
    let head = log.journal().head(&stream).await.unwrap();
    let draft = Draft { epoch: Epoch(1), ..Draft::default() };
    log.append(stream, head, draft, events).await.unwrap().last_version()
}

async fn serve(log: &Log, ec: &EcId, request: EcRequest) -> Result<EcAnswer, RpcError> {
    let room = match &request {
        EcRequest::RemoveClient { room, .. }
        | EcRequest::DeleteRoom { room, .. }
        | EcRequest::ChangeRoom { room, .. }
        | EcRequest::ChangeRights { room, .. }
        | EcRequest::Mute { room, .. }
        | EcRequest::RoomState { room } => room.clone(),
        EcRequest::Notification { .. } => return Err(RpcError::Malformed { reason: "test".into() }),
    };
    let mut state = RoomState::default();
    for commit in read_all(&**log.journal(), &StreamId::from(&room), Version(1)).await.unwrap() {
        state.apply_commit(&commit).unwrap();
    }
    if state.owner.as_ref().is_none_or(|owner| owner.ec != *ec) {
        return Err(RpcError::NotOwner { room });
    }
    if let EcRequest::DeleteRoom { if_version: Some(wanted), .. }
    | EcRequest::ChangeRoom { if_version: Some(wanted), .. } = &request
        && *wanted != state.version()
    {
        return Err(RpcError::Version { version: state.version() });
    }
    let event: Event = match request {
        EcRequest::ChangeRoom { metadata, limits, .. } => RoomChanged { metadata, limits }.into(),
        EcRequest::ChangeRights { client, role, rights, .. } => {
            if !state.clients.contains_key(&client) {
                return Err(RpcError::NotFound { what: format!("client {client}") });
            }
            ClientRightsChanged { client, role, rights }.into()
        }
        EcRequest::Mute { client, producer, muted, .. } => {
            if state.producers.get(&producer).is_none_or(|p| p.client != client) {
                return Err(RpcError::NotFound { what: format!("producer {producer}") });
            }
            let by = None;
            if muted {
                ProducerMuted { producer, by }.into()
            } else {
                ProducerUnmuted { producer, by }.into()
            }
        }
        EcRequest::RemoveClient { client, reason, .. } => {
            if !state.clients.contains_key(&client) {
                return Err(RpcError::NotFound { what: format!("client {client}") });
            }
            ClientLeft { client, reason: reason.into() }.into()
        }
        EcRequest::DeleteRoom { reason, .. } => RoomDeleted { reason: reason.into() }.into(),
        _ => return Ok(EcAnswer::State { version: state.version(), state: state.to_json() }),
    };
    Ok(EcAnswer::Version { version: append(log, &room, &[event]).await })
}

/// Heartbeats, every second until aborted.
pub async fn beats(bus: Arc<dyn Bus>, node: StreamId, incarnation: Incarnation, draining: bool) {
    loop {
        let beat = Heartbeat { node: node.clone(), incarnation, rooms: 0, clients: 0, draining };
        let message = Message {
            subject: Subject::heartbeat(&node),
            reply: None,
            headers: Headers::new(),
            payload: Payload::encode(&beat).0,
        };
        bus.publish(message).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
