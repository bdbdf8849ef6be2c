//! What every request goes through: who asks, limits, bodies that read, CORS, the time limit and counting.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Bytes,
    extract::{
        ConnectInfo, FromRequest, FromRequestParts, MatchedPath, Path, Query, Request, State,
        rejection::{BytesRejection, FailedToBufferBody, JsonRejection},
    },
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use roomlog_bus::{
    commit::Cause,
    ids::{ServiceId, Version},
};
use roomlog_projections::service::ServiceState;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::Value;

use crate::{
    app::{App, AppState},
    credentials::{self, KeyKind},
    limits::addresses::Left,
    problem::{self, Problem},
};

/// Answers to mutations carry the version they made, so that a read elsewhere can wait for it.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("roomlog-version");

/// `Roomlog-Version: <version>`.
pub fn version_header(version: Version) -> [(HeaderName, HeaderValue); 1] {
    [(VERSION_HEADER, HeaderValue::from(version.0))]
}

// ---- who asks --------------------------------------------------------------------------------------------------------------

/// A caller with any key of a service.
pub struct AnyKey {
    /// Whose.
    pub service: ServiceId,
    /// Which key.
    pub kind: KeyKind,
}

/// A caller with the secret key of a service.
pub struct SecretKey(pub ServiceId);

/// A caller with the admin key.
pub struct AdminKey;

/// A caller with the admin key or a secret key.
pub struct Operator;

/// The address of the one who asks; none where the server does not tell, as in tests.
fn peer(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())
}

/// The key in `Authorization: Bearer <key>` (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| problem::NO_KEY.detail("The request has no Authorization header."))?;
    let text = value.to_str().unwrap_or_default();
    match text.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") && !key.trim().is_empty() => {
            Ok(key.trim())
        }
        _ => Err(problem::NO_KEY.detail("The Authorization header is not `Bearer <key>`.")),
    }
}

impl App {
    fn limited<T>(&self, result: Result<T, Problem>) -> Result<T, Problem> {
        if result.is_err() {
            self.metrics.rate_limited();
        }
        result
    }

    /// Who asks, once the limits let them.
    async fn caller(&self, parts: &Parts) -> Result<AnyKey, Problem> {
        let address = peer(parts);
        // Guessing keys costs as much as using a publishable one.
        let stranger = |problem: Problem| match self.limited(self.limits.ip(address)) {
            Ok(left) => problem.limit(left),
            Err(limited) => limited,
        };
        let key = bearer(&parts.headers).map_err(stranger)?;
        let Some((kind, service)) = credentials::parse(key) else {
            let problem = problem::UNKNOWN_KEY.detail("The key is none of sk_… and pk_….");
            return Err(stranger(problem));
        };
        if kind == KeyKind::Publishable {
            let left = self.limited(self.limits.ip(address))?;
            if let Some(told) = parts.extensions.get::<Told>() {
                let _ = told.0.set(left);
            }
        }
        let now = self.env.now();
        let origin = parts.headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
        let look = |state: &ServiceState| {
            let here = |origin: &str| state.origins.is_empty() || state.origins.iter().any(|o| o == origin);
            (credentials::opens(state, kind, key, now), origin.is_none_or(here))
        };
        let known = self.directory.read().services.get(&service).map(look);
        let (opens, here) = match known {
            Some(known) => known,
            None => {
                // Not heard of here: a service made elsewhere a moment ago, or a guess.
                self.limited(self.limits.unheard())?;
                self.service(&service).await?.map_or((false, true), |state| look(&state))
            }
        };
        if !opens {
            let problem = problem::UNKNOWN_KEY.detail("The key is not, or no longer, one of its service.");
            return Err(if kind == KeyKind::Secret { stranger(problem) } else { problem });
        }
        if !here {
            return Err(stranger(
                problem::WRONG_ORIGIN.detail(format!("This page is of {}.", origin.unwrap_or_default())),
            ));
        }
        if kind == KeyKind::Secret {
            self.limited(self.limits.service(&service))?;
        }
        self.limited(self.limits.cluster().await)?;
        Ok(AnyKey { service, kind })
    }

    /// Whether the admin asks.
    async fn admin(&self, parts: &Parts) -> Result<(), Problem> {
        let address = peer(parts);
        let check = || {
            let key = bearer(&parts.headers)?;
            let Some(wanted) = &self.admin_key_hash else {
                return Err(problem::NO_ADMIN.detail("This node has no admin key."));
            };
            if credentials::hash(key) == *wanted {
                Ok(())
            } else if credentials::parse(key).is_some() {
                Err(problem::WRONG_KEY.detail("This is the key of a service."))
            } else {
                Err(problem::UNKNOWN_KEY.detail("This is not the admin key."))
            }
        };
        match check() {
            Ok(()) => self.limited(self.limits.cluster().await),
            Err(problem) => Err(problem.limit(self.limited(self.limits.ip(address))?)),
        }
    }
}

impl FromRequestParts<AppState> for AnyKey {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        app.caller(parts).await
    }
}

impl FromRequestParts<AppState> for SecretKey {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        let caller = app.caller(parts).await?;
        match caller.kind {
            KeyKind::Secret => Ok(Self(caller.service)),
            KeyKind::Publishable => Err(problem::WRONG_KEY.detail("This is a publishable key.")),
        }
    }
}

impl FromRequestParts<AppState> for AdminKey {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        app.admin(parts).await.map(|()| Self)
    }
}

impl FromRequestParts<AppState> for Operator {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        let is_admin = bearer(&parts.headers).is_ok_and(|key| credentials::parse(key).is_none());
        if is_admin {
            return app.admin(parts).await.map(|()| Self);
        }
        SecretKey::from_request_parts(parts, app).await.map(|_| Self)
    }
}

/// What a commit written for this request names as its cause: the caller's trace id, where it sent one (W3C Trace Context).
pub struct Because(pub Cause);

impl FromRequestParts<AppState> for Because {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Self::Rejection> {
        let trace = parts.headers.get("traceparent").and_then(|value| {
            let id = value.to_str().ok()?.split('-').nth(1)?;
            (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
        });
        Ok(Self(Cause { trace, ..Cause::of("http") }))
    }
}

// ---- where it was sent -----------------------------------------------------------------------------------------------------

/// `host:port` a request was sent to, checked to be nothing but that, since it comes back in answers.
pub struct SentTo(Option<String>);

impl SentTo {
    fn of(headers: &HeaderMap, uri: &Uri) -> Self {
        let host = headers.get(header::HOST).and_then(|value| value.to_str().ok());
        let host = host.or_else(|| uri.authority().map(|authority| authority.as_str()));
        let plain = |host: &&str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b);
            !host.is_empty() && host.len() <= 255 && host.bytes().all(allowed)
        };
        Self(host.filter(plain).map(str::to_owned))
    }

    fn host(&self, app: &App) -> Result<String, Problem> {
        if let Some(host) = &self.0 {
            return Ok(host.clone());
        }
        let public = app.settings.public_url.as_deref().and_then(|url| url.split("://").nth(1));
        match public.and_then(|rest| rest.split('/').next()) {
            Some(host) if !host.is_empty() => Ok(host.to_owned()),
            _ => Err(problem::BAD_REQUEST.detail("The request has no usable Host header (RFC 9110 §7.2).")),
        }
    }

    /// The base of URLs at NUVE, without a slash at the end.
    pub fn base(&self, app: &App) -> Result<String, Problem> {
        if let Some(url) = &app.settings.public_url {
            return Ok(url.trim_end_matches('/').to_owned());
        }
        let scheme = if app.settings.tls { "https" } else { "http" };
        Ok(format!("{scheme}://{}", self.host(app)?))
    }

    /// An EC's WebSocket URL. `auto:/path` is an EC behind the same port as this NUVE.
    pub fn ws_url(&self, app: &App, address: &str) -> Result<String, Problem> {
        let Some(path) = address.strip_prefix("auto:") else { return Ok(address.to_owned()) };
        if let Some(url) = &app.settings.public_url {
            // http → ws, https → wss
            return Ok(format!("ws{}{path}", url.trim_end_matches('/').trim_start_matches("http")));
        }
        let scheme = if app.settings.tls { "wss" } else { "ws" };
        Ok(format!("{scheme}://{}{path}", self.host(app)?))
    }
}

impl FromRequestParts<AppState> for SentTo {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.headers, &parts.uri))
    }
}

// ---- bodies, queries and paths that read -----------------------------------------------------------------------------------

/// A JSON body: an object. Where a whole number is meant, `60.0` is one, as JSON Schema has it.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Body<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, app: &AppState) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = Bytes::from_request(Request::from_parts(parts.clone(), body), app).await;
        let bytes = bytes.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                problem::TOO_LARGE.detail("The body is longer than that.")
            }
            other => problem::BAD_REQUEST.detail(sentence(&other.body_text())),
        })?;
        // Fields in a row without their names would be taken for an object.
        let is_array = bytes.trim_ascii_start().first() == Some(&b'[');
        let request = Request::from_parts(parts, axum::body::Body::from(bytes.clone()));
        match Json::<T>::from_request(request, app).await {
            Ok(_) if is_array => {
                Err(problem::INVALID_FIELD.detail("The body is an array; it is to be a JSON object."))
            }
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::JsonDataError(error)) => match with_whole_numbers(&bytes) {
                Some(value) => Ok(Self(value)),
                None => {
                    // What stands before the name of the field is about types of ours.
                    let text = error.body_text();
                    let what = text.split_once("target type: ").map_or(text.as_str(), |(_, what)| what);
                    Err(problem::INVALID_FIELD.detail(sentence(&format!("In the body: {what}"))))
                }
            },
            Err(JsonRejection::JsonSyntaxError(error)) => {
                Err(problem::BAD_REQUEST.detail(sentence(&error.body_text())))
            }
            Err(JsonRejection::MissingJsonContentType(_)) => {
                Err(problem::UNSUPPORTED_MEDIA.detail("The Content-Type is not application/json."))
            }
            Err(other) => Err(problem::BAD_REQUEST.detail(sentence(&other.body_text()))),
        }
    }
}

/// Reads a field that is an object or left out: a row of values is not taken for one with its fields in order.
pub fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(field: D) -> Result<Option<T>, D::Error> {
    match Option::<Value>::deserialize(field)? {
        None | Some(Value::Null) => Ok(None),
        Some(object @ Value::Object(_)) => serde_json::from_value(object).map(Some).map_err(D::Error::custom),
        Some(other) => Err(D::Error::custom(format_args!("it is {other}, an object is expected"))),
    }
}

/// What a body says if its whole numbers are written as such.
fn with_whole_numbers<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut value: Value = serde_json::from_slice(bytes).ok().filter(Value::is_object)?;
    write_whole(&mut value);
    serde_json::from_value(value).ok()
}

fn write_whole(value: &mut Value) {
    /// Up to here every whole number is a double of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            let double = number.as_f64().filter(|n| number.is_f64() && n.fract() == 0.0 && n.abs() < EXACT);
            if let Some(double) = double {
                *number = (double as i64).into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(write_whole),
        Value::Object(fields) => fields.values_mut().for_each(write_whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Query parameters.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Params<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(problem::BAD_REQUEST.detail(sentence(&error.body_text()))),
        }
    }
}

/// Path parameters.
pub struct At<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<AppState> for At<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, app).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(error) => Err(problem::BAD_REQUEST.detail(sentence(&error.body_text()))),
        }
    }
}

fn sentence(text: &str) -> String {
    format!("{}.", text.trim_end_matches('.'))
}

// ---- around every request --------------------------------------------------------------------------------------------------

/// Lets pages call the API. Keys travel in a header, never in a cookie, so another origin gains nothing it was not given; whether its pages may
/// use the key of a service is asked when the key is there, which it is not in a preflight request.
pub async fn cors(request: Request, next: Next) -> Response {
    let from_page = request.headers().contains_key(header::ORIGIN);
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response =
        if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    if from_page {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(
                "etag, location, roomlog-version, retry-after, ratelimit, ratelimit-policy",
            ),
        );
        if preflight {
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_METHODS,
                HeaderValue::from_static("GET, POST, PATCH, DELETE"),
            );
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                HeaderValue::from_static("authorization, content-type, idempotency-key, if-match, if-none-match, last-event-id, traceparent"),
            );
            // 10 minutes: Chrome keeps it no longer than two hours, and a changed list should get through soon.
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        }
    }
    response
}

/// Gives a request up when it takes too long. The body of a stream is not meant, only the time until it begins.
pub async fn time_limit(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let limit = Duration::from_millis(app.settings.request_timeout_ms);
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => problem::TIMEOUT.detail(format!("No answer was ready within {limit:?}.")).into_response(),
    }
}

/// What is left to the caller of the limit that it was counted by; told with the answer.
#[derive(Clone, Default)]
struct Told(Arc<OnceLock<Left>>);

/// Tells callers what is left to them.
pub async fn tell(mut request: Request, next: Next) -> Response {
    let told = Told::default();
    request.extensions_mut().insert(told.clone());
    let mut response = next.run(request).await;
    if let Some(left) = told.0.get()
        && !response.headers().contains_key("ratelimit")
    {
        problem::tell_left(response.headers_mut(), left);
    }
    response
}

/// Counts requests by route and status.
pub async fn count(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let started = Instant::now();
    let response = next.run(request).await;
    app.metrics.request(&method, route.as_deref(), response.status(), started.elapsed());
    response
}
