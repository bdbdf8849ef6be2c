//! What the sled journal does with what is purged: against a model, over many small segments, through restarts; and that its space comes back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use rand::{Rng, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Commit, Head, StreamId, StreamKind},
    ids::Version,
    journal::{Cursor, Followed, Journal, read_all},
    sled_journal::{JournalSettings, SledJournal},
};

use common::commit;

fn settings() -> JournalSettings {
    // About forty commits a segment.
    JournalSettings { segment_bytes: 20_000, recent_commits: 30, check_all: true, ..Default::default() }
}

fn open(directory: &Path) -> SledJournal {
    let (journal, report) = SledJournal::open(directory, settings()).unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
    journal
}

async fn everything(journal: &SledJournal) -> Vec<Arc<Commit>> {
    let mut follow = journal.follow(Cursor::default()).await.unwrap();
    let mut all = Vec::new();
    loop {
        match follow.next().await {
            Some(Followed::Entry(entry)) => all.push(entry.commit),
            Some(Followed::CaughtUp) => return all,
            other => panic!("{other:?}"),
        }
    }
}

/// What should be there.
#[derive(Default)]
struct Model {
    /// In the journal's order, what is left.
    all: Vec<Commit>,
    heads: BTreeMap<StreamId, Head>,
}

impl Model {
    fn purge(&mut self, stream: &StreamId, below: Version) {
        self.all.retain(|c| c.stream != *stream || c.last_version() >= below);
        if self.heads.get(stream).is_some_and(|head| head.version < below) {
            self.heads.remove(stream);
        }
    }

    async fn compare(&self, journal: &SledJournal) {
        let found: Vec<Commit> = everything(journal).await.iter().map(|c| Commit::clone(c)).collect();
        assert_eq!(found.len(), self.all.len());
        assert_eq!(found, self.all);
        let heads: BTreeMap<_, _> = journal.streams(StreamKind::Room).await.unwrap().into_iter().collect();
        assert_eq!(heads, self.heads);
        for stream in self.heads.keys() {
            let own: Vec<_> = self.all.iter().filter(|c| c.stream == *stream).cloned().collect();
            let read = read_all(journal, stream, Version(1)).await.unwrap();
            assert_eq!(read.iter().map(|c| Commit::clone(c)).collect::<Vec<_>>(), own);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purged_journals_are_what_a_model_says_through_cleaning_and_restarts() {
    for seed in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut journal = open(folder.path());
        let mut model = Model::default();
        let mut made = 0;
        for _ in 0..40 {
            for _ in 0..rng.random_range(5..40) {
                let known: Vec<StreamId> = model.heads.keys().cloned().collect();
                let stream = if known.len() < 6 || rng.random_bool(0.05) {
                    made += 1;
                    format!("room.r{made}").parse().unwrap()
                } else {
                    known[rng.random_range(0..known.len())].clone()
                };
                let next = commit(&stream, model.heads.get(&stream).copied(), 200, &mut rng);
                journal.append(next.clone()).await.unwrap();
                model.heads.insert(stream, next.head());
                model.all.push(next);
            }
            let purged: Vec<(StreamId, Version)> = model
                .heads
                .iter()
                .filter_map(|(stream, head)| {
                    let below = match rng.random_range(0..6) {
                        0 => head.version.next(),
                        1 => head.version,
                        2 => Version(rng.random_range(1..=head.version.0)),
                        _ => return None,
                    };
                    Some((stream.clone(), below))
                })
                .collect();
            journal.purge(&purged).await.unwrap();
            for (stream, below) in &purged {
                model.purge(stream, *below);
            }
            if rng.random_bool(0.3) {
                journal.close().await;
                journal = open(folder.path());
            }
            model.compare(&journal).await;
        }
        let (beside, report) = SledJournal::open_read_only(folder.path()).unwrap();
        assert!(report.findings.is_empty(), "seed {seed}: {report:?}");
        model.compare(&beside).await;
        journal.close().await;
    }
}

/// Bytes in all files below `directory`.
fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => bytes_in(&entry.path()),
            false => entry.metadata().unwrap().len(),
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_space_of_what_is_purged_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let settings = JournalSettings { segment_bytes: 200_000, ..Default::default() };
    let (journal, _) = SledJournal::open(folder.path(), settings.clone()).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let stays: StreamId = "service.stays".parse().unwrap();
    let mut kept = Vec::new();
    let mut largest = 0;
    for round in 0..15 {
        let mut purged = Vec::new();
        for room in 0..20 {
            let stream: StreamId = format!("room.r{round}-{room}").parse().unwrap();
            let mut head = None;
            for _ in 0..20 {
                let next = commit(&stream, head, 200, &mut rng);
                head = Some(next.head());
                journal.append(next).await.unwrap();
            }
            purged.push((stream, Version(1_000)));
        }
        let next = commit(&stays, kept.last().map(Commit::head), 200, &mut rng);
        journal.append(next.clone()).await.unwrap();
        kept.push(next);
        journal.purge(&purged).await.unwrap();
        if round == 4 {
            largest = bytes_in(folder.path());
        }
    }
    let now = bytes_in(folder.path());
    assert!(now < largest + largest / 4, "{now} bytes after three times as much as gave {largest}");
    assert_eq!(everything(&journal).await.len(), 15, "what stays is in every segment, and stays");
    journal.close().await;
    let (journal, report) = SledJournal::open(folder.path(), settings).unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
    let left: Vec<Commit> = everything(&journal).await.iter().map(|c| Commit::clone(c)).collect();
    assert_eq!(left, kept);
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_record_of_what_was_purged_a_journal_opens_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let journal = open(folder.path());
    let stream: StreamId = "room.a".parse().unwrap();
    let mut head = None;
    for _ in 0..200 {
        let next = commit(&stream, head, 200, &mut rng);
        head = Some(next.head());
        journal.append(next).await.unwrap();
    }
    journal.purge(&[(stream.clone(), head.unwrap().version)]).await.unwrap();
    journal.close().await;
    std::fs::write(folder.path().join("purged"), b"rlpurge\x01nonsense of some length").unwrap();
    let (journal, report) = SledJournal::open(folder.path(), settings()).unwrap();
    assert!(report.is_damaged() && report.findings[0].to_string().contains("purged"), "{report:?}");
    assert_eq!(journal.head(&stream).await.unwrap(), head);
    assert_eq!(everything(&journal).await.last().unwrap().head(), head.unwrap());
    journal.close().await;
}
