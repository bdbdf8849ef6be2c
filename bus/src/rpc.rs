//! Commands between roles, as they travel on `roomlog.rpc.<kind>.<id>`: MessagePack with named fields, one answer each.

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    bus::{Bus, RequestError},
    commit::{Payload, StreamId},
    events::{Placement, RoomLimits},
    ids::{ClientId, Epoch, Incarnation, MediaEpoch, ProducerId, RoomId, Version},
    media::{MediaAnswer, MediaCommand, MediaError, RoomNotification},
    rights::Rights,
    subject::Subject,
};

/// An answer is waited for this long. Local work takes milliseconds; 5 s outlasts a stall of the disk but not a client's patience (15 s).
pub const RPC_TIMEOUT: Duration = Duration::from_secs(5);

/// To an EA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one is made, written and gone; none are kept")]
pub enum EaRequest {
    /// Make the room provisionally on the worker whose turn it is; idempotent. Answer: [`EaAnswer::Opened`].
    OpenRoom {
        /// Room.
        room: RoomId,
        /// Ownership epoch the EC acts under.
        epoch: Epoch,
        /// Media epoch the room will be in.
        media_epoch: MediaEpoch,
    },
    /// Do this in the room's router. Answer: [`EaAnswer::Media`].
    Media {
        /// Room.
        room: RoomId,
        /// Ownership epoch the EC acts under.
        epoch: Epoch,
        /// Media epoch that is meant.
        media_epoch: MediaEpoch,
        /// For which client.
        client: Option<ClientId>,
        /// What.
        command: MediaCommand,
    },
    /// The fold the EA holds of a room. Answer: [`EaAnswer::State`].
    RoomState {
        /// Room.
        room: RoomId,
        /// Wait until this version has been folded, for up to [`RPC_TIMEOUT`].
        min_version: Version,
    },
    /// All rooms the EA holds. Answer: [`EaAnswer::Rooms`].
    Rooms,
}

/// From an EA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EaAnswer {
    /// The room is there.
    Opened {
        /// Where.
        placement: Placement,
        /// Rooms on this EA now, this one counted.
        rooms: u64,
    },
    /// What the worker said.
    Media {
        /// Its answer.
        answer: MediaAnswer,
    },
    /// A fold.
    State {
        /// Version folded up to.
        version: Version,
        /// The state as JSON, in the form `roomlog replay state` prints; null when the EA does not hold the room.
        state: Value,
    },
    /// Rooms and where they are.
    Rooms {
        /// Each room with its worker.
        rooms: Vec<(RoomId, Placement)>,
    },
}

/// To an EC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EcRequest {
    /// Put a client out. Answer: [`EcAnswer::Version`].
    RemoveClient {
        /// Room.
        room: RoomId,
        /// Who.
        client: ClientId,
        /// Why; goes into the log and the close reason.
        reason: String,
    },
    /// Change what a client may do. Answer: [`EcAnswer::Version`].
    ChangeRights {
        /// Room.
        room: RoomId,
        /// Who.
        client: ClientId,
        /// Its role, for people.
        role: String,
        /// What it may do.
        rights: Rights,
    },
    /// Mute what a client sends, or let it speak again. Answer: [`EcAnswer::Version`].
    Mute {
        /// Room.
        room: RoomId,
        /// Who.
        client: ClientId,
        /// What.
        producer: ProducerId,
        /// Whether.
        muted: bool,
    },
    /// Change the room. Answer: [`EcAnswer::Version`].
    ChangeRoom {
        /// Room.
        room: RoomId,
        /// What the application keeps with it.
        metadata: Value,
        /// What bounds it.
        limits: RoomLimits,
        /// Only if it is at this version.
        if_version: Option<Version>,
    },
    /// Delete the room, putting out whoever is in it. Answer: [`EcAnswer::Version`].
    DeleteRoom {
        /// Room.
        room: RoomId,
        /// Only if it is at this version.
        #[serde(default)]
        if_version: Option<Version>,
        /// Why.
        reason: String,
    },
    /// The fold the EC holds of a room. Answer: [`EcAnswer::State`].
    RoomState {
        /// Room.
        room: RoomId,
    },
    /// From an EA, without an answer: a worker found something out.
    Notification {
        /// What.
        notification: RoomNotification,
    },
}

/// From an EC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EcAnswer {
    /// Done; the room is at this version.
    Version {
        /// Version.
        version: Version,
    },
    /// A fold.
    State {
        /// Version folded up to.
        version: Version,
        /// The state as JSON; null when the EC does not hold the room.
        state: Value,
    },
}

/// To any NUVE, `roomlog.rpc.nuve.any`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NuveRequest {
    /// The public keys tokens are signed with. Answer: [`NuveAnswer::Keys`].
    TokenKeys,
    /// Write down that an EC or an EA is draining. Answer: [`NuveAnswer::Draining`].
    Drain {
        /// Which node.
        node: StreamId,
        /// How long it may take; what is left then is moved.
        within: Duration,
    },
    /// To the holder of the shared limit: a share of it. Answer: [`NuveAnswer::Limit`].
    Limit(LimitAsk),
}

/// A NUVE asks the holder of the limit that all NUVE nodes have together for a share. Rates are in thousandths of a request per second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitAsk {
    /// Who asks.
    pub node: StreamId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The epoch of the grant it last took; 0 before its first.
    pub epoch: u64,
    /// Counts its asks. Once this one is sent, no answer to an earlier one will be taken.
    pub number: u64,
    /// The ask whose answer it last took, in that epoch.
    pub applied: u64,
    /// What it may use at present, whoever granted it.
    pub held: u64,
    /// What it could use: requests that came, served or not.
    pub demand: u64,
    /// Requests waiting there.
    pub waiting: u64,
}

/// A share of the limit. How long it holds is agreed on in `nuve/src/limits/lease.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitGrant {
    /// The holder's epoch.
    pub epoch: u64,
    /// The ask that this answers.
    pub number: u64,
    /// So much may be used.
    pub rate: u64,
    /// So much may be used when that is over.
    pub floor: u64,
    /// Whether nothing can be in use that an earlier start of this node has lent.
    pub clean: bool,
    /// Ask again after so many milliseconds.
    pub again_ms: u64,
}

/// From a NUVE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NuveAnswer {
    /// Public keys.
    Keys {
        /// Key id (`kid` in the token's header) and the 32 bytes of the Ed25519 public key (RFC 8032).
        keys: Vec<(String, Vec<u8>)>,
    },
    /// It is written down.
    Draining,
    /// A share.
    Limit(LimitGrant),
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RpcError {
    /// The worker said no.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The node does not own that room.
    #[error("this node does not own room {room}")]
    NotOwner {
        /// Room.
        room: RoomId,
    },
    /// There is no such room or client.
    #[error("no such {what}")]
    NotFound {
        /// What.
        what: String,
    },
    /// It is not at the version that was named.
    #[error("it is at version {version}, not at the one named")]
    Version {
        /// At which.
        version: Version,
    },
    /// It may not be done, and trying again does not help.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// Not now; trying again may help.
    #[error("retry later: {reason}")]
    Retry {
        /// Why.
        reason: String,
    },
    /// The request does not read.
    #[error("malformed request: {reason}")]
    Malformed {
        /// Why.
        reason: String,
    },
    /// The node could not be asked.
    #[error("{node} could not be asked: {reason}")]
    Unreachable {
        /// Which.
        node: String,
        /// No responders, timeout, bus away.
        reason: String,
        /// Nobody listens there at all: the node is not running.
        no_responders: bool,
    },
}

/// What every node says of itself once a second on `roomlog.hb.<kind>.<id>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub node: StreamId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Rooms it holds.
    pub rooms: u64,
    /// Clients it holds.
    pub clients: u64,
    /// Takes nothing new.
    pub draining: bool,
}

/// Asks `node` and waits for its answer, decoding both ways.
pub async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
    bus: &dyn Bus,
    subject: Subject,
    request: &Q,
    timeout: Duration,
) -> Result<A, RpcError> {
    let node = subject.to_string();
    let reply = bus.request(subject, Payload::encode(request).0, timeout).await.map_err(|error| {
        RpcError::Unreachable {
            node: node.clone(),
            no_responders: matches!(error, RequestError::NoResponders(_)),
            reason: error.to_string(),
        }
    })?;
    let answer: Result<A, RpcError> = Payload(reply.payload)
        .decode()
        .map_err(|error| RpcError::Malformed { reason: format!("answer of {node}: {error}") })?;
    answer
}
