//! The read side for subscribers: committed events, in order, on `roomlog.ev.<kind>.<id>`.
//!
//! JetStream republishes by itself what it stored; where the journal is sled, this task does it, so that a subscriber cannot tell
//! the two apart.

use std::sync::Arc;

use crate::{
    bus::{Bus, Disconnected, Message, TYPE_HEADER},
    commit::Commit,
    journal::{Cursor, Followed, Journal, follow_again},
    subject::Subject,
};

/// The message subscribers get for a commit.
pub fn message_of(commit: &Commit) -> Message {
    let types: Vec<&str> = commit.events.iter().map(|e| e.kind.as_str()).collect();
    Message {
        subject: Subject::events(&commit.stream),
        reply: None,
        headers: vec![
            (TYPE_HEADER.into(), types.join(",")),
            ("Nats-Msg-Id".into(), format!("{}:{}", commit.stream, commit.id)),
        ],
        payload: commit.encode().into(),
    }
}

/// Publishes every commit after `from`, until the journal closes or the bus is gone.
pub async fn republish(
    journal: Arc<dyn Journal>,
    bus: Arc<dyn Bus>,
    mut from: Cursor,
) -> Result<(), Disconnected> {
    let mut follow = match journal.follow(from.clone()).await {
        Ok(follow) => follow,
        Err(error) => follow_again(journal.as_ref(), &mut from, error).await,
    };
    loop {
        match follow.next().await {
            Some(Followed::Entry(entry)) => {
                bus.publish(message_of(&entry.commit)).await?;
                from = entry.cursor;
            }
            Some(Followed::CaughtUp) => {}
            Some(Followed::Broken(error)) => follow = follow_again(journal.as_ref(), &mut from, error).await,
            None => return Ok(()),
        }
    }
}
