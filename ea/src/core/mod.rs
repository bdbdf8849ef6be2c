//! The agent's decisions: a synchronous machine that is told what happened and says what to do. No IO, no clock, no randomness.
//!
//! ```text
//!  requests (bus) ──┐                     ┌──> answers (bus)
//!  commits (journal)┼──> Core::handle ────┼──> commands to workers
//!  worker news ─────┤                     ├──> events for the node's own stream
//!  ticks ───────────┘                     └──> streams to read, notifications to ECs
//! ```
//!
//! A room is here from a worker that was taken over with it, from `OpenRoom` (provisional) or from the commit that names one of our workers, until the log ends it, until it expires
//! uncommitted, or until its worker dies. Everything a room is besides that is the fold of its stream.

mod adopt;
mod fold;
mod rpc;
mod sweep;
#[cfg(test)]
mod tests;
mod workers;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use roomlog_bus::{
    commit::{Commit, StreamId, StreamKind},
    events::{Event, NodeRegistered, Placement},
    ids::{EaId, EcId, Epoch, Incarnation, MediaEpoch, RoomId, Version, WorkerIndex},
    media::{MediaAnswer, MediaCommand, MediaError, MediaNotification, MediaObject, RoomNotification},
    rpc::{EaAnswer, EaRequest, RPC_TIMEOUT, RpcError},
    time::Timestamp,
};
use roomlog_projections::room::RoomState;

use crate::{objects::Objects, turns::Turns};

/// How long a `RoomState` request waits for its version: less than [`RPC_TIMEOUT`], so that the refusal still reaches who asked.
const STATE_WAIT: Duration = RPC_TIMEOUT.saturating_sub(Duration::from_millis(500));

/// Unanswered requests of ECs at one worker, at most; beyond it they are refused at once. A worker answers some ten thousand a second, so
/// what comes after these would have waited too long anyway. Commands that follow from the log are not counted.
const MAX_PENDING: usize = 4_096;

/// Times the core needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// What is not committed after this long is destroyed.
    pub provisional_ttl: Duration,
    /// Worker and log are compared this often.
    pub sweep_every: Duration,
}

/// What happened. `R` is whatever leads back to who asked.
#[derive(Debug)]
pub enum Input<R> {
    /// Somebody asks.
    Request {
        /// Who.
        reply: R,
        /// What.
        request: EaRequest,
    },
    /// The next commit of the journal.
    Commit(Arc<Commit>),
    /// The log was repaired: what was folded of the rooms may not be in it any more.
    Repaired,
    /// The outcome of [`Effect::Load`].
    Loaded {
        /// Room.
        room: RoomId,
        /// The commits from the version asked for to the end of the stream; none when the journal could not be read.
        commits: Option<Vec<Arc<Commit>>>,
    },
    /// A worker is ready; it gets rooms once that is in the log.
    WorkerReady {
        /// Which.
        worker: WorkerIndex,
        /// Which start of it.
        generation: u64,
    },
    /// `WorkerStarted` is in the log.
    WorkerAnnounced {
        /// Which.
        worker: WorkerIndex,
        /// Which start of it.
        generation: u64,
    },
    /// A worker is gone.
    WorkerDied {
        /// Which.
        worker: WorkerIndex,
        /// Which start of it.
        generation: u64,
        /// Exit status, signal, or `hung`.
        reason: String,
    },
    /// A worker has answered [`Effect::ToWorker`], or the command could not be given to it.
    Answered {
        /// That of the command.
        id: u64,
        /// The outcome.
        result: Result<MediaAnswer, MediaError>,
    },
    /// A worker found something out.
    Notified {
        /// Which.
        worker: WorkerIndex,
        /// Which start of it.
        generation: u64,
        /// Room.
        room: RoomId,
        /// What.
        notification: MediaNotification,
    },
    /// The node was registered again, as [`Effect::Reregister`] asked.
    Registered(Incarnation),
    /// Some time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub enum Effect<R> {
    /// Answer who asked.
    Reply {
        /// Who.
        to: R,
        /// What.
        result: Result<EaAnswer, RpcError>,
    },
    /// Give a command to a worker, in this order; report the outcome as [`Input::Answered`].
    ToWorker {
        /// Which.
        worker: WorkerIndex,
        /// Comes back with the answer.
        id: u64,
        /// Router.
        room: RoomId,
        /// What.
        command: MediaCommand,
        /// It follows from the log: if the worker does not take it, the worker must be replaced.
        must: bool,
    },
    /// Read the room's stream from this version to its end; report as [`Input::Loaded`].
    Load {
        /// Room.
        room: RoomId,
        /// First version that is missing.
        from: Version,
    },
    /// Append to the node's own stream. A `WorkerStarted` in it is reported as [`Input::WorkerAnnounced`].
    Append(Event),
    /// The log says the node is lost: register it as a new incarnation with these workers; report as [`Input::Registered`].
    Reregister(Vec<(WorkerIndex, u64)>),
    /// Tell the room's EC.
    Notify {
        /// EC.
        ec: EcId,
        /// What.
        notification: RoomNotification,
    },
    /// Another process registered under our id: end.
    Superseded(Incarnation),
}

/// Load, for the heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Rooms.
    pub rooms: u64,
    /// Clients in them.
    pub clients: u64,
    /// Takes nothing new.
    pub draining: bool,
}

/// A worker at the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Which start of it runs.
    pub generation: u64,
    /// In which start of the node it began.
    pub began: Incarnation,
    /// The rooms it holds, of a worker that runs on from an earlier process.
    pub adopted: Option<Vec<RoomId>>,
}

/// The agent's decisions.
#[derive(Debug)]
pub struct Core<R> {
    me: EaId,
    stream: StreamId,
    limits: Limits,
    /// The incarnation this process started as; it may have registered again since.
    first_incarnation: Incarnation,
    incarnation: Incarnation,
    reregistering: bool,
    draining: bool,
    /// When draining ends at the latest.
    drained_by: Option<Timestamp>,
    turns: Turns,
    /// Some workers are older than this process, and rooms may be on them that it does not know of.
    adopts: bool,
    workers: Vec<Worker>,
    rooms: BTreeMap<RoomId, Room<R>>,
    pending: BTreeMap<u64, Pending<R>>,
    next_id: u64,
    now: Duration,
    out: Vec<Effect<R>>,
}

/// A worker as the core sees it.
#[derive(Debug, Clone, Default)]
struct Worker {
    /// Which start of it runs; none while it is down.
    generation: Option<u64>,
    /// `WorkerStarted` is in the log, so rooms may be given to it.
    announced: bool,
    /// In which start of the node it began: placements of that and of later ones are on it.
    began: Incarnation,
    /// Requests of ECs it has not answered.
    pending: usize,
}

/// One room.
#[derive(Debug)]
struct Room<R> {
    /// The fold of its stream.
    fold: RoomState,
    /// The highest version that was followed; what is between the fold and this is still to be read.
    seen: Version,
    /// When the read under way began.
    loading: Option<Duration>,
    /// The log was repaired since the fold was made.
    anew: Option<Anew>,
    /// A commit of the stream does not read, so the fold cannot go on.
    stuck: bool,
    /// The highest ownership epoch a request named.
    epoch: Epoch,
    /// Its media on a worker of ours.
    held: Option<Held<R>>,
    /// Media in a later epoch, reserved while `held` still stands.
    next: Option<Reserved>,
    /// Routers of it on workers that were taken over.
    left: Vec<adopt::Left>,
    /// The log is being read for the first time because of these, or of a request that named it.
    adopting: bool,
    /// Requests that wait for that.
    deferred: Vec<(R, EaRequest)>,
    /// Who waits for a version.
    waiters: Vec<Waiter<R>>,
    next_sweep: Duration,
}

/// How far making a fold anew is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anew {
    /// The stream is still to be asked for.
    Wanted,
    /// It is being read.
    Asked,
}

/// A place on a worker, promised to an EC.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reserved {
    placement: Placement,
    media_epoch: MediaEpoch,
    /// Ownership epoch of the EC that asked.
    epoch: Epoch,
    since: Duration,
}

/// A router on a worker.
#[derive(Debug)]
struct Held<R> {
    place: Reserved,
    /// The log has named it.
    committed: bool,
    /// Clients were in while the log had it: with the last of them it ends.
    had_clients: bool,
    /// Who waits until the router is made; none once it is.
    opening: Option<Vec<R>>,
    objects: Objects,
    /// When the worker was last told to close something: an inventory that was asked for before may still have it.
    closed: Duration,
}

#[derive(Debug)]
struct Waiter<R> {
    version: Version,
    until: Duration,
    reply: R,
}

/// A command a worker has not answered.
#[derive(Debug)]
struct Pending<R> {
    worker: WorkerIndex,
    room: RoomId,
    media_epoch: MediaEpoch,
    asked: Duration,
    purpose: Purpose<R>,
}

#[derive(Debug)]
enum Purpose<R> {
    /// Make the router of a room.
    Router,
    /// Asked by an EC, with the object it makes, unless that was there before.
    Request(R, Option<MediaObject>),
    /// It follows from the log; nobody waits.
    Follow,
    /// Compare with the log.
    Sweep,
    /// Learn what a worker that was taken over holds of the room.
    Adopt,
}

impl<R> Room<R> {
    fn new(now: Duration, sweep_every: Duration) -> Self {
        Self {
            fold: RoomState::default(),
            seen: Version(0),
            loading: None,
            anew: None,
            stuck: false,
            epoch: Epoch(0),
            held: None,
            next: None,
            left: Vec::new(),
            adopting: false,
            deferred: Vec::new(),
            waiters: Vec::new(),
            next_sweep: now + sweep_every,
        }
    }

    /// Nothing here has to be kept.
    fn is_gone(&self) -> bool {
        // A room that was named by a commit is read first; only then is it known whether it is ours.
        self.held.is_none()
            && self.next.is_none()
            && self.loading.is_none()
            && !self.is_behind()
            && self.left.is_empty()
            && !self.adopting
    }

    /// The stream is known to go on where the fold ends.
    fn is_behind(&self) -> bool {
        self.anew.is_some() || self.fold.version() < self.seen && !self.stuck
    }
}

impl<R> Core<R> {
    /// The core of a node that was registered as `incarnation` with these workers, by index those that run.
    pub fn new(me: EaId, incarnation: Incarnation, limits: Limits, starts: &[Option<Start>]) -> Self {
        let workers: Vec<Worker> = starts
            .iter()
            .map(|start| match start {
                Some(Start { generation, began, .. }) => {
                    Worker { generation: Some(*generation), announced: true, began: *began, pending: 0 }
                }
                None => Worker::default(),
            })
            .collect();
        let mut core = Self {
            stream: StreamId::from(&me),
            me,
            limits,
            first_incarnation: incarnation,
            incarnation,
            reregistering: false,
            draining: false,
            drained_by: None,
            turns: Turns::new(workers.len()),
            adopts: starts.iter().flatten().any(|start| start.adopted.is_some()),
            workers,
            rooms: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_id: 1,
            now: Duration::ZERO,
            out: Vec::new(),
        };
        core.begin(starts);
        core
    }

    /// Takes what happened at `now`, on a monotonic clock, and says what to do, in order.
    pub fn handle(&mut self, now: Duration, input: Input<R>) -> Vec<Effect<R>> {
        self.now = now;
        match input {
            Input::Request { reply, request } => self.request(reply, request),
            Input::Commit(commit) => self.commit(&commit),
            Input::Repaired => self.repaired(),
            Input::Loaded { room, commits } => self.loaded(&room, commits),
            Input::WorkerReady { worker, generation } => self.worker_ready(worker, generation),
            Input::WorkerAnnounced { worker, generation } => self.worker_announced(worker, generation),
            Input::WorkerDied { worker, generation, reason } => {
                self.worker_died(worker, generation, reason);
            }
            Input::Answered { id, result } => self.answered(id, result),
            Input::Notified { worker, generation, room, notification } => {
                self.notified(worker, generation, room, notification);
            }
            Input::Registered(incarnation) => {
                self.incarnation = incarnation;
                self.reregistering = false;
                self.draining = false;
                self.drained_by = None;
            }
            Input::Tick => self.tick(),
        }
        std::mem::take(&mut self.out)
    }

    /// The incarnation the node acts as.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether the log has this start of the node, and nobody has called it lost since.
    pub fn is_registered(&self) -> bool {
        !self.reregistering
    }

    /// Whether it takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Load, for the heartbeat.
    pub fn load(&self) -> Load {
        let clients = |room: &Room<R>| {
            room.fold.clients.values().filter(|c| c.ea.as_ref().is_none_or(|ea| *ea == self.me)).count()
        };
        Load {
            rooms: self.rooms_held(),
            clients: self.rooms.values().map(clients).sum::<usize>() as u64,
            draining: self.draining,
        }
    }

    /// Whether it was told to take nothing new and has nothing left at `now`, or has been at it for as long as it was given.
    pub fn is_drained(&self, now: Timestamp) -> bool {
        self.draining && (self.rooms_held() == 0 || self.drained_by.is_some_and(|by| by <= now))
    }

    fn rooms_held(&self) -> u64 {
        let here = |r: &&Room<R>| r.held.is_some() || r.next.is_some() || !r.left.is_empty();
        self.rooms.values().filter(here).count() as u64
    }

    /// Runs `act` on a room that is taken out for the time, and puts it back unless it is gone.
    fn with_room<T>(&mut self, id: &RoomId, act: impl FnOnce(&mut Self, &mut Room<R>) -> T) -> Option<T> {
        let mut room = self.rooms.remove(id)?;
        let result = act(self, &mut room);
        if room.is_gone() {
            self.answer_waiters(id, &mut room, true);
        } else {
            self.rooms.insert(id.clone(), room);
        }
        Some(result)
    }

    fn reply(&mut self, to: R, result: Result<EaAnswer, RpcError>) {
        self.out.push(Effect::Reply { to, result });
    }

    /// Whether a placement is on a worker of ours that runs.
    fn is_live(&self, placement: &Placement) -> bool {
        placement.ea == self.me
            && self.workers.get(usize::from(placement.worker.0)).is_some_and(|w| {
                w.generation == Some(placement.generation)
                    && (w.began..=self.incarnation).contains(&placement.incarnation)
            })
    }

    /// Puts a command on its way.
    fn send(&mut self, room: &RoomId, place: &Reserved, command: MediaCommand, purpose: Purpose<R>) {
        self.send_to(room, place.placement.worker, place.media_epoch, command, purpose);
    }

    fn send_to(
        &mut self,
        room: &RoomId,
        worker: WorkerIndex,
        media_epoch: MediaEpoch,
        command: MediaCommand,
        purpose: Purpose<R>,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        let must = matches!(purpose, Purpose::Follow | Purpose::Router);
        if !must {
            self.workers[usize::from(worker.0)].pending += 1;
        }
        self.pending
            .insert(id, Pending { worker, room: room.clone(), media_epoch, asked: self.now, purpose });
        self.out.push(Effect::ToWorker { worker, id, room: room.clone(), command, must });
    }

    /// Sends commands that follow from the log and counts them as done.
    fn follow_log(&mut self, room: &RoomId, held: &mut Held<R>, commands: Vec<MediaCommand>) {
        for command in commands {
            held.objects.sent(&command, || unreachable!("only closes and changes follow from the log"));
            if matches!(command, MediaCommand::Close { .. }) {
                held.closed = self.now;
            }
            self.send(room, &held.place, command, Purpose::Follow);
        }
    }

    /// Makes a reserved place the room's media.
    fn activate(&mut self, id: &RoomId, room: &mut Room<R>, place: Reserved, first: Vec<R>) {
        // A router that was left there is this one from here on; what is on it and not in the log the next comparison closes.
        let (worker, before) = (place.placement.worker, room.left.len());
        room.left.retain(|left| left.worker != worker);
        (room.left.len()..before).for_each(|_| self.turns.close(worker));
        self.send(id, &place, MediaCommand::CreateRouter, Purpose::Router);
        room.held = Some(Held {
            place,
            committed: false,
            had_clients: false,
            opening: Some(first),
            objects: Objects::default(),
            closed: self.now,
        });
    }

    /// Destroys the room's media.
    fn drop_held(&mut self, id: &RoomId, room: &mut Room<R>, why: &str) {
        let Some(held) = room.held.take() else { return };
        tracing::info!(room = %id, worker = %held.place.placement.worker, media_epoch = %held.place.media_epoch, why, "room's media destroyed");
        for to in held.opening.into_iter().flatten() {
            self.reply(to, Err(MediaError::Unavailable { reason: why.to_owned() }.into()));
        }
        if self.is_live(&held.place.placement) {
            self.turns.close(held.place.placement.worker);
            let close = MediaCommand::Close { object: MediaObject::Router };
            self.send(id, &held.place, close, Purpose::Follow);
        }
    }

    /// Gives a reserved place back.
    fn drop_next(&mut self, room: &mut Room<R>) {
        if let Some(next) = room.next.take()
            && self.is_live(&next.placement)
        {
            self.turns.close(next.placement.worker);
        }
    }

    /// Asks for what the fold lacks, unless that is under way.
    fn load_rest(&mut self, id: &RoomId, room: &mut Room<R>) {
        // What the workers hold is known first, so that what the log has made and ended of it is told from what it never had.
        if room.loading.is_none() && room.left.iter().all(|left| left.objects.is_some()) {
            room.loading = Some(self.now);
            let from = match &mut room.anew {
                Some(anew) => {
                    *anew = Anew::Asked;
                    Version(1)
                }
                None => room.fold.version().next(),
            };
            self.out.push(Effect::Load { room: id.clone(), from });
        }
    }

    /// Answers those whose version has come, or, when the room is `gone`, all.
    fn answer_waiters(&mut self, id: &RoomId, room: &mut Room<R>, gone: bool) {
        let version = room.fold.version();
        for waiter in std::mem::take(&mut room.waiters) {
            if gone {
                let state = EaAnswer::State { version, state: serde_json::Value::Null };
                self.reply(waiter.reply, Ok(state));
            } else if waiter.version <= version {
                let state = EaAnswer::State { version, state: room.fold.to_json() };
                self.reply(waiter.reply, Ok(state));
            } else if waiter.until <= self.now {
                let reason =
                    format!("room {id} is folded up to {version} only, {} was asked for", waiter.version);
                self.reply(waiter.reply, Err(RpcError::Retry { reason }));
            } else {
                room.waiters.push(waiter);
            }
        }
    }
}
