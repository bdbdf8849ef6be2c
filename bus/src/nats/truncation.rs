//! Truncation: a cluster that lost what it had acknowledged.
//!
//! It shows in three ways: the stream was made anew, its last sequence is lower than one that was seen, or another commit is at a version
//! that was seen. Then the partition takes no appends from this process any more and an alarm says so: what is lost here may still be on
//! some node's disk, and every further append would make that harder to bring back.
//!
//! A lower last sequence alone may also be a server that was cut off and answers for a leader that it no longer is, or one that has just
//! become leader and is still reading. So it counts only once it has been seen for `truncation_after`; until then the partition is unavailable.
//! After each reconnect a partition takes appends only once it has been looked at: new commits would hide that old ones are missing.

use std::{
    fmt,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    api::{InfoRequest, StreamInfo, code},
    journal::Core,
};
use crate::journal::{AppendError, ReadError};

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
    created: String,
    /// The highest sequence that was acknowledged, read or followed.
    highest: AtomicU64,
    suspected: Mutex<Option<Instant>>,
    truncated: OnceLock<Truncation>,
    /// The connection on which the stream was last found to be what it was.
    sound_at: AtomicU64,
}

impl Partition {
    pub(super) fn new(stream: String, info: &StreamInfo) -> Self {
        Self {
            stream,
            created: info.created.clone(),
            highest: AtomicU64::new(info.state.last_seq),
            suspected: Mutex::new(None),
            truncated: OnceLock::new(),
            sound_at: AtomicU64::new(0),
        }
    }

    pub(super) fn seen(&self, sequence: u64) {
        self.highest.fetch_max(sequence, Ordering::Relaxed);
    }

    pub(super) fn truncated(&self) -> Option<&Truncation> {
        self.truncated.get()
    }

    pub(super) fn is_suspected(&self) -> bool {
        self.truncated.get().is_none() && self.suspected().is_some()
    }

    fn suspected(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.suspected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error for appends while the partition is truncated.
    pub(super) fn writable(&self) -> Result<(), AppendError> {
        match self.truncated.get() {
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
        let broken = || partition.truncated().map(|truncation| partition.broken(truncation));
        if let Some(broken) = broken() {
            return Err(broken);
        }
        let highest = partition.highest.load(Ordering::Relaxed);
        let connection = self.shared.connects();
        let request = InfoRequest::default();
        let ask = || self.shared.stream_info(&partition.stream, &request, self.settings.api_timeout);
        let mut asked = ask().await;
        for _ in 0..LAGS {
            match &asked {
                Ok(info) if info.created == partition.created && info.state.last_seq < highest => {
                    tokio::time::sleep(LAG).await;
                    asked = ask().await;
                }
                _ => break,
            }
        }
        let loss = match asked {
            Ok(info) if info.created != partition.created => {
                let reason = format!("it was made anew at {} (before: {})", info.created, partition.created);
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

    /// Declares a partition truncated.
    pub(super) fn truncate(&self, partition: &Partition, reason: String) -> ReadError {
        let truncation = Truncation { stream: partition.stream.clone(), reason };
        if partition.truncated.set(truncation.clone()).is_ok() {
            tracing::error!(%truncation, "ALARM");
            self.alarm.send_modify(|alarms| alarms.push(truncation.clone()));
        }
        partition.broken(partition.truncated().unwrap_or(&truncation))
    }
}
