//! The UDP socket: many datagrams a system call where the kernel can (GRO in, GSO out).

use std::{
    collections::HashMap,
    io::{self, IoSliceMut},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use mio::net::UdpSocket;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};

use crate::transport::Outbox;

/// Room for one datagram. WebRTC packets stay below the 1500 bytes of an Ethernet frame; a longer one is cut and fails authentication.
const DATAGRAM: usize = 2048;

/// Bytes of one GSO send: 64 KiB is the length field of UDP, less the headers.
const MAX_GSO_BYTES: usize = 60_000;

/// A datagram waits this long in the socket at most, by its timestamp; a longer time is a step of the wall clock. A worker that stood still
/// for longer has other troubles.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// One instant by both clocks: the kernel stamps what it receives by the wall clock.
struct Clock {
    now: Instant,
    wall: Duration,
}

impl Clock {
    #[allow(clippy::disallowed_methods, reason = "an edge: the kernel's timestamps are of the wall clock")]
    fn read() -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { now: Instant::now(), wall }
    }

    /// When a datagram came: senders estimate the capacity of the way from such times, so that of a whole batch will not do.
    fn instant_of(&self, stamp: Option<Duration>) -> Instant {
        let waited =
            stamp.and_then(|stamp| self.wall.checked_sub(stamp)).filter(|waited| *waited <= MAX_WAIT);
        waited.and_then(|waited| self.now.checked_sub(waited)).unwrap_or(self.now)
    }
}

/// The socket with its buffers.
pub struct Net {
    socket: UdpSocket,
    state: UdpSocketState,
    receive: Vec<u8>,
    stride: usize,
    send: Vec<u8>,
    /// Datagrams sent.
    pub packets_out: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Datagrams the kernel did not take.
    pub dropped: u64,
}

impl Net {
    /// Binds the socket.
    pub fn bind(listen: SocketAddr, buffer_bytes: usize) -> io::Result<Self> {
        let socket = UdpSocket::bind(listen)?;
        let reference = socket2::SockRef::from(&socket);
        // The kernel gives what it may; less is no reason not to start.
        let _ = reference.set_recv_buffer_size(buffer_bytes);
        let _ = reference.set_send_buffer_size(buffer_bytes);
        let state = UdpSocketState::new((&socket).into())?;
        let stride = DATAGRAM * state.gro_segments();
        Ok(Self {
            receive: vec![0; stride * BATCH_SIZE],
            stride,
            socket,
            state,
            send: Vec::with_capacity(MAX_GSO_BYTES),
            packets_out: 0,
            bytes_out: 0,
            dropped: 0,
        })
    }

    /// For registration with a poll.
    pub fn socket(&mut self) -> &mut UdpSocket {
        &mut self.socket
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Receives one batch, each datagram with the time it came; false when nothing was there.
    pub fn receive(&mut self, mut each: impl FnMut(Instant, SocketAddr, &[u8])) -> bool {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut chunks = self.receive.chunks_exact_mut(self.stride);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = std::array::from_fn(|_| {
            IoSliceMut::new(chunks.next().expect("BATCH_SIZE chunks were allocated"))
        });
        let (socket, state) = (&self.socket, &self.state);
        let outcome = socket.try_io(|| state.recv(socket.into(), &mut slices, &mut metas));
        match outcome {
            Ok(count) => {
                let clock = Clock::read();
                for (meta, slice) in metas.iter().zip(&slices).take(count) {
                    let at = clock.instant_of(meta.timestamp);
                    // A zero stride would make no progress; it only comes with an empty datagram.
                    for datagram in slice[..meta.len].chunks(meta.stride.max(1)) {
                        each(at, meta.addr, datagram);
                    }
                }
                true
            }
            // Errors besides "nothing there" are ICMP answers to earlier sends; there may be datagrams behind them.
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Sends what is in the outbox: per destination in order, runs of equal size in one call.
    pub fn send(&mut self, outbox: &mut Outbox) {
        if outbox.len() == 1 {
            if let Some((to, datagram)) = outbox.iter().next() {
                self.packets_out += 1;
                self.bytes_out += datagram.len() as u64;
                let outcome = transmit(&self.socket, &self.state, to, datagram, None);
                self.dropped += u64::from(outcome.is_err());
            }
            outbox.clear();
            return;
        }
        let mut by_destination: HashMap<SocketAddr, Vec<&[u8]>> = HashMap::new();
        for (to, datagram) in outbox.iter() {
            by_destination.entry(to).or_default().push(datagram);
        }
        let segments = self.state.max_gso_segments().max(1);
        for (to, datagrams) in by_destination {
            let mut rest = &datagrams[..];
            while let Some(first) = rest.first() {
                let size = first.len();
                // The last of a run may be shorter (udp(7), UDP_SEGMENT).
                let mut count = rest
                    .iter()
                    .take(segments.min(MAX_GSO_BYTES / size.max(1)).max(1))
                    .take_while(|d| d.len() == size)
                    .count();
                if count < segments
                    && rest.get(count).is_some_and(|d| d.len() < size)
                    && (count + 1) * size <= MAX_GSO_BYTES
                {
                    count += 1;
                }
                let (run, after) = rest.split_at(count.max(1));
                rest = after;
                let outcome = if let [single] = run {
                    transmit(&self.socket, &self.state, to, single, None)
                } else {
                    self.send.clear();
                    run.iter().for_each(|d| self.send.extend_from_slice(d));
                    transmit(&self.socket, &self.state, to, &self.send, Some(size))
                };
                self.packets_out += run.len() as u64;
                self.bytes_out += run.iter().map(|d| d.len() as u64).sum::<u64>();
                if outcome.is_err() {
                    self.dropped += run.len() as u64;
                }
            }
        }
        outbox.clear();
    }
}

fn transmit(
    socket: &UdpSocket,
    state: &UdpSocketState,
    destination: SocketAddr,
    contents: &[u8],
    segment_size: Option<usize>,
) -> io::Result<()> {
    let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
    // A full socket buffer drops the datagram, as a full link would: waiting would delay everybody else, and NACK repairs it.
    socket.try_io(|| state.try_send(socket.into(), &transmit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::UdpSocket as StdSocket, time::Duration};

    #[test]
    fn datagrams_of_any_sizes_arrive_whole_and_in_order_at_each_destination() {
        let mut net = Net::bind("127.0.0.1:0".parse().unwrap(), 1 << 20).unwrap();
        let peers = [(), ()].map(|()| StdSocket::bind("127.0.0.1:0").unwrap());
        // Runs of equal size, a shorter one that may end a run, a longer one that may not, and more than one run can hold.
        let sizes: Vec<usize> =
            [1200, 1200, 1200, 700, 1200, 50, 60, 60, 1300, 1300, 1].into_iter().chain([100; 150]).collect();
        let mut outbox = Outbox::default();
        for (index, &size) in sizes.iter().enumerate() {
            for (number, peer) in peers.iter().enumerate() {
                outbox.push(peer.local_addr().unwrap(), &vec![(index + number) as u8; size]);
            }
        }
        net.send(&mut outbox);
        assert!(outbox.is_empty());
        for (number, peer) in peers.iter().enumerate() {
            peer.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut buffer = [0; 4096];
            for (index, &size) in sizes.iter().enumerate() {
                let count =
                    peer.recv(&mut buffer).unwrap_or_else(|e| panic!("datagram {index} of {size}: {e}"));
                assert_eq!(buffer[..count], vec![(index + number) as u8; size], "datagram {index}");
            }
        }
        assert_eq!((net.packets_out, net.dropped), (2 * sizes.len() as u64, 0));
    }

    #[test]
    fn a_datagram_comes_when_it_came_and_not_when_it_is_read() {
        let mut net = Net::bind("127.0.0.1:0".parse().unwrap(), 1 << 20).unwrap();
        let peer = StdSocket::bind("127.0.0.1:0").unwrap();
        let mut sent = Vec::new();
        for index in 0..3u8 {
            // Of different sizes, since the kernel joins equal ones.
            peer.send_to(&vec![index; 100 + usize::from(index)], net.local_addr().unwrap()).unwrap();
            sent.push(Instant::now());
            std::thread::sleep(Duration::from_millis(30));
        }
        let mut came = Vec::new();
        while came.len() < 3 && net.receive(|at, _, _| came.push(at)) {}
        for (sent, came) in sent.iter().zip(&came) {
            assert!(
                came.saturating_duration_since(*sent) < Duration::from_millis(15),
                "it waited in the socket"
            );
            assert!(
                sent.saturating_duration_since(*came) < Duration::from_millis(15),
                "not before it was sent"
            );
        }
        let clock = Clock { now: Instant::now(), wall: Duration::from_secs(1_000) };
        let wrong = [None, Some(Duration::from_secs(1_001)), Some(Duration::from_secs(900))];
        assert!(
            wrong.into_iter().all(|stamp| clock.instant_of(stamp) == clock.now),
            "a wall clock that was put right"
        );
    }

    #[test]
    fn what_was_sent_to_it_is_received_one_by_one() {
        let mut net = Net::bind("127.0.0.1:0".parse().unwrap(), 1 << 20).unwrap();
        let peer = StdSocket::bind("127.0.0.1:0").unwrap();
        for index in 0..100u8 {
            peer.send_to(&vec![index; 100 + usize::from(index % 3)], net.local_addr().unwrap()).unwrap();
        }
        let mut seen = Vec::new();
        let from = peer.local_addr().unwrap();
        while seen.len() < 100 {
            let more = net.receive(|at, source, bytes| {
                assert_eq!(source, from);
                assert!(at <= Instant::now());
                seen.push((bytes[0], bytes.len()));
            });
            assert!(more || seen.len() == 100, "{} came", seen.len());
        }
        assert_eq!(seen, (0..100).map(|i| (i, 100 + usize::from(i % 3))).collect::<Vec<_>>());
    }
}
