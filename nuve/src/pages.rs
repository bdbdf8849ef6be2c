//! The web pages, built from `web/` into the binary, and the page that explains a problem's type.

use axum::{
    extract::Path,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{Html, IntoResponse, Response},
};
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::problem;

#[derive(RustEmbed)]
#[folder = "web/dist"]
#[allow_missing = true]
struct Files;

/// What the pages may do: their own scripts only; sockets and `locate` at any host, since ECs and NUVE nodes have their own; media
/// from the camera and from memory.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data: blob:; media-src 'self' blob: mediastream:; worker-src 'self' blob:; \
     connect-src 'self' http: https: ws: wss:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'";

/// Camera, microphone and screen for the pages themselves, nothing else.
const PERMISSIONS_POLICY: &str =
    "camera=(self), microphone=(self), display-capture=(self), autoplay=(self), geolocation=()";

const NOT_BUILT: &str = "<!doctype html><meta charset=utf-8><title>Roomlog</title>\
     <p>This is NUVE, the HTTP front of Roomlog, and it works. The web page was not built into it: run <code>./deploy/up</code>, \
     which builds the page first, or see <a href=/docs>the API</a>.";

/// Content type of a file, by the end of its name; what a web page build makes, and nothing sniffed.
fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "jpg" | "jpeg" => "image/jpeg",
        "woff2" => "font/woff2",
        "wasm" => "application/wasm",
        "mp3" => "audio/mpeg",
        "webm" => "video/webm",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// Whether a file's name changes with its content: `name-<8 or more of A-Z 0-9>.ext`, as esbuild's `[name]-[hash]` gives.
fn is_immutable(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    stem.rsplit_once('-').is_some_and(|(_, hash)| {
        hash.len() >= 8 && hash.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    })
}

fn find(path: &str) -> Option<(String, EmbeddedFile)> {
    let path = path.trim_start_matches('/');
    let candidates = if path.is_empty() || path.ends_with('/') {
        vec![format!("{path}index.html")]
    } else {
        vec![path.to_owned(), format!("{path}.html"), format!("{path}/index.html")]
    };
    candidates.into_iter().find_map(|name| Files::get(&name).map(|file| (name, file)))
}

/// Adds what every page of ours says about itself.
pub fn guard(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert("permissions-policy", HeaderValue::from_static(PERMISSIONS_POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// Whatever is not a route of the API: a file of the web page, or nothing.
pub async fn fallback(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    if path.starts_with("/v1/") || path == "/v1" {
        return problem::NO_ROUTE.detail(format!("{path} is no route of the API.")).into_response();
    }
    if method != Method::GET && method != Method::HEAD {
        return problem::NO_METHOD.detail(format!("{method} {path}.")).into_response();
    }
    let Some((name, file)) = find(path) else {
        return if path == "/" {
            guard(Html(NOT_BUILT).into_response())
        } else {
            problem::NO_ROUTE.detail(format!("{path} is neither a page nor a route.")).into_response()
        };
    };
    use std::fmt::Write as _;
    let mut etag = String::from("\"");
    for byte in &file.metadata.sha256_hash()[..16] {
        let _ = write!(etag, "{byte:02x}");
    }
    etag.push('"');
    let cache = if is_immutable(&name) { "public, max-age=31536000, immutable" } else { "no-cache" };
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let common = [(header::ETAG, etag.clone()), (header::CACHE_CONTROL, cache.to_owned())];
    let fresh =
        known.is_some_and(|known| known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag));
    let response = if fresh {
        (StatusCode::NOT_MODIFIED, common).into_response()
    } else {
        (common, [(header::CONTENT_TYPE, content_type(&name))], file.data.into_owned()).into_response()
    };
    guard(response)
}

/// What the `type` of a problem document leads to.
pub async fn explain_problem(Path(slug): Path<String>) -> Response {
    match problem::ALL.iter().find(|kind| kind.slug == slug) {
        Some(kind) => format!("{} ({})\n\n{}\n", kind.title, kind.status, kind.help).into_response(),
        None => problem::NO_ROUTE.detail("There is no such problem.").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_with_a_hash_in_their_name_are_kept_for_ever() {
        for (path, immutable) in [
            ("assets/room-7KZ2QJ3A.js", true),
            ("index.html", false),
            ("assets/room.js", false),
            ("bare-client.js", false),
        ] {
            assert_eq!(is_immutable(path), immutable, "{path}");
        }
    }
}
