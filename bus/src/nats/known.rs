//! What this process knows of the streams it has to do with: where they end, and where in JetStream some of their versions are.
//!
//! A memory only: nothing is decided on it that the server does not check (an append names the sequence it expects), and a stream that was
//! forgotten is asked for again.

use std::collections::HashMap;

use crate::{
    commit::{Head, StreamId},
    ids::Version,
};

/// The end of a stream: its head with its sequence, or none of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct End {
    pub head: Option<Head>,
    /// Sequence in JetStream of the stream's last commit; 0 where there is none.
    pub sequence: u64,
}

/// Ends of many streams, but of no more than a number of them: what was not asked for while half of that came in is forgotten.
pub(super) struct Known {
    half: usize,
    young: HashMap<StreamId, End>,
    old: HashMap<StreamId, End>,
}

impl Known {
    pub(super) fn new(streams: usize) -> Self {
        Self { half: (streams / 2).max(1), young: HashMap::new(), old: HashMap::new() }
    }

    pub(super) fn end(&mut self, stream: &StreamId) -> Option<End> {
        if let Some(end) = self.young.get(stream) {
            return Some(*end);
        }
        let end = self.old.remove(stream)?;
        self.insert(stream, end);
        Some(end)
    }

    /// Remembers an end unless a later one is known.
    pub(super) fn learn(&mut self, stream: &StreamId, end: End) {
        if self.end(stream).is_none_or(|known| known.sequence < end.sequence) {
            self.insert(stream, end);
        }
    }

    /// Remembers an end, whatever was known.
    pub(super) fn set(&mut self, stream: &StreamId, end: End) {
        self.old.remove(stream);
        self.insert(stream, end);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// Forgets a stream.
    pub(super) fn forget(&mut self, stream: &StreamId) {
        self.young.remove(stream);
        self.old.remove(stream);
    }

    /// A sequence from which on all commits with `from` or a later version are: 0 if nothing better is known.
    pub(super) fn before(&mut self, stream: &StreamId, from: Version) -> u64 {
        match self.end(stream) {
            Some(End { head: Some(head), sequence }) if head.version < from => sequence,
            _ => 0,
        }
    }

    fn insert(&mut self, stream: &StreamId, end: End) {
        if self.young.len() >= self.half && !self.young.contains_key(stream) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(stream.clone(), end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::CommitId;

    fn end(version: u64, sequence: u64) -> End {
        let id = CommitId::from_bytes([version as u8; 16]);
        End { head: Some(Head { version: Version(version), id }), sequence }
    }

    #[test]
    fn a_later_end_replaces_an_earlier_one_and_not_the_other_way_round() {
        let stream: StreamId = "room.a".parse().unwrap();
        let mut known = Known::new(10);
        assert_eq!(known.end(&stream), None);
        known.learn(&stream, end(2, 20));
        known.learn(&stream, end(1, 10));
        assert_eq!(known.end(&stream), Some(end(2, 20)));
        known.learn(&stream, end(3, 30));
        assert_eq!(known.end(&stream), Some(end(3, 30)));
        known.set(&stream, end(1, 10));
        assert_eq!(known.end(&stream), Some(end(1, 10)));
        assert_eq!((known.before(&stream, Version(1)), known.before(&stream, Version(2))), (0, 10));
    }

    #[test]
    fn what_is_in_use_stays_and_the_rest_is_forgotten() {
        let used: StreamId = "room.used".parse().unwrap();
        let mut known = Known::new(100);
        known.learn(&used, end(1, 1));
        for i in 0..10_000 {
            known.learn(&format!("room.r{i}").parse().unwrap(), end(1, i));
            assert!(known.end(&used).is_some(), "after {i} others");
        }
        assert!(known.young.len() + known.old.len() <= 101);
    }
}
