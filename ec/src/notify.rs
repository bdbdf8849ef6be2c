//! What clients are told of a commit. Pure, so that a client that comes back is told the same from a replay.

use roomlog_bus::{
    commit::Commit,
    events::{Event, EventError, ProducerMuted, ProducerUnmuted},
    ids::{ClientId, ConsumerId, ProducerId, Version},
};
use roomlog_projections::room::{FoldError, RoomState};
use serde_json::{Value, json};

/// One thing one client is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// A notification; `data.v` is the version of its event.
    Notification {
        /// To whom.
        client: ClientId,
        /// Method.
        method: &'static str,
        /// Data with `v`.
        data: Value,
    },
    /// A `newConsumer` request for a consumer that the client has not accepted yet.
    NewConsumer {
        /// To whom.
        client: ClientId,
        /// Which.
        consumer: ConsumerId,
    },
    /// The client is out: its socket is closed with 4000 and this reason.
    Out {
        /// Who.
        client: ClientId,
        /// The reason.
        reason: String,
    },
}

/// Folds `commit` into `state` and says who is told what of it.
pub fn fold_and_tell(state: &mut RoomState, commit: &Commit) -> Result<Vec<Told>, FoldError> {
    let events = commit.events.iter().map(Event::decode).collect::<Result<Vec<_>, EventError>>()?;
    let mut check = RoomState { head: state.head, ..RoomState::default() };
    if !commit.follows(check.head.as_ref()) {
        check.apply_commit(commit)?; // the error says what does not follow
    }
    let mut told = Vec::new();
    for (i, event) in events.iter().enumerate() {
        tell(state, event, Version(commit.version.0 + i as u64), &mut told);
        state.apply(event, commit.time);
    }
    state.head = Some(commit.head());
    Ok(told)
}

/// What `event` means to the clients of the room as it was before it.
fn tell(before: &RoomState, event: &Event, version: Version, told: &mut Vec<Told>) {
    let v = version.0;
    let mut notify = |client: &ClientId, method: &'static str, data: Value| {
        told.push(Told::Notification { client: client.clone(), method, data });
    };
    let others = |except: &ClientId| {
        let except = except.clone();
        before.clients.iter().filter(move |(id, c)| **id != except && c.joined.is_some()).map(|(id, _)| id)
    };
    let consumers_of = |producer: &ProducerId| {
        let producer = producer.clone();
        before.consumers.iter().filter(move |(_, c)| c.producer == producer)
    };
    match event {
        Event::ClientJoined(e) => {
            for client in others(&e.client) {
                notify(
                    client,
                    "newPeer",
                    json!({ "id": e.client, "displayName": e.display_name, "device": e.device, "v": v }),
                );
            }
        }
        Event::ClientLeft(e) => {
            for (producer, _) in before.producers.iter().filter(|(_, p)| p.client == e.client) {
                for (id, consumer) in consumers_of(producer).filter(|(_, c)| c.client != e.client) {
                    notify(&consumer.client, "consumerClosed", json!({ "consumerId": id, "v": v }));
                }
            }
            if before.clients.get(&e.client).is_some_and(|c| c.joined.is_some()) {
                for client in others(&e.client) {
                    notify(client, "peerClosed", json!({ "peerId": e.client, "v": v }));
                }
            }
            told.push(Told::Out { client: e.client.clone(), reason: e.reason.to_string() });
        }
        // Who starts over is gone for the others until it joins again.
        Event::ClientResumed(e)
            if e.how == "reattach" && before.clients.get(&e.client).is_some_and(|c| c.joined.is_some()) =>
        {
            for client in others(&e.client) {
                notify(client, "peerClosed", json!({ "peerId": e.client, "v": v }));
            }
        }
        Event::DisplayNameChanged(e) => {
            for client in others(&e.client) {
                notify(
                    client,
                    "peerDisplayNameChanged",
                    json!({ "peerId": e.client, "displayName": e.display_name, "oldDisplayName": e.old_display_name, "v": v }),
                );
            }
        }
        Event::ProducerMuted(ProducerMuted { producer, .. })
        | Event::ProducerUnmuted(ProducerUnmuted { producer, .. }) => {
            if let Some(owner) = before.producers.get(producer).map(|p| &p.client) {
                let muted = matches!(event, Event::ProducerMuted(_));
                notify(owner, "producerMuted", json!({ "producerId": producer, "muted": muted, "v": v }));
            }
        }
        Event::ClientRightsChanged(e) => {
            notify(&e.client, "rightsChanged", json!({ "role": e.role, "rights": e.rights, "v": v }));
        }
        Event::ProducerPaused(e) => {
            for (id, consumer) in consumers_of(&e.producer) {
                notify(&consumer.client, "consumerPaused", json!({ "consumerId": id, "v": v }));
            }
        }
        Event::ProducerResumed(e) => {
            for (id, consumer) in consumers_of(&e.producer) {
                notify(&consumer.client, "consumerResumed", json!({ "consumerId": id, "v": v }));
            }
        }
        Event::ProducerClosed(e) => {
            // Whoever closed it itself knows.
            if e.reason != "closed"
                && let Some(producer) = before.producers.get(&e.producer)
            {
                let data = json!({ "producerId": e.producer, "reason": e.reason, "v": v });
                notify(&producer.client, "producerClosed", data);
            }
            for (id, consumer) in consumers_of(&e.producer) {
                notify(&consumer.client, "consumerClosed", json!({ "consumerId": id, "v": v }));
            }
        }
        Event::TransportClosed(e) => {
            for (producer, _) in before.producers.iter().filter(|(_, p)| p.transport == e.transport) {
                for (id, consumer) in consumers_of(producer) {
                    notify(&consumer.client, "consumerClosed", json!({ "consumerId": id, "v": v }));
                }
            }
        }
        Event::ConsumerClosed(e) if e.reason != "refused" => {
            if let Some(consumer) = before.consumers.get(&e.consumer) {
                notify(&consumer.client, "consumerClosed", json!({ "consumerId": e.consumer, "v": v }));
            }
        }
        Event::ConsumerCreated(e) => {
            told.push(Told::NewConsumer { client: e.client.clone(), consumer: e.consumer.clone() })
        }
        Event::MediaMoved(e) => {
            for client in before.clients.keys() {
                notify(
                    client,
                    "mediaMoved",
                    json!({
                        "mediaEpoch": e.media_epoch,
                        "reason": e.reason,
                        "ea": e.to.as_ref().map(|to| &to.ea),
                        "worker": e.to.as_ref().map(|to| to.worker),
                        "v": v,
                    }),
                );
            }
        }
        _ => {}
    }
}

/// The data of the `newConsumer` request for `consumer`, none if it is gone. `v` is the version it was asked at.
pub fn new_consumer(state: &RoomState, id: &ConsumerId) -> Option<Value> {
    let consumer = state.consumers.get(id)?;
    let producer = state.producers.get(&consumer.producer)?;
    let app_data = if producer.app_data.is_object() { producer.app_data.clone() } else { json!({}) };
    Some(json!({
        "peerId": producer.client,
        "producerId": consumer.producer,
        "id": id,
        "kind": consumer.kind,
        "rtpParameters": consumer.rtp_parameters,
        "type": consumer.consumer_type,
        "appData": app_data,
        "producerPaused": producer.paused,
        "v": state.version(),
    }))
}

/// The joined clients but `client`, as `join` and a full `resume` list them.
pub fn peers(state: &RoomState, client: &ClientId) -> Vec<Value> {
    state
        .clients
        .iter()
        .filter(|(id, _)| *id != client)
        .filter_map(|(id, c)| {
            let joined = c.joined.as_ref()?;
            Some(json!({ "id": id, "displayName": joined.display_name, "device": joined.device }))
        })
        .collect()
}
