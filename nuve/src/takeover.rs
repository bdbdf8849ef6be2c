//! When an EC is gone: giving the rooms in which somebody is to other ECs. Idle rooms wait until they are asked for.
//!
//! Every NUVE does this, and the expected version of each room lets one of them through.

use futures::{StreamExt as _, stream};
use roomlog_bus::{commit::Cause, ids::EcId};
use roomlog_projections::membership::Lost;

use tokio::sync::{mpsc, watch};

use crate::{
    app::{App, AppState, stopped},
    placement::{RoomBrief, Verdict, decide},
};

/// Rooms placed at the same time: enough to hide the disk's or the network's latency, few enough that tokens still get through.
const AT_ONCE: usize = 16;
/// Rooms of a lost EC that are open are looked for in the directory, at most so many a turn.
const ROOMS_A_TURN: usize = 1_000;

/// Gives the rooms of lost ECs to others until told to stop.
pub async fn take_over(app: AppState, mut lost: mpsc::Receiver<Vec<Lost>>, mut stop: watch::Receiver<bool>) {
    loop {
        let lost = tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            lost = lost.recv() => lost,
        };
        let Some(lost) = lost else { return };
        for ec in lost.iter().filter_map(|lost| EcId::new(lost.node.id()).ok()) {
            app.take_rooms(&ec).await;
        }
    }
}

impl App {
    /// Gives the rooms of a lost EC in which somebody is to other ECs.
    async fn take_rooms(&self, ec: &EcId) {
        let rooms: Vec<RoomBrief> = {
            let directory = self.directory.read();
            let owned = directory
                .rooms
                .iter()
                .filter(|(_, state)| state.open && state.owner.as_ref().is_some_and(|owner| owner.ec == *ec));
            owned.map(|(id, state)| RoomBrief::of(id, state)).take(ROOMS_A_TURN).collect()
        };
        let Some(first) = rooms.first() else { return };
        let ecs = self.ecs.view(&self.directory.read());
        let verdict = decide(first.owner.as_ref(), true, &ecs, self.settings.ec_policy, 0);
        if !matches!(verdict, Verdict::Place { .. }) {
            return; // nobody to give them to: the next look may find somebody
        }
        tracing::warn!(%ec, rooms = rooms.len(), "its rooms go to other ECs");
        stream::iter(rooms)
            .for_each_concurrent(AT_ONCE, |room| async move {
                let id = room.id.clone();
                match self.place(room, Cause::of("recovery")).await {
                    Ok(placed) if placed.ec != *ec => self.metrics.takeover(),
                    Ok(_) => {}
                    Err(problem) => {
                        tracing::warn!(room = %id, reason = %problem.detail, "room not placed anew")
                    }
                }
            })
            .await;
    }
}
