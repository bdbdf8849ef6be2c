//! Who reaches the administration: making services and their keys, draining nodes, metrics. Its keys guard it too; but what strangers cannot
//! reach they cannot try keys on, nor read how busy the cluster is.
//!
//! At the node's own address these routes answer this machine only, and whoever comes through a proxy is not this machine, also where the
//! proxy is. With an address of their own (`--admin-listen`) they answer there and nowhere else.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    http::{HeaderMap, Method},
    middleware::{self, Next},
    response::IntoResponse,
};
use roomlog_nuve::problem;

/// What proxies add. One that is not in `trusted-proxies` hides whose request it is, so a request that has one of them is a stranger's.
const OF_PROXIES: [&str; 4] = ["x-forwarded-for", "forwarded", "x-real-ip", "via"];

/// Whether it is administration.
fn is_admin(method: &Method, path: &str) -> bool {
    let below =
        |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below("/v1/services")
        || below("/metrics")
        || (below("/v1/nodes") && method != Method::GET && method != Method::HEAD)
}

/// Whether it comes from a program on this machine.
fn is_local(peer: Option<SocketAddr>, headers: &HeaderMap) -> bool {
    peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback())
        && !OF_PROXIES.iter().any(|name| headers.contains_key(*name))
}

/// The router without its administration for those who have no business there: for all where it is `elsewhere`, else for other machines.
pub fn guard(router: Router, elsewhere: bool) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| async move {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        if is_admin(request.method(), request.uri().path())
            && (elsewhere || !is_local(peer, request.headers()))
        {
            return problem::ADMIN_ELSEWHERE
                .detail(format!("{} {}.", request.method(), request.uri().path()))
                .into_response();
        }
        next.run(request).await
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::StatusCode};
    use tower::ServiceExt as _;

    async fn status(
        elsewhere: bool,
        method: &str,
        path: &str,
        peer: &str,
        header: Option<&str>,
    ) -> StatusCode {
        let router = guard(Router::new().fallback(async || "served"), elsewhere);
        let mut request = Request::builder().method(method).uri(path);
        if let Some(header) = header {
            request = request.header(header, "127.0.0.1");
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        router.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn the_administration_answers_this_machine_or_its_own_address() {
        let (here, away) = ("127.0.0.1:4000", "192.0.2.1:4000");
        let admin = [
            ("GET", "/v1/services"),
            ("POST", "/v1/services"),
            ("DELETE", "/v1/services/s1"),
            ("POST", "/v1/services/s1/keys"),
            ("POST", "/v1/nodes/ec.1/drain"),
            ("GET", "/metrics"),
        ];
        for (method, path) in admin {
            for here in [here, "[::1]:4000", "[::ffff:127.0.0.1]:4000"] {
                assert_eq!(status(false, method, path, here, None).await, StatusCode::OK, "{path} {here}");
            }
            assert_eq!(status(false, method, path, away, None).await, StatusCode::FORBIDDEN, "{path}");
            assert_eq!(status(true, method, path, here, None).await, StatusCode::FORBIDDEN, "{path}");
            for header in OF_PROXIES {
                assert_eq!(
                    status(false, method, path, here, Some(header)).await,
                    StatusCode::FORBIDDEN,
                    "{path} {header}"
                );
            }
        }
        for path in
            ["/", "/v1/rooms", "/v1/servicesx", "/healthz", "/v1/nodes", "/v1/rooms/metrics", "/signal"]
        {
            for elsewhere in [false, true] {
                assert_eq!(status(elsewhere, "GET", path, away, Some("via")).await, StatusCode::OK, "{path}");
            }
        }
    }
}
