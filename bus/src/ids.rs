//! Identifiers: one type per thing that has a name, all of them NATS subject tokens.
//!
//! Ids are made by Roomlog (or checked by it, for a client id an application chose) and match `[A-Za-z0-9_-]{1,64}`, so any id can
//! stand in a subject. Names that people choose are data and never become an id.

use std::fmt;

use rand::RngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};
use smol_str::SmolStr;

/// The longest id, in bytes: long enough for a UUID with a prefix, short enough that a subject with two of them stays readable.
pub const MAX_ID_BYTES: usize = 64;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: an id is 1 to {MAX_ID_BYTES} characters of A-Z a-z 0-9 _ -")]
pub struct InvalidId {
    /// The refused text, cut to what fits a log line.
    pub text: String,
    /// The kind of id that was wanted.
    pub what: &'static str,
}

impl InvalidId {
    fn of(text: &str, what: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), what }
    }
}

/// Whether `text` may stand as one token of a subject.
pub fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ID_BYTES
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// A random token of `length` characters from 62, about 5.95 bits each.
pub fn random_token(rng: &mut dyn RngCore, length: usize) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut out = String::with_capacity(length);
    while out.len() < length {
        // Rejection sampling: 248 is the largest multiple of 62 below 256, so no character is likelier than another.
        let byte = rng.next_u32() as u8;
        if byte < 248 {
            out.push(ALPHABET[usize::from(byte % 62)] as char);
        }
    }
    out
}

/// Reads an id where it lies: folding is mostly reading ids, and one of up to 23 bytes, as all are that Roomlog makes, needs no allocation.
struct Token(&'static str);

impl Visitor<'_> for Token {
    type Value = SmolStr;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SmolStr, E> {
        match is_token(text) {
            true => Ok(text.into()),
            false => Err(E::custom(InvalidId::of(text, self.0))),
        }
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $length:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(SmolStr);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Token($what)).map(Self)
            }
        }

        impl $name {
            /// Checks `text` and makes an id of it.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                if is_token(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId::of(text, $what))
                }
            }

            /// A fresh id that nobody can guess.
            pub fn random(rng: &mut dyn RngCore) -> Self {
                Self(random_token(rng, $length).into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

// 16 characters are 95 random bits: no two of 10^9 ids meet with a chance above 10^-10.
id!(/** A tenant of the HTTP API. */ ServiceId, "a service id", 16);
id!(/** A room. */ RoomId, "a room id", 16);
id!(/** One participant of one room, from its admission until it has left. */ ClientId, "a client id", 16);
id!(/** An EC node, kept over restarts. */ EcId, "an EC id", 16);
id!(/** An EA node, kept over restarts. */ EaId, "an EA id", 16);
id!(/** A NUVE node, kept over restarts. */ NuveId, "a NUVE id", 16);
id!(/** A WebRTC transport. */ TransportId, "a transport id", 16);
id!(/** A producer: one media stream into the SFU. */ ProducerId, "a producer id", 16);
id!(/** A consumer: one producer's media to one client. */ ConsumerId, "a consumer id", 16);
id!(/** A data producer. */ DataProducerId, "a data producer id", 16);
id!(/** A data consumer. */ DataConsumerId, "a data consumer id", 16);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(/** Position of an event in its stream: 1, 2, 3 … with no gap; 0 is "before the first". */ Version(u64));
number!(/** Ownership epoch of a room: goes up each time the room is placed on an EC incarnation. */ Epoch(u64));
number!(/** Media epoch of a room: goes up each time its media is moved and transports must be built anew. */ MediaEpoch(u64));
number!(/** Start counter of a node: goes up at every start. */ Incarnation(u64));
number!(/** Index of an SFU worker within its EA, 0-based. */ WorkerIndex(u16));
number!(/** RTP synchronisation source (RFC 3550 §3). */ Ssrc(u32));

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn ids_are_subject_tokens() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        for _ in 0..100 {
            assert!(is_token(RoomId::random(&mut rng).as_str()));
        }
        for bad in ["", "a.b", "a b", "*", ">", "é", &"x".repeat(65)] {
            assert!(RoomId::new(bad).is_err(), "{bad:?} must not be an id");
        }
        let refused: Result<RoomId, _> = serde_json::from_str("\"a.b\"");
        assert!(refused.unwrap_err().to_string().contains("a room id"));
    }
}
