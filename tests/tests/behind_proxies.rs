//! Whose request it is behind proxies, at a running `roomlog up`: what a stranger writes into `X-Forwarded-For` changes nothing, what a
//! trusted proxy writes there counts from the right, for limits over HTTP and for the address that the log keeps of a client.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Context, ensure};
use futures::{SinkExt, StreamExt};
use roomlog_tests::process::{Up, replay};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// Requests in a row.
const MANY: u8 = 20;
/// Requests a second for one address, and what it may have at once.
const PER_S: u32 = 1;
const BURST: u32 = 2 * PER_S;

async fn connect(up: &Up, from: Ipv4Addr) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    Ok(socket.connect(up.origin.trim_start_matches("http://").parse()?).await?)
}

/// Asks for a token from `from`, with this `X-Forwarded-For`: the status, and the answer.
async fn ask(up: &Up, from: Ipv4Addr, forwarded: &str) -> anyhow::Result<(u16, Value)> {
    let body = json!({ "user": "Ann", "create": true }).to_string();
    let request = format!(
        "POST /v1/rooms/name:call/tokens HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nAuthorization: Bearer {}\r\nX-Forwarded-For: {forwarded}\r\n\r\n{body}",
        up.origin.trim_start_matches("http://"),
        body.len(),
        up.key,
    );
    let mut stream = connect(up, from).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}

/// How many of many requests in a row are served, and how many one address may have at most in the time they took.
async fn served(up: &Up, from: Ipv4Addr, forwarded: impl Fn(u8) -> String) -> anyhow::Result<(u32, u32)> {
    let (began, mut served) = (Instant::now(), 0);
    for i in 0..MANY {
        match ask(up, from, &forwarded(i)).await? {
            (201, _) => served += 1,
            (429, _) => {}
            other => anyhow::bail!("answered {other:?}"),
        }
    }
    Ok((served, BURST + PER_S * (began.elapsed().as_secs() as u32 + 1)))
}

/// Enters over a WebSocket from `from`, with this `X-Forwarded-For`.
async fn enter(up: &Up, from: Ipv4Addr, forwarded: &str, token: &Value) -> anyhow::Result<()> {
    let mut request = token["wsUrl"].as_str().context("no wsUrl")?.into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", "protoo".parse()?);
    request.headers_mut().insert("X-Forwarded-For", forwarded.parse()?);
    let (mut socket, _) = client_async(request, connect(up, from).await?).await?;
    let ask = json!({ "request": true, "id": 1, "method": "token", "data": { "token": token["token"] } });
    socket.send(Message::Text(ask.to_string().into())).await?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let message: Value = serde_json::from_str(&text)?;
        if message["id"] == 1 {
            ensure!(message["ok"] == true, "{message}");
            return Ok(());
        }
    }
    anyhow::bail!("the socket was closed")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_write_changes_nothing_and_what_trusted_proxies_write_counts() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let (per_s, proxy) = (PER_S.to_string(), PROXY.to_string());
    let flags = ["--workers", "1", "--ip-per-s", &per_s, "--trusted-proxies", &proxy, "--log", "warn"];
    let up = Up::start(data.path(), &flags).await?;

    // A stranger is one address, whoever it says it is.
    let (got, most) = served(&up, STRANGER, |i| format!("203.0.113.{i}")).await?;
    ensure!(got <= most, "a stranger with {MANY} names got {got}, one address may have {most}");
    // Clients of the proxy are as many as it says, and the stranger's requests are nobody's but its own.
    let (got, _) = served(&up, PROXY, |i| format!("203.0.113.{i}")).await?;
    ensure!(got == u32::from(MANY), "of {MANY} clients of the proxy {got} were served");
    // What a client writes itself stands to the left of what the proxy adds.
    let (got, most) = served(&up, PROXY, |i| format!("198.51.100.{i}, 192.0.2.77")).await?;
    ensure!(got <= most, "a client of the proxy with {MANY} names got {got}, one address may have {most}");

    // The same at the EC: the log has each client's own address.
    for (from, forwarded, server) in
        [(STRANGER, "192.0.2.1", "192.0.2.100"), (PROXY, "198.51.100.9, 192.0.2.2", "192.0.2.101")]
    {
        let (status, token) = ask(&up, PROXY, server).await?;
        ensure!(status == 201, "{status}: {token}");
        enter(&up, from, forwarded, &token).await?;
    }
    let shown = replay(data.path(), &["show", "name:call"])?;
    let events = shown["events"].as_array().context("no events")?;
    let addresses: Vec<&str> = events
        .iter()
        .filter(|event| event["type"] == "ClientAdmitted")
        .filter_map(|event| event["data"]["addr"].as_str())
        .collect();
    ensure!(addresses == ["127.0.0.3", "192.0.2.2"], "{addresses:?}");
    up.stop().await
}
