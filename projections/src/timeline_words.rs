//! The words of the timeline: one sentence for each event, written from what the room was just before it.

use std::collections::BTreeMap;

use roomlog_bus::{
    commit::{Commit, StreamId},
    events::{Candidate, EaPolicy, Event, Placement},
    ids::{ClientId, EaId, ProducerId},
    ortc::MediaKind,
    rights::Rights,
    time::Timestamp,
};
use serde_json::Value;

use crate::{room::RoomState, timeline_ids::ShortIds};

/// What sentences need to remember besides the state.
#[derive(Debug, Default)]
pub struct Scene {
    opened: Option<Timestamp>,
    away_since: BTreeMap<ClientId, Timestamp>,
}

/// What is said of an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// One sentence.
    pub text: String,
    /// Further lines.
    pub details: Vec<String>,
}

/// The client an event is about, directly or as the owner of what it is about; none when it is about the whole room.
pub fn client_of(state: &RoomState, event: &Event) -> Option<ClientId> {
    let of_transport = |id| state.transports.get(id).map(|t| t.client.clone());
    let of_producer = |id: &ProducerId| state.producers.get(id).map(|p| p.client.clone());
    let of_consumer = |id| state.consumers.get(id).map(|c| c.client.clone());
    match event {
        Event::ClientAdmitted(e) => Some(e.client.clone()),
        Event::ClientRightsChanged(e) => Some(e.client.clone()),
        Event::ProducerMuted(e) => of_producer(&e.producer),
        Event::ProducerUnmuted(e) => of_producer(&e.producer),
        Event::ClientBound(e) => Some(e.client.clone()),
        Event::ClientAttached(e) => Some(e.client.clone()),
        Event::ClientJoined(e) => Some(e.client.clone()),
        Event::DisplayNameChanged(e) => Some(e.client.clone()),
        Event::ClientDisconnected(e) => Some(e.client.clone()),
        Event::ClientResumed(e) => Some(e.client.clone()),
        Event::ClientLeft(e) => Some(e.client.clone()),
        Event::TransportCreated(e) => Some(e.client.clone()),
        Event::TransportConnected(e) => of_transport(&e.transport),
        Event::TransportClosed(e) => of_transport(&e.transport),
        Event::ProducerCreated(e) => Some(e.client.clone()),
        Event::ProducerPaused(e) => of_producer(&e.producer),
        Event::ProducerResumed(e) => of_producer(&e.producer),
        Event::ProducerClosed(e) => of_producer(&e.producer),
        Event::ConsumerCreated(e) => Some(e.client.clone()),
        Event::ConsumerPaused(e) => of_consumer(&e.consumer),
        Event::ConsumerResumed(e) => of_consumer(&e.consumer),
        Event::ConsumerLayersPreferred(e) => of_consumer(&e.consumer),
        Event::ConsumerPrioritySet(e) => of_consumer(&e.consumer),
        Event::ConsumerClosed(e) => of_consumer(&e.consumer),
        Event::ConsumerRefused(e) => Some(e.client.clone()),
        _ => None,
    }
}

/// Names for things, as sentences use them.
struct Names<'a> {
    ids: &'a ShortIds,
    state: &'a RoomState,
}

impl Names<'_> {
    fn id<'b>(&'b self, id: &'b str) -> &'b str {
        self.ids.short(id)
    }

    fn client(&self, id: &ClientId) -> String {
        let short = self.id(id.as_str());
        match self.state.clients.get(id) {
            Some(client) => {
                let name = client.joined.as_ref().map_or(&client.user, |joined| &joined.display_name);
                format!("{name} ({short})")
            }
            None => format!("client {short}"),
        }
    }

    fn owner(&self, client: Option<&ClientId>) -> String {
        client.map_or_else(|| "somebody unknown".to_owned(), |client| self.client(client))
    }

    fn transport(&self, id: &roomlog_bus::ids::TransportId) -> String {
        let short = self.id(id.as_str());
        match self.state.transports.get(id) {
            Some(t) => format!("{} {short}", way(t.producing, t.consuming)),
            None => format!("transport {short}"),
        }
    }

    fn producer(&self, id: &ProducerId) -> String {
        let short = self.id(id.as_str());
        match self.state.producers.get(id) {
            Some(p) => format!("{} producer {short}", kind(p.kind)),
            None => format!("producer {short}"),
        }
    }

    fn consumer(&self, id: &roomlog_bus::ids::ConsumerId) -> String {
        let short = self.id(id.as_str());
        match self.state.consumers.get(id) {
            Some(c) => {
                let of = self.state.producers.get(&c.producer).map(|p| &p.client);
                format!("{} consumer {short} (of {})", kind(c.kind), self.owner(of))
            }
            None => format!("consumer {short}"),
        }
    }

    fn place(&self, place: &Placement) -> String {
        format!("EA {} worker {}", self.id(place.ea.as_str()), place.worker)
    }

    /// Every EA considered, and how it did.
    fn candidates(&self, candidates: &[Candidate], chosen: Option<&EaId>) -> Vec<String> {
        candidates
            .iter()
            .map(|c| {
                let mut said = Vec::new();
                said.extend(c.rooms.map(|rooms| counted(rooms, "room")));
                said.extend(c.rtt_ms.map(|rtt| format!("{rtt:.1} ms away")));
                said.extend(c.excluded.as_ref().map(|why| format!("took no part: {why}")));
                if said.is_empty() {
                    said.push("nothing known".into());
                }
                if chosen == Some(&c.ea) {
                    said.push("chosen".into());
                }
                format!("EA {}: {}", self.id(c.ea.as_str()), said.join(", "))
            })
            .collect()
    }
}

fn kind(kind: MediaKind) -> &'static str {
    match kind {
        MediaKind::Audio => "audio",
        MediaKind::Video => "video",
    }
}

fn way(producing: bool, consuming: bool) -> &'static str {
    match (producing, consuming) {
        (true, true) => "two-way transport",
        (true, false) => "sending transport",
        (false, true) => "receiving transport",
        (false, false) => "transport",
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A policy as the API names it.
pub fn policy(policy: EaPolicy) -> &'static str {
    match policy {
        EaPolicy::RoomBest => "ROOM-BEST",
        EaPolicy::TtlBest => "TTL-BEST",
    }
}

/// A duration for people: two units at most.
pub fn span(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    match seconds {
        0..10 => format!("{}.{:03} s", seconds, microseconds / 1_000 % 1_000),
        // Deadlines are a moment shorter when they are written down than when they were set: 29.999 s were 30.
        10..60 => format!("{:.1} s", microseconds as f64 / 1e6),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// The time since the line before: `+0.012`, `+3m20s`.
pub fn delta(microseconds: i64) -> String {
    let sign = if microseconds < 0 { '-' } else { '+' };
    let magnitude = microseconds.unsigned_abs();
    let seconds = magnitude / 1_000_000;
    match seconds {
        0..1_000 => format!("{sign}{seconds}.{:03}", magnitude / 1_000 % 1_000),
        1_000..360_000 => format!("{sign}{}h{:02}m{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60),
        _ => format!("{sign}{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// What led to a commit and who wrote it.
pub fn by(commit: &Commit, ids: &ShortIds) -> String {
    let Commit { cause, writer, .. } = commit;
    let mut said = if cause.kind.is_empty() { "no cause".to_owned() } else { cause.kind.to_string() };
    if let Some(request) = cause.request {
        said.push_str(&format!(" {request}"));
    }
    if let Some(trace) = &cause.trace {
        said.push_str(&format!(" trace {trace}"));
    }
    if writer.node == commit.stream {
        return format!("{said}; itself");
    }
    let kind = writer.node.kind().as_str().to_uppercase();
    format!("{said}; {kind} {} start {}", ids.short(writer.node.id()), writer.incarnation)
}

fn whose(names: &Names<'_>, client: Option<&ClientId>) -> String {
    client.map_or_else(|| "the application".to_owned(), |client| names.client(client))
}

fn rights(role: &str, rights: &Rights) -> String {
    let mut may: Vec<String> = rights.publish.iter().map(|k| format!("send {}", kind(*k))).collect();
    let others = [(rights.subscribe, "receive"), (rights.data, "send data"), (rights.manage, "manage")];
    may.extend(others.into_iter().filter(|(has, _)| *has).map(|(_, what)| what.to_owned()));
    let may = if may.is_empty() { "do nothing".to_owned() } else { may.join(", ") };
    format!("{may} (as {role})")
}

/// Every EC considered when NUVE gave the room one, from the facts it kept.
fn ec_candidates(commit: &Commit, chosen: &str, names: &Names<'_>) -> Vec<String> {
    let facts = commit.facts.to_json();
    let candidates = facts.get("candidates").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    candidates
        .iter()
        .filter_map(|c| {
            let ec = c.get("ec")?.as_str()?;
            let mut said = Vec::new();
            said.extend(c.get("rooms").and_then(Value::as_u64).map(|rooms| counted(rooms, "room")));
            said.extend(c.get("excluded").and_then(Value::as_str).map(|why| format!("took no part: {why}")));
            if ec == chosen {
                let policy = facts.get("policy").and_then(Value::as_str).unwrap_or("policy unknown");
                said.push(format!("chosen ({policy})"));
            }
            Some(format!("EC {}: {}", names.id(ec), said.join(", ")))
        })
        .collect()
}

/// One sentence for an event of a room. `state` is what the room was just before it.
pub fn room(ids: &ShortIds, state: &RoomState, scene: &mut Scene, commit: &Commit, event: &Event) -> Told {
    let n = Names { ids, state };
    let mut details = Vec::new();
    let text = match event {
        Event::RoomCreated(e) => {
            format!("room {:?} made for service {}, {}", e.name, n.id(e.service.as_str()), policy(e.eapolicy))
        }
        Event::RoomPlaced(e) => {
            details = ec_candidates(commit, e.ec.as_str(), &n);
            let from = match &state.owner {
                Some(o) if o.ec != e.ec => format!(", before on EC {}", n.id(o.ec.as_str())),
                Some(o) => format!(", before on its start {}", o.incarnation),
                None => String::new(),
            };
            let ec = n.id(e.ec.as_str());
            format!("given to EC {ec} start {}, epoch {} ({}{from})", e.incarnation, e.epoch, e.reason)
        }
        Event::RoomChanged(e) => {
            let clients =
                e.limits.max_clients.map(|most| format!(", at most {}", counted(most.into(), "client")));
            let idle = e.limits.idle_close_s.map(|s| format!(", deleted after {s} s without anybody"));
            format!(
                "room changed: metadata {}{}{}",
                e.metadata,
                clients.unwrap_or_default(),
                idle.unwrap_or_default()
            )
        }
        Event::RoomOpened(_) => {
            scene.opened = Some(commit.time);
            "session opened: the first client is coming in".into()
        }
        Event::EaAssigned(e) => {
            details = n.candidates(&e.candidates, Some(&e.placement.ea));
            format!(
                "{} takes the room by {} ({}), media epoch {}",
                n.place(&e.placement),
                policy(e.policy),
                e.reason,
                e.media_epoch
            )
        }
        Event::EaReleased(e) => format!("EA {} let go ({})", n.id(e.ea.as_str()), e.reason),
        Event::MediaMoved(e) => {
            details = n.candidates(&e.candidates, e.to.as_ref().map(|to| &to.ea));
            let place = |p: &Option<Placement>| p.as_ref().map_or("nowhere".into(), |p| n.place(p));
            format!(
                "MEDIA MOVED from {} to {} ({}), media epoch {}: {} and {} are to be built anew",
                place(&e.from),
                place(&e.to),
                e.reason,
                e.media_epoch,
                counted(state.transports.len() as u64, "transport"),
                counted(state.producers.len() as u64, "producer")
            )
        }
        Event::RoomClosed(e) => {
            let lasted = scene.opened.take().map(|since| commit.time.0.saturating_sub(since.0));
            let lasted = lasted.map(|t| format!(", after {}", span(t))).unwrap_or_default();
            format!("session closed ({}{lasted})", e.reason)
        }
        Event::RoomSnapshot(_) => "snapshot: the whole state at this point".into(),
        Event::RoomDeleted(e) => format!("ROOM DELETED ({})", e.reason),
        Event::ClientAdmitted(e) => {
            let client = n.id(e.client.as_str());
            format!("{} ({client}) let in as {} from {}", e.user, e.role, e.addr)
        }
        Event::ClientRightsChanged(e) => {
            format!("{} may now {}", n.client(&e.client), rights(&e.role, &e.rights))
        }
        Event::ClientBound(e) => {
            details = n.candidates(&e.candidates, Some(&e.ea));
            format!("{} is given EA {}", n.client(&e.client), n.id(e.ea.as_str()))
        }
        Event::ClientAttached(e) => format!("EA {} has made {}", n.id(e.ea.as_str()), n.client(&e.client)),
        Event::ClientJoined(e) => {
            let receives = if e.rtp_capabilities.is_some() { "" } else { ", receives nothing" };
            let device = e.device.get("name").and_then(Value::as_str).unwrap_or("unknown device");
            format!("{} joins as {:?} with {device}{receives}", n.client(&e.client), e.display_name)
        }
        Event::DisplayNameChanged(e) => {
            format!("{} now goes by {:?}", n.client(&e.client), e.display_name)
        }
        Event::ClientDisconnected(e) => {
            scene.away_since.insert(e.client.clone(), commit.time);
            let left = span(e.resume_until.0.saturating_sub(commit.time.0));
            format!("{} lost the socket ({}); may come back for {left}", n.client(&e.client), e.reason)
        }
        Event::ClientResumed(e) => {
            let away = scene.away_since.remove(&e.client).map(|t| commit.time.0.saturating_sub(t.0));
            let away = away.map(|t| format!(" after {}", span(t))).unwrap_or_default();
            let how = if e.how == "reattach" { ", starts over" } else { ", goes on" };
            format!("{} is back{away}{how}", n.client(&e.client))
        }
        Event::ClientLeft(e) => {
            scene.away_since.remove(&e.client);
            let stay = state.clients.get(&e.client).map(|c| commit.time.0.saturating_sub(c.admitted.0));
            let stay = stay.map(|t| format!(", after {}", span(t))).unwrap_or_default();
            format!("{} LEFT ({}{stay})", n.client(&e.client), e.reason)
        }
        Event::TransportCreated(e) => {
            let transport = n.id(e.transport.as_str());
            format!("{} has {} {transport}", n.client(&e.client), way(e.producing, e.consuming))
        }
        Event::TransportConnected(e) => {
            let owner = state.transports.get(&e.transport).map(|t| &t.client);
            format!("{} of {} is connected", n.transport(&e.transport), n.owner(owner))
        }
        Event::TransportClosed(e) => {
            let owner = state.transports.get(&e.transport).map(|t| &t.client);
            format!("{} of {} closed ({})", n.transport(&e.transport), n.owner(owner), e.reason)
        }
        Event::ProducerCreated(e) => {
            let paused = if e.paused { ", paused" } else { "" };
            let producer = n.id(e.producer.as_str());
            format!("{} sends {}: producer {producer}{paused}", n.client(&e.client), kind(e.kind))
        }
        Event::ProducerMuted(e) => {
            let owner = state.producers.get(&e.producer).map(|p| &p.client);
            format!(
                "{} of {} is muted by {}",
                n.producer(&e.producer),
                n.owner(owner),
                whose(&n, e.by.as_ref())
            )
        }
        Event::ProducerUnmuted(e) => {
            let owner = state.producers.get(&e.producer).map(|p| &p.client);
            format!(
                "{} of {} may speak again, by {}",
                n.producer(&e.producer),
                n.owner(owner),
                whose(&n, e.by.as_ref())
            )
        }
        Event::ProducerPaused(e) => {
            let owner = state.producers.get(&e.producer).map(|p| &p.client);
            format!("{} pauses its {}", n.owner(owner), n.producer(&e.producer))
        }
        Event::ProducerResumed(e) => {
            let owner = state.producers.get(&e.producer).map(|p| &p.client);
            format!("{} resumes its {}", n.owner(owner), n.producer(&e.producer))
        }
        Event::ProducerClosed(e) => {
            let owner = state.producers.get(&e.producer).map(|p| &p.client);
            format!("{} of {} closed ({})", n.producer(&e.producer), n.owner(owner), e.reason)
        }
        Event::ConsumerCreated(e) => {
            let from = state.producers.get(&e.producer).map(|p| &p.client);
            format!(
                "{} is to be sent the {} of {}: consumer {}",
                n.client(&e.client),
                kind(e.kind),
                n.owner(from),
                n.id(e.consumer.as_str())
            )
        }
        Event::ConsumerPaused(e) => {
            let owner = state.consumers.get(&e.consumer).map(|c| &c.client);
            format!("{} pauses {}", n.owner(owner), n.consumer(&e.consumer))
        }
        Event::ConsumerResumed(e) => {
            let consumer = state.consumers.get(&e.consumer);
            let verb = if consumer.is_some_and(|c| c.accepted) { "resumes" } else { "accepts" };
            format!("{} {verb} {}", n.owner(consumer.map(|c| &c.client)), n.consumer(&e.consumer))
        }
        Event::ConsumerLayersPreferred(e) => {
            let owner = state.consumers.get(&e.consumer).map(|c| &c.client);
            let temporal = e.layers.temporal_layer.map(|t| format!(", temporal {t}")).unwrap_or_default();
            let layers = format!("spatial layer {}{temporal}", e.layers.spatial_layer);
            format!("{} prefers {layers} of {}", n.owner(owner), n.consumer(&e.consumer))
        }
        Event::ConsumerPrioritySet(e) => {
            let owner = state.consumers.get(&e.consumer).map(|c| &c.client);
            format!("{} ranks {} at {}", n.owner(owner), n.consumer(&e.consumer), e.priority)
        }
        Event::ConsumerClosed(e) => {
            let owner = state.consumers.get(&e.consumer).map(|c| &c.client);
            format!("{} of {} closed ({})", n.consumer(&e.consumer), n.owner(owner), e.reason)
        }
        Event::ConsumerRefused(e) => {
            let from = state.producers.get(&e.producer).map(|p| &p.client);
            format!(
                "{} is not sent {} of {}: {}",
                n.client(&e.client),
                n.producer(&e.producer),
                n.owner(from),
                e.reason
            )
        }
        other => stranger(other),
    };
    Told { text, details }
}

/// One sentence for an event of a node.
pub fn node(stream: &StreamId, event: &Event) -> String {
    let kind = stream.kind().as_str().to_uppercase();
    match event {
        Event::NodeRegistered(e) => {
            let workers = if e.workers > 0 {
                format!(", {}", counted(e.workers.into(), "worker"))
            } else {
                String::new()
            };
            let at = if e.address.is_empty() { String::new() } else { format!(", at {}", e.address) };
            let adopted: Vec<String> = e.adopted.iter().map(|a| a.worker.to_string()).collect();
            let adopted = match adopted.is_empty() {
                true => String::new(),
                false => format!(", of which these run on with their rooms: {}", adopted.join(" ")),
            };
            format!("{kind} registered: start {}{at}, version {}{workers}{adopted}", e.incarnation, e.version)
        }
        Event::NodeLost(e) => {
            format!("{kind} LOST: start {}, noticed by {} ({})", e.incarnation, e.observer, e.reason)
        }
        Event::NodeDraining(e) => {
            let by = e.deadline.map(|t| format!(", ends by {t}")).unwrap_or_default();
            format!("{kind} draining: start {} takes nothing new{by}", e.incarnation)
        }
        Event::NodeLeft(e) => format!("{kind} left as told: start {}", e.incarnation),
        Event::LimitShared(e) => {
            format!(
                "{} shares out the limit of {} requests a second, epoch {}, among {}",
                e.holder,
                e.limit / 1_000,
                e.epoch,
                counted(e.floors.len() as u64, "node")
            )
        }
        Event::WorkerStarted(e) => format!("worker {} ready, its start {}", e.worker, e.generation),
        Event::WorkerDied(e) => {
            let rooms: Vec<&str> = e.rooms.iter().map(|room| room.as_str()).collect();
            let on_it = if rooms.is_empty() {
                "no rooms on it".into()
            } else {
                format!("on it: {}", rooms.join(" "))
            };
            format!("worker {} DIED, its start {} ({}); {on_it}", e.worker, e.generation, e.reason)
        }
        other => stranger(other),
    }
}

/// For an event that this build does not know, or that does not belong here.
fn stranger(event: &Event) -> String {
    match event {
        Event::Unknown(raw) => {
            format!("{} (schema {}, not known to this build): {:?}", raw.kind, raw.schema, raw.data)
        }
        other => format!("{}: does not belong into this stream", other.kind()),
    }
}
