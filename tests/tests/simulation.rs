//! The deterministic simulation: many seeds, each a cluster with faults, checked from outside; and the proof that a seed names a run.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use roomlog_tests::sim::{Counts, Outcome, Planted, run};

/// Seeds that a run of the tests goes through unless told otherwise.
const SEEDS: u64 = 100;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}")))
}

fn shown(counts: &std::collections::BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(kind, n)| format!("    {n:>9}  {kind}\n")).collect()
}

/// Runs seeds on as many threads as there are cores, each run in one of them; gives what is broken, by seed.
fn explore(from: u64, seeds: u64, planted: Planted) -> (Counts, Vec<(u64, Vec<String>)>) {
    let next = AtomicU64::new(from);
    let all = Mutex::new((Counts::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        return;
                    }
                    let Outcome { broken, counts, .. } = run(seed, planted, false);
                    let mut all = all.lock().unwrap();
                    all.0.add(&counts);
                    if !broken.is_empty() {
                        println!("seed {seed}: {}", broken[0].chars().take(300).collect::<String>());
                        all.1.push((seed, broken));
                    }
                }
            });
        }
    });
    let (counts, mut broken) = all.into_inner().unwrap();
    broken.sort();
    (counts, broken)
}

#[test]
fn invariants_hold_over_many_seeds() {
    let (from, seeds) = (setting("ROOMLOG_SIM_FROM", 1), setting("ROOMLOG_SIM_SEEDS", SEEDS));
    let began = Instant::now();
    let (counts, broken) = explore(from, seeds, Planted::default());
    println!(
        "{seeds} seeds from {from} in {:?}\n  faults injected: {}\n{}  checks: {}\n{}  what happened\n{}",
        began.elapsed(),
        counts.faults.values().sum::<u64>(),
        shown(&counts.faults),
        counts.checks.values().sum::<u64>(),
        shown(&counts.checks),
        shown(&counts.events)
    );
    for (seed, broken) in &broken {
        println!("seed {seed}:");
        for line in broken {
            println!("    {}", line.chars().take(400).collect::<String>());
        }
    }
    assert!(broken.is_empty(), "{} of {seeds} seeds break an invariant", broken.len());
}

/// Seeds that found something, one a line, with what it was.
const KEPT: &str = include_str!("simulation_seeds.txt");

#[test]
fn seeds_that_found_something_find_it_no_more() {
    let kept = KEPT.lines().filter(|line| !line.starts_with('#'));
    for line in kept {
        let (seed, what) = line.split_once(' ').expect("a seed and what it found");
        let outcome = run(seed.parse().expect("a number"), Planted::default(), false);
        assert!(outcome.broken.is_empty(), "{seed}: {what}\n{}", outcome.broken.join("\n"));
    }
}

#[test]
fn a_seed_names_its_run() {
    for seed in
        setting("ROOMLOG_SIM_FROM", 1)..setting("ROOMLOG_SIM_FROM", 1) + setting("ROOMLOG_SIM_TWICE", 8)
    {
        let (one, two) = (run(seed, Planted::default(), true), run(seed, Planted::default(), true));
        assert!(one.lines.len() > 1_000, "seed {seed}: a run in which nothing happens proves nothing");
        for (number, (a, b)) in one.lines.iter().zip(&two.lines).enumerate() {
            assert_eq!(a, b, "seed {seed} at line {number}");
        }
        assert_eq!(one.hash, two.hash, "seed {seed}");
        let other = run(seed + 1_000_000, Planted::default(), false);
        assert_ne!(one.hash, other.hash, "another seed is another run");
    }
}

/// The first seed that shows a planted bug, and what it says of it.
fn found(name: &str, planted: Planted, most: u64) -> u64 {
    for from in (1..=most).step_by(8) {
        let (_, broken) = explore(from, 8, planted);
        if let Some((seed, broken)) = broken.first() {
            println!("{name}: seed {seed}: {}", broken[0].chars().take(200).collect::<String>());
            return *seed;
        }
    }
    panic!("{name}: not found by {most} seeds");
}

/// Each of them is a cluster whose log or whose clock is not what the code relies on.
#[test]
fn planted_bugs_are_found() {
    let none = Planted::default();
    found("the log does not fence", Planted { no_fence: true, ..none }, 64);
    found("a follower skips a commit", Planted { skip: 5, ..none }, 64);
    found("a follower loses the last commit", Planted { lose_last: true, ..none }, 64);
    found("a leave is acknowledged and forgotten", Planted { forget_leave: 200, ..none }, 64);
    found("a node acts on its own pause", Planted { unnoticed_pause: true, ..none }, 200);
    found("a repair merges a fork", Planted { merge_fork: true, ..none }, 400);
}

/// Shows one run: `ROOMLOG_SIM_FROM=<seed> cargo test -p roomlog-tests --test simulation show -- --ignored --nocapture`.
#[test]
#[ignore = "for people"]
fn show() {
    let outcome = run(setting("ROOMLOG_SIM_FROM", 1), Planted::default(), true);
    for line in &outcome.lines {
        println!("{line}");
    }
    if let Ok(room) = std::env::var("ROOMLOG_SIM_ROOM") {
        for commit in outcome.log.iter().filter(|commit| commit.stream.id() == room) {
            let events: Vec<String> =
                commit.events.iter().map(|e| format!("{} {}", e.kind, e.data.to_json())).collect();
            println!(
                "{} v{} {} {:?} {}",
                commit.time,
                commit.version,
                commit.writer.node,
                commit.cause,
                events.join(" + ")
            );
        }
    }
    println!("{}\n{}", shown(&outcome.counts.events), outcome.broken.join("\n"));
}
