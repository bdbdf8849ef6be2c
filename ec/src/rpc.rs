//! What NUVE and EAs ask of an EC, and its heartbeat.

use std::sync::Arc;

use roomlog_bus::{
    bus::{Headers, Message, respond},
    commit::{Payload, StreamId},
    ids::{RoomId, Version},
    rpc::{EcAnswer, EcRequest, Heartbeat, RpcError},
    subject::Subject,
};
use tokio::sync::oneshot;

use crate::{
    Shared,
    decide::{Command, Refusal},
    room::RoomMessage,
};

/// Says once a second that this EC is there, and how much it holds.
pub(crate) async fn beat(shared: &Shared, node: StreamId) {
    let mut every = tokio::time::interval(shared.settings.heartbeat_every);
    loop {
        every.tick().await;
        let heartbeat = Heartbeat {
            node: node.clone(),
            incarnation: shared.log.writer().incarnation,
            rooms: shared.rooms.len() as u64,
            clients: shared.metrics.sockets(),
            draining: shared.is_draining(),
        };
        let message = Message {
            subject: Subject::heartbeat(&node),
            reply: None,
            headers: Headers::new(),
            payload: Payload::encode(&heartbeat).0,
        };
        if let Err(error) = shared.bus.publish(message).await {
            tracing::warn!(%error, "no heartbeat sent");
        }
    }
}

/// Answers one RPC, in a task of its own where it has to wait for a room.
pub(crate) fn serve(shared: &Arc<Shared>, message: Message) {
    let request: EcRequest = match Payload(message.payload.clone()).decode() {
        Ok(request) => request,
        Err(error) => {
            let answer: Result<EcAnswer, RpcError> = Err(RpcError::Malformed { reason: error.to_string() });
            return reply(shared, message, async move { answer });
        }
    };
    match request {
        EcRequest::Notification { notification } => {
            // A room that does not run has nobody to tell; its inventory finds what is left.
            if shared.rooms.runs(&notification.room) {
                let told = RoomMessage::Notification {
                    media_epoch: notification.media_epoch,
                    notification: notification.notification,
                };
                if let Err(refusal) = shared.rooms.send(shared, &notification.room, told) {
                    tracing::debug!(room = %notification.room, %refusal, "notification dropped");
                }
            }
        }
        EcRequest::RemoveClient { room, client, reason } => {
            apply(shared, message, room, Command::Leave { client, reason });
        }
        EcRequest::ChangeRights { room, client, role, rights } => {
            apply(shared, message, room, Command::ChangeRights { client, role, rights });
        }
        EcRequest::Mute { room, client, producer, muted } => {
            apply(shared, message, room, Command::Mute { by: None, client, producer, muted });
        }
        EcRequest::ChangeRoom { room, metadata, limits, if_version } => {
            apply(shared, message, room, Command::ChangeRoom { metadata, limits, if_version });
        }
        EcRequest::DeleteRoom { room, reason, if_version } => {
            apply(shared, message, room, Command::Delete { reason, if_version });
        }
        EcRequest::RoomState { room } => {
            if !shared.rooms.runs(&room) {
                let version = Version(0);
                return reply(shared, message, async move {
                    Ok(EcAnswer::State { version, state: serde_json::Value::Null })
                });
            }
            let (sender, done) = oneshot::channel();
            let sent = shared.rooms.send(shared, &room, RoomMessage::State { reply: sender });
            reply(shared, message, async move {
                sent.map_err(|refusal| rpc_error(&room, refusal))?;
                let (version, state) =
                    done.await.map_err(|_| RpcError::Retry { reason: "the room ended meanwhile".into() })?;
                Ok(EcAnswer::State { version, state })
            });
        }
    }
}

/// Has the room do what the application wants, and answers with its version then.
fn apply(shared: &Arc<Shared>, message: Message, room: RoomId, command: Command) {
    let (sender, done) = oneshot::channel();
    let sent =
        shared.rooms.send(shared, &room, RoomMessage::Apply { command: Box::new(command), reply: sender });
    reply(shared, message, version_of(room, sent.map(|_| done)));
}

async fn version_of(
    room: RoomId,
    sent: Result<oneshot::Receiver<Result<Version, Refusal>>, Refusal>,
) -> Result<EcAnswer, RpcError> {
    let done = sent.map_err(|refusal| rpc_error(&room, refusal))?;
    match done.await {
        Ok(Ok(version)) => Ok(EcAnswer::Version { version }),
        Ok(Err(refusal)) => Err(rpc_error(&room, refusal)),
        Err(_) => Err(RpcError::Retry { reason: "the room ended meanwhile".into() }),
    }
}

fn rpc_error(room: &RoomId, refusal: Refusal) -> RpcError {
    match refusal {
        Refusal::WrongHost => RpcError::NotOwner { room: room.clone() },
        Refusal::NoRoom => RpcError::NotFound { what: format!("room {room}") },
        Refusal::NoClient(client) => RpcError::NotFound { what: format!("client {client}") },
        Refusal::NoObject(what, id) => RpcError::NotFound { what: format!("{what} {id}") },
        Refusal::OtherVersion(version) => RpcError::Version { version },
        refusal @ (Refusal::NotAllowed(_) | Refusal::BadRequest(_)) => {
            RpcError::Refused { reason: refusal.to_string() }
        }
        refusal => RpcError::Retry { reason: refusal.to_string() },
    }
}

fn reply(
    shared: &Arc<Shared>,
    request: Message,
    answer: impl Future<Output = Result<EcAnswer, RpcError>> + Send + 'static,
) {
    let bus = shared.bus.clone();
    tokio::spawn(async move {
        let answer = answer.await;
        if let Err(error) = respond(bus.as_ref(), &request, Payload::encode(&answer).0).await {
            tracing::warn!(%error, "answer not sent");
        }
    });
}
