//! Nodes that are to go: they take nothing new, what is left moves at the deadline, and their processes end.

use std::time::Duration;

use anyhow::Context;
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape},
    native::{NativePeer, Publish},
    returner::Returner,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_ec_takes_no_room_and_gives_away_what_is_left_at_the_deadline() -> anyhow::Result<()> {
    let Some(mut cluster) = Cluster::start(Shape { eas: vec![1], ..Shape::default() }).await? else {
        return Ok(());
    };
    let origins: Vec<String> = cluster.nuves.iter().map(|n| n.origin.clone()).collect();
    let ann = Returner::join(origins.clone(), &cluster.token("r", "Ann").await?, "Ann").await?;
    let owner = cluster.owner(&ann.room).await?;
    cluster.drain(&format!("ec.{owner}"), 4, &[])?;
    for i in 0..10 {
        let token = cluster.token_at(i % 2, &format!("new{i}"), "Bob").await?;
        let room = token["roomId"].as_str().context("a room")?.to_owned();
        assert_ne!(cluster.owner(&room).await?, owner, "no new room goes there");
    }
    assert!(ann.life().resumed.is_empty(), "who is there stays until the deadline");
    let index = Cluster::index(&cluster.ecs, &owner);
    let status = cluster.ecs[index].ended(Duration::from_secs(15)).await?;
    assert!(status.success(), "{status}");
    eventually("Ann is at the other EC", Duration::from_secs(10), || async {
        ann.life().resumed.last().is_some_and(|(_, ec)| *ec != owner).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    cluster.agree(&ann.room, Duration::from_secs(5)).await?;
    cluster.log_is_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_ea_keeps_its_call_until_the_deadline_and_hands_it_on() -> anyhow::Result<()> {
    let Some(mut cluster) =
        Cluster::start(Shape { nuves: 1, ecs: 1, eas: vec![1, 1], ..Shape::default() }).await?
    else {
        return Ok(());
    };
    let origin = cluster.nuves[0].origin.clone();
    let ann = NativePeer::join(&origin, &cluster.token("r", "Ann").await?, "Ann", Publish::BOTH).await?;
    let states = cluster.agree(&ann.room, Duration::from_secs(5)).await?;
    let ea =
        states["log"]["placements"].as_object().and_then(|p| p.keys().next()).context("a placement")?.clone();
    cluster.drain(&format!("ea.{ea}"), 3, &[])?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    for i in 0..4 {
        let token = cluster.token(&format!("new{i}"), "Bob").await?;
        let bob = NativePeer::join(&origin, &token, "Bob", Publish::NOTHING).await?;
        let states = cluster.agree(&bob.room, Duration::from_secs(5)).await?;
        assert!(states["log"]["placements"].get(&ea).is_none(), "no new room goes there");
    }
    let index = Cluster::index(&cluster.eas, &ea);
    let status = cluster.eas[index].ended(Duration::from_secs(15)).await?;
    assert!(status.success(), "{status}");
    eventually("Ann has built her media anew", Duration::from_secs(10), || async {
        (ann.counts().rebuilt == 1).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    cluster.agree(&ann.room, Duration::from_secs(5)).await?;
    cluster.log_is_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_node_ends_at_once_and_whoever_asked_can_wait_for_it() -> anyhow::Result<()> {
    let Some(mut cluster) =
        Cluster::start(Shape { nuves: 1, ecs: 1, eas: vec![1, 1], ..Shape::default() }).await?
    else {
        return Ok(());
    };
    let began = std::time::Instant::now();
    cluster.drain("ea.a1", 600, &["--wait"])?;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(cluster.eas[0].ended(Duration::from_secs(5)).await?.success());
    let refused = cluster.drain("ea.a1", 600, &[]).expect_err("it has left").to_string();
    assert!(refused.contains("no such running node ea.a1"), "{refused}");
    let refused = cluster.drain("nuve.n1", 600, &[]).expect_err("a NUVE holds no rooms").to_string();
    assert!(refused.contains("cannot be drained"), "{refused}");
    cluster.log_is_clean().await
}
