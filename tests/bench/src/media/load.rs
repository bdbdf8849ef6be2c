//! The load: a generator that sends frames on time, and receivers that count, check and clock what arrives.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use mio::{Events, Interest, Poll, Token, unix::SourceFd};
use roomlog_bus::ortc::{
    FmtpParameters, FmtpValue, RtcpFeedback, RtcpParameters, RtpCodecParameters, RtpEncodingParameters,
    RtpHeaderExtensionParameters, RtpParameters, RtxStream,
};
use roomlog_sfu::{
    ortc::uri,
    rtp::{HeaderWriter, NewHeader, RtpHeader},
    srtp::{ProtectionProfile, Srtp, SrtpKeys},
};
use rustix::time::{ClockId, clock_gettime};

use super::{FRAME_PACKETS, peer::Peer, worker::stay_off_the_worker};

/// Bytes of one datagram to the worker, with the tag of SRTP.
pub(super) const PACKET_BYTES: usize = 1052;

/// Bytes of the tag.
const TAG: usize = 16;

/// Every so-many-th packet that arrives is authenticated and clocked; no multiple of the packets of a frame, so that all of its places
/// come by.
const CHECKED: u64 = 17;

/// Every so-many-th frame is a key frame: consumers begin with one.
const KEY_FRAMES: u32 = 128;

/// After the last packet was sent, arrivals are waited for until this long nothing came.
const QUIET: Duration = Duration::from_millis(150);

/// How often receivers look that do not wait to be woken: it adds half of this to the delay.
pub(super) const LOOK: Duration = Duration::from_micros(200);

/// A frame is slept for until this long before its time, and then waited for, since sleeping is late by about as much.
const SPIN: Duration = Duration::from_micros(80);

const SSRC: u32 = 1111;
const RTX_SSRC: u32 = 1112;
const MEDIA_TYPE: u8 = 100;
const RTX_TYPE: u8 = 101;
const MID: u8 = 1;
const TRANSPORT_CC: u8 = 3;

/// Of the VP8 descriptor with a picture id, and the first byte of the payload header.
const DESCRIPTOR: usize = 5;

/// What the producer is declared as.
pub(super) fn rtp_parameters() -> RtpParameters {
    let codec = |mime_type: &str, payload_type, parameters, feedback: &[(&str, &str)]| RtpCodecParameters {
        mime_type: mime_type.into(),
        payload_type,
        clock_rate: 90_000,
        channels: None,
        parameters,
        rtcp_feedback: feedback
            .iter()
            .map(|(kind, parameter)| RtcpFeedback { kind: (*kind).into(), parameter: (*parameter).into() })
            .collect(),
    };
    let mut apt = FmtpParameters::new();
    apt.insert("apt".into(), FmtpValue::Integer(MEDIA_TYPE.into()));
    let feedback = [("nack", ""), ("nack", "pli"), ("ccm", "fir"), ("transport-cc", "")];
    let extension = |id, uri: &str| RtpHeaderExtensionParameters { uri: uri.into(), id, encrypt: false };
    RtpParameters {
        mid: Some("v".into()),
        codecs: vec![
            codec("video/VP8", MEDIA_TYPE, FmtpParameters::new(), &feedback),
            codec("video/rtx", RTX_TYPE, apt, &[]),
        ],
        header_extensions: vec![extension(MID, uri::MID), extension(TRANSPORT_CC, uri::TRANSPORT_WIDE_CC)],
        encodings: vec![RtpEncodingParameters {
            ssrc: Some(SSRC),
            rtx: Some(RtxStream { ssrc: RTX_SSRC }),
            ..Default::default()
        }],
        rtcp: RtcpParameters { cname: Some("bench".into()), reduced_size: true, mux: None },
    }
}

/// The monotonic clock of the machine, nanoseconds: the same in all processes.
fn nanoseconds() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(super) fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Makes and encrypts packets of one stream.
struct Stream {
    srtp: Srtp,
    sequence: u16,
    frame: u32,
    packet: Vec<u8>,
}

impl Stream {
    fn new(srtp: Srtp) -> Self {
        Self { srtp, sequence: 0, frame: 0, packet: Vec::with_capacity(2 * PACKET_BYTES) }
    }

    /// The next frame, packet by packet.
    fn frame(&mut self, mut each: impl FnMut(&[u8])) -> anyhow::Result<()> {
        for part in 0..FRAME_PACKETS {
            let header = NewHeader {
                marker: part == FRAME_PACKETS - 1,
                payload_type: MEDIA_TYPE,
                sequence: self.sequence,
                timestamp: self.frame.wrapping_mul(3_000),
                ssrc: SSRC,
            };
            self.packet.clear();
            let mut writer = HeaderWriter::new(&mut self.packet, &header);
            writer.extension(MID, b"v").extension(TRANSPORT_CC, &self.sequence.to_be_bytes());
            writer.finish();
            let [.., high, low] = self.frame.to_be_bytes();
            // RFC 7741 §4.2: S in the first packet of a frame, a picture id of 15 bits; then P, clear in key frames.
            let start = if part == 0 { 0x90 } else { 0x80 };
            let inter = u8::from(!self.frame.is_multiple_of(KEY_FRAMES) || part > 0);
            self.packet.extend_from_slice(&[start, 0x80, 0x80 | high & 0x7f, low, inter]);
            self.packet.extend_from_slice(&nanoseconds().to_be_bytes());
            self.packet.resize(PACKET_BYTES - TAG, 0x5a);
            self.srtp.protect_rtp(&mut self.packet, 0)?;
            each(&self.packet);
            self.sequence = self.sequence.wrapping_add(1);
        }
        self.frame += 1;
        Ok(())
    }
}

/// Packets/s that a generator can encrypt and send to a socket that nobody reads.
pub(super) fn ceiling(time: Duration) -> anyhow::Result<u64> {
    let provider = rtc_srtp::crypto::default_provider()?;
    let profile = ProtectionProfile::AeadAes128Gcm;
    let material = vec![7; 2 * (profile.key_len() + profile.salt_len())];
    let keys = SrtpKeys { profile, material, is_client: true };
    let mut stream = Stream::new(Srtp::new(&keys, provider.crypto())?);
    let (from, to) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    from.connect(to.local_addr()?)?;
    let (start, mut sent) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        stream.frame(|packet| sent += u64::from(from.send(packet).is_ok()))?;
    }
    Ok((sent as f64 / start.elapsed().as_secs_f64()) as u64)
}

/// The producer's client.
pub(super) struct Sender {
    stream: Stream,
    socket: UdpSocket,
    worker: SocketAddr,
}

impl Sender {
    pub(super) fn new(peer: Peer, worker: SocketAddr) -> Self {
        Self { stream: Stream::new(peer.srtp), socket: peer.socket, worker }
    }

    /// Sends frames at their times; how many packets, and how late the latest was.
    fn run(&mut self, pps: u32, time: Duration) -> anyhow::Result<(u64, Duration)> {
        let pause = Duration::from_secs_f64(f64::from(FRAME_PACKETS) / f64::from(pps));
        let frames = (time.as_secs_f64() / pause.as_secs_f64()).ceil() as u32;
        // Consumers that lost their way begin again here.
        self.stream.frame = self.stream.frame.next_multiple_of(KEY_FRAMES);
        let (start, mut late, mut sent) = (Instant::now(), Duration::ZERO, 0);
        for number in 0..frames {
            let at = start + pause * number;
            if let Some(wait) = at.checked_duration_since(Instant::now() + SPIN) {
                thread::sleep(wait);
            }
            while Instant::now() < at {
                std::hint::spin_loop();
            }
            late = late.max(at.elapsed());
            let socket = &self.socket;
            self.stream.frame(|packet| sent += u64::from(socket.send(packet).is_ok()))?;
        }
        // What the worker says to the sender is not needed, and must not fill its socket.
        let mut buffer = [0; 2048];
        self.socket.set_nonblocking(true)?;
        while self.socket.recv(&mut buffer).is_ok() {}
        self.socket.set_nonblocking(false)?;
        debug_assert_eq!(self.socket.peer_addr().ok(), Some(self.worker));
        Ok((sent, late))
    }
}

/// The consumers' clients.
pub(super) struct Receivers {
    poll: Option<Poll>,
    peers: Vec<Peer>,
}

/// What arrived at all receivers.
#[derive(Default)]
struct Arrivals {
    received: u64,
    authenticated: u64,
    bad: u64,
    delays: Vec<Duration>,
}

impl Receivers {
    /// With `wake` they sleep until something comes, otherwise they look every [`LOOK`].
    pub(super) fn new(peers: Vec<Peer>, wake: bool) -> anyhow::Result<Self> {
        let poll = wake.then(Poll::new).transpose().context("making a poll")?;
        for (index, peer) in peers.iter().enumerate() {
            peer.socket.set_nonblocking(true)?;
            let descriptor = peer.socket.as_fd().as_raw_fd();
            if let Some(poll) = &poll {
                poll.registry().register(&mut SourceFd(&descriptor), Token(index), Interest::READABLE)?;
            }
        }
        Ok(Self { poll, peers })
    }

    /// Receives until `done`, and then until nothing comes any more.
    fn run(&mut self, done: &AtomicBool) -> anyhow::Result<(Arrivals, Duration)> {
        let cpu = thread_cpu();
        let mut events = Events::with_capacity(1024);
        let mut arrivals = Arrivals::default();
        let mut buffer = [0; 2048];
        let mut last = Instant::now();
        loop {
            let before = arrivals.received;
            let mut read = |peer: &mut Peer| {
                while let Ok(count) = peer.socket.recv(&mut buffer) {
                    arrivals.take(&mut peer.srtp, &buffer[..count]);
                }
            };
            match &mut self.poll {
                Some(poll) => {
                    poll.poll(&mut events, Some(Duration::from_millis(20)))?;
                    events.iter().for_each(|event| read(&mut self.peers[event.token().0]));
                }
                None => {
                    thread::sleep(LOOK);
                    self.peers.iter_mut().for_each(read);
                }
            }
            if arrivals.received > before {
                last = Instant::now();
            } else if done.load(Ordering::Relaxed) && last.elapsed() > QUIET {
                break;
            }
        }
        Ok((arrivals, thread_cpu().saturating_sub(cpu)))
    }
}

impl Arrivals {
    fn take(&mut self, srtp: &mut Srtp, packet: &[u8]) {
        // Media alone: reports do not count, and a consumer's media payload type is not that of its retransmissions.
        if packet.len() < PACKET_BYTES - 64 || matches!(packet[1], 192..=223) {
            return;
        }
        self.received += 1;
        if !self.received.is_multiple_of(CHECKED) {
            return;
        }
        let now = nanoseconds();
        let Some(header) = RtpHeader::parse(packet) else {
            self.bad += 1;
            return;
        };
        let Ok(plain) = srtp.unprotect_rtp(packet, &header) else {
            self.bad += 1;
            return;
        };
        self.authenticated += 1;
        let at = header.payload.start + DESCRIPTOR;
        if let Some(sent) = plain.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
            self.delays.push(Duration::from_nanos(now.saturating_sub(u64::from_be_bytes(*sent))));
        }
    }
}

/// What one run came to.
pub(super) struct Outcome {
    /// Packets sent to the worker.
    pub(super) sent: u64,
    /// Packets that arrived at receivers.
    pub(super) received: u64,
    /// Of those, how many were checked and found authentic.
    pub(super) authenticated: u64,
    /// And how many were not.
    pub(super) bad: u64,
    /// From the first frame to the last.
    pub(super) took: Duration,
    /// From being made by the generator to being read by a receiver, of those authenticated, sorted.
    pub(super) delays: Vec<Duration>,
    /// CPU time of the receivers' thread.
    pub(super) receivers_cpu: Duration,
    /// How late the generator's latest frame was.
    pub(super) late: Duration,
}

/// Sends `pps` packets/s for some time, and receives what comes of it.
pub(super) fn run(
    sender: &mut Sender,
    receivers: &mut Receivers,
    pps: u32,
    time: Duration,
) -> anyhow::Result<Outcome> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            stay_off_the_worker();
            receivers.run(&done)
        });
        let sending = scope.spawn(|| {
            stay_off_the_worker();
            let start = Instant::now();
            let outcome = sender.run(pps, time);
            done.store(true, Ordering::Relaxed);
            outcome.map(|(sent, late)| (sent, late, start.elapsed()))
        });
        let (sent, late, took) = sending.join().expect("the generator does not panic")?;
        let (arrivals, receivers_cpu) = receiving.join().expect("the receivers do not panic")?;
        let Arrivals { received, authenticated, bad, mut delays } = arrivals;
        delays.sort_unstable();
        Ok(Outcome { sent, received, authenticated, bad, took, delays, receivers_cpu, late })
    })
}
