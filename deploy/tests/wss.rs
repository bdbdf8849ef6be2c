//! HTTPS and WSS with given certificates, at a running `roomlog up`: a client trusts only what was given, and new files serve new connections
//! while a call under way stays.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

/// What a slow machine may take. The files are looked at every few seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// Writes a certificate for `localhost` with its key, and gives what a client has to trust.
fn give(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

async fn connect(port: u16, root: &CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
}

/// Asks over HTTPS: the body of the answer.
async fn ask(port: u16, root: &CertificateDer<'static>, head: &str, body: &str) -> Value {
    let mut stream = connect(port, root).await.unwrap();
    let request = format!(
        "{head}Host: localhost:{port}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Some end the connection without saying so first.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with("HTTP/1.1 2"), "{answer}");
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
}

struct Socket(WebSocketStream<TlsStream<TcpStream>>);

impl Socket {
    async fn open(port: u16, root: &CertificateDer<'static>, url: &str) -> Self {
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "protoo".parse().unwrap());
        Self(client_async(request, connect(port, root).await.unwrap()).await.unwrap().0)
    }

    async fn ask(&mut self, id: u64, method: &str, data: Value) {
        let ask = json!({ "request": true, "id": id, "method": method, "data": data });
        self.0.send(Message::Text(ask.to_string().into())).await.unwrap();
        loop {
            let message = self.0.next().await.expect("the socket stays").unwrap();
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["response"] == true && message["id"] == id {
                assert_eq!(message["ok"], true, "{message}");
                return;
            }
        }
    }
}

/// Starts it, and gives its port once it serves.
async fn up(data: &Path) -> (Child, u16) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_roomlog"))
        .args([
            "up",
            "--listen",
            "127.0.0.1:0",
            "--workers",
            "1",
            "--log",
            "warn",
            "--adopt-ms",
            "0",
            "--data",
        ])
        .arg(data.join("data"))
        .arg("--tls-cert")
        .arg(data.join("tls.crt"))
        .arg("--tls-key")
        .arg(data.join("tls.key"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let opened = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it ended before it served");
            if let Some(url) = line.strip_prefix("Open ") {
                return url.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
            }
        }
    };
    let port = tokio::time::timeout(PATIENCE, opened).await.expect("it serves in time");
    (child, port)
}

#[tokio::test]
async fn calls_over_wss_outlive_their_certificate_and_new_ones_get_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let first = give(folder.path());
    let (mut child, port) = up(folder.path()).await;
    let demo = ask(port, &first, "GET /v1/demo HTTP/1.1\r\n", "").await;
    let head = format!(
        "POST /v1/rooms/name:call/tokens HTTP/1.1\r\nAuthorization: Bearer {}\r\n",
        demo["publishableKey"].as_str().unwrap()
    );
    let token = async |root: &CertificateDer<'static>, user: &str| {
        ask(port, root, &head, &json!({ "user": user, "create": true }).to_string()).await
    };
    let ann = token(&first, "Ann").await;
    let url = ann["wsUrl"].as_str().unwrap().to_owned();
    assert!(url.starts_with("wss://"), "{url}");
    let mut socket = Socket::open(port, &first, &url).await;
    socket.ask(1, "token", json!({ "token": ann["token"] })).await;

    let second = give(folder.path());
    let since = Instant::now();
    while connect(port, &second).await.is_err() {
        assert!(since.elapsed() < PATIENCE, "the new certificate is not served");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    connect(port, &first).await.unwrap_err();
    socket.ask(2, "getRouterRtpCapabilities", json!({})).await;
    let bob = token(&second, "Bob").await;
    let mut other = Socket::open(port, &second, bob["wsUrl"].as_str().unwrap()).await;
    other.ask(1, "token", json!({ "token": bob["token"] })).await;
    child.kill().await.unwrap();
}
