//! Every setting of a NUVE node, with its unit in its name and the reason beside its default.

use std::{path::PathBuf, time::Duration};

use roomlog_bus::ids::NuveId;
use roomlog_projections::retention::RetentionSettings;
use serde::{Deserialize, Serialize};

use crate::network::Network;

/// How a room's EC is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EcPolicy {
    /// At random: needs no knowledge of load, and spreads well when rooms are many and alike.
    #[default]
    Random,
    /// The EC that holds the fewest rooms, those placed since its last heartbeat counted.
    LeastRooms,
}

/// The settings of one NUVE node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NuveSettings {
    /// This node's id, kept over restarts.
    pub id: NuveId,
    /// Where the token signing key, the admin key and the demo service's keys are kept, files of mode 0600. Without it they live as
    /// long as the process, which is for tests: every restart would make the tokens given out before worthless.
    pub data_dir: Option<PathBuf>,
    /// Where clients reach NUVE, such as `https://rooms.example`; the base of every `locateUrl`. Without it each answer uses the
    /// address its own request was sent to, which is right as long as clients and app servers use the same one.
    pub public_url: Option<String>,
    /// Whether clients reach this node over TLS: decides between `http`/`ws` and `https`/`wss` where an address is derived from a request.
    pub tls: bool,
    /// The key of `/v1/services`. Without it one is made in `data_dir`; with neither there is no service administration.
    pub admin_key: Option<String>,
    /// What the secrets of webhooks are computed from: the same for all NUVE nodes of a cluster, or only the one that made a webhook can
    /// send for it. Without it one is made in `data_dir`.
    pub webhook_key: Option<String>,
    /// Networks that webhooks may call besides the public Internet, such as `10.1.0.0/16`; only these are called without TLS. None: a
    /// tenant's URL must not be a way into what this node reaches.
    pub webhook_allow: Vec<Network>,
    /// Makes a service for trying things out and tells its publishable key at `/v1/demo`. Only for machines that strangers may use.
    pub demo: bool,
    /// Life of a token, seconds. 60: a token is fetched right before it is used, so a minute covers a slow phone and clocks that
    /// differ by seconds, while one found in a proxy's log is already worthless.
    pub token_ttl_s: u64,
    /// A key signs tokens for this long, seconds, then the next does. 86 400, a day: a stolen one is worthless soon, and ECs ask for new ones
    /// that often at most.
    pub token_key_s: u64,
    /// How a room's EC is chosen.
    pub ec_policy: EcPolicy,
    /// Requests per second from one IP address with a publishable key. 10: a person opens a few rooms a minute; an office behind one
    /// address still fits.
    pub ip_per_s: u32,
    /// How many of those may come at once. 20: an office whose meeting begins on the hour.
    pub ip_burst: u32,
    /// Requests per second with the secret key of one service. 500: half of what the cluster takes, so that one service alone cannot
    /// shut out the others.
    pub service_per_s: u32,
    /// Requests per second to the API, all callers together. 1000: the specification's figure for the cluster.
    pub cluster_per_s: u32,
    /// Whether that is the limit of all NUVE nodes together, which they share over the bus. Off: it is this node's own, which is right
    /// where there is no other.
    pub shared_limit: bool,
    /// Makes requests beyond `cluster_per_s` wait in order, instead of refusing them at once. Off: a caller that is told to come back
    /// can do something else meanwhile.
    pub queue: bool,
    /// With the queue on: once the demand, served this second plus waiting, has reached this, the rest is refused at once. 10 000: the
    /// specification's figure; at 1000 a second the last one waits 9 s, within the request's time limit.
    pub queue_demand: u32,
    /// `locate` requests per second to this node: clients on their way back, limited apart from all others. 2000: an EC's few
    /// thousand clients are back within seconds.
    pub locate_per_s: u32,
    /// A request is given up after this long, milliseconds. 15 000: room for one RPC (5 s) and one wait for a version (5 s).
    pub request_timeout_ms: u64,
    /// Streams of `/v1/events` open at a time. 64: each follows the whole journal.
    pub max_event_streams: usize,
    /// A deleted room's stream stays in the log this long, seconds. 2 592 000, 30 days: incidents are looked into and invoices disputed in
    /// weeks. Must be longer than `token_ttl_s` and the ECs' resume time together, or a token might admit to a room nobody remembers.
    pub history_s: u64,
    /// Folder in which streams are archived before they are purged. Without it they are gone, which is for tests.
    pub archive: Option<PathBuf>,
    /// An EC is suspected after this long without a heartbeat, milliseconds: three missed.
    pub suspect_after_ms: u64,
    /// An EC is lost after this long without a heartbeat, milliseconds: ten missed.
    pub lost_after_ms: u64,
}

impl Default for NuveSettings {
    fn default() -> Self {
        Self {
            id: NuveId::new("nuve").expect("a token"),
            data_dir: None,
            public_url: None,
            tls: false,
            admin_key: None,
            webhook_key: None,
            webhook_allow: Vec::new(),
            demo: false,
            token_ttl_s: 60,
            token_key_s: 86_400,
            ec_policy: EcPolicy::Random,
            ip_per_s: 10,
            ip_burst: 20,
            service_per_s: 500,
            cluster_per_s: 1_000,
            shared_limit: false,
            queue: false,
            queue_demand: 10_000,
            locate_per_s: 2_000,
            request_timeout_ms: 15_000,
            max_event_streams: 64,
            history_s: 2_592_000,
            archive: None,
            suspect_after_ms: 3_000,
            lost_after_ms: 10_000,
        }
    }
}

impl NuveSettings {
    /// When deleted rooms are purged.
    pub fn retention(&self) -> RetentionSettings {
        RetentionSettings::of(Duration::from_secs(self.history_s))
    }
}
