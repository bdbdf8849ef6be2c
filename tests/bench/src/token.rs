//! `roomlog bench token`: how many tokens a NUVE makes a second, beside a bare axum route that signs the same JWT in the same process.
//!
//! Both are asked over sockets by the same clients, by turns in slices, so that both see the same machine; the clients take their share of
//! it. NUVE is whole, its limits too, set out of the way; the log and the bus are in memory, since a token of a room that has an EC appends
//! nothing. The EC is registered and beats, and does nothing else.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use clap::Args;
use roomlog_bus::{
    bus::{Bus, Headers, Message},
    commit::{Payload, StreamId, Writer},
    env::Env,
    events::NodeRegistered,
    ids::{ClientId, EcId, Incarnation, RoomId, ServiceId},
    journal::Journal,
    log::{Draft, Log},
    memory_bus::MemoryBus,
    memory_journal::MemoryJournal,
    rpc::Heartbeat,
    subject::Subject,
    token::{Claims, ISSUER, SigningKey},
};
use roomlog_nuve::NuveSettings;
use roomlog_projections::directory::LiveDirectory;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

/// Connections that ask at once: enough that nobody waits for a client, few enough that what is measured is not the queue.
const CONNECTIONS: usize = 32;
/// Pairs of slices; the best of each counts, since what else the machine does only ever takes away.
const SLICES: u32 = 5;
/// Nobody gets this far: limits are checked and do not refuse.
const NO_LIMIT: u32 = 100_000_000;
/// A request of the bench is given up after this.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The admin key of the bench's own NUVE, which ends with it.
const ADMIN: &str = "ak_bench";

/// Arguments of `roomlog bench token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Rooms there are; each has an EC.
    #[arg(long, value_name = "N", default_value_t = 100)]
    rooms: u32,
    /// How long each slice is, and half of what the half load takes, seconds.
    #[arg(long, value_name = "S", default_value_t = 2)]
    seconds: u64,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    rooms: u32,
    per_s: f64,
    bare_per_s: f64,
    ratio: f64,
    /// At half of `per_s`, from the moment a request was due.
    p50_ms: f64,
    p99_ms: f64,
}

/// Runs it.
pub fn run(args: &TokenArgs) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) {
        eprintln!("a debug build: these figures mean little");
    }
    ensure!(args.rooms > 0 && args.seconds > 0, "--rooms and --seconds are at least 1");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("  rooms     tokens/s       bare/s   ratio   p50 ms   p99 ms (half load)");
        let Report { rooms, per_s, bare_per_s, ratio, p50_ms, p99_ms } = &report;
        println!("{rooms:>7} {per_s:>12.0} {bare_per_s:>12.0} {ratio:>7.2} {p50_ms:>8.2} {p99_ms:>8.2}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &TokenArgs) -> anyhow::Result<Report> {
    let env = Env::system();
    let bus: Arc<dyn Bus> = Arc::new(MemoryBus::new());
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let directory = LiveDirectory::start(journal.clone()).await?;
    let ec = register_ec(&bus, &journal, &env).await?;
    let settings = NuveSettings {
        admin_key: Some(ADMIN.into()),
        ip_per_s: NO_LIMIT,
        ip_burst: NO_LIMIT,
        service_per_s: NO_LIMIT,
        cluster_per_s: NO_LIMIT,
        ..NuveSettings::default()
    };
    let nuve = roomlog_nuve::start(settings, bus, journal, directory, env.clone()).await?;
    let address = serve(nuve.router()).await?;
    let bare = serve(bare(env)).await?;

    let mut connection = Connection::open(address).await?;
    let (_, made) = connection.ask(&request("/v1/services", ADMIN, &json!({ "name": "bench" }))).await?;
    let key = made["secretKey"].as_str().context("no service was made")?.to_owned();
    eprintln!("{} rooms …", args.rooms);
    let asks = Arc::new(make_rooms(address, &key, args.rooms).await?);

    let slice = Duration::from_secs(args.seconds);
    let (mut per_s, mut bare_per_s) = (0.0_f64, 0.0_f64);
    for round in 1..=SLICES {
        eprintln!("slice {round} of {SLICES} …");
        bare_per_s = bare_per_s.max(at_most(bare, &asks, slice).await?);
        per_s = per_s.max(at_most(address, &asks, slice).await?);
    }
    eprintln!("half load …");
    let mut latencies = at_pace(address, &asks, per_s / 2.0, slice * 2).await?;
    latencies.sort_unstable();
    let share = |part: f64| {
        let index = (latencies.len() as f64 * part) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).map_or(0.0, |l| l.as_secs_f64() * 1_000.0)
    };
    let report = Report {
        rooms: args.rooms,
        per_s,
        bare_per_s,
        ratio: per_s / bare_per_s,
        p50_ms: share(0.5),
        p99_ms: share(0.99),
    };
    ec.abort();
    nuve.stop().await;
    Ok(report)
}

/// An EC that is there and takes rooms.
async fn register_ec(
    bus: &Arc<dyn Bus>,
    journal: &Arc<dyn Journal>,
    env: &Env,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let node = StreamId::from(&EcId::new("bench")?);
    let incarnation = Incarnation(1);
    let log = Log::new(journal.clone(), env.clone(), Writer { node: node.clone(), incarnation });
    let registered = NodeRegistered {
        incarnation,
        address: "wss://ec.example/signal".into(),
        workers: 0,
        version: env!("CARGO_PKG_VERSION").into(),
        probe: None,
        adopted: Vec::new(),
    };
    log.append(node.clone(), None, Draft::default(), &[registered.into()]).await?;
    let bus = bus.clone();
    Ok(tokio::spawn(async move {
        loop {
            let beat = Heartbeat { node: node.clone(), incarnation, rooms: 0, clients: 0, draining: false };
            let message = Message {
                subject: Subject::heartbeat(&node),
                reply: None,
                headers: Headers::new(),
                payload: Payload::encode(&beat).0,
            };
            let _ = bus.publish(message).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }))
}

/// The least that a token route does: reads the body, signs, answers.
fn bare(env: Env) -> Router {
    async fn sign(
        State(state): State<Arc<(SigningKey, Env)>>,
        Json(body): Json<Value>,
    ) -> (StatusCode, Json<Value>) {
        let (key, env) = &*state;
        let iat = env.now().as_millis() / 1_000;
        let id = "a0b1c2d3e4f5a6b7c8d9e0";
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: body["user"].as_str().unwrap_or_default().to_owned(),
            jti: id.into(),
            service: ServiceId::new(id).expect("letters and digits"),
            room: RoomId::new(id).expect("letters and digits"),
            client: ClientId::new(id).expect("letters and digits"),
            role: "presenter".into(),
            rights: None,
            ec: EcId::new("bench").expect("letters"),
            ws: "wss://ec.example/signal".into(),
            iat,
            exp: iat + 60,
        };
        (StatusCode::CREATED, Json(json!({ "token": key.sign(&claims) })))
    }
    let seed = env.draw(|rng| {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        seed
    });
    Router::new().fallback(post(sign)).with_state(Arc::new((SigningKey::from_seed(&seed), env)))
}

async fn serve(router: Router) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move {
        let _ = axum::serve(listener, service).await;
    });
    Ok(address)
}

fn request(path: &str, key: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: rooms.example\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Makes the rooms by their first tokens, and gives the requests for further ones.
async fn make_rooms(address: SocketAddr, key: &str, rooms: u32) -> anyhow::Result<Vec<Vec<u8>>> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, key) = (next.clone(), key.to_owned());
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut made = Vec::new();
            loop {
                let room = next.fetch_add(1, Ordering::Relaxed);
                if room >= u64::from(rooms) {
                    return anyhow::Ok(made);
                }
                let path = format!("/v1/rooms/name:room{room}/tokens");
                let first = request(&path, &key, &json!({ "user": "Ann", "create": true }));
                let (status, answer) = connection.ask(&first).await?;
                ensure!(status == 201, "a room was refused with {status}: {answer}");
                let room = answer["roomId"].as_str().context("a token without a room")?;
                made.push(request(&format!("/v1/rooms/{room}/tokens"), &key, &json!({ "user": "Ann" })));
            }
        });
    }
    let mut all = Vec::new();
    while let Some(made) = tasks.join_next().await {
        all.extend(made??);
    }
    Ok(all)
}

/// As many as come: answers a second.
async fn at_most(address: SocketAddr, asks: &Arc<Vec<Vec<u8>>>, length: Duration) -> anyhow::Result<f64> {
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for first in 0..CONNECTIONS {
        let (asks, over) = (asks.clone(), over.clone());
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut count = 0_u64;
            // Each begins elsewhere and takes them in turn, so that all rooms are asked for.
            let mut at = first * asks.len() / CONNECTIONS;
            while !over.load(Ordering::Relaxed) {
                let status = connection.send(&asks[at % asks.len()]).await?.0;
                ensure!(status == 201, "a token was refused with {status}");
                (at, count) = (at + 1, count + 1);
            }
            anyhow::Ok(count)
        });
    }
    tokio::time::sleep(length).await;
    over.store(true, Ordering::Relaxed);
    let took = began.elapsed();
    let mut all = 0;
    while let Some(count) = tasks.join_next().await {
        all += count??;
    }
    Ok(all as f64 / took.as_secs_f64())
}

/// So many a second, whether the ones before are answered or not: how long each took, from when it was due.
async fn at_pace(
    address: SocketAddr,
    asks: &Arc<Vec<Vec<u8>>>,
    per_s: f64,
    length: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for first in 0..CONNECTIONS {
        let asks = asks.clone();
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut took = Vec::new();
            for number in (first..).step_by(CONNECTIONS) {
                let due = Duration::from_secs_f64(number as f64 / per_s);
                if due >= length {
                    break;
                }
                tokio::time::sleep_until(began + due).await;
                let status = connection.send(&asks[number % asks.len()]).await?.0;
                ensure!(status == 201, "a token was refused with {status}");
                took.push(began.elapsed().saturating_sub(due));
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(took) = tasks.join_next().await {
        all.extend(took??);
    }
    Ok(all)
}

/// A connection that is kept open, one request after the other.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4_096) })
    }

    async fn ask(&mut self, request: &[u8]) -> anyhow::Result<(u16, Value)> {
        let (status, body) = self.send(request).await?;
        let answer = serde_json::from_slice(&self.buffer[body..]).context("the answer is no JSON")?;
        Ok((status, answer))
    }

    /// The status of the answer, and where its body begins in the buffer.
    async fn send(&mut self, request: &[u8]) -> anyhow::Result<(u16, usize)> {
        tokio::time::timeout(TIMEOUT, self.exchange(request)).await.context("no answer")?
    }

    async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, usize)> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the connection was closed");
            let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.buffer[..end])?;
            let status = head.get(9..12).and_then(|status| status.parse().ok()).context("no status")?;
            let field = |line: &str| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            };
            let length = head.lines().find_map(field).context("an answer without its length")?;
            if self.buffer.len() >= end + 4 + length {
                return Ok((status, end + 4));
            }
        }
    }
}
