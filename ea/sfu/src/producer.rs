//! A producer: one client's media as it comes in, and who gets it.

use roomlog_bus::{
    ids::{ProducerId, RoomId},
    ortc::{ConsumerType, MediaKind, RtpParameters},
};

use crate::{
    arena::Key,
    codec::Codec,
    consumer::Consumer,
    ortc::{self, RtpMapping, uri},
    stream::RecvStream,
    transport::Transport,
};

/// What a payload type of the client stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadType {
    /// Not negotiated.
    #[default]
    Unknown,
    /// Media; the router's number of the same codec.
    Media {
        /// In the router.
        mapped: u8,
        /// What to look for inside.
        codec: Codec,
    },
    /// Retransmissions (RFC 4588); the client's number of the media.
    Rtx {
        /// The media's payload type.
        associated: u8,
    },
}

/// Ids of the header extensions that the worker reads itself; 0 is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtensionIds {
    /// Media id.
    pub mid: u8,
    /// Stream id.
    pub rid: u8,
    /// Stream id on RTX.
    pub repaired_rid: u8,
    /// Transport-wide sequence number.
    pub transport_cc: u8,
    /// Send time.
    pub abs_send_time: u8,
    /// Audio level.
    pub audio_level: u8,
}

impl ExtensionIds {
    /// From negotiated parameters.
    pub fn of(params: &RtpParameters) -> Self {
        let id = |uri: &str| params.header_extensions.iter().find(|e| e.uri == uri).map_or(0, |e| e.id);
        Self {
            mid: id(uri::MID),
            rid: id(uri::RTP_STREAM_ID),
            repaired_rid: id(uri::REPAIRED_RTP_STREAM_ID),
            transport_cc: id(uri::TRANSPORT_WIDE_CC),
            abs_send_time: id(uri::ABS_SEND_TIME),
            audio_level: id(uri::AUDIO_LEVEL),
        }
    }
}

/// A producer.
#[derive(Debug)]
pub struct Producer {
    /// Its id.
    pub id: ProducerId,
    /// Its room.
    pub room: RoomId,
    /// Where its packets come in.
    pub transport: Key<Transport>,
    /// Audio or video.
    pub kind: MediaKind,
    /// Whether nothing of it goes on.
    pub paused: bool,
    /// What the client sends.
    pub params: RtpParameters,
    /// The same in the router's numbers.
    pub consumable: RtpParameters,
    /// What its consumers are.
    pub consumer_type: ConsumerType,
    payload_types: [PayloadType; 128],
    /// Header extensions on its connection.
    pub extensions: ExtensionIds,
    /// One per encoding, smallest first.
    pub streams: Vec<RecvStream>,
    /// Who gets it.
    pub consumers: Vec<Key<Consumer>>,
    /// Smoothed audio level, 0 (loudest) to 127 dBov below full scale.
    pub audio_level: f32,
    /// The score last told.
    pub told_score: Option<serde_json::Value>,
}

impl Producer {
    /// A producer from checked parameters.
    pub fn new(
        (id, room, transport): (ProducerId, RoomId, Key<Transport>),
        kind: MediaKind,
        paused: bool,
        params: RtpParameters,
        mapping: &RtpMapping,
        consumable: RtpParameters,
    ) -> Self {
        let mut payload_types = [PayloadType::Unknown; 128];
        for codec in &params.codecs {
            let associated = codec.parameters.get("apt").and_then(|v| v.as_integer());
            let is_rtx = codec.mime_type.to_ascii_lowercase().ends_with("/rtx");
            payload_types[usize::from(codec.payload_type & 0x7f)] = match (is_rtx, associated) {
                (true, Some(associated)) => PayloadType::Rtx { associated: associated as u8 },
                (true, None) => PayloadType::Unknown,
                (false, _) => match mapping.payload_type(codec.payload_type) {
                    Some(mapped) => PayloadType::Media { mapped, codec: Codec::of(&codec.mime_type) },
                    None => PayloadType::Unknown,
                },
            };
        }
        let media = params.codecs.first();
        let has = |kind: &str, parameter: &str| {
            media.is_some_and(|c| c.rtcp_feedback.iter().any(|f| f.kind == kind && f.parameter == parameter))
        };
        let clock_rate = media.map_or(90_000, |c| c.clock_rate);
        // The router asks for key frames of video whatever the feedback line says: without one, nobody could join.
        let streams = params
            .encodings
            .iter()
            .map(|encoding| {
                let mut stream = RecvStream::new(
                    encoding.rid.as_ref().map(ToString::to_string),
                    clock_rate,
                    has("nack", ""),
                    kind == MediaKind::Video,
                );
                stream.ssrc = encoding.ssrc;
                stream.rtx_ssrc = encoding.rtx.map(|rtx| rtx.ssrc);
                stream
            })
            .collect();
        Self {
            id,
            room,
            transport,
            kind,
            paused,
            consumer_type: ortc::consumer_type(&consumable),
            extensions: ExtensionIds::of(&params),
            params,
            consumable,
            payload_types,
            streams,
            consumers: Vec::new(),
            audio_level: 127.0,
            told_score: None,
        }
    }

    /// What a payload type of the client stands for.
    pub fn payload_type(&self, payload_type: u8) -> PayloadType {
        self.payload_types[usize::from(payload_type & 0x7f)]
    }

    /// `[{encodingIdx, ssrc, rid, score}]` of the streams that have come, as mediasoup's `score` event has it.
    pub fn score(&self) -> serde_json::Value {
        let come = self.streams.iter().enumerate().filter(|(_, s)| s.ssrc.is_some());
        come.map(|(index, s)| {
            serde_json::json!({ "encodingIdx": index, "ssrc": s.ssrc, "rid": s.rid, "score": s.score })
        })
        .collect()
    }
}
