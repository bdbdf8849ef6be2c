//! How fast a log is gone through: `cargo run --release -p roomlog-projections --example replay_speed -- [ROOMS]`.
//!
//! Makes that many rooms of one short call in memory, 20 events each, interleaved as they would be if all ran at once, and times the list of
//! rooms, the fold, and `verify`. Reading from disk is not in it.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use roomlog_bus::commit::{Commit, CommitId, StreamId, StreamKind};
use roomlog_projections::{directory::Directory, replay::RoomIndex, verify::Verifier};

fn log(rooms: usize) -> Vec<Commit> {
    let mut one = support::call();
    one.ec(vec![support::left("ann"), support::left("bob"), support::released("a")]);
    one.ec(vec![support::closed()]);
    let (room, mut all): (Vec<Commit>, Vec<Commit>) =
        one.commits.into_iter().partition(|c| c.stream.kind() == StreamKind::Room);
    let rename = |id: CommitId, number: usize| {
        let mut bytes = *id.as_bytes();
        bytes[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
        CommitId::from_bytes(bytes)
    };
    for commit in &room {
        for number in 0..rooms {
            let stream = StreamId::new(StreamKind::Room, &format!("room{number:012}"));
            all.push(Commit {
                id: rename(commit.id, number),
                prev: commit.prev.map(|id| rename(id, number)),
                stream: stream.expect("letters and digits"),
                ..commit.clone()
            });
        }
    }
    all
}

fn timed(what: &str, events: usize, f: impl FnOnce()) {
    let began = Instant::now();
    f();
    let seconds = began.elapsed().as_secs_f64();
    println!("{what:<14} {seconds:>7.3} s  {:>10.0} events/s", events as f64 / seconds);
}

fn main() {
    let rooms = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let commits = log(rooms);
    let events: usize = commits.iter().map(|c| c.events.len()).sum();
    println!("{rooms} rooms, {} commits, {events} events", commits.len());
    timed("list of rooms", events, || {
        let mut index = RoomIndex::default();
        commits.iter().for_each(|c| index.apply(c));
        assert_eq!(index.rooms().count(), rooms);
    });
    timed("fold", events, || {
        let mut directory = Directory::default();
        commits.iter().for_each(|c| directory.apply(c).expect("the log is whole"));
        assert_eq!(directory.rooms.len(), rooms);
    });
    timed("verify", events, || {
        let mut verifier = Verifier::new(None);
        commits.iter().for_each(|c| verifier.commit(c));
        let verdict = verifier.finish();
        assert_eq!(verdict.errors(), rooms_unevenly(&verdict), "{:?}", verdict.findings.first());
        println!("               {}", verdict.summary);
    });
}

/// All these rooms are on one worker, which round robin rightly finds; nothing else may be.
fn rooms_unevenly(verdict: &roomlog_projections::verify::Verdict) -> u64 {
    verdict.findings.iter().filter(|f| f.rule == "round-robin").count() as u64
}
