//! While the log takes nothing, requests get a clear, retryable answer; when it is back nothing is left over and nobody is a ghost.

use std::{sync::atomic::Ordering, time::Duration};

use roomlog_tests::cell::{Cell, Shape, eventually};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_the_log_is_away_is_refused_or_made_up_for() -> anyhow::Result<()> {
    let cell = Cell::start(Shape { resume: Duration::from_secs(1), ..Shape::default() }).await?;
    let (mut ann, room, _) = cell.enter("r", "Ann").await?;
    let (send, _) = ann.join("Ann").await?;
    let video = ann.produce_video(&send, 1000).await?;
    let (mut bob, _, _) = cell.enter("r", "Bob").await?;
    bob.join("Bob").await?;
    let (mut cleo, _, _) = cell.enter("r", "Cleo").await?;
    cleo.join("Cleo").await?;
    let before = cell.assert_agreement(&room).await?;

    cell.log_shut.store(true, Ordering::Relaxed);
    let refused = ann.try_ask("pauseProducer", json!({ "producerId": video })).await?;
    assert_eq!(refused.as_ref().map_err(|e| e.0), Err(503), "{refused:?}");
    // One breaks off and one leaves; neither can be written down now.
    bob.break_off().await;
    cleo.leave().await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(
        cell.folded(&room).await?.version(),
        before.version(),
        "the log took something through a shut gate"
    );

    cell.log_shut.store(false, Ordering::Relaxed);
    eventually(
        "both are gone, though nobody could write it down when they went",
        Duration::from_secs(5),
        || async { (cell.folded(&room).await.ok()?.clients.len() == 1).then_some(()) },
    )
    .await?;
    ann.ask("pauseProducer", json!({ "producerId": video })).await?;
    cell.assert_agreement(&room).await?;
    ann.leave().await;
    eventually("the room is closed", Duration::from_secs(2), || async {
        (!cell.folded(&room).await.ok()?.open).then_some(())
    })
    .await?;
    cell.stop().await;
    Ok(())
}
