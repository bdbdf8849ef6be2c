//! Telling a service's commits from those of others, for whoever gives a service its events: `/v1/events` and webhooks.

use std::{collections::HashMap, sync::Arc};

use roomlog_bus::{
    commit::{Commit, StreamKind},
    ids::{RoomId, ServiceId, Version},
    journal::ReadError,
};

use crate::app::App;

/// Rooms whose service is remembered, at most; beyond, all are looked up anew.
const MAX_KNOWN: usize = 65_536;

/// Tells the rooms of one service.
pub struct Ours {
    pub service: ServiceId,
    /// Whether a room is of this service.
    known: HashMap<RoomId, bool>,
}

impl Ours {
    pub fn of(service: ServiceId) -> Self {
        Self { service, known: HashMap::new() }
    }

    /// Whether `commit` is of a room of the service. An error says that this cannot be told now: whoever went on would leave out an event.
    pub async fn has(&mut self, app: &App, commit: &Commit) -> Result<bool, ReadError> {
        if commit.stream.kind() != StreamKind::Room {
            return Ok(false);
        }
        let Ok(room) = RoomId::new(commit.stream.id()) else { return Ok(false) };
        if let Some(known) = self.known.get(&room) {
            return Ok(*known);
        }
        let service = app.whose(commit, &room).await?;
        let ours = service.as_ref() == Some(&self.service);
        if service.is_some() {
            if self.known.len() >= MAX_KNOWN {
                self.known.clear();
            }
            self.known.insert(room, ours);
        }
        Ok(ours)
    }
}

impl App {
    /// Whose room it is: the commit may say so, the directory may know it, and the stream's first commit does.
    async fn whose(&self, commit: &Commit, room: &RoomId) -> Result<Option<ServiceId>, ReadError> {
        if commit.version == Version(1) {
            return Ok(App::service_of(&[Arc::new(commit.clone())]));
        }
        let known = {
            let directory = self.directory.read();
            directory.rooms.get(room).and_then(|state| Some(state.info.as_ref()?.service.clone()))
        };
        match known {
            Some(service) => Ok(Some(service)),
            None => Ok(App::service_of(&self.journal.read(&commit.stream, Version(1), 1).await?)),
        }
    }
}
