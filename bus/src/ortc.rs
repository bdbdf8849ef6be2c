//! The ORTC dictionaries that clients, the log and the SFU worker share.
//!
//! Shapes and field names are those of `mediasoup-client` (RTP parameters and capabilities as in the ORTC draft, §9), so a browser's
//! JSON decodes into these types and back without a mapping. Field names are camelCase on every wire, also in the log.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, Visitor},
};
use smol_str::SmolStr;

/// Codec-specific parameters (`a=fmtp`): values are numbers or text.
pub type FmtpParameters = BTreeMap<SmolStr, FmtpValue>;

/// One `fmtp` value; browsers send numbers where they can.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum FmtpValue {
    /// An integer, `packetization-mode=1`.
    Integer(i64),
    /// A number that is not an integer.
    Number(f64),
    /// A flag.
    Flag(bool),
    /// Text, `profile-level-id=42e01f`.
    Text(SmolStr),
}

/// Reads one where it lies: a fold reads dozens for each client.
struct Value;

impl Visitor<'_> for Value {
    type Value = FmtpValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a flag or text")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<FmtpValue, E> {
        Ok(FmtpValue::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<FmtpValue, E> {
        Ok(i64::try_from(value).map_or(FmtpValue::Number(value as f64), FmtpValue::Integer))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<FmtpValue, E> {
        Ok(FmtpValue::Number(value))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<FmtpValue, E> {
        Ok(FmtpValue::Flag(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<FmtpValue, E> {
        Ok(FmtpValue::Text(value.into()))
    }
}

impl<'de> Deserialize<'de> for FmtpValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Value)
    }
}

impl FmtpValue {
    /// The value as an integer, also where it was sent as digits in text.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(n) => Some(*n),
            Self::Number(n) if n.fract() == 0.0 => Some(*n as i64),
            Self::Flag(b) => Some(i64::from(*b)),
            Self::Text(t) => t.trim().parse().ok(),
            Self::Number(_) => None,
        }
    }

    /// The value as text.
    pub fn to_text(&self) -> String {
        match self {
            Self::Integer(n) => n.to_string(),
            Self::Number(n) => n.to_string(),
            Self::Flag(b) => b.to_string(),
            Self::Text(t) => t.to_string(),
        }
    }
}

/// Audio or video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MediaKind {
    /// Sound.
    Audio,
    /// Pictures.
    Video,
}

/// An RTCP feedback message that a codec uses (`a=rtcp-fb`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcpFeedback {
    /// `nack`, `ccm`, `transport-cc`, `goog-remb`.
    #[serde(rename = "type")]
    pub kind: SmolStr,
    /// `pli`, `fir` or empty.
    #[serde(default, skip_serializing_if = "SmolStr::is_empty")]
    pub parameter: SmolStr,
}

/// Which way a header extension may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtensionDirection {
    /// Both ways.
    #[default]
    Sendrecv,
    /// Only towards the client.
    Sendonly,
    /// Only from the client.
    Recvonly,
    /// Not at all.
    Inactive,
}

/// A codec that an endpoint or a router can handle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtpCodecCapability {
    /// Audio or video.
    pub kind: MediaKind,
    /// `audio/opus`, `video/VP8`, `video/rtx` …; compared without case.
    pub mime_type: SmolStr,
    /// The payload type the endpoint would like, 96 to 127.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_payload_type: Option<u8>,
    /// Hz.
    pub clock_rate: u32,
    /// Audio channels; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<u8>,
    /// `fmtp` parameters.
    #[serde(default)]
    pub parameters: FmtpParameters,
    /// Feedback messages.
    #[serde(default)]
    pub rtcp_feedback: Vec<RtcpFeedback>,
}

/// A header extension that an endpoint or a router can handle (RFC 8285).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtpHeaderExtensionCapability {
    /// The kind of media it is for; absent or empty means both.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_kind")]
    pub kind: Option<MediaKind>,
    /// What it is.
    #[serde(deserialize_with = "crate::extension::read")]
    pub uri: SmolStr,
    /// The id the endpoint would like, 1 to 14.
    pub preferred_id: u8,
    /// Whether its value is encrypted.
    #[serde(default)]
    pub preferred_encrypt: bool,
    /// Which way it may go.
    #[serde(default)]
    pub direction: ExtensionDirection,
}

fn empty_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MediaKind>, D::Error> {
    deserializer.deserialize_any(MaybeKind)
}

struct MaybeKind;

impl Visitor<'_> for MaybeKind {
    type Value = Option<MediaKind>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"audio\", \"video\", nothing or empty text")
    }

    fn visit_unit<E: Error>(self) -> Result<Option<MediaKind>, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Option<MediaKind>, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<MediaKind>, E> {
        match text {
            "" => Ok(None),
            "audio" => Ok(Some(MediaKind::Audio)),
            "video" => Ok(Some(MediaKind::Video)),
            other => Err(E::unknown_variant(other, &["audio", "video"])),
        }
    }
}

/// What an endpoint or a router can receive.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtpCapabilities {
    /// Codecs, RTX among them.
    #[serde(default)]
    pub codecs: Vec<RtpCodecCapability>,
    /// Header extensions.
    #[serde(default)]
    pub header_extensions: Vec<RtpHeaderExtensionCapability>,
}

/// A codec in use on one producer or consumer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtpCodecParameters {
    /// `video/VP8` …; compared without case.
    pub mime_type: SmolStr,
    /// RTP payload type.
    pub payload_type: u8,
    /// Hz.
    pub clock_rate: u32,
    /// Audio channels; absent means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<u8>,
    /// `fmtp` parameters.
    #[serde(default)]
    pub parameters: FmtpParameters,
    /// Feedback messages.
    #[serde(default)]
    pub rtcp_feedback: Vec<RtcpFeedback>,
}

/// A header extension in use (RFC 8285).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtpHeaderExtensionParameters {
    /// What it is.
    #[serde(deserialize_with = "crate::extension::read")]
    pub uri: SmolStr,
    /// Its id on this connection.
    pub id: u8,
    /// Whether its value is encrypted.
    #[serde(default)]
    pub encrypt: bool,
}

/// The retransmission stream of an encoding (RFC 4588).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtxStream {
    /// Its SSRC.
    pub ssrc: u32,
}

/// One encoding: a simulcast layer, or the only one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtpEncodingParameters {
    /// The media SSRC, where known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssrc: Option<u32>,
    /// The RTP stream id (RFC 8852), where there is no SSRC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rid: Option<SmolStr>,
    /// The payload type, where an encoding has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec_payload_type: Option<u8>,
    /// Retransmission stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtx: Option<RtxStream>,
    /// Discontinuous transmission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtx: Option<bool>,
    /// `L1T3`, `L3T3_KEY` … (WebRTC SVC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scalability_mode: Option<SmolStr>,
    /// Resolution divisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_resolution_down_by: Option<f64>,
    /// Bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bitrate: Option<u64>,
}

/// RTCP settings of a producer or consumer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtcpParameters {
    /// Canonical name (RFC 3550 §6.5.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cname: Option<SmolStr>,
    /// Reduced-size RTCP (RFC 5506).
    #[serde(default = "yes")]
    pub reduced_size: bool,
    /// RTP and RTCP on one port (RFC 5761); always so here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mux: Option<bool>,
}

fn yes() -> bool {
    true
}

/// What a producer sends, or a consumer receives.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtpParameters {
    /// Media identification (RFC 8843).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mid: Option<SmolStr>,
    /// Codecs, media first, RTX behind.
    pub codecs: Vec<RtpCodecParameters>,
    /// Header extensions.
    #[serde(default)]
    pub header_extensions: Vec<RtpHeaderExtensionParameters>,
    /// Encodings.
    #[serde(default)]
    pub encodings: Vec<RtpEncodingParameters>,
    /// RTCP settings.
    #[serde(default)]
    pub rtcp: RtcpParameters,
}

/// How a consumer picks from what the producer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsumerType {
    /// One encoding with one spatial layer.
    Simple,
    /// Several encodings, one forwarded at a time.
    Simulcast,
    /// One encoding with several layers.
    Svc,
    /// All of them, as between EAs.
    Pipe,
}

/// ICE credentials of one side (RFC 8445 §5.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IceParameters {
    /// User name fragment.
    pub username_fragment: String,
    /// Password.
    pub password: String,
    /// Whether this side is ICE-lite (RFC 8445 §2.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ice_lite: Option<bool>,
}

/// A host candidate of the worker (RFC 8445 §5.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IceCandidate {
    /// Candidates of one base share it.
    pub foundation: String,
    /// RFC 8445 §5.1.2.
    pub priority: u32,
    /// The address to send to (`ip` is the older name of the same field; clients read either).
    pub address: String,
    /// Same as `address`.
    pub ip: String,
    /// `udp` or `tcp`.
    pub protocol: String,
    /// Port.
    pub port: u16,
    /// Always `host` for an ICE-lite side.
    #[serde(rename = "type")]
    pub kind: String,
    /// `passive` for TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_type: Option<String>,
}

/// Who speaks first in DTLS (RFC 8842).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtlsRole {
    /// Let the other side choose.
    #[default]
    Auto,
    /// Sends the ClientHello.
    Client,
    /// Waits for it.
    Server,
}

/// Hash of a certificate (RFC 8122 §5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DtlsFingerprint {
    /// `sha-256` and its like.
    pub algorithm: String,
    /// Upper-case hex pairs with colons.
    pub value: String,
}

/// DTLS side of a transport.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DtlsParameters {
    /// Role of the side that sends these.
    #[serde(default)]
    pub role: DtlsRole,
    /// Certificate hashes.
    pub fingerprints: Vec<DtlsFingerprint>,
}

/// Layers of a simulcast or SVC consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerLayers {
    /// 0 is the smallest.
    pub spatial_layer: u8,
    /// 0 is the lowest frame rate; absent means the highest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temporal_layer: Option<u8>,
}

/// Number of SCTP streams (RFC 8831 §6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumSctpStreams {
    /// Outgoing.
    #[serde(rename = "OS")]
    pub os: u16,
    /// Incoming, at most.
    #[serde(rename = "MIS")]
    pub mis: u16,
}

/// What a client's SCTP can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SctpCapabilities {
    /// Streams.
    pub num_streams: NumSctpStreams,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fmtp_values_are_read_as_they_were_sent_and_survive_the_log() {
        for (sent, value) in [
            (json!(1), FmtpValue::Integer(1)),
            (json!(-7), FmtpValue::Integer(-7)),
            (json!(1.5), FmtpValue::Number(1.5)),
            (json!(u64::MAX), FmtpValue::Number(u64::MAX as f64)),
            (json!(true), FmtpValue::Flag(true)),
            (json!("42e01f"), FmtpValue::Text("42e01f".into())),
        ] {
            assert_eq!(serde_json::from_value::<FmtpValue>(sent.clone()).unwrap(), value, "{sent}");
            assert_eq!(serde_json::from_str::<FmtpValue>(&sent.to_string()).unwrap(), value, "{sent}");
            let logged = rmp_serde::to_vec_named(&value).unwrap();
            assert_eq!(rmp_serde::from_slice::<FmtpValue>(&logged).unwrap(), value, "{sent}");
        }
        for bad in [json!(null), json!([1]), json!({ "a": 1 })] {
            let refused = serde_json::from_value::<FmtpValue>(bad).unwrap_err().to_string();
            assert!(refused.contains("a number, a flag or text"), "{refused}");
        }
    }

    #[test]
    fn an_extension_may_be_for_either_kind_or_for_both() {
        for (kind, read) in [
            (json!("audio"), Some(MediaKind::Audio)),
            (json!("video"), Some(MediaKind::Video)),
            (json!(""), None),
            (json!(null), None),
        ] {
            let sent = json!({ "kind": kind, "uri": "urn:x", "preferredId": 1 });
            let extension: RtpHeaderExtensionCapability = serde_json::from_value(sent).unwrap();
            assert_eq!(extension.kind, read);
            let logged = rmp_serde::to_vec_named(&extension).unwrap();
            assert_eq!(rmp_serde::from_slice::<RtpHeaderExtensionCapability>(&logged).unwrap(), extension);
        }
        for bad in [json!("text"), json!(1)] {
            let sent = json!({ "kind": bad, "uri": "urn:x", "preferredId": 1 });
            assert!(serde_json::from_value::<RtpHeaderExtensionCapability>(sent).is_err());
        }
    }
}
