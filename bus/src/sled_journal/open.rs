//! Opening for writing: closed segments are believed by their manifests, the newest is read through; what is not as it was written is set
//! aside and its intact part kept.
//!
//! ```text
//!  closed, manifest good ──────────────────────────────────→ used as it is
//!  closed, manifest missing or damaged ── scanned ── whole ─→ manifest made anew
//!                                           └── not whole ──→ set aside, intact blocks kept
//!  newest ── scanned, then opened by sled ── same blocks ───→ live; a torn last group is dropped
//!                 └── less than was acknowledged ───────────→ set aside, intact blocks kept, a new live one begun
//! ```
//! sled's recovery writes: it clears what it takes for a torn tail. So it gets to work only after a copy was made, and the copy goes when
//! sled gave back all there was.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    SEGMENTS,
    begin::Begin,
    closed::{self, ClosedSegment, End, Summary, log_length},
    facts::{self, Facts},
    files,
    index::{Index, Recent, Segment, SegmentIndex, StreamState},
    keep,
    live::{LiveError, LiveSegment},
    mark::Mark,
    purge::Floors,
    report::{Finding, OpenError, OpenReport},
    scan::{self, Scan},
    settings::JournalSettings,
    shared::Shared,
    writer::{Start, Writer},
};
use crate::commit::StreamId;

/// Opens or makes the journal in `directory`.
pub(super) fn open(directory: &Path, settings: JournalSettings) -> Result<(Writer, OpenReport), OpenError> {
    files::create_directory(directory)
        .map_err(|error| OpenError::io("make the journal's directory", directory, error))?;
    let lock = facts::lock(directory)?;
    let segments = directory.join(SEGMENTS);
    let facts = match Facts::read(directory)? {
        Some(facts) => facts,
        None if segments.is_dir() => return Err(OpenError::Missing { directory: directory.into() }),
        None => Facts::create(directory, settings.partitions)?,
    };
    files::create_directory(&segments)
        .map_err(|error| OpenError::io("make the segments' directory", &segments, error))?;
    keep::finish_interrupted(&segments)?;

    let mut known = Known::new(directory, facts, &settings);
    let numbers = numbers(&segments)?;
    let newest = numbers.last().copied();
    for number in numbers.first().copied().unwrap_or(1)..newest.unwrap_or(1) {
        known.closed(number, Some(directory), settings.check_all)?;
    }
    let live = match newest {
        Some(number) => known.newest(number, directory, &settings)?,
        None => None,
    };
    let live = match live {
        Some(live) => live,
        None => known.begin(newest.map_or(1, |number| number + 1), &settings)?,
    };
    known.into_writer(directory, settings, lock, live)
}

/// Numbers of the segments there is any trace of.
pub(super) fn numbers(segments: &Path) -> Result<BTreeSet<u32>, OpenError> {
    let failed = |error| OpenError::io("list the segments in", segments, error);
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(segments).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let (stem, rest) = name.split_once('.').unwrap_or((name, ""));
        if matches!(rest, "" | "manifest" | "begin") {
            numbers.extend(stem.parse::<u32>().ok());
        }
    }
    Ok(numbers)
}

/// What is known so far, while the segments are gone through from the oldest.
pub(super) struct Known {
    pub segments: PathBuf,
    pub facts: Facts,
    pub index: Index,
    pub findings: Vec<Finding>,
    pub generation: u32,
    pub last: Option<End>,
    /// The sequence the next commit should have.
    pub next: u64,
}

/// The live segment and where it stands.
struct Live {
    segment: Arc<LiveSegment>,
    previous: Option<End>,
    blocks: u32,
    reserved: u32,
    bytes: u64,
}

impl Known {
    pub(super) fn new(directory: &Path, facts: Facts, settings: &JournalSettings) -> Self {
        let (floors, wrong) = Floors::read(directory, &facts.id);
        let segments = directory.join(SEGMENTS);
        let index = Index {
            tail: 0,
            streams: Default::default(),
            segments: BTreeMap::new(),
            starts: BTreeMap::new(),
            live: BTreeMap::new(),
            recent: Recent::new(1, settings.recent_commits, settings.recent_bytes),
            floors,
            broken: HashMap::new(),
            holes: Vec::new(),
            stopped: None,
            doubtful: HashSet::new(),
        };
        let mut known =
            Self { segments, facts, index, findings: Vec::new(), generation: 0, last: None, next: 1 };
        if let Some(reason) = wrong {
            known.found(Finding::FloorsLost { reason });
        }
        known
    }

    fn found(&mut self, finding: Finding) {
        if let Finding::Hole { first, last, .. } = &finding {
            self.index.holes.push((*first, *last));
        }
        if finding.is_damage() {
            tracing::error!(segments = %self.segments.display(), "{finding}");
        } else {
            tracing::info!(segments = %self.segments.display(), "{finding}");
        }
        self.findings.push(finding);
    }

    fn broken(&mut self, stream: &StreamId, reason: String) {
        if !self.index.broken.contains_key(stream) {
            self.index.broken.insert(stream.clone(), reason.clone());
            self.found(Finding::BrokenStream { stream: stream.clone(), reason });
        }
    }

    /// Takes in segment `number`, which has a successor. With `directory` given, what is wrong is put right on disk; else only in memory.
    /// With `check` its blocks are read, too.
    pub(super) fn closed(
        &mut self,
        number: u32,
        directory: Option<&Path>,
        check: bool,
    ) -> Result<(), OpenError> {
        let said = Begin::read(&self.segments, number + 1, &self.facts.id);
        match ClosedSegment::open(&self.segments, number, self.facts.id) {
            Ok(closed) => {
                if let Some(error) = check.then(|| closed.stored_tables().err()).flatten()
                    && let Some(tables) = closed.scanned_tables()
                {
                    closed::write_manifest(&self.segments, &self.facts.id, &closed.summary, &tables)
                        .map_err(|error| OpenError::io("write a manifest in", &self.segments, error))?;
                    self.found(Finding::ManifestRebuilt { segment: number, reason: error.to_string() });
                }
                let wrong = match log_length(&closed.log()) {
                    None => {
                        if let Some(last) = closed.summary.last {
                            let reason =
                                format!("the files of segment {number:06} are gone; its manifest is there");
                            self.found(Finding::Hole {
                                first: closed.summary.first,
                                last: last.sequence,
                                reason,
                            });
                        }
                        None
                    }
                    Some(length) if length < closed.summary.log_bytes => Some(format!(
                        "its file has {length} bytes of {}: it was cut off",
                        closed.summary.log_bytes
                    )),
                    Some(_) => said
                        .filter(|said| said.previous != closed.summary.last)
                        .map(|said| older(&closed.summary, &said))
                        .or_else(|| check.then(|| closed.check().err()).flatten()),
                };
                match (wrong, directory) {
                    (Some(reason), Some(directory)) => {
                        self.set_aside(directory, number, &closed.log(), reason, said.map(|s| s.first))
                    }
                    (Some(reason), None) => {
                        self.found(Finding::SetAside {
                            segment: number,
                            moved_to: self.segments.clone(),
                            reason,
                            kept: 0,
                        });
                        self.adopt(closed);
                        Ok(())
                    }
                    (None, _) => {
                        self.adopt(closed);
                        Ok(())
                    }
                }
            }
            Err(manifest) => {
                let path = closed::directory_path(&self.segments, number);
                let Some(log) = keep::find_log(&path) else {
                    if let Some(said) = said.filter(|said| said.first > self.next) {
                        self.found(Finding::Hole {
                            first: self.next,
                            last: said.first - 1,
                            reason: format!("segment {number:06} and its manifest are gone"),
                        });
                        self.next = said.first;
                    }
                    return Ok(());
                };
                self.rebuild(number, &log, manifest.to_string(), said, directory)
            }
        }
    }

    /// A closed segment without a manifest.
    fn rebuild(
        &mut self,
        number: u32,
        log: &Path,
        reason: String,
        said: Option<Begin>,
        directory: Option<&Path>,
    ) -> Result<(), OpenError> {
        let failed = |error| OpenError::io("read", log, error);
        let id = self.facts.id;
        let file = File::open(log).map_err(failed)?;
        let scan = scan::scan(&file, &id, number).map_err(failed)?;
        let described = closed::describe(&file, &id, number, &scan, 0..scan.whole_groups(), |_, _, _| Ok(()));
        let whole = described.as_ref().is_ok_and(|described| {
            scan.whole_groups() >= scan.durable()
                && said.is_none_or(|said| said.previous == described.last || described.last.is_none())
                && described.last.is_some()
        });
        if let Ok(described) = described
            && whole
        {
            let summary = Summary {
                segment: number,
                log: log.file_name().unwrap_or_default().to_string_lossy().into(),
                log_bytes: scan.file_bytes,
                generation: scan.blocks.values().map(|f| f.header.generation).max().unwrap_or(0),
                first: described.tables.blocks.first().map_or(0, |row| row.first),
                last: described.last,
                previous: Begin::read(&self.segments, number, &id).and_then(|begin| begin.previous),
                streams: described.streams,
                holes: Vec::new(),
                broken: Vec::new(),
            };
            if directory.is_some() {
                file.sync_all().map_err(failed)?;
                closed::write_manifest(&self.segments, &id, &summary, &described.tables)
                    .map_err(|error| OpenError::io("write a manifest in", &self.segments, error))?;
                self.found(Finding::ManifestRebuilt { segment: number, reason });
            }
            self.adopt(ClosedSegment::scanned(&self.segments, number, id, summary, described.tables));
            return Ok(());
        }
        let reason = format!("its manifest is of no use ({reason}) and its blocks are not all there");
        match directory {
            Some(directory) => self.set_aside(directory, number, log, reason, said.map(|s| s.first)),
            None => self.adopt_intact(number, log, reason),
        }
    }

    /// Sets segment `number` aside, keeping what of `log` is intact. `end` is the first sequence after it, if that is known.
    fn set_aside(
        &mut self,
        directory: &Path,
        number: u32,
        log: &Path,
        reason: String,
        end: Option<u64>,
    ) -> Result<(), OpenError> {
        let heads = self.index.streams.iter().map(|(stream, state)| (stream.clone(), state.head)).collect();
        let kept = keep::keep(
            directory,
            &self.segments,
            &self.facts.id,
            number,
            log,
            heads,
            &self.index.floors,
            self.next,
            end,
        )?;
        self.found(Finding::SetAside {
            segment: number,
            moved_to: kept.moved_to,
            reason,
            kept: kept.commits,
        });
        self.adopt(kept.segment);
        Ok(())
    }

    /// As [`Self::set_aside`], in memory only.
    pub(super) fn adopt_intact(&mut self, number: u32, log: &Path, reason: String) -> Result<(), OpenError> {
        let heads = self.index.streams.iter().map(|(stream, state)| (stream.clone(), state.head)).collect();
        let intact = keep::intact(
            &self.facts.id,
            &self.segments,
            number,
            log,
            heads,
            &self.index.floors,
            self.next,
            None,
        )?;
        let name = log.file_name().unwrap_or_default().to_string_lossy().into();
        let commits = intact.commits();
        let (summary, tables) = intact.into_summary(number, name);
        self.found(Finding::SetAside { segment: number, moved_to: log.into(), reason, kept: commits });
        self.adopt(ClosedSegment::scanned(&self.segments, number, self.facts.id, summary, tables));
        Ok(())
    }

    /// Takes in a closed segment by its summary.
    pub(super) fn adopt(&mut self, closed: ClosedSegment) {
        let summary = closed.summary.clone();
        let number = summary.segment;
        self.generation = self.generation.max(summary.generation);
        let said = summary.holes.first().is_some_and(|hole| hole.1 + 1 == summary.first);
        if summary.first > self.next && !said {
            self.found(Finding::Hole {
                first: self.next,
                last: summary.first - 1,
                reason: format!("segment {number:06} does not begin where the one before it ended"),
            });
        }
        for (first, last) in &summary.holes {
            let reason = format!("segment {number:06} was damaged");
            self.found(Finding::Hole { first: *first, last: *last, reason });
        }
        for row in &summary.streams {
            let floor = self.index.floors.of(&row.stream);
            if row.head.version < floor {
                continue;
            }
            let first = row.first.max(floor);
            let joins = match self.index.streams.get(&row.stream) {
                Some(state) => first == state.head.version.next(),
                None => self.index.floors.may_begin(&row.stream, first),
            };
            if !joins {
                let known = self.index.streams.get(&row.stream).map_or(floor, |state| state.head.version);
                let reason =
                    format!("segment {number:06} has it from version {first} on, it was known up to {known}");
                self.broken(&row.stream, reason);
            }
            self.index
                .streams
                .entry(row.stream.clone())
                .and_modify(|state| {
                    state.head = row.head;
                    state.segments.push((number, first));
                })
                .or_insert_with(|| StreamState { head: row.head, segments: vec![(number, first)] });
        }
        for (stream, reason) in &summary.broken {
            self.broken(stream, reason.clone());
        }
        if let Some(last) = summary.last {
            self.index.starts.insert(summary.first, number);
            self.next = self.next.max(last.sequence + 1);
            self.last = Some(last);
        }
        if let Some((_, last)) = summary.holes.last() {
            self.next = self.next.max(last + 1);
        }
        self.index.segments.insert(number, Segment::Closed(Arc::new(closed)));
    }

    /// Takes note that the log of the newest segment is not there; says whether there had been anything in it.
    pub(super) fn lost_live(&mut self, number: u32, mark: Option<Mark>) -> bool {
        let Some(mark) = mark else { return false };
        let reason = format!("the files of segment {number:06} are gone");
        self.found(Finding::Hole { first: self.next, last: mark.last.sequence, reason });
        self.next = mark.last.sequence + 1;
        true
    }

    /// Takes in the newest segment. None if it is no live one (any more) and a new one is to be begun.
    fn newest(
        &mut self,
        number: u32,
        directory: &Path,
        settings: &JournalSettings,
    ) -> Result<Option<Live>, OpenError> {
        let path = closed::directory_path(&self.segments, number);
        let begin = Begin::read(&self.segments, number, &self.facts.id);
        let mark = Mark::read(&self.segments, number, &self.facts.id);
        if closed::manifest_path(&self.segments, number).is_file() || path.join(keep::KEPT).is_file() {
            self.closed(number, Some(directory), settings.check_all)?;
            // Where a crash interrupted setting aside, the mark still knows how far the segment went.
            if let Some(mark) = mark.filter(|mark| mark.last.sequence >= self.next) {
                let reason = format!("segment {number:06} was damaged");
                self.found(Finding::Hole { first: self.next, last: mark.last.sequence, reason });
                self.next = mark.last.sequence + 1;
            }
            let before = keep::before_path(&self.segments, number);
            keep::remove_before(&before).map_err(|error| OpenError::io("remove the copy", &before, error))?;
            return Ok(None);
        }
        if let Some(begin) = begin
            && begin.first > self.next
        {
            let reason = format!("segment {number:06} begins later");
            self.found(Finding::Hole { first: self.next, last: begin.first - 1, reason });
            self.next = begin.first;
        }
        let log = path.join("db");
        let before = keep::before_path(&self.segments, number);
        if !log.is_file() && !before.is_file() && (self.lost_live(number, mark) || !path.is_dir()) {
            return Ok(None);
        }
        let io = |error| OpenError::io("copy, to have it while sled recovers,", &log, error);
        if log.is_file() && !before.is_file() {
            keep::copy_before(&log, &before).map_err(io)?;
        }
        let scan = match File::open(&before) {
            Ok(file) => scan::scan(&file, &self.facts.id, number).map_err(io)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Scan::default(),
            Err(error) => return Err(io(error)),
        };
        let marked = mark.map_or(0, |mark| mark.blocks);
        let wrong = match broken_before(&scan, marked) {
            Some(reason) => Some(reason),
            None => match self.recover(number, &path, &scan, marked, settings)? {
                Ok(live) => {
                    keep::remove_before(&before)
                        .map_err(|error| OpenError::io("remove the copy", &before, error))?;
                    return Ok(Some(live));
                }
                Err(reason) => Some(reason),
            },
        };
        let end = mark.map(|mark| mark.last.sequence + 1);
        if marked == 0 && scan.blocks.is_empty() && scan.broken.is_empty() {
            // It was still being made: sled does not always take up again what it began. Nobody was answered out of it.
            keep::move_aside(directory, &self.segments, number)?;
            self.found(Finding::TornTail { segment: number, commits: 0 });
        } else {
            self.set_aside(directory, number, &before, wrong.unwrap_or_default(), end)?;
        }
        keep::remove_before(&before).map_err(|error| OpenError::io("remove the copy", &before, error))?;
        Ok(None)
    }

    /// Lets sled open the newest segment, and compares.
    fn recover(
        &mut self,
        number: u32,
        path: &Path,
        scan: &Scan,
        marked: u32,
        settings: &JournalSettings,
    ) -> Result<Result<Live, String>, OpenError> {
        let segment = match LiveSegment::open(path, number, settings) {
            Ok(segment) => segment,
            Err(LiveError::Sled(reason)) if reason.contains("could not acquire lock") => {
                return Err(OpenError::InUse { directory: path.into() });
            }
            Err(error @ LiveError::Io { .. }) => {
                return Err(OpenError::Segment { path: path.into(), reason: error.to_string() });
            }
            Err(error) => return Ok(Err(error.to_string())),
        };
        let (mut headers, mut commits) = (Vec::new(), Vec::new());
        let mut next = None;
        let loaded = segment.load(&self.facts.id, |block| {
            headers.push(block.header);
            for (item, encoded) in block.commits().zip(block.encoded()) {
                let (sequence, commit) = item?;
                next = Some(sequence + 1);
                commits.push((sequence, commit, encoded.map_or(0, |(_, bytes)| bytes.len())));
            }
            Ok(())
        });
        let blocks = headers.len() as u32;
        let durable = scan.durable().max(marked);
        let wrong = match &loaded {
            Err(error) => Some(error.to_string()),
            Ok(_) if blocks < durable => {
                Some(format!("sled gave back {blocks} blocks, {durable} were acknowledged"))
            }
            Ok(_) => headers.iter().find_map(|header| {
                let same = scan.blocks.get(&header.number).is_some_and(|found| found.header == *header);
                (!same).then(|| format!("sled gave back another block {} than its file has", header.number))
            }),
        };
        let reserved = match (loaded, wrong) {
            (Ok(reserved), None) => reserved,
            (_, wrong) => {
                segment.close(|| ());
                return Ok(Err(wrong.unwrap_or_default()));
            }
        };
        let torn: u64 = scan.blocks.range(blocks..).map(|(_, f)| u64::from(f.header.commits)).sum();
        if torn > 0 || scan.broken.keys().any(|number| *number >= blocks) {
            self.found(Finding::TornTail { segment: number, commits: torn });
        }
        self.generation = headers.iter().map(|h| h.generation).max().unwrap_or(0).max(self.generation);
        let previous = self.last;
        let first = headers.first().map_or(self.next, |header| header.first);
        if first > self.next {
            let reason = format!("segment {number:06} begins later");
            self.found(Finding::Hole { first: self.next, last: first - 1, reason });
        }
        self.index.starts.insert(first, number);
        self.index.live.insert(
            number,
            SegmentIndex {
                blocks: headers.iter().map(|header| header.first).collect(),
                streams: Default::default(),
            },
        );
        self.index.recent =
            Recent::new(next.map_or(self.next, |_| first), settings.recent_commits, settings.recent_bytes);
        for (sequence, commit, bytes) in commits {
            self.last = Some(End { sequence, id: commit.id });
            if self.index.floors.hide(&commit) {
                self.index.add_purged(sequence);
                self.index.recent.trim();
                continue;
            }
            let head = self.index.streams.get(&commit.stream).map(|state| state.head);
            if !self.index.floors.join(&commit, head.as_ref()) {
                let reason =
                    format!("commit {sequence} has version {}, its head was {head:?}", commit.version);
                self.broken(&commit.stream, reason);
            }
            self.index.add(number, sequence, commit, bytes);
            self.index.recent.trim();
        }
        self.next = next.unwrap_or(self.next);
        let segment = Arc::new(segment);
        self.index.segments.insert(number, Segment::Live(segment.clone()));
        let bytes = headers.iter().map(|header| u64::from(header.bytes)).sum();
        if blocks == 0 {
            self.write_begin(number)?;
        }
        Ok(Ok(Live { segment, previous, blocks, reserved, bytes }))
    }

    fn write_begin(&self, number: u32) -> Result<(), OpenError> {
        Begin { segment: number, first: self.next, previous: self.last }
            .write(&self.segments, &self.facts.id)
            .map_err(|error| OpenError::io("write the beginning of a segment in", &self.segments, error))
    }

    /// Begins segment `number`.
    fn begin(&mut self, number: u32, settings: &JournalSettings) -> Result<Live, OpenError> {
        let path = closed::directory_path(&self.segments, number);
        let segment = LiveSegment::open(&path, number, settings)
            .map_err(|error| OpenError::Segment { path, reason: error.to_string() })?;
        self.write_begin(number)?;
        let segment = Arc::new(segment);
        self.index.segments.insert(number, Segment::Live(segment.clone()));
        self.index.starts.insert(self.next, number);
        self.index.live.insert(number, SegmentIndex::default());
        self.index.recent = Recent::new(self.next, settings.recent_commits, settings.recent_bytes);
        Ok(Live { segment, previous: self.last, blocks: 0, reserved: 0, bytes: 0 })
    }

    pub(super) fn report(&mut self) -> OpenReport {
        OpenReport {
            segments: self.index.segments.len() as u32,
            last_sequence: self.index.tail,
            streams: self.index.streams.len() as u64,
            findings: std::mem::take(&mut self.findings),
        }
    }

    fn into_writer(
        mut self,
        directory: &Path,
        settings: JournalSettings,
        lock: File,
        live: Live,
    ) -> Result<(Writer, OpenReport), OpenError> {
        self.index.tail = self.next - 1;
        let report = self.report();
        let (tail, receiver) = watch::channel(self.index.tail);
        let mark = super::mark::create(&self.segments, live.segment.number)
            .map_err(|error| OpenError::io("open the mark in", &self.segments, error))?;
        files::sync_directory(&self.segments)
            .map_err(|error| OpenError::io("sync", &self.segments, error))?;
        let shared = Shared::new(directory.into(), self.facts, settings, self.index, receiver);
        let start = Start {
            segment: live.segment,
            mark,
            previous: live.previous,
            last: self.last,
            next_block: live.blocks,
            reserved: live.reserved,
            next_sequence: self.next,
            bytes: live.bytes,
            generation: self.generation + 1,
            lock,
        };
        let writer = Writer::new(Arc::new(shared), start, tail)
            .map_err(|error| OpenError::io("start the sync thread of", directory, error))?;
        Ok((writer, report))
    }
}

/// What in a scan alone shows that acknowledged blocks are missing; `marked` is how many there were at least.
fn broken_before(scan: &Scan, marked: u32) -> Option<String> {
    let durable = scan.durable().max(marked);
    if let Some(missing) = (0..durable).find(|number| !scan.blocks.contains_key(number)) {
        let why = match scan.broken.get(&missing) {
            Some(found) => format!("its checksum does not hold, at byte {} of the file", found.offset),
            None => "it is not in the file".into(),
        };
        return Some(format!("block {missing} of {durable}: {why}"));
    }
    None
}

fn older(summary: &Summary, said: &Begin) -> String {
    let end = |end: Option<End>| match end {
        Some(end) => format!("commit {} ({})", end.sequence, end.id),
        None => "nothing".into(),
    };
    format!(
        "it ends with {}, its successor began after {}: it is an older copy, or of another history",
        end(summary.last),
        end(said.previous)
    )
}
