//! `roomlog drain`: asks any NUVE of a cluster to write down that a node is draining. The node itself does the rest.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use roomlog_bus::{
    bus::RequestError,
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
    /// Wait until the node has ended.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    settings: Box<Settings>,
}

/// Between two looks at whether the node still answers.
const LOOK: Duration = Duration::from_millis(250);
/// A node at its deadline has clients to bring elsewhere and a goodbye to write; that is given this long.
const END_WITHIN: Duration = Duration::from_secs(30);

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
        if args.wait {
            let ended = async {
                // Any answer is one; that nobody listens is known at once.
                while !matches!(
                    bus.request(Subject::rpc(&node), Bytes::new(), RPC_TIMEOUT).await,
                    Err(RequestError::NoResponders(_))
                ) {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let within = Duration::from_secs(args.deadline_s) + END_WITHIN;
            tokio::time::timeout(within, ended)
                .await
                .with_context(|| format!("{node} still answers after {within:?}"))?;
            println!("{node} has ended");
        }
        Ok(ExitCode::SUCCESS)
    })
}
