//! Frames of a client: what it asks, what follows in the room, and what its neighbours are told.

use rand::{SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Payload, StreamId, Writer},
    events::{
        Candidate, Event, NodeRegistered, Placement, RoomCreated, RoomPlaced, ServiceCreated, WorkerStarted,
    },
    ids::{
        ClientId, ConsumerId, EaId, EcId, Epoch, Incarnation, MediaEpoch, NuveId, RoomId, ServiceId, Version,
        WorkerIndex,
    },
    media::MediaCommand,
    ortc::{ConsumerType, RtpParameters},
    time::Timestamp,
};
use roomlog_ec::{
    decide::{Assignment, Command, ConsumerMade, Facts, WantedConsumer, decide},
    notify::{Told, fold_and_tell},
    per_client::PerClient,
    protoo::{self, Incoming},
    requests::{Answer, plan},
};
use roomlog_projections::{room::RoomState, verify::Verifier};
use serde_json::json;

/// Frames of one input.
const MAX_FRAMES: usize = 48;
/// Where events of the seeds lie, microseconds.
pub const NOW: u64 = 1_800_000_000_000_000;

struct World {
    rng: StdRng,
    now: Timestamp,
    state: RoomState,
    verifier: Verifier<'static>,
    ids: u64,
}

fn id<T>(made: Result<T, roomlog_bus::ids::InvalidId>) -> T {
    made.expect("a good id")
}

fn ec() -> StreamId {
    StreamId::from(&id(EcId::new("ec")))
}

impl World {
    /// A room with two clients that have not joined.
    fn new() -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(1),
            now: Timestamp(NOW),
            state: RoomState::default(),
            verifier: Verifier::new(None),
            ids: 0,
        };
        let node = |workers| NodeRegistered {
            incarnation: Incarnation(1),
            address: "x".into(),
            workers,
            version: "0".into(),
            probe: None,
            adopted: Vec::new(),
        };
        let nuve = StreamId::from(&id(NuveId::new("nuve")));
        let ea = StreamId::from(&id(EaId::new("ea")));
        let service = ServiceCreated {
            name: "s".into(),
            secret_key_hash: "a".into(),
            publishable_key_hash: "b".into(),
            publishable_creates_rooms: true,
        };
        let started = WorkerStarted { worker: WorkerIndex(0), generation: 1 };
        for (stream, by, events) in [
            (nuve.clone(), &nuve, vec![Event::from(node(0))]),
            (ec(), &ec(), vec![node(0).into()]),
            (ea.clone(), &ea, vec![node(1).into(), started.into()]),
            (StreamId::from(&id(ServiceId::new("s"))), &nuve, vec![service.into()]),
        ] {
            let commit = world.commit(stream, by, None, Epoch(0), events);
            world.verifier.commit(&commit);
        }
        let created = RoomCreated {
            service: id(ServiceId::new("s")),
            name: "r".into(),
            eapolicy: Default::default(),
            metadata: json!({}),
        };
        let placed = RoomPlaced {
            ec: id(EcId::new("ec")),
            incarnation: Incarnation(1),
            epoch: Epoch(1),
            reason: "first-token".into(),
        };
        world.take(&nuve, Epoch(0), vec![created.into()]);
        world.take(&nuve, Epoch(1), vec![placed.into()]);
        for client in ["a", "b"] {
            let mut facts = world.facts();
            facts.assignment = Some(Assignment {
                placement: Placement {
                    ea: id(EaId::new("ea")),
                    incarnation: Incarnation(1),
                    worker: WorkerIndex(0),
                    generation: 1,
                },
                media_epoch: MediaEpoch(1),
                candidates: vec![Candidate {
                    ea: id(EaId::new("ea")),
                    rooms: Some(0),
                    rtt_ms: None,
                    excluded: None,
                }],
            });
            let admit = Command::Admit {
                rights: None,
                client: id(ClientId::new(client)),
                user: client.to_uppercase(),
                role: "presenter".into(),
                addr: "127.0.0.1".into(),
                token: format!("token-{client}"),
                token_expires: world.now.plus_millis(60_000),
                resume_key_hash: "h".into(),
            };
            world.decided(&admit, &facts);
        }
        world
    }

    fn facts(&self) -> Facts {
        Facts {
            now: self.now,
            ec: id(EcId::new("ec")),
            incarnation: Incarnation(1),
            resume_ms: 30_000,
            max_clients: 5,
            per_client: PerClient::none(),
            assignment: None,
            consumer_type: Some(ConsumerType::Simple),
            consumers: Vec::new(),
        }
    }

    fn commit(
        &mut self,
        stream: StreamId,
        by: &StreamId,
        head: Option<roomlog_bus::commit::Head>,
        epoch: Epoch,
        events: Vec<Event>,
    ) -> Commit {
        Commit {
            id: CommitId::new(self.now, &mut self.rng),
            prev: head.map(|h| h.id),
            stream,
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

    fn take(&mut self, by: &StreamId, epoch: Epoch, events: Vec<Event>) {
        let room = StreamId::from(&id(RoomId::new("room")));
        let commit = self.commit(room, by, self.state.head, epoch, events);
        let read = Commit::decode(&commit.encode()).expect("what is written reads");
        assert_eq!(read, commit);
        self.verifier.commit(&commit);
        let before = self.state.clone();
        let mut beside = self.state.clone();
        let told = fold_and_tell(&mut self.state, &commit).expect("it follows");
        beside.apply_commit(&read).expect("it follows");
        assert_eq!(self.state, beside, "telling and folding must fold the same");
        for told in told {
            if let Told::Notification { client, data, method } = told {
                assert!(before.clients.contains_key(&client), "{method} to nobody");
                assert!(data["v"].as_u64().is_some_and(|v| v > before.version().0));
            }
        }
    }

    fn decided(&mut self, command: &Command, facts: &Facts) {
        let kept: Command = Payload::encode(command).decode().expect("what is written reads");
        assert_eq!(&kept, command);
        let kept: Facts = Payload::encode(facts).decode().expect("what is written reads");
        assert_eq!(&kept, facts);
        if let Ok(events) = decide(&self.state, command, facts)
            && !events.is_empty()
        {
            let epoch = self.state.epoch();
            self.take(&ec(), epoch, events);
        }
    }

    /// As the room's task does after every commit.
    fn add_consumers(&mut self) {
        let missing = self.state.missing_consumers();
        if missing.is_empty() {
            return;
        }
        let mut facts = self.facts();
        let wanted: Vec<_> = missing
            .into_iter()
            .map(|(client, transport, producer)| {
                self.ids += 1;
                let kind = self.state.producers[&producer].kind;
                facts.consumers.push(Ok(ConsumerMade {
                    kind,
                    rtp_parameters: RtpParameters::default(),
                    consumer_type: ConsumerType::Simple,
                }));
                WantedConsumer {
                    client,
                    transport,
                    producer,
                    consumer: id(ConsumerId::new(format!("k{}", self.ids))),
                }
            })
            .collect();
        self.decided(&Command::AddConsumers { wanted }, &facts);
        assert!(self.state.missing_consumers().is_empty(), "consumers would be asked for without end");
    }
}

/// A frame a line. The first byte of each says whose it is, by its lowest bit.
pub fn run(data: &[u8]) {
    let mut world = World::new();
    for line in data.split(|b| *b == b'\n').take(MAX_FRAMES) {
        let Some((who, frame)) = line.split_first() else { continue };
        let Ok(text) = std::str::from_utf8(frame) else { continue };
        world.now = world.now.plus_millis(7);
        let (number, method, data) = match protoo::parse(text) {
            Ok(Incoming::Request { id, method, data }) => (id, method, data),
            Ok(Incoming::Response { id, result }) => {
                let written = match &result {
                    Ok(data) => protoo::ok(id, data),
                    Err((code, reason)) => protoo::error(id, *code as u16, reason),
                };
                let narrow = result.map_err(|(code, reason)| (i64::from(code as u16), reason));
                assert_eq!(protoo::parse(&written), Ok(Incoming::Response { id, result: narrow }));
                continue;
            }
            Ok(Incoming::Notification) => continue,
            Err(error) => {
                assert!(error.to_string().len() < 300, "{error}");
                continue;
            }
        };
        let again = protoo::request(number, &method, &data);
        let read = protoo::parse(&again).expect("what is written reads");
        assert!(matches!(&read, Incoming::Request { id, method: m, .. } if *id == number && *m == method));
        let client = id(ClientId::new(if who & 1 == 1 { "a" } else { "b" }));
        let mut ids = world.ids;
        let mut fresh = || {
            ids += 1;
            format!("x{ids}")
        };
        let planned = plan(&world.state, &client, &method, data, &mut fresh);
        world.ids = ids;
        match planned {
            Ok(plan) => {
                if let Some(media) = &plan.media {
                    // What EAs keep to themselves no client's words may become.
                    let theirs = matches!(
                        media,
                        MediaCommand::Close { .. }
                            | MediaCommand::PauseProducer { .. }
                            | MediaCommand::PauseConsumer { .. }
                            | MediaCommand::Inventory
                    );
                    assert!(!theirs, "{method} became {media:?}");
                    let kept: MediaCommand = Payload::encode(media).decode().expect("what is written reads");
                    assert_eq!(&kept, media);
                }
                assert!(plan.answer != Answer::Media || plan.media.is_some(), "an answer of nobody");
                if let Some(command) = &plan.command {
                    let facts = world.facts();
                    world.decided(command, &facts);
                    world.add_consumers();
                }
            }
            Err(refusal) => {
                let shown = refusal.to_string();
                assert!(shown.len() <= text.len() + 1_000, "{} bytes of refusal", shown.len());
                assert!(refusal.code() > 0);
            }
        }
        assert!(world.state.clients.len() == 2, "nobody leaves by a request");
    }
    let verdict = world.verifier.finish();
    let broken: Vec<_> =
        verdict.findings.iter().filter(|f| f.rule != "ghost" && f.rule != "round-robin").collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
