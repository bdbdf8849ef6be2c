//! Rate limits: what exceeds one is refused at once, with the time to wait; the limit of all callers together may be told to queue.
//!
//! Token buckets in memory, no IO per request. An address or a service that has been quiet for as long as its bucket takes to fill is
//! forgotten, and there are never more than [`MAX_TRACKED`] of them.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
};

use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};
use roomlog_bus::ids::ServiceId;
use tokio::sync::Semaphore;

use crate::{
    problem::{Problem, RATE_LIMITED},
    settings::NuveSettings,
};

/// Addresses tracked at most: 100 000 at under 100 bytes each are 10 MB. Beyond, quiet ones are forgotten first; if none is quiet,
/// strangers share one bucket.
const MAX_TRACKED: usize = 100_000;

/// Keys of services this node has not heard of are looked for in the journal this often per second, whoever brings them: a new
/// service's first requests need a few, and strangers cannot make more of a journal read than that.
const UNHEARD_PER_S: u32 = 100;

/// The limits of one node.
pub struct Limits {
    clock: DefaultClock,
    ip: DefaultKeyedRateLimiter<Option<IpAddr>>,
    service: DefaultKeyedRateLimiter<ServiceId>,
    cluster: DefaultDirectRateLimiter,
    queue: Option<Queue>,
    locate: DefaultDirectRateLimiter,
    unheard: DefaultDirectRateLimiter,
}

/// Requests that wait for the limit of all callers together.
struct Queue {
    /// Whoever holds it is next; tokio's semaphore hands it on in order of arrival.
    turn: Semaphore,
    waiting: AtomicU64,
    /// So many may wait.
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

/// Whom a limit per address counts: an IPv4 address, or an IPv6 /64, which is what one subscriber is given (RFC 6177).
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let s = v6.segments();
            IpAddr::V6(Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0))
        }
    }
}

impl Limits {
    /// Those of `settings`.
    pub fn new(settings: &NuveSettings) -> Self {
        Self {
            clock: DefaultClock::default(),
            ip: RateLimiter::keyed(
                per_second(settings.ip_per_s).allow_burst(at_least_one(settings.ip_burst)),
            ),
            service: RateLimiter::keyed(per_second(settings.service_per_s)),
            cluster: RateLimiter::direct(per_second(settings.cluster_per_s)),
            queue: settings.queue.then(|| Queue {
                turn: Semaphore::new(1),
                waiting: AtomicU64::new(0),
                room: u64::from(settings.queue_demand.saturating_sub(settings.cluster_per_s)),
            }),
            locate: RateLimiter::direct(per_second(settings.locate_per_s)),
            unheard: RateLimiter::direct(per_second(UNHEARD_PER_S)),
        }
    }

    /// One request from `address` with a publishable key, or with a key that opens nothing.
    pub fn ip(&self, address: Option<IpAddr>) -> Result<(), Problem> {
        let mut key = address.map(counted);
        if self.ip.len() >= MAX_TRACKED {
            self.ip.retain_recent();
            if self.ip.len() >= MAX_TRACKED {
                key = None;
            }
        }
        self.ip.check_key(&key).map_err(|until| self.refusal("from this address", until))
    }

    /// One request with the secret key of `service`.
    pub fn service(&self, service: &ServiceId) -> Result<(), Problem> {
        self.service.check_key(service).map_err(|until| self.refusal("of this service", until))
    }

    /// One request of anybody. With the queue on it waits for its turn; once too many wait it is refused.
    pub async fn cluster(&self) -> Result<(), Problem> {
        let Some(queue) = &self.queue else {
            return self.cluster.check().map_err(|until| self.refusal("of all callers together", until));
        };
        let before = queue.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&queue.waiting);
        if before >= queue.room {
            let whose = "of all callers together";
            return Err(RATE_LIMITED
                .detail(format!("More requests {whose} wait than the queue takes."))
                .retry_after(1)
                .with("limit", whose));
        }
        let turn = queue.turn.acquire().await.expect("the semaphore is never closed");
        self.cluster.until_ready().await;
        drop((turn, waiting));
        Ok(())
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
        self.ip.retain_recent();
        self.ip.shrink_to_fit();
        self.service.retain_recent();
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

    #[tokio::test]
    async fn with_the_queue_requests_wait_in_order_until_too_many_do() {
        let settings =
            NuveSettings { cluster_per_s: 20, queue: true, queue_demand: 30, ..NuveSettings::default() };
        let limits = Limits::new(&settings);
        let started = std::time::Instant::now();
        let served = std::sync::Mutex::new(Vec::new());
        let all = futures::future::join_all((0..50).map(|i| {
            let (limits, served) = (&limits, &served);
            async move {
                let result = limits.cluster().await;
                if result.is_ok() {
                    served.lock().unwrap().push(i);
                }
                result
            }
        }))
        .await;
        // 20 are the second's own, 10 may wait; which are refused depends on who was there first, and order holds.
        let refused = all.iter().filter(|result| result.is_err()).count();
        let served = served.into_inner().unwrap();
        assert_eq!(refused + served.len(), 50);
        assert!((10..=30).contains(&served.len()), "{} served", served.len());
        assert!(served.is_sorted(), "{served:?}");
        assert!(started.elapsed() < std::time::Duration::from_secs(3));
        limits.cluster().await.expect("the queue is empty again");
    }

    #[test]
    fn one_address_is_limited_and_another_is_not() {
        let limits = Limits::new(&NuveSettings { ip_per_s: 1, ip_burst: 3, ..NuveSettings::default() });
        let ip = |text: &str| Some(text.parse().unwrap());
        for _ in 0..3 {
            limits.ip(ip("192.0.2.1")).unwrap();
        }
        let refused = limits.ip(ip("192.0.2.1")).unwrap_err();
        assert_eq!(refused.retry_after_s, Some(1));
        assert!(limits.ip(ip("::ffff:192.0.2.1")).is_err(), "the same address written as IPv6");
        limits.ip(ip("192.0.2.2")).unwrap();
        for host in 1..=3 {
            limits.ip(ip(&format!("2001:db8::{host}"))).unwrap();
        }
        assert!(limits.ip(ip("2001:db8::4")).is_err(), "one /64 is one subscriber");
        limits.ip(ip("2001:db8:0:1::1")).unwrap();
    }
}
