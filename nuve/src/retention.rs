//! Purging the streams of deleted rooms once nobody can need them any more, and deleting rooms that are to go when nobody is in them.
//!
//! One NUVE does it, the first by id; the others stand in for it, each a while later than the one before, so that what is due goes also where
//! the first is gone, and is archived once where it is not.

use std::{sync::Arc, time::Duration};

use roomlog_bus::{
    commit::{Cause, Head, StreamKind},
    ids::RoomId,
    time::Timestamp,
};
use roomlog_projections::{
    archive::Archive,
    directory::Directory,
    node::NodePhase,
    retention::{Retention, to_purge},
    room::Owner,
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

/// Idle rooms are looked for this often: the shortest time a room may ask for.
const IDLE_EVERY: Duration = Duration::from_secs(10);
/// How much later than the one before it each NUVE deletes an idle room: the expected version lets one through, and the others need not try.
const IDLE_STAND_IN_AFTER: Duration = Duration::from_secs(20);
/// Idle rooms deleted at one look: a burst of them must not hold up what is asked for meanwhile.
const IDLE_AT_ONCE: usize = 200;

/// Deletes rooms that nobody has been in for as long as they allow, until told to stop.
pub async fn close_idle(app: AppState, mut stop: watch::Receiver<bool>) {
    let mut every = interval(IDLE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            _ = every.tick() => {}
        }
        let due = idle(&app.directory.read(), app.env.now(), IDLE_STAND_IN_AFTER * app.rank());
        for (room, head, owner) in due {
            // At the version that was seen: who came in meanwhile stays.
            let version = Some(head.version);
            let cause = Cause::of("timer");
            match app.delete_room(&room, Some(head), owner, version, "nobody came", cause).await {
                Ok(_) => tracing::info!(%room, "deleted: nobody was in it for as long as it allows"),
                Err(problem) => tracing::debug!(%room, reason = %problem.detail, "idle room not deleted"),
            }
        }
    }
}

/// The rooms that are to go; `later` puts the node off that only stands in for another.
fn idle(directory: &Directory, now: Timestamp, later: Duration) -> Vec<(RoomId, Head, Option<Owner>)> {
    let due = directory.rooms.iter().filter_map(|(id, room)| {
        let allowed = room.info.as_ref()?.limits.idle_close_s?;
        let head = room.head?;
        let waited = u64::from(allowed) * 1_000 + later.as_millis() as u64;
        let empty = !room.open && room.clients.is_empty();
        (empty && now.millis_since(head.id.time()) >= waited).then(|| (id.clone(), head, room.owner.clone()))
    });
    due.take(IDLE_AT_ONCE).collect()
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
