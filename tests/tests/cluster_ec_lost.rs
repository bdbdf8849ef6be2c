//! An EC dies: its rooms have a new owner, its clients resume there and are told exactly what they missed, and no packet notices.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context;
use roomlog_bus::{
    commit::StreamId,
    ids::{RoomId, Version},
    journal::read_all,
};
use roomlog_ec::notify::{Told, fold_and_tell};
use roomlog_projections::room::RoomState;
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape},
    native::{Kind, NativePeer, Publish},
    returner::Returner,
};

/// Rooms, and signalling-only clients in each.
const ROOMS: usize = 100;
const CLIENTS: usize = 4;
/// The promise.
const BACK_WITHIN: Duration = Duration::from_secs(3);

/// What the log says `client` was told since it came in: every notification, in order.
async fn told_by_the_log(
    journal: &dyn roomlog_bus::journal::Journal,
    returner: &Returner,
) -> anyhow::Result<Vec<(u64, String)>> {
    let stream = StreamId::from(&RoomId::new(&returner.room)?);
    let mut state = RoomState::default();
    let mut told = Vec::new();
    for commit in read_all(journal, &stream, Version(1)).await? {
        for told_one in fold_and_tell(&mut state, &commit)? {
            if let Told::Notification { client, method, data } = told_one
                && client.as_str() == returner.id
                && data["v"].as_u64().is_some_and(|v| v > returner.since)
            {
                told.push((data["v"].as_u64().unwrap_or_default(), method.to_owned()));
            }
        }
    }
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_of_a_killed_ec_go_on_elsewhere_and_nobody_misses_anything() -> anyhow::Result<()> {
    let Some(mut cluster) = Cluster::start(Shape { eas: vec![1], ..Shape::default() }).await? else {
        return Ok(());
    };
    let origins: Vec<String> = cluster.nuves.iter().map(|n| n.origin.clone()).collect();

    let live = cluster.token("live", "Ann").await?;
    let ann = NativePeer::join(&origins[0], &live, "Ann", Publish::BOTH).await?;
    let bob =
        NativePeer::join(&origins[0], &cluster.token("live", "Bob").await?, "Bob", Publish::BOTH).await?;
    let owner = cluster.owner(&ann.room).await?;
    let mut clients = Vec::new();
    for room in 0..ROOMS {
        for client in 0..CLIENTS {
            let user = format!("u{client}");
            let token = cluster.token_at(client % 2, &format!("r{room}"), &user).await?;
            clients.push(Returner::join(origins.clone(), &token, &user).await?);
        }
    }
    let mut owners = BTreeMap::new();
    for client in &clients {
        if !owners.contains_key(&client.room) {
            owners.insert(client.room.clone(), cluster.owner(&client.room).await?);
        }
    }
    let hit: Vec<&Returner> = clients.iter().filter(|c| owners[&c.room] == owner).collect();
    assert!(hit.len() >= CLIENTS * ROOMS / 5, "rooms are spread over both ECs: {}", hit.len());
    let producer = bob.producers()[&Kind::Video].clone();
    eventually("Ann decodes Bob", Duration::from_secs(10), || async {
        ann.received(&producer).is_some_and(|r| r.complete() > 30).then_some(())
    })
    .await?;

    let killed = Instant::now();
    let index = Cluster::index(&cluster.ecs, &owner);
    cluster.ecs[index].kill().await;
    let back = eventually("everybody is back", Duration::from_secs(15), || async {
        hit.iter().all(|c| !c.life().resumed.is_empty()).then_some(())
    })
    .await;
    if back.is_err() {
        let away = hit.iter().filter(|c| c.life().resumed.is_empty()).count();
        panic!("{away} of {} are not back\n{}", hit.len(), cluster.said());
    }
    let mut took: Vec<Duration> = hit.iter().map(|c| c.life().resumed[0].0 - killed).collect();
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    eventually("Ann and Bob are back", Duration::from_secs(10), || async {
        (ann.counts().resumed >= 1 && bob.counts().resumed >= 1).then_some(())
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let gap = ann
        .largest_gap_since(killed)
        .context("packets came")?
        .max(bob.largest_gap_since(killed).context("packets came")?);
    println!(
        "EC killed: {} clients of {} rooms back after {median:?} (median), {worst:?} (worst); largest RTP gap {gap:?}",
        hit.len(),
        hit.len() / CLIENTS
    );
    assert!(worst < BACK_WITHIN, "{worst:?}");
    assert!(gap < Duration::from_millis(200), "{gap:?}");
    assert_eq!((ann.counts().rebuilt, bob.counts().rebuilt), (0, 0), "media was not touched");

    // Everybody else stayed where they were.
    for client in clients.iter().filter(|c| owners[&c.room] != owner) {
        assert!(client.life().resumed.is_empty());
    }
    // One more event in every room, so that a notification lost at the seam would show as a hole before it.
    let journal = cluster.journal().await?;
    for client in &clients {
        assert_eq!(client.life().ended, None);
    }
    for room in owners.keys() {
        cluster.agree(room, Duration::from_secs(5)).await?;
    }
    for client in &clients {
        let expected = told_by_the_log(journal.as_ref(), client).await?;
        eventually("it was told all", Duration::from_secs(2), || async {
            (client.life().told.len() >= expected.len()).then_some(())
        })
        .await
        .with_context(|| format!("{:?}\n{expected:?}", client.life().told))?;
        assert_eq!(client.life().told, expected, "told exactly what the log says, once and in order");
    }
    cluster.log_is_clean().await
}
