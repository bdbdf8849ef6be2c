//! The limit per address, in memory that does not grow: no table of addresses, but four rows of cells, of which each address has one in
//! each row, by a hash with a key of this process. Pure; nanoseconds are passed in.
//!
//! A cell holds the time at which whoever uses it would be back at rest (the theoretical arrival time of the generic cell rate
//! algorithm, ITU-T I.371). An address is as busy as the *least* busy of its four cells, and writes its own time into those that are behind
//! it. So:
//!
//! - nothing is ever thrown out: no flood of other addresses makes an address forgotten;
//! - an address is thought busier than it is only if each of its four cells is shared with an address that is at its limit *now*. With
//!   N such addresses at once that befalls (1 − e^(−N/65536))⁴ of all others: 3 in a million for 3 000, 4 in ten thousand for 10 000. Addresses that
//!   ask once do not count: a cell is at rest again after one interval;
//! - nobody can choose whom that befalls, since the key is secret and random.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

/// Rows of cells: each a chance not to be taken for another. Four of sixteen bits make one hash of 64.
const ROWS: usize = 4;
/// Cells in a row, 65 536. All of them are 2 MiB.
const CELLS: usize = 1 << 16;

/// What is left to a caller of a limit, as the header fields of draft-ietf-httpapi-ratelimit-headers-10 tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The policy's name.
    pub policy: &'static str,
    /// So many requests are allowed in [`window_s`](Self::window_s).
    pub quota: u64,
    /// Seconds.
    pub window_s: u64,
    /// Requests that would be served at once.
    pub remaining: u64,
    /// Seconds until the whole quota is there again.
    pub reset_s: u64,
}

/// The limit per address.
#[derive(Debug)]
pub struct Addresses {
    interval: u64,
    burst: u64,
    key: RandomState,
    /// Held for eight accesses to memory.
    cells: Mutex<Box<[u64]>>,
}

/// Whom the limit counts: an IPv4 address, or an IPv6 /64, which is what one subscriber is given (RFC 6177).
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let s = v6.segments();
            IpAddr::V6(Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0))
        }
    }
}

impl Addresses {
    /// So many per second for each, and so many at once.
    pub fn new(per_s: u32, burst: u32) -> Self {
        let interval = 1_000_000_000 / u64::from(per_s.max(1));
        let cells = Mutex::new(vec![0; ROWS * CELLS].into_boxed_slice());
        Self { interval, burst: u64::from(burst.max(1)), key: RandomState::new(), cells }
    }

    /// One request of `address`: what is left to it, and where it is refused, after how many nanoseconds it would not be.
    pub fn take(&self, now: u64, address: Option<IpAddr>) -> (Left, Option<u64>) {
        let hash = self.key.hash_one(address.map(counted));
        let places: [usize; ROWS] =
            std::array::from_fn(|row| row * CELLS + (hash >> (16 * row)) as usize % CELLS);
        let tolerance = (self.burst - 1) * self.interval;

        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let least = places.iter().map(|place| cells[*place]).min().unwrap_or(0);
        let busy = least.saturating_sub(now);
        if busy > tolerance {
            return (self.left(busy), Some(busy - tolerance));
        }
        let rest = now + busy + self.interval;
        for place in places {
            cells[place] = cells[place].max(rest);
        }
        (self.left(busy + self.interval), None)
    }

    /// What is left to whoever is at rest in `busy` nanoseconds.
    fn left(&self, busy: u64) -> Left {
        let full = self.burst * self.interval;
        Left {
            policy: "address",
            quota: self.burst,
            window_s: full.div_ceil(1_000_000_000).max(1),
            remaining: full.saturating_sub(busy) / self.interval.max(1),
            reset_s: busy.div_ceil(1_000_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn number(number: u32) -> Option<IpAddr> {
        Some(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn one_address_is_limited_and_another_is_not() {
        let limit = Addresses::new(1, 3);
        for remaining in [2, 1, 0] {
            let (left, refused) = limit.take(SECOND, ip("192.0.2.1"));
            assert_eq!((left.remaining, left.quota, left.window_s, refused), (remaining, 3, 3, None));
        }
        let (left, refused) = limit.take(SECOND, ip("192.0.2.1"));
        assert_eq!((left.remaining, left.reset_s, refused), (0, 3, Some(SECOND)));
        assert!(limit.take(SECOND, ip("::ffff:192.0.2.1")).1.is_some(), "the same address written as IPv6");
        assert!(limit.take(SECOND, ip("192.0.2.2")).1.is_none());
        for host in 1..=3 {
            assert!(limit.take(SECOND, ip(&format!("2001:db8::{host}"))).1.is_none());
        }
        assert!(limit.take(SECOND, ip("2001:db8::4")).1.is_some(), "one /64 is one subscriber");
        assert!(limit.take(SECOND, ip("2001:db8:0:1::1")).1.is_none());
        assert!(limit.take(2 * SECOND, ip("192.0.2.1")).1.is_none(), "one second later one more");
        assert!(limit.take(2 * SECOND, ip("192.0.2.1")).1.is_some());
    }

    #[test]
    fn a_million_addresses_take_no_more_memory_and_neither_free_nor_block_anybody() {
        let limit = Addresses::new(10, 20);
        let size = limit.cells.lock().unwrap().len() * size_of::<u64>();
        assert_eq!(size, 2 * 1024 * 1024);
        let busy = number(0xc000_0201);
        while limit.take(SECOND, busy).1.is_none() {}
        // 20 000 requests per second, each from another address, within 50 s; the busy one keeps asking.
        let (mut served, mut blocked) = (0, 0);
        for other in 0..1_000_000 {
            let now = SECOND + u64::from(other) * 50_000;
            blocked += u64::from(limit.take(now, number(other)).1.is_some());
            served += u64::from(limit.take(now, busy).1.is_none());
        }
        assert_eq!(blocked, 0, "strangers refused");
        assert!((490..=500).contains(&served), "{served} of the busy one: 10 a second for 50 s");
    }

    #[test]
    fn a_thousand_addresses_at_their_limit_do_not_block_others() {
        let limit = Addresses::new(10, 20);
        for attacker in 0..1_000 {
            while limit.take(SECOND, number(attacker)).1.is_none() {}
        }
        let blocked = (1_000_000..1_100_000).filter(|other| limit.take(SECOND, number(*other)).1.is_some());
        // 0.005 of the hundred thousand are to be expected.
        assert!(blocked.count() <= 2);
    }
}
