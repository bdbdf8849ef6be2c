//! Asks whoever is late, and writes down who is gone. Every observer does this; the expected version of the node's stream lets one of
//! them through, and before that the other observers are asked: one that heard the node lately vetoes.

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use roomlog_bus::{
    bus::{Bus, RequestError},
    commit::{Cause, Payload, StreamId, StreamKind},
    events::{Event, NodeLost},
    ids::Incarnation,
    journal::AppendError,
    log::{Draft, Log},
    subject::Subject,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::observer::{ASK_TIMEOUT, Health, Observer};
use crate::{
    directory::LiveDirectory,
    node::{NodePhase, NodeState},
};

/// How often the nodes are looked at. A fraction of the second between two heartbeats, so that it adds little to how long a loss takes
/// to notice.
const LOOK: Duration = Duration::from_millis(200);
/// A late node is asked this often; two questions in a row to which nobody listens are enough.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Asks the workers of a silent EA whether they still serve.
pub type MediaProbe =
    Arc<dyn Fn(StreamId, NodeState) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// A node that is gone, as far as this observer and the log know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub node: StreamId,
    /// Which start of it.
    pub incarnation: Incarnation,
}

/// Watches all nodes of one kind.
pub struct Watch {
    /// Whom to watch.
    pub kind: StreamKind,
    /// What is heard.
    pub observer: Arc<Observer>,
    /// The pen with which a loss is written down.
    pub log: Log,
    /// Who is registered.
    pub directory: LiveDirectory,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// For EAs.
    pub media_probe: Option<MediaProbe>,
}

impl Watch {
    /// Watches until `stop`. All that is lost is told to `tell`, at each look again as long as it is so and the last word was taken.
    pub async fn run(self, mut stop: watch::Receiver<bool>, tell: Option<mpsc::Sender<Vec<Lost>>>) {
        let watch = Arc::new(self);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut probed: BTreeMap<StreamId, Instant> = BTreeMap::new();
        let mut probes = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = super::stopped(&mut stop) => return,
                Some(_) = probes.join_next(), if !probes.is_empty() => {}
                _ = looks.tick() => {}
            }
            let nodes = watch.nodes();
            for (node, state) in &nodes {
                let ended = matches!(state.phase, NodePhase::Unknown | NodePhase::Lost | NodePhase::Left);
                if !ended
                    && watch.observer.is_late(node)
                    && probed.get(node).is_none_or(|at| at.elapsed() >= PROBE_EVERY)
                {
                    probed.insert(node.clone(), Instant::now());
                    let (watch, node, state) = (watch.clone(), node.clone(), state.clone());
                    probes.spawn(async move { watch.probe(node, state).await });
                }
            }
            let mut lost = Vec::new();
            for (node, state) in nodes {
                if watch.observer.health(&node, &state) == Health::Lost
                    && watch.declare_lost(&node, &state).await
                {
                    lost.push(Lost { node, incarnation: state.incarnation });
                }
            }
            if let (Some(tell), false) = (&tell, lost.is_empty()) {
                let _ = tell.try_send(lost);
            }
        }
    }

    fn nodes(&self) -> Vec<(StreamId, NodeState)> {
        let directory = self.directory.read();
        let watched = directory
            .nodes
            .iter()
            .filter(|(node, _)| node.kind() == self.kind && *node != self.observer.node());
        watched.map(|(node, state)| (node.clone(), state.clone())).collect()
    }

    /// Asks a silent node, and the workers of one that does not answer.
    async fn probe(&self, node: StreamId, state: NodeState) {
        match self.observer.ask(&*self.bus, &node).await {
            // There, or it is we who are away.
            Ok(_) | Err(RequestError::Disconnected(_)) => return,
            Err(RequestError::NoResponders(_) | RequestError::Timeout { .. }) => {}
        }
        if let Some(probe) = &self.media_probe {
            let answered = probe(node.clone(), state).await;
            self.observer.media_answered(&node, answered);
        }
    }

    /// Whether another observer heard this node lately.
    async fn is_vetoed(&self, node: &StreamId) -> bool {
        let others: Vec<StreamId> = {
            let directory = self.directory.read();
            let registered = directory.nodes.iter().filter(|(other, state)| {
                matches!(other.kind(), StreamKind::Nuve | StreamKind::Ec)
                    && *other != self.observer.node()
                    && *other != node
                    && matches!(state.phase, NodePhase::Registered | NodePhase::Draining)
            });
            registered.map(|(other, _)| other.clone()).collect()
        };
        let question = Payload::encode(node).0;
        let asked = others.into_iter().map(|other| {
            let (bus, question) = (self.bus.clone(), question.clone());
            async move {
                let answer = bus.request(Subject::heard(&other), question, ASK_TIMEOUT).await.ok()?;
                Payload(answer.payload).decode::<bool>().unwrap_or(false).then_some(other)
            }
        });
        let mut asked: JoinSet<Option<StreamId>> = asked.collect();
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(other)) = answer {
                tracing::warn!(%node, %other, "not heard here, but there: it is not called lost");
                return true;
            }
        }
        false
    }

    /// Says in the log that this start of a node is lost, unless that stands there. False when it is not to be called so.
    async fn declare_lost(&self, node: &StreamId, state: &NodeState) -> bool {
        match state.phase {
            NodePhase::Registered | NodePhase::Draining => {}
            NodePhase::Lost | NodePhase::Left => return true,
            NodePhase::Unknown => return false,
        }
        if self.is_vetoed(node).await {
            self.observer.heard_elsewhere(node);
            return false;
        }
        // Asking took time, in which this node itself may have been paused, or the other heard.
        if self.observer.health(node, state) != Health::Lost {
            return false;
        }
        let event = NodeLost {
            incarnation: state.incarnation,
            observer: self.observer.node().to_string(),
            reason: "no heartbeat and no answer".into(),
        };
        let draft = Draft { cause: Cause::of("timer"), ..Draft::default() };
        match self.log.append(node.clone(), state.head, draft, &[Event::from(event)]).await {
            Ok(commit) => {
                tracing::warn!(%node, incarnation = state.incarnation.0, "node lost");
                self.directory.wait_for(node, commit.last_version(), ASK_TIMEOUT).await;
                true
            }
            // Another observer was first, or it registered again: the next look sees which.
            Err(AppendError::Conflict { .. }) => false,
            Err(error) => {
                tracing::warn!(%node, %error, "that it is lost cannot be written down");
                false
            }
        }
    }
}
