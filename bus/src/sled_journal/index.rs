//! What is known in memory: where each stream ends, which segments it is in, and the newest commits.
//!
//! ```text
//!  streams   room.a → head 7, in segments 1 and 3
//!  segments  1 closed ── 2 closed ── 3 live        for a closed one the positions are in its manifest, on disk
//!  recent                       ··· ·[c c c c c]   the last commits, shared with followers and readers
//! ```
//! Only the answer thread changes it, once per group and after the sync, so nobody sees what is not durable.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::{closed::ClosedSegment, live::LiveSegment, purge::Floors, shared::Page};
use crate::{
    commit::{Commit, Head, StreamId},
    ids::Version,
};

/// By stream. Looked at several times per commit, so with a fast hash; its seed is random per process, as ids may be chosen by others.
pub(super) type ByStream<T> = HashMap<StreamId, T, foldhash::fast::RandomState>;

/// Where one commit of a stream is: its first version, and its sequence in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub version: Version,
    pub sequence: u64,
}

/// A segment's tables.
#[derive(Debug, Default, Clone)]
pub(super) struct SegmentIndex {
    /// For each block the sequence of its first commit.
    pub blocks: Vec<u64>,
    /// For each stream its commits in this segment.
    pub streams: ByStream<Vec<Position>>,
}

/// A segment as readers find it.
#[derive(Clone)]
pub(super) enum Segment {
    Live(Arc<LiveSegment>),
    Closed(Arc<ClosedSegment>),
}

/// What is known of a stream.
#[derive(Debug, Clone)]
pub(super) struct StreamState {
    pub head: Head,
    /// The segments it is in, oldest first, each with its first version there.
    pub segments: Vec<(u32, Version)>,
}

/// The newest commits, in sequence; none in the place of one that is purged.
pub(super) struct Recent {
    first: u64,
    commits: VecDeque<(Option<Arc<Commit>>, usize)>,
    bytes: usize,
    max_commits: usize,
    max_bytes: usize,
}

impl Recent {
    pub(super) fn new(next: u64, max_commits: usize, max_bytes: usize) -> Self {
        Self { first: next, commits: VecDeque::new(), bytes: 0, max_commits, max_bytes }
    }

    fn push(&mut self, commit: Option<Arc<Commit>>, bytes: usize) {
        self.commits.push_back((commit, bytes));
        self.bytes += bytes;
    }

    /// Lets go of what is purged.
    pub(super) fn forget(&mut self, floors: &Floors) {
        for (commit, bytes) in &mut self.commits {
            if commit.as_ref().is_some_and(|commit| floors.hide(commit)) {
                self.bytes -= std::mem::take(bytes);
                *commit = None;
            }
        }
    }

    /// Takes out what is beyond the limits; for the caller to drop when nobody waits for it.
    pub(super) fn trim(&mut self) -> Vec<Arc<Commit>> {
        let mut out = Vec::new();
        while self.commits.len() > self.max_commits || self.bytes > self.max_bytes {
            let Some((commit, bytes)) = self.commits.pop_front() else { break };
            self.bytes -= bytes;
            self.first += 1;
            out.extend(commit);
        }
        out
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Arc<Commit>> {
        let at = sequence.checked_sub(self.first)?;
        self.commits.get(usize::try_from(at).ok()?)?.0.as_ref()
    }

    /// Up to `limit` of the newest commits from `sequence` on, as a follower gets them; none if that place is not in memory any more.
    pub(super) fn page(&self, sequence: u64, limit: usize) -> Option<Page> {
        let at = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        if at >= self.commits.len() {
            return None;
        }
        let places = self.commits.range(at..self.commits.len().min(at + limit));
        let next = sequence + places.len() as u64;
        let commits = (sequence..).zip(places).filter_map(|(at, (commit, _))| Some((at, commit.clone()?)));
        Some(Page { commits: commits.collect(), next })
    }
}

/// All of it.
pub(super) struct Index {
    /// Sequence of the last durable commit.
    pub tail: u64,
    pub streams: ByStream<StreamState>,
    pub segments: BTreeMap<u32, Segment>,
    /// First sequence of each segment.
    pub starts: BTreeMap<u64, u32>,
    /// Tables of segments not closed yet: the one being written, and one being closed.
    pub live: BTreeMap<u32, SegmentIndex>,
    pub recent: Recent,
    /// Where purged streams begin.
    pub floors: Floors,
    /// Streams that take no appends, and why.
    pub broken: HashMap<StreamId, String>,
    /// First and last of the sequences that are not there any more.
    pub holes: Vec<(u64, u64)>,
    /// Why there are no appends any more.
    pub stopped: Option<String>,
    /// Streams with commits whose fate is unknown since the journal stopped.
    pub doubtful: HashSet<StreamId>,
}

impl Index {
    /// Takes in a durable commit of segment `segment`. Not inlined, so that its instructions can be counted.
    #[inline(never)]
    pub(super) fn add(&mut self, segment: u32, sequence: u64, commit: Arc<Commit>, bytes: usize) {
        let head = commit.head();
        let position = Position { version: commit.version, sequence };
        match self.streams.get_mut(&commit.stream) {
            Some(state) => {
                state.head = head;
                if state.segments.last().is_none_or(|(last, _)| *last != segment) {
                    state.segments.push((segment, commit.version));
                }
            }
            None => {
                let state = StreamState { head, segments: vec![(segment, commit.version)] };
                self.streams.insert(commit.stream.clone(), state);
            }
        }
        let live = self.live.entry(segment).or_default();
        match live.streams.get_mut(&commit.stream) {
            Some(positions) => positions.push(position),
            None => {
                live.streams.insert(commit.stream.clone(), vec![position]);
            }
        }
        self.tail = sequence;
        self.recent.push(Some(commit), bytes);
    }

    /// Counts a durable commit that is purged.
    pub(super) fn add_purged(&mut self, sequence: u64) {
        self.tail = sequence;
        self.recent.push(None, 0);
    }

    /// The segment that holds `sequence`.
    pub(super) fn segment_of(&self, sequence: u64) -> Option<u32> {
        self.starts.range(..=sequence).next_back().map(|(_, segment)| *segment)
    }
}

/// Of `positions`, those whose commits end at `from` or later; `last` is the last version among them.
pub(super) fn from_version(positions: &[Position], last: Version, from: Version) -> &[Position] {
    if last < from {
        return &[];
    }
    let after = positions.partition_point(|p| p.version <= from);
    &positions[after.saturating_sub(1)..]
}
