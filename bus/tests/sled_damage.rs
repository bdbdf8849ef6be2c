//! Damage on disk is noticed, named, set aside and never served; what is intact is served on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use common::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::Commit,
    ids::Version,
    journal::{AppendError, Journal, ReadError, read_all},
    sled_journal::{Finding, JournalSettings, OpenReport, SledJournal},
};

/// A closed journal of several segments, and what is in it.
struct Sample {
    root: tempfile::TempDir,
    written: Written,
    /// The live segment.
    live: u32,
}

impl Sample {
    async fn new(together: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (journal, report) = SledJournal::open(root.path(), small_segments()).unwrap();
        assert_eq!(report, OpenReport { segments: 1, ..OpenReport::default() });
        let written = write(&journal, 7, 350, together, 1).await;
        journal.close().await;
        let live = fs::read_dir(root.path().join("segments"))
            .unwrap()
            .filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok())
            .max()
            .unwrap();
        assert!(live > 4, "several segments: {live}");
        Self { root, written, live }
    }

    fn segment(&self, number: u32) -> PathBuf {
        self.root.path().join(format!("segments/{number:06}"))
    }

    fn manifest(&self, number: u32) -> PathBuf {
        self.root.path().join(format!("segments/{number:06}.manifest"))
    }

    async fn open(&self) -> (SledJournal, OpenReport) {
        self.open_with(small_segments()).await
    }

    async fn open_with(&self, settings: JournalSettings) -> (SledJournal, OpenReport) {
        SledJournal::open(self.root.path(), settings).unwrap()
    }

    fn commits(&self) -> usize {
        self.written.values().map(Vec::len).sum()
    }

    /// All is there, and can be appended to.
    async fn assert_whole(&self, journal: &SledJournal) {
        let served = served(journal, &self.written).await;
        assert_eq!((served.given.len(), served.failed), (self.commits(), vec![]));
    }
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Offset of the `n`th block in a file.
fn block(path: &Path, n: usize) -> u64 {
    let bytes = fs::read(path).unwrap();
    memchr::memmem::find_iter(&bytes, b"rlblock\x01").nth(n).unwrap() as u64
}

fn set_aside(report: &OpenReport) -> Vec<(u32, PathBuf)> {
    let aside = report.findings.iter().filter_map(|f| match f {
        Finding::SetAside { segment, moved_to, .. } => Some((*segment, moved_to.clone())),
        _ => None,
    });
    aside.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undamaged_journal_has_nothing_to_report() {
    let sample = Sample::new(false).await;
    let (journal, report) = sample.open_with(JournalSettings { check_all: true, ..small_segments() }).await;
    assert_eq!(report.findings, []);
    assert_eq!((report.last_sequence, report.streams), (sample.commits() as u64, 7));
    sample.assert_whole(&journal).await;
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_block_of_the_live_segment_costs_that_block_only() {
    let sample = Sample::new(false).await;
    let log = sample.segment(sample.live).join("db");
    let at = block(&log, 2) + 100;
    flip(&log, at);
    let before = fs::read(&log).unwrap();
    let (journal, report) = sample.open().await;
    assert!(report.is_damaged());
    let aside = set_aside(&report);
    assert_eq!(aside.len(), 1);
    assert_eq!(aside[0].0, sample.live);
    assert!(fs::read(aside[0].1.join("db")).unwrap() == before, "what is set aside is as it was found");
    let holes: Vec<_> = report
        .findings
        .iter()
        .filter_map(|f| match f {
            Finding::Hole { first, last, .. } => Some((*first, *last)),
            _ => None,
        })
        .collect();
    assert_eq!(holes.len(), 1, "{report:?}");
    assert_eq!(holes[0].0, holes[0].1, "one commit was in that block");
    let served = served(&journal, &sample.written).await;
    assert_eq!(served.given.len(), sample.commits() - 1, "all but that commit are still given");
    assert_eq!(served.failed.len(), 1, "the stream with the hole is not served");
    // It takes no appends, the others do.
    let mut rng = StdRng::seed_from_u64(9);
    for (stream, commits) in &sample.written {
        let next = commit(stream, commits.last().map(Commit::head), 100, &mut rng);
        let appended = journal.append(next).await;
        if served.failed.contains(stream) {
            assert!(matches!(appended, Err(AppendError::Unavailable { .. })), "{appended:?}");
        } else {
            assert_eq!(appended, Ok(()));
        }
    }
    journal.close().await;
    // Said again at every start, until somebody repairs it; set aside once.
    let (journal, again) = sample.open().await;
    assert_eq!(set_aside(&again), []);
    assert!(again.is_damaged());
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_closed_segment_is_not_served() {
    let sample = Sample::new(false).await;
    let log = sample.segment(2).join("db");
    flip(&log, block(&log, 3) + 200);
    let (journal, report) = sample.open().await;
    assert_eq!(report.findings, [], "closed segments are not read at a start");
    let served_before = served(&journal, &sample.written).await;
    assert_eq!(served_before.failed.len(), 1);
    assert_eq!(served_before.given.len(), sample.commits() - 1);
    let error = read_all(&journal, &served_before.failed[0], Version(1)).await.unwrap_err();
    assert!(matches!(&error, ReadError::Damaged { place, .. } if place.contains("000002")), "{error}");
    journal.close().await;
    // Unless that is asked for.
    let (journal, report) = sample.open_with(JournalSettings { check_all: true, ..small_segments() }).await;
    assert_eq!(set_aside(&report).iter().map(|a| a.0).collect::<Vec<_>>(), [2]);
    let served_after = served(&journal, &sample.written).await;
    assert_eq!(served_after.given.len(), served_before.given.len());
    assert_eq!(served_after.failed, served_before.failed);
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_segment_that_lost_its_end_is_noticed() {
    for keep in [0.0, 0.2, 0.6, 0.95] {
        let sample = Sample::new(false).await;
        let log = sample.segment(sample.live).join("db");
        let blocks = memchr::memmem::find_iter(&fs::read(&log).unwrap(), b"rlblock\x01").count();
        let end = block(&log, blocks - 1);
        fs::OpenOptions::new().write(true).open(&log).unwrap().set_len((end as f64 * keep) as u64).unwrap();
        let (journal, report) = sample.open().await;
        assert!(report.is_damaged(), "cut to {keep}: {report:?}");
        assert_eq!(set_aside(&report).len(), 1);
        let served = served(&journal, &sample.written).await;
        assert!(served.given.len() < sample.commits());
        assert_eq!(journal.tail().await.unwrap().0, [sample.commits() as u64], "no sequence is used twice");
        journal.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_segment_that_was_cut_off_is_set_aside() {
    let sample = Sample::new(false).await;
    let log = sample.segment(2).join("db");
    let end = block(&log, 8) + 10;
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(end).unwrap();
    let (journal, report) = sample.open().await;
    assert_eq!(set_aside(&report).iter().map(|a| a.0).collect::<Vec<_>>(), [2]);
    let served = served(&journal, &sample.written).await;
    assert!(!served.failed.is_empty() && served.given.len() < sample.commits());
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_segment_is_a_hole_that_is_named() {
    for with_manifest in [false, true] {
        let sample = Sample::new(false).await;
        fs::remove_dir_all(sample.segment(3)).unwrap();
        if with_manifest {
            fs::remove_file(sample.manifest(3)).unwrap();
        }
        let (journal, report) = sample.open().await;
        let hole = report.findings.iter().find_map(|f| match f {
            Finding::Hole { first, last, reason } => Some((*first, *last, reason.clone())),
            _ => None,
        });
        let (first, last, reason) = hole.expect("a hole");
        assert!(first > 1 && last > first && reason.contains("000003"), "{first} to {last}: {reason}");
        let served = served(&journal, &sample.written).await;
        assert_eq!(served.given.len() as u64, sample.commits() as u64 - (last - first + 1));
        assert!(!served.failed.is_empty());
        journal.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_live_segment_is_noticed() {
    let sample = Sample::new(false).await;
    fs::remove_dir_all(sample.segment(sample.live)).unwrap();
    let (journal, report) = sample.open().await;
    let tail = sample.commits() as u64;
    assert!(
        report.findings.iter().any(|f| matches!(f, Finding::Hole { last, .. } if *last == tail)),
        "{report:?}"
    );
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_damaged_manifest_is_made_anew() {
    let sample = Sample::new(true).await;
    fs::remove_file(sample.manifest(1)).unwrap();
    flip(&sample.manifest(2), 40);
    fs::write(sample.manifest(3), b"").unwrap();
    let (journal, report) = sample.open().await;
    let rebuilt: Vec<u32> = report
        .findings
        .iter()
        .map(|f| match f {
            Finding::ManifestRebuilt { segment, .. } => *segment,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(rebuilt, [1, 2, 3]);
    sample.assert_whole(&journal).await;
    journal.close().await;
    let (journal, report) = sample.open().await;
    assert_eq!(report.findings, []);
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_live_segment_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let (journal, _) = SledJournal::open(root.path(), JournalSettings::default()).unwrap();
    let mut written = write(&journal, 3, 30, false, 1).await;
    journal.close().await;
    let (segment, old) = (root.path().join("segments/000001"), root.path().join("old"));
    copy(&segment, &old);
    let (journal, _) = SledJournal::open(root.path(), JournalSettings::default()).unwrap();
    let mut rng = StdRng::seed_from_u64(5);
    for commits in written.values_mut() {
        let next = commit(&commits[0].stream, commits.last().map(Commit::head), 100, &mut rng);
        journal.append(next.clone()).await.unwrap();
        commits.push(next);
    }
    journal.close().await;
    fs::remove_dir_all(&segment).unwrap();
    fs::rename(&old, &segment).unwrap();
    let (journal, report) = SledJournal::open(root.path(), JournalSettings::default()).unwrap();
    assert!(report.is_damaged(), "{report:?}");
    assert_eq!(journal.tail().await.unwrap().0, [33], "no sequence is used twice");
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_in_use_is_refused_and_left_alone() {
    let sample = Sample::new(false).await;
    let (journal, _) = sample.open().await;
    let error = SledJournal::open(sample.root.path(), small_segments()).err().unwrap();
    assert!(error.to_string().contains("in use"), "{error}");
    sample.assert_whole(&journal).await;
    journal.close().await;
}

/// The law behind the cases above. Any file, any kind of damage: nothing wrong is served, and nothing is missing unsaid.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_damaged_nothing_wrong_is_served_and_nothing_is_missing_unsaid() {
    let samples = [Sample::new(false).await, Sample::new(true).await];
    let rounds = std::env::var("ROOMLOG_DAMAGE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    for seed in 0..rounds {
        let mut rng = StdRng::seed_from_u64(seed);
        let original = &samples[seed as usize % 2];
        let root = tempfile::tempdir().unwrap();
        copy(original.root.path(), root.path());
        let sample = Sample { root, written: original.written.clone(), live: original.live };
        let mut files = files(sample.root.path());
        files.retain(|f| !f.ends_with("facts.json") && !f.ends_with("lock"));
        // Half of the time the live segment, where sled has its say.
        let live = sample.segment(sample.live);
        if rng.random_bool(0.5) {
            files.retain(|f| f.starts_with(&live));
        }
        let path = &files[rng.random_range(0..files.len())];
        let length = fs::metadata(path).unwrap().len();
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        // sled's file is mostly empty; damage lies where something is.
        let end = fs::read(path).unwrap().iter().rposition(|b| *b != 0).unwrap_or(0) as u64 + 1;
        let at = rng.random_range(0..end.min(length.max(1)));
        let what = match rng.random_range(0..4) {
            _ if length == 0 => "nothing",
            0 => {
                flip(path, at);
                "flipped a byte"
            }
            1 => {
                file.set_len(at).unwrap();
                "cut off"
            }
            2 => {
                let zeros = vec![0; (end - at).min(rng.random_range(1..5_000)) as usize];
                file.write_all_at(&zeros, at).unwrap();
                "zeroed"
            }
            _ => {
                fs::remove_file(path).unwrap();
                "removed"
            }
        };
        let case = format!("seed {seed}: {what} at {at} of {length} in {}", path.display());
        println!("{case}");
        let opened = SledJournal::open(sample.root.path(), small_segments());
        let (journal, report) = opened.unwrap_or_else(|error| panic!("{case}: {error}"));
        let mut served = served(&journal, &sample.written).await;
        if served.given.len() < sample.commits() && !report.is_damaged() {
            // A closed segment is examined when it is read, or when that is asked for: then it must be said.
            assert!(!served.failed.is_empty(), "{case}: missing unsaid; {report:?}");
        }
        journal.close().await;
        let check = JournalSettings { check_all: true, ..small_segments() };
        let (journal, report) = SledJournal::open(sample.root.path(), check).unwrap();
        let again = common::served(&journal, &sample.written).await;
        assert!(again.given.len() == sample.commits() || report.is_damaged(), "{case}: {report:?}");
        assert_eq!(again.given.len(), served.given.len(), "{case}: {report:?}");
        served.failed.retain(|stream| !again.failed.contains(stream));
        journal.close().await;
    }
}
