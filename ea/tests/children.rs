//! An EA with real SFU workers as child processes, which this test binary itself becomes when it is called with `sfu-worker`.
//!
//! That is why it has a `main` of its own: the test harness would write to the stdout that carries the workers' frames.

#![allow(clippy::unwrap_used, reason = "a test; only its main is unusual")]

use std::{ffi::OsString, path::Path, sync::Arc, time::Duration};

use roomlog_bus::{
    bus::Bus,
    commit::{StreamId, Writer},
    env::Env,
    events::{ClientAdmitted, EaAssigned, EaPolicy, Event, Placement, RoomClosed, RoomOpened, RoomPlaced},
    ids::{ClientId, EaId, EcId, Epoch, Incarnation, MediaEpoch, RoomId, TransportId, Version, WorkerIndex},
    journal::{Journal, read_all},
    log::{Draft, Log},
    media::{MediaAnswer, MediaCommand},
    memory_bus::MemoryBus,
    memory_journal::MemoryJournal,
    rpc::{EaAnswer, EaRequest, RPC_TIMEOUT, RpcError, ask},
    subject::Subject,
    time::Timestamp,
};
use roomlog_ea::{Ea, EaSettings, start};
use roomlog_projections::node::NodeState;

const NAME: &str = "killed_and_stopped_child_processes_are_replaced_and_end_with_their_ea";
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    if has("sfu-worker") {
        if let Err(error) = roomlog_sfu::run_worker() {
            eprintln!("{error}");
            std::process::exit(1);
        }
        return;
    }
    // What `cargo test` and `cargo nextest` ask of a test binary.
    if has("--list") {
        if !has("--ignored") {
            println!("{NAME}: test");
        }
        return;
    }
    let wanted =
        arguments.iter().filter(|a| !a.starts_with('-')).all(|filter| NAME.contains(filter.as_str()));
    if !wanted || has("--ignored") {
        println!("test result: ok. 0 passed; 1 filtered out");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(story());
    println!("test {NAME} ... ok");
}

struct World {
    bus: Arc<dyn Bus>,
    journal: Arc<dyn Journal>,
    pen: Log,
    node: StreamId,
}

impl World {
    async fn ask(&self, request: EaRequest) -> Result<EaAnswer, RpcError> {
        ask(self.bus.as_ref(), Subject::rpc(&self.node), &request, RPC_TIMEOUT).await
    }

    async fn media(&self, id: &str, command: MediaCommand) -> Result<MediaAnswer, RpcError> {
        let (epoch, media_epoch) = (Epoch(1), MediaEpoch(1));
        let request = EaRequest::Media { room: room(id), epoch, media_epoch, client: None, command };
        match self.ask(request).await? {
            EaAnswer::Media { answer } => Ok(answer),
            other => panic!("{other:?}"),
        }
    }

    async fn append(&self, id: &str, events: &[Event]) {
        let stream = StreamId::from(&room(id));
        let head = self.journal.head(&stream).await.unwrap();
        self.pen.append(stream, head, Draft::default(), events).await.unwrap();
    }

    /// A committed room with a transport, on whichever worker has the turn.
    async fn call(&self, id: &str) -> Placement {
        let (epoch, media_epoch) = (Epoch(1), MediaEpoch(1));
        let opened = self.ask(EaRequest::OpenRoom { room: room(id), epoch, media_epoch }).await.unwrap();
        let EaAnswer::Opened { placement, .. } = opened else { panic!("{opened:?}") };
        let placed = RoomPlaced {
            ec: EcId::new("ec").unwrap(),
            incarnation: Incarnation(1),
            epoch,
            reason: "first-token".into(),
        };
        let assigned = EaAssigned {
            placement: placement.clone(),
            policy: EaPolicy::RoomBest,
            candidates: Vec::new(),
            reason: "first-client".into(),
            media_epoch,
        };
        let admitted = ClientAdmitted {
            client: ClientId::new("a").unwrap(),
            user: "a".into(),
            role: "user".into(),
            addr: "127.0.0.1:1".into(),
            token: "t".into(),
            token_expires: Timestamp(u64::MAX),
            resume_key_hash: String::new(),
        };
        self.append(id, &[placed.into(), RoomOpened {}.into(), assigned.into(), admitted.into()]).await;
        let transport = TransportId::new("t").unwrap();
        let answer = self.media(id, MediaCommand::CreateTransport { transport }).await.unwrap();
        let MediaAnswer::Transport { ice_candidates, .. } = answer else { panic!("{answer:?}") };
        assert!(ice_candidates.iter().all(|c| c.ip == "127.0.0.1" && c.port != 0), "{ice_candidates:?}");
        placement
    }

    async fn own(&self) -> (NodeState, Vec<Event>) {
        let mut state = NodeState::default();
        let mut events = Vec::new();
        for commit in read_all(self.journal.as_ref(), &self.node, Version(1)).await.unwrap() {
            state.apply_commit(&commit).unwrap();
            events.extend(commit.events.iter().map(|e| Event::decode(e).unwrap()));
        }
        (state, events)
    }

    async fn until_generation(&self, worker: u16, generation: u64) {
        let reached = async {
            while self.own().await.0.generations.get(&WorkerIndex(worker)) != Some(&generation) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the worker is replaced in time");
    }
}

fn room(id: &str) -> RoomId {
    RoomId::new(id).unwrap()
}

fn pid(ea: &Ea, worker: usize) -> u32 {
    ea.worker_pids()[worker].expect("the worker runs")
}

async fn signal(signal: &str, pid: u32) {
    let status =
        tokio::process::Command::new("kill").args([signal, &pid.to_string()]).status().await.unwrap();
    assert!(status.success(), "kill {signal} {pid}");
}

async fn story() {
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let bus: Arc<dyn Bus> = Arc::new(MemoryBus::new());
    let id = EaId::new("ea").unwrap();
    let writer = Writer { node: "ec.ec".parse().unwrap(), incarnation: Incarnation(1) };
    let pen = Log::new(journal.clone(), Env::system(), writer);
    let world = World { bus: bus.clone(), journal: journal.clone(), pen, node: StreamId::from(&id) };
    let command: Vec<OsString> = vec![std::env::current_exe().unwrap().into(), "sfu-worker".into()];
    let settings = EaSettings {
        workers: 2,
        ping_every: Duration::from_millis(100),
        // Generous for a loaded test machine, short for a test.
        pong_timeout: Duration::from_secs(2),
        ..EaSettings::new(id, command)
    };
    let ea = start(settings, bus, journal, Env::system()).await.unwrap();
    assert_eq!(world.own().await.0.generations.len(), 2);

    // Two rooms on two processes.
    let (first, second) = (world.call("r0").await, world.call("r1").await);
    assert_eq!((first.worker.0, second.worker.0), (0, 1));
    let (pid0, pid1) = (pid(&ea, 0), pid(&ea, 1));

    // One is killed: its own room dies with it, the log says so, another process takes its place; the other worker does not notice.
    signal("-KILL", pid0).await;
    world.until_generation(0, 2).await;
    let (_, events) = world.own().await;
    let died = events.iter().find_map(|e| if let Event::WorkerDied(e) = e { Some(e) } else { None }).unwrap();
    assert_eq!((died.worker.0, died.generation, &died.rooms[..]), (0, 1, &[room("r0")][..]));
    assert!(died.reason.contains("signal: 9"), "{}", died.reason);
    assert_eq!(pid(&ea, 1), pid1);
    let MediaAnswer::Inventory { inventory } = world.media("r1", MediaCommand::Inventory).await.unwrap()
    else {
        panic!("no inventory");
    };
    assert_eq!(inventory.transports.len(), 1, "the other worker's room is untouched");

    // The other is stopped, so that it hangs: it is killed and replaced.
    signal("-STOP", pid1).await;
    world.until_generation(1, 2).await;
    let (_, events) = world.own().await;
    assert!(
        events.iter().any(|e| matches!(e, Event::WorkerDied(e) if e.worker.0 == 1 && e.reason == "hung"))
    );
    gone(pid1).await;

    // A room that closes is gone from its worker, and everything ends with the EA.
    let third = world.call("r2").await;
    assert_eq!(third.generation, 2);
    world.append("r2", &[RoomClosed { reason: "empty".into() }.into()]).await;
    let reached = async {
        while world.ask(EaRequest::Rooms).await != Ok(EaAnswer::Rooms { rooms: Vec::new() }) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("the closed room is gone in time");
    let pids = [pid(&ea, 0), pid(&ea, 1)];
    ea.stop().await;
    for pid in pids {
        gone(pid).await;
    }
}

/// Waits until there is no such process.
async fn gone(pid: u32) {
    let reached = async {
        while Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("the process ends in time");
}
