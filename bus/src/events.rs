//! The event catalogue: everything that can be in the log, in the past tense.
//!
//! An event is a type tag, a schema number and named fields. Fields may be added with a default; a change of meaning takes a new
//! schema number and an upcast in [`Event::decode`]. Types this build does not know are carried as [`Event::Unknown`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use smol_str::SmolStr;

use crate::{
    commit::{Payload, RawEvent, StreamId},
    ids::{
        ClientId, ConsumerId, EaId, EcId, Epoch, Incarnation, MediaEpoch, ProducerId, RoomId, ServiceId,
        TransportId, WorkerIndex,
    },
    ortc::{ConsumerLayers, ConsumerType, MediaKind, RtpCapabilities, RtpParameters},
    rights::Rights,
    time::Timestamp,
};

/// Number of the catalogue as a whole: goes up whenever a type, a field or a schema is added, so that two builds can be compared.
pub const LOG_SCHEMA: u32 = 2;

/// How a room's EAs are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum EaPolicy {
    /// All clients on one worker of the EA with the fewest rooms.
    #[default]
    #[serde(rename = "ROOM-BEST")]
    RoomBest,
    /// Each client on the EA nearest to it, the room cascaded.
    #[serde(rename = "TTL-BEST")]
    TtlBest,
}

/// One EA that was looked at when one was chosen, and what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which.
    pub ea: EaId,
    /// Rooms it had, those in flight counted; absent where the policy does not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rooms: Option<u64>,
    /// Round trip to the client in milliseconds, where measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Why it took no part: `suspected`, `draining`, `no worker`, `no answer` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<String>,
}

/// What bounds a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoomLimits {
    /// Most clients at a time; absent: what its EC allows, which bounds this too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
    /// Deleted after nobody has been in it for this long, seconds; absent: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_close_s: Option<u32>,
}

/// The worker a room lives on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    /// EA.
    pub ea: EaId,
    /// Which start of the EA.
    pub incarnation: Incarnation,
    /// Worker within it.
    pub worker: WorkerIndex,
    /// Which start of that worker: goes up each time the EA replaces it.
    pub generation: u64,
}

/// A worker that ran in the start of its EA before this one, and runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AdoptedWorker {
    /// Which.
    pub worker: WorkerIndex,
    /// Which start of it.
    pub generation: u64,
}

macro_rules! catalogue {
    ($($(#[$doc:meta])* $name:ident = $schema:literal { $($(#[$fdoc:meta])* $field:ident : $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            pub struct $name { $($(#[$fdoc])* pub $field: $type),* }

            impl From<$name> for Event {
                fn from(event: $name) -> Self { Self::$name(event) }
            }
        )*

        /// Any event.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Event {
            $($(#[$doc])* $name($name),)*
            /// A type this build does not know, carried on as it came.
            Unknown(RawEvent),
        }

        impl Event {
            /// Every type of the catalogue with its current schema number.
            pub const CATALOGUE: &'static [(&'static str, u16)] = &[$((stringify!($name), $schema)),*];

            /// Its type.
            pub fn kind(&self) -> &str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                    Self::Unknown(raw) => &raw.kind,
                }
            }

            /// As it is carried.
            pub fn encode(&self) -> RawEvent {
                match self {
                    $(Self::$name(event) => RawEvent::new(SmolStr::new_static(stringify!($name)), $schema, Payload::encode(event)),)*
                    Self::Unknown(raw) => raw.clone(),
                }
            }

            /// Reads an event. A type or a schema from the future is `Unknown`; a known one whose fields are wrong is an error.
            pub fn decode(raw: &RawEvent) -> Result<Self, EventError> {
                match (raw.kind.as_str(), raw.schema) {
                    $((stringify!($name), $schema) => raw.data.decode().map(Self::$name).map_err(|source| EventError { kind: raw.kind.to_string(), schema: raw.schema, reason: source.to_string() }),)*
                    _ => Ok(Self::Unknown(raw.clone())),
                }
            }
        }
    };
}

/// A known event type whose fields do not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {kind} (schema {schema}) does not read: {reason}")]
pub struct EventError {
    /// Type.
    pub kind: String,
    /// Schema.
    pub schema: u16,
    /// What was wrong.
    pub reason: String,
}

catalogue! {
    // ---- service -----------------------------------------------------------------------------------------------------------

    /// A tenant was made.
    ServiceCreated = 1 {
        /// A name for people.
        name: String,
        /// SHA-256 of the secret key, hex.
        secret_key_hash: String,
        /// SHA-256 of the publishable key, hex.
        publishable_key_hash: String,
        /// Whether the publishable key may make rooms by asking a token for a name.
        publishable_creates_rooms: bool,
    }
    /// One of its keys was replaced.
    ServiceKeyRotated = 1 {
        /// `secret` or `publishable`.
        which: String,
        /// SHA-256 of the new key, hex.
        hash: String,
        /// The key before it opens until then, too; absent: nothing from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        old_until: Option<Timestamp>,
    }
    /// The key before the current one opens nothing any more, whatever was said of it.
    ServiceOldKeyRevoked = 1 {
        /// `secret` or `publishable`.
        which: String,
    }
    /// What can be changed of it is this from now on.
    ServiceChanged = 1 {
        /// A name for people.
        name: String,
        /// Whether the publishable key may make rooms by asking a token for a name.
        publishable_creates_rooms: bool,
        /// Origins (RFC 6454) whose pages may use its keys; empty: any.
        #[serde(default)]
        origins: Vec<String>,
    }
    /// What happens in its rooms is sent there, as this says from now on.
    WebhookSet = 1 {
        /// Its id.
        webhook: String,
        /// To where.
        url: String,
        /// Only events of these types; empty: all.
        #[serde(default)]
        types: Vec<String>,
        /// Whether anything is sent.
        enabled: bool,
        /// Which of its secrets signs: goes up when it is replaced.
        generation: u64,
        /// The secret before it signs too until then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        old_until: Option<Timestamp>,
        /// Tells the key apart that its secrets are computed from.
        key: String,
        /// Where in the log it begins; absent: where it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<Vec<u64>>,
    }
    /// Which NUVE sends for it from now on.
    WebhookClaimed = 1 {
        /// Its id.
        webhook: String,
        /// Which NUVE; absent: none, until one claims it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<StreamId>,
    }
    /// Its receiver has taken all up to here.
    WebhookAdvanced = 1 {
        /// Its id.
        webhook: String,
        /// A cursor of the journal.
        cursor: Vec<u64>,
    }
    /// Its receiver takes nothing.
    WebhookFailed = 1 {
        /// Its id.
        webhook: String,
        /// Since when.
        since: Timestamp,
        /// How often it was tried.
        attempts: u32,
        /// What came of it the last time.
        error: String,
    }
    /// Nothing is sent there any more.
    WebhookRemoved = 1 {
        /// Its id.
        webhook: String,
    }
    /// It is gone; its keys open nothing.
    ServiceDeleted = 1 {}

    // ---- room: life --------------------------------------------------------------------------------------------------------

    /// A room was made.
    RoomCreated = 1 {
        /// Whose.
        service: ServiceId,
        /// A name for people, unique within the service.
        name: String,
        /// How its EAs are chosen.
        eapolicy: EaPolicy,
        /// What the application keeps with it.
        #[serde(default)]
        metadata: Value,
    }
    /// The room was given to an EC incarnation; the epoch goes up with each.
    RoomPlaced = 1 {
        /// EC.
        ec: EcId,
        /// Which start of it.
        incarnation: Incarnation,
        /// The new epoch.
        epoch: Epoch,
        /// `first-token`, `ec-restarted`, `ec-lost`, `drain` …
        reason: SmolStr,
    }
    /// What can be changed of it is this from now on.
    RoomChanged = 1 {
        /// What the application keeps with it.
        metadata: Value,
        /// What bounds it.
        limits: RoomLimits,
    }
    /// The first client of a session is coming in.
    RoomOpened = 1 {}
    /// An EA was given the room.
    EaAssigned = 1 {
        /// Where.
        placement: Placement,
        /// By which policy.
        policy: EaPolicy,
        /// Every EA considered.
        candidates: Vec<Candidate>,
        /// Why: `first-client`, `client-bound`.
        reason: SmolStr,
        /// The media epoch the room is in from here on.
        media_epoch: MediaEpoch,
    }
    /// An EA no longer has the room.
    EaReleased = 1 {
        /// Which.
        ea: EaId,
        /// Why.
        reason: SmolStr,
    }
    /// The room's media went to another worker; all transports, producers and consumers are gone and are to be built anew.
    MediaMoved = 1 {
        /// From where.
        from: Option<Placement>,
        /// To where; absent when there was no worker to go to.
        to: Option<Placement>,
        /// `worker-died`, `ea-lost`, `ea-restarted`, `drain` …
        reason: SmolStr,
        /// The new media epoch.
        media_epoch: MediaEpoch,
        /// Every EA considered.
        #[serde(default)]
        candidates: Vec<Candidate>,
    }
    /// The session is over; the room stays and may have another.
    RoomClosed = 1 {
        /// `empty`, `deleted`, `admin` …
        reason: SmolStr,
    }
    /// The whole state at this point; what is below may be purged.
    RoomSnapshot = 1 {
        /// The fold's state.
        state: Payload,
    }
    /// The room is gone for good.
    RoomDeleted = 1 {
        /// Why.
        reason: SmolStr,
    }

    // ---- room: clients -----------------------------------------------------------------------------------------------------

    /// A token was taken and a client made.
    ClientAdmitted = 1 {
        /// Its id.
        client: ClientId,
        /// The user's name, from the token.
        user: String,
        /// The user's role, from the token.
        role: String,
        /// The client's address as seen.
        addr: String,
        /// The token's id, good for no other client.
        token: String,
        /// When the token ends.
        token_expires: Timestamp,
        /// SHA-256 of the resume key, hex.
        resume_key_hash: String,
    }
    /// What the client may do is this from now on, whatever its role says.
    ClientRightsChanged = 1 {
        /// Who.
        client: ClientId,
        /// Its role, for people.
        role: String,
        /// What it may do.
        rights: Rights,
    }
    /// The client was given an EA of the room.
    ClientBound = 1 {
        /// Who.
        client: ClientId,
        /// Where.
        ea: EaId,
        /// Every EA considered; empty when the room's own was taken.
        #[serde(default)]
        candidates: Vec<Candidate>,
    }
    /// The EA has made the client.
    ClientAttached = 1 {
        /// Who.
        client: ClientId,
        /// Where.
        ea: EaId,
    }
    /// The client takes part: others see it.
    ClientJoined = 1 {
        /// Who.
        client: ClientId,
        /// The name others see.
        display_name: String,
        /// What the client says it is.
        device: Value,
        /// What it can receive; absent means it does not consume.
        rtp_capabilities: Option<RtpCapabilities>,
    }
    /// It goes by another name.
    DisplayNameChanged = 1 {
        /// Who.
        client: ClientId,
        /// The new name.
        display_name: String,
        /// The old one.
        old_display_name: SmolStr,
    }
    /// Its socket broke; it may resume.
    ClientDisconnected = 1 {
        /// Who.
        client: ClientId,
        /// Why.
        reason: SmolStr,
        /// When it will be counted as gone.
        resume_until: Timestamp,
    }
    /// It is back.
    ClientResumed = 1 {
        /// Who.
        client: ClientId,
        /// `resume` (it kept its state) or `reattach` (it starts over: its transports are gone and it has to join again).
        how: SmolStr,
    }
    /// It is gone.
    ClientLeft = 1 {
        /// Who.
        client: ClientId,
        /// `left`, `timeout`, `kicked`, `ice-lost`, `room-deleted` …
        reason: SmolStr,
    }

    // ---- room: media -------------------------------------------------------------------------------------------------------

    /// A transport was made.
    TransportCreated = 1 {
        /// Whose.
        client: ClientId,
        /// Its id.
        transport: TransportId,
        /// For sending to us.
        producing: bool,
        /// For receiving from us.
        consuming: bool,
    }
    /// Its DTLS is up.
    TransportConnected = 1 {
        /// Which.
        transport: TransportId,
    }
    /// It is gone, with all that was on it.
    TransportClosed = 1 {
        /// Which.
        transport: TransportId,
        /// Why.
        reason: SmolStr,
    }
    /// A client sends a stream.
    ProducerCreated = 1 {
        /// Who.
        client: ClientId,
        /// Its id.
        producer: ProducerId,
        /// On which transport.
        transport: TransportId,
        /// Audio or video.
        kind: MediaKind,
        /// What is sent.
        rtp_parameters: RtpParameters,
        /// What consumers of it are.
        consumer_type: ConsumerType,
        /// The application's own data.
        app_data: Value,
        /// Whether it starts paused.
        paused: bool,
    }
    /// Its owner paused it.
    ProducerPaused = 1 {
        /// Which.
        producer: ProducerId,
    }
    /// Its owner resumed it.
    ProducerResumed = 1 {
        /// Which.
        producer: ProducerId,
    }
    /// It is paused, and its owner may not resume it.
    ProducerMuted = 1 {
        /// Which.
        producer: ProducerId,
        /// The client that did it; absent: the application.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<ClientId>,
    }
    /// Its owner may resume it again. Nobody else does it: a microphone is opened only by who speaks.
    ProducerUnmuted = 1 {
        /// Which.
        producer: ProducerId,
        /// The client that did it; absent: the application.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<ClientId>,
    }
    /// It is gone, with its consumers.
    ProducerClosed = 1 {
        /// Which.
        producer: ProducerId,
        /// Why.
        reason: SmolStr,
    }
    /// A client is sent a stream; starts paused.
    ConsumerCreated = 1 {
        /// Who.
        client: ClientId,
        /// Its id.
        consumer: ConsumerId,
        /// On which transport.
        transport: TransportId,
        /// Of which producer.
        producer: ProducerId,
        /// Audio or video.
        kind: MediaKind,
        /// What is sent to it.
        rtp_parameters: RtpParameters,
        /// How it picks layers.
        consumer_type: ConsumerType,
    }
    /// Its client paused it.
    ConsumerPaused = 1 {
        /// Which.
        consumer: ConsumerId,
    }
    /// Its client accepted or resumed it.
    ConsumerResumed = 1 {
        /// Which.
        consumer: ConsumerId,
    }
    /// Its client prefers these layers.
    ConsumerLayersPreferred = 1 {
        /// Which.
        consumer: ConsumerId,
        /// The layers.
        layers: ConsumerLayers,
    }
    /// Its client ranks it so, 1 to 255.
    ConsumerPrioritySet = 1 {
        /// Which.
        consumer: ConsumerId,
        /// The rank.
        priority: u8,
    }
    /// It is gone.
    ConsumerClosed = 1 {
        /// Which.
        consumer: ConsumerId,
        /// `refused` when the client would not have it.
        reason: SmolStr,
    }
    /// This client will not be sent this producer: it cannot, or would not.
    ConsumerRefused = 1 {
        /// Who.
        client: ClientId,
        /// What.
        producer: ProducerId,
        /// Why.
        reason: SmolStr,
    }

    // ---- nodes -------------------------------------------------------------------------------------------------------------

    /// A node started.
    NodeRegistered = 1 {
        /// Which start of it.
        incarnation: Incarnation,
        /// Where others reach it: the WebSocket URL of an EC, the media addresses of an EA, the HTTP URL of a NUVE.
        address: String,
        /// SFU workers, of an EA.
        #[serde(default)]
        workers: u16,
        /// The build.
        version: String,
        /// With this password, and the user name fragment `probe`, the workers of an EA answer binding requests (RFC 8445): a sign of
        /// life when the EA itself is not heard.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        probe: Option<String>,
        /// Workers of the start before that live on, with their rooms: what was placed on them still is. Whoever does not know this field
        /// takes them for dead, which costs an interruption and nothing else.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        adopted: Vec<AdoptedWorker>,
    }
    /// It was silent for too long.
    NodeLost = 1 {
        /// Which start of it.
        incarnation: Incarnation,
        /// Who noticed.
        observer: String,
        /// How.
        reason: String,
    }
    /// It takes nothing new.
    NodeDraining = 1 {
        /// Which start of it.
        incarnation: Incarnation,
        /// When it ends at the latest.
        #[serde(default)]
        deadline: Option<Timestamp>,
    }
    /// It stopped as told.
    NodeLeft = 1 {
        /// Which start of it.
        incarnation: Incarnation,
    }
    /// Who hands out shares of the limit that all NUVE nodes have together, and what each may use without being handed anything. In the
    /// stream of [`limit_stream`](crate::commit::limit_stream). Each of these replaces the one before.
    LimitShared = 1 {
        /// Goes up with each holder.
        epoch: u64,
        /// The NUVE that hands out.
        holder: StreamId,
        /// Which start of it.
        incarnation: Incarnation,
        /// The limit, in thousandths of a request per second.
        limit: u64,
        /// The fixed share of each node, in the same unit; together no more than the limit.
        floors: BTreeMap<StreamId, u64>,
    }
    /// An SFU worker is ready.
    WorkerStarted = 1 {
        /// Which.
        worker: WorkerIndex,
        /// Which start of it.
        generation: u64,
    }
    /// An SFU worker died or was killed because it hung.
    WorkerDied = 1 {
        /// Which.
        worker: WorkerIndex,
        /// Which start of it.
        generation: u64,
        /// Exit status, signal, or `hung`.
        reason: String,
        /// Rooms that were on it.
        rooms: Vec<RoomId>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_back_and_strangers_are_carried_on() {
        let event = Event::from(ClientLeft { client: ClientId::new("c1").unwrap(), reason: "left".into() });
        let raw = event.encode();
        assert_eq!((raw.kind.as_str(), raw.schema), ("ClientLeft", 1));
        assert_eq!(Event::decode(&raw).unwrap(), event);

        let stranger = RawEvent::new("ClientWaved", 7, Payload::encode(&serde_json::json!({"hand": "left"})));
        let carried = Event::decode(&stranger).unwrap();
        assert_eq!(carried.encode(), stranger);

        let newer = RawEvent { schema: 2, ..raw.clone() };
        assert!(matches!(Event::decode(&newer).unwrap(), Event::Unknown(_)));
        let damaged = RawEvent { data: Payload::encode(&1), ..raw };
        assert!(Event::decode(&damaged).unwrap_err().to_string().contains("ClientLeft"));
    }
}
