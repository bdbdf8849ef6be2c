//! Keys of services: what they look like, what the log knows of them, and the files that keep secrets.
//!
//! ```text
//! sk_<service id>_<43 characters>    the whole API of that service
//! pk_<service id>_<43 characters>    asks for tokens only
//! ```
//! The service id in the key makes checking it one look-up, however many services there are, and lets a NUVE that has not heard of a
//! new service yet read exactly that service's stream. The log holds only the SHA-256 of keys: a slow hash, as passwords need, would guard
//! against guessing, and 256 random bits are not guessed; it would only make every request slow.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rand::RngCore;
use roomlog_bus::{
    ids::{ServiceId, random_token},
    time::Timestamp,
};
use roomlog_projections::service::{OldKey, ServiceState};
use sha2::{Digest as _, Sha256};

/// Characters of a key's secret part: 43 of 62 are 256 bits.
pub(crate) const SECRET_CHARACTERS: usize = 43;

/// Which of a service's two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// `sk_`: server side.
    Secret,
    /// `pk_`: browser side.
    Publishable,
}

impl KeyKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Secret => "sk",
            Self::Publishable => "pk",
        }
    }
}

/// A fresh key of `service`.
pub fn new_key(kind: KeyKind, service: &ServiceId, rng: &mut dyn RngCore) -> String {
    format!("{}_{service}_{}", kind.prefix(), random_token(rng, SECRET_CHARACTERS))
}

/// A fresh admin key.
pub fn new_admin_key(rng: &mut dyn RngCore) -> String {
    format!("ak_{}", random_token(rng, SECRET_CHARACTERS))
}

/// Which kind of key of which service `key` claims to be. The secret part has no `_`, a service id may.
pub fn parse(key: &str) -> Option<(KeyKind, ServiceId)> {
    let (kind, rest) = match key.split_once('_')? {
        ("sk", rest) => (KeyKind::Secret, rest),
        ("pk", rest) => (KeyKind::Publishable, rest),
        _ => return None,
    };
    let (service, _secret) = rest.rsplit_once('_')?;
    Some((kind, ServiceId::new(service).ok()?))
}

/// SHA-256 of a key, hex, as the log has it. A fast hash is enough: a key has 256 random bits, there is nothing to guess.
pub fn hash(key: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(key.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string does not fail");
        hex
    })
}

/// Whether `service` is alive and `key` is its key of that kind, or the one before it that still opens. Hashes are compared, so how long
/// it takes tells nothing about the key.
pub fn opens(service: &ServiceState, kind: KeyKind, key: &str, now: Timestamp) -> bool {
    let (current, which) = match kind {
        KeyKind::Secret => (&service.secret_key_hash, "secret"),
        KeyKind::Publishable => (&service.publishable_key_hash, "publishable"),
    };
    if service.deleted || current.is_empty() {
        return false;
    }
    let hash = hash(key);
    let old = |old: &OldKey| old.which == which && old.until > now && old.hash == hash;
    *current == hash || service.old_keys.iter().any(old)
}

/// A secret file that could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}; check the folder's owner, its rights and the free space", path.display())]
pub struct SecretFileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Writes a file of mode 0600, durably but for its name in the folder.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A file beside `folder/name` that is no other process's.
fn draft(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.{}.new", std::process::id()))
}

/// Keeps `bytes` in `folder/name` in place of what is there, whole or not at all, readable by its owner only.
pub fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), SecretFileError> {
    let (path, draft) = (folder.join(name), draft(folder, name));
    let written = write_private(&draft, bytes)
        .and_then(|()| fs::rename(&draft, &path))
        .and_then(|()| fs::File::open(folder)?.sync_all());
    written.map_err(|source| SecretFileError { action: "write", path, source })
}

/// Reads the secret text in `folder/name`; where there is none, makes one and keeps it in a file of mode 0600, durably, before it is
/// used. Of two processes that do so at once, both get the same one.
pub fn load_or_make(
    folder: &Path,
    name: &str,
    make: impl FnOnce() -> String,
) -> Result<String, SecretFileError> {
    let path = folder.join(name);
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| SecretFileError { action, path, source }
    };
    let read = || fs::read_to_string(&path).map(|text| text.trim().to_owned());
    match read() {
        Ok(text) => return Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", &path)(error)),
    }
    fs::create_dir_all(folder).map_err(failed("make the folder", folder))?;
    // Written whole under another name first: a crash never leaves half a secret.
    let draft = draft(folder, name);
    let text = make();
    write_private(&draft, format!("{text}\n").as_bytes()).map_err(failed("write", &draft))?;
    let linked = fs::hard_link(&draft, &path);
    let _ = fs::remove_file(&draft);
    match linked {
        Ok(()) => {
            fs::File::open(folder).and_then(|f| f.sync_all()).map_err(failed("sync", folder))?;
            Ok(text)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read().map_err(failed("read", &path)),
        Err(error) => Err(failed("make", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn a_key_names_its_service_and_opens_only_it() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let service = ServiceId::new("with_under-score").unwrap();
        let secret = new_key(KeyKind::Secret, &service, &mut rng);
        let publishable = new_key(KeyKind::Publishable, &service, &mut rng);
        assert_eq!(parse(&secret), Some((KeyKind::Secret, service.clone())));
        assert_eq!(parse(&publishable), Some((KeyKind::Publishable, service)));
        let mut state = ServiceState {
            secret_key_hash: hash(&secret),
            publishable_key_hash: hash(&publishable),
            ..ServiceState::default()
        };
        assert!(opens(&state, KeyKind::Secret, &secret, NOW));
        assert!(!opens(&state, KeyKind::Secret, &publishable, NOW));
        assert!(!opens(&state, KeyKind::Publishable, &secret, NOW));
        assert!(!opens(&state, KeyKind::Secret, &format!("{secret}x"), NOW));
        let old = new_key(KeyKind::Secret, &ServiceId::new("s").unwrap(), &mut rng);
        state.old_keys =
            vec![OldKey { which: "secret".into(), hash: hash(&old), until: Timestamp(NOW.0 + 1) }];
        assert!(opens(&state, KeyKind::Secret, &old, NOW) && opens(&state, KeyKind::Secret, &secret, NOW));
        assert!(!opens(&state, KeyKind::Publishable, &old, NOW));
        assert!(!opens(&state, KeyKind::Secret, &old, Timestamp(NOW.0 + 1)), "it ends when it was said to");
        state.deleted = true;
        assert!(!opens(&state, KeyKind::Secret, &secret, NOW), "a deleted service's keys open nothing");
        assert!(!opens(&ServiceState::default(), KeyKind::Secret, "", NOW), "no service, no key");
        for bad in ["", "sk", "sk_", "sk_a", "ak_a_b", "sk_a b_c", "sk__c"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_secret_file_is_made_once_and_only_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let made = load_or_make(folder.path(), "k", || "one".into()).unwrap();
        let again = load_or_make(folder.path(), "k", || "two".into()).unwrap();
        assert_eq!((made.as_str(), again.as_str()), ("one", "one"));
        let mode = fs::metadata(folder.path().join("k")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left behind");
    }
}
