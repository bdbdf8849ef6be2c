//! A log that lost a segment still starts: what is lost is named, what is left is served, and nobody waits for what will never come.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::{sync::Arc, time::Duration};

use roomlog_bus::{
    commit::{StreamId, Writer},
    env::Env,
    events::{Event, RoomCreated},
    ids::{Incarnation, NuveId, RoomId, ServiceId},
    journal::Journal,
    log::{Draft, Log},
    sled_journal::{JournalSettings, SledJournal},
};
use roomlog_projections::directory::LiveDirectory;

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_starts_over_a_lost_segment_and_holds_every_room_that_is_left() {
    let data = tempfile::tempdir().unwrap();
    let settings = || JournalSettings { segment_blocks: 10, ..JournalSettings::default() };
    let (journal, _) = SledJournal::open(data.path(), settings()).unwrap();
    let log = Log::new(
        Arc::new(journal.clone()),
        Env::system(),
        Writer { node: StreamId::from(&NuveId::new("n").unwrap()), incarnation: Incarnation(1) },
    );
    let created = |name: &str| -> Event {
        RoomCreated {
            service: ServiceId::new("s").unwrap(),
            name: name.into(),
            eapolicy: Default::default(),
            metadata: Default::default(),
        }
        .into()
    };
    let rooms: Vec<RoomId> = (0..45).map(|i| RoomId::new(format!("room-{i}")).unwrap()).collect();
    for room in &rooms {
        log.append(StreamId::from(room), None, Draft::default(), &[created(room.as_str())]).await.unwrap();
    }
    drop(log);
    journal.close().await;
    drop(journal);

    let mut lost = 0;
    for entry in std::fs::read_dir(data.path().join("segments")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("000002") {
            lost += 1;
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap()
            } else {
                std::fs::remove_file(path).unwrap()
            }
        }
    }
    assert!(lost > 0, "there is a second segment to lose");

    let (journal, report) = SledJournal::open(data.path(), settings()).unwrap();
    assert!(!report.findings.is_empty(), "the loss is named");
    let journal: Arc<dyn Journal> = Arc::new(journal);
    let started = tokio::time::timeout(Duration::from_secs(10), LiveDirectory::start(journal)).await;
    let directory = started.expect("it must not wait for what is lost").unwrap();
    let there = rooms.iter().filter(|room| directory.read().rooms.contains_key(*room)).count();
    println!("{there} of {} rooms are left; {:?}", rooms.len(), report.findings);
    assert!((30..45).contains(&there), "{there} rooms");
    assert!(
        directory.read().rooms.contains_key(&rooms[0]) && directory.read().rooms.contains_key(&rooms[44])
    );
}
