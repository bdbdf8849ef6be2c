//! Problem documents (RFC 9457): every way a request is refused, each with a stable type, and what to do about it.

use std::borrow::Cow;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::limits::addresses::Left;

/// One way to be refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Last part of its `type`, `/problems/<slug>`.
    pub slug: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// What it is, the same each time.
    pub title: &'static str,
    /// What the caller can do.
    pub help: &'static str,
}

macro_rules! problems {
    ($($name:ident = $slug:literal, $status:ident, $title:literal, $help:literal;)*) => {
        $(#[doc = $title] pub const $name: &Kind = &Kind { slug: $slug, status: StatusCode::$status, title: $title, help: $help };)*

        /// All of them.
        pub const ALL: &[&Kind] = &[$($name),*];
    };
}

problems! {
    BAD_REQUEST = "bad-request", BAD_REQUEST, "The request does not read",
        "The detail names the part that does not read. /openapi.json describes every request.";
    INVALID_FIELD = "invalid-field", UNPROCESSABLE_ENTITY, "A field has a value that cannot be used",
        "/openapi.json describes every field.";
    UNSUPPORTED_MEDIA = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The body is not JSON",
        "Send JSON with `Content-Type: application/json`.";
    TOO_LARGE = "too-large", PAYLOAD_TOO_LARGE, "The body is too large",
        "Bodies may have 64 KiB.";
    NO_KEY = "no-key", UNAUTHORIZED, "A key is wanted",
        "Send `Authorization: Bearer <key>`: sk_… or pk_… of a service, or the admin key for /v1/services.";
    UNKNOWN_KEY = "unknown-key", UNAUTHORIZED, "The key opens nothing",
        "It was mistyped, replaced, or its service was deleted. Keys are shown once, when they are made.";
    WRONG_KEY = "wrong-key", FORBIDDEN, "Another kind of key is wanted",
        "A publishable key only asks for tokens; everything else of a service wants its secret key; services want the admin key.";
    NO_ADMIN = "no-admin", FORBIDDEN, "Service administration is off",
        "Set `admin_key` or `data_dir` of this NUVE.";
    MAY_NOT_CREATE = "may-not-create-rooms", FORBIDDEN, "The publishable key of this service may not make rooms",
        "Make the room with the secret key first, or make the service with `publishableCreatesRooms`.";
    NO_ROUTE = "no-such-route", NOT_FOUND, "There is nothing here",
        "/openapi.json lists what there is.";
    NO_METHOD = "no-such-method", METHOD_NOT_ALLOWED, "This cannot be done here",
        "/openapi.json lists the methods of every route.";
    NO_ROOM = "no-such-room", NOT_FOUND, "No such room",
        "It was never made, was deleted, or belongs to another service. A name is written `name:<name>`.";
    NOWHERE = "room-nowhere", NOT_FOUND, "The room is on no EC yet",
        "Ask for a token: the first one gives the room its EC. Nobody is in the room, so there is nothing to come back to.";
    NO_USER = "no-such-user", NOT_FOUND, "No such user in the room",
        "Users are named by client id, as in the list of users. It may have left.";
    NO_SERVICE = "no-such-service", NOT_FOUND, "No such service",
        "It was never made or was deleted.";
    NO_DEMO = "no-demo", NOT_FOUND, "There is no demo service here",
        "Start with `demo = true`, or use a publishable key of your own service.";
    ROOM_EXISTS = "room-exists", CONFLICT, "A room of this name exists",
        "Use it: its id is in `roomId`. Names are unique within a service.";
    CLIENT_EXISTS = "client-exists", CONFLICT, "This client is in the room already",
        "Choose another `peerId`, or leave it out and get a fresh one.";
    VERSION_AHEAD = "version-ahead", PRECONDITION_FAILED, "The room has no such version yet",
        "`min_version` is to be a version that a `Roomlog-Version` header named.";
    CHANGED = "changed", PRECONDITION_FAILED, "It has changed since",
        "It is not at the version that `If-Match` names: read it again. The version it has is in `version`.";
    KEY_REUSED = "idempotency-key-reused", UNPROCESSABLE_ENTITY, "The idempotency key was used for something else",
        "Use a new `Idempotency-Key` for each thing that is made, and the same one only to repeat the very same request.";
    MADE_BEFORE = "made-before", CONFLICT, "This request was carried out before",
        "It was made, and its keys were shown then and are not kept: rotate them if that answer was lost.";
    WRONG_ORIGIN = "wrong-origin", FORBIDDEN, "Pages of this origin may not use the key",
        "The service names the origins of its pages in `origins`.";
    REFUSED = "refused", CONFLICT, "The room does not allow it",
        "The detail says why. Trying again does not help.";
    NO_PRODUCER = "no-such-producer", NOT_FOUND, "The user sends no such thing",
        "`producers` of the user lists what it sends; it may have stopped.";
    NO_NODE = "no-such-node", NOT_FOUND, "No such node runs",
        "/v1/nodes lists the nodes; only an EC or an EA that runs can be drained.";
    ADMIN_ELSEWHERE = "admin-elsewhere", FORBIDDEN, "The administration is not served to this address",
        "It answers the machine itself, or the address that the operator has given it (admin-listen).";
    NO_WEBHOOK = "no-such-webhook", NOT_FOUND, "No such webhook",
        "It was never made, was removed, or belongs to another service.";
    TOO_MANY_WEBHOOKS = "too-many-webhooks", CONFLICT, "The service has as many webhooks as it may",
        "Remove one that is not wanted any more: a service has 16 at most.";
    RATE_LIMITED = "rate-limited", TOO_MANY_REQUESTS, "Too many requests",
        "Wait for `Retry-After` seconds.";
    NO_EC = "no-ec", SERVICE_UNAVAILABLE, "No EC takes rooms now",
        "Try again after `Retry-After` seconds. The operator: see /v1/nodes and start an EC.";
    EC_SILENT = "ec-silent", SERVICE_UNAVAILABLE, "The room's EC does not answer",
        "Try again after `Retry-After` seconds: it comes back, or the room is given to another.";
    LOG_AWAY = "log-away", SERVICE_UNAVAILABLE, "The log cannot be reached",
        "Nothing was changed. Try again after `Retry-After` seconds.";
    OUTCOME_UNKNOWN = "outcome-unknown", SERVICE_UNAVAILABLE, "Whether it was done is not known",
        "Read the room before trying again.";
    CONTENDED = "contended", SERVICE_UNAVAILABLE, "Others kept changing it meanwhile",
        "Nothing was changed. Try again.";
    TOO_MANY_STREAMS = "too-many-streams", SERVICE_UNAVAILABLE, "Too many event streams are open",
        "Close one, or follow at another NUVE.";
    TIMEOUT = "timeout", GATEWAY_TIMEOUT, "The request took too long",
        "Read before trying again: it may have been done.";
    INTERNAL = "internal", INTERNAL_SERVER_ERROR, "Something is broken here",
        "The operator finds the reason in this node's log.";
}

impl Kind {
    /// A refusal of this kind; `detail` says what was wrong this time.
    pub fn detail(&'static self, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { kind: self, detail: detail.into(), retry_after_s: None, left: None, extra: Map::new() }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Which kind.
    pub kind: &'static Kind,
    /// What was wrong this time.
    pub detail: Cow<'static, str>,
    /// When to try again, seconds.
    pub retry_after_s: Option<u64>,
    /// What is left of the limit that refused.
    pub left: Option<Left>,
    /// Further members of the document.
    pub extra: Map<String, Value>,
}

impl Problem {
    /// Says when to try again, seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Tells what is left of the limit that refused.
    #[must_use]
    pub fn limit(mut self, left: Left) -> Self {
        self.left = Some(left);
        self
    }

    /// Adds a member to the document.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }
}

/// A problem document (RFC 9457) as it is sent; some kinds have further members.
#[derive(serde::Serialize, ToSchema)]
pub struct ProblemDocument {
    /// Names the kind of problem and never changes; a page that explains it is there.
    #[serde(rename = "type")]
    #[schema(rename = "type", example = "/problems/no-such-room")]
    kind: String,
    /// What it is, the same for each of its kind.
    title: &'static str,
    /// HTTP status.
    status: u16,
    /// What was wrong this time and what to do.
    detail: String,
    #[serde(flatten)]
    #[schema(ignore)]
    extra: Map<String, Value>,
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10): what a limit allows, and what is left of it.
pub fn tell_left(headers: &mut axum::http::HeaderMap, left: &Left) {
    let Left { policy, quota, window_s, remaining, reset_s } = left;
    for (name, text) in [
        ("ratelimit-policy", format!("\"{policy}\";q={quota};w={window_s}")),
        ("ratelimit", format!("\"{policy}\";r={remaining};t={reset_s}")),
    ] {
        let value = HeaderValue::from_str(&text).expect("names and numbers of ours are ASCII");
        headers.insert(name, value);
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let kind = self.kind;
        let document = ProblemDocument {
            kind: format!("/problems/{}", kind.slug),
            title: kind.title,
            status: kind.status.as_u16(),
            detail: format!("{} {}", self.detail, kind.help),
            extra: self.extra,
        };
        let mut response = (kind.status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(left) = &self.left {
            tell_left(headers, left);
        }
        if kind.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<roomlog_bus::journal::ReadError> for Problem {
    fn from(error: roomlog_bus::journal::ReadError) -> Self {
        tracing::error!(%error, "the journal does not read");
        LOG_AWAY.detail(format!("Reading: {error}.")).retry_after(1)
    }
}

impl From<roomlog_bus::journal::AppendError> for Problem {
    fn from(error: roomlog_bus::journal::AppendError) -> Self {
        use roomlog_bus::journal::AppendError as E;
        match error {
            E::Conflict { .. } => CONTENDED.detail(format!("{error}.")).retry_after(1),
            E::Unknown { .. } => OUTCOME_UNKNOWN.detail(format!("{error}.")).retry_after(1),
            E::Unavailable { .. } => LOG_AWAY.detail(format!("{error}.")).retry_after(1),
            E::Invalid { .. } => INVALID_FIELD.detail(format!("{error}.")),
        }
    }
}

impl From<roomlog_projections::room::FoldError> for Problem {
    fn from(error: roomlog_projections::room::FoldError) -> Self {
        tracing::error!(%error, "the log does not fold");
        INTERNAL.detail("The log of what was asked for does not fold.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_in_the_documents() {
        let documents = include_str!("../../docs/errors.md");
        let said = |kind: &&Kind| documents.contains(&format!("| `{}` |", kind.slug));
        let missing: Vec<_> = ALL.iter().filter(|kind| !said(kind)).map(|kind| kind.slug).collect();
        assert!(missing.is_empty(), "docs/errors.md says nothing of {missing:?}");
    }

    #[test]
    fn every_kind_has_a_type_of_its_own() {
        let mut slugs: Vec<_> = ALL.iter().map(|kind| kind.slug).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), ALL.len());
        for kind in ALL {
            assert!(kind.status.is_client_error() || kind.status.is_server_error(), "{}", kind.slug);
        }
    }
}
