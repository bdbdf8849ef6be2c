//! The local copy: streams that begin in the middle, have holes and go two ways; kills; its bound; what was set aside.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use common::{commit, copy, files, stream};
use rand::{SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Commit, Head, MAX_COMMIT_BYTES},
    copied_journal::CopiedJournal,
    journal::{AppendError, Journal},
    local_copy::{Copied, CopyError, CopySettings, LocalCopy, put_aside},
    memory_journal::MemoryJournal,
};

fn open(folder: &Path) -> LocalCopy {
    let (copy, findings) = LocalCopy::open(folder, CopySettings::default()).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    copy
}

fn chain(name: &str, length: usize, seed: u64) -> Vec<Commit> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut head: Option<Head> = None;
    (0..length)
        .map(|_| {
            let next = commit(&stream(name), head, 100, &mut rng);
            head = Some(next.head());
            next
        })
        .collect()
}

async fn read(folder: &Path) -> Vec<Commit> {
    Copied::read(folder).await.unwrap().commits.iter().map(|commit| Commit::clone(commit)).collect()
}

#[tokio::test]
async fn streams_may_begin_in_the_middle_have_holes_and_go_two_ways() {
    let folder = tempfile::tempdir().unwrap();
    let local = open(folder.path());
    let (a, other, b) = (chain("a", 9, 1), chain("a", 5, 2), chain("b", 3, 3));
    // No beginning, a hole, an earlier one later, and a branch of another history.
    let put: Vec<&Commit> = [&a[4], &a[5], &b[0], &a[8], &a[2], &other[4], &b[1]].to_vec();
    for commit in &put {
        local.put(commit).await.unwrap();
    }
    // Beside the process that writes, and again after a start.
    for _ in 0..2 {
        let read = read(folder.path()).await;
        assert_eq!(read.len(), put.len());
        for commit in &put {
            assert!(read.contains(commit), "{} of {}", commit.version, commit.stream);
        }
    }
    local.close().await;
    let local = open(folder.path());
    let last: Vec<_> = local.last(3).await.unwrap().iter().map(|commit| commit.id).collect();
    assert_eq!(last, [a[2].id, other[4].id, b[1].id]);
    assert_eq!(local.last(1_000).await.unwrap().len(), put.len());
}

#[tokio::test]
async fn the_largest_commit_fits() {
    let folder = tempfile::tempdir().unwrap();
    let local = open(folder.path());
    let mut rng = StdRng::seed_from_u64(4);
    let frame = commit(&stream("large"), None, 0, &mut rng).encode().len();
    let size = MAX_COMMIT_BYTES - frame - 16;
    let mut largest = commit(&stream("large"), None, size, &mut rng);
    largest.events.truncate(1);
    assert!(largest.encode().len() > MAX_COMMIT_BYTES - 100, "{}", largest.encode().len());
    MemoryJournal::new().append(largest.clone()).await.expect("a journal takes it");
    local.put(&largest).await.unwrap();
    assert_eq!(read(folder.path()).await, [largest]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_all_there_also_of_one_stream() {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(open(folder.path()));
    let mut putting = Vec::new();
    for name in 0..20 {
        for commit in chain(&format!("s{}", name % 10), 10, name) {
            let local = local.clone();
            putting.push(tokio::spawn(async move { local.put(&commit).await }));
        }
    }
    for put in putting {
        put.await.unwrap().unwrap();
    }
    assert_eq!(read(folder.path()).await.len(), 200);
}

#[tokio::test]
async fn what_was_put_survives_a_kill_and_a_torn_tail() {
    let folder = tempfile::tempdir().unwrap();
    let (running, killed) = (folder.path().join("running"), folder.path().join("killed"));
    let local = open(&running);
    let commits = chain("a", 20, 5);
    for commit in &commits {
        local.put(commit).await.unwrap();
    }
    copy(&running, &killed); // as the disk is at this moment: nothing was closed
    let local = LocalCopy::open(&killed, CopySettings::default()).unwrap().0;
    assert_eq!(local.last(100).await.unwrap().len(), 20);
    local.put(&chain("b", 1, 6)[0]).await.unwrap();
    assert_eq!(read(&killed).await.len(), 21);
}

#[tokio::test]
async fn it_stays_within_its_bound_and_keeps_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let settings = CopySettings { bytes: 64 << 10 };
    let local = LocalCopy::open(folder.path(), settings).unwrap().0;
    let commits = chain("a", 400, 7);
    for commit in &commits {
        local.put(commit).await.unwrap();
    }
    let read: BTreeSet<_> = read(folder.path()).await.iter().map(|commit| commit.version).collect();
    assert!(read.len() < 400, "nothing was dropped");
    let newest = commits.iter().rev().take(50).map(|commit| commit.version);
    assert!(newest.into_iter().all(|version| read.contains(&version)), "{read:?}");
    let parts = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(parts <= 2, "{parts} parts: {:?}", files(folder.path()));
}

#[tokio::test]
async fn what_was_set_aside_is_kept_and_not_compared_again() {
    let folder = tempfile::tempdir().unwrap();
    let local = open(folder.path());
    let commits = chain("a", 4, 8);
    for commit in &commits {
        local.put(commit).await.unwrap();
    }
    for commit in &commits[2..] {
        let path = put_aside(folder.path(), commit).unwrap();
        assert_eq!(put_aside(folder.path(), commit).unwrap(), path, "twice is once");
    }
    let copied = Copied::read(folder.path()).await.unwrap();
    let ids = |commits: &[Arc<Commit>]| commits.iter().map(|commit| commit.id).collect::<Vec<_>>();
    assert_eq!(ids(&copied.commits), [commits[0].id, commits[1].id]);
    let aside: Vec<_> = copied.set_aside.iter().map(|branch| Commit::clone(&branch.commit)).collect();
    assert_eq!(aside, commits[2..]);
    assert_eq!(ids(&local.last(10).await.unwrap()), [commits[0].id, commits[1].id]);
    std::fs::write(&copied.set_aside[0].path, "something").unwrap();
    assert!(matches!(Copied::read(folder.path()).await, Err(CopyError::Damaged { .. })));
}

#[tokio::test]
async fn damage_in_the_copy_is_said_and_the_streams_that_are_whole_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let local = open(folder.path());
    for name in ["a", "b", "c"] {
        for commit in chain(name, 10, 9) {
            local.put(&commit).await.unwrap();
        }
    }
    local.close().await;
    let log = files(folder.path()).into_iter().find(|path| path.ends_with("db")).unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    let at = memchr::memmem::find_iter(&bytes, b"rlblock").nth(15).unwrap();
    bytes[at + 60] ^= 0x55;
    std::fs::write(&log, bytes).unwrap();
    let copied = Copied::read(folder.path()).await.unwrap();
    assert!(
        copied.findings.iter().any(roomlog_bus::sled_journal::Finding::is_damage),
        "{:?}",
        copied.findings
    );
    assert_eq!(copied.commits.len(), 20, "two streams of three");
}

#[tokio::test]
async fn an_append_that_was_answered_is_in_the_copy_and_a_refused_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Arc::new(MemoryJournal::new());
    let journal = CopiedJournal::new(cluster.clone(), open(folder.path()));
    let commits = chain("a", 3, 10);
    cluster.append(commits[0].clone()).await.unwrap(); // another node's
    journal.append(commits[1].clone()).await.unwrap();
    let late = chain("a", 2, 11).remove(1);
    assert!(matches!(journal.append(late).await, Err(AppendError::Conflict { .. })));
    assert_eq!(read(folder.path()).await, commits[1..2]);
    // A copy that takes nothing does not stop the cluster.
    journal.close().await;
    journal.append(commits[2].clone()).await.unwrap();
    assert_eq!(cluster.head(&commits[2].stream).await.unwrap(), Some(commits[2].head()));
}
