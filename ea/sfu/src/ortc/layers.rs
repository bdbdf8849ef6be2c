//! Layers: `scalabilityMode`, and what kind of consumer a producer makes.

use roomlog_bus::ortc::{ConsumerType, RtpCodecParameters, RtpEncodingParameters, RtpParameters};

use super::codecs::Codec;

/// `L3T3_KEY` and its like (W3C "Scalable Video Coding (SVC) Extension for WebRTC", §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScalabilityMode {
    /// Spatial layers, 1 to 99.
    pub spatial_layers: u8,
    /// Temporal layers, 1 to 99.
    pub temporal_layers: u8,
    /// Upper spatial layers lean on lower ones at key frames only.
    pub key_only: bool,
}

impl ScalabilityMode {
    /// One layer of each.
    pub const SINGLE: Self = Self { spatial_layers: 1, temporal_layers: 1, key_only: false };

    /// Reads a mode; what is absent or not understood means one layer. What follows the mode (`h`, `_SHIFT`) is not looked at.
    pub fn parse(text: Option<&str>) -> Self {
        Self::try_parse(text.unwrap_or_default()).unwrap_or(Self::SINGLE)
    }

    fn try_parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(['L', 'S'])?;
        let (spatial_layers, rest) = layers(rest)?;
        let (temporal_layers, rest) = layers(rest.strip_prefix('T')?)?;
        Some(Self { spatial_layers, temporal_layers, key_only: rest.starts_with("_KEY") })
    }
}

/// A number of one or two digits without leading zero, and what follows it.
fn layers(text: &str) -> Option<(u8, &str)> {
    let digits = text.bytes().take(2).take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    if number.starts_with('0') { None } else { Some((number.parse().ok()?, rest)) }
}

/// The codec an encoding uses: its own, else the first media codec.
pub(super) fn codec_of<'a>(
    params: &'a RtpParameters,
    encoding: &RtpEncodingParameters,
) -> Option<&'a RtpCodecParameters> {
    params.codecs.iter().find(|codec| match encoding.codec_payload_type {
        Some(payload_type) => codec.payload_type == payload_type,
        None => !codec.is_rtx(),
    })
}

/// What kind of consumer these parameters of a producer (its own or the consumable ones) make.
///
/// Several encodings: simulcast. One with several layers: SVC, also where all the layers are temporal (VP8, H264), because
/// they are dropped the same way. Else simple. [`ConsumerType::Pipe`] depends on the transport, not on the parameters.
pub fn consumer_type(params: &RtpParameters) -> ConsumerType {
    match params.encodings.as_slice() {
        [] => ConsumerType::Simple,
        [encoding] => {
            let mode = ScalabilityMode::parse(encoding.scalability_mode.as_deref());
            let layered = mode.spatial_layers > 1 || mode.temporal_layers > 1;
            let mime = codec_of(params, encoding).map(|codec| codec.mime_type.to_ascii_lowercase());
            match mime.as_deref() {
                Some("video/vp8" | "video/vp9" | "video/h264" | "video/av1") if layered => ConsumerType::Svc,
                _ => ConsumerType::Simple,
            }
        }
        [_, _, ..] => ConsumerType::Simulcast,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_browsers_write_them() {
        let mode = |text| {
            let m = ScalabilityMode::parse(Some(text));
            (m.spatial_layers, m.temporal_layers, m.key_only)
        };
        assert_eq!(mode("L1T3"), (1, 3, false));
        assert_eq!(mode("S2T3"), (2, 3, false));
        assert_eq!(mode("L3T3_KEY"), (3, 3, true));
        assert_eq!(mode("L3T2_KEY_SHIFT"), (3, 2, true));
        assert_eq!(mode("L2T2h"), (2, 2, false));
        assert_eq!(mode("L12T99"), (12, 99, false));
        for wrong in ["", "L0T1", "L1T0", "l1t3", "T3", "L1", "L100T1", "XL1T3", "Lé"] {
            assert_eq!(mode(wrong), (1, 1, false), "{wrong:?}");
        }
    }
}
