//! The log, its events, and the bus they travel on.
//!
//! This crate knows no role: it defines what NUVE, EC and EA share. See `docs/` for the picture; the module list is the map.

pub mod ids;
pub mod media;
pub mod ortc;
