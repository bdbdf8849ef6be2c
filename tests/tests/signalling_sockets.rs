//! Sockets that say nothing, read nothing or are only half there are let go in bounded time, and nobody else notices.

use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use roomlog_bus::ids::RoomId;
use roomlog_tests::{
    cell::{Cell, Shape, eventually},
    peer::{Peer, Policy},
    witness::{Bystander, closed, counted, journal_is_clean},
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

const SOON: Duration = Duration::from_secs(5);
/// The shortened settings of these cells.
const TOKEN_TIMEOUT: Duration = Duration::from_millis(700);
const SOCKET_TIMEOUT: Duration = Duration::from_secs(2);
/// Frames that wait for one client.
const QUEUE: usize = 64;

fn shape() -> Shape {
    Shape {
        ec: |settings| {
            settings.token_timeout = TOKEN_TIMEOUT;
            settings.socket_timeout = SOCKET_TIMEOUT;
            settings.ping_every = Duration::from_millis(500);
            settings.socket_queue = QUEUE;
        },
        ..Shape::default()
    }
}

/// A socket that is read only when the test reads it: it answers no ping meanwhile.
async fn raw(url: &str) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", "protoo".parse()?);
    let host = url.trim_start_matches("ws://").split('/').next().unwrap_or_default();
    let stream = TcpStream::connect(host).await?;
    Ok(client_async(request, stream).await?.0)
}

/// The same, let into the room called `name`; with the room and what it was told.
async fn raw_member(cell: &Cell, name: &str) -> anyhow::Result<(WebSocketStream<TcpStream>, RoomId, Value)> {
    let token = cell.token(name, "Raw").await?;
    let mut ws = raw(token["wsUrl"].as_str().unwrap_or_default()).await?;
    let ask = json!({ "request": true, "id": 1, "method": "token", "data": { "token": token["token"] } });
    ws.send(Message::Text(ask.to_string().into())).await?;
    while let Some(message) = ws.next().await {
        let Message::Text(text) = message? else { continue };
        let message: Value = serde_json::from_str(&text)?;
        if message["id"] == 1 {
            anyhow::ensure!(message["ok"] == true, "{message}");
            return Ok((
                ws,
                RoomId::new(token["roomId"].as_str().unwrap_or_default())?,
                message["data"].clone(),
            ));
        }
    }
    anyhow::bail!("closed before it was let in")
}

/// Waits until the log says that somebody in `room` is away.
async fn away(cell: &Cell, room: &RoomId, within: Duration) -> anyhow::Result<()> {
    eventually("the log says that the client is away", within, || async {
        cell.folded(room).await.ok()?.clients.values().any(|c| c.resume_until.is_some()).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_shows_no_token_is_closed_in_time_whatever_else_it_says() -> anyhow::Result<()> {
    let cell = Cell::start(shape()).await?;
    let bystander = Bystander::start(&cell).await?;
    let url = format!("{}/signal", cell.origin.replace("http:", "ws:"));
    let began = Instant::now();
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(Peer::open(&url, Policy::Silent).await?);
    }
    let talker = Peer::open(&url, Policy::Silent).await?;
    let opened = Instant::now();
    while talker.closed.lock().unwrap().is_none() && opened.elapsed() < SOON {
        talker.say(&json!({ "notification": true, "method": "still here" }));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        opened.elapsed() >= TOKEN_TIMEOUT && opened.elapsed() < TOKEN_TIMEOUT * 3,
        "{:?}",
        opened.elapsed()
    );
    for stranger in strangers.iter().chain([&talker]) {
        assert_eq!(stranger.closed_within(SOON).await?, (4000, "no token in time".into()));
    }
    println!("101 strangers gone after {:?}", began.elapsed());
    assert_eq!(closed(&cell, "no_token"), 101);
    bystander.finish().await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_so_many_sockets_and_a_socket_says_so_much() -> anyhow::Result<()> {
    let cell = Cell::start(Shape {
        ec: |settings| {
            // Two are the bystanders'.
            settings.sockets_per_address = 6;
            settings.messages_per_second = 100;
            settings.messages_burst = 200;
        },
        ..Shape::default()
    })
    .await?;
    let bystander = Bystander::start(&cell).await?;
    let url = format!("{}/signal", cell.origin.replace("http:", "ws:"));
    let mut strangers = Vec::new();
    for _ in 0..4 {
        strangers.push(Peer::open(&url, Policy::Silent).await?);
    }
    assert!(raw(&url).await.is_err());
    assert_eq!(counted(&cell, "roomlog_ec_turned_away{status=\"429\"}"), 1);
    let talker = strangers.pop().expect("four were opened");
    for _ in 0..2_000 {
        talker.say(&json!({ "notification": true, "method": "still here" }));
    }
    assert_eq!(talker.closed_within(SOON).await?, (4000, "too many messages".into()));
    assert_eq!(closed(&cell, "too_many"), 1);
    // Its place is free once it is gone.
    eventually("there is room for another", SOON, || async { raw(&url).await.ok() }).await?;
    bystander.finish().await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_dropped_after_the_socket_timeout_and_not_before() -> anyhow::Result<()> {
    let cell = Cell::start(shape()).await?;
    let bystander = Bystander::start(&cell).await?;
    // Never polled again: pings go unanswered, as on a connection whose other end has lost its network.
    let (mut dead, room, entered) = raw_member(&cell, "dead").await?;
    // And one that had begun a frame when it froze.
    let (mut frozen, frozen_room, _) = raw_member(&cell, "frozen").await?;
    frozen.get_mut().write_all(&[0x81, 0xFE, 0x10]).await?;
    let began = Instant::now();
    tokio::time::sleep(SOCKET_TIMEOUT - Duration::from_millis(700)).await;
    assert!(cell.folded(&room).await?.clients.values().all(|c| c.resume_until.is_none()), "too early");
    away(&cell, &room, SOON).await?;
    away(&cell, &frozen_room, SOON).await?;
    let took = began.elapsed();
    println!("both away after {took:?}, socket timeout {SOCKET_TIMEOUT:?}");
    assert!(took < SOCKET_TIMEOUT + Duration::from_millis(1_500), "{took:?}");
    assert_eq!(closed(&cell, "silent"), 2);
    // Pings alone kept the bystanders; and the client may resume.
    let mut back =
        Peer::open(&format!("{}/signal?resume=1", cell.origin.replace("http:", "ws:")), Policy::Accept)
            .await?;
    let resume = json!({ "clientId": entered["clientId"], "roomId": room, "resumeKey": entered["resumeKey"], "since": entered["v"] });
    back.ask("resume", resume).await?;
    // Idle for longer than the timeout, answering pings: still there.
    tokio::time::sleep(SOCKET_TIMEOUT * 3 / 2).await;
    back.ask("getRouterRtpCapabilities", json!({})).await?;
    assert!(dead.next().await.is_some());
    bystander.finish().await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

/// Sends requests with ids from 100 until `count` are sent or the connection takes no more for 300 ms.
async fn pour(ws: &mut WebSocketStream<TcpStream>, count: u64) -> u64 {
    for i in 0..count {
        let ask = json!({ "request": true, "id": 100 + i, "method": "getRouterRtpCapabilities", "data": {} });
        let sent = ws.send(Message::Text(ask.to_string().into()));
        if !matches!(tokio::time::timeout(Duration::from_millis(300), sent).await, Ok(Ok(()))) {
            return i;
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_dropped_and_its_room_goes_on() -> anyhow::Result<()> {
    let cell = Cell::start(Shape {
        // A queue that does not fill here: only the sending that makes no progress ends the socket.
        ec: |settings| {
            settings.socket_timeout = SOCKET_TIMEOUT;
            settings.ping_every = Duration::from_millis(500);
            settings.socket_queue = 100_000;
        },
        ..Shape::default()
    })
    .await?;
    let bystander = Bystander::start(&cell).await?;
    let (mut ann, _, _) = cell.enter("r", "Ann").await?;
    ann.join("Ann").await?;
    let (mut deaf, room, _) = raw_member(&cell, "r").await?;
    let poured = tokio::spawn(async move {
        let sent = pour(&mut deaf, 20_000).await;
        (deaf, sent)
    });
    let began = Instant::now();
    let mut worst = Duration::ZERO;
    let mut i = 0;
    // Others of the very same room are answered all the while.
    while cell.folded(&room).await?.clients.values().all(|c| c.resume_until.is_none()) {
        let asked = Instant::now();
        i += 1;
        ann.ask("changeDisplayName", json!({ "displayName": format!("Ann {i}") })).await?;
        worst = worst.max(asked.elapsed());
        anyhow::ensure!(began.elapsed() < Duration::from_secs(20), "the deaf client is still there");
    }
    let (_deaf, sent) = poured.await?;
    println!(
        "dropped after {:?} and {sent} requests; the slowest answer to another took {worst:?}",
        began.elapsed()
    );
    assert!(worst < SOON, "{worst:?}");
    assert_eq!(closed(&cell, "unread"), 1, "{}", cell.ec.metrics());
    bystander.finish().await?;
    cell.assert_agreement(&room).await?;
    journal_is_clean(&cell).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_missed_frames_for_a_full_queue_is_never_left_connected() -> anyhow::Result<()> {
    let cell = Cell::start(Shape {
        // The sending of one frame is not given up in this test: only the full queue ends the socket.
        ec: |settings| settings.socket_queue = QUEUE,
        ..Shape::default()
    })
    .await?;
    let (mut slow, room, entered) = raw_member(&cell, "r").await?;
    let sent = pour(&mut slow, 20_000).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Now it reads all that is there.
    let read = async {
        let mut answers = 0u64;
        while let Some(Ok(message)) = slow.next().await {
            answers += u64::from(message.is_text());
        }
        answers
    };
    let answers = tokio::time::timeout(Duration::from_secs(10), read).await;
    let answers = answers.map_err(|_| anyhow::anyhow!("connected still, after frames were dropped"))?;
    println!("{sent} requests sent, {answers} frames received, then the end");
    away(&cell, &room, SOON).await?;
    // What was missed comes with the resume.
    let mut back =
        Peer::open(&format!("{}/signal?resume=1", cell.origin.replace("http:", "ws:")), Policy::Accept)
            .await?;
    let resume = json!({ "clientId": entered["clientId"], "roomId": room, "resumeKey": entered["resumeKey"], "since": entered["v"] });
    back.ask("resume", resume).await?;
    back.ask("getRouterRtpCapabilities", json!({})).await?;
    cell.assert_agreement(&room).await?;
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_closes_is_answered_with_a_close_frame_and_has_left() -> anyhow::Result<()> {
    let cell = Cell::start(shape()).await?;
    for (code, leaves) in
        [(Some(1000u16), true), (Some(1001), true), (None, true), (Some(3000), false), (Some(4000), false)]
    {
        let (mut ws, room, _) = raw_member(&cell, &format!("r-{code:?}").replace(['(', ')'], "-")).await?;
        let frame = code.map(|code| tokio_tungstenite::tungstenite::protocol::CloseFrame {
            code: code.into(),
            reason: "".into(),
        });
        ws.send(Message::Close(frame)).await?;
        let answered = tokio::time::timeout(SOON, async {
            while let Some(Ok(message)) = ws.next().await {
                if message.is_close() {
                    return true;
                }
            }
            false
        })
        .await?;
        assert!(answered, "{code:?}: no close frame came back (RFC 6455 §5.5.1)");
        let what = format!("{code:?} leaves: {leaves}");
        eventually(&what, Duration::from_secs(1), || async {
            let state = cell.folded(&room).await.ok()?;
            if leaves {
                (!state.open).then_some(())
            } else {
                state.clients.values().any(|c| c.resume_until.is_some()).then_some(())
            }
        })
        .await?;
    }
    assert_eq!((closed(&cell, "left"), closed(&cell, "broken")), (3, 2));
    cell.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_goodbye_and_vanishes_with_answers_unread_has_left() -> anyhow::Result<()> {
    let cell = Cell::start(shape()).await?;
    for turn in 0..300 {
        let (mut ws, room, _) = raw_member(&cell, &format!("vanish-{turn}")).await?;
        // A socket closed with answers unread resets its connection, so that writing the other answers fails on the gateway's side.
        for ids in [2..4, 4..60] {
            for id in ids {
                let ask = json!({ "request": true, "id": id, "method": "noSuchMethod", "data": {} });
                ws.feed(Message::Text(ask.to_string().into())).await?;
            }
            ws.flush().await?;
            // Else Nagle's algorithm may still hold the goodbye when the reset overtakes it.
            ws.get_ref().set_nodelay(true)?;
            ws.get_ref().readable().await?;
        }
        ws.send(Message::Close(None)).await?;
        drop(ws);
        eventually("the client has left", Duration::from_secs(1), || async {
            let state = cell.folded(&room).await.ok()?;
            (!state.open).then_some(())
        })
        .await?;
    }
    cell.stop().await;
    Ok(())
}
