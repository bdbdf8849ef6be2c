//! A cluster of real processes: NATS servers, and `roomlog nuve`, `ec` and `ea` on them, to be killed, stopped and cut off.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use roomlog_bus::{
    conformance::nats_server::{NatsServer, Options, Servers, free_port},
    journal::Journal,
    nats::{JetStreamSettings, NatsConnection, NatsSettings},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    http,
    process::{end_workers, workers_on},
    proxy::Proxy,
    roomlog_bin,
};

/// A node that has not started by then will not.
const START_WITHIN: Duration = Duration::from_secs(30);
/// The admin key of every NUVE.
pub const ADMIN: &str = "ak_cluster";

/// What a cluster has.
#[derive(Debug, Clone)]
pub struct Shape {
    /// NATS servers: 1, or 3 with three replicas of everything.
    pub nats: usize,
    /// NUVE nodes, `n1`, `n2` …
    pub nuves: usize,
    /// EC nodes, `c1`, `c2` …
    pub ecs: usize,
    /// EA nodes, `a1`, `a2` …, each with so many workers.
    pub eas: Vec<usize>,
    /// More flags for every node.
    pub flags: Vec<String>,
    /// Requests per second that all NUVE nodes together admit.
    pub api_per_s: u32,
    /// Whether the first EA reaches NATS through a proxy that can be cut.
    pub proxied: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            nats: 1,
            nuves: 2,
            ecs: 2,
            eas: vec![2, 2],
            flags: Vec::new(),
            api_per_s: 200_000,
            proxied: false,
        }
    }
}

/// One process.
pub struct Node {
    /// `nuve`, `ec` or `ea`.
    pub role: &'static str,
    /// Its id.
    pub id: String,
    /// Where it serves HTTP, `http://host:port`.
    pub origin: String,
    child: Option<Child>,
    binary: PathBuf,
    data: PathBuf,
    flags: Vec<String>,
}

impl Node {
    async fn start(
        binary: PathBuf,
        role: &'static str,
        id: &str,
        folder: &Path,
        flags: Vec<String>,
    ) -> anyhow::Result<Self> {
        let data = folder.join(id);
        std::fs::create_dir_all(&data)?;
        let origin = format!("http://127.0.0.1:{}", free_port());
        let mut node = Self { role, id: id.to_owned(), origin, child: None, binary, data, flags };
        node.start_again().await?;
        Ok(node)
    }

    /// Starts it, at the address and on the folder it had.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut child = Command::new(&self.binary)
            .args([self.role, "--id", &self.id, "--listen", &self.origin["http://".len()..], "--data"])
            .arg(&self.data)
            .args(&self.flags)
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start roomlog")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let served = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains(" serves at ") {
                    return Ok(());
                }
            }
            bail!("{} {} ended before it served:\n{}", self.role, self.id, self.said())
        };
        tokio::time::timeout(START_WITHIN, served).await.context("it does not serve in time")??;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
        Ok(())
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("it runs")
    }

    /// Its process, while it runs.
    pub fn running(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// An EA's workers, whichever process of it has started them.
    pub fn workers(&self) -> Vec<u32> {
        workers_on(&self.data)
    }

    fn log(&self) -> PathBuf {
        self.data.join("process.log")
    }

    /// What it has logged.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// SIGKILL. An EA's workers go on.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().await;
        }
    }

    /// SIGKILL to it and to all it has started.
    pub async fn kill_with_workers(&mut self) -> anyhow::Result<()> {
        let mut pids = self.workers();
        pids.insert(0, self.pid());
        signal("-KILL", &pids)?;
        self.kill().await;
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    pub async fn terminate(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        signal("-TERM", &[self.pid()])?;
        let mut child = self.child.take().context("it runs")?;
        Ok(tokio::time::timeout(START_WITHIN, child.wait()).await.context("it does not end")??)
    }

    /// Waits for it to end by itself.
    pub async fn ended(&mut self, within: Duration) -> anyhow::Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("it runs")?;
        Ok(tokio::time::timeout(within, child.wait()).await.context("it does not end")??)
    }

    /// Lets it stand still with all it has started.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal_all("-STOP")
    }

    /// Lets it go on.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal_all("-CONT")
    }

    fn signal_all(&self, name: &str) -> anyhow::Result<()> {
        let mut pids = self.workers();
        pids.push(self.pid());
        signal(name, &pids)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
        }
        end_workers(&self.data);
    }
}

/// Sends a signal to processes.
pub fn signal(name: &str, pids: &[u32]) -> anyhow::Result<()> {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let done = std::process::Command::new("kill").arg(name).args(&pids).status()?;
    anyhow::ensure!(done.success(), "kill {name} {pids:?}: {done}");
    Ok(())
}

/// A cluster that runs. All its processes are killed when it is dropped.
pub struct Cluster {
    /// NATS.
    pub nats: Vec<NatsServer>,
    /// NUVE nodes.
    pub nuves: Vec<Node>,
    /// EC nodes.
    pub ecs: Vec<Node>,
    /// EA nodes.
    pub eas: Vec<Node>,
    /// The secret and the publishable key of a service.
    pub secret: String,
    /// The publishable key.
    pub key: String,
    /// Between the first EA and NATS, where that was asked for.
    pub proxy: Option<Proxy>,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts it; none, with a loud word, where there is no NATS server to start.
    pub async fn start(shape: Shape) -> anyhow::Result<Option<Self>> {
        let Some(servers) = Servers::find() else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("nats");
        let nats = match shape.nats {
            1 => vec![NatsServer::start(&servers.newest, &path, &Options::default())],
            count => NatsServer::cluster(&servers.newest, &path, count, &Options::default()),
        };
        let urls = nats.iter().map(NatsServer::url).collect::<Vec<_>>().join(",");
        let mut flags: Vec<String> =
            ["--nats", &urls, "--nats-replicas", if shape.nats == 1 { "1" } else { "3" }]
                .map(str::to_owned)
                .to_vec();
        flags.extend(shape.flags.iter().cloned());
        let proxy = match shape.proxied {
            true => Some(Proxy::start(nats[0].port()).await?),
            false => None,
        };
        let with = |more: &[&str]| {
            let mut flags = flags.clone();
            flags.extend(more.iter().map(|flag| (*flag).to_owned()));
            flags
        };
        let (mut nuves, mut ecs, mut eas) = (Vec::new(), Vec::new(), Vec::new());
        for i in 1..=shape.nuves {
            let flags = with(&[
                "--demo",
                "false",
                "--admin-key",
                ADMIN,
                "--ip-per-s",
                "100000",
                "--api-per-s",
                &shape.api_per_s.to_string(),
            ]);
            nuves.push(Node::start(roomlog_bin(), "nuve", &format!("n{i}"), folder.path(), flags).await?);
        }
        for i in 1..=shape.ecs {
            ecs.push(Node::start(roomlog_bin(), "ec", &format!("c{i}"), folder.path(), with(&[])).await?);
        }
        for (i, workers) in shape.eas.iter().enumerate() {
            let mut flags = with(&["--workers", &workers.to_string()]);
            if let (Some(proxy), 0) = (&proxy, i) {
                flags[1] = proxy.url();
            }
            eas.push(Node::start(roomlog_bin(), "ea", &format!("a{}", i + 1), folder.path(), flags).await?);
        }
        let made = http::call_ok(
            &nuves[0].origin,
            "POST",
            "/v1/services",
            Some(ADMIN),
            Some(&json!({ "name": "cluster", "publishableCreatesRooms": true })),
        )
        .await?;
        let text =
            |name: &str| made[name].as_str().map(str::to_owned).with_context(|| format!("{name} in {made}"));
        let (secret, key) = (text("secretKey")?, text("publishableKey")?);
        let cluster = Self { nats, nuves, ecs, eas, secret, key, proxy, folder };
        cluster.settled().await?;
        Ok(Some(cluster))
    }

    /// Starts one more node like the first of its role, from `binary`, and waits until it is heard.
    pub async fn add(&mut self, binary: PathBuf, role: &'static str, id: &str) -> anyhow::Result<()> {
        let nodes = match role {
            "nuve" => &mut self.nuves,
            "ec" => &mut self.ecs,
            _ => &mut self.eas,
        };
        let flags = nodes[0].flags.clone();
        nodes.push(Node::start(binary, role, id, self.folder.path(), flags).await?);
        let nuve = &self.nuves[self.nuves.len() - 1].origin;
        crate::cell::eventually("the new node is heard", START_WITHIN, || async {
            let listed = http::call_ok(nuve, "GET", "/v1/nodes", Some(ADMIN), None).await.ok()?;
            let nodes = listed["nodes"].as_array()?;
            nodes.iter().any(|n| n["id"] == id && (role == "nuve" || n["heardMsAgo"].is_u64())).then_some(())
        })
        .await
    }

    /// Runs `roomlog drain`.
    pub fn drain(&self, node: &str, deadline_s: u64, more: &[&str]) -> anyhow::Result<()> {
        let done = std::process::Command::new(roomlog_bin())
            .args(["drain", node, "--nats", &self.nats[0].url(), "--deadline-s", &deadline_s.to_string()])
            .args(more)
            .output()?;
        anyhow::ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// Waits until every EA has been heard: a token opens a room that has media.
    async fn settled(&self) -> anyhow::Result<()> {
        let nodes = self.ecs.len() + self.eas.len();
        let nuve = &self.nuves[0].origin;
        crate::cell::eventually("all nodes are heard", START_WITHIN, || async {
            let listed = http::call_ok(nuve, "GET", "/v1/nodes", Some(ADMIN), None).await.ok()?;
            let heard = listed["nodes"]
                .as_array()?
                .iter()
                .filter(|n| n["heardMsAgo"].is_u64() && n["kind"] != "nuve");
            (heard.count() >= nodes).then_some(())
        })
        .await
    }

    /// A token for `user` in the room called `name`, asked of this NUVE.
    pub async fn token_at(&self, nuve: usize, name: &str, user: &str) -> anyhow::Result<Value> {
        let body = json!({ "user": user, "create": true });
        let path = format!("/v1/rooms/name:{name}/tokens");
        http::call_ok(&self.nuves[nuve].origin, "POST", &path, Some(&self.key), Some(&body)).await
    }

    /// The same, at the first.
    pub async fn token(&self, name: &str, user: &str) -> anyhow::Result<Value> {
        self.token_at(0, name, user).await
    }

    /// The node of `nodes` called `id`.
    pub fn index(nodes: &[Node], id: &str) -> usize {
        nodes.iter().position(|node| node.id == id).expect("a node of this cluster")
    }

    /// Log, EC and EAs of a room, side by side, as a NUVE gathers them.
    pub async fn states(&self, room: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/rooms/{room}/state");
        let mut last = None;
        for nuve in self.nuves.iter().filter(|nuve| nuve.child.is_some()) {
            match http::call_ok(&nuve.origin, "GET", &path, Some(&self.secret), None).await {
                Ok(states) => return Ok(states),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no NUVE runs")?)
    }

    /// Waits until log, EC and EAs agree about a room.
    pub async fn agree(&self, room: &str, within: Duration) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        let agreed = crate::cell::eventually("log, EC and EAs agree", within, || async {
            let states = self.states(room).await.ok()?;
            (states["agree"] == true).then_some(states)
        })
        .await;
        if agreed.is_err() {
            last = self.states(room).await.unwrap_or_default();
        }
        agreed.with_context(|| last.to_string())
    }

    /// The EC that owns a room, by what NUVE says.
    pub async fn owner(&self, room: &str) -> anyhow::Result<String> {
        let located =
            http::call_ok(&self.nuves[0].origin, "GET", &format!("/v1/rooms/{room}/locate"), None, None)
                .await?;
        Ok(located["ec"].as_str().context("no EC")?.to_owned())
    }

    /// A connection to NATS of the test's own.
    pub async fn connection(&self) -> anyhow::Result<NatsConnection> {
        Ok(NatsConnection::connect(NatsSettings::new(self.nats.iter().map(NatsServer::url))).await?)
    }

    /// The log, read from outside.
    pub async fn journal(&self) -> anyhow::Result<Arc<dyn Journal>> {
        let replicas = if self.nats.len() == 1 { 1 } else { 3 };
        let settings = JetStreamSettings { replicas, ..JetStreamSettings::default() };
        Ok(self.connection().await?.journal(settings).await?)
    }

    /// Runs `roomlog` with these arguments and gives its exit code and what it printed.
    pub async fn roomlog(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let output = Command::new(roomlog_bin()).args(arguments).output().await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout) + &text(&output.stderr)))
    }

    /// What `roomlog replay verify` says of the cluster's log, and its exit code.
    pub async fn verify(&self) -> anyhow::Result<(Option<i32>, String)> {
        let servers: Vec<String> = self.nats.iter().map(NatsServer::url).collect();
        self.roomlog(&["replay", "--nats", &servers.join(","), "verify"]).await
    }

    /// Fails with what `roomlog replay verify` finds in the cluster's log.
    pub async fn log_is_clean(&self) -> anyhow::Result<()> {
        let (code, said) = self.verify().await?;
        anyhow::ensure!(code == Some(0), "the log is not clean ({code:?}):\n{said}");
        println!("verify: {said}");
        Ok(())
    }

    /// Where its folders are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What all its processes have logged, when a test has failed.
    pub fn said(&self) -> String {
        let nodes = self.nuves.iter().chain(&self.ecs).chain(&self.eas);
        nodes.map(|node| format!("==== {} {}\n{}\n", node.role, node.id, node.said())).collect()
    }
}
