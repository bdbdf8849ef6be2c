//! One incoming RTP stream: an encoding of a producer, with its repair, its statistics and its key frame requests.

use std::{
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{
    codec::Vp8,
    history::Stored,
    nack::{Arrival, NackList},
    pool::PacketPool,
    rtcp::ReportBlock,
    rtp::Unroller,
};

/// Time between two key frame requests to one stream. An encoder needs about a frame time to obey and a key frame weighs as much as ten
/// others, so many consumers joining at once must not get one each.
pub const KEY_FRAME_INTERVAL: Duration = Duration::from_millis(500);

/// After this long without the key frame asked for, it is asked for again: the request or the frame was lost.
pub const KEY_FRAME_RETRY: Duration = Duration::from_millis(1_000);

/// A stream without packets for this long sends nothing: its layer is not offered to consumers. Longer than the pauses of a screen
/// share at 1 frame/s would be nice, shorter than the patience of a viewer is needed.
pub const STREAM_SILENCE: Duration = Duration::from_millis(1_500);

/// Packets kept for consumers that begin with a key frame whose first packet was repaired. The repair takes a round trip or two, in which
/// 8 Mbit/s bring about a hundred packets.
const RECENT: usize = 128;

/// A packet that has been forwarded, with what its forwarding needs.
#[derive(Debug, Clone)]
pub struct Recent {
    /// Unrolled sequence number.
    pub place: u64,
    /// The packet.
    pub packet: Rc<Stored>,
    /// The router's payload type.
    pub payload_type: u8,
    /// Its VP8 descriptor.
    pub vp8: Option<Vp8>,
}

/// Counts bytes over about a second.
#[derive(Debug, Default, Clone)]
pub struct RateMeter {
    window: Option<(Instant, u64)>,
    last: u64,
}

impl RateMeter {
    const WINDOW: Duration = Duration::from_secs(1);

    /// Adds bytes.
    pub fn add(&mut self, now: Instant, bytes: usize) {
        self.roll(now);
        match &mut self.window {
            Some((_, sum)) => *sum += bytes as u64,
            None => self.window = Some((now, bytes as u64)),
        }
    }

    fn roll(&mut self, now: Instant) {
        if let Some((start, sum)) = self.window {
            let span = now.saturating_duration_since(start);
            if span >= 2 * Self::WINDOW {
                (self.last, self.window) = (0, None);
            } else if span >= Self::WINDOW {
                self.last = (sum as f64 * 8.0 / span.as_secs_f64()) as u64;
                self.window = Some((now, 0));
            }
        }
    }

    /// Bits per second over the last full window.
    pub fn bits_per_second(&mut self, now: Instant) -> u64 {
        self.roll(now);
        self.last
    }
}

/// An NTP instant of the sender and the same in RTP units, from its last sender report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderClock {
    /// NTP time, 32.32.
    pub ntp: u64,
    /// RTP time.
    pub rtp: u32,
}

/// What an arrived packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Unrolled sequence number.
    pub place: u64,
    /// Whether consumers get it.
    pub forward: bool,
    /// Whether it was missing.
    pub repair: bool,
    /// Whether so much was lost that only a key frame helps.
    pub gave_up: bool,
}

#[derive(Debug, Default)]
struct KeyFrames {
    wanted: bool,
    asked: Option<Instant>,
    /// Asked and not yet seen.
    awaited: bool,
}

/// One incoming stream.
#[derive(Debug)]
pub struct RecvStream {
    /// Name of the encoding, in simulcast.
    pub rid: Option<String>,
    /// Media SSRC, once known.
    pub ssrc: Option<u32>,
    /// SSRC of retransmissions, once known.
    pub rtx_ssrc: Option<u32>,
    /// Hz.
    pub clock_rate: u32,
    use_nack: bool,
    /// Whether key frames can be asked for.
    pub use_pli: bool,
    unroller: Unroller,
    /// Missing packets.
    pub nack: NackList,
    first: Option<u64>,
    /// Media packets that arrived, repairs among them.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Packets that came as a repair.
    pub repaired: u64,
    /// Packets that came on the RTX stream.
    pub retransmitted: u64,
    /// Packets whose repair was asked for.
    pub nacked: u64,
    /// NACK messages sent.
    pub nacks: u64,
    /// Key frame requests sent.
    pub plis: u64,
    /// Key frames that arrived.
    pub key_frames: u64,
    /// Bits per second.
    pub rate: RateMeter,
    jitter: f64,
    transit: Option<f64>,
    epoch: Option<Instant>,
    /// Arrival of the last packet.
    pub last_packet: Option<Instant>,
    key: KeyFrames,
    recent: VecDeque<Recent>,
    /// Memory of its packets.
    pub pool: PacketPool,
    /// From the last sender report.
    pub clock: Option<SenderClock>,
    last_sr: Option<(u32, Instant)>,
    expected_prior: u64,
    received_prior: u64,
    /// Share of packets lost in the last report interval, in 1/256.
    pub fraction_lost: u8,
    /// 0 (nothing arrives) to 10.
    pub score: u8,
}

impl RecvStream {
    /// A stream that has not begun.
    pub fn new(rid: Option<String>, clock_rate: u32, use_nack: bool, use_pli: bool) -> Self {
        Self {
            rid,
            ssrc: None,
            rtx_ssrc: None,
            clock_rate: clock_rate.max(1),
            use_nack,
            use_pli,
            unroller: Unroller::default(),
            nack: NackList::default(),
            first: None,
            packets: 0,
            bytes: 0,
            repaired: 0,
            retransmitted: 0,
            nacked: 0,
            nacks: 0,
            plis: 0,
            key_frames: 0,
            rate: RateMeter::default(),
            jitter: 0.0,
            transit: None,
            epoch: None,
            last_packet: None,
            key: KeyFrames::default(),
            recent: VecDeque::new(),
            pool: PacketPool::default(),
            clock: None,
            last_sr: None,
            expected_prior: 0,
            received_prior: 0,
            fraction_lost: 0,
            score: 0,
        }
    }

    /// Notes a media packet, or one unwrapped from RTX.
    pub fn arrived(
        &mut self,
        now: Instant,
        sequence: u16,
        timestamp: u32,
        bytes: usize,
        rtx: bool,
    ) -> Arrived {
        if rtx {
            self.retransmitted += 1;
            let place = self.unroller.peek(sequence);
            // Chrome resends old packets as probes: only what was missing goes on.
            if !self.nack.is_missing(place) {
                return Arrived { place, forward: false, repair: false, gave_up: false };
            }
        }
        let place = self.unroller.unroll(sequence);
        self.first.get_or_insert(place);
        let arrival = if self.use_nack { self.nack.arrived(now, place, rtx) } else { Arrival::New };
        if arrival != Arrival::Old {
            self.packets += 1;
            self.bytes += bytes as u64;
            self.rate.add(now, bytes);
        }
        if arrival == Arrival::Repaired {
            self.repaired += 1;
        }
        if !rtx && arrival == Arrival::New {
            self.note_jitter(now, timestamp);
        }
        self.last_packet = Some(now);
        Arrived {
            place,
            forward: true,
            repair: arrival == Arrival::Repaired,
            gave_up: arrival == Arrival::GaveUp,
        }
    }

    /// Interarrival jitter (RFC 3550 §6.4.1).
    fn note_jitter(&mut self, now: Instant, timestamp: u32) {
        let epoch = *self.epoch.get_or_insert(now);
        let arrival = now.saturating_duration_since(epoch).as_secs_f64() * f64::from(self.clock_rate);
        let transit = arrival - f64::from(timestamp);
        if let Some(last) = self.transit {
            let difference = (transit - last).abs();
            // A timestamp that wrapped, or a sender that started anew, is no jitter.
            if difference < f64::from(self.clock_rate) * 10.0 {
                self.jitter += (difference - self.jitter) / 16.0;
            }
        }
        self.transit = Some(transit);
    }

    /// Notes a sender report.
    pub fn sender_report(&mut self, now: Instant, ntp: u64, rtp: u32) {
        self.clock = Some(SenderClock { ntp, rtp });
        self.last_sr = Some(((ntp >> 16) as u32, now));
    }

    /// Packets the sender has sent, as far as sequence numbers tell.
    fn expected(&self) -> u64 {
        match (self.first, self.unroller.highest()) {
            (Some(first), Some(highest)) => highest + 1 - first.min(highest),
            _ => 0,
        }
    }

    /// Packets lost for good.
    pub fn lost(&self) -> u64 {
        self.expected().saturating_sub(self.packets)
    }

    /// Jitter in RTP units.
    pub fn jitter(&self) -> u32 {
        self.jitter as u32
    }

    /// The report block for the interval that ends now; also computes the score.
    pub fn report(&mut self, now: Instant) -> Option<ReportBlock> {
        let ssrc = self.ssrc?;
        let highest = self.unroller.highest()?;
        let expected = self.expected();
        let expected_now = expected.saturating_sub(self.expected_prior);
        let received_now = self.packets.saturating_sub(self.received_prior);
        (self.expected_prior, self.received_prior) = (expected, self.packets);
        let lost_now = expected_now.saturating_sub(received_now);
        self.fraction_lost = (lost_now * 256).checked_div(expected_now).unwrap_or(0).min(255) as u8;
        self.score = if !self.is_active(now) { 0 } else { score(self.fraction_lost) };
        let (last_sr, delay) = self.last_sr.map_or((0, 0), |(sr, at)| {
            (sr, (now.saturating_duration_since(at).as_secs_f64() * 65536.0) as u32)
        });
        Some(ReportBlock {
            ssrc,
            fraction_lost: self.fraction_lost,
            lost: self.lost().min(0x7f_ffff) as i32,
            highest: (highest - 0x1_0000) as u32,
            jitter: self.jitter as u32,
            last_sr,
            delay,
        })
    }

    /// Whether packets have come lately.
    pub fn is_active(&self, now: Instant) -> bool {
        self.last_packet.is_some_and(|at| now.saturating_duration_since(at) < STREAM_SILENCE)
    }

    /// Whether repairs are asked for.
    pub fn uses_nack(&self) -> bool {
        self.use_nack
    }

    /// Somebody needs a key frame.
    pub fn want_key_frame(&mut self) {
        if self.use_pli {
            self.key.wanted = true;
        }
    }

    /// A key frame began.
    pub fn key_frame_arrived(&mut self) {
        self.key_frames += 1;
        self.key.awaited = false;
    }

    /// Keeps a packet that is forwarded; only while something is missing, since otherwise no key frame can begin late.
    pub fn keep(&mut self, recent: impl FnOnce() -> Recent) {
        if self.nack.is_complete() {
            self.recent.clear();
            return;
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(recent());
    }

    /// What has come already of the packets behind `place`, in order.
    pub fn kept_behind(&self, place: u64) -> Vec<Recent> {
        let mut behind: Vec<Recent> = self.recent.iter().filter(|r| r.place > place).cloned().collect();
        behind.sort_unstable_by_key(|r| r.place);
        behind
    }

    /// Whether a request is to be sent now; notes that it is.
    pub fn key_frame_request_due(&mut self, now: Instant) -> bool {
        let since = self.key.asked.map(|at| now.saturating_duration_since(at));
        let due = (self.key.wanted && since.is_none_or(|since| since >= KEY_FRAME_INTERVAL))
            || (self.key.awaited && since.is_some_and(|since| since >= KEY_FRAME_RETRY));
        if !due || self.ssrc.is_none() {
            return false;
        }
        self.key = KeyFrames { wanted: false, asked: Some(now), awaited: true };
        self.plis += 1;
        true
    }

    /// As after a pause: what was missing then is of no interest now.
    pub fn forget_missing(&mut self) {
        self.nack.reset();
        self.key.awaited = false;
    }
}

/// From a share of loss in 1/256 to 0..10: none lost is 10, half or more is 1.
pub fn score(fraction_lost: u8) -> u8 {
    let lost = f64::from(fraction_lost) / 256.0;
    (10.0 - 18.0 * lost).round().clamp(1.0, 10.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> RecvStream {
        let mut stream = RecvStream::new(None, 90_000, true, true);
        stream.ssrc = Some(7);
        stream
    }

    #[test]
    fn key_frame_requests_are_throttled_and_repeated_until_one_comes() {
        let t0 = Instant::now();
        let ms = |ms| t0 + Duration::from_millis(ms);
        let mut stream = stream();
        stream.want_key_frame();
        assert!(stream.key_frame_request_due(ms(0)));
        stream.want_key_frame();
        assert!(!stream.key_frame_request_due(ms(499)));
        assert!(stream.key_frame_request_due(ms(500)));
        assert!(!stream.key_frame_request_due(ms(1_400)));
        assert!(stream.key_frame_request_due(ms(1_500)), "none came");
        stream.key_frame_arrived();
        assert!(!stream.key_frame_request_due(ms(9_000)));
        assert_eq!(stream.plis, 3);
    }

    #[test]
    fn probes_on_rtx_are_counted_and_not_forwarded() {
        let now = Instant::now();
        let mut stream = stream();
        stream.arrived(now, 10, 0, 100, false);
        stream.arrived(now, 12, 0, 100, false);
        assert!(!stream.arrived(now, 10, 0, 100, true).forward, "it came before");
        assert!(stream.arrived(now, 11, 0, 100, true).forward, "it was missing");
        assert!(!stream.arrived(now, 11, 0, 100, true).forward, "it is not any more");
        assert_eq!((stream.packets, stream.retransmitted, stream.repaired, stream.lost()), (3, 3, 1, 0));
    }

    #[test]
    fn jitter_is_that_of_arrivals_and_not_of_a_clock_that_starts_anew() {
        let t0 = Instant::now();
        let mut steady = stream();
        let mut shaky = stream();
        for i in 0..200u16 {
            let at = t0 + Duration::from_millis(20 * u64::from(i));
            // 20 ms are 1800 ticks; half-way the sender jumps to another clock.
            let timestamp = u32::from(i) * 1800 + if i < 100 { 0 } else { 3_000_000_000 };
            steady.arrived(at, i, timestamp, 100, false);
            let late = Duration::from_millis(if i % 2 == 0 { 10 } else { 0 });
            shaky.arrived(at + late, i, timestamp, 100, false);
        }
        assert_eq!(steady.jitter(), 0);
        assert!((880..=900).contains(&shaky.jitter()), "10 ms are 900 ticks, not {}", shaky.jitter());
    }

    #[test]
    fn reports_tell_loss_of_their_interval() {
        let now = Instant::now();
        let mut stream = stream();
        for sequence in (0..100u16).filter(|s| s % 4 != 3) {
            stream.arrived(now, sequence, 0, 100, false);
        }
        let block = stream.report(now).unwrap();
        // 99 was dropped last, so 99 are expected and 75 came.
        assert_eq!((block.ssrc, block.lost, block.highest), (7, 24, 98));
        assert_eq!(block.fraction_lost, (24 * 256 / 99) as u8);
        for sequence in 100..200u16 {
            stream.arrived(now, sequence, 0, 100, false);
        }
        assert_eq!(stream.report(now).unwrap().fraction_lost, (256 / 101) as u8);
    }
}
