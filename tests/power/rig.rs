//! The load under the shim, and what must hold of a folder found after a fault.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hasher},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, RawEvent, StreamId, StreamKind, Writer},
    ids::{Epoch, Incarnation, Version},
    journal::{AppendError, Cursor, Followed, Journal, read_all},
    sled_journal::{JournalSettings, SledJournal},
    time::Timestamp,
};

use crate::disk::Record;

const FOLDER: &str = "ROOMLOG_POWER_FOLDER";
const SEED: &str = "ROOMLOG_POWER_SEED";
const COMMITS: &str = "ROOMLOG_POWER_COMMITS";

/// Streams that are written to at once.
const WRITERS: usize = 16;

/// A child that neither ends nor gets on is a hang. A busy two-core machine gets this.
const HANG: Duration = Duration::from_secs(60);

/// Closes segments several times a second, so that cuts and faults hit that too.
pub fn settings() -> JournalSettings {
    JournalSettings { segment_bytes: 192 << 10, recent_commits: 64, ..JournalSettings::default() }
}

/// Builds the shim once.
pub fn shim() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("power/shim.c");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (own, out) = (folder.join(format!("power-{}.so", std::process::id())), folder.join("power.so"));
        let done = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&own, &source])
            .output()
            .map_err(|error| format!("the shim needs a C compiler named cc: {error}"))?;
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into());
        }
        // Others may be using the one before: replaced, not written over.
        std::fs::rename(&own, &out).map_err(|error| format!("{}: {error}", out.display()))?;
        Ok(out)
    });
    built.clone().map_err(anyhow::Error::msg)
}

/// What is written to a commit's stream next.
fn next(stream: &StreamId, head: Option<Head>, rng: &mut StdRng) -> Commit {
    // The same time for all: these tests are about storage.
    let time = Timestamp(1_795_359_845_000_000);
    let size = if rng.random_bool(0.02) { rng.random_range(0..60_000) } else { rng.random_range(0..600) };
    let mut data = vec![0; size];
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

fn digest(commit: &Commit) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&commit.encode());
    hasher.finish()
}

/// The child's part: does nothing unless this process was started by [`Load::start`].
pub async fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seed = number(SEED).unwrap_or(0);
    let left = Arc::new(AtomicU64::new(number(COMMITS).unwrap_or(u64::MAX)));
    say(""); // ends the line the test harness began
    let opened = SledJournal::open(folder, settings());
    let journal = match opened {
        Ok((journal, report)) => {
            for finding in report.findings {
                say(&format!("finding {finding}"));
            }
            journal
        }
        Err(error) => return say(&format!("not opened: {error}")),
    };
    say("opened");
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| tokio::spawn(write(journal.clone(), w, seed << 8 | w as u64, left.clone())))
        .collect();
    for writer in writers {
        if let Err(error) = writer.await {
            say(&format!("panic {error}"));
        }
    }
    if let Some(reason) = journal.stopped() {
        say(&format!("stopped {reason}"));
    }
    // What a room would meet that comes now.
    let mut rng = StdRng::seed_from_u64(seed);
    let late = StreamId::new(StreamKind::Service, &format!("late{seed}")).expect("a plain id");
    let commit = next(&late, None, &mut rng);
    match journal.append(commit.clone()).await {
        Ok(()) => acknowledge(&commit),
        Err(error) => refused("late", &error),
    }
    for w in 0..WRITERS {
        let stream = StreamId::new(StreamKind::Service, &format!("w{w}")).expect("a plain id");
        match read_all(&journal, &stream, Version(1)).await {
            Ok(commits) => say(&format!("reads {}", commits.len())),
            Err(error) => say(&format!("unread {stream}: {error}")),
        }
    }
    journal.close().await;
    say("closed");
}

async fn write(journal: SledJournal, w: usize, seed: u64, left: Arc<AtomicU64>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let stream = StreamId::new(StreamKind::Service, &format!("w{w}")).expect("a plain id");
    let mut head = match journal.head(&stream).await {
        Ok(head) => head,
        Err(error) => return say(&format!("unreadable {stream}: {error}")),
    };
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
        let commit = next(&stream, head, &mut rng);
        match journal.append(commit.clone()).await {
            Ok(()) => acknowledge(&commit),
            Err(error) => return refused(&stream.to_string(), &error),
        }
        head = Some(commit.head());
    }
}

fn acknowledge(commit: &Commit) {
    say(&format!("ack {} {} {} {:016x}", commit.stream, commit.version, commit.id, digest(commit)));
}

fn refused(what: &str, error: &AppendError) {
    let kind = match error {
        AppendError::Unavailable { .. } => "unavailable",
        AppendError::Unknown { .. } => "unknown",
        _ => "otherwise",
    };
    say(&format!("refused {kind} {what}: {error}"));
}

/// One line in one write, so that it is said whole or not at all.
fn say(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
}

/// A process that appends to a journal on the disk of the shim.
pub struct Load {
    child: Child,
    record: PathBuf,
    /// Ended with the process.
    _folder: tempfile::TempDir,
}

impl Load {
    /// Starts this test binary's test `child` on `folder`; after `commits` it closes the journal, if that is given.
    pub fn start(
        folder: &Path,
        seed: u64,
        commits: Option<u64>,
        environment: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let own = tempfile::tempdir()?;
        let record = own.path().join("record");
        std::fs::write(&record, b"")?;
        let errors = std::fs::File::create(own.path().join("stderr"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
            .env("LD_PRELOAD", shim()?)
            .env("POWER_DIR", folder)
            .env("POWER_LOG", &record)
            .env("POWER_SYNC_US", "2000")
            .env(FOLDER, folder)
            .env(SEED, seed.to_string())
            .envs(commits.map(|n| (COMMITS, n.to_string())))
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        Ok(Self { child: command.spawn()?, record, _folder: own })
    }

    /// Whether it has begun to append.
    fn appends(&self) -> anyhow::Result<bool> {
        let record = std::fs::read(&self.record)?;
        Ok(record.windows(4).any(|four| four == b"ack "))
    }

    /// Waits until it appends, then `life` more, then ends it with SIGKILL. Gives its record.
    pub fn kill_after(mut self, life: Duration) -> anyhow::Result<Vec<u8>> {
        let began = Instant::now();
        while !self.appends()? {
            if let Some(status) = self.child.try_wait()? {
                bail!("the load ended by itself: {status}; {}", self.errors());
            }
            ensure!(began.elapsed() < HANG, "the load does not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(life);
        self.child.kill()?;
        self.child.wait()?;
        Ok(std::fs::read(&self.record)?)
    }

    /// Waits until it ends by itself. Gives its record, and what it wrote to standard error.
    pub fn ended(mut self) -> anyhow::Result<(Vec<u8>, String)> {
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > HANG {
                self.child.kill()?;
                self.child.wait()?;
                bail!("the load hangs; it said {:?}; {}", said(&std::fs::read(&self.record)?), self.errors());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let errors = self.errors();
        Ok((std::fs::read(&self.record)?, errors))
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self._folder.path().join("stderr")).unwrap_or_default()
    }
}

/// The lines a record has, but for acknowledgements.
pub fn said(record: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    for record in crate::disk::records(record) {
        if let Record::Said { text } = record {
            let text = String::from_utf8_lossy(text);
            lines.extend(text.lines().filter(|l| !l.starts_with("ack ") && !l.is_empty()).map(str::to_owned));
        }
    }
    lines
}

/// What was acknowledged, by commit id: the digest of its bytes.
#[derive(Debug, Clone, Default)]
pub struct Acknowledged(pub BTreeMap<String, u64>);

impl Acknowledged {
    /// Notes what a record says.
    pub fn note(&mut self, record: &Record<'_>) {
        let Record::Said { text } = record else { return };
        for line in String::from_utf8_lossy(text).lines().filter(|line| line.starts_with("ack ")) {
            let parts: Vec<&str> = line.split(' ').collect();
            let [_, _, _, id, digest] = parts[..] else { panic!("no acknowledgement: {line}") };
            self.0.insert(id.to_owned(), u64::from_str_radix(digest, 16).expect("hexadecimal"));
        }
    }
}

/// Everything a journal gives, in order; streams must join up and reads agree with the follow.
pub async fn everything(journal: &SledJournal) -> anyhow::Result<HashMap<String, Arc<Commit>>> {
    let mut all = HashMap::new();
    let mut streams: BTreeMap<StreamId, Vec<Arc<Commit>>> = BTreeMap::new();
    let mut follow = journal.follow(Cursor::default()).await?;
    while let Some(followed) = follow.next().await {
        match followed {
            Followed::Entry(entry) => {
                let commit = entry.commit;
                let so_far = streams.entry(commit.stream.clone()).or_default();
                let head = so_far.last().map(|last| last.head());
                ensure!(
                    commit.follows(head.as_ref()),
                    "the chain of {} breaks at {}",
                    commit.stream,
                    commit.version
                );
                so_far.push(commit.clone());
                all.insert(commit.id.to_string(), commit);
            }
            Followed::CaughtUp => break,
            Followed::Broken(error) => bail!("the follow broke: {error}"),
        }
    }
    for (stream, followed) in streams {
        let read = read_all(journal, &stream, Version(1)).await?;
        ensure!(read == followed, "a read of {stream} gives something else than a follow");
        ensure!(journal.head(&stream).await? == followed.last().map(|last| last.head()), "another head");
    }
    Ok(all)
}

/// The law: what is found opens without damage, verify says clean, everything acknowledged is there to the byte, and appends go on. `data`
/// holds the journal in `log`. Gives how many unacknowledged commits were kept, too.
pub async fn assert_holds(data: &Path, acknowledged: &Acknowledged) -> anyhow::Result<usize> {
    let folder = data.join("log");
    let begun = folder.join("facts.json").exists();
    ensure!(begun || acknowledged.0.is_empty(), "there is no journal left");
    if begun && folder.join("segments").exists() {
        let verdict = verify(data)?;
        ensure!(verdict["clean"] == true, "replay verify finds {:#}", verdict["findings"]);
        let (reader, report) = SledJournal::open_read_only(&folder)?;
        ensure!(!report.is_damaged(), "opening read-only finds {:?}", report.findings);
        has_all(&reader, acknowledged).await.context("read only")?;
    }
    let (journal, report) = SledJournal::open(&folder, settings())?;
    ensure!(!report.is_damaged(), "opening finds {:?}", report.findings);
    let kept = has_all(&journal, acknowledged).await.with_context(|| format!("opened; {report:?}"))?;
    let mut rng = StdRng::seed_from_u64(1);
    for w in 0..3 {
        let stream = StreamId::new(StreamKind::Service, &format!("w{w}"))?;
        let head = journal.head(&stream).await?;
        journal.append(next(&stream, head, &mut rng)).await.context("appending afterwards")?;
    }
    journal.close().await;
    Ok(kept - acknowledged.0.len())
}

/// Looks for everything acknowledged; gives how many commits there are.
pub async fn has_all(journal: &SledJournal, acknowledged: &Acknowledged) -> anyhow::Result<usize> {
    let all = everything(journal).await?;
    let lost = acknowledged.0.keys().filter(|id| !all.contains_key(*id)).count();
    ensure!(lost == 0, "LOST: {lost} of {} acknowledged commits are not there", acknowledged.0.len());
    for (id, expected) in &acknowledged.0 {
        ensure!(digest(&all[id]) == *expected, "commit {id} is not what was acknowledged");
    }
    Ok(all.len())
}

/// What `roomlog replay verify` says.
pub fn verify(data: &Path) -> anyhow::Result<serde_json::Value> {
    let out = Command::new(roomlog_tests::roomlog_bin())
        .args(["replay", "--json", "--data"])
        .arg(data)
        .arg("verify")
        .output()?;
    serde_json::from_slice(&out.stdout)
        .with_context(|| format!("replay verify gives no JSON: {}", String::from_utf8_lossy(&out.stderr)))
}
