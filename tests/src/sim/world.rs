//! What lies between the nodes: subscriptions, the log, and a queue of everything under way, ordered by virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{body::Bytes, http::Request, http::StatusCode};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    bus::Message,
    commit::{Commit, CommitId, Payload, StreamId},
    events::Event,
    journal::{AppendError, Cursor, Entry, Followed},
    rpc::EaRequest,
    subject::Pattern,
};
use sha2::{Digest, Sha256};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot, watch},
};

/// Microseconds of virtual time since the run began.
pub type Micros = u64;

/// A millisecond.
pub const MS: Micros = 1_000;
/// A second.
pub const S: Micros = 1_000_000;

/// What was done to a cluster and how often it was looked at.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Faults injected, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Checks made, by kind.
    pub checks: BTreeMap<&'static str, u64>,
    /// What happened, by kind: so that a run in which nothing happens is seen.
    pub events: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.faults, &other.faults),
            (&mut self.checks, &other.checks),
            (&mut self.events, &other.events),
        ] {
            for (kind, n) in theirs {
                *mine.entry(kind).or_default() += n;
            }
        }
    }
}

/// How likely what is, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chances {
    /// A message on a core subject is lost.
    pub loss: u32,
    /// It is delivered twice.
    pub duplicate: u32,
    /// It, or a commit on its way to a follower, takes up to [`SLOW`].
    pub slow: u32,
    /// An append's acknowledgement is lost.
    pub ack_lost: u32,
    /// An append is stored only after its sender has given up waiting.
    pub lands_late: u32,
    /// An append is lost on its way.
    pub append_lost: u32,
    /// A follower is told that the log cannot be followed further.
    pub follow_broken: u32,
    /// A read is answered by a leader that was deposed a moment ago.
    pub stale: u32,
}

/// Why a client whose time to resume is over has left.
const EXPIRED: &str = "timeout";

/// A sequence in a cursor, with the repair it is as of: JetStream's engine does the same.
pub fn stamped(repairs: u64, sequence: u64) -> u64 {
    repairs << 45 | sequence
}

/// A usual message takes up to this long.
const QUICK: Micros = 30 * MS;
/// A slow one up to this long.
const SLOW: Micros = 900 * MS;
/// An append is given up after this: what a NATS client waits.
pub const APPEND_TIMEOUT: Micros = 5 * S;

/// A node that was not heard for this long is suspected; what is on its way and the look every quantum come on top.
const SUSPECTED: Micros = 3 * S + 200 * MS;

/// A call to a node's HTTP interface.
pub struct Call {
    /// What is asked.
    pub request: Request<axum::body::Body>,
    /// Names the call; the world keeps where its answer goes.
    pub id: u64,
}

/// What a client has of a node, to be broken when that crashes. Kept here and not only by the node's tasks: a runtime drops those in an
/// order that depends on every task the process ever started.
pub(super) enum Link {
    /// An answer to a call is awaited.
    Call(oneshot::Sender<(StatusCode, Bytes)>),
    /// A socket is open for as long as this is not dropped.
    Socket { _open: oneshot::Sender<()> },
}

/// Where a node takes clients.
#[derive(Clone)]
pub enum Door {
    /// HTTP.
    Http(mpsc::UnboundedSender<Call>),
    /// WebSockets.
    Socket(mpsc::UnboundedSender<DuplexStream>),
}

pub(super) struct Subscriber {
    pub node: usize,
    pub pattern: Pattern,
    pub queue: Option<String>,
    pub sender: mpsc::Sender<Message>,
}

pub(super) struct Follower {
    pub node: usize,
    /// The sequence it is given next.
    pub next: u64,
    pub caught_up_after: u64,
    pub caught_up: bool,
    /// When the last thing for it arrives: nothing overtakes.
    pub last: Micros,
    pub sender: mpsc::Sender<Followed>,
}

/// Something under way.
pub(super) enum Due {
    Message {
        from: usize,
        subscriber: u64,
        message: Message,
    },
    Append {
        from: usize,
        commit: Box<Commit>,
        reply: Option<oneshot::Sender<Result<(), AppendError>>>,
    },
    Acknowledged {
        node: usize,
        reply: oneshot::Sender<Result<(), AppendError>>,
        result: Result<(), AppendError>,
        copied: Arc<Commit>,
    },
    Follow {
        follower: u64,
        sequence: u64,
    },
}

/// How a node is, seen from outside.
#[derive(Default)]
pub(super) struct Node {
    pub name: String,
    /// Since when bus and log are not reached.
    pub cut: bool,
    /// It knows that they are not.
    pub knows: bool,
    pub connected: Vec<watch::Sender<bool>>,
    pub running: bool,
    /// When it was gone, cut off, standing still or not heard.
    pub trouble: Vec<(Micros, Micros)>,
    /// Its heartbeats are lost until then, and nothing else of it.
    pub unheard_until: Micros,
    /// The last sequence it was given or had acknowledged since it started.
    pub seen: u64,
    /// It has seen of the log what is not there any more: it appends and follows nothing until that was repaired.
    pub blocked: bool,
    /// Its local copy, which survives crashes: what it had acknowledged.
    pub copied: Vec<Arc<Commit>>,
}

impl Node {
    /// Whether anything was wrong with it between `from` and `until`.
    pub fn in_trouble(&self, from: Micros, until: Micros) -> bool {
        self.trouble.iter().any(|(began, ended)| *began <= until && *ended >= from)
    }
}

pub(super) struct Inner {
    pub now: Micros,
    pub rng: StdRng,
    pub chances: Chances,
    pub counts: Counts,
    trace: Sha256,
    /// Every line of the trace, if it is wanted as text.
    pub lines: Option<Vec<String>>,
    next_id: u64,
    pub(super) queue: BTreeMap<(Micros, u64), Due>,
    pub subscribers: BTreeMap<u64, Subscriber>,
    turns: BTreeMap<String, u64>,
    pub followers: BTreeMap<u64, Follower>,
    pub nodes: Vec<Node>,
    /// When the last message from a node to a subscriber on a subject arrives: nothing overtakes on one subject.
    order: BTreeMap<(usize, u64, String), Micros>,
    /// The commit with sequence `n` is at `n - 1`.
    pub log: Vec<Arc<Commit>>,
    /// When each was stored.
    pub stored: Vec<Micros>,
    pub streams: BTreeMap<StreamId, Vec<u64>>,
    pub doors: BTreeMap<String, Door>,
    /// By node and an id.
    pub links: BTreeMap<(String, u64), Link>,
    /// EAs whose media ports answer.
    pub media: BTreeSet<String>,
    pub planted: super::Planted,
    /// When a node last heard a heartbeat of another: by listener and subject.
    heard: BTreeMap<(usize, String), Micros>,
    /// What was seen to be wrong while it happened.
    pub broken: Vec<String>,
    /// How often the log was repaired.
    pub repairs: u64,
    /// When each commit was first stored: a repair stores some again.
    pub first_stored: BTreeMap<CommitId, Micros>,
    /// Commits that a repair set aside.
    pub aside: Vec<Arc<Commit>>,
    /// Since when and until when a client's ICE is alive, by client.
    pub ice: BTreeMap<String, Ice>,
    /// Clients that were removed since anybody looked: room and client.
    pub expired: Vec<(String, String)>,
}

/// The ICE of one client.
#[derive(Debug, Clone, Default)]
pub(super) struct Ice {
    /// Its transports.
    pub transports: Vec<String>,
    /// When it goes silent, once that is known.
    pub ends: Option<Micros>,
}

/// What lies between the nodes. Only one thread ever has it; the lock is for the traits' sake.
pub struct World(Mutex<Inner>);

impl World {
    /// An empty world.
    pub fn new(seed: u64, chances: Chances, planted: super::Planted, text: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner {
            now: 0,
            rng: StdRng::seed_from_u64(seed),
            chances,
            counts: Counts::default(),
            trace: Sha256::new(),
            lines: text.then(Vec::new),
            next_id: 0,
            queue: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            turns: BTreeMap::new(),
            followers: BTreeMap::new(),
            nodes: Vec::new(),
            order: BTreeMap::new(),
            log: Vec::new(),
            stored: Vec::new(),
            streams: BTreeMap::new(),
            doors: BTreeMap::new(),
            links: BTreeMap::new(),
            media: BTreeSet::new(),
            planted,
            heard: BTreeMap::new(),
            broken: Vec::new(),
            repairs: 0,
            first_stored: BTreeMap::new(),
            aside: Vec::new(),
            ice: BTreeMap::new(),
            expired: Vec::new(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 32 bytes for a node's own random source.
    pub fn seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.lock().rng.fill_bytes(&mut seed);
        seed
    }

    /// Answers a call.
    pub fn answer(&self, node: &str, call: u64, status: StatusCode, body: Bytes) {
        if let Some(Link::Call(reply)) = self.lock().links.remove(&(node.to_owned(), call)) {
            let _ = reply.send((status, body));
        }
    }

    /// Moves time on and delivers what is due by then.
    pub fn advance(&self, to: Micros) {
        self.lock().advance(to);
    }
}

impl Inner {
    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn chance(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.rng.random_range(0..1_000) < thousandths
    }

    pub fn fault(&mut self, kind: &'static str) {
        *self.counts.faults.entry(kind).or_default() += 1;
    }

    pub fn count(&mut self, kind: &'static str) {
        *self.counts.events.entry(kind).or_default() += 1;
    }

    /// Puts a line into the trace.
    pub fn note(&mut self, line: impl FnOnce() -> String, data: &[u8]) {
        let line = line();
        self.trace.update(self.now.to_le_bytes());
        self.trace.update(line.as_bytes());
        self.trace.update((data.len() as u64).to_le_bytes());
        self.trace.update(data);
        if let Some(lines) = &mut self.lines {
            let short: String = Sha256::digest(data).iter().take(4).map(|b| format!("{b:02x}")).collect();
            lines.push(format!("{:>12.3} {line} {short}", self.now as f64 / S as f64));
        }
    }

    /// The name of the run so far.
    pub fn hash(&self) -> String {
        self.trace.clone().finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// How long something takes.
    pub fn delay(&mut self) -> Micros {
        if self.chance(self.chances.slow) {
            self.fault("slow");
            self.rng.random_range(QUICK..SLOW)
        } else {
            self.rng.random_range(MS..QUICK)
        }
    }

    fn push(&mut self, at: Micros, due: Due) {
        let id = self.id();
        self.queue.insert((at, id), due);
    }

    fn advance(&mut self, to: Micros) {
        while let Some(entry) = self.queue.first_entry() {
            let at = entry.key().0;
            if at > to {
                break;
            }
            let due = entry.remove();
            self.now = self.now.max(at);
            self.deliver(due);
        }
        self.now = to;
    }

    fn deliver(&mut self, due: Due) {
        match due {
            Due::Message { from, subscriber, message } => {
                let Some(to) = self.subscribers.get(&subscriber) else { return };
                let node = to.node;
                if self.nodes[node].cut {
                    return self.fault("message to a node that is cut off");
                }
                self.count("messages");
                if message.subject.as_str().starts_with("roomlog.hb.ea.") {
                    self.heard.insert((node, message.subject.to_string()), self.now);
                }
                let sender = self.subscribers[&subscriber].sender.clone();
                self.note(|| format!("msg {from}>{node} {}", message.subject), &message.payload);
                let _ = sender.try_send(message);
            }
            Due::Append { from, commit, reply } => {
                let copied = Arc::new(Commit::clone(&commit));
                let result = self.append(*commit, from);
                let Some(reply) = reply else { return };
                if self.chance(self.chances.ack_lost) {
                    self.fault("acknowledgement lost");
                    return;
                }
                let at = self.now + self.delay();
                self.push(at, Due::Acknowledged { node: from, reply, result, copied });
            }
            Due::Acknowledged { node, reply, result, copied } => {
                if self.nodes[node].cut {
                    return self.fault("acknowledgement to a node that is cut off");
                }
                if result.is_ok() && !reply.is_closed() {
                    // Synced before anybody is answered.
                    self.nodes[node].copied.push(copied.clone());
                    let at = self.place_of(&copied);
                    self.nodes[node].seen = self.nodes[node].seen.max(at);
                }
                let _ = reply.send(result);
            }
            Due::Follow { follower, sequence } => self.follow_on(follower, sequence),
        }
    }

    /// A room is opened on an EA only by who has heard it lately: a suspected one takes no part.
    fn check_asked(&mut self, from: usize, message: &Message) {
        let Some(ea) = message.subject.as_str().strip_prefix("roomlog.rpc.ea.") else { return };
        let request = Payload(message.payload.clone()).decode::<EaRequest>();
        let Ok(EaRequest::OpenRoom { room, .. }) = request else { return };
        *self.counts.checks.entry("EAs asked for a room, heard lately").or_default() += 1;
        let since = self.now.saturating_sub(SUSPECTED);
        let heard = self.heard.get(&(from, format!("roomlog.hb.ea.{ea}"))).is_some_and(|at| *at >= since);
        let registered = self.log.iter().zip(&self.stored).rev().any(|(commit, at)| {
            *at >= since
                && commit.stream.id() == ea
                && commit.events.iter().any(|event| event.kind.as_str() == "NodeRegistered")
        });
        // Who was away itself counts silence anew.
        if !heard && !registered && !self.nodes[from].in_trouble(since, self.now) {
            let line = format!(
                "{} asks {ea} for {room} at {} us, and has not heard it for {SUSPECTED} us",
                self.nodes[from].name, self.now
            );
            self.broken.push(line);
        }
    }

    /// Sends to everybody who listens; says to how many.
    pub fn publish(&mut self, from: usize, message: &Message) -> usize {
        self.check_asked(from, message);
        if self.nodes[from].unheard_until > self.now && message.subject.as_str().starts_with("roomlog.hb.") {
            self.fault("heartbeat lost");
            return 0;
        }
        let mut to = Vec::new();
        let mut groups: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (id, subscriber) in self.subscribers.iter().filter(|(_, s)| s.pattern.matches(&message.subject)) {
            match &subscriber.queue {
                Some(queue) => groups.entry(queue.clone()).or_default().push(*id),
                None => to.push(*id),
            }
        }
        for (queue, members) in groups {
            let turn = self.turns.entry(queue).or_default();
            to.push(members[*turn as usize % members.len()]);
            *turn += 1;
        }
        for subscriber in &to {
            if self.chance(self.chances.loss) {
                self.fault("message lost");
                continue;
            }
            let at = self.arrival(from, *subscriber, message);
            self.push(at, Due::Message { from, subscriber: *subscriber, message: message.clone() });
            if self.chance(self.chances.duplicate) {
                self.fault("message twice");
                let at = self.arrival(from, *subscriber, message);
                self.push(at, Due::Message { from, subscriber: *subscriber, message: message.clone() });
            }
        }
        to.len()
    }

    fn arrival(&mut self, from: usize, subscriber: u64, message: &Message) -> Micros {
        let at = self.now + self.delay();
        if message.subject.as_str().starts_with("_INBOX") {
            return at;
        }
        let last = self.order.entry((from, subscriber, message.subject.to_string())).or_default();
        *last = at.max(*last);
        *last
    }

    // ---- the log -------------------------------------------------------------------------------------------------------------

    /// Sends an append on its way.
    pub fn send_append(
        &mut self,
        from: usize,
        commit: Commit,
        reply: oneshot::Sender<Result<(), AppendError>>,
    ) {
        if self.nodes[from].cut {
            return self.fault("append of a node that is cut off");
        }
        if self.chance(self.chances.append_lost) {
            return self.fault("append lost");
        }
        let commit = Box::new(commit);
        if self.chance(self.chances.lands_late) {
            self.fault("append lands late");
            let at = self.now + self.rng.random_range(APPEND_TIMEOUT..APPEND_TIMEOUT + 3 * S);
            return self.push(at, Due::Append { from, commit, reply: None });
        }
        let at = self.now + self.delay();
        self.push(at, Due::Append { from, commit, reply: Some(reply) });
    }

    fn append(&mut self, commit: Commit, from: usize) -> Result<(), AppendError> {
        if self.nodes[from].blocked {
            return Err(AppendError::Unavailable { reason: "the log is truncated".into() });
        }
        let own = self.streams.get(&commit.stream).map_or(&[][..], Vec::as_slice);
        let head = own.last().map(|at| self.log[*at as usize - 1].head());
        let leaves = || commit.events.iter().any(|event| event.kind.as_str() == "ClientLeft");
        if self.planted.forget_leave > 0 && leaves() && self.chance(self.planted.forget_leave) {
            return Ok(());
        }
        let own = self.streams.get(&commit.stream).map_or(&[][..], Vec::as_slice);
        let fenced = commit.follows(head.as_ref());
        if !fenced {
            let mut stored = own.iter().map(|at| &self.log[*at as usize - 1]);
            if stored.any(|stored| (stored.id, stored.version) == (commit.id, commit.version)) {
                return Ok(());
            }
            if !self.planted.no_fence {
                self.note(|| format!("conflict {from} {} {}", commit.stream, commit.version), &[]);
                self.count("conflicts");
                return Err(AppendError::Conflict { stream: commit.stream, version: commit.version, head });
            }
        }
        self.count("commits");
        self.store(Arc::new(commit), from);
        Ok(())
    }

    /// Puts a commit at the end of the log and sends it to all followers.
    pub fn store(&mut self, commit: Arc<Commit>, from: usize) {
        let sequence = self.log.len() as u64 + 1;
        let bytes = commit.encode();
        self.note(|| format!("commit {from} {} {}", commit.stream, commit.version), &bytes);
        for event in commit.events.iter().filter(|event| event.kind.as_str() == "ClientLeft") {
            if let Ok(Event::ClientLeft(left)) = Event::decode(event)
                && left.reason == EXPIRED
            {
                self.expired.push((commit.stream.id().to_owned(), left.client.to_string()));
            }
        }
        self.streams.entry(commit.stream.clone()).or_default().push(sequence);
        let now = self.now;
        self.stored.push(*self.first_stored.entry(commit.id).or_insert(now));
        self.log.push(commit);
        let followers: Vec<u64> = self.followers.keys().copied().collect();
        for follower in followers {
            self.send_on(follower, sequence);
        }
    }

    /// Sends a stored commit on its way to a follower.
    pub fn send_on(&mut self, id: u64, sequence: u64) {
        let at = self.now + self.delay();
        let Some(follower) = self.followers.get_mut(&id) else { return };
        follower.last = follower.last.max(at);
        let at = follower.last;
        self.push(at, Due::Follow { follower: id, sequence });
    }

    fn follow_on(&mut self, id: u64, sequence: u64) {
        let Some(follower) = self.followers.get(&id) else { return };
        let (node, next) = (follower.node, follower.next);
        if follower.sender.is_closed() {
            self.followers.remove(&id);
            return;
        }
        // What a node that is cut off misses is sent again when it is back.
        if self.nodes[node].cut || sequence > next {
            return;
        }
        if sequence == next && sequence > 0 && self.chance(self.chances.follow_broken) {
            self.fault("follow broken");
            if let Some(follower) = self.followers.remove(&id) {
                let reason = "the consumer is gone".to_owned();
                let broken = roomlog_bus::journal::ReadError::Unavailable { reason };
                let _ = follower.sender.try_send(Followed::Broken(broken));
            }
            return;
        }
        let skip = self.planted.skip > 0 && sequence == next && self.chance(self.planted.skip);
        let lose_tail = self.planted.lose_last && sequence == self.log.len() as u64 && self.chance(100);
        let commit = (sequence == next && sequence > 0).then(|| self.log[sequence as usize - 1].clone());
        let Some(follower) = self.followers.get_mut(&id) else { return };
        if let Some(commit) = commit {
            follower.next += 1;
            let node = &mut self.nodes[node];
            node.seen = node.seen.max(sequence);
            if !(skip || lose_tail) {
                let entry = Entry { cursor: Cursor(vec![stamped(self.repairs, sequence)]), commit };
                let _ = follower.sender.try_send(Followed::Entry(entry));
            }
        }
        if !follower.caught_up && follower.next > follower.caught_up_after {
            follower.caught_up = true;
            let _ = follower.sender.try_send(Followed::CaughtUp);
        }
        self.note(|| format!("follow {node} {sequence}"), &[]);
    }

    /// Cuts a node off from bus and log.
    pub fn cut(&mut self, node: usize) {
        self.nodes[node].cut = true;
        self.note(|| format!("cut {node}"), &[]);
    }

    /// The node notices.
    pub fn knows(&mut self, node: usize) {
        self.nodes[node].knows = true;
        self.tell_connected(node, false);
    }

    /// Bus and log are back.
    pub fn heal(&mut self, node: usize) {
        self.nodes[node].cut = false;
        self.nodes[node].knows = false;
        self.note(|| format!("heal {node}"), &[]);
        self.tell_connected(node, true);
        let stalled: Vec<(u64, u64)> =
            self.followers.iter().filter(|(_, f)| f.node == node).map(|(id, f)| (*id, f.next)).collect();
        for (follower, next) in stalled {
            for sequence in next - 1..=self.log.len() as u64 {
                self.send_on(follower, sequence);
            }
        }
    }

    fn tell_connected(&mut self, node: usize, connected: bool) {
        let told = &mut self.nodes[node].connected;
        told.retain(|told| !told.is_closed());
        for told in told {
            told.send_if_modified(|was| std::mem::replace(was, connected) != connected);
        }
    }

    /// All that a node leaves behind when it is gone at once.
    pub fn forget(&mut self, node: usize) {
        self.subscribers.retain(|_, s| s.node != node);
        self.followers.retain(|_, f| f.node != node);
        self.nodes[node].connected.clear();
        self.nodes[node].running = false;
        (self.nodes[node].seen, self.nodes[node].blocked) = (0, false);
        let name = self.nodes[node].name.clone();
        self.doors.remove(&name);
        self.hang_up(&name);
        self.media.remove(&name);
    }

    /// Breaks what clients have of a node.
    pub fn hang_up(&mut self, name: &str) {
        while let Some(link) = self.links.range((name.to_owned(), 0)..=(name.to_owned(), u64::MAX)).next() {
            let key = link.0.clone();
            self.links.remove(&key);
        }
    }
}
