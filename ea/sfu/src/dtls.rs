//! DTLS of one transport: always the server, one shared configuration, fingerprints checked before keys are given out (RFC 5763 §5).
//!
//! `rtc-dtls` is kept behind this file. Two of its habits shape it. It picks the SRTP profile by the client's order, so the
//! ClientHello is read here first and answered with a configuration that knows one profile: GCM where it is offered, with the shorter
//! key for speed. And it puts handshake
//! fragments together in cubic time, so fragments are counted and sized here before it sees them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use roomlog_bus::ortc::{DtlsFingerprint, DtlsParameters, DtlsRole};
use rtc_dtls::{
    config::{ClientAuthType, ConfigBuilder, ExtendedMasterSecretType, HandshakeConfig},
    crypto::Certificate,
    endpoint::{Endpoint, EndpointEvent},
    extension::extension_use_srtp::SrtpProtectionProfile,
};
use rtc_shared::TransportProtocol;
use rtc_srtp::crypto::{HashAlgorithm, RTCCryptoProvider};

use crate::srtp::{ProtectionProfile, SrtpKeys};

/// Handshake fragments taken from one peer in the life of an association. A handshake with every flight repeated seven times stays
/// below 100; at 128 the cubic reassembly still costs less than a millisecond.
pub const MAX_FRAGMENTS: usize = 128;

/// The longest handshake message, in bytes. Certificates of WebRTC peers are below 2 KiB, a ClientHello with a post-quantum key share
/// is below 3 KiB.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// The longest encrypted handshake record, in bytes. Only Finished comes encrypted (61 to 93 bytes with its header), and what is in
/// such a record cannot be counted before `rtc-dtls` has decrypted it.
const MAX_ENCRYPTED_HANDSHAKE: usize = 128;

/// Datagrams kept before the ClientHello is whole or the client's fingerprints are known; more are dropped, and the client repeats them.
const MAX_HELD: usize = 16;

/// DTLS datagrams taken from one peer before the handshake is done; `rtc-dtls` queues records of the next epoch without a bound.
const MAX_HANDSHAKE_DATAGRAMS: usize = 256;

/// How long a handshake may take: seven repetitions by `rtc-dtls` and what the browser tries in that time.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// First repetition of a flight of ours. The worker is near its clients; RFC 6347 §4.2.4.1 allows less than its 1 s for such.
const FLIGHT_INTERVAL: Duration = Duration::from_millis(300);

const RECORD_HEADER: usize = 13;
const HANDSHAKE_HEADER: usize = 12;
const HANDSHAKE: u8 = 22;

/// Label of the SRTP key exporter (RFC 5764 §4.2).
const EXPORTER: &str = "EXTRACTOR-dtls_srtp";

/// The address `rtc-dtls` knows the peer by. Always the same: a roaming client must keep its association.
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// Whether a datagram can be DTLS (RFC 7983 §7).
pub fn looks_like_dtls(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(20..=63))
}

/// What all transports of a worker share: the certificate, and a configuration for each SRTP profile.
pub struct DtlsContext {
    provider: Arc<dyn RTCCryptoProvider>,
    gcm_128: Arc<HandshakeConfig>,
    gcm_256: Arc<HandshakeConfig>,
    cm: Arc<HandshakeConfig>,
    fingerprint: DtlsFingerprint,
}

/// Why DTLS failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DtlsError {
    /// The certificate or configuration could not be made.
    #[error("setting up DTLS failed: {0}")]
    Setup(String),
    /// The peer's certificate is not the one that was signalled.
    #[error("the client's DTLS certificate matches none of its signalled fingerprints")]
    Fingerprint,
    /// The peer sent a fatal alert, or broke the rules.
    #[error("the DTLS handshake failed: {0}")]
    Handshake(String),
}

impl DtlsContext {
    /// Makes a certificate and the configurations.
    pub fn new(provider: Arc<dyn RTCCryptoProvider>) -> Result<Self, DtlsError> {
        let setup = |e: &dyn std::fmt::Display| DtlsError::Setup(e.to_string());
        let certificate = Certificate::generate_self_signed(vec!["roomlog".to_owned()], provider.crypto())
            .map_err(|e| setup(&e))?;
        let der = certificate
            .certificate
            .first()
            .ok_or_else(|| DtlsError::Setup("no certificate was made".into()))?;
        let fingerprint = fingerprint(provider.as_ref(), der)?;
        let build = |profile: SrtpProtectionProfile| {
            ConfigBuilder::default()
                .with_crypto_provider(provider.clone())
                .with_certificates(vec![certificate.clone()])
                .with_client_auth(ClientAuthType::RequireAnyClientCert)
                .with_insecure_skip_verify(true)
                .with_extended_master_secret(ExtendedMasterSecretType::Require)
                .with_flight_interval(FLIGHT_INTERVAL)
                .with_srtp_protection_profiles(vec![profile])
                .build(false, None)
                .map(Arc::new)
                .map_err(|e| setup(&e))
        };
        use SrtpProtectionProfile::{
            Srtp_Aead_Aes_128_Gcm, Srtp_Aead_Aes_256_Gcm, Srtp_Aes128_Cm_Hmac_Sha1_80,
        };
        Ok(Self {
            gcm_128: build(Srtp_Aead_Aes_128_Gcm)?,
            gcm_256: build(Srtp_Aead_Aes_256_Gcm)?,
            cm: build(Srtp_Aes128_Cm_Hmac_Sha1_80)?,
            fingerprint,
            provider,
        })
    }

    /// What clients are told.
    pub fn parameters(&self) -> DtlsParameters {
        DtlsParameters { role: DtlsRole::Auto, fingerprints: vec![self.fingerprint.clone()] }
    }

    /// The cryptography all parts of the worker use.
    pub fn provider(&self) -> &Arc<dyn RTCCryptoProvider> {
        &self.provider
    }
}

/// The SHA-256 fingerprint of a certificate (RFC 8122 §5).
pub fn fingerprint(provider: &dyn RTCCryptoProvider, der: &[u8]) -> Result<DtlsFingerprint, DtlsError> {
    let hash =
        provider.crypto().hash(HashAlgorithm::Sha256, der).map_err(|e| DtlsError::Setup(e.to_string()))?;
    let value = hash.iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(":");
    Ok(DtlsFingerprint { algorithm: "sha-256".into(), value })
}

/// What came of a datagram or a timeout.
#[derive(Debug)]
pub enum DtlsEvent {
    /// The handshake is done and the certificate is the signalled one.
    Keys(SrtpKeys),
    /// The peer said goodbye.
    Closed,
}

/// One association.
pub struct Dtls {
    endpoint: Endpoint,
    /// Chosen once the ClientHello is whole.
    configured: bool,
    complete: bool,
    fingerprints: Vec<DtlsFingerprint>,
    held: Vec<Vec<u8>>,
    fragments: usize,
    datagrams: usize,
    started: Option<Instant>,
    /// Records that the guard threw away.
    pub refused: u64,
}

impl Dtls {
    /// Waits for a ClientHello.
    pub fn new() -> Self {
        Self {
            endpoint: Endpoint::new(PEER, TransportProtocol::UDP, None),
            configured: false,
            complete: false,
            fingerprints: Vec::new(),
            held: Vec::new(),
            fragments: 0,
            datagrams: 0,
            started: None,
            refused: 0,
        }
    }

    /// Whether [`Dtls::connect`] was called.
    pub fn has_fingerprints(&self) -> bool {
        !self.fingerprints.is_empty()
    }

    /// Whether these are the fingerprints given before.
    pub fn same_fingerprints(&self, fingerprints: &[DtlsFingerprint]) -> bool {
        self.fingerprints == fingerprints
    }

    /// Tells which certificates the client may show, and goes on with what it sent before.
    pub fn connect(
        &mut self,
        context: &DtlsContext,
        now: Instant,
        fingerprints: &[DtlsFingerprint],
    ) -> Result<Option<DtlsEvent>, DtlsError> {
        self.fingerprints = fingerprints.to_vec();
        self.try_start(context, now)
    }

    /// Takes a datagram from the peer.
    pub fn handle(
        &mut self,
        context: &DtlsContext,
        now: Instant,
        bytes: &[u8],
    ) -> Result<Option<DtlsEvent>, DtlsError> {
        if !self.guard(bytes) {
            self.refused += 1;
            return Ok(None);
        }
        if self.configured {
            return self.read(context, now, bytes);
        }
        if self.held.len() < MAX_HELD {
            self.held.push(bytes.to_vec());
        }
        self.try_start(context, now)
    }

    fn try_start(&mut self, context: &DtlsContext, now: Instant) -> Result<Option<DtlsEvent>, DtlsError> {
        if self.configured || self.fingerprints.is_empty() {
            return Ok(None);
        }
        let Some(hello) = client_hello(&self.held) else {
            return Ok(None);
        };
        let offered = srtp_profiles(&hello).unwrap_or_default();
        let config = if offered.contains(&GCM_128) {
            &context.gcm_128
        } else if offered.contains(&GCM_256) {
            &context.gcm_256
        } else {
            &context.cm
        };
        self.endpoint.set_server_config(Some(config.clone()));
        self.configured = true;
        self.started = Some(now);
        let mut event = None;
        for datagram in std::mem::take(&mut self.held) {
            event = self.read(context, now, &datagram)?.or(event);
        }
        Ok(event)
    }

    fn read(
        &mut self,
        context: &DtlsContext,
        now: Instant,
        bytes: &[u8],
    ) -> Result<Option<DtlsEvent>, DtlsError> {
        let events = match self.endpoint.read(now, PEER, None, BytesMut::from(bytes)) {
            Ok(events) => events,
            Err(rtc_shared::error::Error::ErrAlertFatalOrClose) => {
                return Err(DtlsError::Handshake("the client sent a fatal alert".into()));
            }
            // Anybody who guesses the address can send nonsense, so nonsense ends nothing; a broken handshake ends by its timeout.
            Err(error) => {
                tracing::debug!(%error, "DTLS datagram ignored");
                return Ok(None);
            }
        };
        for event in events {
            match event {
                EndpointEvent::HandshakeComplete => {
                    self.complete = true;
                    return self.keys(context).map(|keys| Some(DtlsEvent::Keys(keys)));
                }
                EndpointEvent::PeerClosed => return Ok(Some(DtlsEvent::Closed)),
                _ => {}
            }
        }
        Ok(None)
    }

    fn keys(&self, context: &DtlsContext) -> Result<SrtpKeys, DtlsError> {
        let handshake = |e: &dyn std::fmt::Display| DtlsError::Handshake(e.to_string());
        let state = self.endpoint.get_connection_state(PEER).ok_or_else(|| handshake(&"no association"))?;
        let certificate = state.peer_certificates.first().ok_or(DtlsError::Fingerprint)?;
        let shown = fingerprint(context.provider.as_ref(), certificate)?;
        let signalled = self.fingerprints.iter().any(|f| {
            f.algorithm.eq_ignore_ascii_case(&shown.algorithm) && f.value.eq_ignore_ascii_case(&shown.value)
        });
        if !signalled {
            return Err(DtlsError::Fingerprint);
        }
        let profile = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => ProtectionProfile::AeadAes128Gcm,
            SrtpProtectionProfile::Srtp_Aead_Aes_256_Gcm => ProtectionProfile::AeadAes256Gcm,
            SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
            other => return Err(handshake(&format!("no SRTP profile was agreed on ({other:?})"))),
        };
        let length = 2 * (profile.key_len() + profile.salt_len());
        let material = state.export_keying_material(EXPORTER, &[], length).map_err(|e| handshake(&e))?;
        Ok(SrtpKeys { profile, material: material.as_ref().to_vec(), is_client: false })
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<BytesMut> {
        self.endpoint.poll_transmit().map(|t| t.message)
    }

    /// When [`Dtls::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.complete {
            return None;
        }
        let started = self.started?;
        let end = started + HANDSHAKE_TIMEOUT;
        Some(self.endpoint.poll_timeout(&PEER).map_or(end, |at| at.min(end)))
    }

    /// Repeats a flight, or gives up.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsError> {
        if self.complete {
            return Ok(());
        }
        let Some(started) = self.started else { return Ok(()) };
        if now >= started + HANDSHAKE_TIMEOUT {
            return Err(DtlsError::Handshake(format!("not done after {} s", HANDSHAKE_TIMEOUT.as_secs())));
        }
        self.endpoint.handle_timeout(PEER, now).map_err(|e| DtlsError::Handshake(e.to_string()))
    }

    /// Says goodbye; what is to be sent is then in [`Dtls::poll_transmit`].
    pub fn close(&mut self, now: Instant) {
        if self.configured {
            self.endpoint.stop(now, PEER);
        }
    }

    /// Whether a datagram may go on to `rtc-dtls`; counts its handshake fragments.
    fn guard(&mut self, datagram: &[u8]) -> bool {
        if !self.complete {
            self.datagrams += 1;
            if self.datagrams > MAX_HANDSHAKE_DATAGRAMS {
                return false;
            }
        }
        for record in records(datagram) {
            let Some(record) = record else { return false };
            if record.kind != HANDSHAKE {
                continue;
            }
            if record.epoch > 0 {
                if record.body.len() > MAX_ENCRYPTED_HANDSHAKE {
                    return false;
                }
                self.fragments += record.body.len().div_ceil(HANDSHAKE_HEADER + 24);
            } else {
                for fragment in fragments(record.body) {
                    self.fragments += 1;
                    if fragment.is_none_or(|f| f.length > MAX_MESSAGE) {
                        return false;
                    }
                }
            }
            if self.fragments > MAX_FRAGMENTS {
                return false;
            }
        }
        true
    }
}

impl Default for Dtls {
    fn default() -> Self {
        Self::new()
    }
}

struct Record<'a> {
    kind: u8,
    epoch: u16,
    body: &'a [u8],
}

/// The records of a datagram; `None` for what is cut off.
fn records(mut rest: &[u8]) -> impl Iterator<Item = Option<Record<'_>>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let read = |rest: &mut &'_ [u8]| -> Option<(u8, u16, usize)> {
            let head: &[u8; RECORD_HEADER] = rest.first_chunk()?;
            let end = RECORD_HEADER + usize::from(u16::from_be_bytes([head[11], head[12]]));
            (end <= rest.len()).then_some((head[0], u16::from_be_bytes([head[3], head[4]]), end))
        };
        let Some((kind, epoch, end)) = read(&mut rest) else {
            rest = &[];
            return Some(None);
        };
        let record = Record { kind, epoch, body: &rest[RECORD_HEADER..end] };
        rest = &rest[end..];
        Some(Some(record))
    })
}

struct Fragment<'a> {
    kind: u8,
    length: usize,
    sequence: u16,
    offset: usize,
    data: &'a [u8],
}

/// The handshake fragments of a record in the clear, cut the way `rtc-dtls` cuts them; `None` for what makes no sense.
fn fragments(mut rest: &[u8]) -> impl Iterator<Item = Option<Fragment<'_>>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(head) = rest.first_chunk::<HANDSHAKE_HEADER>() else {
            rest = &[];
            return Some(None);
        };
        let u24 = |at: usize| {
            usize::from(head[at]) << 16 | usize::from(head[at + 1]) << 8 | usize::from(head[at + 2])
        };
        let (length, offset, size) = (u24(1), u24(6), u24(9));
        let end = (HANDSHAKE_HEADER + size).min(rest.len());
        let sane =
            HANDSHAKE_HEADER + size <= rest.len() && offset + size <= length && (size > 0 || length == 0);
        let fragment = Fragment {
            kind: head[0],
            length,
            sequence: u16::from_be_bytes([head[4], head[5]]),
            offset,
            data: &rest[HANDSHAKE_HEADER..end],
        };
        rest = &rest[end..];
        Some(sane.then_some(fragment))
    })
}

/// The body of the first ClientHello, once all of it is there (RFC 6347 §4.2.3).
fn client_hello(datagrams: &[Vec<u8>]) -> Option<Vec<u8>> {
    const CLIENT_HELLO: u8 = 1;
    let mut body = Vec::new();
    let mut have = 0;
    let all = datagrams.iter().flat_map(|d| records(d)).flatten();
    let mut parts: Vec<_> = all
        .filter(|r| r.kind == HANDSHAKE && r.epoch == 0)
        .flat_map(|r| fragments(r.body))
        .flatten()
        .filter(|f| f.kind == CLIENT_HELLO && f.sequence == 0)
        .collect();
    parts.sort_by_key(|f| f.offset);
    for part in &parts {
        body.resize(part.length, 0);
        if part.offset > have {
            return None;
        }
        body.get_mut(part.offset..part.offset + part.data.len())?.copy_from_slice(part.data);
        have = have.max(part.offset + part.data.len());
    }
    (have > 0 && have == body.len()).then_some(body)
}

/// SRTP_AEAD_AES_128_GCM and its sister (RFC 7714 §14.2).
const GCM_128: [u8; 2] = [0, 7];
const GCM_256: [u8; 2] = [0, 8];

/// The profiles in `use_srtp` of a ClientHello (RFC 5764 §4.1.1).
fn srtp_profiles(hello: &[u8]) -> Option<Vec<[u8; 2]>> {
    const USE_SRTP: usize = 14;
    let u16_at = |at: usize| hello.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    // Version 2, random 32, then session id, cookie, cipher suites and compression methods, each behind its length.
    let mut at = 34;
    at += 1 + usize::from(*hello.get(at)?);
    at += 1 + usize::from(*hello.get(at)?);
    at += 2 + u16_at(at)?;
    at += 1 + usize::from(*hello.get(at)?);
    let end = at + 2 + u16_at(at)?;
    at += 2;
    while at < end {
        let (kind, length) = (u16_at(at)?, u16_at(at + 2)?);
        if kind == USE_SRTP {
            let profiles = hello.get(at + 6..at + 6 + u16_at(at + 4)?)?;
            return Some(profiles.chunks_exact(2).map(|p| [p[0], p[1]]).collect());
        }
        at += 4 + length;
    }
    None
}
