//! The pace of all callers together: a node's own, or one it shares with the other NUVE nodes, carried over bus and log. Everything
//! that decides is in `party.rs`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use roomlog_bus::{
    bus::Bus,
    commit::{Cause, StreamId, StreamKind, limit_stream},
    events::{Event, LimitShared},
    ids::{Incarnation, Version},
    journal::ReadError,
    log::{Draft, Log},
    rpc::{LimitAsk, LimitGrant, NuveAnswer, NuveRequest, RpcError, ask},
    subject::Subject,
};
use roomlog_projections::{directory::LiveDirectory, membership::stopped, node::NodePhase};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{addresses::Left, bucket::Bucket, party::Party};

/// An answer of the holder is waited for this long. 300 ms: three times in the life of a share.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);
/// Between two asks at least, however much is refused.
const ASK_GAP: Duration = Duration::from_millis(50);
/// Between two looks at whether the log is to be read or written.
const RECORD_EVERY: Duration = Duration::from_millis(50);
/// A node that starts waits this long for its first share before it serves. 5 s: longer than it takes to follow a dead holder.
const FIRST_WITHIN: Duration = Duration::from_secs(5);

/// Whole requests per second as the cores count them.
fn thousandths(per_s: u32) -> u64 {
    // 0 in a setting means 1: a limit that lets nothing through would be a node that is off.
    u64::from(per_s.max(1)) * 1_000
}

#[derive(Debug)]
enum Paced {
    Alone { bucket: Bucket },
    Together(Box<Party>),
}

#[derive(Debug)]
struct Inner {
    started: Instant,
    limit: u64,
    /// Held for one decision, never across an await.
    paced: Mutex<Paced>,
    hurry: Notify,
}

/// Paces all callers together. Clones are the same.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Inner>);

impl Pace {
    fn new(per_s: u32, paced: impl FnOnce(u64) -> Paced) -> Self {
        let limit = thousandths(per_s);
        let paced = Mutex::new(paced(limit));
        Self(Arc::new(Inner { started: Instant::now(), limit, paced, hurry: Notify::new() }))
    }

    /// A pace of this node's own, requests per second.
    pub fn alone(per_s: u32) -> Self {
        Self::new(per_s, |limit| Paced::Alone { bucket: Bucket::full(0, limit) })
    }

    /// A pace that `node` shares with the others: [`share`] must run.
    pub fn together(per_s: u32, node: StreamId, incarnation: Incarnation) -> Self {
        Self::new(per_s, |limit| Paced::Together(Box::new(Party::new(0, node, incarnation, limit))))
    }

    fn now(&self) -> u64 {
        self.0.started.elapsed().as_micros() as u64
    }

    /// Nanoseconds on the clock that all limits go by.
    pub fn nanos(&self) -> u64 {
        self.0.started.elapsed().as_nanos() as u64
    }

    /// What is told to whom the limit of all refuses.
    pub fn none_left(&self) -> Left {
        let quota = self.0.limit / 1_000;
        Left { policy: "all", quota, window_s: 1, remaining: 0, reset_s: 1 }
    }

    fn lock(&self) -> MutexGuard<'_, Paced> {
        self.0.paced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with this node's part in sharing, if it shares.
    fn party<T>(&self, act: impl FnOnce(&mut Party, u64) -> T) -> Option<T> {
        let now = self.now();
        match &mut *self.lock() {
            Paced::Together(party) => Some(act(party, now)),
            Paced::Alone { .. } => None,
        }
    }

    /// A request has come.
    pub fn came(&self) {
        self.party(|party, _| party.came());
    }

    /// Admits one request, or says after what time one may be.
    pub fn admit(&self) -> Result<(), Duration> {
        let now = self.now();
        let admitted = match &mut *self.lock() {
            Paced::Alone { bucket } => bucket.take(now, self.0.limit),
            Paced::Together(party) => party.admit(now),
        };
        admitted.map_err(Duration::from_micros)
    }

    /// Requests per second that this node may admit now.
    pub fn rate(&self) -> f64 {
        self.party(|party, now| party.rate(now)).unwrap_or(self.0.limit) as f64 / 1_000.0
    }

    /// Whether this node hands out the shares.
    pub fn holds(&self) -> bool {
        self.party(|party, _| party.holds()).unwrap_or(true)
    }

    /// As much of `whole` as this node has of the rate.
    pub fn part_of(&self, whole: u64) -> u64 {
        let rate = self.party(|party, now| party.rate(now)).unwrap_or(self.0.limit);
        (u128::from(whole) * u128::from(rate) / u128::from(self.0.limit)) as u64
    }

    /// Whether nobody has been heard for so long that this node may admit nothing.
    pub fn is_cut_off(&self) -> bool {
        self.party(|party, now| party.is_cut_off(now)).unwrap_or(false)
    }

    /// More is wanted than there is: the holder is asked sooner.
    pub fn hurry(&self) {
        self.0.hurry.notify_one();
    }

    /// Another node asks for a share.
    pub fn grant(&self, ask: &LimitAsk) -> Result<LimitGrant, RpcError> {
        let granted = self.party(|party, now| party.grant(now, ask));
        match granted {
            Some(Ok(grant)) => Ok(grant),
            Some(Err(error)) => Err(RpcError::Retry { reason: error.to_string() }),
            None => Err(RpcError::Retry { reason: "this node shares no limit".into() }),
        }
    }
}

/// What sharing needs.
pub struct Sharing {
    /// The pace that is shared.
    pub pace: Pace,
    /// How others are asked.
    pub bus: Arc<dyn Bus>,
    /// Where the holder is settled.
    pub log: Log,
    /// Who has said goodbye.
    pub directory: LiveDirectory,
}

impl Sharing {
    /// Asks for shares until told to stop. `waiting` says how many requests wait.
    pub async fn ask(&self, waiting: impl Fn() -> u64, mut stop: watch::Receiver<bool>) {
        loop {
            let asking = self.pace.party(|party, now| {
                party.set_waiting(waiting());
                party.ask(now)
            });
            let grant = match asking.flatten() {
                Some((holder, request)) if holder == request.node => self.pace.grant(&request).ok(),
                Some((holder, request)) => {
                    let subject = Subject::rpc(&holder);
                    match ask(&*self.bus, subject, &NuveRequest::Limit(request), ANSWER_WITHIN).await {
                        Ok(NuveAnswer::Limit(grant)) => Some(grant),
                        Ok(_) => None,
                        Err(error) => {
                            tracing::debug!(%holder, %error, "no share of the rate limit");
                            None
                        }
                    }
                }
                None => None,
            };
            let again = self.pace.party(|party, now| party.answered(now, grant.as_ref())).unwrap_or_default();
            let hurried = async {
                tokio::time::sleep(ASK_GAP).await;
                self.pace.0.hurry.notified().await;
            };
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    self.pace.party(Party::leave);
                    return;
                }
                () = tokio::time::sleep(Duration::from_millis(again)) => {}
                () = hurried => {}
            }
        }
    }

    /// Reads and writes who hands out shares, until told to stop.
    pub async fn record(&self, mut stop: watch::Receiver<bool>) {
        let mut every = tokio::time::interval(RECORD_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                _ = every.tick() => self.look().await,
            }
        }
    }

    async fn look(&self) {
        if self.pace.party(|party, now| party.wants_read(now)) == Some(true) {
            let asked = self.pace.now();
            match self.read().await {
                Ok(record) => {
                    self.pace.party(|party, _| party.learned(asked, record));
                }
                Err(error) => tracing::debug!(%error, "who holds the rate limit cannot be read"),
            }
        }
        let Some((record, head)) = self
            .pace
            .party(|party, now| {
                if party.holds() {
                    let directory = self.directory.read();
                    for (node, state) in &directory.nodes {
                        if node.kind() == StreamKind::Nuve && state.phase == NodePhase::Left {
                            party.left_the_cluster(now, node, state.incarnation);
                        }
                    }
                }
                party.wants_append(now)
            })
            .flatten()
        else {
            return;
        };
        let asked = self.pace.now();
        let draft = Draft { cause: Cause::of("limit"), ..Draft::default() };
        let event = Event::from(record.clone());
        match self.log.append(limit_stream(), head, draft, &[event]).await {
            Ok(commit) => {
                tracing::debug!(
                    epoch = record.epoch,
                    nodes = record.floors.len(),
                    "hands out the rate limit"
                );
                self.pace.party(|party, now| party.appended(asked, now, record, commit.head()));
            }
            Err(error) => {
                tracing::debug!(%error, "does not hand out the rate limit");
                self.pace.party(|party, _| party.not_appended());
            }
        }
    }

    async fn read(&self) -> Result<Option<(LimitShared, roomlog_bus::commit::Head)>, ReadError> {
        let (stream, journal) = (limit_stream(), self.log.journal());
        let Some(head) = journal.head(&stream).await? else { return Ok(None) };
        let last = journal.read(&stream, Version(head.version.0), 1).await?;
        let shared = last.last().and_then(|commit| {
            let event = commit.events.last().and_then(|raw| Event::decode(raw).ok());
            match event {
                Some(Event::LimitShared(shared)) => Some((shared, commit.head())),
                _ => None,
            }
        });
        Ok(shared)
    }

    /// Waits for the first share, for a while.
    pub async fn first(&self) {
        let until = Instant::now() + FIRST_WITHIN;
        while self.pace.rate() == 0.0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
