//! One room, run by one task: it decides, appends, and tells. Everything that happens to a room passes through its inbox, one by one.
//!
//! The order is always the same: ask the media side (provisionally), append, then answer. The fold of the stream is the only state;
//! sessions hold sockets and nothing that a takeover would miss.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
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
    token::Claims,
};
use roomlog_projections::room::RoomState;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    Shared,
    decide::{Assignment, Command, ConsumerMade, Facts, Refusal, WantedConsumer, decide, owns},
    notify::{Told, fold_and_tell, new_consumer, peers},
    protoo,
    requests::{self, Answer, Plan},
    select::room_best,
    session::{FINAL, RESTART, Seen, Session, Socket},
};

/// How often a commit is decided anew after somebody else appended first. Each try is against a newer state; an owner has few rivals.
const COMMIT_TRIES: usize = 8;
/// How many EAs are tried for a room before its first client is told that there is no media.
const EA_TRIES: usize = 3;
/// A room that found no EA to move to looks again after this.
const MOVE_AGAIN: Duration = Duration::from_secs(1);

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
    /// Put a client out.
    Remove { client: ClientId, reason: String, reply: oneshot::Sender<Result<Version, Refusal>> },
    /// Delete the room.
    Delete { reason: String, reply: oneshot::Sender<Result<Version, Refusal>> },
    /// Show the fold.
    State { reply: oneshot::Sender<(Version, Value)> },
    /// A worker found something out.
    Notification { media_epoch: MediaEpoch, notification: MediaNotification },
    /// A node changed: does the room's worker still live?
    CheckPlacement,
}

/// What came of work that was under way outside the task.
enum Done {
    Request { client: ClientId, request: u64, plan: Box<Plan>, media: Option<Result<MediaAnswer, Refusal>> },
    Consumers { wanted: Vec<WantedConsumer>, outcomes: Vec<Option<Result<ConsumerMade, String>>> },
    Inventory { connected: Vec<roomlog_bus::ids::TransportId>, failed: Vec<roomlog_bus::ids::TransportId> },
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
    /// Last scores the worker told, by consumer.
    scores: BTreeMap<ConsumerId, Value>,
    /// The worker is gone and no other was found yet: when to look again.
    move_again: Option<Instant>,
    next_inventory: Instant,
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
            scores: BTreeMap::new(),
            move_again: None,
            next_inventory,
            lost: false,
        }
    }

    /// Runs until the room is empty, deleted or another's.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<RoomMessage>) {
        if let Err(refusal) = self.take_on().await {
            tracing::debug!(room = %self.id, %refusal, "room not taken on");
        }
        loop {
            if self.idle() && self.shared.rooms.retire(&self.id, &mut inbox) {
                break;
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
                    None => break,
                },
                () = tokio::time::sleep_until(wake.into()) => self.on_time().await,
            }
            self.follow_up().await;
        }
        for (ea, _) in std::mem::take(&mut self.state.placements) {
            self.shared.eas.released(&ea, &self.id);
        }
        for (_, mut session) in std::mem::take(&mut self.sessions) {
            // Whoever is still here has not left: the room is another's now, or this node stops.
            if self.lost { session.close(FINAL, "moved") } else { session.close(RESTART, "restarting") }
        }
    }

    /// Reads the stream and, if an earlier start of this EC owned the room, takes it over.
    async fn take_on(&mut self) -> Result<(), Refusal> {
        self.catch_up().await?;
        for ea in self.state.placements.keys() {
            self.shared.eas.holds(ea, &self.id);
        }
        let facts = self.facts();
        if self.state.info.is_some() && !self.state.deleted && !owns(&self.state, &facts) {
            self.commit(Command::Place { reason: "ec-restarted".into() }, facts, Cause::of("recovery"))
                .await?;
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

    fn facts(&self) -> Facts {
        Facts {
            now: self.shared.log.env().now(),
            ec: self.shared.settings.id.clone(),
            incarnation: self.shared.log.writer().incarnation,
            resume_ms: self.shared.settings.resume.as_millis() as u64,
            max_clients: self.shared.settings.max_clients,
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
        let next = self.state.version().next();
        let commits = read_all(self.shared.log.journal().as_ref(), &self.stream, next)
            .await
            .map_err(|error| Refusal::Retry(error.to_string()))?;
        for commit in commits {
            self.fold(&commit)?;
        }
        Ok(())
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
            RoomMessage::Remove { client, reason, reply } => {
                let removed = if self.state.clients.contains_key(&client) {
                    self.commit(Command::Leave { client, reason }, self.facts(), Cause::of("http")).await
                } else {
                    Err(Refusal::NoClient(client))
                };
                let _ = reply.send(removed.map(|()| self.state.version()));
            }
            RoomMessage::Delete { reason, reply } => {
                let deleted = self.commit(Command::Delete { reason }, self.facts(), Cause::of("http")).await;
                let _ = reply.send(deleted.map(|()| self.state.version()));
            }
            RoomMessage::State { reply } => {
                let _ = reply.send((self.state.version(), self.state.to_json()));
            }
            RoomMessage::Notification { media_epoch, notification } => {
                if media_epoch == self.state.media_epoch {
                    self.notified(notification).await;
                }
            }
            RoomMessage::CheckPlacement => self.check_placement().await,
        }
    }

    async fn admit(
        &mut self,
        claims: Claims,
        expired: bool,
        resume_key_hash: String,
        socket: Socket,
    ) -> Result<Entered, Refusal> {
        let client = claims.client.clone();
        if self.state.admitted_by(&claims.jti).is_some() {
            self.commit(Command::Reattach { client: client.clone() }, self.facts(), Cause::of("request"))
                .await?;
            let session = self.sessions.entry(client.clone()).or_default();
            session.attach(socket);
            session.start_over();
            return Ok(self.entered(client, None));
        }
        if expired {
            let spent = self.state.spent_tokens.contains_key(&claims.jti);
            return Err(if spent { Refusal::UsedToken } else { Refusal::TokenEnded });
        }
        let mut facts = self.facts();
        let assigned = if self.state.placements.is_empty()
            && self.state.info.is_some()
            && !self.state.deleted
            && owns(&self.state, &facts)
        {
            Some(self.assign().await.ok_or(Refusal::NoMedia)?)
        } else {
            None
        };
        facts.assignment = assigned.clone();
        let command = Command::Admit {
            client: client.clone(),
            user: claims.sub,
            role: claims.role,
            addr: socket.addr.clone(),
            token: claims.jti,
            token_expires: roomlog_bus::time::Timestamp(claims.exp.saturating_mul(1_000_000)),
            resume_key_hash,
        };
        let committed =
            self.commit(command, facts, Cause { client: Some(client.clone()), ..Cause::of("request") }).await;
        if let (Err(_), Some(assignment)) = (&committed, assigned) {
            self.shared.eas.released(&assignment.placement.ea, &self.id);
        }
        committed?;
        self.sessions.entry(client.clone()).or_default().attach(socket);
        Ok(self.entered(client, None))
    }

    async fn resume(
        &mut self,
        client: &ClientId,
        key_hash: &str,
        since: u64,
        socket: Socket,
    ) -> Result<Entered, Refusal> {
        let known = self.state.clients.get(client).ok_or_else(|| Refusal::NoClient(client.clone()))?;
        if known.resume_key_hash != key_hash {
            return Err(Refusal::UsedToken);
        }
        self.commit(
            Command::Resume { client: client.clone() },
            self.facts(),
            Cause { client: Some(client.clone()), ..Cause::of("request") },
        )
        .await?;
        let missed = self.missed(client, since).await?;
        self.sessions.entry(client.clone()).or_default().attach(socket);
        Ok(self.entered(client.clone(), Some(missed)))
    }

    /// What `client` was not told after `since`: the notifications, or the whole state where they cannot be had.
    async fn missed(&self, client: &ClientId, since: u64) -> Result<Value, Refusal> {
        let all = json!({ "state": { "peers": peers(&self.state, client) } });
        if since == 0 || since > self.state.version().0 {
            return Ok(all);
        }
        let commits = read_all(self.shared.log.journal().as_ref(), &self.stream, Version(1))
            .await
            .map_err(|error| Refusal::Retry(error.to_string()))?;
        let mut state = RoomState::default();
        let mut events = Vec::new();
        for commit in commits.iter().take_while(|c| c.version <= self.state.version()) {
            let Ok(told) = fold_and_tell(&mut state, commit) else { return Ok(all) };
            for told in told {
                if let Told::Notification { client: to, method, data } = told
                    && &to == client
                    && data["v"].as_u64().is_some_and(|v| v > since)
                {
                    events.push(json!({ "method": method, "data": data }));
                }
            }
        }
        Ok(json!({ "events": events }))
    }

    fn entered(&self, client: ClientId, missed: Option<Value>) -> Entered {
        let placement = self.state.placements.values().next();
        let media = json!({
            "ea": placement.map(|p| &p.ea),
            "worker": placement.map(|p| p.worker),
            "mediaEpoch": self.state.media_epoch,
        });
        Entered { client, version: self.state.version(), media, missed }
    }

    /// Asks `client` about the consumers that it has not accepted.
    fn ask_again(&mut self, client: &ClientId) {
        let open: Vec<ConsumerId> = self
            .state
            .consumers
            .iter()
            .filter(|(_, c)| &c.client == client && !c.accepted)
            .map(|(id, _)| id.clone())
            .collect();
        for consumer in open {
            if !self.sessions.get(client).is_some_and(|s| s.is_asked(&consumer)) {
                self.ask_consumer(client, &consumer);
            }
        }
    }

    async fn frame(&mut self, client: ClientId, frame: protoo::Incoming) {
        match frame {
            protoo::Incoming::Notification => {}
            protoo::Incoming::Request { id, method, data } => self.request(client, id, &method, data),
            protoo::Incoming::Response { id, result } => {
                let Some(consumer) = self.sessions.get_mut(&client).and_then(|s| s.answered_ask(id)) else {
                    return;
                };
                match result {
                    Ok(_) => self.accepted(client, consumer, id).await,
                    Err((code, reason)) => self.refused(client, consumer, format!("{code} {reason}")).await,
                }
            }
        }
    }

    async fn accepted(&mut self, client: ClientId, consumer: ConsumerId, request: u64) {
        let cause = Cause { client: Some(client.clone()), request: Some(request), ..Cause::of("request") };
        let command = Command::ResumeConsumer { client: client.clone(), consumer: consumer.clone() };
        if let Err(refusal) = self.commit(command, self.facts(), cause).await {
            tracing::debug!(room = %self.id, %client, %consumer, %refusal, "consumer not resumed");
            return;
        }
        if let (Some(session), Some(c)) =
            (self.sessions.get_mut(&client), self.state.consumers.get(&consumer))
        {
            // Until the worker has counted packets a stream is presumed good, 10 of 10, as mediasoup's clients expect.
            let streams =
                self.state.producers.get(&c.producer).map_or(1, |p| p.rtp_parameters.encodings.len().max(1));
            let presumed =
                || json!({ "score": 10, "producerScore": 10, "producerScores": vec![10; streams] });
            let score = self.scores.get(&consumer).cloned().unwrap_or_else(presumed);
            session.send(protoo::notification(
                "consumerScore",
                &json!({ "consumerId": consumer, "score": score }),
            ));
        }
    }

    async fn refused(&mut self, client: ClientId, consumer: ConsumerId, reason: String) {
        self.commit_or_retry(Command::RefuseConsumer { client, consumer, reason }, "request").await;
    }

    /// A client's request: planned now, carried out outside, finished in [`Self::finish`].
    fn request(&mut self, client: ClientId, id: u64, method: &str, data: Value) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        match session.seen(id) {
            Seen::New => {}
            Seen::UnderWay => return,
            Seen::Answered(text) => return session.send(text.to_string()),
            Seen::TooMany => {
                // Not kept as its answer: asked again, it may be worked on.
                let refusal = Refusal::Retry("this client has too many requests under way".into());
                session.send(protoo::error(id, refusal.code(), &refusal.to_string()));
                return self.shared.metrics.refused(refusal.code());
            }
        }
        let env = self.shared.log.env().clone();
        let mut fresh = || env.draw(|rng| roomlog_bus::ids::random_token(rng, 16));
        match requests::plan(&self.state, &client, method, data, &mut fresh) {
            Err(refusal) => self.answer(&client, id, Err(refusal)),
            Ok(plan) => {
                let media = plan.media.clone().map(|command| self.ask_media(Some(client.clone()), command));
                self.work.spawn(async move {
                    let media = match media {
                        Some(asked) => Some(asked.await),
                        None => None,
                    };
                    Done::Request { client, request: id, plan: Box::new(plan), media }
                });
            }
        }
    }

    async fn finish(&mut self, done: Done) {
        match done {
            Done::Request { client, request, plan, media } => {
                let result = self.finish_request(&client, request, *plan, media).await;
                self.answer(&client, request, result);
            }
            Done::Consumers { wanted, outcomes } => {
                let (mut kept, mut consumers) = (Vec::new(), Vec::new());
                for (want, outcome) in wanted.into_iter().zip(outcomes) {
                    let key = (want.client.clone(), want.producer.clone());
                    match outcome {
                        Some(outcome) => {
                            self.making.remove(&key);
                            kept.push(want);
                            consumers.push(outcome);
                        }
                        None => {
                            self.failed.push(key);
                            self.consume_again = Some(Instant::now() + CONSUME_AGAIN);
                        }
                    }
                }
                let facts = Facts { consumers, ..self.facts() };
                if let Err(refusal) = self
                    .commit(Command::AddConsumers { wanted: kept }, facts, Cause::of("notification"))
                    .await
                {
                    tracing::debug!(room = %self.id, %refusal, "consumers not added");
                }
            }
            Done::Inventory { connected, failed } => {
                for transport in connected {
                    self.commit_or_retry(Command::TransportConnected { transport }, "inventory").await;
                }
                for transport in failed {
                    let reason = "not on the worker any more".into();
                    self.commit_or_retry(Command::CloseTransport { transport, reason }, "inventory").await;
                }
            }
        }
    }

    async fn finish_request(
        &mut self,
        client: &ClientId,
        request: u64,
        plan: Plan,
        media: Option<Result<MediaAnswer, Refusal>>,
    ) -> Result<Value, Refusal> {
        let answer = media.transpose()?;
        if let Some(command) = plan.command {
            let mut facts = self.facts();
            if let Some(MediaAnswer::Producer { consumer_type }) = &answer {
                facts.consumer_type = Some(*consumer_type);
            }
            let cause =
                Cause { client: Some(client.clone()), request: Some(request), ..Cause::of("request") };
            self.commit(command, facts, cause).await?;
        }
        Ok(match (plan.answer, answer) {
            (Answer::Empty, _) => json!({}),
            (Answer::Id(id), _) => json!({ "id": id }),
            (Answer::Peers, _) => json!({ "peers": peers(&self.state, client), "v": self.state.version() }),
            (Answer::Media, Some(answer)) => media_json(plan.media.as_ref(), answer),
            (Answer::Media, None) => json!({}),
        })
    }

    fn answer(&mut self, client: &ClientId, id: u64, result: Result<Value, Refusal>) {
        let keep = self.shared.settings.stored_answers;
        let Some(session) = self.sessions.get_mut(client) else { return };
        let text = match result {
            Ok(data) => protoo::ok(id, &data),
            Err(refusal) => {
                self.shared.metrics.refused(refusal.code());
                protoo::error(id, refusal.code(), &refusal.to_string())
            }
        };
        session.answer(id, text, keep);
    }

    async fn notified(&mut self, notification: MediaNotification) {
        match notification {
            MediaNotification::TransportState { transport, state } => {
                let Some(owner) = self.state.transports.get(&transport).map(|t| t.client.clone()) else {
                    return;
                };
                match state {
                    TransportState::Connected => {
                        self.commit_or_retry(Command::TransportConnected { transport }, "notification").await;
                    }
                    TransportState::Disconnected
                        if !self.sessions.get(&owner).is_some_and(Session::connected) =>
                    {
                        self.commit_or_retry(
                            Command::Leave { client: owner, reason: "ice-lost".into() },
                            "notification",
                        )
                        .await;
                    }
                    TransportState::Failed => {
                        let reason = "dtls failed or closed".into();
                        self.commit_or_retry(Command::CloseTransport { transport, reason }, "notification")
                            .await;
                    }
                    TransportState::New | TransportState::Connecting | TransportState::Disconnected => {}
                }
            }
            MediaNotification::ProducerScore { producer, score } => {
                let to = self.state.producers.get(&producer).map(|p| p.client.clone());
                self.inform(to, "producerScore", json!({ "producerId": producer, "score": score }));
            }
            MediaNotification::ConsumerScore { consumer, score } => {
                let to = self.state.consumers.get(&consumer).map(|c| c.client.clone());
                if to.is_some() {
                    self.scores.insert(consumer.clone(), score.clone());
                }
                self.inform(to, "consumerScore", json!({ "consumerId": consumer, "score": score }));
            }
            MediaNotification::ConsumerLayers { consumer, layers } => {
                let to = self.state.consumers.get(&consumer).map(|c| c.client.clone());
                let data = json!({
                    "consumerId": consumer,
                    "spatialLayer": layers.map(|l| l.spatial_layer),
                    "temporalLayer": layers.and_then(|l| l.temporal_layer),
                });
                self.inform(to, "consumerLayersChanged", data);
            }
            MediaNotification::ActiveSpeaker { producer, volume } => {
                let peer = producer.and_then(|p| self.state.producers.get(&p)).map(|p| p.client.clone());
                let everybody: Vec<ClientId> = self
                    .state
                    .clients
                    .iter()
                    .filter(|(_, c)| c.joined.is_some())
                    .map(|(id, _)| id.clone())
                    .collect();
                for client in everybody {
                    self.inform(Some(client), "activeSpeaker", json!({ "peerId": peer, "volume": volume }));
                }
            }
        }
    }

    /// Tells a client something that is not in the log, and so has no version.
    fn inform(&mut self, client: Option<ClientId>, method: &str, data: Value) {
        if let Some(session) = client.and_then(|c| self.sessions.get_mut(&c)) {
            session.send(protoo::notification(method, &data));
        }
    }

    /// Commits something that nobody waits for. If the log takes nothing now, the timers and the inventory come back to it.
    async fn commit_or_retry(&mut self, command: Command, cause: &str) {
        if let Err(refusal) = self.commit(command.clone(), self.facts(), Cause::of(cause)).await {
            tracing::debug!(room = %self.id, ?command, %refusal, "not committed");
        }
    }

    // ---- the media side ----------------------------------------------------------------------------------------------------

    /// A request to the room's worker, to be awaited elsewhere.
    fn ask_media(
        &self,
        client: Option<ClientId>,
        command: MediaCommand,
    ) -> impl Future<Output = Result<MediaAnswer, Refusal>> + Send + 'static {
        let placement = self.state.placements.values().next().cloned();
        let request = EaRequest::Media {
            room: self.id.clone(),
            epoch: self.state.epoch(),
            media_epoch: self.state.media_epoch,
            client,
            command,
        };
        let shared = self.shared.clone();
        async move {
            let placement = placement.ok_or(Refusal::NoMedia)?;
            let subject = Subject::rpc(&StreamId::from(&placement.ea));
            match ask::<_, EaAnswer>(shared.bus.as_ref(), subject, &request, shared.settings.rpc_timeout)
                .await
            {
                Ok(EaAnswer::Media { answer }) => Ok(answer),
                Ok(other) => Err(Refusal::MediaFailed(format!("unexpected answer {other:?}"))),
                Err(error) => Err(media_refusal(error)),
            }
        }
    }

    /// Finds a worker for the room in its next media epoch.
    async fn assign(&self) -> Option<Assignment> {
        let media_epoch = self.state.media_epoch.next();
        for _ in 0..EA_TRIES {
            let (ea, candidates) = self.shared.eas.pick(&self.id, Instant::now(), |views| {
                let choice = room_best::choose(views);
                (choice.ea, choice.candidates)
            });
            let ea = ea?;
            match self.open_on(&ea, self.state.epoch(), media_epoch).await {
                Ok((placement, rooms)) => {
                    self.shared.eas.reported(&ea, rooms, Instant::now());
                    return Some(Assignment { placement, media_epoch, candidates });
                }
                Err(error) => {
                    tracing::warn!(room = %self.id, %ea, %error, "an EA did not take the room");
                    self.shared.eas.released(&ea, &self.id);
                    if matches!(error, RpcError::Unreachable { .. }) {
                        self.shared.eas.unanswering(&ea);
                    }
                }
            }
        }
        None
    }

    async fn open_on(
        &self,
        ea: &roomlog_bus::ids::EaId,
        epoch: Epoch,
        media_epoch: MediaEpoch,
    ) -> Result<(roomlog_bus::events::Placement, u64), RpcError> {
        let request = EaRequest::OpenRoom { room: self.id.clone(), epoch, media_epoch };
        let subject = Subject::rpc(&StreamId::from(ea));
        match ask::<_, EaAnswer>(
            self.shared.bus.as_ref(),
            subject,
            &request,
            self.shared.settings.rpc_timeout,
        )
        .await?
        {
            EaAnswer::Opened { placement, rooms } => Ok((placement, rooms)),
            other => Err(RpcError::Malformed { reason: format!("unexpected answer {other:?}") }),
        }
    }

    /// Moves the media if the worker that carries it is not the one that was assigned any more.
    async fn check_placement(&mut self) {
        self.move_again = None;
        if self.lost || !owns(&self.state, &self.facts()) {
            return;
        }
        let Some(placement) = self.state.placements.values().next().cloned() else { return };
        let Some(reason) = self.shared.gone(&placement) else { return };
        match self.assign().await {
            Some(assignment) => {
                let facts = Facts { assignment: Some(assignment.clone()), ..self.facts() };
                if let Err(refusal) = self
                    .commit(Command::MoveMedia { reason: reason.into() }, facts, Cause::of("recovery"))
                    .await
                {
                    tracing::warn!(room = %self.id, %refusal, "media not moved");
                    self.move_again = Some(Instant::now() + MOVE_AGAIN);
                }
            }
            None => {
                tracing::warn!(room = %self.id, reason, "no EA can take over the room's media; looking again soon");
                self.move_again = Some(Instant::now() + MOVE_AGAIN);
            }
        }
    }

    // ---- time --------------------------------------------------------------------------------------------------------------

    fn next_deadline(&self) -> Instant {
        let now = self.shared.log.env().now();
        let resume = self
            .state
            .clients
            .values()
            .filter_map(|c| c.resume_until)
            .min()
            // A millisecond more, since the log's clock counts in microseconds and the deadline must have passed.
            .map(|until| Instant::now() + Duration::from_millis(until.millis_since(now) + 1));
        let ask = self
            .sessions
            .values()
            .filter_map(Session::oldest_ask)
            .min()
            .map(|at| at + self.shared.settings.accept_timeout);
        [resume, ask, self.move_again, self.consume_again]
            .into_iter()
            .flatten()
            .fold(self.next_inventory, Instant::min)
    }

    async fn on_time(&mut self) {
        let now = self.shared.log.env().now();
        let due: Vec<ClientId> = self
            .state
            .clients
            .iter()
            .filter(|(_, c)| c.resume_until.is_some_and(|until| until <= now))
            .map(|(id, _)| id.clone())
            .collect();
        if !due.is_empty() {
            let expired =
                self.commit(Command::Expire { clients: due }, self.facts(), Cause::of("timer")).await;
            if let Err(refusal) = expired {
                tracing::warn!(room = %self.id, %refusal, "clients whose time ran out are not gone yet");
                tokio::time::sleep(MOVE_AGAIN).await;
            }
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

    /// Asks the worker what it holds; what it does not hold any more is closed, what has connected meanwhile is noted.
    fn compare_inventory(&mut self) {
        if self.state.placements.is_empty() || !owns(&self.state, &self.facts()) {
            return;
        }
        let asked = self.ask_media(None, MediaCommand::Inventory);
        let known: BTreeMap<_, _> =
            self.state.transports.iter().map(|(id, t)| (id.clone(), t.connected)).collect();
        self.work.spawn(async move {
            let Ok(MediaAnswer::Inventory { inventory }) = asked.await else {
                return Done::Inventory { connected: Vec::new(), failed: Vec::new() };
            };
            let there: BTreeMap<_, _> = inventory.transports.into_iter().map(|t| (t.id, t.state)).collect();
            let connected = known
                .iter()
                .filter(|(id, connected)| !**connected && there.get(id) == Some(&TransportState::Connected))
                .map(|(id, _)| id.clone())
                .collect();
            let failed = known
                .keys()
                .filter(|id| there.get(id).is_none_or(|state| *state == TransportState::Failed))
                .cloned()
                .collect();
            Done::Inventory { connected, failed }
        });
    }

    /// After everything: make the consumers that should be.
    async fn follow_up(&mut self) {
        if self.lost || self.move_again.is_some() {
            return;
        }
        let env = self.shared.log.env().clone();
        let wanted: Vec<WantedConsumer> = self
            .state
            .missing_consumers()
            .into_iter()
            .filter(|(client, _, producer)| self.making.insert((client.clone(), producer.clone())))
            .map(|(client, transport, producer)| WantedConsumer {
                consumer: env.draw(|rng| ConsumerId::random(rng)),
                client,
                transport,
                producer,
            })
            .collect();
        if wanted.is_empty() {
            return;
        }
        let asked: Vec<_> = wanted
            .iter()
            .map(|want| {
                let rtp_capabilities = self.state.clients[&want.client]
                    .joined
                    .as_ref()
                    .and_then(|j| j.rtp_capabilities.clone())
                    .unwrap_or_default();
                let command = MediaCommand::Consume {
                    transport: want.transport.clone(),
                    consumer: want.consumer.clone(),
                    producer: want.producer.clone(),
                    rtp_capabilities,
                };
                self.ask_media(Some(want.client.clone()), command)
            })
            .collect();
        self.work.spawn(async move {
            let outcomes = join_all(asked).await.into_iter().map(outcome_of_consume).collect();
            Done::Consumers { wanted, outcomes }
        });
    }
}

/// A consumer that was made, one that cannot be, or nothing to keep: the worker was away or the object gone, and it is tried anew
/// when something changes.
fn outcome_of_consume(result: Result<MediaAnswer, Refusal>) -> Option<Result<ConsumerMade, String>> {
    match result {
        Ok(MediaAnswer::Consumer { kind, rtp_parameters, consumer_type }) => {
            Some(Ok(ConsumerMade { kind, rtp_parameters, consumer_type }))
        }
        Ok(other) => Some(Err(format!("unexpected answer {other:?}"))),
        Err(Refusal::WrongState(reason)) => Some(Err(reason)),
        Err(_) => None,
    }
}

/// What a media error means to the client.
fn media_refusal(error: RpcError) -> Refusal {
    match error {
        RpcError::Media(MediaError::NoObject { what, id }) => Refusal::NoObject(
            if what == "transport" {
                "transport"
            } else if what == "producer" {
                "producer"
            } else {
                "consumer"
            },
            id,
        ),
        RpcError::Media(MediaError::BadParameters { reason }) => Refusal::BadRequest(reason),
        RpcError::Media(MediaError::WrongState { reason }) => Refusal::WrongState(reason),
        RpcError::Media(error @ MediaError::CannotConsume { .. }) => Refusal::WrongState(error.to_string()),
        RpcError::Media(error) => Refusal::MediaFailed(error.to_string()),
        RpcError::Unreachable { no_responders: false, .. } => Refusal::MediaTimeout,
        error => Refusal::MediaFailed(error.to_string()),
    }
}

/// A worker's answer in the shape clients expect.
fn media_json(command: Option<&MediaCommand>, answer: MediaAnswer) -> Value {
    match answer {
        MediaAnswer::Router { rtp_capabilities } => json!(rtp_capabilities),
        MediaAnswer::Transport { ice_parameters, ice_candidates, dtls_parameters } => {
            let id = match command {
                Some(MediaCommand::CreateTransport { transport }) => Some(transport),
                _ => None,
            };
            json!({ "id": id, "iceParameters": ice_parameters, "iceCandidates": ice_candidates, "dtlsParameters": dtls_parameters })
        }
        MediaAnswer::Ice { ice_parameters } => json!(ice_parameters),
        MediaAnswer::Stats { stats } => stats,
        MediaAnswer::Done
        | MediaAnswer::Producer { .. }
        | MediaAnswer::Consumer { .. }
        | MediaAnswer::Inventory { .. } => json!({}),
    }
}
