//! The ORTC mapping's rules one by one, without a reference to compare with.

#[path = "ortc/browsers.rs"]
#[expect(dead_code, reason = "shared with the conformance test, which uses all of it")]
mod browsers;

use browsers::{ABS_SEND_TIME, TRANSPORT_CC, against, chrome, firefox, keep, safari};
use roomlog_bus::ortc::{
    ConsumerType, FmtpValue, MediaKind, RtpCapabilities, RtpCodecParameters, RtpParameters,
};
use roomlog_sfu::ortc::{
    MAX_CODECS, MAX_ENCODINGS, OrtcError, can_consume, consumable_parameters, consumer_parameters,
    consumer_type, pipe_consumer_parameters, producer_mapping, router_rtp_capabilities,
    validate_rtp_capabilities, validate_rtp_parameters,
};
use serde_json::{Value, json};

fn producer(name: &str) -> RtpParameters {
    let all = browsers::producers();
    let (.., params) = all.into_iter().find(|(found, ..)| found == name).expect("a name of the table");
    serde_json::from_value(params).expect("RTP parameters")
}

fn client(browser: Value) -> RtpCapabilities {
    let caps = against(&json!(router_rtp_capabilities()), browser);
    serde_json::from_value(caps).expect("RTP capabilities")
}

fn consumable(kind: MediaKind, params: &RtpParameters) -> RtpParameters {
    let router = router_rtp_capabilities();
    let mut ssrc = 999;
    let mapping = producer_mapping(params, &router, &mut || {
        ssrc += 1;
        ssrc
    });
    consumable_parameters(kind, params, &router, &mapping.expect("taken")).expect("taken")
}

fn refused(params: &RtpParameters) -> OrtcError {
    let mapping = producer_mapping(params, &router_rtp_capabilities(), &mut || 1);
    mapping.expect_err("the router must not take this")
}

fn feedback(codec: &RtpCodecParameters) -> Vec<String> {
    let text =
        codec.rtcp_feedback.iter().map(|f| format!("{} {}", f.kind, f.parameter).trim_end().to_owned());
    text.collect()
}

fn names(params: &RtpParameters) -> Vec<(&str, u8)> {
    params.codecs.iter().map(|codec| (codec.mime_type.as_str(), codec.payload_type)).collect()
}

#[test]
fn vp8_from_chrome_reaches_firefox_in_the_routers_numbers() {
    let consumable = consumable(MediaKind::Video, &producer("chrome vp8"));
    let caps = client(firefox());
    assert_eq!(can_consume(&consumable, &caps), Ok(true));
    let sent = consumer_parameters(&consumable, &caps, "5", 2000, 3000).expect("Firefox knows VP8");
    assert_eq!(sent.mid.as_deref(), Some("5"));
    assert_eq!(names(&sent), [("video/VP8", 101), ("video/rtx", 102)]);
    assert_eq!(sent.codecs[1].parameters["apt"], FmtpValue::Integer(101));
    assert_eq!(sent.encodings.len(), 1);
    assert_eq!(sent.encodings[0].ssrc, Some(2000));
    assert_eq!(sent.encodings[0].rtx.map(|rtx| rtx.ssrc), Some(3000));
    assert_eq!(sent.rtcp.cname.as_deref(), Some("kOxnfH0tRPnTpXpt"));
}

#[test]
fn transport_cc_replaces_remb_and_each_needs_its_extension() {
    let consumable = consumable(MediaKind::Video, &producer("chrome vp8"));
    let without = |uris: &[&str]| {
        let caps = client(keep(chrome(), |name| !uris.contains(&name)));
        let sent = consumer_parameters(&consumable, &caps, "0", 1, 2).expect("Chrome knows VP8");
        feedback(&sent.codecs[0])
    };
    let rest = ["ccm fir", "nack", "nack pli"];
    assert_eq!(without(&[]), [&["transport-cc"][..], &rest].concat());
    assert_eq!(without(&[TRANSPORT_CC]), [&["goog-remb"][..], &rest].concat());
    assert_eq!(without(&[TRANSPORT_CC, ABS_SEND_TIME]), rest);
}

#[test]
fn consumers_get_no_extension_that_the_router_only_receives() {
    let sent = consumer_parameters(
        &consumable(MediaKind::Video, &producer("chrome vp8 simulcast")),
        &client(chrome()),
        "0",
        1,
        2,
    );
    let uris: Vec<_> = sent.expect("taken").header_extensions.into_iter().map(|e| (e.id, e.uri)).collect();
    assert!(uris.contains(&(1, browsers::MID.into())), "{uris:?}");
    for only_received in [browsers::RID, browsers::REPAIRED_RID, browsers::DEPENDENCY] {
        assert!(!uris.iter().any(|(_, uri)| uri == only_received), "{uris:?}");
    }
    // The producer has no capture time to pass on.
    assert!(!uris.iter().any(|(_, uri)| uri == browsers::CAPTURE_TIME), "{uris:?}");
}

#[test]
fn a_client_without_rtx_gets_none() {
    let consumable = consumable(MediaKind::Video, &producer("chrome vp8"));
    let caps = client(keep(safari(), |name| name != "video/rtx"));
    let sent = consumer_parameters(&consumable, &caps, "0", 1, 2).expect("Safari knows VP8");
    assert_eq!(names(&sent), [("video/VP8", 101)]);
    assert_eq!(sent.encodings[0].rtx, None);
}

#[test]
fn audio_is_never_retransmitted() {
    let consumable = consumable(MediaKind::Audio, &producer("chrome opus"));
    let sent = consumer_parameters(&consumable, &client(chrome()), "0", 1, 2).expect("Opus");
    assert_eq!(names(&sent), [("audio/opus", 100)]);
    assert_eq!(feedback(&sent.codecs[0]), Vec::<String>::new());
    assert_eq!(sent.encodings[0].rtx, None);
}

#[test]
fn a_client_that_knows_none_of_the_codecs_is_told_so() {
    let consumable = consumable(MediaKind::Video, &producer("chrome vp8"));
    let caps = client(keep(firefox(), |name| name != "video/VP8"));
    assert_eq!(can_consume(&consumable, &caps), Ok(false));
    let refused = consumer_parameters(&consumable, &caps, "0", 1, 2).expect_err("no VP8");
    assert!(refused.is_unsupported());
    assert!(refused.to_string().contains("video/VP8"), "{refused}");
}

#[test]
fn simulcast_becomes_one_encoding_with_all_spatial_layers() {
    let params = producer("chrome vp8 simulcast");
    let router = router_rtp_capabilities();
    let mut next = 70;
    let mapping = producer_mapping(&params, &router, &mut || {
        next += 1;
        next
    });
    let mapping = mapping.expect("taken");
    let seen: Vec<_> = mapping.encodings.iter().map(|e| (e.rid.as_deref(), e.mapped_ssrc)).collect();
    assert_eq!(seen, [(Some("r0"), 71), (Some("r1"), 72), (Some("r2"), 73)]);
    assert_eq!(mapping.payload_type(97), Some(102));

    let consumable = consumable(MediaKind::Video, &params);
    assert_eq!(consumer_type(&consumable), ConsumerType::Simulcast);
    let sent = consumer_parameters(&consumable, &client(chrome()), "0", 1, 2).expect("taken");
    assert_eq!(sent.encodings[0].scalability_mode.as_deref(), Some("L3T3"));
    assert_eq!(sent.encodings[0].max_bitrate, Some(2_500_000));
    assert_eq!(sent.encodings[0].rid, None);
}

#[test]
fn layers_tell_the_type_of_the_consumer() {
    let kind = |name| consumer_type(&producer(name));
    assert_eq!(kind("chrome opus"), ConsumerType::Simple);
    assert_eq!(kind("chrome vp8"), ConsumerType::Simple);
    assert_eq!(kind("vp8 temporal layers"), ConsumerType::Svc);
    assert_eq!(kind("vp9 svc"), ConsumerType::Svc);
    assert_eq!(kind("safari h264 simulcast"), ConsumerType::Simulcast);
    assert_eq!(kind("opus without encodings"), ConsumerType::Simple);
    let mut layered_opus = producer("chrome opus");
    layered_opus.encodings[0].scalability_mode = Some("L1T3".into());
    assert_eq!(consumer_type(&layered_opus), ConsumerType::Simple);
}

#[test]
fn h264_needs_the_same_profile_and_packetization_mode() {
    let mut params = producer("h264 42e01f mode 1");
    assert_eq!(names(&consumable(MediaKind::Video, &params))[0], ("video/H264", 103));
    assert_eq!(names(&consumable(MediaKind::Video, &producer("h264 4d001f mode 1")))[0].1, 105);
    for other in ["h264 42e01f mode 0", "h264 42001f mode 1", "h264 64001f mode 1", "h264 640c1f mode 1"] {
        let refused = refused(&producer(other));
        assert!(
            matches!(refused, OrtcError::UnsupportedCodec { payload_type: 109, .. }),
            "{other}: {refused}"
        );
    }
    let level = |params: &RtpParameters| {
        consumable(MediaKind::Video, params).codecs[0].parameters["profile-level-id"].to_text()
    };
    let spelled = |id: &str| FmtpValue::Text(id.into());
    params.codecs[0].parameters.insert("profile-level-id".into(), spelled("42c034"));
    assert_eq!(level(&params), "42e034");
    params.codecs[0].parameters.remove("level-asymmetry-allowed");
    assert_eq!(level(&params), "42e01f");
}

#[test]
fn a_pipe_carries_every_encoding_and_no_bandwidth_estimation() {
    let consumable = consumable(MediaKind::Video, &producer("chrome vp8 simulcast"));
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        next
    };
    let router = router_rtp_capabilities();
    let with = pipe_consumer_parameters(&consumable, &router, true, &mut fresh);
    let seen: Vec<_> = with.encodings.iter().map(|e| (e.ssrc, e.rtx.map(|rtx| rtx.ssrc))).collect();
    assert_eq!(seen, [(Some(1), Some(2)), (Some(3), Some(4)), (Some(5), Some(6))]);
    assert_eq!(feedback(&with.codecs[0]), ["nack", "nack pli", "ccm fir"]);
    let ids: Vec<_> = with.header_extensions.iter().map(|e| e.id).collect();
    assert_eq!(ids, [7, 8, 9, 11], "orientation, time offset, playout delay, and the dependency descriptor");

    let without = pipe_consumer_parameters(&consumable, &router, false, &mut fresh);
    assert_eq!(names(&without), [("video/VP8", 101)]);
    assert_eq!(feedback(&without.codecs[0]), ["nack pli", "ccm fir"]);
    assert!(without.encodings.iter().all(|encoding| encoding.rtx.is_none()));
}

#[test]
fn what_the_worker_could_not_attribute_or_switch_is_refused() {
    type Case = (&'static str, fn(&mut RtpParameters), fn(&OrtcError) -> bool);
    let cases: [Case; 11] = [
        (
            "chrome vp8",
            |p| p.codecs[0].payload_type = 128,
            |e| matches!(e, OrtcError::PayloadTypeOutOfRange { payload_type: 128 }),
        ),
        (
            "chrome vp8",
            |p| p.codecs.push(p.codecs[0].clone()),
            |e| matches!(e, OrtcError::DuplicatePayloadType { payload_type: 96 }),
        ),
        (
            "chrome vp8",
            |p| drop(p.codecs[1].parameters.insert("apt".into(), FmtpValue::Integer(97))),
            |e| matches!(e, OrtcError::RtxOfRtx { payload_type: 97 }),
        ),
        ("no codecs", |_| (), |e| *e == OrtcError::NoMediaCodec),
        ("chrome vp8", |p| p.header_extensions[2].id = 0, |e| matches!(e, OrtcError::ExtensionIdZero { .. })),
        (
            "chrome vp8",
            |p| p.encodings[0].codec_payload_type = Some(50),
            |e| matches!(e, OrtcError::UnknownEncodingPayloadType { index: 0, payload_type: 50 }),
        ),
        (
            "chrome vp8",
            |p| p.encodings[0].codec_payload_type = Some(97),
            |e| matches!(e, OrtcError::UnknownEncodingPayloadType { payload_type: 97, .. }),
        ),
        (
            "chrome vp8 simulcast",
            |p| p.encodings[1].scalability_mode = Some("L2T1".into()),
            |e| matches!(e, OrtcError::SimulcastWithSvc { index: 1 }),
        ),
        (
            "chrome opus",
            |p| p.encodings.push(p.encodings[0].clone()),
            |e| matches!(e, OrtcError::SimulcastUnsupported { .. }),
        ),
        (
            "chrome vp8 simulcast",
            |p| p.encodings[2].rid = None,
            |e| *e == OrtcError::UnidentifiedEncoding { index: 2, needs_mid: false },
        ),
        (
            "opus without encodings",
            |p| p.mid = None,
            |e| *e == OrtcError::UnidentifiedEncoding { index: 0, needs_mid: true },
        ),
    ];
    for (name, change, expected) in cases {
        let mut params = producer(name);
        change(&mut params);
        let refused = refused(&params);
        assert!(expected(&refused) && refused.is_stricter(), "{name}: {refused:?}");
    }
}

#[test]
fn video_does_not_pass_as_audio() {
    let params = producer("chrome vp8");
    let router = router_rtp_capabilities();
    let mapping = producer_mapping(&params, &router, &mut || 1).expect("taken");
    let refused = consumable_parameters(MediaKind::Audio, &params, &router, &mapping).expect_err("video");
    assert!(matches!(refused, OrtcError::KindMismatch { kind: MediaKind::Audio, .. }), "{refused}");
}

#[test]
fn a_mapping_of_other_parameters_is_noticed() {
    let router = router_rtp_capabilities();
    let mapping = producer_mapping(&producer("chrome vp8"), &router, &mut || 1).expect("taken");
    for other in ["firefox vp8 simulcast", "chrome vp8 simulcast"] {
        let refused = consumable_parameters(MediaKind::Video, &producer(other), &router, &mapping);
        assert!(matches!(refused, Err(OrtcError::MappingMismatch { .. })), "{other}: {refused:?}");
    }
}

#[test]
fn rtx_must_belong_to_a_codec_and_be_known_to_the_router() {
    let mut params = producer("chrome vp8");
    params.codecs[1].parameters.clear();
    assert_eq!(refused(&params), OrtcError::RtxWithoutMedia { payload_type: 97 });
    let mut router = router_rtp_capabilities();
    router.codecs.retain(|codec| codec.mime_type != "video/rtx");
    let mapping = producer_mapping(&producer("chrome vp8"), &router, &mut || 1);
    assert_eq!(mapping, Err(OrtcError::RouterHasNoRtx { payload_type: 101 }));
}

#[test]
fn documents_that_make_no_sense_are_refused_with_the_field_named() {
    let mut params = producer("chrome vp8");
    params.codecs[0].mime_type = "application/x".into();
    assert!(matches!(validate_rtp_parameters(&params), Err(OrtcError::InvalidMimeType { .. })));
    let mut params = producer("chrome vp8");
    params.codecs[1].parameters.insert("apt".into(), FmtpValue::Text("96".into()));
    let refused = validate_rtp_parameters(&params).expect_err("text");
    assert!(refused.to_string().contains("\"apt\""), "{refused}");
    let mut params = producer("chrome vp8");
    params.header_extensions[0].uri = Default::default();
    assert_eq!(validate_rtp_parameters(&params), Err(OrtcError::MissingExtensionUri));

    let mut caps = client(chrome());
    caps.header_extensions[3].kind = None;
    assert!(matches!(validate_rtp_capabilities(&caps), Err(OrtcError::MissingExtensionKind { .. })));
    assert!(can_consume(&RtpParameters::default(), &caps).is_err());
    let mut caps = client(chrome());
    caps.codecs[0].rtcp_feedback[0].kind = Default::default();
    assert!(matches!(validate_rtp_capabilities(&caps), Err(OrtcError::InvalidFeedback { .. })));
}

#[test]
fn documents_of_a_strangers_length_are_refused_before_they_are_compared() {
    let mut caps = client(chrome());
    caps.codecs = vec![caps.codecs[0].clone(); MAX_CODECS + 1];
    assert!(matches!(can_consume(&RtpParameters::default(), &caps), Err(OrtcError::TooMany { .. })));
    let mut params = producer("chrome vp8 simulcast");
    params.encodings = vec![params.encodings[0].clone(); MAX_ENCODINGS + 1];
    assert!(matches!(refused(&params), OrtcError::TooMany { what: "encodings", limit: MAX_ENCODINGS, .. }));
}
