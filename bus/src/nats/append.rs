//! Appending: one message, accepted by the stream only if its subject still ends where we think.
//!
//! JetStream compares the stream-wide sequence of the subject's last message (`Nats-Expected-Last-Subject-Sequence`), the journal's rule is
//! about versions and ids. The two meet in [`End`]: where both are known, a commit that follows the head is sent with the head's sequence, and
//! whoever was faster makes the server refuse it. A refusal is no conflict yet: the last message may be ours (a retry), or what we knew may
//! have been old.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{
    api::{Ack, Get, Refusal, code},
    inbox::AskError,
    journal::Core,
    known::End,
    read::decode,
};
use crate::{
    bus::TYPE_HEADER,
    commit::{Commit, StreamId},
    journal::{AppendError, ReadError},
    sled_journal::check,
    subject::Subject,
};

/// Between two tries while the journal takes nothing, or while somebody else's append to the same stream is being stored.
const AGAIN: Duration = Duration::from_millis(20);

/// How one try ended.
enum Tried {
    Stored {
        sequence: u64,
    },
    /// The server has a message with this id, there.
    Duplicate {
        sequence: u64,
    },
    /// The subject does not end at the expected sequence.
    WrongSequence,
    /// The same commit is being stored right now, by another try.
    InProcess,
    /// Certainly not stored; another try may go better.
    NotStored(String),
    /// Certainly not stored, and another try would end the same.
    Refused(String),
    Unknown,
}

impl Core {
    pub(super) async fn append(&self, commit: Commit) -> Result<(), AppendError> {
        let bytes: Bytes = check(&commit)?.into();
        let partition = self.partition(&commit.stream);
        let subject = Subject::log(&commit.stream, self.settings.partitions);
        let headers = headers(&commit);
        self.fits(&commit, &headers, &bytes)?;
        let until = Instant::now() + self.settings.patience;
        let late = || Instant::now() > until;
        // Another try of the same commit may be on its way into the log: then a failure here does not say that it is not stored.
        let mut in_process = false;
        let failed = |error: AppendError, in_process: bool| match in_process {
            true => AppendError::Unknown { stream: commit.stream.clone() },
            false => error,
        };
        let unavailable = |reason: String| AppendError::Unavailable { reason };
        // What we knew is good for one try; from then on the server is asked.
        let mut known = self.known().end(&commit.stream);
        loop {
            partition.writable().map_err(|error| failed(error, in_process))?;
            if !partition.is_sound(self.shared.connects())
                && let Err(error) = self.inspect(partition).await
            {
                if late() || partition.truncated().is_some() {
                    return Err(failed(unavailable(error.to_string()), in_process));
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            let (end, asked) = match known.take() {
                Some(end) => (end, false),
                None => match self.end(&commit.stream).await {
                    Ok(end) => (end, true),
                    Err(ReadError::Unavailable { .. }) if !late() => {
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                    Err(error) => return Err(failed(unavailable(error.to_string()), in_process)),
                },
            };
            if !commit.follows(end.head.as_ref()) {
                if !asked {
                    continue;
                }
                return self.settled(&commit, end).await;
            }
            match self.publish(&subject, &headers, &bytes, end.sequence).await {
                Tried::Stored { sequence } => {
                    partition.seen(sequence);
                    self.known().learn(&commit.stream, End { head: Some(commit.head()), sequence });
                    return Ok(());
                }
                Tried::Duplicate { sequence } => return self.is_ours(&commit, sequence).await,
                Tried::WrongSequence if !asked => {}
                // The end is as we said, but somebody else's append is between the server's door and its disk.
                Tried::WrongSequence if !late() => tokio::time::sleep(AGAIN).await,
                Tried::WrongSequence => {
                    let reason =
                        format!("{} is being appended to by somebody else all the time", commit.stream);
                    return Err(failed(unavailable(reason), in_process));
                }
                Tried::InProcess if !late() => {
                    in_process = true;
                    tokio::time::sleep(AGAIN).await;
                }
                Tried::NotStored(_) if !late() => tokio::time::sleep(AGAIN).await,
                Tried::NotStored(reason) | Tried::Refused(reason) => {
                    return Err(failed(unavailable(reason), in_process));
                }
                Tried::InProcess | Tried::Unknown => {
                    return Err(AppendError::Unknown { stream: commit.stream });
                }
            }
        }
    }

    /// A message that is larger than the server takes would never be answered.
    fn fits(&self, commit: &Commit, headers: &HeaderMap, bytes: &Bytes) -> Result<(), AppendError> {
        // The sequence expected is not among the headers yet.
        const EXPECTED: usize = "Nats-Expected-Last-Subject-Sequence: 18446744073709551615\r\n".len();
        let size =
            headers.iter().fold(bytes.len() + EXPECTED + "NATS/1.0\r\n\r\n".len(), |size, (name, values)| {
                values
                    .iter()
                    .fold(size, |size, value| size + name.to_string().len() + value.as_str().len() + 4)
            });
        let allowed = self.shared.client.max_payload();
        if size <= allowed {
            return Ok(());
        }
        let reason = format!(
            "as a message it takes {size} bytes, NATS server {} takes at most {allowed}: raise max_payload there to 1MB, its default",
            self.shared.server()
        );
        Err(AppendError::Invalid { stream: commit.stream.clone(), reason })
    }

    async fn publish(&self, subject: &Subject, headers: &HeaderMap, bytes: &Bytes, expected: u64) -> Tried {
        let mut headers = headers.clone();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        // The message's id and the expected sequence let it be stored once, however often it is sent.
        let inbox = &self.shared.inbox;
        let (headers, timeout) = (Some(headers), self.settings.ack_timeout);
        let asked = inbox.ask_again(subject.as_str(), headers, bytes.clone(), timeout, is_final).await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(AskError::NotSent(reason)) => return Tried::NotStored(reason),
            Err(AskError::NoResponders) => {
                return Tried::NotStored(format!(
                    "no JetStream stream listens on {subject}: it has no leader now"
                ));
            }
            Err(AskError::Timeout(_) | AskError::Broken) => return Tried::Unknown,
        };
        let Ok(ack) = serde_json::from_slice::<Ack>(&answer.payload) else {
            tracing::warn!(%subject, answer = ?answer.payload, "JetStream acknowledged with something else");
            return Tried::Unknown;
        };
        match ack.error {
            None if ack.stream.is_empty() || ack.seq == 0 => Tried::Unknown,
            None if ack.duplicate => Tried::Duplicate { sequence: ack.seq },
            None => Tried::Stored { sequence: ack.seq },
            Some(refusal) => refused(refusal),
        }
    }

    /// The server says that it has a message with this commit's id: is it this commit?
    async fn is_ours(&self, commit: &Commit, sequence: u64) -> Result<(), AppendError> {
        let partition = self.partition(&commit.stream);
        let unknown = || AppendError::Unknown { stream: commit.stream.clone() };
        let found =
            self.shared.get(&partition.stream, Get::At { seq: sequence }, self.settings.api_timeout).await;
        let stored = found.ok().flatten().ok_or_else(unknown)?;
        let stored = decode(partition, &stored, &commit.stream).map_err(|_| unknown())?;
        if (stored.id, stored.version) != (commit.id, commit.version) {
            return Err(unknown());
        }
        partition.seen(sequence);
        self.known().learn(&commit.stream, End { head: Some(stored.head()), sequence });
        Ok(())
    }

    /// The stream does not end where `commit` expects: because it is stored already, or because of somebody else's.
    async fn settled(&self, commit: &Commit, end: End) -> Result<(), AppendError> {
        let conflict = || AppendError::Conflict {
            stream: commit.stream.clone(),
            version: commit.version,
            head: end.head,
        };
        match end.head {
            Some(head) if head == commit.head() => Ok(()),
            Some(head) if head.version >= commit.version => {
                match self.read(&commit.stream, commit.version, 1).await {
                    Ok(found) if found.first().is_some_and(|c| is_same(c, commit)) => Ok(()),
                    Ok(_) => Err(conflict()),
                    Err(_) => Err(AppendError::Unknown { stream: commit.stream.clone() }),
                }
            }
            _ => Err(conflict()),
        }
    }
}

/// Whether this answer to a message that was sent more than once says what became of it.
fn is_final(answer: &async_nats::Message) -> bool {
    let ack = serde_json::from_slice::<Ack>(&answer.payload).ok();
    ack.is_some_and(|ack| match ack.error {
        None => true,
        // The sequence may be wrong by the first of them: the end is looked at. All else speaks of the last one only.
        Some(refusal) => matches!(refused(refusal), Tried::WrongSequence),
    })
}

fn is_same(a: &Arc<Commit>, b: &Commit) -> bool {
    (a.id, a.version) == (b.id, b.version)
}

fn refused(refusal: Refusal) -> Tried {
    match refusal.err_code {
        code::WRONG_LAST_SEQUENCE | code::WRONG_LAST_SEQUENCE_CONSTANT => Tried::WrongSequence,
        code::DUPLICATE_IN_PROCESS => Tried::InProcess,
        known if code::NOT_STORED.contains(&known) => Tried::Refused(refusal.to_string()),
        _ => {
            tracing::warn!(%refusal, "JetStream refused an append in a way that does not say whether it is stored");
            Tried::Unknown
        }
    }
}

fn headers(commit: &Commit) -> HeaderMap {
    let types: Vec<&str> = commit.events.iter().map(|event| event.kind.as_str()).collect();
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", message_id(&commit.stream, commit));
    headers.insert(TYPE_HEADER, types.join(","));
    headers
}

fn message_id(stream: &StreamId, commit: &Commit) -> String {
    format!("{stream}:{}", commit.id)
}
