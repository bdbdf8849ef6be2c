//! `roomlog up` as a process, and what the kernel says of it and its workers.

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// A start takes well under a second; a loaded machine gets this.
const START_WITHIN: Duration = Duration::from_secs(60);
/// Requests under way are given three seconds, and the log is closed after that.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// Limits are there and do not refuse.
const NO_LIMIT: &str = "1000000";

/// It ends when this is dropped, its workers with it.
pub(crate) struct Up {
    child: Child,
    pid: u32,
    /// `http://host:port`.
    pub(crate) origin: String,
}

impl Up {
    /// Starts this program as `roomlog up` on `data`, and waits until it serves.
    pub(crate) async fn start(data: &Path, flags: &[String]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .args(["up", "--listen", "127.0.0.1:0", "--log", "error", "--adopt-ms", "0"])
            .args(["--ip-per-s", NO_LIMIT, "--api-per-s", NO_LIMIT, "--data"])
            .arg(data)
            .args(flags)
            .env("MALLOC_ARENA_MAX", "1") // as `deploy/` starts it
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting roomlog up")?;
        let pid = child.id().context("it has ended at once")?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let opened = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(url) = line.strip_prefix("Open ") {
                    return Ok(url.trim().trim_end_matches('/').to_owned());
                }
            }
            bail!("roomlog up ended before it served; its standard error says why")
        };
        let origin = tokio::time::timeout(START_WITHIN, opened)
            .await
            .context("roomlog up does not serve in time")??;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, pid, origin })
    }

    /// CPU time of it and its workers so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut sum = cpu_of(self.pid)?;
        for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if parent_of(pid) == Some(self.pid) {
                sum += cpu_of(pid)?;
            }
        }
        Ok(sum)
    }

    /// Ends it in order.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.pid as i32).context("it has a process id")?;
        kill_process(pid, Signal::TERM).context("telling roomlog up to stop")?;
        let ended = tokio::time::timeout(STOP_WITHIN, self.child.wait())
            .await
            .context("roomlog up does not stop when told to")??;
        ensure!(ended.success(), "roomlog up ended with {ended}");
        Ok(())
    }
}

/// The process that started `pid` (`proc(5)`, stat, field 4), while it runs.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}

/// CPU time of all threads of a process that live, user and system, to the nanosecond.
pub(crate) fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    let folder = format!("/proc/{pid}/task");
    for thread in fs::read_dir(&folder).with_context(|| format!("reading {folder}"))? {
        // A thread that has ended meanwhile.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let first = text.split_whitespace().next().unwrap_or_default();
        sum += first.parse::<u64>().with_context(|| format!("schedstat of {pid}: {text}"))?;
    }
    Ok(Duration::from_nanos(sum))
}
