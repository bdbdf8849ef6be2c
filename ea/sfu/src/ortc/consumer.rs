//! From the router's numbers to what one client receives.

use roomlog_bus::ortc::{
    MediaKind, RtcpFeedback, RtpCapabilities, RtpCodecParameters, RtpEncodingParameters, RtpParameters,
    RtxStream,
};

use super::{
    OrtcError, ScalabilityMode,
    codecs::{Codec, Matching, same_codec},
    uri, validate_rtp_capabilities,
};

/// Whether a client with these capabilities can receive a producer with these consumable parameters.
///
/// An error means that the capabilities themselves make no sense.
pub fn can_consume(consumable: &RtpParameters, caps: &RtpCapabilities) -> Result<bool, OrtcError> {
    validate_rtp_capabilities(caps)?;
    let first = consumable
        .codecs
        .iter()
        .find(|codec| caps.codecs.iter().any(|cap| same_codec(cap, *codec, Matching::Strict)));
    Ok(first.is_some_and(|codec| !codec.is_rtx()))
}

/// What one client is sent: one encoding under `ssrc`, the codecs, feedback and header extensions that both sides know.
///
/// `caps` are those the client's device computed against this router (`recvRtpCapabilities` of `mediasoup-client`), so extension
/// ids are comparable. `mid` must be unique in the client's transport. `rtx_ssrc` is used for video that the client can have
/// retransmitted; audio gets no retransmission, it would come too late. No `goog-remb` beside transport-cc (both feed the same
/// estimator), and neither without its header extension.
pub fn consumer_parameters(
    consumable: &RtpParameters,
    caps: &RtpCapabilities,
    mid: &str,
    ssrc: u32,
    rtx_ssrc: u32,
) -> Result<RtpParameters, OrtcError> {
    validate_rtp_capabilities(caps)?;
    let retransmit = consumable.codecs.first().and_then(Codec::kind) == Some(MediaKind::Video);
    let mut codecs = common_codecs(consumable, caps, retransmit)?;
    let rtx = codecs.iter().any(Codec::is_rtx);

    let header_extensions: Vec<_> = consumable
        .header_extensions
        .iter()
        .filter(|own| {
            caps.header_extensions.iter().any(|cap| cap.preferred_id == own.id && cap.uri == own.uri)
        })
        .cloned()
        .collect();
    let has = |uri: &str| header_extensions.iter().any(|extension| extension.uri == uri);
    let useless: &[&str] = if has(uri::TRANSPORT_WIDE_CC) {
        &["goog-remb"]
    } else if has(uri::ABS_SEND_TIME) {
        &["transport-cc"]
    } else {
        &["transport-cc", "goog-remb"]
    };
    for codec in &mut codecs {
        codec.rtcp_feedback.retain(|feedback| !useless.contains(&feedback.kind.as_str()));
    }

    let encoding = RtpEncodingParameters {
        ssrc: Some(ssrc),
        rtx: rtx.then_some(RtxStream { ssrc: rtx_ssrc }),
        scalability_mode: scalability_mode(&consumable.encodings).map(Into::into),
        max_bitrate: consumable.encodings.iter().filter_map(|e| e.max_bitrate).max().filter(|max| *max > 0),
        ..RtpEncodingParameters::default()
    };
    Ok(RtpParameters {
        mid: Some(mid.into()),
        codecs,
        header_extensions,
        encodings: vec![encoding],
        rtcp: consumable.rtcp.clone(),
    })
}

/// What another EA is sent over a pipe: every encoding, each under a fresh SSRC (and a fresh RTX SSRC behind it where
/// `retransmit`), all codecs, no bandwidth estimation (a pipe is not a last mile) and no mid (a pipe tells streams by SSRC).
///
/// The dependency descriptor is added, although it is received only, because the far router has to choose layers too.
/// `fresh_ssrc` must return SSRCs unused on the pipe.
pub fn pipe_consumer_parameters(
    consumable: &RtpParameters,
    router: &RtpCapabilities,
    retransmit: bool,
    fresh_ssrc: &mut dyn FnMut() -> u32,
) -> RtpParameters {
    let wanted = |feedback: &RtcpFeedback| match (feedback.kind.as_str(), feedback.parameter.as_str()) {
        ("nack", "pli") | ("ccm", "fir") => true,
        ("nack", "") => retransmit,
        _ => false,
    };
    let codecs = consumable
        .codecs
        .iter()
        .filter(|codec| retransmit || !codec.is_rtx())
        .map(|codec| {
            let mut codec = codec.clone();
            codec.rtcp_feedback.retain(wanted);
            codec
        })
        .collect();
    let dependency_descriptor =
        router.header_extensions.iter().find(|own| own.uri == uri::DEPENDENCY_DESCRIPTOR).map(|own| {
            roomlog_bus::ortc::RtpHeaderExtensionParameters {
                uri: own.uri.clone(),
                id: own.preferred_id,
                encrypt: own.preferred_encrypt,
            }
        });
    let left_out = [uri::MID, uri::ABS_SEND_TIME, uri::TRANSPORT_WIDE_CC, uri::DEPENDENCY_DESCRIPTOR];
    let mut header_extensions: Vec<_> = consumable
        .header_extensions
        .iter()
        .filter(|extension| !left_out.contains(&extension.uri.as_str()))
        .cloned()
        .chain(dependency_descriptor)
        .collect();
    header_extensions.sort_by_key(|extension| extension.id);
    let encodings = consumable
        .encodings
        .iter()
        .map(|encoding| RtpEncodingParameters {
            ssrc: Some(fresh_ssrc()),
            rtx: retransmit.then(|| RtxStream { ssrc: fresh_ssrc() }),
            ..encoding.clone()
        })
        .collect();
    RtpParameters { mid: None, codecs, header_extensions, encodings, rtcp: consumable.rtcp.clone() }
}

/// The codecs both sides know, with the client's feedback; RTX only where its media codec is among them.
fn common_codecs(
    consumable: &RtpParameters,
    caps: &RtpCapabilities,
    retransmit: bool,
) -> Result<Vec<RtpCodecParameters>, OrtcError> {
    let mut codecs: Vec<RtpCodecParameters> = Vec::new();
    for codec in consumable.codecs.iter().filter(|codec| retransmit || !codec.is_rtx()) {
        let Some(cap) = caps.codecs.iter().find(|cap| same_codec(*cap, codec, Matching::Strict)) else {
            continue;
        };
        let mut codec = codec.clone();
        codec.rtcp_feedback = cap
            .rtcp_feedback
            .iter()
            .filter(|feedback| retransmit || feedback.kind != "nack" || !feedback.parameter.is_empty())
            .cloned()
            .collect();
        codecs.push(codec);
    }
    let known: Vec<i64> = codecs.iter().map(|codec| codec.payload_type.into()).collect();
    codecs.retain(|codec| !codec.is_rtx() || codec.apt().is_some_and(|apt| known.contains(&apt)));
    match codecs.first() {
        Some(first) if !first.is_rtx() => Ok(codecs),
        _ => {
            let offered: Vec<_> = consumable.codecs.iter().map(|codec| codec.mime_type.as_str()).collect();
            Err(OrtcError::NoCompatibleCodec { offered: offered.join(", ") })
        }
    }
}

/// The layers a consumer can choose from. In simulcast each encoding is a spatial layer, and all are taken to have as many
/// temporal layers as the first that names any.
fn scalability_mode(encodings: &[RtpEncodingParameters]) -> Option<String> {
    let mut named = encodings.iter().filter_map(|encoding| encoding.scalability_mode.as_deref());
    let named = named.find(|mode| !mode.is_empty());
    if encodings.len() > 1 {
        Some(format!("L{}T{}", encodings.len(), ScalabilityMode::parse(named).temporal_layers))
    } else {
        named.map(str::to_owned)
    }
}
