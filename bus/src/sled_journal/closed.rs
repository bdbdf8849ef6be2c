//! A closed segment: files that never change again, and the manifest that describes them.
//!
//! ```text
//!  segments/000007/db          sled's log as it was when sled closed it; or
//!  segments/000007/kept        the intact blocks of a damaged one, end to end
//!  segments/000007.manifest    below
//!
//!  manifest, offset  bytes
//!                 0      8  "rlmanif" and the format version, 1
//!                 8      8  length of the summary
//!                16      4  CRC-32 of the journal id, then the summary
//!                20         the summary, MessagePack: what opening needs (the streams and their heads)
//!                 +      8  length of the tables
//!                 +      4  CRC-32 of the journal id, then the tables
//!                 +         the tables, MessagePack: what reading needs (where each block and each commit is)
//! ```
//! Opening reads summaries only. Tables are read when a read first needs them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rmp_serde::decode::Error as DecodeError;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    block::{Block, BlockError},
    facts::JournalId,
    files,
    index::Position,
    scan::{self, Scan},
};
use crate::{
    commit::{CommitId, Head, Outline, StreamId},
    ids::Version,
};

const MAGIC: [u8; 8] = *b"rlmanif\x01";

/// Where a segment begins: what its predecessor ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    /// Sequence of the last commit.
    pub sequence: u64,
    /// Its id: a random number no other folder has there.
    pub id: CommitId,
}

/// A stream in a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamRow {
    pub stream: StreamId,
    pub first: Version,
    pub head: Head,
}

/// What opening needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    pub segment: u32,
    /// Name of the file with the blocks.
    pub log: String,
    /// Its length: shorter is damage that needs no reading to be seen.
    pub log_bytes: u64,
    pub generation: u32,
    pub first: u64,
    pub last: Option<End>,
    /// The end of the segment before it.
    pub previous: Option<End>,
    /// Sorted by stream.
    pub streams: Vec<StreamRow>,
    /// First and last sequence of what is missing in it, after damage.
    pub holes: Vec<(u64, u64)>,
    /// Streams that do not join up after damage, and why.
    pub broken: Vec<(StreamId, String)>,
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlockRow {
    pub number: u32,
    pub offset: u64,
    pub bytes: u32,
    pub first: u64,
    pub commits: u16,
}

/// What reading needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Tables {
    pub blocks: Vec<BlockRow>,
    /// For each stream of the summary, version and sequence of each of its commits.
    pub positions: Vec<Vec<(u64, u64)>>,
}

impl Tables {
    /// The block that holds `sequence`.
    pub(super) fn block_of(&self, sequence: u64) -> Option<&BlockRow> {
        let after = self.blocks.partition_point(|row| row.first <= sequence);
        let row = self.blocks.get(after.checked_sub(1)?)?;
        (sequence < row.first + u64::from(row.commits)).then_some(row)
    }
}

/// Why a manifest is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("there is none")]
    Missing,
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Damaged(&'static str),
    #[error("it cannot be decoded: {0}")]
    Decode(String),
}

/// A closed segment. Cheap to keep: its tables are loaded when needed.
pub(super) struct ClosedSegment {
    pub summary: Summary,
    directory: PathBuf,
    manifest: PathBuf,
    id: JournalId,
    tables: Mutex<Weak<Tables>>,
    /// For a segment that was only scanned and has no manifest: its tables.
    pinned: Option<Arc<Tables>>,
}

/// How reading a closed segment failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClosedError {
    #[error("manifest: {0}")]
    Manifest(#[from] ManifestError),
    #[error("block {number}: {error}")]
    Block { number: u32, error: BlockError },
    #[error("commit {0} is not in it")]
    Hole(u64),
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl ClosedSegment {
    /// Opens segment `number` from its manifest.
    pub(super) fn open(segments: &Path, number: u32, id: JournalId) -> Result<Self, ManifestError> {
        let manifest = manifest_path(segments, number);
        let mut file = open_manifest(&manifest)?;
        let summary: Summary = read_part(&mut file, &id)?;
        if summary.segment != number {
            return Err(ManifestError::Damaged("it is the manifest of another segment"));
        }
        let directory = directory_path(segments, number);
        Ok(Self { summary, directory, manifest, id, tables: Mutex::new(Weak::new()), pinned: None })
    }

    /// A segment known from a scan, without a manifest on disk.
    pub(super) fn scanned(
        segments: &Path,
        number: u32,
        id: JournalId,
        summary: Summary,
        tables: Tables,
    ) -> Self {
        Self {
            summary,
            directory: directory_path(segments, number),
            manifest: manifest_path(segments, number),
            id,
            tables: Mutex::new(Weak::new()),
            pinned: Some(Arc::new(tables)),
        }
    }

    /// From now on its tables come from the manifest that was written.
    pub(super) fn with_manifest(mut self) -> Self {
        self.pinned = None;
        self
    }

    /// The file with the blocks.
    pub(super) fn log(&self) -> PathBuf {
        self.directory.join(&self.summary.log)
    }

    /// Whether its blocks are in another file than the manifest said when it was read.
    pub(super) fn has_another_log(&self) -> bool {
        super::keep::find_log(&self.directory).is_some_and(|found| found != self.log())
    }

    /// The tables, from memory if somebody else still has them.
    pub(super) fn tables(&self) -> Result<Arc<Tables>, ManifestError> {
        if let Some(tables) = &self.pinned {
            return Ok(tables.clone());
        }
        let mut kept = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = kept.upgrade() {
            return Ok(tables);
        }
        let tables = match self.stored_tables() {
            Ok(tables) => tables,
            // They only say what the blocks say themselves, so a reader need not fail for them.
            Err(error) => {
                tracing::warn!(segment = self.summary.segment, %error, "the tables in a manifest are damaged: the segment is scanned instead");
                self.scanned_tables().ok_or(error)?
            }
        };
        let tables = Arc::new(tables);
        *kept = Arc::downgrade(&tables);
        Ok(tables)
    }

    /// The tables in the manifest.
    pub(super) fn stored_tables(&self) -> Result<Tables, ManifestError> {
        let mut file = open_manifest(&self.manifest)?;
        skip_part(&mut file)?;
        let tables: Tables = read_part(&mut file, &self.id)?;
        if tables.positions.len() != self.summary.streams.len() {
            return Err(ManifestError::Damaged("its tables do not fit its summary"));
        }
        Ok(tables)
    }

    /// The tables by the blocks themselves, if these are all there.
    pub(super) fn scanned_tables(&self) -> Option<Tables> {
        let file = File::open(self.log()).ok()?;
        let number = self.summary.segment;
        let scan = scan::scan(&file, &self.id, number).ok()?;
        let numbers: Vec<u32> = scan.blocks.keys().copied().collect();
        let described =
            describe(&file, &self.id, number, &scan, numbers.into_iter(), |_, _, _| Ok(())).ok()?;
        (described.streams == self.summary.streams && described.last == self.summary.last)
            .then_some(described.tables)
    }

    /// Where the commits of `stream` are, and its last version here.
    pub(super) fn positions(
        &self,
        stream: &StreamId,
    ) -> Result<Option<(Arc<Tables>, usize, Version)>, ManifestError> {
        let Ok(row) = self.summary.streams.binary_search_by(|row| row.stream.cmp(stream)) else {
            return Ok(None);
        };
        Ok(Some((self.tables()?, row, self.summary.streams[row].head.version)))
    }

    /// Reads every block; fails on the first that is not what was written.
    pub(super) fn check(&self) -> Result<(), String> {
        let tables = self.tables().map_err(|error| format!("manifest: {error}"))?;
        tables
            .blocks
            .iter()
            .try_for_each(|row| self.block(&tables, row.first).map(drop))
            .map_err(|error| error.to_string())
    }

    /// The bytes of the block that holds `sequence`, checked.
    pub(super) fn block(&self, tables: &Tables, sequence: u64) -> Result<Vec<u8>, ClosedError> {
        let row = tables.block_of(sequence).ok_or(ClosedError::Hole(sequence))?;
        let mut bytes = vec![0; row.bytes as usize];
        File::open(self.log())?.read_exact_at(&mut bytes, row.offset)?;
        Block::parse_as(&self.id, self.summary.segment, row.number, &bytes)
            .map_err(|error| ClosedError::Block { number: row.number, error })?;
        Ok(bytes)
    }
}

/// Directory of a segment.
pub(super) fn directory_path(segments: &Path, number: u32) -> PathBuf {
    segments.join(format!("{number:06}"))
}

/// Manifest of a segment. Beside its directory, so that losing one leaves the other.
pub(super) fn manifest_path(segments: &Path, number: u32) -> PathBuf {
    segments.join(format!("{number:06}.manifest"))
}

/// What is known of a segment that must hold `blocks`, in order, found in `scan`.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub tables: Tables,
    pub streams: Vec<StreamRow>,
    pub last: Option<End>,
}

/// Reads the blocks `numbers` of `scan` from `file` and describes them. Their checksums were proven by the scan and are proven again.
pub(super) fn describe(
    file: &File,
    id: &JournalId,
    segment: u32,
    scan: &Scan,
    numbers: impl Iterator<Item = u32>,
    mut each: impl FnMut(u64, &Outline, &[u8]) -> Result<(), DecodeError>,
) -> Result<Description, ClosedError> {
    let mut streams: BTreeMap<StreamId, (StreamRow, Vec<(u64, u64)>)> = BTreeMap::new();
    let mut description = Description::default();
    let mut bytes = Vec::new();
    for number in numbers {
        let Some(found) = scan.blocks.get(&number) else { continue };
        bytes.resize(found.header.bytes as usize, 0);
        file.read_exact_at(&mut bytes, found.offset)?;
        let wrong = |error| ClosedError::Block { number, error };
        let block = Block::parse_as(id, segment, number, &bytes).map_err(wrong)?;
        for (index, item) in block.encoded().enumerate() {
            let (sequence, encoded) = item.map_err(wrong)?;
            let no_commit =
                |error: DecodeError| wrong(BlockError::Commit { index, reason: error.to_string() });
            let commit = Outline::decode(encoded).map_err(no_commit)?;
            let head = commit.head();
            let position = (commit.version.0, sequence);
            streams
                .entry(commit.stream.clone())
                .and_modify(|(row, positions)| {
                    row.head = head;
                    positions.push(position);
                })
                .or_insert_with(|| {
                    let row = StreamRow { stream: commit.stream.clone(), first: commit.version, head };
                    (row, vec![position])
                });
            description.last = Some(End { sequence, id: commit.id });
            each(sequence, &commit, encoded).map_err(no_commit)?;
        }
        description.tables.blocks.push(BlockRow {
            number,
            offset: found.offset,
            bytes: found.header.bytes,
            first: found.header.first,
            commits: found.header.commits,
        });
    }
    (description.streams, description.tables.positions) = streams.into_values().unzip();
    Ok(description)
}

/// Writes the manifest of a segment, durably.
pub(super) fn write_manifest(
    segments: &Path,
    id: &JournalId,
    summary: &Summary,
    tables: &Tables,
) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    for part in [rmp_serde::to_vec(summary), rmp_serde::to_vec(tables)] {
        let part = part.expect("plain structures in memory");
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(&files::checksum(id, &part).to_be_bytes());
        bytes.extend_from_slice(&part);
    }
    files::write_whole(&manifest_path(segments, summary.segment), &bytes)
}

fn open_manifest(path: &Path) -> Result<File, ManifestError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ManifestError::Missing),
        Err(error) => return Err(error.into()),
    };
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if magic == MAGIC {
        Ok(file)
    } else {
        Err(ManifestError::Damaged("it does not begin like one of format 1"))
    }
}

fn part_header(file: &mut File) -> Result<(u64, u32), ManifestError> {
    let mut header = [0; 12];
    file.read_exact(&mut header)?;
    let length = u64::from_be_bytes(header[..8].try_into().expect("eight bytes are eight bytes"));
    let sum = u32::from_be_bytes(header[8..].try_into().expect("four bytes are four bytes"));
    if length > file.metadata()?.len() {
        return Err(ManifestError::Damaged("a length in it is longer than the file"));
    }
    Ok((length, sum))
}

fn skip_part(file: &mut File) -> Result<(), ManifestError> {
    let (length, _) = part_header(file)?;
    file.seek(SeekFrom::Current(length as i64))?;
    Ok(())
}

fn read_part<T: DeserializeOwned>(file: &mut File, id: &JournalId) -> Result<T, ManifestError> {
    let (length, sum) = part_header(file)?;
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes)?;
    if files::checksum(id, &bytes) != sum {
        return Err(ManifestError::Damaged("a checksum in it does not hold"));
    }
    rmp_serde::from_slice(&bytes).map_err(|error| ManifestError::Decode(error.to_string()))
}

/// Positions as the live segment has them.
pub(super) fn as_positions(rows: &[(u64, u64)]) -> Vec<Position> {
    rows.iter()
        .map(|(version, sequence)| Position { version: Version(*version), sequence: *sequence })
        .collect()
}

/// Length of the file with a segment's blocks, if it is there.
pub(super) fn log_length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|m| m.len())
}
