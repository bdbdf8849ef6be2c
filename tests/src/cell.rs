//! A cell in this process: NUVE, one EC and several EAs on one bus and one journal, as `roomlog up` has them, with real SFU workers.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, bail};
use roomlog_bus::{
    bus::Bus,
    commit::StreamId,
    env::Env,
    ids::{EaId, EcId, NuveId, RoomId, Version},
    journal::{Journal, read_all},
    media::{MediaAnswer, MediaCommand, RouterInventory},
    memory_bus::MemoryBus,
    rpc::{EaAnswer, EaRequest, EcAnswer, EcRequest, RPC_TIMEOUT, ask},
    sled_journal::SledJournal,
    subject::Subject,
};
use roomlog_ea::{Ea, EaSettings};
use roomlog_ec::{Ec, EcSettings};
use roomlog_nuve::{Nuve, NuveSettings};
use roomlog_projections::{directory::LiveDirectory, room::RoomState};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub use roomlog_client::eventually;

use crate::{
    gate::Gate,
    http,
    peer::{Peer, Policy},
    roomlog_bin,
};

/// What a cell is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Workers of each EA.
    pub eas: Vec<usize>,
    /// How long clients may stay away.
    pub resume: Duration,
    /// Changes the EC's settings, at the end.
    pub ec: fn(&mut EcSettings),
    /// Changes the settings of each EA, at the end.
    pub ea: fn(&mut EaSettings),
    /// Changes NUVE's settings, at the end.
    pub nuve: fn(&mut NuveSettings),
}

impl Default for Shape {
    fn default() -> Self {
        Self { eas: vec![2], resume: Duration::from_secs(30), ec: |_| {}, ea: |_| {}, nuve: |_| {} }
    }
}

/// A running cell.
pub struct Cell {
    /// `http://host:port` of NUVE and the EC's gateway.
    pub origin: String,
    /// Publishable key of the demo service.
    pub key: String,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// The journal.
    pub journal: Arc<dyn Journal>,
    /// While this is set the journal takes no appends.
    pub log_shut: Arc<AtomicBool>,
    /// A view that follows it.
    pub directory: LiveDirectory,
    /// The EC.
    pub ec: Ec,
    /// The EAs.
    pub eas: Vec<Ea>,
    nuve: Nuve,
    server: JoinHandle<()>,
    sled: SledJournal,
    _data: TempDir,
}

impl Cell {
    /// Starts a cell and waits until it can take rooms.
    pub async fn start(shape: Shape) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let (sled, _) = SledJournal::open(data.path().join("log"), Default::default())?;
        let log_shut = Arc::new(AtomicBool::new(false));
        let journal: Arc<dyn Journal> =
            Arc::new(Gate { inner: Arc::new(sled.clone()), shut: log_shut.clone() });
        let bus: Arc<dyn Bus> = Arc::new(MemoryBus::new());
        let env = Env::system();
        let directory = LiveDirectory::start(journal.clone()).await?;
        // Tests come from one address and in bursts; what the limits do is tested where they are.
        let no_limit = 1_000_000;
        let mut nuve_settings = NuveSettings {
            id: NuveId::new("nuve-1")?,
            demo: true,
            ip_per_s: no_limit,
            ip_burst: no_limit,
            service_per_s: no_limit,
            cluster_per_s: no_limit,
            locate_per_s: no_limit,
            ..NuveSettings::default()
        };
        (shape.nuve)(&mut nuve_settings);
        let nuve =
            roomlog_nuve::start(nuve_settings, bus.clone(), journal.clone(), directory.clone(), env.clone())
                .await?;
        let mut ec_settings = EcSettings::new(EcId::new("ec-1")?, "auto:/signal");
        ec_settings.resume = shape.resume;
        ec_settings.connections_per_second = no_limit;
        (shape.ec)(&mut ec_settings);
        let ec = Ec::start(ec_settings, bus.clone(), journal.clone(), directory.clone(), env.clone()).await?;
        let mut eas = Vec::new();
        for (i, workers) in shape.eas.iter().enumerate() {
            let mut settings = EaSettings::new(
                EaId::new(format!("ea-{}", i + 1))?,
                vec![roomlog_bin().into(), "sfu-worker".into()],
            );
            settings.workers = *workers;
            (shape.ea)(&mut settings);
            eas.push(roomlog_ea::start(settings, bus.clone(), journal.clone(), env.clone()).await?);
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let origin = format!("http://{}", listener.local_addr()?);
        let service = nuve.router().merge(ec.router()).into_make_service_with_connect_info::<SocketAddr>();
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, service).await;
        });
        eventually("all EAs are heard and the cell is ready", Duration::from_secs(10), || async {
            ec.ready().then_some(())
        })
        .await?;
        // Ready means one EA is heard; the others beat within the same second.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let demo = http::call_ok(&origin, "GET", "/v1/demo", None, None).await?;
        let key = demo["publishableKey"].as_str().context("no demo key")?.to_owned();
        Ok(Self { origin, key, bus, journal, log_shut, directory, ec, eas, nuve, server, sled, _data: data })
    }

    /// A token for `user` in the room called `name`.
    pub async fn token(&self, name: &str, user: &str) -> anyhow::Result<Value> {
        let body = json!({ "user": user, "create": true });
        http::call_ok(
            &self.origin,
            "POST",
            &format!("/v1/rooms/name:{name}/tokens"),
            Some(&self.key),
            Some(&body),
        )
        .await
    }

    /// A client let into the room called `name`, with the room's id.
    pub async fn enter(&self, name: &str, user: &str) -> anyhow::Result<(Peer, RoomId, Value)> {
        let token = self.token(name, user).await?;
        let room = RoomId::new(token["roomId"].as_str().context("a token without room")?)?;
        let (url, text) =
            (token["wsUrl"].as_str().context("no wsUrl")?, token["token"].as_str().context("no token")?);
        let (peer, entered) = Peer::enter(url, text, Policy::Accept).await?;
        Ok((peer, room, entered))
    }

    /// The fold of the room's stream, made here and now from the journal.
    pub async fn folded(&self, room: &RoomId) -> anyhow::Result<RoomState> {
        let mut state = RoomState::default();
        for commit in read_all(self.journal.as_ref(), &StreamId::from(room), Version(1)).await? {
            state.apply_commit(&commit)?;
        }
        Ok(state)
    }

    /// The state as the EC says it; null when it does not run the room.
    pub async fn state_at_ec(&self, room: &RoomId) -> anyhow::Result<Value> {
        let subject = Subject::rpc(&StreamId::from(&EcId::new("ec-1")?));
        match ask::<_, EcAnswer>(
            self.bus.as_ref(),
            subject,
            &EcRequest::RoomState { room: room.clone() },
            RPC_TIMEOUT,
        )
        .await?
        {
            EcAnswer::State { state, .. } => Ok(state),
            other => bail!("unexpected {other:?}"),
        }
    }

    /// The state as `ea` says it, once it has folded `version`; null when it does not hold the room.
    pub async fn state_at_ea(&self, ea: &EaId, room: &RoomId, version: Version) -> anyhow::Result<Value> {
        let request = EaRequest::RoomState { room: room.clone(), min_version: version };
        match ask::<_, EaAnswer>(self.bus.as_ref(), Subject::rpc(&StreamId::from(ea)), &request, RPC_TIMEOUT)
            .await?
        {
            EaAnswer::State { state, .. } => Ok(state),
            other => bail!("unexpected {other:?}"),
        }
    }

    /// Rooms on an EA with the worker of each.
    pub async fn rooms_on(&self, ea: &EaId) -> anyhow::Result<Vec<(RoomId, roomlog_bus::events::Placement)>> {
        match ask::<_, EaAnswer>(
            self.bus.as_ref(),
            Subject::rpc(&StreamId::from(ea)),
            &EaRequest::Rooms,
            RPC_TIMEOUT,
        )
        .await?
        {
            EaAnswer::Rooms { rooms } => Ok(rooms),
            other => bail!("unexpected {other:?}"),
        }
    }

    /// What the room's worker holds.
    pub async fn inventory(&self, state: &RoomState, room: &RoomId) -> anyhow::Result<RouterInventory> {
        let placement = state.placements.values().next().context("the room is on no EA")?;
        let request = EaRequest::Media {
            room: room.clone(),
            epoch: state.epoch(),
            media_epoch: state.media_epoch,
            client: None,
            command: MediaCommand::Inventory,
        };
        match ask::<_, EaAnswer>(
            self.bus.as_ref(),
            Subject::rpc(&StreamId::from(&placement.ea)),
            &request,
            RPC_TIMEOUT,
        )
        .await?
        {
            EaAnswer::Media { answer: MediaAnswer::Inventory { inventory } } => Ok(inventory),
            other => bail!("unexpected {other:?}"),
        }
    }

    /// Checks that log, EC, EA and worker say the same of `room`; fails with the difference.
    pub async fn assert_agreement(&self, room: &RoomId) -> anyhow::Result<RoomState> {
        // What is under way is awaited by looking again: agreement is demanded of a room at rest.
        let mut last = String::new();
        for _ in 0..50 {
            let folded = self.folded(room).await?;
            let at_ec = self.state_at_ec(room).await?;
            let json = folded.to_json();
            let ea = folded.placements.keys().next().cloned();
            let at_ea = match &ea {
                Some(ea) => self.state_at_ea(ea, room, folded.version()).await?,
                None => json.clone(),
            };
            last = if at_ec != json && !(at_ec.is_null() && folded.clients.is_empty()) {
                format!("EC differs from the log:\nlog {json}\nEC  {at_ec}")
            } else if at_ea != json {
                format!("EA differs from the log:\nlog {json}\nEA  {at_ea}")
            } else if ea.is_some() {
                difference(&folded, &self.inventory(&folded, room).await?)
            } else {
                String::new()
            };
            if last.is_empty() {
                return Ok(folded);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{last}")
    }

    /// Stops everything in order.
    pub async fn stop(self) {
        self.server.abort();
        self.ec.stop().await;
        for ea in self.eas {
            ea.stop().await;
        }
        self.nuve.stop().await;
        self.sled.close().await;
    }
}

/// How a worker's inventory differs from the fold; empty when it does not.
fn difference(state: &RoomState, inventory: &RouterInventory) -> String {
    let transports: Vec<_> = state.transports.keys().cloned().collect();
    let there: Vec<_> = inventory.transports.iter().map(|t| t.id.clone()).collect();
    let producers: Vec<_> =
        state.producers.iter().map(|(id, p)| (id.clone(), p.transport.clone(), p.paused)).collect();
    let made: Vec<_> =
        inventory.producers.iter().map(|p| (p.id.clone(), p.transport.clone(), p.paused)).collect();
    let consumers: Vec<_> = state
        .consumers
        .iter()
        .map(|(id, c)| (id.clone(), c.transport.clone(), c.producer.clone(), c.paused))
        .collect();
    let sent: Vec<_> = inventory
        .consumers
        .iter()
        .map(|c| (c.id.clone(), c.transport.clone(), c.producer.clone(), c.paused))
        .collect();
    if transports != there {
        format!("transports: log {transports:?}, worker {there:?}")
    } else if producers != made {
        format!("producers: log {producers:?}, worker {made:?}")
    } else if consumers != sent {
        format!("consumers: log {consumers:?}, worker {sent:?}")
    } else {
        String::new()
    }
}
