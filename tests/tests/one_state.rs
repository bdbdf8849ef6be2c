//! The state of a room is one: what the log folds to, what the EC holds, what the EA holds and what the worker has are the same.

use std::time::Duration;

use roomlog_tests::cell::{Cell, Shape, eventually};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn log_ec_ea_and_worker_agree_after_every_step_of_a_call() -> anyhow::Result<()> {
    let cell = Cell::start(Shape::default()).await?;
    let (mut ann, room, _) = cell.enter("call", "Ann").await?;
    cell.assert_agreement(&room).await?;

    let (ann_send, _) = ann.join("Ann").await?;
    let (mut bob, _, bob_entered) = cell.enter("call", "Bob").await?;
    let (bob_send, _) = bob.join("Bob").await?;
    cell.assert_agreement(&room).await?;

    let video = ann.produce_video(&ann_send, 1000).await?;
    let back = bob.produce_video(&bob_send, 2000).await?;
    eventually("both are asked to consume", Duration::from_secs(5), || async {
        (ann.heard_of("newConsumer").len() == 1 && bob.heard_of("newConsumer").len() == 1).then_some(())
    })
    .await?;
    let state = cell.assert_agreement(&room).await?;
    assert_eq!((state.producers.len(), state.consumers.len(), state.transports.len()), (2, 2, 4));

    let consumer = bob.heard_of("newConsumer")[0]["id"].clone();
    eventually("Bob's consumer runs", Duration::from_secs(5), || async {
        (!bob.heard_of("consumerScore").is_empty()).then_some(())
    })
    .await?;
    bob.ask("pauseConsumer", json!({ "consumerId": consumer })).await?;
    ann.ask("pauseProducer", json!({ "producerId": video })).await?;
    ann.ask("changeDisplayName", json!({ "displayName": "Anna" })).await?;
    let state = cell.assert_agreement(&room).await?;
    assert!(state.producers.values().any(|p| p.paused) && state.consumers.values().any(|c| c.paused));

    bob.ask("resumeConsumer", json!({ "consumerId": consumer })).await?;
    ann.ask("resumeProducer", json!({ "producerId": video })).await?;
    bob.ask("closeProducer", json!({ "producerId": back })).await?;
    let state = cell.assert_agreement(&room).await?;
    assert_eq!((state.producers.len(), state.consumers.len()), (1, 1));

    bob.break_off().await;
    eventually("Bob is away", Duration::from_secs(2), || async {
        let state = cell.folded(&room).await.ok()?;
        state.clients.values().any(|c| c.resume_until.is_some()).then_some(())
    })
    .await?;
    cell.assert_agreement(&room).await?;

    // Bob comes back and is told what he missed, no more and no less.
    ann.ask("pauseProducer", json!({ "producerId": video })).await?;
    let url = format!("{}/signal?resume=1", cell.origin.replace("http:", "ws:"));
    let mut again = roomlog_tests::peer::Peer::open(&url, roomlog_tests::peer::Policy::Accept).await?;
    let since = bob_entered["v"].as_u64().unwrap();
    let resume = json!({ "clientId": bob_entered["clientId"], "roomId": room, "resumeKey": bob_entered["resumeKey"], "since": since });
    let resumed = again.ask("resume", resume).await?;
    let methods: Vec<&str> =
        resumed["events"].as_array().unwrap().iter().filter_map(|e| e["method"].as_str()).collect();
    assert_eq!(methods.last(), Some(&"consumerPaused"), "{methods:?}");
    assert!(!methods.contains(&"newPeer"), "Ann was there before Bob: {methods:?}");
    cell.assert_agreement(&room).await?;

    ann.leave().await;
    again.leave().await;
    eventually("the room is closed everywhere", Duration::from_secs(1), || async {
        let closed = !cell.folded(&room).await.ok()?.open;
        let left_ec = cell.state_at_ec(&room).await.ok()?.is_null();
        let left_ea = cell.rooms_on(cell.eas[0].id()).await.ok()?.is_empty();
        (closed && left_ec && left_ea).then_some(())
    })
    .await?;
    cell.stop().await;
    Ok(())
}
