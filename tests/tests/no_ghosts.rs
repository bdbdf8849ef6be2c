//! Who has left is gone everywhere, in bounded time, and leaves no memory behind (invariant 7).

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use roomlog_tests::{
    cell::{Cell, Shape, eventually},
    http,
    peer::{Peer, Policy},
    process::{Up, replay},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_last_leave_empties_ec_ea_worker_and_directory_within_a_second() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let (mut ann, room, _) = cell.enter("r", "Ann").await?;
    let (send, _) = ann.join("Ann").await?;
    ann.produce_video(&send, 1000).await?;
    let (mut bob, _, _) = cell.enter("r", "Bob").await?;
    bob.join("Bob").await?;
    let before = cell.assert_agreement(&room).await?;
    assert_eq!(before.clients.len(), 2);

    ann.leave().await;
    bob.leave().await;
    let left = Instant::now();
    gone(&cell, &room, Duration::from_secs(1)).await?;
    println!("gone everywhere {:?} after the last leave", left.elapsed());
    // The worker is asked as the room was then: it must not know the room any more.
    let unknown = cell.inventory(&before, &room).await.unwrap_err().to_string();
    assert!(unknown.contains("no such room"), "{unknown}");
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_come_back_is_gone_after_the_resume_time_and_not_before() -> anyhow::Result<()>
{
    let resume = Duration::from_secs(2);
    let cell = Cell::start(Shape { resume, ..Shape::default() }).await?;
    let (mut ann, room, _) = cell.enter("r", "Ann").await?;
    ann.join("Ann").await?;
    let broken = Instant::now();
    ann.break_off().await;
    tokio::time::sleep(resume - Duration::from_millis(500)).await;
    assert_eq!(cell.folded(&room).await?.clients.len(), 1, "she may still come back");
    gone(&cell, &room, Duration::from_millis(1_500)).await?;
    println!("gone everywhere {:?} after the break, resume time {resume:?}", broken.elapsed());
    cell.stop().await;
    Ok(())
}

/// Waits until `room` is nowhere but in the log.
async fn gone(cell: &Cell, room: &roomlog_bus::ids::RoomId, within: Duration) -> anyhow::Result<()> {
    eventually("the room is gone everywhere", within, || async {
        let log = cell.folded(room).await.ok()?;
        let nobody = log.clients.is_empty()
            && log.transports.is_empty()
            && log.producers.is_empty()
            && log.consumers.is_empty();
        let ec = cell.state_at_ec(room).await.ok()?.is_null();
        let ea = cell.rooms_on(cell.eas[0].id()).await.ok()?.is_empty();
        let directory = cell.directory.read().rooms.get(room).is_none_or(|r| r.clients.is_empty());
        (nobody && !log.open && ec && ea && directory).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_rooms_opened_and_closed_leave_memory_where_it_was() -> anyhow::Result<()> {
    /// Rooms of one round.
    const ROUND: usize = 2_500;
    /// Until the last rooms of a round are purged: their time, the time between two looks, and some for the work.
    const PURGED_WITHIN: Duration = Duration::from_secs(15);
    /// Rounds that fill what is bounded: the journal's cache and recent commits, allocators, pools.
    const WARM_UP: usize = 4;
    /// Rounds that must not add to it: 10 000 rooms.
    const ROUNDS: usize = 4;
    /// What 10 000 rooms may add: by how much the resident size differs from round to round. Nothing of them is left in the log, which is
    /// looked at too.
    const MAY_GROW: u64 = 10_000_000;
    /// Deleted rooms are purged six seconds after; segments are small, so that those of the first rounds are closed and cleaned.
    const FLAGS: [&str; 16] = [
        "--workers",
        "2",
        "--ip-per-s",
        "1000000",
        "--api-per-s",
        "1000000",
        "--history-s",
        "6",
        "--token-ttl-s",
        "4",
        "--resume-ms",
        "1000",
        "--segment-bytes",
        "8388608",
        "--log",
        "warn",
    ];

    let data = tempfile::tempdir()?;
    let up = Up::start(data.path(), &FLAGS).await?;
    let secret = up.secret(data.path())?;
    let mut sizes = Vec::new();
    for i in 0..WARM_UP + ROUNDS {
        round(&up, &secret, i, ROUND).await?;
        tokio::time::sleep(PURGED_WITHIN).await;
        sizes.push(up.resident()?);
    }
    println!(
        "resident after each {ROUND} rooms, MiB: {:?}",
        sizes.iter().map(|s| s / (1024 * 1024)).collect::<Vec<_>>()
    );
    let left = replay(data.path(), &["rooms"])?;
    assert_eq!(left["rooms"], json!([]), "deleted rooms leave the log");
    let grown = sizes[sizes.len() - 1].saturating_sub(sizes[WARM_UP - 1]);
    assert!(grown <= MAY_GROW, "memory grew by {grown} bytes over {} rooms: {sizes:?}", ROUND * ROUNDS);
    up.kill().await;
    Ok(())
}

/// Opens, joins, leaves and deletes `count` rooms.
async fn round(up: &Up, secret: &str, round: usize, count: usize) -> anyhow::Result<()> {
    let done: Vec<_> = stream::iter(0..count)
        .map(|i| async move {
            let token = up.token(&format!("r-{round}-{i}"), "Ann").await?;
            let (mut peer, _) = Peer::enter(
                token["wsUrl"].as_str().unwrap_or_default(),
                token["token"].as_str().unwrap_or_default(),
                Policy::Accept,
            )
            .await?;
            peer.ask("getRouterRtpCapabilities", json!({})).await?;
            peer.leave().await;
            let path = format!("/v1/rooms/{}", token["roomId"].as_str().unwrap_or_default());
            http::call_ok(&up.origin, "DELETE", &path, Some(secret), None).await
        })
        .buffer_unordered(64)
        .collect()
        .await;
    done.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    Ok(())
}
