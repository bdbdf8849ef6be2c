//! From an incoming packet to its consumers.
//!
//! Packets wait until the batch of datagrams that they came in is read, which is until somebody asks for the outbox. Then each consumer writes
//! all of them one behind the other: its state is fetched from memory once, and they go out by one call from where they were written.
//! Nothing waits for a batch to fill: a packet that comes alone goes out alone.

use std::time::{Duration, Instant};

use crate::{
    arena::Key,
    consumer::{Consumer, Incoming},
    history::Again,
    stream::Recent,
    transport::Route,
    worker::Worker,
};

/// A packet on its way to consumers.
pub(crate) struct Pending {
    /// When it was taken.
    pub(crate) now: Instant,
    /// Its rank in the batch.
    pub(crate) number: usize,
    /// Whose it is.
    pub(crate) route: Route,
    /// The packet.
    pub(crate) recent: Recent,
    /// Whether a decoder can begin with it.
    pub(crate) key_frame: bool,
    /// Whether it was missing before.
    pub(crate) repair: bool,
    /// What is known already of the packets after it, where it begins a key frame.
    pub(crate) behind: Vec<Recent>,
}

impl Worker {
    /// Writes what has come to all that are to have it.
    pub(crate) fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut pending = std::mem::take(&mut self.pending);
        // By producer; within one, as they came. (A stable sort would allocate.)
        pending.sort_unstable_by_key(|p| (p.route.producer, p.number));
        for group in pending.chunk_by(|a, b| a.route.producer == b.route.producer) {
            let Some(sender) = self.producers.get(group[0].route.producer).map(|p| p.transport) else {
                continue;
            };
            self.guarded(group[0].now, sender, |worker| worker.forward(group));
        }
        pending.clear();
        self.pending = pending;
    }

    /// Packets of one producer.
    fn forward(&mut self, group: &[Pending]) {
        let Some(producer) = self.producers.get(group[0].route.producer) else { return };
        let mut lossy = Vec::new();
        for &key in &producer.consumers {
            let Some(consumer) = self.consumers.get_mut(key) else { continue };
            let Some(transport) = self.transports.get_mut(consumer.transport).filter(|t| t.can_send()) else {
                continue;
            };
            for Pending { now, route, recent, key_frame, repair, behind, .. } in group {
                let now = *now;
                if consumer.target.is_none() {
                    // Whatever comes first will do until the next tick has seen which layers there are.
                    consumer.choose_stream(now, &producer.streams);
                }
                let behind = if consumer.awaits_key_frame(route.stream) { &behind[..] } else { &[] };
                let since_epoch = now.saturating_duration_since(self.epoch);
                let behind = behind.iter().map(|recent| (recent, false, false));
                for (recent, key_frame, repair) in
                    std::iter::once((recent, *key_frame, *repair)).chain(behind)
                {
                    let Recent { place, packet, payload_type, vp8 } = recent;
                    let incoming = Incoming {
                        now,
                        stream: route.stream,
                        place: *place,
                        packet,
                        payload_type: *payload_type,
                        key_frame,
                        vp8,
                        streams: &producer.streams,
                    };
                    let Some(how) = consumer.plan(&incoming) else { continue };
                    let stamps = transport.stamps(since_epoch, consumer.uses_transport_cc());
                    let write = |out: &mut Vec<u8>| consumer.write(packet, &how, &stamps, false, out);
                    let Some((protected, plain)) = transport.send_rtp(now, &mut self.outbox, write) else {
                        continue;
                    };
                    let number = consumer.uses_transport_cc().then_some(stamps.transport_cc);
                    consumer.sent(now, packet, &how, number, plain, protected);
                    if let (Some(number), true) = (number, consumer.rtx.is_some()) {
                        transport.stamped(number, key, how.sequence);
                    }
                    // Its client has asked for it too, in vain, and asks again only after 100 ms.
                    if repair && consumer.is_lossy() && consumer.rtx.is_some() {
                        lossy.push((now, key, how.sequence));
                    }
                }
            }
        }
        for (now, consumer, sequence) in lossy {
            self.resend(now, consumer, sequence, Duration::ZERO, 2);
        }
    }

    /// Sends a packet of a consumer again, unless that was done less than `pause` ago or too often.
    pub(crate) fn resend(
        &mut self,
        now: Instant,
        of: Key<Consumer>,
        sequence: u16,
        pause: Duration,
        copies: usize,
    ) {
        let Some(consumer) = self.consumers.get_mut(of) else { return };
        let Some(transport) = self.transports.get_mut(consumer.transport).filter(|t| t.can_send()) else {
            return;
        };
        let since_epoch = now.saturating_duration_since(self.epoch);
        match consumer.history.again(now, sequence, pause) {
            Some(Again::Rtx(sent)) => {
                consumer.retransmitted += 1;
                for _ in 0..copies {
                    let transport_cc = consumer.uses_transport_cc();
                    let stamps = transport.stamps(since_epoch, transport_cc);
                    let write =
                        |out: &mut Vec<u8>| consumer.write(&sent.packet, &sent.how, &stamps, true, out);
                    if let Some((_, plain)) = transport.send_rtp(now, &mut self.outbox, write) {
                        transport.counters.rtx_bytes_sent += plain as u64;
                    }
                    if transport_cc {
                        consumer.history.went_again(sequence, Some(stamps.transport_cc));
                        transport.stamped(stamps.transport_cc, of, sequence);
                    }
                }
            }
            Some(Again::Identical(bytes)) => {
                consumer.retransmitted += 1;
                transport.send_again(now, &bytes, &mut self.outbox);
            }
            None => {}
        }
    }
}
