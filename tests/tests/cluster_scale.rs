//! An EC that owns thousands of rooms: how long until it serves again after a restart, and until another one serves its clients.
//!
//! A small size runs in CI; `ROOMLOG_SCALE_ROOMS` and `ROOMLOG_SCALE_EVENTS` (of one room) make it larger, `ROOMLOG_SCALE_NATS=3` puts
//! it on three servers with three replicas.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use roomlog_bus::{
    commit::{StreamId, Writer},
    env::Env,
    events::{Event, RoomClosed, RoomCreated, RoomOpened, RoomPlaced},
    ids::{EcId, Epoch, Incarnation, RoomId, ServiceId},
    journal::Journal,
    log::{Draft, Log},
};
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape},
    process::Held,
    returner::Returner,
};

/// Rooms with somebody in them, and clients in each.
const LIVE_ROOMS: usize = 40;
const CLIENTS: usize = 4;
/// Events of one commit of an idle room's past.
const EVENTS_A_COMMIT: usize = 10;
/// Rooms written at the same time.
const AT_ONCE: usize = 256;
/// Both promises.
const WITHIN: Duration = Duration::from_secs(3);

fn size(name: &str, default: usize) -> anyhow::Result<usize> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}={text}")))
}

/// Writes rooms of `ec` that had sessions and are closed: `events` each.
async fn idle_rooms(
    journal: &Arc<dyn Journal>,
    ec: &EcId,
    rooms: usize,
    events: usize,
) -> anyhow::Result<()> {
    let writer = Writer { node: StreamId::from(ec), incarnation: Incarnation(1) };
    let log = Log::new(journal.clone(), Env::system(), writer);
    stream::iter(0..rooms)
        .map(|room| {
            let (log, ec) = (log.clone(), ec.clone());
            async move {
                let id = StreamId::from(&RoomId::new(format!("idle-{room}"))?);
                let mut past: Vec<Event> = vec![
                    RoomCreated {
                        service: ServiceId::new("elsewhere")?,
                        name: format!("idle {room}"),
                        eapolicy: Default::default(),
                        metadata: Default::default(),
                    }
                    .into(),
                    RoomPlaced {
                        ec,
                        incarnation: Incarnation(1),
                        epoch: Epoch(1),
                        reason: "first-token".into(),
                    }
                    .into(),
                ];
                while past.len() < events {
                    past.extend([RoomOpened {}.into(), RoomClosed { reason: "empty".into() }.into()]);
                }
                let mut head = None;
                for part in past.chunks(EVENTS_A_COMMIT) {
                    let draft = Draft { epoch: Epoch(1), ..Draft::default() };
                    head = Some(log.append(id.clone(), head, draft, part).await?.head());
                }
                anyhow::Ok(())
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ec_of_many_rooms_is_back_soon_and_so_are_its_clients_elsewhere() -> anyhow::Result<()> {
    let (rooms, events) = (size("ROOMLOG_SCALE_ROOMS", 500)?, size("ROOMLOG_SCALE_EVENTS", 20)?);
    let nats = size("ROOMLOG_SCALE_NATS", 1)?;
    let shape = Shape { nats, nuves: 1, eas: vec![1], ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let origins: Vec<String> = cluster.nuves.iter().map(|n| n.origin.clone()).collect();
    let (first, second) = (EcId::new(&cluster.ecs[0].id)?, EcId::new(&cluster.ecs[1].id)?);

    let began = Instant::now();
    let journal = cluster.journal().await?;
    idle_rooms(&journal, &first, rooms, events).await?;
    let (wrote, commits) = (began.elapsed(), rooms * events.div_ceil(EVENTS_A_COMMIT));
    println!(
        "{rooms} rooms of {events} events written: {:.0} commits/s, {AT_ONCE} at a time, {nats} server(s)",
        commits as f64 / wrote.as_secs_f64()
    );

    let mut clients = Vec::new();
    for room in 0..LIVE_ROOMS {
        for client in 0..CLIENTS {
            let token = cluster.token(&format!("live-{room}"), &format!("u{client}")).await?;
            clients.push(Returner::join(origins.clone(), &token, &format!("u{client}")).await?);
        }
    }
    let mut hit = Vec::new();
    for client in clients {
        if cluster.owner(&client.room).await? == first.as_str() {
            hit.push(client);
        }
    }
    anyhow::ensure!(hit.len() >= CLIENTS * LIVE_ROOMS / 5, "rooms are spread over both ECs: {}", hit.len());

    // The second has folded all that the first owns; it takes over by asking each stream's leader for its head alone.
    let killed = Instant::now();
    cluster.ecs[0].kill().await;
    let all = eventually("everybody is back", Duration::from_secs(60), || async {
        hit.iter().all(|c| !c.life().resumed.is_empty()).then_some(())
    });
    all.await.with_context(|| cluster.said())?;
    let mut took: Vec<Duration> = hit.iter().map(|c| c.life().resumed[0].0 - killed).collect();
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    for client in &hit {
        anyhow::ensure!(cluster.owner(&client.room).await? == second.as_str(), "it is the second's now");
    }

    // The first starts again, with all those rooms its own: an idle one among them is opened by its next client.
    let restarted = Instant::now();
    cluster.ecs[0].start_again().await?;
    let serves = restarted.elapsed();
    let mib = |held: &Held| held.resident as f64 / (1024.0 * 1024.0);
    let (one, two) = (Held::of(cluster.ecs[0].pid())?, Held::of(cluster.ecs[1].pid())?);
    println!(
        "{rooms} rooms, {} events: {} clients back after {median:?} (median), {worst:?} (worst); restarted EC serves after \
         {serves:?}; {:.0} and {:.0} MiB",
        rooms * events,
        hit.len(),
        mib(&one),
        mib(&two)
    );
    assert!(worst < WITHIN && serves < WITHIN, "{worst:?} {serves:?}");
    Ok(())
}
