//! The connection: made, watched, made again. Old servers are refused.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, connection::State};
use tokio::sync::{Notify, watch};

use super::{
    bus::NatsBus,
    inbox::Inbox,
    journal::{JetStreamJournal, JetStreamSettings},
    settings::{Credentials, NatsSettings},
};
use crate::{
    bus::{Bus, SUBSCRIPTION_QUEUE},
    journal::Journal,
};

/// The oldest NATS server that does what we need. Older ones silently ignore a stream's metadata (where the number of partitions is
/// recorded) and republish other headers.
pub const OLDEST_SERVER: (u32, u32) = (2, 10);

/// Messages waiting between the socket and a subscription's task, at most. A consumer's flow control window is up to 32 MiB, and a stored
/// commit takes 250 bytes and more on the wire: four times [`SUBSCRIPTION_QUEUE`] holds all of it. It is only filled while the tasks of
/// this process do not get to run.
const SOCKET_QUEUE: usize = 4 * SUBSCRIPTION_QUEUE;

/// How often the library's own idea of its state is looked at besides its events, of which it may drop some.
const LOOK: Duration = Duration::from_millis(100);

/// Why there is no connection, or none we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NatsError {
    /// The settings make no sense.
    #[error("NATS settings: {0}")]
    Settings(String),
    /// None of the servers can be reached, or they refuse us.
    #[error("cannot connect to NATS at {servers}: {reason}")]
    Connect {
        /// Which servers.
        servers: String,
        /// What the last of them did.
        reason: String,
    },
    /// The server lacks what we need.
    #[error(
        "NATS server {version} at {server} is too old: Roomlog needs 2.10 or newer, because older ones silently ignore stream metadata, in \
         which the number of partitions is recorded; upgrade nats-server, then start again"
    )]
    TooOld {
        /// Which server.
        server: String,
        /// Its version.
        version: String,
    },
    /// JetStream cannot be used.
    #[error(
        "JetStream is off at NATS server {server}: the log is kept there; put a `jetstream {{ store_dir: ... }}` block into its configuration \
         (and `jetstream: enabled` into the account, if accounts are used), then start again"
    )]
    JetStreamOff {
        /// Which server.
        server: String,
    },
    /// The cluster was made with another number of partitions.
    #[error(
        "this cluster's log has {recorded} partitions (recorded in the metadata of stream {stream}), the settings say {asked}: set {recorded}; \
         the number is fixed when a cluster is made and changes only by export and import"
    )]
    Partitions {
        /// Where it is recorded.
        stream: String,
        /// What the cluster was made with.
        recorded: String,
        /// What the settings say.
        asked: u16,
    },
    /// Nobody has made a log here.
    #[error(
        "NATS server {server} has no log of a Roomlog cluster: there is no stream {stream} that one made"
    )]
    NoLog {
        /// The stream that was looked for.
        stream: String,
        /// Who was asked.
        server: String,
    },
    /// A stream is not configured as it must be.
    #[error("stream {stream} is not configured as Roomlog needs it: {}; change it with `nats stream edit {stream}`, then start again", differences.join("; "))]
    Differs {
        /// The stream.
        stream: String,
        /// Each setting that differs, with what it is and what it has to be.
        differences: Vec<String>,
    },
    /// JetStream did not do what was asked.
    #[error("{what}: {reason}")]
    Api {
        /// What was asked.
        what: String,
        /// What came back.
        reason: String,
    },
}

/// Whether there is a connection now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
    /// There is.
    Connected {
        /// Name of the server.
        server: String,
        /// Its version.
        version: String,
        /// How often a connection was made, this one included: another number means that what was in flight may be lost.
        connects: u64,
    },
    /// There is none; it is being made again.
    Disconnected {
        /// How often a connection was made before.
        connects: u64,
    },
}

impl ConnectionState {
    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }

    /// How often a connection was made.
    pub fn connects(&self) -> u64 {
        match self {
            Self::Connected { connects, .. } | Self::Disconnected { connects } => *connects,
        }
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { server, version, .. } => write!(f, "connected to {server}, version {version}"),
            Self::Disconnected { .. } => f.write_str("not connected"),
        }
    }
}

/// A connection to NATS. Clones share it; it ends with the last of them and of the engines made from it.
#[derive(Clone)]
pub struct NatsConnection {
    pub(super) shared: Arc<Shared>,
}

/// What a connection's engines share.
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) state: watch::Receiver<ConnectionState>,
    /// Whether there is a connection; a change also where it came back before anybody looked.
    pub(super) connected: watch::Receiver<bool>,
    pub(super) inbox: Inbox,
    pub(super) settings: NatsSettings,
    watcher: tokio::task::JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl NatsConnection {
    /// Connects to the first server that answers, and checks its version.
    pub async fn connect(settings: NatsSettings) -> Result<Self, NatsError> {
        let servers = settings.servers.join(", ");
        let addresses = addresses(&settings)?;
        let changed = Arc::new(Notify::new());
        let options = options(&settings, changed.clone()).await?;
        let client = options
            .connect(addresses)
            .await
            .map_err(|error| NatsError::Connect { servers: servers.clone(), reason: with_sources(&error) })?;
        let info = client.server_info();
        if !new_enough(&info.version) {
            return Err(NatsError::TooOld { server: servers, version: info.version });
        }
        let (sender, state) = watch::channel(now(&client));
        let (is_connected, connected) = watch::channel(true);
        let watcher = tokio::spawn(watch_state(client.clone(), changed, sender, is_connected));
        let inbox = Inbox::open(client.clone(), state.clone())
            .await
            .map_err(|reason| NatsError::Connect { servers: servers.clone(), reason })?;
        tracing::info!(server = %info.server_name, version = %info.version, "connected to NATS");
        Ok(Self { shared: Arc::new(Shared { client, state, connected, inbox, settings, watcher }) })
    }

    /// The bus on this connection.
    pub fn bus(&self) -> Arc<dyn Bus> {
        Arc::new(self.nats_bus())
    }

    /// The same, with what only this engine has.
    pub fn nats_bus(&self) -> NatsBus {
        NatsBus::new(self.shared.clone())
    }

    /// The journal in this cluster; makes its streams if they are not there.
    pub async fn journal(&self, settings: JetStreamSettings) -> Result<Arc<dyn Journal>, NatsError> {
        Ok(Arc::new(self.jetstream(settings).await?))
    }

    /// The same, with what only this engine has.
    pub async fn jetstream(&self, settings: JetStreamSettings) -> Result<JetStreamJournal, NatsError> {
        JetStreamJournal::open(self.shared.clone(), settings).await
    }

    /// The journal that is in this cluster, for reading: nothing is made, and it has the partitions that the cluster was made with.
    pub async fn existing_jetstream(
        &self,
        settings: JetStreamSettings,
    ) -> Result<JetStreamJournal, NatsError> {
        JetStreamJournal::open_existing(self.shared.clone(), settings).await
    }

    /// How it was made.
    pub fn settings(&self) -> &NatsSettings {
        &self.shared.settings
    }

    /// Whether there is a connection.
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.shared.state.clone()
    }
}

impl Shared {
    /// Whether something sent now goes out now.
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// How often a connection was made, as of this moment: the state that is watched may be a tenth of a second behind.
    pub(super) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// The server we are or were connected to, for error messages.
    pub(super) fn server(&self) -> String {
        let info = self.client.server_info();
        format!("{} ({}:{})", info.server_name, info.host, info.port)
    }
}

fn addresses(settings: &NatsSettings) -> Result<Vec<async_nats::ServerAddr>, NatsError> {
    if settings.servers.is_empty() {
        return Err(NatsError::Settings("no server is given: write nats://HOST:4222".into()));
    }
    let parse = |url: &String| {
        url.trim().parse().map_err(|error| {
            NatsError::Settings(format!("server {url:?}: {error}; write nats://HOST:4222 or tls://HOST:4222"))
        })
    };
    settings.servers.iter().map(parse).collect()
}

async fn options(settings: &NatsSettings, changed: Arc<Notify>) -> Result<ConnectOptions, NatsError> {
    let (first, longest) = (settings.reconnect_delay, settings.reconnect_delay_max);
    let mut options = ConnectOptions::new()
        .name(&settings.name)
        .ping_interval(settings.ping_interval)
        .connection_timeout(settings.connect_timeout)
        .subscription_capacity(SOCKET_QUEUE)
        .client_capacity(settings.command_queue.max(1))
        .reconnect_delay_callback(move |tries| reconnect_delay(first, longest, tries))
        .event_callback(move |event| {
            if let async_nats::Event::ServerError(_) | async_nats::Event::ClientError(_) = &event {
                tracing::warn!(%event, "NATS");
            }
            changed.notify_one();
            std::future::ready(())
        });
    match &settings.credentials {
        Credentials::None => {}
        Credentials::User { user, password } => {
            options = options.user_and_password(user.clone(), password.clone());
        }
        Credentials::Token(token) => options = options.token(token.clone()),
        Credentials::File(path) => {
            options = options.credentials_file(path).await.map_err(|error| {
                NatsError::Settings(format!("credentials file {}: {error}", path.display()))
            })?;
        }
    }
    if let Some(tls) = &settings.tls {
        for path in tls.ca.iter().chain(tls.client.iter().flat_map(|(cert, key)| [cert, key])) {
            // Read now, or a wrong path would look like a server that cannot be reached.
            std::fs::File::open(path)
                .map_err(|error| NatsError::Settings(format!("TLS file {}: {error}", path.display())))?;
        }
        options = options.require_tls(true);
        if let Some(ca) = &tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((certificate, key)) = &tls.client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
    }
    Ok(options)
}

/// The pause before try number `tries`, from 1: none before the first, then `first`, doubling up to `longest`.
fn reconnect_delay(first: Duration, longest: Duration, tries: usize) -> Duration {
    match tries {
        0 | 1 => Duration::ZERO,
        _ => first.saturating_mul(1 << (tries - 2).min(16)).min(longest),
    }
}

fn now(client: &Client) -> ConnectionState {
    let connects = client.statistics().connects.load(Ordering::Relaxed);
    match client.connection_state() {
        State::Connected => {
            let info = client.server_info();
            ConnectionState::Connected { server: info.server_name, version: info.version, connects }
        }
        State::Disconnected | State::Pending => ConnectionState::Disconnected { connects },
    }
}

async fn watch_state(
    client: Client,
    changed: Arc<Notify>,
    sender: watch::Sender<ConnectionState>,
    is_connected: watch::Sender<bool>,
) {
    loop {
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = now(&client);
        if *sender.borrow() == now {
            continue;
        }
        match &now {
            ConnectionState::Connected { version, .. } if !new_enough(version) => {
                tracing::error!(%now, "this NATS server is too old: Roomlog needs 2.10 or newer; upgrade it");
            }
            ConnectionState::Connected { .. } => tracing::info!(%now, "NATS"),
            ConnectionState::Disconnected { .. } => {
                tracing::warn!("the connection to NATS broke; it is being made again");
            }
        }
        is_connected.send_replace(now.is_connected());
        sender.send_replace(now);
    }
}

/// Whether `version` (`2.10.27`, `2.12.0-RC.1`) is new enough. One that cannot be read is not.
fn new_enough(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split(['.', '-']).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST_SERVER,
        _ => false,
    }
}

/// An error and what caused it: the library says "IO error" first and what it was only inside.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_older_than_2_10_are_too_old() {
        for (version, enough) in [
            ("2.10.0", true),
            ("2.10.27", true),
            ("2.12.0-RC.1", true),
            ("3.0.0", true),
            ("2.9.25", false),
            ("1.99.0", false),
            ("2", false),
            ("", false),
        ] {
            assert_eq!(new_enough(version), enough, "{version}");
        }
    }

    #[test]
    fn pauses_between_tries_grow_and_stay_bounded() {
        let delay = |tries| reconnect_delay(Duration::from_millis(100), Duration::from_secs(1), tries);
        let millis: Vec<u128> = (0..8).map(|tries| delay(tries).as_millis()).collect();
        assert_eq!(millis, [0, 0, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(delay(usize::MAX).as_millis(), 1000);
    }
}
