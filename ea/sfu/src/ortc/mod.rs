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

pub use roomlog_bus::extension as uri;
