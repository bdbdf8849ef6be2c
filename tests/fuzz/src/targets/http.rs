//! HTTP requests to a NUVE node with an EC behind it: whatever is sent, the answer is one of those that the API has.

use axum::{body::Body, extract::ConnectInfo, http::Request};
use tower::ServiceExt as _;

use super::nuve_support::{ADMIN, Cell, FakeEc, Front, Keys};

/// Requests of one input.
const MAX_REQUESTS: usize = 8;
/// The longest answer, in bytes: the API's description of itself and the pages' scripts are below a megabyte.
const MAX_ANSWER: usize = 2_000_000;

/// Requests separated by a line of `----`: `METHOD path`, header lines, an empty line, the body. `$SK`, `$PK`, `$AK` stand for keys,
/// `$ROOM` for a room that is there.
pub fn run(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without IO");
    runtime.block_on(async {
        let cell = Cell::new();
        let front = cell.nuve(Cell::settings("n1")).await;
        let _ec = FakeEc::start(&cell, "e1").await;
        let keys = front.service().await;
        let room = front.token(&keys.secret, "there", "Ann").await.is(201).at("roomId");
        for request in requests(data).take(MAX_REQUESTS) {
            one(&front, &keys, &room, request).await;
        }
    });
}

fn requests(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let now = rest?;
        match now.windows(6).position(|w| w == b"\n----\n") {
            Some(at) => {
                rest = Some(&now[at + 6..]);
                Some(&now[..at])
            }
            None => rest.take(),
        }
    })
}

async fn one(front: &Front, keys: &Keys, room: &str, request: &[u8]) {
    let at = request.windows(2).position(|w| w == b"\n\n").unwrap_or(request.len());
    let (head, body) = (&request[..at], request.get(at + 2..).unwrap_or_default());
    let head = String::from_utf8_lossy(head)
        .replace("$SK", &keys.secret)
        .replace("$PK", &keys.publishable)
        .replace("$AK", ADMIN)
        .replace("$ROOM", room)
        .replace("$ID", &keys.id);
    // Who writes a secret where everybody may read it, such as the path, may read it there again.
    let told = head
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("authorization:"))
        .any(|line| line.contains(&keys.secret));
    let mut lines = head.lines();
    let Some((method, path)) = lines.next().and_then(|line| line.split_once(' ')) else { return };
    let mut builder = Request::builder().method(method).uri(path);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        builder = builder.header(name, value);
    }
    // What is no HTTP does not come through the HTTP library.
    let Ok(mut request) = builder.body(Body::from(body.to_vec())) else { return };
    let peer: std::net::SocketAddr = "192.0.2.1:4000".parse().expect("an address");
    request.extensions_mut().insert(ConnectInfo(peer));
    let response = front.router.clone().oneshot(request).await.expect("a router does not fail");
    let (parts, body) = response.into_parts();
    let kind = parts.headers.get("content-type").map(|v| v.to_str().expect("it is ours").to_owned());
    if kind.as_deref() == Some("text/event-stream") {
        return; // it does not end
    }
    let bytes = axum::body::to_bytes(body, MAX_ANSWER).await.expect("a bounded answer");
    let text = String::from_utf8_lossy(&bytes);
    assert_ne!(parts.status.as_u16(), 500, "{text}");
    if parts.status.is_client_error() || parts.status.is_server_error() {
        if method != "HEAD" {
            assert_eq!(kind.as_deref(), Some("application/problem+json"), "{} {text}", parts.status);
            let problem: serde_json::Value = serde_json::from_slice(&bytes).expect("a problem is JSON");
            assert_eq!(problem["status"], parts.status.as_u16());
        }
        assert!(told || !text.contains(&keys.secret), "a refusal with the secret key in it");
    }
}
