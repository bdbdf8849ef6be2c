//! A media host dies, stands still or is cut off: its rooms move when it is gone, and only then.

use std::time::{Duration, Instant};

use anyhow::Context;
use roomlog_bus::{ids::Version, journal::read_all};
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape},
    http,
    native::{Kind, NativePeer, Publish},
};
use serde_json::json;

const SHAPE: fn() -> Shape = || Shape { ecs: 2, nuves: 1, eas: vec![1, 1], ..Shape::default() };

struct Call {
    ann: NativePeer,
    bob: NativePeer,
    /// Index of the EA that carries it.
    ea: usize,
}

async fn call(cluster: &Cluster, room: &str) -> anyhow::Result<Call> {
    let origin = cluster.nuves[0].origin.clone();
    let ann = NativePeer::join(&origin, &cluster.token(room, "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob = NativePeer::join(&origin, &cluster.token(room, "Bob").await?, "Bob", Publish::BOTH).await?;
    decodes(&ann, &bob).await?;
    decodes(&bob, &ann).await?;
    let states = cluster.agree(&ann.room, Duration::from_secs(5)).await?;
    let placements = states["log"]["placements"].as_object().context("placements")?;
    let ea = Cluster::index(&cluster.eas, placements.keys().next().context("a placement")?);
    Ok(Call { ann, bob, ea })
}

/// Waits until `to` has 30 more whole frames of what `from` sends now; gives when it had.
async fn decodes(to: &NativePeer, from: &NativePeer) -> anyhow::Result<Instant> {
    let whole = || {
        let producer = from.producers().get(&Kind::Video).cloned()?;
        to.received(&producer).map(|r| (producer, r.complete()))
    };
    let before = whole();
    eventually("frames come whole", Duration::from_secs(20), || async {
        let (producer, count) = whole()?;
        let base = before.as_ref().filter(|(p, _)| *p == producer).map_or(0, |(_, count)| *count);
        (count >= base + 5).then_some(Instant::now())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_killed_ea_decode_again_through_another() -> anyhow::Result<()> {
    let Some(mut cluster) = Cluster::start(SHAPE()).await? else { return Ok(()) };
    let Call { ann, bob, ea } = call(&cluster, "call").await?;
    let killed = Instant::now();
    cluster.eas[ea].kill_with_workers().await?;
    eventually("both have built their media anew", Duration::from_secs(20), || async {
        (ann.counts().rebuilt >= 1 && bob.counts().rebuilt >= 1).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    let took = decodes(&ann, &bob).await?.max(decodes(&bob, &ann).await?) - killed;
    println!("EA killed with its workers: both decode again after {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    cluster.agree(&ann.room, Duration::from_secs(5)).await?;
    cluster.log_is_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ea_that_stands_still_for_a_while_keeps_its_rooms_and_takes_none() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start(SHAPE()).await? else { return Ok(()) };
    let Call { ann, bob: _bob, ea } = call(&cluster, "call").await?;
    cluster.eas[ea].pause()?;
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let origin = cluster.nuves[0].origin.clone();
    let mut others = Vec::new();
    for room in 0..4 {
        let token = cluster.token(&format!("new{room}"), "Cid").await?;
        others.push(NativePeer::join(&origin, &token, "Cid", Publish::NOTHING).await?);
    }
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    cluster.eas[ea].resume()?;
    let states = cluster.agree(&ann.room, Duration::from_secs(10)).await?;
    assert!(
        states["log"]["placements"].get(&cluster.eas[ea].id).is_some(),
        "it has not moved: {}",
        states["log"]
    );
    assert_eq!(ann.counts().rebuilt, 0);
    for other in &others {
        let states = cluster.agree(&other.room, Duration::from_secs(5)).await?;
        assert!(states["log"]["placements"].get(&cluster.eas[ea].id).is_none(), "no new room went there");
    }
    cluster.log_is_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ea_that_stands_still_for_long_has_lost_its_rooms_when_it_goes_on() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start(SHAPE()).await? else { return Ok(()) };
    let Call { ann, bob, ea } = call(&cluster, "call").await?;
    let stopped = Instant::now();
    cluster.eas[ea].pause()?;
    eventually("both have built their media anew", Duration::from_secs(30), || async {
        (ann.counts().rebuilt >= 1 && bob.counts().rebuilt >= 1).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    let took = decodes(&ann, &bob).await? - stopped;
    println!("EA stopped: both decode again after {took:?}");
    assert!(took > Duration::from_secs(9), "silence alone counts as loss after ten seconds only: {took:?}");
    let left = Duration::from_secs(20).saturating_sub(stopped.elapsed());
    tokio::time::sleep(left).await;
    cluster.eas[ea].resume()?;
    // On its return it learns that it has been called lost, and holds nothing that is not its own.
    let states = cluster.agree(&ann.room, Duration::from_secs(10)).await?;
    assert!(states["log"]["placements"].get(&cluster.eas[ea].id).is_none());
    eventually("it holds no room", Duration::from_secs(10), || async {
        let listed = roomlog_tests::http::call_ok(
            &cluster.nuves[0].origin,
            "GET",
            "/v1/nodes",
            Some(roomlog_tests::cluster::ADMIN),
            None,
        )
        .await
        .ok()?;
        let node =
            listed["nodes"].as_array()?.iter().find(|n| n["id"] == cluster.eas[ea].id.as_str())?.clone();
        (node["rooms"] == 0 && node["phase"] == "registered" && node["heardMsAgo"].as_u64()? < 2_000)
            .then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    cluster.log_is_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ea_cut_off_from_nats_keeps_its_calls() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start(Shape { proxied: true, ..SHAPE() }).await? else { return Ok(()) };
    let Call { ann, bob, ea } = call(&cluster, "call").await?;
    assert_eq!(ea, 0, "the call is on the EA behind the proxy");
    let cut = Instant::now();
    cluster.proxy.as_ref().context("it has one")?.cut();
    let origin = &cluster.eas[0].origin;
    let ready = async |status: u16| {
        eventually("its readiness is as it should be", Duration::from_secs(12), || async {
            let answer = http::call(origin, "GET", "/readyz", None, None).await.ok()?;
            (answer.status == status).then_some(answer.body)
        })
        .await
    };
    let without = ready(503).await?;
    assert_eq!((&without["ready"], &without["liveWorkers"]), (&json!(false), &json!(1)), "{without}");
    assert_ne!(without["journal"], "ok", "{without}");
    // Whoever ends the process for that would end the call.
    assert_eq!(http::call_text(origin, "/healthz").await?, "ok\n");
    tokio::time::sleep(Duration::from_secs(15).saturating_sub(cut.elapsed())).await;
    cluster.proxy.as_ref().context("it has one")?.heal();
    cluster.agree(&ann.room, Duration::from_secs(10)).await.with_context(|| cluster.said())?;
    let with = ready(200).await?;
    assert_eq!(
        (&with["connected"], &with["registered"], &with["journal"]),
        (&json!(true), &json!(true), &json!("ok"))
    );
    let gap = ann.largest_gap_since(cut).context("packets came")?;
    println!("EA cut off from NATS for 15 s: largest RTP gap {gap:?}");
    assert!(gap < Duration::from_millis(200), "{gap:?}");
    let journal = cluster.journal().await?;
    let commits = read_all(journal.as_ref(), &"ea.a1".parse()?, Version(1)).await?;
    let lost = commits.iter().flat_map(|c| &c.events).any(|event| &*event.kind == "NodeLost");
    assert!(!lost, "its workers answered, so it was not called lost");
    assert_eq!((ann.counts().rebuilt, bob.counts().rebuilt), (0, 0));
    cluster.log_is_clean().await
}
