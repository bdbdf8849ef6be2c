//! What comes in from clients: RTP that is forwarded, and RTCP that is obeyed.

use std::time::{Duration, Instant};

use crate::{
    arena::Key,
    codec::{Codec, Vp8},
    consumer::Consumer,
    forward::Pending,
    history::DEFAULT_RESEND,
    nack::MAX_MISSING,
    producer::{PayloadType, Producer},
    rtcp::{self, ReportBlock, Rtcp},
    rtp::RtpHeader,
    stream::{Recent, RecvStream},
    transport::{Route, Transport},
    worker::Worker,
};
use roomlog_bus::ortc::MediaKind;

impl Worker {
    /// An RTP packet from a client, which came at `at`.
    pub(crate) fn on_rtp(&mut self, now: Instant, at: Instant, key: Key<Transport>, bytes: &[u8]) {
        let Some(transport) = self.transports.get_mut(key) else { return };
        let Some(srtp) = &mut transport.srtp else { return };
        let Some(encrypted) = RtpHeader::parse(bytes) else {
            transport.counters.invalid += 1;
            return;
        };
        let mut plain = std::mem::take(&mut self.plain);
        if srtp.unprotect_rtp_into(bytes, &encrypted, &mut plain).is_ok() {
            self.on_plain_rtp(now, at, key, &plain);
        } else {
            transport.counters.invalid += 1;
        }
        self.plain = plain;
    }

    /// The same, decrypted.
    fn on_plain_rtp(&mut self, now: Instant, at: Instant, key: Key<Transport>, plain: &[u8]) {
        let Some(transport) = self.transports.get_mut(key) else { return };
        let Some(mut header) = RtpHeader::parse(plain).filter(|_| !plain.is_empty()) else { return };
        if !header.strip_padding(plain) {
            transport.counters.invalid += 1;
            return;
        }
        transport.last_rtp = Some(now);
        transport.counters.rtp_bytes_received += plain.len() as u64;
        // Every packet counts for congestion control, also one that goes nowhere.
        if let Some(&[high, low]) = header.extension(plain, transport.extensions.transport_cc) {
            transport.twcc.arrived(at, u16::from_be_bytes([high, low]));
        }
        let route = match transport.routes.get(&header.ssrc) {
            Some(route) => *route,
            None => match self.learn(key, &header, plain) {
                Some(route) => route,
                None => {
                    if let Some(transport) = self.transports.get_mut(key) {
                        transport.counters.unrouted += 1;
                    }
                    return;
                }
            },
        };
        // Consumers choose among the layers that have come: each packet meets those that came before it.
        if self.pending.iter().any(|p| p.route.producer == route.producer && p.route.stream != route.stream) {
            self.flush();
        }
        let Some(producer) = self.producers.get_mut(route.producer) else { return };
        let mut payload_type = producer.payload_type(header.payload_type);
        let rtx = match payload_type {
            PayloadType::Unknown => return,
            PayloadType::Media { .. } => false,
            PayloadType::Rtx { associated } => {
                if let Some(transport) = self.transports.get_mut(key) {
                    transport.counters.rtx_bytes_received += plain.len() as u64;
                }
                // The original sequence number stands before the payload (RFC 4588 §4); without one it is a padding probe.
                let Some(original) = plain[header.payload.clone()].first_chunk::<2>() else { return };
                header.sequence = u16::from_be_bytes(*original);
                header.payload_type = associated;
                header.payload.start += 2;
                payload_type = producer.payload_type(associated);
                true
            }
        };
        let PayloadType::Media { mapped, codec } = payload_type else { return };
        let Some(stream) = producer.streams.get_mut(route.stream) else { return };
        let arrived = stream.arrived(now, header.sequence, header.timestamp, plain.len(), rtx);
        if arrived.gave_up {
            stream.want_key_frame();
        }
        if arrived.forward && !producer.paused {
            if producer.kind == MediaKind::Audio
                && let Some(&[level, ..]) = header.extension(plain, producer.extensions.audio_level)
            {
                // RFC 6464 §3: -dBov in the low 7 bits. About ten packets, 200 ms, to follow a change.
                producer.audio_level += (f32::from(level & 0x7f) - producer.audio_level) * 0.1;
            }
            let key_frame = codec.begins_key_frame(&plain[header.payload.clone()]);
            if key_frame && producer.kind == MediaKind::Video {
                producer.streams[route.stream].key_frame_arrived();
            }
            let stream = &mut producer.streams[route.stream];
            let packet = stream.pool.store(plain, header);
            let vp8 = (codec == Codec::Vp8).then(|| Vp8::parse(packet.payload())).flatten();
            let recent = Recent { place: arrived.place, packet, payload_type: mapped, vp8 };
            // What came before the beginning of its key frame, because that was lost and is repaired now.
            let behind = if key_frame { stream.kept_behind(arrived.place) } else { Vec::new() };
            stream.keep(|| recent.clone());
            let number = self.pending.len();
            self.pending.push(Pending {
                now,
                number,
                route,
                recent,
                key_frame,
                repair: arrived.repair,
                behind,
            });
        }
        self.ask_for_missing(now, route.producer, route.stream);
        self.ask_for_key_frames(now, route.producer);
    }

    /// Finds the stream of an SSRC that was not signalled, by MID and RID, or by payload type where that is enough (RFC 8843 §9.2).
    fn learn(&mut self, key: Key<Transport>, header: &RtpHeader, bytes: &[u8]) -> Option<Route> {
        let transport = self.transports.get(key)?;
        let ids = transport.extensions;
        let text = |id| header.extension(bytes, id).and_then(|value| std::str::from_utf8(value).ok());
        let (mid, rid, repaired) = (text(ids.mid), text(ids.rid), text(ids.repaired_rid));
        let candidates: Vec<Key<Producer>> = transport
            .producers
            .iter()
            .copied()
            .filter(|&key| {
                self.producers.get(key).is_some_and(|p| match mid {
                    Some(mid) => p.params.mid.as_deref() == Some(mid),
                    None => p.payload_type(header.payload_type) != PayloadType::Unknown,
                })
            })
            .collect();
        // Without a MID several producers may share the payload type; guessing would mix their media.
        let [producer_key] = candidates[..] else { return None };
        let producer = self.producers.get_mut(producer_key)?;
        let rtx = matches!(producer.payload_type(header.payload_type), PayloadType::Rtx { .. });
        let name = if rtx { repaired.or(rid) } else { rid };
        let stream = match name {
            Some(name) => producer.streams.iter().position(|s| s.rid.as_deref() == Some(name))?,
            None if producer.streams.len() == 1 => 0,
            None => return None,
        };
        let slot = &mut producer.streams[stream];
        let before = if rtx { slot.rtx_ssrc.replace(header.ssrc) } else { slot.ssrc.replace(header.ssrc) };
        if let (Some(_), false) = (before, rtx) {
            // The client has started the stream anew: nothing of the old numbers holds.
            let fresh = RecvStream::new(slot.rid.clone(), slot.clock_rate, slot.uses_nack(), slot.use_pli);
            let old = std::mem::replace(slot, fresh);
            (slot.ssrc, slot.rtx_ssrc) = (Some(header.ssrc), old.rtx_ssrc);
            slot.want_key_frame();
            for consumer in producer.consumers.clone() {
                if let Some(consumer) = self.consumers.get_mut(consumer).filter(|c| c.current == Some(stream))
                {
                    consumer.unsync();
                }
            }
        }
        let route = Route { producer: producer_key, stream, rtx };
        let transport = self.transports.get_mut(key)?;
        if let Some(before) = before {
            transport.routes.remove(&before);
        }
        transport.routes.insert(header.ssrc, route);
        tracing::debug!(ssrc = header.ssrc, stream, rtx, "learned a stream");
        Some(route)
    }

    /// A compound RTCP packet from a client.
    pub(crate) fn on_rtcp(&mut self, now: Instant, key: Key<Transport>, bytes: &[u8]) {
        let Some(transport) = self.transports.get_mut(key) else { return };
        let Some(srtp) = &mut transport.srtp else { return };
        let Ok(plain) = srtp.unprotect_rtcp(bytes) else {
            transport.counters.invalid += 1;
            return;
        };
        for packet in rtcp::parse(&plain) {
            match packet {
                Rtcp::SenderReport { ssrc, ntp, rtp, blocks } => {
                    let route = self.transports.get(key).and_then(|t| t.routes.get(&ssrc)).copied();
                    if let Some(Route { producer, stream, rtx: false }) = route
                        && let Some(stream) =
                            self.producers.get_mut(producer).and_then(|p| p.streams.get_mut(stream))
                    {
                        stream.sender_report(now, ntp, rtp);
                    }
                    self.on_reports(now, key, blocks);
                }
                Rtcp::ReceiverReport { blocks } => self.on_reports(now, key, blocks),
                Rtcp::Nack { media, pairs } => self.on_nack(now, key, media, pairs),
                Rtcp::TransportCc { body } => self.on_transport_cc(now, key, body),
                Rtcp::Pli { media } | Rtcp::Fir { media } => {
                    if let Some(consumer) = self.outgoing(key, media) {
                        if let Some(consumer) = self.consumers.get_mut(consumer) {
                            consumer.plis += 1;
                        }
                        self.want_key_frame(now, consumer);
                    }
                }
                Rtcp::Bye { .. } | Rtcp::Other => {}
            }
        }
    }

    fn outgoing(&self, key: Key<Transport>, ssrc: u32) -> Option<Key<Consumer>> {
        self.transports.get(key)?.outgoing.get(&ssrc).copied()
    }

    fn on_reports(&mut self, now: Instant, key: Key<Transport>, blocks: &[u8]) {
        let ntp_now = (self.ntp(now) >> 16) as u32;
        for block in rtcp::report_blocks(blocks) {
            let Some(consumer) = self.outgoing(key, block.ssrc).and_then(|c| self.consumers.get_mut(c))
            else {
                continue;
            };
            let ReportBlock { fraction_lost, lost, jitter, last_sr, delay, .. } = block;
            (consumer.fraction_lost, consumer.lost, consumer.jitter) = (fraction_lost, lost, jitter);
            if last_sr != 0 {
                let trip = ntp_now.wrapping_sub(last_sr).wrapping_sub(delay);
                // RFC 3550 §6.4.1. Clocks differ in rate, so a tiny negative is possible and no trip takes half a minute.
                if trip < 30 << 16 {
                    consumer.round_trip = Some(Duration::from_secs_f64(f64::from(trip) / 65536.0));
                }
            }
        }
    }

    fn on_nack(&mut self, now: Instant, key: Key<Transport>, media: u32, pairs: &[u8]) {
        let Some(of) = self.outgoing(key, media) else { return };
        let Some(consumer) = self.consumers.get_mut(of) else { return };
        consumer.nacks += 1;
        let pause = consumer.round_trip.unwrap_or(DEFAULT_RESEND).max(Duration::from_millis(10));
        let copies = if consumer.is_lossy() { 2 } else { 1 };
        for sequence in rtcp::nack_sequences(pairs) {
            if let Some(consumer) = self.consumers.get_mut(of) {
                consumer.nacked += 1;
            }
            self.resend(now, of, sequence, pause, copies);
        }
    }

    /// Repairs what a feedback says is missing. The client asks for it too; but when that request is lost, it asks again only after 100 ms.
    fn on_transport_cc(&mut self, now: Instant, key: Key<Transport>, body: &[u8]) {
        for number in rtcp::missing_transport_cc(body).take(MAX_MISSING) {
            let stamped = self.transports.get(key).and_then(|t| t.was_stamped(number));
            let Some((of, sequence)) = stamped else { continue };
            if self.consumers.get(of).is_some_and(|c| c.history.is_missed(sequence, number)) {
                self.resend(now, of, sequence, Duration::ZERO, 1);
            }
        }
    }

    /// Asks the client for packets that are missing and due.
    pub(crate) fn ask_for_missing(&mut self, now: Instant, key: Key<Producer>, stream: usize) {
        let Some(producer) = self.producers.get_mut(key) else { return };
        let Some(stream) = producer.streams.get_mut(stream) else { return };
        let (Some(ssrc), Some(due)) = (stream.ssrc, stream.nack.next_due()) else { return };
        if due > now {
            return;
        }
        let (pairs, gave_up) = stream.nack.due(now);
        if gave_up {
            stream.want_key_frame();
        }
        if pairs.is_empty() {
            return;
        }
        stream.nacks += 1;
        stream.nacked += pairs.iter().map(|p| 1 + u64::from(p.mask.count_ones())).sum::<u64>();
        let Some(transport) = self.transports.get_mut(producer.transport) else { return };
        let mut out = Vec::with_capacity(64);
        rtcp::write_nack(&mut out, transport.rtcp_ssrc, ssrc, &pairs);
        transport.send_rtcp(&out, &mut self.outbox);
    }

    /// Sends the key frame requests of a producer that are due.
    pub(crate) fn ask_for_key_frames(&mut self, now: Instant, key: Key<Producer>) {
        let Some(producer) = self.producers.get_mut(key) else { return };
        if producer.paused {
            return;
        }
        let Some(transport) = self.transports.get_mut(producer.transport).filter(|t| t.can_send()) else {
            return;
        };
        for stream in &mut producer.streams {
            if stream.key_frame_request_due(now)
                && let Some(ssrc) = stream.ssrc
            {
                let mut out = Vec::with_capacity(12);
                rtcp::write_pli(&mut out, transport.rtcp_ssrc, ssrc);
                transport.send_rtcp(&out, &mut self.outbox);
            }
        }
    }

    /// A consumer needs a key frame of what it shows, or of what it is to show.
    pub(crate) fn want_key_frame(&mut self, now: Instant, key: Key<Consumer>) {
        let Some(consumer) = self.consumers.get(key) else { return };
        if consumer.paused || consumer.kind != MediaKind::Video {
            return;
        }
        let Some(index) = consumer.target.or(consumer.current) else { return };
        let producer = consumer.producer;
        if let Some(stream) = self.producers.get_mut(producer).and_then(|p| p.streams.get_mut(index)) {
            stream.want_key_frame();
        }
        self.ask_for_key_frames(now, producer);
    }

    /// A consumer begins, or begins again: picks its layer and asks for a key frame.
    pub(crate) fn restart_consumer(&mut self, now: Instant, key: Key<Consumer>) {
        let Some(consumer) = self.consumers.get_mut(key) else { return };
        consumer.unsync();
        if consumer.paused {
            return;
        }
        if let Some(producer) = self.producers.get(consumer.producer) {
            consumer.choose_stream(now, &producer.streams);
        }
        // Its layers may want to be looked at sooner than anything else on the transport.
        let transport = consumer.transport;
        self.want_key_frame(now, key);
        self.schedule(now, transport);
    }
}
