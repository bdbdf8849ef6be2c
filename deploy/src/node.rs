//! A node: the roles that one process plays, and what they share. `up` plays all of them, with the log in sled and the bus in memory
//! or, given NATS, in a cluster; `nuve`, `ec` and `ea` play one each.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::{Router, routing::get};
use axum_server::Handle;
use roomlog_bus::{
    bus::Bus,
    copied_journal::CopiedJournal,
    env::Env,
    journal::Journal,
    local_copy::{CopySettings, LocalCopy},
    memory_bus::MemoryBus,
    nats::NatsConnection,
    republish::republish,
    sled_journal::{JournalSettings, SledJournal},
};
use roomlog_ea::{Ea, EaSettings};
use roomlog_ec::{Ec, EcSettings, EcStatus};
use roomlog_nuve::{Nuve, NuveSettings, network::Network};
use roomlog_projections::{directory::LiveDirectory, retention::RetentionSettings};
use tokio::task::JoinHandle;

use crate::{
    admin, health, http,
    identity::{NodeIds, lan_address, own_certificate},
    proxies,
    repair::COPY,
    settings::Settings,
    tls,
};

/// Requests still running when the process is told to stop are given this long. Sockets of clients are closed at once, with a code
/// that brings them back.
const GRACE: Duration = Duration::from_secs(3);
/// The first heartbeat of the EA is due within a second of its start; more means that the machine is very slow or something is wrong.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Commits of the local copy that are looked for in the cluster's log at a start: what a log that was put back lost first. More than one
/// process has under way at a time, so that it does not matter in which order they were copied.
const EXPECTED: u64 = 64;
/// Between two looks at whether the node can serve.
const READY_PAUSE: Duration = Duration::from_millis(20);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Up,
    /// The HTTP front.
    Nuve,
    /// The signalling gateway.
    Ec,
    /// The media host.
    Ea,
}

impl Role {
    fn plays(self, role: Role) -> bool {
        self == Role::Up || self == role
    }
}

/// The bus and the log that the roles share.
struct Ground {
    bus: Arc<dyn Bus>,
    journal: Arc<dyn Journal>,
    sled: Option<SledJournal>,
    copied: Option<Arc<CopiedJournal>>,
    republishing: Option<JoinHandle<()>>,
}

impl Ground {
    async fn lay(settings: &Settings, data: &Path) -> anyhow::Result<Self> {
        match settings.nats()? {
            Some(nats) => {
                let connection = NatsConnection::connect(nats).await.context("NATS is not reached")?;
                let jetstream = connection
                    .jetstream(settings.jetstream())
                    .await
                    .context("the log in JetStream does not open")?;
                let (folder, mut copy_settings) = (data.join(COPY), CopySettings::default());
                if let Some(bytes) = settings.copy_bytes {
                    copy_settings.bytes = bytes;
                }
                let opened =
                    tokio::task::spawn_blocking(move || LocalCopy::open(&folder, copy_settings)).await?;
                let (copy, findings) = opened.context("cannot open the local copy of the log")?;
                for finding in findings {
                    tracing::error!("local copy of the log: {finding}");
                }
                // Where something is missing the partition takes no appends, and what needs them says so.
                let acknowledged = copy.last(EXPECTED).await.context("the local copy does not read")?;
                jetstream.expect(&acknowledged).await.context("the log in JetStream does not read")?;
                let copied = Arc::new(CopiedJournal::new(Arc::new(jetstream), copy));
                let journal: Arc<dyn Journal> = copied.clone();
                let (bus, copied) = (connection.bus(), Some(copied));
                Ok(Self { bus, journal, sled: None, copied, republishing: None })
            }
            None => {
                let folder = data.join("log");
                let mut journal_settings = JournalSettings::default();
                if let Some(bytes) = settings.segment_bytes {
                    journal_settings.segment_bytes = bytes;
                }
                let opened =
                    tokio::task::spawn_blocking(move || SledJournal::open(folder, journal_settings)).await?;
                let (sled, report) = opened.context("cannot open the log")?;
                for finding in &report.findings {
                    tracing::error!("log: {finding}");
                }
                let journal: Arc<dyn Journal> = Arc::new(sled.clone());
                let bus: Arc<dyn Bus> = Arc::new(MemoryBus::new());
                // JetStream does this by itself.
                let republish = republish(journal.clone(), bus.clone(), journal.tail().await?);
                let republishing = tokio::spawn(async move {
                    if let Err(error) = republish.await {
                        tracing::error!(%error, "subscribers get no more events");
                    }
                });
                Ok(Self { bus, journal, sled: Some(sled), copied: None, republishing: Some(republishing) })
            }
        }
    }

    async fn leave(self) {
        if let Some(task) = self.republishing {
            task.abort();
        }
        if let Some(sled) = self.sled {
            sled.close().await;
        }
        if let Some(copied) = self.copied {
            copied.close().await;
        }
    }
}

/// Runs until SIGINT or SIGTERM, until it has been drained, or until another process has taken a node's id.
pub async fn run(role: Role, settings: Settings) -> anyhow::Result<()> {
    anyhow::ensure!(
        role == Role::Up || settings.nats.is_some(),
        "a role of its own needs a NATS server between it and the others: --nats nats://host:4222 (`roomlog up` needs none)"
    );
    settings.check()?;
    let env = Env::system();
    let data = settings.data();
    std::fs::create_dir_all(&data)
        .with_context(|| format!("cannot make the data folder {}", data.display()))?;
    let data = data.canonicalize().with_context(|| format!("cannot enter {}", data.display()))?;

    let (listener, address) = listen(settings.listen())?;
    let admin_listener = settings.admin_listen.map(listen).transpose()?;
    let reached = reached_at(&settings, address)?;

    let ids = NodeIds::load_or_make(&data, &env)?.named(settings.id.as_deref())?;
    let ground = Ground::lay(&settings, &data).await?;
    let (bus, journal) = (ground.bus.clone(), ground.journal.clone());
    let directory = match role {
        Role::Ea => None, // an EA folds its own rooms only
        _ => Some(
            LiveDirectory::start_with_checkpoint(journal.clone(), data.join("checkpoint"))
                .await
                .context("cannot read the log")?,
        ),
    };

    let mut router = Router::new();
    let mut nuve: Option<Nuve> = None;
    let mut ec: Option<Ec> = None;
    let mut ea: Option<Ea> = None;
    if let Some(directory) = &directory {
        if role.plays(Role::Nuve) {
            let settings = nuve_settings(role, &settings, &ids, &data);
            let (bus, journal) = (bus.clone(), journal.clone());
            let started = roomlog_nuve::start(settings, bus, journal, directory.clone(), env.clone()).await;
            let started = started.context("NUVE did not start")?;
            router = router.merge(started.router());
            nuve = Some(started);
        }
        if role.plays(Role::Ec) {
            let settings =
                ec_settings(role, &settings, &ids, SocketAddr::new(reached, address.port()), &data);
            let (bus, journal) = (bus.clone(), journal.clone());
            let started = Ec::start(settings, bus, journal, directory.clone(), env.clone()).await;
            let started = started.context("EC did not start")?;
            router = router.merge(started.router());
            ec = Some(started);
        }
    }
    if role.plays(Role::Ea) {
        let settings = ea_settings(&settings, &ids, reached, &data)?;
        let started = roomlog_ea::start(settings, bus, journal.clone(), env).await;
        ea = Some(started.context("EA did not start")?);
    }
    match (role, &ea) {
        (Role::Ea, Some(ea)) => router = router.merge(health::of_ea(ea.health(), journal)),
        (Role::Ec, _) => router = router.route("/healthz", get(async || "ok\n")),
        _ => {} // NUVE's own
    }

    let trusted = settings.trusted_proxies.clone().unwrap_or_default();
    let guarded = admin::guard(router.clone(), admin_listener.is_some());

    let handle = Handle::new();
    let files = match settings.certificate()? {
        None if settings.lan() => Some(own_certificate(&data, reached)?),
        given => given,
    };
    let tls = match files {
        Some(files) => Some(tls::load(files, tls::LOOK_EVERY).await?),
        None => None,
    };
    let (tls, renewing) = tls.unzip();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let admin_serving = admin_listener.map(|(listener, address)| {
        println!("The administration is at {address}");
        // On this machine nobody listens on the way.
        let tls = tls.clone().filter(|_| !address.ip().is_loopback());
        tokio::spawn(http::serve(listener, tls, handle.clone(), proxies::resolve(router, trusted.clone())))
    });
    let serving =
        tokio::spawn(http::serve(listener, tls, handle.clone(), proxies::resolve(guarded, trusted)));

    if role == Role::Up {
        if let Some(ec) = &ec {
            let ready = async {
                while !ec.ready() {
                    tokio::time::sleep(READY_PAUSE).await;
                }
            };
            if tokio::time::timeout(READY_WITHIN, ready).await.is_err() {
                tracing::error!(
                    "the EA has not been heard after {READY_WITHIN:?}: rooms cannot be opened yet"
                );
            }
        }
        print_welcome(&settings, scheme, address, reached, &data);
    } else {
        let what = match role {
            Role::Nuve => format!("nuve.{}", ids.nuve),
            Role::Ec => format!("ec.{}", ids.ec),
            Role::Ea | Role::Up => format!("ea.{}", ids.ea),
        };
        println!("{what} serves at {scheme}://{address}/");
    }

    let failure = until_ended(ec.as_ref(), ea.as_ref()).await?;
    tracing::info!("stopping");
    handle.graceful_shutdown(Some(GRACE));
    if let Some(ec) = ec {
        ec.stop().await;
    }
    if let Some(ea) = ea {
        ea.stop().await;
    }
    if let Some(nuve) = nuve {
        nuve.stop().await;
    }
    serving.await?.context("the HTTP server failed")?;
    if let Some(serving) = admin_serving {
        serving.await?.context("the HTTP server of the administration failed")?;
    }
    if let Some(renewing) = renewing {
        renewing.abort();
    }
    if let Some(directory) = directory {
        directory.checkpoint().await;
    }
    ground.leave().await;
    failure.map_or(Ok(()), Err)
}

/// A socket that listens, and where.
fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!(
            "cannot listen on {address}: is another roomlog running? (--listen 127.0.0.1:0 takes a free port)"
        )
    })?;
    listener.set_nonblocking(true).context("cannot make the listening socket non-blocking")?;
    let address = listener.local_addr().context("the listening socket has no address")?;
    Ok((listener, address))
}

/// Waits for whatever ends the process; gives the reason where that is a failure.
async fn until_ended(ec: Option<&Ec>, ea: Option<&Ea>) -> anyhow::Result<Option<anyhow::Error>> {
    let ec_ended = async {
        let Some(ec) = ec else { return std::future::pending().await };
        let mut status = ec.status();
        match status.wait_for(|status| *status != EcStatus::Serving).await.map(|status| status.clone()) {
            Ok(EcStatus::Superseded(theirs)) => {
                Some(anyhow::anyhow!("another process runs under this EC's id, as its start {theirs}"))
            }
            _ => None,
        }
    };
    let ea_ended = async {
        let Some(ea) = ea else { return std::future::pending().await };
        ea.ended().await.map(anyhow::Error::from)
    };
    tokio::select! {
        stopped = stop_signal() => stopped.map(|()| None),
        failure = ec_ended => Ok(failure),
        failure = ea_ended => Ok(failure),
    }
}

fn print_welcome(settings: &Settings, scheme: &str, address: SocketAddr, reached: IpAddr, data: &Path) {
    println!("Log, keys and ids are in {}", data.display());
    if settings.demo.unwrap_or(true) {
        println!(
            "The demo service is on: whoever reaches the page can make rooms (--demo false turns it off)"
        );
    }
    if settings.lan() {
        if settings.tls_cert.is_none() {
            println!("The certificate is self-made: browsers ask once whether to trust it");
        }
        println!("Other machines: {scheme}://{}/", SocketAddr::new(reached, address.port()));
    }
    println!(
        "Open {scheme}://{}/",
        SocketAddr::new(if address.ip().is_unspecified() { reached } else { address.ip() }, address.port())
    );
}

/// The IP that clients reach this machine at.
fn reached_at(settings: &Settings, listening: SocketAddr) -> anyhow::Result<IpAddr> {
    if !listening.ip().is_unspecified() {
        return Ok(listening.ip());
    }
    settings.lan_address.or_else(lan_address).context(
        "this machine has no address that others reach: say which with --lan-address, or leave out --lan to serve this machine only",
    )
}

fn nuve_settings(role: Role, settings: &Settings, ids: &NodeIds, data: &Path) -> NuveSettings {
    let default = NuveSettings::default();
    let demo = settings.demo.unwrap_or(true);
    NuveSettings {
        id: ids.nuve.clone(),
        data_dir: Some(data.to_owned()),
        public_url: settings.public_url.clone(),
        tls: settings.tls(),
        admin_key: settings.admin_key.clone(),
        webhook_key: settings.webhook_key.clone(),
        // Who tries things out on one machine has the receiver there too.
        webhook_allow: settings.webhook_allow.clone().unwrap_or_else(|| match role == Role::Up && demo {
            true => Network::LOOPBACK.to_vec(),
            false => Vec::new(),
        }),
        demo,
        history_s: settings.history_s.unwrap_or(default.history_s),
        archive: settings.archive(data),
        token_key_s: settings.token_key_s.unwrap_or(default.token_key_s),
        token_ttl_s: settings.token_ttl_s.unwrap_or(default.token_ttl_s),
        ip_per_s: settings.ip_per_s.unwrap_or(default.ip_per_s),
        ip_burst: settings.ip_per_s.map_or(default.ip_burst, |per_s| per_s.saturating_mul(2)),
        cluster_per_s: settings.api_per_s.unwrap_or(default.cluster_per_s),
        shared_limit: settings.nats.is_some(),
        queue: settings.api_queue.unwrap_or(default.queue),
        queue_demand: settings.api_queue_demand.unwrap_or(default.queue_demand),
        service_per_s: settings.api_per_s.map_or(default.service_per_s, |per_s| per_s / 2),
        ..default
    }
}

fn ec_settings(
    role: Role,
    settings: &Settings,
    ids: &NodeIds,
    address: SocketAddr,
    data: &Path,
) -> EcSettings {
    let path = roomlog_ec::gateway::PATH;
    let scheme = if settings.tls() { "wss" } else { "ws" };
    let url = match (&settings.ec_url, role) {
        (Some(url), _) => url.clone(),
        // NUVE answers on the same address.
        (None, Role::Up) => format!("auto:{path}"),
        (None, _) => format!("{scheme}://{address}{path}"),
    };
    let mut ec = EcSettings::new(ids.ec.clone(), url);
    if let Some(ms) = settings.resume_ms {
        ec.resume = Duration::from_millis(ms);
    }
    ec.archive = settings.archive(data);
    if let Some(seconds) = settings.history_s {
        ec.retention = RetentionSettings::of(Duration::from_secs(seconds));
    }
    if let Some(clients) = settings.max_clients {
        ec.max_clients = clients;
    }
    ec
}

fn ea_settings(
    settings: &Settings,
    ids: &NodeIds,
    reached: IpAddr,
    data: &Path,
) -> anyhow::Result<EaSettings> {
    let program =
        std::env::current_exe().context("cannot find this program's own file to start workers from")?;
    let mut ea = EaSettings::new(ids.ea.clone(), vec![program.into(), "sfu-worker".into()]);
    if let Some(workers) = settings.workers {
        ea.workers = workers;
    }
    ea.media_ip = settings.media_ip.unwrap_or(reached);
    ea.announced = settings.announce.clone().unwrap_or_default();
    ea.first_announced_port = settings.announce_port;
    ea.first_port = settings.media_port;
    ea.workers_folder = Some(data.join("workers"));
    if let Some(ms) = settings.adopt_ms {
        ea.adopt_within = Duration::from_millis(ms);
    }
    Ok(ea)
}

/// Waits for SIGINT or SIGTERM.
async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
