//! Every method in every state of a client, with every kind of credential: one table, and each cell comes out as it says.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use roomlog_bus::ids::RoomId;
use roomlog_tests::{
    cell::{Cell, Shape, eventually},
    peer::{Peer, Policy, vp8},
    witness::{Bystander, journal_is_clean, refused},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
/// Tokens of this cell end so soon, so that one that has ended can be shown.
const TOKEN_TTL: Duration = Duration::from_secs(8);

/// Who asks, in the order of the table's columns.
///
/// | column | its socket | its token |
/// | --- | --- | --- |
/// | `none` | has shown nothing | made up |
/// | `left` | new; its client has left | good, used |
/// | `away` | new; its client's other socket broke | good |
/// | `adm`, `admv` | let in, not joined, with two transports | good; of a viewer |
/// | `join`, `view`, `ended` | joined, consuming a stream; `join` and `ended` send one | good; of a viewer; ended since it was used |
/// | `other` | joined, naming the objects of `join` | good |
/// | `moved` | joined, naming what it had before its media moved | good |
const COLUMNS: [&str; 10] =
    ["none", "left", "away", "adm", "admv", "join", "view", "ended", "other", "moved"];

/// What comes of each method: 0 is done, the rest are error codes. Asked from top to bottom by one client per column.
#[rustfmt::skip]
const TABLE: [(&str, [u16; 10]); 29] = [
    //                             none  left  away   adm  admv  join  view ended other moved
    ("getRouterRtpCapabilities", [2003, 2003, 2003,    0,    0,    0,    0,    0,    0,    0]),
    ("createWebRtcTransport",    [2003, 2003, 2003,    0,    0,    0,    0,    0,    0,    0]),
    ("connectWebRtcTransport",   [2003, 2003, 2003,    0,    0,    0,    0,    0, 2004, 2004]),
    ("restartIce",               [2003, 2003, 2003,    0,    0,    0,    0,    0, 2004, 2004]),
    ("getTransportStats",        [2003, 2003, 2003,    0,    0,    0,    0,    0, 2004, 2004]),
    ("produce",                  [2003, 2003, 2003, 2003, 2003,    0,  403,    0, 2004, 2004]),
    ("pauseProducer",            [2003, 2003, 2003, 2004, 2004,    0, 2004,    0, 2004, 2004]),
    ("resumeProducer",           [2003, 2003, 2003, 2004, 2004,    0, 2004,    0, 2004, 2004]),
    // A viewer is shown the statistics of what it consumes.
    ("getProducerStats",         [2003, 2003, 2003, 2004, 2004,    0,    0,    0, 2004, 2004]),
    ("pauseConsumer",            [2003, 2003, 2003, 2004, 2004,    0,    0,    0, 2004, 2004]),
    ("resumeConsumer",           [2003, 2003, 2003, 2004, 2004,    0,    0,    0, 2004, 2004]),
    ("requestConsumerKeyFrame",  [2003, 2003, 2003, 2004, 2004,    0,    0,    0, 2004, 2004]),
    ("setConsumerPreferredLayers",[2003,2003, 2003, 2004, 2004,    0,    0,    0, 2004, 2004]),
    ("setConsumerPriority",      [2003, 2003, 2003, 2004, 2004,    0,    0,    0, 2004, 2004]),
    ("getConsumerStats",         [2003, 2003, 2003, 2004, 2004,    0,    0,    0, 2004, 2004]),
    ("changeDisplayName",        [2003, 2003, 2003, 2003, 2003,    0,    0,    0,    0,    0]),
    ("closeProducer",            [2003, 2003, 2003, 2004, 2004,    0, 2004,    0, 2004, 2004]),
    // Gone since the line above.
    ("pauseProducer",            [2003, 2003, 2003, 2004, 2004, 2004, 2004, 2004, 2004, 2004]),
    ("produceData",              [2003, 2003, 2003,  403,  403,  403,  403,  403,  403,  403]),
    ("getDataProducerStats",     [2003, 2003, 2003,  403,  403,  403,  403,  403,  403,  403]),
    ("getDataConsumerStats",     [2003, 2003, 2003,  403,  403,  403,  403,  403,  403,  403]),
    ("applyNetworkThrottle",     [2003, 2003, 2003,  403,  403,  403,  403,  403,  403,  403]),
    ("resetNetworkThrottle",     [2003, 2003, 2003,  403,  403,  403,  403,  403,  403,  403]),
    ("nonsense",                 [2003, 2003, 2003,  403,  403,  403,  403,  403,  403,  403]),
    ("join",                     [2003, 2003, 2003,    0,    0, 2003, 2003, 2003, 2003, 2003]),
    // Once joined, a presenter may send and a viewer may not.
    ("produce",                  [2003, 2003, 2003,    0,  403,    0,  403,    0, 2004, 2004]),
    ("resume",                   [1002, 1002,    0, 2003, 2003, 2003, 2003, 2003, 2003, 2003]),
    ("token",                    [1004, 1002,    0,    0,    0,    0,    0,    0,    0,    0]),
    ("token",                    [1004, 1002,    0,    0,    0,    0,    0,    0,    0,    0]),
];

/// One column's client: its socket, none where each request gets a new one, and what it names.
struct Seat {
    peer: Option<Peer>,
    token: String,
    entered: Value,
    transport: String,
    producer: String,
    consumer: String,
    ssrc: u32,
}

async fn token(cell: &Cell, name: &str, user: &str, role: &str) -> anyhow::Result<Value> {
    let body = json!({ "user": user, "create": true, "role": role });
    let path = format!("/v1/rooms/name:{name}/tokens");
    roomlog_tests::http::call_ok(&cell.origin, "POST", &path, Some(&cell.key), Some(&body)).await
}

impl Seat {
    async fn enter(cell: &Cell, name: &str, role: &str, ssrc: u32) -> anyhow::Result<(Self, RoomId)> {
        let token = token(cell, name, &format!("u{ssrc}"), role).await?;
        let text = token["token"].as_str().context("no token")?.to_owned();
        let (peer, entered) = Peer::enter(&gateway(cell), &text, Policy::Accept).await?;
        let nobody = || "nobody".to_owned();
        let seat = Self {
            peer: Some(peer),
            token: text,
            entered,
            transport: nobody(),
            producer: nobody(),
            consumer: nobody(),
            ssrc,
        };
        Ok((seat, RoomId::new(token["roomId"].as_str().context("no room")?)?))
    }

    fn peer(&mut self) -> &mut Peer {
        self.peer.as_mut().expect("this column has a socket")
    }

    /// Two transports, as a client before `join`.
    async fn transports(&mut self) -> anyhow::Result<()> {
        for producing in [false, true] {
            let data = json!({ "producing": producing, "consuming": !producing });
            let made = self.peer().ask("createWebRtcTransport", data).await?;
            self.transport = made["id"].as_str().context("no id")?.to_owned();
        }
        Ok(())
    }

    /// Joins, sends a stream if it may, and waits until it consumes one.
    async fn join(&mut self, cell: &Cell, room: &RoomId, sends: bool) -> anyhow::Result<()> {
        let ssrc = self.ssrc;
        let (send, _) = self.peer().join("x").await?;
        if sends {
            self.producer = self.peer().produce_video(&send, ssrc).await?;
        }
        self.transport = send;
        self.consumes(cell, room).await
    }

    /// Waits until it consumes, and remembers one consumer.
    async fn consumes(&mut self, cell: &Cell, room: &RoomId) -> anyhow::Result<()> {
        let me = self.entered["clientId"].clone();
        let (consumer, producer) = eventually("it consumes", SOON, || async {
            let state = cell.folded(room).await.ok()?;
            // Of one who goes on sending to the end: `Source` or `Mate`.
            let steady = |producer| {
                let owner = &state.producers[producer].client;
                ["u200", "u1200"].contains(&state.clients[owner].user.as_str())
            };
            let mine = state
                .consumers
                .iter()
                .find(|(_, c)| json!(c.client) == me && c.accepted && steady(&c.producer));
            mine.map(|(id, c)| (id.to_string(), c.producer.to_string()))
        })
        .await?;
        self.consumer = consumer;
        if self.producer == "nobody" {
            self.producer = producer; // somebody else's
        }
        Ok(())
    }

    fn data(&self, room: &RoomId, row: usize, method: &str) -> Value {
        let hash = ["AB"; 32].join(":");
        let fingerprint = json!({ "algorithm": "sha-256", "value": hash });
        match method {
            "token" => json!({ "token": self.token }),
            "resume" => {
                json!({ "clientId": self.entered["clientId"], "roomId": room, "resumeKey": self.entered["resumeKey"], "since": 1 })
            }
            "createWebRtcTransport" => json!({ "producing": true, "consuming": false }),
            "connectWebRtcTransport" => {
                json!({ "transportId": self.transport, "dtlsParameters": { "role": "client", "fingerprints": [fingerprint] } })
            }
            "restartIce" | "getTransportStats" => json!({ "transportId": self.transport }),
            "produce" => {
                let mut parameters = vp8(self.ssrc + 10_000 * (row as u32 + 1));
                parameters["mid"] = json!(format!("m{row}"));
                json!({ "transportId": self.transport, "kind": "video", "rtpParameters": parameters, "appData": {} })
            }
            "setConsumerPreferredLayers" => json!({ "consumerId": self.consumer, "spatialLayer": 0 }),
            "setConsumerPriority" => json!({ "consumerId": self.consumer, "priority": 5 }),
            "changeDisplayName" | "join" => json!({ "displayName": "Another" }),
            method if method.contains("Producer") => json!({ "producerId": self.producer }),
            method if method.contains("Consumer") => json!({ "consumerId": self.consumer }),
            _ => json!({}),
        }
    }
}

fn gateway(cell: &Cell) -> String {
    format!("{}/signal", cell.origin.replace("http:", "ws:"))
}

/// Ends the SFU workers of this test with SIGKILL: the children of this process.
fn kill_workers() -> anyhow::Result<usize> {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if parent == Some(std::process::id()) && line.contains("sfu-worker") {
            let done = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
            killed += usize::from(done.success());
        }
    }
    Ok(killed)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_in_every_state_with_every_credential_comes_out_as_the_table_says() -> anyhow::Result<()>
{
    let cell = Cell::start(Shape {
        nuve: |settings| settings.token_ttl_s = TOKEN_TTL.as_secs(),
        ..Shape::default()
    })
    .await?;
    let bystander = Bystander::start(&cell).await?;
    let mut seats: BTreeMap<&str, Seat> = BTreeMap::new();

    // The one whose token ends comes first.
    let (mut ended, room) = Seat::enter(&cell, "r", "presenter", 100).await?;
    let ends = tokio::time::Instant::now() + TOKEN_TTL + Duration::from_secs(1);
    let (mut source, _) = Seat::enter(&cell, "r", "presenter", 200).await?;
    let (send, _) = source.peer().join("Source").await?;
    source.peer().produce_video(&send, 200).await?;

    for (name, role, ssrc) in [("join", "presenter", 300), ("view", "viewer", 400)] {
        let (mut seat, _) = Seat::enter(&cell, "r", role, ssrc).await?;
        seat.join(&cell, &room, role == "presenter").await?;
        seats.insert(name, seat);
    }
    for (name, role, ssrc) in [("adm", "presenter", 500), ("admv", "viewer", 600)] {
        let (mut seat, _) = Seat::enter(&cell, "r", role, ssrc).await?;
        seat.transports().await?;
        seats.insert(name, seat);
    }
    let (mut other, _) = Seat::enter(&cell, "r", "presenter", 700).await?;
    other.peer().ask("join", json!({ "displayName": "Other" })).await?;
    other.transport = seats["join"].transport.clone();
    other.producer = seats["join"].producer.clone();
    other.consumer = seats["join"].consumer.clone();
    seats.insert("other", other);

    let (mut none, _) = Seat::enter(&cell, "r", "presenter", 800).await?;
    none.peer.take().context("it has a socket")?.leave().await;
    (none.token, none.entered) = ("made.up.token".into(), json!({ "clientId": "nobody", "resumeKey": "x" }));
    seats.insert("none", none);
    let (mut away, _) = Seat::enter(&cell, "r", "presenter", 1000).await?;
    away.peer.take().context("it has a socket")?.break_off().await;
    seats.insert("away", away);

    // Two in a room of their own, whose worker dies.
    let (mut moved, moved_room) = Seat::enter(&cell, "m", "presenter", 1100).await?;
    let (mut mate, _) = Seat::enter(&cell, "m", "presenter", 1200).await?;
    let (send, _) = mate.peer().join("Mate").await?;
    mate.peer().produce_video(&send, 1200).await?;
    moved.join(&cell, &moved_room, true).await?;

    tokio::time::sleep_until(ends).await;
    // Late, since a used token is remembered until it would have ended.
    let (mut left, _) = Seat::enter(&cell, "r", "presenter", 900).await?;
    left.peer.take().context("it has a socket")?.leave().await;
    seats.insert("left", left);
    let (again, _) = Peer::enter(&gateway(&cell), &ended.token, Policy::Accept).await?;
    ended.peer = Some(again);
    ended.join(&cell, &room, true).await?;
    seats.insert("ended", ended);
    eventually("the rooms are at rest", SOON, || async {
        let state = cell.folded(&room).await.ok()?;
        (state.consumers.values().all(|c| c.accepted) && state.clients.len() == 8).then_some(())
    })
    .await
    .with_context(|| "clients: source, join, view, adm, admv, other, away, ended")?;

    let before: BTreeMap<u16, u64> =
        [403, 1002, 1004, 2003, 2004].into_iter().map(|code| (code, refused(&cell, code))).collect();
    let mut outcomes: BTreeMap<(usize, &str), u16> = BTreeMap::new();
    for (c, column) in COLUMNS.into_iter().enumerate() {
        if column == "moved" {
            continue; // asked last
        }
        let seat = seats.get_mut(column).context("a column without a seat")?;
        for (r, (method, _)) in TABLE.into_iter().enumerate() {
            outcomes.insert((r, COLUMNS[c]), outcome(&cell, seat, &room, r, method).await?);
        }
    }
    // The bystanders' own media would move, too: they have been watched so far.
    bystander.finish().await?;
    assert!(kill_workers()? >= 2);
    eventually("the media moved", SOON, || async {
        (!moved.peer.as_ref()?.heard_of("mediaMoved").is_empty()).then_some(())
    })
    .await?;
    // It may have moved to a worker that died a moment later, and moved again.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    cell.assert_agreement(&moved_room).await?;
    for (r, (method, _)) in TABLE.into_iter().enumerate() {
        outcomes.insert((r, "moved"), outcome(&cell, &mut moved, &moved_room, r, method).await?);
    }

    let mut wrong = Vec::new();
    let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
    for (r, (method, wanted)) in TABLE.iter().enumerate() {
        for (c, column) in COLUMNS.into_iter().enumerate() {
            let got = outcomes[&(r, column)];
            *counts.entry(got).or_default() += 1;
            if got != wanted[c] {
                wrong.push(format!("{method} (line {r}) as {column}: {} wanted, {got} came", wanted[c]));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    for (code, before) in before {
        let counted = refused(&cell, code) - before;
        assert_eq!(counted, counts[&code], "refusals with {code} that were counted");
    }
    println!("{} cells; by outcome {counts:?}", outcomes.len());
    cell.assert_agreement(&room).await?;
    cell.assert_agreement(&moved_room).await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

/// Asks `method` as `seat`; 0 or the error code.
async fn outcome(
    cell: &Cell,
    seat: &mut Seat,
    room: &RoomId,
    row: usize,
    method: &str,
) -> anyhow::Result<u16> {
    let data = seat.data(room, row, method);
    let answer = match &mut seat.peer {
        Some(peer) => peer.try_ask(method, data).await?,
        None => {
            let mut peer = Peer::open(&gateway(cell), Policy::Accept).await?;
            let answer = peer.try_ask(method, data).await?;
            peer.break_off().await;
            answer
        }
    };
    Ok(answer.map_or_else(|(code, _)| code as u16, |_| 0))
}
