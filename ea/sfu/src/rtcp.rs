//! RTCP: reads the packets of a compound and writes those the worker sends (RFC 3550 §6, RFC 4585, RFC 5104).

use crate::nack::NackPair;

const SR: u8 = 200;
const RR: u8 = 201;
const SDES: u8 = 202;
const BYE: u8 = 203;
const RTPFB: u8 = 205;
const PSFB: u8 = 206;

/// One report block (RFC 3550 §6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReportBlock {
    /// Whose packets are reported on.
    pub ssrc: u32,
    /// Share of packets lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Packets lost in all; negative with duplicates.
    pub lost: i32,
    /// Highest sequence number with its cycles.
    pub highest: u32,
    /// Jitter, in units of the codec's clock.
    pub jitter: u32,
    /// Middle 32 bits of the NTP time of the last sender report.
    pub last_sr: u32,
    /// Time since that arrived, in 1/65536 s.
    pub delay: u32,
}

/// One packet of a compound; lists are iterated where they lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rtcp<'a> {
    /// Sender report.
    SenderReport {
        /// The sender.
        ssrc: u32,
        /// NTP time, 32.32.
        ntp: u64,
        /// The same instant in units of the codec's clock.
        rtp: u32,
        /// Report blocks, see [`report_blocks`].
        blocks: &'a [u8],
    },
    /// Receiver report.
    ReceiverReport {
        /// Report blocks, see [`report_blocks`].
        blocks: &'a [u8],
    },
    /// Lost packets to be sent again, see [`nack_sequences`].
    Nack {
        /// Of which source.
        media: u32,
        /// Pairs of packet id and bit mask.
        pairs: &'a [u8],
    },
    /// Which of the packets sent arrived and when, see [`missing_transport_cc`].
    TransportCc {
        /// What stands behind the SSRCs.
        body: &'a [u8],
    },
    /// Picture loss: a key frame is wanted.
    Pli {
        /// Of which source.
        media: u32,
    },
    /// Full intra request: a key frame is wanted.
    Fir {
        /// Of which source; the first entry, more are not sent in practice.
        media: u32,
    },
    /// Goodbye.
    Bye {
        /// Who leaves.
        ssrc: u32,
    },
    /// What is of no use here.
    Other,
}

/// The packets of a compound, as long as they make sense.
pub fn parse(mut rest: &[u8]) -> impl Iterator<Item = Rtcp<'_>> {
    std::iter::from_fn(move || {
        let head: &[u8; 4] = rest.first_chunk()?;
        if head[0] >> 6 != 2 {
            return None;
        }
        let length = 4 * (usize::from(u16::from_be_bytes([head[2], head[3]])) + 1);
        let packet = rest.get(..length)?;
        rest = &rest[length..];
        Some(one(packet, head[0] & 0x1f, head[1]))
    })
}

fn one(packet: &[u8], count: u8, kind: u8) -> Rtcp<'_> {
    let word = |at: usize| packet.get(at..at + 4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    let read = || {
        Some(match (kind, count) {
            (SR, _) => Rtcp::SenderReport {
                ssrc: word(4)?,
                ntp: u64::from(word(8)?) << 32 | u64::from(word(12)?),
                rtp: word(16)?,
                blocks: packet.get(28..)?,
            },
            (RR, _) => Rtcp::ReceiverReport { blocks: packet.get(8..)? },
            (BYE, 1..) => Rtcp::Bye { ssrc: word(4)? },
            (RTPFB, 1) => Rtcp::Nack { media: word(8)?, pairs: packet.get(12..)? },
            (RTPFB, 15) => Rtcp::TransportCc { body: packet.get(12..)? },
            (PSFB, 1) => Rtcp::Pli { media: word(8)? },
            (PSFB, 4) => Rtcp::Fir { media: word(12)? },
            _ => Rtcp::Other,
        })
    };
    read().unwrap_or(Rtcp::Other)
}

/// The report blocks of a sender or receiver report.
pub fn report_blocks(blocks: &[u8]) -> impl Iterator<Item = ReportBlock> + '_ {
    blocks.chunks_exact(24).map(|b| {
        let word = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        ReportBlock {
            ssrc: word(0),
            fraction_lost: b[4],
            // 24 bits with a sign: shifted up and back, so that the sign spreads.
            lost: ((word(4) << 8) as i32) >> 8,
            highest: word(8),
            jitter: word(12),
            last_sr: word(16),
            delay: word(20),
        }
    })
}

/// The sequence numbers a NACK asks for (RFC 4585 §6.2.1).
pub fn nack_sequences(pairs: &[u8]) -> impl Iterator<Item = u16> + '_ {
    pairs.chunks_exact(4).flat_map(|pair| {
        let first = u16::from_be_bytes([pair[0], pair[1]]);
        let mask = u16::from_be_bytes([pair[2], pair[3]]);
        std::iter::once(first).chain(
            (0..16).filter(move |bit| mask >> bit & 1 == 1).map(move |bit| first.wrapping_add(bit + 1)),
        )
    })
}

/// The transport-wide sequence numbers that a feedback says have not arrived
/// (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1). A feedback ends with a packet that has, so each of these was overtaken.
pub fn missing_transport_cc(body: &[u8]) -> impl Iterator<Item = u16> + '_ {
    let word = |at: usize| body.get(at..at + 2).map_or(0, |w| u16::from_be_bytes([w[0], w[1]]));
    let (base, count) = (word(0), word(2));
    // Symbols by chunk: a run of one symbol, fourteen of one bit, or seven of two bits; only 0 is "not received".
    let symbols = body.get(8..).unwrap_or_default().chunks_exact(2).flat_map(|chunk| {
        let chunk = u16::from_be_bytes([chunk[0], chunk[1]]);
        let (length, bits) = match chunk >> 14 {
            0b10 => (14, 1),
            0b11 => (7, 2),
            _ => (chunk & 0x1fff, 0),
        };
        (0..length).map(move |i| match bits {
            0 => chunk >> 13 & 0b11 != 0,
            bits => chunk >> (14 - bits * (i + 1)) & ((1 << bits) - 1) != 0,
        })
    });
    // What lies behind the chunks are arrival times: `count` keeps them from being read as chunks.
    (0..count).zip(symbols).filter(|(_, arrived)| !arrived).map(move |(i, _)| base.wrapping_add(i))
}

fn begin(out: &mut Vec<u8>, count: u8, kind: u8) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0x80 | count, kind, 0, 0]);
    at
}

fn end(out: &mut Vec<u8>, at: usize) {
    while !(out.len() - at).is_multiple_of(4) {
        out.push(0);
    }
    let words = ((out.len() - at) / 4 - 1) as u16;
    out[at + 2..at + 4].copy_from_slice(&words.to_be_bytes());
}

/// Appends a sender report without blocks and the SDES with the canonical name that goes with it.
pub fn write_sender_report(
    out: &mut Vec<u8>,
    ssrc: u32,
    ntp: u64,
    rtp: u32,
    packets: u32,
    bytes: u32,
    cname: &str,
) {
    let at = begin(out, 0, SR);
    out.extend_from_slice(&ssrc.to_be_bytes());
    out.extend_from_slice(&ntp.to_be_bytes());
    for word in [rtp, packets, bytes] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    end(out, at);
    write_sdes(out, ssrc, cname);
}

/// Appends an SDES chunk with a canonical name (RFC 3550 §6.5.1).
pub fn write_sdes(out: &mut Vec<u8>, ssrc: u32, cname: &str) {
    let cname = &cname.as_bytes()[..cname.len().min(255)];
    let at = begin(out, 1, SDES);
    out.extend_from_slice(&ssrc.to_be_bytes());
    out.push(1);
    out.push(cname.len() as u8);
    out.extend_from_slice(cname);
    out.push(0);
    end(out, at);
}

/// Appends a receiver report; at most 31 blocks fit.
pub fn write_receiver_report(out: &mut Vec<u8>, ssrc: u32, blocks: &[ReportBlock]) {
    for blocks in blocks.chunks(31) {
        let at = begin(out, blocks.len() as u8, RR);
        out.extend_from_slice(&ssrc.to_be_bytes());
        for block in blocks {
            out.extend_from_slice(&block.ssrc.to_be_bytes());
            let lost = (block.lost.clamp(-0x80_0000, 0x7f_ffff) as u32) & 0xff_ffff;
            out.extend_from_slice(&(u32::from(block.fraction_lost) << 24 | lost).to_be_bytes());
            for word in [block.highest, block.jitter, block.last_sr, block.delay] {
                out.extend_from_slice(&word.to_be_bytes());
            }
        }
        end(out, at);
    }
}

/// Appends a NACK (RFC 4585 §6.2.1).
pub fn write_nack(out: &mut Vec<u8>, sender: u32, media: u32, pairs: &[NackPair]) {
    let at = begin(out, 1, RTPFB);
    out.extend_from_slice(&sender.to_be_bytes());
    out.extend_from_slice(&media.to_be_bytes());
    for pair in pairs {
        out.extend_from_slice(&pair.first.to_be_bytes());
        out.extend_from_slice(&pair.mask.to_be_bytes());
    }
    end(out, at);
}

/// Appends a picture loss indication (RFC 4585 §6.3.1).
pub fn write_pli(out: &mut Vec<u8>, sender: u32, media: u32) {
    let at = begin(out, 1, PSFB);
    out.extend_from_slice(&sender.to_be_bytes());
    out.extend_from_slice(&media.to_be_bytes());
    end(out, at);
}

/// Appends a full intra request (RFC 5104 §4.3.1).
pub fn write_fir(out: &mut Vec<u8>, sender: u32, media: u32, command: u8) {
    let at = begin(out, 4, PSFB);
    out.extend_from_slice(&sender.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&media.to_be_bytes());
    out.extend_from_slice(&[command, 0, 0, 0]);
    end(out, at);
}

/// Appends transport-wide congestion feedback whose body [`crate::twcc`] made; padded as RFC 3550 §6.4.1 asks.
pub fn write_transport_cc(out: &mut Vec<u8>, sender: u32, media: u32, body: &[u8]) {
    let at = begin(out, 15, RTPFB);
    out.extend_from_slice(&sender.to_be_bytes());
    out.extend_from_slice(&media.to_be_bytes());
    out.extend_from_slice(body);
    let padding = (4 - body.len() % 4) % 4;
    if padding > 0 {
        out[at] |= 0x20;
        out.resize(out.len() + padding - 1, 0);
        out.push(padding as u8);
    }
    end(out, at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compound_is_read_back_packet_by_packet() {
        let block = ReportBlock {
            ssrc: 5,
            fraction_lost: 128,
            lost: -3,
            highest: 70_000,
            jitter: 9,
            last_sr: 1,
            delay: 2,
        };
        let mut out = Vec::new();
        write_sender_report(&mut out, 1, 0x0102_0304_0506_0708, 90, 10, 1000, "someone");
        write_receiver_report(&mut out, 2, &[block]);
        write_nack(&mut out, 2, 5, &[NackPair { first: 65534, mask: 0b101 }]);
        write_pli(&mut out, 2, 6);
        write_fir(&mut out, 2, 7, 1);
        let seen: Vec<_> = parse(&out).collect();
        assert_eq!(seen.len(), 6);
        assert!(matches!(
            seen[0],
            Rtcp::SenderReport { ssrc: 1, ntp: 0x0102_0304_0506_0708, rtp: 90, blocks: [] }
        ));
        let Rtcp::ReceiverReport { blocks } = seen[2] else { panic!("{:?}", seen[2]) };
        assert_eq!(report_blocks(blocks).collect::<Vec<_>>(), [block]);
        let Rtcp::Nack { media: 5, pairs } = seen[3] else { panic!("{:?}", seen[3]) };
        assert_eq!(nack_sequences(pairs).collect::<Vec<_>>(), [65534, 65535, 1]);
        assert_eq!((seen[4], seen[5]), (Rtcp::Pli { media: 6 }, Rtcp::Fir { media: 7 }));
    }

    #[test]
    fn what_a_feedback_misses_is_read_from_every_kind_of_chunk() {
        // Seven packets in two bits each, a run of three missing, a run of two that came, and fourteen in one bit of which twelve count.
        let chunks = [0b11_01_00_10_01_00_01_01u16, 3, 1 << 13 | 2, 0b1010_1111_1111_1001];
        let mut body = Vec::new();
        for word in [65_530, 7 + 3 + 2 + 12, 0, 0].into_iter().chain(chunks) {
            body.extend_from_slice(&word.to_be_bytes());
        }
        // Arrival times, which must not be taken for chunks.
        body.extend_from_slice(&[0; 40]);
        let missing: Vec<u16> = missing_transport_cc(&body).collect();
        assert_eq!(missing, [65_531, 65_534, 1, 2, 3, 7, 17]);
        for cut in 0..body.len() {
            assert!(missing_transport_cc(&body[..cut]).count() <= missing.len() + 24);
        }
    }

    #[test]
    fn truncated_and_mutated_compounds_never_panic() {
        let mut whole = Vec::new();
        write_sender_report(&mut whole, 1, 2, 3, 4, 5, "x");
        write_nack(&mut whole, 2, 5, &[NackPair { first: 1, mask: 1 }]);
        write_fir(&mut whole, 1, 2, 3);
        for cut in 0..=whole.len() {
            for at in 0..cut {
                for value in [0x00, 0x81, 0xcd, 0xff] {
                    let mut bytes = whole[..cut].to_vec();
                    bytes[at] = value;
                    for packet in parse(&bytes) {
                        if let Rtcp::Nack { pairs, .. } = packet {
                            let _ = nack_sequences(pairs).count();
                        }
                        if let Rtcp::SenderReport { blocks, .. } | Rtcp::ReceiverReport { blocks } = packet {
                            let _ = report_blocks(blocks).count();
                        }
                    }
                }
            }
        }
    }
}
