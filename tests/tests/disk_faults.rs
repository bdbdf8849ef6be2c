//! A disk that is full, read-only or broken: what is answered with success is kept, the rest is refused in words, and when the disk is
//! back the log goes on.
//!
//! The faults are injected at chosen calls by `power/shim.c`. After each the folder is taken twice: as the process left it, and as it is
//! after a power cut on top.

#[path = "../power/disk.rs"]
#[allow(dead_code, reason = "shared with the test of power cuts")]
mod disk;
#[path = "../power/rig.rs"]
#[allow(dead_code, reason = "shared with the test of power cuts")]
mod rig;

use anyhow::{Context, ensure};
use disk::{Disk, Kept, Record};
use rand::{SeedableRng, rngs::StdRng};
use rig::{Acknowledged, Load};

/// The load, in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    rig::child().await;
}

/// `errno` values, and what the system calls them.
const ENOSPC: (u32, &str) = (28, "No space left on device");
const EROFS: (u32, &str) = (30, "Read-only file system");
const EIO: (u32, &str) = (5, "Input/output error");

/// For ever.
const ALWAYS: u32 = 0;

/// Commits a load makes at most: enough for several segments.
const COMMITS: u64 = 1_500;

/// A fault, as POWER_FAULT has it.
#[derive(Debug, Clone, Copy)]
struct Fault {
    /// `write`, `sync`, `meta` or `all`.
    class: &'static str,
    /// Name of the files it hits; `*` for all.
    on: &'static str,
    /// Acknowledgements before it.
    after: u32,
    /// The call that fails, of those from then on.
    nth: u32,
    error: (u32, &'static str),
    times: u32,
}

impl Fault {
    fn environment(&self) -> String {
        let Self { class, on, after, nth, error: (errno, _), times } = self;
        format!("{class},{on},{after},{nth},{errno},{times}")
    }
}

/// What a load with a fault came to.
struct Outcome {
    acknowledged: Acknowledged,
    /// What the load said besides.
    said: Vec<String>,
    /// Calls that were made to fail.
    faults: usize,
}

impl Outcome {
    fn lines(&self, begin: &str) -> Vec<&str> {
        self.said.iter().filter_map(|line| line.strip_prefix(begin)).collect()
    }
}

/// Runs a load on a disk with this fault, until it can no more or has made its commits, and sees to it that what was answered holds.
async fn load_on(fault: Fault, seed: u64) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    std::fs::create_dir(&log)?;
    let mut disk = Disk::load(&log)?;
    let load = Load::start(&log, seed, Some(COMMITS), &[("POWER_FAULT", fault.environment())])?;
    let (record, errors) = load.ended()?;
    let said = rig::said(&record);
    let mut acknowledged = Acknowledged::default();
    let mut faults = 0;
    for record in &disk::records(&record) {
        disk.play(record);
        acknowledged.note(record);
        faults += usize::from(matches!(record, Record::Fault { .. }));
    }
    ensure!(faults > 0, "the fault never came; {said:?}");
    let words = |which: &str| format!("{which}; the load said {said:#?}\n{errors}");
    // sled's own threads may: it unwraps a sync when it is dropped. The journal's must not.
    ensure!(!errors.contains("thread 'journal"), words("the journal panicked"));
    ensure!(!said.iter().any(|line| line.starts_with("panic ")), words("a task panicked"));
    for (i, kept) in [Kept::Nothing, Kept::Any, Kept::Everything].into_iter().enumerate() {
        let found = tempfile::tempdir()?;
        disk.cut(&found.path().join("log"), kept, kept, &mut StdRng::seed_from_u64(i as u64))?;
        rig::assert_holds(found.path(), &acknowledged)
            .await
            .with_context(|| words(&format!("after a power cut, {kept:?} kept")))?;
    }
    rig::assert_holds(folder.path(), &acknowledged).await.with_context(|| words("as it was left"))?;
    Ok(Outcome { acknowledged, said, faults })
}

/// The journal stopped: it says why in the system's words, whoever waited was not told success, and who comes later is refused.
fn assert_stopped(outcome: &Outcome, fault: Fault) -> anyhow::Result<()> {
    let said = &outcome.said;
    let stopped = outcome.lines("stopped ");
    ensure!(stopped.len() == 1, "it did not stop: {said:#?}");
    ensure!(stopped[0].contains(fault.error.1), "the reason does not name the fault: {}", stopped[0]);
    ensure!(stopped[0].contains("segment 0"), "the reason does not name the place: {}", stopped[0]);
    ensure!(stopped[0].contains("restart"), "the reason does not say what to do: {}", stopped[0]);
    let late = outcome.lines("refused unavailable late");
    ensure!(late.len() == 1 && late[0].contains(fault.error.1), "who comes later is not told why: {said:#?}");
    ensure!(outcome.lines("refused otherwise").is_empty(), "refused for another reason: {said:#?}");
    ensure!(outcome.lines("closed").len() == 1, "it does not close: {said:#?}");
    Ok(())
}

/// Faults of the live segment's log, at several places.
fn of_the_log(class: &'static str, error: (u32, &'static str), times: u32) -> Vec<Fault> {
    [(1, 1), (40, 2), (300, 3), (700, 1)]
        .into_iter()
        .map(|(after, nth)| Fault { class, on: "db", after, nth, error, times })
        .collect()
}

async fn the_journal_stops(faults: Vec<Fault>) -> anyhow::Result<()> {
    let (count, mut stopped) = (faults.len(), 0);
    for (seed, fault) in (1..).zip(faults) {
        let outcome = load_on(fault, seed).await.with_context(|| format!("{fault:?}"))?;
        let acknowledged = outcome.acknowledged.0.len();
        println!(
            "{fault:?}: {acknowledged} acknowledged, {} calls failed, {} refused; stopped: {:?}",
            outcome.faults,
            outcome.lines("refused ").len(),
            outcome.lines("stopped ")
        );
        if fault.times == 1 && acknowledged as u64 == COMMITS + 1 {
            continue; // it hit a full segment that was being closed: all in it had been synced before
        }
        assert_stopped(&outcome, fault).with_context(|| format!("{fault:?}"))?;
        stopped += 1;
    }
    ensure!(stopped + 1 >= count, "it stopped {stopped} of {count} times");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_journal_and_loses_nothing() -> anyhow::Result<()> {
    the_journal_stops(of_the_log("write", ENOSPC, ALWAYS)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_turns_read_only_stops_the_journal_and_loses_nothing() -> anyhow::Result<()> {
    the_journal_stops(of_the_log("all", EROFS, ALWAYS)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_once_stops_the_journal_and_loses_nothing() -> anyhow::Result<()> {
    the_journal_stops(of_the_log("write", EIO, 1)).await
}

/// Once is enough: the kernel may have dropped what it could not write, and calls the next sync a success.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_once_stops_the_journal_and_loses_nothing() -> anyhow::Result<()> {
    the_journal_stops(of_the_log("sync", EIO, 1)).await
}

/// What cannot be opened says so, names the folder or file, and leaves a folder that opens when the disk is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_opened_says_why_and_opens_when_the_disk_is_back() -> anyhow::Result<()> {
    let mut refused = 0;
    for (class, error) in [("all", ENOSPC), ("all", EROFS), ("all", EIO), ("sync", EIO)] {
        for nth in [1, 2, 3, 5, 8, 13, 21, 34] {
            let fault = Fault { class, on: "*", after: 0, nth, error, times: ALWAYS };
            let outcome = load_on(fault, u64::from(nth)).await.with_context(|| format!("{fault:?}"))?;
            let why = outcome.lines("not opened: ");
            let opened = outcome.lines("opened").len() == 1;
            ensure!(opened || why.len() == 1, "{fault:?}: neither opened nor refused: {:#?}", outcome.said);
            for why in why {
                refused += 1;
                ensure!(why.contains(error.1), "{fault:?}: it does not name the fault: {why}");
                ensure!(why.contains("/log"), "{fault:?}: it does not name the place: {why}");
            }
            let acknowledged = outcome.acknowledged.0.len();
            ensure!(opened || acknowledged == 0, "{fault:?}: not opened, and acknowledged");
        }
    }
    assert!(refused > 12, "hardly any of the faults hit the opening: {refused}");
    Ok(())
}

/// No room for another segment, but for the log itself: the old segment grows on, and nobody notices but the log on the console.
#[tokio::test(flavor = "multi_thread")]
async fn where_no_new_segment_can_be_made_the_old_one_grows_on() -> anyhow::Result<()> {
    for (nth, error) in [(1, ENOSPC), (3, ENOSPC), (2, EIO), (4, EROFS)] {
        let fault = Fault { class: "meta", on: "*", after: 100, nth, error, times: ALWAYS };
        let outcome = load_on(fault, 1).await.with_context(|| format!("{fault:?}"))?;
        let words = format!("{fault:?}: {:#?}", outcome.said);
        ensure!(outcome.lines("stopped ").is_empty() && outcome.lines("refused ").is_empty(), words);
        ensure!(outcome.acknowledged.0.len() as u64 == COMMITS + 1, words);
        ensure!(outcome.lines("unread ").is_empty(), words);
    }
    Ok(())
}

/// What only describes the log may fail without harm: it is made anew at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_or_mark_that_cannot_be_written_costs_nothing() -> anyhow::Result<()> {
    for on in ["000002.manifest.writing", "000002.begin.writing", "000001.mark", "000002.mark"] {
        for (class, error) in [("write", ENOSPC), ("all", EIO)] {
            let fault = Fault { class, on, after: 0, nth: 1, error, times: ALWAYS };
            let outcome = load_on(fault, 1).await.with_context(|| format!("{fault:?}"))?;
            let words = format!("{fault:?}: {:#?}", outcome.said);
            if on == "000001.mark" && class == "all" {
                // Made at the opening, which fails then.
                ensure!(outcome.lines("not opened: ").len() == 1, words);
                continue;
            }
            ensure!(outcome.lines("stopped ").is_empty() && outcome.lines("refused ").is_empty(), words);
            ensure!(outcome.acknowledged.0.len() as u64 == COMMITS + 1, words);
            ensure!(outcome.lines("unread ").is_empty(), words);
        }
    }
    Ok(())
}
