//! One direction of an emulated network: decides by a random generator that is passed in which datagrams arrive, and when.

use std::time::{Duration, Instant};

use rand::Rng;
use serde::{Deserialize, Serialize};

/// How long one draw of [`LinkSettings::jitter_ms`] holds. A queue in a radio or a router grows and drains over some frames; a draw for
/// each packet, with the order kept, would come out as a constant delay near the largest.
pub const JITTER_HOLD: Duration = Duration::from_millis(100);

/// Loss in bursts (Gilbert's model): in the bad state everything is lost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// Chance that a burst begins with a packet.
    pub begin: f64,
    /// Chance that the packet after a lost one gets through: bursts have a mean length of its reciprocal.
    pub end: f64,
}

/// What one direction does to datagrams. The default does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkSettings {
    /// Chance of each packet to be lost, 0 to 1.
    pub loss: f64,
    /// Loss in bursts, beside the above.
    pub burst: Option<Burst>,
    /// Chance of each packet to arrive twice, the second time right behind the first.
    pub duplicate: f64,
    /// Chance of each packet to be held back by `reorder_ms`, so that later ones overtake it.
    pub reorder: f64,
    /// See `reorder`, milliseconds.
    pub reorder_ms: f64,
    /// Every packet takes this long, milliseconds.
    pub delay_ms: f64,
    /// And up to this much longer, milliseconds, evenly distributed, in the order sent; drawn anew every [`JITTER_HOLD`].
    pub jitter_ms: f64,
    /// And up to this much longer, milliseconds, drawn for each packet: packets overtake each other.
    pub scatter_ms: f64,
    /// Bit/s that pass, with what is inside UDP counted.
    pub rate: Option<u64>,
    /// How long a packet may wait for its turn where there is a rate, milliseconds; what would wait longer is dropped.
    pub queue_ms: f64,
}

/// What a link has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Datagrams that came.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Dropped by chance.
    pub lost: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Sent on twice.
    pub duplicated: u64,
    /// Held back to be overtaken.
    pub reordered: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.lost += other.lost;
        self.overflowed += other.overflowed;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
    }
}

/// When a datagram arrives: not at all, once or twice.
pub type Arrivals = [Option<Instant>; 2];

/// One direction.
#[derive(Debug, Default)]
pub struct Link {
    /// What it does; may be changed between packets.
    pub settings: LinkSettings,
    /// What it has done.
    pub counts: Counts,
    in_burst: bool,
    /// Until when the rate is used up.
    busy: Option<Instant>,
    /// The drawn share of the jitter, and until when it holds.
    jitter: Option<(f64, Instant)>,
    /// The last arrival in order.
    last: Option<Instant>,
}

impl Link {
    /// A link that does this.
    pub fn new(settings: LinkSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes a datagram of `length` bytes at `now`. For one seed and one sequence of packets the answers are the same.
    pub fn admit(&mut self, now: Instant, length: usize, rng: &mut impl Rng) -> Arrivals {
        let settings = self.settings;
        self.counts.packets += 1;
        self.counts.bytes += length as u64;
        let mut chance = |p: f64| p > 0.0 && rng.random_bool(p.clamp(0.0, 1.0));
        if let Some(burst) = settings.burst {
            self.in_burst = if self.in_burst { !chance(burst.end) } else { chance(burst.begin) };
        } else {
            self.in_burst = false;
        }
        if chance(settings.loss) || self.in_burst {
            self.counts.lost += 1;
            return [None, None];
        }
        let duplicate = chance(settings.duplicate);
        let held_back = chance(settings.reorder);
        let Some(through) = self.pass_queue(now, length) else {
            self.counts.overflowed += 1;
            return [None, None];
        };
        let mut at = through + milliseconds(settings.delay_ms);
        if settings.jitter_ms > 0.0 {
            let share = match self.jitter {
                Some((share, until)) if now < until => share,
                _ => {
                    let share = rng.random::<f64>();
                    self.jitter = Some((share, now + JITTER_HOLD));
                    share
                }
            };
            at += milliseconds(settings.jitter_ms * share);
        }
        // What has no reason to be overtaken is not, also when the delay has just become shorter.
        at = self.last.map_or(at, |last| at.max(last));
        self.last = Some(at);
        if settings.scatter_ms > 0.0 {
            at += milliseconds(settings.scatter_ms * rng.random::<f64>());
        }
        if held_back {
            self.counts.reordered += 1;
            at += milliseconds(settings.reorder_ms);
        }
        self.counts.duplicated += u64::from(duplicate);
        [Some(at), duplicate.then_some(at)]
    }

    /// When a packet has been put through at the rate; `None` when it would wait too long.
    fn pass_queue(&mut self, now: Instant, length: usize) -> Option<Instant> {
        let Some(rate) = self.settings.rate else { return Some(now) };
        let begins = self.busy.map_or(now, |busy| busy.max(now));
        if begins - now > milliseconds(self.settings.queue_ms) {
            return None;
        }
        let ends = begins + Duration::from_secs_f64(length as f64 * 8.0 / rate.max(1) as f64);
        self.busy = Some(ends);
        Some(ends)
    }
}

fn milliseconds(ms: f64) -> Duration {
    Duration::from_secs_f64(ms.max(0.0) / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    const PACKETS: usize = 20_000;

    /// Sends a packet every millisecond; when each arrives, in milliseconds from when it was sent.
    fn run(settings: LinkSettings, seed: u64) -> (Vec<Vec<f64>>, Counts) {
        let (start, mut rng) = (Instant::now(), StdRng::seed_from_u64(seed));
        let mut link = Link::new(settings);
        let arrivals = (0..PACKETS).map(|i| {
            let now = start + Duration::from_millis(i as u64);
            let late = |at: Instant| at.saturating_duration_since(now).as_secs_f64() * 1000.0;
            link.admit(now, 1_000, &mut rng).into_iter().flatten().map(late).collect()
        });
        (arrivals.collect(), link.counts)
    }

    #[test]
    fn the_default_does_nothing_and_counts() {
        let (arrivals, counts) = run(LinkSettings::default(), 1);
        assert!(arrivals.iter().all(|at| at[..] == [0.0]));
        let expected = Counts { packets: PACKETS as u64, bytes: 1_000 * PACKETS as u64, ..Counts::default() };
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_seed_gives_one_run_and_another_seed_another() {
        let settings = LinkSettings { loss: 0.2, jitter_ms: 30.0, reorder: 0.1, ..Default::default() };
        assert_eq!(run(settings, 5), run(settings, 5));
        assert_ne!(run(settings, 5), run(settings, 6));
    }

    #[test]
    fn loss_duplicates_and_reordering_come_as_often_as_told() {
        let settings = LinkSettings {
            loss: 0.05,
            duplicate: 0.02,
            reorder: 0.1,
            reorder_ms: 30.0,
            ..Default::default()
        };
        let (arrivals, counts) = run(settings, 2);
        let share = |count: u64| count as f64 / PACKETS as f64;
        assert!((0.045..0.055).contains(&share(counts.lost)), "{counts:?}");
        assert!((0.016..0.022).contains(&share(counts.duplicated)), "{counts:?}");
        assert!((0.085..0.105).contains(&share(counts.reordered)), "{counts:?}");
        let of = |test: fn(&Vec<f64>) -> bool| arrivals.iter().filter(|a| test(a)).count() as u64;
        assert_eq!(of(|a| a.is_empty()), counts.lost);
        assert_eq!(of(|a| a.len() == 2), counts.duplicated);
        assert_eq!(of(|a| a.first() == Some(&30.0)), counts.reordered);
    }

    #[test]
    fn bursts_are_as_long_as_told() {
        let settings = LinkSettings { burst: Some(Burst { begin: 0.01, end: 0.2 }), ..Default::default() };
        let (arrivals, counts) = run(settings, 3);
        let bursts = arrivals.windows(2).filter(|w| !w[0].is_empty() && w[1].is_empty()).count();
        let mean = counts.lost as f64 / bursts as f64;
        assert!((4.0..6.0).contains(&mean), "{mean} packets a burst, 1 / 0.2 told");
        assert!((150..250).contains(&bursts), "{bursts} bursts");
    }

    #[test]
    fn jitter_keeps_the_order_and_scatter_does_not() {
        let order = |settings| {
            let (arrivals, _) = run(settings, 4);
            let at: Vec<f64> = arrivals.iter().enumerate().map(|(i, late)| i as f64 + late[0]).collect();
            (at.windows(2).filter(|w| w[1] < w[0] - 1e-6).count(), arrivals)
        };
        let (overtaken, jitter) =
            order(LinkSettings { delay_ms: 10.0, jitter_ms: 200.0, ..Default::default() });
        assert_eq!(overtaken, 0);
        let late = |test: fn(f64) -> bool| jitter.iter().filter(|a| test(a[0])).count();
        assert_eq!(late(|ms| !(9.999..210.001).contains(&ms)), 0);
        assert!(late(|ms| ms < 60.0) > PACKETS / 20 && late(|ms| ms > 150.0) > PACKETS / 10);
        let (overtaken, _) = order(LinkSettings { scatter_ms: 200.0, ..Default::default() });
        assert!(overtaken > PACKETS / 4, "{overtaken}");
    }

    #[test]
    fn a_rate_passes_what_it_can_and_its_queue_drops_the_rest() {
        // 8 Mbit/s come.
        let settings = LinkSettings { rate: Some(2_000_000), queue_ms: 50.0, ..Default::default() };
        let (arrivals, counts) = run(settings, 5);
        let passed = PACKETS as u64 - counts.overflowed;
        assert!((4_990..5_050).contains(&passed), "{passed} of {PACKETS}, a quarter fits");
        assert!(arrivals.iter().flatten().all(|late| (3.9..54.1).contains(late)));
    }

    #[test]
    fn settings_change_while_it_runs() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(6));
        let mut link = Link::new(LinkSettings { loss: 1.0, ..Default::default() });
        assert_eq!(link.admit(now, 1, &mut rng), [None, None]);
        link.settings = LinkSettings::default();
        assert_eq!(link.admit(now, 1, &mut rng), [Some(now), None]);
    }
}
