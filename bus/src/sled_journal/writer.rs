//! The writer: one thread that makes groups of what waits, stores each with one sync, then answers.
//!
//! ```text
//!  append ─┐             ┌ group 1 ┐┌ group 2 ───┐
//!  append ─┼─ queue ─ … ─┤ check   ││            │
//!  append ─┘             │ pack    │└ gathers while group 1 is synced
//!                        │ sled, flush, fdatasync
//!                        │ index, followers
//!                        └ answers ┘
//! ```
//! No timer: a lone append is stored at once, and under load a group is whatever came during the last sync.
//!
//! **After a failed write or sync** the group is answered `Unknown`, for it may be on disk or not, and the journal takes nothing more
//! until it is opened again: the kernel may have dropped the unwritten pages and would call the next sync a success.

use std::{
    collections::{HashMap, hash_map},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    begin::Begin,
    block::{self, MAX_PARTS},
    closed::{self, ClosedSegment, End, Summary},
    index::Segment,
    live::LiveSegment,
    mark::{self, Mark},
    scan,
    shared::Shared,
};
use crate::{
    commit::{Commit, Head, StreamId},
    journal::AppendError,
};

/// What the writer is asked.
pub(super) enum Request {
    Append(Append),
    Close(oneshot::Sender<()>),
}

/// A commit that waits.
pub(super) struct Append {
    pub commit: Arc<Commit>,
    pub bytes: Vec<u8>,
    pub answer: oneshot::Sender<Result<(), AppendError>>,
}

/// Owned by the writer thread.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub tail: watch::Sender<u64>,
    pub segment: Arc<LiveSegment>,
    /// The mark of that segment.
    pub mark: File,
    /// End of the segment before this one.
    pub previous: Option<End>,
    pub last: Option<End>,
    pub next_block: u32,
    pub reserved: u32,
    pub next_sequence: u64,
    /// Bytes of blocks in the segment.
    pub bytes: u64,
    pub generation: u32,
    pub closing: Option<JoinHandle<()>>,
    /// Released when all is closed.
    pub lock: File,
}

/// Says that the journal stopped if the writer thread ends by a panic.
struct StopOnPanic(Arc<Shared>);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.index_mut().stopped = Some("its writer failed; restart to open it again".into());
        }
    }
}

impl Writer {
    /// The life of the thread: until it is told to close, or nobody can append any more.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let _guard = StopOnPanic(self.shared.clone());
        let mut told = None;
        while told.is_none() {
            let mut group = Vec::new();
            let mut bytes = 0;
            let mut next = requests.blocking_recv();
            if next.is_none() {
                break;
            }
            let settings = &self.shared.settings;
            let max_bytes = settings.group_bytes.min(MAX_PARTS / 2 * block::MAX_BLOCK_BYTES);
            let max_commits = settings.group_commits.max(1);
            while let Some(request) = next {
                match request {
                    Request::Close(answer) => {
                        told = Some(answer);
                        break;
                    }
                    Request::Append(append) => {
                        bytes += append.bytes.len();
                        group.push(append);
                    }
                }
                if group.len() >= max_commits || bytes >= max_bytes {
                    break;
                }
                next = requests.try_recv().ok();
            }
            self.store(group);
        }
        requests.close();
        while let Ok(request) = requests.try_recv() {
            match request {
                Request::Append(append) => {
                    let _ = append.answer.send(Err(unavailable("it is closed")));
                }
                Request::Close(answer) => {
                    let _ = answer.send(());
                }
            }
        }
        if let Some(closing) = self.closing.take() {
            let _ = closing.join();
        }
        self.segment.close(|| ());
        self.shared.index_mut().stopped.get_or_insert_with(|| "it is closed".into());
        drop(self.lock);
        drop(self.tail);
        if let Some(answer) = told {
            let _ = answer.send(());
        }
    }

    /// Stores what of `group` fits its streams, answers all.
    fn store(&mut self, group: Vec<Append>) {
        if group.is_empty() {
            return;
        }
        let mut heads: HashMap<StreamId, Head> = HashMap::new();
        let mut fits = Vec::with_capacity(group.len());
        let mut refused = Vec::new();
        {
            let index = self.shared.index();
            for append in group {
                let stream = &append.commit.stream;
                if let Some(reason) = index.stopped.as_ref().or_else(|| index.broken.get(stream)) {
                    refused.push((append, unavailable(reason)));
                    continue;
                }
                let known = heads.get(stream).or_else(|| index.streams.get(stream).map(|s| &s.head));
                if append.commit.follows(known) {
                    match heads.entry(stream.clone()) {
                        hash_map::Entry::Occupied(mut head) => *head.get_mut() = append.commit.head(),
                        hash_map::Entry::Vacant(none) => {
                            none.insert(append.commit.head());
                        }
                    }
                    fits.push(append);
                } else {
                    let conflict = AppendError::Conflict {
                        stream: stream.clone(),
                        version: append.commit.version,
                        head: known.copied(),
                    };
                    refused.push((append, conflict));
                }
            }
        }
        let stored = if fits.is_empty() { Ok(()) } else { self.write(&fits) };
        if let Err(reason) = stored {
            tracing::error!(directory = %self.shared.directory.display(), reason, "the journal takes no more appends: a write failed");
            let mut index = self.shared.index_mut();
            index.stopped = Some(format!("{reason}; restart to open it again"));
            index.doubtful.extend(fits.iter().map(|append| append.commit.stream.clone()));
            drop(index);
            for append in fits {
                let stream = append.commit.stream.clone();
                let _ = append.answer.send(Err(AppendError::Unknown { stream }));
            }
            for (append, error) in refused {
                // A conflict with what is itself in doubt is in doubt.
                let stream = append.commit.stream.clone();
                let doubtful = heads.contains_key(&stream);
                let _ =
                    append.answer.send(Err(if doubtful { AppendError::Unknown { stream } } else { error }));
            }
            return;
        }
        for append in fits {
            let _ = append.answer.send(Ok(()));
        }
        // Only now: a refusal may rest on a commit of this very group.
        for (append, error) in refused {
            let _ = append.answer.send(Err(error));
        }
    }

    /// Makes a group durable and known.
    fn write(&mut self, fits: &[Append]) -> Result<(), String> {
        let settings = &self.shared.settings;
        if self.bytes >= settings.segment_bytes || self.next_block >= settings.segment_blocks {
            self.roll();
        }
        let blocks = block::pack(
            &self.shared.facts.id,
            block::Place {
                segment: self.segment.number,
                number: self.next_block,
                first: self.next_sequence,
                generation: self.generation,
                durable: self.next_block,
            },
            fits.iter().map(|append| append.bytes.as_slice()),
        );
        let firsts: Vec<u64> = blocks
            .iter()
            .map(|block| block::Header::peek(block).map(|header| header.first))
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let bytes: usize = blocks.iter().map(Vec::len).sum();
        self.segment
            .append(self.next_block, blocks, &mut self.reserved)
            .map_err(|error| format!("segment {:06}: {error}", self.segment.number))?;
        self.next_block += firsts.len() as u32;
        self.bytes += bytes as u64;
        let mut index = self.shared.index_mut();
        index.live.entry(self.segment.number).or_default().blocks.extend(firsts);
        for append in fits {
            self.last = Some(End { sequence: self.next_sequence, id: append.commit.id });
            index.add(self.segment.number, self.next_sequence, append.commit.clone(), append.bytes.len());
            self.next_sequence += 1;
        }
        if let Some(last) = self.last {
            let mark = Mark { segment: self.segment.number, blocks: self.next_block, last };
            if let Err(error) = mark.write(&self.mark, &self.shared.facts.id) {
                tracing::warn!(%error, "the mark of the live segment could not be written");
            }
        }
        // Under the lock: nobody may see a tail that a follow does not know yet.
        self.tail.send_replace(self.next_sequence - 1);
        drop(index);
        Ok(())
    }

    /// Goes on in a new segment; the old one is closed beside. If no new one can be made, the old one grows on.
    fn roll(&mut self) {
        if let Some(closing) = self.closing.take() {
            let _ = closing.join(); // one at a time: a disk that cannot keep up slows appends, not memory
        }
        let segments = self.shared.directory.join(super::SEGMENTS);
        let number = self.segment.number + 1;
        let (new, mark) = match self.begin(&segments, number) {
            Ok((new, mark)) => (Arc::new(new), mark),
            Err(reason) => {
                tracing::warn!(
                    segment = number,
                    reason,
                    "no new segment could be made; the old one grows on"
                );
                self.bytes = 0;
                return;
            }
        };
        let mut index = self.shared.index_mut();
        index.segments.insert(number, Segment::Live(new.clone()));
        index.starts.insert(self.next_sequence, number);
        index.live.insert(number, Default::default());
        drop(index);
        let old = std::mem::replace(&mut self.segment, new);
        self.mark = mark;
        let task = CloseSegment {
            shared: self.shared.clone(),
            segments,
            segment: old,
            previous: self.previous,
            generation: self.generation,
        };
        self.previous = self.last;
        (self.next_block, self.reserved, self.bytes) = (0, 0, 0);
        match std::thread::Builder::new().name("journal-close".into()).spawn(move || task.run()) {
            Ok(handle) => self.closing = Some(handle),
            Err(error) => {
                tracing::warn!(%error, "no thread to close a segment; it is closed at the next start")
            }
        }
    }
}

impl Writer {
    /// Makes segment `number`. The directory first: a beginning without one is a segment that was lost.
    fn begin(&self, segments: &Path, number: u32) -> Result<(LiveSegment, File), String> {
        let path = closed::directory_path(segments, number);
        let segment = LiveSegment::open(&path, number, &self.shared.settings).map_err(|e| e.to_string())?;
        let begin = Begin { segment: number, first: self.next_sequence, previous: self.last };
        let mark = mark::create(segments, number)
            .and_then(|mark| begin.write(segments, &self.shared.facts.id).map(|()| mark))
            .map_err(|error| error.to_string())?;
        Ok((segment, mark))
    }
}

/// Closes a segment that is full: sled is shut, a manifest written, and from then on its file is read directly.
struct CloseSegment {
    shared: Arc<Shared>,
    segments: PathBuf,
    segment: Arc<LiveSegment>,
    previous: Option<End>,
    generation: u32,
}

impl CloseSegment {
    fn run(self) {
        let number = self.segment.number;
        self.segment.close(|| match self.describe() {
            Ok(closed) => {
                let mut index = self.shared.index_mut();
                index.segments.insert(number, Segment::Closed(Arc::new(closed)));
                index.live.remove(&number);
            }
            Err(reason) => {
                tracing::error!(
                    segment = number,
                    reason,
                    "a full segment could not be closed properly; it is examined at the next start"
                )
            }
        });
    }

    fn describe(&self) -> Result<ClosedSegment, String> {
        let id = &self.shared.facts.id;
        let number = self.segment.number;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let file = File::open(self.segment.directory.join("db")).map_err(|e| text(&e))?;
        let scan = scan::scan(&file, id, number).map_err(|e| text(&e))?;
        let written = self.shared.index().live.get(&number).map_or(0, |live| live.blocks.len()) as u32;
        if let Some(lost) = (0..written).find(|n| !scan.blocks.contains_key(n)) {
            return Err(format!("block {lost} is not in its file"));
        }
        let described =
            closed::describe(&file, id, number, &scan, 0..written, |_, _, _| ()).map_err(|e| text(&e))?;
        let summary = Summary {
            segment: number,
            log: "db".into(),
            log_bytes: scan.file_bytes,
            generation: self.generation,
            first: described.tables.blocks.first().map_or(0, |row| row.first),
            last: described.last,
            previous: self.previous,
            streams: described.streams,
            holes: Vec::new(),
            broken: Vec::new(),
        };
        file.sync_all().map_err(|e| text(&e))?;
        closed::write_manifest(&self.segments, id, &summary, &described.tables).map_err(|e| text(&e))?;
        Ok(ClosedSegment::scanned(&self.segments, number, *id, summary, Default::default()).with_manifest())
    }
}

fn unavailable(reason: &str) -> AppendError {
    AppendError::Unavailable { reason: reason.to_owned() }
}
