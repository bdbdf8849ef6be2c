//! The folds over the log: what rooms, nodes and services are, at any version.
//!
//! Everything that has state in Roomlog gets it from here; a state nobody can fold from the log does not exist.

#![forbid(unsafe_code)]

pub mod archive;
pub mod checkpoint;
pub mod directory;
pub mod membership;
pub mod node;
pub mod replay;
pub mod replay_text;
pub mod retention;
pub mod room;
pub mod service;
mod signal;
pub mod timeline;
mod timeline_ids;
pub mod timeline_words;
pub mod verify;
mod verify_nodes;
mod verify_room;
mod verify_service;
mod verify_turns;
