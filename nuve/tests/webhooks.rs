//! Webhooks: signed, in order, at least once; after an hour down, from another node, from any place in the log.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use roomlog_nuve::{
    NuveSettings,
    webhooks::deliver::{Deliver, Delivery},
};
use serde_json::{Value, json};
use support::{Cell, FakeEc, Front, Keys};
use tokio::time::Instant;

/// A receiver: takes what it is sent while it is up.
#[derive(Default)]
struct Receiver {
    down: Mutex<bool>,
    tries: Mutex<Vec<Instant>>,
    by: Mutex<BTreeSet<&'static str>>,
    taken: Mutex<Vec<(Delivery, Value)>>,
}

/// The way of one node to the receiver.
struct Via(&'static str, Arc<Receiver>);

#[async_trait]
impl Deliver for Via {
    async fn deliver(&self, delivery: &Delivery) -> Result<(), String> {
        self.1.by.lock().unwrap().insert(self.0);
        self.1.deliver(delivery).await
    }
}

#[async_trait]
impl Deliver for Receiver {
    async fn deliver(&self, delivery: &Delivery) -> Result<(), String> {
        self.tries.lock().unwrap().push(Instant::now());
        tokio::time::sleep(Duration::from_millis(5)).await;
        if *self.down.lock().unwrap() {
            return Err("answered 503".into());
        }
        let body = serde_json::from_slice(&delivery.body).unwrap();
        self.taken.lock().unwrap().push((delivery.clone(), body));
        Ok(())
    }
}

impl Receiver {
    fn set_down(&self, down: bool) {
        *self.down.lock().unwrap() = down;
    }

    /// Room and version of every event taken, in the order they came.
    fn events(&self) -> Vec<(String, u64)> {
        let taken = self.taken.lock().unwrap();
        let events = taken.iter().flat_map(|(_, body)| body["data"]["events"].as_array().unwrap().clone());
        events.map(|e| (e["room"].as_str().unwrap().to_owned(), e["version"].as_u64().unwrap())).collect()
    }

    /// Waits until it has so many different events; far longer than the longest pause, in time that is not real.
    async fn has(&self, count: usize) {
        let all = async {
            while self.events().iter().collect::<BTreeSet<_>>().len() < count {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(2_000), all).await;
        came.unwrap_or_else(|_| panic!("{count} wanted, {:?} came", self.events()));
    }

    /// Which nodes sent.
    fn senders(&self) -> BTreeSet<&'static str> {
        self.by.lock().unwrap().clone()
    }
}

/// Every room's events came in order, from 1, none missing; some more than once where `twice` says so.
fn whole(events: &[(String, u64)], rooms: &BTreeMap<String, u64>, twice: bool) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (room, version) in events {
        let last = last.entry(room).or_default();
        assert!(*version <= *last + 1, "{room}: {version} after {last}");
        assert!(twice || *version == *last + 1, "{room}: {version} came twice");
        *last = *version;
    }
    for (room, versions) in rooms {
        assert_eq!(last.get(room.as_str()), Some(versions), "the end of {room}");
    }
    assert_eq!(last.len(), rooms.len(), "rooms of others");
}

async fn hook(front: &Front, keys: &Keys, body: Value) -> Value {
    front.post("/v1/webhooks", body).key(&keys.secret).send().await.is(201).json()
}

async fn read(front: &Front, keys: &Keys, hook: &Value) -> Value {
    let path = format!("/v1/webhooks/{}", hook["id"].as_str().unwrap());
    front.get(&path).key(&keys.secret).send().await.is(200).json()
}

/// Rooms of `keys` in which something happens, `each` times; with their last versions.
async fn happen(front: &Front, ec: &FakeEc, keys: &Keys, name: &str, each: u64) -> BTreeMap<String, u64> {
    let mut rooms = BTreeMap::new();
    for room in 0..3 {
        let token = front.token(&keys.secret, &format!("{name}{room}"), "Ann").await.is(201);
        let room = token.at("roomId");
        let mut last = token.version();
        for client in 0..each {
            last = ec.join(&room, &format!("c{client}")).await.0;
        }
        rooms.insert(room, last);
    }
    rooms
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_was_down_for_an_hour_gets_all_in_order() {
    let cell = Cell::new();
    let receiver = Arc::new(Receiver::default());
    let front = cell.nuve_with(Cell::settings("n1"), receiver.clone(), Duration::ZERO).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let (keys, other) = (front.service().await, front.service().await);
    let made = hook(&front, &keys, json!({"url": "https://app.example/hook"})).await;
    let mut rooms = happen(&front, &ec, &keys, "before", 3).await;
    happen(&front, &ec, &other, "theirs", 3).await;
    receiver.has(rooms.values().sum::<u64>() as usize).await;
    whole(&receiver.events(), &rooms, false);

    receiver.set_down(true);
    let since = Instant::now();
    rooms.extend(happen(&front, &ec, &keys, "while", 40).await);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let shown = read(&front, &keys, &made).await;
    assert_eq!(shown["failing"]["error"], "answered 503", "{shown}");
    assert!(shown["failing"]["attempts"].as_u64().unwrap() >= 6, "{shown}");
    let tries = receiver.tries.lock().unwrap().iter().filter(|at| **at > since).count();
    assert!((10..40).contains(&tries), "{tries} tries in an hour");

    receiver.set_down(false);
    let back = Instant::now();
    receiver.has(rooms.values().sum::<u64>() as usize).await;
    assert!(back.elapsed() <= Duration::from_secs(601), "the longest pause is ten minutes");
    whole(&receiver.events(), &rooms, false);
    tokio::time::sleep(Duration::from_secs(31)).await;
    let shown = read(&front, &keys, &made).await;
    assert_eq!(shown["failing"], json!(null), "{shown}");

    // Few commits, however much was sent.
    let stream = format!("service.{}", keys.id).parse().unwrap();
    let head = cell.journal.head(&stream).await.unwrap().unwrap();
    assert!(head.version.0 < 40, "{} events of the service", head.version);
}

#[tokio::test(start_paused = true)]
async fn messages_are_signed_and_an_old_secret_signs_too_for_as_long_as_it_was_said() {
    let cell = Cell::new();
    let receiver = Arc::new(Receiver::default());
    let front = cell.nuve_with(Cell::settings("n1"), receiver.clone(), Duration::ZERO).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let made =
        hook(&front, &keys, json!({"url": "https://app.example/hook", "types": ["ClientJoined"]})).await;
    let path = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
    let signed_by = |secret: &Value, delivery: &Delivery| {
        let secret = secret.as_str().unwrap().strip_prefix("whsec_").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(secret).unwrap());
        let mut signed = format!("{}.{}.", delivery.id, delivery.timestamp).into_bytes();
        signed.extend(&delivery.body);
        let signature = format!("v1,{}", STANDARD.encode(hmac::sign(&key, &signed)));
        delivery.signature.split(' ').any(|one| one == signature)
    };
    let last = async |count| {
        while receiver.taken.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        receiver.taken.lock().unwrap().last().unwrap().clone()
    };
    let room = front.token(&keys.secret, "a", "Ann").await.is(201).at("roomId");
    ec.join(&room, "c1").await;
    let (delivery, body) = last(1).await;
    assert!(signed_by(&made["secret"], &delivery));
    assert_eq!(delivery.url, "https://app.example/hook");
    let types: Vec<_> =
        body["data"]["events"].as_array().unwrap().iter().map(|e| e["type"].clone()).collect();
    assert_eq!(types, ["ClientJoined"], "only what was asked for");

    let rotate = front.post(&format!("{path}/secret"), json!({"oldValidS": 3_600})).key(&keys.secret);
    let new = rotate.send().await.is(201).json();
    assert_ne!(new["secret"], made["secret"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    ec.join(&room, "c2").await;
    let (delivery, _) = last(2).await;
    assert!(signed_by(&made["secret"], &delivery) && signed_by(&new["secret"], &delivery));
    let rotate = front.post(&format!("{path}/secret"), json!({})).key(&keys.secret);
    let newest = rotate.send().await.is(201).json();
    tokio::time::sleep(Duration::from_secs(2)).await;
    ec.join(&room, "c3").await;
    let (delivery, _) = last(3).await;
    assert!(!signed_by(&new["secret"], &delivery) && signed_by(&newest["secret"], &delivery));

    // Secrets are shown once, and the log knows none.
    let list = front.get("/v1/webhooks").key(&keys.secret).send().await.is(200);
    assert!(!list.text.contains("whsec_"), "{}", list.text);
    let stream = format!("service.{}", keys.id).parse().unwrap();
    let commits = roomlog_bus::journal::read_all(&*cell.journal, &stream, roomlog_bus::ids::Version(1)).await;
    let log = format!(
        "{:?}",
        commits
            .unwrap()
            .iter()
            .map(|c| c.events.iter().map(|e| e.data.to_json()).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    );
    for secret in [&made, &new, &newest] {
        let secret = secret["secret"].as_str().unwrap().strip_prefix("whsec_").unwrap();
        assert!(!log.contains(secret), "{log}");
    }
}

/// Nodes that share the key of webhooks.
fn sharing(id: &str) -> NuveSettings {
    NuveSettings { webhook_key: Some("shared".into()), ..Cell::settings(id) }
}

fn all(rooms: &BTreeMap<String, u64>) -> usize {
    rooms.values().sum::<u64>() as usize
}

#[tokio::test(start_paused = true)]
async fn when_the_node_that_sends_dies_in_an_hour_that_the_receiver_is_down_another_sends_all_of_it() {
    let cell = Cell::new();
    let receiver = Arc::new(Receiver::default());
    let a = cell.nuve_with(sharing("n1"), Arc::new(Via("n1", receiver.clone())), Duration::ZERO).await;
    let b = cell.nuve_with(sharing("n2"), Arc::new(Via("n2", receiver.clone())), Duration::ZERO).await;
    // Has another key: cannot sign.
    let other = Arc::new(Via("n0", receiver.clone()));
    let _stranger = cell.nuve_with(Cell::settings("n0"), other, Duration::ZERO).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = b.service().await;
    let made = hook(&a, &keys, json!({"url": "https://app.example/hook"})).await;
    assert_eq!(made["sentBy"], "nuve.n1");
    let mut rooms = happen(&b, &ec, &keys, "before", 3).await;
    receiver.has(all(&rooms)).await;
    assert_eq!(receiver.senders(), BTreeSet::from(["n1"]), "one sends at a time");

    receiver.set_down(true);
    rooms.extend(happen(&b, &ec, &keys, "while", 10).await);
    tokio::time::sleep(Duration::from_secs(1_800)).await;
    a.nuve.die();
    rooms.extend(happen(&b, &ec, &keys, "after", 10).await);
    tokio::time::sleep(Duration::from_secs(1_800)).await;
    assert_eq!(read(&b, &keys, &made).await["sentBy"], "nuve.n2");
    receiver.set_down(false);
    receiver.has(all(&rooms)).await;
    whole(&receiver.events(), &rooms, true);
    assert_eq!(receiver.senders(), BTreeSet::from(["n1", "n2"]));

    // Back to the beginning: all of it once more.
    let path = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
    receiver.taken.lock().unwrap().clear();
    b.patch(&path, json!({"from": "beginning"})).key(&keys.secret).send().await.is(200);
    receiver.has(all(&rooms)).await;
    whole(&receiver.events(), &rooms, false);
    // Off: nothing is sent, and nothing is lost.
    b.patch(&path, json!({"enabled": false})).key(&keys.secret).send().await.is(200);
    tokio::time::sleep(Duration::from_secs(40)).await;
    rooms.extend(happen(&b, &ec, &keys, "off", 1).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(receiver.events().len() < all(&rooms));
    b.patch(&path, json!({"enabled": true})).key(&keys.secret).send().await.is(200);
    receiver.has(all(&rooms)).await;
    whole(&receiver.events(), &rooms, true);
    b.delete(&path).key(&keys.secret).send().await.is(204);
    b.get(&path).key(&keys.secret).send().await.is(404).problem("no-such-webhook");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_not_heard_that_a_webhook_was_moved_does_not_move_it_back() {
    let cell = Cell::new();
    let receiver = Arc::new(Receiver::default());
    let lag = Duration::from_secs(90);
    let a = cell.nuve_with(sharing("n1"), receiver.clone(), lag).await;
    let b = cell.nuve_with(sharing("n2"), receiver.clone(), Duration::ZERO).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = b.service().await;
    let made = hook(&a, &keys, json!({"url": "https://app.example/hook"})).await;
    let rooms = happen(&b, &ec, &keys, "room", 5).await;
    receiver.has(all(&rooms)).await;
    receiver.taken.lock().unwrap().clear();
    let path = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
    b.patch(&path, json!({"from": "beginning"})).key(&keys.secret).send().await.is(200);
    // Half a minute later the first would write down how far it has got, and it hears of the change only later.
    tokio::time::sleep(Duration::from_secs(45)).await;
    a.nuve.die();
    receiver.has(all(&rooms)).await;
    whole(&receiver.events(), &rooms, true);
}

#[tokio::test]
async fn a_tenants_url_leads_nowhere_that_the_operator_has_not_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hits = Arc::new(Mutex::new(Vec::new()));
    let app = {
        let hits = hits.clone();
        axum::Router::new()
            .route(
                "/hook",
                axum::routing::post(move |headers: axum::http::HeaderMap, body: String| async move {
                    hits.lock().unwrap().push((headers, body));
                }),
            )
            .route("/away", axum::routing::post(|| async { axum::response::Redirect::temporary("/hook") }))
    };
    tokio::spawn(async move { axum::serve(listener, app).await });
    let deliver = |allow: &[&str]| {
        let allow = allow.iter().map(|network| network.parse().unwrap()).collect();
        roomlog_nuve::webhooks::deliver::HttpDeliver::new(roomlog_nuve::webhooks::targets::Targets::new(
            allow,
        ))
    };
    let to = |path: &str| Delivery {
        url: format!("http://{path}"),
        id: "msg_1".into(),
        timestamp: 7,
        signature: "v1,x".into(),
        body: "{}".into(),
    };
    let here = format!("127.0.0.1:{port}/hook");
    for other in [here.clone(), format!("localhost:{port}/hook"), format!("[::ffff:127.0.0.1]:{port}/hook")] {
        deliver(&[]).deliver(&to(&other)).await.unwrap_err();
        deliver(&["10.0.0.0/8"]).deliver(&to(&other)).await.unwrap_err();
    }
    assert!(hits.lock().unwrap().is_empty());
    deliver(&["127.0.0.0/8"]).deliver(&to(&here)).await.unwrap();
    let (headers, body) = hits.lock().unwrap().pop().unwrap();
    assert_eq!((headers["webhook-id"].to_str().unwrap(), body.as_str()), ("msg_1", "{}"));
    assert_eq!(
        (&headers["webhook-timestamp"], &headers["webhook-signature"]),
        (&"7".parse().unwrap(), &"v1,x".parse().unwrap())
    );
    let refused =
        deliver(&["127.0.0.0/8"]).deliver(&to(&format!("127.0.0.1:{port}/away"))).await.unwrap_err();
    assert_eq!(refused, "answered 307", "redirects are not followed");
    assert!(hits.lock().unwrap().is_empty());

    // What can be told at once is told when it is registered.
    let check = |url: &str| deliver(&["127.0.0.0/8"]).check(&url.parse().unwrap());
    for good in [
        "http://127.0.0.1:1/x",
        "https://127.0.0.1/",
        "https://8.8.8.8/",
        "http://localhost/",
        "https://x.example/",
    ] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for (bad, why) in [
        ("http://10.0.0.1/x", "`webhook-allow`"),
        ("https://10.0.0.1/x", "`webhook-allow`"),
        ("https://[::1]:7/x", "`webhook-allow`"),
        ("http://8.8.8.8/", "https only"),
    ] {
        assert!(check(bad).unwrap_err().contains(why), "{bad}: {:?}", check(bad));
    }
}
