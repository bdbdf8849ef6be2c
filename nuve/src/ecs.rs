//! Which ECs live, as this node sees it: the log says who is registered, heartbeats say who is there.
//!
//! Silence counts only while this node itself was running: after an own pause all timers restart.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use roomlog_bus::{
    bus::{Bus, Disconnected},
    commit::{Payload, StreamId, StreamKind},
    ids::{EcId, Incarnation},
    rpc::Heartbeat,
    subject::Pattern,
};
use roomlog_projections::{directory::Directory, node::NodePhase};
use tokio::{sync::watch, time::Instant};

/// How often this node looks whether it was itself paused.
const TICK: Duration = Duration::from_millis(100);
/// A tick this late means that this node was paused (suspended, swapped out, starved): what others did meanwhile it cannot know.
const OWN_PAUSE: Duration = Duration::from_millis(500);

/// Two requests to which nobody listened count as two only if they were this far apart: less is one moment, such as a reconnect.
const APART: Duration = Duration::from_millis(900);

/// How an EC is, in the order of how much may be expected of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It is there and takes rooms.
    Live,
    /// It is there and takes no new rooms.
    Draining,
    /// Not heard for a while; its rooms stay its own.
    Suspected,
    /// Gone: its rooms may be placed elsewhere.
    Lost,
}

/// One EC as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcView {
    /// Which.
    pub ec: EcId,
    /// Its current start.
    pub incarnation: Incarnation,
    /// How it is.
    pub health: Health,
    /// Rooms it holds, those placed since it last said so counted.
    pub rooms: u64,
    /// Where its WebSocket is.
    pub address: String,
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
}

/// What a node said last, for lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastHeard {
    /// How long ago.
    pub age: Duration,
    /// Rooms.
    pub rooms: u64,
    /// Clients.
    pub clients: u64,
    /// Takes nothing new.
    pub draining: bool,
}

/// What was heard of all nodes.
pub struct Ecs {
    heard: Mutex<BTreeMap<StreamId, Heard>>,
    /// Counts heartbeats that changed who lives.
    changed: watch::Sender<u64>,
    suspect_after: Duration,
    lost_after: Duration,
    started: Instant,
    /// When the listening task last had nothing more to read.
    listened: Mutex<Instant>,
}

impl Ecs {
    /// Listens to heartbeats from now on. What was registered before counts as suspected until it is heard.
    pub async fn start(
        bus: &dyn Bus,
        registered: Vec<(StreamId, Incarnation)>,
        suspect_after: Duration,
        lost_after: Duration,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(Arc<Self>, tokio::task::JoinHandle<()>), Disconnected> {
        let mut heartbeats = bus.subscribe(Pattern::heartbeats(), None).await?;
        let now = Instant::now();
        let heard = registered
            .into_iter()
            .map(|(node, incarnation)| (node, Heard::before_the_first(incarnation, now, false)))
            .collect();
        let ecs = Arc::new(Self {
            heard: Mutex::new(heard),
            changed: watch::Sender::new(0),
            suspect_after,
            lost_after,
            started: now,
            listened: Mutex::new(now),
        });
        let task = {
            let ecs = ecs.clone();
            tokio::spawn(async move {
                let mut ticks = tokio::time::interval(TICK);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                let mut last = Instant::now();
                loop {
                    tokio::select! {
                        // What waits in the queue is read before silence is judged.
                        biased;
                        () = crate::app::stopped(&mut stop) => return,
                        message = heartbeats.next() => match message {
                            Some(message) => ecs.take(&Payload(message.payload)),
                            None => return,
                        },
                        _ = ticks.tick() => {
                            let gap = last.elapsed();
                            if gap > OWN_PAUSE {
                                tracing::warn!(?gap, "this node was paused: silence is counted anew");
                                ecs.restart_timers();
                            }
                            last = Instant::now();
                            *ecs.listened.lock().unwrap_or_else(PoisonError::into_inner) = last;
                        }
                    }
                }
            })
        };
        Ok((ecs, task))
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
            || now.duration_since(entry.at) >= self.suspect_after;
        *entry = Heard {
            incarnation: beat.incarnation,
            at: now,
            alive: true,
            rooms: beat.rooms,
            clients: beat.clients,
            draining: beat.draining,
            placed: 0,
            no_responders: 0,
            no_responders_at: None,
        };
        drop(heard);
        if news {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Counts silence anew: this node was paused, or cut off from the bus, and cannot know what others did meanwhile.
    pub fn restart_timers(&self) {
        let now = Instant::now();
        for heard in self.lock().values_mut() {
            heard.at = now;
            heard.no_responders = 0;
        }
    }

    /// Now, but not later than this node is known to have listened: what was said since may wait unread.
    fn judged_at(&self) -> Instant {
        let listened = *self.listened.lock().unwrap_or_else(PoisonError::into_inner);
        Instant::now().min(listened + OWN_PAUSE)
    }

    /// Every EC that has ever registered, by id.
    pub fn view(&self, directory: &Directory) -> Vec<EcView> {
        let now = self.judged_at();
        let mut heard = self.lock();
        let mut views = Vec::new();
        for (node, state) in directory.nodes.iter().filter(|(node, _)| node.kind() == StreamKind::Ec) {
            let Ok(ec) = EcId::new(node.id()) else { continue };
            // A registration that was seen happen is a sign of life.
            let entry = heard
                .entry(node.clone())
                .or_insert_with(|| Heard::before_the_first(state.incarnation, now, true));
            if entry.incarnation < state.incarnation {
                *entry = Heard::before_the_first(state.incarnation, now, true);
            }
            let silence = now.duration_since(entry.at);
            let health = match state.phase {
                NodePhase::Unknown | NodePhase::Lost | NodePhase::Left => Health::Lost,
                NodePhase::Registered | NodePhase::Draining => {
                    if silence >= self.lost_after || entry.no_responders >= 2 {
                        Health::Lost
                    } else if silence >= self.suspect_after
                        || !entry.alive
                        || entry.no_responders > 0
                        || entry.incarnation != state.incarnation
                    {
                        Health::Suspected
                    } else if entry.draining || state.phase == NodePhase::Draining {
                        Health::Draining
                    } else {
                        Health::Live
                    }
                }
            };
            views.push(EcView {
                ec,
                incarnation: state.incarnation,
                health,
                rooms: entry.rooms + entry.placed,
                address: state.address.clone(),
            });
        }
        views
    }

    /// What `node` said last.
    pub fn last_heard(&self, node: &StreamId) -> Option<LastHeard> {
        let heard = self.lock();
        let entry = heard.get(node).filter(|entry| entry.alive)?;
        Some(LastHeard {
            age: entry.at.elapsed(),
            rooms: entry.rooms,
            clients: entry.clients,
            draining: entry.draining,
        })
    }

    /// This node has placed a room on `ec`.
    pub fn placed_on(&self, ec: &EcId) {
        if let Some(entry) = self.lock().get_mut(&StreamId::from(ec)) {
            entry.placed += 1;
        }
    }

    /// A request to `ec` found nobody listening. Twice in a row, with time between, is as good as ten seconds of silence.
    pub fn found_no_responders(&self, ec: &EcId) {
        let now = Instant::now();
        if let Some(entry) = self.lock().get_mut(&StreamId::from(ec))
            && entry.no_responders_at.is_none_or(|at| now.duration_since(at) >= APART)
        {
            entry.no_responders += 1;
            entry.no_responders_at = Some(now);
        }
    }

    /// `ec` answered a request.
    pub fn answered(&self, ec: &EcId) {
        if let Some(entry) = self.lock().get_mut(&StreamId::from(ec)) {
            entry.no_responders = 0;
            entry.no_responders_at = None;
        }
    }

    /// Another node heard `ec`: it is suspected here from now, not lost.
    pub fn heard_elsewhere(&self, ec: &EcId) {
        let suspected = Instant::now().checked_sub(self.suspect_after);
        if let (Some(entry), Some(at)) = (self.lock().get_mut(&StreamId::from(ec)), suspected) {
            entry.at = at;
        }
    }

    /// Whether this node listens too briefly to have heard everybody.
    pub fn just_started(&self) -> bool {
        self.started.elapsed() < self.suspect_after
    }

    /// Tells when somebody came to life or began to drain.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
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
        }
    }
}
