//! The settings of a node, whichever roles it plays, from three places of rising strength: a TOML file, the environment, flags.
//!
//! Every field is one setting; its doc comment is its reference, shown by `roomlog up --help` and kept in `docs/settings.md`.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use roomlog_bus::nats::{Credentials, JetStreamSettings, NatsSettings, Tls};
use roomlog_ec::settings::RESUME;
use roomlog_nuve::{NuveSettings, network::Network};
use serde::Deserialize;

use crate::tls::Files;

/// Where `up` keeps everything, unless told otherwise: beside where it is started, so that two trials do not meet.
pub const DEFAULT_DATA: &str = ".data";
/// Loopback, because a browser gives a camera to `localhost` without TLS; the port is free of well-known neighbours.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7880";
/// With `--lan`: every address of the machine.
pub const DEFAULT_LISTEN_LAN: &str = "0.0.0.0:7880";

/// Settings of a node, none of which is required.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Folder of the log, keys and ids. [default: .data, beside where it is started, so that two trials do not meet]
    #[arg(long, env = "ROOMLOG_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of HTTP and signalling; port 0 takes a free one. [default: 127.0.0.1:7880; a browser gives a camera to localhost
    /// without TLS. With --lan 0.0.0.0:7880]
    #[arg(long, env = "ROOMLOG_LISTEN", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Serve other machines of the local network: TLS with a certificate made at first start (browsers give a camera only to HTTPS
    /// there), listening on all addresses and announcing this machine's.
    #[arg(long, env = "ROOMLOG_LAN", num_args = 0..=1, default_missing_value = "true")]
    pub lan: Option<bool>,
    /// The address of this machine that other machines reach. [default with --lan: the first private one found]
    #[arg(long, env = "ROOMLOG_LAN_ADDRESS", value_name = "IP")]
    pub lan_address: Option<IpAddr>,
    /// Base URL under which clients reach this node through a proxy or a name. [default: the address each request was sent to]
    #[arg(long, env = "ROOMLOG_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// SFU worker processes. [default: one per core, since a worker is single-threaded and never waits]
    #[arg(long, env = "ROOMLOG_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// IP the workers' media sockets bind. [default: that of --listen]
    #[arg(long, env = "ROOMLOG_MEDIA_IP", value_name = "IP")]
    pub media_ip: Option<IpAddr>,
    /// Addresses put into ICE candidates, for a machine behind NAT; several separated by commas. [default: the media IP]
    #[arg(long, env = "ROOMLOG_ANNOUNCE", value_name = "IP", value_delimiter = ',')]
    pub announce: Option<Vec<IpAddr>>,
    /// UDP port put into ICE candidates for the first worker, each further one the next, where a NAT forwards them to other ports; needs
    /// --media-port. [default: the port the worker has]
    #[arg(long, env = "ROOMLOG_ANNOUNCE_PORT", value_name = "PORT")]
    pub announce_port: Option<u16>,
    /// UDP port of the first worker, each further one the next; to be opened in a firewall. [default: free ports]
    #[arg(long, env = "ROOMLOG_MEDIA_PORT", value_name = "PORT")]
    pub media_port: Option<u16>,
    /// Milliseconds for which workers go on when their EA's process has died, waiting for it to be started again. [default: 30000: longer
    /// than starting takes; nobody can join or leave their calls meanwhile, so not much longer]
    #[arg(long, env = "ROOMLOG_ADOPT_MS", value_name = "MS")]
    pub adopt_ms: Option<u64>,
    /// How long a client may stay away after its socket broke, milliseconds. [default: 30000, a lift or a change of network]
    #[arg(long, env = "ROOMLOG_RESUME_MS", value_name = "MS")]
    pub resume_ms: Option<u64>,
    /// Most clients in one room. [default: 500, what one worker carries as consumers of one producer]
    #[arg(long, env = "ROOMLOG_MAX_CLIENTS", value_name = "N")]
    pub max_clients: Option<usize>,
    /// Life of a token, seconds. [default: 60; it is fetched right before use, and a leaked one is soon worthless]
    #[arg(long, env = "ROOMLOG_TOKEN_TTL_S", value_name = "S")]
    pub token_ttl_s: Option<u64>,
    /// Token requests per second from one IP address. [default: 10, an office behind one address]
    #[arg(long, env = "ROOMLOG_IP_PER_S", value_name = "N")]
    pub ip_per_s: Option<u32>,
    /// API requests per second, all callers and all NUVE nodes together; on NATS the nodes share it. [default: 1000, the specification's
    /// figure]
    #[arg(long, env = "ROOMLOG_API_PER_S", value_name = "N")]
    pub api_per_s: Option<u32>,
    /// Let API requests beyond the limit wait for their turn, in order, up to 12 s, instead of refusing them. [default: false, since a caller
    /// that is told to come back can do something else meanwhile]
    #[arg(long, env = "ROOMLOG_API_QUEUE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub api_queue: Option<bool>,
    /// With --api-queue: requests that all NUVE nodes have together, served this second and waiting, from which on the rest is refused.
    /// [default: 10000, the specification's figure]
    #[arg(long, env = "ROOMLOG_API_QUEUE_DEMAND", value_name = "N")]
    pub api_queue_demand: Option<u32>,
    /// Networks of the proxies before this node, several separated by commas: their `X-Forwarded-For` is believed. [default: none, so
    /// that nobody can claim to be another]
    #[arg(long, env = "ROOMLOG_TRUSTED_PROXIES", value_name = "NETWORK", value_delimiter = ',')]
    pub trusted_proxies: Option<Vec<Network>>,
    /// PEM file of the certificate chain that HTTP and WebSockets are served with, read again when it changes. [default: none; self-made with
    /// --lan]
    #[arg(long, env = "ROOMLOG_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the key to --tls-cert. [default: none]
    #[arg(long, env = "ROOMLOG_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Address of the administration: services and their keys, draining, metrics; and of all the rest. [default: none; at --listen it answers
    /// this machine only]
    #[arg(long, env = "ROOMLOG_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// A key signs tokens for so long, seconds, then the next does. [default: 86400; a stolen one is worthless soon]
    #[arg(long, env = "ROOMLOG_TOKEN_KEY_S", value_name = "S")]
    pub token_key_s: Option<u64>,
    /// Key of the service administration. [default: made at first start and kept in the data folder]
    #[arg(long, env = "ROOMLOG_ADMIN_KEY", value_name = "KEY", hide_env_values = true)]
    pub admin_key: Option<String>,
    /// What the secrets of webhooks are computed from; the same for all NUVE nodes of a cluster. [default: made at first start and kept in
    /// the data folder, which is right for one NUVE]
    #[arg(long, env = "ROOMLOG_WEBHOOK_KEY", value_name = "KEY", hide_env_values = true)]
    pub webhook_key: Option<String>,
    /// Networks that webhooks may call besides the public Internet, several separated by commas; only these without TLS. [default: none; a
    /// tenant's URL must be no way into the operator's network]
    #[arg(long, env = "ROOMLOG_WEBHOOK_ALLOW", value_name = "NETWORK", value_delimiter = ',')]
    pub webhook_allow: Option<Vec<Network>>,
    /// Whether the demo service exists, with which the page works at once. [default: true; say false on a machine strangers reach]
    #[arg(long, env = "ROOMLOG_DEMO", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub demo: Option<bool>,
    /// NATS servers with JetStream that carry the bus and the log, several separated by commas: the node is one of a cluster. [default:
    /// none; bus and log are built in]
    #[arg(long, env = "ROOMLOG_NATS", value_name = "URL", value_delimiter = ',')]
    pub nats: Option<Vec<String>>,
    /// A NATS `.creds` file. User and password may stand in the URL instead. [default: none]
    #[arg(long, env = "ROOMLOG_NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,
    /// PEM file of the authority that signed the NATS servers' certificates; asks for TLS. [default: none]
    #[arg(long, env = "ROOMLOG_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// PEM file of this node's certificate for NATS, with --nats-key. [default: none]
    #[arg(long, env = "ROOMLOG_NATS_CERT", value_name = "FILE", requires = "nats_key")]
    pub nats_cert: Option<PathBuf>,
    /// PEM file of the key to --nats-cert. [default: none]
    #[arg(long, env = "ROOMLOG_NATS_KEY", value_name = "FILE", requires = "nats_cert")]
    pub nats_key: Option<PathBuf>,
    /// NATS servers that keep each commit. [default: 1; a NATS cluster of three wants 3, so that one may die]
    #[arg(long, env = "ROOMLOG_NATS_REPLICAS", value_name = "N")]
    pub nats_replicas: Option<u8>,
    /// Partitions of the log in JetStream, the same for all nodes and fixed when the cluster is made. [default: 4, so that four cores
    /// can each follow one]
    #[arg(long, env = "ROOMLOG_PARTITIONS", value_name = "N")]
    pub partitions: Option<u16>,
    /// Bytes of the local copy of what this node has written to the log in JetStream, from which `roomlog repair` restores it. [default:
    /// 1073741824; some two million commits]
    #[arg(long, env = "ROOMLOG_COPY_BYTES", value_name = "N")]
    pub copy_bytes: Option<u64>,
    /// Id of this node. [default: a random one, made at first start and kept in the data folder]
    #[arg(long, env = "ROOMLOG_ID", value_name = "ID")]
    pub id: Option<String>,
    /// WebSocket URL at which clients reach this EC, such as wss://ec1.example/signal. [default: the address it listens on; with `up`,
    /// whatever address NUVE was asked at]
    #[arg(long, env = "ROOMLOG_EC_URL", value_name = "URL")]
    pub ec_url: Option<String>,
    /// Bytes of log after which a segment is closed. [default: 67108864; only the newest segment is read through at a start]
    #[arg(long, env = "ROOMLOG_SEGMENT_BYTES", value_name = "N")]
    pub segment_bytes: Option<u64>,
    /// Seconds for which the log keeps what is over: the commits of a deleted room, and those of one that has been closed since, but for
    /// a snapshot. Longer than --token-ttl-s and --resume-ms together. [default: 2592000, 30 days: incidents are looked into in weeks]
    #[arg(long, env = "ROOMLOG_HISTORY_S", value_name = "SECONDS")]
    pub history_s: Option<u64>,
    /// Folder in which commits are archived before the log forgets them, `none` for no archive. `roomlog replay --archive` reads it.
    /// [default: archive in the data folder, so that nothing is ever lost unasked]
    #[arg(long, env = "ROOMLOG_ARCHIVE", value_name = "FOLDER")]
    pub archive: Option<PathBuf>,
    /// What is logged to standard error, as `tracing` filters. [default: info, without DTLS' remarks on each browser]
    #[arg(long, env = "ROOMLOG_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

impl Settings {
    /// These settings over those of `file`, if one is given.
    pub fn over_file(self, file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = file else { return Ok(self) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the settings file {}", path.display()))?;
        let base: Self = toml::from_str(&text)
            .with_context(|| format!("the settings file {} does not read", path.display()))?;
        Ok(self.over(base))
    }

    /// Each setting from `self` where it is there, else from `base`.
    fn over(self, base: Self) -> Self {
        Self {
            data: self.data.or(base.data),
            listen: self.listen.or(base.listen),
            lan: self.lan.or(base.lan),
            lan_address: self.lan_address.or(base.lan_address),
            public_url: self.public_url.or(base.public_url),
            workers: self.workers.or(base.workers),
            media_ip: self.media_ip.or(base.media_ip),
            announce: self.announce.or(base.announce),
            announce_port: self.announce_port.or(base.announce_port),
            media_port: self.media_port.or(base.media_port),
            adopt_ms: self.adopt_ms.or(base.adopt_ms),
            resume_ms: self.resume_ms.or(base.resume_ms),
            max_clients: self.max_clients.or(base.max_clients),
            token_ttl_s: self.token_ttl_s.or(base.token_ttl_s),
            ip_per_s: self.ip_per_s.or(base.ip_per_s),
            api_per_s: self.api_per_s.or(base.api_per_s),
            api_queue: self.api_queue.or(base.api_queue),
            api_queue_demand: self.api_queue_demand.or(base.api_queue_demand),
            trusted_proxies: self.trusted_proxies.or(base.trusted_proxies),
            tls_cert: self.tls_cert.or(base.tls_cert),
            tls_key: self.tls_key.or(base.tls_key),
            admin_listen: self.admin_listen.or(base.admin_listen),
            token_key_s: self.token_key_s.or(base.token_key_s),
            admin_key: self.admin_key.or(base.admin_key),
            webhook_key: self.webhook_key.or(base.webhook_key),
            webhook_allow: self.webhook_allow.or(base.webhook_allow),
            demo: self.demo.or(base.demo),
            nats: self.nats.or(base.nats),
            nats_creds: self.nats_creds.or(base.nats_creds),
            nats_ca: self.nats_ca.or(base.nats_ca),
            nats_cert: self.nats_cert.or(base.nats_cert),
            nats_key: self.nats_key.or(base.nats_key),
            nats_replicas: self.nats_replicas.or(base.nats_replicas),
            partitions: self.partitions.or(base.partitions),
            copy_bytes: self.copy_bytes.or(base.copy_bytes),
            id: self.id.or(base.id),
            ec_url: self.ec_url.or(base.ec_url),
            segment_bytes: self.segment_bytes.or(base.segment_bytes),
            history_s: self.history_s.or(base.history_s),
            archive: self.archive.or(base.archive),
            log: self.log.or(base.log),
        }
    }

    /// How NATS is reached, if it is.
    pub fn nats(&self) -> anyhow::Result<Option<NatsSettings>> {
        let Some(servers) = &self.nats else { return Ok(None) };
        anyhow::ensure!(!servers.is_empty(), "--nats names no server");
        let mut nats = NatsSettings::new(servers.iter().cloned());
        if let Some(file) = &self.nats_creds {
            nats.credentials = Credentials::File(file.clone());
        }
        if self.nats_ca.is_some() || self.nats_cert.is_some() {
            let client = self.nats_cert.clone().zip(self.nats_key.clone());
            nats.tls = Some(Tls { ca: self.nats_ca.clone(), client });
        }
        Ok(Some(nats))
    }

    /// How the log is kept in JetStream.
    pub fn jetstream(&self) -> JetStreamSettings {
        let default = JetStreamSettings::default();
        JetStreamSettings {
            replicas: self.nats_replicas.unwrap_or(default.replicas),
            partitions: self.partitions.unwrap_or(default.partitions),
            ..default
        }
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| DEFAULT_DATA.into())
    }

    /// Refuses settings that do not go together.
    pub fn check(&self) -> anyhow::Result<()> {
        let needed = self.token_ttl_s.unwrap_or_else(|| NuveSettings::default().token_ttl_s)
            + self.resume_ms.unwrap_or(RESUME.as_millis() as u64).div_ceil(1_000);
        if let Some(history) = self.history_s {
            anyhow::ensure!(
                history > needed,
                "--history-s {history} is too short: it must be more than --token-ttl-s and --resume-ms together, here {needed} s, \
                 or a token might admit to a room that the log has forgotten"
            );
        }
        let (token, key) = (
            self.token_ttl_s.unwrap_or_else(|| NuveSettings::default().token_ttl_s),
            self.token_key_s.unwrap_or_else(|| NuveSettings::default().token_key_s),
        );
        anyhow::ensure!(
            key >= token,
            "--token-key-s {key} is too short: keys must sign for longer than tokens live (--token-ttl-s), here {token} s"
        );
        self.certificate()?;
        Ok(())
    }

    /// The folder of the archive, where one is kept.
    pub fn archive(&self, data: &Path) -> Option<PathBuf> {
        match &self.archive {
            Some(folder) if folder.as_os_str() == "none" => None,
            Some(folder) => Some(folder.clone()),
            None => Some(data.join("archive")),
        }
    }

    /// Whether other machines are served.
    pub fn lan(&self) -> bool {
        self.lan.unwrap_or(false)
    }

    /// The certificate that is given.
    pub fn certificate(&self) -> anyhow::Result<Option<Files>> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                Ok(Some(Files { certificate: certificate.clone(), key: key.clone() }))
            }
            (None, None) => Ok(None),
            _ => anyhow::bail!("--tls-cert and --tls-key are given together"),
        }
    }

    /// Whether HTTP and WebSockets are served over TLS.
    pub fn tls(&self) -> bool {
        self.lan() || self.tls_cert.is_some()
    }

    /// The address of HTTP and signalling.
    pub fn listen(&self) -> SocketAddr {
        let default = if self.lan() { DEFAULT_LISTEN_LAN } else { DEFAULT_LISTEN };
        self.listen.unwrap_or_else(|| default.parse().expect("the defaults are addresses"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("roomlog.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:1\"\nworkers = 3\n").unwrap();
        let flags = Command::parse_from(["up", "--listen", "127.0.0.1:2"]).settings;
        let settings = flags.over_file(Some(&file)).unwrap();
        assert_eq!((settings.listen().port(), settings.workers), (2, Some(3)));

        std::fs::write(&file, "wrokers = 3\n").unwrap();
        let error = format!("{:#}", Settings::default().over_file(Some(&file)).unwrap_err());
        assert!(error.contains("wrokers") && error.contains("workers"), "{error}");
    }
}
