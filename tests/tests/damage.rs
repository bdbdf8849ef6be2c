//! A damaged log: whatever is done to its files, it is noticed and named, what is damaged is set aside and never served, and no
//! acknowledged commit is missing without a word.
//!
//! The law every case is held to: each commit that is served is, to the byte, one that was acknowledged; and if one is missing, opening or
//! reading it says so, `roomlog replay verify` says so before and after opening, and its stream is not served as if it were whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, RawEvent, StreamId, StreamKind, Writer},
    ids::{Epoch, Incarnation, Version},
    journal::{AppendError, Cursor, Followed, Journal, ReadError, read_all},
    sled_journal::{Finding, JournalSettings, OpenReport, SledJournal},
    time::Timestamp,
};

/// Streams in the sample.
const STREAMS: usize = 6;

/// Rounds of one commit each, before and after the old copy is taken.
const ROUNDS: (usize, usize) = (22, 24);

/// Segments of some forty commits.
fn settings() -> JournalSettings {
    JournalSettings { segment_bytes: 32 << 10, recent_commits: 8, ..JournalSettings::default() }
}

/// Places in each file that are damaged, twice. `ROOMLOG_DAMAGE_PLACES` asks for more.
const PLACES: usize = 1;

/// A log of several closed segments and a live one, an older copy of it, and what was acknowledged.
struct Sample {
    root: tempfile::TempDir,
    written: BTreeMap<StreamId, Vec<Commit>>,
    live: u32,
    /// The live segment of the older copy.
    old_live: u32,
}

impl Sample {
    async fn new() -> anyhow::Result<Self> {
        let root = tempfile::tempdir()?;
        let mut written = BTreeMap::new();
        let mut rng = StdRng::seed_from_u64(6);
        let log = root.path().join("log");
        append(&log, ROUNDS.0, &mut written, &mut rng).await?;
        let old_live = newest(&log)?;
        copy(&log, &root.path().join("old"))?;
        append(&log, ROUNDS.1, &mut written, &mut rng).await?;
        let live = newest(&log)?;
        ensure!(old_live > 3 && live > old_live + 1, "several segments each: {old_live}, {live}");
        let blocks =
            |folder: &str| blocks(&root.path().join(folder).join(format!("segments/{old_live:06}/db")));
        ensure!(blocks("old")?.len() < blocks("log")?.len(), "the segment that was live then went on");
        Ok(Self { root, written, live, old_live })
    }

    fn log(&self) -> PathBuf {
        self.root.path().join("log")
    }

    fn old(&self) -> PathBuf {
        self.root.path().join("old")
    }

    fn count(&self) -> usize {
        self.written.values().map(Vec::len).sum()
    }
}

/// The next commit of a stream. Of services, of whose events verify asks nothing but that NUVE wrote them.
fn next(stream: &StreamId, head: Option<Head>, rng: &mut StdRng) -> Commit {
    let time = Timestamp(1_795_359_845_000_000);
    let mut data = vec![0; rng.random_range(100..900)];
    rng.fill_bytes(&mut data);
    Commit {
        id: CommitId::new(time, rng),
        prev: head.map(|head| head.id),
        stream: stream.clone(),
        version: head.map_or(Version(1), |head| head.version.next()),
        time,
        writer: Writer { node: "nuve.load".parse().expect("a plain id"), incarnation: Incarnation(1) },
        epoch: Epoch(1),
        cause: Cause::of("timer"),
        command: Payload::default(),
        facts: Payload::default(),
        events: vec![RawEvent::new("LoadApplied", 1, Payload::encode(&data))],
        more: Default::default(),
    }
}

async fn append(
    log: &Path,
    rounds: usize,
    written: &mut BTreeMap<StreamId, Vec<Commit>>,
    rng: &mut StdRng,
) -> anyhow::Result<()> {
    let (journal, _) = SledJournal::open(log, settings())?;
    for _ in 0..rounds {
        for s in 0..STREAMS {
            let stream = StreamId::new(StreamKind::Service, &format!("s{s}"))?;
            let so_far = written.entry(stream.clone()).or_default();
            let commit = next(&stream, so_far.last().map(Commit::head), rng);
            journal.append(commit.clone()).await?;
            so_far.push(commit);
        }
    }
    journal.close().await;
    Ok(())
}

fn newest(log: &Path) -> anyhow::Result<u32> {
    let mut newest = 0;
    for entry in fs::read_dir(log.join("segments"))? {
        newest = newest.max(entry?.file_name().to_str().and_then(|name| name.parse().ok()).unwrap_or(0));
    }
    Ok(newest)
}

// ---- what is done to files ---------------------------------------------------------------------------------------------------

/// Copies a folder, leaving out what is zero: sled's files are mostly that.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
            continue;
        }
        let content = fs::read(entry.path())?;
        let file = fs::File::create(target)?;
        file.set_len(content.len() as u64)?;
        for (i, page) in content.chunks(65_536).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0)) {
            file.write_all_at(page, i as u64 * 65_536)?;
        }
    }
    Ok(())
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { all.extend(files(&path)?) } else { all.push(path) }
    }
    all.sort();
    Ok(all)
}

fn flip(path: &Path, at: u64, bit: u8) -> anyhow::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1 << bit], at)?)
}

fn cut(path: &Path, length: u64) -> anyhow::Result<()> {
    Ok(fs::OpenOptions::new().write(true).open(path)?.set_len(length)?)
}

/// Replaces `to` by `from`.
fn replace(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.is_dir() {
        fs::remove_dir_all(to)?;
    }
    if from.is_dir() { copy(from, to) } else { Ok(fs::copy(from, to).map(drop)?) }
}

/// Where a file's content ends: what follows in sled's is zero.
fn end(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::read(path)?.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1))
}

/// Offsets of the blocks in a file.
fn blocks(path: &Path) -> anyhow::Result<Vec<u64>> {
    let content = fs::read(path)?;
    Ok(content.windows(8).enumerate().filter(|(_, w)| w == b"rlblock\x01").map(|(at, _)| at as u64).collect())
}

// ---- the law -----------------------------------------------------------------------------------------------------------------

/// What a case came to.
#[derive(Debug, Default)]
struct Verdict {
    /// Why it was not opened at all.
    refused: Option<String>,
    report: OpenReport,
    /// Commits that are not served any more.
    missing: usize,
    /// Whether verify was content, before opening put things right, and after.
    clean: (bool, bool),
    /// All findings in words.
    words: String,
}

/// What a journal serves, by read and by follow over the gaps.
async fn serve(
    journal: &SledJournal,
    sample: &Sample,
) -> anyhow::Result<(BTreeSet<CommitId>, BTreeSet<StreamId>)> {
    let mut served = BTreeSet::new();
    let mut failed = BTreeSet::new();
    for (stream, commits) in &sample.written {
        match read_all(journal, stream, Version(1)).await {
            Ok(read) => {
                ensure!(read.len() <= commits.len(), "{stream} has more than was written");
                for (read, written) in read.iter().zip(commits) {
                    ensure!(
                        read.encode() == written.encode(),
                        "SERVED WRONG: {stream} at {}",
                        written.version
                    );
                    served.insert(read.id);
                }
            }
            Err(ReadError::Damaged { .. }) => drop(failed.insert(stream.clone())),
            Err(error) => return Err(error.into()),
        }
    }
    let by_id: BTreeMap<CommitId, &Commit> = sample.written.values().flatten().map(|c| (c.id, c)).collect();
    let tail = journal.tail().await?.0[0];
    let mut seen = 0;
    while seen < tail {
        let mut follow = journal.follow(Cursor(vec![seen])).await?;
        while let Some(followed) = follow.next().await {
            match followed {
                Followed::Entry(entry) => {
                    ensure!(entry.cursor.0[0] == seen + 1, "a follow leaves out {} unsaid", seen + 1);
                    seen += 1;
                    let written = by_id.get(&entry.commit.id).context("SERVED WRONG: nobody wrote it")?;
                    ensure!(entry.commit.encode() == written.encode(), "SERVED WRONG: sequence {seen}");
                    served.insert(entry.commit.id);
                }
                Followed::CaughtUp => break,
                Followed::Broken(_) => {
                    seen += 1;
                    break;
                }
            }
        }
    }
    Ok((served, failed))
}

/// `roomlog replay verify`: whether it is clean, and its findings in words. A journal it cannot open is not clean.
fn verify(data: &Path) -> anyhow::Result<(bool, String)> {
    let out = Command::new(roomlog_tests::roomlog_bin())
        .args(["replay", "--json", "--data"])
        .arg(data)
        .arg("verify")
        .output()?;
    match serde_json::from_slice::<serde_json::Value>(&out.stdout) {
        Ok(verdict) => {
            ensure!(verdict["clean"] == out.status.success(), "the exit status says something else");
            Ok((verdict["clean"] == true, verdict["findings"].to_string()))
        }
        Err(_) => {
            ensure!(!out.status.success(), "it says nothing and calls that a success");
            Ok((false, String::from_utf8_lossy(&out.stderr).into()))
        }
    }
}

/// Does `damage` to a copy of the sample and holds what follows to the law.
async fn judge(sample: &Sample, damage: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Verdict> {
    let root = tempfile::tempdir()?;
    let log = root.path().join("log");
    copy(&sample.log(), &log)?;
    damage(&log)?;
    let mut verdict = Verdict::default();
    let (clean_before, words) = verify(root.path())?;
    verdict.words = words;
    if let Ok((reader, _)) = SledJournal::open_read_only(&log) {
        let (served, _) = serve(&reader, sample).await.context("read only")?;
        ensure!(served.len() == sample.count() || !clean_before, "missing read-only, and verify is content");
    }
    let before = files(&log)?;
    let (journal, report) = match SledJournal::open(&log, settings()) {
        Ok(opened) => opened,
        Err(error) => {
            ensure!(!clean_before, "it does not open ({error}), and verify is content");
            ensure!(files(&log)? == before, "it refused to open, and changed files");
            verdict.refused = Some(error.to_string());
            return Ok(verdict);
        }
    };
    for finding in &report.findings {
        write!(verdict.words, "\n{finding}")?;
        if let Finding::SetAside { moved_to, .. } = finding {
            ensure!(moved_to.is_dir(), "{} is not there", moved_to.display());
        }
    }
    let (served, failed) = serve(&journal, sample).await?;
    verdict.missing = sample.count() - served.len();
    if verdict.missing > 0 {
        ensure!(
            report.is_damaged() || !failed.is_empty(),
            "MISSING UNSAID: {} at open; {report:?}",
            verdict.missing
        );
        ensure!(!clean_before, "MISSING UNSAID: {} by verify, before opening", verdict.missing);
    }
    // Behind a gap nothing is appended; elsewhere work goes on, and no sequence is used twice.
    let mut rng = StdRng::seed_from_u64(1);
    let tail = journal.tail().await?.0[0];
    for (stream, commits) in &sample.written {
        let whole = commits.iter().all(|commit| served.contains(&commit.id));
        let commit = next(stream, commits.last().map(Commit::head), &mut rng);
        match journal.append(commit).await {
            // Of damage in a closed segment a stream's head does not suffer; but then a read of the stream fails.
            Ok(()) => {
                ensure!(whole || failed.contains(stream), "{stream} goes on as if nothing were missing")
            }
            Err(AppendError::Unavailable { .. } | AppendError::Conflict { .. }) if !whole => {}
            Err(error) => return Err(error).context(format!("appending to {stream}")),
        }
    }
    ensure!(verdict.missing == 0 || tail + 1 > served.len() as u64, "a sequence is used twice");
    journal.close().await;
    let (clean_after, more) = verify(root.path())?;
    ensure!(
        verdict.missing == 0 || !clean_after,
        "MISSING UNSAID: {} by verify, after opening",
        verdict.missing
    );
    write!(verdict.words, "\nafterwards: {more}")?;
    verdict.clean = (clean_before, clean_after);
    verdict.report = report;
    Ok(verdict)
}

// ---- cases by name -----------------------------------------------------------------------------------------------------------

/// What must come of a case, beyond the law.
#[derive(Debug, Clone, Copy)]
enum Expected {
    /// It is not opened, for this reason.
    Refused(&'static str),
    /// Commits are missing, and the report has this.
    Lost(&'static str),
    /// Nothing is missing, and the report has this.
    Rebuilt(&'static str),
    /// Nothing is missing; what was damaged is not needed.
    Whole,
}

/// Done to one file.
type FileDamage = Box<dyn Fn(&Path) -> anyhow::Result<()>>;

/// Done to a log's folder.
type Damage = Box<dyn Fn(&Path, &Sample) -> anyhow::Result<()>>;

fn cases() -> Vec<(&'static str, Expected, Damage)> {
    use Expected::*;
    fn case(
        name: &'static str,
        expected: Expected,
        damage: impl Fn(&Path, &Sample) -> anyhow::Result<()> + 'static,
    ) -> (&'static str, Expected, Damage) {
        (name, expected, Box::new(damage))
    }
    let seg = |log: &Path, number: u32| log.join(format!("segments/{number:06}"));
    let side = |log: &Path, number: u32, what: &str| log.join(format!("segments/{number:06}.{what}"));
    let block = |path: &Path, n: usize| anyhow::Ok(blocks(path)?[n]);
    vec![
        case("a byte of a block in a closed segment", Lost("segment 000002"), move |log, _| {
            let db = seg(log, 2).join("db");
            flip(&db, block(&db, 3)? + 90, 2)
        }),
        case("a byte of a block in the live segment", Lost("checksum does not hold"), move |log, s| {
            let db = seg(log, s.live).join("db");
            flip(&db, block(&db, 1)? + 90, 2)
        }),
        case("the length in a block's header", Lost("segment 000003"), move |log, _| {
            let db = seg(log, 3).join("db");
            flip(&db, block(&db, 2)? + 14, 1)
        }),
        case("a closed segment cut off", Lost("it was cut off"), move |log, _| {
            let db = seg(log, 2).join("db");
            cut(&db, block(&db, 5)? + 10)
        }),
        case("the live segment cut off", Lost("are missing"), move |log, s| {
            let db = seg(log, s.live).join("db");
            cut(&db, block(&db, 2)? + 10)
        }),
        case("a closed segment emptied", Lost("it was cut off"), move |log, _| {
            cut(&seg(log, 2).join("db"), 0)
        }),
        case(
            "a closed segment's folder deleted",
            Lost("the files of segment 000003 are gone"),
            move |log, _| Ok(fs::remove_dir_all(seg(log, 3))?),
        ),
        case("a closed segment's folder and manifest deleted", Lost("segment 000003"), move |log, _| {
            fs::remove_dir_all(seg(log, 3))?;
            Ok(fs::remove_file(side(log, 3, "manifest"))?)
        }),
        case("a closed segment deleted with all beside it", Lost("are missing"), move |log, _| {
            fs::remove_dir_all(seg(log, 3))?;
            for what in ["manifest", "begin", "mark"] {
                let _ = fs::remove_file(side(log, 3, what));
            }
            Ok(())
        }),
        case("the first segment deleted with all beside it", Lost("are missing"), move |log, _| {
            fs::remove_dir_all(seg(log, 1))?;
            for what in ["manifest", "begin", "mark"] {
                let _ = fs::remove_file(side(log, 1, what));
            }
            Ok(())
        }),
        case("the live segment's folder deleted", Lost("are gone"), move |log, s| {
            Ok(fs::remove_dir_all(seg(log, s.live))?)
        }),
        case("an older copy of a segment that was live then", Lost("older copy"), move |log, s| {
            replace(&seg(&s.old(), s.old_live), &seg(log, s.old_live))?;
            // As restored from a backup of then, where it had no manifest.
            Ok(fs::remove_file(side(log, s.old_live, "manifest"))?)
        }),
        case("an older copy of that segment under its manifest", Lost("000"), move |log, s| {
            replace(&seg(&s.old(), s.old_live), &seg(log, s.old_live))
        }),
        case("two segments in each other's place", Lost("segment 000002"), move |log, _| {
            fs::rename(seg(log, 2), seg(log, 99))?;
            fs::rename(seg(log, 3), seg(log, 2))?;
            Ok(fs::rename(seg(log, 99), seg(log, 3))?)
        }),
        case("a manifest with a changed byte", Rebuilt("manifest made anew"), move |log, _| {
            flip(&side(log, 2, "manifest"), 60, 3)
        }),
        case("a manifest cut off", Rebuilt("manifest made anew"), move |log, _| {
            cut(&side(log, 2, "manifest"), 30)
        }),
        case("a manifest deleted", Rebuilt("manifest made anew"), move |log, _| {
            Ok(fs::remove_file(side(log, 2, "manifest"))?)
        }),
        case("another segment's manifest", Rebuilt("another segment"), move |log, _| {
            replace(&side(log, 3, "manifest"), &side(log, 2, "manifest"))
        }),
        case("a begin file with a changed byte", Whole, move |log, _| flip(&side(log, 3, "begin"), 20, 0)),
        case("a begin file deleted", Whole, move |log, _| Ok(fs::remove_file(side(log, 3, "begin"))?)),
        case("the mark deleted", Whole, move |log, s| Ok(fs::remove_file(side(log, s.live, "mark"))?)),
        case("the facts with a changed byte in the journal's id", Refused("facts"), |log, _| {
            let facts = log.join("facts.json");
            let at = fs::read_to_string(&facts)?.find("\"journal\": \"").context("the id")? + 15;
            let digit = fs::read(&facts)?[at];
            // Another hexadecimal digit.
            let file = fs::OpenOptions::new().write(true).open(&facts)?;
            Ok(file.write_all_at(if digit == b'0' { b"1" } else { b"0" }, at as u64)?)
        }),
        case("the facts with another number of partitions", Refused("facts"), |log, _| {
            let facts = log.join("facts.json");
            let text = fs::read_to_string(&facts)?;
            Ok(fs::write(&facts, text.replace("\"partitions\": 4", "\"partitions\": 5"))?)
        }),
        case("the facts cut off", Refused("facts"), |log, _| cut(&log.join("facts.json"), 20)),
        case("the facts deleted", Refused("no journal"), |log, _| {
            Ok(fs::remove_file(log.join("facts.json"))?)
        }),
        case("sled's settings of the live segment damaged", Rebuilt("segment 0000"), move |log, s| {
            flip(&seg(log, s.live).join("conf"), 10, 0)
        }),
        case("sled's settings of a closed segment damaged", Whole, move |log, _| {
            flip(&seg(log, 2).join("conf"), 10, 0)
        }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_noticed_named_and_never_served() -> anyhow::Result<()> {
    let sample = Sample::new().await?;
    let mut failures = Vec::new();
    for (name, expected, damage) in cases() {
        let result = judge(&sample, |log| damage(log, &sample)).await.and_then(|verdict| {
            println!(
                "{name}: {} missing, refused {:?}, clean {:?}",
                verdict.missing, verdict.refused, verdict.clean
            );
            let Verdict { refused, missing, words, .. } = &verdict;
            match expected {
                Expected::Refused(why) => {
                    ensure!(
                        refused.as_ref().is_some_and(|r| r.contains(why)),
                        "not refused for {why:?}: {verdict:#?}"
                    )
                }
                Expected::Lost(why) => {
                    ensure!(refused.is_none() && *missing > 0, "nothing was lost: {verdict:#?}");
                    ensure!(words.contains(why), "{why:?} is not said: {words}");
                }
                Expected::Rebuilt(why) => {
                    ensure!(refused.is_none() && *missing == 0, "lost: {verdict:#?}");
                    ensure!(words.contains(why), "{why:?} is not said: {words}");
                }
                Expected::Whole => ensure!(refused.is_none() && *missing == 0, "lost: {verdict:#?}"),
            }
            Ok(())
        });
        if let Err(error) = result {
            failures.push(format!("{name}: {error:#}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undamaged_log_is_clean() -> anyhow::Result<()> {
    let sample = Sample::new().await?;
    let verdict = judge(&sample, |_| Ok(())).await?;
    assert_eq!(
        (verdict.missing, verdict.clean, &*verdict.report.findings),
        (0, (true, true), &[][..]),
        "{verdict:#?}"
    );
    Ok(())
}

/// A whole folder copied back is a log like any other, only shorter: nothing in it can tell. Whoever saw more of it can.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_whole_log_serves_nothing_wrong_and_is_noticed_by_who_saw_more()
-> anyhow::Result<()> {
    let sample = Sample::new().await?;
    let seen = sample.count() as u64;
    let (journal, report) = SledJournal::open(sample.old(), settings())?;
    assert_eq!(report.findings, []);
    for (stream, written) in &sample.written {
        let read = read_all(&journal, stream, Version(1)).await?;
        assert_eq!(read.len(), ROUNDS.0);
        assert!(read.iter().zip(written).all(|(read, written)| read.encode() == written.encode()));
    }
    let error =
        journal.follow(Cursor(vec![seen])).await.err().context("a cursor beyond the end was taken")?;
    assert!(
        matches!(&error, ReadError::Damaged { .. }) && error.to_string().contains("lost commits"),
        "{error}"
    );
    journal.close().await;
    Ok(())
}

/// Every file of the folder, at several places: the law alone.
#[tokio::test(flavor = "multi_thread")]
async fn every_file_may_be_damaged_anywhere() -> anyhow::Result<()> {
    let places: usize =
        std::env::var("ROOMLOG_DAMAGE_PLACES").ok().and_then(|n| n.parse().ok()).unwrap_or(PLACES);
    let sample = Sample::new().await?;
    let mut rng = StdRng::seed_from_u64(20_261_122);
    let (mut judged, mut lost, mut failures) = (0, 0, Vec::new());
    for path in files(&sample.log())? {
        let name = path.strip_prefix(sample.log())?.to_owned();
        let end = end(&path)?;
        let mut damages: Vec<(String, FileDamage)> =
            vec![("deleted".into(), Box::new(|path| Ok(fs::remove_file(path)?)))];
        for _ in 0..if end == 0 { 0 } else { places } {
            let (at, bit) = (rng.random_range(0..end), rng.random_range(0..8));
            damages
                .push((format!("bit {bit} of byte {at} flipped"), Box::new(move |path| flip(path, at, bit))));
            let length = rng.random_range(0..end);
            damages
                .push((format!("cut to {length} of {end} bytes"), Box::new(move |path| cut(path, length))));
        }
        for (what, damage) in damages {
            match judge(&sample, |log| damage(&log.join(&name))).await {
                Ok(verdict) => lost += usize::from(verdict.missing > 0),
                Err(error) => failures.push(format!("{} {what}: {error:#}", name.display())),
            }
            judged += 1;
        }
    }
    println!("{judged} damages, {lost} of them cost commits");
    assert!(failures.is_empty(), "{} of {judged}:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}
