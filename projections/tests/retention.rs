//! What is due, and that it is in the archive before it is gone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{sync::Arc, time::Duration};

use roomlog_bus::{
    commit::{StreamId, Writer},
    env::Env,
    events::{Event, RoomClosed, RoomCreated, RoomDeleted, RoomOpened, RoomPlaced},
    ids::{EcId, Epoch, Incarnation, NuveId, RoomId, ServiceId, Version},
    journal::read_all,
    log::{Draft, Log},
    memory_journal::MemoryJournal,
    time::Timestamp,
};
use roomlog_projections::{
    archive::{self, Archive},
    directory::LiveDirectory,
    retention::{Retention, RetentionSettings, to_compact, to_purge},
};

fn room(name: &str) -> RoomId {
    RoomId::new(name).unwrap()
}

/// Rooms of `ec`: one open, one closed after a long life, one closed after a short one, one deleted.
async fn journal(ec: &EcId) -> Arc<MemoryJournal> {
    let journal = Arc::new(MemoryJournal::new());
    let writer = Writer { node: StreamId::from(&NuveId::new("n").unwrap()), incarnation: Incarnation(1) };
    let log = Log::new(journal.clone(), Env::system(), writer);
    for (name, sessions, end) in [
        ("open", 20, None),
        ("long", 20, Some(false)),
        ("short", 1, Some(false)),
        ("deleted", 20, Some(true)),
    ] {
        let service = ServiceId::new("s").unwrap();
        let created = RoomCreated {
            service,
            name: name.into(),
            eapolicy: Default::default(),
            metadata: Default::default(),
        };
        let placed = RoomPlaced {
            ec: ec.clone(),
            incarnation: Incarnation(1),
            epoch: Epoch(1),
            reason: "first-token".into(),
        };
        let mut events: Vec<Event> = vec![created.into(), placed.into()];
        for _ in 1..sessions {
            events.extend([RoomOpened {}.into(), RoomClosed { reason: "empty".into() }.into()]);
        }
        events.push(RoomOpened {}.into());
        match end {
            None => {}
            Some(false) => events.push(RoomClosed { reason: "empty".into() }.into()),
            Some(true) => events.push(RoomDeleted { reason: "test".into() }.into()),
        }
        let mut head = None;
        for part in events.chunks(7) {
            let stream = StreamId::from(&room(name));
            head = Some(log.append(stream, head, Draft::default(), part).await.unwrap().head());
        }
    }
    journal
}

#[tokio::test]
async fn what_is_over_is_due_after_its_time_and_what_is_not_never() {
    let ec = EcId::new("one").unwrap();
    let directory = LiveDirectory::start(journal(&ec).await).await.unwrap();
    let settings = RetentionSettings { history: Duration::from_secs(100), ..Default::default() };
    let now = Env::system().now();
    let at = |seconds: u64| now.plus_millis(seconds * 1_000);
    let compact = |ec: &EcId, at| to_compact(&directory.read(), ec, at, &settings);
    let purge = |at, later| to_purge(&directory.read(), at, &settings, Duration::from_secs(later));
    assert_eq!((compact(&ec, at(90)), purge(at(90), 0)), (vec![], vec![]));
    assert_eq!((compact(&ec, at(101)), purge(at(101), 0)), (vec![room("long")], vec![room("deleted")]));
    assert_eq!(compact(&EcId::new("another").unwrap(), at(101)), [], "only the owner compacts");
    assert_eq!((purge(at(101), 60), purge(at(161), 60)), (vec![], vec![room("deleted")]));
}

#[tokio::test]
async fn what_is_purged_is_in_the_archive_as_it_was_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(&EcId::new("one").unwrap()).await;
    let all = |name: &'static str| {
        let journal = journal.clone();
        async move { read_all(&*journal, &StreamId::from(&room(name)), Version(1)).await.unwrap() }
    };
    let (deleted, long) = (all("deleted").await, all("long").await);
    let now = Timestamp(1_800_000_000_000_000);
    let kept = Arc::new(Archive::new(folder.path().join("archive"), "nuve.n"));
    let retention = Retention::new(journal.clone(), Some(kept));
    let mut done = Vec::new();
    retention.purge(&[room("deleted")], now, |rooms| done.extend_from_slice(rooms)).await.unwrap();
    retention.compact(&room("long"), long[3].version, now).await.unwrap();
    assert_eq!(done, [room("deleted")]);
    assert_eq!((all("deleted").await.len(), all("long").await), (0, long[3..].to_vec()));

    let archived: Vec<_> =
        archive::read(&folder.path().join("archive")).unwrap().into_iter().map(Arc::new).collect();
    assert_eq!(archived, [&deleted[..], &long[..3]].concat());

    // What cannot be archived is not purged.
    std::fs::write(folder.path().join("no-folder"), "").unwrap();
    let full = Arc::new(Archive::new(folder.path().join("no-folder"), "nuve.n"));
    let retention = Retention::new(journal.clone(), Some(full));
    let error = retention.compact(&room("long"), long[4].version, now).await.unwrap_err().to_string();
    assert!(error.contains("no-folder"), "{error}");
    assert_eq!(all("long").await.len(), long.len() - 3);
}

#[tokio::test]
async fn an_archive_that_is_damaged_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let day = folder.path().join("2026-11-22");
    std::fs::create_dir(&day).unwrap();
    std::fs::write(day.join("x.commits"), b"\xc1 not a commit").unwrap();
    std::fs::write(day.join("y.commits.writing"), b"what a crash left is not looked at").unwrap();
    let error = archive::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("x.commits"), "{error}");
}
