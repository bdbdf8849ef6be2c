//! Rights at the EC: every method by clients with different rights, and rights that the application changes while they are used.

use std::time::Duration;

use anyhow::Context;
use roomlog_bus::ids::{ClientId, RoomId};
use roomlog_tests::{
    cell::{Cell, Shape, eventually},
    http,
    peer::{Peer, Policy, vp8},
    witness::journal_is_clean,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// Who asks, in the order of the table's columns: two roles, and rights one by one.
fn columns() -> [(&'static str, Value); 6] {
    [
        ("presenter", json!({ "role": "presenter" })),
        ("viewer", json!({ "role": "viewer" })),
        ("speaker", json!({ "rights": { "publish": ["audio"], "subscribe": true } })),
        ("sender", json!({ "rights": { "publish": ["audio", "video"], "data": true } })),
        ("nobody", json!({ "rights": {} })),
        ("manager", json!({ "rights": { "subscribe": true, "manage": true } })),
    ]
}

/// What comes of each method: 0 is done, the rest are error codes. Objects are one's own but where it says otherwise.
#[rustfmt::skip]
const TABLE: [(&str, [u16; 6]); 30] = [
    //                              pres  view  spkr  send  none  mgr
    ("getRouterRtpCapabilities",   [   0,    0,    0,    0,    0,    0]),
    ("createWebRtcTransport",      [   0,    0,    0,    0,    0,    0]),
    ("connectWebRtcTransport",     [   0,    0,    0,    0,    0,    0]),
    ("restartIce",                 [   0,    0,    0,    0,    0,    0]),
    ("getTransportStats",          [   0,    0,    0,    0,    0,    0]),
    ("produce video",              [   0,  403,  403,    0,  403,  403]),
    ("produce audio",              [   0,  403,    0,    0,  403,  403]),
    ("pauseProducer",              [   0, 2004,    0,    0, 2004, 2004]),
    ("resumeProducer",             [   0, 2004,    0,    0, 2004, 2004]),
    ("getProducerStats",           [   0, 2004,    0,    0, 2004, 2004]),
    // Who is sent nothing has no consumers.
    ("pauseConsumer",              [   0,    0,    0, 2004, 2004,    0]),
    ("resumeConsumer",             [   0,    0,    0, 2004, 2004,    0]),
    ("requestConsumerKeyFrame",    [   0,    0,    0, 2004, 2004,    0]),
    ("setConsumerPreferredLayers", [   0,    0,    0, 2004, 2004,    0]),
    ("setConsumerPriority",        [   0,    0,    0, 2004, 2004,    0]),
    ("getConsumerStats",           [   0,    0,    0, 2004, 2004,    0]),
    ("changeDisplayName",          [   0,    0,    0,    0,    0,    0]),
    ("produceData",                [ 403,  403,  403,  403,  403,  403]),
    ("getDataProducerStats",       [ 403,  403,  403,  403,  403,  403]),
    ("getDataConsumerStats",       [ 403,  403,  403,  403,  403,  403]),
    ("applyNetworkThrottle",       [ 403,  403,  403,  403,  403,  403]),
    ("resetNetworkThrottle",       [ 403,  403,  403,  403,  403,  403]),
    // Of others.
    ("muteProducer",               [ 403,  403,  403,  403,  403,    0]),
    ("unmuteProducer",             [ 403,  403,  403,  403,  403,    0]),
    ("muteNothing",                [ 403,  403,  403,  403,  403, 2004]),
    ("removeNobody",               [ 403,  403,  403,  403,  403, 2002]),
    ("removePeer",                 [ 403,  403,  403,  403,  403,    0]),
    ("closeProducer",              [   0, 2004,    0,    0, 2004, 2004]),
    ("join",                       [2003, 2003, 2003, 2003, 2003, 2003]),
    ("token",                      [   0,    0,    0,    0,    0,    0]),
];

/// A client with what it needs to be asked everything.
struct Seat {
    peer: Peer,
    token: String,
    id: ClientId,
    transport: String,
    producer: String,
    consumer: String,
}

async fn enter(cell: &Cell, secret: &str, with: &Value) -> anyhow::Result<(Seat, RoomId)> {
    let mut body = with.clone();
    body["user"] = json!("u");
    body["create"] = json!(true);
    let token =
        http::call_ok(&cell.origin, "POST", "/v1/rooms/name:r/tokens", Some(secret), Some(&body)).await?;
    let text = |field: &str| token[field].as_str().context("a field of the token").map(str::to_owned);
    let (mut peer, _) = Peer::enter(&text("wsUrl")?, &text("token")?, Policy::Accept).await?;
    let (transport, _) = peer.join("x").await?;
    let none = || "none".to_owned();
    let seat = Seat {
        peer,
        token: text("token")?,
        id: ClientId::new(text("clientId")?)?,
        transport,
        producer: none(),
        consumer: none(),
    };
    Ok((seat, RoomId::new(text("roomId")?)?))
}

fn opus(ssrc: u32) -> Value {
    json!({
        "mid": format!("a{ssrc}"),
        "codecs": [{ "mimeType": "audio/opus", "payloadType": 111, "clockRate": 48000, "channels": 2, "parameters": {}, "rtcpFeedback": [] }],
        "headerExtensions": [], "encodings": [{ "ssrc": ssrc }], "rtcp": { "cname": "test" },
    })
}

/// Method and data of a row.
fn request(row: &str, seat: &Seat, victim: &Seat, ssrc: u32) -> (String, Value) {
    let hash = ["AB"; 32].join(":");
    let fingerprint = json!({ "algorithm": "sha-256", "value": hash });
    let produce = |kind: &str, parameters: Value| json!({ "transportId": seat.transport, "kind": kind, "rtpParameters": parameters, "appData": {} });
    let (method, data) = match row {
        "produce video" => ("produce", produce("video", vp8(ssrc))),
        "produce audio" => ("produce", produce("audio", opus(ssrc + 5_000))),
        "muteProducer" => (row, json!({ "producerId": victim.producer, "muted": true })),
        "unmuteProducer" => ("muteProducer", json!({ "producerId": victim.producer, "muted": false })),
        "muteNothing" => ("muteProducer", json!({ "producerId": "nothing", "muted": true })),
        "removePeer" => (row, json!({ "peerId": victim.id })),
        "removeNobody" => ("removePeer", json!({ "peerId": "nobody" })),
        "createWebRtcTransport" => (row, json!({ "producing": true, "consuming": false })),
        "connectWebRtcTransport" => (
            row,
            json!({ "transportId": seat.transport, "dtlsParameters": { "role": "client", "fingerprints": [fingerprint] } }),
        ),
        "restartIce" | "getTransportStats" => (row, json!({ "transportId": seat.transport })),
        "setConsumerPreferredLayers" => (row, json!({ "consumerId": seat.consumer, "spatialLayer": 0 })),
        "setConsumerPriority" => (row, json!({ "consumerId": seat.consumer, "priority": 5 })),
        "changeDisplayName" | "join" => (row, json!({ "displayName": "Another" })),
        "token" => (row, json!({ "token": seat.token })),
        row if row.contains("Producer") => (row, json!({ "producerId": seat.producer })),
        row if row.contains("Consumer") => (row, json!({ "consumerId": seat.consumer })),
        row => (row, json!({})),
    };
    (method.to_owned(), data)
}

async fn secret_key(cell: &Cell) -> anyhow::Result<String> {
    let body = json!({ "name": "rights", "publishableCreatesRooms": true });
    let made = http::call_ok(&cell.origin, "POST", "/v1/services", Some("ak_test"), Some(&body)).await?;
    Ok(made["secretKey"].as_str().context("a service without a key")?.to_owned())
}

async fn cell() -> anyhow::Result<Cell> {
    Cell::start(Shape { nuve: |settings| settings.admin_key = Some("ak_test".into()), ..Shape::default() })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_with_every_right_comes_out_as_the_table_says() -> anyhow::Result<()> {
    let cell = cell().await?;
    let secret = secret_key(&cell).await?;
    let (mut source, room) = enter(&cell, &secret, &json!({})).await?;
    source.peer.produce_video(&source.transport.clone(), 90_000).await?;
    let mut wrong = Vec::new();
    for (c, (column, with)) in columns().into_iter().enumerate() {
        let (mut victim, _) = enter(&cell, &secret, &json!({})).await?;
        victim.producer = victim.peer.produce_video(&victim.transport.clone(), 91_000).await?;
        let (mut seat, _) = enter(&cell, &secret, &with).await?;
        let consumes = !["sender", "nobody"].contains(&column);
        let me = seat.id.clone();
        if consumes {
            seat.consumer = eventually("it consumes", SOON, || async {
                let state = cell.folded(&room).await.ok()?;
                let of_source = |producer| state.producers[producer].client == source.id;
                let mut mine = state.consumers.iter().filter(|(_, c)| c.client == me && c.accepted);
                mine.find(|(_, c)| of_source(&c.producer)).map(|(id, _)| id.to_string())
            })
            .await?;
        }
        for (r, (row, outcomes)) in TABLE.iter().enumerate() {
            let (method, data) = request(row, &seat, &victim, 10_000 + 100 * (c * TABLE.len() + r) as u32);
            let answer = seat.peer.try_ask(&method, data).await?;
            if method == "produce"
                && let Ok(made) = &answer
            {
                seat.producer = made["id"].as_str().context("a producer without id")?.to_owned();
            }
            // Nobody can send data yet; whose rights do not cover it is told that.
            if let ("produceData", Err((_, reason))) = (*row, &answer) {
                let covered = ["presenter", "sender"].contains(&column);
                if reason.contains("no data channels yet") != covered {
                    wrong.push(format!("{row} as {column}: {reason}"));
                }
            }
            let got = answer.map_or_else(|(code, _)| code as u16, |_| 0);
            if got != outcomes[c] {
                wrong.push(format!("{row} (line {r}) as {column}: {} wanted, {got} came", outcomes[c]));
            }
        }
        let state = cell.folded(&room).await?;
        assert!(consumes || state.consumers.values().all(|c| c.client != me), "{column} is sent something");
        assert_eq!(state.clients.contains_key(&victim.id), column != "manager");
        seat.peer.leave().await;
        victim.peer.leave().await;
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_rights_and_mutes_take_effect_at_once() -> anyhow::Result<()> {
    let cell = cell().await?;
    let secret = secret_key(&cell).await?;
    let (ann, room) = enter(&cell, &secret, &json!({ "role": "viewer" })).await?;
    let (mut bob, _) = enter(&cell, &secret, &json!({})).await?;
    let mut ann = ann;
    bob.producer = bob.peer.produce_video(&bob.transport.clone(), 20_000).await?;
    let path = format!("/v1/rooms/{room}/users/{}", ann.id);
    let change = async |path: &str, body: Value| {
        http::call_ok(&cell.origin, "PATCH", path, Some(&secret), Some(&body)).await
    };
    let heard = async |seat: &Seat, method: &'static str| {
        let what = format!("{method} is heard");
        eventually(&what, SOON, || async { seat.peer.heard_of(method).pop() }).await
    };
    let sent_to = async |id: &ClientId| {
        anyhow::Ok(
            cell.folded(&room).await?.consumers.values().filter(|c| c.client == *id && c.accepted).count(),
        )
    };
    let produce = |ssrc: u32, transport: &str| json!({ "transportId": transport, "kind": "video", "rtpParameters": vp8(ssrc), "appData": {} });
    eventually("she is sent his", SOON, || async { (sent_to(&ann.id).await.ok()? == 1).then_some(()) })
        .await?;

    // A viewer becomes a presenter, and back.
    let asked = produce(30_000, &ann.transport);
    assert!(ann.peer.try_ask("produce", asked.clone()).await?.is_err_and(|(code, _)| code == 403));
    change(&path, json!({ "role": "presenter" })).await?;
    assert_eq!(heard(&ann, "rightsChanged").await?["rights"]["publish"], json!(["audio", "video"]));
    let made = ann.peer.ask("produce", asked).await?["id"].clone();
    eventually("he is sent hers", SOON, || async { (sent_to(&bob.id).await.ok()? == 1).then_some(()) })
        .await?;
    let user = change(&path, json!({ "role": "viewer" })).await?;
    assert_eq!(user["producers"], json!([]), "the answer is of after the change");
    assert_eq!(heard(&ann, "producerClosed").await?["producerId"], made);
    heard(&bob, "consumerClosed").await?;
    // What she may not receive goes, and comes back with the right.
    change(&path, json!({ "rights": {} })).await?;
    assert_eq!(sent_to(&ann.id).await?, 0);
    heard(&ann, "consumerClosed").await?;
    change(&path, json!({ "rights": { "subscribe": true } })).await?;
    eventually("she is sent his again", SOON, || async { (sent_to(&ann.id).await.ok()? == 1).then_some(()) })
        .await?;

    // Muted, he cannot speak; unmuted, it is he who opens his microphone.
    let sent = format!("/v1/rooms/{room}/users/{}/producers/{}", bob.id, bob.producer);
    let shown = change(&sent, json!({ "muted": true })).await?;
    assert_eq!(shown["producers"][0]["paused"], true);
    assert_eq!(heard(&bob, "producerMuted").await?["muted"], true);
    let resume = json!({ "producerId": bob.producer });
    assert!(bob.peer.try_ask("resumeProducer", resume.clone()).await?.is_err_and(|(code, _)| code == 403));
    let shown = change(&sent, json!({ "muted": false })).await?;
    assert_eq!(
        (&shown["producers"][0]["muted"], &shown["producers"][0]["paused"]),
        (&json!(false), &json!(true))
    );
    bob.peer.ask("resumeProducer", resume).await?;
    assert!(!cell.folded(&room).await?.producers.values().next().context("his")?.paused);

    // A room that takes two takes no third.
    let limits = json!({ "limits": { "maxClients": 2 } });
    change(&format!("/v1/rooms/{room}"), limits).await?;
    let full = enter(&cell, &secret, &json!({})).await.map(|_| ()).expect_err("the room is full");
    assert!(full.to_string().contains("403"), "{full}");
    cell.assert_agreement(&room).await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}
