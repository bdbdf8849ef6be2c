//! A cluster is upgraded node by node under a call: nodes of the next version (this one with an event and fields that this one does not know,
//! see `ec/src/next_version.rs`) join, old ones are drained. Each version folds what the other wrote, and takes over from it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Context;
use roomlog_bus::{
    commit::StreamId,
    ids::{RoomId, Version},
    journal::read_all,
};
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape},
    native::{Kind, NativePeer, Publish},
    returner::Returner,
    roomlog_next_bin,
};
use serde_json::json;

/// Rooms with one client each, beside the one with a call.
const ROOMS: usize = 8;
/// Far above what a takeover or a drain takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// What media may stand still while ECs come and go.
const GAP: Duration = Duration::from_millis(200);

/// Waits until everybody is on one of these ECs, and log, EC and EAs agree about every room.
async fn served_by(cluster: &Cluster, clients: &[Returner], call: &str, ecs: &[&str]) -> anyhow::Result<()> {
    let rooms = clients.iter().map(|client| client.room.as_str()).chain([call]);
    for room in rooms {
        eventually("a living EC owns it", PATIENCE, || async {
            let owner = cluster.owner(room).await.ok()?;
            ecs.contains(&owner.as_str()).then_some(())
        })
        .await
        .with_context(|| cluster.said())?;
        cluster.agree(room, PATIENCE).await.with_context(|| cluster.said())?;
    }
    assert!(clients.iter().all(|client| client.life().ended.is_none()));
    Ok(())
}

/// The kinds of events, and the names of fields unknown to this build, in a room's stream.
async fn written(cluster: &Cluster, room: &str) -> anyhow::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let journal = cluster.journal().await?;
    let commits = read_all(journal.as_ref(), &StreamId::from(&RoomId::new(room)?), Version(1)).await?;
    let events = || commits.iter().flat_map(|commit| &commit.events);
    let fields = events().flat_map(|e| e.more.iter()).chain(commits.iter().flat_map(|c| c.cause.more.iter()));
    Ok((events().map(|e| e.kind.to_string()).collect(), fields.map(|(name, _)| name.to_owned()).collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_upgraded_node_by_node_under_a_call() -> anyhow::Result<()> {
    let next = roomlog_next_bin();
    let Some(mut cluster) = Cluster::start(Shape { nuves: 1, eas: vec![1], ..Shape::default() }).await?
    else {
        return Ok(());
    };
    let origins = vec![cluster.nuves[0].origin.clone()];
    let ann = NativePeer::join(&origins[0], &cluster.token("r", "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob = NativePeer::join(&origins[0], &cluster.token("r", "Bob").await?, "Bob", Publish::BOTH).await?;
    let mut clients = Vec::new();
    for room in 0..ROOMS {
        let token = cluster.token(&format!("other-{room}"), "Cid").await?;
        clients.push(Returner::join(origins.clone(), &token, "Cid").await?);
    }
    let decoded = || {
        let producer = bob.producers().get(&Kind::Video)?.clone();
        Some(ann.received(&producer)?.complete())
    };
    let decodes = async |what: &str| {
        let before = decoded().unwrap_or(0);
        eventually(what, PATIENCE, || async { decoded().filter(|now| *now > before + 10) }).await
    };
    decodes("Ann decodes Bob").await?;

    // ECs: the next one joins; the old owner of the call is drained.
    let began = Instant::now();
    let old = cluster.owner(&ann.room).await?;
    let other = if old == "c1" { "c2" } else { "c1" };
    cluster.add(next.clone(), "ec", "c3").await?;
    cluster.drain(&format!("ec.{old}"), 1, &[])?;
    let index = Cluster::index(&cluster.ecs, &old);
    cluster.ecs[index].ended(PATIENCE).await?;
    served_by(&cluster, &clients, &ann.room, &[other, "c3"]).await?;
    // So that the next version owns every room for a while, the other old one goes too,
    cluster.drain(&format!("ec.{other}"), 1, &[])?;
    let index = Cluster::index(&cluster.ecs, other);
    cluster.ecs[index].ended(PATIENCE).await?;
    served_by(&cluster, &clients, &ann.room, &["c3"]).await?;
    ann.ask("changeDisplayName", json!({ "displayName": "Anna" })).await?;
    let (kinds, fields) = written(&cluster, &ann.room).await?;
    assert!(kinds.contains("RoomNoticed") && fields.contains("addedNext"), "{kinds:?} {fields:?}");
    // and the upgrade is taken back: an EC of this version folds what the next one wrote, and owns it after the other has died.
    cluster.add(roomlog_tests::roomlog_bin(), "ec", "c4").await?;
    let index = Cluster::index(&cluster.ecs, "c3");
    cluster.ecs[index].kill().await;
    served_by(&cluster, &clients, &ann.room, &["c4"]).await?;
    ann.ask("changeDisplayName", json!({ "displayName": "Ann" })).await?;
    let states = cluster.agree(&ann.room, PATIENCE).await?;
    assert!(states["log"].to_string().contains("\"Ann\""), "{states}");
    decodes("Ann decodes Bob, whoever controls it").await?;
    let gap = ann.largest_gap_since(began).context("packets came")?;
    assert!(gap < GAP, "{gap:?}");
    assert_eq!((ann.counts().rebuilt, bob.counts().rebuilt), (0, 0), "media was not touched");

    // The EA, whose calls move, and NUVE.
    cluster.add(next.clone(), "ea", "a2").await?;
    cluster.drain("ea.a1", 1, &[])?;
    cluster.eas[0].ended(PATIENCE).await?;
    eventually("both have built their media anew", PATIENCE, || async {
        (ann.counts().rebuilt == 1 && bob.counts().rebuilt == 1).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    decodes("Ann decodes Bob through the new EA").await?;
    cluster.add(next, "nuve", "n2").await?;
    cluster.nuves[0].terminate().await?;
    let token = cluster.token_at(1, "r", "Dan").await?;
    assert_eq!(token["roomId"].as_str(), Some(ann.room.as_str()), "the new NUVE knows the room");
    cluster.agree(&ann.room, PATIENCE).await.with_context(|| cluster.said())?;
    Ok(())
}
