//! Hands out shares of the limit that all NUVE nodes have together. Pure; times are microseconds of the holder's own monotonic clock.
//!
//! Whatever is lost, late or cut off, **what all nodes together may use never exceeds the limit**, by three rules:
//!
//! 1. *Floors* are in the log and together no more than the limit. They change only in the log, and there only once every node whose
//!    floor sinks has confirmed the lower one, or has not been heard for so long that it uses nothing; and once what is lent would be
//!    covered under the new floors as under the old, since it is the log that the next holder believes.
//! 2. A grant *above* a floor is made only from what the others have confirmed to leave unused. A node is counted with the largest rate
//!    that may be in effect there during all the time for which the new grant holds: the rate it last confirmed and each one sent since,
//!    and its floor wherever one of those may run out. So decreases are confirmed before increases are given.
//! 3. Each node acts on one holder at a time and keeps what it has promised to the one before. So two holders on two sides of a cut lend
//!    only what the nodes they hear have left, and nothing twice; the log, and the time after which floors run out, decide who may
//!    change floors.
//!
//! A new holder knows the floors from the log and nothing else. It counts each node with its floor until it has heard it, and what it
//! reports until what it promised before is over. A node that starts anew has forgotten its promises, so it keeps the strictest.

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::StreamId,
    ids::Incarnation,
    rpc::{LimitAsk, LimitGrant},
};

use super::lease::{FLOOR, LOWERED, RAISED, at_least, at_most};

/// A holder acts for this long after the log last confirmed it, microseconds. 5 s: a stalled disk is over by then.
pub const AUTHORITY: u64 = 5_000_000;
/// A leader of the log that was cut off may confirm what is no longer so for this long, microseconds (see docs/faults.md).
const STALE_LOG: u64 = 10_000_000;
/// A node that has been heard within this, microseconds, shares in what the others leave; [`RAISED`] and an ask more.
const HEARD: u64 = 1_500_000;
/// Between two asks of a node while requests are refused or close to it. 100 ms: when demand shifts from one node to another, two such
/// times pass until the other may use it.
pub const AGAIN_BUSY_MS: u64 = 100;
/// The same while there is enough for all.
pub const AGAIN_IDLE_MS: u64 = 300;
/// A holder answers no more asks per second than this, whatever the number of nodes: half a percent of a core.
const ASKS_PER_S: u64 = 200;
/// A node without demand is left this part of an even share, so that its first request is not refused.
const TRICKLE: u64 = 100;

/// Why an ask is not answered with a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoGrant {
    /// The node has followed a later holder.
    #[error("a later holder is known: epoch {0}")]
    Superseded(u64),
    /// A later ask, or a later start of the node, was heard.
    #[error("a later ask was heard")]
    Old,
}

/// A grant that may be in effect at its node.
#[derive(Debug, Clone, Copy)]
struct Given {
    number: u64,
    rate: u64,
    floor: u64,
    at: u64,
}

impl Given {
    /// The most that the node may use because of this until `horizon`, as seen at `now`. A rate below the floor is a promise, kept under
    /// the next holder too; without one that holder may grant what the log has as the floor.
    fn worst(&self, now: u64, horizon: u64, recorded: u64) -> u64 {
        if self.rate < self.floor && self.at + at_least(LOWERED) >= horizon {
            return self.rate;
        }
        let raised = if now < self.at + at_most(RAISED) { self.rate } else { 0 };
        raised.max(self.floor).max(recorded)
    }
}

/// What the holder knows of a node.
#[derive(Debug)]
struct Node {
    incarnation: Incarnation,
    /// The number of its last ask.
    asked: u64,
    /// When it was last heard; before that, when it may last have been heard by another holder.
    heard: u64,
    /// Whether it ever asked here.
    known: bool,
    /// Whether nothing can be in use that an earlier start of it has lent.
    clean: bool,
    /// Whether it has said goodbye.
    gone: bool,
    /// What may be in effect.
    given: Vec<Given>,
    /// What it may use, and until when what it promised to another holder counts.
    inherited: Option<(u64, u64)>,
    demand: u64,
    waiting: u64,
}

impl Node {
    fn new(heard: u64) -> Self {
        let incarnation = Incarnation(0);
        let (known, clean, gone) = (false, false, false);
        let (given, inherited) = (Vec::new(), None);
        Self { incarnation, asked: 0, heard, known, clean, gone, given, inherited, demand: 0, waiting: 0 }
    }

    fn is_lapsed(&self, now: u64) -> bool {
        self.gone || now >= self.heard + at_most(FLOOR)
    }

    /// The most it may use from now on for as long as a grant made now holds. While the log gives it a floor nobody else has that, even
    /// if it is gone: the next holder will believe the log.
    fn cap(&self, now: u64, recorded: u64) -> u64 {
        if self.is_lapsed(now) {
            return recorded;
        }
        let horizon = now + at_most(RAISED);
        let given =
            self.given.iter().map(|given| given.worst(now, horizon, recorded)).max().unwrap_or(recorded);
        let inherited = self.inherited.filter(|(_, until)| now < *until).map_or(0, |(cap, _)| cap);
        given.max(inherited)
    }

    fn most_floor(&self) -> u64 {
        self.given.iter().map(|given| given.floor).max().unwrap_or(0)
    }
}

fn floor_of(floors: &BTreeMap<StreamId, u64>, node: &StreamId) -> u64 {
    floors.get(node).copied().unwrap_or(0)
}

/// The holder of the limit in one epoch. Rates are in thousandths of a request per second.
#[derive(Debug)]
pub struct Holder {
    epoch: u64,
    limit: u64,
    since: u64,
    /// As they are in the log.
    floors: BTreeMap<StreamId, u64>,
    /// As they will be.
    pending: Option<BTreeMap<StreamId, u64>>,
    nodes: BTreeMap<StreamId, Node>,
}

impl Holder {
    /// The holder from `now` on, with the floors that the log has.
    pub fn new(now: u64, epoch: u64, limit: u64, floors: BTreeMap<StreamId, u64>) -> Self {
        let node = |(node, floor): (&StreamId, &u64)| {
            let mut known = Node::new(now + at_most(STALE_LOG + AUTHORITY));
            known.given.push(Given { number: 0, rate: *floor, floor: *floor, at: now });
            (node.clone(), known)
        };
        let nodes = floors.iter().map(node).collect();
        Self { epoch, limit, since: now, floors, pending: None, nodes }
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Answers an ask.
    pub fn grant(&mut self, now: u64, ask: &LimitAsk) -> Result<LimitGrant, NoGrant> {
        if ask.epoch > self.epoch {
            return Err(NoGrant::Superseded(ask.epoch));
        }
        let recorded = self.floors.get(&ask.node).copied().unwrap_or(0);
        let alone = self.floors.keys().all(|node| *node == ask.node);
        let node = self.nodes.entry(ask.node.clone()).or_insert_with(|| Node::new(now));
        if ask.incarnation < node.incarnation
            || (ask.incarnation == node.incarnation && ask.number <= node.asked)
        {
            return Err(NoGrant::Old);
        }
        let was_known = node.known;
        if ask.incarnation > node.incarnation && was_known {
            // The process before is over, with all it held.
            node.given.clear();
            node.inherited = None;
        }
        (node.incarnation, node.asked, node.known, node.gone) = (ask.incarnation, ask.number, true, false);
        (node.heard, node.demand, node.waiting) = (now, ask.demand, ask.waiting);
        if ask.epoch == self.epoch {
            node.given.retain(|given| given.number == ask.applied);
        } else {
            node.given.retain(|given| given.number == 0);
            // An earlier start that asked here is in these books with what it had lent; one without a floor had nothing to lend.
            node.clean = ask.epoch == 0 && (was_known || recorded == 0 || alone);
            if !node.clean {
                node.inherited = Some((ask.held.max(recorded), now + at_most(LOWERED)));
            }
        }
        let clean = node.clean;

        let floor = recorded.min(self.even_floor(now));
        let mut spare = self.spare(now, &self.floors, &ask.node);
        if let Some(pending) = &self.pending {
            spare = spare.min(self.spare(now, pending, &ask.node));
        }
        let rate = self.target(now, &ask.node).min(spare);
        let given = Given { number: ask.number, rate, floor, at: now };
        let heard = self.heard(now).count() as u64;
        let busy = self.heard(now).map(|(_, node)| node.demand).sum::<u64>() > self.limit / 2;
        let again_ms = if busy { AGAIN_BUSY_MS } else { AGAIN_IDLE_MS }.max(heard * 1_000 / ASKS_PER_S);
        if let Some(node) = self.nodes.get_mut(&ask.node) {
            node.given.push(given);
        }
        Ok(LimitGrant { epoch: self.epoch, number: ask.number, rate, floor, clean, again_ms })
    }

    /// A start of a node has said goodbye in the log: it uses nothing any more. That is believed once no holder before this one can have
    /// granted a later start of it anything.
    pub fn left(&mut self, now: u64, node: &StreamId, incarnation: Incarnation) {
        if let Some(known) = self.nodes.get_mut(node)
            && known.incarnation <= incarnation
            && (known.known || now >= self.since + at_most(STALE_LOG + AUTHORITY))
        {
            known.gone = true;
            known.given.clear();
            known.inherited = None;
        }
    }

    /// The floors that the log should have, if they may be written now. From when they are due nothing is granted that they do not cover.
    pub fn due(&mut self, now: u64) -> Option<BTreeMap<StreamId, u64>> {
        let even = self.even_floor(now);
        let floors: BTreeMap<_, _> = self.members(now).map(|(node, _)| (node.clone(), even)).collect();
        let lowered = self.members(now).all(|(_, node)| node.most_floor() <= even);
        self.pending = (floors != self.floors && lowered && !floors.is_empty()).then_some(floors);
        let pending = self.pending.as_ref()?;
        let used: u64 = self.members(now).map(|(id, node)| node.cap(now, floor_of(pending, id))).sum();
        (used <= self.limit).then(|| pending.clone())
    }

    /// The log has these floors.
    pub fn written(&mut self, now: u64, floors: BTreeMap<StreamId, u64>) {
        self.nodes.retain(|node, known| floors.contains_key(node) || !known.is_lapsed(now));
        self.floors = floors;
        self.pending = None;
    }

    /// What is left to lend to `node` if the log has these floors. What is in nobody's floor an earlier holder may have lent just as well.
    fn spare(&self, now: u64, floors: &BTreeMap<StreamId, u64>, node: &StreamId) -> u64 {
        let others = self.nodes.iter().filter(|(id, _)| *id != node);
        let used: u64 = others.map(|(id, known)| known.cap(now, floor_of(floors, id))).sum();
        floors.values().sum::<u64>().min(self.limit).saturating_sub(used)
    }

    fn heard(&self, now: u64) -> impl Iterator<Item = (&StreamId, &Node)> {
        self.nodes.iter().filter(move |(_, node)| node.known && now < node.heard + HEARD)
    }

    /// Who has a floor, or is to have one.
    fn members(&self, now: u64) -> impl Iterator<Item = (&StreamId, &Node)> {
        let is_member = move |id: &StreamId, node: &Node| node.known || self.floors.contains_key(id);
        self.nodes.iter().filter(move |(id, node)| is_member(id, node) && !node.is_lapsed(now))
    }

    fn even_floor(&self, now: u64) -> u64 {
        self.limit / (self.members(now).count() as u64).max(1)
    }

    /// What `node` should have of what is left to those who are heard. Small demands are met, and what they leave is shared evenly by the
    /// others; what nobody needs is spread over all. While requests wait, all get their part by how many: so they leave the queues in
    /// about the order in which they came, whichever node they came to.
    fn target(&self, now: u64, node: &StreamId) -> u64 {
        let heard: Vec<_> = self.heard(now).collect();
        let count = heard.len() as u64;
        let unheard = self.nodes.iter().filter(|(id, _)| !heard.iter().any(|(other, _)| other == id));
        let taken: u64 = unheard.map(|(id, known)| known.cap(now, floor_of(&self.floors, id))).sum();
        let available = self.limit.saturating_sub(taken);
        let trickle = available / TRICKLE / count.max(1);
        let own = |(id, _): &&(&StreamId, u64)| *id == node;

        if heard.iter().any(|(_, node)| node.waiting > 0) {
            let spread = available - trickle * count;
            let weight = |node: &Node| u128::from(node.demand) + u128::from(node.waiting) * 1_000;
            let all: u128 = heard.iter().map(|(_, node)| weight(node)).sum::<u128>().max(1);
            let part = |node: &Node| (u128::from(spread) * weight(node) / all) as u64;
            let shares: Vec<_> = heard.iter().map(|(id, node)| (*id, trickle + part(node))).collect();
            return shares.iter().find(own).map_or(0, |(_, share)| *share);
        }
        let mut wanted: Vec<_> = heard.iter().map(|(id, node)| (*id, node.demand.max(trickle))).collect();
        wanted.sort_by_key(|(_, wanted)| *wanted);
        let (mut left, mut sharers, mut shares) = (available, count, Vec::new());
        for (id, wanted) in wanted {
            let share = wanted.min(left / sharers);
            shares.push((id, share));
            (left, sharers) = (left - share, sharers - 1);
        }
        shares.iter().find(own).map_or(0, |(_, share)| *share + left / count)
    }
}
