//! Which packets of one stream are missing, and when to ask for them again (RFC 4585 §6.2.1).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How often one packet is asked for. With the pauses below, ten attempts are about a second, after which a picture is better repaired
/// by a key frame.
pub const MAX_ATTEMPTS: u8 = 10;

/// How many packets may be missing at once. More is an outage and not loss: a key frame is asked for instead.
pub const MAX_MISSING: usize = 500;

/// How large a jump in sequence numbers still counts as loss; beyond it the sender has started anew.
const MAX_JUMP: u64 = 1_000;

/// Time between two requests for the same packet while nothing is known of the round trip: that of a far client, so a repair under way
/// is not asked for twice. Also where the pauses, which grow from one attempt to the next, stop growing for a near one.
pub const RETRY: Duration = Duration::from_millis(100);

/// The shortest time between two requests for the same packet: transports are looked after every 20 ms. A near client whose repair was
/// lost then has the next one before a viewer's buffer of 50 to 100 ms is empty.
pub const RETRY_MIN: Duration = Duration::from_millis(20);

/// The longest: a satellite's round trip. A measured one beyond it is an outage.
pub const RETRY_MAX: Duration = Duration::from_millis(600);

/// One entry of a NACK packet: a sequence number and which of the 16 after it are missing too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NackPair {
    /// Sequence number.
    pub first: u16,
    /// Bit i: `first + i + 1` is missing too.
    pub mask: u16,
}

/// What an arrived packet means for the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next, or one that was not waited for.
    New,
    /// One that was missing.
    Repaired,
    /// One that came before.
    Old,
    /// So much is missing that asking makes no sense; the list is empty now.
    GaveUp,
}

#[derive(Debug, Clone, Copy)]
struct Missing {
    attempts: u8,
    asked: Option<Instant>,
    next: Instant,
}

/// How long repairs take, in seconds: mean and mean deviation (RFC 6298 §2, from requests that were made once only).
#[derive(Debug, Clone, Copy)]
struct RepairTime {
    mean: f64,
    deviation: f64,
}

/// The missing packets of one stream, by unrolled sequence number.
#[derive(Debug, Default)]
pub struct NackList {
    highest: Option<u64>,
    missing: BTreeMap<u64, Missing>,
    repair_time: Option<RepairTime>,
}

impl NackList {
    /// Notes a packet; `rtx` when it came as a retransmission, so that it tells how long those take.
    pub fn arrived(&mut self, now: Instant, sequence: u64, rtx: bool) -> Arrival {
        let Some(highest) = self.highest else {
            self.highest = Some(sequence);
            return Arrival::New;
        };
        if sequence <= highest {
            let Some(missing) = self.missing.remove(&sequence) else { return Arrival::Old };
            if let (true, 1, Some(asked)) = (rtx, missing.attempts, missing.asked) {
                self.note_repair_time(now.saturating_duration_since(asked));
            }
            return Arrival::Repaired;
        }
        self.highest = Some(sequence);
        let gap = sequence - highest - 1;
        if gap > MAX_JUMP || self.missing.len() as u64 + gap > MAX_MISSING as u64 {
            self.missing.clear();
            return Arrival::GaveUp;
        }
        for lost in highest + 1..sequence {
            self.missing.insert(lost, Missing { attempts: 0, asked: None, next: now });
        }
        Arrival::New
    }

    /// Whether nothing is being waited for.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Whether this packet is being waited for.
    pub fn is_missing(&self, sequence: u64) -> bool {
        self.missing.contains_key(&sequence)
    }

    /// When [`NackList::due`] has something to say.
    pub fn next_due(&self) -> Option<Instant> {
        self.missing.values().map(|m| m.next).min()
    }

    /// The packets to ask for now; `true` when some were given up, which is when a key frame is the only repair left.
    pub fn due(&mut self, now: Instant) -> (Vec<NackPair>, bool) {
        let before = self.missing.len();
        self.missing.retain(|_, m| m.next > now || m.attempts < MAX_ATTEMPTS);
        let gave_up = self.missing.len() < before;
        let mut pairs: Vec<NackPair> = Vec::new();
        let mut first = 0;
        for (&sequence, missing) in self.missing.iter_mut().filter(|(_, m)| m.next <= now) {
            missing.next = now + pause(self.repair_time, missing.attempts);
            missing.attempts += 1;
            missing.asked = Some(now);
            match pairs.last_mut() {
                Some(pair) if sequence - first <= 16 => pair.mask |= 1 << (sequence - first - 1),
                _ => {
                    first = sequence;
                    pairs.push(NackPair { first: sequence as u16, mask: 0 });
                }
            }
        }
        (pairs, gave_up)
    }

    /// Forgets all but how long repairs take, as after a pause or a restart of the sender.
    pub fn reset(&mut self) {
        *self = Self { repair_time: self.repair_time, ..Self::default() };
    }

    fn note_repair_time(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.repair_time = Some(match self.repair_time {
            None => RepairTime { mean: took, deviation: took / 2.0 },
            Some(RepairTime { mean, deviation }) => RepairTime {
                mean: mean + (took - mean) / 8.0,
                deviation: deviation + ((took - mean).abs() - deviation) / 4.0,
            },
        });
    }
}

/// How long to wait for a repair after `attempts` requests before this one: as long as repairs take, then half as long again each time,
/// since what was lost twice may be lost to a burst.
fn pause(repair_time: Option<RepairTime>, attempts: u8) -> Duration {
    let Some(RepairTime { mean, deviation }) = repair_time else { return RETRY };
    let first = Duration::from_secs_f64(mean + 4.0 * deviation).clamp(RETRY_MIN, RETRY_MAX);
    first.mul_f64(1.5f64.powi(attempts.into())).min(first.max(RETRY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_over_the_wrap_is_asked_for_until_repaired() {
        let now = Instant::now();
        let mut list = NackList::default();
        list.arrived(now, 0x1_fffd, false);
        list.arrived(now, 0x2_0001, false);
        let (pairs, _) = list.due(now);
        assert_eq!(pairs, [NackPair { first: 0xfffe, mask: 0b11 }]);
        assert!(list.due(now).0.is_empty(), "not twice at once");
        assert_eq!(list.arrived(now, 0x1_ffff, false), Arrival::Repaired);
        assert_eq!(list.arrived(now, 0x1_ffff, false), Arrival::Old);
        let (pairs, _) = list.due(now + RETRY);
        assert_eq!(pairs, [NackPair { first: 0xfffe, mask: 0b10 }]);
    }

    #[test]
    fn what_never_comes_is_given_up_after_ten_requests() {
        let mut now = Instant::now();
        let mut list = NackList::default();
        list.arrived(now, 100, false);
        list.arrived(now, 102, false);
        for attempt in 0..MAX_ATTEMPTS {
            assert_eq!(list.due(now).0.len(), 1, "attempt {attempt}");
            now += RETRY;
        }
        assert_eq!(list.due(now), (vec![], true));
        assert_eq!(list.next_due(), None);
    }

    #[test]
    fn an_outage_is_no_loss() {
        let now = Instant::now();
        let mut list = NackList::default();
        list.arrived(now, 100, false);
        assert_eq!(list.arrived(now, 100 + MAX_MISSING as u64 + 2, false), Arrival::GaveUp);
        assert_eq!(list.next_due(), None);
    }

    #[test]
    fn a_near_client_is_asked_again_soon_and_a_far_one_late() {
        for (trip, soonest, latest) in [(2, 20, 20), (70, 70, 150), (3_000, 600, 600)] {
            let mut now = Instant::now();
            let mut list = NackList::default();
            list.arrived(now, 0, false);
            for number in 1..50u64 {
                list.arrived(now, 2 * number, false);
                assert_eq!(list.due(now).0.len(), 1);
                let repaired = now + Duration::from_millis(trip);
                assert_eq!(list.arrived(repaired, 2 * number - 1, true), Arrival::Repaired);
                now = repaired + Duration::from_millis(5);
            }
            list.arrived(now, 100, false);
            list.due(now);
            let wait = list.next_due().unwrap() - now;
            let bounds = Duration::from_millis(soonest)..=Duration::from_millis(latest);
            assert!(bounds.contains(&wait), "{wait:?} with a round trip of {trip} ms");
            let mut attempts = 1;
            let began = now;
            while let Some(next) = list.next_due() {
                now = next;
                attempts += list.due(now).0.len();
            }
            assert_eq!(attempts, usize::from(MAX_ATTEMPTS));
            let patience = now - began;
            assert!(patience > Duration::from_millis(600), "{patience:?}: a hiccup of a radio is sat out");
        }
    }

    #[test]
    fn what_was_only_late_does_not_pass_for_a_fast_repair() {
        let now = Instant::now();
        let mut list = NackList::default();
        list.arrived(now, 0, false);
        list.arrived(now, 2, false);
        list.due(now);
        let late = now + Duration::from_millis(1);
        assert_eq!(list.arrived(late, 1, false), Arrival::Repaired);
        list.arrived(late, 4, false);
        list.due(late);
        assert_eq!(list.next_due(), Some(late + RETRY));
    }
}
