//! An EA's process dies and its workers live on: the next process takes them over, and if none comes they end.

use std::time::{Duration, Instant};

use anyhow::Context;
use roomlog_bus::{commit::StreamId, ids::RoomId, ids::Version, journal::read_all};
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape, signal},
    native::{Kind, NativePeer, Publish},
    process::{Up, workers_on},
};

/// For a machine that is slow and busy.
const PATIENCE: Duration = Duration::from_secs(40);
/// Packets come every 20 to 33 ms, from peers in this process; the worker forwards them as if nothing had happened.
const GAP: Duration = Duration::from_millis(200);
/// A machine that stands still lets packets wait as well. One of so many restarts falls into a time when it does not.
const RESTARTS: u64 = 3;

async fn both_decode(ann: &NativePeer, bob: &NativePeer, mark: Instant) -> anyhow::Result<()> {
    ann.decodes(&bob.id, &[Kind::Video, Kind::Audio], 5, mark, PATIENCE).await?;
    bob.decodes(&ann.id, &[Kind::Video, Kind::Audio], 5, mark, PATIENCE).await?;
    Ok(())
}

async fn kinds_of_events(cluster: &Cluster, stream: StreamId) -> anyhow::Result<Vec<String>> {
    let journal = cluster.journal().await?;
    let commits = read_all(journal.as_ref(), &stream, Version(1)).await?;
    Ok(commits.iter().flat_map(|c| &c.events).map(|event| event.kind.to_string()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_do_not_notice_that_the_process_of_their_ea_was_killed_and_started_again() -> anyhow::Result<()>
{
    let shape = Shape { ecs: 1, nuves: 1, eas: vec![1, 1], ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let origin = cluster.nuves[0].origin.clone();
    let began = Instant::now();
    let ann = NativePeer::join(&origin, &cluster.token("call", "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob = NativePeer::join(&origin, &cluster.token("call", "Bob").await?, "Bob", Publish::BOTH).await?;
    both_decode(&ann, &bob, began).await?;
    let before = cluster.agree(&ann.room, PATIENCE).await?["log"]["placements"].clone();
    let carrier = before.as_object().context("placements")?.keys().next().context("a placement")?;
    let ea = Cluster::index(&cluster.eas, carrier);
    let workers = cluster.eas[ea].workers();
    assert_eq!(workers.len(), 1);

    let mut gaps = Vec::new();
    for restart in 1..=RESTARTS {
        let killed = Instant::now();
        cluster.eas[ea].kill().await;
        cluster.eas[ea].start_again().await?;
        let served = killed.elapsed();
        let states = cluster.agree(&ann.room, PATIENCE).await.with_context(|| cluster.said())?;
        let gap = ann.largest_gap_since(killed).max(bob.largest_gap_since(killed)).context("packets came")?;
        println!("EA killed alone, serves again after {served:?}: largest RTP gap {gap:?}");
        assert_eq!(states["log"]["placements"], before, "nothing has moved: {}", cluster.said());
        assert_eq!(cluster.eas[ea].workers(), workers, "the worker is the same process");
        assert_eq!((ann.counts().rebuilt, bob.counts().rebuilt), (0, 0));
        gaps.push(gap);
        if gap < GAP {
            break;
        }
        println!("the machine stood still? {restart} of {RESTARTS}");
    }
    assert!(gaps.iter().any(|gap| *gap < GAP), "packets waited at each restart: {gaps:?}");

    // The worker is served as before: pausing, joining, sending, leaving.
    ann.mute(Kind::Video, true).await?;
    ann.mute(Kind::Video, false).await?;
    let came = Instant::now();
    let cid = NativePeer::join(&origin, &cluster.token("call", "Cid").await?, "Cid", Publish::BOTH).await?;
    cid.decodes(&ann.id, &[Kind::Video, Kind::Audio], 5, came, PATIENCE).await?;
    ann.decodes(&cid.id, &[Kind::Video, Kind::Audio], 5, came, PATIENCE).await?;
    cid.leave().await;
    let states = cluster.agree(&ann.room, PATIENCE).await?;
    assert_eq!(states["log"]["clients"].as_object().map(serde_json::Map::len), Some(2));
    let room = StreamId::from(&RoomId::new(&ann.room)?);
    assert!(!kinds_of_events(&cluster, room.clone()).await?.iter().any(|kind| kind == "MediaMoved"));
    assert!(
        !kinds_of_events(&cluster, format!("ea.{carrier}").parse()?)
            .await?
            .iter()
            .any(|kind| kind == "NodeLost")
    );

    // It is no child of who serves it, and its death is noticed all the same.
    let killed = Instant::now();
    signal("-KILL", &workers)?;
    eventually("both have built their media anew", PATIENCE, || async {
        (ann.counts().rebuilt >= 1 && bob.counts().rebuilt >= 1).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    both_decode(&ann, &bob, killed).await?;
    println!("the adopted worker killed: both decode again after {:?}", killed.elapsed());
    cluster.agree(&ann.room, PATIENCE).await?;
    let next = eventually("another worker runs", PATIENCE, || async {
        Some(cluster.eas[ea].workers()).filter(|next| next.len() == 1 && *next != workers)
    })
    .await?;

    // Told to end, an EA ends its workers, old and new.
    assert!(cluster.eas[ea].terminate().await?.success());
    assert!(workers_on(cluster.eas[ea].data()).is_empty(), "{next:?} ended with it");
    cluster.log_is_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_when_no_process_of_their_ea_comes_in_time() -> anyhow::Result<()> {
    const WITHIN: Duration = Duration::from_millis(1_500);
    let flags = vec!["--adopt-ms".to_owned(), WITHIN.as_millis().to_string()];
    let shape = Shape { ecs: 1, nuves: 1, eas: vec![2], flags, ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let ann = NativePeer::join(
        &cluster.nuves[0].origin,
        &cluster.token("call", "Ann").await?,
        "Ann",
        Publish::BOTH,
    )
    .await?;
    let workers = cluster.eas[0].workers();
    assert_eq!(workers.len(), 2);
    let killed = Instant::now();
    cluster.eas[0].kill().await;
    assert_eq!(cluster.eas[0].workers(), workers, "they go on");
    eventually("the workers have ended", PATIENCE, || async {
        cluster.eas[0].workers().is_empty().then_some(())
    })
    .await?;
    println!("left alone, with {WITHIN:?} to wait: ended after {:?}", killed.elapsed());
    assert!(killed.elapsed() >= WITHIN);
    assert_eq!(std::fs::read_dir(cluster.eas[0].data().join("workers"))?.count(), 0, "and nothing is left");

    // Too late is not too late for others: the next process begins with new ones, and the call goes on there.
    cluster.eas[0].start_again().await?;
    eventually("the media is built anew", PATIENCE, || async { (ann.counts().rebuilt >= 1).then_some(()) })
        .await
        .with_context(|| cluster.said())?;
    cluster.agree(&ann.room, PATIENCE).await?;
    cluster.log_is_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_while_everything_but_its_worker_is_killed_and_started_again() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let flags = ["--workers", "1", "--ip-per-s", "100000"];
    let up = Up::start(data.path(), &flags).await?;
    let origin = up.origin.clone();
    let address = origin.trim_start_matches("http://").to_owned();
    let began = Instant::now();
    let ann = NativePeer::join(&origin, &up.token("call", "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob = NativePeer::join(&origin, &up.token("call", "Bob").await?, "Bob", Publish::BOTH).await?;
    both_decode(&ann, &bob, began).await?;
    let workers = up.workers();
    up.kill_alone().await;
    let up = Up::start(data.path(), &[&flags[..], &["--listen", &address]].concat()).await?;
    eventually("both have come back", PATIENCE, || async {
        (ann.counts().resumed >= 1 && bob.counts().resumed >= 1).then_some(())
    })
    .await?;
    assert_eq!(up.workers(), workers, "the worker is the same process");
    let came = Instant::now();
    let cid = NativePeer::join(&origin, &up.token("call", "Cid").await?, "Cid", Publish::NOTHING).await?;
    cid.decodes(&ann.id, &[Kind::Video, Kind::Audio], 5, came, PATIENCE).await?;
    assert_eq!((ann.counts().rebuilt, bob.counts().rebuilt), (0, 0));
    up.stop().await
}
