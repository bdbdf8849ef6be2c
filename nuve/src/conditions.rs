//! Conditional requests (RFC 9110 §13): a room's version is its entity tag, so that who changes it can say what it saw.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use roomlog_bus::ids::Version;

use crate::{
    app::AppState,
    http::VERSION_HEADER,
    problem::{self, Problem},
};

/// The tag of a version.
fn tag(version: Version) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).expect("digits and quotes")
}

/// `Roomlog-Version` and `ETag`.
pub fn versioned(version: Version) -> [(HeaderName, HeaderValue); 2] {
    [(VERSION_HEADER, HeaderValue::from(version.0)), (header::ETAG, tag(version))]
}

/// The tags a header names, each as it is written; several lines count as one.
fn tags(headers: &HeaderMap, name: HeaderName) -> Option<Vec<String>> {
    let lines: Vec<_> =
        headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
    let all = lines.iter().flat_map(|line| line.split(',')).map(|tag| tag.trim().to_owned());
    (!lines.is_empty()).then(|| all.collect())
}

/// What `If-Match` demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// Nothing, or only that it is there.
    Anything,
    /// One of these versions; none of ours: it never matches.
    Versions(Vec<Version>),
}

impl IfMatch {
    fn of(headers: &HeaderMap) -> Self {
        match tags(headers, header::IF_MATCH) {
            None => Self::Anything,
            Some(tags) if tags.iter().any(|tag| tag == "*") => Self::Anything,
            // Weak tags do not match here (§13.1.1).
            Some(tags) => Self::Versions(
                tags.iter()
                    .filter_map(|tag| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok().map(Version))
                    .collect(),
            ),
        }
    }

    /// The version that is to be changed, once what is there is seen to match: none where any will do.
    pub fn check(&self, version: Version) -> Result<Option<Version>, Problem> {
        match self {
            Self::Anything => Ok(None),
            Self::Versions(wanted) if wanted.contains(&version) => Ok(Some(version)),
            Self::Versions(_) => Err(changed(version)),
        }
    }
}

/// The refusal where something is at another version than was demanded.
pub fn changed(version: Version) -> Problem {
    problem::CHANGED.detail(format!("It is at version {version}.")).with("version", version.0)
}

impl FromRequestParts<AppState> for IfMatch {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.headers))
    }
}

/// What `If-None-Match` knows already.
pub struct Known(Vec<String>);

impl Known {
    /// 304 where the caller has this version, else `answer`, with its tag.
    pub fn or(&self, version: Version, answer: impl IntoResponse) -> Response {
        let ours = tag(version);
        let ours = ours.to_str().unwrap_or_default();
        // Compared weakly (§13.1.2).
        if self.0.iter().any(|tag| tag == "*" || tag.trim_start_matches("W/") == ours) {
            return (StatusCode::NOT_MODIFIED, versioned(version)).into_response();
        }
        (versioned(version), answer).into_response()
    }
}

impl FromRequestParts<AppState> for Known {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Self::Rejection> {
        Ok(Self(tags(&parts.headers, header::IF_NONE_MATCH).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_matches_its_own_version_and_what_is_no_tag_of_ours_matches_none() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, HeaderValue::from_str(text).unwrap());
            IfMatch::of(&headers)
        };
        let seven = Version(7);
        assert_eq!(IfMatch::of(&HeaderMap::new()).check(seven).unwrap(), None);
        assert_eq!(of("*").check(seven).unwrap(), None);
        assert_eq!(of("\"6\", \"7\"").check(seven).unwrap(), Some(seven));
        for other in ["\"8\"", "7", "W/\"7\"", "x", ""] {
            assert_eq!(of(other).check(seven).unwrap_err().kind.slug, "changed", "{other}");
        }
    }
}
