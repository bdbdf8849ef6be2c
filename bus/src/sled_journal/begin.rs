//! Where a segment begins: written before its first commit, so that a segment that was lost, or replaced by an older copy of itself, is
//! noticed by its successor.
//!
//! ```text
//!  segments/000007.begin   8 bytes "rlbegin" and the format version, 1
//!                          4 bytes CRC-32 of the journal id and the rest
//!                          MessagePack: segment, first sequence, end of the segment before
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{closed::End, facts::JournalId, files};

const MAGIC: [u8; 8] = *b"rlbegin\x01";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begin {
    pub segment: u32,
    pub first: u64,
    pub previous: Option<End>,
}

impl Begin {
    pub(super) fn path(segments: &Path, segment: u32) -> PathBuf {
        segments.join(format!("{segment:06}.begin"))
    }

    pub(super) fn write(&self, segments: &Path, id: &JournalId) -> io::Result<()> {
        let body = rmp_serde::to_vec(self).expect("plain fields");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&files::checksum(id, &body).to_be_bytes());
        bytes.extend_from_slice(&body);
        files::write_whole(&Self::path(segments, self.segment), &bytes)
    }

    /// None if it is missing or damaged: then nothing can be compared, which alone is no damage to commits.
    pub(super) fn read(segments: &Path, segment: u32, id: &JournalId) -> Option<Self> {
        let bytes = fs::read(Self::path(segments, segment)).ok()?;
        let body = bytes.get(12..)?;
        let sum = u32::from_be_bytes(bytes[8..12].try_into().ok()?);
        if bytes[..8] != MAGIC || sum != files::checksum(id, body) {
            return None;
        }
        rmp_serde::from_slice(body).ok().filter(|begin: &Self| begin.segment == segment)
    }
}
