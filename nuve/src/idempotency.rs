//! `Idempotency-Key`: a creation that is asked for again, since its answer was lost, is done once.
//!
//! No table is kept of keys. What is made under one has an id computed from it, so that a second try, at whichever NUVE and after
//! whatever restart, meets the first on its stream; and the commit that made it names hashes of key and request, so that the second try
//! knows it for its own. A key is good for as long as what it made is there.

use axum::{extract::FromRequestParts, http::request::Parts};
use roomlog_bus::commit::{Commit, Payload};
use serde::{Deserialize, Serialize};

use crate::{
    app::AppState,
    credentials::hash,
    problem::{self, Problem},
};

/// The longest key taken: a UUID is 36.
const MAX_CHARACTERS: usize = 255;

/// The key of a request, if it has one.
#[derive(Debug, Clone)]
pub struct IdempotencyKey(pub Option<String>);

impl FromRequestParts<AppState> for IdempotencyKey {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get("idempotency-key") else { return Ok(Self(None)) };
        match value.to_str() {
            Ok(key) if (1..=MAX_CHARACTERS).contains(&key.len()) => Ok(Self(Some(key.to_owned()))),
            _ => Err(problem::BAD_REQUEST.detail(format!(
                "`Idempotency-Key` is to have 1 to {MAX_CHARACTERS} visible ASCII characters."
            ))),
        }
    }
}

/// What a commit that made something under a key says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// SHA-256 of the key, hex.
    idempotency_key: String,
    /// SHA-256 of what was asked for, hex.
    request: String,
}

impl Made {
    /// Under `key`, by this request.
    pub fn of(key: &str, request: &impl Serialize) -> Self {
        let request = serde_json::to_string(request).expect("requests have text keys and finite numbers");
        Self { idempotency_key: hash(key), request: hash(&request) }
    }

    /// As the command of a commit.
    pub fn command(&self) -> Payload {
        Payload::encode(self)
    }

    /// Whether `first`, the commit that made what is there, was this very request: an error where the key was used for another.
    pub fn is_ours(&self, first: &Commit) -> Result<bool, Problem> {
        match first.command.decode::<Self>() {
            Ok(made) if made == *self => Ok(true),
            Ok(made) if made.idempotency_key == self.idempotency_key => {
                Err(problem::KEY_REUSED.detail("It was used for another request before."))
            }
            _ => Ok(false),
        }
    }
}
