//! A small HTTP/1.1 caller for tests: one connection per call, JSON in and out. Enough for our own server, and nothing else.

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines, as sent.
    pub head: String,
    /// The body as JSON; null when it is none.
    pub body: Value,
}

/// Calls `method path` at `origin` (`http://host:port`).
pub async fn call(
    origin: &str,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    let stream = connect(origin).await?;
    call_over(stream, origin, method, path, key, body).await
}

/// A TCP connection to `origin` (`http://host:port`).
pub async fn connect(origin: &str) -> anyhow::Result<TcpStream> {
    let host = host_of(origin)?;
    TcpStream::connect(host).await.with_context(|| format!("cannot reach {host}"))
}

fn host_of(origin: &str) -> anyhow::Result<&str> {
    let (_, host) = origin.split_once("://").with_context(|| format!("{origin} is no origin"))?;
    Ok(host.trim_end_matches('/'))
}

/// Like [`call`], on a stream that leads to `origin`: one that counts, or speaks TLS.
pub async fn call_over<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    origin: &str,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    let host = host_of(origin)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let auth = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{auth}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("{method} {path}: no HTTP answer: {text:?}")
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .with_context(|| format!("{method} {path}: {head:?}"))?;
    Ok(Answer { status, head: head.to_owned(), body: serde_json::from_str(body).unwrap_or(Value::Null) })
}

/// Like [`call`], and fails unless the status is 2xx.
pub async fn call_ok(
    origin: &str,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let answer = call(origin, method, path, key, body).await?;
    if answer.status / 100 != 2 {
        bail!("{method} {path}: {} {}", answer.status, answer.body);
    }
    Ok(answer.body)
}

/// The body of `GET path` as text.
pub async fn call_text(origin: &str, path: &str) -> anyhow::Result<String> {
    let (host, mut stream) = (host_of(origin)?, connect(origin).await?);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("GET {path}: {head}");
    }
    Ok(body.to_owned())
}
