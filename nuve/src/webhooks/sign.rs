//! Secrets of webhooks and signatures with them, as Standard Webhooks has them (standardwebhooks.com): HMAC-SHA256 over id, timestamp and body.
//!
//! A secret is computed from the webhook's id, a number that goes up when it is replaced, and a key that all NUVE nodes of a cluster
//! share: so every one of them can sign, and the log, which names only the number, knows no secret.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use sha2::{Digest as _, Sha256};

/// The key that all secrets are computed from.
pub struct MasterKey {
    key: hmac::Key,
    fingerprint: String,
}

impl MasterKey {
    /// From a secret text.
    pub fn new(text: &str) -> Self {
        let digest =
            Sha256::new().chain_update(b"roomlog webhook key, told apart by\0").chain_update(text).finalize();
        let fingerprint = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes()), fingerprint }
    }

    /// Tells nodes with different keys apart; says nothing about the key.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn bytes(&self, webhook: &str, generation: u64) -> hmac::Tag {
        hmac::sign(&self.key, format!("roomlog webhook\0{webhook}\0{generation}").as_bytes())
    }

    /// The secret as its receiver is told it: `whsec_` and base64.
    pub fn secret(&self, webhook: &str, generation: u64) -> String {
        format!("whsec_{}", STANDARD.encode(self.bytes(webhook, generation)))
    }

    /// The signature of a message: `v1,` and base64.
    pub fn sign(&self, webhook: &str, generation: u64, id: &str, timestamp: u64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.bytes(webhook, generation).as_ref());
        let mut context = hmac::Context::with_key(&key);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_secret_can_check_the_signature_and_it_covers_everything() {
        let master = MasterKey::new("x");
        let secret = master.secret("w", 1);
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        assert_eq!(key.len(), 32);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let expected = STANDARD.encode(hmac::sign(&key, b"msg_1.1700000000.{}"));
        assert_eq!(master.sign("w", 1, "msg_1", 1_700_000_000, b"{}"), format!("v1,{expected}"));
        let others = [
            master.sign("v", 1, "msg_1", 1_700_000_000, b"{}"),
            master.sign("w", 2, "msg_1", 1_700_000_000, b"{}"),
            master.sign("w", 1, "msg_2", 1_700_000_000, b"{}"),
            master.sign("w", 1, "msg_1", 1_700_000_001, b"{}"),
            master.sign("w", 1, "msg_1", 1_700_000_000, b"[]"),
            MasterKey::new("y").sign("w", 1, "msg_1", 1_700_000_000, b"{}"),
        ];
        assert!(others.iter().all(|other| *other != format!("v1,{expected}")));
        assert_ne!(MasterKey::new("x").fingerprint(), MasterKey::new("y").fingerprint());
    }
}
