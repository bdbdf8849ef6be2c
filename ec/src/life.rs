//! One incarnation of an EC: from its registration until it is stopped, drained, superseded, or called lost by others.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use governor::{Quota, RateLimiter};
use roomlog_bus::{
    bus::Bus,
    commit::{Payload, StreamId, StreamKind},
    env::Env,
    ids::{Incarnation, RoomId},
    journal::Journal,
    rpc::Heartbeat,
    subject::{Pattern, Subject},
    time::Timestamp,
};
use roomlog_projections::{
    archive::Archive,
    directory::{LiveDirectory, Placed},
    membership::{MediaProbe, Observer, Registration, Watch, register, stopped},
    node::{NodePhase, NodeState},
    retention::{Retention, to_compact},
};
use tokio::{
    net::UdpSocket,
    sync::{broadcast::error::RecvError, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    EcError, Shared,
    credentials::Verifier,
    eas::Eas,
    leave,
    metrics::Metrics,
    room::RoomMessage,
    rooms::Rooms,
    rpc::{beat, serve},
    settings::EcSettings,
};

/// Between two tries to register after having been called lost.
pub(crate) const REGISTER_AGAIN: Duration = Duration::from_secs(1);
/// The log is asked for a sign of life this often, and given this long to answer.
const ROUND_TRIP_EVERY: Duration = Duration::from_secs(1);
/// How often a draining EC looks whether it is empty.
const DRAIN_LOOK: Duration = Duration::from_millis(250);
/// Workers of a silent EA are given this long to answer: many times a round trip, little beside the second between two questions.
const MEDIA_ANSWER: Duration = Duration::from_millis(300);
/// How often each is asked within that time: packets get lost.
const MEDIA_ASKED: u32 = 3;

/// Why an incarnation ended.
pub(crate) enum End {
    /// The process was told to stop.
    Stopped,
    /// Draining is over.
    Drained,
    /// Others have called it lost.
    Lost,
    /// Another process has registered under the same id.
    Superseded(Incarnation),
    /// The log was repaired: what the rooms here have folded may not be in it.
    Repaired,
}

/// One incarnation.
pub(crate) struct Life {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    /// Ends the observer and the watch.
    stop: watch::Sender<bool>,
}

impl Life {
    /// Registers and begins to serve.
    pub(crate) async fn begin(
        settings: EcSettings,
        bus: Arc<dyn Bus>,
        journal: Arc<dyn Journal>,
        directory: LiveDirectory,
        env: Env,
        metrics: Arc<Metrics>,
        probe: MediaProbe,
    ) -> Result<Self, EcError> {
        let node = StreamId::from(&settings.id);
        let registration = Registration { address: settings.address.clone(), ..Registration::default() };
        let log = register(&node, &journal, &env, registration).await?;
        let incarnation = log.writer().incarnation;
        let (stop, stopped) = watch::channel(false);
        let registered: Vec<_> = {
            let directory = directory.read();
            directory.nodes.iter().map(|(node, state)| (node.clone(), state.incarnation)).collect()
        };
        let (observer, listening) =
            Observer::start(node.clone(), bus.clone(), registered, settings.liveness, stopped.clone())
                .await?;
        let archive = settings.archive.clone().map(|folder| Arc::new(Archive::new(folder, node.to_string())));
        let retention = Retention::new(journal, archive);
        let per_second = NonZeroU32::new(settings.connections_per_second).unwrap_or(NonZeroU32::MIN);
        let shared = Arc::new(Shared {
            connections: RateLimiter::direct(Quota::per_second(per_second)),
            per_address: Default::default(),
            eas: Eas::new(directory.clone(), observer.clone()),
            rooms: Rooms::default(),
            verifier: Verifier::default(),
            metrics,
            settings,
            bus: bus.clone(),
            log: log.clone(),
            directory: directory.clone(),
            suspended: false.into(),
            retention,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = listening.await;
        });
        tasks.spawn(hear(shared.clone()).await?);
        let mut requests = bus.subscribe(Subject::rpc(&node).into(), None).await?;
        let serving = shared.clone();
        tasks.spawn(async move {
            while let Some(message) = requests.next().await {
                serve(&serving, message);
            }
        });
        let beating = shared.clone();
        tasks.spawn(async move { beat(&beating, node).await });
        let watch = Watch {
            kind: StreamKind::Ea,
            observer,
            log,
            directory: directory.clone(),
            bus,
            media_probe: Some(probe),
        };
        tasks.spawn(watch.run(stopped, None));
        tasks.spawn(look_at_placements(shared.clone()));
        tasks.spawn(confirm_log(shared.clone()));
        tasks.spawn(compact_closed(shared.clone()));
        tasks.spawn(follow_ownership(shared.clone(), incarnation));
        Ok(Self { shared, tasks, stop })
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Lives until something ends it.
    pub(crate) async fn lived(&self, stopping: &mut watch::Receiver<bool>) -> End {
        let shared = &self.shared;
        let (node, ours) = (shared.node(), shared.log.writer().incarnation);
        let mut changes = shared.directory.node_changes();
        let mut rebuilt = shared.directory.rebuilt();
        let mut look = interval(DRAIN_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (incarnation, phase, deadline) = {
                let directory = shared.directory.read();
                directory.nodes.get(&node).map_or((ours, NodePhase::Unknown, None), |state| {
                    (state.incarnation, state.phase, state.deadline)
                })
            };
            if incarnation > ours {
                return End::Superseded(incarnation);
            }
            // Before this view has reached our registration it speaks of an earlier start.
            if incarnation == ours {
                match phase {
                    NodePhase::Lost => return End::Lost,
                    NodePhase::Draining => {
                        let now: Timestamp = shared.log.env().now();
                        if shared.rooms.len() == 0 || deadline.is_some_and(|deadline| deadline <= now) {
                            return End::Drained;
                        }
                    }
                    NodePhase::Unknown | NodePhase::Registered | NodePhase::Left => {}
                }
            }
            tokio::select! {
                biased;
                () = stopped(stopping) => return End::Stopped,
                _ = rebuilt.changed() => return End::Repaired,
                _ = changes.changed() => {}
                _ = look.tick(), if phase == NodePhase::Draining => {}
            }
        }
    }

    /// Ends every task; the rooms' sockets are closed. `goodbye` says in the log that this start has ended as told.
    pub(crate) async fn end(&mut self, goodbye: bool) {
        if goodbye {
            leave(&self.shared.log).await;
        }
        let _ = self.stop.send(true);
        self.tasks.shutdown().await;
        self.shared.rooms.clear();
    }
}

/// Hears what EAs say of their load.
async fn hear(shared: Arc<Shared>) -> Result<impl Future<Output = ()>, EcError> {
    let mut heartbeats = shared.bus.subscribe(Pattern::heartbeats(), None).await?;
    Ok(async move {
        while let Some(message) = heartbeats.next().await {
            match Payload(message.payload).decode::<Heartbeat>() {
                Ok(heartbeat) => shared.eas.heard(&heartbeat),
                Err(error) => {
                    tracing::warn!(subject = %message.subject, %error, "heartbeat does not read")
                }
            }
        }
    })
}

/// Tells the rooms whenever a node or a worker began or ended.
async fn look_at_placements(shared: Arc<Shared>) {
    let mut changes = shared.directory.node_changes();
    while changes.changed().await.is_ok() {
        shared.rooms.broadcast(|| RoomMessage::CheckPlacement);
    }
}

/// Takes up rooms that are given to this EC, at its start and later, and lets go of those given to others.
async fn follow_ownership(shared: Arc<Shared>, ours: Incarnation) {
    let mut placed = shared.directory.placed();
    let mut all = true;
    let mut look = interval(shared.settings.inventory_every);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look.reset();
    loop {
        if all {
            all = false;
            let open = open_rooms(&shared);
            shared.rooms.broadcast(|| RoomMessage::CheckOwner);
            for room in open {
                take_up(&shared, &room);
            }
        }
        let next = tokio::select! {
            biased;
            next = placed.recv() => next,
            _ = look.tick() => {
                // An append whose outcome stayed unknown may have landed when its room had ended already: somebody is in it by the log,
                // and nobody else would notice.
                for room in open_rooms(&shared).into_iter().filter(|room| !shared.rooms.runs(room)) {
                    tracing::warn!(%room, "somebody is in a room that does not run here: it is taken up");
                    take_up(&shared, &room);
                }
                continue;
            }
        };
        match next {
            Ok(Placed { room, owner }) => {
                if owner.ec == shared.settings.id && owner.incarnation <= ours {
                    // An idle room is read when somebody comes; one with clients has a resume time to keep.
                    let open = shared.directory.read().rooms.get(&room).is_some_and(|room| room.open);
                    if open {
                        take_up(&shared, &room);
                    }
                } else if shared.rooms.runs(&room)
                    && shared.rooms.send(&shared, &room, RoomMessage::CheckOwner).is_err()
                {
                    all = true;
                }
            }
            Err(RecvError::Lagged(_)) => all = true,
            Err(RecvError::Closed) => return,
        }
    }
}

/// The rooms of this EC in which somebody is, by the log.
fn open_rooms(shared: &Shared) -> Vec<RoomId> {
    let directory = shared.directory.read();
    let own = directory.rooms.iter().filter(|(_, room)| {
        room.open && room.owner.as_ref().is_some_and(|owner| owner.ec == shared.settings.id)
    });
    own.map(|(id, _)| id.clone()).collect()
}

fn take_up(shared: &Arc<Shared>, room: &RoomId) {
    // A task that runs already may have seen the room with another EC: it reads whose it is.
    if let Err(refusal) = shared.rooms.send(shared, room, RoomMessage::CheckOwner) {
        tracing::warn!(%room, %refusal, "room not taken up");
    }
}

/// Has rooms compacted that have been closed for long.
async fn compact_closed(shared: Arc<Shared>) {
    let mut every = interval(shared.settings.retention.every);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let due = {
            let (settings, now) = (&shared.settings, shared.log.env().now());
            to_compact(&shared.directory.read(), &settings.id, now, &settings.retention)
        };
        for room in due {
            // A room that is busy is not one that has been closed for long.
            let _ = shared.rooms.send(&shared, &room, RoomMessage::Compact);
        }
    }
}

/// Asks the log for a sign of life. Without one for too long the rooms may have been given to others: the clients are told, and those
/// that know ask NUVE.
async fn confirm_log(shared: Arc<Shared>) {
    let node = shared.node();
    let mut every = interval(ROUND_TRIP_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut confirmed = Instant::now();
    loop {
        every.tick().await;
        let asked = Instant::now();
        match timeout(ROUND_TRIP_EVERY, shared.log.journal().head(&node)).await {
            Ok(Ok(_)) => {
                confirmed = asked;
                if shared.suspended.swap(false, Ordering::Relaxed) {
                    tracing::warn!("the log is back");
                    shared.rooms.broadcast(|| RoomMessage::CheckOwner);
                }
            }
            Ok(Err(_)) | Err(_) => {
                let silent = confirmed.elapsed();
                if silent >= shared.settings.suspend_after && !shared.suspended.swap(true, Ordering::Relaxed)
                {
                    tracing::error!(
                        ?silent,
                        "the log is not reached: rooms are read-only, their clients are told"
                    );
                    shared.rooms.broadcast(|| RoomMessage::Suspended);
                }
            }
        }
    }
}

/// Asks the workers of an EA for an answer to a binding request, which they give to whoever knows the password it registered.
pub(crate) fn media_probe(env: Env) -> MediaProbe {
    Arc::new(move |node: StreamId, state: NodeState| {
        let env = env.clone();
        Box::pin(async move {
            let Some(password) = state.probe.clone() else { return false };
            let workers: Vec<SocketAddr> = state.address.split(',').filter_map(|a| a.parse().ok()).collect();
            let answered = match ask_workers(&env, &workers, &password).await {
                Ok(answered) => answered,
                Err(error) => {
                    tracing::warn!(%node, %error, "its workers could not be asked");
                    false
                }
            };
            tracing::info!(%node, answered, "an EA that is not heard: its workers were asked");
            answered
        })
    })
}

async fn ask_workers(env: &Env, workers: &[SocketAddr], password: &str) -> std::io::Result<bool> {
    let mut transaction = [0; 12];
    env.draw(|rng| rng.fill_bytes(&mut transaction));
    let request = roomlog_bus::stun::probe(&transaction, password);
    let from: IpAddr = match workers.first().map(|worker| worker.ip()) {
        Some(IpAddr::V4(ip)) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V6(ip)) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        Some(IpAddr::V4(_)) | None => Ipv4Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((from, 0)).await?;
    for _ in 0..MEDIA_ASKED {
        for worker in workers {
            let _ = socket.send_to(&request, worker).await;
        }
        let answer = async {
            let mut bytes = [0; 512];
            loop {
                // A refused port is an error of the socket: the next worker may still answer.
                if let Ok((length, _)) = socket.recv_from(&mut bytes).await
                    && roomlog_bus::stun::is_answer(&bytes[..length], &transaction)
                {
                    return;
                }
            }
        };
        if timeout(MEDIA_ANSWER / MEDIA_ASKED, answer).await.is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}
