//! A client with real media, built on the crate `webrtc`: an implementation of ICE, DTLS, SRTP and RTCP that shares no code with the
//! worker's own, on our signalling. It sends numbered frames and counts what comes whole. It comes back by itself: after a broken
//! socket (`resume`), and after its media moved (`mediaMoved`).

pub mod frames;
mod media;
mod sdp;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

pub use self::frames::{Kind, Received};
use self::media::Plane;
use crate::{
    http,
    peer::{Peer, Policy},
};

/// Between two tries to come back or to build the media anew.
const RETRY: Duration = Duration::from_millis(100);
/// How long it is tried; a client that has been away for 30 s is forgotten.
const TRIES_FOR: Duration = Duration::from_secs(30);

/// What a native peer sends.
#[derive(Debug, Clone, Copy)]
pub struct Publish {
    /// Opus-like voice, 50 packets a second.
    pub audio: bool,
    /// VP8-like video, 30 frames a second, 8 packets a key frame and 2 any other.
    pub video: bool,
    /// That many times as fast; 1 is real time. Faster shows shorter gaps.
    pub speed: u32,
}

impl Publish {
    /// Both, in real time.
    pub const BOTH: Self = Self { audio: true, video: true, speed: 1 };
    /// Listens only.
    pub const NOTHING: Self = Self { audio: false, video: false, speed: 1 };

    fn kinds(self, muted: &[Kind]) -> Vec<(Kind, bool)> {
        [(Kind::Audio, self.audio), (Kind::Video, self.video)]
            .into_iter()
            .filter(|(_, wanted)| *wanted)
            .map(|(kind, _)| (kind, muted.contains(&kind)))
            .collect()
    }
}

/// What comes of one consumer.
#[derive(Clone)]
pub struct Stream {
    /// Whose.
    pub peer: String,
    /// The producer.
    pub producer: String,
    /// When it was offered.
    pub since: Instant,
    received: Arc<Mutex<Received>>,
}

impl Stream {
    /// What has come so far.
    pub fn received(&self) -> Received {
        self.received.lock().expect("no panic inside").clone()
    }
}

/// What others may look at while the peer lives.
#[derive(Default)]
struct Shared {
    streams: Mutex<BTreeMap<String, Stream>>,
    producers: Mutex<BTreeMap<Kind, String>>,
    counts: Mutex<Counts>,
}

/// What has happened to a peer.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// The media epoch that its transports belong to.
    pub media_epoch: u64,
    /// Times its media was built anew.
    pub rebuilt: u64,
    /// Times it came back by `resume`.
    pub resumed: u64,
    /// Key frames that were asked of it.
    pub key_frame_requests: u64,
    /// Why it ended, if not by its own will.
    pub ended: Option<String>,
}

enum Told {
    Mute(Kind, bool, oneshot::Sender<anyhow::Result<()>>),
    Ask(String, Value, oneshot::Sender<anyhow::Result<Value>>),
    Break,
    Leave(bool),
}

/// A client with media.
pub struct NativePeer {
    /// Its client id.
    pub id: String,
    /// Its room's.
    pub room: String,
    shared: Arc<Shared>,
    told: mpsc::UnboundedSender<Told>,
    life: Option<JoinHandle<()>>,
}

impl NativePeer {
    /// Comes in at `origin` with `token` (the answer of the token route) and sends what it is to.
    pub async fn join(origin: &str, token: &Value, name: &str, publish: Publish) -> anyhow::Result<Self> {
        let url = token["wsUrl"].as_str().context("a token without wsUrl")?.to_owned();
        let text = token["token"].as_str().context("a token answer without token")?;
        let (mut peer, opened) = Peer::enter(&url, text, Policy::HandOver).await?;
        let capabilities = sdp::understood(&peer.ask("getRouterRtpCapabilities", json!({})).await?)?;
        let shared: Arc<Shared> = Arc::default();
        let mut life = Life {
            origin: origin.to_owned(),
            since: opened["v"].as_u64().unwrap_or(0),
            epoch: opened["media"]["mediaEpoch"].as_u64().unwrap_or(0),
            opened: opened.clone(),
            url,
            peer,
            capabilities: capabilities.clone(),
            publish,
            muted: Vec::new(),
            plane: None,
            shared: shared.clone(),
        };
        let plane = life.transports().await?;
        life.plane = Some(plane);
        life.peer
            .ask("join", json!({ "displayName": name, "device": { "name": "native" }, "rtpCapabilities": capabilities }))
            .await?;
        life.produce().await?;
        life.note();
        let (told, orders) = mpsc::unbounded_channel();
        let life = tokio::spawn(life.run(orders));
        Ok(Self {
            id: opened["clientId"].as_str().context("no clientId")?.to_owned(),
            room: opened["roomId"].as_str().context("no roomId")?.to_owned(),
            shared,
            told,
            life: Some(life),
        })
    }

    /// What it receives now, by consumer.
    pub fn streams(&self) -> Vec<Stream> {
        self.shared.streams.lock().expect("no panic inside").values().cloned().collect()
    }

    /// What has come of a producer, if it is received now.
    pub fn received(&self, producer: &str) -> Option<Received> {
        self.streams().into_iter().find(|s| s.producer == producer).map(|s| s.received())
    }

    /// The ids of what it sends.
    pub fn producers(&self) -> BTreeMap<Kind, String> {
        self.shared.producers.lock().expect("no panic inside").clone()
    }

    /// What has happened to it.
    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().expect("no panic inside").clone()
    }

    /// The longest time in which one of its streams had no packet, that ended after `mark` or has not ended.
    pub fn largest_gap_since(&self, mark: Instant) -> Option<Duration> {
        let now = Instant::now();
        self.streams().iter().filter_map(|s| s.received().largest_gap_since(mark, now)).max()
    }

    /// Waits until each of `kinds` from `peer` decodes: `frames` frames have come whole, counted anew for each producer.
    /// Streams that began before `mark` do not count. Gives how long it took from `mark`.
    pub async fn decodes(
        &self,
        peer: &str,
        kinds: &[Kind],
        frames: u64,
        mark: Instant,
        within: Duration,
    ) -> anyhow::Result<Duration> {
        loop {
            let streams = self.streams();
            let plays = |kind: &Kind| {
                streams.iter().any(|s| {
                    let received = s.received();
                    s.peer == peer && s.since >= mark && received.kind() == *kind && received.decodes(frames)
                })
            };
            if kinds.iter().all(plays) {
                return Ok(mark.elapsed());
            }
            if mark.elapsed() > within {
                let seen: Vec<String> = streams
                    .iter()
                    .map(|s| {
                        let r = s.received();
                        format!(
                            "{} of {}: {} frames whole, {:.2}, {} packets",
                            r.kind().name(),
                            s.peer,
                            r.complete(),
                            r.share(),
                            r.packets()
                        )
                    })
                    .collect();
                bail!("{} does not see {peer} within {within:?}: {seen:?}, {:?}", self.id, self.counts());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Mutes or unmutes, as a page does: the server is told, and packets stop.
    pub async fn mute(&self, kind: Kind, muted: bool) -> anyhow::Result<()> {
        let (reply, answer) = oneshot::channel();
        let _ = self.told.send(Told::Mute(kind, muted, reply));
        answer.await.context("this peer has ended")?
    }

    /// Asks the server for anything.
    pub async fn ask(&self, method: &str, data: Value) -> anyhow::Result<Value> {
        let (reply, answer) = oneshot::channel();
        let _ = self.told.send(Told::Ask(method.to_owned(), data, reply));
        answer.await.context("this peer has ended")?
    }

    /// Breaks its socket, as a lost network does; it comes back by itself.
    pub fn break_socket(&self) {
        let _ = self.told.send(Told::Break);
    }

    /// Leaves, and waits until all its tasks have ended.
    pub async fn leave(mut self) {
        self.end(true).await;
    }

    /// Vanishes: no word to the server, no packet any more.
    pub async fn vanish(mut self) {
        self.end(false).await;
    }

    async fn end(&mut self, in_order: bool) {
        let _ = self.told.send(Told::Leave(in_order));
        if let Some(life) = self.life.take() {
            let _ = life.await;
        }
    }
}

impl Drop for NativePeer {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            life.abort();
        }
    }
}

/// The one task of a peer.
struct Life {
    origin: String,
    url: String,
    opened: Value,
    since: u64,
    epoch: u64,
    peer: Peer,
    capabilities: Value,
    publish: Publish,
    muted: Vec<Kind>,
    plane: Option<Plane>,
    shared: Arc<Shared>,
}

impl Life {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Told>) {
        let ended = self.live(&mut orders).await;
        if let Some(plane) = self.plane.take() {
            plane.close().await;
        }
        match ended {
            Ok(true) => self.peer.leave().await,
            Ok(false) => self.peer.break_off().await,
            Err(error) => {
                self.shared.counts.lock().expect("no panic inside").ended = Some(format!("{error:#}"))
            }
        }
    }

    /// Until told to leave (true) or to vanish (false).
    async fn live(&mut self, orders: &mut mpsc::UnboundedReceiver<Told>) -> anyhow::Result<bool> {
        loop {
            let incoming = self.peer.incoming.as_mut().context("this peer hands over what it hears")?;
            tokio::select! {
                message = incoming.recv() => match message {
                    Some(message) => self.hear(&message).await?,
                    None => self.come_back().await?,
                },
                told = orders.recv() => match told {
                    Some(Told::Mute(kind, muted, reply)) => {
                        let _ = reply.send(self.mute(kind, muted).await);
                    }
                    Some(Told::Ask(method, data, reply)) => {
                        let _ = reply.send(self.peer.ask(&method, data).await);
                    }
                    Some(Told::Break) => self.peer.break_now(),
                    Some(Told::Leave(in_order)) => return Ok(in_order),
                    None => return Ok(true),
                },
            }
            self.note();
        }
    }

    fn note(&self) {
        let mut counts = self.shared.counts.lock().expect("no panic inside");
        counts.media_epoch = self.epoch;
        if let Some(plane) = &self.plane {
            counts.key_frame_requests = plane.key_frame_requests();
        }
    }

    /// Both transports on the server, and our ends of them; nothing is connected yet.
    async fn transports(&mut self) -> anyhow::Result<Plane> {
        let mut made = Vec::new();
        for producing in [true, false] {
            let wish = json!({ "forceTcp": false, "producing": producing, "consuming": !producing });
            made.push(self.peer.ask("createWebRtcTransport", wish).await?);
        }
        let receive = made.pop().context("two were made")?;
        let send = made.pop().context("two were made")?;
        Plane::new(send, receive, &self.capabilities).await
    }

    async fn produce(&mut self) -> anyhow::Result<()> {
        let kinds = self.publish.kinds(&self.muted);
        let Some(plane) = self.plane.as_mut().filter(|_| !kinds.is_empty()) else { return Ok(()) };
        let (connect, produce) = plane.publish(&kinds, self.publish.speed).await?;
        self.peer.ask("connectWebRtcTransport", connect).await?;
        for (kind, request) in produce {
            let made = self.peer.ask("produce", request).await?;
            let id = made["id"].as_str().context("a producer without id")?.to_owned();
            if self.muted.contains(&kind) {
                self.peer.ask("pauseProducer", json!({ "producerId": id })).await?;
            }
            self.shared.producers.lock().expect("no panic inside").insert(kind, id);
        }
        Ok(())
    }

    async fn mute(&mut self, kind: Kind, muted: bool) -> anyhow::Result<()> {
        self.muted.retain(|k| *k != kind);
        if muted {
            self.muted.push(kind);
        }
        if let Some(plane) = &self.plane {
            plane.mute(kind, muted);
        }
        let id = self.shared.producers.lock().expect("no panic inside").get(&kind).cloned();
        let Some(id) = id else { bail!("it sends no {}", kind.name()) };
        let method = if muted { "pauseProducer" } else { "resumeProducer" };
        self.peer.ask(method, json!({ "producerId": id })).await.map(drop)
    }

    async fn hear(&mut self, message: &Value) -> anyhow::Result<()> {
        let data = &message["data"];
        self.since = self.since.max(data["v"].as_u64().unwrap_or(0));
        match (message["method"].as_str().unwrap_or_default(), message["id"].as_u64()) {
            ("newConsumer", Some(id)) => self.new_consumer(id, data).await,
            (_, Some(id)) => {
                self.peer.answer(id, Some("not served here"));
                Ok(())
            }
            ("consumerClosed", _) => self.forget(|id, _| data["consumerId"] == *id).await,
            ("peerClosed", _) => self.forget(|_, stream| data["peerId"] == *stream.peer).await,
            ("mediaMoved", _) => {
                self.media_moved(data["mediaEpoch"].as_u64().unwrap_or(self.epoch + 1)).await
            }
            _ => Ok(()),
        }
    }

    async fn new_consumer(&mut self, id: u64, data: &Value) -> anyhow::Result<()> {
        let consumer = data["id"].as_str().unwrap_or_default().to_owned();
        if self.shared.streams.lock().expect("no panic inside").contains_key(&consumer) {
            self.peer.answer(id, None);
            return Ok(());
        }
        if data["mediaEpoch"].as_u64().is_some_and(|epoch| epoch < self.epoch) {
            self.peer.answer(id, Some("of an older media epoch"));
            return Ok(());
        }
        let Some(plane) = self.plane.as_mut() else {
            self.peer.answer(id, Some("the media is being moved"));
            return Ok(());
        };
        // The worker says goodbye before `mediaMoved` comes: our connection has ended then, and takes nothing more.
        let Ok((received, connect)) = plane.consume(data).await else {
            self.peer.answer(id, Some("the connection has ended"));
            return Ok(());
        };
        if let Some(connect) = connect
            && let Err(error) = self.peer.ask("connectWebRtcTransport", connect).await
        {
            // The worker may have died meanwhile, or the socket: both are heard of next.
            self.peer.answer(id, Some("the transport could not be connected"));
            return if self.is_broken() { Ok(()) } else { self.moving(error).await };
        }
        let text = |what: &str| data[what].as_str().unwrap_or_default().to_owned();
        let stream =
            Stream { peer: text("peerId"), producer: text("producerId"), since: Instant::now(), received };
        self.shared.streams.lock().expect("no panic inside").insert(consumer, stream);
        self.peer.answer(id, None);
        Ok(())
    }

    fn is_broken(&self) -> bool {
        self.peer.closed.lock().expect("no panic inside").is_some()
    }

    /// A request about media failed: that is in order while the media is about to move.
    async fn moving(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + TRIES_FOR;
        loop {
            let incoming = self.peer.incoming.as_mut().context("this peer hands over what it hears")?;
            let Ok(Some(message)) = tokio::time::timeout_at(end, incoming.recv()).await else { break };
            if message["method"] == "mediaMoved" {
                return Box::pin(self.hear(&message)).await;
            }
            if let Some(id) = message["id"].as_u64() {
                self.peer.answer(id, Some("the media is being moved"));
            }
        }
        if self.is_broken() { Ok(()) } else { Err(error) }
    }

    async fn forget(&mut self, which: impl Fn(&str, &Stream) -> bool) -> anyhow::Result<()> {
        let gone: Vec<String> = {
            let mut streams = self.shared.streams.lock().expect("no panic inside");
            let gone = streams.iter().filter(|(id, s)| which(id, s)).map(|(id, _)| id.clone()).collect();
            streams.retain(|id, s| !which(id, s));
            gone
        };
        for consumer in gone {
            if let Some(plane) = self.plane.as_mut() {
                // As above: what has ended need not be told.
                let _ = plane.forget(&consumer).await;
            }
        }
        Ok(())
    }

    /// Transports anew on the new worker, and all that is sent, again.
    async fn media_moved(&mut self, epoch: u64) -> anyhow::Result<()> {
        if epoch <= self.epoch {
            return Ok(());
        }
        self.epoch = epoch;
        self.shared.streams.lock().expect("no panic inside").clear();
        self.shared.producers.lock().expect("no panic inside").clear();
        let end = Instant::now() + TRIES_FOR;
        loop {
            if let Some(old) = self.plane.take() {
                // The worker is gone: nobody is waited for.
                tokio::spawn(old.close());
            }
            let built = async {
                let plane = self.transports().await?;
                self.plane = Some(plane);
                self.produce().await
            };
            match built.await {
                Ok(()) => {
                    self.shared.counts.lock().expect("no panic inside").rebuilt += 1;
                    return Ok(());
                }
                Err(error) if Instant::now() > end => {
                    return Err(error.context("the media could not be rebuilt"));
                }
                // What came back says more: the socket is gone, or the media moves on.
                Err(_) if self.is_broken() => return Ok(()),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// A new socket, and `resume`.
    async fn come_back(&mut self) -> anyhow::Result<()> {
        let closed = self.peer.closed.lock().expect("no panic inside").clone();
        if let Some((4000, reason)) = &closed
            && reason != "moved"
        {
            bail!("closed for good: {reason}");
        }
        let end = Instant::now() + TRIES_FOR;
        let answer = loop {
            match self.try_resume().await {
                Ok(answer) => break answer,
                Err(error) if Instant::now() > end => {
                    return Err(error.context(format!("could not come back after {closed:?}")));
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        self.shared.counts.lock().expect("no panic inside").resumed += 1;
        for event in answer["events"].as_array().into_iter().flatten() {
            Box::pin(self.hear(event)).await?;
        }
        self.since = self.since.max(answer["v"].as_u64().unwrap_or(0));
        if let Some(epoch) = answer["mediaEpoch"].as_u64() {
            self.media_moved(epoch).await?;
        }
        // A move that the break cut short is finished.
        if self.plane.is_none() || self.producers_missing() {
            self.epoch = self.epoch.saturating_sub(1);
            self.media_moved(self.epoch + 1).await?;
        }
        Ok(())
    }

    fn producers_missing(&self) -> bool {
        self.shared.producers.lock().expect("no panic inside").len() < self.publish.kinds(&[]).len()
    }

    async fn try_resume(&mut self) -> anyhow::Result<Value> {
        let locate = self.opened["locateUrl"].as_str().context("no locateUrl")?;
        if let Some(url) = http::call_ok(&self.origin, "GET", locate, None, None).await?["wsUrl"].as_str() {
            self.url = url.to_owned();
        }
        let mut peer = Peer::open(&format!("{}?resume=1", self.url), Policy::HandOver).await?;
        let resume = json!({
            "clientId": self.opened["clientId"], "roomId": self.opened["roomId"],
            "resumeKey": self.opened["resumeKey"], "since": self.since,
        });
        let answer = peer.ask("resume", resume).await?;
        self.peer = peer;
        Ok(answer)
    }
}
