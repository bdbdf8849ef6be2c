//! The whole agent over the bus and the journal in memory, with workers that are tasks.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use roomlog_bus::{
    bus::{Bus, Subscription},
    commit::{Payload, StreamId, Writer},
    env::Env,
    events::{Event, NodeDraining, NodeLost, Placement},
    ids::{EaId, EcId, Epoch, Incarnation, MediaEpoch, RoomId, Version, WorkerIndex},
    journal::{Journal, read_all},
    log::{Draft, Log},
    media::{MediaCommand, MediaError, MediaNotification, TransportState},
    memory_bus::MemoryBus,
    memory_journal::MemoryJournal,
    rpc::{EaAnswer, EaRequest, EcRequest, Heartbeat, RPC_TIMEOUT, RpcError, ask},
    subject::Subject,
};
use roomlog_projections::{node::NodePhase, node::NodeState, room::RoomState};
use roomlog_sfu::control::FromWorker;

use crate::{Ea, EaError, EaSettings, start_with, testing::*};

/// Nothing here takes longer; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    bus: Arc<dyn Bus>,
    journal: Arc<dyn Journal>,
    spawner: FakeSpawner,
    settings: EaSettings,
    pen: Log,
}

fn settings() -> EaSettings {
    EaSettings {
        workers: 2,
        heartbeat_every: Duration::from_millis(20),
        ping_every: Duration::from_millis(20),
        pong_timeout: Duration::from_millis(200),
        ready_timeout: Duration::from_secs(2),
        provisional_ttl: Duration::from_millis(300),
        sweep_every: Duration::from_millis(200),
        shutdown_timeout: Duration::from_secs(1),
        ..EaSettings::new(EaId::new("ea").unwrap(), Vec::new())
    }
}

impl World {
    fn new(settings: EaSettings) -> Self {
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let writer = Writer { node: "ec.ec".parse().unwrap(), incarnation: Incarnation(1) };
        let pen = Log::new(journal.clone(), Env::system(), writer);
        Self { bus: Arc::new(MemoryBus::new()), journal, spawner: FakeSpawner::default(), settings, pen }
    }

    async fn start(&self) -> Ea {
        self.try_start().await.unwrap()
    }

    async fn try_start(&self) -> Result<Ea, EaError> {
        let spawner = Arc::new(self.spawner.clone());
        start_with(self.settings.clone(), self.bus.clone(), self.journal.clone(), Env::system(), spawner)
            .await
    }

    fn stream(&self) -> StreamId {
        StreamId::from(&self.settings.id)
    }

    async fn ask(&self, request: EaRequest) -> Result<EaAnswer, RpcError> {
        ask(self.bus.as_ref(), Subject::rpc(&self.stream()), &request, RPC_TIMEOUT).await
    }

    async fn open(&self, id: &str, media_epoch: u64) -> Result<Placement, RpcError> {
        let media_epoch = MediaEpoch(media_epoch);
        match self.ask(EaRequest::OpenRoom { room: room(id), epoch: Epoch(1), media_epoch }).await? {
            EaAnswer::Opened { placement, .. } => Ok(placement),
            other => panic!("{other:?}"),
        }
    }

    async fn media(&self, id: &str, media_epoch: u64, command: MediaCommand) -> Result<EaAnswer, RpcError> {
        let media_epoch = MediaEpoch(media_epoch);
        self.ask(EaRequest::Media { room: room(id), epoch: Epoch(1), media_epoch, client: None, command })
            .await
    }

    async fn append(&self, stream: StreamId, events: &[Event]) {
        let head = self.journal.head(&stream).await.unwrap();
        self.pen.append(stream, head, Draft::default(), events).await.unwrap();
    }

    /// Opens a room, and commits it with one client that has a transport.
    async fn call(&self, id: &str) -> Placement {
        let placement = self.open(id, 1).await.unwrap();
        let stream = StreamId::from(&room(id));
        self.append(stream.clone(), &[placed(1), assigned(&placement, 1), admitted("a")]).await;
        self.media(id, 1, create("t")).await.unwrap();
        self.append(stream, &[transport_created("a", "t")]).await;
        placement
    }

    async fn own(&self) -> (NodeState, Vec<Event>) {
        let mut state = NodeState::default();
        let mut events = Vec::new();
        for commit in read_all(self.journal.as_ref(), &self.stream(), Version(1)).await.unwrap() {
            state.apply_commit(&commit).unwrap();
            events.extend(commit.events.iter().map(|e| Event::decode(e).unwrap()));
        }
        (state, events)
    }

    /// Waits until `is` is true of the node's own stream.
    async fn until_own(&self, what: &str, is: impl Fn(&NodeState, &[Event]) -> bool) {
        let reached = async {
            loop {
                let (state, events) = self.own().await;
                if is(&state, &events) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    async fn rooms(&self) -> Vec<RoomId> {
        match self.ask(EaRequest::Rooms).await {
            Ok(EaAnswer::Rooms { rooms }) => rooms.into_iter().map(|(room, _)| room).collect(),
            other => panic!("{other:?}"),
        }
    }

    async fn heartbeats(&self) -> Subscription {
        self.bus.subscribe(Subject::heartbeat(&self.stream()).into(), None).await.unwrap()
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let reached = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn an_ea_registers_says_how_it_is_and_leaves() {
    let world = World::new(settings());
    let ea = world.start().await;
    let (state, _) = world.own().await;
    assert_eq!((state.phase, state.incarnation, state.workers), (NodePhase::Registered, Incarnation(1), 2));
    assert_eq!(state.generations.into_values().collect::<Vec<_>>(), [1, 1]);
    assert_eq!(state.address, "127.0.0.1:40000,127.0.0.1:40001");
    assert_eq!(ea.worker_pids(), [Some(40_000), Some(40_001)]);

    world.call("r").await;
    let mut heartbeats = world.heartbeats().await;
    let said = loop {
        let message = heartbeats.next().await.unwrap();
        let heartbeat: Heartbeat = Payload(message.payload).decode().unwrap();
        if heartbeat.clients == 1 {
            break heartbeat;
        }
    };
    let node = world.stream();
    let (incarnation, draining) = (Incarnation(1), false);
    assert_eq!(said, Heartbeat { node, incarnation, rooms: 1, clients: 1, draining });

    ea.stop().await;
    assert_eq!(world.own().await.0.phase, NodePhase::Left);
    assert!(matches!(world.open("q", 1).await, Err(RpcError::Unreachable { no_responders: true, .. })));

    let ea = world.start().await;
    let (state, _) = world.own().await;
    assert_eq!((state.phase, state.incarnation), (NodePhase::Registered, Incarnation(2)));
    assert_eq!(state.generations.into_values().collect::<Vec<_>>(), [2, 2], "generations rise over restarts");
    assert_eq!(world.rooms().await, [], "a new incarnation owns nothing");
    ea.stop().await;
}

#[tokio::test]
async fn behind_a_nat_the_forwarded_ports_are_what_others_are_told() {
    let forwarded = EaSettings { first_port: Some(41_000), first_announced_port: Some(50_000), ..settings() };
    let world = World::new(forwarded.clone());
    let ea = world.start().await;
    assert_eq!(world.own().await.0.address, "127.0.0.1:50000,127.0.0.1:50001");
    ea.stop().await;
    for (wrong, name) in [
        (EaSettings { first_port: None, ..forwarded.clone() }, "first_announced_port"),
        (EaSettings { first_announced_port: Some(u16::MAX), ..forwarded }, "first_announced_port"),
    ] {
        let refused = World::new(wrong).try_start().await;
        assert!(matches!(refused, Err(EaError::Setting { name: seen, .. }) if seen == name));
    }
}

#[tokio::test]
async fn what_the_log_ends_ends_in_the_worker_and_the_fold_is_the_log() {
    let world = World::new(settings());
    let _ea = world.start().await;
    world.call("r").await;
    let stream = StreamId::from(&room("r"));
    let mut fold = RoomState::default();
    for commit in read_all(world.journal.as_ref(), &stream, Version(1)).await.unwrap() {
        fold.apply_commit(&commit).unwrap();
    }
    let request = EaRequest::RoomState { room: room("r"), min_version: fold.version() };
    let state = fold.to_json();
    assert_eq!(world.ask(request).await, Ok(EaAnswer::State { version: fold.version(), state }));

    let books = world.spawner.worker(0).books;
    assert_eq!(books.lock().unwrap().routers[&room("r")].transports.len(), 1);
    world.append(stream, &[left("a")]).await;
    until("the router is gone", || books.lock().unwrap().routers.is_empty()).await;
    assert_eq!(world.rooms().await, []);
}

#[tokio::test]
async fn what_is_not_committed_expires() {
    let world = World::new(settings());
    let _ea = world.start().await;
    world.call("r").await;
    world.media("r", 1, create("forgotten")).await.unwrap();
    world.open("q", 1).await.unwrap();
    let (first, second) = (world.spawner.worker(0).books, world.spawner.worker(1).books);
    until("room q is gone", || second.lock().unwrap().routers.is_empty()).await;
    until("the transport is gone", || first.lock().unwrap().routers[&room("r")].transports.len() == 1).await;
    assert_eq!(world.rooms().await, [room("r")]);
}

#[tokio::test]
async fn a_killed_worker_is_replaced_and_the_others_do_not_notice() {
    let world = World::new(settings());
    let _ea = world.start().await;
    world.call("r0").await;
    world.call("r1").await;
    let first = world.spawner.worker(0);
    first.die.notify_one();
    world
        .until_own("worker 0 started again", |state, _| state.generations.get(&WorkerIndex(0)) == Some(&2))
        .await;
    let (_, events) = world.own().await;
    let died = events.iter().find_map(|e| if let Event::WorkerDied(e) = e { Some(e) } else { None }).unwrap();
    assert_eq!((died.worker.0, died.generation, &died.reason[..]), (0, 1, "signal: 9"));
    assert_eq!(died.rooms, [room("r0")]);
    assert_eq!(world.media("r0", 1, create("x")).await, Err(MediaError::NoRoom.into()));
    world.media("r1", 1, create("x")).await.unwrap();
    assert_eq!(world.spawner.worker(1).books.lock().unwrap().routers[&room("r1")].transports.len(), 2);
    assert_eq!(world.spawner.worker(2).port, first.port, "it has the port of its predecessor");

    let reached = async {
        loop {
            match world.open("r0", 2).await {
                Ok(placement) if placement.worker.0 == 0 => break placement,
                Ok(_) => panic!("the worker without rooms has the turn"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, reached).await.unwrap().generation, 2);
}

#[tokio::test]
async fn a_worker_that_hangs_is_replaced() {
    let world = World::new(settings());
    let _ea = world.start().await;
    world.call("r0").await;
    world.spawner.worker(0).hung.store(true, Ordering::SeqCst);
    let asked = tokio::time::timeout(PATIENCE, world.media("r0", 1, create("x")));
    let answer = asked.await.unwrap();
    assert!(matches!(answer, Err(RpcError::Media(MediaError::Unavailable { .. }))), "{answer:?}");
    world
        .until_own("worker 0 started again", |state, _| state.generations.get(&WorkerIndex(0)) == Some(&2))
        .await;
    let (_, events) = world.own().await;
    assert!(events.iter().any(|e| matches!(e, Event::WorkerDied(e) if e.reason == "hung")));
}

#[tokio::test]
async fn an_ea_called_lost_registers_again_with_its_workers_and_rooms() {
    let world = World::new(settings());
    let _ea = world.start().await;
    world.call("r").await;
    let lost = NodeLost { incarnation: Incarnation(1), observer: "ec.ec".into(), reason: "silent".into() };
    world.append(world.stream(), &[lost.into()]).await;
    world
        .until_own("it is registered again", |state, _| {
            state.phase == NodePhase::Registered
                && state.incarnation == Incarnation(2)
                && state.generations.len() == 2
        })
        .await;
    assert_eq!(world.spawner.started(), 2, "its workers live on");
    assert_eq!(world.rooms().await, [room("r")]);
    world.media("r", 1, create("x")).await.unwrap();
    let reached = async {
        while world.open("q", 1).await.is_ok_and(|p| p.incarnation != Incarnation(2)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap();
}

#[tokio::test]
async fn an_ea_is_ready_while_it_has_a_worker_and_takes_rooms() {
    let world = World::new(EaSettings { restart_backoff_max: Duration::from_millis(200), ..settings() });
    let ea = world.start().await;
    let health = ea.health();
    let now = health.now();
    assert!(now.is_ready() && now.registered && now.connected, "{now:?}");
    assert_eq!((now.live_workers, now.workers), (2, 2));

    world.spawner.failing.store(usize::MAX, Ordering::SeqCst);
    world.spawner.worker(0).die.notify_one();
    until("one worker is gone", || health.now().live_workers == 1).await;
    assert!(health.now().is_ready(), "the other takes rooms");
    world.spawner.worker(1).die.notify_one();
    until("it has no worker", || !health.now().is_ready()).await;
    assert!(health.now().turning && health.now().registered);
    world.spawner.failing.store(0, Ordering::SeqCst);
    until("its workers are back", || health.now().live_workers == 2 && health.now().is_ready()).await;

    world.call("r").await;
    let draining = NodeDraining { incarnation: Incarnation(1), deadline: None };
    world.append(world.stream(), &[draining.into()]).await;
    until("it drains", || health.now().draining && !health.now().is_ready()).await;
    assert!(health.now().turning, "and serves its room");
    ea.stop().await;
}

#[tokio::test]
async fn of_two_processes_with_one_id_the_older_ends() {
    let world = World::new(settings());
    let older = world.start().await;
    let _newer = world.start().await;
    let ended = tokio::time::timeout(PATIENCE, older.ended()).await.unwrap();
    let superseded =
        EaError::Superseded { id: older.id().clone(), ours: Incarnation(1), theirs: Incarnation(2) };
    assert_eq!(ended, Some(superseded));
    assert_eq!(world.own().await.0.phase, NodePhase::Registered, "the newer one has not left");
}

#[tokio::test]
async fn an_ea_without_a_single_worker_does_not_start() {
    let world = World::new(settings());
    world.spawner.failing.store(usize::MAX, Ordering::SeqCst);
    let error = world.try_start().await.err().unwrap();
    assert!(error.to_string().contains("worker command is empty"), "{error}");
    assert_eq!(world.own().await.1, [], "and says nothing in the log");
}

#[tokio::test]
async fn a_worker_that_starts_late_joins() {
    let world = World::new(settings());
    world.spawner.failing.store(1, Ordering::SeqCst);
    let _ea = world.start().await;
    world.until_own("both workers are there", |state, _| state.generations.len() == 2).await;
}

#[tokio::test]
async fn what_a_worker_finds_out_reaches_the_rooms_ec() {
    let world = World::new(settings());
    let _ea = world.start().await;
    world.call("r").await;
    let ec = StreamId::from(&EcId::new("ec").unwrap());
    let mut heard = world.bus.subscribe(Subject::rpc(&ec).into(), None).await.unwrap();
    let notification =
        MediaNotification::TransportState { transport: transport("t"), state: TransportState::Connected };
    let said = FromWorker::Notification { room: room("r"), notification: notification.clone() };
    world.spawner.worker(0).says.send(said).await.unwrap();
    let message = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
    assert!(message.reply.is_none());
    let EcRequest::Notification { notification: got } = Payload(message.payload).decode().unwrap() else {
        panic!("something else");
    };
    assert_eq!((got.room, got.media_epoch, got.notification), (room("r"), MediaEpoch(1), notification));
}

#[tokio::test]
async fn a_request_that_does_not_read_is_answered_so() {
    let world = World::new(settings());
    let _ea = world.start().await;
    let subject = Subject::rpc(&world.stream());
    let answer = ask::<_, EaAnswer>(world.bus.as_ref(), subject, &"nonsense", RPC_TIMEOUT).await;
    assert!(matches!(answer, Err(RpcError::Malformed { .. })), "{answer:?}");
}
