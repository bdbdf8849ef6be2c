//! Purging: `STREAM.PURGE` with the subject of one stream, up to the first commit that stays. JetStream makes it durable before it answers.

use super::{
    api::{Get, PurgeRequest},
    journal::Core,
    read::decode,
};
use crate::{
    commit::StreamId,
    ids::Version,
    journal::{PurgeError, ReadError},
    subject::Subject,
};

impl Core {
    /// Forgets the commits of `stream` that end below `below`.
    pub(super) async fn purge(&self, stream: &StreamId, below: Version) -> Result<(), PurgeError> {
        let failed = |error: ReadError| PurgeError { reason: error.to_string() };
        let partition = self.partition(stream);
        let end = self.end(stream).await.map_err(failed)?;
        let Some(head) = end.head else { return Ok(()) };
        let keep_from = match head.version < below {
            true => None,
            false => Some(self.first_kept(stream, below).await.map_err(failed)?),
        };
        let subject = Subject::log(stream, self.settings.partitions);
        // Nobody may have gone on with a stream that is purged whole: its end is named.
        let request = PurgeRequest { filter: subject.as_str(), seq: keep_from.unwrap_or(end.sequence + 1) };
        let purged = self.shared.purge(&partition.stream, &request, self.settings.api_timeout).await;
        purged.map_err(|error| PurgeError { reason: format!("purge {stream} below {below}: {error}") })?;
        if keep_from.is_none() {
            self.known().forget(stream);
        }
        Ok(())
    }

    /// The sequence of the first commit of `stream` that ends at `below` or later. Compaction asks for the last one, so that is tried first.
    async fn first_kept(&self, stream: &StreamId, below: Version) -> Result<u64, ReadError> {
        let partition = self.partition(stream);
        let subject = Subject::log(stream, self.settings.partitions);
        let get = |get| self.shared.get(&partition.stream, get, self.settings.api_timeout);
        let reading =
            |error: super::api::ApiError| error.reading(format_args!("look for version {below} of {stream}"));
        let last = get(Get::Last { last_by_subj: subject.as_str() }).await.map_err(reading)?;
        if let Some(last) = last
            && decode(partition, &last, stream)?.version <= below
        {
            return Ok(last.sequence);
        }
        let mut next = 1;
        loop {
            let found =
                get(Get::Next { seq: next, next_by_subj: subject.as_str() }).await.map_err(reading)?;
            let Some(found) = found else {
                let reason = format!("{stream} ended below version {below} while it was looked at");
                return Err(ReadError::Unavailable { reason });
            };
            if decode(partition, &found, stream)?.last_version() >= below {
                return Ok(found.sequence);
            }
            next = found.sequence + 1;
        }
    }
}
