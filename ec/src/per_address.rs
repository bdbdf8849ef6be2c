//! How many sockets one address has open at a time. What is kept grows with the open sockets and not with the addresses that ever came.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Open sockets by address.
#[derive(Debug, Clone, Default)]
pub(crate) struct PerAddress(Arc<Mutex<HashMap<IpAddr, u32>>>);

/// One open socket; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    all: PerAddress,
    address: IpAddr,
}

/// Whom the limit counts: an IPv4 address, or an IPv6 /64, which is what one subscriber is given (RFC 6177).
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let s = v6.segments();
            IpAddr::V6(Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0))
        }
    }
}

impl PerAddress {
    /// Counts one more for `address`; none if it has `most` already.
    pub(crate) fn one_more(&self, address: IpAddr, most: u32) -> Option<Counted> {
        let address = subscriber(address);
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = sockets.entry(address).or_insert(0);
        if *count >= most {
            if *count == 0 {
                sockets.remove(&address);
            }
            return None;
        }
        *count += 1;
        drop(sockets);
        Some(Counted { all: self.clone(), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut sockets = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sockets.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                sockets.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_count_and_nothing_stays_of_who_is_gone() {
        let all = PerAddress::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = all.one_more(ip("192.0.2.1"), 2).unwrap();
        let second = all.one_more(ip("::ffff:192.0.2.1"), 2).unwrap();
        assert!(all.one_more(ip("192.0.2.1"), 2).is_none());
        let other = all.one_more(ip("2001:db8::1"), 1).unwrap();
        assert!(all.one_more(ip("2001:db8::2"), 1).is_none(), "one /64 is one subscriber");
        assert!(all.one_more(ip("2001:db8:0:1::2"), 0).is_none());
        drop(first);
        let again = all.one_more(ip("192.0.2.1"), 2).unwrap();
        drop((second, other, again));
        assert!(all.0.lock().unwrap().is_empty());
    }
}
