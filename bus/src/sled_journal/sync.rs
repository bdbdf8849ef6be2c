//! The second half of an append: makes a written group durable, known, and answered. A thread of its own, so that the next group is
//! checked and written meanwhile.
//!
//! **After a failed write or sync** the group and what was written behind it are answered `Unknown`, for they may be on disk or not, and
//! the journal takes nothing more until it is opened again: the kernel may have dropped the unwritten pages and would call the next sync a
//! success.

use std::{
    collections::HashSet,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use tokio::sync::{oneshot, watch};

use super::{
    closed::End,
    live::LiveSegment,
    mark::Mark,
    shared::{Shared, StopOnPanic},
};
use crate::{
    commit::{Commit, StreamId},
    journal::AppendError,
};

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
    /// How writing it failed.
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
    pub tail: watch::Sender<u64>,
    pub progress: Arc<Progress>,
}

impl Syncer {
    /// The life of the thread: until the writer goes. Gives back the tail, whose end ends the followers.
    pub(super) fn run(self, steps: mpsc::Receiver<Step>) -> watch::Sender<u64> {
        let _guard = StopOnPanic(self.shared.clone());
        let mut failed: Option<String> = None;
        for step in steps {
            match step {
                Step::Barrier(answer) => {
                    let _ = answer.send(());
                }
                Step::Group(mut group) => {
                    let number = group.number;
                    let wrong = failed.clone().or_else(|| group.failed.take()).or_else(|| {
                        if group.fits.is_empty() {
                            return None;
                        }
                        let synced = group.segment.sync();
                        synced.err().map(|error| format!("segment {:06}: {error}", group.segment.number))
                    });
                    match wrong {
                        Some(reason) => {
                            self.fail(group, &reason);
                            failed = Some(reason);
                        }
                        None => self.finish(group),
                    }
                    self.progress.groups.store(number, Ordering::Release);
                }
            }
        }
        self.tail
    }

    fn finish(&self, group: Group) {
        let Group { segment, mark, first, blocks, blocks_then, fits, refused, .. } = group;
        let mut dropped = Vec::new();
        if let Some(last) = fits.last() {
            let last = End { sequence: first + fits.len() as u64 - 1, id: last.commit.id };
            let written = Mark { segment: segment.number, blocks: blocks_then, last };
            if let Err(error) = written.write(&mark, &self.shared.facts.id) {
                tracing::warn!(%error, "the mark of the live segment could not be written");
            }
            self.progress.blocks.store(u64::from(blocks_then), Ordering::Release);
            let mut index = self.shared.index_mut();
            index.live.entry(segment.number).or_default().blocks.extend(blocks);
            for (sequence, append) in (first..).zip(&fits) {
                index.add(segment.number, sequence, append.commit.clone(), append.bytes.len());
            }
            dropped = index.recent.trim();
            // Under the lock: nobody may see a tail that a follow does not know yet.
            self.tail.send_replace(last.sequence);
        }
        for append in fits {
            let _ = append.answer.send(Ok(()));
        }
        // Only now: a refusal may rest on a commit of this very group.
        for (append, error) in refused {
            let _ = append.answer.send(Err(error));
        }
        drop(dropped);
    }

    fn fail(&self, group: Group, reason: &str) {
        tracing::error!(directory = %self.shared.directory.display(), reason, "the journal takes no more appends: a write failed");
        let streams: HashSet<StreamId> = group.fits.iter().map(|a| a.commit.stream.clone()).collect();
        {
            let mut index = self.shared.index_mut();
            index.stopped.get_or_insert_with(|| format!("{reason}; restart to open it again"));
            index.doubtful.extend(streams);
        }
        let unknown = |append: &Append| AppendError::Unknown { stream: append.commit.stream.clone() };
        for append in group.fits {
            let error = unknown(&append);
            let _ = append.answer.send(Err(error));
        }
        for (append, error) in group.refused {
            // A conflict with what is itself in doubt is in doubt.
            let doubtful = self.shared.index().doubtful.contains(&append.commit.stream);
            let error = if doubtful { unknown(&append) } else { error };
            let _ = append.answer.send(Err(error));
        }
    }
}
