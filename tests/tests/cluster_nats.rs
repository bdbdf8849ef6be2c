//! Three NATS servers under a call: the leader of the room's stream is killed, then all three are cut off. Media flows, what was acknowledged is
//! in the log, and everything agrees within five seconds. `ROOMLOG_NATS_CUT_S=30` is the long form.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use roomlog_bus::{
    commit::{StreamId, StreamKind},
    events::Event,
    ids::{RoomId, Version},
    journal::{Journal, read_all},
};
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape},
    native::{Kind, NativePeer, Publish},
    returner::Returner,
};
use serde_json::{Value, json};

/// How long the servers are cut off: past the 8 s after which ECs say `suspended`, and past the 10 s after which whoever is silent would be lost.
const CUT_S: u64 = 12;
/// The cluster's default.
const PARTITIONS: u16 = 4;
/// The promises.
const AGREE_WITHIN: Duration = Duration::from_secs(5);
const GAP: Duration = Duration::from_millis(200);

/// What was acknowledged, and what was refused in words.
#[derive(Default)]
struct Written {
    acknowledged: Vec<(Instant, String)>,
    refused: Vec<String>,
}

/// Changes a name again and again until it is told to stop.
async fn write(peer: Arc<NativePeer>, stop: Arc<AtomicBool>, written: Arc<Mutex<Written>>) {
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("Ann {n}");
        let answer = peer.ask("changeDisplayName", json!({ "displayName": name })).await;
        {
            let mut written = written.lock().expect("no panic inside");
            match answer {
                Ok(_) => written.acknowledged.push((Instant::now(), name)),
                Err(error) => written.refused.push(error.to_string()),
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The server that leads a partition's stream.
async fn leader_of(cluster: &Cluster, partition: u16) -> anyhow::Result<usize> {
    let options = async_nats::ConnectOptions::new().request_timeout(Some(Duration::from_secs(1)));
    let servers: Vec<String> = cluster.nats.iter().map(|server| server.url()).collect();
    let client = options.connect(servers).await?;
    let asked = client.request(format!("$JS.API.STREAM.INFO.ROOMLOG_{partition}"), "".into()).await?;
    let info: Value = serde_json::from_slice(&asked.payload)?;
    let name = info["cluster"]["leader"].as_str().context("a leader")?;
    name.strip_prefix('n').and_then(|number| number.parse().ok()).context("servers are n0, n1, n2")
}

/// The server that leads the stream a room is in.
async fn leader(cluster: &Cluster, room: &str) -> anyhow::Result<usize> {
    leader_of(cluster, StreamId::new(StreamKind::Room, room)?.partition(PARTITIONS)).await
}

/// Waits until every stream has a leader: NATS is back. An election takes NATS 4 to 9 s, more where votes are split or the machine is slow.
async fn led(cluster: &Cluster) -> anyhow::Result<()> {
    for partition in 0..PARTITIONS {
        eventually("the stream has a leader", Duration::from_secs(40), || async {
            leader_of(cluster, partition).await.ok()
        })
        .await?;
    }
    Ok(())
}

/// Every name that the log has been given.
async fn names(journal: &dyn Journal, room: &str) -> anyhow::Result<BTreeSet<String>> {
    let commits = read_all(journal, &StreamId::from(&RoomId::new(room)?), Version(1)).await?;
    let events = commits.iter().flat_map(|commit| &commit.events);
    Ok(events
        .filter_map(|raw| match Event::decode(raw) {
            Ok(Event::DisplayNameChanged(changed)) => Some(changed.display_name),
            _ => None,
        })
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_and_servers_that_are_cut_off_cost_no_packet_and_nothing_acknowledged()
-> anyhow::Result<()> {
    let shape = Shape { nats: 3, nuves: 1, eas: vec![1], ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let origins: Vec<String> = cluster.nuves.iter().map(|n| n.origin.clone()).collect();
    let ann = NativePeer::join(&origins[0], &cluster.token("r", "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob = NativePeer::join(&origins[0], &cluster.token("r", "Bob").await?, "Bob", Publish::BOTH).await?;
    let mut others = Vec::new();
    for room in 0..8 {
        let token = cluster.token(&format!("other-{room}"), "Cid").await?;
        others.push(Returner::join(origins.clone(), &token, "Cid").await?);
    }
    let producer = bob.producers()[&Kind::Video].clone();
    eventually("Ann decodes Bob", Duration::from_secs(15), || async {
        ann.received(&producer).is_some_and(|r| r.complete() > 10).then_some(())
    })
    .await?;
    let ann = Arc::new(ann);
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Written>>::default());
    let writing = tokio::spawn(write(ann.clone(), stop.clone(), written.clone()));
    let acknowledged_since = |mark: Instant| {
        let written = written.lock().expect("no panic inside");
        written.acknowledged.iter().map(|(at, _)| *at).find(|at| *at > mark)
    };
    let promises = async |cluster: &Cluster, mark: Instant| -> anyhow::Result<Duration> {
        let mut rooms: Vec<&str> = others.iter().map(|other| other.room.as_str()).collect();
        rooms.push(&ann.room);
        for room in rooms {
            cluster.agree(room, AGREE_WITHIN).await.with_context(|| cluster.said())?;
        }
        let gap = ann.largest_gap_since(mark).context("packets came")?;
        assert!(gap < GAP, "{gap:?}");
        assert_eq!((ann.counts().rebuilt, bob.counts().rebuilt), (0, 0), "media was not touched");
        for other in &others {
            assert_eq!(other.life().ended, None);
        }
        Ok(gap)
    };

    let began = Instant::now();
    let first = leader(&cluster, &ann.room).await?;
    cluster.nats[first].kill();
    let killed = Instant::now();
    // The first after it may have been answered before the server was gone.
    tokio::time::sleep(Duration::from_millis(500)).await;
    eventually("names are changed again", Duration::from_secs(40), || async {
        acknowledged_since(killed + Duration::from_millis(500))
    })
    .await
    .with_context(|| cluster.said())?;
    let again = killed.elapsed();
    led(&cluster).await?;
    let agreed = Instant::now();
    let gap = promises(&cluster, began).await?;
    println!(
        "leader killed: written again after {again:?}, agreed {:?} later, largest gap {gap:?}",
        agreed.elapsed()
    );
    cluster.nats[first].start_again();
    tokio::time::sleep(Duration::from_secs(2)).await;

    let cut = Duration::from_secs(std::env::var("ROOMLOG_NATS_CUT_S").map_or(Ok(CUT_S), |s| s.parse())?);
    let began = Instant::now();
    cluster.nats.iter().for_each(|server| server.pause());
    tokio::time::sleep(cut).await;
    cluster.nats.iter().for_each(|server| server.resume());
    let back = Instant::now();
    eventually("names are changed again", Duration::from_secs(40), || async { acknowledged_since(back) })
        .await
        .with_context(|| cluster.said())?;
    let again = back.elapsed();
    led(&cluster).await?;
    let back = Instant::now();
    let gap = promises(&cluster, began).await?;
    let agreed = back.elapsed();
    println!(
        "NATS cut off for {cut:?}: written again after {again:?}, agreed after {agreed:?}, largest gap {gap:?}"
    );
    assert!(agreed < AGREE_WITHIN, "{agreed:?}");

    stop.store(true, Ordering::Relaxed);
    writing.await?;
    let journal = cluster.journal().await?;
    let names = names(journal.as_ref(), &ann.room).await?;
    let Written { acknowledged, refused } = std::mem::take(&mut *written.lock().expect("no panic inside"));
    println!("{} names acknowledged and in the log, {} refused", acknowledged.len(), refused.len());
    let lost: Vec<_> = acknowledged.iter().filter(|(_, name)| !names.contains(name)).collect();
    assert!(lost.is_empty(), "acknowledged and not in the log: {lost:?}");
    assert!(refused.iter().all(|error| error.contains(" 503 ")), "{refused:?}");
    for kind in [StreamKind::Ec, StreamKind::Ea] {
        for (node, _) in journal.streams(kind).await? {
            let commits = read_all(journal.as_ref(), &node, Version(1)).await?;
            let lost = commits.iter().flat_map(|c| &c.events).any(|e| &*e.kind == "NodeLost");
            assert!(!lost, "{node} was called lost");
        }
    }
    cluster.log_is_clean().await
}
