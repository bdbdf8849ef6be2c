//! The block: one sled value, holding the commits of one group, or a part of a large group.
//!
//! ```text
//!  offset  bytes
//!       0      8  "rlblock" and the format version, 1
//!       8      4  CRC-32 (IEEE 802.3) of the journal id (16 bytes) followed by this block from offset 12 to its end
//!      12      4  length of the block, this header included
//!      16      4  number of the segment
//!      20      4  number of the block in its segment, from 0: also its key, so a block found elsewhere is noticed
//!      24      8  sequence of its first commit in the journal
//!      32      2  commits in it, at least 1
//!      34      1  which part of its group this is, from 0
//!      35      1  parts in its group
//!      36      4  generation: goes up each time the journal is opened for writing
//!      40      4  blocks of its segment, 0 to n - 1, that were known to be on disk when it was written
//!      44         for each commit: 4 bytes length, then the commit as MessagePack
//! ```
//! All integers are big-endian.
//!
//! What was on disk when a block was written is how a reader tells a tail torn by a crash (unacknowledged, dropped) from damage in what
//! was acknowledged (reported).
//!
//! The checksum starts with the journal id, a random secret of the folder: an event whose payload imitates a block does not become one
//! when a damaged file is searched for what is left.

use std::sync::Arc;

use super::facts::JournalId;
use crate::commit::Commit;

/// First bytes of each block; the last one is the format version.
pub(super) const MAGIC: [u8; 8] = *b"rlblock\x01";

/// Bytes before the first commit.
pub(super) const HEADER_BYTES: usize = 44;

/// Bytes before each commit: its length.
const FRAME_BYTES: usize = 4;

/// The largest block. Room for one commit of [`MAX_COMMIT_BYTES`](crate::commit::MAX_COMMIT_BYTES) and the framing, and below the
/// 128 KiB that a sled value should not reach.
pub(super) const MAX_BLOCK_BYTES: usize = 124 * 1024;

/// Commits in a block, at most: what its two bytes hold.
const MAX_BLOCK_COMMITS: usize = u16::MAX as usize;

/// Parts of a group, at most: what its one byte holds.
pub(super) const MAX_PARTS: usize = u8::MAX as usize;

/// Why bytes are not the block they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BlockError {
    #[error("{0} bytes are fewer than a header has")]
    Short(usize),
    #[error("it does not begin like a block of format 1")]
    Magic,
    #[error("its length says {said} bytes, {found} are there")]
    Length { said: usize, found: usize },
    #[error("its checksum is {found:08x}, {said:08x} was written")]
    Checksum { said: u32, found: u32 },
    #[error("it says it is block {number} of segment {segment}")]
    Elsewhere { segment: u32, number: u32 },
    #[error("commit {0} of it runs past its end")]
    Frame(usize),
    #[error("commit {index} of it is not a commit: {reason}")]
    Commit { index: usize, reason: String },
}

/// What a block says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub checksum: u32,
    pub bytes: u32,
    pub segment: u32,
    pub number: u32,
    pub first: u64,
    pub commits: u16,
    pub part: u8,
    pub parts: u8,
    pub generation: u32,
    pub durable: u32,
}

impl Header {
    /// Reads a header without checking the checksum; none where there cannot be one.
    pub(super) fn peek(bytes: &[u8]) -> Result<Self, BlockError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BlockError::Short(bytes.len()));
        }
        if bytes[..8] != MAGIC {
            return Err(BlockError::Magic);
        }
        let header = Self {
            checksum: u32_at(bytes, 8),
            bytes: u32_at(bytes, 12),
            segment: u32_at(bytes, 16),
            number: u32_at(bytes, 20),
            first: u64_at(bytes, 24),
            commits: u16::from_be_bytes([bytes[32], bytes[33]]),
            part: bytes[34],
            parts: bytes[35],
            generation: u32_at(bytes, 36),
            durable: u32_at(bytes, 40),
        };
        let said = header.bytes as usize;
        if !(HEADER_BYTES..=MAX_BLOCK_BYTES).contains(&said) {
            return Err(BlockError::Length { said, found: bytes.len() });
        }
        Ok(header)
    }

    /// Sequence of its last commit.
    pub(super) fn last(&self) -> u64 {
        self.first + u64::from(self.commits).saturating_sub(1)
    }
}

/// A block whose checksum holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    pub header: Header,
    bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Checks `bytes`, which must be exactly one block.
    pub(super) fn parse(id: &JournalId, bytes: &'a [u8]) -> Result<Self, BlockError> {
        let header = Header::peek(bytes)?;
        if header.bytes as usize != bytes.len() {
            return Err(BlockError::Length { said: header.bytes as usize, found: bytes.len() });
        }
        let found = checksum(id, bytes);
        if found != header.checksum {
            return Err(BlockError::Checksum { said: header.checksum, found });
        }
        Ok(Self { header, bytes })
    }

    /// As [`Self::parse`], and it must be this very block.
    pub(super) fn parse_as(
        id: &JournalId,
        segment: u32,
        number: u32,
        bytes: &'a [u8],
    ) -> Result<Self, BlockError> {
        let block = Self::parse(id, bytes)?;
        let Header { segment: s, number: n, .. } = block.header;
        if (s, n) == (segment, number) {
            Ok(block)
        } else {
            Err(BlockError::Elsewhere { segment: s, number: n })
        }
    }

    /// The encoded commits, each with its sequence.
    pub(super) fn encoded(&self) -> impl Iterator<Item = Result<(u64, &'a [u8]), BlockError>> + use<'a> {
        let (bytes, header) = (self.bytes, self.header);
        let mut at = HEADER_BYTES;
        (0..usize::from(header.commits)).map(move |index| {
            let start = at + FRAME_BYTES;
            let length = bytes.get(at..start).ok_or(BlockError::Frame(index))?;
            at = start + u32_at(length, 0) as usize;
            let commit = bytes.get(start..at).ok_or(BlockError::Frame(index))?;
            Ok((header.first + index as u64, commit))
        })
    }

    /// The commits, each with its sequence.
    pub(super) fn commits(&self) -> impl Iterator<Item = Result<(u64, Arc<Commit>), BlockError>> + use<'a> {
        self.encoded().enumerate().map(|(index, item)| {
            let (sequence, bytes) = item?;
            let commit = Commit::decode(bytes)
                .map_err(|error| BlockError::Commit { index, reason: error.to_string() })?;
            Ok((sequence, Arc::new(commit)))
        })
    }
}

/// Where a group goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub segment: u32,
    /// Number of its first block.
    pub number: u32,
    /// Sequence of its first commit.
    pub first: u64,
    pub generation: u32,
    pub durable: u32,
}

/// Packs one group of encoded commits into blocks. Not inlined, so that its instructions can be counted.
#[inline(never)]
pub(super) fn pack<'a>(
    id: &JournalId,
    place: Place,
    commits: impl Iterator<Item = &'a [u8]> + Clone,
) -> Vec<Vec<u8>> {
    let mut left: usize = commits.clone().map(|commit| FRAME_BYTES + commit.len()).sum();
    let mut blocks: Vec<(Vec<u8>, usize)> = Vec::new();
    for commit in commits {
        let full = blocks.last().is_none_or(|(block, count)| {
            block.len() + FRAME_BYTES + commit.len() > MAX_BLOCK_BYTES || *count == MAX_BLOCK_COMMITS
        });
        if full {
            let mut block = Vec::with_capacity((HEADER_BYTES + left).min(MAX_BLOCK_BYTES));
            block.resize(HEADER_BYTES, 0);
            blocks.push((block, 0));
        }
        let (block, count) = blocks.last_mut().expect("one was pushed if there was none");
        block.extend_from_slice(&(commit.len() as u32).to_be_bytes());
        block.extend_from_slice(commit);
        *count += 1;
        left -= FRAME_BYTES + commit.len();
    }
    debug_assert!(blocks.len() <= MAX_PARTS, "the writer closes a group before it has this many blocks");
    let parts = blocks.len();
    let mut first = place.first;
    blocks
        .into_iter()
        .enumerate()
        .map(|(part, (mut block, count))| {
            let length = block.len() as u32;
            block[..8].copy_from_slice(&MAGIC);
            block[12..16].copy_from_slice(&length.to_be_bytes());
            block[16..20].copy_from_slice(&place.segment.to_be_bytes());
            block[20..24].copy_from_slice(&(place.number + part as u32).to_be_bytes());
            block[24..32].copy_from_slice(&first.to_be_bytes());
            block[32..34].copy_from_slice(&(count as u16).to_be_bytes());
            block[34] = part as u8;
            block[35] = parts as u8;
            block[36..40].copy_from_slice(&place.generation.to_be_bytes());
            block[40..44].copy_from_slice(&place.durable.to_be_bytes());
            let sum = checksum(id, &block);
            block[8..12].copy_from_slice(&sum.to_be_bytes());
            first += count as u64;
            block
        })
        .collect()
}

fn checksum(id: &JournalId, block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.0);
    hasher.update(&block[12..]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes are four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: JournalId = JournalId([7; 16]);

    fn place(segment: u32, number: u32, first: u64) -> Place {
        Place { segment, number, first, generation: 1, durable: number }
    }

    #[test]
    fn a_group_comes_back_in_order_over_several_blocks() {
        let commits: Vec<Vec<u8>> = (0..300u32).map(|i| vec![i as u8; 1_000 + i as usize]).collect();
        let blocks = pack(&ID, place(3, 10, 100), commits.iter().map(Vec::as_slice));
        assert!(blocks.len() > 2 && blocks.iter().all(|b| b.len() <= MAX_BLOCK_BYTES));
        let mut seen = Vec::new();
        for (i, bytes) in blocks.iter().enumerate() {
            let block = Block::parse_as(&ID, 3, 10 + i as u32, bytes).unwrap();
            assert_eq!((usize::from(block.header.part), usize::from(block.header.parts)), (i, blocks.len()));
            for item in block.encoded() {
                let (sequence, commit) = item.unwrap();
                assert_eq!(sequence, 100 + seen.len() as u64);
                seen.push(commit.to_vec());
            }
        }
        assert_eq!(seen, commits);
    }

    #[test]
    fn no_flipped_bit_passes() {
        let block = pack(&ID, place(1, 0, 1), [b"commit".as_slice()].into_iter()).remove(0);
        assert!(Block::parse(&ID, &block).is_ok());
        for bit in 0..block.len() * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Block::parse(&ID, &bad).is_err(), "bit {bit}");
        }
        assert!(Block::parse(&JournalId([8; 16]), &block).is_err(), "a block of another journal");
        assert!(Block::parse_as(&ID, 1, 1, &block).is_err(), "a block under another key");
    }
}
