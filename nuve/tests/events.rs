//! The event stream: what is in it, and that a break loses and repeats nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt as _;
use serde_json::Value;
use support::{Ask, Cell, FakeEc, Front, Keys};

/// An event as it came.
#[derive(Debug, Clone, PartialEq)]
struct Got {
    id: String,
    kind: String,
    data: Value,
}

impl Got {
    fn at(&self) -> (String, u64) {
        (self.data["room"].as_str().unwrap().into(), self.data["version"].as_u64().unwrap())
    }
}

/// An open event stream.
struct Listener {
    body: axum::body::BodyDataStream,
    text: String,
    /// The last id that came, of an event or not.
    last: String,
}

impl Listener {
    async fn open(ask: Ask) -> Self {
        let response = ask.open().await;
        let (parts, body): (_, Body) = response.into_parts();
        assert_eq!(parts.status, 200);
        assert!(parts.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        let mut listener = Self { body: body.into_data_stream(), text: String::new(), last: String::new() };
        let hello = listener.block().await.expect("a first block");
        assert!(hello.contains("id:") && !hello.contains("data:"), "{hello:?}");
        listener
    }

    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.clone().split_once("\n\n") {
                self.text = rest.to_owned();
                if let Some(id) = block.lines().find_map(|line| line.strip_prefix("id:")) {
                    self.last = id.trim().to_owned();
                }
                return Some(block.to_owned());
            }
            let next = tokio::time::timeout(Duration::from_secs(2), self.body.next()).await.ok()??;
            self.text.push_str(std::str::from_utf8(&next.unwrap()).unwrap());
        }
    }

    /// The next event, or none within two seconds.
    async fn next(&mut self) -> Option<Got> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| {
                block.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned())
            };
            if let Some(data) = field("data:") {
                let data = serde_json::from_str(&data).unwrap();
                return Some(Got { id: field("id:").unwrap(), kind: field("event:").unwrap(), data });
            }
        }
    }

    async fn take(&mut self, count: usize) -> Vec<Got> {
        let mut all = Vec::new();
        while all.len() < count {
            all.push(self.next().await.unwrap_or_else(|| panic!("only {} of {count} came", all.len())));
        }
        all
    }
}

fn listen(front: &Front, keys: &Keys, query: &str) -> Ask {
    front.get(&format!("/v1/events{query}")).key(&keys.secret)
}

#[tokio::test]
async fn a_stream_has_the_services_own_events_in_order_and_no_others() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let (keys, other) = (front.service().await, front.service().await);
    front.get("/v1/events").key(&keys.publishable).send().await.is(403).problem("wrong-key");
    let before = front.token(&keys.secret, "before", "Ann").await.is(201).at("roomId");

    let mut listener = Listener::open(listen(&front, &keys, "")).await;
    let mut of_before = Listener::open(listen(&front, &keys, "?room=name:before")).await;
    let foreign = front.token(&other.secret, "a", "Eve").await.is(201).at("roomId");
    ec.join(&foreign, "x1").await;
    let room = front.token(&keys.secret, "a", "Ann").await.is(201).at("roomId");
    ec.join(&room, "c1").await;
    ec.join(&before, "c2").await;

    let got = listener.take(8).await;
    let types: Vec<_> = got.iter().map(|got| got.kind.as_str()).collect();
    let join = ["RoomOpened", "ClientAdmitted", "ClientJoined"];
    assert_eq!(types, [&["RoomCreated", "RoomPlaced"][..], &join[..], &join[..]].concat());
    assert!(got.iter().all(|got| got.data["room"] != foreign.as_str()));
    let places: Vec<_> = got.iter().map(Got::at).collect();
    let expected = (1..=5).map(|v| (room.clone(), v)).chain((3..=5).map(|v| (before.clone(), v)));
    assert_eq!(places, expected.collect::<Vec<_>>());
    assert_eq!(got[3].data["data"]["user"], "user c1");
    assert_eq!(got[3].data["type"], "ClientAdmitted");

    let only = of_before.take(3).await;
    assert!(only.iter().all(|got| got.data["room"] == before.as_str()));
    assert_eq!(of_before.next().await, None);
}

#[tokio::test]
async fn a_listener_that_comes_back_with_any_last_id_misses_and_repeats_nothing() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let (keys, other) = (front.service().await, front.service().await);
    let mut listener = Listener::open(listen(&front, &keys, "")).await;
    let begin = listener.last.clone();
    for name in ["a", "b"] {
        let room = front.token(&keys.secret, name, "Ann").await.is(201).at("roomId");
        ec.join(&room, "c1").await;
        let foreign = front.token(&other.secret, name, "Eve").await.is(201).at("roomId");
        ec.join(&foreign, "x1").await;
    }
    let all = listener.take(10).await;
    // From each id, also from within a commit of several events: exactly what followed.
    let ids = std::iter::once(begin).chain(all.iter().map(|got| got.id.clone()));
    for (seen, id) in ids.enumerate() {
        let mut again = Listener::open(listen(&front, &keys, "").header("last-event-id", &id)).await;
        assert_eq!(again.take(10 - seen).await, all[seen..], "after {seen} events");
    }
    let mut after = Listener::open(listen(&front, &keys, "?after=beginning")).await;
    assert_eq!(after.take(10).await, all);
    for bad in ["nonsense", "Af__________"] {
        listen(&front, &keys, "").header("last-event-id", bad).send().await.is(400).problem("bad-request");
    }
}

#[tokio::test]
async fn events_of_a_deleted_room_are_still_told_to_who_comes_late() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let room = front.token(&keys.secret, "a", "Ann").await.is(201).at("roomId");
    let mut listener = Listener::open(listen(&front, &keys, "")).await;
    ec.join(&room, "c1").await;
    let first = listener.take(1).await.remove(0);
    drop(listener);
    front.delete(&format!("/v1/rooms/{room}")).key(&keys.secret).send().await.is(204);
    let id = roomlog_bus::ids::RoomId::new(&room).unwrap();
    while front.directory.read().rooms.contains_key(&id) {
        tokio::task::yield_now().await;
    }
    let mut late = Listener::open(listen(&front, &keys, "").header("last-event-id", &first.id)).await;
    let types: Vec<_> = late.take(3).await.into_iter().map(|got| got.kind).collect();
    assert_eq!(types, ["ClientAdmitted", "ClientJoined", "RoomDeleted"]);
}

#[tokio::test]
async fn streams_are_counted_and_end_when_the_node_stops() {
    let cell = Cell::new();
    let settings = roomlog_nuve::NuveSettings { max_event_streams: 1, ..Cell::settings("n1") };
    let front = cell.nuve(settings).await;
    let keys = front.service().await;
    let first = Listener::open(listen(&front, &keys, "")).await;
    listen(&front, &keys, "").send().await.is(503).problem("too-many-streams");
    drop(first);
    let mut second = None;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let response = listen(&front, &keys, "").open().await;
        if response.status() == 200 {
            second = Some(response);
            break;
        }
    }
    let second = second.expect("a stream that was dropped gives its place back");
    front.nuve.stop().await;
    let rest = axum::body::to_bytes(second.into_body(), 100_000);
    tokio::time::timeout(Duration::from_secs(1), rest).await.expect("it ends with the node").unwrap();
}
