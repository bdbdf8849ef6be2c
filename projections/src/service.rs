//! The fold of a service's stream: its keys, hashed.

use roomlog_bus::{
    commit::{Commit, Head},
    events::{Event, ServiceKeyRotated},
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
    /// Keys that were replaced and open until then, hashes in hex.
    #[serde(default)]
    pub old_keys: Vec<OldKey>,
    /// Origins whose pages may use its keys; empty: any.
    #[serde(default)]
    pub origins: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
    /// Gone.
    pub deleted: bool,
}

/// A key that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldKey {
    /// `secret` or `publishable`.
    pub which: String,
    /// SHA-256 of it, hex.
    pub hash: String,
    /// It opens until then.
    pub until: Timestamp,
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
                Event::ServiceKeyRotated(e) => self.rotate(e),
                Event::ServiceOldKeyRevoked(e) => self.old_keys.retain(|old| old.which != e.which),
                Event::ServiceChanged(e) => {
                    self.name.clone_from(&e.name);
                    self.publishable_creates_rooms = e.publishable_creates_rooms;
                    self.origins.clone_from(&e.origins);
                }
                Event::ServiceDeleted(_) => self.deleted = true,
                _ => {}
            }
        }
        self.head = Some(commit.head());
        Ok(())
    }

    /// One key may be before the current one: that before it ends, whatever was said of it.
    fn rotate(&mut self, rotated: &ServiceKeyRotated) {
        let current = match rotated.which.as_str() {
            "secret" => &mut self.secret_key_hash,
            "publishable" => &mut self.publishable_key_hash,
            _ => return,
        };
        let hash = std::mem::replace(current, rotated.hash.clone());
        self.old_keys.retain(|old| old.which != rotated.which);
        self.old_keys.extend(rotated.old_until.map(|until| OldKey {
            which: rotated.which.clone(),
            hash,
            until,
        }));
    }
}
