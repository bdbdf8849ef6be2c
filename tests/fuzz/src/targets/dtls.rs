//! DTLS: raw datagrams, and a real client behind a network that drops, repeats, swaps, cuts and changes what it sends.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use roomlog_sfu::dtls::{Dtls, DtlsContext, DtlsEvent, MAX_MESSAGE, fingerprint, looks_like_dtls};
use rtc_dtls::{
    config::ConfigBuilder, crypto::Certificate, endpoint::Endpoint,
    extension::extension_use_srtp::SrtpProtectionProfile,
};
use rtc_shared::TransportProtocol;
use rtc_srtp::crypto::RTCCryptoProvider;

use crate::input::Input;

/// Steps of one script.
const MAX_STEPS: usize = 200;

struct Fixed {
    provider: Arc<dyn RTCCryptoProvider>,
    context: DtlsContext,
    certificate: Certificate,
}

thread_local! {
    // Keys take a millisecond to make, and nothing here depends on which they are.
    static FIXED: RefCell<Option<&'static Fixed>> = const { RefCell::new(None) };
}

fn fixed() -> &'static Fixed {
    FIXED.with(|cell| {
        *cell.borrow_mut().get_or_insert_with(|| {
            let provider = rtc_srtp::crypto::default_provider().expect("ring is built in");
            let context = DtlsContext::new(provider.clone()).expect("certificates can be made");
            let certificate = Certificate::generate_self_signed(vec!["client".into()], provider.crypto())
                .expect("certificates can be made");
            Box::leak(Box::new(Fixed { provider, context, certificate }))
        })
    })
}

fn server_address() -> std::net::SocketAddr {
    "127.0.0.1:40000".parse().expect("an address")
}

/// A client that has said hello, and what it sent.
pub fn client(profiles: Vec<SrtpProtectionProfile>, now: Instant) -> (Endpoint, VecDeque<Vec<u8>>) {
    let fixed = fixed();
    let config = ConfigBuilder::default()
        .with_crypto_provider(fixed.provider.clone())
        .with_certificates(vec![fixed.certificate.clone()])
        .with_insecure_skip_verify(true)
        .with_server_name("roomlog".into())
        .with_srtp_protection_profiles(profiles)
        .build(true, None)
        .expect("a good configuration");
    let mut endpoint = Endpoint::new(([127, 0, 0, 1], 5000).into(), TransportProtocol::UDP, None);
    endpoint.connect(now, server_address(), Arc::new(config), None).expect("nothing stands against it");
    let mut out = VecDeque::new();
    while let Some(t) = endpoint.poll_transmit() {
        out.push_back(t.message.to_vec());
    }
    (endpoint, out)
}

/// Every datagram a client sends in a handshake that nothing disturbs, for the seeds.
pub fn flights() -> Vec<Vec<u8>> {
    let (fixed, now) = (fixed(), Instant::now());
    let (mut client, mut up) = client(vec![SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm], now);
    let mut server = Dtls::new();
    let print =
        fingerprint(fixed.provider.as_ref(), &fixed.certificate.certificate[0]).expect("SHA-256 is there");
    let _ = server.connect(&fixed.context, now, &[print]);
    let mut seen = Vec::new();
    while let Some(datagram) = up.pop_front() {
        let _ = server.handle(&fixed.context, now, &datagram);
        seen.push(datagram);
        while let Some(answer) = server.poll_transmit() {
            let _ = client.read(now, server_address(), None, answer);
        }
        while let Some(t) = client.poll_transmit() {
            up.push_back(t.message.to_vec());
        }
    }
    seen
}

/// `mode, (step, …)*`. Mode bit 0: there is a real client; bit 1: its certificate is the signalled one; bit 2: the fingerprints come
/// late; bits 3 and 4: the SRTP profile it offers.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.byte();
    let fixed = fixed();
    let mut now = Instant::now();
    let mut server = Dtls::new();
    let honest = mode & 2 != 0;
    let mut print =
        fingerprint(fixed.provider.as_ref(), &fixed.certificate.certificate[0]).expect("SHA-256 is there");
    if !honest {
        print.value = print.value.replace(['0', '1', '2', '3'], "4");
    }
    let mut keys = 0;
    let mut note = |came: Result<Option<DtlsEvent>, _>| -> bool {
        match came {
            Ok(Some(DtlsEvent::Keys(made))) => {
                keys += 1;
                assert!(honest, "keys for a certificate that nobody signalled");
                assert_eq!(keys, 1, "keys were given out twice");
                assert!(!made.is_client && made.material.len() >= 2 * (16 + 12));
                true
            }
            Ok(_) => true,
            // The worker ends the transport then.
            Err(_) => false,
        }
    };
    let late = mode & 4 != 0;
    if !late {
        note(server.connect(&fixed.context, now, std::slice::from_ref(&print)));
    }
    use SrtpProtectionProfile::{Srtp_Aead_Aes_128_Gcm, Srtp_Aead_Aes_256_Gcm, Srtp_Aes128_Cm_Hmac_Sha1_80};
    let profiles = match mode >> 3 & 3 {
        0 => vec![Srtp_Aead_Aes_128_Gcm],
        1 => vec![Srtp_Aead_Aes_256_Gcm],
        2 => vec![Srtp_Aes128_Cm_Hmac_Sha1_80],
        _ => vec![Srtp_Aes128_Cm_Hmac_Sha1_80, Srtp_Aead_Aes_128_Gcm],
    };
    let mut real = (mode & 1 != 0).then(|| client(profiles, now));
    let (mut bytes_in, mut bytes_out, mut flights) = (0, 0, 1);

    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        // What to do with the client's next datagram; or one out of nothing.
        let mut datagrams: Vec<Vec<u8>> = Vec::new();
        let next = match &mut real {
            Some((_, up)) if step & 0xf0 != 0xf0 => up.pop_front(),
            _ => None,
        };
        match (step % 8, next) {
            (0 | 1, Some(next)) => datagrams.push(next),
            (2, Some(next)) => datagrams.extend([next.clone(), next]),
            (3, Some(_)) => {}
            (4, Some(mut next)) => {
                for _ in 0..=input.byte() % 4 {
                    let at = usize::from(input.word()) % next.len();
                    next[at] ^= input.byte();
                }
                datagrams.push(next);
            }
            (5, Some(mut next)) => {
                next.truncate(usize::from(input.word()) % next.len());
                datagrams.push(next);
            }
            (6, Some(mut next)) => {
                next.extend_from_slice(input.chunk());
                datagrams.push(next);
            }
            (_, Some(next)) => {
                if let Some((_, up)) = &mut real {
                    up.push_back(next);
                }
            }
            (0, None) => {
                now += Duration::from_millis(u64::from(input.word()));
                if let Err(_gone) = server.handle_timeout(now) {
                    return;
                }
                flights += 1;
                if let Some((client, up)) = &mut real {
                    let _ = client.handle_timeout(server_address(), now);
                    while let Some(t) = client.poll_transmit() {
                        up.push_back(t.message.to_vec());
                    }
                }
            }
            (1, None) if late => {
                if !server.has_fingerprints()
                    && !note(server.connect(&fixed.context, now, std::slice::from_ref(&print)))
                {
                    return;
                }
            }
            (_, None) => datagrams.push(input.chunk().to_vec()),
        }
        for datagram in datagrams {
            // The worker hands over nothing else.
            if !looks_like_dtls(&datagram) {
                continue;
            }
            bytes_in += datagram.len();
            flights += 1;
            let lives = note(server.handle(&fixed.context, now, &datagram));
            while let Some(answer) = server.poll_transmit() {
                bytes_out += answer.len();
                if let Some((client, up)) = &mut real {
                    let _ = client.read(now, server_address(), None, BytesMut::from(&answer[..]));
                    while let Some(t) = client.poll_transmit() {
                        up.push_back(t.message.to_vec());
                    }
                }
            }
            if !lives {
                return;
            }
        }
        assert!(
            bytes_out <= bytes_in + flights * (MAX_MESSAGE / 2),
            "{bytes_in} bytes in {flights} datagrams were answered by {bytes_out}"
        );
    }
    server.close(now);
    while server.poll_transmit().is_some() {}
}
