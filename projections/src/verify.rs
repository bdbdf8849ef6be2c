//! Checking a log against the rules that a log alone can show: it is whole, every commit was written by who may, every event fits the
//! state it meets, and every decision can be made again.
//!
//! One pass, in the journal's order, with memory for what lives: per stream its head and, for rooms that are not deleted, the folded
//! state and 8 bytes for each object id it ever used. No clock and no IO.
//!
//! ```text
//!  commit ─→ chain (this file) ─→ room rules (verify_room) ─→ the decision again (given by the caller)
//!                              └→ node rules (verify_nodes) ─→ round robin (verify_turns)
//!  end    ─→ ghosts
//! ```
//! A stream with a hole is checked no further than its chain: what its state is, nobody can say. A `RoomSnapshot` ends that.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
};

use roomlog_bus::{
    commit::{Commit, CommitId, Head, StreamId, StreamKind},
    events::Event,
    ids::Version,
    time::Timestamp,
};
use serde::Serialize;

use crate::{
    room::{RoomState, before_snapshot},
    verify_nodes::Nodes,
    verify_room::RoomCheck,
    verify_service::ServiceCheck,
    verify_turns::Turns,
};

/// How far a commit may lie before its predecessor in time: clocks kept by NTP differ by less, as tokens assume too.
const CLOCK_BACK_MS: u64 = 10_000;

/// How long after its resume time a client may still be in the log: an EC's takeover takes 10 s to be noticed and some to be done, and
/// a minute is beyond all of that.
pub(crate) const GHOST_MS: u64 = 60_000;

/// Ids of commits remembered over all streams, to find one that was stored twice. A commit is repeated by a retry, seconds later at
/// most; this many are minutes at full rate, in 10 MB.
const RECENT_COMMITS: usize = 1 << 18;

/// Findings kept. Past this the log is broken as a whole, and the rest is only counted.
const MAX_FINDINGS: usize = 10_000;

/// Every rule with what it says, in the order of the list in `docs/replay.md`.
pub const RULES: &[(&str, &str)] = &[
    ("damage", "the journal holds what was written"),
    ("version-gap", "versions of a stream run 1, 2, 3 …"),
    ("wrong-prev", "a commit names the one before it"),
    ("fork", "no version is there twice"),
    ("duplicate-commit", "no commit is there twice"),
    ("empty-commit", "a commit has events"),
    ("undecodable", "events of known types read"),
    ("wrong-stream", "events stand in the kind of stream they are about"),
    ("clock", "time does not run back by more than clocks differ"),
    ("not-owner", "after RoomPlaced only the owner writes; NUVE only makes, places and deletes; an EA never"),
    ("epoch", "a room's commit carries the owner's epoch"),
    ("placed-by", "a room is placed by NUVE, or by a later start of its EC on itself"),
    ("placed-epoch", "the epoch rises by one with each placing"),
    ("deleted-beside-owner", "NUVE deletes only a room whose owner is gone"),
    ("created", "a room begins with RoomCreated, once"),
    ("after-deleted", "nothing follows RoomDeleted"),
    ("session", "a session opens, then closes; EAs and clients come only within one"),
    ("closed-with-clients", "a session closes when its last client has left"),
    ("closed-with-media", "a session closes when its EAs are released"),
    ("placement", "ROOM-BEST: one EA and worker at a time; TTL-BEST: one worker per EA; what ends had begun"),
    ("media-epoch", "the media epoch rises by one with each assignment and move"),
    ("token-spent", "a token admits one client once"),
    ("client", "events are about clients that are in"),
    ("client-phase", "a client joins once, sends only then, and comes back only from being away"),
    ("object", "events are about transports, producers and consumers that are there, and the client's own"),
    ("id-reused", "ids of transports, producers and consumers are used once"),
    ("snapshot", "a snapshot is the state at its point"),
    ("redecide", "the decision can be made again from what was kept, with the same outcome"),
    ("incarnation", "a node's starts are numbered 1, 2, 3 …"),
    ("zombie", "an earlier start of a node writes nothing more"),
    ("node-writer", "only a node itself says that it started, left, or has workers"),
    ("lost-twice", "a start of a node is lost once"),
    ("worker-generation", "a worker's starts are numbered upwards"),
    ("adopted", "a start of an EA takes over only workers that ran in the one before"),
    ("round-robin", "rooms go to an EA's workers in turn"),
    ("service", "a service is made once, by NUVE, and nothing follows its deletion"),
    ("limit", "the fixed shares of the limit that all NUVE nodes have are no more than the limit"),
    ("ghost", "clients that are gone have left; rooms with clients have a living owner and worker"),
];

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It should be looked at; it can happen without a fault.
    Warning,
    /// A rule is broken.
    Error,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Which rule, of [`RULES`].
    pub rule: &'static str,
    /// Where; none for the journal as a whole.
    pub stream: Option<StreamId>,
    /// At which event.
    pub version: Option<Version>,
    /// In which commit.
    pub commit: Option<CommitId>,
    /// When that was made, RFC 3339.
    pub time: Option<String>,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "ERROR  ",
        };
        write!(f, "{severity} {}", self.rule)?;
        if let Some(stream) = &self.stream {
            write!(f, "  {stream}")?;
        }
        if let Some(version) = self.version {
            write!(f, " v{version}")?;
        }
        if let Some(time) = &self.time {
            write!(f, "  {time}")?;
        }
        write!(f, "  {}", self.text)?;
        if let Some(commit) = self.commit {
            write!(f, "  [commit {commit}]")?;
        }
        Ok(())
    }
}

/// What was gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Summary {
    /// Streams.
    pub streams: u64,
    /// Rooms among them.
    pub rooms: u64,
    /// Commits.
    pub commits: u64,
    /// Events.
    pub events: u64,
    /// Times a rule was applied.
    pub checks: u64,
    /// Decisions made again.
    pub redecided: u64,
    /// Events of types this build does not know: carried, not checked.
    pub unknown_events: u64,
    /// Findings that are errors.
    pub errors: u64,
    /// Findings that are warnings.
    pub warnings: u64,
    /// Findings counted but not kept.
    pub not_kept: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { streams, rooms, commits, events, checks, redecided, .. } = self;
        write!(
            f,
            "{} errors, {} warnings in {streams} streams ({rooms} rooms), {commits} commits, {events} events; {checks} checks made, \
             {redecided} decisions made again",
            self.errors, self.warnings
        )?;
        if self.unknown_events > 0 {
            write!(f, "; {} events of types this build does not know", self.unknown_events)?;
        }
        if self.not_kept > 0 {
            write!(f, "; {} further findings not shown", self.not_kept)?;
        }
        Ok(())
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// In the order of the journal; those about the end of the log last.
    pub findings: Vec<Finding>,
    /// What was gone through.
    pub summary: Summary,
}

impl Verdict {
    /// Findings that are errors.
    pub fn errors(&self) -> u64 {
        self.summary.errors
    }
}

/// Makes a decision again from the state before a commit and what the commit kept. None if the commit kept nothing to decide from;
/// otherwise the events that follow now, or why none do.
pub type Redecide<'a> = &'a dyn Fn(&RoomState, &Commit) -> Option<Result<Vec<Event>, String>>;

/// Where a rule is applied.
#[derive(Debug, Clone, Default)]
struct Place {
    stream: Option<StreamId>,
    version: Option<Version>,
    commit: Option<CommitId>,
    time: Option<Timestamp>,
}

/// Collects findings and counts checks.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
    pub(crate) summary: Summary,
    place: Place,
}

impl Report {
    /// Applies a rule: `ok` is whether it is kept. Gives it back.
    pub(crate) fn check(
        &mut self,
        ok: bool,
        severity: Severity,
        rule: &'static str,
        text: impl FnOnce() -> String,
    ) -> bool {
        debug_assert!(RULES.iter().any(|(name, _)| *name == rule), "{rule} is not listed");
        self.summary.checks += 1;
        if ok {
            return true;
        }
        match severity {
            Severity::Warning => self.summary.warnings += 1,
            Severity::Error => self.summary.errors += 1,
        }
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding {
                severity,
                rule,
                stream: self.place.stream.clone(),
                version: self.place.version,
                commit: self.place.commit,
                time: self.place.time.map(|t| t.to_string()),
                text: text(),
            });
        } else {
            self.summary.not_kept += 1;
        }
        false
    }

    /// [`check`](Self::check) of a rule whose breach is an error.
    pub(crate) fn must(&mut self, ok: bool, rule: &'static str, text: impl FnOnce() -> String) -> bool {
        self.check(ok, Severity::Error, rule, text)
    }

    /// Rules are applied to this event of the current commit.
    pub(crate) fn at_version(&mut self, version: Version) {
        self.place.version = Some(version);
    }

    fn at_commit(&mut self, commit: &Commit) {
        self.place = Place {
            stream: Some(commit.stream.clone()),
            version: Some(commit.version),
            commit: Some(commit.id),
            time: Some(commit.time),
        };
    }

    /// Rules are applied to a stream as a whole, at the end of what is known of it; the place before is given back.
    pub(crate) fn at_stream(&mut self, stream: StreamId) -> impl FnOnce(&mut Self) + use<> {
        let before = std::mem::replace(&mut self.place, Place { stream: Some(stream), ..Place::default() });
        move |report| report.place = before
    }
}

/// A stream on its way through the log.
struct Stream {
    head: Option<Head>,
    last: Timestamp,
    /// Nothing is missing so far, so its state is known.
    intact: bool,
    kind: Kind,
}

enum Kind {
    Room(Box<RoomCheck>),
    /// Its state is in [`Nodes`], since rooms ask for it.
    Node,
    Service(ServiceCheck),
}

/// Checks a log, commit by commit.
pub struct Verifier<'a> {
    redecide: Option<Redecide<'a>>,
    report: Report,
    streams: HashMap<StreamId, Stream>,
    nodes: Nodes,
    turns: Turns,
    recent: RecentIds,
    end: Timestamp,
}

impl<'a> Verifier<'a> {
    /// A verifier that has seen nothing yet.
    pub fn new(redecide: Option<Redecide<'a>>) -> Self {
        Self {
            redecide,
            report: Report::default(),
            streams: HashMap::new(),
            nodes: Nodes::default(),
            turns: Turns::default(),
            recent: RecentIds::default(),
            end: Timestamp(0),
        }
    }

    /// Takes in what the journal itself found wrong.
    pub fn journal(&mut self, severity: Severity, text: String) {
        let before = std::mem::take(&mut self.report.place);
        self.report.check(false, severity, "damage", || text);
        self.report.place = before;
    }

    /// Checks the next commit of the journal.
    pub fn commit(&mut self, commit: &Commit) {
        let Self { redecide, report, streams, nodes, turns, recent, end } = self;
        report.at_commit(commit);
        report.summary.commits += 1;
        report.summary.events += commit.events.len() as u64;
        *end = commit.time;

        let stream = streams.entry(commit.stream.clone()).or_insert_with(|| {
            report.summary.streams += 1;
            report.summary.rooms += u64::from(commit.stream.kind() == StreamKind::Room);
            Stream {
                head: None,
                last: commit.time,
                intact: true,
                kind: match commit.stream.kind() {
                    StreamKind::Room => Kind::Room(Box::default()),
                    StreamKind::Service => Kind::Service(ServiceCheck::default()),
                    StreamKind::Ea | StreamKind::Ec | StreamKind::Nuve => Kind::Node,
                },
            }
        });
        let joined = report
            .must(!commit.events.is_empty(), "empty-commit", || "a commit without events".into())
            && report.must(recent.insert(commit.id), "duplicate-commit", || {
                "this commit is in the log already".into()
            })
            && stream.join(commit, report);
        if !joined {
            return;
        }
        let decoded: Result<Vec<Event>, _> = commit.events.iter().map(Event::decode).collect();
        let events = match decoded {
            Ok(events) => events,
            Err(error) => {
                report.must(false, "undecodable", || {
                    format!("{error}; nothing can be folded beyond this commit, so the rest of the stream is not checked")
                });
                stream.intact = false;
                return;
            }
        };
        let unknown = events.iter().filter(|e| matches!(e, Event::Unknown(_))).count();
        report.summary.unknown_events += unknown as u64;
        let restart = !stream.intact && matches!(events.first(), Some(Event::RoomSnapshot(_)));
        if restart && let Kind::Room(room) = &mut stream.kind {
            **room = RoomCheck::default();
            stream.intact = true;
        }
        if !stream.intact {
            return;
        }
        match &mut stream.kind {
            Kind::Room(room) => room.commit(commit, &events, nodes, turns, *redecide, report),
            Kind::Node => nodes.commit(commit, &events, turns, report),
            Kind::Service(service) => service.commit(commit, &events, report),
        }
    }

    /// Checks what only the end of the log shows, and gives the verdict.
    pub fn finish(self) -> Verdict {
        let Self { mut report, streams, nodes, mut turns, end, .. } = self;
        turns.finish(&mut report);
        let mut rooms: Vec<(&StreamId, &RoomCheck)> = streams
            .iter()
            .filter_map(|(id, stream)| match &stream.kind {
                Kind::Room(room) if stream.intact => Some((id, room.as_ref())),
                _ => None,
            })
            .collect();
        rooms.sort_by_key(|(id, _)| *id);
        for (id, room) in rooms {
            let done = report.at_stream(id.clone());
            room.ghosts(end, &nodes, &mut report);
            done(&mut report);
        }
        Verdict { findings: report.findings, summary: report.summary }
    }
}

impl Stream {
    /// Whether `commit` comes after what is there of its stream; notes how it does.
    fn join(&mut self, commit: &Commit, report: &mut Report) -> bool {
        let head = self.head.or_else(|| before_snapshot(commit));
        let expected = head.map_or(Version(1), |h| h.version.next());
        let at = commit.version;
        if at < expected {
            return report.must(false, "fork", || {
                format!("version {at} is there already: the stream was at {}", Version(expected.0 - 1))
            });
        }
        let whole = report.must(at == expected, "version-gap", || {
            let missing = if at.0 == expected.0 + 1 {
                format!("version {expected} is missing")
            } else {
                format!("versions {expected} to {} are missing", at.0 - 1)
            };
            format!("{missing}; the rest of the stream is checked for further gaps only")
        });
        let linked = whole
            && report.must(commit.prev == head.map(|h| h.id), "wrong-prev", || {
                let name = |id: Option<CommitId>| id.map_or("none".to_owned(), |id| id.to_string());
                format!(
                    "its predecessor should be {}, and it names {}; the rest of the stream is checked for further gaps only",
                    name(head.map(|h| h.id)),
                    name(commit.prev)
                )
            });
        self.intact &= linked;
        report.check(
            self.last.millis_since(commit.time) <= CLOCK_BACK_MS,
            Severity::Warning,
            "clock",
            || format!("{} ms before the commit it follows", self.last.millis_since(commit.time)),
        );
        self.head = Some(commit.head());
        self.last = commit.time;
        true
    }
}

/// The last so many commit ids.
#[derive(Default)]
struct RecentIds {
    order: VecDeque<CommitId>,
    known: HashSet<CommitId>,
}

impl RecentIds {
    /// Whether `id` is new.
    fn insert(&mut self, id: CommitId) -> bool {
        if !self.known.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > RECENT_COMMITS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}
