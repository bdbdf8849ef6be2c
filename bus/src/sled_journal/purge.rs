//! Purging: what of a stream is forgotten, and how its space comes back.
//!
//! ```text
//!  DIR/purged           for each stream that was purged: its floor, and the segments that still hold what is below it
//!
//!  1  the floors are written down                    from here on what is below them stays forgotten
//!  2  the index forgets                              reads, lists and follows leave it out
//!  3  closed segments that hold little else are cleaned
//!        000007/kept.1      the commits that are left, in new blocks; synced
//!        000007.manifest    describes them instead of 000007/db
//!        000007/db          removed
//! ```
//! A crash in between leaves more on disk than is needed, and the next purge takes it.
//!
//! `purged`: 8 bytes "rlpurge" and the format version, 1; 4 bytes CRC-32 of the journal id and the rest; MessagePack: an array of stream,
//! floor, segments.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    SEGMENTS,
    block::{self, Block},
    closed::{self, BlockRow, ClosedSegment, StreamRow, Summary, Tables},
    facts::JournalId,
    files,
    index::{ByStream, Index, Segment},
    keep::KEPT,
    shared::Shared,
};
use crate::{
    commit::{Commit, Head, StreamId},
    ids::Version,
    journal::PurgeError,
};

const MAGIC: [u8; 8] = *b"rlpurge\x01";

/// A closed segment is cleaned once at most this share of its events is left: at a half, each byte that stays is copied once for every byte
/// that is given back, and at most half of the disk is taken by what is purged.
const CLEAN_AT: f64 = 0.5;

/// Bytes of commits gathered before they are packed into blocks, so that cleaning takes little memory.
const RUN_BYTES: usize = 4 << 20;

/// Where a purged stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Floor {
    /// The first version of its first commit that is left; beyond the head of a stream of which none is.
    pub version: Version,
    /// Segments with commits of it that lie below.
    pub segments: Vec<u32>,
}

/// The floors of all streams that have one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Floors {
    by_stream: ByStream<Floor>,
    /// They could not be read: then a stream may begin anywhere.
    unknown: bool,
}

impl Floors {
    fn path(directory: &Path) -> PathBuf {
        directory.join("purged")
    }

    /// Reads those of the journal in `directory`; an error says why they are of no use, and what follows it is used in their place.
    pub(super) fn read(directory: &Path, id: &JournalId) -> (Self, Option<String>) {
        let bytes = match fs::read(Self::path(directory)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (Self::default(), None),
            Err(error) => return (Self::lost(), Some(error.to_string())),
        };
        let rows: Option<Vec<(StreamId, Version, Vec<u32>)>> = bytes
            .get(12..)
            .filter(|body| bytes[..8] == MAGIC && bytes[8..12] == files::checksum(id, body).to_be_bytes())
            .and_then(|body| rmp_serde::from_slice(body).ok());
        match rows {
            None => (Self::lost(), Some("it is not what was written".into())),
            Some(rows) => {
                let floors =
                    rows.into_iter().map(|(stream, version, segments)| (stream, Floor { version, segments }));
                (Self { by_stream: floors.collect(), unknown: false }, None)
            }
        }
    }

    fn lost() -> Self {
        Self { by_stream: ByStream::default(), unknown: true }
    }

    fn write(floors: &ByStream<Floor>, directory: &Path, id: &JournalId) -> io::Result<()> {
        let rows: BTreeMap<_, _> = floors.iter().collect();
        let rows: Vec<_> = rows.into_iter().map(|(s, floor)| (s, floor.version, &floor.segments)).collect();
        let body = rmp_serde::to_vec(&rows).expect("plain fields");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&files::checksum(id, &body).to_be_bytes());
        bytes.extend_from_slice(&body);
        files::write_whole(&Self::path(directory), &bytes)
    }

    /// Where `stream` begins; 0 if nothing of it was purged.
    pub(super) fn of(&self, stream: &StreamId) -> Version {
        self.by_stream.get(stream).map_or(Version(0), |floor| floor.version)
    }

    /// Whether `commit` is purged.
    pub(super) fn hide(&self, commit: &Commit) -> bool {
        !self.by_stream.is_empty() && commit.last_version() < self.of(&commit.stream)
    }

    /// Whether a stream of which nothing is known yet may begin with `version`.
    pub(super) fn may_begin(&self, stream: &StreamId, version: Version) -> bool {
        self.unknown || version == self.of(stream).max(Version(1))
    }

    /// Whether `commit` may come after `head` on disk.
    pub(super) fn join(&self, commit: &Commit, head: Option<&Head>) -> bool {
        self.hide(commit)
            || commit.follows(head)
            || head.is_none() && self.may_begin(&commit.stream, commit.version)
    }

    /// Whether the name `stream` is used up.
    pub(super) fn has(&self, stream: &StreamId) -> bool {
        self.by_stream.contains_key(stream)
    }
}

/// Purges each stream below a version.
pub(super) fn purge(shared: &Shared, streams: &[(StreamId, Version)]) -> Result<(), PurgeError> {
    let _one_at_a_time = shared.purging();
    let mut floors = shared.index().floors.by_stream.clone();
    let mut changed = Vec::new();
    for (stream, below) in streams {
        if let Some(floor) = floor_of(shared, stream, *below)? {
            let known = floors
                .entry(stream.clone())
                .or_insert_with(|| Floor { version: floor.version, segments: Vec::new() });
            known.version = floor.version;
            known.segments.extend(floor.segments);
            known.segments.sort_unstable();
            known.segments.dedup();
            changed.push(stream.clone());
        }
    }
    if !changed.is_empty() {
        let failed =
            |error: io::Error| PurgeError { reason: format!("what is purged cannot be written: {error}") };
        Floors::write(&floors, &shared.directory, &shared.facts.id).map_err(failed)?;
        let mut index = shared.index_mut();
        index.floors = Floors { by_stream: floors, unknown: false };
        for stream in changed {
            forget(&mut index, &stream);
        }
        let Index { recent, floors, .. } = &mut *index;
        recent.forget(floors);
    }
    clean(shared)
}

/// The floor that purging `stream` below `below` gives it, if that is a higher one.
fn floor_of(shared: &Shared, stream: &StreamId, below: Version) -> Result<Option<Floor>, PurgeError> {
    let state = shared.index().streams.get(stream).cloned();
    let Some(state) = state else { return Ok(None) };
    let version = if below > state.head.version {
        state.head.version.next()
    } else {
        let first =
            shared.read(stream, below, 1).map_err(|error| PurgeError { reason: error.to_string() })?;
        first.first().map_or(state.head.version.next(), |commit| commit.version)
    };
    let begin = state.segments.first().map_or(Version(1), |(_, first)| *first);
    let segments = state.segments.iter().filter(|(_, first)| *first < version).map(|(n, _)| *n).collect();
    Ok((version > begin).then_some(Floor { version, segments }))
}

/// Takes what is below the floor of `stream` out of the index.
fn forget(index: &mut Index, stream: &StreamId) {
    let floor = index.floors.of(stream);
    let gone = match index.streams.get_mut(stream) {
        None => true,
        Some(state) if state.head.version < floor => true,
        Some(state) => {
            let first = state.segments.partition_point(|(_, first)| *first <= floor).saturating_sub(1);
            state.segments.drain(..first);
            state.segments[0].1 = state.segments[0].1.max(floor);
            state.segments.shrink_to_fit();
            false
        }
    };
    if gone {
        index.streams.remove(stream);
    }
    for live in index.live.values_mut() {
        if let Some(positions) = live.streams.get_mut(stream) {
            positions.retain(|position| position.version >= floor);
            positions.shrink_to_fit();
            if positions.is_empty() {
                live.streams.remove(stream);
            }
        }
    }
}

/// Cleans the closed segments of which enough is purged.
fn clean(shared: &Shared) -> Result<(), PurgeError> {
    let dirty: BTreeSet<u32> =
        shared.index().floors.by_stream.values().flat_map(|floor| floor.segments.iter().copied()).collect();
    let mut cleaned = BTreeSet::new();
    for number in dirty {
        let closed = match shared.index().segments.get(&number) {
            Some(Segment::Closed(closed)) => closed.clone(),
            _ => continue,
        };
        let (mut left, mut all) = (0, 0);
        {
            let index = shared.index();
            for row in &closed.summary.streams {
                let floor = index.floors.of(&row.stream);
                all += row.head.version.0 + 1 - row.first.0;
                left += (row.head.version.0 + 1).saturating_sub(row.first.max(floor).0);
            }
        }
        if all == 0 || left as f64 > all as f64 * CLEAN_AT {
            continue;
        }
        let new = rewrite(shared, &closed).map_err(|reason| PurgeError {
            reason: format!("segment {number:06} cannot be cleaned: {reason}"),
        })?;
        shared.index_mut().segments.insert(number, Segment::Closed(Arc::new(new)));
        cleaned.insert(number);
        // Readers that looked it up before find it gone, and look again.
        if let Err(error) = remove_others(shared, number) {
            tracing::warn!(segment = number, %error, "what a cleaned segment has no use for could not be removed");
        }
    }
    if !cleaned.is_empty() {
        let mut index = shared.index_mut();
        let mut floors = std::mem::take(&mut index.floors);
        for floor in floors.by_stream.values_mut() {
            floor.segments.retain(|segment| !cleaned.contains(segment));
        }
        // A stream of which nothing is left anywhere needs no floor; another needs it to be known to begin there.
        floors
            .by_stream
            .retain(|stream, floor| !floor.segments.is_empty() || index.streams.contains_key(stream));
        index.floors = floors;
        let kept = index.floors.by_stream.clone();
        drop(index);
        tracing::info!(segments = ?cleaned, "cleaned: what was purged gave its space back");
        // The old ones hide nothing that is still there, so losing these is no harm.
        if let Err(error) = Floors::write(&kept, &shared.directory, &shared.facts.id) {
            tracing::warn!(%error, "what is purged could not be written shorter");
        }
    }
    Ok(())
}

/// Copies what is left of a closed segment into a new file and makes its manifest describe that.
fn rewrite(shared: &Shared, closed: &ClosedSegment) -> Result<ClosedSegment, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (id, segments) = (shared.facts.id, shared.directory.join(SEGMENTS));
    let old = &closed.summary;
    let tables = closed.tables().map_err(|e| text(&e))?;
    let (mut rows, mut positions, mut left) = (Vec::new(), Vec::new(), BTreeSet::new());
    {
        let index = shared.index();
        for (row, own) in old.streams.iter().zip(&tables.positions) {
            let floor = index.floors.of(&row.stream);
            let own: Vec<(u64, u64)> =
                own.iter().copied().filter(|(version, _)| *version >= floor.0).collect();
            if let Some((first, _)) = own.first() {
                left.extend(own.iter().map(|(_, sequence)| *sequence));
                rows.push(StreamRow { stream: row.stream.clone(), first: Version(*first), head: row.head });
                positions.push(own);
            }
        }
    }
    let name = next_name(&old.log);
    let directory = closed::directory_path(&segments, old.segment);
    let mut out = Packer {
        id: &id,
        place: block::Place {
            segment: old.segment,
            number: 0,
            first: 0,
            generation: old.generation,
            durable: 0,
        },
        file: io::BufWriter::new(File::create(directory.join(&name)).map_err(|e| text(&e))?),
        run: Vec::new(),
        run_bytes: 0,
        offset: 0,
        rows: Vec::new(),
    };
    for row in &tables.blocks {
        let range = row.first..row.first + u64::from(row.commits);
        if left.range(range).next().is_none() {
            continue;
        }
        let bytes = closed.block(&tables, row.first).map_err(|e| text(&e))?;
        for item in Block::parse(&id, &bytes).map_err(|e| text(&e))?.encoded() {
            let (sequence, commit) = item.map_err(|e| text(&e))?;
            if left.contains(&sequence) {
                out.add(sequence, commit).map_err(|e| text(&e))?;
            }
        }
    }
    let (blocks, log_bytes) = out.finish().map_err(|e| text(&e))?;
    files::sync_directory(&directory).map_err(|e| text(&e))?;
    let summary = Summary { log: name, log_bytes, streams: rows, ..old.clone() };
    let tables = Tables { blocks, positions };
    closed::write_manifest(&segments, &id, &summary, &tables).map_err(|e| text(&e))?;
    Ok(ClosedSegment::scanned(&segments, old.segment, id, summary, Tables::default()).with_manifest())
}

/// Packs commits into blocks: each run of successive ones into blocks of its own, since a block names the sequence of its first only.
struct Packer<'a> {
    id: &'a JournalId,
    place: block::Place,
    file: io::BufWriter<File>,
    run: Vec<Vec<u8>>,
    run_bytes: usize,
    offset: u64,
    rows: Vec<BlockRow>,
}

impl Packer<'_> {
    fn add(&mut self, sequence: u64, commit: &[u8]) -> io::Result<()> {
        if self.place.first + self.run.len() as u64 != sequence || self.run_bytes >= RUN_BYTES {
            self.pack()?;
            self.place.first = sequence;
        }
        self.run_bytes += commit.len();
        self.run.push(commit.to_vec());
        Ok(())
    }

    fn pack(&mut self) -> io::Result<()> {
        for block in block::pack(self.id, self.place, self.run.iter().map(Vec::as_slice)) {
            let header = block::Header::peek(&block).map_err(io::Error::other)?;
            self.rows.push(BlockRow {
                number: header.number,
                offset: self.offset,
                bytes: header.bytes,
                first: header.first,
                commits: header.commits,
            });
            self.file.write_all(&block)?;
            self.offset += block.len() as u64;
            self.place.number += 1;
            self.place.durable = self.place.number;
        }
        self.run.clear();
        self.run_bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> io::Result<(Vec<BlockRow>, u64)> {
        self.pack()?;
        self.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok((self.rows, self.offset))
    }
}

/// A name for the file after `log`: never that of one a reader may have open.
fn next_name(log: &str) -> String {
    let times: u64 =
        log.strip_prefix(KEPT).map_or(0, |rest| rest.trim_start_matches('.').parse().unwrap_or(0));
    format!("{KEPT}.{}", times + 1)
}

/// Removes from a segment's directory what its manifest does not name.
fn remove_others(shared: &Shared, number: u32) -> io::Result<()> {
    let segments = shared.directory.join(SEGMENTS);
    let log = match shared.index().segments.get(&number) {
        Some(Segment::Closed(closed)) => closed.log(),
        _ => return Ok(()),
    };
    let directory = closed::directory_path(&segments, number);
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if path != log {
            fs::remove_file(&path)?;
        }
    }
    files::sync_directory(&directory)
}
