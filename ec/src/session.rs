//! One client's connection as its room sees it: the socket, the requests we made of it, and the answers we gave.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use roomlog_bus::ids::ConsumerId;
use serde_json::Value;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

use crate::{per_client::Made, protoo};

/// Close code that protoo-client takes as final.
pub const FINAL: u16 = 4000;
/// Close code of a node that stops or restarts (RFC 6455 §7.4.1 and its IANA registry): clients come back and resume.
pub const RESTART: u16 = 1012;

/// Requests of one client under way at once, at most: twice the largest room's consumers, for who asks the statistics of all.
const MAX_UNDER_WAY: usize = 1_024;

/// What a room tells a socket.
#[derive(Debug, Clone, PartialEq)]
pub enum ToSocket {
    /// Send this frame.
    Text(String),
    /// Close with this code and reason.
    Close(u16, String),
}

/// A socket, as a room holds it.
#[derive(Debug, Clone)]
pub struct Socket {
    /// Unique within the process, so that news of an old socket is not taken for the new one's.
    pub id: u64,
    /// Its queue. A full queue means a client that does not read: it is dropped, and may resume.
    pub queue: mpsc::Sender<ToSocket>,
    /// The client's address.
    pub addr: String,
}

/// A client's connection.
#[derive(Debug, Default)]
pub struct Session {
    socket: Option<Socket>,
    /// `newConsumer` requests without an answer: our request id, the consumer, and when it was asked.
    asked: BTreeMap<u64, (ConsumerId, Instant)>,
    next_request: u64,
    /// Answers given, for requests that come again.
    answered: VecDeque<(u64, Arc<str>)>,
    /// The socket with which the client last started over. What it had asked for before is none of its business any more.
    start: u64,
    /// Requests under way, with what they make: the same id again waits for the one answer.
    under_way: BTreeMap<u64, Option<Made>>,
}

/// Whether a request is to be worked on.
#[derive(Debug, PartialEq)]
pub enum Seen {
    /// Not seen before.
    New,
    /// Under way; its answer will come.
    UnderWay,
    /// Answered before, so.
    Answered(Arc<str>),
    /// Not seen before, and not to be worked on: too many others of this client are.
    TooMany,
}

impl Session {
    /// Whether a socket is attached.
    pub fn connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Whether `id` is the attached socket.
    pub fn is_socket(&self, id: u64) -> bool {
        self.socket.as_ref().is_some_and(|s| s.id == id)
    }

    /// Attaches a socket; the one before it is closed as replaced. Requests we made on the old one are forgotten: they are asked anew.
    pub fn attach(&mut self, socket: Socket) {
        self.close(FINAL, "replaced");
        self.asked.clear();
        if self.start == 0 {
            self.start = socket.id;
        }
        self.socket = Some(socket);
    }

    /// Names the time since the client came in or last started over.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Lets go of the socket without closing it: it is gone.
    pub fn detach(&mut self) {
        self.socket = None;
        self.asked.clear();
    }

    /// Closes the socket, if there is one.
    pub fn close(&mut self, code: u16, reason: &str) {
        if let Some(socket) = self.socket.take() {
            // A full queue drops the sender here, which ends the socket without a reason: still closed.
            let _ = socket.queue.try_send(ToSocket::Close(code, reason.to_owned()));
        }
    }

    /// Sends a frame. A socket that cannot take it is closed; the client may resume.
    pub fn send(&mut self, text: String) {
        let Some(socket) = &self.socket else { return };
        if let Err(TrySendError::Full(_)) = socket.queue.try_send(ToSocket::Text(text)) {
            tracing::warn!(socket = socket.id, "a client does not read: its socket is dropped");
            // The room holds the only sender: dropping it ends the socket's task, which reports it as broken.
            let id = socket.id;
            self.socket = Some(Socket { id, queue: mpsc::channel(1).0, addr: String::new() });
        }
    }

    /// Asks the client to take a consumer.
    pub fn ask_consumer(&mut self, consumer: ConsumerId, data: &Value, now: Instant) {
        if self.socket.is_none() {
            return;
        }
        let id = self.next_request;
        self.next_request += 1;
        self.asked.insert(id, (consumer, now));
        self.send(protoo::request(id, "newConsumer", data));
    }

    /// The consumer that our request `id` was about, once.
    pub fn answered_ask(&mut self, id: u64) -> Option<ConsumerId> {
        self.asked.remove(&id).map(|(consumer, _)| consumer)
    }

    /// Whether the client has been asked about `consumer` on this socket.
    pub fn is_asked(&self, consumer: &ConsumerId) -> bool {
        self.asked.values().any(|(c, _)| c == consumer)
    }

    /// Consumers asked before `before` and never answered; they are forgotten here.
    pub fn overdue(&mut self, before: Instant) -> Vec<ConsumerId> {
        let late: Vec<u64> =
            self.asked.iter().filter(|(_, (_, at))| *at <= before).map(|(id, _)| *id).collect();
        late.into_iter().filter_map(|id| self.answered_ask(id)).collect()
    }

    /// When the oldest unanswered question was asked.
    pub fn oldest_ask(&self) -> Option<Instant> {
        self.asked.values().map(|(_, at)| *at).min()
    }

    /// A request came.
    pub fn seen(&mut self, id: u64) -> Seen {
        if let Some((_, answer)) = self.answered.iter().find(|(known, _)| *known == id) {
            return Seen::Answered(answer.clone());
        }
        if self.under_way.contains_key(&id) {
            Seen::UnderWay
        } else if self.under_way.len() >= MAX_UNDER_WAY {
            Seen::TooMany
        } else {
            self.under_way.insert(id, None);
            Seen::New
        }
    }

    /// Request `id`, which is under way, makes one of these.
    pub fn makes(&mut self, id: u64, made: Made) {
        self.under_way.insert(id, Some(made));
    }

    /// How many of these the requests under way make.
    pub fn making(&self, made: Made) -> usize {
        self.under_way.values().filter(|under_way| **under_way == Some(made)).count()
    }

    /// Answers a request and keeps the answer, the last `keep` of them.
    pub fn answer(&mut self, id: u64, text: String, keep: usize) {
        self.under_way.remove(&id);
        self.answered.push_back((id, text.as_str().into()));
        while self.answered.len() > keep {
            self.answered.pop_front();
        }
        self.send(text);
    }

    /// Forgets answers: a client that starts over counts its requests anew, and those under way are not its own any more.
    pub fn start_over(&mut self) {
        self.start = self.socket.as_ref().map_or(self.start, |socket| socket.id);
        self.answered.clear();
        self.under_way.clear();
    }
}
