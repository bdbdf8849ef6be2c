//! What the writer, the readers and the followers share, and how a commit is found.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::sync::watch;

use super::{
    block::Block,
    closed::{ClosedError, ClosedSegment, Tables, as_positions},
    facts::Facts,
    index::{Index, Position, Segment, from_version},
    live::LiveError,
    settings::JournalSettings,
};
use crate::{
    commit::{Commit, StreamId},
    ids::Version,
    journal::ReadError,
};

/// Tables of closed segments kept in memory after use. Four are a few MiB each; a reader of an old stream walks them one by one.
const KEPT_TABLES: usize = 4;

/// How often a segment is looked up again because it was closed meanwhile. Closing happens once in a segment's life.
const LOOKUPS: usize = 4;

pub(super) struct Shared {
    pub directory: PathBuf,
    pub facts: Facts,
    pub settings: JournalSettings,
    index: RwLock<Index>,
    /// The last durable sequence. Its sender is the writer's: when that goes, followers end.
    pub tail: watch::Receiver<u64>,
    tables: Mutex<VecDeque<Arc<Tables>>>,
    purging: Mutex<()>,
}

/// Says that the journal stopped if the thread that holds it ends by a panic.
pub(super) struct StopOnPanic(pub Arc<Shared>);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.index_mut().stopped = Some("its writer failed; restart to open it again".into());
        }
    }
}

/// What a follower is given at once.
pub(super) struct Page {
    pub commits: Vec<(u64, Arc<Commit>)>,
    /// The sequence to go on from.
    pub next: u64,
}

/// The part of a read that lies in one segment.
enum Part {
    Here(Vec<Position>),
    Closed(Arc<ClosedSegment>),
}

impl Shared {
    pub(super) fn new(
        directory: PathBuf,
        facts: Facts,
        settings: JournalSettings,
        index: Index,
        tail: watch::Receiver<u64>,
    ) -> Self {
        Self {
            directory,
            facts,
            settings,
            index: RwLock::new(index),
            tail,
            tables: Mutex::new(VecDeque::new()),
            purging: Mutex::new(()),
        }
    }

    /// To look something up; never held while a file or sled is read.
    pub(super) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the writer and the closing of segments.
    pub(super) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by the one who purges.
    pub(super) fn purging(&self) -> MutexGuard<'_, ()> {
        self.purging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if nothing certain can be said about `stream`.
    pub(super) fn certain(index: &Index, stream: &StreamId) -> Result<(), ReadError> {
        if let Some(reason) = index.broken.get(stream) {
            return Err(ReadError::Damaged { place: format!("stream {stream}"), reason: reason.clone() });
        }
        if index.doubtful.contains(stream) {
            let stopped = index.stopped.as_deref().unwrap_or_default();
            return Err(ReadError::Unavailable {
                reason: format!(
                    "whether the last commits of {stream} are stored is known only after a restart ({stopped})"
                ),
            });
        }
        Ok(())
    }

    /// Answers a read from memory alone; `Err(None)` if that is not enough.
    pub(super) fn read_recent(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, Option<ReadError>> {
        let index = self.index();
        Self::certain(&index, stream)?;
        let Some(state) = index.streams.get(stream) else { return Ok(Vec::new()) };
        let from = from.max(index.floors.of(stream));
        if state.head.version < from || limit == 0 {
            return Ok(Vec::new());
        }
        let (segment, first) = *state.segments.last().expect("a stream with a head is in a segment");
        let positions = index.live.get(&segment).and_then(|live| live.streams.get(stream)).ok_or(None)?;
        if from < first && state.segments.len() > 1 {
            return Err(None);
        }
        from_version(positions, state.head.version, from)
            .iter()
            .take(limit)
            .map(|position| index.recent.get(position.sequence).cloned().ok_or(None))
            .collect()
    }

    /// As the trait says; blocks.
    pub(super) fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError> {
        let mut from = from;
        let parts = {
            let index = self.index();
            Self::certain(&index, stream)?;
            let Some(state) = index.streams.get(stream) else { return Ok(Vec::new()) };
            from = from.max(index.floors.of(stream));
            if state.head.version < from || limit == 0 {
                return Ok(Vec::new());
            }
            let skip = state.segments.partition_point(|(_, first)| *first <= from).saturating_sub(1);
            let mut parts = Vec::new();
            for (i, (number, _)) in state.segments.iter().enumerate().skip(skip) {
                if let Some(live) = index.live.get(number) {
                    let positions = live.streams.get(stream).map(Vec::as_slice).unwrap_or_default();
                    let last = match state.segments.get(i + 1) {
                        Some((_, first)) => Version(first.0 - 1),
                        None => state.head.version,
                    };
                    let wanted = from_version(positions, last, from);
                    parts.push(Part::Here(wanted.iter().take(limit).copied().collect()));
                } else if let Some(Segment::Closed(closed)) = index.segments.get(number) {
                    parts.push(Part::Closed(closed.clone()));
                }
            }
            parts
        };
        let mut commits = Vec::new();
        for part in parts {
            if commits.len() == limit {
                break;
            }
            let positions = match part {
                Part::Here(positions) => positions,
                Part::Closed(closed) => {
                    let found = closed
                        .positions(stream)
                        .map_err(|error| damaged(closed.summary.segment, &ClosedError::from(error)))?;
                    let Some((tables, row, last)) = found else { continue };
                    self.keep(&tables);
                    let positions = as_positions(&tables.positions[row]);
                    from_version(&positions, last, from).to_vec()
                }
            };
            let wanted: Vec<u64> = positions.iter().take(limit - commits.len()).map(|p| p.sequence).collect();
            self.fetch(&wanted, &mut commits)?;
        }
        Ok(commits)
    }

    /// Fetches the commits with these sequences, which must ascend.
    fn fetch(&self, mut wanted: &[u64], into: &mut Vec<Arc<Commit>>) -> Result<(), ReadError> {
        while let Some(first) = wanted.first() {
            if let Some(commit) = self.index().recent.get(*first) {
                into.push(commit.clone());
                wanted = &wanted[1..];
                continue;
            }
            self.with_block(*first, |segment, block| {
                for item in block.encoded() {
                    let (sequence, bytes) = item.map_err(|error| damaged(segment, &error))?;
                    if wanted.first() == Some(&sequence) {
                        let commit = Commit::decode(bytes).map_err(|error| damaged(segment, &error))?;
                        into.push(Arc::new(commit));
                        wanted = &wanted[1..];
                    }
                }
                Ok(())
            })?;
            if wanted.first() == Some(first) {
                return Err(ReadError::Damaged {
                    place: format!("commit {first} of the journal"),
                    reason: "its block does not hold it".into(),
                });
            }
        }
        Ok(())
    }

    /// The commits from `sequence` to the end of its block that are not purged, each with its sequence, and the sequence after them all;
    /// blocks.
    pub(super) fn page(&self, sequence: u64) -> Result<Page, ReadError> {
        if let Some(next) = self.beyond_cleaned(sequence)? {
            return Ok(Page { commits: Vec::new(), next });
        }
        let page = self.with_block(sequence, |segment, block| {
            let commits: Result<Vec<_>, _> = block
                .commits()
                .filter(|item| !matches!(item, Ok((at, _)) if *at < sequence))
                .map(|item| item.map_err(|error| damaged(segment, &error)))
                .collect();
            Ok(Page { commits: commits?, next: block.header.last() + 1 })
        });
        match page {
            Ok(mut page) => {
                let index = self.index();
                page.commits.retain(|(_, commit)| !index.floors.hide(commit));
                Ok(page)
            }
            // Perhaps it was cleaned just now.
            Err(error) => match self.beyond_cleaned(sequence)? {
                Some(next) => Ok(Page { commits: Vec::new(), next }),
                None => Err(error),
            },
        }
    }

    /// The next sequence that is there, if `sequence` was taken out of its segment when that was cleaned; blocks.
    fn beyond_cleaned(&self, sequence: u64) -> Result<Option<u64>, ReadError> {
        let closed = {
            let index = self.index();
            match index.segment_of(sequence).and_then(|number| index.segments.get(&number)) {
                Some(Segment::Closed(closed)) => closed.clone(),
                _ => return Ok(None),
            }
        };
        let summary = &closed.summary;
        let lost = summary.holes.iter().any(|(first, last)| (*first..=*last).contains(&sequence));
        let Some(last) = summary.last.filter(|last| !lost && sequence <= last.sequence) else {
            return Ok(None);
        };
        let tables = closed.tables().map_err(|error| damaged(summary.segment, &error))?;
        self.keep(&tables);
        if tables.block_of(sequence).is_some() {
            return Ok(None);
        }
        let after = tables.blocks.partition_point(|row| row.first <= sequence);
        Ok(Some(tables.blocks.get(after).map_or(last.sequence + 1, |row| row.first)))
    }

    /// Gives `f` the checked block that holds `sequence`.
    fn with_block<T>(
        &self,
        sequence: u64,
        f: impl FnOnce(u32, Block<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let missing = |reason: &str| ReadError::Damaged {
            place: format!("commit {sequence} of the journal"),
            reason: reason.into(),
        };
        for _ in 0..LOOKUPS {
            let (number, segment, block) = {
                let index = self.index();
                let number = index.segment_of(sequence).ok_or_else(|| missing("no segment has it"))?;
                let segment = index.segments.get(&number).ok_or_else(|| missing("its segment is gone"))?;
                let after = index
                    .live
                    .get(&number)
                    .map_or(0, |live| live.blocks.partition_point(|first| *first <= sequence));
                (number, segment.clone(), after.saturating_sub(1) as u32)
            };
            match segment {
                Segment::Live(live) => match live.block(block) {
                    Err(LiveError::Closed) => {}
                    Err(error) => return Err(damaged(number, &error)),
                    Ok(bytes) => {
                        let block = Block::parse_as(&self.facts.id, number, block, &bytes)
                            .map_err(|error| damaged(number, &error))?;
                        return f(number, block);
                    }
                },
                Segment::Closed(closed) => {
                    let tables = closed.tables().map_err(|error| damaged(number, &error))?;
                    self.keep(&tables);
                    let bytes = match closed.block(&tables, sequence) {
                        Ok(bytes) => bytes,
                        // Cleaned since it was looked up: what is left of it is in another file.
                        Err(_) if self.was_replaced(number, &closed) => continue,
                        // Another process cleaned it since this one looked at the folder.
                        Err(ClosedError::Io(error))
                            if error.kind() == io::ErrorKind::NotFound && closed.has_another_log() =>
                        {
                            let reason = format!("segment {number:06} was cleaned meanwhile: open it again");
                            return Err(ReadError::Unavailable { reason });
                        }
                        Err(error) => return Err(damaged(number, &error)),
                    };
                    let block =
                        Block::parse(&self.facts.id, &bytes).map_err(|error| damaged(number, &error))?;
                    return f(number, block);
                }
            }
        }
        Err(ReadError::Unavailable { reason: "the journal was closed".into() })
    }

    fn was_replaced(&self, number: u32, closed: &Arc<ClosedSegment>) -> bool {
        let index = self.index();
        !matches!(index.segments.get(&number), Some(Segment::Closed(now)) if Arc::ptr_eq(now, closed))
    }

    fn keep(&self, tables: &Arc<Tables>) {
        let mut kept = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.iter().any(|known| Arc::ptr_eq(known, tables)) {
            kept.push_back(tables.clone());
            if kept.len() > KEPT_TABLES {
                kept.pop_front();
            }
        }
    }
}

fn damaged(segment: u32, reason: &dyn std::fmt::Display) -> ReadError {
    let (place, reason) = (format!("segment {segment:06}"), reason.to_string());
    tracing::error!(segment, reason, "damaged record in the journal: not served");
    ReadError::Damaged { place, reason }
}
