//! The settings of an EC, each with the reason for its default.

use std::{path::PathBuf, time::Duration};

use roomlog_bus::ids::EcId;
use roomlog_projections::{membership::LivenessSettings, retention::RetentionSettings};

/// How long a client may stay away after its socket broke, unless set otherwise: a lift, a tunnel, a change from Wi-Fi to mobile.
pub const RESUME: Duration = Duration::from_secs(30);

use crate::per_client::PerClient;

/// Settings of an EC.
#[derive(Debug, Clone)]
pub struct EcSettings {
    /// This node, kept over restarts.
    pub id: EcId,
    /// Where clients reach its WebSocket: a full URL, or `auto:/signal` when NUVE answers on the same port.
    pub address: String,
    /// How long a client may stay away after its socket broke.
    pub resume: Duration,
    /// Most clients in one room. 500 is what one SFU worker's core carries as consumers of a single producer.
    pub max_clients: usize,
    /// Most transports and producers of one client. 8 transports: a client has two, and makes new ones while failed ones are not yet
    /// noticed. 16 producers: microphone, camera, screen and its sound, four times over for whoever mixes or records.
    pub per_client: PerClient,
    /// An RPC to an EA is given up after this. 5 s is a third of the 15 s within which every client request is answered.
    pub rpc_timeout: Duration,
    /// A client that has not taken a `newConsumer` by then has refused it. 15 s: half of the resume time, so that a hung page is
    /// noticed before it would have been dropped.
    pub accept_timeout: Duration,
    /// The server pings this often, since protoo-client never does: under the 30 s after which NATs and proxies forget a connection.
    pub ping_every: Duration,
    /// A socket with nothing received for this long is dead: two pings missed.
    pub socket_timeout: Duration,
    /// A socket that has not shown a token by then is closed.
    pub token_timeout: Duration,
    /// Largest frame a client may send, in bytes. The largest honest one, `join` with a browser's capabilities, is about 20 KiB.
    pub max_frame: usize,
    /// Frames waiting for one slow client, at most; beyond, its socket is closed and it may resume. 1 024 is a room of 500 joining twice.
    pub socket_queue: usize,
    /// Messages waiting for one room, at most; beyond, requests are refused as retryable.
    pub room_queue: usize,
    /// New connections a second, this EC's own limit; as many at once after a quiet second, since all clients of a lost EC come together.
    pub connections_per_second: u32,
    /// Sockets that one address (an IPv6 /64) may have open at a time. 2 000: a campus or a carrier behind one address, four full rooms.
    pub sockets_per_address: u32,
    /// Messages a second from one socket; beyond, it is closed. 200: a client that shares its screen while others join says ten.
    pub messages_per_second: u32,
    /// Messages that one socket may send at once after a quiet while. 4 000: whoever enters a full room answers a thousand `newConsumer`.
    pub messages_burst: u32,
    /// Answers kept for repeated requests of one client: more than a client ever has under way at once.
    pub stored_answers: usize,
    /// How often a room compares its worker's inventory with its log.
    pub inventory_every: Duration,
    /// How often heartbeats go out.
    pub heartbeat_every: Duration,
    /// Without a confirmed round trip to the log for this long the rooms are read-only and their clients are told `suspended`. 8 s:
    /// before the 10 s after which others may call this EC lost and give its rooms away.
    pub suspend_after: Duration,
    /// When closed rooms are compacted.
    pub retention: RetentionSettings,
    /// Folder in which what is purged is archived; none: it is gone. None by default, since whoever starts an EC knows where there is room.
    pub archive: Option<PathBuf>,
    /// When a silent EA is asked, suspected and called lost.
    pub liveness: LivenessSettings,
}

impl EcSettings {
    /// The defaults for node `id` at `address`.
    pub fn new(id: EcId, address: impl Into<String>) -> Self {
        Self {
            id,
            address: address.into(),
            resume: RESUME,
            max_clients: 500,
            per_client: PerClient { transports: 8, producers: 16 },
            rpc_timeout: roomlog_bus::rpc::RPC_TIMEOUT,
            accept_timeout: Duration::from_secs(15),
            ping_every: Duration::from_secs(10),
            socket_timeout: Duration::from_secs(20),
            token_timeout: Duration::from_secs(10),
            max_frame: 256 * 1024,
            socket_queue: 1_024,
            room_queue: 1_024,
            connections_per_second: 1_000,
            sockets_per_address: 2_000,
            messages_per_second: 200,
            messages_burst: 4_000,
            stored_answers: 64,
            inventory_every: Duration::from_secs(30),
            heartbeat_every: Duration::from_secs(1),
            suspend_after: Duration::from_secs(8),
            retention: RetentionSettings::default(),
            archive: None,
            liveness: LivenessSettings::default(),
        }
    }
}
