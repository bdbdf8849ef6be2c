//! A journal with a gate: while it is shut, appends are refused as a full or absent disk would refuse them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use roomlog_bus::{
    commit::{Commit, Head, StreamId, StreamKind},
    ids::Version,
    journal::{AppendError, Cursor, Follow, Journal, ReadError},
};

/// The journal behind the gate, and whether it is shut.
pub struct Gate {
    /// What is kept.
    pub inner: Arc<dyn Journal>,
    /// Shut or not.
    pub shut: Arc<AtomicBool>,
}

// `Journal` is made of boxed futures (async-trait), so delegating is written out.
type Answer<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Journal for Gate {
    fn append<'a: 'b, 'b>(&'a self, commit: Commit) -> Answer<'b, Result<(), AppendError>>
    where
        Self: 'b,
    {
        if self.shut.load(Ordering::Relaxed) {
            return Box::pin(async { Err(AppendError::Unavailable { reason: "the gate is shut".into() }) });
        }
        self.inner.append(commit)
    }

    fn read<'a: 'c, 'b: 'c, 'c>(
        &'a self,
        stream: &'b StreamId,
        from: Version,
        limit: usize,
    ) -> Answer<'c, Result<Vec<Arc<Commit>>, ReadError>>
    where
        Self: 'c,
    {
        self.inner.read(stream, from, limit)
    }

    fn head<'a: 'c, 'b: 'c, 'c>(&'a self, stream: &'b StreamId) -> Answer<'c, Result<Option<Head>, ReadError>>
    where
        Self: 'c,
    {
        self.inner.head(stream)
    }

    fn streams<'a: 'b, 'b>(&'a self, kind: StreamKind) -> Answer<'b, Result<Vec<(StreamId, Head)>, ReadError>>
    where
        Self: 'b,
    {
        self.inner.streams(kind)
    }

    fn follow<'a: 'b, 'b>(&'a self, from: Cursor) -> Answer<'b, Result<Follow, ReadError>>
    where
        Self: 'b,
    {
        self.inner.follow(from)
    }

    fn tail<'a: 'b, 'b>(&'a self) -> Answer<'b, Result<Cursor, ReadError>>
    where
        Self: 'b,
    {
        self.inner.tail()
    }
}
