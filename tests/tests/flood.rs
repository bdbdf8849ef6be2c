//! A flood at a real worker's socket while two people talk through it: from strangers, and from a peer that has passed ICE and sends
//! fragments of a handshake that never ends.

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
    process::Up,
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
    let twice = Publish { speed: 2, ..Publish::BOTH };
    let mark = Instant::now();
    let ann = NativePeer::join(&up.origin, &up.token("call", "Ann").await?, "Ann", twice).await?;
    let bob = NativePeer::join(&up.origin, &up.token("call", "Bob").await?, "Bob", twice).await?;
    for (from, to) in [(&ann, &bob), (&bob, &ann)] {
        to.decodes(&from.id, &BOTH, 60, mark, Duration::from_secs(20)).await?;
    }
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

    let worst = |mark| [&ann, &bob].iter().filter_map(|peer| peer.largest_gap_since(mark)).max();
    let mark = Instant::now();
    tokio::time::sleep(CONTROL).await;
    let quiet = worst(mark).context("they talk")?;

    let over = Arc::new(AtomicBool::new(false));
    let strangers = std::thread::spawn({
        let over = over.clone();
        move || strangers(worker, &over)
    });
    let fragments = std::thread::spawn({
        let (over, ice) = (over.clone(), transport["iceParameters"].clone());
        move || fragments(worker, &ice, &over)
    });
    let mark = Instant::now();
    tokio::time::sleep(FLOOD).await;
    let flooded = worst(mark).context("they talk")?;
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
    for (from, to) in [(&ann, &bob), (&bob, &ann)] {
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
    mallory.leave().await;
    ann.leave().await;
    bob.leave().await;
    up.stop().await
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
