//! One file a target.

pub mod control;
pub mod dtls;
pub mod http;
pub mod log;
pub mod ortc;
pub mod packet;
pub mod protoo;
pub mod srtp;
pub mod token;
pub mod worker;

/// The worker's tests' own native client: ICE, DTLS and SRTP on a clock that is moved by hand.
#[path = "../../../../ea/sfu/tests/common/mod.rs"]
#[allow(missing_docs, reason = "a helper of tests")]
pub mod common;

/// NUVE's tests' own cell in memory.
#[path = "../../../../nuve/tests/support/mod.rs"]
#[allow(missing_docs, reason = "a helper of tests")]
pub mod nuve_support;
