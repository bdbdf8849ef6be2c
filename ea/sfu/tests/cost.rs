//! What forwarding costs, without the socket. A measurement and no test: run it with `--ignored --nocapture`, in release.

mod common;

use std::time::Instant;

use common::*;

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
