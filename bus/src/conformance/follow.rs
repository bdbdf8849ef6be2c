//! What following a journal must do: everything after the cursor, in each stream's order, once, and `CaughtUp` exactly once.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    QUIET,
    journal::{Opened, Pen, all},
    soon,
};
use crate::{
    commit::{Commit, StreamId},
    ids::Version,
    journal::{Cursor, Follow, Followed, Journal},
};

/// The next commit, and the cursor after it.
pub(super) async fn entry(follow: &mut Follow) -> (Commit, Cursor) {
    match soon("a followed commit", follow.next()).await {
        Some(Followed::Entry(entry)) => (Commit::clone(&entry.commit), entry.cursor),
        other => panic!("a commit should come, this did: {other:?}"),
    }
}

pub(super) async fn caught_up(follow: &mut Follow) {
    let next = soon("caught up", follow.next()).await;
    assert_eq!(next, Some(Followed::CaughtUp));
}

async fn quiet(follow: &mut Follow) {
    if let Ok(next) = tokio::time::timeout(QUIET, follow.next()).await {
        panic!("nothing should come, this did: {next:?}");
    }
}

async fn follow(journal: &dyn Journal, from: Cursor) -> Follow {
    journal.follow(from).await.unwrap_or_else(|error| panic!("follow: {error}"))
}

/// Everything up to `CaughtUp`.
pub(super) async fn until_caught_up(follow: &mut Follow) -> Vec<(Commit, Cursor)> {
    let mut entries = Vec::new();
    loop {
        match soon("caught up", follow.next()).await {
            Some(Followed::Entry(entry)) => entries.push((Commit::clone(&entry.commit), entry.cursor)),
            Some(Followed::CaughtUp) => return entries,
            other => panic!("{other:?}"),
        }
    }
}

/// Per stream, in the order they came; each must continue the one before.
fn by_stream<'a>(commits: impl Iterator<Item = &'a Commit>) -> BTreeMap<StreamId, Vec<Commit>> {
    let mut streams: BTreeMap<StreamId, Vec<Commit>> = BTreeMap::new();
    for commit in commits {
        let so_far = streams.entry(commit.stream.clone()).or_default();
        if let Some(last) = so_far.last() {
            assert!(
                commit.follows(Some(&last.head())),
                "{} came after {} in {}: a gap or a repeat",
                commit.version,
                last.version,
                commit.stream
            );
        }
        so_far.push(commit.clone());
    }
    streams
}

/// Appends `commits` commits to each of `streams` streams.
async fn fill(journal: &dyn Journal, streams: usize, commits: usize) -> Vec<Pen> {
    let mut pens: Vec<Pen> = (0..streams).map(|i| Pen::new(&format!("follow-{i}"))).collect();
    for _ in 0..commits {
        for pen in &mut pens {
            pen.append(journal).await;
        }
    }
    pens
}

pub(super) async fn a_follower_of_an_empty_journal_is_caught_up(opened: Opened) {
    let mut follow = follow(&*opened.journal, Cursor::default()).await;
    caught_up(&mut follow).await;
    quiet(&mut follow).await;
    let mut pen = Pen::new("first");
    let commit = pen.append(&*opened.journal).await;
    assert_eq!(entry(&mut follow).await.0, commit);
    quiet(&mut follow).await;
}

pub(super) async fn a_follower_from_the_beginning_gets_everything(opened: Opened) {
    let journal = &*opened.journal;
    let pens = fill(journal, 5, 20).await;
    for from in [Cursor::default(), Cursor(vec![])] {
        let mut follow = follow(journal, from).await;
        let got = until_caught_up(&mut follow).await;
        let got = by_stream(got.iter().map(|(commit, _)| commit));
        for pen in &pens {
            assert_eq!(got.get(&pen.stream), Some(&all(journal, &pen.stream).await));
        }
        assert_eq!(got.len(), pens.len());
        quiet(&mut follow).await;
    }
}

pub(super) async fn a_follower_from_any_cursor_gets_what_is_after_it(opened: Opened) {
    let journal = &*opened.journal;
    fill(journal, 3, 10).await;
    let everything = until_caught_up(&mut follow(journal, Cursor::default()).await).await;
    assert_eq!(everything.len(), 30);
    for at in 0..everything.len() {
        let mut follow = follow(journal, everything[at].1.clone()).await;
        let got = until_caught_up(&mut follow).await;
        assert_eq!(got.len(), everything.len() - at - 1, "after cursor {:?}", everything[at].1);
        // Between streams an engine with partitions may interleave differently; within one it may not.
        let expected = by_stream(everything[at + 1..].iter().map(|(commit, _)| commit));
        assert_eq!(by_stream(got.iter().map(|(commit, _)| commit)), expected);
    }
}

pub(super) async fn a_follower_from_the_tail_gets_what_comes(opened: Opened) {
    let journal = &*opened.journal;
    let mut pens = fill(journal, 2, 5).await;
    let tail = journal.tail().await.expect("readable");
    let mut follow = follow(journal, tail).await;
    caught_up(&mut follow).await;
    for i in 0..20 {
        let commit = pens[i % 2].append(journal).await;
        assert_eq!(entry(&mut follow).await.0, commit);
    }
    quiet(&mut follow).await;
}

pub(super) async fn a_follower_during_appends_misses_and_repeats_nothing(opened: Opened) {
    const WRITERS: usize = 4;
    const EACH: usize = 250;
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let journal = opened.journal.clone();
            tokio::spawn(async move {
                let mut pen = Pen::new(&format!("during-{w}"));
                for _ in 0..EACH {
                    pen.append(&*journal).await;
                }
                pen
            })
        })
        .collect();
    // Followers that begin at different moments, one that resumes from its own cursor again and again.
    let mut followers = Vec::new();
    for delay in [0, 5, 20] {
        let journal = opened.journal.clone();
        followers.push(tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
            let (commits, caught_up) = collect(journal, WRITERS * EACH, usize::MAX).await;
            assert_eq!(caught_up, 1, "caught up is said exactly once");
            commits
        }));
    }
    let journal = opened.journal.clone();
    followers.push(tokio::spawn(async move { collect(journal, WRITERS * EACH, 37).await.0 }));
    let mut expected = BTreeMap::new();
    for writer in writers {
        let pen = writer.await.expect("appended");
        expected.insert(pen.stream.clone(), all(&*opened.journal, &pen.stream).await);
    }
    for follower in followers {
        let got = follower.await.expect("followed");
        assert_eq!(by_stream(got.iter()), expected);
    }
}

/// Follows from the beginning until `count` commits came, beginning anew from the last cursor after every `restart` of them. Gives the
/// commits and how often the last follow was caught up; waits for that once if need be.
async fn collect(journal: Arc<dyn Journal>, count: usize, restart: usize) -> (Vec<Commit>, usize) {
    let mut commits = Vec::new();
    let mut cursor = Cursor::default();
    let mut caught_up = 0;
    while commits.len() < count {
        let mut follow = follow(&*journal, cursor.clone()).await;
        caught_up = 0;
        let until = commits.len().saturating_add(restart).min(count);
        while commits.len() < until || (until == count && caught_up == 0) {
            match soon("a followed commit", follow.next()).await {
                Some(Followed::Entry(entry)) => {
                    commits.push(Commit::clone(&entry.commit));
                    cursor = entry.cursor;
                }
                Some(Followed::CaughtUp) => caught_up += 1,
                other => panic!("{other:?}"),
            }
        }
        if until == count {
            quiet(&mut follow).await;
        }
    }
    (commits, caught_up)
}

pub(super) async fn followers_agree_on_the_order_of_a_stream(opened: Opened) {
    let journal = &*opened.journal;
    let mut a = follow(journal, Cursor::default()).await;
    let mut b = follow(journal, Cursor::default()).await;
    caught_up(&mut a).await;
    caught_up(&mut b).await;
    fill(journal, 4, 25).await;
    let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        from_a.push(entry(&mut a).await.0);
        from_b.push(entry(&mut b).await.0);
    }
    assert_eq!(by_stream(from_a.iter()), by_stream(from_b.iter()));
}

pub(super) async fn a_follower_that_does_not_read_holds_up_nobody_and_misses_nothing(opened: Opened) {
    const COMMITS: usize = 3_000;
    let journal = &*opened.journal;
    let mut slow = follow(journal, Cursor::default()).await;
    let mut fast = follow(journal, Cursor::default()).await;
    caught_up(&mut fast).await;
    // Many at once, so that an engine that syncs each group is done in a moment.
    let writers: Vec<_> = (0..20)
        .map(|w| {
            let journal = opened.journal.clone();
            tokio::spawn(async move {
                let mut pen = Pen::new(&format!("slow-{w}"));
                for _ in 0..COMMITS / 20 {
                    pen.append(&*journal).await;
                }
            })
        })
        .collect();
    for writer in writers {
        soon("the writers", writer).await.expect("not held up");
    }
    let mut got = Vec::new();
    for _ in 0..COMMITS {
        got.push(entry(&mut fast).await.0);
    }
    assert_eq!(by_stream(got.iter()).len(), 20);
    caught_up(&mut slow).await;
    let mut late = Vec::new();
    for _ in 0..COMMITS {
        late.push(entry(&mut slow).await.0);
    }
    assert_eq!(by_stream(late.iter()), by_stream(got.iter()));
    quiet(&mut slow).await;
}

pub(super) async fn a_follower_may_go_away(opened: Opened) {
    let journal = &*opened.journal;
    let mut pens = fill(journal, 2, 10).await;
    let mut half = follow(journal, Cursor::default()).await;
    entry(&mut half).await;
    drop(half);
    drop(follow(journal, Cursor::default()).await);
    let mut stays = follow(journal, journal.tail().await.expect("readable")).await;
    caught_up(&mut stays).await;
    let commit = pens[0].append(journal).await;
    assert_eq!(entry(&mut stays).await.0, commit);
    assert_eq!(all(journal, &pens[0].stream).await.last(), Some(&commit));
}

pub(super) async fn a_refused_commit_is_not_followed(opened: Opened) {
    let journal = &*opened.journal;
    let mut pen = Pen::new("refused");
    pen.append(journal).await;
    let mut follow = follow(journal, journal.tail().await.expect("readable")).await;
    caught_up(&mut follow).await;
    let mut late = pen.draft(1);
    late.version = Version(9);
    journal.append(late).await.expect_err("a conflict");
    let mut empty = pen.draft(1);
    empty.events.clear();
    journal.append(empty).await.expect_err("invalid");
    let good = pen.append(journal).await;
    assert_eq!(entry(&mut follow).await.0, good);
    quiet(&mut follow).await;
}
