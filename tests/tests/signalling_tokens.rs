//! Tokens and resume keys that are not what they should be: each gets its documented code and close reason, and lets nobody in.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::StreamId,
    events::Event,
    ids::{EcId, RoomId, Version},
    journal::read_all,
    rpc::{EcAnswer, EcRequest, RPC_TIMEOUT, ask},
    subject::Subject,
    token::{Claims, SigningKey},
};
use roomlog_tests::{
    cell::{Cell, Shape, eventually},
    peer::{Peer, Policy},
    witness::{Bystander, closed, journal_is_clean, refused},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
/// Longer than the pause between two fetches of token keys.
const KEYS_PAUSE: Duration = Duration::from_millis(1_100);

fn gateway(cell: &Cell) -> String {
    format!("{}/signal", cell.origin.replace("http:", "ws:"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

fn room_of(token: &Value) -> RoomId {
    RoomId::new(text(token, "roomId")).expect("ids of rooms are ids")
}

async fn events(cell: &Cell, room: &RoomId) -> anyhow::Result<Vec<Event>> {
    let commits = read_all(cell.journal.as_ref(), &StreamId::from(room), Version(1)).await?;
    Ok(commits.iter().flat_map(|c| &c.events).map(Event::decode).collect::<Result<_, _>>()?)
}

/// Shows `token` as the first request: the code of the refusal, and how the socket was closed.
async fn shown(cell: &Cell, token: &str) -> anyhow::Result<(u64, u16, String)> {
    let mut peer = Peer::open(&gateway(cell), Policy::Accept).await?;
    let answer = peer.try_ask("token", json!({ "token": token })).await?;
    let Err((code, reason)) = answer else { anyhow::bail!("{token:.80} let somebody in") };
    anyhow::ensure!(!reason.is_empty(), "no reason with {code}");
    let (close, why) = peer.closed_within(SOON).await?;
    Ok((code, close, why))
}

/// Opens the socket with `token` in the URL: how it was closed.
async fn in_url(cell: &Cell, token: &str) -> anyhow::Result<(u16, String)> {
    let peer = Peer::open(&format!("{}?token={token}", gateway(cell)), Policy::Accept).await?;
    peer.closed_within(SOON).await
}

fn bad(code: u64) -> (u64, u16, String) {
    (code, 4000, "bad token".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_foreign_and_made_up_tokens_open_nothing() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let bystander = Bystander::start(&cell).await?;
    let token = cell.token("r", "Ann").await?;
    let good = text(&token, "token").to_owned();
    let parts: Vec<&str> = good.split('.').collect();

    for made_up in ["", "x", "a.b.c", "..", &"x".repeat(5_000), &good[..good.len() - 4], &format!("{good}.x")]
    {
        assert_eq!(shown(&cell, made_up).await?, bad(1004), "{made_up:.40}");
    }
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    assert_eq!(shown(&cell, &format!("{none}.{}.", parts[1])).await?, bad(1004), "alg none");
    assert_eq!(in_url(&cell, "x.y.z").await?, (4000, "bad token".into()));

    // One character changed anywhere. In the header that may make it another key's, which NUVE cannot be asked for all the time.
    let mut rng = StdRng::seed_from_u64(20_261_122);
    for _ in 0..120 {
        let at = rng.random_range(0..good.len());
        let mut bytes = good.clone().into_bytes();
        let other = loop {
            let c =
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."[rng.random_range(0..65)];
            if c != bytes[at] {
                break c;
            }
        };
        bytes[at] = other;
        let mutated = String::from_utf8(bytes)?;
        let (code, close, why) = shown(&cell, &mutated).await?;
        assert_eq!(close, 4000);
        if at < parts[0].len() && code == 1003 {
            assert_eq!(why, "try again later");
        } else {
            assert_eq!((code, why.as_str()), (1004, "bad token"), "changed at {at}: {mutated}");
        }
    }

    // Signed elsewhere, with all the right claims: unknown here, and once NUVE has been asked, bad.
    let mut claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1])?)?;
    claims.jti = "made-elsewhere".into();
    let foreign = SigningKey::from_seed(&[7; 32]).sign(&claims);
    tokio::time::sleep(KEYS_PAUSE).await;
    assert_eq!(shown(&cell, &foreign).await?, bad(1004));
    assert_eq!(
        shown(&cell, &foreign).await?,
        (1003, 4000, "try again later".into()),
        "NUVE is not asked every time"
    );

    let room = room_of(&token);
    assert!(cell.folded(&room).await?.clients.is_empty());
    assert!(refused(&cell, 1004) >= 100 && refused(&cell, 1003) >= 1, "{}", cell.ec.metrics());
    assert_eq!(closed(&cell, "refused"), refused(&cell, 1004) + refused(&cell, 1003));
    // And the good one is as good as before.
    Peer::enter(text(&token, "wsUrl"), &good, Policy::Accept).await?;
    bystander.finish().await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_token_admits_nobody_and_brings_back_whom_it_had_admitted() -> anyhow::Result<()> {
    let cell = Cell::start(Shape { nuve: |settings| settings.token_ttl_s = 3, ..Shape::default() }).await?;
    let late = cell.token("r", "Late").await?;
    let token = cell.token("r", "Ann").await?;
    let (ann, entered) = Peer::enter(text(&token, "wsUrl"), text(&token, "token"), Policy::Accept).await?;
    let gone = cell.token("gone", "Bob").await?;
    let (bob, _) = Peer::enter(text(&gone, "wsUrl"), text(&gone, "token"), Policy::Accept).await?;
    bob.leave().await;
    tokio::time::sleep(Duration::from_millis(4_200)).await;

    assert_eq!(shown(&cell, text(&late, "token")).await?, bad(1004), "ended before it was used");
    assert_eq!(in_url(&cell, text(&late, "token")).await?, (4000, "bad token".into()));
    // Ended, and used by somebody who has left: it is the used token that is remembered, as long as that is.
    assert_eq!(shown(&cell, text(&gone, "token")).await?, (1002, 4000, "used token".into()));
    // Ended, but its client lives.
    let (back, again) = Peer::enter(text(&token, "wsUrl"), text(&token, "token"), Policy::Accept).await?;
    assert_eq!(again["clientId"], entered["clientId"]);
    assert_eq!(ann.closed_within(SOON).await?, (4000, "replaced".into()));
    back.leave().await;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ec_that_runs_on_knows_tokens_of_every_key_when_keys_rotate() -> anyhow::Result<()> {
    let cell = Cell::start(Shape { nuve: |settings| settings.token_key_s = 1, ..Shape::default() }).await?;
    let kid = |token: &Value| text(token, "token").split('.').next().map(str::to_owned);
    // It knows the keys of now.
    cell.enter("r", "Ann").await?;
    let before = cell.token("r", "Bob").await?;
    let after = eventually("another key signs", Duration::from_secs(60), || async {
        let token = cell.token("r", "Carl").await.ok()?;
        (kid(&token) != kid(&before)).then_some(token)
    })
    .await?;
    // And one that is two rotations away, of which nobody spoke when it asked.
    let later = eventually("a third key signs", Duration::from_secs(60), || async {
        let token = cell.token("r", "Dora").await.ok()?;
        (kid(&token) != kid(&before) && kid(&token) != kid(&after)).then_some(token)
    })
    .await?;
    for token in [&later, &after, &before] {
        eventually("it lets in", Duration::from_secs(20), || async {
            // Keys are asked for once a second at most.
            Peer::enter(text(token, "wsUrl"), text(token, "token"), Policy::Accept).await.ok()
        })
        .await?;
    }
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_is_one_client_however_many_sockets_show_it() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let token = cell.token("r", "Ann").await?;
    let (url, good) = (text(&token, "wsUrl"), text(&token, "token"));
    let (mut first, entered) = Peer::enter(url, good, Policy::Accept).await?;
    first.join("Ann").await?;
    let (mut second, again) = Peer::enter(url, good, Policy::Accept).await?;
    assert_eq!(entered["clientId"], again["clientId"]);
    assert_eq!(entered["resumeKey"], again["resumeKey"]);
    assert_eq!(first.closed_within(SOON).await?, (4000, "replaced".into()));
    assert_eq!(closed(&cell, "told"), 1);
    // What the old socket's end is reported as does not touch the new one.
    second.join("Ann").await?;
    let room = room_of(&token);
    cell.assert_agreement(&room).await?;

    // Thirty at once: one stays.
    let at_once = join_all((0..30).map(|_| Peer::enter(url, good, Policy::Accept))).await;
    let peers: Vec<Peer> = at_once.into_iter().filter_map(|p| p.ok().map(|(peer, _)| peer)).collect();
    let open = || peers.iter().filter(|p| p.closed.lock().unwrap().is_none()).count();
    eventually("one socket of thirty is open", SOON, || async { (open() == 1).then_some(()) }).await?;
    for peer in &peers {
        let ended = peer.closed.lock().unwrap().clone();
        assert!(ended.is_none() || ended == Some((4000, "replaced".into())), "{ended:?}");
    }
    let all = events(&cell, &room).await?;
    let admitted = all.iter().filter(|e| matches!(e, Event::ClientAdmitted(_))).count();
    let reattached =
        all.iter().filter(|e| matches!(e, Event::ClientResumed(r) if r.how == "reattach")).count();
    assert_eq!((admitted, reattached), (1, 31));
    let state = cell.assert_agreement(&room).await?;
    assert!(state.clients.len() == 1 && state.clients.values().all(|c| c.resume_until.is_none()));

    // Its client leaves: the token is used up.
    let last = peers.into_iter().find(|p| p.closed.lock().unwrap().is_none()).unwrap();
    last.leave().await;
    eventually("she has left", SOON, || async {
        cell.folded(&room).await.ok()?.clients.is_empty().then_some(())
    })
    .await?;
    assert_eq!(shown(&cell, good).await?, (1002, 4000, "used token".into()));
    assert_eq!(in_url(&cell, good).await?, (4000, "used token".into()));
    assert_eq!(refused(&cell, 1002), 2);
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_own_room_and_no_other() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let (mut ann, room, _) = cell.enter("mine", "Ann").await?;
    let (send, _) = ann.join("Ann").await?;
    let other = cell.token("other", "Bob").await?;
    // Whatever the URL or the request say besides: the token's room is where it leads.
    let url = format!("{}?roomId={room}&peerId=nobody", gateway(&cell));
    let mut bob = Peer::open(&url, Policy::Accept).await?;
    let entered = bob.ask("token", json!({ "token": other["token"], "roomId": room })).await?;
    assert_eq!(entered["roomId"], other["roomId"]);
    assert_eq!(entered["clientId"], other["clientId"]);
    assert_eq!(bob.try_ask("restartIce", json!({ "transportId": send })).await?.unwrap_err().0, 2004);
    assert_eq!(cell.folded(&room).await?.clients.len(), 1);

    // A second token on the same socket is refused, and the client stays who it is.
    let second = cell.token("mine", "Bob").await?;
    let (code, _) = bob.try_ask("token", json!({ "token": second["token"] })).await?.unwrap_err();
    assert_eq!(code, 2003);
    assert_eq!(bob.ask("token", json!({ "token": other["token"] })).await?["clientId"], other["clientId"]);

    // The token of a room that was deleted meanwhile.
    let lost = cell.token("lost", "Carl").await?;
    let request = EcRequest::DeleteRoom { room: room_of(&lost), reason: "test".into(), if_version: None };
    let subject = Subject::rpc(&StreamId::from(&EcId::new("ec-1")?));
    ask::<_, EcAnswer>(cell.bus.as_ref(), subject, &request, RPC_TIMEOUT).await?;
    assert_eq!(shown(&cell, text(&lost, "token")).await?, (1000, 4000, "no such room".into()));
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_needs_the_clients_own_key_and_survives_any_since() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let bystander = Bystander::start(&cell).await?;
    let (mut ann, room, ann_entered) = cell.enter("r", "Ann").await?;
    ann.join("Ann").await?;
    let (mut bob, _, bob_entered) = cell.enter("r", "Bob").await?;
    bob.join("Bob").await?;
    bob.break_off().await;
    eventually("Bob is away", SOON, || async {
        cell.folded(&room).await.ok()?.clients.values().any(|c| c.resume_until.is_some()).then_some(())
    })
    .await?;
    let before = cell.folded(&room).await?.version();

    let resume = |client: &Value, room: &Value, key: &Value, since: Value| json!({ "clientId": client, "roomId": room, "resumeKey": key, "since": since });
    let (bob_id, key, room_json) = (&bob_entered["clientId"], &bob_entered["resumeKey"], &json!(room));
    let cases = [
        (resume(bob_id, room_json, &json!("wrong"), json!(1)), 1002),
        (resume(bob_id, room_json, &json!(""), json!(1)), 1002),
        (resume(bob_id, room_json, &ann_entered["resumeKey"], json!(1)), 1002),
        (resume(&ann_entered["clientId"], room_json, key, json!(1)), 1002),
        (resume(&json!("nobody"), room_json, key, json!(1)), 1002),
        (resume(bob_id, &json!("nowhere"), key, json!(1)), 1002),
        (resume(bob_id, &json!("../r"), key, json!(1)), 2000),
        (resume(bob_id, room_json, key, json!(-1)), 2000),
        (resume(bob_id, room_json, key, json!(1e30)), 2000),
        (resume(bob_id, room_json, key, json!("1")), 2000),
        (resume(bob_id, room_json, &json!(null), json!(1)), 2000),
        (json!([]), 2000),
        (json!(null), 2000),
    ];
    let mut stranger = Peer::open(&format!("{}?resume=1", gateway(&cell)), Policy::Accept).await?;
    for (data, code) in &cases {
        let (got, reason) = stranger.try_ask("resume", data.clone()).await?.expect_err(&data.to_string());
        assert_eq!(got, *code, "{data}: {reason}");
        assert!(!reason.contains(key.as_str().unwrap()), "{reason}");
    }
    assert_eq!((refused(&cell, 1002), refused(&cell, 2000)), (6, 7));
    assert_eq!(cell.folded(&room).await?.version(), before);
    assert_eq!(cell.ec.running_rooms(), 2, "a room that is not there leaves no task behind");

    // The same socket may still get it right. A version that is still to come brings the whole state.
    let entered = stranger.ask("resume", resume(bob_id, room_json, key, json!(u64::MAX))).await?;
    assert_eq!(entered["clientId"], *bob_id);
    assert_eq!(entered["state"]["peers"][0]["displayName"], "Ann", "{entered}");
    assert!(entered.get("events").is_none());
    // Once more, from elsewhere: the newer socket has the client.
    let mut newer = Peer::open(&format!("{}?resume=1", gateway(&cell)), Policy::Accept).await?;
    let entered = newer.ask("resume", resume(bob_id, room_json, key, json!(before.0 + 1_000))).await?;
    assert_eq!(entered["state"]["peers"].as_array().map(Vec::len), Some(1));
    assert_eq!(stranger.closed_within(SOON).await?, (4000, "replaced".into()));
    // Ids of requests go on counting over a resume: an old one would get its old answer.
    assert_eq!(newer.ask_with_id(5_000, "resume", json!({})).await?.unwrap_err().0, 2003);

    // Trying keys has an end.
    let guesser = Peer::open(&format!("{}?resume=1", gateway(&cell)), Policy::Accept).await?;
    for i in 0..17 {
        let data = resume(bob_id, room_json, &json!(format!("guess {i}")), json!(1));
        guesser.say(&json!({ "request": true, "id": i, "method": "resume", "data": data }));
    }
    assert_eq!(guesser.closed_within(SOON).await?, (4000, "too many refused requests".into()));
    cell.assert_agreement(&room).await?;
    bystander.finish().await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_before_starting_over_is_neither_done_nor_answered_after_it() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let token = cell.token("r", "Ann").await?;
    let (url, good) = (text(&token, "wsUrl"), text(&token, "token"));
    let room = room_of(&token);
    let (mut peer, _) = Peer::enter(url, good, Policy::Accept).await?;
    peer.ask("getRouterRtpCapabilities", json!({})).await?;
    for round in 0..20 {
        // Under way at the worker when the next socket starts over.
        for id in 0..50 {
            let data = json!({ "producing": true, "consuming": false });
            peer.say(&json!({ "request": true, "id": 1_000 + id, "method": "createWebRtcTransport", "data": data }));
        }
        peer.say(
            &json!({ "request": true, "id": 1_050, "method": "join", "data": { "displayName": "old" } }),
        );
        let (next, _) = Peer::enter(url, good, Policy::Accept).await?;
        // Its requests are its own, though the ids are the same: it gets the answers to what it asked, and has not joined.
        let capabilities = next.ask_with_id(1_000, "getRouterRtpCapabilities", json!({})).await?;
        assert!(
            capabilities.is_ok_and(|c| c["codecs"].is_array()),
            "round {round}: another request's answer came"
        );
        let joined = next.ask_with_id(1_050, "join", json!({ "displayName": "new" })).await?;
        assert!(joined.is_ok(), "round {round}: {joined:?}");
        let state = cell.folded(&room).await?;
        assert_eq!(state.transports.len(), 0, "round {round}: transports that nobody knows of");
        peer = next;
    }
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}
