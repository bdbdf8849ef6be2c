//! The `protoo` framing: JSON requests, responses and notifications over a WebSocket. Pure: text in, values out, and back.

use serde::Serialize;
use serde_json::{Value, json};

/// The WebSocket sub-protocol (RFC 6455 §1.9).
pub const SUBPROTOCOL: &str = "protoo";

/// What a client sends.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// Wants an answer with the same id.
    Request {
        /// Chosen by the client.
        id: u64,
        /// What.
        method: String,
        /// With what; an object, or null.
        data: Value,
    },
    /// Answers one of our requests.
    Response {
        /// Ours.
        id: u64,
        /// `data`, or code and reason.
        result: Result<Value, (i64, String)>,
    },
    /// Wants nothing; none is defined, so all are ignored.
    Notification,
}

/// Why a frame is not protoo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not JSON.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// JSON, but neither request, response nor notification.
    #[error("not a protoo message: {0}")]
    NotProtoo(&'static str),
}

/// Reads one frame. Unknown fields are ignored.
pub fn parse(text: &str) -> Result<Incoming, FrameError> {
    let mut value: Value = serde_json::from_str(text).map_err(|e| FrameError::NotJson(e.to_string()))?;
    let message = value.as_object_mut().ok_or(FrameError::NotProtoo("it is not an object"))?;
    let flag = |name: &str| message.get(name).and_then(Value::as_bool).unwrap_or(false);
    let (request, response, notification) = (flag("request"), flag("response"), flag("notification"));
    let id = || {
        message.get("id").and_then(Value::as_u64).ok_or(FrameError::NotProtoo("`id` is not a whole number"))
    };
    if request {
        let id = id()?;
        let method = match message.get("method").and_then(Value::as_str) {
            Some(method) if !method.is_empty() => method.to_owned(),
            _ => return Err(FrameError::NotProtoo("`method` is not a text")),
        };
        Ok(Incoming::Request { id, method, data: message.remove("data").unwrap_or(Value::Null) })
    } else if response {
        let id = id()?;
        let result = if flag("ok") {
            Ok(message.remove("data").unwrap_or(Value::Null))
        } else {
            let code = message.get("errorCode").and_then(Value::as_i64).unwrap_or(0);
            let reason = message.get("errorReason").and_then(Value::as_str).unwrap_or_default().to_owned();
            Err((code, reason))
        };
        Ok(Incoming::Response { id, result })
    } else if notification {
        Ok(Incoming::Notification)
    } else {
        Err(FrameError::NotProtoo("none of `request`, `response`, `notification` is true"))
    }
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("values with text keys serialize")
}

/// A good answer.
pub fn ok(id: u64, data: &Value) -> String {
    text(&json!({ "response": true, "id": id, "ok": true, "data": data }))
}

/// A bad answer.
pub fn error(id: u64, code: u16, reason: &str) -> String {
    text(&json!({ "response": true, "id": id, "ok": false, "errorCode": code, "errorReason": reason }))
}

/// A request of ours.
pub fn request(id: u64, method: &str, data: &Value) -> String {
    text(&json!({ "request": true, "id": id, "method": method, "data": data }))
}

/// A notification.
pub fn notification(method: &str, data: &Value) -> String {
    text(&json!({ "notification": true, "method": method, "data": data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_and_bad_ones_say_why() {
        assert_eq!(
            parse(r#"{"request":true,"id":7,"method":"join","data":{"a":1},"extra":0}"#),
            Ok(Incoming::Request { id: 7, method: "join".into(), data: json!({"a":1}) })
        );
        assert_eq!(
            parse(r#"{"response":true,"id":7,"ok":false,"errorCode":403,"errorReason":"no"}"#),
            Ok(Incoming::Response { id: 7, result: Err((403, "no".into())) })
        );
        assert_eq!(parse(r#"{"notification":true,"method":"x"}"#), Ok(Incoming::Notification));
        for (bad, why) in [
            ("", "not JSON"),
            ("[]", "not an object"),
            ("{}", "none of"),
            (r#"{"request":true,"id":-1,"method":"x"}"#, "`id`"),
            (r#"{"request":true,"id":1.5,"method":"x"}"#, "`id`"),
            (r#"{"request":true,"id":1}"#, "`method`"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }
}
