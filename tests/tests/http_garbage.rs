//! HTTP that makes no sense: each request gets its documented status, is counted, and a call next door does not notice.

use std::time::Duration;

use roomlog_tests::{
    cell::{Cell, Shape},
    http,
    peer::{Peer, Policy},
    process::Up,
    witness::{Bystander, counted, journal_is_clean},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const SOON: Duration = Duration::from_secs(5);
/// An answer has come to its end when no more of it comes for so long.
const QUIET: Duration = Duration::from_millis(500);

/// Sends bytes and reads what comes back, until the end or until nothing more comes: status, head and body. Status 0 when the connection was just closed.
async fn raw(origin: &str, bytes: &[u8]) -> anyhow::Result<(u16, String, String)> {
    let host = origin.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).await?;
    // The other side may answer, and close, before it has read all.
    let _ = stream.write_all(bytes).await;
    if bytes.is_empty() {
        stream.shutdown().await?;
    }
    let (mut answer, mut part) = (Vec::new(), vec![0; 65_536]);
    loop {
        let patience = if answer.is_empty() { SOON } else { QUIET };
        match timeout(patience, stream.read(&mut part)).await {
            Ok(Ok(1..)) if answer.len() > 1_000_000 => anyhow::bail!("an answer without an end"),
            Ok(Ok(read @ 1..)) => answer.extend_from_slice(&part[..read]),
            Err(_) if answer.is_empty() => anyhow::bail!("neither answered nor closed"),
            Ok(Ok(0) | Err(_)) | Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok((status, head.to_ascii_lowercase(), body.to_owned()))
}

fn post(cell: &Cell, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let key = &cell.key;
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_make_no_sense_get_a_problem_document() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let bystander = Bystander::start(&cell).await?;
    let json_type = "Content-Type: application/json\r\n";
    let path = "/v1/rooms/name:x/tokens";
    let large = format!(r#"{{"user":"{}"}}"#, "y".repeat(70_000));
    let nested = format!(r#"{{"user":{}1{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let long_name = json!({ "user": "n".repeat(129), "create": true }).to_string();
    let cases: Vec<(&str, &str, &str, u16, &str)> = vec![
        (path, json_type, "", 400, "bad-request"),
        (path, json_type, "{", 400, "bad-request"),
        (path, json_type, "\u{0}", 400, "bad-request"),
        (path, json_type, &nested, 422, "invalid-field"),
        (path, json_type, "[]", 422, "invalid-field"),
        (path, json_type, r#"{"user":7}"#, 422, "invalid-field"),
        (path, json_type, r#"{"user":"a","role":"king"}"#, 422, "invalid-field"),
        (path, json_type, r#"{"user":"a","peerId":"../.."}"#, 422, "invalid-field"),
        (path, json_type, r#"{"user":""}"#, 422, "invalid-field"),
        (path, json_type, &long_name, 422, "invalid-field"),
        (path, "", r#"{"user":"a"}"#, 415, "unsupported-media-type"),
        (path, "Content-Type: text/html\r\n", r#"{"user":"a"}"#, 415, "unsupported-media-type"),
        (path, json_type, &large, 413, "too-large"),
        ("/v1/rooms/name:x/nothing", json_type, "{}", 404, "no-such-route"),
        ("/v1/rooms/nobody/tokens", json_type, r#"{"user":"a"}"#, 404, "no-such-room"),
        ("/v1/demo", json_type, "{}", 405, "no-such-method"),
        // The publishable key opens tokens and nothing else.
        ("/v1/rooms", json_type, "{}", 403, "wrong-key"),
    ];
    let before = requests_counted(&cell).await?;
    for (path, headers, body, status, slug) in &cases {
        let (got, head, answer) = raw(&cell.origin, &post(&cell, path, headers, body)).await?;
        let shown = format!("POST {path} {body:.60}: {got} {answer:.300}");
        assert_eq!(got, *status, "{shown}");
        assert!(head.contains("content-type: application/problem+json"), "{shown} {head}");
        let document: Value = serde_json::from_str(&answer).map_err(|e| anyhow::anyhow!("{e}: {shown}"))?;
        assert_eq!(document["type"], format!("/problems/{slug}"), "{shown}");
        assert_eq!(document["status"], *status, "{shown}");
        assert!(document["detail"].as_str().is_some_and(|d| !d.is_empty()), "{shown}");
    }
    for key in ["", "Bearer", "Bearer sk_x", "Basic abc", "Bearer pk_nobody_nothing", "Bearer \u{7f}"] {
        let header = if key.is_empty() { String::new() } else { format!("Authorization: {key}\r\n") };
        let request = format!("GET /v1/rooms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
        let (got, _, answer) = raw(&cell.origin, request.as_bytes()).await?;
        // A control character is no header value at all (RFC 9110 §5.5), and refused before anybody looks at it.
        assert_eq!(got, if key.contains('\u{7f}') { 400 } else { 401 }, "{key:?}: {answer}");
    }
    let after = requests_counted(&cell).await?;
    assert!(after >= before + cases.len() as u64 + 5, "{before} requests counted before, {after} after");
    let rooms = cell.directory.read().rooms.len();
    assert_eq!(rooms, 1, "nothing but the bystanders' room was made");
    bystander.finish().await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

/// Requests that NUVE has counted.
async fn requests_counted(cell: &Cell) -> anyhow::Result<u64> {
    let (_, _, text) = raw(&cell.origin, b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let counts =
        text.lines().filter_map(|l| l.strip_prefix("roomlog_nuve_request_seconds_count")?.rsplit(' ').next());
    Ok(counts.filter_map(|n| n.parse::<u64>().ok()).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_refused_or_cut_off() -> anyhow::Result<()> {
    // The real binary: what its HTTP server takes for HTTP is set there.
    let data = tempfile::tempdir()?;
    let up = Up::start(data.path(), &["--workers", "1", "--log", "warn"]).await?;
    let token = up.token("r", "Ann").await?;
    let (url, text) = (&token["wsUrl"], &token["token"]);
    let (mut bystander, _) =
        Peer::enter(url.as_str().unwrap_or_default(), text.as_str().unwrap_or_default(), Policy::Accept)
            .await?;
    let many = format!(
        "GET /v1/demo HTTP/1.1\r\nHost: x\r\n{}\r\n",
        (0..500).map(|i| format!("X-{i}: y\r\n")).collect::<String>()
    );
    let huge = format!("GET /v1/demo HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(2_000_000));
    let long_uri = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "u".repeat(100_000));
    let cases: Vec<(&str, &[u8], &[u16])> = vec![
        ("nothing", b"", &[0]),
        ("noise", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[0, 400]),
        ("no version", b"GET /\r\n\r\n", &[0, 400]),
        ("unknown version", b"GET / HTTP/9.9\r\n\r\n", &[0, 400]),
        ("a header without a colon", b"GET / HTTP/1.1\r\nHost x\r\n\r\n", &[400]),
        ("a header name with a space", b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", &[400]),
        ("a negative length", b"POST /v1/rooms HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", &[400]),
        (
            "two lengths",
            b"POST /v1/rooms HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            &[400],
        ),
        (
            "a length larger than any memory",
            b"POST /v1/rooms HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
            &[400],
        ),
        (
            "a chunk size that is none",
            b"POST /v1/rooms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            &[0, 400, 401],
        ),
        ("500 headers", many.as_bytes(), &[431]),
        ("2 MB of header", huge.as_bytes(), &[0, 431]),
        ("100 kB of URI", long_uri.as_bytes(), &[414]),
    ];
    for (what, bytes, statuses) in cases {
        let (status, head, _) = raw(&up.origin, bytes).await?;
        assert!(statuses.contains(&status), "{what}: {status} {head:.200}");
        bystander.ask("getRouterRtpCapabilities", json!({})).await?;
    }
    bystander.leave().await;
    up.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_the_gateway_for_no_socket_is_refused_and_counted() -> anyhow::Result<()> {
    let cell = Cell::start(Shape { ec: |settings| settings.connections_per_second = 20, ..Shape::default() })
        .await?;
    let bystander = Bystander::start(&cell).await?;
    let upgrade = |path: &str, version: &str, key: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: {version}\r\n{key}\r\n"
        )
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let cases = [
        ("GET /signal HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 400),
        (upgrade("/signal", "12", key), 400),
        (upgrade("/signal", "13", ""), 400),
        (upgrade("/signal?token=a&token=b", "13", key), 400),
    ];
    for (request, wanted) in &cases {
        let (status, head, _) = raw(&cell.origin, request.as_bytes()).await?;
        assert_eq!(status, *wanted, "{request}: {head}");
    }
    assert_eq!(counted(&cell, "roomlog_ec_turned_away{status=\"400\"}"), cases.len() as u64);
    let posted = http::call(&cell.origin, "POST", "/signal", None, None).await?;
    assert_eq!(posted.status, 405);

    // More connections in a second than this EC takes: later, and how much later.
    let mut limited = 0;
    for _ in 0..160 {
        let host = cell.origin.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).await?;
        stream.write_all(upgrade("/signal", "13", key).as_bytes()).await?;
        let mut head = vec![0; 4_096];
        let read = timeout(SOON, stream.read(&mut head)).await??;
        let head = String::from_utf8_lossy(&head[..read]).to_ascii_lowercase();
        if head.starts_with("http/1.1 429") {
            assert!(head.contains("retry-after: 1"), "{head}");
            limited += 1;
        } else {
            assert!(head.starts_with("http/1.1 101"), "{head}");
        }
    }
    assert!(limited > 0);
    assert_eq!(counted(&cell, "roomlog_ec_turned_away{status=\"429\"}"), limited);
    bystander.finish().await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_finish_their_request_disturb_nobody() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let bystander = Bystander::start(&cell).await?;
    let host = cell.origin.trim_start_matches("http://").to_owned();
    // With a good key, so that it is the body that is waited for.
    let key = &cell.key;
    let half = format!(
        "POST /v1/rooms/name:x/tokens HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    );
    let mut held = Vec::new();
    for i in 0..300 {
        let mut stream = TcpStream::connect(&host).await?;
        let begun: &[u8] = match i % 3 {
            0 => b"",
            1 => b"GET /v1/demo HTTP/1.1\r\nHost: x\r\nX-Slow: ",
            _ => half.as_bytes(),
        };
        stream.write_all(begun).await?;
        held.push(stream);
    }
    // A byte now and then, as a slow attacker sends.
    for _ in 0..5 {
        for stream in &mut held {
            let _ = stream.write_all(b"y").await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (_peer, _, _) = timeout(SOON, cell.enter("another", "Ann")).await??;
    for stream in &mut held {
        let answered = timeout(Duration::from_millis(1), stream.read(&mut [0])).await;
        assert!(answered.is_err(), "it has not finished asking, and is answered: {answered:?}");
    }
    bystander.finish().await?;
    drop(held);
    cell.stop().await;
    Ok(())
}
