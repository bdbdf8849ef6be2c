//! `roomlog drain`: asks any NUVE of a cluster to write down that a node is draining. The node itself does the rest.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Args;
use roomlog_bus::{
    commit::{StreamId, StreamKind},
    nats::NatsConnection,
    rpc::{NuveAnswer, NuveRequest, RPC_TIMEOUT, ask},
    subject::Subject,
};

use crate::settings::Settings;

/// Arguments of `roomlog drain`.
#[derive(Args)]
pub struct DrainArgs {
    /// The node, as `/v1/nodes` lists it: `ec.<id>` or `ea.<id>`.
    node: String,
    /// What is left on it after this many seconds is moved. Most meetings end within the hour.
    #[arg(long, value_name = "S", default_value_t = 3_600)]
    deadline_s: u64,
    #[command(flatten)]
    settings: Box<Settings>,
}

/// Asks, and says what was answered.
pub fn run(args: DrainArgs) -> anyhow::Result<ExitCode> {
    let node: StreamId = args.node.parse().with_context(|| format!("{:?} names no node", args.node))?;
    anyhow::ensure!(
        matches!(node.kind(), StreamKind::Ec | StreamKind::Ea),
        "{node} cannot be drained: only ECs and EAs hold rooms; a NUVE is simply stopped"
    );
    let nats = args.settings.nats()?.context("which cluster? --nats nats://host:4222")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let bus = NatsConnection::connect(nats).await.context("NATS is not reached")?.bus();
        let request = NuveRequest::Drain { node: node.clone(), within: Duration::from_secs(args.deadline_s) };
        let answer: NuveAnswer =
            ask(bus.as_ref(), Subject::rpc_any(StreamKind::Nuve), &request, RPC_TIMEOUT).await?;
        match answer {
            NuveAnswer::Draining => println!("{node} is draining"),
            other => anyhow::bail!("unexpected answer {other:?}"),
        }
        Ok(ExitCode::SUCCESS)
    })
}
