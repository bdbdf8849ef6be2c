//! The SFU worker: a single-threaded process that moves packets between the clients of its rooms.
//!
//! An EA starts one per core and talks to it over its stdin and stdout ([`control`]), a later start of that EA over a socket
//! ([`adoption`]); clients send to its one UDP port.
//!
//! ```text
//! run ── net, parent ─── the process: sockets, pipes, the clock
//!  └─ worker ─────────── no IO: datagrams, requests and time in, datagrams and notifications out
//!      ├─ commands       what an EA asks
//!      ├─ receive        what clients send
//!      ├─ forward        to whom it goes
//!      ├─ tick           what happens by the clock
//!      └─ transport ─┬─ stun, dtls, srtp
//!                    ├─ producer ─ stream ─ nack
//!                    └─ consumer ─ rewrite, history, codec
//! ```

#![forbid(unsafe_code)]

pub mod adoption;
mod arena;
mod codec;
mod commands;
mod consumer;
pub mod control;
pub mod dtls;
mod forward;
mod gcm;
mod history;
mod nack;
mod net;
pub mod ortc;
mod parent;
mod pool;
mod producer;
mod receive;
mod rewrite;
pub mod rtcp;
pub mod rtp;
mod run;
pub mod srtp;
mod stats;
mod stream;
pub mod stun;
mod tick;
mod transport;
mod twcc;
mod worker;

pub use history::MAX_RESENDS;
pub use nack::NackPair;
pub use run::{WorkerError, run_worker};
pub use transport::Outbox;
pub use twcc::TwccReceiver;
pub use worker::Worker;
