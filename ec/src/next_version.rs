//! What the version after this one might write: an event that this one does not know, and fields that it does not know. Built for
//! `tests/tests/cluster_upgrade.rs` alone, where nodes of both versions serve the same rooms.

use roomlog_bus::{
    carried::More,
    commit::{Cause, Payload, RawEvent},
    events::Event,
};

/// Adds to a decision, and to what led to it, what is new.
pub(crate) fn add(events: &mut Vec<Event>, cause: &mut Cause) {
    let more = More::default().with("addedNext", &1);
    cause.more = more.clone();
    let noticed =
        RawEvent::new("RoomNoticed", 1, Payload::encode(&serde_json::json!({ "by": "the next version" })));
    events.push(Event::Unknown(RawEvent { more, ..noticed }));
}
