//! What forwarding costs, without the socket. A measurement and no test: run it with `--ignored --nocapture`, in release.

mod common;

use std::time::{Duration, Instant};

use common::*;
use roomlog_bus::{ids::RoomId, media::MediaCommand, ortc::MediaKind};

#[test]
#[ignore = "a measurement"]
fn cost_of_a_forwarded_packet() {
    const CONSUMERS: u16 = 20;
    const PACKETS: u16 = 20_000;
    let mut world = World::new();
    let mut alice = watched_by(&mut world, CONSUMERS);
    for number in 0..PACKETS {
        let payload = [&vp8(number, number == 0)[..], &[7; 1100]].concat();
        alice.send(frame_header(SSRC, number), &[(1, b"v"), (3, &number.to_be_bytes())], &payload);
    }
    let (mut sent, start) = (0, Instant::now());
    for bytes in &alice.out {
        world.worker.handle_datagram(world.now, alice.address, bytes);
        sent += world.worker.outbox().len();
        world.worker.outbox().clear();
    }
    let took = start.elapsed();
    assert!(sent >= usize::from(CONSUMERS) * usize::from(PACKETS));
    println!("{sent} packets of 1.1 kB in {took:?}: {} ns each", took.as_nanos() / sent as u128);
}

/// How the cost of a packet grows with the rooms of a worker, each with one that sends frames of four packets and 20 that see it.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_forwarded_packet_by_rooms() {
    const CONSUMERS: u16 = 20;
    const FRAME_PACKETS: u16 = 4;
    /// Until the packets that a consumer keeps are full.
    const WARM_FRAMES: u16 = 260;
    const FRAMES: u16 = 100;
    for rooms in [1, 5, 20, 50] {
        let mut world = World::new();
        let mut senders: Vec<Client> = (0..rooms)
            .map(|room| {
                world.room = RoomId::new(format!("room-{room}")).unwrap();
                world.ask(MediaCommand::CreateRouter).unwrap();
                let sender = Client::connected(&mut world, &format!("a-{room}"), 5000 + room);
                let producer = produce(&mut world, &sender, &format!("p-{room}"), MediaKind::Video, single());
                for i in 0..CONSUMERS {
                    let port = 6000 + room * CONSUMERS + i;
                    let watcher = Client::connected(&mut world, &format!("b-{room}-{i}"), port);
                    consume(&mut world, &watcher, &format!("c-{room}-{i}"), &producer);
                }
                world.outbox();
                sender
            })
            .collect();
        let (mut sent, mut took) = (0, Duration::ZERO);
        for frame in 0..WARM_FRAMES + FRAMES {
            for sender in &mut senders {
                sender.out.clear();
                for part in 0..FRAME_PACKETS {
                    let number = frame * FRAME_PACKETS + part;
                    let payload = [&vp8(number, number == 0)[..], &[7; 960]].concat();
                    let extensions: [(u8, &[u8]); 2] = [(1, b"v"), (3, &number.to_be_bytes())];
                    sender.send(frame_header(SSRC, number), &extensions, &payload);
                }
            }
            world.now += Duration::from_millis(1);
            world.worker.handle_timeout(world.now);
            world.outbox();
            let start = Instant::now();
            let mut count = 0;
            for sender in &senders {
                for bytes in &sender.out {
                    world.worker.handle_datagram(world.now, sender.address, bytes);
                }
                count += world.worker.outbox().len();
                world.worker.outbox().clear();
            }
            if frame >= WARM_FRAMES {
                took += start.elapsed();
                sent += count;
            }
        }
        let expected = usize::from(rooms * CONSUMERS) * usize::from(FRAME_PACKETS * FRAMES);
        assert!(sent >= expected, "{sent} of {expected}");
        println!(
            "{rooms} rooms, {} consumers: {} ns a packet",
            rooms * CONSUMERS,
            took.as_nanos() / sent as u128
        );
    }
}
