//! Other documents, made from browsers' by a few seeded changes each. Every change keeps to what our types can hold, or breaks the
//! document in a way that both sides must refuse.

use serde_json::{Value, json};

use super::browsers::URIS;

/// SplitMix64: small, and the same on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

fn remove(object: &mut Value, key: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(key);
    }
}

/// Sets a field to one of the values; null stands for its absence.
fn set(rng: &mut Rng, object: &mut Value, key: &str, values: Value) {
    let values = values.as_array().expect("a list").clone();
    match rng.pick(&values) {
        Value::Null => remove(object, key),
        value => object[key] = value.clone(),
    }
}

fn entry<'a>(rng: &mut Rng, document: &'a mut Value, list: &str) -> Option<&'a mut Value> {
    let list = document.get_mut(list)?.as_array_mut()?;
    let n = if list.is_empty() { None } else { Some(rng.below(list.len())) }?;
    list.get_mut(n)
}

fn rearrange(rng: &mut Rng, document: &mut Value, list: &str) {
    let Some(list) = document.get_mut(list).and_then(Value::as_array_mut).filter(|l| !l.is_empty()) else {
        return;
    };
    let (a, b) = (rng.below(list.len()), rng.below(list.len()));
    match rng.below(3) {
        0 => drop(list.remove(a)),
        1 => list.swap(a, b),
        _ => {
            let copy = list[a].clone();
            list.insert(b, copy);
        }
    }
}

fn codec(rng: &mut Rng, codec: &mut Value, pt: &str) {
    let parameters = |codec: &Value| codec.get("parameters").is_some_and(Value::is_object);
    match rng.below(9) {
        0 => set(
            rng,
            codec,
            "mimeType",
            json!([
                "VIDEO/vp8",
                "video/VP8",
                "Video/h264",
                "video/VP9",
                "video/AV1",
                "audio/OPUS",
                "audio/opus",
                "video/rtx",
                "VIDEO/RTX",
                "audio/red",
                "video/H266",
                "application/x",
                "video/",
                "VP8",
                "",
                null,
                5
            ]),
        ),
        1 => set(rng, codec, pt, json!([0, 96, 97, 98, 100, 101, 111, 114, 127, 128, "96"])),
        2 => set(rng, codec, "clockRate", json!([8000, 16_000, 48_000, 90_000, "90000", null])),
        3 => set(rng, codec, "channels", json!([1, 2, 6, null])),
        4 => set(
            rng,
            codec,
            "rtcpFeedback",
            json!([
                null, [], [{"type": "nack"}], [{"type": "goog-remb"}, {"type": "transport-cc"}, {"type": "nack", "parameter": "pli"}],
                [{"type": ""}], [{"parameter": "pli"}], [{"type": "nack", "parameter": ""}, {"type": "ccm", "parameter": "fir"}]
            ]),
        ),
        5 => set(rng, codec, "parameters", json!([null, {}, {"apt": 96}, {"profile-id": 2}, {"x": true}])),
        _ if parameters(codec) => {
            let (key, values) = rng
                .pick(&[
                    ("packetization-mode", json!([0, 1, "1", "", null, true, 1.0])),
                    (
                        "profile-level-id",
                        json!([
                            "42e01f", "42001f", "42c01f", "4d0032", "4D001F", "64001f", "640c1f", "f4001f",
                            "42f00b", "42e00b", "42e00a", "58c01f", "42e0ff", "zz", "", 420_010, 0, null
                        ]),
                    ),
                    ("level-asymmetry-allowed", json!([0, 1, "1", "0", null])),
                    ("profile-id", json!([0, 1, 2, "0", "", "2", null])),
                    ("apt", json!([0, 96, 97, 98, 109, 111, 400, "96", null, 96.0, 96.5])),
                    ("num_streams", json!([2, 4, "4", null])),
                    ("coupled_streams", json!([2, 3, null])),
                ])
                .clone();
            set(rng, &mut codec["parameters"], key, values);
        }
        _ => {}
    }
}

/// One change to a producer's parameters.
pub fn params(rng: &mut Rng, params: &mut Value) {
    match rng.below(14) {
        0 => rearrange(rng, params, "codecs"),
        1..=4 => {
            if let Some(found) = entry(rng, params, "codecs") {
                codec(rng, found, "payloadType");
            }
        }
        5 => rearrange(rng, params, "encodings"),
        6..=8 => {
            if let Some(encoding) = entry(rng, params, "encodings") {
                let (key, values) = rng
                    .pick(&[
                        ("ssrc", json!([7, 8, 4_294_967_295_u32, null, "7"])),
                        ("rid", json!(["r0", "h", "", null])),
                        ("rtx", json!([{"ssrc": 77}, {}, null])),
                        ("dtx", json!([true, false, null])),
                        (
                            "scalabilityMode",
                            json!([
                                "L1T1",
                                "L1T2",
                                "S3T3",
                                "L2T3_KEY",
                                "L3T3_KEY_SHIFT",
                                "L12T12",
                                "x",
                                "L0T1",
                                "",
                                null
                            ]),
                        ),
                        ("maxBitrate", json!([0, 1, 5_000_000_000_u64, null])),
                        ("codecPayloadType", json!([96, 97, 111, null])),
                        ("scaleResolutionDownBy", json!([1, 1.5, null])),
                    ])
                    .clone();
                set(rng, encoding, key, values);
            }
        }
        9 => rearrange(rng, params, "headerExtensions"),
        10 => {
            if let Some(extension) = entry(rng, params, "headerExtensions") {
                let (key, values) = rng
                    .pick(&[
                        ("uri", json!([URIS[0], URIS[4], URIS[9], URIS[12], "", null])),
                        ("id", json!([0, 1, 14, 15, 255, null, "1"])),
                        ("encrypt", json!([true, false, null])),
                    ])
                    .clone();
                set(rng, extension, key, values);
            }
        }
        11 => {
            let key = *rng.pick(&["codecs", "headerExtensions", "encodings", "rtcp", "mid"]);
            remove(params, key);
        }
        12 => set(
            rng,
            params,
            "rtcp",
            json!([{}, {"cname": "c"}, {"cname": "c", "reducedSize": false}, {"reducedSize": true}, {"cname": 5}]),
        ),
        _ => set(rng, params, "mid", json!(["0", "", null, 5])),
    }
}

/// One change to a client's capabilities.
pub fn caps(rng: &mut Rng, caps: &mut Value) {
    match rng.below(10) {
        0 | 1 => rearrange(rng, caps, "codecs"),
        2..=5 => {
            if let Some(found) = entry(rng, caps, "codecs") {
                codec(rng, found, "preferredPayloadType");
            }
        }
        6 => rearrange(rng, caps, "headerExtensions"),
        7 | 8 => {
            if let Some(extension) = entry(rng, caps, "headerExtensions") {
                let (key, values) = rng
                    .pick(&[
                        ("kind", json!(["audio", "video", "", "both", null])),
                        ("uri", json!([URIS[0], URIS[3], URIS[4], URIS[12], "", null])),
                        ("preferredId", json!([1, 4, 5, 10, 200, null, "1"])),
                        ("preferredEncrypt", json!([true, false, null])),
                        ("direction", json!(["sendrecv", "sendonly", "recvonly", "inactive", null])),
                    ])
                    .clone();
                set(rng, extension, key, values);
            }
        }
        _ => {
            let key = *rng.pick(&["codecs", "headerExtensions"]);
            remove(caps, key);
        }
    }
}
