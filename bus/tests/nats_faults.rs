//! The engines on NATS under fault: servers that die, stand still, forget, are too old or differently configured.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use roomlog_bus::{
    bus::{Bus, Headers, Message, RequestError, SUBSCRIPTION_QUEUE},
    commit::{Commit, Head, StreamId, StreamKind},
    conformance::nats_server::{NatsServer, Options, Servers},
    ids::Version,
    journal::{AppendError, Cursor, Follow, Followed, Journal, ReadError, read_all},
    nats::{Credentials, JetStreamJournal, JetStreamSettings, NatsConnection, NatsError, NatsSettings, Tls},
    subject::{Pattern, Subject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

mod common;

/// Far above what anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The newest server in a folder of its own, or nothing where there is none.
fn server(options: &Options) -> Option<(tempfile::TempDir, NatsServer)> {
    let folder = tempfile::tempdir().unwrap();
    let server = NatsServer::start(&Servers::find()?.newest, folder.path(), options);
    Some((folder, server))
}

async fn connect(url: &str) -> NatsConnection {
    NatsConnection::connect(NatsSettings::new([url])).await.expect("connected")
}

async fn open(connection: &NatsConnection) -> JetStreamJournal {
    connection.jetstream(settings()).await.expect("opened")
}

fn settings() -> JetStreamSettings {
    JetStreamSettings {
        ack_timeout: Duration::from_millis(700),
        api_timeout: Duration::from_millis(700),
        truncation_after: Duration::from_millis(1_500),
        watch_every: Duration::from_millis(300),
        ..JetStreamSettings::default()
    }
}

/// Commits for one stream that join up.
struct Pen {
    stream: StreamId,
    head: Option<Head>,
    rng: StdRng,
}

impl Pen {
    fn new(name: &str) -> Self {
        let seed = name.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        Self {
            stream: StreamId::new(StreamKind::Room, name).unwrap(),
            head: None,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    fn draft(&mut self) -> Commit {
        common::commit(&self.stream, self.head, 200, &mut self.rng)
    }

    async fn append(&mut self, journal: &dyn Journal) -> Commit {
        let commit = self.draft();
        journal.append(commit.clone()).await.unwrap_or_else(|error| panic!("append: {error}"));
        self.head = Some(commit.head());
        commit
    }

    /// Appends, trying again as long as the journal is away.
    async fn append_patiently(&mut self, journal: &dyn Journal) -> Commit {
        let commit = self.draft();
        let until = Instant::now() + PATIENCE;
        loop {
            match journal.append(commit.clone()).await {
                Ok(()) => break,
                Err(AppendError::Unavailable { .. } | AppendError::Unknown { .. })
                    if Instant::now() < until => {}
                Err(error) => panic!("append: {error}"),
            }
        }
        self.head = Some(commit.head());
        commit
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing for {PATIENCE:?}"))
}

async fn entry(follow: &mut Follow) -> (Commit, Cursor) {
    loop {
        match soon("a followed commit", follow.next()).await {
            Some(Followed::Entry(entry)) => return (Commit::clone(&entry.commit), entry.cursor),
            Some(Followed::CaughtUp) => {}
            other => panic!("a commit should come, this did: {other:?}"),
        }
    }
}

fn subject(text: &str) -> Subject {
    Subject::new(text).unwrap()
}

fn message(on: &str, payload: &'static str) -> Message {
    Message { subject: subject(on), reply: None, headers: Headers::new(), payload: payload.into() }
}

/// Calls the JetStream API past the engine.
async fn raw(url: &str, call: &str, body: serde_json::Value) -> serde_json::Value {
    let client = async_nats::connect(url).await.unwrap();
    let answer = client.request(format!("$JS.API.{call}"), body.to_string().into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

// ---- What is refused at the door.

#[tokio::test]
async fn a_server_before_2_10_is_refused_with_a_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let info = r#"INFO {"server_id":"OLD","server_name":"old","version":"2.9.25","go":"go1","host":"127.0.0.1","port":4222,"max_payload":1048576,"proto":1,"headers":true}"#;
        socket.write_all(format!("{info}\r\n").as_bytes()).await.unwrap();
        let mut buffer = [0; 4096];
        while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            socket.write_all(b"PONG\r\n").await.unwrap();
        }
    });
    let refused =
        NatsConnection::connect(NatsSettings::new([format!("nats://{address}")])).await.err().unwrap();
    assert!(matches!(&refused, NatsError::TooOld { version, .. } if version == "2.9.25"), "{refused}");
    assert!(refused.to_string().contains("needs 2.10 or newer, because"), "{refused}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let url = format!("nats://127.0.0.1:{}", roomlog_bus::conformance::nats_server::free_port());
    let refused = NatsConnection::connect(NatsSettings::new([&url])).await.err().unwrap().to_string();
    assert!(refused.contains(&url) && refused.contains("refused"), "{refused}");
    let none = NatsConnection::connect(NatsSettings::new(Vec::<String>::new())).await.err().unwrap();
    assert!(matches!(none, NatsError::Settings(_)), "{none}");
}

#[tokio::test]
async fn a_server_without_jetstream_has_a_bus_and_no_journal() {
    let Some((_folder, server)) = server(&Options { jetstream: false, ..Options::default() }) else { return };
    let connection = connect(&server.url()).await;
    connection.bus().publish(message("any.thing", "1")).await.unwrap();
    let refused = connection.journal(settings()).await.err().unwrap();
    assert!(matches!(refused, NatsError::JetStreamOff { .. }), "{refused}");
    assert!(refused.to_string().contains("jetstream { store_dir"), "{refused}");
}

#[tokio::test]
async fn a_stream_that_is_configured_otherwise_is_named_with_what_differs() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    open(&connection).await;
    let mut config =
        raw(&server.url(), "STREAM.INFO.ROOMLOG_2", serde_json::json!({})).await["config"].clone();
    config["max_age"] = 3_600_000_000_000u64.into();
    config["discard"] = "old".into();
    let updated = raw(&server.url(), "STREAM.UPDATE.ROOMLOG_2", config).await;
    assert!(updated["error"].is_null(), "{updated}");
    let refused = connection.journal(settings()).await.err().unwrap();
    let NatsError::Differs { stream, differences } = &refused else { panic!("{refused}") };
    assert_eq!(stream, "ROOMLOG_2");
    let expected = ["discard is \"old\", it has to be \"new\"", "max_age is 3600s, it has to be 0ns"];
    assert_eq!(differences.iter().collect::<BTreeSet<_>>(), expected.map(String::from).iter().collect());
}

#[tokio::test]
async fn another_number_of_partitions_is_refused() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    open(&connection).await;
    for asked in [1, 3, 5] {
        let refused =
            connection.journal(JetStreamSettings { partitions: asked, ..settings() }).await.err().unwrap();
        assert!(matches!(&refused, NatsError::Partitions { recorded, .. } if recorded == "4"), "{refused}");
    }
}

#[tokio::test]
async fn who_only_reads_makes_nothing_and_takes_the_log_as_it_is() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    let refused = connection.existing_jetstream(settings()).await.err().unwrap();
    assert!(matches!(&refused, NatsError::NoLog { stream, .. } if stream == "ROOMLOG_0"), "{refused}");
    let made = raw(&server.url(), "STREAM.NAMES", serde_json::json!({})).await;
    assert_eq!(made["total"], 0, "{made}");

    let three = JetStreamSettings { partitions: 3, ..settings() };
    let commit = Pen::new("a").append(&connection.jetstream(three).await.unwrap()).await;
    let read = connection.existing_jetstream(settings()).await.unwrap();
    assert_eq!(read_all(&read, &commit.stream, Version(1)).await.unwrap(), [Arc::new(commit)]);
    assert_eq!(read.tail().await.unwrap().0.len(), 3);
}

#[tokio::test]
async fn nodes_may_make_the_streams_at_the_same_time() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let opening = (0..6).map(|_| {
        let url = server.url();
        tokio::spawn(async move { open(&connect(&url).await).await })
    });
    let mut pen = Pen::new("shared");
    for opened in opening.collect::<Vec<_>>() {
        pen.append(&opened.await.unwrap()).await;
    }
}

#[test]
fn the_shipped_configuration_is_valid_for_both_servers() {
    let Some(servers) = Servers::find() else { return };
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats/roomlog.conf");
    assert!(std::fs::read_to_string(&shipped).unwrap().contains("\n  sync_interval: always\n"));
    for binary in [servers.oldest, servers.newest] {
        let checked = std::process::Command::new(&binary).arg("-t").arg("-c").arg(&shipped).output().unwrap();
        assert!(
            checked.status.success(),
            "{}: {}",
            binary.display(),
            String::from_utf8_lossy(&checked.stderr)
        );
    }
}

// ---- What only committed events may do.

#[tokio::test]
async fn a_refused_append_is_never_seen_by_subscribers() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let (one, two) = (connect(&server.url()).await, connect(&server.url()).await);
    let (a, b) = (open(&one).await, open(&two).await);
    let mut events = one.bus().subscribe(Pattern::new("roomlog.ev.>").unwrap(), None).await.unwrap();
    let mut writes = one.bus().subscribe(Pattern::new("roomlog.log.>").unwrap(), None).await.unwrap();
    let mut pen = Pen::new("seen");
    let first = pen.append(&a).await;
    b.head(&pen.stream).await.unwrap();
    // What b knows is old now: only the server can refuse what it appends.
    let late = pen.draft();
    let second = pen.append(&a).await;
    let refused = b.append(late).await;
    assert_eq!(
        refused,
        Err(AppendError::Conflict { stream: pen.stream.clone(), version: second.version, head: pen.head })
    );
    let third = pen.append(&b).await;
    for expected in [&first, &second, &third] {
        let event = soon("an event", events.next()).await.unwrap();
        assert_eq!(event.subject, Subject::events(&pen.stream));
        assert_eq!(Commit::decode(&event.payload).unwrap(), *expected);
        assert!(
            event.headers.iter().any(|(name, value)| &**name == "Roomlog-Type" && value.starts_with('X'))
        );
    }
    // The write side shows all four: the refused one was really sent.
    for _ in 0..4 {
        soon("a write", writes.next()).await.unwrap();
    }
    assert!(
        tokio::time::timeout(Duration::from_millis(200), events.next()).await.is_err(),
        "a refused commit was shown"
    );
}

// ---- Connections that break.

/// Passes bytes between clients and a server until it is told to swallow what the server says, then breaks those connections.
struct Proxy {
    url: String,
    mute: Arc<AtomicBool>,
}

impl Proxy {
    async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let mute = Arc::new(AtomicBool::new(false));
        let muted = mute.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let muted = muted.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 65_536];
                    loop {
                        match from_server.read(&mut buffer).await {
                            Ok(0) | Err(_) => return,
                            Ok(_) if muted.load(Ordering::SeqCst) => {}
                            Ok(read) => to_client.write_all(&buffer[..read]).await.unwrap(),
                        }
                    }
                });
            }
        });
        Self { url, mute }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_folder_cannot_be_made_just_now_is_made_later() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let account = server.folder().join("store/jetstream/$G");
    std::fs::create_dir_all(&account).unwrap();
    // The server fails at it once, and clears it away: as it does when it still clears away a stream of that name.
    std::fs::write(account.join("streams"), "no folder").unwrap();
    let journal = open(&connect(&server.url()).await).await;
    Pen::new("after").append(&journal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_whose_acknowledgement_is_lost_is_unknown_and_then_settled() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let proxy = Proxy::before(server.port()).await;
    let journal = open(&connect(&proxy.url).await).await;
    let mut pen = Pen::new("lost-ack");
    pen.append(&journal).await;
    let commit = pen.draft();
    proxy.mute.store(true, Ordering::SeqCst);
    assert_eq!(
        journal.append(commit.clone()).await,
        Err(AppendError::Unknown { stream: pen.stream.clone() })
    );
    proxy.mute.store(false, Ordering::SeqCst);
    let until = Instant::now() + PATIENCE;
    while let Err(error) = journal.append(commit.clone()).await {
        assert!(matches!(error, AppendError::Unknown { .. } | AppendError::Unavailable { .. }), "{error}");
        assert!(Instant::now() < until, "{error}");
    }
    pen.head = Some(commit.head());
    let stored = read_all(&journal, &pen.stream, Version(1)).await.unwrap();
    assert_eq!(stored.len(), 2, "it was stored once");
    assert_eq!(*stored[1], commit);
    pen.append(&journal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_whose_answer_is_lost_is_asked_again_within_its_time() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let proxy = Proxy::before(server.port()).await;
    let connection = connect(&proxy.url).await;
    let journal = connection.jetstream(JetStreamSettings::default()).await.unwrap();
    let mut pen = Pen::new("asked-again");
    pen.append(&journal).await;
    let commit = pen.draft();
    proxy.mute.store(true, Ordering::SeqCst);
    let read = tokio::spawn({
        let (journal, stream) = (journal.clone(), pen.stream.clone());
        async move { journal.read(&stream, Version(1), 1).await }
    });
    let append = tokio::spawn({
        let (journal, commit) = (journal.clone(), commit.clone());
        async move { journal.append(commit).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.mute.store(false, Ordering::SeqCst);
    assert_eq!(read.await.unwrap().unwrap().len(), 1);
    append.await.unwrap().unwrap();
    let stored = read_all(&journal, &pen.stream, Version(1)).await.unwrap();
    assert_eq!(stored.len(), 2, "it was sent twice and stored once");
    assert_eq!(*stored[1], commit);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_commit_that_got_lost_on_the_way_to_a_follower_is_noticed() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let proxy = Proxy::before(server.port()).await;
    let connection = connect(&proxy.url).await;
    let mut follow = open(&connection).await.follow(Cursor::default()).await.unwrap();
    assert_eq!(soon("caught up", follow.next()).await, Some(Followed::CaughtUp));
    let direct = open(&connect(&server.url()).await).await;
    let mut pen = Pen::new("lost-tail");
    for commits in 1..4 {
        proxy.mute.store(true, Ordering::SeqCst);
        let mut sent = Vec::new();
        for _ in 0..commits {
            sent.push(pen.append(&direct).await);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        proxy.mute.store(false, Ordering::SeqCst);
        if commits == 2 {
            // Not the last ones now: the next comes after a gap.
            sent.push(pen.append(&direct).await);
        }
        for commit in sent {
            assert_eq!(entry(&mut follow).await.0, commit);
        }
    }
    assert_eq!(connection.state().borrow().connects(), 1, "the same connection: only messages were lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_followers_and_subscribers_go_on() {
    let Some((_folder, mut server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    let journal = open(&connection).await;
    let bus = connection.bus();
    let mut subscription = bus.subscribe(Pattern::new("still.here").unwrap(), None).await.unwrap();
    let mut follow = journal.follow(Cursor::default()).await.unwrap();
    let mut pens: Vec<Pen> = (0..8).map(|i| Pen::new(&format!("restart-{i}"))).collect();
    let mut expected = BTreeSet::new();
    let mut got = Vec::new();
    let mut cursor = Cursor::default();
    for round in 0..3 {
        for pen in &mut pens {
            expected.insert(pen.append_patiently(&journal).await.id);
        }
        // Some of it is still to be given when the server dies.
        for _ in 0..4 {
            let (commit, at) = entry(&mut follow).await;
            got.push(commit.id);
            cursor = at;
        }
        if round < 2 {
            let mut state = connection.state();
            state.mark_unchanged();
            server.start_again();
            soon(
                "a new connection",
                state.wait_for(|state| state.connects() == round + 2 && state.is_connected()),
            )
            .await
            .unwrap();
        }
    }
    while got.len() < expected.len() {
        let (commit, at) = entry(&mut follow).await;
        got.push(commit.id);
        cursor = at;
    }
    assert_eq!(got.iter().copied().collect::<BTreeSet<_>>(), expected, "a gap or a repeat");
    assert_eq!(got.len(), expected.len(), "a repeat");
    assert_eq!(cursor, journal.tail().await.unwrap());
    bus.publish(message("still.here", "yes")).await.unwrap();
    assert_eq!(soon("a message", subscription.next()).await.unwrap().payload, "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_noticed_and_nothing_piles_up() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    let (bus, journal) = (connection.bus(), open(&connection).await);
    let mut subscription = bus.subscribe(Pattern::new("late.or.never").unwrap(), None).await.unwrap();
    let _responder = bus.subscribe(Pattern::new("ask.it").unwrap(), None).await.unwrap();
    let mut pen = Pen::new("still");
    pen.append(&journal).await;
    let mut state = connection.state();
    server.pause();
    let asked = {
        let bus = bus.clone();
        tokio::spawn(async move { bus.request(subject("ask.it"), "".into(), PATIENCE).await })
    };
    let since = Instant::now();
    soon("the loss", state.wait_for(|state| !state.is_connected())).await.unwrap();
    let noticed = since.elapsed();
    assert!(noticed < Duration::from_millis(3_500), "a dead server was noticed after {noticed:?}");
    assert!(!*bus.connected().borrow());
    let broken = soon("the request", asked).await.unwrap();
    assert!(matches!(broken, Err(RequestError::Disconnected(_))), "{broken:?}");
    for _ in 0..100 {
        bus.publish(message("late.or.never", "x")).await.expect_err("there is no connection");
    }
    assert!(bus.subscribe(Pattern::new("x").unwrap(), None).await.is_err());
    let refused = journal.append(pen.draft()).await;
    assert!(matches!(refused, Err(AppendError::Unavailable { .. })), "{refused:?}");
    server.resume();
    soon("the return", state.wait_for(|state| state.is_connected())).await.unwrap();
    pen.head = journal.head(&pen.stream).await.unwrap();
    pen.append(&journal).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(300), subscription.next()).await.is_err(),
        "it was sent late"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_subscriber_misses_is_counted() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    let bus = connection.nats_bus();
    let mut slow = bus.subscribe(Pattern::new("too.many").unwrap(), None).await.unwrap();
    for _ in 0..SUBSCRIPTION_QUEUE + 500 {
        bus.publish(message("too.many", "x")).await.unwrap();
    }
    let until = Instant::now() + PATIENCE;
    while bus.dropped() < 500 {
        assert!(Instant::now() < until, "{} dropped", bus.dropped());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..SUBSCRIPTION_QUEUE {
        soon("what fitted", slow.next()).await.unwrap();
    }
    assert_eq!(bus.dropped(), 500);
    assert!(tokio::time::timeout(Duration::from_millis(100), slow.next()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_that_loses_a_leader_under_load_nothing_acknowledged_is_lost() {
    let Some(servers) = Servers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = NatsServer::cluster(&servers.newest, folder.path(), 3, &Options::default());
    let urls: Vec<String> = cluster.iter().map(NatsServer::url).collect();
    let settings = JetStreamSettings { replicas: 3, ..JetStreamSettings::default() };
    let connection = NatsConnection::connect(NatsSettings::new(&urls)).await.unwrap();
    let journal = connection.jetstream(settings).await.unwrap();
    let mut follow = journal.follow(Cursor::default()).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let (journal, stop) = (journal.clone(), stop.clone());
            tokio::spawn(async move {
                let mut pen = Pen::new(&format!("load-{w}"));
                let mut commits = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    commits.push(pen.append_patiently(&journal).await);
                }
                (pen.stream, commits)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let info = raw(&urls[0], "STREAM.INFO.ROOMLOG_0", serde_json::json!({})).await;
    let leader: usize = info["config"]["name"]
        .as_str()
        .and(info["cluster"]["leader"].as_str())
        .and_then(|name| name.strip_prefix('n')?.parse().ok())
        .expect("the stream has a leader");
    cluster[leader].kill();
    tokio::time::sleep(Duration::from_secs(5)).await;
    stop.store(true, Ordering::SeqCst);
    let mut expected = BTreeSet::new();
    for writer in writers {
        let (stream, commits) = soon("a writer", writer).await.unwrap();
        let stored = read_all(&journal, &stream, Version(1)).await.unwrap();
        let stored: Vec<Commit> = stored.iter().map(|commit| Commit::clone(commit)).collect();
        assert!(
            stored == commits,
            "{stream}: {} were acknowledged, {} are stored",
            commits.len(),
            stored.len()
        );
        assert!(commits.len() > 10, "{stream} went on after the leader was gone");
        expected.extend(commits.iter().map(|commit| commit.id));
    }
    let mut got = BTreeSet::new();
    while got.len() < expected.len() {
        assert!(got.insert(entry(&mut follow).await.0.id), "a repeat");
    }
    assert_eq!(got, expected);
    assert!(journal.truncations().borrow().is_empty(), "a change of leader is no truncation");
}

// ---- A cluster that lost what it acknowledged.

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_put_back_to_an_older_state_is_noticed_and_takes_no_appends() {
    let Some((folder, mut server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    let journal = open(&connection).await;
    let (mut pen, mut other) = (Pen::new("put-back"), Pen::new("put-back"));
    pen.append(&journal).await;
    other.head = pen.head;
    server.kill();
    copy(&server.folder().join("store"), &folder.path().join("older"));
    server.start_again();
    pen.append_patiently(&journal).await;
    pen.append(&journal).await;
    let mut follow = journal.follow(journal.tail().await.unwrap()).await.unwrap();
    assert_eq!(soon("caught up", follow.next()).await, Some(Followed::CaughtUp));
    let mut alarm = journal.truncations();
    server.kill();
    std::fs::remove_dir_all(server.folder().join("store")).unwrap();
    copy(&folder.path().join("older"), &server.folder().join("store"));
    server.start_again();
    // These fit what the server has, and would hide what is missing: the next in a stream that lost some, the first of a new one.
    let mut new = (0..).map(|i| Pen::new(&format!("new-{i}")));
    let mut new = new.find(|new| new.stream.partition(4) == pen.stream.partition(4)).unwrap();
    let until = Instant::now() + PATIENCE;
    while alarm.borrow_and_update().is_empty() {
        for commit in [new.draft(), other.draft()] {
            let appended = journal.append(commit).await;
            assert!(appended.is_err(), "an append went into a truncated stream");
        }
        assert!(Instant::now() < until, "no alarm");
    }
    let truncations = alarm.borrow().clone();
    assert_eq!(truncations.len(), 1, "{truncations:?}");
    assert!(truncations[0].reason.contains("was acknowledged"), "{}", truncations[0]);
    let refused = journal.append(other.draft()).await.unwrap_err();
    assert!(
        matches!(&refused, AppendError::Unavailable { reason } if reason.contains("roomlog repair")),
        "{refused}"
    );
    let broken = soon("the follower's end", follow.next()).await;
    assert!(matches!(&broken, Some(Followed::Broken(ReadError::Damaged { .. }))), "{broken:?}");
    // The other partitions go on.
    let elsewhere = (0..100).map(|i| Pen::new(&format!("elsewhere-{i}")));
    let mut elsewhere =
        elsewhere.into_iter().find(|p| p.stream.partition(4) != pen.stream.partition(4)).unwrap();
    elsewhere.append(&journal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_is_noticed_and_a_purged_room_is_no_loss() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    let journal = open(&connection).await;
    let mut pen = Pen::new("purged");
    for _ in 0..5 {
        pen.append(&journal).await;
    }
    let stream = format!("ROOMLOG_{}", pen.stream.partition(4));
    let filter = Subject::log(&pen.stream, 4);
    let purged = raw(
        &server.url(),
        &format!("STREAM.PURGE.{stream}"),
        serde_json::json!({ "filter": filter.as_str() }),
    )
    .await;
    assert_eq!(purged["purged"], 5, "{purged}");
    assert_eq!(journal.head(&pen.stream).await.unwrap(), None);
    assert!(journal.read(&pen.stream, Version(1), 10).await.unwrap().is_empty());
    let mut again = Pen::new("purged");
    again.rng = StdRng::seed_from_u64(99); // other ids: JetStream remembers those it had for a while
    again.append(&journal).await;
    let mut follow = journal.follow(Cursor::default()).await.unwrap();
    assert_eq!(entry(&mut follow).await.0.head(), again.head.unwrap());
    assert_eq!(soon("caught up", follow.next()).await, Some(Followed::CaughtUp));
    assert!(journal.truncations().borrow().is_empty());

    let info = raw(&server.url(), &format!("STREAM.INFO.{stream}"), serde_json::json!({})).await;
    raw(&server.url(), &format!("STREAM.DELETE.{stream}"), serde_json::json!({})).await;
    raw(&server.url(), &format!("STREAM.CREATE.{stream}"), info["config"].clone()).await;
    let mut alarm = journal.truncations();
    soon("the alarm", alarm.wait_for(|found| !found.is_empty())).await.unwrap();
    assert!(alarm.borrow()[0].reason.contains("made anew"), "{}", alarm.borrow()[0]);
    let refused = journal.append(again.draft()).await;
    assert!(
        matches!(&refused, Err(AppendError::Unavailable { reason }) if reason.contains("roomlog repair")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_commit_breaks_following_until_it_is_passed_over() {
    let Some((_folder, server)) = server(&Options::default()) else { return };
    let connection = connect(&server.url()).await;
    let journal = open(&connection).await;
    let mut pen = Pen::new("strange");
    pen.append(&journal).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let same = Subject::log(&pen.stream, 4).as_str().replace(".room.", ".ec.");
    client.request(same, "what is this".into()).await.unwrap();
    pen.append(&journal).await;
    let mut follow = journal.follow(Cursor::default()).await.unwrap();
    let (_, mut cursor) = entry(&mut follow).await;
    let broken = soon("the break", follow.next()).await;
    let Some(Followed::Broken(error @ ReadError::Damaged { .. })) = broken else { panic!("{broken:?}") };
    let mut follow = roomlog_bus::journal::follow_again(&journal, &mut cursor, error).await;
    assert_eq!(entry(&mut follow).await.0.head(), pen.head.unwrap());
}

// ---- Encrypted, and known to the server.

#[tokio::test]
async fn connections_are_encrypted_and_let_in_by_password_and_certificate() {
    let Some(servers) = Servers::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::default()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(path("ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    for (name, usage) in [
        ("server", rcgen::ExtendedKeyUsagePurpose::ServerAuth),
        ("client", rcgen::ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.extended_key_usages.push(usage);
        std::fs::write(path(&format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let more = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\nauthorization {{ user: node, password: \"s3cret\" }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    let server = NatsServer::start(&servers.newest, &path("server"), &Options { more, ..Options::default() });
    let right = NatsSettings {
        credentials: Credentials::User { user: "node".into(), password: "s3cret".into() },
        tls: Some(Tls { ca: Some(path("ca.pem")), client: Some((path("client.pem"), path("client.key"))) }),
        ..NatsSettings::new([server.url()])
    };
    assert!(!format!("{right:?}").contains("s3cret"), "settings are logged, passwords are not");
    let journal = open(&NatsConnection::connect(right.clone()).await.expect("let in")).await;
    Pen::new("secret").append(&journal).await;

    let wrong_password = Credentials::User { user: "node".into(), password: "guess".into() };
    let without_certificate = Tls { ca: Some(path("ca.pem")), client: None };
    let without_authority = Tls { ca: None, client: Some((path("client.pem"), path("client.key"))) };
    for (what, settings) in [
        ("a wrong password", NatsSettings { credentials: wrong_password, ..right.clone() }),
        ("no password", NatsSettings { credentials: Credentials::None, ..right.clone() }),
        ("no certificate", NatsSettings { tls: Some(without_certificate), ..right.clone() }),
        ("an unknown authority", NatsSettings { tls: Some(without_authority), ..right.clone() }),
    ] {
        let refused =
            NatsConnection::connect(settings).await.err().unwrap_or_else(|| panic!("{what} was let in"));
        assert!(matches!(refused, NatsError::Connect { .. }), "{what}: {refused}");
    }
    let missing = Tls { ca: Some(path("nothing.pem")), client: None };
    let refused = NatsConnection::connect(NatsSettings { tls: Some(missing), ..right }).await.err().unwrap();
    assert!(matches!(&refused, NatsError::Settings(text) if text.contains("nothing.pem")), "{refused}");
}
