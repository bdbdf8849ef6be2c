//! A client of the simulation: real frames over a real WebSocket, on a pipe in memory, and calls at NUVE's interface.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, header},
};
use futures::{SinkExt, StreamExt};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::{DuplexStream, duplex},
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest, protocol::CloseFrame},
};

use super::world::{Call, Door, Link, Micros, S, World};
use crate::peer::vp8;

/// Bytes between client and EC in each direction: a socket's buffer.
const PIPE: usize = 256 * 1024;
/// Promised for every request.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Who stays only listens from this long after nobody new comes, so that the state of a room is the same however late it is asked for.
const QUIET_AFTER: Micros = 60 * S;
/// Between two tries of a client that found nobody.
const RETRY: Duration = Duration::from_millis(500);

/// A request that was answered with success, and has to be in the log.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub room: String,
    pub client: String,
    pub request: u64,
    pub method: &'static str,
}

/// A token that was given.
#[derive(Debug, Clone)]
pub struct Given {
    pub room: String,
    pub ec: String,
    pub asked: Micros,
    pub answered: Micros,
    pub nuve: String,
}

/// What all clients lived through.
#[derive(Debug, Default)]
pub struct Record {
    pub acknowledged: Vec<Acknowledged>,
    pub given: Vec<Given>,
    /// Rooms whose deletion was answered with success.
    pub deleted: Vec<String>,
    /// Clients that are on a socket at the end: room and client.
    pub staying: Vec<(String, String)>,
}

/// What the clients of a run share.
pub struct Clients {
    pub world: Arc<World>,
    pub nuves: usize,
    pub rooms: usize,
    pub key: String,
    pub secret: String,
    /// Nobody comes in after this.
    pub until: Micros,
    pub record: std::sync::Mutex<Record>,
}

/// Calls a NUVE; none when it is not there or does not answer.
pub async fn http(
    world: &Arc<World>,
    nuve: &str,
    method: &str,
    path: &str,
    key: &str,
    body: Option<Value>,
) -> Option<(u16, Value)> {
    let door = world.lock().doors.get(nuve).cloned();
    let Some(Door::Http(door)) = door else { return None };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "rooms.sim")
        .header("authorization", format!("Bearer {key}"));
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(body.map_or_else(Body::empty, |b| Body::from(b.to_string()))).ok()?;
    let (reply, answer) = oneshot::channel();
    let id = {
        let mut world = world.lock();
        let id = world.id();
        world.links.insert((nuve.to_owned(), id), Link::Call(reply));
        id
    };
    door.send(Call { request, id }).ok()?;
    let (status, bytes) = timeout(Duration::from_secs(20), answer).await.ok()?.ok()?;
    Some((status.as_u16(), serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}

/// Why a socket is of no more use.
struct Gone(u16, String);

struct Peer {
    /// Ends when the EC is gone.
    open: oneshot::Receiver<()>,
    ws: WebSocketStream<DuplexStream>,
    next: u64,
    /// The highest version heard of.
    since: u64,
}

/// The EC in a WebSocket's address.
fn ec_of(url: &str) -> &str {
    url.trim_start_matches("ws://").split('/').next().unwrap_or_default()
}

impl Peer {
    async fn open(world: &Arc<World>, url: &str) -> Option<Self> {
        let door = world.lock().doors.get(ec_of(url)).cloned();
        let Some(Door::Socket(door)) = door else { return None };
        let (ours, theirs) = duplex(PIPE);
        let (is_open, mut open) = oneshot::channel();
        {
            let mut world = world.lock();
            let id = world.id();
            world.links.insert((ec_of(url).to_owned(), id), Link::Socket { _open: is_open });
        }
        door.send(theirs).ok()?;
        let mut request = url.into_client_request().ok()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", "protoo".parse().ok()?);
        let opening = tokio_tungstenite::client_async(request, ours);
        let (ws, _) = tokio::select! {
            biased;
            _ = &mut open => return None,
            opened = timeout(Duration::from_secs(10), opening) => opened.ok()?.ok()?,
        };
        Some(Self { open, ws, next: 1, since: 0 })
    }

    async fn ask(&mut self, method: &str, data: Value) -> Result<Result<Value, (u64, String)>, Gone> {
        let id = self.next;
        self.next += 1;
        let text = json!({ "request": true, "id": id, "method": method, "data": data }).to_string();
        self.say(text).await?;
        let deadline = Instant::now() + ANSWER_WITHIN;
        match self.listen(deadline, Some(id)).await? {
            Some(answer) => Ok(answer),
            None => Err(Gone(0, "no answer in time".into())),
        }
    }

    async fn say(&mut self, text: String) -> Result<(), Gone> {
        let sending = timeout(ANSWER_WITHIN, self.ws.send(Message::Text(text.into())));
        let sent = tokio::select! {
            biased;
            _ = &mut self.open => return Err(Gone(1006, "the EC is gone".into())),
            sent = sending => sent,
        };
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone(1006, "not sent".into())),
        }
    }

    /// Takes in what comes until the answer to `wanted`, or until `deadline`.
    async fn listen(
        &mut self,
        deadline: Instant,
        wanted: Option<u64>,
    ) -> Result<Option<Result<Value, (u64, String)>>, Gone> {
        loop {
            let next = tokio::select! {
                biased;
                _ = &mut self.open => return Err(Gone(1006, "the EC is gone".into())),
                next = self.ws.next() => next,
                () = sleep_until(deadline) => return Ok(None),
            };
            let text = match next {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(frame))) => {
                    return Err(frame
                        .map_or(Gone(1005, String::new()), |f| Gone(f.code.into(), f.reason.to_string())));
                }
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return Err(Gone(1006, String::new())),
            };
            let Ok(message) = serde_json::from_str::<Value>(&text) else { continue };
            if let Some(v) = message["data"]["v"].as_u64() {
                self.since = self.since.max(v);
            }
            let id = message["id"].as_u64();
            if message["response"] == true {
                if id.is_some() && id == wanted {
                    let code = message["errorCode"].as_u64().unwrap_or(0);
                    let reason = message["errorReason"].as_str().unwrap_or_default().to_owned();
                    return Ok(Some(match message["ok"] == true {
                        true => Ok(message["data"].clone()),
                        false => Err((code, reason)),
                    }));
                }
            } else if message["request"] == true {
                self.say(json!({ "response": true, "id": id, "ok": true, "data": {} }).to_string()).await?;
            }
        }
    }
}

/// One client's life: it comes, does things, goes or is lost, and comes back.
pub async fn live(all: Arc<Clients>, seed: u64, name: String) {
    let mut rng = StdRng::seed_from_u64(seed);
    let pause = rng.random_range(0..8_000);
    sleep(Duration::from_millis(pause)).await;
    while all.world.lock().now < all.until {
        let stays = rng.random_bool(0.25);
        visit(&all, &mut rng, &name, stays).await;
        let pause = rng.random_range(200..6_000);
        sleep(Duration::from_millis(pause)).await;
    }
}

/// How a visit ends.
#[derive(PartialEq)]
enum Way {
    Leave,
    Vanish,
    Silent,
}

async fn visit(all: &Arc<Clients>, rng: &mut StdRng, name: &str, stays: bool) {
    let room = rng.random_range(0..all.rooms);
    let nuve = format!("nuve-{}", rng.random_range(1..=all.nuves));
    let asked = all.world.lock().now;
    let body = json!({ "user": name, "create": true });
    let path = format!("/v1/rooms/name:r{room}/tokens");
    let Some((status, given)) = http(&all.world, &nuve, "POST", &path, &all.key, Some(body)).await else {
        return;
    };
    let answered = all.world.lock().now;
    let (Some(url), Some(token), Some(room)) =
        (given["wsUrl"].as_str(), given["token"].as_str(), given["roomId"].as_str())
    else {
        all.world.lock().count(if status == 503 { "tokens refused 503" } else { "tokens refused" });
        return;
    };
    all.world.lock().count("tokens");
    let room = room.to_owned();
    all.record.lock().expect("one thread").given.push(Given {
        room: room.clone(),
        ec: ec_of(url).to_owned(),
        asked,
        answered,
        nuve,
    });
    let Some(mut peer) = Peer::open(&all.world, url).await else { return };
    let entered = match peer.ask("token", json!({ "token": token })).await {
        Ok(Ok(entered)) => entered,
        Ok(Err(_)) => return all.world.lock().count("admissions refused"),
        Err(_) => return,
    };
    all.world.lock().count("admitted");
    let client = entered["clientId"].as_str().unwrap_or_default().to_owned();
    acknowledge(all, &room, &client, 0, "token");
    let mut member =
        Member { all: all.clone(), room, client, entered, joined: false, producing: None, producer: None };
    let way = match rng.random_range(0..10) {
        0..5 => Way::Leave,
        5..8 => Way::Vanish,
        _ => Way::Silent,
    };
    let mut ends = Instant::now() + Duration::from_millis(rng.random_range(500..30_000));
    if stays {
        ends += Duration::from_secs(10_000);
        all.record.lock().expect("one thread").staying.push((member.room.clone(), member.client.clone()));
    }
    loop {
        match member.act(&mut peer, rng, ends).await {
            Ok(()) if way == Way::Leave => {
                member.goes_silent(0);
                all.world.lock().count("left");
                let frame = CloseFrame { code: 1000.into(), reason: "".into() };
                let _ = timeout(Duration::from_secs(5), peer.ws.close(Some(frame))).await;
                return;
            }
            Ok(()) if way == Way::Silent => {
                // A phone in a tunnel: the socket stays open and says nothing.
                all.world.lock().count("went silent");
                member.goes_silent(0);
                sleep(Duration::from_secs(25)).await;
                return;
            }
            Ok(()) => {
                // Its media may go on for a while: only the socket is gone.
                member.goes_silent(rng.random_range(0..45) * S);
                return all.world.lock().count("vanished");
            }
            Err(Gone(4000, reason)) if reason != "moved" => {
                all.world.lock().count("put out");
                return member.gone();
            }
            Err(Gone(..)) => {}
        }
        let since = peer.since;
        drop(peer);
        match member.come_back(rng, since).await {
            Some(back) => peer = back,
            None => return member.gone(),
        }
    }
}

fn acknowledge(all: &Clients, room: &str, client: &str, request: u64, method: &'static str) {
    let (room, client) = (room.to_owned(), client.to_owned());
    all.record.lock().expect("one thread").acknowledged.push(Acknowledged { room, client, request, method });
}

struct Member {
    all: Arc<Clients>,
    room: String,
    client: String,
    entered: Value,
    joined: bool,
    producing: Option<String>,
    producer: Option<String>,
}

impl Member {
    /// Its ICE is alive for as long as this.
    fn goes_silent(&self, after: Micros) {
        let mut world = self.all.world.lock();
        let ends = world.now + after;
        if let Some(ice) = world.ice.get_mut(&self.client) {
            ice.ends = Some(ends);
        }
    }

    fn gone(&self) {
        self.goes_silent(0);
        let mut record = self.all.record.lock().expect("one thread");
        record.staying.retain(|(_, client)| *client != self.client);
    }

    /// Asks, and remembers what was promised.
    async fn ask(
        &mut self,
        peer: &mut Peer,
        method: &'static str,
        data: Value,
        logged: bool,
    ) -> Result<Option<Value>, Gone> {
        let id = peer.next;
        match peer.ask(method, data).await? {
            Ok(answer) => {
                if logged {
                    acknowledge(&self.all, &self.room, &self.client, id, method);
                }
                Ok(Some(answer))
            }
            Err((code, reason)) => {
                let mut world = self.all.world.lock();
                world.count("requests refused");
                world.note(|| format!("refused {method} {code} {reason}"), &[]);
                Ok(None)
            }
        }
    }

    async fn act(&mut self, peer: &mut Peer, rng: &mut StdRng, ends: Instant) -> Result<(), Gone> {
        if !self.joined {
            let capabilities = self.ask(peer, "getRouterRtpCapabilities", json!({}), true).await?;
            for producing in [true, false] {
                let data = json!({ "forceTcp": false, "producing": producing, "consuming": !producing });
                let made = self.ask(peer, "createWebRtcTransport", data, true).await?;
                let Some(id) = made.as_ref().and_then(|made| made["id"].as_str()).map(str::to_owned) else {
                    continue;
                };
                if producing {
                    self.producing = Some(id.clone());
                }
                let data =
                    json!({ "transportId": id, "dtlsParameters": { "role": "client", "fingerprints": [] } });
                // Its worker may hear of it although the answer is lost.
                self.all.world.lock().ice.entry(self.client.clone()).or_default().transports.push(id);
                self.ask(peer, "connectWebRtcTransport", data, false).await?;
            }
            let data = json!({ "displayName": "sim", "device": {}, "rtpCapabilities": capabilities });
            self.joined = self.ask(peer, "join", data, true).await?.is_some();
        }
        while Instant::now() < ends {
            if self.all.world.lock().now > self.all.until + QUIET_AFTER {
                peer.listen(ends, None).await?;
                continue;
            }
            match (rng.random_range(0..5), self.producing.clone(), self.producer.clone()) {
                (0..2, Some(transport), None) => {
                    let ssrc: u32 = rng.random_range(1..1 << 30);
                    let data = json!({ "transportId": transport, "kind": "video", "rtpParameters": vp8(ssrc), "appData": {} });
                    let made = self.ask(peer, "produce", data, true).await?;
                    self.producer = made.and_then(|made| made["id"].as_str().map(str::to_owned));
                }
                (0, _, Some(producer)) => {
                    self.ask(peer, "pauseProducer", json!({ "producerId": producer }), false).await?;
                }
                (1, _, Some(producer)) => {
                    self.ask(peer, "resumeProducer", json!({ "producerId": producer }), false).await?;
                }
                (2, _, Some(producer)) => {
                    self.producer = None;
                    self.ask(peer, "closeProducer", json!({ "producerId": producer }), false).await?;
                }
                (3, ..) if rng.random_ratio(1, 40) && self.all.world.lock().now < self.all.until => {
                    let nuve = format!("nuve-{}", rng.random_range(1..=self.all.nuves));
                    let path = format!("/v1/rooms/{}", self.room);
                    let answer = http(&self.all.world, &nuve, "DELETE", &path, &self.all.secret, None).await;
                    if answer.is_some_and(|(status, _)| status / 100 == 2) {
                        self.all.world.lock().count("rooms deleted");
                        self.all.record.lock().expect("one thread").deleted.push(self.room.clone());
                    }
                }
                _ => {}
            }
            let pause = Duration::from_millis(rng.random_range(500..8_000));
            let until = ends.min(Instant::now() + pause);
            peer.listen(until, None).await?;
        }
        Ok(())
    }

    /// Asks NUVE where the room is and resumes there; none when it has no place there any more, or has lost patience.
    async fn come_back(&mut self, rng: &mut StdRng, since: u64) -> Option<Peer> {
        for _ in 0..80 {
            sleep(RETRY).await;
            let nuve = format!("nuve-{}", rng.random_range(1..=self.all.nuves));
            let path = format!("/v1/rooms/{}/locate", self.room);
            let found = match http(&self.all.world, &nuve, "GET", &path, &self.all.key, None).await {
                Some((404, _)) => return None,
                Some((200, found)) => found,
                _ => continue,
            };
            let url = format!("{}?resume=1", found["wsUrl"].as_str()?);
            let Some(mut peer) = Peer::open(&self.all.world, &url).await else { continue };
            let data = json!({
                "clientId": self.client, "roomId": self.room,
                "resumeKey": self.entered["resumeKey"], "since": since,
            });
            match peer.ask("resume", data).await {
                Ok(Ok(_)) => {
                    self.all.world.lock().count("resumed");
                    // Requests of another socket are counted on, as our page does.
                    peer.next += 1_000_000;
                    return Some(peer);
                }
                Ok(Err((1002, _))) => return None,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        self.all.world.lock().count("gave up");
        None
    }
}
