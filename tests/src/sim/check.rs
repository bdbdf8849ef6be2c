//! Looks at a settled cluster from outside: the log, what the nodes answer, what the workers hold, and what clients were promised.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use roomlog_bus::{
    bus::Bus,
    commit::{Commit, StreamKind},
    events::Event,
    ids::{RoomId, Version},
    rpc::{EaAnswer, EaRequest, EcAnswer, EcRequest, ask},
    subject::Subject,
};
use roomlog_ea::testing::FakeSpawner;
use roomlog_projections::{
    directory::Directory,
    room::RoomState,
    verify::{Severity, Verifier},
};
use serde_json::Value;

use super::{
    client::Clients,
    cluster::living,
    world::{Micros, S, World},
};

/// A node answers this at once or not at all.
const WITHIN: Duration = Duration::from_secs(5);
/// The longest fault, and what catching up after it takes.
const STALE: Micros = 30 * S;

/// Everything that does not hold, in words.
pub async fn all(
    world: &Arc<World>,
    bus: &Arc<dyn Bus>,
    clients: Option<Arc<Clients>>,
    workers: Vec<(String, FakeSpawner)>,
) -> Vec<String> {
    let mut checks: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut broken = Vec::new();
    let (log, stored) = {
        let world = world.lock();
        (world.log.clone(), world.stored.clone())
    };
    let folded = fold(&log, &mut broken, &mut checks);
    let Some(clients) = clients else {
        broken.push("no service could be made".into());
        return broken;
    };
    let aside = world.lock().aside.clone();
    acknowledged(&log, &aside, &clients, &mut broken, &mut checks);
    same_ec(&log, &stored, &aside, &clients, &mut broken, &mut checks);
    states(bus, &folded, &mut broken, &mut checks).await;
    lost(world, &log, &stored, &mut broken, &mut checks);
    ghosts(&folded, &clients, &workers, &mut broken, &mut checks);
    let mut world = world.lock();
    broken.append(&mut world.broken);
    for (kind, n) in checks {
        *world.counts.checks.entry(kind).or_default() += n;
    }
    broken
}

type Checks = BTreeMap<&'static str, u64>;

/// The log keeps its own rules (invariants 1, 5 and 6 as far as a log shows them), and folds (2).
fn fold(log: &[Arc<Commit>], broken: &mut Vec<String>, checks: &mut Checks) -> Directory {
    let mut verifier = Verifier::new(None);
    let mut directory = Directory::default();
    for commit in log {
        verifier.commit(commit);
        if let Err(error) = directory.apply(commit) {
            broken.push(format!("does not fold: {error}"));
        }
        *checks.entry("commits verified").or_default() += 1;
    }
    for finding in verifier.finish().findings {
        if finding.severity == Severity::Error {
            broken.push(format!("log: {finding}"));
        }
    }
    directory
}

/// Invariant 3: what was answered with success is in the log. What a repair set aside is not, and that is all that may be missing.
fn acknowledged(
    log: &[Arc<Commit>],
    aside: &[Arc<Commit>],
    clients: &Clients,
    broken: &mut Vec<String>,
    checks: &mut Checks,
) {
    let mut caused = BTreeSet::new();
    let mut admitted = BTreeSet::new();
    let mut deleted = BTreeSet::new();
    let (mut attached, mut joined) = (BTreeSet::new(), BTreeSet::new());
    let known = log.iter().chain(aside);
    for commit in known.filter(|commit| commit.stream.kind() == StreamKind::Room) {
        let room = commit.stream.id().to_owned();
        if let (Some(client), Some(request)) = (&commit.cause.client, commit.cause.request) {
            caused.insert((room.clone(), client.to_string(), request));
        }
        for event in commit.events.iter().filter_map(|event| Event::decode(event).ok()) {
            match event {
                Event::ClientAdmitted(event) => {
                    admitted.insert((room.clone(), event.client.to_string()));
                }
                Event::ClientAttached(event) => {
                    attached.insert((room.clone(), event.client.to_string()));
                }
                Event::ClientJoined(event) => {
                    joined.insert((room.clone(), event.client.to_string()));
                }
                Event::RoomDeleted(_) => {
                    deleted.insert(room.clone());
                }
                _ => {}
            }
        }
    }
    let record = clients.record.lock().expect("one thread");
    for promised in &record.acknowledged {
        *checks.entry("acknowledged answers found in the log").or_default() += 1;
        let found = match promised.method {
            // Asked again when it was done already, they change nothing more.
            "token" => admitted.contains(&(promised.room.clone(), promised.client.clone())),
            "getRouterRtpCapabilities" => {
                attached.contains(&(promised.room.clone(), promised.client.clone()))
            }
            "join" => joined.contains(&(promised.room.clone(), promised.client.clone())),
            _ => caused.contains(&(promised.room.clone(), promised.client.clone(), promised.request)),
        };
        if !found {
            broken.push(format!("acknowledged and not in the log: {promised:?}"));
        }
    }
    for room in &record.deleted {
        *checks.entry("acknowledged deletions found in the log").or_default() += 1;
        if !deleted.contains(room) {
            broken.push(format!("deletion of {room} acknowledged and not in the log"));
        }
    }
}

/// Invariant 4: all tokens of a room that are given at one time name one EC, the owner by the log. A NUVE that is cut off or paused knows
/// it as it was before, for as long as such a fault lasts at most.
fn same_ec(
    log: &[Arc<Commit>],
    stored: &[Micros],
    aside: &[Arc<Commit>],
    clients: &Clients,
    broken: &mut Vec<String>,
    checks: &mut Checks,
) {
    // Who owned a room in a branch that a repair set aside is not in the log any more.
    let forked: BTreeSet<&str> = aside.iter().map(|commit| commit.stream.id()).collect();
    let mut owners: BTreeMap<String, Vec<(Micros, String)>> = BTreeMap::new();
    for (commit, at) in log.iter().zip(stored).filter(|(commit, _)| commit.stream.kind() == StreamKind::Room)
    {
        for event in commit.events.iter().filter_map(|event| Event::decode(event).ok()) {
            if let Event::RoomPlaced(placed) = event {
                let placed = (*at, placed.ec.to_string());
                owners.entry(commit.stream.id().to_owned()).or_default().push(placed);
            }
        }
    }
    for given in &clients.record.lock().expect("one thread").given {
        if forked.contains(given.room.as_str()) {
            continue;
        }
        *checks.entry("tokens' ECs compared with the log").or_default() += 1;
        let owned = owners.get(&given.room).map_or(&[][..], Vec::as_slice);
        let right = owned.iter().enumerate().any(|(number, (from, ec))| {
            let until = owned.get(number + 1).map_or(Micros::MAX, |(next, _)| *next);
            *ec == given.ec && *from <= given.answered && until >= given.asked.saturating_sub(STALE)
        });
        if !right {
            broken.push(format!(
                "a token of {} names an EC that had not the room then: {given:?}, owners {owned:?}",
                given.nuve
            ));
        }
    }
}

/// Invariant 2: the EC's state and the EA's are the fold.
async fn states(bus: &Arc<dyn Bus>, folded: &Directory, broken: &mut Vec<String>, checks: &mut Checks) {
    let mut on_eas: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in folded.nodes.keys().filter(|node| node.kind() == StreamKind::Ea) {
        match ask::<_, EaAnswer>(bus.as_ref(), Subject::rpc(node), &EaRequest::Rooms, WITHIN).await {
            Ok(EaAnswer::Rooms { rooms }) => {
                for (room, _) in rooms {
                    on_eas.entry(room.to_string()).or_default().push(node.id().to_owned());
                }
            }
            other => broken.push(format!("{node} does not say its rooms: {other:?}")),
        }
    }
    for (room, state) in &folded.rooms {
        if let Some(owner) = &state.owner {
            *checks.entry("EC states compared with the fold").or_default() += 1;
            let subject = Subject::rpc(&(&owner.ec).into());
            match ask::<_, EcAnswer>(
                bus.as_ref(),
                subject,
                &EcRequest::RoomState { room: room.clone() },
                WITHIN,
            )
            .await
            {
                Ok(EcAnswer::State { version, state: told }) => {
                    compare("EC", room, version, &told, state, !state.clients.is_empty(), broken);
                }
                other => broken.push(format!("{} does not say the state of {room}: {other:?}", owner.ec)),
            }
        }
        let held = on_eas.remove(room.as_str()).unwrap_or_default();
        let placed: Vec<String> = state.placements.keys().map(ToString::to_string).collect();
        *checks.entry("rooms' EAs compared with the fold").or_default() += 1;
        if held != placed {
            broken.push(format!("{room} is on {placed:?} by the log, and EAs hold it: {held:?}"));
        }
        for ea in state.placements.keys() {
            *checks.entry("EA states compared with the fold").or_default() += 1;
            let question = EaRequest::RoomState { room: room.clone(), min_version: state.version() };
            match ask::<_, EaAnswer>(bus.as_ref(), Subject::rpc(&ea.into()), &question, WITHIN).await {
                Ok(EaAnswer::State { version, state: told }) => {
                    compare("EA", room, version, &told, state, true, broken);
                }
                other => broken.push(format!("{ea} does not say the state of {room}: {other:?}")),
            }
        }
    }
    for (room, eas) in on_eas {
        broken.push(format!("{room} is over, and EAs hold it: {eas:?}"));
    }
}

fn compare(
    who: &str,
    room: &RoomId,
    version: Version,
    told: &Value,
    state: &RoomState,
    must: bool,
    broken: &mut Vec<String>,
) {
    if told.is_null() {
        if must {
            broken.push(format!("{who} does not hold {room}, in which somebody is"));
        }
    } else if version != state.version() || *told != state.to_json() {
        broken.push(format!(
            "{who} has {room} at {version}, the log at {}: {told} and {}",
            state.version(),
            state.to_json()
        ));
    }
}

/// Only a node with which something was wrong is called lost.
fn lost(
    world: &Arc<World>,
    log: &[Arc<Commit>],
    stored: &[Micros],
    broken: &mut Vec<String>,
    checks: &mut Checks,
) {
    let mut world = world.lock();
    for (commit, at) in log.iter().zip(stored) {
        for event in commit.events.iter().filter_map(|raw| Event::decode(raw).ok()) {
            if let Event::NodeRegistered(registered) = event {
                let taken = world.counts.events.entry("workers taken over").or_default();
                *taken += registered.adopted.len() as u64;
            }
        }
        if !commit.events.iter().any(|event| event.kind.as_str() == "NodeLost") {
            continue;
        }
        *checks.entry("nodes called lost, with reason").or_default() += 1;
        let Some(node) = world.nodes.iter().find(|node| node.name == commit.stream.id()) else { continue };
        if !node.in_trouble(at.saturating_sub(STALE), *at) {
            broken.push(format!("{} was called lost by {} and was there", node.name, commit.writer.node));
        }
    }
}

/// Invariant 7: who has gone is gone everywhere, and who stayed is there.
fn ghosts(
    folded: &Directory,
    clients: &Clients,
    workers: &[(String, FakeSpawner)],
    broken: &mut Vec<String>,
    checks: &mut Checks,
) {
    let staying: BTreeSet<(String, String)> =
        clients.record.lock().expect("one thread").staying.iter().cloned().collect();
    let mut in_log = BTreeSet::new();
    for (room, state) in &folded.rooms {
        in_log.extend(state.clients.keys().map(|client| (room.to_string(), client.to_string())));
        *checks.entry("rooms looked through for ghosts").or_default() += 1;
        if state.clients.is_empty() && (state.open || !state.placements.is_empty()) {
            broken.push(format!("nobody is in {room}, and it is open or has a worker"));
        }
        if state.placements.len() > 1 {
            broken.push(format!("ROOM-BEST: {room} is on {:?}", state.placements));
        }
    }
    for ghost in in_log.difference(&staying) {
        broken.push(format!("a ghost: {ghost:?}"));
    }
    for missing in staying.difference(&in_log) {
        broken.push(format!("a client that stayed is not there: {missing:?}"));
    }
    for (ea, spawner) in workers {
        for worker in living(spawner) {
            let books = worker.books.lock().expect("one thread");
            for (room, router) in &books.routers {
                *checks.entry("routers compared with the log").or_default() += 1;
                let state = folded.rooms.get(room);
                let here = state.is_some_and(|state| state.placements.keys().any(|at| at.as_str() == ea));
                let transports: BTreeSet<_> = router.transports.iter().map(|t| t.id.clone()).collect();
                let wanted: BTreeSet<_> =
                    state.into_iter().flat_map(|state| state.transports.keys().cloned()).collect();
                if !here {
                    broken.push(format!("a worker of {ea} holds {room}, which the log has not there"));
                } else if transports != wanted {
                    broken.push(format!(
                        "a worker of {ea} holds transports {transports:?} of {room}, the log has {wanted:?}"
                    ));
                }
            }
        }
    }
}
