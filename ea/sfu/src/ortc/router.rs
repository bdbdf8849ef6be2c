//! What a router offers: its codecs with payload types, its header extensions with ids and directions.

use roomlog_bus::ortc::{
    ExtensionDirection, FmtpParameters, FmtpValue, MediaKind, RtcpFeedback, RtpCapabilities,
    RtpCodecCapability, RtpHeaderExtensionCapability,
};

use super::{
    OrtcError,
    codecs::{Matching, same_codec},
    uri,
    validate::validate_codec,
};

/// Dynamic payload types in the order they are given out (RFC 3551 §6 has 96 to 127). The first four come last because
/// old endpoints put fixed meanings on them.
const DYNAMIC_PAYLOAD_TYPES: [u8; 32] = [
    100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120,
    121, 122, 123, 124, 125, 126, 127, 96, 97, 98, 99,
];

/// What every router of a worker offers: Opus, VP8, and H264 in the two profiles that all browsers can send.
pub fn router_rtp_capabilities() -> RtpCapabilities {
    let h264 = |profile_level_id: &str| {
        codec(MediaKind::Video, "video/H264", 90_000, None).with(&[
            ("packetization-mode", 1.into()),
            ("level-asymmetry-allowed", 1.into()),
            ("profile-level-id", profile_level_id.into()),
        ])
    };
    let offered = [
        codec(MediaKind::Audio, "audio/opus", 48_000, Some(2)),
        codec(MediaKind::Video, "video/VP8", 90_000, None),
        // Constrained baseline 3.1: what WebRTC endpoints must have (RFC 7742 §6.2).
        h264("42e01f"),
        // Main 5.0: what hardware encoders prefer.
        h264("4d0032"),
    ]
    .map(|built| built.0);
    router_rtp_capabilities_for(&offered)
        .expect("the codecs above are in the table below and take seven of 32 payload types")
}

/// What a router offers that is asked for these codecs: the supported codec's feedback, the wanted parameters on top of the
/// supported ones, and RTX beside each video codec. Preferred payload types are kept, the others given out in order.
pub fn router_rtp_capabilities_for(wanted: &[RtpCodecCapability]) -> Result<RtpCapabilities, OrtcError> {
    let supported = supported_codecs();
    let mut free = DYNAMIC_PAYLOAD_TYPES.to_vec();
    let mut caps = RtpCapabilities { codecs: Vec::new(), header_extensions: supported_header_extensions() };
    for want in wanted {
        validate_codec(want)?;
        let found =
            supported.iter().find(|codec| same_codec(want, *codec, Matching::Loose)).ok_or_else(|| {
                OrtcError::UnsupportedCodec {
                    mime_type: want.mime_type.to_string(),
                    payload_type: want.preferred_payload_type.unwrap_or_default(),
                }
            })?;
        let exhausted = || OrtcError::NoPayloadTypeLeft { mime_type: want.mime_type.to_string() };
        let payload_type = match (want.preferred_payload_type, found.preferred_payload_type) {
            (Some(wish), _) => {
                free.retain(|pt| *pt != wish);
                wish
            }
            (None, Some(fixed)) => fixed,
            (None, None) => take_first(&mut free).ok_or_else(exhausted)?,
        };
        if caps.codecs.iter().any(|codec| codec.preferred_payload_type == Some(payload_type)) {
            return Err(exhausted());
        }
        let mut media = found.clone();
        media.preferred_payload_type = Some(payload_type);
        media.parameters.extend(want.parameters.clone());
        let (kind, clock_rate) = (media.kind, media.clock_rate);
        caps.codecs.push(media);
        if kind == MediaKind::Video {
            let rtx_payload_type = take_first(&mut free).ok_or_else(exhausted)?;
            caps.codecs.push(RtpCodecCapability {
                kind,
                mime_type: "video/rtx".into(),
                preferred_payload_type: Some(rtx_payload_type),
                clock_rate,
                channels: None,
                parameters: FmtpParameters::from([("apt".into(), FmtpValue::Integer(payload_type.into()))]),
                rtcp_feedback: Vec::new(),
            });
        }
    }
    Ok(caps)
}

fn take_first(free: &mut Vec<u8>) -> Option<u8> {
    if free.is_empty() { None } else { Some(free.remove(0)) }
}

/// The codecs a worker can carry. Payload types only where RFC 3551 fixes them.
fn supported_codecs() -> Vec<RtpCodecCapability> {
    use MediaKind::{Audio, Video};
    let audio_feedback = &[("nack", ""), ("transport-cc", "")];
    let video_feedback =
        &[("nack", ""), ("nack", "pli"), ("ccm", "fir"), ("goog-remb", ""), ("transport-cc", "")];
    let multiopus = |channels, mapping: &str, streams: i64, coupled: i64| {
        codec(Audio, "audio/multiopus", 48_000, Some(channels)).feedback(audio_feedback).with(&[
            ("channel_mapping", mapping.into()),
            ("num_streams", streams.into()),
            ("coupled_streams", coupled.into()),
        ])
    };
    let video = |name| codec(Video, name, 90_000, None).feedback(video_feedback);
    let pcm =
        |name, pt| codec(Audio, name, 8_000, Some(1)).feedback(&[("transport-cc", "")]).payload_type(pt);
    [
        codec(Audio, "audio/opus", 48_000, Some(2)).feedback(audio_feedback),
        // Quadraphonic, 5.1 and 7.1, with Vorbis' channel order (RFC 7845 §5.1.1.2).
        multiopus(4, "0,1,2,3", 2, 2),
        multiopus(6, "0,4,1,2,3,5", 4, 2),
        multiopus(8, "0,6,1,2,3,4,5,7", 5, 3),
        pcm("audio/PCMU", 0),
        pcm("audio/PCMA", 8),
        video("video/VP8"),
        video("video/VP9"),
        video("video/H264").with(&[("level-asymmetry-allowed", 1.into())]),
        video("video/AV1"),
    ]
    .map(|built| built.0)
    .to_vec()
}

/// The header extensions a worker understands or passes on, with the ids its routers use.
fn supported_header_extensions() -> Vec<RtpHeaderExtensionCapability> {
    use ExtensionDirection::{Recvonly, Sendrecv};
    use MediaKind::{Audio, Video};
    [
        (Audio, uri::MID, 1, Sendrecv),
        (Video, uri::MID, 1, Sendrecv),
        // Only producers are simulcast; a consumer has one stream and needs no name for it.
        (Video, uri::RTP_STREAM_ID, 2, Recvonly),
        (Video, uri::REPAIRED_RTP_STREAM_ID, 3, Recvonly),
        (Audio, uri::ABS_SEND_TIME, 4, Sendrecv),
        (Video, uri::ABS_SEND_TIME, 4, Sendrecv),
        // Consumers of audio are not paced, so only received audio takes part in transport-cc.
        (Audio, uri::TRANSPORT_WIDE_CC, 5, Recvonly),
        (Video, uri::TRANSPORT_WIDE_CC, 5, Sendrecv),
        (Audio, uri::AUDIO_LEVEL, 6, Sendrecv),
        // Read to choose layers, and then void for the receiver, whose frames are renumbered.
        (Video, uri::DEPENDENCY_DESCRIPTOR, 7, Recvonly),
        (Video, uri::VIDEO_ORIENTATION, 8, Sendrecv),
        (Video, uri::TIME_OFFSET, 9, Sendrecv),
        (Audio, uri::ABS_CAPTURE_TIME, 10, Sendrecv),
        (Video, uri::ABS_CAPTURE_TIME, 10, Sendrecv),
        (Audio, uri::PLAYOUT_DELAY, 11, Sendrecv),
        (Video, uri::PLAYOUT_DELAY, 11, Sendrecv),
    ]
    .map(|(kind, uri, preferred_id, direction)| RtpHeaderExtensionCapability {
        kind: Some(kind),
        uri: uri.into(),
        preferred_id,
        preferred_encrypt: false,
        direction,
    })
    .to_vec()
}

/// Spells the tables above.
struct Built(RtpCodecCapability);

fn codec(kind: MediaKind, mime_type: &str, clock_rate: u32, channels: Option<u8>) -> Built {
    Built(RtpCodecCapability {
        kind,
        mime_type: mime_type.into(),
        preferred_payload_type: None,
        clock_rate,
        channels,
        parameters: FmtpParameters::new(),
        rtcp_feedback: Vec::new(),
    })
}

impl Built {
    fn feedback(mut self, feedback: &[(&str, &str)]) -> Self {
        self.0.rtcp_feedback = feedback
            .iter()
            .map(|(kind, parameter)| RtcpFeedback { kind: (*kind).into(), parameter: (*parameter).into() })
            .collect();
        self
    }

    fn with(mut self, parameters: &[(&str, Value<'_>)]) -> Self {
        for (key, value) in parameters {
            let value = match value {
                Value::Number(n) => FmtpValue::Integer(*n),
                Value::Text(t) => FmtpValue::Text((*t).into()),
            };
            self.0.parameters.insert((*key).into(), value);
        }
        self
    }

    fn payload_type(mut self, payload_type: u8) -> Self {
        self.0.preferred_payload_type = Some(payload_type);
        self
    }
}

enum Value<'a> {
    Number(i64),
    Text(&'a str),
}

impl From<i64> for Value<'_> {
    fn from(n: i64) -> Self {
        Self::Number(n)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(t: &'a str) -> Self {
        Self::Text(t)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::codecs::Codec, *};

    #[test]
    fn every_video_codec_has_rtx_and_no_payload_type_is_used_twice() {
        let caps = router_rtp_capabilities();
        let mut seen: Vec<u8> = caps.codecs.iter().filter_map(|c| c.preferred_payload_type).collect();
        assert_eq!(seen.len(), caps.codecs.len());
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), caps.codecs.len());
        for codec in caps.codecs.iter().filter(|c| c.kind == MediaKind::Video && !c.is_rtx()) {
            let repaired = codec.preferred_payload_type.map(i64::from);
            assert!(caps.codecs.iter().any(|c| c.is_rtx() && c.apt() == repaired), "{}", codec.mime_type);
        }
    }

    #[test]
    fn a_wish_for_a_taken_payload_type_is_refused() {
        let mut vp8 = codec(MediaKind::Video, "video/VP8", 90_000, None).0;
        let mut opus = codec(MediaKind::Audio, "audio/opus", 48_000, Some(2)).0;
        (vp8.preferred_payload_type, opus.preferred_payload_type) = (Some(100), Some(100));
        let refused = router_rtp_capabilities_for(&[opus, vp8]);
        assert_eq!(refused, Err(OrtcError::NoPayloadTypeLeft { mime_type: "video/VP8".to_owned() }));
    }

    #[test]
    fn payload_types_run_out_with_an_error() {
        let vp8 = codec(MediaKind::Video, "video/VP8", 90_000, None).0;
        assert!(router_rtp_capabilities_for(&vec![vp8.clone(); 16]).is_ok());
        assert!(router_rtp_capabilities_for(&vec![vp8; 17]).is_err());
    }
}
