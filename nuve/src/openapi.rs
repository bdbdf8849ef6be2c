//! All routes, and the description of them that `/openapi.json` gives and `/docs` lets one try.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::header,
    middleware,
    response::{Html, IntoResponse, Response},
    routing::get,
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::AppState, changes, describe, events, history, http, metrics, nodes, pages, problem, rooms, services,
    state, tokens, users, webhooks,
};

/// Bodies may have this many bytes: `metadata` of 16 KiB, escaped to the worst, and the rest beside it.
const MAX_BODY_BYTES: usize = 64 * 1024;

#[derive(OpenApi)]
#[openapi(
    info(title = "Roomlog NUVE", description = "Rooms, tokens and users of a Roomlog cluster. Errors are problem documents (RFC 9457)."),
    modifiers(&Keys),
    components(schemas(problem::ProblemDocument))
)]
struct Api;

struct Keys;

impl Modify for Keys {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_with(Default::default);
        for (name, help) in [
            ("secret", "The secret key of a service, `sk_…`: the whole API of that service."),
            ("publishable", "The publishable key of a service, `pk_…`: asks for tokens only."),
            ("admin", "The admin key, `ak_…`: services."),
        ] {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(help)).build();
            components.add_security_scheme(name, SecurityScheme::Http(scheme));
        }
    }
}

/// All routes of NUVE.
pub fn router(app: AppState) -> Router {
    let api = OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(services::demo))
        .routes(routes!(services::create, services::list))
        .routes(routes!(services::get, services::change, services::delete))
        .routes(routes!(services::rotate))
        .routes(routes!(services::revoke))
        .routes(routes!(rooms::create, rooms::list))
        .routes(routes!(rooms::get, changes::change_room, rooms::delete))
        .routes(routes!(tokens::create))
        .routes(routes!(tokens::locate))
        .routes(routes!(users::list))
        .routes(routes!(users::get, changes::change_user, users::delete))
        .routes(routes!(changes::mute))
        .routes(routes!(history::read))
        .routes(routes!(state::read))
        .routes(routes!(events::stream))
        .routes(routes!(webhooks::api::create, webhooks::api::list))
        .routes(routes!(webhooks::api::get, webhooks::api::change, webhooks::api::remove))
        .routes(routes!(webhooks::api::rotate))
        .routes(routes!(metrics::metrics))
        .routes(routes!(nodes::healthz))
        .routes(routes!(nodes::readyz))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::drain));
    let (api, description) = api.split_for_parts();
    let description = serde_json::to_value(description).expect("a description has text keys");
    let description = Arc::new(describe::complete(description));
    let describe = move || {
        let description = description.clone();
        async move { Json((*description).clone()) }
    };
    api.route("/openapi.json", get(describe))
        .route("/docs", get(docs))
        .route("/docs.js", get(docs_script))
        .route("/problems/{slug}", get(pages::explain_problem))
        .method_not_allowed_fallback(wrong_method)
        .fallback(pages::fallback)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(app.clone(), http::time_limit))
        .layer(middleware::from_fn(http::tell))
        .layer(middleware::from_fn(http::cors))
        .layer(middleware::from_fn_with_state(app.clone(), http::count))
        .with_state(app)
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> Response {
    problem::NO_METHOD.detail(format!("{method} {}.", uri.path())).into_response()
}

async fn docs() -> Response {
    pages::guard(Html(include_str!("docs.html")).into_response())
}

async fn docs_script() -> Response {
    pages::guard(
        ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("docs.js")).into_response(),
    )
}
