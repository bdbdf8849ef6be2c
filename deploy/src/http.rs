//! The HTTP server of a node: with or without TLS, and what bounds a connection before and between requests. What bounds a request is
//! NUVE's, what bounds a WebSocket the EC's.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use axum::Router;
use axum_server::{
    Handle,
    accept::NoDelayAcceptor,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};

/// The head of a request must be whole within this: from the beginning of the connection, and again from the answer before it, so a
/// connection that is kept open idle is closed then too. 10 s: what the TLS handshake before it may take, and the EC's wait for a
/// token behind it. Who sends a byte now and then would hold a socket and a task for ever.
pub const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// An HTTP/2 connection is asked this often whether its other end is there; without an answer within [`HEAD_WITHIN`] it is closed. 20 s:
/// under the 30 s after which NATs and proxies forget a connection.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Serves until `handle` says otherwise. Without Nagle's algorithm: a notification right before an answer, as on a socket that has just been let
/// in, would make the answer wait for the client's delayed acknowledgement, 40 ms.
pub async fn serve(
    listener: TcpListener,
    tls: Option<RustlsConfig>,
    handle: Handle<SocketAddr>,
    router: Router,
) -> io::Result<()> {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let plain = bounded(axum_server::from_tcp(listener)?.acceptor(NoDelayAcceptor::new())).handle(handle);
    match tls {
        Some(tls) => {
            let acceptor = RustlsAcceptor::new(tls).acceptor(NoDelayAcceptor::new());
            plain.acceptor(acceptor).serve(service).await
        }
        None => plain.serve(service).await,
    }
}

type Server = axum_server::Server<SocketAddr, NoDelayAcceptor>;

fn bounded(mut server: Server) -> Server {
    let builder = server.http_builder();
    builder.http1().header_read_timeout(HEAD_WITHIN);
    builder.http2().keep_alive_interval(PING_EVERY).keep_alive_timeout(HEAD_WITHIN);
    // Which HTTP it is has no time limit of hyper's.
    server.first_request_timeout(HEAD_WITHIN)
}
