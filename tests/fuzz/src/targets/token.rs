//! Tokens: nothing passes that was not signed here, and what was signed says what it said.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use roomlog_bus::{
    time::Timestamp,
    token::{Claims, ISSUER, MAX_TOKEN_BYTES, SigningKey, TokenError, TokenKeys},
};

use crate::input::Input;

/// A time between `iat` and `exp` of the seeds, seconds.
pub const NOW: u64 = 1_795_359_850;

/// First byte 0: a token as text. 1: header and claims as text, unsigned. Else: claims as JSON to be signed, then a change.
pub fn run(data: &[u8]) {
    let key = SigningKey::from_seed(&[1; 32]);
    let keys = TokenKeys::new([(key.kid().to_owned(), key.public().to_vec())]);
    let now = Timestamp(NOW * 1_000_000);
    let mut input = Input::new(data);
    match input.byte() {
        0 => {
            let Ok(text) = std::str::from_utf8(input.rest()) else { return };
            assert!(keys.verify(text, now).is_err(), "a token that nobody signed");
        }
        1 => {
            let (header, claims, signature) = (input.short(), input.chunk(), input.rest());
            // The key's own id is not to be guessed by the fuzzer.
            let header = String::from_utf8_lossy(header).replace("$KID", key.kid());
            let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            let text = format!("{}.{}.{}", part(header.as_bytes()), part(claims), part(signature));
            let refused = keys.verify(&text, now).expect_err("a token that nobody signed");
            let shown = refused.to_string();
            assert!(shown.len() <= MAX_TOKEN_BYTES + 200, "{} bytes of refusal", shown.len());
        }
        _ => {
            let (at, with) = (input.word(), input.byte());
            let Ok(claims) = serde_json::from_slice::<Claims>(input.rest()) else { return };
            let text = key.sign(&claims);
            let seconds = NOW;
            match keys.verify(&text, now) {
                Ok(read) => {
                    assert_eq!(read, claims);
                    assert!(claims.iss == ISSUER && claims.exp > seconds);
                }
                Err(TokenError::Expired { .. }) => assert!(claims.exp <= seconds),
                Err(TokenError::NotYetValid { .. }) => assert!(claims.iat > seconds),
                Err(TokenError::Malformed { .. }) => {
                    assert!(claims.iss != ISSUER || text.len() > MAX_TOKEN_BYTES)
                }
                Err(other) => panic!("signed here, and {other}"),
            }
            let mut changed = text.clone().into_bytes();
            let at = usize::from(at) % changed.len();
            changed[at] = with;
            if let Ok(changed) = String::from_utf8(changed)
                && changed != text
            {
                assert!(keys.verify(&changed, now).is_err(), "character {at} changed to {with}");
            }
        }
    }
}
