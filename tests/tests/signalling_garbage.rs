//! What makes no sense on a socket gets its documented answer, is counted, changes nothing in the log, and nobody else notices.

use std::time::Duration;

use futures::future::join_all;
use roomlog_bus::{
    commit::StreamId,
    events::Event,
    ids::{RoomId, Version},
    journal::read_all,
};
use roomlog_ec::per_client::PerClient;
use roomlog_tests::{
    cell::{Cell, Shape, eventually},
    peer::{Peer, Policy, vp8},
    witness::{Bystander, closed, counted, journal_is_clean, refused},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const FRAME_LIMIT: usize = 256 * 1024;

fn gateway(cell: &Cell) -> String {
    format!("{}/signal", cell.origin.replace("http:", "ws:"))
}

async fn events(cell: &Cell, room: &RoomId) -> anyhow::Result<Vec<Event>> {
    let commits = read_all(cell.journal.as_ref(), &StreamId::from(room), Version(1)).await?;
    Ok(commits.iter().flat_map(|c| &c.events).map(Event::decode).collect::<Result<_, _>>()?)
}

async fn version(cell: &Cell, room: &RoomId) -> anyhow::Result<Version> {
    Ok(cell.folded(room).await?.version())
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_not_protoo_are_counted_and_too_many_end_the_socket() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let bystander = Bystander::start(&cell).await?;
    let (mut ann, room, _) = cell.enter("r", "Ann").await?;
    ann.join("Ann").await?;
    let before = version(&cell, &room).await?;

    let nested = "[".repeat(100_000);
    let deep =
        format!(r#"{{"request":true,"id":1,"method":"join","data":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    let garbage = [
        "",
        " ",
        "null",
        "[]",
        "{}",
        "{",
        r#"{"request":true}"#,
        r#"{"request":true,"id":-1,"method":"join"}"#,
        r#"{"request":true,"id":1e300,"method":"join"}"#,
        r#"{"request":true,"id":18446744073709551616,"method":"join"}"#,
        r#"{"request":true,"id":5,"method":7}"#,
        r#"{"request":true,"id":5,"method":"\ud800"}"#,
        r#"{"response":true,"ok":true}"#,
        &nested,
        &deep,
    ];
    for frame in garbage {
        ann.say_text(frame);
    }
    ann.say_bytes(b"\x00\x01\x02");
    let sent = garbage.len() as u64 + 1;
    // The socket lives, and what is asked now is answered.
    ann.ask("getRouterRtpCapabilities", json!({})).await?;
    assert_eq!(counted(&cell, "roomlog_ec_bad_frames"), sent);

    // What is protoo but means nothing is ignored: answers to questions nobody asked, notifications.
    for _ in 0..50 {
        ann.say(&json!({ "response": true, "id": 123_456, "ok": true, "data": {} }));
        ann.say(&json!({ "notification": true, "method": "join", "data": { "displayName": "x" } }));
    }
    ann.ask("getRouterRtpCapabilities", json!({})).await?;
    assert_eq!(version(&cell, &room).await?, before, "garbage is not in the log");

    ann.say_text("one more");
    let (code, reason) = ann.closed_within(SOON).await?;
    assert_eq!(code, 4000);
    assert!(reason.starts_with("too many bad frames"), "{reason}");
    assert_eq!(closed(&cell, "bad_frames"), 1);
    eventually("the log says that Ann is away", SOON, || async {
        cell.folded(&room).await.ok()?.clients.values().any(|c| c.resume_until.is_some()).then_some(())
    })
    .await?;
    bystander.finish().await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_by_name_and_change_nothing() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let bystander = Bystander::start(&cell).await?;
    let (mut ann, room, _) = cell.enter("r", "Ann").await?;
    let (send, receive) = ann.join("Ann").await?;
    let before = version(&cell, &room).await?;
    let long = "m".repeat(100_000);
    let large = json!({ "x": "y".repeat(10_000) });
    let mut bad_codec = vp8(1);
    bad_codec["codecs"][0]["mimeType"] = json!("video/NOTHING");
    let mut huge_ssrc = vp8(1);
    huge_ssrc["encodings"][0]["ssrc"] = json!(u64::MAX);
    let cases: Vec<(&str, Value, u64)> = vec![
        ("", json!({}), 0),
        ("nonsense", json!({}), 403),
        ("JOIN", json!({}), 403),
        ("join\u{0}", json!({}), 403),
        (&long, json!({}), 403),
        ("applyNetworkThrottle", json!({ "uplink": 0 }), 403),
        ("resetNetworkThrottle", json!({}), 403),
        ("produceData", json!({ "transportId": send }), 403),
        ("join", json!({ "displayName": "again" }), 2003),
        ("resume", json!({}), 2003),
        ("token", json!({}), 2000),
        ("token", json!({ "token": 7 }), 2000),
        ("token", json!({ "token": "another" }), 2003),
        ("createWebRtcTransport", json!({}), 2000),
        ("createWebRtcTransport", json!({ "producing": true, "consuming": true }), 2000),
        ("createWebRtcTransport", json!({ "producing": "yes", "consuming": false }), 2000),
        ("createWebRtcTransport", json!([]), 2000),
        ("createWebRtcTransport", json!("text"), 2000),
        ("connectWebRtcTransport", json!({ "transportId": send }), 2000),
        ("connectWebRtcTransport", json!({ "transportId": send, "dtlsParameters": [] }), 2000),
        ("restartIce", json!({ "transportId": "../../etc/passwd" }), 2000),
        ("restartIce", json!({ "transportId": "" }), 2000),
        ("restartIce", json!({ "transportId": "x".repeat(65) }), 2000),
        ("restartIce", json!({ "transportId": null }), 2000),
        ("restartIce", json!({ "transportId": "nobody" }), 2004),
        (
            "produce",
            json!({ "transportId": send, "kind": "smell", "rtpParameters": vp8(1), "appData": {} }),
            2000,
        ),
        (
            "produce",
            json!({ "transportId": send, "kind": "video", "rtpParameters": {}, "appData": {} }),
            2000,
        ),
        (
            "produce",
            json!({ "transportId": send, "kind": "video", "rtpParameters": bad_codec, "appData": {} }),
            2000,
        ),
        (
            "produce",
            json!({ "transportId": send, "kind": "video", "rtpParameters": huge_ssrc, "appData": {} }),
            2000,
        ),
        (
            "produce",
            json!({ "transportId": send, "kind": "video", "rtpParameters": vp8(1), "appData": large }),
            2000,
        ),
        (
            "produce",
            json!({ "transportId": receive, "kind": "video", "rtpParameters": vp8(1), "appData": {} }),
            2003,
        ),
        ("closeProducer", json!({}), 2000),
        ("closeProducer", json!({ "producerId": "nobody" }), 2004),
        ("setConsumerPriority", json!({ "consumerId": "nobody", "priority": 1 }), 2004),
        ("setConsumerPriority", json!({ "consumerId": "nobody", "priority": 256 }), 2000),
        ("setConsumerPriority", json!({ "consumerId": "nobody", "priority": -1 }), 2000),
        ("setConsumerPreferredLayers", json!({ "consumerId": "nobody", "spatialLayer": 1e9 }), 2000),
        ("changeDisplayName", json!({ "displayName": { "a": 1 } }), 2000),
        ("getTransportStats", json!({ "transportId": "nobody" }), 2004),
        ("getProducerStats", json!({ "producerId": "nobody" }), 2004),
        ("getConsumerStats", json!({ "consumerId": "nobody" }), 2004),
    ];
    let mut wanted = std::collections::BTreeMap::<u64, u64>::new();
    for (method, data, code) in cases {
        if code == 0 {
            ann.say(&json!({ "request": true, "id": 9_999, "method": method, "data": data }));
            continue;
        }
        *wanted.entry(code).or_default() += 1;
        let shown: String = format!("{method:.40} {data:.200}");
        let (got, reason) = ann.try_ask(method, data).await?.expect_err(&shown);
        assert_eq!(got, code, "{shown}: {reason}");
        assert!(!reason.is_empty() && reason.len() < 600, "{shown}: {reason}");
    }
    assert_eq!(counted(&cell, "roomlog_ec_bad_frames"), 1, "a request without a method is no request");
    for (code, count) in wanted {
        assert_eq!(refused(&cell, code as u16), count, "refusals counted with code {code}");
    }
    assert_eq!(version(&cell, &room).await?, before, "refused requests are not in the log");

    // A name is text for people: control characters are dropped, and it has an end.
    let name = format!("A\u{0}\n{}", "n".repeat(100_000));
    ann.ask("changeDisplayName", json!({ "displayName": name })).await?;
    let state = cell.assert_agreement(&room).await?;
    let kept = state.clients.values().next().unwrap().joined.as_ref().unwrap().display_name.clone();
    assert_eq!(kept.chars().count(), 100);
    assert!(kept.starts_with("Ann"), "{kept}");
    bystander.finish().await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_to_show_a_token_and_not_for_ever() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let mut stranger = Peer::open(&gateway(&cell), Policy::Silent).await?;
    stranger.say(&json!({ "notification": true, "method": "x" }));
    stranger.say(&json!({ "response": true, "id": 0, "ok": true }));
    for method in ["join", "produce", "getRouterRtpCapabilities", "nonsense"] {
        let (code, reason) = stranger.try_ask(method, json!({})).await?.unwrap_err();
        assert_eq!(code, 2003, "{reason}");
    }
    assert_eq!(refused(&cell, 2003), 4);
    for _ in 0..13 {
        stranger.say(&json!({ "request": true, "id": 9, "method": "join" }));
    }
    assert_eq!(stranger.closed_within(SOON).await?, (4000, "too many refused requests".into()));
    assert_eq!(closed(&cell, "refused"), 1);
    assert_eq!(cell.ec.running_rooms(), 0);
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_the_same_id_gets_the_same_answer_and_is_done_once() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let (mut ann, room, entered) = cell.enter("r", "Ann").await?;
    let (send, _) = ann.join("Ann").await?;
    let produce = json!({ "transportId": send, "kind": "video", "rtpParameters": vp8(1000), "appData": {} });
    let first = ann.ask_with_id(900, "produce", produce.clone()).await?.unwrap();
    let again = ann.ask_with_id(900, "produce", produce.clone()).await?.unwrap();
    assert_eq!(first, again);
    // The id decides, whatever is asked with it.
    let other = ann.ask_with_id(900, "closeProducer", json!({ "producerId": first["id"] })).await?.unwrap();
    assert_eq!(first, other);
    // A refusal is an answer, too.
    let no = ann.ask_with_id(901, "join", json!({})).await?.unwrap_err();
    assert_eq!(ann.ask_with_id(901, "createWebRtcTransport", json!({ "producing": true })).await?, Err(no));

    // In a burst, while the first is still under way.
    let transport = json!({ "producing": true, "consuming": false });
    for _ in 0..10 {
        ann.say(&json!({ "request": true, "id": 902, "method": "createWebRtcTransport", "data": transport }));
    }
    let made = ann.ask_with_id(902, "createWebRtcTransport", transport.clone()).await?.unwrap();

    // On the next socket of the same client, as after a break between request and answer.
    ann.break_off().await;
    let mut back = Peer::open(&format!("{}?resume=1", gateway(&cell)), Policy::Accept).await?;
    let resume = json!({ "clientId": entered["clientId"], "roomId": room, "resumeKey": entered["resumeKey"], "since": entered["v"] });
    back.ask("resume", resume).await?;
    assert_eq!(back.ask_with_id(900, "produce", produce).await?.unwrap(), first);
    assert_eq!(back.ask_with_id(902, "createWebRtcTransport", transport).await?.unwrap(), made);

    let state = cell.assert_agreement(&room).await?;
    assert_eq!((state.producers.len(), state.transports.len()), (1, 3));
    let events = events(&cell, &room).await?;
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|e| wanted(e)).count();
    assert_eq!(count(|e| matches!(e, Event::ProducerCreated(_))), 1);
    assert_eq!(count(|e| matches!(e, Event::TransportCreated(_))), 3);
    assert_eq!(count(|e| matches!(e, Event::ProducerClosed(_))), 0);
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_others_are_as_if_they_were_not_there() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let (mut ann, room, _) = cell.enter("r", "Ann").await?;
    let (mut bob, _, _) = cell.enter("r", "Bob").await?;
    let (bob_send, _) = bob.join("Bob").await?;
    let bobs = bob.produce_video(&bob_send, 1000).await?;
    let (ann_send, _) = ann.join("Ann").await?;
    let anns = ann.produce_video(&ann_send, 2000).await?;
    let consumer = eventually("Ann consumes Bob", SOON, || async {
        cell.folded(&room)
            .await
            .ok()?
            .consumers
            .iter()
            .find(|(_, c)| c.accepted && c.producer.as_str() == bobs)
            .map(|(id, _)| id.to_string())
    })
    .await?;
    // One in the same room who does not consume, and one in another room.
    let (mut carl, _, _) = cell.enter("r", "Carl").await?;
    carl.ask("join", json!({ "displayName": "Carl" })).await?;
    let (mut dora, _, _) = cell.enter("elsewhere", "Dora").await?;
    dora.join("Dora").await?;
    eventually("the room is at rest", SOON, || async {
        cell.folded(&room).await.ok()?.consumers.values().all(|c| c.accepted).then_some(())
    })
    .await?;
    let before = version(&cell, &room).await?;

    let dtls = json!({ "role": "client", "fingerprints": [{ "algorithm": "sha-256", "value": "AA:BB" }] });
    let cases: Vec<(&str, &str, &str, Value)> = vec![
        ("connectWebRtcTransport", "transportId", &ann_send, json!({ "dtlsParameters": dtls })),
        ("restartIce", "transportId", &ann_send, json!({})),
        ("getTransportStats", "transportId", &ann_send, json!({})),
        (
            "produce",
            "transportId",
            &ann_send,
            json!({ "kind": "video", "rtpParameters": vp8(5), "appData": {} }),
        ),
        ("closeProducer", "producerId", &anns, json!({})),
        ("pauseProducer", "producerId", &anns, json!({})),
        ("resumeProducer", "producerId", &anns, json!({})),
        ("getProducerStats", "producerId", &anns, json!({})),
        ("pauseConsumer", "consumerId", &consumer, json!({})),
        ("resumeConsumer", "consumerId", &consumer, json!({})),
        ("requestConsumerKeyFrame", "consumerId", &consumer, json!({})),
        ("setConsumerPreferredLayers", "consumerId", &consumer, json!({ "spatialLayer": 0 })),
        ("setConsumerPriority", "consumerId", &consumer, json!({ "priority": 9 })),
        ("getConsumerStats", "consumerId", &consumer, json!({})),
    ];
    for thief in [&mut carl, &mut dora] {
        for (method, field, id, data) in &cases {
            let with = |id: &str| {
                let mut data = data.clone();
                data[*field] = json!(id);
                data
            };
            let (code, reason) = thief.try_ask(method, with(id)).await?.expect_err(method);
            assert_eq!(code, 2004, "{method}: {reason}");
            // Nothing tells a thief whether the object is there: but for the id, a made-up one is refused in the same words.
            let (_, nothing) = thief.try_ask(method, with("made-up")).await?.expect_err(method);
            assert_eq!(reason.replace(*id, "made-up"), nothing);
        }
    }
    assert_eq!(version(&cell, &room).await?, before);
    // Who receives a stream may see its sender's statistics, as mediasoup's clients do, but not touch it.
    bob.ask("getProducerStats", json!({ "producerId": anns })).await?;
    assert_eq!(bob.try_ask("pauseProducer", json!({ "producerId": anns })).await?.unwrap_err().0, 2004);
    cell.assert_agreement(&room).await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_larger_than_allowed_ends_its_socket_and_no_other() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let bystander = Bystander::start(&cell).await?;
    let (mut ann, room, _) = cell.enter("r", "Ann").await?;
    ann.join("Ann").await?;
    let (mut bob, _, _) = cell.enter("r", "Bob").await?;
    bob.join("Bob").await?;
    // As large as allowed: read, and refused for what it is.
    let frame = |bytes: usize| {
        let around = json!({ "request": true, "id": 77, "method": "x", "data": "" }).to_string();
        json!({ "request": true, "id": 77, "method": "x", "data": "y".repeat(bytes - around.len()) })
            .to_string()
    };
    assert_eq!(frame(FRAME_LIMIT).len(), FRAME_LIMIT);
    ann.say_text(&frame(FRAME_LIMIT));
    ann.ask("getRouterRtpCapabilities", json!({})).await?;
    assert_eq!(refused(&cell, 403), 1);

    ann.say_text(&frame(FRAME_LIMIT + 1));
    let (code, reason) = ann.closed_within(SOON).await?;
    assert_eq!((code, reason.as_str()), (4000, "frame too large: 262145 bytes of 262144"));
    assert_eq!(closed(&cell, "too_large"), 1);

    // Beyond all measure: the connection is cut off. The same for a stranger.
    bob.say_text(&frame(16 * 1024 * 1024));
    bob.closed_within(SOON).await?;
    let stranger = Peer::open(&gateway(&cell), Policy::Silent).await?;
    stranger.say_text(&frame(16 * 1024 * 1024));
    stranger.closed_within(SOON).await?;
    eventually("both cut-off sockets are counted", SOON, || async {
        (closed(&cell, "error") == 2).then_some(())
    })
    .await?;
    eventually("both clients are away in the log", SOON, || async {
        cell.folded(&room).await.ok()?.clients.values().all(|c| c.resume_until.is_some()).then_some(())
    })
    .await?;
    bystander.finish().await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_as_many_transports_and_producers_as_it_may_however_fast_it_asks() -> anyhow::Result<()>
{
    const MAY: PerClient = PerClient { transports: 4, producers: 3 };
    const ASKED: u64 = 60;
    let cell = Cell::start(Shape { ec: |settings| settings.per_client = MAY, ..Shape::default() }).await?;
    let bystander = Bystander::start(&cell).await?;
    let (mut ann, room, _) = cell.enter("r", "Ann").await?;
    let (send, _) = ann.join("Ann").await?;

    // All before the first is answered, so that none is in the log yet.
    let transport = json!({ "forceTcp": false, "producing": true, "consuming": false });
    let asked = (0..ASKED).map(|i| ann.ask_with_id(1_000 + i, "createWebRtcTransport", transport.clone()));
    check_allowed(join_all(asked).await, MAY.transports - 2, "transports, a client may have 4")?;
    let asked = (0..ASKED).map(|i| {
        let mut parameters = vp8(5_000 + 2 * i as u32);
        parameters["mid"] = json!(format!("m{i}"));
        let produce =
            json!({ "transportId": send, "kind": "video", "rtpParameters": parameters, "appData": {} });
        ann.ask_with_id(2_000 + i, "produce", produce)
    });
    let made = check_allowed(join_all(asked).await, MAY.producers, "producers, a client may have 3")?;
    let state = cell.assert_agreement(&room).await?;
    assert_eq!((state.transports.len(), state.producers.len()), (MAY.transports, MAY.producers));
    // One by one it is the same, and what is closed makes room.
    assert_eq!(ann.try_ask("createWebRtcTransport", transport).await?.map_err(|(code, _)| code), Err(403));
    assert!(ann.produce_video(&send, 9_000).await.is_err());
    ann.ask("closeProducer", json!({ "producerId": made[0]["id"] })).await?;
    ann.produce_video(&send, 9_000).await?;
    // What others may have is their own.
    let (mut bob, _, _) = cell.enter("r", "Bob").await?;
    let (send, _) = bob.join("Bob").await?;
    bob.produce_video(&send, 100).await?;
    cell.assert_agreement(&room).await?;
    bystander.finish().await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

type Answered = anyhow::Result<Result<Value, (u64, String)>>;

/// Exactly `allowed` were; the others were refused, and told why. Gives what was made.
fn check_allowed(answers: Vec<Answered>, allowed: usize, why: &str) -> anyhow::Result<Vec<Value>> {
    let mut made = Vec::new();
    for answer in answers {
        match answer? {
            Ok(data) => made.push(data),
            Err((code, reason)) => assert!(code == 403 && reason.contains(why), "{code} {reason}"),
        }
    }
    assert_eq!(made.len(), allowed, "{made:?}");
    Ok(made)
}
