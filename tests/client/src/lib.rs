//! A client of Roomlog, as tests and benchmarks need one: [`http`] asks NUVE, [`peer`] speaks with an EC as mediasoup's own clients do,
//! without the media; [`counted`] counts the bytes of either.

#![forbid(unsafe_code)]

pub mod counted;
pub mod http;
pub mod peer;

use std::time::Duration;

use anyhow::bail;

/// Waits until `look` finds something, looking every 10 ms; fails with `what` after `within`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let end = tokio::time::Instant::now() + within;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if tokio::time::Instant::now() > end {
            bail!("not within {within:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
