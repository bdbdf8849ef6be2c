//! The nodes of the cluster as this NUVE sees them, and whether it is itself alive and ready.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    commit::{Cause, StreamId, StreamKind},
    events::{Event, NodeDraining},
    ids::Version,
    journal::{AppendError, read_all},
    log::Draft,
    rpc::RpcError,
};
use roomlog_projections::node::{NodePhase, NodeState};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    app::{App, AppState},
    ecs::Health,
    http::{AdminKey, At, Because, Body, Operator, Params},
    problem::{self, Problem},
    rooms::Page,
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
    /// What `after` is to be for the next page; null on the last.
    next: Option<String>,
}

/// Lists every node that ever registered.
#[utoipa::path(get, path = "/v1/nodes", tag = "operation", params(Page), security(("secret" = []), ("admin" = [])), responses((status = 200, body = Nodes)))]
pub async fn list(
    State(app): State<AppState>,
    _: Operator,
    Params(page): Params<Page>,
) -> Result<Json<Nodes>, Problem> {
    let limit = page.limit()?;
    let directory = app.directory.read();
    // The stream of the shared limit is no node's.
    let known = directory.nodes.iter().filter(|(_, state)| state.phase != NodePhase::Unknown);
    let named: BTreeMap<String, (&StreamId, &NodeState)> =
        known.map(|(node, state)| (node.to_string(), (node, state))).collect();
    let (part, next) = page.of(limit, named.iter(), String::as_str);
    let nodes = part.into_iter().map(|(_, (node, state))| {
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
    Ok(Json(Nodes { nodes: nodes.collect(), next }))
}

/// How a node is drained.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// Seconds it may take; what is left then is moved.
    #[serde(default = "an_hour")]
    #[schema(default = 3_600, maximum = 604_800)]
    within_s: u32,
}

fn an_hour() -> u32 {
    3_600
}

/// A drain takes no longer than this, seconds: a week.
const MAX_DRAIN_S: u32 = 604_800;

/// Drains an EC or an EA: it takes no new rooms, and ends itself once it is empty or the time is up.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "operation", request_body = Drain,
    params(("node" = String, Path)), security(("admin" = [])), responses(
    (status = 204, description = "it drains"), (status = 404, body = problem::ProblemDocument),
))]
pub async fn drain(
    State(app): State<AppState>,
    _: AdminKey,
    Because(cause): Because,
    At(name): At<String>,
    Body(drain): Body<Drain>,
) -> Result<StatusCode, Problem> {
    let missing = || problem::NO_NODE.detail(format!("{name:?} is no EC or EA that runs."));
    let node: StreamId = name.parse().map_err(|_| missing())?;
    if !matches!(node.kind(), StreamKind::Ec | StreamKind::Ea) {
        return Err(missing());
    }
    if drain.within_s > MAX_DRAIN_S {
        return Err(problem::INVALID_FIELD
            .detail(format!("`withinS` is {}; at most {MAX_DRAIN_S} is allowed.", drain.within_s)));
    }
    match app.drain(&node, Duration::from_secs(drain.within_s.into()), cause).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(RpcError::NotFound { .. }) => Err(missing()),
        Err(error) => Err(problem::LOG_AWAY.detail(format!("{error}.")).retry_after(1)),
    }
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
