//! The timeline of a room or of nodes: every event with its time, in plain words, with what led to it and who wrote it.

use roomlog_bus::{
    commit::{Cause, Commit, CommitId, RawEvent, StreamId, Writer},
    events::Event,
    ids::{ClientId, Epoch, Version},
    time::Timestamp,
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    room::{RoomState, before_snapshot},
    timeline_ids::ShortIds,
    timeline_words as words,
};

/// Which part of a timeline is wanted; the default is all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only what concerns this client: its own events, those of its transports, producers and consumers, and those of the room while
    /// it is in.
    pub client: Option<ClientId>,
    /// Not before this.
    pub since: Option<Timestamp>,
    /// Not after this.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Whether something at `time` is wanted.
    pub fn at(&self, time: Timestamp) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }
}

/// One event of a timeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    /// The stream.
    pub stream: StreamId,
    /// Version of the event.
    pub version: Version,
    /// When, RFC 3339.
    #[serde(serialize_with = "as_text")]
    pub time: Timestamp,
    /// The same, Unix microseconds.
    pub time_us: u64,
    /// Microseconds since the event shown before it; negative where the clock of one writer ran behind another's.
    pub delta_us: i64,
    /// Its commit.
    pub commit: CommitId,
    /// It is the first event shown of its commit.
    pub begins_commit: bool,
    /// Type of the event.
    #[serde(rename = "type")]
    pub kind: String,
    /// In plain words, ids shortened.
    pub text: String,
    /// More lines: of a placement every candidate.
    pub details: Vec<String>,
    /// The client it is about, if it is about one.
    pub client: Option<ClientId>,
    /// What led to it.
    pub cause: Cause,
    /// Who wrote it.
    pub writer: Writer,
    /// The ownership epoch it was written under.
    pub epoch: Epoch,
    /// The event's own fields.
    pub data: Value,
    /// Cause and writer in words.
    #[serde(skip)]
    pub by: String,
}

fn as_text<S: serde::Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

/// The timeline of one room, from its commits in order. Goes on over holes and damage: what it says after one may name objects whose
/// making is missing.
pub fn of_room<'a>(commits: impl IntoIterator<Item = &'a Commit> + Clone, filter: &Filter) -> Vec<Moment> {
    let data: Vec<Value> =
        commits.clone().into_iter().flat_map(|c| c.events.iter().map(|e| e.data.to_json())).collect();
    let nodes = commits.clone().into_iter().map(|c| c.writer.node.id().to_owned()).collect();
    let ids = ShortIds::of(&data, nodes);
    let mut state = RoomState::default();
    let mut scene = words::Scene::default();
    let mut moments: Vec<Moment> = Vec::new();
    let mut data = data.into_iter();
    for commit in commits {
        if state.head.is_none() {
            state.head = before_snapshot(commit);
        }
        for (version, (raw, data)) in (commit.version.0..).zip(commit.events.iter().zip(data.by_ref())) {
            let decoded = Event::decode(raw);
            let (text, details, client, about) = match &decoded {
                Ok(event) => {
                    let client = words::client_of(&state, event);
                    let about = match &filter.client {
                        None => true,
                        Some(wanted) => match &client {
                            Some(client) => client == wanted,
                            None => state.clients.contains_key(wanted),
                        },
                    };
                    let told = words::room(&ids, &state, &mut scene, commit, event);
                    (told.text, told.details, client, about)
                }
                Err(error) => (format!("UNREADABLE: {error}"), Vec::new(), None, filter.client.is_none()),
            };
            if let Ok(event) = &decoded {
                state.apply(event, commit.time);
            }
            if about && filter.at(commit.time) {
                let said = Said { text, details, client, by: words::by(commit, &ids) };
                push(&mut moments, commit, Version(version), raw, data, said);
            }
        }
        state.head = Some(commit.head());
    }
    moments
}

/// What a commit of a node's stream says; `moments` is the timeline so far. Nodes share one timeline, so commits come in the order of the
/// journal.
pub fn of_node(moments: &mut Vec<Moment>, commit: &Commit, filter: &Filter) {
    if !filter.at(commit.time) {
        return;
    }
    for (version, raw) in (commit.version.0..).zip(&commit.events) {
        let text = match Event::decode(raw) {
            Ok(event) => words::node(&commit.stream, &event),
            Err(error) => format!("UNREADABLE: {error}"),
        };
        let by = words::by(commit, &ShortIds::default());
        let said = Said { text, details: Vec::new(), client: None, by };
        push(moments, commit, Version(version), raw, raw.data.to_json(), said);
    }
}

/// What is said of an event.
struct Said {
    text: String,
    details: Vec<String>,
    client: Option<ClientId>,
    by: String,
}

fn push(
    moments: &mut Vec<Moment>,
    commit: &Commit,
    version: Version,
    raw: &RawEvent,
    data: Value,
    said: Said,
) {
    let last = moments.last();
    moments.push(Moment {
        stream: commit.stream.clone(),
        version,
        time: commit.time,
        time_us: commit.time.0,
        delta_us: last.map_or(0, |last| commit.time.0 as i64 - last.time.0 as i64),
        commit: commit.id,
        begins_commit: last.is_none_or(|last| last.commit != commit.id),
        kind: raw.kind.to_string(),
        text: said.text,
        details: said.details,
        client: said.client,
        cause: commit.cause.clone(),
        writer: commit.writer.clone(),
        epoch: commit.epoch,
        data,
        by: said.by,
    });
}

/// The timeline as text, one line an event and further lines indented below it. With `streams` each line names its stream.
pub fn render(moments: &[Moment], streams: bool) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let versions = moments.iter().map(|m| m.version.0.to_string().len()).max().unwrap_or(1);
    let names = moments.iter().map(|m| m.stream.to_string().len()).max().unwrap_or(0);
    for moment in moments {
        let delta = if moment.begins_commit { words::delta(moment.delta_us) } else { String::new() };
        let version = format!("v{}", moment.version);
        let _ = write!(out, "{}  {delta:>9}  {version:<width$}  ", moment.time, width = versions + 1);
        if streams {
            let _ = write!(out, "{:<names$}  ", moment.stream.to_string());
        }
        let _ = write!(out, "{}", moment.text);
        if moment.begins_commit {
            let _ = write!(out, "   [{}]", moment.by);
        }
        out.push('\n');
        for detail in &moment.details {
            let _ = writeln!(out, "{:>width$}· {detail}", "", width = 24 + 2 + 9 + 2 + versions + 1 + 4);
        }
    }
    out
}
