//! Statistics, with the field names that users of mediasoup's `getStats` know.

use std::time::Instant;

use roomlog_bus::{
    ids::RoomId,
    media::{MediaAnswer, MediaError, MediaObject, TransportState},
    ortc::MediaKind,
};
use serde_json::{Value, json};

use crate::{
    arena::Key, consumer::Consumer, producer::Producer, stream::score, transport::Transport, worker::Worker,
};

impl Worker {
    pub(crate) fn stats(
        &mut self,
        now: Instant,
        room: &RoomId,
        of: &MediaObject,
    ) -> Result<MediaAnswer, MediaError> {
        let mut stats = Vec::new();
        match of {
            MediaObject::Router => {
                let router = self.rooms.get(room).ok_or(MediaError::NoRoom)?;
                let keys: Vec<_> = router.transports.values().copied().collect();
                for key in keys {
                    stats.extend(self.transport_stats(now, key));
                }
            }
            MediaObject::Transport(id) => {
                let key = self.find_transport(room, id)?;
                stats.extend(self.transport_stats(now, key));
            }
            MediaObject::Producer(id) => {
                let key = self.find_producer(room, id)?;
                self.producer_stats(now, key, &mut stats);
            }
            MediaObject::Consumer(id) => {
                let key = self.find_consumer(room, id)?;
                self.consumer_stats(now, key, &mut stats);
            }
        }
        Ok(MediaAnswer::Stats { stats: Value::Array(stats) })
    }

    /// Milliseconds since the worker began.
    fn timestamp(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64
    }

    fn transport_stats(&mut self, now: Instant, key: Key<Transport>) -> Option<Value> {
        let timestamp = self.timestamp(now);
        let transport = self.transports.get_mut(key)?;
        let counters = &mut transport.counters;
        let ice_state = match (transport.ice.selected, transport.state) {
            (_, TransportState::Disconnected) => "disconnected",
            (None, _) => "new",
            (Some(_), _) => "completed",
        };
        let dtls_state = match transport.state {
            TransportState::Failed => "failed",
            _ if transport.srtp.is_some() => "connected",
            TransportState::New => "new",
            _ => "connecting",
        };
        let tuple = transport.ice.selected.map(|remote| {
            let local = self.candidates.first();
            json!({
                "localAddress": local.map(|c| &c.address), "localPort": local.map(|c| c.port),
                "remoteIp": remote.ip().to_canonical().to_string(), "remotePort": remote.port(), "protocol": "udp",
            })
        });
        Some(json!({
            "type": "webrtc-transport",
            "transportId": transport.id.as_str(),
            "timestamp": timestamp,
            "iceRole": "controlled",
            "iceState": ice_state,
            "iceSelectedTuple": tuple,
            "dtlsState": dtls_state,
            "srtpProfile": transport.srtp.as_ref().map(|s| format!("{:?}", s.profile)),
            "bytesReceived": counters.bytes_received,
            "recvBitrate": counters.receive_rate.bits_per_second(now),
            "bytesSent": counters.bytes_sent,
            "sendBitrate": counters.send_rate.bits_per_second(now),
            "rtpBytesReceived": counters.rtp_bytes_received,
            "rtpBytesSent": counters.rtp_bytes_sent,
            "rtxBytesReceived": counters.rtx_bytes_received,
            "rtxBytesSent": counters.rtx_bytes_sent,
            "invalidPackets": counters.invalid,
            "unroutedPackets": counters.unrouted,
            "refusedDtlsRecords": transport.dtls.refused,
            "refusedNonceReuses": counters.nonce_reuse,
        }))
    }

    fn producer_stats(&mut self, now: Instant, key: Key<Producer>, out: &mut Vec<Value>) {
        let timestamp = self.timestamp(now);
        let Some(producer) = self.producers.get_mut(key) else { return };
        let kind = kind_name(producer.kind);
        let mime_type = producer.params.codecs.first().map(|c| c.mime_type.clone());
        for stream in &mut producer.streams {
            let Some(ssrc) = stream.ssrc else { continue };
            out.push(json!({
                "type": "inbound-rtp",
                "timestamp": timestamp,
                "ssrc": ssrc,
                "rtxSsrc": stream.rtx_ssrc,
                "rid": stream.rid,
                "kind": kind,
                "mimeType": mime_type,
                "packetCount": stream.packets,
                "byteCount": stream.bytes,
                "bitrate": stream.rate.bits_per_second(now),
                "packetsLost": stream.lost(),
                "fractionLost": stream.fraction_lost,
                "jitter": stream.jitter(),
                "packetsRepaired": stream.repaired,
                "packetsRetransmitted": stream.retransmitted,
                "nackCount": stream.nacks,
                "nackPacketCount": stream.nacked,
                "pliCount": stream.plis,
                "firCount": 0,
                "keyFrameCount": stream.key_frames,
                "score": stream.score,
            }));
        }
    }

    fn consumer_stats(&mut self, now: Instant, key: Key<Consumer>, out: &mut Vec<Value>) {
        let timestamp = self.timestamp(now);
        let Some(consumer) = self.consumers.get_mut(key) else { return };
        out.push(json!({
            "type": "outbound-rtp",
            "timestamp": timestamp,
            "ssrc": consumer.ssrc,
            "rtxSsrc": consumer.rtx.map(|(ssrc, _)| ssrc),
            "kind": kind_name(consumer.kind),
            "mimeType": consumer.params.codecs.first().map(|c| &c.mime_type),
            "packetCount": consumer.packets,
            "byteCount": consumer.bytes,
            "bitrate": consumer.rate.bits_per_second(now),
            "packetsLost": consumer.lost.max(0),
            "fractionLost": consumer.fraction_lost,
            "packetsRetransmitted": consumer.retransmitted,
            "packetsRepaired": consumer.retransmitted,
            "nackCount": consumer.nacks,
            "nackPacketCount": consumer.nacked,
            "pliCount": consumer.plis,
            "firCount": 0,
            "roundTripTime": consumer.round_trip.map(|t| t.as_secs_f64() * 1000.0),
            "score": score(consumer.fraction_lost),
        }));
        let producer = consumer.producer;
        // mediasoup gives the producer's stream along, so that both legs can be compared.
        self.producer_stats(now, producer, out);
    }
}

fn kind_name(kind: MediaKind) -> &'static str {
    match kind {
        MediaKind::Audio => "audio",
        MediaKind::Video => "video",
    }
}
