//! Our ORTC mapping against mediasoup's, case by case: see `tests/conformance/ortc/README.md`.

#[path = "ortc/browsers.rs"]
mod browsers;
#[path = "ortc/mutate.rs"]
mod mutate;

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use mutate::Rng;
use roomlog_bus::ortc::{MediaKind, RtpCapabilities, RtpParameters};
use roomlog_sfu::ortc::{self, OrtcError};
use serde_json::{Map, Value, json};

/// Changes with the cases that are generated; any value must pass.
const SEED: u64 = 20_260_101;
/// Generated cases, on top of the table; enough that each change meets each browser a few times.
const GENERATED: usize = 4_000;

const PRIVATE_EXTENSION: &str = "urn:mediasoup:params:rtp-hdrext:packet-id";

/// What became of a case on our side, to be sure that the table exercises every end.
#[derive(Default, Debug)]
struct Tally {
    compared: usize,
    consumed: usize,
    not_consumable: usize,
    unsupported: usize,
    invalid: usize,
    undecodable: usize,
    stricter: usize,
}

#[test]
fn every_case_is_answered_as_mediasoup_answers_it() {
    let cases = cases();
    let Some(answers) = reference(&json!({ "cases": cases })) else { return };
    let answers = answers["cases"].as_array().expect("one answer per case");
    assert_eq!(answers.len(), cases.len());
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    for (case, theirs) in cases.iter().zip(answers) {
        tally.compared += 1;
        if let Err(difference) = compare(case, theirs, &mut tally) {
            failures.push(format!("{}: {difference}\n  case: {case}", case["name"]));
        }
    }
    let shown: Vec<_> = failures.iter().take(5).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} of {} cases differ:\n{}", failures.len(), cases.len(), shown.join("\n"));
    println!("{tally:?}");
    // If one of these ends is no longer reached, the generator has gone dull and the comparison says little.
    let Tally { consumed, not_consumable, unsupported, invalid, undecodable, stricter, .. } = tally;
    for (what, count) in [
        ("consumed", consumed),
        ("not consumable", not_consumable),
        ("unsupported", unsupported),
        ("invalid", invalid),
        ("undecodable", undecodable),
        ("stricter", stricter),
    ] {
        assert!(count >= 50, "only {count} cases ended {what}: {tally:?}");
    }
}

#[test]
fn profile_level_ids_of_h264_are_matched_and_answered_alike() {
    let router = |id: &str, asymmetry: i64| {
        let mut caps = router_value(&[("video/H264", 90_000, json!({"packetization-mode": 1}))]);
        caps["codecs"][0]["parameters"]["profile-level-id"] = id.into();
        caps["codecs"][0]["parameters"]["level-asymmetry-allowed"] = asymmetry.into();
        caps
    };
    let mut cases = Vec::new();
    let mut add = |ours: &str, id: String, asymmetry: i64| {
        let fmtp =
            json!({"packetization-mode": 1, "profile-level-id": id, "level-asymmetry-allowed": asymmetry});
        let codec =
            json!({"mimeType": "video/H264", "payloadType": 96, "clockRate": 90_000, "parameters": fmtp});
        let params = json!({"mid": "0", "codecs": [codec]});
        cases.push(case(format!("{ours} {id}"), router(ours, asymmetry), "video", params, json!({})));
    };
    for ours in ["42e01f", "42001f", "4d0032", "64001f", "640c1f", "f4001f"] {
        for idc in ["42", "4d", "58", "64", "f4", "6e"] {
            for iop in 0..=255_u8 {
                // Profiles of the other routers are met often enough at every eighth.
                if ours == "42e01f" || iop % 8 == 0 || iop == 0x0c {
                    add(ours, format!("{idc}{iop:02x}1f"), 1);
                }
            }
        }
        for level in 0..=255_u8 {
            add(ours, format!("{}{level:02x}", &ours[..4]), i64::from(level % 2));
        }
    }
    // No router at level 1b: the reference takes 1b for the lower of it and 1, against table A-1 of H.264.
    for ours in ["42e00a", "42e00b", "42e00c"] {
        for theirs in ["42e00a", "42f00b", "42e00b", "42e00c"] {
            add(ours, theirs.to_owned(), 0);
        }
    }
    // An empty id says as little as an absent one; an answer to nothing names nothing.
    for (ours, theirs) in [("", ""), ("", "42e00a"), ("", "42001f"), ("42e01f", ""), ("42001f", "")] {
        add(ours, theirs.to_owned(), 1);
    }
    let Some(answers) = reference(&json!({ "cases": cases })) else { return };
    let mut tally = Tally::default();
    for (case, theirs) in cases.iter().zip(answers["cases"].as_array().expect("a list")) {
        if let Err(difference) = compare(case, theirs, &mut tally) {
            panic!("{}: {difference}", case["name"]);
        }
    }
    assert!(tally.unsupported > 500 && tally.not_consumable > 100, "{tally:?}");
}

#[test]
fn routers_offer_what_mediasoups_routers_offer() {
    let codec = |mime: &str, rate: u32, channels: Option<u8>, pt: Option<u8>, parameters: Value| {
        let kind = mime.split('/').next();
        let mut codec = json!({"kind": kind, "mimeType": mime, "clockRate": rate, "parameters": parameters});
        for (key, value) in [("channels", channels), ("preferredPayloadType", pt)] {
            if let Some(value) = value {
                codec[key] = value.into();
            }
        }
        codec
    };
    let h264 =
        |id: &str| json!({"packetization-mode": 1, "profile-level-id": id, "level-asymmetry-allowed": 1});
    let opus = || codec("audio/opus", 48_000, Some(2), None, json!({}));
    let surround = |channels, streams, coupled| {
        let parameters = json!({"num_streams": streams, "coupled_streams": coupled});
        codec("audio/multiopus", 48_000, Some(channels), None, parameters)
    };
    let vp8 = |pt| codec("video/VP8", 90_000, None, pt, json!({"x-google-start-bitrate": 1000}));
    let default = json!([
        opus(),
        codec("video/VP8", 90_000, None, None, json!({})),
        codec("video/H264", 90_000, None, None, h264("42e01f")),
        codec("video/H264", 90_000, None, None, h264("4d0032")),
    ]);
    let routers = json!([
        default,
        [],
        [
            opus(),
            codec("audio/PCMU", 8000, None, None, json!({})),
            codec("audio/PCMA", 8000, Some(1), None, json!({}))
        ],
        [surround(4, 2, 2), surround(6, 4, 2), surround(8, 5, 3)],
        [surround(6, 4, 3)],
        [vp8(Some(101)), opus(), codec("video/VP9", 90_000, None, None, json!({"profile-id": 2}))],
        [codec("video/AV1", 90_000, None, Some(100), json!({})), vp8(None)],
        [vp8(Some(96)), codec("video/VP9", 90_000, None, Some(96), json!({}))],
        [codec("video/VP10", 90_000, None, None, json!({}))],
        [codec("audio/opus", 48_000, Some(1), None, json!({}))],
        [codec("video", 90_000, None, None, json!({}))],
        vec![vp8(None); 16],
        vec![vp8(None); 17],
    ]);
    let Some(answers) = reference(&json!({ "routers": routers })) else { return };
    for (wanted, theirs) in
        routers.as_array().expect("a list").iter().zip(answers["routers"].as_array().expect("a list"))
    {
        let decoded: Vec<_> = serde_json::from_value(wanted.clone()).expect("codec capabilities");
        let ours = ortc::router_rtp_capabilities_for(&decoded).map(|caps| json!(caps));
        match (ours, theirs.get("ok")) {
            (Ok(ours), Some(theirs)) => same("router", ours, theirs.clone()).expect("the same offer"),
            (Err(_), None) => {}
            (ours, _) => panic!("{wanted}: ours {ours:?}, theirs {theirs}"),
        }
    }
    let theirs = answers["routers"][0]["ok"].clone();
    same("default router", json!(ortc::router_rtp_capabilities()), theirs).expect("the same offer");
}

/// Every browser's media to every browser through two routers, and changed documents from there on.
fn cases() -> Vec<Value> {
    use browsers::{ABS_SEND_TIME, TRANSPORT_CC, against, chrome, firefox, keep, producers, safari};
    let usual = json!(ortc::router_rtp_capabilities());
    let fmtp =
        |id: &str| json!({"packetization-mode": 1, "profile-level-id": id, "level-asymmetry-allowed": 1});
    let wide = router_value(&[
        ("audio/opus", 48_000, json!({})),
        ("audio/multiopus", 48_000, json!({"num_streams": 4, "coupled_streams": 2})),
        ("audio/PCMU", 8_000, json!({})),
        ("video/VP9", 90_000, json!({"profile-id": 2})),
        ("video/VP9", 90_000, json!({})),
        ("video/AV1", 90_000, json!({})),
        ("video/H264", 90_000, fmtp("64001f")),
        ("video/H264", 90_000, json!({"packetization-mode": 0, "profile-level-id": "42001f"})),
        ("video/VP8", 90_000, json!({})),
    ]);
    let mut no_rtx = usual.clone();
    no_rtx["codecs"].as_array_mut().expect("a list").retain(|codec| codec["mimeType"] != "video/rtx");

    let mut cases = Vec::new();
    for (router_name, router) in [("usual", &usual), ("wide", &wide), ("without rtx", &no_rtx)] {
        let device = |browser: Value| against(router, browser);
        let clients = [
            ("chrome", device(chrome())),
            ("firefox", device(firefox())),
            ("safari", device(safari())),
            ("chrome, its own ids", chrome()),
            ("no transport-cc", keep(device(chrome()), |name| name != TRANSPORT_CC)),
            (
                "no bandwidth estimation",
                keep(device(chrome()), |name| ![TRANSPORT_CC, ABS_SEND_TIME].contains(&name)),
            ),
            ("no rtx", keep(device(chrome()), |name| name != "video/rtx")),
            ("only rtx", keep(device(chrome()), |name| name == "video/rtx")),
            ("no vp8", keep(device(firefox()), |name| name != "video/VP8")),
            ("the router itself", router.clone()),
            ("nothing", json!({})),
        ];
        for (name, kind, params) in producers() {
            for (client, caps) in &clients {
                let name = format!("{name} over {router_name} to {client}");
                cases.push(case(name, router.clone(), kind, params.clone(), caps.clone()));
            }
        }
    }
    // Mostly documents that are taken, because a change to a refused one seldom shows anything.
    let (taken, refused): (Vec<usize>, Vec<usize>) = (0..cases.len()).partition(|n| is_taken(&cases[*n]));
    let seed = std::env::var("ORTC_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED);
    let mut rng = Rng(seed);
    for n in 0..GENERATED {
        let base = if rng.below(8) == 0 { rng.pick(&refused) } else { rng.pick(&taken) };
        let mut changed = cases[*base].clone();
        changed["name"] = format!("{} ({seed}/{n})", changed["name"].as_str().expect("text")).into();
        for _ in 0..1 + rng.below(3) {
            match rng.below(16) {
                0..=8 => mutate::params(&mut rng, &mut changed["params"]),
                9..=14 => mutate::caps(&mut rng, &mut changed["caps"]),
                _ => changed["kind"] = (*rng.pick(&["audio", "video"])).into(),
            }
        }
        changed["retransmit"] = (rng.below(2) == 0).into();
        cases.push(changed);
    }
    cases
}

fn case(name: String, router: Value, kind: &str, params: Value, caps: Value) -> Value {
    json!({
        "name": name, "router": router, "kind": kind, "params": params, "caps": caps, "mid": "7", "retransmit": true,
        "ssrc": {"mapped": 1000, "consumer": 2000, "pipe": 3000, "pipeRtx": 4000},
    })
}

fn is_taken(case: &Value) -> bool {
    let (router, params) =
        (decode(&case["router"]).expect("ours"), decode(&case["params"]).expect("a producer"));
    let kind = decode(&case["kind"]).expect("a kind");
    let mapping = ortc::producer_mapping(&params, &router, &mut || 1);
    let consumable =
        mapping.and_then(|mapping| ortc::consumable_parameters(kind, &params, &router, &mapping));
    let caps = decode(&case["caps"]).expect("capabilities");
    consumable.and_then(|consumable| ortc::can_consume(&consumable, &caps)) == Ok(true)
}

fn router_value(codecs: &[(&str, u32, Value)]) -> Value {
    let wanted = codecs.iter().map(|(mime, rate, parameters)| {
        let channels = match *mime {
            "audio/opus" => json!(2),
            "audio/multiopus" => json!(6),
            _ => Value::Null,
        };
        let kind = mime.split('/').next();
        json!({"kind": kind, "mimeType": mime, "clockRate": rate, "channels": channels, "parameters": parameters})
    });
    let wanted = serde_json::from_value::<Vec<_>>(wanted.collect()).expect("codec capabilities");
    json!(ortc::router_rtp_capabilities_for(&wanted).expect("a router"))
}

/// Runs one case on our side, step by step beside the reference's answers.
fn compare(case: &Value, theirs: &Value, tally: &mut Tally) -> Result<(), String> {
    let router: RtpCapabilities = decode(&case["router"]).expect("a router of ours");
    let kind: MediaKind = decode(&case["kind"]).expect("a kind");
    let retransmit = case["retransmit"] == true;

    let caps = decode::<RtpCapabilities>(&case["caps"]).map_err(Refusal::Undecodable);
    let caps = caps.and_then(|caps| Ok(ortc::validate_rtp_capabilities(&caps).map(|()| caps)?));
    agree("caps", &caps, &theirs["caps"], tally)?;

    let params = decode::<RtpParameters>(&case["params"]).map_err(Refusal::Undecodable);
    let params = params.and_then(|params| Ok(ortc::validate_rtp_parameters(&params).map(|()| params)?));
    if !agree("params", &params, &theirs["params"], tally)? {
        return Ok(());
    }
    let params = params.expect("agreed on");

    let mut next = 999;
    let mut counted = || {
        next += 1;
        next
    };
    let mapping = ortc::producer_mapping(&params, &router, &mut counted).map_err(Refusal::from);
    if !agree("mapping", &mapping, &theirs["mapping"], tally)? {
        return Ok(());
    }
    let mapping = mapping.expect("agreed on");
    let mut plain = json!(mapping);
    for (n, encoding) in plain["encodings"].as_array_mut().expect("a list").iter_mut().enumerate() {
        let mode = params.encodings.get(n).and_then(|encoding| encoding.scalability_mode.as_deref());
        // The reference looks it up in the parameters instead.
        let mapped = encoding.as_object_mut().expect("an object").remove("scalabilityMode");
        if mapped.as_ref().and_then(Value::as_str) != mode {
            return Err(format!("encoding {n} is mapped to {mapped:?} instead of {mode:?}"));
        }
    }
    same("mapping", plain, theirs["mapping"]["ok"].clone())?;

    let consumable = ortc::consumable_parameters(kind, &params, &router, &mapping).map_err(Refusal::from);
    if !agree("consumable", &consumable, &theirs["consumable"], tally)? {
        return Ok(());
    }
    let consumable = consumable.expect("agreed on");
    same("consumable", json!(consumable), theirs["consumable"]["ok"].clone())?;

    let mut drawn = 0;
    let mut alternating = || {
        let n = drawn;
        drawn += 1;
        match (retransmit, n % 2) {
            (false, _) => 3000 + n,
            (true, 0) => 3000 + n / 2,
            (true, _) => 4000 + n / 2,
        }
    };
    let piped = ortc::pipe_consumer_parameters(&consumable, &router, retransmit, &mut alternating);
    same("pipe", json!(piped), theirs["pipe"]["ok"].clone())?;

    let Ok(caps) = caps else { return Ok(()) };
    let can = ortc::can_consume(&consumable, &caps).map_err(|error| error.to_string())?;
    if theirs["canConsume"]["ok"] != can {
        return Err(format!("can consume: ours {can}, theirs {}", theirs["canConsume"]));
    }
    let consumer = ortc::consumer_parameters(&consumable, &caps, "7", 2000, 2001).map_err(Refusal::from);
    if matches!(consumer, Err(Refusal::Ours(OrtcError::NoCompatibleCodec { .. }))) {
        tally.not_consumable += 1;
    }
    if agree("consumer", &consumer, &theirs["consumer"], tally)? {
        tally.consumed += 1;
        let consumer = json!(consumer.expect("agreed on"));
        same("consumer", consumer, theirs["consumer"]["ok"].clone())?;
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// Our types cannot hold the document.
    #[error("undecodable: {0}")]
    Undecodable(String),
    #[error(transparent)]
    Ours(#[from] OrtcError),
}

/// True if both accept. Where both refuse, they have to agree whether the document is wrong or only asks too much.
fn agree<T>(
    step: &str,
    ours: &Result<T, Refusal>,
    theirs: &Value,
    tally: &mut Tally,
) -> Result<bool, String> {
    let theirs_accept = theirs.get("ok").is_some();
    match ours {
        Ok(_) if theirs_accept => Ok(true),
        Ok(_) => Err(format!("{step}: ours accepts, theirs {theirs}")),
        Err(Refusal::Ours(error)) if error.is_stricter() => {
            tally.stricter += 1;
            Ok(false)
        }
        Err(refusal) if theirs_accept => Err(format!("{step}: theirs accepts, ours {refusal}")),
        Err(Refusal::Undecodable(_)) => {
            tally.undecodable += 1;
            Ok(false)
        }
        Err(Refusal::Ours(error)) => {
            *(if error.is_unsupported() { &mut tally.unsupported } else { &mut tally.invalid }) += 1;
            if error.is_unsupported() == (theirs["error"] == "UnsupportedError") {
                Ok(false)
            } else {
                Err(format!("{step}: ours {error}, theirs {theirs}"))
            }
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, String> {
    serde_json::from_value(value.clone()).map_err(|error| error.to_string())
}

/// Compares two documents once what both ways of writing leave open is out of the way.
fn same(what: &str, ours: Value, theirs: Value) -> Result<(), String> {
    let (ours, theirs) = (plain(ours), plain(theirs));
    if ours == theirs { Ok(()) } else { Err(format!("{what}\n  ours:   {ours}\n  theirs: {theirs}")) }
}

fn plain(value: Value) -> Value {
    match value {
        Value::Number(n) => json!(n.as_f64()),
        Value::Array(list) => list
            .into_iter()
            .filter(|entry| entry.get("uri").is_none_or(|uri| uri != PRIVATE_EXTENSION))
            .map(plain)
            .collect(),
        Value::Object(fields) => {
            let extension = fields.contains_key("uri");
            let feedback = fields.contains_key("type");
            // Fields of an encoding that are the sending browser's own affair; our vocabulary drops them.
            let own_affair = |key: &str| key == "active";
            let kept = fields.into_iter().filter(|(key, value)| {
                let empty_parameters = extension && key == "parameters" && *value == json!({});
                let empty_feedback = feedback && key == "parameter" && value == "";
                // The reference fills it in for encodings that are listed, not for the one it adds itself.
                let default_dtx = key == "dtx" && value == false;
                !(value.is_null() || empty_parameters || empty_feedback || default_dtx || own_affair(key))
            });
            Value::Object(kept.map(|(key, value)| (key, plain(value))).collect::<Map<_, _>>())
        }
        other => other,
    }
}

/// Asks the reference. None, loudly, where it is not installed; a failure in CI, where it has to be.
fn reference(request: &Value) -> Option<Value> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/conformance/ortc"));
    let installed = folder.join("node_modules/mediasoup/node/lib/ortc.js").is_file();
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).status();
    if !installed || !node.is_ok_and(|status| status.success()) {
        let reason = "needs node and `npm ci` in tests/conformance/ortc";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "the ORTC comparison {reason}");
        // Past the test harness, which hides what passing tests print.
        let line = format!("\n*** SKIPPED: the ORTC comparison with mediasoup {reason} ***\n");
        std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
        return None;
    }
    let mut child = Command::new("node")
        .arg(folder.join("reference.mjs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node was found a moment ago");
    let request = serde_json::to_vec(request).expect("JSON");
    child.stdin.take().expect("piped above").write_all(&request).expect("the reference reads all its input");
    let output = child.wait_with_output().expect("the reference ends");
    assert!(output.status.success(), "the reference failed: {}", output.status);
    Some(serde_json::from_slice(&output.stdout).expect("the reference prints JSON"))
}
