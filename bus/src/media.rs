//! The media commands: what an EC asks of an EA, and an EA of its SFU worker, with what comes back.
//!
//! Every object id is chosen by the EC, and every command is idempotent by that id: asked twice, it does nothing the second time and
//! gives the same answer. Creating commands make *provisional* objects; what stays is what the log then says. Closing, pausing,
//! resuming and moving are no commands: an EA does them when it folds the committed event, and then tells its worker in
//! [`MediaCommand::Close`] and its neighbours, which no EC may send.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ids::{ConsumerId, MediaEpoch, ProducerId, RoomId, TransportId},
    ortc::{
        ConsumerLayers, ConsumerType, DtlsParameters, IceCandidate, IceParameters, MediaKind,
        RtpCapabilities, RtpParameters,
    },
};

/// Names one object in a worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaObject {
    /// A whole room.
    Router,
    /// A transport and all on it.
    Transport(TransportId),
    /// A producer and all its consumers.
    Producer(ProducerId),
    /// A consumer.
    Consumer(ConsumerId),
}

/// What is asked of a router (the worker's side of a room).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaCommand {
    /// Make the router. Answer: [`MediaAnswer::Router`].
    CreateRouter,
    /// Make a WebRTC transport. Answer: [`MediaAnswer::Transport`].
    CreateTransport {
        /// Its id.
        transport: TransportId,
    },
    /// Give the client's DTLS fingerprints. Answer: [`MediaAnswer::Done`].
    ConnectTransport {
        /// Which.
        transport: TransportId,
        /// The client's.
        dtls: DtlsParameters,
    },
    /// New ICE credentials. Answer: [`MediaAnswer::Ice`].
    RestartIce {
        /// Which.
        transport: TransportId,
    },
    /// Take media from the client. Answer: [`MediaAnswer::Producer`].
    Produce {
        /// On which transport.
        transport: TransportId,
        /// Its id.
        producer: ProducerId,
        /// Audio or video.
        kind: MediaKind,
        /// What the client sends.
        rtp_parameters: RtpParameters,
        /// Whether it starts paused.
        paused: bool,
    },
    /// Send a producer's media to the client; starts paused. Answer: [`MediaAnswer::Consumer`], or the error `cannot_consume`.
    Consume {
        /// On which transport.
        transport: TransportId,
        /// Its id.
        consumer: ConsumerId,
        /// Of whom.
        producer: ProducerId,
        /// What the client can receive.
        rtp_capabilities: RtpCapabilities,
    },
    /// Ask the producer behind a consumer for a key frame. Answer: [`MediaAnswer::Done`].
    RequestKeyFrame {
        /// For whom.
        consumer: ConsumerId,
    },
    /// Which layers a consumer would like. Answer: [`MediaAnswer::Done`].
    SetPreferredLayers {
        /// Which.
        consumer: ConsumerId,
        /// The layers.
        layers: ConsumerLayers,
    },
    /// How a consumer ranks among those of its transport, 1 to 255. Answer: [`MediaAnswer::Done`].
    SetPriority {
        /// Which.
        consumer: ConsumerId,
        /// Higher gets its bandwidth first.
        priority: u8,
    },
    /// Statistics. Answer: [`MediaAnswer::Stats`].
    GetStats {
        /// Of what.
        of: MediaObject,
    },
    /// Everything the router holds. Answer: [`MediaAnswer::Inventory`].
    Inventory,
    /// From an EA only: destroy an object and all that hangs on it. Answer: [`MediaAnswer::Done`], also when it is not there.
    Close {
        /// What.
        object: MediaObject,
    },
    /// From an EA only: pause or resume a producer. Answer: [`MediaAnswer::Done`].
    PauseProducer {
        /// Which.
        producer: ProducerId,
        /// Paused or not.
        paused: bool,
    },
    /// From an EA only: pause or resume a consumer; resuming asks for a key frame. Answer: [`MediaAnswer::Done`].
    PauseConsumer {
        /// Which.
        consumer: ConsumerId,
        /// Paused or not.
        paused: bool,
    },
}

/// The good outcome of a [`MediaCommand`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaAnswer {
    /// Nothing to say.
    Done,
    /// The router's capabilities.
    Router {
        /// What clients may send and receive.
        rtp_capabilities: RtpCapabilities,
    },
    /// A transport, as the client needs it.
    Transport {
        /// The worker's ICE credentials.
        ice_parameters: IceParameters,
        /// Where to send to.
        ice_candidates: Vec<IceCandidate>,
        /// The worker's DTLS side.
        dtls_parameters: DtlsParameters,
    },
    /// New ICE credentials.
    Ice {
        /// The worker's.
        ice_parameters: IceParameters,
    },
    /// A producer.
    Producer {
        /// What a consumer of it will be.
        consumer_type: ConsumerType,
    },
    /// A consumer, as the client needs it.
    Consumer {
        /// Audio or video.
        kind: MediaKind,
        /// What the client will receive.
        rtp_parameters: RtpParameters,
        /// How it picks layers.
        consumer_type: ConsumerType,
    },
    /// Statistics, an array with mediasoup's field names.
    Stats {
        /// The array.
        stats: Value,
    },
    /// Everything the router holds.
    Inventory {
        /// The objects.
        inventory: RouterInventory,
    },
}

/// The bad outcome of a [`MediaCommand`]. `code` is one of the numbers of the signalling error table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaError {
    /// The worker or EA has no such room.
    #[error("no such room on this EA")]
    NoRoom,
    /// No such transport, producer or consumer.
    #[error("no such {what}: {id}")]
    NoObject {
        /// `transport`, `producer`, `consumer`.
        what: String,
        /// The id asked for.
        id: String,
    },
    /// The client cannot receive what the producer sends.
    #[error("the client cannot consume producer {producer}")]
    CannotConsume {
        /// Which.
        producer: ProducerId,
    },
    /// The parameters contradict the rules of ORTC or of this router.
    #[error("bad parameters: {reason}")]
    BadParameters {
        /// What is wrong with them.
        reason: String,
    },
    /// The object is not in a state for this, such as a second `connect` with other fingerprints.
    #[error("wrong state: {reason}")]
    WrongState {
        /// What is wrong.
        reason: String,
    },
    /// The epoch named is older than one this EA has seen.
    #[error("stale epoch: the EA has seen {seen}")]
    StaleEpoch {
        /// The highest seen.
        seen: u64,
    },
    /// The worker is full, dead or unwilling; another may serve.
    #[error("the SFU worker cannot serve this: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// Everything a router holds, sorted by id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouterInventory {
    /// Transports.
    pub transports: Vec<TransportInventory>,
    /// Producers.
    pub producers: Vec<ProducerInventory>,
    /// Consumers.
    pub consumers: Vec<ConsumerInventory>,
}

/// One transport in a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportInventory {
    /// Its id.
    pub id: TransportId,
    /// How far it has come.
    pub state: TransportState,
}

/// How far a transport has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransportState {
    /// Made; no valid packet yet.
    New,
    /// ICE has a pair; DTLS is under way.
    Connecting,
    /// Media can flow.
    Connected,
    /// No ICE consent for [`crate::media::ICE_CONSENT_MS`].
    Disconnected,
    /// DTLS failed or was closed; final.
    Failed,
}

/// One producer in a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerInventory {
    /// Its id.
    pub id: ProducerId,
    /// On which transport.
    pub transport: TransportId,
    /// Paused or not.
    pub paused: bool,
}

/// One consumer in a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerInventory {
    /// Its id.
    pub id: ConsumerId,
    /// On which transport.
    pub transport: TransportId,
    /// Of whom.
    pub producer: ProducerId,
    /// Paused by its client or not.
    pub paused: bool,
}

/// ICE consent expires after this long without a valid binding request, in milliseconds (RFC 7675 §5.1: 30 s; a lite side that sees
/// no request for 20 s acts first, since signalling counts a leave from it).
pub const ICE_CONSENT_MS: u64 = 20_000;

/// What a worker finds out by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaNotification {
    /// A transport changed its state.
    TransportState {
        /// Which.
        transport: TransportId,
        /// To what.
        state: TransportState,
    },
    /// The score of a producer's streams changed, 0 (nothing arrives) to 10 (all arrives).
    ProducerScore {
        /// Which.
        producer: ProducerId,
        /// One per stream: `[{ssrc, rid, score}]`.
        score: Value,
    },
    /// The score of a consumer changed.
    ConsumerScore {
        /// Which.
        consumer: ConsumerId,
        /// `{score, producerScore, producerScores}`.
        score: Value,
    },
    /// The layers a consumer forwards changed; absent when none.
    ConsumerLayers {
        /// Which.
        consumer: ConsumerId,
        /// Which layers now.
        layers: Option<ConsumerLayers>,
    },
    /// Somebody else is loudest now.
    ActiveSpeaker {
        /// Whose producer; absent when all are silent.
        producer: Option<ProducerId>,
        /// dBov, -127 (silence) to 0.
        volume: i8,
    },
}

/// A notification with the room it is about; what EAs publish to the room's EC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoomNotification {
    /// Room.
    pub room: RoomId,
    /// Media epoch it belongs to.
    pub media_epoch: MediaEpoch,
    /// What.
    pub notification: MediaNotification,
}
