//! Users of a room: its clients, as its fold has them, and putting one out.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    ids::{ClientId, ProducerId, RoomId, Version},
    ortc::MediaKind,
    rpc::EcRequest,
};
use roomlog_projections::room::{Client, RoomState};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    app::AppState,
    http::{At, Params, SecretKey, version_header},
    problem::{self, Problem},
    rooms::{MinVersion, Page, RoomRef},
    tokens::{Kind, RightsDocument},
};

/// A user in a room.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The client's id.
    #[schema(value_type = String)]
    id: ClientId,
    /// The name its token was made for.
    user: String,
    /// The name it goes by; absent until it has joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
    /// What it may do.
    role: String,
    /// What it may do one by one.
    rights: RightsDocument,
    /// What it sends.
    producers: Vec<Sent>,
    /// Whether it has joined, so that others see it.
    joined: bool,
    /// Whether its socket is there; it may come back if not.
    connected: bool,
    /// The EA that carries its media.
    #[serde(skip_serializing_if = "Option::is_none")]
    ea: Option<String>,
    /// When it was let in, Unix milliseconds.
    since: u64,
}

/// Something a user sends.
#[derive(Serialize, ToSchema)]
pub struct Sent {
    /// The producer's id.
    #[schema(value_type = String)]
    id: ProducerId,
    /// Audio or video.
    #[schema(value_type = Kind)]
    kind: MediaKind,
    /// Whether nothing is passed on.
    paused: bool,
    /// Whether that is not for the user to change.
    muted: bool,
}

/// Users of a room.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Users {
    /// The room.
    #[schema(value_type = String)]
    room_id: RoomId,
    /// The version of the room they are of.
    version: u64,
    /// Sorted by id.
    users: Vec<User>,
    /// What `after` is to be for the next page; null on the last.
    next: Option<String>,
}

pub(crate) fn describe(state: &RoomState, id: &ClientId, client: &Client) -> User {
    let producers = state.producers.iter().filter(|(_, producer)| producer.client == *id);
    User {
        rights: client.rights().into(),
        producers: producers
            .map(|(id, sent)| Sent {
                id: id.clone(),
                kind: sent.kind,
                paused: sent.paused,
                muted: sent.muted,
            })
            .collect(),
        id: id.clone(),
        user: client.user.clone(),
        display_name: client.joined.as_ref().map(|joined| joined.display_name.clone()),
        role: client.role.clone(),
        joined: client.joined.is_some(),
        connected: client.resume_until.is_none(),
        ea: client.ea.as_ref().map(ToString::to_string),
        since: client.admitted.as_millis(),
    }
}

pub(crate) fn no_user(room: &RoomRef, user: &str) -> Problem {
    problem::NO_USER.detail(format!("User {user:?} is not in room {room}."))
}

/// Lists who is in a room.
#[utoipa::path(get, path = "/v1/rooms/{room}/users", tag = "users", params(("room" = String, Path), MinVersion, Page), security(("secret" = [])), responses(
    (status = 200, body = Users), (status = 404, body = problem::ProblemDocument),
    (status = 412, description = "the room has no such version yet", body = problem::ProblemDocument),
))]
pub async fn list(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At(room): At<String>,
    Params(params): Params<MinVersion>,
    Params(page): Params<Page>,
) -> Result<Response, Problem> {
    let limit = page.limit()?;
    let all = |id: &RoomId, state: &RoomState| {
        let (users, next) = page.of(limit, state.clients.iter(), |id| id.as_str());
        let users = users.into_iter().map(|(id, client)| describe(state, id, client)).collect();
        Users { room_id: id.clone(), version: state.version().0, users, next }
    };
    let users = app.look_from(&service, &RoomRef::parse(&room)?, params.min_version, all).await?;
    Ok((version_header(Version(users.version)), Json(users)).into_response())
}

/// Reads one user.
#[utoipa::path(get, path = "/v1/rooms/{room}/users/{user}", tag = "users", params(
    ("room" = String, Path), ("user" = String, Path), MinVersion), security(("secret" = [])), responses(
    (status = 200, body = User), (status = 404, body = problem::ProblemDocument),
    (status = 412, description = "the room has no such version yet", body = problem::ProblemDocument),
))]
pub async fn get(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At((room, user)): At<(String, String)>,
    Params(params): Params<MinVersion>,
) -> Result<Response, Problem> {
    let room = RoomRef::parse(&room)?;
    let client = ClientId::new(&user).map_err(|_| no_user(&room, &user))?;
    let one = |_: &RoomId, state: &RoomState| {
        let user = state.clients.get(&client).map(|found| describe(state, &client, found));
        (state.version(), user)
    };
    let (version, found) = app.look_from(&service, &room, params.min_version, one).await?;
    let found = found.ok_or_else(|| no_user(&room, &user))?;
    Ok((version_header(version), Json(found)).into_response())
}

/// Puts a user out of a room.
#[utoipa::path(delete, path = "/v1/rooms/{room}/users/{user}", tag = "users", params(
    ("room" = String, Path), ("user" = String, Path)), security(("secret" = [])), responses(
    (status = 204, description = "put out", headers(("Roomlog-Version" = u64, description = "version of the room"))),
    (status = 404, body = problem::ProblemDocument), (status = 503, description = "the room's EC does not answer", body = problem::ProblemDocument),
))]
pub async fn delete(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At((room, user)): At<(String, String)>,
) -> Result<Response, Problem> {
    let room = RoomRef::parse(&room)?;
    let client = ClientId::new(&user).map_err(|_| no_user(&room, &user))?;
    let request = |room: &RoomId| EcRequest::RemoveClient {
        room: room.clone(),
        client: client.clone(),
        reason: "kicked".into(),
    };
    let version = app.at_owner(&service, &room, || no_user(&room, &user), request).await?;
    Ok((StatusCode::NO_CONTENT, version_header(version)).into_response())
}
