//! ORTC documents of strangers: from a client's JSON to what its neighbours are sent.

use roomlog_bus::{
    commit::Payload,
    ortc::{DtlsParameters, MediaKind, RtpCapabilities, RtpParameters},
};
use roomlog_sfu::ortc::{
    MAX_CODECS, MAX_ENCODINGS, MAX_HEADER_EXTENSIONS, ScalabilityMode, can_consume, consumable_parameters,
    consumer_parameters, consumer_type, pipe_consumer_parameters, producer_mapping, router_rtp_capabilities,
    router_rtp_capabilities_for, validate_rtp_capabilities, validate_rtp_parameters,
};
use serde::{Serialize, de::DeserializeOwned};

/// Reads JSON; what is read survives the log's encoding.
fn read<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(text: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(text).ok()?;
    let again: T = Payload::encode(&value).decode().expect("what is written reads");
    assert_eq!(again, value);
    Some(value)
}

/// First line the parameters of a producer, the second the capabilities of a consumer. Either may be left out.
pub fn run(data: &[u8]) {
    let mut lines = data.splitn(2, |b| *b == b'\n');
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let _: Option<DtlsParameters> = read(first);
    let router = router_rtp_capabilities();
    let caps: RtpCapabilities = match read(second) {
        Some(caps) => caps,
        None if second.is_empty() => router.clone(),
        None => return,
    };
    if validate_rtp_capabilities(&caps).is_ok() {
        assert!(caps.codecs.len() <= MAX_CODECS && caps.header_extensions.len() <= MAX_HEADER_EXTENSIONS);
    }
    if let Ok(own) = router_rtp_capabilities_for(&caps.codecs) {
        validate_rtp_capabilities(&own).expect("a router's capabilities are valid");
    }
    let Some(params) = read::<RtpParameters>(first) else { return };
    let _ = consumer_type(&params);
    for encoding in &params.encodings {
        let _ = ScalabilityMode::parse(encoding.scalability_mode.as_deref());
    }
    let mut next = 1000;
    let mut fresh = || {
        next += 1;
        next
    };
    let Ok(mapping) = producer_mapping(&params, &router, &mut fresh) else { return };
    validate_rtp_parameters(&params).expect("what maps is valid");
    assert!(mapping.codecs.len() <= MAX_CODECS && mapping.encodings.len() <= MAX_ENCODINGS);
    for kind in [MediaKind::Audio, MediaKind::Video] {
        let Ok(consumable) = consumable_parameters(kind, &params, &router, &mapping) else { continue };
        assert_eq!(consumable.encodings.len(), mapping.encodings.len());
        validate_rtp_parameters(&consumable).expect("what others are sent is valid");
        let mut ssrc = 5000;
        let mut on_pipe = || {
            ssrc += 1;
            ssrc
        };
        let piped = pipe_consumer_parameters(&consumable, &router, true, &mut on_pipe);
        assert_eq!(piped.encodings.len(), consumable.encodings.len());
        if let Ok(true) = can_consume(&consumable, &caps) {
            let sent = consumer_parameters(&consumable, &caps, "0", 1, 2).expect("it can be consumed");
            assert_eq!(sent.encodings.len(), 1);
            assert_eq!(sent.encodings[0].ssrc, Some(1));
            let types: Vec<_> = consumable.codecs.iter().map(|c| c.payload_type).collect();
            assert!(sent.codecs.iter().all(|c| types.contains(&c.payload_type)), "a codec nobody sends");
            assert!(
                !sent.codecs[0].mime_type.to_ascii_lowercase().ends_with("/rtx"),
                "retransmission comes behind media"
            );
            let in_and_out = data.len() * 8 + 16 * 1024;
            let bytes = Payload::encode(&sent).0.len();
            assert!(bytes <= in_and_out, "{} bytes made {bytes}", data.len());
        }
    }
}
