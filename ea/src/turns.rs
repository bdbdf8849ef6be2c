//! Whose turn it is: gives rooms to live workers round robin.
//!
//! While no room has closed, the room counts of the live workers differ by at most one; after closings the next rooms still go round in
//! turn, so a worker that just lost many rooms is not flooded by all that come next. A worker that joins late (it was replaced, or slow to
//! start) is first filled up to the least loaded of the others.

use roomlog_bus::ids::WorkerIndex;

/// The workers of one EA and how many rooms each has.
#[derive(Debug, Clone)]
pub struct Turns {
    workers: Vec<Worker>,
    /// Who had the last turn.
    last: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Worker {
    live: bool,
    rooms: u64,
    /// Rooms it was ever given since it joined, on the common scale: the fewest has the next turn. Closings do not count back.
    turns: u64,
}

impl Turns {
    /// `workers` workers, none of them live.
    pub fn new(workers: usize) -> Self {
        Self { workers: vec![Worker::default(); workers], last: workers.saturating_sub(1) }
    }

    /// The worker is ready for rooms and has none.
    pub fn join(&mut self, worker: WorkerIndex) {
        // What the others had closed is set against their turns; the largest such number leaves the smallest gap to be filled.
        let closed = self.live().map(|w| w.turns - w.rooms).max().unwrap_or(0);
        if let Some(worker) = self.workers.get_mut(usize::from(worker.0)) {
            *worker = Worker { live: true, rooms: 0, turns: closed };
        }
    }

    /// These workers run on from an earlier process and hold so many rooms each. Nobody knows whose turn it was; the one with the fewest has
    /// it, unless they differ by more than opening in turn can make them: then rooms have closed, which does not count, and it goes round
    /// from here. Call it before others join.
    pub fn adopt(&mut self, holding: &[(WorkerIndex, u64)]) {
        let most = holding.iter().map(|(_, rooms)| *rooms).max().unwrap_or(0);
        let in_turn = holding.iter().all(|(_, rooms)| most - rooms <= 1);
        for &(worker, rooms) in holding {
            if let Some(worker) = self.workers.get_mut(usize::from(worker.0)) {
                *worker = Worker { live: true, rooms, turns: if in_turn { rooms } else { most } };
            }
        }
    }

    /// The worker is gone, and its rooms with it.
    pub fn leave(&mut self, worker: WorkerIndex) {
        if let Some(worker) = self.workers.get_mut(usize::from(worker.0)) {
            *worker = Worker::default();
        }
    }

    /// Gives a room to the worker whose turn it is; none when no worker is live.
    pub fn give(&mut self) -> Option<WorkerIndex> {
        let count = self.workers.len();
        let next = (1..=count)
            .map(|step| (self.last + step) % count)
            .filter(|&index| self.workers[index].live)
            .min_by_key(|&index| self.workers[index].turns)?;
        self.last = next;
        self.count(next);
        Some(WorkerIndex(next as u16))
    }

    /// A room went to this worker without asking whose turn it was.
    pub fn take(&mut self, worker: WorkerIndex) {
        if self.workers.get(usize::from(worker.0)).is_some_and(|w| w.live) {
            self.count(usize::from(worker.0));
        }
    }

    /// A room of this worker has closed.
    pub fn close(&mut self, worker: WorkerIndex) {
        if let Some(worker) = self.workers.get_mut(usize::from(worker.0)) {
            worker.rooms = worker.rooms.saturating_sub(1);
        }
    }

    /// Rooms on a worker.
    pub fn rooms(&self, worker: WorkerIndex) -> u64 {
        self.workers.get(usize::from(worker.0)).map_or(0, |w| w.rooms)
    }

    /// Rooms on all workers.
    pub fn total(&self) -> u64 {
        self.live().map(|w| w.rooms).sum()
    }

    fn live(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|w| w.live)
    }

    fn count(&mut self, index: usize) {
        self.workers[index].rooms += 1;
        self.workers[index].turns += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn live(count: usize) -> Turns {
        let mut turns = Turns::new(count);
        (0..count).for_each(|w| turns.join(WorkerIndex(w as u16)));
        turns
    }

    fn indices(turns: &mut Turns, count: usize) -> Vec<u16> {
        (0..count).map(|_| turns.give().unwrap().0).collect()
    }

    #[test]
    fn rooms_go_round_in_turn_even_after_closings() {
        let mut turns = live(3);
        assert_eq!(indices(&mut turns, 4), [0, 1, 2, 0]);
        turns.close(WorkerIndex(0));
        turns.close(WorkerIndex(0));
        assert_eq!(indices(&mut turns, 4), [1, 2, 0, 1]);
        assert_eq!(turns.total(), 6);
    }

    #[test]
    fn a_replaced_worker_is_filled_up_to_the_others() {
        let mut turns = live(2);
        indices(&mut turns, 6);
        turns.leave(WorkerIndex(0));
        assert_eq!(indices(&mut turns, 1), [1]);
        turns.join(WorkerIndex(0));
        assert_eq!(indices(&mut turns, 6), [0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn a_replaced_worker_is_not_flooded_for_rooms_that_have_closed_elsewhere() {
        let mut turns = live(2);
        indices(&mut turns, 20);
        (0..9).for_each(|_| turns.close(WorkerIndex(1)));
        turns.leave(WorkerIndex(0));
        turns.join(WorkerIndex(0));
        assert_eq!(indices(&mut turns, 4), [0, 1, 0, 1], "one room to catch up, then in turn");
    }

    #[test]
    fn workers_that_run_on_are_given_rooms_in_turn() {
        let holding = |rooms: &[u64]| {
            let mut turns = Turns::new(3);
            let holding: Vec<_> = (0..).zip(rooms).map(|(w, rooms)| (WorkerIndex(w), *rooms)).collect();
            turns.adopt(&holding);
            (rooms.len()..3).for_each(|w| turns.join(WorkerIndex(w as u16)));
            indices(&mut turns, 4)
        };
        assert_eq!(holding(&[2, 1, 2]), [1, 2, 0, 1], "the one that was next has the turn");
        assert_eq!(holding(&[9, 2, 4]), [0, 1, 2, 0], "closings do not count");
        assert_eq!(holding(&[2, 2]), [2, 2, 0, 1], "a new one is filled up to the others");
    }

    #[test]
    fn with_no_live_worker_nobody_has_the_turn() {
        assert_eq!(Turns::new(0).give(), None);
        assert_eq!(Turns::new(2).give(), None);
        let mut turns = live(1);
        turns.leave(WorkerIndex(0));
        assert_eq!(turns.give(), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Open,
        Close(usize),
        Leave(usize),
        Join(usize),
    }

    fn steps(closings: bool, deaths: bool) -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => Just(Step::Open),
            u32::from(closings) * 4 => (0..8usize).prop_map(Step::Close),
            u32::from(deaths) * 2 => (0..8usize).prop_map(Step::Leave),
            u32::from(deaths) * 2 => (0..8usize).prop_map(Step::Join),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn without_closings_counts_differ_by_at_most_one(count in 1..9usize, opens in 0..200usize) {
            let mut turns = live(count);
            for _ in 0..opens {
                turns.give();
                let rooms: Vec<u64> = (0..count).map(|w| turns.rooms(WorkerIndex(w as u16))).collect();
                prop_assert!(rooms.iter().max().unwrap() - rooms.iter().min().unwrap() <= 1, "{rooms:?}");
            }
        }

        #[test]
        fn closings_do_not_disturb_the_turn(count in 1..9usize, steps in steps(true, false)) {
            let mut turns = live(count);
            let mut expected = 0;
            for step in steps {
                match step {
                    Step::Open => {
                        prop_assert_eq!(turns.give(), Some(WorkerIndex(expected as u16)));
                        expected = (expected + 1) % count;
                    }
                    Step::Close(worker) => turns.close(WorkerIndex((worker % count) as u16)),
                    Step::Leave(_) | Step::Join(_) => {}
                }
            }
        }

        #[test]
        fn with_deaths_but_no_closings_the_emptiest_live_worker_is_next(count in 1..9usize, steps in steps(false, true)) {
            let mut turns = live(count);
            let mut rooms: Vec<Option<u64>> = vec![Some(0); count];
            for step in steps {
                match step {
                    Step::Open => {
                        let fewest = rooms.iter().flatten().min().copied();
                        let next = turns.give();
                        prop_assert_eq!(next.is_some(), fewest.is_some());
                        if let Some(next) = next {
                            let given = rooms[usize::from(next.0)].as_mut().unwrap();
                            prop_assert_eq!(Some(*given), fewest);
                            *given += 1;
                        }
                    }
                    Step::Leave(worker) => {
                        turns.leave(WorkerIndex((worker % count) as u16));
                        rooms[worker % count] = None;
                    }
                    Step::Join(worker) if rooms[worker % count].is_none() => {
                        turns.join(WorkerIndex((worker % count) as u16));
                        rooms[worker % count] = Some(0);
                    }
                    Step::Join(_) | Step::Close(_) => {}
                }
            }
        }
    }
}
