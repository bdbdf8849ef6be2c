//! Measurements that anybody can repeat: what `roomlog bench` runs.
//!
//! [`media`] measures the way of a packet through a real SFU worker.

#![forbid(unsafe_code)]

pub mod media;
