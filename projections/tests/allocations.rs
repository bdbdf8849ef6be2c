//! A fold makes no memory but what the state is made of: counted by the allocator, over a recorded call.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::alloc::System;

use roomlog_bus::commit::Commit;
use roomlog_projections::room::RoomState;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A call of four people, as `roomlog bench log` has it.
const CALL: &[u8] = include_bytes!("../../tests/bench/src/call.commits");

/// Events that tell more than the state keeps: which EAs were considered, or why in a sentence. A session has two or three.
const TELL_MORE: [&str; 4] = ["EaAssigned", "ClientBound", "MediaMoved", "RoomDeleted"];

fn call() -> Vec<Commit> {
    let (mut rest, mut commits) = (CALL, Vec::new());
    while !rest.is_empty() {
        commits.push(rmp_serde::from_read(&mut rest).unwrap());
    }
    commits
}

/// What an event brings is made, what it takes away is let go, and none does both: what is made and let go again in one would be neither.
#[test]
fn an_event_makes_no_memory_but_what_becomes_state() {
    let call = call();
    let (mut room, mut made, mut let_go) = (RoomState::default(), 0, 0);
    for commit in &call {
        let region = Region::new(ALLOCATOR);
        room.apply_commit(commit).unwrap();
        let stats = region.change();
        made += stats.allocations;
        let_go += stats.deallocations;
        let kinds: Vec<&str> = commit.events.iter().map(|event| event.kind.as_str()).collect();
        if !kinds.iter().any(|kind| TELL_MORE.contains(kind)) {
            let both = stats.allocations.min(stats.deallocations);
            assert_eq!((both, stats.reallocations), (0, 0), "{kinds:?}: {stats:?}");
        }
    }
    assert!(room.deleted && made > 100 && let_go > 100, "a whole call: {made} made, {let_go} let go");
    println!("{} commits: {made} allocations made, {let_go} let go", call.len());
}
