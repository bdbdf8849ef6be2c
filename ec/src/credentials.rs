//! Tokens and resume keys, as an EC checks them. Tokens are signed by NUVE; the public keys are learnt over the bus.

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use roomlog_bus::{
    bus::Bus,
    commit::StreamKind,
    rpc::{NuveAnswer, NuveRequest, RPC_TIMEOUT, ask},
    subject::Subject,
    time::Timestamp,
    token::{Claims, TokenError, TokenKeys},
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Keys are asked for at most this often, so that tokens with made-up key ids do not become a load on NUVE.
const FETCH_PAUSE: Duration = Duration::from_secs(1);

/// The keys known so far.
#[derive(Default)]
pub(crate) struct Verifier {
    keys: RwLock<TokenKeys>,
    /// When they were last asked for. Whoever holds it asks; the others wait for the outcome in place of asking too.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

/// Why a token opens nothing.
#[derive(Debug, PartialEq)]
pub(crate) enum Unverified {
    /// It is no good.
    Bad(TokenError),
    /// Its key is not known here, and NUVE has not been asked for it just now: it did not answer, or was asked a moment ago.
    NotAsked { kid: String },
}

impl Verifier {
    /// What the token says, and whether it has ended meanwhile: an ended one may still bring back the client that it admitted.
    pub(crate) async fn verify(
        &self,
        bus: &dyn Bus,
        token: &str,
        now: Timestamp,
    ) -> Result<(Claims, bool), Unverified> {
        match self.check(token, now) {
            Err(TokenError::UnknownKey { kid }) => {
                let asked = self.learn(bus, &kid).await;
                self.check(token, now).map_err(|error| match error {
                    TokenError::UnknownKey { kid } if !asked => Unverified::NotAsked { kid },
                    error => Unverified::Bad(error),
                })
            }
            result => result.map_err(Unverified::Bad),
        }
    }

    fn check(&self, token: &str, now: Timestamp) -> Result<(Claims, bool), TokenError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        match keys.verify(token, now) {
            Ok(claims) => Ok((claims, false)),
            // Read as of its last second: signature and shape are checked all the same.
            Err(TokenError::Expired { at }) => {
                keys.verify(token, Timestamp(at.0.saturating_sub(1))).map(|claims| (claims, true))
            }
            Err(error) => Err(error),
        }
    }

    /// Asks NUVE for its keys, unless the one called `kid` has come meanwhile or they were asked for a moment ago. Whether what is known
    /// now is what NUVE knows.
    async fn learn(&self, bus: &dyn Bus, kid: &str) -> bool {
        let mut asked = self.asked.lock().await;
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner).contains(kid);
        if known || asked.is_some_and(|at| at.elapsed() < FETCH_PAUSE) {
            return known;
        }
        let answered = match ask::<_, NuveAnswer>(
            bus,
            Subject::rpc_any(StreamKind::Nuve),
            &NuveRequest::TokenKeys,
            RPC_TIMEOUT,
        )
        .await
        {
            Ok(NuveAnswer::Keys { keys }) => {
                self.keys.write().unwrap_or_else(PoisonError::into_inner).extend(TokenKeys::new(keys));
                true
            }
            Ok(NuveAnswer::Draining | NuveAnswer::Limit(_)) => {
                tracing::warn!("NUVE answered something else than its token keys");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "NUVE's token keys could not be fetched");
                false
            }
        };
        *asked = Some(Instant::now());
        answered
    }
}

/// The resume key that goes with a token. It is derived, so that the same token brings the same key from any EC; who holds the token
/// may attach the client anyway, so the key gives nothing beyond it.
pub(crate) fn resume_key(token: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"roomlog resume key\0");
    hash.update(token.as_bytes());
    URL_SAFE_NO_PAD.encode(hash.finalize())
}

/// What the log keeps of a resume key.
pub(crate) fn hash_of(resume_key: &str) -> String {
    Sha256::digest(resume_key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}
