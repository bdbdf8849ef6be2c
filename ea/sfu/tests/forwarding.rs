//! Media through the worker, from a native client to a native client.

mod common;

use std::time::Duration;

use common::*;
use roomlog_bus::{
    media::{MediaCommand, MediaObject},
    ortc::{ConsumerLayers, MediaKind},
};
use roomlog_sfu::{NackPair, rtcp, rtp::NewHeader, srtp::ProtectionProfile};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;

const MS: Duration = Duration::from_millis(1);

/// Sequence numbers without their random start.
fn relative(packets: &[Packet]) -> Vec<u16> {
    let first = packets.first().map_or(0, |p| p.header.sequence);
    packets.iter().map(|p| p.header.sequence.wrapping_sub(first)).collect()
}

#[test]
fn gcm_is_taken_where_offered_and_cm_otherwise() {
    for (profiles, expected) in [
        (
            vec![
                SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80,
                SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm,
            ],
            ProtectionProfile::AeadAes128Gcm,
        ),
        (vec![SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80], ProtectionProfile::Aes128CmHmacSha1_80),
    ] {
        let mut world = World::new();
        let mut client = Client::new(&mut world, "t", 5001).with_profiles(profiles);
        client.connect(&mut world);
        let srtp = client.srtp.expect("connected");
        assert_eq!(format!("{:?}", srtp.profile), format!("{expected:?}"));
    }
}

#[test]
fn what_a_producer_sends_arrives_rewritten_at_its_consumer() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let (_, params) = consume(&mut world, &bob, "c", &producer);
    // 100 packets over the wrap of the producer's numbers; orientation as an extension that is passed on.
    for i in 0..100u16 {
        let number = i.wrapping_sub(50);
        let header = NewHeader { timestamp: u32::from(i) * 3000, ..frame_header(SSRC, number) };
        alice.send(header, &[(1, b"v"), (7, &[2])], &vp8(i, i == 0));
    }
    world.settle(&mut [&mut alice, &mut bob]);
    let got = bob.take_rtp();
    assert_eq!(relative(&got), (0..100).collect::<Vec<u16>>());
    assert!(got[0].header.sequence < 1 << 15);
    let id = |uri: &str| params.header_extensions.iter().find(|e| e.uri == uri).unwrap().id;
    use roomlog_sfu::ortc::uri;
    for (i, packet) in got.iter().enumerate() {
        assert_eq!(packet.header.ssrc, params.encodings[0].ssrc.unwrap());
        assert_eq!(packet.header.payload_type, params.codecs[0].payload_type);
        assert_eq!(packet.header.timestamp.wrapping_sub(got[0].header.timestamp), i as u32 * 3000);
        assert_eq!(packet.payload(), vp8(i as u16, i == 0));
        assert_eq!(
            packet.header.extension(&packet.bytes, id(uri::MID)),
            params.mid.as_ref().map(|m| m.as_bytes())
        );
        assert_eq!(packet.header.extension(&packet.bytes, id(uri::VIDEO_ORIENTATION)), Some(&[2][..]));
        let sequence = packet.header.extension(&packet.bytes, id(uri::TRANSPORT_WIDE_CC)).unwrap();
        assert_eq!(
            sequence,
            (i as u16).to_be_bytes(),
            "transport-wide numbers are the consumer's transport's own"
        );
    }
}

#[test]
fn a_consumer_begins_with_a_key_frame_that_was_asked_for() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    alice.send_frame(1, true);
    world.settle(&mut [&mut alice, &mut bob]);
    consume(&mut world, &bob, "c", &producer);
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(plis(&alice.take_rtcp(), SSRC), 1);
    alice.send_frame(2, false);
    world.settle(&mut [&mut alice, &mut bob]);
    assert!(bob.take_rtp().is_empty(), "it could not be decoded");
    alice.send_frame(3, true);
    alice.send_frame(4, false);
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(relative(&bob.take_rtp()), [0, 1]);
}

#[test]
fn key_frame_requests_of_many_become_one() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let (_, params) = consume(&mut world, &bob, "c", &producer);
    alice.send_frame(1, true);
    world.pass(600 * MS, &mut [&mut alice, &mut bob]);
    alice.take_rtcp();
    for _ in 0..10 {
        let mut pli = Vec::new();
        rtcp::write_pli(&mut pli, 9, params.encodings[0].ssrc.unwrap());
        bob.send_rtcp(&pli);
        world.pass(10 * MS, &mut [&mut alice, &mut bob]);
    }
    assert_eq!(plis(&alice.take_rtcp(), SSRC), 1);
    alice.send_frame(2, true);
    world.pass(600 * MS, &mut [&mut alice, &mut bob]);
    assert_eq!(plis(&alice.take_rtcp(), SSRC), 1, "what was asked within the pause is asked after it");
}

#[test]
fn a_packet_lost_on_the_way_out_is_sent_again_on_rtx() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let (consumer, params) = consume(&mut world, &bob, "c", &producer);
    for number in 1..=20 {
        alice.send_frame(number, number == 1);
    }
    world.settle(&mut [&mut alice, &mut bob]);
    let got = bob.take_rtp();
    let lost = &got[7];
    let ask = |bob: &mut Client, sequence| {
        let mut nack = Vec::new();
        rtcp::write_nack(
            &mut nack,
            9,
            params.encodings[0].ssrc.unwrap(),
            &[NackPair { first: sequence, mask: 0 }],
        );
        bob.send_rtcp(&nack);
    };
    ask(&mut bob, lost.header.sequence);
    ask(&mut bob, lost.header.sequence);
    world.settle(&mut [&mut alice, &mut bob]);
    let again = bob.take_rtp();
    let [repair] = &again[..] else {
        panic!("{} repairs: the second request came while the first was answered", again.len())
    };
    assert_eq!(repair.header.ssrc, params.encodings[0].rtx.unwrap().ssrc);
    assert_eq!(repair.header.payload_type, params.codecs[1].payload_type);
    assert_eq!(repair.header.timestamp, lost.header.timestamp);
    assert_eq!(&repair.payload()[..2], lost.header.sequence.to_be_bytes());
    assert_eq!(&repair.payload()[2..], lost.payload());
    let stats = world.stats(MediaObject::Consumer(consumer));
    assert_eq!((&stats[0]["nackCount"], &stats[0]["packetsRetransmitted"]), (&2.into(), &1.into()));
}

#[test]
fn on_a_lossy_way_a_repair_is_sent_twice_and_on_a_full_one_not() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let (consumer, params) = consume(&mut world, &bob, "c", &producer);
    let ssrc = params.encodings[0].ssrc.unwrap();
    for number in 1..=20 {
        alice.send_frame(number, number == 1);
    }
    world.settle(&mut [&mut alice, &mut bob]);
    let got = bob.take_rtp();
    // In 1/256: nothing, 5 %, half.
    for (index, (fraction_lost, copies)) in [(0, 1), (13, 2), (128, 1)].into_iter().enumerate() {
        let mut compound = Vec::new();
        let block = rtcp::ReportBlock { ssrc, fraction_lost, ..Default::default() };
        rtcp::write_receiver_report(&mut compound, 9, &[block]);
        let asked = got[index].header.sequence;
        rtcp::write_nack(&mut compound, 9, ssrc, &[NackPair { first: asked, mask: 0 }]);
        bob.send_rtcp(&compound);
        world.settle(&mut [&mut alice, &mut bob]);
        let again = bob.take_rtp();
        assert_eq!(again.len(), copies, "{fraction_lost}/256 lost");
        assert!(again.iter().all(|p| p.payload()[..2] == asked.to_be_bytes()));
    }
    let stats = world.stats(MediaObject::Consumer(consumer));
    assert_eq!(stats[0]["packetsRetransmitted"], 3, "packets are counted, not copies");
}

#[test]
fn without_rtx_the_same_bytes_are_sent_again() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Audio, audio());
    let (_, params) = consume(&mut world, &bob, "c", &producer);
    let header = NewHeader { marker: false, payload_type: 111, sequence: 5, timestamp: 960, ssrc: 2222 };
    alice.send(header, &[(1, b"a")], b"opus");
    while let Some(bytes) = alice.out.pop_front() {
        world.worker.handle_datagram(world.now, alice.address, &bytes);
    }
    let first = world.outbox();
    let [(_, protected)] = &first[..] else { panic!("{} datagrams", first.len()) };
    bob.receive(world.now, protected);
    let sequence = bob.rtp[0].header.sequence;
    let mut nack = Vec::new();
    rtcp::write_nack(
        &mut nack,
        9,
        params.encodings[0].ssrc.unwrap(),
        &[NackPair { first: sequence, mask: 0 }],
    );
    bob.send_rtcp(&nack);
    while let Some(bytes) = bob.out.pop_front() {
        world.worker.handle_datagram(world.now, bob.address, &bytes);
    }
    assert_eq!(world.outbox(), first, "another text under the same nonce would give the GCM key away");
}

#[test]
fn a_packet_lost_on_the_way_in_is_asked_for_and_takes_its_place() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    consume(&mut world, &bob, "c", &producer);
    for number in [1, 2, 4, 5] {
        alice.send_frame(number, number == 1);
    }
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(nacked(&alice.take_rtcp(), SSRC), [3]);
    let rtx = |sequence, original: u16| {
        let header = NewHeader { payload_type: RTX_TYPE, sequence, ..frame_header(RTX_SSRC, original) };
        ([&original.to_be_bytes()[..], &vp8(original, false)].concat(), header)
    };
    for (sequence, original) in [(1, 2), (2, 3), (3, 3)] {
        let (payload, header) = rtx(sequence, original);
        alice.send(header, &[(1, b"v")], &payload);
    }
    world.settle(&mut [&mut alice, &mut bob]);
    let got = bob.take_rtp();
    assert_eq!(relative(&got), [0, 1, 3, 4, 2], "the probe of 2 and the second 3 go nowhere");
    assert_eq!(got[4].payload(), vp8(3, false));
    let stats = world.stats(MediaObject::Transport(bob.transport.clone()));
    assert_eq!(stats[0]["refusedNonceReuses"], 0, "it was not left to the last defence");
    world.pass(500 * MS, &mut [&mut alice, &mut bob]);
    assert!(nacked(&alice.take_rtcp(), SSRC).is_empty(), "nothing is missing any more");
}

#[test]
fn a_key_frame_whose_beginning_was_repaired_goes_on_with_what_had_come_of_it() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    consume(&mut world, &bob, "c", &producer);
    // 12 begins the key frame and is late; so is 14.
    for number in [10, 11, 13, 16, 15] {
        alice.send_frame(number, false);
    }
    world.settle(&mut [&mut alice, &mut bob]);
    assert!(bob.take_rtp().is_empty(), "nothing to begin with");
    for (sequence, original) in [(1, 12u16), (2, 14)] {
        let header = NewHeader { payload_type: RTX_TYPE, sequence, ..frame_header(RTX_SSRC, original) };
        let payload = [&original.to_be_bytes()[..], &vp8(original, original == 12)].concat();
        alice.send(header, &[(1, b"v")], &payload);
    }
    alice.send_frame(17, false);
    world.settle(&mut [&mut alice, &mut bob]);
    let got = bob.take_rtp();
    assert_eq!(relative(&got), [0, 1, 3, 4, 2, 5]);
    assert_eq!(got[1].payload(), vp8(13, false), "behind the key frame, in order");
    assert_eq!(got[4].payload(), vp8(14, false));
}

#[test]
fn empty_padding_leaves_no_gap() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    consume(&mut world, &bob, "c", &producer);
    alice.send_frame(1, true);
    alice.send(frame_header(SSRC, 2), &[(1, b"v")], &[]);
    alice.send_frame(3, false);
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(relative(&bob.take_rtp()), [0, 1]);
}

#[test]
fn a_pause_leaves_no_gap_and_ends_with_a_key_frame() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let (consumer, _) = consume(&mut world, &bob, "c", &producer);
    let pauses = [
        |paused, _, consumer: &_| MediaCommand::PauseConsumer { consumer: Clone::clone(consumer), paused },
        |paused, producer: &_, _: &_| MediaCommand::PauseProducer {
            producer: Clone::clone(producer),
            paused,
        },
    ];
    let mut number = 1;
    let mut expected = 0;
    for pause in pauses {
        alice.send_frame(number, true);
        alice.send_frame(number + 1, false);
        world.settle(&mut [&mut alice, &mut bob]);
        world.ask(pause(true, &producer, &consumer)).unwrap();
        for i in 2..50 {
            alice.send_frame(number + i, i == 20);
        }
        world.pass(1_000 * MS, &mut [&mut alice, &mut bob]);
        alice.take_rtcp();
        world.ask(pause(false, &producer, &consumer)).unwrap();
        world.settle(&mut [&mut alice, &mut bob]);
        assert_eq!(plis(&alice.take_rtcp(), SSRC), 1);
        alice.send_frame(number + 50, false);
        alice.send_frame(number + 51, true);
        world.settle(&mut [&mut alice, &mut bob]);
        expected += 3;
        assert_eq!(bob.rtp.len(), expected, "two before, the key frame after");
        number += 52;
    }
    assert_eq!(relative(&bob.take_rtp()), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn simulcast_layers_are_learned_by_rid_and_switched_at_key_frames_without_a_trace() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, simulcast());
    let (consumer, params) = consume(&mut world, &bob, "c", &producer);
    let layers: [(u32, &[u8]); 3] = [(31, b"q"), (32, b"h"), (33, b"f")];
    let mut number = [1000u16, 20_000, 40_000];
    let mut tick = |world: &mut World, alice: &mut Client, bob: &mut Client, keys: &[usize]| {
        for (layer, (ssrc, rid)) in layers.iter().enumerate() {
            let key = keys.contains(&layer);
            alice.send(frame_header(*ssrc, number[layer]), &[(1, b"v"), (5, rid)], &vp8(number[layer], key));
            number[layer] += 1;
        }
        world.pass(33 * MS, &mut [alice, bob]);
    };
    for i in 0..20 {
        tick(&mut world, &mut alice, &mut bob, if i == 8 { &[0, 1, 2] } else { &[] });
    }
    let prefer = |world: &mut World, spatial_layer| {
        let layers = ConsumerLayers { spatial_layer, temporal_layer: None };
        world.ask(MediaCommand::SetPreferredLayers { consumer: consumer.clone(), layers }).unwrap();
    };
    let mut highest = Vec::new();
    for (wish, ssrc) in [(0, 31), (2, 33), (1, 32)] {
        world.pass(600 * MS, &mut [&mut alice, &mut bob]);
        for _ in 0..3 {
            tick(&mut world, &mut alice, &mut bob, &[]);
        }
        alice.take_rtcp();
        prefer(&mut world, wish);
        for _ in 0..5 {
            tick(&mut world, &mut alice, &mut bob, &[]);
        }
        assert_eq!(plis(&alice.take_rtcp(), ssrc), 1, "a key frame of the wished layer is asked for");
        highest.push(bob.rtp.len());
        tick(&mut world, &mut alice, &mut bob, &[usize::from(wish)]);
        for _ in 0..5 {
            tick(&mut world, &mut alice, &mut bob, &[]);
        }
    }
    let got = bob.take_rtp();
    assert!(highest[0] > 5, "the best layer flows until told otherwise");
    assert_eq!(relative(&got), (0..got.len() as u16).collect::<Vec<_>>(), "no gap");
    assert!(got.iter().all(|p| Some(p.header.ssrc) == params.encodings[0].ssrc));
    for pair in got.windows(2) {
        let step = pair[1].header.timestamp.wrapping_sub(pair[0].header.timestamp);
        assert!((1..200_000).contains(&step), "timestamps go on: {step}");
        let picture = |p: &Packet| u16::from_be_bytes([p.payload()[2] & 0x7f, p.payload()[3]]);
        assert_eq!(picture(&pair[1]), (picture(&pair[0]) + 1) & 0x7fff, "picture ids go on");
    }
}

#[test]
fn a_stream_that_starts_anew_on_another_ssrc_goes_on_without_a_gap() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, simulcast());
    consume(&mut world, &bob, "c", &producer);
    for (ssrc, from) in [(31, 500u16), (41, 40_000), (51, 7)] {
        for i in 0..3 {
            alice.send(frame_header(ssrc, from + i), &[(1, b"v"), (5, b"q")], &vp8(from + i, i == 0));
        }
        world.pass(600 * MS, &mut [&mut alice, &mut bob]);
        assert_eq!(plis(&alice.take_rtcp(), ssrc), usize::from(ssrc != 31), "a key frame of the new stream");
    }
    assert_eq!(relative(&bob.take_rtp()), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_switch_keeps_the_time_of_capture_where_sender_reports_tell_it() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, simulcast());
    let (consumer, _) = consume(&mut world, &bob, "c", &producer);
    let send = |alice: &mut Client, ssrc, rid: &[u8], timestamp, number, key| {
        let header = NewHeader { timestamp, ..frame_header(ssrc, number) };
        alice.send(header, &[(1, b"v"), (5, rid)], &vp8(number, key));
    };
    // Both layers' clocks start anywhere; the reports say that 1 000 000 on one is 7 000 000 on the other, at NTP second 100.
    send(&mut alice, 31, b"q", 1_000_000, 1, true);
    send(&mut alice, 33, b"f", 7_000_000, 1, false);
    for (ssrc, rtp) in [(31, 1_000_000), (33, 7_000_000)] {
        let mut report = Vec::new();
        rtcp::write_sender_report(&mut report, ssrc, 100 << 32, rtp, 1, 1, "x");
        alice.send_rtcp(&report);
    }
    send(&mut alice, 31, b"q", 1_003_000, 2, false);
    world.settle(&mut [&mut alice, &mut bob]);
    // The key frame of the other layer was captured 100 ms after the last small picture, and is 40 ms later on its way.
    world.pass(140 * MS, &mut [&mut alice, &mut bob]);
    let layers = ConsumerLayers { spatial_layer: 2, temporal_layer: None };
    world.ask(MediaCommand::SetPreferredLayers { consumer, layers }).unwrap();
    send(&mut alice, 33, b"f", 7_012_000, 2, true);
    world.settle(&mut [&mut alice, &mut bob]);
    let got = bob.take_rtp();
    let steps: Vec<u32> =
        got.windows(2).map(|p| p[1].header.timestamp.wrapping_sub(p[0].header.timestamp)).collect();
    assert_eq!(steps, [3_000, 9_000], "in 1/90 000 s of capture, not of arrival");
}

#[test]
fn a_layer_that_falls_silent_is_left() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, simulcast());
    consume(&mut world, &bob, "c", &producer);
    for i in 0..100u16 {
        alice.send(frame_header(31, i), &[(1, b"v"), (5, b"q")], &vp8(i, i % 10 == 0));
        if i < 20 {
            alice.send(frame_header(33, i), &[(1, b"v"), (5, b"f")], &vp8(i, i % 10 == 0));
        }
        world.pass(33 * MS, &mut [&mut alice, &mut bob]);
    }
    let last = bob.take_rtp().pop().unwrap();
    assert_eq!(last.payload()[6..], vp8(99, false)[6..], "the small layer of the last frame");
}

#[test]
fn senders_learn_when_their_packets_arrived() {
    let mut world = World::new();
    let mut alice = Client::connected(&mut world, "a", 5001);
    produce(&mut world, &alice, "p", MediaKind::Video, single());
    for number in 0..20 {
        alice.send_frame(number, number == 0);
        world.pass(5 * MS, &mut [&mut alice]);
    }
    world.pass(200 * MS, &mut [&mut alice]);
    let compound = alice.take_rtcp();
    use rtc_rtcp::transport_feedbacks::transport_layer_cc::TransportLayerCc;
    let told: u16 = rtc_rtcp::packet::unmarshal(&mut &compound[..])
        .unwrap()
        .iter()
        .filter_map(|p| p.as_any().downcast_ref::<TransportLayerCc>())
        .map(|cc| cc.packet_status_count)
        .sum();
    assert_eq!(told, 20);
}

#[test]
fn both_sides_get_reports() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    let (_, params) = consume(&mut world, &bob, "c", &producer);
    for number in (0..100).filter(|n| n % 10 != 9) {
        alice.send_frame(number, number == 0);
        world.pass(20 * MS, &mut [&mut alice, &mut bob]);
    }
    world.pass(1_100 * MS, &mut [&mut alice, &mut bob]);
    let to_alice = alice.take_rtcp();
    let lost = rtcp::parse(&to_alice)
        .filter_map(|p| match p {
            rtcp::Rtcp::ReceiverReport { blocks } => rtcp::report_blocks(blocks).find(|b| b.ssrc == SSRC),
            _ => None,
        })
        .last()
        .expect("a receiver report");
    assert_eq!((lost.lost, lost.highest), (9, 98));
    let to_bob = bob.take_rtcp();
    let reports: Vec<(u64, u32)> = rtcp::parse(&to_bob)
        .filter_map(|p| match p {
            rtcp::Rtcp::SenderReport { ssrc, ntp, rtp, .. } if Some(ssrc) == params.encodings[0].ssrc => {
                Some((ntp, rtp))
            }
            _ => None,
        })
        .collect();
    let [(ntp, rtp), .., (later_ntp, later_rtp)] = reports[..] else {
        panic!("{} sender reports", reports.len())
    };
    let seconds = (later_ntp - ntp) as f64 / 4_294_967_296.0;
    // The producer's clock runs at 3000 ticks in 20 ms here, the reports' at 90 000 Hz between packets.
    assert!(
        seconds > 0.9 && later_rtp.wrapping_sub(rtp) > 90_000,
        "{seconds} s, {} ticks",
        later_rtp.wrapping_sub(rtp)
    );
}
