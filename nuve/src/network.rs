//! Networks as operators write them in settings: whose proxies are believed, and what webhooks may call.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::Deserialize;

/// A network, such as `10.0.0.0/8`, `fd00::/8` or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

/// Why a text names no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a network: write an address, or one with the length of its prefix, such as 10.0.0.0/8 or fd00::/8"
)]
pub struct InvalidNetwork(String);

fn bits_of(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl Network {
    /// This machine alone (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3).
    pub const LOOPBACK: [Self; 2] = [
        Self { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), bits: 8 },
        Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), bits: 128 },
    ];

    /// Whether `address` is in it. An IPv4 address is in no IPv6 network; an IPv4-mapped one is to be made canonical before.
    pub fn contains(&self, address: IpAddr) -> bool {
        let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
        address.is_ipv4() == self.address.is_ipv4()
            && bits_of(address).0 & mask == bits_of(self.address).0 & mask
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let bad = || InvalidNetwork(text.to_owned());
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, bits)| (a, Some(bits)));
        let address: IpAddr = address.trim().parse().map_err(|_| bad())?;
        let most = bits_of(address).1;
        let bits = prefix.map_or(Ok(most), |bits| bits.trim().parse::<u32>().map_err(|_| bad()))?;
        let canonical = address.to_canonical();
        // An IPv4-mapped network is the IPv4 one: addresses are compared so.
        let mapped = if canonical == address { 0 } else { 96 };
        if bits > most || bits < mapped {
            return Err(bad());
        }
        Ok(Self { address: canonical, bits: bits - mapped })
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;
    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_nonsense_is_named() {
        let network = |text: &str| text.parse::<Network>();
        assert!(network("0.0.0.0/0").unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!(!network("0.0.0.0/0").unwrap().contains("::1".parse().unwrap()));
        assert!(!network("10.0.0.0/9").unwrap().contains("10.128.0.0".parse().unwrap()));
        assert!(network("::ffff:10.0.0.0/104").unwrap().contains("10.9.9.9".parse().unwrap()));
        let [v4, v6] = Network::LOOPBACK;
        assert_eq!((network("127.0.0.0/8").unwrap(), network("::1").unwrap()), (v4, v6));
        for bad in
            ["", "10.0.0.0/33", "::/129", "10.0.0/8", "example.com", "10.0.0.0/-1", "::ffff:10.0.0.0/8"]
        {
            assert!(network(bad).unwrap_err().to_string().contains("10.0.0.0/8"), "{bad}");
        }
    }
}
