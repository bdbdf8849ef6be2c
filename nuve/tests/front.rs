//! What goes for every request: limits, addresses, CORS, pages, descriptions and counters.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use roomlog_nuve::NuveSettings;
use serde_json::json;
use support::{ADMIN, Cell, FakeEc};

#[tokio::test]
async fn a_publishable_key_is_limited_per_address_and_a_secret_key_is_not() {
    let cell = Cell::new();
    let settings = NuveSettings { ip_per_s: 10, ip_burst: 20, ..Cell::settings("n1") };
    let front = cell.nuve(settings).await;
    let _ec = FakeEc::start(&cell, "e1").await;
    let keys = front.service().await;
    let ask = async |key: &str, ip: &str| {
        let body = json!({"user": "Ann", "create": true});
        front.post("/v1/rooms/name:a/tokens", body).key(key).from(ip).send().await
    };
    let mut served = 0;
    let mut refused = None;
    for _ in 0..60 {
        let answer = ask(&keys.publishable, "192.0.2.1").await;
        match answer.status.as_u16() {
            201 => served += 1,
            _ => refused = Some(answer.is(429).problem("rate-limited")),
        }
    }
    assert!((20..40).contains(&served), "{served} served");
    let refused = refused.expect("60 at once are too many");
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.headers["ratelimit-policy"], "\"address\";q=20;w=2");
    assert_eq!(refused.headers["ratelimit"], "\"address\";r=0;t=2");
    let other = ask(&keys.publishable, "192.0.2.2").await.is(201);
    assert_eq!(other.headers["ratelimit"], "\"address\";r=19;t=1");
    for _ in 0..60 {
        ask(&keys.secret, "192.0.2.1").await.is(201);
    }
    let room = ask(&keys.secret, "192.0.2.1").await.at("roomId");
    // Guessing keys is limited too; coming back is not.
    let mut guesses = Vec::new();
    for i in 0..40 {
        let guess = format!("sk_{}_{i}", keys.id);
        guesses.push(ask(&guess, "192.0.2.3").await.status.as_u16());
        front.get(&format!("/v1/rooms/{room}/locate")).from("192.0.2.1").send().await.is(200);
    }
    assert_eq!(guesses[0], 401);
    assert!(guesses.contains(&429), "{guesses:?}");
    let metrics = front.get("/metrics").send().await.is(200).text;
    let line = metrics.lines().find(|line| line.starts_with("roomlog_nuve_rate_limited_total")).unwrap();
    assert!(line.split(' ').nth(1).unwrap().parse::<u64>().unwrap() >= 20, "{line}");
}

#[tokio::test]
async fn all_callers_together_are_limited() {
    let cell = Cell::new();
    let front = cell.nuve(NuveSettings { cluster_per_s: 5, ..Cell::settings("n1") }).await;
    let mut statuses = Vec::new();
    let started = std::time::Instant::now();
    while started.elapsed() < std::time::Duration::from_secs(1) {
        statuses.push(front.get("/v1/services").key(ADMIN).send().await.status.as_u16());
    }
    // Nothing is saved up beyond the one request that may be.
    let served = statuses.iter().filter(|status| **status == 200).count() as f64;
    let most = started.elapsed().as_secs_f64() * 5.0 + 1.0;
    assert!((1.0..=most).contains(&served), "{served} of {}", statuses.len());
    let refused = front.get("/v1/services").key(ADMIN).send().await;
    if refused.status.as_u16() == 429 {
        assert_eq!(refused.headers["retry-after"], "1");
    }
    front.get("/healthz").send().await.is(200);
}

#[tokio::test]
async fn nodes_that_share_the_limit_admit_it_once() {
    let cell = Cell::new();
    let shared = |id: &str| NuveSettings { cluster_per_s: 200, shared_limit: true, ..Cell::settings(id) };
    let first = cell.nuve(shared("n1")).await;
    let second = cell.nuve(shared("n2")).await;
    let ask =
        async |front: &support::Front| front.get("/v1/services").key(ADMIN).send().await.status.as_u16();
    // What all may do in two seconds, whichever node is asked, from when both have their part.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let started = std::time::Instant::now();
    let mut served = [0_u32; 2];
    while started.elapsed() < std::time::Duration::from_secs(2) {
        for (front, served) in [&first, &second].into_iter().zip(&mut served) {
            *served += u32::from(ask(front).await == 200);
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let most = started.elapsed().as_secs_f64() * 200.0 + 14.0 + 2.0;
    assert!(f64::from(served[0] + served[1]) <= most, "{served:?}, {most} at most");
    assert!(served[0] >= 10 && served[1] >= 10, "{served:?}");
    let gauge = async |name: &str| -> f64 {
        let metrics = first.get("/metrics").send().await.is(200).text;
        metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
    };
    assert_eq!(gauge("roomlog_nuve_limit_holder ").await, 1.0);
    // A node that stops leaves its part to the other.
    second.nuve.stop().await;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while gauge("roomlog_nuve_limit_rate ").await < 200.0 {
        assert!(std::time::Instant::now() < until, "{}", gauge("roomlog_nuve_limit_rate ").await);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn urls_follow_the_request_unless_a_public_url_is_set() {
    let cell = Cell::new();
    let ec = FakeEc::start(&cell, "e1").await;
    // An EC behind the same port says so in its address.
    let head = cell.journal.head(&ec.log.writer().node).await.unwrap();
    let event = roomlog_bus::events::NodeRegistered {
        incarnation: ec.incarnation(),
        address: "auto:/signal".into(),
        workers: 0,
        version: "test".into(),
        probe: None,
        adopted: Vec::new(),
    };
    let node = ec.log.writer().node.clone();
    ec.log.append(node, head, Default::default(), &[event.into()]).await.unwrap();
    let plain = cell.nuve(Cell::settings("n1")).await;
    let tls = cell.nuve(NuveSettings { tls: true, ..Cell::settings("n2") }).await;
    let public = NuveSettings { public_url: Some("https://rooms.example/".into()), ..Cell::settings("n3") };
    let public = cell.nuve(public).await;
    let keys = plain.service().await;
    for (front, ws, base) in [
        (&plain, "ws://rooms.test:8080/signal", "http://rooms.test:8080"),
        (&tls, "wss://rooms.test:8080/signal", "https://rooms.test:8080"),
        (&public, "wss://rooms.example/signal", "https://rooms.example"),
    ] {
        let token = front.token(&keys.secret, "a", "Ann").await.is(201);
        assert_eq!(token.at("wsUrl"), ws);
        let room = token.at("roomId");
        assert_eq!(token.at("locateUrl"), format!("{base}/v1/rooms/{room}/locate"));
        assert_eq!(front.get(&format!("/v1/rooms/{room}/locate")).send().await.is(200).at("wsUrl"), ws);
    }
}

#[tokio::test]
async fn pages_of_other_origins_may_call_the_api() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let preflight = front
        .ask("OPTIONS", "/v1/rooms/name:a/tokens")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .send()
        .await
        .is(204);
    assert_eq!(preflight.headers["access-control-allow-origin"], "*");
    assert!(preflight.headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    let refused = front.get("/v1/rooms").header("origin", "https://app.example").send().await.is(401);
    assert_eq!(refused.headers["access-control-allow-origin"], "*", "a refusal must be readable too");
    assert!(!refused.headers.contains_key("access-control-allow-credentials"));
}

#[tokio::test]
async fn the_page_is_served_with_its_rules_or_says_how_to_build_it() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let page = front.get("/").send().await.is(200);
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    let rules = page.headers["content-security-policy"].to_str().unwrap();
    assert!(rules.contains("script-src 'self';") && rules.contains("wss:"));
    assert!(page.headers["permissions-policy"].to_str().unwrap().contains("camera=(self)"));
    if let Some(etag) = page.headers.get("etag") {
        let etag = etag.to_str().unwrap();
        let again = front.get("/").header("if-none-match", etag).send().await.is(304);
        assert!(again.text.is_empty());
    } else {
        assert!(page.text.contains("./deploy/up"), "{}", page.text);
    }
    front.get("/nothing.js").send().await.is(404).problem("no-such-route");
    front.get("/../Cargo.toml").send().await.is(404);
    front.get("/docs").send().await.is(200);
    assert!(front.get("/docs.js").send().await.is(200).text.contains("/openapi.json"));
}

#[tokio::test]
async fn every_route_is_described_and_counted() {
    let cell = Cell::new();
    let front = cell.nuve(Cell::settings("n1")).await;
    let api = front.get("/openapi.json").send().await.is(200).json();
    let paths = api["paths"].as_object().unwrap();
    for (path, methods) in [
        ("/v1/services", &["get", "post"][..]),
        ("/v1/services/{service}", &["get", "delete"]),
        ("/v1/rooms", &["get", "post"]),
        ("/v1/rooms/{room}", &["get", "delete"]),
        ("/v1/rooms/{room}/tokens", &["post"]),
        ("/v1/rooms/{room}/locate", &["get"]),
        ("/v1/rooms/{room}/users", &["get"]),
        ("/v1/rooms/{room}/users/{user}", &["get", "delete"]),
        ("/v1/rooms/{room}/history", &["get"]),
        ("/v1/events", &["get"]),
        ("/v1/nodes", &["get"]),
        ("/v1/demo", &["get"]),
        ("/metrics", &["get"]),
        ("/healthz", &["get"]),
        ("/readyz", &["get"]),
    ] {
        for method in methods {
            assert!(paths[path].get(method).is_some(), "{method} {path}");
        }
    }
    let mut names: Vec<_> = paths
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a link, or a client made from this, would take one for the other");
    let refused = &paths["/v1/rooms"]["post"]["responses"];
    for status in ["400", "401", "403", "409", "413", "415", "422", "429", "503", "504"] {
        let document = &refused[status]["content"]["application/problem+json"]["schema"]["$ref"];
        assert_eq!(*document, "#/components/schemas/ProblemDocument", "{status}: {refused}");
    }
    let token = &api["components"]["schemas"]["TokenAnswer"]["properties"];
    for field in ["token", "roomId", "clientId", "wsUrl", "expiresAt", "locateUrl"] {
        assert!(token.get(field).is_some(), "{field} in {token}");
    }
    front.get("/v1/rooms/abc").send().await.is(401);
    let metrics = front.get("/metrics").send().await.is(200);
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let line = r#"roomlog_nuve_request_seconds_count{method="GET",route="/v1/rooms/{room}",status="401"} 1"#;
    assert!(metrics.text.lines().any(|l| l == line), "{}", metrics.text);
}
