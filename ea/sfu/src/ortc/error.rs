//! Why an ORTC document was refused.

use roomlog_bus::ortc::MediaKind;

/// A refusal of RTP capabilities or parameters. Each message names the field to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrtcError {
    /// Not `audio/…` or `video/…`.
    #[error("codec has MIME type {mime_type:?}: expected audio/<name> or video/<name>")]
    InvalidMimeType {
        /// What was given.
        mime_type: String,
    },
    /// A codec parameter that is neither number nor text, or an `apt` that is no number.
    #[error("codec {mime_type} has a parameter {key:?} of the wrong type: expected {expected}")]
    InvalidCodecParameter {
        /// The codec.
        mime_type: String,
        /// The parameter.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
    /// RTCP feedback without a type.
    #[error(
        "codec {mime_type} lists an RTCP feedback without a type: name it (nack, ccm, …) or leave it out"
    )]
    InvalidFeedback {
        /// The codec.
        mime_type: String,
    },
    /// A header extension without a URI.
    #[error("a header extension has no URI: name it or leave it out")]
    MissingExtensionUri,
    /// A header extension capability for no kind of media.
    #[error("header extension {uri} names no kind of media: list it once for audio and once for video")]
    MissingExtensionKind {
        /// The extension.
        uri: String,
    },
    /// An RTX codec whose `apt` names no codec of the same document.
    #[error("RTX payload type {payload_type} belongs to no media codec: set its apt to one of the others")]
    RtxWithoutMedia {
        /// The RTX payload type.
        payload_type: u8,
    },
    /// The mapping was made from other parameters.
    #[error("the mapping holds no {what} of these RTP parameters: pass the mapping made from the same ones")]
    MappingMismatch {
        /// `payload type …`, `encoding …`.
        what: String,
    },

    /// The router does not know the codec.
    #[error("the router does not support {mime_type} (payload type {payload_type}) with these parameters")]
    UnsupportedCodec {
        /// The codec.
        mime_type: String,
        /// Its payload type; 0 where none was given.
        payload_type: u8,
    },
    /// The router has no RTX for the codec.
    #[error("the router has no RTX for its payload type {payload_type}: leave RTX out")]
    RouterHasNoRtx {
        /// The router's payload type of the media codec.
        payload_type: u8,
    },
    /// The router wants more payload types than there are, or one of them twice.
    #[error("no payload type is left for {mime_type}: offer fewer codecs, or other preferred payload types")]
    NoPayloadTypeLeft {
        /// The codec.
        mime_type: String,
    },
    /// Producer and consumer share no codec.
    #[error("the client can receive none of the producer's codecs ({offered})")]
    NoCompatibleCodec {
        /// The producer's codecs.
        offered: String,
    },

    /// A payload type above 127 (RFC 3550 §5.1 gives it seven bits).
    #[error("payload type {payload_type} does not fit into seven bits")]
    PayloadTypeOutOfRange {
        /// What was given.
        payload_type: u8,
    },
    /// Two codecs with one payload type.
    #[error("payload type {payload_type} is used by two codecs")]
    DuplicatePayloadType {
        /// That payload type.
        payload_type: u8,
    },
    /// RTX of RTX.
    #[error("RTX payload type {payload_type} repairs another RTX codec: set its apt to a media codec")]
    RtxOfRtx {
        /// The RTX payload type.
        payload_type: u8,
    },
    /// No codec but RTX.
    #[error("no media codec: list at least one beside RTX")]
    NoMediaCodec,
    /// A codec of the other kind of media; it would pass permissions given for one kind only.
    #[error("codec {mime_type} on a producer of {kind:?}: produce each kind on its own")]
    KindMismatch {
        /// The codec.
        mime_type: String,
        /// What the producer said it was.
        kind: MediaKind,
    },
    /// A header extension with id 0, which is padding (RFC 8285 §4.2).
    #[error("header extension {uri} has id 0: ids start at 1")]
    ExtensionIdZero {
        /// The extension.
        uri: String,
    },
    /// An encoding's `codecPayloadType` is not that of a media codec.
    #[error("encoding {index} uses payload type {payload_type}, which is no media codec of this producer")]
    UnknownEncodingPayloadType {
        /// Which encoding.
        index: usize,
        /// Its payload type.
        payload_type: u8,
    },
    /// Simulcast of SVC.
    #[error(
        "encoding {index} has several spatial layers beside other encodings: use simulcast or SVC, not both"
    )]
    SimulcastWithSvc {
        /// Which encoding.
        index: usize,
    },
    /// Several encodings of a codec whose layers cannot be switched.
    #[error("{mime_type} cannot be sent in several encodings: send one")]
    SimulcastUnsupported {
        /// The codec.
        mime_type: String,
    },
    /// An encoding whose packets could not be told from others'.
    #[error("encoding {index} has neither SSRC nor rid{}: its packets could not be recognised",
        if *.needs_mid { " nor the producer a mid" } else { "" })]
    UnidentifiedEncoding {
        /// Which encoding.
        index: usize,
        /// Whether a `mid` would have been enough.
        needs_mid: bool,
    },
    /// A list longer than its limit.
    #[error("{what}: {count} entries, at most {limit} are taken")]
    TooMany {
        /// Which list.
        what: &'static str,
        /// How long it was.
        count: usize,
        /// The limit.
        limit: usize,
    },
}

impl OrtcError {
    /// True where the document is well-formed but asks for what router or client cannot do; false where it is wrong.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::UnsupportedCodec { .. } | Self::RouterHasNoRtx { .. } | Self::NoCompatibleCodec { .. }
        )
    }

    /// True for what mediasoup's JavaScript lets pass (its worker refuses most of it later, as we do here at once).
    pub fn is_stricter(&self) -> bool {
        matches!(
            self,
            Self::PayloadTypeOutOfRange { .. }
                | Self::DuplicatePayloadType { .. }
                | Self::RtxOfRtx { .. }
                | Self::NoMediaCodec
                | Self::KindMismatch { .. }
                | Self::ExtensionIdZero { .. }
                | Self::UnknownEncodingPayloadType { .. }
                | Self::SimulcastWithSvc { .. }
                | Self::SimulcastUnsupported { .. }
                | Self::UnidentifiedEncoding { .. }
                | Self::TooMany { .. }
        )
    }
}
