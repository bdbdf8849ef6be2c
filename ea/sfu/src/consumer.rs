//! A consumer: one producer's media as it goes out to one client.
//!
//! Each has its own SSRC, sequence numbers and timestamps, so that pauses and changes of layer of the producer leave no trace in
//! what the client sees.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use roomlog_bus::{
    ids::{ConsumerId, RoomId},
    ortc::{ConsumerLayers, ConsumerType, MediaKind, RtpParameters},
};

use crate::{
    arena::Key,
    codec::{Vp8, Vp8Numbers, Vp8Shift},
    history::{History, Sent, Stored},
    ortc::uri,
    producer::{ExtensionIds, Producer},
    rewrite::SequenceRewriter,
    rtp::{HeaderWriter, NewHeader},
    stream::{RateMeter, RecvStream, SenderClock},
    transport::Transport,
};

/// Loss, in 1/256 of the packets of the last report, from which on each repair is sent twice (2 %): a repair that is lost as well is asked
/// for again only after 100 ms, when the picture has stopped.
const REPAIR_TWICE_FROM: u8 = 5;

/// And up to which (25 %). Where more is lost the way is most likely full, and copies would make it fuller.
const REPAIR_TWICE_TO: u8 = 64;

/// An incoming packet on its way to consumers.
pub struct Incoming<'a> {
    /// Arrival.
    pub now: Instant,
    /// Index of its stream.
    pub stream: usize,
    /// Unrolled sequence number.
    pub place: u64,
    /// The packet; payload and header.
    pub packet: &'a Rc<Stored>,
    /// The router's payload type.
    pub payload_type: u8,
    /// Whether a decoder can begin with it.
    pub key_frame: bool,
    /// Its VP8 descriptor.
    pub vp8: &'a Option<Vp8>,
    /// All streams of the producer.
    pub streams: &'a [RecvStream],
}

/// How one packet goes out.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing {
    /// Marker bit.
    pub marker: bool,
    /// Payload type.
    pub payload_type: u8,
    /// Sequence number.
    pub sequence: u16,
    /// Timestamp.
    pub timestamp: u32,
    /// VP8 picture numbers.
    pub vp8: Vp8Shift,
}

/// What the transport stamps on every packet.
#[derive(Debug, Clone, Copy)]
pub struct Stamps {
    /// Transport-wide sequence number.
    pub transport_cc: u16,
    /// 24 bits of seconds in 6.18 fixed point.
    pub abs_send_time: [u8; 3],
}

/// A consumer.
#[derive(Debug)]
pub struct Consumer {
    /// Its id.
    pub id: ConsumerId,
    /// Its room.
    pub room: RoomId,
    /// Where it goes out.
    pub transport: Key<Transport>,
    /// Whose media.
    pub producer: Key<Producer>,
    /// Audio or video.
    pub kind: MediaKind,
    /// What the client receives.
    pub params: RtpParameters,
    /// How it picks layers.
    pub consumer_type: ConsumerType,
    /// Whether its client has paused it.
    pub paused: bool,
    /// Rank among those of its transport.
    pub priority: u8,
    /// Layers its client would like.
    pub preferred: Option<ConsumerLayers>,
    /// Media SSRC.
    pub ssrc: u32,
    /// Retransmission SSRC and payload type.
    pub rtx: Option<(u32, u8)>,
    clock_rate: u32,
    payload_types: u128,
    mid: Vec<u8>,
    own: ExtensionIds,
    /// From the producer's extension id to the consumer's, for those passed on as they are.
    passed_on: [u8; 16],
    /// The stream that is being forwarded.
    pub current: Option<usize>,
    /// The stream to be forwarded from its next key frame on.
    pub target: Option<usize>,
    synced: bool,
    rewriter: SequenceRewriter,
    numbers: Vp8Numbers,
    timestamp_shift: u32,
    last: Option<(Instant, u32)>,
    /// The sender clock of the current stream when it was last known.
    clock: Option<SenderClock>,
    /// Packets that can be sent again.
    pub history: History,
    rtx_sequence: u16,
    /// Packets sent, without retransmissions.
    pub packets: u64,
    /// RTP payload bytes of those, as sender reports count (RFC 3550 §6.4.1).
    pub payload_bytes: u64,
    /// Bytes of whole packets.
    pub bytes: u64,
    /// Packets sent again.
    pub retransmitted: u64,
    /// NACK messages received.
    pub nacks: u64,
    /// Packets asked for again.
    pub nacked: u64,
    /// Key frame requests received.
    pub plis: u64,
    /// Bits per second.
    pub rate: RateMeter,
    /// From the client's last report.
    pub fraction_lost: u8,
    /// From the client's last report.
    pub lost: i32,
    /// From the client's last report.
    pub jitter: u32,
    /// Round trip time.
    pub round_trip: Option<Duration>,
    /// When the last sender report went out.
    pub last_report: Option<Instant>,
    /// The score last told.
    pub told_score: Option<serde_json::Value>,
    /// The layers last told.
    pub told_layers: Option<Option<ConsumerLayers>>,
}

/// Who and where a consumer is.
pub struct Place {
    /// Its id.
    pub id: ConsumerId,
    /// Its room.
    pub room: RoomId,
    /// Where it goes out.
    pub transport: Key<Transport>,
    /// Whose media.
    pub producer: Key<Producer>,
}

impl Consumer {
    /// A paused consumer. `sequence` and `rtx_sequence` are where its numbers start; below 2^15, so that the first wrap cannot be
    /// taken for a packet from before the start (RFC 3711 §3.3.1).
    pub fn new(
        place: Place,
        producer: &Producer,
        params: RtpParameters,
        sequence: u16,
        rtx_sequence: u16,
    ) -> Self {
        let encoding = params.encodings.first();
        let mut payload_types = 0;
        let mut rtx_payload_type = None;
        for codec in &params.codecs {
            if codec.mime_type.to_ascii_lowercase().ends_with("/rtx") {
                rtx_payload_type.get_or_insert(codec.payload_type);
            } else {
                payload_types |= 1u128 << (codec.payload_type & 0x7f);
            }
        }
        let stamped = [
            uri::MID,
            uri::RTP_STREAM_ID,
            uri::REPAIRED_RTP_STREAM_ID,
            uri::TRANSPORT_WIDE_CC,
            uri::ABS_SEND_TIME,
        ];
        let mut passed_on = [0; 16];
        for theirs in producer.params.header_extensions.iter().filter(|e| !stamped.contains(&e.uri.as_str()))
        {
            let ours = params.header_extensions.iter().find(|e| e.uri == theirs.uri && !e.encrypt);
            if let (Some(ours), Some(slot)) = (ours, passed_on.get_mut(usize::from(theirs.id))) {
                *slot = ours.id;
            }
        }
        let rtx_ssrc = encoding.and_then(|e| e.rtx).map(|rtx| rtx.ssrc);
        let rtx = rtx_ssrc.zip(rtx_payload_type);
        let clock_rate = params.codecs.first().map_or(90_000, |c| c.clock_rate);
        Self {
            id: place.id,
            room: place.room,
            transport: place.transport,
            producer: place.producer,
            kind: producer.kind,
            consumer_type: producer.consumer_type,
            paused: true,
            priority: 1,
            preferred: None,
            ssrc: encoding.and_then(|e| e.ssrc).unwrap_or_default(),
            rtx,
            clock_rate,
            payload_types,
            mid: params.mid.as_ref().map_or_else(Vec::new, |mid| mid.as_bytes().to_vec()),
            own: ExtensionIds::of(&params),
            passed_on,
            current: None,
            target: (producer.streams.len() == 1).then_some(0),
            synced: false,
            rewriter: SequenceRewriter::new(sequence),
            numbers: Vp8Numbers::default(),
            timestamp_shift: 0,
            last: None,
            clock: None,
            history: History::new(producer.kind, rtx.is_some()),
            rtx_sequence,
            packets: 0,
            payload_bytes: 0,
            bytes: 0,
            retransmitted: 0,
            nacks: 0,
            nacked: 0,
            plis: 0,
            rate: RateMeter::default(),
            fraction_lost: 0,
            lost: 0,
            jitter: 0,
            round_trip: None,
            last_report: None,
            told_score: None,
            told_layers: None,
            params,
        }
    }

    /// Whether its packets carry a transport-wide sequence number.
    pub fn uses_transport_cc(&self) -> bool {
        self.own.transport_cc != 0
    }

    /// Whether its client loses so much that repairs are better sent twice, and not so much that they would only add to it.
    pub fn is_lossy(&self) -> bool {
        (REPAIR_TWICE_FROM..=REPAIR_TWICE_TO).contains(&self.fraction_lost)
    }

    /// From the next key frame on; for a pause's end, or when the transport has connected.
    pub fn unsync(&mut self) {
        self.synced = false;
    }

    /// Picks the stream that suits best; true when a key frame of it is needed.
    pub fn choose_stream(&mut self, now: Instant, streams: &[RecvStream]) -> bool {
        if streams.len() < 2 {
            return false;
        }
        let wish =
            self.preferred.map_or(streams.len() - 1, |p| usize::from(p.spatial_layer).min(streams.len() - 1));
        // The wish or the best below it; when none of those sends, the smallest above.
        let best = (0..=wish).rev().chain(wish + 1..streams.len()).find(|&i| streams[i].is_active(now));
        match best {
            Some(best) if self.target != Some(best) => {
                self.target = Some(best);
                // Back to what is forwarded already: no key frame is needed.
                self.current != Some(best) || !self.synced
            }
            _ => false,
        }
    }

    /// Whether it waits for a key frame of this stream.
    pub fn awaits_key_frame(&self, stream: usize) -> bool {
        !self.paused && self.target == Some(stream) && (!self.synced || self.current != self.target)
    }

    /// How a packet goes out, if it does.
    pub fn plan(&mut self, packet: &Incoming<'_>) -> Option<Outgoing> {
        if self.paused || self.payload_types >> (packet.payload_type & 0x7f) & 1 == 0 {
            return None;
        }
        let begins = self.awaits_key_frame(packet.stream);
        if begins && packet.key_frame {
            self.begin(packet);
        } else if self.current != Some(packet.stream) || !self.synced {
            return None;
        }
        let header = &packet.packet.header;
        if header.payload.is_empty() {
            self.rewriter.leave_out(packet.place);
            return None;
        }
        let (sequence, newest) = self.rewriter.map(packet.place)?;
        let timestamp = header.timestamp.wrapping_add(self.timestamp_shift);
        if newest {
            self.last = Some((packet.now, timestamp));
            self.clock = packet.streams.get(packet.stream).and_then(|s| s.clock).or(self.clock);
        }
        let vp8 = match &packet.vp8 {
            Some(vp8) if self.consumer_type == ConsumerType::Simulcast => self.numbers.shift(vp8, newest),
            _ => Vp8Shift::default(),
        };
        Some(Outgoing {
            marker: header.marker,
            payload_type: packet.payload_type,
            sequence: sequence as u16,
            timestamp,
            vp8,
        })
    }

    fn begin(&mut self, packet: &Incoming<'_>) {
        let header = &packet.packet.header;
        self.rewriter.sync(packet.place);
        if let Some((last_at, last)) = self.last {
            let by_arrival =
                last.wrapping_add(self.ticks(packet.now.saturating_duration_since(last_at)).max(1));
            if self.current == Some(packet.stream) {
                // The same clock goes on; but a sender that started anew may have chosen another.
                let straight = header.timestamp.wrapping_add(self.timestamp_shift);
                if !self.is_near(straight, by_arrival) {
                    self.timestamp_shift = by_arrival.wrapping_sub(header.timestamp);
                }
            } else {
                let to = self
                    .by_sender_clock(packet)
                    .filter(|to| self.is_near(*to, by_arrival))
                    .unwrap_or(by_arrival);
                // Never back: the old layer may have shown a later picture already.
                let to = if (to.wrapping_sub(last) as i32) < 1 { last.wrapping_add(1) } else { to };
                self.timestamp_shift = to.wrapping_sub(header.timestamp);
            }
        }
        if self.current != Some(packet.stream)
            && let Some(vp8) = &packet.vp8
        {
            self.numbers.switch(vp8);
        }
        self.current = Some(packet.stream);
        self.synced = true;
        self.clock = packet.streams.get(packet.stream).and_then(|s| s.clock);
    }

    /// The outgoing timestamp of a packet of another stream, by the sender reports of both.
    fn by_sender_clock(&self, packet: &Incoming<'_>) -> Option<u32> {
        let old = self.clock?;
        let new = packet.streams.get(packet.stream)?.clock?;
        let since_report = f64::from(packet.packet.header.timestamp.wrapping_sub(new.rtp) as i32)
            / f64::from(self.clock_rate);
        let between = new.ntp.wrapping_sub(old.ntp) as i64 as f64 / 4_294_967_296.0;
        let ticks = ((between + since_report) * f64::from(self.clock_rate)).round() as i64;
        Some(old.rtp.wrapping_add(ticks as u32).wrapping_add(self.timestamp_shift))
    }

    /// Within a second of each other.
    fn is_near(&self, a: u32, b: u32) -> bool {
        (a.wrapping_sub(b) as i32).unsigned_abs() < self.clock_rate
    }

    fn ticks(&self, time: Duration) -> u32 {
        (time.as_secs_f64() * f64::from(self.clock_rate)) as u64 as u32
    }

    /// Appends a packet as the client gets it, before encryption; with `rtx` as a retransmission of it.
    pub fn write(&mut self, packet: &Stored, how: &Outgoing, stamps: &Stamps, rtx: bool, out: &mut Vec<u8>) {
        let mut header = NewHeader {
            marker: how.marker,
            payload_type: how.payload_type,
            sequence: how.sequence,
            timestamp: how.timestamp,
            ssrc: self.ssrc,
        };
        if let (true, Some((ssrc, payload_type))) = (rtx, self.rtx) {
            header = NewHeader { payload_type, ssrc, sequence: self.rtx_sequence, ..header };
            self.rtx_sequence = self.rtx_sequence.wrapping_add(1);
        }
        let mut writer = HeaderWriter::new(out, &header);
        writer.extension(self.own.mid, &self.mid);
        writer.extension(self.own.transport_cc, &stamps.transport_cc.to_be_bytes());
        writer.extension(self.own.abs_send_time, &stamps.abs_send_time);
        for (id, value) in packet.header.extensions(&packet.bytes) {
            if let Some(&to) = self.passed_on.get(usize::from(id)) {
                writer.extension(to, value);
            }
        }
        writer.finish();
        if rtx {
            out.extend_from_slice(&how.sequence.to_be_bytes());
        }
        let payload_at = out.len();
        out.extend_from_slice(packet.payload());
        how.vp8.apply(&mut out[payload_at..]);
    }

    /// Notes that a packet went out, for retransmission and statistics.
    pub fn sent(
        &mut self,
        now: Instant,
        packet: &Rc<Stored>,
        how: &Outgoing,
        transport_cc: Option<u16>,
        plain: usize,
        protected: &[u8],
    ) {
        self.packets += 1;
        self.payload_bytes += packet.payload().len() as u64;
        self.bytes += plain as u64;
        self.rate.add(now, plain);
        self.history.push(how.sequence, || Sent::new(now, packet.clone(), *how, transport_cc), protected);
    }

    /// The RTP time of an instant, for a sender report; `None` before the first packet.
    pub fn rtp_time(&self, now: Instant) -> Option<u32> {
        let (at, timestamp) = self.last?;
        Some(timestamp.wrapping_add(self.ticks(now.saturating_duration_since(at))))
    }

    /// The layers being forwarded.
    pub fn layers(&self) -> Option<ConsumerLayers> {
        if self.consumer_type != ConsumerType::Simulcast || !self.synced {
            return None;
        }
        self.current.map(|i| ConsumerLayers { spatial_layer: i as u8, temporal_layer: None })
    }
}

impl Stored {
    /// The payload without padding.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.header.payload.clone()]
    }
}
