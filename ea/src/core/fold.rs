//! Folding: commits of rooms we hold, commits that give us a room, and what the node's own stream says of us.

use super::*;
use crate::objects::{Touched, touched};

/// Events that can give a room to an EA; nothing else of a foreign room is decoded.
const PLACING: [&str; 2] = ["EaAssigned", "MediaMoved"];

impl<R> Core<R> {
    pub(super) fn commit(&mut self, commit: &Commit) {
        if commit.stream == self.stream {
            return self.own_commit(commit);
        }
        if commit.stream.kind() != StreamKind::Room {
            return;
        }
        let id = RoomId::new(commit.stream.id()).expect("a stream id is a token");
        if self.rooms.contains_key(&id) {
            self.with_room(&id, |core, room| {
                room.seen = room.seen.max(commit.last_version());
                // While a read is under way this commit is either in it or read right after it.
                if room.loading.is_none() && room.anew.is_none() {
                    core.fold(&id, room, commit);
                }
            });
        } else if self.is_named_in(commit) {
            let mut room = Room::new(self.now, self.limits.sweep_every);
            room.seen = commit.last_version();
            self.load_rest(&id, &mut room);
            self.rooms.insert(id, room);
        }
    }

    /// Reads every room anew. Its media goes on meanwhile, and stays where the log still has it.
    pub(super) fn repaired(&mut self) {
        for id in self.rooms.keys().cloned().collect::<Vec<_>>() {
            self.with_room(&id, |core, room| {
                room.anew = Some(Anew::Wanted);
                // What was followed before may not be in the log any more; what is followed from here on is, and a read may lack it.
                room.seen = Version(0);
                core.load_rest(&id, room);
            });
        }
    }

    /// Whether a commit gives a room to a running worker of ours.
    fn is_named_in(&self, commit: &Commit) -> bool {
        let placing = commit.events.iter().filter(|e| PLACING.contains(&e.kind.as_str()));
        placing.filter_map(|raw| Event::decode(raw).ok()).any(|event| match event {
            Event::EaAssigned(e) => self.is_live(&e.placement),
            Event::MediaMoved(e) => e.to.is_some_and(|to| self.is_live(&to)),
            _ => false,
        })
    }

    pub(super) fn loaded(&mut self, id: &RoomId, commits: Option<Vec<Arc<Commit>>>) {
        let deferred = self.with_room(id, |core, room| {
            let Some(asked) = room.loading.take() else { return Vec::new() };
            // This read began before the repair.
            if room.anew == Some(Anew::Wanted) {
                core.load_rest(id, room);
                return Vec::new();
            }
            let Some(commits) = commits else { return Vec::new() }; // the next tick asks again
            if room.anew.take().is_some() {
                room.fold = RoomState::default();
                room.epoch = Epoch(0); // an epoch that is not in the log any more binds nobody
                room.stuck = false;
            }
            let before = room.fold.version();
            for commit in &commits {
                core.apply(id, room, commit);
                // What this commit made may be ended by a later one of the same read: it must have been seen in between.
                if let Some(held) =
                    room.held.as_mut().filter(|h| h.place.media_epoch == room.fold.media_epoch)
                {
                    held.objects.mark_committed(&room.fold);
                }
            }
            // Once, at the end: sessions that are over must not be played again on the worker.
            core.settle(id, room, &Touched::All);
            core.answer_waiters(id, room, false);
            if room.fold.version() < room.seen && room.fold.version() > before {
                core.load_rest(id, room);
            }
            // The fold is now at least as far as the log was when the read began: what it lacks had not been committed by then.
            core.expire(id, room, asked);
            room.adopting = false;
            std::mem::take(&mut room.deferred)
        });
        for (reply, request) in deferred.into_iter().flatten() {
            self.request_of_known(reply, request);
        }
    }

    /// Folds a followed commit; a hole is read from the journal.
    fn fold(&mut self, id: &RoomId, room: &mut Room<R>, commit: &Commit) {
        if room.stuck {
            let ends = |kind: &str| kind == "RoomClosed" || kind == "RoomDeleted";
            if commit.events.iter().any(|e| ends(&e.kind)) {
                self.drop_held(id, room, "the log has ended it");
            }
        } else if commit.last_version() <= room.fold.version() {
            // It was in the read before.
        } else if commit.follows(room.fold.head.as_ref()) {
            self.apply(id, room, commit);
            self.settle(id, room, &touched(commit));
            self.answer_waiters(id, room, false);
        } else {
            self.load_rest(id, room);
        }
    }

    fn apply(&mut self, id: &RoomId, room: &mut Room<R>, commit: &Commit) {
        if commit.last_version() <= room.fold.version() || room.stuck {
            return;
        }
        room.seen = room.seen.max(commit.last_version());
        if let Err(error) = room.fold.apply_commit(commit) {
            // Packets that flow are worth more than a fold that is stuck. Only the end of the session is still heeded.
            room.stuck = true;
            tracing::error!(room = %id, commit = %commit.id, %error, "commit not folded: the room's media stays as it is until the session ends");
        }
        for objects in room.left.iter_mut().filter_map(|left| left.objects.as_mut()) {
            objects.mark_committed(&room.fold);
        }
    }

    /// Brings what is held in line with the fold.
    fn settle(&mut self, id: &RoomId, room: &mut Room<R>, touched: &Touched) {
        let ours = room.fold.placements.get(&self.me).cloned();
        let (fold_epoch, fold_media) = (room.fold.epoch(), room.fold.media_epoch);
        let passed = |place: &Reserved| place.epoch < fold_epoch || place.media_epoch < fold_media;

        if let Some(next) = &room.next {
            if ours.as_ref() == Some(&next.placement) && fold_media == next.media_epoch {
                self.promote(id, room, "media moved on this EA");
            } else if passed(next) {
                self.drop_next(room);
            }
        }
        if let Some(held) = &mut room.held {
            if ours.as_ref() == Some(&held.place.placement) && fold_media >= held.place.media_epoch {
                held.committed = true;
                held.place.media_epoch = fold_media;
                held.had_clients |= !room.fold.clients.is_empty();
                if held.had_clients && room.fold.clients.is_empty() {
                    self.drop_held(id, room, "its last client has left");
                }
            } else if held.committed {
                self.drop_held(id, room, "the log has ended it");
            } else if passed(&held.place) {
                self.drop_held(id, room, "a higher epoch passed before it was committed");
            }
        }
        if room.held.is_none() {
            if let Some(next) = room.next.take() {
                self.activate(id, room, next, Vec::new());
            } else if let Some(placement) = ours.filter(|p| self.is_live(p) && !room.fold.clients.is_empty())
                && !self.take_over(id, room, &placement)
            {
                // It expired here before it was committed, or the answer to its opening was lost: the log says we have it, so we do.
                self.turns.take(placement.worker);
                let place =
                    Reserved { placement, media_epoch: fold_media, epoch: fold_epoch, since: self.now };
                self.activate(id, room, place, Vec::new());
                if let Some(held) = &mut room.held {
                    held.committed = true;
                    held.had_clients = true;
                }
            }
        }
        self.follow_objects(id, room, touched);
    }

    /// Tells the worker what the fold changed about objects.
    pub(super) fn follow_objects(&mut self, id: &RoomId, room: &mut Room<R>, touched: &Touched) {
        let Some(held) = room.held.as_mut().filter(|h| h.place.media_epoch == room.fold.media_epoch) else {
            return;
        };
        let commands = held.objects.follow(&room.fold, touched);
        self.follow_log(id, held, commands);
    }

    fn own_commit(&mut self, commit: &Commit) {
        for raw in &commit.events {
            match Event::decode(raw) {
                Ok(Event::NodeLost(e)) if e.incarnation == self.incarnation && !self.reregistering => {
                    tracing::warn!(incarnation = %e.incarnation, observer = e.observer, "the log says this EA is lost: registering again; media flows on");
                    self.reregistering = true;
                    self.out.push(Effect::Reregister(self.running()));
                }
                Ok(Event::NodeDraining(e)) if e.incarnation == self.incarnation => {
                    self.draining = true;
                    self.drained_by = e.deadline;
                }
                Ok(Event::NodeRegistered(NodeRegistered { incarnation, .. }))
                    if incarnation > self.incarnation && !self.reregistering =>
                {
                    self.out.push(Effect::Superseded(incarnation));
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "an event of the node's own stream does not read"),
            }
        }
    }
}
