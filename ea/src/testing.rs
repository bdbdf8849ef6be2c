//! For tests: a worker that keeps books instead of moving packets, and a pen for room streams.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, StreamId, Writer},
    events::*,
    ids::*,
    media::*,
    ortc::*,
    time::Timestamp,
};
use roomlog_sfu::{
    adoption::{Hello, Welcome},
    control::{FromWorker, ToWorker, WorkerConfig, WorkerLoad},
};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::adopt::LeftBehind;
use crate::worker::{SpawnError, SpawnWorker, WorkerLink};

/// The routers of one worker, as books.
#[derive(Debug, Clone, Default)]
pub struct Books {
    pub routers: BTreeMap<RoomId, RouterInventory>,
    /// What was asked, but for inventories.
    pub heard: Vec<(RoomId, MediaCommand)>,
}

impl Books {
    /// Does what a worker would.
    pub fn answer(&mut self, room: &RoomId, command: &MediaCommand) -> Result<MediaAnswer, MediaError> {
        if *command != MediaCommand::Inventory {
            self.heard.push((room.clone(), command.clone()));
        }
        if *command == MediaCommand::CreateRouter {
            self.routers.entry(room.clone()).or_default();
            return Ok(MediaAnswer::Router { rtp_capabilities: RtpCapabilities::default() });
        }
        if let MediaCommand::Close { object: MediaObject::Router } = command {
            self.routers.remove(room);
            return Ok(MediaAnswer::Done);
        }
        let router = self.routers.get_mut(room).ok_or(MediaError::NoRoom)?;
        let no =
            |what: &str, id: &str| Err(MediaError::NoObject { what: what.to_owned(), id: id.to_owned() });
        match command {
            MediaCommand::CreateTransport { transport } => {
                if !router.transports.iter().any(|t| t.id == *transport) {
                    let state = TransportState::New;
                    router.transports.push(TransportInventory { id: transport.clone(), state });
                }
                Ok(MediaAnswer::Transport {
                    ice_parameters: IceParameters {
                        username_fragment: transport.to_string(),
                        password: "p".into(),
                        ice_lite: Some(true),
                    },
                    ice_candidates: Vec::new(),
                    dtls_parameters: DtlsParameters::default(),
                })
            }
            MediaCommand::ConnectTransport { transport, .. } => {
                match router.transports.iter_mut().find(|t| t.id == *transport) {
                    // Told again, or late, it does not bring back a transport whose ICE has ended.
                    Some(found) if found.state == TransportState::New => {
                        found.state = TransportState::Connected
                    }
                    Some(_) => {}
                    None => return no("transport", transport.as_str()),
                }
                Ok(MediaAnswer::Done)
            }
            MediaCommand::Produce { transport, producer, paused, .. } => {
                if !router.transports.iter().any(|t| t.id == *transport) {
                    return no("transport", transport.as_str());
                }
                let (id, transport) = (producer.clone(), transport.clone());
                router.producers.push(ProducerInventory { id, transport, paused: *paused });
                Ok(MediaAnswer::Producer { consumer_type: ConsumerType::Simple })
            }
            MediaCommand::Consume { transport, consumer, producer, .. } => {
                if !router.producers.iter().any(|p| p.id == *producer) {
                    return no("producer", producer.as_str());
                }
                router.consumers.push(ConsumerInventory {
                    id: consumer.clone(),
                    transport: transport.clone(),
                    producer: producer.clone(),
                    paused: true,
                });
                Ok(MediaAnswer::Consumer {
                    kind: MediaKind::Audio,
                    rtp_parameters: RtpParameters::default(),
                    consumer_type: ConsumerType::Simple,
                })
            }
            MediaCommand::PauseProducer { producer, paused } => {
                match router.producers.iter_mut().find(|p| p.id == *producer) {
                    Some(found) => found.paused = *paused,
                    None => return no("producer", producer.as_str()),
                }
                Ok(MediaAnswer::Done)
            }
            MediaCommand::PauseConsumer { consumer, paused } => {
                match router.consumers.iter_mut().find(|c| c.id == *consumer) {
                    Some(found) => found.paused = *paused,
                    None => return no("consumer", consumer.as_str()),
                }
                Ok(MediaAnswer::Done)
            }
            MediaCommand::Close { object } => {
                close(router, object);
                Ok(MediaAnswer::Done)
            }
            MediaCommand::Inventory => Ok(MediaAnswer::Inventory { inventory: router.clone() }),
            _ => Ok(MediaAnswer::Done),
        }
    }
}

fn close(router: &mut RouterInventory, object: &MediaObject) {
    match object {
        MediaObject::Router => {}
        MediaObject::Transport(id) => {
            router.transports.retain(|t| t.id != *id);
            router.consumers.retain(|c| c.transport != *id);
            let gone: Vec<_> =
                router.producers.iter().filter(|p| p.transport == *id).map(|p| p.id.clone()).collect();
            gone.into_iter().for_each(|id| close(router, &MediaObject::Producer(id)));
        }
        MediaObject::Producer(id) => {
            router.producers.retain(|p| p.id != *id);
            router.consumers.retain(|c| c.producer != *id);
        }
        MediaObject::Consumer(id) => router.consumers.retain(|c| c.id != *id),
    }
}

/// Makes the commits of one stream.
#[derive(Debug, Clone)]
pub struct Pen {
    pub stream: StreamId,
    pub head: Option<Head>,
    pub all: Vec<Arc<Commit>>,
    drawn: u64,
}

impl Pen {
    pub fn new(stream: StreamId) -> Self {
        Self { stream, head: None, all: Vec::new(), drawn: 0 }
    }

    /// The next commit.
    pub fn write(&mut self, events: &[Event]) -> Arc<Commit> {
        self.drawn += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.drawn.to_be_bytes());
        id[8..].copy_from_slice(&self.stream.to_string().bytes().map(u64::from).sum::<u64>().to_be_bytes());
        let commit = Arc::new(Commit {
            id: CommitId::from_bytes(id),
            prev: self.head.map(|h| h.id),
            stream: self.stream.clone(),
            version: self.head.map_or(Version(1), |h| h.version.next()),
            time: Timestamp(1),
            writer: Writer { node: "ec.ec".parse().unwrap(), incarnation: Incarnation(1) },
            epoch: Epoch(1),
            cause: Cause::of("request"),
            command: Payload::default(),
            facts: Payload::default(),
            events: events.iter().map(Event::encode).collect(),
            more: Default::default(),
        });
        self.head = Some(commit.head());
        self.all.push(commit.clone());
        commit
    }
}

pub fn room(text: &str) -> RoomId {
    RoomId::new(text).unwrap()
}

pub fn client(text: &str) -> ClientId {
    ClientId::new(text).unwrap()
}

pub fn transport(text: &str) -> TransportId {
    TransportId::new(text).unwrap()
}

pub fn producer(text: &str) -> ProducerId {
    ProducerId::new(text).unwrap()
}

pub fn consumer(text: &str) -> ConsumerId {
    ConsumerId::new(text).unwrap()
}

pub fn placed(epoch: u64) -> Event {
    RoomPlaced {
        ec: EcId::new("ec").unwrap(),
        incarnation: Incarnation(1),
        epoch: Epoch(epoch),
        reason: "test".into(),
    }
    .into()
}

pub fn assigned(placement: &Placement, media_epoch: u64) -> Event {
    EaAssigned {
        placement: placement.clone(),
        policy: EaPolicy::RoomBest,
        candidates: Vec::new(),
        reason: "first-client".into(),
        media_epoch: MediaEpoch(media_epoch),
    }
    .into()
}

pub fn admitted(id: &str) -> Event {
    ClientAdmitted {
        client: client(id),
        user: id.into(),
        role: "user".into(),
        addr: "127.0.0.1:1".into(),
        token: format!("token-{id}"),
        token_expires: Timestamp(u64::MAX),
        resume_key_hash: String::new(),
    }
    .into()
}

pub fn left(id: &str) -> Event {
    ClientLeft { client: client(id), reason: "left".into() }.into()
}

pub fn transport_created(of: &str, id: &str) -> Event {
    TransportCreated { client: client(of), transport: transport(id), producing: true, consuming: true }.into()
}

pub fn producer_created(of: &str, on: &str, id: &str) -> Event {
    ProducerCreated {
        client: client(of),
        producer: producer(id),
        transport: transport(on),
        kind: MediaKind::Audio,
        rtp_parameters: RtpParameters::default(),
        consumer_type: ConsumerType::Simple,
        app_data: serde_json::json!({}),
        paused: false,
    }
    .into()
}

pub fn consumer_created(of: &str, on: &str, id: &str, source: &str) -> Event {
    ConsumerCreated {
        client: client(of),
        consumer: consumer(id),
        transport: transport(on),
        producer: producer(source),
        kind: MediaKind::Audio,
        rtp_parameters: RtpParameters::default(),
        consumer_type: ConsumerType::Simple,
    }
    .into()
}

pub fn create(id: &str) -> MediaCommand {
    MediaCommand::CreateTransport { transport: transport(id) }
}

pub fn produce(on: &str, id: &str) -> MediaCommand {
    MediaCommand::Produce {
        transport: transport(on),
        producer: producer(id),
        kind: MediaKind::Audio,
        rtp_parameters: RtpParameters::default(),
        paused: false,
    }
}

pub fn consume(on: &str, id: &str, source: &str) -> MediaCommand {
    MediaCommand::Consume {
        transport: transport(on),
        consumer: consumer(id),
        producer: producer(source),
        rtp_capabilities: RtpCapabilities::default(),
    }
}

pub fn close_of(object: MediaObject) -> MediaCommand {
    MediaCommand::Close { object }
}

/// Starts workers that are tasks with [`Books`]; tests look into them and break them.
#[derive(Clone, Default)]
pub struct FakeSpawner {
    pub workers: Arc<Mutex<Vec<FakeWorker>>>,
    /// This many starts fail before one succeeds.
    pub failing: Arc<AtomicUsize>,
}

/// One worker that was started, in order of starts. It outlives the runtime that served it.
#[derive(Clone)]
pub struct FakeWorker {
    pub port: u16,
    pub books: Arc<Mutex<Books>>,
    /// Answers nothing while set.
    pub hung: Arc<AtomicBool>,
    /// Ends when told.
    pub die: Arc<Notify>,
    pub says: mpsc::Sender<FromWorker>,
    /// What it was started with.
    pub config: WorkerConfig,
    /// It has ended.
    pub ended: Arc<AtomicBool>,
}

impl FakeSpawner {
    /// The worker that was started as number `index`.
    pub fn worker(&self, index: usize) -> FakeWorker {
        self.workers.lock().unwrap()[index].clone()
    }

    pub fn started(&self) -> usize {
        self.workers.lock().unwrap().len()
    }
}

impl SpawnWorker for FakeSpawner {
    fn spawn(&self, config: &WorkerConfig) -> Result<WorkerLink, SpawnError> {
        let fails = |left: usize| left.checked_sub(1);
        if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
            return Err(SpawnError::NoCommand);
        }
        let mut workers = self.workers.lock().unwrap();
        let port =
            if config.listen.port() == 0 { 40_000 + workers.len() as u16 } else { config.listen.port() };
        let mut worker = FakeWorker {
            port,
            books: Arc::default(),
            hung: Arc::default(),
            die: Arc::default(),
            says: mpsc::channel(1).0,
            config: config.clone(),
            ended: Arc::default(),
        };
        let link = worker.serve(false);
        let udp = worker.udp();
        worker.says.try_send(FromWorker::Ready { udp }).expect("the queue is new");
        workers.push(worker);
        Ok(link)
    }

    fn left_behind(&self, _: Hello) -> Pin<Box<dyn Future<Output = Vec<LeftBehind>> + Send + '_>> {
        let mut workers = self.workers.lock().unwrap();
        let living = workers.iter_mut().filter(|w| !w.has_ended());
        let found = living.map(|worker| {
            let rooms = worker.books.lock().unwrap().routers.keys().cloned().collect();
            let (config, udp) = (worker.config.clone(), worker.udp());
            let answer = Ok(Welcome { version: String::new(), config, udp, rooms });
            LeftBehind { link: worker.serve(true), answer }
        });
        let found: Vec<_> = found.collect();
        Box::pin(async { found })
    }
}

impl FakeWorker {
    fn udp(&self) -> SocketAddr {
        SocketAddr::new(self.config.listen.ip(), self.port)
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Answers until it ends, or, if it was taken over, is let go.
    fn serve(&mut self, taken_over: bool) -> WorkerLink {
        let (to, mut commands) = mpsc::channel(64);
        let (says, from) = mpsc::channel(64);
        let (has_ended, ended) = oneshot::channel();
        let (kill, mut killed) = oneshot::channel();
        self.says = says.clone();
        let worker = self.clone();
        tokio::spawn(async move {
            let reason = loop {
                let command = tokio::select! {
                    biased;
                    command = commands.recv() => command,
                    () = worker.die.notified() => break "signal: 9",
                    asked = &mut killed => match asked {
                        Err(_) if taken_over => return,
                        _ => break "killed",
                    },
                };
                let answer = match command {
                    // Let go, unless it was told to die before.
                    None if taken_over && killed.try_recv().is_err() => return,
                    None | Some(ToWorker::Shutdown) => break "exit status: 0",
                    Some(_) if worker.hung.load(Ordering::SeqCst) => continue,
                    Some(ToWorker::Ping { id }) => FromWorker::Pong { id, load: WorkerLoad::default() },
                    Some(ToWorker::Request { id, room, command }) => {
                        let result = worker.books.lock().unwrap().answer(&room, &command);
                        FromWorker::Answer { id, result }
                    }
                };
                let _ = says.send(answer).await;
            };
            worker.ended.store(true, Ordering::SeqCst);
            let _ = has_ended.send(reason.to_owned());
        });
        WorkerLink { pid: Some(u32::from(self.port)), to, from, ended, kill }
    }
}
