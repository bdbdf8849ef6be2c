//! How many transports and producers one client may have at a time: each is state in the log, at the EC and on the worker, and each
//! producer is a consumer for everybody else in the room. Pure.

use roomlog_bus::ids::ClientId;
use roomlog_projections::room::RoomState;
use serde::{Deserialize, Serialize};

use crate::decide::{Command, Refusal};

/// The limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerClient {
    /// Transports. A client has two, one to send and one to receive.
    pub transports: usize,
    /// Producers, over all its transports.
    pub producers: usize,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// Transports.
    Transport,
    /// Producers.
    Producer,
}

impl PerClient {
    /// None: what decisions were made under that did not note any.
    pub fn none() -> Self {
        Self { transports: usize::MAX, producers: usize::MAX }
    }

    /// Whether `client` may have one more, with so many others under way on the worker.
    pub fn allows(
        &self,
        state: &RoomState,
        client: &ClientId,
        made: Made,
        under_way: usize,
    ) -> Result<(), Refusal> {
        let (what, most, has) = match made {
            Made::Transport => (
                "transports",
                self.transports,
                state.transports.values().filter(|t| &t.client == client).count(),
            ),
            Made::Producer => (
                "producers",
                self.producers,
                state.producers.values().filter(|p| &p.client == client).count(),
            ),
        };
        if has.saturating_add(under_way) < most { Ok(()) } else { Err(Refusal::TooMany(what, most)) }
    }
}

impl Made {
    /// What `command` makes for its client.
    pub fn by(command: &Command) -> Option<Self> {
        match command {
            Command::CreateTransport { .. } => Some(Self::Transport),
            Command::Produce { .. } => Some(Self::Producer),
            _ => None,
        }
    }
}
