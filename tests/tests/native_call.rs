//! Calls with real packets between native peers, through a real worker.

use std::time::{Duration, Instant};

use roomlog_tests::{
    cell::{Cell, Shape},
    native::{Kind, NativePeer, Publish},
    process::{Up, kill},
};

const BOTH: [Kind; 2] = [Kind::Audio, Kind::Video];

#[tokio::test(flavor = "multi_thread")]
async fn two_native_peers_hear_and_see_each_other() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let mark = Instant::now();
    let ann = NativePeer::join(&cell.origin, &cell.token("call", "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob = NativePeer::join(&cell.origin, &cell.token("call", "Bob").await?, "Bob", Publish::BOTH).await?;
    for (from, to) in [(&ann, &bob), (&bob, &ann)] {
        let took = to.decodes(&from.id, &BOTH, 60, mark, Duration::from_secs(15)).await?;
        println!("60 frames of each, both ways, after {took:?}");
    }
    ann.leave().await;
    bob.leave().await;
    cell.stop().await;
    Ok(())
}

/// From the death of a worker to both peers decoding again: noticing, a new worker, new transports, a key frame and five frames after
/// it. It takes about a second here; a loaded machine gets more.
const AGAIN_WITHIN: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn when_their_worker_is_killed_both_decode_again_within_seconds() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let up = Up::start(data.path(), &["--workers", "2", "--ip-per-s", "1000000", "--log", "warn"]).await?;
    let mut people = Vec::new();
    let mark = Instant::now();
    for name in ["Ann", "Bob"] {
        people.push(NativePeer::join(&up.origin, &up.token("call", name).await?, name, Publish::BOTH).await?);
    }
    let (ann, bob) = (&people[0], &people[1]);
    for (from, to) in [(ann, bob), (bob, ann)] {
        to.decodes(&from.id, &BOTH, 30, mark, Duration::from_secs(15)).await?;
    }
    // One of the two carries the call, so the second kill hits it if the first did not.
    let mut moved = 0;
    for worker in up.workers() {
        let (mark, epoch) = (Instant::now(), ann.counts().media_epoch);
        kill(worker)?;
        let told = || async { (ann.counts().media_epoch > epoch).then_some(()) };
        if roomlog_tests::cell::eventually("the media moves", Duration::from_secs(2), told).await.is_err() {
            continue;
        }
        moved += 1;
        for (from, to) in [(ann, bob), (bob, ann)] {
            let took = to.decodes(&from.id, &BOTH, 5, mark, AGAIN_WITHIN).await?;
            println!("worker killed: {} sees and hears the other again after {took:?}", to.id);
        }
    }
    assert!(moved > 0, "no worker's death was noticed: none carried the call");
    for peer in people {
        peer.leave().await;
    }
    up.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_peer_comes_back_after_a_broken_socket_and_its_media_never_stopped() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let mark = Instant::now();
    let ann = NativePeer::join(&cell.origin, &cell.token("call", "Ann").await?, "Ann", Publish::BOTH).await?;
    let bob =
        NativePeer::join(&cell.origin, &cell.token("call", "Bob").await?, "Bob", Publish::NOTHING).await?;
    bob.decodes(&ann.id, &BOTH, 30, mark, Duration::from_secs(15)).await?;
    let before = bob.streams().len();
    let broken = Instant::now();
    ann.break_socket();
    bob.break_socket();
    for peer in [&ann, &bob] {
        let back = || async { (peer.counts().resumed == 1).then_some(()) };
        roomlog_tests::cell::eventually("it has resumed", Duration::from_secs(5), back).await?;
    }
    ann.mute(Kind::Video, true).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ann.mute(Kind::Video, false).await?;
    let carol =
        NativePeer::join(&cell.origin, &cell.token("call", "Carol").await?, "Carol", Publish::BOTH).await?;
    bob.decodes(&carol.id, &BOTH, 30, broken, Duration::from_secs(15)).await?;
    assert_eq!(bob.streams().len(), before + 2, "the same consumers go on, and two new ones");
    let audio = bob.streams().into_iter().find(|s| s.peer == ann.id && s.received().kind() == Kind::Audio);
    let audio = audio.map(|s| s.received()).expect("it was there");
    let gap = audio.largest_gap_since(broken, Instant::now()).expect("it plays");
    println!("largest gap of the voice over both sockets' break: {gap:?}");
    assert!(audio.decodes(30) && gap < Duration::from_millis(400), "a socket carries no media: {gap:?}");
    for peer in [ann, bob, carol] {
        assert_eq!(peer.counts().ended, None);
        peer.leave().await;
    }
    cell.stop().await;
    Ok(())
}
