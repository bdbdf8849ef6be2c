//! What others ask: opening rooms, media commands, the fold, the list of rooms; and the workers' answers on the way back.

use super::*;
use crate::objects::{Origin, created_by};

impl<R> Core<R> {
    pub(super) fn request(&mut self, reply: R, request: EaRequest) {
        match request {
            EaRequest::Media { ref room, .. }
            | EaRequest::OpenRoom { ref room, .. }
            | EaRequest::RoomState { ref room, .. }
                if self.is_deferred(room) =>
            {
                let room = room.clone();
                self.defer(reply, &room, request);
            }
            EaRequest::Media { ref room, .. } if self.may_hold_unseen(room) => {
                let room = room.clone();
                self.look_in_the_log(reply, &room, request);
            }
            request => self.request_of_known(reply, request),
        }
    }

    /// A request about a room that is known, or that this EA does not have.
    pub(super) fn request_of_known(&mut self, reply: R, request: EaRequest) {
        match request {
            EaRequest::OpenRoom { room, epoch, media_epoch } => {
                self.open_room(reply, &room, epoch, media_epoch);
            }
            EaRequest::Media { room, epoch, media_epoch, client: _, command } => {
                if let MediaCommand::Close { .. }
                | MediaCommand::PauseProducer { .. }
                | MediaCommand::PauseConsumer { .. } = command
                {
                    let reason =
                        "closing and pausing follow from committed events and cannot be asked for".into();
                    self.reply(reply, Err(MediaError::WrongState { reason }.into()));
                    return;
                }
                if !self.rooms.contains_key(&room) {
                    self.reply(reply, Err(MediaError::NoRoom.into()));
                    return;
                }
                self.with_room(&room, |core, state| {
                    core.media(reply, &room, state, epoch, media_epoch, command);
                });
            }
            EaRequest::RoomState { room, min_version } => {
                if !self.rooms.contains_key(&room) {
                    let state = EaAnswer::State { version: Version(0), state: serde_json::Value::Null };
                    self.reply(reply, Ok(state));
                    return;
                }
                self.with_room(&room, |core, state| {
                    let until = core.now + STATE_WAIT;
                    state.waiters.push(Waiter { version: min_version, until, reply });
                    core.answer_waiters(&room, state, false);
                });
            }
            EaRequest::Rooms => {
                let rooms = self.rooms.iter().filter_map(|(id, room)| {
                    let place = room.held.as_ref().map(|h| &h.place).or(room.next.as_ref())?;
                    Some((id.clone(), place.placement.clone()))
                });
                let rooms = rooms.collect();
                self.reply(reply, Ok(EaAnswer::Rooms { rooms }));
            }
        }
    }

    fn open_room(&mut self, reply: R, id: &RoomId, epoch: Epoch, media_epoch: MediaEpoch) {
        let fresh = !self.rooms.contains_key(id);
        let mut room = self.rooms.remove(id).unwrap_or_else(|| Room::new(self.now, self.limits.sweep_every));
        self.open_in(reply, id, &mut room, epoch, media_epoch);
        if fresh && !room.is_gone() {
            // From here on the fold is kept, so that the commit that names us is not missed.
            self.load_rest(id, &mut room);
        }
        if !room.is_gone() {
            self.rooms.insert(id.clone(), room);
        }
    }

    fn open_in(&mut self, reply: R, id: &RoomId, room: &mut Room<R>, epoch: Epoch, media_epoch: MediaEpoch) {
        if let Err(stale) = raise_epoch(room, epoch) {
            self.reply(reply, Err(stale.into()));
            return;
        }
        let latest = (room.next.as_ref())
            .or(room.held.as_ref().map(|h| &h.place))
            .map_or(room.fold.media_epoch, |p| p.media_epoch.max(room.fold.media_epoch));
        if media_epoch < latest {
            self.reply(reply, Err(MediaError::StaleEpoch { seen: latest.0 }.into()));
            return;
        }
        if let Some(next) = &mut room.next {
            if next.media_epoch == media_epoch {
                next.epoch = next.epoch.max(epoch);
                let placement = next.placement.clone();
                self.opened(reply, placement, room);
                return;
            }
            // A higher media epoch passes what was only reserved.
            self.drop_next(room);
        }
        if let Some(held) = &mut room.held {
            if held.place.media_epoch == media_epoch {
                held.place.epoch = held.place.epoch.max(epoch);
                match &mut held.opening {
                    Some(waiting) => waiting.push(reply),
                    None => {
                        let placement = held.place.placement.clone();
                        self.opened(reply, placement, room);
                    }
                }
                return;
            }
            if !held.committed {
                self.drop_held(id, room, "a higher media epoch was opened before this one was committed");
            }
        }
        if self.draining || self.reregistering {
            let reason = if self.draining { "this EA is draining" } else { "this EA is registering again" };
            self.reply(reply, Err(MediaError::Unavailable { reason: reason.into() }.into()));
            return;
        }
        let Some(worker) = self.turns.give() else {
            let reason = "no SFU worker is running on this EA".into();
            self.reply(reply, Err(MediaError::Unavailable { reason }.into()));
            return;
        };
        let generation = self.workers[usize::from(worker.0)].generation;
        let placement = Placement {
            ea: self.me.clone(),
            incarnation: self.incarnation,
            worker,
            generation: generation.expect("a worker that has the turn is live"),
        };
        let place = Reserved { placement: placement.clone(), media_epoch, epoch, since: self.now };
        tracing::info!(room = %id, %worker, %epoch, %media_epoch, "room opened, provisionally");
        if room.held.is_some() {
            // The committed media stands until the log moves it, or the EC uses the new epoch.
            room.next = Some(place);
            self.opened(reply, placement, room);
        } else {
            self.activate(id, room, place, vec![reply]);
        }
    }

    /// Answers `OpenRoom`. `room` is out of the map and counts.
    fn opened(&mut self, reply: R, placement: Placement, room: &Room<R>) {
        let here = u64::from(room.held.is_some() || room.next.is_some());
        let rooms = self.rooms_held() + here;
        self.reply(reply, Ok(EaAnswer::Opened { placement, rooms }));
    }

    fn media(
        &mut self,
        reply: R,
        id: &RoomId,
        room: &mut Room<R>,
        epoch: Epoch,
        media_epoch: MediaEpoch,
        command: MediaCommand,
    ) {
        if let Err(stale) = raise_epoch(room, epoch) {
            self.reply(reply, Err(stale.into()));
            return;
        }
        if room.next.as_ref().is_some_and(|next| next.media_epoch == media_epoch) {
            // The EC builds in the new epoch: the old one has passed.
            self.promote(id, room, "media moved on this EA");
        }
        let Some(held) = &mut room.held else {
            self.reply(reply, Err(MediaError::NoRoom.into()));
            return;
        };
        if media_epoch < held.place.media_epoch {
            let seen = held.place.media_epoch.0;
            self.reply(reply, Err(MediaError::StaleEpoch { seen }.into()));
            return;
        }
        if media_epoch > held.place.media_epoch {
            self.reply(reply, Err(MediaError::NoRoom.into()));
            return;
        }
        let worker = usize::from(held.place.placement.worker.0);
        if self.workers[worker].pending >= MAX_PENDING {
            let reason = format!("{MAX_PENDING} requests wait for this room's SFU worker");
            self.reply(reply, Err(MediaError::Unavailable { reason }.into()));
            return;
        }
        // The worker answers a repeated creation with what it made first, so repetitions are simply passed on.
        let fresh = created_by(&command).filter(|object| !held.objects.contains(object));
        let since = self.now;
        let committed = fresh.as_ref().is_some_and(|object| is_in(&room.fold, object));
        held.objects.sent(&command, || Origin { epoch, since, committed });
        let purpose = Purpose::Request(reply, fresh);
        let place = held.place.clone();
        self.send(id, &place, command, purpose);
    }

    /// The reserved media takes the place of what is held.
    pub(super) fn promote(&mut self, id: &RoomId, room: &mut Room<R>, why: &str) {
        if let Some(next) = room.next.take() {
            self.drop_held(id, room, why);
            self.activate(id, room, next, Vec::new());
        }
    }

    pub(super) fn answered(&mut self, id: u64, result: Result<MediaAnswer, MediaError>) {
        let Some(pending) = self.pending.remove(&id) else { return };
        let worker = &mut self.workers[usize::from(pending.worker.0)];
        if !matches!(pending.purpose, Purpose::Follow | Purpose::Router) {
            worker.pending = worker.pending.saturating_sub(1);
        }
        match pending.purpose {
            Purpose::Request(reply, made) => {
                if let (Some(object), Err(_)) = (made, &result) {
                    self.with_room(&pending.room, |_, room| {
                        let held = room.held.as_mut().filter(|h| h.place.media_epoch == pending.media_epoch);
                        if let Some(held) = held {
                            held.objects.remove(&object);
                        }
                    });
                }
                self.reply(reply, result.map(|answer| EaAnswer::Media { answer }).map_err(RpcError::Media));
            }
            Purpose::Follow => {
                if let Err(error) = result {
                    tracing::warn!(room = %pending.room, worker = %pending.worker, %error, "a command that follows from the log failed");
                }
            }
            Purpose::Router => {
                self.with_room(&pending.room, |core, room| {
                    core.router_made(&pending.room, room, pending.media_epoch, result);
                });
            }
            Purpose::Adopt => {
                self.with_room(&pending.room, |core, room| {
                    core.inventoried(&pending.room, room, pending.worker, result);
                });
            }
            Purpose::Sweep => {
                self.with_room(&pending.room, |core, room| {
                    core.swept(&pending.room, room, pending.media_epoch, pending.asked, result);
                });
            }
        }
    }

    fn router_made(
        &mut self,
        id: &RoomId,
        room: &mut Room<R>,
        media_epoch: MediaEpoch,
        result: Result<MediaAnswer, MediaError>,
    ) {
        let Some(held) = room.held.as_mut().filter(|h| h.place.media_epoch == media_epoch) else { return };
        let waiting = held.opening.take().unwrap_or_default();
        match result {
            Ok(_) => {
                let placement = held.place.placement.clone();
                waiting.into_iter().for_each(|to| self.opened(to, placement.clone(), room));
            }
            Err(error) => {
                tracing::warn!(room = %id, %error, "the worker did not make the room's router");
                self.drop_held(id, room, "its router could not be made");
                waiting.into_iter().for_each(|to| self.reply(to, Err(error.clone().into())));
            }
        }
    }
}

/// Whether the log has the object.
fn is_in(fold: &RoomState, object: &MediaObject) -> bool {
    match object {
        MediaObject::Router => false,
        MediaObject::Transport(id) => fold.transports.contains_key(id),
        MediaObject::Producer(id) => fold.producers.contains_key(id),
        MediaObject::Consumer(id) => fold.consumers.contains_key(id),
    }
}

/// Refuses a lower ownership epoch than was seen, in the log or in a request, and remembers a higher one.
fn raise_epoch<R>(room: &mut Room<R>, epoch: Epoch) -> Result<(), MediaError> {
    let seen = room.epoch.max(room.fold.epoch());
    if epoch < seen {
        return Err(MediaError::StaleEpoch { seen: seen.0 });
    }
    room.epoch = epoch;
    Ok(())
}
