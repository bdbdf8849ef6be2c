//! Rules of the nodes' streams, and what rooms need to know of nodes.

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::{Commit, StreamId, StreamKind, Writer, limit_stream},
    events::{AdoptedWorker, Event, Placement},
    ids::{EaId, Incarnation, Version, WorkerIndex},
    time::Timestamp,
};

use crate::{
    node::{NodePhase, NodeState},
    room::Owner,
    verify::Report,
    verify_turns::Turns,
};

/// All nodes on their way through the log.
#[derive(Debug, Default)]
pub(crate) struct Nodes(BTreeMap<StreamId, NodeCheck>);

#[derive(Debug, Default)]
struct NodeCheck {
    state: NodeState,
    /// Highest start of each worker.
    generations: BTreeMap<WorkerIndex, u64>,
    changed: Timestamp,
}

impl Nodes {
    pub(crate) fn commit(
        &mut self,
        commit: &Commit,
        events: &[Event],
        turns: &mut Turns,
        report: &mut Report,
    ) {
        let node = self.0.entry(commit.stream.clone()).or_default();
        let ea = (commit.stream.kind() == StreamKind::Ea)
            .then(|| EaId::new(commit.stream.id()).expect("a stream id is a token"));
        for (version, event) in (commit.version.0..).zip(events) {
            report.at_version(Version(version));
            node.event(commit, event, events, report);
            if let Some(ea) = &ea {
                match event {
                    Event::NodeRegistered(e) => turns.registered(ea, e.adopted.is_empty(), report),
                    Event::WorkerStarted(e) => turns.started(ea, e.worker, report),
                    Event::WorkerDied(_) => turns.ended(ea, report),
                    _ => {}
                }
            }
            if let Event::WorkerStarted(e) = event {
                let highest = node.generations.entry(e.worker).or_default();
                *highest = e.generation.max(*highest);
            }
            node.state.apply(event, commit.time);
        }
        node.state.head = Some(commit.head());
        node.changed = commit.time;
    }

    /// Whether a later start of a writer has registered.
    pub(crate) fn is_superseded(&self, writer: &Writer) -> bool {
        self.0.get(&writer.node).is_some_and(|node| node.state.incarnation > writer.incarnation)
    }

    /// Whether the log knows the owner of a room as running.
    pub(crate) fn is_alive(&self, owner: &Owner) -> bool {
        self.0.get(&StreamId::from(&owner.ec)).is_some_and(|node| {
            node.state.incarnation == owner.incarnation
                && matches!(node.state.phase, NodePhase::Registered | NodePhase::Draining)
        })
    }

    /// Since when at the latest, and how, the owner of a room is gone; none while it runs, or if nothing is known of it.
    pub(crate) fn owner_gone(&self, owner: &Owner) -> Option<(Timestamp, String)> {
        let node = self.0.get(&StreamId::from(&owner.ec))?;
        let how = Self::start_gone(&node.state, owner.incarnation)?;
        Some((node.changed, format!("EC {} {how}", owner.ec)))
    }

    /// The same of the worker that carries a room.
    pub(crate) fn media_gone(&self, place: &Placement) -> Option<(Timestamp, String)> {
        let node = self.0.get(&StreamId::from(&place.ea))?;
        let how = Self::place_gone(&node.state, place).or_else(|| {
            let runs = node.state.generations.get(&place.worker) == Some(&place.generation);
            (!runs).then(|| format!("worker {} start {} has died", place.worker, place.generation))
        })?;
        Some((node.changed, format!("EA {} {how}", place.ea)))
    }

    fn start_gone(node: &NodeState, incarnation: Incarnation) -> Option<String> {
        if node.incarnation > incarnation {
            return Some(format!("start {incarnation} was followed by start {}", node.incarnation));
        }
        Self::ended(node)
    }

    fn place_gone(node: &NodeState, place: &Placement) -> Option<String> {
        if node.has_restarted_without(place) {
            let next = node.incarnation;
            return Some(format!(
                "start {} was followed by start {next}, without its worker",
                place.incarnation
            ));
        }
        Self::ended(node)
    }

    fn ended(node: &NodeState) -> Option<String> {
        let incarnation = node.incarnation;
        match node.phase {
            NodePhase::Lost => Some(format!("start {incarnation} was lost")),
            NodePhase::Left => Some(format!("start {incarnation} has left")),
            NodePhase::Unknown | NodePhase::Registered | NodePhase::Draining => None,
        }
    }
}

impl NodeCheck {
    fn event(&self, commit: &Commit, event: &Event, all: &[Event], report: &mut Report) {
        let kind = event.kind();
        let writer = &commit.writer;
        let own = writer.node == commit.stream;
        let itself = |report: &mut Report| {
            report.must(own, "node-writer", || format!("{kind} written by {}, not by the node", writer.node))
        };
        match event {
            Event::NodeRegistered(e) => {
                let next = self.state.incarnation.next();
                let _ = itself(report)
                    && report.must(e.incarnation == next, "incarnation", || {
                        format!("registered as start {}, {next} is the next", e.incarnation)
                    })
                    && report.must(e.incarnation == writer.incarnation, "incarnation", || {
                        format!("start {} registered by start {}", e.incarnation, writer.incarnation)
                    });
                for adopted in &e.adopted {
                    let running = self.state.generations.get(&adopted.worker);
                    report.must(running == Some(&adopted.generation), "adopted", || {
                        let AdoptedWorker { worker, generation } = adopted;
                        format!("worker {worker} start {generation} is adopted, and did not run before")
                    });
                }
            }
            Event::WorkerStarted(e) => {
                if itself(report) && self.current(kind, writer.incarnation, report) {
                    // A node that registers again names the workers that run on.
                    let again = all.iter().any(|e| matches!(e, Event::NodeRegistered(_)));
                    let highest = self.generations.get(&e.worker).copied().unwrap_or(0);
                    let rises = e.generation > highest || (again && e.generation == highest);
                    report.must(rises, "worker-generation", || {
                        format!("worker {} is at start {highest}, and {} follows", e.worker, e.generation)
                    });
                }
            }
            Event::WorkerDied(_) => {
                let _ = itself(report) && self.current(kind, writer.incarnation, report);
            }
            Event::NodeLeft(e) => {
                let _ = itself(report) && self.current(kind, e.incarnation, report);
            }
            Event::NodeDraining(e) => {
                self.current(kind, e.incarnation, report);
            }
            Event::NodeLost(e) => {
                if self.current(kind, e.incarnation, report) {
                    report.must(self.state.phase != NodePhase::Lost, "lost-twice", || {
                        format!("start {} is lost already", e.incarnation)
                    });
                }
            }
            Event::LimitShared(e) => {
                let _ = report.must(commit.stream == limit_stream(), "wrong-stream", || {
                    format!("{kind} in {}", commit.stream)
                }) && report.must(
                    e.floors.values().copied().fold(0, u64::saturating_add) <= e.limit,
                    "limit",
                    || format!("the fixed shares {:?} are more than the limit {}", e.floors, e.limit),
                );
            }
            Event::Unknown(_) => {}
            _ => {
                report.must(false, "wrong-stream", || format!("{kind} in the stream of a node"));
            }
        }
    }

    /// Whether an event is about the start that is registered now.
    fn current(&self, kind: &str, incarnation: Incarnation, report: &mut Report) -> bool {
        let now = self.state.incarnation;
        report.must(incarnation >= now, "zombie", || {
            format!("{kind} of start {incarnation}, after start {now} registered")
        }) && report.must(incarnation == now, "incarnation", || {
            format!("{kind} of start {incarnation}, which has not registered; the last is {now}")
        })
    }
}
