//! What a consumer has sent and can send again.
//!
//! With RTX only the incoming packet is kept, shared among all consumers of the producer, and the retransmission is written anew on
//! its own SSRC. Without RTX the same sequence number must never go out with other bytes (GCM nonce), so the encrypted packet is kept.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use roomlog_bus::ortc::MediaKind;

use crate::{consumer::Outgoing, rtp::RtpHeader};

/// Packets kept for video: 1024 are more than a second at 8 Mbit/s, and a repair later than a second comes too late to be shown.
const VIDEO_PACKETS: usize = 1024;

/// Packets kept for audio: 64 packets of 20 ms are more than a second.
const AUDIO_PACKETS: usize = 64;

/// Older packets are not sent again.
const MAX_AGE: Duration = Duration::from_secs(2);

/// A packet is not sent again within this time, since the first retransmission is still on its way; the round trip time if known.
pub const DEFAULT_RESEND: Duration = Duration::from_millis(40);

/// How often one packet is sent again: as often as we ask for one ourselves. A client that asks more often has no use for it, and
/// without an end one NACK every 10 ms would make a stream a hundred times as wide.
pub const MAX_RESENDS: u8 = crate::nack::MAX_ATTEMPTS;

/// A packet that went out so often beside the first time is not sent again because feedback misses it: what is only late, as where delays
/// differ from packet to packet, is missed as well, and a loss that holds on is the client's to tell.
const FEEDBACK_RESENDS: u8 = 2;

/// When and how often a packet was sent again.
#[derive(Debug, Clone, Copy, Default)]
struct Resends {
    last: Option<Instant>,
    count: u8,
}

/// A decrypted incoming packet.
#[derive(Debug)]
pub struct Stored {
    /// The whole packet.
    pub bytes: Vec<u8>,
    /// Where its parts lie.
    pub header: RtpHeader,
}

/// One packet that went out.
#[derive(Debug, Clone)]
pub struct Sent {
    at: Instant,
    resent: Resends,
    /// The transport-wide sequence number under which it went out last.
    transport_cc: Option<u16>,
    /// What came in.
    pub packet: Rc<Stored>,
    /// How it went out.
    pub how: Outgoing,
}

impl Sent {
    /// Just sent, under this transport-wide sequence number if any.
    pub fn new(now: Instant, packet: Rc<Stored>, how: Outgoing, transport_cc: Option<u16>) -> Self {
        Self { at: now, resent: Resends::default(), transport_cc, packet, how }
    }
}

/// What to send when a packet is asked for again.
#[derive(Debug)]
pub enum Again {
    /// Write it on the RTX SSRC.
    Rtx(Sent),
    /// Send these encrypted bytes once more.
    Identical(Vec<u8>),
}

#[derive(Debug)]
enum Slot {
    Rtx(Sent),
    Protected { sequence: u16, at: Instant, resent: Resends, bytes: Vec<u8> },
}

/// A ring of sent packets, indexed by sequence number.
#[derive(Debug)]
pub struct History {
    slots: Vec<Option<Slot>>,
    capacity: usize,
    rtx: bool,
}

impl History {
    /// For a consumer of one kind, with or without RTX.
    pub fn new(kind: MediaKind, rtx: bool) -> Self {
        let capacity = match kind {
            MediaKind::Audio => AUDIO_PACKETS,
            MediaKind::Video => VIDEO_PACKETS,
        };
        Self { slots: Vec::new(), capacity, rtx }
    }

    /// Keeps a packet.
    pub fn push(&mut self, sequence: u16, sent: impl FnOnce() -> Sent, protected: &[u8]) {
        if self.slots.is_empty() {
            self.slots.resize_with(self.capacity, || None);
        }
        let sent = sent();
        let index = usize::from(sequence) % self.capacity;
        self.slots[index] = Some(if self.rtx {
            Slot::Rtx(sent)
        } else {
            Slot::Protected { sequence, at: sent.at, resent: Resends::default(), bytes: protected.to_vec() }
        });
    }

    /// Whether a packet that feedback misses is to be sent again: it went out last under that transport-wide sequence number, so nothing of
    /// it is under way.
    pub fn is_missed(&self, sequence: u16, transport_cc: u16) -> bool {
        let slot = self.slots.get(usize::from(sequence) % self.capacity).and_then(Option::as_ref);
        matches!(slot, Some(Slot::Rtx(s))
            if s.how.sequence == sequence && s.transport_cc == Some(transport_cc) && s.resent.count < FEEDBACK_RESENDS)
    }

    /// Notes that a packet went out again, under this transport-wide sequence number if any.
    pub fn went_again(&mut self, sequence: u16, transport_cc: Option<u16>) {
        let slot = self.slots.get_mut(usize::from(sequence) % self.capacity).and_then(Option::as_mut);
        if let Some(Slot::Rtx(sent)) = slot
            && sent.how.sequence == sequence
        {
            sent.transport_cc = transport_cc;
        }
    }

    /// What to send for a sequence number that is asked for again, if it is there and not just under way.
    pub fn again(&mut self, now: Instant, sequence: u16, pause: Duration) -> Option<Again> {
        let slot = self.slots.get_mut(usize::from(sequence) % self.capacity)?.as_mut()?;
        let (found, at, resent) = match slot {
            Slot::Rtx(sent) => (sent.how.sequence, sent.at, &mut sent.resent),
            Slot::Protected { sequence, at, resent, .. } => (*sequence, *at, resent),
        };
        let lately = resent.last.is_some_and(|last| now.saturating_duration_since(last) < pause);
        let enough = resent.count >= MAX_RESENDS;
        if found != sequence || lately || enough || now.saturating_duration_since(at) > MAX_AGE {
            return None;
        }
        *resent = Resends { last: Some(now), count: resent.count + 1 };
        Some(match slot {
            Slot::Rtx(sent) => Again::Rtx(sent.clone()),
            Slot::Protected { bytes, .. } => Again::Identical(bytes.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtp::{HeaderWriter, NewHeader};

    fn push(history: &mut History, now: Instant, sequence: u16) {
        let header = NewHeader { marker: false, payload_type: 96, sequence: 1, timestamp: 2, ssrc: 3 };
        let mut bytes = Vec::new();
        HeaderWriter::new(&mut bytes, &header).finish();
        let header = RtpHeader::parse(&bytes).unwrap();
        let packet = Rc::new(Stored { bytes, header });
        let how =
            Outgoing { marker: false, payload_type: 96, sequence, timestamp: 5, vp8: Default::default() };
        history.push(sequence, || Sent::new(now, packet, how, Some(sequence)), &sequence.to_be_bytes());
    }

    #[test]
    fn a_packet_is_sent_again_so_often_and_no_more() {
        let now = Instant::now();
        for rtx in [true, false] {
            let mut history = History::new(MediaKind::Video, rtx);
            push(&mut history, now, 7);
            let again = (0..100u32)
                .filter(|i| history.again(now + DEFAULT_RESEND * *i / 2, 7, DEFAULT_RESEND / 2).is_some());
            assert_eq!(again.count(), usize::from(MAX_RESENDS));
        }
    }

    #[test]
    fn packets_are_found_over_the_wrap_until_overwritten_or_old() {
        let now = Instant::now();
        let mut history = History::new(MediaKind::Video, true);
        for i in 0..2_000u16 {
            push(&mut history, now, i.wrapping_sub(500));
        }
        let newest = 1_499;
        let sequence = |again: Option<Again>| match again {
            Some(Again::Rtx(sent)) => Some(sent.how.sequence),
            _ => None,
        };
        assert_eq!(sequence(history.again(now, newest, DEFAULT_RESEND)), Some(newest));
        assert_eq!(sequence(history.again(now, newest - 1023, DEFAULT_RESEND)), Some(newest - 1023));
        assert_eq!(sequence(history.again(now, newest - 1024, DEFAULT_RESEND)), None, "overwritten");
        assert_eq!(
            sequence(history.again(now + MAX_AGE + DEFAULT_RESEND, newest, DEFAULT_RESEND)),
            None,
            "too old"
        );
    }

    #[test]
    fn a_packet_under_way_is_not_sent_once_more() {
        let now = Instant::now();
        let mut history = History::new(MediaKind::Audio, false);
        push(&mut history, now, 7);
        assert!(
            matches!(history.again(now, 7, DEFAULT_RESEND), Some(Again::Identical(bytes)) if bytes == [0, 7])
        );
        assert!(history.again(now + DEFAULT_RESEND / 2, 7, DEFAULT_RESEND).is_none());
        assert!(history.again(now + DEFAULT_RESEND, 7, DEFAULT_RESEND).is_some());
    }
}
