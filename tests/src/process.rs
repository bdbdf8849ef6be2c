//! `roomlog up` as a process of its own, to be killed.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use roomlog_sfu::adoption::SocketName;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{http, roomlog_bin};

/// A start takes well under a second; a loaded two-core machine gets this.
const START_WITHIN: Duration = Duration::from_secs(30);

/// Requests under way are given three seconds; the log is closed after that.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// What a process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Resident memory, bytes.
    pub resident: u64,
    /// Open files and sockets.
    pub files: u64,
    /// Threads.
    pub threads: u64,
    /// Tokio tasks; 0 for a process that has no metrics.
    pub tasks: u64,
}

impl Held {
    /// What the system knows of `pid`.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
        };
        Ok(Self {
            resident: field("VmRSS:").unwrap_or(0) * 1024,
            files: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
            threads: field("Threads:").unwrap_or(0),
            tasks: 0,
        })
    }
}

/// What `roomlog replay` says of the folder, as JSON.
pub fn replay(data: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let out = std::process::Command::new(roomlog_bin())
        .args(["replay", "--json", "--data"])
        .arg(data)
        .args(arguments)
        .output()?;
    serde_json::from_slice(&out.stdout)
        .with_context(|| format!("replay {arguments:?}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// A running `roomlog up`. What is left of it ends when it is dropped.
pub struct Up {
    child: Child,
    data: PathBuf,
    /// `http://host:port`.
    pub origin: String,
    /// The demo service's publishable key.
    pub key: String,
}

impl Up {
    /// Starts it on `data` with these further flags, and waits until it serves.
    pub async fn start(data: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(data.join("up.log"))?;
        let mut child = Command::new(roomlog_bin())
            .args(["up", "--data"])
            .arg(data)
            .args(if flags.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] })
            .args(flags)
            // As deploy/up starts it.
            .env("MALLOC_ARENA_MAX", "1")
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start roomlog up")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let opened = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(url) = line.strip_prefix("Open ") {
                    return Ok(url.trim().trim_end_matches('/').to_owned());
                }
            }
            bail!(
                "roomlog up ended before it served: {}",
                std::fs::read_to_string(data.join("up.log")).unwrap_or_default()
            )
        };
        let origin = tokio::time::timeout(START_WITHIN, opened)
            .await
            .context("roomlog up does not serve in time")??;
        let demo = http::call_ok(&origin, "GET", "/v1/demo", None, None).await?;
        let key = demo["publishableKey"].as_str().context("no demo key")?.to_owned();
        Ok(Self { child, data: data.to_owned(), origin, key })
    }

    /// The demo service's secret key, from where it keeps it in `data`.
    pub fn secret(&self, data: &Path) -> anyhow::Result<String> {
        for entry in std::fs::read_dir(data)? {
            let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
            if let Some(at) = text.find("sk_") {
                return Ok(text[at..]
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect());
            }
        }
        bail!("no file in the data folder holds the demo service's secret key")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it has not been waited for")
    }

    /// Resident memory, bytes.
    pub fn resident(&self) -> anyhow::Result<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid()))?;
        let pages: u64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
        Ok(pages * 4096)
    }

    /// Its SFU workers.
    pub fn workers(&self) -> Vec<u32> {
        workers_on(&self.data)
    }

    /// A token for `user` in the room called `name`, made if it is not there.
    pub async fn token(&self, name: &str, user: &str) -> anyhow::Result<Value> {
        let body = serde_json::json!({ "user": user, "create": true });
        http::call_ok(
            &self.origin,
            "POST",
            &format!("/v1/rooms/name:{name}/tokens"),
            Some(&self.key),
            Some(&body),
        )
        .await
    }

    /// What it holds now.
    pub async fn held(&self) -> anyhow::Result<Held> {
        let text = http::call_text(&self.origin, "/metrics").await?;
        let tasks = text.lines().find_map(|line| line.strip_prefix("roomlog_tokio_tasks "));
        let mut held = Held::of(self.pid())?;
        held.tasks =
            tasks.and_then(|count| count.parse().ok()).context("no roomlog_tokio_tasks in /metrics")?;
        Ok(held)
    }

    /// SIGTERM, and waits until it has ended in order.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let asked = std::process::Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        anyhow::ensure!(asked.success(), "kill -TERM: {asked}");
        let ended = tokio::time::timeout(STOP_WITHIN, self.child.wait())
            .await
            .context("it does not stop when told to")??;
        anyhow::ensure!(ended.success(), "roomlog up ended with {ended}");
        Ok(())
    }

    /// SIGKILL, and waits until it is gone. Its workers end with it.
    pub async fn kill(mut self) {
        let _ = self.child.kill().await;
    }

    /// SIGKILL to it alone: its workers go on.
    pub async fn kill_alone(mut self) {
        let _ = self.child.kill().await;
        self.data = PathBuf::new();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        end_workers(&self.data);
    }
}

/// The SFU workers that run on the data folder of an EA, whichever process of it has started them, by number.
pub fn workers_on(data: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(data.join("workers")) else { return Vec::new() };
    let named = entries.filter_map(|entry| Some(SocketName::parse(entry.ok()?.file_name().to_str()?)?.pid));
    let mut found: Vec<u32> = named.filter(|pid| is_worker(*pid)).collect();
    found.sort_unstable();
    found
}

/// Whether a process runs as a worker, and its number was not given to another since.
fn is_worker(pid: u32) -> bool {
    // Of one that has ended and was not waited for there are no arguments any more (proc(5)).
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| argument == b"sfu-worker")
}

/// Ends the workers on a data folder. After the process that would replace them.
pub fn end_workers(data: &Path) {
    for pid in workers_on(data) {
        let _ = kill(pid);
    }
}

/// SIGKILL to one process.
pub fn kill(pid: u32) -> anyhow::Result<()> {
    let done = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    anyhow::ensure!(done.success(), "kill -9 {pid}: {done}");
    Ok(())
}
