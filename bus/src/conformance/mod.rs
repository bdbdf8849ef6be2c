//! What every engine must do, as code: [`bus_suite`] for a [`Bus`](crate::bus::Bus), [`journal_suite`] for a
//! [`Journal`](crate::journal::Journal). An engine passes them unchanged or is not one.
//!
//! Each expectation is one small function named after it. They assume nothing an engine over a network cannot give: order is asked for
//! per subject and per stream, a cursor is opaque, and "at once" means well before a timeout.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use roomlog_bus::{bus::Bus, conformance::bus_suite, memory_bus::MemoryBus};
//! # async fn run() {
//! bus_suite(|| async { Arc::new(MemoryBus::new()) as Arc<dyn Bus> }).await;
//! # }
//! ```

mod bus;
mod follow;
mod journal;
pub mod nats_server;
mod purge;

use std::{future::Future, time::Duration};

pub use bus::bus_suite;
pub use journal::{Opened, Reopen, journal_suite};

/// How long anything may take before the engine is called stuck. Far above what a loaded machine needs, far below a person's patience.
const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough that something which must not come would have come.
const QUIET: Duration = Duration::from_millis(100);

/// Waits for `future`, but not for ever.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing for {PATIENCE:?}"),
    }
}

/// Runs each expectation on an engine of its own, saying which one it is.
macro_rules! expectations {
    ($make:expr, $($name:ident),* $(,)?) => {$(
        println!("conformance: {}", stringify!($name));
        $crate::conformance::soon(stringify!($name), async { $name($make().await).await }).await;
    )*};
}
use expectations;
