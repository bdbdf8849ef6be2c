//! First inputs for every target, from real messages.

use std::{collections::BTreeSet, fs, io, path::Path};

use roomlog_bus::{
    commit::{Payload, StreamKind},
    events::Event,
    ids::{ClientId, EcId, RoomId, ServiceId},
    media::MediaAnswer,
    token::{Claims, ISSUER, SigningKey},
};
use roomlog_projections::room::RoomState;
use roomlog_sfu::{NackPair, control, rtcp};
use serde_json::{Value, json};

use crate::targets::{dtls, log, packet, token};

/// Writes them to `folder`, each target's in a folder of its name.
pub fn write(folder: &Path) -> io::Result<()> {
    for (target, seeds) in [
        ("packet", packets()),
        ("srtp", srtp()),
        ("dtls", dtls()),
        ("worker", worker()),
        ("control", controls()),
        ("ortc", ortc()),
        ("protoo", protoo()),
        ("http", http()),
        ("token", tokens()),
        ("log", logs()),
    ] {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}

fn with(first: u8, rest: &[u8]) -> Vec<u8> {
    [&[first], rest].concat()
}

/// As `Input::chunk` reads it.
fn chunk(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn compounds() -> Vec<Vec<u8>> {
    let block =
        rtcp::ReportBlock { ssrc: 1111, fraction_lost: 3, lost: -2, highest: 7, ..Default::default() };
    let mut all = Vec::new();
    let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        all.push(out);
    };
    add(&|out| rtcp::write_sender_report(out, 1111, 5, 6, 7, 8, "me"));
    add(&|out| rtcp::write_receiver_report(out, 1, &[block, block]));
    add(&|out| rtcp::write_nack(out, 1, u32::MAX, &[NackPair { first: 1, mask: 5 }]));
    add(&|out| rtcp::write_pli(out, 1, u32::MAX));
    add(&|out| rtcp::write_fir(out, 1, u32::MAX, 3));
    add(&|out| rtcp::write_transport_cc(out, 1, 2, &[0, 1, 0, 2, 0, 0, 3, 0, 0x20, 2, 4, 4]));
    all
}

fn rtp() -> Vec<u8> {
    let mut packet =
        vec![0xb0, 0xe0, 0, 7, 0, 0, 9, 9, 0, 0, 4, 0x57, 0xbe, 0xde, 0, 2, 0x10, b'v', 0x31, 0, 7, 0, 0, 0];
    packet.extend_from_slice(b"payload\x02\x02");
    packet
}

fn packets() -> Vec<Vec<u8>> {
    let mut all = compounds();
    all.push(rtp());
    let mut two_byte = rtp();
    two_byte.splice(12..24, [0x10, 0, 0, 2, 5, 1, b'v', 6, 3, 1, 2, 3]);
    all.push(two_byte);
    let attributes = b"\x00\x06\x00\x09evtj:h6vY\0\0\0\x00\x24\x00\x04\x6e\x00\x01\xff\x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36\x00\x25\x00\x00";
    all.push(with(255, attributes));
    all.push(packet::seal(attributes, "another"));
    all
}

fn srtp() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for profile in 0..3 {
        let mut seed = vec![profile, 0];
        seed.extend(chunk(&rtp()));
        seed.extend([1, 0, 3, 1, 0]);
        for compound in compounds() {
            seed.push(1);
            seed.extend(chunk(&compound));
            seed.extend([1, 0, 3, 1, 0]);
        }
        seed.push(2);
        seed.extend(chunk(&rtp()));
        seed.push(3);
        seed.extend(chunk(&compounds()[0]));
        all.push(seed);
    }
    all
}

fn dtls() -> Vec<Vec<u8>> {
    // A real client whose datagrams all arrive; and those of one as raw bytes.
    let mut all: Vec<Vec<u8>> =
        [3, 11, 19, 27, 1, 7].into_iter().map(|mode| vec![mode, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]).collect();
    all.push(vec![3, 2, 7, 0, 0, 0, 1, 44, 0, 0, 0]);
    let mut raw = vec![2];
    for datagram in dtls::flights() {
        raw.push(2);
        raw.extend(chunk(&datagram));
    }
    all.push(raw);
    all
}

fn worker() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for shape in [0, 1, 3, 7, 11] {
        let mut seed = vec![shape];
        for number in 0..6u8 {
            seed.extend([6, 0, number * 2]);
        }
        seed.extend([9, 0, 200]);
        for (step, compound) in
            [7, 8].into_iter().flat_map(|step| compounds().into_iter().map(move |c| (step, c)))
        {
            seed.push(step);
            seed.extend(chunk(&compound));
        }
        // RTP with two extensions and a VP8 payload.
        seed.extend([4, 0, 20, 0x80, 1, 1, b'v', 3, 2, 0, 20]);
        seed.extend(chunk(&[0x90, 0xc0, 0x81, 2, 3, 0, 7, 7]));
        // RTX.
        seed.extend([4, 0, 3, 0x05]);
        seed.extend(chunk(&[0, 1, 0x90, 0xc0, 0x81, 2, 3, 0, 7, 7]));
        seed.extend([10, 0, 0, 30, 1, 1, 1, 0, 8, 0, 0x25, 0, 0, 11, 0, 1, 11, 2, 9, 11, 4, 0, 9, 40, 0]);
        seed.push(0);
        seed.extend(chunk(&rtp()));
        all.push(seed);
    }
    all
}

fn producer() -> Value {
    json!({
        "mid": "0",
        "codecs": [
            { "mimeType": "video/VP8", "payloadType": 96, "clockRate": 90000, "parameters": {},
              "rtcpFeedback": [{ "type": "nack" }, { "type": "nack", "parameter": "pli" }, { "type": "transport-cc" }] },
            { "mimeType": "video/rtx", "payloadType": 97, "clockRate": 90000, "parameters": { "apt": 96 } },
        ],
        "headerExtensions": [{ "uri": "urn:ietf:params:rtp-hdrext:sdes:mid", "id": 4 }],
        "encodings": [{ "ssrc": 7, "rtx": { "ssrc": 8 }, "scalabilityMode": "L1T3", "maxBitrate": 900000 }],
        "rtcp": { "cname": "c" },
    })
}

fn h264() -> Value {
    json!({
        "codecs": [{ "mimeType": "video/H264", "payloadType": 102, "clockRate": 90000,
            "parameters": { "packetization-mode": 1, "profile-level-id": "42e01f", "level-asymmetry-allowed": 1 } }],
        "encodings": [{ "rid": "q", "scaleResolutionDownBy": 4.5 }, { "rid": "h" }],
        "headerExtensions": [{ "uri": "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id", "id": 10 }],
    })
}

fn capabilities() -> Value {
    json!({
        "codecs": [
            { "kind": "video", "mimeType": "video/VP8", "preferredPayloadType": 101, "clockRate": 90000,
              "rtcpFeedback": [{ "type": "nack" }, { "type": "goog-remb" }] },
            { "kind": "video", "mimeType": "video/rtx", "preferredPayloadType": 102, "clockRate": 90000, "parameters": { "apt": 101 } },
            { "kind": "audio", "mimeType": "audio/opus", "preferredPayloadType": 100, "clockRate": 48000, "channels": 2 },
        ],
        "headerExtensions": [{ "kind": "video", "uri": "urn:ietf:params:rtp-hdrext:sdes:mid", "preferredId": 1, "direction": "sendrecv" }],
    })
}

fn ortc() -> Vec<Vec<u8>> {
    let opus = json!({ "codecs": [{ "mimeType": "audio/opus", "payloadType": 111, "clockRate": 48000, "channels": 2,
        "parameters": { "useinbandfec": 1 } }], "encodings": [{ "ssrc": 5, "dtx": true }] });
    let router =
        serde_json::to_value(roomlog_sfu::ortc::router_rtp_capabilities()).expect("capabilities are JSON");
    let dtls = json!({ "role": "client", "fingerprints": [{ "algorithm": "sha-256", "value": "AA:BB" }] });
    vec![
        producer().to_string().into_bytes(),
        format!("{}\n{}", producer(), capabilities()).into_bytes(),
        format!("{}\n{router}", producer()).into_bytes(),
        h264().to_string().into_bytes(),
        opus.to_string().into_bytes(),
        dtls.to_string().into_bytes(),
    ]
}

fn controls() -> Vec<Vec<u8>> {
    let router =
        serde_json::to_value(roomlog_sfu::ortc::router_rtp_capabilities()).expect("capabilities are JSON");
    let mut vp8 = producer();
    vp8["encodings"][0].as_object_mut().expect("an object").remove("scalabilityMode");
    let commands = [
        json!("create_router"),
        json!({ "create_transport": { "transport": "t" } }),
        json!({ "connect_transport": { "transport": "t", "dtls": { "role": "client", "fingerprints": [{ "algorithm": "sha-256", "value": "AA" }] } } }),
        json!({ "restart_ice": { "transport": "t" } }),
        json!({ "produce": { "transport": "t", "producer": "p", "kind": "video", "rtp_parameters": vp8, "paused": false } }),
        json!({ "create_transport": { "transport": "u" } }),
        json!({ "consume": { "transport": "u", "consumer": "c", "producer": "p", "rtp_capabilities": router } }),
        json!({ "pause_consumer": { "consumer": "c", "paused": false } }),
        json!({ "set_preferred_layers": { "consumer": "c", "layers": { "spatialLayer": 1 } } }),
        json!({ "set_priority": { "consumer": "c", "priority": 0 } }),
        json!({ "request_key_frame": { "consumer": "c" } }),
        json!({ "get_stats": { "of": "router" } }),
        json!({ "get_stats": { "of": { "consumer": "c" } } }),
        json!("inventory"),
        json!({ "pause_producer": { "producer": "p", "paused": true } }),
        json!({ "close": { "object": { "producer": "p" } } }),
        json!({ "close": { "object": "router" } }),
    ];
    let lines: Vec<String> = commands.iter().map(Value::to_string).collect();
    let room = RoomId::new("room").expect("an id");
    let stream: Vec<u8> = commands
        .iter()
        .take(4)
        .enumerate()
        .map(|(id, command)| control::ToWorker::Request {
            id: id as u64,
            room: room.clone(),
            command: serde_json::from_value(command.clone()).expect("a command"),
        })
        .chain([control::ToWorker::Ping { id: 4 }, control::ToWorker::Shutdown])
        .flat_map(|message| control::encode(&message).expect("it fits"))
        .collect();
    let answers = [
        control::FromWorker::Ready { udp: "127.0.0.1:4".parse().expect("an address") },
        control::FromWorker::Answer { id: 2, result: Ok(MediaAnswer::Done) },
        control::FromWorker::Pong { id: 3, load: Default::default() },
    ];
    let back: Vec<u8> =
        answers.iter().flat_map(|message| control::encode(message).expect("it fits")).collect();
    let config = control::WorkerConfig::new("127.0.0.1:0".parse().expect("an address"));
    vec![
        with(3, lines.join("\n").as_bytes()),
        [&[0, 9], &stream[..]].concat(),
        [&[1, 200], &back[..]].concat(),
        [&[2, 3], &control::encode(&config).expect("it fits")[..]].concat(),
    ]
}

fn protoo() -> Vec<Vec<u8>> {
    let caps = capabilities();
    let frame = |who: u8, id: u64, method: &str, data: Value| {
        let text = json!({ "request": true, "id": id, "method": method, "data": data }).to_string();
        format!("{}{text}\n", char::from(b'a' + (who ^ 1)))
    };
    let mut call = String::new();
    let mut id = 0;
    for (who, method, data) in [
        (0, "getRouterRtpCapabilities", json!({})),
        (1, "getRouterRtpCapabilities", json!({})),
        (0, "createWebRtcTransport", json!({ "producing": true, "consuming": false })),
        (1, "createWebRtcTransport", json!({ "producing": false, "consuming": true })),
        (
            0,
            "connectWebRtcTransport",
            json!({ "transportId": "x1", "dtlsParameters": { "role": "client", "fingerprints": [{ "algorithm": "sha-256", "value": "AA" }] } }),
        ),
        (0, "join", json!({ "displayName": "Ann", "device": { "name": "x" }, "rtpCapabilities": caps })),
        (1, "join", json!({ "displayName": "Bob", "device": {}, "rtpCapabilities": caps })),
        (
            0,
            "produce",
            json!({ "transportId": "x1", "kind": "video", "rtpParameters": producer(), "appData": { "a": 1 } }),
        ),
        (1, "resumeConsumer", json!({ "consumerId": "k4" })),
        (
            1,
            "setConsumerPreferredLayers",
            json!({ "consumerId": "k4", "spatialLayer": 1, "temporalLayer": 2 }),
        ),
        (1, "setConsumerPriority", json!({ "consumerId": "k4", "priority": 3 })),
        (1, "requestConsumerKeyFrame", json!({ "consumerId": "k4" })),
        (1, "pauseConsumer", json!({ "consumerId": "k4" })),
        (1, "getConsumerStats", json!({ "consumerId": "k4" })),
        (0, "pauseProducer", json!({ "producerId": "x3" })),
        (0, "resumeProducer", json!({ "producerId": "x3" })),
        (0, "getProducerStats", json!({ "producerId": "x3" })),
        (0, "getTransportStats", json!({ "transportId": "x1" })),
        (0, "restartIce", json!({ "transportId": "x1" })),
        (0, "changeDisplayName", json!({ "displayName": "Anna" })),
        (0, "closeProducer", json!({ "producerId": "x3" })),
        (1, "applyNetworkThrottle", json!({ "secret": "s" })),
        (1, "resetNetworkThrottle", json!({})),
        (1, "produceData", json!({ "transportId": "x2", "label": "chat" })),
        (1, "getDataProducerStats", json!({ "dataProducerId": "d" })),
        (1, "getDataConsumerStats", json!({ "dataConsumerId": "d" })),
        (1, "token", json!({ "token": "t" })),
        (1, "resume", json!({ "token": "t" })),
    ] {
        id += 1;
        call += &frame(who, id, method, data);
    }
    vec![
        call.into_bytes(),
        br#"a{"response":true,"id":7,"ok":false,"errorCode":403,"errorReason":"no"}
b{"response":true,"id":1,"ok":true,"data":{}}
a{"notification":true,"method":"x"}"#
            .to_vec(),
    ]
}

fn http() -> Vec<Vec<u8>> {
    let json = "content-type: application/json";
    let all = [
        format!("POST /v1/services\nauthorization: Bearer $AK\n{json}\n\n{{\"name\":\"x\",\"publishableCreatesRooms\":true}}"),
        format!("POST /v1/rooms\nauthorization: Bearer $SK\n{json}\n\n{{\"name\":\"x\",\"eapolicy\":\"ROOM-BEST\",\"metadata\":{{\"a\":1}}}}"),
        format!("POST /v1/rooms/name:new/tokens\nauthorization: Bearer $PK\nhost: a.test\n{json}\n\n{{\"user\":\"Ann\",\"role\":\"viewer\",\"create\":true,\"peerId\":\"p\"}}"),
        format!("POST /v1/services/$ID/keys\nauthorization: Bearer $AK\n{json}\n\n{{\"which\":\"secret\"}}\n----\nGET /v1/rooms\nauthorization: Bearer $SK\n\n"),
        "GET /v1/rooms?limit=1&after=a\nauthorization: Bearer $SK\n\n\n----\nGET /v1/rooms/$ROOM?min_version=1\nauthorization: Bearer $SK\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n\n".to_owned(),
        "GET /v1/rooms/$ROOM/locate\nhost: b.test:1\n\n\n----\nGET /v1/rooms/$ROOM/users\nauthorization: Bearer $SK\n\n\n----\nDELETE /v1/rooms/$ROOM\nauthorization: Bearer $SK\n\n".to_owned(),
        "OPTIONS /v1/rooms\norigin: http://x\naccess-control-request-method: POST\n\n\n----\nGET /v1/nodes\nauthorization: Bearer $AK\n\n\n----\nGET /metrics\n\n\n----\nGET /readyz\n\n".to_owned(),
        "GET /v1/events?rooms=a\nauthorization: Bearer $SK\nlast-event-id: x\n\n\n----\nGET /openapi.json\n\n\n----\nGET /problems/no-key\n\n".to_owned(),
    ];
    all.into_iter().map(String::into_bytes).collect()
}

fn tokens() -> Vec<Vec<u8>> {
    let claims = Claims {
        iss: ISSUER.into(),
        sub: "Ann".into(),
        jti: "t1".into(),
        service: ServiceId::new("s").expect("an id"),
        room: RoomId::new("r").expect("an id"),
        client: ClientId::new("c").expect("an id"),
        role: "presenter".into(),
        rights: None,
        ec: EcId::new("e").expect("an id"),
        ws: "wss://ec.example/signal".into(),
        iat: token::NOW - 5,
        exp: token::NOW + 5,
    };
    let said = serde_json::to_vec(&claims).expect("claims are JSON");
    let header = br#"{"alg":"EdDSA","typ":"JWT","kid":"$KID"}"#;
    let unsigned = br#"{"alg":"none","typ":"JWT","kid":"$KID"}"#;
    vec![
        with(0, SigningKey::from_seed(&[2; 32]).sign(&claims).as_bytes()),
        [&[1, header.len() as u8], &header[..], &chunk(&said), &[7; 64]].concat(),
        // What others have fallen for: no signature, by an algorithm of that name (RFC 7519 §6).
        [&[1, unsigned.len() as u8], &unsigned[..], &chunk(&said)].concat(),
        [&[2, 1, 44, b'B'], &said[..]].concat(),
    ]
}

fn logs() -> Vec<Vec<u8>> {
    let room = |kind: &str, data: Value| format!("room.r {kind} {data}\n");
    let placement = json!({ "ea": "ea", "incarnation": 1, "worker": 0, "generation": 1 });
    let caps = capabilities();
    let mut text = String::new();
    text += &format!(
        "nuve.n NodeRegistered {}\n",
        json!({ "incarnation": 1, "address": "x", "workers": 0, "version": "0" })
    );
    text += &format!(
        "ea.ea NodeRegistered {}\n",
        json!({ "incarnation": 1, "address": "x", "workers": 1, "version": "0" })
    );
    text += &format!("+ea.ea WorkerStarted {}\n", json!({ "worker": 0, "generation": 1 }));
    text += &format!(
        "service.s ServiceCreated {}\n",
        json!({ "name": "s", "secret_key_hash": "a", "publishable_key_hash": "b", "publishable_creates_rooms": true })
    );
    text +=
        &room("RoomCreated", json!({ "service": "s", "name": "r", "eapolicy": "ROOM-BEST", "metadata": {} }));
    text += &room("RoomPlaced", json!({ "ec": "ec", "incarnation": 1, "epoch": 1, "reason": "first-token" }));
    text += &room("RoomOpened", json!({}));
    text += &format!(
        "+{}",
        room(
            "EaAssigned",
            json!({ "placement": placement, "policy": "ROOM-BEST", "reason": "first-client", "media_epoch": 1, "candidates": [{ "ea": "ea", "rooms": 0 }] })
        )
    );
    text += &format!(
        "+{}",
        room(
            "ClientAdmitted",
            json!({ "client": "a", "user": "A", "role": "presenter", "addr": "1", "token": "t", "token_expires": 1_800_000_060_000_000_u64, "resume_key_hash": "h" })
        )
    );
    text += &format!("+{}", room("ClientBound", json!({ "client": "a", "ea": "ea" })));
    text += &room("ClientAttached", json!({ "client": "a", "ea": "ea" }));
    text += &room(
        "ClientJoined",
        json!({ "client": "a", "display_name": "A", "device": {}, "rtp_capabilities": caps }),
    );
    text += &room(
        "TransportCreated",
        json!({ "client": "a", "transport": "t1", "producing": true, "consuming": false }),
    );
    text += &room("TransportConnected", json!({ "transport": "t1" }));
    text += &room(
        "ProducerCreated",
        json!({ "client": "a", "producer": "p", "transport": "t1", "kind": "video", "rtp_parameters": producer(), "consumer_type": "simple", "app_data": {}, "paused": false }),
    );
    text += &room(
        "ConsumerCreated",
        json!({ "client": "a", "consumer": "c", "transport": "t1", "producer": "p", "kind": "video", "rtp_parameters": producer(), "consumer_type": "simple" }),
    );
    text += &room("ConsumerLayersPreferred", json!({ "consumer": "c", "layers": { "spatialLayer": 1 } }));
    for (kind, data) in [
        ("ConsumerPrioritySet", json!({ "consumer": "c", "priority": 3 })),
        ("ConsumerPaused", json!({ "consumer": "c" })),
        ("ConsumerResumed", json!({ "consumer": "c" })),
        ("ProducerPaused", json!({ "producer": "p" })),
        ("ProducerMuted", json!({ "producer": "p" })),
        ("ProducerUnmuted", json!({ "producer": "p", "by": "a" })),
        ("RoomChanged", json!({ "metadata": { "a": 1 }, "limits": { "maxClients": 9 } })),
        (
            "ClientRightsChanged",
            json!({ "client": "a", "role": "presenter", "rights": { "publish": ["audio", "video"], "subscribe": true, "data": true, "manage": true } }),
        ),
        ("ProducerResumed", json!({ "producer": "p" })),
        ("DisplayNameChanged", json!({ "client": "a", "display_name": "Anna", "old_display_name": "A" })),
    ] {
        text += &room(kind, data);
    }
    // A room of its own that begins with the state of the first so far, as after a retention.
    let mut state = RoomState::default();
    for commit in log::written(text.as_bytes()).iter().filter(|c| c.stream.kind() == StreamKind::Room) {
        state.apply_commit(commit).expect("the seed folds");
    }
    let kept = Payload::encode(&state).0.to_vec();
    let snapshot = format!("room.z RoomSnapshot {}\n", json!({ "state": kept }));
    text += &room(
        "ClientDisconnected",
        json!({ "client": "a", "reason": "broken", "resume_until": 1_800_000_090_000_000_u64 }),
    );
    text += &room("ClientResumed", json!({ "client": "a", "how": "same-node" }));
    text += &room(
        "MediaMoved",
        json!({ "media_epoch": 2, "from": placement, "to": placement, "reason": "worker-died", "candidates": [] }),
    );
    text += &room("SomethingNew", json!({ "a": 1 }));
    for (kind, data) in [
        ("ConsumerClosed", json!({ "consumer": "c", "reason": "client-gone" })),
        ("ConsumerRefused", json!({ "client": "a", "producer": "p", "reason": "cannot-consume" })),
        ("ProducerClosed", json!({ "producer": "p", "reason": "asked" })),
        ("TransportClosed", json!({ "transport": "t1", "reason": "dtls" })),
    ] {
        text += &room(kind, data);
    }
    text += &room("ClientLeft", json!({ "client": "a", "reason": "left" }));
    text += &format!("+{}", room("RoomClosed", json!({ "reason": "empty" })));
    text += &room("EaReleased", json!({ "ea": "ea", "reason": "empty" }));
    text += &room("RoomDeleted", json!({ "reason": "api" }));
    for (stream, kind, data) in [
        (
            "ea.ea",
            "WorkerDied",
            json!({ "worker": 0, "generation": 1, "reason": "signal 9", "rooms": ["r"] }),
        ),
        ("ea.ea", "NodeDraining", json!({ "incarnation": 1, "deadline": 1_800_000_090_000_000_u64 })),
        ("ea.ea", "NodeLeft", json!({ "incarnation": 1 })),
        ("nuve.n", "NodeLost", json!({ "incarnation": 1, "observer": "nuve.m", "reason": "silent" })),
        (
            "nuve._limit",
            "LimitShared",
            json!({ "epoch": 1, "holder": "nuve.n", "incarnation": 1, "limit": 1_000_000, "floors": { "nuve.n": 1_000_000 } }),
        ),
        (
            "service.s",
            "ServiceKeyRotated",
            json!({ "which": "secret", "hash": "c", "old_until": 1_800_000_090_000_000_u64 }),
        ),
        ("service.s", "ServiceOldKeyRevoked", json!({ "which": "secret" })),
        (
            "service.s",
            "ServiceChanged",
            json!({ "name": "s", "publishable_creates_rooms": false, "origins": ["https://app.example"] }),
        ),
        (
            "service.s",
            "WebhookSet",
            json!({ "webhook": "w", "url": "https://a.example/", "enabled": true, "generation": 1, "key": "k", "cursor": [1] }),
        ),
        (
            "service.s",
            "WebhookFailed",
            json!({ "webhook": "w", "since": 1_800_000_000_000_000_u64, "attempts": 6, "error": "503" }),
        ),
        ("service.s", "WebhookAdvanced", json!({ "webhook": "w", "cursor": [2] })),
        ("service.s", "WebhookClaimed", json!({ "webhook": "w", "node": "nuve.n" })),
        ("service.s", "WebhookRemoved", json!({ "webhook": "w" })),
        ("service.s", "ServiceDeleted", json!({})),
    ] {
        text += &format!("{stream} {kind} {data}\n");
    }
    let commits = log::written(text.as_bytes());
    // A seed whose events do not read is none; and every kind is to be there.
    let snapshots = log::written(snapshot.as_bytes());
    let mut missing: BTreeSet<_> = Event::CATALOGUE.iter().map(|(kind, _)| *kind).collect();
    for raw in commits.iter().chain(&snapshots).flat_map(|commit| &commit.events) {
        let event = Event::decode(raw).unwrap_or_else(|error| panic!("a seed of the log: {error}"));
        missing.remove(event.kind());
    }
    assert!(missing.is_empty(), "no seed of the log has {missing:?}");
    let bytes: Vec<u8> = commits.iter().flat_map(|commit| chunk(&commit.encode())).collect();
    vec![
        with(2, text.as_bytes()),
        with(0, &bytes),
        with(1, &log::checkpoint_of(&commits)),
        with(2, snapshot.as_bytes()),
        with(0, &chunk(&snapshots[0].encode())),
    ]
}
