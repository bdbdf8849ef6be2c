//! Repair on lossy ways, on virtual time: sender → link → worker → link → receiver, and all that is said about it back over links.
//!
//! The sender answers NACKs at once. The receiver asks as Chrome does where it does not know the round trip: for a gap at once, and again
//! every 100 ms, ten times. It sends transport-cc feedback every 50 ms, as Chrome does at such rates.

mod common;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use common::*;
use rand::{SeedableRng, rngs::StdRng};
use roomlog_netem::{Burst, Link, LinkSettings};
use roomlog_sfu::{NackPair, TwccReceiver, ortc::uri, rtcp, rtp::NewHeader};

const MS: Duration = Duration::from_millis(1);
/// Of the receiver.
const ASK_AGAIN: Duration = Duration::from_millis(100);
const ASKS: u32 = 10;
/// Of the receiver, ms.
const FEEDBACK: u32 = 50;
/// Time between two frames, and packets of each: 30 frame/s, about 900 kbit/s.
const FRAME: u32 = 33;
const PACKETS: u16 = 3;

/// What a call came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    sent: usize,
    /// ms from being sent to being there, sorted, of those that came.
    took: Vec<u64>,
    /// Packets the worker asked the sender for, and those that it answered.
    asked_of_sender: usize,
    /// Packets the receiver asked the worker for.
    asked_of_worker: usize,
    /// Packets that came on the receiver's RTX stream.
    repairs: usize,
    key_frames: usize,
    lost: u64,
}

impl Outcome {
    fn arrived(&self) -> f64 {
        self.took.len() as f64 / self.sent as f64
    }

    /// The time within which this share of those that came has come, ms.
    fn within(&self, share: f64) -> u64 {
        self.took[((self.took.len() - 1) as f64 * share) as usize]
    }
}

struct Way {
    link: Link,
    rng: StdRng,
}

/// The ways, and what is on them.
struct Ways {
    ways: HashMap<(SocketAddr, bool), Way>,
    on_it: BTreeMap<(Instant, u64), (SocketAddr, bool, Vec<u8>)>,
    number: u64,
}

impl Ways {
    fn send(&mut self, now: Instant, client: SocketAddr, up: bool, bytes: &[u8]) {
        let Some(Way { link, rng }) = self.ways.get_mut(&(client, up)) else { return };
        for at in link.admit(now, bytes.len(), rng).into_iter().flatten() {
            self.number += 1;
            self.on_it.insert((at, self.number), (client, up, bytes.to_vec()));
        }
    }

    fn due(&mut self, now: Instant) -> Option<(SocketAddr, bool, Vec<u8>)> {
        let first = self.on_it.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

/// A call of `seconds` over ways that do `settings` each, with a seed.
fn call(settings: LinkSettings, seconds: u32, seed: u64) -> Outcome {
    let mut world = World::new();
    let (mut alice, mut bob) =
        (Client::connected(&mut world, "a", 5001), Client::connected(&mut world, "b", 5002));
    let producer = produce(&mut world, &alice, "p", roomlog_bus::ortc::MediaKind::Video, single());
    let (_, params) = consume(&mut world, &bob, "c", &producer);
    world.settle(&mut [&mut alice, &mut bob]);
    assert_eq!(plis(&alice.take_rtcp(), SSRC), 1, "the first frame of the call answers this one");
    let media_ssrc = params.encodings[0].ssrc.expect("consumers have one");
    let mut ways = Ways { ways: HashMap::new(), on_it: BTreeMap::new(), number: 0 };
    for (index, key) in
        [(alice.address, true), (alice.address, false), (bob.address, true), (bob.address, false)]
            .into_iter()
            .enumerate()
    {
        let rng = StdRng::seed_from_u64(seed * 10 + index as u64);
        ways.ways.insert(key, Way { link: Link::new(settings), rng });
    }
    let start = world.now;
    let mut sent_at: Vec<Instant> = Vec::new();
    let mut keys: HashSet<u32> = HashSet::new();
    let mut rtx_sequence = 0u16;
    // What of the receiver's numbers is missing: when it was asked for last, and how often.
    let mut missing: BTreeMap<u16, (Instant, u32)> = BTreeMap::new();
    let mut highest: Option<u16> = None;
    let mut came: HashMap<u32, Instant> = HashMap::new();
    let transport_cc =
        params.header_extensions.iter().find(|e| e.uri == uri::TRANSPORT_WIDE_CC).expect("negotiated").id;
    let mut feedback = TwccReceiver::new(start);
    let mut outcome = Outcome {
        sent: 0,
        took: Vec::new(),
        asked_of_sender: 0,
        asked_of_worker: 0,
        repairs: 0,
        key_frames: 0,
        lost: 0,
    };
    // The first packets are the key frame with which the consumer begins: what comes before it cannot come at all.
    let mut wants_key_frame = true;
    for ms in 0..seconds * 1_000 + 3_000 {
        world.now = start + ms * MS;
        let now = world.now;
        if ms % FRAME == 0 && ms < seconds * 1_000 {
            let key = std::mem::take(&mut wants_key_frame);
            outcome.key_frames += usize::from(key);
            for part in 0..PACKETS {
                let number = sent_at.len() as u32;
                sent_at.push(now);
                let key = key && part == 0;
                keys.extend(key.then_some(number));
                alice.send(header(number), &[(1, b"v")], &payload(number, key));
            }
        }
        // Consent is fresh, or else nothing would be sent after five seconds. It is not what is tested: it meets no link.
        if ms % 1_000 == 0 {
            for client in [&mut alice, &mut bob] {
                let media = std::mem::take(&mut client.out);
                client.bind(true);
                while let Some(bytes) = client.out.pop_front() {
                    world.worker.handle_datagram(now, client.address, &bytes);
                }
                client.out = media;
            }
        }
        for client in [&mut alice, &mut bob] {
            while let Some(bytes) = client.out.pop_front() {
                ways.send(now, client.address, true, &bytes);
            }
        }
        while let Some((client, up, bytes)) = ways.due(now) {
            match (up, client == alice.address) {
                (true, _) => world.worker.handle_datagram(now, client, &bytes),
                // A duplicate is refused by SRTP, as browsers do; the receiving end of the test takes it for a failure.
                (false, true) => drop(alice.try_receive(now, &bytes)),
                (false, false) => drop(bob.try_receive(now, &bytes)),
            }
        }
        if world.worker.poll_timeout().is_some_and(|at| at <= now) {
            world.worker.handle_timeout(now);
        }
        for (to, bytes) in world.outbox() {
            ways.send(now, to, false, &bytes);
        }
        // The sender obeys.
        let compound = alice.take_rtcp();
        wants_key_frame |= plis(&compound, SSRC) > 0;
        for sequence in nacked(&compound, SSRC) {
            outcome.asked_of_sender += 1;
            let newest = sent_at.len() as u32 - 1;
            let number = newest - u32::from((newest as u16).wrapping_sub(sequence));
            let rtx = NewHeader {
                payload_type: RTX_TYPE,
                ssrc: RTX_SSRC,
                sequence: rtx_sequence,
                ..header(number)
            };
            rtx_sequence = rtx_sequence.wrapping_add(1);
            let again = [&sequence.to_be_bytes()[..], &payload(number, keys.contains(&number))].concat();
            alice.send(rtx, &[(1, b"v")], &again);
        }
        // The receiver asks.
        bob.take_rtcp();
        for packet in bob.take_rtp() {
            let (sequence, bytes) = if packet.header.ssrc == media_ssrc {
                (packet.header.sequence, packet.payload().to_vec())
            } else {
                outcome.repairs += 1;
                let (original, rest) =
                    packet.payload().split_first_chunk::<2>().expect("RTX carries the number");
                (u16::from_be_bytes(*original), rest.to_vec())
            };
            if let Some(&[high, low]) = packet.header.extension(&packet.bytes, transport_cc) {
                feedback.arrived(now, u16::from_be_bytes([high, low]));
            }
            came.entry(number_of(&bytes)).or_insert(now);
            missing.remove(&sequence);
            let before = highest.unwrap_or(sequence);
            if sequence.wrapping_sub(before) < 1 << 15 {
                let mut lost = before;
                while lost.wrapping_add(1) != sequence && lost != sequence {
                    lost = lost.wrapping_add(1);
                    missing.insert(lost, (now - ASK_AGAIN, 0));
                }
                highest = Some(sequence);
            }
        }
        for (&sequence, (asked, times)) in &mut missing {
            if now - *asked >= ASK_AGAIN && *times < ASKS {
                (*asked, *times) = (now, *times + 1);
                outcome.asked_of_worker += 1;
                let mut nack = Vec::new();
                rtcp::write_nack(&mut nack, 9, media_ssrc, &[NackPair { first: sequence, mask: 0 }]);
                bob.send_rtcp(&nack);
            }
        }
        if ms % FEEDBACK == 0
            && let Some(body) = feedback.feedback(now)
        {
            let mut compound = Vec::new();
            rtcp::write_transport_cc(&mut compound, 9, media_ssrc, &body);
            bob.send_rtcp(&compound);
        }
        // Reports say how much is lost: the worker goes by them.
        if ms % 1_000 == 999 {
            let block = rtcp::ReportBlock {
                ssrc: media_ssrc,
                fraction_lost: (settings.loss * 256.0) as u8,
                ..Default::default()
            };
            let mut report = Vec::new();
            rtcp::write_receiver_report(&mut report, 9, &[block]);
            bob.send_rtcp(&report);
        }
    }
    // What is lost at the very end no later packet shows: the last frames do not count.
    let last = sent_at.len() as u32 - 10 * u32::from(PACKETS);
    came.retain(|number, _| *number < last);
    let first = *came.keys().min().expect("something comes");
    outcome.sent = (last - first) as usize;
    outcome.took = came.iter().map(|(n, at)| (*at - sent_at[*n as usize]).as_millis() as u64).collect();
    outcome.took.sort_unstable();
    outcome.lost = ways.ways.values().map(|way| way.link.counts.lost).sum();
    outcome
}

fn header(number: u32) -> NewHeader {
    let frame = number / u32::from(PACKETS);
    let marker = number % u32::from(PACKETS) == u32::from(PACKETS) - 1;
    NewHeader { timestamp: frame * 3_000, marker, ..frame_header(SSRC, number as u16) }
}

/// A VP8 packet that carries its number behind the descriptor and the byte that says whether it is a key frame.
fn payload(number: u32, key: bool) -> Vec<u8> {
    let mut payload = vp8(number as u16, key);
    let at = payload.len();
    payload.resize(1_000, 0);
    payload[at..at + 4].copy_from_slice(&number.to_be_bytes());
    payload
}

fn number_of(payload: &[u8]) -> u32 {
    let at = vp8(0, false).len();
    u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"))
}

/// 20 ms there and back to each.
fn way(loss: f64) -> LinkSettings {
    LinkSettings { loss, delay_ms: 10.0, ..Default::default() }
}

#[test]
fn without_loss_nothing_is_asked_for() {
    let outcome = call(way(0.0), 20, 1);
    assert_eq!((outcome.arrived(), outcome.within(1.0)), (1.0, 20));
    assert_eq!((outcome.asked_of_sender, outcome.asked_of_worker, outcome.repairs), (0, 0, 0));
    assert_eq!(outcome.key_frames, 1);
}

#[test]
fn what_five_percent_loss_takes_is_back_before_anybody_sees_it() {
    for seed in 1..=3 {
        let outcome = call(way(0.05), 60, seed);
        println!("{}", describe(&outcome));
        assert!(outcome.lost > 500, "{}", describe(&outcome));
        assert!(outcome.arrived() >= 0.9995, "{}", describe(&outcome));
        assert!(outcome.within(0.99) <= 80, "{}", describe(&outcome));
        assert!(outcome.within(0.999) <= 120, "{}", describe(&outcome));
        assert!(outcome.within(1.0) <= 160, "{}", describe(&outcome));
        assert_eq!(outcome.key_frames, 1, "nothing was given up");
    }
}

#[test]
fn twenty_percent_loss_is_repaired_as_well_only_later() {
    for seed in 1..=3 {
        let outcome = call(way(0.2), 30, seed);
        println!("{}", describe(&outcome));
        // The very first packet of a stream, when lost, is not missed: the key frame that it begins does not count as sent.
        assert!(outcome.arrived() >= 0.998, "{}", describe(&outcome));
        assert!(outcome.within(0.95) <= 160, "{}", describe(&outcome));
        assert!(outcome.within(0.99) <= 320, "{}", describe(&outcome));
        assert!(outcome.key_frames <= 2, "{}", describe(&outcome));
    }
}

#[test]
fn bursts_are_repaired() {
    let burst = Some(Burst { begin: 0.01, end: 0.2 });
    let outcome = call(LinkSettings { burst, ..way(0.0) }, 60, 1);
    println!("{}", describe(&outcome));
    assert!(outcome.arrived() >= 0.999, "{}", describe(&outcome));
    assert!(outcome.within(0.99) <= 250, "{}", describe(&outcome));
    assert_eq!(outcome.key_frames, 1);
}

#[test]
fn what_comes_late_twice_or_out_of_order_is_no_loss() {
    let bent = [
        LinkSettings { reorder: 0.05, reorder_ms: 30.0, ..way(0.0) },
        LinkSettings { duplicate: 0.02, ..way(0.0) },
        LinkSettings { jitter_ms: 200.0, ..way(0.0) },
        LinkSettings { scatter_ms: 200.0, ..way(0.0) },
    ];
    for settings in bent {
        let outcome = call(settings, 20, 1);
        println!("{settings:?}: {}", describe(&outcome));
        assert_eq!(outcome.arrived(), 1.0, "{settings:?}: {}", describe(&outcome));
        assert!(outcome.repairs <= 4 * outcome.sent, "{settings:?}: {}", describe(&outcome));
        assert!(outcome.within(1.0) <= 20 + 2 * 200 + 1, "{settings:?}: {}", describe(&outcome));
        assert_eq!(outcome.key_frames, 1, "{settings:?}: no storm of key frames");
    }
}

#[test]
fn one_seed_gives_one_call() {
    assert_eq!(call(way(0.2), 5, 9), call(way(0.2), 5, 9));
}

fn describe(outcome: &Outcome) -> String {
    format!(
        "{} of {} came; ms until 50 %, 99 %, 99.9 % and all of them were there: {} {} {} {}; {} lost on the ways, {} asked of the sender and \
         {} of the worker, {} repairs came, {} key frames",
        outcome.took.len(),
        outcome.sent,
        outcome.within(0.5),
        outcome.within(0.99),
        outcome.within(0.999),
        outcome.within(1.0),
        outcome.lost,
        outcome.asked_of_sender,
        outcome.asked_of_worker,
        outcome.repairs,
        outcome.key_frames
    )
}
