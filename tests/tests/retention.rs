//! What is over leaves the log when its time has passed, and not before: closed rooms are compacted, deleted ones purged, both archived.

use std::{path::Path, time::Duration};

use anyhow::Context;
use roomlog_tests::{
    cell::eventually,
    http,
    peer::{Peer, Policy},
    process::{Up, replay},
};

/// How long the log keeps what is over, here.
const HISTORY: Duration = Duration::from_secs(3);
const FLAGS: [&str; 10] =
    ["--workers", "1", "--history-s", "3", "--token-ttl-s", "1", "--resume-ms", "1000", "--ip-per-s", "1000"];
/// Looks come as often as the history is long; a busy machine takes its time.
const DUE: Duration = Duration::from_secs(30);

async fn session(up: &Up, room: &str, user: &str) -> anyhow::Result<String> {
    let token = up.token(room, user).await?;
    let text = |field: &str| token[field].as_str().map(str::to_owned).context("a token's answer");
    let (mut peer, _) = Peer::enter(&text("wsUrl")?, &text("token")?, Policy::Accept).await?;
    peer.join(user).await?;
    peer.leave().await;
    text("roomId")
}

/// Types of a room's events, in order; none if the log has no such room.
fn events(data: &Path, room: &str, arguments: &[&str]) -> Vec<String> {
    let shown = replay(data, &[&["show", room], arguments].concat()).unwrap_or_default();
    let events = shown["events"].as_array().cloned().unwrap_or_default();
    events.iter().filter_map(|event| event["type"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_rooms_are_compacted_deleted_ones_purged_and_all_of_it_is_archived() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let folder = data.path();
    let archive = folder.join("archive");
    let with_archive = ["--archive", archive.to_str().context("a plain path")?];
    let up = Up::start(folder, &FLAGS).await?;
    let secret = up.secret(folder)?;

    let closed = session(&up, "closed", "Ann").await?;
    session(&up, "closed", "Bob").await?;
    let deleted = session(&up, "deleted", "Ann").await?;
    http::call_ok(&up.origin, "DELETE", &format!("/v1/rooms/{deleted}"), Some(&secret), None).await?;
    let used = session(&up, "used", "Ann").await?;
    let (before, gone) = (events(folder, &closed, &[]), events(folder, &deleted, &[]));
    assert!(
        before.len() > 16 && gone.last().is_some_and(|last| last == "RoomDeleted"),
        "{before:?} {gone:?}"
    );

    // Somebody stays in this one: it keeps all it has.
    let token = up.token("used", "Bob").await?;
    let (ws, token) = (token["wsUrl"].as_str().unwrap_or(""), token["token"].as_str().unwrap_or(""));
    let (mut bob, _) = Peer::enter(ws, token, Policy::Accept).await?;
    bob.join("Bob").await?;
    assert_eq!(events(folder, &closed, &[]).len(), before.len(), "nothing goes before its time");

    let began = std::time::Instant::now();
    eventually("the closed room is compacted", DUE, || async {
        (events(folder, &closed, &[]) == ["RoomSnapshot"]).then_some(())
    })
    .await?;
    assert!(began.elapsed() + Duration::from_secs(1) >= HISTORY, "after {:?}", began.elapsed());
    eventually("the deleted room is purged", DUE, || async {
        events(folder, &deleted, &[]).is_empty().then_some(())
    })
    .await?;
    assert_eq!(events(folder, &used, &[])[0], "RoomCreated");

    // Nothing is lost: with the archive all of it can be replayed.
    assert_eq!(events(folder, &deleted, &with_archive), gone);
    let whole = events(folder, &closed, &with_archive);
    assert_eq!(whole[..before.len()], before);
    assert_eq!(whole[before.len()..], ["RoomSnapshot"]);

    // The room is what it was: its name finds it, and people meet in it.
    assert_eq!(session(&up, "closed", "Ann").await?, closed);
    let read = http::call_ok(&up.origin, "GET", &format!("/v1/rooms/{closed}"), Some(&secret), None).await?;
    assert_eq!(read["name"], "closed");
    bob.leave().await;
    for arguments in [&["verify"][..], &[&["verify"][..], &with_archive].concat()] {
        let verdict = replay(folder, arguments)?;
        assert_eq!(verdict["clean"], true, "{verdict:#}");
    }
    up.kill().await;

    // A restart reads a log without its beginnings, from a checkpoint and without one.
    std::fs::remove_file(folder.join("checkpoint")).ok();
    let up = Up::start(folder, &FLAGS).await?;
    let rooms = http::call_ok(&up.origin, "GET", "/v1/rooms", Some(&secret), None).await?;
    let mut names: Vec<_> =
        rooms["rooms"].as_array().into_iter().flatten().filter_map(|room| room["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["closed", "used"], "{rooms}");
    assert_eq!(session(&up, "closed", "Cleo").await?, closed);
    up.kill().await;
    Ok(())
}
