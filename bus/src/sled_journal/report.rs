//! What opening a journal found, and why it may fail.

use std::{fmt, io, path::PathBuf};

/// Why a journal does not open. Damage in it is no reason: that is set aside and reported, see [`OpenReport`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process writes it.
    #[error(
        "the journal in {} is in use by another process; stop it first, or open the journal read-only", directory.display()
    )]
    InUse {
        /// The folder.
        directory: PathBuf,
    },
    /// There is no journal.
    #[error("there is no journal in {}: it has no facts.json", directory.display())]
    Missing {
        /// The folder.
        directory: PathBuf,
    },
    /// It was written by a newer Roomlog.
    #[error("{} has format {found}, this Roomlog reads {known}: use the Roomlog that wrote it, or a newer one", path.display())]
    Format {
        /// The facts file.
        path: PathBuf,
        /// Format there.
        found: u32,
        /// Format known here.
        known: u32,
    },
    /// The facts cannot be understood.
    #[error("{} does not hold the facts of a journal: {reason}; restore it from a copy of this folder, it never changes", path.display())]
    Facts {
        /// The facts file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system refused.
    #[error("could not {what} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// sled did not make a new segment.
    #[error("could not make segment {}: {reason}", path.display())]
    Segment {
        /// Its directory.
        path: PathBuf,
        /// sled's answer.
        reason: String,
    },
}

impl OpenError {
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { what, path: path.into(), source }
    }
}

/// What opening found. A journal with findings opens all the same; whoever opened it logs and counts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Segments, the open one included.
    pub segments: u32,
    /// Sequence of the last commit; 0 if there is none.
    pub last_sequence: u64,
    /// Streams with at least one commit.
    pub streams: u64,
    /// Things that were not as they should be, in order of segment.
    pub findings: Vec<Finding>,
}

impl OpenReport {
    /// Whether something acknowledged may be missing or unreadable.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(Finding::is_damage)
    }
}

/// One thing that was not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The end of the newest segment was torn by a crash: a group nobody was answered for was dropped. Normal after a kill.
    TornTail {
        /// The segment.
        segment: u32,
        /// Whole commits in what was dropped.
        commits: u64,
    },
    /// A manifest was missing or damaged and was made anew by reading the segment. Normal after a kill while a segment was closed.
    ManifestRebuilt {
        /// The segment.
        segment: u32,
        /// Why.
        reason: String,
    },
    /// A segment is not what was written.
    SetAside {
        /// The segment.
        segment: u32,
        /// Where its files are now.
        moved_to: PathBuf,
        /// What is wrong.
        reason: String,
        /// Commits that were intact, checked one by one, and are served on from a new copy of the segment.
        kept: u64,
    },
    /// Sequences that are not there any more. Reads that would need them fail; a follow breaks there.
    Hole {
        /// First missing.
        first: u64,
        /// Last missing.
        last: u64,
        /// What is known about why.
        reason: String,
    },
    /// The record of what was purged is of no use: what was purged and still lies in a segment is served again, and a stream that lost its
    /// beginning cannot be told from one whose beginning was purged.
    FloorsLost {
        /// What is wrong with it.
        reason: String,
    },
    /// A stream whose commits do not join up; it takes no appends and its broken part is not served.
    BrokenStream {
        /// The stream.
        stream: crate::commit::StreamId,
        /// What is wrong.
        reason: String,
    },
}

impl Finding {
    /// Whether something acknowledged may be missing or unreadable.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::TornTail { .. } | Self::ManifestRebuilt { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TornTail { segment, commits } => {
                write!(
                    f,
                    "segment {segment:06}: the last group was cut off by a crash; {commits} unanswered commits dropped"
                )
            }
            Self::ManifestRebuilt { segment, reason } => {
                write!(f, "segment {segment:06}: manifest made anew ({reason})")
            }
            Self::SetAside { segment, moved_to, reason, kept } => write!(
                f,
                "segment {segment:06} is damaged: {reason}; its files are set aside in {}, {kept} intact commits are served on",
                moved_to.display()
            ),
            Self::Hole { first, last, reason } => {
                write!(f, "commits {first} to {last} of the journal are missing: {reason}")
            }
            Self::FloorsLost { reason } => {
                write!(
                    f,
                    "the record of what was purged (`purged`) is damaged: {reason}; streams that begin late are believed"
                )
            }
            Self::BrokenStream { stream, reason } => {
                write!(f, "stream {stream} does not join up: {reason}; it takes no appends")
            }
        }
    }
}
