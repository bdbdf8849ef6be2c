//! The log as one node of the simulation has it: JetStream's manners, with every answer possible that it can give.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use roomlog_bus::{
    commit::{Commit, Head, StreamId, StreamKind},
    ids::Version,
    journal::{AppendError, Cursor, Follow, Journal, ReadError},
};
use tokio::sync::{mpsc, oneshot};

use super::world::{APPEND_TIMEOUT, Follower, Inner, World, stamped};

/// More than a run commits: a follower never loses anything for being slow.
const FOLLOW_QUEUE: usize = 1 << 20;

/// One node's journal.
pub struct SimJournal {
    world: Arc<World>,
    node: usize,
}

impl SimJournal {
    /// The journal of `node`.
    pub fn new(world: Arc<World>, node: usize) -> Self {
        Self { world, node }
    }

    /// Asks the stream's leader: there and back again.
    async fn ask<T>(&self, look: impl FnOnce(&mut Inner) -> T + Send) -> Result<T, ReadError> {
        let there = {
            let mut world = self.world.lock();
            let cut = world.nodes[self.node].cut;
            (!cut).then(|| world.delay())
        };
        let away = || ReadError::Unavailable { reason: "no answer in time".into() };
        let Some(there) = there else {
            tokio::time::sleep(Duration::from_micros(APPEND_TIMEOUT)).await;
            return Err(away());
        };
        tokio::time::sleep(Duration::from_micros(there)).await;
        let (seen, back) = {
            let mut world = self.world.lock();
            let back = world.delay();
            (look(&mut world), back)
        };
        tokio::time::sleep(Duration::from_micros(back)).await;
        if self.world.lock().nodes[self.node].cut {
            tokio::time::sleep(Duration::from_micros(APPEND_TIMEOUT)).await;
            return Err(away());
        }
        Ok(seen)
    }
}

fn head_of(world: &Inner, stream: &StreamId, until: u64) -> Option<Head> {
    let own = world.streams.get(stream)?.iter().rev().find(|at| **at <= until)?;
    Some(world.log[*own as usize - 1].head())
}

#[async_trait]
impl Journal for SimJournal {
    async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        let stream = commit.stream.clone();
        let (reply, answer) = oneshot::channel();
        self.world.lock().send_append(self.node, commit, reply);
        let wait = Duration::from_micros(APPEND_TIMEOUT);
        match tokio::time::timeout(wait, async { answer.await.ok() }).await {
            Ok(Some(result)) => result,
            Ok(None) => {
                // Lost on its way: nobody says so.
                tokio::time::sleep(wait).await;
                Err(AppendError::Unknown { stream })
            }
            Err(_) => Err(AppendError::Unknown { stream }),
        }
    }

    async fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError> {
        let node = self.node;
        self.ask(|world| {
            let until = world.readable(node);
            let own = world.streams.get(stream).into_iter().flatten().filter(|at| **at <= until);
            let commits = own.map(|at| &world.log[*at as usize - 1]);
            commits.filter(|commit| commit.last_version() >= from).take(limit).cloned().collect()
        })
        .await
    }

    async fn head(&self, stream: &StreamId) -> Result<Option<Head>, ReadError> {
        let node = self.node;
        self.ask(|world| {
            let until = world.readable(node);
            head_of(world, stream, until)
        })
        .await
    }

    async fn streams(&self, kind: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError> {
        self.ask(|world| {
            let of_kind = world.streams.keys().filter(|stream| stream.kind() == kind);
            of_kind.filter_map(|stream| Some((stream.clone(), head_of(world, stream, u64::MAX)?))).collect()
        })
        .await
    }

    async fn follow(&self, from: Cursor) -> Result<Follow, ReadError> {
        let from = from.0.first().copied().unwrap_or(0);
        let (sender, receiver) = mpsc::channel(FOLLOW_QUEUE);
        let node = self.node;
        self.ask(move |world| {
            let end = world.log.len() as u64;
            let next = from.wrapping_sub(stamped(world.repairs, 0)).wrapping_add(1);
            let next = if from == 0 { 1 } else { next };
            if world.nodes[node].blocked || next > end + 1 {
                let reason = "truncated, or of before a repair".to_owned();
                return Err(ReadError::Damaged { place: "the log".into(), reason });
            }
            let id = world.id();
            let follower = Follower { node, next, caught_up_after: end, caught_up: false, last: 0, sender };
            world.followers.insert(id, follower);
            // The first delivery only says, where there is nothing to catch up with, that there is not.
            for sequence in next - 1..=end {
                world.send_on(id, sequence);
            }
            Ok(())
        })
        .await??;
        Ok(Follow { receiver })
    }

    async fn tail(&self) -> Result<Cursor, ReadError> {
        self.ask(|world| Cursor(vec![stamped(world.repairs, world.log.len() as u64)])).await
    }

    async fn is_replaced(&self, cursor: &Cursor) -> bool {
        let at = cursor.0.first().copied().unwrap_or(0);
        at != 0 && at >> 45 != self.world.lock().repairs
    }
}
