//! One node's whole part in sharing the limit: it asks the holder for shares, is the holder, or becomes it. Pure: the shell
//! (`shared.rs`) carries its asks, reads and appends, and passes the clock in, microseconds of one monotonic clock.
//!
//! ```text
//!  nobody holds it, or I did before I started anew  ──┐
//!  the holder in the log is silent for SILENT         ├──> append the next epoch, with the floors as they are ──> hold
//!  and the log says it is still the holder          ──┘     (whoever loses the race reads who won)
//! ```

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::{Head, StreamId},
    events::LimitShared,
    ids::Incarnation,
    rpc::{LimitAsk, LimitGrant},
};

use super::{
    bucket::Bucket,
    holder::{AGAIN_BUSY_MS, AUTHORITY, Holder, NoGrant},
    lease::Lease,
};

/// A holder that grants nothing for so long is followed by another, microseconds. 2 s: the time in which nodes call an EC lost.
pub const SILENT: u64 = 2_000_000;
/// A node whose id is later in order waits so much longer, microseconds, so that they do not all try at once.
const TURN: u64 = 400_000;
/// The log is read this often while no holder is heard, and by the holder to be sure that it still is it, microseconds.
const READ_EVERY: u64 = 500_000;
/// What was read is believed for so long before an append, microseconds. An append that comes too late is refused by the log.
const READ_FRESH: u64 = 1_500_000;
/// A log that has less than it had is not believed for so long, microseconds. It may have been put back to an older copy: the journal notices
/// that in 12 s and takes no appends then, but an append before it does would hide the loss. 60 s: five times as long; what is still so
/// then is what a repair has left.
const LOST_UNTIL: u64 = 60_000_000;
/// Counted together when a demand is measured, at least, microseconds: some ten requests at a hundredth of the limit's default.
const WINDOW: u64 = 20_000;

/// Why an ask was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// This node is not the holder, or cannot be sure that it is.
    #[error("this node does not hold the limit")]
    NotHolder,
    /// See there.
    #[error(transparent)]
    NoGrant(#[from] NoGrant),
}

/// Counts what comes, to say how much a node could use.
#[derive(Debug, Default)]
struct Meter {
    came: u64,
    since: u64,
    demand: u64,
}

impl Meter {
    fn read(&mut self, now: u64, limit: u64) -> u64 {
        let window = now.saturating_sub(self.since);
        if window >= WINDOW {
            let rate = (self.came.saturating_mul(1_000_000_000) / window).min(limit);
            // A fifth of what it was: smooths what few requests vary, and has forgotten a shift after two asks.
            self.demand = (rate * 4 + self.demand) / 5;
            (self.came, self.since) = (0, now);
        }
        self.demand
    }
}

/// One node's part. Rates are in thousandths of a request per second.
#[derive(Debug)]
pub struct Party {
    own: StreamId,
    incarnation: Incarnation,
    limit: u64,
    lease: Lease,
    bucket: Bucket,
    meter: Meter,
    waiting: u64,
    /// What the log said last, with where its stream ended; none for an empty stream.
    record: Option<(LimitShared, Head)>,
    /// When that was asked.
    read_at: Option<u64>,
    /// Since when the log has had less than that.
    lost_since: Option<u64>,
    /// Since when nothing was granted.
    silent_since: u64,
    holder: Option<Holder>,
}

impl Party {
    /// The part of a node that starts now.
    pub fn new(now: u64, own: StreamId, incarnation: Incarnation, limit: u64) -> Self {
        Self {
            own,
            incarnation,
            limit,
            lease: Lease::new(now),
            bucket: Bucket::default(),
            meter: Meter { since: now, ..Meter::default() },
            waiting: 0,
            record: None,
            read_at: None,
            lost_since: None,
            silent_since: now,
            holder: None,
        }
    }

    // ---- requests ----------------------------------------------------------------------------------------------------------

    /// What this node may admit now.
    pub fn rate(&self, now: u64) -> u64 {
        self.lease.rate(now)
    }

    /// A request has come. Counts it once, however often it is tried.
    pub fn came(&mut self) {
        self.meter.came += 1;
    }

    /// Admits one request, or says after how many microseconds one may be, as things are.
    pub fn admit(&mut self, now: u64) -> Result<(), u64> {
        self.bucket.take(now, self.lease.rate(now))
    }

    /// Requests that would be admitted at once.
    pub fn left(&self) -> u64 {
        self.bucket.left()
    }

    /// So many requests wait here.
    pub fn set_waiting(&mut self, waiting: u64) {
        self.waiting = waiting;
    }

    /// This node admits nothing and hands out nothing any more: it is about to say goodbye.
    pub fn leave(&mut self, now: u64) {
        self.lease = Lease::new(now);
        (self.holder, self.record) = (None, None);
        self.bucket.settle(now, 0);
    }

    /// Whether this node has no share any more, since it has not been heard for too long.
    pub fn is_cut_off(&self, now: u64) -> bool {
        self.lease.rate(now) == 0 && now.saturating_sub(self.silent_since) > SILENT
    }

    // ---- asking ------------------------------------------------------------------------------------------------------------

    /// The next ask and whom to send it to; none while it is not known who holds the limit.
    pub fn ask(&mut self, now: u64) -> Option<(StreamId, LimitAsk)> {
        let (record, _) = self.record.as_ref()?;
        let number = self.lease.ask(now);
        let ask = LimitAsk {
            node: self.own.clone(),
            incarnation: self.incarnation,
            epoch: self.lease.epoch(),
            number,
            applied: self.lease.applied(),
            held: self.lease.rate(now),
            demand: self.meter.read(now, self.limit),
            waiting: self.waiting,
        };
        Some((record.holder.clone(), ask))
    }

    /// The answer to the last ask. Gives the milliseconds until the next.
    pub fn answered(&mut self, now: u64, grant: Option<&LimitGrant>) -> u64 {
        self.bucket.settle(now, self.lease.rate(now));
        match grant {
            Some(grant) if self.lease.take(now, grant) => {
                self.silent_since = self.lease.heard_at().unwrap_or(now);
                self.bucket.settle(now, self.lease.rate(now));
                grant.again_ms
            }
            _ => AGAIN_BUSY_MS,
        }
    }

    // ---- holding -----------------------------------------------------------------------------------------------------------

    /// Whether this node hands out shares.
    pub fn holds(&self) -> bool {
        self.holder.is_some()
    }

    /// Another node, or this one, asks for a share.
    pub fn grant(&mut self, now: u64, ask: &LimitAsk) -> Result<LimitGrant, Unanswered> {
        let confirmed = self.read_at.is_some_and(|at| now < at + AUTHORITY);
        let holder = self.holder.as_mut().filter(|_| confirmed).ok_or(Unanswered::NotHolder)?;
        let answer = holder.grant(now, ask);
        if let Err(NoGrant::Superseded(_)) = answer {
            self.holder = None;
        }
        Ok(answer?)
    }

    /// See [`Holder::left`].
    pub fn left_the_cluster(&mut self, now: u64, node: &StreamId, incarnation: Incarnation) {
        if let Some(holder) = &mut self.holder {
            holder.left(now, node, incarnation);
        }
    }

    // ---- the log -----------------------------------------------------------------------------------------------------------

    /// Whether the log should be read now.
    pub fn wants_read(&self, now: u64) -> bool {
        let long_ago = self.read_at.is_none_or(|at| now >= at + READ_EVERY);
        long_ago && (self.holds() || self.record.is_none() || now >= self.silent_since + READ_EVERY)
    }

    /// The log was asked at `asked` and has this.
    pub fn learned(&mut self, asked: u64, record: Option<(LimitShared, Head)>) {
        let version = |record: &Option<(LimitShared, Head)>| record.as_ref().map(|(_, head)| head.version);
        if version(&record) < version(&self.record) {
            let since = *self.lost_since.get_or_insert(asked);
            if asked < since + LOST_UNTIL {
                return;
            }
        }
        self.lost_since = None;
        self.read_at = Some(asked);
        let still_held = self.holder.as_ref().is_some_and(|holder| {
            record.as_ref().is_some_and(|(record, _)| {
                record.epoch == holder.epoch()
                    && record.holder == self.own
                    && record.incarnation == self.incarnation
            })
        });
        if !still_held {
            self.holder = None;
        }
        self.record = record;
    }

    /// What should be appended now, after which head.
    pub fn wants_append(&mut self, now: u64) -> Option<(LimitShared, Option<Head>)> {
        if self.read_at.is_none_or(|at| now >= at + READ_FRESH) {
            return None;
        }
        let Some((record, head)) = &self.record else {
            return Some((self.shared(1, BTreeMap::from([(self.own.clone(), self.limit)])), None));
        };
        let head = Some(*head);
        if let Some(holder) = &mut self.holder {
            let epoch = record.epoch;
            return holder.due(now).map(|floors| (self.shared(epoch, floors), head));
        }
        let own_before = record.holder == self.own;
        let turn = record.floors.keys().filter(|node| **node < self.own && **node != record.holder).count();
        let patience = SILENT + TURN * turn as u64;
        (own_before || now >= self.silent_since + patience)
            .then(|| (self.shared(record.epoch + 1, record.floors.clone()), head))
    }

    /// What was appended; the append was sent at `asked` and answered at `now`.
    pub fn appended(&mut self, asked: u64, now: u64, record: LimitShared, head: Head) {
        match &mut self.holder {
            Some(holder) if holder.epoch() == record.epoch => holder.written(now, record.floors.clone()),
            _ => {
                self.holder = Some(Holder::new(now, record.epoch, self.limit, record.floors.clone()));
            }
        }
        self.read_at = Some(asked);
        self.record = Some((record, head));
    }

    /// Whether an append was stored is not known, or it was refused: nothing is held until the log has been read.
    pub fn not_appended(&mut self) {
        self.holder = None;
        self.read_at = None;
    }

    fn shared(&self, epoch: u64, floors: BTreeMap<StreamId, u64>) -> LimitShared {
        let (holder, incarnation) = (self.own.clone(), self.incarnation);
        // Floors of a holder with a larger limit are lowered one by one.
        let limit = self.limit.max(floors.values().sum());
        LimitShared { epoch, holder, incarnation, limit, floors }
    }
}

#[cfg(test)]
mod tests {
    use roomlog_bus::{commit::CommitId, ids::Version};

    use super::*;

    #[test]
    fn a_log_that_has_less_than_it_had_is_not_written_to_until_it_must_be_what_is_left() {
        const SECOND: u64 = 1_000_000;
        let own: StreamId = "nuve.a".parse().unwrap();
        let mut party = Party::new(0, own.clone(), Incarnation(1), 1_000_000);
        let record = |version: u64, epoch: u64| {
            let floors = BTreeMap::from([(own.clone(), 1_000_000)]);
            let (holder, incarnation) = ("nuve.b".parse().unwrap(), Incarnation(1));
            let shared = LimitShared { epoch, holder, incarnation, limit: 1_000_000, floors };
            Some((shared, Head { version: Version(version), id: CommitId::from_bytes([version as u8; 16]) }))
        };
        party.learned(SECOND, record(7, 7));
        for (now, left) in [(10 * SECOND, record(6, 6)), (69 * SECOND, None)] {
            party.learned(now, left);
            assert_eq!(party.wants_append(now), None, "after {now}");
        }
        party.learned(70 * SECOND, None);
        let (shared, head) = party.wants_append(70 * SECOND).expect("somebody must hold the limit");
        assert_eq!((shared.epoch, head), (1, None), "it begins anew");
    }
}
