//! The keys that tokens are signed with, and their rotation. Each NUVE has its own; ECs learn them over the bus.
//!
//! ```text
//!  kept: former … former   current   next        one period later: current is former, next is current, and there is a new next
//! ```
//! The next key is told to whoever asks a whole period before anything is signed with it, so that a rotation leaves no gap in which tokens are
//! not known. Former ones stay: an ended token still brings back the client that it admitted.

use std::time::Duration;

use rand::RngCore;
use roomlog_bus::{time::Timestamp, token::SigningKey};

/// Former keys that are kept. 30: with a key a day, a month, which is longer than anybody stays in a room.
const FORMER: usize = 30;

/// A key and since when it signs.
struct Key {
    seed: [u8; 32],
    /// When it is to sign, or began to.
    from: Timestamp,
    key: SigningKey,
}

/// The keys of one node, oldest first: former ones, the current one, the next.
pub struct KeyRing {
    keys: Vec<Key>,
    period: Duration,
}

/// The keys' file does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not 64 hex digits and a time")]
pub struct Unreadable {
    line: usize,
}

impl KeyRing {
    /// A ring of two fresh keys.
    pub fn new(now: Timestamp, period: Duration, rng: &mut dyn RngCore) -> Self {
        let mut ring = Self { keys: Vec::new(), period };
        ring.push(now, rng);
        ring.push(now.plus_millis(period.as_millis() as u64), rng);
        ring
    }

    /// Reads what [`KeyRing::text`] wrote. A key without a time, as the first files had them, signs since ever.
    pub fn parse(text: &str, period: Duration) -> Result<Self, Unreadable> {
        let mut keys = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = || Unreadable { line: i + 1 };
            let mut words = line.split_whitespace();
            let hex = words.next().filter(|hex| hex.len() == 64 && hex.is_ascii()).ok_or_else(bad)?;
            let mut seed = [0; 32];
            for (byte, digits) in seed.iter_mut().zip(hex.as_bytes().chunks(2)) {
                let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
                *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
            }
            let from = words.next().map_or(Ok(0), |time| time.parse().map_err(|_| bad()))?;
            keys.push(Key { seed, from: Timestamp(from), key: SigningKey::from_seed(&seed) });
        }
        if keys.is_empty() { Err(Unreadable { line: 1 }) } else { Ok(Self { keys, period }) }
    }

    /// As it is kept: a line for each key, its seed and since when it signs, microseconds.
    pub fn text(&self) -> String {
        let line = |key: &Key| {
            let hex: String = key.seed.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{hex} {}\n", key.from.0)
        };
        self.keys.iter().map(line).collect()
    }

    fn push(&mut self, from: Timestamp, rng: &mut dyn RngCore) {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        self.keys.push(Key { seed, from, key: SigningKey::from_seed(&seed) });
    }

    /// Makes the next key where there is none; says whether there is something new to keep.
    pub fn rotate(&mut self, now: Timestamp, rng: &mut dyn RngCore) -> bool {
        if self.keys.last().is_some_and(|last| last.from > now) {
            return false;
        }
        self.push(now.plus_millis(self.period.as_millis() as u64), rng);
        let surplus = self.keys.len().saturating_sub(FORMER + 2);
        self.keys.drain(..surplus);
        true
    }

    /// The key that signs.
    pub fn current(&self, now: Timestamp) -> &SigningKey {
        let current = self.keys.iter().rev().find(|key| key.from <= now);
        &current.unwrap_or_else(|| &self.keys[0]).key
    }

    /// Every public key with its id.
    pub fn public(&self) -> Vec<(String, Vec<u8>)> {
        self.keys.iter().map(|key| (key.key.kid().to_owned(), key.key.public().to_vec())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(days: u64) -> Timestamp {
        Timestamp(1_800_000_000_000_000 + days * 86_400_000_000)
    }

    #[test]
    fn every_key_is_told_a_period_before_it_signs_and_long_after() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut ring = KeyRing::new(at(0), DAY, &mut rng);
        let mut told: Vec<String> = Vec::new();
        let mut signed = Vec::new();
        for day in 0..60 {
            let kid = ring.current(at(day)).kid().to_owned();
            // Whoever asked a day ago knows it.
            assert!(day == 0 || told.contains(&kid), "day {day}");
            assert!(!signed.contains(&kid), "day {day}: one key a day");
            signed.push(kid);
            ring.rotate(at(day), &mut rng);
            assert!(!ring.rotate(at(day), &mut rng), "one at a time");
            told = ring.public().into_iter().map(|(kid, _)| kid).collect();
            assert!(told.len() <= FORMER + 2);
            for former in signed.iter().rev().take(FORMER) {
                assert!(told.contains(former), "day {day}");
            }
        }
    }

    #[test]
    fn a_ring_reads_back_and_so_does_the_single_key_of_a_first_file() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let mut ring = KeyRing::new(at(0), DAY, &mut rng);
        ring.rotate(at(1), &mut rng);
        let again = KeyRing::parse(&ring.text(), DAY).unwrap();
        assert_eq!(again.public(), ring.public());
        assert_eq!(again.current(at(1)).kid(), ring.current(at(1)).kid());
        let mut first = KeyRing::parse(&"ab".repeat(32), DAY).unwrap();
        let kid = first.current(at(0)).kid().to_owned();
        assert!(first.rotate(at(0), &mut rng));
        assert_eq!(first.current(at(0)).kid(), kid, "it signs for a period yet");
        assert_ne!(first.current(at(1)).kid(), kid);
        for bad in ["", "\n", "xy", &"zz".repeat(32), &format!("{} x", "ab".repeat(32))] {
            assert!(KeyRing::parse(bad, DAY).is_err(), "{bad:?}");
        }
    }
}
