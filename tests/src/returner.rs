//! A signalling-only client that comes back by itself, as our page does: asks NUVE where its room is, resumes there, and keeps a record
//! of every notification with its version.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    http,
    peer::{Peer, Policy},
};

/// Between two tries to come back.
const RETRY: Duration = Duration::from_millis(100);
/// How often the client looks whether its socket is closed.
const LOOK: Duration = Duration::from_millis(10);

/// What a client has lived through.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// Notifications of the log in the order they came: version, method.
    pub told: Vec<(u64, String)>,
    /// When it was back, each time, and which EC it was on then.
    pub resumed: Vec<(Instant, String)>,
    /// `suspended` notifications.
    pub suspended: u32,
    /// Why it gave up.
    pub ended: Option<String>,
}

/// The client.
pub struct Returner {
    /// Its client id.
    pub id: String,
    /// Its room.
    pub room: String,
    /// Version of the room when it came in.
    pub since: u64,
    life: Arc<Mutex<Life>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Returner {
    /// Comes in with `token` and joins with receiving and sending transports.
    pub async fn join(origins: Vec<String>, token: &Value, name: &str) -> anyhow::Result<Self> {
        let url = token["wsUrl"].as_str().context("no wsUrl")?;
        let (mut peer, entered) =
            Peer::enter(url, token["token"].as_str().context("no token")?, Policy::Accept).await?;
        peer.join(name).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (id, room) = (text(&entered["clientId"]), text(&entered["roomId"]));
        let since = entered["v"].as_u64().context("no version")?;
        let life: Arc<Mutex<Life>> = Arc::default();
        let (stop, mut stopped) = watch::channel(false);
        let body = Body { origins, entered, room: room.clone(), life: life.clone() };
        let task = tokio::spawn(async move {
            let alive = body.live(peer);
            tokio::select! {
                () = alive => {}
                _ = async { let _ = stopped.wait_for(|stop| *stop).await; } => {}
            }
        });
        Ok(Self { id, room, since, life, stop, task })
    }

    /// What it has lived through.
    pub fn life(&self) -> Life {
        self.life.lock().expect("no panic inside").clone()
    }

    /// Vanishes.
    pub async fn vanish(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

struct Body {
    origins: Vec<String>,
    entered: Value,
    room: String,
    life: Arc<Mutex<Life>>,
}

impl Body {
    async fn live(&self, mut peer: Peer) {
        loop {
            let (code, reason) = self.until_closed(&peer).await;
            if code == 4000 && reason != "moved" {
                self.life.lock().expect("no panic inside").ended = Some(reason);
                return;
            }
            drop(peer);
            peer = loop {
                match self.come_back().await {
                    Ok(peer) => break peer,
                    Err(error) if error.to_string().contains("1002") => {
                        self.life.lock().expect("no panic inside").ended = Some(error.to_string());
                        return;
                    }
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            };
        }
    }

    async fn until_closed(&self, peer: &Peer) -> (u16, String) {
        loop {
            let closed = peer.closed.lock().expect("no panic inside").clone();
            self.note(peer);
            if let Some(closed) = closed {
                return closed;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes down what was heard since.
    fn note(&self, peer: &Peer) {
        let heard: Vec<(String, Value)> = std::mem::take(&mut *peer.heard.lock().expect("no panic inside"));
        let mut life = self.life.lock().expect("no panic inside");
        for (method, data) in heard {
            self.take(&mut life, &method, &data);
        }
    }

    fn take(&self, life: &mut Life, method: &str, data: &Value) {
        match (method, data["v"].as_u64()) {
            // Asked, and asked again until it is answered: not a notification.
            ("newConsumer", _) => {}
            ("suspended", _) => life.suspended += 1,
            (method, Some(v)) => life.told.push((v, method.to_owned())),
            _ => {}
        }
    }

    async fn come_back(&self) -> anyhow::Result<Peer> {
        let mut located = None;
        for origin in &self.origins {
            let path = format!("/v1/rooms/{}/locate", self.room);
            if let Ok(found) = http::call_ok(origin, "GET", &path, None, None).await {
                located = Some(found);
                break;
            }
        }
        let located = located.context("no NUVE knows where the room is")?;
        let url = located["wsUrl"].as_str().context("no wsUrl")?;
        let mut peer = Peer::open(&format!("{url}?resume=1"), Policy::Accept).await?;
        let since = {
            let life = self.life.lock().expect("no panic inside");
            life.told.iter().map(|(v, _)| *v).max().max(self.entered["v"].as_u64()).unwrap_or(0)
        };
        let resume = json!({
            "clientId": self.entered["clientId"], "roomId": self.room,
            "resumeKey": self.entered["resumeKey"], "since": since,
        });
        let answer = peer.ask("resume", resume).await?;
        let mut life = self.life.lock().expect("no panic inside");
        for event in answer["events"].as_array().into_iter().flatten() {
            self.take(&mut life, event["method"].as_str().unwrap_or_default(), &event["data"]);
        }
        life.resumed.push((Instant::now(), answer["ec"].as_str().unwrap_or_default().to_owned()));
        drop(life);
        Ok(peer)
    }
}
