//! The core against workers that keep books and a journal that is a list: what is asked, committed and died, and what is left then.

mod adoption;

use roomlog_bus::events::*;

use super::*;
use crate::testing::*;

const TTL: Duration = Duration::from_secs(10);
const SWEEP: Duration = Duration::from_secs(30);

type Reply = &'static str;

struct World {
    core: Core<Reply>,
    now: Duration,
    books: Vec<Books>,
    generations: Vec<u64>,
    journal: BTreeMap<RoomId, Pen>,
    /// The journal cannot be read.
    journal_away: bool,
    /// Answers of workers are kept back.
    workers_slow: bool,
    kept: Vec<(u64, Result<MediaAnswer, MediaError>)>,
    replies: BTreeMap<Reply, Result<EaAnswer, RpcError>>,
    own: Vec<Event>,
    notified: Vec<RoomNotification>,
    other: Vec<Effect<Reply>>,
}

impl World {
    fn new(workers: usize) -> Self {
        let me = EaId::new("ea").unwrap();
        let limits = Limits { provisional_ttl: TTL, sweep_every: SWEEP };
        let start = Start { generation: 1, began: Incarnation(1), adopted: None };
        Self {
            core: Core::new(me, Incarnation(1), limits, &vec![Some(start); workers]),
            now: Duration::ZERO,
            books: vec![Books::default(); workers],
            generations: vec![1; workers],
            journal: BTreeMap::new(),
            journal_away: false,
            workers_slow: false,
            kept: Vec::new(),
            replies: BTreeMap::new(),
            own: Vec::new(),
            notified: Vec::new(),
            other: Vec::new(),
        }
    }

    fn input(&mut self, input: Input<Reply>) {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.core.handle(self.now, input) {
                match effect {
                    Effect::Reply { to, result } => {
                        assert!(self.replies.insert(to, result).is_none(), "{to} was answered twice");
                    }
                    Effect::ToWorker { worker, id, room, command, .. } => {
                        let result = self.books[usize::from(worker.0)].answer(&room, &command);
                        if self.workers_slow {
                            self.kept.push((id, result));
                        } else {
                            inputs.push_back(Input::Answered { id, result });
                        }
                    }
                    Effect::Load { room, from } => {
                        let all = self.journal.get(&room).map(|pen| pen.all.clone()).unwrap_or_default();
                        let rest = all.into_iter().filter(|c| c.last_version() >= from).collect();
                        let commits = (!self.journal_away).then_some(rest);
                        inputs.push_back(Input::Loaded { room, commits });
                    }
                    Effect::Append(event) => self.own.push(event),
                    Effect::Notify { notification, .. } => self.notified.push(notification),
                    other => self.other.push(other),
                }
            }
        }
    }

    fn ask(&mut self, reply: Reply, request: EaRequest) -> Result<EaAnswer, RpcError> {
        self.input(Input::Request { reply, request });
        self.replies.remove(reply).unwrap_or_else(|| panic!("{reply} was not answered"))
    }

    fn open(&mut self, id: &str, media_epoch: u64) -> Placement {
        match self.ask("open", open(id, 1, media_epoch)) {
            Ok(EaAnswer::Opened { placement, .. }) => placement,
            other => panic!("{other:?}"),
        }
    }

    fn media(&mut self, id: &str, media_epoch: u64, command: MediaCommand) -> Result<EaAnswer, RpcError> {
        self.ask("media", media(id, 1, media_epoch, command))
    }

    fn commit(&mut self, id: &str, events: &[Event]) {
        let commit = self.write(id, events);
        self.input(Input::Commit(commit));
    }

    /// Commits without the follower seeing it.
    fn write(&mut self, id: &str, events: &[Event]) -> Arc<Commit> {
        let pen = self.journal.entry(room(id)).or_insert_with(|| Pen::new(StreamId::from(&room(id))));
        pen.write(events)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.input(Input::Tick);
    }

    fn answer_kept(&mut self) {
        self.workers_slow = false;
        for (id, result) in std::mem::take(&mut self.kept) {
            self.input(Input::Answered { id, result });
        }
    }

    fn kill(&mut self, worker: usize) {
        self.books[worker] = Books::default();
        let generation = self.generations[worker];
        self.generations[worker] += 1;
        let worker = WorkerIndex(worker as u16);
        self.input(Input::WorkerDied { worker, generation, reason: "signal: 9".into() });
    }

    fn revive(&mut self, worker: usize) {
        let generation = self.generations[worker];
        let worker = WorkerIndex(worker as u16);
        self.input(Input::WorkerReady { worker, generation });
        self.input(Input::WorkerAnnounced { worker, generation });
    }

    /// A room with two clients, committed: `a` sends `p`, `b` receives it as `c`, both over transports of their own.
    fn call(&mut self, id: &str) -> Placement {
        let placement = self.open(id, 1);
        self.commit(id, &[placed(1), assigned(&placement, 1), admitted("a"), admitted("b")]);
        for command in [create("ta"), create("tb"), produce("ta", "p"), consume("tb", "c", "p")] {
            self.media(id, 1, command).unwrap();
        }
        self.commit(id, &[transport_created("a", "ta"), transport_created("b", "tb")]);
        self.commit(id, &[producer_created("a", "ta", "p"), consumer_created("b", "tb", "c", "p")]);
        self.forget();
        placement
    }

    fn forget(&mut self) {
        self.books.iter_mut().for_each(|b| b.heard.clear());
    }

    /// What the worker of index `worker` heard since [`World::forget`].
    fn heard(&self, worker: usize) -> Vec<MediaCommand> {
        self.books[worker].heard.iter().map(|(_, command)| command.clone()).collect()
    }
}

fn open(id: &str, epoch: u64, media_epoch: u64) -> EaRequest {
    EaRequest::OpenRoom { room: room(id), epoch: Epoch(epoch), media_epoch: MediaEpoch(media_epoch) }
}

fn media(id: &str, epoch: u64, media_epoch: u64, command: MediaCommand) -> EaRequest {
    let (epoch, media_epoch) = (Epoch(epoch), MediaEpoch(media_epoch));
    EaRequest::Media { room: room(id), epoch, media_epoch, client: None, command }
}

fn refused(error: MediaError) -> Result<EaAnswer, RpcError> {
    Err(RpcError::Media(error))
}

#[test]
fn rooms_go_to_workers_in_turn_and_opening_twice_is_opening_once() {
    let mut world = World::new(2);
    let workers: Vec<u16> = ["r1", "r2", "r3"].map(|id| world.open(id, 1).worker.0).into();
    assert_eq!(workers, [0, 1, 0]);
    let again = world.ask("again", open("r2", 1, 1)).unwrap();
    let EaAnswer::Opened { placement, rooms } = again else { panic!("{again:?}") };
    assert_eq!((placement.worker.0, rooms), (1, 3));
    assert_eq!(world.books[1].heard.len(), 1, "the router is made once");
}

#[test]
fn a_repeated_open_waits_for_the_first_and_gets_the_same_place() {
    let mut world = World::new(1);
    world.workers_slow = true;
    world.input(Input::Request { reply: "first", request: open("r", 1, 1) });
    world.input(Input::Request { reply: "second", request: open("r", 1, 1) });
    assert!(world.replies.is_empty());
    world.answer_kept();
    assert_eq!(world.replies["first"], world.replies["second"]);
    assert!(world.replies["first"].is_ok());
}

#[test]
fn lower_epochs_than_seen_are_refused() {
    let mut world = World::new(1);
    world.ask("open", open("r", 5, 3)).unwrap();
    assert_eq!(world.ask("x", open("r", 4, 3)), refused(MediaError::StaleEpoch { seen: 5 }));
    assert_eq!(world.ask("x", open("r", 5, 2)), refused(MediaError::StaleEpoch { seen: 3 }));
    assert_eq!(world.ask("x", media("r", 4, 3, create("t"))), refused(MediaError::StaleEpoch { seen: 5 }));
    assert_eq!(world.ask("x", media("r", 5, 2, create("t"))), refused(MediaError::StaleEpoch { seen: 3 }));
    assert_eq!(world.ask("x", media("r", 5, 4, create("t"))), refused(MediaError::NoRoom));
    assert_eq!(world.ask("x", media("q", 5, 3, create("t"))), refused(MediaError::NoRoom));
    world.commit("r", &[placed(7)]);
    assert_eq!(world.core.rooms.len(), 0, "what epoch 5 opened is passed by epoch 7 in the log");
}

#[test]
fn the_log_is_heard_on_epochs_even_if_no_request_named_them() {
    let mut world = World::new(1);
    world.call("r");
    world.commit("r", &[placed(2)]);
    assert_eq!(world.media("r", 1, create("t")), refused(MediaError::StaleEpoch { seen: 2 }));
    assert_eq!(world.heard(0), [], "committed media outlives a change of its owner");
}

#[test]
fn a_room_that_is_not_committed_in_time_is_destroyed() {
    let mut world = World::new(1);
    world.open("r", 1);
    world.pass(TTL - Duration::from_millis(1));
    assert_eq!(world.core.load().rooms, 1);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.core.load().rooms, 0);
    assert!(world.books[0].routers.is_empty());
    assert!(world.core.rooms.is_empty() && world.core.pending.is_empty(), "nothing is kept of it");
}

#[test]
fn a_committed_room_stays_and_its_uncommitted_objects_go() {
    let mut world = World::new(1);
    world.call("r");
    world.media("r", 1, create("provisional")).unwrap();
    world.forget();
    world.pass(TTL);
    assert_eq!(world.heard(0), [close_of(MediaObject::Transport(transport("provisional")))]);
    assert_eq!(world.books[0].routers[&room("r")].transports.len(), 2);
    world.pass(TTL * 2);
    assert_eq!(world.books[0].routers[&room("r")].consumers.len(), 1);
}

#[test]
fn nothing_expires_while_the_journal_cannot_be_asked_and_a_late_follower_destroys_nothing() {
    let mut world = World::new(1);
    let placement = world.open("r", 1);
    world.journal_away = true;
    world.pass(TTL * 2);
    assert_eq!(world.core.load().rooms, 1, "media outlives control");

    // It was committed long ago, only our follower is behind.
    world.write("r", &[placed(1), assigned(&placement, 1), admitted("a")]);
    world.journal_away = false;
    world.pass(TTL);
    assert_eq!(world.core.load(), Load { rooms: 1, clients: 1, draining: false });
    world.pass(TTL);
    assert_eq!(world.core.load().rooms, 1);
}

#[test]
fn closing_and_pausing_cannot_be_asked_for() {
    let mut world = World::new(1);
    world.call("r");
    let pause = MediaCommand::PauseProducer { producer: producer("p"), paused: true };
    for command in [close_of(MediaObject::Router), pause] {
        assert!(matches!(world.media("r", 1, command), Err(RpcError::Media(MediaError::WrongState { .. }))));
    }
    assert_eq!(world.heard(0), []);
}

#[test]
fn committed_events_pause_resume_and_set_what_they_name() {
    let mut world = World::new(1);
    world.call("r");
    world.commit("r", &[ConsumerResumed { consumer: consumer("c") }.into()]);
    world.commit("r", &[ProducerPaused { producer: producer("p") }.into()]);
    world.commit("r", &[ConsumerPrioritySet { consumer: consumer("c"), priority: 9 }.into()]);
    assert_eq!(
        world.heard(0),
        [
            MediaCommand::PauseConsumer { consumer: consumer("c"), paused: false },
            MediaCommand::PauseProducer { producer: producer("p"), paused: true },
            MediaCommand::SetPriority { consumer: consumer("c"), priority: 9 },
        ]
    );
}

#[test]
fn a_client_that_leaves_takes_its_transports_and_the_last_one_the_room() {
    let mut world = World::new(1);
    world.call("r");
    world.commit("r", &[left("a")]);
    assert_eq!(world.heard(0), [close_of(MediaObject::Transport(transport("ta")))]);
    world.forget();
    world.commit("r", &[left("b")]);
    assert_eq!(world.heard(0), [close_of(MediaObject::Router)]);
    assert!(world.core.rooms.is_empty() && world.core.pending.is_empty());
    assert_eq!(world.core.turns.total(), 0);
}

#[test]
fn closing_deleting_releasing_and_moving_away_end_a_room() {
    let elsewhere = Placement {
        ea: EaId::new("other").unwrap(),
        incarnation: Incarnation(1),
        worker: WorkerIndex(0),
        generation: 1,
    };
    let ends: [Event; 4] = [
        RoomClosed { reason: "empty".into() }.into(),
        RoomDeleted { reason: "admin".into() }.into(),
        EaReleased { ea: EaId::new("ea").unwrap(), reason: "empty".into() }.into(),
        MediaMoved {
            from: None,
            to: Some(elsewhere),
            reason: "drain".into(),
            media_epoch: MediaEpoch(2),
            candidates: Vec::new(),
        }
        .into(),
    ];
    for end in ends {
        let mut world = World::new(1);
        let placement = world.call("r");
        let end = match end {
            Event::MediaMoved(moved) => MediaMoved { from: Some(placement), ..moved }.into(),
            other => other,
        };
        world.commit("r", std::slice::from_ref(&end));
        assert!(world.core.rooms.is_empty(), "{}", end.kind());
        assert!(world.books[0].routers.is_empty(), "{}", end.kind());
        assert_eq!(world.media("r", 1, create("t")), refused(MediaError::NoRoom));
    }
}

#[test]
fn the_death_of_a_worker_touches_its_own_rooms_only() {
    let mut world = World::new(2);
    world.call("r0");
    world.call("r1");
    world.kill(0);
    let Some(Event::WorkerDied(died)) = world.own.pop() else { panic!("{:?}", world.own) };
    assert_eq!((died.worker.0, died.generation, died.rooms), (0, 1, vec![room("r0")]));
    assert_eq!(world.media("r0", 1, create("t")), refused(MediaError::NoRoom));
    assert_eq!(world.books[1].routers[&room("r1")].consumers.len(), 1);
    assert_eq!(world.heard(1), []);

    // Until the next one is announced in the log, rooms go to the other worker.
    assert_eq!(world.open("r2", 1).worker.0, 1);
    world.revive(0);
    assert_eq!(world.own, [WorkerStarted { worker: WorkerIndex(0), generation: 2 }.into()]);
    let moved = world.open("r0", 2);
    assert_eq!((moved.worker.0, moved.generation), (0, 2));
    let event = MediaMoved {
        from: None,
        to: Some(moved),
        reason: "worker-died".into(),
        media_epoch: MediaEpoch(2),
        candidates: Vec::new(),
    };
    world.commit("r0", &[event.into()]);
    world.media("r0", 2, create("t")).unwrap();
    world.pass(TTL);
    assert_eq!(world.core.load().rooms, 2, "r2 has expired, r0 and r1 are committed");
}

#[test]
fn what_waits_for_a_worker_that_dies_is_answered() {
    let mut world = World::new(1);
    world.call("r");
    world.workers_slow = true;
    world.input(Input::Request { reply: "media", request: media("r", 1, 1, create("t")) });
    world.input(Input::Request { reply: "open", request: open("q", 1, 1) });
    world.kill(0);
    for reply in ["media", "open"] {
        assert!(
            matches!(world.replies[reply], Err(RpcError::Media(MediaError::Unavailable { .. }))),
            "{reply}: {:?}",
            world.replies[reply]
        );
    }
    assert!(world.core.pending.is_empty());
}

#[test]
fn media_moved_to_another_worker_here_keeps_the_old_one_until_the_log_moves_it() {
    let mut world = World::new(2);
    let old = world.call("r");
    let new = world.open("r", 2);
    assert_eq!((old.worker.0, new.worker.0), (0, 1));
    assert_eq!(world.heard(0), []);
    assert_eq!(world.books[0].routers[&room("r")].producers.len(), 1);
    let event = MediaMoved {
        from: Some(old),
        to: Some(new),
        reason: "drain".into(),
        media_epoch: MediaEpoch(2),
        candidates: Vec::new(),
    };
    world.commit("r", &[event.into()]);
    assert_eq!(world.heard(0), [close_of(MediaObject::Router)]);
    assert_eq!(world.heard(1), [MediaCommand::CreateRouter]);
    world.media("r", 2, create("t")).unwrap();
    assert_eq!(world.core.turns.total(), 1);
}

#[test]
fn a_move_that_was_not_committed_leaves_the_old_media_alone() {
    let mut world = World::new(1);
    world.call("r");
    world.open("r", 2);
    world.pass(TTL);
    assert_eq!(world.heard(0), []);
    assert_eq!(world.core.turns.total(), 1);
    world.media("r", 1, create("t")).unwrap();
}

#[test]
fn the_next_session_may_open_before_the_last_one_is_seen_to_end() {
    let mut world = World::new(1);
    world.call("r");
    let placement = world.open("r", 2);
    world.commit("r", &[left("a"), left("b"), RoomClosed { reason: "empty".into() }.into()]);
    world.commit("r", &[assigned(&placement, 2), admitted("c")]);
    assert_eq!(world.heard(0), [close_of(MediaObject::Router), MediaCommand::CreateRouter]);
    world.pass(TTL * 2);
    assert_eq!(world.core.load(), Load { rooms: 1, clients: 1, draining: false });
}

#[test]
fn a_reserved_place_stands_while_the_old_media_goes_on() {
    let mut world = World::new(3);
    world.call("r");
    let reserved = world.open("r", 2);
    world.commit("r", &[left("a")]);
    assert_eq!(world.open("r", 2), reserved, "the same place, not the next in turn");
    world.commit("r", &[placed(2)]);
    assert_eq!(
        world.core.turns.total(),
        1,
        "a higher ownership epoch passes what was reserved under a lower one"
    );
    assert_eq!(world.books[0].routers.len(), 1);
}

#[test]
fn a_placement_on_a_start_that_is_over_is_not_revived() {
    let mut world = World::new(1);
    let here = world.open("x", 1);
    let before = Placement { incarnation: Incarnation(0), ..here };
    world.commit("r", &[placed(1), assigned(&before, 1), admitted("a")]);
    world.open("r", 2); // by an owner that does not come to commit it
    world.forget();
    world.commit("r", &[placed(2)]);
    assert_eq!(world.heard(0), [close_of(MediaObject::Router)]);
    assert!(!world.core.rooms.contains_key(&room("r")));
}

#[test]
fn a_commit_that_names_us_gives_us_the_room_even_if_its_opening_expired() {
    let mut world = World::new(1);
    let placement = world.open("r", 1);
    world.pass(TTL);
    assert_eq!(world.core.load().rooms, 0);
    world.commit("r", &[placed(1), assigned(&placement, 1), admitted("a")]);
    assert_eq!(world.core.load(), Load { rooms: 1, clients: 1, draining: false });
    world.media("r", 1, create("t")).unwrap();
}

#[test]
fn rooms_of_an_earlier_start_or_of_a_dead_worker_are_not_ours() {
    let mut world = World::new(1);
    let here = world.open("x", 1);
    for (id, placement) in [
        ("r1", Placement { incarnation: Incarnation(0), ..here.clone() }),
        ("r2", Placement { generation: 0, ..here.clone() }),
        ("r3", Placement { ea: EaId::new("other").unwrap(), ..here }),
    ] {
        world.commit(id, &[placed(1), assigned(&placement, 1), admitted("a")]);
        assert!(!world.core.rooms.contains_key(&room(id)), "{id}");
    }
}

#[test]
fn old_sessions_are_not_played_again_on_the_worker() {
    let mut world = World::new(1);
    let here = world.open("x", 1);
    world.write("r", &[placed(1), assigned(&here, 1), admitted("a"), transport_created("a", "t0")]);
    world.write("r", &[left("a"), RoomClosed { reason: "empty".into() }.into()]);
    world.forget();
    world.commit("r", &[assigned(&here, 2), admitted("b")]);
    assert_eq!(world.heard(0), [MediaCommand::CreateRouter]);
}

#[test]
fn a_hole_in_what_is_followed_is_read_from_the_journal() {
    let mut world = World::new(1);
    world.call("r");
    world.write("r", &[ConsumerResumed { consumer: consumer("c") }.into()]);
    world.commit("r", &[ProducerPaused { producer: producer("p") }.into()]);
    assert_eq!(world.heard(0).len(), 2);
    let version = world.journal[&room("r")].head.unwrap().version;
    assert_eq!(world.core.rooms[&room("r")].fold.version(), version);
}

#[test]
fn after_a_repair_a_room_is_what_the_log_says_then() {
    let mut world = World::new(1);
    world.call("r");
    let kept = world.journal[&room("r")].all.len();
    world.commit("r", &[ProducerPaused { producer: producer("p") }.into()]);
    world.commit("r", &[left("b")]);
    world.forget();
    // Both are in a branch that the log does not have any more; it went another way.
    let pen = world.journal.get_mut(&room("r")).unwrap();
    pen.all.truncate(kept);
    pen.head = pen.all.last().map(|commit| commit.head());
    world.write("r", &[ConsumerResumed { consumer: consumer("c") }.into()]);
    world.journal_away = true;
    world.input(Input::Repaired);
    world.commit("r", &[ConsumerPaused { consumer: consumer("c") }.into()]);
    assert_eq!(world.heard(0), [], "what flows is left alone until the log is read");
    world.journal_away = false;
    world.pass(Duration::from_secs(1));
    let head = world.journal[&room("r")].head;
    assert_eq!(world.core.rooms[&room("r")].fold.head, head);
    assert!(world.core.rooms[&room("r")].fold.clients.contains_key(&client("b")));
    let heard = world.heard(0);
    let again = MediaCommand::PauseProducer { producer: producer("p"), paused: false };
    assert!(heard.contains(&again), "{heard:?}");
}

#[test]
fn after_a_repair_what_was_followed_while_the_log_was_read_is_not_forgotten() {
    let mut world = World::new(1);
    world.call("r");
    let effects = world.core.handle(world.now, Input::Repaired);
    assert_eq!(effects, [Effect::Load { room: room("r"), from: Version(1) }]);
    // A leader that was deposed a moment ago answers what it had.
    let read = world.journal[&room("r")].all.clone();
    world.commit("r", &[left("a"), left("b")]);
    world.input(Input::Loaded { room: room("r"), commits: Some(read) });
    assert!(world.books[0].routers.is_empty(), "the last client's leaving ends it");
}

#[test]
fn a_state_is_answered_once_its_version_is_folded() {
    let mut world = World::new(1);
    world.call("r");
    let version = world.journal[&room("r")].head.unwrap().version;
    let request = EaRequest::RoomState { room: room("r"), min_version: version.next() };
    world.input(Input::Request { reply: "waits", request: request.clone() });
    assert!(world.replies.is_empty());
    world.commit("r", &[left("b")]);
    let Ok(EaAnswer::State { version: answered, state }) = &world.replies["waits"] else { panic!() };
    assert_eq!(*answered, version.next());
    assert_eq!(*state, world.core.rooms[&room("r")].fold.to_json());

    let request = EaRequest::RoomState { room: room("r"), min_version: version.next().next() };
    world.input(Input::Request { reply: "in vain", request });
    world.pass(STATE_WAIT);
    assert!(matches!(world.replies["in vain"], Err(RpcError::Retry { .. })));

    let request = EaRequest::RoomState { room: room("r"), min_version: version.next().next() };
    world.input(Input::Request { reply: "gone", request });
    world.commit("r", &[left("a")]);
    let Ok(EaAnswer::State { version: answered, state }) = &world.replies["gone"] else { panic!() };
    assert_eq!((*answered, &state["clients"]), (version.next().next(), &serde_json::json!({})));
    let request = EaRequest::RoomState { room: room("r"), min_version: Version(1) };
    let nothing = EaAnswer::State { version: Version(0), state: serde_json::Value::Null };
    assert_eq!(world.ask("later", request), Ok(nothing));
}

#[test]
fn the_sweep_closes_what_nobody_asked_for_and_repeats_what_was_lost() {
    let mut world = World::new(1);
    world.call("r");
    let router = world.books[0].routers.get_mut(&room("r")).unwrap();
    router.transports.push(roomlog_bus::media::TransportInventory {
        id: transport("ghost"),
        state: roomlog_bus::media::TransportState::New,
    });
    router.producers[0].paused = true; // a resume that got lost
    world.media("r", 1, create("fresh")).unwrap();
    world.forget();
    world.now = SWEEP - Duration::from_secs(1);
    world.media("r", 1, create("fresher")).unwrap();
    world.forget();
    world.pass(Duration::from_secs(1));
    let heard = world.heard(0);
    let expected = [
        // Expired; the inventory was taken before that and has it still, and closing twice is closing once.
        close_of(MediaObject::Transport(transport("fresh"))),
        close_of(MediaObject::Transport(transport("ghost"))),
        MediaCommand::PauseProducer { producer: producer("p"), paused: false },
    ];
    assert!(expected.iter().all(|command| heard.contains(command)), "{heard:?}");
    assert!(heard.iter().all(|command| expected.contains(command)), "{heard:?}");
}

#[test]
fn what_is_closed_while_an_inventory_is_on_its_way_is_no_ghost() {
    let mut world = World::new(1);
    world.call("r");
    world.workers_slow = true;
    world.pass(SWEEP);
    world.now += Duration::from_millis(1);
    world.commit("r", &[ProducerClosed { producer: producer("p"), reason: Default::default() }.into()]);
    // One that the first inventory does not have: only who asks again finds it.
    world.books[0].routers.get_mut(&room("r")).unwrap().transports.push(
        roomlog_bus::media::TransportInventory {
            id: transport("ghost"),
            state: roomlog_bus::media::TransportState::New,
        },
    );
    world.now += Duration::from_millis(1);
    world.answer_kept();
    let expected = [
        close_of(MediaObject::Producer(producer("p"))),
        close_of(MediaObject::Transport(transport("ghost"))),
    ];
    assert_eq!(world.heard(0), expected);
}

#[test]
fn notifications_go_to_the_rooms_owner_with_the_media_epoch() {
    let mut world = World::new(1);
    world.call("r");
    let notification = MediaNotification::ActiveSpeaker { producer: None, volume: -127 };
    for generation in [1, 2] {
        world.input(Input::Notified {
            worker: WorkerIndex(0),
            generation,
            room: room("r"),
            notification: notification.clone(),
        });
    }
    let media_epoch = MediaEpoch(1);
    assert_eq!(world.notified, [RoomNotification { room: room("r"), media_epoch, notification }]);
}

#[test]
fn a_creation_the_worker_refuses_is_not_held() {
    let mut world = World::new(1);
    world.call("r");
    assert!(world.media("r", 1, produce("nowhere", "q")).is_err());
    world.forget();
    world.pass(TTL);
    assert_eq!(world.heard(0), []);
}

#[test]
fn objects_of_an_earlier_owner_that_it_did_not_commit_are_destroyed_when_the_next_is_placed() {
    let mut world = World::new(1);
    world.call("r");
    world.media("r", 1, create("t")).unwrap();
    world.forget();
    world.commit("r", &[placed(2)]);
    assert_eq!(world.heard(0), [close_of(MediaObject::Transport(transport("t")))]);
}

#[test]
fn a_node_that_was_called_lost_registers_again_and_keeps_its_media() {
    let mut world = World::new(1);
    let before = world.call("r");
    let mut own = Pen::new("ea.ea".parse().unwrap());
    let lost = NodeLost { incarnation: Incarnation(1), observer: "ec.e".into(), reason: "silent".into() };
    world.input(Input::Commit(own.write(&[lost.into()])));
    assert_eq!(world.other, [Effect::Reregister(vec![(WorkerIndex(0), 1)])]);
    assert!(!world.core.is_registered());
    assert!(matches!(world.ask("x", open("q", 1, 1)), Err(RpcError::Media(MediaError::Unavailable { .. }))));
    world.input(Input::Registered(Incarnation(2)));
    assert!(world.core.is_registered());
    assert_eq!(world.heard(0), []);
    world.media("r", 1, create("t")).unwrap();
    let after = world.open("q", 1);
    assert_eq!((before.incarnation, after.incarnation), (Incarnation(1), Incarnation(2)));
}

#[test]
fn another_process_under_our_id_is_noticed() {
    let mut world = World::new(1);
    let mut own = Pen::new("ea.ea".parse().unwrap());
    let registered = |incarnation| NodeRegistered {
        incarnation: Incarnation(incarnation),
        address: String::new(),
        workers: 1,
        version: String::new(),
        probe: None,
        adopted: Vec::new(),
    };
    world.input(Input::Commit(own.write(&[registered(1).into()])));
    assert_eq!(world.other, []);
    world.input(Input::Commit(own.write(&[registered(2).into()])));
    assert_eq!(world.other, [Effect::Superseded(Incarnation(2))]);
}

#[test]
fn a_draining_node_takes_no_new_room_and_keeps_the_old_ones() {
    let mut world = World::new(1);
    world.call("r");
    let mut own = Pen::new("ea.ea".parse().unwrap());
    let draining = NodeDraining { incarnation: Incarnation(1), deadline: None };
    world.input(Input::Commit(own.write(&[draining.into()])));
    assert!(world.core.load().draining);
    assert!(matches!(world.ask("x", open("q", 1, 1)), Err(RpcError::Media(MediaError::Unavailable { .. }))));
    world.media("r", 1, create("t")).unwrap();
}

#[test]
fn a_commit_that_does_not_read_stops_the_fold_but_not_the_media() {
    let mut world = World::new(1);
    world.call("r");
    let pen = world.journal.get_mut(&room("r")).unwrap();
    let good = pen.write(&[left("a")]);
    let mut bad = (*good).clone();
    bad.events[0].data = roomlog_bus::commit::Payload::encode(&1);
    *pen.all.last_mut().unwrap() = Arc::new(bad.clone());
    world.input(Input::Commit(Arc::new(bad)));
    world.commit("r", &[left("b")]);
    world.pass(TTL);
    assert_eq!(world.heard(0), []);
    world.commit("r", &[RoomClosed { reason: "empty".into() }.into()]);
    assert!(world.books[0].routers.is_empty() && world.core.rooms.is_empty());
}

#[test]
#[ignore = "a measurement: run it with --release --nocapture"]
fn cost_of_a_commit_in_a_large_room() {
    let mut world = World::new(1);
    let placement = world.open("r", 1);
    world.commit("r", &[placed(1), assigned(&placement, 1), admitted("a")]);
    let clients = 142;
    let mut created = Vec::new();
    for i in 0..clients {
        let (t, p) = (format!("t{i}"), format!("p{i}"));
        created.push(transport_created("a", &t));
        created.push(producer_created("a", &t, &p));
        world.input(Input::Request { reply: "x", request: media("r", 1, 1, create(&t)) });
        world.input(Input::Request { reply: "y", request: media("r", 1, 1, produce(&t, &p)) });
        world.replies.clear();
    }
    for i in 0..clients {
        for j in (0..clients).filter(|j| *j != i) {
            let (t, p, c) = (format!("t{i}"), format!("p{j}"), format!("c{i}-{j}"));
            created.push(consumer_created("a", &t, &c, &p));
            world.input(Input::Request { reply: "x", request: media("r", 1, 1, consume(&t, &c, &p)) });
            world.replies.clear();
        }
    }
    for chunk in created.chunks(500) {
        world.commit("r", chunk);
    }
    let commits: Vec<_> = (0..200)
        .map(|i| {
            world.write("r", &[ConsumerResumed { consumer: consumer(&format!("c0-{}", i % 141 + 1)) }.into()])
        })
        .collect();
    let start = std::time::Instant::now();
    for commit in commits {
        world.core.handle(world.now, Input::Commit(commit));
    }
    println!("{} consumers: {:?} a commit", clients * (clients - 1), start.elapsed() / 200);
}
