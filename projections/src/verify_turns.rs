//! Round robin, as far as the log shows it: how often each worker of an EA was given a room.
//!
//! An EA gives a worker its turn when it is asked, and the log says so when the EC has committed. So assignments may stand in another order
//! than they were made (which evens out), and one that was never committed took a turn the log does not show. Hence counts are
//! compared only where a stretch ends, and a difference of 2 is a warning, not an error.
//!
//! A stretch begins when the EA registers with new workers only. It ends with the first room that leaves the EA (from then on rooms go round in turn, and the counts
//! say less and less), when a worker dies, and when one joins late (it is first filled up to the others).

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::StreamId,
    ids::{EaId, WorkerIndex},
};

use crate::verify::{Report, Severity};

/// All EAs with a stretch under way: rooms given to each worker in it.
#[derive(Debug, Default)]
pub(crate) struct Turns(BTreeMap<EaId, BTreeMap<WorkerIndex, u64>>);

impl Turns {
    /// The EA registered: a stretch begins, if its workers are `empty`.
    pub(crate) fn registered(&mut self, ea: &EaId, empty: bool, report: &mut Report) {
        self.ended(ea, report);
        if empty {
            self.0.insert(ea.clone(), BTreeMap::new());
        }
    }

    /// A worker is ready.
    pub(crate) fn started(&mut self, ea: &EaId, worker: WorkerIndex, report: &mut Report) {
        match self.0.get_mut(ea) {
            Some(given) if given.values().all(|rooms| *rooms == 0) => {
                given.insert(worker, 0);
            }
            _ => self.ended(ea, report),
        }
    }

    /// A worker was given a room.
    pub(crate) fn given(&mut self, ea: &EaId, worker: WorkerIndex) {
        if let Some(given) = self.0.get_mut(ea) {
            *given.entry(worker).or_default() += 1;
        }
    }

    /// A room left the EA, or a worker died.
    pub(crate) fn ended(&mut self, ea: &EaId, report: &mut Report) {
        let Some(given) = self.0.remove(ea) else { return };
        let most = given.values().max().copied().unwrap_or(0);
        let fewest = given.values().min().copied().unwrap_or(0);
        let severity = if most - fewest > 2 { Severity::Error } else { Severity::Warning };
        let done = report.at_stream(StreamId::from(ea));
        report.check(most - fewest <= 1, severity, "round-robin", || {
            let counts: Vec<String> =
                given.iter().map(|(worker, rooms)| format!("worker {worker}: {rooms}")).collect();
            format!("before any room left it, its workers were given rooms unevenly: {}", counts.join(", "))
        });
        done(report);
    }

    /// The log has ended.
    pub(crate) fn finish(&mut self, report: &mut Report) {
        while let Some(ea) = self.0.keys().next().cloned() {
            self.ended(&ea, report);
        }
    }
}
