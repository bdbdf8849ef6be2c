//! The room decider: what is asked of a room, and the events that follow. Pure: the same state, command and facts give the same
//! events, today and in a replay next year.

use roomlog_bus::{
    commit::Payload,
    events::{
        Candidate, ClientAdmitted, ClientAttached, ClientBound, ClientDisconnected, ClientJoined, ClientLeft,
        ClientResumed, ClientRightsChanged, ConsumerClosed, ConsumerCreated, ConsumerLayersPreferred,
        ConsumerPaused, ConsumerPrioritySet, ConsumerRefused, ConsumerResumed, DisplayNameChanged,
        EaAssigned, EaReleased, Event, MediaMoved, Placement, ProducerClosed, ProducerCreated, ProducerMuted,
        ProducerPaused, ProducerResumed, ProducerUnmuted, RoomChanged, RoomClosed, RoomDeleted, RoomLimits,
        RoomOpened, RoomPlaced, RoomSnapshot, TransportClosed, TransportConnected, TransportCreated,
    },
    ids::{ClientId, ConsumerId, EcId, Incarnation, MediaEpoch, ProducerId, TransportId, Version},
    ortc::{ConsumerLayers, ConsumerType, MediaKind, RtpCapabilities, RtpParameters},
    rights::Rights,
    time::Timestamp,
};
use roomlog_projections::room::{Client, RoomState};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::per_client::{Made, PerClient};

/// What is asked of a room.
#[allow(missing_docs, reason = "fields are those of the event that follows")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Command {
    /// This EC incarnation takes the room on itself.
    Place { reason: String },
    /// A token asks to come in.
    Admit {
        client: ClientId,
        user: String,
        role: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rights: Option<Rights>,
        addr: String,
        token: String,
        token_expires: Timestamp,
        resume_key_hash: String,
    },
    /// A living client is back by its token: it starts over.
    Reattach { client: ClientId },
    /// A living client is back by its resume key: it goes on.
    Resume { client: ClientId },
    /// Its socket broke.
    Disconnect { client: ClientId, reason: String },
    /// It is gone.
    Leave { client: ClientId, reason: String },
    /// All these are gone at once: their resume time ran out.
    Expire { clients: Vec<ClientId> },
    /// The EA has made it.
    Attach { client: ClientId },
    /// It takes part.
    Join { client: ClientId, display_name: String, device: Value, rtp_capabilities: Option<RtpCapabilities> },
    /// It goes by another name.
    Rename { client: ClientId, display_name: String },
    /// It wants a transport.
    CreateTransport { client: ClientId, transport: TransportId, producing: bool, consuming: bool },
    /// The worker says DTLS is up.
    TransportConnected { transport: TransportId },
    /// A transport failed for good.
    CloseTransport { transport: TransportId, reason: String },
    /// It sends a stream.
    Produce {
        client: ClientId,
        producer: ProducerId,
        transport: TransportId,
        kind: MediaKind,
        rtp_parameters: RtpParameters,
        app_data: Value,
        paused: bool,
    },
    /// It pauses or resumes its own stream.
    PauseProducer { client: ClientId, producer: ProducerId, paused: bool },
    /// It stops its own stream.
    CloseProducer { client: ClientId, producer: ProducerId },
    /// The worker was asked for these consumers.
    AddConsumers { wanted: Vec<WantedConsumer> },
    /// The client took a consumer, or resumes it.
    ResumeConsumer { client: ClientId, consumer: ConsumerId },
    /// The client pauses a consumer.
    PauseConsumer { client: ClientId, consumer: ConsumerId },
    /// The client would not have a consumer.
    RefuseConsumer { client: ClientId, consumer: ConsumerId, reason: String },
    /// The client prefers layers.
    PreferLayers { client: ClientId, consumer: ConsumerId, layers: ConsumerLayers },
    /// The client ranks a consumer.
    SetPriority { client: ClientId, consumer: ConsumerId, priority: u8 },
    /// The room's worker is no more; go to the one in the facts.
    MoveMedia { reason: String },
    /// The application changes what a client may do.
    ChangeRights { client: ClientId, role: String, rights: Rights },
    /// The application, or the client `by`, mutes a producer or lets its owner resume it.
    Mute { by: Option<ClientId>, client: ClientId, producer: ProducerId, muted: bool },
    /// A client that manages puts another out.
    PutOut { by: ClientId, client: ClientId },
    /// The application changes the room.
    ChangeRoom { metadata: Value, limits: RoomLimits, if_version: Option<Version> },
    /// Delete the room.
    Delete {
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<Version>,
    },
    /// Nobody is in: write down what the room is, so that what led to it may be purged.
    Compact,
}

/// A consumer that should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedConsumer {
    /// For whom.
    pub client: ClientId,
    /// On which transport.
    pub transport: TransportId,
    /// Of what.
    pub producer: ProducerId,
    /// Its id.
    pub consumer: ConsumerId,
}

/// What `decide` reads besides the state: the clock, who decides, and what the media side has answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Now.
    pub now: Timestamp,
    /// The EC that decides.
    pub ec: EcId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// How long a client may stay away, in milliseconds.
    pub resume_ms: u64,
    /// Most clients a room takes.
    pub max_clients: usize,
    /// How much one client may have.
    #[serde(default = "PerClient::none")]
    pub per_client: PerClient,
    /// The worker an EA gave the room, with every EA considered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<Assignment>,
    /// What the producer's consumers will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_type: Option<ConsumerType>,
    /// What came of each wanted consumer, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consumers: Vec<Result<ConsumerMade, String>>,
}

/// A worker for a room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Where.
    pub placement: Placement,
    /// The media epoch it was made for.
    pub media_epoch: MediaEpoch,
    /// Every EA considered.
    pub candidates: Vec<Candidate>,
}

/// A consumer as the worker made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsumerMade {
    /// Audio or video.
    pub kind: MediaKind,
    /// What will be sent.
    pub rtp_parameters: RtpParameters,
    /// How it picks layers.
    pub consumer_type: ConsumerType,
}

/// Why nothing happened. Each maps to one error code of the signalling table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The room does not exist or is deleted.
    #[error("no such room")]
    NoRoom,
    /// The room is another EC's.
    #[error("this EC does not own the room; ask where it is and go there")]
    WrongHost,
    /// The token has admitted a client that is gone.
    #[error("this token was used: ask for a new one")]
    UsedToken,
    /// The token has ended and admitted nobody who is still here.
    #[error("the token has ended: ask for a new one")]
    TokenEnded,
    /// The client id lives already, under another token.
    #[error("client id {0} is in the room already: choose another")]
    ClientIdTaken(ClientId),
    /// The room is full.
    #[error("the room is full: it takes {0} clients")]
    RoomFull(usize),
    /// There is no worker to carry the room.
    #[error("no media server can take this room now: try again in a moment")]
    NoMedia,
    /// No such client.
    #[error("client {0} is not in this room")]
    NoClient(ClientId),
    /// No such transport, producer or consumer, or not one's own.
    #[error("no such {0}: {1}")]
    NoObject(&'static str, String),
    /// Not at this point.
    #[error("wrong state: {0}")]
    WrongState(String),
    /// The role does not give this right.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// It is not at the version that was named.
    #[error("the room is at version {0}, not at the one named")]
    OtherVersion(Version),
    /// It has as many as one may have.
    #[error("not allowed: too many {0}, a client may have {1} at a time")]
    TooMany(&'static str, usize),
    /// The data is not right.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// The media side took too long.
    #[error("the media server did not answer in time: try again")]
    MediaTimeout,
    /// The media side failed.
    #[error("the media server failed: {0}")]
    MediaFailed(String),
    /// Not now.
    #[error("not possible right now: {0}; try again in a moment")]
    Retry(String),
}

impl Refusal {
    /// Its number in the signalling error table.
    pub fn code(&self) -> u16 {
        match self {
            Self::NoRoom => 1000,
            Self::MediaTimeout => 1001,
            Self::MediaFailed(_) | Self::BadRequest(_) => 2000,
            Self::NoClient(_) => 2002,
            Self::WrongState(_) => 2003,
            Self::NoObject(..) => 2004,
            Self::NotAllowed(_)
            | Self::OtherVersion(_)
            | Self::RoomFull(_)
            | Self::TooMany(..)
            | Self::ClientIdTaken(_) => 403,
            Self::WrongHost => 1001,
            Self::UsedToken => 1002,
            Self::TokenEnded => 1004,
            Self::NoMedia => 1005,
            Self::Retry(_) => 503,
        }
    }
}

/// The events that follow from `command`, none when it changes nothing.
pub fn decide(state: &RoomState, command: &Command, facts: &Facts) -> Result<Vec<Event>, Refusal> {
    if state.info.is_none() || state.deleted {
        return Err(Refusal::NoRoom);
    }
    if let Command::Place { reason } = command {
        return place(state, reason, facts);
    }
    if !owns(state, facts) {
        return Err(Refusal::WrongHost);
    }
    match command {
        Command::Place { .. } => unreachable!("answered above"),
        Command::Admit { client, user, role, rights, addr, token, token_expires, resume_key_hash } => {
            if state.spent_tokens.contains_key(token) {
                return Err(Refusal::UsedToken);
            }
            if *token_expires <= facts.now {
                return Err(Refusal::TokenEnded);
            }
            if state.clients.contains_key(client) {
                return Err(Refusal::ClientIdTaken(client.clone()));
            }
            let most = most_clients(state, facts);
            if state.clients.len() >= most {
                return Err(Refusal::RoomFull(most));
            }
            let mut events = Vec::new();
            let ea = match state.placements.values().next() {
                Some(placement) => placement.ea.clone(),
                None => {
                    let assignment = facts.assignment.clone().ok_or(Refusal::NoMedia)?;
                    if !state.open {
                        events.push(RoomOpened {}.into());
                    }
                    let ea = assignment.placement.ea.clone();
                    events.push(
                        EaAssigned {
                            placement: assignment.placement,
                            policy: state.info.as_ref().map(|i| i.eapolicy).unwrap_or_default(),
                            candidates: assignment.candidates,
                            reason: "first-client".into(),
                            media_epoch: assignment.media_epoch,
                        }
                        .into(),
                    );
                    ea
                }
            };
            events.push(
                ClientAdmitted {
                    client: client.clone(),
                    user: user.clone(),
                    role: role.clone(),
                    addr: addr.clone(),
                    token: token.clone(),
                    token_expires: *token_expires,
                    resume_key_hash: resume_key_hash.clone(),
                }
                .into(),
            );
            if let Some(rights) = rights {
                let (client, role) = (client.clone(), role.clone());
                events.push(ClientRightsChanged { client, role, rights: rights.clone() }.into());
            }
            events.push(ClientBound { client: client.clone(), ea, candidates: Vec::new() }.into());
            Ok(events)
        }
        Command::Reattach { client } => {
            living(state, client)?;
            let mut events: Vec<Event> = own_transports(state, client)
                .map(|transport| TransportClosed { transport, reason: "reattached".into() }.into())
                .collect();
            events.push(ClientResumed { client: client.clone(), how: "reattach".into() }.into());
            Ok(events)
        }
        Command::Resume { client } => match living(state, client)?.resume_until {
            Some(_) => Ok(vec![ClientResumed { client: client.clone(), how: "resume".into() }.into()]),
            None => Ok(Vec::new()),
        },
        Command::Disconnect { client, reason } => match state.clients.get(client) {
            Some(Client { resume_until: None, .. }) => Ok(vec![
                ClientDisconnected {
                    client: client.clone(),
                    reason: reason.into(),
                    resume_until: facts.now.plus_millis(facts.resume_ms),
                }
                .into(),
            ]),
            _ => Ok(Vec::new()),
        },
        Command::Leave { client, reason } => {
            if state.clients.contains_key(client) {
                Ok(leave(state, std::slice::from_ref(client), reason))
            } else {
                Ok(Vec::new())
            }
        }
        Command::Expire { clients } => {
            let due: Vec<ClientId> = clients
                .iter()
                .filter(|id| {
                    state.clients.get(id).and_then(|c| c.resume_until).is_some_and(|until| until <= facts.now)
                })
                .cloned()
                .collect();
            Ok(if due.is_empty() { Vec::new() } else { leave(state, &due, "timeout") })
        }
        Command::Attach { client } => {
            let living = living(state, client)?;
            match &living.ea {
                Some(ea) if !living.attached => {
                    Ok(vec![ClientAttached { client: client.clone(), ea: ea.clone() }.into()])
                }
                _ => Ok(Vec::new()),
            }
        }
        Command::Join { client, display_name, device, rtp_capabilities } => {
            if living(state, client)?.joined.is_some() {
                return Err(Refusal::WrongState("this client has joined already".into()));
            }
            Ok(vec![
                ClientJoined {
                    client: client.clone(),
                    display_name: display_name.clone(),
                    device: device.clone(),
                    rtp_capabilities: rtp_capabilities.clone(),
                }
                .into(),
            ])
        }
        Command::Rename { client, display_name } => {
            let old = &joined(state, client)?.display_name;
            if old == display_name {
                return Ok(Vec::new());
            }
            Ok(vec![
                DisplayNameChanged {
                    client: client.clone(),
                    display_name: display_name.clone(),
                    old_display_name: old.into(),
                }
                .into(),
            ])
        }
        Command::CreateTransport { client, transport, producing, consuming } => {
            living(state, client)?;
            facts.per_client.allows(state, client, Made::Transport, 0)?;
            Ok(vec![
                TransportCreated {
                    client: client.clone(),
                    transport: transport.clone(),
                    producing: *producing,
                    consuming: *consuming,
                }
                .into(),
            ])
        }
        Command::TransportConnected { transport } => match state.transports.get(transport) {
            Some(t) if !t.connected => Ok(vec![TransportConnected { transport: transport.clone() }.into()]),
            _ => Ok(Vec::new()),
        },
        Command::CloseTransport { transport, reason } => {
            if state.transports.contains_key(transport) {
                Ok(vec![TransportClosed { transport: transport.clone(), reason: reason.into() }.into()])
            } else {
                Ok(Vec::new())
            }
        }
        Command::Produce { client, producer, transport, kind, rtp_parameters, app_data, paused } => {
            may_produce(state, client, transport, *kind)?;
            facts.per_client.allows(state, client, Made::Producer, 0)?;
            let consumer_type = facts
                .consumer_type
                .ok_or_else(|| Refusal::MediaFailed("it did not say what it made".into()))?;
            Ok(vec![
                ProducerCreated {
                    client: client.clone(),
                    producer: producer.clone(),
                    transport: transport.clone(),
                    kind: *kind,
                    rtp_parameters: rtp_parameters.clone(),
                    consumer_type,
                    app_data: app_data.clone(),
                    paused: *paused,
                }
                .into(),
            ])
        }
        Command::PauseProducer { client, producer, paused } => {
            let found = own_producer(state, client, producer)?;
            if found.muted && !*paused {
                return Err(Refusal::NotAllowed("this producer is muted".into()));
            }
            Ok(match (found.paused, *paused) {
                (false, true) => vec![ProducerPaused { producer: producer.clone() }.into()],
                (true, false) => vec![ProducerResumed { producer: producer.clone() }.into()],
                _ => Vec::new(),
            })
        }
        Command::CloseProducer { client, producer } => {
            own_producer(state, client, producer)?;
            Ok(vec![ProducerClosed { producer: producer.clone(), reason: "closed".into() }.into()])
        }
        Command::AddConsumers { wanted } => Ok(add_consumers(state, wanted, &facts.consumers)),
        Command::ResumeConsumer { client, consumer } => {
            let found = own_consumer(state, client, consumer)?;
            Ok(if found.paused {
                vec![ConsumerResumed { consumer: consumer.clone() }.into()]
            } else {
                Vec::new()
            })
        }
        Command::PauseConsumer { client, consumer } => {
            let found = own_consumer(state, client, consumer)?;
            Ok(if found.paused {
                Vec::new()
            } else {
                vec![ConsumerPaused { consumer: consumer.clone() }.into()]
            })
        }
        Command::RefuseConsumer { client, consumer, reason } => {
            let found = own_consumer(state, client, consumer)?;
            Ok(vec![
                ConsumerClosed { consumer: consumer.clone(), reason: "refused".into() }.into(),
                ConsumerRefused {
                    client: client.clone(),
                    producer: found.producer.clone(),
                    reason: reason.into(),
                }
                .into(),
            ])
        }
        Command::PreferLayers { client, consumer, layers } => {
            let found = own_consumer(state, client, consumer)?;
            Ok(if found.preferred_layers == Some(*layers) {
                Vec::new()
            } else {
                vec![ConsumerLayersPreferred { consumer: consumer.clone(), layers: *layers }.into()]
            })
        }
        Command::SetPriority { client, consumer, priority } => {
            let found = own_consumer(state, client, consumer)?;
            if *priority == 0 {
                return Err(Refusal::BadRequest("priority runs from 1 to 255".into()));
            }
            Ok(if found.priority == *priority {
                Vec::new()
            } else {
                vec![ConsumerPrioritySet { consumer: consumer.clone(), priority: *priority }.into()]
            })
        }
        Command::MoveMedia { reason } => {
            let Some(from) = state.placements.values().next().cloned() else { return Ok(Vec::new()) };
            let assignment = facts.assignment.clone().ok_or(Refusal::NoMedia)?;
            Ok(vec![
                MediaMoved {
                    from: Some(from),
                    to: Some(assignment.placement),
                    reason: reason.into(),
                    media_epoch: assignment.media_epoch,
                    candidates: assignment.candidates,
                }
                .into(),
            ])
        }
        Command::ChangeRights { client, role, rights } => change_rights(state, client, role, rights),
        Command::Mute { by, client, producer, muted } => {
            manages(state, by.as_ref())?;
            let found = own_producer(state, client, producer)?;
            let (producer, by) = (producer.clone(), by.clone());
            Ok(match (found.muted, *muted) {
                (false, true) if found.paused => vec![ProducerMuted { producer, by }.into()],
                (false, true) => {
                    vec![
                        ProducerPaused { producer: producer.clone() }.into(),
                        ProducerMuted { producer, by }.into(),
                    ]
                }
                (true, false) => vec![ProducerUnmuted { producer, by }.into()],
                _ => Vec::new(),
            })
        }
        Command::PutOut { by, client } => {
            manages(state, Some(by))?;
            living(state, client)?;
            Ok(leave(state, std::slice::from_ref(client), "kicked"))
        }
        Command::ChangeRoom { metadata, limits, if_version } => {
            at_version(state, *if_version)?;
            let info = state.info.as_ref().ok_or(Refusal::NoRoom)?;
            if info.metadata == *metadata && info.limits == *limits {
                return Ok(Vec::new());
            }
            Ok(vec![RoomChanged { metadata: metadata.clone(), limits: *limits }.into()])
        }
        Command::Delete { reason, if_version } => {
            at_version(state, *if_version)?;
            let clients: Vec<ClientId> = state.clients.keys().cloned().collect();
            let mut events =
                if clients.is_empty() { Vec::new() } else { leave(state, &clients, "room-deleted") };
            events.push(RoomDeleted { reason: reason.into() }.into());
            Ok(events)
        }
        Command::Compact => {
            if state.open || !state.clients.is_empty() || state.compacted == state.version() {
                return Ok(Vec::new());
            }
            Ok(vec![RoomSnapshot { state: Payload::encode(state) }.into()])
        }
    }
}

/// Most clients the room takes: its own limit, within that of its EC.
fn most_clients(state: &RoomState, facts: &Facts) -> usize {
    let own = state.info.as_ref().and_then(|info| info.limits.max_clients);
    own.map_or(facts.max_clients, |own| facts.max_clients.min(own as usize))
}

fn at_version(state: &RoomState, wanted: Option<Version>) -> Result<(), Refusal> {
    match wanted {
        Some(wanted) if wanted != state.version() => Err(Refusal::OtherVersion(state.version())),
        _ => Ok(()),
    }
}

/// Whether `by` may mute and put out others; the application always may.
pub fn manages(state: &RoomState, by: Option<&ClientId>) -> Result<(), Refusal> {
    let Some(by) = by else { return Ok(()) };
    joined(state, by)?;
    if living(state, by)?.rights().manage {
        return Ok(());
    }
    Err(Refusal::NotAllowed("the right `manage` is wanted".into()))
}

/// The rights, and the end of what they no longer cover. What they newly cover follows by itself: consumers are level-triggered.
fn change_rights(
    state: &RoomState,
    client: &ClientId,
    role: &str,
    rights: &Rights,
) -> Result<Vec<Event>, Refusal> {
    let living = living(state, client)?;
    if living.role == role && living.rights() == *rights {
        return Ok(Vec::new());
    }
    let mut events = vec![
        ClientRightsChanged { client: client.clone(), role: role.to_owned(), rights: rights.clone() }.into(),
    ];
    let reason = || "rights".to_owned();
    let sent =
        state.producers.iter().filter(|(_, p)| &p.client == client && !rights.publish.contains(&p.kind));
    events
        .extend(sent.map(|(id, _)| ProducerClosed { producer: id.clone(), reason: reason().into() }.into()));
    if !rights.subscribe {
        let received = state.consumers.iter().filter(|(_, c)| &c.client == client);
        events.extend(
            received.map(|(id, _)| ConsumerClosed { consumer: id.clone(), reason: reason().into() }.into()),
        );
    }
    Ok(events)
}

/// Whether the EC incarnation of `facts` is the room's owner.
pub fn owns(state: &RoomState, facts: &Facts) -> bool {
    state.owner.as_ref().is_some_and(|o| o.ec == facts.ec && o.incarnation == facts.incarnation)
}

fn place(state: &RoomState, reason: &str, facts: &Facts) -> Result<Vec<Event>, Refusal> {
    let mut events = match &state.owner {
        // NUVE has placed it here.
        Some(owner) if owner.ec == facts.ec && owner.incarnation == facts.incarnation => Vec::new(),
        // Only an earlier start of this very EC may be succeeded here; giving a room to another EC is NUVE's.
        Some(owner) if owner.ec == facts.ec && owner.incarnation < facts.incarnation => vec![
            RoomPlaced {
                ec: facts.ec.clone(),
                incarnation: facts.incarnation,
                epoch: owner.epoch.next(),
                reason: reason.into(),
            }
            .into(),
        ],
        _ => return Err(Refusal::WrongHost),
    };
    // The sockets of the earlier owner are gone with it: the resume time of everybody begins now.
    for (client, c) in &state.clients {
        if c.resume_until.is_none() {
            events.push(
                ClientDisconnected {
                    client: client.clone(),
                    reason: reason.into(),
                    resume_until: facts.now.plus_millis(facts.resume_ms),
                }
                .into(),
            );
        }
    }
    Ok(events)
}

/// These clients leave, and the room closes behind the last one.
fn leave(state: &RoomState, clients: &[ClientId], reason: &str) -> Vec<Event> {
    let mut events: Vec<Event> = clients
        .iter()
        .map(|client| ClientLeft { client: client.clone(), reason: reason.into() }.into())
        .collect();
    if state.clients.keys().all(|id| clients.contains(id)) {
        events.extend(
            state.placements.keys().map(|ea| EaReleased { ea: ea.clone(), reason: "empty".into() }.into()),
        );
        events.push(RoomClosed { reason: "empty".into() }.into());
    }
    events
}

fn add_consumers(
    state: &RoomState,
    wanted: &[WantedConsumer],
    outcomes: &[Result<ConsumerMade, String>],
) -> Vec<Event> {
    let still_missing = state.missing_consumers();
    let mut events = Vec::new();
    for (want, outcome) in wanted.iter().zip(outcomes) {
        // While the worker was asked, somebody may have left or closed; then there is nothing to add.
        let key = (want.client.clone(), want.transport.clone(), want.producer.clone());
        if !still_missing.contains(&key) {
            continue;
        }
        events.push(match outcome {
            Ok(made) => ConsumerCreated {
                client: want.client.clone(),
                consumer: want.consumer.clone(),
                transport: want.transport.clone(),
                producer: want.producer.clone(),
                kind: made.kind,
                rtp_parameters: made.rtp_parameters.clone(),
                consumer_type: made.consumer_type,
            }
            .into(),
            Err(reason) => ConsumerRefused {
                client: want.client.clone(),
                producer: want.producer.clone(),
                reason: reason.into(),
            }
            .into(),
        });
    }
    events
}

fn living<'a>(state: &'a RoomState, client: &ClientId) -> Result<&'a Client, Refusal> {
    state.clients.get(client).ok_or_else(|| Refusal::NoClient(client.clone()))
}

fn joined<'a>(
    state: &'a RoomState,
    client: &ClientId,
) -> Result<&'a roomlog_projections::room::Joined, Refusal> {
    living(state, client)?.joined.as_ref().ok_or_else(|| Refusal::WrongState("join first".into()))
}

fn own_transports<'a>(state: &'a RoomState, client: &'a ClientId) -> impl Iterator<Item = TransportId> + 'a {
    state.transports.iter().filter(move |(_, t)| &t.client == client).map(|(id, _)| id.clone())
}

/// The transport, if it is the client's own.
pub fn own_transport<'a>(
    state: &'a RoomState,
    client: &ClientId,
    id: &TransportId,
) -> Result<&'a roomlog_projections::room::Transport, Refusal> {
    state
        .transports
        .get(id)
        .filter(|t| &t.client == client)
        .ok_or_else(|| Refusal::NoObject("transport", id.to_string()))
}

/// The producer, if it is the client's own.
pub fn own_producer<'a>(
    state: &'a RoomState,
    client: &ClientId,
    id: &ProducerId,
) -> Result<&'a roomlog_projections::room::Producer, Refusal> {
    state
        .producers
        .get(id)
        .filter(|p| &p.client == client)
        .ok_or_else(|| Refusal::NoObject("producer", id.to_string()))
}

/// The consumer, if it is the client's own.
pub fn own_consumer<'a>(
    state: &'a RoomState,
    client: &ClientId,
    id: &ConsumerId,
) -> Result<&'a roomlog_projections::room::Consumer, Refusal> {
    state
        .consumers
        .get(id)
        .filter(|c| &c.client == client)
        .ok_or_else(|| Refusal::NoObject("consumer", id.to_string()))
}

/// Whether the client may send this on this transport: it has joined, its rights allow it, and the transport is its own and for sending.
pub fn may_produce(
    state: &RoomState,
    client: &ClientId,
    transport: &TransportId,
    kind: MediaKind,
) -> Result<(), Refusal> {
    joined(state, client)?;
    let client_state = living(state, client)?;
    if !client_state.rights().publish.contains(&kind) {
        let kind = if kind == MediaKind::Audio { "audio" } else { "video" };
        return Err(Refusal::NotAllowed(format!(
            "the rights of a {} do not cover sending {kind}",
            client_state.role
        )));
    }
    if own_transport(state, client, transport)?.producing {
        Ok(())
    } else {
        Err(Refusal::WrongState(format!("transport {transport} was not made for producing")))
    }
}
