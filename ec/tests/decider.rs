//! The decider under everything at once: whatever is asked, in whatever order, the log that follows keeps every rule that `verify` knows,
//! and nobody is told of what they have no part in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng, prelude::IndexedRandom, rngs::StdRng};
use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, RawEvent, StreamId, Writer},
    events::{
        Candidate, Event, NodeRegistered, Placement, RoomCreated, RoomOpened, RoomPlaced, ServiceCreated,
        WorkerStarted,
    },
    ids::{
        ClientId, ConsumerId, EaId, EcId, Epoch, Incarnation, MediaEpoch, NuveId, ProducerId, RoomId,
        ServiceId, TransportId, Version, WorkerIndex,
    },
    ortc::{ConsumerType, MediaKind, RtpCapabilities, RtpParameters},
    time::Timestamp,
};
use roomlog_ec::{
    decide::{Assignment, Command, ConsumerMade, Facts, Refusal, WantedConsumer, decide},
    notify::{Told, fold_and_tell},
    per_client::PerClient,
};
use roomlog_projections::{room::RoomState, verify::Verifier};
use serde_json::json;

/// Histories tried, each of its own seed.
const HISTORIES: u64 = 200;
/// What one client may have in them.
const PER_CLIENT: PerClient = PerClient { transports: 4, producers: 3 };
/// Commands in each.
const COMMANDS: usize = 300;

struct World {
    rng: StdRng,
    now: Timestamp,
    state: RoomState,
    verifier: Verifier<'static>,
    next_id: u64,
    /// Consumers that the worker was asked for a while ago.
    under_way: Vec<WantedConsumer>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            now: Timestamp(1_800_000_000_000_000),
            state: RoomState::default(),
            verifier: Verifier::new(None),
            next_id: 0,
            under_way: Vec::new(),
        };
        let node = |workers| NodeRegistered {
            incarnation: Incarnation(1),
            address: "x".into(),
            workers,
            version: "0".into(),
            probe: None,
            adopted: Vec::new(),
        };
        world.write_other(&nuve(), &nuve(), None, vec![node(0).into()]);
        world.write_other(&ec(), &ec(), None, vec![node(0).into()]);
        let ea = StreamId::from(&EaId::new("ea").unwrap());
        let workers = (0..2).map(|w| WorkerStarted { worker: WorkerIndex(w), generation: 1 }.into());
        world.write_other(&ea, &ea, None, std::iter::once(Event::from(node(2))).chain(workers).collect());
        let service = ServiceCreated {
            name: "s".into(),
            secret_key_hash: "a".into(),
            publishable_key_hash: "b".into(),
            publishable_creates_rooms: true,
        };
        world.write_other(
            &StreamId::from(&ServiceId::new("s").unwrap()),
            &nuve(),
            None,
            vec![service.into()],
        );
        let created = RoomCreated {
            service: ServiceId::new("s").unwrap(),
            name: "r".into(),
            eapolicy: Default::default(),
            metadata: json!({}),
        };
        let placed = RoomPlaced {
            ec: EcId::new("ec").unwrap(),
            incarnation: Incarnation(1),
            epoch: Epoch(1),
            reason: "first-token".into(),
        };
        let first = world.commit_of(&room(), &nuve(), None, Epoch(0), vec![created.into()]);
        world.take(&first);
        let second = world.commit_of(&room(), &nuve(), world.state.head, Epoch(1), vec![placed.into()]);
        world.take(&second);
        world
    }

    fn fresh(&mut self, prefix: &str) -> String {
        self.next_id += 1;
        format!("{prefix}{}", self.next_id)
    }

    fn commit_of(
        &mut self,
        stream: &StreamId,
        by: &StreamId,
        head: Option<Head>,
        epoch: Epoch,
        events: Vec<Event>,
    ) -> Commit {
        Commit {
            id: CommitId::new(self.now, &mut self.rng),
            prev: head.map(|h| h.id),
            stream: stream.clone(),
            version: head.map_or(Version(1), |h| h.version.next()),
            time: self.now,
            writer: Writer { node: by.clone(), incarnation: Incarnation(1) },
            epoch,
            cause: Cause::of("test"),
            command: Payload::default(),
            facts: Payload::default(),
            events: events.iter().map(Event::encode).collect(),
            more: Default::default(),
        }
    }

    fn write_other(&mut self, stream: &StreamId, by: &StreamId, head: Option<Head>, events: Vec<Event>) {
        let commit = self.commit_of(stream, by, head, Epoch(0), events);
        self.verifier.commit(&commit);
    }

    fn take(&mut self, commit: &Commit) -> Vec<Told> {
        self.verifier.commit(commit);
        let mut beside = self.state.clone();
        let told = fold_and_tell(&mut self.state, commit).unwrap();
        beside.apply_commit(commit).unwrap();
        assert_eq!(self.state, beside, "telling and folding must fold the same");
        told
    }

    fn facts(&mut self) -> Facts {
        Facts {
            now: self.now,
            ec: EcId::new("ec").unwrap(),
            incarnation: Incarnation(1),
            resume_ms: 30_000,
            max_clients: 5,
            per_client: PER_CLIENT,
            assignment: None,
            consumer_type: Some(ConsumerType::Simple),
            consumers: Vec::new(),
        }
    }

    /// Decides and folds.
    fn done(&mut self, command: &Command, facts: &Facts) -> Result<(), Refusal> {
        let events = decide(&self.state, command, facts)?;
        let commit = self.commit_of(&room(), &ec(), self.state.head, self.state.epoch(), events);
        self.take(&commit);
        Ok(())
    }

    fn some_client(&mut self) -> ClientId {
        let mut pool: Vec<ClientId> = self.state.clients.keys().cloned().collect();
        pool.push(ClientId::new("stranger").unwrap());
        pool.choose(&mut self.rng).unwrap().clone()
    }

    fn some<T: Clone>(&mut self, of: Vec<T>, stranger: T) -> T {
        if self.rng.random_ratio(1, 10) {
            stranger
        } else {
            of.choose(&mut self.rng).cloned().unwrap_or(stranger)
        }
    }

    /// Some command with its facts, often a senseless one.
    fn ask(&mut self) -> (Command, Facts) {
        let mut facts = self.facts();
        let client = self.some_client();
        let stranger = TransportId::new("nowhere").unwrap();
        let producer_pool: Vec<ProducerId> = self.state.producers.keys().cloned().collect();
        let consumer_pool: Vec<ConsumerId> = self.state.consumers.keys().cloned().collect();
        let transport_pool: Vec<TransportId> = self.state.transports.keys().cloned().collect();
        let command = match self.rng.random_range(0..20) {
            0..=2 => {
                let (id, token) = (self.fresh("c"), self.fresh("t"));
                facts.assignment = Some(self.assignment());
                let used = self.state.spent_tokens.keys().next().cloned();
                let token = if self.rng.random_ratio(1, 10) { used.unwrap_or(token) } else { token };
                Command::Admit {
                    rights: None,
                    client: ClientId::new(id).unwrap(),
                    user: "u".into(),
                    role: if self.rng.random_ratio(1, 5) { "viewer" } else { "presenter" }.into(),
                    addr: "127.0.0.1".into(),
                    token,
                    token_expires: self.now.plus_millis(60_000),
                    resume_key_hash: "h".into(),
                }
            }
            3 => Command::Reattach { client },
            4 => Command::Resume { client },
            5 => Command::Disconnect { client, reason: "broken".into() },
            6 => Command::Leave { client, reason: "left".into() },
            7 => Command::Expire { clients: self.state.clients.keys().cloned().collect() },
            8 => Command::Attach { client },
            9 | 10 => Command::Join {
                client,
                display_name: "n".into(),
                device: json!({}),
                rtp_capabilities: self.rng.random_ratio(4, 5).then(RtpCapabilities::default),
            },
            11 | 12 => {
                let producing = self.rng.random();
                let transport = TransportId::new(self.fresh("tr")).unwrap();
                Command::CreateTransport { client, transport, producing, consuming: !producing }
            }
            13 | 14 => Command::Produce {
                client,
                producer: ProducerId::new(self.fresh("p")).unwrap(),
                transport: self.some(transport_pool, stranger),
                kind: MediaKind::Video,
                rtp_parameters: RtpParameters::default(),
                app_data: json!({}),
                paused: false,
            },
            15 => match self.rng.random_range(0..3) {
                0 => {
                    let producer = self.some(producer_pool, ProducerId::new("nothing").unwrap());
                    Command::PauseProducer { client, producer, paused: self.rng.random() }
                }
                1 => Command::CloseProducer {
                    client,
                    producer: self.some(producer_pool, ProducerId::new("nothing").unwrap()),
                },
                _ => Command::CloseTransport {
                    transport: self.some(transport_pool, stranger),
                    reason: "failed".into(),
                },
            },
            16 | 17 => {
                let mut wanted: Vec<WantedConsumer> = Vec::new();
                for (client, transport, producer) in self.state.missing_consumers() {
                    wanted.push(WantedConsumer {
                        client,
                        transport,
                        producer,
                        consumer: ConsumerId::new(self.fresh("k")).unwrap(),
                    });
                }
                // The worker takes its time: meanwhile others came, left and closed, or were answered the same.
                if self.rng.random_ratio(1, 2) {
                    wanted = std::mem::replace(&mut self.under_way, wanted);
                }
                facts.consumers = wanted.iter().map(|_| self.outcome()).collect();
                Command::AddConsumers { wanted }
            }
            18 => {
                let consumer = self.some(consumer_pool, ConsumerId::new("nothing").unwrap());
                match self.rng.random_range(0..3) {
                    0 => Command::ResumeConsumer { client, consumer },
                    1 => Command::PauseConsumer { client, consumer },
                    _ => Command::RefuseConsumer { client, consumer, reason: "no".into() },
                }
            }
            _ => {
                if self.rng.random_ratio(1, 4) {
                    Command::Compact
                } else if self.rng.random_ratio(1, 2) {
                    facts.assignment = Some(self.assignment());
                    Command::MoveMedia { reason: "worker-died".into() }
                } else {
                    Command::Rename { client, display_name: self.fresh("name") }
                }
            }
        };
        (command, facts)
    }

    fn outcome(&mut self) -> Result<ConsumerMade, String> {
        if self.rng.random_ratio(1, 8) {
            return Err("cannot".into());
        }
        Ok(ConsumerMade {
            kind: MediaKind::Video,
            rtp_parameters: RtpParameters::default(),
            consumer_type: ConsumerType::Simple,
        })
    }

    fn assignment(&mut self) -> Assignment {
        let ea = EaId::new("ea").unwrap();
        let turn = self.state.media_epoch.0 % 2;
        Assignment {
            placement: Placement {
                ea: ea.clone(),
                incarnation: Incarnation(1),
                worker: WorkerIndex(turn as u16),
                generation: 1,
            },
            media_epoch: MediaEpoch(self.state.media_epoch.0 + 1),
            candidates: vec![Candidate { ea, rooms: Some(0), rtt_ms: None, excluded: None }],
        }
    }
}

fn room() -> StreamId {
    StreamId::from(&RoomId::new("room").unwrap())
}

fn ec() -> StreamId {
    StreamId::from(&EcId::new("ec").unwrap())
}

fn nuve() -> StreamId {
    StreamId::from(&NuveId::new("nuve").unwrap())
}

#[test]
fn what_a_newer_version_wrote_is_counted_and_told_to_nobody() {
    let mut world = World::new(1);
    let newer = RawEvent::new("RoomPainted", 1, Payload::encode(&json!({ "colour": "red" })));
    let events = vec![Event::Unknown(newer), RoomOpened {}.into()];
    let before = world.state.version();
    let commit = world.commit_of(&room(), &ec(), world.state.head, Epoch(1), events);
    assert_eq!(world.take(&commit), []);
    assert!(world.state.open);
    assert_eq!(world.state.version(), Version(before.0 + 2));
}

#[test]
fn whatever_is_asked_in_whatever_order_the_log_keeps_every_rule() {
    let (mut commits, mut refused) = (0, 0);
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        for _ in 0..COMMANDS {
            world.now = world.now.plus_millis(world.rng.random_range(0..4_000));
            let (command, facts) = world.ask();
            let before = world.state.clone();
            match decide(&world.state, &command, &facts) {
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    assert_eq!(
                        decide(&world.state, &command, &facts).as_ref(),
                        Ok(&events),
                        "seed {seed}: deciding again differs"
                    );
                    let commit =
                        world.commit_of(&room(), &ec(), world.state.head, world.state.epoch(), events);
                    let told = world.take(&commit);
                    check_state(seed, &world.state);
                    check_told(seed, &before, &told);
                    commits += 1;
                }
                Err(_) => {
                    refused += 1;
                    assert_eq!(world.state, before);
                }
            }
        }
        let verdict = world.verifier.finish();
        let errors: Vec<_> =
            verdict.findings.iter().filter(|f| f.rule != "ghost" && f.rule != "round-robin").collect();
        assert!(errors.is_empty(), "seed {seed}: {errors:#?}");
    }
    println!("{commits} commits, {refused} refusals");
    assert!(
        commits > 10_000 && refused > 1_000,
        "the histories are too tame: {commits} commits, {refused} refusals"
    );
}

/// Nothing hangs on what is not there, and an empty room is a closed one.
fn check_state(seed: u64, state: &RoomState) {
    for transport in state.transports.values() {
        assert!(state.clients.contains_key(&transport.client), "seed {seed}: a transport of nobody");
    }
    for producer in state.producers.values() {
        assert!(
            state.transports.contains_key(&producer.transport),
            "seed {seed}: a producer on no transport"
        );
    }
    let mut pairs = BTreeSet::new();
    for consumer in state.consumers.values() {
        assert!(
            state.transports.contains_key(&consumer.transport),
            "seed {seed}: a consumer on no transport"
        );
        let producer = state
            .producers
            .get(&consumer.producer)
            .unwrap_or_else(|| panic!("seed {seed}: a consumer of nothing"));
        assert_ne!(producer.client, consumer.client, "seed {seed}: somebody is sent their own stream");
        assert!(
            pairs.insert((&consumer.client, &consumer.producer)),
            "seed {seed}: a stream is sent twice to one client"
        );
    }
    for client in state.clients.keys() {
        let transports = state.transports.values().filter(|t| &t.client == client).count();
        let producers = state.producers.values().filter(|p| &p.client == client).count();
        assert!(
            transports <= PER_CLIENT.transports && producers <= PER_CLIENT.producers,
            "seed {seed}: {client} has {transports} transports and {producers} producers"
        );
    }
    assert_eq!(state.open, !state.clients.is_empty(), "seed {seed}: open and clients disagree");
    assert_eq!(
        state.placements.len(),
        usize::from(state.open),
        "seed {seed}: ROOM-BEST is one worker while open, none when closed"
    );
}

/// Only those who are in, and have joined where it is about others, are told anything.
fn check_told(seed: u64, before: &RoomState, told: &[Told]) {
    for told in told {
        if let Told::Notification { client, method, data } = told {
            assert!(before.clients.contains_key(client), "seed {seed}: {method} to somebody who is not in");
            assert!(
                data["v"].as_u64().is_some_and(|v| v > before.version().0),
                "seed {seed}: {method} without its version"
            );
            if *method == "newPeer" || *method == "peerClosed" {
                assert!(before.clients[client].joined.is_some(), "seed {seed}: {method} before joining");
                assert_ne!(
                    data["peerId"].as_str().or(data["id"].as_str()),
                    Some(client.as_str()),
                    "seed {seed}: told of oneself"
                );
            }
        }
    }
}

#[test]
fn a_client_has_no_more_than_it_may_and_more_once_it_has_less() {
    let mut world = World::new(1);
    let (ann, bob) = (ClientId::new("ann").unwrap(), ClientId::new("bob").unwrap());
    let transport = |i: usize| TransportId::new(format!("t{i}")).unwrap();
    let producer = |i: usize| ProducerId::new(format!("p{i}")).unwrap();
    for client in [&ann, &bob] {
        let mut facts = world.facts();
        facts.assignment = Some(world.assignment());
        let admit = Command::Admit {
            rights: None,
            client: client.clone(),
            user: "u".into(),
            role: "presenter".into(),
            addr: "a".into(),
            token: client.to_string(),
            token_expires: world.now.plus_millis(60_000),
            resume_key_hash: "h".into(),
        };
        let join = Command::Join {
            client: client.clone(),
            display_name: "n".into(),
            device: json!({}),
            rtp_capabilities: None,
        };
        world.done(&admit, &facts).unwrap();
        world.done(&join, &facts).unwrap();
    }
    let facts = world.facts();
    let make = |client: &ClientId, i| Command::CreateTransport {
        client: client.clone(),
        transport: transport(i),
        producing: true,
        consuming: false,
    };
    for i in 0..PER_CLIENT.transports {
        world.done(&make(&ann, i), &facts).unwrap();
    }
    assert_eq!(
        world.done(&make(&ann, 100), &facts),
        Err(Refusal::TooMany("transports", PER_CLIENT.transports))
    );
    world.done(&make(&bob, 101), &facts).unwrap();
    world
        .done(&Command::CloseTransport { transport: transport(0), reason: "failed".into() }, &facts)
        .unwrap();
    world.done(&make(&ann, 102), &facts).unwrap();

    let produce = |client: &ClientId, t, i| Command::Produce {
        client: client.clone(),
        producer: producer(i),
        transport: transport(t),
        kind: MediaKind::Video,
        rtp_parameters: RtpParameters::default(),
        app_data: json!({}),
        paused: false,
    };
    // Over all its transports.
    for i in 0..PER_CLIENT.producers {
        world.done(&produce(&ann, 1 + i % 2, i), &facts).unwrap();
    }
    assert_eq!(
        world.done(&produce(&ann, 3, 100), &facts),
        Err(Refusal::TooMany("producers", PER_CLIENT.producers))
    );
    world.done(&produce(&bob, 101, 101), &facts).unwrap();
    world.done(&Command::CloseProducer { client: ann.clone(), producer: producer(0) }, &facts).unwrap();
    world.done(&produce(&ann, 3, 102), &facts).unwrap();
    // What was decided before there were limits is decided so again.
    let before = Facts { per_client: PerClient::none(), ..facts };
    world.done(&produce(&ann, 3, 103), &before).unwrap();
}

#[test]
fn a_token_admits_one_client_and_only_the_owner_decides() {
    let mut world = World::new(1);
    let mut facts = world.facts();
    facts.assignment = Some(world.assignment());
    let admit = |client: &str, token: &str, expires| Command::Admit {
        rights: None,
        client: ClientId::new(client).unwrap(),
        user: "u".into(),
        role: "presenter".into(),
        addr: "a".into(),
        token: token.into(),
        token_expires: expires,
        resume_key_hash: "h".into(),
    };
    let later = world.now.plus_millis(60_000);
    assert_eq!(
        decide(&world.state, &admit("a", "t0", world.now), &facts),
        Err(Refusal::TokenEnded),
        "an ended token"
    );
    let events = decide(&world.state, &admit("a", "t1", later), &facts).unwrap();
    let commit = world.commit_of(&room(), &ec(), world.state.head, Epoch(1), events);
    world.take(&commit);
    assert_eq!(decide(&world.state, &admit("b", "t1", later), &facts), Err(Refusal::UsedToken));
    assert!(matches!(decide(&world.state, &admit("a", "t2", later), &facts), Err(Refusal::ClientIdTaken(_))));
    let other = Facts { ec: EcId::new("other").unwrap(), ..facts.clone() };
    assert_eq!(decide(&world.state, &admit("b", "t3", later), &other), Err(Refusal::WrongHost));
    let earlier = Facts { incarnation: Incarnation(0), ..facts.clone() };
    assert_eq!(
        decide(&world.state, &admit("b", "t3", later), &earlier),
        Err(Refusal::WrongHost),
        "a start that was succeeded"
    );
    let next = Facts { incarnation: Incarnation(2), ..facts };
    let placed = decide(&world.state, &Command::Place { reason: "ec-restarted".into() }, &next).unwrap();
    assert!(matches!(&placed[0], Event::RoomPlaced(p) if p.epoch == Epoch(2)));
}

#[test]
fn a_closed_room_is_compacted_once_to_the_state_it_has() {
    let mut world = World::new(2);
    let mut facts = world.facts();
    facts.assignment = Some(world.assignment());
    let client = ClientId::new("a").unwrap();
    let admit = Command::Admit {
        rights: None,
        client: client.clone(),
        user: "u".into(),
        role: "presenter".into(),
        addr: "a".into(),
        token: "t".into(),
        token_expires: world.now.plus_millis(60_000),
        resume_key_hash: "h".into(),
    };
    for command in [admit, Command::Compact, Command::Leave { client, reason: "left".into() }] {
        let events = decide(&world.state, &command, &facts).unwrap();
        assert_eq!(
            events.is_empty(),
            command == Command::Compact,
            "nothing is compacted while somebody is in"
        );
        if !events.is_empty() {
            let commit = world.commit_of(&room(), &ec(), world.state.head, Epoch(1), events);
            world.take(&commit);
        }
    }
    let before = world.state.clone();
    let events = decide(&before, &Command::Compact, &facts).unwrap();
    let commit = world.commit_of(&room(), &ec(), before.head, Epoch(1), events);
    world.take(&commit);
    let mut fresh = RoomState::default();
    fresh.apply_commit(&commit).unwrap();
    assert_eq!(fresh, world.state, "the snapshot alone gives what the whole stream gives");
    assert_eq!(fresh, RoomState { head: fresh.head, compacted: fresh.version(), ..before });
    assert!(fresh.spent_tokens.contains_key("t"), "a spent token stays spent");
    assert_eq!(decide(&world.state, &Command::Compact, &facts), Ok(Vec::new()));
}
