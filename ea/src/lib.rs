//! EA: the agent of a media host. Registers the node, runs one SFU worker process per core, and makes rooms follow the log.
//!
//! The decisions are in [`core`], a synchronous machine without IO; [`turns`] says whose turn it is and [`objects`] what a worker must be
//! told. Around them: [`worker`] and the slots that keep workers alive, the registrar that writes the node's own stream, and the agent's
//! loop that carries inputs in and effects out.

#![forbid(unsafe_code)]

pub mod adopt;
pub mod agent;
#[cfg(test)]
mod agent_tests;
pub mod core;
mod follow;
pub mod health;
pub mod objects;
mod registrar;
pub mod settings;
mod slot;
#[cfg(any(test, feature = "testing"))]
#[allow(missing_docs, clippy::unwrap_used, reason = "helpers of tests")]
pub mod testing;
pub mod turns;
pub mod worker;

pub use agent::{Ea, start, start_with};
pub use health::{Health, HealthWatch};
pub use settings::{EaError, EaSettings};
