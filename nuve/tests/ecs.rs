//! What happens to rooms when their EC restarts, drains, falls silent or dies.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::time::Duration;

use roomlog_bus::{commit::StreamId, events::Event};
use support::{Answer, Cell, FakeEc, Front};

async fn until(mut what: impl AsyncFnMut() -> bool, seconds: u64) {
    tokio::time::timeout(Duration::from_secs(seconds), async {
        while !what().await {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    })
    .await
    .expect("did not happen in time");
}

async fn placements(cell: &Cell, room: &str) -> Vec<(String, String, u64)> {
    let events = cell.events(room).await.into_iter();
    let placed = events.filter_map(|event| match event {
        Event::RoomPlaced(placed) => Some((placed.ec.to_string(), placed.reason.to_string(), placed.epoch.0)),
        _ => None,
    });
    placed.collect()
}

async fn locate(front: &Front, room: &str) -> Answer {
    front.get(&format!("/v1/rooms/{room}/locate")).send().await
}

#[tokio::test]
async fn a_restarted_ec_keeps_its_rooms_and_nuve_writes_nothing() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let room = front.token(&keys.publishable, "a", "Ann").await.is(201).at("roomId");
    ec.die();
    let _again = FakeEc::start(&cell, "e1").await;
    let _other = FakeEc::start(&cell, "e2").await;
    for _ in 0..5 {
        let token = front.token(&keys.publishable, "a", "Bob").await.is(201);
        assert_eq!(token.at("wsUrl"), "ws://e1.test/signal");
    }
    assert_eq!(placements(&cell, &room).await, [("e1".into(), "first-token".into(), 1)]);
}

#[tokio::test]
async fn a_dead_ecs_open_rooms_go_to_another_by_themselves_and_idle_ones_when_asked_for() {
    let cell = Cell::new();
    let (a, b) = (cell.nuve(Cell::settings("n1")).await, cell.nuve(Cell::settings("n2")).await);
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = a.service().await;
    let open = a.token(&keys.publishable, "open", "Ann").await.is(201).at("roomId");
    let idle = a.token(&keys.publishable, "idle", "Ann").await.is(201).at("roomId");
    ec.join(&open, "c1").await;
    let _other = FakeEc::start(&cell, "e2").await;
    let node = StreamId::from(&ec.id);
    let died = std::time::Instant::now();
    ec.die();

    // While it is only silent its room is not torn away: clients are sent to it, newcomers wait.
    until(async || locate(&a, &open).await.json()["ec"] == "e1", 1).await;
    until(async || placements(&cell, &open).await.len() == 2, 8).await;
    let took = died.elapsed();
    assert!(took >= Duration::from_millis(900), "not after one question nobody heard, but after {took:?}");
    assert!(
        took < Duration::from_secs(4),
        "nobody listens there, so not after ten seconds, but after {took:?}"
    );
    assert_eq!(placements(&cell, &open).await[1], ("e2".into(), "ec-lost".into(), 2));
    assert_eq!(placements(&cell, &idle).await.len(), 1, "nobody has asked for it");

    for front in [&a, &b] {
        until(async || locate(front, &open).await.json()["epoch"] == 2, 2).await;
        let found = locate(front, &open).await.is(200);
        assert_eq!(found.json()["wsUrl"], "ws://e2.test/signal");
        let token = front.token(&keys.publishable, "idle", "Bob").await.is(201);
        assert_eq!(token.at("wsUrl"), "ws://e2.test/signal");
    }
    assert_eq!(placements(&cell, &idle).await[1], ("e2".into(), "ec-lost".into(), 2));
    assert_eq!(placements(&cell, &idle).await.len(), 2);
    // Both nodes saw it die; the log says it once.
    let commits = cell.journal.read(&node, roomlog_bus::ids::Version(1), 10).await.unwrap();
    let lost = commits.iter().flat_map(|c| &c.events).filter(|event| &*event.kind == "NodeLost").count();
    assert_eq!(lost, 1);
}

#[tokio::test]
async fn an_ec_that_another_nuve_hears_is_not_called_lost() {
    let cell = Cell::new();
    // n1 hears nothing: its patience is shorter than the time between two heartbeats.
    let deaf =
        roomlog_nuve::NuveSettings { suspect_after_ms: 100, lost_after_ms: 300, ..Cell::settings("n1") };
    let (a, _b) = (cell.nuve(deaf).await, cell.nuve(Cell::settings("n2")).await);
    let ec = FakeEc::start(&cell, "e1").await;
    let _other = FakeEc::start(&cell, "e2").await;
    let keys = a.service().await;
    let room = a.token(&keys.publishable, "a", "Ann").await.is(201).at("roomId");
    ec.join(&room, "c1").await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(placements(&cell, &room).await.len(), 1);
    for node in ["ec.e1", "ec.e2"] {
        let node: StreamId = node.parse().unwrap();
        let commits = cell.journal.read(&node, roomlog_bus::ids::Version(1), 10).await.unwrap();
        assert!(commits.iter().flat_map(|c| &c.events).all(|event| &*event.kind != "NodeLost"));
    }
}

#[tokio::test]
async fn a_node_that_was_itself_paused_does_not_think_that_the_others_were_silent() {
    let cell = Cell::new();
    let settings =
        roomlog_nuve::NuveSettings { suspect_after_ms: 1_500, lost_after_ms: 2_000, ..Cell::settings("n1") };
    let front = cell.nuve(settings).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let room = front.token(&keys.publishable, "a", "Ann").await.is(201).at("roomId");
    std::thread::sleep(Duration::from_millis(2_500));
    // Before anything that waited could be read …
    front.token(&keys.publishable, "b", "Ann").await.is(201);
    // … and afterwards.
    tokio::time::sleep(Duration::from_millis(600)).await;
    front.token(&keys.publishable, "c", "Ann").await.is(201);
    assert_eq!(placements(&cell, &room).await.len(), 1);
    let node: StreamId = "ec.e1".parse().unwrap();
    let commits = cell.journal.read(&node, roomlog_bus::ids::Version(1), 10).await.unwrap();
    assert!(commits.iter().flat_map(|c| &c.events).all(|event| &*event.kind != "NodeLost"));
}

#[tokio::test]
async fn nodes_are_listed_with_what_is_heard_of_them() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    front.get("/v1/nodes").key(&keys.publishable).send().await.is(403).problem("wrong-key");
    for key in [keys.secret.as_str(), support::ADMIN] {
        let list = front.get("/v1/nodes").key(key).send().await.is(200).json();
        let nodes = list["nodes"].as_array().unwrap();
        let ids: Vec<_> =
            nodes.iter().map(|n| (n["kind"].as_str().unwrap(), n["id"].as_str().unwrap())).collect();
        assert_eq!(ids, [("ec", "e1"), ("nuve", "n1")]);
        assert_eq!(nodes[0]["phase"], "registered");
        assert!(nodes[0]["heardMsAgo"].as_u64().unwrap() < 3_000);
        assert_eq!(nodes[0]["clients"], 0);
    }
}

#[tokio::test]
async fn a_node_registers_again_at_each_start_and_says_goodbye() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    assert_eq!(front.nuve.incarnation().0, 1);
    front.nuve.stop().await;
    let again = cell.nuve(Cell::settings("n1")).await;
    assert_eq!(again.nuve.incarnation().0, 2);
    let node: StreamId = "nuve.n1".parse().unwrap();
    let commits = cell.journal.read(&node, roomlog_bus::ids::Version(1), 10).await.unwrap();
    let types: Vec<_> = commits.iter().flat_map(|c| &c.events).map(|event| event.kind.to_string()).collect();
    assert_eq!(types, ["NodeRegistered", "NodeLeft", "NodeRegistered"]);
}

#[tokio::test]
async fn the_demo_service_and_the_signing_key_survive_a_restart() {
    let cell = Cell::new();
    let folder = tempfile::tempdir().unwrap();
    let settings = roomlog_nuve::NuveSettings {
        demo: true,
        admin_key: None,
        data_dir: Some(folder.path().to_owned()),
        ..Cell::settings("n1")
    };
    let front = cell.nuve(settings.clone()).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let demo = front.get("/v1/demo").send().await.is(200);
    let key = demo.at("publishableKey");
    let token = front.token(&key, "a", "Ann").await.is(201);
    let admin = std::fs::read_to_string(folder.path().join("admin-key")).unwrap();
    front.get("/v1/services").key(admin.trim()).send().await.is(200);
    front.nuve.stop().await;

    let again = cell.nuve(settings).await;
    assert_eq!(again.get("/v1/demo").send().await.is(200).json(), demo.json());
    let kid = |answer: &Answer| answer.at("token").split('.').next().unwrap().to_owned();
    let second = again.token(&key, "a", "Bob").await.is(201);
    assert_eq!(kid(&second), kid(&token), "tokens given out before stay good");
    for (name, secret) in [("token-key", true), ("admin-key", true), ("demo-service.json", true)] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077 == 0, secret, "{name} {mode:o}");
    }
    let plain = cell.nuve(Cell::settings("n2")).await;
    plain.get("/v1/demo").send().await.is(404).problem("no-demo");
}
