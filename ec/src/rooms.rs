//! The rooms that run on this EC: one task each, started with the first message and ended when nobody is left.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use roomlog_bus::ids::RoomId;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    Shared,
    decide::Refusal,
    room::{Room, RoomMessage},
};

/// Whoever waits for one learns that the room is off the list: nothing is ever sent.
pub(crate) type Listed = oneshot::Receiver<std::convert::Infallible>;

/// The running rooms.
#[derive(Default)]
pub(crate) struct Rooms {
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    rooms: BTreeMap<RoomId, Entry>,
    /// This start of the EC is over: a room that began now would have nobody to tell it that it is another's.
    over: bool,
}

struct Entry {
    inbox: mpsc::Sender<RoomMessage>,
    /// One for each room, so that rooms end in the order of the list, in a simulation each time the same.
    _listed: oneshot::Sender<std::convert::Infallible>,
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
        let mut running = self.lock();
        if running.over {
            return Err(Refusal::Retry("this EC begins again".into()));
        }
        let entry = running.rooms.entry(room.clone()).or_insert_with(|| {
            let (inbox, messages) = mpsc::channel(shared.settings.room_queue);
            let (_listed, listed) = oneshot::channel();
            tokio::spawn(Room::new(shared.clone(), room.clone()).run(messages, listed));
            Entry { inbox, _listed }
        });
        match entry.inbox.try_send(message) {
            Ok(()) => Ok(entry.inbox.clone()),
            Err(TrySendError::Full(_)) => Err(Refusal::Retry("this room has too much to do".into())),
            Err(TrySendError::Closed(_)) => {
                running.rooms.remove(room);
                Err(Refusal::Retry("this room is being closed".into()))
            }
        }
    }

    /// Gives a message to every running room.
    pub(crate) fn broadcast(&self, mut message: impl FnMut() -> RoomMessage) {
        for (room, entry) in &self.lock().rooms {
            if entry.inbox.try_send(message()).is_err() {
                tracing::warn!(%room, "a room is too busy for news; its inventory comes back to it");
            }
        }
    }

    /// Whether `room` runs.
    pub(crate) fn runs(&self, room: &RoomId) -> bool {
        self.lock().rooms.contains_key(room)
    }

    /// How many run.
    pub(crate) fn len(&self) -> usize {
        self.lock().rooms.len()
    }

    /// Takes a room off the list unless a message has come in.
    pub(crate) fn retire(&self, room: &RoomId, inbox: &mut mpsc::Receiver<RoomMessage>) -> bool {
        let mut running = self.lock();
        if !inbox.is_empty() {
            return false;
        }
        running.rooms.remove(room);
        inbox.close();
        true
    }

    /// Ends every room task, whatever it waits for, which closes its sockets; and lets none begin any more. Dropping the inboxes would not
    /// do: each socket holds one.
    pub(crate) fn clear(&self) {
        let mut running = self.lock();
        running.over = true;
        running.rooms.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
