//! Rate limits: what exceeds one is refused at once, with the time to wait; the limit of all callers together may be told to queue.
//!
//! | file | what |
//! | --- | --- |
//! | `addresses.rs` | the limit per address, in memory that does not grow |
//! | `bucket.rs` | admits one by one at a rate |
//! | `lease.rs`, `holder.rs`, `party.rs` | how all NUVE nodes share one limit; pure |
//! | `shared.rs` | carries that over bus and log |
//!
//! No IO per request. A service that has been quiet for as long as its bucket takes to fill is forgotten.

pub mod addresses;
pub mod bucket;
pub mod holder;
pub mod lease;
pub mod party;
pub mod shared;

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};
use roomlog_bus::{
    ids::ServiceId,
    rpc::{LimitAsk, LimitGrant, RpcError},
};
use tokio::sync::Semaphore;

use crate::{
    problem::{LOG_AWAY, Problem, RATE_LIMITED},
    settings::NuveSettings,
};
use addresses::{Addresses, Left};
use shared::Pace;

/// Keys of services this node has not heard of are looked for in the journal this often per second, whoever brings them: a new
/// service's first requests need a few, and strangers cannot make more of a journal read than that.
const UNHEARD_PER_S: u32 = 100;

/// A request waits in the queue for so long. 12 s: what the queue takes by default is served within 9, and the answer must be there
/// within the request's 15.
const QUEUE_WITHIN: Duration = Duration::from_secs(12);

/// Whoever is next in the queue looks this often whether the rate has changed.
const PACE_AGAIN: Duration = Duration::from_millis(50);

/// The limits of one node.
pub struct Limits {
    clock: DefaultClock,
    ip: Addresses,
    service: DefaultKeyedRateLimiter<ServiceId>,
    pace: Pace,
    queue: Option<Queue>,
    locate: DefaultDirectRateLimiter,
    unheard: DefaultDirectRateLimiter,
}

/// Requests that wait for the limit of all callers together.
struct Queue {
    /// Whoever holds it is next; tokio's semaphore hands it on in order of arrival.
    turn: Semaphore,
    waiting: AtomicU64,
    /// So many may wait on all nodes together.
    room: u64,
}

/// One waiting request; counted until it is served or its caller gives up.
struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// 0 in a setting means 1: a limit that lets nothing through would be a node that is off.
fn at_least_one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

fn per_second(number: u32) -> Quota {
    Quota::per_second(at_least_one(number))
}

impl Limits {
    /// Those of `settings`, with what paces all callers together.
    pub fn new(settings: &NuveSettings, pace: Pace) -> Self {
        Self {
            clock: DefaultClock::default(),
            ip: Addresses::new(settings.ip_per_s, settings.ip_burst),
            service: RateLimiter::keyed(per_second(settings.service_per_s)),
            pace,
            queue: settings.queue.then(|| Queue {
                turn: Semaphore::new(1),
                waiting: AtomicU64::new(0),
                room: u64::from(settings.queue_demand.saturating_sub(settings.cluster_per_s)),
            }),
            locate: RateLimiter::direct(per_second(settings.locate_per_s)),
            unheard: RateLimiter::direct(per_second(UNHEARD_PER_S)),
        }
    }

    /// One request from `address` with a publishable key, or with a key that opens nothing; what is left to it.
    pub fn ip(&self, address: Option<IpAddr>) -> Result<Left, Problem> {
        let (left, refused) = self.ip.take(self.pace.nanos(), address);
        let Some(wait) = refused else { return Ok(left) };
        let whose = "from this address";
        Err(RATE_LIMITED
            .detail(format!("More requests {whose} than the limit allows."))
            .retry_after(wait.div_ceil(1_000_000_000))
            .limit(left)
            .with("limit", whose))
    }

    /// One request with the secret key of `service`.
    pub fn service(&self, service: &ServiceId) -> Result<(), Problem> {
        self.service.check_key(service).map_err(|until| self.refusal("of this service", until))
    }

    /// One request of anybody. With the queue on it waits for its turn; once too many wait, or it has waited too long, it is refused.
    pub async fn cluster(&self) -> Result<(), Problem> {
        let whose = "of all callers together";
        self.pace.came();
        let Some(queue) = &self.queue else {
            return self.pace.admit().map_err(|wait| self.not_admitted(whose, wait));
        };
        let before = queue.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&queue.waiting);
        // Of what may wait on all nodes each has the part that it has of the rate.
        if before >= self.pace.part_of(queue.room) {
            self.pace.hurry();
            return Err(RATE_LIMITED
                .detail(format!("More requests {whose} wait than the queue takes."))
                .retry_after(1)
                .limit(self.pace.none_left())
                .with("limit", whose));
        }
        let served = async {
            let _turn = queue.turn.acquire().await.expect("the semaphore is never closed");
            while let Err(wait) = self.pace.admit() {
                tokio::time::sleep(wait.min(PACE_AGAIN)).await;
            }
        };
        tokio::time::timeout(QUEUE_WITHIN, served).await.map_err(|_| {
            RATE_LIMITED
                .detail(format!("The request has waited {QUEUE_WITHIN:?} for its turn."))
                .retry_after(1)
                .limit(self.pace.none_left())
                .with("limit", whose)
        })
    }

    /// Requests waiting for their turn.
    pub fn waiting(&self) -> u64 {
        self.queue.as_ref().map_or(0, |queue| queue.waiting.load(Ordering::Relaxed))
    }

    /// What paces all callers together.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Another node asks for a share of the limit.
    pub fn grant(&self, ask: &LimitAsk) -> Result<LimitGrant, RpcError> {
        self.pace.grant(ask)
    }

    /// One `locate`.
    pub fn locate(&self) -> Result<(), Problem> {
        self.locate.check().map_err(|until| self.refusal("for where rooms are", until))
    }

    /// One look into the journal for a service that this node has not heard of.
    pub fn unheard(&self) -> Result<(), Problem> {
        self.unheard.check().map_err(|until| self.refusal("of unknown services", until))
    }

    /// Forgets who has been quiet. To be called now and then.
    pub fn forget_quiet(&self) {
        self.service.retain_recent();
    }

    fn not_admitted(&self, whose: &str, wait: Duration) -> Problem {
        self.pace.hurry();
        if self.pace.is_cut_off() {
            return LOG_AWAY
                .detail("This node cannot reach the others that it shares the rate limit with.")
                .retry_after(1);
        }
        // A share may be another in a moment: nobody is sent away for longer than it is sure to last.
        let wait = wait.min(Duration::from_secs(1));
        RATE_LIMITED
            .detail(format!("More requests {whose} than the limit allows."))
            .retry_after(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
            .limit(self.pace.none_left())
            .with("limit", whose)
    }

    fn refusal(
        &self,
        whose: &str,
        until: governor::NotUntil<<DefaultClock as governor::clock::Clock>::Instant>,
    ) -> Problem {
        let wait = until.wait_time_from(self.clock.now());
        RATE_LIMITED
            .detail(format!("More requests {whose} than the limit allows."))
            .retry_after(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
            .with("limit", whose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many requests at once; which were served, when, and how long the refused ones waited at most.
    async fn at_once(count: u32) -> (Vec<u32>, Duration, Duration) {
        let settings = NuveSettings { queue: true, ..NuveSettings::default() };
        let limits = Limits::new(&settings, Pace::alone(settings.cluster_per_s));
        let started = tokio::time::Instant::now();
        let served = std::sync::Mutex::new(Vec::new());
        let refused_after = std::sync::Mutex::new(Duration::ZERO);
        let all = (0..count).map(|i| {
            let (limits, served, refused_after) = (&limits, &served, &refused_after);
            async move {
                match limits.cluster().await {
                    Ok(()) => served.lock().unwrap().push(i),
                    Err(refused) => {
                        assert_eq!(refused.retry_after_s, Some(1));
                        let mut most = refused_after.lock().unwrap();
                        *most = started.elapsed().max(*most);
                    }
                }
            }
        });
        futures::future::join_all(all).await;
        assert_eq!(limits.waiting(), 0);
        (served.into_inner().unwrap(), started.elapsed(), refused_after.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn three_thousand_at_once_are_all_served_in_order_at_the_pace() {
        let (served, within, _) = at_once(3_000).await;
        assert_eq!(served, (0..3_000).collect::<Vec<_>>());
        // 70 of them are saved up.
        assert!((2_900..3_000).contains(&within.as_millis()), "{within:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_more_than_the_queue_takes_is_refused_at_once_while_the_rest_is_served() {
        let (served, within, refused_after) = at_once(12_000).await;
        // Nine thousand wait, seventy were served meanwhile.
        assert!((9_000..=9_070).contains(&served.len()), "{}", served.len());
        assert!(served.is_sorted());
        assert_eq!(refused_after, Duration::ZERO);
        assert!((8_900..9_100).contains(&within.as_millis()), "{within:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_leaves_the_queue_to_the_others() {
        let settings =
            NuveSettings { cluster_per_s: 1, queue: true, queue_demand: 4, ..NuveSettings::default() };
        let limits = Limits::new(&settings, Pace::alone(settings.cluster_per_s));
        limits.cluster().await.unwrap();
        for _ in 0..50 {
            let gone = tokio::time::timeout(Duration::from_millis(1), limits.cluster());
            assert!(gone.await.is_err(), "it waits");
        }
        assert_eq!(limits.waiting(), 0);
        let all = futures::future::join_all((0..3).map(|_| limits.cluster())).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
    }
}
