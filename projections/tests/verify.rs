//! `verify` finds each planted breach of a rule, and only that; a log without one gives no finding.

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod support;

use roomlog_bus::{
    commit::{CommitId, Payload, RawEvent},
    events::*,
    ids::*,
    time::Timestamp,
};
use roomlog_projections::{
    room::{Owner, RoomState},
    verify::{Finding, RULES, Severity, Verdict, Verifier},
};
use support::*;

fn verify(tape: &Tape) -> Verdict {
    let mut verifier = Verifier::new(None);
    tape.commits.iter().for_each(|commit| verifier.commit(commit));
    verifier.finish()
}

/// Everything that may happen in a room, as it should.
fn good_life() -> Tape {
    let mut t = call();
    let until = t.now.plus_millis(30_000);
    t.ec(vec![disconnected("bob", until)]);
    t.ec(vec![resumed("bob", "resume")]);
    t.ec(vec![ProducerPaused { producer: producer("camera") }.into()]);
    t.ec(vec![ConsumerPrioritySet { consumer: consumer("view"), priority: 2 }.into()]);
    t.ec(vec![
        DisplayNameChanged {
            client: client("bob"),
            display_name: "Robert".into(),
            old_display_name: "Bob".into(),
        }
        .into(),
    ]);
    // A worker dies and its room moves to the other, whose EA starts it anew.
    t.write("ea.a", ("ea.a", 1), 0, vec![worker_died(0, 1)]);
    t.ec(vec![moved(Some(place("a", 0, 1)), Some(place("a", 1, 1)), 2)]);
    t.write("ea.a", ("ea.a", 1), 0, vec![worker_started(0, 2)]);
    t.ec(vec![sending("ann", "ann-up-2")]);
    t.ec(vec![produced("ann", "camera-2", "ann-up-2")]);
    // Ann comes in again by her token; the room's EC starts anew and takes the room on itself.
    t.ec(vec![
        TransportClosed { transport: transport("ann-up-2"), reason: "reattached".into() }.into(),
        resumed("ann", "reattach"),
    ]);
    t.write("ec.e", ("ec.e", 2), 0, vec![registered(2)]);
    let until = t.now.plus_millis(30_000);
    t.write(
        "room.r",
        ("ec.e", 2),
        2,
        vec![placed("e", 2, 2), disconnected("ann", until), disconnected("bob", until)],
    );
    t.write("room.r", ("ec.e", 2), 2, vec![resumed("bob", "resume")]);
    t.write("room.r", ("ec.e", 2), 2, vec![left("ann")]);
    t.write("room.r", ("ec.e", 2), 2, vec![left("bob"), released("a"), closed()]);
    // A second session, with a client id that comes back under another token.
    t.write(
        "room.r",
        ("ec.e", 2),
        2,
        vec![RoomOpened {}.into(), assigned("a", 0, 2, 3), admitted("ann", "t3"), bound("ann", "a")],
    );
    // The EC is lost, another takes over under the epoch NUVE gives.
    t.write("ec.e", ("nuve.n", 1), 0, vec![lost(2)]);
    t.write("ec.f", ("ec.f", 1), 0, vec![registered(1)]);
    t.write("room.r", ("nuve.n", 1), 2, vec![placed("f", 1, 3)]);
    t.write("room.r", ("ec.f", 1), 3, vec![left("ann"), released("a"), closed(), deleted()]);
    // A room whose owner is gone is deleted by NUVE as it is.
    t.write("room.s", ("nuve.n", 1), 0, vec![created("gone"), placed("f", 1, 1)]);
    t.write(
        "room.s",
        ("ec.f", 1),
        1,
        vec![RoomOpened {}.into(), assigned("a", 1, 1, 1), admitted("zoe", "t4"), bound("zoe", "a")],
    );
    t.write("ec.f", ("ec.f", 1), 0, vec![NodeLeft { incarnation: Incarnation(1) }.into()]);
    t.write("room.s", ("nuve.n", 1), 1, vec![deleted()]);
    t
}

#[test]
fn a_clean_log_gives_no_finding() {
    let verdict = verify(&good_life());
    assert_eq!(verdict.findings, []);
    let summary = verdict.summary;
    assert_eq!((summary.streams, summary.rooms), (7, 2));
    assert_eq!(summary.commits, good_life().commits.len() as u64);
    assert!(summary.checks > summary.events, "{summary}");
}

type Plant = fn(&mut Tape);

/// What is planted into [`call`], and the one finding it gives.
const PLANTED: &[(&str, &str, Severity, Plant)] = &[
    ("a commit is missing", "version-gap", Severity::Error, |t| {
        t.commits.remove(8);
    }),
    ("the beginning is missing", "version-gap", Severity::Error, |t| {
        t.commits.remove(4);
    }),
    ("another predecessor is named", "wrong-prev", Severity::Error, |t| {
        t.commits[9].prev = Some(CommitId::from_bytes([9; 16]));
    }),
    ("two commits of one version", "fork", Severity::Error, |t| {
        let mut fork = t.commits.last().unwrap().clone();
        fork.id = CommitId::from_bytes([9; 16]);
        t.commits.push(fork);
    }),
    ("a commit stored twice", "duplicate-commit", Severity::Error, |t| {
        let again = t.commits.last().unwrap().clone();
        t.commits.push(again);
    }),
    ("a commit without events", "empty-commit", Severity::Error, |t| {
        t.ec(vec![]);
    }),
    ("an event that does not read", "undecodable", Severity::Error, |t| {
        t.ec(vec![left("bob")]).events[0].data = Payload::encode(&1);
    }),
    ("a node's event in a room", "wrong-stream", Severity::Error, |t| {
        t.ec(vec![worker_died(0, 1)]);
    }),
    ("a room's event in a node", "wrong-stream", Severity::Error, |t| {
        t.write("ec.e", ("ec.e", 1), 0, vec![closed()]);
    }),
    ("a node's event in a service", "wrong-stream", Severity::Error, |t| {
        t.write("service.demo", ("nuve.n", 1), 0, vec![registered(2)]);
    }),
    ("a clock a minute behind", "clock", Severity::Warning, |t| {
        let back = Timestamp(t.now.0 - 60_000_000);
        t.ec(vec![resumed("bob", "reattach")]).time = back;
    }),
    ("NUVE writes what is the owner's", "not-owner", Severity::Error, |t| {
        t.write("room.r", ("nuve.n", 1), 1, vec![left("bob")]);
    }),
    ("an EA writes into a room", "not-owner", Severity::Error, |t| {
        t.write("room.r", ("ea.a", 1), 1, vec![left("bob")]);
    }),
    ("another EC writes", "not-owner", Severity::Error, |t| {
        t.write("room.r", ("ec.f", 1), 1, vec![left("bob")]);
    }),
    ("another start of the owner writes", "not-owner", Severity::Error, |t| {
        t.write("room.r", ("ec.e", 2), 1, vec![left("bob")]);
    }),
    ("the owner writes under an old epoch", "epoch", Severity::Error, |t| {
        t.write("room.r", ("ec.e", 1), 0, vec![left("bob")]);
    }),
    ("an EC takes another's room", "placed-by", Severity::Error, |t| {
        t.write("room.r", ("ec.f", 1), 2, vec![placed("f", 1, 2)]);
    }),
    ("an EC gives its room to another", "placed-by", Severity::Error, |t| {
        t.ec(vec![placed("f", 1, 2)]);
    }),
    ("the epoch jumps", "placed-epoch", Severity::Error, |t| {
        t.write("room.r", ("nuve.n", 1), 1, vec![placed("f", 1, 3)]);
    }),
    ("NUVE deletes beside a living owner", "deleted-beside-owner", Severity::Warning, |t| {
        t.write("room.r", ("nuve.n", 1), 1, vec![deleted()]);
    }),
    ("a room begins without being made", "created", Severity::Error, |t| {
        t.write("room.x", ("nuve.n", 1), 0, vec![placed("e", 1, 1)]);
    }),
    ("a room is made twice", "created", Severity::Error, |t| {
        t.write("room.r", ("nuve.n", 1), 1, vec![created("again")]);
    }),
    ("something follows a deletion", "after-deleted", Severity::Error, |t| {
        t.ec(vec![left("ann"), left("bob"), released("a"), closed(), deleted()]);
        t.write("room.r", ("nuve.n", 1), 1, vec![placed("e", 1, 2)]);
    }),
    ("something follows a deletion at once", "after-deleted", Severity::Error, |t| {
        t.ec(vec![left("ann"), left("bob"), released("a"), closed(), deleted(), RoomOpened {}.into()]);
    }),
    ("opened while open", "session", Severity::Error, |t| {
        t.ec(vec![RoomOpened {}.into()]);
    }),
    ("a client lets itself into a closed room", "session", Severity::Error, |t| {
        t.ec(vec![left("ann"), left("bob"), released("a"), closed()]);
        t.ec(vec![admitted("cid", "t9")]);
    }),
    ("closed while closed", "session", Severity::Error, |t| {
        t.ec(vec![left("ann"), left("bob"), released("a"), closed()]);
        t.ec(vec![closed()]);
    }),
    ("closed with a client in it", "closed-with-clients", Severity::Error, |t| {
        t.ec(vec![left("ann"), released("a"), closed()]);
    }),
    ("closed with its EA held", "closed-with-media", Severity::Error, |t| {
        t.ec(vec![left("ann"), left("bob"), closed()]);
    }),
    ("a second EA under ROOM-BEST", "placement", Severity::Error, |t| {
        t.ec(vec![assigned("b", 0, 1, 2)]);
    }),
    ("a second worker of one EA", "placement", Severity::Error, |t| {
        t.ec(vec![assigned("a", 1, 1, 2)]);
    }),
    ("an EA released that had nothing", "placement", Severity::Error, |t| {
        t.ec(vec![released("b")]);
    }),
    ("moved from where it was not", "placement", Severity::Error, |t| {
        t.ec(vec![moved(Some(place("a", 1, 1)), Some(place("b", 0, 1)), 2)]);
    }),
    ("moved to a second place", "placement", Severity::Error, |t| {
        t.ec(vec![moved(None, Some(place("b", 0, 1)), 2)]);
    }),
    ("a client on an EA without the room", "placement", Severity::Error, |t| {
        t.ec(vec![bound("bob", "b")]);
    }),
    ("made by an EA that was not given", "placement", Severity::Error, |t| {
        t.ec(vec![attached("bob", "b")]);
    }),
    ("the media epoch stays at a move", "media-epoch", Severity::Error, |t| {
        t.ec(vec![moved(Some(place("a", 0, 1)), Some(place("a", 1, 1)), 1)]);
    }),
    ("the media epoch jumps at an assignment", "media-epoch", Severity::Error, |t| {
        t.ec(vec![left("ann"), left("bob"), released("a"), closed()]);
        t.ec(vec![RoomOpened {}.into(), assigned("a", 1, 1, 3)]);
    }),
    ("a token lets in twice", "token-spent", Severity::Error, |t| {
        t.ec(vec![left("bob")]);
        t.ec(vec![admitted("bob", "t2")]);
    }),
    ("a client let in while it is in", "client", Severity::Error, |t| {
        t.ec(vec![admitted("bob", "t9")]);
    }),
    ("a client leaves that is not in", "client", Severity::Error, |t| {
        t.ec(vec![left("cid")]);
    }),
    ("an unknown client makes a transport", "client", Severity::Error, |t| {
        t.ec(vec![sending("cid", "cid-up")]);
    }),
    ("an unknown client is sent something", "client", Severity::Error, |t| {
        t.ec(vec![consumed("cid", "view-2", "bob-down", "camera")]);
    }),
    ("joined twice", "client-phase", Severity::Error, |t| {
        t.ec(vec![joined("bob", "Bob")]);
    }),
    ("a client sends before it joined", "client-phase", Severity::Error, |t| {
        t.ec(vec![admitted("cid", "t9"), bound("cid", "a"), sending("cid", "cid-up")]);
        t.ec(vec![produced("cid", "mic", "cid-up")]);
    }),
    ("resumed without having been away", "client-phase", Severity::Error, |t| {
        t.ec(vec![resumed("bob", "resume")]);
    }),
    ("disconnected while away", "client-phase", Severity::Error, |t| {
        let until = t.now.plus_millis(30_000);
        t.ec(vec![disconnected("bob", until), disconnected("bob", until)]);
    }),
    ("a consumer of no producer", "object", Severity::Error, |t| {
        t.ec(vec![consumed("bob", "view-2", "bob-down", "nothing")]);
    }),
    ("a consumer on no transport", "object", Severity::Error, |t| {
        t.ec(vec![consumed("bob", "view-2", "nowhere", "camera")]);
    }),
    ("a producer on a receiving transport", "object", Severity::Error, |t| {
        t.ec(vec![produced("bob", "mic", "bob-down")]);
    }),
    ("a producer on another's transport", "object", Severity::Error, |t| {
        t.ec(vec![produced("bob", "mic", "ann-up")]);
    }),
    ("an unknown producer paused", "object", Severity::Error, |t| {
        t.ec(vec![ProducerPaused { producer: producer("nothing") }.into()]);
    }),
    ("a consumer closed with its producer is closed again", "object", Severity::Error, |t| {
        t.ec(vec![ProducerClosed { producer: producer("camera"), reason: "closed".into() }.into()]);
        t.ec(vec![ConsumerClosed { consumer: consumer("view"), reason: "x".into() }.into()]);
    }),
    ("an unknown transport connected", "object", Severity::Error, |t| {
        t.ec(vec![connected("nowhere")]);
    }),
    ("a producer id used again", "id-reused", Severity::Error, |t| {
        t.ec(vec![ProducerClosed { producer: producer("camera"), reason: "closed".into() }.into()]);
        t.ec(vec![produced("ann", "camera", "ann-up")]);
    }),
    ("a snapshot of another state", "snapshot", Severity::Error, |t| {
        t.ec(vec![RoomSnapshot { state: Payload::encode(&RoomState::default()) }.into()]);
        // What the snapshot wiped is not there any more.
    }),
    ("a start left out", "incarnation", Severity::Error, |t| {
        t.write("ec.e", ("ec.e", 3), 0, vec![registered(3)]);
    }),
    ("a start registered by another", "incarnation", Severity::Error, |t| {
        t.write("ec.e", ("ec.e", 1), 0, vec![registered(2)]);
    }),
    ("a worker of a start that has not registered", "incarnation", Severity::Error, |t| {
        t.write("ea.a", ("ea.a", 2), 0, vec![worker_started(0, 2)]);
    }),
    ("an earlier start of a node writes", "zombie", Severity::Error, |t| {
        t.write("ea.a", ("ea.a", 2), 0, vec![registered(2), worker_started(0, 2), worker_started(1, 2)]);
        t.write("ea.a", ("ea.a", 1), 0, vec![worker_died(0, 1)]);
    }),
    ("an earlier start of an EC writes into its room", "zombie", Severity::Warning, |t| {
        t.write("ec.e", ("ec.e", 2), 0, vec![registered(2)]);
        t.ec(vec![left("bob")]);
    }),
    ("a node is registered by another", "node-writer", Severity::Error, |t| {
        t.write("ec.e", ("nuve.n", 1), 0, vec![registered(2)]);
    }),
    ("lost twice", "lost-twice", Severity::Error, |t| {
        t.write("ec.e", ("nuve.n", 1), 0, vec![lost(1)]);
        t.write("ec.e", ("nuve.n", 1), 0, vec![lost(1)]);
    }),
    ("a worker's start counted down", "worker-generation", Severity::Error, |t| {
        t.write("ea.a", ("ea.a", 1), 0, vec![worker_started(0, 1)]);
    }),
    ("a worker is taken over that did not run", "adopted", Severity::Error, |t| {
        t.write("ea.a", ("ea.a", 2), 0, vec![adopting(2, &[(0, 1), (1, 2)])]);
    }),
    ("one worker gets every room", "round-robin", Severity::Error, |t| {
        t.open_room("r2", 0);
        t.open_room("r3", 0);
    }),
    ("one worker gets one room too many", "round-robin", Severity::Warning, |t| {
        t.open_room("r2", 0);
    }),
    ("one worker gets every room, and then rooms close", "round-robin", Severity::Error, |t| {
        t.open_room("r2", 0);
        t.open_room("r3", 0);
        t.ec(vec![left("ann"), left("bob"), released("a"), closed()]);
        t.open_room("r4", 1);
        t.open_room("r5", 1);
    }),
    ("shares of more than there is", "limit", Severity::Error, |t| {
        let shares = [("nuve.m".parse().unwrap(), 600), ("nuve.n".parse().unwrap(), 401)];
        let shared = LimitShared {
            epoch: 1,
            holder: "nuve.n".parse().unwrap(),
            incarnation: Incarnation(1),
            limit: 1_000,
            floors: shares.into(),
        };
        t.write("nuve._limit", ("nuve.n", 1), 0, vec![shared.into()]);
    }),
    ("a service made twice", "service", Severity::Error, |t| {
        let again = t.commits[1].events[0].clone();
        t.write("service.demo", ("nuve.n", 1), 0, vec![Event::decode(&again).unwrap()]);
    }),
    ("a deleted service gets a key", "service", Severity::Error, |t| {
        t.write("service.demo", ("nuve.n", 1), 0, vec![ServiceDeleted {}.into()]);
        t.write("service.demo", ("nuve.n", 1), 0, vec![key_rotated()]);
    }),
    ("an EC writes of a service", "service", Severity::Error, |t| {
        t.write("service.demo", ("ec.e", 1), 0, vec![key_rotated()]);
    }),
    ("a client is away for too long", "ghost", Severity::Warning, |t| {
        let until = t.now.plus_millis(30_000);
        t.ec(vec![disconnected("bob", until)]);
        later(t, 95);
    }),
    ("nobody takes over the room of a lost EC", "ghost", Severity::Warning, |t| {
        t.write("ec.e", ("nuve.n", 1), 0, vec![lost(1)]);
        later(t, 65);
    }),
    ("nobody moves the media of a dead worker", "ghost", Severity::Warning, |t| {
        t.write("ea.a", ("ea.a", 1), 0, vec![worker_died(0, 1)]);
        later(t, 65);
    }),
    ("nobody moves the media of a worker that was not taken over", "ghost", Severity::Warning, |t| {
        t.write("ea.a", ("ea.a", 2), 0, vec![adopting(2, &[(1, 1)]), worker_started(0, 2)]);
        later(t, 65);
    }),
    (
        "nobody moves the media of a worker that was taken over after its EA was lost",
        "ghost",
        Severity::Warning,
        |t| {
            t.write("ea.a", ("ec.e", 1), 0, vec![lost(1)]);
            t.write("ea.a", ("ea.a", 2), 0, vec![adopting(2, &[(0, 1), (1, 1)])]);
            later(t, 65);
        },
    ),
];

fn key_rotated() -> Event {
    ServiceKeyRotated { which: "secret".into(), hash: "3".into(), old_until: None }.into()
}

/// The log goes on, elsewhere.
fn later(t: &mut Tape, seconds: u64) {
    t.now = t.now.plus_millis(seconds * 1_000);
    t.write("service.demo", ("nuve.n", 1), 0, vec![key_rotated()]);
}

#[test]
fn the_log_that_breaches_are_planted_into_is_clean() {
    assert_eq!(verify(&call()).findings, []);
}

#[test]
fn each_planted_breach_gives_exactly_its_finding() {
    let mut wrong = Vec::new();
    for (what, rule, severity, plant) in PLANTED {
        let mut tape = call();
        plant(&mut tape);
        let found: Vec<_> = verify(&tape).findings;
        let brief: Vec<_> = found.iter().map(|f| (f.rule, f.severity)).collect();
        if brief != [(*rule, *severity)] {
            wrong.push(format!("{what}: wanted {rule} ({severity:?}), found {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_has_a_planted_breach() {
    let elsewhere = ["damage", "redecide"];
    for (rule, _) in RULES {
        let planted = PLANTED.iter().any(|(_, planted, ..)| planted == rule);
        assert!(planted != elsewhere.contains(rule), "{rule}");
    }
}

#[test]
fn what_is_just_within_the_bounds_is_no_ghost() {
    let mut tape = call();
    let until = tape.now.plus_millis(30_000);
    tape.ec(vec![disconnected("bob", until)]);
    later(&mut tape, 85);
    assert_eq!(verify(&tape).findings, []);
}

#[test]
fn media_on_workers_that_are_taken_over_again_and_again_stays_where_it_is() {
    let mut tape = call();
    tape.write("ea.a", ("ea.a", 2), 0, vec![adopting(2, &[(0, 1), (1, 1)])]);
    tape.write("ea.a", ("ea.a", 2), 0, vec![worker_died(1, 1)]);
    tape.write("ea.a", ("ea.a", 2), 0, vec![worker_started(1, 2)]);
    tape.write("ea.a", ("ea.a", 3), 0, vec![adopting(3, &[(0, 1), (1, 2)])]);
    later(&mut tape, 65);
    assert_eq!(verify(&tape).findings, []);
}

#[test]
fn after_a_hole_a_stream_is_checked_no_further_until_a_snapshot() {
    let mut tape = call();
    tape.commits.remove(8);
    tape.ec(vec![left("nobody")]);
    assert_eq!(rules(&verify(&tape).findings), ["version-gap"]);

    let owner = Owner { ec: ec("e"), incarnation: Incarnation(1), epoch: Epoch(1) };
    let state = RoomState { owner: Some(owner), open: true, ..RoomState::default() };
    tape.ec(vec![RoomSnapshot { state: Payload::encode(&state) }.into()]);
    tape.ec(vec![left("nobody")]);
    assert_eq!(rules(&verify(&tape).findings), ["version-gap", "client"]);
}

#[test]
fn a_stream_may_begin_with_a_snapshot() {
    let whole = call();
    let mut state = RoomState::default();
    for commit in whole.commits.iter().filter(|c| c.stream == stream("room.r")) {
        state.apply_commit(commit).unwrap();
    }
    let mut tape = call();
    tape.ec(vec![RoomSnapshot { state: Payload::encode(&state) }.into()]);
    assert_eq!(verify(&tape).findings, [], "a true snapshot is no finding");
    // What is below it is purged.
    tape.ec(vec![left("bob")]);
    let snapshot = tape.commits.len() - 2;
    let mut at = 0;
    tape.commits.retain(|c| {
        at += 1;
        at > snapshot || c.stream != stream("room.r")
    });
    assert_eq!(verify(&tape).findings, []);
}

fn rules(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|f| f.rule).collect()
}

#[test]
fn a_room_with_a_cascade_is_on_one_worker_of_each_ea() {
    let mut tape = call();
    tape.write("room.t", ("nuve.n", 1), 0, vec![of_policy("wide", EaPolicy::TtlBest), placed("e", 1, 1)]);
    tape.write(
        "room.t",
        ("ec.e", 1),
        1,
        vec![RoomOpened {}.into(), assigned("b", 0, 1, 1), assigned("c", 0, 1, 1)],
    );
    assert_eq!(verify(&tape).findings, []);
    tape.write("room.t", ("ec.e", 1), 1, vec![assigned("c", 1, 1, 1)]);
    assert_eq!(rules(&verify(&tape).findings), ["placement"]);
}

#[test]
fn what_the_journal_found_is_passed_on() {
    let mut verifier = Verifier::new(None);
    verifier.journal(Severity::Error, "segment 000001 is damaged".into());
    let verdict = verifier.finish();
    assert_eq!(rules(&verdict.findings), ["damage"]);
    assert_eq!(verdict.errors(), 1);
    assert_eq!(verdict.findings[0].to_string(), "ERROR   damage  segment 000001 is damaged");
}

#[test]
fn unknown_events_are_counted_and_not_findings() {
    let mut tape = call();
    tape.ec(vec![Event::Unknown(RawEvent::new("ClientWaved", 1, Payload::encode(&1)))]);
    let verdict = verify(&tape);
    assert_eq!((verdict.findings, verdict.summary.unknown_events), (vec![], 1));
}

#[test]
fn a_decision_is_made_again_from_the_state_before_it() {
    // The command of this test is the events themselves; one about a client that is not in is refused.
    let again = |state: &RoomState, commit: &roomlog_bus::commit::Commit| {
        let who: String = commit.command.decode().ok()?;
        Some(if state.clients.contains_key(&client(&who)) {
            Ok(vec![left(&who)])
        } else {
            Err(format!("{who} is not in"))
        })
    };
    let run = |asked: &str, happened: &str| {
        let mut tape = call();
        tape.ec(vec![left(happened)]).command = Payload::encode(&asked);
        let mut verifier = Verifier::new(Some(&again));
        tape.commits.iter().for_each(|commit| verifier.commit(commit));
        verifier.finish()
    };
    let good = run("bob", "bob");
    assert_eq!((good.findings, good.summary.redecided), (vec![], 1));

    let other = run("bob", "ann");
    assert_eq!(rules(&other.findings), ["redecide"]);
    assert!(other.findings[0].text.starts_with("the decision cannot be made again"), "{}", other.findings[0]);
    let refused = run("cid", "bob");
    assert_eq!(rules(&refused.findings), ["redecide"]);
    assert!(refused.findings[0].text.contains("cid is not in"), "{}", refused.findings[0]);
}

#[test]
fn findings_beyond_what_is_kept_are_counted() {
    let mut tape = call();
    for _ in 0..10_050 {
        tape.ec(vec![released("b")]);
    }
    let verdict = verify(&tape);
    assert_eq!((verdict.findings.len(), verdict.summary.not_kept), (10_000, 50));
    assert_eq!(verdict.errors(), 10_050);
}

#[test]
fn the_documentation_lists_every_rule_as_it_is() {
    let text = include_str!("../../docs/replay.md");
    let listed: Vec<&str> =
        text.lines().filter(|l| l.starts_with("| `") && l.matches('|').count() == 3).collect();
    for (rule, says) in RULES {
        assert!(
            listed.contains(&format!("| `{rule}` | {says} |").as_str()),
            "{rule} is not in docs/replay.md as it is"
        );
    }
}
