//! `roomlog bench join`: whole joins a second, and what each step of one costs.
//!
//! A join is what a browser does before its first packet: a token over HTTP, a socket that shows it, capabilities, two transports, `join`.
//! It is made against `roomlog up` as a process, with its SFU workers, on loopback; the clients take their share of the machine. Rooms have
//! four people, who come one after the other; who comes leaves again outside the measured time.
//!
//! Three measurements: many rooms at once (joins a second, and what a step takes then), one client at a time (what a step takes alone), and
//! all clients step by step (CPU, bytes and commits of each). The same two with the log in memory (a tmpfs syncs nothing), by turns with
//! that on disk, say what its durability costs.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Args;
use roomlog_bus::{
    commit::{Commit, StreamKind},
    journal::{Cursor, Followed, Journal},
    nats::{JetStreamSettings, NatsConnection, NatsSettings},
    sled_journal::SledJournal,
};
use roomlog_client::{
    counted::{Counted, Traffic},
    eventually, http,
    peer::{self, Peer, Policy},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::up::Up;

/// People in a room.
const PEOPLE: usize = 4;
/// Rooms that fill at once: enough that nobody waits for a client, few enough that what is measured is not a queue.
const ROOMS_AT_ONCE: usize = 8;
/// Slices of each log, by turns; the best counts, since what else the machine does only ever takes away.
const SLICES: u32 = 3;
/// Rooms that are filled by one client at a time.
const ROOMS_ALONE: usize = 10;
/// An EC takes 2 000 sockets of one address, and the last slice's may not all be gone.
const MOST_CLIENTS: usize = 1_500;
/// What has to come, comes within this.
const WITHIN: Duration = Duration::from_secs(60);

/// Arguments of `roomlog bench join`.
#[derive(Args, Debug)]
pub struct JoinArgs {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Clients of a slice, four to a room.
    #[arg(long, value_name = "N", default_value_t = 400)]
    clients: usize,
    /// Folder of the log: on the disk that will be used. Made, and emptied afterwards.
    #[arg(long, value_name = "DIR", default_value = ".data/bench")]
    data: PathBuf,
    /// Folder in memory, for the same without durability; where it is no folder, that is left out.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    memory: PathBuf,
    /// NATS servers with JetStream, for bus and log on NATS instead of embedded ones; better empty ones. What they cost is not counted.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    nats: Option<Vec<String>>,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    log: &'static str,
    clients: usize,
    joins_per_s: f64,
    /// A whole join where nobody else comes, median.
    alone_ms: f64,
    /// CPU time of a join in `up` and its workers, all steps.
    cpu_ms: f64,
    /// CPU time of a join in this process, the clients.
    client_cpu_ms: f64,
    steps: Vec<Measured>,
    memory: Option<InMemory>,
}

/// One step. Bytes are those of TCP, without its headers.
#[derive(Debug, Serialize)]
struct Measured {
    step: &'static str,
    /// With many rooms at once.
    p50_ms: f64,
    p99_ms: f64,
    /// With one client at a time, median.
    alone_ms: f64,
    cpu_ms: f64,
    sent_bytes: f64,
    received_bytes: f64,
    commits: f64,
    log_bytes: f64,
}

/// The same where nothing is synced.
#[derive(Debug, Serialize)]
struct InMemory {
    joins_per_s: f64,
    alone_ms: f64,
    /// `joins_per_s` with the log on disk, per one of these.
    ratio: f64,
}

/// Runs it.
pub fn run(args: &JoinArgs) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) {
        eprintln!("a debug build: these figures mean little");
    }
    ensure!(
        args.clients >= PEOPLE && args.clients <= MOST_CLIENTS,
        "--clients is from {PEOPLE} to {MOST_CLIENTS}"
    );
    let folder = args.data.join(format!("join-{}", std::process::id()));
    let memory = args.memory.join(format!("roomlog-join-{}", std::process::id()));
    let with_memory = args.nats.is_none() && args.memory.is_dir();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if with_memory {
        std::fs::create_dir_all(&memory).with_context(|| format!("cannot make {}", memory.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(args, &folder, with_memory.then_some(memory.as_path())));
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    if with_memory {
        std::fs::remove_dir_all(&memory).with_context(|| format!("cannot remove {}", memory.display()))?;
    }
    let report = measured?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) {
    let Report { log, clients, joins_per_s, alone_ms, cpu_ms, client_cpu_ms, steps, memory } = report;
    println!(
        "{joins_per_s:.0} joins/s on {log}, {clients} clients in rooms of {PEOPLE}; one alone {alone_ms:.2} ms; CPU a join {cpu_ms:.2} ms, \
         of the client {client_cpu_ms:.2} ms"
    );
    println!("step            p50 ms   p99 ms  alone ms   CPU ms   B sent   B received   commits   B of log");
    for s in steps {
        println!(
            "{:<14} {:>7.2} {:>8.2} {:>9.2} {:>8.3} {:>8.0} {:>12.0} {:>9.2} {:>10.0}",
            s.step,
            s.p50_ms,
            s.p99_ms,
            s.alone_ms,
            s.cpu_ms,
            s.sent_bytes,
            s.received_bytes,
            s.commits,
            s.log_bytes
        );
    }
    if let Some(InMemory { joins_per_s, alone_ms, ratio }) = memory {
        println!(
            "log in memory: {joins_per_s:.0} joins/s, one alone {alone_ms:.2} ms; on disk {ratio:.2} of that"
        );
    }
}

async fn measure(args: &JoinArgs, folder: &Path, memory: Option<&Path>) -> anyhow::Result<Report> {
    let mut flags = Vec::new();
    if let Some(servers) = &args.nats {
        flags = vec!["--nats".to_owned(), servers.join(",")];
    }
    let side = Side::start(folder, &flags).await?;
    let in_memory = match memory {
        Some(folder) => Some(Side::start(folder, &flags).await?),
        None => None,
    };
    let sides: Vec<&Side> = [Some(&side), in_memory.as_ref()].into_iter().flatten().collect();
    let rooms = args.clients / PEOPLE;
    let mut many: Vec<Flow> = sides.iter().map(|_| Flow::default()).collect();
    let mut alone: Vec<Flow> = sides.iter().map(|_| Flow::default()).collect();
    for slice in 1..=SLICES {
        eprintln!("slice {slice} of {SLICES} …");
        for (index, side) in sides.iter().enumerate() {
            alone[index].add(side.flow(&format!("alone-{slice}"), rooms.min(ROOMS_ALONE), 1).await?);
            many[index].add(side.flow(&format!("many-{slice}"), rooms, ROOMS_AT_ONCE).await?);
        }
    }
    eprintln!("step by step …");
    let stepped = side.step_by_step(rooms).await?;
    if let Some(side) = in_memory {
        side.up.stop().await?;
    }
    let nats = match &args.nats {
        Some(servers) => {
            let connection = NatsConnection::connect(NatsSettings::new(servers.iter().cloned())).await?;
            Some(connection.journal(JetStreamSettings::default()).await?)
        }
        None => None,
    };
    side.up.stop().await?;
    let journal: Arc<dyn Journal> = match nats {
        Some(journal) => journal,
        None => Arc::new(SledJournal::open_read_only(folder.join("log"))?.0),
    };
    let written = written(&journal, &stepped.rooms).await?;

    let joins = stepped.joins as f64;
    let steps = Step::ALL.into_iter().enumerate().map(|(index, step)| {
        let cost = &stepped.costs[index];
        let (commits, log_bytes) = written[index];
        Measured {
            step: step.name(),
            p50_ms: many[0].share(index, 0.5),
            p99_ms: many[0].share(index, 0.99),
            alone_ms: alone[0].share(index, 0.5),
            cpu_ms: cost.cpu.as_secs_f64() * 1_000.0 / joins,
            sent_bytes: cost.sent as f64 / joins,
            received_bytes: cost.received as f64 / joins,
            commits: commits as f64 / joins,
            log_bytes: log_bytes as f64 / joins,
        }
    });
    let steps: Vec<Measured> = steps.collect();
    Ok(Report {
        log: if args.nats.is_some() { "nats" } else { "sled" },
        clients: rooms * PEOPLE,
        joins_per_s: many[0].best,
        alone_ms: alone[0].whole(),
        cpu_ms: steps.iter().map(|step| step.cpu_ms).sum(),
        client_cpu_ms: stepped.client_cpu.as_secs_f64() * 1_000.0 / joins,
        steps,
        memory: many.get(1).map(|memory| InMemory {
            joins_per_s: memory.best,
            alone_ms: alone[1].whole(),
            ratio: many[0].best / memory.best,
        }),
    })
}

/// A step of a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A token of NUVE, over a connection of its own.
    Token,
    /// The socket, and the token shown on it.
    Socket,
    /// What the room's router understands; the EA makes the client for it.
    Capabilities,
    /// Two transports, one after the other, as mediasoup-client makes them.
    Transports,
    /// The join itself.
    Join,
}

impl Step {
    const ALL: [Self; 5] = [Self::Token, Self::Socket, Self::Capabilities, Self::Transports, Self::Join];

    fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Socket => "socket",
            Self::Capabilities => "capabilities",
            Self::Transports => "transports",
            Self::Join => "join",
        }
    }

    /// The step that a commit of a room belongs to; none where it was no join.
    fn of(commit: &Commit) -> Option<usize> {
        let step = commit.events.iter().find_map(|event| match event.kind.as_ref() {
            "RoomCreated" | "RoomPlaced" => Some(Self::Token),
            "ClientAdmitted" | "RoomOpened" => Some(Self::Socket),
            "ClientBound" | "ClientAttached" => Some(Self::Capabilities),
            "TransportCreated" => Some(Self::Transports),
            "ClientJoined" => Some(Self::Join),
            _ => None,
        })?;
        Self::ALL.into_iter().position(|other| other == step)
    }
}

/// What clients share: where they go, and what they have sent and received.
struct Target {
    origin: String,
    key: String,
    traffic: Arc<Traffic>,
}

/// A client on its way.
struct Client {
    target: Arc<Target>,
    room: String,
    token: Value,
    peer: Option<Peer>,
    capabilities: Value,
}

impl Client {
    fn new(target: &Arc<Target>, room: String) -> Self {
        Self { target: target.clone(), room, token: Value::Null, peer: None, capabilities: Value::Null }
    }

    async fn step(&mut self, step: Step) -> anyhow::Result<()> {
        let traffic = self.target.traffic.clone();
        if step == Step::Token {
            let origin = &self.target.origin;
            let stream = Counted::new(http::connect(origin).await?, traffic);
            let body = json!({ "user": "Ann", "create": true });
            let path = format!("/v1/rooms/name:{}/tokens", self.room);
            let answer =
                http::call_over(stream, origin, "POST", &path, Some(&self.target.key), Some(&body)).await?;
            ensure!(answer.status == 201, "a token was refused with {}: {}", answer.status, answer.body);
            self.token = answer.body;
            return Ok(());
        }
        if step == Step::Socket {
            let url = self.token["wsUrl"].as_str().context("a token without wsUrl")?;
            let stream = Counted::new(peer::connect(url).await?, traffic);
            let mut peer = Peer::over(stream, url, Policy::Accept).await?;
            peer.ask("token", json!({ "token": self.token["token"] })).await?;
            self.peer = Some(peer);
            return Ok(());
        }
        let peer = self.peer.as_mut().context("a step out of turn")?;
        match step {
            Step::Token | Step::Socket => {}
            Step::Capabilities => {
                self.capabilities = peer.ask("getRouterRtpCapabilities", json!({})).await?;
            }
            Step::Transports => {
                for producing in [true, false] {
                    let wish = json!({ "forceTcp": false, "producing": producing, "consuming": !producing });
                    peer.ask("createWebRtcTransport", wish).await?;
                }
            }
            Step::Join => {
                let device = json!({ "name": "bench" });
                let who =
                    json!({ "displayName": "Ann", "device": device, "rtpCapabilities": self.capabilities });
                peer.ask("join", who).await?;
            }
        }
        Ok(())
    }

    async fn leave(self) {
        if let Some(peer) = self.peer {
            peer.leave().await;
        }
    }
}

/// Joins of one kind on one log.
#[derive(Default)]
struct Flow {
    /// Joins a second of the best slice.
    best: f64,
    /// What the steps of each join took.
    took: Vec<[Duration; 5]>,
}

impl Flow {
    fn add(&mut self, other: Self) {
        self.best = self.best.max(other.best);
        self.took.extend(other.took);
    }

    /// So long, in ms, did at least this part of the joins take for a step.
    fn share(&self, step: usize, part: f64) -> f64 {
        quantile(self.took.iter().map(|took| took[step]).collect(), part)
    }

    /// The median of whole joins, ms.
    fn whole(&self) -> f64 {
        quantile(self.took.iter().map(|took| took.iter().sum()).collect(), 0.5)
    }
}

fn quantile(mut all: Vec<Duration>, part: f64) -> f64 {
    all.sort_unstable();
    let index = (all.len() as f64 * part) as usize;
    all.get(index.min(all.len().saturating_sub(1))).map_or(0.0, |took| took.as_secs_f64() * 1_000.0)
}

/// What all clients together cost in one step.
struct Cost {
    cpu: Duration,
    sent: u64,
    received: u64,
}

/// What was measured step by step.
struct Stepped {
    costs: Vec<Cost>,
    client_cpu: Duration,
    joins: usize,
    rooms: HashSet<String>,
}

/// One `up` and where its clients go.
struct Side {
    up: Up,
    target: Arc<Target>,
}

impl Side {
    async fn start(folder: &Path, flags: &[String]) -> anyhow::Result<Self> {
        let up = Up::start(folder, flags).await?;
        let demo = http::call_ok(&up.origin, "GET", "/v1/demo", None, None).await?;
        let key = demo["publishableKey"].as_str().context("no demo service")?.to_owned();
        let target = Arc::new(Target { origin: up.origin.clone(), key, traffic: Arc::default() });
        let side = Self { up, target };
        // On NATS the limit is shared out first; and what is made at the first join is not measured.
        eventually("the first client joins", WITHIN, || async {
            side.flow("first", 1, 1).await.inspect_err(|error| eprintln!("not yet: {error:#}")).ok()
        })
        .await?;
        Ok(side)
    }

    /// Fills rooms, so many at once, one client of a room after the other; then all leave.
    async fn flow(&self, name: &str, rooms: usize, at_once: usize) -> anyhow::Result<Flow> {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for first in 0..at_once {
            let (target, name) = (self.target.clone(), name.to_owned());
            tasks.spawn(async move {
                let (mut took, mut clients) = (Vec::new(), Vec::new());
                for room in (first..rooms).step_by(at_once) {
                    for _ in 0..PEOPLE {
                        let mut client = Client::new(&target, format!("{name}-{room}"));
                        let mut steps = [Duration::ZERO; 5];
                        for (step, took) in Step::ALL.into_iter().zip(&mut steps) {
                            let began = Instant::now();
                            client.step(step).await?;
                            *took = began.elapsed();
                        }
                        took.push(steps);
                        clients.push(client);
                    }
                }
                anyhow::Ok((took, clients))
            });
        }
        let (mut all, mut clients) = (Vec::new(), Vec::new());
        while let Some(done) = tasks.join_next().await {
            let (took, joined) = done??;
            all.extend(took);
            clients.extend(joined);
        }
        let best = all.len() as f64 / began.elapsed().as_secs_f64();
        self.all_leave(clients).await?;
        Ok(Flow { best, took: all })
    }

    /// All take the first step, then all the second, and so on.
    async fn step_by_step(&self, rooms: usize) -> anyhow::Result<Stepped> {
        let client = |number| Client::new(&self.target, format!("stepped-{}", number / PEOPLE));
        let mut clients: Vec<Client> = (0..rooms * PEOPLE).map(client).collect();
        let mut costs = Vec::new();
        let client_cpu = crate::up::cpu_of(std::process::id())?;
        for step in Step::ALL {
            let (cpu, bytes) = (self.up.cpu()?, self.target.traffic.bytes());
            let mut tasks = JoinSet::new();
            let each = clients.len().div_ceil(ROOMS_AT_ONCE).next_multiple_of(PEOPLE);
            while !clients.is_empty() {
                let mut part = clients.split_off(clients.len().saturating_sub(each));
                tasks.spawn(async move {
                    for client in &mut part {
                        client.step(step).await?;
                    }
                    anyhow::Ok(part)
                });
            }
            while let Some(done) = tasks.join_next().await {
                clients.extend(done??);
            }
            let after = self.target.traffic.bytes();
            let cpu = self.up.cpu()?.saturating_sub(cpu);
            costs.push(Cost { cpu, sent: after.0 - bytes.0, received: after.1 - bytes.1 });
        }
        let client_cpu = crate::up::cpu_of(std::process::id())?.saturating_sub(client_cpu);
        let room = |client: &Client| client.token["roomId"].as_str().unwrap_or_default().to_owned();
        let (rooms, joins) = (clients.iter().map(room).collect(), clients.len());
        self.all_leave(clients).await?;
        Ok(Stepped { costs, client_cpu, joins, rooms })
    }

    async fn all_leave(&self, clients: Vec<Client>) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        for client in clients {
            tasks.spawn(client.leave());
        }
        while tasks.join_next().await.is_some() {}
        eventually("all rooms are closed", WITHIN, || async {
            let text = http::call_text(&self.target.origin, "/metrics/ec").await.ok()?;
            text.lines().any(|line| line == "roomlog_ec_rooms 0").then_some(())
        })
        .await
    }
}

/// Commits of these rooms by step, and their bytes.
async fn written(journal: &Arc<dyn Journal>, rooms: &HashSet<String>) -> anyhow::Result<[(u64, u64); 5]> {
    let mut follow = journal.follow(Cursor::default()).await?;
    let mut all = [(0, 0); 5];
    while let Some(Followed::Entry(entry)) = follow.next().await {
        let stream = &entry.commit.stream;
        if stream.kind() != StreamKind::Room || !rooms.contains(stream.id()) {
            continue;
        }
        if let Some(step) = Step::of(&entry.commit) {
            all[step].0 += 1;
            all[step].1 += entry.commit.encode().len() as u64;
        }
    }
    Ok(all)
}
