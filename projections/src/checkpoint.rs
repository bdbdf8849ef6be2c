//! A directory kept on disk with its cursor, so that a start replays only what came after.
//!
//! ```text
//!  "RLCHECK1"  8 bytes
//!  fold        u32 BE   [`FOLD`] of the build that wrote it
//!  crc         u32 BE   CRC-32 of what follows
//!  directory   MessagePack, with its cursor and the last commit it holds
//! ```
//! It is a copy of what the log says and nothing else: whatever is wrong with it (missing, damaged, of another build, of another log) means
//! that the log is folded from its beginning.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use roomlog_bus::journal::{Journal, ReadError};

use crate::directory::Directory;

/// Number of what the folds make of a log: goes up whenever any of them changes, so that no build goes on from another's state.
pub const FOLD: u32 = 2;

const MAGIC: &[u8; 8] = b"RLCHECK1";
const HEADER: usize = 16;

/// Why a checkpoint is not used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is damaged, or something else.
    #[error("{} is no checkpoint: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another build wrote it.
    #[error("{} was written by fold {found}, this is {FOLD}", path.display())]
    Fold {
        /// The file.
        path: PathBuf,
        /// Its number.
        found: u32,
    },
    /// The log does not hold what the checkpoint is of.
    #[error("{} is of another log, or of a log that has lost its end", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] ReadError),
}

/// The bytes of a checkpoint of `directory`.
pub fn encode(directory: &Directory) -> Vec<u8> {
    let body = roomlog_bus::commit::Payload::encode(directory).0;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FOLD.to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Puts `bytes` in the place of the checkpoint at `path`: whole or not at all. Blocks.
pub fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = path.with_extension("new");
    fs::write(&next, bytes)?;
    fs::File::open(&next)?.sync_all()?;
    fs::rename(&next, path)
}

/// The directory kept at `path`, if it is one of `journal`; none when there is no file.
pub async fn load(path: &Path, journal: &dyn Journal) -> Result<Option<Directory>, CheckpointError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CheckpointError::Io { path: path.into(), source }),
    };
    let directory = decode(path, &bytes)?;
    // The last commit it holds must be where it was: that is what tells this log from a copy that took another way.
    if let Some(last) = &directory.last {
        let found = journal.read(&last.stream, last.version, 1).await?;
        if found.first().is_none_or(|commit| commit.id != last.id) {
            return Err(CheckpointError::Foreign { path: path.into() });
        }
    }
    Ok(Some(directory))
}

/// What `bytes`, read from `path`, hold.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<Directory, CheckpointError> {
    let damaged = |reason: &str| CheckpointError::Damaged { path: path.into(), reason: reason.into() };
    let (header, body) = bytes.split_at_checked(HEADER).ok_or_else(|| damaged("it is too short"))?;
    if &header[..8] != MAGIC {
        return Err(damaged("it begins with something else"));
    }
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if number(12) != crc32fast::hash(body) {
        return Err(damaged("its checksum is wrong"));
    }
    if number(8) != FOLD {
        return Err(CheckpointError::Fold { path: path.into(), found: number(8) });
    }
    let payload = roomlog_bus::commit::Payload(body.to_vec().into());
    payload.decode().map_err(|error| damaged(&error.to_string()))
}
