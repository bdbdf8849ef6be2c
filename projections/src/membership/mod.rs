//! Which nodes there are and which of them live: registering, hearing heartbeats, and calling a silent node lost.
//!
//! The log says who is registered ([`NodeState`](crate::node::NodeState)); heartbeats say who is there. NUVE nodes watch ECs, ECs watch
//! EAs, all by the same rules: an [`Observer`] hears, a [`Watch`] asks whoever is late and writes down who is gone.

mod observer;
mod registration;
mod watch;

pub use observer::{Health, LastHeard, LivenessSettings, Observer};
pub use registration::{RegisterError, Registration, leave, register};
pub use watch::{Lost, MediaProbe, Watch};

/// Resolves once whoever holds the sender says so, or is gone.
pub async fn stopped(stop: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
