//! A datagram as it comes from anywhere: STUN, RTP or RTCP, told apart as the worker does.

use std::{net::SocketAddr, sync::OnceLock};

use roomlog_sfu::{
    rtcp::{self, Rtcp},
    rtp::{self, HeaderWriter, NewHeader, RtpHeader},
    stun::{self, BindingRequest},
};
use rtc_srtp::crypto::{HmacAlgorithm, RTCCrypto, RTCCryptoProvider};

use crate::input::{Input, secret};

pub(crate) fn crypto() -> &'static dyn RTCCrypto {
    static PROVIDER: OnceLock<std::sync::Arc<dyn RTCCryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| rtc_srtp::crypto::default_provider().expect("ring is built in")).crypto()
}

/// First byte 255: the rest is the attributes of a binding request, to be sealed as one who knows the password would. Otherwise a datagram.
pub fn run(data: &[u8]) {
    if let [255, attributes @ ..] = data {
        sealed(attributes);
    } else if stun::looks_like_stun(data) {
        if let Some(request) = BindingRequest::parse(data) {
            let password = password(data);
            assert!(!request.is_authentic(crypto(), &password), "made without the password");
            answers(&request, &password);
        }
    } else if rtp::looks_like_rtp_or_rtcp(data) && rtp::looks_like_rtcp(data) {
        read_rtcp(data);
    } else {
        read_rtp(data);
    }
}

/// The password of the one asked.
fn password(data: &[u8]) -> String {
    secret(data, 16).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request with these attributes, MESSAGE-INTEGRITY and FINGERPRINT (RFC 8489 §14.5, §14.7).
pub fn seal(attributes: &[u8], password: &str) -> Vec<u8> {
    let mut out = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    out.extend_from_slice(&[7; 12]);
    out.extend_from_slice(attributes);
    let length = |out: &mut Vec<u8>, more: usize| {
        let length = (out.len() - 20 + more) as u16;
        out[2..4].copy_from_slice(&length.to_be_bytes());
    };
    length(&mut out, 24);
    let mut mac = [0; 20];
    let mut hmac = crypto().new_hmac(HmacAlgorithm::Sha1, password.as_bytes()).expect("any key will do");
    hmac.sign(&[out.as_slice()], &mut mac).expect("any input will do");
    out.extend_from_slice(&[0, 8, 0, 20]);
    out.extend_from_slice(&mac);
    length(&mut out, 8);
    let crc = crc32fast::hash(&out) ^ 0x5354_554e;
    out.extend_from_slice(&[0x80, 0x28, 0, 4]);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

fn sealed(attributes: &[u8]) {
    let attributes = &attributes[..attributes.len().min(1400) / 4 * 4];
    let password = password(attributes);
    let bytes = seal(attributes, &password);
    let Some(request) = BindingRequest::parse(&bytes) else { return };
    answers(&request, &password);
    // Where the attributes bring a MESSAGE-INTEGRITY of their own, that is the one that counts, and it is a guess.
    let own = attributes.windows(4).any(|w| w == [0, 8, 0, 20]);
    assert!(own || request.is_authentic(crypto(), &password), "sealed with the password");
    assert!(!request.is_authentic(crypto(), "another"), "another password");
    // One flipped bit, wherever the input's length says.
    let mut flipped = bytes.clone();
    let at = attributes.iter().map(|b| usize::from(*b)).sum::<usize>() % flipped.len();
    flipped[at] ^= 1 << (at % 8);
    // A fingerprint is no secret: with a right one, only the password tells.
    let end = flipped.len() - 4;
    let crc = crc32fast::hash(&flipped[..end - 4]) ^ 0x5354_554e;
    flipped[end..].copy_from_slice(&crc.to_be_bytes());
    if flipped != bytes
        && let Some(request) = BindingRequest::parse(&flipped)
    {
        assert!(!request.is_authentic(crypto(), &password), "a changed byte, {at}");
    }
}

fn answers(request: &BindingRequest<'_>, password: &str) {
    for source in ["192.0.2.1:5", "[2001:db8::1]:65535"] {
        let source: SocketAddr = source.parse().expect("an address");
        for answer in [
            stun::binding_success(crypto(), &request.transaction, source, password),
            stun::role_conflict(crypto(), &request.transaction, password),
        ] {
            assert!(stun::looks_like_stun(&answer) && answer.len() <= 96);
            assert_eq!(usize::from(u16::from_be_bytes([answer[2], answer[3]])), answer.len() - 20);
            assert!(BindingRequest::parse(&answer).is_none(), "an answer is no request");
        }
    }
}

fn read_rtp(data: &[u8]) {
    let Some(mut header) = RtpHeader::parse(data) else { return };
    assert!(header.payload.start <= header.payload.end && header.payload.end == data.len());
    let start = header.payload.start;
    let extensions: Vec<_> = header.extensions(data).collect();
    assert!(extensions.len() <= data.len());
    let block = data.as_ptr() as usize..data.as_ptr() as usize + start;
    for (id, value) in &extensions {
        assert!(value.len() <= 255 && *id != 0);
        let at = value.as_ptr() as usize;
        assert!(
            value.is_empty() || block.contains(&at) && at + value.len() <= block.end,
            "outside the header"
        );
        assert!(header.extension(data, *id).is_some());
    }
    assert!(header.extension(data, 0).is_none(), "id 0 is padding");
    if header.strip_padding(data) {
        assert!(header.payload.start == start && header.payload.end <= data.len());
        let _ = &data[header.payload.clone()];
    }
    // Written anew and read again: the same.
    let new = NewHeader {
        marker: header.marker,
        payload_type: header.payload_type,
        sequence: header.sequence,
        timestamp: header.timestamp,
        ssrc: header.ssrc,
    };
    let fits = |(id, value): &&(u8, &[u8])| (1..=14).contains(id) && (1..=16).contains(&value.len());
    let kept: Vec<_> = extensions.iter().filter(fits).take(14).copied().collect();
    let mut out = vec![9; 5];
    let mut writer = HeaderWriter::new(&mut out, &new);
    for (id, value) in &kept {
        writer.extension(*id, value);
    }
    writer.finish();
    out.extend_from_slice(&data[header.payload.clone()]);
    let written = &out[5..];
    let again = RtpHeader::parse(written).expect("what is written reads");
    assert_eq!(
        (again.marker, again.payload_type, again.sequence, again.timestamp, again.ssrc),
        (new.marker, new.payload_type, new.sequence, new.timestamp, new.ssrc)
    );
    assert_eq!(again.extensions(written).collect::<Vec<_>>(), kept);
    assert_eq!(written[again.payload.clone()], data[header.payload]);
}

fn read_rtcp(data: &[u8]) {
    let mut count = 0;
    for packet in rtcp::parse(data) {
        count += 1;
        let mut out = Vec::new();
        match packet {
            Rtcp::SenderReport { blocks, .. } | Rtcp::ReceiverReport { blocks } => {
                let blocks: Vec<_> = rtcp::report_blocks(blocks).collect();
                assert!(blocks.len() * 24 <= data.len());
                rtcp::write_receiver_report(&mut out, 1, &blocks);
                let again: Vec<_> = rtcp::parse(&out)
                    .flat_map(|packet| match packet {
                        Rtcp::ReceiverReport { blocks } => rtcp::report_blocks(blocks).collect::<Vec<_>>(),
                        other => panic!("{other:?} instead of reports"),
                    })
                    .collect();
                assert_eq!(again, blocks);
            }
            Rtcp::Nack { media, pairs } => {
                let wanted: Vec<_> = rtcp::nack_sequences(pairs).collect();
                assert!(wanted.len() <= pairs.len() / 4 * 17, "at most 17 packets a pair");
                let mut input = Input::new(pairs);
                let pairs: Vec<_> = (0..pairs.len() / 4)
                    .map(|_| roomlog_sfu::NackPair { first: input.word(), mask: input.word() })
                    .collect();
                rtcp::write_nack(&mut out, 1, media, &pairs);
                match rtcp::parse(&out).next() {
                    Some(Rtcp::Nack { media: again, pairs }) => {
                        assert_eq!(again, media);
                        assert_eq!(rtcp::nack_sequences(pairs).collect::<Vec<_>>(), wanted);
                    }
                    other => panic!("{other:?} instead of a NACK"),
                }
            }
            Rtcp::Pli { media } => {
                rtcp::write_pli(&mut out, 1, media);
                assert_eq!(rtcp::parse(&out).collect::<Vec<_>>(), [packet]);
            }
            Rtcp::Fir { media } => {
                rtcp::write_fir(&mut out, 1, media, 2);
                assert_eq!(rtcp::parse(&out).collect::<Vec<_>>(), [packet]);
            }
            Rtcp::TransportCc { body } => {
                // A run of at most 2^13 - 1 packets in each chunk of two bytes, and a count of 16 bits over all.
                let missing = rtcp::missing_transport_cc(body).count();
                assert!(missing <= (body.len() / 2 * 8_191).min(65_535), "{missing} missing");
            }
            Rtcp::Bye { .. } | Rtcp::Other => {}
        }
    }
    assert!(count * 4 <= data.len());
}
