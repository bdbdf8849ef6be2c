//! How a node begins and ends in the log.

use std::sync::Arc;

use roomlog_bus::{
    commit::{Cause, StreamId, Writer},
    env::Env,
    events::{Event, NodeLeft, NodeRegistered},
    ids::Version,
    journal::{AppendError, Journal, ReadError, read_all},
    log::{Draft, Log},
};

use crate::{node::NodeState, room::FoldError};

/// How often registration is tried when another start of the same node is registering at the same time. Each try somebody gets through.
const TRIES: usize = 8;

/// What a node says of itself when it registers.
#[derive(Debug, Clone, Default)]
pub struct Registration {
    /// Where others reach it.
    pub address: String,
    /// SFU workers, of an EA.
    pub workers: u16,
}

/// Why a node is not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Its stream does not read.
    #[error("the stream of {node} cannot be read: {source}")]
    Read {
        /// Which node.
        node: StreamId,
        /// Why.
        source: ReadError,
    },
    /// Its stream does not fold.
    #[error("the stream of {node} does not fold: {source}")]
    Fold {
        /// Which node.
        node: StreamId,
        /// Why.
        source: FoldError,
    },
    /// The log did not take it.
    #[error("{node} cannot be registered: {source}")]
    Append {
        /// Which node.
        node: StreamId,
        /// Why.
        source: AppendError,
    },
    /// Somebody else keeps registering under the same id.
    #[error(
        "{0} cannot be registered: other starts of it keep registering; is the id used twice? Give each node a data folder of its own"
    )]
    Contended(StreamId),
}

/// Appends `NodeRegistered` for the next start of `node` and gives the pen that this start writes with.
pub async fn register(
    node: &StreamId,
    journal: &Arc<dyn Journal>,
    env: &Env,
    registration: Registration,
) -> Result<Log, RegisterError> {
    for _ in 0..TRIES {
        let mut state = NodeState::default();
        let commits = read_all(journal.as_ref(), node, Version(1)).await;
        for commit in commits.map_err(|source| RegisterError::Read { node: node.clone(), source })? {
            let folded = state.apply_commit(&commit);
            folded.map_err(|source| RegisterError::Fold { node: node.clone(), source })?;
        }
        let incarnation = state.incarnation.next();
        let log = Log::new(journal.clone(), env.clone(), Writer { node: node.clone(), incarnation });
        let event = NodeRegistered {
            incarnation,
            address: registration.address.clone(),
            workers: registration.workers,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            probe: None,
            adopted: Vec::new(),
        };
        let draft = Draft { cause: Cause::of("start"), ..Draft::default() };
        match log.append(node.clone(), state.head, draft, &[Event::from(event)]).await {
            Ok(_) => return Ok(log),
            Err(AppendError::Conflict { .. }) => {}
            Err(source) => return Err(RegisterError::Append { node: node.clone(), source }),
        }
    }
    Err(RegisterError::Contended(node.clone()))
}

/// Says in the log that this start of the node ends as told. A log that does not take it finds the node lost instead.
pub async fn leave(log: &Log) {
    let Writer { node, incarnation } = log.writer().clone();
    let goodbye = async {
        let head = log.journal().head(&node).await.map_err(|error| error.to_string())?;
        let draft = Draft { cause: Cause::of("stop"), ..Draft::default() };
        let event = Event::from(NodeLeft { incarnation });
        log.append(node.clone(), head, draft, &[event]).await.map_err(|error| error.to_string())
    };
    if let Err(error) = goodbye.await {
        tracing::warn!(%node, error, "the log did not take this node's goodbye: it will be counted as lost");
    }
}
