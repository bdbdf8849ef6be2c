//! Admits requests one by one at a rate that others set. Pure; the clock is passed in.
//!
//! In any time T it admits at most `rate × T + max(1, rate × DEPTH)`: nothing is saved up beyond that, and a change of the rate takes
//! effect at once, on what is saved up too. `governor` cannot be told another rate without starting anew with a full bucket.

/// So much is saved up while nobody asks, microseconds' worth of the rate. 70 ms: a machine that stands still for as long loses nothing,
/// and in any 10 s all nodes together stay under 101 % of the limit: that is 100 ms' worth, of which clocks may take 20 (see
/// [`DRIFT`](super::lease::DRIFT)). The rest is for the one whole request that each node must be able to save to admit any, which is
/// more than its 70 ms where its rate is under 14 per second: enough for as many nodes as a hundredth of the limit.
pub const DEPTH: u64 = 70_000;

/// Thousandths of a request per second, times microseconds: a thousand millionth of a request each.
const REQUEST: u64 = 1_000_000_000;

/// Tokens for requests; none at the start by default.
#[derive(Debug, Default)]
pub struct Bucket {
    tokens: u64,
    rate: u64,
    at: u64,
}

impl Bucket {
    /// One that has been saving up since before `now`. For a process that has a rate of its own: starting it took longer than
    /// [`DEPTH`], in which nothing was admitted.
    pub fn full(now: u64, rate: u64) -> Self {
        let mut bucket = Self { tokens: u64::MAX, rate, at: now };
        bucket.settle(now, rate);
        bucket
    }

    /// The rate is this from now on, thousandths of a request per second.
    pub fn settle(&mut self, now: u64, rate: u64) {
        // The lower of both: when in between it changed is not known.
        let gained = self.rate.min(rate).saturating_mul(now.saturating_sub(self.at));
        let depth = if rate == 0 { 0 } else { rate.saturating_mul(DEPTH).max(REQUEST) };
        self.tokens = self.tokens.saturating_add(gained).min(depth);
        self.rate = rate;
        self.at = self.at.max(now);
    }

    /// Admits one request, or says after how many microseconds one may be.
    pub fn take(&mut self, now: u64, rate: u64) -> Result<(), u64> {
        self.settle(now, rate);
        match self.tokens.checked_sub(REQUEST) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err((REQUEST - self.tokens).checked_div(rate).map_or(u64::MAX, |wait| wait + 1)),
        }
    }

    /// Whole requests that would be admitted at once.
    pub fn left(&self) -> u64 {
        self.tokens / REQUEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_window_has_more_than_the_rate_and_the_depth() {
        let mut bucket = Bucket::default();
        let mut admitted = Vec::new();
        for now in (0..30_000_000).step_by(200) {
            // Quiet for half a second in every three.
            if now % 3_000_000 > 500_000 && bucket.take(now, 1_000_000).is_ok() {
                admitted.push(now);
            }
        }
        for (first, from) in admitted.iter().enumerate() {
            let within = admitted[first..].iter().take_while(|at| **at < from + 10_000_000).count();
            assert!(within <= 10_070, "{within} from {from}");
        }
        assert!(admitted.len() >= 25_000, "{}", admitted.len());
    }

    #[test]
    fn a_slow_rate_admits_one_at_a_time_and_says_when() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(0, 2_000), Err(500_001));
        assert_eq!(bucket.take(500_000, 2_000), Ok(()));
        assert!(bucket.take(500_000, 2_000).is_err());
        assert_eq!(bucket.take(9_000_000, 2_000), Ok(()));
        assert!(bucket.take(9_000_000, 2_000).is_err(), "one is saved up, not seventeen");
        bucket.settle(9_600_000, 2_000);
        assert!(bucket.take(9_600_000, 0).is_err(), "what is saved up goes with the rate");
    }
}
