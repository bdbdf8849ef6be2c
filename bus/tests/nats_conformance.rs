//! The engines on NATS do what engines must do: on the oldest and the newest server, alone and in a cluster of three.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{path::Path, sync::Arc};

use roomlog_bus::{
    conformance::{
        Opened, bus_suite, journal_suite,
        nats_server::{NatsServer, Options, Servers},
    },
    journal::Journal,
    nats::{JetStreamSettings, NatsConnection, NatsSettings},
};

/// Servers that stay while a suite runs, and how they are reached.
struct Site {
    _servers: Vec<NatsServer>,
    settings: NatsSettings,
    replicas: u8,
}

impl Site {
    fn single(binary: &Path, folder: &Path) -> Self {
        let server = NatsServer::start(binary, folder, &Options::default());
        Self { settings: NatsSettings::new([server.url()]), _servers: vec![server], replicas: 1 }
    }

    fn cluster(binary: &Path, folder: &Path) -> Self {
        let servers = NatsServer::cluster(binary, folder, 3, &Options::default());
        let settings = NatsSettings::new(servers.iter().map(NatsServer::url));
        Self { settings, _servers: servers, replicas: 3 }
    }

    async fn connect(&self) -> NatsConnection {
        NatsConnection::connect(self.settings.clone()).await.expect("connected")
    }

    fn journal_settings(&self) -> JetStreamSettings {
        JetStreamSettings { replicas: self.replicas, ..JetStreamSettings::default() }
    }

    /// An empty journal; what was there before is gone.
    async fn fresh(&self) -> Opened {
        let client = async_nats::connect(self.settings.servers.as_slice()).await.unwrap();
        for partition in 0..self.journal_settings().partitions {
            let delete = format!("$JS.API.STREAM.DELETE.ROOMLOG_{partition}");
            let _ = client.request(delete, "".into()).await;
        }
        let open = {
            let (settings, journal) = (self.settings.clone(), self.journal_settings());
            move || {
                let (settings, journal) = (settings.clone(), journal.clone());
                async move {
                    let connection = NatsConnection::connect(settings).await.expect("connected");
                    connection.journal(journal).await.expect("opened")
                }
            }
        };
        let journal = open().await;
        // A restarted process has a connection of its own and remembers nothing.
        let reopen = Box::new(move || {
            let future = open();
            Box::pin(future) as std::pin::Pin<Box<dyn Future<Output = Arc<dyn Journal>> + Send>>
        });
        Opened { journal, reopen: Some(reopen) }
    }
}

#[derive(Clone, Copy)]
enum Which {
    Oldest,
    Newest,
    Cluster,
}

/// A site of a kind, or nothing where there are no servers.
fn site(which: Which) -> Option<(tempfile::TempDir, Site)> {
    let servers = Servers::find()?;
    let folder = tempfile::tempdir().unwrap();
    let site = match which {
        Which::Oldest => Site::single(&servers.oldest, folder.path()),
        Which::Newest => Site::single(&servers.newest, folder.path()),
        Which::Cluster => Site::cluster(&servers.newest, folder.path()),
    };
    Some((folder, site))
}

async fn bus(which: Which) {
    let Some((_folder, site)) = site(which) else { return };
    bus_suite(|| async { site.connect().await.bus() }).await;
}

async fn journal(which: Which) {
    let Some((_folder, site)) = site(which) else { return };
    journal_suite(|| site.fresh()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_on_the_oldest_server_conforms() {
    bus(Which::Oldest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_on_the_newest_server_conforms() {
    bus(Which::Newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_on_a_cluster_conforms() {
    bus(Which::Cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_on_the_oldest_server_conforms() {
    journal(Which::Oldest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_on_the_newest_server_conforms() {
    journal(Which::Newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_on_a_cluster_conforms() {
    journal(Which::Cluster).await;
}
