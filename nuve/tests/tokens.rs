//! Tokens, the ECs they name, and finding a room again.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::time::Duration;

use roomlog_bus::{
    commit::StreamKind,
    events::Event,
    rpc::{NuveAnswer, NuveRequest, RPC_TIMEOUT, RpcError, ask},
    subject::Subject,
    time::{Clock as _, SystemClock},
    token::{TokenError, TokenKeys},
};
use serde_json::json;
use support::{ADMIN, Cell, FakeEc};

async fn token_keys(cell: &Cell) -> TokenKeys {
    let subject = Subject::rpc_any(StreamKind::Nuve);
    let answer: Result<NuveAnswer, RpcError> =
        ask(&*cell.bus, subject, &NuveRequest::TokenKeys, RPC_TIMEOUT).await;
    let NuveAnswer::Keys { keys } = answer.unwrap() else { panic!("keys were asked for") };
    TokenKeys::new(keys)
}

#[tokio::test]
async fn a_token_names_room_client_and_ec_and_is_checked_with_the_keys_nuve_tells() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;

    let before = SystemClock.now().as_millis();
    let answer = front.token(&keys.publishable, "standup", "Ann").await.is(201);
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.version(), 2, "RoomCreated and RoomPlaced");
    let room = answer.at("roomId");
    assert_eq!(answer.at("wsUrl"), "ws://e1.test/signal");
    assert_eq!(answer.at("locateUrl"), format!("http://rooms.test:8080/v1/rooms/{room}/locate"));
    let expires = answer.json()["expiresAt"].as_u64().unwrap();
    assert!((before + 58_000..=before + 61_000).contains(&expires), "{expires}");

    let verifier = token_keys(&cell).await;
    let claims = verifier.verify(&answer.at("token"), SystemClock.now()).unwrap();
    assert_eq!(claims.sub, "Ann");
    assert_eq!(claims.role, "presenter");
    assert_eq!(claims.service.as_str(), keys.id);
    assert_eq!(claims.room.as_str(), room);
    assert_eq!(claims.client.as_str(), answer.at("clientId"));
    assert_eq!((claims.ec.as_str(), claims.ws.as_str()), ("e1", "ws://e1.test/signal"));
    assert_eq!(claims.exp * 1_000, expires);
    let late = SystemClock.now().plus_millis(61_000);
    assert!(matches!(verifier.verify(&answer.at("token"), late), Err(TokenError::Expired { .. })));

    let second = front.token(&keys.publishable, "standup", "Bob").await.is(201);
    assert_eq!(second.at("roomId"), room);
    assert_ne!(second.at("clientId"), answer.at("clientId"));
    let other = verifier.verify(&second.at("token"), SystemClock.now()).unwrap();
    assert_ne!(other.jti, claims.jti);

    let located = front.get(&format!("/v1/rooms/{room}/locate")).send().await.is(200);
    assert_eq!(
        located.json(),
        json!({"roomId": room, "wsUrl": "ws://e1.test/signal", "epoch": 1, "ec": "e1"})
    );
}

#[tokio::test]
async fn a_role_and_a_client_id_are_taken_from_the_request() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let body = json!({"user": "Ann", "role": "viewer", "create": true, "peerId": "ann-1"});
    let answer =
        front.post("/v1/rooms/name:a%20b%2Fc/tokens", body).key(&keys.publishable).send().await.is(201);
    assert_eq!(answer.at("clientId"), "ann-1");
    let claims = token_keys(&cell).await.verify(&answer.at("token"), SystemClock.now()).unwrap();
    assert_eq!((claims.role.as_str(), claims.client.as_str()), ("viewer", "ann-1"));
    assert_eq!(cell.fold(&answer.at("roomId")).await.info.unwrap().name, "a b/c");
}

#[tokio::test]
async fn what_a_request_gets_wrong_is_named() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let path = "/v1/rooms/name:a/tokens";
    let send =
        async |body: &str| front.ask("POST", path).body(body.into()).key(&keys.publishable).send().await;
    let detail = |answer: &support::Answer| answer.at("detail");

    let missing = send(r#"{"create":true}"#).await.is(422).problem("invalid-field");
    assert!(detail(&missing).contains("user"), "{}", missing.text);
    let wrong = send(r#"{"user":"Ann","create":"yes"}"#).await.is(422).problem("invalid-field");
    assert!(detail(&wrong).contains("create"), "{}", wrong.text);
    let role = send(r#"{"user":"Ann","role":"king"}"#).await.is(422).problem("invalid-field");
    assert!(detail(&role).contains("role") && detail(&role).contains("presenter"), "{}", role.text);
    assert!(detail(&role).starts_with("In the body: role: "), "{}", role.text);
    let typo = send(r#"{"user":"Ann","creat":true}"#).await.is(422).problem("invalid-field");
    assert!(detail(&typo).contains("`creat`") && detail(&typo).contains("`create`"), "{}", typo.text);
    let not_made = send(r#"{"user":"Ann"}"#).await.is(404).problem("no-such-room");
    assert!(detail(&not_made).contains(r#""create": true"#), "{}", not_made.text);
    let peer = send(r#"{"user":"Ann","peerId":"a.b"}"#).await.is(422).problem("invalid-field");
    assert!(detail(&peer).contains("peerId"), "{}", peer.text);
    send(r#"{"user":"#).await.is(400).problem("bad-request");
    let user = send(r#"{"user":""}"#).await.is(422).problem("invalid-field");
    assert!(detail(&user).contains("user name"), "{}", user.text);
    let large = format!(r#"{{"user":"Ann","x":"{}"}}"#, "x".repeat(70_000));
    send(&large).await.is(413).problem("too-large");
    let plain =
        front.ask("POST", path).key(&keys.publishable).header("content-type", "text/plain").send().await;
    plain.is(415).problem("unsupported-media-type");
    front.get(path).key(&keys.publishable).send().await.is(405).problem("no-such-method");
    front.get("/v1/nothing").send().await.is(404).problem("no-such-route");
    let explained = front.get("/problems/no-such-room").send().await.is(200);
    assert!(explained.text.contains("No such room"));
}

#[tokio::test]
async fn keys_open_what_they_are_for() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let body = json!({"user": "Ann", "create": true});
    let path = "/v1/rooms/name:a/tokens";

    let none = front.post(path, body.clone()).send().await.is(401).problem("no-key");
    assert_eq!(none.headers["www-authenticate"], "Bearer");
    front.post(path, body.clone()).key("hello").send().await.is(401).problem("unknown-key");
    let altered = format!("{}x", keys.publishable);
    front.post(path, body.clone()).key(&altered).send().await.is(401).problem("unknown-key");
    let swapped = keys.publishable.replacen("pk_", "sk_", 1);
    front.post(path, body.clone()).key(&swapped).send().await.is(401).problem("unknown-key");
    front.post(path, body.clone()).key(&keys.secret).send().await.is(201);
    front.post("/v1/rooms", json!({})).key(&keys.publishable).send().await.is(403).problem("wrong-key");
    front.get("/v1/services").key(&keys.secret).send().await.is(403).problem("wrong-key");
    front.get("/v1/services").key("ak_guess").send().await.is(401).problem("unknown-key");
    let list = front.get("/v1/services").key(ADMIN).send().await.is(200);
    assert!(
        !list.text.contains("k_") && !list.text.contains("secretKey"),
        "keys are shown once: {}",
        list.text
    );

    // Another service sees nothing of this one.
    let other = front.service().await;
    let room = front.token(&keys.secret, "a", "Ann").await.is(201).at("roomId");
    front.get(&format!("/v1/rooms/{room}")).key(&other.secret).send().await.is(404).problem("no-such-room");
    let path = format!("/v1/rooms/{room}/tokens");
    front.post(&path, body.clone()).key(&other.secret).send().await.is(404).problem("no-such-room");

    // A deleted service's keys open nothing.
    front.delete(&format!("/v1/services/{}", keys.id)).key(ADMIN).send().await.is(204);
    let refused = front.token(&keys.secret, "a", "Ann").await;
    refused.is(401).problem("unknown-key");
}

#[tokio::test]
async fn a_replaced_key_opens_nothing_and_the_new_one_and_the_other_do() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let path = format!("/v1/services/{}/keys", keys.id);
    let body = json!({"which": "publishable"});
    front.post(&path, body.clone()).key(&keys.secret).send().await.is(403).problem("wrong-key");
    let new = front.post(&path, body).key(ADMIN).send().await.is(201).at("key");
    assert!(new.starts_with(&format!("pk_{}_", keys.id)));
    front.token(&keys.publishable, "a", "Ann").await.is(401).problem("unknown-key");
    front.token(&new, "a", "Ann").await.is(201);
    front.token(&keys.secret, "a", "Ann").await.is(201);
    let wrong = front.post(&path, json!({"which": "both"})).key(ADMIN).send().await.is(422);
    assert!(wrong.at("detail").contains("which"), "{}", wrong.text);
}

/// Not a pass or fail: `cargo test --release -p roomlog-nuve --test tokens -- --ignored --nocapture` prints what the token route costs.
#[tokio::test]
#[ignore = "measures, and takes a while"]
async fn cost_of_a_token() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    for rooms in [100, 5_000] {
        for i in 0..rooms {
            front.token(&keys.secret, &format!("r{i}"), "Ann").await.is(201);
        }
        const TOKENS: u32 = 20_000;
        let started = std::time::Instant::now();
        for i in 0..TOKENS {
            front.token(&keys.secret, &format!("r{}", i % rooms), "Ann").await.is(201);
        }
        let each = started.elapsed() / TOKENS;
        println!(
            "{rooms} rooms: {each:?} a token, {:.0}/s on one core, no sockets",
            1.0 / each.as_secs_f64()
        );
    }
}

#[tokio::test]
async fn a_publishable_key_makes_rooms_only_where_its_service_says_so() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let made = front.post("/v1/services", json!({"name": "strict"})).key(ADMIN).send().await.is(201);
    let (secret, publishable) = (made.at("secretKey"), made.at("publishableKey"));
    front.token(&publishable, "a", "Ann").await.is(403).problem("may-not-create-rooms");
    let body = json!({"user": "Ann"});
    let path = "/v1/rooms/name:a/tokens";
    front.post(path, body.clone()).key(&secret).send().await.is(404).problem("no-such-room");
    front.post("/v1/rooms", json!({"name": "a"})).key(&secret).send().await.is(201);
    front.post(path, body).key(&publishable).send().await.is(201);
    front.token(&publishable, "a", "Ann").await.is(201);
}

#[tokio::test]
async fn without_an_ec_the_answer_is_503_and_nothing_is_written() {
    let cell = Cell::new();
    let settings = roomlog_nuve::NuveSettings { suspect_after_ms: 200, ..Cell::settings("n1") };
    let front = cell.nuve(settings).await;
    let keys = front.service().await;
    let refused = front.token(&keys.publishable, "a", "Ann").await.is(503).problem("no-ec");
    assert_eq!(refused.headers["retry-after"], "2");
    let list = front.get("/v1/rooms").key(&keys.secret).send().await.is(200);
    assert_eq!(list.json()["rooms"], json!([]));
    front.get("/v1/rooms/nowhere/locate").send().await.is(404).problem("no-such-room");
    front.get("/readyz").send().await.is(503);
    front.get("/healthz").send().await.is(200);
    let _ec = FakeEc::start(&cell, "e1").await;
    front.token(&keys.publishable, "a", "Ann").await.is(201);
    front.get("/readyz").send().await.is(200);
}

#[tokio::test]
async fn two_nuve_nodes_give_twenty_rooms_one_ec_each_under_two_hundred_first_tokens() {
    let cell = Cell::new();
    let mut ecs = Vec::new();
    for name in ["e1", "e2", "e3"] {
        ecs.push(FakeEc::start(&cell, name).await);
    }
    // Neither has seen what the other wrote; only the journal knows.
    let lag = Duration::from_millis(400);
    let a = cell.lagging_nuve(Cell::settings("n1"), lag).await;
    let b = cell.lagging_nuve(Cell::settings("n2"), lag).await;
    let keys = a.service().await;
    // Ten rooms exist and have no EC; ten are made by their first token.
    for room in 0..10 {
        a.post("/v1/rooms", json!({"name": format!("r{room}")})).key(&keys.secret).send().await.is(201);
    }
    let asked = (0..200).map(|i| {
        let front = if i % 2 == 0 { &a } else { &b };
        let key = keys.publishable.clone();
        async move { (i % 20, front.token(&key, &format!("r{}", i % 20), "Ann").await.is(201)) }
    });
    let answers = futures::future::join_all(asked).await;
    let verifier = token_keys(&cell).await;
    for room in 0..20 {
        let mut seen: Vec<(String, String, String)> = Vec::new();
        for (_, answer) in answers.iter().filter(|(of, _)| *of == room) {
            let claims = verifier.verify(&answer.at("token"), SystemClock.now()).unwrap();
            seen.push((answer.at("roomId"), claims.ec.to_string(), answer.at("wsUrl")));
        }
        assert_eq!(seen.len(), 10);
        seen.dedup();
        assert_eq!(seen.len(), 1, "room {room}: {seen:?}");
        let placed: Vec<_> = cell
            .events(&seen[0].0)
            .await
            .into_iter()
            .filter_map(|event| match event {
                Event::RoomPlaced(placed) => Some((placed.reason, placed.ec.to_string(), placed.epoch.0)),
                _ => None,
            })
            .collect();
        assert_eq!(placed, [("first-token".into(), seen[0].1.clone(), 1)]);
    }
    let rooms = cell.journal.streams(StreamKind::Room).await.unwrap();
    assert_eq!(rooms.len(), 20);
}

#[tokio::test]
async fn a_room_made_at_one_nuve_is_usable_at_the_other_at_once() {
    let cell = Cell::new();
    let _ec = FakeEc::start(&cell, "e1").await;
    let a = cell.nuve(Cell::settings("n1")).await;
    let b = cell.lagging_nuve(Cell::settings("n2"), Duration::from_millis(1_500)).await;
    for i in 0..5 {
        // A new service each time too: its keys are used where it was not made.
        let keys = a.service().await;
        let room =
            a.post("/v1/rooms", json!({"name": format!("r{i}")})).key(&keys.secret).send().await.is(201);
        let (id, version) = (room.at("id"), room.version());
        let path = format!("/v1/rooms/{id}");
        b.get(&path).key(&keys.secret).send().await.is(200);
        b.get(&format!("/v1/rooms/name:r{i}")).key(&keys.secret).send().await.is(200);
        let read = b.get(&format!("{path}?min_version={version}")).key(&keys.secret).send().await.is(200);
        assert_eq!(read.version(), version);
        b.post("/v1/rooms", json!({"name": format!("r{i}")})).key(&keys.secret).send().await.is(409);
        let token = b
            .post(&format!("{path}/tokens"), json!({"user": "Ann"}))
            .key(&keys.publishable)
            .send()
            .await
            .is(201);
        let read =
            a.get(&format!("{path}?min_version={}", token.version())).key(&keys.secret).send().await.is(200);
        assert_eq!(read.json()["ec"], "e1");
        assert!(read.version() > version);
        let ahead = a.get(&format!("{path}?min_version=99")).key(&keys.secret).send();
        if i == 0 {
            ahead.await.is(412).problem("version-ahead");
        }
    }
}

#[tokio::test]
async fn the_keys_of_every_nuve_are_told_by_any() {
    let cell = Cell::new();
    let (a, b) = (cell.nuve(Cell::settings("n1")).await, cell.nuve(Cell::settings("n2")).await);
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = a.service().await;
    let tokens = [
        a.token(&keys.secret, "a", "Ann").await.is(201).at("token"),
        b.token(&keys.secret, "a", "Bob").await.is(201).at("token"),
    ];
    // Asked twice, so that each of the queue group answers once.
    for _ in 0..2 {
        let verifier = token_keys(&cell).await;
        for token in &tokens {
            verifier.verify(token, SystemClock.now()).unwrap();
        }
    }
}

#[tokio::test]
async fn signing_keys_rotate_without_a_token_that_nobody_knows() {
    let cell = Cell::new();
    let settings = |id| roomlog_nuve::NuveSettings { token_key_s: 2, ..Cell::settings(id) };
    let (a, b) = (cell.nuve(settings("n1")).await, cell.nuve(settings("n2")).await);
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = a.service().await;
    // As an EC that asked now, and then never again for a period.
    let mut known = token_keys(&cell).await;
    let mut kids = std::collections::BTreeSet::new();
    let mut first = None;
    let mut asked = std::time::Instant::now();
    for _ in 0..60 {
        if asked.elapsed() > Duration::from_millis(800) {
            asked = std::time::Instant::now();
            known = token_keys(&cell).await;
        }
        for front in [&a, &b] {
            let token = front.token(&keys.secret, "a", "Ann").await.is(201).at("token");
            let verified = known.verify(&token, SystemClock.now());
            // On a machine that stood still for so long the next key is another.
            assert!(verified.is_ok() || asked.elapsed() > Duration::from_millis(1_900), "{verified:?}");
            kids.insert(token.split('.').next().unwrap().to_owned());
            first.get_or_insert(token);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(kids.len() >= 4, "{} keys of two nodes in 6 s", kids.len());
    // A client that was let in long ago is still known.
    token_keys(&cell).await.verify(&first.unwrap(), SystemClock.now()).unwrap();
}
