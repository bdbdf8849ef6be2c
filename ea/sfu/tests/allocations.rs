//! The way of a packet needs no new memory once a call has run for a while: counted by the allocator.

mod common;

use std::{alloc::System, time::Duration};

use common::*;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CONSUMERS: u16 = 5;
const FRAME_PACKETS: u16 = 4;
/// Consumers keep 1024 packets; then every packet that comes lets one go.
const WARM_FRAMES: u16 = 700;
const FRAMES: u16 = 500;

#[test]
fn a_packet_that_is_forwarded_allocates_nothing() {
    let mut world = World::new();
    let mut alice = watched_by(&mut world, CONSUMERS);
    let (mut sent, mut allocations) = (0, 0);
    for frame in 0..WARM_FRAMES + FRAMES {
        for part in 0..FRAME_PACKETS {
            let number = frame * FRAME_PACKETS + part;
            let payload = [&vp8(number, number == 0)[..], &[7; 1000]].concat();
            alice.send(frame_header(SSRC, number), &[(1, b"v"), (3, &number.to_be_bytes())], &payload);
        }
        world.now += Duration::from_millis(1);
        // By the clock come reports, feedback and scores, as often as they do and not with packets.
        world.worker.handle_timeout(world.now);
        world.worker.outbox().clear();
        world.worker.take_notifications();
        let region = Region::new(ALLOCATOR);
        for bytes in &alice.out {
            world.worker.handle_datagram(world.now, alice.address, bytes);
        }
        let count =
            world.worker.outbox().runs(64, 60_000).map(|(_, bytes, size)| bytes.len() / size).sum::<usize>();
        world.worker.outbox().clear();
        let stats = region.change();
        if frame >= WARM_FRAMES {
            allocations += stats.allocations + stats.reallocations + stats.deallocations;
            sent += count;
        }
        alice.out.clear();
    }
    assert_eq!(sent, usize::from(FRAMES * FRAME_PACKETS * CONSUMERS));
    assert_eq!(allocations, 0, "for {sent} packets out");
}
