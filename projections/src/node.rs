//! The fold of a node's stream: which start of it is the current one, and how it ended.

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::{Commit, Head},
    events::Event,
    ids::{Incarnation, WorkerIndex},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::room::{FoldError, not_next};

/// Where a node is in its life, as far as the log knows. Suspicion is each observer's own and is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodePhase {
    /// Never started.
    #[default]
    Unknown,
    /// Started and not known to have ended.
    Registered,
    /// Takes nothing new.
    Draining,
    /// Silent for too long.
    Lost,
    /// Stopped as told.
    Left,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeState {
    /// Where the stream ended when this was folded.
    pub head: Option<Head>,
    /// Current start; 0 before the first.
    pub incarnation: Incarnation,
    /// Where others reach it.
    pub address: String,
    /// SFU workers, of an EA.
    pub workers: u16,
    /// The password for asking its workers whether they live, of an EA.
    #[serde(default)]
    pub probe: Option<String>,
    /// The build.
    pub version: String,
    /// When draining ends at the latest.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    /// Where it is in its life.
    pub phase: NodePhase,
    /// When that began.
    pub since: Timestamp,
    /// Which start of each worker is running; absent while it is down.
    pub generations: BTreeMap<WorkerIndex, u64>,
}

impl NodeState {
    /// Folds the next commit of the stream.
    pub fn apply_commit(&mut self, commit: &Commit) -> Result<(), FoldError> {
        if !commit.follows(self.head.as_ref()) {
            return Err(not_next(commit, self.head));
        }
        let events = commit.events.iter().map(Event::decode).collect::<Result<Vec<_>, _>>()?;
        for event in &events {
            self.apply(event, commit.time);
        }
        self.head = Some(commit.head());
        Ok(())
    }

    /// Folds one event. An event about an earlier start of the node changes nothing.
    pub fn apply(&mut self, event: &Event, time: Timestamp) {
        match event {
            Event::NodeRegistered(e) => {
                self.incarnation = e.incarnation;
                self.address.clone_from(&e.address);
                self.workers = e.workers;
                self.probe.clone_from(&e.probe);
                self.version.clone_from(&e.version);
                self.generations.clear();
                self.deadline = None;
                self.enter(NodePhase::Registered, time);
            }
            Event::NodeLost(e) if e.incarnation == self.incarnation => self.enter(NodePhase::Lost, time),
            Event::NodeDraining(e) if e.incarnation == self.incarnation => {
                self.deadline = e.deadline;
                self.enter(NodePhase::Draining, time);
            }
            Event::NodeLeft(e) if e.incarnation == self.incarnation => self.enter(NodePhase::Left, time),
            Event::WorkerStarted(e) => {
                self.generations.insert(e.worker, e.generation);
            }
            Event::WorkerDied(e) => {
                self.generations.remove(&e.worker);
            }
            _ => {}
        }
    }

    fn enter(&mut self, phase: NodePhase, time: Timestamp) {
        self.phase = phase;
        self.since = time;
    }
}
