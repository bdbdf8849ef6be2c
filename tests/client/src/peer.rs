//! A signalling client as mediasoup's are, without the media: what it says is real, the packets are not sent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest, protocol::CloseFrame};

/// Ours are answered within this, as the design promises.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

type Waiting = Arc<Mutex<BTreeMap<u64, oneshot::Sender<Result<Value, (u64, String)>>>>>;

enum Out {
    Text(String),
    Binary(Vec<u8>),
    Close(u16),
    /// Drop the connection without a close frame.
    Break,
}

/// A TCP connection to the host and port of a `ws://` or `wss://` URL.
pub async fn connect(url: &str) -> anyhow::Result<TcpStream> {
    let address = url.into_client_request()?;
    let address = address.uri();
    let host = address.host().with_context(|| format!("{url} names no host"))?;
    let port = address.port_u16().unwrap_or(if address.scheme_str() == Some("wss") { 443 } else { 80 });
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
        .await
        .with_context(|| format!("cannot reach {url}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A client on one socket.
pub struct Peer {
    out: mpsc::UnboundedSender<Out>,
    waiting: Waiting,
    next: u64,
    /// Notifications, and server requests by method `newConsumer`, in the order they came.
    pub heard: Arc<Mutex<Vec<(String, Value)>>>,
    /// With [`Policy::HandOver`]: all that the server says of itself, whole messages; ends with the socket.
    pub incoming: Option<mpsc::UnboundedReceiver<Value>>,
    /// Set once the socket is closed: code and reason; 1006 for a break.
    pub closed: Arc<Mutex<Option<(u16, String)>>>,
    task: JoinHandle<()>,
}

/// How server requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// `newConsumer` is accepted.
    Accept,
    /// `newConsumer` is refused with 403.
    Refuse,
    /// Nothing is answered.
    Silent,
    /// The holder of [`Peer::incoming`] reads, and answers with [`Peer::answer`]; nothing is noted in [`Peer::heard`].
    HandOver,
}

impl Peer {
    /// Opens a socket at a `ws://` URL; nothing is sent yet.
    pub async fn open(url: &str, policy: Policy) -> anyhow::Result<Self> {
        let stream = connect(url).await?;
        Self::over(stream, url, policy).await
    }

    /// Opens a socket on a stream that leads to where `url` says: one that counts, or speaks TLS.
    pub async fn over<S>(stream: S, url: &str, policy: Policy) -> anyhow::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut request = url.into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", "protoo".parse()?);
        let opening = tokio_tungstenite::client_async(request, stream);
        let (mut ws, _) = opening.await.with_context(|| format!("cannot open {url}"))?;
        let (out, mut queue) = mpsc::unbounded_channel();
        let waiting: Waiting = Arc::default();
        let heard: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let closed: Arc<Mutex<Option<(u16, String)>>> = Arc::default();
        let (w, h, c) = (waiting.clone(), heard.clone(), closed.clone());
        let (hand_over, incoming) = mpsc::unbounded_channel();
        let hand_over = (policy == Policy::HandOver).then_some(hand_over);
        let task = tokio::spawn(async move {
            let end = loop {
                tokio::select! {
                    received = ws.next() => match received {
                        Some(Ok(Message::Text(text))) => {
                            if let Some(answer) = hear(&text, policy, &w, &h, hand_over.as_ref()) {
                                let _ = ws.send(Message::Text(answer.into())).await;
                            }
                        }
                        Some(Ok(Message::Close(frame))) => break frame.map_or((1005, String::new()), |f| (f.code.into(), f.reason.to_string())),
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => break (1006, String::new()),
                    },
                    told = queue.recv() => match told {
                        Some(Out::Text(text)) => {
                            if ws.send(Message::Text(text.into())).await.is_err() {
                                break (1006, String::new());
                            }
                        }
                        Some(Out::Binary(bytes)) => {
                            if ws.send(Message::Binary(bytes.into())).await.is_err() {
                                break (1006, String::new());
                            }
                        }
                        Some(Out::Close(code)) => {
                            let _ = ws.close(Some(CloseFrame { code: code.into(), reason: "".into() })).await;
                            break (code, String::new());
                        }
                        Some(Out::Break) | None => break (1006, String::new()),
                    },
                }
            };
            *c.lock().expect("no panic inside") = Some(end);
            w.lock().expect("no panic inside").clear();
        });
        let incoming = (policy == Policy::HandOver).then_some(incoming);
        Ok(Self { out, waiting, next: 1, heard, incoming, closed, task })
    }

    /// Opens a socket and shows `token`.
    pub async fn enter(ws_url: &str, token: &str, policy: Policy) -> anyhow::Result<(Self, Value)> {
        let mut peer = Self::open(ws_url, policy).await?;
        let entered = peer.ask("token", json!({ "token": token })).await?;
        Ok((peer, entered))
    }

    /// Sends a request and waits for its good answer.
    pub async fn ask(&mut self, method: &str, data: Value) -> anyhow::Result<Value> {
        match self.try_ask(method, data).await? {
            Ok(data) => Ok(data),
            Err((code, reason)) => bail!("{method}: {code} {reason}"),
        }
    }

    /// Sends a request and waits for its answer, good or bad; an error when there is none.
    pub async fn try_ask(
        &mut self,
        method: &str,
        data: Value,
    ) -> anyhow::Result<Result<Value, (u64, String)>> {
        let id = self.next;
        self.next += 1;
        self.ask_with_id(id, method, data).await
    }

    /// As [`Self::try_ask`] with a request id of one's own choice.
    pub async fn ask_with_id(
        &self,
        id: u64,
        method: &str,
        data: Value,
    ) -> anyhow::Result<Result<Value, (u64, String)>> {
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().expect("no panic inside").insert(id, sender);
        self.say(&json!({ "request": true, "id": id, "method": method, "data": data }));
        let answered = tokio::time::timeout(ANSWER_WITHIN, answer)
            .await
            .with_context(|| format!("{method}: no answer in time"))?;
        answered.with_context(|| {
            format!("{method}: the socket closed: {:?}", self.closed.lock().expect("no panic inside"))
        })
    }

    /// Answers the server's request `id`: accepts it, or refuses it with 403 and this reason.
    pub fn answer(&self, id: u64, refused: Option<&str>) {
        self.say(&match refused {
            None => json!({ "response": true, "id": id, "ok": true, "data": {} }),
            Some(reason) => {
                json!({ "response": true, "id": id, "ok": false, "errorCode": 403, "errorReason": reason })
            }
        });
    }

    /// Sends raw JSON.
    pub fn say(&self, message: &Value) {
        let _ = self.out.send(Out::Text(message.to_string()));
    }

    /// Sends raw text.
    pub fn say_text(&self, text: &str) {
        let _ = self.out.send(Out::Text(text.to_owned()));
    }

    /// Sends a binary frame, which protoo has none of.
    pub fn say_bytes(&self, bytes: &[u8]) {
        let _ = self.out.send(Out::Binary(bytes.to_vec()));
    }

    /// Waits until the other side has closed the socket; gives code and reason, 1006 for a break.
    pub async fn closed_within(&self, within: Duration) -> anyhow::Result<(u16, String)> {
        crate::eventually("the socket is closed", within, || async {
            self.closed.lock().expect("no panic inside").clone()
        })
        .await
    }

    /// Closes as a client that leaves.
    pub async fn leave(mut self) {
        let _ = self.out.send(Out::Close(1000));
        let _ = (&mut self.task).await;
    }

    /// Breaks the connection as a lost network does, and does not wait for it.
    pub fn break_now(&self) {
        let _ = self.out.send(Out::Break);
    }

    /// Breaks the connection as a lost network does.
    pub async fn break_off(mut self) {
        let _ = self.out.send(Out::Break);
        let _ = (&mut self.task).await;
    }

    /// The notifications of `method` heard so far.
    pub fn heard_of(&self, method: &str) -> Vec<Value> {
        let heard = self.heard.lock().expect("no panic inside");
        heard.iter().filter(|(m, _)| m == method).map(|(_, data)| data.clone()).collect()
    }

    /// Capabilities, two transports, `join`: a whole mediasoup client without its media. Gives the ids of the two transports.
    pub async fn join(&mut self, name: &str) -> anyhow::Result<(String, String)> {
        let capabilities = self.ask("getRouterRtpCapabilities", json!({})).await?;
        let mut ids = Vec::new();
        for producing in [true, false] {
            let transport = self
                .ask(
                    "createWebRtcTransport",
                    json!({ "forceTcp": false, "producing": producing, "consuming": !producing }),
                )
                .await?;
            ids.push(transport["id"].as_str().context("a transport without id")?.to_owned());
        }
        self.ask(
            "join",
            json!({ "displayName": name, "device": { "name": "test" }, "rtpCapabilities": capabilities }),
        )
        .await?;
        Ok((ids.remove(0), ids.remove(0)))
    }

    /// Produces VP8 video with these SSRCs; gives the producer's id.
    pub async fn produce_video(&mut self, transport: &str, ssrc: u32) -> anyhow::Result<String> {
        let made = self.ask("produce", json!({ "transportId": transport, "kind": "video", "rtpParameters": vp8(ssrc), "appData": {} })).await?;
        Ok(made["id"].as_str().context("a producer without id")?.to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// RTP parameters of a browser's camera.
pub fn vp8(ssrc: u32) -> Value {
    json!({
        "mid": "0",
        "codecs": [
            { "mimeType": "video/VP8", "payloadType": 96, "clockRate": 90000, "parameters": {},
              "rtcpFeedback": [{ "type": "nack" }, { "type": "nack", "parameter": "pli" }, { "type": "transport-cc" }] },
            { "mimeType": "video/rtx", "payloadType": 97, "clockRate": 90000, "parameters": { "apt": 96 }, "rtcpFeedback": [] },
        ],
        "headerExtensions": [
            { "uri": "urn:ietf:params:rtp-hdrext:sdes:mid", "id": 4 },
            { "uri": "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01", "id": 3 },
        ],
        "encodings": [{ "ssrc": ssrc, "rtx": { "ssrc": ssrc + 1 } }],
        "rtcp": { "cname": "test", "reducedSize": true },
    })
}

/// Takes in one frame; gives the answer that it wants.
fn hear(
    text: &str,
    policy: Policy,
    waiting: &Waiting,
    heard: &Mutex<Vec<(String, Value)>>,
    hand_over: Option<&mpsc::UnboundedSender<Value>>,
) -> Option<String> {
    let message: Value = serde_json::from_str(text).ok()?;
    let id = message["id"].as_u64();
    let method = || message["method"].as_str().unwrap_or_default().to_owned();
    if message["response"] == true {
        let sender = waiting.lock().expect("no panic inside").remove(&id?)?;
        let result = if message["ok"] == true {
            Ok(message["data"].clone())
        } else {
            Err((
                message["errorCode"].as_u64().unwrap_or(0),
                message["errorReason"].as_str().unwrap_or_default().to_owned(),
            ))
        };
        let _ = sender.send(result);
        return None;
    }
    if let Some(hand_over) = hand_over {
        let _ = hand_over.send(message);
        return None;
    }
    heard.lock().expect("no panic inside").push((method(), message["data"].clone()));
    if message["request"] != true {
        return None;
    }
    match policy {
        Policy::Accept => Some(json!({ "response": true, "id": id, "ok": true, "data": {} }).to_string()),
        Policy::Refuse => Some(
            json!({ "response": true, "id": id, "ok": false, "errorCode": 403, "errorReason": "no" })
                .to_string(),
        ),
        Policy::Silent | Policy::HandOver => None,
    }
}
