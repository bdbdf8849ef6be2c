//! `roomlog up`: all roles in one process, the log in sled, the bus in memory, the SFU workers as children.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum_server::{Handle, tls_rustls::RustlsConfig};
use roomlog_bus::{
    bus::Bus,
    env::Env,
    journal::Journal,
    memory_bus::MemoryBus,
    republish::republish,
    sled_journal::{JournalSettings, SledJournal},
};
use roomlog_ea::EaSettings;
use roomlog_ec::{Ec, EcSettings};
use roomlog_nuve::NuveSettings;
use roomlog_projections::directory::LiveDirectory;

use crate::{
    identity::{Certificate, NodeIds, lan_address},
    settings::Settings,
};

/// Requests still running when the process is told to stop are given this long. Sockets of clients are closed at once, with a code
/// that brings them back.
const GRACE: Duration = Duration::from_secs(3);
/// The first heartbeat of the EA is due within a second of its start; more means that the machine is very slow or something is wrong.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Between two looks at whether the node can serve.
const READY_PAUSE: Duration = Duration::from_millis(20);

/// Runs until SIGINT or SIGTERM.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let env = Env::system();
    let data = settings.data();
    std::fs::create_dir_all(&data)
        .with_context(|| format!("cannot make the data folder {}", data.display()))?;
    let data = data.canonicalize().with_context(|| format!("cannot enter {}", data.display()))?;

    let listener = TcpListener::bind(settings.listen()).with_context(|| {
        format!(
            "cannot listen on {}: is another `roomlog up` running? (--listen 127.0.0.1:0 takes a free port)",
            settings.listen()
        )
    })?;
    listener.set_nonblocking(true).context("cannot make the listening socket non-blocking")?;
    let address = listener.local_addr().context("the listening socket has no address")?;
    let reached = reached_at(&settings, address)?;

    let folder = data.join("log");
    let mut journal_settings = JournalSettings::default();
    if let Some(bytes) = settings.segment_bytes {
        journal_settings.segment_bytes = bytes;
    }
    let opened = tokio::task::spawn_blocking(move || SledJournal::open(folder, journal_settings)).await?;
    let (journal, report) = opened.context("cannot open the log")?;
    for finding in &report.findings {
        tracing::error!("log: {finding}");
    }
    let sled = journal.clone();
    let journal: Arc<dyn Journal> = Arc::new(journal);
    let bus: Arc<dyn Bus> = Arc::new(MemoryBus::new());

    let ids = NodeIds::load_or_make(&data, &env)?;
    let republishing = tokio::spawn(republish(journal.clone(), bus.clone(), journal.tail().await?));
    let directory = LiveDirectory::start_with_checkpoint(journal.clone(), data.join("checkpoint"))
        .await
        .context("cannot read the log")?;

    let nuve = roomlog_nuve::start(
        nuve_settings(&settings, &ids, &data),
        bus.clone(),
        journal.clone(),
        directory.clone(),
        env.clone(),
    )
    .await
    .context("NUVE did not start")?;
    let ec =
        Ec::start(ec_settings(&settings, &ids), bus.clone(), journal.clone(), directory.clone(), env.clone())
            .await
            .context("EC did not start")?;
    let ea_settings = ea_settings(&settings, &ids, reached)?;
    let ea = roomlog_ea::start(ea_settings, bus, journal, env).await.context("EA did not start")?;

    let router = nuve.router().merge(ec.router());
    let handle = Handle::new();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let tls = match settings.lan() {
        true => {
            let certificate = Certificate::load_or_make(&data, reached)?;
            let config = RustlsConfig::from_pem_file(&certificate.certificate, &certificate.key);
            Some(config.await.context("the certificate does not load")?)
        }
        false => None,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let serving = {
        let handle = handle.clone();
        tokio::spawn(async move {
            match tls {
                Some(tls) => axum_server::from_tcp_rustls(listener, tls)?.handle(handle).serve(service).await,
                None => axum_server::from_tcp(listener)?.handle(handle).serve(service).await,
            }
        })
    };

    let ready = async {
        while !ec.ready() {
            tokio::time::sleep(READY_PAUSE).await;
        }
    };
    if tokio::time::timeout(READY_WITHIN, ready).await.is_err() {
        tracing::error!("the EA has not been heard after {READY_WITHIN:?}: rooms cannot be opened yet");
    }
    print_welcome(&settings, scheme, address, reached, &data);

    stop_signal().await?;
    tracing::info!("stopping");
    handle.graceful_shutdown(Some(GRACE));
    ec.stop().await;
    ea.stop().await;
    nuve.stop().await;
    serving.await?.context("the HTTP server failed")?;
    republishing.abort();
    directory.checkpoint().await;
    sled.close().await;
    Ok(())
}

fn print_welcome(
    settings: &Settings,
    scheme: &str,
    address: SocketAddr,
    reached: IpAddr,
    data: &std::path::Path,
) {
    println!("Log, keys and ids are in {}", data.display());
    if settings.demo.unwrap_or(true) {
        println!(
            "The demo service is on: whoever reaches the page can make rooms (--demo false turns it off)"
        );
    }
    if settings.lan() {
        println!("The certificate is self-made: browsers ask once whether to trust it");
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

fn nuve_settings(settings: &Settings, ids: &NodeIds, data: &std::path::Path) -> NuveSettings {
    let default = NuveSettings::default();
    NuveSettings {
        id: ids.nuve.clone(),
        data_dir: Some(data.to_owned()),
        public_url: settings.public_url.clone(),
        tls: settings.lan(),
        admin_key: settings.admin_key.clone(),
        demo: settings.demo.unwrap_or(true),
        token_ttl_s: settings.token_ttl_s.unwrap_or(default.token_ttl_s),
        ip_per_s: settings.ip_per_s.unwrap_or(default.ip_per_s),
        ip_burst: settings.ip_per_s.map_or(default.ip_burst, |per_s| per_s.saturating_mul(2)),
        cluster_per_s: settings.api_per_s.unwrap_or(default.cluster_per_s),
        service_per_s: settings.api_per_s.map_or(default.service_per_s, |per_s| per_s / 2),
        ..default
    }
}

fn ec_settings(settings: &Settings, ids: &NodeIds) -> EcSettings {
    let mut ec = EcSettings::new(ids.ec.clone(), format!("auto:{}", roomlog_ec::gateway::PATH));
    if let Some(ms) = settings.resume_ms {
        ec.resume = Duration::from_millis(ms);
    }
    if let Some(clients) = settings.max_clients {
        ec.max_clients = clients;
    }
    ec
}

fn ea_settings(settings: &Settings, ids: &NodeIds, reached: IpAddr) -> anyhow::Result<EaSettings> {
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
