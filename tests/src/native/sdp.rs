//! The SDP that a native peer's connections are told, made of ORTC parameters as mediasoup-client makes it: the server's side of each
//! negotiation is written here, and of our own side only the certificate's fingerprint is read.

use std::fmt::Write;

use anyhow::Context;
use serde_json::{Value, json};

/// One m-section as the server would write it.
pub struct Section {
    /// `audio` or `video`.
    pub kind: String,
    /// The `mid`.
    pub mid: String,
    /// RTP parameters: `codecs`, `headerExtensions`, and for what we receive, `encodings` and `rtcp.cname`.
    pub rtp: Value,
    /// `sendonly`, `recvonly` or `inactive`, from the server's side.
    pub direction: &'static str,
    /// Names stream and track, for what we receive.
    pub track: Option<String>,
}

/// The server's description: `transport` is the answer to `createWebRtcTransport`, `setup` its DTLS role.
pub fn description(
    transport: &Value,
    setup: &str,
    version: u32,
    sections: &[Section],
) -> anyhow::Result<String> {
    let text = |value: &Value, what: &str| {
        value.as_str().map(str::to_owned).with_context(|| format!("the server's transport has no {what}"))
    };
    let ice = &transport["iceParameters"];
    let (ufrag, pwd) = (text(&ice["usernameFragment"], "ufrag")?, text(&ice["password"], "password")?);
    let fingerprints =
        transport["dtlsParameters"]["fingerprints"].as_array().context("a transport without fingerprints")?;
    let fingerprint =
        fingerprints.iter().find(|f| f["algorithm"] == "sha-256").context("no sha-256 fingerprint")?;
    let mut out = format!("v=0\r\no=roomlog 1 {version} IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=ice-lite\r\n");
    let mids: Vec<&str> = sections.iter().map(|s| s.mid.as_str()).collect();
    write!(out, "a=group:BUNDLE {}\r\na=msid-semantic: WMS *\r\n", mids.join(" "))?;
    for section in sections {
        let codecs = section.rtp["codecs"].as_array().context("RTP parameters without codecs")?;
        let types: Vec<String> = codecs.iter().map(|c| c["payloadType"].to_string()).collect();
        write!(out, "m={} 7 UDP/TLS/RTP/SAVPF {}\r\nc=IN IP4 127.0.0.1\r\n", section.kind, types.join(" "))?;
        write!(out, "a=rtcp-mux\r\na=rtcp-rsize\r\na=mid:{}\r\na={}\r\n", section.mid, section.direction)?;
        write!(out, "a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\na=setup:{setup}\r\n")?;
        write!(out, "a=fingerprint:sha-256 {}\r\n", text(&fingerprint["value"], "fingerprint")?)?;
        for candidate in transport["iceCandidates"].as_array().into_iter().flatten() {
            let ip = text(&candidate["address"], "address")?;
            let (foundation, priority, port) =
                (text(&candidate["foundation"], "foundation")?, &candidate["priority"], &candidate["port"]);
            write!(out, "a=candidate:{foundation} 1 udp {priority} {ip} {port} typ host\r\n")?;
        }
        out.push_str("a=end-of-candidates\r\n");
        for codec in codecs {
            write_codec(&mut out, codec)?;
        }
        for extension in section.rtp["headerExtensions"].as_array().into_iter().flatten() {
            write!(
                out,
                "a=extmap:{} {}\r\n",
                extension["id"],
                extension["uri"].as_str().unwrap_or_default()
            )?;
        }
        if let Some(track) = &section.track {
            write!(out, "a=msid:{track} {track}\r\n")?;
            let encoding = &section.rtp["encodings"][0];
            let cname = section.rtp["rtcp"]["cname"].as_str().unwrap_or("roomlog");
            let ssrcs = [encoding["ssrc"].as_u64(), encoding["rtx"]["ssrc"].as_u64()];
            if let [Some(media), Some(rtx)] = ssrcs {
                write!(out, "a=ssrc-group:FID {media} {rtx}\r\n")?;
            }
            for ssrc in ssrcs.into_iter().flatten() {
                write!(out, "a=ssrc:{ssrc} cname:{cname}\r\n")?;
            }
        }
    }
    Ok(out)
}

fn write_codec(out: &mut String, codec: &Value) -> anyhow::Result<()> {
    let (kind, name) =
        codec["mimeType"].as_str().and_then(|m| m.split_once('/')).context("a codec without type")?;
    let payload_type = &codec["payloadType"];
    let channels =
        codec["channels"].as_u64().filter(|_| kind == "audio").map(|c| format!("/{c}")).unwrap_or_default();
    write!(out, "a=rtpmap:{payload_type} {name}/{}{channels}\r\n", codec["clockRate"])?;
    let parameters: Vec<String> = codec["parameters"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| {
            format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        })
        .collect();
    if !parameters.is_empty() {
        write!(out, "a=fmtp:{payload_type} {}\r\n", parameters.join(";"))?;
    }
    for feedback in codec["rtcpFeedback"].as_array().into_iter().flatten() {
        let (kind, parameter) = (
            feedback["type"].as_str().unwrap_or_default(),
            feedback["parameter"].as_str().unwrap_or_default(),
        );
        write!(out, "a=rtcp-fb:{payload_type} {}\r\n", format!("{kind} {parameter}").trim_end())?;
    }
    Ok(())
}

/// The DTLS parameters of our side, as `connectWebRtcTransport` takes them.
pub fn dtls_parameters(local: &str) -> anyhow::Result<Value> {
    let line = local
        .lines()
        .find_map(|line| line.strip_prefix("a=fingerprint:"))
        .context("our description has no fingerprint")?;
    let (algorithm, value) =
        line.trim().split_once(' ').context("a fingerprint is an algorithm and a value")?;
    Ok(json!({ "role": "client", "fingerprints": [{ "algorithm": algorithm, "value": value }] }))
}

/// Of the router's capabilities, what a native peer can take: Opus, VP8 and its retransmissions.
pub fn understood(capabilities: &Value) -> anyhow::Result<Value> {
    let codecs = capabilities["codecs"].as_array().context("capabilities without codecs")?;
    let is =
        |codec: &Value, mime: &str| codec["mimeType"].as_str().is_some_and(|m| m.eq_ignore_ascii_case(mime));
    let vp8 = codecs.iter().find(|c| is(c, "video/VP8")).context("the router knows no VP8")?["preferredPayloadType"].clone();
    let taken: Vec<Value> = codecs
        .iter()
        .filter(|c| {
            is(c, "audio/opus") || is(c, "video/VP8") || (is(c, "video/rtx") && c["parameters"]["apt"] == vp8)
        })
        .cloned()
        .collect();
    let wanted = [
        "urn:ietf:params:rtp-hdrext:sdes:mid",
        "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
    ];
    let extensions: Vec<Value> = capabilities["headerExtensions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|e| wanted.iter().any(|uri| e["uri"] == *uri))
        .cloned()
        .collect();
    Ok(json!({ "codecs": taken, "headerExtensions": extensions }))
}
