//! The ORTC mapping: from what a router can do and a producer sends to what each consumer receives.
//!
//! Four documents and the road between them:
//!
//! 1. [`router_rtp_capabilities`]: what a router offers to everyone, with the payload types and extension ids it uses inside.
//! 2. A producer's parameters, as its browser negotiated them. [`producer_mapping`] finds the router's payload type and a fresh
//!    SSRC for each of its codecs and encodings.
//! 3. [`consumable_parameters`]: the same producer in the router's own numbers, the form all its consumers start from.
//! 4. [`consumer_parameters`] cuts that down to what one client can receive: one encoding, the codecs, feedback messages and
//!    header extensions both sides know. [`can_consume`] says beforehand whether anything is left.
//!
//! The rules are those mediasoup publishes (so that an unmodified `mediasoup-client` finds what it expects);
//! `tests/ortc_conformance.rs` compares the answers case by case. Where we refuse more than mediasoup's JavaScript does,
//! it is because its worker refuses it later, or because the input comes from a stranger; [`OrtcError::is_stricter`] tells which.
//!
//! Everything here is pure: SSRCs are passed in, nothing is changed in place.

mod codecs;
mod consumer;
mod error;
mod h264;
mod layers;
mod producer;
mod router;
mod validate;

pub use consumer::{can_consume, consumer_parameters, pipe_consumer_parameters};
pub use error::OrtcError;
pub use layers::{ScalabilityMode, consumer_type};
pub use producer::{CodecMapping, EncodingMapping, RtpMapping, consumable_parameters, producer_mapping};
pub use router::{router_rtp_capabilities, router_rtp_capabilities_for};
pub use validate::{
    MAX_CODECS, MAX_ENCODINGS, MAX_HEADER_EXTENSIONS, validate_rtp_capabilities, validate_rtp_parameters,
};

/// Header extension URIs the mapping treats by name.
pub mod uri {
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
}
