//! Tells many listeners that something changed, in the order in which they began to listen.
//!
//! One `watch` for all would do but for that order: it wakes its listeners in one that is drawn at random, and a run of the simulation
//! could not be repeated.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Counts changes. Dropping it tells every listener that nothing changes any more.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    listeners: Mutex<Vec<watch::Sender<u64>>>,
}

impl Signal {
    /// Tells of every change from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        let (sender, receiver) = watch::channel(0);
        let mut listeners = self.lock();
        listeners.retain(|listener| !listener.is_closed());
        listeners.push(sender);
        receiver
    }

    /// Something changed.
    pub(crate) fn tell(&self) {
        for listener in self.lock().iter() {
            listener.send_modify(|n| *n += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<watch::Sender<u64>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_listener_hears_of_changes_after_it_began_to_listen() {
        let signal = Signal::default();
        let mut early = signal.subscribe();
        signal.tell();
        let mut late = signal.subscribe();
        assert!(early.has_changed().unwrap() && !late.has_changed().unwrap());
        early.mark_unchanged();
        signal.tell();
        assert!(early.has_changed().unwrap() && late.has_changed().unwrap());
        early.mark_unchanged();
        drop(signal);
        assert!(early.changed().await.is_err(), "nothing changes any more");
        late.mark_unchanged();
        assert!(late.changed().await.is_err());
    }
}
