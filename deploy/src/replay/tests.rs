//! Reading real folders: what is opened, what is refused, that nothing in them changes, and that decisions are made again.

use std::{collections::BTreeMap, fs};

use roomlog_bus::{
    commit::{Cause, Payload, StreamId},
    env::Env,
    events::{NodeRegistered, RoomCreated, RoomPlaced},
    ids::{EcId, Epoch, Incarnation, NuveId, ServiceId},
    journal::{Journal, read_all},
    log::{Draft, Log},
    sled_journal::SledJournal,
};

use super::{
    open::{Place, Writing},
    *,
};

fn args(data: &Path, command: Command) -> ReplayArgs {
    ReplayArgs {
        data: data.to_owned(),
        nats: None,
        nats_creds: None,
        nats_ca: None,
        nats_cert: None,
        nats_key: None,
        archive: None,
        json: true,
        command,
    }
}

fn writer(node: StreamId) -> roomlog_bus::commit::Writer {
    roomlog_bus::commit::Writer { node, incarnation: Incarnation(1) }
}

/// A folder with a room that NUVE made and its EC deleted; the journal is open in it. `tamper` changes the events the EC decided on.
async fn folder(data: &Path, tamper: impl FnOnce(&mut Vec<Event>)) -> SledJournal {
    let (journal, _) = SledJournal::open(data.join("log"), Default::default()).unwrap();
    let shared: Arc<dyn Journal> = Arc::new(journal.clone());
    let (ec, nuve) = (EcId::new("e").unwrap(), NuveId::new("n").unwrap());
    let env = Env::system();
    let of_nuve = Log::new(shared.clone(), env.clone(), writer(StreamId::from(&nuve)));
    let of_ec = Log::new(shared, env.clone(), writer(StreamId::from(&ec)));
    let registered = NodeRegistered {
        incarnation: Incarnation(1),
        address: "ws://127.0.0.1:1".into(),
        workers: 0,
        version: "0".into(),
        probe: None,
        adopted: Vec::new(),
    };
    of_ec.append(StreamId::from(&ec), None, Draft::default(), &[registered.into()]).await.unwrap();

    let stream = StreamId::from(&RoomId::new("r1").unwrap());
    let created = RoomCreated {
        service: ServiceId::new("s").unwrap(),
        name: "standup".into(),
        eapolicy: Default::default(),
        metadata: json!({}),
    };
    let placed = RoomPlaced {
        ec: ec.clone(),
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        reason: "first-token".into(),
    };
    let made = of_nuve
        .append(stream.clone(), None, Draft::default(), &[created.into(), placed.into()])
        .await
        .unwrap();
    let mut state = RoomState::default();
    state.apply_commit(&made).unwrap();

    let command = decide::Command::Delete { reason: "test".into(), if_version: None };
    let facts = decide::Facts {
        now: env.now(),
        ec,
        incarnation: Incarnation(1),
        resume_ms: 30_000,
        max_clients: 100,
        per_client: roomlog_ec::per_client::PerClient::none(),
        assignment: None,
        consumer_type: None,
        consumers: Vec::new(),
    };
    let mut events = decide::decide(&state, &command, &facts).unwrap();
    tamper(&mut events);
    let draft = Draft {
        epoch: Epoch(1),
        cause: Cause::of("http"),
        command: Payload::encode(&command),
        facts: Payload::encode(&facts),
    };
    of_ec.append(stream, state.head, draft, &events).await.unwrap();
    journal
}

async fn verify_json(data: &Path) -> Value {
    let mut out = Vec::new();
    let log = OpenLog::open(data).unwrap();
    answer(&log, &args(data, Command::Verify), &mut out).await.unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_made_again_and_a_different_outcome_is_found() {
    let data = tempfile::tempdir().unwrap();
    folder(data.path(), |_| {}).await.close().await;
    let document = verify_json(data.path()).await;
    assert_eq!(document["findings"], json!([]));
    assert_eq!(document["summary"]["redecided"], 1);
    assert_eq!(document["clean"], true);

    let data = tempfile::tempdir().unwrap();
    let other = |events: &mut Vec<Event>| {
        *events = vec![roomlog_bus::events::RoomDeleted { reason: "another".into() }.into()];
    };
    folder(data.path(), other).await.close().await;
    let document = verify_json(data.path()).await;
    assert_eq!(document["findings"][0]["rule"], "redecide");
    assert_eq!(document["findings"].as_array().unwrap().len(), 1);
    assert_eq!(document["clean"], false);
}

/// Every file with its size and time of change.
fn files(folder: &Path, into: &mut BTreeMap<PathBuf, (u64, std::time::SystemTime)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::metadata(&path).unwrap();
        into.insert(path.clone(), (meta.len(), meta.modified().unwrap()));
        if meta.is_dir() {
            files(&path, into);
        }
    }
}

async fn ask_everything(data: &Path) -> OpenLog {
    let log = OpenLog::open(data).unwrap();
    let span = Span { since: None, until: None };
    let room: RoomRef = "name:standup".parse().unwrap();
    for (command, has) in [
        (Command::Rooms, "\"name\": \"standup\""),
        (Command::Show { room: room.clone(), client: None, span }, "\"type\": \"RoomDeleted\""),
        (Command::State { room, version: Some(2), at: None }, "\"deleted\": false"),
        (Command::Verify, "\"clean\": true"),
        (Command::Nodes { span }, "\"type\": \"NodeRegistered\""),
        (Command::Events { from: vec![1], span }, "\"type\":\"RoomCreated\""),
    ] {
        let mut out = Vec::new();
        answer(&log, &args(data, command), &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(has), "{has} is not in {text}");
    }
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn every_question_is_answered_beside_the_writer_and_after_it_and_nothing_changes() {
    let data = tempfile::tempdir().unwrap();
    let journal = folder(data.path(), |_| {}).await;
    let log = ask_everything(data.path()).await;
    assert!(
        matches!(log.place, Place::Folder { writer: Writing::Process(pid), .. } if pid == std::process::id()),
        "{}",
        log.way()
    );

    // The writer's own sled may write at any moment, so what reading leaves alone is seen once it has closed.
    journal.close().await;
    drop(journal);
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    files(data.path(), &mut before);
    let log = ask_everything(data.path()).await;
    assert!(matches!(log.place, Place::Folder { writer: Writing::Nobody, .. }), "{}", log.way());
    files(data.path(), &mut after);
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_as_json_is_that_of_the_fold() {
    let data = tempfile::tempdir().unwrap();
    let journal = folder(data.path(), |_| {}).await;
    let commits = read_all(&journal, &"room.r1".parse().unwrap(), Version(1)).await.unwrap();
    let mut state = RoomState::default();
    state.apply_commit(&commits[0]).unwrap();
    let log = OpenLog::open(data.path()).unwrap();
    let mut out = Vec::new();
    let question = Command::State { room: "r1".parse().unwrap(), version: None, at: Some(commits[0].time) };
    answer(&log, &args(data.path(), question), &mut out).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), state.to_json());
    journal.close().await;
}

#[test]
fn folders_without_a_log_are_refused_with_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let error = |folder: &Path| OpenLog::open(folder).err().map(|e| format!("{e:#}")).unwrap_or_default();
    let text = error(&data.path().join("nothing"));
    assert!(text.contains("there is no folder") && text.contains("--data"), "{text}");
    let text = error(data.path());
    assert!(text.contains("is not the data folder of a Roomlog"), "{text}");
    fs::create_dir(data.path().join("log")).unwrap();
    fs::write(data.path().join("log/facts.json"), "{}").unwrap();
    let text = error(data.path());
    assert!(text.contains("does not open") && text.contains("facts"), "{text}");
}
