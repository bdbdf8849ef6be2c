//! A log that lost its end: what JetStream's engine makes of it at each node, and what an operator's `roomlog repair` does.

use std::{collections::BTreeMap, sync::Arc};

use rand::Rng;
use roomlog_bus::{
    commit::{Commit, StreamId},
    journal::{Followed, ReadError},
    repair::{Compared, compare},
};

use super::world::{Due, Inner, Micros};

/// Copied commits that a node looks for when it starts, as many as a real one.
const EXPECTED: usize = 64;

/// What a follower is told when its place is of no use any more.
fn damaged(reason: &str) -> Followed {
    Followed::Broken(ReadError::Damaged { place: "the log".into(), reason: reason.into() })
}

impl Inner {
    /// Where a commit is in the log; 0 if it is not.
    pub fn place_of(&self, commit: &Commit) -> u64 {
        let own = self.streams.get(&commit.stream).into_iter().flatten();
        own.copied().find(|at| self.log[*at as usize - 1].id == commit.id).unwrap_or(0)
    }

    /// Puts the log back to what it was `span` ago. What is on its way to it is lost; sequences are used again.
    pub fn truncate(&mut self, span: Micros) {
        let since = self.now.saturating_sub(span);
        let kept = self.stored.partition_point(|at| *at <= since);
        if kept == self.log.len() {
            return;
        }
        self.fault("log truncated");
        self.note(|| format!("truncated to {kept}"), &[]);
        for (sequence, commit) in (kept as u64 + 1..).zip(self.log.split_off(kept)) {
            if let Some(own) = self.streams.get_mut(&commit.stream) {
                own.retain(|at| *at < sequence);
            }
        }
        self.streams.retain(|_, own| !own.is_empty());
        self.stored.truncate(kept);
        self.queue.retain(|_, due| !matches!(due, Due::Append { .. } | Due::Follow { .. }));
        for node in &mut self.nodes {
            node.blocked |= node.seen > kept as u64;
        }
        self.break_followers("the log is truncated", |inner, node| inner.nodes[node].blocked);
        // The others did not see what is gone, and go on where they are.
        for (id, next) in self.followers.iter().map(|(id, f)| (*id, f.next)).collect::<Vec<_>>() {
            for sequence in next - 1..=self.log.len() as u64 {
                self.send_on(id, sequence);
            }
        }
    }

    /// A node that starts looks for what it had acknowledged.
    pub fn expect(&mut self, node: usize) {
        let aside: Vec<_> = self.aside.iter().map(|commit| commit.id).collect();
        let copied = &self.nodes[node].copied;
        let deleted = |c: &Commit| c.events.iter().any(|event| event.kind.as_str() == "RoomDeleted");
        let last = copied.iter().rev().filter(|commit| !aside.contains(&commit.id)).take(EXPECTED);
        let blocked = last.into_iter().any(|commit| !deleted(commit) && self.place_of(commit) == 0);
        self.nodes[node].blocked = blocked;
    }

    /// `roomlog repair --apply` with every node's folder.
    pub fn repair(&mut self) {
        let mut copied: BTreeMap<StreamId, Vec<Arc<Commit>>> = BTreeMap::new();
        let aside: Vec<_> = self.aside.iter().map(|commit| commit.id).collect();
        for commit in self.nodes.iter().flat_map(|node| &node.copied) {
            if !aside.contains(&commit.id) {
                copied.entry(commit.stream.clone()).or_default().push(commit.clone());
            }
        }
        let mut compared: Vec<Compared> = Vec::new();
        for (stream, commits) in copied {
            let own = self.streams.get(&stream).into_iter().flatten();
            let cluster: Vec<_> = own.map(|at| self.log[*at as usize - 1].clone()).collect();
            let head = cluster.last().map(|commit| commit.head());
            compared.extend(compare(&stream, head, &cluster, &commits));
        }
        let mut again: Vec<_> = compared.iter().flat_map(|stream| stream.suffix.iter().cloned()).collect();
        again.sort_by_key(|commit| (commit.time, commit.stream.clone(), commit.version));
        // Clocks of machines differ: within a stream the versions say the order.
        let mut rest: BTreeMap<StreamId, Vec<Arc<Commit>>> = BTreeMap::new();
        for stream in &compared {
            rest.insert(stream.stream.clone(), stream.suffix.iter().rev().cloned().collect());
        }
        let operator = self.nodes.len() - 1;
        for place in again {
            if let Some(commit) = rest.get_mut(&place.stream).and_then(Vec::pop) {
                self.count("commits appended again by a repair");
                self.store(commit, operator);
            }
        }
        for commit in compared.into_iter().flat_map(|stream| stream.branch) {
            self.count("commits set aside by a repair");
            if self.planted.merge_fork {
                let own = self.streams.get(&commit.stream).and_then(|own| own.last());
                let head = own.map(|at| self.log[*at as usize - 1].head());
                let merged = Commit {
                    prev: head.map(|head| head.id),
                    version: head.map_or(commit.version, |head| head.version.next()),
                    ..Commit::clone(&commit)
                };
                self.store(Arc::new(merged), operator);
            }
            self.aside.push(commit);
        }
        self.repairs += 1;
        self.note(|| "repaired".into(), &[]);
        let end = self.log.len() as u64;
        for node in &mut self.nodes {
            (node.blocked, node.seen) = (false, end);
        }
        self.break_followers("the log was repaired", |_, _| true);
    }

    fn break_followers(&mut self, why: &str, which: impl Fn(&Self, usize) -> bool) {
        for id in self.followers.keys().copied().collect::<Vec<_>>() {
            if which(self, self.followers[&id].node)
                && let Some(follower) = self.followers.remove(&id)
            {
                let _ = follower.sender.try_send(damaged(why));
            }
        }
    }

    /// How much of the log a read of `node` sees: a leader that was deposed a moment ago has not the last of it, and JetStream's engine
    /// takes no answer that lacks what its process has seen.
    pub fn readable(&mut self, node: usize) -> u64 {
        let end = self.log.len() as u64;
        let seen = self.nodes[node].seen.min(end);
        let from = seen.max(end.saturating_sub(20));
        if from == end || !self.chance(self.chances.stale) {
            return end;
        }
        self.fault("stale read");
        self.rng.random_range(from..end)
    }
}
