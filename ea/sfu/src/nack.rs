//! Which packets of one stream are missing, and when to ask for them again (RFC 4585 §6.2.1).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How often one packet is asked for. Ten attempts at [`RETRY`] are a second, after which a picture is better repaired by a key frame.
pub const MAX_ATTEMPTS: u8 = 10;

/// How many packets may be missing at once. More is an outage and not loss: a key frame is asked for instead.
pub const MAX_MISSING: usize = 500;

/// How large a jump in sequence numbers still counts as loss; beyond it the sender has started anew.
const MAX_JUMP: u64 = 1_000;

/// Time between two requests for the same packet: about one round trip of a far client, so a repair under way is not asked for twice.
pub const RETRY: Duration = Duration::from_millis(100);

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
    next: Instant,
}

/// The missing packets of one stream, by unrolled sequence number.
#[derive(Debug, Default)]
pub struct NackList {
    highest: Option<u64>,
    missing: BTreeMap<u64, Missing>,
}

impl NackList {
    /// Notes a packet.
    pub fn arrived(&mut self, now: Instant, sequence: u64) -> Arrival {
        let Some(highest) = self.highest else {
            self.highest = Some(sequence);
            return Arrival::New;
        };
        if sequence <= highest {
            return if self.missing.remove(&sequence).is_some() { Arrival::Repaired } else { Arrival::Old };
        }
        self.highest = Some(sequence);
        let gap = sequence - highest - 1;
        if gap > MAX_JUMP || self.missing.len() as u64 + gap > MAX_MISSING as u64 {
            self.missing.clear();
            return Arrival::GaveUp;
        }
        for lost in highest + 1..sequence {
            self.missing.insert(lost, Missing { attempts: 0, next: now });
        }
        Arrival::New
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
            missing.attempts += 1;
            missing.next = now + RETRY;
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

    /// Forgets all, as after a pause or a restart of the sender.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_over_the_wrap_is_asked_for_until_repaired() {
        let now = Instant::now();
        let mut list = NackList::default();
        list.arrived(now, 0x1_fffd);
        list.arrived(now, 0x2_0001);
        let (pairs, _) = list.due(now);
        assert_eq!(pairs, [NackPair { first: 0xfffe, mask: 0b11 }]);
        assert!(list.due(now).0.is_empty(), "not twice at once");
        assert_eq!(list.arrived(now, 0x1_ffff), Arrival::Repaired);
        assert_eq!(list.arrived(now, 0x1_ffff), Arrival::Old);
        let (pairs, _) = list.due(now + RETRY);
        assert_eq!(pairs, [NackPair { first: 0xfffe, mask: 0b10 }]);
    }

    #[test]
    fn what_never_comes_is_given_up_after_ten_requests() {
        let mut now = Instant::now();
        let mut list = NackList::default();
        list.arrived(now, 100);
        list.arrived(now, 102);
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
        list.arrived(now, 100);
        assert_eq!(list.arrived(now, 100 + MAX_MISSING as u64 + 2), Arrival::GaveUp);
        assert_eq!(list.next_due(), None);
    }
}
