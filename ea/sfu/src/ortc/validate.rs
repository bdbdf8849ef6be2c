//! Whether capabilities and parameters make sense by themselves.

use roomlog_bus::ortc::{FmtpValue, RtpCapabilities, RtpParameters};

use super::{OrtcError, codecs::Codec};

/// Codecs in one document. Payload types have seven bits, so more could not be told apart; capabilities of browsers list about 50.
pub const MAX_CODECS: usize = 128;
/// Header extensions in one document: browsers list about 30 over both kinds, ids are eight bits, and each is compared with each.
pub const MAX_HEADER_EXTENSIONS: usize = 128;
/// Encodings of one producer: browsers send up to 4; each costs the worker a stream's worth of state.
pub const MAX_ENCODINGS: usize = 8;

/// Payload types have seven bits (RFC 3550 §5.1).
const MAX_PAYLOAD_TYPE: u8 = 127;

/// Checks what an endpoint says it can receive.
///
/// Nothing is filled in: where a default belongs (channels, kind), the functions of this module apply it when they compare.
pub fn validate_rtp_capabilities(caps: &RtpCapabilities) -> Result<(), OrtcError> {
    at_most("codecs", caps.codecs.len(), MAX_CODECS)?;
    at_most("headerExtensions", caps.header_extensions.len(), MAX_HEADER_EXTENSIONS)?;
    caps.codecs.iter().try_for_each(validate_codec)?;
    for extension in &caps.header_extensions {
        if extension.kind.is_none() {
            return Err(OrtcError::MissingExtensionKind { uri: extension.uri.to_string() });
        }
        if extension.uri.is_empty() {
            return Err(OrtcError::MissingExtensionUri);
        }
    }
    Ok(())
}

/// Checks what a producer says it sends, as far as that can be judged without a router.
pub fn validate_rtp_parameters(params: &RtpParameters) -> Result<(), OrtcError> {
    at_most("codecs", params.codecs.len(), MAX_CODECS)?;
    at_most("headerExtensions", params.header_extensions.len(), MAX_HEADER_EXTENSIONS)?;
    at_most("encodings", params.encodings.len(), MAX_ENCODINGS)?;
    params.codecs.iter().try_for_each(validate_codec)?;
    for extension in &params.header_extensions {
        if extension.uri.is_empty() {
            return Err(OrtcError::MissingExtensionUri);
        }
    }
    Ok(())
}

pub(super) fn validate_codec(codec: &impl Codec) -> Result<(), OrtcError> {
    let mime_type = || codec.mime_type().to_owned();
    if codec.kind().is_none() {
        return Err(OrtcError::InvalidMimeType { mime_type: mime_type() });
    }
    for (key, value) in codec.parameters() {
        let expected = match value {
            FmtpValue::Flag(_) => "a number or text",
            FmtpValue::Text(_) if key == "apt" => "a number",
            _ => continue,
        };
        return Err(OrtcError::InvalidCodecParameter {
            mime_type: mime_type(),
            key: key.to_string(),
            expected,
        });
    }
    if codec.feedback().iter().any(|feedback| feedback.kind.is_empty()) {
        return Err(OrtcError::InvalidFeedback { mime_type: mime_type() });
    }
    match codec.pt() {
        Some(payload_type) if payload_type > MAX_PAYLOAD_TYPE => {
            Err(OrtcError::PayloadTypeOutOfRange { payload_type })
        }
        _ => Ok(()),
    }
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), OrtcError> {
    if count > limit { Err(OrtcError::TooMany { what, count, limit }) } else { Ok(()) }
}
