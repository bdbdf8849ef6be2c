//! Measurements that anybody can repeat: what `roomlog bench` runs.
//!
//! [`media`] measures the way of a packet through a real SFU worker, [`log`] that of a commit to the disk and back into state,
//! [`token`] what the token route of NUVE takes, [`join`] what a whole join does.

#![forbid(unsafe_code)]

pub mod join;
pub mod log;
pub mod media;
pub mod token;
mod up;
