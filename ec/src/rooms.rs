//! The rooms that run on this EC: one task each, started with the first message and ended when nobody is left.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use roomlog_bus::ids::RoomId;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};

use crate::{
    Shared,
    decide::Refusal,
    room::{Room, RoomMessage},
};

/// The inboxes of the running rooms.
#[derive(Default)]
pub(crate) struct Rooms {
    running: Mutex<BTreeMap<RoomId, mpsc::Sender<RoomMessage>>>,
    /// This start of the EC is over. Set under the lock: a room that began after it would have nobody to tell it that it is another's.
    over: watch::Sender<bool>,
}

impl Rooms {
    /// Gives `message` to `room`, starting its task if it does not run. Sending under the lock is what makes [`Self::retire`] safe:
    /// a room never ends with a message in its inbox.
    pub(crate) fn send(
        &self,
        shared: &Arc<Shared>,
        room: &RoomId,
        message: RoomMessage,
    ) -> Result<mpsc::Sender<RoomMessage>, Refusal> {
        let mut inboxes = self.lock();
        if *self.over.borrow() {
            return Err(Refusal::Retry("this EC begins again".into()));
        }
        let inbox = inboxes.entry(room.clone()).or_insert_with(|| {
            let (inbox, messages) = mpsc::channel(shared.settings.room_queue);
            tokio::spawn(Room::new(shared.clone(), room.clone()).run(messages, self.over.subscribe()));
            inbox
        });
        match inbox.try_send(message) {
            Ok(()) => Ok(inbox.clone()),
            Err(TrySendError::Full(_)) => Err(Refusal::Retry("this room has too much to do".into())),
            Err(TrySendError::Closed(_)) => {
                inboxes.remove(room);
                Err(Refusal::Retry("this room is being closed".into()))
            }
        }
    }

    /// Gives a message to every running room.
    pub(crate) fn broadcast(&self, mut message: impl FnMut() -> RoomMessage) {
        for (room, inbox) in &*self.lock() {
            if inbox.try_send(message()).is_err() {
                tracing::warn!(%room, "a room is too busy for news; its inventory comes back to it");
            }
        }
    }

    /// Whether `room` runs.
    pub(crate) fn runs(&self, room: &RoomId) -> bool {
        self.lock().contains_key(room)
    }

    /// How many run.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Takes a room off the list unless a message has come in.
    pub(crate) fn retire(&self, room: &RoomId, inbox: &mut mpsc::Receiver<RoomMessage>) -> bool {
        let mut running = self.lock();
        if !inbox.is_empty() {
            return false;
        }
        running.remove(room);
        inbox.close();
        true
    }

    /// Ends every room task, whatever it waits for, which closes its sockets; and lets none begin any more. Dropping the inboxes would not
    /// do: each socket holds one.
    pub(crate) fn clear(&self) {
        let mut running = self.lock();
        self.over.send_replace(true);
        running.clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RoomId, mpsc::Sender<RoomMessage>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
