//! Which addresses webhooks may call. A tenant names the URL, and this node calls it from inside: without a bound it would be a way into
//! whatever this node reaches. So only addresses of the public Internet are called, and those networks that the operator names.
//!
//! The address is checked that is then connected to, not the name: what a name means may change between the two.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::network::Network;

/// What may be called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets(Vec<Network>);

impl Targets {
    /// The public Internet and these networks.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    /// Whether the operator names it.
    pub fn named(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }

    /// Whether it may be called.
    pub fn allow(&self, address: IpAddr) -> bool {
        self.named(address)
            || match address.to_canonical() {
                IpAddr::V4(v4) => is_public_v4(v4),
                IpAddr::V6(v6) => is_public_v6(v6),
            }
    }
}

/// Not of the IANA registry of special addresses (RFC 6890).
fn is_public_v4(a: Ipv4Addr) -> bool {
    let [first, second, third, _] = a.octets();
    !(first == 0
        || first >= 224 // multicast and reserved
        || a.is_private()
        || a.is_loopback()
        || a.is_link_local()
        || a.is_documentation()
        || (first == 100 && second & 0xc0 == 64) // shared, RFC 6598
        || (first == 192 && second == 0 && third == 0)
        || (first == 192 && second == 88 && third == 99) // 6to4 relays
        || (first == 198 && second & 0xfe == 18)) // benchmarks, RFC 2544
}

/// Global unicast (2000::/3), without what is special in it or leads to IPv4 by a translation.
fn is_public_v6(a: Ipv6Addr) -> bool {
    let s = a.segments();
    s[0] & 0xe000 == 0x2000
        && !(s[0] == 0x2001 && s[1] < 0x200) // Teredo, ORCHID and others
        && !(s[0] == 0x2001 && s[1] == 0xdb8)
        && s[0] != 0x2002 // 6to4
        && !(s[0] == 0x3fff && s[1] < 0x1000) // documentation, RFC 9637
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_called_only_where_the_operator_names_it() {
        let none = Targets::default();
        for public in ["93.184.216.34", "2606:2800:220:1::1", "8.8.8.8"] {
            assert!(none.allow(public.parse().unwrap()), "{public}");
        }
        let special = [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.5.4",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.1.1.1",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ];
        for special in special {
            assert!(!none.allow(special.parse().unwrap()), "{special}");
        }
        let targets = |networks: &[&str]| Targets::new(networks.iter().map(|n| n.parse().unwrap()).collect());
        let named = targets(&["127.0.0.0/8", "fd00::/8", "10.1.2.3"]);
        for (address, allowed) in [
            ("127.9.9.9", true),
            ("::ffff:127.0.0.1", true),
            ("fd12::1", true),
            ("10.1.2.3", true),
            ("10.1.2.4", false),
            ("fe80::1", false),
            ("128.0.0.0", true),
            ("169.254.169.254", false),
        ] {
            assert_eq!(named.allow(address.parse().unwrap()), allowed, "{address}");
        }
        assert!(targets(&["0.0.0.0/0"]).allow("10.0.0.1".parse().unwrap()));
    }
}
