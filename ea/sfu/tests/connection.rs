//! How transports come up, move, and end; and what strangers cannot do.

mod common;

use std::time::{Duration, Instant};

use common::*;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use roomlog_bus::{
    ids::{ConsumerId, ProducerId},
    media::{
        ICE_CONSENT_MS, MediaAnswer, MediaCommand, MediaError, MediaNotification, MediaObject, TransportState,
    },
    ortc::{DtlsFingerprint, DtlsParameters, DtlsRole, MediaKind, RtpCapabilities},
};
use roomlog_sfu::stun;

fn states(world: &mut World, client: &Client) -> Vec<TransportState> {
    let _ = world.outbox();
    world
        .notifications
        .iter()
        .filter_map(|n| match n {
            MediaNotification::TransportState { transport, state } if *transport == client.transport => {
                Some(*state)
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_transport_goes_from_new_over_connecting_to_connected() {
    let mut world = World::new();
    let client = Client::connected(&mut world, "t", 5001);
    assert_eq!(states(&mut world, &client), [TransportState::Connecting, TransportState::Connected]);
}

#[test]
fn a_client_hello_may_come_before_the_fingerprints() {
    let mut world = World::new();
    let mut client = Client::new(&mut world, "t", 5001);
    client.bind(true);
    client.hello(world.now);
    world.settle(&mut [&mut client]);
    assert!(client.srtp.is_none());
    client.tell_fingerprint(&mut world, client.fingerprint()).unwrap();
    world.settle(&mut [&mut client]);
    assert!(client.srtp.is_some());
}

#[test]
fn another_certificate_gets_no_keys() {
    let mut world = World::new();
    let mut client = Client::new(&mut world, "t", 5001);
    let other = DtlsFingerprint {
        value: client.fingerprint().value.replace('A', "B").replace('1', "2"),
        ..client.fingerprint()
    };
    client.tell_fingerprint(&mut world, other).unwrap();
    client.bind(true);
    world.settle(&mut [&mut client]);
    client.hello(world.now);
    world.settle(&mut [&mut client]);
    assert_eq!(states(&mut world, &client), [TransportState::Connecting, TransportState::Failed]);
    let stats = world.stats(MediaObject::Transport(client.transport.clone()));
    assert_eq!(stats[0]["srtpProfile"], serde_json::Value::Null);
}

#[test]
fn fingerprints_are_given_once_and_the_worker_is_never_the_dtls_client() {
    let mut world = World::new();
    let client = Client::new(&mut world, "t", 5001);
    let fingerprint = client.fingerprint();
    client.tell_fingerprint(&mut world, fingerprint.clone()).unwrap();
    client.tell_fingerprint(&mut world, fingerprint.clone()).expect("the same again");
    let other = DtlsFingerprint { value: "00".into(), ..fingerprint.clone() };
    assert!(matches!(client.tell_fingerprint(&mut world, other), Err(MediaError::WrongState { .. })));
    let dtls = DtlsParameters { role: DtlsRole::Server, fingerprints: vec![fingerprint] };
    let refused = world.ask(MediaCommand::ConnectTransport { transport: client.transport, dtls });
    assert!(matches!(refused, Err(MediaError::BadParameters { .. })));
}

#[test]
fn consent_ends_after_its_time_and_comes_back_with_a_request() {
    let mut world = World::new();
    let mut client = Client::connected(&mut world, "t", 5001);
    world.pass(Duration::from_millis(ICE_CONSENT_MS - 100), &mut [&mut client]);
    assert_eq!(states(&mut world, &client).last(), Some(&TransportState::Connected));
    world.pass(Duration::from_millis(200), &mut [&mut client]);
    assert_eq!(states(&mut world, &client).last(), Some(&TransportState::Disconnected));
    client.bind(true);
    world.settle(&mut [&mut client]);
    assert_eq!(states(&mut world, &client).last(), Some(&TransportState::Connected));
}

#[test]
fn without_consent_nothing_is_sent() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    consume(&mut world, &bob, "c", &producer);
    world.pass(Duration::from_millis(ICE_CONSENT_MS + 100), &mut [&mut alice, &mut bob]);
    alice.bind(true);
    alice.send_frame(1, true);
    world.settle(&mut [&mut alice, &mut bob]);
    assert!(bob.take_rtp().is_empty(), "Bob was not heard of for too long");
    alice.take_rtcp();
    bob.bind(true);
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(plis(&alice.take_rtcp(), SSRC), 1, "he is back and needs a key frame");
    alice.send_frame(2, true);
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(bob.take_rtp().len(), 1);
}

#[test]
fn a_client_that_moves_keeps_its_media() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    consume(&mut world, &bob, "c", &producer);
    alice.send_frame(1, true);
    world.settle(&mut [&mut alice, &mut bob]);
    for client in [&mut alice, &mut bob] {
        client.address.set_port(client.address.port() + 1000);
        client.bind(true);
    }
    world.settle(&mut [&mut alice, &mut bob]);
    alice.send_frame(2, false);
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(bob.take_rtp().len(), 2);
    assert!(world.stray.is_empty(), "nothing goes to the old address");
}

#[test]
fn after_a_restart_old_credentials_hold_until_the_new_ones_are_used() {
    let mut world = World::new();
    let mut client = Client::connected(&mut world, "t", 5001);
    let old = client.ice.clone();
    let Ok(MediaAnswer::Ice { ice_parameters: new }) =
        world.ask(MediaCommand::RestartIce { transport: client.transport.clone() })
    else {
        panic!("no restart")
    };
    assert_ne!(old.username_fragment, new.username_fragment);
    client.stun.clear();
    for (credentials, answered) in [(&old, true), (&new, true), (&old, false)] {
        client.ice = credentials.clone();
        client.bind(true);
        world.settle(&mut [&mut client]);
        assert_eq!(client.stun.pop().is_some(), answered);
    }
}

#[test]
fn a_side_that_believes_to_be_controlled_is_told_of_the_conflict() {
    let mut world = World::new();
    let mut client = Client::new(&mut world, "t", 5001);
    let username = format!("{}:peer", client.ice.username_fragment);
    client.out.push_back(stun::binding_request(
        provider().crypto(),
        &[1; 12],
        &username,
        &client.ice.password,
        false,
        false,
    ));
    world.settle(&mut [&mut client]);
    let answer = client.stun.pop().unwrap();
    assert_eq!((&answer[..2], &answer[20..28]), (&[1, 0x11][..], &[0, 9, 0, 17, 0, 0, 4, 87][..]), "487");
    assert!(states(&mut world, &client).is_empty(), "and that is no connection yet");
}

#[test]
fn strangers_get_no_byte_and_nobody_gets_more_than_was_sent_before_ice() {
    let mut world = World::new();
    let mut client = Client::new(&mut world, "t", 5001);
    client.tell_fingerprint(&mut world, client.fingerprint()).unwrap();
    client.hello(world.now);
    world.settle(&mut [&mut client]);
    client.ice.password = "guessed".into();
    client.bind(true);
    world.settle(&mut [&mut client]);
    assert!(client.stun.is_empty() && client.srtp.is_none() && world.stray.is_empty());
    assert!(world.worker.load().unknown_source > 0);
}

#[test]
fn garbage_ends_nothing() {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", MediaKind::Video, single());
    consume(&mut world, &bob, "c", &producer);
    alice.send_frame(1, true);
    alice.bind(true);
    let mut good: Vec<Vec<u8>> = alice.out.iter().cloned().collect();
    let mut hello = Client::new(&mut world, "h", 5003);
    hello.hello(world.now);
    good.extend(hello.out.drain(..));
    world.settle(&mut [&mut alice, &mut bob]);
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..20_000 {
        let mut bytes = good[rng.random_range(0..good.len())].clone();
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        if rng.random_bool(0.3) {
            bytes.truncate(rng.random_range(0..=bytes.len()));
        }
        if rng.random_bool(0.1) {
            rng.fill_bytes(&mut bytes);
        }
        // Alice's own request, unchanged, would rightly take Bob's address away from him.
        let from_bob = rng.random() && !stun::looks_like_stun(&bytes);
        world.worker.handle_datagram(world.now, if from_bob { bob.address } else { alice.address }, &bytes);
    }
    world.worker.outbox().clear();
    assert_eq!(world.worker.load().panics, 0);
    bob.take_rtp();
    alice.send_frame(2, false);
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(bob.take_rtp().len(), 1, "media still flows");
}

#[test]
fn handshakes_with_changed_bytes_never_panic() {
    let mut rng = StdRng::seed_from_u64(11);
    let mut connected = 0;
    let mut world = World::new();
    for round in 0..150u16 {
        let mut client = Client::new(&mut world, &format!("t{round}"), 6000 + round);
        client.tell_fingerprint(&mut world, client.fingerprint()).unwrap();
        client.bind(true);
        client.hello(world.now);
        for _ in 0..12 {
            while let Some(good) = client.out.pop_front() {
                // Before each datagram of the client come some that are almost it, as from somebody on the way.
                for _ in 0..rng.random_range(0..4) {
                    let mut bad = good.clone();
                    for _ in 0..rng.random_range(1..6) {
                        let at = rng.random_range(0..bad.len());
                        bad[at] = rng.random();
                    }
                    bad.truncate(rng.random_range(1..=bad.len()));
                    world.worker.handle_datagram(world.now, client.address, &bad);
                }
                world.worker.handle_datagram(world.now, client.address, &good);
            }
            for (to, bytes) in world.outbox() {
                if to == client.address {
                    client.receive(world.now, &bytes);
                }
            }
        }
        connected += usize::from(client.srtp.is_some());
        world.ask(MediaCommand::Close { object: MediaObject::Transport(client.transport) }).unwrap();
        world.outbox();
    }
    assert_eq!(world.worker.load().panics, 0);
    // What came changed first may count as the real thing, so not every handshake can succeed; this is no test of luck.
    assert!(connected > 0, "the rounds reach the end of the handshake");
}

/// A handshake record with one fragment of a message of `length` bytes.
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

#[test]
fn handshake_fragments_cannot_freeze_the_worker() {
    let mut world = World::new();
    let mut client = Client::new(&mut world, "t", 5001);
    client.tell_fingerprint(&mut world, client.fingerprint()).unwrap();
    client.bind(true);
    client.hello(world.now);
    // The hello opens the association inside; what follows would be put together in cubic time.
    world.settle(&mut [&mut client]);
    let mut mallory = Client::new(&mut world, "m", 5004);
    mallory.tell_fingerprint(&mut world, mallory.fingerprint()).unwrap();
    mallory.bind(true);
    mallory.hello(world.now);
    mallory.out.truncate(2);
    world.settle(&mut [&mut mallory]);
    let started = Instant::now();
    for record in 100..10_000u64 {
        let offset = (record - 100) as usize;
        world.worker.handle_datagram(world.now, mallory.address, &fragment(record, 3, 16_000, offset, 1));
    }
    world.worker.handle_datagram(world.now, mallory.address, &fragment(20_000, 3, 20_000, 0, 1));
    let took = started.elapsed();
    let stats = world.stats(MediaObject::Transport(mallory.transport.clone()));
    assert!(stats[0]["refusedDtlsRecords"].as_u64() > Some(9_000), "{stats}");
    assert!(took < Duration::from_secs(1), "10 000 fragments took {took:?}");
    assert!(client.srtp.is_some(), "and others are not held up");
}

#[test]
fn commands_asked_twice_answer_the_same_and_do_nothing_more() {
    let mut world = World::new();
    let client = Client::connected(&mut world, "t", 5001);
    let producer = ProducerId::new("p").unwrap();
    let consumer = ConsumerId::new("c").unwrap();
    let commands = [
        MediaCommand::CreateRouter,
        MediaCommand::CreateTransport { transport: client.transport.clone() },
        MediaCommand::Produce {
            transport: client.transport.clone(),
            producer: producer.clone(),
            kind: MediaKind::Audio,
            rtp_parameters: audio(),
            paused: false,
        },
        MediaCommand::Consume {
            transport: client.transport.clone(),
            consumer: consumer.clone(),
            producer: producer.clone(),
            rtp_capabilities: roomlog_sfu::ortc::router_rtp_capabilities(),
        },
    ];
    for command in commands {
        let first = world.ask(command.clone()).unwrap();
        assert_eq!(world.ask(command).unwrap(), first);
    }
    let Ok(MediaAnswer::Inventory { inventory }) = world.ask(MediaCommand::Inventory) else {
        panic!("no inventory")
    };
    assert_eq!((inventory.transports.len(), inventory.producers.len(), inventory.consumers.len()), (1, 1, 1));
    assert_eq!(inventory.transports[0].state, TransportState::Connected);
    assert!(inventory.consumers[0].paused, "a consumer starts paused");
    // Closing the producer closes its consumer; closing again is no error.
    for object in [
        MediaObject::Producer(producer.clone()),
        MediaObject::Producer(producer),
        MediaObject::Consumer(consumer),
    ] {
        world.ask(MediaCommand::Close { object }).unwrap();
    }
    let load = world.worker.load();
    assert_eq!((load.routers, load.transports, load.producers, load.consumers), (1, 1, 0, 0));
    world.ask(MediaCommand::Close { object: MediaObject::Router }).unwrap();
    assert_eq!(world.worker.load().transports, 0);
    assert!(matches!(world.ask(MediaCommand::Inventory), Err(MediaError::NoRoom)));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mut world = World::new();
    let client = Client::connected(&mut world, "t", 5001);
    let producer = produce(&mut world, &client, "p", MediaKind::Audio, audio());
    let consume = |world: &mut World, producer: ProducerId, caps| {
        let command = MediaCommand::Consume {
            transport: client.transport.clone(),
            consumer: ConsumerId::new("c").unwrap(),
            producer,
            rtp_capabilities: caps,
        };
        world.ask(command)
    };
    let nothing = consume(&mut world, producer.clone(), RtpCapabilities::default());
    assert_eq!(nothing, Err(MediaError::CannotConsume { producer }));
    let nobody =
        consume(&mut world, ProducerId::new("x").unwrap(), roomlog_sfu::ortc::router_rtp_capabilities());
    assert_eq!(nobody, Err(MediaError::NoObject { what: "producer".into(), id: "x".into() }));
    // A second producer with the first one's SSRC, or its MID, would take its packets.
    let mut same_ssrc = audio();
    same_ssrc.mid = Some("b".into());
    let mut same_mid = audio();
    same_mid.encodings[0].ssrc = Some(3333);
    for rtp_parameters in [same_ssrc, same_mid] {
        let twice = world.ask(MediaCommand::Produce {
            transport: client.transport.clone(),
            producer: ProducerId::new("q").unwrap(),
            kind: MediaKind::Audio,
            rtp_parameters,
            paused: false,
        });
        assert!(matches!(twice, Err(MediaError::BadParameters { .. })), "{twice:?}");
    }
}

#[test]
fn closing_says_goodbye() {
    let mut world = World::new();
    let mut client = Client::connected(&mut world, "t", 5001);
    world.ask(MediaCommand::Close { object: MediaObject::Transport(client.transport.clone()) }).unwrap();
    world.settle(&mut [&mut client]);
    assert!(client.closed, "the client sees close_notify");
    client.bind(true);
    client.stun.clear();
    world.settle(&mut [&mut client]);
    assert!(client.stun.is_empty(), "and is a stranger from then on");
}
