//! The nodes of the cluster as this NUVE sees them, and whether it is itself alive and ready.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    commit::{Cause, StreamId},
    events::{Event, NodeDraining},
    ids::Version,
    journal::{AppendError, read_all},
    log::Draft,
    rpc::RpcError,
};
use roomlog_projections::node::{NodePhase, NodeState};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    app::{App, AppState},
    ecs::Health,
    http::Operator,
};

/// A node.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// `ec`, `ea` or `nuve`.
    kind: &'static str,
    /// Its id.
    id: String,
    /// How often it has been started.
    incarnation: u64,
    /// Where others reach it.
    address: String,
    /// Where it is in its life, as the log has it: `registered`, `draining`, `lost`, `left`.
    #[schema(value_type = String)]
    phase: NodePhase,
    /// Since when, Unix milliseconds.
    since: u64,
    /// SFU workers, of an EA.
    workers: u16,
    /// The build.
    version: String,
    /// Milliseconds since its last heartbeat; absent if this node never heard one.
    #[serde(skip_serializing_if = "Option::is_none")]
    heard_ms_ago: Option<u64>,
    /// Rooms it holds, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms: Option<u64>,
    /// Clients it holds, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<u64>,
}

/// Nodes.
#[derive(Serialize, ToSchema)]
pub struct Nodes {
    /// Sorted by kind and id.
    nodes: Vec<Node>,
}

/// Lists every node that ever registered.
#[utoipa::path(get, path = "/v1/nodes", tag = "operation", security(("secret" = []), ("admin" = [])), responses((status = 200, body = Nodes)))]
pub async fn list(State(app): State<AppState>, _: Operator) -> Json<Nodes> {
    let directory = app.directory.read();
    // The stream of the shared limit is no node's.
    let nodes = directory.nodes.iter().filter(|(_, state)| state.phase != NodePhase::Unknown);
    let nodes = nodes.map(|(node, state)| {
        let heard = app.ecs.observer.last_heard(node);
        Node {
            kind: node.kind().as_str(),
            id: node.id().to_owned(),
            incarnation: state.incarnation.0,
            address: state.address.clone(),
            phase: state.phase,
            since: state.since.as_millis(),
            workers: state.workers,
            version: state.version.clone(),
            heard_ms_ago: heard.map(|heard| heard.age.as_millis() as u64),
            rooms: heard.map(|heard| heard.rooms),
            clients: heard.map(|heard| heard.clients),
        }
    });
    Json(Nodes { nodes: nodes.collect() })
}

/// Whether the process runs.
#[utoipa::path(get, path = "/healthz", tag = "operation", responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether this node can do its work: the log reads and an EC lives.
#[utoipa::path(get, path = "/readyz", tag = "operation", responses((status = 200, description = "ready"), (status = 503, description = "not ready; the body says what is missing")))]
pub async fn readyz(State(app): State<AppState>) -> Response {
    let journal = app.journal.tail().await.map(|_| ());
    let live = {
        let views = app.ecs.view(&app.directory.read());
        views.iter().filter(|ec| ec.health == Health::Live).count()
    };
    let ready = journal.is_ok() && live > 0;
    let body = json!({
        "ready": ready,
        "journal": journal.err().map_or_else(|| "ok".to_owned(), |error| error.to_string()),
        "liveEcs": live,
    });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

impl App {
    /// Writes down that this start of a node is draining, until it is so.
    pub(crate) async fn drain(
        &self,
        node: &StreamId,
        within: Duration,
        cause: Cause,
    ) -> Result<(), RpcError> {
        /// As in placement: each round somebody else got through.
        const ROUNDS: u32 = 8;
        for _ in 0..ROUNDS {
            let mut state = NodeState::default();
            let retry = |error: &dyn std::fmt::Display| RpcError::Retry { reason: error.to_string() };
            for commit in read_all(&*self.journal, node, Version(1)).await.map_err(|error| retry(&error))? {
                state.apply_commit(&commit).map_err(|error| retry(&error))?;
            }
            match state.phase {
                NodePhase::Registered | NodePhase::Draining => {}
                NodePhase::Unknown | NodePhase::Lost | NodePhase::Left => {
                    return Err(RpcError::NotFound { what: format!("running node {node}") });
                }
            }
            let deadline = self.env.now().plus_millis(within.as_millis() as u64);
            let event = NodeDraining { incarnation: state.incarnation, deadline: Some(deadline) };
            let draft = Draft { cause: cause.clone(), ..Draft::default() };
            match self.log.append(node.clone(), state.head, draft, &[Event::from(event)]).await {
                Ok(_) => return Ok(()),
                Err(AppendError::Conflict { .. }) => {}
                Err(error) => return Err(retry(&error)),
            }
        }
        Err(RpcError::Retry { reason: format!("others keep writing to {node}") })
    }
}
