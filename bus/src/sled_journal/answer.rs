//! The last third of an append: makes a durable group known and answers who waits for it. A thread of its own: with a thousand to wake it
//! takes as long as a sync, and the disk need not wait for that.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering, mpsc},
};

use tokio::sync::watch;

use super::{
    closed::End,
    mark::Mark,
    shared::{Shared, StopOnPanic},
    sync::{Append, Group, Progress, Step},
};
use crate::{commit::StreamId, journal::AppendError};

pub(super) struct Answerer {
    pub shared: Arc<Shared>,
    pub tail: watch::Sender<u64>,
    pub progress: Arc<Progress>,
}

impl Answerer {
    /// The life of the thread: until the sync thread goes. Gives back the tail, whose end ends the followers.
    pub(super) fn run(self, steps: mpsc::Receiver<Step>) -> watch::Sender<u64> {
        let _guard = StopOnPanic(self.shared.clone());
        for step in steps {
            match step {
                Step::Barrier(answer) => {
                    let _ = answer.send(());
                }
                Step::Group(mut group) => {
                    let number = group.number;
                    match group.failed.take() {
                        Some(reason) => self.fail(group, &reason),
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
