//! SRTP and SRTCP of one transport, behind one seam (RFC 3711, RFC 7714).

use std::collections::HashMap;

use bytes::BytesMut;
use rtc_srtp::{
    context::Context, crypto::RTCCrypto, option::srtcp_replay_protection, option::srtp_replay_protection,
};

use crate::{gcm::Gcm, rtp::RtpHeader};

pub use rtc_srtp::protection_profile::ProtectionProfile;

/// Packets behind the newest that may still arrive once: half a second of 2 000 packets/s, longer than any repair takes.
const REPLAY_WINDOW: usize = 1024;

/// Bytes of the index of an SRTCP packet with its E flag (RFC 3711 §3.4).
const SRTCP_INDEX: usize = 4;

/// Bytes of the tag of the one profile besides GCM, AES-CM with HMAC-SHA1-80, on SRTCP (RFC 3711 §5.2).
const CM_TAG: usize = 10;

/// SSRCs one transport may send us at most; state is kept for each.
pub const MAX_SOURCES: usize = 256;

/// Keys and profile that came out of a DTLS handshake (RFC 5764 §4.2).
pub struct SrtpKeys {
    /// Cipher and tag length.
    pub profile: ProtectionProfile,
    /// The exporter's output: client key, server key, client salt, server salt.
    pub material: Vec<u8>,
    /// Whether this side was the DTLS client.
    pub is_client: bool,
}

impl std::fmt::Debug for SrtpKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SrtpKeys({:?})", self.profile)
    }
}

/// Why a packet could not be protected or unprotected.
#[derive(Debug, thiserror::Error)]
#[error("SRTP: {0}")]
pub struct SrtpError(String);

/// Both directions of one transport.
pub struct Srtp {
    /// Name of the cipher, for statistics.
    pub profile: ProtectionProfile,
    /// RTP in both directions where the profile is GCM; all else goes by `rtc-srtp`.
    gcm: Option<(Gcm, Gcm)>,
    send: Context,
    receive: Context,
    guards: HashMap<u32, NonceGuard>,
    sources: std::collections::HashSet<u32>,
}

impl Srtp {
    /// Installs the keys.
    pub fn new(keys: &SrtpKeys, crypto: &dyn RTCCrypto) -> Result<Self, SrtpError> {
        let profile = keys.profile;
        let (key, salt) = (profile.key_len(), profile.salt_len());
        let material = &keys.material;
        if material.len() != 2 * (key + salt) {
            return Err(SrtpError(format!(
                "{profile:?} needs {} bytes of keys, not {}",
                2 * (key + salt),
                material.len()
            )));
        }
        let client = (&material[..key], &material[2 * key..2 * key + salt]);
        let server = (&material[key..2 * key], &material[2 * key + salt..]);
        let (local, remote) = if keys.is_client { (client, server) } else { (server, client) };
        let context = |(key, salt): (&[u8], &[u8]), receives: bool| {
            let (rtp, rtcp) = if receives {
                (Some(srtp_replay_protection(REPLAY_WINDOW)), Some(srtcp_replay_protection(REPLAY_WINDOW)))
            } else {
                (None, None)
            };
            Context::new(key, salt, profile, rtp, rtcp, crypto).map_err(|e| SrtpError(e.to_string()))
        };
        let gcm = |(key, salt): (&[u8], &[u8]), sources| {
            Gcm::new(crypto, key, salt, sources).map_err(|e| SrtpError(e.to_string()))
        };
        let gcm = match profile {
            // We choose the SSRCs that we send.
            ProtectionProfile::AeadAes128Gcm | ProtectionProfile::AeadAes256Gcm => {
                Some((gcm(local, usize::MAX)?, gcm(remote, MAX_SOURCES)?))
            }
            _ => None,
        };
        Ok(Self {
            profile,
            gcm,
            send: context(local, false)?,
            receive: context(remote, true)?,
            guards: HashMap::new(),
            sources: Default::default(),
        })
    }

    /// Decrypts an RTP packet with this header.
    pub fn unprotect_rtp(&mut self, packet: &[u8], header: &RtpHeader) -> Result<Vec<u8>, SrtpError> {
        let mut plain = Vec::new();
        self.unprotect_rtp_into(packet, header, &mut plain)?;
        Ok(plain)
    }

    /// Decrypts an RTP packet with this header; what `plain` held is lost.
    pub fn unprotect_rtp_into(
        &mut self,
        packet: &[u8],
        header: &RtpHeader,
        plain: &mut Vec<u8>,
    ) -> Result<(), SrtpError> {
        plain.clear();
        if let Some((_, gcm)) = &mut self.gcm {
            plain.extend_from_slice(packet);
            return match gcm.open(plain, header.payload.start) {
                true => Ok(()),
                false => Err(SrtpError("not authentic, or replayed".into())),
            };
        }
        let ssrc = header.ssrc;
        if !self.sources.contains(&ssrc) {
            if self.sources.len() >= MAX_SOURCES {
                return Err(SrtpError(format!("more than {MAX_SOURCES} sources")));
            }
            self.sources.insert(ssrc);
        }
        let opened = self.receive.decrypt_rtp(packet).map_err(|e| SrtpError(e.to_string()))?;
        plain.extend_from_slice(&opened);
        Ok(())
    }

    /// Decrypts a compound RTCP packet.
    pub fn unprotect_rtcp(&mut self, packet: &[u8]) -> Result<BytesMut, SrtpError> {
        // `rtc-srtp` hands out what says that it is not encrypted without a look at its tag. Clients encrypt (RFC 8827 §6.5), so whoever
        // does not is somebody else. The E flag is the first bit of the index (RFC 3711 §3.4), which GCM has behind its tag.
        let behind_index = if self.gcm.is_some() { 0 } else { CM_TAG };
        let at = packet.len().checked_sub(behind_index + SRTCP_INDEX);
        if at.is_none_or(|at| packet[at] & 0x80 == 0) {
            return Err(SrtpError("SRTCP that is not encrypted".into()));
        }
        self.receive.decrypt_rtcp(packet).map_err(|e| SrtpError(e.to_string()))
    }

    /// Encrypts the RTP packet that begins at `start` of `buffer` and ends with it. A sequence number that was used on its SSRC is
    /// refused: with GCM a second packet under the same nonce gives the key away (RFC 7714 §8.4).
    pub fn protect_rtp(&mut self, buffer: &mut Vec<u8>, start: usize) -> Result<(), SrtpError> {
        let refused = || SrtpError("the sequence number was used before".into());
        let header = RtpHeader::parse(&buffer[start..]).ok_or_else(|| SrtpError("no RTP packet".into()))?;
        if let Some((gcm, _)) = &mut self.gcm {
            return gcm.seal(buffer, start, header.payload.start).then_some(()).ok_or_else(refused);
        }
        if !self.guards.entry(header.ssrc).or_default().first_use(header.sequence) {
            return Err(refused());
        }
        let protected = self.send.encrypt_rtp(&buffer[start..]).map_err(|e| SrtpError(e.to_string()))?;
        buffer.truncate(start);
        buffer.extend_from_slice(&protected);
        Ok(())
    }

    /// Encrypts a compound RTCP packet.
    pub fn protect_rtcp(&mut self, packet: &[u8]) -> Result<BytesMut, SrtpError> {
        self.send.encrypt_rtcp(packet).map_err(|e| SrtpError(e.to_string()))
    }
}

/// Refuses a second use of a sequence number on one SSRC; a window of 1024 behind the newest, anything older is refused too.
#[derive(Debug, Default)]
pub struct NonceGuard {
    unroller: crate::rtp::Unroller,
    used: [u64; 16],
}

impl NonceGuard {
    /// Whether the number is used for the first time; notes its use.
    pub fn first_use(&mut self, sequence: u16) -> bool {
        let before = self.unroller.highest();
        let place = self.unroller.unroll(sequence);
        let slot = |place: u64| ((place / 64 % 16) as usize, 1u64 << (place % 64));
        match before {
            Some(highest) if place <= highest => {
                let (word, bit) = slot(place);
                // The window is kept in whole words, of which the newest may be just begun: 15 are always valid.
                if highest - place >= 15 * 64 || self.used[word] & bit != 0 {
                    return false;
                }
                self.used[word] |= bit;
            }
            _ => {
                let from = before.map_or(place / 64, |highest| highest / 64 + 1);
                for word in (from..=place / 64).take(16) {
                    self.used[(word % 16) as usize] = 0;
                }
                let (word, bit) = slot(place);
                self.used[word] |= bit;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(profile: ProtectionProfile) -> (Srtp, Srtp) {
        let provider = rtc_srtp::crypto::default_provider().unwrap();
        let material: Vec<u8> = (0..2 * (profile.key_len() + profile.salt_len())).map(|i| i as u8).collect();
        let side = |is_client| {
            Srtp::new(&SrtpKeys { profile, material: material.clone(), is_client }, provider.crypto())
                .unwrap()
        };
        (side(true), side(false))
    }

    #[test]
    fn what_one_side_protects_the_other_reads_once_over_the_wrap() {
        for profile in [ProtectionProfile::AeadAes128Gcm, ProtectionProfile::Aes128CmHmacSha1_80] {
            let (mut client, mut server) = pair(profile);
            for i in 0..100_000u32 {
                let mut packet = vec![0x80, 96];
                packet.extend_from_slice(&((i + 30_000) as u16).to_be_bytes());
                packet.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 9, 42]);
                let header = RtpHeader::parse(&packet).unwrap();
                let mut sent = packet.clone();
                client.protect_rtp(&mut sent, 0).unwrap();
                assert_eq!(server.unprotect_rtp(&sent, &header).unwrap(), packet, "{profile:?} {i}");
                if i % 1000 == 0 {
                    assert!(server.unprotect_rtp(&sent, &header).is_err(), "replayed");
                    assert!(client.protect_rtp(&mut packet.clone(), 0).is_err(), "sent twice");
                }
            }
        }
    }

    #[test]
    fn control_packets_that_say_they_are_not_encrypted_are_refused_unread() {
        for profile in [
            ProtectionProfile::AeadAes128Gcm,
            ProtectionProfile::AeadAes256Gcm,
            ProtectionProfile::Aes128CmHmacSha1_80,
        ] {
            let (_, mut server) = pair(profile);
            // A goodbye in the clear, index 1 with E clear, and zeros where a tag would be. Found by fuzzing.
            let mut forged = vec![0x81, 203, 0, 1, 0, 0, 0, 1];
            forged.extend_from_slice(&[0, 0, 0, 1]);
            forged.extend_from_slice(&[0; 26]);
            for length in 8..=forged.len() {
                assert!(server.unprotect_rtcp(&forged[..length]).is_err(), "{profile:?}, {length} bytes");
            }
        }
    }

    #[test]
    fn a_sequence_number_is_never_used_twice() {
        let mut guard = NonceGuard::default();
        let mut used = std::collections::HashSet::new();
        let mut place = 65_000u64;
        for i in 0..20_000u64 {
            // Forwards by 1 to 3, with every fifth a step back into the window.
            let candidate = if i % 5 == 0 { place - i % 700 } else { place };
            assert_eq!(guard.first_use(candidate as u16), used.insert(candidate), "{candidate}");
            place += 1 + i % 3;
        }
    }
}
