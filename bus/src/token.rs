//! Tokens: what admits a client. A JWT (RFC 7519) signed with Ed25519 (RFC 8037), made by NUVE and checked by the EC.
//!
//! Only `alg: EdDSA` is taken, whatever a token says of itself, and the key is picked by `kid` among keys we were given: a token never
//! brings its own key and never picks its own algorithm (RFC 8725 §3.1).

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};

use crate::{
    ids::{ClientId, EcId, RoomId, ServiceId},
    rights::Rights,
    time::Timestamp,
};

/// What every token of ours names as its issuer.
pub const ISSUER: &str = "roomlog";

/// The longest token looked at, in bytes. Ours are about 600; it travels in a URL, and servers refuse lines over 8 KiB.
pub const MAX_TOKEN_BYTES: usize = 4_096;

/// How far in the future, in seconds, a token may have been issued: the clocks of two nodes kept by NTP differ by less.
pub const CLOCK_LEEWAY_S: u64 = 10;

/// What a token says (RFC 7519 §4). Times are whole seconds since the Unix epoch, as JWT has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Issuer: [`ISSUER`].
    pub iss: String,
    /// The user's name.
    pub sub: String,
    /// The token's own id: it admits one client once.
    pub jti: String,
    /// Whose room it is.
    pub service: ServiceId,
    /// The room it admits to.
    pub room: RoomId,
    /// The client it admits.
    pub client: ClientId,
    /// What that client may do: `presenter` or `viewer`.
    pub role: String,
    /// What it may do one by one; absent: what goes with the role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rights: Option<Rights>,
    /// The EC that had the room when the token was made.
    pub ec: EcId,
    /// Where that EC's WebSocket is.
    pub ws: String,
    /// Issued at, seconds.
    pub iat: u64,
    /// Ends at, seconds: not valid from that second on.
    pub exp: u64,
}

/// Why a token admits nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token of ours at all.
    #[error("not a token: {reason}")]
    Malformed {
        /// What does not read.
        reason: String,
    },
    /// It names a key that is not known here: signed elsewhere, or by a NUVE whose key has not been fetched yet.
    #[error("the token is signed with key {kid:?}, which is not known here; ask NUVE for its keys")]
    UnknownKey {
        /// The key id it names.
        kid: String,
    },
    /// It was altered, or signed with another key than it names.
    #[error("the token's signature is wrong: it was altered or not signed by this cluster")]
    BadSignature,
    /// It has ended.
    #[error("the token ended at {at}; fetch a new one")]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// It says that it was made in the future.
    #[error("the token was issued at {at}, which is still to come: the clocks of NUVE and this node differ")]
    NotYetValid {
        /// When.
        at: Timestamp,
    },
}

fn malformed(reason: impl Into<String>) -> TokenError {
    TokenError::Malformed { reason: reason.into() }
}

/// Key id of an Ed25519 public key: its JWK thumbprint (RFC 7638, RFC 8037 appendix A.3), 43 characters.
pub fn key_id(public: &[u8]) -> String {
    let x = URL_SAFE_NO_PAD.encode(public);
    let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, jwk.as_bytes()))
}

/// A private key that signs tokens.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    header: String,
    kid: String,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// The key that grows from 32 secret random bytes (RFC 8032 §5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("32 bytes are always a seed");
        let kid = key_id(pair.public_key().as_ref());
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{kid}"}}"#));
        Self { pair, header, kid }
    }

    /// Its id, as tokens name it.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half, 32 bytes.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The token that says `claims`, in compact form (RFC 7515 §7.1).
    pub fn sign(&self, claims: &Claims) -> String {
        let claims = serde_json::to_vec(claims).expect("claims have text keys and finite numbers");
        let mut token = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(token.as_bytes()));
        token.push('.');
        token.push_str(&signature);
        token
    }
}

/// The public keys tokens are checked with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenKeys(BTreeMap<String, Vec<u8>>);

/// The fields of a token's header we look at.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

impl TokenKeys {
    /// The keys as [`NuveAnswer::Keys`](crate::rpc::NuveAnswer::Keys) brings them. A key whose id is not its own thumbprint is left out.
    pub fn new(keys: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self(keys.into_iter().filter(|(kid, public)| public.len() == 32 && *kid == key_id(public)).collect())
    }

    /// Adds those of `more`.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Whether the key called `kid` is known.
    pub fn contains(&self, kid: &str) -> bool {
        self.0.contains_key(kid)
    }

    /// Each key with its id, as [`TokenKeys::new`] takes them.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.0.iter()
    }

    /// Checks signature and times of `token` and gives what it says. Whether it has been used, and whether it is for this room and
    /// this EC, is the caller's to check.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(malformed(format!("{} bytes, of {MAX_TOKEN_BYTES} allowed", token.len())));
        }
        let mut parts = token.split('.');
        let (Some(head), Some(body), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("three parts separated by dots are wanted"));
        };
        let decode = |what: &str, text: &str| {
            URL_SAFE_NO_PAD.decode(text).map_err(|error| malformed(format!("{what}: {error}")))
        };
        let header: Header = serde_json::from_slice(&decode("header", head)?)
            .map_err(|error| malformed(format!("header: {error}")))?;
        if header.alg != "EdDSA" {
            return Err(malformed(format!("algorithm {:?}; only EdDSA is taken", header.alg)));
        }
        if header.crit.is_some() {
            return Err(malformed("critical header extensions are not supported (RFC 7515 §4.1.11)"));
        }
        let kid = header.kid.ok_or_else(|| malformed("header without kid"))?;
        let signature = decode("signature", signature)?;
        let public = self.0.get(&kid).ok_or(TokenError::UnknownKey { kid })?;
        let signed = &token.as_bytes()[..head.len() + 1 + body.len()];
        UnparsedPublicKey::new(&ED25519, public)
            .verify(signed, &signature)
            .map_err(|_| TokenError::BadSignature)?;

        let claims: Claims = serde_json::from_slice(&decode("claims", body)?)
            .map_err(|error| malformed(format!("claims: {error}")))?;
        if claims.iss != ISSUER {
            return Err(malformed(format!("issuer {:?}", claims.iss)));
        }
        let seconds = now.as_millis() / 1_000;
        if seconds >= claims.exp {
            return Err(TokenError::Expired { at: at_second(claims.exp) });
        }
        if claims.iat > seconds.saturating_add(CLOCK_LEEWAY_S) {
            return Err(TokenError::NotYetValid { at: at_second(claims.iat) });
        }
        Ok(claims)
    }
}

fn at_second(seconds: u64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_359_845;

    fn claims() -> Claims {
        Claims {
            iss: ISSUER.into(),
            sub: "Ann".into(),
            jti: "t1".into(),
            service: ServiceId::new("s").unwrap(),
            room: RoomId::new("r").unwrap(),
            client: ClientId::new("c").unwrap(),
            role: "presenter".into(),
            rights: None,
            ec: EcId::new("e").unwrap(),
            ws: "wss://ec.example/signal".into(),
            iat: NOW,
            exp: NOW + 60,
        }
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn keys_of(key: &SigningKey) -> TokenKeys {
        TokenKeys::new([(key.kid().to_owned(), key.public().to_vec())])
    }

    fn at(seconds: u64) -> Timestamp {
        at_second(seconds)
    }

    #[test]
    fn a_token_says_what_was_signed_until_it_ends() {
        let key = key(1);
        let token = key.sign(&claims());
        let keys = keys_of(&key);
        assert_eq!(keys.verify(&token, at(NOW)).unwrap(), claims());
        assert_eq!(keys.verify(&token, at(NOW + 59)).unwrap(), claims());
        assert_eq!(
            keys.verify(&token, at(NOW + 60)).unwrap_err(),
            TokenError::Expired { at: at(NOW + 60) },
            "the second named by exp is already too late"
        );
    }

    #[test]
    fn a_token_from_the_future_is_refused_beyond_the_leeway() {
        let key = key(1);
        let token = key.sign(&claims());
        assert!(keys_of(&key).verify(&token, at(NOW - CLOCK_LEEWAY_S)).is_ok());
        assert!(matches!(
            keys_of(&key).verify(&token, at(NOW - CLOCK_LEEWAY_S - 1)).unwrap_err(),
            TokenError::NotYetValid { .. }
        ));
    }

    #[test]
    fn a_foreign_key_is_unknown_and_cannot_borrow_a_known_name() {
        let (ours, theirs) = (key(1), key(2));
        let token = theirs.sign(&claims());
        assert_eq!(
            keys_of(&ours).verify(&token, at(NOW)).unwrap_err(),
            TokenError::UnknownKey { kid: theirs.kid().into() }
        );
        // Signed with their key under our key's name.
        let signed = format!("{}.{}", ours.header, token.split('.').nth(1).unwrap());
        let signature = URL_SAFE_NO_PAD.encode(theirs.pair.sign(signed.as_bytes()));
        let forged = format!("{signed}.{signature}");
        assert_eq!(keys_of(&ours).verify(&forged, at(NOW)).unwrap_err(), TokenError::BadSignature);
        // A key handed over under another key's name is not taken.
        let swapped = TokenKeys::new([(ours.kid().to_owned(), theirs.public().to_vec())]);
        assert!(!swapped.contains(ours.kid()));
    }

    #[test]
    fn no_single_altered_character_passes() {
        let key = key(1);
        let token = key.sign(&claims());
        let keys = keys_of(&key);
        for i in 0..token.len() {
            let mut altered = token.clone().into_bytes();
            altered[i] = if altered[i] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert!(keys.verify(&altered, at(NOW)).is_err(), "character {i} altered");
        }
    }

    #[test]
    fn unsigned_and_foreign_algorithms_are_refused() {
        let key = key(1);
        let body = key.sign(&claims()).split('.').nth(1).unwrap().to_owned();
        for header in [
            r#"{"alg":"none"}"#.to_owned(),
            format!(r#"{{"alg":"none","kid":"{}"}}"#, key.kid()),
            format!(r#"{{"alg":"HS256","kid":"{}"}}"#, key.kid()),
        ] {
            for signature in ["", "AAAA"] {
                let token = format!("{}.{body}.{signature}", URL_SAFE_NO_PAD.encode(&header));
                let refused = keys_of(&key).verify(&token, at(NOW)).unwrap_err();
                assert!(
                    matches!(&refused, TokenError::Malformed { reason } if reason.contains("EdDSA")),
                    "{refused}"
                );
            }
        }
        for text in ["", ".", "..", "a.b", "a.b.c.d", "x", &"a".repeat(5_000)] {
            assert!(
                matches!(keys_of(&key).verify(text, at(NOW)), Err(TokenError::Malformed { .. })),
                "{text:?}"
            );
        }
    }

    #[test]
    fn keys_are_those_of_rfc_8037() {
        // RFC 8037 appendix A.1 to A.3: private key, public key, thumbprint.
        let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        let key = SigningKey::from_seed(&seed.try_into().unwrap());
        assert_eq!(URL_SAFE_NO_PAD.encode(key.public()), "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert_eq!(key.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
