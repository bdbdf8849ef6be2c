//! The names of RTP header extensions (RFC 8285) that Roomlog knows.
//!
//! A client says up to twenty of them, each longer than what fits into the word itself, and each of its consumers says them again: those that
//! are known need no memory of their own.

use std::fmt;

use serde::{
    Deserializer,
    de::{Error, Visitor},
};
use smol_str::SmolStr;

/// Media identification (RFC 8843 §16.2).
pub const MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
/// RTP stream id, names a simulcast encoding (RFC 8852).
pub const RTP_STREAM_ID: &str = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id";
/// The same on the retransmission stream (RFC 8852).
pub const REPAIRED_RTP_STREAM_ID: &str = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id";
/// Send time in 24 bits, feeds REMB.
pub const ABS_SEND_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time";
/// Transport-wide sequence number, feeds transport-cc.
pub const TRANSPORT_WIDE_CC: &str =
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
/// Client-to-mixer audio level (RFC 6464).
pub const AUDIO_LEVEL: &str = "urn:ietf:params:rtp-hdrext:ssrc-audio-level";
/// AV1 dependency descriptor, tells layers without parsing the payload.
pub const DEPENDENCY_DESCRIPTOR: &str =
    "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension";
/// Coordination of video orientation (3GPP TS 26.114).
pub const VIDEO_ORIENTATION: &str = "urn:3gpp:video-orientation";
/// Transmission time offset (RFC 5450).
pub const TIME_OFFSET: &str = "urn:ietf:params:rtp-hdrext:toffset";
/// Capture time of the first sender, passed on unchanged.
pub const ABS_CAPTURE_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";
/// Limits of the receiver's playout delay, passed on unchanged.
pub const PLAYOUT_DELAY: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";

const KNOWN: &[&str] = &[
    MID,
    RTP_STREAM_ID,
    REPAIRED_RTP_STREAM_ID,
    ABS_SEND_TIME,
    TRANSPORT_WIDE_CC,
    AUDIO_LEVEL,
    DEPENDENCY_DESCRIPTOR,
    VIDEO_ORIENTATION,
    TIME_OFFSET,
    ABS_CAPTURE_TIME,
    PLAYOUT_DELAY,
];

/// Reads the name of an extension.
pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SmolStr, D::Error> {
    deserializer.deserialize_str(Name)
}

struct Name;

impl Visitor<'_> for Name {
    type Value = SmolStr;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the URI of a header extension")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<SmolStr, E> {
        Ok(match KNOWN.iter().find(|known| **known == text) {
            Some(known) => SmolStr::new_static(known),
            None => text.into(),
        })
    }
}
