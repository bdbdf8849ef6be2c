//! Bad company at a real worker's socket while two people talk through it: a flood from strangers, and from a peer that has passed ICE
//! and sends fragments of a handshake that never ends; and peers that take part in the call and never read.

/// The worker's tests' own native client.
#[path = "../../ea/sfu/tests/common/mod.rs"]
mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use roomlog_sfu::stun;
use roomlog_tests::{
    native::{Kind, NativePeer, Publish},
    peer::{Peer, Policy},
    process::{Held, Up},
};
use serde_json::{Value, json};

const BOTH: [Kind; 2] = [Kind::Audio, Kind::Video];
/// The flood may add this to the longest time without a packet that the pair has without it.
const STALL: Duration = Duration::from_millis(50);
/// Datagrams a millisecond from strangers, and from the peer that has passed ICE.
const STRANGERS_PER_MS: usize = 10;
const FRAGMENTS_PER_MS: usize = 3;
const CONTROL: Duration = Duration::from_secs(4);
const FLOOD: Duration = Duration::from_secs(6);
/// A stranger's socket is given up after this many datagrams for one on another port.
const PER_ADDRESS: u64 = 500;

/// Peers that never read.
const DEAF: usize = 4;
/// They are there for twice this long; memory of the second half is compared with that of the first.
const DEAF_FOR: Duration = Duration::from_secs(5);
/// The worker and the program may grow by this meanwhile: what allocators round up. 440 packets a second of 1 000 bytes that were kept
/// for each of them would be 9 MB.
const DEAF_MEMORY: u64 = 4 << 20;

/// Bytes that went one way and the other.
#[derive(Debug, Default, Clone, Copy)]
struct Traffic {
    datagrams: u64,
    bytes: u64,
    back: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_not_noticed_by_those_who_talk_and_is_not_answered() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let up = Up::start(data.path(), &["--workers", "1", "--ip-per-s", "1000000", "--log", "warn"]).await?;
    let (ann, bob) = pair(&up).await?;
    // Mallory is in the room, with a transport of her own that she does not connect.
    let token = up.token("call", "Mallory").await?;
    let (mut mallory, _) = Peer::enter(
        token["wsUrl"].as_str().context("no wsUrl")?,
        token["token"].as_str().context("no token")?,
        Policy::Refuse,
    )
    .await?;
    let transport = mallory
        .ask("createWebRtcTransport", json!({ "forceTcp": false, "producing": true, "consuming": false }))
        .await?;
    let candidate = &transport["iceCandidates"][0];
    let worker: SocketAddr =
        format!("{}:{}", candidate["address"].as_str().context("no address")?, candidate["port"]).parse()?;

    let quiet = worst_gap(&ann, &bob, CONTROL).await?;

    let over = Arc::new(AtomicBool::new(false));
    let strangers = std::thread::spawn({
        let over = over.clone();
        move || strangers(worker, &over)
    });
    let fragments = std::thread::spawn({
        let (over, ice) = (over.clone(), transport["iceParameters"].clone());
        move || fragments(worker, &ice, &over)
    });
    let flooded = worst_gap(&ann, &bob, FLOOD).await?;
    over.store(true, Ordering::Relaxed);
    let strangers = strangers.join().expect("no panic inside")?;
    let fragments = fragments.join().expect("no panic inside")?;
    println!(
        "strangers {strangers:?}\nfragments {fragments:?}\nlargest gap {quiet:?} in quiet, {flooded:?} in the flood"
    );

    ensure!(strangers.datagrams > 10_000 && fragments.datagrams > 3_000, "that was no flood");
    ensure!(strangers.back == 0, "strangers were answered: {strangers:?}");
    ensure!(fragments.back < fragments.bytes, "more came back than was sent: {fragments:?}");
    ensure!(flooded < quiet + STALL, "the flood was noticed: {flooded:?}, against {quiet:?} without it");
    all_came(&ann, &bob)?;
    mallory.leave().await;
    ann.leave().await;
    bob.leave().await;
    up.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_never_read_are_not_noticed_and_nothing_grows_for_them() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let up = Up::start(data.path(), &["--workers", "1", "--ip-per-s", "1000000", "--log", "warn"]).await?;
    let (ann, bob) = pair(&up).await?;
    let quiet = worst_gap(&ann, &bob, CONTROL).await?;

    let over = Arc::new(AtomicBool::new(false));
    let (mut deaf, mut alive) = (Vec::new(), Vec::new());
    for i in 0..DEAF {
        let (peer, client, worker, socket) = joined(&up, &format!("Deaf {i}")).await?;
        deaf.push((peer, socket.local_addr()?));
        let over = over.clone();
        alive.push(std::thread::spawn(move || deaf_and_alive(client, worker, &socket, &over)));
    }
    let held = || -> anyhow::Result<(u64, u64)> {
        let worker = *up.workers().first().context("there is a worker")?;
        Ok((up.resident()?, Held::of(worker)?.resident))
    };
    let first = worst_gap(&ann, &bob, DEAF_FOR).await?;
    let before = held()?;
    let lost_before: Vec<u64> = deaf.iter().map(|(_, at)| lost_at(*at)).collect::<anyhow::Result<_>>()?;
    let second = worst_gap(&ann, &bob, DEAF_FOR).await?;
    let after = held()?;
    let lost: Vec<u64> = deaf.iter().map(|(_, at)| lost_at(*at)).collect::<anyhow::Result<_>>()?;
    println!(
        "largest gap {quiet:?} in quiet, {first:?} and {second:?} beside {DEAF} that never read; program {} and {} bytes, worker {} and \
         {}; datagrams that found their buffers full {lost_before:?} and {lost:?}",
        before.0, after.0, before.1, after.1
    );
    over.store(true, Ordering::Relaxed);
    for alive in alive {
        alive.join().expect("no panic inside")?;
    }
    for (before, after) in lost_before.iter().zip(&lost) {
        ensure!(*before > 100 && *after > before + 1_000, "they were not sent what they did not read");
    }
    ensure!(first.max(second) < quiet + STALL, "they were noticed");
    ensure!(after.0 <= before.0 + DEAF_MEMORY, "the program grew");
    ensure!(after.1 <= before.1 + DEAF_MEMORY, "the worker grew");
    all_came(&ann, &bob)?;
    for (peer, _) in deaf {
        ensure!(peer.closed.lock().expect("no panic inside").is_none(), "they are in the room all the time");
        peer.leave().await;
    }
    ann.leave().await;
    bob.leave().await;
    up.stop().await
}

/// Two who talk, at twice the speed of people: that shows shorter gaps.
async fn pair(up: &Up) -> anyhow::Result<(NativePeer, NativePeer)> {
    let twice = Publish { speed: 2, ..Publish::BOTH };
    let mark = Instant::now();
    let ann = NativePeer::join(&up.origin, &up.token("call", "Ann").await?, "Ann", twice).await?;
    let bob = NativePeer::join(&up.origin, &up.token("call", "Bob").await?, "Bob", twice).await?;
    for (from, to) in [(&ann, &bob), (&bob, &ann)] {
        to.decodes(&from.id, &BOTH, 60, mark, Duration::from_secs(20)).await?;
    }
    Ok((ann, bob))
}

/// The longest time without a packet that one of them has while this much passes.
async fn worst_gap(ann: &NativePeer, bob: &NativePeer, time: Duration) -> anyhow::Result<Duration> {
    let mark = Instant::now();
    tokio::time::sleep(time).await;
    [ann, bob].iter().filter_map(|peer| peer.largest_gap_since(mark)).max().context("they talk")
}

fn all_came(ann: &NativePeer, bob: &NativePeer) -> anyhow::Result<()> {
    for (from, to) in [(ann, bob), (bob, ann)] {
        for stream in to.streams().iter().filter(|s| s.peer == from.id) {
            let received = stream.received();
            ensure!(
                received.decodes(200),
                "{:?}: {} whole, {:.3}",
                received.kind(),
                received.complete(),
                received.share()
            );
        }
    }
    Ok(())
}

/// Comes into the call as one who listens, with a socket of its own: signalled, connected, and with the keys.
async fn joined(up: &Up, name: &str) -> anyhow::Result<(Peer, common::Client, SocketAddr, UdpSocket)> {
    let token = up.token("call", name).await?;
    let (url, text) =
        (token["wsUrl"].as_str().context("no wsUrl")?, token["token"].as_str().context("no token")?);
    let (mut peer, _) = Peer::enter(url, text, Policy::Accept).await?;
    let capabilities = peer.ask("getRouterRtpCapabilities", json!({})).await?;
    let transport = peer
        .ask("createWebRtcTransport", json!({ "forceTcp": false, "producing": false, "consuming": true }))
        .await?;
    let candidate = &transport["iceCandidates"][0];
    let worker: SocketAddr =
        format!("{}:{}", candidate["address"].as_str().context("no address")?, candidate["port"]).parse()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut client = common::Client::of(
        serde_json::from_value(transport["id"].clone())?,
        serde_json::from_value(transport["iceParameters"].clone())?,
        socket.local_addr()?,
    );
    let dtls = json!({ "role": "client", "fingerprints": [client.fingerprint()] });
    peer.ask("connectWebRtcTransport", json!({ "transportId": transport["id"], "dtlsParameters": dtls }))
        .await?;
    client.bind(true);
    client.hello(Instant::now());
    let mut bytes = [0; 2048];
    while client.srtp.is_none() {
        for datagram in client.out.drain(..) {
            socket.send_to(&datagram, worker)?;
        }
        let (length, _) = socket.recv_from(&mut bytes).context("the handshake is not answered")?;
        client.receive(Instant::now(), &bytes[..length]);
    }
    for datagram in client.out.drain(..) {
        socket.send_to(&datagram, worker)?;
    }
    // It is a consumer from here on.
    peer.ask(
        "join",
        json!({ "displayName": name, "device": { "name": "deaf" }, "rtpCapabilities": capabilities }),
    )
    .await?;
    Ok((peer, client, worker, socket))
}

/// Consents once a second, and reads nothing, ever.
fn deaf_and_alive(
    mut client: common::Client,
    worker: SocketAddr,
    socket: &UdpSocket,
    over: &AtomicBool,
) -> anyhow::Result<()> {
    socket2::SockRef::from(socket).set_recv_buffer_size(4_096)?;
    while !over.load(Ordering::Relaxed) {
        client.bind(true);
        for datagram in client.out.drain(..) {
            socket.send_to(&datagram, worker)?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Datagrams that the kernel had no room for in the socket at this address.
fn lost_at(address: SocketAddr) -> anyhow::Result<u64> {
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/udp")?;
    let line =
        table.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&port)));
    // The last column is `drops` (proc_net_udp).
    Ok(line.and_then(|line| line.split_whitespace().last()).context("the socket is in the table")?.parse()?)
}

/// All kinds of packets from addresses that nobody knows.
fn strangers(worker: SocketAddr, over: &AtomicBool) -> anyhow::Result<Traffic> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut traffic = Traffic::default();
    let provider = rtc::srtp::crypto::default_provider()?;
    let stun = stun::binding_request(
        provider.crypto(),
        &[1; 12],
        "nobodysufragabcd:peer",
        "nobodyspassword",
        true,
        true,
    );
    while !over.load(Ordering::Relaxed) {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        let from = traffic.datagrams;
        while traffic.datagrams - from < PER_ADDRESS {
            for _ in 0..STRANGERS_PER_MS {
                let mut bytes = match rng.random_range(0..4) {
                    0 => stun.clone(),
                    1 => fragment(traffic.datagrams, 0, 300, 0, 300),
                    _ => vec![0; rng.random_range(1..1_200)],
                };
                if bytes.iter().all(|b| *b == 0) {
                    rng.fill_bytes(&mut bytes);
                    // RTP or RTCP by its first byte, half of the time.
                    bytes[0] = if rng.random() { 0x80 } else { rng.random() };
                }
                send(&socket, worker, &bytes, &mut traffic)?;
            }
            std::thread::sleep(Duration::from_millis(1));
            take(&socket, &mut traffic);
        }
        take(&socket, &mut traffic);
    }
    Ok(traffic)
}

/// A client that has passed ICE, and then sends a ClientHello byte by byte, without end.
fn fragments(worker: SocketAddr, ice: &Value, over: &AtomicBool) -> anyhow::Result<Traffic> {
    let mut traffic = Traffic::default();
    let provider = rtc::srtp::crypto::default_provider()?;
    let username = format!("{}:mallory", ice["usernameFragment"].as_str().context("no ufrag")?);
    let password = ice["password"].as_str().context("no password")?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let request = stun::binding_request(provider.crypto(), &[2; 12], &username, password, true, true);
    send(&socket, worker, &request, &mut traffic)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = [0; 1500];
    let (length, _) = socket.recv_from(&mut answer).context("ICE is not answered")?;
    ensure!(length <= request.len(), "{length} bytes for {}", request.len());
    traffic.back += length as u64;
    socket.set_nonblocking(true)?;
    let mut record = 0;
    while !over.load(Ordering::Relaxed) {
        for _ in 0..FRAGMENTS_PER_MS {
            record += 1;
            let bytes = fragment(record, (record / 15_000) as u16, 16_000, (record % 15_000) as usize, 1);
            send(&socket, worker, &bytes, &mut traffic)?;
        }
        if record % 3_000 == 0 {
            send(&socket, worker, &request, &mut traffic)?;
        }
        std::thread::sleep(Duration::from_millis(1));
        take(&socket, &mut traffic);
    }
    Ok(traffic)
}

fn send(socket: &UdpSocket, to: SocketAddr, bytes: &[u8], traffic: &mut Traffic) -> anyhow::Result<()> {
    match socket.send_to(bytes, to) {
        Ok(_) => {
            traffic.datagrams += 1;
            traffic.bytes += bytes.len() as u64;
            Ok(())
        }
        // The socket's buffer is full: the kernel floods for us.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn take(socket: &UdpSocket, traffic: &mut Traffic) {
    let mut bytes = [0; 2048];
    while let Ok((length, _)) = socket.recv_from(&mut bytes) {
        traffic.back += length as u64;
    }
}

/// A handshake record with one fragment of a ClientHello of `length` bytes (RFC 6347 §4.2.2).
fn fragment(record: u64, message: u16, length: usize, offset: usize, size: usize) -> Vec<u8> {
    let u24 = |n: usize| [(n >> 16) as u8, (n >> 8) as u8, n as u8];
    let mut bytes = vec![22, 0xfe, 0xfd, 0, 0];
    bytes.extend_from_slice(&record.to_be_bytes()[2..]);
    bytes.extend_from_slice(&((12 + size) as u16).to_be_bytes());
    bytes.push(1);
    bytes.extend_from_slice(&u24(length));
    bytes.extend_from_slice(&message.to_be_bytes());
    bytes.extend_from_slice(&u24(offset));
    bytes.extend_from_slice(&u24(size));
    bytes.resize(bytes.len() + size, 0);
    bytes
}
