//! ECs that stand still or are cut off: fenced, let go of, and never heard of again in the log.

use std::time::{Duration, Instant};

use anyhow::Context;
use roomlog_bus::{
    commit::{Commit, StreamId},
    ids::{RoomId, Version},
    journal::read_all,
    subject::Pattern,
};
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape},
    native::{Kind, NativePeer, Publish},
    returner::Returner,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_ec_that_stood_still_for_long_is_fenced_and_calls_nobody_lost() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start(Shape { eas: vec![1, 1], ..Shape::default() }).await? else {
        return Ok(());
    };
    let origins: Vec<String> = cluster.nuves.iter().map(|n| n.origin.clone()).collect();
    let ann = NativePeer::join(&origins[0], &cluster.token("r", "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob = Returner::join(origins.clone(), &cluster.token("r", "Bob").await?, "Bob").await?;
    let stopped = cluster.owner(&ann.room).await?;
    let index = Cluster::index(&cluster.ecs, &stopped);
    let mut subscriber =
        cluster.connection().await?.bus().subscribe(Pattern::new("roomlog.ev.>")?, None).await?;

    let since = Instant::now();
    cluster.ecs[index].pause()?;
    // Asked while it stands still: its answer, if it ever comes, must not be a fact.
    let asked = ann.ask("changeDisplayName", serde_json::json!({ "displayName": "Late" }));
    let _ = tokio::time::timeout(Duration::from_millis(200), asked).await;
    eventually("the room has another owner", Duration::from_secs(16), || async {
        (cluster.owner(&ann.room).await.ok()? != stopped).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    println!("EC stopped: its room has another owner after {:?}", since.elapsed());
    assert!(since.elapsed() > Duration::from_secs(9), "silence alone counts after ten seconds only");
    tokio::time::sleep(Duration::from_secs(20).saturating_sub(since.elapsed())).await;
    while tokio::time::timeout(Duration::from_millis(1), subscriber.next()).await.is_ok() {}
    cluster.ecs[index].resume()?;

    eventually("both are back at the new owner", Duration::from_secs(20), || async {
        let at_new = bob.life().resumed.last().is_some_and(|(_, ec)| *ec != stopped);
        (at_new && ann.counts().resumed >= 1).then_some(())
    })
    .await
    .with_context(|| format!("{:?} {:?}\n{}", bob.life(), ann.counts(), cluster.said()))?;
    eventually("it has registered again", Duration::from_secs(10), || async {
        let journal = cluster.journal().await.ok()?;
        let stream: StreamId = format!("ec.{stopped}").parse().ok()?;
        let commits = read_all(journal.as_ref(), &stream, Version(1)).await.ok()?;
        let registered = commits.iter().flat_map(|c| &c.events).filter(|e| &*e.kind == "NodeRegistered");
        (registered.count() == 2).then_some(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // What was published since it went on: nothing of its own about the room, and nobody called lost.
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(50), subscriber.next()).await {
        let commit = Commit::decode(&message.payload)?;
        let by_it = commit.writer.node.to_string() == format!("ec.{stopped}");
        assert!(
            !(by_it && commit.stream == StreamId::from(&RoomId::new(&ann.room)?)),
            "a late write of the old owner: {commit:?}"
        );
        assert!(commit.events.iter().all(|e| &*e.kind != "NodeLost"), "{commit:?}");
    }
    cluster.agree(&ann.room, Duration::from_secs(5)).await?;
    assert_eq!(ann.counts().rebuilt, 0, "media was not touched");
    cluster.log_is_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_media_flows_and_afterwards_all_agree() -> anyhow::Result<()> {
    let Some(mut cluster) = Cluster::start(Shape { eas: vec![1], ..Shape::default() }).await? else {
        return Ok(());
    };
    let origins: Vec<String> = cluster.nuves.iter().map(|n| n.origin.clone()).collect();
    let ann = NativePeer::join(&origins[0], &cluster.token("r", "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob = NativePeer::join(&origins[0], &cluster.token("r", "Bob").await?, "Bob", Publish::BOTH).await?;
    let cid = Returner::join(origins.clone(), &cluster.token("r", "Cid").await?, "Cid").await?;
    let producer = bob.producers()[&Kind::Video].clone();
    eventually("Ann decodes Bob", Duration::from_secs(10), || async {
        ann.received(&producer).is_some_and(|r| r.complete() > 10).then_some(())
    })
    .await?;
    let before = cluster.agree(&ann.room, Duration::from_secs(5)).await?["log"].clone();

    let away = Instant::now();
    cluster.nats[0].kill();
    // State-changing signalling gets a clear, retryable error.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let refused = ann.ask("changeDisplayName", serde_json::json!({ "displayName": "Anna" })).await;
    let refused = refused.expect_err("nothing can be written now").to_string();
    assert!(refused.contains(" 503 ") && refused.contains("try again"), "{refused}");
    eventually("the clients are told", Duration::from_secs(15), || async {
        (cid.life().suspended > 0).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    tokio::time::sleep(Duration::from_secs(14).saturating_sub(away.elapsed())).await;
    cluster.nats[0].start_again();
    let back = Instant::now();
    let after = cluster.agree(&ann.room, Duration::from_secs(10)).await?;
    println!("NATS away for {:?}: all agree {:?} after its return", back - away, back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    assert_eq!(after["log"]["placements"], before["placements"], "nothing has moved");
    assert_eq!(after["log"]["clients"].as_object().map(|c| c.len()), Some(3), "nobody was lost");
    let gap = ann.largest_gap_since(away).context("packets came")?;
    assert!(gap < Duration::from_millis(200), "{gap:?}");
    assert_eq!(ann.counts().rebuilt, 0);
    // And it serves again.
    eventually("names can be changed again", Duration::from_secs(5), || async {
        ann.ask("changeDisplayName", serde_json::json!({ "displayName": "Anna" })).await.ok()
    })
    .await?;
    let journal = cluster.journal().await?;
    for (node, _) in journal.streams(roomlog_bus::commit::StreamKind::Ec).await? {
        let commits = read_all(journal.as_ref(), &node, Version(1)).await?;
        assert!(
            commits.iter().flat_map(|c| &c.events).all(|e| &*e.kind != "NodeLost"),
            "{node} was called lost"
        );
    }
    cluster.log_is_clean().await
}
