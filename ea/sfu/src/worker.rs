//! The worker without IO: datagrams, requests and the passing of time go in, datagrams and notifications come out.
//!
//! ```text
//!  handle_datagram ─┐                      ┌─ outbox (datagrams, in order)
//!  handle_request  ─┼─► Worker (one core) ─┤
//!  handle_timeout  ─┘                      └─ notifications
//! ```
//!
//! After each of the three, the caller sends what is in the outbox and asks [`Worker::poll_timeout`] when to come back at the latest.
//! STUN finds its transport by the user name in it, everything else by the address it comes from; a packet from an address that no
//! authentic STUN request has come from is dropped and counted.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use roomlog_bus::stun::PROBE_UFRAG;
use roomlog_bus::{
    ids::{ConsumerId, ProducerId, RoomId, TransportId},
    media::{MediaAnswer, MediaCommand, MediaError, MediaNotification, TransportState},
    ortc::{IceCandidate, RtpCapabilities},
};
use rtc_srtp::crypto::RTCCryptoProvider;

use crate::{
    arena::{Arena, Key},
    consumer::Consumer,
    control::{WorkerConfig, WorkerLoad},
    dtls::{self, DtlsContext, DtlsError, DtlsEvent},
    forward::Pending,
    ortc,
    producer::Producer,
    rtp,
    srtp::Srtp,
    stun,
    transport::{Outbox, Transport},
};

/// Seconds between 1900 and some day of 2023: our NTP times need not be right, only steady and not zero.
const NTP_BASE: u64 = 3_900_000_000;

/// One room.
#[derive(Default)]
pub(crate) struct Router {
    pub(crate) transports: BTreeMap<TransportId, Key<Transport>>,
    pub(crate) producers: BTreeMap<ProducerId, Key<Producer>>,
    pub(crate) consumers: BTreeMap<ConsumerId, Key<Consumer>>,
    pub(crate) speaker: Option<ProducerId>,
    pub(crate) speaker_at: Option<Instant>,
}

/// The sans-IO worker.
pub struct Worker {
    pub(crate) config: WorkerConfig,
    pub(crate) epoch: Instant,
    pub(crate) rng: StdRng,
    pub(crate) dtls: DtlsContext,
    pub(crate) provider: Arc<dyn RTCCryptoProvider>,
    pub(crate) capabilities: RtpCapabilities,
    pub(crate) candidates: Vec<IceCandidate>,
    pub(crate) rooms: HashMap<RoomId, Router>,
    pub(crate) transports: Arena<Transport>,
    pub(crate) producers: Arena<Producer>,
    pub(crate) consumers: Arena<Consumer>,
    pub(crate) by_ufrag: HashMap<String, Key<Transport>>,
    pub(crate) by_address: HashMap<SocketAddr, Key<Transport>>,
    timers: BinaryHeap<Reverse<(Instant, Key<Transport>)>>,
    pub(crate) outbox: Outbox,
    pub(crate) notifications: Vec<(RoomId, MediaNotification)>,
    /// Packets that are to be forwarded, see [`crate::forward`].
    pub(crate) pending: Vec<Pending>,
    /// For one decrypted packet.
    pub(crate) plain: Vec<u8>,
    pub(crate) load: WorkerLoad,
}

impl Worker {
    /// A worker that listens at `udp`. Randomness is drawn from `seed`, but for DTLS, which takes its own from the system.
    pub fn new(
        config: WorkerConfig,
        udp: SocketAddr,
        now: Instant,
        seed: [u8; 32],
    ) -> Result<Self, DtlsError> {
        let provider = rtc_srtp::crypto::default_provider().map_err(|e| DtlsError::Setup(e.to_string()))?;
        let dtls = DtlsContext::new(provider.clone())?;
        let candidates = candidates(&config.announced, config.announced_port, udp);
        Ok(Self {
            config,
            epoch: now,
            rng: StdRng::from_seed(seed),
            dtls,
            provider,
            capabilities: ortc::router_rtp_capabilities(),
            candidates,
            rooms: HashMap::new(),
            transports: Arena::default(),
            producers: Arena::default(),
            consumers: Arena::default(),
            by_ufrag: HashMap::new(),
            by_address: HashMap::new(),
            timers: BinaryHeap::new(),
            outbox: Outbox::default(),
            notifications: Vec::new(),
            pending: Vec::new(),
            plain: Vec::new(),
            load: WorkerLoad::default(),
        })
    }

    /// Datagrams to send; clear it when they are sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        self.flush();
        &mut self.outbox
    }

    /// What rooms are to be told.
    pub fn take_notifications(&mut self) -> Vec<(RoomId, MediaNotification)> {
        std::mem::take(&mut self.notifications)
    }

    /// How much it carries; CPU time and what the socket did is for the caller to add.
    pub fn load(&self) -> WorkerLoad {
        WorkerLoad {
            routers: self.rooms.len() as u32,
            transports: self.transports.len() as u32,
            producers: self.producers.len() as u32,
            consumers: self.consumers.len() as u32,
            ..self.load
        }
    }

    /// The rooms that have a router here, sorted.
    pub fn room_ids(&self) -> Vec<RoomId> {
        let mut rooms: Vec<RoomId> = self.rooms.keys().cloned().collect();
        rooms.sort_unstable();
        rooms
    }

    /// Takes a datagram that comes now.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        self.handle_received(now, now, from, bytes);
    }

    /// Takes a datagram that came at `at` and has waited in the socket since.
    pub fn handle_received(&mut self, now: Instant, at: Instant, from: SocketAddr, bytes: &[u8]) {
        self.load.packets_in += 1;
        self.load.bytes_in += bytes.len() as u64;
        let request = stun::looks_like_stun(bytes).then(|| stun::BindingRequest::parse(bytes)).flatten();
        let key = match &request {
            Some(request) => self.by_ufrag.get(request.local_ufrag),
            None => self.by_address.get(&from),
        };
        let Some(&key) = key else {
            if let Some(request) = &request
                && request.local_ufrag == PROBE_UFRAG
                && !self.config.probe_password.is_empty()
                && request.is_authentic(self.provider.crypto(), &self.config.probe_password)
            {
                let (crypto, password) = (self.provider.crypto(), &self.config.probe_password);
                self.outbox.push(from, &stun::binding_success(crypto, &request.transaction, from, password));
                return;
            }
            self.load.unknown_source += 1;
            return;
        };
        self.guarded(now, key, |worker| match &request {
            Some(request) => worker.on_stun(now, key, from, request),
            None => worker.on_packet(now, at, key, bytes),
        });
    }

    /// Answers a request.
    pub fn handle_request(
        &mut self,
        now: Instant,
        room: &RoomId,
        command: MediaCommand,
    ) -> Result<MediaAnswer, MediaError> {
        self.flush();
        let answer = catch_unwind(AssertUnwindSafe(|| self.command(now, room, command)));
        answer.unwrap_or_else(|_| {
            self.load.panics += 1;
            Err(MediaError::Unavailable { reason: "the command made the worker panic; see its log".into() })
        })
    }

    /// When [`Worker::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.flush();
        while let Some(&Reverse((at, key))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            match self.transports.get_mut(key) {
                // Anything else is an older entry of one that has been scheduled anew.
                Some(transport) if transport.scheduled == Some(at) => transport.scheduled = None,
                _ => continue,
            }
            self.guarded(now, key, |worker| worker.tick(now, key));
        }
    }

    /// Says goodbye to all clients.
    pub fn close(&mut self, now: Instant) {
        let rooms: Vec<RoomId> = self.rooms.keys().cloned().collect();
        for room in rooms {
            self.close_router(now, &room);
        }
    }

    /// Runs what belongs to one transport. A panic in there, most likely in a dependency on bytes from a stranger, ends the
    /// transport and not the worker.
    pub(crate) fn guarded(&mut self, now: Instant, key: Key<Transport>, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.load.panics += 1;
            self.fail(key, "its packets made the worker panic");
        }
        self.schedule(now, key);
    }

    /// Puts a transport on the timer if it is due earlier than it is there.
    pub(crate) fn schedule(&mut self, now: Instant, key: Key<Transport>) {
        let consent = Duration::from_millis(self.config.ice_consent_ms);
        let Some(transport) = self.transports.get_mut(key) else { return };
        let Some(due) = transport.next_due(now, consent) else { return };
        if transport.scheduled.is_none_or(|scheduled| due < scheduled) {
            transport.scheduled = Some(due);
            self.timers.push(Reverse((due, key)));
        }
    }

    fn on_stun(
        &mut self,
        now: Instant,
        key: Key<Transport>,
        from: SocketAddr,
        request: &stun::BindingRequest<'_>,
    ) {
        let crypto = self.provider.crypto();
        let Some(transport) = self.transports.get_mut(key) else { return };
        let Some(password) = transport.ice.password_for(request.local_ufrag).map(str::to_owned) else {
            return;
        };
        if transport.state == TransportState::Failed || !request.is_authentic(crypto, &password) {
            transport.counters.invalid += 1;
            return;
        }
        if request.controlled {
            self.outbox.push(from, &stun::role_conflict(crypto, &request.transaction, &password));
            return;
        }
        self.outbox.push(from, &stun::binding_success(crypto, &request.transaction, from, &password));
        if request.local_ufrag == transport.ice.ufrag
            && let Some((old, _)) = transport.ice.previous.take()
        {
            self.by_ufrag.remove(&old);
        }
        let forgotten = transport.ice.heard(now, from, request.use_candidate);
        if let Some(forgotten) = forgotten {
            self.by_address.remove(&forgotten);
        }
        match transport.state {
            TransportState::New => self.set_state(key, TransportState::Connecting),
            TransportState::Disconnected => {
                let state = if transport.srtp.is_some() {
                    TransportState::Connected
                } else {
                    TransportState::Connecting
                };
                let consumers = transport.consumers.clone();
                self.set_state(key, state);
                for consumer in consumers {
                    self.restart_consumer(now, consumer);
                }
            }
            _ => {}
        }
        // Who proves to know a password owns the address, whoever had it before.
        if let Some(before) = self.by_address.insert(from, key)
            && before != key
            && let Some(other) = self.transports.get_mut(before)
        {
            other.ice.addresses.retain(|(address, _)| *address != from);
            if other.ice.selected == Some(from) {
                other.ice.selected = None;
            }
        }
    }

    fn on_packet(&mut self, now: Instant, at: Instant, key: Key<Transport>, bytes: &[u8]) {
        let Some(transport) = self.transports.get_mut(key) else { return };
        transport.counters.bytes_received += bytes.len() as u64;
        transport.counters.receive_rate.add(now, bytes.len());
        if dtls::looks_like_dtls(bytes) {
            let event = transport.dtls.handle(&self.dtls, now, bytes);
            self.on_dtls(now, key, event);
        } else if rtp::looks_like_rtp_or_rtcp(bytes) {
            if rtp::looks_like_rtcp(bytes) {
                // What is reported on or asked for again may be among it.
                self.flush();
                self.on_rtcp(now, key, bytes);
            } else {
                self.on_rtp(now, at, key, bytes);
            }
        }
    }

    pub(crate) fn on_dtls(
        &mut self,
        now: Instant,
        key: Key<Transport>,
        event: Result<Option<DtlsEvent>, DtlsError>,
    ) {
        let Some(transport) = self.transports.get_mut(key) else { return };
        transport.flush_dtls(&mut self.outbox);
        match event {
            Ok(None) => {}
            Ok(Some(DtlsEvent::Keys(keys))) => match Srtp::new(&keys, self.provider.crypto()) {
                Ok(srtp) => {
                    tracing::debug!(transport = %transport.id, profile = ?srtp.profile, "connected");
                    transport.srtp = Some(srtp);
                    let consumers = transport.consumers.clone();
                    self.set_state(key, TransportState::Connected);
                    for consumer in consumers {
                        self.restart_consumer(now, consumer);
                    }
                }
                Err(error) => self.fail(key, &error.to_string()),
            },
            Ok(Some(DtlsEvent::Closed)) => self.fail(key, "the client closed DTLS"),
            Err(error) => self.fail(key, &error.to_string()),
        }
    }

    pub(crate) fn fail(&mut self, key: Key<Transport>, reason: &str) {
        let Some(transport) = self.transports.get_mut(key) else { return };
        tracing::info!(transport = %transport.id, room = %transport.room, reason, "transport failed");
        transport.srtp = None;
        transport.ice.selected = None;
        for (address, _) in std::mem::take(&mut transport.ice.addresses) {
            self.by_address.remove(&address);
        }
        self.set_state(key, TransportState::Failed);
    }

    pub(crate) fn set_state(&mut self, key: Key<Transport>, state: TransportState) {
        let Some(transport) = self.transports.get_mut(key) else { return };
        if transport.state == state || transport.state == TransportState::Failed {
            return;
        }
        transport.state = state;
        let notification = MediaNotification::TransportState { transport: transport.id.clone(), state };
        self.notifications.push((transport.room.clone(), notification));
    }

    /// The time since the worker began, as NTP.
    pub(crate) fn ntp(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
        (NTP_BASE + since.as_secs()) << 32 | fraction
    }
}

/// Host candidates, the first announced address with the highest priority (RFC 8445 §5.1.2).
fn candidates(announced: &[IpAddr], port: Option<u16>, udp: SocketAddr) -> Vec<IceCandidate> {
    let listen = [udp.ip()];
    let addresses = if announced.is_empty() { &listen } else { announced };
    addresses
        .iter()
        .enumerate()
        .map(|(index, ip)| {
            const HOST_PREFERENCE: u32 = 126;
            let local_preference = 65_535 - index.min(65_535) as u32;
            IceCandidate {
                foundation: format!("udp{index}"),
                priority: HOST_PREFERENCE << 24 | local_preference << 8 | 255,
                address: ip.to_string(),
                ip: ip.to_string(),
                protocol: "udp".into(),
                port: port.unwrap_or(udp.port()),
                kind: "host".into(),
                tcp_type: None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_addresses_become_candidates_in_their_order() {
        let announced: Vec<IpAddr> = vec!["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let listen = "0.0.0.0:4444".parse().unwrap();
        let made = candidates(&announced, None, listen);
        let seen: Vec<_> = made.iter().map(|c| (c.address.as_str(), c.ip.as_str(), c.port)).collect();
        assert_eq!(seen, [("203.0.113.1", "203.0.113.1", 4444), ("2001:db8::1", "2001:db8::1", 4444)]);
        assert!(made[0].priority > made[1].priority && made[0].foundation != made[1].foundation);
        let made = &candidates(&[], Some(6), "192.0.2.7:5".parse().unwrap())[0];
        assert_eq!((made.address.as_str(), made.port), ("192.0.2.7", 6), "a forwarded port");
    }

    #[test]
    fn a_panic_ends_one_transport_and_not_the_worker() {
        let now = Instant::now();
        let udp = "127.0.0.1:40000".parse().unwrap();
        let mut worker = Worker::new(WorkerConfig::new(udp), udp, now, [1; 32]).unwrap();
        let room = RoomId::new("r").unwrap();
        worker.handle_request(now, &room, MediaCommand::CreateRouter).unwrap();
        let ids = ["a", "b"].map(|id| TransportId::new(id).unwrap());
        for transport in ids.clone() {
            worker.handle_request(now, &room, MediaCommand::CreateTransport { transport }).unwrap();
        }
        let key = worker.find_transport(&room, &ids[0]).unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        worker.by_address.insert(address, key);
        worker.transports.get_mut(key).unwrap().ice.heard(now, address, true);
        worker.guarded(now, key, |_| panic!("as a parser might"));
        let states = worker.take_notifications();
        let failed =
            MediaNotification::TransportState { transport: ids[0].clone(), state: TransportState::Failed };
        assert_eq!(states, [(room.clone(), failed)]);
        assert_eq!((worker.load().panics, worker.by_address.len()), (1, 0));
        let answer = worker.handle_request(now, &room, MediaCommand::Inventory);
        let Ok(MediaAnswer::Inventory { inventory }) = answer else { panic!("{answer:?}") };
        let states: Vec<_> = inventory.transports.iter().map(|t| t.state).collect();
        assert_eq!(states, [TransportState::Failed, TransportState::New]);
    }
}
