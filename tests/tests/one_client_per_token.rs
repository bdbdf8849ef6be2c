//! A token admits one client over the whole cluster, whichever EC it is shown to: on two ECs at once, after another EC took the room over,
//! after a restart. That client alone can attach again.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::future::join_all;
use roomlog_bus::{
    commit::StreamId,
    env::Env,
    events::Event,
    ids::{EcId, RoomId, Version},
    journal::{Journal, read_all},
};
use roomlog_ec::{Ec, EcSettings};
use roomlog_tests::{
    cell::{Cell, Shape, eventually},
    cluster::{self, Cluster},
    peer::{Peer, Policy},
    witness::journal_is_clean,
};
use serde_json::{Value, json};

/// Longer than anything here takes on a slow machine: what is tested is who comes in, not how soon.
const PATIENCE: Duration = Duration::from_secs(60);

/// A further EC on the bus and the journal of a cell.
struct Further {
    ec: Ec,
    url: String,
}

impl Further {
    async fn start(cell: &Cell, id: &str) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("ws://{}/signal", listener.local_addr()?);
        let mut settings = EcSettings::new(EcId::new(id)?, url.clone());
        settings.resume = PATIENCE;
        settings.connections_per_second = 1_000_000;
        let (bus, journal, directory) = (cell.bus.clone(), cell.journal.clone(), cell.directory.clone());
        let ec = Ec::start(settings, bus, journal, directory, Env::system()).await?;
        let service = ec.router().into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move {
            let _ = axum::serve(listener, service).await;
        });
        eventually("it hears an EA", PATIENCE, || async { ec.ready().then_some(()) }).await?;
        Ok(Self { ec, url })
    }
}

/// Shows `token` at `url`: the socket and the client let in, or the code of the refusal, 0 where the socket was closed without one.
async fn show(url: &str, token: &str) -> Result<(Peer, String), u64> {
    let mut peer = Peer::open(url, Policy::Accept).await.map_err(|_| 0_u64)?;
    match peer.try_ask("token", json!({ "token": token })).await {
        Ok(Ok(entered)) => Ok((peer, entered["clientId"].as_str().unwrap_or_default().to_owned())),
        Ok(Err((code, _))) => Err(code),
        Err(_) => Err(0),
    }
}

/// Shows it until it lets somebody in: a room that moves is in between for a moment.
async fn show_until_in(url: &str, token: &str) -> anyhow::Result<(Peer, String)> {
    let since = Instant::now();
    loop {
        match show(url, token).await {
            Ok(entered) => return Ok(entered),
            Err(code) => anyhow::ensure!(since.elapsed() < PATIENCE, "still refused with {code}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Shows it to an EC that has just been started until it says why it lets nobody in.
async fn show_until_refused(url: &str, token: &str, wanted: u64) {
    let since = Instant::now();
    loop {
        match show(url, token).await {
            Ok((_, id)) => panic!("{id} came in at {url}"),
            Err(code) if code == wanted => return,
            Err(code) => assert!(since.elapsed() < PATIENCE, "still {code}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Who was ever let into the room.
async fn admitted(journal: &dyn Journal, room: &RoomId) -> anyhow::Result<Vec<String>> {
    let commits = read_all(journal, &StreamId::from(room), Version(1)).await?;
    let mut clients = Vec::new();
    for raw in commits.iter().flat_map(|commit| &commit.events) {
        if let Event::ClientAdmitted(event) = Event::decode(raw)? {
            clients.push(event.client.to_string());
        }
    }
    Ok(clients)
}

fn still_open(peers: &[Peer]) -> usize {
    peers.iter().filter(|peer| peer.closed.lock().expect("nothing panics with it").is_none()).count()
}

async fn one_stays(peers: &[Peer]) -> anyhow::Result<()> {
    eventually("one socket stays", PATIENCE, || async { (still_open(peers) == 1).then_some(()) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_is_one_client_on_two_ecs_after_a_takeover_and_after_a_restart() -> anyhow::Result<()> {
    let cell = Cell::start(Shape {
        eas: vec![1],
        resume: PATIENCE,
        nuve: |settings| settings.token_ttl_s = 600,
        ..Shape::default()
    })
    .await?;
    let second = Further::start(&cell, "ec-2").await?;
    let first_url = format!("{}/signal", cell.origin.replace("http:", "ws:"));
    let owner = async |room: &RoomId| -> anyhow::Result<String> {
        Ok(cell.folded(room).await?.owner.map(|owner| owner.ec.to_string()).unwrap_or_default())
    };
    // A room of the second, so that the first can take it over. Its EC is drawn.
    let mut found: Option<(Value, RoomId)> = None;
    for i in 0..200 {
        let token = cell.token(&format!("r{i}"), "Ann").await?;
        let room = RoomId::new(token["roomId"].as_str().unwrap_or_default())?;
        if owner(&room).await? == "ec-2" {
            found = Some((token, room));
            break;
        }
    }
    let (token, room) = found.expect("one of 200 rooms is at the second EC");
    let token = token["token"].as_str().unwrap_or_default();

    // Shown to both at once.
    let shown =
        join_all((0..16).map(|i| show(if i % 2 == 0 { &first_url } else { &second.url }, token))).await;
    let (mut peers, mut ids) = (Vec::new(), Vec::new());
    for (i, outcome) in shown.into_iter().enumerate() {
        match outcome {
            Ok((peer, client)) => {
                assert!(i % 2 == 1, "the EC that has not the room let somebody in");
                peers.push(peer);
                ids.push(client);
            }
            Err(code) if i % 2 == 0 => assert_eq!(code, 1001),
            // Replaced before it was answered.
            Err(code) => assert_eq!(code, 0, "at the room's EC"),
        }
    }
    let ann = ids[0].clone();
    assert!(ids.iter().all(|id| *id == ann), "{ids:?}");
    one_stays(&peers).await?;
    assert_eq!(admitted(cell.journal.as_ref(), &room).await?, [ann.as_str()]);

    // The first takes the room over. Shown to it by two at once, and to nobody else any more.
    second.ec.stop().await;
    let (one, two) = tokio::join!(show_until_in(&first_url, token), show_until_in(&first_url, token));
    let ((one, first_id), (two, second_id)) = (one?, two?);
    assert_eq!((&first_id, &second_id), (&ann, &ann));
    one_stays(&[one, two]).await?;
    assert_eq!(owner(&room).await?, "ec-1");
    assert_eq!(admitted(cell.journal.as_ref(), &room).await?, [ann.as_str()]);

    // The first is started again, while the start before it still runs: it is over.
    let again = Further::start(&cell, "ec-1").await?;
    let (peer, id) = show_until_in(&again.url, token).await?;
    assert_eq!(id, ann);
    assert!(show(&first_url, token).await.is_err(), "at a start of the EC that is over");
    assert_eq!(still_open(std::slice::from_ref(&peer)), 1);
    assert_eq!(admitted(cell.journal.as_ref(), &room).await?, [ann.as_str()]);

    // Once its client has left it is used up, here and after a restart.
    peer.leave().await;
    eventually("she has left", PATIENCE, || async {
        cell.folded(&room).await.ok()?.clients.is_empty().then_some(())
    })
    .await?;
    assert_eq!(show(&again.url, token).await.err(), Some(1002));
    again.ec.stop().await;
    let third = Further::start(&cell, "ec-1").await?;
    // It is placing the room on itself.
    show_until_refused(&third.url, token, 1002).await;
    assert_eq!(admitted(cell.journal.as_ref(), &room).await?, [ann.as_str()]);
    third.ec.stop().await;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_stays_one_clients_when_its_ec_is_killed() -> anyhow::Result<()> {
    let shape = cluster::Shape { nuves: 1, eas: vec![1], ..cluster::Shape::default() };
    let Some(mut cluster) = Cluster::start(shape).await? else { return Ok(()) };
    let token = cluster.token("call", "Ann").await?;
    let room = RoomId::new(token["roomId"].as_str().unwrap_or_default())?;
    let token = token["token"].as_str().unwrap_or_default();
    let url = |cluster: &Cluster, index: usize| {
        format!("{}/signal", cluster.ecs[index].origin.replace("http:", "ws:"))
    };
    let owner = Cluster::index(&cluster.ecs, &cluster.owner(room.as_str()).await?);
    let other = 1 - owner;
    let (ann, id) = show_until_in(&url(&cluster, owner), token).await?;
    assert_eq!(show(&url(&cluster, other), token).await.err(), Some(1001), "at an EC that has not the room");

    // Its EC dies, and many show the token at the one that takes the room over.
    cluster.ecs[owner].kill().await;
    let there = url(&cluster, other);
    let shown = join_all((0..6).map(|_| show_until_in(&there, token))).await;
    let (peers, ids): (Vec<_>, Vec<_>) =
        shown.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    assert!(ids.iter().all(|other| *other == id), "{id} was let in before the kill, then {ids:?}");
    one_stays(&peers).await?;
    let journal = cluster.journal().await?;
    assert_eq!(admitted(journal.as_ref(), &room).await?, [id.as_str()]);

    // The killed one is there again: the room is no longer its own.
    cluster.ecs[owner].start_again().await?;
    show_until_refused(&url(&cluster, owner), token, 1001).await;
    assert_eq!(still_open(&peers), 1);
    assert_eq!(admitted(journal.as_ref(), &room).await?, [id.as_str()]);
    drop(ann);
    cluster.log_is_clean().await
}
