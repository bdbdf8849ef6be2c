//! Follows the journal for the agent: rooms and the node's own stream, in order, and again from the last commit when it breaks.

use std::sync::Arc;

use roomlog_bus::{
    commit::{Commit, StreamId, StreamKind},
    journal::{Cursor, Follow, Followed, Journal, ReadError, follow_again},
};
use tokio::sync::mpsc;

/// Commits read ahead of the agent. The follower then waits, and the engine reads from disk later.
pub const FOLLOW_QUEUE: usize = 1_024;

/// What the log tells the agent.
#[derive(Debug)]
pub enum News {
    /// The next commit.
    Commit(Arc<Commit>),
    /// The log was repaired: what was folded may not be in it any more.
    Repaired,
}

/// Runs until the agent is gone.
pub async fn follow(
    journal: Arc<dyn Journal>,
    mut cursor: Cursor,
    mut follow: Follow,
    own: StreamId,
    commits: mpsc::Sender<News>,
) {
    loop {
        let next = tokio::select! {
            biased;
            next = follow.next() => next,
            () = commits.closed() => return,
        };
        let broken = match next {
            Some(Followed::Entry(entry)) => {
                cursor = entry.cursor;
                let wanted = entry.commit.stream.kind() == StreamKind::Room || entry.commit.stream == own;
                if wanted && commits.send(News::Commit(entry.commit)).await.is_err() {
                    return;
                }
                continue;
            }
            Some(Followed::CaughtUp) => continue,
            Some(Followed::Broken(error)) => error,
            // Media flows on without the log.
            None => ReadError::Unavailable { reason: "the journal was closed".into() },
        };
        let before = cursor.clone();
        follow = tokio::select! {
            biased;
            follow = follow_again(journal.as_ref(), &mut cursor, broken) => follow,
            () = commits.closed() => return,
        };
        if cursor == Cursor::default() && before != cursor && commits.send(News::Repaired).await.is_err() {
            return;
        }
    }
}
