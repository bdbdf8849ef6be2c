//! What a journal must do when it purges.

use super::{
    follow::{entry, until_caught_up},
    journal::{Opened, Pen, all},
};
use crate::{
    commit::{Commit, StreamKind},
    ids::Version,
    journal::{Cursor, Journal},
};

/// Eight commits of two events each, in a stream among others.
async fn eight(journal: &dyn Journal, pen: &mut Pen, beside: &mut Pen) -> Vec<Commit> {
    let mut commits = Vec::new();
    for _ in 0..8 {
        beside.append(journal).await;
        commits.push(pen.append_of(journal, 2).await);
    }
    beside.append(journal).await;
    commits
}

pub(super) async fn what_is_purged_is_not_given_any_more(opened: Opened) {
    let journal = &*opened.journal;
    let (mut pen, mut beside) = (Pen::new("purged"), Pen::new("beside"));
    let mut commits = eight(journal, &mut pen, &mut beside).await;
    journal.purge(&[(pen.stream.clone(), commits[5].version)]).await.expect("purged");
    assert_eq!(all(journal, &pen.stream).await, commits[5..]);
    assert_eq!(journal.read(&pen.stream, Version(3), 1).await.expect("readable")[0].id, commits[5].id);
    assert_eq!(journal.head(&pen.stream).await.expect("readable"), pen.head);
    assert_eq!(all(journal, &beside.stream).await.len(), 9, "another stream has all it had");
    // It goes on as if nothing had been.
    commits.push(pen.append(journal).await);
    assert_eq!(all(journal, &pen.stream).await, commits[5..]);
    // And may be purged further: to where it is, what came since included.
    journal.purge(&[(pen.stream.clone(), commits[8].version)]).await.expect("purged");
    assert_eq!(all(journal, &pen.stream).await, commits[8..]);
}

pub(super) async fn a_stream_that_is_purged_whole_is_not_there_any_more(opened: Opened) {
    let journal = &*opened.journal;
    let (mut pen, mut beside) = (Pen::new("gone"), Pen::new("stays"));
    eight(journal, &mut pen, &mut beside).await;
    let end = pen.head.expect("it has commits").version.next();
    journal.purge(&[(pen.stream.clone(), end)]).await.expect("purged");
    assert_eq!(all(journal, &pen.stream).await, []);
    assert_eq!(journal.head(&pen.stream).await.expect("readable"), None);
    let listed = journal.streams(StreamKind::Room).await.expect("readable");
    assert_eq!(listed, [(beside.stream.clone(), beside.head.expect("it has commits"))]);
    // Who still thinks it is there cannot write to it.
    let late = pen.draft(1);
    journal.append(late).await.expect_err("the stream is gone");
    beside.append(journal).await;
}

pub(super) async fn a_purge_cuts_between_commits_and_nowhere_else(opened: Opened) {
    let journal = &*opened.journal;
    let (mut pen, mut beside) = (Pen::new("cut"), Pen::new("beside"));
    let commits = eight(journal, &mut pen, &mut beside).await;
    // The second event of the third commit: that commit stays whole.
    journal.purge(&[(pen.stream.clone(), commits[2].last_version())]).await.expect("purged");
    assert_eq!(all(journal, &pen.stream).await, commits[2..]);
}

pub(super) async fn a_follower_passes_over_what_is_purged(opened: Opened) {
    let journal = &*opened.journal;
    let (mut pen, mut beside) = (Pen::new("purged"), Pen::new("beside"));
    let (mut gone, mut other) = (Pen::new("gone"), Pen::new("other"));
    let commits = eight(journal, &mut pen, &mut beside).await;
    eight(journal, &mut gone, &mut other).await;
    let mut early = journal.follow(Cursor::default()).await.expect("readable");
    let (_, first) = entry(&mut early).await;
    journal
        .purge(&[(pen.stream.clone(), commits[6].version), (gone.stream.clone(), Version(1_000))])
        .await
        .expect("purged");
    for from in [Cursor::default(), first] {
        let mut follow = journal.follow(from).await.expect("readable");
        let seen = until_caught_up(&mut follow).await;
        let of = |pen: &Pen| {
            seen.iter().map(|(c, _)| c).filter(|c| c.stream == pen.stream).cloned().collect::<Vec<_>>()
        };
        assert_eq!(of(&pen), commits[6..]);
        assert_eq!(of(&gone), []);
        assert!(of(&beside).len() + of(&other).len() >= 17, "what is not purged comes");
        let next = other.append(journal).await;
        assert_eq!(entry(&mut follow).await.0, next);
    }
}

pub(super) async fn purging_again_changes_nothing(opened: Opened) {
    let journal = &*opened.journal;
    let (mut pen, mut beside) = (Pen::new("twice"), Pen::new("beside"));
    let commits = eight(journal, &mut pen, &mut beside).await;
    for below in [commits[4].version, commits[4].version, Version(1), commits[2].version] {
        journal.purge(&[(pen.stream.clone(), below)]).await.expect("purged");
        assert_eq!(all(journal, &pen.stream).await, commits[4..]);
    }
    journal.purge(&[(Pen::new("never-was").stream, Version(9))]).await.expect("purged");
    assert_eq!(journal.head(&Pen::new("never-was").stream).await.expect("readable"), None);
}

pub(super) async fn a_reopened_journal_remembers_what_was_purged(opened: Opened) {
    let (mut pen, mut beside, mut gone) = (Pen::new("kept"), Pen::new("beside"), Pen::new("gone"));
    let commits = {
        let journal = &*opened.journal;
        let commits = eight(journal, &mut pen, &mut beside).await;
        eight(journal, &mut gone, &mut beside).await;
        journal
            .purge(&[(pen.stream.clone(), commits[3].version), (gone.stream.clone(), Version(1_000))])
            .await
            .expect("purged");
        commits
    };
    let Some(reopen) = opened.reopen else { return };
    drop(opened.journal);
    let journal = &*reopen().await;
    assert_eq!(all(journal, &pen.stream).await, commits[3..]);
    assert_eq!(all(journal, &gone.stream).await, []);
    let last = pen.append(journal).await;
    let mut follow = journal.follow(Cursor::default()).await.expect("readable");
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        seen.push(entry(&mut follow).await.0);
    }
    assert!(seen.iter().all(|c| c.stream != gone.stream));
    assert_eq!(seen.iter().filter(|c| c.stream == pen.stream).count(), 6);
}
