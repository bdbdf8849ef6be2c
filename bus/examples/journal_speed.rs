//! Durable appends per second of the sled journal beside a plain file in the same run: the same bytes, one write and one `fdatasync` a group.
//!
//! `cargo run --release -p roomlog-bus --example journal_speed -- [DIRECTORY]`; measure on the disk that will be used, not on a tmpfs.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::{RngCore, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, RawEvent, StreamId, StreamKind, Writer},
    ids::{Epoch, Incarnation, Version},
    journal::Journal,
    sled_journal::{JournalSettings, SledJournal},
    time::Timestamp,
};

/// How long each of journal and file is measured, alternating in slices so that both see the same disk.
const SLICE: Duration = Duration::from_millis(500);
const SLICES: u32 = 6;

fn commit(stream: &StreamId, head: Option<Head>, rng: &mut StdRng) -> Commit {
    let mut data = [0; 200];
    rng.fill_bytes(&mut data);
    Commit {
        id: CommitId::new(Timestamp(1_795_000_000_000_000), rng),
        prev: head.map(|h| h.id),
        stream: stream.clone(),
        version: head.map_or(Version(1), |h| h.version.next()),
        time: Timestamp(1_795_000_000_000_000),
        writer: Writer { node: "ec.measure".parse().expect("a stream"), incarnation: Incarnation(1) },
        epoch: Epoch(1),
        cause: Cause::of("request"),
        command: Payload::encode(&"join"),
        facts: Payload::default(),
        events: vec![RawEvent {
            kind: "ClientJoined".into(),
            schema: 1,
            data: Payload::encode(&serde_bytes::ByteBuf::from(data)),
        }],
    }
}

/// Commits made before the clock runs: the journal is measured, not their making.
fn prepare(writers: usize, slice: u32, each: usize) -> Vec<Vec<Commit>> {
    let mut rng = StdRng::seed_from_u64(u64::from(slice));
    (0..writers)
        .map(|w| {
            let stream =
                StreamId::new(StreamKind::Room, &format!("w{writers}-{slice}-{w}")).expect("a token");
            let mut head = None;
            (0..each)
                .map(|_| {
                    let commit = commit(&stream, head, &mut rng);
                    head = Some(commit.head());
                    commit
                })
                .collect()
        })
        .collect()
}

async fn journal_slice(journal: &SledJournal, commits: Vec<Vec<Commit>>) -> (u64, Duration) {
    let start = Instant::now();
    let tasks: Vec<_> = commits
        .into_iter()
        .map(|commits| {
            let journal = journal.clone();
            tokio::spawn(async move {
                let mut count = 0;
                for commit in commits {
                    journal.append(commit).await.expect("stored");
                    count += 1;
                    if start.elapsed() > SLICE {
                        break;
                    }
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.expect("ran");
    }
    (count, start.elapsed())
}

fn file_slice(file: &mut File, group: usize, sample: &[u8]) -> (u64, Duration) {
    let (start, mut groups) = (Instant::now(), 0);
    let bytes = sample.repeat(group);
    while start.elapsed() < SLICE {
        file.write_all(&bytes).expect("written");
        file.sync_data().expect("synced");
        groups += 1;
    }
    (groups * group as u64, start.elapsed())
}

fn size(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

#[tokio::main]
async fn main() {
    let directory = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    println!("group   journal/s      file/s   ratio   bytes on disk per byte committed");
    for group in [1, 64, 1024] {
        let directory = directory.join(format!("journal-speed-{}-{group}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let settings = JournalSettings { group_commits: group, ..JournalSettings::default() };
        let (journal, _) = SledJournal::open(directory.join("journal"), settings).expect("opened");
        // Twice as many writers as a group has commits: one group gathers while the other is synced.
        let writers = if group == 1 { 1 } else { 2 * group };
        let mut file = File::create(directory.join("file")).expect("made");
        let mut rng = StdRng::seed_from_u64(1);
        let stream = StreamId::new(StreamKind::Room, "sample").expect("a token");
        let sample = commit(&stream, None, &mut rng).encode();
        let (mut stored, mut bytes, mut took) = (0, 0, Duration::ZERO);
        let (mut plain, mut plain_took) = (0, Duration::ZERO);
        for slice in 0..SLICES {
            // Enough for a slice at 400 000 a second, in memory for one slice only.
            let commits = prepare(writers, slice, (200_000 / writers).min(10_000));
            let (count, time) = journal_slice(&journal, commits).await;
            (stored, bytes, took) = (stored + count, bytes + count * sample.len() as u64, took + time);
            let (count, time) = file_slice(&mut file, group, &sample);
            (plain, plain_took) = (plain + count, plain_took + time);
        }
        let (journal_rate, file_rate) =
            (stored as f64 / took.as_secs_f64(), plain as f64 / plain_took.as_secs_f64());
        journal.close().await;
        let on_disk = size(&directory.join("journal/segments"));
        let opening = Instant::now();
        let (journal, report) =
            SledJournal::open(directory.join("journal"), JournalSettings::default()).expect("opened");
        let opened = opening.elapsed();
        journal.close().await;
        println!(
            "{group:>5} {journal_rate:>11.0} {file_rate:>11.0} {:>7.2}   {:.2} ({bytes} bytes, {stored} commits; {} segments open again in {opened:.0?})",
            journal_rate / file_rate,
            on_disk as f64 / bytes as f64,
            report.segments,
        );
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
