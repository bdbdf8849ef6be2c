//! `/v1/events`: what happens in a service's rooms, as server-sent events straight from the log. Nothing is missed and nothing comes
//! twice: the id of each event is a place in the log, and a client that comes back with `Last-Event-ID` goes on from there.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{
        IntoResponse, Response,
        sse::{Event as SseEvent, Sse},
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use roomlog_bus::{
    commit::{Commit, CommitId},
    ids::RoomId,
    journal::{Cursor, Follow, Followed, ReadError, follow_again},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use crate::{
    app::{App, AppState, stopped},
    http::{Params, SecretKey},
    ours::Ours,
    problem::{self, Problem},
    rooms::{RoomRef, no_room},
};

/// Something is sent at least this often: proxies close what is silent for 30 to 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A client whose stream broke comes back after this long, milliseconds.
const RETRY_MS: u64 = 1_000;
/// Events that wait for one slow client; when they are full, the log is read later.
const QUEUE: usize = 64;

/// What is wanted of the stream.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Only of this room: id, or `name:<name>`.
    room: Option<String>,
    /// Begins after this event id, as `Last-Event-ID` does; `beginning` for all there ever was. Without it, now.
    after: Option<String>,
}

/// A place in the log: after a commit, or within one whose first events were given already.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    /// After this cursor …
    cursor: Cursor,
    /// … and, of the commit of this id, not the first so many events.
    within: Option<(CommitId, u16)>,
}

impl Position {
    /// As an event id: opaque, and nothing but letters, digits, `-` and `_`.
    fn encode(&self) -> String {
        let mut bytes = vec![self.cursor.0.len() as u8];
        for sequence in &self.cursor.0 {
            bytes.extend(sequence.to_be_bytes());
        }
        if let Some((commit, skip)) = &self.within {
            bytes.extend(commit.as_bytes());
            bytes.extend(skip.to_be_bytes());
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&partitions, rest) = bytes.split_first()?;
        let (cursor, within) = rest.split_at_checked(usize::from(partitions) * 8)?;
        let cursor = cursor.chunks_exact(8).map(|c| u64::from_be_bytes(c.try_into().expect("8 bytes")));
        let within = match within.len() {
            0 => None,
            18 => {
                let (commit, skip) = within.split_at(16);
                let commit = CommitId::from_bytes(commit.try_into().expect("16 bytes"));
                Some((commit, u16::from_be_bytes(skip.try_into().expect("2 bytes"))))
            }
            _ => return None,
        };
        Some(Self { cursor: Cursor(cursor.collect()), within })
    }
}

/// Streams what happens in the service's rooms, as server-sent events: `id` is a place in the log, `event` the type, `data` JSON.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Wanted, ("Last-Event-ID" = Option<String>, Header, description = "goes on after this event")), security(("secret" = [])), responses(
    (status = 200, description = "a stream that does not end by itself", body = String, content_type = "text/event-stream"),
    (status = 503, description = "too many streams are open", body = problem::ProblemDocument),
))]
pub async fn stream(
    State(app): State<AppState>,
    SecretKey(service): SecretKey,
    headers: HeaderMap,
    Params(wanted): Params<Wanted>,
) -> Result<Response, Problem> {
    let permit =
        app.event_streams.clone().try_acquire_owned().map_err(|_| {
            problem::TOO_MANY_STREAMS.detail("This node's streams are all taken.").retry_after(5)
        })?;
    let room = match &wanted.room {
        None => None,
        Some(text) => {
            let room = RoomRef::parse(text)?;
            let id = app.look(&service, &room, |id, _| id.clone()).await?;
            Some(id.ok_or_else(|| no_room(&room))?)
        }
    };
    let tail = app.journal.tail().await?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()).filter(|id| !id.is_empty());
    let position = match last.or(wanted.after.as_deref()) {
        None => Position { cursor: tail, within: None },
        Some("beginning") => Position { cursor: Cursor::default(), within: None },
        Some(id) => known_place(&app, id, &tail).await?,
    };
    let follow = app.journal.follow(position.cursor.clone()).await?;
    let (events, receiver) = mpsc::channel(QUEUE);
    let feed = Feed { app, ours: Ours::of(service), room, position, events, _permit: permit };
    tokio::spawn(feed.run(follow));
    // Proxies that buffer would hold events back.
    let unbuffered =
        [(header::CACHE_CONTROL, "no-store"), (header::HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((unbuffered, Sse::new(ReceiverStream::new(receiver))).into_response())
}

/// An event of a room, as streams and webhooks give it.
pub(crate) fn event_json(commit: &Commit, i: usize) -> Value {
    let raw = &commit.events[i];
    json!({
        "room": commit.stream.id(),
        "version": commit.version.0 + i as u64,
        "type": &*raw.kind,
        "schema": raw.schema,
        "time": commit.time.as_millis(),
        "commit": commit.id,
        "epoch": commit.epoch,
        "writer": commit.writer.node,
        "cause": commit.cause,
        "data": raw.data.to_json(),
    })
}

/// A cursor as an event id.
pub(crate) fn cursor_text(cursor: &Cursor) -> String {
    Position { cursor: cursor.clone(), within: None }.encode()
}

/// The place in the log that `text` names: `now`, `beginning`, or an event id. Of a commit given in part, its beginning.
pub(crate) async fn place(app: &App, text: &str) -> Result<Cursor, Problem> {
    let tail = app.journal.tail().await?;
    match text {
        "now" => Ok(tail),
        "beginning" => Ok(Cursor::default()),
        id => Ok(known_place(app, id, &tail).await?.cursor),
    }
}

/// The place that an event id names, if it is one of this log.
async fn known_place(app: &App, id: &str, tail: &Cursor) -> Result<Position, Problem> {
    let position = Position::decode(id)
        .ok_or_else(|| problem::BAD_REQUEST.detail(format!("{id:?} is no event id of this API.")))?;
    let ahead = position.cursor.0.iter().zip(&tail.0).any(|(at, end)| at > end);
    if ahead || position.cursor.0.len() > tail.0.len() {
        return Err(problem::BAD_REQUEST
            .detail("The event id lies after the end of this log: it is of another cluster."));
    }
    if app.journal.is_replaced(&position.cursor).await {
        return Err(problem::BAD_REQUEST.detail(
            "The event id is of before a repair of the log: what came after it may be other now. Begin without one.",
        ));
    }
    Ok(position)
}

/// One stream being fed.
struct Feed {
    app: Arc<App>,
    ours: Ours,
    room: Option<RoomId>,
    position: Position,
    events: mpsc::Sender<Result<SseEvent, Infallible>>,
    /// Given back when the stream ends.
    _permit: OwnedSemaphorePermit,
}

impl Feed {
    async fn run(mut self, mut follow: Follow) {
        let mut stop = self.app.stop.clone();
        // The place where it begins, at once: who breaks off before the first event comes back to the same place.
        let hello = SseEvent::default().id(self.position.encode()).retry(Duration::from_millis(RETRY_MS));
        if self.events.send(Ok(hello)).await.is_err() {
            return;
        }
        let mut alive = tokio::time::interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        loop {
            let followed = tokio::select! {
                () = stopped(&mut stop) => return,
                () = self.events.closed() => return,
                _ = alive.tick() => {
                    // With the place reached: what was skipped meanwhile is not read again after a break.
                    let comment = SseEvent::default().id(self.position.encode()).comment("alive");
                    if self.events.send(Ok(comment)).await.is_err() {
                        return;
                    }
                    continue;
                }
                followed = follow.next() => followed,
            };
            match followed {
                Some(Followed::Entry(entry)) => {
                    let ours = match self.is_ours(&entry.commit).await {
                        Ok(ours) => ours,
                        Err(error) => {
                            tracing::warn!(stream = %entry.commit.stream, %error, "whose room it is cannot be read: the listener comes back");
                            return;
                        }
                    };
                    if !ours {
                        // While a commit given in part is still to come, the place stays before it.
                        if self.position.within.is_none() {
                            self.position.cursor = entry.cursor;
                        }
                        continue;
                    }
                    if self.give(&entry.commit, entry.cursor).await.is_none() {
                        return;
                    }
                    alive.reset();
                }
                Some(Followed::CaughtUp) => {}
                Some(Followed::Broken(error)) => {
                    let mut cursor = self.position.cursor.clone();
                    // After a repair of the log there is no place in it that means what this listener's does.
                    if self.app.journal.is_replaced(&cursor).await {
                        return;
                    }
                    follow = tokio::select! {
                        () = stopped(&mut stop) => return,
                        () = self.events.closed() => return,
                        follow = follow_again(self.app.journal.as_ref(), &mut cursor, error) => follow,
                    };
                    if cursor == Cursor::default() && self.position.cursor != cursor {
                        return;
                    }
                    self.position.cursor = cursor;
                }
                None => return,
            }
        }
    }

    /// Sends the events of `commit`; none when nobody listens any more.
    async fn give(&mut self, commit: &Commit, after: Cursor) -> Option<()> {
        let skip = match &self.position.within {
            Some((id, skip)) if *id == commit.id => usize::from(*skip),
            _ => 0,
        };
        let resuming = self.position.within.is_some() && skip == 0;
        let count = commit.events.len();
        for (i, raw) in commit.events.iter().enumerate().skip(skip) {
            // An id must never lead past a commit that was given in part and is still to come (of another partition).
            let place = if resuming {
                self.position.clone()
            } else if i + 1 == count {
                Position { cursor: after.clone(), within: None }
            } else {
                Position {
                    cursor: self.position.cursor.clone(),
                    within: Some((commit.id, u16::try_from(i + 1).unwrap_or(u16::MAX))),
                }
            };
            let data = event_json(commit, i);
            let event = SseEvent::default().id(place.encode()).event(&*raw.kind).data(data.to_string());
            self.events.send(Ok(event)).await.ok()?;
        }
        if !resuming {
            self.position = Position { cursor: after, within: None };
        }
        Some(())
    }

    /// Whether `commit` is of a room this stream is about.
    async fn is_ours(&mut self, commit: &Commit) -> Result<bool, ReadError> {
        if self.room.as_ref().is_some_and(|room| room.as_str() != commit.stream.id()) {
            return Ok(false);
        }
        self.ours.has(&self.app, commit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_and_nothing_else_does() {
        let commit = CommitId::from_bytes([7; 16]);
        for position in [
            Position { cursor: Cursor(vec![]), within: None },
            Position { cursor: Cursor(vec![1, u64::MAX, 3]), within: None },
            Position { cursor: Cursor(vec![9]), within: Some((commit, 2)) },
        ] {
            let text = position.encode();
            assert_eq!(Position::decode(&text), Some(position));
            assert_eq!(Position::decode(&format!("{text}AA")), None, "{text}");
        }
        for bad in ["", "x", "-", "_w", "AQ", "a b", "é"] {
            assert_eq!(Position::decode(bad), None, "{bad:?}");
        }
    }
}
