//! The log, its events, and the bus they travel on.
//!
//! This crate knows no role: it defines what NUVE, EC and EA share. The module list is the map.

#![forbid(unsafe_code)]

pub mod bus;
pub mod carried;
pub mod commit;
pub mod conformance;
pub mod copied_journal;
pub mod env;
pub mod events;
pub mod extension;
pub mod ids;
pub mod journal;
pub mod local_copy;
pub mod log;
pub mod media;
pub mod memory_bus;
pub mod memory_journal;
pub mod nats;
pub mod ortc;
pub mod repair;
pub mod republish;
pub mod rights;
pub mod rpc;
pub mod sled_journal;
pub mod stun;
pub mod subject;
pub mod time;
pub mod token;
