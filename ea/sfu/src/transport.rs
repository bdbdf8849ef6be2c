//! A WebRTC transport: one client's ICE, DTLS and SRTP, and the one way out for packets to it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use rand::RngCore;
use roomlog_bus::{
    ids::{RoomId, TransportId, random_token},
    media::TransportState,
    ortc::IceParameters,
};

use crate::{
    arena::Key,
    consumer::{Consumer, Stamps},
    dtls::Dtls,
    producer::{ExtensionIds, Producer},
    srtp::Srtp,
    stream::RateMeter,
    twcc::TwccReceiver,
};

/// Addresses one client may send from at a time: the candidates of a phone with Wi-Fi, cellular and a VPN in both IP versions, with
/// some room. The longest silent one makes place for a ninth.
const MAX_ADDRESSES: usize = 8;

/// A client that was not heard on its address for this long has moved if it is heard on another, also where it does not nominate that.
const ROAM_AFTER: Duration = Duration::from_secs(5);

/// Characters of a user name fragment: 95 bits, so that nobody meets another's by guessing (RFC 8445 §5.3 asks for 24 bits).
const UFRAG_LENGTH: usize = 16;

/// Characters of a password: 190 bits (RFC 8445 §5.3 asks for 128).
const PASSWORD_LENGTH: usize = 32;

/// Transport-wide sequence numbers that are remembered, to repair what a feedback says is missing: at 1 000 packets/s a second, and a feedback
/// comes every 50 to 250 ms.
const REMEMBERED: usize = 1024;

/// Datagrams to be sent, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    items: Vec<(SocketAddr, Range<usize>)>,
}

impl Outbox {
    /// Adds a datagram.
    pub fn push(&mut self, to: SocketAddr, datagram: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(datagram);
        self.items.push((to, start..self.bytes.len()));
    }

    /// Adds what `write` makes of the end of a buffer, beginning at the given place; nothing when it fails.
    fn push_with<E>(
        &mut self,
        to: SocketAddr,
        write: impl FnOnce(&mut Vec<u8>, usize) -> Result<(), E>,
    ) -> Result<&[u8], E> {
        let start = self.bytes.len();
        match write(&mut self.bytes, start) {
            Ok(()) => {
                self.items.push((to, start..self.bytes.len()));
                Ok(&self.bytes[start..])
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    /// The datagrams in runs that can go out by one call: to one destination, of one size but for the last, which may be shorter (udp(7),
    /// UDP_SEGMENT), at most `segments` and `bytes` in all. Each with the size of its datagrams.
    pub fn runs(&self, segments: usize, bytes: usize) -> impl Iterator<Item = (SocketAddr, &[u8], usize)> {
        let mut rest = &self.items[..];
        std::iter::from_fn(move || {
            let ((to, first), mut after) = rest.split_first()?;
            let (size, mut end, mut count) = (first.len(), first.end, 1);
            while let Some(((next, range), behind)) = after.split_first()
                && next == to
                && range.start == end
                && (1..=size).contains(&range.len())
                && count < segments
                && range.end - first.start <= bytes
            {
                (end, count, after) = (range.end, count + 1, behind);
                if range.len() < size {
                    break;
                }
            }
            rest = after;
            Some((*to, &self.bytes[first.start..end], size))
        })
    }

    /// The datagrams.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.items.iter().map(|(to, range)| (*to, &self.bytes[range.clone()]))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Forgets all, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.items.clear();
    }
}

/// ICE of the worker's side.
#[derive(Debug)]
pub struct Ice {
    /// Our user name fragment.
    pub ufrag: String,
    /// Our password.
    pub password: String,
    /// Those before a restart, good until the client uses the new ones (RFC 8445 §9).
    pub previous: Option<(String, String)>,
    /// Where authentic requests came from, and when last.
    pub addresses: Vec<(SocketAddr, Instant)>,
    /// Where packets go.
    pub selected: Option<SocketAddr>,
    /// The last authentic request.
    pub last_request: Option<Instant>,
}

impl Ice {
    /// Fresh credentials.
    pub fn new(rng: &mut dyn RngCore) -> Self {
        Self {
            ufrag: random_token(rng, UFRAG_LENGTH),
            password: random_token(rng, PASSWORD_LENGTH),
            previous: None,
            addresses: Vec::new(),
            selected: None,
            last_request: None,
        }
    }

    /// What the client is told.
    pub fn parameters(&self) -> IceParameters {
        IceParameters {
            username_fragment: self.ufrag.clone(),
            password: self.password.clone(),
            ice_lite: Some(true),
        }
    }

    /// The password that goes with a user name fragment.
    pub fn password_for(&self, ufrag: &str) -> Option<&str> {
        if ufrag == self.ufrag {
            return Some(&self.password);
        }
        self.previous.as_ref().filter(|(old, _)| old == ufrag).map(|(_, password)| password.as_str())
    }

    /// Notes an authentic request; gives an address that had to make place.
    pub fn heard(&mut self, now: Instant, from: SocketAddr, use_candidate: bool) -> Option<SocketAddr> {
        self.last_request = Some(now);
        let mut forgotten = None;
        match self.addresses.iter_mut().find(|(address, _)| *address == from) {
            Some((_, at)) => *at = now,
            None => {
                if self.addresses.len() >= MAX_ADDRESSES {
                    let oldest = (0..self.addresses.len())
                        .filter(|&i| Some(self.addresses[i].0) != self.selected)
                        .min_by_key(|&i| self.addresses[i].1);
                    forgotten = oldest.map(|i| self.addresses.swap_remove(i).0);
                }
                self.addresses.push((from, now));
            }
        }
        let selected_at =
            self.selected.and_then(|s| self.addresses.iter().find(|(a, _)| *a == s)).map(|(_, at)| *at);
        let silent = selected_at.is_none_or(|at| now.saturating_duration_since(at) >= ROAM_AFTER);
        if use_candidate || silent {
            self.selected = Some(from);
        }
        forgotten
    }
}

/// Where an incoming SSRC belongs.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Whose it is.
    pub producer: Key<Producer>,
    /// Which of its streams.
    pub stream: usize,
    /// Whether it carries retransmissions.
    pub rtx: bool,
}

/// Counters of a transport, for statistics.
#[derive(Debug, Default)]
pub struct Counters {
    /// All datagrams received, bytes.
    pub bytes_received: u64,
    /// All datagrams sent, bytes.
    pub bytes_sent: u64,
    /// RTP received, bytes.
    pub rtp_bytes_received: u64,
    /// RTP sent, bytes.
    pub rtp_bytes_sent: u64,
    /// RTX sent, bytes.
    pub rtx_bytes_sent: u64,
    /// RTX received, bytes.
    pub rtx_bytes_received: u64,
    /// Packets that failed authentication or made no sense.
    pub invalid: u64,
    /// RTP packets that belong to no producer.
    pub unrouted: u64,
    /// Sends refused because the sequence number had been used.
    pub nonce_reuse: u64,
    /// Rates.
    pub receive_rate: RateMeter,
    /// Rates.
    pub send_rate: RateMeter,
}

/// A WebRTC transport.
pub struct Transport {
    /// Its id.
    pub id: TransportId,
    /// Its room.
    pub room: RoomId,
    /// How far it has come.
    pub state: TransportState,
    /// ICE.
    pub ice: Ice,
    /// DTLS.
    pub dtls: Dtls,
    /// SRTP, once DTLS is done.
    pub srtp: Option<Srtp>,
    /// What comes in on it.
    pub producers: Vec<Key<Producer>>,
    /// What goes out on it.
    pub consumers: Vec<Key<Consumer>>,
    /// How many of those pick among layers.
    pub layered: usize,
    /// Incoming SSRCs.
    pub routes: HashMap<u32, Route>,
    /// Outgoing media SSRCs.
    pub outgoing: HashMap<u32, Key<Consumer>>,
    /// Header extensions of the client's packets; the same for all media of a connection (RFC 8843 §9.2).
    pub extensions: ExtensionIds,
    /// Arrivals to tell the client of.
    pub twcc: TwccReceiver,
    next_transport_cc: u16,
    /// What went out under the last transport-wide sequence numbers: of which consumer, and its sequence number.
    stamped: Vec<Option<(Key<Consumer>, u16)>>,
    /// The SSRC of our feedback.
    pub rtcp_ssrc: u32,
    /// The canonical name of all that comes in on it, once the first producer has one.
    pub cname: Option<String>,
    /// For the next consumer's `mid`.
    pub next_mid: u32,
    /// When it is looked after next.
    pub scheduled: Option<Instant>,
    /// When reports are due.
    pub next_report: Instant,
    /// When media came last.
    pub last_rtp: Option<Instant>,
    /// Counters.
    pub counters: Counters,
}

impl Transport {
    /// A transport that nobody has talked to.
    pub fn new(id: TransportId, room: RoomId, now: Instant, epoch: Instant, rng: &mut dyn RngCore) -> Self {
        Self {
            id,
            room,
            state: TransportState::New,
            ice: Ice::new(rng),
            dtls: Dtls::new(),
            srtp: None,
            producers: Vec::new(),
            consumers: Vec::new(),
            layered: 0,
            routes: HashMap::new(),
            outgoing: HashMap::new(),
            extensions: ExtensionIds::default(),
            twcc: TwccReceiver::new(epoch),
            next_transport_cc: 0,
            stamped: Vec::new(),
            rtcp_ssrc: rng.next_u32(),
            cname: None,
            next_mid: 0,
            scheduled: None,
            next_report: now,
            last_rtp: None,
            counters: Counters::default(),
        }
    }

    /// Whether media can be sent. Without consent nothing is (RFC 7675 §5.1): whoever has the address now did not ask for it.
    pub fn can_send(&self) -> bool {
        self.state == TransportState::Connected && self.srtp.is_some() && self.ice.selected.is_some()
    }

    /// What to stamp on the next packet; counts it when `transport_cc`.
    pub fn stamps(&mut self, since_epoch: Duration, transport_cc: bool) -> Stamps {
        let sequence = self.next_transport_cc;
        if transport_cc {
            self.next_transport_cc = sequence.wrapping_add(1);
        }
        let fixed = (since_epoch.as_micros() << 18) / 1_000_000;
        let [.., a, b, c] = (fixed as u32).to_be_bytes();
        Stamps { transport_cc: sequence, abs_send_time: [a, b, c] }
    }

    /// Remembers what went out under a transport-wide sequence number.
    pub fn stamped(&mut self, transport_cc: u16, consumer: Key<Consumer>, sequence: u16) {
        if self.stamped.is_empty() {
            self.stamped.resize(REMEMBERED, None);
        }
        self.stamped[usize::from(transport_cc) % REMEMBERED] = Some((consumer, sequence));
    }

    /// What went out under a transport-wide sequence number, or one a multiple of [`REMEMBERED`] away.
    pub fn was_stamped(&self, transport_cc: u16) -> Option<(Key<Consumer>, u16)> {
        *self.stamped.get(usize::from(transport_cc) % REMEMBERED)?
    }

    /// Encrypts and sends an RTP packet: the only place that does. A sequence number that was used on its SSRC is refused, since with
    /// GCM a second packet under one nonce gives the key away (RFC 7714 §8.4).
    /// Gives what was sent, and how long it was before.
    pub fn send_rtp<'a>(
        &mut self,
        now: Instant,
        out: &'a mut Outbox,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<(&'a [u8], usize)> {
        let (srtp, to) = (self.srtp.as_mut()?, self.ice.selected?);
        let mut plain = 0;
        let protected = out.push_with(to, |buffer, start| {
            write(buffer);
            plain = buffer.len() - start;
            srtp.protect_rtp(buffer, start)
        });
        let Ok(protected) = protected else {
            self.counters.nonce_reuse += 1;
            return None;
        };
        self.counters.bytes_sent += protected.len() as u64;
        self.counters.rtp_bytes_sent += plain as u64;
        self.counters.send_rate.add(now, protected.len());
        Some((protected, plain))
    }

    /// Sends encrypted bytes once more, unchanged.
    pub fn send_again(&mut self, now: Instant, protected: &[u8], out: &mut Outbox) {
        if let Some(to) = self.ice.selected {
            out.push(to, protected);
            self.counters.bytes_sent += protected.len() as u64;
            self.counters.send_rate.add(now, protected.len());
        }
    }

    /// Encrypts and sends a compound RTCP packet.
    pub fn send_rtcp(&mut self, compound: &[u8], out: &mut Outbox) {
        let (Some(srtp), Some(to)) = (self.srtp.as_mut(), self.ice.selected) else { return };
        if let Ok(protected) = srtp.protect_rtcp(compound) {
            out.push(to, &protected);
            self.counters.bytes_sent += protected.len() as u64;
        }
    }

    /// Sends what DTLS wants to say.
    pub fn flush_dtls(&mut self, out: &mut Outbox) {
        while let Some(datagram) = self.dtls.poll_transmit() {
            if let Some(to) = self.ice.selected {
                out.push(to, &datagram);
                self.counters.bytes_sent += datagram.len() as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_nominated_or_lonely_address_takes_over_and_others_wait() {
        let t0 = Instant::now();
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut ice = Ice::new(&mut rand::rngs::StdRng::seed_from_u64(1));
        ice.heard(t0, address(1), false);
        assert_eq!(ice.selected, Some(address(1)), "the first");
        ice.heard(t0, address(2), false);
        assert_eq!(ice.selected, Some(address(1)), "a check of another pair is no move");
        ice.heard(t0, address(2), true);
        assert_eq!(ice.selected, Some(address(2)), "nominated");
        ice.heard(t0 + ROAM_AFTER, address(3), false);
        assert_eq!(ice.selected, Some(address(3)), "the old one has fallen silent");
    }

    #[test]
    fn addresses_are_bounded_and_the_selected_one_stays() {
        let t0 = Instant::now();
        let mut ice = Ice::new(&mut rand::rngs::StdRng::seed_from_u64(1));
        let mut forgotten = Vec::new();
        for port in 1..=20u16 {
            forgotten.extend(ice.heard(
                t0 + Duration::from_millis(port.into()),
                SocketAddr::from(([127, 0, 0, 1], port)),
                port == 1,
            ));
        }
        assert_eq!((ice.addresses.len(), forgotten.len()), (MAX_ADDRESSES, 12));
        assert_eq!(ice.selected.map(|a| a.port()), Some(1));
        assert!(forgotten.iter().all(|a| a.port() != 1));
    }
}
