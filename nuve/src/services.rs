//! Services: tenants with their two keys, and the demo service for trying things out.

use std::path::Path;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    commit::{Cause, StreamId},
    env::Env,
    events::{
        Event, ServiceChanged, ServiceCreated, ServiceDeleted, ServiceKeyRotated, ServiceOldKeyRevoked,
    },
    ids::{ServiceId, Version},
    journal::{AppendError, read_all},
    log::{Draft, Log},
};
use roomlog_projections::service::ServiceState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    app::{App, AppState},
    credentials::{self, KeyKind, SecretFileError, hash, new_key},
    http::{AdminKey, At, Because, Body, Params, version_header},
    idempotency::{self, IdempotencyKey},
    problem::{self, Problem},
    rooms::{Page, check_name},
};

/// The file in the data folder that keeps the demo service's keys.
const DEMO_FILE: &str = "demo-service.json";

/// What a service is to be.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewService {
    /// A name for people.
    #[schema(example = "my app", min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    name: String,
    /// Whether its publishable key may make rooms, by asking for a token with `create`.
    #[serde(default)]
    publishable_creates_rooms: bool,
    /// Origins such as `https://app.example` whose pages may use its keys; none: any.
    #[serde(default)]
    #[schema(value_type = Vec<Origin>, max_items = 32)]
    origins: Vec<String>,
}

/// An origin (RFC 6454 §6.2).
#[derive(ToSchema)]
#[schema(example = "https://app.example", pattern = r"^https?://[A-Za-z0-9.:\[\]_-]{1,255}$")]
#[allow(dead_code, reason = "describes what is a text in the code")]
pub struct Origin(String);

/// Origins that one service may name.
const MAX_ORIGINS: usize = 32;

/// What of a service is to change; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceChange {
    /// A name for people.
    #[serde(default)]
    #[schema(example = "my app", min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    name: Option<String>,
    /// Whether its publishable key may make rooms.
    #[serde(default)]
    publishable_creates_rooms: Option<bool>,
    /// Origins whose pages may use its keys; an empty list: any.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Origin>>, max_items = 32)]
    origins: Option<Vec<String>>,
}

/// Checks origins (RFC 6454 §6.2): scheme, host and port, nothing more.
fn check_origins(origins: &[String]) -> Result<(), Problem> {
    if origins.len() > MAX_ORIGINS {
        return Err(problem::INVALID_FIELD.detail(format!("`origins` has more than {MAX_ORIGINS} entries.")));
    }
    for origin in origins {
        let host =
            origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")).unwrap_or_default();
        let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b".:[]_-".contains(&b));
        if host.is_empty() || host.len() > 255 || !plain {
            return Err(problem::INVALID_FIELD.detail(format!(
                "`origins` has {origin:?}; one looks like https://app.example, with nothing behind it."
            )));
        }
    }
    Ok(())
}

/// A service.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its id.
    #[schema(value_type = String)]
    id: ServiceId,
    /// Its name.
    name: String,
    /// Whether its publishable key may make rooms.
    publishable_creates_rooms: bool,
    /// Origins whose pages may use its keys; none: any.
    origins: Vec<String>,
    /// Replaced keys that still open.
    old_keys: Vec<OldKeyDocument>,
    /// When it was made, Unix milliseconds.
    created: u64,
    /// Its rooms now.
    rooms: usize,
}

/// A replaced key that still opens.
#[derive(Serialize, ToSchema)]
pub struct OldKeyDocument {
    /// `secret` or `publishable`.
    which: String,
    /// Until when, Unix milliseconds.
    until: u64,
}

/// A service with its keys, which are shown only now.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceWithKeys {
    /// Its id.
    #[schema(value_type = String)]
    id: ServiceId,
    /// Its name.
    name: String,
    /// Opens its whole API; for servers only.
    secret_key: String,
    /// Asks for tokens; may be in a web page.
    publishable_key: String,
    /// Whether the publishable key may make rooms.
    publishable_creates_rooms: bool,
}

/// Services.
#[derive(Serialize, ToSchema)]
pub struct Services {
    /// Sorted by id.
    services: Vec<Service>,
    /// What `after` is to be for the next page; null on the last.
    next: Option<String>,
}

fn no_service(id: &str) -> Problem {
    problem::NO_SERVICE.detail(format!("Service {id:?} is not there."))
}

/// The service that a path names.
fn named(id: &str) -> Result<ServiceId, Problem> {
    ServiceId::new(id).map_err(|_| no_service(id))
}

/// Makes a service. Its keys are in the answer and nowhere else: the log has only their hashes.
#[utoipa::path(post, path = "/v1/services", tag = "services", request_body = NewService,
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$", description = "the same request with the same key is carried out once")), security(("admin" = [])), responses(
    (status = 201, body = ServiceWithKeys),
    (status = 409, description = "this request was carried out before; the service is in `serviceId`", body = problem::ProblemDocument),
))]
pub async fn create(
    State(app): State<AppState>,
    _: AdminKey,
    Because(cause): Because,
    IdempotencyKey(key): IdempotencyKey,
    Body(new): Body<NewService>,
) -> Result<Response, Problem> {
    check_name("service", &new.name)?;
    check_origins(&new.origins)?;
    let once = key.map(|key| (service_id(&key), idempotency::Made::of(&key, &new)));
    let (id, secret_key, publishable_key) = app.env.draw(|rng| {
        let id = once.as_ref().map_or_else(|| ServiceId::random(rng), |(id, _)| id.clone());
        let secret = new_key(KeyKind::Secret, &id, rng);
        let publishable = new_key(KeyKind::Publishable, &id, rng);
        (id, secret, publishable)
    });
    let event = ServiceCreated {
        name: new.name.clone(),
        secret_key_hash: hash(&secret_key),
        publishable_key_hash: hash(&publishable_key),
        publishable_creates_rooms: new.publishable_creates_rooms,
    };
    let command = once.as_ref().map(|(_, made)| made.command()).unwrap_or_default();
    let draft = Draft { cause, command, ..Draft::default() };
    let mut events = vec![Event::from(event)];
    if !new.origins.is_empty() {
        let (name, publishable_creates_rooms) = (new.name.clone(), new.publishable_creates_rooms);
        events.push(ServiceChanged { name, publishable_creates_rooms, origins: new.origins }.into());
    }
    let commit = match (app.log.append(StreamId::from(&id), None, draft, &events).await, once) {
        (Err(AppendError::Conflict { .. }), Some((_, made))) => {
            let first = app.journal.read(&StreamId::from(&id), Version(1), 1).await?;
            let ours = first.first().map(|first| made.is_ours(first)).transpose()?;
            tracing::debug!(?ours, "a service is made again");
            return Err(problem::MADE_BEFORE
                .detail(format!("It made service {id}."))
                .with("serviceId", id.as_str()));
        }
        (appended, _) => appended?,
    };
    app.settle(&commit.stream, commit.last_version()).await;
    let service = ServiceWithKeys {
        id,
        name: new.name,
        secret_key,
        publishable_key,
        publishable_creates_rooms: new.publishable_creates_rooms,
    };
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, version_header(commit.last_version()), no_store, Json(service)).into_response())
}

fn describe(app: &AppState, id: &ServiceId, state: &ServiceState) -> Service {
    Service {
        id: id.clone(),
        name: state.name.clone(),
        publishable_creates_rooms: state.publishable_creates_rooms,
        origins: state.origins.clone(),
        old_keys: state
            .old_keys
            .iter()
            .filter(|old| old.until > app.env.now())
            .map(|old| OldKeyDocument { which: old.which.clone(), until: old.until.as_millis() })
            .collect(),
        created: state.created.as_millis(),
        rooms: app.directory.read().rooms_of(id).count(),
    }
}

/// The id of the service that is made under an idempotency key: letters and digits, as others are.
fn service_id(key: &str) -> ServiceId {
    ServiceId::new(&hash(&format!("service\0{key}"))[..32]).expect("hex digits")
}

/// Lists the services.
#[utoipa::path(get, path = "/v1/services", tag = "services", params(Page), security(("admin" = [])), responses((status = 200, body = Services)))]
pub async fn list(
    State(app): State<AppState>,
    _: AdminKey,
    Params(page): Params<Page>,
) -> Result<Json<Services>, Problem> {
    let limit = page.limit()?;
    let (states, next): (Vec<_>, _) = {
        let directory = app.directory.read();
        let alive = directory.services.iter().filter(|(_, state)| !state.deleted);
        let (part, next) = page.of(limit, alive, |id| id.as_str());
        (part.into_iter().map(|(id, state)| (id.clone(), state.clone())).collect(), next)
    };
    Ok(Json(Services {
        services: states.iter().map(|(id, state)| describe(&app, id, state)).collect(),
        next,
    }))
}

/// Reads a service.
#[utoipa::path(get, path = "/v1/services/{service}", tag = "services", params(("service" = String, Path)), security(("admin" = [])), responses(
    (status = 200, body = Service), (status = 404, body = problem::ProblemDocument),
))]
pub async fn get(
    State(app): State<AppState>,
    _: AdminKey,
    At(id): At<String>,
) -> Result<Json<Service>, Problem> {
    let service = named(&id)?;
    let state = app.service(&service).await?.filter(|state| !state.deleted).ok_or_else(|| no_service(&id))?;
    Ok(Json(describe(&app, &service, &state)))
}

/// Deletes a service: its keys open nothing from then on. Its rooms stay until they are empty; delete them first to end them now.
#[utoipa::path(delete, path = "/v1/services/{service}", tag = "services", params(("service" = String, Path)), security(("admin" = [])), responses(
    (status = 204, description = "deleted"), (status = 404, body = problem::ProblemDocument),
))]
pub async fn delete(
    State(app): State<AppState>,
    _: AdminKey,
    Because(cause): Because,
    At(id): At<String>,
) -> Result<Response, Problem> {
    let service = named(&id)?;
    let version = app.decide_service(&service, cause, |_| Ok(vec![ServiceDeleted {}.into()])).await?;
    Ok((StatusCode::NO_CONTENT, version_header(version)).into_response())
}

/// Changes a service.
#[utoipa::path(patch, path = "/v1/services/{service}", tag = "services", request_body = ServiceChange, params(("service" = String, Path)), security(("admin" = [])), responses(
    (status = 200, body = Service), (status = 404, body = problem::ProblemDocument),
))]
pub async fn change(
    State(app): State<AppState>,
    _: AdminKey,
    Because(cause): Because,
    At(id): At<String>,
    Body(change): Body<ServiceChange>,
) -> Result<Response, Problem> {
    let service = named(&id)?;
    change.name.as_deref().map_or(Ok(()), |name| check_name("service", name))?;
    change.origins.as_deref().map_or(Ok(()), check_origins)?;
    let decide = |state: &ServiceState| {
        let changed = ServiceChanged {
            name: change.name.clone().unwrap_or_else(|| state.name.clone()),
            publishable_creates_rooms: change
                .publishable_creates_rooms
                .unwrap_or(state.publishable_creates_rooms),
            origins: change.origins.clone().unwrap_or_else(|| state.origins.clone()),
        };
        Ok(vec![changed.into()])
    };
    let version = app.decide_service(&service, cause, decide).await?;
    let state = app.service_now(&service).await?;
    Ok((version_header(version), Json(describe(&app, &service, &state))).into_response())
}

impl App {
    /// Appends to the stream of a service what `decide` makes of its state; nothing where that is nothing.
    pub(crate) async fn decide_service(
        &self,
        service: &ServiceId,
        cause: Cause,
        decide: impl Fn(&ServiceState) -> Result<Vec<Event>, Problem>,
    ) -> Result<Version, Problem> {
        /// As in placement: each round somebody else got through.
        const ROUNDS: u32 = 8;
        let stream = StreamId::from(service);
        for _ in 0..ROUNDS {
            let state = self.service_now(service).await?;
            if state.head.is_none() || state.deleted {
                return Err(no_service(service.as_str()));
            }
            let events = decide(&state)?;
            if events.is_empty() {
                return Ok(state.version());
            }
            let draft = Draft { cause: cause.clone(), ..Draft::default() };
            match self.log.append(stream.clone(), state.head, draft, &events).await {
                Ok(commit) => {
                    self.settle(&stream, commit.last_version()).await;
                    return Ok(commit.last_version());
                }
                Err(AppendError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(problem::CONTENDED.detail(format!("Service {service} was to be changed.")).retry_after(1))
    }

    /// A service as the journal has it now.
    pub(crate) async fn service_now(&self, service: &ServiceId) -> Result<ServiceState, Problem> {
        let known = self.directory.read().services.get(service).cloned();
        let mut state = known.unwrap_or_default();
        for commit in read_all(&*self.journal, &StreamId::from(service), state.version().next()).await? {
            state.apply_commit(&commit)?;
        }
        Ok(state)
    }
}

/// Which key is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// The secret key.
    Secret,
    /// The publishable key.
    Publishable,
}

/// What is replaced.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rotation {
    /// Which key.
    which: Which,
    /// The replaced key opens for so long yet, seconds, so that those who have it can be given the new one meanwhile. 0: it opens nothing
    /// from now on. One that was replaced before ends at once in any case.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    old_valid_s: u32,
}

/// A replaced key opens for no longer than this, seconds: 30 days. What must outlive that has been forgotten somewhere.
const MAX_OLD_VALID_S: u32 = 2_592_000;

impl Which {
    fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Publishable => "publishable",
        }
    }
}

/// A new key, which is shown only now.
#[derive(Serialize, ToSchema)]
pub struct NewKey {
    /// The key.
    key: String,
}

/// Replaces a key of a service. The old one opens nothing from then on, or for a stated time yet.
#[utoipa::path(post, path = "/v1/services/{service}/keys", tag = "services", params(("service" = String, Path)), request_body = Rotation, security(("admin" = [])), responses(
    (status = 201, body = NewKey), (status = 404, body = problem::ProblemDocument),
))]
pub async fn rotate(
    State(app): State<AppState>,
    _: AdminKey,
    Because(cause): Because,
    At(id): At<String>,
    Body(rotation): Body<Rotation>,
) -> Result<Response, Problem> {
    let service = named(&id)?;
    if rotation.old_valid_s > MAX_OLD_VALID_S {
        return Err(problem::INVALID_FIELD.detail(format!(
            "`oldValidS` is {}; at most {MAX_OLD_VALID_S} is allowed.",
            rotation.old_valid_s
        )));
    }
    let kind = match rotation.which {
        Which::Secret => KeyKind::Secret,
        Which::Publishable => KeyKind::Publishable,
    };
    let old_until = app.env.now().plus_millis(u64::from(rotation.old_valid_s) * 1_000);
    let old_until = (rotation.old_valid_s > 0).then_some(old_until);
    let key = app.env.draw(|rng| new_key(kind, &service, rng));
    let rotated = ServiceKeyRotated { which: rotation.which.as_str().into(), hash: hash(&key), old_until };
    let version = app.decide_service(&service, cause, |_| Ok(vec![rotated.clone().into()])).await?;
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, version_header(version), no_store, Json(NewKey { key })).into_response())
}

/// Ends a replaced key before its time. The current one stays.
#[utoipa::path(delete, path = "/v1/services/{service}/keys/{which}/old", operation_id = "revoke", tag = "services", params(("service" = String, Path), ("which" = Which, Path, description = "`secret` or `publishable`")), security(("admin" = [])), responses(
    (status = 204, description = "it opens nothing"), (status = 404, body = problem::ProblemDocument),
))]
pub async fn revoke(
    State(app): State<AppState>,
    _: AdminKey,
    Because(cause): Because,
    At((id, which)): At<(String, Which)>,
) -> Result<Response, Problem> {
    let revoked = ServiceOldKeyRevoked { which: which.as_str().into() };
    let version = app.decide_service(&named(&id)?, cause, |_| Ok(vec![revoked.clone().into()])).await?;
    Ok((StatusCode::NO_CONTENT, version_header(version)).into_response())
}

// ---- the demo service ------------------------------------------------------------------------------------------------------

/// The demo service and its keys, as its file keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DemoKeys {
    /// Its id.
    pub service: ServiceId,
    /// Opens its whole API.
    pub secret_key: String,
    /// Asks for tokens.
    pub publishable_key: String,
}

/// Why there is no demo service.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Its file cannot be kept.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// Its file does not read.
    #[error("{DEMO_FILE} in the data folder does not read: {0}; remove it to have a new demo service made")]
    Damaged(#[from] serde_json::Error),
    /// The log did not take it.
    #[error("the demo service cannot be made: {0}")]
    Append(#[from] AppendError),
    /// The log does not read.
    #[error("the demo service cannot be read: {0}")]
    Read(#[from] roomlog_bus::journal::ReadError),
}

impl DemoKeys {
    /// The demo service of this data folder, made if it is not there. The keys are kept before the log learns of the service, so a
    /// crash between the two leaves keys whose service is made at the next start.
    pub async fn load_or_make(folder: Option<&Path>, env: &Env, log: &Log) -> Result<Self, DemoError> {
        let make = || {
            let keys = env.draw(|rng| {
                let service = ServiceId::random(rng);
                Self {
                    secret_key: new_key(KeyKind::Secret, &service, rng),
                    publishable_key: new_key(KeyKind::Publishable, &service, rng),
                    service,
                }
            });
            serde_json::to_string_pretty(&keys).expect("three texts")
        };
        let text = match folder {
            Some(folder) => credentials::load_or_make(folder, DEMO_FILE, make)?,
            None => make(),
        };
        let keys: Self = serde_json::from_str(&text)?;
        let stream = StreamId::from(&keys.service);
        if log.journal().head(&stream).await?.is_none() {
            let event = ServiceCreated {
                name: "demo".into(),
                secret_key_hash: hash(&keys.secret_key),
                publishable_key_hash: hash(&keys.publishable_key),
                publishable_creates_rooms: true,
            };
            let draft = Draft { cause: Cause::of("start"), ..Draft::default() };
            match log.append(stream, None, draft, &[event.into()]).await {
                // Another process with the same data folder was first.
                Ok(_) | Err(AppendError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(keys)
    }
}

/// The demo service.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Demo {
    /// Asks for tokens, and may make rooms.
    publishable_key: String,
    /// Its id.
    #[schema(value_type = String)]
    service: ServiceId,
}

/// The publishable key of the demo service, where there is one.
#[utoipa::path(get, path = "/v1/demo", tag = "services", responses((status = 200, body = Demo), (status = 404, body = problem::ProblemDocument)))]
pub async fn demo(State(app): State<AppState>) -> Result<Json<Demo>, Problem> {
    let keys = app.demo.as_ref().ok_or_else(|| problem::NO_DEMO.detail("This node has none."))?;
    let deleted = app.directory.read().services.get(&keys.service).is_some_and(|state| state.deleted);
    if deleted {
        return Err(problem::NO_DEMO.detail("It was deleted."));
    }
    Ok(Json(Demo { publishable_key: keys.publishable_key.clone(), service: keys.service.clone() }))
}
