//! What the tests of the sled journal share: commits that join up, and a check of everything a journal serves.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, RawEvent, StreamId, StreamKind, Writer},
    ids::{Epoch, Incarnation, Version},
    journal::{Cursor, Followed, Journal, ReadError, read_all},
    sled_journal::{JournalSettings, SledJournal},
    time::Timestamp,
};

/// Segments that roll after a few dozen commits.
pub fn small_segments() -> JournalSettings {
    JournalSettings { segment_bytes: 32 << 10, recent_commits: 8, ..JournalSettings::default() }
}

/// The commit after `head`, with about `size` bytes.
pub fn commit(stream: &StreamId, head: Option<Head>, size: usize, rng: &mut StdRng) -> Commit {
    let now = Timestamp(1_795_359_845_000_000);
    let mut data = vec![0; size];
    rng.fill_bytes(&mut data);
    let events = rng.random_range(1..=3);
    Commit {
        id: CommitId::new(now, rng),
        prev: head.map(|head| head.id),
        stream: stream.clone(),
        version: head.map_or(Version(1), |head| head.version.next()),
        time: now,
        writer: Writer { node: "ec.test".parse().unwrap(), incarnation: Incarnation(1) },
        epoch: Epoch(1),
        cause: Cause::of("request"),
        command: Payload::encode(&serde_bytes::ByteBuf::from(data)),
        facts: Payload::default(),
        events: vec![RawEvent::new("X", 1, Payload::encode(&1)); events],
        more: Default::default(),
    }
}

pub fn stream(name: impl std::fmt::Display) -> StreamId {
    StreamId::new(StreamKind::Room, &name.to_string()).unwrap()
}

/// Every commit, by stream.
pub type Written = BTreeMap<StreamId, Vec<Commit>>;

/// Appends `count` commits to `streams` streams in turn, one after another so that every group is one commit, or all streams at once.
pub async fn write(
    journal: &SledJournal,
    streams: usize,
    count: usize,
    together: bool,
    seed: u64,
) -> Written {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut written = Written::new();
    for round in 0..count.div_ceil(streams) {
        let mut waiting = Vec::new();
        for s in 0..streams {
            let stream = stream(format!("s{s}"));
            let so_far = written.entry(stream.clone()).or_default();
            let size = if (round + s) % 10 == 0 { 5_000 } else { 200 };
            let next = commit(&stream, so_far.last().map(Commit::head), size, &mut rng);
            so_far.push(next.clone());
            if together {
                let journal = journal.clone();
                waiting.push(tokio::spawn(async move { journal.append(next).await.unwrap() }));
            } else {
                journal.append(next).await.unwrap();
            }
        }
        for appended in waiting {
            appended.await.unwrap();
        }
    }
    written
}

/// What a journal still gives.
#[derive(Debug, Default)]
pub struct Served {
    /// Commits of `written` it gave, by read or by follow.
    pub given: HashMap<CommitId, ()>,
    /// Streams whose read failed.
    pub failed: Vec<StreamId>,
}

/// Reads everything in every way; whatever is served must be what was written.
pub async fn served(journal: &SledJournal, written: &Written) -> Served {
    let mut served = Served::default();
    for (stream, commits) in written {
        match read_all(journal, stream, Version(1)).await {
            Ok(read) => {
                assert!(read.len() <= commits.len());
                for (read, written) in read.iter().zip(commits) {
                    assert_eq!(**read, *written, "served something that was never written");
                    served.given.insert(read.id, ());
                }
                let head = journal.head(stream).await.unwrap();
                assert_eq!(head, read.last().map(|c| c.head()), "head and stream of {stream} differ");
            }
            Err(ReadError::Damaged { .. }) => served.failed.push(stream.clone()),
            Err(error) => panic!("{error}"),
        }
    }
    // Follow over the holes, beginning again after each.
    let by_id: HashMap<CommitId, &Commit> = written.values().flatten().map(|c| (c.id, c)).collect();
    let tail = journal.tail().await.unwrap().0[0];
    let mut next = 0;
    while next < tail {
        let mut follow = journal.follow(Cursor(vec![next])).await.unwrap();
        loop {
            match follow.next().await {
                Some(Followed::Entry(entry)) => {
                    assert_eq!(entry.cursor.0[0], next + 1, "a gap that was not said");
                    next += 1;
                    assert_eq!(Some(&&*entry.commit), by_id.get(&entry.commit.id));
                    served.given.insert(entry.commit.id, ());
                }
                Some(Followed::CaughtUp) => {
                    assert_eq!(next, tail);
                    break;
                }
                Some(Followed::Broken(_)) => {
                    next += 1;
                    break;
                }
                None => panic!("the follow ended"),
            }
        }
    }
    served
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// All files below a folder.
pub fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

pub type Shared<T> = Arc<std::sync::Mutex<T>>;
