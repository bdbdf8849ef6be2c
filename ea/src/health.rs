//! How an EA is, for whoever looks after its process.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use crate::core::Core;

/// An agent whose loop has not come round for this long hangs: it does so every half second, and waits for nothing. 10 s: a machine that
/// starves its processes for a moment is not meant.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// How an EA is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Its loop comes round. One that does not is helped by nothing but a new process.
    pub turning: bool,
    /// This start of it is in the log, and nobody has called it lost since, as far as it has heard.
    pub registered: bool,
    /// The bus is there, as far as its client knows.
    pub connected: bool,
    /// It takes nothing new.
    pub draining: bool,
    /// SFU workers that run and answer.
    pub live_workers: usize,
    /// How many there should be.
    pub workers: usize,
}

impl Health {
    /// Whether an EC that asks can be given a worker.
    pub fn is_ready(&self) -> bool {
        self.turning && self.registered && self.connected && !self.draining && self.live_workers > 0
    }
}

/// What the agent's loop says of itself each time it comes round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) registered: bool,
    pub(crate) draining: bool,
    pub(crate) live_workers: usize,
    pub(crate) workers: usize,
}

impl Seen {
    /// The agent with this core and workers, each of which lives or not.
    pub(crate) fn of<R>(core: &Core<R>, lives: impl Iterator<Item = bool> + Clone) -> Self {
        Self {
            at: Instant::now(),
            registered: core.is_registered(),
            draining: core.is_draining(),
            live_workers: lives.clone().filter(|lives| *lives).count(),
            workers: lives.count(),
        }
    }
}

/// Shows how an EA is at any time. Clones show the same one.
#[derive(Debug, Clone)]
pub struct HealthWatch {
    pub(crate) seen: watch::Receiver<Seen>,
    pub(crate) connected: watch::Receiver<bool>,
}

impl HealthWatch {
    /// How it is now.
    pub fn now(&self) -> Health {
        let Seen { at, registered, draining, live_workers, workers } = *self.seen.borrow();
        let turning = at.elapsed() < HANGS_AFTER;
        let connected = *self.connected.borrow();
        Health { turning, registered, connected, draining, live_workers, workers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_whose_loop_does_not_come_round_hangs() {
        let seen =
            Seen { at: Instant::now(), registered: true, draining: false, live_workers: 1, workers: 1 };
        let (tell, seen) = watch::channel(seen);
        let (_bus, connected) = watch::channel(true);
        let health = HealthWatch { seen, connected };
        assert!(health.now().is_ready());
        let long_ago =
            Instant::now().checked_sub(HANGS_AFTER).expect("this machine was not started just now");
        tell.send_modify(|seen| seen.at = long_ago);
        assert!(!health.now().turning && !health.now().is_ready());
        tell.send_modify(|seen| seen.at = Instant::now());
        assert!(health.now().is_ready());
    }

    #[test]
    fn whatever_is_missing_an_ea_is_not_ready() {
        let ready = Health {
            turning: true,
            registered: true,
            connected: true,
            draining: false,
            live_workers: 1,
            workers: 2,
        };
        assert!(ready.is_ready());
        for missing in [
            Health { turning: false, ..ready },
            Health { registered: false, ..ready },
            Health { connected: false, ..ready },
            Health { draining: true, ..ready },
            Health { live_workers: 0, ..ready },
        ] {
            assert!(!missing.is_ready(), "{missing:?}");
        }
    }
}
