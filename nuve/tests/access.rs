//! Every route with every kind of credential. The routes are those of `/openapi.json`, so that a new one cannot be forgotten here.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use roomlog_nuve::NuveSettings;
use serde_json::{Value, json};
use support::{ADMIN, Ask, Cell, FakeEc, Front};

/// Who asks.
const CALLERS: [&str; 11] = [
    "nobody",
    "garbage",
    "made up",
    "publishable",
    "secret",
    "secret of another",
    "replaced, still good",
    "replaced, over",
    "replaced, revoked",
    "of a deleted service",
    "admin",
];

/// A service with a room in which somebody is, and the keys of the table.
struct Scene {
    service: String,
    room: String,
    keys: Vec<Option<String>>,
}

async fn scene(front: &Front, ec: &FakeEc) -> Scene {
    let (keys, other, deleted) = (front.service().await, front.service().await, front.service().await);
    let room = front.token(&keys.secret, "r", "Ann").await.is(201).at("roomId");
    ec.join(&room, "c1").await;
    let rotated = async |valid: u32| {
        let body = json!({"which": "secret", "oldValidS": valid});
        front.post(&format!("/v1/services/{}/keys", keys.id), body).key(ADMIN).send().await.is(201).at("key")
    };
    let revoked = keys.secret.clone();
    let over = rotated(600).await;
    let path = format!("/v1/services/{}/keys/secret/old", keys.id);
    front.delete(&path).key(ADMIN).send().await.is(204);
    let still = rotated(0).await;
    let secret = rotated(600).await;
    front.delete(&format!("/v1/services/{}", deleted.id)).key(ADMIN).send().await.is(204);
    let made_up = format!("sk_{}_{}", keys.id, "x".repeat(43));
    let keys = vec![
        None,
        Some("garbage".into()),
        Some(made_up),
        Some(keys.publishable),
        Some(secret),
        Some(other.secret),
        Some(still),
        Some(over),
        Some(revoked),
        Some(deleted.secret),
        Some(ADMIN.into()),
    ];
    Scene { service: deleted_id(&keys[4]), room, keys }
}

/// The service that a key names.
fn deleted_id(key: &Option<String>) -> String {
    let key = key.as_ref().unwrap();
    key.split_once('_').unwrap().1.rsplit_once('_').unwrap().0.to_owned()
}

/// A body that the operation takes.
fn body(schema: &str) -> Value {
    match schema.rsplit('/').next().unwrap() {
        "NewService" => json!({"name": "s"}),
        "ServiceChange" => json!({"name": "t"}),
        "Rotation" => json!({"which": "publishable"}),
        "NewRoom" => json!({"name": "another"}),
        "RoomChange" => json!({"metadata": {"a": 1}}),
        "TokenRequest" => json!({"user": "Ann"}),
        "UserChange" => json!({"role": "viewer"}),
        "Muting" => json!({"muted": true}),
        "Drain" | "WebhookChange" | "SecretRotation" => json!({}),
        "NewWebhook" => json!({"url": "https://app.example/"}),
        other => panic!("say here what a {other} is"),
    }
}

fn ask(front: &Front, scene: &Scene, method: &str, path: &str, operation: &Value) -> Ask {
    let path = path
        .replace("{service}", &scene.service)
        .replace("{room}", &scene.room)
        .replace("{user}", "c1")
        .replace("{producer}", "p1")
        .replace("{which}", "secret")
        .replace("{webhook}", "w1")
        .replace("{node}", "ea.none");
    assert!(!path.contains('{'), "say here what stands in {path}");
    let ask = front.ask(&method.to_uppercase(), &path);
    match operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str() {
        Some(schema) => ask.body(body(schema).to_string()),
        None => ask,
    }
}

/// What the description says of a caller: 401, 403, 404 where it is another's, or 0 for served.
fn documented(caller: &str, path: &str, operation: &Value) -> u16 {
    let wanted: Vec<&str> = operation["security"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|scheme| scheme.as_object().unwrap().keys().map(String::as_str))
        .collect();
    let kind = match caller {
        _ if wanted.is_empty() => return 0,
        "nobody" | "garbage" => return 401,
        "made up" | "replaced, over" | "replaced, revoked" | "of a deleted service" => "none",
        "publishable" => "publishable",
        "secret" | "secret of another" | "replaced, still good" => "secret",
        _ => "admin",
    };
    match kind {
        // Where no service's key opens anything, it is not looked at either.
        "none" => {
            if wanted == ["admin"] {
                403
            } else {
                401
            }
        }
        kind if !wanted.contains(&kind) => {
            if kind == "admin" {
                401
            } else {
                403
            }
        }
        "secret" if caller == "secret of another" && path.contains("{room}") => 404,
        _ => 0,
    }
}

#[tokio::test]
async fn every_route_with_every_kind_of_key_comes_out_as_described() {
    let cell = Cell::new();
    let front = cell.nuve(NuveSettings { demo: true, ..Cell::settings("n1") }).await;
    let ec = FakeEc::start(&cell, "e1").await;
    let api = front.get("/openapi.json").send().await.is(200).json();
    let (mut cells, mut wrong) = (0, Vec::new());
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for (i, caller) in CALLERS.into_iter().enumerate() {
                // Of its own, since what is asked may delete it.
                let scene = scene(&front, &ec).await;
                let ask = ask(&front, &scene, method, path, operation);
                let ask = match &scene.keys[i] {
                    Some(key) => ask.key(key),
                    None => ask,
                };
                let response = ask.open().await;
                let status = response.status().as_u16();
                cells += 1;
                let at = format!("{} {path} as {caller}", method.to_uppercase());
                if operation["responses"].get(status.to_string()).is_none() {
                    wrong.push(format!("{at}: {status} is not described"));
                }
                let wanted = documented(caller, path, operation);
                let fits = match wanted {
                    0 => ![401, 403].contains(&status),
                    wanted => status == wanted,
                };
                if !fits {
                    wrong.push(format!("{at}: {wanted} wanted, {status} came"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cells}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cells > 300, "only {cells} cells");
}

#[tokio::test]
async fn a_key_is_replaced_without_a_gap_and_the_old_one_ends_when_told() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let keys = front.service().await;
    let path = format!("/v1/services/{}", keys.id);
    let rotate = json!({"which": "secret", "oldValidS": 3_600});
    let new = front.post(&format!("{path}/keys"), rotate.clone()).key(ADMIN).send().await.is(201).at("key");
    for key in [&keys.secret, &new] {
        front.get("/v1/rooms").key(key).send().await.is(200);
    }
    let shown = front.get(&path).key(ADMIN).send().await.is(200).json();
    assert_eq!(shown["oldKeys"][0]["which"], "secret");
    let until = shown["oldKeys"][0]["until"].as_u64().unwrap();
    assert!(until > 1_700_000_000_000);
    // A second rotation ends the first key, however long it was to last.
    let newest = front.post(&format!("{path}/keys"), rotate).key(ADMIN).send().await.is(201).at("key");
    front.get("/v1/rooms").key(&keys.secret).send().await.is(401).problem("unknown-key");
    front.get("/v1/rooms").key(&new).send().await.is(200);
    front.delete(&format!("{path}/keys/secret/old")).key(ADMIN).send().await.is(204);
    front.get("/v1/rooms").key(&new).send().await.is(401).problem("unknown-key");
    front.get("/v1/rooms").key(&newest).send().await.is(200);
    let shown = front.get(&path).key(ADMIN).send().await.is(200);
    assert_eq!(shown.json()["oldKeys"], json!([]));
    assert!(!shown.text.contains(&newest) && !shown.text.contains("hash"), "{}", shown.text);
}

#[tokio::test]
async fn a_service_says_whose_pages_may_use_its_keys() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let (ours, theirs) = ("https://app.example", "https://evil.example");
    let from = async |origin: &str| {
        let body = json!({"user": "Ann", "create": true});
        let ask = front.post("/v1/rooms/name:a/tokens", body).key(&keys.publishable);
        ask.header("origin", origin).send().await
    };
    from(theirs).await.is(201);
    let path = format!("/v1/services/{}", keys.id);
    let change = json!({"origins": [ours]});
    let changed = front.patch(&path, change).key(ADMIN).send().await.is(200).json();
    assert_eq!((&changed["origins"], &changed["name"]), (&json!([ours]), &json!("test")), "the rest stays");
    from(ours).await.is(201);
    let refused = from(theirs).await.is(403).problem("wrong-origin");
    assert_eq!(refused.headers["access-control-allow-origin"], "*", "the page must be able to read why");
    // Servers have no origin.
    front.token(&keys.publishable, "a", "Ann").await.is(201);
    for bad in ["app.example", "https://", "https://app.example/", "ftp://app.example", "*"] {
        let change = json!({"origins": [bad]});
        front.patch(&path, change).key(ADMIN).send().await.is(422).problem("invalid-field");
    }
}
