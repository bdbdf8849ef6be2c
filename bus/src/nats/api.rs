//! The few calls of the JetStream API that the journal makes, as values. Requests and answers are JSON (NATS ADR-1, ADR-2).

use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{connection::Shared, inbox::AskError};
use crate::journal::ReadError;

/// What JetStream says when it refuses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{description} (JetStream error {err_code})")]
pub(super) struct Refusal {
    #[serde(default)]
    pub code: u16,
    #[serde(default)]
    pub err_code: u16,
    #[serde(default)]
    pub description: String,
}

/// Error codes of JetStream (its errors.json) that mean something to us.
pub(super) mod code {
    /// The cluster has no leader now, or JetStream is still starting.
    pub const UNAVAILABLE: u16 = 10_008;
    /// No message there.
    pub const NO_MESSAGE: u16 = 10_037;
    /// JetStream is off for this account.
    pub const OFF_FOR_ACCOUNT: u16 = 10_039;
    /// JetStream is off.
    pub const OFF: u16 = 10_076;
    /// The stream exists with another configuration.
    pub const STREAM_EXISTS: u16 = 10_058;
    /// Too few servers to hold the replicas: not started, not joined yet, or without room.
    pub const NO_PEERS: u16 = 10_005;
    /// The server could not make the stream's folder: while it makes or clears away the same one, and where the disk does not let it.
    pub const NO_STORE: u16 = 10_049;
    /// There is no such stream.
    pub const NO_STREAM: u16 = 10_059;
    /// The last sequence of the subject is another than was expected.
    pub const WRONG_LAST_SEQUENCE: u16 = 10_071;
    /// The same, as some versions say it.
    pub const WRONG_LAST_SEQUENCE_CONSTANT: u16 = 10_164;
    /// A message with the same id is being stored right now.
    pub const DUPLICATE_IN_PROCESS: u16 = 10_158;
    /// Refusals of a message that certainly leave it unstored: no resources, too large, no room on disk, a limit reached, sealed.
    pub const NOT_STORED: [u16; 6] = [10_023, 10_047, 10_054, 10_077, 10_109, 10_122];
}

/// How a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("an answer that makes no sense: {0}")]
    Malformed(String),
}

impl ApiError {
    /// The code of a refusal.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.err_code),
            _ => None,
        }
    }

    /// Whether the same call may succeed in a moment: no connection, no leader.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Ask(_) => true,
            Self::Refused(refusal) => refusal.err_code == code::UNAVAILABLE || refusal.code == 503,
            Self::Malformed(_) => false,
        }
    }

    pub(super) fn reading(self, what: impl std::fmt::Display) -> ReadError {
        ReadError::Unavailable { reason: format!("{what}: {self}") }
    }
}

/// A stream as the server describes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamInfo {
    pub config: Value,
    pub created: String,
    pub state: StreamState,
    /// Subjects in all, where they were asked for: an answer holds a page of them.
    #[serde(default)]
    pub total: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamState {
    pub last_seq: u64,
    #[serde(default)]
    pub subjects: Option<std::collections::BTreeMap<String, u64>>,
}

#[derive(Debug, Serialize, Default)]
pub(super) struct InfoRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subjects_filter: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Purge what is on a subject.
#[derive(Debug, Serialize)]
pub(super) struct PurgeRequest<'a> {
    pub filter: &'a str,
    /// The sequence below which messages go.
    pub seq: u64,
}

/// What was purged.
#[derive(Debug, Deserialize)]
pub(super) struct Purged {
    #[serde(rename = "purged")]
    _messages: u64,
}

/// Which message.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Get<'a> {
    /// The last of a subject.
    Last { last_by_subj: &'a str },
    /// The first at or after a sequence whose subject matches.
    Next { seq: u64, next_by_subj: &'a str },
    /// The one with this sequence.
    At { seq: u64 },
}

/// A stored message.
#[derive(Debug)]
pub(super) struct Stored {
    pub subject: String,
    pub sequence: u64,
    pub payload: Bytes,
}

#[derive(Deserialize)]
struct GetAnswer {
    message: GetMessage,
}

#[derive(Deserialize)]
struct GetMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Refused {
    error: Refusal,
}

/// What a stream answers to a message.
#[derive(Debug, Deserialize)]
pub(super) struct Ack {
    #[serde(default)]
    pub error: Option<Refusal>,
    #[serde(default)]
    pub stream: String,
    #[serde(default)]
    pub seq: u64,
    #[serde(default)]
    pub duplicate: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    pub num_pending: u64,
    pub config: Value,
}

/// Bytes of an answer within which its `error` begins if it has one: after `{"type":"io.nats.jetstream.api.v1....",`.
const REFUSAL_WITHIN: usize = 200;

/// Asks for something whose content does not matter.
#[derive(Deserialize)]
pub(super) struct Anything {}

impl Shared {
    /// Calls `$JS.API.<call>`, and once more where no answer comes: all our calls may be repeated.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        call: &str,
        request: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(request).expect("our own requests have text keys");
        let answer =
            self.inbox.ask_again(&format!("$JS.API.{call}"), None, body.into(), timeout, |_| true).await?;
        let payload = &answer.payload;
        // A refusal says so right at the beginning; an answer of hundreds of KiB need not be read through for it.
        let begin = &payload[..payload.len().min(REFUSAL_WITHIN)];
        if memchr::memmem::find(begin, b"\"error\"").is_some()
            && let Ok(refused) = serde_json::from_slice::<Refused>(payload)
        {
            return Err(refused.error.into());
        }
        serde_json::from_slice(payload).map_err(|error| ApiError::Malformed(error.to_string()))
    }

    /// A message of `stream`, as its leader has it.
    pub(super) async fn get(
        &self,
        stream: &str,
        which: Get<'_>,
        timeout: Duration,
    ) -> Result<Option<Stored>, ApiError> {
        match self.api::<GetAnswer>(&format!("STREAM.MSG.GET.{stream}"), &which, timeout).await {
            Ok(GetAnswer { message }) => {
                let payload = base64::engine::general_purpose::STANDARD
                    .decode(&message.data)
                    .map_err(|error| ApiError::Malformed(error.to_string()))?;
                Ok(Some(Stored { subject: message.subject, sequence: message.seq, payload: payload.into() }))
            }
            Err(error) if error.code() == Some(code::NO_MESSAGE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn stream_info(
        &self,
        stream: &str,
        request: &InfoRequest,
        timeout: Duration,
    ) -> Result<StreamInfo, ApiError> {
        self.api(&format!("STREAM.INFO.{stream}"), request, timeout).await
    }

    pub(super) async fn purge(
        &self,
        stream: &str,
        request: &PurgeRequest<'_>,
        timeout: Duration,
    ) -> Result<Purged, ApiError> {
        self.api(&format!("STREAM.PURGE.{stream}"), request, timeout).await
    }
}
