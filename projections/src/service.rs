//! The fold of a service's stream: its keys, hashed.

use roomlog_bus::{
    commit::{Commit, Head},
    events::Event,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::room::{FoldError, not_next};

/// What a service is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceState {
    /// Where the stream ended when this was folded.
    pub head: Option<Head>,
    /// Its name, for people.
    pub name: String,
    /// SHA-256 of its secret key, hex.
    pub secret_key_hash: String,
    /// SHA-256 of its publishable key, hex.
    pub publishable_key_hash: String,
    /// Whether the publishable key may make rooms by name.
    pub publishable_creates_rooms: bool,
    /// When it was made.
    pub created: Timestamp,
    /// Gone.
    pub deleted: bool,
}

impl ServiceState {
    /// Folds the next commit of the stream.
    pub fn apply_commit(&mut self, commit: &Commit) -> Result<(), FoldError> {
        if !commit.follows(self.head.as_ref()) {
            return Err(not_next(commit, self.head));
        }
        let events = commit.events.iter().map(Event::decode).collect::<Result<Vec<_>, _>>()?;
        for event in &events {
            match event {
                Event::ServiceCreated(e) => {
                    self.name.clone_from(&e.name);
                    self.secret_key_hash.clone_from(&e.secret_key_hash);
                    self.publishable_key_hash.clone_from(&e.publishable_key_hash);
                    self.publishable_creates_rooms = e.publishable_creates_rooms;
                    self.created = commit.time;
                }
                Event::ServiceKeyRotated(e) if e.which == "secret" => {
                    self.secret_key_hash.clone_from(&e.hash)
                }
                Event::ServiceKeyRotated(e) if e.which == "publishable" => {
                    self.publishable_key_hash.clone_from(&e.hash)
                }
                Event::ServiceDeleted(_) => self.deleted = true,
                _ => {}
            }
        }
        self.head = Some(commit.head());
        Ok(())
    }
}
