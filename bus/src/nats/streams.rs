//! The streams the log is kept in: made if they are not there, compared with what they must be if they are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    api::{Anything, ApiError, InfoRequest, StreamInfo, code},
    connection::{NatsError, Shared},
    inbox::AskError,
    journal::JetStreamSettings,
};

/// Key in the metadata of every stream: how many partitions the cluster was made with.
const PARTITIONS: &str = "roomlog.partitions";

/// Between two tries to reach JetStream while its cluster elects a leader.
const AGAIN: Duration = Duration::from_millis(200);

/// The stream of a partition.
pub(super) fn name(partition: u16) -> String {
    format!("ROOMLOG_{partition}")
}

/// What the stream of a partition must be.
fn wanted(partition: u16, settings: &JetStreamSettings) -> Value {
    json!({
        "name": name(partition),
        "description": "Roomlog: the log",
        "subjects": [format!("roomlog.log.{partition}.*.*")],
        "retention": "limits",
        "storage": "file",
        "num_replicas": settings.replicas,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        // Where an operator sets max_bytes: a full log refuses appends, it does not forget.
        "discard": "new",
        "duplicate_window": settings.duplicate_window.as_nanos() as u64,
        "republish": {
            "src": format!("roomlog.log.{partition}.*.*"),
            "dest": "roomlog.ev.{{wildcard(1)}}.{{wildcard(2)}}",
        },
        "allow_direct": true,
        "deny_delete": false,
        "deny_purge": false,
        "metadata": { PARTITIONS: settings.partitions.to_string() },
    })
}

/// What must be as we want it. The rest is the operator's: placement, compression, `max_bytes`, description.
const COMPARED: [&str; 15] = [
    "subjects",
    "retention",
    "storage",
    "num_replicas",
    "max_consumers",
    "max_msgs",
    "max_msgs_per_subject",
    "max_age",
    "max_msg_size",
    "discard",
    "duplicate_window",
    "republish",
    "allow_direct",
    "deny_delete",
    "deny_purge",
];

/// What must not be there, or be false.
const ABSENT: [&str; 5] = ["sealed", "no_ack", "mirror", "sources", "subject_transform"];

/// Each setting of the stream that is not as wanted, in words.
fn differences(wanted: &Value, found: &Value) -> Vec<String> {
    let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    let same = |key: &str| {
        let (want, have) = (&wanted[key], &found[key]);
        // The server leaves out what is false and fills in what was left out.
        match want {
            Value::Bool(false) => off(have),
            Value::Object(want) => {
                want.iter().all(|(key, value)| &have[key] == value) && !is_on(&have["headers_only"])
            }
            want => want == have,
        }
    };
    let wrong = COMPARED.iter().filter(|key| !same(key)).map(|key| {
        format!("{key} is {}, it has to be {}", shown(key, &found[*key]), shown(key, &wanted[*key]))
    });
    let surplus = ABSENT
        .iter()
        .filter(|key| !off(&found[**key]))
        .map(|key| format!("{key} is {}, it has to be off", found[*key]));
    wrong.chain(surplus).collect()
}

fn is_on(value: &Value) -> bool {
    value == &Value::Bool(true)
}

/// Durations are nanoseconds on the wire; nobody reads those.
fn shown(key: &str, value: &Value) -> String {
    match (key, value.as_u64()) {
        ("max_age" | "duplicate_window", Some(nanos)) => format!("{:?}", Duration::from_nanos(nanos)),
        _ if value.is_null() => "not set".into(),
        _ => value.to_string(),
    }
}

/// Makes sure that every stream is there and as it must be, and gives them.
pub(super) async fn ready(
    shared: &Shared,
    settings: &JetStreamSettings,
) -> Result<Vec<StreamInfo>, NatsError> {
    if settings.partitions == 0 || settings.replicas == 0 {
        return Err(NatsError::Settings("a log has at least 1 partition and 1 replica".into()));
    }
    let until = Instant::now() + settings.setup_timeout;
    jetstream_is_on(shared, settings, until).await?;
    let mut streams = Vec::new();
    // In order: whoever makes the first one decides the number of partitions, also when several nodes start at once.
    for partition in 0..settings.partitions {
        let stream = name(partition);
        let info = made(shared, settings, partition, until).await?;
        let recorded = info.config["metadata"][PARTITIONS].as_str();
        if recorded != Some(&settings.partitions.to_string()) {
            let recorded = recorded.map_or_else(|| "an unrecorded number of".into(), str::to_owned);
            return Err(NatsError::Partitions { stream, recorded, asked: settings.partitions });
        }
        let differences = differences(&wanted(partition, settings), &info.config);
        if !differences.is_empty() {
            return Err(NatsError::Differs { stream, differences });
        }
        streams.push(info);
    }
    Ok(streams)
}

/// The streams of a log that is there, as many as it was made with; nothing is made or compared.
pub(super) async fn found(
    shared: &Shared,
    settings: &JetStreamSettings,
) -> Result<Vec<StreamInfo>, NatsError> {
    jetstream_is_on(shared, settings, Instant::now() + settings.setup_timeout).await?;
    let mut streams: Vec<StreamInfo> = Vec::new();
    let mut partitions = 1u16;
    while streams.len() < usize::from(partitions) {
        let stream = name(streams.len() as u16);
        let info = shared.stream_info(&stream, &InfoRequest::default(), settings.api_timeout).await.map_err(
            |error| match error.code() {
                Some(code::NO_STREAM) => NatsError::NoLog { stream: stream.clone(), server: shared.server() },
                _ => NatsError::Api { what: format!("look at stream {stream}"), reason: error.to_string() },
            },
        )?;
        let recorded = info.config["metadata"][PARTITIONS].as_str().and_then(|text| text.parse().ok());
        partitions = recorded.ok_or(NatsError::NoLog { stream, server: shared.server() })?;
        streams.push(info);
    }
    Ok(streams)
}

async fn jetstream_is_on(
    shared: &Shared,
    settings: &JetStreamSettings,
    until: Instant,
) -> Result<(), NatsError> {
    loop {
        let error = match shared.api::<Anything>("INFO", &json!({}), settings.api_timeout).await {
            Ok(Anything {}) => return Ok(()),
            Err(error) => error,
        };
        let off = matches!(error, ApiError::Ask(AskError::NoResponders))
            || matches!(error.code(), Some(code::OFF | code::OFF_FOR_ACCOUNT));
        if off {
            return Err(NatsError::JetStreamOff { server: shared.server() });
        }
        if !error.is_passing() || Instant::now() > until {
            return Err(NatsError::Api {
                what: "ask JetStream for its state".into(),
                reason: error.to_string(),
            });
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The stream of a partition, made if it is not there. Several nodes may do this at once.
async fn made(
    shared: &Shared,
    settings: &JetStreamSettings,
    partition: u16,
    until: Instant,
) -> Result<StreamInfo, NatsError> {
    let stream = name(partition);
    loop {
        let error = match shared.stream_info(&stream, &InfoRequest::default(), settings.api_timeout).await {
            Ok(info) => return Ok(info),
            Err(error) if error.code() == Some(code::NO_STREAM) => {
                let create = format!("STREAM.CREATE.{stream}");
                match shared.api(&create, &wanted(partition, settings), settings.api_timeout).await {
                    Ok(info) => return Ok(info),
                    // Somebody was faster, with other settings: look at them.
                    Err(error) if error.code() == Some(code::STREAM_EXISTS) => continue,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let servers_missing = error.code() == Some(code::NO_PEERS);
        let may_pass = error.is_passing() || servers_missing || error.code() == Some(code::NO_STORE);
        if !may_pass || Instant::now() > until {
            let what = match servers_missing {
                true => format!(
                    "make stream {stream} with {} replicas: fewer servers are there",
                    settings.replicas
                ),
                false => format!("make stream {stream}"),
            };
            return Err(NatsError::Api { what, reason: error.to_string() });
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_fills_in_is_no_difference_and_what_matters_is() {
        let wanted = wanted(2, &JetStreamSettings::default());
        let mut found = wanted.clone();
        found["compression"] = json!("s2");
        found["max_bytes"] = json!(1 << 30);
        found["metadata"]["_nats.level"] = json!("1");
        found.as_object_mut().unwrap().remove("deny_purge");
        assert_eq!(differences(&wanted, &found), Vec::<String>::new());
        for (key, value, says) in [
            ("max_age", json!(3_600_000_000_000u64), "max_age is 3600s, it has to be 0ns"),
            ("num_replicas", json!(3), "num_replicas is 3, it has to be 1"),
            ("sealed", json!(true), "sealed is true, it has to be off"),
            ("allow_direct", json!(null), "allow_direct is not set, it has to be true"),
            ("deny_purge", json!(true), "deny_purge is true, it has to be false"),
        ] {
            let mut found = found.clone();
            found[key] = value;
            assert_eq!(differences(&wanted, &found), [says]);
        }
        found["republish"]["dest"] = json!("elsewhere.>");
        assert_eq!(differences(&wanted, &found).len(), 1);
    }
}
