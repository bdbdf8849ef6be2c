//! `roomlog bench log`: how near the journal in sled is to the raw file, and how fast a log folds.
//!
//! Appends are durable: the journal's as `roomlog up` makes them, the file's one write and one `fdatasync` a group of the same bytes, the two
//! by turns in slices, so that both see the same disk. What is folded is a recorded call of four people (`call.commits`, 1 event in 3 a
//! consumer's), as often as it takes, in a room of its own each time.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use roomlog_bus::{
    commit::{Commit, StreamId, StreamKind},
    journal::{Cursor, Followed, Journal},
    sled_journal::{JournalSettings, SledJournal},
};
use roomlog_projections::{directory::Directory, room::RoomState};
use serde::Serialize;

/// A call of four people with a camera each, as an archive keeps it: from `RoomCreated` to `RoomDeleted`.
const CALL: &[u8] = include_bytes!("call.commits");

/// Commits in a group, at most, in the cases.
const GROUPS: [usize; 3] = [1, 64, 1024];

/// Journal and file are measured by turns, each so long. Shorter, and a slice would hold few syncs of a slow disk.
const SLICE: Duration = Duration::from_millis(500);

/// Pairs of slices; the best of each counts, since what else the machine does only ever takes away.
const SLICES: u32 = 5;

/// Events of the call that are folded at most before the clock is read again.
const FOLDS: usize = 20;

/// Arguments of `roomlog bench log`.
#[derive(Args, Debug)]
pub struct LogArgs {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Folder to measure in: on the disk that will be used, since a tmpfs syncs nothing. Made, and emptied afterwards.
    #[arg(long, value_name = "DIR", default_value = ".data/bench")]
    data: PathBuf,
    /// Events of the log that is scanned and opened.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    events: u64,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    append: Vec<Append>,
    /// Events a second, decoded commits in memory into a room's state.
    fold_per_s: f64,
    /// Events a second from disk: read, checked, decoded, folded into everything a node knows.
    scan_per_s: f64,
    /// Events of the log that was scanned and opened.
    events: u64,
    commits: u64,
    rooms: u64,
    /// From a closed journal to one that takes appends.
    open_s: f64,
    bytes_committed: u64,
    /// Of the journal's folder, per byte of the commits in it.
    disk_per_byte: f64,
    /// Resident memory the open journal adds.
    open_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Append {
    group: usize,
    per_s: f64,
    raw_per_s: f64,
    ratio: f64,
    /// CPU time of all threads per commit of the journal, µs, kernel time and the making of the commit included.
    cpu_us: f64,
}

/// Runs it.
pub fn run(args: &LogArgs) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) {
        eprintln!("a debug build: these figures mean little");
    }
    let folder = args.data.join(format!("log-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(args, &folder));
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let report = measured?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("group    journal/s       file/s   ratio   CPU µs a commit");
    for Append { group, per_s, raw_per_s, ratio, cpu_us } in &report.append {
        println!("{group:>5} {per_s:>12.0} {raw_per_s:>12.0} {ratio:>7.2} {cpu_us:>17.1}");
    }
    println!(
        "{} events in {} commits of {} rooms, {:.2} bytes on disk per byte committed",
        report.events, report.commits, report.rooms, report.disk_per_byte
    );
    println!(
        "fold {:.0} events/s in memory, {:.0} events/s from disk into everything; opens in {:.2} s and takes {:.0} MiB",
        report.fold_per_s,
        report.scan_per_s,
        report.open_s,
        report.open_bytes as f64 / f64::from(1 << 20)
    );
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &LogArgs, folder: &Path) -> anyhow::Result<Report> {
    let call: Arc<[Commit]> = call()?.into();
    let mut append = Vec::new();
    for group in GROUPS {
        eprintln!("appends in groups of {group} …");
        append.push(appends(&folder.join(format!("append-{group}")), &call, group).await?);
    }
    eprintln!("fold …");
    let fold_per_s = fold(&call)?;

    let path = folder.join("long");
    let events_a_call: u64 = call.iter().map(|commit| commit.events.len() as u64).sum();
    let rooms = args.events.div_ceil(events_a_call);
    let (journal, _) = open(&path, JournalSettings::default())?;
    let began = Instant::now();
    let mut bytes_committed = 0;
    for first in (0..rooms).step_by(WRITERS) {
        eprint!("\rwriting {} of {rooms} calls, {:.0} s", first, began.elapsed().as_secs_f64());
        let tasks: Vec<_> = (first..rooms.min(first + WRITERS as u64))
            .map(|room| {
                let (journal, call) = (journal.clone(), call.clone());
                tokio::spawn(async move {
                    let mut bytes = 0;
                    for commit in in_room(&call, &format!("call-{room}"))? {
                        bytes += commit.encode().len() as u64;
                        journal.append(commit).await?;
                    }
                    anyhow::Ok(bytes)
                })
            })
            .collect();
        for task in tasks {
            bytes_committed += task.await??;
        }
    }
    eprintln!();
    journal.close().await;
    drop(journal);

    let before = resident()?;
    let opening = Instant::now();
    let (journal, report) = open(&path, JournalSettings::default())?;
    let open_s = opening.elapsed().as_secs_f64();
    ensure!(report.findings.is_empty(), "the journal is damaged: {report:?}");
    let open_bytes = resident()?.saturating_sub(before);
    let on_disk = size(&path);

    eprintln!("scan …");
    let mut follow = journal.follow(Cursor::default()).await?;
    let (mut everything, mut events, mut commits) = (Directory::default(), 0, 0);
    let began = Instant::now();
    while let Some(Followed::Entry(entry)) = follow.next().await {
        everything.apply(&entry.commit)?;
        events += entry.commit.events.len() as u64;
        commits += 1;
    }
    let scan_per_s = events as f64 / began.elapsed().as_secs_f64();
    journal.close().await;
    Ok(Report {
        append,
        fold_per_s,
        scan_per_s,
        events,
        commits,
        rooms,
        open_s,
        bytes_committed,
        disk_per_byte: on_disk as f64 / bytes_committed as f64,
        open_bytes,
    })
}

/// Calls written at the same time.
const WRITERS: usize = 512;

fn open(
    path: &Path,
    settings: JournalSettings,
) -> anyhow::Result<(SledJournal, roomlog_bus::sled_journal::OpenReport)> {
    SledJournal::open(path, settings).with_context(|| format!("cannot open {}", path.display()))
}

/// The recorded call.
fn call() -> anyhow::Result<Vec<Commit>> {
    let (mut rest, mut commits) = (CALL, Vec::new());
    while !rest.is_empty() {
        commits.push(rmp_serde::from_read(&mut rest).context("the recorded call does not read")?);
    }
    Ok(commits)
}

/// The call as if it had been in the room `name`, one commit made after the other.
fn in_room(call: &[Commit], name: &str) -> anyhow::Result<impl Iterator<Item = Commit>> {
    let stream = StreamId::new(StreamKind::Room, name)?;
    Ok(call.iter().map(move |commit| Commit { stream: stream.clone(), ..commit.clone() }))
}

/// Durable appends in groups of at most `group`, beside the raw file.
async fn appends(folder: &Path, call: &Arc<[Commit]>, group: usize) -> anyhow::Result<Append> {
    let settings = JournalSettings { group_commits: group, ..JournalSettings::default() };
    let (journal, _) = open(&folder.join("journal"), settings)?;
    let mut file = File::create(folder.join("file"))?;
    let sample: Vec<u8> = call.iter().cycle().take(group).flat_map(Commit::encode).collect();
    // Enough writers to fill a group in each place: one gathers, one is written, one synced, one answered.
    let writers = if group == 1 { 1 } else { 4 * group };
    let (mut per_s, mut raw_per_s) = (0.0_f64, 0.0_f64);
    let (mut cpu, mut all) = (Duration::ZERO, 0);
    for slice in 0..SLICES {
        let (began, cpu_before) = (Instant::now(), cpu_time()?);
        let tasks: Vec<_> = (0..writers)
            .map(|writer| {
                let (journal, call) = (journal.clone(), call.clone());
                tokio::spawn(async move {
                    let (mut stored, mut round) = (0_u64, 0);
                    while began.elapsed() < SLICE {
                        round += 1;
                        for commit in in_room(&call, &format!("w-{slice}-{writer}-{round}"))? {
                            journal.append(commit).await?;
                            stored += 1;
                            if began.elapsed() >= SLICE {
                                break;
                            }
                        }
                    }
                    anyhow::Ok(stored)
                })
            })
            .collect();
        let mut stored = 0;
        for task in tasks {
            stored += task.await??;
        }
        per_s = per_s.max(stored as f64 / began.elapsed().as_secs_f64());
        cpu += cpu_time()?.saturating_sub(cpu_before);
        all += stored;
        let (began, mut groups) = (Instant::now(), 0);
        while began.elapsed() < SLICE {
            file.write_all(&sample)?;
            file.sync_data()?;
            groups += 1;
        }
        raw_per_s = raw_per_s.max((groups * group) as f64 / began.elapsed().as_secs_f64());
    }
    journal.close().await;
    let cpu_us = cpu.as_secs_f64() * 1e6 / all as f64;
    Ok(Append { group, per_s, raw_per_s, ratio: per_s / raw_per_s, cpu_us })
}

/// Events a second into a room's state, from decoded commits.
fn fold(call: &[Commit]) -> anyhow::Result<f64> {
    let call: Vec<Arc<Commit>> = call.iter().cloned().map(Arc::new).collect();
    let (began, mut events) = (Instant::now(), 0);
    while began.elapsed() < 2 * SLICE {
        for _ in 0..FOLDS {
            let mut room = RoomState::default();
            for commit in &call {
                room.apply_commit(commit)?;
                events += commit.events.len();
            }
            ensure!(
                room.deleted && room.head == call.last().map(|last| last.head()),
                "the call folds to its end"
            );
        }
    }
    Ok(events as f64 / began.elapsed().as_secs_f64())
}

fn size(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |m| m.len());
    };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

/// CPU time of this process so far, to 10 ms (`proc(5)`, stat; the clock there has 100 ticks a second).
fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("the name of the process ends")?;
    let ticks = |field: usize| fields.split(' ').nth(field).and_then(|ticks| ticks.parse::<u64>().ok());
    let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    Ok(Duration::from_millis(ticks.context("utime and stime are fields 14 and 15")? * 10))
}

/// Resident memory of this process in bytes (`proc(5)`, statm; pages of 4 KiB).
fn resident() -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * 4096)
}

#[cfg(test)]
mod tests {
    use roomlog_bus::{commit::Head, ids::Version};

    use super::*;

    #[test]
    fn the_recorded_call_is_one_whole_call_and_goes_into_any_room() {
        let call = call().unwrap();
        let mut head: Option<Head> = None;
        for commit in in_room(&call, "elsewhere").unwrap() {
            assert!(commit.follows(head.as_ref()) && commit.stream.id() == "elsewhere");
            head = Some(commit.head());
        }
        assert!(head.unwrap().version > Version(60), "a call of four is many events");
        let (first, last) = (&call[0].events[0], call.last().unwrap().events.last().unwrap());
        assert_eq!((first.kind.as_str(), last.kind.as_str()), ("RoomCreated", "RoomDeleted"));
        assert!(fold(&call).unwrap() > 0.0);
    }
}
