//! Webhooks over HTTP: registered, looked at, moved and removed by their service.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    events::{Event, WebhookClaimed, WebhookRemoved, WebhookSet},
    ids::{ServiceId, random_token},
    journal::Cursor,
};
use roomlog_projections::service::{ServiceState, Webhook};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{
    ToSchema,
    openapi::{Array, ArrayBuilder, ObjectBuilder, Type, schema::SchemaType},
};

use crate::{
    app::{App, AppState},
    events::{cursor_text, place},
    http::{At, Because, Body, SecretKey, version_header},
    problem::{self, Problem},
};

/// Webhooks of one service, at most: each follows the log.
const MAX_WEBHOOKS: usize = 16;
/// The longest URL taken, characters.
const MAX_URL: usize = 2_000;
/// Event types that one may name.
const MAX_TYPES: usize = 64;
/// A replaced secret signs beside the new one for no longer than this, seconds: 30 days.
const MAX_OLD_VALID_S: u32 = 2_592_000;

/// What a webhook is to be.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewWebhook {
    /// Where to send: https, or http where the operator allows the address. Redirects are not followed.
    #[schema(
        example = "https://app.example/roomlog",
        max_length = 2000,
        pattern = "^https?://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?([/?][A-Za-z0-9._~:/?@!$&'()*+,;=%-]*)?$"
    )]
    url: String,
    /// Only events of these types; none: all.
    #[serde(default)]
    #[schema(schema_with = types_schema)]
    types: Vec<String>,
    /// Where in the log to begin: an event id, `beginning`, or `now`.
    #[serde(default)]
    #[schema(example = "now", pattern = "^[A-Za-z0-9_-]+$")]
    from: Option<String>,
}

/// What of a webhook is to change; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebhookChange {
    /// Where to send.
    #[serde(default)]
    #[schema(
        max_length = 2000,
        pattern = "^https?://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?([/?][A-Za-z0-9._~:/?@!$&'()*+,;=%-]*)?$"
    )]
    url: Option<String>,
    /// Only events of these types; an empty list: all.
    #[serde(default)]
    #[schema(schema_with = types_or_null)]
    types: Option<Vec<String>>,
    /// Whether anything is sent. What happens meanwhile is sent later.
    #[serde(default)]
    enabled: Option<bool>,
    /// Goes on from here, back or forth: an event id, `beginning`, or `now`. What was sent from there on is sent again.
    #[serde(default)]
    #[schema(example = "beginning", pattern = "^[A-Za-z0-9_-]+$")]
    from: Option<String>,
}

/// As [`types_schema`], or nothing.
fn types_or_null() -> Array {
    ArrayBuilder::from(types_schema()).schema_type(SchemaType::from_iter([Type::Array, Type::Null])).build()
}

/// Types of events, by name.
fn types_schema() -> Array {
    let kinds = Event::CATALOGUE.iter().map(|(kind, _)| *kind);
    ArrayBuilder::new()
        .items(ObjectBuilder::new().schema_type(Type::String).enum_values(Some(kinds)))
        .max_items(Some(MAX_TYPES))
        .examples([json!(["ClientJoined", "ClientLeft"])])
        .build()
}

/// A webhook.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookDocument {
    /// Its id.
    id: String,
    /// Where it sends.
    url: String,
    /// Only events of these types; none: all.
    types: Vec<String>,
    /// Whether anything is sent.
    enabled: bool,
    /// All up to here was taken, as the log knows: an event id of `/v1/events`. It lags by half a minute.
    cursor: String,
    /// The receiver takes nothing; absent while all goes well.
    #[serde(skip_serializing_if = "Option::is_none")]
    failing: Option<FailingDocument>,
    /// The NUVE that sends; absent until one does. It stays absent where no node has the `webhook-key` it was made under: replace its secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_by: Option<String>,
    /// When it was made, Unix milliseconds.
    created: u64,
    /// What it signs with; only when it was just made.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// How a receiver fails.
#[derive(Serialize, ToSchema)]
pub struct FailingDocument {
    /// Since when, Unix milliseconds.
    since: u64,
    /// How often it was tried when this was written down.
    attempts: u32,
    /// What came of it.
    error: String,
}

/// Webhooks of a service.
#[derive(Serialize, ToSchema)]
pub struct Webhooks {
    /// Sorted by id.
    webhooks: Vec<WebhookDocument>,
}

fn check_url(app: &App, url: &str) -> Result<(), Problem> {
    let parsed: Option<Uri> = url.parse().ok();
    let good = parsed.as_ref().is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && !uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
    });
    if let (true, Some(uri)) = (good && url.len() <= MAX_URL, &parsed) {
        let refused = |reason| problem::INVALID_FIELD.detail(format!("`url`: {reason}."));
        return app.deliver.check(uri).map_err(refused);
    }
    Err(problem::INVALID_FIELD.detail(format!(
        "`url` is no http or https URL of at most {MAX_URL} characters, without user and password."
    )))
}

fn check_types(types: &[String]) -> Result<(), Problem> {
    let known = |kind: &&String| Event::CATALOGUE.iter().any(|(name, _)| name == kind);
    if types.len() > MAX_TYPES {
        return Err(problem::INVALID_FIELD.detail(format!("`types` has more than {MAX_TYPES} entries.")));
    }
    match types.iter().find(|kind| !known(kind)) {
        Some(other) => {
            Err(problem::INVALID_FIELD.detail(format!("`types` has {other:?}, which is no type of event.")))
        }
        None => Ok(()),
    }
}

/// What would change nothing.
fn as_it_is(id: &str, hook: &Webhook) -> WebhookSet {
    WebhookSet {
        webhook: id.to_owned(),
        url: hook.url.clone(),
        types: hook.types.clone(),
        enabled: hook.enabled,
        generation: hook.generation,
        old_until: hook.old_until,
        key: hook.key.clone(),
        cursor: None,
    }
}

fn no_webhook(id: &str) -> Problem {
    problem::NO_WEBHOOK.detail(format!("Webhook {id:?} is not there."))
}

fn describe(id: &str, hook: &Webhook, secret: Option<String>) -> WebhookDocument {
    WebhookDocument {
        id: id.to_owned(),
        url: hook.url.clone(),
        types: hook.types.clone(),
        enabled: hook.enabled,
        cursor: cursor_text(&Cursor(hook.cursor.clone())),
        failing: hook.failing.as_ref().map(|failing| FailingDocument {
            since: failing.since.as_millis(),
            attempts: failing.attempts,
            error: failing.error.clone(),
        }),
        sent_by: hook.node.as_ref().map(ToString::to_string),
        created: hook.created.as_millis(),
        secret,
    }
}

impl App {
    async fn webhook(&self, service: &ServiceId, id: &str) -> Result<Webhook, Problem> {
        self.service_now(service).await?.webhooks.get(id).cloned().ok_or_else(|| no_webhook(id))
    }

    async fn shown(
        &self,
        service: &ServiceId,
        id: &str,
        secret: Option<String>,
    ) -> Result<Json<WebhookDocument>, Problem> {
        let hook = self.webhook(service, id).await?;
        Ok(Json(describe(id, &hook, secret)))
    }
}

/// Registers a webhook. Its secret is in the answer and nowhere else.
#[utoipa::path(post, path = "/v1/webhooks", tag = "webhooks", request_body = NewWebhook, security(("secret" = [])), responses(
    (status = 201, body = WebhookDocument), (status = 409, description = "the service has as many as it may", body = problem::ProblemDocument),
))]
pub async fn create(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    Because(cause): Because,
    Body(new): Body<NewWebhook>,
) -> Result<Response, Problem> {
    check_url(&app, &new.url)?;
    check_types(&new.types)?;
    let cursor = place(&app, new.from.as_deref().unwrap_or("now")).await?;
    let id = app.env.draw(|rng| random_token(rng, 16));
    let set = WebhookSet {
        webhook: id.clone(),
        url: new.url,
        types: new.types,
        enabled: true,
        generation: 1,
        old_until: None,
        key: app.webhook_key.fingerprint().into(),
        cursor: Some(cursor.0),
    };
    // This node can sign for it.
    let claimed = WebhookClaimed { webhook: id.clone(), node: Some(app.node.clone()) };
    let decide = |state: &ServiceState| match state.webhooks.len() {
        ..MAX_WEBHOOKS => Ok(vec![set.clone().into(), claimed.clone().into()]),
        _ => {
            Err(problem::TOO_MANY_WEBHOOKS.detail(format!("A service has {MAX_WEBHOOKS} webhooks at most.")))
        }
    };
    let version = app.decide_service(&service, cause, decide).await?;
    let shown = app.shown(&service, &id, Some(app.webhook_key.secret(&id, 1))).await?;
    let headers =
        [(header::LOCATION, format!("/v1/webhooks/{id}")), (header::CACHE_CONTROL, "no-store".into())];
    Ok((StatusCode::CREATED, version_header(version), headers, shown).into_response())
}

/// Lists the webhooks of the service.
#[utoipa::path(get, path = "/v1/webhooks", tag = "webhooks", security(("secret" = [])), responses((status = 200, body = Webhooks)))]
pub async fn list(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
) -> Result<Json<Webhooks>, Problem> {
    let state = app.service_now(&service).await?;
    let all = state.webhooks.iter().map(|(id, hook)| describe(id, hook, None));
    Ok(Json(Webhooks { webhooks: all.collect() }))
}

/// Reads a webhook: how far it has got, and whether its receiver fails.
#[utoipa::path(get, path = "/v1/webhooks/{webhook}", tag = "webhooks", params(("webhook" = String, Path)), security(("secret" = [])), responses(
    (status = 200, body = WebhookDocument), (status = 404, body = problem::ProblemDocument),
))]
pub async fn get(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    At(id): At<String>,
) -> Result<Json<WebhookDocument>, Problem> {
    app.shown(&service, &id, None).await
}

/// Changes a webhook, or has it go on from another place in the log.
#[utoipa::path(patch, path = "/v1/webhooks/{webhook}", tag = "webhooks", request_body = WebhookChange, params(("webhook" = String, Path)), security(("secret" = [])), responses(
    (status = 200, body = WebhookDocument), (status = 404, body = problem::ProblemDocument),
))]
pub async fn change(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    Because(cause): Because,
    At(id): At<String>,
    Body(change): Body<WebhookChange>,
) -> Result<Response, Problem> {
    change.url.as_deref().map_or(Ok(()), |url| check_url(&app, url))?;
    change.types.as_deref().map_or(Ok(()), check_types)?;
    let cursor = match &change.from {
        Some(from) => Some(place(&app, from).await?.0),
        None => None,
    };
    let decide = |state: &ServiceState| {
        let hook = state.webhooks.get(&id).ok_or_else(|| no_webhook(&id))?;
        let set = WebhookSet {
            url: change.url.clone().unwrap_or_else(|| hook.url.clone()),
            types: change.types.clone().unwrap_or_else(|| hook.types.clone()),
            enabled: change.enabled.unwrap_or(hook.enabled),
            cursor: cursor.clone(),
            ..as_it_is(&id, hook)
        };
        Ok(vec![set.into()])
    };
    let version = app.decide_service(&service, cause, decide).await?;
    Ok((version_header(version), app.shown(&service, &id, None).await?).into_response())
}

/// How a webhook's secret is replaced.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretRotation {
    /// The replaced secret signs beside the new one for so long, seconds.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    old_valid_s: u32,
}

/// Replaces the secret of a webhook. Both sign for the time that is named.
#[utoipa::path(post, path = "/v1/webhooks/{webhook}/secret", operation_id = "rotate", tag = "webhooks", request_body = SecretRotation, params(("webhook" = String, Path)), security(("secret" = [])), responses(
    (status = 201, body = WebhookDocument), (status = 404, body = problem::ProblemDocument),
))]
pub async fn rotate(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    Because(cause): Because,
    At(id): At<String>,
    Body(rotation): Body<SecretRotation>,
) -> Result<Response, Problem> {
    if rotation.old_valid_s > MAX_OLD_VALID_S {
        return Err(problem::INVALID_FIELD.detail(format!(
            "`oldValidS` is {}; at most {MAX_OLD_VALID_S} is allowed.",
            rotation.old_valid_s
        )));
    }
    let (now, old_valid) = (app.env.now(), u64::from(rotation.old_valid_s) * 1_000);
    let key = app.webhook_key.fingerprint();
    let decide = |state: &ServiceState| {
        let hook = state.webhooks.get(&id).ok_or_else(|| no_webhook(&id))?;
        // The old secret can be computed only under the key it was made with, and the new one under this node's.
        let same_key = hook.key == key;
        let set = WebhookSet {
            generation: hook.generation + 1,
            old_until: (same_key && old_valid > 0).then(|| now.plus_millis(old_valid)),
            key: key.to_owned(),
            ..as_it_is(&id, hook)
        };
        let claimed = WebhookClaimed { webhook: id.clone(), node: Some(app.node.clone()) };
        Ok(if same_key { vec![set.into()] } else { vec![set.into(), claimed.into()] })
    };
    let version = app.decide_service(&service, cause, decide).await?;
    let hook = app.webhook(&service, &id).await?;
    let secret = app.webhook_key.secret(&id, hook.generation);
    let shown = Json(describe(&id, &hook, Some(secret)));
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, version_header(version), no_store, shown).into_response())
}

/// Removes a webhook.
#[utoipa::path(delete, path = "/v1/webhooks/{webhook}", tag = "webhooks", params(("webhook" = String, Path)), security(("secret" = [])), responses(
    (status = 204, description = "removed"), (status = 404, body = problem::ProblemDocument),
))]
pub async fn remove(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    Because(cause): Because,
    At(id): At<String>,
) -> Result<Response, Problem> {
    let decide = |state: &ServiceState| match state.webhooks.contains_key(&id) {
        true => Ok(vec![WebhookRemoved { webhook: id.clone() }.into()]),
        false => Err(no_webhook(&id)),
    };
    let version = app.decide_service(&service, cause, decide).await?;
    Ok((StatusCode::NO_CONTENT, version_header(version)).into_response())
}
