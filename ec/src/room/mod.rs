//! One room, run by one task: it decides, appends, and tells. Everything that happens to a room passes through its inbox, one by one.
//!
//! The order is always the same: ask the media side (provisionally), append, then answer. The fold of the stream is the only state;
//! sessions hold sockets and nothing that a takeover would miss.

mod asking;
mod entering;
mod expiry;
mod media;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use roomlog_bus::{
    commit::{Cause, Payload, StreamId},
    ids::{ClientId, ConsumerId, Epoch, MediaEpoch, ProducerId, RoomId, Version},
    journal::{AppendError, read_all},
    log::Draft,
    media::{MediaAnswer, MediaCommand, MediaError, MediaNotification, TransportState},
    rpc::{EaAnswer, EaRequest, RpcError, ask},
    subject::Subject,
    time::Timestamp,
    token::Claims,
};
use roomlog_projections::room::RoomState;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};

use crate::{
    Shared,
    decide::{Assignment, Command, ConsumerMade, Facts, Refusal, WantedConsumer, decide, owns},
    notify::{Told, fold_and_tell, new_consumer, peers},
    per_client::Made,
    protoo,
    requests::{self, Answer, Plan},
    rooms::Listed,
    select::room_best,
    session::{FINAL, RESTART, Seen, Session, Socket},
};

/// How often a commit is decided anew after somebody else appended first. Each try is against a newer state; an owner has few rivals.
const COMMIT_TRIES: usize = 8;
/// How many EAs are tried for a room before its first client is told that there is no media.
const EA_TRIES: usize = 3;
/// What could not be done (no EA to move to, a log that takes nothing) is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A consumer that the worker could not make just now is asked for again after this.
const CONSUME_AGAIN: Duration = Duration::from_secs(1);

/// What a client is told when it has been let in.
#[derive(Debug, Clone, PartialEq)]
pub struct Entered {
    /// Who it is.
    pub client: ClientId,
    /// The room's version then.
    pub version: Version,
    /// The room's media epoch and where it lives.
    pub media: Value,
    /// For a resume: what it missed, or the whole state.
    pub missed: Option<Value>,
}

/// How a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client closed it on purpose: it has left.
    Left,
    /// It broke: the client may resume.
    Broken,
}

/// What a room is told.
#[allow(missing_docs, reason = "each variant says it; its fields are named after what they hold")]
pub enum RoomMessage {
    /// A client with a good token.
    Admit {
        claims: Box<Claims>,
        expired: bool,
        resume_key_hash: String,
        socket: Socket,
        reply: oneshot::Sender<Result<Entered, Refusal>>,
    },
    /// A client that is back.
    Resume {
        client: ClientId,
        resume_key_hash: String,
        since: u64,
        socket: Socket,
        reply: oneshot::Sender<Result<Entered, Refusal>>,
    },
    /// A frame of an admitted client.
    Frame { client: ClientId, socket: u64, frame: protoo::Incoming },
    /// A socket is gone.
    SocketEnded { client: ClientId, socket: u64, ended: Ended },
    /// The application wants something done.
    Apply { command: Box<Command>, reply: oneshot::Sender<Result<Version, Refusal>> },
    /// Show the fold.
    State { reply: oneshot::Sender<(Version, Value)> },
    /// A worker found something out.
    Notification { media_epoch: MediaEpoch, notification: MediaNotification },
    /// Nobody has been here for long: what led to the room's state may go.
    Compact,
    /// A node changed: does the room's worker still live?
    CheckPlacement,
    /// The room may have been given to another EC.
    CheckOwner,
    /// The log has not been reached for too long: the clients are told.
    Suspended,
}

/// What came of work that was under way outside the task.
enum Done {
    Request {
        client: ClientId,
        /// [`Session::start`] when it was asked.
        start: u64,
        request: u64,
        plan: Box<Plan>,
        media: Option<Result<MediaAnswer, Refusal>>,
    },
    Consumers {
        wanted: Vec<WantedConsumer>,
        outcomes: Vec<Option<Result<ConsumerMade, String>>>,
    },
    Expiry {
        /// Clients whose time to resume is over, and who send nothing either.
        silent: Vec<ClientId>,
    },
    Inventory {
        connected: Vec<roomlog_bus::ids::TransportId>,
        failed: Vec<roomlog_bus::ids::TransportId>,
    },
}

/// The task of one room.
pub(crate) struct Room {
    shared: Arc<Shared>,
    id: RoomId,
    stream: StreamId,
    state: RoomState,
    sessions: BTreeMap<ClientId, Session>,
    work: JoinSet<Done>,
    /// Consumers being made: not to be asked for twice.
    making: BTreeSet<(ClientId, ProducerId)>,
    /// Those of them that the worker could not make just now, and when to ask again.
    failed: Vec<(ClientId, ProducerId)>,
    consume_again: Option<Instant>,
    /// Clients whose time to resume is over and whose media was asked for: when to look again.
    look_again: BTreeMap<ClientId, Instant>,
    /// Last scores the worker told, by consumer.
    scores: BTreeMap<ConsumerId, Value>,
    /// The worker is gone and no other was found yet: when to look again.
    move_again: Option<Instant>,
    next_inventory: Instant,
    /// The log did not take something that nobody waits for: when what is left undone is looked for.
    settle_again: Option<Instant>,
    /// Whose room this is could not be read: when to look again.
    check_owner_again: Option<Instant>,
    /// Set when another EC owns the room.
    lost: bool,
}

impl Room {
    /// A room that has read nothing yet.
    pub(crate) fn new(shared: Arc<Shared>, id: RoomId) -> Self {
        let next_inventory = Instant::now() + shared.settings.inventory_every;
        Self {
            stream: StreamId::from(&id),
            shared,
            id,
            state: RoomState::default(),
            sessions: BTreeMap::new(),
            work: JoinSet::new(),
            making: BTreeSet::new(),
            failed: Vec::new(),
            consume_again: None,
            look_again: BTreeMap::new(),
            scores: BTreeMap::new(),
            move_again: None,
            settle_again: None,
            next_inventory,
            check_owner_again: None,
            lost: false,
        }
    }

    /// Runs until the room is empty, deleted or another's, or this start of the EC is over.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<RoomMessage>, listed: Listed) {
        tokio::select! {
            biased;
            // In the middle of whatever it does: nobody hears the EAs for this start any more, and the next start has the room. What was
            // sent and not answered is found in the log, or by the inventory.
            _ = listed => {}
            () = self.live(&mut inbox) => {}
        }
        for (ea, _) in std::mem::take(&mut self.state.placements) {
            self.shared.eas.released(&ea, &self.id);
        }
        for (_, mut session) in std::mem::take(&mut self.sessions) {
            // Whoever is still here has not left: the room is another's now, or this node stops.
            if self.lost { session.close(FINAL, "moved") } else { session.close(RESTART, "restarting") }
        }
    }

    async fn live(&mut self, inbox: &mut mpsc::Receiver<RoomMessage>) {
        while let Err(refusal) = self.take_on().await {
            tracing::warn!(room = %self.id, %refusal, "room not taken on");
            if !matches!(refusal, Refusal::Retry(_)) {
                break;
            }
            // Without the log nothing can be said of the room, not even that it is not there: whoever asks waits.
            tokio::time::sleep(TRY_AGAIN).await;
        }
        self.let_go_if_lost();
        loop {
            if self.idle() && self.shared.rooms.retire(&self.id, inbox) {
                return;
            }
            let wake = self.next_deadline();
            tokio::select! {
                biased;
                Some(done) = self.work.join_next(), if !self.work.is_empty() => match done {
                    Ok(done) => self.finish(done).await,
                    Err(error) => tracing::error!(room = %self.id, %error, "work of a room broke off"),
                },
                message = inbox.recv() => match message {
                    Some(message) => self.handle(message).await,
                    None => return,
                },
                () = tokio::time::sleep_until(wake) => self.on_time().await,
            }
            self.follow_up().await;
        }
    }

    /// Reads the stream and, if an earlier start of this EC owned the room, takes it over.
    async fn take_on(&mut self) -> Result<(), Refusal> {
        self.catch_up().await?;
        for ea in self.state.placements.keys() {
            self.shared.eas.holds(ea, &self.id);
        }
        let facts = self.facts();
        if self.state.info.is_some() && !self.state.deleted {
            let reason = if owns(&self.state, &facts) { "ec-lost" } else { "ec-restarted" };
            self.commit(Command::Place { reason: reason.into() }, facts, Cause::of("recovery")).await?;
        }
        self.check_placement().await;
        Ok(())
    }

    /// Nobody is here and nothing is under way.
    fn idle(&self) -> bool {
        self.work.is_empty()
            && (self.lost || self.state.clients.is_empty())
            && self.sessions.values().all(|s| !s.connected() || self.lost)
    }

    /// Lets go of the room once the log names another owner.
    fn let_go_if_lost(&mut self) {
        self.lost = self.state.owner.is_some() && !owns(&self.state, &self.facts());
    }

    /// Reads whose room this is. It may be this EC's again, after this task has seen it with another.
    async fn check_owner(&mut self) -> Result<(), Refusal> {
        let owned = owns(&self.state, &self.facts());
        self.catch_up().await?;
        if !owned && owns(&self.state, &self.facts()) {
            self.take_on().await?;
        }
        self.let_go_if_lost();
        Ok(())
    }

    fn facts(&self) -> Facts {
        Facts {
            now: self.shared.log.env().now(),
            ec: self.shared.settings.id.clone(),
            incarnation: self.shared.log.writer().incarnation,
            resume_ms: self.shared.settings.resume.as_millis() as u64,
            max_clients: self.shared.settings.max_clients,
            per_client: self.shared.settings.per_client,
            assignment: None,
            consumer_type: None,
            consumers: Vec::new(),
        }
    }

    // ---- the log -----------------------------------------------------------------------------------------------------------

    /// Decides, appends, folds and tells; decides again when somebody else was first.
    async fn commit(&mut self, command: Command, facts: Facts, cause: Cause) -> Result<(), Refusal> {
        for _ in 0..COMMIT_TRIES {
            let events = decide(&self.state, &command, &facts)?;
            if events.is_empty() {
                return Ok(());
            }
            let epoch = events
                .iter()
                .find_map(|e| {
                    if let roomlog_bus::events::Event::RoomPlaced(p) = e { Some(p.epoch) } else { None }
                })
                .unwrap_or_else(|| self.state.epoch());
            #[cfg(feature = "next-version")]
            let (events, cause) = {
                let (mut events, mut cause) = (events, cause.clone());
                crate::next_version::add(&mut events, &mut cause);
                (events, cause)
            };
            let draft = Draft {
                epoch,
                cause: cause.clone(),
                command: Payload::encode(&command),
                facts: Payload::encode(&facts),
            };
            match self.shared.log.append(self.stream.clone(), self.state.head, draft, &events).await {
                Ok(commit) => {
                    self.fold(&commit)?;
                    return Ok(());
                }
                Err(AppendError::Conflict { .. }) => {
                    self.catch_up().await?;
                    if !owns(&self.state, &facts) && !matches!(command, Command::Place { .. }) {
                        self.lost = true;
                        return Err(Refusal::WrongHost);
                    }
                }
                Err(AppendError::Unknown { .. }) => {
                    self.catch_up().await?;
                    return Err(Refusal::Retry("the log did not answer in time".into()));
                }
                Err(AppendError::Invalid { reason, .. }) => return Err(Refusal::BadRequest(reason)),
                Err(AppendError::Unavailable { reason }) => return Err(Refusal::Retry(reason)),
            }
        }
        Err(Refusal::Retry("too many others write to this room".into()))
    }

    /// Folds what others have appended.
    async fn catch_up(&mut self) -> Result<(), Refusal> {
        if self.state.head.is_none() && self.adopt_folded().await? {
            return Ok(());
        }
        let next = self.state.version().next();
        let commits = read_all(self.shared.log.journal().as_ref(), &self.stream, next)
            .await
            .map_err(|error| Refusal::Retry(error.to_string()))?;
        for commit in commits {
            self.fold(&commit)?;
        }
        Ok(())
    }

    /// Begins with what this node has folded of the room while it followed the log, if the stream's leader says that the stream is there
    /// or has gone on from there; says whether that is all. Reading a room from its beginning instead takes a question for every commit,
    /// and a takeover is of thousands of rooms.
    async fn adopt_folded(&mut self) -> Result<bool, Refusal> {
        let folded = self.shared.directory.read().rooms.get(&self.id).cloned();
        let Some(folded) = folded.filter(|folded| folded.head.is_some()) else { return Ok(false) };
        let journal = self.shared.log.journal();
        let head = journal.head(&self.stream).await.map_err(|error| Refusal::Retry(error.to_string()))?;
        if head == folded.head {
            self.state = folded;
            return Ok(true);
        }
        let next = folded.version().next();
        if head.is_some_and(|head| head.version >= next) {
            let rest = read_all(journal.as_ref(), &self.stream, next).await;
            let rest = rest.map_err(|error| Refusal::Retry(error.to_string()))?;
            // One that does not follow means that the stream went another way than was followed: then it is read from its beginning.
            let mut state = folded;
            if rest.iter().all(|commit| state.apply_commit(commit).is_ok()) {
                self.state = state;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fold(&mut self, commit: &roomlog_bus::commit::Commit) -> Result<(), Refusal> {
        let before: Vec<_> = self.state.placements.keys().cloned().collect();
        let told = fold_and_tell(&mut self.state, commit).map_err(|error| {
            tracing::error!(room = %self.id, %error, "a commit does not fold");
            Refusal::Retry(error.to_string())
        })?;
        for ea in before.iter().filter(|ea| !self.state.placements.contains_key(ea)) {
            self.shared.eas.released(ea, &self.id);
        }
        for ea in self.state.placements.keys().filter(|ea| !before.contains(ea)) {
            self.shared.eas.holds(ea, &self.id);
        }
        let known = &self.state.consumers;
        self.scores.retain(|id, _| known.contains_key(id));
        self.tell(told);
        Ok(())
    }

    fn tell(&mut self, told: Vec<Told>) {
        for told in told {
            match told {
                Told::Notification { client, method, data } => {
                    if let Some(session) = self.sessions.get_mut(&client) {
                        session.send(protoo::notification(method, &data));
                    }
                }
                Told::NewConsumer { client, consumer } => self.ask_consumer(&client, &consumer),
                Told::Out { client, reason } => {
                    if let Some(mut session) = self.sessions.remove(&client) {
                        session.close(FINAL, if reason == "room-deleted" { "room closed" } else { &reason });
                    }
                }
            }
        }
    }

    fn ask_consumer(&mut self, client: &ClientId, consumer: &ConsumerId) {
        if let (Some(session), Some(data)) =
            (self.sessions.get_mut(client), new_consumer(&self.state, consumer))
        {
            session.ask_consumer(consumer.clone(), &data, Instant::now());
        }
    }

    // ---- what comes in -----------------------------------------------------------------------------------------------------

    async fn handle(&mut self, message: RoomMessage) {
        match message {
            RoomMessage::Admit { claims, expired, resume_key_hash, socket, reply } => {
                let entered = self.admit(*claims, expired, resume_key_hash, socket).await;
                let _ = reply.send(entered);
            }
            RoomMessage::Resume { client, resume_key_hash, since, socket, reply } => {
                let entered = self.resume(&client, &resume_key_hash, since, socket).await;
                let resumed = entered.is_ok();
                let _ = reply.send(entered);
                if resumed {
                    self.ask_again(&client);
                }
            }
            RoomMessage::Frame { client, socket, frame } => {
                if self.sessions.get(&client).is_some_and(|s| s.is_socket(socket)) {
                    self.frame(client, frame).await;
                }
            }
            RoomMessage::SocketEnded { client, socket, ended } => {
                let Some(session) = self.sessions.get_mut(&client).filter(|s| s.is_socket(socket)) else {
                    return;
                };
                session.detach();
                let command = match ended {
                    Ended::Left => Command::Leave { client: client.clone(), reason: "left".into() },
                    Ended::Broken => {
                        Command::Disconnect { client: client.clone(), reason: "socket broken".into() }
                    }
                };
                self.commit_or_retry(command, "socket").await;
            }
            RoomMessage::Apply { command, reply } => {
                let applied = match &*command {
                    // To a client that leaves by itself it makes no difference whether it has gone already; here somebody asks.
                    Command::Leave { client, .. } if !self.state.clients.contains_key(client) => {
                        Err(Refusal::NoClient(client.clone()))
                    }
                    _ => self.commit(*command, self.facts(), Cause::of("http")).await,
                };
                let _ = reply.send(applied.map(|()| self.state.version()));
            }
            RoomMessage::State { reply } => {
                let _ = reply.send((self.state.version(), self.state.to_json()));
            }
            RoomMessage::Notification { media_epoch, notification } => {
                if media_epoch == self.state.media_epoch {
                    self.notified(notification).await;
                }
            }
            RoomMessage::Compact => self.compact().await,
            RoomMessage::CheckPlacement => self.check_placement().await,
            RoomMessage::CheckOwner => match self.check_owner().await {
                Ok(()) => {}
                Err(refusal) => {
                    tracing::warn!(room = %self.id, %refusal, "whose room this is cannot be read now");
                    self.check_owner_again = Some(Instant::now() + TRY_AGAIN);
                }
            },
            RoomMessage::Suspended => {
                for session in self.sessions.values_mut() {
                    session.send(protoo::notification("suspended", &json!({})));
                }
            }
        }
    }

    /// Appends a snapshot and purges what is below it.
    async fn compact(&mut self) {
        let (facts, before) = (self.facts(), self.state.compacted);
        let now = facts.now;
        let compacted = self.commit(Command::Compact, facts, Cause::of("retention")).await;
        let purged = match compacted {
            Err(refusal) => Err(refusal.to_string()),
            Ok(()) if self.state.compacted == before => return,
            Ok(()) => {
                let purged = self.shared.retention.compact(&self.id, self.state.compacted, now).await;
                purged.map_err(|error| error.to_string())
            }
        };
        if let Err(error) = purged {
            tracing::warn!(room = %self.id, error, "room not compacted");
        }
    }

    /// Commits something that nobody waits for. If the log takes nothing now, [`Self::settle`] and the inventory come back to it.
    async fn commit_or_retry(&mut self, command: Command, cause: &str) {
        if let Err(refusal) = self.commit(command.clone(), self.facts(), Cause::of(cause)).await {
            tracing::debug!(room = %self.id, ?command, %refusal, "not committed");
            if matches!(refusal, Refusal::Retry(_)) {
                self.settle_again = Some(Instant::now() + TRY_AGAIN);
            }
        }
    }

    /// What the log did not take when it happened: clients without a socket that are not known to be away, and those whose time ran out.
    async fn settle(&mut self) {
        self.settle_again = None;
        let without: Vec<ClientId> = self
            .state
            .clients
            .iter()
            .filter(|(id, c)| {
                c.resume_until.is_none() && !self.sessions.get(*id).is_some_and(Session::connected)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for client in without {
            self.commit_or_retry(Command::Disconnect { client, reason: "socket gone".into() }, "timer").await;
        }
        self.expire().await;
    }

    // ---- time --------------------------------------------------------------------------------------------------------------

    fn next_deadline(&self) -> Instant {
        let now = self.shared.log.env().now();
        // A log that took nothing a moment ago is not asked without a pause.
        let resume = self.next_expiry(now).map(|due| self.settle_again.map_or(due, |again| due.max(again)));
        let ask = self
            .sessions
            .values()
            .filter_map(Session::oldest_ask)
            .min()
            .map(|at| at + self.shared.settings.accept_timeout);
        [resume, ask, self.move_again, self.consume_again, self.settle_again, self.check_owner_again]
            .into_iter()
            .flatten()
            .fold(self.next_inventory, Instant::min)
    }

    async fn on_time(&mut self) {
        if self.settle_again.is_none_or(|at| at <= Instant::now()) {
            self.settle().await;
        }
        let Some(before) = Instant::now().checked_sub(self.shared.settings.accept_timeout) else { return };
        let late: Vec<(ClientId, ConsumerId)> = self
            .sessions
            .iter_mut()
            .flat_map(|(client, session)| {
                session.overdue(before).into_iter().map(|c| (client.clone(), c)).collect::<Vec<_>>()
            })
            .collect();
        for (client, consumer) in late {
            self.refused(client, consumer, "no answer".into()).await;
        }
        if self.move_again.is_some_and(|at| at <= Instant::now()) {
            self.check_placement().await;
        }
        if self.check_owner_again.is_some_and(|at| at <= Instant::now()) {
            self.check_owner_again = None;
            Box::pin(self.handle(RoomMessage::CheckOwner)).await;
        }
        if self.consume_again.is_some_and(|at| at <= Instant::now()) {
            self.consume_again = None;
            for key in std::mem::take(&mut self.failed) {
                self.making.remove(&key);
            }
        }
        if self.next_inventory <= Instant::now() {
            self.next_inventory = Instant::now() + self.shared.settings.inventory_every;
            self.compare_inventory();
        }
    }
}
