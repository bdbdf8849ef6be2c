//! Looking back: one pass over the whole log, the rooms it speaks of, and a room's state at any version or time.
//!
//! Everything here only reads. The words an engineer sees are in [`timeline`](crate::timeline), the checks in
//! [`verify`](crate::verify).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
};

use roomlog_bus::{
    commit::{Commit, StreamKind},
    events::{EaPolicy, Event},
    ids::{ClientId, RoomId, ServiceId, Version},
    journal::{Cursor, Entry, Followed, Journal, ReadError},
    time::Timestamp,
};
use serde::Serialize;

use crate::room::{FoldError, Owner, RoomState};

/// Damaged places stepped over in one pass before it is given up: a block of the journal holds at most a few thousand commits, so this
/// is several lost blocks; more than that is a broken disk, and what is left of the log is better copied first.
const MAX_DAMAGED: usize = 10_000;

/// Reads everything stored after `from`, in the journal's order. A damaged place is stepped over: what could not be read is returned.
/// `holes` are the first and last sequence of stretches known to be missing, so that they are stepped over at once.
pub async fn scan(
    journal: &dyn Journal,
    from: Cursor,
    holes: &[(u64, u64)],
    mut each: impl FnMut(&Entry),
) -> Result<Vec<ReadError>, ReadError> {
    let tail = journal.tail().await?.0.first().copied().unwrap_or(0);
    let mut cursor = from;
    let mut damaged = Vec::new();
    loop {
        let mut follow = journal.follow(cursor.clone()).await?;
        let error = loop {
            match follow.next().await {
                Some(Followed::Entry(entry)) => {
                    each(&entry);
                    cursor = entry.cursor;
                }
                Some(Followed::CaughtUp) | None => return Ok(damaged),
                Some(Followed::Broken(error @ ReadError::Damaged { .. })) => break error,
                Some(Followed::Broken(error)) => return Err(error),
            }
        };
        let bad = cursor.0.first().copied().unwrap_or(0) + 1;
        let past = holes.iter().find(|(first, last)| (*first..=*last).contains(&bad)).map_or(bad, |h| h.1);
        if damaged.last() != Some(&error) {
            damaged.push(error.clone());
        }
        if damaged.len() > MAX_DAMAGED {
            return Err(error);
        }
        if past >= tail {
            return Ok(damaged);
        }
        cursor = Cursor(vec![past]);
    }
}

/// Reads everything stored after `from` and gives it in one order also where the journal has several partitions, which have none among
/// them: by the time of each commit, with each partition's own order kept. Two nodes' clocks may differ, so what happened in two partitions
/// within that difference may stand the wrong way round. All of it is in memory then.
pub async fn merged(journal: &dyn Journal, from: Cursor) -> Result<Vec<Entry>, ReadError> {
    let mut partitions: Vec<VecDeque<(u64, Arc<Commit>)>> = Vec::new();
    let mut follow = journal.follow(from.clone()).await?;
    let mut seen = from.0.clone();
    loop {
        let entry = match follow.next().await {
            Some(Followed::Entry(entry)) => entry,
            Some(Followed::CaughtUp) | None => break,
            Some(Followed::Broken(error)) => return Err(error),
        };
        let at = &entry.cursor.0;
        seen.resize(seen.len().max(at.len()), 0);
        partitions.resize_with(seen.len(), VecDeque::new);
        // A commit moves the cursor of its own partition.
        let moved = at.iter().zip(&seen).position(|(now, before)| now != before).unwrap_or(0);
        partitions[moved].push_back((at[moved], entry.commit));
        seen.clone_from(at);
    }
    let mut cursor = Cursor(from.0);
    cursor.0.resize(seen.len(), 0);
    let mut merged = Vec::with_capacity(partitions.iter().map(VecDeque::len).sum());
    let next = |partitions: &[VecDeque<(u64, Arc<Commit>)>]| {
        let heads = partitions.iter().enumerate().filter_map(|(i, p)| Some((p.front()?.1.time, i)));
        heads.min().map(|(_, partition)| partition)
    };
    while let Some(partition) = next(&partitions) {
        let Some((sequence, commit)) = partitions[partition].pop_front() else { break };
        cursor.0[partition] = sequence;
        merged.push(Entry { cursor: cursor.clone(), commit });
    }
    Ok(merged)
}

/// What a list of rooms shows of one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoomSummary {
    /// Its id.
    pub id: RoomId,
    /// Its name; none when its `RoomCreated` is not in the log.
    pub name: Option<String>,
    /// Whose.
    pub service: Option<ServiceId>,
    /// How its EAs are chosen.
    pub eapolicy: Option<EaPolicy>,
    /// The EC incarnation that may append, with its epoch.
    pub owner: Option<Owner>,
    /// A session is on.
    pub open: bool,
    /// Gone for good.
    pub deleted: bool,
    /// Clients in it at the end of the log.
    pub clients: usize,
    /// Clients ever admitted.
    pub admitted: u64,
    /// Version of its last event.
    pub version: Version,
    /// Commits.
    pub commits: u64,
    /// Events.
    pub events: u64,
    /// Bytes of its events, commands and facts, as encoded.
    pub bytes: u64,
    /// Time of its first commit, Unix microseconds.
    pub first: Timestamp,
    /// Time of its last commit, Unix microseconds.
    pub last: Timestamp,
    /// Who is in; `clients` is its size.
    #[serde(skip)]
    inside: BTreeSet<ClientId>,
}

/// All rooms of a log, deleted ones too. Reads only the events it needs, so it is much faster than folding everything.
#[derive(Debug, Clone, Default)]
pub struct RoomIndex {
    rooms: BTreeMap<RoomId, RoomSummary>,
}

impl RoomIndex {
    /// Takes in the next commit of the journal; those of other kinds of streams are passed over.
    pub fn apply(&mut self, commit: &Commit) {
        if commit.stream.kind() != StreamKind::Room {
            return;
        }
        let id = RoomId::new(commit.stream.id()).expect("a stream id is a token");
        let room = self.rooms.entry(id.clone()).or_insert_with(|| RoomSummary {
            id,
            name: None,
            service: None,
            eapolicy: None,
            owner: None,
            open: false,
            deleted: false,
            clients: 0,
            admitted: 0,
            version: Version(0),
            commits: 0,
            events: 0,
            bytes: 0,
            first: commit.time,
            last: commit.time,
            inside: BTreeSet::new(),
        });
        room.commits += 1;
        room.events += commit.events.len() as u64;
        room.bytes += commit.events.iter().map(|e| e.data.0.len() as u64).sum::<u64>();
        room.bytes += (commit.command.0.len() + commit.facts.0.len()) as u64;
        room.version = commit.last_version();
        room.last = commit.time;
        for raw in &commit.events {
            let told = matches!(
                raw.kind.as_str(),
                "RoomCreated"
                    | "RoomPlaced"
                    | "RoomOpened"
                    | "RoomClosed"
                    | "RoomDeleted"
                    | "RoomSnapshot"
                    | "ClientAdmitted"
                    | "ClientLeft"
            );
            if told && let Ok(event) = Event::decode(raw) {
                room.take(event);
            }
        }
        room.clients = room.inside.len();
    }

    /// The rooms, sorted by id.
    pub fn rooms(&self) -> impl Iterator<Item = &RoomSummary> {
        self.rooms.values()
    }

    /// The room that `wanted` names.
    pub fn resolve(&self, wanted: &RoomRef) -> Result<&RoomSummary, NoSuchRoom> {
        match wanted {
            RoomRef::Name(name) => {
                let named: Vec<&RoomSummary> =
                    self.rooms.values().filter(|r| r.name.as_ref() == Some(name)).collect();
                let living: Vec<&RoomSummary> = named.iter().copied().filter(|r| !r.deleted).collect();
                // A name is free again once its room is deleted: the living one is meant, if there is just one.
                match (living.as_slice(), named.as_slice()) {
                    ([one], _) | ([], [one]) => Ok(one),
                    ([], []) => Err(self.none(wanted)),
                    ([], several) | (several, _) => Err(ambiguous(wanted, several)),
                }
            }
            RoomRef::Id(prefix) => {
                if let Some(exact) = RoomId::new(prefix).ok().and_then(|id| self.rooms.get(&id)) {
                    return Ok(exact);
                }
                let found: Vec<&RoomSummary> =
                    self.rooms.values().filter(|r| r.id.as_str().starts_with(prefix.as_str())).collect();
                match found.as_slice() {
                    [one] => Ok(one),
                    [] => Err(self.none(wanted)),
                    several => Err(ambiguous(wanted, several)),
                }
            }
        }
    }

    fn none(&self, wanted: &RoomRef) -> NoSuchRoom {
        let named = match wanted {
            RoomRef::Id(text) => self.rooms.values().any(|r| r.name.as_ref() == Some(text)),
            RoomRef::Name(_) => false,
        };
        NoSuchRoom::None { wanted: wanted.clone(), rooms: self.rooms.len(), named }
    }
}

impl RoomSummary {
    fn take(&mut self, event: Event) {
        match event {
            Event::RoomCreated(e) => {
                self.name = Some(e.name);
                self.service = Some(e.service);
                self.eapolicy = Some(e.eapolicy);
            }
            Event::RoomPlaced(e) => {
                self.owner = Some(Owner { ec: e.ec, incarnation: e.incarnation, epoch: e.epoch });
            }
            Event::RoomOpened(_) => self.open = true,
            Event::RoomClosed(_) => {
                self.open = false;
                self.inside.clear();
            }
            Event::RoomDeleted(_) => {
                self.open = false;
                self.deleted = true;
                self.inside.clear();
            }
            Event::ClientAdmitted(e) => {
                self.admitted += 1;
                self.inside.insert(e.client);
            }
            Event::ClientLeft(e) => {
                self.inside.remove(&e.client);
            }
            Event::RoomSnapshot(e) => {
                if let Ok(state) = e.state.decode::<RoomState>() {
                    if let Some(info) = state.info {
                        self.name = Some(info.name);
                        self.service = Some(info.service);
                        self.eapolicy = Some(info.eapolicy);
                    }
                    self.owner = state.owner;
                    self.open = state.open;
                    self.deleted = state.deleted;
                    self.inside = state.clients.into_keys().collect();
                }
            }
            _ => {}
        }
    }
}

/// How an engineer names a room: its id, the beginning of its id, or `name:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomRef {
    /// An id or the beginning of one.
    Id(String),
    /// The name the application gave it.
    Name(String),
}

impl std::str::FromStr for RoomRef {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix("name:") {
            Some(name) => Self::Name(name.to_owned()),
            None => Self::Id(text.strip_prefix("room.").unwrap_or(text).to_owned()),
        })
    }
}

impl fmt::Display for RoomRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Name(name) => write!(f, "name:{name}"),
        }
    }
}

/// Why no room was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchRoom {
    /// None fits.
    #[error("no room {} {wanted}, of the {rooms} in this log; `replay rooms` lists them{}",
        match wanted { RoomRef::Id(_) => "has an id that begins with", RoomRef::Name(_) => "is called" },
        if *named { format!(", and one has it as its name: write name:{wanted}") } else { String::new() })]
    None {
        /// What was looked for.
        wanted: RoomRef,
        /// Rooms there are.
        rooms: usize,
        /// One has this text as its name.
        named: bool,
    },
    /// More than one does.
    #[error("{wanted} may be any of {}; give the id", rooms.join(", "))]
    Ambiguous {
        /// What was looked for.
        wanted: RoomRef,
        /// Those that fit, the first few.
        rooms: Vec<String>,
    },
}

fn ambiguous(wanted: &RoomRef, found: &[&RoomSummary]) -> NoSuchRoom {
    /// As many as an error message bears.
    const SHOWN: usize = 8;
    let mut rooms: Vec<String> = found
        .iter()
        .take(SHOWN)
        .map(|room| {
            let service = room.service.as_ref().map_or("?", ServiceId::as_str);
            let gone = if room.deleted { ", deleted" } else { "" };
            format!("{} (service {service}, last event {}{gone})", room.id, room.last)
        })
        .collect();
    if found.len() > SHOWN {
        rooms.push(format!("{} more", found.len() - SHOWN));
    }
    NoSuchRoom::Ambiguous { wanted: wanted.clone(), rooms }
}

/// Up to where a room is folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The end of its stream.
    End,
    /// This version, also in the middle of a commit.
    Version(Version),
    /// The last commit before the first that is later than this. Commits are taken in the order of the stream: where a writer's clock
    /// ran behind its predecessor's, the stream counts.
    Time(Timestamp),
}

/// A room at one point.
#[derive(Debug, Clone, PartialEq)]
pub struct RoomAt {
    /// Its state there.
    pub state: RoomState,
    /// When the last folded commit was made; none before the first.
    pub time: Option<Timestamp>,
    /// The point lies inside a commit: nobody ever saw this state.
    pub inside_commit: bool,
}

/// Why a room cannot be folded to a point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// There is no such version yet.
    #[error("the room ends at version {end}; there is no version {wanted} yet")]
    Beyond {
        /// What was asked.
        wanted: Version,
        /// Its last.
        end: Version,
    },
    /// The stream does not fold.
    #[error("the room cannot be folded to there: {0}; `replay verify` lists what is wrong with the log")]
    Fold(#[from] FoldError),
}

/// Folds the commits of one room, from the first that is kept, up to a point.
pub fn state_at<'a>(
    commits: impl IntoIterator<Item = &'a Commit>,
    until: Until,
) -> Result<RoomAt, StateError> {
    let mut at = RoomAt { state: RoomState::default(), time: None, inside_commit: false };
    for commit in commits {
        match until {
            Until::Time(limit) if commit.time > limit => return Ok(at),
            Until::Version(limit) if commit.version > limit => return Ok(at),
            _ => {}
        }
        match until {
            Until::Version(limit) if commit.last_version() > limit => {
                let events = (limit.0 + 1 - commit.version.0) as usize;
                let mut part = commit.clone();
                part.events.truncate(events);
                at.state.apply_commit(&part)?;
                at.inside_commit = true;
            }
            _ => at.state.apply_commit(commit)?,
        }
        at.time = Some(commit.time);
    }
    match until {
        Until::Version(wanted) if wanted > at.state.version() => {
            Err(StateError::Beyond { wanted, end: at.state.version() })
        }
        _ => Ok(at),
    }
}

/// Finds a room without reading the whole log where its id, or the beginning of it, is given.
pub async fn find_room(
    journal: &dyn Journal,
    holes: &[(u64, u64)],
    wanted: &RoomRef,
) -> Result<Result<RoomId, NoSuchRoom>, ReadError> {
    if let RoomRef::Id(prefix) = wanted {
        let streams = journal.streams(StreamKind::Room).await?;
        let mut fitting = streams.iter().map(|(stream, _)| stream.id()).filter(|id| id.starts_with(prefix));
        let found = match (streams.iter().any(|(s, _)| s.id() == prefix), fitting.next(), fitting.next()) {
            (true, ..) => RoomId::new(prefix).ok(),
            (false, Some(one), None) => RoomId::new(one).ok(),
            _ => None,
        };
        if let Some(id) = found {
            return Ok(Ok(id));
        }
    }
    let mut index = RoomIndex::default();
    scan(journal, Cursor::default(), holes, |entry| index.apply(&entry.commit)).await?;
    Ok(index.resolve(wanted).map(|room| room.id.clone()))
}
