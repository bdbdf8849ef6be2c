//! Transport-wide congestion control, receiving side: tells a sender when each of its packets arrived
//! (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::rtp::Unroller;

/// Time between two feedbacks. Chrome's estimator expects 50 to 250 ms; 100 ms costs about 1 % of a small uplink.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// Packets one feedback may tell of. 400 packets at 2 bytes a delta fit one datagram; a larger gap is left out, and the sender counts
/// it as lost.
const MAX_PACKETS: u64 = 400;

/// Unit of the reference time.
const REFERENCE_UNIT: u128 = 64_000;
/// Unit of an arrival delta, in microseconds.
const DELTA_UNIT: i64 = 250;

/// Records arrivals of one transport.
#[derive(Debug)]
pub struct TwccReceiver {
    epoch: Instant,
    unroller: Unroller,
    /// First sequence number of the next feedback.
    base: Option<u64>,
    /// Arrivals since the last feedback, by sequence number; nearly all come in order.
    arrivals: VecDeque<(u64, Instant)>,
    feedbacks: u8,
    last: Option<Instant>,
}

impl TwccReceiver {
    /// An empty record; `epoch` is where reference times count from.
    pub fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            unroller: Unroller::default(),
            base: None,
            arrivals: VecDeque::new(),
            feedbacks: 0,
            last: None,
        }
    }

    /// Notes the arrival of a packet.
    pub fn arrived(&mut self, now: Instant, sequence: u16) {
        let place = self.unroller.unroll(sequence);
        if self.base.is_some_and(|base| place + MAX_PACKETS < base) {
            return;
        }
        // A packet from before the last feedback is told of late rather than never, as reordering should not look like loss.
        if self.base.is_none_or(|base| place < base) {
            self.base = Some(place);
        }
        let after = self.arrivals.iter().rposition(|(before, _)| *before <= place);
        if after.is_none_or(|after| self.arrivals[after].0 < place) {
            self.arrivals.insert(after.map_or(0, |after| after + 1), (place, now));
        }
    }

    /// When the next feedback is due.
    pub fn next_due(&self) -> Option<Instant> {
        let (_, first) = self.arrivals.front()?;
        Some(self.last.unwrap_or(*first) + INTERVAL)
    }

    /// The body of a feedback packet behind the SSRCs; `None` when nothing has arrived.
    pub fn feedback(&mut self, now: Instant) -> Option<Vec<u8>> {
        let &(first_arrived, first_at) = self.arrivals.front()?;
        let &(highest, _) = self.arrivals.back()?;
        let mut base = self.base?.min(first_arrived);
        if first_arrived - base >= MAX_PACKETS {
            base = first_arrived;
        }
        let end = (highest + 1).min(base + MAX_PACKETS);
        let reference = first_at.saturating_duration_since(self.epoch).as_micros() / REFERENCE_UNIT;

        let mut symbols = Vec::with_capacity((end - base) as usize);
        let mut deltas = Vec::new();
        // Microseconds since the epoch up to which deltas have been counted.
        let mut counted = (reference * REFERENCE_UNIT) as i64;
        for place in base..end {
            let Some(&(_, at)) = self.arrivals.front().filter(|(arrived, _)| *arrived == place) else {
                symbols.push(0u8);
                continue;
            };
            self.arrivals.pop_front();
            let micros = at.saturating_duration_since(self.epoch).as_micros() as i64;
            // Rounding against the running sum keeps the error of one delta out of the next.
            let delta = (micros - counted).div_euclid(DELTA_UNIT);
            if let Ok(small) = u8::try_from(delta) {
                symbols.push(1);
                deltas.push(small);
            } else {
                let large = delta.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as i16;
                symbols.push(2);
                deltas.extend_from_slice(&large.to_be_bytes());
            }
            counted += delta * DELTA_UNIT;
        }

        let mut out = Vec::with_capacity(8 + symbols.len() / 4 + deltas.len());
        out.extend_from_slice(&(base as u16).to_be_bytes());
        out.extend_from_slice(&(symbols.len() as u16).to_be_bytes());
        out.extend_from_slice(&((reference as u32) << 8 | u32::from(self.feedbacks)).to_be_bytes());
        write_chunks(&symbols, &mut out);
        out.extend_from_slice(&deltas);

        self.feedbacks = self.feedbacks.wrapping_add(1);
        self.base = Some(end);
        self.last = Some(now);
        Some(out)
    }
}

/// Packet status chunks: runs of equal symbols where they pay, otherwise vectors of seven two-bit symbols (§3.1.3, §3.1.4).
fn write_chunks(mut symbols: &[u8], out: &mut Vec<u8>) {
    while let Some(&first) = symbols.first() {
        let run = symbols.iter().take_while(|s| **s == first).take(0x1fff).count();
        let chunk = if run >= 7 || run == symbols.len() {
            symbols = &symbols[run..];
            u16::from(first) << 13 | run as u16
        } else {
            let taken = symbols.len().min(7);
            let vector =
                symbols[..taken].iter().enumerate().fold(0, |v, (i, s)| v | u16::from(*s) << (12 - 2 * i));
            symbols = &symbols[taken..];
            0xc000 | vector
        };
        out.extend_from_slice(&chunk.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtc_rtcp::transport_feedbacks::transport_layer_cc::{
        PacketStatusChunk, SymbolTypeTcc, TransportLayerCc,
    };
    use rtc_shared::marshal::Unmarshal;

    /// Reads a feedback with the independent parser of the rtc crates: `(sequence, microseconds)` of what arrived.
    fn read(body: &[u8]) -> (u16, Vec<(u16, i64)>) {
        let mut packet = Vec::new();
        crate::rtcp::write_transport_cc(&mut packet, 1, 2, body);
        let parsed = TransportLayerCc::unmarshal(&mut packet.as_slice()).unwrap();
        let mut symbols = Vec::new();
        for chunk in &parsed.packet_chunks {
            match chunk {
                PacketStatusChunk::RunLengthChunk(run) => {
                    symbols
                        .extend(std::iter::repeat_n(run.packet_status_symbol, usize::from(run.run_length)));
                }
                PacketStatusChunk::StatusVectorChunk(vector) => {
                    symbols.extend(vector.symbol_list.iter().copied())
                }
            }
        }
        symbols.truncate(usize::from(parsed.packet_status_count));
        let mut deltas = parsed.recv_deltas.iter();
        let mut at = i64::from(parsed.reference_time) * 64_000;
        let mut seen = Vec::new();
        for (i, symbol) in symbols.iter().enumerate() {
            if *symbol != SymbolTypeTcc::PacketNotReceived {
                at += deltas.next().unwrap().delta;
                seen.push((parsed.base_sequence_number.wrapping_add(i as u16), at));
            }
        }
        assert!(deltas.next().is_none(), "as many deltas as arrivals");
        (parsed.packet_status_count, seen)
    }

    #[test]
    fn arrivals_come_out_as_they_were_over_gaps_and_the_wrap() {
        let epoch = Instant::now();
        let mut receiver = TwccReceiver::new(epoch);
        let arrivals: Vec<(u16, i64)> = [
            (65530, 100_000),
            (65531, 100_250),
            (65535, 101_000),
            (0, 99_000),
            (1, 250_000),
            (30, 9_000_000),
            (31, 9_000_250),
        ]
        .into();
        for (sequence, micros) in &arrivals {
            receiver.arrived(epoch + Duration::from_micros(*micros as u64), *sequence);
        }
        let body = receiver.feedback(epoch + Duration::from_secs(10)).unwrap();
        let (count, seen) = read(&body);
        assert_eq!(count, 38);
        // One delta cannot span 8.75 s (at most 8.19 s): that packet is told of as early as possible.
        assert_eq!(&seen[..5], &arrivals[..5]);
        assert!(receiver.feedback(epoch + Duration::from_secs(10)).is_none());
        receiver.arrived(epoch + Duration::from_secs(11), 33);
        let (count, seen) = read(&receiver.feedback(epoch + Duration::from_secs(11)).unwrap());
        assert_eq!((count, seen), (2, vec![(33, 11_000_000)]), "32 is told of as missing");
    }

    #[test]
    fn a_long_stream_is_told_of_completely() {
        let epoch = Instant::now();
        let mut receiver = TwccReceiver::new(epoch);
        let mut told = Vec::new();
        let mut sent = Vec::new();
        for i in 0..5_000u64 {
            let at = epoch + Duration::from_millis(i);
            if i % 13 != 0 {
                receiver.arrived(at, (60_000 + i) as u16);
                sent.push(((60_000 + i) as u16, i as i64 * 1000));
            }
            if receiver.next_due().is_some_and(|due| due <= at) {
                told.extend(read(&receiver.feedback(at).unwrap()).1);
            }
        }
        told.extend(read(&receiver.feedback(epoch + Duration::from_secs(6)).unwrap()).1);
        assert_eq!(told, sent);
    }
}
