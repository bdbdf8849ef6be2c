//! A small seeded network emulator: what a bad network does to datagrams, for Rust tests and, as `roomlog-netem`, for browser tests.
//!
//! ```text
//!  client ──► front socket ─► link "up" ──► a socket of its own ──► worker
//!         ◄──              ◄─ link "down" ◄─                    ◄──
//! ```
//!
//! [`link`] decides by seed and says when each datagram arrives, without IO; [`relay`] moves datagrams between sockets by that.

#![forbid(unsafe_code)]

pub mod link;
pub mod relay;

pub use link::{Burst, Counts, Link, LinkSettings};
pub use relay::{Relay, RelayCounts};
