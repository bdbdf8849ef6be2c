//! The certificate that HTTP and WebSockets are served with, read again when its files change: whoever renews it, every two months or so,
//! restarts nothing. What is open goes on under the old one.
//!
//! The files are compared by what is in them, so that it does not matter how they are replaced. Where they do not load, such as between the
//! one being written and the other, the certificate stays as it was, and that is said once.

use std::{io, path::PathBuf, time::Duration};

use anyhow::Context;
use axum_server::tls_rustls::RustlsConfig;
use tokio::task::JoinHandle;

/// The files are read this often: a few KiB, and a renewed certificate has weeks.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A certificate chain and its private key, PEM files.
#[derive(Debug, Clone)]
pub struct Files {
    /// The chain, the node's own certificate first.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Files {
    async fn read(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        Ok((tokio::fs::read(&self.certificate).await?, tokio::fs::read(&self.key).await?))
    }
}

/// Loads the certificate, and again each time that its files have changed, until the task is aborted.
pub async fn load(files: Files, every: Duration) -> anyhow::Result<(RustlsConfig, JoinHandle<()>)> {
    let what =
        || format!("the certificate {} with the key {}", files.certificate.display(), files.key.display());
    let mut loaded = files.read().await.with_context(|| format!("cannot read {}", what()))?;
    let config = RustlsConfig::from_pem(loaded.0.clone(), loaded.1.clone())
        .await
        .with_context(|| format!("{} does not load: PEM files that belong together are wanted", what()))?;
    let reloaded = config.clone();
    let watching = tokio::spawn(async move {
        let mut refused = None;
        loop {
            tokio::time::sleep(every).await;
            let found = match files.read().await {
                Ok(found) if found == loaded || refused.as_ref() == Some(&found) => continue,
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, "the certificate does not read now");
                    continue;
                }
            };
            match reloaded.reload_from_pem(found.0.clone(), found.1.clone()).await {
                Ok(()) => {
                    tracing::info!(certificate = %files.certificate.display(), "the certificate was renewed");
                    (loaded, refused) = (found, None);
                }
                Err(error) => {
                    tracing::error!(certificate = %files.certificate.display(), %error, "the changed certificate does not load: the one before is served");
                    refused = Some(found);
                }
            }
        }
    });
    Ok((config, watching))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, path::Path, sync::Arc, time::Instant};

    use axum::{Router, routing::get};
    use axum_server::Handle;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream, rustls};

    use super::*;

    fn made() -> (String, String, rustls::pki_types::CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem(), made.cert.der().clone())
    }

    fn put(folder: &Path, certificate: &str, key: &str) {
        std::fs::write(folder.join("tls.crt"), certificate).unwrap();
        std::fs::write(folder.join("tls.key"), key).unwrap();
    }

    /// A connection that trusts nothing else than `root`.
    async fn connect(
        port: u16,
        root: &rustls::pki_types::CertificateDer<'static>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
    }

    async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("here") {
            let mut bytes = [0; 1_000];
            let read = stream.read(&mut bytes).await.unwrap();
            assert!(read > 0, "{answer}");
            answer += std::str::from_utf8(&bytes[..read]).unwrap();
        }
        answer
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (made(), made());
        put(folder.path(), &first.0, &first.1);
        let files = Files { certificate: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
        let (config, _watching) = load(files.clone(), Duration::from_millis(20)).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().route("/", get(async || "here"));
        tokio::spawn(crate::http::serve(listener, Some(config), Handle::new(), router));

        let mut open = connect(port, &first.2).await.unwrap();
        ask(&mut open).await;
        connect(port, &second.2).await.unwrap_err();
        // Another's key, and no certificate at all: as it was.
        for (certificate, key) in [(&second.0, &first.1), (&"nothing".to_owned(), &first.1)] {
            put(folder.path(), certificate, key);
            tokio::time::sleep(Duration::from_millis(200)).await;
            connect(port, &first.2).await.unwrap();
        }
        put(folder.path(), &second.0, &second.1);
        let since = Instant::now();
        while connect(port, &second.2).await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(30), "the renewed certificate is not served");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        connect(port, &first.2).await.unwrap_err();
        ask(&mut open).await;
        // What does not load at the start is said then.
        put(folder.path(), &second.0, &first.1);
        assert!(load(files, LOOK_EVERY).await.is_err());
    }
}
