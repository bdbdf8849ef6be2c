//! What happened in a room, from the log: every commit with its events, its writer and its cause, also after the room was deleted.

use axum::{Json, extract::State};
use roomlog_bus::{
    commit::{Commit, StreamId},
    ids::{RoomId, Version},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::{
    app::{App, AppState},
    http::{At, Params, SecretKey},
    problem::{self, Problem},
    rooms::{RoomRef, check_version, no_room},
};

/// Commits in one answer unless asked otherwise, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// Which part of a room's history.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Part {
    /// The first version wanted; 1 unless given.
    #[param(maximum = 9007199254740991u64)]
    from: Option<u64>,
    /// How many commits at most: 1 to 1000, 100 unless given.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// A part of a room's history.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// The room.
    #[schema(value_type = String)]
    room_id: RoomId,
    /// Oldest first. Each has `id`, `prev`, `version` (of its first event), `time`, `writer`, `epoch`, `cause`, `command`, `facts`
    /// and `events`, each of which has `version`, `type`, `schema` and `data`.
    #[schema(value_type = Vec<Object>)]
    commits: Vec<Value>,
    /// What `from` is to be for what follows; null at the end.
    next: Option<u64>,
}

/// A commit as JSON.
pub fn commit_json(commit: &Commit) -> Value {
    let events = commit.events.iter().zip(commit.version.0..).map(|(event, version)| {
        json!({ "version": version, "type": &*event.kind, "schema": event.schema, "data": event.data.to_json() })
    });
    json!({
        "id": commit.id,
        "prev": commit.prev,
        "stream": commit.stream,
        "version": commit.version,
        "time": commit.time.to_string(),
        "timeMicros": commit.time,
        "writer": { "node": commit.writer.node, "incarnation": commit.writer.incarnation },
        "epoch": commit.epoch,
        "cause": commit.cause,
        "command": commit.command.to_json(),
        "facts": commit.facts.to_json(),
        "events": events.collect::<Vec<_>>(),
    })
}

/// Reads a room's history. A deleted room's is read by its id.
#[utoipa::path(get, path = "/v1/rooms/{room}/history", operation_id = "history", tag = "rooms", params(("room" = String, Path), Part), security(("secret" = [])), responses(
    (status = 200, body = History), (status = 404, body = problem::ProblemDocument),
))]
pub async fn read(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At(room): At<String>,
    Params(part): Params<Part>,
) -> Result<Json<History>, Problem> {
    let limit = part.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(problem::BAD_REQUEST.detail(format!("`limit` is {limit}; 1 to {MAX_PAGE} are allowed.")));
    }
    let from = part.from.unwrap_or(1);
    check_version("from", from)?;
    let room = RoomRef::parse(&room)?;
    let id = match &room {
        RoomRef::Id(id) => id.clone(),
        RoomRef::Name(_) => {
            app.look(&service, &room, |id, _| id.clone()).await?.ok_or_else(|| no_room(&room))?
        }
    };
    let stream = StreamId::from(&id);
    let first = app.journal.read(&stream, Version(1), 1).await?;
    if App::service_of(&first).as_ref() != Some(&service) {
        return Err(no_room(&room));
    }
    let mut commits = app.journal.read(&stream, Version(from), limit + 1).await?;
    let more = commits.len() > limit;
    commits.truncate(limit);
    let next = commits.last().filter(|_| more).map(|last| last.last_version().next().0);
    Ok(Json(History {
        room_id: id,
        commits: commits.iter().map(|commit| commit_json(commit)).collect(),
        next,
    }))
}
