//! The cluster of a run: its nodes, what befalls them, and the clock that drives them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use roomlog_bus::{
    bus::Bus,
    commit::{Commit, StreamId, StreamKind},
    env::Env,
    ids::{EaId, EcId, NuveId},
    journal::Journal,
    media::{TransportInventory, TransportState},
    rpc::{NuveAnswer, NuveRequest, RPC_TIMEOUT, ask},
    subject::Subject,
    time::{Clock, Timestamp},
};
use roomlog_ea::{
    EaSettings,
    testing::{FakeSpawner, FakeWorker},
};
use roomlog_ec::{Ec, EcSettings, EcStatus};
use roomlog_nuve::NuveSettings;
use roomlog_projections::{directory::LiveDirectory, membership::MediaProbe};
use serde_json::json;
use tokio::{
    io::DuplexStream,
    runtime::Runtime,
    sync::mpsc,
    time::{Instant, advance, sleep, sleep_until},
};
use tower::ServiceExt as _;

use super::{
    bus::SimBus,
    check,
    client::{self, Clients, Record},
    journal::SimJournal,
    world::{Chances, Counts, Door, MS, Micros, Node, S, World},
};

/// Nodes run in turn for this long: shorter than most messages take.
const QUANTUM: Micros = 20 * MS;
/// Faults begin when the cluster has had time to come up.
const FAULTS_FROM: Micros = 10 * S;
/// No more faults, and nobody new, from here.
const SETTLE_FROM: Micros = 70 * S;
/// All that has a deadline has passed it by then: the resume time after a takeover, provisional objects, two inventories.
const CHECK_AT: Micros = 185 * S;
/// When the log of every run begins: 2026-01-01.
const EPOCH: u64 = 1_767_225_600_000_000;
/// The admin key of every run.
const ADMIN: &str = "ak_simulation";
/// What clocks of machines kept by NTP differ by at most.
const SKEW: i64 = 2_000_000;

/// A bug planted on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    /// The log takes appends whatever version they expect.
    pub no_fence: bool,
    /// A follower misses a commit, in thousandths.
    pub skip: u32,
    /// A follower misses the last commit there is, now and then.
    pub lose_last: bool,
    /// A commit in which somebody leaves is acknowledged and not stored, in thousandths.
    pub forget_leave: u32,
    /// A node does not notice that it stood still: it takes the silence for the others'.
    pub unnoticed_pause: bool,
    /// A repair of the log appends what went another way, too.
    pub merge_fork: bool,
}

/// What a run came to.
pub struct Outcome {
    /// Names the run: the same for the same seed.
    pub hash: String,
    /// Which invariants did not hold.
    pub broken: Vec<String>,
    /// What was done and looked at.
    pub counts: Counts,
    /// The trace, if it was wanted.
    pub lines: Vec<String>,
    /// The log as it ended.
    pub log: Vec<Arc<Commit>>,
}

struct SimClock {
    base: Instant,
    at: u64,
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.at + Instant::now().duration_since(self.base).as_micros() as u64)
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Role {
    Nuve,
    Ec,
    Ea,
    Clients,
}

struct Host {
    role: Role,
    index: usize,
    name: String,
    skew: i64,
    runtime: Option<Runtime>,
    /// Time of the world when its runtime began, and the runtime's own.
    born: Micros,
    base: Option<Instant>,
    /// Not driven until then.
    paused_until: Micros,
    /// Started again then.
    starts_at: Option<Micros>,
    workers: Option<FakeSpawner>,
}

/// What befalls a node.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// With `alone` an EA's workers go on.
    Crash {
        for_: Micros,
        alone: bool,
    },
    Cut {
        for_: Micros,
        knows_after: Micros,
    },
    Pause {
        for_: Micros,
    },
    Unheard {
        for_: Micros,
    },
    Worker,
    Drain {
        within: Micros,
    },
    Truncate {
        span: Micros,
        repaired_after: Micros,
        crashed: u8,
    },
}

enum Later {
    Fault(usize, Fault),
    Knows(usize),
    Heal(usize),
    Repair,
}

/// A drained node has ended and is started again within this after its deadline.
const STARTS_AGAIN: Micros = 20 * S;
/// After this an EA that was in trouble has been called lost, or is back and says what it holds.
const TROUBLE_LASTS: Micros = 75 * S;

/// Runs the cluster of `seed` and checks it.
pub fn run(seed: u64, planted: Planted, text: bool) -> Outcome {
    count_panics();
    let mut plan = StdRng::seed_from_u64(seed ^ 0x5eed_0001);
    let calm = plan.random_ratio(1, 8);
    let rate = |plan: &mut StdRng, most: u32| {
        if calm || plan.random_bool(0.4) { 0 } else { plan.random_range(0..=most) }
    };
    let chances = Chances {
        loss: rate(&mut plan, 30),
        duplicate: rate(&mut plan, 20),
        slow: rate(&mut plan, 60),
        ack_lost: rate(&mut plan, 30),
        lands_late: rate(&mut plan, 15),
        append_lost: rate(&mut plan, 15),
        follow_broken: rate(&mut plan, 3),
        stale: rate(&mut plan, 400),
    };
    let world = World::new(seed, Chances::default(), planted, text);
    let counts = [
        (Role::Nuve, plan.random_range(1..=2)),
        (Role::Ec, plan.random_range(2..=3)),
        (Role::Ea, plan.random_range(2..=3)),
        (Role::Clients, 1),
    ];
    let mut hosts = Vec::new();
    for (role, count) in counts {
        for number in 1..=count {
            let name = match role {
                Role::Nuve => format!("nuve-{number}"),
                Role::Ec => format!("ec-{number}"),
                Role::Ea => format!("ea-{number}"),
                Role::Clients => "clients".to_owned(),
            };
            let skew = if role == Role::Clients { 0 } else { plan.random_range(-SKEW..=SKEW) };
            let index = hosts.len();
            world.lock().nodes.push(Node { name: name.clone(), ..Node::default() });
            let (runtime, base, starts_at, workers) = (None, None, Some(0), None);
            hosts.push(Host {
                role,
                index,
                name,
                skew,
                runtime,
                born: 0,
                base,
                paused_until: 0,
                starts_at,
                workers,
            });
        }
    }
    let mut later = BTreeMap::new();
    let faults: u64 = if calm { 0 } else { plan.random_range(1..=6) };
    for number in 0..faults {
        let at = plan.random_range(FAULTS_FROM..SETTLE_FROM);
        let target = plan.random_range(0..hosts.len() - 1);
        let fault = match plan.random_range(0..10) {
            0..2 => {
                let for_ = plan.random_range(S..25 * S);
                Fault::Crash { for_, alone: for_ % 3 > 0 }
            }
            2..4 => Fault::Cut {
                for_: plan.random_range(S / 2..25 * S),
                knows_after: plan.random_range(0..4 * S),
            },
            4..6 => Fault::Pause { for_: plan.random_range(S / 2..25 * S) },
            6 => Fault::Unheard { for_: plan.random_range(3 * S..8 * S) },
            7 => Fault::Drain { within: plan.random_range(S..20 * S) },
            8 => Fault::Truncate {
                span: plan.random_range(S / 5..8 * S),
                repaired_after: plan.random_range(2 * S..30 * S),
                crashed: if plan.random() { plan.random() } else { 0 },
            },
            _ => Fault::Worker,
        };
        later.insert((at, number), Later::Fault(target, fault));
    }
    let rooms = plan.random_range(1..=4);
    let people = plan.random_range(3..=8);
    let client_seeds: Vec<u64> = (0..people).map(|_| plan.random()).collect();
    let scene = Scene {
        world: world.clone(),
        nuves: hosts.iter().filter(|h| h.role == Role::Nuve).count(),
        rooms,
        client_seeds,
        record: Arc::default(),
    };
    let order = (0..hosts.len()).collect();
    let mut cluster =
        Cluster { world: world.clone(), hosts, plan, later, number: 1_000, now: 0, order, scene };
    PANICS.set(0);
    while cluster.now < CHECK_AT {
        if cluster.now == FAULTS_FROM {
            world.lock().chances = chances;
        }
        if cluster.now == SETTLE_FROM {
            cluster.settle();
        }
        cluster.befall();
        cluster.step();
    }
    let broken = cluster.check();
    let mut inner = world.lock();
    let (hash, counts, lines) = (inner.hash(), inner.counts.clone(), inner.lines.take().unwrap_or_default());
    let log = inner.log.clone();
    drop(inner);
    // The nodes' tasks use the world while they are dropped.
    drop(cluster);
    Outcome { hash, broken, counts, lines, log }
}

thread_local! {
    static PANICS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Counts panics of this thread from now on: a task that panics is caught by its runtime and would go unseen.
fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

/// The workers that live.
pub(super) fn living(spawner: &FakeSpawner) -> Vec<FakeWorker> {
    let all = (0..spawner.started()).map(|index| spawner.worker(index));
    all.filter(|worker| !worker.has_ended()).collect()
}

/// What every node's beginning may need.
struct Scene {
    world: Arc<World>,
    nuves: usize,
    rooms: usize,
    client_seeds: Vec<u64>,
    record: Arc<Mutex<Option<Arc<Clients>>>>,
}

struct Cluster {
    world: Arc<World>,
    hosts: Vec<Host>,
    plan: StdRng,
    later: BTreeMap<(Micros, u64), Later>,
    number: u64,
    now: Micros,
    order: Vec<usize>,
    scene: Scene,
}

impl Cluster {
    fn put(&mut self, at: Micros, what: Later) {
        self.number += 1;
        self.later.insert((at, self.number), what);
    }

    /// Nothing goes wrong any more: everybody is there and reached.
    fn settle(&mut self) {
        self.world.lock().chances = Chances::default();
        let repairs = self.later.values().any(|later| matches!(later, Later::Repair));
        self.later.clear();
        if repairs {
            self.world.lock().repair();
        }
        for host in &mut self.hosts {
            host.paused_until = host.paused_until.min(self.now);
            host.starts_at = host.starts_at.map(|at| at.min(self.now));
            let mut world = self.world.lock();
            if world.nodes[host.index].cut {
                world.heal(host.index);
            }
        }
    }

    /// Does what is due to the nodes.
    fn befall(&mut self) {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            match entry.remove() {
                Later::Knows(node) => {
                    let mut world = self.world.lock();
                    if world.nodes[node].cut {
                        world.knows(node);
                    }
                }
                Later::Heal(node) => {
                    let mut world = self.world.lock();
                    if world.nodes[node].cut {
                        world.heal(node);
                    }
                }
                Later::Repair => self.world.lock().repair(),
                Later::Fault(target, fault) => self.fault(target, fault),
            }
        }
        for host in &mut self.hosts {
            if host.starts_at.is_some_and(|at| at <= self.now) {
                host.starts_at = None;
                host.start(&self.scene, self.now);
            }
        }
    }

    fn fault(&mut self, target: usize, fault: Fault) {
        self.world.lock().note(|| format!("{fault:?} {target}"), &[]);
        let now = self.now;
        if let Fault::Crash { for_, .. }
        | Fault::Cut { for_, .. }
        | Fault::Pause { for_ }
        | Fault::Unheard { for_ } = fault
        {
            self.world.lock().nodes[target].trouble.push((now, now + for_));
        }
        if let Fault::Drain { within } = fault {
            self.world.lock().nodes[target].trouble.push((now, now + within + STARTS_AGAIN));
            return self.drain(target, within);
        }
        if let Fault::Truncate { span, repaired_after, crashed } = fault {
            self.world.lock().truncate(span);
            // A power cut took some of the nodes with it: they start having seen nothing.
            for target in (0..self.hosts.len() - 1).filter(|target| crashed >> target & 1 == 1) {
                let for_ = self.plan.random_range(S..6 * S);
                self.fault(target, Fault::Crash { for_, alone: false });
            }
            // Nobody can be called lost for not being heard, but while nothing can be written nodes do not come back either.
            for node in &mut self.world.lock().nodes {
                node.trouble.push((now, now + repaired_after));
            }
            return self.put(now + repaired_after, Later::Repair);
        }
        let host = &mut self.hosts[target];
        match fault {
            Fault::Crash { for_, alone } if host.runtime.is_some() => {
                let alone = alone && host.role == Role::Ea;
                self.world.lock().fault(if alone {
                    "EA crashed, its workers go on"
                } else {
                    crash_of(host.role)
                });
                host.crash(&self.world, alone);
                host.starts_at = Some(now + for_);
            }
            Fault::Cut { for_, knows_after } if !self.world.lock().nodes[target].cut => {
                self.world.lock().fault("node cut off");
                self.world.lock().cut(target);
                self.put(now + knows_after, Later::Knows(target));
                self.put(now + for_, Later::Heal(target));
            }
            Fault::Pause { for_ } if host.runtime.is_some() => {
                self.world.lock().fault("node paused");
                host.paused_until = host.paused_until.max(now + for_);
            }
            Fault::Unheard { for_ } => {
                let mut world = self.world.lock();
                world.fault("node not heard");
                world.nodes[target].unheard_until = now + for_;
            }
            Fault::Worker => {
                if let Some(workers) = &host.workers
                    && let Some(last) = workers.started().checked_sub(1)
                {
                    self.world.lock().fault("worker died");
                    workers.worker(last).die.notify_one();
                }
            }
            _ => {}
        }
    }

    /// An operator's `roomlog drain`: the node ends, and is started again.
    fn drain(&mut self, target: usize, within: Micros) {
        let host = &self.hosts[target];
        let node = match host.role {
            Role::Ec => StreamId::new(StreamKind::Ec, &host.name),
            Role::Ea => StreamId::new(StreamKind::Ea, &host.name),
            Role::Nuve | Role::Clients => return,
        };
        let (Ok(node), Some(operator)) = (node, self.hosts.last()) else { return };
        self.world.lock().fault("node drained");
        let bus = SimBus::new(self.world.clone(), operator.index);
        let request = NuveRequest::Drain { node, within: Duration::from_micros(within) };
        if let Some(runtime) = &operator.runtime {
            runtime.spawn(async move {
                let subject = Subject::rpc_any(StreamKind::Nuve);
                let _ = ask::<_, NuveAnswer>(&bus, subject, &request, RPC_TIMEOUT).await;
            });
        }
    }

    /// The ICE of clients that went silent, as their workers see it; and nobody may have been removed whose ICE they see alive.
    fn look_at_ice(&mut self) {
        let mut world = self.world.lock();
        let now = world.now;
        let over = world.ice.iter().filter(|(_, ice)| ice.ends.is_some_and(|ends| ends <= now));
        let over: Vec<String> = over.map(|(client, _)| client.clone()).collect();
        for client in over {
            for transport in world.ice.remove(&client).unwrap_or_default().transports {
                self.each_transport(|_, there| {
                    if there.id.as_str() == transport {
                        there.state = TransportState::Disconnected;
                    }
                });
            }
        }
        for (room, client) in std::mem::take(&mut world.expired) {
            *world.counts.checks.entry("clients removed for their silence").or_default() += 1;
            let Some(ice) = world.ice.get(&client).cloned() else { continue };
            let mut alive = Vec::new();
            self.each_transport(|host, there| {
                let hers = ice.transports.iter().any(|id| id == there.id.as_str());
                if hers && there.state == TransportState::Connected {
                    alive.push(host);
                }
            });
            // An EA that is in trouble, or just was, says nothing of its clients, or has been called lost.
            let since = now.saturating_sub(TROUBLE_LASTS);
            let reported = alive.iter().find(|host| !world.nodes[**host].in_trouble(since, now));
            if let Some(host) = reported {
                let ea = world.nodes[*host].name.clone();
                world.broken.push(format!("{client} was removed from {room}, and {ea} saw its ICE alive"));
            }
        }
    }

    /// Every transport on every worker that lives, with its host.
    fn each_transport(&self, mut look: impl FnMut(usize, &mut TransportInventory)) {
        for host in &self.hosts {
            for worker in host.workers.iter().flat_map(living) {
                let mut books = worker.books.lock().expect("one thread");
                for transport in books.routers.values_mut().flat_map(|router| &mut router.transports) {
                    look(host.index, transport);
                }
            }
        }
    }

    /// A quantum for each, in an order of its own each time.
    fn step(&mut self) {
        self.now += QUANTUM;
        self.world.advance(self.now);
        self.look_at_ice();
        self.order.shuffle(&mut self.plan);
        let unnoticed = self.world.lock().planted.unnoticed_pause;
        for index in &self.order {
            self.hosts[*index].drive(self.now, unnoticed);
        }
    }

    /// Looks at the settled cluster from outside.
    fn check(&mut self) -> Vec<String> {
        let observer = self.hosts.len() - 1;
        let books = self.hosts.iter().filter_map(|h| Some((h.name.clone(), h.workers.clone()?))).collect();
        let found: Arc<Mutex<Option<Vec<String>>>> = Arc::default();
        let (tell, world) = (found.clone(), self.world.clone());
        let clients = self.scene.record.lock().expect("one thread").clone();
        let bus: Arc<dyn Bus> = Arc::new(SimBus::new(world.clone(), observer));
        if let Some(runtime) = &self.hosts[observer].runtime {
            runtime.spawn(async move {
                let broken = check::all(&world, &bus, clients, books).await;
                *tell.lock().expect("one thread") = Some(broken);
            });
        }
        let until = self.now + 120 * S;
        let mut broken = loop {
            self.step();
            if let Some(broken) = found.lock().expect("one thread").take() {
                break broken;
            }
            if self.now >= until {
                break vec!["the check did not end".to_owned()];
            }
        };
        if PANICS.get() > 0 {
            broken.push(format!("{} panics", PANICS.get()));
        }
        broken
    }
}

impl Host {
    fn start(&mut self, scene: &Scene, now: Micros) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without IO needs nothing");
        let world = scene.world.clone();
        world.lock().nodes[self.index].running = true;
        world.lock().expect(self.index);
        world.lock().note(|| format!("start {}", self.name), &[]);
        let base = runtime.block_on(async { Instant::now() });
        let at = EPOCH.saturating_add(now).saturating_add_signed(self.skew);
        let env = Env::new(Arc::new(SimClock { base, at }), world.seed());
        let part = Part {
            bus: Arc::new(SimBus::new(world.clone(), self.index)),
            journal: Arc::new(SimJournal::new(world.clone(), self.index)),
            world,
            name: self.name.clone(),
            env,
        };
        match self.role {
            Role::Nuve => drop(runtime.spawn(nuve(part))),
            Role::Ec => drop(runtime.spawn(ec(part))),
            Role::Ea => {
                let workers = self.workers.get_or_insert_default().clone();
                runtime.spawn(ea(part, workers));
            }
            Role::Clients => {
                let people = People {
                    world: scene.world.clone(),
                    nuves: scene.nuves,
                    rooms: scene.rooms,
                    seeds: scene.client_seeds.clone(),
                    tell: scene.record.clone(),
                };
                runtime.spawn(people.live());
            }
        }
        self.runtime = Some(runtime);
        self.born = now;
        self.base = Some(base);
        self.paused_until = 0;
    }

    /// Everything that it was is gone, but for the workers of a process that died `alone`; what it sent is on its way.
    fn crash(&mut self, world: &Arc<World>, alone: bool) {
        self.workers = self.workers.take().filter(|_| alone);
        let mut inner = world.lock();
        let answered = inner.media.contains(&self.name);
        inner.forget(self.index);
        if alone && answered {
            inner.media.insert(self.name.clone());
        }
        drop(inner);
        drop(self.runtime.take());
    }

    /// Lets it run until `now`.
    fn drive(&mut self, now: Micros, unnoticed: bool) {
        let (Some(runtime), Some(base)) = (&self.runtime, self.base) else { return };
        if self.paused_until > now {
            return;
        }
        let target = base + Duration::from_micros(now - self.born);
        runtime.block_on(async {
            let behind = target.saturating_duration_since(Instant::now());
            if behind > Duration::from_micros(2 * QUANTUM) && !unnoticed {
                // It was paused: its clocks went on without it.
                advance(behind - Duration::from_micros(QUANTUM)).await;
            }
            sleep_until(target).await;
        });
    }
}

/// What a node is made of.
struct Part {
    world: Arc<World>,
    bus: Arc<dyn Bus>,
    journal: Arc<dyn Journal>,
    name: String,
    env: Env,
}

/// Between two tries to start: what runs the process starts it again.
const START_AGAIN: Duration = Duration::from_secs(1);

impl Part {
    async fn directory(&self) -> LiveDirectory {
        loop {
            match LiveDirectory::start(self.journal.clone()).await {
                Ok(directory) => return directory,
                Err(_) => sleep(START_AGAIN).await,
            }
        }
    }
}

async fn nuve(part: Part) {
    let directory = part.directory().await;
    let nuve = loop {
        let settings = NuveSettings {
            id: NuveId::new(&part.name).expect("a token"),
            admin_key: Some(ADMIN.into()),
            ip_per_s: 100_000,
            ip_burst: 100_000,
            service_per_s: 100_000,
            cluster_per_s: 100_000,
            locate_per_s: 100_000,
            ..NuveSettings::default()
        };
        let (bus, journal) = (part.bus.clone(), part.journal.clone());
        match roomlog_nuve::start(settings, bus, journal, directory.clone(), part.env.clone()).await {
            Ok(nuve) => break nuve,
            Err(_) => sleep(START_AGAIN).await,
        }
    };
    let (door, mut calls) = mpsc::unbounded_channel::<super::world::Call>();
    part.world.lock().doors.insert(part.name.clone(), Door::Http(door));
    let router = nuve.router();
    while let Some(call) = calls.recv().await {
        let (router, world, name) = (router.clone(), part.world.clone(), part.name.clone());
        tokio::spawn(async move {
            let Ok(response) = router.oneshot(call.request).await;
            let (parts, body) = response.into_parts();
            let bytes = axum::body::to_bytes(body, 10_000_000).await.unwrap_or_default();
            world.answer(&name, call.id, parts.status, bytes);
        });
    }
}

struct Entrance {
    sockets: mpsc::UnboundedReceiver<DuplexStream>,
}

impl axum::serve::Listener for Entrance {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.sockets.recv().await {
            Some(socket) => (socket, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn ec(part: Part) {
    let directory = part.directory().await;
    let world = part.world.clone();
    let probe: MediaProbe = Arc::new(move |node, _| {
        let answers = world.lock().media.contains(node.id());
        Box::pin(async move {
            sleep(Duration::from_millis(20)).await;
            answers
        })
    });
    loop {
        let mut settings =
            EcSettings::new(EcId::new(&part.name).expect("a token"), format!("ws://{}/signal", part.name));
        settings.connections_per_second = 1_000_000;
        let (bus, journal) = (part.bus.clone(), part.journal.clone());
        let started =
            Ec::start_with(settings, bus, journal, directory.clone(), part.env.clone(), probe.clone());
        let Ok(ec) = started.await else {
            sleep(START_AGAIN).await;
            continue;
        };
        let (door, sockets) = mpsc::unbounded_channel();
        part.world.lock().doors.insert(part.name.clone(), Door::Socket(door));
        let mut status = ec.status();
        tokio::select! {
            biased;
            _ = axum::serve(Entrance { sockets }, ec.router()) => {}
            _ = status.wait_for(|status| *status != EcStatus::Serving) => {}
        }
        // Whoever runs the process starts it again.
        part.world.lock().count("ECs ended by themselves");
        part.world.lock().doors.remove(&part.name);
        ec.stop().await;
        part.world.lock().hang_up(&part.name);
        sleep(START_AGAIN).await;
    }
}

async fn ea(part: Part, workers: FakeSpawner) {
    loop {
        let mut settings = EaSettings::new(EaId::new(&part.name).expect("a token"), Vec::new());
        settings.workers = 2;
        settings.workers_folder = Some("nowhere".into());
        let (bus, journal) = (part.bus.clone(), part.journal.clone());
        let spawner = Arc::new(workers.clone());
        match roomlog_ea::start_with(settings, bus, journal, part.env.clone(), spawner).await {
            Ok(ea) => {
                part.world.lock().media.insert(part.name.clone());
                let reason = ea.ended().await;
                ea.stop().await;
                workers.workers.lock().expect("one thread").clear();
                let mut world = part.world.lock();
                world.note(|| format!("{} ended: {reason:?}", part.name), &[]);
                world.count("EAs ended by themselves");
            }
            Err(error) => part.world.lock().note(|| format!("{} not started: {error}", part.name), &[]),
        }
        sleep(START_AGAIN).await;
    }
}

/// Everybody who uses the cluster.
struct People {
    world: Arc<World>,
    nuves: usize,
    rooms: usize,
    seeds: Vec<u64>,
    tell: Arc<Mutex<Option<Arc<Clients>>>>,
}

impl People {
    async fn live(self) {
        let made = loop {
            let body = json!({ "name": "simulation", "publishableCreatesRooms": true });
            if let Some((201, made)) =
                client::http(&self.world, "nuve-1", "POST", "/v1/services", ADMIN, Some(body)).await
            {
                break made;
            }
            sleep(Duration::from_millis(200)).await;
        };
        let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
        let clients = Arc::new(Clients {
            world: self.world,
            nuves: self.nuves,
            rooms: self.rooms,
            key: text("publishableKey"),
            secret: text("secretKey"),
            until: SETTLE_FROM - 5 * S,
            record: Mutex::new(Record::default()),
        });
        *self.tell.lock().expect("one thread") = Some(clients.clone());
        for (number, seed) in self.seeds.iter().enumerate() {
            tokio::spawn(client::live(clients.clone(), *seed, format!("user-{number}")));
        }
    }
}

fn crash_of(role: Role) -> &'static str {
    match role {
        Role::Nuve => "NUVE crashed",
        Role::Ec => "EC crashed",
        Role::Ea => "EA crashed",
        Role::Clients => "clients crashed",
    }
}
