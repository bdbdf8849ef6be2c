//! What time does: provisional things expire, lost reads are repeated, and worker and log are compared.

use super::*;
use crate::objects::Touched;

impl<R> Core<R> {
    pub(super) fn tick(&mut self) {
        let due: Vec<RoomId> = self.rooms.keys().cloned().collect();
        for id in due {
            self.with_room(&id, |core, room| {
                core.answer_waiters(&id, room, false);
                core.ask_again(&id, room);
                if room.is_behind() || room.adopting || core.has_expired(room, core.now) {
                    // Whether it has really not been committed is asked of the journal: our follower may be behind.
                    core.load_rest(&id, room);
                }
                if room.next_sweep <= core.now {
                    room.next_sweep = core.now + core.limits.sweep_every;
                    core.sweep(&id, room);
                }
            });
        }
    }

    fn is_over(&self, since: Duration, now: Duration) -> bool {
        since + self.limits.provisional_ttl <= now
    }

    fn has_expired(&self, room: &Room<R>, now: Duration) -> bool {
        // A fold that is stuck cannot say what has been committed since.
        !room.stuck && self.is_provisional_over(room, now)
    }

    fn is_provisional_over(&self, room: &Room<R>, now: Duration) -> bool {
        room.next.as_ref().is_some_and(|n| self.is_over(n.since, now))
            || room.left.iter().any(|left| self.is_over(left.since, now))
            || room.held.as_ref().is_some_and(|h| {
                !h.committed && self.is_over(h.place.since, now)
                    || h.objects.provisional().any(|o| self.is_over(o.since, now))
            })
    }

    /// Destroys what had been provisional for too long at `then`, a time up to which the fold is complete.
    pub(super) fn expire(&mut self, id: &RoomId, room: &mut Room<R>, then: Duration) {
        if room.stuck {
            return;
        }
        if room.next.as_ref().is_some_and(|n| self.is_over(n.since, then)) {
            self.drop_next(room);
        }
        self.expire_left(id, room, then);
        let ttl = self.limits.provisional_ttl;
        if let Some(held) = &mut room.held {
            if !held.committed && held.place.since + ttl <= then {
                self.drop_held(id, room, "it was not committed in time");
                if let Some(next) = room.next.take() {
                    self.activate(id, room, next, Vec::new());
                }
                return;
            }
            let commands = held.objects.close_where(|o| !o.committed && o.since + ttl <= then);
            if !commands.is_empty() {
                tracing::info!(room = %id, count = commands.len(), "objects that were not committed in time are destroyed");
            }
            self.follow_log(id, held, commands);
        }
    }

    /// Asks the worker what it holds.
    fn sweep(&mut self, id: &RoomId, room: &Room<R>) {
        if let Some(held) = room.held.as_ref().filter(|h| h.committed) {
            self.send(id, &held.place, MediaCommand::Inventory, Purpose::Sweep);
        }
    }

    /// Compares what the worker holds with the log. What it was told to close meanwhile may be in its answer still: then it is asked again.
    pub(super) fn swept(
        &mut self,
        id: &RoomId,
        room: &mut Room<R>,
        media_epoch: MediaEpoch,
        asked: Duration,
        result: Result<MediaAnswer, MediaError>,
    ) {
        let Some(held) = room.held.as_mut().filter(|h| h.place.media_epoch == media_epoch) else { return };
        if held.closed > asked {
            return self.sweep(id, room);
        }
        match result {
            Ok(MediaAnswer::Inventory { inventory }) => {
                let ghosts = held.objects.observe(&inventory, &room.fold, asked);
                if !ghosts.is_empty() {
                    tracing::warn!(room = %id, count = ghosts.len(), "the worker holds what the log does not have: closing it");
                }
                self.follow_log(id, held, ghosts);
                self.follow_objects(id, room, &Touched::All);
            }
            Ok(other) => {
                tracing::error!(room = %id, ?other, "the worker answered an inventory with something else")
            }
            Err(error) => {
                tracing::warn!(room = %id, %error, "the worker gave no inventory; it is asked again later")
            }
        }
    }
}
