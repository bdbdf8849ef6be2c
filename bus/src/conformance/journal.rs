//! What a journal must do, but for following, which is in [`follow`](super::follow).

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::{expectations, follow::*, purge::*};
use crate::{
    carried::More,
    commit::{
        Cause, Commit, CommitId, Head, MAX_COMMIT_BYTES, Payload, RawEvent, StreamId, StreamKind, Writer,
    },
    ids::{Epoch, Incarnation, Version},
    journal::{AppendError, Journal, read_all},
    time::Timestamp,
};

/// Closes the journal and opens it again as a restarted process would.
pub type Reopen = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Arc<dyn Journal>> + Send>> + Send + Sync>;

/// A fresh, empty journal.
pub struct Opened {
    /// The journal.
    pub journal: Arc<dyn Journal>,
    /// How it is reopened; none if nothing survives.
    pub reopen: Option<Reopen>,
}

/// Runs all expectations, each on an empty journal of its own that `make` gives.
pub async fn journal_suite<F: Future<Output = Opened>>(make: impl Fn() -> F) {
    expectations!(
        make,
        a_stream_nobody_wrote_is_empty,
        a_commit_comes_back_as_it_was_appended,
        versions_count_events,
        a_commit_at_the_wrong_version_conflicts,
        a_commit_after_the_wrong_one_conflicts,
        a_conflict_stores_nothing,
        a_stored_commit_may_be_appended_again,
        the_same_commit_appended_at_the_same_time_is_stored_once,
        commits_that_break_a_rule_are_refused,
        the_largest_commit_is_stored,
        of_those_who_append_at_once_exactly_one_wins,
        appends_to_many_streams_at_once_all_land,
        reads_see_what_was_answered,
        a_stream_is_read_page_by_page,
        streams_are_listed_by_kind_with_their_heads,
        a_follower_of_an_empty_journal_is_caught_up,
        a_follower_from_the_beginning_gets_everything,
        a_follower_from_any_cursor_gets_what_is_after_it,
        a_follower_from_the_tail_gets_what_comes,
        a_follower_during_appends_misses_and_repeats_nothing,
        followers_agree_on_the_order_of_a_stream,
        a_follower_that_does_not_read_holds_up_nobody_and_misses_nothing,
        a_follower_may_go_away,
        a_refused_commit_is_not_followed,
        a_reopened_journal_has_everything,
        a_reopened_journal_goes_on,
        what_is_purged_is_not_given_any_more,
        a_stream_that_is_purged_whole_is_not_there_any_more,
        a_purge_cuts_between_commits_and_nowhere_else,
        a_follower_passes_over_what_is_purged,
        purging_again_changes_nothing,
        a_reopened_journal_remembers_what_was_purged,
    );
}

/// Makes commits for one stream that join up.
pub(super) struct Pen {
    pub stream: StreamId,
    pub head: Option<Head>,
    rng: StdRng,
}

impl Pen {
    pub(super) fn new(name: &str) -> Self {
        Self::of(StreamKind::Room, name)
    }

    pub(super) fn of(kind: StreamKind, name: &str) -> Self {
        let stream = StreamId::new(kind, name).expect("a token");
        // Seeded by the name: reruns make the same commits, streams different ones.
        let seed = name.bytes().fold(kind as u64, |hash, b| hash.wrapping_mul(31).wrapping_add(u64::from(b)));
        Self { stream, head: None, rng: StdRng::seed_from_u64(seed) }
    }

    /// The next commit, with `events` events; it only counts once it is [`taken`](Self::taken).
    pub(super) fn draft(&mut self, events: usize) -> Commit {
        let now = Timestamp(1_795_359_845_000_000);
        let mut data = [0; 40];
        self.rng.fill_bytes(&mut data);
        // What a version of tomorrow may have added to all that can be added to.
        let later = More::default().with("addedLater", &(1, "x", serde_bytes::Bytes::new(&data)));
        Commit {
            id: CommitId::new(now, &mut self.rng),
            prev: self.head.map(|head| head.id),
            stream: self.stream.clone(),
            version: self.head.map_or(Version(1), |head| head.version.next()),
            time: now,
            writer: Writer { node: "ec.conformance".parse().expect("a stream"), incarnation: Incarnation(7) },
            epoch: Epoch(3),
            cause: Cause { request: Some(12), more: later.clone(), ..Cause::of("request") },
            command: Payload::encode(&"what was asked"),
            facts: Payload::default(),
            events: (0..events)
                .map(|i| RawEvent {
                    more: later.clone(),
                    ..RawEvent::new(
                        "NobodyKnowsThisType",
                        9,
                        Payload::encode(&(i, serde_bytes::Bytes::new(&data))),
                    )
                })
                .collect(),
            more: later.clone(),
        }
    }

    pub(super) fn taken(&mut self, commit: &Commit) {
        self.head = Some(commit.head());
    }

    /// Appends the next commit.
    pub(super) async fn append(&mut self, journal: &dyn Journal) -> Commit {
        self.append_of(journal, 1).await
    }

    pub(super) async fn append_of(&mut self, journal: &dyn Journal, events: usize) -> Commit {
        let commit = self.draft(events);
        journal.append(commit.clone()).await.unwrap_or_else(|error| panic!("append: {error}"));
        self.taken(&commit);
        commit
    }
}

pub(super) async fn all(journal: &dyn Journal, stream: &StreamId) -> Vec<Commit> {
    let commits = read_all(journal, stream, Version(0)).await.expect("readable");
    commits.iter().map(|commit| Commit::clone(commit)).collect()
}

async fn a_stream_nobody_wrote_is_empty(opened: Opened) {
    let journal = &*opened.journal;
    let stream = Pen::new("nobody").stream;
    assert_eq!(journal.head(&stream).await.expect("readable"), None);
    assert!(all(journal, &stream).await.is_empty());
    for kind in StreamKind::ALL {
        assert!(journal.streams(kind).await.expect("readable").is_empty());
    }
}

async fn a_commit_comes_back_as_it_was_appended(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("as-it-was");
    let first = pen.append_of(journal, 3).await;
    let second = pen.append(journal).await;
    assert_eq!(all(journal, &pen.stream).await, [first, second]);
    assert_eq!(journal.head(&pen.stream).await.expect("readable"), pen.head);
}

async fn versions_count_events(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("versions");
    let (a, b, c) =
        (pen.append_of(journal, 3).await, pen.append_of(journal, 1).await, pen.append_of(journal, 2).await);
    assert_eq!((a.version, b.version, c.version), (Version(1), Version(4), Version(5)));
    assert_eq!(journal.head(&pen.stream).await.expect("readable").map(|h| h.version), Some(Version(6)));
    // From the middle of a commit gives that commit.
    for (from, expected) in [(0, 3), (1, 3), (2, 3), (3, 3), (4, 2), (5, 1), (6, 1), (7, 0), (100, 0)] {
        let read = journal.read(&pen.stream, Version(from), 100).await.expect("readable");
        assert_eq!(read.len(), expected, "from version {from}");
    }
}

async fn a_commit_at_the_wrong_version_conflicts(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("wrong-version");
    for _ in 0..3 {
        pen.append(journal).await;
    }
    for version in [2, 3, 5, 6] {
        let mut commit = pen.draft(1);
        commit.version = Version(version);
        let refused = journal.append(commit).await;
        let expected =
            AppendError::Conflict { stream: pen.stream.clone(), version: Version(version), head: pen.head };
        assert_eq!(refused, Err(expected), "at version {version}");
    }
    // The first commit of a stream that has one, and a later one of a stream that has none.
    let mut twin = Pen::new("wrong-version");
    twin.draft(1); // so that it is another commit than the one that is there
    let again = twin.draft(1);
    assert!(matches!(journal.append(again).await, Err(AppendError::Conflict { .. })));
    let mut other = pen.draft(1);
    other.stream = Pen::new("wrong-version-none").stream;
    assert!(matches!(journal.append(other).await, Err(AppendError::Conflict { head: None, .. })));
}

async fn a_commit_after_the_wrong_one_conflicts(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("wrong-prev");
    let first = pen.append(journal).await;
    pen.append(journal).await;
    let mut commit = pen.draft(1);
    commit.prev = Some(first.id);
    assert!(matches!(journal.append(commit).await, Err(AppendError::Conflict { .. })));
}

async fn a_conflict_stores_nothing(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("conflict");
    let first = pen.append(journal).await;
    let mut late = pen.draft(4);
    late.version = Version(7);
    journal.append(late).await.expect_err("a conflict");
    assert_eq!(all(journal, &pen.stream).await, [first]);
    pen.append(journal).await;
}

async fn a_stored_commit_may_be_appended_again(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("again");
    let mut commits = Vec::new();
    for _ in 0..5 {
        commits.push(pen.append_of(journal, 2).await);
    }
    for commit in commits.iter().rev() {
        assert_eq!(journal.append(commit.clone()).await, Ok(()));
    }
    assert_eq!(all(journal, &pen.stream).await, commits);
    assert_eq!(journal.head(&pen.stream).await.expect("readable"), pen.head);
}

async fn the_same_commit_appended_at_the_same_time_is_stored_once(opened: Opened) {
    let mut pen = Pen::new("same-time");
    for _ in 0..20 {
        let commit = pen.draft(1);
        let tries: Vec<_> = (0..8)
            .map(|_| {
                let (journal, commit) = (opened.journal.clone(), commit.clone());
                tokio::spawn(async move { journal.append(commit).await })
            })
            .collect();
        for appended in tries {
            assert_eq!(appended.await.expect("ran"), Ok(()));
        }
        pen.taken(&commit);
    }
    assert_eq!(all(&*opened.journal, &pen.stream).await.len(), 20);
}

async fn commits_that_break_a_rule_are_refused(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("rules");
    let (mut empty, mut zero, mut large, mut orphan) =
        (pen.draft(0), pen.draft(1), pen.draft(1), pen.draft(1));
    empty.events.clear();
    zero.version = Version(0);
    large.events[0].data = Payload(vec![0; MAX_COMMIT_BYTES].into());
    orphan.prev = Some(large.id);
    for (what, commit) in [("no event", empty), ("version 0", zero), ("too large", large), ("prev", orphan)] {
        let refused = journal.append(commit).await;
        assert!(matches!(refused, Err(AppendError::Invalid { .. })), "{what}: {refused:?}");
    }
    assert_eq!(journal.head(&pen.stream).await.expect("readable"), None);
    pen.append(journal).await;
}

async fn the_largest_commit_is_stored(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("largest");
    let mut commit = pen.draft(1);
    commit.events[0].data = Payload(Vec::new().into());
    // A payload of n bytes takes 3 or 5 more than an empty one.
    let room = MAX_COMMIT_BYTES - commit.encode().len() - 4;
    commit.events[0].data = Payload((0..room).map(|i| i as u8).collect::<Vec<u8>>().into());
    assert!((MAX_COMMIT_BYTES - 4..=MAX_COMMIT_BYTES).contains(&commit.encode().len()));
    journal.append(commit.clone()).await.expect("it fits");
    assert!(all(journal, &pen.stream).await == [commit]);
}

async fn of_those_who_append_at_once_exactly_one_wins(opened: Opened) {
    const ROUNDS: usize = 20;
    let mut pen = Pen::new("race");
    for round in 0..ROUNDS {
        let tries: Vec<_> = (0..16)
            .map(|_| {
                let (journal, commit) = (opened.journal.clone(), pen.draft(1));
                tokio::spawn(async move { journal.append(commit.clone()).await.map(|()| commit) })
            })
            .collect();
        let mut won = Vec::new();
        for appended in tries {
            match appended.await.expect("ran") {
                Ok(commit) => won.push(commit),
                Err(AppendError::Conflict { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(won.len(), 1, "winners of round {round}");
        pen.taken(&won[0]);
        assert_eq!(opened.journal.head(&pen.stream).await.expect("readable"), pen.head);
    }
    assert_eq!(all(&*opened.journal, &pen.stream).await.len(), ROUNDS);
}

async fn appends_to_many_streams_at_once_all_land(opened: Opened) {
    let writers: Vec<_> = (0..50)
        .map(|w| {
            let journal = opened.journal.clone();
            tokio::spawn(async move {
                let mut pen = Pen::new(&format!("many-{w}"));
                let mut commits = Vec::new();
                for i in 0..20 {
                    commits.push(pen.append_of(&*journal, 1 + (w + i) % 3).await);
                }
                (pen.stream, commits)
            })
        })
        .collect();
    for writer in writers {
        let (stream, commits) = writer.await.expect("all appended");
        assert_eq!(all(&*opened.journal, &stream).await, commits);
    }
}

async fn reads_see_what_was_answered(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("own-writes");
    for _ in 0..100 {
        let commit = pen.append(journal).await;
        assert_eq!(journal.head(&pen.stream).await.expect("readable"), Some(commit.head()));
        let read = journal.read(&pen.stream, commit.version, 10).await.expect("readable");
        assert_eq!(read.len(), 1);
        assert_eq!(*read[0], commit);
    }
}

async fn a_stream_is_read_page_by_page(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("pages");
    let mut noise = Pen::new("pages-noise");
    let mut commits = Vec::new();
    for i in 0..50 {
        commits.push(pen.append_of(journal, 1 + i % 4).await);
        noise.append(journal).await;
    }
    for limit in [1, 7, 50, 51] {
        let mut read = Vec::new();
        let mut from = Version(1);
        loop {
            let page = journal.read(&pen.stream, from, limit).await.expect("readable");
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            from = last.last_version().next();
            read.extend(page.iter().map(|commit| Commit::clone(commit)));
        }
        assert_eq!(read, commits, "in pages of {limit}");
    }
    assert!(journal.read(&pen.stream, Version(1), 0).await.expect("readable").is_empty());
}

async fn streams_are_listed_by_kind_with_their_heads(opened: Opened) {
    let journal = &*opened.journal;
    let mut expected: BTreeMap<StreamKind, Vec<(StreamId, Head)>> = BTreeMap::new();
    for name in ["c", "a", "b-2", "b"] {
        for kind in [StreamKind::Room, StreamKind::Ec] {
            let mut pen = Pen::of(kind, name);
            pen.append(journal).await;
            pen.append_of(journal, 2).await;
            expected.entry(kind).or_default().push((pen.stream, pen.head.expect("appended")));
        }
    }
    for kind in StreamKind::ALL {
        let mut expected = expected.remove(&kind).unwrap_or_default();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(journal.streams(kind).await.expect("readable"), expected);
    }
}

async fn a_reopened_journal_has_everything(opened: Opened) {
    let Some(reopen) = opened.reopen else { return };
    let mut journal = opened.journal;
    let mut pens: Vec<Pen> = (0..10).map(|i| Pen::new(&format!("kept-{i}"))).collect();
    let mut expected: Vec<Vec<Commit>> = vec![Vec::new(); 10];
    for round in 0..3 {
        for i in 0..30 {
            let pen = &mut pens[i % 10];
            expected[i % 10].push(pen.append_of(&*journal, 1 + (i + round) % 3).await);
        }
        let tail = journal.tail().await.expect("readable");
        drop(journal);
        journal = reopen().await;
        assert_eq!(journal.tail().await.expect("readable"), tail);
        for (pen, expected) in pens.iter().zip(&expected) {
            assert_eq!(journal.head(&pen.stream).await.expect("readable"), pen.head);
            assert_eq!(all(&*journal, &pen.stream).await, *expected);
        }
        assert_eq!(journal.streams(StreamKind::Room).await.expect("readable").len(), 10);
    }
}

async fn a_reopened_journal_goes_on(opened: Opened) {
    let Some(reopen) = opened.reopen else { return };
    let mut pen = Pen::new("goes-on");
    let first = pen.append(&*opened.journal).await;
    let cursor = opened.journal.tail().await.expect("readable");
    let second = pen.append(&*opened.journal).await;
    drop(opened.journal);
    let journal = reopen().await;
    let mut follow = journal.follow(cursor).await.expect("followed");
    assert_eq!(entry(&mut follow).await.0, second);
    caught_up(&mut follow).await;
    assert_eq!(journal.append(first.clone()).await, Ok(()), "it is stored already");
    let mut twin = Pen::new("goes-on");
    twin.draft(1);
    assert!(matches!(journal.append(twin.draft(1)).await, Err(AppendError::Conflict { .. })));
    let third = pen.append(&*journal).await;
    assert_eq!(entry(&mut follow).await.0, third);
    assert_eq!(all(&*journal, &pen.stream).await, [first, second, third]);
}
