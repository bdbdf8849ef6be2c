//! The two connections of a native peer, on the crate `webrtc`: one sends what it publishes, one receives all it is offered.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use rtc::{
    interceptor::{Interceptor, Packet, Slot, StreamInfo, TaggedPacket},
    media_stream::MediaStreamTrack,
    peer_connection::{
        configuration::{
            interceptor_registry::register_default_interceptors, media_engine::MediaEngine,
            setting_engine::SettingEngineBuilder,
        },
        transport::RTCDtlsRole,
    },
    rtcp::payload_feedbacks::{
        full_intra_request::FullIntraRequest, picture_loss_indication::PictureLossIndication,
    },
    rtp,
    rtp_transceiver::{
        RTCRtpTransceiverDirection, RTCRtpTransceiverInit,
        rtp_sender::{
            RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters,
            RtpCodecKind,
        },
    },
    sansio::Protocol,
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use webrtc::{
    media_stream::{
        track_local::{TrackLocal, static_rtp::TrackLocalStaticRTP},
        track_remote::{TrackRemote, TrackRemoteEvent},
    },
    peer_connection::{
        PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCPeerConnectionState,
        RTCSessionDescription, Registry,
    },
};

use super::{
    frames::{Kind, Received, frame},
    sdp::{self, Section},
};

/// What we send with; the numbers are ours to choose, and differ from the router's so that mapping is tried.
const OPUS_TYPE: u8 = 109;
const VP8_TYPE: u8 = 120;

/// SSRCs of all native peers of this process, each once.
static NEXT_SSRC: AtomicU32 = AtomicU32::new(0x2000_0000);

/// What a peer receives: by SSRC on the wire, and under its consumer's id.
#[derive(Default)]
pub struct Inbox {
    by_ssrc: Mutex<BTreeMap<u32, Arc<Mutex<Received>>>>,
}

impl Inbox {
    fn of(&self, ssrc: u32) -> Option<Arc<Mutex<Received>>> {
        self.by_ssrc.lock().expect("no panic inside").get(&ssrc).cloned()
    }
}

/// Follows the state of a connection and reads what comes.
struct Handler {
    state: Arc<Mutex<RTCPeerConnectionState>>,
    inbox: Arc<Inbox>,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        *self.state.lock().expect("no panic inside") = state;
    }

    async fn on_track(&self, track: Arc<dyn TrackRemote>) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            while let Some(event) = track.poll().await {
                if let TrackRemoteEvent::OnRtpPacket(packet) = event
                    && let Some(received) = inbox.of(packet.header.ssrc)
                {
                    received.lock().expect("no panic inside").packet(Instant::now(), &packet.payload);
                }
            }
        });
    }
}

/// Counts the key frame requests that come in; all packets go on as they came.
struct KeyFrameRequests {
    count: Arc<AtomicU64>,
    read: VecDeque<TaggedPacket>,
    write: VecDeque<TaggedPacket>,
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for KeyFrameRequests {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = rtc::shared::error::Error;
    type Time = Instant;

    fn handle_read(&mut self, packet: TaggedPacket) -> Result<(), Self::Error> {
        if let Packet::Rtcp(compound) = &packet.message.packet {
            for packet in compound {
                let packet = packet.as_any();
                if packet.is::<PictureLossIndication>() || packet.is::<FullIntraRequest>() {
                    self.count.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.read.push_back(packet);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<Self::Rout> {
        self.read.pop_front()
    }

    fn handle_write(&mut self, packet: TaggedPacket) -> Result<(), Self::Error> {
        self.write.push_back(packet);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<Self::Wout> {
        self.write.pop_front()
    }
}

impl Interceptor for KeyFrameRequests {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}

/// A connection with what is needed to negotiate it.
struct Connection {
    pc: Arc<dyn PeerConnection>,
    /// The answer to `createWebRtcTransport`.
    transport: Value,
    state: Arc<Mutex<RTCPeerConnectionState>>,
    key_frame_requests: Arc<AtomicU64>,
}

impl Connection {
    async fn new(
        transport: Value,
        codecs: &[(Kind, u8, RTCRtpCodec)],
        inbox: Arc<Inbox>,
    ) -> anyhow::Result<Self> {
        let mut engine = MediaEngine::default();
        for (kind, payload_type, codec) in codecs {
            let parameters = RTCRtpCodecParameters { rtp_codec: codec.clone(), payload_type: *payload_type };
            engine.register_codec(parameters, codec_kind(*kind))?;
        }
        let key_frame_requests: Arc<AtomicU64> = Arc::default();
        let counter = KeyFrameRequests {
            count: key_frame_requests.clone(),
            read: VecDeque::new(),
            write: VecDeque::new(),
        };
        // The last slot: all interceptors of the crate have seen what comes here.
        let registry =
            register_default_interceptors(Registry::new(), &mut engine)?.with(Slot::from(14_000), counter);
        let state = Arc::new(Mutex::new(RTCPeerConnectionState::New));
        // Facing ICE-lite the crate would answer as DTLS server; the worker is always that.
        let settings = SettingEngineBuilder::new().with_answering_dtls_role(RTCDtlsRole::Client).build();
        let pc = PeerConnectionBuilder::new()
            .with_media_engine(engine)
            .with_setting_engine(settings)
            .with_interceptor_registry(registry)
            .with_handler(Arc::new(Handler { state: state.clone(), inbox }))
            .with_udp_addrs(vec!["127.0.0.1:0".to_owned()])
            .build()
            .await?;
        Ok(Self { pc: Arc::new(pc), transport, state, key_frame_requests })
    }

    fn id(&self) -> &str {
        self.transport["id"].as_str().unwrap_or_default()
    }
}

fn codec_kind(kind: Kind) -> RtpCodecKind {
    match kind {
        Kind::Audio => RtpCodecKind::Audio,
        Kind::Video => RtpCodecKind::Video,
    }
}

/// Codecs of RTP capabilities or parameters as the crate names them.
fn codecs_of(parameters: &Value, payload_type: &str) -> anyhow::Result<Vec<(Kind, u8, RTCRtpCodec)>> {
    let mut codecs = Vec::new();
    for codec in parameters["codecs"].as_array().context("no codecs")? {
        let mime_type = codec["mimeType"].as_str().context("a codec without type")?.to_owned();
        let kind = if mime_type.starts_with("audio/") { Kind::Audio } else { Kind::Video };
        let fmtp = codec["parameters"].as_object().into_iter().flatten().map(|(k, v)| format!("{k}={v}"));
        codecs.push((
            kind,
            codec[payload_type].as_u64().context("a codec without payload type")? as u8,
            RTCRtpCodec {
                mime_type,
                clock_rate: codec["clockRate"].as_u64().context("a codec without clock")? as u32,
                channels: if kind == Kind::Audio {
                    codec["channels"].as_u64().unwrap_or(1) as u16
                } else {
                    0
                },
                sdp_fmtp_line: fmtp.collect::<Vec<_>>().join(";"),
                rtcp_feedback: vec![],
            },
        ));
    }
    Ok(codecs)
}

/// A track being sent.
struct Sending {
    kind: Kind,
    muted: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// Both connections of a peer. Made anew when the media moves.
pub struct Plane {
    send: Connection,
    receive: Connection,
    sending: Vec<Sending>,
    sections: Vec<Section>,
    version: u32,
    connected: bool,
    inbox: Arc<Inbox>,
}

impl Plane {
    /// On these two transports (answers to `createWebRtcTransport`), with these capabilities (see [`sdp::understood`]).
    pub async fn new(send: Value, receive: Value, capabilities: &Value) -> anyhow::Result<Self> {
        let inbox: Arc<Inbox> = Arc::default();
        let ours = [(Kind::Audio, OPUS_TYPE), (Kind::Video, VP8_TYPE)]
            .map(|(kind, payload_type)| (kind, payload_type, codec(kind)));
        Ok(Self {
            send: Connection::new(send, &ours, inbox.clone()).await?,
            receive: Connection::new(
                receive,
                &codecs_of(capabilities, "preferredPayloadType")?,
                inbox.clone(),
            )
            .await?,
            sending: Vec::new(),
            sections: Vec::new(),
            version: 1,
            connected: false,
            inbox,
        })
    }

    /// Begins to send these; gives what the server is to be told: the transport to connect, and `produce` requests.
    pub async fn publish(
        &mut self,
        kinds: &[(Kind, bool)],
        speed: u32,
    ) -> anyhow::Result<(Value, Vec<(Kind, Value)>)> {
        let mut tracks = Vec::new();
        for (kind, _) in kinds {
            let ssrc = NEXT_SSRC.fetch_add(2, Ordering::Relaxed);
            let coding = RTCRtpCodingParameters { ssrc: Some(ssrc), ..Default::default() };
            let encoding = RTCRtpEncodingParameters {
                rtp_coding_parameters: coding,
                codec: codec(*kind),
                ..Default::default()
            };
            let name = format!("{}-{ssrc}", kind.name());
            let track =
                MediaStreamTrack::new(name.clone(), name.clone(), name, codec_kind(*kind), vec![encoding]);
            let track = Arc::new(TrackLocalStaticRTP::new(track));
            let init = RTCRtpTransceiverInit {
                direction: RTCRtpTransceiverDirection::Sendonly,
                ..Default::default()
            };
            self.send.pc.add_transceiver_from_track(track.clone() as Arc<dyn TrackLocal>, Some(init)).await?;
            tracks.push((*kind, ssrc, track));
        }
        let offer = self.send.pc.create_offer(None).await?;
        let local = offer.sdp.clone();
        self.send.pc.set_local_description(offer).await?;
        let mids: Vec<String> =
            local.lines().filter_map(|l| l.strip_prefix("a=mid:")).map(|m| m.trim().to_owned()).collect();
        if mids.len() != kinds.len() {
            bail!("an offer of {} tracks has {} sections:\n{local}", kinds.len(), mids.len());
        }
        let mut sections = Vec::new();
        let mut produce = Vec::new();
        for ((kind, ssrc, _), mid) in tracks.iter().zip(&mids) {
            let rtp = produced(*kind, *ssrc, mid);
            produce.push((*kind, json!({ "transportId": self.send.id(), "kind": kind.name(), "rtpParameters": rtp, "appData": {} })));
            sections.push(Section {
                kind: kind.name().into(),
                mid: mid.clone(),
                rtp,
                direction: "recvonly",
                track: None,
            });
        }
        let answer = sdp::description(&self.send.transport, "passive", 1, &sections)?;
        self.send.pc.set_remote_description(RTCSessionDescription::answer(answer)?).await?;
        for ((kind, ssrc, track), (_, muted)) in tracks.into_iter().zip(kinds) {
            let muted = Arc::new(AtomicBool::new(*muted));
            let task = tokio::spawn(send_frames(Frames {
                kind,
                ssrc,
                speed,
                track,
                muted: muted.clone(),
                state: self.send.state.clone(),
                asked: self.send.key_frame_requests.clone(),
            }));
            self.sending.push(Sending { kind, muted, task });
        }
        let connect =
            json!({ "transportId": self.send.id(), "dtlsParameters": sdp::dtls_parameters(&local)? });
        Ok((connect, produce))
    }

    /// Stops or goes on sending packets.
    pub fn mute(&self, kind: Kind, muted: bool) {
        for sending in self.sending.iter().filter(|s| s.kind == kind) {
            sending.muted.store(muted, Ordering::Relaxed);
        }
    }

    /// Takes a `newConsumer`; gives where its packets are counted, and at the first one the transport to connect.
    pub async fn consume(&mut self, offer: &Value) -> anyhow::Result<(Arc<Mutex<Received>>, Option<Value>)> {
        let kind = if offer["kind"] == "audio" { Kind::Audio } else { Kind::Video };
        let rtp = offer["rtpParameters"].clone();
        let ssrc = rtp["encodings"][0]["ssrc"].as_u64().context("a consumer without SSRC")? as u32;
        let received = Arc::new(Mutex::new(Received::new(kind)));
        self.inbox.by_ssrc.lock().expect("no panic inside").insert(ssrc, received.clone());
        self.sections.push(Section {
            kind: kind.name().into(),
            mid: rtp["mid"].as_str().context("a consumer without mid")?.into(),
            rtp,
            direction: "sendonly",
            track: offer["id"].as_str().map(str::to_owned),
        });
        let local = self.negotiate().await?;
        let connect = if self.connected {
            None
        } else {
            Some(json!({ "transportId": self.receive.id(), "dtlsParameters": sdp::dtls_parameters(&local)? }))
        };
        self.connected = true;
        Ok((received, connect))
    }

    /// Ends the receiving of a consumer.
    pub async fn forget(&mut self, consumer: &str) -> anyhow::Result<()> {
        let Some(section) = self.sections.iter_mut().find(|s| s.track.as_deref() == Some(consumer)) else {
            return Ok(());
        };
        section.direction = "inactive";
        section.track = None;
        if let Some(ssrc) = section.rtp["encodings"][0]["ssrc"].as_u64() {
            self.inbox.by_ssrc.lock().expect("no panic inside").remove(&(ssrc as u32));
        }
        self.negotiate().await.map(drop)
    }

    async fn negotiate(&mut self) -> anyhow::Result<String> {
        self.version += 1;
        let offer = sdp::description(&self.receive.transport, "actpass", self.version, &self.sections)?;
        self.receive
            .pc
            .set_remote_description(RTCSessionDescription::offer(offer)?)
            .await
            .context("our side of the offer")?;
        let answer = self.receive.pc.create_answer(None).await?;
        let local = answer.sdp.clone();
        self.receive.pc.set_local_description(answer).await?;
        Ok(local)
    }

    /// Key frames that were asked for.
    pub fn key_frame_requests(&self) -> u64 {
        self.send.key_frame_requests.load(Ordering::Relaxed)
    }

    /// Ends both connections, without a word to the server.
    pub async fn close(self) {
        for sending in &self.sending {
            sending.task.abort();
        }
        for connection in [&self.send, &self.receive] {
            let _ = tokio::time::timeout(Duration::from_secs(2), connection.pc.close()).await;
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        for sending in &self.sending {
            sending.task.abort();
        }
    }
}

fn codec(kind: Kind) -> RTCRtpCodec {
    let (mime_type, clock_rate, channels) = match kind {
        Kind::Audio => ("audio/opus", 48_000, 2),
        Kind::Video => ("video/VP8", 90_000, 0),
    };
    RTCRtpCodec {
        mime_type: mime_type.into(),
        clock_rate,
        channels,
        sdp_fmtp_line: String::new(),
        rtcp_feedback: vec![],
    }
}

/// RTP parameters of what we send.
fn produced(kind: Kind, ssrc: u32, mid: &str) -> Value {
    let codec = match kind {
        Kind::Audio => {
            json!({ "mimeType": "audio/opus", "payloadType": OPUS_TYPE, "clockRate": 48000, "channels": 2, "parameters": {}, "rtcpFeedback": [] })
        }
        Kind::Video => {
            json!({ "mimeType": "video/VP8", "payloadType": VP8_TYPE, "clockRate": 90000, "parameters": {},
            "rtcpFeedback": [{ "type": "nack" }, { "type": "nack", "parameter": "pli" }, { "type": "ccm", "parameter": "fir" }] })
        }
    };
    json!({ "mid": mid, "codecs": [codec], "headerExtensions": [], "encodings": [{ "ssrc": ssrc }], "rtcp": { "cname": "native", "reducedSize": true } })
}

struct Frames {
    kind: Kind,
    ssrc: u32,
    speed: u32,
    track: Arc<TrackLocalStaticRTP>,
    muted: Arc<AtomicBool>,
    state: Arc<Mutex<RTCPeerConnectionState>>,
    asked: Arc<AtomicU64>,
}

/// Sends a frame at each tick while the connection stands; a key frame first, and when one was asked for.
async fn send_frames(to: Frames) {
    let mut tick = tokio::time::interval(to.kind.interval() / to.speed.max(1));
    // A late tick is made up for by no burst: it would hide from the receiver how long it waited.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut number, mut sequence, mut timestamp) = (0u32, 1u16, 1u32);
    let mut answered = None;
    loop {
        tick.tick().await;
        timestamp = timestamp.wrapping_add(to.kind.ticks() / to.speed.max(1));
        let connected = *to.state.lock().expect("no panic inside") == RTCPeerConnectionState::Connected;
        if !connected || to.muted.load(Ordering::Relaxed) {
            continue;
        }
        let asked = to.asked.load(Ordering::Relaxed);
        let key = answered != Some(asked);
        answered = Some(asked);
        let payloads = frame(to.kind, number, key);
        let last = payloads.len() - 1;
        for (i, payload) in payloads.into_iter().enumerate() {
            let header = rtp::Header {
                version: 2,
                marker: i == last,
                payload_type: if to.kind == Kind::Audio { OPUS_TYPE } else { VP8_TYPE },
                sequence_number: sequence,
                timestamp,
                ssrc: to.ssrc,
                ..Default::default()
            };
            sequence = sequence.wrapping_add(1);
            if to.track.write_rtp(rtp::Packet { header, payload: Bytes::from(payload) }).await.is_err() {
                return;
            }
        }
        number += 1;
    }
}
