//! Commits as they lie on disk and come over the wire, whatever is in them; the folds, the checks and the tales of all that decodes;
//! checkpoints.

use std::path::Path;

use rand::{SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, RawEvent, StreamId, StreamKind, Writer},
    events::Event,
    ids::{EcId, Epoch, Incarnation, Version},
    time::Timestamp,
};
use roomlog_ec::notify::fold_and_tell;
use roomlog_projections::{
    checkpoint,
    directory::Directory,
    replay::{RoomIndex, Until, state_at},
    replay_text,
    room::RoomState,
    timeline,
    verify::Verifier,
};
use std::collections::BTreeMap;

use crate::input::Input;

/// Commits of one input.
const MAX_COMMITS: usize = 64;

/// First byte 0: commits as bytes, each behind its length. 1: a checkpoint's body. Else: events as text, `stream type json` a line,
/// `+` in front of one that belongs to the commit of the line before.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() {
        0 => {
            let mut commits = Vec::new();
            while !input.is_empty() && commits.len() < MAX_COMMITS {
                let bytes = input.chunk();
                let Ok(commit) = Commit::decode(bytes) else { continue };
                let again = Commit::decode(&commit.encode()).expect("what is written reads");
                assert_eq!(again, commit);
                commits.push(commit);
            }
            go_through(&commits);
        }
        1 => body(input.rest()),
        _ => go_through(&written(input.rest())),
    }
}

/// Commits of a log whose chain is whole, with whatever events.
pub fn written(text: &[u8]) -> Vec<Commit> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut heads: BTreeMap<StreamId, Head> = BTreeMap::new();
    let mut commits: Vec<Commit> = Vec::new();
    let mut now = super::protoo::NOW;
    for line in text.split(|b| *b == b'\n').take(4 * MAX_COMMITS) {
        let (joins, line) = match line.split_first() {
            Some((b'+', rest)) => (true, rest),
            _ => (false, line),
        };
        let mut words = line.splitn(3, |b| *b == b' ');
        let (Some(stream), Some(kind), json) = (words.next(), words.next(), words.next().unwrap_or(b"{}"))
        else {
            continue;
        };
        let Ok(stream) = String::from_utf8_lossy(stream).parse::<StreamId>() else { continue };
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(json) else { continue };
        let event = RawEvent::new(String::from_utf8_lossy(kind), 1, Payload::encode(&value));
        if let Some(last) = commits.last_mut().filter(|last| joins && last.stream == stream) {
            last.events.push(event);
            heads.insert(stream, last.head());
            continue;
        }
        if commits.len() == MAX_COMMITS {
            break;
        }
        let head = heads.get(&stream).copied();
        now += 1_000;
        let commit = Commit {
            id: CommitId::new(Timestamp(now), &mut rng),
            prev: head.map(|h| h.id),
            stream: stream.clone(),
            version: head.map_or(Version(1), |h| h.version.next()),
            time: Timestamp(now),
            writer: Writer {
                node: StreamId::from(&EcId::new("ec").expect("an id")),
                incarnation: Incarnation(1),
            },
            epoch: Epoch(1),
            cause: Cause::of("test"),
            command: Payload::default(),
            facts: Payload::default(),
            events: vec![event],
            more: Default::default(),
        };
        heads.insert(stream, commit.head());
        commits.push(commit);
    }
    commits
}

fn go_through(commits: &[Commit]) {
    let mut directory = Directory::default();
    let mut index = RoomIndex::default();
    let mut verifier = Verifier::new(None);
    let mut rooms: BTreeMap<StreamId, (RoomState, Vec<Commit>)> = BTreeMap::new();
    let mut moments = Vec::new();
    for commit in commits {
        let _ = directory.apply(commit);
        index.apply(commit);
        verifier.commit(commit);
        let _ = format!("{commit:?}");
        for raw in &commit.events {
            if let Ok(event) = Event::decode(raw) {
                let again = Event::decode(&event.encode()).expect("what is written reads");
                assert_eq!(again, event);
            }
        }
        if commit.stream.kind() != StreamKind::Room {
            timeline::of_node(&mut moments, commit, &timeline::Filter::default());
            continue;
        }
        let (state, kept) = rooms.entry(commit.stream.clone()).or_default();
        let before = state.clone();
        let mut beside = state.clone();
        let folded = state.apply_commit(commit);
        let told = fold_and_tell(&mut beside, commit);
        assert_eq!(folded.is_ok(), told.is_ok(), "{folded:?}, but {told:?}");
        match folded {
            Ok(()) => {
                assert_eq!(*state, beside, "telling and folding must fold the same");
                kept.push(commit.clone());
            }
            Err(_) => assert_eq!(*state, before, "an error left something behind"),
        }
    }
    for (stream, (state, kept)) in &rooms {
        let again: RoomState = Payload::encode(state).decode().expect("what is written reads");
        assert_eq!(&again, state);
        let _ = (state.to_json(), state.missing_consumers());
        let at = state_at(kept, Until::End).expect("it folded above");
        assert_eq!(&at.state, state);
        let _ = replay_text::state(stream.id(), &at);
        let whole = timeline::render(&timeline::of_room(kept, &timeline::Filter::default()), true);
        // One without events folds to nothing, and is the verifier's to name.
        let telling = kept.iter().filter(|commit| !commit.events.is_empty()).count();
        assert!(whole.lines().count() >= telling, "a commit that nothing is said of");
    }
    // What does not fold can be looked at all the same.
    let all: Vec<_> = commits.iter().filter(|c| c.stream.kind() == StreamKind::Room).cloned().collect();
    let _ = timeline::render(&timeline::of_room(&all, &timeline::Filter::default()), false);
    let _ = state_at(&all, Until::Version(Version(3)));
    let _ = timeline::render(&moments, true);
    let _ = replay_text::rooms(index.rooms());
    let verdict = verifier.finish();
    let _ = serde_json::to_value(&verdict.summary).map(|v| v.to_string());

    let bytes = checkpoint::encode(&directory);
    let again = checkpoint::decode(Path::new("checkpoint"), &bytes).expect("what is written reads");
    assert_eq!(again, directory);
}

/// A body under the header that belongs to it, since a checksum is not to be guessed.
fn body(body: &[u8]) {
    let mut bytes = checkpoint::encode(&Directory::default())[..16].to_vec();
    bytes[12..].copy_from_slice(&crc32fast::hash(body).to_be_bytes());
    bytes.extend_from_slice(body);
    if let Ok(directory) = checkpoint::decode(Path::new("checkpoint"), &bytes) {
        let again = checkpoint::decode(Path::new("checkpoint"), &checkpoint::encode(&directory));
        assert_eq!(again.expect("what is written reads"), directory);
    }
    if let Some(last) = bytes.last_mut().filter(|_| !body.is_empty()) {
        *last ^= 1;
        assert!(
            checkpoint::decode(Path::new("checkpoint"), &bytes).is_err(),
            "a changed byte was not noticed"
        );
    }
}

/// The body of a checkpoint of these commits, for the seeds.
pub fn checkpoint_of(commits: &[Commit]) -> Vec<u8> {
    let mut directory = Directory::default();
    for commit in commits {
        let _ = directory.apply(commit);
    }
    checkpoint::encode(&directory)[16..].to_vec()
}
