//! The writer: one thread that makes groups of what waits, checks and writes them; another syncs, a third answers.
//!
//! ```text
//!  append ─┐           writer                      sync thread   answer thread
//!  append ─┼─ queue ─→ check, pack, sled, flush ─→ fdatasync ──→ index, followers, answers
//!  append ─┘           └ a group in each of the three at a time
//! ```
//! No timer: a lone append is stored at once, and under load a group is whatever came while the one before was written. sled's `flush`
//! puts the bytes into the file, `fdatasync` makes them durable; they overlap with each other's neighbours, never with themselves: sled
//! has one lock, over the whole process, that batches and flushes exclude each other with.
//!
//! Groups become durable in order, so a commit may be checked against heads that are written but not yet durable: if those fail, so does
//! everything behind them.

use std::{
    collections::VecDeque,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering, mpsc as blocking},
    thread::JoinHandle,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    answer::Answerer,
    begin::Begin,
    block::{self, MAX_PARTS},
    closed::{self, ClosedSegment, End, Summary},
    index::{ByStream, Segment},
    live::LiveSegment,
    mark, scan,
    shared::{Shared, StopOnPanic},
    sync::{Append, Group, Progress, Step, Syncer},
};
use crate::{commit::Head, journal::AppendError};

/// Groups that may wait between two of the threads: one, while another is worked on. More would make answers later, not more of them.
const WAITING_GROUPS: usize = 1;

/// What the writer is asked.
pub(super) enum Request {
    Append(Append),
    Close(oneshot::Sender<()>),
}

/// Where the writer begins.
pub(super) struct Start {
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
    /// Released when all is closed.
    pub lock: File,
}

/// Owned by the writer thread.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    at: Start,
    mark: Arc<File>,
    steps: blocking::SyncSender<Step>,
    syncer: JoinHandle<()>,
    answerer: JoinHandle<watch::Sender<u64>>,
    progress: Arc<Progress>,
    /// Groups so far.
    groups: u64,
    /// Heads of groups that are written and not yet in the index.
    pending: VecDeque<(u64, ByStream<Head>)>,
    /// Set when a write failed: nothing is written any more.
    failed: Option<String>,
    closing: Option<JoinHandle<()>>,
}

impl Writer {
    /// A writer, with the threads that sync and answer, started.
    pub(super) fn new(shared: Arc<Shared>, start: Start, tail: watch::Sender<u64>) -> std::io::Result<Self> {
        let progress = Arc::new(Progress::default());
        progress.blocks.store(u64::from(start.next_block), Ordering::Release);
        let (steps, written) = blocking::sync_channel(WAITING_GROUPS);
        let (synced, to_answer) = blocking::sync_channel(WAITING_GROUPS);
        let syncer = Syncer { shared: shared.clone(), progress: progress.clone(), synced };
        let answerer = Answerer { shared: shared.clone(), tail, progress: progress.clone() };
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let syncer = thread("journal-sync").spawn(move || syncer.run(written))?;
        let answerer = thread("journal-answer").spawn(move || answerer.run(to_answer))?;
        let mark = Arc::new(start.mark.try_clone()?);
        Ok(Self {
            shared,
            at: start,
            mark,
            steps,
            syncer,
            answerer,
            progress,
            groups: 0,
            pending: VecDeque::new(),
            failed: None,
            closing: None,
        })
    }

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
        drop(self.steps);
        let _ = self.syncer.join();
        let tail = self.answerer.join();
        if let Some(closing) = self.closing.take() {
            let _ = closing.join();
        }
        self.at.segment.close(|| ());
        self.shared.index_mut().stopped.get_or_insert_with(|| "it is closed".into());
        drop(self.at.lock);
        drop(tail);
        if let Some(answer) = told {
            let _ = answer.send(());
        }
    }

    /// Writes what of `group` fits its streams and hands all on.
    fn store(&mut self, group: Vec<Append>) {
        if group.is_empty() {
            return;
        }
        if self.failed.is_none() && self.is_full() {
            self.roll();
        }
        let done = self.progress.groups.load(Ordering::Acquire);
        while self.pending.front().is_some_and(|(number, _)| *number <= done) {
            self.pending.pop_front();
        }
        let mut heads: ByStream<Head> = ByStream::default();
        let mut fits = Vec::with_capacity(group.len());
        let mut refused = Vec::new();
        {
            let index = self.shared.index();
            for append in group {
                let stream = &append.commit.stream;
                let stopped = self.failed.as_ref().or(index.stopped.as_ref());
                if let Some(reason) = stopped.or_else(|| index.broken.get(stream)) {
                    refused.push((append, unavailable(reason)));
                    continue;
                }
                let known = heads
                    .get(stream)
                    .or_else(|| self.pending.iter().rev().find_map(|(_, heads)| heads.get(stream)))
                    .or_else(|| index.streams.get(stream).map(|state| &state.head))
                    .copied();
                if known.is_none() && index.floors.has(stream) {
                    let reason = "the stream was purged, its name is used up".into();
                    let stream = stream.clone();
                    refused.push((append, AppendError::Invalid { stream, reason }));
                } else if append.commit.follows(known.as_ref()) {
                    heads.insert(stream.clone(), append.commit.head());
                    fits.push(append);
                } else {
                    let (stream, version) = (stream.clone(), append.commit.version);
                    refused.push((append, AppendError::Conflict { stream, version, head: known }));
                }
            }
        }
        self.groups += 1;
        let mut group = Group {
            number: self.groups,
            segment: self.at.segment.clone(),
            mark: self.mark.clone(),
            first: self.at.next_sequence,
            blocks: Vec::new(),
            blocks_then: self.at.next_block,
            fits,
            refused,
            failed: None,
        };
        if !group.fits.is_empty() {
            self.pending.push_back((self.groups, heads));
            group.failed = self.write(&mut group).err();
            self.failed.clone_from(&group.failed);
        }
        // Full: the disk is behind, so appends wait. If that thread is gone its guard has stopped the journal.
        let _ = self.steps.send(Step::Group(group));
    }

    /// Hands a group to the system.
    fn write(&mut self, group: &mut Group) -> Result<(), String> {
        let at = &mut self.at;
        let place = block::Place {
            segment: at.segment.number,
            number: at.next_block,
            first: at.next_sequence,
            generation: at.generation,
            durable: self.progress.blocks.load(Ordering::Acquire) as u32,
        };
        let commits = group.fits.iter().map(|append| append.bytes.as_slice());
        let blocks = block::pack(&self.shared.facts.id, place, commits);
        for block in &blocks {
            let header = block::Header::peek(block).map_err(|error| error.to_string())?;
            group.blocks.push(header.first);
            at.bytes += block.len() as u64;
        }
        at.next_block += blocks.len() as u32;
        at.next_sequence += group.fits.len() as u64;
        at.last = group.fits.last().map(|a| End { sequence: at.next_sequence - 1, id: a.commit.id });
        group.blocks_then = at.next_block;
        at.segment
            .write(place.number, blocks, &mut at.reserved)
            .map_err(|error| format!("segment {:06}: {error}", place.segment))
    }

    fn is_full(&self) -> bool {
        let settings = &self.shared.settings;
        self.at.bytes >= settings.segment_bytes || self.at.next_block >= settings.segment_blocks
    }

    /// Goes on in a new segment; the old one is closed beside. If no new one can be made, the old one grows on.
    fn roll(&mut self) {
        let (answer, drained) = blocking::channel();
        if self.steps.send(Step::Barrier(answer)).is_err() || drained.recv().is_err() {
            return;
        }
        if self.shared.index().stopped.is_some() {
            return;
        }
        if let Some(closing) = self.closing.take() {
            let _ = closing.join(); // one at a time: a disk that cannot keep up slows appends, not memory
        }
        let segments = self.shared.directory.join(super::SEGMENTS);
        let number = self.at.segment.number + 1;
        let (new, mark) = match self.begin(&segments, number) {
            Ok((new, mark)) => (Arc::new(new), mark),
            Err(reason) => {
                tracing::warn!(
                    segment = number,
                    reason,
                    "no new segment could be made; the old one grows on"
                );
                self.at.bytes = 0;
                return;
            }
        };
        let mut index = self.shared.index_mut();
        index.segments.insert(number, Segment::Live(new.clone()));
        index.starts.insert(self.at.next_sequence, number);
        index.live.insert(number, Default::default());
        drop(index);
        let task = CloseSegment {
            shared: self.shared.clone(),
            segments,
            segment: std::mem::replace(&mut self.at.segment, new),
            previous: self.at.previous,
            generation: self.at.generation,
        };
        self.mark = Arc::new(mark);
        self.at.previous = self.at.last;
        (self.at.next_block, self.at.reserved, self.at.bytes) = (0, 0, 0);
        self.progress.blocks.store(0, Ordering::Release);
        match std::thread::Builder::new().name("journal-close".into()).spawn(move || task.run()) {
            Ok(handle) => self.closing = Some(handle),
            Err(error) => {
                tracing::warn!(%error, "no thread to close a segment; it is closed at the next start")
            }
        }
    }

    /// Makes segment `number`. The directory first: a beginning without one is a segment that was lost.
    fn begin(&self, segments: &Path, number: u32) -> Result<(LiveSegment, File), String> {
        let path = closed::directory_path(segments, number);
        let segment = LiveSegment::open(&path, number, &self.shared.settings).map_err(|e| e.to_string())?;
        let begin = Begin { segment: number, first: self.at.next_sequence, previous: self.at.last };
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
            closed::describe(&file, id, number, &scan, 0..written, |_, _, _| Ok(())).map_err(|e| text(&e))?;
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
        let written = closed::write_manifest(&self.segments, id, &summary, &described.tables);
        let closed = ClosedSegment::scanned(&self.segments, number, *id, summary, described.tables);
        // Without a manifest its tables stay in memory, and the next start makes it anew.
        Ok(match written {
            Ok(()) => closed.with_manifest(),
            Err(error) => {
                tracing::warn!(segment = number, %error, "the manifest of a full segment could not be written; it is made anew at the next start");
                closed
            }
        })
    }
}

fn unavailable(reason: &str) -> AppendError {
    AppendError::Unavailable { reason: reason.to_owned() }
}
