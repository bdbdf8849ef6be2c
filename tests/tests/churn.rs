//! A long run of everything that people do to a room, and of workers that die: the program holds no more at its end than after its
//! warm-up, says nothing in its log that nobody can explain, and the log of the rooms verifies.
//!
//! `ROOMLOG_CHURN_SECONDS` is how long (30 otherwise), `ROOMLOG_SEED` what is done. What is done follows from the seed; when, from the
//! machine.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use roomlog_tests::{
    http,
    native::{Kind, NativePeer, Publish},
    peer::{Peer, Policy},
    process::{Held, Up, kill},
};
use serde_json::{Value, json};

/// Clients at a time that signal only.
const SIGNALLERS: u64 = 16;
/// Native clients at a time, with real packets.
const NATIVES: u64 = 4;
/// Rooms they meet in: a few, so that they do meet, and are closed when the last has gone and opened again.
const ROOMS: u64 = 6;
/// A broken client is waited for this long; short, so that the run sees many come too late.
const RESUME: Duration = Duration::from_millis(3_000);
/// Streams with many frames missing. Sound is not repaired, and a machine that stands still for 200 ms in the few seconds that a peer is
/// there loses it that much: one in twenty may be such.
const HEARD_BADLY: &str = "native heard badly";
/// Between two kills of a worker, s.
const KILL_EVERY_S: std::ops::Range<u64> = 8..16;
/// Between two looks at what the program holds.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Resident memory may grow by this from the third quarter of the run to the last: allocators keep what they once had. Beyond it
/// comes what the log is known to hold, below.
const MEMORY_SLACK: u64 = 12 << 20;
/// The newest 16 384 commits are kept in memory for those who follow, and tables of the segment that is being written: bytes for each
/// thing done, as long as fewer than this have been done.
const KEPT_AN_ACT: u64 = 6_000;
const ACTS_KEPT: u64 = 9_000;
/// Small segments of the log, since what is known of the newest segment is kept in memory until it is full.
const SEGMENT_BYTES: &str = "4194304";
/// A worker is as young as its last kill, so its memory is bounded and not compared.
const WORKER_MEMORY: u64 = 64 << 20;
/// At rest after the run, more than at rest before it: connections that the HTTP server has not closed yet.
const HANDLES_SLACK: u64 = 4;

/// What the program may say, with how often at most, and why.
struct Explained {
    says: &'static str,
    at_most: fn(&Tally) -> u64,
    /// For whoever reads this.
    _why: &'static str,
}

/// Room moves and consumers under way when a worker is killed: each may be told of once.
const UNDER_WAY: u64 = 60;

const EXPLAINED: [Explained; 7] = [
    Explained {
        says: "SFU worker ended; the next one is started",
        at_most: |t| t.kills(),
        _why: "we killed it",
    },
    Explained {
        says: "SFU worker died",
        at_most: |t| t.kills(),
        _why: "we killed it; this names the rooms that move",
    },
    Explained {
        says: "this node was paused: silence is counted anew",
        at_most: |_| u64::MAX,
        _why: "the machine has more to do than processors; what it says is that nobody is called lost for that",
    },
    Explained {
        says: "no EA can take over the room's media; looking again soon",
        at_most: |t| t.kills() * ROOMS,
        _why: "both workers had been killed, and the first was not back yet",
    },
    Explained {
        says: "an EA did not take the room",
        at_most: |t| t.kills() * ROOMS,
        _why: "the same, where the EA was asked before it was known",
    },
    Explained {
        says: "the worker gave no inventory; it is asked again later",
        at_most: |t| t.kills() * ROOMS,
        _why: "the worker had been killed and its rooms were not yet moved",
    },
    Explained {
        says: "a command that follows from the log failed",
        at_most: |t| t.kills() * UNDER_WAY,
        _why: "the worker it was for had been killed; its answer is `unavailable`, and the room is moved",
    },
];

/// What was done, by name.
#[derive(Default)]
struct Tally {
    done: std::sync::Mutex<BTreeMap<&'static str, u64>>,
    refused: std::sync::Mutex<BTreeMap<String, u64>>,
    kills: AtomicU64,
}

impl Tally {
    fn did(&self, what: &'static str) {
        *self.done.lock().expect("no panic inside").entry(what).or_default() += 1;
    }

    fn acts(&self) -> u64 {
        self.done.lock().expect("no panic inside").values().sum()
    }

    fn of(&self, what: &str) -> u64 {
        self.done.lock().expect("no panic inside").get(what).copied().unwrap_or(0)
    }

    fn refused(&self, method: &str, code: u64, reason: &str) {
        // Behind a colon comes what differs each time, such as an id.
        let kind = reason.split(": ").next().unwrap_or_default();
        let what = format!("{method} {code} {}", kind.chars().take(60).collect::<String>());
        *self.refused.lock().expect("no panic inside").entry(what).or_default() += 1;
    }

    fn kills(&self) -> u64 {
        self.kills.load(Ordering::Relaxed)
    }
}

/// What everybody in the churn shares.
struct World {
    origin: String,
    key: String,
    began: Instant,
    over: AtomicBool,
    tally: Tally,
}

impl World {
    async fn token(&self, rng: &mut StdRng, user: &str) -> anyhow::Result<Value> {
        // Others every minute: a room that lives for hours has a stream that takes long to read, which is not what is tested here.
        let minute = self.began.elapsed().as_secs() / 60;
        let path = format!("/v1/rooms/name:churn-{minute}-{}/tokens", rng.random_range(0..ROOMS));
        let body = json!({ "user": user, "create": true });
        http::call_ok(&self.origin, "POST", &path, Some(&self.key), Some(&body)).await
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn churn_leaves_nothing_behind() -> anyhow::Result<()> {
    let setting = |name: &str, otherwise: u64| {
        std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
    };
    let (seconds, seed) = (setting("ROOMLOG_CHURN_SECONDS", 30), setting("ROOMLOG_SEED", 20_261_122));
    println!("seed {seed}, {seconds} s");
    let data = tempfile::tempdir()?;
    let resume = RESUME.as_millis().to_string();
    let flags = [
        "--workers",
        "2",
        "--ip-per-s",
        "1000000",
        "--api-per-s",
        "100000",
        "--log",
        "warn",
        "--resume-ms",
        &resume,
        "--segment-bytes",
        SEGMENT_BYTES,
    ];
    let up = Up::start(data.path(), &flags).await?;
    let world = Arc::new(World {
        origin: up.origin.clone(),
        key: up.key.clone(),
        began: Instant::now(),
        over: AtomicBool::new(false),
        tally: Tally::default(),
    });
    let before = up.held().await?;

    let mut actors = Vec::new();
    for i in 0..SIGNALLERS {
        let rng = StdRng::seed_from_u64(seed ^ i);
        actors.push(tokio::spawn(signaller(world.clone(), rng, i)));
    }
    for i in 0..NATIVES {
        let rng = StdRng::seed_from_u64(seed ^ (1_000 + i));
        actors.push(tokio::spawn(native(world.clone(), rng, i)));
    }
    let mut rng = StdRng::seed_from_u64(seed ^ 2_000);
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    let mut looks = Vec::new();
    let mut next_kill = began + Duration::from_secs(rng.random_range(KILL_EVERY_S));
    while Instant::now() < end {
        tokio::time::sleep(LOOK_EVERY).await;
        looks.push(look(&up, &world, began).await?);
        if actors.iter().any(|actor| actor.is_finished()) {
            break;
        }
        if Instant::now() > next_kill && Instant::now() + RESUME < end {
            next_kill = Instant::now() + Duration::from_secs(rng.random_range(KILL_EVERY_S));
            let workers = up.workers();
            world.tally.kills.fetch_add(1, Ordering::Relaxed);
            kill(workers[rng.random_range(0..workers.len())])?;
        }
    }
    world.over.store(true, Ordering::Relaxed);
    let mut ended = Vec::new();
    for actor in actors {
        ended.push(actor.await?);
    }
    report(&looks, &world.tally);
    ended.into_iter().collect::<anyhow::Result<()>>().context("an actor met what it should not")?;
    let after = at_rest(&up, &before).await?;
    println!("at rest before {before:?}\n        after  {after:?}");

    up.stop().await?;
    let log = std::fs::read_to_string(data.path().join("up.log"))?;
    let said = said(&log);
    for (line, count) in &said {
        println!("{count:>6} × {line}");
    }
    // All verdicts: an hour is long.
    let verdicts = [
        unexplained(&said, &world.tally),
        flat(&looks),
        enough(&world.tally, seconds),
        verified(data.path()),
    ];
    let against: Vec<String> =
        verdicts.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(against.is_empty(), "{}", against.join("\n"));
    Ok(())
}

/// One look at the program, and how much had been done.
struct Look {
    at: Duration,
    up: Held,
    workers: Vec<Held>,
    acts: u64,
}

async fn look(up: &Up, world: &World, began: Instant) -> anyhow::Result<Look> {
    // A worker that was just killed is not looked at.
    let workers = up.workers().into_iter().filter_map(|pid| Held::of(pid).ok()).collect();
    Ok(Look { at: began.elapsed(), up: up.held().await?, workers, acts: world.tally.acts() })
}

fn report(looks: &[Look], tally: &Tally) {
    let step = (looks.len() / 15).max(1);
    for look in looks.iter().step_by(step).chain(looks.last()) {
        let workers: Vec<String> = look
            .workers
            .iter()
            .map(|w| format!("{:.1} MiB {} fds", w.resident as f64 / 1048576.0, w.files))
            .collect();
        println!(
            "{:>6.0} s  {:>7.1} MiB  {:>4} fds  {:>3} threads  {:>5} tasks  {:>7} acts   workers {workers:?}",
            look.at.as_secs_f64(),
            look.up.resident as f64 / 1048576.0,
            look.up.files,
            look.up.threads,
            look.up.tasks,
            look.acts
        );
    }
    println!(
        "done {:?}\nkills {}\nrefused {:#?}",
        tally.done.lock().expect("no panic inside"),
        tally.kills(),
        tally.refused.lock().expect("no panic inside")
    );
}

/// Waits until files, threads and tasks are back to where they were before anybody came.
async fn at_rest(up: &Up, before: &Held) -> anyhow::Result<Held> {
    let end = Instant::now() + 10 * RESUME;
    loop {
        let held = up.held().await?;
        // Threads of tokio's pool for blocking work end 10 s after their last use.
        let back = held.files <= before.files + HANDLES_SLACK
            && held.tasks <= before.tasks + HANDLES_SLACK
            && held.threads <= before.threads + HANDLES_SLACK;
        if back {
            return Ok(held);
        }
        ensure!(Instant::now() < end, "everybody has gone, and this stays: before {before:?}, now {held:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The third quarter of the run against the last.
fn flat(looks: &[Look]) -> anyhow::Result<()> {
    let quarter = looks.len() / 4;
    ensure!(quarter >= 2, "too short a run to compare anything: {} looks", looks.len());
    let median = |looks: &[Look], of: fn(&Held) -> u64| {
        let mut values: Vec<u64> = looks.iter().map(|look| of(&look.up)).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    // In five minutes the first half fills what is bounded: the newest 16 384 commits, the first segments.
    let (early, late) = (&looks[2 * quarter..3 * quarter], &looks[3 * quarter..]);
    let (from, to) = (median(early, |h| h.resident), median(late, |h| h.resident));
    let acts =
        late[late.len() / 2].acts.min(ACTS_KEPT).saturating_sub(early[early.len() / 2].acts.min(ACTS_KEPT));
    let allowed = MEMORY_SLACK + acts * KEPT_AN_ACT;
    println!(
        "memory: {:.1} MiB in the third quarter, {:.1} in the last, {:.1} more allowed",
        from as f64 / 1048576.0,
        to as f64 / 1048576.0,
        allowed as f64 / 1048576.0
    );
    ensure!(to <= from + allowed, "memory grew from {from} to {to} bytes, {allowed} are explained");
    for (what, of) in
        [("files", (|h| h.files) as fn(&Held) -> u64), ("threads", |h| h.threads), ("tasks", |h| h.tasks)]
    {
        let (from, to) = (median(early, of), median(late, of));
        println!("{what}: {from} in the third quarter, {to} in the last");
        // The same number of people are in it at any time, each in another mood.
        ensure!(to <= from + from / 2 + 20, "{what} grew from {from} to {to}");
    }
    let worker = looks.iter().flat_map(|look| &look.workers).map(|w| w.resident).max().unwrap_or(0);
    ensure!(worker <= WORKER_MEMORY, "a worker held {worker} bytes");
    Ok(())
}

/// Warnings and errors of the program, without their times and names, and how often.
fn said(log: &str) -> BTreeMap<String, u64> {
    let mut said = BTreeMap::new();
    let mut plain = String::new();
    let mut escape = false;
    for c in log.chars() {
        match c {
            '\u{1b}' => escape = true,
            'm' if escape => escape = false,
            _ if escape => {}
            c => plain.push(c),
        }
    }
    for line in plain.lines() {
        let level = ["ERROR", "WARN", "panicked"].into_iter().find(|level| line.contains(level));
        let Some(level) = level else { continue };
        let text = line.split_once(level).map_or(line, |(_, text)| text);
        let text: Vec<&str> = text.split(' ').filter(|word| !word.contains('=')).collect();
        *said.entry(format!("{level}{}", text.join(" "))).or_default() += 1;
    }
    said
}

fn unexplained(said: &BTreeMap<String, u64>, tally: &Tally) -> anyhow::Result<()> {
    for (line, count) in said {
        // The first words are what is said; another's may stand in the error behind them.
        let known = EXPLAINED.iter().filter_map(|e| Some((line.find(e.says)?, e)));
        let Some((_, explained)) = known.min_by_key(|(at, _)| *at) else {
            anyhow::bail!("nobody can explain {line:?}, said {count} times")
        };
        let at_most = (explained.at_most)(tally);
        ensure!(*count <= at_most, "{line:?} is explained {at_most} times and was said {count} times");
    }
    Ok(())
}

/// A churn that did nothing proves nothing.
fn enough(tally: &Tally, seconds: u64) -> anyhow::Result<()> {
    let (heard, badly) = (tally.of("native heard"), tally.of(HEARD_BADLY));
    ensure!(badly <= heard / 20 + 2, "{badly} of {heard} streams played less than 0.95 of their frames");
    let away = tally.of("turned away for a second");
    ensure!(away <= (tally.kills() + 1) * SIGNALLERS, "{away} turned away for {} kills", tally.kills());
    for what in [
        "joined",
        "muted",
        "left",
        "vanished",
        "broke off and came back",
        "native joined",
        "native heard",
        "native resumed",
    ] {
        ensure!(tally.of(what) >= seconds / 30, "{what}: {} times in {seconds} s", tally.of(what));
    }
    ensure!(tally.kills() >= seconds / 30, "{} kills", tally.kills());
    Ok(())
}

fn verified(data: &Path) -> anyhow::Result<()> {
    let out = std::process::Command::new(roomlog_tests::roomlog_bin())
        .args(["replay", "--json", "--data"])
        .arg(data)
        .arg("verify")
        .output()?;
    let verified: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| String::from_utf8_lossy(&out.stderr).into_owned())?;
    println!("verify: {}", verified["summary"]);
    ensure!(verified["clean"] == true, "verify found {:#}", verified["findings"]);
    Ok(())
}

/// Whether the gateway said 503 and `Retry-After` before the upgrade.
fn turned_away(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
            println!("turned away: {:?}", answer.body().as_deref().map(String::from_utf8_lossy));
            answer.status() == 503 && answer.headers().contains_key("retry-after")
        }
        _ => false,
    }
}

/// Comes and goes, over and over; signals as a page does, and sends nothing.
async fn signaller(world: Arc<World>, mut rng: StdRng, number: u64) -> anyhow::Result<()> {
    while !world.over() {
        let token = world.token(&mut rng, &format!("signaller-{number}")).await?;
        let url = token["wsUrl"].as_str().context("no wsUrl")?.to_owned();
        let entering = Peer::enter(&url, token["token"].as_str().context("no token")?, Policy::Accept).await;
        // Both workers may be dead at once: "1005 … try again in a moment" is the answer then.
        let (mut peer, opened) = match entering {
            Ok(entered) => entered,
            Err(error) if error.to_string().contains("1005") => {
                world.tally.did("told to try again in a moment");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
            // Before there is a socket the same is said by HTTP, with the time to wait.
            Err(error) if turned_away(&error) => {
                world.tally.did("turned away for a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        // A worker may die under any of these: refusals are counted, and the client goes on as a page would, or leaves.
        if let Ok((send, _)) = peer.join("Sig").await {
            world.tally.did("joined");
            let made = if rng.random_bool(0.7) { peer.produce_video(&send, 1_000).await.ok() } else { None };
            for _ in 0..rng.random_range(0..8) {
                tokio::time::sleep(Duration::from_millis(rng.random_range(10..600))).await;
                let (method, data) = match (&made, rng.random_range(0..4)) {
                    (Some(producer), 0) => ("pauseProducer", json!({ "producerId": producer })),
                    (Some(producer), 1) => ("resumeProducer", json!({ "producerId": producer })),
                    (_, 2) => ("getRouterRtpCapabilities", json!({})),
                    _ => (
                        "changeDisplayName",
                        json!({ "displayName": format!("Sig {}", rng.random_range(0..1_000)) }),
                    ),
                };
                match peer.try_ask(method, data).await? {
                    Ok(_) => world.tally.did(if method.ends_with("Producer") { "muted" } else { "asked" }),
                    Err((code, reason)) => world.tally.refused(method, code, &reason),
                }
            }
        } else {
            world.tally.did("did not get in, as a worker died");
        }
        match rng.random_range(0..10) {
            0..5 => {
                peer.leave().await;
                world.tally.did("left");
            }
            5..7 => {
                peer.break_off().await;
                world.tally.did("vanished");
            }
            _ => {
                let broke_off = Instant::now();
                peer.break_off().await;
                tokio::time::sleep(RESUME.mul_f64(rng.random_range(0.0..0.6))).await;
                let mut back = Peer::open(&format!("{url}?resume=1"), Policy::Accept).await?;
                let resume = json!({ "clientId": opened["clientId"], "roomId": opened["roomId"], "resumeKey": opened["resumeKey"], "since": opened["v"] });
                match back.try_ask("resume", resume).await? {
                    Ok(_) => world.tally.did("broke off and came back"),
                    // The machine stood still until the time was over.
                    Err((1002, _)) if broke_off.elapsed() >= RESUME => {
                        world.tally.did("came back too late");
                        continue;
                    }
                    Err((code, reason)) => {
                        anyhow::bail!("resume after {:?}: {code} {reason}", broke_off.elapsed())
                    }
                }
                back.leave().await;
            }
        }
    }
    Ok(())
}

/// The same with real packets: what it hears has to play.
async fn native(world: Arc<World>, mut rng: StdRng, number: u64) -> anyhow::Result<()> {
    while !world.over() {
        let token = world.token(&mut rng, &format!("native-{number}")).await?;
        // Its worker may die while it comes in, before it can know of `mediaMoved`.
        let Ok(peer) = NativePeer::join(&world.origin, &token, "Nat", Publish::BOTH).await else {
            world.tally.did("native did not get in, as a worker died");
            continue;
        };
        world.tally.did("native joined");
        for _ in 0..rng.random_range(2..8) {
            match rng.random_range(0..5) {
                0 => peer.break_socket(),
                1 | 2 => {
                    let kind = if rng.random() { Kind::Audio } else { Kind::Video };
                    // Refused while its media moves.
                    let muted = peer.mute(kind, rng.random()).await.is_ok();
                    world.tally.did(if muted { "native muted" } else { "native mute refused" });
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(200..2_000))).await;
        }
        let counts = peer.counts();
        if counts.resumed > 0 {
            world.tally.did("native resumed");
        }
        if counts.rebuilt > 0 {
            world.tally.did("native rebuilt its media");
        }
        if let Some(ended) = counts.ended {
            // Its socket broke while its media was being moved, and it came back after the time to resume: a page takes a new token.
            if ended.contains("is not in this room") {
                world.tally.did("native came back too late");
                continue;
            }
            anyhow::bail!("a native peer ended: {ended}");
        }
        for stream in peer.streams() {
            let received = stream.received();
            ensure!(received.foreign() == 0, "packets that nobody sent");
            if received.complete() >= 30 {
                ensure!(
                    received.share() >= 0.5,
                    "{:?} plays {:.2} of {} frames",
                    received.kind(),
                    received.share(),
                    received.complete()
                );
                world.tally.did("native heard");
                if received.share() < 0.95 {
                    world.tally.did(HEARD_BADLY);
                }
            }
        }
        if rng.random_bool(0.8) {
            peer.leave().await;
            world.tally.did("native left");
        } else {
            peer.vanish().await;
            world.tally.did("native vanished");
        }
    }
    Ok(())
}
