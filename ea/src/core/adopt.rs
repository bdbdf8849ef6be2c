//! Rooms on workers that run on from an earlier process of this EA.
//!
//! A worker says which rooms it holds, and for each what; then the room's stream is read from its beginning. What both have stays untouched.
//! What the log has made and ended is closed; what it never had is provisional from now on. What only the log has cannot be made again, and
//! the EC is told, for whom it is the end of one client's media. The worker knows no epochs, and needs none: ids are used once.

use roomlog_bus::{ids::TransportId, media::TransportState};

use super::*;

/// A router that was left on a worker and is not the room's, or not known to be.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) worker: WorkerIndex,
    /// When it was found.
    pub(super) since: Duration,
    /// What is on it; none while the worker is still to say.
    pub(super) objects: Option<Objects>,
    /// The worker is being asked.
    asked: bool,
    /// How far its transports have come.
    pub(super) states: BTreeMap<TransportId, TransportState>,
}

impl<R> Core<R> {
    /// Workers join; those that run on are asked what they hold.
    pub(super) fn begin(&mut self, starts: &[Option<Start>]) {
        let index = |index: usize| WorkerIndex(index as u16);
        let adopted = || {
            let running = starts.iter().enumerate().filter_map(|(i, start)| Some((i, start.as_ref()?)));
            running.filter_map(|(i, start)| Some((index(i), start.adopted.as_ref()?)))
        };
        let holding: Vec<_> = adopted().map(|(worker, rooms)| (worker, rooms.len() as u64)).collect();
        self.turns.adopt(&holding);
        for (i, _) in
            starts.iter().enumerate().filter(|(_, s)| s.as_ref().is_some_and(|s| s.adopted.is_none()))
        {
            self.turns.join(index(i));
        }
        for (worker, rooms) in adopted() {
            for id in rooms {
                let mut room =
                    self.rooms.remove(id).unwrap_or_else(|| Room::new(self.now, self.limits.sweep_every));
                room.adopting = true;
                let (since, states) = (self.now, BTreeMap::new());
                room.left.push(Left { worker, since, objects: None, asked: false, states });
                self.ask_again(id, &mut room);
                self.rooms.insert(id.clone(), room);
            }
        }
    }

    /// Asks the workers that have still to say what they hold.
    pub(super) fn ask_again(&mut self, id: &RoomId, room: &mut Room<R>) {
        for left in room.left.iter_mut().filter(|left| left.objects.is_none() && !left.asked) {
            left.asked = true;
            self.send_to(id, left.worker, MediaEpoch(0), MediaCommand::Inventory, Purpose::Adopt);
        }
    }

    /// A worker has said what it holds.
    pub(super) fn inventoried(
        &mut self,
        id: &RoomId,
        room: &mut Room<R>,
        worker: WorkerIndex,
        result: Result<MediaAnswer, MediaError>,
    ) {
        let now = self.now;
        let Some(left) = room.left.iter_mut().find(|left| left.worker == worker) else { return };
        left.asked = false;
        match result {
            Ok(MediaAnswer::Inventory { inventory }) => {
                left.objects = Some(Objects::found(&inventory, now));
                left.states.extend(inventory.transports.into_iter().map(|t| (t.id, t.state)));
                left.since = now;
                self.load_rest(id, room);
            }
            Err(MediaError::NoRoom) => {
                room.left.retain(|left| left.worker != worker);
                self.turns.close(worker);
                self.load_rest(id, room);
            }
            other => {
                tracing::warn!(room = %id, %worker, ?other, "a worker that was taken over gave no inventory; it is asked again");
            }
        }
    }

    /// Makes a router that was left the room's media, if there is one where the log has the room. Says whether there was.
    pub(super) fn take_over(&mut self, id: &RoomId, room: &mut Room<R>, placement: &Placement) -> bool {
        let Some(at) = room.left.iter().position(|left| left.worker == placement.worker) else {
            return false;
        };
        let Left { objects, states, .. } = room.left.remove(at);
        let (epoch, media_epoch) = (room.fold.epoch(), room.fold.media_epoch);
        let mut objects = objects.unwrap_or_default();
        objects.asked_under(epoch);
        tracing::info!(room = %id, worker = %placement.worker, %media_epoch, "room taken over with its media");
        let place = Reserved { placement: placement.clone(), media_epoch, epoch, since: self.now };
        let closed = self.now;
        room.held = Some(Held { place, committed: true, had_clients: true, opening: None, objects, closed });
        self.tell_missed(id, room, &states);
        true
    }

    /// Tells the EC what the worker found out while nobody listened, as far as it still holds.
    fn tell_missed(&mut self, id: &RoomId, room: &Room<R>, states: &BTreeMap<TransportId, TransportState>) {
        let Some(owner) = &room.fold.owner else { return };
        for (transport, known) in &room.fold.transports {
            let state = match states.get(transport) {
                None => TransportState::Failed,
                Some(TransportState::Connected) if known.connected => continue,
                Some(TransportState::New | TransportState::Connecting) => continue,
                Some(state) => *state,
            };
            let notification = MediaNotification::TransportState { transport: transport.clone(), state };
            let notification =
                RoomNotification { room: id.clone(), media_epoch: room.fold.media_epoch, notification };
            self.out.push(Effect::Notify { ec: owner.ec.clone(), notification });
        }
    }

    /// Closes routers that the log has not claimed by `then`.
    pub(super) fn expire_left(&mut self, id: &RoomId, room: &mut Room<R>, then: Duration) {
        let ttl = self.limits.provisional_ttl;
        let (over, kept): (Vec<Left>, Vec<Left>) =
            std::mem::take(&mut room.left).into_iter().partition(|left| left.since + ttl <= then);
        room.left = kept;
        for Left { worker, .. } in over {
            tracing::warn!(room = %id, %worker, "a worker that was taken over holds a room that the log does not have there: closing it");
            self.turns.close(worker);
            let close = MediaCommand::Close { object: MediaObject::Router };
            self.send_to(id, worker, MediaEpoch(0), close, Purpose::Follow);
        }
    }

    /// Whether requests about this room wait until its log has been read.
    pub(super) fn is_deferred(&self, id: &RoomId) -> bool {
        self.rooms.get(id).is_some_and(|room| room.adopting)
    }

    pub(super) fn defer(&mut self, reply: R, id: &RoomId, request: EaRequest) {
        match self.rooms.get_mut(id) {
            Some(room) if room.deferred.len() < MAX_PENDING => room.deferred.push((reply, request)),
            _ => {
                let reason = format!("{MAX_PENDING} requests wait for this room to be read");
                self.reply(reply, Err(MediaError::Unavailable { reason }.into()));
            }
        }
    }

    /// Whether a room that is not here may be on one of our workers all the same: its placing was committed while no process of this EA
    /// followed the log, and its router had expired before.
    pub(super) fn may_hold_unseen(&self, id: &RoomId) -> bool {
        self.adopts && !self.rooms.contains_key(id)
    }

    /// Looks in the log whose a room is, and lets the request wait for that.
    pub(super) fn look_in_the_log(&mut self, reply: R, id: &RoomId, request: EaRequest) {
        let mut room = Room::new(self.now, self.limits.sweep_every);
        room.adopting = true;
        room.deferred.push((reply, request));
        self.load_rest(id, &mut room);
        self.rooms.insert(id.clone(), room);
    }
}
