//! What the application changes: rooms and their users, under conditions, and once however often it is asked for.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::{sync::Arc, time::Duration};

use roomlog_bus::{
    commit::Commit,
    env::Env,
    events::{Event, RoomChanged, RoomLimits, ServiceChanged},
    ids::Epoch,
    journal::{AppendError, Before, Journal},
    log::{Draft, Log},
    time::SystemClock,
};
use serde_json::json;
use support::{ADMIN, Cell, FakeEc};

#[tokio::test]
async fn a_room_is_changed_by_its_owner_and_only_at_the_version_that_was_seen() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let keys = front.service().await;
    let limits = json!({"maxClients": 3});
    let made = front.post("/v1/rooms", json!({"name": "r", "limits": limits})).key(&keys.secret).send().await;
    let made = made.is(201);
    let path = format!("/v1/rooms/{}", made.at("id"));
    assert_eq!(made.json()["limits"], limits);
    let tag = made.headers["etag"].to_str().unwrap().to_owned();
    front.get(&path).key(&keys.secret).header("if-none-match", &tag).send().await.is(304);

    // It has no EC, and there is none to give it one.
    let change = json!({"metadata": {"a": 1}});
    front.patch(&path, change.clone()).key(&keys.secret).send().await.is(503).problem("no-ec");
    let _ec = FakeEc::start(&cell, "e1").await;
    let ask = |tag: &str, change: &serde_json::Value| {
        front.patch(&path, change.clone()).key(&keys.secret).header("if-match", tag).send()
    };
    let changed = ask(&tag, &change).await.is(200);
    assert_eq!((&changed.json()["metadata"], &changed.json()["limits"]), (&json!({"a": 1}), &limits));
    assert!(changed.version() > made.version());
    let stale = ask(&tag, &json!({"metadata": {"a": 2}})).await.is(412).problem("changed");
    assert_eq!(stale.json()["version"], changed.version());
    let newer = changed.headers["etag"].to_str().unwrap();
    let again = ask(newer, &json!({"limits": {"idleCloseS": 60}})).await.is(200);
    assert_eq!(again.json()["limits"], json!({"idleCloseS": 60}));
    assert_eq!(again.json()["metadata"], json!({"a": 1}), "what is left out stays");
    front.get(&path).key(&keys.secret).header("if-none-match", &tag).send().await.is(200);

    for bad in [
        json!({"limits": {"maxClients": 0}}),
        json!({"limits": {"maxClients": 1.5}}),
        json!({"limits": {"idleCloseS": 9}}),
        json!({"name": "x"}),
        json!([null, null]),
        json!({"limits": [1, 60]}),
    ] {
        front.patch(&path, bad).key(&keys.secret).send().await.is(422).problem("invalid-field");
    }
    let whole = front.post("/v1/rooms", json!({"limits": {"maxClients": 5.0}})).key(&keys.secret);
    assert_eq!(whole.send().await.is(201).json()["limits"]["maxClients"], json!(5), "5.0 is a whole number");
    let gone = front.delete(&path).key(&keys.secret);
    gone.header("if-match", &tag).send().await.is(412).problem("changed");
    let newest = again.headers["etag"].to_str().unwrap();
    front.delete(&path).key(&keys.secret).header("if-match", newest).send().await.is(204);
}

#[tokio::test]
async fn what_is_asked_for_again_under_its_key_is_done_once_at_whichever_nuve() {
    let cell = Cell::new();
    let (a, b) = (
        cell.nuve(Cell::settings("n1")).await,
        // Has not heard what the other did.
        cell.lagging_nuve(Cell::settings("n2"), Duration::from_millis(1_500)).await,
    );
    let keys = a.service().await;
    for body in [json!({"metadata": {"a": 1}}), json!({"name": "standup"})] {
        let key = body.to_string();
        let make = |front: &support::Front, body: &serde_json::Value| {
            front.post("/v1/rooms", body.clone()).key(&keys.secret).header("idempotency-key", &key).send()
        };
        let first = make(&a, &body).await.is(201);
        for front in [&a, &b] {
            assert_eq!(make(front, &body).await.is(201).at("id"), first.at("id"));
        }
        let mut other = body.clone();
        other["metadata"] = json!({"a": 2});
        make(&b, &other).await.is(422).problem("idempotency-key-reused");
        assert_eq!(cell.commits(&first.at("id")).await.len(), 1);
    }
    // Without the key, or under another, a name that is taken is taken.
    let again = a.post("/v1/rooms", json!({"name": "standup"})).key(&keys.secret);
    again.header("idempotency-key", "another").send().await.is(409).problem("room-exists");
    let list = a.get("/v1/rooms").key(&keys.secret).send().await.is(200).json();
    assert_eq!(list["rooms"].as_array().unwrap().len(), 2);

    // A service's keys are shown once, whatever is lost.
    let make = |front: &support::Front| {
        front.post("/v1/services", json!({"name": "s"})).key(ADMIN).header("idempotency-key", "s-1").send()
    };
    let made = make(&a).await.is(201);
    for front in [&a, &b] {
        let again = make(front).await.is(409).problem("made-before");
        assert_eq!(again.at("serviceId"), made.at("id"));
        assert!(!again.text.contains("sk_"), "{}", again.text);
    }
}

#[tokio::test]
async fn a_room_that_nobody_comes_to_is_deleted_when_it_says_so() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let keys = front.service().await;
    let make = |limits: serde_json::Value| {
        front.post("/v1/rooms", json!({"limits": limits})).key(&keys.secret).send()
    };
    let idle = make(json!({"idleCloseS": 10})).await.is(201).at("id");
    let kept = make(json!({})).await.is(201).at("id");
    let deleted = async {
        while !matches!(cell.events(&idle).await.last(), Some(Event::RoomDeleted(_))) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), deleted).await.expect("it is deleted after 10 to 20 s");
    let lasted = cell.commits(&idle).await[1].time.millis_since(cell.commits(&idle).await[0].time);
    assert!(lasted >= 10_000, "deleted after {lasted} ms");
    assert_eq!(cell.commits(&kept).await.len(), 1);
}

#[tokio::test]
async fn rights_are_given_with_the_token_and_changed_at_the_owner() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let room = front.token(&keys.secret, "r", "Ann").await.is(201).at("roomId");
    ec.join(&room, "c1").await;
    let path = format!("/v1/rooms/{room}/users/c1");
    let user = front.get(&path).key(&keys.secret).send().await.is(200).json();
    let presenter = json!({"publish": ["audio", "video"], "subscribe": true, "data": true, "manage": false});
    assert_eq!((&user["role"], &user["rights"]), (&json!("presenter"), &presenter));

    let change = async |body| front.patch(&path, body).key(&keys.secret).send().await.is(200).json();
    let viewer = change(json!({"role": "viewer"})).await;
    assert_eq!(viewer["rights"]["publish"], json!([]));
    let speaker = change(json!({"rights": {"publish": ["audio"], "subscribe": true}})).await;
    assert_eq!((&speaker["role"], &speaker["rights"]["publish"]), (&json!("viewer"), &json!(["audio"])));
    let ask = front.patch(&format!("/v1/rooms/{room}/users/c2"), json!({"role": "viewer"}));
    ask.key(&keys.secret).send().await.is(404).problem("no-such-user");
    let ask = front.patch(&format!("{path}/producers/p1"), json!({"muted": true}));
    ask.key(&keys.secret).send().await.is(404).problem("no-such-producer");

    // Whoever opens the page must not become the one who manages the room.
    let body = json!({"user": "Eve", "rights": {"manage": true}});
    let tokens = format!("/v1/rooms/{room}/tokens");
    front.post(&tokens, body.clone()).key(&keys.publishable).send().await.is(403).problem("wrong-key");
    front.post(&tokens, body).key(&keys.secret).send().await.is(201);
}

/// A journal in which, once a room is given an EC, somebody changes that room before anybody has read it.
struct ChangedAtOnce(Arc<dyn Journal>);

#[async_trait::async_trait]
impl Before for ChangedAtOnce {
    fn behind(&self) -> &dyn Journal {
        &*self.0
    }

    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        self.0.append(commit.clone()).await?;
        if commit.events.iter().any(|event| event.kind.as_str() == "RoomPlaced") {
            let env = Env::new(Arc::new(SystemClock), [99; 32]);
            let log = Log::new(self.0.clone(), env, commit.writer.clone());
            let event = RoomChanged { metadata: json!({"by": "another"}), limits: RoomLimits::default() };
            let draft = Draft { epoch: Epoch(1), ..Draft::default() };
            log.append(commit.stream.clone(), Some(commit.head()), draft, &[event.into()]).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_changed_between_looking_and_changing_is_not_lost() {
    let by_another = json!({"by": "another"});
    // On its way to an EC.
    let cell = Cell::over(|journal| Arc::new(ChangedAtOnce(journal)));
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let made = front.post("/v1/rooms", json!({"name": "a"})).key(&keys.secret).send().await.is(201);
    let path = format!("/v1/rooms/{}", made.at("id"));
    let tag = made.headers["etag"].to_str().unwrap();
    let change = front.patch(&path, json!({"metadata": {"by": "us"}})).key(&keys.secret);
    change.header("if-match", tag).send().await.is(412).problem("changed");
    assert_eq!(front.get(&path).key(&keys.secret).send().await.is(200).json()["metadata"], by_another);

    // On the way to the owner.
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let room = front.token(&keys.secret, "r", "Ann").await.is(201).at("roomId");
    let path = format!("/v1/rooms/{room}");
    let meanwhile = |n: u32| {
        let event = RoomChanged { metadata: json!({"by": n}), limits: RoomLimits::default() };
        *ec.first.lock().unwrap() = Some(event.into());
    };
    let seen = front.get(&path).key(&keys.secret).send().await.is(200);
    meanwhile(1);
    let change = front.patch(&path, json!({"metadata": {"by": "us"}})).key(&keys.secret);
    let tag = seen.headers["etag"].to_str().unwrap();
    change.header("if-match", tag).send().await.is(412).problem("changed");
    // Whoever changes a part keeps the rest as it is by then.
    meanwhile(2);
    let changed = front.patch(&path, json!({"limits": {"maxClients": 7}})).key(&keys.secret);
    let changed = changed.send().await.is(200).json();
    assert_eq!((&changed["metadata"], &changed["limits"]["maxClients"]), (&json!({"by": 2}), &json!(7)));
    // Who says everything needs to know nothing.
    meanwhile(3);
    let body = json!({"metadata": {"by": "us"}, "limits": {"maxClients": 8}});
    let changed = front.patch(&path, body).key(&keys.secret).send().await.is(200).json();
    assert_eq!(changed["metadata"], json!({"by": "us"}));
}

/// A journal in which, whenever a service is to get a name, somebody gives it another origin first.
struct MovedBefore(Arc<dyn Journal>);

#[async_trait::async_trait]
impl Before for MovedBefore {
    fn behind(&self) -> &dyn Journal {
        &*self.0
    }

    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        let named = commit.events.iter().find_map(|event| match Event::decode(event) {
            Ok(Event::ServiceChanged(changed)) if changed.name == "ours" => Some(changed),
            _ => None,
        });
        if let Some(ours) = named
            && ours.origins.is_empty()
        {
            let log =
                Log::new(self.0.clone(), Env::new(Arc::new(SystemClock), [99; 32]), commit.writer.clone());
            let origins = vec!["https://theirs.example".into()];
            let event = ServiceChanged { name: "before".into(), origins, ..ours };
            let head = self.0.head(&commit.stream).await.expect("the head reads");
            log.append(commit.stream.clone(), head, Draft::default(), &[event.into()]).await?;
        }
        self.0.append(commit).await
    }
}

#[tokio::test]
async fn who_changes_a_part_of_a_service_keeps_what_another_changes_at_once() {
    let cell = Cell::over(|journal| Arc::new(MovedBefore(journal)));
    let front = cell.nuve(Cell::settings("n1")).await;
    let keys = front.service().await;
    let path = format!("/v1/services/{}", keys.id);
    let changed = front.patch(&path, json!({"name": "ours"})).key(ADMIN).send().await.is(200).json();
    assert_eq!((&changed["name"], &changed["origins"]), (&json!("ours"), &json!(["https://theirs.example"])));
}
