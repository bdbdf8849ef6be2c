//! The commands of an EA. Creating ones are idempotent by id: asked twice, they change nothing and give the same answer.

use std::time::Instant;

use rand::{Rng, RngCore};
use roomlog_bus::{
    ids::{ConsumerId, ProducerId, RoomId, TransportId, random_token},
    media::{
        ConsumerInventory, MediaAnswer, MediaCommand, MediaError, MediaObject, ProducerInventory,
        RouterInventory, TransportInventory, TransportState,
    },
    ortc::{
        ConsumerLayers, ConsumerType, DtlsParameters, DtlsRole, MediaKind, RtpCapabilities, RtpParameters,
    },
};

use crate::{
    arena::Key,
    consumer::{Consumer, Place},
    ortc::{self, OrtcError},
    producer::{ExtensionIds, Producer},
    transport::{Ice, Route, Transport},
    worker::{Router, Worker},
};

type Outcome = Result<MediaAnswer, MediaError>;

impl Worker {
    pub(crate) fn command(&mut self, now: Instant, room: &RoomId, command: MediaCommand) -> Outcome {
        match command {
            MediaCommand::CreateRouter => {
                self.rooms.entry(room.clone()).or_default();
                Ok(MediaAnswer::Router { rtp_capabilities: self.capabilities.clone() })
            }
            MediaCommand::CreateTransport { transport } => self.create_transport(now, room, transport),
            MediaCommand::ConnectTransport { transport, dtls } => {
                self.connect_transport(now, room, &transport, &dtls)
            }
            MediaCommand::RestartIce { transport } => self.restart_ice(room, &transport),
            MediaCommand::Produce { transport, producer, kind, rtp_parameters, paused } => {
                self.produce(room, &transport, producer, kind, rtp_parameters, paused)
            }
            MediaCommand::Consume { transport, consumer, producer, rtp_capabilities } => {
                self.consume(room, &transport, consumer, &producer, &rtp_capabilities)
            }
            MediaCommand::RequestKeyFrame { consumer } => {
                let key = self.find_consumer(room, &consumer)?;
                self.want_key_frame(now, key);
                Ok(MediaAnswer::Done)
            }
            MediaCommand::SetPreferredLayers { consumer, layers } => {
                self.prefer_layers(now, room, &consumer, layers)
            }
            MediaCommand::SetPriority { consumer, priority } => {
                let key = self.find_consumer(room, &consumer)?;
                if priority == 0 {
                    return Err(MediaError::BadParameters { reason: "a priority is 1 to 255, not 0".into() });
                }
                if let Some(consumer) = self.consumers.get_mut(key) {
                    consumer.priority = priority;
                }
                Ok(MediaAnswer::Done)
            }
            MediaCommand::GetStats { of } => self.stats(now, room, &of),
            MediaCommand::Inventory => self.inventory(room),
            MediaCommand::Close { object } => {
                self.close_object(now, room, &object);
                Ok(MediaAnswer::Done)
            }
            MediaCommand::PauseProducer { producer, paused } => {
                self.pause_producer(now, room, &producer, paused)
            }
            MediaCommand::PauseConsumer { consumer, paused } => {
                let key = self.find_consumer(room, &consumer)?;
                if let Some(consumer) = self.consumers.get_mut(key).filter(|c| c.paused != paused) {
                    consumer.paused = paused;
                    self.restart_consumer(now, key);
                }
                Ok(MediaAnswer::Done)
            }
        }
    }

    fn router(&self, room: &RoomId) -> Result<&Router, MediaError> {
        self.rooms.get(room).ok_or(MediaError::NoRoom)
    }

    pub(crate) fn find_transport(
        &self,
        room: &RoomId,
        id: &TransportId,
    ) -> Result<Key<Transport>, MediaError> {
        self.router(room)?.transports.get(id).copied().ok_or_else(|| missing("transport", id.as_str()))
    }

    pub(crate) fn find_producer(&self, room: &RoomId, id: &ProducerId) -> Result<Key<Producer>, MediaError> {
        self.router(room)?.producers.get(id).copied().ok_or_else(|| missing("producer", id.as_str()))
    }

    pub(crate) fn find_consumer(&self, room: &RoomId, id: &ConsumerId) -> Result<Key<Consumer>, MediaError> {
        self.router(room)?.consumers.get(id).copied().ok_or_else(|| missing("consumer", id.as_str()))
    }

    fn create_transport(&mut self, now: Instant, room: &RoomId, id: TransportId) -> Outcome {
        let existing = self.router(room)?.transports.get(&id).copied();
        let key = match existing {
            Some(key) => key,
            None => {
                if self.transports.len() >= self.config.max_transports {
                    let reason = format!("it has {} transports, as many as it may", self.transports.len());
                    return Err(MediaError::Unavailable { reason });
                }
                let transport = Transport::new(id.clone(), room.clone(), now, self.epoch, &mut self.rng);
                let ufrag = transport.ice.ufrag.clone();
                let key = self.transports.insert(transport);
                self.by_ufrag.insert(ufrag, key);
                if let Some(router) = self.rooms.get_mut(room) {
                    router.transports.insert(id.clone(), key);
                }
                key
            }
        };
        let transport = self.transports.get(key).ok_or_else(|| missing("transport", id.as_str()))?;
        Ok(MediaAnswer::Transport {
            ice_parameters: transport.ice.parameters(),
            ice_candidates: self.candidates.clone(),
            dtls_parameters: self.dtls.parameters(),
        })
    }

    fn connect_transport(
        &mut self,
        now: Instant,
        room: &RoomId,
        id: &TransportId,
        dtls: &DtlsParameters,
    ) -> Outcome {
        let key = self.find_transport(room, id)?;
        if dtls.role == DtlsRole::Server {
            let reason =
                "the worker is always the DTLS server; the client must take the role client or auto".into();
            return Err(MediaError::BadParameters { reason });
        }
        if !dtls.fingerprints.iter().any(|f| f.algorithm.eq_ignore_ascii_case("sha-256")) {
            return Err(MediaError::BadParameters { reason: "a sha-256 fingerprint is needed".into() });
        }
        let Some(transport) = self.transports.get_mut(key) else { return Ok(MediaAnswer::Done) };
        if transport.dtls.has_fingerprints() {
            if transport.dtls.same_fingerprints(&dtls.fingerprints) {
                return Ok(MediaAnswer::Done);
            }
            return Err(MediaError::WrongState {
                reason: "it is connected already, with other fingerprints".into(),
            });
        }
        let event = transport.dtls.connect(&self.dtls, now, &dtls.fingerprints);
        self.on_dtls(now, key, event);
        self.schedule(now, key);
        Ok(MediaAnswer::Done)
    }

    fn restart_ice(&mut self, room: &RoomId, id: &TransportId) -> Outcome {
        let key = self.find_transport(room, id)?;
        let Some(transport) = self.transports.get_mut(key) else { return Ok(MediaAnswer::Done) };
        if transport.state == TransportState::Failed {
            return Err(MediaError::WrongState { reason: "it has failed; make a new transport".into() });
        }
        let fresh = Ice::new(&mut self.rng);
        if let Some((older, _)) = transport.ice.previous.take() {
            self.by_ufrag.remove(&older);
        }
        self.by_ufrag.insert(fresh.ufrag.clone(), key);
        let ufrag = std::mem::replace(&mut transport.ice.ufrag, fresh.ufrag);
        let password = std::mem::replace(&mut transport.ice.password, fresh.password);
        transport.ice.previous = Some((ufrag, password));
        Ok(MediaAnswer::Ice { ice_parameters: transport.ice.parameters() })
    }

    fn produce(
        &mut self,
        room: &RoomId,
        transport_id: &TransportId,
        id: ProducerId,
        kind: MediaKind,
        mut params: RtpParameters,
        paused: bool,
    ) -> Outcome {
        let transport_key = self.find_transport(room, transport_id)?;
        let transport = self
            .transports
            .get_mut(transport_key)
            .ok_or_else(|| missing("transport", transport_id.as_str()))?;
        // One canonical name for all of a client's producers, so that receivers play its sound and picture in step; browsers give
        // none with simulcast.
        let given = params.rtcp.cname.take().filter(|cname| !cname.is_empty());
        let cname = transport
            .cname
            .get_or_insert_with(|| given.map_or_else(|| random_token(&mut self.rng, 16), String::from));
        params.rtcp.cname = Some(cname.as_str().into());
        if let Ok(key) = self.find_producer(room, &id) {
            let existing = self.producers.get(key).ok_or_else(|| missing("producer", id.as_str()))?;
            if existing.transport != transport_key || existing.params != params {
                return Err(MediaError::WrongState {
                    reason: format!("producer {id} exists with other parameters"),
                });
            }
            return Ok(MediaAnswer::Producer { consumer_type: existing.consumer_type });
        }
        ortc::validate_rtp_parameters(&params).map_err(bad)?;
        let rng = &mut self.rng;
        let mapping =
            ortc::producer_mapping(&params, &self.capabilities, &mut || fresh_ssrc(rng)).map_err(bad)?;
        let consumable =
            ortc::consumable_parameters(kind, &params, &self.capabilities, &mapping).map_err(bad)?;

        let transport =
            self.transports.get(transport_key).ok_or_else(|| missing("transport", transport_id.as_str()))?;
        let ssrcs = params.encodings.iter().flat_map(|e| [e.ssrc, e.rtx.map(|rtx| rtx.ssrc)]).flatten();
        let mut own = std::collections::BTreeSet::new();
        for ssrc in ssrcs {
            if !own.insert(ssrc) {
                let reason = format!("SSRC {ssrc} is given to two streams of this producer");
                return Err(MediaError::BadParameters { reason });
            }
            if transport.routes.contains_key(&ssrc) {
                let reason = format!("SSRC {ssrc} is in use by another producer of this transport");
                return Err(MediaError::BadParameters { reason });
            }
        }
        if let Some(mid) = &params.mid {
            let others = transport.producers.iter().filter_map(|&key| self.producers.get(key));
            if others.into_iter().any(|other| other.params.mid.as_ref() == Some(mid)) {
                let reason = format!("mid {mid:?} is in use by another producer of this transport");
                return Err(MediaError::BadParameters { reason });
            }
        }

        let producer = Producer::new(
            (id.clone(), room.clone(), transport_key),
            kind,
            paused,
            params,
            &mapping,
            consumable,
        );
        let consumer_type = producer.consumer_type;
        let routes: Vec<(u32, usize, bool)> = producer
            .streams
            .iter()
            .enumerate()
            .flat_map(|(index, s)| {
                [s.ssrc.map(|ssrc| (ssrc, index, false)), s.rtx_ssrc.map(|ssrc| (ssrc, index, true))]
            })
            .flatten()
            .collect();
        let extensions = producer.extensions;
        let key = self.producers.insert(producer);
        if let Some(transport) = self.transports.get_mut(transport_key) {
            for (ssrc, stream, rtx) in routes {
                transport.routes.insert(ssrc, Route { producer: key, stream, rtx });
            }
            merge(&mut transport.extensions, &extensions);
            transport.producers.push(key);
        }
        if let Some(router) = self.rooms.get_mut(room) {
            router.producers.insert(id, key);
        }
        Ok(MediaAnswer::Producer { consumer_type })
    }

    fn consume(
        &mut self,
        room: &RoomId,
        transport_id: &TransportId,
        id: ConsumerId,
        producer_id: &ProducerId,
        caps: &RtpCapabilities,
    ) -> Outcome {
        let transport_key = self.find_transport(room, transport_id)?;
        let producer_key = self.find_producer(room, producer_id)?;
        if let Ok(key) = self.find_consumer(room, &id) {
            let existing = self.consumers.get(key).ok_or_else(|| missing("consumer", id.as_str()))?;
            if existing.transport != transport_key || existing.producer != producer_key {
                return Err(MediaError::WrongState {
                    reason: format!("consumer {id} exists on other objects"),
                });
            }
            return Ok(consumer_answer(existing));
        }
        let producer =
            self.producers.get(producer_key).ok_or_else(|| missing("producer", producer_id.as_str()))?;
        if !ortc::can_consume(&producer.consumable, caps).map_err(bad)? {
            return Err(MediaError::CannotConsume { producer: producer_id.clone() });
        }
        let transport = self
            .transports
            .get_mut(transport_key)
            .ok_or_else(|| missing("transport", transport_id.as_str()))?;
        let mid = transport.next_mid.to_string();
        let mut ssrcs = [0, 0];
        while ssrcs[0] == ssrcs[1] || ssrcs.iter().any(|ssrc| transport.outgoing.contains_key(ssrc)) {
            ssrcs = [fresh_ssrc(&mut self.rng), fresh_ssrc(&mut self.rng)];
        }
        let params =
            ortc::consumer_parameters(&producer.consumable, caps, &mid, ssrcs[0], ssrcs[1]).map_err(bad)?;
        transport.next_mid += 1;
        let place =
            Place { id: id.clone(), room: room.clone(), transport: transport_key, producer: producer_key };
        let (sequence, rtx_sequence) = (self.rng.random_range(0..1 << 15), self.rng.random_range(0..1 << 15));
        let consumer = Consumer::new(place, producer, params, sequence, rtx_sequence);
        let answer = consumer_answer(&consumer);
        let (ssrc, consumer_type) = (consumer.ssrc, consumer.consumer_type);
        let key = self.consumers.insert(consumer);
        transport.outgoing.insert(ssrc, key);
        transport.layered += usize::from(consumer_type == ConsumerType::Simulcast);
        transport.consumers.push(key);
        if let Some(producer) = self.producers.get_mut(producer_key) {
            producer.consumers.push(key);
        }
        if let Some(router) = self.rooms.get_mut(room) {
            router.consumers.insert(id, key);
        }
        Ok(answer)
    }

    fn prefer_layers(
        &mut self,
        now: Instant,
        room: &RoomId,
        id: &ConsumerId,
        layers: ConsumerLayers,
    ) -> Outcome {
        let key = self.find_consumer(room, id)?;
        let Some(consumer) = self.consumers.get_mut(key) else { return Ok(MediaAnswer::Done) };
        consumer.preferred = Some(layers);
        if let Some(producer) = self.producers.get(consumer.producer)
            && !consumer.paused
            && consumer.choose_stream(now, &producer.streams)
        {
            self.want_key_frame(now, key);
        }
        Ok(MediaAnswer::Done)
    }

    fn pause_producer(&mut self, now: Instant, room: &RoomId, id: &ProducerId, paused: bool) -> Outcome {
        let key = self.find_producer(room, id)?;
        let Some(producer) = self.producers.get_mut(key).filter(|p| p.paused != paused) else {
            return Ok(MediaAnswer::Done);
        };
        producer.paused = paused;
        for stream in &mut producer.streams {
            stream.forget_missing();
        }
        for consumer in producer.consumers.clone() {
            if paused {
                if let Some(consumer) = self.consumers.get_mut(consumer) {
                    consumer.unsync();
                }
            } else {
                self.restart_consumer(now, consumer);
            }
        }
        Ok(MediaAnswer::Done)
    }

    fn inventory(&self, room: &RoomId) -> Outcome {
        let router = self.router(room)?;
        let producer_id = |key| self.producers.get(key).map(|p: &Producer| p.id.clone());
        let transport_id = |key| self.transports.get(key).map(|t: &Transport| t.id.clone());
        let inventory = RouterInventory {
            transports: router
                .transports
                .iter()
                .filter_map(|(id, &key)| {
                    Some(TransportInventory { id: id.clone(), state: self.transports.get(key)?.state })
                })
                .collect(),
            producers: router
                .producers
                .iter()
                .filter_map(|(id, &key)| {
                    let producer = self.producers.get(key)?;
                    let transport = transport_id(producer.transport)?;
                    Some(ProducerInventory { id: id.clone(), transport, paused: producer.paused })
                })
                .collect(),
            consumers: router
                .consumers
                .iter()
                .filter_map(|(id, &key)| {
                    let consumer = self.consumers.get(key)?;
                    Some(ConsumerInventory {
                        id: id.clone(),
                        transport: transport_id(consumer.transport)?,
                        producer: producer_id(consumer.producer)?,
                        paused: consumer.paused,
                    })
                })
                .collect(),
        };
        Ok(MediaAnswer::Inventory { inventory })
    }

    fn close_object(&mut self, now: Instant, room: &RoomId, object: &MediaObject) {
        // What is not there is as closed as can be.
        match object {
            MediaObject::Router => self.close_router(now, room),
            MediaObject::Transport(id) => {
                if let Ok(key) = self.find_transport(room, id) {
                    self.close_transport(now, key);
                }
            }
            MediaObject::Producer(id) => {
                if let Ok(key) = self.find_producer(room, id) {
                    self.close_producer(key);
                }
            }
            MediaObject::Consumer(id) => {
                if let Ok(key) = self.find_consumer(room, id) {
                    self.close_consumer(key);
                }
            }
        }
    }

    pub(crate) fn close_router(&mut self, now: Instant, room: &RoomId) {
        let transports: Vec<_> =
            self.rooms.get(room).into_iter().flat_map(|r| r.transports.values().copied()).collect();
        for transport in transports {
            self.close_transport(now, transport);
        }
        self.rooms.remove(room);
    }

    fn close_transport(&mut self, now: Instant, key: Key<Transport>) {
        let Some(transport) = self.transports.get_mut(key) else { return };
        transport.dtls.close(now);
        transport.flush_dtls(&mut self.outbox);
        let (producers, consumers) = (transport.producers.clone(), transport.consumers.clone());
        producers.into_iter().for_each(|producer| self.close_producer(producer));
        consumers.into_iter().for_each(|consumer| self.close_consumer(consumer));
        let Some(transport) = self.transports.remove(key) else { return };
        self.by_ufrag.remove(&transport.ice.ufrag);
        if let Some((ufrag, _)) = &transport.ice.previous {
            self.by_ufrag.remove(ufrag);
        }
        for (address, _) in &transport.ice.addresses {
            if self.by_address.get(address) == Some(&key) {
                self.by_address.remove(address);
            }
        }
        if let Some(router) = self.rooms.get_mut(&transport.room) {
            router.transports.remove(&transport.id);
        }
    }

    fn close_producer(&mut self, key: Key<Producer>) {
        let Some(producer) = self.producers.get(key) else { return };
        for consumer in producer.consumers.clone() {
            self.close_consumer(consumer);
        }
        let Some(producer) = self.producers.remove(key) else { return };
        if let Some(transport) = self.transports.get_mut(producer.transport) {
            transport.producers.retain(|&other| other != key);
            transport.routes.retain(|_, route| route.producer != key);
        }
        if let Some(router) = self.rooms.get_mut(&producer.room) {
            router.producers.remove(&producer.id);
        }
    }

    fn close_consumer(&mut self, key: Key<Consumer>) {
        let Some(consumer) = self.consumers.remove(key) else { return };
        if let Some(transport) = self.transports.get_mut(consumer.transport) {
            transport.consumers.retain(|&other| other != key);
            transport.outgoing.remove(&consumer.ssrc);
            transport.layered -= usize::from(consumer.consumer_type == ConsumerType::Simulcast);
        }
        if let Some(producer) = self.producers.get_mut(consumer.producer) {
            producer.consumers.retain(|&other| other != key);
        }
        if let Some(router) = self.rooms.get_mut(&consumer.room) {
            router.consumers.remove(&consumer.id);
        }
    }
}

fn missing(what: &str, id: &str) -> MediaError {
    MediaError::NoObject { what: what.into(), id: id.into() }
}

fn bad(error: OrtcError) -> MediaError {
    MediaError::BadParameters { reason: error.to_string() }
}

fn consumer_answer(consumer: &Consumer) -> MediaAnswer {
    MediaAnswer::Consumer {
        kind: consumer.kind,
        rtp_parameters: consumer.params.clone(),
        consumer_type: consumer.consumer_type,
    }
}

/// An SSRC that is not zero, which some stacks take for "none".
fn fresh_ssrc(rng: &mut dyn RngCore) -> u32 {
    loop {
        let ssrc = rng.next_u32();
        if ssrc != 0 {
            return ssrc;
        }
    }
}

/// A later producer of a connection may have negotiated extensions that the first had not.
fn merge(into: &mut ExtensionIds, more: &ExtensionIds) {
    let pick = |a: u8, b: u8| if b != 0 { b } else { a };
    *into = ExtensionIds {
        mid: pick(into.mid, more.mid),
        rid: pick(into.rid, more.rid),
        repaired_rid: pick(into.repaired_rid, more.repaired_rid),
        transport_cc: pick(into.transport_cc, more.transport_cc),
        abs_send_time: pick(into.abs_send_time, more.abs_send_time),
        audio_level: pick(into.audio_level, more.audio_level),
    };
}
