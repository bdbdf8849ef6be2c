//! NATS comes back with an older copy of its folder: that is noticed, nothing is appended over the loss, and `roomlog repair` brings back what
//! the nodes had synced. What went another way meanwhile is set aside, and everybody goes on.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use roomlog_bus::{
    commit::{Commit, CommitId, Payload, RawEvent, StreamId, StreamKind},
    ids::{RoomId, Version},
    journal::read_all,
};
use roomlog_tests::{
    cell::eventually,
    cluster::{Cluster, Shape},
    returner::Returner,
};

/// A lower end counts as truncation once it has been seen for 12 s.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

async fn client(cluster: &Cluster, room: &str, user: &str) -> anyhow::Result<Returner> {
    let origins: Vec<String> = cluster.nuves.iter().map(|n| n.origin.clone()).collect();
    let within = Duration::from_secs(30);
    // NATS may have been started again a moment ago.
    eventually("a client is in", within, || async {
        let token = cluster.token(room, user).await.ok()?;
        Returner::join(origins.clone(), &token, user).await.ok()
    })
    .await
}

async fn log_of(cluster: &Cluster, room: &str) -> anyhow::Result<Vec<Arc<Commit>>> {
    let journal = cluster.journal().await?;
    Ok(read_all(journal.as_ref(), &StreamId::from(&RoomId::new(room)?), Version(1)).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nats_lost_is_noticed_and_brought_back_and_a_fork_is_set_aside() -> anyhow::Result<()> {
    let shape = Shape { nuves: 1, eas: vec![1], ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let ann = client(&cluster, "whole", "Ann").await?;
    let carl = client(&cluster, "forked", "Carl").await?;
    cluster.agree(&ann.room, Duration::from_secs(5)).await?;

    let (store, older) = (cluster.nats[0].folder().join("store"), cluster.folder().join("older"));
    cluster.nats[0].kill();
    copy(&store, &older)?;
    cluster.nats[0].start_again();
    // All this is acknowledged, and will be lost.
    let bob = client(&cluster, "whole", "Bob").await?;
    let dora = client(&cluster, "forked", "Dora").await?;
    let eve = client(&cluster, "new", "Eve").await?;
    for room in [&ann.room, &carl.room, &eve.room] {
        cluster.agree(room, Duration::from_secs(5)).await?;
    }
    let (whole, new) = (log_of(&cluster, &ann.room).await?, log_of(&cluster, &eve.room).await?);

    cluster.nats[0].kill();
    std::fs::remove_dir_all(&store)?;
    copy(&older, &store)?;
    cluster.nats[0].start_again();
    // Somebody who has seen nothing of it writes on in one room: from here on that one goes two ways.
    let forked = log_of(&cluster, &carl.room).await?;
    let last = forked.last().context("the room was there")?;
    let other = Commit {
        id: CommitId::from_bytes([7; 16]),
        prev: Some(last.id),
        version: last.last_version().next(),
        events: vec![RawEvent::new("Stranger", 1, Payload::encode(&1))],
        ..Commit::clone(last)
    };
    cluster.journal().await?.append(other.clone()).await?;
    let forged = other.id;

    let noticed = Instant::now();
    eventually("the ECs notice", NOTICED_WITHIN, || async {
        cluster.ecs.iter().all(|ec| ec.said().contains("ALARM")).then_some(())
    })
    .await
    .with_context(|| cluster.said())?;
    let noticed = noticed.elapsed();
    // One room of the four partitions is enough to see that appends have stopped.
    let mut refused = String::new();
    for n in 0..16 {
        if let Err(error) = cluster.token(&format!("another-{n}"), "Fay").await {
            refused = error.to_string();
            break;
        }
    }
    assert!(refused.contains("503") && refused.contains("roomlog repair"), "{refused:?}");
    for back in [&ann, &bob, &carl, &dora, &eve] {
        assert_eq!(back.life().ended, None, "nobody is put out");
    }

    let url = cluster.nats[0].url();
    let nodes = cluster.nuves.iter().chain(&cluster.ecs).chain(&cluster.eas);
    let folders: Vec<String> = nodes.map(|node| node.data().display().to_string()).collect();
    let mut arguments = vec!["repair", "--nats", &url];
    arguments.extend(folders.iter().map(String::as_str));
    let before = log_of(&cluster, &ann.room).await?;
    let (code, report) = cluster.roomlog(&arguments).await?;
    assert_eq!(code, Some(1), "{report}");
    let says = |room: &str, verdict: &str| report.contains(&format!("room.{room}: {verdict}"));
    assert!(says(&ann.room, "ahead") && says(&carl.room, "fork") && says(&eve.room, "ahead"), "{report}");
    assert_eq!(log_of(&cluster, &ann.room).await?, before, "a report changes nothing");

    arguments.push("--apply");
    let (code, said) = cluster.roomlog(&arguments).await?;
    assert_eq!(code, Some(0), "{said}");
    let repaired = Instant::now();
    assert!(log_of(&cluster, &ann.room).await?.starts_with(&whole), "what was acknowledged is back");
    assert!(log_of(&cluster, &eve.room).await?.starts_with(&new));
    assert!(log_of(&cluster, &carl.room).await?.contains(&Arc::new(other)), "the stream wins");

    for back in [&ann, &bob, &carl, &eve] {
        eventually("they are back", Duration::from_secs(20), || async {
            (!back.life().resumed.is_empty()).then_some(())
        })
        .await
        .with_context(|| format!("{:?}\n{said}\n{}", back.life(), cluster.said()))?;
    }
    let resumed = repaired.elapsed();
    eventually("Dora is told that she is not in the room", Duration::from_secs(20), || async {
        dora.life().ended
    })
    .await
    .with_context(|| format!("{:?}", dora.life()))?;
    let dora = client(&cluster, "forked", "Dora").await?;
    for room in [&ann.room, &carl.room, &eve.room, &dora.room] {
        cluster.agree(room, Duration::from_secs(5)).await.with_context(|| cluster.said())?;
    }
    println!("noticed after {noticed:?}, all resumed {resumed:?} after the repair\n{report}{said}");

    // The branch is kept where it was, and said.
    let owner = cluster.ecs.iter().find(|ec| ec.data().join("copy/set-aside").is_dir());
    let owner = owner.context("one EC had written it")?.data().display().to_string();
    let (code, verified) = cluster.roomlog(&["replay", "verify", "--data", &owner]).await?;
    assert_eq!(code, Some(1), "{verified}");
    assert!(verified.contains("ClientAdmitted") && verified.contains(&carl.room), "{verified}");
    let (code, again) = cluster.roomlog(&arguments[..arguments.len() - 1]).await?;
    assert_eq!(code, Some(0), "nothing is left to do: {again}");

    // A node that is started now finds what it had acknowledged, or knows that it was set aside.
    for index in 0..cluster.ecs.len() {
        cluster.ecs[index].terminate().await?;
        cluster.ecs[index].start_again().await?;
    }
    let gus = client(&cluster, "whole", "Gus").await?;
    cluster.agree(&gus.room, Duration::from_secs(10)).await?;
    // What went the other way claims to be decided as the commit before it was; that is all that is wrong with the log.
    let (code, said) = cluster.verify().await?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("[commit {forged}]")) && said.contains("1 errors, 0 warnings"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_after_the_loss_notices_it_by_what_it_had_acknowledged() -> anyhow::Result<()> {
    let shape = Shape { nuves: 1, ecs: 1, eas: vec![1], ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let ann = client(&cluster, "whole", "Ann").await?;
    let (store, older) = (cluster.nats[0].folder().join("store"), cluster.folder().join("older"));
    cluster.nats[0].kill();
    copy(&store, &older)?;
    cluster.nats[0].start_again();
    let _bob = client(&cluster, "whole", "Bob").await?;
    cluster.agree(&ann.room, Duration::from_secs(5)).await?;
    cluster.ecs[0].kill().await;
    cluster.nats[0].kill();
    std::fs::remove_dir_all(&store)?;
    copy(&older, &store)?;
    cluster.nats[0].start_again();
    // The stream grows past what was lost: its end alone says nothing any more.
    let journal = cluster.journal().await?;
    let lost = StreamId::new(StreamKind::Room, &ann.room)?.partition(4);
    let stream = (0..).map(|n| StreamId::new(StreamKind::Service, &format!("s{n}")));
    let stream = stream.flatten().find(|s| s.partition(4) == lost).context("one of many")?;
    let mut last: Option<Commit> = None;
    for n in 0..60u8 {
        let like = log_of(&cluster, &ann.room).await?;
        let next = Commit {
            id: CommitId::from_bytes([100 + n; 16]),
            prev: last.as_ref().map(|last| last.id),
            stream: stream.clone(),
            version: last.as_ref().map_or(Version(1), |last| last.last_version().next()),
            events: vec![RawEvent::new("Stranger", 1, Payload::encode(&1))],
            ..Commit::clone(&like[0])
        };
        journal.append(next.clone()).await?;
        last = Some(next);
    }
    // It may stop because it cannot register, or serve and refuse what goes there: both are said.
    let _ = cluster.ecs[0].start_again().await;
    let said = cluster.ecs[0].said();
    assert!(said.contains("ALARM") && said.contains("which was acknowledged"), "{said}");
    cluster.log_is_clean().await
}
