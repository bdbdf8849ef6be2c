//! The fold of a room's stream: the one definition of what state a room is in. EC, EA, NUVE and the replay tool all run this code.

use std::collections::{BTreeMap, BTreeSet};

use roomlog_bus::{
    commit::{Commit, Head},
    events::{EaPolicy, Event, EventError, Placement, RoomLimits},
    ids::{
        ClientId, ConsumerId, EaId, EcId, Epoch, Incarnation, MediaEpoch, ProducerId, ServiceId, TransportId,
        Version,
    },
    ortc::{ConsumerLayers, ConsumerType, MediaKind, RtpCapabilities, RtpParameters},
    rights::Rights,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smallvec::SmallVec;

/// What a room is, at one version.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RoomState {
    /// Where the stream ended when this was folded.
    pub head: Option<Head>,
    /// What `RoomCreated` said; none before it.
    pub info: Option<RoomInfo>,
    /// The EC that may append.
    pub owner: Option<Owner>,
    /// A session is on: at least one client is, or is about to be, in.
    pub open: bool,
    /// Gone for good.
    pub deleted: bool,
    /// Version of its last snapshot; what is below may be purged.
    #[serde(default)]
    pub compacted: Version,
    /// Goes up with each move of the media; 0 before the first assignment.
    pub media_epoch: MediaEpoch,
    /// The workers that carry it, by EA.
    pub placements: BTreeMap<EaId, Placement>,
    /// Who is in.
    pub clients: BTreeMap<ClientId, Client>,
    /// Their transports.
    pub transports: BTreeMap<TransportId, Transport>,
    /// What they send.
    pub producers: BTreeMap<ProducerId, Producer>,
    /// What they are sent.
    pub consumers: BTreeMap<ConsumerId, Consumer>,
    /// Tokens that admit nobody any more, with the client they admitted and when they end by themselves.
    pub spent_tokens: BTreeMap<String, SpentToken>,
}

/// What was said when the room was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoomInfo {
    /// Whose.
    pub service: ServiceId,
    /// Its name, for people.
    pub name: String,
    /// How its EAs are chosen.
    pub eapolicy: EaPolicy,
    /// The application's own.
    pub metadata: Value,
    /// What bounds it.
    #[serde(default)]
    pub limits: RoomLimits,
    /// When.
    pub created: Timestamp,
}

/// The EC incarnation that owns a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// EC.
    pub ec: EcId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Ownership epoch.
    pub epoch: Epoch,
}

/// One participant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// User name, from the token.
    pub user: String,
    /// Role, from the token.
    pub role: String,
    /// What it may do one by one; none: what goes with the role.
    #[serde(default)]
    pub rights: Option<Rights>,
    /// Address as seen.
    pub addr: String,
    /// The token that admitted it.
    pub token: String,
    /// SHA-256 of its resume key, hex.
    pub resume_key_hash: String,
    /// When it was admitted.
    pub admitted: Timestamp,
    /// The EA it is on.
    pub ea: Option<EaId>,
    /// Whether that EA has made it.
    pub attached: bool,
    /// What it said at `join`; none before.
    pub joined: Option<Joined>,
    /// Set while its socket is broken: when it counts as gone.
    pub resume_until: Option<Timestamp>,
    /// Producers it cannot or would not consume.
    pub refused: BTreeSet<ProducerId>,
}

impl Client {
    /// What it may do.
    pub fn rights(&self) -> Rights {
        self.rights.clone().unwrap_or_else(|| Rights::of_role(&self.role))
    }
}

/// What a client said at `join`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// The name others see.
    pub display_name: String,
    /// What it is.
    pub device: Value,
    /// What it can receive; none means it does not consume.
    pub rtp_capabilities: Option<RtpCapabilities>,
}

/// A transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// Whose.
    pub client: ClientId,
    /// For sending to us.
    pub producing: bool,
    /// For receiving from us.
    pub consuming: bool,
    /// DTLS is up.
    pub connected: bool,
}

/// A producer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Producer {
    /// Whose.
    pub client: ClientId,
    /// On which transport.
    pub transport: TransportId,
    /// Audio or video.
    pub kind: MediaKind,
    /// What is sent.
    pub rtp_parameters: RtpParameters,
    /// What its consumers are.
    pub consumer_type: ConsumerType,
    /// The application's own.
    pub app_data: Value,
    /// Paused by its owner.
    pub paused: bool,
    /// Paused by another than its owner, who may not resume it.
    #[serde(default)]
    pub muted: bool,
}

/// A consumer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Consumer {
    /// Whose.
    pub client: ClientId,
    /// On which transport.
    pub transport: TransportId,
    /// Of which producer.
    pub producer: ProducerId,
    /// Audio or video.
    pub kind: MediaKind,
    /// What is sent to the client.
    pub rtp_parameters: RtpParameters,
    /// How it picks layers.
    pub consumer_type: ConsumerType,
    /// Its client has taken it; until then `newConsumer` is asked again after a resume.
    pub accepted: bool,
    /// Not accepted yet, or paused by its client.
    pub paused: bool,
    /// Layers its client prefers.
    pub preferred_layers: Option<ConsumerLayers>,
    /// Its rank, 1 to 255; 1 unless set.
    pub priority: u8,
}

/// A token that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentToken {
    /// Whom it admitted.
    pub client: ClientId,
    /// When it ends by itself, after which it need not be remembered.
    pub expires: Timestamp,
}

/// A commit that is not the next one of the folded stream, or does not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// Versions run 1, 2, 3 … and each commit names the one before it.
    #[error("commit {found} at version {version} does not follow {head:?}: a hole or a fork in {stream}")]
    NotNext {
        /// Stream.
        stream: String,
        /// Where the fold is.
        head: Option<Head>,
        /// The commit.
        found: String,
        /// Its version.
        version: Version,
    },
    /// A known event that does not read.
    #[error(transparent)]
    Event(#[from] EventError),
}

/// Events of a commit that are put by without an allocation. A decision has one to four, but for those that end many things at once.
const PUT_BY: usize = 4;

/// The head of the stream just before `commit`, if that begins with a snapshot: what is below it may have been purged.
pub(crate) fn before_snapshot(commit: &Commit) -> Option<Head> {
    let starts = commit.events.first().is_some_and(|e| e.kind.as_str() == "RoomSnapshot");
    let prev = commit.prev.filter(|_| starts)?;
    Some(Head { version: Version(commit.version.0.saturating_sub(1)), id: prev })
}

impl RoomState {
    /// Version folded up to; 0 before the first event.
    pub fn version(&self) -> Version {
        self.head.map_or(Version(0), |h| h.version)
    }

    /// Current ownership epoch; 0 before the first placement.
    pub fn epoch(&self) -> Epoch {
        self.owner.as_ref().map_or(Epoch(0), |o| o.epoch)
    }

    /// Folds the next commit of the stream, or a later one that begins with a snapshot: what is between may have been purged. A fold error
    /// leaves the state as it was.
    pub fn apply_commit(&mut self, commit: &Commit) -> Result<(), FoldError> {
        let skips = commit.version > self.version().next() && before_snapshot(commit).is_some();
        if !skips && !commit.follows(self.head.as_ref()) {
            return Err(not_next(commit, self.head));
        }
        match commit.events.as_slice() {
            // Most have one, and it need not be put by until all have been read.
            [event] => self.take(Event::decode(event)?, commit.time),
            events => {
                let events =
                    events.iter().map(Event::decode).collect::<Result<SmallVec<[_; PUT_BY]>, _>>()?;
                events.into_iter().for_each(|event| self.take(event, commit.time));
            }
        }
        self.head = Some(commit.head());
        Ok(())
    }

    /// Folds one event that was decided at `time`. Total: an event about something that is not there changes nothing.
    pub fn apply(&mut self, event: &Event, time: Timestamp) {
        self.take(event.clone(), time);
    }

    /// The same for an event that nobody else needs: what it brings becomes state without a copy.
    pub fn take(&mut self, event: Event, time: Timestamp) {
        match event {
            Event::RoomCreated(e) => {
                self.info = Some(RoomInfo {
                    service: e.service,
                    name: e.name,
                    eapolicy: e.eapolicy,
                    metadata: e.metadata,
                    limits: RoomLimits::default(),
                    created: time,
                });
            }
            Event::RoomChanged(e) => {
                if let Some(info) = &mut self.info {
                    info.metadata.clone_from(&e.metadata);
                    info.limits = e.limits;
                }
            }
            Event::RoomPlaced(e) => {
                self.owner = Some(Owner { ec: e.ec, incarnation: e.incarnation, epoch: e.epoch });
            }
            Event::RoomOpened(_) => self.open = true,
            Event::EaAssigned(e) => {
                self.media_epoch = e.media_epoch;
                self.placements.insert(e.placement.ea.clone(), e.placement);
            }
            Event::EaReleased(e) => {
                self.placements.remove(&e.ea);
            }
            Event::MediaMoved(e) => {
                self.media_epoch = e.media_epoch;
                if let Some(from) = &e.from {
                    self.placements.remove(&from.ea);
                }
                let to = e.to.as_ref().map(|to| to.ea.clone());
                if let Some(placement) = e.to {
                    self.placements.insert(placement.ea.clone(), placement);
                }
                self.transports.clear();
                self.producers.clear();
                self.consumers.clear();
                for client in self.clients.values_mut() {
                    client.refused.clear();
                    client.attached = false;
                    client.ea.clone_from(&to);
                }
            }
            Event::RoomClosed(_) => self.end_session(),
            Event::RoomDeleted(_) => {
                self.end_session();
                self.deleted = true;
            }
            Event::RoomSnapshot(e) => {
                if let Ok(state) = e.state.decode::<Self>() {
                    let compacted = state.version().next();
                    *self = Self { head: self.head, compacted, ..state };
                }
            }
            Event::ClientAdmitted(e) => {
                self.spent_tokens.retain(|_, spent| spent.expires > time);
                self.spent_tokens.insert(
                    e.token.clone(),
                    SpentToken { client: e.client.clone(), expires: e.token_expires },
                );
                self.clients.insert(
                    e.client,
                    Client {
                        user: e.user,
                        role: e.role,
                        rights: None,
                        addr: e.addr,
                        token: e.token,
                        resume_key_hash: e.resume_key_hash,
                        admitted: time,
                        ea: None,
                        attached: false,
                        joined: None,
                        resume_until: None,
                        refused: BTreeSet::new(),
                    },
                );
            }
            Event::ClientRightsChanged(e) => {
                if let Some(client) = self.clients.get_mut(&e.client) {
                    client.role.clone_from(&e.role);
                    client.rights = Some(e.rights.clone());
                }
            }
            Event::ClientBound(e) => {
                if let Some(client) = self.clients.get_mut(&e.client) {
                    client.ea = Some(e.ea);
                    client.attached = false;
                }
            }
            Event::ClientAttached(e) => {
                if let Some(client) = self.clients.get_mut(&e.client) {
                    client.attached = client.ea.as_ref() == Some(&e.ea);
                }
            }
            Event::ClientJoined(e) => {
                if let Some(client) = self.clients.get_mut(&e.client) {
                    client.joined = Some(Joined {
                        display_name: e.display_name,
                        device: e.device,
                        rtp_capabilities: e.rtp_capabilities,
                    });
                }
            }
            Event::DisplayNameChanged(e) => {
                if let Some(joined) = self.clients.get_mut(&e.client).and_then(|c| c.joined.as_mut()) {
                    joined.display_name = e.display_name;
                }
            }
            Event::ClientDisconnected(e) => {
                if let Some(client) = self.clients.get_mut(&e.client) {
                    client.resume_until = Some(e.resume_until);
                }
            }
            Event::ClientResumed(e) => {
                if let Some(client) = self.clients.get_mut(&e.client) {
                    client.resume_until = None;
                    if e.how == "reattach" {
                        client.attached = false;
                        client.joined = None;
                        client.refused.clear();
                    }
                }
            }
            Event::ClientLeft(e) => {
                self.clients.remove(&e.client);
                while let Some((transport, _)) = self.transports.iter().find(|(_, t)| t.client == e.client) {
                    self.remove_transport(&transport.clone());
                }
            }
            Event::TransportCreated(e) => {
                self.transports.insert(
                    e.transport,
                    Transport {
                        client: e.client,
                        producing: e.producing,
                        consuming: e.consuming,
                        connected: false,
                    },
                );
            }
            Event::TransportConnected(e) => {
                if let Some(transport) = self.transports.get_mut(&e.transport) {
                    transport.connected = true;
                }
            }
            Event::TransportClosed(e) => self.remove_transport(&e.transport),
            Event::ProducerCreated(e) => {
                self.producers.insert(
                    e.producer,
                    Producer {
                        client: e.client,
                        transport: e.transport,
                        kind: e.kind,
                        rtp_parameters: e.rtp_parameters,
                        consumer_type: e.consumer_type,
                        app_data: e.app_data,
                        paused: e.paused,
                        muted: false,
                    },
                );
            }
            Event::ProducerMuted(e) => self.mute_producer(&e.producer, true),
            Event::ProducerUnmuted(e) => self.mute_producer(&e.producer, false),
            Event::ProducerPaused(e) => self.pause_producer(&e.producer, true),
            Event::ProducerResumed(e) => self.pause_producer(&e.producer, false),
            Event::ProducerClosed(e) => self.remove_producer(&e.producer),
            Event::ConsumerCreated(e) => {
                self.consumers.insert(
                    e.consumer,
                    Consumer {
                        client: e.client,
                        transport: e.transport,
                        producer: e.producer,
                        kind: e.kind,
                        rtp_parameters: e.rtp_parameters,
                        consumer_type: e.consumer_type,
                        accepted: false,
                        paused: true,
                        preferred_layers: None,
                        priority: 1,
                    },
                );
            }
            Event::ConsumerPaused(e) => self.pause_consumer(&e.consumer, true),
            Event::ConsumerResumed(e) => self.pause_consumer(&e.consumer, false),
            Event::ConsumerLayersPreferred(e) => {
                if let Some(consumer) = self.consumers.get_mut(&e.consumer) {
                    consumer.preferred_layers = Some(e.layers);
                }
            }
            Event::ConsumerPrioritySet(e) => {
                if let Some(consumer) = self.consumers.get_mut(&e.consumer) {
                    consumer.priority = e.priority;
                }
            }
            Event::ConsumerClosed(e) => {
                self.consumers.remove(&e.consumer);
            }
            Event::ConsumerRefused(e) => {
                if let Some(client) = self.clients.get_mut(&e.client) {
                    client.refused.insert(e.producer);
                }
            }
            Event::ServiceCreated(_)
            | Event::ServiceKeyRotated(_)
            | Event::ServiceOldKeyRevoked(_)
            | Event::ServiceChanged(_)
            | Event::WebhookSet(_)
            | Event::WebhookClaimed(_)
            | Event::WebhookAdvanced(_)
            | Event::WebhookFailed(_)
            | Event::WebhookRemoved(_)
            | Event::ServiceDeleted(_)
            | Event::NodeRegistered(_)
            | Event::NodeLost(_)
            | Event::NodeDraining(_)
            | Event::NodeLeft(_)
            | Event::LimitShared(_)
            | Event::WorkerStarted(_)
            | Event::WorkerDied(_)
            | Event::Unknown(_) => {}
        }
    }

    /// The client that a token has admitted, if it still lives.
    pub fn admitted_by(&self, token: &str) -> Option<(&ClientId, &Client)> {
        let spent = self.spent_tokens.get(token)?;
        self.clients.get_key_value(&spent.client).filter(|(_, client)| client.token == token)
    }

    /// Which consumers should exist and do not: every joined client that can receive and has a transport for it is to be sent every
    /// producer of every other client, unless it refused it. Sorted by client, then producer.
    pub fn missing_consumers(&self) -> Vec<(ClientId, TransportId, ProducerId)> {
        let mut have: BTreeSet<(&ClientId, &ProducerId)> = BTreeSet::new();
        for consumer in self.consumers.values() {
            have.insert((&consumer.client, &consumer.producer));
        }
        let mut missing = Vec::new();
        for (id, client) in &self.clients {
            let receives = client.joined.as_ref().is_some_and(|j| j.rtp_capabilities.is_some())
                && client.rights().subscribe;
            if !receives || client.resume_until.is_some() {
                continue;
            }
            let Some((transport, _)) = self.transports.iter().find(|(_, t)| &t.client == id && t.consuming)
            else {
                continue;
            };
            for (producer_id, producer) in &self.producers {
                let wanted = &producer.client != id
                    && !client.refused.contains(producer_id)
                    && !have.contains(&(id, producer_id));
                if wanted && self.clients.get(&producer.client).is_some_and(|c| c.joined.is_some()) {
                    missing.push((id.clone(), transport.clone(), producer_id.clone()));
                }
            }
        }
        missing
    }

    /// The state as people and the replay tool read it.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("keys are text and numbers are finite")
    }

    fn end_session(&mut self) {
        self.open = false;
        self.placements.clear();
        self.clients.clear();
        self.transports.clear();
        self.producers.clear();
        self.consumers.clear();
    }

    fn mute_producer(&mut self, id: &ProducerId, muted: bool) {
        if let Some(producer) = self.producers.get_mut(id) {
            producer.muted = muted;
        }
    }

    fn pause_producer(&mut self, id: &ProducerId, paused: bool) {
        if let Some(producer) = self.producers.get_mut(id) {
            producer.paused = paused;
        }
    }

    fn pause_consumer(&mut self, id: &ConsumerId, paused: bool) {
        if let Some(consumer) = self.consumers.get_mut(id) {
            consumer.paused = paused;
            consumer.accepted |= !paused;
        }
    }

    fn remove_producer(&mut self, id: &ProducerId) {
        self.producers.remove(id);
        self.consumers.retain(|_, c| &c.producer != id);
        for client in self.clients.values_mut() {
            client.refused.remove(id);
        }
    }

    fn remove_transport(&mut self, id: &TransportId) {
        self.transports.remove(id);
        self.consumers.retain(|_, c| &c.transport != id);
        while let Some((producer, _)) = self.producers.iter().find(|(_, p)| &p.transport == id) {
            self.remove_producer(&producer.clone());
        }
    }
}

/// The error for a commit that does not follow `head`.
pub(crate) fn not_next(commit: &Commit, head: Option<Head>) -> FoldError {
    FoldError::NotNext {
        stream: commit.stream.to_string(),
        head,
        found: commit.id.to_string(),
        version: commit.version,
    }
}
