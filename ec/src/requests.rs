//! Client requests: from a method and its JSON to what must be done. Pure; the room task does it.

use roomlog_bus::{
    ids::{ClientId, ConsumerId, ProducerId, TransportId},
    media::{MediaCommand, MediaObject},
    ortc::{ConsumerLayers, DtlsParameters, MediaKind, RtpCapabilities, RtpParameters},
};
use roomlog_projections::room::RoomState;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::decide::{Command, Refusal, manages, may_produce, own_consumer, own_producer, own_transport};

/// What a request needs done, in this order: ask the media side, append, answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Asked of the room's worker first.
    pub media: Option<MediaCommand>,
    /// Appended then.
    pub command: Option<Command>,
    /// How the answer is made.
    pub answer: Answer,
}

/// How an answer is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// `{}`.
    Empty,
    /// `{id}`.
    Id(String),
    /// Whatever the worker answered, in the client's shape.
    Media,
    /// `{peers}`.
    Peers,
}

impl Plan {
    fn append(command: Command) -> Self {
        Self { media: None, command: Some(command), answer: Answer::Empty }
    }

    fn media(media: MediaCommand) -> Self {
        Self { media: Some(media), command: None, answer: Answer::Media }
    }
}

/// The longest display name kept, in characters; longer ones are cut.
const MAX_DISPLAY_NAME: usize = 100;

/// The longest `appData` and `device`, in bytes of JSON: both go into the log and to everybody in the room.
const MAX_OPAQUE: usize = 8 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateTransport {
    #[serde(default)]
    producing: bool,
    #[serde(default)]
    consuming: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConnectTransport {
    transport_id: TransportId,
    dtls_parameters: DtlsParameters,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfTransport {
    transport_id: TransportId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfProducer {
    producer_id: ProducerId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfConsumer {
    consumer_id: ConsumerId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Join {
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    device: Value,
    #[serde(default)]
    rtp_capabilities: Option<RtpCapabilities>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Produce {
    transport_id: TransportId,
    kind: MediaKind,
    rtp_parameters: RtpParameters,
    #[serde(default)]
    app_data: Value,
    #[serde(default)]
    paused: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layers {
    consumer_id: ConsumerId,
    #[serde(flatten)]
    layers: ConsumerLayers,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Priority {
    consumer_id: ConsumerId,
    priority: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mute {
    producer_id: ProducerId,
    muted: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfPeer {
    peer_id: ClientId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rename {
    display_name: String,
}

fn read<T: DeserializeOwned>(method: &str, data: Value) -> Result<T, Refusal> {
    let data = if data.is_null() { json!({}) } else { data };
    serde_json::from_value(data).map_err(|error| Refusal::BadRequest(format!("{method}: {error}")))
}

fn opaque(what: &str, value: Value) -> Result<Value, Refusal> {
    if value.to_string().len() > MAX_OPAQUE {
        return Err(Refusal::BadRequest(format!("{what} is larger than {MAX_OPAQUE} bytes")));
    }
    Ok(value)
}

fn display_name(name: &str, user: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(MAX_DISPLAY_NAME).collect();
    if name.trim().is_empty() { user.to_owned() } else { name }
}

/// What `method` of `client` needs. `fresh` gives ids for what will be made.
pub fn plan(
    state: &RoomState,
    client: &ClientId,
    method: &str,
    data: Value,
    fresh: &mut dyn FnMut() -> String,
) -> Result<Plan, Refusal> {
    let me = state.clients.get(client).ok_or_else(|| Refusal::NoClient(client.clone()))?;
    let id = client.clone();
    match method {
        "getRouterRtpCapabilities" => Ok(Plan {
            media: Some(MediaCommand::CreateRouter),
            command: Some(Command::Attach { client: id }),
            answer: Answer::Media,
        }),
        "createWebRtcTransport" => {
            let CreateTransport { producing, consuming } = read(method, data)?;
            if producing == consuming {
                return Err(Refusal::BadRequest(
                    "createWebRtcTransport: set exactly one of `producing` and `consuming`".into(),
                ));
            }
            let transport = TransportId::new(fresh()).expect("fresh ids are tokens");
            Ok(Plan {
                media: Some(MediaCommand::CreateTransport { transport: transport.clone() }),
                command: Some(Command::CreateTransport { client: id, transport, producing, consuming }),
                answer: Answer::Media,
            })
        }
        "connectWebRtcTransport" => {
            let ConnectTransport { transport_id, dtls_parameters } = read(method, data)?;
            own_transport(state, client, &transport_id)?;
            Ok(Plan::media(MediaCommand::ConnectTransport { transport: transport_id, dtls: dtls_parameters }))
        }
        "restartIce" => {
            let OfTransport { transport_id } = read(method, data)?;
            own_transport(state, client, &transport_id)?;
            Ok(Plan::media(MediaCommand::RestartIce { transport: transport_id }))
        }
        "join" => {
            let Join { display_name: name, device, rtp_capabilities } = read(method, data)?;
            let display_name = display_name(&name, &me.user);
            let device = opaque("device", device)?;
            Ok(Plan {
                answer: Answer::Peers,
                ..Plan::append(Command::Join { client: id, display_name, device, rtp_capabilities })
            })
        }
        "produce" => {
            let Produce { transport_id, kind, rtp_parameters, app_data, paused } = read(method, data)?;
            may_produce(state, client, &transport_id, kind)?;
            let app_data = opaque("appData", app_data)?;
            let producer = ProducerId::new(fresh()).expect("fresh ids are tokens");
            Ok(Plan {
                media: Some(MediaCommand::Produce {
                    transport: transport_id.clone(),
                    producer: producer.clone(),
                    kind,
                    rtp_parameters: rtp_parameters.clone(),
                    paused,
                }),
                answer: Answer::Id(producer.to_string()),
                command: Some(Command::Produce {
                    client: id,
                    producer,
                    transport: transport_id,
                    kind,
                    rtp_parameters,
                    app_data,
                    paused,
                }),
            })
        }
        "closeProducer" => {
            let OfProducer { producer_id } = read(method, data)?;
            Ok(Plan::append(Command::CloseProducer { client: id, producer: producer_id }))
        }
        "pauseProducer" | "resumeProducer" => {
            let OfProducer { producer_id } = read(method, data)?;
            Ok(Plan::append(Command::PauseProducer {
                client: id,
                producer: producer_id,
                paused: method == "pauseProducer",
            }))
        }
        "pauseConsumer" => {
            let OfConsumer { consumer_id } = read(method, data)?;
            Ok(Plan::append(Command::PauseConsumer { client: id, consumer: consumer_id }))
        }
        "resumeConsumer" => {
            let OfConsumer { consumer_id } = read(method, data)?;
            Ok(Plan::append(Command::ResumeConsumer { client: id, consumer: consumer_id }))
        }
        "requestConsumerKeyFrame" => {
            let OfConsumer { consumer_id } = read(method, data)?;
            own_consumer(state, client, &consumer_id)?;
            Ok(Plan::media(MediaCommand::RequestKeyFrame { consumer: consumer_id }))
        }
        "setConsumerPreferredLayers" => {
            let Layers { consumer_id, layers } = read(method, data)?;
            Ok(Plan::append(Command::PreferLayers { client: id, consumer: consumer_id, layers }))
        }
        "setConsumerPriority" => {
            let Priority { consumer_id, priority } = read(method, data)?;
            Ok(Plan::append(Command::SetPriority { client: id, consumer: consumer_id, priority }))
        }
        "changeDisplayName" => {
            let Rename { display_name: name } = read(method, data)?;
            Ok(Plan::append(Command::Rename { client: id, display_name: display_name(&name, &me.user) }))
        }
        "getTransportStats" => {
            let OfTransport { transport_id } = read(method, data)?;
            own_transport(state, client, &transport_id)?;
            Ok(Plan::media(MediaCommand::GetStats { of: MediaObject::Transport(transport_id) }))
        }
        "getProducerStats" => {
            let OfProducer { producer_id } = read(method, data)?;
            // One's own, and those one consumes: mediasoup's clients show the sender's side of what they receive.
            let consumes = state.consumers.values().any(|c| &c.client == client && c.producer == producer_id);
            if !consumes {
                own_producer(state, client, &producer_id)?;
            }
            Ok(Plan::media(MediaCommand::GetStats { of: MediaObject::Producer(producer_id) }))
        }
        "getConsumerStats" => {
            let OfConsumer { consumer_id } = read(method, data)?;
            own_consumer(state, client, &consumer_id)?;
            Ok(Plan::media(MediaCommand::GetStats { of: MediaObject::Consumer(consumer_id) }))
        }
        "applyNetworkThrottle" | "resetNetworkThrottle" => {
            Err(Refusal::NotAllowed("this server does not throttle its network for clients".into()))
        }
        "muteProducer" => {
            manages(state, Some(client))?;
            let Mute { producer_id, muted } = read(method, data)?;
            let found = state.producers.get(&producer_id);
            let owner =
                found.ok_or_else(|| Refusal::NoObject("producer", producer_id.to_string()))?.client.clone();
            Ok(Plan::append(Command::Mute { by: Some(id), client: owner, producer: producer_id, muted }))
        }
        "removePeer" => {
            manages(state, Some(client))?;
            let OfPeer { peer_id } = read(method, data)?;
            Ok(Plan::append(Command::PutOut { by: id, client: peer_id }))
        }
        "produceData" if !me.rights().data => {
            Err(Refusal::NotAllowed(format!("the rights of a {} do not cover sending data", me.role)))
        }
        "produceData" | "getDataProducerStats" | "getDataConsumerStats" => {
            Err(Refusal::NotAllowed(format!("{method}: this server has no data channels yet")))
        }
        "token" | "resume" => Err(Refusal::WrongState(format!("{method} comes first on a socket, and once"))),
        other => {
            let shown: String = other.chars().take(60).collect();
            Err(Refusal::NotAllowed(format!("there is no method {shown:?}")))
        }
    }
}
