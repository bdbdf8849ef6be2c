//! What a repair of the log in JetStream means to those who have it open: appends go again, followers begin anew, old cursors are of no use.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{path::Path, time::Duration};

use common::{commit, copy, stream};
use rand::{SeedableRng, rngs::StdRng};
use roomlog_bus::{
    commit::{Commit, Head},
    conformance::nats_server::{NatsServer, Options, Servers},
    ids::Version,
    journal::{AppendError, Cursor, Follow, Followed, Journal, ReadError, follow_again, read_all},
    nats::{JetStreamJournal, JetStreamSettings, NatsConnection, NatsSettings},
    repair::{Verdict, apply, look},
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn open(server: &NatsServer) -> JetStreamJournal {
    let connection = NatsConnection::connect(NatsSettings::new([server.url()])).await.unwrap();
    let settings = JetStreamSettings {
        partitions: 2,
        truncation_after: Duration::from_secs(1),
        watch_every: Duration::from_secs(1),
        ..JetStreamSettings::default()
    };
    connection.jetstream(settings).await.unwrap()
}

async fn next(follow: &mut Follow) -> Followed {
    tokio::time::timeout(PATIENCE, follow.next()).await.expect("something is told").expect("not closed")
}

fn put_back(server: &mut NatsServer, older: &Path) {
    server.kill();
    let store = server.folder().join("store");
    std::fs::remove_dir_all(&store).unwrap();
    copy(older, &store);
    server.start_again();
}

async fn append(journal: &JetStreamJournal, commit: &Commit) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = journal.append(commit.clone()).await {
        assert!(matches!(error, AppendError::Unavailable { .. } | AppendError::Unknown { .. }), "{error}");
        assert!(tokio::time::Instant::now() < until, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_repair_appends_go_again_and_everything_is_followed_anew() {
    let Some(servers) = Servers::find() else { return };
    for binary in [&servers.oldest, &servers.newest] {
        let folder = tempfile::tempdir().unwrap();
        let mut server = NatsServer::start(binary, &folder.path().join("server"), &Options::default());
        let mut rng = StdRng::seed_from_u64(1);
        let room = stream("a");
        let elsewhere =
            (0..).map(|n| stream(format!("b{n}"))).find(|s| s.partition(2) != room.partition(2)).unwrap();
        let mut head: Option<Head> = None;
        let mut chain = Vec::new();
        for _ in 0..8 {
            let next = commit(&room, head, 100, &mut rng);
            head = Some(next.head());
            chain.push(next);
        }
        let journal = open(&server).await;
        append(&journal, &commit(&elsewhere, None, 100, &mut rng)).await;
        for commit in &chain[..3] {
            append(&journal, commit).await;
        }
        server.kill();
        copy(&server.folder().join("store"), &folder.path().join("older"));
        server.start_again();
        for commit in &chain[3..] {
            append(&journal, commit).await;
        }
        let mut follow = journal.follow(Cursor::default()).await.unwrap();
        let mut cursor = Cursor::default();
        loop {
            match next(&mut follow).await {
                Followed::Entry(entry) => cursor = entry.cursor,
                Followed::CaughtUp => break,
                Followed::Broken(error) => panic!("{error}"),
            }
        }
        assert!(!journal.is_replaced(&cursor).await);

        put_back(&mut server, &folder.path().join("older"));
        let mut alarm = journal.truncations();
        tokio::time::timeout(PATIENCE, alarm.wait_for(|found| !found.is_empty())).await.unwrap().unwrap();
        let Followed::Broken(broken) = next(&mut follow).await else { panic!("the follower goes on") };

        // What an operator does, from elsewhere.
        let copied: Vec<_> = chain[2..].iter().cloned().map(std::sync::Arc::new).collect();
        let operator = open(&server).await;
        let compared = look(&operator, &copied).await.unwrap();
        assert_eq!((compared[0].verdict, compared[0].suffix.len()), (Verdict::Ahead, 5));
        assert_eq!(apply(&operator, &compared).await.unwrap().0, 5);
        assert!(!journal.truncations().borrow().is_empty(), "still closed: nobody has said that it is over");
        operator.repaired().await.unwrap();

        tokio::time::timeout(PATIENCE, alarm.wait_for(Vec::is_empty)).await.unwrap().unwrap();
        let more = commit(&room, head, 100, &mut rng);
        append(&journal, &more).await;
        let old = cursor.clone();
        assert!(journal.is_replaced(&old).await);
        assert!(matches!(journal.follow(old).await, Err(ReadError::Damaged { .. })), "an old cursor");
        let mut follow =
            tokio::time::timeout(PATIENCE, follow_again(&journal, &mut cursor, broken)).await.unwrap();
        assert_eq!(cursor, Cursor::default());
        let mut got = Vec::new();
        loop {
            match next(&mut follow).await {
                Followed::Entry(entry) => {
                    cursor = entry.cursor;
                    got.extend((entry.commit.stream == room).then(|| Commit::clone(&entry.commit)));
                }
                Followed::CaughtUp => break,
                Followed::Broken(error) => panic!("{error}"),
            }
        }
        chain.push(more);
        assert_eq!(got, chain, "everything comes again, in order");
        assert_eq!(cursor, journal.tail().await.unwrap());
        assert!(journal.follow(cursor.clone()).await.is_ok(), "a cursor of now");
        assert!(open(&server).await.follow(cursor.clone()).await.is_ok(), "of whoever starts later, too");

        // A second one is another.
        operator.repaired().await.unwrap();
        let fresh = open(&server).await;
        assert!(fresh.is_replaced(&cursor).await);
        let after = Version(chain.last().unwrap().version.0);
        assert_eq!(read_all(&fresh, &room, after).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_commit_at_a_known_version_or_none_is_a_truncation_at_a_start() {
    let Some(servers) = Servers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = NatsServer::start(&servers.newest, folder.path(), &Options::default());
    let mut rng = StdRng::seed_from_u64(2);
    let room = stream("a");
    let first = commit(&room, None, 100, &mut rng);
    append(&open(&server).await, &first).await;
    let (kept, lost) = (first.clone(), commit(&room, Some(first.head()), 100, &mut rng));
    let other = commit(&room, Some(first.head()), 100, &mut rng);

    let journal = open(&server).await;
    journal.expect(&[kept.clone().into()]).await.unwrap();
    assert!(journal.truncations().borrow().is_empty());
    journal.expect(&[kept.clone().into(), lost.clone().into()]).await.unwrap();
    let reason = journal.truncations().borrow()[0].reason.clone();
    assert!(reason.contains("ends before version"), "{reason}");
    assert!(matches!(journal.append(lost.clone()).await, Err(AppendError::Unavailable { .. })));

    // The same once the sequence has been used again.
    append(&open(&server).await, &other).await;
    let journal = open(&server).await;
    journal.expect(&[kept.into(), lost.into()]).await.unwrap();
    let reason = journal.truncations().borrow()[0].reason.clone();
    assert!(reason.contains("was acknowledged there"), "{reason}");
}
