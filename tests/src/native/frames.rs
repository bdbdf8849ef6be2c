//! What native peers send each other instead of pictures and voice: numbered packets that say of what they are a part, so that the
//! receiver can tell which frames it could have decoded.
//!
//! ```text
//! video  VP8 descriptor with picture id and TL0PICIDX (RFC 7741 §4.2), 5 bytes | VP8 frame header (§4.3), 10 bytes | label | filler
//! audio  an Opus TOC byte (RFC 6716 §3.1) | label | filler
//! label  magic | frame number, 4 bytes | packet of the frame, 1 | packets of the frame, 1 | 1 for a key frame
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

const MAGIC: [u8; 4] = *b"rlog";
const LABEL: usize = 11;
const VP8_LABEL_AT: usize = 15;
const OPUS_LABEL_AT: usize = 1;
/// Bytes of a video packet's payload: fits every path's MTU with room for SRTP and extensions.
const VIDEO_PACKET: usize = 1_000;
/// Bytes of a voice packet's payload: 32 kbit/s in packets of 20 ms.
const AUDIO_PACKET: usize = 80;
/// Packets of a key frame and of any other.
const KEY_PACKETS: u8 = 8;
const DELTA_PACKETS: u8 = 2;
/// Gaps below this are ordinary between two video frames, and not kept.
const GAP_KEPT_FROM: Duration = Duration::from_millis(25);
/// Gaps that are kept; the oldest are forgotten.
const GAPS_KEPT: usize = 20_000;
/// A frame this many frames behind the newest whose packets are not all there is counted as broken; retransmissions come sooner.
const LATE_FRAMES: u32 = 30;

/// Audio or video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Opus-like.
    Audio,
    /// VP8-like.
    Video,
}

impl Kind {
    /// As signalling calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Video => "video",
        }
    }

    /// Time from frame to frame.
    pub fn interval(self) -> Duration {
        match self {
            Self::Audio => Duration::from_millis(20),
            Self::Video => Duration::from_millis(33),
        }
    }

    /// RTP timestamp units from frame to frame.
    pub fn ticks(self) -> u32 {
        match self {
            Self::Audio => 960,
            Self::Video => 2_970,
        }
    }
}

/// The payloads of one frame's packets.
pub fn frame(kind: Kind, number: u32, key: bool) -> Vec<Vec<u8>> {
    let (count, size, at) = match kind {
        Kind::Audio => (1, AUDIO_PACKET, OPUS_LABEL_AT),
        Kind::Video => (if key { KEY_PACKETS } else { DELTA_PACKETS }, VIDEO_PACKET, VP8_LABEL_AT),
    };
    (0..count)
        .map(|packet| {
            let mut bytes = vec![number as u8; size];
            match kind {
                // CELT, fullband, 20 ms, one frame.
                Kind::Audio => bytes[0] = 31 << 3,
                Kind::Video => vp8_head(&mut bytes, number, packet == 0, key),
            }
            let label = &mut bytes[at..at + LABEL];
            label[..4].copy_from_slice(&MAGIC);
            label[4..8].copy_from_slice(&number.to_be_bytes());
            label[8..].copy_from_slice(&[packet, count, u8::from(key || kind == Kind::Audio)]);
            bytes
        })
        .collect()
}

fn vp8_head(bytes: &mut [u8], number: u32, first: bool, key: bool) {
    let picture = (number & 0x7fff) as u16 | 0x8000;
    bytes[0] = if first { 0x90 } else { 0x80 };
    bytes[1] = 0xc0;
    bytes[2..4].copy_from_slice(&picture.to_be_bytes());
    bytes[4] = number as u8;
    // A frame tag whose lowest bit is 0 for a key frame, the start code, 640 by 360 (RFC 6386 §9.1).
    bytes[5..15].copy_from_slice(&[u8::from(!key) | 0x10, 2, 0, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01]);
}

/// What has come of one producer.
#[derive(Debug, Clone)]
pub struct Received {
    kind: Kind,
    frames: BTreeMap<u32, u64>,
    first_key: Option<u32>,
    newest: u32,
    complete: u64,
    broken: u64,
    packets: u64,
    foreign: u64,
    early: u64,
    last: Option<Instant>,
    gaps: VecDeque<(Instant, Duration)>,
}

impl Received {
    /// Nothing yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            frames: BTreeMap::new(),
            first_key: None,
            newest: 0,
            complete: 0,
            broken: 0,
            packets: 0,
            foreign: 0,
            early: 0,
            last: None,
            gaps: VecDeque::new(),
        }
    }

    /// Takes in the payload of a packet.
    pub fn packet(&mut self, now: Instant, payload: &[u8]) {
        self.packets += 1;
        if let Some(last) = self.last.replace(now) {
            let gap = now.saturating_duration_since(last);
            if gap >= GAP_KEPT_FROM {
                self.gaps.push_back((now, gap));
                if self.gaps.len() > GAPS_KEPT {
                    self.gaps.pop_front();
                }
            }
        }
        let at = if self.kind == Kind::Audio { OPUS_LABEL_AT } else { VP8_LABEL_AT };
        let Some(label) = payload.get(at..at + LABEL).filter(|label| label[..4] == MAGIC) else {
            self.foreign += 1;
            return;
        };
        let number = u32::from_be_bytes([label[4], label[5], label[6], label[7]]);
        let (packet, count, key) = (label[8], label[9], label[10] == 1);
        let Some(first) = self.first_key.or_else(|| key.then_some(number)) else {
            self.early += 1;
            return;
        };
        self.first_key = Some(first);
        self.newest = self.newest.max(number);
        if number < first || self.newest - number > LATE_FRAMES {
            return;
        }
        // The bits of a frame: which packets are here, and in the upper half which there are.
        let there = self.frames.entry(number).or_insert(((1u64 << count) - 1) << 32);
        let before = is_whole(*there);
        *there |= 1 << packet;
        if !before && is_whole(*there) {
            self.complete += 1;
        }
        while let Some((&oldest, &bits)) = self.frames.first_key_value()
            && self.newest - oldest > LATE_FRAMES
        {
            self.frames.remove(&oldest);
            self.broken += u64::from(!is_whole(bits));
        }
    }

    /// Audio or video.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Packets that came.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets that no native peer has sent: more than none is a fault.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Packets that came before the first key frame, which a decoder throws away.
    pub fn early(&self) -> u64 {
        self.early
    }

    /// Frames complete, counted from the first key frame on.
    pub fn complete(&self) -> u64 {
        self.complete
    }

    /// Of the frames sent from the first key frame on up to the newest, the share that came whole; the newest may still be on its way.
    pub fn share(&self) -> f64 {
        match self.first_key {
            None => 0.0,
            Some(first) => self.complete as f64 / f64::from((self.newest - first).max(1)),
        }
    }

    /// Whether this plays: at least `frames` have come whole, and 95 % of all from the first key frame on.
    pub fn decodes(&self, frames: u64) -> bool {
        self.complete >= frames && self.share() >= 0.95 && self.foreign == 0
    }

    /// The longest time without a packet that ended after `mark` or has not ended; `None` before the first packet.
    pub fn largest_gap_since(&self, mark: Instant, now: Instant) -> Option<Duration> {
        let open = now.saturating_duration_since(self.last?);
        let closed = self.gaps.iter().filter(|(end, _)| *end > mark).map(|(_, gap)| *gap).max();
        Some(closed.unwrap_or_default().max(open))
    }
}

fn is_whole(bits: u64) -> bool {
    bits as u32 == (bits >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(frames: &[(u32, bool)], skip: &[(u32, usize)]) -> Received {
        let mut got = Received::new(Kind::Video);
        let start = Instant::now();
        for (number, key) in frames {
            for (i, packet) in frame(Kind::Video, *number, *key).iter().enumerate() {
                if !skip.contains(&(*number, i)) {
                    got.packet(start + Kind::Video.interval() * *number, packet);
                }
            }
        }
        got
    }

    #[test]
    fn frames_count_from_the_first_key_frame_and_only_when_whole() {
        let frames: Vec<(u32, bool)> = (0..200).map(|n| (n, n == 50)).collect();
        let whole = receive(&frames, &[]);
        assert_eq!((whole.complete(), whole.early(), whole.foreign()), (150, 100, 0));
        assert!(whole.decodes(150) && !whole.decodes(151));
        let lost: Vec<(u32, usize)> = (60..80).map(|n| (n, 1)).collect();
        let holes = receive(&frames, &lost);
        assert_eq!((holes.complete(), holes.broken), (130, 20));
        assert!(!holes.decodes(100), "{}", holes.share());
        assert!(!receive(&frames[..50], &[]).decodes(0), "without a key frame nothing plays");
    }

    #[test]
    fn gaps_are_known_by_when_they_ended_and_an_open_one_counts() {
        let start = Instant::now();
        let mut got = Received::new(Kind::Audio);
        for ms in [0, 20, 120, 140] {
            got.packet(start + Duration::from_millis(ms), &frame(Kind::Audio, ms as u32, true)[0]);
        }
        let gap = |since, now| {
            got.largest_gap_since(start + Duration::from_millis(since), start + Duration::from_millis(now))
        };
        assert_eq!(gap(0, 150), Some(Duration::from_millis(100)));
        assert_eq!(gap(130, 150), Some(Duration::from_millis(10)));
        assert_eq!(gap(130, 900), Some(Duration::from_millis(760)));
    }
}
