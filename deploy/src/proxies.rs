//! Whose request it is, behind proxies: `X-Forwarded-For` read from the right through the networks that are trusted, once, for NUVE and
//! EC alike. Whoever is not in these networks can write what it likes there and changes nothing.
//!
//! Each proxy appends the address it was called from, so the last entry is the nearest proxy's word. It is believed if the connection
//! comes from a trusted network, the one before it if that entry is in one too, and so on; the first that is not is the client. What is
//! no address ends the reading: whoever wrote it, what stands before it is nobody's word.

use std::net::{IpAddr, SocketAddr};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    http::HeaderMap,
    middleware::{self, Next},
};
use roomlog_nuve::network::Network;

/// The header, the one that all proxies write. `Forwarded` (RFC 7239) is not read: a proxy that writes the one passes the other on as a
/// stranger sent it.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// An entry of the header: an address, which some proxies write with a port.
fn entry(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address =
        text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok();
    address.or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

/// Whose request it is that came from `peer`.
fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    // A header that comes several times is one list (RFC 9110 §5.3).
    let values: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    let entries = values.iter().rev().flat_map(|value| value.to_str().unwrap_or("").rsplit(','));
    for text in entries {
        if !is_trusted(client) {
            break;
        }
        match entry(text) {
            Some(address) => client = address,
            None => break,
        }
    }
    client
}

/// Has every request carry the address of its client, where it came through `trusted`.
pub fn resolve(router: Router, trusted: Vec<Network>) -> Router {
    if trusted.is_empty() {
        return router;
    }
    router.layer(middleware::from_fn(move |mut request: Request, next: Next| {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        if let Some(peer) = peer {
            let address = client(peer.ip(), request.headers(), &trusted);
            if address != peer.ip().to_canonical() {
                // Its port is not known.
                request.extensions_mut().insert(ConnectInfo(SocketAddr::new(address, 0)));
            }
        }
        next.run(request)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, headers: &[&str]) -> String {
        let trusted: Vec<Network> =
            ["10.0.0.0/8", "fd00::/8", "192.0.2.7"].iter().map(|text| text.parse().unwrap()).collect();
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(FORWARDED_FOR, axum::http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        client(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn a_stranger_is_itself_whatever_it_writes() {
        for lie in ["1.2.3.4", "10.0.0.1", "127.0.0.1, 10.1.1.1", "", "unknown"] {
            assert_eq!(seen("203.0.113.9", &[lie]), "203.0.113.9", "{lie:?}");
        }
        assert_eq!(seen("2001:db8::1", &["1.2.3.4"]), "2001:db8::1");
    }

    #[test]
    fn through_trusted_proxies_the_first_stranger_from_the_right_is_the_client() {
        assert_eq!(seen("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(seen("10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            seen("10.0.0.1", &["1.2.3.4, 203.0.113.9"]),
            "203.0.113.9",
            "what the client itself wrote"
        );
        assert_eq!(seen("10.0.0.1", &["1.2.3.4, 203.0.113.9, 10.2.0.1,192.0.2.7"]), "203.0.113.9");
        assert_eq!(seen("fd00::1", &["203.0.113.9, fd00::2"]), "203.0.113.9");
        assert_eq!(seen("10.0.0.1", &["10.0.0.2, 10.0.0.3"]), "10.0.0.2", "all of it is ours");
    }

    #[test]
    fn several_headers_are_one_list() {
        assert_eq!(seen("10.0.0.1", &["1.2.3.4", "203.0.113.9"]), "203.0.113.9");
        assert_eq!(seen("10.0.0.1", &["203.0.113.9", "10.0.0.2"]), "203.0.113.9");
    }

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        for (written, read) in [
            ("203.0.113.9:4711", "203.0.113.9"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("  203.0.113.9  ", "203.0.113.9"),
        ] {
            assert_eq!(seen("10.0.0.1", &[written]), read, "{written:?}");
        }
        assert_eq!(seen("::ffff:10.0.0.1", &["203.0.113.9"]), "203.0.113.9", "a mapped proxy is trusted too");
        assert_eq!(seen("10.0.0.1", &["203.0.113.9, ::ffff:10.0.0.2"]), "203.0.113.9");
    }

    #[test]
    fn garbage_ends_the_reading() {
        for garbage in ["unknown", "_hidden", "", "1.2.3", "fe80::1%eth0", "999.1.1.1", "1.2.3.4:x", "\u{e9}"]
        {
            assert_eq!(seen("10.0.0.1", &[&format!("1.2.3.4, {garbage}")]), "10.0.0.1", "{garbage:?}");
            assert_eq!(seen("10.0.0.1", &["1.2.3.4", garbage, "10.0.0.2"]), "10.0.0.2", "{garbage:?}");
        }
    }
}
