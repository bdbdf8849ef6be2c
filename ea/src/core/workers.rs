//! Workers coming and going. The death of one touches its own rooms and nothing else.

use roomlog_bus::events::{WorkerDied, WorkerStarted};

use super::*;

impl<R> Core<R> {
    pub(super) fn worker_ready(&mut self, worker: WorkerIndex, generation: u64) {
        let Some(slot) = self.workers.get_mut(usize::from(worker.0)) else { return };
        if slot.generation.is_some_and(|known| known >= generation) {
            return; // it was ready before the node was registered
        }
        let began = self.first_incarnation;
        *slot = Worker { generation: Some(generation), announced: false, began, pending: 0 };
        self.out.push(Effect::Append(WorkerStarted { worker, generation }.into()));
    }

    pub(super) fn worker_announced(&mut self, worker: WorkerIndex, generation: u64) {
        let Some(slot) = self.workers.get_mut(usize::from(worker.0)) else { return };
        if slot.generation == Some(generation) && !slot.announced {
            slot.announced = true;
            self.turns.join(worker);
        }
    }

    pub(super) fn worker_died(&mut self, worker: WorkerIndex, generation: u64, reason: String) {
        let Some(slot) = self.workers.get_mut(usize::from(worker.0)) else { return };
        if slot.generation != Some(generation) {
            return;
        }
        // From here on nothing is sent to it and no room counts on it.
        *slot = Worker::default();
        self.turns.leave(worker);

        let unanswered: Vec<u64> =
            self.pending.iter().filter(|(_, p)| p.worker == worker).map(|(id, _)| *id).collect();
        for id in unanswered {
            self.answered(
                id,
                Err(MediaError::Unavailable { reason: format!("its SFU worker died: {reason}") }),
            );
        }

        let is_on = |place: &Reserved| place.placement.worker == worker;
        let touched: Vec<RoomId> = (self.rooms.iter())
            .filter(|(_, room)| {
                room.held.as_ref().is_some_and(|h| is_on(&h.place))
                    || room.next.as_ref().is_some_and(is_on)
                    || room.left.iter().any(|left| left.worker == worker)
            })
            .map(|(id, _)| id.clone())
            .collect();
        let mut rooms = Vec::new();
        for id in touched {
            self.with_room(&id, |core, room| {
                room.left.retain(|left| left.worker != worker);
                if room.adopting {
                    core.load_rest(&id, room);
                }
                if room.next.as_ref().is_some_and(is_on) {
                    core.drop_next(room);
                }
                if room.held.as_ref().is_some_and(|h| is_on(&h.place)) {
                    core.drop_held(&id, room, "its SFU worker died");
                    rooms.push(id.clone());
                    if let Some(next) = room.next.take() {
                        core.activate(&id, room, next, Vec::new());
                    }
                }
            });
        }
        tracing::warn!(%worker, generation, reason, rooms = rooms.len(), "SFU worker died");
        self.out.push(Effect::Append(WorkerDied { worker, generation, reason, rooms }.into()));
    }

    pub(super) fn notified(
        &mut self,
        worker: WorkerIndex,
        generation: u64,
        id: RoomId,
        notification: MediaNotification,
    ) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        if let MediaNotification::TransportState { transport, state } = &notification
            && let Some(left) = room.left.iter_mut().find(|left| left.worker == worker)
        {
            left.states.insert(transport.clone(), *state); // told when the room is taken over
        }
        let Some(held) = &room.held else { return };
        let placement = &held.place.placement;
        if placement.worker != worker || placement.generation != generation {
            return;
        }
        // Without an owner nobody can be told; the EC asks for the inventory when it takes over.
        if let Some(owner) = &room.fold.owner {
            let media_epoch = held.place.media_epoch;
            let notification = RoomNotification { room: id, media_epoch, notification };
            self.out.push(Effect::Notify { ec: owner.ec.clone(), notification });
        }
    }

    /// Workers that run and are announced.
    pub(super) fn running(&self) -> Vec<(WorkerIndex, u64)> {
        let announced = self.workers.iter().enumerate().filter(|(_, w)| w.announced);
        announced.filter_map(|(i, w)| Some((WorkerIndex(i as u16), w.generation?))).collect()
    }
}
