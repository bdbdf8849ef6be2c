//! Connections that never finish asking for something are closed at a named limit (`deploy/src/http.rs`, `HEAD_WITHIN`), at NUVE's paths
//! and at the EC's; those that finish are not, however long they then live.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use roomlog_tests::{
    http,
    peer::{Peer, Policy},
    process::Up,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// The limits of a head and of a whole request (`NuveSettings::request_timeout_ms`), and what a loaded machine may take beyond them.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const REQUEST_WITHIN: Duration = Duration::from_secs(15);
const LATE: Duration = Duration::from_secs(5);
/// Between two bytes of somebody slow.
const BYTE_EVERY: Duration = Duration::from_millis(400);

/// How one connection behaves: what it sends at once, what over and over then, and when it is to be closed.
const SLOW: [(&str, &[u8], &[u8], Duration); 8] = [
    ("says nothing", b"", b"", HEAD_WITHIN),
    ("stops in the first word", b"GE", b"", HEAD_WITHIN),
    ("asks NUVE, byte by byte", b"GET /v1/demo HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"y", HEAD_WITHIN),
    ("asks the EC, byte by byte", b"GET /signal HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nX-Slow: ", b"y", HEAD_WITHIN),
    ("asks the EC, header by header", b"GET /signal HTTP/1.1\r\nHost: x\r\n", b"X-Slow: y\r\n", HEAD_WITHIN),
    ("stops in the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM", b"", HEAD_WITHIN),
    ("says the preface of HTTP/2 and no more", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", b"", HEAD_WITHIN),
    (
        "says its body byte by byte",
        b"POST /v1/rooms/name:x/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\nAuthorization: Bearer KEY\r\n\r\n{",
        b" ", REQUEST_WITHIN),
];

/// Sends so until the other side has closed; after how long, and what it said.
async fn slow(host: &str, first: &[u8], then: &[u8], limit: Duration) -> anyhow::Result<(Duration, String)> {
    let stream = TcpStream::connect(host).await?;
    let began = Instant::now();
    let (mut read, mut write) = stream.into_split();
    write.write_all(first).await?;
    let (mut said, mut part) = (Vec::new(), [0; 4_096]);
    loop {
        ensure!(began.elapsed() < limit + LATE, "still open after {:?}: {said:?}", began.elapsed());
        match timeout(BYTE_EVERY, read.read(&mut part)).await {
            Ok(Ok(0) | Err(_)) => return Ok((began.elapsed(), String::from_utf8_lossy(&said).into_owned())),
            Ok(Ok(count)) => said.extend_from_slice(&part[..count]),
            // Closed meanwhile: the next read says so.
            Err(_) => drop(write.write_all(then).await),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_finishes_asking_is_closed_at_the_limit_and_nobody_else_is() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let up = Up::start(data.path(), &["--workers", "1", "--ip-per-s", "1000000", "--log", "warn"]).await?;
    let host = up.origin.trim_start_matches("http://").to_owned();
    let before = up.held().await?;
    // A WebSocket lives on after its request, as long as it likes.
    let token = up.token("call", "Ann").await?;
    let (url, text) =
        (token["wsUrl"].as_str().context("no wsUrl")?, token["token"].as_str().context("no token")?);
    let (mut ann, _) = Peer::enter(url, text, Policy::Accept).await?;
    // So does a stream of events, which is one request without an end.
    let mut events = TcpStream::connect(&host).await?;
    let ask = format!(
        "GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
        secret(data.path())?
    );
    events.write_all(ask.as_bytes()).await?;
    // Half the limit for one head is slow, and no fault.
    let patient = {
        let (host, key) = (host.clone(), up.key.clone());
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(&host).await?;
            for part in [
                "POST /v1/rooms/name:x/tokens HTTP/1.1\r\nHost: x\r\nConnection: close\r\n",
                "Content-Type: application/json\r\nContent-Length: 26\r\n",
            ] {
                stream.write_all(part.as_bytes()).await?;
                tokio::time::sleep(HEAD_WITHIN / 4).await;
            }
            let rest = format!("Authorization: Bearer {key}\r\n\r\n{{\"user\":\"a\",\"create\":true}}");
            stream.write_all(rest.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        })
    };

    let mut all = Vec::new();
    for round in 0..20 {
        for (what, first, then, limit) in SLOW {
            let (host, first) = (host.clone(), String::from_utf8_lossy(first).replace("KEY", &up.key));
            let slow = tokio::spawn(async move { slow(&host, first.as_bytes(), then, limit).await });
            all.push((what, limit, slow));
        }
        // They are there at the same time, and others are served.
        if round == 10 {
            http::call_ok(&up.origin, "GET", "/v1/demo", None, None).await?;
        }
    }
    for (what, limit, slow) in all {
        let (after, said) = slow.await?.context(what)?;
        ensure!(
            after + Duration::from_millis(50) >= limit,
            "who {what} is closed after {after:?}, too early"
        );
        ensure!(
            !said.starts_with("HTTP/1.1 2") && !said.starts_with("HTTP/1.1 101"),
            "who {what} is answered {said:?}"
        );
    }
    let answer = patient.await??;
    ensure!(answer.starts_with("HTTP/1.1 201"), "who was slow within the limit: {answer:?}");
    ann.ask("getRouterRtpCapabilities", json!({})).await.context("a socket opened before")?;
    ann.leave().await;
    let mut begun = [0; 4_096];
    let count = timeout(Duration::from_secs(1), events.read(&mut begun)).await.context("no events")??;
    ensure!(begun[..count].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&begun[..count]));
    events.write_all(b"\r\n").await.context("the stream of events is open")?;
    drop(events);
    // What they held is given back.
    let end = Instant::now() + LATE;
    loop {
        let held = up.held().await?;
        if held.files <= before.files + 4 && held.tasks <= before.tasks + 8 {
            break;
        }
        ensure!(Instant::now() < end, "before {before:?}, now {held:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    up.stop().await
}

/// The demo service's secret key, which is for the machine's owner.
fn secret(data: &std::path::Path) -> anyhow::Result<String> {
    let keys: Value = serde_json::from_slice(&std::fs::read(data.join("demo-service.json"))?)?;
    Ok(keys["secretKey"].as_str().context("no secretKey")?.to_owned())
}
