//! The ways that are counted.

#[path = "../../../ea/sfu/tests/common/mod.rs"]
mod common;

use std::{hint::black_box, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use common::{SSRC, World, frame_header, vp8, watched_by};
use roomlog_bus::{
    commit::{Commit, Outline, StreamId, StreamKind},
    journal::Journal,
    sled_journal::{JournalSettings, SledJournal},
};
use roomlog_projections::room::RoomState;

/// A way through the program.
pub struct Path {
    pub name: &'static str,
    /// What one of its units is.
    pub what: &'static str,
    /// Walks it so many times in [`measured`], and says how many units that were.
    pub walk: fn(u32) -> anyhow::Result<u64>,
    pub rounds: u32,
    /// What happens in functions of these names is counted, as callgrind's patterns have them.
    pub counted: &'static [&'static str],
}

/// The name of [`measured`].
const MEASURED: &[&str] = &["*paths*measured*"];

/// All of them.
pub const PATHS: &[Path] = &[
    Path {
        name: "packet",
        what: "a packet of 1 kB out of the worker to one of 20 consumers, from the datagram that comes to the run that goes",
        walk: |rounds| packets(rounds, 960),
        rounds: 100,
        counted: MEASURED,
    },
    Path {
        name: "packet-short",
        what: "the same with 0.1 kB, where encryption, half of the other, does not hide what is ours",
        walk: |rounds| packets(rounds, 60),
        rounds: 100,
        counted: MEASURED,
    },
    Path {
        name: "fold",
        what: "an event of a decoded commit into the state of its room",
        walk: fold,
        rounds: 150,
        counted: MEASURED,
    },
    Path { name: "encode", what: "a commit into its bytes", walk: encode, rounds: 100, counted: MEASURED },
    Path { name: "decode", what: "a commit from its bytes", walk: decode, rounds: 100, counted: MEASURED },
    Path {
        name: "outline",
        what: "what a segment's description needs of a commit's bytes",
        walk: outline,
        rounds: 100,
        counted: MEASURED,
    },
    Path {
        name: "append",
        what: "a commit into blocks and into the index; sled, threads and wakers are left out, which differ from run to run",
        walk: append,
        rounds: 4,
        // Patterns that begin alike hide each other from callgrind 3.19.
        counted: &["*block*pack*", "*index*Index*add*"],
    },
];

/// What is counted happens in here.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// A call of four people with a camera each, as `roomlog bench log` has it.
const CALL: &[u8] = include_bytes!("../../bench/src/call.commits");

fn call() -> anyhow::Result<Vec<Commit>> {
    let (mut rest, mut commits) = (CALL, Vec::new());
    while !rest.is_empty() {
        commits.push(rmp_serde::from_read(&mut rest).context("the recorded call does not read")?);
    }
    Ok(commits)
}

const CONSUMERS: u16 = 20;
const FRAME_PACKETS: u16 = 4;
/// Frames until the 1024 packets are full that a consumer keeps; from then on each is like the one before.
const WARM_FRAMES: u16 = 260;

/// As `allocations.rs` of the worker and `roomlog bench media` have it: frames of four packets, back to back.
fn packets(rounds: u32, size: usize) -> anyhow::Result<u64> {
    let mut world = World::new();
    let mut alice = watched_by(&mut world, CONSUMERS);
    let (padding, mut sent) = (vec![7; size], 0);
    for frame in 0..WARM_FRAMES + u16::try_from(rounds)? {
        for part in 0..FRAME_PACKETS {
            let number = frame * FRAME_PACKETS + part;
            let payload = [&vp8(number, number == 0)[..], &padding].concat();
            alice.send(frame_header(SSRC, number), &[(1, b"v"), (3, &number.to_be_bytes())], &payload);
        }
        world.now += Duration::from_millis(1);
        world.worker.handle_timeout(world.now);
        world.worker.outbox().clear();
        world.worker.take_notifications();
        let mut forward = || {
            for bytes in &alice.out {
                world.worker.handle_datagram(world.now, alice.address, bytes);
            }
            let runs = world.worker.outbox().runs(64, 60_000);
            let count: usize = runs.map(|(_, bytes, size)| bytes.len() / size).sum();
            world.worker.outbox().clear();
            count as u64
        };
        match frame < WARM_FRAMES {
            true => drop(forward()),
            false => sent += measured(forward),
        }
        alice.out.clear();
    }
    // Some feedback goes to the sender besides.
    let expected = u64::from(rounds) * u64::from(FRAME_PACKETS * CONSUMERS);
    ensure!((expected..expected + expected / 100).contains(&sent), "{sent} packets were sent");
    Ok(expected)
}

/// An event of the recorded call into its room's state.
fn fold(rounds: u32) -> anyhow::Result<u64> {
    let call = call()?;
    let events: u64 = call.iter().map(|commit| commit.events.len() as u64).sum();
    repeat(rounds, || {
        let mut room = RoomState::default();
        for commit in &call {
            room.apply_commit(commit)?;
        }
        ensure!(room.deleted, "the call folds to its end");
        Ok(())
    })?;
    Ok(events * u64::from(rounds))
}

fn encode(rounds: u32) -> anyhow::Result<u64> {
    let call = call()?;
    repeat(rounds, || {
        call.iter().for_each(|commit| drop(black_box(commit.encode())));
        Ok(())
    })?;
    Ok(call.len() as u64 * u64::from(rounds))
}

fn decode(rounds: u32) -> anyhow::Result<u64> {
    let call: Vec<Vec<u8>> = call()?.iter().map(Commit::encode).collect();
    repeat(rounds, || {
        for bytes in &call {
            drop(black_box(Commit::decode(bytes)?));
        }
        Ok(())
    })?;
    Ok(call.len() as u64 * u64::from(rounds))
}

fn outline(rounds: u32) -> anyhow::Result<u64> {
    let call: Vec<Vec<u8>> = call()?.iter().map(Commit::encode).collect();
    repeat(rounds, || {
        for bytes in &call {
            drop(black_box(Outline::decode(bytes)?));
        }
        Ok(())
    })?;
    Ok(call.len() as u64 * u64::from(rounds))
}

/// `work` so many times, and once beforehand so that what is made once is made.
fn repeat(rounds: u32, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    work()?;
    (0..rounds).try_for_each(|_| measured(&mut work))
}

/// As many as wait at a time.
const WRITERS: u32 = 64;

/// Durable appends to a journal in sled: the calls of 64 rooms at a time.
fn append(rounds: u32) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir()?;
    let call: Arc<[Commit]> = call()?.into();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let (journal, _) = SledJournal::open(folder.path(), JournalSettings::default())?;
        for round in 0..rounds {
            let writers = (0..WRITERS).map(|writer| {
                let (journal, call) = (journal.clone(), call.clone());
                tokio::spawn(async move {
                    let stream = StreamId::new(StreamKind::Room, &format!("w-{round}-{writer}"))?;
                    for commit in call.iter() {
                        journal.append(Commit { stream: stream.clone(), ..commit.clone() }).await?;
                    }
                    anyhow::Ok(())
                })
            });
            for writer in writers.collect::<Vec<_>>() {
                writer.await??;
            }
        }
        journal.close().await;
        Ok(call.len() as u64 * u64::from(rounds * WRITERS))
    })
}
