//! When an EC is gone: saying so in the log, and giving the rooms in which somebody is to other ECs. Idle rooms wait until they are
//! asked for.
//!
//! Every NUVE does this, and the expected version of each stream lets one of them through. Before an EC is called lost because it was
//! silent, the other NUVE nodes are asked: one that heard it vetoes.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, stream};
use roomlog_bus::{
    commit::{Cause, Head, Payload, StreamId, StreamKind},
    events::{Event, NodeLost},
    ids::{EcId, RoomId},
    journal::AppendError,
    log::Draft,
    rpc::{EcAnswer, EcRequest, RpcError, ask},
    subject::Subject,
};
use roomlog_projections::node::NodePhase;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use crate::{
    app::{App, AppState, stopped},
    ecs::{EcView, Health},
    placement::{RoomBrief, Verdict, decide},
};

/// How often the ECs are looked at. A fraction of the second between two heartbeats, so that it adds little to how long a loss takes to notice.
const LOOK: Duration = Duration::from_millis(250);
/// A suspected EC is asked this often; two questions in a row to which nobody listens are enough.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Its answer, and that of another NUVE about it, is waited for this long.
const PROBE_TIMEOUT: Duration = Duration::from_millis(900);
/// Rooms placed at the same time: enough to hide the disk's or the network's latency, few enough that tokens still get through.
const AT_ONCE: usize = 16;
/// Rooms of a lost EC that are open are looked for in the directory, at most so many a turn.
const ROOMS_A_TURN: usize = 1_000;

/// What NUVE nodes ask each other on their own subjects. `TokenKeys` reads as [`roomlog_bus::rpc::NuveRequest::TokenKeys`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerRequest {
    /// Its token keys.
    TokenKeys,
    /// Whether it heard this EC lately.
    Heard {
        /// Which.
        ec: EcId,
    },
}

/// What they answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerAnswer {
    /// Token keys.
    Keys {
        /// Key id and public key.
        keys: Vec<(String, Vec<u8>)>,
    },
    /// Whether the EC was heard so lately that it is not to be called lost.
    Heard {
        /// Yes or no.
        heard: bool,
    },
}

/// Watches the ECs until told to stop.
pub async fn watch_ecs(app: AppState, mut stop: watch::Receiver<bool>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut probed: BTreeMap<EcId, Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return,
            _ = looks.tick() => {}
        }
        let views = app.ecs.view(&app.directory.read());
        let mut due = Vec::new();
        for view in views.iter().filter(|view| view.health == Health::Suspected) {
            if probed.get(&view.ec).is_none_or(|at| at.elapsed() >= PROBE_EVERY) {
                probed.insert(view.ec.clone(), Instant::now());
                due.push(app.probe(&view.ec));
            }
        }
        futures::future::join_all(due).await;
        for view in views.iter().filter(|view| view.health == Health::Lost) {
            if app.declare_lost(view).await {
                app.take_rooms(view).await;
            }
        }
    }
}

impl App {
    /// Asks a silent EC something harmless: whether anybody listens at all is known at once.
    async fn probe(&self, ec: &EcId) {
        let question = EcRequest::RoomState { room: RoomId::new("none").expect("a token") };
        let subject = Subject::rpc(&StreamId::from(ec));
        let answer: Result<EcAnswer, RpcError> = ask(&*self.bus, subject, &question, PROBE_TIMEOUT).await;
        match answer {
            Err(RpcError::Unreachable { no_responders: true, .. }) => self.ecs.found_no_responders(ec),
            Err(RpcError::Unreachable { .. }) => {}
            // Any answer, even a refusal, is one.
            Ok(_) | Err(_) => self.ecs.answered(ec),
        }
    }

    /// Whether another NUVE heard this EC lately.
    async fn is_vetoed(&self, ec: &EcId) -> bool {
        let others: Vec<StreamId> = {
            let directory = self.directory.read();
            let registered = directory.nodes.iter().filter(|(node, state)| {
                node.kind() == StreamKind::Nuve && **node != self.node && state.phase == NodePhase::Registered
            });
            registered.map(|(node, _)| node.clone()).collect()
        };
        let asked = others.into_iter().map(|other| async move {
            let question = PeerRequest::Heard { ec: ec.clone() };
            let answer: Result<PeerAnswer, RpcError> =
                ask(&*self.bus, Subject::rpc(&other), &question, PROBE_TIMEOUT).await;
            matches!(answer, Ok(PeerAnswer::Heard { heard: true })).then_some(other)
        });
        let heard = futures::future::join_all(asked).await.into_iter().flatten().next();
        if let Some(other) = &heard {
            tracing::warn!(%ec, %other, "not heard here, but there: it is not called lost");
        }
        heard.is_some()
    }

    /// Whether this node heard `ec` lately, for another that did not.
    pub(crate) fn heard_lately(&self, ec: &EcId) -> bool {
        let limit = Duration::from_millis(self.settings.suspect_after_ms);
        self.ecs.last_heard(&StreamId::from(ec)).is_some_and(|heard| heard.age < limit)
    }

    /// Says in the log that this start of an EC is lost, unless that stands there. False when it is not to be called so.
    async fn declare_lost(&self, view: &EcView) -> bool {
        let stream = StreamId::from(&view.ec);
        let known = |head: &mut Option<Head>| {
            let directory = self.directory.read();
            let state = directory.nodes.get(&stream)?;
            *head = state.head;
            Some((state.incarnation, state.phase))
        };
        let mut head = None;
        match known(&mut head) {
            Some((incarnation, NodePhase::Registered | NodePhase::Draining))
                if incarnation == view.incarnation => {}
            Some((_, NodePhase::Lost | NodePhase::Left)) => return true,
            _ => return false,
        }
        if self.is_vetoed(&view.ec).await {
            self.ecs.answered(&view.ec);
            self.ecs.heard_elsewhere(&view.ec);
            return false;
        }
        let event = NodeLost {
            incarnation: view.incarnation,
            observer: self.node.to_string(),
            reason: "no heartbeat and no answer".into(),
        };
        let draft =
            Draft { cause: Cause::of("timer"), facts: Payload::encode(&view.rooms), ..Draft::default() };
        match self.log.append(stream, head, draft, &[Event::from(event)]).await {
            Ok(_) => {
                tracing::warn!(ec = %view.ec, incarnation = view.incarnation.0, "EC lost");
                true
            }
            // Another NUVE was first, or it registered again: the next look sees which.
            Err(AppendError::Conflict { .. }) => false,
            Err(error) => {
                tracing::warn!(ec = %view.ec, %error, "that it is lost cannot be written down");
                false
            }
        }
    }

    /// Gives the rooms of a lost EC in which somebody is to other ECs.
    async fn take_rooms(&self, view: &EcView) {
        let rooms: Vec<RoomBrief> = {
            let directory = self.directory.read();
            let owned = directory.rooms.iter().filter(|(_, state)| {
                state.open && state.owner.as_ref().is_some_and(|owner| owner.ec == view.ec)
            });
            owned.map(|(id, state)| RoomBrief::of(id, state)).take(ROOMS_A_TURN).collect()
        };
        let Some(first) = rooms.first() else { return };
        let ecs = self.ecs.view(&self.directory.read());
        let verdict = decide(first.owner.as_ref(), true, &ecs, self.settings.ec_policy, 0);
        if !matches!(verdict, Verdict::Place { .. }) {
            return; // nobody to give them to: the next look may find somebody
        }
        tracing::warn!(ec = %view.ec, rooms = rooms.len(), "its rooms go to other ECs");
        stream::iter(rooms)
            .for_each_concurrent(AT_ONCE, |room| async move {
                let id = room.id.clone();
                match self.place(room, Cause::of("recovery")).await {
                    Ok(placed) if placed.ec != view.ec => self.metrics.takeover(),
                    Ok(_) => {}
                    Err(problem) => {
                        tracing::warn!(room = %id, reason = %problem.detail, "room not placed anew")
                    }
                }
            })
            .await;
    }
}
