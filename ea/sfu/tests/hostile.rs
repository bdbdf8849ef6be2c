//! What a peer with valid keys can do to the worker and to others: packets that are authentic and make no sense, storms of feedback,
//! streams that are not its own. Strangers and the handshake are in `connection.rs`.

mod common;

use std::time::{Duration, Instant};

use common::*;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    ids::ProducerId,
    media::{MediaCommand, MediaError, MediaObject},
    ortc::{MediaKind, RtpEncodingParameters, RtxStream},
};
use roomlog_sfu::{NackPair, rtcp, rtp::NewHeader};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;

const MS: Duration = Duration::from_millis(1);

/// One datagram may keep the worker, and so everybody on it, no longer than this.
const STALL: Duration = Duration::from_millis(50);

/// How long datagrams kept the worker. The machine may take the processor away in the middle of any, so one slow datagram says
/// nothing; a worker that can be stalled is so again and again.
#[derive(Default)]
struct Slow {
    worst: Duration,
    stalls: usize,
}

impl Slow {
    fn datagram(&mut self, world: &mut World, from: &Client, bytes: &[u8]) {
        let began = Instant::now();
        world.worker.handle_datagram(world.now, from.address, bytes);
        self.took(began.elapsed());
    }

    fn took(&mut self, time: Duration) {
        self.worst = self.worst.max(time);
        self.stalls += usize::from(time > STALL);
    }

    fn check(&self) {
        assert!(
            self.stalls < 3,
            "{} datagrams kept the worker for more than {STALL:?}, one for {:?}",
            self.stalls,
            self.worst
        );
    }
}

fn call() -> (World, Client, Client, ProducerId, u32) {
    let mut world = World::new();
    let (alice, bob) = (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let (_, params) = consume(&mut world, &bob, "c", &producer);
    let ssrc = params.encodings[0].ssrc.expect("consumers have SSRCs");
    (world, alice, bob, producer, ssrc)
}

/// What the worker sends while `work` is done: datagrams and bytes to that port.
fn sent_to(world: &mut World, port: u16) -> (usize, usize) {
    let to: Vec<usize> =
        world.outbox().into_iter().filter(|(to, _)| to.port() == port).map(|(_, b)| b.len()).collect();
    (to.len(), to.iter().sum())
}

#[test]
fn authentic_rtp_and_rtcp_that_make_no_sense_end_nothing() {
    let (mut world, mut alice, mut bob, _, ssrc) = call();
    let mut rng = StdRng::seed_from_u64(5);
    alice.send_frame(1, true);
    world.settle(&mut [&mut alice, &mut bob]);
    let mut plain_rtp = Vec::new();
    let mut writer = roomlog_sfu::rtp::HeaderWriter::new(&mut plain_rtp, &frame_header(SSRC, 2));
    writer.extension(1, b"v");
    writer.extension(3, &[0, 2]);
    writer.finish();
    plain_rtp.extend_from_slice(&vp8(2, false));
    let mut plain_rtcp = Vec::new();
    rtcp::write_sender_report(&mut plain_rtcp, SSRC, 1 << 32, 90_000, 10, 1_000, "x");
    rtcp::write_nack(&mut plain_rtcp, 9, ssrc, &[NackPair { first: 3, mask: 0xffff }]);
    rtcp::write_pli(&mut plain_rtcp, 9, ssrc);
    rtcp::write_fir(&mut plain_rtcp, 9, ssrc, 1);
    let mut slow = Slow::default();
    for round in 0..20_000u32 {
        let is_rtp = rng.random();
        let mut bytes = if is_rtp { plain_rtp.clone() } else { plain_rtcp.clone() };
        // New numbers, so that the replay window lets them through; then nonsense anywhere but in the version and the SSRC.
        if is_rtp {
            bytes[2..4].copy_from_slice(&((round / 2) as u16).wrapping_add(3).to_be_bytes());
        }
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            if at > 11 || (at > 3 && at < 8) || at == 1 && !is_rtp {
                bytes[at] = rng.random();
            }
        }
        bytes[0] = 0x80 | rng.random_range(0..64);
        if rng.random_bool(0.3) {
            bytes.truncate(rng.random_range(12..=bytes.len()));
        }
        let srtp = alice.srtp.as_mut().expect("connected");
        let protected = if is_rtp {
            // What cannot be encrypted because its own header lies cannot be sent.
            let Some(header) = roomlog_sfu::rtp::RtpHeader::parse(&bytes) else { continue };
            let payload_at = header.payload.start;
            if payload_at > bytes.len() || srtp.protect_rtp(&mut bytes, 0).is_err() {
                continue;
            }
            bytes
        } else {
            match srtp.protect_rtcp(&bytes) {
                Ok(protected) => protected.to_vec(),
                Err(_) => continue,
            }
        };
        slow.datagram(&mut world, &alice, &protected);
        if round % 100 == 0 {
            world.now += MS;
            world.worker.handle_timeout(world.now);
        }
        world.worker.outbox().clear();
    }
    println!("slowest of 20 000: {:?}", slow.worst);
    slow.check();
    assert_eq!(world.worker.load().panics, 0);
    // A stream that starts anew is taken up with its key frame.
    let mut carol = Client::connected(&mut world, "x", 5003);
    let producer = produce(&mut world, &carol, "q", MediaKind::Video, single());
    consume(&mut world, &bob, "d", &producer);
    bob.take_rtp();
    carol.send_frame(1, true);
    world.settle(&mut [&mut alice, &mut bob, &mut carol]);
    assert_eq!(bob.take_rtp().len(), 1, "others are served as before");
}

/// What `rtc-srtp` protects for a receiver without GCM it measures by its own reading of the header, and panics where that is longer
/// than the packet. Found by fuzzing; the worker never gives it such a header, whatever comes in.
#[test]
fn whatever_header_a_producer_sends_others_get_one_of_ours() {
    let mut world = World::new();
    let mut alice = Client::connected(&mut world, "a", 5001);
    let mut bob = Client::new(&mut world, "b", 5002)
        .with_profiles(vec![SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80]);
    bob.connect(&mut world);
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let (_, params) = consume(&mut world, &bob, "c", &producer);
    let known: Vec<u8> = params.header_extensions.iter().map(|e| e.id).collect();
    alice.send_frame(1, true);
    world.settle(&mut [&mut alice, &mut bob]);
    bob.take_rtp();
    let mut rng = StdRng::seed_from_u64(11);
    let (mut got, mut with_extensions) = (0, 0);
    for number in 2..20_000u16 {
        let (padding, extended, csrcs) =
            (rng.random_bool(0.3), rng.random_bool(0.8), rng.random_range(0..16));
        let mut bytes =
            vec![0x80 | u8::from(padding) << 5 | u8::from(extended) << 4 | csrcs, 0x80 | MEDIA_TYPE];
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&(u32::from(number) * 3000).to_be_bytes());
        bytes.extend_from_slice(&SSRC.to_be_bytes());
        bytes.extend((0..4 * csrcs).map(|_| rng.random::<u8>()));
        if extended {
            let profile = [0xbede, 0x1000, 0x100f, 0xabcd][rng.random_range(0..4)];
            // The same ids over and over, 0 and 15 among them, values of any length, lengths that go beyond the block.
            let mut block = Vec::new();
            while block.len() < rng.random_range(0..200) {
                let (id, length) = ([0, 1, 3, 7, 7, 15][rng.random_range(0..6)], rng.random_range(0..20u8));
                if profile == 0xbede {
                    block.push(id << 4 | length & 15)
                } else {
                    block.extend([id, length])
                }
                block.extend((0..length).map(|_| if rng.random_bool(0.3) { 0 } else { rng.random::<u8>() }));
            }
            block.resize(block.len().next_multiple_of(4), 0);
            bytes.extend_from_slice(&u16::to_be_bytes(profile));
            bytes.extend_from_slice(&((block.len() / 4) as u16).to_be_bytes());
            bytes.extend_from_slice(&block);
        }
        bytes.extend_from_slice(&vp8(number, false));
        if padding {
            bytes.extend_from_slice(&[0, 0, 3]);
        }
        alice.srtp.as_mut().expect("connected").protect_rtp(&mut bytes, 0).expect("GCM takes any header");
        alice.out.push_back(bytes);
        world.settle(&mut [&mut alice, &mut bob]);
        if number % 500 == 0 {
            alice.bind(true);
            bob.bind(true);
        }
        for packet in bob.take_rtp() {
            assert_eq!(packet.bytes[0] & !0x10, 0x80, "no padding, no contributing sources");
            assert_eq!(packet.payload(), vp8(number, false), "whole, and where the header says");
            let ids: Vec<u8> = packet.header.extensions(&packet.bytes).map(|(id, _)| id).collect();
            assert!(ids.iter().all(|id| known.contains(id)), "{ids:?} of {known:?}");
            got += 1;
            with_extensions += usize::from(ids.contains(&4) || ids.len() > 3);
        }
        world.now += MS;
        world.worker.handle_timeout(world.now);
    }
    assert_eq!(world.worker.load().panics, 0);
    assert_eq!(got, 19_998, "each packet says something, so each arrives");
    assert!(with_extensions > 1_000, "extensions are passed on: {with_extensions} packets");
}

#[test]
fn jumps_of_sequence_numbers_cost_little_and_the_stream_recovers() {
    for jump in [0x0002u16, 0x00ff, 0x0100, 0x0101, 0x01f4, 0x03e9, 0x3fff, 0x7fff] {
        let (mut world, mut alice, mut bob, _, _) = call();
        alice.send_frame(1, true);
        world.settle(&mut [&mut alice, &mut bob]);
        world.outbox();
        let (mut asked, mut bytes_in) = (0, 0);
        let mut slow = Slow::default();
        let mut number = 1u16;
        for _ in 0..2_000 {
            number = number.wrapping_add(jump);
            alice.send(frame_header(SSRC, number), &[(1, b"v")], &vp8(number, false));
            let bytes = alice.out.pop_front().expect("just queued");
            bytes_in += bytes.len();
            slow.datagram(&mut world, &alice, &bytes);
            world.now += MS;
            world.worker.handle_timeout(world.now);
            // Bob hears all of it: who misses 2^15 numbers can decrypt nothing that comes after.
            world.settle(&mut [&mut bob]);
            let to_alice = world.stray.drain(..).filter(|(to, _)| *to == alice.address);
            asked += to_alice.map(|(_, bytes)| bytes.len()).sum::<usize>();
        }
        println!("jumps of {jump:#06x}: {bytes_in} bytes in, {asked} bytes back, slowest {:?}", slow.worst);
        slow.check();
        assert_eq!(world.worker.load().panics, 0);
        assert!(asked < bytes_in, "jumps of {jump}: {bytes_in} bytes in made {asked} bytes of feedback");
        // The sender comes to its senses.
        alice.bind(true);
        bob.bind(true);
        world.settle(&mut [&mut alice, &mut bob]);
        bob.take_rtp();
        for i in 1..=2_000u16 {
            alice.send_frame(number.wrapping_add(i), i % 100 == 1);
            world.pass(MS, &mut [&mut alice, &mut bob]);
        }
        let got = bob.take_rtp().len();
        assert!(got > 1_800, "after jumps of {jump:#06x} only {got} of 2000 come through");
    }
}

#[test]
fn the_same_ssrc_is_refused_within_a_transport_and_fine_on_two() {
    let mut world = World::new();
    let (mut alice, mut mallory, mut bob) = (
        Client::connected(&mut world, "a", 5001),
        Client::connected(&mut world, "m", 5003),
        Client::connected(&mut world, "b", 5002),
    );
    let hers = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let twice = |ssrc, rtx| {
        let mut params = video(vec![RtpEncodingParameters {
            ssrc: Some(ssrc),
            rtx: Some(RtxStream { ssrc: rtx }),
            ..Default::default()
        }]);
        params.mid = Some("w".into());
        MediaCommand::Produce {
            transport: alice.transport.clone(),
            producer: ProducerId::new("q").expect("an id"),
            kind: MediaKind::Video,
            rtp_parameters: params,
            paused: false,
        }
    };
    for (ssrc, rtx) in [(SSRC, 7), (RTX_SSRC, 7), (7, SSRC), (7, RTX_SSRC), (7, 7)] {
        match world.ask(twice(ssrc, rtx)) {
            Err(MediaError::BadParameters { reason }) => {
                assert!(reason.to_lowercase().contains("ssrc"), "the reader learns what is wrong: {reason}");
            }
            other => panic!("{ssrc} with retransmissions on {rtx}: {other:?}"),
        }
    }
    let his = produce(&mut world, &mallory, "x", MediaKind::Video, single());
    let (_, hers) = consume(&mut world, &bob, "c", &hers);
    let (_, his) = consume(&mut world, &bob, "d", &his);
    alice.send_frame(1, true);
    mallory.send_frame(500, true);
    world.settle(&mut [&mut alice, &mut mallory, &mut bob]);
    let got = bob.take_rtp();
    let of = |ssrc| {
        got.iter().filter(|p| Some(p.header.ssrc) == ssrc).map(|p| p.payload().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(of(hers.encodings[0].ssrc), [vp8(1, true)]);
    assert_eq!(of(his.encodings[0].ssrc), [vp8(500, true)], "each one's packets are his own");
}

#[test]
fn a_storm_of_key_frame_requests_reaches_the_producer_twice_a_second() {
    let (mut world, mut alice, mut bob, _, ssrc) = call();
    alice.send_frame(1, true);
    world.pass(600 * MS, &mut [&mut alice, &mut bob]);
    alice.take_rtcp();
    let mut asked = 0;
    for i in 0..4_000u16 {
        let mut storm = Vec::new();
        for _ in 0..20 {
            rtcp::write_pli(&mut storm, 9, ssrc);
        }
        rtcp::write_fir(&mut storm, 9, ssrc, i as u8);
        bob.send_rtcp(&storm);
        if i % 100 == 0 {
            alice.bind(true);
            bob.bind(true);
            alice.send_frame(i / 100 + 2, true);
        }
        world.pass(MS, &mut [&mut alice, &mut bob]);
        let compound = alice.take_rtcp();
        asked += plis(&compound, SSRC);
        bob.take_rtp();
        bob.take_rtcp();
    }
    assert!((7..=9).contains(&asked), "84 000 requests in 4 s became {asked}");
}

#[test]
fn a_giant_nack_gets_each_packet_so_often_and_no_more() {
    let (mut world, mut alice, mut bob, _, ssrc) = call();
    const PACKETS: u16 = 1_000;
    for number in 1..=PACKETS {
        let payload = [&vp8(number, number == 1)[..], &[7; 1_000]].concat();
        alice.send(frame_header(SSRC, number), &[(1, b"v")], &payload);
    }
    world.settle(&mut [&mut alice, &mut bob]);
    let got = bob.take_rtp();
    assert_eq!(got.len(), usize::from(PACKETS));
    let first = got[0].header.sequence;
    // All of them, each asked for over and over in one datagram, and every 2 ms for two seconds.
    let pairs: Vec<NackPair> =
        (0..340u16).map(|i| NackPair { first: first.wrapping_add(i * 17 % PACKETS), mask: 0xffff }).collect();
    let (mut repairs, mut worst, mut slow) = (0, 0, Slow::default());
    for _ in 0..1_000 {
        let mut nack = Vec::new();
        rtcp::write_nack(&mut nack, 9, ssrc, &pairs);
        bob.send_rtcp(&nack);
        let bytes = bob.out.pop_front().expect("just queued");
        slow.datagram(&mut world, &bob, &bytes);
        let (datagrams, _) = sent_to(&mut world, 5002);
        worst = worst.max(datagrams);
        repairs += datagrams;
        world.now += 2 * MS;
    }
    println!("{repairs} repairs of {PACKETS} packets, {worst} for one datagram, slowest {:?}", slow.worst);
    slow.check();
    assert!(worst <= 2 * usize::from(PACKETS), "one datagram made {worst}");
    let bound = usize::from(roomlog_sfu::MAX_RESENDS) * usize::from(PACKETS);
    assert!(repairs <= bound, "{repairs} repairs; {bound} is ten of each");
    assert!(repairs >= usize::from(PACKETS), "and an honest request is served");
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("the second field is a number") * 4096
}

#[test]
fn for_a_peer_that_takes_everything_and_says_nothing_no_more_is_kept_than_can_be_sent_again() {
    let (mut world, mut alice, mut bob, producer, _) = call();
    // Mallory consents, since without it nothing would be sent to her, and that is all that ever comes from her.
    let mut mallory = Client::connected(&mut world, "m", 5003);
    consume(&mut world, &mallory, "d", &producer);
    let payload = |number| [&vp8(number, number % 300 == 1)[..], &[9; 1_100]].concat();
    let (mut to_bob, mut to_mallory, mut before) = (0usize, 0usize, 0);
    const PACKETS: u32 = 60_000;
    const WARM: u32 = 10_000;
    for i in 1..=PACKETS {
        let number = i as u16;
        alice.send(frame_header(SSRC, number), &[(1, b"v"), (3, &number.to_be_bytes())], &payload(number));
        if i % 400 == 0 {
            for client in [&mut alice, &mut bob, &mut mallory] {
                client.bind(true);
            }
            world.settle(&mut [&mut mallory]);
        }
        world.now += 5 * MS;
        world.worker.handle_timeout(world.now);
        world.settle(&mut [&mut alice, &mut bob]);
        to_mallory += world.stray.drain(..).map(|(_, bytes)| usize::from(bytes.len() > 1_000)).sum::<usize>();
        to_bob += bob.take_rtp().len();
        for client in [&mut alice, &mut bob] {
            client.take_rtcp();
            client.stun.clear();
        }
        if i == WARM {
            before = resident();
        }
    }
    let grown = resident().saturating_sub(before);
    println!("{to_bob} packets to Bob, {to_mallory} to Mallory, {grown} bytes grown");
    assert_eq!(to_bob, PACKETS as usize, "Bob misses nothing");
    assert!(to_mallory <= PACKETS as usize, "and she is sent no more than he");
    assert!(to_mallory > PACKETS as usize / 2, "she is a live peer all the time: {to_mallory}");
    // What it would be if each packet since were kept: 58 MB.
    assert!(grown < 8 << 20, "{grown} bytes more after {} packets", PACKETS - WARM);
    assert_eq!(world.worker.load().panics, 0);
}

#[test]
fn feedback_about_streams_of_others_does_nothing() {
    let (mut world, mut alice, mut bob, producer, ssrc) = call();
    let mut mallory = Client::connected(&mut world, "m", 5003);
    for number in 1..=20 {
        alice.send_frame(number, number == 1);
    }
    world.pass(600 * MS, &mut [&mut alice, &mut bob, &mut mallory]);
    alice.take_rtcp();
    let packets = bob.take_rtp();
    let before = world.stats(MediaObject::Producer(producer.clone()));
    for media in [ssrc, SSRC, RTX_SSRC, 0, u32::MAX] {
        let mut compound = Vec::new();
        rtcp::write_sender_report(&mut compound, media, u64::MAX, u32::MAX, u32::MAX, u32::MAX, "mallory");
        rtcp::write_receiver_report(
            &mut compound,
            9,
            &[rtcp::ReportBlock {
                ssrc: media,
                fraction_lost: 255,
                lost: 0x7f_ffff,
                highest: 0,
                jitter: u32::MAX,
                last_sr: 1,
                delay: 1,
            }],
        );
        rtcp::write_pli(&mut compound, 9, media);
        rtcp::write_fir(&mut compound, 9, media, 3);
        rtcp::write_nack(
            &mut compound,
            9,
            media,
            &[NackPair { first: packets[5].header.sequence, mask: 0xffff }],
        );
        mallory.send_rtcp(&compound);
        // A stream of media that nobody has announced.
        mallory.send(
            NewHeader { payload_type: MEDIA_TYPE, ..frame_header(media, 100) },
            &[(1, b"v")],
            &vp8(100, true),
        );
    }
    world.pass(600 * MS, &mut [&mut alice, &mut bob, &mut mallory]);
    assert_eq!(plis(&alice.take_rtcp(), SSRC), 0, "nobody's key frame is asked for");
    assert!(bob.take_rtp().is_empty() && mallory.take_rtp().is_empty(), "nothing is sent or sent again");
    let after = world.stats(MediaObject::Producer(producer));
    for field in ["packetsReceived", "pliCount", "firCount", "nackCount", "packetsLost"] {
        if let (Some(before), Some(after)) = (before[0].get(field), after[0].get(field)) {
            assert_eq!(before, after, "{field}");
        }
    }
}

#[test]
fn a_peer_that_changes_its_ssrc_with_each_packet_harms_only_itself() {
    let (mut world, mut alice, mut bob, _, _) = call();
    let mut carol = Client::connected(&mut world, "x", 5003);
    let producer = produce(&mut world, &carol, "q", MediaKind::Video, single());
    let (_, params) = consume(&mut world, &bob, "d", &producer);
    let mut rng = StdRng::seed_from_u64(8);
    let (mut bytes_in, mut back) = (0, 0);
    for i in 0..1_000u16 {
        // A key frame each: the worker takes a new SSRC for a sender that has started anew.
        alice.send(frame_header(rng.next_u32(), i), &[(1, b"v")], &vp8(i, true));
        carol.send_frame(i, i % 100 == 0);
        let bytes = alice.out.pop_front().expect("just queued");
        bytes_in += bytes.len();
        world.worker.handle_datagram(world.now, alice.address, &bytes);
        world.settle(&mut [&mut bob, &mut carol]);
        back += world
            .stray
            .drain(..)
            .filter(|(to, _)| *to == alice.address)
            .map(|(_, bytes)| bytes.len())
            .sum::<usize>();
        world.now += MS;
        world.worker.handle_timeout(world.now);
    }
    let got = bob.take_rtp();
    let hers = got.iter().filter(|p| Some(p.header.ssrc) == params.encodings[0].ssrc).count();
    assert_eq!(hers, 1_000, "Carol's packets all come through");
    println!("{bytes_in} bytes in, {back} bytes back");
    assert!(back < 2 * bytes_in, "{bytes_in} bytes in made {back} bytes of feedback");
    assert_eq!(world.worker.load().panics, 0);
}

#[test]
fn a_handshake_in_a_thousand_fragments_stalls_nobody() {
    let (mut world, mut alice, mut bob, _, _) = call();
    let mut mallory = Client::new(&mut world, "m", 5004);
    mallory.tell_fingerprint(&mut world, mallory.fingerprint()).expect("a new transport");
    mallory.bind(true);
    mallory.hello(world.now);
    mallory.out.truncate(2);
    world.settle(&mut [&mut mallory]);
    let mut slow = Slow::default();
    let mut bytes_in = 0;
    for record in 100..3_100u16 {
        // One byte each of a certificate of 16 000, then the same of the next message, in an order that joins nothing.
        let offset = usize::from(record) * 7 % 16_000;
        let u24 = |n: usize| [(n >> 16) as u8, (n >> 8) as u8, n as u8];
        let mut bytes = vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(&record.to_be_bytes());
        bytes.extend_from_slice(&13u16.to_be_bytes());
        bytes.push(11);
        bytes.extend_from_slice(&u24(16_000));
        bytes.extend_from_slice(&(2 + record / 1_500).to_be_bytes());
        bytes.extend_from_slice(&u24(offset));
        bytes.extend_from_slice(&u24(1));
        bytes.push(0);
        bytes_in += bytes.len();
        slow.datagram(&mut world, &mallory, &bytes);
        if record % 10 == 0 {
            alice.send_frame(record / 10, record == 100);
            world.settle(&mut [&mut alice, &mut bob]);
        }
    }
    println!("slowest of 3 000 fragments: {:?}", slow.worst);
    slow.check();
    assert_eq!(bob.take_rtp().len(), 300, "the others' call goes on");
    let back: usize =
        world.stray.iter().filter(|(to, _)| *to == mallory.address).map(|(_, bytes)| bytes.len()).sum();
    assert!(back < bytes_in, "{bytes_in} bytes of fragments were answered with {back}");
}

/// Who has not shown that it owns an address gets fewer bytes than it has sent there, whatever it sends.
#[test]
fn before_ice_less_comes_back_than_was_sent() {
    let mut world = World::new();
    let mut rng = StdRng::seed_from_u64(9);
    let mut known = Client::new(&mut world, "t", 5001);
    known.tell_fingerprint(&mut world, known.fingerprint()).expect("a new transport");
    let password = std::mem::replace(&mut known.ice.password, "guessed".into());
    known.bind(true);
    known.hello(world.now);
    let seeds: Vec<Vec<u8>> = known.out.drain(..).collect();
    let (mut bytes_in, mut bytes_out) = (0usize, 0usize);
    for round in 0..50_000u32 {
        let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
        for _ in 0..rng.random_range(0..3) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        if rng.random_bool(0.2) {
            bytes.truncate(rng.random_range(0..=bytes.len()));
        }
        if rng.random_bool(0.2) {
            rng.fill_bytes(&mut bytes);
        }
        bytes_in += bytes.len();
        let from = ([127, 0, rng.random(), rng.random()], 1_024 + (round % 60_000) as u16).into();
        world.worker.handle_datagram(world.now, from, &bytes);
        world.now += Duration::from_micros(100);
        world.worker.handle_timeout(world.now);
        bytes_out += world.outbox().iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    }
    println!("{bytes_in} bytes in, {bytes_out} out");
    assert_eq!(bytes_out, 0, "strangers hear nothing");
    assert_eq!(world.worker.load().panics, 0);
    // And the request that does succeed is answered with less than it is.
    known.ice.password = password;
    known.bind(true);
    let request = known.out.pop_front().expect("just queued");
    world.worker.handle_datagram(world.now, known.address, &request);
    let (datagrams, bytes) = sent_to(&mut world, 5001);
    assert!(datagrams == 1 && bytes <= request.len(), "{} bytes in, {bytes} bytes out", request.len());
}
