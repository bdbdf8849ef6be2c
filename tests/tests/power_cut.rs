//! The power goes, again and again, under load: nothing acknowledged is lost, the log opens and verifies.
//!
//! SIGKILL leaves the page cache, so it proves nothing about syncing. Here the journal writes to a disk that forgets what was not synced,
//! see `power/shim.c` and `power/disk.rs`: a process appends from many tasks and is killed; its record is cut at random points, and at
//! each the folder is built as a disk could hold it. The next process goes on from one of those.

#[path = "../power/disk.rs"]
#[allow(dead_code, reason = "shared with the tests of faults")]
mod disk;
#[path = "../power/rig.rs"]
#[allow(dead_code, reason = "shared with the tests of faults")]
mod rig;

use std::time::{Duration, Instant};

use anyhow::Context;
use disk::{Disk, Kept, Record};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rig::{Acknowledged, Load};

/// Power cuts. `ROOMLOG_POWER_CUTS` asks for more.
const CUTS: usize = 40;

/// Cuts in the record of one process.
const CUTS_PER_RUN: usize = 5;

/// Processes one after another on one folder, before a new one is begun: what is there already costs time in every cut.
const RUNS_PER_FOLDER: usize = 3;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The load, in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    rig::child().await;
}

/// What a series of cuts came to.
#[derive(Debug, Default)]
struct Outcome {
    cuts: usize,
    acknowledged: usize,
    /// Bytes that were written and not synced, at all cuts together.
    at_stake: u64,
    /// Commits that were found though nobody was told so.
    unacknowledged: usize,
    syncs: usize,
    ranges: usize,
}

/// Cuts the power `cuts` times. The error says at which seed and point what did not hold.
async fn cut_the_power(
    cuts: usize,
    seed: u64,
    environment: &[(&str, String)],
) -> (Outcome, anyhow::Result<()>) {
    let mut outcome = Outcome::default();
    let result = series(cuts, seed, environment, &mut outcome).await;
    (outcome, result)
}

async fn series(
    cuts: usize,
    seed: u64,
    environment: &[(&str, String)],
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let root = tempfile::tempdir()?;
    let mut folder = root.path().join("none");
    let mut before = Acknowledged::default();
    for run in 0.. {
        if outcome.cuts >= cuts {
            break;
        }
        if run % RUNS_PER_FOLDER == 0 {
            let _ = std::fs::remove_dir_all(&folder);
            folder = root.path().join(format!("{run}"));
            std::fs::create_dir_all(folder.join("log"))?;
            before = Acknowledged::default();
        }
        let mut disk = Disk::load(&folder.join("log"))?;
        let life = Duration::from_millis(rng.random_range(30..400));
        let load = Load::start(&folder.join("log"), seed << 16 | run as u64, None, environment)?;
        let record = load.kill_after(life)?;
        let records = disk::records(&record);
        // Where: anywhere, and more often than chance would have it while it still opens.
        let opened = records.iter().position(is_opened).unwrap_or(records.len());
        let mut points: Vec<usize> = (0..CUTS_PER_RUN)
            .map(|cut| rng.random_range(0..=if cut == 0 { opened } else { records.len() }))
            .collect();
        points.sort_unstable();
        let goes_on = rng.random_range(0..points.len());
        let mut acknowledged = before.clone();
        let mut played = 0;
        let mut next = None;
        for (cut, point) in points.into_iter().enumerate() {
            for record in &records[played..point] {
                disk.play(record);
                acknowledged.note(record);
                outcome.syncs += usize::from(matches!(record, Record::SyncEnded { error: 0, .. }));
                outcome.ranges += usize::from(matches!(record, Record::Range));
            }
            played = point;
            let (entries, content, how) = (Kept::draw(&mut rng), Kept::draw(&mut rng), rng.random());
            let case = format!(
                "seed {seed}, run {run}, cut after record {point} of {} (opened at {opened}), {entries:?} of the entries and {content:?} of the content",
                records.len()
            );
            let build = |path: &std::path::Path| {
                std::fs::create_dir_all(path)?;
                disk.cut(&path.join("log"), entries, content, &mut StdRng::seed_from_u64(how))
            };
            let found = tempfile::tempdir()?;
            build(found.path())?;
            let unacknowledged = rig::assert_holds(found.path(), &acknowledged).await;
            if unacknowledged.is_err() && std::env::var_os("ROOMLOG_POWER_KEEP").is_some() {
                let kept = found.keep();
                let _ = std::fs::remove_dir_all(kept.join("log"));
                build(&kept)?;
                eprintln!("kept in {}", kept.display());
            }
            outcome.unacknowledged += unacknowledged.with_context(|| case.clone())?;
            outcome.cuts += 1;
            outcome.acknowledged += acknowledged.0.len();
            outcome.at_stake += disk.unsynced();
            if cut == goes_on {
                let path = root.path().join(format!("{run}-next"));
                build(&path)?;
                next = Some((path, acknowledged.clone()));
            }
        }
        if let Some((path, acknowledged)) = next {
            std::fs::remove_dir_all(&folder)?;
            (folder, before) = (path, acknowledged);
        }
    }
    Ok(())
}

fn is_opened(record: &Record<'_>) -> bool {
    matches!(record, Record::Said { text } if text.starts_with(b"opened"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_power_goes() -> anyhow::Result<()> {
    let began = Instant::now();
    let cuts = number("ROOMLOG_POWER_CUTS", CUTS as u64) as usize;
    let seed = number("ROOMLOG_SEED", 20_261_122);
    let (outcome, result) = cut_the_power(cuts, seed, &[]).await;
    println!("seed {seed}: {outcome:?}, {:?}", began.elapsed());
    result?;
    assert!(outcome.acknowledged > 10 * cuts, "there was hardly a load: {outcome:?}");
    assert!(outcome.at_stake > 0, "nothing was ever at stake: {outcome:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_lies_about_syncing_is_found_out() {
    let (outcome, result) = cut_the_power(40, 1, &[("POWER_LIE", "db".into())]).await;
    let error = result.expect_err("every sync of the log was a lie, and nothing was missed");
    println!("after {} cuts: {error:#}", outcome.cuts);
}
