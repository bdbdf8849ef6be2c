//! What the application changes in a room and of who is in it. The room's owner does it; a room that has none is given one first.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    commit::{Cause, StreamId},
    events::RoomLimits,
    ids::{ClientId, ProducerId, RoomId, ServiceId, Version},
    journal::read_all,
    rights::Rights,
    rpc::{EcAnswer, EcRequest, RpcError},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    app::{App, AppState},
    conditions::{IfMatch, changed, versioned},
    ecs::Health,
    http::{At, Because, Body, SecretKey, version_header},
    placement::{RoomBrief, silent},
    problem::{self, Problem},
    rooms::{Limits, Room, RoomRef, check_metadata, describe, ec_failed, no_room},
    tokens::{RightsDocument, Role},
    users::{self, User, no_user},
};

/// A change of a part of a room is tried so often when the room changes meanwhile: each round takes a few milliseconds.
const CHANGE_ROUNDS: u32 = 8;

impl App {
    /// Has the owner of a room do something to what is in it; `missing` is the refusal where that is not there.
    pub(crate) async fn at_owner(
        &self,
        service: &ServiceId,
        room: &RoomRef,
        missing: impl Fn() -> Problem,
        request: impl Fn(&RoomId) -> EcRequest,
    ) -> Result<Version, Problem> {
        /// How often the owner is looked up again when it says that it is not the owner any more.
        const ROUNDS: u32 = 3;
        let (id, mut owner) =
            self.look_from(service, room, None, |id, state| (id.clone(), state.owner.clone())).await?;
        for _ in 0..ROUNDS {
            // A room that no EC ever had has nothing in it.
            let owning = owner.ok_or_else(&missing)?;
            if self.health_of(&owning) == Health::Lost {
                return Err(silent(&id, &owning.ec));
            }
            match self.ask_owner(&owning, &request(&id)).await {
                Ok(EcAnswer::Version { version }) => return Ok(version),
                Err(RpcError::NotFound { what }) if what.starts_with("room ") => return Err(no_room(room)),
                Err(RpcError::NotFound { .. }) => return Err(missing()),
                Err(RpcError::Version { version }) => return Err(changed(version)),
                Err(RpcError::Refused { reason }) => {
                    return Err(problem::REFUSED.detail(format!("{reason}.")));
                }
                Err(RpcError::NotOwner { .. }) => {
                    let state = self.room_in_journal(&id).await?.filter(|state| !state.deleted);
                    owner = state.ok_or_else(|| no_room(&id))?.owner;
                }
                other => return Err(ec_failed(&id, &owning, other)),
            }
        }
        Err(problem::CONTENDED.detail(format!("Room {id} moves from EC to EC.")).retry_after(1))
    }

    /// Refuses where a room has had more since version `seen` than an EC: the caller has seen what it changes, but for that.
    async fn only_placed(&self, room: &RoomId, seen: Version, now: Version) -> Result<(), Problem> {
        if now <= seen {
            return Ok(());
        }
        let since = read_all(&*self.journal, &StreamId::from(room), seen.next()).await?;
        let since = since.iter().flat_map(|commit| {
            (commit.version.0..).zip(&commit.events).map(|(version, event)| (version, event.kind.as_str()))
        });
        match since.take_while(|(version, _)| *version <= now.0).any(|(_, kind)| kind != "RoomPlaced") {
            true => Err(changed(now)),
            false => Ok(()),
        }
    }

    /// Gives a room an EC that lives, unless it has one.
    async fn with_owner(&self, service: &ServiceId, room: &RoomRef, cause: Cause) -> Result<(), Problem> {
        let brief = self.look_from(service, room, None, RoomBrief::of).await?;
        let lives = brief.owner.as_ref().is_some_and(|owner| self.health_of(owner) < Health::Lost);
        if !lives {
            let id = brief.id.clone();
            let placed = self.place(brief, cause).await?;
            self.look_from(service, &RoomRef::Id(id), Some(placed.version.0), |_, _| ()).await?;
        }
        Ok(())
    }
}

/// What of a room is to change; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoomChange {
    /// The application's own, in place of all of it.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// What bounds it, in place of all of it.
    #[serde(default, deserialize_with = "crate::http::object")]
    limits: Option<Limits>,
}

/// Changes a room. Fewer `maxClients` put nobody out.
#[utoipa::path(patch, path = "/v1/rooms/{room}", operation_id = "change", tag = "rooms", request_body = RoomChange,
    params(("room" = String, Path), ("If-Match" = Option<String>, Header, description = "only if it has this `ETag`")), security(("secret" = [])), responses(
    (status = 200, body = Room, headers(("Roomlog-Version" = u64, description = "version of the room"))),
    (status = 404, body = problem::ProblemDocument), (status = 409, body = problem::ProblemDocument),
    (status = 412, description = "it has changed since", body = problem::ProblemDocument),
))]
pub async fn change_room(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    Because(cause): Because,
    if_match: IfMatch,
    At(room): At<String>,
    Body(change): Body<RoomChange>,
) -> Result<Response, Problem> {
    let room = RoomRef::parse(&room)?;
    let limits: Option<RoomLimits> = change.limits.as_ref().map(Limits::checked).transpose()?;
    let metadata = change.metadata.map(|new| check_metadata(Some(new))).transpose()?;
    let (id, seen) = app.look_from(&service, &room, None, |id, state| (id.clone(), state.version())).await?;
    let demanded = if_match.check(seen)?;
    let room = RoomRef::Id(id.clone());
    app.with_owner(&service, &room, cause).await?;
    let mut rounds = 0;
    let version = loop {
        let (now, old) =
            app.look_from(&service, &room, None, |_, state| (state.version(), state.info.clone())).await?;
        let old = old.ok_or_else(|| no_room(&room))?;
        if let Some(seen) = demanded {
            app.only_placed(&id, seen, now).await?;
        }
        // What is left out stays as it is, and not as it was: the owner is told of which version that is said.
        let depends = demanded.is_some() || metadata.is_none() || limits.is_none();
        let request = |room: &RoomId| EcRequest::ChangeRoom {
            room: room.clone(),
            metadata: metadata.clone().unwrap_or_else(|| old.metadata.clone()),
            limits: limits.unwrap_or(old.limits),
            if_version: depends.then_some(now),
        };
        rounds += 1;
        match app.at_owner(&service, &room, || no_room(&room), request).await {
            Err(refused) if refused.kind == problem::CHANGED && demanded.is_none() => {
                if rounds == CHANGE_ROUNDS {
                    return Err(problem::CONTENDED
                        .detail(format!("Room {id} changes all the time."))
                        .retry_after(1));
                }
                // This node's own view has to hear of it too.
                if let Some(version) = refused.extra.get("version").and_then(Value::as_u64) {
                    app.settle(&StreamId::from(&id), Version(version)).await;
                }
            }
            version => break version?,
        }
    };
    app.settle(&StreamId::from(&id), version).await;
    let changed = app.look_from(&service, &room, Some(version.0), describe).await?;
    Ok((versioned(version), Json(changed)).into_response())
}

/// What a user may do from now on: a role, with the rights that go with it, or rights one by one.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserChange {
    /// Its role; without it the role stays.
    #[serde(default)]
    role: Option<Role>,
    /// Its rights; without them those that go with the role.
    #[serde(default, deserialize_with = "crate::http::object")]
    rights: Option<RightsDocument>,
}

/// Changes what a user may do, at once: what it sends or receives without a right is closed.
#[utoipa::path(patch, path = "/v1/rooms/{room}/users/{user}", operation_id = "change", tag = "users", request_body = UserChange,
    params(("room" = String, Path), ("user" = String, Path)), security(("secret" = [])), responses(
    (status = 200, body = User, headers(("Roomlog-Version" = u64, description = "version of the room"))),
    (status = 404, body = problem::ProblemDocument), (status = 409, body = problem::ProblemDocument),
))]
pub async fn change_user(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At((room, user)): At<(String, String)>,
    Body(change): Body<UserChange>,
) -> Result<Response, Problem> {
    let room = RoomRef::parse(&room)?;
    let client = ClientId::new(&user).map_err(|_| no_user(&room, &user))?;
    let missing = || no_user(&room, &user);
    let was = app
        .look_from(&service, &room, None, |_, state| {
            state.clients.get(&client).map(|c| (c.role.clone(), c.rights()))
        })
        .await?;
    let (old_role, old_rights) = was.ok_or_else(missing)?;
    let (role, rights) = match (change.role, change.rights) {
        (role, Some(rights)) => (role.map_or(old_role, |role| role.as_str().to_owned()), rights.into()),
        (Some(role), None) => (role.as_str().to_owned(), Rights::of_role(role.as_str())),
        (None, None) => (old_role, old_rights),
    };
    let request = |room: &RoomId| EcRequest::ChangeRights {
        room: room.clone(),
        client: client.clone(),
        role: role.clone(),
        rights: rights.clone(),
    };
    let version = app.at_owner(&service, &room, missing, request).await?;
    shown(&app, &service, &room, &client, version).await
}

/// Whether something is passed on.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Muting {
    /// True: it is paused, and its user cannot resume it. False: its user may resume it; nobody else opens a microphone.
    muted: bool,
}

/// Mutes something that a user sends, or lets the user resume it. A user that is not to send at all loses the right to.
#[utoipa::path(patch, path = "/v1/rooms/{room}/users/{user}/producers/{producer}", operation_id = "mute", tag = "users", request_body = Muting,
    params(("room" = String, Path), ("user" = String, Path), ("producer" = String, Path)), security(("secret" = [])), responses(
    (status = 200, body = User, headers(("Roomlog-Version" = u64, description = "version of the room"))),
    (status = 404, body = problem::ProblemDocument), (status = 409, body = problem::ProblemDocument),
))]
pub async fn mute(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At((room, user, producer)): At<(String, String, String)>,
    Body(muting): Body<Muting>,
) -> Result<Response, Problem> {
    let room = RoomRef::parse(&room)?;
    let client = ClientId::new(&user).map_err(|_| no_user(&room, &user))?;
    let missing =
        || problem::NO_PRODUCER.detail(format!("User {user:?} of room {room} sends no {producer:?}."));
    let producer = ProducerId::new(&producer).map_err(|_| missing())?;
    let request = |room: &RoomId| EcRequest::Mute {
        room: room.clone(),
        client: client.clone(),
        producer: producer.clone(),
        muted: muting.muted,
    };
    let version = app.at_owner(&service, &room, missing, request).await?;
    shown(&app, &service, &room, &client, version).await
}

/// The user as it is at `version`.
async fn shown(
    app: &AppState,
    service: &ServiceId,
    room: &RoomRef,
    client: &ClientId,
    version: Version,
) -> Result<Response, Problem> {
    let one = |_: &RoomId, state: &_| look(state, client);
    let user = app.look_from(service, room, Some(version.0), one).await?;
    let user = user.ok_or_else(|| no_user(room, client.as_str()))?;
    Ok((StatusCode::OK, version_header(version), Json(user)).into_response())
}

fn look(state: &roomlog_projections::room::RoomState, client: &ClientId) -> Option<User> {
    state.clients.get(client).map(|found| users::describe(state, client, found))
}
