//! Sequence numbers of a consumer: without a gap, although the worker leaves packets out and changes between streams.

use std::collections::VecDeque;

/// Left-out packets that are remembered one by one, so that late packets from before them still find their place.
const REMEMBERED: usize = 256;

/// Maps unrolled incoming numbers to outgoing ones.
#[derive(Debug)]
pub struct SequenceRewriter {
    /// The first incoming number that maps at all.
    from: u64,
    /// `outgoing = incoming - from + to - (left out between)`.
    to: u64,
    highest_in: u64,
    highest_out: u64,
    left_out: VecDeque<u64>,
}

impl SequenceRewriter {
    /// The first packet sent will get `first`.
    pub fn new(first: u16) -> Self {
        let first = u64::from(first);
        Self {
            from: u64::MAX,
            to: first,
            highest_in: 0,
            highest_out: first.wrapping_sub(1),
            left_out: VecDeque::new(),
        }
    }

    /// A new stream, or the same after a pause, begins with `incoming`.
    pub fn sync(&mut self, incoming: u64) {
        self.from = incoming;
        self.to = self.highest_out.wrapping_add(1);
        self.highest_in = incoming.wrapping_sub(1);
        self.left_out.clear();
    }

    /// The outgoing number for a packet, and whether it is the newest; `None` for one from before the last sync.
    pub fn map(&mut self, incoming: u64) -> Option<(u64, bool)> {
        if incoming < self.from {
            return None;
        }
        let newest = self.highest_in == u64::MAX || incoming > self.highest_in;
        let before = self.left_out.iter().rev().skip_while(|&&left| left > incoming).count() as u64;
        if !newest && self.left_out.contains(&incoming) {
            return None;
        }
        let outgoing = incoming - self.from + self.to - before;
        if newest {
            self.highest_in = incoming;
            self.highest_out = outgoing;
        }
        Some((outgoing, newest))
    }

    /// A packet is not sent. Only the newest can be left out without a gap; a late one may as well be missing.
    pub fn leave_out(&mut self, incoming: u64) {
        if incoming < self.from || (self.highest_in != u64::MAX && incoming <= self.highest_in) {
            return;
        }
        self.highest_in = incoming;
        self.left_out.push_back(incoming);
        if self.left_out.len() > REMEMBERED
            && let Some(oldest) = self.left_out.pop_front()
        {
            // Everything up to there is too old to come: what lies behind keeps its numbers by moving both ends.
            let kept = oldest + 1 - self.from;
            self.to += kept - 1;
            self.from = oldest + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_gap_over_syncs_and_left_out_packets() {
        let mut rewriter = SequenceRewriter::new(100);
        assert_eq!(rewriter.map(5), None, "before the first sync");
        rewriter.sync(1000);
        assert_eq!(rewriter.map(1000), Some((100, true)));
        rewriter.leave_out(1001);
        assert_eq!(rewriter.map(1003), Some((102, true)));
        assert_eq!(rewriter.map(1002), Some((101, false)), "late");
        assert_eq!(rewriter.map(1001), None, "left out stays left out");
        assert_eq!(rewriter.map(999), None);
        rewriter.sync(50);
        assert_eq!(rewriter.map(50), Some((103, true)));
    }

    #[test]
    fn incoming_losses_stay_visible() {
        let mut rewriter = SequenceRewriter::new(0);
        rewriter.sync(10);
        assert_eq!(rewriter.map(10), Some((0, true)));
        assert_eq!(rewriter.map(13), Some((3, true)));
    }

    #[test]
    fn many_left_out_packets_do_not_shift_the_others() {
        let mut rewriter = SequenceRewriter::new(0);
        rewriter.sync(1);
        let mut expected = 0;
        for incoming in 1..5_000 {
            if incoming % 3 == 0 {
                rewriter.leave_out(incoming);
            } else {
                assert_eq!(rewriter.map(incoming), Some((expected, true)), "{incoming}");
                expected += 1;
            }
        }
    }
}
