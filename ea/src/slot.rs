//! One worker slot: keeps one worker running, watches that it answers, and replaces it when it dies or hangs.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use roomlog_bus::ids::WorkerIndex;
use roomlog_projections::membership::stopped;
use roomlog_sfu::control::{FromWorker, ToWorker, WorkerConfig};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    settings::EaSettings,
    worker::{SpawnWorker, WorkerLink},
};

/// What a slot tells the agent.
#[derive(Debug)]
pub enum SlotEvent {
    /// A worker is ready.
    Ready {
        /// Where it takes packets.
        udp: SocketAddr,
        /// Process id, where there is a process.
        pid: Option<u32>,
        /// Its commands.
        to: mpsc::Sender<ToWorker>,
    },
    /// It said something.
    Said(FromWorker),
    /// It is gone; another will follow.
    Died(String),
    /// One did not get ready; another try will follow.
    Failed(String),
}

/// A slot's event with where it comes from.
#[derive(Debug)]
pub struct FromSlot {
    /// Which slot.
    pub worker: WorkerIndex,
    /// Which start of its worker.
    pub generation: u64,
    /// What.
    pub event: SlotEvent,
}

/// How long to wait before the next start.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    stable_after: Duration,
    failures: u32,
}

impl Backoff {
    /// A backoff that has seen no failure.
    pub fn new(min: Duration, max: Duration, stable_after: Duration) -> Self {
        Self { min, max, stable_after, failures: 0 }
    }

    /// A worker ended after having lived `lived`: wait this long. None after a long life, then `min`, then twice that and so on to `max`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= self.stable_after {
            self.failures = 0;
        }
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => self.min.saturating_mul(1 << (n - 1).min(20)).min(self.max),
        };
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// One worker slot. [`Slot::run`] ends when it is told to, with its worker.
pub struct Slot {
    /// Which.
    pub worker: WorkerIndex,
    /// Generation of the first worker.
    pub generation: u64,
    /// The first worker and where it takes packets, if it was taken over.
    pub first: Option<(WorkerLink, SocketAddr)>,
    /// What each worker is told; the port is replaced by the one the first got.
    pub config: WorkerConfig,
    /// Times.
    pub settings: EaSettings,
    /// Starts workers.
    pub spawner: Arc<dyn SpawnWorker>,
    /// To the agent.
    pub events: mpsc::Sender<FromSlot>,
    /// True when it is to end.
    pub stop: watch::Receiver<bool>,
    /// The generation that the agent wants replaced.
    pub replace: watch::Receiver<u64>,
}

enum Ended {
    /// The worker is gone for this reason.
    Worker(String),
    /// The slot was told to end.
    Told,
}

impl Slot {
    /// Keeps a worker running until told to end.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(
            self.settings.restart_backoff_min,
            self.settings.restart_backoff_max,
            self.settings.stable_after,
        );
        loop {
            let started = Instant::now();
            let (was_ready, ended) = self.one_life().await;
            let Ended::Worker(reason) = ended else { return };
            let lived = if was_ready { started.elapsed() } else { Duration::ZERO };
            let wait = backoff.after(lived);
            tracing::warn!(worker = %self.worker, generation = self.generation, reason, ?wait, "SFU worker ended; the next one is started");
            let event = if was_ready { SlotEvent::Died(reason) } else { SlotEvent::Failed(reason) };
            if !self.tell(event).await {
                return;
            }
            if !was_ready && self.config.listen.port() != 0 && self.settings.first_port.is_none() {
                // Somebody else has the port of the predecessor; any other will do.
                self.config.listen.set_port(0);
            }
            self.generation += 1;
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                () = stopped(&mut self.stop) => return,
            }
        }
    }

    /// From start to end of one worker; says whether it got ready.
    async fn one_life(&mut self) -> (bool, Ended) {
        if let Some((link, udp)) = self.first.take() {
            return self.serve(link, udp).await;
        }
        if let Some(adoptable) = &mut self.config.adoptable {
            adoptable.generation = self.generation;
        }
        let mut link = match self.spawner.spawn(&self.config) {
            Ok(link) => link,
            Err(error) => return (false, Ended::Worker(error.to_string())),
        };
        let ready = tokio::select! {
            biased;
            ready = timeout(self.settings.ready_timeout, link.from.recv()) => ready,
            () = stopped(&mut self.stop) => return (false, self.shut_down(link).await),
        };
        let udp = match ready {
            Ok(Some(FromWorker::Ready { udp })) => udp,
            Ok(Some(other)) => {
                return (false, Ended::Worker(format!("said {other:?} before it was ready")));
            }
            Ok(None) => return (false, Ended::Worker(self.end_of(link).await)),
            Err(_) => {
                return (false, Ended::Worker(format!("not ready within {:?}", self.settings.ready_timeout)));
            }
        };
        self.serve(link, udp).await
    }

    /// The life of a worker that is ready.
    async fn serve(&mut self, link: WorkerLink, udp: SocketAddr) -> (bool, Ended) {
        self.config.listen.set_port(udp.port());
        let event = SlotEvent::Ready { udp, pid: link.pid, to: link.to.clone() };
        if !self.tell(event).await {
            return (true, self.shut_down(link).await);
        }
        (true, self.watch(link).await)
    }

    /// Watches a worker that is ready.
    async fn watch(&mut self, mut link: WorkerLink) -> Ended {
        let mut ping = interval(self.settings.ping_every);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_id = 0;
        let mut last_pong = Instant::now();
        let mut last_look = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = wanted(&mut self.replace, self.generation) => return self.give_up(link, "hung: its queue was full").await,
                () = stopped(&mut self.stop) => return self.shut_down(link).await,
                _ = ping.tick() => {
                    // After a pause of our own (a stopped machine, a starved process) the worker has not been silent: we were deaf.
                    if last_look.elapsed() > self.settings.ping_every + self.settings.pong_timeout / 2 {
                        last_pong = Instant::now();
                    }
                    last_look = Instant::now();
                    if last_pong.elapsed() >= self.settings.pong_timeout {
                        return self.give_up(link, "hung").await;
                    }
                    next_id += 1;
                    // A full queue is no reason by itself: the missing answer will be.
                    let _ = link.to.try_send(ToWorker::Ping { id: next_id });
                }
                said = link.from.recv() => match said {
                    None => return Ended::Worker(self.end_of(link).await),
                    Some(message) => {
                        if let FromWorker::Pong { .. } = message {
                            last_pong = Instant::now();
                        }
                        if !self.tell(SlotEvent::Said(message)).await {
                            return self.shut_down(link).await;
                        }
                    }
                },
                reason = &mut link.ended => return Ended::Worker(reason.unwrap_or_else(|_| "gone".into())),
            }
        }
    }

    /// How a worker ended whose queue has closed. One that closed it and lives on is killed.
    async fn end_of(&self, link: WorkerLink) -> String {
        let WorkerLink { ended, kill, to, from, .. } = link;
        drop((to, from));
        let kill_later = async {
            tokio::time::sleep(self.settings.shutdown_timeout).await;
            let _ = kill.send(());
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            reason = ended => reason.unwrap_or_else(|_| "gone".into()),
            () = kill_later => "gone".into(),
        }
    }

    /// Kills a worker that does not answer.
    async fn give_up(&self, link: WorkerLink, why: &str) -> Ended {
        let _ = link.kill.send(());
        let _ = timeout(self.settings.shutdown_timeout, link.ended).await;
        Ended::Worker(why.to_owned())
    }

    /// Ends a worker in order, or by force when it takes too long.
    async fn shut_down(&self, mut link: WorkerLink) -> Ended {
        let _ = link.to.try_send(ToWorker::Shutdown);
        let last_words = async { while link.from.recv().await.is_some() {} };
        if timeout(self.settings.shutdown_timeout, last_words).await.is_err() {
            tracing::warn!(worker = %self.worker, "SFU worker did not end when told to: killed");
        }
        let _ = link.kill.send(());
        let _ = timeout(self.settings.shutdown_timeout, link.ended).await;
        Ended::Told
    }

    async fn tell(&mut self, event: SlotEvent) -> bool {
        let event = FromSlot { worker: self.worker, generation: self.generation, event };
        // The agent never waits for a slot, so this ends; when the agent is gone, so is the reason to go on.
        self.events.send(event).await.is_ok()
    }
}

/// Returns when this generation is to be replaced.
async fn wanted(replace: &mut watch::Receiver<u64>, generation: u64) {
    if replace.wait_for(|wanted| *wanted == generation).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_keeps_dying_is_started_ever_more_slowly() {
        let (min, max, stable) =
            (Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(30));
        let mut backoff = Backoff::new(min, max, stable);
        let waits: Vec<u128> = (0..7).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(backoff.after(stable), Duration::ZERO, "a long life forgives");
        assert_eq!(backoff.after(Duration::ZERO), min);
    }
}
