//! How far the live segment goes, kept outside sled: `segments/000007.mark`, written over after each group.
//!
//! ```text
//!  0   4  CRC-32 of the journal id and the rest
//!  4   4  segment
//!  8   4  blocks in it
//! 12   8  sequence of the last commit
//! 20  16  its id
//! ```
//! It is written after the group's sync and not synced itself, so it costs a system call and can only say too little, never too much. A
//! killed process leaves it exact. It is what shows that a file lost its end, or was replaced by an older copy: sled would take either for
//! a shorter log.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{closed::End, facts::JournalId, files};
use crate::commit::CommitId;

const BYTES: usize = 36;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub segment: u32,
    pub blocks: u32,
    pub last: End,
}

pub(super) fn path(segments: &Path, segment: u32) -> PathBuf {
    segments.join(format!("{segment:06}.mark"))
}

/// The file, to be written over.
pub(super) fn create(segments: &Path, segment: u32) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path(segments, segment))
}

impl Mark {
    pub(super) fn write(&self, file: &File, id: &JournalId) -> io::Result<()> {
        let mut bytes = [0; BYTES];
        bytes[4..8].copy_from_slice(&self.segment.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.blocks.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.last.sequence.to_be_bytes());
        bytes[20..36].copy_from_slice(self.last.id.as_bytes());
        let sum = files::checksum(id, &bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_be_bytes());
        file.write_all_at(&bytes, 0)
    }

    /// None if there is none or it is damaged: then it says nothing.
    pub(super) fn read(segments: &Path, segment: u32, id: &JournalId) -> Option<Self> {
        let mut bytes = [0; BYTES];
        File::open(path(segments, segment)).ok()?.read_exact_at(&mut bytes, 0).ok()?;
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mark = Self {
            segment: number(4),
            blocks: number(8),
            last: End {
                sequence: u64::from_be_bytes(bytes[12..20].try_into().ok()?),
                id: CommitId::from_bytes(bytes[20..36].try_into().ok()?),
            },
        };
        (number(0) == files::checksum(id, &bytes[4..]) && mark.segment == segment).then_some(mark)
    }
}
