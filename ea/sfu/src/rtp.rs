//! RTP headers: read where they lie, write anew for each receiver (RFC 3550 §5.1, header extensions RFC 8285).

use std::ops::Range;

/// Bytes of the fixed header.
pub const FIXED_HEADER: usize = 12;

/// Profile of one-byte header extensions (RFC 8285 §4.2).
const ONE_BYTE: u16 = 0xBEDE;

/// Whether a datagram can be RTP or RTCP: version 2 and first byte 128 to 191 (RFC 7983 §7).
pub fn looks_like_rtp_or_rtcp(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(128..=191))
}

/// Whether such a datagram is RTCP: second byte 192 to 223 (RFC 5761 §4).
pub fn looks_like_rtcp(bytes: &[u8]) -> bool {
    matches!(bytes.get(1), Some(192..=223))
}

/// The places of the parts of one RTP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtpHeader {
    /// Marker bit.
    pub marker: bool,
    /// Payload type.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// Timestamp, in units of the codec's clock.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
    profile: u16,
    extensions: Range<usize>,
    padded: bool,
    /// Where the payload lies; before [`RtpHeader::strip_padding`] the padding is still part of it.
    pub payload: Range<usize>,
}

impl RtpHeader {
    /// Reads the header, which is in the clear also in SRTP.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let fixed: &[u8; FIXED_HEADER] = bytes.first_chunk()?;
        if fixed[0] >> 6 != 2 {
            return None;
        }
        let csrcs = usize::from(fixed[0] & 0x0f);
        let mut at = FIXED_HEADER + 4 * csrcs;
        let mut profile = 0;
        let mut extensions = at..at;
        if fixed[0] & 0x10 != 0 {
            let head: &[u8; 4] = bytes.get(at..)?.first_chunk()?;
            profile = u16::from_be_bytes([head[0], head[1]]);
            let length = 4 * usize::from(u16::from_be_bytes([head[2], head[3]]));
            extensions = at + 4..at + 4 + length;
            at = extensions.end;
        }
        if at > bytes.len() {
            return None;
        }
        Some(Self {
            marker: fixed[1] & 0x80 != 0,
            payload_type: fixed[1] & 0x7f,
            sequence: u16::from_be_bytes([fixed[2], fixed[3]]),
            timestamp: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ssrc: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            profile,
            extensions,
            padded: fixed[0] & 0x20 != 0,
            payload: at..bytes.len(),
        })
    }

    /// Takes the padding off the payload of a decrypted packet; false when its length makes no sense (RFC 3550 §5.1).
    pub fn strip_padding(&mut self, bytes: &[u8]) -> bool {
        self.payload.end = bytes.len();
        if self.padded {
            let count = bytes.last().copied().map_or(0, usize::from);
            if count == 0 || count > self.payload.len() {
                return false;
            }
            self.payload.end -= count;
            self.padded = false;
        }
        true
    }

    /// The header extensions as `(id, value)`.
    pub fn extensions<'a>(&self, bytes: &'a [u8]) -> Extensions<'a> {
        let rest = match self.profile {
            ONE_BYTE | 0x1000..=0x100f => bytes.get(self.extensions.clone()).unwrap_or_default(),
            _ => &[],
        };
        Extensions { rest, two_byte: self.profile != ONE_BYTE }
    }

    /// The value of one extension; id 0 stands for "not negotiated".
    pub fn extension<'a>(&self, bytes: &'a [u8], id: u8) -> Option<&'a [u8]> {
        if id == 0 {
            return None;
        }
        self.extensions(bytes).find(|(found, _)| *found == id).map(|(_, value)| value)
    }
}

/// Iterator over header extensions; ends early at anything malformed.
pub struct Extensions<'a> {
    rest: &'a [u8],
    two_byte: bool,
}

impl<'a> Iterator for Extensions<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&first, rest) = self.rest.split_first()?;
            if first == 0 {
                self.rest = rest;
                continue;
            }
            let (id, length, rest) = if self.two_byte {
                let (&length, rest) = rest.split_first()?;
                (first, usize::from(length), rest)
            } else if matches!(first >> 4, 0 | 15) {
                // RFC 8285 §4.2: id 15 ends the block, and so does id 0 with a length, which nothing may have.
                self.rest = &[];
                return None;
            } else {
                (first >> 4, usize::from(first & 0x0f) + 1, rest)
            };
            let value = rest.get(..length)?;
            self.rest = &rest[length..];
            return Some((id, value));
        }
    }
}

/// The fields of a header to be written.
#[derive(Debug, Clone, Copy)]
pub struct NewHeader {
    /// Marker bit.
    pub marker: bool,
    /// Payload type.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// Timestamp.
    pub timestamp: u32,
    /// Synchronisation source.
    pub ssrc: u32,
}

/// Writes an RTP header with one-byte extensions behind what `out` holds.
pub struct HeaderWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    extensions: bool,
}

impl<'a> HeaderWriter<'a> {
    /// Writes the fixed part.
    pub fn new(out: &'a mut Vec<u8>, header: &NewHeader) -> Self {
        let start = out.len();
        out.push(0x80);
        out.push(u8::from(header.marker) << 7 | header.payload_type & 0x7f);
        out.extend_from_slice(&header.sequence.to_be_bytes());
        out.extend_from_slice(&header.timestamp.to_be_bytes());
        out.extend_from_slice(&header.ssrc.to_be_bytes());
        Self { out, start, extensions: false }
    }

    /// Adds an extension. What a one-byte element cannot carry (id 0 or above 14, empty or longer than 16 bytes) is left out.
    pub fn extension(&mut self, id: u8, value: &[u8]) -> &mut Self {
        if !(1..=14).contains(&id) || value.is_empty() || value.len() > 16 {
            return self;
        }
        if !self.extensions {
            self.extensions = true;
            self.out[self.start] |= 0x10;
            self.out.extend_from_slice(&ONE_BYTE.to_be_bytes());
            self.out.extend_from_slice(&[0, 0]);
        }
        self.out.push(id << 4 | (value.len() - 1) as u8);
        self.out.extend_from_slice(value);
        self
    }

    /// Pads the extensions to whole words and sets their length.
    pub fn finish(self) {
        if !self.extensions {
            return;
        }
        let block = self.start + FIXED_HEADER + 4;
        while !(self.out.len() - block).is_multiple_of(4) {
            self.out.push(0);
        }
        // A producer may repeat an extension, but all that is passed on came in one datagram: far below 65 536 words.
        let words = ((self.out.len() - block) / 4) as u16;
        self.out[block - 2..block].copy_from_slice(&words.to_be_bytes());
    }
}

/// Unrolls 16-bit sequence numbers (or anything of 16 bits that wraps) into 64 bits.
#[derive(Debug, Clone, Default)]
pub struct Unroller {
    highest: Option<u64>,
}

impl Unroller {
    /// The place of `value` nearest to the highest seen. Starts in the second cycle, so that late packets never go below zero.
    pub fn peek(&self, value: u16) -> u64 {
        match self.highest {
            None => 0x1_0000 + u64::from(value),
            Some(highest) => {
                let delta = value.wrapping_sub(highest as u16) as i16;
                highest.saturating_add_signed(i64::from(delta))
            }
        }
    }

    /// As [`Unroller::peek`], and remembers the highest.
    pub fn unroll(&mut self, value: u16) -> u64 {
        let place = self.peek(value);
        if self.highest.is_none_or(|highest| place > highest) {
            self.highest = Some(place);
        }
        place
    }

    /// The highest place so far.
    pub fn highest(&self) -> Option<u64> {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = vec![0xff; 3];
        let header =
            NewHeader { marker: true, payload_type: 101, sequence: 65535, timestamp: 7, ssrc: 0xdead_beef };
        let mut writer = HeaderWriter::new(&mut out, &header);
        writer.extension(4, b"m0").extension(15, b"no").extension(3, &[0, 1, 2]);
        writer.finish();
        out.extend_from_slice(b"payload");
        out.split_off(3)
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let bytes = sample();
        let mut header = RtpHeader::parse(&bytes).unwrap();
        assert!(header.strip_padding(&bytes));
        assert_eq!((header.marker, header.payload_type, header.sequence), (true, 101, 65535));
        assert_eq!((header.timestamp, header.ssrc), (7, 0xdead_beef));
        assert_eq!(header.extension(&bytes, 4), Some(&b"m0"[..]));
        assert_eq!(header.extension(&bytes, 3), Some(&[0, 1, 2][..]));
        assert_eq!(header.extension(&bytes, 15), None, "id 15 cannot stand in a one-byte element");
        assert_eq!(&bytes[header.payload], b"payload");
    }

    #[test]
    fn an_extension_with_id_0_and_a_length_ends_the_block() {
        let extensions = |rest: &'static [u8]| Extensions { rest, two_byte: false }.collect::<Vec<_>>();
        assert_eq!(extensions(&[0x10, 7, 0, 0x20, 8, 0x01, 9, 9, 0x30, 1]), [(1, &[7][..]), (2, &[8][..])]);
    }

    #[test]
    fn padding_is_taken_off_and_absurd_padding_refused() {
        let mut bytes = sample();
        bytes[0] |= 0x20;
        bytes.extend_from_slice(&[0, 0, 3]);
        let mut header = RtpHeader::parse(&bytes).unwrap();
        assert!(header.strip_padding(&bytes));
        assert_eq!(&bytes[header.payload.clone()], b"payload");
        for absurd in [0, 200] {
            *bytes.last_mut().unwrap() = absurd;
            let mut header = RtpHeader::parse(&bytes).unwrap();
            assert!(!header.strip_padding(&bytes), "{absurd} bytes of padding");
        }
    }

    #[test]
    fn truncated_and_mutated_packets_never_panic() {
        let whole = sample();
        for cut in 0..whole.len() {
            for at in 0..cut {
                for value in [0, 0x0f, 0x7f, 0xff] {
                    let mut bytes = whole[..cut].to_vec();
                    bytes[at] = value;
                    if let Some(mut header) = RtpHeader::parse(&bytes) {
                        header.strip_padding(&bytes);
                        let _ = header.extensions(&bytes).count();
                        let _ = &bytes[header.payload];
                    }
                }
            }
        }
    }

    #[test]
    fn sequence_numbers_unroll_over_the_wrap_and_back() {
        let mut unroller = Unroller::default();
        let start = unroller.unroll(65534);
        assert_eq!(unroller.unroll(65535), start + 1);
        assert_eq!(unroller.unroll(1), start + 3);
        assert_eq!(unroller.unroll(0), start + 2, "late");
        assert_eq!(unroller.unroll(2), start + 4);
    }
}
