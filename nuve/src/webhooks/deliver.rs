//! One request to a receiver: over HTTP/1.1, to an address that may be called, without following redirects.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use axum::http::{Request, Uri, header, uri::Scheme};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls};

use crate::webhooks::targets::Targets;

/// A receiver answers within this: Standard Webhooks asks for 15 to 30 s; what takes longer is to be queued there.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What is sent.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// To where.
    pub url: String,
    /// `webhook-id`, the same each time it is tried.
    pub id: String,
    /// `webhook-timestamp`, seconds.
    pub timestamp: u64,
    /// `webhook-signature`.
    pub signature: String,
    /// JSON.
    pub body: Bytes,
}

/// Sends.
#[async_trait]
pub trait Deliver: Send + Sync {
    /// Sends it and waits for the answer: an error, in words, unless that is 2xx.
    async fn deliver(&self, delivery: &Delivery) -> Result<(), String>;

    /// Whether this can be told never to be called, and why: an address in place of a name. What a name means is looked at with each delivery.
    fn check(&self, _url: &Uri) -> Result<(), String> {
        Ok(())
    }
}

/// The host and port of a URL, and whether what is sent there can be read on the way.
fn place(uri: &Uri) -> Result<(&str, u16, bool), String> {
    let plain = uri.scheme() == Some(&Scheme::HTTP);
    let host = uri.host().ok_or("the URL has no host")?.trim_matches(['[', ']']);
    Ok((host, uri.port_u16().unwrap_or(if plain { 80 } else { 443 }), plain))
}

/// Sends over HTTP and HTTPS.
pub struct HttpDeliver {
    targets: Targets,
    tls: TlsConnector,
}

impl HttpDeliver {
    /// To `targets` only; HTTPS trusts the authorities that this machine trusts.
    pub fn new(targets: Targets) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "an authority of this machine is not trusted by webhooks");
        }
        roots.add_parsable_certificates(found.certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what TLS 1.2 and 1.3 need")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { targets, tls: TlsConnector::from(Arc::new(config)) }
    }

    /// Whether this address may be called. Without TLS anybody on the way reads what happens in rooms; inside, the operator says what is between.
    fn may(&self, address: IpAddr, plain: bool) -> bool {
        if plain { self.targets.named(address) } else { self.targets.allow(address) }
    }

    /// Why none of the addresses of `host` may be called.
    fn refusal(&self, host: &str, addresses: &[IpAddr], plain: bool) -> String {
        match addresses {
            [] => format!("{host} has no address"),
            _ if plain && addresses.iter().any(|address| self.targets.allow(*address)) => {
                format!("{host} is called over https only")
            }
            _ => format!("{host} is no address of the public Internet, and not in `webhook-allow`"),
        }
    }

    /// The addresses behind the name that may be called.
    async fn resolve(&self, host: &str, port: u16, plain: bool) -> Result<Vec<SocketAddr>, String> {
        let found =
            tokio::net::lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
        let (allowed, refused): (Vec<_>, Vec<_>) = found.partition(|to| self.may(to.ip(), plain));
        let refused: Vec<IpAddr> = refused.iter().map(SocketAddr::ip).collect();
        if allowed.is_empty() { Err(self.refusal(host, &refused, plain)) } else { Ok(allowed) }
    }

    async fn send<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<u16, String>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // Of the answer only the status counts; its body may be as long as it likes.
        tokio::select! {
            answer = sender.send_request(request) => {
                answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string())
            }
            Err(error) = connection => Err(error.to_string()),
        }
    }

    async fn try_deliver(&self, delivery: &Delivery) -> Result<u16, String> {
        let uri: Uri = delivery.url.parse().map_err(|error| format!("the URL does not read: {error}"))?;
        let (host, port, plain) = place(&uri)?;
        let addresses = self.resolve(host, port, plain).await?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = uri.authority().map_or(host, |authority| authority.as_str());
        let request = Request::post(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("roomlog/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &delivery.id)
            .header("webhook-timestamp", delivery.timestamp)
            .header("webhook-signature", &delivery.signature)
            .body(Full::new(delivery.body.clone()))
            .map_err(|error| error.to_string())?;
        let stream = TcpStream::connect(&addresses[..]).await.map_err(|error| format!("{host}: {error}"))?;
        if plain {
            return self.send(stream, request).await;
        }
        let name = rustls::pki_types::ServerName::try_from(host.to_owned())
            .map_err(|error| format!("{host}: {error}"))?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| format!("{host}: {error}"))?;
        self.send(stream, request).await
    }
}

#[async_trait]
impl Deliver for HttpDeliver {
    async fn deliver(&self, delivery: &Delivery) -> Result<(), String> {
        match tokio::time::timeout(ANSWER_WITHIN, self.try_deliver(delivery)).await {
            Ok(Ok(status)) if (200..300).contains(&status) => Ok(()),
            Ok(Ok(status)) => Err(format!("answered {status}")),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(format!("no answer within {ANSWER_WITHIN:?}")),
        }
    }

    fn check(&self, url: &Uri) -> Result<(), String> {
        let (host, _, plain) = place(url)?;
        match host.parse() {
            Ok(address) if !self.may(address, plain) => Err(self.refusal(host, &[address], plain)),
            _ => Ok(()),
        }
    }
}
