//! Rooms, their users and their history.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use roomlog_bus::events::Event;
use serde_json::json;
use support::{Cell, FakeEc};

#[tokio::test]
async fn a_room_is_made_read_listed_and_deleted_without_any_ec() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let keys = front.service().await;
    let body = json!({"name": "standup", "eapolicy": "ROOM-BEST", "metadata": {"team": 7}});
    let made = front.post("/v1/rooms", body.clone()).key(&keys.secret).send().await.is(201);
    let id = made.at("id");
    assert_eq!(made.version(), 1);
    assert_eq!(made.headers["location"], format!("/v1/rooms/{id}").as_str());
    assert_eq!(made.json()["metadata"], json!({"team": 7}));

    let exists = front.post("/v1/rooms", body).key(&keys.secret).send().await.is(409).problem("room-exists");
    assert_eq!(exists.at("roomId"), id);
    for path in [format!("/v1/rooms/{id}"), "/v1/rooms/name:standup".into()] {
        let read = front.get(&path).key(&keys.secret).send().await.is(200);
        assert_eq!((read.at("id"), read.at("eapolicy")), (id.clone(), "ROOM-BEST".into()));
    }
    // One that there is not at all, and one that there is not yet.
    for policy in ["BEST", "TTL-BEST"] {
        let policy = json!({"name": "x", "eapolicy": policy});
        let refused = front.post("/v1/rooms", policy).key(&keys.secret).send().await.is(422);
        assert!(refused.at("detail").contains("eapolicy") && refused.at("detail").contains("ROOM-BEST"));
    }

    let deleted = front.delete("/v1/rooms/name:standup").key(&keys.secret).send().await.is(204);
    assert_eq!(deleted.version(), 2, "no EC ever had it: NUVE deletes it itself");
    let path = format!("/v1/rooms/{id}");
    let room = roomlog_bus::ids::RoomId::new(&id).unwrap();
    while front.directory.read().rooms.contains_key(&room) {
        tokio::task::yield_now().await;
    }
    front.get(&path).key(&keys.secret).send().await.is(404).problem("no-such-room");
    front.delete(&path).key(&keys.secret).send().await.is(404).problem("no-such-room");
    let history = front.get(&format!("{path}/history")).key(&keys.secret).send().await.is(200);
    assert_eq!(history.json()["commits"][1]["events"][0]["type"], "RoomDeleted", "history outlives the room");
}

#[tokio::test]
async fn a_name_is_free_again_after_its_room_was_deleted_at_whichever_nuve() {
    let cell = Cell::new();
    let (a, b) = (cell.nuve(Cell::settings("n1")).await, cell.nuve(Cell::settings("n2")).await);
    let keys = a.service().await;
    let mut ids = Vec::new();
    for i in 0..12 {
        let (maker, deleter) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let made = maker.post("/v1/rooms", json!({"name": "daily"})).key(&keys.secret).send().await.is(201);
        ids.push(made.at("id"));
        deleter.delete(&format!("/v1/rooms/{}", made.at("id"))).key(&keys.secret).send().await.is(204);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 12, "each is a room of its own");
}

#[tokio::test]
async fn of_many_who_make_a_room_of_one_name_at_once_one_does() {
    let cell = Cell::new();
    let (a, b) = (cell.nuve(Cell::settings("n1")).await, cell.nuve(Cell::settings("n2")).await);
    let keys = a.service().await;
    let made = (0..40).map(|i| {
        let front = if i % 2 == 0 { &a } else { &b };
        front.post("/v1/rooms", json!({"name": "one"})).key(&keys.secret).send()
    });
    let answers = futures::future::join_all(made).await;
    let first: Vec<_> = answers.iter().filter(|answer| answer.status == 201).map(|a| a.at("id")).collect();
    assert_eq!(first.len(), 1);
    for answer in answers.into_iter().filter(|answer| answer.status != 201) {
        assert_eq!(answer.is(409).problem("room-exists").at("roomId"), first[0]);
    }
}

#[tokio::test]
async fn a_list_is_read_page_by_page_and_holds_only_the_services_own() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let (keys, other) = (front.service().await, front.service().await);
    for i in 0..7 {
        for key in [&keys.secret, &other.secret] {
            front.post("/v1/rooms", json!({"name": format!("r{i}")})).key(key).send().await.is(201);
        }
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    for page in [3, 3, 1] {
        let path = format!("/v1/rooms?limit=3{after}");
        let list = front.get(&path).key(&keys.secret).send().await.is(200).json();
        let rooms = list["rooms"].as_array().unwrap();
        assert_eq!(rooms.len(), page);
        seen.extend(rooms.iter().map(|room| room["name"].as_str().unwrap().to_owned()));
        after = list["next"].as_str().map(|next| format!("&after={next}")).unwrap_or_default();
    }
    assert_eq!(after, "", "the last page names no next");
    seen.sort();
    assert_eq!(seen, ["r0", "r1", "r2", "r3", "r4", "r5", "r6"]);
    front.get("/v1/rooms?limit=0").key(&keys.secret).send().await.is(400).problem("bad-request");
    front.get("/v1/rooms?limit=x").key(&keys.secret).send().await.is(400).problem("bad-request");
}

#[tokio::test]
async fn users_are_those_of_the_fold_and_are_put_out_by_the_owner() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let room = front.token(&keys.publishable, "a", "Ann").await.is(201).at("roomId");
    ec.join(&room, "c1").await;
    let version = ec.join(&room, "c2").await;
    let path = format!("/v1/rooms/{room}/users");
    let list = front.get(&format!("{path}?min_version={version}")).key(&keys.secret).send().await.is(200);
    let users = list.json()["users"].clone();
    assert_eq!(users.as_array().unwrap().len(), 2);
    assert_eq!(users[0]["id"], "c1");
    assert_eq!(users[0]["displayName"], "Name c1");
    assert_eq!((&users[0]["joined"], &users[0]["connected"]), (&json!(true), &json!(true)));
    assert!(users[0]["since"].as_u64().unwrap() > 1_700_000_000_000);
    front.get(&path).key(&keys.publishable).send().await.is(403).problem("wrong-key");

    // A browser may not take a present client's place; an app server may.
    let taken = json!({"user": "Eve", "peerId": "c1"});
    let tokens = format!("/v1/rooms/{room}/tokens");
    front.post(&tokens, taken.clone()).key(&keys.publishable).send().await.is(409).problem("client-exists");
    front.post(&tokens, taken).key(&keys.secret).send().await.is(201);

    let gone = front.delete(&format!("{path}/c1")).key(&keys.secret).send().await.is(204);
    let read = format!("{path}/c1?min_version={}", gone.version());
    front.get(&read).key(&keys.secret).send().await.is(404).problem("no-such-user");
    front.get(&format!("{path}/c2")).key(&keys.secret).send().await.is(200);
    front.delete(&format!("{path}/c1")).key(&keys.secret).send().await.is(404).problem("no-such-user");
    let left = cell.events(&room).await.into_iter().filter(|event| matches!(event, Event::ClientLeft(_)));
    assert_eq!(left.count(), 1);
}

#[tokio::test]
async fn a_room_with_a_live_owner_is_deleted_by_it_and_one_without_by_nuve() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let writer = async |room: &str| {
        let commits = cell.commits(room).await;
        let last = commits.last().unwrap();
        (last.events[0].kind.to_string(), last.writer.node.to_string())
    };
    let room = front.token(&keys.publishable, "a", "Ann").await.is(201).at("roomId");
    front.delete(&format!("/v1/rooms/{room}")).key(&keys.secret).send().await.is(204);
    assert_eq!(writer(&room).await, ("RoomDeleted".into(), "ec.e1".into()));

    let room = front.token(&keys.publishable, "b", "Ann").await.is(201).at("roomId");
    ec.die();
    let path = format!("/v1/rooms/{room}");
    let refused = front.delete(&path).key(&keys.secret).send().await.is(503).problem("ec-silent");
    assert_eq!(refused.headers["retry-after"], "1");
    let mut answer = refused;
    for _ in 0..60 {
        if answer.status == 204 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        answer = front.delete(&path).key(&keys.secret).send().await;
    }
    answer.is(204);
    assert_eq!(writer(&room).await, ("RoomDeleted".into(), "nuve.n1".into()));
}

#[tokio::test]
async fn history_tells_who_did_what_and_why_an_ec_was_chosen() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let (keys, other) = (front.service().await, front.service().await);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let made = front
        .post("/v1/rooms/name:a/tokens", json!({"user": "Ann", "create": true}))
        .key(&keys.publishable)
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))
        .send()
        .await
        .is(201);
    let room = made.at("roomId");
    ec.join(&room, "c1").await;
    let path = format!("/v1/rooms/{room}/history");
    let all = front.get(&path).key(&keys.secret).send().await.is(200).json();
    let types: Vec<_> = all["commits"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|c| c["events"].as_array().unwrap())
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["RoomCreated", "RoomPlaced", "RoomOpened", "ClientAdmitted", "ClientJoined"]);
    assert_eq!(all["next"], json!(null));
    let first = &all["commits"][0];
    assert_eq!(first["cause"], json!({"kind": "http", "trace": trace}));
    assert_eq!(first["writer"], json!({"node": "nuve.n1", "incarnation": 1}));
    assert_eq!(first["facts"]["candidates"][0]["ec"], "e1");
    assert_eq!(first["events"][1]["data"]["reason"], "first-token");

    let page = front.get(&format!("{path}?limit=1")).key(&keys.secret).send().await.is(200).json();
    assert_eq!(page["next"], 3);
    let rest = front.get(&format!("{path}?from=3")).key(&keys.secret).send().await.is(200).json();
    assert_eq!(rest["commits"][0]["version"], 3);
    front.get(&path).key(&other.secret).send().await.is(404).problem("no-such-room");
}
