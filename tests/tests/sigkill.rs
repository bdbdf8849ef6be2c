//! `roomlog up` killed in the middle of a call, again and again: the log opens, verifies, and holds everything that was answered.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{StreamId, StreamKind},
    events::Event,
    ids::Version,
    journal::read_all,
    sled_journal::SledJournal,
};
use roomlog_tests::{
    peer::{Peer, Policy},
    process::Up,
};
use serde_json::json;

/// Kills. `ROOMLOG_KILLS` asks for more.
const KILLS: usize = 50;

/// What was answered with success, and must be in the log: for each room, facts in words.
type Acknowledged = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_answered_is_lost_when_up_is_killed_in_the_middle_of_a_call() -> anyhow::Result<()> {
    let kills: usize = std::env::var("ROOMLOG_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let seed: u64 = std::env::var("ROOMLOG_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(20_261_122);
    let mut rng = StdRng::seed_from_u64(seed);
    let data = tempfile::tempdir()?;
    let acknowledged: Acknowledged = Arc::default();
    let began = Instant::now();
    let mut checked = 0;
    for kill in 0..kills {
        let flags = ["--workers", "1", "--ip-per-s", "1000000", "--log", "warn", "--resume-ms", "3000"];
        let up = Up::start(data.path(), &flags).await?;
        let callers: Vec<_> = (0..3)
            .map(|i| tokio::spawn(call(target(&up), format!("room-{kill}-{i}"), acknowledged.clone())))
            .collect();
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..900))).await;
        up.kill().await;
        for caller in callers {
            caller.abort();
            let _ = caller.await;
        }
        checked = check(data.path(), &acknowledged, kill).await?;
    }
    println!(
        "seed {seed}: {kills} kills, {checked} acknowledged facts all in the log, {:?}",
        began.elapsed()
    );
    assert!(checked > kills, "the calls hardly came to anything: {checked} facts in {kills} runs");
    Ok(())
}

/// Where to call, without holding the process.
#[derive(Clone)]
struct Target {
    origin: String,
    key: String,
}

fn target(up: &Up) -> Target {
    Target { origin: up.origin.clone(), key: up.key.clone() }
}

/// Two people call each other and do things for as long as the server lives, noting what was answered.
async fn call(to: Target, name: String, acknowledged: Acknowledged) -> anyhow::Result<()> {
    let mut people = Vec::new();
    let mut room = String::new();
    for who in ["Ann", "Bob"] {
        let body = json!({ "user": who, "create": true });
        let path = format!("/v1/rooms/name:{name}/tokens");
        let token =
            roomlog_tests::http::call_ok(&to.origin, "POST", &path, Some(&to.key), Some(&body)).await?;
        room = token["roomId"].as_str().unwrap_or_default().to_owned();
        let note = |fact: String| {
            acknowledged.lock().expect("no panic inside").entry(room.clone()).or_default().push(fact)
        };
        note("room".into());
        let (mut peer, entered) = Peer::enter(
            token["wsUrl"].as_str().unwrap_or_default(),
            token["token"].as_str().unwrap_or_default(),
            Policy::Accept,
        )
        .await?;
        let client = entered["clientId"].as_str().unwrap_or_default().to_owned();
        note(format!("admitted {client}"));
        let (send, receive) = peer.join(who).await?;
        note(format!("transport {send}"));
        note(format!("transport {receive}"));
        note(format!("joined {client}"));
        let producer = peer.produce_video(&send, 1000).await?;
        note(format!("producer {producer}"));
        people.push((peer, client, producer));
    }
    let note = |fact: String| {
        acknowledged.lock().expect("no panic inside").entry(room.clone()).or_default().push(fact)
    };
    for turn in 0.. {
        for (peer, client, producer) in &mut people {
            let method = if turn % 2 == 0 { "pauseProducer" } else { "resumeProducer" };
            peer.ask(method, json!({ "producerId": producer })).await?;
            note(format!("{method} {producer} {}", turn / 2));
            let display = format!("{client} {turn}");
            peer.ask("changeDisplayName", json!({ "displayName": display })).await?;
            note(format!("name {display}"));
        }
    }
    Ok(())
}

/// Opens the log, verifies it, and looks for every acknowledged fact. Gives how many there were.
async fn check(data: &std::path::Path, acknowledged: &Acknowledged, kill: usize) -> anyhow::Result<usize> {
    let verified = verify(data)?;
    assert!(verified["clean"] == true, "kill {kill}: verify found {:#}", verified["findings"]);
    let (journal, report) = SledJournal::open(data.join("log"), Default::default())?;
    assert!(report.findings.is_empty(), "kill {kill}: opening found {:?}", report.findings);
    let facts = acknowledged.lock().expect("no panic inside").clone();
    let mut checked = 0;
    for (room, facts) in facts {
        let stream = StreamId::new(StreamKind::Room, &room)?;
        let mut there = std::collections::BTreeSet::new();
        let mut turns: BTreeMap<String, usize> = BTreeMap::new();
        for commit in read_all(&journal, &stream, Version(1)).await? {
            for event in &commit.events {
                match Event::decode(event)? {
                    Event::RoomCreated(_) => there.insert("room".to_owned()),
                    Event::ClientAdmitted(e) => there.insert(format!("admitted {}", e.client)),
                    Event::TransportCreated(e) => there.insert(format!("transport {}", e.transport)),
                    Event::ClientJoined(e) => there.insert(format!("joined {}", e.client)),
                    Event::ProducerCreated(e) => there.insert(format!("producer {}", e.producer)),
                    Event::ProducerPaused(e) => there.insert(nth("pauseProducer", &e.producer, &mut turns)),
                    Event::ProducerResumed(e) => there.insert(nth("resumeProducer", &e.producer, &mut turns)),
                    Event::DisplayNameChanged(e) => there.insert(format!("name {}", e.display_name)),
                    _ => false,
                };
            }
        }
        for fact in &facts {
            assert!(
                there.contains(fact),
                "kill {kill}: room {room}: {fact:?} was answered and is not in the log"
            );
            checked += 1;
        }
    }
    journal.close().await;
    Ok(checked)
}

/// What `roomlog replay verify` says of the log, as the person on call would ask it.
fn verify(data: &std::path::Path) -> anyhow::Result<serde_json::Value> {
    let out = std::process::Command::new(roomlog_tests::roomlog_bin())
        .args(["replay", "--json", "--data"])
        .arg(data)
        .arg("verify")
        .output()?;
    Ok(serde_json::from_slice(&out.stdout).unwrap_or_else(|error| {
        panic!("replay verify gave no JSON ({error}): {}", String::from_utf8_lossy(&out.stderr))
    }))
}

/// The how-manieth time this has been done to this producer.
fn nth(what: &str, producer: &roomlog_bus::ids::ProducerId, turns: &mut BTreeMap<String, usize>) -> String {
    let count = turns.entry(format!("{what} {producer}")).or_default();
    let text = format!("{what} {producer} {count}");
    *count += 1;
    text
}
