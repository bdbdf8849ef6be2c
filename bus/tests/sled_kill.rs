//! A process that is killed while it appends loses nothing it had acknowledged, and a reader beside it misses nothing.
//!
//! The child is this test binary itself: it runs the one test `child`, which does nothing unless it is told a folder.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::{
    collections::HashMap,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Commit, CommitId},
    journal::{Cursor, Followed, Journal},
    sled_journal::{Finding, JournalSettings, OpenReport, SledJournal},
};

const FOLDER: &str = "ROOMLOG_KILL_TEST_FOLDER";
const SEED: &str = "ROOMLOG_KILL_TEST_SEED";
const WRITERS: usize = 24;

fn settings() -> JournalSettings {
    // Rolls several times a second, so that kills hit that too.
    JournalSettings { segment_bytes: 256 << 10, recent_commits: 64, ..JournalSettings::default() }
}

/// Appends in the name of one stream for ever; `acknowledged` hears of each commit that was answered.
async fn append_on(
    journal: SledJournal,
    name: String,
    seed: u64,
    stop: Arc<AtomicBool>,
    acknowledged: impl Fn(&Commit),
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let stream = stream(name);
    let mut head = journal.head(&stream).await.unwrap();
    while !stop.load(Ordering::Relaxed) {
        let size =
            if rng.random_bool(0.02) { rng.random_range(0..100_000) } else { rng.random_range(0..600) };
        let next = commit(&stream, head, size, &mut rng);
        journal.append(next.clone()).await.unwrap();
        head = Some(next.head());
        acknowledged(&next);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let (journal, _) = SledJournal::open(folder, settings()).unwrap();
    // A commit is acknowledged when its line is in the pipe: one write, so that a kill cannot tear it.
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let acknowledged = |commit: &Commit| {
                let line = format!("ack {} {} {}\n", commit.stream, commit.version, commit.id);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            };
            let stop = Arc::new(AtomicBool::new(false));
            tokio::spawn(append_on(
                journal.clone(),
                format!("w{w}"),
                seed << 8 | w as u64,
                stop,
                acknowledged,
            ))
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

/// Everything the journal gives, which must join up; by id.
async fn everything(journal: &SledJournal) -> HashMap<String, Arc<Commit>> {
    let mut all = HashMap::new();
    let mut heads = HashMap::new();
    let mut follow = journal.follow(Cursor::default()).await.unwrap();
    loop {
        match follow.next().await.unwrap() {
            Followed::Entry(entry) => {
                let commit = entry.commit;
                let head = heads.insert(commit.stream.clone(), commit.head());
                assert!(commit.follows(head.as_ref()), "the chain of {} breaks", commit.stream);
                all.insert(commit.id.to_string(), commit);
            }
            Followed::CaughtUp => break,
            Followed::Broken(error) => panic!("{error}"),
        }
    }
    for (stream, head) in heads {
        assert_eq!(journal.head(&stream).await.unwrap(), Some(head));
    }
    all
}

fn assert_harmless(report: &OpenReport) {
    for finding in &report.findings {
        let harmless = matches!(finding, Finding::TornTail { .. } | Finding::ManifestRebuilt { .. });
        assert!(harmless && !finding.is_damage(), "a kill damages nothing: {finding}");
    }
}

/// Starts a child, kills it after `life`, gives the ids it acknowledged.
fn run_and_kill(folder: &Path, seed: u64, life: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
        .env(FOLDER, folder)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let mut output = output;
        output.read_to_string(&mut text).unwrap();
        text
    });
    std::thread::sleep(life);
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    let text = reader.join().unwrap();
    text.lines().filter_map(|line| Some(line.strip_prefix("ack ")?.rsplit(' ').next()?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_loses_nothing_it_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(42);
    let mut acknowledged: Vec<String> = Vec::new();
    let mut kills_with_acks = 0;
    let mut findings = 0;
    for round in 0..25 {
        // Some die while they still open.
        let life = if round % 5 == 4 { rng.random_range(0..40) } else { rng.random_range(60..500) };
        let acks = run_and_kill(root.path(), round, Duration::from_millis(life));
        kills_with_acks += usize::from(!acks.is_empty());
        acknowledged.extend(acks);
        if !root.path().join("facts.json").exists() {
            continue;
        }
        // As it was left, beside no process; then recovered; every other time the next child recovers.
        let (reader, report) = SledJournal::open_read_only(root.path()).unwrap();
        assert_harmless(&report);
        let seen = everything(&reader).await;
        if let Some(lost) = acknowledged.iter().find(|id| !seen.contains_key(*id)) {
            panic!("round {round}: {lost} was acknowledged and is not read");
        }
        if round % 2 == 0 {
            let (journal, report) = SledJournal::open(root.path(), settings()).unwrap();
            assert_harmless(&report);
            findings += report.findings.len();
            let kept = everything(&journal).await;
            if let Some(lost) = acknowledged.iter().find(|id| !kept.contains_key(*id)) {
                panic!("round {round}: {lost} was acknowledged and is gone; {report:?}");
            }
            journal.close().await;
        }
    }
    println!("{} acknowledged, {kills_with_acks} kills under load, {findings} findings", acknowledged.len());
    assert!(kills_with_acks >= 15 && acknowledged.len() > 1_000, "the children did append");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_beside_the_writer_sees_all_that_was_acknowledged_before() {
    let root = tempfile::tempdir().unwrap();
    let (journal, _) = SledJournal::open(root.path(), settings()).unwrap();
    let acknowledged: Shared<Vec<CommitId>> = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let acknowledged = acknowledged.clone();
            let note = move |commit: &Commit| acknowledged.lock().unwrap().push(commit.id);
            tokio::spawn(append_on(journal.clone(), format!("w{w}"), w as u64, stop.clone(), note))
        })
        .collect();
    let mut last = 0;
    for round in 0..50 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let before: Vec<CommitId> = acknowledged.lock().unwrap().clone();
        let folder = root.path().to_owned();
        let opened = tokio::task::spawn_blocking(move || SledJournal::open_read_only(folder)).await.unwrap();
        let (reader, report) = opened.unwrap();
        assert_eq!(report.findings, [], "round {round}");
        let seen = everything(&reader).await;
        for id in &before {
            assert!(seen.contains_key(&id.to_string()), "round {round}: {id} was acknowledged before");
        }
        assert!(before.len() >= last);
        last = before.len();
        // A fast disk has given enough by then; each opening reads everything there is.
        if last > 20_000 && round >= 10 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    println!("{last} commits at the end");
    assert!(last > 1_000, "there was load: {last}");
    journal.close().await;
}
