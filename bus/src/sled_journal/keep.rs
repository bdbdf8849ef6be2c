//! Setting a damaged segment aside, and keeping what of it is intact.
//!
//! Each block is proven by its own checksum, so a damaged block costs that block and no other. The commits in it are a hole: a follow
//! breaks there, and a stream that had one there is broken: it is not served and takes no appends, for what is missing might be anything.
//!
//! ```text
//!  1  segments/000007.keeping/kept   the intact blocks, end to end; synced
//!  2  segments/000007/           →   set-aside/000007-1/          never deleted by Roomlog
//!  3  segments/000007.keeping/   →   segments/000007/
//!  4  segments/000007.manifest       describes the kept blocks
//! ```
//! A crash in between is finished or undone at the next start.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    SET_ASIDE,
    block::HEADER_BYTES,
    closed::{self, ClosedSegment, Description, Summary, Tables},
    facts::JournalId,
    files,
    purge::Floors,
    report::OpenError,
    scan::{self, Scan},
};
use crate::commit::{Commit, Head, StreamId};

/// Name of the file with the intact blocks of a damaged segment.
pub(super) const KEPT: &str = "kept";

/// The file with the blocks of the closed segment in `directory`, where its manifest cannot say which it is: sled's, which has all of them,
/// or the newest copy of what is left.
pub(super) fn find_log(directory: &Path) -> Option<PathBuf> {
    let sled = directory.join("db");
    if sled.is_file() {
        return Some(sled);
    }
    let names = fs::read_dir(directory).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let newest = names.filter(|name| name.starts_with(KEPT)).max_by_key(|name| (name.len(), name.clone()));
    Some(directory.join(newest?))
}

/// The intact part of a segment.
pub(super) struct Intact {
    described: Description,
    generation: u32,
    holes: Vec<(u64, u64)>,
    broken: Vec<(StreamId, String)>,
    file_bytes: u64,
}

impl Intact {
    pub(super) fn commits(&self) -> u64 {
        self.described.tables.blocks.iter().map(|row| u64::from(row.commits)).sum()
    }

    /// As the manifest has it, of blocks that lie in the file `log`.
    pub(super) fn into_summary(self, segment: u32, log: String) -> (Summary, Tables) {
        let summary = Summary {
            segment,
            log,
            log_bytes: self.file_bytes,
            generation: self.generation,
            first: self.described.tables.blocks.first().map_or(0, |row| row.first),
            last: self.described.last,
            previous: None,
            streams: self.described.streams,
            holes: self.holes,
            broken: self.broken,
        };
        (summary, self.described.tables)
    }
}

/// What was kept.
pub(super) struct Kept {
    pub segment: ClosedSegment,
    pub moved_to: PathBuf,
    pub commits: u64,
}

/// Finds the intact part of segment `number` in the file `log`. `heads` are the streams' heads before it, `next` the sequence it should
/// begin with, `end` the first one after it if that is known.
#[allow(clippy::too_many_arguments, reason = "two callers, all of them different things")]
pub(super) fn intact(
    id: &JournalId,
    segments: &Path,
    number: u32,
    log: &Path,
    mut heads: HashMap<StreamId, Head>,
    floors: &Floors,
    next: u64,
    end: Option<u64>,
) -> Result<Intact, OpenError> {
    let failed = |error| OpenError::io("read what is left of", log, error);
    let mut broken = Vec::new();
    let (scan, described) = match File::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Scan::default(), Description::default()),
        Err(error) => return Err(failed(error)),
        Ok(file) => {
            let scan = scan::scan(&file, id, number).map_err(failed)?;
            let numbers = usable(&scan);
            let described =
                closed::describe(&file, id, number, &scan, numbers.into_iter(), |at, _, encoded| {
                    let commit = Commit::decode(encoded)?;
                    if !floors.join(&commit, heads.get(&commit.stream)) {
                        let reason = format!("what was before its commit {at} is missing");
                        broken.push((commit.stream.clone(), reason));
                    }
                    heads.insert(commit.stream.clone(), commit.head());
                    Ok(())
                })
                .map_err(|error| failed(io::Error::other(error.to_string())))?;
            (scan, described)
        }
    };
    if let Ok(old) = ClosedSegment::open(segments, number, *id) {
        for row in old.summary.streams {
            if heads.get(&row.stream) != Some(&row.head) {
                let reason = format!("its last commits in segment {number:06} are missing");
                broken.push((row.stream, reason));
            }
        }
    }
    let mut holes = Vec::new();
    let mut expected = next;
    for row in &described.tables.blocks {
        if row.first > expected {
            holes.push((expected, row.first - 1));
        }
        expected = row.first + u64::from(row.commits);
    }
    // What follows the last intact block: its successor or the mark knows, else damaged headers may still be readable.
    let end = end.unwrap_or_else(|| {
        let plausible = expected..expected + (1 << 20);
        let ends = scan.broken.values().map(|found| found.header.last() + 1);
        ends.filter(|end| plausible.contains(end)).max().unwrap_or(expected)
    });
    if end > expected {
        holes.push((expected, end - 1));
    }
    let generation = scan.blocks.values().map(|found| found.header.generation).max().unwrap_or(0);
    Ok(Intact { described, generation, holes, broken, file_bytes: scan.file_bytes })
}

/// The blocks that were acknowledged for certain, or whose group is whole; in ascending sequence.
fn usable(scan: &Scan) -> Vec<u32> {
    let durable = scan.durable();
    let mut last = 0;
    let mut usable = Vec::new();
    for (number, found) in &scan.blocks {
        let header = &found.header;
        let group = number - u32::from(header.part);
        let whole = || {
            (group..group + u32::from(header.parts))
                .enumerate()
                .all(|(part, n)| scan.blocks.get(&n).is_some_and(|f| usize::from(f.header.part) == part))
        };
        if header.first > last && (*number < durable || whole()) {
            last = header.last();
            usable.push(*number);
        }
    }
    usable
}

/// Sets segment `number` aside and keeps what of `log` is intact; the arguments are those of [`intact`].
#[allow(clippy::too_many_arguments, reason = "one caller, all of them different things")]
pub(super) fn keep(
    directory: &Path,
    segments: &Path,
    id: &JournalId,
    number: u32,
    log: &Path,
    heads: HashMap<StreamId, Head>,
    floors: &Floors,
    next: u64,
    end: Option<u64>,
) -> Result<Kept, OpenError> {
    let mut intact = intact(id, segments, number, log, heads, floors, next, end)?;
    let commits = intact.commits();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| OpenError::io("keep the intact part of a damaged segment in", path, error)
    };
    let keeping = segments.join(format!("{number:06}.keeping"));
    files::create_directory(&keeping).map_err(failed(&keeping))?;
    intact.file_bytes =
        copy_blocks(log, &keeping.join(KEPT), &mut intact.described.tables).map_err(failed(&keeping))?;
    files::sync_directory(&keeping).map_err(failed(&keeping))?;

    let (aside, moved_to) = place_aside(directory, number).map_err(failed(directory))?;
    let path = closed::directory_path(segments, number);
    if path.exists() {
        fs::rename(&path, &moved_to).map_err(failed(&moved_to))?;
    } else {
        files::create_directory(&moved_to).map_err(failed(&moved_to))?;
    }
    // What the evidence is: the log as it was before sled touched it, and the manifest.
    for (from, name) in
        [(before_path(segments, number), "db.before"), (closed::manifest_path(segments, number), "manifest")]
    {
        if from.exists() {
            fs::copy(&from, moved_to.join(name)).map_err(failed(&moved_to))?;
        }
    }
    files::sync_directory(&moved_to).map_err(failed(&moved_to))?;
    files::sync_directory(&aside).map_err(failed(&aside))?;
    let manifest = closed::manifest_path(segments, number);
    if manifest.exists() {
        fs::remove_file(&manifest).map_err(failed(&manifest))?;
    }
    files::sync_directory(segments).map_err(failed(segments))?;
    fs::rename(&keeping, &path).map_err(failed(&path))?;
    files::sync_directory(segments).map_err(failed(segments))?;
    let (summary, tables) = intact.into_summary(number, KEPT.into());
    closed::write_manifest(segments, id, &summary, &tables).map_err(failed(segments))?;
    let segment = ClosedSegment::scanned(segments, number, *id, summary, Tables::default()).with_manifest();
    Ok(Kept { segment, moved_to, commits })
}

/// The folder of what was set aside, made if it is not there, and a place in it for segment `number`.
fn place_aside(directory: &Path, number: u32) -> io::Result<(PathBuf, PathBuf)> {
    let aside = directory.join(SET_ASIDE);
    files::create_directory(&aside)?;
    let place = (1..)
        .map(|n| aside.join(format!("{number:06}-{n}")))
        .find(|path| !path.exists())
        .expect("numbers do not end");
    Ok((aside, place))
}

/// Sets aside the directory of segment `number`, in which there is nothing to keep.
pub(super) fn move_aside(directory: &Path, segments: &Path, number: u32) -> Result<(), OpenError> {
    let path = closed::directory_path(segments, number);
    let moved = || {
        let (aside, place) = place_aside(directory, number)?;
        fs::rename(&path, place)?;
        files::sync_directory(&aside)?;
        files::sync_directory(segments)
    };
    moved().map_err(|error| OpenError::io("set aside", &path, error))
}

/// Copies the blocks in `tables` from `log` to `kept`, durably, and says in `tables` where they are now.
fn copy_blocks(log: &Path, kept: &Path, tables: &mut Tables) -> io::Result<u64> {
    let mut out = io::BufWriter::new(File::create(kept)?);
    let mut offset = 0;
    if !tables.blocks.is_empty() {
        let file = File::open(log)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        for row in &mut tables.blocks {
            bytes.resize(row.bytes as usize, 0);
            file.read_exact_at(&mut bytes, row.offset)?;
            out.write_all(&bytes)?;
            row.offset = offset;
            offset += u64::from(row.bytes);
        }
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(offset)
}

/// Finishes or undoes what a crash interrupted.
pub(super) fn finish_interrupted(segments: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::io("finish setting aside in", segments, error);
    for entry in fs::read_dir(segments).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".keeping")) else { continue };
        let (keeping, path) = (segments.join(&name), segments.join(stem));
        if path.exists() {
            fs::remove_dir_all(&keeping).map_err(failed)?;
        } else {
            fs::rename(&keeping, &path).map_err(failed)?;
        }
        files::sync_directory(segments).map_err(failed)?;
    }
    Ok(())
}

/// The live segment's log as it was before sled opened it.
pub(super) fn before_path(segments: &Path, number: u32) -> PathBuf {
    segments.join(format!("{number:06}.before"))
}

/// Copies `log`; the copy appears only when it is whole and on disk. The next start believes a copy it finds, so after a power cut a name
/// without its bytes would pass for all there was.
pub(super) fn copy_before(log: &Path, before: &Path) -> io::Result<()> {
    let beside = before.with_extension("copying");
    fs::copy(log, &beside)?;
    File::open(&beside)?.sync_all()?;
    fs::rename(&beside, before)
}

/// Removes the copy, if there is one.
pub(super) fn remove_before(before: &Path) -> io::Result<()> {
    match fs::remove_file(before) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => files::sync_parent(before),
    }
}
