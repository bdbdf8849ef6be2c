//! Where a token is made, where a room is looked up by its clients, and the keys tokens are checked with.

use std::sync::PoisonError;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    bus::{Disconnected, Message, Subscription, respond},
    commit::{Cause, Payload, StreamId, StreamKind},
    events::{EaPolicy, RoomLimits},
    ids::{ClientId, RoomId, ServiceId, random_token},
    ortc::MediaKind,
    rights::Rights,
    rpc::{NuveAnswer, NuveRequest, RpcError, ask},
    subject::Subject,
    token::{Claims, ISSUER, TokenKeys},
};
use roomlog_projections::node::NodePhase;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::{
    app::{App, AppState},
    credentials::KeyKind,
    ecs::Health,
    http::{AnyKey, At, Because, Body, SentTo, version_header},
    placement::{Placed, RoomBrief, Verdict, decide},
    problem::{self, Problem},
    rooms::{Made, RoomRef, Wanted, check_name, no_room},
};

/// Queue group of NUVE nodes on their common RPC subject: one of them answers.
pub const QUEUE_GROUP: &str = "nuve";

/// Another NUVE's keys are waited for this long, milliseconds: an EC is waiting with a client behind it, and has 5 s.
const PEER_TIMEOUT_MS: u64 = 1_000;

/// Characters of a token's own id: 22 of 62 are 131 bits, so no two tokens share one.
const TOKEN_ID_CHARACTERS: usize = 22;

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sends and receives.
    #[default]
    Presenter,
    /// Receives.
    Viewer,
}

/// A kind of media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Sound.
    Audio,
    /// Pictures.
    Video,
}

/// What a user may do, one by one; what is left out is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
pub struct RightsDocument {
    /// Kinds of media it may send.
    publish: Vec<Kind>,
    /// Whether it is sent what others send.
    subscribe: bool,
    /// Whether it may send data.
    data: bool,
    /// Whether it may mute and put out others.
    manage: bool,
}

impl From<RightsDocument> for Rights {
    fn from(said: RightsDocument) -> Self {
        let kind = |kind: &Kind| match kind {
            Kind::Audio => MediaKind::Audio,
            Kind::Video => MediaKind::Video,
        };
        // In one order and once each, so that the same rights are equal.
        let all = [Kind::Audio, Kind::Video];
        let publish = all.iter().filter(|kind| said.publish.contains(kind)).map(kind).collect();
        Self { publish, subscribe: said.subscribe, data: said.data, manage: said.manage }
    }
}

impl From<Rights> for RightsDocument {
    fn from(rights: Rights) -> Self {
        let kind = |kind: MediaKind| match kind {
            MediaKind::Audio => Kind::Audio,
            MediaKind::Video => Kind::Video,
        };
        let publish = rights.publish.into_iter().map(kind).collect();
        Self { publish, subscribe: rights.subscribe, data: rights.data, manage: rights.manage }
    }
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Presenter => "presenter",
            Self::Viewer => "viewer",
        }
    }
}

/// Whom a token is for.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// The user's name.
    #[schema(example = "Ann", min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    user: String,
    /// What the user may do.
    #[serde(default)]
    role: Role,
    /// What the user may do one by one, in place of what goes with the role. `manage` wants the secret key.
    #[serde(default, deserialize_with = "crate::http::object")]
    rights: Option<RightsDocument>,
    /// Makes the room if there is none of that name; only with `name:<name>`.
    #[serde(default)]
    create: bool,
    /// How its EAs are chosen, if this makes the room.
    #[serde(default)]
    #[schema(value_type = String, pattern = "^ROOM-BEST$", example = "ROOM-BEST", default = "ROOM-BEST")]
    eapolicy: EaPolicy,
    /// The client's id, if it is not to be a fresh one: 1 to 64 of `A-Z a-z 0-9 _ -`.
    #[serde(default)]
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    peer_id: Option<ClientId>,
}

/// A token and where to take it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenAnswer {
    /// The token: admits one client once.
    token: String,
    /// The room.
    #[schema(value_type = String)]
    room_id: RoomId,
    /// The client it admits.
    #[schema(value_type = String)]
    client_id: ClientId,
    /// The WebSocket to open.
    ws_url: String,
    /// When the token ends, Unix milliseconds.
    expires_at: u64,
    /// Where to ask for the room's WebSocket after a break.
    locate_url: String,
}

/// Where a room is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// The room.
    #[schema(value_type = String)]
    room_id: RoomId,
    /// The WebSocket of its EC.
    ws_url: String,
    /// Ownership epoch: goes up when the room moves.
    epoch: u64,
    /// Its EC.
    ec: String,
}

/// Makes a token for a room. The first token of a room gives it an EC; all later ones name the same.
#[utoipa::path(post, path = "/v1/rooms/{room}/tokens", tag = "tokens", request_body = TokenRequest,
    params(("room" = String, Path)), security(("secret" = []), ("publishable" = [])), responses(
    (status = 201, body = TokenAnswer), (status = 404, body = problem::ProblemDocument), (status = 429, body = problem::ProblemDocument),
    (status = 503, description = "no EC, or the log is away", body = problem::ProblemDocument),
))]
pub async fn create(
    State(app): State<AppState>,
    caller: AnyKey,
    sent_to: SentTo,
    Because(cause): Because,
    At(room): At<String>,
    Body(request): Body<TokenRequest>,
) -> Result<Response, Problem> {
    check_name("user", &request.user)?;
    if caller.kind == KeyKind::Publishable && request.rights.as_ref().is_some_and(|rights| rights.manage) {
        // Whoever opens the page would manage the room.
        return Err(problem::WRONG_KEY.detail("The right `manage` is given with the secret key."));
    }
    let room = RoomRef::parse(&room)?;
    let placed = app.room_for(&caller, &room, &request, cause).await?;

    let ws_url = sent_to.ws_url(&app, &placed.address)?;
    let locate_url = format!("{}/v1/rooms/{}/locate", sent_to.base(&app)?, placed.room);
    let (client, jti) = app.env.draw(|rng| {
        let client = request.peer_id.clone().unwrap_or_else(|| ClientId::random(rng));
        (client, random_token(rng, TOKEN_ID_CHARACTERS))
    });
    let iat = app.env.now().as_millis() / 1_000;
    let claims = Claims {
        iss: ISSUER.to_owned(),
        sub: request.user,
        jti,
        service: caller.service,
        room: placed.room.clone(),
        client: client.clone(),
        role: request.role.as_str().to_owned(),
        rights: request.rights.map(Into::into),
        ec: placed.ec,
        ws: ws_url.clone(),
        iat,
        exp: iat + app.settings.token_ttl_s,
    };
    let token = app.sign(&claims);
    app.metrics.token();
    let answer = TokenAnswer {
        token,
        room_id: placed.room,
        client_id: client,
        ws_url,
        expires_at: claims.exp * 1_000,
        locate_url,
    };
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, version_header(placed.version), no_store, Json(answer)).into_response())
}

impl App {
    /// The room a token is asked for, made if that was asked, with its EC.
    async fn room_for(
        &self,
        caller: &AnyKey,
        room: &RoomRef,
        request: &TokenRequest,
        cause: Cause,
    ) -> Result<Placed, Problem> {
        let brief = |id: &RoomId, state: &roomlog_projections::room::RoomState| {
            let taken = request.peer_id.as_ref().is_some_and(|peer| state.clients.contains_key(peer));
            (RoomBrief::of(id, state), taken)
        };
        let mut found = self.look(&caller.service, room, brief).await?;
        if found.is_none() {
            let RoomRef::Name(name) = room else { return Err(no_room(room)) };
            if !request.create {
                let how = "Send `\"create\": true` to have it made";
                return Err(problem::NO_ROOM.detail(format!("Room {room} is not there. {how}.")));
            }
            if caller.kind == KeyKind::Publishable && !self.publishable_creates(&caller.service).await? {
                return Err(problem::MAY_NOT_CREATE.detail(format!("Room {room} is not there.")));
            }
            let wanted = Wanted {
                name: Some(name.clone()),
                eapolicy: request.eapolicy,
                metadata: Value::Object(Map::new()),
                limits: RoomLimits::default(),
                once: None,
            };
            match self.make_room(&caller.service, wanted, true, cause.clone()).await? {
                Made::New { placed: Some(placed), .. } => return Ok(placed),
                // Somebody else made it meanwhile.
                Made::New { id, .. } | Made::Before(id) | Made::Exists(id) => {
                    found = self.look(&caller.service, &RoomRef::Id(id), brief).await?;
                }
            }
        }
        let (room, taken) = found.ok_or_else(|| no_room(room))?;
        if taken && caller.kind == KeyKind::Publishable {
            // A browser must not take another's place by naming it; an app server knows what it does.
            let peer = request.peer_id.as_ref().map(ClientId::as_str).unwrap_or_default();
            return Err(problem::CLIENT_EXISTS.detail(format!("Client {peer} is in room {}.", room.id)));
        }
        self.place(room, cause).await
    }

    async fn publishable_creates(&self, service: &ServiceId) -> Result<bool, Problem> {
        Ok(self.service(service).await?.is_some_and(|state| state.publishable_creates_rooms))
    }
}

/// Tells a client where its room is now. Wants no key: who knows a room's id learns only which host serves it.
#[utoipa::path(get, path = "/v1/rooms/{room}/locate", tag = "tokens", params(("room" = String, Path)), responses(
    (status = 200, body = Location), (status = 404, body = problem::ProblemDocument),
    (status = 503, description = "it has no EC now; see Retry-After", body = problem::ProblemDocument),
))]
pub async fn locate(
    State(app): State<AppState>,
    sent_to: SentTo,
    Because(cause): Because,
    At(room): At<String>,
) -> Result<Response, Problem> {
    if let Err(limited) = app.limits.locate() {
        app.metrics.rate_limited();
        return Err(limited);
    }
    let RoomRef::Id(id) = RoomRef::parse(&room)? else {
        return Err(
            problem::BAD_REQUEST.detail("A name means nothing without a service: the room's id is wanted.")
        );
    };
    let known = app.directory.read().rooms.get(&id).map(|state| RoomBrief::of(&id, state));
    let room = match known {
        Some(room) => room,
        None => {
            let over = app.room_is_over(&id).await?;
            let state = if over == Some(false) { app.room_in_journal(&id).await? } else { None };
            RoomBrief::of(&id, &state.filter(|state| !state.deleted).ok_or_else(|| no_room(&id))?)
        }
    };
    let Some(owner) = room.owner.clone() else {
        return Err(problem::NOWHERE.detail(format!("Room {id} has had no token yet.")));
    };
    app.ecs.check(&app.bus, &owner.ec);
    let ecs = app.ecs.view(&app.directory.read());
    let view = ecs.iter().find(|view| view.ec == owner.ec);
    let placed = match view {
        // A silent EC may be silent to us only: its clients are to try it. A lost one loses its room here and now.
        Some(view) if view.health < Health::Lost => Placed {
            room: id,
            ec: owner.ec,
            epoch: owner.epoch,
            version: room.head.map_or_else(Default::default, |head| head.version),
            address: view.address.clone(),
        },
        _ if matches!(
            decide(Some(&owner), room.open, &ecs, app.settings.ec_policy, 0),
            Verdict::NoEc | Verdict::Wait(_)
        ) && !app.ecs.observer.just_started() =>
        {
            return Err(crate::placement::no_ec(&ecs));
        }
        _ => app.place(room, cause).await?,
    };
    let location = Location {
        ws_url: sent_to.ws_url(&app, &placed.address)?,
        room_id: placed.room,
        epoch: placed.epoch.0,
        ec: placed.ec.to_string(),
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(location)).into_response())
}

// ---- keys ------------------------------------------------------------------------------------------------------------------

impl App {
    fn sign(&self, claims: &Claims) -> String {
        let ring = self.signing.read().unwrap_or_else(PoisonError::into_inner);
        ring.current(self.env.now()).sign(claims)
    }

    fn own_keys(&self) -> Vec<(String, Vec<u8>)> {
        self.signing.read().unwrap_or_else(PoisonError::into_inner).public()
    }

    /// The keys of all NUVE nodes. Those that are heard are asked each time, since they rotate theirs; others once. One that does not
    /// answer is named as it was known before.
    async fn all_keys(&self) -> Vec<(String, Vec<u8>)> {
        let others: Vec<_> = {
            let directory = self.directory.read();
            let registered = directory.nodes.iter().filter(|(node, state)| {
                node.kind() == StreamKind::Nuve && **node != self.node && state.phase == NodePhase::Registered
            });
            registered.map(|(node, state)| (node.clone(), state.incarnation)).collect()
        };
        let asked: Vec<_> = {
            let known = self.peer_keys.lock().await;
            let ask =
                |peer: &(StreamId, _)| !known.contains_key(peer) || self.ecs.observer.heard_lately(&peer.0);
            others.into_iter().filter(ask).collect()
        };
        let timeout = std::time::Duration::from_millis(PEER_TIMEOUT_MS);
        let asked = asked.into_iter().map(|peer| async move {
            let subject = Subject::rpc(&peer.0);
            let answer: Result<NuveAnswer, RpcError> =
                ask(&*self.bus, subject, &NuveRequest::TokenKeys, timeout).await;
            (peer, answer)
        });
        let answers = futures::future::join_all(asked).await;
        let mut known = self.peer_keys.lock().await;
        for (peer, answer) in answers {
            match answer {
                Ok(NuveAnswer::Keys { keys }) => {
                    known.retain(|(node, _), _| *node != peer.0);
                    known.insert(peer, TokenKeys::new(keys));
                }
                Ok(NuveAnswer::Draining | NuveAnswer::Limit(_)) => {
                    tracing::warn!(nuve = %peer.0, "answered something else than its token keys");
                }
                Err(error) => tracing::debug!(nuve = %peer.0, %error, "its token keys are not known"),
            }
        }
        let theirs = known.values().flat_map(TokenKeys::iter).map(|(kid, key)| (kid.clone(), key.clone()));
        self.own_keys().into_iter().chain(theirs).collect()
    }

    async fn answer(&self, message: &Message, common: bool) -> Result<(), Disconnected> {
        let answer = match Payload(message.payload.clone()).decode::<NuveRequest>() {
            Ok(NuveRequest::TokenKeys) => {
                let keys = if common { self.all_keys().await } else { self.own_keys() };
                Ok(NuveAnswer::Keys { keys })
            }
            Ok(NuveRequest::Drain { node, within }) => {
                self.drain(&node, within, Cause::of("operator")).await.map(|()| NuveAnswer::Draining)
            }
            Ok(NuveRequest::Limit(ask)) => self.limits.grant(&ask).map(NuveAnswer::Limit),
            Err(error) => Err(RpcError::Malformed { reason: error.to_string() }),
        };
        respond(&*self.bus, message, Payload::encode(&answer).0).await
    }
}

/// Answers what ECs and other NUVE nodes ask, until told to stop.
pub async fn serve_keys(
    app: AppState,
    mut own: Subscription,
    mut common: Subscription,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let (message, is_common) = tokio::select! {
            biased;
            () = crate::app::stopped(&mut stop) => return,
            message = own.next() => (message, false),
            message = common.next() => (message, true),
        };
        let Some(message) = message else { return };
        // On its own: a peer that does not answer must not hold up the others, nor two nodes wait for each other.
        let app = app.clone();
        tokio::spawn(async move {
            if let Err(error) = app.answer(&message, is_common).await {
                tracing::warn!(%error, "an answer could not be sent");
            }
        });
    }
}
