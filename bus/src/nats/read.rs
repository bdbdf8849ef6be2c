//! Reading: always from the stream's leader (`STREAM.MSG.GET`), never from a replica that may be behind (`DIRECT.GET`).
//!
//! A stream is read commit by commit, each question naming the sequence after the last answer; many streams are read at the same time. Measured
//! (`examples/nats_speed.rs`, server 2.15.1 on two busy cores): a stream of 100 commits takes 8 to 12 ms from one server and 30 to 46 ms from a
//! cluster of three, 64 streams at a time give 15 000 to 26 000 commits/s, and 20 000 heads/s and more. Nodes that take over fold what they
//! followed and ask only for the head. Whoever needs everything follows: that gives four times as many.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use super::{
    api::{Get, InfoRequest, Stored},
    journal::Core,
    known::End,
    truncation::{Partition, stamped, unstamped},
};
use crate::{
    commit::{Commit, Head, StreamId, StreamKind},
    ids::Version,
    journal::{Cursor, ReadError},
    subject::Subject,
};

/// Heads asked for at the same time when streams are listed: enough to hide the network, few enough not to hold up anybody's appends.
const AT_ONCE: usize = 64;

/// The commit in a message, which must be one of `stream`.
pub(super) fn decode(
    partition: &Partition,
    stored: &Stored,
    stream: &StreamId,
) -> Result<Arc<Commit>, ReadError> {
    decode_at(&partition.stream, stored.sequence, &stored.subject, &stored.payload).and_then(|commit| {
        match commit.stream == *stream {
            true => Ok(commit),
            false => {
                Err(damaged(&partition.stream, stored.sequence, format!("a commit of {}", commit.stream)))
            }
        }
    })
}

/// The commit in a message; its stream must be the one its subject names.
pub(super) fn decode_at(
    stream: &str,
    sequence: u64,
    subject: &str,
    payload: &[u8],
) -> Result<Arc<Commit>, ReadError> {
    let commit = Commit::decode(payload)
        .map_err(|error| damaged(stream, sequence, format!("it is no commit: {error}")))?;
    // roomlog.log.<partition>.<kind>.<id>
    let named = subject.splitn(4, '.').nth(3).unwrap_or_default();
    if commit.stream.to_string() != named {
        return Err(damaged(stream, sequence, format!("a commit of {} on subject {subject}", commit.stream)));
    }
    Ok(Arc::new(commit))
}

fn damaged(stream: &str, sequence: u64, reason: String) -> ReadError {
    ReadError::Damaged { place: format!("stream {stream}, sequence {sequence}"), reason }
}

impl Core {
    /// Where `stream` ends. Sees all that this process knows to be stored, or fails.
    pub(super) async fn end(&self, stream: &StreamId) -> Result<End, ReadError> {
        let partition = self.partition(stream);
        let known = self.known().end(stream);
        let mut end = self.last(partition, stream).await?;
        if partition.truncated().is_none()
            && let Some(known) = known
        {
            if end.sequence < known.sequence {
                // Either the leader is not what it says, or the stream was purged. The former shows here:
                self.inspect(partition).await?;
                end = self.last(partition, stream).await?;
            }
            if let (Some(now), Some(before)) = (end.head, known.head)
                && now.version == before.version
                && now.id != before.id
            {
                let reason = format!("{stream} has another commit at version {} than before", now.version);
                return Err(self.truncate(partition, reason));
            }
        }
        partition.seen(end.sequence);
        self.known().set(stream, end);
        Ok(end)
    }

    async fn last(&self, partition: &Partition, stream: &StreamId) -> Result<End, ReadError> {
        let subject = Subject::log(stream, self.settings.partitions);
        let last = Get::Last { last_by_subj: subject.as_str() };
        let found = self.shared.get(&partition.stream, last, self.settings.api_timeout).await;
        match found.map_err(|error| error.reading(format_args!("ask for the head of {stream}")))? {
            None => Ok(End::default()),
            Some(stored) => {
                let head = decode(partition, &stored, stream)?.head();
                Ok(End { head: Some(head), sequence: stored.sequence })
            }
        }
    }

    pub(super) async fn read(
        &self,
        stream: &StreamId,
        from: Version,
        limit: usize,
    ) -> Result<Vec<Arc<Commit>>, ReadError> {
        let partition = self.partition(stream);
        let subject = Subject::log(stream, self.settings.partitions);
        let known = self.known().end(stream);
        let mut next = self.known().before(stream, from) + 1;
        let mut commits = Vec::new();
        let mut last = 0;
        while commits.len() < limit {
            let get = Get::Next { seq: next, next_by_subj: subject.as_str() };
            let found = self.shared.get(&partition.stream, get, self.settings.api_timeout).await;
            let found =
                found.map_err(|error| error.reading(format_args!("read {stream} from version {from}")))?;
            let Some(stored) = found else { break };
            let commit = decode(partition, &stored, stream)?;
            (next, last) = (stored.sequence + 1, stored.sequence);
            self.known().learn(stream, End { head: Some(commit.head()), sequence: stored.sequence });
            if commit.last_version() >= from {
                commits.push(commit);
            }
        }
        partition.seen(last);
        // Ended before the end we knew of: a leader that is behind, unless the stream was purged.
        if commits.len() < limit
            && partition.truncated().is_none()
            && known.is_some_and(|known| next <= known.sequence)
        {
            self.inspect(partition).await?;
            let end = self.end(stream).await?;
            if end.sequence >= next {
                return Err(ReadError::Unavailable {
                    reason: format!("the leader of {} is behind what it acknowledged", partition.stream),
                });
            }
        }
        Ok(commits)
    }

    pub(super) async fn streams(&self, kind: StreamKind) -> Result<Vec<(StreamId, Head)>, ReadError> {
        let mut ids = Vec::new();
        for (number, partition) in self.partitions.iter().enumerate() {
            let filter = format!("roomlog.log.{number}.{}.*", kind.as_str());
            let mut seen = 0;
            loop {
                let request = InfoRequest { subjects_filter: Some(filter.clone()), offset: seen };
                let info =
                    self.shared.stream_info(&partition.stream, &request, self.settings.api_timeout).await;
                let info = info
                    .map_err(|error| error.reading(format_args!("list the streams of {}", kind.as_str())))?;
                let page = info.state.subjects.unwrap_or_default();
                if page.is_empty() {
                    break;
                }
                seen += page.len();
                ids.extend(
                    page.into_keys().filter_map(|subject| subject.splitn(4, '.').nth(3)?.parse().ok()),
                );
                if seen >= info.total {
                    break;
                }
            }
        }
        let head = |stream: StreamId| async move {
            let end = self.end(&stream).await?;
            Ok(end.head.map(|head| (stream, head)))
        };
        let heads = stream::iter(ids).map(head).buffer_unordered(AT_ONCE);
        let mut streams: Vec<(StreamId, Head)> =
            heads.try_filter_map(|head| async move { Ok(head) }).try_collect().await?;
        streams.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(streams)
    }

    /// Behind the next message of a partition where that is not a commit.
    pub(super) async fn beyond_loss(&self, from: &Cursor) -> Option<Cursor> {
        let mut beyond = from.clone();
        beyond.0.resize(self.partitions.len(), 0);
        let mut found = false;
        for (partition, at) in self.partitions.iter().zip(&mut beyond.0) {
            let get = Get::Next { seq: unstamped(*at).1 + 1, next_by_subj: ">" };
            let Ok(Some(next)) = self.shared.get(&partition.stream, get, self.settings.api_timeout).await
            else {
                continue;
            };
            if decode_at(&partition.stream, next.sequence, &next.subject, &next.payload).is_err() {
                *at = stamped(partition.repair(), next.sequence);
                found = true;
            }
        }
        found.then_some(beyond)
    }
}
