//! SRTP with AES-GCM where the packet lies, without a copy and without reading the header anew (RFC 7714 §8).
//!
//! `rtc-srtp` parses and copies every packet; one incoming packet goes out to every consumer, so that is the cost of the worker.
//! State for an SSRC is kept only after a packet of it has been authenticated, so strangers cannot fill it.

use std::collections::HashMap;

use rtc_srtp::crypto::{AeadAlgorithm, AeadCipher, BlockCipherAlgorithm, CryptoError, RTCCrypto};

use crate::{rtp::Unroller, srtp::NonceGuard};

/// Bytes of the authentication tag.
pub const TAG: usize = 16;

/// Bytes of the salt.
const SALT: usize = 12;

/// Key derivation labels (RFC 3711 §4.3.2).
const LABEL_KEY: u8 = 0;
const LABEL_SALT: u8 = 2;

/// Cycle that [`Unroller`] starts in; SRTP counts rollovers from zero.
const FIRST_CYCLE: u64 = 1;

#[derive(Default)]
struct Source {
    unroller: Unroller,
    seen: NonceGuard,
}

/// One direction of RTP under one master key.
pub struct Gcm {
    cipher: Box<dyn AeadCipher>,
    salt: [u8; SALT],
    sources: HashMap<u32, Source>,
    max_sources: usize,
}

/// Derives `length` bytes of a session key (RFC 3711 §4.3.3, for 256-bit keys RFC 6188 §3). With a key derivation rate of zero the
/// index in the input is zero.
fn derive(
    crypto: &dyn RTCCrypto,
    master: &[u8],
    salt: &[u8],
    label: u8,
    length: usize,
) -> Result<Vec<u8>, CryptoError> {
    let algorithm =
        if master.len() == 32 { BlockCipherAlgorithm::Aes256 } else { BlockCipherAlgorithm::Aes128 };
    let mut out = Vec::with_capacity(length.next_multiple_of(16));
    for counter in 0..length.div_ceil(16) as u16 {
        let mut block = [0; 16];
        block[..salt.len()].copy_from_slice(salt);
        block[7] ^= label;
        block[14..].copy_from_slice(&counter.to_be_bytes());
        crypto.block_encrypt(algorithm, master, &mut block)?;
        out.extend_from_slice(&block);
    }
    out.truncate(length);
    Ok(out)
}

impl Gcm {
    /// Derives the session key; `salt` has 12 bytes.
    pub fn new(
        crypto: &dyn RTCCrypto,
        master: &[u8],
        salt: &[u8],
        max_sources: usize,
    ) -> Result<Self, CryptoError> {
        let algorithm = if master.len() == 32 { AeadAlgorithm::Aes256Gcm } else { AeadAlgorithm::Aes128Gcm };
        let key = derive(crypto, master, salt, LABEL_KEY, master.len())?;
        let mut session_salt = [0; SALT];
        session_salt.copy_from_slice(&derive(crypto, master, salt, LABEL_SALT, SALT)?);
        Ok(Self {
            cipher: crypto.new_aead(algorithm, &key)?,
            salt: session_salt,
            sources: HashMap::new(),
            max_sources,
        })
    }

    /// Two bytes of zero, SSRC, rollover counter and sequence number, over the salt (RFC 7714 §8.1).
    fn nonce(&self, ssrc: u32, place: u64) -> [u8; SALT] {
        let mut nonce = self.salt;
        let index = (place - (FIRST_CYCLE << 16)).to_be_bytes();
        nonce[2..6].iter_mut().zip(ssrc.to_be_bytes()).for_each(|(n, b)| *n ^= b);
        nonce[6..].iter_mut().zip(&index[2..]).for_each(|(n, b)| *n ^= b);
        nonce
    }

    /// Encrypts the packet that begins at `start` of `buffer` and ends with it; the payload begins at `payload`. False, with the
    /// buffer unusable, when the sequence number was used before.
    pub fn seal(&mut self, buffer: &mut Vec<u8>, start: usize, payload: usize) -> bool {
        let Some((sequence, ssrc)) = numbers(&buffer[start..]) else { return false };
        let source = self.sources.entry(ssrc).or_default();
        if !source.seen.first_use(sequence) {
            return false;
        }
        let place = source.unroller.unroll(sequence);
        if place < FIRST_CYCLE << 16 {
            return false;
        }
        let nonce = self.nonce(ssrc, place);
        let mut tag = [0; TAG];
        let (head, body) = buffer[start..].split_at_mut(payload);
        if self.cipher.seal_in_place(&nonce, head, body, &mut tag).is_err() {
            return false;
        }
        buffer.extend_from_slice(&tag);
        true
    }

    /// Decrypts a packet whose payload begins at `payload`; false, with the packet unusable, when it is not authentic or came before.
    pub fn open(&mut self, packet: &mut Vec<u8>, payload: usize) -> bool {
        let Some((sequence, ssrc)) = numbers(packet) else { return false };
        let Some(end) = packet.len().checked_sub(TAG).filter(|end| *end >= payload) else { return false };
        let known = self.sources.get(&ssrc);
        let place = known.map_or(Unroller::default().peek(sequence), |s| s.unroller.peek(sequence));
        if place < FIRST_CYCLE << 16 || (known.is_none() && self.sources.len() >= self.max_sources) {
            return false;
        }
        let nonce = self.nonce(ssrc, place);
        let (text, tag) = packet.split_at_mut(end);
        let (head, body) = text.split_at_mut(payload);
        if self.cipher.open_in_place(&nonce, head, body, tag).is_err() {
            return false;
        }
        packet.truncate(end);
        let source = self.sources.entry(ssrc).or_default();
        source.unroller.unroll(sequence);
        source.seen.first_use(sequence)
    }
}

/// Sequence number and SSRC.
fn numbers(packet: &[u8]) -> Option<(u16, u32)> {
    let head: &[u8; 12] = packet.first_chunk()?;
    Some((u16::from_be_bytes([head[2], head[3]]), u32::from_be_bytes([head[8], head[9], head[10], head[11]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rtp::{HeaderWriter, NewHeader, RtpHeader},
        srtp::ProtectionProfile,
    };
    use rtc_srtp::context::Context;

    fn packet(sequence: u16, ssrc: u32, payload: &[u8]) -> (Vec<u8>, usize) {
        let mut bytes = Vec::new();
        let header = NewHeader { marker: false, payload_type: 96, sequence, timestamp: 5, ssrc };
        let mut writer = HeaderWriter::new(&mut bytes, &header);
        writer.extension(1, b"mid");
        writer.finish();
        let at = bytes.len();
        bytes.extend_from_slice(payload);
        (bytes, at)
    }

    /// Both key lengths, ours and the independent implementation.
    fn each(test: impl Fn(Gcm, Context)) {
        let provider = rtc_srtp::crypto::default_provider().unwrap();
        for profile in [ProtectionProfile::AeadAes128Gcm, ProtectionProfile::AeadAes256Gcm] {
            let key: Vec<u8> = (0..profile.key_len() as u8).collect();
            let salt: Vec<u8> = (100..112).collect();
            let ours = Gcm::new(provider.crypto(), &key, &salt, 4).unwrap();
            let theirs = Context::new(&key, &salt, profile, None, None, provider.crypto()).unwrap();
            test(ours, theirs);
        }
    }

    #[test]
    fn another_implementation_reads_what_we_seal_over_two_rollovers() {
        each(|mut ours, mut theirs| {
            for i in 0..140_000u32 {
                let (plain, at) = packet((i + 1) as u16, 7, &i.to_be_bytes());
                let mut sealed = vec![1, 2, 3];
                sealed.extend_from_slice(&plain);
                assert!(ours.seal(&mut sealed, 3, at));
                assert_eq!(theirs.decrypt_rtp(&sealed[3..]).unwrap(), plain, "{i}");
            }
        });
    }

    #[test]
    fn we_open_what_another_implementation_seals_also_late_but_once() {
        each(|mut ours, mut theirs| {
            let mut held = None;
            for i in 0..140_000u32 {
                let (plain, at) = packet((i + 1) as u16, 7, &i.to_be_bytes());
                let sealed = theirs.encrypt_rtp(&plain).unwrap();
                if i % 1000 == 500 {
                    held = Some((sealed, plain));
                    continue;
                }
                let mut opened = sealed.to_vec();
                assert!(ours.open(&mut opened, at), "{i}");
                assert_eq!(opened, plain);
                if i % 1000 == 700 {
                    let (sealed, plain) = held.take().unwrap();
                    let mut late = sealed.to_vec();
                    assert!(ours.open(&mut late, at));
                    assert_eq!(late, plain);
                    assert!(!ours.open(&mut sealed.to_vec(), at), "a second time");
                }
            }
        });
    }

    #[test]
    fn no_changed_byte_is_accepted_and_strangers_leave_no_state() {
        each(|mut ours, mut theirs| {
            let (plain, at) = packet(9, 7, b"payload");
            let sealed = theirs.encrypt_rtp(&plain).unwrap();
            for i in 0..sealed.len() {
                for bit in 0..8 {
                    let mut changed = sealed.to_vec();
                    changed[i] ^= 1 << bit;
                    let Some(header) = RtpHeader::parse(&changed) else { continue };
                    assert!(!ours.open(&mut changed, header.payload.start), "bit {bit} of byte {i}");
                }
            }
            for cut in 0..sealed.len() {
                assert!(!ours.open(&mut sealed[..cut].to_vec(), at), "cut to {cut}");
            }
            assert!(ours.sources.is_empty());
            assert!(ours.open(&mut sealed.to_vec(), at));
        });
    }

    #[test]
    fn no_nonce_is_used_twice() {
        each(|mut ours, _| {
            let (plain, at) = packet(9, 7, b"one text");
            assert!(ours.seal(&mut plain.clone(), 0, at));
            let (plain, at) = packet(9, 7, b"another");
            assert!(!ours.seal(&mut plain.clone(), 0, at));
        });
    }
}
