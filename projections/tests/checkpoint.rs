//! A start from a checkpoint comes to the same directory as a fold of the whole log, and a checkpoint that cannot be trusted is not used.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use roomlog_bus::{
    commit::{StreamId, Writer},
    env::Env,
    events::{ClientAdmitted, ClientJoined, ClientLeft, Event, RoomCreated, RoomDeleted},
    ids::{ClientId, Incarnation, NuveId, RoomId, ServiceId, Version},
    journal::{Before, Cursor, Follow, Journal, ReadError},
    log::{Draft, Log},
    memory_journal::MemoryJournal,
    time::Timestamp,
};
use roomlog_projections::directory::LiveDirectory;
use serde_json::json;

/// A journal that notes from where it was followed last.
struct Noting {
    inner: MemoryJournal,
    from: AtomicU64,
}

#[async_trait]
impl Before for Noting {
    fn behind(&self) -> &dyn Journal {
        &self.inner
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        self.from.store(from.0.first().copied().unwrap_or(0), Ordering::Relaxed);
        self.inner.follow(from).await
    }
}

fn journal() -> Arc<Noting> {
    Arc::new(Noting { inner: MemoryJournal::new(), from: AtomicU64::new(0) })
}

async fn write(journal: &Arc<Noting>, rooms: std::ops::Range<u32>) {
    let writer = Writer { node: StreamId::from(&NuveId::new("n").unwrap()), incarnation: Incarnation(1) };
    let log = Log::new(journal.clone(), Env::system(), writer);
    for i in rooms {
        let stream = StreamId::from(&RoomId::new(format!("r{i}")).unwrap());
        let client = ClientId::new("ann").unwrap();
        let metadata = json!({ "n": i, "deep": [1.5, null, { "a": "b" }] });
        let created = RoomCreated {
            service: ServiceId::new("s").unwrap(),
            name: format!("room {i}"),
            eapolicy: Default::default(),
            metadata,
        };
        let admitted = ClientAdmitted {
            client: client.clone(),
            user: "Ann".into(),
            role: "presenter".into(),
            addr: "127.0.0.1".into(),
            token: format!("t{i}"),
            token_expires: Timestamp(u64::MAX),
            resume_key_hash: "h".into(),
        };
        let joined = ClientJoined {
            client: client.clone(),
            display_name: "Ann".into(),
            device: json!({ "name": "Chrome" }),
            rtp_capabilities: Some(Default::default()),
        };
        let mut events: Vec<Event> = vec![created.into(), admitted.into(), joined.into()];
        match i % 3 {
            0 => {}
            1 => events.push(ClientLeft { client, reason: "left".into() }.into()),
            _ => events.push(RoomDeleted { reason: "test".into() }.into()),
        }
        log.append(stream, None, Draft::default(), &events).await.unwrap();
    }
}

async fn start(journal: &Arc<Noting>, path: &std::path::Path) -> (LiveDirectory, u64) {
    let live = LiveDirectory::start_with_checkpoint(journal.clone(), path.into()).await.unwrap();
    (live, journal.from.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_start_from_a_checkpoint_replays_the_tail_and_comes_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let journal = journal();
    write(&journal, 0..40).await;
    let (first, from) = start(&journal, &path).await;
    assert_eq!(from, 0);
    first.checkpoint().await;
    write(&journal, 40..50).await;

    let (again, from) = start(&journal, &path).await;
    assert_eq!(from, 40, "only the tail is replayed");
    let whole = LiveDirectory::start(journal.clone()).await.unwrap();
    assert!(*again.read() == *whole.read(), "{:#?}\n{:#?}", again.read(), whole.read());
    let service = ServiceId::new("s").unwrap();
    assert!(
        again.read().room_named(&service, "room 3").is_some()
            && again.read().room_named(&service, "room 2").is_none()
    );
}

#[tokio::test]
async fn rooms_that_were_purged_while_nobody_followed_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let journal = journal();
    write(&journal, 0..12).await;
    let (first, _) = start(&journal, &path).await;
    assert_eq!((first.read().rooms.len(), first.read().deleted.len()), (8, 4));
    first.checkpoint().await;
    // Room 1 is deleted and purged, room 2 was deleted before.
    let room = |i: u32| RoomId::new(format!("r{i}")).unwrap();
    let gone: Vec<_> = [1, 2].iter().map(|i| (StreamId::from(&room(*i)), Version(u64::MAX))).collect();
    journal.inner.purge(&gone).await.unwrap();
    let (again, _) = start(&journal, &path).await;
    let forgotten = async {
        while again.read().rooms.contains_key(&room(1)) || again.read().deleted.contains_key(&room(2)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), forgotten).await.unwrap();
    assert!(again.read().room_named(&ServiceId::new("s").unwrap(), "room 1").is_none());
    assert_eq!((again.read().rooms.len(), again.read().deleted.len()), (7, 3));
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_trusted_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let one = journal();
    write(&one, 0..10).await;
    start(&one, &path).await.0.checkpoint().await;
    let good = std::fs::read(&path).unwrap();

    for (what, at) in [("another beginning", 0), ("another fold", 11), ("a flipped bit", good.len() - 3)] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let (live, from) = start(&one, &path).await;
        assert_eq!((from, live.read().rooms.len()), (0, 7), "{what}");
    }
    std::fs::write(&path, &good[..9]).unwrap();
    assert_eq!(start(&one, &path).await.1, 0, "cut off");

    // The same rooms written anew are another log, though versions and places are the same.
    std::fs::write(&path, &good).unwrap();
    let other = journal();
    write(&other, 0..10).await;
    assert_eq!(start(&other, &path).await.1, 0, "of another log");
    assert_eq!(start(&journal(), &path).await.0.read().rooms.len(), 0, "of a log that is gone");
    assert_eq!(start(&one, &path).await.1, 10, "and the good one is used");
}
