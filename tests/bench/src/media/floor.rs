//! The floor: what it costs to send packets of that size and do nothing else.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use quinn_udp::{Transmit, UdpSocketState};
use serde::Serialize;

use super::{
    FRAME_PACKETS,
    load::{LOOK, PACKET_BYTES, thread_cpu},
    worker::stay_off_the_worker,
};

/// Sockets sent to, as in the full case.
const RECEIVERS: usize = 200;

/// Between two rounds to all of them, so that they keep up: a socket that is full costs less to send to.
const ROUND: Duration = Duration::from_millis(3);

/// CPU time per packet of a thread that only sends, in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Floor {
    /// One call a packet.
    pub(super) send_us: f64,
    /// One call for the packets of a frame (GSO).
    pub(super) gso_us: f64,
}

/// Measures it, for `time` each.
pub(super) fn measure(time: Duration) -> anyhow::Result<Floor> {
    let receivers = (0..RECEIVERS)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<std::io::Result<Vec<_>>>()
        .context("binding the sockets to send to")?;
    let addresses = receivers.iter().map(UdpSocket::local_addr).collect::<std::io::Result<Vec<_>>>()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            stay_off_the_worker();
            let mut buffer = [0; 2048];
            while !done.load(Ordering::Relaxed) {
                thread::sleep(LOOK);
                receivers.iter().for_each(|socket| while socket.recv(&mut buffer).is_ok() {});
            }
        });
        let send = |segments: usize| -> anyhow::Result<f64> {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let state = UdpSocketState::new((&socket).into())?;
            let contents = vec![0x5a; PACKET_BYTES * segments];
            let segment_size = (segments > 1).then_some(PACKET_BYTES);
            let (start, mut sent, mut cpu) = (Instant::now(), 0, Duration::ZERO);
            while start.elapsed() < time {
                let before = thread_cpu();
                for &destination in &addresses {
                    for _ in 0..FRAME_PACKETS as usize / segments {
                        let transmit = Transmit {
                            destination,
                            ecn: None,
                            contents: &contents,
                            segment_size,
                            src_ip: None,
                        };
                        state.try_send((&socket).into(), &transmit)?;
                        sent += segments as u64;
                    }
                }
                cpu += thread_cpu().saturating_sub(before);
                thread::sleep(ROUND);
            }
            Ok(super::round(cpu.as_secs_f64() * 1e6 / sent as f64, 3))
        };
        let outcome = (|| Ok(Floor { send_us: send(1)?, gso_us: send(FRAME_PACKETS as usize)? }))();
        done.store(true, Ordering::Relaxed);
        outcome
    })
}
