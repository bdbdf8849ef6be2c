//! Hand-made logs: a tape to which commits are written as the nodes of a cluster would, with a clock that ticks a second a commit.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, StreamId, Writer},
    events::*,
    ids::*,
    ortc::{ConsumerType, MediaKind, RtpCapabilities, RtpParameters},
    time::Timestamp,
};
use serde_json::json;

/// 2026-11-22T15:00:00Z.
pub const BEGIN: Timestamp = Timestamp(1_795_359_600_000_000);

pub fn stream(text: &str) -> StreamId {
    text.parse().unwrap()
}

macro_rules! ids {
    ($($name:ident -> $type:ident),*) => { $(pub fn $name(text: &str) -> $type { $type::new(text).unwrap() })* };
}
ids!(client -> ClientId, ea -> EaId, ec -> EcId, room -> RoomId, transport -> TransportId, producer -> ProducerId, consumer -> ConsumerId, service -> ServiceId);

pub struct Tape {
    pub commits: Vec<Commit>,
    pub now: Timestamp,
    written: u64,
    heads: BTreeMap<StreamId, Head>,
}

impl Default for Tape {
    fn default() -> Self {
        Self { commits: Vec::new(), now: BEGIN, written: 0, heads: BTreeMap::new() }
    }
}

impl Tape {
    /// Appends a commit a second after the last.
    pub fn write(&mut self, to: &str, by: (&str, u64), epoch: u64, events: Vec<Event>) -> &mut Commit {
        self.now = self.now.plus_millis(1_000);
        self.written += 1;
        let mut id = [0; 16];
        id[8..].copy_from_slice(&self.written.to_be_bytes());
        let to = stream(to);
        let head = self.heads.get(&to).copied();
        let commit = Commit {
            id: CommitId::from_bytes(id),
            prev: head.map(|h| h.id),
            stream: to.clone(),
            version: head.map_or(Version(1), |h| h.version.next()),
            time: self.now,
            writer: Writer { node: stream(by.0), incarnation: Incarnation(by.1) },
            epoch: Epoch(epoch),
            cause: Cause::of("request"),
            command: Payload::default(),
            facts: Payload::default(),
            events: events.iter().map(Event::encode).collect(),
            more: Default::default(),
        };
        self.heads.insert(to, commit.head());
        self.commits.push(commit);
        self.commits.last_mut().unwrap()
    }

    /// EC `e`, in its first start, writes into room `r` under epoch 1.
    pub fn ec(&mut self, events: Vec<Event>) -> &mut Commit {
        self.write("room.r", ("ec.e", 1), 1, events)
    }

    /// A room opened by its first client, on this worker of EA `a`.
    pub fn open_room(&mut self, id: &str, worker: u16) {
        let name = format!("room.{id}");
        self.write(&name, ("nuve.n", 1), 0, vec![created(id), placed("e", 1, 1)]);
        self.write(
            &name,
            ("ec.e", 1),
            1,
            vec![
                RoomOpened {}.into(),
                assigned("a", worker, 1, 1),
                admitted(&format!("{id}-first"), &format!("token-{id}")),
                bound(&format!("{id}-first"), "a"),
            ],
        );
    }
}

pub fn created(name: &str) -> Event {
    of_policy(name, EaPolicy::RoomBest)
}

pub fn of_policy(name: &str, eapolicy: EaPolicy) -> Event {
    RoomCreated { service: service("demo"), name: name.into(), eapolicy, metadata: json!({}) }.into()
}

pub fn placed(to: &str, incarnation: u64, epoch: u64) -> Event {
    RoomPlaced {
        ec: ec(to),
        incarnation: Incarnation(incarnation),
        epoch: Epoch(epoch),
        reason: "first-token".into(),
    }
    .into()
}

pub fn place(on: &str, worker: u16, generation: u64) -> Placement {
    Placement { ea: ea(on), incarnation: Incarnation(1), worker: WorkerIndex(worker), generation }
}

pub fn assigned(to: &str, worker: u16, generation: u64, media_epoch: u64) -> Event {
    EaAssigned {
        placement: place(to, worker, generation),
        policy: EaPolicy::RoomBest,
        candidates: vec![
            Candidate { ea: ea("a"), rooms: Some(0), rtt_ms: None, excluded: None },
            Candidate { ea: ea("b"), rooms: Some(2), rtt_ms: None, excluded: None },
            Candidate { ea: ea("c"), rooms: None, rtt_ms: None, excluded: Some("suspected".into()) },
        ],
        reason: "first-client".into(),
        media_epoch: MediaEpoch(media_epoch),
    }
    .into()
}

pub fn released(from: &str) -> Event {
    EaReleased { ea: ea(from), reason: "empty".into() }.into()
}

pub fn moved(from: Option<Placement>, to: Option<Placement>, media_epoch: u64) -> Event {
    let reason = "worker-died".into();
    MediaMoved { from, to, reason, media_epoch: MediaEpoch(media_epoch), candidates: Vec::new() }.into()
}

pub fn closed() -> Event {
    RoomClosed { reason: "empty".into() }.into()
}

pub fn deleted() -> Event {
    RoomDeleted { reason: "by the application".into() }.into()
}

pub fn admitted(who: &str, token: &str) -> Event {
    ClientAdmitted {
        client: client(who),
        user: who.into(),
        role: "presenter".into(),
        addr: "203.0.113.7".into(),
        token: token.into(),
        token_expires: BEGIN.plus_millis(3_600_000),
        resume_key_hash: "00".into(),
    }
    .into()
}

pub fn bound(who: &str, to: &str) -> Event {
    ClientBound { client: client(who), ea: ea(to), candidates: Vec::new() }.into()
}

pub fn attached(who: &str, to: &str) -> Event {
    ClientAttached { client: client(who), ea: ea(to) }.into()
}

pub fn joined(who: &str, name: &str) -> Event {
    ClientJoined {
        client: client(who),
        display_name: name.into(),
        device: json!({"name": "Firefox"}),
        rtp_capabilities: Some(RtpCapabilities::default()),
    }
    .into()
}

pub fn disconnected(who: &str, until: Timestamp) -> Event {
    ClientDisconnected { client: client(who), reason: "socket broken".into(), resume_until: until }.into()
}

pub fn resumed(who: &str, how: &str) -> Event {
    ClientResumed { client: client(who), how: how.into() }.into()
}

pub fn left(who: &str) -> Event {
    ClientLeft { client: client(who), reason: "left".into() }.into()
}

pub fn sending(who: &str, id: &str) -> Event {
    TransportCreated { client: client(who), transport: transport(id), producing: true, consuming: false }
        .into()
}

pub fn receiving(who: &str, id: &str) -> Event {
    TransportCreated { client: client(who), transport: transport(id), producing: false, consuming: true }
        .into()
}

pub fn connected(id: &str) -> Event {
    TransportConnected { transport: transport(id) }.into()
}

pub fn produced(who: &str, id: &str, on: &str) -> Event {
    ProducerCreated {
        client: client(who),
        producer: producer(id),
        transport: transport(on),
        kind: MediaKind::Video,
        rtp_parameters: RtpParameters::default(),
        consumer_type: ConsumerType::Simple,
        app_data: json!({}),
        paused: false,
    }
    .into()
}

pub fn consumed(who: &str, id: &str, on: &str, of: &str) -> Event {
    ConsumerCreated {
        client: client(who),
        consumer: consumer(id),
        transport: transport(on),
        producer: producer(of),
        kind: MediaKind::Video,
        rtp_parameters: RtpParameters::default(),
        consumer_type: ConsumerType::Simple,
    }
    .into()
}

pub fn registered(incarnation: u64) -> Event {
    NodeRegistered {
        incarnation: Incarnation(incarnation),
        address: "ws://127.0.0.1:1".into(),
        workers: 0,
        version: "0.1.0".into(),
        probe: None,
        adopted: Vec::new(),
    }
    .into()
}

/// An EA starts again and takes these workers over.
pub fn adopting(incarnation: u64, workers: &[(u16, u64)]) -> Event {
    let Event::NodeRegistered(registered) = registered(incarnation) else { unreachable!() };
    let adopted = workers
        .iter()
        .map(|&(worker, generation)| AdoptedWorker { worker: WorkerIndex(worker), generation })
        .collect();
    NodeRegistered { adopted, ..registered }.into()
}

pub fn lost(incarnation: u64) -> Event {
    NodeLost { incarnation: Incarnation(incarnation), observer: "nuve.n".into(), reason: "silent".into() }
        .into()
}

pub fn worker_started(worker: u16, generation: u64) -> Event {
    WorkerStarted { worker: WorkerIndex(worker), generation }.into()
}

pub fn worker_died(worker: u16, generation: u64) -> Event {
    WorkerDied { worker: WorkerIndex(worker), generation, reason: "signal 9".into(), rooms: vec![room("r")] }
        .into()
}

/// A cluster of one NUVE, one EC and an EA with two workers, and room `r` with Ann, who sends, and Bob, who receives.
pub fn call() -> Tape {
    let mut t = Tape::default();
    t.write("nuve.n", ("nuve.n", 1), 0, vec![registered(1)]);
    let service = ServiceCreated {
        name: "demo".into(),
        secret_key_hash: "1".into(),
        publishable_key_hash: "2".into(),
        publishable_creates_rooms: true,
    };
    t.write("service.demo", ("nuve.n", 1), 0, vec![service.into()]);
    t.write("ec.e", ("ec.e", 1), 0, vec![registered(1)]);
    t.write("ea.a", ("ea.a", 1), 0, vec![registered(1), worker_started(0, 1), worker_started(1, 1)]);
    t.write("room.r", ("nuve.n", 1), 0, vec![created("standup"), placed("e", 1, 1)]);
    t.ec(vec![RoomOpened {}.into(), assigned("a", 0, 1, 1), admitted("ann", "t1"), bound("ann", "a")]);
    t.ec(vec![attached("ann", "a")]);
    t.ec(vec![joined("ann", "Ann")]);
    t.ec(vec![sending("ann", "ann-up")]);
    t.ec(vec![connected("ann-up")]);
    t.ec(vec![produced("ann", "camera", "ann-up")]);
    t.ec(vec![admitted("bob", "t2"), bound("bob", "a")]);
    t.ec(vec![joined("bob", "Bob")]);
    t.ec(vec![receiving("bob", "bob-down")]);
    t.ec(vec![consumed("bob", "view", "bob-down", "camera")]);
    t.ec(vec![ConsumerResumed { consumer: consumer("view") }.into()]);
    t
}
