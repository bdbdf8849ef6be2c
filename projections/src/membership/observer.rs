//! What one node hears of the others. Silence counts only while this node itself was running and connected: after an own pause or a
//! reconnect all timers restart, and what waits in the queue is read before anybody is judged.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use roomlog_bus::{
    bus::{Bus, Disconnected, Message, RequestError, respond},
    commit::{Payload, StreamId},
    ids::Incarnation,
    rpc::Heartbeat,
    subject::{Pattern, Subject},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    node::{NodePhase, NodeState},
    signal::Signal,
};

/// How often this node looks whether it was itself paused.
const TICK: Duration = Duration::from_millis(100);
/// A tick this late means that this node was paused (suspended, swapped out, starved): what others did meanwhile it cannot know.
const OWN_PAUSE: Duration = Duration::from_millis(500);
/// Two requests to which nobody listened count as two only if they were this far apart: less is one moment, such as a reconnect.
const APART: Duration = Duration::from_millis(900);

/// An answer to the question whether a node is there is waited for this long: less than a second, after which it is asked again.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_millis(900);

/// When silence means what.
#[derive(Debug, Clone, Copy)]
pub struct LivenessSettings {
    /// A node is asked whether it is there after this long without a heartbeat. 1.25 s: one is late.
    pub late_after: Duration,
    /// Suspected after this long. 3 s: three heartbeats missed.
    pub suspect_after: Duration,
    /// Lost after this long. 10 s: ten heartbeats missed.
    pub lost_after: Duration,
    /// An EA whose workers still answer is lost only after this long: 60 s. Its calls go on, and moving them would interrupt them.
    pub lost_after_with_media: Duration,
}

impl Default for LivenessSettings {
    fn default() -> Self {
        Self {
            late_after: Duration::from_millis(1_250),
            suspect_after: Duration::from_secs(3),
            lost_after: Duration::from_secs(10),
            lost_after_with_media: Duration::from_secs(60),
        }
    }
}

/// How a node is, in the order of how much may be expected of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It is there and takes work.
    Live,
    /// It is there and takes nothing new.
    Draining,
    /// Not heard for a while; what it has stays its own.
    Suspected,
    /// Gone: what it had may be given to others.
    Lost,
}

/// What a node said last, for lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastHeard {
    /// How long ago.
    pub age: Duration,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Rooms.
    pub rooms: u64,
    /// Clients.
    pub clients: u64,
    /// Takes nothing new.
    pub draining: bool,
}

/// What was last heard of a node.
#[derive(Debug, Clone)]
struct Heard {
    incarnation: Incarnation,
    /// Last heartbeat; before the first, when this start of the node was first seen in the log.
    at: Instant,
    /// A heartbeat or a registration was seen happen, not just read in an old log.
    alive: bool,
    rooms: u64,
    clients: u64,
    draining: bool,
    /// Rooms placed on it by this node since that heartbeat.
    placed: u64,
    /// Requests in a row, [`APART`] from each other, to which nobody listened.
    no_responders: u32,
    /// When the last of them was.
    no_responders_at: Option<Instant>,
    /// When its workers last answered although it did not.
    media_at: Option<Instant>,
}

impl Heard {
    fn before_the_first(incarnation: Incarnation, at: Instant, alive: bool) -> Self {
        Self {
            incarnation,
            at,
            alive,
            rooms: 0,
            clients: 0,
            draining: false,
            placed: 0,
            no_responders: 0,
            no_responders_at: None,
            media_at: None,
        }
    }
}

/// What was heard of all nodes.
pub struct Observer {
    node: StreamId,
    settings: LivenessSettings,
    heard: Mutex<BTreeMap<StreamId, Heard>>,
    /// Counts heartbeats that changed who lives.
    changed: Signal,
    started: Instant,
    /// When the listening task last had nothing more to read.
    listened: Mutex<Instant>,
}

impl Observer {
    /// Listens in the name of `node` until `stop`. What was registered before counts as suspected until it is heard.
    pub async fn start(
        node: StreamId,
        bus: Arc<dyn Bus>,
        registered: Vec<(StreamId, Incarnation)>,
        settings: LivenessSettings,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(Arc<Self>, tokio::task::JoinHandle<()>), Disconnected> {
        let mut heartbeats = bus.subscribe(Pattern::heartbeats(), None).await?;
        let mut questions = bus.subscribe(Subject::heard(&node).into(), None).await?;
        let now = Instant::now();
        let heard = registered
            .into_iter()
            .map(|(node, incarnation)| (node, Heard::before_the_first(incarnation, now, false)))
            .collect();
        let observer = Arc::new(Self {
            node,
            settings,
            heard: Mutex::new(heard),
            changed: Signal::default(),
            started: now,
            listened: Mutex::new(now),
        });
        let listening = observer.clone();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut last = Instant::now();
            let mut connected = bus.connected();
            loop {
                tokio::select! {
                    // What waits in the queue is read before silence is judged.
                    biased;
                    () = super::stopped(&mut stop) => return,
                    message = heartbeats.next() => match message {
                        Some(message) => listening.take(&Payload(message.payload)),
                        None => return,
                    },
                    question = questions.next() => match question {
                        Some(question) => {
                            let heard = Payload(question.payload.clone())
                                .decode::<StreamId>()
                                .is_ok_and(|node| listening.heard_lately(&node));
                            let _ = respond(&*bus, &question, Payload::encode(&heard).0).await;
                        }
                        None => return,
                    },
                    _ = ticks.tick() => {
                        let gap = last.elapsed();
                        let reconnected = connected.has_changed().unwrap_or(false);
                        connected.mark_unchanged();
                        if gap > OWN_PAUSE || reconnected || !*connected.borrow() {
                            if gap > OWN_PAUSE {
                                tracing::warn!(?gap, "this node was paused: silence is counted anew");
                            }
                            listening.restart_timers();
                        }
                        last = Instant::now();
                        *listening.listened.lock().unwrap_or_else(PoisonError::into_inner) = last;
                    }
                }
            }
        });
        Ok((observer, task))
    }

    /// The node in whose name it listens.
    pub fn node(&self) -> &StreamId {
        &self.node
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamId, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, payload: &Payload) {
        let beat: Heartbeat = match payload.decode() {
            Ok(beat) => beat,
            Err(error) => return tracing::debug!(%error, "a heartbeat does not read"),
        };
        let now = Instant::now();
        let mut heard = self.lock();
        let entry =
            heard.entry(beat.node).or_insert_with(|| Heard::before_the_first(beat.incarnation, now, false));
        if beat.incarnation < entry.incarnation {
            return; // of an earlier start, still in a queue
        }
        let news = !entry.alive
            || entry.incarnation != beat.incarnation
            || entry.draining != beat.draining
            || now.duration_since(entry.at) >= self.settings.suspect_after;
        *entry = Heard {
            alive: true,
            rooms: beat.rooms,
            clients: beat.clients,
            draining: beat.draining,
            ..Heard::before_the_first(beat.incarnation, now, true)
        };
        drop(heard);
        if news {
            self.changed.tell();
        }
    }

    /// Counts silence anew: this node was paused, or cut off from the bus, and cannot know what others did meanwhile.
    pub fn restart_timers(&self) {
        let now = Instant::now();
        for heard in self.lock().values_mut() {
            heard.at = now;
            heard.no_responders = 0;
            heard.no_responders_at = None;
        }
    }

    /// Now, but not later than this node is known to have listened: what was said since may wait unread.
    fn judged_at(&self) -> Instant {
        let listened = *self.listened.lock().unwrap_or_else(PoisonError::into_inner);
        Instant::now().min(listened + OWN_PAUSE)
    }

    /// How `node` is, whose fold is `state`.
    pub fn health(&self, node: &StreamId, state: &NodeState) -> Health {
        let now = self.judged_at();
        let mut heard = self.lock();
        // A registration that was seen happen is a sign of life.
        let entry = heard
            .entry(node.clone())
            .or_insert_with(|| Heard::before_the_first(state.incarnation, now, true));
        if entry.incarnation < state.incarnation {
            *entry = Heard::before_the_first(state.incarnation, now, true);
        }
        let silence = now.duration_since(entry.at);
        let settings = &self.settings;
        let media_lives = entry.media_at.is_some_and(|at| now.duration_since(at) < settings.suspect_after);
        let lost = match media_lives {
            true => silence >= settings.lost_after_with_media,
            false => silence >= settings.lost_after || entry.no_responders >= 2,
        };
        match state.phase {
            NodePhase::Unknown | NodePhase::Lost | NodePhase::Left => Health::Lost,
            _ if lost => Health::Lost,
            _ if silence >= settings.suspect_after
                || !entry.alive
                || entry.no_responders > 0
                || entry.incarnation != state.incarnation =>
            {
                Health::Suspected
            }
            NodePhase::Draining => Health::Draining,
            NodePhase::Registered if entry.draining => Health::Draining,
            NodePhase::Registered => Health::Live,
        }
    }

    /// Whether a heartbeat of `node` is late, so that it is worth asking whether it is there.
    pub fn is_late(&self, node: &StreamId) -> bool {
        let now = self.judged_at();
        self.lock().get(node).is_none_or(|entry| {
            entry.no_responders > 0 || now.duration_since(entry.at) >= self.settings.late_after
        })
    }

    /// Whether `node` was heard so lately that it is not to be called lost.
    pub fn heard_lately(&self, node: &StreamId) -> bool {
        self.last_heard(node).is_some_and(|heard| heard.age < self.settings.late_after)
            && self.lock().get(node).is_some_and(|entry| entry.no_responders == 0)
    }

    /// What `node` said last.
    pub fn last_heard(&self, node: &StreamId) -> Option<LastHeard> {
        let heard = self.lock();
        let entry = heard.get(node).filter(|entry| entry.alive)?;
        Some(LastHeard {
            age: entry.at.elapsed(),
            incarnation: entry.incarnation,
            rooms: entry.rooms,
            clients: entry.clients,
            draining: entry.draining,
        })
    }

    /// Rooms that `node` has: what it said last, and what this node gave it since.
    pub fn rooms_of(&self, node: &StreamId) -> u64 {
        self.lock().get(node).map_or(0, |entry| entry.rooms + entry.placed)
    }

    /// This node has given `node` a room.
    pub fn placed_on(&self, node: &StreamId) {
        if let Some(entry) = self.lock().get_mut(node) {
            entry.placed += 1;
        }
    }

    /// Asks `node` whether it is there, and takes note: any answer, even a refusal, is one, and that nobody listens is known at once.
    pub async fn ask(&self, bus: &dyn Bus, node: &StreamId) -> Result<Message, RequestError> {
        let asked = bus.request(Subject::rpc(node), Bytes::new(), ASK_TIMEOUT).await;
        match &asked {
            Ok(_) => self.answered(node),
            Err(RequestError::NoResponders(_)) => self.found_no_responders(node),
            Err(RequestError::Timeout { .. } | RequestError::Disconnected(_)) => {}
        }
        asked
    }

    /// A request to `node` found nobody listening. Twice in a row, with time between, is as good as ten seconds of silence.
    pub fn found_no_responders(&self, node: &StreamId) {
        let now = Instant::now();
        if let Some(entry) = self.lock().get_mut(node)
            && entry.no_responders_at.is_none_or(|at| now.duration_since(at) >= APART)
        {
            entry.no_responders += 1;
            entry.no_responders_at = Some(now);
        }
    }

    /// `node` answered a request.
    pub fn answered(&self, node: &StreamId) {
        if let Some(entry) = self.lock().get_mut(node) {
            entry.no_responders = 0;
            entry.no_responders_at = None;
        }
    }

    /// The workers of `node` answered, or did not, while it was silent itself.
    pub fn media_answered(&self, node: &StreamId, answered: bool) {
        if let Some(entry) = self.lock().get_mut(node) {
            entry.media_at = answered.then(Instant::now);
        }
    }

    /// Another node heard `node`: it is suspected here from now, not lost.
    pub fn heard_elsewhere(&self, node: &StreamId) {
        let suspected = Instant::now().checked_sub(self.settings.suspect_after);
        if let (Some(entry), Some(at)) = (self.lock().get_mut(node), suspected) {
            entry.at = at;
            entry.no_responders = 0;
            entry.no_responders_at = None;
        }
    }

    /// Whether this node listens too briefly to have heard everybody.
    pub fn just_started(&self) -> bool {
        self.started.elapsed() < self.settings.suspect_after
    }

    /// Tells when somebody came to life or began to drain.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
