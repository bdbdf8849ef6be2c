//! The engines of a cluster: the [`Bus`](crate::bus::Bus) on NATS core, the [`Journal`](crate::journal::Journal) on JetStream.
//!
//! ```text
//!  NatsConnection ── one connection to one of the servers, made again when it breaks
//!     ├─ bus()      publish, subscribe, request            at most once
//!     ├─ journal()  ROOMLOG_0 … ROOMLOG_<n-1>              acknowledged when stored
//!     └─ state()    whether there is a connection now
//! ```
//!
//! What NATS gives and what it does not, and so what these engines promise:
//! * A publish while there is no connection fails at once. One that was handed over just before the connection broke may be lost, or sent
//!   after the next connection is made: delivery is at most once either way.
//! * A subscription is known to the server this process is connected to when `subscribe` returns. The other servers of a cluster learn of
//!   it within milliseconds, but nobody says when: a request from there may in between be answered by "no responders".
//! * Headers come in the order of their names, whatever the order they were sent in.

mod api;
mod append;
mod bus;
mod connection;
mod follow;
mod inbox;
mod journal;
mod known;
mod purge;
mod read;
mod settings;
mod streams;
mod truncation;

pub use bus::NatsBus;
pub use connection::{ConnectionState, NatsConnection, NatsError, OLDEST_SERVER};
pub use journal::{JetStreamJournal, JetStreamSettings};
pub use settings::{Credentials, NatsSettings, Tls};
pub use truncation::Truncation;
