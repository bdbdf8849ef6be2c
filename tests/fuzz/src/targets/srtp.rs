//! SRTP and SRTCP: what the sender protected is read once; anything else, however near to it, is refused.

use roomlog_sfu::{
    rtp::{HeaderWriter, NewHeader, RtpHeader},
    srtp::{ProtectionProfile, Srtp, SrtpKeys},
};

use super::packet::crypto;
use crate::input::{Input, secret};

const PROFILES: [ProtectionProfile; 3] = [
    ProtectionProfile::AeadAes128Gcm,
    ProtectionProfile::AeadAes256Gcm,
    ProtectionProfile::Aes128CmHmacSha1_80,
];

/// Most packets in one input.
const MAX_PACKETS: usize = 32;

/// `profile, (kind, plain, mutations)*`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let profile = PROFILES[usize::from(input.byte()) % PROFILES.len()];
    let material = secret(data, 2 * (profile.key_len() + profile.salt_len()));
    let side = |is_client| {
        Srtp::new(&SrtpKeys { profile, material: material.clone(), is_client }, crypto()).expect("good keys")
    };
    let (mut client, mut server) = (side(true), side(false));
    for _ in 0..MAX_PACKETS {
        if input.is_empty() {
            return;
        }
        match input.byte() % 4 {
            0 => {
                let Some(plain) = written_anew(input.chunk()) else { continue };
                let mut sent = plain.clone();
                if client.protect_rtp(&mut sent, 0).is_err() {
                    continue;
                }
                let header = RtpHeader::parse(&sent).expect("the header is in the clear");
                let changed = mutated(&mut input, &sent);
                refused_rtp(&mut server, &changed, &sent);
                match server.unprotect_rtp(&sent, &header) {
                    Ok(read) => {
                        assert_eq!(read, plain);
                        assert!(server.unprotect_rtp(&sent, &header).is_err(), "replayed");
                    }
                    // The sender unrolls sequence numbers as the receiver does, so only age and number of sources are left.
                    Err(error) => drop(error),
                }
            }
            1 => {
                let plain = input.chunk();
                // The worker's peers protect whole RTCP packets.
                if plain.len() < 8 {
                    continue;
                }
                let Ok(sent) = client.protect_rtcp(plain) else { continue };
                let changed = mutated(&mut input, &sent);
                assert!(
                    changed == sent || server.unprotect_rtcp(&changed).is_err(),
                    "changed SRTCP was taken"
                );
                if let Ok(read) = server.unprotect_rtcp(&sent) {
                    assert_eq!(read, plain);
                    assert!(server.unprotect_rtcp(&sent).is_err(), "replayed");
                }
            }
            2 => refused_rtp(&mut server, input.chunk(), &[]),
            _ => assert!(server.unprotect_rtcp(input.chunk()).is_err(), "forged SRTCP was taken"),
        }
    }
}

/// What goes out when these bytes came in. A header that lies makes rtc-srtp panic when it is to protect it, because it measures a header
/// by what it would write itself. The worker protects none but those that its own writer made (`Consumer::write`): without contributing
/// sources and padding, with one-byte extensions of ids 1 to 14. So a producer's bytes choose among those, and so does an input.
fn written_anew(came: &[u8]) -> Option<Vec<u8>> {
    let header = RtpHeader::parse(came)?;
    let &RtpHeader { marker, payload_type, sequence, timestamp, ssrc, .. } = &header;
    let mut packet = Vec::new();
    let mut writer =
        HeaderWriter::new(&mut packet, &NewHeader { marker, payload_type, sequence, timestamp, ssrc });
    for (id, value) in header.extensions(came) {
        writer.extension(id, value);
    }
    writer.finish();
    packet.extend_from_slice(&came[header.payload]);
    Some(packet)
}

fn refused_rtp(server: &mut Srtp, packet: &[u8], original: &[u8]) {
    if packet == original {
        return;
    }
    let Some(header) = RtpHeader::parse(packet) else { return };
    assert!(server.unprotect_rtp(packet, &header).is_err(), "forged SRTP was taken");
}

/// A copy with up to 15 bytes changed, then cut.
fn mutated(input: &mut Input<'_>, sent: &[u8]) -> Vec<u8> {
    let mut changed = sent.to_vec();
    for _ in 0..input.byte() % 16 {
        let at = usize::from(input.word()) % changed.len();
        changed[at] ^= input.byte();
    }
    let cut = usize::from(input.byte());
    changed.truncate(changed.len().saturating_sub(cut));
    changed
}
