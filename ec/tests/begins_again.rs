//! An EC that was called lost begins again, and what its start before was doing ends there and then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use roomlog_bus::{
    bus::{Bus, Headers, Message},
    commit::{Payload, StreamId, Writer},
    env::Env,
    events::{
        ClientAdmitted, EaAssigned, Event, NodeLost, NodeRegistered, Placement, RoomCreated, RoomOpened,
        RoomPlaced, WorkerStarted,
    },
    ids::{ClientId, EaId, EcId, Epoch, Incarnation, MediaEpoch, NuveId, RoomId, ServiceId, WorkerIndex},
    journal::Journal,
    log::{Draft, Log},
    memory_bus::MemoryBus,
    memory_journal::MemoryJournal,
    rpc::{EaRequest, Heartbeat},
    subject::Subject,
    time::Timestamp,
};
use roomlog_ec::{Ec, EcSettings};
use roomlog_projections::directory::LiveDirectory;
use serde_json::json;

/// Virtual: nothing waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

async fn write(journal: &Arc<dyn Journal>, stream: &StreamId, by: &StreamId, events: &[Event]) {
    let writer = Writer { node: by.clone(), incarnation: Incarnation(1) };
    let head = journal.head(stream).await.unwrap();
    let epoch = Epoch(u64::from(head.is_some()));
    let draft = Draft { epoch, ..Draft::default() };
    Log::new(journal.clone(), Env::system(), writer)
        .append(stream.clone(), head, draft, events)
        .await
        .unwrap();
}

fn registered(workers: u16) -> Event {
    NodeRegistered {
        incarnation: Incarnation(1),
        address: "127.0.0.1:1".into(),
        workers,
        version: "0".into(),
        probe: None,
        adopted: Vec::new(),
    }
    .into()
}

fn lost(incarnation: u64) -> Event {
    let (observer, reason) = ("nuve.n".into(), "silent".into());
    NodeLost { incarnation: Incarnation(incarnation), observer, reason }.into()
}

/// An EA that is heard and answers nothing.
async fn silent_ea(
    name: &str,
    bus: &Arc<dyn Bus>,
    journal: &Arc<dyn Journal>,
    asked: Arc<Mutex<Vec<Epoch>>>,
) {
    let node = StreamId::from(&EaId::new(name).unwrap());
    let worker = WorkerStarted { worker: WorkerIndex(0), generation: 1 };
    write(journal, &node, &node, &[registered(1), worker.into()]).await;
    let mut requests = bus.subscribe(Subject::rpc(&node).into(), None).await.unwrap();
    tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            if let Ok(EaRequest::OpenRoom { epoch, .. }) = Payload(message.payload).decode() {
                asked.lock().unwrap().push(epoch);
            }
        }
    });
    let bus = bus.clone();
    tokio::spawn(async move {
        loop {
            let beat = Heartbeat {
                node: node.clone(),
                incarnation: Incarnation(1),
                rooms: 0,
                clients: 0,
                draining: false,
            };
            let (subject, payload) = (Subject::heartbeat(&node), Payload::encode(&beat).0);
            bus.publish(Message { subject, reply: None, headers: Headers::new(), payload }).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_over_asks_no_ea_for_anything_more() {
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let bus: Arc<dyn Bus> = Arc::new(MemoryBus::new());
    let asked: Arc<Mutex<Vec<Epoch>>> = Arc::default();
    for name in ["a", "b"] {
        silent_ea(name, &bus, &journal, asked.clone()).await;
    }
    // A room of this EC in which somebody is, and whose EA is gone.
    let (ec, nuve) = (EcId::new("ec").unwrap(), StreamId::from(&NuveId::new("n").unwrap()));
    let (node, gone) = (StreamId::from(&ec), StreamId::from(&EaId::new("gone").unwrap()));
    write(&journal, &node, &node, &[registered(0)]).await;
    write(&journal, &gone, &gone, &[registered(1)]).await;
    write(&journal, &gone, &nuve, &[lost(1)]).await;
    let room = StreamId::from(&RoomId::new("r").unwrap());
    let created = RoomCreated {
        service: ServiceId::new("s").unwrap(),
        name: "r".into(),
        eapolicy: Default::default(),
        metadata: json!({}),
    };
    let placed = RoomPlaced {
        ec: ec.clone(),
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        reason: "first-token".into(),
    };
    let assigned = EaAssigned {
        placement: Placement {
            ea: EaId::new("gone").unwrap(),
            incarnation: Incarnation(1),
            worker: WorkerIndex(0),
            generation: 1,
        },
        policy: Default::default(),
        candidates: Vec::new(),
        reason: "first-client".into(),
        media_epoch: MediaEpoch(1),
    };
    let admitted = ClientAdmitted {
        client: ClientId::new("c").unwrap(),
        user: "Ann".into(),
        role: "user".into(),
        addr: "127.0.0.1".into(),
        token: "t".into(),
        token_expires: Timestamp(u64::MAX),
        resume_key_hash: "h".into(),
    };
    write(&journal, &room, &nuve, &[created.into()]).await;
    write(&journal, &room, &nuve, &[placed.into()]).await;
    write(&journal, &room, &node, &[RoomOpened {}.into(), assigned.into(), admitted.into()]).await;

    let directory = LiveDirectory::start(journal.clone()).await.unwrap();
    let settings = EcSettings::new(ec, "auto:/signal");
    let rpc_timeout = settings.rpc_timeout;
    let started = Ec::start(settings, bus, journal.clone(), directory, Env::system()).await.unwrap();
    let until = async |what: &str, is: &dyn Fn(&[Epoch]) -> bool| {
        let reached = async {
            while !is(&asked.lock().unwrap()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        reached.unwrap_or_else(|_| panic!("{what}: {:?}", asked.lock().unwrap()));
    };
    // The room asks an EA, which says nothing: it will wait until the request times out, and then ask the other.
    until("an EA is asked", &|asked| asked == [Epoch(2)]).await;
    write(&journal, &node, &nuve, &[lost(2)]).await;
    until("the next start asks", &|asked| asked.contains(&Epoch(3))).await;
    tokio::time::sleep(4 * rpc_timeout).await;
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.iter().filter(|epoch| **epoch == Epoch(2)).count(), 1, "{asked:?}");
    started.stop().await;
}
