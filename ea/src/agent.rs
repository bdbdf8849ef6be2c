//! The agent's loop: carries what happens into the [`Core`] and what it decides out, and never waits for anything but the next input.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use roomlog_bus::{
    bus::{Bus, Headers, Message, Subscription},
    commit::{Commit, Payload, StreamId},
    env::Env,
    events::AdoptedWorker,
    ids::{EaId, RoomId, Version, WorkerIndex},
    journal::Journal,
    media::MediaError,
    rpc::{EaAnswer, EaRequest, EcRequest, Heartbeat, RPC_TIMEOUT, RpcError},
    subject::Subject,
};
use roomlog_projections::membership::stopped;
use roomlog_sfu::{
    adoption::{Adoptable, CONTROL_PROTOCOL, Hello},
    control::{FromWorker, ToWorker, WorkerConfig},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    adopt::{Fit, LeftBehind, judge},
    core::{Core, Effect, Input, Limits, Start},
    follow::{FOLLOW_QUEUE, News, follow},
    health::{HealthWatch, Seen},
    registrar::{Order, REGISTRAR_QUEUE, Registrar, Report},
    settings::{EaError, EaSettings},
    slot::{FromSlot, Slot, SlotEvent},
    worker::{ProcessSpawner, SpawnWorker, WorkerLink},
};

/// The core is told the time this often: the grain of expiries and sweeps, which are tens of seconds.
const TICK_EVERY: Duration = Duration::from_millis(500);

/// Messages waiting for the bus, at most: a few seconds of answers and notifications under load. What comes on top while the bus is away is
/// dropped: a lost answer is asked for again, a lost notification is found by the next inventory.
const OUTBOX: usize = 16_384;

/// Messages of all workers waiting for the agent. Workers then wait with their next.
const SLOT_QUEUE: usize = 4_096;

/// Room streams read at once: enough to hide the journal's latency when an EC moves a thousand rooms here, few enough not to starve it.
const LOADS_AT_ONCE: usize = 16;

/// How long stopping waits for `NodeLeft` to be in the log; without it the node is found lost a few seconds later.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A running EA. Dropping it ends everything without a word; [`Ea::stop`] ends it in order.
pub struct Ea {
    id: EaId,
    stop: watch::Sender<bool>,
    pids: watch::Receiver<Vec<Option<u32>>>,
    ended: watch::Receiver<Option<EaError>>,
    health: HealthWatch,
    task: JoinHandle<()>,
}

impl Ea {
    /// Its id.
    pub fn id(&self) -> &EaId {
        &self.id
    }

    /// Process ids of its workers by index; none where a worker is down or no process.
    pub fn worker_pids(&self) -> Vec<Option<u32>> {
        self.pids.borrow().clone()
    }

    /// Shows how it is at any time.
    pub fn health(&self) -> HealthWatch {
        self.health.clone()
    }

    /// Waits until it has ended by itself, and says why.
    pub async fn ended(&self) -> Option<EaError> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        }
    }

    /// Ends it in order: takes nothing more, says `NodeLeft`, ends the workers. Returns when all its tasks have ended.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

/// Starts an EA whose workers are child processes.
pub async fn start(
    settings: EaSettings,
    bus: Arc<dyn Bus>,
    journal: Arc<dyn Journal>,
    env: Env,
) -> Result<Ea, EaError> {
    let spawner =
        Arc::new(ProcessSpawner::new(settings.worker_command.clone(), settings.workers_folder.clone()));
    start_with(settings, bus, journal, env, spawner).await
}

/// Starts an EA whose workers come from `spawner`. Returns once it is registered and at least one worker is ready.
pub async fn start_with(
    settings: EaSettings,
    bus: Arc<dyn Bus>,
    journal: Arc<dyn Journal>,
    env: Env,
    spawner: Arc<dyn SpawnWorker>,
) -> Result<Ea, EaError> {
    let id = settings.id.clone();
    check(&settings)?;
    let stream = StreamId::from(&id);
    let drawn = env.draw(|rng| {
        let mut password = [0; 16];
        rng.fill_bytes(&mut password);
        password.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    let mut registrar = Registrar::open(id.clone(), journal.clone(), env.clone(), drawn.clone()).await?;
    let mut adopted = take_over(&settings, &registrar, &*spawner).await;
    let probe = if adopted.is_empty() { drawn } else { registrar.keep_probe() };

    let (stop, stopping) = watch::channel(false);
    let (events, mut from_slots) = mpsc::channel(SLOT_QUEUE);
    let mut slots = JoinSet::new();
    let mut workers = Vec::new();
    let mut running: BTreeMap<WorkerIndex, Fit> = BTreeMap::new();
    for index in 0..settings.workers {
        let worker = WorkerIndex(index as u16);
        let (replace, replaced) = watch::channel(0);
        let taken = adopted.remove(&worker);
        let adoptable = settings.workers_folder.clone().map(|folder| Adoptable {
            folder,
            ea: id.clone(),
            worker,
            generation: 0, // the slot's
            incarnation: registrar.state().incarnation.next(),
            within_ms: settings.adopt_within.as_millis() as u64,
        });
        let config = config_of(&settings, worker);
        let slot = Slot {
            worker,
            generation: taken
                .as_ref()
                .map_or_else(|| registrar.next_generation(worker), |(fit, _, _)| fit.generation),
            first: taken.map(|(fit, link, udp)| {
                running.insert(worker, fit);
                (link, udp)
            }),
            config: WorkerConfig { probe_password: probe.clone(), adoptable, ..config },
            settings: settings.clone(),
            spawner: spawner.clone(),
            events: events.clone(),
            stop: stopping.clone(),
            replace: replaced,
        };
        slots.spawn(slot.run());
        workers.push(Worker { replace, link: None, udp: None, pid: None });
    }
    drop(events);
    let mut early = first_words(&settings, &mut from_slots, &mut workers).await;
    let up = || {
        let links = workers.iter().enumerate().filter_map(|(i, w)| Some((i, w.link.as_ref()?.generation)));
        links.map(|(i, generation)| (WorkerIndex(i as u16), generation))
    };
    let goes_on = |(worker, generation): &(WorkerIndex, u64)| {
        running.get(worker).is_some_and(|fit| fit.generation == *generation)
    };
    let (old, ready): (Vec<_>, Vec<_>) = up().partition(goes_on);
    if old.is_empty() && ready.is_empty() {
        let reason = early.failure.take().unwrap_or_else(|| "none answered".into());
        return Err(EaError::NoWorkers { id, workers: settings.workers, reason });
    }

    // What is asked or committed from the moment others can know of us must not be missed: listen first, then register.
    let requests = (bus.subscribe(Subject::rpc(&stream).into(), None).await)
        .map_err(|source| EaError::Bus { id: id.clone(), source })?;
    let read = |source| EaError::Read { id: id.clone(), source };
    let cursor = journal.tail().await.map_err(read)?;
    let following = journal.follow(cursor.clone()).await.map_err(read)?;
    let address = address_of(&settings, &workers);
    let old: Vec<_> =
        old.into_iter().map(|(worker, generation)| AdoptedWorker { worker, generation }).collect();
    let incarnation = registrar.register(address, settings.workers as u16, &old, &ready).await?;
    let mut starts: Vec<Option<Start>> = vec![None; workers.len()];
    for (worker, generation) in up() {
        let fit = running.remove(&worker).filter(|fit| fit.generation == generation);
        let began = registrar.state().began_in(worker).unwrap_or(incarnation);
        starts[usize::from(worker.0)] = Some(Start { generation, began, adopted: fit.map(|fit| fit.rooms) });
    }

    let (commits, followed) = mpsc::channel(FOLLOW_QUEUE);
    let (orders, ordered) = mpsc::channel(REGISTRAR_QUEUE);
    let (report, reports) = mpsc::channel(REGISTRAR_QUEUE);
    let (outbox, outgoing) = mpsc::channel(OUTBOX);
    let mut helpers = JoinSet::new();
    helpers.spawn(follow(journal.clone(), cursor, following, stream.clone(), commits));
    helpers.spawn(registrar.run(ordered, report));
    let connected = bus.connected();
    helpers.spawn(publish(bus, outgoing));

    let limits = Limits { provisional_ttl: settings.provisional_ttl, sweep_every: settings.sweep_every };
    let (pids_out, pids) = watch::channel(workers.iter().map(|w| w.pid).collect::<Vec<_>>());
    let (has_ended, ended) = watch::channel(None);
    let core = Core::new(id.clone(), incarnation, limits, &starts);
    let (seen_out, seen) = watch::channel(Seen::of(&core, workers.iter().map(Worker::lives)));
    let health = HealthWatch { seen, connected };
    let agent = Agent {
        core,
        id: id.clone(),
        env,
        stream,
        journal,
        started: Instant::now(),
        workers,
        orders,
        outbox,
        loads: JoinSet::new(),
        loads_at_once: Arc::new(Semaphore::new(LOADS_AT_ONCE)),
        pids: pids_out,
        seen: seen_out,
        superseded: None,
    };
    let inputs = Inputs { from_slots, followed, requests, reports, stop: stopping };
    let stop_slots = stop.clone();
    let task = tokio::spawn(async move {
        let reason = agent.run(inputs, early.events, settings.heartbeat_every).await;
        // Whatever ended the loop, the slots end with it, each with its worker.
        let _ = stop_slots.send(true);
        while slots.join_next().await.is_some() {}
        helpers.shutdown().await;
        let _ = has_ended.send(reason);
    });
    Ok(Ea { id, stop, pids, ended, health, task })
}

fn check(settings: &EaSettings) -> Result<(), EaError> {
    let wrong = |name, value: String, expected| Err(EaError::Setting { name, value, expected });
    if settings.workers == 0 || settings.workers > usize::from(u16::MAX) {
        return wrong("workers", settings.workers.to_string(), "1 to 65535, one per core");
    }
    for (name, port) in
        [("first_port", settings.first_port), ("first_announced_port", settings.first_announced_port)]
    {
        if let Some(first) = port
            && usize::from(first) + settings.workers - 1 > usize::from(u16::MAX)
        {
            return wrong(name, first.to_string(), "a port with as many above it as there are workers");
        }
    }
    if let (Some(port), None) = (settings.first_announced_port, settings.first_port) {
        let expected = "set only together with first_port, so that there is a port to forward to";
        return wrong("first_announced_port", port.to_string(), expected);
    }
    for (name, value) in [
        ("heartbeat_every", settings.heartbeat_every),
        ("ping_every", settings.ping_every),
        ("pong_timeout", settings.pong_timeout),
    ] {
        if value.is_zero() {
            return wrong(name, "0".into(), "more than nothing");
        }
    }
    Ok(())
}

fn config_of(settings: &EaSettings, worker: WorkerIndex) -> WorkerConfig {
    let port = settings.first_port.map_or(0, |first| first + worker.0);
    let mut config = WorkerConfig::new(SocketAddr::new(settings.media_ip, port));
    config.announced.clone_from(&settings.announced);
    config.announced_port = settings.first_announced_port.map(|first| first + worker.0);
    config
}

/// The workers that an earlier process left behind and that go on, by index; the others are ended.
async fn take_over(
    settings: &EaSettings,
    registrar: &Registrar,
    spawner: &dyn SpawnWorker,
) -> BTreeMap<WorkerIndex, (Fit, WorkerLink, SocketAddr)> {
    let state = registrar.state();
    let hello = Hello {
        protocol: CONTROL_PROTOCOL,
        ea: settings.id.clone(),
        incarnation: state.incarnation.next(),
        within_ms: settings.adopt_within.as_millis() as u64,
    };
    let (mut adopted, mut ending) = (BTreeMap::new(), Vec::new());
    for LeftBehind { link, answer } in spawner.left_behind(hello).await {
        match judge(&answer, settings.workers, state, |worker| config_of(settings, worker)) {
            Ok(fit) => {
                let welcome = answer.expect("only a welcome is fit");
                tracing::info!(worker = %fit.worker, generation = fit.generation, pid = link.pid, version = welcome.version, rooms = fit.rooms.len(), "a worker that was left behind is taken over");
                adopted.insert(fit.worker, (fit, link, welcome.udp));
            }
            Err(unfit) => {
                tracing::warn!(pid = link.pid, reason = %unfit, "a worker that was left behind is ended");
                let WorkerLink { kill, ended, .. } = link;
                let _ = kill.send(());
                ending.push(ended);
            }
        }
    }
    // Another worker may need its port.
    for ended in ending {
        let _ = timeout(settings.shutdown_timeout, ended).await;
    }
    adopted
}

/// Where the workers take packets, by index, separated by commas: what others probe to see whether this host still lives.
fn address_of(settings: &EaSettings, workers: &[Worker]) -> String {
    let ip = |udp: SocketAddr| -> IpAddr { settings.announced.first().copied().unwrap_or(udp.ip()) };
    let port = |index: usize, udp: SocketAddr| match settings.first_announced_port {
        Some(first) => first + index as u16,
        None => udp.port(),
    };
    let bound = workers.iter().enumerate().filter_map(|(index, w)| Some((index, w.udp?)));
    let addresses = bound.map(|(index, udp)| SocketAddr::new(ip(udp), port(index, udp)));
    addresses.map(|a| a.to_string()).collect::<Vec<_>>().join(",")
}

/// What slots said before the agent ran.
struct Early {
    events: Vec<FromSlot>,
    failure: Option<String>,
}

/// Waits until each slot has a worker or has failed once.
async fn first_words(
    settings: &EaSettings,
    from_slots: &mut mpsc::Receiver<FromSlot>,
    workers: &mut [Worker],
) -> Early {
    let mut early = Early { events: Vec::new(), failure: None };
    let mut silent: Vec<bool> = vec![true; workers.len()];
    let all = async {
        while silent.iter().any(|silent| *silent) {
            let Some(from) = from_slots.recv().await else { return };
            let index = usize::from(from.worker.0);
            silent[index] = false;
            match from.event {
                SlotEvent::Ready { udp, pid, to } => {
                    workers[index].ready(from.generation, udp, pid, to);
                }
                SlotEvent::Failed(reason) => early.failure = Some(reason),
                event => early.events.push(FromSlot { event, ..from }),
            }
        }
    };
    let _ = timeout(settings.ready_timeout, all).await;
    early
}

/// A worker as the loop sees it.
struct Worker {
    replace: watch::Sender<u64>,
    link: Option<Link>,
    udp: Option<SocketAddr>,
    pid: Option<u32>,
}

struct Link {
    generation: u64,
    to: mpsc::Sender<ToWorker>,
}

impl Worker {
    fn lives(&self) -> bool {
        self.link.is_some()
    }

    fn ready(&mut self, generation: u64, udp: SocketAddr, pid: Option<u32>, to: mpsc::Sender<ToWorker>) {
        self.link = Some(Link { generation, to });
        self.udp = Some(udp);
        self.pid = pid;
    }
}

struct Inputs {
    from_slots: mpsc::Receiver<FromSlot>,
    followed: mpsc::Receiver<News>,
    requests: Subscription,
    reports: mpsc::Receiver<Report>,
    stop: watch::Receiver<bool>,
}

/// Commits of a room's stream read at a time: a few hundred KiB at the sizes rooms have.
const LOAD_PAGE: usize = 1_000;
/// A page that was not read is asked for again so often before the room is begun anew; with [`LOAD_AGAIN`] between, longer than a stream
/// of the log takes to elect a leader.
const LOAD_TRIES: u32 = 10;
/// Between two such tries.
const LOAD_AGAIN: Duration = Duration::from_millis(500);

type Loaded = (RoomId, Option<Vec<Arc<Commit>>>);

struct Agent {
    core: Core<Message>,
    id: EaId,
    env: Env,
    stream: StreamId,
    journal: Arc<dyn Journal>,
    started: Instant,
    workers: Vec<Worker>,
    orders: mpsc::Sender<Order>,
    outbox: mpsc::Sender<Message>,
    loads: JoinSet<Loaded>,
    loads_at_once: Arc<Semaphore>,
    pids: watch::Sender<Vec<Option<u32>>>,
    seen: watch::Sender<Seen>,
    superseded: Option<EaError>,
}

impl Agent {
    /// Runs until told to stop, or until another process has taken the id, which is then the reason given back.
    async fn run(
        mut self,
        mut inputs: Inputs,
        early: Vec<FromSlot>,
        heartbeat_every: Duration,
    ) -> Option<EaError> {
        let mut heartbeat = interval(heartbeat_every);
        let mut tick = interval(TICK_EVERY);
        for timer in [&mut heartbeat, &mut tick] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        for from in early {
            self.slot_event(from);
        }
        let mut bus_open = true;
        while self.superseded.is_none() {
            tokio::select! {
                // Timers first, which are rare: a flood of commits or requests never keeps this node from saying that it lives. Requests
                // last: what they ask is best answered with all that is known.
                biased;
                () = stopped(&mut inputs.stop) => break,
                _ = heartbeat.tick() => self.heartbeat(),
                _ = tick.tick() => {
                    self.input(Input::Tick);
                    self.seen.send_replace(Seen::of(&self.core, self.workers.iter().map(Worker::lives)));
                    if self.core.is_drained(self.env.now()) {
                        tracing::info!(ea = %self.id, "drained");
                        break;
                    }
                }
                Some(report) = inputs.reports.recv() => self.report(report),
                Some(loaded) = self.loads.join_next(), if !self.loads.is_empty() => match loaded {
                    Ok((room, commits)) => self.input(Input::Loaded { room, commits }),
                    Err(error) => tracing::error!(%error, "reading a room's stream panicked; its room waits for the next commit"),
                },
                Some(from) = inputs.from_slots.recv() => self.slot_event(from),
                Some(news) = inputs.followed.recv() => self.input(match news {
                    News::Commit(commit) => Input::Commit(commit),
                    News::Repaired => Input::Repaired,
                }),
                request = inputs.requests.next(), if bus_open => match request {
                    Some(message) => self.request(message),
                    None => {
                        tracing::error!(ea = %self.id, "the bus was closed: no more requests are served; media flows on");
                        bus_open = false;
                    }
                },
            }
        }
        if self.superseded.is_none() {
            let (done, left) = oneshot::channel();
            let leave = async {
                if self.orders.send(Order::Leave(done)).await.is_ok() {
                    let _ = left.await;
                }
            };
            if timeout(LEAVE_TIMEOUT, leave).await.is_err() {
                tracing::warn!(ea = %self.id, "that this node leaves did not reach the log in time; it will be found lost");
            }
        }
        self.superseded
    }

    fn input(&mut self, input: Input<Message>) {
        let mut effects = self.core.handle(self.started.elapsed(), input);
        // A command that a worker does not take is an answer at once, which may have effects of its own.
        while !effects.is_empty() {
            let mut refused = Vec::new();
            for effect in effects {
                if let Some(input) = self.carry_out(effect) {
                    refused.push(input);
                }
            }
            effects = Vec::new();
            for input in refused {
                effects.extend(self.core.handle(self.started.elapsed(), input));
            }
        }
    }

    fn carry_out(&mut self, effect: Effect<Message>) -> Option<Input<Message>> {
        match effect {
            Effect::Reply { to, result } => self.answer(to, &result),
            Effect::ToWorker { worker, id, room, command, must } => {
                let refused = self.to_worker(worker, ToWorker::Request { id, room, command }, must)?;
                return Some(Input::Answered { id, result: Err(refused) });
            }
            Effect::Load { room, from } => self.load(room, from),
            Effect::Append(event) => self.order(Order::Append(event)),
            Effect::Reregister(workers) => self.order(Order::Reregister(workers)),
            Effect::Notify { ec, notification } => {
                let request = EcRequest::Notification { notification };
                self.send(Subject::rpc(&StreamId::from(&ec)), Payload::encode(&request));
            }
            Effect::Superseded(theirs) => self.supersede(theirs),
        }
        None
    }

    fn to_worker(&self, worker: WorkerIndex, command: ToWorker, must: bool) -> Option<MediaError> {
        let slot = &self.workers[usize::from(worker.0)];
        let Some(link) = &slot.link else {
            return Some(MediaError::Unavailable { reason: "its SFU worker is down".into() });
        };
        match link.to.try_send(command) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Full(_)) => {
                if must {
                    // The log has decided and the worker does not hear: only a new worker can be right again.
                    let _ = slot.replace.send(link.generation);
                }
                Some(MediaError::Unavailable { reason: "the queue of its SFU worker is full".into() })
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Some(MediaError::Unavailable { reason: "its SFU worker is ending".into() })
            }
        }
    }

    fn slot_event(&mut self, from: FromSlot) {
        let FromSlot { worker, generation, event } = from;
        let slot = &mut self.workers[usize::from(worker.0)];
        match event {
            SlotEvent::Ready { udp, pid, to } => {
                slot.ready(generation, udp, pid, to);
                self.tell_pids();
                self.input(Input::WorkerReady { worker, generation });
            }
            SlotEvent::Died(reason) => {
                if slot.link.as_ref().is_some_and(|link| link.generation == generation) {
                    slot.link = None;
                    slot.pid = None;
                    self.tell_pids();
                }
                self.input(Input::WorkerDied { worker, generation, reason });
            }
            SlotEvent::Failed(_) | SlotEvent::Said(FromWorker::Ready { .. } | FromWorker::Pong { .. }) => {}
            SlotEvent::Said(FromWorker::Answer { id, result }) => self.input(Input::Answered { id, result }),
            SlotEvent::Said(FromWorker::Notification { room, notification }) => {
                self.input(Input::Notified { worker, generation, room, notification });
            }
        }
    }

    fn request(&mut self, message: Message) {
        match Payload(message.payload.clone()).decode::<EaRequest>() {
            Ok(request) => {
                let span = tracing::debug_span!("ea_request", ea = %self.id, room = tracing::field::Empty);
                if let EaRequest::OpenRoom { room, .. }
                | EaRequest::Media { room, .. }
                | EaRequest::RoomState { room, .. } = &request
                {
                    span.record("room", tracing::field::display(room));
                }
                span.in_scope(|| self.input(Input::Request { reply: message, request }));
            }
            Err(error) => {
                let reason = format!("no request to an EA: {error}");
                self.answer(message, &Err(RpcError::Malformed { reason }));
            }
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Announced(worker, generation) => {
                self.input(Input::WorkerAnnounced { worker, generation });
            }
            Report::Registered(incarnation) => self.input(Input::Registered(incarnation)),
            Report::Superseded(theirs) => self.supersede(theirs),
        }
    }

    fn supersede(&mut self, theirs: roomlog_bus::ids::Incarnation) {
        let error = EaError::Superseded { id: self.id.clone(), ours: self.core.incarnation(), theirs };
        tracing::error!(%error, "this EA ends");
        self.superseded = Some(error);
    }

    fn order(&self, order: Order) {
        if let Err(error) = self.orders.try_send(order) {
            tracing::error!(%error, "the journal has been away for so long that an event of this node is dropped");
        }
    }

    fn load(&mut self, room: RoomId, from: Version) {
        let journal = self.journal.clone();
        let turn = self.loads_at_once.clone();
        self.loads.spawn(async move {
            let stream = StreamId::from(&room);
            let read = async {
                let _turn = turn.acquire().await.ok()?;
                // Page by page: a room that has lived for days takes long to read, and what was read is not read again.
                let (mut commits, mut next, mut failures) = (Vec::new(), from, 0);
                while failures < LOAD_TRIES {
                    let error = match timeout(RPC_TIMEOUT, journal.read(&stream, next, LOAD_PAGE)).await {
                        Ok(Ok(page)) => {
                            let is_last = page.len() < LOAD_PAGE;
                            next = page.last().map_or(next, |last| last.last_version().next());
                            commits.extend(page);
                            if is_last {
                                return Some(commits);
                            }
                            continue;
                        }
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => format!("no answer within {RPC_TIMEOUT:?}"),
                    };
                    tracing::warn!(%stream, from = %next, error, "a room's stream was not read; trying again from there");
                    failures += 1;
                    tokio::time::sleep(LOAD_AGAIN).await;
                }
                None
            };
            let commits = read.await;
            (room, commits)
        });
    }

    fn heartbeat(&self) {
        let load = self.core.load();
        let heartbeat = Heartbeat {
            node: self.stream.clone(),
            incarnation: self.core.incarnation(),
            rooms: load.rooms,
            clients: load.clients,
            draining: load.draining,
        };
        self.send(Subject::heartbeat(&self.stream), Payload::encode(&heartbeat));
    }

    fn answer(&self, request: Message, result: &Result<EaAnswer, RpcError>) {
        if let Some(reply) = request.reply {
            self.send(reply, Payload::encode(result));
        }
    }

    fn send(&self, subject: Subject, payload: Payload) {
        let message = Message { subject, reply: None, headers: Headers::new(), payload: payload.0 };
        if let Err(error) = self.outbox.try_send(message) {
            tracing::warn!(%error, "the bus does not keep up: a message is dropped");
        }
    }

    fn tell_pids(&self) {
        let _ = self.pids.send(self.workers.iter().map(|w| w.pid).collect());
    }
}

/// Publishes what the agent says, in order.
async fn publish(bus: Arc<dyn Bus>, mut outgoing: mpsc::Receiver<Message>) {
    let mut away = false;
    while let Some(message) = outgoing.recv().await {
        match bus.publish(message).await {
            Ok(()) => away = false,
            Err(error) if !away => {
                away = true;
                tracing::warn!(%error, "messages are lost until the bus is back");
            }
            Err(_) => {}
        }
    }
}
