//! What one node may admit of the limit that all NUVE nodes have together: the receiving side of a share. Pure; times are microseconds
//! of the node's own monotonic clock.
//!
//! A share is a **rate** and a **floor**. The rate is what the holder of the limit grants at the moment; when it runs out the node falls
//! back to its floor, and when that runs out too it admits nothing:
//!
//! ```text
//!   rate granted above the floor   until RAISED after the ask was sent          ── the node gives back early
//!   rate granted below the floor   until LOWERED after the grant was received   ── the node gives back late
//!   floor                          until FLOOR after the last answered ask was sent, then 0
//! ```
//! The holder counts the other way: from when it wrote the grant, which is after the ask was sent and before the grant was received. So
//! what one node has lent lasts longer than what another has borrowed, with no clock but each side's own. See `holder.rs` for the sum.

use roomlog_bus::rpc::LimitGrant;

/// A rate above the floor is used for so long, microseconds. 1 s: ten asks may be lost before the node falls back.
pub const RAISED: u64 = 1_000_000;
/// A rate below the floor is kept for so long, microseconds. 3 s: what is lent must outlast what is borrowed ([`RAISED`]) by enough that
/// a lender which is heard every [`AGAIN_IDLE_MS`](super::holder::AGAIN_IDLE_MS) always covers it.
pub const LOWERED: u64 = 3_000_000;
/// A node that hears no holder uses its floor for so long, microseconds; then nothing, because the others count it as gone and use its
/// floor. 30 s: three times what an election in NATS or a restart takes. Beyond it a node cut off from NATS refuses, which costs little:
/// without the log it can make no token for a room that is new to it, and ECs admit nobody.
pub const FLOOR: u64 = 30_000_000;
/// By how many millionths the rates of two monotonic clocks may differ. 2 000: kernels slew a clock by 500 at most (adjtimex(2)), on each
/// side, and quartz is off by 100.
pub const DRIFT: u64 = 2_000;

/// `micros` of another clock, as long as they can be on this one.
pub const fn at_most(micros: u64) -> u64 {
    micros + micros * DRIFT / 1_000_000
}

/// `micros` of another clock, as short as they can be on this one.
pub const fn at_least(micros: u64) -> u64 {
    micros - micros * DRIFT / 1_000_000
}

/// A rate and how long it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    rate: u64,
    until: u64,
}

impl Held {
    fn at(held: Option<Self>, now: u64) -> Option<u64> {
        held.filter(|held| now < held.until).map(|held| held.rate)
    }
}

/// One node's share. Rates are in thousandths of a request per second.
#[derive(Debug)]
pub struct Lease {
    started: u64,
    epoch: u64,
    /// Asks sent.
    number: u64,
    asked_at: u64,
    /// The ask whose answer is in effect.
    applied: u64,
    rate: Option<Held>,
    floor: Option<Held>,
    /// A rate below the floor that was promised to the holder before this one: others may still use the rest.
    promised: Option<Held>,
}

impl Lease {
    /// That of a node that starts now: nothing.
    pub fn new(now: u64) -> Self {
        let (rate, floor, promised) = (None, None, None);
        Self { started: now, epoch: 0, number: 0, asked_at: now, applied: 0, rate, floor, promised }
    }

    /// The epoch of the last grant taken.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The ask whose answer is in effect.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// When the last ask that was answered was sent; none before the first.
    pub fn heard_at(&self) -> Option<u64> {
        self.floor.map(|floor| floor.until - FLOOR)
    }

    /// Begins the next ask and gives its number. Answers to earlier ones come too late from here on.
    pub fn ask(&mut self, now: u64) -> u64 {
        self.number += 1;
        self.asked_at = now;
        self.number
    }

    /// Takes the answer to the ask under way; false if it is not that.
    pub fn take(&mut self, now: u64, grant: &LimitGrant) -> bool {
        if grant.number != self.number || grant.epoch < self.epoch || grant.number == self.applied {
            return false;
        }
        let floor = Held::at(self.floor, now).unwrap_or(0);
        if self.epoch == 0 && !grant.clean {
            // What the process before had promised is kept, whatever it was.
            self.promised = Some(Held { rate: 0, until: self.started + LOWERED });
        }
        if grant.epoch > self.epoch {
            if let Some(lowered) = self.rate.filter(|rate| now < rate.until && rate.rate < floor) {
                let before = self.promised.filter(|promised| now < promised.until);
                self.promised = Some(before.map_or(lowered, |before| Held {
                    rate: before.rate.min(lowered.rate),
                    until: before.until.max(lowered.until),
                }));
            }
            self.epoch = grant.epoch;
        }
        let until = if grant.rate < grant.floor { now + LOWERED } else { self.asked_at + RAISED };
        self.rate = Some(Held { rate: grant.rate, until });
        self.floor = Some(Held { rate: grant.floor, until: self.asked_at + FLOOR });
        self.applied = grant.number;
        true
    }

    /// What may be admitted per second now.
    pub fn rate(&self, now: u64) -> u64 {
        let rate = Held::at(self.rate, now).or(Held::at(self.floor, now)).unwrap_or(0);
        Held::at(self.promised, now).map_or(rate, |promised| rate.min(promised))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(lease: &mut Lease, now: u64, epoch: u64, rate: u64, floor: u64) -> bool {
        let number = lease.ask(now);
        lease.take(now, &LimitGrant { epoch, number, rate, floor, clean: true, again_ms: 100 })
    }

    #[test]
    fn a_share_falls_back_to_its_floor_and_then_to_nothing() {
        let mut lease = Lease::new(0);
        assert_eq!(lease.rate(0), 0);
        assert!(taken(&mut lease, 0, 1, 900, 300));
        assert_eq!(lease.rate(RAISED - 1), 900);
        assert_eq!((lease.rate(RAISED), lease.rate(FLOOR - 1), lease.rate(FLOOR)), (300, 300, 0));
        assert!(taken(&mut lease, FLOOR, 1, 10, 300));
        assert_eq!((lease.rate(FLOOR + LOWERED - 1), lease.rate(FLOOR + LOWERED)), (10, 300));
    }

    #[test]
    fn what_was_promised_to_one_holder_is_kept_under_the_next() {
        let mut lease = Lease::new(0);
        assert!(taken(&mut lease, 0, 1, 10, 300));
        assert!(taken(&mut lease, 1_000, 2, 300, 300));
        assert_eq!((lease.rate(LOWERED - 1), lease.rate(RAISED + LOWERED)), (10, 300));
        assert!(!taken(&mut lease, 2_000, 1, 999, 999), "a holder that was followed by another");
    }

    #[test]
    fn what_the_process_before_may_have_promised_is_kept() {
        let mut lease = Lease::new(7);
        let number = lease.ask(10);
        let grant = LimitGrant { epoch: 3, number, rate: 300, floor: 300, clean: false, again_ms: 100 };
        assert!(lease.take(11, &grant));
        assert_eq!((lease.rate(7 + LOWERED - 1), lease.rate(7 + LOWERED)), (0, 300));
    }

    #[test]
    fn late_and_repeated_answers_change_nothing() {
        let mut lease = Lease::new(0);
        let first = lease.ask(0);
        let second = lease.ask(1);
        let grant = |number| LimitGrant { epoch: 1, number, rate: 5, floor: 5, clean: true, again_ms: 100 };
        assert!(!lease.take(2, &grant(first)));
        assert!(lease.take(2, &grant(second)));
        assert!(!lease.take(RAISED, &grant(second)));
    }
}
