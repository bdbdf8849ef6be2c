//! What Chrome, Firefox and Safari say of themselves, and what they send: the shapes of `RTCRtpSender.getCapabilities` and of their
//! SDP as `mediasoup-client` turns them into ORTC, written as short tables.

use serde_json::{Value, json};

pub const MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
pub const RID: &str = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id";
pub const REPAIRED_RID: &str = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id";
pub const ABS_SEND_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time";
pub const TRANSPORT_CC: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
pub const AUDIO_LEVEL: &str = "urn:ietf:params:rtp-hdrext:ssrc-audio-level";
pub const DEPENDENCY: &str =
    "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension";
pub const ORIENTATION: &str = "urn:3gpp:video-orientation";
pub const TOFFSET: &str = "urn:ietf:params:rtp-hdrext:toffset";
pub const CAPTURE_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";
pub const PLAYOUT_DELAY: &str = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";

pub const URIS: [&str; 13] = [
    MID,
    RID,
    REPAIRED_RID,
    ABS_SEND_TIME,
    TRANSPORT_CC,
    AUDIO_LEVEL,
    DEPENDENCY,
    ORIENTATION,
    TOFFSET,
    CAPTURE_TIME,
    PLAYOUT_DELAY,
    "urn:ietf:params:rtp-hdrext:csrc-audio-level",
    "http://www.webrtc.org/experiments/rtp-hdrext/color-space",
];

/// `a=rtcp-fb` of a browser's video codec.
pub fn video_feedback() -> Value {
    json!([
        {"type": "goog-remb", "parameter": ""}, {"type": "transport-cc", "parameter": ""}, {"type": "ccm", "parameter": "fir"},
        {"type": "nack", "parameter": ""}, {"type": "nack", "parameter": "pli"},
    ])
}

/// One codec of a capabilities table: MIME type, payload type, clock rate, channels (0: none), `fmtp` parameters.
type Row = (&'static str, u8, u32, u8, Value);

fn capability((mime, pt, rate, channels, parameters): Row) -> Value {
    let kind = mime.split('/').next();
    let feedback = match mime {
        "audio/opus" => json!([{"type": "transport-cc", "parameter": ""}, {"type": "nack", "parameter": ""}]),
        "video/rtx" | "video/red" | "video/ulpfec" => json!([]),
        _ if kind == Some("audio") => json!([]),
        _ => video_feedback(),
    };
    let mut codec = json!({
        "kind": kind, "mimeType": mime, "preferredPayloadType": pt, "clockRate": rate,
        "parameters": parameters, "rtcpFeedback": feedback,
    });
    if channels > 0 {
        codec["channels"] = channels.into();
    }
    codec
}

/// A video codec and its RTX behind it.
fn with_rtx(mime: &'static str, pt: u8, rtx: u8, parameters: Value) -> [Row; 2] {
    [(mime, pt, 90_000, 0, parameters), ("video/rtx", rtx, 90_000, 0, json!({"apt": pt}))]
}

fn h264(id: &str, mode: i64) -> Value {
    json!({"level-asymmetry-allowed": 1, "packetization-mode": mode, "profile-level-id": id})
}

fn extensions(kind: &str, rows: &[(&str, u8, &str)]) -> Vec<Value> {
    let row = |(uri, id, direction): &(&str, u8, &str)| json!({"kind": kind, "uri": uri, "preferredId": id, "preferredEncrypt": false, "direction": direction});
    rows.iter().map(row).collect()
}

fn capabilities(codecs: Vec<Row>, header_extensions: Vec<Value>) -> Value {
    let codecs: Vec<_> = codecs.into_iter().map(capability).collect();
    json!({"codecs": codecs, "headerExtensions": header_extensions})
}

pub fn chrome() -> Value {
    let mut codecs: Vec<Row> = vec![
        ("audio/opus", 111, 48_000, 2, json!({"minptime": 10, "useinbandfec": 1})),
        ("audio/red", 63, 48_000, 2, json!({"111/111": ""})),
        ("audio/G722", 9, 8_000, 1, json!({})),
        ("audio/PCMU", 0, 8_000, 1, json!({})),
        ("audio/PCMA", 8, 8_000, 1, json!({})),
        ("audio/CN", 13, 8_000, 1, json!({})),
        ("audio/telephone-event", 110, 48_000, 1, json!({})),
        ("audio/telephone-event", 126, 8_000, 1, json!({})),
    ];
    codecs.extend(with_rtx("video/VP8", 96, 97, json!({})));
    codecs.extend(with_rtx("video/H264", 103, 104, h264("42001f", 1)));
    codecs.extend(with_rtx("video/H264", 107, 108, h264("42001f", 0)));
    codecs.extend(with_rtx("video/H264", 109, 114, h264("42e01f", 1)));
    codecs.extend(with_rtx("video/H264", 115, 116, h264("42e01f", 0)));
    codecs.extend(with_rtx("video/H264", 117, 118, h264("4d001f", 1)));
    codecs.extend(with_rtx("video/H264", 39, 40, h264("4d001f", 0)));
    codecs.extend(with_rtx("video/H264", 119, 120, h264("64001f", 1)));
    codecs.extend(with_rtx("video/AV1", 45, 46, json!({"level-idx": 5, "profile": 0, "tier": 0})));
    codecs.extend(with_rtx("video/VP9", 98, 99, json!({"profile-id": 0})));
    codecs.extend(with_rtx("video/VP9", 100, 101, json!({"profile-id": 2})));
    codecs.push(("video/red", 123, 90_000, 0, json!({})));
    codecs.push(("video/ulpfec", 122, 90_000, 0, json!({})));
    let both = "sendrecv";
    let mut all = extensions(
        "audio",
        &[(AUDIO_LEVEL, 1, both), (ABS_SEND_TIME, 2, both), (TRANSPORT_CC, 3, both), (MID, 4, both)],
    );
    all.extend(extensions(
        "video",
        &[
            (TOFFSET, 14, both),
            (ABS_SEND_TIME, 2, both),
            (ORIENTATION, 13, both),
            (TRANSPORT_CC, 3, both),
            (PLAYOUT_DELAY, 5, both),
            ("http://www.webrtc.org/experiments/rtp-hdrext/video-content-type", 6, both),
            ("http://www.webrtc.org/experiments/rtp-hdrext/color-space", 8, both),
            (MID, 4, both),
            (RID, 10, both),
            (REPAIRED_RID, 11, both),
            (DEPENDENCY, 9, both),
            (CAPTURE_TIME, 12, both),
        ],
    ));
    capabilities(codecs, all)
}

pub fn firefox() -> Value {
    let mut codecs: Vec<Row> = vec![
        ("audio/opus", 109, 48_000, 2, json!({"maxplaybackrate": 48_000, "stereo": 1, "useinbandfec": 1})),
        ("audio/G722", 9, 8_000, 1, json!({})),
        ("audio/PCMU", 0, 8_000, 1, json!({})),
        ("audio/PCMA", 8, 8_000, 1, json!({})),
        ("audio/telephone-event", 101, 8_000, 1, json!({"0-15": ""})),
    ];
    codecs.extend(with_rtx("video/VP8", 120, 124, json!({"max-fs": 12_288, "max-fr": 60})));
    codecs.extend(with_rtx("video/VP9", 121, 125, json!({"max-fs": 12_288, "max-fr": 60})));
    codecs.extend(with_rtx("video/H264", 126, 127, h264("42e01f", 1)));
    codecs.extend(with_rtx(
        "video/H264",
        97,
        98,
        json!({"profile-level-id": "42e01f", "level-asymmetry-allowed": 1}),
    ));
    codecs.push(("video/ulpfec", 123, 90_000, 0, json!({})));
    codecs.push(("video/red", 122, 90_000, 0, json!({})));
    let mut all = extensions(
        "audio",
        &[
            (AUDIO_LEVEL, 1, "sendrecv"),
            ("urn:ietf:params:rtp-hdrext:csrc-audio-level", 2, "recvonly"),
            (MID, 3, "sendrecv"),
        ],
    );
    all.extend(extensions(
        "video",
        &[
            (MID, 3, "sendrecv"),
            (ABS_SEND_TIME, 4, "sendrecv"),
            (TOFFSET, 5, "sendrecv"),
            (PLAYOUT_DELAY, 6, "recvonly"),
            (TRANSPORT_CC, 7, "sendrecv"),
        ],
    ));
    capabilities(codecs, all)
}

pub fn safari() -> Value {
    let mut codecs: Vec<Row> = vec![
        ("audio/opus", 111, 48_000, 2, json!({"minptime": 10, "useinbandfec": 1})),
        ("audio/PCMU", 0, 8_000, 1, json!({})),
        ("audio/PCMA", 8, 8_000, 1, json!({})),
    ];
    codecs.extend(with_rtx("video/H264", 96, 97, h264("640c1f", 1)));
    codecs.extend(with_rtx("video/H264", 98, 99, h264("42e01f", 1)));
    codecs.extend(with_rtx("video/H264", 100, 101, h264("640c1f", 0)));
    codecs.extend(with_rtx("video/H264", 102, 125, h264("42e01f", 0)));
    codecs.extend(with_rtx(
        "video/H265",
        104,
        105,
        json!({"level-id": 93, "profile-id": 1, "tier-flag": 0, "tx-mode": "SRST"}),
    ));
    codecs.extend(with_rtx("video/VP8", 106, 107, json!({})));
    codecs.extend(with_rtx("video/VP9", 108, 109, json!({"profile-id": 0})));
    let both = "sendrecv";
    let mut all = extensions("audio", &[(AUDIO_LEVEL, 1, both), (TRANSPORT_CC, 3, both), (MID, 4, both)]);
    all.extend(extensions(
        "video",
        &[
            (TOFFSET, 14, both),
            (ABS_SEND_TIME, 2, both),
            (ORIENTATION, 13, both),
            (TRANSPORT_CC, 3, both),
            (PLAYOUT_DELAY, 5, both),
            (MID, 4, both),
            (RID, 10, both),
            (REPAIRED_RID, 11, both),
        ],
    ));
    capabilities(codecs, all)
}

/// A browser's capabilities as its `mediasoup-client` sends them: with the router's extension ids.
pub fn against(router: &Value, mut browser: Value) -> Value {
    let ids = router["headerExtensions"].as_array().expect("a list").clone();
    let own = browser["headerExtensions"].as_array_mut().expect("a list");
    own.retain_mut(|extension| {
        let same = |other: &&Value| other["uri"] == extension["uri"] && other["kind"] == extension["kind"];
        let found = ids.iter().find(same).map(|other| other["preferredId"].clone());
        found.map(|id| extension["preferredId"] = id).is_some()
    });
    browser
}

/// Keeps only the extensions (by URI) and codecs (by name) that `keep` says.
pub fn keep(mut caps: Value, keep: impl Fn(&str) -> bool) -> Value {
    for (list, field) in [("codecs", "mimeType"), ("headerExtensions", "uri")] {
        let list = caps[list].as_array_mut().expect("a list");
        list.retain(|entry| keep(entry[field].as_str().expect("text")));
    }
    caps
}

fn sent(mime: &str, pt: u8, rtx: Option<u8>, parameters: Value) -> Vec<Value> {
    let audio = mime.starts_with("audio/");
    let mut codec = json!({
        "mimeType": mime, "payloadType": pt, "clockRate": if audio { 48_000 } else { 90_000 }, "parameters": parameters,
        "rtcpFeedback": if audio { json!([{"type": "transport-cc", "parameter": ""}]) } else { video_feedback() },
    });
    if mime.eq_ignore_ascii_case("audio/opus") {
        codec["channels"] = 2.into();
    }
    let rtx = rtx.map(|rtx| {
        json!({"mimeType": "video/rtx", "payloadType": rtx, "clockRate": 90_000, "parameters": {"apt": pt}, "rtcpFeedback": []})
    });
    [codec].into_iter().chain(rtx).collect()
}

fn producing(mid: &str, codecs: Vec<Value>, uris: &[(&str, u8)], encodings: Value) -> Value {
    let uris: Vec<_> = uris
        .iter()
        .map(|(uri, id)| json!({"uri": uri, "id": id, "encrypt": false, "parameters": {}}))
        .collect();
    json!({
        "mid": mid, "codecs": codecs, "headerExtensions": uris, "encodings": encodings,
        "rtcp": {"cname": "kOxnfH0tRPnTpXpt", "reducedSize": true},
    })
}

/// What browsers send: a name, the kind, the RTP parameters.
pub fn producers() -> Vec<(String, &'static str, Value)> {
    let audio = [(MID, 4), (ABS_SEND_TIME, 2), (TRANSPORT_CC, 3), (AUDIO_LEVEL, 1)];
    let video =
        [(MID, 4), (RID, 10), (REPAIRED_RID, 11), (ABS_SEND_TIME, 2), (TRANSPORT_CC, 3), (ORIENTATION, 13)];
    let one = json!([{"ssrc": 2_657_193_511_u32, "rtx": {"ssrc": 3_215_877_321_u32}, "dtx": false}]);
    let bare = json!([{"ssrc": 1_111_u32}]);
    let rids = json!([
        {"rid": "r0", "active": true, "scaleResolutionDownBy": 4, "maxBitrate": 100_000, "scalabilityMode": "L1T3"},
        {"rid": "r1", "active": true, "scaleResolutionDownBy": 2.5, "maxBitrate": 500_000, "scalabilityMode": "L1T3"},
        {"rid": "r2", "active": true, "scaleResolutionDownBy": 1, "maxBitrate": 2_500_000, "scalabilityMode": "L1T3"},
    ]);
    let ssrcs = json!([
        {"ssrc": 101_u32, "rtx": {"ssrc": 201_u32}, "maxBitrate": 300_000},
        {"ssrc": 102_u32, "rtx": {"ssrc": 202_u32}, "maxBitrate": 200_000},
    ]);
    let svc = |mode: &str| json!([{"ssrc": 31_u32, "rtx": {"ssrc": 32_u32}, "scalabilityMode": mode}]);
    let opus = json!({"minptime": 10, "useinbandfec": 1, "sprop-stereo": 1, "usedtx": 1});
    let vp8 = || sent("video/VP8", 96, Some(97), json!({}));
    let surround = json!({"channel_mapping": "0,4,1,2,3,5", "num_streams": 4, "coupled_streams": 2});
    let mut multiopus = sent("audio/multiopus", 100, None, surround);
    multiopus[0]["channels"] = 6.into();
    let mut pcm = sent("audio/PCMU", 0, None, json!({}));
    pcm[0]["clockRate"] = 8_000.into();

    let mut all = vec![
        (
            "chrome opus",
            "audio",
            producing("0", sent("audio/opus", 111, None, opus.clone()), &audio, bare.clone()),
        ),
        (
            "firefox opus",
            "audio",
            producing("1", sent("audio/opus", 109, None, json!({"stereo": 1})), &[(MID, 3)], one.clone()),
        ),
        (
            "opus without encodings",
            "audio",
            producing("0", sent("audio/opus", 111, None, opus), &audio, json!([])),
        ),
        ("multiopus 5.1", "audio", producing("0", multiopus, &audio, bare.clone())),
        ("pcmu", "audio", producing("0", pcm, &audio, bare.clone())),
        ("chrome vp8", "video", producing("2", vp8(), &video, one.clone())),
        ("chrome vp8 simulcast", "video", producing("2", vp8(), &video, rids.clone())),
        (
            "chrome vp8 capture time",
            "video",
            producing("2", vp8(), &[(MID, 4), (CAPTURE_TIME, 12)], one.clone()),
        ),
        (
            "firefox vp8 simulcast",
            "video",
            producing(
                "2",
                sent("video/VP8", 120, Some(124), json!({"max-fs": 12_288, "max-fr": 60})),
                &[(MID, 3), (RID, 6)],
                ssrcs,
            ),
        ),
        (
            "vp8 without rtx",
            "video",
            producing("2", sent("video/VP8", 96, None, json!({})), &video, bare.clone()),
        ),
        ("vp8 temporal layers", "video", producing("2", vp8(), &video, svc("L1T3"))),
        (
            "vp9 svc",
            "video",
            producing(
                "2",
                sent("video/VP9", 98, Some(99), json!({"profile-id": 0})),
                &video,
                svc("L3T3_KEY"),
            ),
        ),
        (
            "vp9 profile 2",
            "video",
            producing("2", sent("video/VP9", 100, Some(101), json!({"profile-id": 2})), &video, svc("L2T1")),
        ),
        (
            "av1 svc",
            "video",
            producing(
                "2",
                sent("video/AV1", 45, Some(46), json!({"level-idx": 5})),
                &[(MID, 4), (DEPENDENCY, 9)],
                svc("L3T3"),
            ),
        ),
        (
            "safari h264 simulcast",
            "video",
            producing("2", sent("video/H264", 98, Some(99), h264("42e01f", 1)), &video, rids),
        ),
        (
            "unknown codec",
            "video",
            producing("2", sent("video/H265", 49, Some(50), json!({"profile-id": 1})), &video, one.clone()),
        ),
        (
            "two codecs",
            "video",
            producing(
                "2",
                [vp8(), sent("video/H264", 109, Some(114), h264("42e01f", 1))].concat(),
                &video,
                one.clone(),
            ),
        ),
        ("rtx first", "video", producing("2", vp8().into_iter().rev().collect(), &video, one.clone())),
        ("no codecs", "video", producing("2", Vec::new(), &video, one.clone())),
        ("rtx alone", "video", producing("2", vp8().split_off(1), &video, one.clone())),
    ]
    .into_iter()
    .map(|(name, kind, params)| (name.to_owned(), kind, params))
    .collect::<Vec<_>>();
    for (id, mode) in [
        ("42e01f", 1),
        ("42e01f", 0),
        ("42001f", 1),
        ("4d001f", 1),
        ("4d0032", 1),
        ("64001f", 1),
        ("640c1f", 1),
        ("42e034", 1),
    ] {
        let codecs = sent("video/H264", 109, Some(114), h264(id, mode));
        all.push((format!("h264 {id} mode {mode}"), "video", producing("2", codecs, &video, one.clone())));
    }
    all
}
