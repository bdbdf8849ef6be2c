//! Three NUVE nodes admit one limit together, whatever happens to the one that shares it out.
//!
//! What is admitted is counted by the callers: each request that was sent after a moment and answered before another was admitted in
//! between, so the upper bound holds on any machine. `admitted_under_a_load_generator` measures more cases, for longer, with `wrk`.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use roomlog_tests::{
    cell::eventually,
    cluster::{ADMIN, Cluster, Node, Shape},
    http,
};
use tokio::process::{Child, Command};

/// The limit: low enough that a loaded machine in a debug build serves three times as much.
const LIMIT: u32 = 200;
/// Callers of each node, one request at a time each: most of the demand is at the first.
const CALLERS: [usize; 3] = [12, 2, 2];
/// A state is waited for so long.
const WITHIN: Duration = Duration::from_secs(60);

/// What a node says of itself, by the beginning of the line.
async fn gauge(origin: &str, name: &str) -> Option<f64> {
    said(origin).await?.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

async fn said(origin: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(origin.strip_prefix("http://")?).await.ok()?;
    let request = "GET /metrics HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.ok()?;
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text).await.ok()?;
    Some(text)
}

async fn rates(nodes: &[Node]) -> f64 {
    let mut all = 0.0;
    for node in nodes {
        all += gauge(&node.origin, "roomlog_nuve_limit_rate ").await.unwrap_or(0.0);
    }
    all
}

async fn holder(nodes: &[Node]) -> Option<usize> {
    for (index, node) in nodes.iter().enumerate() {
        if gauge(&node.origin, "roomlog_nuve_limit_holder ").await == Some(1.0) {
            return Some(index);
        }
    }
    None
}

/// Callers that ask without end and count what is admitted.
struct Load {
    served: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<()>>,
    started: Instant,
}

impl Load {
    fn start(nodes: &[Node]) -> Self {
        let (served, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let started = Instant::now();
        let mut callers = Vec::new();
        for (node, count) in nodes.iter().zip(CALLERS) {
            for _ in 0..count {
                let (origin, served, stop) = (node.origin.clone(), served.clone(), stop.clone());
                callers.push(tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let answer = http::call(&origin, "GET", "/v1/services", Some(ADMIN), None).await;
                        match answer.map(|answer| answer.status) {
                            Ok(200) => {
                                served.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                            // A node that was killed.
                            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                        }
                    }
                }));
            }
        }
        Self { served, stop, callers, started }
    }

    /// Ends it; gives what was admitted and what may have been at most.
    async fn end(self) -> anyhow::Result<(f64, f64)> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await?;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let limit = f64::from(LIMIT);
        // Clocks, 70 ms saved up, and one request of each node.
        let most = limit * seconds * 1.002 + limit * 0.07 + 3.0;
        Ok((self.served.load(Ordering::Relaxed) as f64, most))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nuves_admit_one_limit_whatever_happens_to_its_holder() -> anyhow::Result<()> {
    let shape = Shape { nuves: 3, ecs: 0, eas: Vec::new(), api_per_s: LIMIT, ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let whole = f64::from(LIMIT) * 0.95;
    eventually("all of the limit is shared out", WITHIN, || async {
        (rates(&cluster.nuves).await >= whole).then_some(())
    })
    .await?;

    let load = Load::start(&cluster.nuves);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (admitted, most) = load.end().await?;
    assert!(admitted <= most, "{admitted} admitted, {most} at most");
    assert!(admitted >= most * 0.5, "{admitted} admitted, {most} at most");

    // The holder is killed under load, followed by another, and comes back.
    let load = Load::start(&cluster.nuves);
    let killed = eventually("one holds the limit", WITHIN, || holder(&cluster.nuves)).await?;
    cluster.nuves[killed].kill().await;
    let next = eventually("another holds it", WITHIN, || holder(&cluster.nuves)).await?;
    assert_ne!(next, killed);
    cluster.nuves[killed].start_again().await.context("the killed node starts again")?;
    eventually("all of the limit is shared out again", WITHIN, || async {
        (rates(&cluster.nuves).await >= whole).then_some(())
    })
    .await?;
    let (admitted, most) = load.end().await?;
    assert!(admitted <= most, "{admitted} admitted, {most} at most");
    assert!(admitted > 0.0);
    Ok(())
}

/// What the nodes have admitted and were asked, in all, as they count it; what those that died had said last stays.
#[derive(Default)]
struct Counted {
    last: BTreeMap<(usize, u32), (u64, u64)>,
    samples: Vec<(Instant, u64, u64)>,
}

impl Counted {
    async fn sample(&mut self, cluster: &Cluster) {
        for (index, node) in cluster.nuves.iter().enumerate() {
            let (Some(pid), Some(text)) = (node.running(), said(&node.origin).await) else { continue };
            let of = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            let route = "roomlog_nuve_request_seconds_count{method=\"GET\",route=\"/v1/services\"";
            let lines = text.lines().filter(|line| line.starts_with(route));
            let counts = lines.map(|line| (line.contains("status=\"200\""), of(line)));
            let sum =
                counts.fold((0, 0), |(served, all), (ok, n)| (served + if ok { n } else { 0 }, all + n));
            self.last.insert((index, pid), sum);
        }
        let sum = self.last.values().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        self.samples.push((Instant::now(), sum.0, sum.1));
    }

    /// Fewest and most admitted per second over any ten seconds, and asked per second over all.
    fn rates(&self) -> (f64, f64, f64) {
        let (mut least, mut most) = (f64::MAX, 0.0_f64);
        for (i, (from, served, _)) in self.samples.iter().enumerate() {
            let after = |(at, ..): &&(Instant, u64, u64)| at.duration_since(*from) >= Duration::from_secs(10);
            if let Some((to, then, _)) = self.samples[i..].iter().find(after) {
                let rate = (then - served) as f64 / to.duration_since(*from).as_secs_f64();
                (least, most) = (least.min(rate), most.max(rate));
            }
        }
        let [first, .., last] = &self.samples[..] else { return (0.0, 0.0, 0.0) };
        let asked = (last.2 - first.2) as f64 / last.0.duration_since(first.0).as_secs_f64();
        (least, most, asked)
    }
}

/// `wrk` against all nodes, most of it against one.
fn wrk(cluster: &Cluster, most: usize, seconds: u64) -> anyhow::Result<Vec<Child>> {
    let nodes = cluster.nuves.iter().enumerate().filter(|(_, node)| node.running().is_some());
    nodes
        .map(|(index, node)| {
            let connections = if index == most { "54" } else { "3" };
            Ok(Command::new("wrk")
                .args(["-t1", "-c", connections, "-d", &format!("{seconds}s"), "--timeout", "2s", "-H"])
                .arg(format!("Authorization: Bearer {ADMIN}"))
                .arg(format!("{}/v1/services", node.origin))
                .stdout(Stdio::null())
                .kill_on_drop(true)
                .spawn()?)
        })
        .collect()
}

/// Loads for so long, with what `during` does after three seconds, shifting where most of it goes every `shift` seconds.
async fn measured(
    name: &str,
    cluster: &mut Cluster,
    seconds: u64,
    shift: u64,
    during: impl AsyncFnOnce(&mut Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut counted, mut during, started) = (Counted::default(), Some(during), Instant::now());
    let (mut load, mut turn, mut until) = (Vec::new(), 0, started);
    // The first two seconds are not measured: what was saved up, and the load generator's start.
    while started.elapsed() < Duration::from_secs(seconds + 2) {
        if Instant::now() >= until {
            load = wrk(cluster, turn % cluster.nuves.len(), shift + 1)?;
            (turn, until) = (turn + 1, Instant::now() + Duration::from_secs(shift));
        }
        if started.elapsed() > Duration::from_secs(5)
            && let Some(during) = during.take()
        {
            during(cluster).await?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        if started.elapsed() > Duration::from_secs(2) {
            counted.sample(cluster).await;
        }
    }
    drop(load);
    let (least, most, asked) = counted.rates();
    println!("| {name} | {asked:.0} | {least:.0} | {most:.0} |");
    assert!(most <= 1_010.0, "{name}: {most}");
    Ok(())
}

/// `ROOMLOG_BIN=… cargo test -p roomlog-tests --test cluster_limit -- --ignored --nocapture`, with `wrk` (a Debian package).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and takes minutes"]
async fn admitted_under_a_load_generator() -> anyhow::Result<()> {
    let shape = Shape { nuves: 3, ecs: 0, eas: Vec::new(), api_per_s: 1_000, ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    println!("| case | asked/s | least admitted/s in 10 s | most |\n| --- | --- | --- | --- |");
    let nothing = async |_: &mut Cluster| Ok(());
    measured("steady, 90/5/5", &mut cluster, 30, 60, nothing).await?;
    measured("shifting every 3 s", &mut cluster, 30, 3, nothing).await?;
    let holds = holder(&cluster.nuves).await.context("one holds")?;
    let other = (holds + 1) % 3;
    let kill = async |cluster: &mut Cluster| {
        cluster.nuves[other].kill().await;
        Ok(())
    };
    measured("a node is killed", &mut cluster, 50, 10, kill).await?;
    let join = async |cluster: &mut Cluster| cluster.nuves[other].start_again().await;
    measured("a node joins", &mut cluster, 30, 10, join).await?;
    let kill = async |cluster: &mut Cluster| {
        cluster.nuves[holds].kill().await;
        Ok(())
    };
    measured("the holder is killed", &mut cluster, 70, 10, kill).await?;
    cluster.nuves[holds].start_again().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let away = async |cluster: &mut Cluster| {
        cluster.nats[0].kill();
        Ok(())
    };
    measured("NATS is away", &mut cluster, 45, 10, away).await?;
    let back = async |cluster: &mut Cluster| {
        cluster.nats[0].start_again();
        Ok(())
    };
    measured("NATS is back", &mut cluster, 30, 10, back).await
}
