//! A whole worker with a sender and a receiver: datagrams from strangers, from those who know a password, and from connected clients
//! gone bad, with the clock moving and the EA meddling.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use roomlog_bus::{
    media::{MediaCommand, MediaObject},
    ortc::{ConsumerLayers, MediaKind},
};
use roomlog_sfu::rtp::{HeaderWriter, NewHeader};

use super::{
    common::{self, Client, World},
    packet::seal,
};
use crate::input::Input;

/// Steps of one script.
const MAX_STEPS: usize = 64;
/// Bytes that one datagram of a client may make the worker send: an RTP packet goes to one consumer with a longer header, a NACK asks
/// for what is kept, at most 17 packets a pair.
const MAX_SENT: usize = 2_000_000;

/// `shape, (step, …)*`: bits of `shape` say who is connected and what is sent.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let shape = input.byte();
    let mut world = World::new();
    // Two clients of one room: on a worker nothing else is shared.
    let connect = |world: &mut World, name: &str, port: u16, connected: bool| match connected {
        true => Client::connected(world, name, port),
        false => Client::new(world, name, port),
    };
    let mut alice = connect(&mut world, "a", 5001, shape & 1 != 0);
    let mut bob = connect(&mut world, "b", 5002, shape & 2 != 0);
    let params = match shape >> 2 & 3 {
        0 => common::single(),
        1 => common::simulcast(),
        _ => common::audio(),
    };
    let kind = if shape & 8 == 0 { MediaKind::Video } else { MediaKind::Audio };
    let producer = common::produce(&mut world, &alice, "p", kind, params);
    let (consumer, received) = common::consume(&mut world, &bob, "c", &producer);
    // Who may be answered: addresses that a binding request with the password came from.
    let mut proven = BTreeSet::from([alice.address, bob.address]);
    let mut sent = Vec::new();

    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let before = world.worker.load();
        match input.byte() % 12 {
            0 => {
                let from = stranger(&mut input);
                world.worker.handle_datagram(world.now, from, input.chunk());
            }
            1 => {
                let from = stranger(&mut input);
                let (client, attributes) = (if input.byte() & 1 == 0 { &alice } else { &bob }, input.short());
                let user = format!("{}:x", client.ice.username_fragment);
                let mut all = vec![0, 6, 0, user.len() as u8];
                all.extend_from_slice(user.as_bytes());
                all.resize(all.len().next_multiple_of(4), 0);
                all.extend_from_slice(&[0, 0x24, 0, 4, 1, 2, 3, 4]);
                all.extend_from_slice(&attributes[..attributes.len() / 4 * 4]);
                let request = seal(&all, &client.ice.password);
                world.worker.handle_datagram(world.now, from, &request);
                proven.insert(from);
            }
            2 => world.worker.handle_datagram(world.now, alice.address, input.chunk()),
            3 => world.worker.handle_datagram(world.now, bob.address, input.chunk()),
            // RTP as the sender would protect it, all else at will.
            4 | 5 => {
                let number = input.word();
                let flags = input.byte();
                let ssrc = match flags & 3 {
                    0 => common::SSRC,
                    1 => common::RTX_SSRC,
                    2 => 2222,
                    _ => input.long(),
                };
                let payload_type = match flags >> 2 & 3 {
                    0 => common::MEDIA_TYPE,
                    1 => common::RTX_TYPE,
                    2 => 111,
                    _ => input.byte(),
                };
                let header = NewHeader {
                    marker: flags & 16 != 0,
                    payload_type,
                    sequence: number,
                    timestamp: if flags & 32 != 0 { input.long() } else { u32::from(number) * 3000 },
                    ssrc,
                };
                let mut packet = Vec::new();
                let mut writer = HeaderWriter::new(&mut packet, &header);
                for _ in 0..flags >> 6 {
                    writer.extension(input.byte(), input.short());
                }
                writer.finish();
                packet.extend_from_slice(input.chunk());
                if let Some(srtp) = &mut alice.srtp
                    && srtp.protect_rtp(&mut packet, 0).is_ok()
                {
                    world.worker.handle_datagram(world.now, alice.address, &packet);
                    sent.push(packet);
                }
            }
            // A frame as a browser sends it.
            6 => {
                let number = input.word();
                if alice.srtp.is_some() && sent.len() < MAX_STEPS {
                    let mut packet = Vec::new();
                    let mut writer =
                        HeaderWriter::new(&mut packet, &common::frame_header(common::SSRC, number));
                    writer.extension(1, b"v").extension(3, &number.to_be_bytes());
                    writer.finish();
                    packet.extend_from_slice(&common::vp8(number, number.is_multiple_of(8)));
                    let srtp = alice.srtp.as_mut().expect("looked at above");
                    if srtp.protect_rtp(&mut packet, 0).is_ok() {
                        world.worker.handle_datagram(world.now, alice.address, &packet);
                        sent.push(packet);
                    }
                }
            }
            7 => rtcp(&mut world, &mut alice, input.chunk()),
            8 => {
                // The consumer's SSRC is the worker's to choose: 0xffffffff stands for it.
                let ssrc = received.encodings.first().and_then(|e| e.ssrc).unwrap_or_default();
                let mut compound = input.chunk().to_vec();
                for at in 0..compound.len().saturating_sub(3) {
                    if compound[at..at + 4] == [255; 4] {
                        compound[at..at + 4].copy_from_slice(&ssrc.to_be_bytes());
                    }
                }
                rtcp(&mut world, &mut bob, &compound);
            }
            9 => {
                let time = Duration::from_millis(u64::from(input.word()));
                world.pass(time, &mut [&mut alice, &mut bob]);
            }
            // Something that was sent before, again, changed, or from elsewhere.
            10 => {
                let (which, at, with) = (input.byte(), input.word(), input.byte());
                if !sent.is_empty() {
                    let mut packet = sent[usize::from(which) % sent.len()].clone();
                    let at = usize::from(at) % packet.len();
                    packet[at] ^= with;
                    world.worker.handle_datagram(world.now, alice.address, &packet);
                }
            }
            _ => {
                let (what, value) = (input.byte(), input.byte());
                let command = match what % 7 {
                    0 => MediaCommand::PauseProducer { producer: producer.clone(), paused: value & 1 != 0 },
                    1 => MediaCommand::PauseConsumer { consumer: consumer.clone(), paused: value & 1 != 0 },
                    2 => MediaCommand::SetPreferredLayers {
                        consumer: consumer.clone(),
                        layers: ConsumerLayers { spatial_layer: value & 7, temporal_layer: Some(value >> 3) },
                    },
                    3 => MediaCommand::RequestKeyFrame { consumer: consumer.clone() },
                    4 => MediaCommand::RestartIce { transport: alice.transport.clone() },
                    5 => MediaCommand::GetStats { of: MediaObject::Router },
                    _ => MediaCommand::Inventory,
                };
                let _ = world.ask(command);
            }
        }
        let made: usize = world.worker.outbox().iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(made <= MAX_SENT, "one step made the worker send {made} bytes");
        settle(&mut world, &mut [&mut alice, &mut bob]);
        for (to, _) in &world.stray {
            assert!(proven.contains(to), "the worker sends to {to}, which proved nothing");
        }
        world.stray.clear();
        let load = world.worker.load();
        assert_eq!(load.panics, 0, "a panic was caught");
        assert_eq!((load.routers, load.transports, load.producers, load.consumers), (1, 2, 1, 1));
        assert!(load.packets_in >= before.packets_in);
    }
    let stats = world.ask(MediaCommand::GetStats { of: MediaObject::Router });
    assert!(stats.is_ok(), "{stats:?}");
}

/// As [`World::settle`]; but what an ended client is sent is not read, since it may have lost its keys.
fn settle(world: &mut World, clients: &mut [&mut Client]) {
    world.settle(clients);
    for client in clients {
        client.rtp.clear();
        client.rtcp.clear();
        client.stun.clear();
        client.out = VecDeque::new();
    }
    world.notifications.clear();
}

fn stranger(input: &mut Input<'_>) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, input.byte() % 4], 9))
}

fn rtcp(world: &mut World, client: &mut Client, compound: &[u8]) {
    if compound.len() < 8 {
        return;
    }
    if let Some(srtp) = &mut client.srtp
        && let Ok(protected) = srtp.protect_rtcp(compound)
    {
        world.worker.handle_datagram(world.now, client.address, &protected);
    }
}
