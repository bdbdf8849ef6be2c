//! When two codecs are the same codec.

use roomlog_bus::ortc::{
    FmtpParameters, FmtpValue, MediaKind, RtcpFeedback, RtpCodecCapability, RtpCodecParameters,
};

use super::h264;

/// What capability and parameters of a codec have in common.
pub(super) trait Codec {
    fn mime_type(&self) -> &str;
    fn clock_rate(&self) -> u32;
    fn channels_given(&self) -> Option<u8>;
    fn parameters(&self) -> &FmtpParameters;
    fn feedback(&self) -> &[RtcpFeedback];
    /// The payload type, where there is one.
    fn pt(&self) -> Option<u8>;

    /// Audio or video, told from the MIME type: what else a document says about it does not count.
    fn kind(&self) -> Option<MediaKind> {
        let (top, name) = self.mime_type().split_once('/')?;
        match top.to_ascii_lowercase().as_str() {
            _ if name.is_empty() => None,
            "audio" => Some(MediaKind::Audio),
            "video" => Some(MediaKind::Video),
            _ => None,
        }
    }

    /// Channels count for audio only, and absent means 1.
    fn channels(&self) -> Option<u8> {
        (self.kind() == Some(MediaKind::Audio)).then(|| self.channels_given().unwrap_or(1))
    }

    /// Retransmission (RFC 4588) rather than media.
    fn is_rtx(&self) -> bool {
        let mime = self.mime_type();
        mime.len() > 4 && mime.to_ascii_lowercase().ends_with("/rtx")
    }

    /// The payload type an RTX codec repairs (RFC 4588 §8.6).
    fn apt(&self) -> Option<i64> {
        match self.parameters().get("apt") {
            Some(FmtpValue::Text(_) | FmtpValue::Flag(_)) | None => None,
            Some(number) => number.as_integer(),
        }
    }
}

impl Codec for RtpCodecCapability {
    fn mime_type(&self) -> &str {
        &self.mime_type
    }
    fn clock_rate(&self) -> u32 {
        self.clock_rate
    }
    fn channels_given(&self) -> Option<u8> {
        self.channels
    }
    fn parameters(&self) -> &FmtpParameters {
        &self.parameters
    }
    fn feedback(&self) -> &[RtcpFeedback] {
        &self.rtcp_feedback
    }
    fn pt(&self) -> Option<u8> {
        self.preferred_payload_type
    }
}

impl Codec for RtpCodecParameters {
    fn mime_type(&self) -> &str {
        &self.mime_type
    }
    fn clock_rate(&self) -> u32 {
        self.clock_rate
    }
    fn channels_given(&self) -> Option<u8> {
        self.channels
    }
    fn parameters(&self) -> &FmtpParameters {
        &self.parameters
    }
    fn feedback(&self) -> &[RtcpFeedback] {
        &self.rtcp_feedback
    }
    fn pt(&self) -> Option<u8> {
        Some(self.payload_type)
    }
}

/// How closely two codecs are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matching {
    /// By name, rate and channels: to find what a router supports at all.
    Loose,
    /// Also by profile and packetisation: to find what two ends can exchange.
    Strict,
}

/// Whether packets of one codec can be decoded as the other.
pub(super) fn same_codec(a: &impl Codec, b: &impl Codec, matching: Matching) -> bool {
    if !a.mime_type().eq_ignore_ascii_case(b.mime_type())
        || a.clock_rate() != b.clock_rate()
        || a.channels() != b.channels()
    {
        return false;
    }
    let (a_parameters, b_parameters) = (a.parameters(), b.parameters());
    let same = |key: &str| same_value(a_parameters.get(key), b_parameters.get(key));
    // For these an absent value is the same as 0 (RFC 6184 §8.1, RFC 9628 §6).
    let same_or_zero = |key: &str| same_value(nonzero(a_parameters, key), nonzero(b_parameters, key));
    match (a.mime_type().to_ascii_lowercase().as_str(), matching) {
        ("audio/multiopus", _) => same("num_streams") && same("coupled_streams"),
        ("video/h264", Matching::Strict) => {
            same_or_zero("packetization-mode") && h264::same_profile(a_parameters, b_parameters)
        }
        ("video/vp9", Matching::Strict) => same_or_zero("profile-id"),
        _ => true,
    }
}

/// A number and the same digits in text are different values, as they are in the browsers' JavaScript.
fn same_value(a: Option<&FmtpValue>, b: Option<&FmtpValue>) -> bool {
    use FmtpValue::{Integer, Number};
    match (a, b) {
        (Some(Integer(i)), Some(Number(n))) | (Some(Number(n)), Some(Integer(i))) => *i as f64 == *n,
        _ => a == b,
    }
}

fn nonzero<'a>(parameters: &'a FmtpParameters, key: &str) -> Option<&'a FmtpValue> {
    parameters.get(key).filter(|value| match value {
        FmtpValue::Text(text) => !text.is_empty(),
        other => other.as_integer() != Some(0),
    })
}
