//! STUN for an ICE-lite side: reads binding requests and writes the answers (RFC 8489, RFC 8445 §7.3).
//!
//! Nothing but a binding request whose integrity was checked with our own password gets an answer, so a stranger learns nothing and
//! cannot make the worker send to a third party.

use std::net::{IpAddr, SocketAddr};

use rtc_srtp::crypto::{HmacAlgorithm, RTCCrypto};

const HEADER: usize = 20;
const MAGIC: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PRIORITY: u16 = 0x0024;
const USE_CANDIDATE: u16 = 0x0025;
const FINGERPRINT: u16 = 0x8028;
const ICE_CONTROLLED: u16 = 0x8029;
const FINGERPRINT_XOR: u32 = 0x5354_554e;
/// Bytes of an HMAC-SHA1.
const HMAC: usize = 20;

/// Whether a datagram can be STUN: first byte 0 to 3 and the magic cookie (RFC 7983 §7).
pub fn looks_like_stun(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER && bytes[0] < 4 && bytes[4..8] == MAGIC
}

/// A well-formed binding request; its integrity is still to be checked.
#[derive(Debug, Clone, Copy)]
pub struct BindingRequest<'a> {
    bytes: &'a [u8],
    /// Transaction id.
    pub transaction: [u8; 12],
    /// The receiver's part of USERNAME, that is our own user name fragment.
    pub local_ufrag: &'a str,
    /// The sender's part of USERNAME.
    pub remote_ufrag: &'a str,
    /// Whether the sender nominates this pair (RFC 8445 §8.1.1).
    pub use_candidate: bool,
    /// Whether the sender believes to be the controlled side, which a lite side always is itself.
    pub controlled: bool,
    integrity_at: usize,
}

impl<'a> BindingRequest<'a> {
    /// Reads a binding request; `None` for anything else, also for a wrong FINGERPRINT.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if !looks_like_stun(bytes) || u16::from_be_bytes([bytes[0], bytes[1]]) != BINDING_REQUEST {
            return None;
        }
        if HEADER + usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) != bytes.len() {
            return None;
        }
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&bytes[8..HEADER]);
        let (mut username, mut integrity_at) = (None, None);
        let (mut use_candidate, mut controlled, mut priority, mut fingerprint) = (false, false, false, false);
        let mut at = HEADER;
        while at < bytes.len() {
            let head: &[u8; 4] = bytes.get(at..)?.first_chunk()?;
            let kind = u16::from_be_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let value = bytes.get(at + 4..at + 4 + length)?;
            match kind {
                FINGERPRINT => {
                    let expected = crc32(&bytes[..at]) ^ FINGERPRINT_XOR;
                    if value != expected.to_be_bytes() || at + 8 != bytes.len() {
                        return None;
                    }
                    fingerprint = true;
                }
                // RFC 8489 §14.5: what comes after MESSAGE-INTEGRITY, other than FINGERPRINT, is ignored.
                _ if integrity_at.is_some() => {}
                MESSAGE_INTEGRITY if length == HMAC => integrity_at = Some(at),
                USERNAME => username = Some(std::str::from_utf8(value).ok()?),
                USE_CANDIDATE => use_candidate = true,
                ICE_CONTROLLED => controlled = true,
                PRIORITY => priority = true,
                _ => {}
            }
            at += 4 + length.next_multiple_of(4);
        }
        let (local_ufrag, remote_ufrag) = username?.split_once(':')?;
        // Both are there in every connectivity check (RFC 8445 §7.1.1, §7.3).
        if !priority || !fingerprint {
            return None;
        }
        Some(Self {
            bytes,
            transaction,
            local_ufrag,
            remote_ufrag,
            use_candidate,
            controlled,
            integrity_at: integrity_at?,
        })
    }

    /// Whether the sender knows our password.
    pub fn is_authentic(&self, crypto: &dyn RTCCrypto, password: &str) -> bool {
        let at = self.integrity_at;
        let mut head = [0; HEADER];
        head.copy_from_slice(&self.bytes[..HEADER]);
        // The length counts up to the end of MESSAGE-INTEGRITY (RFC 8489 §14.5).
        let length = (at + 4 + HMAC - HEADER) as u16;
        head[2..4].copy_from_slice(&length.to_be_bytes());
        crypto.new_hmac(HmacAlgorithm::Sha1, password.as_bytes()).is_ok_and(|mut mac| {
            mac.verify(&[&head, &self.bytes[HEADER..at]], &self.bytes[at + 4..at + 4 + HMAC]).is_ok()
        })
    }
}

/// The answer to an authentic binding request from `source`.
pub fn binding_success(
    crypto: &dyn RTCCrypto,
    transaction: &[u8; 12],
    source: SocketAddr,
    password: &str,
) -> Vec<u8> {
    let mut out = header(BINDING_SUCCESS, transaction);
    let port = (source.port() ^ 0x2112).to_be_bytes();
    let mut value = vec![0, 0, port[0], port[1]];
    match source.ip().to_canonical() {
        IpAddr::V4(ip) => {
            value[1] = 1;
            value.extend(ip.octets().iter().zip(MAGIC).map(|(a, b)| a ^ b));
        }
        IpAddr::V6(ip) => {
            value[1] = 2;
            value.extend(ip.octets().iter().zip(MAGIC.iter().chain(transaction)).map(|(a, b)| a ^ b));
        }
    }
    attribute(&mut out, XOR_MAPPED_ADDRESS, &value);
    seal(&mut out, crypto, password);
    out
}

/// The answer to a sender that believes to be controlled: 487 Role Conflict, on which it takes the controlling role
/// (RFC 8445 §7.3.1.1).
pub fn role_conflict(crypto: &dyn RTCCrypto, transaction: &[u8; 12], password: &str) -> Vec<u8> {
    let mut out = header(BINDING_ERROR, transaction);
    attribute(&mut out, ERROR_CODE, b"\0\0\x04\x57Role Conflict");
    seal(&mut out, crypto, password);
    out
}

fn header(kind: u16, transaction: &[u8; 12]) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(transaction);
    out
}

/// Appends an attribute and counts it in the length field.
fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
    while !out.len().is_multiple_of(4) {
        out.push(0);
    }
    set_length(out, 0);
}

fn set_length(out: &mut [u8], more: usize) {
    let length = (out.len() - HEADER + more) as u16;
    out[2..4].copy_from_slice(&length.to_be_bytes());
}

fn seal(out: &mut Vec<u8>, crypto: &dyn RTCCrypto, password: &str) {
    set_length(out, 4 + HMAC);
    let mut mac = [0; HMAC];
    let signed = crypto
        .new_hmac(HmacAlgorithm::Sha1, password.as_bytes())
        .and_then(|mut hmac| hmac.sign(&[out.as_slice()], &mut mac));
    debug_assert!(signed.is_ok(), "HMAC-SHA1 takes any key and any input");
    attribute(out, MESSAGE_INTEGRITY, &mac);
    set_length(out, 8);
    let crc = crc32(out) ^ FINGERPRINT_XOR;
    attribute(out, FINGERPRINT, &crc.to_be_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Writes a binding request as a full ICE side would; for tests and native peers.
pub fn binding_request(
    crypto: &dyn RTCCrypto,
    transaction: &[u8; 12],
    username: &str,
    password: &str,
    use_candidate: bool,
    controlling: bool,
) -> Vec<u8> {
    const ICE_CONTROLLING: u16 = 0x802a;
    let mut out = header(BINDING_REQUEST, transaction);
    attribute(&mut out, USERNAME, username.as_bytes());
    attribute(&mut out, PRIORITY, &1_845_501_695_u32.to_be_bytes());
    attribute(&mut out, if controlling { ICE_CONTROLLING } else { ICE_CONTROLLED }, &[1; 8]);
    if use_candidate {
        attribute(&mut out, USE_CANDIDATE, &[]);
    }
    seal(&mut out, crypto, password);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 §2.1, sample request.
    const RFC5769_REQUEST: &[u8] = b"\x00\x01\x00\x58\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
        \x80\x22\x00\x10STUN test client\x00\x24\x00\x04\x6e\x00\x01\xff\x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36\
        \x00\x06\x00\x09\x65\x76\x74\x6a\x3a\x68\x36\x76\x59\x20\x20\x20\x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\
        \x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2\x80\x28\x00\x04\xe5\x7a\x3b\xcf";
    const PASSWORD: &str = "VOkJxbRl1RmTxUk/WvJxBt";

    fn provider() -> std::sync::Arc<dyn rtc_srtp::crypto::RTCCryptoProvider> {
        rtc_srtp::crypto::default_provider().unwrap()
    }

    #[test]
    fn the_sample_request_of_rfc_5769_is_authentic() {
        let provider = provider();
        let request = BindingRequest::parse(RFC5769_REQUEST).unwrap();
        assert_eq!((request.local_ufrag, request.remote_ufrag), ("evtj", "h6vY"));
        assert!(request.controlled && !request.use_candidate);
        assert!(request.is_authentic(provider.crypto(), PASSWORD));
        assert!(!request.is_authentic(provider.crypto(), "another"));
    }

    #[test]
    fn no_changed_byte_passes_for_authentic() {
        let provider = provider();
        for at in 0..RFC5769_REQUEST.len() {
            for bit in 0..8 {
                let mut bytes = RFC5769_REQUEST.to_vec();
                bytes[at] ^= 1 << bit;
                let passed = BindingRequest::parse(&bytes)
                    .is_some_and(|request| request.is_authentic(provider.crypto(), PASSWORD));
                assert!(!passed, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn truncated_requests_are_refused() {
        for cut in 0..RFC5769_REQUEST.len() {
            assert!(BindingRequest::parse(&RFC5769_REQUEST[..cut]).is_none());
        }
    }

    /// The response of RFC 5769 §2.2 differs from ours only by SOFTWARE, so its XOR-MAPPED-ADDRESS is compared.
    #[test]
    fn mapped_addresses_are_those_of_rfc_5769() {
        let provider = provider();
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&RFC5769_REQUEST[8..20]);
        let v4 =
            binding_success(provider.crypto(), &transaction, "192.0.2.1:32853".parse().unwrap(), PASSWORD);
        assert_eq!(&v4[20..32], b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43");
        let v6 = binding_success(
            provider.crypto(),
            &transaction,
            "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap(),
            PASSWORD,
        );
        assert_eq!(
            &v6[20..44],
            b"\x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9"
        );
    }

    #[test]
    fn answers_are_no_longer_than_requests() {
        let provider = provider();
        let request = binding_request(provider.crypto(), &[9; 12], "abcdefghijklmnop:wxyz", "pw", true, true);
        let parsed = BindingRequest::parse(&request).unwrap();
        assert!(parsed.use_candidate && !parsed.controlled && parsed.is_authentic(provider.crypto(), "pw"));
        let answer = binding_success(provider.crypto(), &[9; 12], "[::1]:5".parse().unwrap(), "pw");
        assert!(answer.len() <= request.len(), "{} > {}", answer.len(), request.len());
        assert!(role_conflict(provider.crypto(), &[9; 12], "pw").len() <= request.len());
    }
}
