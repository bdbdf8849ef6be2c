//! The archive: where commits go before the journal purges them.
//!
//! ```text
//!  DIR/2026-11-22/15-04-05.678-nuve.X-1.commits   what one purge took: commits one after another, as MessagePack maps, streams in turn
//! ```
//! A file is there whole or not at all. Nothing in it is framed, so that any MessagePack library reads it as a stream of maps; the commits
//! name their streams and versions themselves. One that was archived twice is the same twice.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use roomlog_bus::{commit::Commit, time::Timestamp};

/// Why something could not be archived, or an archive not be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} does not read as commits after {good} of them: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Commits that did read.
        good: usize,
        /// What is wrong with the next.
        reason: String,
    },
}

/// Where one node archives.
#[derive(Debug)]
pub struct Archive {
    folder: PathBuf,
    node: String,
    files: AtomicU64,
}

impl Archive {
    /// An archive in `folder`, for `node` to write to; the folder is made with the first file.
    pub fn new(folder: PathBuf, node: impl Into<String>) -> Self {
        Self { folder, node: node.into(), files: AtomicU64::new(0) }
    }

    /// Keeps `commits`, of a purge at `now`: on disk when it returns. Blocks.
    pub fn keep(&self, now: Timestamp, commits: &[Arc<Commit>]) -> Result<(), ArchiveError> {
        if commits.is_empty() {
            return Ok(());
        }
        let stamp = now.to_string();
        let (day, time) = stamp.trim_end_matches('Z').split_once('T').unwrap_or((&stamp, ""));
        let folder = self.folder.join(day);
        let number = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("{}-{}-{number}.commits", time.replace(':', "-"), self.node);
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| ArchiveError::Io { what, path, source }
        };
        fs::create_dir_all(&folder).map_err(io("make the folder", &folder))?;
        let (path, beside) = (folder.join(&name), folder.join(format!("{name}.writing")));
        let bytes: Vec<u8> = commits.iter().flat_map(|commit| commit.encode()).collect();
        fs::write(&beside, bytes).map_err(io("write", &beside))?;
        fs::File::open(&beside).and_then(|file| file.sync_all()).map_err(io("sync", &beside))?;
        fs::rename(&beside, &path).map_err(io("name", &path))?;
        for folder in [&folder, &self.folder] {
            fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder))?;
        }
        Ok(())
    }
}

/// The commits in the archive in `folder`, in the order in which they were archived.
pub fn read(folder: &Path) -> Result<Vec<Commit>, ArchiveError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ArchiveError::Io { what: "read", path, source }
    };
    let sorted = |folder: &Path| -> Result<Vec<PathBuf>, ArchiveError> {
        let entries = fs::read_dir(folder).map_err(io(folder))?;
        let mut paths: Vec<PathBuf> =
            entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(io(folder))?;
        paths.sort();
        Ok(paths)
    };
    let mut commits = Vec::new();
    for day in sorted(folder)?.into_iter().filter(|path| path.is_dir()) {
        for path in sorted(&day)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "commits")) {
            let bytes = fs::read(&path).map_err(io(&path))?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let commit = rmp_serde::from_read(&mut rest).map_err(|error| ArchiveError::Damaged {
                    path: path.clone(),
                    good: commits.len(),
                    reason: error.to_string(),
                })?;
                commits.push(commit);
            }
        }
    }
    Ok(commits)
}
