//! The fold of a service's stream: its keys, hashed.

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::{Commit, Head, StreamId},
    events::{Event, ServiceKeyRotated, WebhookSet},
    ids::Version,
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
    /// Where what happens in its rooms is sent, by id.
    #[serde(default)]
    pub webhooks: BTreeMap<String, Webhook>,
    /// When it was made.
    pub created: Timestamp,
    /// Gone.
    pub deleted: bool,
}

/// Where what happens in a service's rooms is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// To where.
    pub url: String,
    /// Only events of these types; empty: all.
    pub types: Vec<String>,
    /// Whether anything is sent.
    pub enabled: bool,
    /// Which of its secrets signs.
    pub generation: u64,
    /// The secret before it signs too until then.
    pub old_until: Option<Timestamp>,
    /// Tells the key apart that its secrets are computed from.
    pub key: String,
    /// Its receiver has taken all up to here: a cursor of the journal.
    pub cursor: Vec<u64>,
    /// The NUVE that sends.
    pub node: Option<StreamId>,
    /// Goes up with everything that is decided about it: what was begun under an earlier one is over.
    pub edition: u64,
    /// Its receiver takes nothing.
    pub failing: Option<Failing>,
    /// When it was made.
    pub created: Timestamp,
}

/// How a receiver fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// Since when.
    pub since: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// What came of it the last time.
    pub error: String,
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
                Event::WebhookSet(e) => self.set_webhook(e, commit.time),
                Event::WebhookAdvanced(e) => {
                    if let Some(hook) = self.webhooks.get_mut(&e.webhook) {
                        hook.cursor.clone_from(&e.cursor);
                        hook.failing = None;
                    }
                }
                Event::WebhookClaimed(e) => {
                    if let Some(hook) = self.webhooks.get_mut(&e.webhook) {
                        hook.node.clone_from(&e.node);
                        hook.edition += 1;
                    }
                }
                Event::WebhookFailed(e) => {
                    if let Some(hook) = self.webhooks.get_mut(&e.webhook) {
                        hook.failing =
                            Some(Failing { since: e.since, attempts: e.attempts, error: e.error.clone() });
                    }
                }
                Event::WebhookRemoved(e) => {
                    self.webhooks.remove(&e.webhook);
                }
                Event::ServiceDeleted(_) => self.deleted = true,
                _ => {}
            }
        }
        self.head = Some(commit.head());
        Ok(())
    }

    /// Version folded up to; 0 before the first event.
    pub fn version(&self) -> Version {
        self.head.map_or(Version(0), |head| head.version)
    }

    fn set_webhook(&mut self, set: &WebhookSet, time: Timestamp) {
        let before = self.webhooks.remove(&set.webhook);
        let cursor = before.as_ref().map(|hook| hook.cursor.clone());
        let hook = Webhook {
            url: set.url.clone(),
            types: set.types.clone(),
            enabled: set.enabled,
            generation: set.generation,
            old_until: set.old_until,
            key: set.key.clone(),
            cursor: set.cursor.clone().or(cursor).unwrap_or_default(),
            node: before.as_ref().and_then(|hook| hook.node.clone()),
            edition: before.as_ref().map_or(1, |hook| hook.edition + 1),
            failing: None,
            created: before.map_or(time, |hook| hook.created),
        };
        self.webhooks.insert(set.webhook.clone(), hook);
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
