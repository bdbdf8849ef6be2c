//! What happens by the clock: feedback, reports, consent, layers, scores.

use std::time::{Duration, Instant};

use roomlog_bus::media::{MediaNotification, TransportState};

use crate::{arena::Key, rtcp, stream::score, transport::Transport, worker::Worker};

/// How often a transport that media comes in on is looked after: bounds how late a repeated NACK or key frame request goes out.
const BUSY_TICK: Duration = Duration::from_millis(20);

/// How often a transport with layered consumers is looked after: bounds how late a layer that has fallen silent is left.
const LAYER_TICK: Duration = Duration::from_millis(200);

/// Time between reports. RFC 3550 §6.2 scales it with the bandwidth; at a second the reports of a consumer cost about 60 byte/s.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The canonical name under which the worker sends feedback; clients ignore it.
const CNAME: &str = "roomlog";

/// Time between two looks for the loudest: faster than this an interface would flicker.
const SPEAKER_INTERVAL: Duration = Duration::from_millis(500);

/// Louder than this (in dBov below full scale) somebody speaks; a quiet room is at 50 to 60.
const SPEECH_LEVEL: f32 = 45.0;

impl Transport {
    /// When it wants to be looked after.
    pub(crate) fn next_due(&self, now: Instant, consent: Duration) -> Option<Instant> {
        if self.state == TransportState::Failed {
            return None;
        }
        let expiry = match self.state {
            TransportState::Connecting | TransportState::Connected => {
                self.ice.last_request.map(|at| at + consent)
            }
            _ => None,
        };
        let busy = self.last_rtp.is_some_and(|at| now.saturating_duration_since(at) < REPORT_INTERVAL);
        let tick = self.srtp.as_ref().map(|_| {
            now + match (busy && !self.producers.is_empty(), self.layered > 0) {
                (true, _) => BUSY_TICK,
                (false, true) => LAYER_TICK,
                (false, false) => REPORT_INTERVAL,
            }
        });
        [self.dtls.poll_timeout(), expiry, tick].into_iter().flatten().min()
    }
}

impl Worker {
    /// Looks after one transport.
    pub(crate) fn tick(&mut self, now: Instant, key: Key<Transport>) {
        let consent = Duration::from_millis(self.config.ice_consent_ms);
        let Some(transport) = self.transports.get_mut(key) else { return };
        if transport.dtls.poll_timeout().is_some_and(|due| due <= now) {
            let outcome = transport.dtls.handle_timeout(now);
            self.on_dtls(now, key, outcome.map(|()| None));
        }
        let Some(transport) = self.transports.get_mut(key) else { return };
        let expired =
            transport.ice.last_request.is_some_and(|at| now.saturating_duration_since(at) >= consent);
        if expired && matches!(transport.state, TransportState::Connecting | TransportState::Connected) {
            self.set_state(key, TransportState::Disconnected);
        }
        let Some(transport) = self.transports.get_mut(key).filter(|t| t.can_send()) else { return };
        if transport.twcc.next_due().is_some_and(|due| due <= now)
            && let Some(body) = transport.twcc.feedback(now)
        {
            // The media SSRC only has to be one of the client's; any will do for feedback on the whole transport.
            let media = transport.routes.keys().next().copied().unwrap_or_default();
            let mut out = Vec::with_capacity(20 + body.len());
            rtcp::write_transport_cc(&mut out, transport.rtcp_ssrc, media, &body);
            transport.send_rtcp(&out, &mut self.outbox);
        }
        let (producers, consumers) = (transport.producers.clone(), transport.consumers.clone());
        let report = now >= transport.next_report;
        if report {
            transport.next_report = now + REPORT_INTERVAL;
        }
        for &producer in &producers {
            for stream in 0..self.producers.get(producer).map_or(0, |p| p.streams.len()) {
                self.ask_for_missing(now, producer, stream);
            }
            self.ask_for_key_frames(now, producer);
        }
        for &consumer in &consumers {
            let Some(c) = self.consumers.get_mut(consumer) else { continue };
            let Some(producer) = self.producers.get(c.producer) else { continue };
            let switch = !c.paused && !producer.paused && c.choose_stream(now, &producer.streams);
            let layers = c.layers();
            if c.told_layers != Some(layers) && (layers.is_some() || c.told_layers.is_some()) {
                c.told_layers = Some(layers);
                let notification = MediaNotification::ConsumerLayers { consumer: c.id.clone(), layers };
                self.notifications.push((c.room.clone(), notification));
            }
            if switch {
                self.want_key_frame(now, consumer);
            }
        }
        if report {
            self.report_received(now, key, &producers);
            self.report_sent(now, key, &consumers);
        }
    }

    /// Receiver report on what comes in, and the scores that come of it.
    fn report_received(
        &mut self,
        now: Instant,
        key: Key<Transport>,
        producers: &[Key<crate::producer::Producer>],
    ) {
        let mut blocks = Vec::new();
        let mut rooms = Vec::new();
        for &producer in producers {
            let Some(producer) = self.producers.get_mut(producer) else { continue };
            blocks.extend(producer.streams.iter_mut().filter_map(|s| s.report(now)));
            let score = producer.score();
            if producer.told_score.as_ref() != Some(&score) {
                producer.told_score = Some(score.clone());
                let notification = MediaNotification::ProducerScore { producer: producer.id.clone(), score };
                self.notifications.push((producer.room.clone(), notification));
            }
            if producer.kind == roomlog_bus::ortc::MediaKind::Audio && !rooms.contains(&producer.room) {
                rooms.push(producer.room.clone());
            }
        }
        if let (false, Some(transport)) = (blocks.is_empty(), self.transports.get_mut(key)) {
            let mut out = Vec::with_capacity(64);
            rtcp::write_receiver_report(&mut out, transport.rtcp_ssrc, &blocks);
            rtcp::write_sdes(&mut out, transport.rtcp_ssrc, CNAME);
            transport.send_rtcp(&out, &mut self.outbox);
        }
        for room in rooms {
            self.find_speaker(now, &room);
        }
    }

    /// Sender reports on what goes out, and the scores.
    fn report_sent(
        &mut self,
        now: Instant,
        key: Key<Transport>,
        consumers: &[Key<crate::consumer::Consumer>],
    ) {
        let ntp = self.ntp(now);
        for &consumer in consumers {
            let Some(consumer) = self.consumers.get_mut(consumer) else { continue };
            if let (false, Some(rtp)) = (consumer.paused, consumer.rtp_time(now)) {
                let cname = consumer.params.rtcp.cname.as_deref().unwrap_or(CNAME);
                let (packets, bytes) = (consumer.packets as u32, consumer.payload_bytes as u32);
                let mut out = Vec::with_capacity(64);
                rtcp::write_sender_report(&mut out, consumer.ssrc, ntp, rtp, packets, bytes, cname);
                if let Some(transport) = self.transports.get_mut(key) {
                    transport.send_rtcp(&out, &mut self.outbox);
                }
                consumer.last_report = Some(now);
            }
            let Some(producer) = self.producers.get(consumer.producer) else { continue };
            let scores: Vec<u8> = producer.streams.iter().map(|s| s.score).collect();
            let producer_score = consumer.current.and_then(|i| scores.get(i).copied()).unwrap_or_default();
            let told = serde_json::json!({
                "score": score(consumer.fraction_lost), "producerScore": producer_score, "producerScores": scores,
            });
            if consumer.told_score.as_ref() != Some(&told) {
                consumer.told_score = Some(told.clone());
                let notification =
                    MediaNotification::ConsumerScore { consumer: consumer.id.clone(), score: told };
                self.notifications.push((consumer.room.clone(), notification));
            }
        }
    }

    /// Tells a room who is loudest, when that changes.
    fn find_speaker(&mut self, now: Instant, room: &roomlog_bus::ids::RoomId) {
        let Some(router) = self.rooms.get_mut(room) else { return };
        // Every transport of the room comes by here once an interval; one look at all producers an interval is enough.
        if router.speaker_at.is_some_and(|at| now.saturating_duration_since(at) < SPEAKER_INTERVAL) {
            return;
        }
        router.speaker_at = Some(now);
        let loudest = router
            .producers
            .values()
            .filter_map(|&key| self.producers.get(key))
            .filter(|p| p.kind == roomlog_bus::ortc::MediaKind::Audio && !p.paused)
            .filter(|p| p.audio_level < SPEECH_LEVEL && p.streams.iter().any(|s| s.is_active(now)))
            .min_by(|a, b| a.audio_level.total_cmp(&b.audio_level));
        let producer = loudest.map(|p| p.id.clone());
        if router.speaker != producer {
            let volume = loudest.map_or(-127, |p| -(p.audio_level as i8));
            router.speaker = producer.clone();
            self.notifications.push((room.clone(), MediaNotification::ActiveSpeaker { producer, volume }));
        }
    }
}
