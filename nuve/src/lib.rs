//! NUVE: the HTTP front. Services, rooms, tokens and users over HTTP; gives each room an EC; the first rate limit; the web pages.
//!
//! Any number of NUVE nodes serve one cluster, all equal, with nothing between them but the log: what two of them might decide
//! differently is decided by an append with an expected version. [`start`] registers the node; [`Nuve::router`] is its whole HTTP
//! interface, to be served wherever the process binds.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::Router;
use roomlog_bus::{
    bus::{Bus, Disconnected, Headers, Message},
    commit::{LIMIT_ID, Payload, StreamId, StreamKind, limit_stream},
    env::Env,
    ids::{Incarnation, random_token},
    journal::Journal,
    rpc::Heartbeat,
    subject::Subject,
};
use roomlog_projections::{
    directory::LiveDirectory,
    membership::{LivenessSettings, Observer, RegisterError, Registration, Watch, leave, register},
};
use tokio::{
    sync::{Mutex, Semaphore, mpsc, watch},
    task::JoinHandle,
};

pub mod app;
mod changes;
pub mod conditions;
pub mod credentials;
mod describe;
pub mod ecs;
pub mod events;
pub mod history;
pub mod http;
mod idempotency;
pub mod limits;
pub mod metrics;
pub mod network;
pub mod nodes;
pub mod openapi;
mod ours;
pub mod pages;
pub mod placement;
pub mod problem;
pub mod retention;
mod rooms;
pub mod services;
pub mod settings;
mod signing;
pub mod state;
pub mod takeover;
pub mod tokens;
pub mod users;
pub mod webhooks;

pub use settings::{EcPolicy, NuveSettings};

use app::{App, AppState};
use limits::shared::{Pace, Sharing};
use signing::KeyRing;
use webhooks::deliver::{Deliver, HttpDeliver};

/// A node says that it is there this often.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Addresses and services that have been quiet are forgotten this often: rarely enough to cost nothing.
const FORGET: Duration = Duration::from_secs(30);
/// The file in the data folder that keeps the seed of the token signing key.
const TOKEN_KEY_FILE: &str = "token-key";
/// The file in the data folder that keeps the admin key.
const ADMIN_KEY_FILE: &str = "admin-key";

/// The file in the data folder that keeps the key of webhooks' secrets.
const WEBHOOK_KEY_FILE: &str = "webhook-key";

/// Why a NUVE node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NuveError {
    /// A secret cannot be kept.
    #[error(transparent)]
    Secret(#[from] credentials::SecretFileError),
    /// The signing key's file does not read.
    #[error(
        "{TOKEN_KEY_FILE} in the data folder: {0}; remove it to have a new key made (tokens given out end)"
    )]
    TokenKey(#[from] signing::Unreadable),
    /// The demo service.
    #[error(transparent)]
    Demo(#[from] services::DemoError),
    /// The id is not for nodes.
    #[error("no node may be called {LIMIT_ID}: choose another --id")]
    Reserved,
    /// The node is not in the log.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The bus is away.
    #[error("the bus cannot be listened to: {0}")]
    Bus(#[from] Disconnected),
}

/// A running NUVE node. Dropping it does not stop its tasks; [`Nuve::stop`] does.
pub struct Nuve {
    app: AppState,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Registers the node and starts what it does besides answering HTTP.
pub async fn start(
    settings: NuveSettings,
    bus: Arc<dyn Bus>,
    journal: Arc<dyn Journal>,
    directory: LiveDirectory,
    env: Env,
) -> Result<Nuve, NuveError> {
    let targets = webhooks::targets::Targets::new(settings.webhook_allow.clone());
    start_with(settings, bus, journal, directory, env, Arc::new(HttpDeliver::new(targets))).await
}

/// As [`start`], with another way to call the receivers of webhooks.
pub async fn start_with(
    settings: NuveSettings,
    bus: Arc<dyn Bus>,
    journal: Arc<dyn Journal>,
    directory: LiveDirectory,
    env: Env,
    deliver: Arc<dyn Deliver>,
) -> Result<Nuve, NuveError> {
    let node = StreamId::from(&settings.id);
    if node == limit_stream() {
        return Err(NuveError::Reserved);
    }
    let signing = RwLock::new(signing_keys(&settings, &env)?);
    let admin_key_hash = match (&settings.admin_key, &settings.data_dir) {
        (Some(key), _) => Some(credentials::hash(key)),
        (None, Some(folder)) => {
            let make = || env.draw(|rng| credentials::new_admin_key(rng));
            Some(credentials::hash(&credentials::load_or_make(folder, ADMIN_KEY_FILE, make)?))
        }
        (None, None) => None,
    };

    let webhook_key = match (&settings.webhook_key, &settings.data_dir) {
        (Some(key), _) => key.clone(),
        (None, folder) => {
            let make = || env.draw(|rng| random_token(rng, credentials::SECRET_CHARACTERS));
            match folder {
                Some(folder) => credentials::load_or_make(folder, WEBHOOK_KEY_FILE, make)?,
                None => make(),
            }
        }
    };
    let registration =
        Registration { address: settings.public_url.clone().unwrap_or_default(), ..Registration::default() };
    let log = register(&node, &journal, &env, registration).await?;
    let incarnation = log.writer().incarnation;
    let demo = match settings.demo {
        true => Some(services::DemoKeys::load_or_make(settings.data_dir.as_deref(), &env, &log).await?),
        false => None,
    };

    let (stop, stopped) = watch::channel(false);
    let registered: Vec<_> = {
        let directory = directory.read();
        directory.nodes.iter().map(|(node, state)| (node.clone(), state.incarnation)).collect()
    };
    let liveness = LivenessSettings {
        suspect_after: Duration::from_millis(settings.suspect_after_ms),
        lost_after: Duration::from_millis(settings.lost_after_ms),
        ..LivenessSettings::default()
    };
    let (observer, listening) =
        Observer::start(node.clone(), bus.clone(), registered, liveness, stopped.clone()).await?;
    let ecs = ecs::Ecs::new(observer);
    let own = bus.subscribe(Subject::rpc(&node).into(), None).await?;
    let common = bus.subscribe(Subject::rpc_any(StreamKind::Nuve).into(), Some(tokens::QUEUE_GROUP)).await?;

    let pace = match settings.shared_limit {
        true => Pace::together(settings.cluster_per_s, node.clone(), incarnation),
        false => Pace::alone(settings.cluster_per_s),
    };
    let sharing =
        Sharing { pace: pace.clone(), bus: bus.clone(), log: log.clone(), directory: directory.clone() };
    let sharing = settings.shared_limit.then(|| Arc::new(sharing));
    let app = Arc::new(App {
        limits: limits::Limits::new(&settings, pace),
        event_streams: Arc::new(Semaphore::new(settings.max_event_streams)),
        settings,
        bus,
        journal,
        directory,
        env,
        log,
        node,
        incarnation,
        signing,
        peer_keys: Mutex::new(BTreeMap::new()),
        ecs,
        metrics: metrics::Metrics::default(),
        admin_key_hash,
        webhook_key: webhooks::MasterKey::new(&webhook_key),
        deliver,
        demo,
        stop: stopped.clone(),
    });
    let (tell_lost, lost) = mpsc::channel(1);
    let mut tasks = vec![
        listening,
        tokio::spawn(tokens::serve_keys(app.clone(), own, common, stopped.clone())),
        tokio::spawn(watch_ecs(&app).run(stopped.clone(), Some(tell_lost))),
        tokio::spawn(takeover::take_over(app.clone(), lost, stopped.clone())),
        tokio::spawn(retention::purge_deleted(app.clone(), stopped.clone())),
        tokio::spawn(retention::close_idle(app.clone(), stopped.clone())),
        tokio::spawn(webhooks::serve(app.clone(), stopped.clone())),
        tokio::spawn(tend(app.clone(), stopped.clone())),
    ];
    if let Some(sharing) = sharing {
        let (asking, asks, waits) = (sharing.clone(), stopped.clone(), app.clone());
        tasks.push(tokio::spawn(async move { asking.ask(|| waits.limits.waiting(), asks).await }));
        let recording = sharing.clone();
        tasks.push(tokio::spawn(async move { recording.record(stopped).await }));
        sharing.first().await;
    }
    tracing::info!(node = %app.node, incarnation = incarnation.0, "NUVE started");
    Ok(Nuve { app, stop, tasks })
}

impl Nuve {
    /// The whole HTTP interface. Serve it with `into_make_service_with_connect_info::<SocketAddr>()`: limits go by the peer's address.
    pub fn router(&self) -> Router {
        openapi::router(self.app.clone())
    }

    /// Which start of the node this is.
    pub fn incarnation(&self) -> Incarnation {
        self.app.incarnation
    }

    /// Is gone at once, as after SIGKILL: for tests of what others do then.
    pub fn die(self) {
        for task in self.tasks {
            task.abort();
        }
    }

    /// Ends event streams and tasks and says goodbye in the log. Requests still running are answered.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            let _ = task.await;
        }
        let app = self.app;
        leave(&app.log).await;
    }
}

/// The keys tokens are signed with.
fn signing_keys(settings: &NuveSettings, env: &Env) -> Result<KeyRing, NuveError> {
    let (now, period) = (env.now(), Duration::from_secs(settings.token_key_s.max(1)));
    let make = || env.draw(|rng| KeyRing::new(now, period, rng));
    match &settings.data_dir {
        Some(folder) => {
            let text = credentials::load_or_make(folder, TOKEN_KEY_FILE, || make().text())?;
            Ok(KeyRing::parse(&text, period)?)
        }
        None => Ok(make()),
    }
}

/// Makes the next signing key when the last one has begun to sign. Kept first: a token must not outlive its key because of a crash.
fn rotate_signing_keys(app: &App) {
    let now = app.env.now();
    let mut ring = app.signing.write().unwrap_or_else(PoisonError::into_inner);
    if !app.env.draw(|rng| ring.rotate(now, rng)) {
        return;
    }
    if let Some(folder) = &app.settings.data_dir
        && let Err(error) = credentials::replace(folder, TOKEN_KEY_FILE, ring.text().as_bytes())
    {
        tracing::error!(%error, "the next signing key is not kept: tokens of it end with this process");
    }
    tracing::info!(kid = ring.current(now).kid(), "tokens are signed with this key");
}

fn watch_ecs(app: &App) -> Watch {
    Watch {
        kind: StreamKind::Ec,
        observer: app.ecs.observer.clone(),
        log: app.log.clone(),
        directory: app.directory.clone(),
        bus: app.bus.clone(),
        media_probe: None,
    }
}

/// What is done every second: the heartbeat; and now and then: forgetting who has been quiet.
async fn tend(app: AppState, mut stop: watch::Receiver<bool>) {
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut forget = tokio::time::interval(FORGET);
    loop {
        tokio::select! {
            biased;
            () = crate::app::stopped(&mut stop) => return,
            _ = forget.tick() => app.limits.forget_quiet(),
            _ = beats.tick() => {
                rotate_signing_keys(&app);
                let beat = Heartbeat { node: app.node.clone(), incarnation: app.incarnation, rooms: 0, clients: 0, draining: false };
                let message = Message {
                    subject: Subject::heartbeat(&app.node),
                    reply: None,
                    headers: Headers::new(),
                    payload: Payload::encode(&beat).0,
                };
                if let Err(error) = app.bus.publish(message).await {
                    // Cut off: that nobody is heard says nothing about them.
                    app.ecs.observer.restart_timers();
                    tracing::debug!(%error, "no heartbeat was sent");
                }
            }
        }
    }
}
