//! The deterministic simulation: the whole control plane, the code that ships with its shells, in one thread under virtual time and one seed.
//!
//! ```text
//!            one tokio runtime each, its clock paused, driven in turn for one quantum of virtual time
//!   ┌───────┬──────┬──────┬──────┬──────┬─────────┐
//!   │ nuve… │ ec-1 │ ec-2 │ ea-1 │ ea-2 │ clients │      crash = the runtime is dropped, pause = it is not driven
//!   └───┬───┴──┬───┴──┬───┴──┬───┴──┬───┴────┬────┘
//!       SimBus, SimJournal: one per node      WebSockets over pipes in memory, HTTP by call
//!             └───────── World: a queue of deliveries, ordered by virtual time ─────────┘
//! ```
//! All chance comes from the seed: delays, losses, faults, ids, keys and what clients do. A hash over every delivery, append and fault with
//! its virtual time names the run: the same seed gives the same hash.

mod bus;
mod check;
mod client;
mod cluster;
mod journal;
mod truncation;
mod world;

pub use cluster::{Outcome, Planted, run};
pub use world::Counts;
