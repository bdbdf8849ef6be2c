//! The question by which a node finds out whether the SFU workers of another still live, and its answer: an ICE connectivity check
//! (RFC 8445 §7.2, RFC 8489) with the user name fragment and the password that the EA has registered.

use ring::hmac;

/// The user name fragment under which workers answer such questions.
pub const PROBE_UFRAG: &str = "probe";

const HEADER: usize = 20;
const MAGIC: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const PRIORITY: u16 = 0x0024;
const FINGERPRINT: u16 = 0x8028;
const ICE_CONTROLLING: u16 = 0x802a;
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// A binding request, 96 bytes or so, to be sent to a worker's UDP port.
pub fn probe(transaction: &[u8; 12], password: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend(BINDING_REQUEST.to_be_bytes());
    out.extend([0, 0]);
    out.extend(MAGIC);
    out.extend(transaction);
    attribute(&mut out, USERNAME, format!("{PROBE_UFRAG}:node").as_bytes());
    attribute(&mut out, PRIORITY, &1_u32.to_be_bytes());
    attribute(&mut out, ICE_CONTROLLING, &[0; 8]);
    // The length counts up to the end of the attribute that is being made (RFC 8489 §14.5, §14.7).
    set_length(&mut out, 4 + 20);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
    let mac = hmac::sign(&key, &out);
    attribute(&mut out, MESSAGE_INTEGRITY, mac.as_ref());
    set_length(&mut out, 4 + 4);
    let crc = crc32fast::hash(&out) ^ FINGERPRINT_XOR;
    attribute(&mut out, FINGERPRINT, &crc.to_be_bytes());
    out
}

/// Whether `bytes` is the success response to the probe with this transaction id.
pub fn is_answer(bytes: &[u8], transaction: &[u8; 12]) -> bool {
    bytes.len() >= HEADER
        && bytes[..2] == BINDING_SUCCESS.to_be_bytes()
        && bytes[4..8] == MAGIC
        && bytes[8..HEADER] == *transaction
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    set_length(out, 0);
}

fn set_length(out: &mut [u8], more: usize) {
    let length = (out.len() - HEADER + more) as u16;
    out[2..4].copy_from_slice(&length.to_be_bytes());
}
