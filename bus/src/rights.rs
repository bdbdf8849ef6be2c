//! What a client may do in its room: by its role, unless the token or the application says it one by one.

use serde::{Deserialize, Serialize};

use crate::ortc::MediaKind;

/// What a client may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rights {
    /// Kinds of media it may send; none: it sends nothing.
    #[serde(default)]
    pub publish: Vec<MediaKind>,
    /// Whether it is sent what others send.
    #[serde(default)]
    pub subscribe: bool,
    /// Whether it may send data.
    #[serde(default)]
    pub data: bool,
    /// Whether it may mute and put out others.
    #[serde(default)]
    pub manage: bool,
}

impl Rights {
    /// Those that go with a role. One that this build does not know gives none: rights are given, never assumed.
    pub fn of_role(role: &str) -> Self {
        let presenter = role == "presenter";
        let publish = if presenter { vec![MediaKind::Audio, MediaKind::Video] } else { Vec::new() };
        Self { publish, subscribe: presenter || role == "viewer", data: presenter, manage: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_gives_what_its_name_says_and_an_unknown_one_nothing() {
        let presenter = Rights::of_role("presenter");
        assert_eq!((presenter.publish.len(), presenter.subscribe, presenter.manage), (2, true, false));
        let viewer = Rights::of_role("viewer");
        assert_eq!((viewer.publish.len(), viewer.subscribe, viewer.data), (0, true, false));
        let nothing = Rights { publish: Vec::new(), subscribe: false, data: false, manage: false };
        assert_eq!(Rights::of_role("boss"), nothing);
    }
}
