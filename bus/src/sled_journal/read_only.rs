//! Reading a folder that another process may be writing, without changing anything in it.
//!
//! sled locks a directory for one process, and opening one writes. So sled is not asked: blocks are found in the live segment's file and
//! proven by their checksums (see [`scan`](super::scan)). This is sound because of what an acknowledgement means: the group's blocks were
//! in the file, synced, before it was answered, and sled never takes a block away without having put a copy elsewhere first. A scan that
//! began after the answer therefore finds it, unless the copy went behind the scan's back; that shows as a missing number, and then the
//! file is scanned again. Needs no socket, no help from the running process, no copy, and works when that process hangs.

use std::{fs::File, io, path::Path};

use tokio::sync::watch;

use super::{
    SEGMENTS,
    closed::{self, ClosedSegment, Summary},
    facts::Facts,
    mark::Mark,
    open::{Known, numbers},
    purge::Floors,
    report::{OpenError, OpenReport},
    scan,
    settings::JournalSettings,
    shared::Shared,
};

/// Scans of the live segment before what is missing is called damage. Each takes what was written before it began, so two do unless sled
/// moves pages all the time.
const SCANS: usize = 8;

/// Opens the journal in `directory` for reading only.
pub(super) fn open(directory: &Path) -> Result<(Shared, OpenReport), OpenError> {
    let facts = Facts::read(directory)?.ok_or_else(|| OpenError::Missing { directory: directory.into() })?;
    let segments = directory.join(SEGMENTS);
    let settings = JournalSettings::default();
    let mut known = look(directory, &segments, facts, &settings)?;
    for _ in 0..SCANS {
        // Floors are written before segments are cleaned: with the same ones before and after, what was seen fits them.
        if Floors::read(directory, &facts.id).0 == known.index.floors {
            break;
        }
        known = look(directory, &segments, facts, &settings)?;
    }
    known.index.stopped = Some("it is open read-only".into());
    known.index.tail = known.next - 1;
    let report = known.report();
    let (_, tail) = watch::channel(known.index.tail);
    Ok((Shared::new(directory.into(), facts, settings, known.index, tail), report))
}

/// Goes through the segments once.
fn look(
    directory: &Path,
    segments: &Path,
    facts: Facts,
    settings: &JournalSettings,
) -> Result<Known, OpenError> {
    let mut known = Known::new(directory, facts, settings);
    let numbers = numbers(segments)?;
    let newest = numbers.last().copied().unwrap_or(0);
    for number in numbers.first().copied().unwrap_or(1)..newest {
        known.closed(number, None, false)?;
    }
    if newest > 0 {
        live(&mut known, newest)?;
    }
    Ok(known)
}

/// Takes in the newest segment, as far as whole groups of it are there.
fn live(known: &mut Known, number: u32) -> Result<(), OpenError> {
    if closed::manifest_path(&known.segments, number).is_file() {
        return known.closed(number, None, false);
    }
    let id = known.facts.id;
    let log = closed::directory_path(&known.segments, number).join("db");
    let failed = |error| OpenError::io("read", &log, error);
    let mark = Mark::read(&known.segments, number, &id);
    let file = match File::open(&log) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            known.lost_live(number, mark);
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    };
    let marked = mark.map_or(0, |mark| mark.blocks);
    for _ in 0..SCANS {
        let scan = scan::scan(&file, &id, number).map_err(failed)?;
        let whole = scan.whole_groups();
        if whole < scan.durable().max(marked) {
            continue;
        }
        let Ok(described) = closed::describe(&file, &id, number, &scan, 0..whole, |_, _, _| Ok(())) else {
            continue;
        };
        let summary = Summary {
            segment: number,
            log: "db".into(),
            log_bytes: scan.file_bytes,
            generation: 0,
            first: described.tables.blocks.first().map_or(0, |row| row.first),
            last: described.last,
            previous: known.last,
            streams: described.streams,
            holes: Vec::new(),
            broken: Vec::new(),
        };
        known.adopt(ClosedSegment::scanned(&known.segments, number, id, summary, described.tables));
        return Ok(());
    }
    known.adopt_intact(number, &log, "blocks that were acknowledged are missing or damaged".into())
}
