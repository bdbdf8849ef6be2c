//! What the worker has to know of the inside of a payload: where key frames begin, and VP8's picture numbers.

/// The codecs that are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// RFC 7741.
    Vp8,
    /// RFC 6184.
    H264,
    /// Passed through; every packet may be the first.
    Opaque,
}

impl Codec {
    /// By MIME type.
    pub fn of(mime_type: &str) -> Self {
        match mime_type.to_ascii_lowercase().as_str() {
            "video/vp8" => Self::Vp8,
            "video/h264" => Self::H264,
            _ => Self::Opaque,
        }
    }

    /// Whether a decoder can begin with this packet.
    pub fn begins_key_frame(self, payload: &[u8]) -> bool {
        match self {
            Self::Opaque => true,
            Self::Vp8 => Vp8::parse(payload).is_some_and(|vp8| vp8.begins_key_frame),
            Self::H264 => h264_parameter_set(payload).unwrap_or(false),
        }
    }
}

/// Whether a packet carries a sequence parameter set, which encoders for the web put before every IDR picture. An IDR slice alone is
/// no beginning: without the parameter set it cannot be decoded.
fn h264_parameter_set(payload: &[u8]) -> Option<bool> {
    const SPS: u8 = 7;
    const STAP_A: u8 = 24;
    const FU_A: u8 = 28;
    let kind = payload.first()? & 0x1f;
    Some(match kind {
        SPS => true,
        FU_A => {
            let head = *payload.get(1)?;
            head & 0x80 != 0 && head & 0x1f == SPS
        }
        STAP_A => {
            let mut rest = &payload[1..];
            while let Some(size) = rest.first_chunk::<2>() {
                let end = 2 + usize::from(u16::from_be_bytes(*size));
                if rest.get(2).is_some_and(|b| b & 0x1f == SPS) {
                    return Some(true);
                }
                rest = rest.get(end..)?;
            }
            false
        }
        _ => false,
    })
}

/// The parts of a VP8 payload descriptor that the worker reads or changes (RFC 7741 §4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vp8 {
    /// First packet of a key frame.
    pub begins_key_frame: bool,
    /// Picture id, where it lies, and whether it has 15 bits.
    picture_id: Option<(u16, usize, bool)>,
    /// Index of the last base layer picture, and where it lies.
    tl0_index: Option<(u8, usize)>,
}

impl Vp8 {
    /// Reads a descriptor.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let first = *payload.first()?;
        let mut at = 1;
        let (mut picture_id, mut tl0_index) = (None, None);
        if first & 0x80 != 0 {
            let present = *payload.get(at)?;
            at += 1;
            if present & 0x80 != 0 {
                let high = *payload.get(at)?;
                if high & 0x80 != 0 {
                    let low = *payload.get(at + 1)?;
                    picture_id = Some((u16::from(high & 0x7f) << 8 | u16::from(low), at, true));
                    at += 2;
                } else {
                    picture_id = Some((u16::from(high), at, false));
                    at += 1;
                }
            }
            if present & 0x40 != 0 {
                tl0_index = Some((*payload.get(at)?, at));
                at += 1;
            }
            if present & 0x30 != 0 {
                at += 1;
            }
        }
        let frame = *payload.get(at)?;
        // S is set, partition 0, and the inverse key frame flag of the frame header (RFC 6386 §9.1) is clear.
        let begins_key_frame = first & 0x17 == 0x10 && frame & 1 == 0;
        Some(Self { begins_key_frame, picture_id, tl0_index })
    }
}

/// Keeps VP8 picture numbers going up without a jump over a switch of layers; decoders take a step back for a late frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vp8Numbers {
    picture: u16,
    tl0: u8,
    last_picture: u16,
    last_tl0: u8,
    started: bool,
}

/// What to add to the numbers of one packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vp8Shift {
    picture: u16,
    tl0: u8,
}

impl Vp8Numbers {
    /// Another stream begins with this packet.
    pub fn switch(&mut self, vp8: &Vp8) {
        if !self.started {
            return;
        }
        if let Some((id, ..)) = vp8.picture_id {
            self.picture = self.last_picture.wrapping_add(1).wrapping_sub(id);
        }
        if let Some((index, _)) = vp8.tl0_index {
            self.tl0 = self.last_tl0.wrapping_add(1).wrapping_sub(index);
        }
    }

    /// The shift for a packet; `newest` when it is no late one.
    pub fn shift(&mut self, vp8: &Vp8, newest: bool) -> Vp8Shift {
        let shift = Vp8Shift { picture: self.picture, tl0: self.tl0 };
        if newest {
            self.started = true;
            if let Some((id, ..)) = vp8.picture_id {
                self.last_picture = id.wrapping_add(shift.picture);
            }
            if let Some((index, _)) = vp8.tl0_index {
                self.last_tl0 = index.wrapping_add(shift.tl0);
            }
        }
        shift
    }
}

impl Vp8Shift {
    /// Changes the numbers in a payload.
    pub fn apply(self, payload: &mut [u8]) {
        if self == Self::default() {
            return;
        }
        let Some(vp8) = Vp8::parse(payload) else { return };
        if let Some((id, at, long)) = vp8.picture_id {
            let id = id.wrapping_add(self.picture);
            if long {
                payload[at] = 0x80 | (id >> 8) as u8;
                payload[at + 1] = id as u8;
            } else {
                payload[at] = id as u8 & 0x7f;
            }
        }
        if let Some((index, at)) = vp8.tl0_index {
            payload[at] = index.wrapping_add(self.tl0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// X, I and L set, 15-bit picture id, then a key frame.
    fn vp8(picture: u16, tl0: u8, key: bool) -> Vec<u8> {
        vec![0x90, 0xc0, 0x80 | (picture >> 8) as u8, picture as u8, tl0, u8::from(!key), 1, 2]
    }

    #[test]
    fn key_frames_are_known_by_their_first_packet() {
        assert!(Codec::Vp8.begins_key_frame(&vp8(1, 1, true)));
        assert!(!Codec::Vp8.begins_key_frame(&vp8(1, 1, false)));
        assert!(!Codec::Vp8.begins_key_frame(&[0x00, 0x00]), "no start of a partition");
        assert!(Codec::Vp8.begins_key_frame(&[0x10, 0x00]), "short descriptor");
        assert!(Codec::H264.begins_key_frame(&[0x67, 1, 2]), "SPS");
        assert!(Codec::H264.begins_key_frame(&[0x78, 0, 1, 0x09, 0, 2, 0x67, 0]), "SPS second in a STAP-A");
        assert!(Codec::H264.begins_key_frame(&[0x7c, 0x87]), "first fragment of an SPS");
        assert!(!Codec::H264.begins_key_frame(&[0x65, 1]), "IDR without its SPS");
        assert!(!Codec::H264.begins_key_frame(&[0x41, 1]));
    }

    #[test]
    fn picture_numbers_go_on_over_a_switch_and_a_wrap() {
        let mut numbers = Vp8Numbers::default();
        let mut seen = Vec::new();
        let mut send = |numbers: &mut Vp8Numbers, bytes: &mut Vec<u8>, switch: bool| {
            let parsed = Vp8::parse(bytes).unwrap();
            if switch {
                numbers.switch(&parsed);
            }
            numbers.shift(&parsed, true).apply(bytes);
            let after = Vp8::parse(bytes).unwrap();
            seen.push((after.picture_id.unwrap().0, after.tl0_index.unwrap().0));
        };
        send(&mut numbers, &mut vp8(0x7fff, 255, true), true);
        send(&mut numbers, &mut vp8(100, 7, true), true);
        send(&mut numbers, &mut vp8(101, 8, false), false);
        send(&mut numbers, &mut vp8(5000, 90, true), true);
        assert_eq!(seen, [(0x7fff, 255), (0, 0), (1, 1), (2, 2)]);
    }

    #[test]
    fn short_payloads_never_panic() {
        let whole = vp8(300, 3, true);
        for cut in 0..whole.len() {
            for value in 0..=255u8 {
                let mut bytes = whole[..cut].to_vec();
                if let Some(first) = bytes.first_mut() {
                    *first = value;
                }
                for codec in [Codec::Vp8, Codec::H264, Codec::Opaque] {
                    codec.begins_key_frame(&bytes);
                }
                Vp8Shift { picture: 9, tl0: 9 }.apply(&mut bytes);
            }
        }
    }
}
