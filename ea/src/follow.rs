//! Follows the journal for the agent: rooms and the node's own stream, in order, and again from the last commit when it breaks.

use std::{sync::Arc, time::Duration};

use roomlog_bus::{
    commit::{Commit, StreamId, StreamKind},
    journal::{Cursor, Follow, Followed, Journal},
};
use tokio::sync::mpsc;

/// Between two tries while the journal cannot be followed.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// Commits read ahead of the agent. The follower then waits, and the engine reads from disk later.
pub const FOLLOW_QUEUE: usize = 1_024;

/// Runs until the agent is gone.
pub async fn follow(
    journal: Arc<dyn Journal>,
    mut cursor: Cursor,
    mut follow: Follow,
    own: StreamId,
    commits: mpsc::Sender<Arc<Commit>>,
) {
    loop {
        let broken = loop {
            let next = tokio::select! {
                next = follow.next() => next,
                () = commits.closed() => return,
            };
            match next {
                Some(Followed::Entry(entry)) => {
                    cursor = entry.cursor;
                    let wanted = entry.commit.stream.kind() == StreamKind::Room || entry.commit.stream == own;
                    if wanted && commits.send(entry.commit).await.is_err() {
                        return;
                    }
                }
                Some(Followed::CaughtUp) => {}
                Some(Followed::Broken(error)) => break error.to_string(),
                None => break "the journal was closed".into(),
            }
        };
        tracing::warn!(
            broken,
            "the journal is not followed; media flows on, trying again from the last commit"
        );
        follow = loop {
            tokio::select! {
                () = tokio::time::sleep(RETRY_EVERY) => {}
                () = commits.closed() => return,
            }
            match journal.follow(cursor.clone()).await {
                Ok(follow) => break follow,
                Err(error) => tracing::debug!(%error, "the journal still cannot be followed"),
            }
        };
    }
}
