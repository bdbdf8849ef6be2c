//! Subjects: where on the bus a message goes, and the patterns subscribers ask for.
//!
//! ```text
//! roomlog.log.<partition>.<kind>.<id>   the write side
//! roomlog.ev.<kind>.<id>                committed events, for subscribers
//! roomlog.rpc.<kind>.<id>               request/reply
//! roomlog.hb.<kind>.<id>                heartbeats with load
//! ```
//! Tokens are separated by dots. In a pattern `*` stands for one token and `>` at the end for one or more, as in NATS.

use std::{fmt, sync::Arc};

use crate::commit::{StreamId, StreamKind};

/// A subject without wildcards.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(Arc<str>);

/// A subject in which tokens may be `*`, and the last `>`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern(Arc<str>);

/// Why a text is no subject or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a {what}: tokens of printable characters without spaces, separated by single dots{extra}"
)]
pub struct InvalidSubject {
    text: String,
    what: &'static str,
    extra: &'static str,
}

fn well_formed(text: &str, wildcards: bool) -> bool {
    let tokens: Vec<&str> = text.split('.').collect();
    tokens.iter().enumerate().all(|(i, token)| match *token {
        "" => false,
        "*" => wildcards,
        ">" => wildcards && i + 1 == tokens.len(),
        token => token.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '*' && c != '>'),
    })
}

impl Subject {
    /// Checks `text`.
    pub fn new(text: &str) -> Result<Self, InvalidSubject> {
        if well_formed(text, false) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidSubject { text: text.into(), what: "subject", extra: "; no wildcards" })
        }
    }

    /// Committed events of `stream`.
    pub fn events(stream: &StreamId) -> Self {
        Self(format!("roomlog.ev.{stream}").into())
    }

    /// The write side of `stream`.
    pub fn log(stream: &StreamId, partitions: u16) -> Self {
        Self(format!("roomlog.log.{}.{stream}", stream.partition(partitions)).into())
    }

    /// Commands to the node that `node` describes.
    pub fn rpc(node: &StreamId) -> Self {
        Self(format!("roomlog.rpc.{node}").into())
    }

    /// Commands to any node of a kind; they subscribe as a queue group.
    pub fn rpc_any(kind: StreamKind) -> Self {
        Self(format!("roomlog.rpc.{}.any", kind.as_str()).into())
    }

    /// Heartbeats of the node that `node` describes.
    pub fn heartbeat(node: &StreamId) -> Self {
        Self(format!("roomlog.hb.{node}").into())
    }

    /// Questions to the observer in `node`: whether it heard another node lately.
    pub fn heard(node: &StreamId) -> Self {
        Self(format!("roomlog.heard.{node}").into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Pattern {
    /// Checks `text`.
    pub fn new(text: &str) -> Result<Self, InvalidSubject> {
        if well_formed(text, true) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidSubject {
                text: text.into(),
                what: "pattern",
                extra: "; `*` for one token, `>` last for the rest",
            })
        }
    }

    /// All heartbeats.
    pub fn heartbeats() -> Self {
        Self("roomlog.hb.>".into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `subject` is meant.
    pub fn matches(&self, subject: &Subject) -> bool {
        let mut wanted = self.0.split('.');
        let mut given = subject.0.split('.');
        loop {
            match (wanted.next(), given.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(w), Some(g)) if w == g => {}
                _ => return false,
            }
        }
    }
}

impl From<Subject> for Pattern {
    fn from(subject: Subject) -> Self {
        Self(subject.0)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_nats() {
        let subject = Subject::new("roomlog.ev.room.a").unwrap();
        for (pattern, matches) in [
            ("roomlog.ev.room.a", true),
            ("roomlog.ev.*.a", true),
            ("roomlog.ev.>", true),
            (">", true),
            ("roomlog.ev.room.a.>", false),
            ("roomlog.ev.room", false),
            ("roomlog.*", false),
            ("roomlog.ev.room.b", false),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(&subject), matches, "{pattern}");
        }
        for bad in ["", "a..b", "a.>.b", "a b", ".a"] {
            assert!(Pattern::new(bad).is_err(), "{bad:?}");
        }
        assert!(Subject::new("a.*").is_err());
    }
}
