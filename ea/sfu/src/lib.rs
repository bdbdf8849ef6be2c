//! The SFU worker: a single-threaded process that moves packets between the clients of its rooms.

pub mod control;
pub mod ortc;
