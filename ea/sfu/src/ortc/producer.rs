//! From a producer's numbers to the router's.

use roomlog_bus::ortc::{
    ExtensionDirection, FmtpValue, MediaKind, RtcpParameters, RtpCapabilities, RtpCodecCapability,
    RtpCodecParameters, RtpEncodingParameters, RtpHeaderExtensionParameters, RtpParameters,
};
use serde::{Deserialize, Serialize};

use super::{
    OrtcError, ScalabilityMode,
    codecs::{Codec, Matching, same_codec},
    h264, layers, uri, validate_rtp_parameters,
};

/// How a producer's payload types and encodings are called inside the router.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RtpMapping {
    /// Media codecs in the producer's order, then its RTX codecs.
    pub codecs: Vec<CodecMapping>,
    /// As many as the producer has encodings; one where it lists none.
    pub encodings: Vec<EncodingMapping>,
}

impl RtpMapping {
    /// The router's payload type for one of the producer's.
    pub fn payload_type(&self, payload_type: u8) -> Option<u8> {
        self.codecs.iter().find(|c| c.payload_type == payload_type).map(|c| c.mapped_payload_type)
    }
}

/// One payload type on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CodecMapping {
    /// As the producer's packets carry it.
    pub payload_type: u8,
    /// As the router and all its consumers call it.
    pub mapped_payload_type: u8,
}

/// One encoding on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncodingMapping {
    /// The producer's SSRC, where it is known beforehand; else packets are told by rid, or by the producer's mid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssrc: Option<u32>,
    /// The producer's RTP stream id (RFC 8852).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rid: Option<String>,
    /// The layers inside this encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scalability_mode: Option<String>,
    /// Its SSRC inside the router.
    pub mapped_ssrc: u32,
}

/// Finds the router's name for each of a producer's codecs and encodings, or says why the router cannot take the producer.
///
/// `fresh_ssrc` is called once per encoding, in order; it must return SSRCs not used elsewhere in the router, never 0.
/// A producer that lists no encodings is taken to have one.
pub fn producer_mapping(
    params: &RtpParameters,
    router: &RtpCapabilities,
    fresh_ssrc: &mut dyn FnMut() -> u32,
) -> Result<RtpMapping, OrtcError> {
    validate_rtp_parameters(params)?;
    let mut mapping = RtpMapping::default();
    let (rtx, media): (Vec<_>, Vec<_>) = params.codecs.iter().partition(|codec| codec.is_rtx());
    for codec in media {
        let (_, mapped_payload_type) = router_codec(codec, router)?;
        mapping.codecs.push(CodecMapping { payload_type: codec.payload_type, mapped_payload_type });
    }
    for codec in rtx {
        let payload_type = codec.payload_type;
        let repaired = codec.apt().and_then(|apt| by_payload_type(params, apt));
        let repaired = repaired.ok_or(OrtcError::RtxWithoutMedia { payload_type })?;
        if repaired.is_rtx() {
            return Err(OrtcError::RtxOfRtx { payload_type });
        }
        let (_, repaired) = router_codec(repaired, router)?;
        let mapped_payload_type = router_rtx(router, repaired)
            .and_then(|rtx| rtx.preferred_payload_type)
            .ok_or(OrtcError::RouterHasNoRtx { payload_type: repaired })?;
        mapping.codecs.push(CodecMapping { payload_type, mapped_payload_type });
    }
    refuse_what_the_worker_cannot_take(params)?;
    for encoding in encodings_or_one(params) {
        mapping.encodings.push(EncodingMapping {
            ssrc: encoding.ssrc,
            rid: encoding.rid.map(String::from),
            scalability_mode: encoding.scalability_mode.map(String::from),
            mapped_ssrc: fresh_ssrc(),
        });
    }
    Ok(mapping)
}

/// The producer as the router's consumers see it: the router's payload types, ids and SSRCs, every encoding, and the header
/// extensions that the router sends. Set `params.rtcp.cname` first: it is passed on, and ties a client's streams together.
///
/// H264: the producer's `profile-level-id` is replaced by the one that was agreed with the router.
pub fn consumable_parameters(
    kind: MediaKind,
    params: &RtpParameters,
    router: &RtpCapabilities,
    mapping: &RtpMapping,
) -> Result<RtpParameters, OrtcError> {
    let mut codecs = Vec::new();
    for codec in params.codecs.iter().filter(|codec| !codec.is_rtx()) {
        if codec.kind() != Some(kind) {
            return Err(OrtcError::KindMismatch { mime_type: codec.mime_type.to_string(), kind });
        }
        let mismatch = || OrtcError::MappingMismatch { what: format!("payload type {}", codec.payload_type) };
        let payload_type = mapping.payload_type(codec.payload_type).ok_or_else(mismatch)?;
        let matched = router.codecs.iter().find(|c| c.preferred_payload_type == Some(payload_type));
        let matched = matched.ok_or_else(mismatch)?;
        codecs.push(consumable_codec(codec, matched, payload_type));
        if let Some(rtx) = router_rtx(router, payload_type) {
            codecs.push(RtpCodecParameters {
                mime_type: rtx.mime_type.clone(),
                payload_type: rtx.preferred_payload_type.ok_or_else(mismatch)?,
                clock_rate: rtx.clock_rate,
                channels: None,
                parameters: rtx.parameters.clone(),
                rtcp_feedback: rtx.rtcp_feedback.clone(),
            });
        }
    }
    let encodings = encodings_or_one(params);
    if encodings.len() != mapping.encodings.len() {
        return Err(OrtcError::MappingMismatch { what: format!("encoding {}", mapping.encodings.len()) });
    }
    let encodings =
        encodings.into_iter().zip(&mapping.encodings).map(|(encoding, mapped)| RtpEncodingParameters {
            ssrc: Some(mapped.mapped_ssrc),
            rid: None,
            rtx: None,
            codec_payload_type: None,
            ..encoding
        });
    Ok(RtpParameters {
        mid: None,
        codecs,
        header_extensions: consumable_extensions(kind, params, router),
        encodings: encodings.collect(),
        rtcp: RtcpParameters { cname: params.rtcp.cname.clone(), reduced_size: true, mux: None },
    })
}

fn consumable_codec(
    codec: &RtpCodecParameters,
    matched: &RtpCodecCapability,
    payload_type: u8,
) -> RtpCodecParameters {
    let mut parameters = codec.parameters.clone();
    if matched.mime_type.eq_ignore_ascii_case("video/h264") {
        match h264::answer(&codec.parameters, &matched.parameters) {
            Some(agreed) => parameters.insert("profile-level-id".into(), FmtpValue::Text(agreed.into())),
            None => parameters.remove("profile-level-id"),
        };
    }
    RtpCodecParameters {
        mime_type: matched.mime_type.clone(),
        payload_type,
        clock_rate: matched.clock_rate,
        channels: matched.channels(),
        parameters,
        rtcp_feedback: matched.rtcp_feedback.clone(),
    }
}

fn consumable_extensions(
    kind: MediaKind,
    params: &RtpParameters,
    router: &RtpCapabilities,
) -> Vec<RtpHeaderExtensionParameters> {
    router
        .header_extensions
        .iter()
        .filter(|extension| {
            extension.kind == Some(kind)
                && matches!(extension.direction, ExtensionDirection::Sendrecv | ExtensionDirection::Sendonly)
        })
        // Passed on from the producer's packets unchanged, so promised only where the producer has it.
        .filter(|extension| {
            extension.uri != uri::ABS_CAPTURE_TIME
                || params.header_extensions.iter().any(|own| own.uri == extension.uri)
        })
        .map(|extension| RtpHeaderExtensionParameters {
            uri: extension.uri.clone(),
            id: extension.preferred_id,
            encrypt: extension.preferred_encrypt,
        })
        .collect()
}

/// The first of the router's codecs that a producer's codec can be, and its payload type.
fn router_codec<'a>(
    codec: &RtpCodecParameters,
    router: &'a RtpCapabilities,
) -> Result<(&'a RtpCodecCapability, u8), OrtcError> {
    let found = router.codecs.iter().find(|own| same_codec(codec, *own, Matching::Strict));
    found.and_then(|own| Some((own, own.preferred_payload_type?))).ok_or_else(|| {
        OrtcError::UnsupportedCodec {
            mime_type: codec.mime_type.to_string(),
            payload_type: codec.payload_type,
        }
    })
}

/// The router's RTX codec for one of its media payload types.
fn router_rtx(router: &RtpCapabilities, payload_type: u8) -> Option<&RtpCodecCapability> {
    router.codecs.iter().find(|codec| codec.is_rtx() && codec.apt() == Some(payload_type.into()))
}

fn by_payload_type(params: &RtpParameters, payload_type: i64) -> Option<&RtpCodecParameters> {
    params.codecs.iter().find(|codec| i64::from(codec.payload_type) == payload_type)
}

fn encodings_or_one(params: &RtpParameters) -> Vec<RtpEncodingParameters> {
    if params.encodings.is_empty() {
        vec![RtpEncodingParameters::default()]
    } else {
        params.encodings.clone()
    }
}

/// What is well-formed, but leaves the worker with packets it could not attribute or layers it could not switch.
fn refuse_what_the_worker_cannot_take(params: &RtpParameters) -> Result<(), OrtcError> {
    for (index, codec) in params.codecs.iter().enumerate() {
        let payload_type = codec.payload_type;
        if params.codecs[..index].iter().any(|other| other.payload_type == payload_type) {
            return Err(OrtcError::DuplicatePayloadType { payload_type });
        }
    }
    if params.codecs.iter().all(Codec::is_rtx) {
        return Err(OrtcError::NoMediaCodec);
    }
    if let Some(extension) = params.header_extensions.iter().find(|extension| extension.id == 0) {
        return Err(OrtcError::ExtensionIdZero { uri: extension.uri.to_string() });
    }
    let encodings = encodings_or_one(params);
    let several = encodings.len() > 1;
    for (index, encoding) in encodings.iter().enumerate() {
        let codec = layers::codec_of(params, encoding).filter(|codec| !codec.is_rtx());
        let codec = codec.ok_or(OrtcError::UnknownEncodingPayloadType {
            index,
            payload_type: encoding.codec_payload_type.unwrap_or_default(),
        })?;
        let spatial_layers = ScalabilityMode::parse(encoding.scalability_mode.as_deref()).spatial_layers;
        if several && spatial_layers > 1 {
            return Err(OrtcError::SimulcastWithSvc { index });
        }
        // Layers of these two can be switched at key frames; VP9 and AV1 send their layers in one stream.
        let switchable = matches!(codec.mime_type.to_ascii_lowercase().as_str(), "video/vp8" | "video/h264");
        if several && !switchable {
            return Err(OrtcError::SimulcastUnsupported { mime_type: codec.mime_type.to_string() });
        }
        let named = encoding.ssrc.is_some() || encoding.rid.as_ref().is_some_and(|rid| !rid.is_empty());
        let has_mid = params.mid.as_ref().is_some_and(|mid| !mid.is_empty());
        if !named && (several || !has_mid) {
            return Err(OrtcError::UnidentifiedEncoding { index, needs_mid: !several });
        }
    }
    Ok(())
}
