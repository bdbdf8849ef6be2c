//! A room and a list of rooms as text, for people.

use std::fmt::Write as _;

use crate::{
    replay::{RoomAt, RoomSummary},
    timeline_words::{policy, span},
};

/// The rooms as a table.
pub fn rooms<'a>(rooms: impl IntoIterator<Item = &'a RoomSummary>) -> String {
    let mut rows = vec![
        [
            "ROOM",
            "NAME",
            "SERVICE",
            "OWNER",
            "STATE",
            "CLIENTS",
            "EVENTS",
            "FIRST EVENT",
            "LAST EVENT",
            "SIZE",
        ]
        .map(str::to_owned),
    ];
    for room in rooms {
        let owner =
            room.owner.as_ref().map(|o| format!("{} start {} epoch {}", o.ec, o.incarnation, o.epoch));
        let state = match (room.deleted, room.open) {
            (true, _) => "deleted",
            (false, true) => "open",
            (false, false) => "closed",
        };
        rows.push([
            room.id.to_string(),
            room.name.clone().unwrap_or_else(|| "?".into()),
            room.service.as_ref().map_or_else(|| "?".into(), ToString::to_string),
            owner.unwrap_or_else(|| "none".into()),
            state.into(),
            format!("{} of {}", room.clients, room.admitted),
            room.events.to_string(),
            room.first.to_string(),
            room.last.to_string(),
            size(room.bytes),
        ]);
    }
    table(&rows)
}

/// Rows with their columns aligned; the last is not padded.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width: Vec<usize> =
        (0..N).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            if i + 1 == N {
                out.push_str(cell);
            } else {
                let _ = write!(out, "{cell:<width$}  ", width = width[i]);
            }
        }
        out.push('\n');
    }
    out
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// A room's state, readable.
pub fn state(id: &str, at: &RoomAt) -> String {
    let mut out = String::new();
    let room = &at.state;
    let time = at.time.map_or("before its first event".to_owned(), |t| t.to_string());
    let _ = writeln!(out, "room {id} at version {} ({time})", room.version());
    if at.inside_commit {
        out.push_str("  in the middle of a commit: nobody ever saw this state\n");
    }
    if let Some(info) = &room.info {
        let _ = writeln!(
            out,
            "  name     {:?}, service {}, {}, made {}",
            info.name,
            info.service,
            policy(info.eapolicy),
            info.created
        );
    }
    match &room.owner {
        Some(o) => {
            let _ = writeln!(out, "  owner    EC {} start {}, epoch {}", o.ec, o.incarnation, o.epoch);
        }
        None => out.push_str("  owner    none\n"),
    }
    let session = match (room.deleted, room.open) {
        (true, _) => "deleted",
        (false, true) => "open",
        (false, false) => "closed",
    };
    let _ = writeln!(out, "  session  {session}, media epoch {}", room.media_epoch);
    for p in room.placements.values() {
        let _ = writeln!(
            out,
            "  media    EA {} start {}, worker {} start {}",
            p.ea, p.incarnation, p.worker, p.generation
        );
    }
    let _ = writeln!(out, "  clients  {}", room.clients.len());
    for (id, client) in &room.clients {
        let name = client.joined.as_ref().map_or(&client.user, |j| &j.display_name);
        let _ = write!(out, "    {id}  {name:?}, {}, from {}", client.role, client.addr);
        let _ = write!(out, ", {}", if client.joined.is_some() { "joined" } else { "not joined" });
        if let Some(until) = client.resume_until {
            let _ = write!(out, ", AWAY, may come back until {until}");
        }
        if let Some(time) = at.time {
            let _ = write!(out, ", in for {}", span(time.0.saturating_sub(client.admitted.0)));
        }
        out.push('\n');
        for (transport, t) in room.transports.iter().filter(|(_, t)| &t.client == id) {
            let way = match (t.producing, t.consuming) {
                (true, true) => "two-way",
                (true, false) => "sending",
                _ => "receiving",
            };
            let connected = if t.connected { "connected" } else { "NOT connected" };
            let _ = writeln!(out, "      transport {transport}  {way}, {connected}");
            for (producer, p) in room.producers.iter().filter(|(_, p)| &p.transport == transport) {
                let paused = if p.paused { ", paused" } else { "" };
                let _ =
                    writeln!(out, "        producer {producer}  {:?}, {:?}{paused}", p.kind, p.consumer_type);
            }
            for (consumer, c) in room.consumers.iter().filter(|(_, c)| &c.transport == transport) {
                let from = room.producers.get(&c.producer).and_then(|p| room.clients.get(&p.client));
                let from = from.map_or("nobody", |c| c.joined.as_ref().map_or(&c.user, |j| &j.display_name));
                let how = match (c.accepted, c.paused) {
                    (false, _) => ", NOT accepted yet",
                    (true, true) => ", paused",
                    (true, false) => "",
                };
                let _ = writeln!(
                    out,
                    "        consumer {consumer}  {:?} of {from:?} (producer {}){how}",
                    c.kind, c.producer
                );
            }
        }
    }
    out
}
