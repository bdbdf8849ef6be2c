//! A follower: one task that hands out everything after a cursor, in order.
//!
//! It holds only the next sequence. What the recent commits in memory have it takes from there, older ones it reads from disk block by
//! block, and at the end it waits for the writer. A follower that does not take what it is given waits on its own channel and falls back to
//! the disk by itself; the writer never waits for it and nothing is kept for it.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::shared::{Page, Shared};
use crate::journal::{Cursor, Entry, Followed, ReadError};

/// Commits taken from memory at once, so that the index is not locked long.
const AT_ONCE: usize = 256;

/// Runs until the receiver is dropped, the journal is closed, or something cannot be read. `caught_up_after` is where the journal ended
/// when the follow began.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut next: u64,
    caught_up_after: u64,
    sender: mpsc::Sender<Followed>,
) {
    let mut tail = shared.tail.clone();
    let mut caught_up = false;
    loop {
        if !caught_up && next > caught_up_after {
            caught_up = true;
            if sender.send(Followed::CaughtUp).await.is_err() {
                return;
            }
        }
        if next > *tail.borrow_and_update() {
            tokio::select! {
                changed = tail.changed() => if changed.is_err() && next > *tail.borrow() { return },
                () = sender.closed() => return,
            }
            continue;
        }
        let recent = shared.index().recent.page(next, AT_ONCE);
        let page = match recent {
            Some(page) => page,
            None => match from_disk(&shared, next).await {
                Ok(page) => page,
                Err(error) => {
                    let _ = sender.send(Followed::Broken(error)).await;
                    return;
                }
            },
        };
        next = page.next;
        for (sequence, commit) in page.commits {
            if !caught_up && sequence > caught_up_after {
                next = sequence;
                break;
            }
            let entry = Entry { cursor: Cursor(vec![sequence]), commit };
            if sender.send(Followed::Entry(entry)).await.is_err() {
                return;
            }
        }
    }
}

async fn from_disk(shared: &Arc<Shared>, next: u64) -> Result<Page, ReadError> {
    let shared = shared.clone();
    let page = tokio::task::spawn_blocking(move || shared.page(next))
        .await
        .map_err(|error| ReadError::Unavailable { reason: format!("the reader failed: {error}") })??;
    if page.next <= next {
        return Err(ReadError::Damaged {
            place: format!("commit {next} of the journal"),
            reason: "its block does not hold it".into(),
        });
    }
    Ok(page)
}
