//! Purging the streams of deleted rooms once nobody can need them any more.
//!
//! One NUVE does it, the first by id; the others stand in for it, each a while later than the one before, so that what is due goes also where
//! the first is gone, and is archived once where it is not.

use std::{sync::Arc, time::Duration};

use roomlog_bus::commit::StreamKind;
use roomlog_projections::{
    archive::Archive,
    node::NodePhase,
    retention::{Retention, to_purge},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::app::{App, AppState, stopped};

/// How much later than the one before it each NUVE purges: longer than a restart takes.
const STAND_IN_AFTER: Duration = Duration::from_secs(600);

/// Purges what is due until told to stop.
pub async fn purge_deleted(app: AppState, mut stop: watch::Receiver<bool>) {
    let settings = app.settings.retention();
    let archive = app.settings.archive.clone();
    let archive = archive.map(|folder| Arc::new(Archive::new(folder, app.node.to_string())));
    let retention = Retention::new(app.journal.clone(), archive);
    let mut every = interval(settings.every);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            _ = every.tick() => {}
        }
        let now = app.env.now();
        let due = to_purge(&app.directory.read(), now, &settings, STAND_IN_AFTER * app.rank());
        let purged = retention.purge(&due, now, |rooms| app.directory.forget(rooms)).await;
        match purged {
            Ok(()) if due.is_empty() => {}
            Ok(()) => tracing::info!(rooms = due.len(), "deleted rooms purged from the log"),
            Err(error) => tracing::warn!(%error, "deleted rooms not purged; tried again later"),
        }
    }
}

impl App {
    /// How many registered NUVE nodes come before this one, by id.
    fn rank(&self) -> u32 {
        let directory = self.directory.read();
        let before = directory.nodes.iter().filter(|(node, state)| {
            node.kind() == StreamKind::Nuve && **node < self.node && state.phase == NodePhase::Registered
        });
        u32::try_from(before.count()).unwrap_or(u32::MAX)
    }
}
