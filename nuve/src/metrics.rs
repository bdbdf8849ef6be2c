//! Counters, as Prometheus reads them (text format 0.0.4).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::State,
    http::{Method, StatusCode, header},
    response::IntoResponse,
};

use crate::{app::AppState, ecs::Health};

/// Upper bounds of the duration buckets, seconds: a token from memory, one that appends, one that waits for an RPC, a time-out.
const BUCKETS: [f64; 6] = [0.001, 0.005, 0.025, 0.1, 1.0, 5.0];

/// Method, route template and status: bounded, since templates are ours.
type Series = (String, String, u16);

#[derive(Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: Duration,
}

/// The counters of one node.
#[derive(Default)]
pub struct Metrics {
    /// Held for one addition.
    requests: Mutex<BTreeMap<Series, Durations>>,
    rate_limited: AtomicU64,
    tokens: AtomicU64,
    placements: AtomicU64,
    takeovers: AtomicU64,
}

impl Metrics {
    /// A request was answered.
    pub fn request(&self, method: &Method, route: Option<&str>, status: StatusCode, took: Duration) {
        // Methods are the caller's to invent.
        let method = match method.as_str() {
            known @ ("GET" | "POST" | "DELETE" | "PUT" | "PATCH" | "HEAD" | "OPTIONS") => known,
            _ => "other",
        };
        let series = (method.to_owned(), route.unwrap_or("none").to_owned(), status.as_u16());
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let durations = requests.entry(series).or_default();
        durations.count += 1;
        durations.sum += took;
        for (bucket, bound) in durations.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    /// A request was refused by a limit.
    pub fn rate_limited(&self) {
        self.rate_limited.fetch_add(1, Ordering::Relaxed);
    }

    /// A token was made.
    pub fn token(&self) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// A room was given an EC.
    pub fn placement(&self) {
        self.placements.fetch_add(1, Ordering::Relaxed);
    }

    /// A room of a lost EC was given another.
    pub fn takeover(&self) {
        self.takeovers.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests refused by a limit so far.
    pub fn rate_limited_total(&self) -> u64 {
        self.rate_limited.load(Ordering::Relaxed)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut simple = |name: &str, help: &str, value: &AtomicU64| {
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}",
                value.load(Ordering::Relaxed)
            );
        };
        simple("roomlog_nuve_tokens_total", "Tokens made.", &self.tokens);
        simple("roomlog_nuve_rate_limited_total", "Requests refused by a rate limit.", &self.rate_limited);
        simple("roomlog_nuve_placements_total", "Rooms given an EC.", &self.placements);
        simple("roomlog_nuve_takeovers_total", "Rooms of a lost EC given another.", &self.takeovers);
        let name = "roomlog_nuve_request_seconds";
        let _ = writeln!(
            out,
            "# HELP {name} Time to answer, by method, route and status.\n# TYPE {name} histogram"
        );
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, route, status), durations) in &*requests {
            let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
            for (bucket, bound) in durations.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {bucket}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", durations.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", durations.sum.as_secs_f64());
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", durations.count);
        }
        out
    }
}

/// Counters and gauges in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses((status = 200, body = String, content_type = "text/plain"), (status = 403, description = "the administration is elsewhere", body = crate::problem::ProblemDocument)))]
pub async fn metrics(State(app): State<AppState>) -> impl IntoResponse {
    let mut text = app.metrics.text();
    let views = app.ecs.view(&app.directory.read());
    let _ = writeln!(
        text,
        "# HELP roomlog_nuve_ecs ECs by health, as this node sees them.\n# TYPE roomlog_nuve_ecs gauge"
    );
    for (health, label) in [
        (Health::Live, "live"),
        (Health::Draining, "draining"),
        (Health::Suspected, "suspected"),
        (Health::Lost, "lost"),
    ] {
        let count = views.iter().filter(|ec| ec.health == health).count();
        let _ = writeln!(text, "roomlog_nuve_ecs{{health=\"{label}\"}} {count}");
    }
    let rooms = app.directory.read().rooms.len();
    let _ = writeln!(
        text,
        "# HELP roomlog_nuve_rooms Rooms that exist.\n# TYPE roomlog_nuve_rooms gauge\nroomlog_nuve_rooms {rooms}"
    );
    let pace = app.limits.pace();
    for (name, help, value) in [
        (
            "roomlog_nuve_limit_rate",
            "Requests per second that this node may admit now, of the limit of all.",
            pace.rate(),
        ),
        (
            "roomlog_nuve_limit_holder",
            "Whether this node hands out the shares of that limit.",
            f64::from(u8::from(pace.holds())),
        ),
        ("roomlog_nuve_queue_waiting", "Requests that wait for their turn.", app.limits.waiting() as f64),
    ] {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let _ = writeln!(
        text,
        "# HELP roomlog_tokio_tasks Tasks alive in this process, of all roles in it: one that never ends shows here.\n# TYPE roomlog_tokio_tasks gauge\nroomlog_tokio_tasks {tasks}"
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
