//! Rooms: made, listed, read, deleted. A room is named by its id or by `name:<name>`.
//!
//! A name is unique within its service although any number of NUVE nodes make rooms at once: the id of a named room is computed from
//! service, name and a counter of deleted predecessors, so two makers meet on one stream, and its expected version lets one of them in.

use std::fmt;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    commit::{Cause, Head, Payload, StreamId},
    events::{EaPolicy, Event, RoomChanged, RoomCreated, RoomDeleted, RoomLimits, RoomPlaced},
    ids::{Epoch, RoomId, ServiceId, Version},
    journal::AppendError,
    log::Draft,
    rpc::{EcAnswer, EcRequest, RPC_TIMEOUT, RpcError, ask},
    subject::Subject,
};
use roomlog_projections::room::{Owner, RoomState};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use crate::{
    app::{App, AppState},
    conditions::{IfMatch, Known, changed, versioned},
    ecs::Health,
    http::{At, Because, Body, Params, SecretKey, version_header},
    idempotency::{self, IdempotencyKey},
    placement::{Placed, Verdict},
    problem::{self, Problem},
};

/// The longest room or user name, characters.
pub const MAX_NAME_CHARS: usize = 128;
/// The largest `metadata`, bytes of JSON: it is in every copy of the room's state.
const MAX_METADATA_BYTES: usize = 16 * 1024;
/// Rooms on one page of a list unless asked otherwise, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;
/// How long a read waits for `min_version` to arrive before it asks the journal, milliseconds: what is on its way is here by then.
const VERSION_WAIT_MS: u64 = 1_000;

/// The largest number that every reader of JSON has exactly (RFC 8259 §6): no room comes near it.
const MAX_VERSION: u64 = (1 << 53) - 1;

/// Refuses what no version will ever be.
pub fn check_version(field: &str, version: u64) -> Result<(), Problem> {
    if version <= MAX_VERSION {
        return Ok(());
    }
    Err(problem::BAD_REQUEST.detail(format!("`{field}` is {version}; no version is beyond {MAX_VERSION}.")))
}

/// How a request names a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomRef {
    /// By its id.
    Id(RoomId),
    /// By its name.
    Name(String),
}

impl RoomRef {
    /// Reads the `{room}` of a path.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        match text.strip_prefix("name:") {
            Some(name) => check_name("room", name).map(|()| Self::Name(name.to_owned())),
            None => RoomId::new(text).map(Self::Id).map_err(|error| {
                problem::BAD_REQUEST.detail(format!("{error}; a name is written name:<name>."))
            }),
        }
    }
}

impl fmt::Display for RoomRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => fmt::Display::fmt(id, f),
            Self::Name(name) => write!(f, "name:{name}"),
        }
    }
}

/// Checks a name that people chose.
pub fn check_name(field: &str, name: &str) -> Result<(), Problem> {
    let count = name.chars().count();
    if count == 0 || count > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        return Err(problem::INVALID_FIELD.detail(format!(
            "The {field} name has {count} characters; 1 to {MAX_NAME_CHARS} without control characters are wanted."
        )));
    }
    Ok(())
}

/// The refusal for a room that is not there.
pub fn no_room(room: &impl fmt::Display) -> Problem {
    problem::NO_ROOM.detail(format!("Room {room} is not there."))
}

/// The id of the room that `service` calls `name`, after `generation` rooms of that name have been deleted: SHA-256, cut to 16
/// characters of 62 like random ids (95 bits).
pub fn named_id(service: &ServiceId, name: &str, generation: u64) -> RoomId {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut hasher = Sha256::new();
    hasher.update(service.as_str());
    hasher.update([0]); // not in any id: ("a", "bc") and ("ab", "c") differ
    hasher.update(generation.to_be_bytes());
    hasher.update(name);
    let digest = hasher.finalize();
    let mut number =
        u128::from_be_bytes(digest[..16].try_into().expect("a SHA-256 digest has more than 16 bytes"));
    let mut text = String::with_capacity(16);
    for _ in 0..16 {
        text.push(ALPHABET[(number % 62) as usize] as char);
        number /= 62;
    }
    RoomId::new(text).expect("letters and digits")
}

/// What making a room came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    New {
        /// The room.
        id: RoomId,
        /// Its version.
        version: Version,
        /// Its EC, if it was to get one.
        placed: Option<Placed>,
    },
    /// This very request has made it before.
    Before(RoomId),
    /// There is one of that name.
    Exists(RoomId),
}

/// What a room is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its name; none for a room that is known by its id only.
    pub name: Option<String>,
    /// How its EAs are chosen.
    pub eapolicy: EaPolicy,
    /// The application's own.
    pub metadata: Value,
    /// What bounds it.
    pub limits: RoomLimits,
    /// The idempotency key it is asked for with, and what the log will know of it.
    pub once: Option<(String, idempotency::Made)>,
}

impl App {
    /// Looks at a room of `service`; none when it has no such room. A room this node has not heard of is read from the journal.
    pub(crate) async fn look<T>(
        &self,
        service: &ServiceId,
        room: &RoomRef,
        look: impl FnOnce(&RoomId, &RoomState) -> T,
    ) -> Result<Option<T>, Problem> {
        let id = {
            let directory = self.directory.read();
            let id = match room {
                RoomRef::Id(id) => Some(id),
                RoomRef::Name(name) => directory.room_named(service, name),
            };
            if let Some((id, state)) = id.and_then(|id| directory.rooms.get_key_value(id)) {
                let ours = state.info.as_ref().is_some_and(|info| info.service == *service);
                return Ok(ours.then(|| look(id, state)));
            }
            id.cloned()
        };
        let id = match (id, room) {
            (Some(id), _) => id,
            (None, RoomRef::Name(name)) => self.current_id(service, name).await?,
            (None, RoomRef::Id(id)) => id.clone(),
        };
        if self.room_is_over(&id).await? != Some(false) {
            return Ok(None);
        }
        let state = self.room_in_journal(&id).await?.filter(|state| {
            !state.deleted && state.info.as_ref().is_some_and(|info| info.service == *service)
        });
        Ok(state.map(|state| look(&id, &state)))
    }

    /// As [`App::look`], once the room has `min_version`.
    pub(crate) async fn look_from<T>(
        &self,
        service: &ServiceId,
        room: &RoomRef,
        min_version: Option<u64>,
        look: impl FnOnce(&RoomId, &RoomState) -> T,
    ) -> Result<T, Problem> {
        let Some(wanted) = min_version else {
            return self.look(service, room, look).await?.ok_or_else(|| no_room(room));
        };
        check_version("min_version", wanted)?;
        let (id, version) = self
            .look(service, room, |id, state| (id.clone(), state.version()))
            .await?
            .ok_or_else(|| no_room(room))?;
        let wanted = Version(wanted);
        if version < wanted {
            let wait = std::time::Duration::from_millis(VERSION_WAIT_MS);
            if !self.directory.wait_for(&StreamId::from(&id), wanted, wait).await {
                // The journal knows whether there is such a version at all.
                let state = self.room_in_journal(&id).await?.filter(|state| !state.deleted);
                let state = state.ok_or_else(|| no_room(room))?;
                if state.version() < wanted {
                    return Err(problem::VERSION_AHEAD.detail(format!(
                        "Room {id} is at version {}, not yet at {wanted}.",
                        state.version()
                    )));
                }
                return Ok(look(&id, &state));
            }
        }
        self.look(service, &RoomRef::Id(id), look).await?.ok_or_else(|| no_room(room))
    }

    /// The id that the room called `name` has, or would have if it were made now: the first whose stream has not ended. Deleted ones
    /// come before it without a gap, so it is found in steps that double and then halve.
    async fn current_id(&self, service: &ServiceId, name: &str) -> Result<RoomId, Problem> {
        let over = async |generation: u64| -> Result<bool, Problem> {
            Ok(self.room_is_over(&named_id(service, name, generation)).await? == Some(true))
        };
        if !over(0).await? {
            return Ok(named_id(service, name, 0));
        }
        let (mut ended, mut open) = (0, 1);
        while over(open).await? {
            ended = open;
            open *= 2;
        }
        while open - ended > 1 {
            let middle = ended + (open - ended) / 2;
            if over(middle).await? { ended = middle } else { open = middle }
        }
        Ok(named_id(service, name, open))
    }

    /// Makes a room, and with `place` gives it an EC in the same commit.
    pub(crate) async fn make_room(
        &self,
        service: &ServiceId,
        wanted: Wanted,
        place: bool,
        cause: Cause,
    ) -> Result<Made, Problem> {
        let id = match &wanted.name {
            Some(name) => {
                let known = self.directory.read().room_named(service, name).cloned();
                match known {
                    // It may have been deleted elsewhere a moment ago.
                    Some(id) if self.room_is_over(&id).await? == Some(false) => {
                        return self.made_before(id, wanted.once.as_ref()).await;
                    }
                    _ => self.current_id(service, name).await?,
                }
            }
            None => match &wanted.once {
                // No name has so many predecessors.
                Some((key, _)) => named_id(service, key, u64::MAX),
                None => self.env.draw(|rng| RoomId::random(rng)),
            },
        };
        let mut draft = Draft { cause, ..Draft::default() };
        let mut events = vec![Event::from(RoomCreated {
            service: service.clone(),
            name: wanted.name.unwrap_or_else(|| id.to_string()),
            eapolicy: wanted.eapolicy,
            metadata: wanted.metadata.clone(),
        })];
        if wanted.limits != RoomLimits::default() {
            events.push(RoomChanged { metadata: wanted.metadata, limits: wanted.limits }.into());
        }
        if let Some((_, made)) = &wanted.once {
            draft.command = made.command();
        }
        let mut placed = None;
        if place {
            let (verdict, facts, ecs) = self.decide_ec(None, false).await;
            let Verdict::Place { ec, incarnation, reason } = verdict else {
                return Err(crate::placement::no_ec(&ecs));
            };
            draft.facts = Payload::encode(&facts);
            events.push(Event::from(RoomPlaced {
                ec: ec.clone(),
                incarnation,
                epoch: Epoch(1),
                reason: reason.into(),
            }));
            let address =
                ecs.into_iter().find(|view| view.ec == ec).map(|view| view.address).unwrap_or_default();
            placed = Some(Placed { room: id.clone(), ec, epoch: Epoch(1), version: Version(0), address });
        }
        match self.log.append(StreamId::from(&id), None, draft, &events).await {
            Ok(commit) => {
                let version = commit.last_version();
                if let Some(placed) = &mut placed {
                    placed.version = version;
                    self.ecs.placed_on(&placed.ec);
                    self.metrics.placement();
                }
                Ok(Made::New { id, version, placed })
            }
            Err(AppendError::Conflict { .. }) => self.made_before(id, wanted.once.as_ref()).await,
            Err(error) => Err(error.into()),
        }
    }

    /// What it means that a room is there already: whether it was made by the same request.
    async fn made_before(
        &self,
        id: RoomId,
        once: Option<&(String, idempotency::Made)>,
    ) -> Result<Made, Problem> {
        if let Some((_, made)) = once {
            let first = self.journal.read(&StreamId::from(&id), Version(1), 1).await?;
            if let Some(first) = first.first()
                && made.is_ours(first)?
            {
                return Ok(Made::Before(id));
            }
        }
        Ok(Made::Exists(id))
    }

    /// Asks the EC that owns a room.
    pub(crate) async fn ask_owner(&self, owner: &Owner, request: &EcRequest) -> Result<EcAnswer, RpcError> {
        let subject = Subject::rpc(&StreamId::from(&owner.ec));
        let answer = ask(&*self.bus, subject, request, RPC_TIMEOUT).await;
        match &answer {
            Err(RpcError::Unreachable { no_responders: true, .. }) => self.ecs.found_no_responders(&owner.ec),
            Err(RpcError::Unreachable { .. }) => {}
            _ => self.ecs.answered(&owner.ec),
        }
        answer
    }

    /// How the EC that owns a room is.
    pub(crate) fn health_of(&self, owner: &Owner) -> Health {
        let ecs = self.ecs.view(&self.directory.read());
        ecs.into_iter().find(|view| view.ec == owner.ec).map_or(Health::Lost, |view| view.health)
    }

    /// Deletes a room: through its owner, or by itself where no live owner is. Gives the version of the deletion.
    pub(crate) async fn delete_room(
        &self,
        id: &RoomId,
        mut head: Option<Head>,
        mut owner: Option<Owner>,
        if_version: Option<Version>,
        reason: &str,
        cause: Cause,
    ) -> Result<Version, Problem> {
        /// As in placement: each round somebody else got through.
        const ROUNDS: u32 = 8;
        for _ in 0..ROUNDS {
            if let Some(owner) = owner.as_ref().filter(|owner| self.health_of(owner) != Health::Lost) {
                let request = EcRequest::DeleteRoom { room: id.clone(), reason: reason.into(), if_version };
                match self.ask_owner(owner, &request).await {
                    Ok(EcAnswer::Version { version }) => return Ok(version),
                    Err(RpcError::NotOwner { .. }) => {} // it has moved: look again
                    Err(RpcError::NotFound { .. }) => return Err(no_room(id)),
                    Err(RpcError::Version { version }) => return Err(changed(version)),
                    other => return Err(ec_failed(id, owner, other)),
                }
            } else {
                let epoch = owner.as_ref().map_or(Epoch(0), |owner| owner.epoch);
                let draft = Draft { epoch, cause: cause.clone(), ..Draft::default() };
                let event = Event::from(RoomDeleted { reason: reason.into() });
                match self.log.append(StreamId::from(id), head, draft, &[event]).await {
                    Ok(commit) => return Ok(commit.last_version()),
                    Err(AppendError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let state = self.room_in_journal(id).await?.filter(|state| !state.deleted);
            let state = state.ok_or_else(|| no_room(id))?;
            if if_version.is_some_and(|wanted| wanted != state.version()) {
                return Err(changed(state.version()));
            }
            (head, owner) = (state.head, state.owner);
        }
        Err(problem::CONTENDED.detail(format!("Room {id} was to be deleted.")).retry_after(1))
    }
}

/// The refusal when a room's EC did not do what it was asked.
pub fn ec_failed(room: &RoomId, owner: &Owner, answer: Result<EcAnswer, RpcError>) -> Problem {
    let reason = match answer {
        Ok(other) => format!("it answered {other:?}"),
        Err(error) => error.to_string(),
    };
    tracing::warn!(%room, ec = %owner.ec, reason, "the owner did not do what it was asked");
    problem::EC_SILENT.detail(format!("EC {} of room {room}: {reason}.", owner.ec)).retry_after(1)
}

// ---- over HTTP -------------------------------------------------------------------------------------------------------------

/// What a room is to be.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRoom {
    /// A name for people, unique within the service. Without one the room is known by its id.
    #[serde(default)]
    #[schema(example = "standup", min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    name: Option<String>,
    /// `ROOM-BEST`: all clients on one EA. `TTL-BEST`, each client on the EA nearest to it, is refused until there is cascading.
    #[serde(default)]
    #[schema(value_type = String, pattern = "^ROOM-BEST$", example = "ROOM-BEST", default = "ROOM-BEST")]
    eapolicy: EaPolicy,
    /// The application's own, an object of up to 16 KiB; null is an empty one.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// What bounds it.
    #[serde(default, deserialize_with = "crate::http::object")]
    limits: Option<Limits>,
}

/// What bounds a room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Limits {
    /// Most clients at a time, 1 to 100 000; without it what its EC allows, which bounds this too.
    #[schema(minimum = 1, maximum = 100_000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_clients: Option<u32>,
    /// The room is deleted once nobody has been in it for this long, seconds, 10 to 31 536 000. Without it the room stays.
    #[schema(minimum = 10, maximum = 31_536_000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_close_s: Option<u32>,
}

impl Limits {
    /// As the log has them.
    pub fn checked(&self) -> Result<RoomLimits, Problem> {
        let within =
            |field: &str, value: Option<u32>, from: u32, to: u32| match value {
                Some(value) if !(from..=to).contains(&value) => Err(problem::INVALID_FIELD
                    .detail(format!("`{field}` is {value}; {from} to {to} are allowed."))),
                _ => Ok(()),
            };
        within("maxClients", self.max_clients, 1, 100_000)?;
        within("idleCloseS", self.idle_close_s, 10, 31_536_000)?;
        Ok(RoomLimits { max_clients: self.max_clients, idle_close_s: self.idle_close_s })
    }
}

/// `metadata` as it is kept.
pub fn check_metadata(metadata: Option<Map<String, Value>>) -> Result<Value, Problem> {
    let metadata = Value::Object(metadata.unwrap_or_default());
    if metadata.to_string().len() > MAX_METADATA_BYTES {
        return Err(
            problem::INVALID_FIELD.detail(format!("`metadata` has more than {MAX_METADATA_BYTES} bytes."))
        );
    }
    Ok(metadata)
}

/// A room.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Room {
    /// Its id.
    #[schema(value_type = String)]
    id: RoomId,
    /// Its name.
    name: String,
    /// How its EAs are chosen.
    #[schema(value_type = String)]
    eapolicy: EaPolicy,
    /// The application's own.
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// What bounds it.
    limits: Limits,
    /// When it was made, Unix milliseconds.
    created: u64,
    /// Its version: goes up with everything that happens in it.
    pub version: u64,
    /// Whether clients are in it.
    open: bool,
    /// How many.
    users: usize,
    /// The EC it is on; absent before its first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    ec: Option<String>,
    /// Ownership epoch.
    epoch: u64,
    /// The EAs that carry its media.
    eas: Vec<String>,
}

pub fn describe(id: &RoomId, state: &RoomState) -> Room {
    let info = state.info.as_ref();
    Room {
        id: id.clone(),
        name: info.map(|info| info.name.clone()).unwrap_or_default(),
        eapolicy: info.map(|info| info.eapolicy).unwrap_or_default(),
        metadata: info.and_then(|info| info.metadata.as_object().cloned()).unwrap_or_default(),
        limits: info.map_or_else(Limits::default, |info| Limits {
            max_clients: info.limits.max_clients,
            idle_close_s: info.limits.idle_close_s,
        }),
        created: info.map_or(0, |info| info.created.as_millis()),
        version: state.version().0,
        open: state.open,
        users: state.clients.len(),
        ec: state.owner.as_ref().map(|owner| owner.ec.to_string()),
        epoch: state.epoch().0,
        eas: state.placements.keys().map(ToString::to_string).collect(),
    }
}

/// Makes a room.
#[utoipa::path(post, path = "/v1/rooms", tag = "rooms", request_body = NewRoom, params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$", description = "the same request with the same key is carried out once")), security(("secret" = [])), responses(
    (status = 404, description = "what this idempotency key made was deleted", body = problem::ProblemDocument),
    (status = 201, body = Room, headers(("Roomlog-Version" = u64, description = "version of the room"))),
    (status = 409, description = "a room of this name exists; its id is in `roomId`", body = problem::ProblemDocument),
))]
pub async fn create(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    Because(cause): Because,
    IdempotencyKey(key): IdempotencyKey,
    Body(new): Body<NewRoom>,
) -> Result<Response, Problem> {
    if let Some(name) = &new.name {
        check_name("room", name)?;
    }
    let limits = new.limits.clone().unwrap_or_default().checked()?;
    let once = key.map(|key| {
        let made = idempotency::Made::of(&key, &new);
        (key, made)
    });
    let metadata = check_metadata(new.metadata)?;
    if new.eapolicy == EaPolicy::TtlBest {
        return Err(problem::INVALID_FIELD
            .detail("`eapolicy` TTL-BEST needs cascading between EAs, which this version does not have: use ROOM-BEST."));
    }
    let wanted = Wanted { name: new.name.clone(), eapolicy: new.eapolicy, metadata, limits, once };
    match app.make_room(&service, wanted, false, cause).await? {
        Made::New { id, version, .. } => {
            app.settle(&StreamId::from(&id), version).await;
            let room = app.look(&service, &RoomRef::Id(id.clone()), describe).await?;
            let room = room.ok_or_else(|| no_room(&id))?;
            let location = [(axum::http::header::LOCATION, format!("/v1/rooms/{id}"))];
            Ok((StatusCode::CREATED, versioned(version), location, Json(room)).into_response())
        }
        Made::Before(id) => {
            let room = app.look(&service, &RoomRef::Id(id.clone()), describe).await?;
            let room = room
                .ok_or_else(|| problem::NO_ROOM.detail(format!("It made room {id}, which was deleted.")))?;
            let location = [(axum::http::header::LOCATION, format!("/v1/rooms/{id}"))];
            Ok((StatusCode::CREATED, versioned(Version(room.version)), location, Json(room)).into_response())
        }
        Made::Exists(id) => Err(problem::ROOM_EXISTS
            .detail(format!("The name {:?} is that of room {id}.", new.name.unwrap_or_default()))
            .with("roomId", id.as_str())),
    }
}

/// Which part of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many at most: 1 to 1000, 100 unless given.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// Goes on after this one: the `next` of the page before.
    after: Option<String>,
}

impl Page {
    /// How many at most.
    pub fn limit(&self) -> Result<usize, Problem> {
        let limit = self.limit.unwrap_or(PAGE);
        if (1..=MAX_PAGE).contains(&limit) {
            return Ok(limit);
        }
        Err(problem::BAD_REQUEST.detail(format!("`limit` is {limit}; 1 to {MAX_PAGE} are allowed.")))
    }

    /// This page of what is sorted by `name`, and what `after` is to be for the next.
    pub fn of<'a, K, V>(
        &self,
        limit: usize,
        all: impl Iterator<Item = (&'a K, V)>,
        name: impl Fn(&'a K) -> &'a str,
    ) -> (Vec<(&'a K, V)>, Option<String>) {
        let seen = |key: &'a K| self.after.as_deref().is_some_and(|after| name(key) <= after);
        let mut part: Vec<_> = all.skip_while(|(key, _)| seen(key)).take(limit + 1).collect();
        let more = part.len() > limit;
        part.truncate(limit);
        let next = part.last().filter(|_| more).map(|(key, _)| name(key).to_owned());
        (part, next)
    }
}

/// Rooms of a service.
#[derive(Serialize, ToSchema)]
pub struct Rooms {
    /// Sorted by id.
    rooms: Vec<Room>,
    /// What `after` is to be for the next page; null on the last.
    next: Option<String>,
}

/// Lists the rooms of the service. A list may lag behind by milliseconds; a read by id never does.
#[utoipa::path(get, path = "/v1/rooms", tag = "rooms", params(Page), security(("secret" = [])), responses((status = 200, body = Rooms)))]
pub async fn list(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    Params(page): Params<Page>,
) -> Result<Json<Rooms>, Problem> {
    let limit = page.limit()?;
    let directory = app.directory.read();
    let (rooms, next) = page.of(limit, directory.rooms_of(&service), |id| id.as_str());
    Ok(Json(Rooms { rooms: rooms.into_iter().map(|(id, state)| describe(id, state)).collect(), next }))
}

/// From which version on a read is served.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MinVersion {
    /// Waits for this version of the room: what a `Roomlog-Version` header said.
    #[param(maximum = 9007199254740991u64)]
    pub min_version: Option<u64>,
}

/// Reads a room.
#[utoipa::path(get, path = "/v1/rooms/{room}", tag = "rooms", params(("room" = String, Path), MinVersion, ("If-None-Match" = Option<String>, Header, description = "the `ETag` of what is known: 304 if it is current")), security(("secret" = [])), responses(
    (status = 200, body = Room), (status = 304, description = "as it is known"), (status = 404, body = problem::ProblemDocument),
    (status = 412, description = "the room has no such version yet", body = problem::ProblemDocument),
))]
pub async fn get(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At(room): At<String>,
    Params(params): Params<MinVersion>,
    known: Known,
) -> Result<Response, Problem> {
    let room = app.look_from(&service, &RoomRef::parse(&room)?, params.min_version, describe).await?;
    Ok(known.or(Version(room.version), Json(room)))
}

/// Deletes a room and puts out whoever is in it.
#[utoipa::path(delete, path = "/v1/rooms/{room}", tag = "rooms", params(("room" = String, Path), ("If-Match" = Option<String>, Header, description = "only if it has this `ETag`")), security(("secret" = [])), responses(
    (status = 204, description = "deleted", headers(("Roomlog-Version" = u64, description = "version of the room"))),
    (status = 412, description = "it has changed since", body = problem::ProblemDocument),
    (status = 404, body = problem::ProblemDocument), (status = 503, description = "the room's EC does not answer", body = problem::ProblemDocument),
))]
pub async fn delete(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    Because(cause): Because,
    if_match: IfMatch,
    At(room): At<String>,
) -> Result<Response, Problem> {
    let (id, head, owner) = app
        .look_from(&service, &RoomRef::parse(&room)?, None, |id, state| {
            (id.clone(), state.head, state.owner.clone())
        })
        .await?;
    let if_version = if_match.check(head.map_or(Version(0), |head| head.version))?;
    let version = app.delete_room(&id, head, owner, if_version, "deleted by the application", cause).await?;
    Ok((StatusCode::NO_CONTENT, version_header(version)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_id_in_its_service_and_another_after_each_deletion() {
        let service = |name: &str| ServiceId::new(name).unwrap();
        let id = named_id(&service("s"), "standup", 0);
        assert_eq!(id, named_id(&service("s"), "standup", 0));
        assert_eq!(id.as_str().len(), 16);
        assert_ne!(id, named_id(&service("s"), "standup", 1));
        assert_ne!(id, named_id(&service("t"), "standup", 0));
        assert_ne!(named_id(&service("a"), "bc", 0), named_id(&service("ab"), "c", 0));
        // Nodes of different builds must agree, so the value itself is fixed.
        assert_eq!(id.as_str(), "RYA6eSNtZJYcXGIN");
    }

    #[test]
    fn a_room_is_named_by_id_or_by_name() {
        assert_eq!(RoomRef::parse("abc").unwrap(), RoomRef::Id(RoomId::new("abc").unwrap()));
        assert_eq!(RoomRef::parse("name:a b.c/é").unwrap(), RoomRef::Name("a b.c/é".into()));
        for bad in ["", "a b", "name:", "name:a\nb", &format!("name:{}", "x".repeat(129))] {
            assert!(RoomRef::parse(bad).is_err(), "{bad:?}");
        }
    }
}
