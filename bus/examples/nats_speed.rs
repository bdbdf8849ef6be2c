//! How fast the journal in JetStream is: appends, reads, following, and what following costs.
//!
//! `cargo run --release -p roomlog-bus --example nats_speed -- REPLICAS URL...` against servers that hold nothing else: the streams are made
//! if they are not there, and filled.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on should stop")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Cause, Commit, CommitId, Head, Payload, RawEvent, StreamId, StreamKind, Writer},
    ids::{Epoch, Incarnation, Version},
    journal::{Cursor, Followed, Journal, read_all},
    nats::{JetStreamSettings, NatsConnection, NatsSettings},
    time::Timestamp,
};

/// Commits a stream gets, as in a room of a few people.
const EACH: usize = 100;

fn commit(stream: &StreamId, head: Option<Head>, rng: &mut StdRng) -> Commit {
    let now = Timestamp(1_795_359_845_000_000);
    let mut data = vec![0; 300];
    rng.fill_bytes(&mut data);
    Commit {
        id: CommitId::new(now, rng),
        prev: head.map(|head| head.id),
        stream: stream.clone(),
        version: head.map_or(Version(1), |head| head.version.next()),
        time: now,
        writer: Writer { node: "ec.speed".parse().unwrap(), incarnation: Incarnation(1) },
        epoch: Epoch(1),
        cause: Cause::of("request"),
        command: Payload::encode(&serde_bytes::ByteBuf::from(data)),
        facts: Payload::default(),
        events: vec![RawEvent::new("X", 1, Payload::encode(&1))],
        more: Default::default(),
    }
}

/// Fills one stream after its end.
async fn fill(journal: Arc<dyn Journal>, stream: StreamId, commits: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut head = journal.head(&stream).await.unwrap();
    for _ in 0..commits {
        let next = commit(&stream, head, &mut rng);
        head = Some(next.head());
        journal.append(next).await.unwrap();
    }
}

/// Processor time of this process so far (`proc(5)`: fields 14 and 15 of stat, in hundredths of a second).
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

fn rate(what: &str, count: usize, since: Instant) {
    let took = since.elapsed();
    println!("{what:<52} {count:>7} in {took:>9.2?}  {:>9.0}/s", count as f64 / took.as_secs_f64());
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let replicas =
        arguments.next().and_then(|n| n.parse().ok()).expect("first the number of replicas, then URLs");
    let connection = NatsConnection::connect(NatsSettings::new(arguments)).await.unwrap();
    let settings = JetStreamSettings { replicas, ..JetStreamSettings::default() };
    let journal = connection.journal(settings.clone()).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "ids must differ from run to run")]
    let run = rand::rng().next_u64();
    let name = |i: usize| StreamId::new(StreamKind::Room, &format!("r{run:x}-{i}")).unwrap();

    let since = Instant::now();
    fill(journal.clone(), name(0), 500, run).await;
    rate("appends, one after another", 500, since);

    let streams = 200;
    let since = Instant::now();
    let fills = (1..=streams).map(|i| tokio::spawn(fill(journal.clone(), name(i), EACH, run ^ i as u64)));
    for filled in fills.collect::<Vec<_>>() {
        filled.await.unwrap();
    }
    rate("appends, 200 streams at once", streams * EACH, since);

    // A process that knows nothing yet, as after a takeover.
    let cold = NatsConnection::connect(connection.settings().clone()).await.unwrap();
    let cold = cold.journal(settings).await.unwrap();
    let since = Instant::now();
    assert_eq!(read_all(&*cold, &name(1), Version(1)).await.unwrap().len(), EACH);
    rate("commits read, one stream of 100", EACH, since);
    let since = Instant::now();
    let reads = stream::iter(1..=streams).map(|i| {
        let (cold, stream) = (cold.clone(), name(i));
        async move { assert_eq!(read_all(&*cold, &stream, Version(1)).await.unwrap().len(), EACH) }
    });
    reads.buffer_unordered(64).collect::<Vec<()>>().await;
    rate("commits read, 200 streams of 100, 64 at once", streams * EACH, since);
    let since = Instant::now();
    let heads = stream::iter(1..=streams).map(|i| {
        let (cold, stream) = (cold.clone(), name(i));
        async move { assert!(cold.head(&stream).await.unwrap().is_some()) }
    });
    heads.buffer_unordered(64).collect::<Vec<()>>().await;
    rate("heads asked for, 64 at once", streams, since);

    let (since, busy) = (Instant::now(), cpu());
    let mut follow = cold.follow(Cursor::default()).await.unwrap();
    let mut followed = 0;
    while let Some(Followed::Entry(_)) = follow.next().await {
        followed += 1;
    }
    rate("commits followed from the beginning", followed, since);
    let busy = cpu() - busy;
    let tenth = 0.1 * followed as f64 / busy.as_secs_f64();
    println!("following took {busy:?} of processor time: a tenth of a core at {tenth:.0} commits/s");
}
