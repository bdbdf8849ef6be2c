//! What only the inside of the journal can provoke: a failing sync, a torn group, a page sled would have moved.

use std::sync::atomic::Ordering;

use rand::{SeedableRng, rngs::StdRng};

use super::{index::Segment, *};
use crate::{
    commit::{Cause, CommitId, Payload, RawEvent, Writer},
    ids::{Epoch, Incarnation},
    time::Timestamp,
};

fn commit(stream: &StreamId, head: Option<Head>, rng: &mut StdRng) -> Commit {
    Commit {
        id: CommitId::new(Timestamp(1), rng),
        prev: head.map(|head| head.id),
        stream: stream.clone(),
        version: head.map_or(Version(1), |head| head.version.next()),
        time: Timestamp(1),
        writer: Writer { node: "ec.test".parse().unwrap(), incarnation: Incarnation(1) },
        epoch: Epoch(1),
        cause: Cause::of("request"),
        command: Payload::encode(&vec![7_u8; 300]),
        facts: Payload::default(),
        events: vec![RawEvent::new("X", 1, Payload::default())],
        more: Default::default(),
    }
}

fn break_the_sync(journal: &SledJournal) {
    for segment in journal.shared.index().segments.values() {
        if let Segment::Live(live) = segment {
            live.fail_sync.store(true, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_sync_nothing_is_acknowledged_until_the_journal_is_opened_again() {
    let root = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let (a, b): (StreamId, StreamId) = ("room.a".parse().unwrap(), "room.b".parse().unwrap());
    let (journal, _) = SledJournal::open(root.path(), JournalSettings::default()).unwrap();
    let (first, other) = (commit(&a, None, &mut rng), commit(&b, None, &mut rng));
    journal.append(first.clone()).await.unwrap();
    journal.append(other.clone()).await.unwrap();
    let mut follow = journal.follow(journal.tail().await.unwrap()).await.unwrap();
    assert_eq!(follow.next().await, Some(crate::journal::Followed::CaughtUp));

    break_the_sync(&journal);
    let second = commit(&a, Some(first.head()), &mut rng);
    assert_eq!(journal.append(second.clone()).await, Err(AppendError::Unknown { stream: a.clone() }));
    // Not acknowledged, so not followed; in doubt, so neither its presence nor its absence is claimed.
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), follow.next()).await.is_err());
    assert!(matches!(journal.head(&a).await, Err(ReadError::Unavailable { .. })));
    assert!(matches!(journal.read(&a, Version(1), 9).await, Err(ReadError::Unavailable { .. })));
    // Others can be read, but nobody can append, though a sync would now succeed.
    for segment in journal.shared.index().segments.values() {
        let Segment::Live(live) = segment else { continue };
        live.fail_sync.store(false, Ordering::Relaxed);
    }
    assert_eq!(journal.head(&b).await.unwrap(), Some(other.head()));
    let next = commit(&b, Some(other.head()), &mut rng);
    assert!(matches!(journal.append(next.clone()).await, Err(AppendError::Unavailable { .. })));
    assert!(journal.stopped().unwrap().contains("restart"));
    journal.close().await;

    let (journal, _) = SledJournal::open(root.path(), JournalSettings::default()).unwrap();
    let head = journal.head(&a).await.unwrap().unwrap();
    assert!(head == first.head() || head == second.head(), "it is one or the other, and now it is known");
    assert_eq!(journal.append(next).await, Ok(()));
    journal.close().await;
}

/// The reserved keys are there so that sled writes each block once; see `live.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_written_about_once() {
    let root = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let stream: StreamId = "room.a".parse().unwrap();
    let (journal, _) = SledJournal::open(root.path(), JournalSettings::default()).unwrap();
    let (mut head, mut bytes) = (None, 0);
    for _ in 0..400 {
        let mut next = commit(&stream, head, &mut rng);
        next.command = Payload::encode(&serde_bytes::ByteBuf::from(vec![1; 50_000]));
        head = Some(next.head());
        bytes += next.encode().len();
        journal.append(next).await.unwrap();
    }
    journal.close().await;
    let on_disk = std::fs::metadata(root.path().join("segments/000001/db")).unwrap().len();
    let ratio = on_disk as f64 / bytes as f64;
    assert!(ratio < 1.3, "{ratio:.2} bytes on disk per byte");
}
