//! Repair: what nodes had acknowledged and the cluster's log has lost is appended again, where it still fits.
//!
//! ```text
//!  cluster  1 ─ 2 ─ 3                        cluster  1 ─ 2 ─ 3 ─ 4'
//!  copied       2 ─ 3 ─ 4 ─ 5                copied       2 ─ 3 ─ 4 ─ 5
//!                       └────┘ ahead: again                    └────┘ fork: set aside
//! ```
//! A commit fits where the cluster's head is the one it names as its `prev`; that is the whole rule. A fork is never merged: the cluster's
//! stream wins, and the branch is set aside for people to look at. What is missing a link may fit once another node's copy is read too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use crate::{
    commit::{Commit, CommitId, Head, StreamId},
    ids::Version,
    journal::{AppendError, Journal, ReadError, read_all},
};

/// How the copies of a stream and the cluster's stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Both end alike.
    Same,
    /// The cluster has more: others wrote on, or the room was compacted or deleted.
    Behind,
    /// The copies have more, and it follows.
    Ahead,
    /// The copies have more, and what lies between is in none of them.
    Missing,
    /// They went two ways.
    Fork,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same",
            Self::Behind => "behind",
            Self::Ahead => "ahead",
            Self::Missing => "missing a link",
            Self::Fork => "fork",
        })
    }
}

/// One stream, looked at.
#[derive(Debug, Clone)]
pub struct Compared {
    /// The stream.
    pub stream: StreamId,
    /// Where the cluster's ends.
    pub cluster: Option<Head>,
    /// Where the copies end.
    pub copied: Head,
    /// How they stand to each other.
    pub verdict: Verdict,
    /// What follows the cluster's head, in order.
    pub suffix: Vec<Arc<Commit>>,
    /// What does not, by version.
    pub branch: Vec<Arc<Commit>>,
}

/// Compares the copied commits of one stream with the cluster's; `cluster` is what that has from the first copied version on.
pub fn compare(
    stream: &StreamId,
    head: Option<Head>,
    cluster: &[Arc<Commit>],
    copied: &[Arc<Commit>],
) -> Option<Compared> {
    let mut copied: Vec<Arc<Commit>> = copied
        .iter()
        .map(|commit| (commit.id, commit.clone()))
        .collect::<BTreeMap<_, _>>()
        .into_values()
        .collect();
    copied.sort_by_key(|commit| (commit.version, commit.id));
    let end = copied.iter().map(|commit| commit.head()).max_by_key(|head| head.version)?;
    let ended = copied.iter().any(|c| c.events.iter().any(|e| e.kind.as_str() == "RoomDeleted"));
    let known: BTreeSet<CommitId> = cluster.iter().map(|commit| commit.id).collect();
    // Below what the cluster still has lies what it compacted.
    let first = cluster.first().map(|commit| commit.version);
    let compacted = |commit: &Commit| first.is_some_and(|first| commit.last_version() < first);
    let mut left: Vec<Arc<Commit>> =
        copied.into_iter().filter(|commit| !known.contains(&commit.id) && !compacted(commit)).collect();
    if head.is_none() && ended {
        left.clear(); // deleted and purged
    }
    let mut suffix: Vec<Arc<Commit>> = Vec::new();
    let mut at = head;
    while let Some(place) = left.iter().position(|commit| commit.follows(at.as_ref())) {
        let commit = left.remove(place);
        at = Some(commit.head());
        suffix.push(commit);
    }
    // Whoever follows a commit that went another way went that way too.
    let (version, mut astray) = (head.map_or(Version(0), |head| head.version), BTreeSet::new());
    for commit in &left {
        let against = commit.version <= version || suffix.iter().any(|taken| taken.version == commit.version);
        if against || commit.prev.is_some_and(|prev| astray.contains(&prev)) {
            astray.insert(commit.id);
        }
    }
    let verdict = match (left.is_empty(), astray.is_empty()) {
        (false, false) => Verdict::Fork,
        (false, true) if suffix.is_empty() => Verdict::Missing,
        _ if !suffix.is_empty() => Verdict::Ahead,
        _ if head == Some(end) => Verdict::Same,
        _ => Verdict::Behind,
    };
    Some(Compared { stream: stream.clone(), cluster: head, copied: end, verdict, suffix, branch: left })
}

/// Compares everything that was copied with what the cluster has.
pub async fn look(journal: &dyn Journal, copied: &[Arc<Commit>]) -> Result<Vec<Compared>, ReadError> {
    let mut streams: BTreeMap<StreamId, Vec<Arc<Commit>>> = BTreeMap::new();
    for commit in copied {
        streams.entry(commit.stream.clone()).or_default().push(commit.clone());
    }
    let mut compared = Vec::new();
    for (stream, commits) in streams {
        let first = commits.iter().map(|commit| commit.version).min().unwrap_or(Version(1));
        let cluster = read_all(journal, &stream, first).await?;
        let head = match cluster.last() {
            Some(last) => Some(last.head()),
            None => journal.head(&stream).await?,
        };
        compared.extend(compare(&stream, head, &cluster, &commits));
    }
    Ok(compared)
}

/// Appends again what follows, in the order it was written; gives the number of commits, and those that somebody was faster than.
pub async fn apply(
    journal: &dyn Journal,
    compared: &[Compared],
) -> Result<(u64, Vec<Arc<Commit>>), AppendError> {
    let mut suffixes: Vec<std::slice::Iter<'_, Arc<Commit>>> =
        compared.iter().map(|stream| stream.suffix.iter()).collect();
    let (mut appended, mut late) = (0, Vec::new());
    loop {
        let time = |rest: &std::slice::Iter<'_, Arc<Commit>>| Some(rest.as_slice().first()?.time);
        let Some(next) =
            suffixes.iter_mut().filter(|rest| time(rest).is_some()).min_by_key(|rest| time(rest))
        else {
            return Ok((appended, late));
        };
        let Some(commit) = next.next() else { continue };
        match journal.append(Commit::clone(commit)).await {
            Ok(()) => appended += 1,
            Err(AppendError::Conflict { .. }) => {
                late.push(commit.clone());
                late.extend(std::mem::take(next).cloned());
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        commit::{Cause, Payload, RawEvent, Writer},
        ids::{Epoch, Incarnation},
        memory_journal::MemoryJournal,
        time::Timestamp,
    };

    fn commit(stream: &str, after: Option<&Commit>, id: u8) -> Commit {
        let events = if id.is_multiple_of(2) { 1 } else { 2 };
        Commit {
            id: CommitId::from_bytes([id; 16]),
            prev: after.map(|commit| commit.id),
            stream: stream.parse().unwrap(),
            version: after.map_or(Version(1), |commit| commit.last_version().next()),
            time: Timestamp(u64::from(id)),
            writer: Writer { node: "ec.a".parse().unwrap(), incarnation: Incarnation(1) },
            epoch: Epoch(1),
            cause: Cause::default(),
            command: Payload::default(),
            facts: Payload::default(),
            events: vec![RawEvent::new("X", 1, Payload::encode(&1)); events],
            more: Default::default(),
        }
    }

    /// Commits one after another, with these ids.
    fn chain(stream: &str, ids: impl IntoIterator<Item = u8>) -> Vec<Arc<Commit>> {
        let mut chain: Vec<Arc<Commit>> = Vec::new();
        for id in ids {
            chain.push(Arc::new(commit(stream, chain.last().map(AsRef::as_ref), id)));
        }
        chain
    }

    async fn journal(commits: &[Arc<Commit>]) -> MemoryJournal {
        let journal = MemoryJournal::new();
        for commit in commits {
            journal.append(Commit::clone(commit)).await.unwrap();
        }
        journal
    }

    async fn looked(cluster: &[Arc<Commit>], copied: &[Arc<Commit>]) -> Compared {
        let journal = journal(cluster).await;
        look(&journal, copied).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn what_follows_is_appended_again_from_wherever_it_was_copied() {
        let (a, b) = (chain("room.a", 1..=6), chain("room.b", 11..=14));
        let journal = journal(&a[..3]).await;
        // Two nodes wrote by turns; what they copied overlaps and is in no order.
        let copied = [&a[4..], &b[1..], &a[1..5], &b[..2]].concat();
        let compared = look(&journal, &copied).await.unwrap();
        let verdicts: Vec<_> = compared.iter().map(|c| (c.verdict, c.suffix.len(), c.branch.len())).collect();
        assert_eq!(verdicts, [(Verdict::Ahead, 3, 0), (Verdict::Ahead, 4, 0)]);
        assert_eq!(apply(&journal, &compared).await.unwrap(), (7, Vec::new()));
        for chain in [&a, &b] {
            let stored = read_all(&journal, &chain[0].stream, Version(1)).await.unwrap();
            assert_eq!(stored, *chain);
        }
        assert!(look(&journal, &copied).await.unwrap().iter().all(|c| c.verdict == Verdict::Same));
    }

    #[tokio::test]
    async fn a_fork_is_never_merged() {
        let old = chain("room.a", 1..=5);
        let mut new = old[..2].to_vec();
        new.push(Arc::new(commit("room.a", Some(&old[1]), 33)));
        let forked = looked(&new, &old[1..]).await;
        assert_eq!((forked.verdict, forked.suffix.len()), (Verdict::Fork, 0));
        assert_eq!(forked.branch, old[2..]);
        // Also where the cluster's way is longer, and where only the end of the branch was copied.
        for id in 34..40 {
            new.push(Arc::new(commit("room.a", new.last().map(AsRef::as_ref), id)));
        }
        assert_eq!(looked(&new, &old[1..]).await.verdict, Verdict::Fork);
        assert_eq!(looked(&new, &old[4..]).await.branch, old[4..]);
    }

    #[tokio::test]
    async fn of_two_ways_on_from_the_same_head_one_is_taken_and_the_other_set_aside() {
        let one = chain("room.a", 1..=4);
        let other = Arc::new(commit("room.a", Some(&one[1]), 50));
        let copied = [&one[..], std::slice::from_ref(&other)].concat();
        let compared = looked(&one[..2], &copied).await;
        assert_eq!(compared.verdict, Verdict::Fork);
        assert_eq!((compared.suffix, compared.branch), (one[2..].to_vec(), vec![other]));
    }

    #[tokio::test]
    async fn a_missing_link_a_purged_room_and_a_cluster_that_went_on_are_told_apart() {
        let all = chain("room.a", 1..=6);
        let missing = looked(&all[..2], &all[4..]).await;
        assert_eq!((missing.verdict, missing.suffix.len()), (Verdict::Missing, 0));
        assert_eq!(looked(&all, &all[2..4]).await.verdict, Verdict::Behind);
        assert_eq!(looked(&all, &all[2..]).await.verdict, Verdict::Same);
        assert_eq!(looked(&[], &all).await.suffix, all, "a stream that is gone altogether");
        let mut last = commit("room.a", all.last().map(AsRef::as_ref), 7);
        last.events[0].kind = "RoomDeleted".into();
        let deleted = [&all[..], &[Arc::new(last)]].concat();
        assert_eq!(looked(&[], &deleted).await.verdict, Verdict::Behind);
        // Compacted: the cluster's begins behind what was copied first.
        let compared = compare(&all[0].stream, Some(all[5].head()), &all[3..], &all).unwrap();
        assert_eq!((compared.verdict, compared.branch.len()), (Verdict::Same, 0));
    }

    #[tokio::test]
    async fn who_was_overtaken_while_it_was_looked_at_is_late() {
        let all = chain("room.a", 1..=5);
        let journal = journal(&all[..2]).await;
        let compared = look(&journal, &all).await.unwrap();
        journal.append(commit("room.a", Some(&all[1]), 60)).await.unwrap();
        assert_eq!(apply(&journal, &compared).await.unwrap(), (0, all[2..].to_vec()));
    }
}
