//! Files whose content survives a power cut: written beside, synced, renamed into place, the directory synced.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use super::facts::JournalId;

/// CRC-32 (IEEE 802.3) of the journal id, then `bytes`: what belongs to another folder does not pass for this one's.
pub(super) fn checksum(id: &JournalId, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.0);
    hasher.update(bytes);
    hasher.finalize()
}

/// Writes `bytes` as the file `path`, whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".writing");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)?;
    sync_parent(path)
}

/// Makes what was created, renamed or removed in `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// [`sync_directory`] of the directory that holds `path`.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

/// Creates `directory` and what is missing above it, each durably.
pub(super) fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_directory(parent)?;
    }
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_parent(directory)
}
