//! The live segment: the one sled directory that is being written.
//!
//! ```text
//!  segments/000007/db      sled's log, the blocks in it
//!  segments/000007/conf    sled's own settings
//!  segments/000007/snap.*  sled's shortcut for recovery, which is not used
//! ```
//! Two things about sled 0.34 shape this file.
//!
//! **A flush is not a sync.** `flush()` ends in `sync_file_range(2)`, which writes neither the file's size nor the disk's cache. So each
//! group is followed by `sync_data` on a file handle of our own, opened before the first write so that it sees every write error.
//!
//! **A page is rewritten whole every ten changes, and once more when it splits.** With blocks put at the end one after another, each would
//! be written about three times. So the keys are *reserved* first, as empty values: the tree splits while it is empty, into leaves of nine
//! keys, and a block then fills a reserved key. Nine changes are below the ten after which sled rewrites, so a block is written once. If
//! sled ever behaved otherwise, only the size on disk would tell.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use super::{
    block::{Block, BlockError},
    facts::JournalId,
    files,
    settings::JournalSettings,
};

/// sled's unit of allocation and its io buffer. At the default of 512 KiB, messages of up to 128 KiB leave an eighth unused at the ends;
/// 4 MiB make that 2 %, for 8 MiB of memory. Part of the format: sled refuses to open a directory with another value.
const SLED_SEGMENT_BYTES: usize = 4 << 20;

/// Keys reserved at once: 32 leaves of 9, so the index above them is rewritten in small pieces.
const RESERVE: u32 = 288;

/// Reserved keys that stay unfilled at the end: the last leaf is not split yet and may hold 17.
const RESERVE_MARGIN: u32 = 18;

/// How a live segment failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum LiveError {
    #[error("sled: {0}")]
    Sled(String),
    #[error("{what}: {error}")]
    Io { what: &'static str, error: String },
    #[error("block {number}: {error}")]
    Block { number: u32, error: BlockError },
    #[error("block {0} is not there")]
    Missing(u32),
    #[error("the segment was closed")]
    Closed,
}

impl From<sled::Error> for LiveError {
    fn from(error: sled::Error) -> Self {
        Self::Sled(error.to_string())
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> LiveError {
    move |error| LiveError::Io { what, error: error.to_string() }
}

/// A segment open in sled.
pub(super) struct LiveSegment {
    pub number: u32,
    pub directory: PathBuf,
    /// None once it is closed; readers that find none look the segment up again.
    db: RwLock<Option<sled::Db>>,
    log: File,
    #[cfg(test)]
    pub fail_sync: std::sync::atomic::AtomicBool,
}

impl LiveSegment {
    /// Opens `directory`, making it if it is not there; everything made is durable on return.
    pub(super) fn open(directory: &Path, number: u32, settings: &JournalSettings) -> Result<Self, LiveError> {
        files::create_directory(directory).map_err(failed("make its directory"))?;
        remove_shortcuts(directory).map_err(failed("remove sled's shortcuts for recovery"))?;
        let config = sled::Config::new()
            .path(directory)
            .segment_size(SLED_SEGMENT_BYTES)
            .cache_capacity(settings.cache_bytes)
            .flush_every_ms(Some(settings.flush_every.as_millis() as u64));
        // sled asserts where a damaged file surprises it; on a thread of its own that is an error like any other.
        let db = std::thread::Builder::new()
            .name("sled-open".into())
            .spawn(move || config.open())
            .map_err(failed("start a thread to open it"))?
            .join()
            .map_err(|panic| LiveError::Sled(format!("it gave up: {}", panic_text(&panic))))??;
        let log = match make_durable(&db, directory) {
            Ok(log) => log,
            Err(error) => {
                drop_apart(db, number);
                return Err(error);
            }
        };
        Ok(Self {
            number,
            directory: directory.into(),
            db: RwLock::new(Some(db)),
            log,
            #[cfg(test)]
            fail_sync: Default::default(),
        })
    }

    fn with<T>(&self, f: impl FnOnce(&sled::Db) -> Result<T, LiveError>) -> Result<T, LiveError> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        f(db.as_ref().ok_or(LiveError::Closed)?)
    }

    /// Every block in order, and how many keys are reserved. Fails on the first that is not what it should be.
    pub(super) fn load(
        &self,
        id: &JournalId,
        mut each: impl FnMut(Block<'_>) -> Result<(), BlockError>,
    ) -> Result<u32, LiveError> {
        self.with(|db| {
            let mut keys = 0_u32;
            let mut ended = false;
            for item in db.iter() {
                let (key, value) = item?;
                let number = keys;
                if key.as_ref() != number.to_be_bytes() {
                    return Err(LiveError::Missing(number));
                }
                keys += 1;
                if value.is_empty() {
                    ended = true;
                    continue;
                }
                if ended {
                    return Err(LiveError::Missing(number - 1));
                }
                Block::parse_as(id, self.number, number, &value)
                    .and_then(&mut each)
                    .map_err(|error| LiveError::Block { number, error })?;
            }
            Ok(keys)
        })
    }

    /// Hands a group's blocks, numbered from `first`, to the system. They are durable after a [`sync`](Self::sync) that began later.
    /// `reserved` is the number of keys there are.
    ///
    /// After an error it is unknown what is on disk, so the caller must not write again.
    pub(super) fn write(
        &self,
        first: u32,
        mut blocks: Vec<Vec<u8>>,
        reserved: &mut u32,
    ) -> Result<(), LiveError> {
        self.with(|db| {
            let end = first + blocks.len() as u32;
            while *reserved < end + RESERVE_MARGIN {
                for key in *reserved..*reserved + RESERVE {
                    db.insert(key.to_be_bytes(), sled::IVec::default())?;
                }
                *reserved += RESERVE;
            }
            match blocks.pop() {
                // One value is one log message, whole or not at all by itself. A batch costs a second write, for its end.
                Some(block) if blocks.is_empty() => {
                    db.insert(first.to_be_bytes(), block)?;
                }
                last => {
                    let mut batch = sled::Batch::default();
                    for (number, block) in (first..).zip(blocks.into_iter().chain(last)) {
                        batch.insert(number.to_be_bytes().as_slice(), block);
                    }
                    db.apply_batch(batch)?;
                }
            }
            db.flush()?;
            Ok(())
        })
    }

    /// Makes durable what was written before.
    ///
    /// After an error it must not be tried again: the kernel may have dropped the pages, and would then call the next sync a success.
    pub(super) fn sync(&self) -> Result<(), LiveError> {
        #[cfg(test)]
        if self.fail_sync.load(std::sync::atomic::Ordering::Relaxed) {
            // A device that cannot be synced: the system's own refusal.
            let device = File::open("/dev/null").expect("it is always there");
            return device.sync_data().map_err(failed("sync sled's log"));
        }
        self.log.sync_data().map_err(failed("sync sled's log"))
    }

    /// The bytes of a block, not yet checked.
    pub(super) fn block(&self, number: u32) -> Result<sled::IVec, LiveError> {
        self.with(|db| {
            let value = db.get(number.to_be_bytes())?;
            value.filter(|v| !v.is_empty()).ok_or(LiveError::Missing(number))
        })
    }

    /// Closes sled; from then on the files do not change. Readers wait until `then` is done.
    pub(super) fn close<T>(&self, then: impl FnOnce() -> T) -> T {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = db.take() {
            if let Err(error) = db.flush() {
                tracing::warn!(segment = self.number, %error, "sled did not flush at its close; every acknowledged commit was synced before");
            }
            drop_apart(db, self.number);
        }
        then()
    }
}

/// sled takes the shortcut with the highest name, a half-written one too (`snap.….generating`), and refuses to open if it does not read.
/// The log says all that is in them, so it recovers without.
fn remove_shortcuts(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Drop for LiveSegment {
    /// Where opening fails halfway; else it is closed by then.
    fn drop(&mut self) {
        self.close(|| ());
    }
}

/// Syncs what sled made in `directory`. Gives the log, to sync it through.
fn make_durable(db: &sled::Db, directory: &Path) -> Result<File, LiveError> {
    let log = File::open(directory.join("db")).map_err(failed("open sled's log"))?;
    db.flush()?;
    log.sync_all().map_err(failed("sync sled's log"))?;
    File::open(directory.join("conf"))
        .and_then(|conf| conf.sync_all())
        .map_err(failed("sync sled's settings"))?;
    files::sync_directory(&directory.join("blobs")).map_err(failed("sync its directory"))?;
    files::sync_directory(directory).map_err(failed("sync its directory"))?;
    Ok(log)
}

/// Drops sled on a thread of its own: it unwraps the sync it ends with, which on a broken disk must cost no other thread.
fn drop_apart(db: sled::Db, segment: u32) {
    let dropped = std::thread::Builder::new().name("sled-close".into()).spawn(move || drop(db));
    if let Ok(Err(panic)) = dropped.map(std::thread::JoinHandle::join) {
        let reason = panic_text(&panic);
        tracing::warn!(
            segment,
            reason,
            "sled did not sync at its close; every acknowledged commit was synced before"
        );
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
