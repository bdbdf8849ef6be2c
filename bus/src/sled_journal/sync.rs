//! The second third of an append: makes a written group durable. A thread of its own, so that the next group is checked and written, and
//! the one before is answered, meanwhile.
//!
//! **After a failed write or sync** the group and what was written behind it are answered `Unknown`, for they may be on disk or not, and
//! the journal takes nothing more until it is opened again: the kernel may have dropped the unwritten pages and would call the next sync a
//! success.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use tokio::sync::oneshot;

use super::{
    live::LiveSegment,
    shared::{Shared, StopOnPanic},
};
use crate::{commit::Commit, journal::AppendError};

/// A commit that waits.
pub(super) struct Append {
    pub commit: Arc<Commit>,
    pub bytes: Vec<u8>,
    pub answer: oneshot::Sender<Result<(), AppendError>>,
}

/// A group that was written.
pub(super) struct Group {
    /// Counts groups, from 1.
    pub number: u64,
    pub segment: Arc<LiveSegment>,
    pub mark: Arc<File>,
    /// Sequence of its first commit.
    pub first: u64,
    /// First sequence of each of its blocks.
    pub blocks: Vec<u64>,
    /// Blocks in the segment with these.
    pub blocks_then: u32,
    pub fits: Vec<Append>,
    pub refused: Vec<(Append, AppendError)>,
    /// How writing or syncing it failed.
    pub failed: Option<String>,
}

pub(super) enum Step {
    Group(Group),
    /// Answered when all before it is done.
    Barrier(mpsc::Sender<()>),
}

/// How far the syncing is, for the writer.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The last group that is in the index.
    pub groups: AtomicU64,
    /// Blocks of the live segment that are on disk.
    pub blocks: AtomicU64,
}

pub(super) struct Syncer {
    pub shared: Arc<Shared>,
    pub progress: Arc<Progress>,
    /// To be answered.
    pub synced: mpsc::SyncSender<Step>,
}

impl Syncer {
    /// The life of the thread: until the writer goes.
    pub(super) fn run(self, steps: mpsc::Receiver<Step>) {
        let _guard = StopOnPanic(self.shared);
        let mut failed: Option<String> = None;
        for mut step in steps {
            if let Step::Group(group) = &mut step {
                group.failed = failed.clone().or_else(|| group.failed.take()).or_else(|| sync(group));
                failed.clone_from(&group.failed);
                if failed.is_none() {
                    self.progress.blocks.store(u64::from(group.blocks_then), Ordering::Release);
                }
            }
            // If nobody answers any more, that thread's guard has stopped the journal.
            if self.synced.send(step).is_err() {
                return;
            }
        }
    }
}

/// How syncing a group fails, if it does.
fn sync(group: &Group) -> Option<String> {
    if group.fits.is_empty() {
        return None;
    }
    group.segment.sync().err().map(|error| format!("segment {:06}: {error}", group.segment.number))
}
