//! The timeline, the list of rooms, and a room's state at any point.

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use roomlog_bus::{
    commit::{Cause, Commit, Head, Payload, StreamId, StreamKind},
    events::*,
    ids::*,
    journal::{AppendError, Before, Cursor, Entry, Follow, Followed, Journal, ReadError},
    memory_journal::MemoryJournal,
    time::Timestamp,
};
use roomlog_projections::{
    replay::{NoSuchRoom, RoomIndex, RoomRef, StateError, Until, find_room, merged, scan, state_at},
    replay_text,
    room::RoomState,
    timeline::{self, Filter},
};
use serde_json::json;
use support::*;

fn of_room<'a>(tape: &'a Tape, id: &str) -> Vec<&'a Commit> {
    let wanted = stream(&format!("room.{id}"));
    tape.commits.iter().filter(|c| c.stream == wanted).collect()
}

/// A call with an incident in it: a worker dies, the EC starts anew, Bob does not come back.
fn incident() -> Tape {
    let mut t = call();
    t.commits[4].facts = Payload::encode(&json!({
        "policy": "random",
        "draw": 3,
        "candidates": [
            {"ec": "e", "incarnation": 1, "rooms": 4},
            {"ec": "f", "incarnation": 2, "rooms": 0, "excluded": "draining"},
        ],
    }));
    t.write("ea.a", ("ea.a", 1), 0, vec![worker_died(0, 1)]);
    t.ec(vec![moved(Some(place("a", 0, 1)), Some(place("a", 1, 1)), 2)]).cause = Cause::of("recovery");
    t.now = t.now.plus_millis(200_000);
    t.write("ec.e", ("ec.e", 2), 0, vec![registered(2)]);
    let until = t.now.plus_millis(31_000);
    t.write(
        "room.r",
        ("ec.e", 2),
        2,
        vec![
            RoomPlaced {
                ec: ec("e"),
                incarnation: Incarnation(2),
                epoch: Epoch(2),
                reason: "ec-restarted".into(),
            }
            .into(),
            disconnected("ann", until),
            disconnected("bob", until),
        ],
    );
    t.write("room.r", ("ec.e", 2), 2, vec![resumed("ann", "resume")]).cause =
        Cause { client: Some(client("ann")), request: Some(7), ..Cause::of("request") };
    t.write("room.r", ("ec.e", 2), 2, vec![sending("ann", "Rk2mPq9sVt4wXy7z")]);
    t.write("room.r", ("ec.e", 2), 2, vec![produced("ann", "Zb8nLc3dFg6hJk1m", "Rk2mPq9sVt4wXy7z")]);
    t.now = t.now.plus_millis(30_000);
    t.write(
        "room.r",
        ("ec.e", 2),
        2,
        vec![ClientLeft { client: client("bob"), reason: "timeout".into() }.into()],
    );
    t.write("room.r", ("ec.e", 2), 2, vec![left("ann"), released("a"), closed()]);
    t
}

#[test]
fn the_timeline_of_an_incident_reads_as_it_is_kept() {
    let tape = incident();
    let text = timeline::render(&timeline::of_room(of_room(&tape, "r"), &Filter::default()), false);
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/timeline.txt");
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        std::fs::write(golden, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(golden).unwrap(), "WRITE_GOLDEN=1 writes it anew");
}

#[test]
fn a_timeline_as_json_has_the_events_themselves() {
    let tape = incident();
    let moments = timeline::of_room(of_room(&tape, "r"), &Filter::default());
    let json = serde_json::to_value(&moments[2]).unwrap();
    assert_eq!(json["type"], "RoomOpened");
    assert_eq!(json["time"], "2026-11-22T15:00:06.000Z");
    assert_eq!(json["delta_us"], 1_000_000);
    assert_eq!(json["version"], 3);
    let json = serde_json::to_value(&moments[4]).unwrap();
    assert_eq!(json["data"]["token"], "t1");
    assert_eq!(json["client"], "ann");
    assert_eq!(json["writer"], json!({"node": "ec.e", "incarnation": 1}));
}

#[test]
fn a_clients_timeline_has_its_own_events_and_those_of_the_room_while_it_is_in() {
    let tape = incident();
    let filter = Filter { client: Some(client("bob")), ..Filter::default() };
    let kinds: Vec<String> =
        timeline::of_room(of_room(&tape, "r"), &filter).into_iter().map(|m| m.kind).collect();
    assert_eq!(
        kinds,
        [
            "ClientAdmitted",
            "ClientBound",
            "ClientJoined",
            "TransportCreated",
            "ConsumerCreated",
            "ConsumerResumed",
            "MediaMoved",
            "RoomPlaced",
            "ClientDisconnected",
            "ClientLeft",
        ]
    );
}

#[test]
fn a_stretch_of_time_is_cut_out_with_both_ends() {
    let tape = incident();
    let at = |s: u64| Some(BEGIN.plus_millis(s * 1_000));
    let filter = Filter { since: at(7), until: at(9), ..Filter::default() };
    let kinds: Vec<String> =
        timeline::of_room(of_room(&tape, "r"), &filter).into_iter().map(|m| m.kind).collect();
    assert_eq!(kinds, ["ClientAttached", "ClientJoined", "TransportCreated"]);
}

#[test]
fn nodes_have_a_timeline_together() {
    let tape = incident();
    let mut moments = Vec::new();
    for commit in tape.commits.iter().filter(|c| c.stream.kind() != StreamKind::Room) {
        timeline::of_node(
            &mut moments,
            commit,
            &Filter { since: Some(BEGIN.plus_millis(4_000)), ..Filter::default() },
        );
    }
    let text = timeline::render(&moments, true);
    let lines: Vec<&str> = text.lines().map(|l| l.split_once("  v").unwrap().1).collect();
    assert_eq!(
        lines,
        [
            "1  ea.a  EA registered: start 1, at ws://127.0.0.1:1, version 0.1.0   [request; itself]",
            "2  ea.a  worker 0 ready, its start 1",
            "3  ea.a  worker 1 ready, its start 1",
            "4  ea.a  worker 0 DIED, its start 1 (signal 9); on it: r   [request; itself]",
            "2  ec.e  EC registered: start 2, at ws://127.0.0.1:1, version 0.1.0   [request; itself]",
        ]
    );
}

// ---- the state at a point ------------------------------------------------------------------------------------------------------

#[test]
fn the_state_at_a_time_is_that_of_the_last_commit_by_then() {
    let tape = call();
    let room = of_room(&tape, "r");
    let at = |until| state_at(room.iter().copied(), until).unwrap();
    // Ann is let in at 15:00:06 and joins at 15:00:08.
    let between = at(Until::Time(BEGIN.plus_millis(7_999)));
    assert_eq!(between.time, Some(BEGIN.plus_millis(7_000)));
    assert!(between.state.clients[&client("ann")].attached);
    assert!(between.state.clients[&client("ann")].joined.is_none());
    let then = at(Until::Time(BEGIN.plus_millis(8_000)));
    assert!(then.state.clients[&client("ann")].joined.is_some());

    let mut expected = RoomState::default();
    room[..3].iter().for_each(|c| expected.apply_commit(c).unwrap());
    assert_eq!(between.state.to_json(), expected.to_json());

    let before = at(Until::Time(BEGIN));
    assert_eq!((before.state, before.time), (RoomState::default(), None));
    assert_eq!(at(Until::Time(Timestamp(u64::MAX))), at(Until::End));
}

#[test]
fn where_a_clock_ran_behind_the_order_of_the_stream_counts() {
    let mut tape = call();
    tape.ec(vec![left("bob")]).time = BEGIN.plus_millis(1_000);
    let at = state_at(of_room(&tape, "r"), Until::Time(BEGIN.plus_millis(10_000))).unwrap();
    assert!(at.state.producers.is_empty());
    assert_eq!(at.time, Some(BEGIN.plus_millis(10_000)));
    assert!(at.state.transports[&transport("ann-up")].connected);
}

#[test]
fn the_state_at_a_version_may_lie_inside_a_commit() {
    let tape = call();
    let at = |version| state_at(of_room(&tape, "r"), Until::Version(Version(version)));
    let inside = at(4).unwrap();
    assert!(inside.inside_commit);
    assert_eq!(inside.state.version(), Version(4));
    assert_eq!((inside.state.placements.len(), inside.state.clients.len()), (1, 0));
    let whole = at(6).unwrap();
    assert!(!whole.inside_commit);
    assert_eq!(whole.state.clients[&client("ann")].ea, Some(ea("a")));
    assert_eq!(at(0).unwrap().state, RoomState::default());
    let end = of_room(&tape, "r").last().unwrap().last_version();
    assert_eq!(at(end.0 + 1), Err(StateError::Beyond { wanted: end.next(), end }));
}

#[test]
fn a_compacted_room_is_folded_from_its_snapshot() {
    let mut tape = call();
    let whole = state_at(of_room(&tape, "r"), Until::End).unwrap().state;
    tape.ec(vec![RoomSnapshot { state: Payload::encode(&whole) }.into()]);
    tape.ec(vec![left("bob")]);
    let room = of_room(&tape, "r");
    let from_snapshot = state_at(room[room.len() - 2..].iter().copied(), Until::End).unwrap().state;
    assert_eq!(from_snapshot, state_at(room, Until::End).unwrap().state);
    assert_eq!(from_snapshot.clients.len(), 1);
}

#[test]
fn a_fold_that_missed_what_was_purged_goes_on_at_the_snapshot_and_nowhere_else() {
    let mut tape = call();
    let room: Vec<Commit> = of_room(&tape, "r").into_iter().cloned().collect();
    let mut early = RoomState::default();
    early.apply_commit(&room[0]).unwrap();
    assert!(early.clone().apply_commit(&room[2]).is_err(), "a hole stays a hole");
    let whole = state_at(of_room(&tape, "r"), Until::End).unwrap().state;
    tape.ec(vec![RoomSnapshot { state: Payload::encode(&whole) }.into()]);
    let room = of_room(&tape, "r");
    let snapshot = room.last().unwrap();
    early.apply_commit(snapshot).unwrap();
    assert_eq!(early, state_at(room.clone(), Until::End).unwrap().state);
    // One that has it already does not fold it again.
    assert!(early.apply_commit(snapshot).is_err());
}

#[test]
fn a_state_is_readable() {
    let tape = incident();
    let at = state_at(of_room(&tape, "r"), Until::Time(BEGIN.plus_millis(222_500))).unwrap();
    let text = replay_text::state("r", &at);
    for line in [
        "  owner    EC e start 2, epoch 2",
        "  session  open, media epoch 2",
        "  media    EA a start 1, worker 1 start 1",
        "    bob  \"Bob\", presenter, from 203.0.113.7, joined, AWAY, may come back until",
        "      transport Rk2mPq9sVt4wXy7z  sending, NOT connected",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
}

// ---- finding rooms -----------------------------------------------------------------------------------------------------------

fn named(t: &mut Tape, id: &str, name: &str) {
    t.write(&format!("room.{id}"), ("nuve.n", 1), 0, vec![created(name)]);
}

async fn journal_of(tape: &Tape) -> MemoryJournal {
    let journal = MemoryJournal::new();
    for commit in &tape.commits {
        journal.append(commit.clone()).await.unwrap();
    }
    journal
}

#[tokio::test]
async fn a_room_is_found_by_id_beginning_and_name() {
    let mut tape = call();
    named(&mut tape, "abc1", "one");
    named(&mut tape, "abc2", "two");
    named(&mut tape, "abc", "short");
    named(&mut tape, "old", "daily");
    tape.write("room.old", ("nuve.n", 1), 0, vec![deleted()]);
    named(&mut tape, "new", "daily");
    named(&mut tape, "x1", "twice");
    named(&mut tape, "x2", "twice");
    let journal = journal_of(&tape).await;
    let find = async |text: &str| {
        let wanted: RoomRef = text.parse().unwrap();
        find_room(&journal, &[], &wanted).await.unwrap().map(|id| id.to_string())
    };
    assert_eq!(find("abc1").await, Ok("abc1".into()));
    assert_eq!(find("room.abc1").await, Ok("abc1".into()));
    assert_eq!(find("abc").await, Ok("abc".into()), "a whole id wins over longer ones");
    assert_eq!(find("ol").await, Ok("old".into()), "deleted rooms too");
    assert_eq!(find("name:standup").await, Ok("r".into()));
    assert_eq!(find("name:daily").await, Ok("new".into()), "the living one of several");
    let error = find("ab").await.unwrap_err();
    assert!(matches!(&error, NoSuchRoom::Ambiguous { rooms, .. } if rooms.len() == 3), "{error}");
    let error = find("name:twice").await.unwrap_err().to_string();
    assert!(error.contains("x1 (service demo") && error.contains("x2"), "{error}");
    let error = find("standup").await.unwrap_err().to_string();
    assert!(error.contains("write name:standup"), "{error}");
    assert!(matches!(find("nothing").await, Err(NoSuchRoom::None { named: false, .. })));
}

#[test]
fn the_list_of_rooms_agrees_with_the_fold() {
    let mut tape = incident();
    tape.open_room("s", 0);
    let mut index = RoomIndex::default();
    tape.commits.iter().for_each(|c| index.apply(c));
    let rooms: Vec<_> = index.rooms().collect();
    assert_eq!(rooms.len(), 2);
    for summary in rooms {
        let commits = of_room(&tape, summary.id.as_str());
        let state = state_at(commits.iter().copied(), Until::End).unwrap().state;
        assert_eq!(summary.version, state.version());
        assert_eq!(summary.owner, state.owner);
        assert_eq!((summary.open, summary.clients), (state.open, state.clients.len()));
        assert_eq!(summary.commits, commits.len() as u64);
        assert_eq!((summary.first, summary.last), (commits[0].time, commits.last().unwrap().time));
    }
    assert_eq!(index.rooms().next().unwrap().admitted, 2);
}

/// A journal with places that cannot be read.
struct Faulty {
    commits: Vec<Arc<Commit>>,
    bad: Vec<u64>,
}

#[async_trait]
impl Journal for Faulty {
    async fn append(&self, _: Commit) -> Result<(), AppendError> {
        unreachable!("replay does not write")
    }
    async fn read(&self, _: &StreamId, _: Version, _: usize) -> Result<Vec<Arc<Commit>>, ReadError> {
        unreachable!("a scan follows")
    }
    async fn head(&self, _: &StreamId) -> Result<Option<Head>, ReadError> {
        unreachable!("a scan follows")
    }
    async fn streams(&self, _: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError> {
        unreachable!("a scan follows")
    }
    async fn tail(&self) -> Result<Cursor, ReadError> {
        Ok(Cursor(vec![self.commits.len() as u64]))
    }
    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        let (sender, receiver) = tokio::sync::mpsc::channel(self.commits.len() + 1);
        for sequence in from.0.first().copied().unwrap_or(0) + 1..=self.commits.len() as u64 {
            let told = if self.bad.contains(&sequence) {
                Followed::Broken(ReadError::Damaged {
                    place: format!("commit {sequence}"),
                    reason: "x".into(),
                })
            } else {
                let commit = self.commits[sequence as usize - 1].clone();
                Followed::Entry(Entry { cursor: Cursor(vec![sequence]), commit })
            };
            let broken = matches!(told, Followed::Broken(_));
            sender.try_send(told).unwrap();
            if broken {
                return Ok(Follow { receiver });
            }
        }
        sender.try_send(Followed::CaughtUp).unwrap();
        Ok(Follow { receiver })
    }
}

/// A journal in three partitions that tells of them one after the other, the last one first.
struct Partitions(MemoryJournal, Vec<Vec<Arc<Commit>>>);

#[async_trait]
impl Before for Partitions {
    fn behind(&self) -> &dyn Journal {
        &self.0
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1_000);
        let mut cursor = from;
        cursor.0.resize(self.1.len(), 0);
        for (partition, commits) in self.1.iter().enumerate().rev() {
            for commit in &commits[cursor.0[partition] as usize..] {
                cursor.0[partition] += 1;
                let entry = Entry { cursor: cursor.clone(), commit: commit.clone() };
                sender.try_send(Followed::Entry(entry)).unwrap();
            }
        }
        sender.try_send(Followed::CaughtUp).unwrap();
        Ok(Follow { receiver })
    }
}

#[tokio::test]
async fn partitions_are_put_into_one_order_and_each_keeps_its_own() {
    let commits: Vec<Arc<Commit>> = call().commits.into_iter().map(Arc::new).collect();
    let mut parts = vec![Vec::new(); 3];
    for commit in &commits {
        parts[usize::from(commit.stream.partition(3))].push(commit.clone());
    }
    assert!(parts.iter().filter(|part| !part.is_empty()).count() > 1, "the call is in one partition");
    let journal = Partitions(MemoryJournal::new(), parts.clone());
    let all = merged(&journal, Cursor::default()).await.unwrap();
    assert_eq!(all.iter().map(|entry| entry.commit.clone()).collect::<Vec<_>>(), commits);
    // From any place in it the rest follows.
    for (at, entry) in all.iter().enumerate() {
        assert_eq!(merged(&journal, entry.cursor.clone()).await.unwrap(), all[at + 1..]);
    }

    // A clock that was put back in the middle does not turn a partition round.
    let of_room = commits.iter().rposition(|commit| commit.stream.kind() == StreamKind::Room).unwrap();
    let last = parts.iter_mut().find(|part| part.contains(&commits[of_room])).unwrap();
    let early = Commit { time: BEGIN, ..Commit::clone(last.last().unwrap()) };
    *last.last_mut().unwrap() = Arc::new(early.clone());
    let own: Vec<_> = last.clone();
    let all = merged(&Partitions(MemoryJournal::new(), parts), Cursor::default()).await.unwrap();
    let kept: Vec<_> = all.iter().map(|entry| &entry.commit).filter(|commit| own.contains(commit)).collect();
    assert_eq!(kept, own.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_scan_steps_over_damage_and_says_so() {
    let commits: Vec<Arc<Commit>> = call().commits.into_iter().map(Arc::new).collect();
    let count = commits.len() as u64;
    for (bad, holes, reported) in [
        (vec![], vec![], 0),
        (vec![3], vec![], 1),
        (vec![1, 5, 6], vec![], 3),
        (vec![5, 6, 7], vec![(5, 7)], 1),
        (vec![count], vec![], 1),
    ] {
        let journal = Faulty { commits: commits.clone(), bad: bad.clone() };
        let mut seen = Vec::new();
        let damaged =
            scan(&journal, Cursor::default(), &holes, |entry| seen.push(entry.cursor.0[0])).await.unwrap();
        let expected: Vec<u64> = (1..=count).filter(|s| !bad.contains(s)).collect();
        assert_eq!((seen, damaged.len()), (expected, reported), "{bad:?} {holes:?}");
    }
}
