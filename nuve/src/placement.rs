//! Which EC a room gets, and writing that down.
//!
//! [`decide`] is pure: the room's owner, the ECs and a random draw go in, a verdict comes out. [`App::place`] appends it under the
//! room's expected version, so of any number of NUVE nodes that place a room at once exactly one does, and the others use its choice.

use std::time::Duration;

use roomlog_bus::{
    commit::{Cause, Head, Payload, StreamId},
    events::{Event, RoomPlaced},
    ids::{EcId, Epoch, Incarnation, RoomId, Version},
    journal::AppendError,
    log::Draft,
};
use roomlog_projections::room::{Owner, RoomState};
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    ecs::{EcView, Health},
    problem::{CONTENDED, EC_SILENT, NO_EC, Problem},
    settings::EcPolicy,
};

/// How often a placement is decided again after somebody else changed the room. Each round somebody succeeds, and all who then look
/// keep that choice; 8 is far beyond what happens.
const ROUNDS: u32 = 8;

/// What the choice of an EC was made from; kept with the commit, so that it can be explained and made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// By which policy.
    pub policy: EcPolicy,
    /// The random draw.
    pub draw: u64,
    /// Every EC considered.
    pub candidates: Vec<EcCandidate>,
}

/// One EC that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EcCandidate {
    /// Which.
    pub ec: EcId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Rooms it had, those in flight counted.
    pub rooms: u64,
    /// Why it took no part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<String>,
}

/// What is to be done about a room's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has one and keeps it.
    Keep(EcId),
    /// It is given to this one.
    Place {
        /// Which.
        ec: EcId,
        /// Which start of it.
        incarnation: Incarnation,
        /// Why: `first-token`, `ec-lost`, `drain`.
        reason: &'static str,
    },
    /// Its owner is silent but not given up, and clients are in the room: they are not torn apart.
    Wait(EcId),
    /// There is no EC to give it to.
    NoEc,
}

/// Decides who is to own a room that has `owner`; `open` says whether clients are in it.
pub fn decide(owner: Option<&Owner>, open: bool, ecs: &[EcView], policy: EcPolicy, draw: u64) -> Verdict {
    let reason = match owner {
        None => "first-token",
        // A restarted EC is the same EC here: it places its rooms on itself again with its first commit to each.
        Some(owner) => match ecs.iter().find(|ec| ec.ec == owner.ec).map(|ec| ec.health) {
            Some(Health::Live) => return Verdict::Keep(owner.ec.clone()),
            Some(Health::Draining) if open => return Verdict::Keep(owner.ec.clone()),
            Some(Health::Draining) => "drain",
            Some(Health::Suspected) if open => return Verdict::Wait(owner.ec.clone()),
            Some(Health::Suspected | Health::Lost) | None => "ec-lost",
        },
    };
    let live = ecs.iter().filter(|ec| ec.health == Health::Live);
    let choice: Vec<&EcView> = match policy {
        EcPolicy::Random => live.collect(),
        EcPolicy::LeastRooms => {
            let least = live.clone().map(|ec| ec.rooms).min();
            live.filter(|ec| Some(ec.rooms) == least).collect()
        }
    };
    if choice.is_empty() {
        return match owner {
            // Nobody to take it: a draining or silent owner is still better than none.
            Some(owner) if reason == "drain" => Verdict::Keep(owner.ec.clone()),
            _ => Verdict::NoEc,
        };
    }
    let chosen = choice[(draw % choice.len() as u64) as usize];
    Verdict::Place { ec: chosen.ec.clone(), incarnation: chosen.incarnation, reason }
}

/// What [`decide`] was given, for the log.
pub fn facts(ecs: &[EcView], policy: EcPolicy, draw: u64) -> Facts {
    let candidates = ecs
        .iter()
        .map(|ec| EcCandidate {
            ec: ec.ec.clone(),
            incarnation: ec.incarnation,
            rooms: ec.rooms,
            excluded: match ec.health {
                Health::Live => None,
                Health::Draining => Some("draining".into()),
                Health::Suspected => Some("suspected".into()),
                Health::Lost => Some("lost".into()),
            },
        })
        .collect();
    Facts { policy, draw, candidates }
}

/// What placement needs to know of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomBrief {
    /// Which.
    pub id: RoomId,
    /// Where its stream ends.
    pub head: Option<Head>,
    /// Who owns it.
    pub owner: Option<Owner>,
    /// Clients are in it.
    pub open: bool,
}

impl RoomBrief {
    /// That of a folded room.
    pub fn of(id: &RoomId, state: &RoomState) -> Self {
        Self { id: id.clone(), head: state.head, owner: state.owner.clone(), open: state.open }
    }
}

/// A room with an EC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The room.
    pub room: RoomId,
    /// Its EC.
    pub ec: EcId,
    /// The epoch the room was placed under.
    pub epoch: Epoch,
    /// Version of the room by then.
    pub version: Version,
    /// Where that EC says its WebSocket is.
    pub address: String,
}

impl App {
    /// A decision now, with what it was made from. While this node has just started and may not have heard of anybody yet, it waits.
    pub(crate) async fn decide_ec(&self, owner: Option<&Owner>, open: bool) -> (Verdict, Facts, Vec<EcView>) {
        let mut changes = self.ecs.observer.changes();
        loop {
            changes.mark_unchanged();
            let ecs = self.ecs.view(&self.directory.read());
            let draw = self.env.draw(|rng| rng.next_u64());
            let verdict = decide(owner, open, &ecs, self.settings.ec_policy, draw);
            let unheard =
                matches!(verdict, Verdict::NoEc | Verdict::Wait(_)) && self.ecs.observer.just_started();
            if !unheard {
                let facts = facts(&ecs, self.settings.ec_policy, draw);
                return (verdict, facts, ecs);
            }
            /// Between two looks: an EC that registers shows in the directory, which is not waited on here.
            const LOOK: Duration = Duration::from_millis(100);
            let _ = tokio::time::timeout(LOOK, changes.changed()).await;
        }
    }

    /// Gives `room` an EC if it has none that serves.
    pub(crate) async fn place(&self, room: RoomBrief, cause: Cause) -> Result<Placed, Problem> {
        let mut room = room;
        for _ in 0..ROUNDS {
            let (verdict, facts, ecs) = self.decide_ec(room.owner.as_ref(), room.open).await;
            let address = |ec: &EcId| {
                ecs.iter().find(|view| view.ec == *ec).map(|view| view.address.clone()).unwrap_or_default()
            };
            let epoch = room.owner.as_ref().map_or(Epoch(0), |owner| owner.epoch);
            let version = room.head.map_or(Version(0), |head| head.version);
            match verdict {
                Verdict::Keep(ec) => {
                    let address = address(&ec);
                    return Ok(Placed { room: room.id, ec, epoch, version, address });
                }
                Verdict::Wait(ec) => return Err(silent(&room.id, &ec)),
                Verdict::NoEc => return Err(no_ec(&ecs)),
                Verdict::Place { ec, incarnation, reason } => {
                    let event = RoomPlaced {
                        ec: ec.clone(),
                        incarnation,
                        epoch: epoch.next(),
                        reason: reason.into(),
                    };
                    let draft = Draft {
                        epoch,
                        cause: cause.clone(),
                        facts: Payload::encode(&facts),
                        ..Draft::default()
                    };
                    let stream = StreamId::from(&room.id);
                    match self.log.append(stream, room.head, draft, &[Event::from(event)]).await {
                        Ok(commit) => {
                            self.ecs.placed_on(&ec);
                            self.metrics.placement();
                            tracing::info!(room = %room.id, %ec, reason, "room placed");
                            return Ok(Placed {
                                room: room.id,
                                address: address(&ec),
                                ec,
                                epoch: epoch.next(),
                                version: commit.last_version(),
                            });
                        }
                        // Somebody else was first: see what they did.
                        Err(AppendError::Conflict { .. }) => {
                            let state = self.room_in_journal(&room.id).await?;
                            room = match state.filter(|state| !state.deleted) {
                                Some(state) => RoomBrief::of(&room.id, &state),
                                None => return Err(crate::rooms::no_room(&room.id)),
                            };
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Err(CONTENDED.detail(format!("Room {} was to be given an EC.", room.id)).retry_after(1))
    }
}

/// The refusal when a room's owner is silent.
pub fn silent(room: &RoomId, ec: &EcId) -> Problem {
    EC_SILENT.detail(format!("Room {room} is on EC {ec}, which is not heard now.")).retry_after(1)
}

/// The refusal when no EC can take a room.
pub fn no_ec(ecs: &[EcView]) -> Problem {
    let count = |health| ecs.iter().filter(|ec| ec.health == health).count();
    let detail = format!(
        "Of {} ECs that ever registered, none is live: {} draining, {} suspected, {} lost.",
        ecs.len(),
        count(Health::Draining),
        count(Health::Suspected),
        count(Health::Lost)
    );
    NO_EC.detail(detail).retry_after(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ec(name: &str, health: Health, rooms: u64) -> EcView {
        EcView {
            ec: EcId::new(name).unwrap(),
            incarnation: Incarnation(2),
            health,
            rooms,
            address: format!("ws://{name}"),
        }
    }

    fn owner(name: &str) -> Owner {
        Owner { ec: EcId::new(name).unwrap(), incarnation: Incarnation(1), epoch: Epoch(4) }
    }

    fn chosen(verdict: Verdict) -> (String, &'static str) {
        match verdict {
            Verdict::Place { ec, reason, .. } => (ec.to_string(), reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_first_token_goes_to_any_live_ec_and_to_no_other() {
        let ecs = [
            ec("a", Health::Live, 9),
            ec("b", Health::Draining, 0),
            ec("c", Health::Suspected, 0),
            ec("d", Health::Lost, 0),
            ec("e", Health::Live, 1),
        ];
        let mut names: Vec<_> =
            (0..10).map(|draw| chosen(decide(None, false, &ecs, EcPolicy::Random, draw)).0).collect();
        names.sort();
        names.dedup();
        assert_eq!(names, ["a", "e"]);
        for draw in 0..10 {
            let verdict = decide(None, false, &ecs, EcPolicy::LeastRooms, draw);
            assert_eq!(chosen(verdict), ("e".into(), "first-token"));
        }
        assert_eq!(decide(None, false, &ecs[1..4], EcPolicy::Random, 0), Verdict::NoEc);
    }

    #[test]
    fn a_room_stays_where_it_is_as_long_as_that_serves() {
        let other = ec("z", Health::Live, 0);
        let of = |health, open| {
            decide(Some(&owner("a")), open, &[ec("a", health, 5), other.clone()], EcPolicy::LeastRooms, 0)
        };
        let a = EcId::new("a").unwrap();
        // The owner's incarnation is older than the EC's: it restarted, and stays the owner.
        assert_eq!(of(Health::Live, false), Verdict::Keep(a.clone()));
        assert_eq!(of(Health::Draining, true), Verdict::Keep(a.clone()));
        assert_eq!(chosen(of(Health::Draining, false)), ("z".into(), "drain"));
        assert_eq!(of(Health::Suspected, true), Verdict::Wait(a.clone()));
        assert_eq!(chosen(of(Health::Suspected, false)), ("z".into(), "ec-lost"));
        assert_eq!(chosen(of(Health::Lost, true)), ("z".into(), "ec-lost"));
        let gone = decide(Some(&owner("a")), true, std::slice::from_ref(&other), EcPolicy::Random, 0);
        assert_eq!(chosen(gone), ("z".into(), "ec-lost"));
        let alone = decide(Some(&owner("a")), false, &[ec("a", Health::Draining, 5)], EcPolicy::Random, 0);
        assert_eq!(alone, Verdict::Keep(a), "with nobody to take it, the draining owner keeps it");
    }
}
