//! Truncation: a cluster that lost what it had acknowledged.
//!
//! It shows in three ways: the stream was made anew, its last sequence is lower than one that was seen, or another commit is at a version
//! that was seen. Then the partition takes no appends from this process any more and an alarm says so: what is lost here may still be on
//! some node's disk, and every further append would make that harder to bring back.
//!
//! A lower last sequence alone may also be a server that was cut off and answers for a leader that it no longer is, or one that has just
//! become leader and is still reading. So it counts only once it has been seen for `truncation_after`; until then the partition is unavailable.
//! After each reconnect a partition takes appends only once it has been looked at: new commits would hide that old ones are missing.
//!
//! A process that has just started has seen nothing yet. What it had acknowledged before is in its local copy: the last of that must be in the
//! log still ([`Core::expect`]).
//!
//! `roomlog repair` ends it: in the metadata of each stream it writes how often that was repaired. Whoever sees another number than before
//! takes the stream as it is then. Its sequences are others, so a [`Cursor`](crate::journal::Cursor) says which repair it is of (see
//! [`stamped`]), and an older one is of no use.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tokio::sync::watch;

use super::{
    api::{InfoRequest, StreamInfo, code},
    connection::NatsError,
    journal::Core,
};
use crate::{
    commit::Commit,
    journal::{AppendError, ReadError},
};

/// Key in the metadata of every stream: how often it was repaired.
const REPAIRS: &str = "roomlog.repairs";

/// Bits of a cursor's number that are the sequence: at a million commits a second a year's worth. The eight above name the repair, and all
/// of them together are a whole number in JavaScript.
const SEQUENCE_BITS: u32 = 45;

/// Commits looked at together at a start: enough to hide the network.
const AT_ONCE: usize = 16;

/// A sequence as it stands in a cursor.
pub(super) fn stamped(repair: u8, sequence: u64) -> u64 {
    u64::from(repair) << SEQUENCE_BITS | sequence
}

/// The repair and the sequence in a cursor's number.
pub(super) fn unstamped(number: u64) -> (u8, u64) {
    ((number >> SEQUENCE_BITS) as u8, number & ((1 << SEQUENCE_BITS) - 1))
}

/// How often the stream was repaired.
fn repairs(info: &StreamInfo) -> u64 {
    info.config["metadata"][REPAIRS].as_str().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Names a stream and its repairs: 0 if there were none. A stream that was made anew counts from the beginning, so its time of making takes part.
fn stamp(info: &StreamInfo) -> u8 {
    match repairs(info) {
        0 => 0,
        repairs => 1 + ((u64::from(crc32fast::hash(info.created.as_bytes())) + repairs) % 255) as u8,
    }
}

/// A consumer may be on another replica than the leader and be told of a commit a moment before the leader counts it itself. So a lower last
/// sequence is asked for again, this often and with this pause between, before it is as much as suspicious.
const LAGS: u32 = 10;
const LAG: std::time::Duration = std::time::Duration::from_millis(30);

/// A partition that lost commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncation {
    /// Its stream.
    pub stream: String,
    /// What gave it away.
    pub reason: String,
}

impl fmt::Display for Truncation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stream {} is truncated: {}; it takes no appends until an operator has run `roomlog repair`",
            self.stream, self.reason
        )
    }
}

/// What is remembered of a partition's stream, to notice that it is no longer what it was.
pub(super) struct Partition {
    pub stream: String,
    created: Mutex<String>,
    /// The highest sequence that was acknowledged, read or followed.
    highest: AtomicU64,
    suspected: Mutex<Option<Instant>>,
    truncated: Mutex<Option<Truncation>>,
    /// The connection on which the stream was last found to be what it was.
    sound_at: AtomicU64,
    /// The repair it is as of; followers wait for another.
    repair: watch::Sender<u8>,
}

impl Partition {
    pub(super) fn new(stream: String, info: &StreamInfo) -> Self {
        Self {
            stream,
            created: Mutex::new(info.created.clone()),
            highest: AtomicU64::new(info.state.last_seq),
            suspected: Mutex::new(None),
            truncated: Mutex::new(None),
            sound_at: AtomicU64::new(0),
            repair: watch::channel(stamp(info)).0,
        }
    }

    pub(super) fn seen(&self, sequence: u64) {
        self.highest.fetch_max(sequence, Ordering::Relaxed);
    }

    pub(super) fn truncated(&self) -> Option<Truncation> {
        self.truncated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is to be looked at often: it may be truncated, or it is and may be repaired.
    pub(super) fn is_watched(&self) -> bool {
        self.truncated().is_some() || self.suspected().is_some()
    }

    fn is_suspected(&self) -> bool {
        self.truncated().is_none() && self.suspected().is_some()
    }

    /// The repair it is as of.
    pub(super) fn repair(&self) -> u8 {
        *self.repair.borrow()
    }

    /// Tells of repairs.
    pub(super) fn repairs(&self) -> watch::Receiver<u8> {
        self.repair.subscribe()
    }

    fn created(&self) -> String {
        self.created.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn suspected(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.suspected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error for appends while the partition is truncated.
    pub(super) fn writable(&self) -> Result<(), AppendError> {
        match self.truncated() {
            None => Ok(()),
            Some(truncation) => Err(AppendError::Unavailable { reason: truncation.to_string() }),
        }
    }

    /// Whether the stream was looked at on connection `number`, and nothing was wrong then or later.
    pub(super) fn is_sound(&self, connection: u64) -> bool {
        self.sound_at.load(Ordering::Relaxed) == connection && !self.is_suspected()
    }

    fn broken(&self, truncation: &Truncation) -> ReadError {
        ReadError::Damaged { place: self.stream.clone(), reason: truncation.to_string() }
    }
}

impl Core {
    /// Asks the leader how the stream is and compares that with what was seen. What is read after this has all that was seen before.
    pub(super) async fn inspect(&self, partition: &Partition) -> Result<StreamInfo, ReadError> {
        let highest = partition.highest.load(Ordering::Relaxed);
        let connection = self.shared.connects();
        let request = InfoRequest::default();
        let ask = || self.shared.stream_info(&partition.stream, &request, self.settings.api_timeout);
        let created = partition.created();
        let mut asked = ask().await;
        if let Ok(info) = &asked {
            self.see_repair(partition, info);
        }
        if let Some(truncation) = partition.truncated() {
            return Err(partition.broken(&truncation));
        }
        // A repair begins a new count.
        let highest = highest.min(partition.highest.load(Ordering::Relaxed));
        for _ in 0..LAGS {
            match &asked {
                Ok(info) if info.created == created && info.state.last_seq < highest => {
                    tokio::time::sleep(LAG).await;
                    asked = ask().await;
                }
                _ => break,
            }
        }
        let loss = match asked {
            Ok(info) if info.created != partition.created() => {
                let reason = format!("it was made anew at {} (before: {created})", info.created);
                return Err(self.truncate(partition, reason));
            }
            Ok(info) if info.state.last_seq < highest => {
                format!("it ends at sequence {}, but {highest} was acknowledged", info.state.last_seq)
            }
            Ok(info) => {
                *partition.suspected() = None;
                partition.sound_at.store(connection, Ordering::Relaxed);
                return Ok(info);
            }
            Err(error) if error.code() == Some(code::NO_STREAM) => "it is gone".into(),
            Err(error) => {
                return Err(error.reading(format_args!("ask for the state of {}", partition.stream)));
            }
        };
        let since = *partition.suspected().get_or_insert_with(Instant::now);
        let confirm = self.settings.truncation_after;
        if since.elapsed() >= confirm {
            return Err(self.truncate(partition, loss));
        }
        Err(ReadError::Unavailable {
            reason: format!(
                "stream {}: {loss}; if that stays so for {confirm:?} it counts as truncated",
                partition.stream
            ),
        })
    }

    /// Takes the stream as it is if it was repaired since it was looked at last.
    fn see_repair(&self, partition: &Partition, info: &StreamInfo) {
        let repair = stamp(info);
        if repair == partition.repair() {
            return;
        }
        *partition.created.lock().unwrap_or_else(PoisonError::into_inner) = info.created.clone();
        partition.highest.store(info.state.last_seq, Ordering::Relaxed);
        *partition.suspected() = None;
        *partition.truncated.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.known().clear();
        self.alarm.send_modify(|alarms| alarms.retain(|alarm| alarm.stream != partition.stream));
        tracing::warn!(
            stream = partition.stream,
            repairs = repairs(info),
            "the log was repaired: appends are taken again, what was folded is folded anew"
        );
        partition.repair.send_replace(repair);
    }

    /// Declares a partition truncated.
    pub(super) fn truncate(&self, partition: &Partition, reason: String) -> ReadError {
        let truncation = Truncation { stream: partition.stream.clone(), reason };
        let mut truncated = partition.truncated.lock().unwrap_or_else(PoisonError::into_inner);
        if truncated.is_none() {
            *truncated = Some(truncation.clone());
            tracing::error!(%truncation, "ALARM");
            self.alarm.send_modify(|alarms| alarms.push(truncation.clone()));
        }
        partition.broken(truncated.as_ref().unwrap_or(&truncation))
    }

    /// Looks whether what was acknowledged before this start is there: a stream that has something else there, or ends before, is truncated.
    /// A room that is gone altogether was deleted.
    pub(super) async fn expect(&self, acknowledged: &[Arc<Commit>]) -> Result<(), ReadError> {
        let deleted =
            |commit: &Commit| commit.events.iter().any(|event| event.kind.as_str() == "RoomDeleted");
        let looked = acknowledged.iter().filter(|commit| !deleted(commit)).map(|commit| async move {
            let found = self.read(&commit.stream, commit.version, 1).await?;
            let reason = match found.first() {
                Some(found) if found.id == commit.id => return Ok(()),
                // Compacted: what it still has begins later.
                Some(found) if found.version > commit.last_version() => return Ok(()),
                Some(found) => format!(
                    "{} has commit {} at version {}, and {} was acknowledged there",
                    commit.stream, found.id, commit.version, commit.id
                ),
                None => format!(
                    "{} ends before version {}, which was acknowledged",
                    commit.stream, commit.version
                ),
            };
            self.truncate(self.partition(&commit.stream), reason);
            Ok(())
        });
        stream::iter(looked).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Writes into the metadata of every stream that it was repaired.
    pub(super) async fn repaired(&self) -> Result<(), NatsError> {
        for partition in &self.partitions {
            let failed = |error: super::api::ApiError| NatsError::Api {
                what: format!("write down that {} was repaired", partition.stream),
                reason: error.to_string(),
            };
            let timeout = self.settings.api_timeout;
            let info = self.shared.stream_info(&partition.stream, &InfoRequest::default(), timeout).await;
            let info = info.map_err(failed)?;
            let mut config = info.config.clone();
            config["metadata"][REPAIRS] = Value::String((repairs(&info) + 1).to_string());
            let update = format!("STREAM.UPDATE.{}", partition.stream);
            let updated: StreamInfo = self.shared.api(&update, &config, timeout).await.map_err(failed)?;
            self.see_repair(partition, &updated);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_say_which_repair_they_are_of() {
        assert_eq!(stamped(0, 17), 17);
        assert_eq!(unstamped(stamped(255, (1 << SEQUENCE_BITS) - 1)), (255, (1 << SEQUENCE_BITS) - 1));
        assert!(stamped(255, (1 << SEQUENCE_BITS) - 1) < 1 << 53, "JavaScript reads it exactly");
        let info = |created: &str, repairs: &str| StreamInfo {
            config: serde_json::json!({ "metadata": { REPAIRS: repairs } }),
            created: created.into(),
            state: super::super::api::StreamState { last_seq: 1, subjects: None },
            total: 0,
        };
        assert_eq!(stamp(&info("a", "0")), 0);
        let stamps: std::collections::BTreeSet<u8> =
            (1..=255).map(|repairs: u32| stamp(&info("a", &repairs.to_string()))).collect();
        assert_eq!(stamps.len(), 255, "each repair is another, for a long time");
        assert!(!stamps.contains(&0));
        assert_ne!(stamp(&info("2026-01-01T00:00:00Z", "1")), stamp(&info("2026-01-01T00:00:01Z", "1")));
    }
}
