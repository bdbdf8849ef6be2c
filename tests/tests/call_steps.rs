//! Two people join a room: from asking for a token to the first frame that decodes, by steps, and what a join leaves in the log.
//!
//! A measurement and no test: `ROOMLOG_CALLS` calls one after the other (10), each in a room of its own on one `roomlog up` with real workers
//! and native peers that send sound and video. One JSON object: medians in milliseconds, commits and bytes of a whole call's two joins.

use std::time::{Duration, Instant};

use anyhow::Context;
use roomlog_bus::{
    journal::{Cursor, Followed, Journal},
    sled_journal::SledJournal,
};
use roomlog_tests::{
    native::{Kind, NativePeer, Publish},
    process::Up,
};
use serde_json::json;

/// A machine that is slow and busy gets this for a frame.
const FRAME_WITHIN: Duration = Duration::from_secs(30);
/// What leaving writes is not a join's: until it is written.
const LEAVING: Duration = Duration::from_secs(1);
const BOTH: [Kind; 2] = [Kind::Audio, Kind::Video];

/// The middle one, in milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// Commits of all rooms in the log at `data`, their events and their bytes.
async fn logged(data: &std::path::Path) -> anyhow::Result<(u64, u64, u64)> {
    let (journal, _) = SledJournal::open_read_only(data.join("log"))?;
    let tail = journal.tail().await?;
    let mut follow = journal.follow(Cursor::default()).await?;
    let (mut commits, mut events, mut bytes) = (0, 0, 0);
    while let Some(Followed::Entry(entry)) = follow.next().await {
        if entry.commit.stream.to_string().starts_with("room.") {
            commits += 1;
            events += entry.commit.events.len() as u64;
            bytes += entry.commit.encode().len() as u64;
        }
        if entry.cursor == tail {
            break;
        }
    }
    Ok((commits, events, bytes))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn from_a_token_to_the_first_frame() -> anyhow::Result<()> {
    let calls: u64 =
        std::env::var("ROOMLOG_CALLS").map_or(Ok(10), |text| text.parse()).context("ROOMLOG_CALLS")?;
    let data = tempfile::tempdir()?;
    let up = Up::start(data.path(), &["--ip-per-s", "1000000", "--log", "warn"]).await?;
    let (mut token, mut join, mut sound, mut picture, mut whole) = (vec![], vec![], vec![], vec![], vec![]);
    let mut joined = (0, 0, 0);
    for call in 0..calls {
        let room = format!("call-{call}");
        let before = logged(data.path()).await?;
        let began = Instant::now();
        let ann = NativePeer::join(&up.origin, &up.token(&room, "Ann").await?, "Ann", Publish::BOTH).await?;
        let start = Instant::now();
        let card = up.token(&room, "Bob").await?;
        token.push(start.elapsed());
        let at = Instant::now();
        let bob = NativePeer::join(&up.origin, &card, "Bob", Publish::BOTH).await?;
        join.push(at.elapsed());
        let at = Instant::now();
        bob.decodes(&ann.id, &[Kind::Audio], 1, began, FRAME_WITHIN).await?;
        sound.push(at.elapsed());
        bob.decodes(&ann.id, &[Kind::Video], 1, began, FRAME_WITHIN).await?;
        picture.push(at.elapsed());
        ann.decodes(&bob.id, &BOTH, 1, began, FRAME_WITHIN).await?;
        whole.push(start.elapsed());
        let after = logged(data.path()).await?;
        joined =
            (joined.0 + after.0 - before.0, joined.1 + after.1 - before.1, joined.2 + after.2 - before.2);
        ann.leave().await;
        bob.leave().await;
        tokio::time::sleep(LEAVING).await;
    }
    let each = |sum: u64| sum as f64 / calls as f64;
    println!(
        "{}",
        json!({
            "calls": calls,
            "second_person_ms": {
                "token": median(token),
                "join": median(join),
                "first_sound_after_that": median(sound),
                "first_picture_after_that": median(picture),
                "until_both_see_and_hear": median(whole),
            },
            "a_call": { "commits": each(joined.0), "events": each(joined.1), "bytes": each(joined.2) },
        })
    );
    up.kill().await;
    Ok(())
}
