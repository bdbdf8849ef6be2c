//! The UDP socket: many datagrams a system call where the kernel can (GRO in, GSO out).

use std::{
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
    /// Of the batch that was received: what lies in each stride, how many do, and how far [`Net::next`] has come, in strides and bytes.
    metas: [RecvMeta; BATCH_SIZE],
    count: usize,
    at: (usize, usize),
    clock: Clock,
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
            metas: [RecvMeta::default(); BATCH_SIZE],
            count: 0,
            at: (0, 0),
            clock: Clock::read(),
            socket,
            state,
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

    /// Receives one batch, which [`Net::next`] then gives; false when nothing was there.
    pub fn receive(&mut self) -> bool {
        let mut chunks = self.receive.chunks_exact_mut(self.stride);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = std::array::from_fn(|_| {
            IoSliceMut::new(chunks.next().expect("BATCH_SIZE chunks were allocated"))
        });
        let (socket, state, metas) = (&self.socket, &self.state, &mut self.metas);
        let outcome = socket.try_io(|| state.recv(socket.into(), &mut slices, metas));
        (self.count, self.at, self.clock) = (0, (0, 0), Clock::read());
        match outcome {
            Ok(count) => {
                self.count = count;
                true
            }
            // Errors besides "nothing there" are ICMP answers to earlier sends; there may be datagrams behind them.
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// The next datagram of the batch, and when it came.
    pub fn next(&mut self) -> Option<(Instant, SocketAddr, &[u8])> {
        while self.metas[..self.count].get(self.at.0)?.len == 0 {
            // An empty datagram says nothing.
            self.at.0 += 1;
        }
        let (index, start) = self.at;
        let meta = &self.metas[index];
        let end = (start + meta.stride.max(1)).min(meta.len);
        self.at = if end < meta.len { (index, end) } else { (index + 1, 0) };
        let chunk = self.stride * index;
        Some((self.clock.instant_of(meta.timestamp), meta.addr, &self.receive[chunk + start..chunk + end]))
    }

    /// Sends what is in the outbox, each run of equal size to one destination by one call.
    pub fn send(&mut self, outbox: &mut Outbox) {
        let segments = self.state.max_gso_segments().max(1);
        for (to, bytes, size) in outbox.runs(segments, MAX_GSO_BYTES) {
            let count = bytes.len().div_ceil(size.max(1)).max(1) as u64;
            let segment = (bytes.len() > size).then_some(size);
            if transmit(&self.socket, &self.state, to, bytes, segment).is_err() {
                self.dropped += count;
            }
            self.packets_out += count;
            self.bytes_out += bytes.len() as u64;
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
        for (number, peer) in peers.iter().enumerate() {
            for (index, &size) in sizes.iter().enumerate() {
                outbox.push(peer.local_addr().unwrap(), &vec![(index + number) as u8; size]);
            }
        }
        // And an empty one, which may be sent and is no end of anything.
        outbox.push(peers[1].local_addr().unwrap(), &[]);
        let calls = outbox.runs(64, MAX_GSO_BYTES).count();
        // 1200 ×3 and 700; 1200 and 50; 60 ×2; 1300 ×2 and 1; 100 ×64, ×64 and ×22; for each of two, and the empty one.
        assert_eq!(calls, 2 * 7 + 1);
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
        assert_eq!((net.packets_out, net.dropped), (2 * sizes.len() as u64 + 1, 0));
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
        while came.len() < 3 && net.receive() {
            came.extend(std::iter::from_fn(|| net.next().map(|(at, ..)| at)));
        }
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
            let more = net.receive();
            while let Some((at, source, bytes)) = net.next() {
                assert_eq!(source, from);
                assert!(at <= Instant::now());
                seen.push((bytes[0], bytes.len()));
            }
            assert!(more || seen.len() == 100, "{} came", seen.len());
        }
        assert_eq!(seen, (0..100).map(|i| (i, 100 + usize::from(i % 3))).collect::<Vec<_>>());
    }
}
