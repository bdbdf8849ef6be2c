//! No secret leaves the place that it is for: not with everything said that a node can say, not in the log, not in what others are told.
//!
//! Known secrets go through `roomlog up` on all ways they can go, good and bad. Then all it wrote and answered is searched for them.
//! What is in the log by design: SHA-256 hashes of keys and resume keys, ids of tokens (`jti`), and nothing of ICE or DTLS.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use roomlog_tests::{
    http,
    peer::{Peer, Policy},
    roomlog_bin,
};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, process::Command};

/// What was made secret, by name.
#[derive(Default)]
struct Secrets(Vec<(&'static str, String)>);

impl Secrets {
    fn keep(&mut self, what: &'static str, secret: &str) {
        assert!(secret.len() >= 16, "{what} is too short to be searched for: {secret:?}");
        self.0.push((what, secret.to_owned()));
    }

    /// Which secrets are in `text`, in the clear.
    fn found_in(&self, place: &str, text: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(_, secret)| text.contains(secret.as_str()));
        found
            .map(|(what, secret)| {
                let at = text.find(secret.as_str()).unwrap_or_default();
                let line = text[..at].lines().next_back().unwrap_or_default();
                format!("{what} in {place}, behind {:?}", &line[line.len().saturating_sub(120)..])
            })
            .collect()
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

/// Every file below `folder`, as text.
fn files(folder: &Path, all: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, all)?;
        } else {
            all.push((
                path.display().to_string(),
                String::from_utf8_lossy(&std::fs::read(&path)?).into_owned(),
            ));
        }
    }
    Ok(())
}

async fn replay(data: &Path, what: &[&str]) -> anyhow::Result<String> {
    let out = Command::new(roomlog_bin()).arg("replay").args(what).arg("--data").arg(data).output().await?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_said_logged_or_told() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let mut secrets = Secrets::default();
    let admin = "ak_kxV4pQm7Zt2sLw9dRb6nHc3fJy8gUe5aTo1iXqWvSrM";
    secrets.keep("the admin key", admin);

    let mut up = Command::new(roomlog_bin())
        .args(["up", "--listen", "127.0.0.1:0", "--workers", "1", "--data"])
        .arg(data.path())
        // All that our crates, and those that see their bytes, can say.
        .env("ROOMLOG_LOG", "trace")
        .env("ROOMLOG_ADMIN_KEY", admin)
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(data.path().join("said"))?)
        .kill_on_drop(true)
        .spawn()?;
    let mut stdout = up.stdout.take().context("stdout is piped")?;
    let mut said = String::new();
    let origin = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let mut buffer = [0; 4096];
            let count = stdout.read(&mut buffer).await?;
            ensure!(count > 0, "it ended: {said}");
            said.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if let Some(url) =
                said.lines().find_map(|l| l.strip_prefix("Open ")).filter(|_| said.ends_with('\n'))
            {
                return Ok(url.trim_end_matches('/').to_owned());
            }
        }
    })
    .await??;
    let mut told: Vec<(String, String)> = Vec::new();

    // A service, its keys, a rotation.
    let body = json!({ "name": "s", "publishableCreatesRooms": true });
    let service = http::call_ok(&origin, "POST", "/v1/services", Some(admin), Some(&body)).await?;
    let (id, secret, publishable) =
        (text(&service, "id"), text(&service, "secretKey"), text(&service, "publishableKey"));
    secrets.keep("the secret key", secret);
    secrets.keep("the publishable key", publishable);
    let keys = format!("/v1/services/{id}/keys");
    let rotated =
        http::call_ok(&origin, "POST", &keys, Some(admin), Some(&json!({ "which": "secret" }))).await?;
    let secret_now = text(&rotated, "key").to_owned();
    secrets.keep("the secret key after rotation", &secret_now);

    // A token, a client, its media, a break and a way back.
    let path = "/v1/rooms/name:r/tokens";
    let token_for = |user: &'static str| {
        let (origin, key) = (origin.clone(), publishable.to_owned());
        async move {
            let body = json!({ "user": user, "create": true });
            http::call_ok(&origin, "POST", path, Some(&key), Some(&body)).await
        }
    };
    let token = token_for("Ann").await?;
    let (url, jwt) = (text(&token, "wsUrl").to_owned(), text(&token, "token").to_owned());
    secrets.keep("a token", &jwt);
    let signature = jwt.rsplit('.').next().context("a token has parts")?;
    secrets.keep("a token's signature", signature);
    let (mut ann, entered) = Peer::enter(&url, &jwt, Policy::Accept).await?;
    let resume_key = text(&entered, "resumeKey").to_owned();
    secrets.keep("a resume key", &resume_key);
    let (sending, _) = ann.join("Ann").await?;
    ann.produce_video(&sending, 1111).await?;
    let made = ann.ask("createWebRtcTransport", json!({ "producing": false, "consuming": true })).await?;
    secrets.keep("an ICE password", text(&made["iceParameters"], "password"));
    let fingerprint = json!({ "algorithm": "sha-256", "value": "AB:".repeat(31) + "AB" });
    let dtls = json!({ "transportId": sending, "dtlsParameters": { "role": "client", "fingerprints": [fingerprint] } });
    ann.ask("connectWebRtcTransport", dtls).await?;
    let restarted = ann.ask("restartIce", json!({ "transportId": sending })).await?;
    secrets.keep("an ICE password after a restart", text(&restarted, "password"));
    let stats = ann.ask("getTransportStats", json!({ "transportId": sending })).await?;
    told.push(("statistics of a transport".into(), stats.to_string()));

    // Somebody else, who is told of Ann; on the URL, as some clients show their token.
    let other = token_for("Bob").await?;
    let jwt_on_url = text(&other, "token").to_owned();
    secrets.keep("a token in a URL", &jwt_on_url);
    let bob = Peer::open(&format!("{url}?token={jwt_on_url}"), Policy::Accept).await?;
    ann.break_off().await;
    let mut ann = Peer::open(&url, Policy::Accept).await?;
    let back = json!({ "roomId": text(&token, "roomId"), "clientId": text(&token, "clientId"), "resumeKey": resume_key, "since": 0 });
    let resumed = ann.try_ask("resume", back).await?;
    ensure!(resumed.is_ok(), "{resumed:?}");

    // What is refused, with secrets in it that are nearly right.
    let bad_token = format!("{}AAAA", &jwt[..jwt.len() - 4]);
    secrets.keep("a bad token", &bad_token);
    let mut stranger = Peer::open(&url, Policy::Accept).await?;
    told.push((
        "the answer to a bad token".into(),
        format!("{:?}", stranger.try_ask("token", json!({ "token": bad_token })).await?),
    ));
    let bad_resume = format!("{}zzzz", &resume_key[..resume_key.len() - 4]);
    secrets.keep("a bad resume key", &bad_resume);
    let mut stranger = Peer::open(&url, Policy::Accept).await?;
    let back = json!({ "roomId": text(&token, "roomId"), "clientId": text(&token, "clientId"), "resumeKey": bad_resume, "since": 0 });
    told.push((
        "the answer to a bad resume key".into(),
        format!("{:?}", stranger.try_ask("resume", back).await?),
    ));
    let bad_key = format!("{}zzzz", &secret_now[..secret_now.len() - 4]);
    secrets.keep("a bad key", &bad_key);
    for (method, path, key) in [
        ("GET", "/v1/rooms", bad_key.as_str()),
        ("GET", "/v1/rooms", secret),
        ("GET", "/v1/rooms", publishable),
        ("GET", "/v1/rooms", &secret_now),
        ("GET", "/v1/rooms/name:r", &secret_now),
        ("GET", "/v1/rooms/name:r/users", &secret_now),
        ("POST", path, &secret_now),
        ("GET", "/v1/services", admin),
        ("GET", "/v1/services", &secret_now),
        ("GET", "/v1/nodes", admin),
        ("GET", "/metrics", admin),
        ("GET", "/openapi.json", ""),
        ("GET", "/v1/demo", ""),
        ("GET", "/readyz", ""),
    ] {
        let body = json!({ "user": 7 });
        let key = Some(key).filter(|key| !key.is_empty());
        let answer = http::call(&origin, method, path, key, (method == "POST").then_some(&body)).await?;
        told.push((format!("{method} {path}"), format!("{} {}", answer.head, answer.body)));
    }
    // Metrics are no JSON; they come as they are.
    let metrics = raw(&origin, "/metrics", admin).await?;
    ensure!(metrics.contains("roomlog_"), "no metrics: {metrics}");
    told.push(("metrics".into(), metrics));
    {
        let heard = bob.heard.lock().expect("no panic inside");
        told.push(("what a neighbour heard".into(), format!("{heard:?}")));
    }
    ann.leave().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    up.start_kill()?;
    let _ = up.wait().await;

    // What the node keeps to itself, and uses all the time.
    for file in ["token-key", "demo-service.json"] {
        let kept = std::fs::read_to_string(data.path().join(file))?;
        match serde_json::from_str::<Value>(&kept) {
            Ok(keys) => secrets.keep("the demo service's secret key", text(&keys, "secretKey")),
            Err(_) => secrets.keep("the key that signs tokens", kept.trim()),
        }
    }

    let mut found = Vec::new();
    let log = std::fs::read_to_string(data.path().join("said"))?;
    ensure!(log.contains("TRACE") && log.contains("DEBUG"), "it said little: {} bytes", log.len());
    told.push(("its log".into(), log));
    told.push(("its output".into(), said));
    let mut written = Vec::new();
    files(&data.path().join("log"), &mut written)?;
    if data.path().join("checkpoint").exists() {
        let bytes = std::fs::read(data.path().join("checkpoint"))?;
        written.push(("checkpoint".into(), String::from_utf8_lossy(&bytes).into_owned()));
    }
    ensure!(!written.is_empty(), "no journal");
    told.extend(written);
    let mut decoded = String::new();
    for what in [
        &["show", "name:r", "--json"][..],
        &["state", "name:r", "--json"],
        &["rooms"],
        &["show", "name:r"],
        &["verify"],
    ] {
        decoded += &replay(data.path(), what).await?;
    }
    ensure!(decoded.contains("TransportCreated") && decoded.contains("resume_key_hash"), "{decoded}");
    told.push(("the decoded log".into(), decoded));
    for (place, text) in &told {
        found.extend(secrets.found_in(place, text));
    }
    // The page's own key is public on purpose: it is the demo service's, and `/v1/demo` gives nothing else.
    ensure!(found.is_empty(), "{} leaks:\n{}", found.len(), found.join("\n"));
    Ok(())
}

async fn raw(origin: &str, path: &str, key: &str) -> anyhow::Result<String> {
    use tokio::io::AsyncWriteExt;
    let host = origin.strip_prefix("http://").context("http only")?;
    let mut stream = tokio::net::TcpStream::connect(host).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
