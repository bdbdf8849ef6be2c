//! One end of a connection to the worker: ICE, DTLS, and the SRTP keys that come of it.

use std::{
    net::UdpSocket,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::BytesMut;
use roomlog_bus::{
    ids::TransportId,
    media::{MediaAnswer, MediaCommand},
    ortc::{DtlsFingerprint, DtlsParameters, DtlsRole},
};
use roomlog_sfu::{
    dtls::fingerprint,
    srtp::{ProtectionProfile, Srtp, SrtpKeys},
    stun,
};
use rtc_dtls::{
    config::{ConfigBuilder, HandshakeConfig},
    crypto::Certificate,
    endpoint::{Endpoint, EndpointEvent},
    extension::extension_use_srtp::SrtpProtectionProfile,
};
use rtc_shared::TransportProtocol;
use rtc_srtp::crypto::RTCCryptoProvider;

use super::worker::WorkerProcess;

/// A handshake on loopback takes a few milliseconds; this is for a machine that swaps.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for a datagram before timers get their turn.
const TURN: Duration = Duration::from_millis(20);

/// Asked of the kernel for each socket: a second of what one consumer gets in the full case.
const SOCKET_BUFFER: usize = 1 << 20;

/// A certificate and a DTLS configuration, which all peers share: making them takes longer than a handshake.
pub(super) struct Identity {
    provider: Arc<dyn RTCCryptoProvider>,
    config: Arc<HandshakeConfig>,
    fingerprint: DtlsFingerprint,
}

impl Identity {
    pub(super) fn new() -> anyhow::Result<Self> {
        let provider = rtc_srtp::crypto::default_provider()?;
        let certificate = Certificate::generate_self_signed(vec!["bench".into()], provider.crypto())?;
        let fingerprint = fingerprint(provider.as_ref(), &certificate.certificate[0])
            .context("the certificate has no fingerprint")?;
        let config = ConfigBuilder::default()
            .with_crypto_provider(provider.clone())
            .with_certificates(vec![certificate])
            .with_insecure_skip_verify(true)
            .with_server_name("roomlog".into())
            .with_srtp_protection_profiles(vec![SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm])
            .build(true, None)?;
        Ok(Self { provider, config: Arc::new(config), fingerprint })
    }
}

/// A connected peer.
pub(super) struct Peer {
    pub(super) transport: TransportId,
    pub(super) socket: UdpSocket,
    pub(super) srtp: Srtp,
}

/// Makes a transport and connects to it.
pub(super) fn connect(worker: &mut WorkerProcess, identity: &Identity, name: &str) -> anyhow::Result<Peer> {
    let transport = TransportId::new(name).with_context(|| format!("{name:?} names no transport"))?;
    let answer = worker.ask(MediaCommand::CreateTransport { transport: transport.clone() })?;
    let MediaAnswer::Transport { ice_parameters: ice, .. } = answer else {
        bail!("the worker answered {answer:?} to CreateTransport")
    };
    let dtls = DtlsParameters { role: DtlsRole::Client, fingerprints: vec![identity.fingerprint.clone()] };
    worker.ask(MediaCommand::ConnectTransport { transport: transport.clone(), dtls })?;

    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let options = socket2::SockRef::from(&socket);
    // The kernel gives what it may.
    let _ = options.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = options.set_send_buffer_size(SOCKET_BUFFER);
    socket.connect(worker.udp)?;
    socket.set_read_timeout(Some(TURN))?;
    let username = format!("{}:bench", ice.username_fragment);
    let crypto = identity.provider.crypto();
    socket.send(&stun::binding_request(crypto, &[7; 12], &username, &ice.password, true, true))?;

    let mut endpoint = Endpoint::new(socket.local_addr()?, TransportProtocol::UDP, None);
    endpoint.connect(Instant::now(), worker.udp, identity.config.clone(), None)?;
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    let srtp = loop {
        while let Some(datagram) = endpoint.poll_transmit() {
            socket.send(&datagram.message)?;
        }
        let Ok(count) = socket.recv(&mut buffer) else {
            if Instant::now() > end {
                bail!("{name}: no DTLS within {PATIENCE:?}");
            }
            endpoint.handle_timeout(worker.udp, Instant::now())?;
            continue;
        };
        if !matches!(buffer[0], 20..=63) {
            continue;
        }
        let events = endpoint.read(Instant::now(), worker.udp, None, BytesMut::from(&buffer[..count]))?;
        if events.iter().any(|event| matches!(event, EndpointEvent::HandshakeComplete)) {
            while let Some(datagram) = endpoint.poll_transmit() {
                socket.send(&datagram.message)?;
            }
            let state = endpoint.get_connection_state(worker.udp).context("no state behind a handshake")?;
            let profile = ProtectionProfile::AeadAes128Gcm;
            let length = 2 * (profile.key_len() + profile.salt_len());
            let material = state.export_keying_material("EXTRACTOR-dtls_srtp", &[], length)?;
            let keys = SrtpKeys { profile, material: material.as_ref().to_vec(), is_client: true };
            break Srtp::new(&keys, crypto)?;
        }
    };
    Ok(Peer { transport, socket, srtp })
}
