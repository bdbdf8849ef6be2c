//! What a process that plays the EA alone says of itself to whoever looks after it.
//!
//! `/healthz` is whether a new process would help: it fails only when the agent hangs. It does not fail without NATS or while workers are
//! replaced: whoever ends the process for that ends calls that go on. `/readyz` is whether the EA can be given a room, and what is missing.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use roomlog_bus::journal::Journal;
use roomlog_ea::HealthWatch;
use serde_json::json;

/// The log is given this long to answer: less than the second after which a kubelet takes no answer for a failure.
const LOG_WITHIN: Duration = Duration::from_millis(800);

/// The two routes of the EA behind `health`, whose log is `journal`.
pub fn of_ea(health: HealthWatch, journal: Arc<dyn Journal>) -> Router {
    let ready = health.clone();
    Router::new()
        .route("/healthz", get(async move || healthz(&health)))
        .route("/readyz", get(async move || readyz(&ready, journal.as_ref()).await))
}

fn healthz(health: &HealthWatch) -> Response {
    match health.now().turning {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the agent hangs\n").into_response(),
    }
}

async fn readyz(health: &HealthWatch, journal: &dyn Journal) -> Response {
    let log = match tokio::time::timeout(LOG_WITHIN, journal.tail()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {LOG_WITHIN:?}")),
    };
    let health = health.now();
    let ready = health.is_ready() && log.is_ok();
    let body = json!({
        "ready": ready,
        "journal": log.err().unwrap_or_else(|| "ok".to_owned()),
        "turning": health.turning,
        "registered": health.registered,
        "connected": health.connected,
        "draining": health.draining,
        "liveWorkers": health.live_workers,
        "workers": health.workers,
    });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}
