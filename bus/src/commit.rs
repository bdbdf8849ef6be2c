//! The commit: the unit of appending. All events of one decision, in one message, accepted whole or not at all.
//!
//! On disk and on the wire a commit is a MessagePack map with named fields, so that any language reads it and fields can be added.
//! Each event is a type tag beside an opaque payload: a reader that does not know the type carries it on, as it does fields that it does
//! not know of a commit, its cause and its events' frames. A writer's name and incarnation have no other fields: new ones go beside it.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use rand::RngCore;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor},
};
use smol_str::SmolStr;
use uuid::Uuid;

use crate::{
    carried::{More, carries},
    ids::{Epoch, Incarnation, MAX_ID_BYTES, Version, is_token},
    time::Timestamp,
};

/// The largest encoded commit, in bytes. sled moves values of 128 KiB and more out of line, so a commit and its frame stay below that.
pub const MAX_COMMIT_BYTES: usize = 120 * 1024;

/// What kind of thing a stream is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamKind {
    /// A room.
    Room,
    /// An EA node.
    Ea,
    /// An EC node.
    Ec,
    /// A NUVE node.
    Nuve,
    /// A service (tenant).
    Service,
}

impl StreamKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Room, Self::Ea, Self::Ec, Self::Nuve, Self::Service];

    /// The kind as it stands in subjects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::Ea => "ea",
            Self::Ec => "ec",
            Self::Nuve => "nuve",
            Self::Service => "service",
        }
    }
}

/// Names a stream: `room.<id>`, `ea.<id>`, `ec.<id>`, `nuve.<id>`, `service.<id>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    kind: StreamKind,
    id: SmolStr,
}

/// Why a text names no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no stream: write room.<id>, ea.<id>, ec.<id>, nuve.<id> or service.<id>")]
pub struct InvalidStreamId(pub String);

impl StreamId {
    /// A stream of `kind` about the thing called `id`; `id` must be a subject token.
    pub fn new(kind: StreamKind, id: &str) -> Result<Self, InvalidStreamId> {
        if is_token(id) {
            Ok(Self { kind, id: id.into() })
        } else {
            Err(InvalidStreamId(format!("{}.{id}", kind.as_str())))
        }
    }

    /// Its kind.
    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    /// Its id without the kind.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The partition it is hashed onto, of `partitions` (at least 1): FNV-1a, 64 bits, over `kind.id`, modulo `partitions`.
    pub fn partition(&self, partitions: u16) -> u16 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.kind.as_str().bytes().chain([b'.']).chain(self.id.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        (hash % u64::from(partitions.max(1))) as u16
    }
}

macro_rules! stream_of {
    ($($id:ident => $kind:ident),*) => {$(
        impl From<&crate::ids::$id> for StreamId {
            fn from(id: &crate::ids::$id) -> Self {
                Self { kind: StreamKind::$kind, id: id.as_str().into() }
            }
        }
    )*};
}
stream_of!(RoomId => Room, EaId => Ea, EcId => Ec, NuveId => Nuve, ServiceId => Service);

/// Id of the stream about the limit that all NUVE nodes have together; no node may be called so.
pub const LIMIT_ID: &str = "_limit";

/// The stream in which it is settled who hands out shares of the limit that all NUVE nodes have together.
pub fn limit_stream() -> StreamId {
    StreamId { kind: StreamKind::Nuve, id: LIMIT_ID.into() }
}

impl FromStr for StreamId {
    type Err = InvalidStreamId;

    fn from_str(text: &str) -> Result<Self, InvalidStreamId> {
        let bad = || InvalidStreamId(text.chars().take(100).collect());
        let (kind, id) = text.split_once('.').ok_or_else(bad)?;
        let kind = StreamKind::ALL.into_iter().find(|k| k.as_str() == kind).ok_or_else(bad)?;
        Self::new(kind, id).map_err(|_| bad())
    }
}

/// The longest name of a stream: `service.` and an id.
const MAX_STREAM_BYTES: usize = "service.".len() + MAX_ID_BYTES;

impl Serialize for StreamId {
    /// Twice in every commit, so without an allocation.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, mut name, mut end) = (self.kind.as_str(), [0; MAX_STREAM_BYTES], 0);
        for part in [kind, ".", &self.id] {
            name[end..end + part.len()].copy_from_slice(part.as_bytes());
            end += part.len();
        }
        serializer.serialize_str(std::str::from_utf8(&name[..end]).expect("its parts are text"))
    }
}

impl<'de> Deserialize<'de> for StreamId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Name)
    }
}

/// Reads a stream's name where it lies.
struct Name;

impl Visitor<'_> for Name {
    type Value = StreamId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a stream")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StreamId, E> {
        text.parse().map_err(E::custom)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind.as_str(), self.id)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Id of a commit: a UUIDv7 (RFC 9562 §5.7), so ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommitId(Uuid);

impl CommitId {
    /// A fresh id.
    pub fn new(now: Timestamp, rng: &mut dyn RngCore) -> Self {
        let mut random = [0; 10];
        rng.fill_bytes(&mut random);
        Self(uuid::Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid())
    }

    /// When it was made, to the millisecond.
    pub fn time(&self) -> Timestamp {
        let mut millis = [0; 8];
        millis[2..].copy_from_slice(&self.0.as_bytes()[..6]);
        Timestamp(u64::from_be_bytes(millis).saturating_mul(1_000))
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Bytes that hold one MessagePack value whose shape the carrier need not know.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Payload(pub Bytes);

impl Payload {
    /// Encodes `value` as a MessagePack map with named fields.
    pub fn encode<T: Serialize>(value: &T) -> Self {
        Self(
            rmp_serde::to_vec_named(value)
                .expect("our own types have text keys and no failing serializer")
                .into(),
        )
    }

    /// Decodes it as `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, rmp_serde::decode::Error> {
        rmp_serde::from_slice(&self.0)
    }

    /// The value as JSON, for people. Empty payloads are `null`.
    pub fn to_json(&self) -> serde_json::Value {
        if self.0.is_empty() {
            return serde_json::Value::Null;
        }
        self.decode().unwrap_or_else(
            |error| serde_json::json!({ "undecodable": error.to_string(), "bytes": self.0.len() }),
        )
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_json())
    }
}

/// An event as it is carried: a type tag beside an opaque payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct RawEvent {
    /// Name in the catalogue, past tense.
    #[serde(rename = "type")]
    pub kind: SmolStr,
    /// Schema number of `data`; old ones are upcast on read.
    pub schema: u16,
    /// The event's own fields.
    pub data: Payload,
    /// Fields that a newer version added.
    #[serde(skip)]
    pub more: More,
}

impl RawEvent {
    /// One with no fields but these.
    pub fn new(kind: impl Into<SmolStr>, schema: u16, data: Payload) -> Self {
        Self { kind: kind.into(), schema, data, more: More::default() }
    }
}

/// Who wrote a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Node, as the stream that describes it: `ec.<id>`, `nuve.<id>`, `ea.<id>`.
    pub node: StreamId,
    /// Which start of it.
    pub incarnation: Incarnation,
}

/// What led to a commit; joins it with the trace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Cause {
    /// `request`, `timer`, `notification`, `recovery`, `http`.
    pub kind: SmolStr,
    /// The client, where a client asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<crate::ids::ClientId>,
    /// The client's request id, where a client asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// Trace id, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Fields that a newer version added.
    #[serde(skip)]
    pub more: More,
}

impl Cause {
    /// A cause with no client behind it.
    pub fn of(kind: &str) -> Self {
        Self { kind: kind.into(), ..Self::default() }
    }
}

/// What a commit takes besides its payloads and events, at most, in most: names, ids, times, writer and cause. Room for it is made at once.
const FRAME_BYTES: usize = 384;

/// What an event takes besides its payload, in most.
const EVENT_FRAME_BYTES: usize = 64;

/// All events of one decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Commit {
    /// Its id; also the deduplication id.
    pub id: CommitId,
    /// The commit before it in its stream; absent on the first.
    pub prev: Option<CommitId>,
    /// Its stream.
    pub stream: StreamId,
    /// Version of its first event.
    pub version: Version,
    /// The writer's clock.
    pub time: Timestamp,
    /// Who wrote it.
    pub writer: Writer,
    /// For room streams: the ownership epoch the writer acted under.
    pub epoch: Epoch,
    /// What led to it.
    pub cause: Cause,
    /// What was asked.
    #[serde(default)]
    pub command: Payload,
    /// What `decide` read besides the state.
    #[serde(default)]
    pub facts: Payload,
    /// At least one.
    pub events: Vec<RawEvent>,
    /// Fields that a newer version added.
    #[serde(skip)]
    pub more: More,
}

carries!(RawEvent, Cause, Commit);

impl Commit {
    /// Version of its last event.
    pub fn last_version(&self) -> Version {
        Version(self.version.0 + (self.events.len() as u64).saturating_sub(1))
    }

    /// The head of its stream once it is stored.
    pub fn head(&self) -> Head {
        Head { version: self.last_version(), id: self.id }
    }

    /// Its MessagePack form.
    pub fn encode(&self) -> Vec<u8> {
        let payloads = self.events.iter().map(|event| &event.data).chain([&self.command, &self.facts]);
        let payloads: usize = payloads.map(|payload| payload.0.len()).sum();
        let mut out = Vec::with_capacity(payloads + FRAME_BYTES + self.events.len() * EVENT_FRAME_BYTES);
        rmp_serde::encode::write_named(&mut out, self)
            .expect("a commit has text keys and no failing serializer");
        out
    }

    /// Reads the MessagePack form.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }

    /// Whether it may follow `head` in its stream: the version and `prev` it claims are those of the head.
    pub fn follows(&self, head: Option<&Head>) -> bool {
        match head {
            None => self.version == Version(1) && self.prev.is_none(),
            Some(head) => self.version == head.version.next() && self.prev == Some(head.id),
        }
    }
}

/// What tells a commit's place in its stream, read from its encoded form without the rest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Outline {
    /// Its id.
    pub id: CommitId,
    /// Its stream.
    pub stream: StreamId,
    /// Version of its first event.
    pub version: Version,
    events: Count,
}

impl Outline {
    /// Of an encoded commit. What it does not tell is not checked.
    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }

    /// The head of its stream once it is stored.
    pub fn head(&self) -> Head {
        Head { version: Version(self.version.0 + self.events.0.saturating_sub(1)), id: self.id }
    }
}

/// How many elements a sequence has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Count(u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Self(0))
    }
}

impl<'de> Visitor<'de> for Count {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<Self, A::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {
            self.0 += 1;
        }
        Ok(self)
    }
}

/// Where a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Version of its last event.
    pub version: Version,
    /// Its last commit.
    pub id: CommitId,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(stream: &str, events: u64) -> Commit {
        let data = Payload::encode(&serde_json::json!({ "some": ["thing", 1, null] }));
        Commit {
            id: CommitId::from_bytes([7; 16]),
            prev: Some(CommitId::from_bytes([6; 16])),
            stream: stream.parse().unwrap(),
            version: Version(5),
            time: Timestamp(1),
            writer: Writer { node: "ec.ec-1".parse().unwrap(), incarnation: Incarnation(2) },
            epoch: Epoch(3),
            cause: Cause::of("request"),
            command: data.clone(),
            facts: Payload::default(),
            events: (0..events).map(|_| RawEvent::new("Tested", 1, data.clone())).collect(),
            more: More::default().with("newer", &[1, 2]),
        }
    }

    #[test]
    fn an_outline_says_of_a_commit_what_the_commit_says() {
        for events in [1, 2, 40] {
            let commit = commit("room.a-b_c", events);
            let outline = Outline::decode(&commit.encode()).unwrap();
            assert_eq!(
                (outline.id, &outline.stream, outline.version),
                (commit.id, &commit.stream, commit.version)
            );
            assert_eq!(outline.head(), commit.head());
        }
    }

    #[test]
    fn the_longest_name_of_a_stream_is_written_and_read() {
        for kind in StreamKind::ALL {
            let stream = StreamId::new(kind, &"x".repeat(MAX_ID_BYTES)).unwrap();
            let bytes = rmp_serde::to_vec(&stream).unwrap();
            assert_eq!(bytes, rmp_serde::to_vec(&stream.to_string()).unwrap());
            assert_eq!(rmp_serde::from_slice::<StreamId>(&bytes).unwrap(), stream);
        }
        for bad in ["room.", "room", "house.a", "room.a b", ".a"] {
            let refused = rmp_serde::from_slice::<StreamId>(&rmp_serde::to_vec(bad).unwrap());
            assert!(refused.unwrap_err().to_string().contains("names no stream"), "{bad}");
        }
    }
}
