//! The fold of a node's stream: which start of it is the current one, and how it ended.

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::{Commit, Head},
    events::{AdoptedWorker, Event, Placement},
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
    /// Of workers that a later start of the node has adopted: the start they began in.
    #[serde(default)]
    pub began: BTreeMap<WorkerIndex, Incarnation>,
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
                self.address.clone_from(&e.address);
                self.workers = e.workers;
                self.probe.clone_from(&e.probe);
                self.version.clone_from(&e.version);
                self.adopt(e.incarnation, &e.adopted);
                self.incarnation = e.incarnation;
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
                self.began.remove(&e.worker);
            }
            Event::WorkerDied(e) => {
                self.generations.remove(&e.worker);
                self.began.remove(&e.worker);
            }
            _ => {}
        }
    }

    /// In which start of the node a worker that runs began; none for one that does not run.
    pub fn began_in(&self, worker: WorkerIndex) -> Option<Incarnation> {
        self.generations.get(&worker)?;
        Some(self.began.get(&worker).copied().unwrap_or(self.incarnation))
    }

    /// Whether a start of the node that came after the one at `placement` did not take its worker over.
    pub fn has_restarted_without(&self, placement: &Placement) -> bool {
        self.incarnation > placement.incarnation
            && self.began_in(placement.worker).is_none_or(|began| began > placement.incarnation)
    }

    /// Workers end with the start of their node, but for those that the next one adopts. Who was called lost, or left, has nothing that
    /// others have not been given since: what runs on of it begins anew.
    fn adopt(&mut self, next: Incarnation, adopted: &[AdoptedWorker]) {
        let goes_on = matches!(self.phase, NodePhase::Registered | NodePhase::Draining);
        let (mut generations, mut began) = (BTreeMap::new(), BTreeMap::new());
        for AdoptedWorker { worker, generation } in adopted {
            let same = goes_on && self.generations.get(worker) == Some(generation);
            let since = self.began_in(*worker).filter(|_| same).unwrap_or(next);
            generations.insert(*worker, *generation);
            began.insert(*worker, since);
        }
        (self.generations, self.began) = (generations, began);
    }

    fn enter(&mut self, phase: NodePhase, time: Timestamp) {
        self.phase = phase;
        self.since = time;
    }
}

#[cfg(test)]
mod tests {
    use roomlog_bus::{
        events::{NodeLost, NodeRegistered, WorkerStarted},
        ids::EaId,
    };

    use super::*;

    fn fold(events: &[Event]) -> NodeState {
        let mut state = NodeState::default();
        events.iter().for_each(|event| state.apply(event, Timestamp(1)));
        state
    }

    fn registered(incarnation: u64, adopted: &[(u16, u64)]) -> Event {
        let adopted = adopted
            .iter()
            .map(|&(worker, generation)| AdoptedWorker { worker: WorkerIndex(worker), generation });
        NodeRegistered {
            incarnation: Incarnation(incarnation),
            address: String::new(),
            workers: 2,
            version: String::new(),
            probe: None,
            adopted: adopted.collect(),
        }
        .into()
    }

    fn started(worker: u16, generation: u64) -> Event {
        WorkerStarted { worker: WorkerIndex(worker), generation }.into()
    }

    fn place(incarnation: u64, worker: u16, generation: u64) -> Placement {
        let (incarnation, worker) = (Incarnation(incarnation), WorkerIndex(worker));
        Placement { ea: EaId::new("a").expect("a token"), incarnation, worker, generation }
    }

    #[test]
    fn what_was_placed_on_a_worker_stays_there_for_as_long_as_it_is_taken_over() {
        let mut events =
            vec![registered(1, &[]), started(0, 1), started(1, 1), registered(2, &[(0, 1)]), started(1, 2)];
        let state = fold(&events);
        assert!(!state.has_restarted_without(&place(1, 0, 1)));
        assert!(state.has_restarted_without(&place(1, 1, 1)), "worker 1 is another one");
        assert!(!state.has_restarted_without(&place(2, 1, 2)));
        events.push(registered(3, &[(0, 1), (1, 2)]));
        let state = fold(&events);
        for (place, gone) in [
            (place(1, 0, 1), false),
            (place(2, 0, 1), false),
            (place(2, 1, 2), false),
            (place(1, 1, 1), true),
        ] {
            assert_eq!(state.has_restarted_without(&place), gone, "{place:?}");
        }
        events.push(registered(4, &[]));
        assert!(fold(&events).has_restarted_without(&place(1, 0, 1)));
    }

    #[test]
    fn nothing_is_left_on_the_workers_of_a_node_that_was_called_lost() {
        let lost = NodeLost { incarnation: Incarnation(1), observer: String::new(), reason: String::new() };
        let state = fold(&[registered(1, &[]), started(0, 1), lost.into(), registered(2, &[(0, 1)])]);
        assert!(state.has_restarted_without(&place(1, 0, 1)));
        assert!(!state.has_restarted_without(&place(2, 0, 1)), "what is placed there now is there");
        // Nor on one that registered again in the same process, for the same reason.
        let state = fold(&[registered(1, &[]), started(0, 1), registered(2, &[]), started(0, 1)]);
        assert!(state.has_restarted_without(&place(1, 0, 1)));
    }
}
