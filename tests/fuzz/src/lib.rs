//! What is fuzzed, and what must hold of it. Each target is a function of bytes that panics when something is wrong; `main.rs` hands them
//! to libFuzzer.
//!
//! A target demands more than that nothing panics: what is read is written and read again, the forged is refused, what comes out is
//! bounded by what went in.
#![forbid(unsafe_code)]

mod input;
pub mod seeds;
mod targets;

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("packet", targets::packet::run),
    ("srtp", targets::srtp::run),
    ("dtls", targets::dtls::run),
    ("worker", targets::worker::run),
    ("control", targets::control::run),
    ("ortc", targets::ortc::run),
    ("protoo", targets::protoo::run),
    ("http", targets::http::run),
    ("token", targets::token::run),
    ("log", targets::log::run),
];
