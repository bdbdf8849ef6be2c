//! Where an EA is chosen. One file per policy; each is a pure function from what is known of the EAs to a choice that explains itself.

pub mod room_best;

use roomlog_bus::{
    events::Candidate,
    ids::{EaId, Incarnation},
};

/// What an EC knows of one EA at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EaView {
    /// Which.
    pub ea: EaId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Rooms on it, those in flight counted.
    pub rooms: u64,
    /// Why it takes no part, if so.
    pub excluded: Option<&'static str>,
}

/// A choice with everything that was considered.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The chosen; none when nobody can.
    pub ea: Option<EaId>,
    /// Every EA considered, sorted by id.
    pub candidates: Vec<Candidate>,
}
