//! How to reach NATS, and the reason of each default.

use std::{fmt, path::PathBuf, time::Duration};

/// How a [`NatsConnection`](super::NatsConnection) is made and kept.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// Servers, as `nats://host:port` or `tls://host:port`; any one of them will do. The others of their cluster are learned from it.
    pub servers: Vec<String>,
    /// Who we are.
    pub credentials: Credentials,
    /// How the connection is encrypted; none leaves it to the server and the URL.
    pub tls: Option<Tls>,
    /// Shown in the server's list of connections.
    pub name: String,
    /// How often the server is asked whether it is there. Default 800 ms: the third question without an answer ends the connection, so a
    /// dead server is noticed 1.6 to 2.4 s after its last word, before its silence makes anybody suspect a node (3 s).
    pub ping_interval: Duration,
    /// How long one server has to accept a connection. Default 2 s: a server that hangs must not keep us from the next for longer.
    pub connect_timeout: Duration,
    /// The pause before the second try to connect again (the first is at once); it doubles with each further one. Default 100 ms: a
    /// server's restart is noticed at once by a person's measure, and a hundred nodes asking ten times a second are no load.
    pub reconnect_delay: Duration,
    /// The longest such pause. Default 1 s: an EC is read-only after 8 s without the log, so some tries fit before.
    pub reconnect_delay_max: Duration,
    /// How long a subscription waits until the server is known to have it. Default 5 s, as RPCs.
    pub subscribe_timeout: Duration,
    /// Commands waiting for the socket, at most. Default 2 048: further publishes wait for their turn, which is how a slow network slows
    /// publishers down; and no more than these can be sent late, after a connection broke.
    pub command_queue: usize,
}

impl NatsSettings {
    /// The defaults, for these servers.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            credentials: Credentials::None,
            tls: None,
            name: "roomlog".into(),
            ping_interval: Duration::from_millis(800),
            connect_timeout: Duration::from_secs(2),
            reconnect_delay: Duration::from_millis(100),
            reconnect_delay_max: Duration::from_secs(1),
            subscribe_timeout: Duration::from_secs(5),
            command_queue: 2_048,
        }
    }
}

/// Who we are to the server.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nobody, or whoever the URL says.
    #[default]
    None,
    /// A user and a password.
    User {
        /// The user.
        user: String,
        /// Its password.
        password: String,
    },
    /// A token.
    Token(String),
    /// A `.creds` file: a JWT and the seed of its key, as `nsc` writes it.
    File(PathBuf),
}

/// Secrets do not belong into logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::User { user, .. } => f.debug_struct("User").field("user", user).finish_non_exhaustive(),
            Self::Token(_) => f.write_str("Token(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Encryption. A connection with these settings is never made in the clear.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// PEM file of the authority that signed the servers' certificates; none for those the system trusts.
    pub ca: Option<PathBuf>,
    /// PEM files of our certificate and its key, where the servers ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}
