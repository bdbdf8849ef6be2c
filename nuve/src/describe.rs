//! What goes for every route, added to the description that the code gives of each: the refusals that come from what a request is made of
//! (a key, a body, parameters), and that refusals are problem documents.
//!
//! `deploy/test api` asks a running node whatever this describes, and more, and compares.

use serde_json::{Map, Value, json};

use crate::problem;

/// The form of a problem document (RFC 9457 §3).
const PROBLEM: &str = "application/problem+json";
/// What an operation is written under in a path item; other members are about all of them.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
/// See [`roomlog_bus::ids::is_token`].
const ID: &str = "^[A-Za-z0-9_-]{1,64}$";
/// See [`crate::rooms::RoomRef::parse`].
const ID_OR_NAME: &str = r"^([A-Za-z0-9_-]{1,64}|name:[^\x00-\x1f\x7f-\x9f]{1,128})$";
/// See [`roomlog_bus::commit::StreamId`].
const NODE: &str = "^(ec|ea)\\.[A-Za-z0-9_-]{1,64}$";

/// The whole description.
pub fn complete(mut api: Value) -> Value {
    let Some(paths) = api["paths"].as_object_mut() else { return api };
    for (path, item) in paths {
        for (_, operation) in
            item.as_object_mut().into_iter().flatten().filter(|(m, _)| METHODS.contains(&m.as_str()))
        {
            name(operation);
            parameters(path, operation);
            refusals(path, operation);
            limits(operation);
            as_problems(operation);
        }
    }
    api
}

/// Handlers of several modules have the same name; those of one do not, and each has a tag of its own.
fn name(operation: &mut Value) {
    let (Some(tag), Some(handler)) = (operation["tags"][0].as_str(), operation["operationId"].as_str())
    else {
        return;
    };
    operation["operationId"] = format!("{tag}-{handler}").into();
}

/// What may stand in a path.
fn parameters(path: &str, operation: &mut Value) {
    for parameter in members(operation, "parameters").filter(|p| p["in"] == "path") {
        // Who asks without a key has no service in which a name could mean something.
        let by_name = parameter["name"] == "room" && !path.ends_with("/locate");
        let is_node = parameter["name"] == "node";
        let (pattern, help) = if is_node {
            (NODE, "kind and id, such as `ec.5c1`")
        } else if parameter["name"] == "which" {
            continue; // has its values
        } else if by_name {
            (ID_OR_NAME, "id, or `name:<name>`")
        } else {
            (ID, "id")
        };
        parameter["description"] = help.into();
        parameter["schema"]["pattern"] = pattern.into();
    }
}

/// Adds the refusals that follow from what the request is made of.
fn refusals(path: &str, operation: &mut Value) {
    let with_key = operation["security"].as_array().is_some_and(|keys| !keys.is_empty());
    let with_body = operation["requestBody"].is_object();
    let with_parameters = operation["parameters"].as_array().is_some_and(|all| !all.is_empty());
    let mut refusals = Vec::new();
    if with_body || with_parameters {
        refusals.push((400, problem::BAD_REQUEST.title));
    }
    if with_key {
        refusals.extend([
            (401, "no key, or one that opens nothing"),
            (403, problem::WRONG_KEY.title),
            (429, problem::RATE_LIMITED.title),
        ]);
    }
    if with_body {
        refusals.extend([
            (413, problem::TOO_LARGE.title),
            (415, problem::UNSUPPORTED_MEDIA.title),
            (422, problem::INVALID_FIELD.title),
        ]);
    }
    if path.starts_with("/v1/") {
        refusals.extend([
            (500, problem::INTERNAL.title),
            (503, "not now: see `Retry-After`"),
            (504, problem::TIMEOUT.title),
        ]);
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, help) in refusals {
        responses.entry(status.to_string()).or_insert_with(|| {
            json!({ "description": help, "content": { PROBLEM: { "schema": { "$ref": "#/components/schemas/ProblemDocument" } } } })
        });
    }
}

/// The header fields that tell the state of the limit that refused.
fn limits(operation: &mut Value) {
    let Some(refused) = operation["responses"].as_object_mut().and_then(|all| all.get_mut("429")) else {
        return;
    };
    for (name, help) in [
        ("Retry-After", "seconds to wait (RFC 9110 §10.2.3)"),
        (
            "RateLimit-Policy",
            "name, quota `q` and window `w` in seconds of the limit (draft-ietf-httpapi-ratelimit-headers-10)",
        ),
        ("RateLimit", "what remains of it, `r`, and the seconds until it is whole again, `t`"),
    ] {
        refused["headers"][name] = json!({ "description": help, "schema": { "type": "string" } });
    }
}

/// Problem documents have a media type of their own, which the attributes at the handlers leave to this place.
fn as_problems(operation: &mut Value) {
    for response in members(operation, "responses") {
        let Some(content) = response.get_mut("content").and_then(Value::as_object_mut) else { continue };
        let is_problem = |media: &Value| {
            media["schema"]["$ref"].as_str().is_some_and(|name| name.ends_with("/ProblemDocument"))
        };
        if content.get("application/json").is_some_and(is_problem) {
            let media = content.remove("application/json").expect("it was just looked at");
            *content = Map::from_iter([(PROBLEM.to_owned(), media)]);
        }
    }
}

/// The members of what stands under `name`, if it is there. (`value[name]` would put it there.)
fn members<'a>(value: &'a mut Value, name: &str) -> Box<dyn Iterator<Item = &'a mut Value> + 'a> {
    match value.get_mut(name) {
        Some(Value::Array(all)) => Box::new(all.iter_mut()),
        Some(Value::Object(all)) => Box::new(all.values_mut()),
        _ => Box::new(std::iter::empty()),
    }
}
