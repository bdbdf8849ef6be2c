//! A native client for the sans-IO worker: ICE, DTLS and SRTP without a socket, on one clock that the test moves.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a failing helper is a failing test")]

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use roomlog_bus::{
    ids::{ConsumerId, ProducerId, RoomId, TransportId},
    media::{MediaAnswer, MediaCommand, MediaError, MediaNotification},
    ortc::*,
};
use roomlog_sfu::{
    Worker,
    control::WorkerConfig,
    dtls::fingerprint,
    ortc::router_rtp_capabilities,
    rtcp,
    rtp::{HeaderWriter, NewHeader, RtpHeader},
    srtp::{ProtectionProfile, Srtp, SrtpKeys},
    stun,
};
use rtc_dtls::{
    config::ConfigBuilder,
    crypto::Certificate,
    endpoint::{Endpoint, EndpointEvent},
    extension::extension_use_srtp::SrtpProtectionProfile,
};
use rtc_shared::TransportProtocol;
use rtc_srtp::crypto::RTCCryptoProvider;

pub const LISTEN: &str = "127.0.0.1:40000";

pub fn provider() -> Arc<dyn RTCCryptoProvider> {
    rtc_srtp::crypto::default_provider().unwrap()
}

pub fn room() -> RoomId {
    RoomId::new("room").unwrap()
}

/// The worker, its clock, and what it sent to addresses that nobody here holds.
pub struct World {
    /// Where commands go.
    pub room: RoomId,
    pub worker: Worker,
    pub now: Instant,
    pub stray: Vec<(SocketAddr, Vec<u8>)>,
    pub notifications: Vec<MediaNotification>,
}

impl World {
    pub fn new() -> Self {
        let now = Instant::now();
        let config = WorkerConfig::new(LISTEN.parse().unwrap());
        let worker = Worker::new(config, LISTEN.parse().unwrap(), now, [7; 32]).unwrap();
        let mut world = Self { room: room(), worker, now, stray: Vec::new(), notifications: Vec::new() };
        world.ask(MediaCommand::CreateRouter).unwrap();
        world
    }

    pub fn ask(&mut self, command: MediaCommand) -> Result<MediaAnswer, MediaError> {
        self.worker.handle_request(self.now, &self.room, command)
    }

    pub fn outbox(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        let sent = self.worker.outbox().iter().map(|(to, bytes)| (to, bytes.to_vec())).collect();
        self.worker.outbox().clear();
        self.notifications.extend(self.worker.take_notifications().into_iter().map(|(_, n)| n));
        sent
    }

    /// Lets everybody read until nobody has anything to say.
    pub fn settle(&mut self, clients: &mut [&mut Client]) {
        loop {
            for (to, bytes) in self.outbox() {
                match clients.iter_mut().find(|c| c.address == to) {
                    Some(client) => client.receive(self.now, &bytes),
                    None => self.stray.push((to, bytes)),
                }
            }
            let mut idle = true;
            for client in clients.iter_mut() {
                while let Some(bytes) = client.out.pop_front() {
                    idle = false;
                    self.worker.handle_datagram(self.now, client.address, &bytes);
                }
            }
            if idle && self.worker.outbox().is_empty() {
                return;
            }
        }
    }

    /// Moves the clock, in steps that the worker's timers would take.
    pub fn pass(&mut self, time: Duration, clients: &mut [&mut Client]) {
        let end = self.now + time;
        loop {
            self.settle(clients);
            let due = self.worker.poll_timeout().filter(|due| *due < end);
            self.now = due.map_or(end, |due| due.max(self.now));
            self.worker.handle_timeout(self.now);
            if due.is_none() {
                self.settle(clients);
                return;
            }
        }
    }

    pub fn stats(&mut self, of: roomlog_bus::media::MediaObject) -> serde_json::Value {
        match self.ask(MediaCommand::GetStats { of }) {
            Ok(MediaAnswer::Stats { stats }) => stats,
            other => panic!("{other:?}"),
        }
    }
}

/// What a client got, decrypted.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    pub header: RtpHeader,
    pub bytes: Vec<u8>,
}

impl Packet {
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.header.payload.clone()]
    }
}

pub struct Client {
    pub address: SocketAddr,
    pub transport: TransportId,
    pub ice: IceParameters,
    provider: Arc<dyn RTCCryptoProvider>,
    dtls: Endpoint,
    certificate: Certificate,
    profiles: Vec<SrtpProtectionProfile>,
    pub srtp: Option<Srtp>,
    pub out: VecDeque<Vec<u8>>,
    pub stun: Vec<Vec<u8>>,
    pub rtp: Vec<Packet>,
    pub rtcp: Vec<u8>,
    pub closed: bool,
}

const WORKER: &str = "127.0.0.1:40000";

impl Client {
    /// A transport in the worker, and a client that has not yet sent anything.
    pub fn new(world: &mut World, name: &str, port: u16) -> Self {
        let transport = TransportId::new(name).unwrap();
        let answer = world.ask(MediaCommand::CreateTransport { transport: transport.clone() }).unwrap();
        let MediaAnswer::Transport { ice_parameters, ice_candidates, dtls_parameters } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!((ice_candidates[0].address.as_str(), ice_candidates[0].port), ("127.0.0.1", 40_000));
        assert_eq!((dtls_parameters.role, ice_parameters.ice_lite), (DtlsRole::Auto, Some(true)));
        Self::of(transport, ice_parameters, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// A client at `address` of a transport that was made elsewhere.
    pub fn of(transport: TransportId, ice: IceParameters, address: SocketAddr) -> Self {
        let provider = provider();
        let certificate =
            Certificate::generate_self_signed(vec!["client".into()], provider.crypto()).unwrap();
        Self {
            address,
            transport,
            ice,
            dtls: Endpoint::new(address, TransportProtocol::UDP, None),
            provider,
            certificate,
            profiles: vec![
                SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80,
                SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm,
            ],
            srtp: None,
            out: VecDeque::new(),
            stun: Vec::new(),
            rtp: Vec::new(),
            rtcp: Vec::new(),
            closed: false,
        }
    }

    pub fn with_profiles(mut self, profiles: Vec<SrtpProtectionProfile>) -> Self {
        self.profiles = profiles;
        self
    }

    /// A client that is connected.
    pub fn connected(world: &mut World, name: &str, port: u16) -> Self {
        let mut client = Self::new(world, name, port);
        client.connect(world);
        assert!(client.srtp.is_some(), "the handshake is done");
        client
    }

    pub fn fingerprint(&self) -> DtlsFingerprint {
        fingerprint(self.provider.as_ref(), &self.certificate.certificate[0]).unwrap()
    }

    pub fn tell_fingerprint(
        &self,
        world: &mut World,
        fingerprint: DtlsFingerprint,
    ) -> Result<MediaAnswer, MediaError> {
        let dtls = DtlsParameters { role: DtlsRole::Client, fingerprints: vec![fingerprint] };
        world.ask(MediaCommand::ConnectTransport { transport: self.transport.clone(), dtls })
    }

    pub fn connect(&mut self, world: &mut World) {
        self.tell_fingerprint(world, self.fingerprint()).unwrap();
        self.bind(true);
        world.settle(&mut [self]);
        self.hello(world.now);
        world.settle(&mut [self]);
    }

    /// Queues a binding request.
    pub fn bind(&mut self, use_candidate: bool) {
        let username = format!("{}:peer", self.ice.username_fragment);
        let request = stun::binding_request(
            self.provider.crypto(),
            &[3; 12],
            &username,
            &self.ice.password,
            use_candidate,
            true,
        );
        self.out.push_back(request);
    }

    /// Queues a ClientHello.
    pub fn hello(&mut self, now: Instant) {
        let config = ConfigBuilder::default()
            .with_crypto_provider(self.provider.clone())
            .with_certificates(vec![self.certificate.clone()])
            .with_insecure_skip_verify(true)
            .with_server_name("roomlog".into())
            .with_srtp_protection_profiles(self.profiles.clone())
            .build(true, None)
            .unwrap();
        self.dtls.connect(now, WORKER.parse().unwrap(), Arc::new(config), None).unwrap();
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(t) = self.dtls.poll_transmit() {
            self.out.push_back(t.message.to_vec());
        }
    }

    /// As [`Client::receive`], but takes what SRTP refuses, such as a second copy, for nothing; says whether it was taken.
    pub fn try_receive(&mut self, now: Instant, bytes: &[u8]) -> bool {
        if let (Some(srtp), 2) = (self.srtp.as_mut(), bytes[0] >> 6) {
            if (192..=223).contains(&bytes[1]) {
                let Ok(plain) = srtp.unprotect_rtcp(bytes) else { return false };
                self.rtcp.extend_from_slice(&plain);
            } else {
                let header = RtpHeader::parse(bytes).unwrap();
                let Ok(plain) = srtp.unprotect_rtp(bytes, &header) else { return false };
                let plain = plain.to_vec();
                let mut header = RtpHeader::parse(&plain).unwrap();
                assert!(header.strip_padding(&plain));
                self.rtp.push(Packet { header, bytes: plain });
            }
            return true;
        }
        self.receive(now, bytes);
        true
    }

    pub fn receive(&mut self, now: Instant, bytes: &[u8]) {
        match bytes[0] {
            0..=3 => self.stun.push(bytes.to_vec()),
            20..=63 => {
                let worker = WORKER.parse().unwrap();
                let events = self.dtls.read(now, worker, None, BytesMut::from(bytes)).unwrap_or_default();
                for event in events {
                    match event {
                        EndpointEvent::HandshakeComplete => {
                            let state = self.dtls.get_connection_state(worker).unwrap();
                            let profile = match state.srtp_protection_profile() {
                                SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => {
                                    ProtectionProfile::AeadAes128Gcm
                                }
                                SrtpProtectionProfile::Srtp_Aead_Aes_256_Gcm => {
                                    ProtectionProfile::AeadAes256Gcm
                                }
                                _ => ProtectionProfile::Aes128CmHmacSha1_80,
                            };
                            let length = 2 * (profile.key_len() + profile.salt_len());
                            let material =
                                state.export_keying_material("EXTRACTOR-dtls_srtp", &[], length).unwrap();
                            let keys =
                                SrtpKeys { profile, material: material.as_ref().to_vec(), is_client: true };
                            self.srtp = Some(Srtp::new(&keys, self.provider.crypto()).unwrap());
                        }
                        EndpointEvent::PeerClosed => self.closed = true,
                        _ => {}
                    }
                }
                self.flush();
            }
            _ => {
                let srtp = self.srtp.as_mut().expect("no media before the keys");
                if (192..=223).contains(&bytes[1]) {
                    self.rtcp.extend_from_slice(&srtp.unprotect_rtcp(bytes).expect("SRTCP of the worker"));
                } else {
                    let header = RtpHeader::parse(bytes).unwrap();
                    let plain = srtp.unprotect_rtp(bytes, &header).expect("SRTP of the worker").to_vec();
                    let mut header = RtpHeader::parse(&plain).unwrap();
                    assert!(header.strip_padding(&plain));
                    self.rtp.push(Packet { header, bytes: plain });
                }
            }
        }
    }

    pub fn send(&mut self, header: NewHeader, extensions: &[(u8, &[u8])], payload: &[u8]) {
        let mut packet = Vec::new();
        let mut writer = HeaderWriter::new(&mut packet, &header);
        for (id, value) in extensions {
            writer.extension(*id, value);
        }
        writer.finish();
        packet.extend_from_slice(payload);
        self.srtp.as_mut().unwrap().protect_rtp(&mut packet, 0).unwrap();
        self.out.push_back(packet);
    }

    pub fn send_rtcp(&mut self, compound: &[u8]) {
        let protected = self.srtp.as_mut().unwrap().protect_rtcp(compound).unwrap();
        self.out.push_back(protected.to_vec());
    }

    /// A VP8 packet of one frame a packet on the single-encoding producer of [`video`].
    pub fn send_frame(&mut self, number: u16, key: bool) {
        self.send(frame_header(SSRC, number), &[(1, b"v"), (3, &number.to_be_bytes())], &vp8(number, key));
    }

    pub fn take_rtp(&mut self) -> Vec<Packet> {
        std::mem::take(&mut self.rtp)
    }

    pub fn take_rtcp(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rtcp)
    }
}

pub const SSRC: u32 = 1111;
pub const RTX_SSRC: u32 = 1112;
pub const MEDIA_TYPE: u8 = 100;
pub const RTX_TYPE: u8 = 101;

pub fn frame_header(ssrc: u32, number: u16) -> NewHeader {
    NewHeader {
        marker: true,
        payload_type: MEDIA_TYPE,
        sequence: number,
        timestamp: u32::from(number) * 3000,
        ssrc,
    }
}

/// A VP8 payload with a 15-bit picture id and TL0PICIDX.
pub fn vp8(number: u16, key: bool) -> Vec<u8> {
    let mut payload =
        vec![0x90, 0xc0, 0x80 | (number >> 8) as u8 & 0x7f, number as u8, number as u8, u8::from(!key)];
    payload.extend_from_slice(&[number as u8; 40]);
    payload
}

fn codec(
    mime_type: &str,
    payload_type: u8,
    clock_rate: u32,
    channels: Option<u8>,
    feedback: &[(&str, &str)],
) -> RtpCodecParameters {
    RtpCodecParameters {
        mime_type: mime_type.into(),
        payload_type,
        clock_rate,
        channels,
        parameters: FmtpParameters::new(),
        rtcp_feedback: feedback
            .iter()
            .map(|(k, p)| RtcpFeedback { kind: (*k).into(), parameter: (*p).into() })
            .collect(),
    }
}

fn extension(id: u8, uri: &str) -> RtpHeaderExtensionParameters {
    RtpHeaderExtensionParameters { uri: uri.into(), id, encrypt: false }
}

pub fn video(encodings: Vec<RtpEncodingParameters>) -> RtpParameters {
    use roomlog_sfu::ortc::uri;
    let mut rtx = codec("video/rtx", RTX_TYPE, 90_000, None, &[]);
    rtx.parameters.insert("apt".into(), FmtpValue::Integer(MEDIA_TYPE.into()));
    RtpParameters {
        mid: Some("v".into()),
        codecs: vec![
            codec(
                "video/VP8",
                MEDIA_TYPE,
                90_000,
                None,
                &[("nack", ""), ("nack", "pli"), ("ccm", "fir"), ("transport-cc", "")],
            ),
            rtx,
        ],
        header_extensions: vec![
            extension(1, uri::MID),
            extension(3, uri::TRANSPORT_WIDE_CC),
            extension(5, uri::RTP_STREAM_ID),
            extension(6, uri::REPAIRED_RTP_STREAM_ID),
            extension(7, uri::VIDEO_ORIENTATION),
        ],
        encodings,
        rtcp: RtcpParameters { cname: Some("someone".into()), reduced_size: true, mux: None },
    }
}

pub fn single() -> RtpParameters {
    video(vec![RtpEncodingParameters {
        ssrc: Some(SSRC),
        rtx: Some(RtxStream { ssrc: RTX_SSRC }),
        ..Default::default()
    }])
}

pub fn simulcast() -> RtpParameters {
    let encoding = |rid: &str| RtpEncodingParameters { rid: Some(rid.into()), ..Default::default() };
    video(vec![encoding("q"), encoding("h"), encoding("f")])
}

pub fn audio() -> RtpParameters {
    use roomlog_sfu::ortc::uri;
    RtpParameters {
        mid: Some("a".into()),
        codecs: vec![codec("audio/opus", 111, 48_000, Some(2), &[("nack", ""), ("transport-cc", "")])],
        header_extensions: vec![
            extension(1, uri::MID),
            extension(3, uri::TRANSPORT_WIDE_CC),
            extension(4, uri::AUDIO_LEVEL),
        ],
        encodings: vec![RtpEncodingParameters { ssrc: Some(2222), ..Default::default() }],
        rtcp: RtcpParameters::default(),
    }
}

pub fn produce(
    world: &mut World,
    client: &Client,
    id: &str,
    kind: MediaKind,
    params: RtpParameters,
) -> ProducerId {
    let producer = ProducerId::new(id).unwrap();
    let command = MediaCommand::Produce {
        transport: client.transport.clone(),
        producer: producer.clone(),
        kind,
        rtp_parameters: params,
        paused: false,
    };
    world.ask(command).unwrap();
    producer
}

/// A consumer, not paused any more.
pub fn consume(
    world: &mut World,
    client: &Client,
    id: &str,
    producer: &ProducerId,
) -> (ConsumerId, RtpParameters) {
    let consumer = ConsumerId::new(id).unwrap();
    let command = MediaCommand::Consume {
        transport: client.transport.clone(),
        consumer: consumer.clone(),
        producer: producer.clone(),
        rtp_capabilities: router_rtp_capabilities(),
    };
    let MediaAnswer::Consumer { rtp_parameters, .. } = world.ask(command).unwrap() else {
        panic!("no consumer")
    };
    world.ask(MediaCommand::PauseConsumer { consumer: consumer.clone(), paused: false }).unwrap();
    (consumer, rtp_parameters)
}

/// A client that sends video to `consumers` others. What getting there took to say has been taken.
pub fn watched_by(world: &mut World, consumers: u16) -> Client {
    let mut alice = Client::connected(world, "a", 5001);
    let producer = produce(world, &alice, "p", MediaKind::Video, single());
    for i in 0..consumers {
        let bob = Client::connected(world, &format!("b{i}"), 6000 + i);
        consume(world, &bob, &format!("c{i}"), &producer);
    }
    world.outbox();
    alice.out.clear();
    alice
}

/// How many key frame requests are in some RTCP.
pub fn plis(compound: &[u8], ssrc: u32) -> usize {
    rtcp::parse(compound).filter(|p| matches!(p, rtcp::Rtcp::Pli { media } if *media == ssrc)).count()
}

/// The sequence numbers asked for in some RTCP.
pub fn nacked(compound: &[u8], ssrc: u32) -> Vec<u16> {
    rtcp::parse(compound)
        .filter_map(|p| match p {
            rtcp::Rtcp::Nack { media, pairs } if media == ssrc => {
                Some(rtcp::nack_sequences(pairs).collect::<Vec<_>>())
            }
            _ => None,
        })
        .flatten()
        .collect()
}
