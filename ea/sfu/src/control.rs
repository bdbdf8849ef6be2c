//! What an EA and its SFU worker say to each other: length-prefixed frames over the worker's stdin and stdout.
//!
//! ```text
//! frame = u32 length (big endian, of the body alone) ‖ body (MessagePack, structs as maps with field names)
//! ```
//!
//! The parent writes one [`WorkerConfig`] and then [`ToWorker`] frames; the worker answers with [`FromWorker`] frames, [`FromWorker::Ready`]
//! first. Standard error is for logs. End of stdin means that the parent is gone, and the worker ends at once, or waits to be taken over
//! ([`adoption`](crate::adoption)). Nothing here does IO: a parent on tokio writes what [`encode`] gives and feeds a [`FrameDecoder`] with what it reads.

use std::net::{IpAddr, SocketAddr};

use roomlog_bus::{
    ids::RoomId,
    media::{ICE_CONSENT_MS, MediaAnswer, MediaCommand, MediaError, MediaNotification},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::adoption::Adoptable;

/// The longest frame body, in bytes. An inventory or the statistics of a router with some thousand consumers stay below 4 MiB; a
/// length beyond it means that the two ends have lost each other, and waiting for that much would look like a hang.
pub const MAX_FRAME_BYTES: usize = 8 * 1024 * 1024;

/// Receive and send buffer asked of the kernel for the UDP socket, in bytes. 4 MiB hold about 50 ms at 600 Mbit/s, which is longer
/// than any turn of the loop should take; the kernel may grant less.
pub const DEFAULT_SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// How many transports a worker takes before it answers `unavailable`. One core forwards a few hundred thousand packets a second; two
/// thousand transports with a handful of consumers each are beyond that, so this only stops a runaway.
pub const DEFAULT_MAX_TRANSPORTS: usize = 10_000;

/// The first frame on a worker's stdin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// UDP address to bind; port 0 lets the kernel choose, [`FromWorker::Ready`] says what it chose.
    pub listen: SocketAddr,
    /// Addresses to put in candidates, for a worker behind NAT or with several; empty means the IP of `listen`.
    #[serde(default)]
    pub announced: Vec<IpAddr>,
    /// Port to put in candidates, for a worker behind a NAT that forwards another port to its own; none means the one it listens on.
    #[serde(default)]
    pub announced_port: Option<u16>,
    /// Whoever knows this password is answered binding requests to [`PROBE_UFRAG`](roomlog_bus::stun::PROBE_UFRAG): other nodes that ask
    /// whether this worker lives. Empty: nobody is.
    #[serde(default)]
    pub probe_password: String,
    /// See [`DEFAULT_SOCKET_BUFFER_BYTES`].
    #[serde(default = "default_socket_buffer")]
    pub socket_buffer_bytes: usize,
    /// See [`DEFAULT_MAX_TRANSPORTS`].
    #[serde(default = "default_max_transports")]
    pub max_transports: usize,
    /// A transport without a valid binding request for this long is `disconnected`, in milliseconds.
    #[serde(default = "default_consent")]
    pub ice_consent_ms: u64,
    /// Lets a later start of the EA find the worker; without it the worker ends with its parent.
    #[serde(default)]
    pub adoptable: Option<Adoptable>,
}

impl WorkerConfig {
    /// A configuration with the defaults for all but the address.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            announced: Vec::new(),
            announced_port: None,
            probe_password: String::new(),
            socket_buffer_bytes: DEFAULT_SOCKET_BUFFER_BYTES,
            max_transports: DEFAULT_MAX_TRANSPORTS,
            ice_consent_ms: ICE_CONSENT_MS,
            adoptable: None,
        }
    }
}

fn default_socket_buffer() -> usize {
    DEFAULT_SOCKET_BUFFER_BYTES
}

fn default_max_transports() -> usize {
    DEFAULT_MAX_TRANSPORTS
}

fn default_consent() -> u64 {
    ICE_CONSENT_MS
}

/// Parent to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one is read, acted on and gone; none are kept")]
pub enum ToWorker {
    /// A command for one room's router; answered by [`FromWorker::Answer`] with the same id.
    Request {
        /// Chosen by the parent, unique among its unanswered requests.
        id: u64,
        /// The router.
        room: RoomId,
        /// What to do.
        command: MediaCommand,
    },
    /// Heartbeat; answered by [`FromWorker::Pong`] with the same id. A worker that stays silent hangs and is to be replaced.
    Ping {
        /// Chosen by the parent.
        id: u64,
    },
    /// End: DTLS is closed towards the clients, then the process ends.
    Shutdown,
}

/// Worker to parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// The socket is bound and requests are served; always the first frame.
    Ready {
        /// Where the worker listens.
        udp: SocketAddr,
    },
    /// The outcome of a request.
    Answer {
        /// That of the request.
        id: u64,
        /// The outcome.
        result: Result<MediaAnswer, MediaError>,
    },
    /// Something happened in a room.
    Notification {
        /// The router.
        room: RoomId,
        /// What happened.
        notification: MediaNotification,
    },
    /// Answer to a ping.
    Pong {
        /// That of the ping.
        id: u64,
        /// How much the worker carries.
        load: WorkerLoad,
    },
}

/// How much a worker carries. Counters grow from its start; a parent takes differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerLoad {
    /// Rooms with a router here.
    pub routers: u32,
    /// Transports.
    pub transports: u32,
    /// Producers.
    pub producers: u32,
    /// Consumers.
    pub consumers: u32,
    /// CPU time of the process, user and system, in microseconds.
    pub cpu_us: u64,
    /// Datagrams received.
    pub packets_in: u64,
    /// Datagrams sent.
    pub packets_out: u64,
    /// Bytes received, UDP payload.
    pub bytes_in: u64,
    /// Bytes sent, UDP payload.
    pub bytes_out: u64,
    /// Datagrams from addresses that belong to no transport, dropped.
    pub unknown_source: u64,
    /// Datagrams that the kernel did not take when they were to be sent.
    pub send_dropped: u64,
    /// Transports that ended because parsing their packets panicked.
    pub panics: u64,
}

/// What can go wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The length field is out of bounds.
    #[error(
        "a control frame of {length} bytes was announced; at most {MAX_FRAME_BYTES} are allowed, so the two ends have lost step: restart the worker"
    )]
    TooLong {
        /// The length announced or needed.
        length: usize,
    },
    /// A value could not be written.
    #[error("writing a control frame failed: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    /// The body is not the expected message.
    #[error(
        "a control frame of {length} bytes is no {what}: {source}; are parent and worker of one version?"
    )]
    Decode {
        /// Bytes in the body.
        length: usize,
        /// The expected type.
        what: &'static str,
        /// The decoder's words.
        source: rmp_serde::decode::Error,
    },
}

/// One frame, ready to write.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlError> {
    let mut out = vec![0; 4];
    // Human-readable, so that addresses are text and a dump of the pipe can be read.
    let mut serializer = rmp_serde::Serializer::new(&mut out).with_struct_map().with_human_readable();
    message.serialize(&mut serializer)?;
    let length = out.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME_BYTES => {
            out[..4].copy_from_slice(&prefix.to_be_bytes());
            Ok(out)
        }
        _ => Err(ControlError::TooLong { length }),
    }
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl FrameDecoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they were read; any cut will do.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 && self.taken * 2 >= self.buffer.len() {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    #[allow(
        clippy::should_implement_trait,
        reason = "it reads another type at each call, which an iterator cannot"
    )]
    /// The next whole frame as a `T`; `None` until more bytes come. After an error the stream cannot be trusted any more.
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        let rest = &self.buffer[self.taken..];
        let Some((prefix, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(ControlError::TooLong { length });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(body).with_human_readable();
        let message = T::deserialize(&mut deserializer).map_err(|source| ControlError::Decode {
            length,
            what: std::any::type_name::<T>(),
            source,
        })?;
        self.taken += 4 + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomlog_bus::ids::TransportId;

    fn samples() -> Vec<FromWorker> {
        let transport = TransportId::new("t1").unwrap();
        vec![
            FromWorker::Ready { udp: "127.0.0.1:40000".parse().unwrap() },
            FromWorker::Answer { id: 7, result: Ok(MediaAnswer::Done) },
            FromWorker::Answer { id: 8, result: Err(MediaError::NoRoom) },
            FromWorker::Answer {
                id: 9,
                result: Ok(MediaAnswer::Stats {
                    stats: serde_json::json!([{"type": "transport", "bytesSent": 12}]),
                }),
            },
            FromWorker::Notification {
                room: RoomId::new("r").unwrap(),
                notification: MediaNotification::TransportState {
                    transport,
                    state: roomlog_bus::media::TransportState::Connected,
                },
            },
            FromWorker::Pong { id: 1, load: WorkerLoad { cpu_us: 5, ..WorkerLoad::default() } },
        ]
    }

    #[test]
    fn frames_survive_any_cut_of_the_stream() {
        let bytes: Vec<u8> = samples().iter().flat_map(|m| encode(m).unwrap()).collect();
        for step in [1, 2, 3, 5, 64, bytes.len()] {
            let mut decoder = FrameDecoder::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(message) = decoder.next::<FromWorker>().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, samples(), "cut every {step} bytes");
        }
    }

    #[test]
    fn a_config_with_only_an_address_has_the_defaults() {
        let config = WorkerConfig::new("[::1]:0".parse().unwrap());
        let mut decoder = FrameDecoder::new();
        decoder.push(&encode(&serde_json::json!({"listen": "[::1]:0"})).unwrap());
        assert_eq!(decoder.next::<WorkerConfig>().unwrap(), Some(config));
    }

    #[test]
    fn an_absurd_length_is_an_error_and_not_a_wait() {
        let mut decoder = FrameDecoder::new();
        decoder.push(&[0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next::<ToWorker>(), Err(ControlError::TooLong { .. })));
    }
}
