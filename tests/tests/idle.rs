//! What clients cost who do nothing: CPU time and memory of each role, in two windows one after the other, and whether anything is written.
//!
//! A measurement and no test: `ROOMLOG_IDLE_ROOMS`, of four clients each (25), `ROOMLOG_IDLE_SECONDS` of a window (20).
//! Clients have signalled all that a call needs, their transports are made in the worker, and no packet comes from them: only the WebSocket's
//! pings go to and fro.

use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use roomlog_tests::{
    cluster::{Cluster, Node, Shape},
    peer::{Peer, Policy},
    process::Held,
};

/// Clients in a room.
const CLIENTS: usize = 4;
/// Joins at the same time.
const AT_ONCE: usize = 16;
/// Until what the joins have set in motion is done: scores, checkpoints, timers of a minute.
const SETTLE: Duration = Duration::from_secs(75);
/// A clock tick of `proc(5)`, seconds.
const TICK: f64 = 0.01;

fn size(name: &str, default: usize) -> anyhow::Result<usize> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}={text}")))
}

/// CPU time so far, in seconds (`proc(5)`, stat).
fn cpu(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("the name of a process ends")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 * TICK)
}

/// CPU time and resident memory of each role.
fn look(roles: &[(String, u32)]) -> anyhow::Result<Vec<(f64, u64)>> {
    roles.iter().map(|(_, pid)| Ok((cpu(*pid)?, Held::of(*pid)?.resident))).collect()
}

async fn client(cluster: &Cluster, number: usize) -> anyhow::Result<Peer> {
    let token = cluster.token(&format!("idle-{}", number / CLIENTS), &format!("client {number}")).await?;
    let url = token["wsUrl"].as_str().context("no wsUrl")?;
    let (mut peer, _) =
        Peer::enter(url, token["token"].as_str().context("no token")?, Policy::Accept).await?;
    peer.join(&format!("client {number}")).await?;
    Ok(peer)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn what_clients_cost_who_do_nothing() -> anyhow::Result<()> {
    let rooms = size("ROOMLOG_IDLE_ROOMS", 25)?;
    let window = Duration::from_secs(size("ROOMLOG_IDLE_SECONDS", 20)? as u64);
    let flags = ["--log", "warn"].map(str::to_owned).to_vec();
    let shape = Shape { nuves: 1, ecs: 1, eas: vec![1], flags, ..Shape::default() };
    let Some(cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let nodes = [("nuve", &cluster.nuves[0]), ("ec", &cluster.ecs[0]), ("ea", &cluster.eas[0])];
    let mut roles: Vec<(String, u32)> =
        nodes.iter().map(|(role, node): &(_, &Node)| ((*role).to_owned(), node.pid())).collect();
    roles.extend(cluster.eas[0].workers().into_iter().map(|pid| ("worker".to_owned(), pid)));
    let empty = look(&roles)?;
    let peers: Vec<Peer> = stream::iter(0..rooms * CLIENTS)
        .map(|number| client(&cluster, number))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    tokio::time::sleep(SETTLE).await;
    let journal = cluster.journal().await?;
    let mut looks = vec![look(&roles)?];
    let mut tails = vec![journal.tail().await?];
    for _ in 0..2 {
        tokio::time::sleep(window).await;
        looks.push(look(&roles)?);
        tails.push(journal.tail().await?);
    }
    let gone = peers.iter().filter(|peer| peer.closed.lock().expect("no panic inside").is_some()).count();
    println!(
        "{} clients in {rooms} rooms, {gone} of them gone, windows of {} s",
        peers.len(),
        window.as_secs()
    );
    println!("role     CPU %, first window   second   MiB, empty     full   after one   after two");
    for (at, (role, _)) in roles.iter().enumerate() {
        let share = |n: usize| 100.0 * (looks[n + 1][at].0 - looks[n][at].0) / window.as_secs_f64();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "{role:<8} {:>19.2} {:>8.2} {:>12.1} {:>8.1} {:>11.1} {:>11.1}",
            share(0),
            share(1),
            mib(empty[at].1),
            mib(looks[0][at].1),
            mib(looks[1][at].1),
            mib(looks[2][at].1),
        );
    }
    println!("the log's ends: {tails:?}");
    anyhow::ensure!(gone == 0, "{gone} idle clients are gone");
    Ok(())
}
