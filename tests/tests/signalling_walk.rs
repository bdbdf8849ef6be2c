//! A seeded random walk: frames as clients send them, changed at random. Afterwards log, EC, EA and worker agree, and the log verifies.

use std::time::Duration;

use anyhow::Context;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use roomlog_bus::ids::RoomId;
use roomlog_tests::{
    cell::{Cell, Shape},
    peer::{Peer, Policy, vp8},
    witness::{Bystander, counted, journal_is_clean},
};
use serde_json::{Value, json};

/// Frames of one walk.
const FRAMES: usize = 2_000;
/// After so many, the client that sent the last one has to be answered, and its ids are looked up anew.
const CHECK_EVERY: usize = 25;
/// `ROOMLOG_SEED` repeats a walk.
const SEED: u64 = 20_261_122;

/// A client of the walk, that comes back whenever it is closed.
struct Walker {
    token: Value,
    peer: Peer,
    policy: Policy,
    next: u64,
}

impl Walker {
    async fn start(cell: &Cell, user: &str, policy: Policy) -> anyhow::Result<Self> {
        let token = cell.token("walk", user).await?;
        let peer = Self::enter(&token, policy).await?;
        Ok(Self { token, peer, policy, next: 1_000 })
    }

    async fn enter(token: &Value, policy: Policy) -> anyhow::Result<Peer> {
        let url = token["wsUrl"].as_str().context("no wsUrl")?;
        let (mut peer, _) = Peer::enter(url, token["token"].as_str().context("no token")?, policy).await?;
        peer.join("walker").await?;
        Ok(peer)
    }

    /// Whether it had to come back.
    async fn back(&mut self) -> anyhow::Result<bool> {
        if self.peer.closed.lock().expect("no panic inside").is_none() {
            return Ok(false);
        }
        self.peer = Self::enter(&self.token, self.policy).await?;
        Ok(true)
    }

    /// Has to be answered, unless the socket was closed meanwhile.
    async fn answered(&mut self) -> anyhow::Result<()> {
        self.next += 1;
        let answer = self.peer.ask_with_id(self.next, "getRouterRtpCapabilities", json!({})).await;
        match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((code, reason))) => anyhow::bail!("{code} {reason}"),
            Err(_) if self.peer.closed.lock().expect("no panic inside").is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Ids of everything there is, of whomever.
#[derive(Default)]
struct Ids {
    transports: Vec<String>,
    producers: Vec<String>,
    consumers: Vec<String>,
}

impl Ids {
    async fn of(cell: &Cell, room: &RoomId) -> anyhow::Result<Self> {
        let state = cell.folded(room).await?;
        Ok(Self {
            transports: state.transports.keys().map(ToString::to_string).collect(),
            producers: state.producers.keys().map(ToString::to_string).collect(),
            consumers: state.consumers.keys().map(ToString::to_string).collect(),
        })
    }
}

fn pick(rng: &mut StdRng, ids: &[String]) -> Value {
    ids.choose(rng).map_or_else(|| json!("nobody"), |id| json!(id))
}

/// A request as it should be.
fn valid(rng: &mut StdRng, ids: &Ids) -> (&'static str, Value) {
    let (transport, producer, consumer) =
        (pick(rng, &ids.transports), pick(rng, &ids.producers), pick(rng, &ids.consumers));
    let hash = ["AB"; 32].join(":");
    match rng.random_range(0..19) {
        0 => ("createWebRtcTransport", json!({ "forceTcp": false, "producing": true, "consuming": false })),
        1 => (
            "connectWebRtcTransport",
            json!({ "transportId": transport, "dtlsParameters": { "role": "client", "fingerprints": [{ "algorithm": "sha-256", "value": hash }] } }),
        ),
        2 => ("restartIce", json!({ "transportId": transport })),
        3 => (
            "join",
            json!({ "displayName": "w", "device": { "name": "d" }, "rtpCapabilities": { "codecs": [], "headerExtensions": [] } }),
        ),
        4..=6 => {
            let ssrc = rng.random_range(1..u32::MAX - 1);
            (
                "produce",
                json!({ "transportId": transport, "kind": "video", "rtpParameters": vp8(ssrc), "appData": { "a": 1 } }),
            )
        }
        7 => ("closeProducer", json!({ "producerId": producer })),
        8 => ("pauseProducer", json!({ "producerId": producer })),
        9 => ("resumeProducer", json!({ "producerId": producer })),
        10 => ("pauseConsumer", json!({ "consumerId": consumer })),
        11 => ("resumeConsumer", json!({ "consumerId": consumer })),
        12 => ("requestConsumerKeyFrame", json!({ "consumerId": consumer })),
        13 => (
            "setConsumerPreferredLayers",
            json!({ "consumerId": consumer, "spatialLayer": 1, "temporalLayer": 1 }),
        ),
        14 => ("setConsumerPriority", json!({ "consumerId": consumer, "priority": 3 })),
        15 => ("changeDisplayName", json!({ "displayName": format!("name {}", rng.random_range(0..50)) })),
        16 => ("getTransportStats", json!({ "transportId": transport })),
        17 => ("getProducerStats", json!({ "producerId": producer })),
        _ => ("getConsumerStats", json!({ "consumerId": consumer })),
    }
}

/// Something else than what was there.
fn junk(rng: &mut StdRng) -> Value {
    match rng.random_range(0..12) {
        0 => json!(null),
        1 => json!(true),
        2 => json!(-1),
        3 => json!(u64::MAX),
        4 => json!(1.5e300),
        5 => json!(""),
        6 => json!("x".repeat(rng.random_range(1..5_000))),
        7 => json!("\u{0}\u{202e}💥"),
        8 => json!([]),
        9 => json!({}),
        10 => json!([[[[{ "a": [1] }]]]]),
        _ => json!(rng.random_range(0..300)),
    }
}

/// Changes one value somewhere in `value`: replaces it, leaves it out, or adds to it.
fn mutate(rng: &mut StdRng, value: &mut Value) {
    let deeper = rng.random_bool(0.75);
    match value {
        Value::Object(map) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = keys.choose(rng).expect("it is not empty").clone();
            if deeper {
                mutate(rng, map.get_mut(&key).expect("one of its keys"));
            } else if rng.random_bool(0.5) {
                map.remove(&key);
            } else {
                map.insert(format!("{key}2"), junk(rng));
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = rng.random_range(0..list.len());
            if deeper {
                mutate(rng, &mut list[at]);
            } else if rng.random_bool(0.5) {
                list.remove(at);
            } else {
                let again = list[at].clone();
                list.extend(std::iter::repeat_n(again, rng.random_range(1..40)));
            }
        }
        other => *other = junk(rng),
    }
}

/// Changes the text of a frame, which mostly makes it no JSON.
fn corrupt(rng: &mut StdRng, text: &mut String) {
    let at = (0..=text.len()).filter(|i| text.is_char_boundary(*i)).collect::<Vec<_>>();
    let at = *at.choose(rng).expect("0 is one");
    match rng.random_range(0..3) {
        0 => text.truncate(at),
        1 => text.insert(at, '}'),
        _ => text.insert_str(at, "\\u0000"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_changed_frames_leave_one_state_and_a_clean_log() -> anyhow::Result<()> {
    let seed = std::env::var("ROOMLOG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(SEED);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let cell = Cell::start(Shape {
        ec: |settings| settings.accept_timeout = Duration::from_secs(1),
        // What was made for requests that a client then started over from is taken away soon.
        ea: |settings| {
            settings.provisional_ttl = Duration::from_secs(2);
            settings.sweep_every = Duration::from_secs(1);
        },
        ..Shape::default()
    })
    .await?;
    let bystander = Bystander::start(&cell).await?;
    let mut walkers = [
        Walker::start(&cell, "Ann", Policy::Accept).await?,
        Walker::start(&cell, "Bob", Policy::Refuse).await?,
        Walker::start(&cell, "Carl", Policy::Silent).await?,
    ];
    let room = RoomId::new(walkers[0].token["roomId"].as_str().context("no room")?)?;
    let mut ids = Ids::of(&cell, &room).await?;
    let (mut changed, mut came_back) = (0, 0);
    for i in 0..FRAMES {
        let who = rng.random_range(0..walkers.len());
        let walker = &mut walkers[who];
        let (method, mut data) = valid(&mut rng, &ids);
        walker.next += 1;
        // Now and then an id that was used already.
        let id = if rng.random_bool(0.05) { walker.next - rng.random_range(1..20) } else { walker.next };
        let mut mutated = rng.random_bool(0.5);
        if mutated {
            mutate(&mut rng, &mut data);
        }
        let mut frame = json!({ "request": true, "id": id, "method": method, "data": data });
        if rng.random_bool(0.05) {
            mutate(&mut rng, &mut frame);
            mutated = true;
        }
        let mut text = frame.to_string();
        if rng.random_bool(0.02) {
            corrupt(&mut rng, &mut text);
            mutated = true;
        }
        changed += usize::from(mutated);
        walker.peer.say_text(&text);
        if rng.random_bool(0.003) {
            // The network breaks behind what was just said.
            let (url, token) = (&walker.token["wsUrl"], &walker.token["token"]);
            let (url, token) = (url.as_str().unwrap_or_default(), token.as_str().unwrap_or_default());
            let (next, _) = Peer::enter(url, token, walker.policy).await?;
            std::mem::replace(&mut walker.peer, next).break_off().await;
            walker.peer.join("walker").await?;
            came_back += 1;
        }
        if i % CHECK_EVERY == 0 {
            walker.answered().await.with_context(|| format!("seed {seed}, after frame {i}: {text:.300}"))?;
            for walker in &mut walkers {
                came_back += usize::from(walker.back().await?);
            }
            ids = Ids::of(&cell, &room).await?;
        }
    }
    println!("{FRAMES} frames, {changed} of them changed; clients came back {came_back} times");
    assert!(changed > FRAMES / 3 && came_back > 2, "this walk walks nowhere");

    // At rest: what nobody answered has been refused.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    for walker in &mut walkers {
        walker.back().await?;
        walker.answered().await?;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let state = cell.assert_agreement(&room).await.with_context(|| format!("seed {seed}"))?;
    println!(
        "{} transports, {} producers, {} consumers; {} bad frames",
        state.transports.len(),
        state.producers.len(),
        state.consumers.len(),
        counted(&cell, "roomlog_ec_bad_frames")
    );
    assert_eq!(state.clients.len(), 3);
    bystander.finish().await?;
    journal_is_clean(&cell).await.with_context(|| format!("seed {seed}"))?;
    cell.stop().await;
    Ok(())
}
