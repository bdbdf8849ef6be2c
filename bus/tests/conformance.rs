//! Every engine of this crate does what engines must do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use roomlog_bus::{
    bus::Bus,
    conformance::{Opened, bus_suite, journal_suite},
    journal::Journal,
    memory_bus::MemoryBus,
    memory_journal::MemoryJournal,
    sled_journal::{JournalSettings, SledJournal},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_in_memory_conforms() {
    bus_suite(|| async { Arc::new(MemoryBus::new()) as Arc<dyn Bus> }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_in_memory_conforms() {
    journal_suite(|| async { Opened { journal: Arc::new(MemoryJournal::new()), reopen: None } }).await;
}

/// A fresh sled journal in `directory`, reopened by closing it first.
fn sled(directory: PathBuf, settings: JournalSettings) -> Opened {
    let open = move || {
        let (journal, report) = SledJournal::open(&directory, settings.clone()).expect("opens");
        assert_eq!(report.findings, [], "a journal that was closed has nothing to report");
        journal
    };
    let current = Arc::new(Mutex::new(open()));
    let journal: Arc<dyn Journal> = Arc::new(current.lock().unwrap().clone());
    let open = Arc::new(open);
    let reopen = Box::new(move || {
        let (current, open) = (current.clone(), open.clone());
        let future = async move {
            let old = current.lock().unwrap().clone();
            old.close().await;
            let new = open();
            *current.lock().unwrap() = new.clone();
            Arc::new(new) as Arc<dyn Journal>
        };
        Box::pin(future) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
    });
    Opened { journal, reopen: Some(reopen) }
}

async fn sled_suite(settings: JournalSettings) {
    let root = tempfile::tempdir().unwrap();
    let counter = Mutex::new(0);
    journal_suite(|| {
        let mut counter = counter.lock().unwrap();
        *counter += 1;
        let opened = sled(root.path().join(counter.to_string()), settings.clone());
        async { opened }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_in_sled_conforms() {
    sled_suite(JournalSettings::default()).await;
}

/// Everything small, so that segments roll, reads come from disk and followers fall behind all the time.
#[tokio::test(flavor = "multi_thread")]
async fn the_journal_in_sled_conforms_with_small_segments_and_no_memory() {
    let settings = JournalSettings {
        segment_bytes: 8 << 10,
        group_commits: 7,
        queue: 3,
        recent_commits: 2,
        follow_queue: 1,
        ..JournalSettings::default()
    };
    sled_suite(settings).await;
}
