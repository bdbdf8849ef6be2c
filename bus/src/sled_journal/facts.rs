//! The facts of a journal folder, written once when it is made: `facts.json`. And its lock: `lock`, held by the one writing process.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

use rand::{TryRngCore, rngs::OsRng};
use serde::{Deserialize, Serialize};

use super::{files, report::OpenError};

/// Format of the folder. Goes up when an older Roomlog could not read what a newer one writes.
const FORMAT: u32 = 1;

/// Which journal this is: 16 random bytes. Also seeds every checksum, so nothing from another folder passes for this one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JournalId(pub [u8; 16]);

/// What never changes in the life of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub id: JournalId,
    pub partitions: u16,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    format: u32,
    journal: uuid::Uuid,
    partitions: u16,
    /// Of the other three. Every checksum in the folder begins with the journal's id: with a wrong one, nothing would be believed.
    checksum: u32,
}

impl OnDisk {
    fn sum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.format.to_be_bytes());
        hasher.update(self.journal.as_bytes());
        hasher.update(&self.partitions.to_be_bytes());
        hasher.finalize()
    }
}

fn path(directory: &Path) -> PathBuf {
    directory.join("facts.json")
}

impl Facts {
    /// Reads the facts of `directory`; none if it has none.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, OpenError> {
        let path = path(directory);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io("read the journal's facts from", &path, error)),
        };
        let facts: OnDisk = serde_json::from_slice(&bytes)
            .map_err(|error| OpenError::Facts { path: path.clone(), reason: error.to_string() })?;
        if facts.format != FORMAT {
            return Err(OpenError::Format { path, found: facts.format, known: FORMAT });
        }
        if facts.checksum != facts.sum() {
            let reason = format!("its checksum is {}, {} was written", facts.sum(), facts.checksum);
            return Err(OpenError::Facts { path, reason });
        }
        if facts.partitions == 0 {
            return Err(OpenError::Facts { path, reason: "a journal has at least 1 partition".into() });
        }
        Ok(Some(Self { id: JournalId(*facts.journal.as_bytes()), partitions: facts.partitions }))
    }

    /// Writes the facts of a new journal.
    pub(super) fn create(directory: &Path, partitions: u16) -> Result<Self, OpenError> {
        let path = path(directory);
        let mut random = [0; 16];
        // The one place that needs randomness nobody can guess or replay, see block.rs; so it is the system's.
        OsRng
            .try_fill_bytes(&mut random)
            .map_err(|error| OpenError::Facts { path: path.clone(), reason: error.to_string() })?;
        let journal = uuid::Builder::from_random_bytes(random).into_uuid();
        let mut facts = OnDisk { format: FORMAT, journal, partitions: partitions.max(1), checksum: 0 };
        facts.checksum = facts.sum();
        let text = serde_json::to_vec_pretty(&facts).expect("four plain fields");
        files::write_whole(&path, &text)
            .map_err(|error| OpenError::io("write the journal's facts to", &path, error))?;
        Ok(Self { id: JournalId(*journal.as_bytes()), partitions: facts.partitions })
    }
}

/// Takes the folder for this process; the lock goes with the returned file.
pub(super) fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| OpenError::io("open the lock", &path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { directory: directory.into() }),
        Err(TryLockError::Error(error)) => Err(OpenError::io("lock", &path, error)),
    }
}
