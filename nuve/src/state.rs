//! The state of a room as each role holds it, side by side with the fold of its log made now: what the person on call compares first.

use axum::{Json, extract::State};
use roomlog_bus::{
    commit::StreamId,
    ids::{RoomId, Version},
    journal::read_all,
    rpc::{EaAnswer, EaRequest, EcAnswer, EcRequest, RPC_TIMEOUT, RpcError, ask},
    subject::Subject,
};
use roomlog_projections::room::RoomState;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    app::AppState,
    http::{At, SecretKey},
    problem::{self, Problem},
    rooms::RoomRef,
};

/// A room's state at every role.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct States {
    /// The room.
    #[schema(value_type = String)]
    room_id: RoomId,
    /// The version of the log it is folded to here.
    version: u64,
    /// Whether all who hold the room hold this state. A room that changes while it is looked at may differ for a moment.
    agree: bool,
    /// The fold of the log, as `roomlog replay state` gives it.
    log: Value,
    /// What its EC holds; null when the EC does not run the room (nobody is in it), or an object with `error`.
    ec: Value,
    /// What each EA of the room holds, by id.
    eas: Value,
}

/// Reads a room's state from the log and from all who hold it.
#[utoipa::path(get, path = "/v1/rooms/{room}/state", operation_id = "state", tag = "rooms", params(("room" = String, Path)), security(("secret" = [])), responses(
    (status = 200, body = States), (status = 404, body = problem::ProblemDocument),
))]
pub async fn read(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At(room): At<String>,
) -> Result<Json<States>, Problem> {
    let id = app.look_from(&service, &RoomRef::parse(&room)?, None, |id, _| id.clone()).await?;
    let mut folded = RoomState::default();
    for commit in read_all(app.journal.as_ref(), &StreamId::from(&id), Version(1)).await? {
        folded.apply_commit(&commit)?;
    }
    let log = folded.to_json();

    let ec = match &folded.owner {
        Some(owner) => {
            let subject = Subject::rpc(&StreamId::from(&owner.ec));
            let asked =
                ask(app.bus.as_ref(), subject, &EcRequest::RoomState { room: id.clone() }, RPC_TIMEOUT).await;
            state_of(asked.map(|answer| match answer {
                EcAnswer::State { state, .. } => Some(state),
                EcAnswer::Version { .. } => None,
            }))
        }
        None => Value::Null,
    };
    let mut eas = serde_json::Map::new();
    for ea in folded.placements.keys() {
        let request = EaRequest::RoomState { room: id.clone(), min_version: folded.version() };
        let asked = ask(app.bus.as_ref(), Subject::rpc(&StreamId::from(ea)), &request, RPC_TIMEOUT).await;
        let state = state_of(asked.map(|answer| match answer {
            EaAnswer::State { state, .. } => Some(state),
            _ => None,
        }));
        eas.insert(ea.to_string(), state);
    }
    let ec_agrees = ec == log || (ec.is_null() && folded.clients.is_empty());
    let agree = ec_agrees && eas.values().all(|state| *state == log);
    Ok(Json(States { room_id: id, version: folded.version().0, agree, log, ec, eas: eas.into() }))
}

/// An answer's state, or why there is none.
fn state_of(answer: Result<Option<Value>, RpcError>) -> Value {
    match answer {
        Ok(Some(state)) => state,
        Ok(None) => serde_json::json!({ "error": "an unexpected answer" }),
        Err(error) => serde_json::json!({ "error": error.to_string() }),
    }
}
