//! An answer goes out at once, also behind a notification. With Nagle's algorithm it would wait until the client's delayed acknowledgement has
//! come, 40 ms on Linux, in every join.

use std::time::{Duration, Instant};

use anyhow::Context;
use roomlog_tests::{
    peer::{Peer, Policy},
    process::Up,
};
use serde_json::json;

/// The shortest delayed acknowledgement of Linux (`TCP_DELACK_MIN`).
const DELAYED: Duration = Duration::from_millis(40);
/// On a busy machine any one may take longer; the quickest of so many does not.
const JOINS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_behind_a_notification_does_not_wait_for_an_acknowledgement() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let up = Up::start(data.path(), &["--workers", "1", "--ip-per-s", "1000", "--log", "warn"]).await?;
    let mut quickest = Duration::MAX;
    for i in 0..JOINS {
        let token = up.token("call", &format!("user {i}")).await?;
        let text = |field: &str| token[field].as_str().context("a token without that").map(str::to_owned);
        // What follows on the token's answer is a notification.
        let (mut peer, _) = Peer::enter(&text("wsUrl")?, &text("token")?, Policy::Accept).await?;
        let asked = Instant::now();
        peer.ask("getRouterRtpCapabilities", json!({})).await?;
        quickest = quickest.min(asked.elapsed());
        peer.leave().await;
    }
    anyhow::ensure!(quickest < DELAYED * 3 / 4, "the quickest of {JOINS} answers took {quickest:?}");
    up.stop().await
}
