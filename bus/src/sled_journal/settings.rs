//! Settings of the sled journal, and the reason of each default.

use std::time::Duration;

/// How a [`SledJournal`](super::SledJournal) behaves. The defaults suit one machine that runs everything.
#[derive(Debug, Clone)]
pub struct JournalSettings {
    /// Partitions of the cluster, written into the facts when the folder is made and read from there ever after. Default 4: enough for
    /// four cores to each follow one, and exported logs keep their partition when they move to JetStream.
    pub partitions: u16,
    /// Bytes of commits after which a segment is closed. Default 64 MiB: only the newest segment is read through at a start, and that
    /// much is read and checked in well under a second.
    pub segment_bytes: u64,
    /// Blocks after which a segment is closed. Default 65 536: with groups of one small commit the tables of a segment stay below
    /// a few MiB.
    pub segment_blocks: u32,
    /// Commits in one group, at most. Default 4 096: a group is one sync; beyond this the sync no longer dominates and answers only get
    /// later.
    pub group_commits: usize,
    /// Bytes in one group, at most. Default 4 MiB: about what a disk syncs in the time a request can wait.
    pub group_bytes: usize,
    /// Appends that may wait for the writer; further ones wait their turn in `append`. Default 8 192: two full groups, so that one
    /// gathers while the other is synced.
    pub queue: usize,
    /// Commits kept in memory for followers and readers. Default 16 384: several seconds at full rate; a follower further back reads
    /// from disk.
    pub recent_commits: usize,
    /// Bytes of those commits, at most, in their encoded form. Default 32 MiB.
    pub recent_bytes: usize,
    /// Entries waiting in one follower's channel. Default 256: what it has not taken is read again later, from memory or disk.
    pub follow_queue: usize,
    /// sled's page cache, bytes. Default 32 MiB: the open segment's recent pages; older commits are read straight from closed files.
    pub cache_bytes: u64,
    /// Whether opening reads every closed segment through, and sets damaged ones aside, instead of noticing damage when it is read.
    /// Default no: a start must not take longer the older the journal is. `roomlog replay verify` does it on a running journal.
    pub check_all: bool,
    /// sled's own flush interval. Default 500 ms, sled's default: no append waits for it, it only writes out what a crash of the
    /// writer thread would leave behind.
    pub flush_every: Duration,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self {
            partitions: 4,
            segment_bytes: 64 << 20,
            segment_blocks: 65_536,
            group_commits: 4_096,
            group_bytes: 4 << 20,
            queue: 8_192,
            recent_commits: 16_384,
            recent_bytes: 32 << 20,
            follow_queue: 256,
            cache_bytes: 32 << 20,
            check_all: false,
            flush_every: Duration::from_millis(500),
        }
    }
}
