//! What an EA is told from outside, each default with its reason, and why an EA does not start.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use roomlog_bus::{
    bus::Disconnected,
    ids::{EaId, Incarnation},
    journal::{AppendError, ReadError},
};

/// A heartbeat this often: three of them fit in the 3 s after which a node is suspected.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// A worker is pinged this often; the same second as the heartbeat, so that load figures are not older than a heartbeat.
pub const PING_EVERY: Duration = Duration::from_secs(1);

/// A worker that has not answered a ping for this long is replaced. Its loop turns in milliseconds; 3 s is far beyond any turn, and short
/// beside the 10 s after which clients see their ICE fail.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(3);

/// A new worker has this long to say `Ready`. Binding a socket and making a certificate take under 100 ms; a loaded host may take seconds.
pub const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is not committed after this long is destroyed: twice the RPC timeout, so that an EC that is still trying does not lose it.
pub const PROVISIONAL_TTL: Duration = Duration::from_secs(10);

/// Worker inventory and log are compared this often, room by room: the interval at which the EC does the same from its side.
pub const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// A worker told to end has this long for closing DTLS towards its clients before it is killed: one flight of alerts, with reserve.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Waiting time before a worker that died young is started a second time; doubled for each death that follows. Short enough that one
/// crash is not noticed more than the crash itself.
pub const RESTART_BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest waiting time: a worker that cannot start (its port is taken) costs one process start every 10 s.
pub const RESTART_BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A worker that lived this long is started again at once when it dies: what killed it is not its start.
pub const STABLE_AFTER: Duration = Duration::from_secs(30);

/// A worker whose EA is gone goes on for this long: longer than it takes to start an EA again, also on a slow machine and with a second try.
/// Not longer, because nobody can come, go or be muted in its calls meanwhile; when it ends its clients are moved at once, and
/// not only after the 60 s for which an EA with live ports is waited for.
pub const ADOPT_WITHIN: Duration = Duration::from_secs(30);

/// What an EA is told.
#[derive(Debug, Clone)]
pub struct EaSettings {
    /// Its id, kept over restarts.
    pub id: EaId,
    /// SFU workers to run; one per core, since a worker is one thread that can fill a core.
    pub workers: usize,
    /// Program and arguments of a worker, such as the own executable and `sfu-worker`.
    pub worker_command: Vec<OsString>,
    /// Address the workers bind. Loopback until told otherwise, so that nothing is open by accident.
    pub media_ip: IpAddr,
    /// Addresses put into candidates, for a host behind NAT; empty means `media_ip`.
    pub announced: Vec<IpAddr>,
    /// Worker i is announced at this UDP port plus i, for a host behind a NAT that forwards other ports; none announces the port it
    /// has. Needs `first_port`: nobody can forward to a port that the kernel chooses.
    pub first_announced_port: Option<u16>,
    /// Worker i binds this UDP port plus i; none lets the kernel choose, and a replaced worker asks for the port its predecessor had.
    pub first_port: Option<u16>,
    /// See [`HEARTBEAT_EVERY`].
    pub heartbeat_every: Duration,
    /// See [`PING_EVERY`].
    pub ping_every: Duration,
    /// See [`PONG_TIMEOUT`].
    pub pong_timeout: Duration,
    /// See [`READY_TIMEOUT`].
    pub ready_timeout: Duration,
    /// See [`PROVISIONAL_TTL`].
    pub provisional_ttl: Duration,
    /// See [`SWEEP_EVERY`].
    pub sweep_every: Duration,
    /// See [`SHUTDOWN_TIMEOUT`].
    pub shutdown_timeout: Duration,
    /// See [`RESTART_BACKOFF_MIN`].
    pub restart_backoff_min: Duration,
    /// See [`RESTART_BACKOFF_MAX`].
    pub restart_backoff_max: Duration,
    /// See [`STABLE_AFTER`].
    pub stable_after: Duration,
    /// Where workers are found by the next process of this EA, which then takes them over; none ends them with this process.
    pub workers_folder: Option<PathBuf>,
    /// See [`ADOPT_WITHIN`].
    pub adopt_within: Duration,
}

impl EaSettings {
    /// The defaults for all but the id and the worker's command.
    pub fn new(id: EaId, worker_command: Vec<OsString>) -> Self {
        Self {
            id,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            worker_command,
            media_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            announced: Vec::new(),
            first_announced_port: None,
            first_port: None,
            heartbeat_every: HEARTBEAT_EVERY,
            ping_every: PING_EVERY,
            pong_timeout: PONG_TIMEOUT,
            ready_timeout: READY_TIMEOUT,
            provisional_ttl: PROVISIONAL_TTL,
            sweep_every: SWEEP_EVERY,
            shutdown_timeout: SHUTDOWN_TIMEOUT,
            restart_backoff_min: RESTART_BACKOFF_MIN,
            restart_backoff_max: RESTART_BACKOFF_MAX,
            stable_after: STABLE_AFTER,
            workers_folder: None,
            adopt_within: ADOPT_WITHIN,
        }
    }
}

/// Why an EA did not start, or ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EaError {
    /// A setting that cannot be.
    #[error("EA setting {name} is {value}: {expected}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What it was.
        value: String,
        /// What is possible.
        expected: &'static str,
    },
    /// Its own stream could not be read.
    #[error("EA {id} could not read its own stream: {source}; is the journal there?")]
    Read {
        /// EA.
        id: EaId,
        /// The journal's words.
        source: ReadError,
    },
    /// It could not be registered.
    #[error("EA {id} could not append to its own stream: {source}")]
    Append {
        /// EA.
        id: EaId,
        /// The journal's words.
        source: AppendError,
    },
    /// Its RPC subject could not be subscribed to.
    #[error("EA {id} could not listen for requests: {source}")]
    Bus {
        /// EA.
        id: EaId,
        /// The bus's words.
        source: Disconnected,
    },
    /// Not one SFU worker started.
    #[error(
        "EA {id}: none of {workers} SFU workers got ready ({reason}); run the worker command by hand to see why"
    )]
    NoWorkers {
        /// EA.
        id: EaId,
        /// How many were tried.
        workers: usize,
        /// What the last one said.
        reason: String,
    },
    /// Another process started under this id.
    #[error(
        "EA {id} is also run by another process, which registered incarnation {theirs} (ours is {ours}): give each EA an id of its own"
    )]
    Superseded {
        /// EA.
        id: EaId,
        /// Incarnation of this process.
        ours: Incarnation,
        /// Incarnation that was found.
        theirs: Incarnation,
    },
}
