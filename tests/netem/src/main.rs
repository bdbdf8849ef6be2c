//! The network emulator as a process, for tests that are not written in Rust: one JSON object a line, in and out.
//!
//! ```text
//! roomlog-netem --worker 127.0.0.1:40000 [--listen 127.0.0.1:0] [--seed 1]
//!
//! out  {"listening":"127.0.0.1:50000"}
//! in   {"up":{"loss":0.05},"down":{"loss":0.05}}      what is left out of a line stays; what is left out of a direction is its default
//! out  {"clients":4,"up":{"packets":…,"lost":…},"down":{…}}
//! in   {}                                             counts alone
//! ```
//!
//! Ends when stdin does.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

use anyhow::{Context, bail};
use roomlog_netem::{LinkSettings, Relay};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    up: Option<LinkSettings>,
    down: Option<LinkSettings>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let (mut worker, mut seed) = (None, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--listen" => listen = value.parse().context("--listen takes an address and port")?,
            "--worker" => worker = Some(value.parse().context("--worker takes an address and port")?),
            "--seed" => seed = value.parse().context("--seed takes a number")?,
            _ => bail!("unknown flag {flag}: there are --worker, --listen and --seed"),
        }
    }
    let worker = worker.context("say where the worker listens: --worker ADDRESS:PORT")?;
    let relay =
        Relay::start(listen, worker, seed).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("{}", serde_json::json!({ "listening": relay.address }));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let Line { up, down } = serde_json::from_str(&line).with_context(|| format!("cannot read {line}"))?;
        relay.set(up, down).await;
        println!("{}", serde_json::to_string(&relay.counts().await)?);
    }
    Ok(())
}
